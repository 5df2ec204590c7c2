"""The emulated CUDA runtime under CuPy: installed before CuPy is imported, and asked what ran.

CuPy's compiled modules take the functions of the CUDA runtime and driver from two of its own modules, as capsules in
their `__pyx_capi__`, at the moment when they are imported. Here other functions are put into these capsules first.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from emulated_gpu import build

NAME = "emulated GPU"

MEMORY_ALLOCATION = 2
"""CUDA's status where there is no more memory."""

PROPERTIES: dict[str, Any] = {
    "name": NAME.encode(),
    "major": 9,
    "minor": 0,
    "multiProcessorCount": 132,
    "warpSize": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsDim": (1024, 1024, 64),
    "maxGridSize": (2**31 - 1, 65535, 65535),
    "maxThreadsPerMultiProcessor": 2048,
    "sharedMemPerBlock": 49152,
    "sharedMemPerBlockOptin": 232448,
    "sharedMemPerMultiprocessor": 233472,
    "regsPerBlock": 65536,
    "l2CacheSize": 50 << 20,
    "memoryBusWidth": 5120,
    "totalGlobalMem": 80 << 30,
    "managedMemory": 1,
    "canMapHostMemory": 1,
    "integrated": 0,
    "pciBusID": 0,
    "pciDeviceID": 0,
    "pciDomainID": 0,
}

_TYPES: dict[str, Any] = {
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "intptr_t": ctypes.c_ssize_t,
    "unsigned int": ctypes.c_uint,
    "float": ctypes.c_float,
    "PyObject *": ctypes.py_object,
    "cudaMemcpyKind": ctypes.c_int,
    "CUdevice": ctypes.c_int,
}

_kept_alive: list[Any] = []
_library: Any = None


class _OptionalInt(ctypes.Structure):
    _fields_ = (("given", ctypes.c_int), ("value", ctypes.c_int))


def _capsules(module: Any) -> dict[str, str]:
    """The functions that a compiled module gives to others: name -> C signature."""
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return {name: name_of(capsule).decode() for name, capsule in module.__pyx_capi__.items()}


def _address_in_capsule(capsule: Any) -> int:
    pointer_of, name_of = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return int(pointer_of(capsule, name_of(capsule)))


def _capsule(address: int, signature: str) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = ctypes.create_string_buffer(signature.encode())  # a capsule does not copy its name
    _kept_alive.append(name)
    return new(address, ctypes.cast(name, ctypes.c_char_p), None)


def _python_function(address: int, signature: str) -> Any:
    """The function of an address as Python calls it: without Cython's own arguments."""
    found = re.fullmatch(r"(.*?)\s*\((.*)\)", signature)
    if found is None or found[1].strip() not in _TYPES:
        return None
    given = [part.strip() for part in found[2].split(",")]
    optional = any("__pyx_opt_args" in part for part in given)
    plain = [part for part in given if "__pyx" not in part and part != "void"]
    if any(part not in _TYPES for part in plain):
        return None
    types = [_TYPES[part] for part in plain]
    last = [ctypes.c_int] + ([ctypes.POINTER(_OptionalInt)] if optional else [])
    function = ctypes.PYFUNCTYPE(_TYPES[found[1].strip()], *types, *last)(address)
    count = len(types)

    def call(*arguments: Any, **named: Any) -> Any:
        values = [*arguments, *named.values()]
        extra = values[count:]
        if optional:
            option = _OptionalInt(len(extra), extra[0] if extra else 0)
            return function(*values[:count], 0, ctypes.byref(option))
        return function(*values, 0)

    return call


def _replace(name: str, prefix: str, library: Any) -> None:
    module: Any = importlib.import_module(name)
    for function, signature in _capsules(module).items():
        try:
            address = ctypes.cast(getattr(library, prefix + function), ctypes.c_void_p).value
        except AttributeError:  # not emulated: CuPy's own, which finds no driver and says so
            continue
        assert address is not None
        module.__pyx_capi__[function] = _capsule(address, signature)
        called = _python_function(address, signature)
        if called is not None and hasattr(module, function):
            called.__name__ = function
            setattr(module, function, called)


def install() -> None:
    """Put the emulated GPU under CuPy. Once per process, before anything imports CuPy."""
    global _library
    if _library is not None:
        return
    if "cupy" in sys.modules:
        raise RuntimeError("the emulated GPU must be installed before CuPy is imported")
    # CUB's and cuTENSOR's paths are compiled into CuPy together with a CUDA runtime of their own.
    os.environ["CUPY_ACCELERATORS"] = ""
    sources = [build.FOLDER / name for name in ("threads.cpp", "state.cpp", "runtime.cpp", "modules.cpp")]
    _library = ctypes.PyDLL(str(build.library("runtime", sources)), ctypes.RTLD_GLOBAL)
    runtime: Any = importlib.import_module("cupy_backends.cuda.api.runtime")
    driver: Any = importlib.import_module("cupy_backends.cuda.api.driver")
    properties = dict(PROPERTIES)
    limit = os.environ.get("XPNN_EMULATED_GPU_MEMORY")
    if limit:
        properties["totalGlobalMem"] = int(limit)

    def raise_driver_error(status: int, text: str) -> None:
        error = driver.CUDADriverError.__new__(driver.CUDADriverError)
        error.status = status
        name = _DRIVER_ERRORS.get(status, f"CUDA error {status}")
        error.args = (f"{name}: {text}" if text else name,)
        raise error

    _kept_alive.extend([properties, runtime.PointerAttributes, raise_driver_error])
    checking = _address_in_capsule(runtime.__pyx_capi__["check_status"])
    _library.emulated_set_python.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]
    _library.emulated_set_python(checking, properties, runtime.PointerAttributes)
    _library.emulated_set_driver_error.argtypes = [ctypes.py_object]
    _library.emulated_set_driver_error(raise_driver_error)
    _replace("cupy_backends.cuda.api.runtime", "runtime_", _library)
    _replace("cupy_backends.cuda.api.driver", "driver_", _library)

    from emulated_gpu import arguments, compiler, cublaslt, cudnn, libraries, sorting

    libraries.install()
    cublaslt.load()
    sorting.install()
    cudnn.install()
    importlib.import_module("cupy")
    compiler.install()
    arguments.install()


_DRIVER_ERRORS = {
    1: "CUDA_ERROR_INVALID_VALUE",
    200: "CUDA_ERROR_INVALID_IMAGE",
    400: "CUDA_ERROR_INVALID_HANDLE",
    500: "CUDA_ERROR_NOT_FOUND",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    716: "CUDA_ERROR_MISALIGNED_ADDRESS",
    719: "CUDA_ERROR_LAUNCH_FAILED",
    801: "CUDA_ERROR_NOT_SUPPORTED",
    900: "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
    901: "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
    906: "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
}


def is_installed() -> bool:
    return _library is not None


def is_guarded() -> bool:
    """Whether each allocation ends at a page that must not be touched."""
    return os.environ.get("XPNN_EMULATED_GPU_GUARD", "0") not in ("", "0")


def _read(function: str) -> Counter[str]:
    reading = getattr(_library, function)
    reading.restype = ctypes.c_char_p
    rows = reading().decode().splitlines()
    return Counter({name: int(times) for name, times in (row.rsplit("\t", 1) for row in rows)})


def counts() -> Counter[str]:
    """How often what happened since the start: launches, captured, replayed, graph_launches, memsets,
    copies_from_host, copies_to_host, copies_on_device, copies_on_host, synchronizations, allocations, frees, ..."""
    return _read("emulated_counts")


def kernels() -> Counter[str]:
    """Which kernels were launched (or captured), and how often."""
    return _read("emulated_kernel_counts")


@contextlib.contextmanager
def threads_in_reverse(reverse: bool = True) -> Iterator[None]:
    """A block in which the threads of a block run from the last to the first, or not."""
    before = _library.emulated_set_reversed(int(reverse))
    try:
        yield
    finally:
        _library.emulated_set_reversed(before)


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """A block in which each device has so many bytes."""
    before = set_memory_limit(size)
    try:
        yield
    finally:
        set_memory_limit(before)


def set_memory_limit(size: int) -> int:
    """How many bytes each device has from now on; what it was before."""
    change = _library.emulated_set_memory_limit
    change.restype, change.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
    return int(change(size))


def fill(address: int, size: int) -> None:
    """Make memory of a device what fresh memory is: NaN, and -1 as an integer."""
    ctypes.memset(address, 0xFF, size)
