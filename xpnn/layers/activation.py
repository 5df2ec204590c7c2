"""Activations: layers without parameters that apply one op to each element."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

from xpnn.config import check_number
from xpnn.dispatch import OPS, Array
from xpnn.errors import ConfigError
from xpnn.layers.layer import Backward, Layer, Run, Tree
from xpnn.ops.gates import GELU_FORMS
from xpnn.ops.linear import FUSABLE


class Activation(Layer):
    """Base of the activations: a subclass names its op; its settings are passed to the op as keywords."""

    op_name: ClassVar[str]
    input_kind: ClassVar[str] = "float"

    def __init__(self) -> None:
        pass

    @cached_property
    def _options(self) -> dict[str, Any]:
        return self.arguments()[1]

    @property
    def fusable(self) -> str | None:
        """The name under which `ops.linear` takes this activation, with these settings; or None."""
        return self.op_name if self.op_name in FUSABLE and self == type(self)() else None

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = OPS[self.op_name](x, **self._options)

        def backward(dy: Array) -> tuple[Any, Tree]:
            return vjp(dy)[0], {}

        return y, backward


def _positive(name: str, value: Any) -> float:
    """A setting as a Python float, which keeps float32 arrays float32 (a NumPy float64 would not)."""
    return check_number(name, value, "a finite number > 0", lambda number: 0 < number < math.inf)


class ReLU(Activation):
    """max(x, 0)."""

    op_name = "relu"


class LeakyReLU(Activation):
    """x for x > 0, negative_slope * x else.

    Raises:
        ConfigError: negative_slope is no finite number >= 0.
    """

    op_name = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = check_number(
            "negative_slope", negative_slope, "a finite number >= 0", lambda number: 0 <= number < math.inf
        )


class ELU(Activation):
    """x for x > 0, alpha (exp(x) - 1) else.

    Raises:
        ConfigError: alpha is no finite number > 0.
    """

    op_name = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _positive("alpha", alpha)


class SELU(Activation):
    """1.0507 * ELU with alpha = 1.6733: keeps mean 0 and variance 1 under LeCun-normal weights."""

    op_name = "selu"


class CELU(Activation):
    """x for x > 0, alpha (exp(x / alpha) - 1) else.

    Raises:
        ConfigError: alpha is no finite number > 0.
    """

    op_name = "celu"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _positive("alpha", alpha)


class GELU(Activation):
    """x Phi(x), with Phi the normal distribution function.

    Args:
        approximate: "none", or "tanh" for the form with tanh, which is cheaper and off by less than 0.0005. It is the
            form that GPUs compute within the product of a Dense layer before it.

    Raises:
        ConfigError: approximate is neither.
    """

    op_name = "gelu"

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in GELU_FORMS:
            known = ", ".join(map(repr, GELU_FORMS))
            raise ConfigError(f"GELU: approximate={approximate!r} is unknown; known: {known}")
        self.approximate = approximate

    @property
    def fusable(self) -> str | None:
        return "gelu_tanh" if self.approximate == "tanh" else super().fusable


class SiLU(Activation):
    """x sigmoid(x); also called swish."""

    op_name = "silu"


class Mish(Activation):
    """x tanh(softplus(x))."""

    op_name = "mish"


class SmeLU(Activation):
    """Smooth ReLU: 0 up to -beta, x from beta on, the parabola (x + beta)^2 / (4 beta) between.

    Raises:
        ConfigError: beta is no finite number > 0.
    """

    op_name = "smelu"

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = _positive("beta", beta)


class Softplus(Activation):
    """log(1 + exp(beta x)) / beta.

    Raises:
        ConfigError: beta is no finite number > 0.
    """

    op_name = "softplus"

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = _positive("beta", beta)


class Softsign(Activation):
    """x / (1 + |x|)."""

    op_name = "softsign"


class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    op_name = "sigmoid"
    output_kind = "sigmoid"


class LogSigmoid(Activation):
    """log(1 / (1 + exp(-x)))."""

    op_name = "log_sigmoid"


class HardSigmoid(Activation):
    """min(max(x + 3, 0), 6) / 6."""

    op_name = "hard_sigmoid"


class HardSwish(Activation):
    """x min(max(x + 3, 0), 6) / 6."""

    op_name = "hard_swish"


class Tanh(Activation):
    """The hyperbolic tangent."""

    op_name = "tanh"


ACTIVATIONS: dict[str, type[Activation]] = {
    activation.op_name: activation
    for activation in (
        ReLU,
        LeakyReLU,
        ELU,
        SELU,
        CELU,
        GELU,
        SiLU,
        Mish,
        SmeLU,
        Softplus,
        Softsign,
        Sigmoid,
        LogSigmoid,
        HardSigmoid,
        HardSwish,
        Tanh,
    )
}
"""The activations by the names of their ops: "relu" is ReLU."""
