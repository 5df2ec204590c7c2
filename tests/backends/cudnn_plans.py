"""python cudnn_plans.py SM [--all]: builds plans of cuDNN for a GPU that is not there; prints what came of it as JSON.

cuDNN plans without a device if it is given the properties of one (cudnn.create_device_properties, from JSON). It wants
to be linked to the driver's library all the same, so one is made here whose functions do nothing. That library must
not meet CuPy: this file is a program of its own, and imports neither CuPy nor xpnn.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DEFINITIONS = Path(__file__).parents[2] / "backends" / "xpnn_backends" / "cupy" / "cudnn_definitions.py"

_COMMON = {
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536,
    "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152,
    "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536,
    "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "pciDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
    "cudaDeviceId": 0,
    "driverVer": 13000,
}
DEVICES: dict[int, dict[str, Any]] = {
    80: {
        **_COMMON,
        "deviceName": "NVIDIA A100-SXM4-80GB",
        "deviceVer": 800,
        "multiProcessorCount": 108,
        "maxSharedMemoryPerBlockOptin": 166912,
        "totalGlobalMem": 85_000_000_000,
        "smClockRateKHz": 1410000,
        "memClockRateKHz": 1593000,
        "memoryBusWidth": 5120,
        "l2CacheSize": 41943040,
    },
    90: {
        **_COMMON,
        "deviceName": "NVIDIA H100 80GB HBM3",
        "deviceVer": 900,
        "multiProcessorCount": 132,
        "maxSharedMemoryPerBlockOptin": 232448,
        "totalGlobalMem": 85_000_000_000,
        "smClockRateKHz": 1980000,
        "memClockRateKHz": 2619000,
        "memoryBusWidth": 5120,
        "l2CacheSize": 52428800,
    },
}
"""Compute capability -> the properties that cuDNN reads."""

_DRIVER = """
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device) { *device = 0; return 0; }
int cuGetErrorString(int status, const char** text) { *text = "no driver"; return 0; }
int cuGetErrorName(int status, const char** text) { *text = "no driver"; return 0; }
int cuKernelGetAttribute(int* value) { *value = 32; return 0; }
int cuOccupancyMaxPotentialClusterSize(int* size) { *size = 8; return 0; }
"""
_GIVES_HANDLE = (
    "cuCtxGetCurrent cuKernelGetFunction cuLibraryGetKernel cuLibraryLoadData cuLibraryLoadFromFile "
    "cuModuleGetFunction cuModuleLoadData"
)
_DOES_NOTHING = (
    "cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuKernelSetAttribute cuLaunchCooperativeKernel cuLaunchKernel "
    "cuLaunchKernelEx cuLibraryUnload cuLinkAddData cuLinkComplete cuLinkCreate cuLinkDestroy cuModuleUnload "
    "cuStreamGetCtx cuTensorMapEncodeIm2col cuTensorMapEncodeTiled"
)


def load_driver() -> None:
    """Put a libcuda.so.1 into this process whose functions say that all went well."""
    rows = [f"int {name}(void** handle) {{ *handle = (void*)1; return 0; }}" for name in _GIVES_HANDLE.split()]
    rows += [f"int {name}(void) {{ return 0; }}" for name in _DOES_NOTHING.split()]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "driver.c"), Path(folder, "libcuda.so.1")
        source.write_text(_DRIVER + "\n".join(rows) + "\n")
        compiler = os.environ.get("CC", "gcc")
        flags = ["-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def load_library() -> Any:
    """The module cudnn, with NVRTC where it finds it."""
    with contextlib.suppress(ImportError):
        importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("nvrtc")
    return importlib.import_module("cudnn")


def load_definitions() -> Any:
    """xpnn_backends.cupy.cudnn_definitions, without the packages around it."""
    specification = importlib.util.spec_from_file_location("cudnn_definitions", DEFINITIONS)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["cudnn_definitions"] = module
    specification.loader.exec_module(module)
    return module


def build(cudnn: Any, definitions: Any, definition: Any, sm: int) -> str | None:
    """None if a plan can be built, else the reason."""
    device = DEVICES[sm]
    try:
        graph = definitions.build(
            cudnn,
            definition,
            device_property=cudnn.create_device_properties(json.dumps(device)),
            sm_version=10 * sm,
            sm_count=device["multiProcessorCount"],
        )
        graph.get_workspace_size()
    except Exception as error:  # cuDNN's reasons come as several types of exceptions
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def convolutions(definitions: Any, dtype: str, tensor_cores: bool) -> dict[str, Any]:
    """The three products of several convolutions."""
    table = {}
    for name, (x, weight, stride, padding, dilation) in {
        "3x3": ((8, 32, 32, 64), (64, 64, 3, 3), 1, (1, 1), 1),
        "3x3 stride 2, padded unevenly": ((8, 32, 32, 64), (64, 64, 3, 3), 2, (0, 1), 1),
        "3x3 dilation 2": ((8, 32, 32, 64), (64, 64, 3, 3), 1, (2, 2), 2),
        "1x1 stride 2": ((8, 32, 32, 64), (128, 64, 1, 1), 2, (0, 0), 1),
        "3 channels": ((8, 32, 32, 3), (16, 3, 3, 3), 1, (1, 1), 1),
        "3 channels as 8": ((8, 32, 32, 8), (16, 8, 3, 3), 1, (1, 1), 1),
        "groups": ((8, 32, 32, 64), (128, 16, 3, 3), 1, (1, 1), 1),
        "depthwise": ((8, 32, 32, 64), (64, 1, 3, 3), 1, (1, 1), 1),
        "1-D": ((8, 1, 100, 64), (64, 64, 1, 3), 1, (0, 2), 1),
        "3-D": ((2, 8, 8, 8, 16), (32, 16, 3, 3, 3), 1, (1, 1), 1),
    }.items():
        batch, *lengths, channels = x
        out, _, *kernel = weight
        axes = len(lengths)
        pairs = [padding] * axes
        if name == "1-D":
            pairs[0] = (0, 0)
        places = [
            (length + sum(pair) - dilation * (size - 1) - 1) // stride + 1
            for length, pair, size in zip(lengths, pairs, kernel, strict=True)
        ]
        for product in ("forward", "input", "weight"):
            table[f"conv {name}: {product}"] = definitions.Convolution(
                product,
                dtype,
                tensor_cores,
                (batch, channels, *lengths),
                weight,
                (batch, out, *places),
                (stride,) * axes,
                tuple(pairs),
                (dilation,) * axes,
                product == "forward",
            )
    return table


def normalizations(definitions: Any, dtype: str) -> dict[str, Any]:
    """Both passes of each normalisation."""
    table = {}
    for operation in ("batch_norm", "layer_norm", "rms_norm"):
        for rows, columns in ((8192, 64), (33, 768)):
            for name in (operation, f"{operation}_backward"):
                table[f"{name} {rows} x {columns}"] = definitions.Normalization(name, dtype, rows, columns)
    return table


def attentions(definitions: Any, dtype: str) -> dict[str, Any]:
    """Both passes of several attentions."""
    table = {}
    for name, (query, key, value, causal) in {
        "causal": ((2, 16, 1024, 64), (2, 16, 1024, 64), (2, 16, 1024, 64), True),
        "all keys": ((2, 16, 1024, 64), (2, 16, 1024, 64), (2, 16, 1024, 64), False),
        "grouped": ((2, 8, 128, 64), (2, 2, 128, 64), (2, 2, 128, 64), True),
        "odd lengths": ((2, 4, 50, 32), (2, 4, 77, 32), (2, 4, 77, 32), True),
        "other values": ((2, 4, 128, 64), (2, 4, 128, 64), (2, 4, 128, 32), False),
    }.items():
        strides = tuple(map(definitions.by_time, (query, key, value)))
        for product in ("forward", "backward"):
            table[f"attention {name}: {product}"] = definitions.Attention(
                product, dtype, query, key, value, strides, causal, 0.125
            )
    packed = (2, 16, 1024, 64)
    strides = ((1024 * 3 * 1024, 64, 3 * 1024, 1),) * 3
    for product in ("forward", "backward"):
        table[f"attention packed: {product}"] = definitions.Attention(
            product, dtype, packed, packed, packed, strides, True, 0.125
        )
    return table


_RARE = ("dilation 2", "1x1 stride 2", "33 x 768", "other values", "all keys")


def table(definitions: Any, everything: bool) -> dict[str, Any]:
    """The graphs, with the dtype in front: all in bfloat16 and a few in the others, or everything."""
    found = {}
    for dtype, tensor_cores in (("bfloat16", True), ("float16", True), ("float32", True), ("float32", False)):
        label = "tf32" if dtype == "float32" and tensor_cores else dtype
        parts = [convolutions(definitions, dtype, tensor_cores)]
        if dtype != "float32":
            parts += [normalizations(definitions, dtype), attentions(definitions, dtype)]
        for name, definition in ((name, part[name]) for part in parts for name in part):
            is_common = not any(rare in name for rare in _RARE)
            is_basic = name.startswith(("conv 3x3:", "batch_norm", "layer_norm", "attention packed"))
            if everything or (is_common and (dtype == "bfloat16" or is_basic)):
                found[f"{label} {name}"] = definition
    return found


def main(sm: int, everything: bool) -> None:
    load_driver()
    cudnn = load_library()
    definitions = load_definitions()
    graphs = table(definitions, everything)
    results = {name: build(cudnn, definitions, graph, sm) for name, graph in graphs.items()}
    print(json.dumps({"cudnn": cudnn.backend_version(), "frontend": cudnn.__version__, "results": results}))


if __name__ == "__main__":
    main(int(sys.argv[1]), "--all" in sys.argv)
