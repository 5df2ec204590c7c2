"""The networks that are measured."""

from __future__ import annotations

from typing import NamedTuple

from deep import CLASSES, DEEP, Deep


class Spec(NamedTuple):
    """One network with its loss, optimizer and batch; float32 throughout.

    Attributes:
        name: its name on the command line.
        title: its name in the table.
        sizes: units of the input and of each Dense layer.
        activation: "tanh" (behind every layer) or "relu" (behind every layer but the last).
        loss: "mse" or "cross_entropy".
        optimizer: "sgd" (rate 0.1) or "adam" (rate 0.001).
        batch: samples in a batch.
    """

    name: str
    title: str
    sizes: tuple[int, ...]
    activation: str
    loss: str
    optimizer: str
    batch: int


SPECS: dict[str, Spec | Deep] = {
    spec.name: spec
    for spec in (
        Spec("xor", "2-3-1 tanh, MSE, SGD, batch 4", (2, 3, 1), "tanh", "mse", "sgd", 4),
        Spec("small", "4-16-3 ReLU, cross-entropy, Adam, batch 32", (4, 16, 3), "relu", "cross_entropy", "adam", 32),
        Spec("middle", "784-512-512-10, Adam, batch 128", (784, 512, 512, 10), "relu", "cross_entropy", "adam", 128),
        Spec("wide", "2048x4, Adam, batch 512", (2048,) * 4, "relu", "cross_entropy", "adam", 512),
        *DEEP.values(),
    )
}


def data(spec: Spec | Deep):
    """(inputs, targets) as NumPy arrays: the same for every contender."""
    import numpy as np

    generator = np.random.Generator(np.random.Philox(0))
    if isinstance(spec, Deep):
        inputs = generator.standard_normal((spec.batch, *spec.input_shape)).astype(np.float32)
        if spec.loss == "mse":
            return inputs, generator.standard_normal(inputs.shape).astype(np.float32)
        return inputs, generator.integers(0, CLASSES, spec.batch)
    inputs = generator.standard_normal((spec.batch, spec.sizes[0])).astype(np.float32)
    if spec.loss == "mse":
        targets = generator.uniform(-1, 1, (spec.batch, spec.sizes[-1])).astype(np.float32)
    else:
        targets = generator.integers(0, spec.sizes[-1], spec.batch)
    return inputs, targets
