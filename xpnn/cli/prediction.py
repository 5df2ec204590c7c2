"""`xpnn predict`."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

from xpnn import ops, saving
from xpnn.backend import host
from xpnn.cli.output import check_destination
from xpnn.data import DATASETS, Scaling, load_dataset, read_features
from xpnn.dispatch import Array
from xpnn.errors import CheckpointError, DataError
from xpnn.files import write_atomically
from xpnn.network import Network


def predict_command(model: str, file: str, output: str | None, backend: str | None) -> None:
    """Predict every row of a file; CSV to `output`, or to standard output. Raises XpnnError if some input is wrong."""
    metadata = saving.read_metadata(model)
    try:
        features = tuple(metadata["features"])
        scaling = Scaling.from_json(metadata["feature_scaling"])
        target, class_names = metadata["target"], metadata["class_names"]
        targets = None if metadata["target_scaling"] is None else Scaling.from_json(metadata["target_scaling"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{model!r} does not say which columns it was trained on: `xpnn train --save` did not write it. "
            "Use Network.load(...).predict(...)"
        ) from None
    if output is not None:
        check_destination(output, "the predictions", keep=[model, file])
    x = _inputs(file, features)
    network = Network.load(model, backend=backend)
    result = network.predict(scaling.apply(x, network.dtype))
    text = _class_rows(result, target, class_names) if targets is None else _number_rows(targets.undo(result), target)
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(output, text.encode())
        print(f"{len(x)} predictions: {output}", file=sys.stderr)


def _inputs(file: str, features: tuple[str, ...]) -> Array:
    """The columns that the model wants, from a file or, if no such file is there, a built-in data set."""
    if file in DATASETS and not Path(file).exists():
        table = load_dataset(file)
        missing = [name for name in features if name not in table.features]
        if missing:
            raise DataError(f"the data set {file!r} has no columns {', '.join(missing[:12])}")
        positions = [table.features.index(name) for name in features]
        return table.x[:, positions]
    return read_features(file, features)


def _class_rows(logits: Any, target: str, class_names: list[str]) -> str:
    """The most probable class of each row, and its probability."""
    xp = host().xp
    probabilities, _ = ops.softmax(xp.astype(logits, xp.float64))
    best = xp.argmax(probabilities, axis=-1)
    rows = ((class_names[int(label)], f"{row[label]:.6f}") for label, row in zip(best, probabilities, strict=True))
    return _csv((target, "probability"), rows)


def _number_rows(values: Any, target: str) -> str:
    return _csv((target,), ((f"{float(value):.9g}",) for value in values[:, 0]))


def _csv(header: tuple[str, ...], rows: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
