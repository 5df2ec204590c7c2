"""What the CuPy backend says on a machine where CuPy cannot compute; a fake CuPy stands for each such machine."""

import importlib
import sys
import types

import array_api_compat
import pytest

import xpnn.backend as selector
import xpnn_backends


class CudaRuntimeError(RuntimeError):
    """As CuPy's runtime raises it."""


class FakeRuntime:
    """A CUDA runtime of version 12.9."""

    def __init__(self, driver=13000, devices=1, error=None, driver_error=None, runtime_error=None, version=12090):
        self.driver = driver
        self.devices = devices
        self.error = error
        self.driver_error = driver_error
        self.runtime_error = runtime_error
        self.version = version

    def driverGetVersion(self):  # noqa: N802
        if self.driver_error is not None:
            raise self.driver_error
        return self.driver

    def runtimeGetVersion(self):  # noqa: N802
        if self.runtime_error is not None:
            raise self.runtime_error
        return self.version

    def getDeviceCount(self):  # noqa: N802
        if self.error is not None:
            raise self.error
        return self.devices

    def getDeviceProperties(self, index):  # noqa: N802
        return {"name": b"Imaginary GPU %d" % index}


class FakeArray:
    """2 x 2 ones, or their sum: just what the probe touches."""

    def __init__(self, value, sum_error=None, product_error=None):
        self.value = value
        self.sum_error = sum_error
        self.product_error = product_error

    def __add__(self, other):
        if self.sum_error is not None:
            raise self.sum_error
        return FakeArray(self.value + other.value)

    def __matmul__(self, other):
        if self.product_error is not None:
            raise self.product_error
        return FakeArray(2.0 * self.value * other.value)

    def sum(self):
        return 4.0 * self.value


class FakeDevice:
    """The first GPU, or the one of that number."""

    def __init__(self, number=0):
        self.id = number

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def modules_of_the_backend():
    return {name: module for name, module in sys.modules.items() if name.startswith("xpnn_backends.cupy")}


@pytest.fixture
def fresh_modules():
    """A test in which the backend's modules are imported anew; those that were there are there again afterwards."""
    before, attributes = modules_of_the_backend(), dict(vars(xpnn_backends))
    for name in before:
        del sys.modules[name]
    yield
    for name in modules_of_the_backend():
        del sys.modules[name]
    sys.modules.update(before)
    vars(xpnn_backends).update(attributes)


@pytest.fixture
def load(monkeypatch, fresh_modules):
    """A function that imports the backend over a fake CuPy and gives the module."""

    def build(runtime=None, one=1.0, installed=("cupy-cuda12x",), import_error=None, **errors):
        cupy = types.ModuleType("cupy")
        cupy.cuda = types.SimpleNamespace(runtime=runtime or FakeRuntime(), Device=FakeDevice)
        cupy.float32 = "float32"
        cupy.ones = lambda shape, dtype: FakeArray(one, **errors)
        compat = types.ModuleType("array_api_compat.cupy")
        monkeypatch.setitem(sys.modules, "cupy", None if import_error else cupy)
        for name in ("cupyx", "cupyx.scipy", "cupyx.scipy.special"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "array_api_compat.cupy", compat)
        monkeypatch.setattr(array_api_compat, "cupy", compat, raising=False)

        def version(name):
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return "14.2.0"

        monkeypatch.setattr("importlib.metadata.version", version)
        return importlib.import_module("xpnn_backends.cupy_backend")

    return build


def test_usable(load):
    backend_class = load().CupyBackend
    assert backend_class.probe() is None
    assert backend_class.devices() == ["0", "graph"]
    assert backend_class.describe_device("0") == "Imaginary GPU 0"


@pytest.mark.parametrize(
    ("setup", "reason", "remedy"),
    [
        (
            {"installed": ("cupy-cuda12x", "cupy-cuda13x")},
            "two CuPy packages are installed and overwrite each other (cupy-cuda12x, cupy-cuda13x)",
            "pip uninstall cupy-cuda12x cupy-cuda13x, then install one",
        ),
        ({"runtime": FakeRuntime(driver=0)}, "no NVIDIA driver is installed", "install one"),
        (
            {"runtime": FakeRuntime(driver=11040)},
            "the NVIDIA driver is too old: it supports CUDA 11.4, this CuPy needs 12.9",
            "; update the driver",
        ),
        (
            {"runtime": FakeRuntime(driver=12040, version=13020), "installed": ("cupy-cuda13x",)},
            "the NVIDIA driver is too old: it supports CUDA 12.4, this CuPy needs 13.2",
            'update the driver, or pip uninstall cupy-cuda13x and pip install "xpnn[cuda12]"',
        ),
        (
            {"runtime": FakeRuntime(driver=12040, error=CudaRuntimeError("cudaErrorInsufficientDriver: CUDA driver"))},
            "the NVIDIA driver is too old: it supports CUDA 12.4, this CuPy needs 12.9",
            "update the driver",
        ),
        (
            {"runtime": FakeRuntime(driver_error=CudaRuntimeError("cudaErrorUnknown: unknown error"))},
            "the NVIDIA driver does not answer: CudaRuntimeError: cudaErrorUnknown",
            "nvidia-smi",
        ),
        (
            {"runtime": FakeRuntime(runtime_error=RuntimeError("libcudart.so.12: cannot open shared object file"))},
            "the CUDA runtime does not load: RuntimeError: libcudart.so.12",
            'pip install "xpnn[cuda12]" (or "cupy-cuda12x[ctk]")',
        ),
        ({"runtime": FakeRuntime(devices=0)}, "a driver and no GPU", "CUDA_VISIBLE_DEVICES"),
        (
            {"runtime": FakeRuntime(error=CudaRuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"))},
            "a driver and no GPU",
            "CUDA_VISIBLE_DEVICES",
        ),
        (
            {"runtime": FakeRuntime(error=CudaRuntimeError("cudaErrorSystemNotReady: system\nnot yet initialized"))},
            "the NVIDIA driver does not answer: CudaRuntimeError: cudaErrorSystemNotReady: system not yet initialized",
            "nvidia-smi",
        ),
        (
            {"sum_error": ImportError("libnvrtc.so.12: cannot open shared object file")},
            "a kernel does not run: ImportError: libnvrtc.so.12",
            'pip install "xpnn[cuda12]" (or "cupy-cuda12x[ctk]")',
        ),
        (
            {"sum_error": RuntimeError("cannot open source file cuda_fp16.h"), "installed": ("cupy",)},
            "a kernel does not run: RuntimeError: cannot open source file cuda_fp16.h",
            'pip install "xpnn[cuda12]"',
        ),
        (
            {"sum_error": CudaRuntimeError("cudaErrorLaunchFailure: unspecified launch failure")},
            "a kernel does not run: CudaRuntimeError: cudaErrorLaunchFailure",
            "in a bad state",
        ),
        (
            {"sum_error": CudaRuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")},
            "a kernel does not run: CudaRuntimeError: cudaErrorIllegalAddress",
            "in a bad state",
        ),
        (
            {"sum_error": CudaRuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available")},
            "a kernel does not run",
            "no code for this GPU",
        ),
        (
            {"sum_error": CudaRuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided PTX was compiled")},
            "a kernel does not run",
            "update the driver",
        ),
        (
            {"sum_error": CudaRuntimeError("cudaErrorMemoryAllocation: out of memory")},
            "a kernel does not run",
            "memory is full",
        ),
        (
            {"product_error": CudaRuntimeError("CUBLAS_STATUS_ALLOC_FAILED")},
            "a matrix product does not run: CudaRuntimeError: CUBLAS_STATUS_ALLOC_FAILED",
            "memory is full",
        ),
        (
            {"sum_error": MemoryError("out of memory allocating 512 bytes")},
            "a kernel does not run: MemoryError",
            "memory is full",
        ),
        (
            {"product_error": ImportError("libcublas.so.12: cannot open"), "installed": ("cupy-cuda13x",)},
            "a matrix product does not run: ImportError: libcublas.so.12",
            'pip install "xpnn[cuda13]" (or "cupy-cuda13x[ctk]")',
        ),
        ({"one": 2.0}, "the GPU computes wrongly", "nvidia-smi"),
    ],
)
def test_reason_and_remedy(load, setup, reason, remedy):
    said = load(**setup).CupyBackend.probe()
    assert reason in said
    assert remedy in said
    assert "\n" not in said


def test_cupy_that_is_not_installed_is_named_with_the_extras(monkeypatch):
    monkeypatch.setattr(selector, "find_spec", lambda name: None)
    selector._load.cache_clear()
    try:
        said = selector.why_not("cupy")
    finally:
        monkeypatch.undo()
        selector._load.cache_clear()
    assert said.startswith("cupy is not installed; ")
    assert 'pip install "xpnn[cuda12]", or "xpnn[cuda13]"' in said


def test_two_packages_are_named_even_if_the_import_fails(load):
    with pytest.raises(ImportError, match="two CuPy packages are installed"):
        load(import_error=True, installed=("cupy", "cupy-cuda12x"))


def test_failing_import_keeps_its_own_reason(load):
    with pytest.raises(ImportError, match="cupy"):
        load(import_error=True)


def test_devices_by_number(load):
    module = load(FakeRuntime(devices=2))
    assert module.CupyBackend("1").device.id == 1
    assert module.CupyBackend("1").spec == "cupy:1"
    assert module.CupyBackend().device.id == 0
    with pytest.raises(selector.BackendError, match="backend 'cupy' has no device '2'; it has: 0, 1"):
        module.CupyBackend("2")
