"""Layers for sequences: Masking and TimeDistributed."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from xpnn import ops
from xpnn.config import check_number
from xpnn.dispatch import Array
from xpnn.errors import ShapeError
from xpnn.layers.kinds import Kind, Limit
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.sequential import as_sequence


class Masking(Layer):
    """Marks the steps of sequences that are padding, for the layers behind: those where every feature is `value`.

    The sequences (batch, time, features) pass as they are. What is marked, recurrent layers skip. See
    `xpnn.data.pad_sequences`.

    Args:
        value: what padded steps are filled with.

    Raises:
        ConfigError: the value is no finite number.
        ShapeError: (when built) the input is no sequence.
    """

    output_kind: ClassVar[str] = "same"

    def __init__(self, value: float = 0.0) -> None:
        self.value = check_number("value", value, "a finite number", math.isfinite)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        if len(input_shape) < 2:
            raise ShapeError(f"got samples of shape {input_shape}, wants sequences of shape (time, features)", self)
        return input_shape, {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        run.mask, _ = ops.padding_mask(x, value=self.value)
        return x, lambda dy: (dy, {})


class TimeDistributed(Layer):
    """Applies a layer to each step of the sequences by itself: (batch, time, ...) -> (batch, time, ...).

    All steps go through it at once, as samples of one batch. A Dense layer does that of its own accord; images in a
    series, say, need it: `TimeDistributed(Conv2D(8, 3))`. The parameters are named "layer.weight" and so on.

    Args:
        layer: what each step goes through; a list stands for a Sequential.

    Raises:
        ConfigError: it is no layer.
        ShapeError: (when built) the input is no sequence, or the layer refuses one of its steps.
    """

    def __init__(self, layer: Layer | list[Any]) -> None:
        self.layer = as_sequence("layer", layer)
        self.children = {"layer": self.layer}

    @property
    def output_kind(self) -> str:  # type: ignore[override]
        return self.layer.output_kind

    @property
    def input_kind(self) -> Kind:  # type: ignore[override]
        return self.layer.input_kind

    @property
    def index_limit(self) -> Limit:
        return self.layer.index_limit

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        if not input_shape:
            raise ShapeError("got samples that are single numbers, wants sequences of shape (time, ...)", self)
        shape, tree = self.build_child("layer", input_shape[1:])
        return (input_shape[0], *shape), {"layer": tree}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        batch, time = x.shape[:2]
        steps, fold_vjp = ops.fold_time(x)
        mask, run.mask = run.mask, None  # the layer sees no sequences
        outputs, backward_of_layer = self.layer.forward(steps, parameters["layer"], run)
        run.mask = mask
        y, unfold_vjp = ops.unfold_time(outputs, batch, time)

        def backward(dy: Array) -> tuple[Any, Tree]:
            dsteps, gradients = backward_of_layer(unfold_vjp(dy)[0])
            return (None if dsteps is None else fold_vjp(dsteps)[0]), {"layer": gradients}

        return y, backward
