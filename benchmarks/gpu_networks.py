"""The networks that `gpu.py` measures. With XPNN_BENCHMARK_TINY=1 they are tiny, to try the script out."""

from __future__ import annotations

import os
from typing import Any

from deep import DEEP, transformer
from networks import SPECS, Spec

TINY_VARIABLE = "XPNN_BENCHMARK_TINY"


def tiny() -> bool:
    """Whether the networks are to be tiny."""
    return bool(os.environ.get(TINY_VARIABLE))


def _dense(sizes: tuple[int, ...], batch: int, title: str = "") -> Spec:
    """A network for classes; trained by Adam."""
    if tiny():
        sizes, batch, title = tuple(min(units, 16) for units in sizes), min(batch, 8), ""
    title = title or f"{'-'.join(map(str, sizes))}, Adam, batch {batch}"
    return Spec("", title, sizes, "relu", "cross_entropy", "adam", batch)


def _images(batch: int) -> Any:
    """The residual network of `deep.py`."""
    shape = (32, 32, 3)
    if tiny():
        batch, shape = 4, (8, 8, 3)
    title = f"residual network of 3 blocks, {'x'.join(map(str, shape))}, Adam, batch {batch}"
    return DEEP["resnet"]._replace(batch=batch, title=title, input_shape=shape)


def _block() -> Any:
    """A transformer block of the size of a large language model's of 2019."""
    if tiny():
        return transformer("transformer", 2, width=16, heads=2, length=8, inner=32)
    return transformer("transformer", 8, width=1024, heads=16, length=1024, inner=4096)


SMALL = {"xor": SPECS["xor"], "small": SPECS["small"], "middle": _dense((784, 512, 512, 10), 128)}

LARGE = {
    "2048": _dense((2048,) * 4, 512, "2048x4, Adam, batch 512"),
    "4096": _dense((4096,) * 6, 4096, "4096x6, Adam, batch 4096"),
}

BLOCKS = {"resnet": _images(256), "transformer": _block()}

STREAMED = {"resnet": _images(256), "2048": LARGE["2048"]}

CROSSOVER = {
    f"{width}-{batch}": _dense((width, width, width, 10), batch)
    for width, batch in ((16, 16), (64, 32), (128, 32), (256, 64), (512, 128), (1024, 256), (2048, 512))
}
