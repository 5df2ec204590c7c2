"""Is a layer's derivative the derivative of its output? Central differences, in float64, on NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from xpnn import random
from xpnn.backend import host
from xpnn.dispatch import Array
from xpnn.errors import CheckError
from xpnn.layers.layer import Layer, Shape
from xpnn.testing.trial import Trial, evaluate, forward_only, joined, prepare

_STEP = 1e-5
"""The error of a central difference is of order step^2 (the formula) and eps/step (rounding): 1e-10 and 1e-11."""


class GradientReport(NamedTuple):
    """How well a layer's gradients agree with central differences.

    Attributes:
        layer: the layer, as text.
        errors: "input" or parameter name -> largest difference, relative to the largest gradient of that array.
        tolerance: the largest error that was accepted.
    """

    layer: str
    errors: Mapping[str, float]
    tolerance: float

    def __str__(self) -> str:
        width = max(len(name) for name in self.errors) if self.errors else 0
        lines = [f"gradients of {self.layer} against central differences (accepted: {self.tolerance:.0e})"]
        lines += [f"  {name.ljust(width)}  {error:.1e}" for name, error in self.errors.items()]
        return "\n".join(lines)


def check_gradients(
    layer: Layer,
    input_shape: Shape = (4, 3),
    *,
    training: bool = True,
    seed: int = 0,
    tolerance: float = 1e-6,
    elements: int = 200,
) -> GradientReport:
    """Check a layer's gradients, of the input and of every parameter, against central differences.

    For a random cotangent c and L = sum(c * y), dL/dx_i is compared with (L(x_i + h) - L(x_i - h)) / 2h for each
    element i. Dropout keeps its mask while x changes.

    Args:
        layer: any layer, your own too.
        input_shape: of a whole input, the batch included; a tuple of shapes for a layer that takes several.
        training: whether dropout acts.
        seed: of the random input, parameters and cotangent.
        tolerance: the largest accepted difference, relative to the largest gradient of the same array.
        elements: at most so many elements of each array are tried, at random.

    Returns:
        The error for the input and for each parameter; it prints as a table.

    Raises:
        CheckError: a gradient is wrong, missing, or of the wrong shape; names the parameter and the element.
        ShapeError: the layer cannot be built for that shape.
    """
    trial = prepare(layer, input_shape, training, seed)
    gradients = evaluate(trial, host(), "float64").gradients
    errors = {}
    for name, gradient in gradients.items():
        errors[name] = _compare(trial, name, gradient, tolerance, elements, seed)
    return GradientReport(repr(layer), errors, tolerance)


def _compare(trial: Trial, name: str, gradient: Array, tolerance: float, elements: int, seed: int) -> float:
    """The error of one array's gradient. Raises CheckError if it is larger than the tolerance."""
    xp = host().xp
    claimed = xp.reshape(gradient, (-1,))
    count = claimed.shape[0]
    chosen = [int(i) for i in random.permutation(seed, random.stream(random.TESTING, 2), 0, count)[:elements]]
    quotients = {}
    for index in chosen:
        above = _loss(trial, name, index, _STEP)
        below = _loss(trial, name, index, -_STEP)
        quotients[index] = (above - below) / (2.0 * _STEP)
    # A gradient of exactly zero everywhere still has to be told from one of rounding errors.
    scale = max([abs(q) for q in quotients.values()] + [abs(float(claimed[i])) for i in chosen] + [1e-3])
    worst = 0.0
    for index, quotient in quotients.items():
        error = abs(float(claimed[index]) - quotient) / scale
        if not error <= tolerance:
            position = _position(index, gradient.shape)
            raise CheckError(
                f"{trial.layer!r}: the gradient of {name!r} is wrong at {position}: backward gives "
                f"{float(claimed[index]):.10g}, central differences give {quotient:.10g} "
                f"(relative difference {error:.1e}, accepted {tolerance:.0e})"
            )
        worst = max(worst, error)
    return worst


def _loss(trial: Trial, name: str, index: int, change: float) -> float:
    """L = sum(cotangent * output), with one element of the input or of a parameter changed."""
    xp = host().xp
    old = trial.inputs()[name] if name in trial.inputs() else trial.values[name]
    flat = xp.reshape(old, (-1,))
    here = xp.arange(flat.shape[0]) == index
    new = xp.reshape(xp.where(here, flat + change, flat), old.shape)
    products = joined(trial.cotangent) * joined(forward_only(trial.moved(name, new)))
    return math.fsum(float(product) for product in xp.reshape(products, (-1,)))


def _position(index: int, shape: Shape) -> tuple[int, ...]:
    """The index of an element in an array of `shape`, from its number in the flat array."""
    position = []
    for length in reversed(shape):
        index, remainder = divmod(index, length)
        position.append(remainder)
    return tuple(reversed(position))
