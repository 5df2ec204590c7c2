"""How a native kernel is declared, compiled, and split among threads."""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import secrets
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
from numba import cfunc, njit, types
from numba.core import bytecode
from numba.core.registry import cpu_target
from numba.extending import register_jitable

from xpnn_backends.native.intrinsics import operands


class Declared(NamedTuple):
    """A kernel: its function, and what its operands are.

    Attributes:
        function: function(part, parts, *operands), part number `part` of `parts` of the work.
        operands: their specification (see `intrinsics.operands`); T stands for the dtype that it is compiled for.
        parallel: True if it can be split: part p of n may then run beside all others.
        work: the position of the operand whose size says how much work it is; None: of the largest one.
    """

    function: Callable[..., None]
    operands: str
    parallel: bool
    work: int | None = None


KERNELS: dict[str, Declared] = {}
"""All native kernels by name."""


def kernel(
    specification: str, parallel: bool = False, work: int | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declare a function as the kernel of its name; see `Declared`."""

    def declare(function: Callable[..., None]) -> Callable[..., None]:
        # Numba's cache asks only whether the file of `entry` has changed; a function that is inlined there and stays
        # a plain function is found again in another process.
        KERNELS[function.__name__] = Declared(
            register_jitable(error_model="numpy")(function), specification, parallel, work
        )
        return function

    return declare


@register_jitable
def share(length: int, part: int, parts: int, unit: int = 1) -> tuple[int, int]:
    """(first, last + 1) of the items that part number `part` of `parts` works on, in multiples of `unit`."""
    units = (length + unit - 1) // unit
    first = units * part // parts * unit
    last = units * (part + 1) // parts * unit
    return min(first, length), min(last, length)


@cache
def version() -> str:
    """Changes with every kernel's code, with Numba, and with the processor: part of the names in Numba's cache."""
    processor = cpu_target.target_context.codegen().magic_tuple()  # as in the keys of Numba's cache
    digest = hashlib.sha256(repr((numba.__version__, processor)).encode())
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def can_keep() -> bool:
    """True if Numba finds a folder to keep compiled code in: beside this file, or the user's cache.

    Only with a Numba whose functions can be numbered, though: see `name_for_cache`.
    """
    if not hasattr(getattr(bytecode, "FunctionIdentity", None), "_unique_ids"):
        return False
    try:
        njit(cache=True)(_nothing)
    except RuntimeError:
        return False
    return True


def _nothing() -> None:
    """Only to ask where its code would be kept."""


_compiling = [0, 0.0]  # functions and seconds since `what_was_compiled` was asked last


def counted(make: Callable[[], Any], hits: Callable[[Any], int]) -> Any:
    """What `make` compiles; counted, unless it was found on disk."""
    began = time.perf_counter()
    made = make()
    if not hits(made):
        _compiling[0] += 1
        _compiling[1] += time.perf_counter() - began
    return made


def what_was_compiled() -> tuple[float, float]:
    """How many functions were compiled since the last call of this, and how many seconds that took."""
    found = (_compiling[0], _compiling[1])
    _compiling[:] = [0, 0.0]
    return found


def native(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for one signature, now."""

    def compile_now(function: Callable[..., Any]) -> Any:
        name_for_cache(function, "native", version())
        return counted(
            lambda: njit(signature, cache=can_keep(), **options)(function),
            lambda made: sum(made.stats.cache_hits.values()),
        )

    return compile_now


@cache
def compiled(name: str, dtype: str) -> Any:
    """The compiled kernel (its `.address` can be called) for "f4" or "f8"."""
    declared = KERNELS[name]
    return counted(
        lambda: _entry(f"{name}_{dtype}", declared.function, declared.operands.replace("T", dtype), version()),
        lambda made: int(made.cache_hits),
    )


def _entry(name: str, function: Callable[..., None], specification: str, version: str) -> Any:
    def entry(words, part, parts):
        version  # noqa: B018 (a free variable: part of the cache's key)
        function(part, parts, *operands(words, specification))

    name_for_cache(entry, name, version)
    return cfunc(types.void(types.int64, types.int64, types.int64), cache=can_keep(), error_model="numpy")(entry)


def name_for_cache(function: Any, name: str, version: str) -> None:
    """Make what is compiled next safe to keep beside what other processes keep: call it before each compilation.

    Files: Numba keeps all versions of a function of one name in numbered files beside one index, and writes them one
    after the other. Two processes that do so at once may leave an index that calls one kernel by the number of another;
    so each kernel has a name, and with it an index, of its own.

    Functions: a kept file also holds the functions that the kernel calls, if they were not inlined. They are named by
    their Python name, their types, and how many functions that process had compiled before. A process that loads two
    files takes the first function of a name that it meets for all: if two closures of one name, `fold` for a sum and
    `fold` for a maximum, each were number 9 in the process that compiled it, then a sum becomes a maximum. So the
    numbers begin at a random one before each compilation, which is another one in a forked process too.
    """
    function.__name__ = function.__qualname__ = f"{function.__name__}_{name}_{version[:16]}"
    if can_keep():
        bytecode.FunctionIdentity._unique_ids = itertools.count(secrets.randbits(62))
