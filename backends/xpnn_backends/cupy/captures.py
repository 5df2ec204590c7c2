"""What a step is captured with, and as: a run of the step beforehand, the arrays of its state, and the graph.

Memory that a graph reads or writes must stay where it is for as long as the graph may run:

- the state's arrays: those of a `Home`, which all graphs of one step share, and which holds them;
- arrays of the batch: staged ones are the graph's own. One that is read where it lies need not be held, because the
  graph is launched only for a batch that has an array at that very address;
- what the step allocates: comes from a pool that is used for captures alone, and that the graph holds. Within the
  pool, arrays that are not needed at the same time share memory; so do graphs that follow each other on one stream.

Graphs work with arrays of their own on that memory (`twin`), so that the reference counts of the caller's arrays say
whether somebody else holds them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cupy

from xpnn_backends.cupy import constants, cudnn_graphs, memory, placement, product_plans, products
from xpnn_backends.cupy.numbers import StepNumber, StepNumbers
from xpnn_backends.recording import RecordingError
from xpnn_backends.trees import arrays_of, map_leaves, pairs, signature, step_field

_LOG = logging.getLogger("xpnn")

STAGED_BYTES = 1 << 20
"""A batch's array up to this size is copied to where the graph reads it, rather than captured where it lies."""

MOST_MOVES = 2
"""How often a large array of the batch may come at a new address before it is copied too."""

_ON_DEVICE = 3
"""cudaMemcpyDeviceToDevice"""

_PER_THREAD_STREAM = 2
"""cudaStreamPerThread: one handle that means another stream in each thread."""


class CaptureError(Exception):
    """A step cannot be captured."""


class Place(NamedTuple):
    """Where graphs run: number of the device, stream, and thread (0 where all threads mean one stream by that)."""

    device: int
    stream: int
    thread: int


def place_of(stream: Any) -> Place:
    """The place of a stream of the current device."""
    thread = threading.get_ident() if stream.ptr == _PER_THREAD_STREAM else 0
    return Place(cupy.cuda.runtime.getDevice(), stream.ptr, thread)


class Ground:
    """What a thread captures with.

    Attributes:
        stream: what is written down goes to this one.
        pool: where memory comes from meanwhile.
        captures: how many captures are under way.
        running: held from a graph's launch until its value is copied: another graph may compute in that memory.
    """

    def __init__(self) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool(_malloc)
        self.captures = 0
        self.running = threading.Lock()


def _malloc(size: int) -> Any:
    """Memory of the device for a pool that is used in captures.

    Where none is left, CuPy's pool would free its unused blocks and try again; but kernels that were captured before
    use these blocks. It does so for CUDA's error alone, so that one is not let through.
    """
    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
    raise cupy.cuda.memory.OutOfMemoryError(size, 0)


_grounds: dict[tuple[Place, int], Ground] = {}
_graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
_graphs_lock = threading.RLock()


def _ground(place: Place) -> Ground:
    """What this thread captures with, for graphs that will run at this place.

    Graphs that are replayed on one stream follow each other, and can use the same memory for what they compute.
    """
    key = place, threading.get_ident()
    found = _grounds.get(key)
    if found is None:
        found = _grounds[key] = Ground()
    return found


def _free_idle_memory() -> None:
    """Give the memory of those pools back to the device that no graph uses, and the workspaces of their streams.

    CuPy does not do that when a pool dies.
    """
    device = cupy.cuda.runtime.getDevice()
    with _graphs_lock:
        used = {id(graph.ground) for graph in _graphs}
        streams = {cupy.cuda.get_current_stream().ptr}  # what is tried again here needs its workspace
        for (place, _), ground in list(_grounds.items()):
            if place.device == device and (ground.captures or id(ground) in used):
                streams |= {place.stream, ground.stream.ptr}
            elif place.device == device:
                ground.pool.free_all_blocks()
        product_plans.forget_workspaces(streams)


def _pools() -> list[Any]:
    """The pools of all graphs on the current device."""
    device = cupy.cuda.runtime.getDevice()
    with _graphs_lock:
        found = list(_graphs)
    return list({id(graph.ground.pool): graph.ground.pool for graph in found if graph.place.device == device}.values())


memory.on_pressure(_free_idle_memory, last=True)
memory.report_pools(_pools)


class Home:
    """The arrays of a step's state: all graphs of that step read and overwrite them, and they are what it returns.

    Attributes:
        arrays: in the order of `arrays_of`.
        signature: what a state must have in common with the first one.
        returned: the state that was returned last; None if it is not known.
        graphs: by the signature of the batch; the one that was not used for longest comes first.
    """

    def __init__(self, state: Any) -> None:
        self.arrays = arrays_of((state,), cupy.ndarray)
        self.signature = state_signature(state)
        self.returned: Any = state
        self.graphs: dict[Any, Graph] = {}

    def in_common(self, state: Any) -> int:
        """How many arrays of a state lie where one of these does."""
        mine = {array.data.ptr for array in self.arrays if array.nbytes}
        return sum(array.data.ptr in mine for array in arrays_of((state,), cupy.ndarray))

    def take(self, state: Any) -> Any | None:
        """The state with the arrays of this home, which then hold its numbers.

        None, and nothing changed, if it is made otherwise, or numbers would be overwritten that somebody else holds.
        """
        if state is self.returned:
            return state
        if state_signature(state) != self.signature:
            return None
        self.returned = None
        given = arrays_of((state,), cupy.ndarray)
        moved = [
            index
            for index, array in enumerate(given)
            if array.data.ptr != self.arrays[index].data.ptr or not array.flags.c_contiguous
        ]
        for index in moved:
            if sys.getrefcount(self.arrays[index]) > _OWN_REFERENCES:
                return None
        for index in moved:
            copy(given[index], self.arrays[index])
        mine = iter(self.arrays)
        return map_leaves(lambda leaf: next(mine) if isinstance(leaf, cupy.ndarray) else leaf, state)


def _own_references() -> int:
    """What `sys.getrefcount` says of an array that only a list holds."""
    held, index = [object()], 0
    return sys.getrefcount(held[index])


_OWN_REFERENCES = _own_references()


def state_signature(state: Any) -> Any:
    """What two states must have in common: all but their arrays' values, and the number of the step."""
    uncounted = state if step_field(state) is None else state._replace(step=None)
    return signature((uncounted,), cupy.ndarray)


class Trial:
    """A step that ran once, as it is, with symbolic numbers: kernels are compiled and plans made.

    Attributes:
        numbers: what the step needs of its number.
        waited: how often it was called since, while there was no room for its graph.
        placement: of the last capture; None before the first one.
    """

    def __init__(self, batch: Any) -> None:
        self.numbers = StepNumbers()
        self.waited = 0
        given = arrays_of((batch,), cupy.ndarray)
        self._addresses: list[tuple[int, int]] | None = [_address(array) for array in given]
        self._moves = [0] * len(given)
        self.placement: placement.Placement | None = None

    def run(self, step: Callable[..., Any], state: Any, batch: Any) -> tuple[Any, Any]:
        """The step's result. If it raises, the state is as it was before."""
        field = step_field(state)
        arrays = arrays_of((state,), cupy.ndarray)
        saved = [array.copy() for array in arrays]
        ours = map_leaves(_twin_or_same, state)
        try:
            with constants.kept():
                if field is None:
                    new_state, value = step(ours, map_leaves(_twin_or_same, batch))
                else:
                    ours = ours._replace(step=self.numbers.begin_run(state[field]))
                    new_state, value = step(ours, map_leaves(_twin_or_same, batch))
                    _check_count(new_state[field], self.numbers.step)
                    new_state = new_state._replace(step=state[field] + 1)
            _check_state(state, new_state)
            self.numbers.prepare()
        except BaseException:
            for array, before in zip(arrays, saved, strict=True):
                copy(before, array)
            raise
        # What was overwritten is returned as the caller's arrays, whose references say who holds them.
        given = {array.data.ptr: array for array in arrays if array.nbytes}
        return map_leaves(lambda leaf: _among(given, leaf), new_state), value

    def staged(self, given: list[Any]) -> list[bool]:
        """For each array of the batch, whether it is to be copied to where the graph reads it.

        It is if it keeps coming at other addresses; a large one need not be copied if it has moved only now and then.
        """
        chosen = []
        for index, array in enumerate(given):
            address, memory_address = _address(array)
            before = self._addresses[index] if self._addresses is not None else (address, memory_address)
            if address != before[0]:
                # A part of what another part came from is one batch of many, of which none will come for long.
                self._moves[index] += 1 + MOST_MOVES * (memory_address == before[1])
            moves = self._moves[index]
            chosen.append(moves > 0 and (array.nbytes <= STAGED_BYTES or moves > MOST_MOVES))
        self._addresses = [_address(array) for array in given]
        return chosen

    def release(self) -> None:
        """Other data may come: that they lie elsewhere does not mean that these do move."""
        self._addresses = None


def _address(array: Any) -> tuple[int, int]:
    """(where an array begins, where the memory begins that it is a part of)."""
    return array.data.ptr, array.data.mem.ptr


class Graph:
    """A step for one set of shapes, captured.

    Attributes:
        home: the arrays of its state.
        trial: the run before.
        place: where it runs.
        stages_last: whether the last array of the batch is copied to where the graph reads it.
        ground: what it was captured with.
        placement: where the pieces of its vectors lie.
    """

    def __init__(self, step: Callable[..., Any], trial: Trial, home: Home, state: Any, batch: Any) -> None:
        self.home, self.trial = home, trial
        self.place = place_of(cupy.cuda.get_current_stream())
        self.ground = _ground(self.place)
        self._field = step_field(state)
        given = arrays_of((batch,), cupy.ndarray)
        staging = trial.staged(given)
        inputs = [
            cupy.empty(array.shape, array.dtype) if staged else twin(array)
            for array, staged in zip(given, staging, strict=True)
        ]
        self._bounds = [
            (array.shape, array.dtype, None if staged else (array.data.ptr, array.strides))
            for array, staged in zip(inputs, staging, strict=True)
        ]
        unfilled = iter(inputs)
        self._batch = map_leaves(lambda leaf: next(unfilled) if isinstance(leaf, cupy.ndarray) else leaf, batch)
        self._frame = map_leaves(lambda leaf: _ARRAY if isinstance(leaf, cupy.ndarray) else leaf, batch)
        self._targets = [
            (index, array, array.data.ptr, array.nbytes)
            for index, (array, staged) in enumerate(zip(inputs, staging, strict=True))
            if staged
        ]
        self.stages_last = staging[-1:] == [True]
        self._value: Any = None
        with _graphs_lock:
            self.ground.captures += 1
        try:
            self._graph = self._capture(step, state)
            with _graphs_lock:
                _graphs.add(self)
        finally:
            with _graphs_lock:
                self.ground.captures -= 1
        self._batch = None  # what it reads where it lies, it does not hold

    # Capturing

    def _capture(self, step: Callable[..., Any], state: Any) -> Any:
        """The graph. A step is captured twice: the first time shows which of its arrays end up side by side."""
        known = self.trial.placement
        if known is None:
            known = placement.Placement()
            whole = self._captured(step, state, known.watching(self.ground.pool.malloc))
            self.trial.placement = self.placement = known
            if not known.has_pieces:
                return whole
        if known.has_pieces:
            self.placement = known.again()  # its vectors are memory of this graph
            try:
                return self._captured(step, state, self.placement.using(self.ground.pool.malloc))
            except placement.PlacementError as error:
                _LOG.info("a graph copies the pieces of its vectors: %s", error)
        self.trial.placement = self.placement = placement.Placement()
        return self._captured(step, state, cupy.cuda.using_allocator(self.ground.pool.malloc))

    def _captured(self, step: Callable[..., Any], state: Any, allocator: Any) -> Any:
        stream = self.ground.stream
        with _no_collection(), constants.kept():
            self._workspace = products.share_workspace(cupy.cuda.get_current_stream(), stream)
            with stream:
                cudnn_graphs.prepare()
                return self._captured_on(stream, step, state, allocator)

    def _captured_on(self, stream: Any, step: Callable[..., Any], state: Any, allocator: Any) -> Any:
        stream.begin_capture()
        try:
            with allocator:
                self._write_down(step, state)
        except BaseException:
            with contextlib.suppress(Exception):
                stream.end_capture()
            raise
        return stream.end_capture()

    def _write_down(self, step: Callable[..., Any], state: Any) -> None:
        """Run the step on the graph's arrays, in a capture."""
        numbers = self.trial.numbers
        state = map_leaves(_twin_or_same, state)
        if self._field is not None:
            state = state._replace(step=numbers.begin_capture())
        new_state, value = step(state, self._batch)
        if self._field is not None:
            _check_count(new_state[self._field], numbers.step)
        self._value = _kept(value, arrays_of((state, self._batch), cupy.ndarray))
        _write_back(state, new_state)

    # Replaying

    def follows(self, batch: Any) -> list[Any] | None:
        """The batch's arrays; None if the graph cannot take them: what is not staged must lie where it lay."""
        arrays: list[Any] = []
        if not _has_frame(self._frame, batch, arrays) or len(arrays) != len(self._bounds):
            return None
        for array, (shape, dtype, bound) in zip(arrays, self._bounds, strict=True):
            if array.shape != shape or array.dtype != dtype:
                return None
            if bound is not None and (array.data.ptr, array.strides) != bound:
                return None
        return arrays

    def _stage(self, arrays: list[Any], stream: int) -> None:
        for index, target, address, size in self._targets:
            array = arrays[index]
            if array.flags.c_contiguous:
                if size:
                    cupy.cuda.runtime.memcpyAsync(address, array.data.ptr, size, _ON_DEVICE, stream)
            else:
                target[...] = array

    def run(self, state: Any, arrays: list[Any], stream: Any) -> tuple[Any, Any]:
        """(new state, value) for a state that the home has taken, and the arrays of a batch that the graph follows."""
        self._stage(arrays, stream.ptr)
        numbers = self.trial.numbers
        if self._field is not None:
            numbers.count(state[self._field], 1)
        with self.ground.running:
            self._graph.launch(stream)
            new_state = self.home.returned = self._after(state, 1)
            return new_state, map_leaves(_fresh, self._value)

    def run_many(self, state: Any, arrays: list[Any], rows: Any, size: int, stream: Any) -> Any:
        """As `run`, for each `size` of the rows, which are the last array of the batch; the state alone."""
        self._stage(arrays, stream.ptr)
        _, _, target, length = self._targets[-1]
        launch, pointer = self._graph.launch, stream.ptr
        memcpy, start = cupy.cuda.runtime.memcpyAsync, rows.data.ptr
        times = rows.shape[0] // size
        if self._field is not None:
            self.trial.numbers.count(state[self._field], times)
        for number in range(times):
            memcpy(target, start + number * length, length, _ON_DEVICE, pointer)
            with self.ground.running:
                launch(stream)
        new_state = self.home.returned = self._after(state, times)
        return new_state

    def _after(self, state: Any, times: int) -> Any:
        """The state so many steps later."""
        if self._field is None:
            return state
        return state._replace(step=state[self._field] + times)


def run_as_graph(step: Callable[..., Any], state: Any, batch: Any) -> tuple[Graph, tuple[Any, Any]]:
    """The graph of a step that runs once as it is, is captured, and replayed; and what the replay gives."""
    trial = Trial(batch)
    state, _ = trial.run(step, state, batch)
    graph = Graph(step, trial, Home(state), state, batch)
    return graph, graph.run(state, arrays_of((batch,), cupy.ndarray), cupy.cuda.get_current_stream())


# Arrays and trees


def twin(array: Any) -> Any:
    """Another array on the same memory, which it holds."""
    return cupy.ndarray(array.shape, array.dtype, array.data, array.strides)


def _twin_or_same(leaf: Any) -> Any:
    return twin(leaf) if isinstance(leaf, cupy.ndarray) else leaf


def _among(given: dict[int, Any], leaf: Any) -> Any:
    """The given array that a leaf is the twin of, or else the leaf."""
    found = given.get(leaf.data.ptr) if isinstance(leaf, cupy.ndarray) else None
    same = found is not None and (found.shape, found.dtype, found.strides) == (leaf.shape, leaf.dtype, leaf.strides)
    return found if same else leaf


def _fresh(leaf: Any) -> Any:
    """A copy of an array, in memory of its own."""
    if not isinstance(leaf, cupy.ndarray):
        return leaf
    made = cupy.ndarray(leaf.shape, leaf.dtype)
    copy(leaf, made)
    return made


def copy(source: Any, target: Any) -> None:
    """Copy on the device, in the order of the stream."""
    if source.nbytes == 0 or source.data.ptr == target.data.ptr:
        return
    if source.flags.c_contiguous and target.flags.c_contiguous:
        stream = cupy.cuda.get_current_stream()
        cupy.cuda.runtime.memcpyAsync(target.data.ptr, source.data.ptr, source.nbytes, _ON_DEVICE, stream.ptr)
    else:
        target[...] = source


_ARRAY = object()
"""Stands for an array in the frame of a tree."""


def _has_frame(frame: Any, tree: Any, arrays: list[Any]) -> bool:
    """True if a tree differs in its arrays alone from the one of this frame; appends the arrays."""
    if frame is _ARRAY:
        arrays.append(tree)
        return isinstance(tree, cupy.ndarray)
    if isinstance(frame, tuple):
        if type(tree) is not type(frame) or len(tree) != len(frame):
            return False
        inside = zip(frame, tree, strict=True)
    elif isinstance(frame, dict):
        if not isinstance(tree, dict) or list(tree) != list(frame):
            return False
        inside = zip(frame.values(), tree.values(), strict=True)
    else:
        return frame is tree or (type(frame) is type(tree) and bool(frame == tree))
    for mine, theirs in inside:
        if mine is _ARRAY and isinstance(theirs, cupy.ndarray):
            arrays.append(theirs)  # most leaves are arrays, and a call takes as long as all the rest
        elif not _has_frame(mine, theirs, arrays):
            return False
    return True


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
        if mine.data.ptr == theirs.data.ptr and theirs.flags.c_contiguous:
            continue
        if theirs.data.ptr in mine_all:
            theirs = theirs.copy()  # it may be overwritten before its turn comes
        copies.append((theirs, mine))
    for theirs, mine in copies:
        copy(cupy.ascontiguousarray(theirs), mine)


def _kept(value: Any, others: list[Any]) -> Any:
    """The value of a step in memory that nothing else uses."""
    pointers = {array.data.ptr for array in others}

    def keep(leaf: Any) -> Any:
        if not isinstance(leaf, cupy.ndarray):
            return leaf
        base = leaf if leaf.base is None else leaf.base
        return leaf.copy() if base.data.ptr in pointers or leaf.base is not None else leaf

    return map_leaves(keep, value)


_collection = threading.Lock()
_without_collection = 0
_collected_before = False


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A block, in any number of threads, without collection of garbage: what dies in a capture may make it invalid."""
    global _without_collection, _collected_before
    with _collection:
        if _without_collection == 0:
            _collected_before = gc.isenabled()
            gc.disable()
        _without_collection += 1
    try:
        yield
    finally:
        with _collection:
            _without_collection -= 1
            if _without_collection == 0 and _collected_before:
                gc.enable()
