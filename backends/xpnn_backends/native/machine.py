"""From the instructions of a recorded step to lists of native calls.

What has no native kernel, or operands that the kernel does not take, is called from Python between two lists.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from xpnn_backends import fast
from xpnn_backends.native import (
    activations,
    attention,
    convolution,
    elementwise,
    losses,
    normalization,
    optimizers,
    pooling,
    products,
    random,
    recurrent,
    registry,
    strided,
    threads,
)
from xpnn_backends.recording import Instruction, RecordedArray, RecordedNumber

FAMILIES = (
    activations,
    attention,
    convolution,
    elementwise,
    losses,
    normalization,
    optimizers,
    pooling,
    products,
    random,
    recurrent,
)
"""The modules whose kernels are known."""

_DTYPES = {"f4": np.dtype(np.float32), "f8": np.dtype(np.float64), "i8": np.dtype(np.int64), "b1": np.dtype(np.bool_)}
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES.values(), 1)}
_SMALLEST_SPLIT = 1 << 15
"""Elements of the operand that stands for a call's work from which on it is split among threads."""


class Blas:
    """The functions of NumPy's own OpenBLAS, by address; 0 where NumPy has another library."""

    def __init__(self) -> None:
        self.sgemm = self.dgemm = self.set_threads = 0
        library = _openblas()
        if library is not None:
            self.sgemm = _address(library, "scipy_cblas_sgemm64_")
            self.dgemm = _address(library, "scipy_cblas_dgemm64_")
            self.set_threads = _address(library, "scipy_openblas_set_num_threads64_")
            self._get_threads = library.scipy_openblas_get_num_threads64_

    def product(self, dtype: Any) -> int:
        """The address of the product for a dtype; 0 if there is none."""
        return {"float32": self.sgemm, "float64": self.dgemm}.get(np.dtype(dtype).name, 0)

    def threads(self) -> int:
        """How many threads a product may use."""
        return int(self._get_threads()) if self.set_threads else threads.core_count()


def _openblas() -> Any:
    """The library that NumPy's wheels carry, with 64-bit integers; None where NumPy has another one."""
    from threadpoolctl import ThreadpoolController

    for library in ThreadpoolController().lib_controllers:
        if library.internal_api == "openblas" and hasattr(library.dynlib, "scipy_cblas_sgemm64_"):
            return library.dynlib
    return None


def _address(library: Any, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


class _Pool:
    """The threads of this process; made when first needed, and anew in a child process."""

    def __init__(self) -> None:
        self.blas: Blas | None = None
        self.forget()

    def forget(self) -> None:
        """In a child process, the parent's threads are gone."""
        self._threads: dict[int, threads.Threads] = {}  # by their number, which a limit of the user's may change
        self._lock = Lock()

    def with_parts(self, parts: int) -> threads.Threads | None:
        """That many threads; None where no more can be started."""
        with self._lock:
            if parts not in self._threads:
                assert self.blas is not None
                try:
                    self._threads[parts] = threads.Threads(parts, self.blas.set_threads)
                except RuntimeError:
                    return None
            return self._threads[parts]


_POOL = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forget)


def blas() -> Blas:
    """NumPy's BLAS, as native kernels call it."""
    if _POOL.blas is None:
        _POOL.blas = Blas()
    return _POOL.blas


class Machine:
    """The native form of one program.

    Args:
        array_of: recorded array -> the array that it stands for.
        count: how many recorded numbers there are.
    """

    def __init__(self, array_of: Callable[[RecordedArray], Any], count: int) -> None:
        self._array_of = array_of
        self.numbers = np.zeros(count, np.float64)
        self.used_numbers: set[int] = set()
        self._constants: list[Any] = []
        self._words: list[int] = []
        self._calls: list[tuple[int, int, int]] = []  # kernel, position of its words, flags
        # input -> (position of a word that is an address in it, offset in bytes)
        self.input_words: dict[int, list[tuple[int, int]]] = {}

    def add(self, instruction: Instruction) -> bool:
        """Take an instruction into the list. False if it cannot run here."""
        native = instruction.kernel.native
        if native is None or fast.why_not() is not None:
            return False
        name, operands = native, instruction.operands
        if callable(native):
            translated = native(*operands)
            if translated is None:
                return False
            name, operands = translated
        declared = registry.KERNELS.get(name)
        if declared is None:
            return False
        tokens = declared.operands.split()
        dtype = _working_dtype(tokens, operands)
        if dtype is None or len(tokens) != len(operands):
            return False
        words: list[int] = []
        patches: list[tuple[int, int, int]] = []
        sizes: list[int] = []
        for token, operand in zip(tokens, operands, strict=True):
            token = token.replace("T", dtype)
            if not self._encode(token, operand, words, patches):
                return False
            sizes.append(operand.size if isinstance(operand, RecordedArray) else 0)
        kernel = compiled_address(registry.compiled, name, dtype)
        if not kernel:
            return False
        start = len(self._words)
        for number, position, offset in patches:
            self.input_words.setdefault(number, []).append((start + position, offset))
        self._words += words
        work = max(sizes) if declared.work is None else sizes[declared.work]
        flags = 0
        if declared.parallel and work >= _SMALLEST_SPLIT:
            flags = threads.SPLIT | (2 * work // _SMALLEST_SPLIT) << threads.MOST_PARTS
        self._calls.append((kernel, start, flags))
        return True

    def _encode(self, token: str, operand: Any, words: list[int], patches: list[tuple[int, int, int]]) -> bool:
        if token == "int":
            if not isinstance(operand, int):
                return False
            words.append(int(operand))
            return True
        if token == "number":
            words.append(self._number(operand))
            return words[-1] != 0
        kind, _, axes = token.partition(":")
        if axes == "any":
            return self._encode_any(kind, operand, words, patches)
        if not isinstance(operand, RecordedArray) or operand.dtype != _DTYPES[kind]:
            return False
        if not operand.ghost.flags.c_contiguous or (axes == "2" and operand.ndim != 2):
            return False
        memory = operand.memory.place()[0]
        if memory.role == "input":
            patches.append((memory.number, len(words), operand.offset))
        if memory.role == "constant":
            self._constants.append(operand.ghost)  # it lives as long as its address is used
        words.append(_data(self._array_of(operand)))
        words += operand.shape if axes == "2" else [operand.size]
        return True

    def _encode_any(self, wanted: str, operand: Any, words: list[int], patches: list[tuple[int, int, int]]) -> bool:
        """An array of any dtype with three axes, or a number: see `intrinsics.operands`."""
        if isinstance(operand, RecordedNumber):
            self.used_numbers.add(operand.index)
            address, dtype, strides = _data(self.numbers) + 8 * operand.index, np.dtype(np.float64), (0, 0, 0)
        elif isinstance(operand, RecordedArray):
            if operand.dtype not in _CODES or operand.ndim != 3:
                return False
            memory = operand.memory.place()[0]
            if memory.role == "input":
                patches.append((memory.number, len(words), operand.offset))
            array = self._array_of(operand)
            if memory.role == "constant":
                self._constants.append(array)
            address, dtype, strides = _data(array), operand.dtype, operand.ghost.strides
        else:
            constant = np.asarray(operand)
            if constant.ndim or constant.dtype not in _CODES:
                return False
            self._constants.append(constant)
            address, dtype, strides = _data(constant), constant.dtype, (0, 0, 0)
        converted = dtype != _DTYPES[wanted]
        if isinstance(operand, RecordedArray) and operand.shape[2] == 1:
            strides = (*strides[:2], dtype.itemsize)
        together = strides[2] == dtype.itemsize
        gather = 0
        if converted or not together:
            gather = compiled_address(strided.compiled_gather, wanted)
            if not gather:
                return False
        words += [address, int(converted), _CODES[dtype], *strides, gather]
        return True

    def _number(self, operand: Any) -> int:
        """The address of a number; 0 if it is none."""
        if isinstance(operand, RecordedNumber):
            self.used_numbers.add(operand.index)
            return _data(self.numbers) + 8 * operand.index
        if isinstance(operand, (bool, int, float)):
            constant = np.array([operand], np.float64)
            self._constants.append(constant)
            return _data(constant)
        return 0

    def finish(self) -> None:
        """All instructions are in: lay the words out."""
        count, seconds = registry.what_was_compiled()
        if seconds > 1.0:
            kept = "they are kept on disk" if registry.can_keep() else "Numba finds no folder to keep them in"
            print(f"xpnn: compiled {count:.0f} kernels for this processor in {seconds:.1f} s; {kept}", file=sys.stderr)
        self.words = np.array(self._words or [0], np.int64)
        base = _data(self.words)
        flags = [flag for _, _, flag in self._calls]
        self._splits = any(flags)
        code = []
        for index, (kernel, start, flag) in enumerate(self._calls):
            following = flags[index + 1] if index + 1 < len(flags) else threads.SPLIT
            wait = threads.WAIT if self._splits and (flag or following) else 0
            code += [kernel, base + 8 * start, flag | wait]
        self._code = np.array(code or [0], np.int64)

    @property
    def length(self) -> int:
        """How many calls are in the list."""
        return len(self._calls)

    def bind(self, number: int, array: Any) -> None:
        """From now on, input `number` is this array."""
        uses = self.input_words.get(number)
        if uses:
            address = _data(array)
            for position, offset in uses:
                self.words[position] = address + offset

    @property
    def splits(self) -> bool:
        """True if some call is split among threads."""
        return self._splits

    def run_repeatedly(self, table: Any, number: int, stride: int) -> None:
        """Run the whole list once for each row of the table, which holds all numbers of that time.

        From one time to the next, input `number` moves on by `stride` bytes. No call may be split.
        """
        positions = [position for position, _ in self.input_words.get(number, [])]
        moving = np.array(positions, np.int64) * 8 + _data(self.words)
        threads.run_repeatedly(
            _data(self._code),
            self.length,
            len(table),
            _data(moving),
            len(moving),
            stride,
            _data(table),
            _data(self.numbers),
            table.shape[1] if self.used_numbers else 0,
        )

    def segment(self, first: int, last: int) -> Callable[[], None]:
        """A function that runs the calls from `first` to `last - 1`."""
        code, count = _data(self._code) + 8 * threads.CALL_WORDS * first, last - first
        if not any(flag for _, _, flag in self._calls[first:last]):
            run_alone = threads.run_alone
            return lambda: run_alone(code, count)
        # A list must end in a call that all wait for.
        self._code[threads.CALL_WORDS * (last - 1) + 2] |= threads.WAIT
        library = blas()

        def run() -> None:
            blas_threads = library.threads()
            parts = min(blas_threads, threads.core_count())
            together = _POOL.with_parts(parts) if parts > 1 else None
            if together is None:
                threads.run_alone(code, count)
            else:
                together.run(code, count, blas_threads)

        return run


def _working_dtype(tokens: list[str], operands: tuple[Any, ...]) -> str | None:
    """The dtype that T stands for: that of the first operand whose token has a T; "f4" if there is none."""
    for token, operand in zip(tokens, operands, strict=False):
        if token.startswith("T"):
            name = {"float32": "f4", "float64": "f8"}
            return name.get(operand.dtype.name) if isinstance(operand, RecordedArray) else None
    return "f4"


def compiled_address(compiled: Callable[..., Any], *key: Any) -> int:
    """The address of a compiled function; 0, and no native kernels from now on, if it does not compile."""
    try:
        return int(compiled(*key).address)
    except Exception as error:  # Numba, LLVM and the disk have errors of their own
        fast.give_up(error)
        return 0


def _data(array: Any) -> int:
    return int(array.__array_interface__["data"][0])
