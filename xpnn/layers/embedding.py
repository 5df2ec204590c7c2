"""The embedding layer."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn import ops
from xpnn.config import by_name, check_integer
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
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
        padding_index: the integer that sequences (batch, time) are padded with, or None. The layers behind get a mask
            in which its places are False: recurrent layers skip them.

    Raises:
        ConfigError: a size is no positive integer, the initializer is unknown, or padding_index is no row.
    """

    input_kind: ClassVar[str] = "index"

    def __init__(
        self,
        vocabulary: int,
        features: int,
        weight_initializer: Initializer | str = _STANDARD_NORMAL,
        padding_index: int | None = None,
    ) -> None:
        self.vocabulary = check_integer("vocabulary", vocabulary)
        self.features = check_integer("features", features)
        self.weight_initializer = weight_initializer
        self._weight: Initializer = by_name("weight_initializer", weight_initializer, INITIALIZERS, Initializer)
        self.padding_index = None if padding_index is None else check_integer("padding_index", padding_index, minimum=0)
        if padding_index is not None and padding_index >= self.vocabulary:
            raise ConfigError(f"padding_index={padding_index} is no row: they are numbered 0 to {self.vocabulary - 1}")

    @property
    def index_limit(self) -> int | None:
        return self.vocabulary

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        if self.padding_index is not None and len(input_shape) != 1:
            raise ShapeError(f"got samples of shape {input_shape}; padding_index wants sequences, (time,)", self)
        parameters = {"weight": Parameter((self.vocabulary, self.features), self._weight)}
        return (*input_shape, self.features), parameters

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        y, vjp = ops.embedding(parameters["weight"], x)
        if self.padding_index is not None:
            run.mask = x != self.padding_index

        def backward(dy: Array) -> tuple[Any, Tree]:
            return None, {"weight": vjp(dy)[0]}

        return y, backward
