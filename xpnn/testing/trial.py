"""One layer, with random parameters, input and cotangent, evaluated on any backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from xpnn import random
from xpnn.backend import Backend, host
from xpnn.dispatch import Array
from xpnn.errors import CheckError, ConfigError
from xpnn.initializers import Draw
from xpnn.layers.layer import Layer, Run, Shape, checked_build
from xpnn.parameters import Layout, Structure, collect
from xpnn.testing.checks import check_array, same_bits

INPUT = "input"
"""What the layer's input is called among the names of its parameters."""


class LayerOutcome(NamedTuple):
    """What a layer gave, on the host: its output, and gradients by the names of the parameters and "input"."""

    output: Array
    gradients: dict[str, Array]


class Trial(NamedTuple):
    """What a layer is called with; all arrays are on the host, in float64 or int64.

    Attributes:
        layer: the layer.
        structure: its parameters.
        values: the parameters' values by name; no zeros, which would hide wrong gradients behind them.
        x: the input.
        cotangent: the gradient with respect to the output.
        training: whether dropout acts.
    """

    layer: Layer
    structure: Structure
    values: Mapping[str, Array]
    x: Array
    cotangent: Array
    training: bool

    def rounded(self, dtype: str) -> Trial:
        """The same trial with numbers that the dtype can hold."""
        values = {name: _rounded(value, dtype) for name, value in self.values.items()}
        return self._replace(values=values, x=_rounded(self.x, dtype), cotangent=_rounded(self.cotangent, dtype))


def prepare(layer: Layer, input_shape: Shape, training: bool, seed: int) -> Trial:
    """A trial of a layer for inputs of `input_shape`, which includes the batch.

    Raises ConfigError if the shape has no batch; ShapeError if the layer refuses it.
    """
    if not isinstance(layer, Layer):
        raise ConfigError(f"{layer!r} is no xpnn.Layer")
    shape = tuple(int(length) for length in input_shape)
    if not shape:
        raise ConfigError("input_shape=() has no batch; give the shape of a whole input, (batch, ...)")
    output_shape, tree = checked_build(layer, shape[1:])
    structure = collect(layer, tree)
    values = {}
    for entry in structure.entries:
        first = entry.parameter.initializer.sample(entry.parameter.shape, Draw(seed, entry.number))
        values[entry.name] = first + _uniform(entry.parameter.shape, seed, 3 + entry.number) - 0.5
    if layer.input_kind == "index":
        xp = host().xp
        x = xp.astype(xp.floor(_uniform(shape, seed, 0) * _index_limit(layer)), xp.int64)
    else:
        x = 4.0 * _uniform(shape, seed, 0) - 2.0
    cotangent = 2.0 * _uniform((shape[0], *output_shape), seed, 1) - 1.0
    return Trial(layer, structure, values, x, cotangent, training)


def evaluate(trial: Trial, backend: Backend, dtype: str) -> LayerOutcome:
    """The layer's output and gradients, computed on a backend.

    Raises CheckError if a result has the wrong type, shape, dtype or device, or if the input was modified.
    """
    layer = trial.layer
    layout = Layout(trial.structure, dtype, backend.blocked)
    theta, buffers = layout.place(trial.values, backend)
    indices = layer.input_kind == "index"
    x = backend.asarray(trial.x, "int64" if indices else dtype)
    cotangent = backend.asarray(trial.cotangent, dtype)
    inputs = (*theta, x, cotangent)
    before = [backend.to_host(array).copy() for array in inputs]
    with backend.context(), backend.discipline():

        def call(x: Array, *theta: Array) -> Any:
            return layer.forward(x, layout.tree(theta, buffers), _run(trial))

        y, backward = backend.evaluate(call, x, *theta)
        check_array(f"{layer!r}: the output", y, backend, cotangent)
        dx, tree = backward(cotangent)
        gradients = _gather(trial, layout, tree)
    if not indices:
        gradients = {INPUT: dx, **gradients}
    parts = layout.split(theta)
    for name, gradient in gradients.items():
        if gradient is None:
            raise CheckError(f"{layer!r}: backward gave None as the gradient of {name!r}")
        check_array(f"{layer!r}: the gradient of {name!r}", gradient, backend, x if name == INPUT else parts[name])
    try:
        layout.check_gradients(tree)
    except ConfigError as error:
        raise CheckError(f"{layer!r}: {error}") from None
    for array, copy in zip(inputs, before, strict=True):
        if not same_bits(backend.to_host(array), copy):
            raise CheckError(f"{layer!r} modified its input, its parameters or the gradient that backward was given")
    return LayerOutcome(backend.to_host(y), {name: backend.to_host(array) for name, array in gradients.items()})


def forward_only(trial: Trial) -> Array:
    """The layer's output on NumPy in float64."""
    layout = Layout(trial.structure, "float64", host().blocked)
    theta, buffers = layout.place(trial.values, host())
    return trial.layer.forward(trial.x, layout.tree(theta, buffers), _run(trial))[0]


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


def _index_limit(layer: Layer) -> int:
    """The number of rows of the table that the first layer looks up."""
    limit = getattr(layer, "index_limit", None)
    if limit is not None:
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
