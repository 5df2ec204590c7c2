"""pytest -p emulated_gpu.plugin: the session's CuPy runs on the emulated GPU.

The folder tests/ must be on PYTHONPATH. What has not been written in a fresh array of CuPy's default pool is NaN (-1 as
an integer), also where the pool gives old memory out again.
"""

from __future__ import annotations

from typing import Any

import pytest

from emulated_gpu import device
from emulated_gpu.build import BuildError


def _poisoned(size: int) -> Any:
    import cupy

    memory = cupy.get_default_memory_pool().malloc(size)
    device.fill(memory.ptr, size)
    return memory


def _guarded(size: int) -> Any:
    from cupy.cuda import memory

    try:
        return memory._malloc(size)
    except Exception as error:
        if getattr(error, "status", None) != device.MEMORY_ALLOCATION:
            raise
        raise memory.OutOfMemoryError(size, 0) from error


# Before any conftest.py is read: nothing may have imported CuPy by then.
@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    try:
        device.install()
    except (BuildError, ImportError, RuntimeError) as error:
        raise pytest.UsageError(f"the emulated GPU cannot be set up: {error}") from error
    import cupy

    # With guard pages each array is an allocation of its own, so that it ends where its guard begins.
    cupy.cuda.set_allocator(_guarded if device.is_guarded() else _poisoned)


def pytest_report_header() -> str:
    return "cupy: on the emulated GPU (tests/emulated_gpu)"
