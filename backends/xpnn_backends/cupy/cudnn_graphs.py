"""cuDNN through `nvidia-cudnn-frontend`, on CuPy's arrays: the library, its handles, and one plan for each graph.

Nothing is imported before the first body asks, and what is missing is no error: `plan` then gives None, and the body
goes on without cuDNN. So it does where cuDNN has no engine for a graph, which is tried once and remembered.

A plan is made when it is first wanted, in 0.2 to 5 seconds, so in the warm-up and not while a graph is captured. After
that, a call only puts kernels on CuPy's current stream. Its workspace comes from CuPy's pool and goes back at once:
the pool gives it to nobody but later work on the same stream.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from typing import Any

import cupy
import numpy as np

from xpnn.backend import one_line
from xpnn_backends.cupy import products
from xpnn_backends.cupy.cudnn_definitions import Definition, build

_LOG = logging.getLogger("xpnn")

_OLDEST = 90000
"""cuDNN 9.0."""

ALIGNMENT = 16
"""bytes: what cuDNN assumes of every pointer."""


def why_not() -> str | None:
    """None if cuDNN can be used here, else the reason and what mends it. Imports the library."""
    found = _library()
    return found if isinstance(found, str) else None


@functools.cache
def _library() -> Any | str:
    """The module `cudnn`, or why it cannot be used."""
    remedy = f'pip install "xpnn[cuda{cupy.cuda.runtime.runtimeGetVersion() // 1000}-fast]"'
    try:
        # cuDNN compiles kernels with NVRTC. Loaded once, however CuPy found it, it is found again by its name.
        cupy.cuda.nvrtc.getVersion()
        cudnn = importlib.import_module("cudnn")
        version = cudnn.backend_version()
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed; {remedy}"
    except Exception as error:  # whatever the loader of a broken installation raises is the reason
        return f"cuDNN does not load ({one_line(error)}); {remedy}"
    if version < _OLDEST:
        return f"cuDNN is too old ({version}, 9.0 is needed); {remedy}"
    return cudnn


class _State(threading.local):
    """A handle knows one stream: each thread has its own."""

    def __init__(self) -> None:
        self.handles: dict[int, Any] = {}
        self.streams: dict[int, int] = {}


_state = _State()
_plans: dict[tuple[int, Definition], Plan | None] = {}
"""(device, definition) -> its plan, or None where there is none. For good: a graph may hold kernels of any of them."""
_planning = threading.Lock()


def _handle(cudnn: Any, device: int) -> Any:
    """This thread's handle of a device, on CuPy's current stream."""
    handle = _state.handles.get(device)
    if handle is None:
        handle = _state.handles[device] = cudnn.create_handle()
    stream = cupy.cuda.get_current_stream().ptr
    if _state.streams.get(device) != stream:
        cudnn.set_stream(handle, stream)
        _state.streams[device] = stream
    return handle


def prepare() -> None:
    """Give this thread a handle on the current stream, before a capture begins on it: nobody must ask for one then."""
    if _plans:
        _handle(_library(), cupy.cuda.runtime.getDevice())


class Plan:
    """A graph that can be run on the arrays of the current device."""

    def __init__(self, cudnn: Any, definition: Definition, device: int) -> None:
        self.definition = definition
        self._cudnn = cudnn
        self._device = device
        # What the library keeps of a graph between two calls, it keeps in the graph.
        self._running = threading.Lock()
        self._graph = build(cudnn, definition, handle=_handle(cudnn, device))
        self._workspace = int(self._graph.get_workspace_size())

    def run(self, *arrays: Any) -> None:
        """Put the graph on the current stream.

        Args:
            arrays: all that the definition lists, in its order, results included: arrays of the device whose memory
                is laid out as the definition says and starts on a multiple of 16 bytes, or Python's float for a
                number of the host.
        """
        numbers = []
        pointers = {}
        for uid, array in enumerate(arrays, start=1):
            if isinstance(array, float):
                numbers.append(np.full(1, array, dtype=np.float32))
                pointers[uid] = numbers[-1].ctypes.data
            else:
                pointers[uid] = array.data.ptr
        workspace = cupy.empty(max(self._workspace, 1), dtype=cupy.uint8)
        handle = _handle(self._cudnn, self._device)
        with self._running:
            self._graph.execute(pointers, workspace.data.ptr, handle=handle)


def plan(definition: Definition) -> Plan | None:
    """The plan of a graph on the current device; None if there is no cuDNN, or none of its engines can do that."""
    cudnn = _library()
    if isinstance(cudnn, str):
        return None
    device = cupy.cuda.runtime.getDevice()
    key = (device, definition)
    if key not in _plans:
        with _planning:
            if key not in _plans:
                _plans[key] = _new_plan(cudnn, definition, device)
    return _plans[key]


def _new_plan(cudnn: Any, definition: Definition, device: int) -> Plan | None:
    try:
        return Plan(cudnn, definition, device)
    except Exception as error:  # cuDNN's reasons come as several types of exceptions
        _LOG.info("cuDNN has no plan for %s, which runs without it: %s", definition, one_line(error))
        return None


def uses_tensor_cores(dtype: str) -> bool:
    """Whether products of this dtype may use tensor cores: those of float32 only where TF32 was asked for."""
    return dtype != "float32" or products.precision() == "tf32"


def ready(x: Any) -> Any:
    """x in C order and where cuDNN wants it to start: itself, or a copy."""
    if x.flags.c_contiguous and x.data.ptr % ALIGNMENT == 0:
        return x
    return cupy.array(x, order="C", copy=True)
