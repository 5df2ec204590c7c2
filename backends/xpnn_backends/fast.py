"""The `fast` extra: whether Numba can be used, and if not, why."""

from __future__ import annotations

import logging
import os
import warnings
from functools import cache

_LOG = logging.getLogger("xpnn")
_broken: list[str] = []


@cache
def _loads() -> str | None:
    """None if Numba and what the kernels need load here, else the reason and what mends it."""
    setting = os.environ.get("XPNN_FAST", "1")
    if setting == "0":
        return "native kernels are off: XPNN_FAST=0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import numba  # noqa: F401
            import threadpoolctl  # noqa: F401
    except ModuleNotFoundError as error:
        return f'native kernels are off: {error.name} is not installed; pip install "xpnn[fast]"'
    except Exception as error:  # Numba refuses a Python or a NumPy that it does not know in its own words
        return f"native kernels are off: Numba does not load: {type(error).__name__}: {' '.join(str(error).split())}"
    try:
        from xpnn_backends.native import machine  # noqa: F401
    except Exception as error:
        return f"native kernels are off: they do not compile: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


def why_not() -> str | None:
    """None if steps run with native kernels here, else the reason."""
    return _broken[0] if _broken else _loads()


def give_up(error: Exception) -> None:
    """A kernel did not compile: from now on, this process runs without native ones, and says so once."""
    reason = f"native kernels are off: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if not _broken:
        _LOG.warning("%s", reason)
    _broken.append(reason)


def most_parts() -> int:
    """The most threads among which a native kernel is split; 1 where there are none."""
    if why_not() is not None:
        return 1
    from xpnn_backends.native import threads

    return int(threads.core_count())
