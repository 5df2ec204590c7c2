"""Where a graph has its pieces of a vector made, so that nobody need copy them there.

`pack` puts gradients side by side in one vector. A first capture of a step shows which allocations the pieces come
from; in the second, which makes the same allocations in the same order, each of those gets the piece's place in the
vector instead of memory of its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cupy


class PlacementError(Exception):
    """The allocations of a capture are not those of the run before."""


class _Piece(NamedTuple):
    """What one allocation is for: bytes `start` and up of the vector of one call of `pack`."""

    call: int
    start: int
    size: int


class Placement:
    """Which allocations of a step hold pieces of which vectors; first watched, then made use of.

    Attributes:
        vectors: the vector of each call of `pack`, made before the capture.
    """

    def __init__(self) -> None:
        self.vectors: list[Any] = []
        self._pieces: dict[int, _Piece] = {}
        self._shapes: list[tuple[int, Any]] = []
        self._made: dict[int, tuple[int, int]] = {}
        self._count = 0
        self._calls = 0
        self._using = False

    @property
    def has_pieces(self) -> bool:
        """True if something can be gained."""
        return bool(self._pieces)

    def again(self) -> Placement:
        """One to use what this one has watched, with vectors of its own.

        What lies between the pieces of a vector is 0, and nothing ever writes there.
        """
        other = Placement()
        other._pieces, other._shapes = self._pieces, self._shapes
        other.vectors = [cupy.zeros(size, dtype=dtype) for size, dtype in self._shapes] if self._pieces else []
        return other

    @contextlib.contextmanager
    def watching(self, malloc: Callable[[int], Any]) -> Iterator[None]:
        """A block that captures the step for the first time, with memory from `malloc`."""
        self._using = False
        with self._block(malloc):
            yield

    @contextlib.contextmanager
    def using(self, malloc: Callable[[int], Any]) -> Iterator[None]:
        """A block that captures it once more, with memory from `malloc` for all that is no piece of a vector."""
        self._using = True
        with self._block(malloc):
            yield
            if self._calls != len(self._shapes):
                raise PlacementError("the step packs other vectors when it is run again")

    @contextlib.contextmanager
    def _block(self, malloc: Callable[[int], Any]) -> Iterator[None]:
        self._count = self._calls = 0
        before, _active.placement = _active.placement, self
        try:
            with cupy.cuda.using_allocator(lambda size: self._allocate(size, malloc)):
                yield
        finally:
            _active.placement = before

    def _allocate(self, size: int, malloc: Callable[[int], Any]) -> Any:
        index = self._count
        self._count += 1
        if self._using:
            piece = self._pieces.get(index)
            if piece is None:
                return malloc(size)
            if piece.size != size:
                raise PlacementError("the step allocates other arrays when it is run again")
            return self.vectors[piece.call].data + piece.start
        memory = malloc(size)
        self._made[memory.ptr] = (index, size)
        return memory

    def vector(self, arrays: tuple[Any, ...], starts: tuple[int, ...], size: int) -> Any:
        """The vector of this call of `pack`: in a capture, with those pieces in it that were made there."""
        dtype = arrays[0].dtype
        call = self._calls
        self._calls += 1
        if not self._using:
            self._shapes.append((size, dtype))
            for x, start in zip(arrays, starts, strict=True):
                index, allocated = self._made.get(x.data.ptr, (-1, 0))
                # Only a whole allocation can be moved elsewhere; an array that is packed twice stays where it is.
                if index >= 0 and allocated == x.nbytes and x.flags.c_contiguous and index not in self._pieces:
                    self._pieces[index] = _Piece(call, start * dtype.itemsize, x.nbytes)
            return cupy.zeros(size, dtype=dtype)
        if call >= len(self.vectors) or (size, dtype) != self._shapes[call]:
            raise PlacementError("the step packs other vectors when it is run again")
        vector = self.vectors[call]
        moved = {piece.start for piece in self._pieces.values() if piece.call == call}
        for x, start in zip(arrays, starts, strict=True):
            place = start * dtype.itemsize
            if place in moved and x.data.ptr != vector.data.ptr + place:
                raise PlacementError("a piece of a vector is made by another allocation when the step is run again")
        return vector


class _Active(threading.local):
    placement: Placement | None = None


_active = _Active()


def current() -> Placement | None:
    """The placement of the step that is being made into a graph by this thread, if there is one."""
    return _active.placement
