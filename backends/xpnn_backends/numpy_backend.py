"""NumPy: the CPU backend, and the library of host arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from xpnn.backend import HostBackend
from xpnn.dispatch import Body
from xpnn_backends import numpy_bodies, philox


class NumpyBackend(HostBackend):
    """NumPy on the CPU. "numpy:readonly" makes arrays that refuse to be written to, for tests."""

    name = "numpy"
    array_packages = ("numpy",)
    one_device = True
    overrides: ClassVar[Mapping[str, Body]] = numpy_bodies.BODIES

    @classmethod
    def namespace(cls) -> Any:
        return np

    @classmethod
    def device_of(cls, x: Any) -> Any:
        return "cpu"

    @classmethod
    def devices(cls) -> list[str]:
        return ["cpu", "readonly"]

    @classmethod
    def describe_device(cls, name: str) -> str:
        return "arrays that refuse to be written to, for tests" if name == "readonly" else ""

    def parse_device(self, name: str) -> Any:
        return None if name == "readonly" else super().parse_device(name)

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        array = np.asarray(x, dtype=None if dtype is None else self.dtype(dtype))
        if self.device_name == "readonly":
            array = array.view()
            array.flags.writeable = False
        return array

    def to_host(self, x: Any) -> Any:
        return np.asarray(x)

    def random_words(self, seed: int, stream: int, step: int, count: int) -> Any:
        return philox.random_words(seed, stream, step, count)

    def keep_mask(self, seed: int, stream: int, step: int, shape: tuple[int, ...], threshold: int) -> Any:
        return philox.keep_mask(seed, stream, step, shape, threshold)
