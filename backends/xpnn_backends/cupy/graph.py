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

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cupy

from xpnn.backend import one_line
from xpnn.dispatch import OPS
from xpnn_backends.cupy import memory, products
from xpnn_backends.cupy.captures import (
    CaptureError,
    Graph,
    Home,
    Place,
    Trial,
    place_of,
    run_as_graph,
    state_signature,
)
from xpnn_backends.recording import RecordingError
from xpnn_backends.trees import arrays_of, map_leaves, signature, step_field

_LOG = logging.getLogger("xpnn")

MOST_GRAPHS = 16
"""Sets of shapes of a batch for which one step keeps a graph."""

_MOST_TRIALS = 256
"""Sets of shapes that one step remembers, captured or not."""

_MOST_HOMES = 2
"""States that may take turns in one step without being copied, or captured, again and again."""

_CHUNKS_AHEAD = 2
"""How many calls of `many` may be under way: one that the device works at, and the next one."""


class _Key(NamedTuple):
    """What two calls have in common that one graph can run for: the place, and the signatures of state and batch."""

    place: Place
    state: Any
    batch: Any


class CompiledStep:
    """step(state, batch) -> (new state, value), as graphs.

    The step must be as `Backend.compile` wants it: a pure function of trees (tuples and dicts) of arrays, in which the
    new state has the shapes of the old one. The arrays of the state are overwritten.

    Any number of threads may call it, one at a time. A call runs on CuPy's current stream; graphs of two streams have
    nothing in common, and a caller who changes streams orders them, as with all of CuPy.

    Attributes:
        why_not: why the step runs call by call; None if it does not, or was not yet called twice with the same shapes.
    """

    def __init__(self, step: Callable[..., Any], context: Callable[[], Any]) -> None:
        self._step = step
        self._context = context
        self._trials: dict[_Key, Trial | str] = {}  # a str says why there can be no graph
        self._homes: list[tuple[Place, Home]] = []
        self._last: Graph | None = None
        self._lock = threading.RLock()
        self._captured = False
        self._under_way: deque[Any] = deque()
        self.why_not: str | None = None
        memory.on_pressure(self._forget)

    @property
    def how(self) -> str:
        """How the step runs, for people."""
        if self.why_not is not None:
            return f"call by call: {self.why_not}"
        return "a CUDA graph" if self._captured else "a CUDA graph, from the second step of each shape on"

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """(new state, value)."""
        with self._context(), self._lock:
            stream = cupy.cuda.get_current_stream()
            found = self._ready(self._last, state, batch, stream) or self._find(state, batch, stream)
            if found is None:
                self._last = None
                return self._first(state, batch)
            graph, taken, arrays = found
            self._last = graph
            return graph.run(taken, arrays, stream)

    def many(self, state: Any, data: tuple[Any, ...], rows: Any, size: int) -> Any:
        """The state after one step for each `size` of the rows, on the batches (*data, those rows).

        The same as a loop over calls, with less of Python in it. It returns when the device has done all but the last
        calls of this kind, so that who calls it again and again knows how long it takes.
        """
        times = rows.shape[0] // size
        for number in range(times):
            batch = (*data, rows[number * size : (number + 1) * size])
            with self._context(), self._lock:
                stream = cupy.cuda.get_current_stream()
                graph = self._last
                found = self._ready(graph, state, batch, stream) if graph is not None and graph.stages_last else None
                if found is not None:
                    graph, taken, arrays = found
                    state = graph.run_many(taken, arrays, rows[number * size : times * size], size, stream)
                    self._wait(stream)
                    return state
            state, _ = self(state, batch)
        return state

    def _wait(self, stream: Any) -> None:
        """Wait until no more than so many calls of `many` are under way."""
        if len(self._under_way) == _CHUNKS_AHEAD - 1:
            self._under_way.popleft().synchronize()
        done = cupy.cuda.Event(block=True, disable_timing=True)
        done.record(stream)
        self._under_way.append(done)

    def release(self) -> None:
        """Let go of the caller's arrays, which may be large. The graphs stay, for arrays like these."""
        with self._lock:
            self._under_way.clear()
            for trial in self._trials.values():
                if isinstance(trial, Trial):
                    trial.release()

    def _forget(self) -> None:
        """Let go of the graphs and their memory; where another thread is at work here, it makes new ones."""
        self._last = None
        homes, self._homes = self._homes, []
        for _, home in homes:
            home.graphs.clear()  # they hold it too: without this, only a collection of garbage would free them
        self._trials = {key: known for key, known in list(self._trials.items()) if isinstance(known, str)}

    def __del__(self) -> None:
        self._forget()

    def _ready(self, graph: Graph | None, state: Any, batch: Any, stream: Any) -> tuple[Graph, Any, list[Any]] | None:
        """(graph, state that its home has taken, arrays of the batch), if this graph can run with them."""
        if graph is None or graph.place != place_of(stream):
            return None
        arrays = graph.follows(batch)
        if arrays is None:
            return None
        taken = graph.home.take(state)
        return None if taken is None else (graph, taken, arrays)

    def _find(self, state: Any, batch: Any, stream: Any) -> tuple[Graph, Any, list[Any]] | None:
        """The same for the graph of these shapes, captured if it is time; None if the step is to run as it is."""
        reason = self._refusal(state, batch)
        if reason is not None:
            self._say(reason)
            return None
        key = self._key(state, batch, stream)
        trial = self._trials.get(key)
        if not isinstance(trial, Trial):
            return None
        home, taken = self._home(key, state)
        graph = home.graphs.get(key.batch)
        arrays = None if graph is None else graph.follows(batch)
        if graph is None and len(home.graphs) >= MOST_GRAPHS and trial.waited < MOST_GRAPHS:
            trial.waited += 1  # with one graph too few for all shapes, each of them would be captured again and again
            return None
        if graph is None or arrays is None:
            try:
                graph = memory.guarded(lambda: Graph(self._step, trial, home, taken, batch))
            except Exception as error:
                self._give_up(key, error)
                return None
            arrays, trial.waited = arrays_of((batch,), cupy.ndarray), 0
        home.graphs.pop(key.batch, None)
        home.graphs[key.batch] = graph  # behind all others
        if len(home.graphs) > MOST_GRAPHS:
            home.graphs.pop(next(iter(home.graphs)))
        # Once more, because a capture for which memory was made has let go of everything here.
        self._keep(key.place, home, taken)
        self._trials[key], self._captured = trial, True
        return graph, taken, arrays

    def _home(self, key: _Key, state: Any) -> tuple[Home, Any]:
        """(the home for a state, what that has taken); a new one if none can take it."""
        alike = [home for place, home in self._homes if place == key.place and home.signature == key.state]
        for home in sorted(alike, key=lambda home: home.in_common(state), reverse=True):
            taken = home.take(state)
            if taken is not None:
                break
        else:
            home, taken = Home(state), state
        self._keep(key.place, home, taken)
        return home, taken

    def _keep(self, place: Place, home: Home, state: Any) -> None:
        """Remember a home that has taken a state, and the last one before it."""
        # Of two that share arrays, the older one is of no use any more, and would seem to hold them.
        before = self._homes
        others = [known for known in before if known[1] is not home and not known[1].in_common(state)]
        self._homes = [*others[1 - _MOST_HOMES :], (place, home)]
        for known in before:
            if known not in self._homes:
                known[1].graphs.clear()

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
        if state_signature(state) is None or signature((batch,), cupy.ndarray) is None:
            return "the state or the batch holds something that is no array and has no hash"
        return None

    def _key(self, state: Any, batch: Any, stream: Any) -> _Key:
        return _Key(place_of(stream), state_signature(state), signature((batch,), cupy.ndarray))

    def _first(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Run the step as it is; where a graph is to be made of it, find out which numbers it needs."""
        trials, field = self._trials, step_field(state)
        key = None if self._refusal(state, batch) else self._key(state, batch, cupy.cuda.get_current_stream())
        if key is None or key in trials or (field is not None and type(state[field]) is not int):
            return self._as_it_is(state, batch)
        trial = Trial(batch)
        result = None
        try:
            result = trial.run(self._step, state, batch)
        except Exception as error:
            self._give_up(key, error)
        if result is None:
            # Out of the handler, so that the arrays which the error remembers are gone. If the step itself is wrong,
            # this says it best.
            return self._as_it_is(state, batch)
        if len(trials) >= _MOST_TRIALS:
            trials.pop(next(iter(trials)))
        trials[key] = trial
        return result

    def _as_it_is(self, state: Any, batch: Any) -> tuple[Any, Any]:
        arrays = arrays_of((batch,), cupy.ndarray)
        # The last array of a batch has its length: where the first ones are the whole data, it says which rows to take.
        samples = arrays[-1].shape[0] if arrays and arrays[-1].ndim else None
        retry = memory.nothing_donated_since()
        return memory.guarded(lambda: self._step(state, batch), samples=samples, may_retry=retry)  # type: ignore[no-any-return]

    def _give_up(self, key: _Key, error: Exception) -> None:
        """Let steps of these shapes run as they are from now on."""
        reason = self._trials[key] = _reason(error)
        self._say(reason)

    def _say(self, reason: str) -> None:
        if reason != self.why_not:
            self.why_not = reason
            _LOG.info("a step runs call by call, because it cannot be captured: %s", reason)


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

        _, (_, values) = run_as_graph(step, (), given)
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
