"""CuPy: NVIDIA GPUs. Importing CuPy proves nothing: the probe runs a tiny kernel and a tiny matrix product."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from xpnn.backend import Backend, one_line
from xpnn.dispatch import Body
from xpnn.errors import BackendError
from xpnn.ops.embedding import check_scatter

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
    import cupyx.scipy.special
except Exception as error:
    # The damage that two packages do shows itself in many ways: name the cause rather than the symptom.
    raise ImportError(_two_packages(installed_packages()) or one_line(error)) from error


def _scatter_add(values: Any, indices: Any, length: int) -> tuple[Any, Any]:
    """By atomic additions: the order of equal indices, and with it the last bit, may differ from run to run."""
    check_scatter(values, indices)
    features = values.shape[-1]
    total = cupy.zeros((length, features), dtype=values.dtype)
    cupy.add.at(total, indices.ravel(), values.reshape(indices.size, features))

    def vjp(dy: Any) -> tuple[Any, None]:
        return cupy.take(dy, indices, axis=0), None

    return total, vjp


def _erf(x: Any) -> tuple[Any, Any]:
    def vjp(dy: Any) -> tuple[Any]:
        return (dy * (cupy.exp(-x * x) * (2.0 / math.sqrt(math.pi))),)

    return cupyx.scipy.special.erf(x), vjp


def _normal_cdf(x: Any) -> tuple[Any, Any]:
    def vjp(dy: Any) -> tuple[Any]:
        return (dy * (cupy.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))),)

    return cupyx.scipy.special.ndtr(x), vjp


@cache
def _namespace() -> Any:
    """array_api_compat's namespace of CuPy, with a `sign` that does not wait for the GPU.

    CuPy's sign of NaN is 0. array_api_compat mends that by a boolean mask, and CuPy reads the size of a mask.
    """
    kernel = cupy.ElementwiseKernel("T x", "T y", "y = x > T(0) ? T(1) : x < T(0) ? T(-1) : x", "xpnn_sign")

    def sign(x: Any) -> Any:
        return kernel(x) if x.dtype.kind == "f" else array_api_compat.cupy.sign(x)

    copy = types.ModuleType(array_api_compat.cupy.__name__, array_api_compat.cupy.__doc__)
    vars(copy).update(vars(array_api_compat.cupy), sign=sign)
    return copy


class CupyBackend(Backend):
    """CuPy on one NVIDIA GPU: "cupy" is the device that is current when it is first asked for, "cupy:1" the second."""

    name = "cupy"
    array_packages = ("cupy",)
    overrides: ClassVar[Mapping[str, Body]] = {
        "erf": _erf,
        "normal_cdf": _normal_cdf,
        "scatter_add": _scatter_add,
    }

    @classmethod
    def probe(cls) -> str | None:
        return _two_packages(installed_packages()) or _driver_problem(cupy.cuda.runtime) or _computing_problem(cupy)

    @classmethod
    def namespace(cls) -> Any:
        return _namespace()

    @classmethod
    def devices(cls) -> list[str]:
        return [str(index) for index in range(cupy.cuda.runtime.getDeviceCount())]

    @classmethod
    def describe_device(cls, name: str) -> str:
        properties = cupy.cuda.runtime.getDeviceProperties(int(name))
        return str(properties["name"].decode())

    @classmethod
    def device_label(cls, device: Any) -> str:
        return str(device.id)

    def parse_device(self, name: str) -> Any:
        if not name:
            return cupy.cuda.Device()
        if name not in self.devices():
            raise BackendError(f"backend 'cupy' has no device {name!r}; it has: {', '.join(self.devices())}")
        return cupy.cuda.Device(int(name))

    def context(self) -> contextlib.AbstractContextManager[Any]:
        # A Device object counts its own entries: a fresh one for each block can be used by any thread.
        block: contextlib.AbstractContextManager[Any] = cupy.cuda.Device(self.device.id)
        return block

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        # CuPy ignores `device=` in creation functions: the current device is what counts.
        with self.context():
            return cupy.asarray(x, dtype=None if dtype is None else self.dtype(dtype))

    def to_host(self, x: Any) -> Any:
        return cupy.asnumpy(x)

    def copy(self, x: Any) -> Any:
        with self.context():
            return cupy.array(x, copy=True)

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(state: Any, batch: Any) -> Any:
            with self.context():
                return step(state, batch)

        return run

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
    wanted = runtime.runtimeGetVersion()
    if driver // 1000 < wanted // 1000:
        return (
            f"the NVIDIA driver is too old: it supports CUDA {_cuda(driver)}, this CuPy needs {wanted // 1000}; update "
            f"the driver, or install cupy-cuda{driver // 1000}x instead"
        )
    try:
        count = runtime.getDeviceCount()
    except Exception as error:
        if "NoDevice" in str(error):
            count = 0
        else:
            return f"the NVIDIA driver does not answer: {one_line(error)}; see what `nvidia-smi` says"
    if count == 0:
        return (
            "there is a driver and no GPU that it may use; see what `nvidia-smi` lists, and whether "
            "CUDA_VISIBLE_DEVICES hides it"
        )
    return None


def _cuda(number: int) -> str:
    """12090 -> "12.9"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _computing_problem(library: Any) -> str | None:
    """Why a kernel or a matrix product does not run on the GPU, or None."""
    package = next((name for name in installed_packages() if name != "cupy"), "cupy-cuda12x")
    remedy = f'pip install "{package}[ctk]" brings the CUDA toolkit\'s libraries'
    try:
        ones = library.ones((2, 2), dtype=library.float32)
        total = float((ones + ones).sum())
    except Exception as error:  # whatever the driver, NVRTC or the loader raises is the reason
        return f"a kernel does not run: {one_line(error)}; {_kernel_remedy(error, remedy)}"
    try:
        product = float((ones @ ones).sum())
    except Exception as error:  # a missing cuBLAS is an ImportError, a broken one a CUBLASError
        return f"a matrix product does not run: {one_line(error)}; {remedy}"
    if (total, product) != (8.0, 8.0):
        return (
            f"the GPU computes wrongly: sums of 2 x 2 ones gave {total} and {product} instead of 8 and 8; "
            "see what `nvidia-smi` says"
        )
    return None


def _kernel_remedy(error: Exception, toolkit: str) -> str:
    text = str(error).lower()
    if "memory" in text:
        return "the GPU's memory is full: see which processes `nvidia-smi` lists"
    if isinstance(error, ImportError) or "nvrtc" in text or "cannot open source file" in text or ".so" in text:
        return toolkit
    return "see what `nvidia-smi` says"
