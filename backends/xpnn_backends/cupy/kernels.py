"""The CUDA sources in this folder, compiled by NVRTC when a kernel of theirs is first launched."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from xpnn.dispatch import OPS, Body
from xpnn.half_precision import in_float32

FOLDER = Path(__file__).parent
OPTIONS = ("-std=c++17", "--extra-device-vectorization")
"""How the sources are compiled. No fast mathematics: a kernel's results are those of its formula."""

THREADS = 256
"""Threads of a block, where a kernel does not want another number."""

_BLOCKS_EACH = 8
"""At most so many blocks for each multiprocessor: enough to keep it busy, and each does more than start and end."""

C_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "int32": "int",
    "int64": "long long",
    "bool": "bool",
    "uint8": "unsigned char",
}
"""dtype -> what it is called in CUDA."""


@functools.cache
def source(family: str) -> str:
    """The text of one family's file, with the text of the files that it includes from this folder."""
    text = (FOLDER / f"{family}.cu").read_text(encoding="utf-8")
    return re.sub(
        r'^#include "(\w+\.cuh)"$',
        lambda found: (FOLDER / found[1]).read_text(encoding="utf-8"),
        text,
        flags=re.MULTILINE,
    )


def expression(name: str, *parameters: Any) -> str:
    """A kernel with its template parameters, dtypes among them: "adam<float, 4>"."""
    if not parameters:
        return name
    texts = []
    for parameter in parameters:
        if isinstance(parameter, bool):
            texts.append("true" if parameter else "false")
        elif isinstance(parameter, int):
            texts.append(str(parameter))
        else:
            texts.append(C_TYPES.get(str(parameter), str(parameter)))
    return f"{name}<{', '.join(texts)}>"


@functools.cache
def _function(family: str, wanted: str, device: int) -> Any:
    """A kernel of one device, compiled."""
    module = cupy.RawModule(code=source(family), options=OPTIONS, name_expressions=(wanted,))
    return module.get_function(wanted)


@functools.cache
def _expression(name: str, parameters: tuple[Any, ...]) -> str:
    return expression(name, *parameters)


def launch(
    family: str,
    name: str,
    parameters: tuple[Any, ...],
    blocks: int | tuple[int, ...],
    threads: int,
    arguments: tuple[Any, ...],
    shared: int = 0,
) -> None:
    """Start a kernel on the current device and stream.

    Args:
        family: the name of its file, without ".cu".
        name: its name in it.
        parameters: of its template: dtypes, ints and bools.
        blocks: how many, along each axis.
        threads: of each block.
        arguments: arrays and NumPy scalars; Python's int is taken for a 64-bit integer, its float for a double, and
            None for a null pointer. A number that may change from step to step is two arguments; see `number`.
        shared: bytes of dynamic shared memory.
    """
    function = _function(family, _expression(name, parameters), cupy.cuda.runtime.getDevice())
    grid = (blocks,) if isinstance(blocks, int) else blocks
    given = tuple(_NULL if argument is None else argument for argument in arguments)
    function(grid, (threads,), given, shared_mem=shared)


_NULL = np.uintp(0)


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(cupy.cuda.runtime.deviceGetAttribute(cupy.cuda.runtime.cudaDevAttrMultiProcessorCount, device))


def blocks_for(count: int, each: int = THREADS) -> int:
    """How many blocks do `count` items well, where one block does `each` at a time and goes on in strides."""
    limit = _multiprocessors(cupy.cuda.runtime.getDevice()) * _BLOCKS_EACH
    return max(1, min(-(-count // each), limit))


def number(x: Any) -> tuple[Any, Any]:
    """The two arguments of a kernel for its parameter NUMBER(x): a place in device memory, or a value.

    x is a Python number, an array without axes, or a number that stands for one of each step while a graph is made.
    """
    place = getattr(x, "place", None)
    if place is not None:
        return np.uintp(place()), 0.0
    if isinstance(x, cupy.ndarray):
        return x.astype(cupy.float64, copy=False), 0.0
    return _NULL, float(x)


def in_order(x: Any) -> Any:
    """x in C order: itself, or a copy."""
    return x if x.flags.c_contiguous else cupy.ascontiguousarray(x)


@functools.cache
def generic(name: str) -> Body:
    """The generic body of an op, also for half-precision arrays: it computes in float32 and rounds its results."""
    return in_float32(OPS[name].generic)
