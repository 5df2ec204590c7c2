"""`xpnn train`."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpnn import saving
from xpnn.backend import get_backend, host
from xpnn.cli.architecture import network_layers
from xpnn.cli.output import check_destination
from xpnn.data import DATASETS, Scaling, Table, Target, encode_target, load_dataset, read_table, split
from xpnn.data.images import is_picture_folder, picture_table, white_of
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, DataError
from xpnn.network import Network
from xpnn.optimizers import OPTIMIZERS
from xpnn.random import check_seed
from xpnn.training.precision import precision_for

# What a table gets whose reader proposes nothing better.
_OPTIMIZER = "adam"
_BATCH_SIZE = 32
_VALIDATION = 0.2
_STEPS = 3000


@dataclass(frozen=True)
class Options:
    """The options of `xpnn train` as they came; None where the user said nothing."""

    data: str
    target: str | None = None
    task: str | None = None
    drop: str | None = None
    resize: str | None = None
    model: str | None = None
    augment: str | None = None
    layers: str | None = None
    activation: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    backend: str | None = None
    seed: int = 0
    validation: float | None = None
    dtype: str = "float32"
    precision: str = "float32"
    patience: int | None = None
    save: str | None = None
    plot: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Prepared:
    """What the network gets: standardised features, targets as numbers, and the way back."""

    x: Array
    y: Array
    held_out_x: Array | None
    held_out_y: Array | None
    features: Scaling
    targets: Scaling | None
    target: Target


def train_command(options: Options) -> bool:
    """Read, prepare, train, report, save. Everything that can be refused is refused before the training starts.

    Returns:
        True if the user stopped the training.

    Raises:
        XpnnError: some input is not right.
    """
    check_seed(options.seed)
    _check_choices(options)
    backend = get_backend(options.backend)
    backend.dtype(options.dtype)
    precision_for(options.precision, options.dtype, backend)
    table = _read(options)
    optimizer = _optimizer(options, table.defaults)
    for path, what in ((options.save, "the model"), (options.plot, "the plot")):
        if path is not None:
            check_destination(path, what, keep=[options.data])
    if options.save is not None and options.plot is not None:
        check_destination(options.plot, "the plot", keep=[options.save])
    if options.plot is not None:
        from xpnn.plotting import check_plot_path

        check_plot_path(options.plot)
    try:
        target = _target(table, options)
        outputs = len(target.class_names) if target.task == "classification" else 1
        layers = network_layers(table, outputs, options.model, options.layers, options.activation, options.augment)
        prepared = _prepare(table, target, options)
    except DataError as error:
        # What is wrong with a table is said by code that does not know where it came from.
        raise DataError(f"{options.data!r}: {error}") from None

    network = Network(
        *layers,
        backend=backend,
        dtype=options.dtype,
        precision=options.precision,
        seed=options.seed,
        input_shape=(len(table.features),),
    )
    if not options.quiet:
        _print_plan(options, table, prepared, network)
    history = _fit(network, prepared, options, table.defaults, optimizer)
    if history.interrupted:
        print(f"stopped by Ctrl-C after {len(history.epochs)} complete epochs; what was learnt so far is kept")
    elif history.stopped:
        print(f"stopped early by {history.stopped}, whose weights are taken")
    print(_result(network, prepared))
    if options.plot is not None:
        from xpnn.plotting import plot_history

        plot_history(history, options.plot, title=f"{Path(options.data).name}: loss")
        print(f"loss curves: {options.plot}")
    if options.save is None:
        print("the model is not saved; give --save model.safetensors to keep it")
    else:
        saving.save(network, options.save, _metadata(table, prepared, options))
        print(f"model: {options.save} ({os.path.getsize(options.save):,} bytes)")
    return bool(history.interrupted)


def _check_choices(options: Options) -> None:
    if options.task not in (None, "classification", "regression"):
        raise ConfigError(f"--task {options.task!r} is unknown; choose classification or regression")
    if options.dtype not in ("float32", "float64"):
        raise ConfigError(f"--dtype {options.dtype!r} is not supported; choose float32 or float64")
    if options.validation is not None and not 0 <= options.validation < 1:
        raise ConfigError(f"--validation {options.validation:g} is out of range; give a share from 0 to below 1")
    rate = options.learning_rate
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise ConfigError(f"--lr {rate:g} is out of range; give a positive number")


def _read(options: Options) -> Table:
    """The data set that was asked for. A built-in name wins over a file of that name; ./name is the file."""
    drop = [name.strip() for name in (options.drop or "").split(",") if name.strip()]
    resize = _size(options.resize)
    if options.data in DATASETS:
        if options.target is not None or drop or resize is not None:
            raise ConfigError(
                f"the data set {options.data!r} has its own target and columns; leave out --target, --drop, --resize"
            )
        return load_dataset(options.data)
    if not Path(options.data).exists():
        raise DataError(
            f"{options.data!r} is no file, no folder and no built-in data set; those are: {', '.join(DATASETS)}"
        )
    path = Path(options.data)
    if path.is_dir() and is_picture_folder(path):
        if options.target is not None or drop:
            raise ConfigError(
                f"{options.data!r} is a folder of pictures, whose sub-folders are the classes; leave out --target, "
                "--drop"
            )
        return picture_table(path, resize)
    if resize is not None:
        raise ConfigError(f"--resize is for folders of pictures; the samples of {options.data!r} stay as they are")
    if path.is_dir() and options.target is not None:
        raise ConfigError(f"{options.data!r} is a folder of IDX files, which has its own target; leave out --target")
    return read_table(options.data, options.target, drop)


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from --resize: 32, or 24,32."""
    if text is None:
        return None
    try:
        sides = tuple(int(side) for side in text.split(","))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ConfigError(f"--resize {text!r} is not understood; write one number of pixels, or height,width")
    return sides[0], sides[-1]


def _optimizer(options: Options, defaults: dict[str, Any]) -> Any:
    """The optimizer of --optimizer with --lr; the data set's own rate is meant for the default optimizer alone."""
    name = _OPTIMIZER if options.optimizer is None else options.optimizer.lower()
    if name not in OPTIMIZERS:
        raise ConfigError(f"--optimizer {options.optimizer!r} is unknown; known: {', '.join(sorted(OPTIMIZERS))}")
    kind = OPTIMIZERS[name]
    rate = options.learning_rate
    if rate is None and name == _OPTIMIZER:
        rate = defaults.get("learning_rate")
    if rate is None:
        return kind()
    if "learning_rate" not in inspect.signature(kind).parameters:
        raise ConfigError(f"--optimizer {name} finds its own learning rate; leave out --lr")
    return kind(learning_rate=rate)


def _held_out(table: Table, options: Options) -> Table | None:
    """The part that the data set itself holds out, unless the user asks for another share."""
    return None if options.validation is not None else table.held_out


def _target(table: Table, options: Options) -> Target:
    """The target of the table, with that of the part held out behind it."""
    y, given = table.y, _held_out(table, options)
    if given is not None:
        y = host().xp.concat([y, given.y])
    return encode_target(y, table.target, options.task or table.task, table.class_names)


def _prepare(table: Table, target: Target, options: Options) -> Prepared:
    """Split, standardise. Means and scales come from the training part alone."""
    given = _held_out(table, options)
    share = _VALIDATION if options.validation is None else options.validation
    rows: Any = slice(0, len(table.x))
    held_out: Any = None
    x, other_x = table.x, None
    if given is not None:
        other_x, held_out = given.x, slice(len(table.x), None)
    elif share > 0 and (options.validation is not None or table.split):
        rows, held_out = split(target, share, options.seed)
        x, other_x = table.x[rows], table.x[held_out]
    scaling = Scaling.of(x, together=table.image)
    values, target_scaling = target.values, None
    if target.task == "regression":
        # One output column, of size about 1 like the features: the learning rate then fits every unit of measure.
        values = values[:, None]
        target_scaling = Scaling.of(values[rows])
        values = target_scaling.apply(values)
    return Prepared(
        x=scaling.apply(x, options.dtype),
        y=values[rows],
        held_out_x=None if other_x is None else scaling.apply(other_x, options.dtype),
        held_out_y=None if other_x is None else values[held_out],
        features=scaling,
        targets=target_scaling,
        target=target,
    )


def _print_plan(options: Options, table: Table, prepared: Prepared, network: Network) -> None:
    target = prepared.target
    if target.task == "classification":
        names = ", ".join(target.class_names[:6]) + (", ..." if len(target.class_names) > 6 else "")
        what = f"classification of {table.target!r} into {len(target.class_names)} classes ({names})"
    else:
        what = f"regression of {table.target!r}"
    held_out = 0 if prepared.held_out_x is None else len(prepared.held_out_x)
    count = sum(math.prod(entry.parameter.shape) for entry in network.layout.entries)
    print(f"{options.data}: {what}")
    what = f"{len(table.features)} features"
    if table.image_shape is not None:
        what = "images of {} x {} pixels, {}".format(*table.image_shape[:2], _channels(table.image_shape[2]))
    print(f"{len(prepared.x)} samples to train on, {held_out} held out; {what}, standardised")
    print(f"network: {', '.join(map(_outline, network.root.layers))}")
    dtype = network.dtype if network.precision == "float32" else f"{network.dtype}, computed in {network.precision},"
    print(f"{count:,} parameters in {dtype} on {network.backend.spec}, seed {network.seed}", flush=True)


def _outline(layer: Any) -> str:
    """A layer as it is written, a long one with its first setting alone."""
    text = repr(layer)
    if len(text) <= 30:
        return text
    first = text.partition(",")[0]
    return f"{first}, ...)" if first.count("(") == 1 else f"{type(layer).__name__}(...)"


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _fit(network: Network, prepared: Prepared, options: Options, defaults: dict[str, Any], optimizer: Any) -> Any:
    batch_size = options.batch_size or defaults.get("batch_size", _BATCH_SIZE)
    samples = len(prepared.x)
    steps_in_epoch = math.ceil(samples / min(batch_size or samples, samples))
    epochs = options.epochs or defaults.get("epochs") or min(max(_STEPS // steps_in_epoch, 10), 200)
    classes = prepared.target.task == "classification"
    callbacks: list[Any] = []
    if options.patience is not None:
        from xpnn.training import EarlyStopping

        monitor = "loss" if prepared.held_out_x is None else "val_loss"
        callbacks.append(EarlyStopping(monitor=monitor, patience=options.patience, restore_best=True))
    with warnings.catch_warnings():
        # A training that diverges ends in an error of its own; NumPy's warnings would come before it.
        warnings.simplefilter("ignore", RuntimeWarning)
        return network.fit(
            prepared.x,
            prepared.y,
            loss="cross_entropy" if classes else "mse",
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            validation_data=None if prepared.held_out_x is None else (prepared.held_out_x, prepared.held_out_y),
            metrics=["accuracy"] if classes else [],
            verbose=False if options.quiet else "auto",
            callbacks=callbacks,
        )


def _result(network: Network, prepared: Prepared) -> str:
    """The final metrics, on what was held out if anything was, in the target's own units."""
    xp = host().xp
    x, y, part = prepared.held_out_x, prepared.held_out_y, "validation"
    if x is None or y is None:
        x, y, part = prepared.x, prepared.y, "training"
    output = xp.astype(network.predict(x), xp.float64)
    if prepared.targets is None:
        right = int(xp.sum(xp.argmax(output, axis=-1) == y))
        return f"{part} accuracy {right / len(y):.4f} ({right} of {len(y)})"
    # In standardised units, where no square can overflow; the scale brings the root back to the target's own.
    residual = output - y
    rmse = float(xp.sqrt(xp.mean(residual**2))) * float(prepared.targets.scale[0])
    spread = float(xp.sum((y - xp.mean(y)) ** 2))
    r2 = f"{1 - float(xp.sum(residual**2)) / spread:.4f}" if spread > 0 else "undefined (all targets are equal)"
    return f"{part} RMSE {rmse:.6g}, R2 {r2} ({len(y)} samples)"


def _metadata(table: Table, prepared: Prepared, options: Options) -> dict[str, Any]:
    """What `xpnn predict` needs besides the network."""
    target = prepared.target
    image = None
    if table.image_shape is not None:
        try:
            white = white_of(table, options.data)
        except DataError:
            white = None  # measured numbers, say: pictures are then nothing that the network could read
        image = {"shape": list(table.image_shape), "white": white, "resized": options.resize is not None}
    return {
        "task": target.task,
        "target": table.target,
        "features": list(table.features),
        "image": image,
        "class_names": list(target.class_names),
        "feature_scaling": prepared.features.to_json(),
        "target_scaling": None if prepared.targets is None else prepared.targets.to_json(),
    }
