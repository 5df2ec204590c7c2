"""A pytest plug-in for machines with a GPU: a worker of xdist whose device is lost ends, and another takes its place.

After an illegal address in one kernel every call of the CUDA runtime fails until the process ends, and with it every
test that the worker has yet to run, whatever it tests. xdist names the test that was running when its worker ended, and
goes on with a new one; why the test failed is written to the standard error output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import Any

import pytest

EXIT_CODE = 70


def device_is_lost() -> bool:
    """True if CuPy is loaded and its device does not even synchronize."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return False
    try:
        cupy.cuda.runtime.deviceSynchronize()
    except Exception:  # whatever it is called, nothing works after it
        return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """End a worker after a test that has lost the device."""
    report = yield
    is_worker = hasattr(item.config, "workerinput")
    if report.failed and is_worker and device_is_lost():
        sys.stderr.write(f"\n{item.nodeid} has lost the device:\n{report.longreprtext}\n")
        sys.stderr.flush()
        os._exit(EXIT_CODE)
    return report
