"""The stand-ins for libcublasLt and for the driver's libcuda, and their switches for tests.

nvmath's bindings open libcuda.so.1 by its name, and take a libcublasLt.so.13 that the process has loaded already
(cuda.pathfinder looks there first): so these are loaded before nvmath is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from emulated_gpu import build


def _load(name: str, soname: str) -> Any:
    flags = [f"-Wl,-soname,{soname}", "-O3", "-ffp-contract=off"]
    path = build.library(name, [build.FOLDER / f"{name}.cpp"], flags)
    return ctypes.CDLL(str(path), os.RTLD_NOW | os.RTLD_GLOBAL)


@cache
def load() -> Any:
    """The stand-in for libcublasLt, loaded; the driver's stand-in is loaded first."""
    _load("driver", "libcuda.so.1")
    library = _load("cublaslt", "libcublasLt.so.13")
    for counter in ("products", "heuristics"):
        getattr(library, f"emulated_cublaslt_{counter}").restype = ctypes.c_long
    return library


def products() -> int:
    """Products that were started until now."""
    return int(load().emulated_cublaslt_products())


def heuristics() -> int:
    """Questions that the heuristic was asked until now."""
    return int(load().emulated_cublaslt_heuristics())


def last_epilogue() -> int:
    """The epilogue of the product that was started last, as a number of cublasLtEpilogue_t."""
    return int(load().emulated_cublaslt_last_epilogue())


def last_compute_type() -> int:
    """The compute type of the product that was started last, as a number of cublasComputeType_t."""
    return int(load().emulated_cublaslt_last_compute())


@contextlib.contextmanager
def refusing(*epilogues: int) -> Iterator[None]:
    """A block in which the heuristic finds no algorithm for products with these epilogues."""
    for epilogue in epilogues:
        load().emulated_cublaslt_refuse(int(epilogue), 1)
    try:
        yield
    finally:
        load().emulated_cublaslt_refuse(-1, 0)


@contextlib.contextmanager
def swallowing_nan() -> Iterator[None]:
    """A block in which the ReLU and the GELU of an epilogue turn NaN into 0."""
    load().emulated_cublaslt_swallow_nan(1)
    try:
        yield
    finally:
        load().emulated_cublaslt_swallow_nan(0)


@contextlib.contextmanager
def rounding_tanh() -> Iterator[None]:
    """A block in which the GELU of an epilogue, and its derivative, compute with a tanh of 11 bits."""
    load().emulated_cublaslt_rough_tanh(1)
    try:
        yield
    finally:
        load().emulated_cublaslt_rough_tanh(0)


@contextlib.contextmanager
def failing_first(count: int) -> Iterator[None]:
    """A block in which the first `count` algorithms of the heuristic's answers (of three) do not run."""
    load().emulated_cublaslt_fail_first(count)
    try:
        yield
    finally:
        load().emulated_cublaslt_fail_first(0)
