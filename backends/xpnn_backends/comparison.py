"""Whether two recordings of one step are the same: if not, the step is more than a function of its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnn_backends.recording import Memory, RecordedArray, RecordedNumber, Recorder


def same_calls(one: Recorder, other: Recorder) -> bool:
    """True if two recorders hold the same calls, with the same settings and constants."""
    known: dict[Memory, Memory] = {}

    def same_memory(mine: Memory, theirs: Memory) -> bool:
        if mine in known:
            return known[mine] is theirs
        known[mine] = theirs
        return mine.role != "constant" or _equal(mine.value, theirs.value)

    def same(mine: Any, theirs: Any) -> bool:
        if type(mine) is not type(theirs):
            return False
        if isinstance(mine, RecordedNumber):
            return bool(mine.index == theirs.index)
        if not isinstance(mine, RecordedArray):
            return _equal(mine, theirs)
        if (mine.shape, mine.dtype, mine.ghost.strides) != (theirs.shape, theirs.dtype, theirs.ghost.strides):
            return False
        moved = mine.size > 0 and mine.offset != theirs.offset
        return not moved and same_memory(mine.memory, theirs.memory)

    def all_same(mine: Sequence[Any], theirs: Sequence[Any]) -> bool:
        return len(mine) == len(theirs) and all(map(same, mine, theirs))

    return (
        [call.kernel.name for call in one.instructions] == [call.kernel.name for call in other.instructions]
        and all(all_same(a.operands, b.operands) for a, b in zip(one.instructions, other.instructions, strict=True))
        and len(one.numbers) == len(other.numbers)
        and all(all_same(a.operands, b.operands) for a, b in zip(one.numbers, other.numbers, strict=True))
    )


def _equal(one: Any, other: Any) -> bool:
    """True for the same numbers of the same dtype; NaN is equal to itself here."""
    a, b = np.asarray(one), np.asarray(other)
    return bool((a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()))
