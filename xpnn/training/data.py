"""What comes in at the entry of fit, evaluate and predict: checked and moved once, as whole arrays."""

from __future__ import annotations

from typing import Any

from xpnn import dispatch
from xpnn.backend import Backend, host
from xpnn.dispatch import Array
from xpnn.errors import DataError, DeviceError


def enter(name: str, value: Any, backend: Backend, dtype: str) -> Array:
    """`value` (a host array, a list, a data frame, or an array of the backend) as an array on the backend's device.

    Args:
        name: what the argument is called in errors, "X" or "y".
        value: the data.
        backend: the network's backend.
        dtype: what host floats are rounded to before they travel; host integers and bools travel as int64.

    Raises:
        DeviceError: it is an array of another library, or lies on another device.
        DataError: it is not numeric, or not rectangular.
    """
    owner = dispatch.backend_of(value)
    if owner == backend.name:
        if not backend.one_device and backend.device is not None and dispatch.device(value) != backend.device:
            raise DeviceError(
                f"{name} lies on {owner} ({dispatch.device(value)}), the network on {backend.spec} ({backend.device}); "
                f"move one of them: net.to(...), or copy {name} to that device"
            )
        return value
    if owner not in (None, "numpy"):
        raise DeviceError(
            f"{name} is an array of {owner}, the network runs on {backend.spec}; "
            f'move the network, net.to("{owner}"), or give {name} as a NumPy array'
        )
    array = on_host(name, value)
    return backend.asarray(array, dtype if array.dtype.kind == "f" else "int64")


def on_host(name: str, value: Any) -> Array:
    """`value` as a numeric host array. Raises DataError if it is none."""
    xp = host().xp
    try:
        array = xp.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name} is no rectangular array of numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} has dtype {array.dtype}, wants numbers; encode text and dates as numbers first")
    if array.ndim == 0:
        raise DataError(f"{name} is a single number; give an array with one entry for each sample")
    return array


def as_inputs(x: Array, kind: str, backend: Backend, dtype: str) -> Array:
    """Inputs in the dtype that the first layer wants: the network's own, or int64 for indices."""
    xp = backend.xp
    if kind == "index":
        if not xp.isdtype(x.dtype, "integral"):
            raise DataError(f"the first layer looks its input up in a table: X must hold integers, got {x.dtype}")
        return xp.astype(x, backend.dtype("int64"))
    wanted = backend.dtype(dtype)
    return x if x.dtype == wanted else xp.astype(x, wanted)
