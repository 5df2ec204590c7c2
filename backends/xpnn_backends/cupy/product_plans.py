"""Plans of matrix products for cublasLt: one for each kind of product that was met, on each device; see `products`.

cublasLt stores matrices by columns. A row-major product y = a b is the column-major y^T = b^T a^T on the same memory:
what cublasLt calls A is the argument b, and its B is the argument a.
"""

from __future__ import annotations

import functools
import importlib
import threading
import weakref
from typing import Any, NamedTuple

import cupy
import numpy as np

from xpnn.backend import one_line
from xpnn.errors import BackendError

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for its largest GPUs. Fixed, so that the same plan is found each time."""

MOST_PLANS = 4096
"""Kinds of products that one device remembers; the oldest one is forgotten first."""

MOST_BATCHES = 65535
"""Matrices of one call: the grids of CUDA kernels end there."""

_LARGEST_PITCH = 2**31 - 1
"""Bytes from one row to the next: cublasLt before 13.2 reads wrongly where they take more than 31 bits."""

_ALGORITHMS = 4
"""Answers of the heuristic to try, should the first one not run."""

TYPES = {"f": 0, "d": 1, "e": 2, "E": 14}
"""dtype.char -> cudaDataType; "E" is ml_dtypes' bfloat16."""


class Activation(NamedTuple):
    """How cublasLt applies an activation f, and takes a gradient through it.

    It keeps for that an auxiliary matrix, which the forward epilogue writes and the backward one reads. Its rows have
    as many elements as the result has columns, and then some, so that their number is a multiple of `multiple`.
    """

    forward: str
    backward: str
    multiple: int


ACTIVATIONS = {
    "relu": Activation("RELU_AUX_BIAS", "DRELU_BGRAD", 128),  # its elements are bits
    "gelu_tanh": Activation("GELU_AUX_BIAS", "DGELU_BGRAD", 8),  # its elements are those of z, in the result's dtype
}
"""Op -> the epilogues that compute it."""

_WITH_AUXILIARY = {epilogue: name for name, of in ACTIVATIONS.items() for epilogue in (of.forward, of.backward)}

_NOT_SUPPORTED = 15
"""cublasStatus_t"""

_PER_THREAD_STREAM = 2
"""cudaStreamPerThread: one handle that means another stream in each thread."""


class Library(NamedTuple):
    """The parts of nvmath's bindings that are used, looked up once."""

    lt: Any
    cublas: Any
    error: Any


@functools.cache
def library() -> Library | str:
    """The bindings, or why they cannot be used."""
    remedy = f'pip install "xpnn[cuda{cupy.cuda.runtime.runtimeGetVersion() // 1000}-fast]"'
    try:
        lt = importlib.import_module("nvmath.bindings.cublasLt")
        cublas = importlib.import_module("nvmath.bindings.cublas")
        lt.get_version()  # opens the library
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed; {remedy}"
    except Exception as error:  # whatever the loader of a broken installation raises is the reason
        return f"cublasLt does not load ({one_line(error)}); {remedy}"
    return Library(lt, cublas, lt.cuBLASLtError)


def layout_of(x: Any) -> tuple[bool, int] | None:
    """(whether the last two axes lie by columns, elements from one row, or column, to the next); None: in no order."""
    rows, columns = x.shape[-2:]
    down, across = x.strides[-2:]
    size = x.dtype.itemsize
    if columns == 1 and down == size:
        return True, rows  # one column in one piece: rather a single long column than many short rows
    if columns == 1 or across == size:
        pitch = columns if rows == 1 else down // size
        if pitch >= columns and (rows == 1 or down % size == 0) and readable(pitch, columns, size):
            return False, pitch
    if rows == 1 or down == size:
        pitch = rows if columns == 1 else across // size
        if pitch >= rows and (columns == 1 or across % size == 0) and readable(pitch, rows, size):
            return True, pitch
    return None


def readable(pitch: int, length: int, size: int) -> bool:
    """Whether cublasLt reads rows of `length` elements that are `pitch` elements of `size` bytes apart."""
    return pitch == length or pitch * size <= _LARGEST_PITCH


class Plan:
    """One kind of product, ready to run."""

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_algorithms",
        "_descriptor",
        "_first",
        "_layouts",
        "_library",
        "_lock",
        "_one",
        "_pointer",
        "_zero",
    )

    def __init__(self, library: Library, descriptor: int, layouts: tuple[int, int, int], algorithms: Any, dtype: Any):
        self._library = library
        self._descriptor = descriptor
        self._layouts = layouts
        self._algorithms = algorithms
        self._first = algorithms.ctypes.data  # the address of the algorithm in use; 0 if none is left
        self._one = np.ones(1, dtype)
        self._zero = np.zeros(1, dtype)
        self._pointer = np.zeros(1, np.int64)
        # Asking an array for its address takes longer than all the rest.
        self._addresses = self._one.ctypes.data, self._zero.ctypes.data, self._pointer.ctypes.data
        self._lock = threading.RLock()  # the pointers of the epilogue are part of the descriptor
        weakref.finalize(self, _destroy, library.lt, descriptor, layouts).atexit = False

    def run(
        self, handle: int, places: tuple[int, int, int], bias: int, auxiliary: int, workspace: int, stream: int
    ) -> bool:
        """Start the product on a stream; False if none of the heuristic's algorithms does it.

        `places` are the addresses of a, b and the result; `bias` and `auxiliary` those of what the epilogue has
        besides, or 0.
        """
        if not bias:
            return self._start(handle, places, workspace, stream)
        names = self._library.lt.MatmulDescAttribute
        with self._lock:
            self._point(names.BIAS_POINTER, bias)
            if auxiliary:
                self._point(names.EPILOGUE_AUX_POINTER, auxiliary)
            return self._start(handle, places, workspace, stream)

    def _point(self, attribute: Any, address: int) -> None:
        self._pointer[0] = address
        place, size = self._addresses[2], self._pointer.itemsize
        self._library.lt.matmul_desc_set_attribute(self._descriptor, attribute, place, size)

    def _start(self, handle: int, places: tuple[int, int, int], workspace: int, stream: int) -> bool:
        right, left, result = places
        left_layout, right_layout, layout = self._layouts
        one, zero, _ = self._addresses
        start, descriptor = self._library.lt.matmul, self._descriptor
        while self._first:
            algorithm = self._first
            try:
                start(
                    handle, descriptor, one, left, left_layout, right, right_layout, zero, result, layout,
                    result, layout, algorithm, workspace, WORKSPACE_BYTES, stream,
                )  # fmt: skip
                return True
            except self._library.error as error:
                if error.status != _NOT_SUPPORTED:
                    raise
                self._give_up(algorithm)
        return False

    def _give_up(self, algorithm: int) -> None:
        """Use the heuristic's next algorithm, if another thread has not seen to that."""
        with self._lock:
            if self._first == algorithm:
                self._algorithms = self._algorithms[1:]
                self._first = self._algorithms.ctypes.data if len(self._algorithms) else 0


def _destroy(lt: Any, descriptor: int, layouts: tuple[int, int, int]) -> None:
    lt.matmul_desc_destroy(descriptor)
    for layout in layouts:
        lt.matrix_layout_destroy(layout)


class DeviceProducts:
    """cublasLt on one device: its handle, plans and workspaces."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._handle = library.lt.create()
        self._plans: dict[tuple[Any, ...], Plan | None] = {}
        self._workspaces: dict[tuple[int, int], Any] = {}
        self.trials: dict[tuple[str, str, bool], bool] = {}  # how they ended: see `product_trials`
        self._lock = threading.RLock()

    @property
    def plan_count(self) -> int:
        """How many kinds of products are planned."""
        return len(self._plans)

    def workspace(self, stream: int) -> Any:
        """A stream's workspace. Who uses it holds it: a graph while it lives, others until they have called."""
        key = _stream_key(stream)
        found = self._workspaces.get(key)
        if found is None:
            # From the default pool, whichever is in use here: it must outlive the pool of a graph.
            found = cupy.get_default_memory_pool().malloc(WORKSPACE_BYTES)
            found = self._workspaces.setdefault(key, found)
        return found

    def share_workspace(self, stream: int, other: int) -> Any:
        """Let another stream use the workspace of this one, and give it."""
        found = self._workspaces[_stream_key(other)] = self.workspace(stream)
        return found

    def forget_workspaces(self, kept: set[int]) -> None:
        """Let go of the workspaces of all streams but these; a stream that goes on gets another one."""
        for key in list(self._workspaces):
            if key[0] not in kept:
                self._workspaces.pop(key, None)

    def run(
        self,
        a: Any,
        b: Any,
        y: Any,
        epilogue: str = "DEFAULT",
        bias: int = 0,
        batch: int = 1,
        strides: tuple[int, int, int] = (0, 0, 0),
        *,
        auxiliary: int = 0,
        tf32: bool = False,
    ) -> bool:
        """y = a b; False, with nothing done, if cublasLt has no algorithm for it.

        Args:
            a: (m, k), or the first of the matrices of a batch.
            b: (k, n).
            y: (m, n), in C order.
            epilogue: what happens to y on the way.
            bias: the address of the epilogue's vector.
            batch: how many matrices.
            strides: elements from one matrix to the next, for a, b and y.
            auxiliary: the address of the epilogue's second matrix (see `empty_auxiliary`).
            tf32: whether the factors of float32 products may be rounded to TF32.
        """
        a_layout, b_layout = layout_of(a), layout_of(b)
        if a_layout is None:
            a = cupy.ascontiguousarray(a)
            a_layout = False, a.shape[-1]
        if b_layout is None:
            b = cupy.ascontiguousarray(b)
            b_layout = False, b.shape[-1]
        char, out_char = a.dtype.char, y.dtype.char
        m, k = a.shape[-2:]
        n = b.shape[-1]
        tf32 = tf32 and char == "f"
        stream = cupy.cuda.get_current_stream().ptr
        workspace = self.workspace(stream)  # held until the last product is on its stream
        for first in range(0, batch, MOST_BATCHES):
            count = min(batch - first, MOST_BATCHES)
            places = (
                a.data.ptr + first * strides[0] * a.dtype.itemsize,
                b.data.ptr + first * strides[1] * b.dtype.itemsize,
                y.data.ptr + first * strides[2] * y.dtype.itemsize,
            )
            alignments = (_alignment(places[0]), _alignment(places[1]), _alignment(places[2]))
            key = (char, out_char, tf32, epilogue, m, n, k, a_layout, b_layout, count, strides, alignments)
            plan = self._plans.get(key)
            if plan is None:
                plan = self._find(key)
            if plan is None or not plan.run(self._handle, places, bias, auxiliary, workspace.ptr, stream):
                self._plans[key] = None
                return False
        return True

    def _find(self, key: tuple[Any, ...]) -> Plan | None:
        """The plan for a kind of product that was not met before, or None if there is no algorithm for it."""
        with self._lock:
            if key not in self._plans:
                while len(self._plans) >= MOST_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[key] = self._make(*key)
            return self._plans[key]

    def _make(
        self,
        char: str,
        out_char: str,
        tf32: bool,
        epilogue: str,
        m: int,
        n: int,
        k: int,
        a_layout: tuple[bool, int],
        b_layout: tuple[bool, int],
        batch: int,
        strides: tuple[int, int, int],
        alignments: tuple[int, int, int],
    ) -> Plan | None:
        lt, cublas, error = self._library
        kinds = cublas.ComputeType
        single = kinds.COMPUTE_32F_FAST_TF32 if tf32 else kinds.COMPUTE_32F
        compute = kinds.COMPUTE_64F if char == "d" else single
        scale = "d" if char == "d" else "f"
        descriptor = lt.matmul_desc_create(compute, TYPES[scale])
        attributes, operation = lt.MatmulDescAttribute, cublas.Operation
        # By columns, b^T is what lies in memory where b lies by rows.
        self._describe(descriptor, attributes.TRANSA, operation.T if b_layout[0] else operation.N)
        self._describe(descriptor, attributes.TRANSB, operation.T if a_layout[0] else operation.N)
        self._describe(descriptor, attributes.EPILOGUE, lt.Epilogue[epilogue])
        if epilogue != "DEFAULT":
            # Some address on 16 bytes: the heuristic wants one, and does not read from it.
            self._describe(descriptor, attributes.BIAS_POINTER, 256)
        if epilogue in _WITH_AUXILIARY:
            self._describe(descriptor, attributes.EPILOGUE_AUX_POINTER, 256)
            self._describe(descriptor, attributes.EPILOGUE_AUX_LD, _auxiliary_pitch(_WITH_AUXILIARY[epilogue], n))
        left = self._matrix(char, (k, n) if b_layout[0] else (n, k), b_layout[1], batch, strides[1])
        right = self._matrix(char, (m, k) if a_layout[0] else (k, m), a_layout[1], batch, strides[0])
        result = self._matrix(out_char, (n, m), n, batch, strides[2])
        layouts = left, right, result
        preference = lt.matmul_preference_create()
        try:
            self._prefer(preference, char, (alignments[1], alignments[0], alignments[2], alignments[2]))
            found = self._ask(descriptor, layouts, preference)
        except error:  # "not supported" is how the heuristic says that it knows none
            found = None
        finally:
            lt.matmul_preference_destroy(preference)
        if found is None:
            _destroy(lt, descriptor, layouts)
            return None
        return Plan(self._library, descriptor, layouts, found, np.dtype(scale))

    def _describe(self, descriptor: int, attribute: Any, value: int) -> None:
        lt = self._library.lt
        buffer = np.array([value], lt.get_matmul_desc_attribute_dtype(attribute))
        lt.matmul_desc_set_attribute(descriptor, attribute, buffer.ctypes.data, buffer.itemsize)

    def _matrix(self, char: str, shape: tuple[int, int], pitch: int, batch: int, stride: int) -> int:
        """A layout: columns of `shape[0]` elements, `pitch` elements from one to the next."""
        lt = self._library.lt
        layout = lt.matrix_layout_create(TYPES[char], *shape, pitch)
        if batch > 1:
            names = lt.MatrixLayoutAttribute
            for attribute, value in ((names.BATCH_COUNT, batch), (names.STRIDED_BATCH_OFFSET, stride)):
                buffer = np.array([value], lt.get_matrix_layout_attribute_dtype(attribute))
                lt.matrix_layout_set_attribute(layout, attribute, buffer.ctypes.data, buffer.itemsize)
        return int(layout)

    def _prefer(self, preference: int, char: str, alignments: tuple[int, ...]) -> None:
        """What the algorithm may use: the workspace, the alignment that the pointers have, sums in float32 alone."""
        lt = self._library.lt
        names = lt.MatmulPreferenceAttribute
        wishes = [(names.MAX_WORKSPACE_BYTES, WORKSPACE_BYTES)]
        wishes += zip(
            (
                names.MIN_ALIGNMENT_A_BYTES,
                names.MIN_ALIGNMENT_B_BYTES,
                names.MIN_ALIGNMENT_C_BYTES,
                names.MIN_ALIGNMENT_D_BYTES,
            ),
            alignments,
            strict=True,
        )
        if char in "eE":
            # Where k is cut in pieces, their sums would else be rounded to half precision one by one.
            wishes.append((names.REDUCTION_SCHEME_MASK, lt.ReductionScheme.COMPUTE_TYPE))
        for attribute, value in wishes:
            buffer = np.array([value], lt.get_matmul_preference_attribute_dtype(attribute))
            lt.matmul_preference_set_attribute(preference, attribute, buffer.ctypes.data, buffer.itemsize)

    def _ask(self, descriptor: int, layouts: tuple[int, int, int], preference: int) -> Any | None:
        """The heuristic's algorithms, the best one first; None if it has none."""
        lt = self._library.lt
        left, right, result = layouts
        answers = lt.MatmulHeuristicResult(_ALGORITHMS)
        count = np.zeros(1, np.int32)
        lt.matmul_algo_get_heuristic(
            self._handle, descriptor, left, right, result, result, preference, _ALGORITHMS, answers.ptr,
            count.ctypes.data,
        )  # fmt: skip
        table = np.frombuffer(memoryview(answers), lt.matmul_heuristic_result_dtype)[: int(count[0])]
        table = table[(table["state"] == 0) & (table["workspace_size"] <= WORKSPACE_BYTES)]
        return np.ascontiguousarray(table["algo"]) if len(table) else None


_devices: dict[int, DeviceProducts] = {}
_devices_lock = threading.Lock()


def products_here() -> DeviceProducts:
    """cublasLt on the current device."""
    number = cupy.cuda.runtime.getDevice()
    found = _devices.get(number)
    if found is None:
        loaded = library()
        if isinstance(loaded, str):
            raise BackendError(loaded)
        with _devices_lock:
            found = _devices.get(number)
            if found is None:
                found = _devices[number] = DeviceProducts(loaded)
    return found


def forget_workspaces(kept: set[int]) -> None:
    """Let go of the workspaces on the current device, but for those of these streams."""
    found = _devices.get(cupy.cuda.runtime.getDevice())
    if found is not None:
        found.forget_workspaces(kept)


def empty_auxiliary(activation: str, y: Any) -> Any:
    """Memory for what an activation keeps of the result y, a matrix, as cublasLt lays it out."""
    pitch = _auxiliary_pitch(activation, y.shape[1])
    if activation == "relu":
        return cupy.empty((y.shape[0], pitch // 8), cupy.uint8)
    return cupy.empty((y.shape[0], pitch), y.dtype)


def _auxiliary_pitch(activation: str, columns: int) -> int:
    """Elements from one row of the auxiliary matrix to the next."""
    multiple = ACTIVATIONS[activation].multiple
    return -(-columns // multiple) * multiple


def _stream_key(stream: int) -> tuple[int, int]:
    """What a stream is known by: one name stands for another stream in each thread."""
    return stream, threading.get_ident() if stream == _PER_THREAD_STREAM else 0


def _alignment(address: int) -> int:
    """A power of two that divides the address: few different ones, so that few plans are made."""
    divisor = address & -address
    return 256 if divisor >= 256 else 16 if divisor >= 16 else divisor
