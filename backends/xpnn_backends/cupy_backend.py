"""CuPy: NVIDIA GPUs. Importing CuPy proves nothing: the probe runs a tiny kernel and a tiny matrix product."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np

from xpnn import dispatch
from xpnn.backend import Backend, Memory, one_line
from xpnn.dispatch import Body
from xpnn.errors import BackendError

_EXTRAS = {"cupy-cuda12x": "cuda12", "cupy-cuda13x": "cuda13"}
"""CuPy's package -> the extra of xpnn that brings it together with the CUDA toolkit's libraries."""

PACKAGES = ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-7-0", "cupy")


def installed_packages() -> list[str]:
    """The installed distributions that hold a `cupy`: one is right, two overwrite each other's files."""
    found = []
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            version(name)
            found.append(name)
    return found


def _two_packages(installed: list[str]) -> str | None:
    if len(installed) < 2:
        return None
    return (
        f"two CuPy packages are installed and overwrite each other ({', '.join(installed)}); "
        f"pip uninstall {' '.join(installed)}, then install one of them again"
    )


try:
    import array_api_compat.cupy
    import cupy
except Exception as error:
    # The damage that two packages do shows itself in many ways: name the cause rather than the symptom.
    raise ImportError(_two_packages(installed_packages()) or one_line(error)) from error

from xpnn_backends.cupy import constants, cudnn_graphs, graph, memory, products, streaming  # noqa: E402
from xpnn_backends.cupy.bodies import BODIES  # noqa: E402
from xpnn_backends.recording import RecordedNumber  # noqa: E402


@cache
def _namespace() -> Any:
    """array_api_compat's namespace of CuPy, with what must not wait for the GPU and can be captured in a graph.

    - `sign`: CuPy's sign of NaN is 0. array_api_compat mends that by a boolean mask, and CuPy reads the size of a mask.
    - `matmul`: through cublasLt where it is installed; CuPy's own cannot be captured.
    - `asarray`: small host arrays are kept on the device while a step is made into a graph.
    - `concat` and `stack`: CuPy's one kernel for many arrays takes a list of their places from the host.
    """
    kernel = cupy.ElementwiseKernel("T x", "T y", "y = x > T(0) ? T(1) : x < T(0) ? T(-1) : x", "xpnn_sign")

    def sign(x: Any) -> Any:
        return kernel(x) if x.dtype.kind == "f" else array_api_compat.cupy.sign(x)

    def asarray(x: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Any:
        if isinstance(x, RecordedNumber):
            return x  # it computes as an array without axes does
        if not copy and not isinstance(x, cupy.ndarray):
            found = constants.constant(x, dtype)
            if found is not None:
                return found
        return array_api_compat.cupy.asarray(x, dtype=dtype, device=device, copy=copy)

    def matmul(a: Any, b: Any, /) -> Any:
        return products.matmul(a, b)

    def concat(arrays: Any, /, *, axis: int | None = 0) -> Any:
        if axis is None or not cupy.cuda.get_current_stream().is_capturing():
            return array_api_compat.cupy.concat(arrays, axis=axis)
        return _concatenated(list(arrays), axis)

    def stack(arrays: Any, /, *, axis: int = 0) -> Any:
        if not cupy.cuda.get_current_stream().is_capturing():
            return array_api_compat.cupy.stack(arrays, axis=axis)
        return _concatenated([cupy.expand_dims(x, axis) for x in arrays], axis)

    copy = types.ModuleType(array_api_compat.cupy.__name__, array_api_compat.cupy.__doc__)
    vars(copy).update(
        vars(array_api_compat.cupy), sign=sign, asarray=asarray, matmul=matmul, concat=concat, stack=stack
    )
    return copy


def _concatenated(arrays: list[Any], axis: int) -> Any:
    """The arrays one behind the other, each by a copy of its own."""
    axis = axis % arrays[0].ndim
    shape = list(arrays[0].shape)
    shape[axis] = sum(x.shape[axis] for x in arrays)
    whole = cupy.empty(shape, dtype=cupy.result_type(*arrays))
    start = 0
    for x in arrays:
        stop = start + x.shape[axis]
        whole[(*[slice(None)] * axis, slice(start, stop))] = x
        start = stop
    return whole


def _half_dtypes() -> dict[str, Any]:
    """NumPy itself has no bfloat16: the package ml_dtypes brings it."""
    found = {"float16": np.dtype(np.float16)}
    with contextlib.suppress(ImportError):
        import ml_dtypes

        found["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
    return found


_GRAPH = "graph"
"""The device on which whatever is evaluated runs as a graph."""


class CupyBackend(Backend):
    """CuPy on one NVIDIA GPU: "cupy" is the device that is current when it is first asked for, "cupy:1" the second."""

    name = "cupy"
    array_packages = ("cupy",)
    streams = True
    precisions = ("float32", "tf32", "bfloat16", "float16")
    half_dtypes: ClassVar[Mapping[str, Any]] = _half_dtypes()
    overrides: ClassVar[Mapping[str, Body]] = BODIES

    @classmethod
    def probe(cls) -> str | None:
        return _two_packages(installed_packages()) or _driver_problem(cupy.cuda.runtime) or _computing_problem(cupy)

    @classmethod
    def namespace(cls) -> Any:
        return _namespace()

    @classmethod
    def devices(cls) -> list[str]:
        return [*(str(index) for index in range(cupy.cuda.runtime.getDeviceCount())), _GRAPH]

    @classmethod
    def notices(cls) -> list[str]:
        missing = {"steps run call by call": products.why_not(), "no cuDNN": cudnn_graphs.why_not()}
        return [f"{what}: {reason}" for what, reason in missing.items() if reason is not None]

    @classmethod
    def describe_device(cls, name: str) -> str:
        if name == _GRAPH:
            return "everything captured and replayed as a graph on the current GPU, for tests"
        properties = cupy.cuda.runtime.getDeviceProperties(int(name))
        return str(properties["name"].decode())

    @classmethod
    def device_label(cls, device: Any) -> str:
        return str(device.id)

    def parse_device(self, name: str) -> Any:
        if name in ("", _GRAPH):
            return cupy.cuda.Device()
        if name not in self.devices():
            raise BackendError(f"backend 'cupy' has no device {name!r}; it has: {', '.join(self.devices())}")
        return cupy.cuda.Device(int(name))

    @classmethod
    def device_memory(cls, name: str) -> Memory | None:
        if name == _GRAPH:
            return None
        with cupy.cuda.Device(int(name)) if name else contextlib.nullcontext():
            return memory.read()

    def memory(self) -> Memory | None:
        with self.context():
            return memory.read()

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return memory.Guard(self.device.id)

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        wanted = None if dtype is None else self.dtype(dtype)
        # CuPy ignores `device=` in creation functions: the current device is what counts.
        with self.context():
            if isinstance(x, np.ndarray):
                return memory.guarded(lambda: streaming.upload(x, x.dtype if wanted is None else wanted))
            return cupy.asarray(x, dtype=wanted)

    def keeps(self, byte_count: int) -> bool:
        with self.context():
            return memory.keeps(byte_count)

    def batches(
        self, arrays: Sequence[Any], dtypes: Sequence[str], size: int, order: Any | None = None
    ) -> Generator[tuple[Any, ...]]:
        return streaming.batches(self.context, arrays, dtypes, size, order)

    def dtype(self, name: str) -> Any:
        if name == "bfloat16" and name not in self.half_dtypes:
            raise BackendError("CuPy has bfloat16 where the package ml_dtypes is installed; pip install ml_dtypes")
        return super().dtype(name)

    def computing(self, precision: str) -> contextlib.AbstractContextManager[Any]:
        return products.computing("tf32" if precision == "tf32" else "float32")

    def to_host(self, x: Any) -> Any:
        return cupy.asnumpy(x)

    def copy(self, x: Any) -> Any:
        with self.context():
            return memory.guarded(lambda: cupy.array(x, copy=True))

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, captured as a CUDA graph at its second call; see `xpnn_backends.cupy.graph`."""
        if not dispatch.overrides_active():
            return self._as_it_is(step)
        return graph.CompiledStep(step, self.context)

    def _as_it_is(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(state: Any, batch: Any) -> Any:
            with self.context():
                return step(state, batch)

        return run

    def evaluate(self, function: Callable[..., tuple[Any, Any]], *arrays: Any) -> tuple[Any, Any]:
        if self.device_name != _GRAPH:
            return function(*arrays)
        with self.context():
            return graph.evaluate_captured(function, arrays)

    def synchronize(self) -> None:
        with self.context():
            cupy.cuda.get_current_stream().synchronize()


def _driver_problem(runtime: Any) -> str | None:
    """Why no GPU can be reached, or None. `cupy.cuda.is_available()` knows whether, and not why."""
    try:
        driver = runtime.driverGetVersion()
    except Exception as error:  # whatever the runtime raises is the reason
        return f"the NVIDIA driver does not answer: {one_line(error)}; see what `nvidia-smi` says"
    if driver == 0:
        return 'no NVIDIA driver is installed; install one (`nvidia-smi` then lists the GPU), or use backend="numpy"'
    try:
        wanted = runtime.runtimeGetVersion()
    except Exception as error:
        return f"the CUDA runtime does not load: {one_line(error)}; {_toolkit_remedy()}"
    if driver // 1000 < wanted // 1000:
        return _old_driver(driver, wanted)
    try:
        count = runtime.getDeviceCount()
    except Exception as error:
        if "InsufficientDriver" in str(error):
            return _old_driver(driver, wanted)
        if "NoDevice" not in str(error):
            return f"the NVIDIA driver does not answer: {one_line(error)}; see what `nvidia-smi` says"
        count = 0
    if count == 0:
        return (
            "there is a driver and no GPU that it may use; see what `nvidia-smi` lists, and whether "
            "CUDA_VISIBLE_DEVICES hides it"
        )
    return None


def _old_driver(driver: int, wanted: int) -> str:
    installed = next(iter(installed_packages()), "cupy")
    extra = _EXTRAS.get(f"cupy-cuda{driver // 1000}x")
    instead = f', or pip uninstall {installed} and pip install "xpnn[{extra}]"' if extra and driver < wanted else ""
    return (
        f"the NVIDIA driver is too old: it supports CUDA {_cuda(driver)}, this CuPy needs {_cuda(wanted)}; update the "
        f"driver{instead}"
    )


def _toolkit_remedy() -> str:
    """What brings the libraries that CuPy loads when it needs them: NVRTC, CUDA's headers, cuBLAS."""
    package = next((name for name in installed_packages() if name != "cupy"), "cupy-cuda12x")
    extra = _EXTRAS.get(package)
    choice = f'"xpnn[{extra}]" (or "{package}[ctk]")' if extra else f'"{package}[ctk]"'
    return f"pip install {choice} brings the CUDA toolkit's libraries"


def _cuda(number: int) -> str:
    """12090 -> "12.9"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _computing_problem(library: Any) -> str | None:
    """Why a kernel or a matrix product does not run on the GPU, or None."""
    try:
        ones = library.ones((2, 2), dtype=library.float32)
        total = float((ones + ones).sum())
    except Exception as error:  # whatever the driver, NVRTC or the loader raises is the reason
        return f"a kernel does not run: {one_line(error)}; {_kernel_remedy(error)}"
    try:
        product = float((ones @ ones).sum())
    except Exception as error:  # a missing cuBLAS is an ImportError, a broken one a CUBLASError
        remedy = _FULL if _is_memory_error(error) else _toolkit_remedy()
        return f"a matrix product does not run: {one_line(error)}; {remedy}"
    if (total, product) != (8.0, 8.0):
        return (
            f"the GPU computes wrongly: sums of 2 x 2 ones gave {total} and {product} instead of 8 and 8; "
            "see what `nvidia-smi` says"
        )
    return None


_FULL = "the GPU's memory is full: see which processes `nvidia-smi` lists"


def _is_memory_error(error: Exception) -> bool:
    """True where the device has no room; an illegal address is an error of another kind."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "alloc_failed" in text


def _kernel_remedy(error: Exception) -> str:
    text = str(error).lower()
    if _is_memory_error(error):
        return _FULL
    if "no kernel image" in text or "no_binary_for_gpu" in text or "invalid value for --gpu-architecture" in text:
        return "this CuPy has no code for this GPU: install the CuPy that fits it, see https://docs.cupy.dev"
    if "unsupportedptx" in text or "unsupported_ptx" in text or "insufficientdriver" in text:
        return "the NVIDIA driver is older than CUDA's compiler: update the driver"
    if isinstance(error, ImportError) or "nvrtc" in text or "cannot open source file" in text or ".so" in text:
        return _toolkit_remedy()
    return "the GPU or its driver is in a bad state, or busy in exclusive mode; see what `nvidia-smi` says"
