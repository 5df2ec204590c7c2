"""What a layer is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from xpnn.config import Configurable, check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import Initializer
from xpnn.random import DROPOUT, RandomKey, stream

Shape = tuple[int, ...]
Tree = dict[str, Any]
"""Nested dicts: parameter name -> array (or its specification, or its gradient), child name -> tree of the child."""

Backward = Callable[[Array], tuple[Any, Tree]]


class Parameter(NamedTuple):
    """What a layer asks for: an array of this shape, first filled by this initializer."""

    shape: Shape
    initializer: Initializer


class Run:
    """What a forward pass knows besides its arrays.

    Attributes:
        training: True in a training step; dropout acts only then.
        input_gradient: False where nobody needs the gradient with respect to the layer's input.
    """

    __slots__ = ("_count", "input_gradient", "seed", "step", "training")

    def __init__(self, training: bool = False, seed: int = 0, step: Any = 0, input_gradient: bool = True) -> None:
        self.training = training
        self.seed = seed
        self.step = step
        self.input_gradient = input_gradient
        self._count = [0]

    def random_key(self) -> RandomKey:
        """A key for random bits; each call within one forward pass gives another one."""
        index = self._count[0]
        self._count[0] = index + 1
        return RandomKey(self.seed, stream(DROPOUT, index), self.step)

    def with_input_gradient(self) -> Run:
        """The same run for a layer further in, whose input gradient is needed."""
        if self.input_gradient:
            return self
        inner = Run(self.training, self.seed, self.step, True)
        inner._count = self._count
        return inner


class Layer(Configurable):
    """A layer is a description: it holds its settings, never an array.

    A subclass says in `build` which parameters it needs for a shape of input, and in `forward` what it computes
    from input and parameters. `forward` returns its output and its backward function; what that needs, it closes over.

    Attributes:
        children: the layers inside this one by name; {} for most.
        output_kind: "probabilities" or "log_probabilities" for a layer whose output is that, "sigmoid" where each
            output is a probability of its own, "same" where it is what the input is, else "any".
        input_kind: "float"; "index" for a layer that looks its input up in a table; "any" if it takes both.
    """

    children: Mapping[str, Layer] = {}
    output_kind: ClassVar[str] = "any"
    input_kind: ClassVar[str] = "float"

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        """(shape of an output sample, parameters) for samples of `input_shape`; shapes without the batch.

        Raises ShapeError if samples of that shape cannot be used.
        """
        return input_shape, {}

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        """(y, backward) with backward(dy) -> (dx, gradients), gradients by the names of the parameters."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(self, x, parameters, run)")

    def build_child(self, name: str, input_shape: Shape) -> tuple[Shape, Tree]:
        """`build` of a child, with its name in front of the path of an error."""
        try:
            return checked_build(self.children[name], input_shape)
        except ShapeError as error:
            raise error.inside(name) from None

    @property
    def input_shape(self) -> Shape | None:
        """The shape of an input sample if the layer's settings fix it, else None."""
        return None

    @property
    def index_limit(self) -> int | None:
        """For a layer with `input_kind` "index": its input must lie in [0, index_limit). None for others."""
        return None


def checked_build(layer: Layer, input_shape: Shape) -> tuple[Shape, Tree]:
    """What the layer's `build` returns, shapes as tuples. Raises ConfigError if it is not what `build` must return."""
    built = layer.build(input_shape)
    if not isinstance(built, tuple) or len(built) != 2 or not isinstance(built[1], dict):
        raise ConfigError(
            f"{layer!r}: build must return (shape of an output sample, dict of parameters); it returned {built!r}"
        )
    shape, given = built
    tree: Tree = {}
    for name, item in given.items():
        if isinstance(item, Parameter):
            if not isinstance(item.initializer, Initializer):
                raise ConfigError(
                    f"{layer!r}: the initializer of its parameter {name!r} is {item.initializer!r}; give an object, "
                    "such as xpnn.initializers.Zeros()"
                )
            tree[name] = item._replace(shape=_checked_shape(layer, f"its parameter {name!r}", item.shape))
        elif name in layer.children:
            tree[name] = item
        else:
            raise ConfigError(f"{layer!r}: build gave {item!r} as its parameter {name!r}; give an xpnn.Parameter")
    return _checked_shape(layer, "an output sample", shape), tree


def _checked_shape(layer: Layer, whose: str, shape: Any) -> Shape:
    try:
        if isinstance(shape, (tuple, list)):
            return tuple(check_integer("length", length, minimum=0) for length in shape)
    except ConfigError:
        pass
    raise ConfigError(f"{layer!r}: build gave {shape!r} as the shape of {whose}; give a tuple of integers from 0 on")


def as_layer(position: str, value: Any) -> Layer:
    """`value` if it is a layer. Raises ConfigError for anything else."""
    if isinstance(value, Layer):
        return value
    hint = f"; write {value.__name__}(...)" if isinstance(value, type) and issubclass(value, Layer) else ""
    raise ConfigError(f"{position} is {value!r}, which is no xpnn.Layer{hint}")
