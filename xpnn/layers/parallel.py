"""Layers side by side."""

from __future__ import annotations

from typing import Any

from xpnn import ops
from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.residual import smallest_limit, sum_gradients
from xpnn.layers.sequential import as_sequence

_COMBINATIONS = ("add", "concatenate")


class Parallel(Layer):
    """All branches get the same input; their outputs are added, or put one after the other.

    The parameters of the first branch are named "branches.0.weight" and so on. `Sequential()` is a branch that passes
    its input on.

    Args:
        branches: layers, at least one, or one list of them; a list among them stands for a Sequential.
        combine: "add" or "concatenate".
        axis: of the samples with their batch, along which outputs are concatenated: -1 is the last, 1 the first of
            a sample. "add" ignores it.

    Raises:
        ConfigError: an argument is no layer, there is no branch, `combine` is unknown, the axis is that of the batch,
            or some branches look up indices and others compute with numbers.
        ShapeError: (when built) the shapes of the outputs do not fit together.
    """

    def __init__(self, *branches: Layer | list[Any] | tuple[Any, ...], combine: str = "add", axis: int = -1) -> None:
        given: Any = branches
        if len(branches) == 1 and isinstance(branches[0], (list, tuple)):
            given = branches[0]
        self.branches = tuple(as_sequence(f"branch {position}", branch) for position, branch in enumerate(given))
        if not self.branches:
            raise ConfigError("Parallel() has no branches; give one layer, or list of layers, for each")
        if combine not in _COMBINATIONS:
            raise ConfigError(f"combine={combine!r} is unknown; choose {' or '.join(map(repr, _COMBINATIONS))}")
        self.combine = combine
        self.axis = check_integer("axis", axis, minimum=-(2**31))
        if self.axis == 0:
            raise ConfigError("axis=0 is the batch; give the axis of the features, -1, or another one of the samples")
        if len({branch.input_kind for branch in self.branches} - {"any"}) > 1:
            raise ConfigError(f"{self!r}: some branches look up indices and others want numbers; they get one input")
        self.children = {f"branches.{position}": branch for position, branch in enumerate(self.branches)}

    @property
    def input_shape(self) -> Shape | None:
        shapes = (branch.input_shape for branch in self.branches)
        return next((shape for shape in shapes if shape is not None), None)

    @property
    def input_kind(self) -> str:  # type: ignore[override]
        kinds = (branch.input_kind for branch in self.branches)
        return next((kind for kind in kinds if kind != "any"), "any")

    @property
    def index_limit(self) -> int | None:
        return smallest_limit(*self.branches)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        shapes: list[Shape] = []
        tree: Tree = {}
        for name in self.children:
            shape, tree[name] = self.build_child(name, input_shape)
            shapes.append(shape)
        if self.combine == "add":
            if len(set(shapes)) > 1:
                raise ShapeError(f"its branches make samples of shapes {_listed(shapes)}; a sum needs one shape", self)
            return shapes[0], tree
        return self._concatenated(shapes), tree

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        outputs: list[Array] = []
        backwards: list[tuple[str, Backward]] = []
        for name, branch in self.children.items():
            output, backward_of_branch = branch.forward(x, parameters[name], run)
            outputs.append(output)
            backwards.append((name, backward_of_branch))
        if self.combine == "add":
            y, vjp = ops.add(*outputs)
        else:
            y, vjp = ops.concatenate(*outputs, axis=self.axis)

        def backward(dy: Array) -> tuple[Any, Tree]:
            gradients: Tree = {}
            input_gradients = []
            for (name, backward_of_branch), doutput in zip(backwards, vjp(dy), strict=True):
                dx, gradients[name] = backward_of_branch(doutput)
                input_gradients.append(dx)
            return (sum_gradients(tuple(input_gradients)) if run.input_gradient else None), gradients

        return y, backward

    def _concatenated(self, shapes: list[Shape]) -> Shape:
        """The shape of the concatenation, without the batch. Raises ShapeError if the shapes do not fit."""
        first = shapes[0]
        axis = self.axis - 1 if self.axis > 0 else len(first) + self.axis
        if not 0 <= axis < len(first):
            raise ShapeError(f"its branches make samples of shapes {_listed(shapes)}, without axis {self.axis}", self)
        if len({(len(shape), *shape[:axis], *shape[axis + 1 :]) for shape in shapes}) > 1:
            raise ShapeError(
                f"its branches make samples of shapes {_listed(shapes)}; they may differ in axis {self.axis} only", self
            )
        return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _listed(shapes: list[Shape]) -> str:
    return ", ".join(str(shape) for shape in shapes)
