"""Layers one after the other."""

from __future__ import annotations

import itertools
from typing import Any

from xpnn.dispatch import Array, has_faster_body
from xpnn.errors import ConfigError
from xpnn.layers.activation import Activation
from xpnn.layers.dense import Dense, DenseChain
from xpnn.layers.dropout import Dropout
from xpnn.layers.kinds import Kind, Limit, behind, of_each
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree, as_layer


class Sequential(Layer):
    """The output of each layer is the input of the next: y = f_n(... f_2(f_1(x))).

    A Dense or convolution layer and a simple activation behind it run as one fused op, and where the backend has a body
    for it, so do Dense layers in a row. Names and results stay the same.

    Args:
        layers: the layers, or one list of them; none at all is the identity. A list among them stands for a
            Sequential of its own.

    Raises:
        ConfigError: an argument is no layer, or a layer that looks indices up does not come first.
    """

    def __init__(self, *layers: Layer | list[Any] | tuple[Any, ...]) -> None:
        given: Any = layers
        if len(layers) == 1 and isinstance(layers[0], (list, tuple)):
            given = layers[0]
        self.layers = tuple(as_sequence(f"layer {position}", layer) for position, layer in enumerate(given))
        self.children = {str(position): layer for position, layer in enumerate(self.layers)}
        self._plan = _fuse(self.layers)
        self._chained_plan = _chain(self._plan)
        _check_kinds(self.layers)

    @property
    def input_shape(self) -> Shape | None:
        for layer in self.layers:
            shape = layer.input_shape  # asked for once: in nested layers each question asks all layers inside
            if shape is not None:
                return shape
            if not isinstance(layer, (Activation, Dropout)):  # these keep the shape, whatever it is
                return None
        return None

    @property
    def output_kind(self) -> str:  # type: ignore[override]
        # Behind a Softmax, a Flatten still gives probabilities.
        kinds = (layer.output_kind for layer in reversed(self.layers))
        return next((kind for kind in kinds if kind != "same"), "same")

    @property
    def input_kind(self) -> Kind:  # type: ignore[override]
        kind: Kind = "any"
        for layer in self.layers:
            kind = layer.input_kind if kind == "any" else behind(kind, layer.input_kind)
            if "any" not in kind:  # it is "float" or "index", or a tuple of these
                break
        return kind

    @property
    def index_limit(self) -> Limit:
        kind = self.input_kind
        if isinstance(kind, tuple):
            return tuple(self._limit(part, len(kind)) for part in range(len(kind)))
        return self._limit(0, 1)

    def _limit(self, part: int, count: int) -> int | None:
        """The index limit of one of `count` inputs."""
        # The layers before the first one that is particular about its input pass indices on as they are.
        for layer in self.layers:
            if of_each(layer.input_kind, count)[part] != "any":
                limit: int | None = of_each(layer.index_limit, count)[part]
                return limit
        return None

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        shape = input_shape
        tree: Tree = {}
        for name in self.children:
            shape, tree[name] = self.build_child(name, shape)
        return shape, tree

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        plan: list[Any] = self._plan
        if self._chained_plan is not None and has_faster_body("linear_chain", x):
            plan = self._chained_plan
        inner = run.with_input_gradient()
        backwards: list[tuple[str, Backward]] = []
        gradient_wanted = run.input_gradient
        name, layer = "", None
        try:
            for name, layer, activation in plan:
                here = inner if gradient_wanted else run
                given = parameters if type(layer) is DenseChain else parameters[name]
                if activation is None:
                    x, backward = layer.forward(x, given, here)
                else:
                    x, backward = layer.forward(x, given, here, activation)
                if run.mask is not None and not _fits(run.mask, x):
                    run.mask = None  # the time axis is gone, or is another one
                # Before the first layer with parameters there is nothing that a gradient would be needed for.
                if gradient_wanted or given:
                    gradient_wanted = True
                    backwards.append((name, backward))
        except Exception as error:
            if isinstance(layer, DenseChain):
                name, x = layer.at_fault(x, parameters, run)
            error.add_note(f"in the forward pass of {self._label(name)}, whose input has shape {_shape_of(x)}")
            raise

        def chain(dy: Any) -> tuple[Any, Tree]:
            gradients: Tree = {}
            name = ""
            try:
                for name, backward in reversed(backwards):
                    if dy is None:  # a layer that looks up indices ends the chain: indices have no gradient
                        break
                    dy, found = backward(dy)
                    if name in self.children:
                        gradients[name] = found
                    else:  # those of a DenseChain, by the names of its layers
                        gradients.update(found)
            except Exception as error:
                error.add_note(f"in the backward pass of {self._label(name)}")
                raise
            return (dy if run.input_gradient else None), gradients

        return x, chain

    def _label(self, name: str) -> str:
        """A child as error messages call it."""
        if name and name not in self.children:
            return f"layers {name} (Dense)"
        return f"layer {name} ({type(self.children[name]).__name__})" if name else "a Sequential"


def as_sequence(position: str, value: Any) -> Layer:
    """A layer as it is, a list of layers as a Sequential. Raises ConfigError for anything else."""
    return Sequential(*value) if isinstance(value, (list, tuple)) else as_layer(position, value)


def _fits(mask: Array, x: Any) -> bool:
    """True if x, or the first of several arrays, is a sequence whose steps the mask may speak of."""
    first = x[0] if isinstance(x, tuple) else x
    return first.ndim > 2 and tuple(first.shape[:2]) == tuple(mask.shape)


def _shape_of(x: Any) -> Any:
    return tuple(map(_shape_of, x)) if isinstance(x, tuple) else tuple(x.shape)


def _check_kinds(layers: tuple[Layer, ...]) -> None:
    """Raise ConfigError if a layer that looks indices up would get what another layer has computed."""
    before: Layer | None = None
    computed: Kind = "any"  # "any" where what comes in is still passed on as it is
    for position, layer in enumerate(layers):
        kind = layer.input_kind
        count = max((len(given) for given in (kind, computed) if isinstance(given, tuple)), default=1)
        pairs = zip(of_each(computed, count), of_each(kind, count), strict=False)
        if any(earlier != "any" and wanted == "index" for earlier, wanted in pairs):
            raise ConfigError(
                f"layer {position}, {layer!r}, looks up indices, but {before!r} before it computes floating-point "
                "numbers; it must come first"
            )
        if kind != "any":
            before = layer
        computed = behind(computed, kind)


def _fuse(layers: tuple[Layer, ...]) -> list[tuple[str, Layer, str | None]]:
    """(name, layer, fused activation) for what runs: an activation behind a layer that takes it is part of its op."""
    plan: list[tuple[str, Layer, str | None]] = []
    for position, layer in enumerate(layers):
        fusable = layer.fusable if isinstance(layer, Activation) else None
        if fusable and position and layers[position - 1].fuses_activation:
            name, before, _ = plan[-1]
            plan[-1] = (name, before, fusable)
        else:
            plan.append((str(position), layer, None))
    return plan


def _chain(plan: list[tuple[str, Layer, str | None]]) -> list[tuple[str, Layer | DenseChain, str | None]] | None:
    """The plan with one step for Dense layers in a row; None if there are no two in a row."""
    chained: list[tuple[str, Layer | DenseChain, str | None]] = []
    # A subclass may compute something else.
    for all_dense, group in itertools.groupby(plan, key=lambda step: type(step[1]) is Dense):
        steps: list[Any] = list(group)
        if all_dense and len(steps) > 1:
            chained.append((f"{steps[0][0]} to {steps[-1][0]}", DenseChain(steps), None))
        else:
            chained += steps
    return chained if len(chained) < len(plan) else None
