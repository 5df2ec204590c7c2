"""PyTorch as an array library: an independent second opinion in the test matrix, on CPU or CUDA."""

from __future__ import annotations

import contextlib
from typing import Any

import array_api_compat.torch
import torch

from xpnn.backend import Backend
from xpnn.errors import BackendError


def _erf(x: Any) -> tuple[Any, Any]:
    def vjp(dy: Any) -> tuple[Any]:
        return (dy * (2.0 / torch.pi**0.5) * torch.exp(-x * x),)

    return torch.special.erf(x), vjp


class TorchBackend(Backend):
    """PyTorch tensors, without its autograd."""

    name = "torch"

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

    def to_host(self, x: Any) -> Any:
        return x.detach().cpu().numpy()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
