"""A block with a shortcut around it."""

from __future__ import annotations

from typing import Any

from xpnn import ops
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.kinds import Kind, Limit, smallest
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.sequential import Sequential, as_sequence


class Residual(Layer):
    """y = x + f(x), with f = `layers` one after the other (He, Zhang, Ren and Sun, CVPR 2016).

    f must give samples of the shape that it gets. Where it does not, a `shortcut` can: y = s(x) + f(x). Both start with
    the same mask of time steps; behind the sum there is the one that f leaves or, where it leaves none, s.
    The parameters are named as in a Sequential ("0.weight"), those of the shortcut "shortcut.weight".

    Args:
        layers: the layers of f, at least one, or one list of them.
        shortcut: the layer s, or None for the identity.

    Raises:
        ConfigError: an argument is no layer, or there is none.
        ShapeError: (when built) the two terms of the sum differ in shape.
    """

    def __init__(self, *layers: Layer | list[Any] | tuple[Any, ...], shortcut: Layer | list[Any] | None = None) -> None:
        self._body = Sequential(*layers)
        self.layers = self._body.layers
        if not self.layers:
            raise ConfigError("Residual() has no layers; give those of f in y = x + f(x)")
        self.shortcut = None if shortcut is None else as_sequence("shortcut", shortcut)
        self.children = dict(self._body.children)
        if self.shortcut is not None:
            self.children["shortcut"] = self.shortcut

    @property
    def input_shape(self) -> Shape | None:
        shape = self._body.input_shape
        if shape is None and self.shortcut is not None:
            return self.shortcut.input_shape
        return shape

    @property
    def input_kind(self) -> Kind:  # type: ignore[override]
        return self._body.input_kind

    @property
    def index_limit(self) -> Limit:
        return smallest_limit(self._body, self.shortcut)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        shape, tree = self._body.build(input_shape)
        if self.shortcut is None:
            if shape != input_shape:
                raise ShapeError(
                    f"got samples of shape {input_shape}, and its layers make samples of shape {shape} of them; "
                    "x + f(x) needs one shape: change the last layer, or give a shortcut that makes "
                    f"samples of shape {shape}, such as Dense(units) or Conv2D(channels, 1, stride)",
                    self,
                )
            return shape, tree
        short, tree["shortcut"] = self.build_child("shortcut", input_shape)
        if short != shape:
            raise ShapeError(
                f"its layers make samples of shape {shape} of samples of shape {input_shape}, its shortcut samples "
                f"of shape {short}; s(x) + f(x) needs one shape",
                self,
            )
        return shape, tree

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        mask = run.mask
        inside, body_backward = self._body.forward(x, parameters, run)
        body_mask, run.mask = run.mask, mask
        if self.shortcut is None:
            beside, shortcut_backward = x, None
        else:
            beside, shortcut_backward = self.shortcut.forward(x, parameters["shortcut"], run)
        run.mask = first_mask([body_mask, run.mask])
        y, add_vjp = ops.add(beside, inside)

        def backward(dy: Array) -> tuple[Any, Tree]:
            dbeside, dinside = add_vjp(dy)
            dx, gradients = body_backward(dinside)
            if shortcut_backward is not None:
                dbeside, gradients["shortcut"] = shortcut_backward(dbeside)
            return (sum_gradients((dbeside, dx)) if run.input_gradient else None), gradients

        return y, backward


def sum_gradients(gradients: tuple[Any, ...]) -> Any:
    """The sum of the gradients that several users of one array give back; None where an array of indices has none."""
    present = [gradient for gradient in gradients if gradient is not None]
    if len(present) < 2:
        return present[0] if present else None
    return ops.add(*present)[0]


def first_mask(masks: list[Array | None]) -> Array | None:
    """The first mask among what several users of one array leave; None if none of them leaves one."""
    return next((mask for mask in masks if mask is not None), None)


def smallest_limit(*layers: Layer | None) -> Limit:
    """The index limit that suits all layers which get the same input."""
    return smallest([layer.index_limit for layer in layers if layer is not None])
