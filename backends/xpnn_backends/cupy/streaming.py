"""Data of the host on their way to the GPU: whole arrays in pieces, and batches through a ring.

The ring has a few places, each with pinned memory on the host and as much memory on the device. A thread fills them in
turn (with helpers, where the batches are large), while the device computes with another one:

    thread:  gather the rows into pinned memory  ->  copy stream: wait until the device has used the place, copy
    caller:  its stream waits for that copy      ->  compute      ->  record that the place was used

Events order the streams, so that the caller's thread never waits for the device: it only waits for the thread, if the
rows cannot be gathered as fast as they are used. All threads end with the last batch, or when the generator is closed.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import cupy
import cupyx
import numpy as np

DEPTH = 3
"""Places in the ring: one that is computed with, one whose copy is under way, and one that is being filled."""

_SHARED_BYTES = 1 << 20
"""A batch of so many bytes is gathered by several threads: one alone is slower than the bus to the device."""

_GATHERERS = 4
"""So many, if there are twice as many processors."""

_ALIGNMENT = 256
"""Each array of a batch begins at a multiple of so many bytes."""

_PIECE = 32 << 20
"""Bytes of a piece of a whole array that is moved."""


def upload(array: np.ndarray, dtype: Any) -> Any:
    """A host array as an array of the current device, in C order.

    CuPy would pin as much memory as a large array has, and convert all of it first; here it goes piece by piece through
    two pieces of pinned memory.
    """
    if array.size * np.dtype(dtype).itemsize <= _PIECE:
        return cupy.asarray(array, dtype=dtype, order="C")
    result = cupy.empty(array.shape, dtype)
    row_bytes = result.nbytes // array.shape[0]
    rows = max(_PIECE // row_bytes, 1)
    stream = cupy.cuda.get_current_stream()
    pinned = [cupyx.empty_pinned((rows, *array.shape[1:]), result.dtype) for _ in range(2)]
    copied = [cupy.cuda.Event(disable_timing=True) for _ in pinned]
    try:
        for number, start in enumerate(range(0, array.shape[0], rows)):
            buffer, event = pinned[number % 2], copied[number % 2]
            count = min(rows, array.shape[0] - start)
            event.synchronize()
            np.copyto(buffer[:count], array[start : start + count], casting="unsafe")
            target = result[start : start + count]
            target.data.copy_from_host_async(buffer.ctypes.data, count * row_bytes, stream)
            event.record(stream)
    finally:
        # Pinned memory that is given back may be used again at once.
        for event in copied:
            event.synchronize()
    return result


def batches(
    context: Callable[[], AbstractContextManager[Any]],
    arrays: Sequence[np.ndarray],
    dtypes: Sequence[str],
    size: int,
    order: np.ndarray | None = None,
) -> Generator[tuple[Any, ...]]:
    """Rows of host arrays on a device, `size` at a time; see `xpnn.backend.Backend.batches`.

    What reads a batch must run on the stream that is current where the next one is asked for, or that stream must wait
    for it.

    Args:
        context: a block in which the device is current.
        arrays: of the host, all of one length.
        dtypes: what each is converted to.
        size: rows in a batch.
        order: the numbers of the rows to go through; None takes all rows as they stand.
    """
    count = arrays[0].shape[0] if order is None else order.shape[0]
    if count == 0:
        return
    with context():
        ring = _Ring(arrays, dtypes, min(size, count), order, count)
    try:
        while True:
            place = ring.full.get()
            if place is None:
                return
            if isinstance(place, BaseException):
                raise place
            with context():
                cupy.cuda.get_current_stream().wait_event(place.copied)
            yield place.batch
            with context():
                place.used.record(cupy.cuda.get_current_stream())
            ring.empty.put(place)
    finally:
        ring.stop()


class _Place:
    """One place of the ring.

    Attributes:
        copied: the event after the copy to the device.
        used: the event after the last work that reads what was copied.
        batch: the arrays on the device that were filled last.
    """

    def __init__(self, shapes: list[tuple[int, ...]], dtypes: list[np.dtype], device: Any) -> None:
        self._shapes, self._dtypes = shapes, dtypes
        self._pinned = cupyx.empty_pinned(device.shape, np.uint8)
        self._device = device
        self._views: dict[int, tuple[list[np.ndarray], tuple[Any, ...], int]] = {}
        self.copied = cupy.cuda.Event(block=True, disable_timing=True)  # who waits for it does not take a processor
        self.used = cupy.cuda.Event(disable_timing=True)
        # The device's memory may have been freed while work that reads it was still to come.
        self.used.record(cupy.cuda.get_current_stream())
        self.batch: tuple[Any, ...] = ()

    def views(self, rows: int) -> tuple[list[np.ndarray], tuple[Any, ...], int]:
        """(arrays in pinned memory, the same on the device, bytes to copy) for a batch of so many rows."""
        found = self._views.get(rows)
        if found is None:
            offsets, byte_count = _offsets(self._shapes, self._dtypes, rows)
            on_host, on_device = [], []
            for shape, dtype, offset in zip(self._shapes, self._dtypes, offsets, strict=True):
                full = (rows, *shape)
                on_host.append(np.ndarray(full, dtype, self._pinned, offset))
                on_device.append(cupy.ndarray(full, dtype, self._device.data + offset))
            found = self._views[rows] = on_host, tuple(on_device), byte_count
        return found

    def send(self, rows: int, stream: Any) -> None:
        """Copy what was gathered to the device, once its last use is over."""
        _, self.batch, byte_count = self.views(rows)
        stream.wait_event(self.used)
        if byte_count:
            self._device.data.copy_from_host_async(self._pinned.ctypes.data, byte_count, stream)
        self.copied.record(stream)


def _offsets(shapes: list[tuple[int, ...]], dtypes: list[np.dtype], rows: int) -> tuple[list[int], int]:
    """Where the arrays of a batch of so many rows begin, and how many bytes they are."""
    offsets, position = [], 0
    for shape, dtype in zip(shapes, dtypes, strict=True):
        offsets.append(position)
        byte_count = rows * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        position += -(-byte_count // _ALIGNMENT) * _ALIGNMENT
    return offsets, position


class _Ring:
    """The places, and the thread that fills them.

    Attributes:
        full: places that are filled, in the order of the batches; then None, or the error that ended the thread.
        empty: places that can be filled again; None ends the thread.
    """

    def __init__(
        self, arrays: Sequence[np.ndarray], dtypes: Sequence[str], size: int, order: np.ndarray | None, count: int
    ) -> None:
        self._arrays, self._order, self._size, self._count = list(arrays), order, size, count
        self._helpers: ThreadPoolExecutor | None = None
        self._device = cupy.cuda.runtime.getDevice()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._stopping = False
        self.full: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.empty: queue.SimpleQueue[Any] = queue.SimpleQueue()
        shapes, kinds = [array.shape[1:] for array in arrays], [np.dtype(dtype) for dtype in dtypes]
        # One piece of memory for all places: a graph that reads batches sees by that that they go from place to place.
        memory = cupy.empty((min(DEPTH, -(-count // size)), _offsets(shapes, kinds, size)[1]), np.uint8)
        for device in memory:
            self.empty.put(_Place(shapes, kinds, device))
        # Nobody who leaves Python without closing the generator shall wait for it.
        self._thread = threading.Thread(target=self._fill, name="xpnn-data", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        """The thread: fill and send batch after batch."""
        try:
            cupy.cuda.Device(self._device).use()  # which device is current, each thread knows for itself
            for start in range(0, self._count, self._size):
                place = self.empty.get()
                if self._stopping:
                    return
                place.copied.synchronize()  # the copy out of this pinned memory is over
                rows = min(self._size, self._count - start)
                self._gather(place, start, rows)
                place.send(rows, self._stream)
                self.full.put(place)
            self.full.put(None)
        except BaseException as error:  # the caller's thread raises it
            self.full.put(error)
        finally:
            if self._helpers is not None:
                self._helpers.shutdown()

    def _gather(self, place: _Place, start: int, count: int) -> None:
        """Write `count` rows from number `start` on to pinned memory; many bytes in parts, side by side."""
        targets, _, byte_count = place.views(count)

        def gather(first: int, last: int) -> None:
            numbers = slice(start + first, start + last)
            for array, into in zip(self._arrays, targets, strict=True):
                _gather(array, numbers if self._order is None else self._order[numbers], into[first:last])

        parts = min(_GATHERERS, (os.cpu_count() or 1) // 2, count)
        if byte_count < _SHARED_BYTES or parts < 2:
            gather(0, count)
            return
        if self._helpers is None:
            self._helpers = ThreadPoolExecutor(parts, thread_name_prefix="xpnn-gather")
        bounds = [count * part // parts for part in range(parts + 1)]
        list(self._helpers.map(gather, bounds[:-1], bounds[1:]))  # raises what one of them raised

    def stop(self) -> None:
        """End the thread, and wait until nothing is copied any more: the memory may then be used for other things."""
        self._stopping = True
        self.empty.put(None)
        # A generator that was forgotten is closed by whoever collects the garbage: by the thread itself, perhaps.
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._stream.synchronize()


def _gather(array: np.ndarray, rows: Any, into: np.ndarray) -> None:
    """The rows of a host array, written to where they are copied from."""
    if isinstance(rows, slice):
        np.copyto(into, array[rows], casting="unsafe")
    elif array.dtype == into.dtype and array.flags.c_contiguous:
        # With "clip" (no row is out of range) NumPy writes to `into` at once.
        np.take(array, rows, axis=0, out=into, mode="clip")
    else:
        # `take` would copy all of an array that is not in C order.
        np.copyto(into, array[rows], casting="unsafe")
