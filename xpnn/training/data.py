"""What comes in at the entry of fit, evaluate and predict: checked as a whole, and moved once.

A data set of the host that is too large for the device (`Backend.keeps`) is checked as a whole too, and stays where it
is: its rows travel batch by batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from typing import Any, NamedTuple

from xpnn import dispatch, random
from xpnn.backend import Backend, host
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, DataError, DeviceError, ShapeError, XpnnError
from xpnn.layers.kinds import of_each

_LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}


class Data(NamedTuple):
    """A data set on the device: inputs, targets as the loss wants them, and sample weights or None.

    The inputs are an array, or a tuple of arrays where the network takes several.
    """

    inputs: Any
    target: Array
    weight: Array | None

    @property
    def samples(self) -> int:
        """How many rows it has."""
        return int(self.target.shape[0])


class HostData(NamedTuple):
    """A checked data set that stays on the host, where the targets are as the loss wants them already.

    Attributes:
        backend: where its batches go.
        inputs: as in `Data`, and of whatever dtype they came in: a batch is converted when it travels.
        target: as in `Data`; None where only predictions are wanted.
        weight: as in `Data`.
        dtypes: what each array is on the device: of the inputs, then of the target, then of the weight.
        rows: the numbers of the rows that belong to it, in their order; None for all.
    """

    backend: Backend
    inputs: Any
    target: Array | None
    weight: Array | None
    dtypes: tuple[str, ...]
    rows: Array | None = None

    @property
    def samples(self) -> int:
        """How many rows it has."""
        return int(self._arrays()[0].shape[0] if self.rows is None else self.rows.shape[0])

    @property
    def bytes_on_device(self) -> int:
        """How much of the device all of it would take."""
        itemsize = host().xp.dtype
        return sum(
            array.size * int(itemsize(dtype).itemsize) for array, dtype in zip(self._arrays(), self.dtypes, strict=True)
        )

    def moved(self) -> Data:
        """All of it on the device."""
        asarray = self.backend.asarray
        return Data(
            *self._joined([asarray(array, dtype) for array, dtype in zip(self._arrays(), self.dtypes, strict=True)])
        )

    def batches(self, size: int, order: Array | None = None) -> Generator[tuple[Any, Any, Any]]:
        """(inputs, target, weight) on the device, `size` rows at a time; close it if you leave it before its end.

        Args:
            size: rows in a batch; the last one may have fewer.
            order: a permutation of the numbers of the samples, on the host; None takes them as they stand.
        """
        rows = self.rows
        if order is not None:
            rows = order if rows is None else host().xp.take(rows, order)
        with contextlib.closing(self.backend.batches(self._arrays(), self.dtypes, size, rows)) as moving:
            for arrays in moving:
                yield self._joined(arrays)

    def _arrays(self) -> list[Array]:
        inputs = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        return [*inputs, *(part for part in (self.target, self.weight) if part is not None)]

    def _joined(self, arrays: Any) -> tuple[Any, Any, Any]:
        """(inputs, target, weight) from arrays in the order of `_arrays`."""
        count = len(self.inputs) if isinstance(self.inputs, tuple) else 1
        inputs = tuple(arrays[:count]) if isinstance(self.inputs, tuple) else arrays[0]
        rest = iter(arrays[count:])
        return inputs, None if self.target is None else next(rest), None if self.weight is None else next(rest)


def enter(name: str, value: Any, backend: Backend, dtype: str, integers: str = "int64", stays: bool = False) -> Array:
    """`value` (a host array, a list, a data frame, or an array of the backend) as an array on the backend's device.

    Args:
        name: what the argument is called in errors, "X" or "y".
        value: the data.
        backend: the network's backend.
        dtype: what host floats are rounded to before they travel.
        integers: what host integers and bools are turned into before they travel.
        stays: True leaves data of the host there, checked, in the dtype that they came in.

    Raises:
        DeviceError: it is an array of another library, or lies on another device.
        DataError: it is not numeric, not rectangular, or holds NaN or infinite values.
    """
    owner = dispatch.backend_of(value)
    if owner == backend.name and owner != "numpy":
        if not backend.one_device and backend.device is not None and dispatch.device(value) != backend.device:
            raise DeviceError(
                f"{name} lies on {owner}:{backend.device_label(dispatch.device(value))}, the network on "
                f"{owner}:{backend.device_label(backend.device)}; move one of them: net.to(...), or copy {name} to "
                "that device"
            )
        if value.ndim == 0:
            raise DataError(f"{name} is a single number; give an array with one entry for each sample")
        xp = backend.xp
        if xp.isdtype(value.dtype, "complex floating"):
            raise DataError(f"{name} has dtype {value.dtype}, wants real numbers")
        if xp.isdtype(value.dtype, "real floating") and value.dtype not in (xp.float32, xp.float64):
            with backend.context():
                value = xp.astype(value, backend.dtype(dtype))  # half precision
        check_finite(name, value, backend, dtype)
        return value
    if owner not in (None, "numpy"):
        raise DeviceError(
            f"{name} is an array of {owner}, the network runs on {backend.spec}; "
            f'move the network, net.to("{owner}"), or give {name} as a NumPy array'
        )
    array = on_host(name, value)
    check_finite(name, array, host(), dtype)
    wanted = dtype if array.dtype.kind == "f" else integers
    if array.dtype.kind in "iu" and wanted == "int64":
        check_integers(name, array, backend)
    return array if stays else backend.asarray(array, wanted)


def on_host(name: str, value: Any) -> Array:
    """`value` as a numeric host array. Raises DataError if it is none."""
    array = numbers_on_host(name, value)
    if array.ndim == 0:
        raise DataError(f"{name} is a single number; give an array with one entry for each sample")
    return array


def numbers_on_host(name: str, value: Any) -> Array:
    """`value` as a host array of numbers, of any shape. Raises DataError if it is none."""
    xp = host().xp
    try:
        if type(value) is not xp.ndarray and xp.ma.is_masked(value):
            raise DataError(f"{name} has masked entries, which hold no numbers; fill them in, or leave their rows out")
        array = xp.asarray(value)
        if array.dtype.kind == "O":
            # A data frame with columns of several kinds of numbers comes as objects: they are looked at one by one.
            array = xp.asarray(array.tolist())
    except (ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} is no rectangular array of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} has dtype {array.dtype}, wants numbers; encode text and dates as numbers first")
    return array


def check_finite(name: str, array: Array, backend: Backend, dtype: str) -> None:
    """Raise DataError if floats in the array (of `backend`) are NaN or too large for `dtype`, naming the first row."""
    xp = backend.xp
    if not xp.isdtype(array.dtype, "real floating") or 0 in array.shape:
        return
    limit = _LARGEST[dtype]
    with backend.context():
        # The sum is finite only if all of them are; it takes one pass.
        if array.dtype == backend.dtype(dtype) and math.isfinite(backend.total(array)):
            return
        # Comparisons with NaN are false, and the extremes of data with a NaN in it are NaN.
        extremes = backend.to_host(xp.stack([xp.min(array), xp.max(array)]))
        if -limit <= float(extremes[0]) and float(extremes[1]) <= limit:
            return
        fits = xp.reshape(xp.abs(array) <= limit, (array.shape[0], -1))
        fits_on_host = backend.to_host(xp.all(fits, axis=1))
    bad_rows = [row for row, fit in enumerate(fits_on_host.tolist()) if not fit]
    raise DataError(
        f"{name} has NaN, infinite or too large values for {dtype} in {len(bad_rows)} of {array.shape[0]} rows, first "
        f"in row {bad_rows[0]}; remove these rows or fill the values in"
    )


def check_integers(name: str, array: Array, backend: Backend) -> None:
    """Raise DataError if a host array holds integers that are too large for the backend's: they would wrap around."""
    if 0 in array.shape:
        return
    limits = backend.xp.iinfo(backend.dtype("int64"))  # of 32 bits on some backends
    for extreme in (int(array.min()), int(array.max())):
        if not int(limits.min) <= extreme <= int(limits.max):
            raise DataError(
                f"{name} holds the integer {extreme}, and the largest of backend {backend.spec!r} is {limits.max}; "
                "number classes from 0, or give measured numbers as floats"
            )


def enter_inputs(network: Any, x: Any, name: str = "X", stays: bool = False) -> tuple[Any, bool]:
    """x on the network's device in the right dtype, its shape checked, and whether it came from this backend.

    Several inputs, of a network that takes them, are a tuple of arrays and stay one. A network takes several if its
    first layer says so (`Layer.input_kind` is a tuple, as for `Each`), or if the shape of its input is a tuple of
    shapes. For all others, a tuple is what a list is: the rows of one array.

    With `stays`, x is of the host and stays there, checked, in the dtype that it came in.

    Raises:
        DataError: an input cannot be used, or several are not of one length; names the one that is wrong.
        ShapeError: the samples do not fit the network.
        DeviceError: an input lies elsewhere.
    """
    backend, kind, shape = network.backend, network.root.input_kind, network.input_shape
    ready = kind != "index" and backend.is_ready(x, network.dtype)
    if ready and x.ndim and x.shape[1:] == shape and math.isfinite(backend.total(x)):
        return x, True  # nothing is left to check or to convert
    if isinstance(kind, tuple) or (shape and isinstance(shape[0], tuple)):
        return _enter_several(network, x, name, stays)
    place = host() if stays else backend
    try:
        array = enter(name, x, backend, network.dtype, _dtype_of(kind, network), stays)
        if shape is None:
            network.build(tuple(array.shape[1:]))
        array = _of_shape(name, array, network.input_shape, place)
    except XpnnError as error:
        note_on_tuple(error, network, x, name)
        raise
    return _as_input(name, array, kind, network.root.index_limit, place, network.dtype, stays), backend.owns(x)


def _dtype_of(kind: str, network: Any) -> str:
    """What the values of an input are on the device, by the kind that the first layer gives it."""
    return "int64" if kind == "index" else str(network.dtype)


def _enter_several(network: Any, x: Any, name: str, stays: bool) -> tuple[tuple[Array, ...], bool]:
    """`enter_inputs` for a network that takes several."""
    backend, kind, shape, dtype = network.backend, network.root.input_kind, network.input_shape, network.dtype
    count = len(kind) if shape is None else len(shape)
    if not isinstance(x, tuple):
        raise DataError(
            f"the network takes {count} inputs, and {name} is of type {type(x).__name__}; give a tuple of {count} "
            "arrays, one for each input"
        )
    if len(x) != count:
        raise DataError(f"the network takes {count} inputs, and {name} is a tuple of {len(x)}; give one array for each")
    kinds = of_each(kind, count)
    names = [f"{name}[{number}]" for number in range(count)]
    place = host() if stays else backend
    arrays = [
        enter(name, part, backend, dtype, _dtype_of(kind, network), stays)
        for name, part, kind in zip(names, x, kinds, strict=True)
    ]
    for other, array in zip(names, arrays, strict=True):
        if array.shape[0] != arrays[0].shape[0]:
            raise DataError(
                f"{names[0]} has {arrays[0].shape[0]} samples and {other} has {array.shape[0]}; row by row, the inputs "
                "belong together"
            )
    if shape is None:
        network.build(tuple(tuple(array.shape[1:]) for array in arrays))
    limits = of_each(network.root.index_limit, count)
    inputs = tuple(
        _as_input(name, _of_shape(name, array, wanted, place), kind, limit, place, dtype, stays)
        for name, array, wanted, kind, limit in zip(names, arrays, network.input_shape, kinds, limits, strict=True)
    )
    return inputs, all(backend.owns(part) for part in x)


def note_on_tuple(error: XpnnError, network: Any, x: Any, name: str) -> None:
    """Where a tuple of arrays was taken for the rows of one array, and failed, add what to do about it."""
    arrays = isinstance(x, tuple) and len(x) > 0 and all(getattr(part, "ndim", 0) > 0 for part in x)
    shape = network.input_shape
    if arrays and not isinstance(network.root.input_kind, tuple) and not (shape and isinstance(shape[0], tuple)):
        error.add_note(
            f"{name} is a tuple of arrays, which this network takes for the rows of one array; to give it several "
            "inputs, begin it with xpnn.Each(...), or say input_shape=((...), (...)), one shape for each"
        )


def _of_shape(name: str, array: Array, shape: tuple[int, ...], backend: Backend) -> Array:
    """An array whose samples have that shape. Raises ShapeError if they have another one."""
    if tuple(array.shape[1:]) == shape:
        return array
    if tuple(array.shape) == (0,):  # an empty list
        return backend.xp.reshape(array, (0, *shape))
    raise ShapeError(
        f"{name} has shape {tuple(array.shape)}: samples of shape {tuple(array.shape[1:])}; the network was built for "
        f"samples of shape {shape}"
    )


def _as_input(
    name: str, x: Array, kind: str, limit: int | None, backend: Backend, dtype: str, stays: bool = False
) -> Array:
    """An input in the dtype that the first layer wants: the network's own, or int64 for indices below `limit`.

    With `stays`, it is checked alone, and converted when it travels.
    """
    xp = backend.xp
    with backend.context():
        if kind != "index":
            wanted = backend.dtype(dtype)
            return x if stays or x.dtype == wanted else xp.astype(x, wanted)
        if not xp.isdtype(x.dtype, ("integral", "bool") if stays else "integral"):
            raise DataError(f"the first layer looks its input up in a table: {name} must hold integers, got {x.dtype}")
        indices = x if stays else xp.astype(x, backend.dtype("int64"))
    if limit is not None:
        _check_indices(name, indices, limit, backend)
    return indices


def _check_indices(name: str, x: Array, limit: int, backend: Backend) -> None:
    """Raise DataError if an integer input lies outside 0 to limit - 1: some devices would read another row silently."""
    if 0 in x.shape:
        return
    xp = backend.xp
    with backend.context():
        lowest, highest = backend.to_host(xp.stack([xp.min(x), xp.max(x)])).tolist()
    if lowest < 0 or highest >= limit:
        raise DataError(
            f"{name} holds the index {lowest if lowest < 0 else highest}; the first layer's table has the entries 0 to "
            f"{limit - 1}. Give Embedding more entries, or other data"
        )


def enter_weights(value: Any, samples: int, backend: Backend, dtype: str) -> Array | None:
    """Sample weights on the device, checked: (samples,), none negative, not all zero."""
    if value is None:
        return None
    weight = enter("sample_weight", value, backend, dtype, integers=dtype)
    if tuple(weight.shape) != (samples,):
        raise DataError(
            f"sample_weight has shape {tuple(weight.shape)}, wants one number for each of the {samples} samples: "
            f"({samples},)"
        )
    xp = backend.xp
    with backend.context():
        weight = xp.astype(weight, backend.dtype(dtype))
        lowest, highest = backend.to_host(xp.stack([xp.min(weight), xp.max(weight)])).tolist()
    if lowest < 0:
        raise DataError(f"sample_weight has the negative value {lowest}; weights say how much a sample counts")
    if highest == 0:
        raise DataError("sample_weight is 0 for every sample: nothing is left to learn from")
    return weight


def _on_host_alone(x: Any, *others: Any) -> bool:
    """True if nothing is an array of a device: what the host holds may stay there."""
    parts = (*(x if isinstance(x, tuple) else (x,)), *others)
    return all(dispatch.backend_of(part) in (None, "numpy") for part in parts)


def _host_data(network: Any, inputs: Any, target: Array | None = None, weight: Array | None = None) -> HostData:
    """Checked arrays of the host, with what they shall be on the device."""
    several = isinstance(inputs, tuple)
    kinds = of_each(network.root.input_kind, len(inputs)) if several else (network.root.input_kind,)
    dtypes = [_dtype_of(kind, network) for kind in kinds]
    # The loss has given the targets their dtype; the weights have that of the network.
    dtypes += [str(part.dtype) for part in (target, weight) if part is not None]
    return HostData(network.backend, inputs, target, weight, tuple(dtypes))


def count_samples(inputs: Any) -> int:
    """How many samples the inputs hold: an array, a tuple of arrays, or a `HostData`."""
    if isinstance(inputs, HostData):
        return inputs.samples
    return int(inputs[0].shape[0] if isinstance(inputs, tuple) else inputs.shape[0])


def enter_samples(network: Any, x: Any) -> tuple[Any, bool]:
    """`enter_inputs` for predictions; where x is too large for the device, a `HostData` stands for the inputs."""
    backend = network.backend
    if not backend.streams or not _on_host_alone(x):
        return enter_inputs(network, x)
    data = _host_data(network, enter_inputs(network, x, stays=True)[0])
    return data.moved().inputs if backend.keeps(data.bytes_on_device) else data, False


def enter_data(
    network: Any, x: Any, y: Any, loss: Any, sample_weight: Any = None, names: tuple[str, str] = ("X", "y")
) -> Data:
    """A data set for a loss: checked, moved to the network's device, the targets prepared.

    Args:
        network: decides dtype and device; built for the shape of x if it does not know it yet.
        x: (samples, ...).
        y: (samples, ...).
        loss: says how targets must look.
        sample_weight: (samples,) or None.
        names: what x and y are called in errors.

    Raises:
        DataError: the data cannot be used; the message says why.
        ShapeError: the samples of x do not fit the network.
        DeviceError: the data lie elsewhere.
        OutOfMemoryError: the device does not hold them.
    """
    data = enter_large_data(network, x, y, loss, sample_weight, names)
    return data.moved() if isinstance(data, HostData) else data


def enter_large_data(
    network: Any,
    x: Any,
    y: Any,
    loss: Any,
    sample_weight: Any = None,
    names: tuple[str, str] = ("X", "y"),
) -> Data | HostData:
    """`enter_data`, but what the host holds stays there if it is too large for the device.

    Data of which one part lies on the device already move there as a whole.
    """
    backend, shape_was_known = network.backend, network.input_shape is not None
    try:
        if not backend.streams or not _on_host_alone(x, y, sample_weight):
            return _checked_data(network, x, y, loss, sample_weight, names)
        data = _host_data(network, *_checked_data(network, x, y, loss, sample_weight, names, stays=True))
        return data.moved() if backend.keeps(data.bytes_on_device) else data
    except XpnnError:
        if not shape_was_known:
            network._forget_input_shape()  # the data that come next may have another shape
        raise


def _checked_data(
    network: Any, x: Any, y: Any, loss: Any, sample_weight: Any, names: tuple[str, str], stays: bool = False
) -> Data:
    """The data, all checks made: on the device, or with `stays` on the host."""
    backend = host() if stays else network.backend
    inputs, _ = enter_inputs(network, x, names[0], stays)
    first = inputs[0] if isinstance(inputs, tuple) else inputs
    samples = int(first.shape[0])
    if samples == 0:
        raise DataError(f"{names[0]} has no samples: its shape is {tuple(first.shape)}")
    targets = enter(names[1], y, backend, network.dtype)
    if targets.shape[0] != samples:
        error = DataError(
            f"{names[0]} has {samples} samples and {names[1]} has {targets.shape[0]}; each sample needs its target"
        )
        note_on_tuple(error, network, x, names[0])
        raise error
    with backend.context():
        target = loss.prepare(targets, network.output_shape, backend, network.dtype)
    return Data(inputs, target, enter_weights(sample_weight, samples, backend, network.dtype))


def rows_of(inputs: Any, start: int, stop: int) -> Any:
    """The rows from start to stop of an array, or of each in a tuple."""
    if isinstance(inputs, tuple):
        return tuple(part[start:stop, ...] for part in inputs)
    return inputs[start:stop, ...]


def split(data: Any, fraction: float, seed: int, backend: Backend) -> tuple[Any, Any]:
    """(training, validation): a seeded random share of the rows is held out; the same on every backend.

    Both are of the kind of `data`, which is Data or HostData.

    Raises ConfigError if the fraction leaves one of them empty.
    """
    held_out = round(data.samples * fraction)
    if not 0 < held_out < data.samples:
        raise ConfigError(
            f"validation_split={fraction!r} of {data.samples} samples leaves {held_out} for validation and "
            f"{data.samples - held_out} for training; both need some"
        )
    order = random.permutation(seed, random.stream(random.SPLIT), 0, data.samples)
    xp = backend.xp
    if isinstance(data, HostData):
        sort = host().xp.sort
        return data._replace(rows=sort(order[held_out:])), data._replace(rows=sort(order[:held_out]))

    def pick(rows: Array) -> Data:
        # Rows stay in their order, so that an unshuffled training sees them as they came.
        chosen = backend.asarray(host().xp.sort(rows), "int64")

        def take(part: Any) -> Any:
            if isinstance(part, tuple):
                return tuple(map(take, part))
            return None if part is None else xp.take(part, chosen, axis=0)

        return Data(*map(take, data))

    with backend.context():
        return pick(order[held_out:]), pick(order[:held_out])


def check_batch_size(batch_size: Any) -> int | None:
    """A positive int, or None for all samples at once. Raises ConfigError for anything else."""
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size.__index__() < 1:
        raise ConfigError(f"batch_size={batch_size!r}: give a positive integer, or None for all samples at once")
    return int(batch_size.__index__())


def check_epochs(epochs: Any) -> int:
    """A number of epochs. Raises ConfigError if it is no integer from 0 on."""
    if isinstance(epochs, bool) or not hasattr(epochs, "__index__") or epochs.__index__() < 0:
        raise ConfigError(f"epochs={epochs!r}: give the number of passes over the data, 0 or more")
    return int(epochs.__index__())


def check_fraction(fraction: Any) -> float:
    """A validation split in [0, 1). Raises ConfigError for anything else."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction < 1:
        raise ConfigError(f"validation_split={fraction!r}: give a share of the samples, from 0 up to (not including) 1")
    return float(fraction)
