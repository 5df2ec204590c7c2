"""`xpnn predict`."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

from xpnn import ops, saving
from xpnn.backend import host
from xpnn.cli.output import check_destination
from xpnn.data import DATASETS, Scaling, load_dataset, read_features, read_pictures
from xpnn.data.pictures import class_folders, is_picture, pictures_in
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
        image = None if metadata.get("image") is None else _Image.from_json(metadata["image"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{model!r} does not say which columns it was trained on: `xpnn train --save` did not write it. "
            "Use Network.load(...).predict(...)"
        ) from None
    if output is not None:
        check_destination(output, "the predictions", keep=[model, file])
    files = _pictures(Path(file))
    x = _inputs(file, features, image) if files is None else _pixels(files, image, model)
    network = Network.load(model, backend=backend)
    result = network.predict(scaling.apply(x, network.dtype))
    columns = _classes(result, target, class_names) if targets is None else _numbers(targets.undo(result), target)
    if files is not None:
        columns = {"file": [str(each) for each in files], **columns}
    text = _csv(columns)
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        # Names of files need not be text: their bytes go through as they are.
        write_atomically(output, text.encode(errors="surrogateescape"))
        print(f"{len(x)} predictions: {output}", file=sys.stderr)


class _Image(NamedTuple):
    """What a model file says of the images that the model was trained on."""

    shape: tuple[int, int, int]
    white: float | None
    resized: bool

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> _Image:
        height, width, channels = (int(length) for length in data["shape"])
        return cls(
            (height, width, channels), None if data["white"] is None else float(data["white"]), bool(data["resized"])
        )


def _pictures(path: Path) -> list[Path] | None:
    """The pictures that are meant: a single one, or all in a folder and its sub-folders; None for another file."""
    if path.is_dir():
        found = [picture for folder in (path, *class_folders(path)) for picture in pictures_in(folder)]
        if not found:
            raise DataError(
                f"the folder {str(path)!r} holds no pictures; give a folder that does, or a file, say one of MNIST's "
                "with images"
            )
        return found
    return [path] if is_picture(path) and path.is_file() else None


def _pixels(files: list[Path], image: _Image | None, model: str) -> Array:
    """Pictures as the model saw them in its training: rows of pixels in its size and range."""
    if image is None:
        raise DataError(f"{model!r} was not trained on images, and {str(files[0])!r} is one; give a file with columns")
    height, width, channels = image.shape
    if channels not in (1, 3) or image.white is None:
        what = f"{channels} channels" if image.white is not None else "other numbers than those of pixels"
        raise DataError(
            f"{model!r} was trained on images with {what}; pictures have 1 or 3 channels of pixels from 0 to 255"
        )
    rows = []
    for file in files:
        x = read_pictures([file], (height, width) if image.resized else None, channels)
        if x.shape[1:] != image.shape:
            raise DataError(
                f"{str(file)!r} is {x.shape[2]} pixels wide and {x.shape[1]} high, {model!r} was trained on images "
                f"{width} wide and {height} high; resize the picture, or train on pictures with --resize"
            )
        rows.append(x * image.white)
    return host().xp.reshape(host().xp.concat(rows), (len(files), height * width * channels))


def _inputs(file: str, features: tuple[str, ...], image: _Image | None) -> Array:
    """The columns that the model wants, from a file or, if no such file is there, a built-in data set."""
    if file in DATASETS and not Path(file).exists():
        table = load_dataset(file)
        missing = [name for name in features if name not in table.features]
        if missing:
            raise DataError(f"the data set {file!r} has no columns {', '.join(missing[:12])}")
        positions = [table.features.index(name) for name in features]
        return table.x[:, positions]
    x = read_features(file, features)
    highest = float(host().xp.max(x)) if len(x) else 0.0
    if image is not None and image.white == 1.0 and highest > 1.0:
        # Whole numbers, and a model that was trained on pixels from 0 to 1, as those of pictures are.
        return x / (255.0 if highest <= 255.0 else 65535.0)
    return x


def _classes(logits: Any, target: str, class_names: list[str]) -> dict[str, list[str]]:
    """The most probable class of each row, and its probability."""
    xp = host().xp
    probabilities, _ = ops.softmax(xp.astype(logits, xp.float64))
    best = xp.argmax(probabilities, axis=-1)
    return {
        target: [class_names[int(label)] for label in best],
        "probability": [f"{row[label]:.6f}" for label, row in zip(best, probabilities, strict=True)],
    }


def _numbers(values: Any, target: str) -> dict[str, list[str]]:
    return {target: [f"{float(value):.9g}" for value in values[:, 0]]}


def _csv(columns: dict[str, list[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()
