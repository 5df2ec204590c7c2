"""Attention with several heads."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xpnn import ops
from xpnn.config import check_integer, check_number
from xpnn.dispatch import Array, Vjp, namespace
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import Initializer
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.projection import Projection
from xpnn.layers.residual import sum_gradients
from xpnn.ops.positions import rotary_tables


class _Shapes(NamedTuple):
    """What the samples of queries, keys and values look like; times and features of each."""

    query: Shape
    key: Shape
    value: Shape


class MultiHeadAttention(Layer):
    """Each head looks, from every time step, at all time steps: softmax(q k^T / sqrt(head_size)) v.

    Queries, keys and values are linear maps of the input, cut into heads; the heads' results, side by side, go through
    one more linear map (Vaswani et al., "Attention Is All You Need", NeurIPS 2017). See `ops.attention`.

    The input says what looks at what; all are (batch, time, features):

    - an array: self-attention. Time steps that `run.mask` leaves out are not looked at.
    - (queries, memory): cross-attention, to keys and values that are made of the memory.
    - (queries, keys, values).
    - (queries, keys, values, mask): the mask holds bools, or numbers of which 0 is False; True where a query may
      look at a key: (batch, keys), (batch, queries, keys) or (batch, heads or 1, queries, keys).

    The output is (batch, queries, output). A query that may look at nothing gets the bias of the last map alone.
    The parameters are "query.weight" (features, heads * head_size), "query.bias", and so on for "key" and "value"
    (key_value_heads * head_size columns), and "output.weight" (heads * head_size, output).

    Args:
        heads: the number of query heads.
        head_size: the features of one head; the input's features / heads by default.
        key_value_heads: fewer heads of keys and values, each shared by heads / key_value_heads query heads
            (grouped-query attention: Ainslie et al., EMNLP 2023; 1 is multi-query attention). As many by default.
        causal: True if time step t may look at the steps 0 to t only.
        dropout: the probability with which a weight of a head is dropped in training.
        rotary: True for rotary positions of queries and keys, as in `ops.rotary`.
        rotary_base: of the frequencies of the rotary positions.
        bias: False leaves all biases out.
        output: the features of the output; those of the queries by default.
        weight_initializer: for the weights, an object or a name; Glorot uniform by default.

    Raises:
        ConfigError: a setting makes no sense, or key_value_heads does not divide heads.
        ShapeError: (when built) heads do not divide the features, a rotary head has an odd size, or inputs do not fit
            together.
    """

    def __init__(
        self,
        heads: int,
        head_size: int | None = None,
        key_value_heads: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        rotary: bool = False,
        rotary_base: float = 10000.0,
        bias: bool = True,
        output: int | None = None,
        weight_initializer: Initializer | str = "glorot_uniform",
    ) -> None:
        self.heads = check_integer("heads", heads)
        self.head_size = None if head_size is None else check_integer("head_size", head_size)
        self.key_value_heads = None if key_value_heads is None else check_integer("key_value_heads", key_value_heads)
        self.causal = bool(causal)
        self.dropout = check_number("dropout", dropout, "a probability in [0, 1)", lambda x: 0.0 <= x < 1.0)
        self.rotary = bool(rotary)
        self.rotary_base = check_number("rotary_base", rotary_base, "a finite number > 0", lambda x: 0.0 < x < math.inf)
        self.bias = bool(bias)
        self.output = None if output is None else check_integer("output", output)
        self.weight_initializer = weight_initializer
        self._groups = self.heads if self.key_value_heads is None else self.key_value_heads
        if self.heads % self._groups:
            raise ConfigError(
                f"MultiHeadAttention: key_value_heads={self._groups} does not divide heads={self.heads}; each head of "
                "keys and values serves the same number of query heads"
            )
        self.children = {
            name: Projection(self.bias, weight_initializer) for name in ("query", "key", "value", "output")
        }

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        shapes = self._shapes(input_shape)
        features = shapes.query[1]
        size = self.head_size
        if size is None:
            if features % self.heads or not features:
                raise ShapeError(
                    f"got queries of {features} features, which {self.heads} heads do not divide; give another number "
                    "of heads, or head_size=...",
                    self,
                )
            size = features // self.heads
        if self.rotary and size % 2:
            raise ShapeError(f"rotary positions turn pairs of features, and a head has {size}; give an even size", self)
        output = features if self.output is None else self.output
        units = {"query": self.heads * size, "key": self._groups * size, "value": self._groups * size}
        tree = {
            name: self._projection(name).build_units(shape[1], units[name])
            for name, shape in zip(shapes._fields, shapes, strict=True)
        }
        tree["output"] = self._projection("output").build_units(self.heads * size, output)
        return (shapes.query[0], output), tree

    def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        query, key, value, mask = self._inputs(x, run)
        q, query_backward = self.children["query"].forward(query, parameters["query"], run)
        k, key_backward = self.children["key"].forward(key, parameters["key"], run)
        v, value_backward = self.children["value"].forward(value, parameters["value"], run)
        q, k, v = self._by_head(q, self.heads), self._by_head(k, self._groups), self._by_head(v, self._groups)
        turn_query, turn_key = None, None
        if self.rotary:
            q, turn_query = self._turned(q)
            k, turn_key = self._turned(k)
        drops = run.training and self.dropout > 0.0
        heads, attention_vjp = ops.attention(
            q,
            k,
            v,
            mask,
            causal=self.causal,
            dropout_key=run.random_key() if drops else None,
            dropout_rate=self.dropout if drops else 0.0,
        )
        rows, rows_vjp = ops.reshape(heads, (heads.shape[1], heads.shape[2] * heads.shape[3]))
        y, output_backward = self.children["output"].forward(rows, parameters["output"], run.with_input_gradient())

        def backward(dy: Array) -> tuple[Any, Tree]:
            gradients: Tree = {}
            drows, gradients["output"] = output_backward(dy)
            dq, dk, dv, _ = attention_vjp(rows_vjp(drows)[0])
            if turn_query is not None and turn_key is not None:
                dq, dk = turn_query(dq)[0], turn_key(dk)[0]
            dquery, gradients["query"] = query_backward(self._by_row(dq))
            dkey, gradients["key"] = key_backward(self._by_row(dk))
            dvalue, gradients["value"] = value_backward(self._by_row(dv))
            if not isinstance(x, tuple):
                return sum_gradients((dquery, dkey, dvalue)), gradients
            if len(x) == 2:
                return (dquery, sum_gradients((dkey, dvalue))), gradients
            return (dquery, dkey, dvalue, None)[: len(x)], gradients

        return y, backward

    def _projection(self, name: str) -> Projection:
        child = self.children[name]
        assert isinstance(child, Projection)
        return child

    def _by_head(self, x: Array, heads: int) -> Array:
        """(batch, time, heads * size) -> (batch, time, heads, size)."""
        return ops.reshape(x, (x.shape[1], heads, x.shape[2] // heads))[0]

    def _by_row(self, x: Array) -> Array:
        """(batch, time, heads, size) -> (batch, time, heads * size)."""
        return ops.reshape(x, (x.shape[1], x.shape[2] * x.shape[3]))[0]

    def _turned(self, x: Array) -> tuple[Array, Vjp]:
        cos, sin = rotary_tables(x, x.shape[1], x.shape[3], self.rotary_base)
        return ops.rotary(x, cos, sin)

    def _inputs(self, x: Any, run: Run) -> tuple[Array, Array, Array, Array | None]:
        """Queries, keys, values, and the mask as `ops.attention` wants it."""
        if not isinstance(x, tuple):
            return x, x, x, self._padding(x, run.mask)
        if len(x) == 2:
            queries, memory = x
            return queries, memory, memory, None
        if len(x) == 3:
            return (*x, None)
        queries, keys, values, mask = x
        xp = namespace(mask)
        if not xp.isdtype(mask.dtype, "bool"):
            mask = mask != 0
        if mask.ndim < 4:
            middle = (1, 1) if mask.ndim == 2 else (1, mask.shape[1])
            mask = xp.reshape(mask, (mask.shape[0], *middle, mask.shape[-1]))
        return queries, keys, values, mask

    def _padding(self, x: Array, mask: Array | None) -> Array | None:
        """The mask of the time steps, for all heads and queries. Raises ShapeError if it is not x's."""
        if mask is None:
            return None
        if tuple(mask.shape) != tuple(x.shape[:2]):
            raise ShapeError(
                f"got a mask of shape {tuple(mask.shape)} for an input of shape {tuple(x.shape)}; it must be "
                "(batch, time), True where a time step counts",
                self,
            )
        return namespace(mask).reshape(mask, (mask.shape[0], 1, 1, mask.shape[1]))

    def _shapes(self, given: Any) -> _Shapes:
        """The shapes of samples of queries, keys and values. Raises ShapeError if they do not fit together."""
        several = bool(given) and isinstance(given[0], tuple)
        parts: tuple[Shape, ...] = tuple(given) if several else (tuple(given),)
        if len(parts) > 4:
            raise ShapeError(f"got {len(parts)} inputs; give x, or (queries, memory), or up to four", self)
        if any(len(part) != 2 for part in parts[:3]):
            raise ShapeError(f"got samples of shape {given}; queries, keys and values are (time, features) each", self)
        query, key, value = (*parts, *parts[-1:], *parts[-1:])[:3]
        if key[0] != value[0]:
            raise ShapeError(f"got {key[0]} keys and {value[0]} values; there must be one value for each key", self)
        if len(parts) == 4:
            allowed = ((key[0],), (query[0], key[0]), (1, query[0], key[0]), (self.heads, query[0], key[0]))
            if parts[3] not in allowed:
                raise ShapeError(
                    f"got a mask of samples of shape {parts[3]} for {query[0]} queries and {key[0]} keys; it must be "
                    f"one of {', '.join(map(str, dict.fromkeys(allowed)))}",
                    self,
                )
        return _Shapes(query, key, value)
