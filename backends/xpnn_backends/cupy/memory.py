"""The memory of a GPU: how much there is, how much of it data may take, and what happens where it runs out.

CuPy frees its own unused blocks before it gives an allocation up. What it does not know is memory that is held for
speed alone, such as captured graphs with their pools: their owners register with `on_pressure`.
"""

from __future__ import annotations

import gc
import math
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import cupy

from xpnn.backend import Memory
from xpnn.errors import ConfigError, OutOfMemoryError

DATA_SHARE = 0.5
"""The share of the free memory that a data set may take; a larger one stays on the host and travels in batches.

The other half is for what the training computes: activations, gradients, graphs."""

VARIABLE = "XPNN_DATA_SHARE"
"""The environment variable that sets another share, from 0 (all data travel in batches) to 1."""

_SMALL = 16 << 20
"""Data of up to so many bytes are moved without asking how much is free, which takes longer than to move them."""

_ALLOCATION_FAILED = 2
"""cudaErrorMemoryAllocation"""

Result = TypeVar("Result")

_registering = threading.RLock()
_callbacks: list[Callable[[], Callable[[], Any] | None]] = []
_last_callbacks: list[Callable[[], Callable[[], Any] | None]] = []
_providers: list[Callable[[], Callable[[], Iterable[Any]] | None]] = []


def read() -> Memory:
    """The memory of the current device."""
    free, total = cupy.cuda.runtime.memGetInfo()
    pools = [cupy.get_default_memory_pool()]
    for provider in _alive(_providers):
        pools.extend(provider())
    return Memory(free, total, sum(pool.total_bytes() for pool in pools), sum(pool.used_bytes() for pool in pools))


def data_share() -> float:
    """The share of the free memory that a data set may take. Raises ConfigError if the variable holds no such share."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return DATA_SHARE
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0.0 <= share <= 1.0:
        raise ConfigError(
            f"the variable {VARIABLE} is {text!r}; give the share of the GPU's free memory that a data set may take, a "
            f"number from 0 (all data travel in batches) to 1, or leave it out for {DATA_SHARE}"
        )
    return share


def keeps(byte_count: int) -> bool:
    """True if a data set of that many bytes may lie on the current device as a whole."""
    if VARIABLE not in os.environ and byte_count <= _SMALL:
        return True
    share = data_share()
    return byte_count <= share * available() if share else byte_count == 0


def available() -> int:
    """How many bytes new arrays can have on the current device, if they are not cut in pieces."""
    pool = cupy.get_default_memory_pool()
    free = int(cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())
    limit = int(pool.get_limit())
    return min(free, max(limit - int(pool.used_bytes()), 0)) if limit else free


def on_pressure(callback: Callable[[], Any], last: bool = False) -> None:
    """Have `callback()` called where memory has run out: it lets go of what is held for speed alone.

    Any thread may call it. A method does not keep its object alive.

    Args:
        callback: what to call.
        last: call it when all others have let go, and garbage is collected.
    """
    _register(_last_callbacks if last else _callbacks, callback)


def report_pools(provider: Callable[[], Iterable[Any]]) -> None:
    """Have the pools that `provider()` gives, beside CuPy's default one, counted by `read`.

    A method does not keep its object alive.
    """
    _register(_providers, provider)


def free_caches() -> None:
    """Give back what nothing needs at the moment: to the device what CuPy's pool holds, to the host what is pinned."""
    for callback in _alive(_callbacks):
        callback()
    gc.collect()
    for callback in _alive(_last_callbacks):
        callback()
    _free_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()


def guarded(
    call: Callable[[], Result], *, samples: int | None = None, may_retry: bool | Callable[[], bool] = True
) -> Result:
    """`call()`, and again after all caches were freed if the device had no memory left for it.

    Args:
        call: computes on the current device.
        samples: how many samples it computes with; the error then says how many would fit.
        may_retry: False, or a function that gives False after the failure, where a second call would not do what the
            first one should have done: it has overwritten its arguments.

    Raises:
        OutOfMemoryError: the memory does not suffice; it is said for what, how much there is, and what would fit.
    """
    try:
        return call()
    except Exception as error:
        failure = _of_the_library(error)
        # In a capture nothing can be freed: whoever captures gives it up, and calls again.
        if failure is None or cupy.cuda.get_current_stream().is_capturing():
            raise
        shortage = _look_at(error)
    free_caches()
    if may_retry() if callable(may_retry) else may_retry:
        try:
            return call()
        except Exception as error:
            failure = _of_the_library(error)
            if failure is None:
                raise
            shortage = _look_at(error)
        free_caches()
    raise OutOfMemoryError(_message(shortage, samples)) from failure


class _Donations(threading.local):
    count = 0


_donations = _Donations()


def note_donation() -> None:
    """Say that an array that was given to this thread's computation is about to be overwritten."""
    _donations.count += 1


def nothing_donated_since() -> Callable[[], bool]:
    """A function that says whether no array has been overwritten since now: `guarded` may then call again."""
    before = _donations.count
    return lambda: _donations.count == before


class Guard:
    """A block in which a device is current, and in which CuPy's error for want of memory becomes xpnn's."""

    __slots__ = ("_device",)

    def __init__(self, device: int) -> None:
        # A Device object counts its own entries: a fresh one for each block can be used by any thread.
        self._device = cupy.cuda.Device(device)

    def __enter__(self) -> Guard:
        self._device.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is not None and is_out_of_memory(error):
                raise OutOfMemoryError(_message(_Shortage(_asked(error), None), None)) from error
        finally:
            self._device.__exit__(kind, error, trace)


def is_out_of_memory(error: BaseException | None) -> bool:
    """True for an error that says that the device has no memory left."""
    if isinstance(error, cupy.cuda.runtime.CUDARuntimeError):
        return bool(error.status == _ALLOCATION_FAILED)  # of a graph, a stream or a library's handle
    return isinstance(error, cupy.cuda.memory.OutOfMemoryError)


def _of_the_library(error: BaseException) -> BaseException | None:
    """The library's error if this one says that the device has no memory left, in its words or in ours; else None."""
    found = error.__cause__ if isinstance(error, OutOfMemoryError) else error
    return found if is_out_of_memory(found) else None


def _asked(error: BaseException) -> int | None:
    return getattr(error, "_size", None)


class _Shortage(NamedTuple):
    """What was seen where memory ran out.

    Attributes:
        asked: the bytes of the allocation that failed; None if that is unknown.
        taken: what the failed call held by then; None if that is unknown.
    """

    asked: int | None
    taken: int | None


def _look_at(error: BaseException) -> _Shortage:
    """Measure what the failed call held, and free it."""
    before = available()
    # The arrays of the failed call live on in the frames that its errors remember.
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__
    _free_blocks()
    raised = _of_the_library(error) or error
    # What no frame held was freed on the way up: CuPy says how much its pool had where it failed.
    had = getattr(raised, "_total", 0) - cupy.get_default_memory_pool().total_bytes()
    return _Shortage(_asked(raised), max(available() - before, had, 0))


def _free_blocks() -> None:
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()


def _message(shortage: _Shortage, samples: int | None) -> str:
    device = f"cupy:{cupy.cuda.runtime.getDevice()}"
    found = read()
    asked = "more memory was" if shortage.asked is None else f"{in_units(shortage.asked)} were"
    held = f" on top of {in_units(shortage.taken)} that the call had already" if shortage.taken else ""
    limit = int(cupy.get_default_memory_pool().get_limit())
    limited = f" (CuPy's pool is limited to {in_units(limit)})" if limit else ""
    return (
        f"the memory of {device} does not suffice: {asked} asked for{held}; {in_units(found.free)} of "
        f"{in_units(found.total)} are free{limited}, and arrays of this process hold {in_units(found.live)}. "
        f"{_advice(shortage, samples)}"
    )


def _advice(shortage: _Shortage, samples: int | None) -> str:
    """What would fit. The failed call may have wanted more than it came to ask for: the number is an upper bound."""
    if not samples or shortage.asked is None or shortage.taken is None:
        return "Take a smaller batch_size, free arrays of your own, or see in `nvidia-smi` who else uses the GPU"
    each = (shortage.taken + shortage.asked) / samples
    fitting = min(int(available() / each), samples - 1)
    if fitting < 1:
        return (
            "Not even one sample would fit: take a smaller network, free arrays of your own, or see in `nvidia-smi` "
            "who else uses the GPU"
        )
    return (
        f"At {in_units(each)} or more for each of {samples} samples, a batch_size of at most about {fitting} would fit"
    )


def in_units(count: float) -> str:
    """A number of bytes for people: "1.50 GiB"."""
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.2f} {unit}"
    return f"{count / 1024:.2f} TiB"


def _weak(function: Any) -> Callable[[], Any]:
    """A call that gives the function, or None once the object of a method is gone."""
    if hasattr(function, "__self__") and hasattr(function, "__func__"):
        return weakref.WeakMethod(function)
    return lambda: function


def _register(references: list[Callable[[], Any]], function: Any) -> None:
    with _registering:
        _alive(references)
        references.append(_weak(function))


def _alive(references: list[Callable[[], Any]]) -> list[Any]:
    """The functions that are still there; the others are forgotten."""
    with _registering:
        found = [(reference, reference()) for reference in references]
        references[:] = [reference for reference, function in found if function is not None]
    return [function for _, function in found if function is not None]
