"""A layer of your own in forty lines: written, checked, trained.

The layer measures the squared distance of each input to a set of centres, as a radial basis function network does
(Broomhead and Lowe, 1988):

    r_k   = x - c_k                       x: one sample of d features, c_k: the centres, a parameter (units, d)
    y_k   = exp(-|r_k|^2 / (2 s^2))       s: the width, a setting

    dL/dx   = -(1 / s^2) sum_k dy_k y_k r_k
    dL/dc_k =  (1 / s^2) sum over the samples of dy_k y_k r_k

The recipe:
 1. Subclass xpnn.Layer. Store the constructor's arguments under their own names: printing, saving and loading follow.
 2. `build` says what comes out for samples of a shape, and which parameters are needed.
 3. `forward` computes y and returns it with `backward`, which maps dy to dx and the parameters' gradients. Use ops of
    xpnn.ops, which bring their vjp along, or functions of the array API and the derivative by hand.
 4. `check_gradients` compares with central differences, `check_backends` compares all backends.
"""

from __future__ import annotations

import argparse
from math import cos, sin, sqrt
from typing import Any

import xpnn
from xpnn.dispatch import namespace
from xpnn.errors import ShapeError


class RadialBasis(xpnn.Layer):
    """y_k = exp(-|x - c_k|^2 / (2 width^2)): (batch, features) -> (batch, units), with trained centres c."""

    def __init__(self, units: int, width: float = 1.0) -> None:
        self.units = units
        self.width = width

    def build(self, input_shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
        """One number for each centre; the centres start normally distributed."""
        if len(input_shape) != 1:
            raise ShapeError(f"got samples of shape {input_shape}, wants one axis; put a Flatten() before", self)
        centres = xpnn.Parameter((self.units, input_shape[0]), xpnn.initializers.Normal(std=1.0))
        return (self.units,), {"centres": centres}

    def forward(self, x: Any, parameters: dict[str, Any], run: xpnn.Run) -> tuple[Any, Any]:
        """The activations, and the derivative by hand."""
        xp = namespace(x)
        centres = parameters["centres"]
        difference = xp.expand_dims(x, axis=1) - centres  # (batch, units, features)
        y = xp.exp(xp.sum(difference * difference, axis=2) * (-0.5 / self.width**2))

        def backward(dy: Any) -> tuple[Any, dict[str, Any]]:
            pull = xp.expand_dims(dy * y, axis=2) * difference * (1.0 / self.width**2)
            return -xp.sum(pull, axis=1), {"centres": xp.sum(pull, axis=0)}

        return y, backward


def rings(samples: int) -> tuple[list[list[float]], list[int]]:
    """Points inside the unit circle (class 0) and in a ring around it (class 1): no line separates them."""
    points, labels = [], []
    for i in range(samples):
        label = i % 2
        angle = 2.399963 * i  # the golden angle spreads the points evenly
        radius = sqrt(i / samples) if label == 0 else 1.5 + 0.5 * i / samples
        points.append([radius * cos(angle), radius * sin(angle)])
        labels.append(label)
    return points, labels


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Check the layer, train it in a small network, and return the final loss and accuracy."""
    parser = argparse.ArgumentParser(description="a layer of your own")
    parser.add_argument("--backend", help="such as numpy, cupy or torch; xpnn's own choice if not given")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args(arguments)

    layer = RadialBasis(5, width=0.8)
    print(xpnn.testing.check_gradients(layer, input_shape=(4, 3)))
    print(xpnn.testing.check_backends(layer, input_shape=(4, 3), backends=[options.backend or "numpy"]))

    net = xpnn.Network(RadialBasis(12), xpnn.Dense(2), backend=options.backend, seed=1)
    X, y = rings(400)
    history = net.fit(
        X,
        y,
        loss="cross_entropy",
        optimizer=xpnn.Adam(0.05),
        epochs=options.epochs,
        batch_size=32,
        metrics=["accuracy"],
        verbose=0,
    )
    result = {"loss": history["loss"][-1], "accuracy": history["accuracy"][-1]}
    print(f"after {options.epochs} epochs: loss {result['loss']:.4f}, accuracy {result['accuracy']:.3f}")
    return result


if __name__ == "__main__":
    main()
