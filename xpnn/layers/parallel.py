"""Layers side by side."""

from __future__ import annotations

from typing import Any

from xpnn import ops
from xpnn.config import check_integer
from xpnn.dispatch import Array, Vjp
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.kinds import Kind, Limit, beside
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.residual import first_mask, smallest_limit, sum_gradients
from xpnn.layers.sequential import as_sequence

COMBINATIONS = ("add", "concatenate")
"""How several arrays become one."""


class Parallel(Layer):
    """All branches get the same input; their outputs are added, or put one after the other.

    The parameters of the first branch are named "branches.0.weight" and so on. `Sequential()` is a branch that passes
    its input on.

    All branches start with the same mask of time steps (`run.mask`). Behind them there is the first one that a branch
    leaves.

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
        if combine not in COMBINATIONS:
            raise ConfigError(f"combine={combine!r} is unknown; choose {' or '.join(map(repr, COMBINATIONS))}")
        self.combine = combine
        self.axis = check_integer("axis", axis, minimum=-(2**31))
        if self.axis == 0:
            raise ConfigError("axis=0 is the batch; give the axis of the features, -1, or another one of the samples")
        self._kind: Kind = "any"
        for branch in self.branches:
            kind = beside(self._kind, branch.input_kind)
            if kind is None:
                raise ConfigError(
                    f"{self!r}: some branches look up indices and others want numbers, or they take several inputs and "
                    "not the same number of them; all get the same input. For inputs of their own, see xpnn.Each"
                )
            self._kind = kind
        self.children = {f"branches.{position}": branch for position, branch in enumerate(self.branches)}

    @property
    def input_shape(self) -> Shape | None:
        shapes = (branch.input_shape for branch in self.branches)
        return next((shape for shape in shapes if shape is not None), None)

    @property
    def input_kind(self) -> Kind:  # type: ignore[override]
        return self._kind

    @property
    def index_limit(self) -> Limit:
        return smallest_limit(*self.branches)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        shapes: list[Shape] = []
        tree: Tree = {}
        for name in self.children:
            shape, tree[name] = self.build_child(name, input_shape)
            shapes.append(shape)
        return combined_shape(self, shapes), tree

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        outputs: list[Array] = []
        backwards: list[tuple[str, Backward]] = []
        mask = run.mask
        masks: list[Array | None] = []
        for name, branch in self.children.items():
            run.mask = mask
            output, backward_of_branch = branch.forward(x, parameters[name], run)
            masks.append(run.mask)
            outputs.append(output)
            backwards.append((name, backward_of_branch))
        run.mask = first_mask(masks)
        y, vjp = combine_outputs(outputs, self.combine, self.axis)

        def backward(dy: Array) -> tuple[Any, Tree]:
            gradients: Tree = {}
            input_gradients = []
            for (name, backward_of_branch), doutput in zip(backwards, vjp(dy), strict=True):
                dx, gradients[name] = backward_of_branch(doutput)
                input_gradients.append(dx)
            return (sum_gradients(tuple(input_gradients)) if run.input_gradient else None), gradients

        return y, backward


def combined_shape(layer: Any, shapes: list[Shape]) -> Shape:
    """The shape of a sample of what `combine_outputs` makes of outputs whose samples have these shapes.

    Args:
        layer: whose outputs they are; it has the settings `combine` and `axis`.
        shapes: without the batch.

    Raises ShapeError if the shapes do not fit together.
    """
    listed = f"its branches make samples of shapes {', '.join(map(str, shapes))}"
    first = shapes[0]
    if any(shape and isinstance(shape[0], tuple) for shape in shapes):
        raise ShapeError(f"{listed}; one of them gives several arrays, and only single ones can be combined", layer)
    if layer.combine == "add":
        if len(set(shapes)) > 1:
            raise ShapeError(f"{listed}; a sum needs one shape", layer)
        return first
    axis = layer.axis - 1 if layer.axis > 0 else len(first) + layer.axis
    if not 0 <= axis < len(first):
        raise ShapeError(f"{listed}, without axis {layer.axis}", layer)
    if len({(len(shape), *shape[:axis], *shape[axis + 1 :]) for shape in shapes}) > 1:
        raise ShapeError(f"{listed}; they may differ in axis {layer.axis} only", layer)
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def combine_outputs(outputs: list[Array], combine: str, axis: int) -> tuple[Array, Vjp]:
    """The sum of the outputs, or their concatenation, and its vjp."""
    if combine == "add":
        return ops.add(*outputs)
    return ops.concatenate(*outputs, axis=axis)
