"""CuPy: NVIDIA GPUs. Importing CuPy proves nothing: the probe runs a tiny kernel and a tiny matrix product."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import array_api_compat.cupy
import cupy

from xpnn.backend import Backend
from xpnn.errors import BackendError

_DISTRIBUTIONS = ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy")


def _installed() -> list[str]:
    found = []
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {distribution(name).version}")
    return found


class CupyBackend(Backend):
    """CuPy on one NVIDIA GPU: "cupy" is the current device, "cupy:1" the second."""

    name = "cupy"

    @classmethod
    def probe(cls) -> str | None:
        installed = _installed()
        if len(installed) > 1:
            return f"two CuPy packages are installed ({', '.join(installed)}); pip uninstall all but one"
        if not cupy.cuda.is_available():
            return "no usable NVIDIA GPU or driver (cupy.cuda.is_available() is False); see `nvidia-smi`"
        try:
            ones = cupy.ones((2, 2), dtype=cupy.float32)
            total = float((ones + ones).sum())
        except Exception as error:  # whatever the driver or NVRTC raises is the reason
            return f'a kernel does not run: {type(error).__name__}: {error}; pip install "cupy-cuda12x[ctk]"'
        try:
            product = float((ones @ ones).sum())
        except Exception as error:  # a missing cuBLAS is an ImportError, a broken one a CUBLASError
            return f'a matrix product does not run: {type(error).__name__}: {error}; pip install "cupy-cuda12x[ctk]"'
        if (total, product) != (8.0, 8.0):
            return f"the GPU computes 2+2 and 2x2 wrongly: {total}, {product} instead of 8, 8"
        return None

    @classmethod
    def namespace(cls) -> Any:
        return array_api_compat.cupy

    @classmethod
    def devices(cls) -> list[str]:
        return [str(index) for index in range(cupy.cuda.runtime.getDeviceCount())]

    def parse_device(self, name: str) -> Any:
        if not name:
            return cupy.cuda.Device()
        if name not in self.devices():
            raise BackendError(f"backend 'cupy' has no device {name!r}; it has: {', '.join(self.devices())}")
        return cupy.cuda.Device(int(name))

    def context(self) -> contextlib.AbstractContextManager[Any]:
        # A Device object counts its own entries: a fresh one for each block can be used by any thread.
        block: contextlib.AbstractContextManager[Any] = cupy.cuda.Device(self.device.id)
        return block

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        with self.context():
            return cupy.asarray(x, dtype=None if dtype is None else self.dtype(dtype))

    def to_host(self, x: Any) -> Any:
        return cupy.asnumpy(x)

    def synchronize(self) -> None:
        with self.context():
            cupy.cuda.get_current_stream().synchronize()
