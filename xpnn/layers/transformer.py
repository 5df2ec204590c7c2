"""The blocks that transformers are stacks of."""

from __future__ import annotations

from typing import Any

from xpnn import ops
from xpnn.config import check_integer
from xpnn.dispatch import Array, has_faster_body
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers.attention import MultiHeadAttention
from xpnn.layers.dense import DenseChain
from xpnn.layers.dropout import Dropout
from xpnn.layers.layer import Backward, Layer, Run, Shape, Tree
from xpnn.layers.layer_norm import LayerNorm
from xpnn.layers.positions import check_sequence
from xpnn.layers.projection import Projection
from xpnn.layers.residual import sum_gradients
from xpnn.ops.linear import FUSABLE


class FeedForward(Layer):
    """Two linear maps with an activation and dropout between them, the same for every time step.

    Where no dropout acts, both maps run as one op, if the backend has a body for it.

    Args:
        units: between the two; the second one goes back to the features of the input.
        activation: a name in `xpnn.ops.linear.FUSABLE`.
        dropout: the rate of what lies between the maps.
        bias: False leaves both biases out.
    """

    def __init__(self, units: int, activation: str, dropout: float, bias: bool = True) -> None:
        self.units = check_integer("feed_forward", units)
        if activation not in FUSABLE:
            raise ConfigError(f"activation={activation!r} is unknown here; choose {', '.join(map(repr, FUSABLE))}")
        self.activation = activation
        self.dropout = dropout
        self.bias = bool(bias)
        self._dropout = Dropout(dropout)
        self._expand, self._contract = Projection(self.bias), Projection(self.bias)
        self._chain = DenseChain([("expand", self._expand, activation), ("contract", self._contract, None)])
        self.children = {"expand": self._expand, "contract": self._contract}

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        features = input_shape[-1]
        return input_shape, {
            "expand": self._expand.build_units(features, self.units),
            "contract": self._contract.build_units(self.units, features),
        }

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        drops = run.training and self._dropout.rate > 0
        if not drops and has_faster_body("linear_chain", x):
            return self._chain.forward(x, parameters, run)
        hidden, expand_backward = self._expand.forward(x, parameters["expand"], run, self.activation)
        inner = run.with_input_gradient()
        dropped, dropout_backward = self._dropout.forward(hidden, {}, inner)
        y, contract_backward = self._contract.forward(dropped, parameters["contract"], inner)

        def backward(dy: Array) -> tuple[Any, Tree]:
            gradients: Tree = {}
            ddropped, gradients["contract"] = contract_backward(dy)
            dx, gradients["expand"] = expand_backward(dropout_backward(ddropped)[0])
            return dx, gradients

        return y, backward


class _TransformerBlock(Layer):
    """What the blocks share: sub-layers, each with dropout, a shortcut around it, and a norm of its own.

    A sub-layer `name` is the child of that name, its norm the child `name`_norm.
    """

    def _compose(
        self, norm_first: bool, epsilon: float, *, attention: MultiHeadAttention, feed_forward: FeedForward, **more: Any
    ) -> None:
        """Store the settings, checked by the sub-layers, and make the children."""
        self.heads, self.key_value_heads = attention.heads, attention.key_value_heads
        self.causal, self.rotary, self.bias = attention.causal, attention.rotary, attention.bias
        self.dropout = attention.dropout
        self.feed_forward, self.activation = feed_forward.units, feed_forward.activation
        self.norm_first = bool(norm_first)
        self.epsilon = epsilon
        self._dropout = Dropout(self.dropout)
        self.children = {}
        for name, layer in {"attention": attention, **more, "feed_forward": feed_forward}.items():
            self.children[name] = layer
            self.children[f"{name}_norm"] = LayerNorm(epsilon=epsilon)

    def _sublayer(
        self, name: str, x: Array, parameters: Tree, run: Run, beside: tuple[Array, ...] = ()
    ) -> tuple[Array, Any]:
        """y = x + dropout(f(norm(x))), or norm(x + dropout(f(x))) for norm_first=False.

        Args:
            name: of the sub-layer f.
            x: its input.
            parameters: of the block.
            run: of the pass.
            beside: further inputs of f.

        Returns:
            y, and backward(dy) -> (dx, gradients of what is beside, gradients by the names of the children).
        """
        layer, norm_name = self.children[name], f"{name}_norm"
        norm = self.children[norm_name]
        inside = x
        if self.norm_first:
            inside, norm_backward = norm.forward(x, parameters[norm_name], run)
        result, layer_backward = layer.forward((inside, *beside) if beside else inside, parameters[name], run)
        dropped, dropout_backward = self._dropout.forward(result, {}, run)
        y, add_vjp = ops.add(x, dropped)
        if not self.norm_first:
            y, norm_backward = norm.forward(y, parameters[norm_name], run)

        def backward(dy: Array) -> tuple[Any, tuple[Any, ...], Tree]:
            gradients: Tree = {}
            if not self.norm_first:
                dy, gradients[norm_name] = norm_backward(dy)
            dx, ddropped = add_vjp(dy)
            dinputs: Any
            dinputs, gradients[name] = layer_backward(dropout_backward(ddropped)[0])
            dinside, *dbeside = dinputs if beside else (dinputs,)
            if self.norm_first:
                dinside, gradients[norm_name] = norm_backward(dinside)
            return sum_gradients((dx, dinside)), tuple(dbeside), gradients

        return y, backward

    def _build_sublayer(self, name: str, x_shape: Shape, beside: tuple[Shape, ...] = ()) -> Tree:
        """The parameters of a sub-layer and of its norm."""
        given: Any = (x_shape, *beside) if beside else x_shape
        return {
            name: self.build_child(name, given)[1],
            f"{name}_norm": self.build_child(f"{name}_norm", x_shape)[1],
        }


class TransformerEncoderBlock(_TransformerBlock):
    """Self-attention, then a small network for each time step: (batch, time, features) -> the same.

    With norm_first (Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020):

        h = x + dropout(attention(norm(x)))
        y = h + dropout(feed_forward(norm(h)))

    and otherwise, as in the first transformers (Vaswani et al., "Attention Is All You Need", NeurIPS 2017):

        h = norm(x + dropout(attention(x)))
        y = norm(h + dropout(feed_forward(h)))

    Behind the last block with norm_first, put a LayerNorm. Time steps that `run.mask` leaves out are not looked at.
    The children, whose names begin those of the parameters, are "attention", "attention_norm", "feed_forward" and
    "feed_forward_norm"; "feed_forward.expand.weight" is (features, feed_forward), "feed_forward.contract.weight"
    (feed_forward, features).

    Args:
        heads: of the attention; they divide the features.
        feed_forward: the units between the two linear maps; often 4 times the features.
        dropout: the rate behind each sub-layer, behind the activation, and of the weights of the attention.
        activation: between the two linear maps: "gelu", "gelu_tanh" (its approximation by tanh, which is cheaper),
            "relu", "silu", "tanh" or "sigmoid".
        norm_first: where the norms are, see above.
        causal: True if a time step may look at itself and earlier ones only: a block of a language model.
        key_value_heads: as for `MultiHeadAttention`.
        rotary: as for `MultiHeadAttention`.
        bias: False leaves out the biases of all linear maps.
        epsilon: of the norms.

    Raises:
        ConfigError: a setting makes no sense.
        ShapeError: (when built) samples are not (time, features), or heads do not divide the features.
    """

    def __init__(
        self,
        heads: int,
        feed_forward: int,
        dropout: float = 0.1,
        activation: str = "gelu",
        norm_first: bool = True,
        causal: bool = False,
        key_value_heads: int | None = None,
        rotary: bool = False,
        bias: bool = True,
        epsilon: float = 1e-5,
    ) -> None:
        attention = MultiHeadAttention(
            heads, key_value_heads=key_value_heads, causal=causal, dropout=dropout, rotary=rotary, bias=bias
        )
        inner = FeedForward(feed_forward, activation, dropout, bias)
        self._compose(norm_first, epsilon, attention=attention, feed_forward=inner)

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        check_sequence(self, input_shape)
        return input_shape, {
            **self._build_sublayer("attention", input_shape),
            **self._build_sublayer("feed_forward", input_shape),
        }

    def forward(self, x: Array, parameters: Tree, run: Run) -> tuple[Array, Backward]:
        inner = run.with_input_gradient()
        h, attention_backward = self._sublayer("attention", x, parameters, inner)
        y, feed_forward_backward = self._sublayer("feed_forward", h, parameters, inner)

        def backward(dy: Array) -> tuple[Any, Tree]:
            dh, _, gradients = feed_forward_backward(dy)
            dx, _, more = attention_backward(dh)
            return (dx if run.input_gradient else None), {**gradients, **more}

        return y, backward


class TransformerDecoderBlock(_TransformerBlock):
    """Causal self-attention, attention to a memory, then a small network for each time step.

    The input is (x, memory) or (x, memory, mask): x (batch, time, features), the memory (batch, steps, any features),
    what an encoder made of another sequence, and the mask (batch, steps), True (or not 0) for the steps of the memory
    that may be looked at. The output is that of x's shape; with return_memory a tuple of the same form as the
    input, for the next block. `run.mask` is x's.

    The sub-layers are put together as in `TransformerEncoderBlock` (Vaswani et al., "Attention Is All You Need",
    NeurIPS 2017). The children are "attention", "cross_attention" and "feed_forward", and the norm of each:
    "cross_attention_norm" is applied to x, not to the memory.

    Args:
        heads: as for `TransformerEncoderBlock`, in both attentions.
        feed_forward: as for `TransformerEncoderBlock`.
        dropout: as for `TransformerEncoderBlock`.
        activation: as for `TransformerEncoderBlock`.
        norm_first: as for `TransformerEncoderBlock`.
        causal: False lets a time step look at later ones too.
        key_value_heads: as for `MultiHeadAttention`, in both attentions.
        rotary: as for `MultiHeadAttention`, in the self-attention.
        bias: as for `TransformerEncoderBlock`.
        epsilon: of the norms.
        return_memory: True for blocks that other decoder blocks follow in a Sequential.

    Raises:
        ConfigError: a setting makes no sense.
        ShapeError: (when built) the inputs are not as above, or heads do not divide the features.
    """

    def __init__(
        self,
        heads: int,
        feed_forward: int,
        dropout: float = 0.1,
        activation: str = "gelu",
        norm_first: bool = True,
        causal: bool = True,
        key_value_heads: int | None = None,
        rotary: bool = False,
        bias: bool = True,
        epsilon: float = 1e-5,
        return_memory: bool = False,
    ) -> None:
        attention = MultiHeadAttention(
            heads, key_value_heads=key_value_heads, causal=causal, dropout=dropout, rotary=rotary, bias=bias
        )
        cross = MultiHeadAttention(heads, key_value_heads=key_value_heads, dropout=dropout, bias=bias)
        inner = FeedForward(feed_forward, activation, dropout, bias)
        self._compose(norm_first, epsilon, attention=attention, cross_attention=cross, feed_forward=inner)
        self.return_memory = bool(return_memory)

    def build(self, input_shape: Any) -> tuple[Any, Tree]:
        if len(input_shape) not in (2, 3) or not all(isinstance(shape, tuple) for shape in input_shape):
            raise ShapeError(
                f"got samples of shape {input_shape}, wants two inputs, (x, memory), or three, (x, memory, mask)", self
            )
        x_shape, memory_shape, *mask_shape = input_shape
        check_sequence(self, x_shape)
        check_sequence(self, memory_shape)
        if mask_shape and mask_shape[0] != memory_shape[:1]:
            raise ShapeError(
                f"got a mask of samples of shape {mask_shape[0]} for a memory of shape {memory_shape}; it must be "
                f"{memory_shape[:1]}, one number for each step",
                self,
            )
        beside = (memory_shape, memory_shape, *mask_shape) if mask_shape else (memory_shape,)
        tree = {
            **self._build_sublayer("attention", x_shape),
            **self._build_sublayer("cross_attention", x_shape, beside),
            **self._build_sublayer("feed_forward", x_shape),
        }
        return (input_shape if self.return_memory else x_shape), tree

    def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
        inner = run.with_input_gradient()
        sequence, memory, *mask = x
        beside = (memory, memory, *mask) if mask else (memory,)
        h, attention_backward = self._sublayer("attention", sequence, parameters, inner)
        g, cross_backward = self._sublayer("cross_attention", h, parameters, inner, beside)
        y, feed_forward_backward = self._sublayer("feed_forward", g, parameters, inner)

        def backward(dy: Any) -> tuple[Any, Tree]:
            passed_on = None
            if self.return_memory:
                dy, passed_on, *_ = dy
            dg, _, gradients = feed_forward_backward(dy)
            dh, dbeside, cross_gradients = cross_backward(dg)
            dx, _, attention_gradients = attention_backward(dh)
            dmemory = sum_gradients((*dbeside[:2], passed_on))
            gradients = {**gradients, **cross_gradients, **attention_gradients}
            return ((dx, dmemory, None)[: len(x)] if run.input_gradient else None), gradients

        return ((y, *x[1:]) if self.return_memory else y), backward
