"""How the first values of a parameter are drawn.

Every initializer maps a shape and random numbers from the host to a float64 host array; the network rounds it to its
dtype and moves it once. So one seed gives the same bits on every backend. One random word makes one number: a normal
number is the normal quantile of a uniform one.

A weight has the shape (..., inputs, outputs). In the formulas, fan_in is `inputs` times the product of the leading
lengths (the size of a convolution's window, say), fan_out `outputs` times it.
"""

from __future__ import annotations

import math
from typing import Any

from xpnn import random
from xpnn.backend import host
from xpnn.config import Configurable, check_number
from xpnn.dispatch import Array
from xpnn.errors import ConfigError
from xpnn.ops.normal_quantile import normal_quantile


class Draw:
    """The random numbers of one parameter: a function of the network's seed and the parameter's number."""

    def __init__(self, seed: int, index: int) -> None:
        self.seed = seed
        self.index = index

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """float64, uniform on (0, 1)."""
        return random.uniform(self.seed, random.stream(random.INITIALIZATION, self.index), 0, shape)

    def normal(self, shape: tuple[int, ...]) -> Array:
        """float64, normal with mean 0 and standard deviation 1."""
        return normal_quantile(self.uniform(shape))[0]


class Initializer(Configurable):
    """Base: a subclass gives `sample`."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        """A float64 host array of `shape`."""
        raise NotImplementedError(f"{type(self).__name__} must define sample(self, shape, draw)")


class Constant(Initializer):
    """Every number is `value`."""

    def __init__(self, value: float) -> None:
        self.value = check_number("value", value, "a finite number", math.isfinite)

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return _host().full(shape, self.value, dtype=_host().float64)


class Zeros(Initializer):
    """All zeros."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return _host().zeros(shape, dtype=_host().float64)


class Ones(Initializer):
    """All ones."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return _host().ones(shape, dtype=_host().float64)


class Uniform(Initializer):
    """Uniform on (low, high)."""

    def __init__(self, low: float = -0.05, high: float = 0.05) -> None:
        self.low = check_number("low", low, "a finite number", math.isfinite)
        self.high = check_number("high", high, "a finite number above low", lambda x: self.low < x < math.inf)

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return self.low + (self.high - self.low) * draw.uniform(shape)


class Normal(Initializer):
    """Normal with standard deviation `std` around `mean`."""

    def __init__(self, std: float = 0.05, mean: float = 0.0) -> None:
        self.std = _check_std(std)
        self.mean = check_number("mean", mean, "a finite number", math.isfinite)

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return self.mean + self.std * draw.normal(shape)


class TruncatedNormal(Initializer):
    """Normal, with everything further than 2 `std` from `mean` cut away.

    `std` is the standard deviation before the cut; what remains has 0.8796 of it.
    """

    def __init__(self, std: float = 0.05, mean: float = 0.0) -> None:
        self.std = _check_std(std)
        self.mean = check_number("mean", mean, "a finite number", math.isfinite)

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        below = 0.5 * math.erfc(math.sqrt(2.0))  # the probability of less than -2
        quantiles, _ = normal_quantile(below + (1.0 - 2.0 * below) * draw.uniform(shape))
        return self.mean + self.std * quantiles


class GlorotUniform(Initializer):
    """Uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010); also named after Xavier."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        fan_in, fan_out = fans(shape)
        return _symmetric(draw.uniform(shape), math.sqrt(6.0 / (fan_in + fan_out)))


class GlorotNormal(Initializer):
    """Normal with std = sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio, AISTATS 2010); also named after Xavier."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        fan_in, fan_out = fans(shape)
        return math.sqrt(2.0 / (fan_in + fan_out)) * draw.normal(shape)


class HeUniform(Initializer):
    """Uniform on +-sqrt(6 / fan_in), for layers with ReLU behind them (He et al., ICCV 2015)."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return _symmetric(draw.uniform(shape), math.sqrt(6.0 / fans(shape)[0]))


class HeNormal(Initializer):
    """Normal with std = sqrt(2 / fan_in), for layers with ReLU behind them (He et al., ICCV 2015)."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return math.sqrt(2.0 / fans(shape)[0]) * draw.normal(shape)


class LeCunUniform(Initializer):
    """Uniform on +-sqrt(3 / fan_in) (LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998)."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return _symmetric(draw.uniform(shape), math.sqrt(3.0 / fans(shape)[0]))


class LeCunNormal(Initializer):
    """Normal with std = sqrt(1 / fan_in) (LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998)."""

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        return math.sqrt(1.0 / fans(shape)[0]) * draw.normal(shape)


class Orthogonal(Initializer):
    """`gain` times a random matrix with orthonormal rows or columns, whichever are fewer (Saxe et al., ICLR 2014).

    The matrix is Q of a QR decomposition of a normal matrix. With the signs of R's diagonal moved into Q, every
    orthogonal matrix is equally likely (Mezzadri, Notices of the AMS 54, 2007). Leading axes are taken as one with
    the inputs: a shape (a, b, c) is a matrix of a b rows and c columns.

    Args:
        gain: a factor.

    Raises:
        ConfigError: (when the parameter is drawn) its shape has fewer than two axes.
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = check_number("gain", gain, "a finite number", math.isfinite)

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        if len(shape) < 2:
            raise ConfigError(f"Orthogonal needs a shape of two or more axes, got {shape}; use another initializer")
        xp = _host()
        rows, columns = math.prod(shape[:-1]), shape[-1]
        matrix = draw.normal((max(rows, columns), min(rows, columns)))
        q, r = xp.linalg.qr(matrix)
        q = q * xp.where(xp.linalg.diagonal(r) < 0.0, -1.0, 1.0)
        return xp.reshape(self.gain * (q if rows >= columns else q.T), shape)


INITIALIZERS: dict[str, type[Initializer]] = {
    "zeros": Zeros,
    "ones": Ones,
    "uniform": Uniform,
    "normal": Normal,
    "truncated_normal": TruncatedNormal,
    "glorot_uniform": GlorotUniform,
    "glorot_normal": GlorotNormal,
    "xavier_uniform": GlorotUniform,
    "xavier_normal": GlorotNormal,
    "he_uniform": HeUniform,
    "he_normal": HeNormal,
    "kaiming_uniform": HeUniform,
    "kaiming_normal": HeNormal,
    "lecun_uniform": LeCunUniform,
    "lecun_normal": LeCunNormal,
    "orthogonal": Orthogonal,
}
"""Name -> class, for `weight_initializer="he_normal"` and the like; the object is built with its defaults."""


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (..., inputs, outputs), each at least 1; a vector counts as both."""
    if len(shape) < 2:
        length = max(math.prod(shape), 1)
        return length, length
    field = math.prod(shape[:-2])
    return max(shape[-2] * field, 1), max(shape[-1] * field, 1)


def _symmetric(uniform: Array, limit: float) -> Array:
    return (2.0 * uniform - 1.0) * limit


def _check_std(std: Any) -> float:
    return check_number("std", std, "a positive finite number", lambda x: 0.0 < x < math.inf)


def _host() -> Any:
    return host().xp
