"""Threads for the NumPy functions of kernels.

NumPy lets go of the interpreter's lock while it works on a large array, so that threads that work on different images
or rows run at the same time. Where an array is cut does not depend on how many threads there are, and neither do the
results.
"""

from __future__ import annotations

import contextvars
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_Part = TypeVar("_Part")

_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


@cache
def count() -> int:
    """How many threads work: one for each core, or as many as BLAS has been told to use."""
    for variable in _VARIABLES:
        number = os.environ.get(variable, "")
        if number.isdecimal() and int(number) > 0:
            return int(number)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, count() - 1), "xpnn")


if hasattr(os, "register_at_fork"):
    # The threads stay with the parent.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def share(function: Callable[[Sequence[_Part]], None], parts: Sequence[_Part]) -> None:
    """function(some of the parts), on each thread; for parts of which none needs another's result."""
    threads = min(count(), len(parts))
    if threads <= 1:
        function(parts)
        return
    cuts = [len(parts) * number // threads for number in range(threads + 1)]
    own, *others = [parts[first:last] for first, last in itertools.pairwise(cuts)]
    # NumPy's error state goes with the context.
    started = [_pool().submit(contextvars.copy_context().run, function, part) for part in others]
    try:
        function(own)
    finally:
        for other in started:
            other.result()
