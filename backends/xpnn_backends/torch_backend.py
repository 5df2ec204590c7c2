"""PyTorch as an array library: an independent second opinion in the test matrix, on CPU or CUDA."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import array_api_compat.torch
import numpy as np
import torch

from xpnn.backend import Backend
from xpnn.dispatch import Body
from xpnn.errors import BackendError
from xpnn.ops.embedding import check_scatter


def _erf(x: Any) -> tuple[Any, Any]:
    def vjp(dy: Any) -> tuple[Any]:
        return (dy * (torch.exp(-x * x) * (2.0 / math.sqrt(math.pi))),)

    return torch.special.erf(x), vjp


def _normal_cdf(x: Any) -> tuple[Any, Any]:
    def vjp(dy: Any) -> tuple[Any]:
        return (dy * (torch.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))),)

    # torch.special.ndtr cancels for negative x: in float32, ndtr(-6) is 0.
    return 0.5 * torch.special.erfc(x * -math.sqrt(0.5)), vjp


def _scatter_add(values: Any, indices: Any, length: int) -> tuple[Any, Any]:
    check_scatter(values, indices)
    features = values.shape[-1]
    rows = values.reshape((indices.numel(), features))
    total = torch.zeros((length, features), dtype=values.dtype, device=values.device)

    def vjp(dy: Any) -> tuple[Any, None]:
        return dy[indices], None

    return total.index_add_(0, indices.flatten(), rows), vjp


class TorchBackend(Backend):
    """PyTorch tensors, without its autograd."""

    name = "torch"
    array_packages = ("torch",)
    precisions = ("float32", "bfloat16", "float16")
    half_dtypes: ClassVar[Mapping[str, Any]] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    overrides: ClassVar[Mapping[str, Body]] = {
        "erf": _erf,
        "normal_cdf": _normal_cdf,
        "scatter_add": _scatter_add,
    }

    @classmethod
    def namespace(cls) -> Any:
        return array_api_compat.torch

    @classmethod
    def devices(cls) -> list[str]:
        return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]

    def parse_device(self, name: str) -> Any:
        try:
            device = torch.device(name or "cpu")
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise BackendError(f"backend 'torch' has no device {name!r}; it has: {', '.join(self.devices())}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise BackendError(f"backend 'torch:{name}' is not usable here: this PyTorch sees no CUDA device")
        return device

    def context(self) -> contextlib.AbstractContextManager[Any]:
        block: contextlib.AbstractContextManager[Any] = torch.no_grad()
        return block

    @classmethod
    def describe_device(cls, name: str) -> str:
        return str(torch.cuda.get_device_name(name)) if name.startswith("cuda") else ""

    def asarray(self, x: Any, dtype: str | None = None) -> Any:
        # xpnn has its own derivatives: a tensor that asks for autograd's is taken without them.
        if isinstance(x, torch.Tensor):
            x = x.detach()
        elif isinstance(x, np.ndarray) and not (x.flags.writeable and x.flags.c_contiguous and x.dtype.isnative):
            # PyTorch shares a host array's memory, and cannot do so with all of NumPy's: such an array is copied.
            x = np.array(x, dtype=x.dtype.newbyteorder("="), order="C")
        return super().asarray(x, dtype)

    def to_host(self, x: Any) -> Any:
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # NumPy has no bfloat16

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
