"""Steps that run as one CUDA graph: captured once for each set of shapes, then replayed by a single launch.

The first call with arrays of new shapes runs the step as it is, which compiles kernels and plans matrix products. The
second captures it: CuPy's and the libraries' launches are written down instead of run, with all that they allocate in
a memory pool of the graphs' own. From then on the graph is replayed, on the same addresses:

- the state's arrays are the graph's: it overwrites them, and returns them;
- an array of the batch is copied to where the graph reads it, or, if it is large and always the same (the whole data
  set, the parameters in a prediction), it is read where it lies;
- the number of the step, and what follows from it, is computed on the device; see `numbers`.

What cannot be captured (the host reads a value, say) runs call by call, and `why_not` says why.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import operator
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cupy

from xpnn.backend import one_line
from xpnn.dispatch import OPS
from xpnn_backends.cupy import constants, memory, placement, products
from xpnn_backends.cupy.numbers import StepNumber, StepNumbers
from xpnn_backends.recording import RecordingError
from xpnn_backends.trees import TreeError, arrays_of, map_leaves, pairs, signature, step_field

_LOG = logging.getLogger("xpnn")

MOST_GRAPHS = 8
"""Sets of shapes for which one step keeps a graph."""

_STAGED_BYTES = 1 << 20
"""A batch's array up to this size is copied to where the graph reads it, rather than captured where it lies."""

_MOST_MOVES = 2
"""How often a large array of the batch may come at a new address before it is copied too."""

_COPY = 3
"""cudaMemcpyDeviceToDevice"""


class CaptureError(Exception):
    """A step cannot be captured."""


class _Ground(threading.local):
    """What the threads that capture share with nobody."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, int], tuple[Any, Any]] = {}

    def place(self) -> tuple[Any, Any]:
        """(stream, memory pool) to capture with, for the current device and the stream that replays will run on.

        Graphs that are replayed on one stream follow each other, and can use the same memory for what they compute.
        """
        key = (cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr)
        found = self.places.get(key)
        if found is None:
            found = self.places[key] = (cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool())
        return found

    def forget(self) -> None:
        """Let a pool go with the last graph that was captured in it."""
        self.places = {}


_ground = _Ground()
_graphs: weakref.WeakSet[_Graph] = weakref.WeakSet()


def _pools() -> list[Any]:
    """The pools of all graphs on the current device."""
    device = cupy.cuda.runtime.getDevice()
    return list({id(graph.pool): graph.pool for graph in list(_graphs) if graph.device == device}.values())


memory.on_pressure(lambda: _ground.forget())
memory.report_pools(_pools)


class CompiledStep:
    """step(state, batch) -> (new state, value), as graphs.

    The step must be as `Backend.compile` wants it: a pure function of trees (tuples and dicts) of arrays, in which the
    new state has the shapes of the old one. The arrays of the state are overwritten.

    Attributes:
        why_not: why the step runs call by call; None if it does not, or was not yet called twice with the same shapes.
    """

    def __init__(self, step: Callable[..., Any], context: Callable[[], Any]) -> None:
        self._step = step
        self._context = context
        self._known: dict[Any, _Graph | _Trial | str] = {}
        self._last: _Graph | None = None
        self._lock = threading.RLock()
        self._captured = False
        self.why_not: str | None = None
        memory.on_pressure(self.release)

    @property
    def how(self) -> str:
        """How the step runs, for people."""
        if self.why_not is not None:
            return f"call by call: {self.why_not}"
        return "a CUDA graph" if self._captured else "a CUDA graph, from the second step of each shape on"

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """(new state, value)."""
        with self._context(), self._lock:
            graph = self._last
            if graph is None or not graph.take(state, batch):
                graph = self._last = self._find(state, batch)
            if graph is not None:
                return graph.run(state)
            return self._first(state, batch)

    def many(self, state: Any, data: tuple[Any, ...], rows: Any, size: int) -> Any:
        """The state after one step for each `size` of the rows, on the batches (*data, those rows).

        The same as a loop over calls, with less of Python in it.
        """
        times = rows.shape[0] // size
        for number in range(times):
            piece = rows[number * size : (number + 1) * size]
            with self._context(), self._lock:
                graph = self._last
                if graph is not None and state is graph.returned and graph.follows((*data, piece)):
                    return graph.run_many(state, rows[number * size : times * size], size)
            state, _ = self(state, (*data, piece))
        return state

    def release(self) -> None:
        """Let go of the graphs: of their memory, and of the caller's arrays, which may be large."""
        self._last = None
        self._known = {key: known for key, known in list(self._known.items()) if isinstance(known, str)}

    def _find(self, state: Any, batch: Any) -> _Graph | None:
        """The graph for these arrays, captured if it is time; None if the step is to run as it is."""
        reason = self._refusal(state, batch)
        if reason is not None:
            self._say(reason)
            return None
        key = self._key(state, batch)
        known = self._known.get(key)
        if known is None or isinstance(known, str):
            return None
        if isinstance(known, _Graph):
            self._known[key] = self._known.pop(key)  # the one that was not used for longest goes first
            if known.take(state, batch):
                return known
            trial = known.trial
        else:
            trial = known
        try:
            graph = _Graph(self._step, trial, state, batch)
        except Exception as error:
            self._give_up(key, error)
            return None
        self._known[key] = graph
        self._captured = True
        return graph

    def _refusal(self, state: Any, batch: Any) -> str | None:
        reason = products.why_not()
        if reason is not None:
            return f"matrix products in a graph need cublasLt, and {reason}"
        if cupy.cuda.get_current_stream().is_capturing():
            return "it is itself part of a step that is being captured"
        arrays = arrays_of((state,), cupy.ndarray)
        if not all(array.flags.c_contiguous for array in arrays):
            return "an array of the state is not in C order"
        pointers = [array.data.ptr for array in arrays if array.nbytes]
        if len(set(pointers)) < len(pointers):
            return "an array of the state shares memory with another array"
        if self._key(state, batch) is None:
            return "the state or the batch holds something that is no array and has no hash"
        return None

    def _key(self, state: Any, batch: Any) -> Any:
        found = signature((_uncounted(state), batch), cupy.ndarray)
        place = (cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr)
        return None if found is None else (place, found)

    def _first(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Run the step as it is; where a graph is to be made of it, find out which numbers it needs."""
        key = None if self._refusal(state, batch) else self._key(state, batch)
        field = step_field(state)
        if key is None or key in self._known or (field is not None and type(state[field]) is not int):
            return self._as_it_is(state, batch)
        if len(self._known) >= MOST_GRAPHS:
            self._known.pop(next(iter(self._known)))
        trial = _Trial(batch)
        try:
            result = trial.run(self._step, state, batch)
        except Exception as error:
            self._give_up(key, error)
            return self._as_it_is(state, batch)  # if the step itself is wrong, this says it best
        self._known[key] = trial
        return result

    def _as_it_is(self, state: Any, batch: Any) -> tuple[Any, Any]:
        arrays = arrays_of((batch,), cupy.ndarray)
        samples = arrays[0].shape[0] if arrays and arrays[0].ndim else None
        retry = memory.nothing_donated_since()
        return memory.guarded(lambda: self._step(state, batch), samples=samples, may_retry=retry)  # type: ignore[no-any-return]

    def _give_up(self, key: Any, error: Exception) -> None:
        """Let steps of these shapes run as they are from now on."""
        reason = self._known[key] = _reason(error)
        self._say(reason)

    def _say(self, reason: str) -> None:
        if reason != self.why_not:
            self.why_not = reason
            _LOG.info("a step runs call by call, because it cannot be captured: %s", reason)


class _Trial:
    """A step that ran once, as it is, with symbolic numbers: kernels are compiled and plans made.

    Attributes:
        numbers: what the step needs of its number.
        batch: the batch of that run; held, so that the same address later means the same array.
        moves: for each array of the batch, how often it came at another address.
    """

    def __init__(self, batch: Any) -> None:
        self.numbers = StepNumbers()
        self.batch = arrays_of((batch,), cupy.ndarray)
        self.moves = [0] * len(self.batch)

    def run(self, step: Callable[..., Any], state: Any, batch: Any) -> tuple[Any, Any]:
        """The step's result. If it raises, the state is as it was before."""
        field = step_field(state)
        arrays = arrays_of((state,), cupy.ndarray)
        saved = [array.copy() for array in arrays]
        try:
            with constants.kept():
                if field is None:
                    result = step(state, batch)
                else:
                    count = state[field]
                    new_state, value = step(state._replace(step=self.numbers.begin_run(count)), batch)
                    _check_count(new_state[field], self.numbers.step)
                    result = new_state._replace(step=count + 1), value
            _check_state(state, result[0])
            self.numbers.prepare()
        except Exception:
            for array, copy in zip(arrays, saved, strict=True):
                _copy(copy, array)
            raise
        return result  # type: ignore[no-any-return]


class _Graph:
    """A step for one set of shapes, captured.

    Attributes:
        trial: the run before.
        returned: the state that was last returned.
        device: the number of its GPU.
        pool: where its memory comes from.
    """

    def __init__(self, step: Callable[..., Any], trial: _Trial, state: Any, batch: Any) -> None:
        self.trial = trial
        self.returned: Any = None
        self._field = step_field(state)
        self._state = state
        self._state_arrays = arrays_of((state,), cupy.ndarray)
        self._tree = batch
        given = arrays_of((batch,), cupy.ndarray)
        self._staged = []
        for index, (array, before) in enumerate(zip(given, trial.batch, strict=True)):
            if array.data.ptr != before.data.ptr:
                trial.moves[index] += 1
            self._staged.append(
                trial.moves[index] > 0 and (array.nbytes <= _STAGED_BYTES or trial.moves[index] > _MOST_MOVES)
            )
        trial.batch = given
        self._inputs = [
            cupy.array(array, order="C") if staged else array for array, staged in zip(given, self._staged, strict=True)
        ]
        self._last_batch: Any = None
        self._value: Any = None
        self.device = cupy.cuda.runtime.getDevice()
        stream, self.pool = _ground.place()
        self._graph = self._capture(step, stream)
        _graphs.add(self)
        # What was given, the graph reads where it lies; the parts of it that are staged need not be held.
        self._last_batch = batch
        self._stage(batch)

    def _capture(self, step: Callable[..., Any], stream: Any) -> Any:
        """The graph. The step is captured twice: the first time shows which of its arrays end up side by side."""
        found = self._placement = placement.Placement()  # its vectors are memory of the graph
        whole = self._captured(step, stream, found.watching(self.pool.malloc))
        if not found.has_pieces:
            return whole
        found.prepare()
        try:
            return self._captured(step, stream, found.using(self.pool.malloc))
        except placement.PlacementError as error:
            _LOG.info("a graph copies the pieces of its vectors: %s", error)
            return self._captured(step, stream, cupy.cuda.using_allocator(self.pool.malloc))

    def _captured(self, step: Callable[..., Any], stream: Any, allocator: Any) -> Any:
        inputs = iter(self._inputs)
        batch = map_leaves(lambda leaf: next(inputs) if isinstance(leaf, cupy.ndarray) else leaf, self._tree)
        collecting = gc.isenabled()
        gc.disable()  # an array or event that is collected in a capture may make it invalid
        try:
            with stream, constants.kept():
                products.prepare()
                stream.begin_capture()
                try:
                    with allocator:
                        self._write_down(step, batch)
                except BaseException:
                    with contextlib.suppress(Exception):
                        stream.end_capture()
                    raise
                return stream.end_capture()
        finally:
            if collecting:
                gc.enable()

    def _write_down(self, step: Callable[..., Any], batch: Any) -> None:
        """Run the step on the graph's arrays, in a capture."""
        state, numbers = self._state, self.trial.numbers
        if self._field is not None:
            state = state._replace(step=numbers.begin_capture())
        new_state, value = step(state, batch)
        if self._field is not None:
            _check_count(new_state[self._field], numbers.step)
        self._value = _kept(value, self._state_arrays + self._inputs)
        _write_back(self._state, new_state)

    def take(self, state: Any, batch: Any) -> bool:
        """Have the graph's arrays hold this state and batch; False, and nothing changed, if it is not made for them."""
        if state is not self.returned and not self._take_state(state):
            return False
        return batch is self._last_batch or self._take_batch(batch)

    def _take_state(self, state: Any) -> bool:
        """Take a state that is not the one that was returned last; of it, say, in parts."""
        self.returned = None
        given = arrays_of((state,), cupy.ndarray)
        if len(given) != len(self._state_arrays) or not _same_tree(_uncounted(self._state), _uncounted(state)):
            return False
        copies = []
        for index, array in enumerate(given):
            mine = self._state_arrays[index]
            if array is mine or array.data.ptr == mine.data.ptr:
                continue
            if array.shape != mine.shape or array.dtype != mine.dtype or not array.flags.c_contiguous:
                return False
            copies.append((array, index))
        del given
        self._state = None
        for _, index in copies:
            # Somebody else may hold the array that was returned: it must keep its numbers.
            if sys.getrefcount(self._state_arrays[index]) > _OWN_REFERENCES:
                self._state = self._rebuilt(state)
                return False
        for array, index in copies:
            _copy(array, self._state_arrays[index])
        self._state = self._rebuilt(state)
        return True

    def _rebuilt(self, state: Any) -> Any:
        """A state that is made as this one, of the graph's arrays."""
        arrays = iter(self._state_arrays)
        return map_leaves(lambda leaf: next(arrays) if isinstance(leaf, cupy.ndarray) else leaf, state)

    def _take_batch(self, batch: Any) -> bool:
        if not self.follows(batch):
            return False
        self._stage(batch)
        self._last_batch = batch
        return True

    def follows(self, batch: Any) -> bool:
        """True if the graph can take this batch: what is not staged must be the same arrays."""
        if not _same_tree(self._tree, batch):
            return False
        for array, mine, staged in zip(arrays_of((batch,), cupy.ndarray), self._inputs, self._staged, strict=True):
            if array.shape != mine.shape or array.dtype != mine.dtype:
                return False
            if not staged and (array.data.ptr != mine.data.ptr or array.strides != mine.strides):
                return False
        return True

    def _stage(self, batch: Any) -> None:
        for array, mine, staged in zip(arrays_of((batch,), cupy.ndarray), self._inputs, self._staged, strict=True):
            if staged:
                _copy(array, mine)

    def run(self, state: Any) -> tuple[Any, Any]:
        """(new state, value) for what was taken."""
        if self._field is not None:
            self.trial.numbers.count(state[self._field], 1)
        self._graph.launch(cupy.cuda.get_current_stream())
        self.returned = self._state = self._after(state, 1)
        value = map_leaves(lambda leaf: leaf.copy() if isinstance(leaf, cupy.ndarray) else leaf, self._value)
        return self._state, value

    def run_many(self, state: Any, rows: Any, size: int) -> Any:
        """The state after a step for each `size` of the rows, the last array of the batch."""
        mine = self._inputs[-1]
        launch, stream = self._graph.launch, cupy.cuda.get_current_stream()
        copy, pointer = cupy.cuda.runtime.memcpyAsync, stream.ptr
        start, place, length = rows.data.ptr, mine.data.ptr, mine.nbytes
        times = rows.shape[0] // size
        self._last_batch = None
        if self._field is not None:
            self.trial.numbers.count(state[self._field], times)
        for number in range(times):
            copy(place, start + number * length, length, _COPY, pointer)
            launch(stream)
        self._state = self._after(state, times)
        self.returned = self._state
        return self._state

    def _after(self, state: Any, times: int) -> Any:
        """The state with the graph's arrays, so many steps after `state`."""
        return self._state if self._field is None else self._state._replace(step=state[self._field] + times)


def _own_references() -> int:
    """What `sys.getrefcount` says of an array that only a list and a graph's inputs hold."""
    held = [object()]
    return sys.getrefcount(held[0])


_OWN_REFERENCES = _own_references()


def _copy(source: Any, target: Any) -> None:
    """Copy on the device, in the order of the stream."""
    if source.nbytes == 0 or source.data.ptr == target.data.ptr:
        return
    if source.flags.c_contiguous and target.flags.c_contiguous:
        stream = cupy.cuda.get_current_stream()
        cupy.cuda.runtime.memcpyAsync(target.data.ptr, source.data.ptr, source.nbytes, _COPY, stream.ptr)
    else:
        target[...] = source


def _same_tree(mine: Any, theirs: Any) -> bool:
    """True if two trees differ in their arrays alone."""
    try:
        for old, new in pairs(mine, theirs):
            if isinstance(old, cupy.ndarray):
                if not isinstance(new, cupy.ndarray):
                    return False
            elif old is not new and (type(old) is not type(new) or old != new):
                return False
    except TreeError:
        return False
    return type(mine) is type(theirs)


def _uncounted(state: Any) -> Any:
    """A state without the number of its step."""
    return state if step_field(state) is None else state._replace(step=None)


def _check_count(count: Any, step: StepNumber) -> None:
    """Raise RecordingError unless a state counts one step more."""
    if not (isinstance(count, StepNumber) and (count.function, *count.operands) == (operator.add, step, 1)):
        raise RecordingError("the new state does not count one step more")


def _check_state(old: Any, new: Any) -> None:
    """Raise CaptureError unless a new state is made as the old one."""
    arrays = [(mine, theirs) for mine, theirs in pairs(old, new) if isinstance(mine, cupy.ndarray)]
    for index, (mine, theirs) in enumerate(arrays):
        if not isinstance(theirs, cupy.ndarray) or (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            raise CaptureError(f"array number {index} of the new state has another shape or dtype than before")


def _write_back(old: Any, new: Any) -> None:
    """Copy what the step has computed into the arrays of the state that it was given."""
    copies = []
    mine_all = {array.data.ptr for array in arrays_of((old,), cupy.ndarray)}
    for mine, theirs in pairs(old, new):
        if not isinstance(mine, cupy.ndarray):
            if isinstance(theirs, StepNumber):
                continue
            if mine is not theirs and (type(mine) is not type(theirs) or mine != theirs):
                raise CaptureError("the step changes something in the state that is no array")
            continue
        if mine.data.ptr == theirs.data.ptr:
            continue
        if theirs.data.ptr in mine_all:
            theirs = theirs.copy()  # it may be overwritten before its turn comes
        copies.append((theirs, mine))
    for theirs, mine in copies:
        _copy(cupy.ascontiguousarray(theirs), mine)


def _kept(value: Any, others: list[Any]) -> Any:
    """The value of a step in memory that nothing else uses."""
    pointers = {array.data.ptr for array in others}

    def keep(leaf: Any) -> Any:
        if not isinstance(leaf, cupy.ndarray):
            return leaf
        base = leaf if leaf.base is None else leaf.base
        return leaf.copy() if base.data.ptr in pointers or leaf.base is not None else leaf

    return map_leaves(keep, value)


def _reason(error: Exception) -> str:
    """Why a step cannot be captured, with the name of the op in which it went wrong."""
    where = _op_of(error)
    text = one_line(error) if not isinstance(error, (CaptureError, RecordingError)) else str(error)
    lower = text.lower()
    if "captur" in lower and not isinstance(error, (CaptureError, RecordingError)):
        text = f"a value is read by the host, or copied from it ({text})"
    return f"{where}: {text}" if where else text


def _op_of(error: BaseException) -> str | None:
    """The op, or else the function of a layer, in which an error was raised."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code)
        trace = trace.tb_next
    for code in reversed(frames):
        name = code.co_qualname.partition(".")[0].lstrip("_")
        if name in OPS and ("xpnn/ops" in code.co_filename.replace("\\", "/") or "xpnn_backends" in code.co_filename):
            return f"op {name!r}"
    own = [code for code in frames if code.co_filename.endswith(".py") and not _is_of_a_library(code.co_filename)]
    return f"{own[-1].co_qualname}()" if own else None


def _is_of_a_library(filename: str) -> bool:
    """True for the files of CuPy, and for those of this folder."""
    parts = Path(filename).parts
    return any(name in parts for name in ("cupy", "cupyx", "cupy_backends", "array_api_compat"))


def evaluate_captured(
    function: Callable[..., tuple[Any, Any]], arrays: tuple[Any, ...]
) -> tuple[Any, Callable[[Any], Any]]:
    """function(*arrays) -> (value, backward), each captured and replayed as a graph of its own.

    For tests. Raises what is raised where the function cannot be captured.
    """

    def replay(call: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        held: list[Any] = []

        def step(state: Any, batch: Any) -> tuple[Any, Any]:
            leaves: list[Any] = []

            def numbered(leaf: Any) -> int:
                leaves.append(leaf)
                return len(leaves) - 1

            held.append(map_leaves(numbered, call(*batch)))
            return state, tuple(leaves)

        trial = _Trial(given)
        trial.run(step, (), given)
        _, values = _Graph(step, trial, (), given).run(())
        return map_leaves(lambda position: values[position], held[-1])

    value = replay(lambda *given: function(*given)[0], arrays)

    def backward(cotangents: Any) -> Any:
        several = isinstance(cotangents, tuple)
        flat = tuple(cotangents) if several else (cotangents,)

        def both(*given: Any) -> Any:
            _, inner = function(*given[: len(arrays)])
            rest = given[len(arrays) :]
            return inner(tuple(rest) if several else rest[0])

        return replay(both, (*arrays, *flat))

    return value, backward
