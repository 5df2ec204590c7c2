"""A pool of threads that run one list of kernel calls together, each its part of every call.

OpenBLAS splits one product at a time among threads of its own; here all threads walk through the whole list, and a
product, an activation or an optimizer's update is split in the same way. Between calls that depend on each other they
wait for each other in a loop, which takes less than a microsecond; a thread that has waited in vain for some time goes
to sleep.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
from functools import cache

import numpy as np
from numba import types

from xpnn_backends.native.intrinsics import (
    atomic_add,
    atomic_load,
    atomic_replace,
    atomic_swap,
    call_integer,
    call_kernel,
    call_with_integer,
    load_word,
)
from xpnn_backends.native.registry import native

CALL_WORDS = 3
"""Words of a call: the kernel's address, the address of its operands, and flags."""
SPLIT = 1
"""Flag: the threads do a part of this call each; without it, the first thread does all."""
WAIT = 2
"""Flag: all threads wait for each other after this call."""
MOST_PARTS = 8
"""From this bit on, a split call has the number of parts beyond which they would be too small."""

# What the threads share, each on a cache line of its own (64 bytes).
_ARRIVED, _PHASE, _ORDER, _CODE, _COUNT, _PARTS, _WANTED, _ASLEEP, _CLAIMED, _LEADER = range(0, 10 * 64, 64)
_SPINS = 3000
"""Looks at a shared word before a thread lets others have its core between two looks."""
_PATIENCE = 600
"""Such looks before a thread without work goes to sleep: about a third of a millisecond in all."""


@native(types.void(types.int64, types.int64))
def run_alone(code, count):
    """Run a list of `count` calls, in one thread."""
    for index in range(0, CALL_WORDS * count, CALL_WORDS):
        call_kernel(load_word(code, index), load_word(code, index + 1), 0, 1)


@native(types.void(*[types.int64] * 9))
def run_repeatedly(code, count, times, moving, moving_count, stride, table, numbers, numbers_count):
    """Run a list of `count` calls `times` times, in one thread.

    Before each time, the words at the `moving_count` addresses in `moving` have grown by `stride` (first by 0), and
    the next `numbers_count` words of `table` are copied to `numbers`.
    """
    for time in range(times):
        if time:
            for index in range(moving_count):
                address = load_word(moving, index)
                atomic_swap(address, load_word(address, 0) + stride)
        for index in range(numbers_count):
            atomic_swap(numbers + 8 * index, load_word(table, time * numbers_count + index))
        for index in range(0, CALL_WORDS * count, CALL_WORDS):
            call_kernel(load_word(code, index), load_word(code, index + 1), 0, 1)


@native(types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64), nogil=True)
def _walk(code, count, part, parts, shared, give_way):
    """Thread number `part` of `parts` walks through the list."""
    for index in range(0, CALL_WORDS * count, CALL_WORDS):
        flags = load_word(code, index + 2)
        if flags & SPLIT:
            used = min(parts, flags >> MOST_PARTS)
            if part < used:
                call_kernel(load_word(code, index), load_word(code, index + 1), part, used)
        elif part == 0:
            call_kernel(load_word(code, index), load_word(code, index + 1), 0, 1)
        if flags & WAIT:
            phase = atomic_load(shared + _PHASE)
            if atomic_add(shared + _ARRIVED, 1) == parts - 1:
                atomic_swap(shared + _ARRIVED, 0)
                atomic_add(shared + _PHASE, 1)
            else:
                spins = 0
                while atomic_load(shared + _PHASE) == phase:
                    spins += 1
                    if spins > _SPINS and give_way:
                        call_integer(give_way)


@native(types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), nogil=True)
def _serve(shared, part, seen, give_way, which_core):
    """Take part in every list that comes, until none has come for some time. Returns the number of the last one.

    If this thread finds itself on the core of the one that hands the lists out, it returns that number's complement.
    """
    idle = 0
    while True:
        order = atomic_load(shared + _ORDER)
        if order != seen:
            seen = order
            idle = 0
            code, count = atomic_load(shared + _CODE), atomic_load(shared + _COUNT)
            _walk(code, count, part, atomic_load(shared + _PARTS), shared, give_way)
            if which_core and call_integer(which_core) == atomic_load(shared + _LEADER):
                return ~seen
            continue
        idle += 1
        if idle > _SPINS and give_way:
            call_integer(give_way)
        if idle > _SPINS + _PATIENCE:
            # Either this thread sees here that it is wanted, or `_claim` counts it among the sleepers.
            atomic_add(shared + _ASLEEP, 1)
            if atomic_load(shared + _WANTED) == 0:
                return seen
            sleepers = atomic_load(shared + _ASLEEP)
            while sleepers > 0:
                found = atomic_replace(shared + _ASLEEP, sleepers, sleepers - 1)
                if found == sleepers:
                    break
                sleepers = found
            if sleepers == 0:
                return seen  # it was counted, and will be woken
            idle = 0


@native(types.int64(types.int64))
def _claim(shared):
    """Announce that a list comes; returns how many sleeping threads are to be woken for it.

    They are on record until `_woken`: a caller that Ctrl-C breaks off leaves them to the next one. To wake a thread
    once too often does no harm.
    """
    atomic_swap(shared + _WANTED, 1)
    sleepers = atomic_swap(shared + _ASLEEP, 0)
    return atomic_add(shared + _CLAIMED, sleepers) + sleepers


@native(types.void(types.int64))
def _woken(shared):
    """All threads that were claimed are awake."""
    atomic_swap(shared + _CLAIMED, 0)


@native(types.void(types.int64))
def _let_sleep(shared):
    """No list comes, after all."""
    atomic_swap(shared + _WANTED, 0)


@native(types.void(*[types.int64] * 8), nogil=True)
def _lead(code, count, parts, shared, give_way, which_core, set_blas_threads, blas_threads):
    """Hand the list out, and take part in it; the last call waits for all threads.

    `blas_threads` is how many threads OpenBLAS has before and after.
    """
    if which_core:
        atomic_swap(shared + _LEADER, types.int64(call_integer(which_core)))
    if set_blas_threads:
        call_with_integer(set_blas_threads, types.int32(1))
    atomic_swap(shared + _CODE, code)
    atomic_swap(shared + _COUNT, count)
    atomic_swap(shared + _PARTS, parts)
    atomic_add(shared + _ORDER, 1)
    _walk(code, count, 0, parts, shared, give_way)
    atomic_swap(shared + _WANTED, 0)
    if set_blas_threads:
        call_with_integer(set_blas_threads, types.int32(blas_threads))


class Threads:
    """The threads of this process that run lists together.

    Args:
        parts: how many there are, with the one that hands the lists out; at least 2.
        set_blas_threads: the address of OpenBLAS's function of that name, or 0. While a list runs, each thread makes
            its products alone.
    """

    def __init__(self, parts: int, set_blas_threads: int) -> None:
        self.parts = parts
        self._set_blas_threads = set_blas_threads
        self._block = np.zeros(1024, np.uint8)
        address = self._block.ctypes.data
        self._shared = address + -address % 64
        self._give_way = _address("sched_yield")
        self._which_core = _address("sched_getcpu")
        # One item wakes one thread. A semaphore is written in Python, and Ctrl-C inside it may leave it locked.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        for part in range(1, parts):
            threading.Thread(target=self._work, args=(part,), name=f"xpnn-{part}", daemon=True).start()

    def run(self, code: int, count: int, blas_threads: int) -> None:
        """Run a list of calls; the last one, and every one that others depend on, has the flag WAIT.

        OpenBLAS then has `blas_threads` threads again.
        """
        with self._lock:
            try:
                sleepers = _claim(self._shared)
                if sleepers:
                    for _ in range(sleepers):
                        self._wake.put(None)
                    _woken(self._shared)
                shared, set_blas_threads = self._shared, self._set_blas_threads
                _lead(code, count, self.parts, shared, self._give_way, self._which_core, set_blas_threads, blas_threads)
            except BaseException:  # Ctrl-C, between these calls
                _let_sleep(self._shared)
                raise

    def _work(self, part: int) -> None:
        seen = 0
        cores = os.sched_getaffinity(0) if self._which_core and hasattr(os, "sched_getaffinity") else set()
        while True:
            self._leave_core(cores)
            seen = _serve(self._shared, part, seen, self._give_way, self._which_core)
            if seen < 0:
                seen = ~seen
            else:
                self._wake.get()

    def _leave_core(self, cores: set[int]) -> None:
        """Keep this thread off the leader's core.

        Two threads that wait for each other on one core, each leaving it to the other, look busy to the system, which
        may leave them there for a long time, with another core idle.
        """
        leader = ctypes.c_int64.from_address(self._shared + _LEADER).value
        others = cores - {leader}
        if others and leader in cores:
            # It only helps; the system may have taken these cores away.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, others)


def _address(name: str) -> int:
    """The address of a function of the C library; 0 if it has none of that name."""
    try:
        function = getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no such library
        return 0
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def core_count() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
