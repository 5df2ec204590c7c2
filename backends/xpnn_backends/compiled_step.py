"""A training step that is recorded once for each set of shapes, and then runs as a program."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from operator import add
from typing import Any

import numpy as np

from xpnn_backends.comparison import same_calls
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recording import COPY, RecordedArray, RecordedNumber, Recorder, RecordingError
from xpnn_backends.trees import arrays_of, map_leaves, pairs, signature, step_field

_LOG = logging.getLogger("xpnn")
_MOST_PROGRAMS = 16
"""Sets of shapes for which one step keeps a program; each holds memory for what the step computes."""


class CompiledStep:
    """step(state, batch) -> (new state, value), by programs.

    The step must be as `Backend.compile` wants it: a pure function of trees (tuples and dicts) of arrays, in which the
    new state has the shapes of the old one. The arrays of the state are overwritten. Where a step cannot be recorded,
    it runs as it is; `why_not` says why.
    """

    def __init__(self, step: Callable[..., Any], native: bool) -> None:
        self._step = step
        self._native = native
        self._programs: dict[Any, _RecordedStep | None] = {}
        self._last: _RecordedStep | None = None
        self._lock = threading.Lock()
        self._checked = False
        self.why_not: str | None = None

    @property
    def how(self) -> str:
        """How the step runs, for people."""
        return "a recorded program" if self.why_not is None else f"call by call: {self.why_not}"

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """(new state, value)."""
        with self._lock:
            recorded = self._last
            # The usual case, a step after a step, is looked for first: all arrays but the batch's are in place.
            if recorded is None or state is not recorded.returned or not recorded.take(batch):
                recorded = self._last = self._find(state, batch)
            if recorded is not None:
                return recorded.run(state)
        new_state, value = self._step(state, batch)
        # NumPy makes scalars of arrays without axes; the next step may be one that can be recorded.
        return map_leaves(lambda leaf: np.asarray(leaf) if isinstance(leaf, np.generic) else leaf, new_state), value

    def many(self, state: Any, data: tuple[Any, ...], rows: Any, size: int) -> Any:
        """The state after one step for each `size` of the rows, on the batches (*data, those rows).

        The same as a loop over calls, with less of Python in it.
        """
        rows = np.ascontiguousarray(rows)
        times = rows.shape[0] // size
        done = 0
        while done < times:
            state, _ = self(state, (*data, rows[done * size : (done + 1) * size]))
            done += 1
            with self._lock:
                recorded = self._last
                # Another thread may have run the same step since.
                if recorded is not None and state is recorded.returned and done < times and recorded.repeats:
                    state = recorded.run_many(state, (*data, rows[done * size :]), size, times - done)
                    done = times
        return state

    def release(self) -> None:
        """Hold none of the caller's arrays any longer, which may be large; the programs stay."""
        with self._lock:
            self._last = None
            for recorded in self._programs.values():
                if recorded is not None:
                    recorded.release()

    def _find(self, state: Any, batch: Any) -> _RecordedStep | None:
        """The program for these shapes, with these arrays; None if there is none."""
        if not all(leaf.flags.c_contiguous for leaf in arrays_of(batch, np.ndarray)):
            batch = map_leaves(_in_order, batch)
        reason = _refusal(arrays_of(state, np.ndarray), arrays_of(batch, np.ndarray))
        if reason is not None:
            self._say(reason)
            return None
        field = step_field(state)
        counted = state if field is None else state._replace(step=None)
        key = signature((counted, batch), np.ndarray)
        if key is None:
            self._say("the state or the batch holds something that is no array and has no hash")
            return None
        if key not in self._programs:
            if len(self._programs) >= _MOST_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = self._record(state, batch)
        recorded = self._programs[key] = self._programs.pop(key)  # the one that was not used for longest goes first
        if recorded is not None:
            recorded.bind(arrays_of((state, batch), np.ndarray), batch)
        return recorded

    def _record(self, state: Any, batch: Any) -> _RecordedStep | None:
        try:
            recorded = _record(self._step, state, batch)
            if not self._checked:
                # A layer that draws random numbers of its own, or counts its calls, would do so only now.
                if not same_calls(recorded[0], _record(self._step, state, batch)[0]):
                    raise RecordingError("the step makes other calls, or has other constants, when it is run again")
                self._checked = True
            return _RecordedStep(recorded, state, batch, self._native)
        except Exception as error:
            # Whatever is wrong, the step itself says it best: it runs as it is.
            self._say(f"{type(error).__name__}: {error}")
            return None

    def _say(self, reason: str) -> None:
        if reason == self.why_not:
            return
        self.why_not = reason
        _LOG.info("a step runs call by call, because it cannot be recorded: %s", reason)


class _RecordedStep:
    """A step for one set of shapes: its program, and what it returns."""

    def __init__(
        self, recorded: tuple[Recorder, list[Any], RecordedArray], state: Any, batch: Any, native: bool
    ) -> None:
        recorder, arrays, value = recorded
        self._step_field = step_field(state)
        self._state_arrays = len(arrays_of(state, np.ndarray))
        self._program = Program(recorder, arrays, native)
        self._value = self._program.array(value)
        self.returned: Any = None
        self._batch: tuple[Any, ...] = batch
        # Which input each array of the batch is, and the same for its parts alone: in most batches, that is all.
        self._numbers = _numbered(batch, itertools.count(self._state_arrays))
        self._inputs = [number if isinstance(number, int) else None for number in self._numbers]

    def bind(self, arrays: list[Any], batch: Any) -> None:
        """From now on, the program works on these arrays of a state and a batch."""
        program = self._program
        for number, array in enumerate(arrays):
            if not program.is_bound(number, array):
                program.bind(number, array)
        self._batch = batch

    def release(self) -> None:
        """Hold no arrays of a state or a batch."""
        self._program.release()
        self.returned, self._batch = None, ()

    def take(self, batch: Any) -> bool:
        """Bind the arrays of a batch; False, and nothing certain, if it is not made as the one before."""
        before = self._batch
        if batch is before:
            return True
        if len(batch) != len(before):
            return False
        for new, old, number in zip(batch, before, self._inputs, strict=True):
            if new is old:
                continue
            if number is None or type(new) is not np.ndarray or new.shape != old.shape or new.dtype is not old.dtype:
                if not self._take_parts(batch, before, self._numbers):
                    return False
                break
            if not new.flags.c_contiguous:
                return False
            self._program.bind(number, new)
        self._batch = batch
        return True

    def _take_parts(self, batch: Any, before: tuple[Any, ...], numbers: tuple[Any, ...]) -> bool:
        """`take` for a batch with tuples in it: several inputs, say."""
        if type(batch) is not tuple or len(batch) != len(before):
            return False
        for new, old, number in zip(batch, before, numbers, strict=True):
            if new is old:
                continue
            if type(number) is tuple:
                if not self._take_parts(new, old, number):
                    return False
                continue
            if type(number) is not int or type(new) is not np.ndarray or not new.flags.c_contiguous:
                return False
            if new.shape != old.shape or new.dtype is not old.dtype:
                return False
            self._program.bind(number, new)
        return True

    def run(self, state: Any) -> tuple[Any, Any]:
        """(new state, value) for the arrays that are bound, which are those of `state`."""
        field = self._step_field
        if field is None:
            self._program.run(0)
        else:
            count = state[field]
            self._program.run(count)
            state = type(state)(*state[:field], count + 1, *state[field + 1 :])
        self.returned = state
        value = self._value
        return state, value.copy() if value.ndim else value[()]

    @property
    def repeats(self) -> bool:
        """True if `run_many` can be used."""
        return self._program.is_one_list and self._step_field is not None and self._inputs[-1] is not None

    def run_many(self, state: Any, batch: tuple[Any, ...], size: int, times: int) -> Any:
        """The state after so many steps; each takes the next `size` items of the last part of the batch."""
        field, number = self._step_field, self._inputs[-1]
        assert field is not None
        assert number is not None
        rows = batch[-1]
        self._program.bind(number, rows[:size])
        self._program.run_many(state[field], times, number, size * rows.itemsize)
        last = rows[(times - 1) * size : times * size]
        self._program.bind(number, last)
        self._batch = (*batch[:-1], last)
        self.returned = type(state)(*state[:field], state[field] + times, *state[field + 1 :])
        return self.returned


def evaluate_recorded(
    function: Callable[..., tuple[Any, Any]], arrays: tuple[Any, ...], native: bool
) -> tuple[Any, Any]:
    """function(*arrays) -> (value, backward), each run as a program of its own.

    Raises RecordingError if the function cannot be recorded.
    """
    value = RecordedCall(lambda *given: function(*given)[0], arrays, native)()

    def backward(cotangents: Any) -> Any:
        flat = tuple(cotangents) if isinstance(cotangents, tuple) else (cotangents,)

        def both(*given: Any) -> Any:
            _, inner = function(*given[: len(arrays)])
            rest = given[len(arrays) :]
            return inner(tuple(rest) if isinstance(cotangents, tuple) else rest[0])

        return RecordedCall(both, (*arrays, *flat), native)()

    return value, backward


class RecordedCall:
    """function(*arrays) -> tree of arrays, as a program.

    Attributes:
        program: runs it on the arrays that it was recorded with, and leaves the results in its memory.

    Raises:
        RecordingError: the function cannot be recorded.
    """

    def __init__(self, function: Callable[..., Any], arrays: tuple[Any, ...], native: bool) -> None:
        recorder = Recorder()
        ordered = [_in_order(np.asarray(x)) for x in arrays]
        result = function(*map(recorder.input, ordered))
        kept: list[RecordedArray] = []

        def keep(leaf: Any) -> Any:
            if isinstance(leaf, RecordedArray):
                leaf = recorder.contiguous(leaf)
                kept.append(leaf)
            return leaf

        self._result = map_leaves(keep, result)
        if kept:
            recorder.call(KEEP, *kept)
        self.program = Program(recorder, ordered, native)

    def __call__(self) -> Any:
        """The result, in arrays of its own."""
        self.program.run(0)
        array = self.program.array
        return map_leaves(lambda leaf: array(leaf).copy() if isinstance(leaf, RecordedArray) else leaf, self._result)


def _in_order(leaf: Any) -> Any:
    """An array of a batch in C order, however it came: the results then depend on its numbers alone."""
    return np.ascontiguousarray(leaf).reshape(leaf.shape) if isinstance(leaf, np.ndarray) else leaf


def _record(step: Callable[..., Any], state: Any, batch: Any) -> tuple[Recorder, list[Any], RecordedArray]:
    """(what the step does, the arrays of the state and the batch, the stand-in for its value)."""
    recorder = Recorder()
    arrays: list[Any] = []

    def stand_in(value: Any) -> Any:
        if isinstance(value, np.generic):
            raise RecordingError("the state or the batch holds a NumPy scalar; give an array without axes")
        if isinstance(value, np.ndarray):
            arrays.append(value)
            return recorder.input(value)
        return value

    old_state = map_leaves(stand_in, state)
    if step_field(state) is not None:
        old_state = old_state._replace(step=recorder.step)
    new_state, value = step(old_state, tuple(map_leaves(stand_in, part) for part in batch))
    if not isinstance(value, RecordedArray):
        raise RecordingError("the step gives no array")
    value = recorder.contiguous(value)
    if value.memory.role == "input":
        # Another array may be bound by the time it is read, and the state is about to be overwritten.
        value = _copied(recorder, value)
    _write_back(recorder, old_state, new_state)
    recorder.call(KEEP, value)
    recorder.finished = True
    return recorder, arrays, value


def _copied(recorder: Recorder, x: RecordedArray) -> RecordedArray:
    copy = recorder.empty(x.shape, x.dtype)
    recorder.call(COPY, x, copy)
    return copy


def _write_back(recorder: Recorder, old: Any, new: Any) -> None:
    """Copy what the step has computed into the arrays of the state that it was given."""
    copies = []
    for mine, theirs in pairs(old, new):
        if mine is recorder.step:
            if not (isinstance(theirs, RecordedNumber) and (theirs.function, *theirs.operands) == (add, mine, 1)):
                raise RecordingError("the new state does not count one step more")
            continue
        if not isinstance(mine, RecordedArray):
            if mine is not theirs and (type(mine) is not type(theirs) or mine != theirs):
                raise RecordingError("the step changes something in the state that is no array")
            continue
        if not isinstance(theirs, RecordedArray) or (theirs.shape, theirs.dtype) != (mine.shape, mine.dtype):
            raise RecordingError("an array of the new state has another shape or dtype than before")
        if theirs.memory is mine.memory:
            if not theirs.is_whole:
                raise RecordingError("an array of the new state is a piece of the old one")
            continue
        if theirs.memory.role == "input":
            # It may be overwritten before its turn comes.
            theirs = _copied(recorder, theirs)
        copies.append((theirs, mine))
    for theirs, mine in copies:
        recorder.call(COPY, theirs, mine)


def _numbered(batch: tuple[Any, ...], numbers: Iterator[int]) -> tuple[Any, ...]:
    """Which input of a program each array of a batch is, in the order of `_arrays`; None for what has none."""
    return tuple(_number(part, numbers) for part in batch)


def _number(part: Any, numbers: Iterator[int]) -> Any:
    if isinstance(part, np.ndarray):
        return next(numbers)
    if type(part) is tuple:
        return _numbered(part, numbers)
    # The arrays of a dict are not looked for: a batch that holds another one is bound as a whole.
    for _ in arrays_of((part,), np.ndarray):
        next(numbers)
    return None


def _refusal(state: list[Any], batch: list[Any]) -> str | None:
    """Why no program may overwrite these arrays of a state, beside those of a batch; None if one may."""
    for array in state:
        if not array.flags.c_contiguous:
            return "an array of the state is not in C order"
        if not array.flags.writeable:
            return "an array of the state is read-only"
    owners = [id(array) if array.base is None else id(array.base) for array in (*state, *batch)]
    count = len(state)
    mine = set(owners[:count])
    # Usually each array of a state has memory of its own, and nothing need be compared.
    if len(mine) < count or not mine.isdisjoint(owners[count:]):
        for position, array in enumerate(state):
            if any(np.may_share_memory(array, other) for other in (*state[position + 1 :], *batch)):
                return "an array of the state shares memory with another array"
    return None
