"""The embedding layer."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn import ops
from xpnn.config import by_name, check_integer
from xpnn.dispatch import Array
from xpnn.initializers import INITIALIZERS, Initializer, Normal
from xpnn.layers.layer import Backward, Layer, Parameter, Run, Shape, Tree

_STANDARD_NORMAL = Normal(std=1.0)


class Embedding(Layer):
    """Looks each integer of the input up in a table of vectors: (batch, ...) -> (batch, ..., features).

    y = weight[x]. The gradient of a row is the sum over all places where its number occurs (Bengio, Ducharme,
    Vincent and Jauvin, "A neural probabilistic language model", JMLR 3, 2003). The input has no gradient.

    Args:
        vocabulary: the number of rows; the input holds integers from 0 to vocabulary - 1.
        features: the length of a row.
        weight_initializer: for the table, of shape (vocabulary, features); an object or a name such as "normal".

    Raises:
        ConfigError: a size is no positive integer, or the initializer is unknown.
    """

    input_kind: ClassVar[str] = "index"

    def __init__(
        self, vocabulary: int, features: int, weight_initializer: Initializer | str = _STANDARD_NORMAL
    ) -> None:
        self.vocabulary = check_integer("vocabulary", vocabulary)
        self.features = check_integer("features", features)
        self.weight_initializer = weight_initializer
        self._weight: Initializer = by_name("weight_initializer", weight_initializer, INITIALIZERS, Initializer)

    @property
    def index_limit(self) -> int | None:
        return self.vocabulary

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        parameters = {"weight": Parameter((self.vocabulary, self.features), self._weight)}
        return (*input_shape, self.features), parameters

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.embedding(parameters["weight"], x)

        def backward(dy: Array) -> tuple[Any, Tree]:
            return None, {"weight": vjp(dy)[0]}

        return y, backward
