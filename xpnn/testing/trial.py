"""One layer, with random parameters, input and cotangent, evaluated on any backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xpnn import random
from xpnn.backend import Backend, host
from xpnn.dispatch import Array
from xpnn.errors import CheckError, ConfigError
from xpnn.initializers import Draw
from xpnn.layers.kinds import of_each
from xpnn.layers.layer import Layer, Run, Shape, checked_build
from xpnn.parameters import Layout, Structure, collect
from xpnn.testing.checks import check_array, same_bits

INPUT = "input"
"""What the layer's input is called among the names of its parameters; several are called "input.0", "input.1"..."""


class LayerOutcome(NamedTuple):
    """What a layer gave, on the host: its output, and gradients by the names of the parameters and "input".

    Several outputs stand in one flat array, one after the other.
    """

    output: Array
    gradients: dict[str, Array]


class Trial(NamedTuple):
    """What a layer is called with; all arrays are on the host, in float64 or int64.

    Attributes:
        layer: the layer.
        structure: its parameters.
        values: the parameters' values by name; no zeros, which would hide wrong gradients behind them.
        x: the inputs, a tuple where the layer takes several.
        cotangent: the gradient with respect to the output; a tuple where it gives several.
        training: whether dropout acts.
    """

    layer: Layer
    structure: Structure
    values: Mapping[str, Array]
    x: Any
    cotangent: Any
    training: bool

    def rounded(self, dtype: str) -> Trial:
        """The same trial with numbers that the dtype can hold."""
        values = {name: _rounded(value, dtype) for name, value in self.values.items()}
        return self._replace(
            values=values,
            x=each(lambda array: _rounded(array, dtype), self.x),
            cotangent=each(lambda array: _rounded(array, dtype), self.cotangent),
        )

    def inputs(self) -> dict[str, Array]:
        """The inputs by name."""
        return named_inputs(self.x)

    def moved(self, name: str, array: Array) -> Trial:
        """The same trial with another input, or value of a parameter, of that name."""
        if name not in self.inputs():
            return self._replace(values={**self.values, name: array})
        if not isinstance(self.x, tuple):
            return self._replace(x=array)
        return self._replace(x=tuple({**self.inputs(), name: array}.values()))


def each(function: Callable[[Any], Any], value: Any) -> Any:
    """function(value); of each part, where `value` is a tuple of arrays."""
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def named_inputs(x: Any) -> dict[str, Any]:
    """ "input" -> x; of a tuple, "input.0" -> its first part, and so on."""
    return {f"{INPUT}.{index}": part for index, part in enumerate(x)} if isinstance(x, tuple) else {INPUT: x}


def prepare(layer: Layer, input_shape: Shape, training: bool, seed: int) -> Trial:
    """A trial of a layer for inputs of `input_shape`, which includes the batch; of several, a tuple of shapes.

    Raises ConfigError if the shape has no batch; ShapeError if the layer refuses it.
    """
    if not isinstance(layer, Layer):
        raise ConfigError(f"{layer!r} is no xpnn.Layer")
    several = bool(input_shape) and all(isinstance(part, (tuple, list)) for part in input_shape)
    shapes = [tuple(int(length) for length in shape) for shape in (input_shape if several else [input_shape])]  # type: ignore[union-attr]
    if not all(shapes):
        raise ConfigError("input_shape=() has no batch; give the shape of a whole input, (batch, ...)")
    samples = tuple(shape[1:] for shape in shapes)
    output_shape, tree = checked_build(layer, samples if several else samples[0])  # type: ignore[arg-type]
    structure = collect(layer, tree)
    values = {}
    for entry in structure.entries:
        first = entry.parameter.initializer.sample(entry.parameter.shape, Draw(seed, entry.number))
        values[entry.name] = first + _uniform(entry.parameter.shape, seed, 3 + entry.number) - 0.5
    inputs = [
        _input(shape, kind, limit, layer, seed, 50 * number)
        for number, (shape, kind, limit) in enumerate(
            zip(shapes, of_each(layer.input_kind, len(shapes)), of_each(layer.index_limit, len(shapes)), strict=True)
        )
    ]
    batch = shapes[0][0]
    if output_shape and isinstance(output_shape[0], tuple):
        outputs = [(batch, *shape) for shape in output_shape]
        cotangent: Any = tuple(2.0 * _uniform(shape, seed, 1 + 50 * i) - 1.0 for i, shape in enumerate(outputs))
    else:
        cotangent = 2.0 * _uniform((batch, *output_shape), seed, 1) - 1.0
    return Trial(layer, structure, values, tuple(inputs) if several else inputs[0], cotangent, training)


def evaluate(trial: Trial, backend: Backend, dtype: str) -> LayerOutcome:
    """The layer's output and gradients, computed on a backend.

    Raises CheckError if a result has the wrong type, shape, dtype or device, or if the input was modified.
    """
    layer = trial.layer
    layout = Layout(trial.structure, dtype, backend.blocked)
    theta, buffers = layout.place(trial.values, backend)
    x = each(lambda array: backend.asarray(array, dtype if array.dtype.kind == "f" else "int64"), trial.x)
    cotangent = each(lambda array: backend.asarray(array, dtype), trial.cotangent)
    given = named_inputs(x)
    inputs = (*theta, *given.values(), *_parts(cotangent))
    before = [backend.to_host(array).copy() for array in inputs]
    with backend.context(), backend.discipline():

        def call(*arrays: Array) -> Any:
            first, theta = arrays[: len(given)], arrays[len(given) :]
            return layer.forward(first if isinstance(x, tuple) else first[0], layout.tree(theta, buffers), _run(trial))

        y, backward = backend.evaluate(call, *given.values(), *theta)
        for output, wanted in zip(_parts(y), _parts(cotangent), strict=True):
            check_array(f"{layer!r}: the output", output, backend, wanted)
        dx, tree = backward(cotangent)
        gradients = _gather(trial, layout, tree)
    of_inputs = dict.fromkeys(given) if dx is None else named_inputs(dx)
    indices = [name for name, array in trial.inputs().items() if array.dtype.kind != "f"]  # these have no gradient
    gradients = {**{name: gradient for name, gradient in of_inputs.items() if name not in indices}, **gradients}
    parts = layout.split(theta)
    for name, gradient in gradients.items():
        if gradient is None:
            raise CheckError(f"{layer!r}: backward gave None as the gradient of {name!r}")
        check_array(f"{layer!r}: the gradient of {name!r}", gradient, backend, {**parts, **given}[name])
    try:
        layout.check_gradients(tree)
    except ConfigError as error:
        raise CheckError(f"{layer!r}: {error}") from None
    for array, copy in zip(inputs, before, strict=True):
        if not same_bits(backend.to_host(array), copy):
            raise CheckError(f"{layer!r} modified its input, its parameters or the gradient that backward was given")
    on_host = {name: backend.to_host(array) for name, array in gradients.items()}
    return LayerOutcome(joined(each(backend.to_host, y)), on_host)


def forward_only(trial: Trial) -> Any:
    """The layer's output on NumPy in float64."""
    layout = Layout(trial.structure, "float64", host().blocked)
    theta, buffers = layout.place(trial.values, host())
    return trial.layer.forward(trial.x, layout.tree(theta, buffers), _run(trial))[0]


def joined(value: Any) -> Array:
    """Several host arrays as one flat one; one array as it is."""
    xp = host().xp
    return xp.concat([xp.reshape(part, (-1,)) for part in value]) if isinstance(value, tuple) else value


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _run(trial: Trial) -> Run:
    return Run(trial.training, seed=5, step=3)


def _gather(trial: Trial, layout: Layout, tree: Any) -> dict[str, Array]:
    try:
        return layout.gather(tree)
    except (KeyError, TypeError):
        raise CheckError(
            f"{trial.layer!r}: backward must return (dx, gradients) with a gradient for each of "
            f"{', '.join(layout.names)}; it returned {_names(tree)}"
        ) from None


def _names(tree: Any) -> Any:
    """The names in nested gradients, for an error message."""
    return {key: _names(item) for key, item in tree.items()} if isinstance(tree, dict) else "..."


def _input(shape: Shape, kind: str, limit: int | None, layer: Layer, seed: int, number: int) -> Array:
    """A random input: numbers, or indices."""
    if kind != "index":
        return 4.0 * _uniform(shape, seed, number) - 2.0
    xp = host().xp
    rows = _index_limit(layer) if limit is None else limit
    return xp.astype(xp.floor(_uniform(shape, seed, number) * rows), xp.int64)


def _index_limit(layer: Layer) -> int:
    """The number of rows of the table that the first layer looks up."""
    limit = getattr(layer, "index_limit", None)
    if limit is not None and not isinstance(limit, tuple):
        return int(limit)
    for child in layer.children.values():
        if child.input_kind == "index":
            return _index_limit(child)
    raise ConfigError(f"{layer!r} takes indices and does not say how many there are: give it an attribute index_limit")


def _uniform(shape: Shape, seed: int, number: int) -> Array:
    return random.uniform(seed, random.stream(random.TESTING, 100 + number), 0, tuple(shape))


def _rounded(values: Array, dtype: str) -> Array:
    xp = host().xp
    if values.dtype.kind != "f":
        return values
    return xp.astype(xp.astype(values, getattr(xp, dtype)), xp.float64)
