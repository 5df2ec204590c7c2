"""How long one convolution takes, side by side in one run: its values and the gradients of x, weight and bias.

python benchmarks/convolution.py [--networks wide,few] [--contenders xpnn-fast,torch] [--rounds 9] [--json FILE]
"""

from __future__ import annotations

import pathlib
import sys
import time
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends")]

from turns import Calls, Case, Contender, Table, run  # noqa: E402


class Shape(NamedTuple):
    """A convolution of square images with stride 1 that keeps their size, in float32."""

    batch: int
    side: int
    kernel: int
    inputs: int
    outputs: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of the values and of both gradients."""
        return 6 * self.batch * self.side**2 * self.kernel**2 * self.inputs * self.outputs


def arrays(shape: Shape) -> list[Any]:
    """x, weight, bias and dy, channels last."""
    import numpy as np

    generator = np.random.Generator(np.random.Philox(0))
    image = (shape.batch, shape.side, shape.side)
    weight = (shape.kernel, shape.kernel, shape.inputs, shape.outputs)
    shapes = ((*image, shape.inputs), weight, (shape.outputs,), (*image, shape.outputs))
    return [generator.standard_normal(each, dtype=np.float32) for each in shapes]


def rated(shape: Shape, once: Any) -> Calls:
    """`once`, so many times; the result is the rate in GFLOP/s."""

    def calls(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            once()
        return shape.operations * count / (time.perf_counter() - start) / 1e9

    return calls


def xpnn(shape: Shape) -> Calls:
    """The op and its vjp as a recorded program of the NumPy backend."""
    from xpnn import get_backend, ops
    from xpnn_backends import fast
    from xpnn_backends.compiled_step import RecordedCall

    get_backend("numpy")
    half = shape.kernel // 2
    settings: dict[str, Any] = {"stride": (1, 1), "padding": ((half, half),) * 2, "dilation": (1, 1)}

    def both(x: Any, weight: Any, bias: Any, dy: Any) -> Any:
        y, vjp = ops.conv(x, weight, bias, **settings)
        return y, *vjp(dy)

    program = RecordedCall(both, tuple(arrays(shape)), fast.why_not() is None).program
    return rated(shape, lambda: program.run(0))


def torch(shape: Shape, channels_last: bool = False) -> Calls:
    """PyTorch's conv2d and its backward pass, in its default layout."""
    import torch

    x, weight, bias, dy = map(torch.from_numpy, arrays(shape))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (each.permute(0, 3, 1, 2).contiguous(memory_format=layout).clone() for each in (x, dy))
    weight = weight.permute(3, 2, 0, 1).contiguous(memory_format=layout)
    parameters = [each.requires_grad_() for each in (x, weight, bias)]

    def once() -> None:
        y = torch.nn.functional.conv2d(x, weight, bias, padding=shape.kernel // 2)
        torch.autograd.grad(y, parameters, dy)

    return rated(shape, once)


def torch_channels_last(shape: Shape) -> Calls:
    """The same in PyTorch's memory format channels_last."""
    return torch(shape, channels_last=True)


TABLE = Table(
    script=__file__,
    description=__doc__,
    call="convolution",
    cases={
        "wide": Case("3x3, 32->64, 28x28, batch 64", Shape(64, 28, 3, 32, 64)),
        "deep": Case("3x3, 64->128, 14x14, batch 64", Shape(64, 14, 3, 64, 128)),
        "few": Case("5x5, 1->32, 28x28, batch 64", Shape(64, 28, 5, 1, 32)),
    },
    contenders={
        "xpnn": Contender(xpnn, ("numpy",), {"XPNN_FAST": "0"}),
        "xpnn-fast": Contender(xpnn, ("numpy", "numba")),
        "torch": Contender(torch, ("torch",)),
        "torch-last": Contender(torch_channels_last, ("torch",)),
    },
    result="GFLOP/s (last turn)",
)

if __name__ == "__main__":
    run(TABLE)
