"""What a layer is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from xpnn.config import Configurable, check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import Initializer
from xpnn.layers.kinds import Kind, Limit
from xpnn.random import DROPOUT, RandomKey, stream

Shape = tuple[int, ...]
"""Of a sample, without the batch. Where a layer takes or gives several arrays, a tuple of such tuples."""
Tree = dict[str, Any]
"""Nested dicts: parameter name -> array (or its specification, or its gradient), child name -> tree of the child."""

Backward = Callable[[Array], tuple[Any, Tree]]


class Parameter(NamedTuple):
    """What a layer asks for: an array of this shape, first filled by this initializer."""

    shape: Shape
    initializer: Initializer


class Buffer(NamedTuple):
    """An array that a layer keeps and that is not trained: a running mean, say.

    A training step changes it by what the layer's backward function returns under its name, among the gradients: what
    is to be added to it. So changes travel as gradients do. Of a layer that is used several times, the mean of its
    changes is added: a running mean that each of them moves towards its own batch cannot overshoot. A name that is
    missing there leaves the buffer as it is.
    """

    shape: Shape
    initializer: Initializer


class _Pass:
    """What all layers of one forward pass share."""

    __slots__ = ("keys", "mask")

    def __init__(self) -> None:
        self.keys = 0
        self.mask: Array | None = None


class Run:
    """What a forward pass knows besides its arrays.

    Attributes:
        training: True in a training step; dropout acts only then.
        input_gradient: False where nobody needs the gradient with respect to the layer's input.
    """

    __slots__ = ("_shared", "input_gradient", "seed", "step", "training")

    def __init__(self, training: bool = False, seed: int = 0, step: Any = 0, input_gradient: bool = True) -> None:
        self.training = training
        self.seed = seed
        self.step = step
        self.input_gradient = input_gradient
        self._shared = _Pass()

    @property
    def mask(self) -> Array | None:
        """Which time steps of which sequences count: a bool array (batch, time), or None for all of them.

        A layer such as Masking sets it in its forward function, and the layers behind it read it. Where a layer takes
        or gives several arrays, it speaks of the first one.
        """
        return self._shared.mask

    @mask.setter
    def mask(self, mask: Array | None) -> None:
        self._shared.mask = mask

    def random_key(self) -> RandomKey:
        """A key for random bits; each call within one forward pass gives another one."""
        index = self._shared.keys
        self._shared.keys = index + 1
        return RandomKey(self.seed, stream(DROPOUT, index), self.step)

    def with_input_gradient(self) -> Run:
        """The same run for a layer further in, whose input gradient is needed."""
        if self.input_gradient:
            return self
        inner = Run(self.training, self.seed, self.step, True)
        inner._shared = self._shared
        return inner


class Layer(Configurable):
    """A layer is a description: it holds its settings, never an array.

    A subclass says in `build` which parameters it needs for a shape of input, and in `forward` what it computes
    from input and parameters. `forward` returns its output and its backward function; what that needs, it closes over.

    A layer with several inputs takes a tuple of arrays, its `build` a tuple of shapes, and its backward function
    returns a tuple of gradients; one with several outputs returns a tuple, and its backward function takes one.

    Attributes:
        children: the layers inside this one by name; {} for most.
        output_kind: "probabilities" or "log_probabilities" for a layer whose output is that, "sigmoid" where each
            output is a probability of its own, "same" where it is what the input is, else "any".
        input_kind: "float"; "index" for a layer that looks its input up in a table; "any" if it takes both. A layer
            that always takes several inputs says so by a tuple, with one of these for each.
        fuses_activation: True if `forward` takes, as its fourth argument `activation`, the name of a simple activation
            (one of `xpnn.ops.linear.FUSABLE`) to apply as well: a Sequential gives it that of the layer behind.
    """

    children: Mapping[str, Layer] = {}
    fuses_activation: ClassVar[bool] = False
    output_kind: ClassVar[str] = "any"
    input_kind: ClassVar[Kind] = "float"

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        """(shape of an output sample, parameters and buffers) for samples of `input_shape`, without the batch.

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
    def index_limit(self) -> Limit:
        """For a layer with `input_kind` "index": its input must lie in [0, index_limit). None for others.

        A tuple of them where `input_kind` is one.
        """
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
        if isinstance(item, (Parameter, Buffer)):
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


def one_input(layer: Layer, input_shape: Shape) -> Shape:
    """`input_shape` if it is that of one array. Raises ShapeError if it stands for several inputs."""
    if any(isinstance(part, tuple) for part in input_shape):
        raise ShapeError(
            f"got several inputs, of shapes {input_shape}, wants one; see xpnn.Each for a layer for each", layer
        )
    return input_shape


def as_input_shape(given: Any) -> Any:
    """The shape of an input sample, or a tuple of such shapes for several inputs. Raises ConfigError for others."""
    if not isinstance(given, (tuple, list)):
        raise ConfigError(
            f"input_shape={given!r} is no shape; give that of one sample, such as (3,), or for several inputs a tuple "
            "of shapes, such as ((3,), (5, 2))"
        )
    if given and all(isinstance(part, (tuple, list)) for part in given):
        return tuple(tuple(check_integer("a length of input_shape", n, minimum=0) for n in part) for part in given)
    return tuple(check_integer("a length of input_shape", length, minimum=0) for length in given)


def _checked_shape(layer: Layer, whose: str, shape: Any) -> Shape:
    try:
        if isinstance(shape, (tuple, list)):
            if shape and all(isinstance(part, (tuple, list)) for part in shape):
                return tuple(_checked_shape(layer, whose, part) for part in shape)  # type: ignore[misc]
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
