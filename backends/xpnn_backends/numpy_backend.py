"""NumPy: the CPU backend, and the library of host arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from xpnn import dispatch
from xpnn.backend import HostBackend
from xpnn.dispatch import Body
from xpnn.errors import BackendError
from xpnn_backends import blas, fast, numpy_bodies, philox
from xpnn_backends.compiled_step import CompiledStep, evaluate_recorded
from xpnn_backends.recorded_bodies import BODIES
from xpnn_backends.recording import register_recorded_arrays

register_recorded_arrays(BODIES)


_DEVICES = {
    "cpu": "",
    "readonly": "arrays that refuse to be written to, for tests",
    "compiled": "everything recorded and run as a program, without native kernels, for tests",
    "fast": "everything recorded and run as a program, with native kernels, for tests",
}


class NumpyBackend(HostBackend):
    """NumPy on the CPU; training steps run as recorded programs, with native kernels where the `fast` extra is there.

    The devices beside "cpu" are the same processor, for tests: see `_DEVICES`.
    """

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

    def __init__(self, device_name: str = "") -> None:
        super().__init__(device_name)
        self._records = device_name in ("compiled", "fast")
        if self._records:
            self.overrides = BODIES  # type: ignore[misc]

    @classmethod
    def devices(cls) -> list[str]:
        return list(_DEVICES)

    @classmethod
    def describe_device(cls, name: str) -> str:
        if name == "cpu" and fast.why_not() is None:
            return "native kernels"
        return _DEVICES[name]

    @classmethod
    def own_ops(cls) -> set[str]:
        return {*numpy_bodies.BODIES, *BODIES}

    @classmethod
    def notices(cls) -> list[str]:
        native = fast.why_not()
        return [*blas.notices(), *([native] if native else [])]

    def parse_device(self, name: str) -> Any:
        if name == "fast":
            reason = fast.why_not()
            if reason is not None:
                raise BackendError(f"backend 'numpy:fast': {reason}")
        return None if name in _DEVICES else super().parse_device(name)

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        array = np.asarray(x, dtype=None if dtype is None else self.dtype(dtype))
        if self.device_name == "readonly":
            array = array.view()
            array.flags.writeable = False
        return array

    def to_host(self, x: Any) -> Any:
        return np.asarray(x)

    @property
    def native(self) -> bool:
        """True if compiled steps run native kernels."""
        return self.device_name != "compiled" and fast.why_not() is None

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, recorded at its first call and run as a program from then on; see `recording`."""
        if not dispatch.overrides_active() and not self._records:
            return step
        return CompiledStep(step, self.native)

    def evaluate(self, function: Callable[..., tuple[Any, Any]], *arrays: Any) -> tuple[Any, Any]:
        if not self._records:
            return function(*arrays)
        return evaluate_recorded(function, arrays, self.native)

    def is_ready(self, x: object, dtype: str) -> bool:
        return type(x) is np.ndarray and x.dtype == dtype and self.device_name != "readonly"

    def total(self, x: Any) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.add.reduce(x, None))

    def random_words(self, seed: int, stream: int, step: int, count: int) -> Any:
        return philox.random_words(seed, stream, step, count)

    def keep_mask(self, seed: int, stream: int, step: int, shape: tuple[int, ...], threshold: int) -> Any:
        return philox.keep_mask(seed, stream, step, shape, threshold)
