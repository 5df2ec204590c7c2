"""A network as tutorials write it: layer objects, one sample (a column vector) at a time, products by NumPy.

With plain gradient descent each sample updates the weights at once; with Adam the layers add up the gradients of the
batch's samples first.
"""

from __future__ import annotations

import itertools

import numpy as np
from networks import Spec, data


class Dense:
    """W x + b."""

    def __init__(self, generator: np.random.Generator, features: int, units: int) -> None:
        self.weights = (generator.standard_normal((units, features)) / features**0.5).astype(np.float32)
        self.bias = np.zeros((units, 1), np.float32)
        self.weights_gradient = np.zeros_like(self.weights)
        self.bias_gradient = np.zeros_like(self.bias)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return np.dot(self.weights, x) + self.bias

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        self.weights_gradient += np.dot(gradient, self.x.T)
        self.bias_gradient += gradient
        return np.dot(self.weights.T, gradient)


class DescendingDense(Dense):
    """A Dense layer that takes its step of gradient descent within its backward pass."""

    rate = np.float32(0.1)

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        weights_gradient = np.dot(gradient, self.x.T)
        input_gradient = np.dot(self.weights.T, gradient)
        self.weights -= self.rate * weights_gradient
        self.bias -= self.rate * gradient
        return input_gradient


class Tanh:
    """tanh, elementwise."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.y = np.tanh(x)
        return self.y

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        return gradient * (1 - self.y**2)


class ReLU:
    """max(x, 0), elementwise."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return np.maximum(x, 0)

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        return gradient * (self.x > 0)


class Adam:
    """Adam over the weights and biases of some layers."""

    def __init__(self, layers: list[Dense], rate: float = 0.001) -> None:
        self.pairs = [(layer.weights, layer.weights_gradient) for layer in layers]
        self.pairs += [(layer.bias, layer.bias_gradient) for layer in layers]
        self.first = [np.zeros_like(weights) for weights, _ in self.pairs]
        self.second = [np.zeros_like(weights) for weights, _ in self.pairs]
        self.rate = rate
        self.count = 0

    def step(self, samples: int) -> None:
        self.count += 1
        for index, (weights, total) in enumerate(self.pairs):
            gradient = total / samples
            self.first[index] = 0.9 * self.first[index] + 0.1 * gradient
            self.second[index] = 0.999 * self.second[index] + 0.001 * gradient**2
            first = self.first[index] / (1 - 0.9**self.count)
            second = self.second[index] / (1 - 0.999**self.count)
            weights -= self.rate * first / (np.sqrt(second) + 1e-8)
            total[:] = 0


def steps_of(spec: Spec):
    """A function that takes n training steps, each over the samples of the batch."""
    inputs, targets = data(spec)
    samples = inputs[:, :, None]  # columns
    generator = np.random.default_rng(0)
    kind = DescendingDense if spec.optimizer == "sgd" else Dense
    layers: list = []
    for index, (features, units) in enumerate(itertools.pairwise(spec.sizes)):
        layers.append(kind(generator, features, units))
        if spec.activation == "tanh":
            layers.append(Tanh())
        elif index < len(spec.sizes) - 2:
            layers.append(ReLU())

    def forward(x: np.ndarray) -> np.ndarray:
        for layer in layers:
            x = layer.forward(x)
        return x

    def backward(gradient: np.ndarray) -> None:
        for layer in reversed(layers):
            gradient = layer.backward(gradient)

    if spec.loss == "mse":
        wanted = targets[:, :, None]

        def steps(count: int) -> float:
            for _ in range(count):
                loss = 0.0
                for x, y in zip(samples, wanted, strict=True):
                    output = forward(x)
                    loss += np.mean((output - y) ** 2)
                    backward(2 * (output - y) / y.size)
            return float(loss) / len(samples)

        return steps

    optimizer = Adam([layer for layer in layers if isinstance(layer, Dense)])

    def classifying_steps(count: int) -> float:
        for _ in range(count):
            loss = 0.0
            for x, label in zip(samples, targets, strict=True):
                logits = forward(x)
                powers = np.exp(logits - np.max(logits))
                probabilities = powers / np.sum(powers)
                loss -= np.log(probabilities[label, 0])
                probabilities[label] -= 1
                backward(probabilities)
            optimizer.step(len(samples))
        return float(loss) / len(samples)

    return classifying_steps
