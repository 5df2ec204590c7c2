"""array-api-strict: no user's choice for speed, but the proof that xpnn calls nothing outside the standard.

Its devices "device1" and "no_float64" stand in for an accelerator: no silent copies to the host, no mixtures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import array_api_strict
import numpy as np
from array_api_strict._array_object import Array

from xpnn.backend import Backend
from xpnn.errors import BackendError

_HOST_READS = ("__float__", "__int__", "__bool__", "__index__", "__complex__")


def _refuse_host_read(*_: Any) -> Any:
    raise RuntimeError("an array value was read into Python: on a GPU this waits for the device")


class StrictBackend(Backend):
    """array-api-strict on one of its pretended devices."""

    name = "strict"
    array_packages = ("array_api_strict",)

    @classmethod
    def namespace(cls) -> Any:
        return array_api_strict

    @classmethod
    def devices(cls) -> list[str]:
        return ["CPU_DEVICE", "device1", "no_float64"]

    @classmethod
    def describe_device(cls, name: str) -> str:
        return {"device1": "a pretended accelerator", "no_float64": "a pretended accelerator without float64"}.get(
            name, ""
        )

    @classmethod
    def device_label(cls, device: Any) -> str:
        return str(device._device)

    def parse_device(self, name: str) -> Any:
        name = "CPU_DEVICE" if name in ("", "cpu") else name
        if name not in self.devices():
            raise BackendError(f"backend 'strict' has no device {name!r}; it has: {', '.join(self.devices())}")
        return array_api_strict.Device(name)

    @contextlib.contextmanager
    def discipline(self) -> Iterator[None]:
        """The standard of 2024.12 alone, no data-dependent shapes, and no value read into Python."""
        saved = {name: getattr(Array, name) for name in _HOST_READS}
        flags = array_api_strict.ArrayAPIStrictFlags(
            api_version="2024.12", boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
        )
        with flags:
            for name in _HOST_READS:
                setattr(Array, name, _refuse_host_read)
            try:
                yield
            finally:
                for name, method in saved.items():
                    setattr(Array, name, method)

    def dtype(self, name: str) -> Any:
        if name == "float64" and self.device_name == "no_float64":
            raise BackendError("device 'no_float64' of backend 'strict' has no float64")
        return super().dtype(name)

    def to_host(self, x: Any) -> Any:
        return np.array(x._array)
