"""A layer for each of several inputs."""

from __future__ import annotations

from typing import Any

from xpnn.config import check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.kinds import Limit
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.parallel import COMBINATIONS, combine_outputs, combined_shape
from xpnn.layers.sequential import as_sequence


class Each(Layer):
    """Each input has a layer of its own: (a, b) -> (f(a), g(b)). A network that begins with it takes several inputs.

    An encoder and a decoder, trained with `net.fit((target_in, source), target_out, ...)`; the decoder block gets what
    the first branch makes of the target, and what the second one, the encoder, makes of the source:

    >>> encoder = [xpnn.Embedding(20, 32), xpnn.SinusoidalPositions(), xpnn.TransformerEncoderBlock(4, 64)]
    >>> decoder = [xpnn.Embedding(20, 32), xpnn.SinusoidalPositions()]
    >>> xpnn.Network(xpnn.Each(decoder, encoder), xpnn.TransformerDecoderBlock(4, 64), xpnn.Dense(20))

    With `combine`, the outputs become one array. A network for pictures with a table of measurements:

    >>> pictures = [xpnn.Conv2D(8, 3), xpnn.ReLU(), xpnn.Flatten()]
    >>> xpnn.Network(xpnn.Each(pictures, [xpnn.Dense(16), xpnn.ReLU()], combine="concatenate"), xpnn.Dense(3))

    `Sequential()` passes an input on as it is. Where all layers shall get the same input, see `Parallel`. The
    parameters of the first layer are named "0.weight" and so on.

    A mask of time steps (`run.mask`) speaks of the first of several arrays: the first layer starts with that of the
    layers before, the others without one. Behind Each there is the mask that the first layer leaves, and with `combine`
    none. To tell a decoder which steps of its memory are padding, give a mask as a third input.

    Args:
        layers: one for each input, at least one, or one list of them; a list among them stands for a Sequential.
        combine: None for a tuple of outputs; "add" or "concatenate" for one array.
        axis: as for `Parallel`: that of the concatenation.

    Raises:
        ConfigError: an argument is no layer, there is none, one takes several inputs itself, `combine` is unknown, or
            the axis is that of the batch.
        ShapeError: (when built) there are not as many inputs as layers, a layer gives several outputs, or the outputs
            do not fit together.
    """

    def __init__(
        self, *layers: Layer | list[Any] | tuple[Any, ...], combine: str | None = None, axis: int = -1
    ) -> None:
        given: Any = layers
        if len(layers) == 1 and isinstance(layers[0], (list, tuple)):
            given = layers[0]
        self.layers = tuple(as_sequence(f"layer {position}", layer) for position, layer in enumerate(given))
        if not self.layers:
            raise ConfigError("Each() has no layers; give one layer, or list of layers, for each input")
        if combine is not None and combine not in COMBINATIONS:
            raise ConfigError(f"combine={combine!r} is unknown; choose None, {' or '.join(map(repr, COMBINATIONS))}")
        self.combine = combine
        self.axis = check_integer("axis", axis, minimum=-(2**31))
        if self.axis == 0:
            raise ConfigError("axis=0 is the batch; give the axis of the features, -1, or another one of the samples")
        for position, layer in enumerate(self.layers):
            if isinstance(layer.input_kind, tuple):
                raise ConfigError(
                    f"Each: layer {position}, {layer!r}, takes several inputs, and it would get one array"
                )
        self.children = {str(position): layer for position, layer in enumerate(self.layers)}

    @property
    def input_shape(self) -> Any:
        shapes = tuple(layer.input_shape for layer in self.layers)
        return None if None in shapes else shapes

    @property
    def input_kind(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(layer.input_kind for layer in self.layers)  # type: ignore[misc]

    @property
    def index_limit(self) -> Limit:
        return tuple(layer.index_limit for layer in self.layers)  # type: ignore[misc]

    def build(self, input_shape: Any) -> tuple[Any, Tree]:
        several = bool(input_shape) and all(isinstance(shape, tuple) for shape in input_shape)
        if not several or len(input_shape) != len(self.layers):
            got = f"{len(input_shape)} inputs, of shapes {input_shape}" if several else f"one input, {input_shape}"
            raise ShapeError(f"got samples of {got}, wants a tuple of {len(self.layers)}, one for each layer", self)
        shapes: list[Shape] = []
        tree: Tree = {}
        for name, shape in zip(self.children, input_shape, strict=True):
            output, tree[name] = self.build_child(name, shape)
            if output and isinstance(output[0], tuple):
                raise ShapeError(f"its layer {name} gives several arrays, of shapes {output}; it must give one", self)
            shapes.append(output)
        return (combined_shape(self, shapes) if self.combine else tuple(shapes)), tree

    def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
        outputs: list[Array] = []
        backwards: list[tuple[str, Backward]] = []
        mask = None
        for (name, layer), part in zip(self.children.items(), x, strict=True):
            output, backward_of_layer = layer.forward(part, parameters[name], run)
            if not outputs:
                mask = run.mask
            run.mask = None
            outputs.append(output)
            backwards.append((name, backward_of_layer))
        if self.combine:
            y, vjp = combine_outputs(outputs, self.combine, self.axis)
        else:
            y, vjp = tuple(outputs), tuple
            run.mask = mask

        def backward(dy: Any) -> tuple[Any, Tree]:
            gradients: Tree = {}
            dx = []
            for (name, backward_of_layer), doutput in zip(backwards, vjp(dy), strict=True):
                # What is used as a mask or as indices has no gradient.
                dpart, gradients[name] = (None, {}) if doutput is None else backward_of_layer(doutput)
                dx.append(dpart)
            return (tuple(dx) if run.input_gradient else None), gradients

        return y, backward
