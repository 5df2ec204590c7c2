"""Recurrent layers: RNN, LSTM and GRU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from xpnn import ops
from xpnn.backend import host
from xpnn.config import by_name, check_integer, check_number
from xpnn.dispatch import OPS, Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.initializers import INITIALIZERS, Draw, Initializer
from xpnn.layers.layer import Backward, Layer, Parameter, Run, Shape, Tree
from xpnn.layers.residual import sum_gradients
from xpnn.ops.rnn import RNN_ACTIVATIONS


class _Recurrent(Layer):
    """What the recurrent layers share: several layers and directions, states, masks, and the names of the parameters.

    Attributes:
        op: the name of the op that scans a sequence.
        gates: how many blocks of `units` columns a weight has.
        states: the names of what is carried from step to step; the first is the hidden state, which is the output.
        biases: the names of the biases.
    """

    op: ClassVar[str]
    gates: ClassVar[int]
    states: ClassVar[tuple[str, ...]] = ("hidden",)
    biases: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(
        self,
        units: int,
        layers: int = 1,
        bidirectional: bool = False,
        return_sequences: bool = False,
        return_state: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        weight_initializer: Initializer | str = "glorot_uniform",
        hidden_initializer: Initializer | str = "orthogonal",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        self.units = check_integer("units", units)
        self.layers = check_integer("layers", layers)
        self.bidirectional = bool(bidirectional)
        self.return_sequences = bool(return_sequences)
        self.return_state = bool(return_state)
        self.dropout = check_number("dropout", dropout, "a probability in [0, 1)", lambda x: 0.0 <= x < 1.0)
        if self.dropout and self.layers == 1:
            raise ConfigError(
                f"{type(self).__name__}(dropout={dropout!r}) acts between layers, and there is one layer; give "
                "layers=2, or put a Dropout layer in front or behind"
            )
        self.bias = bool(bias)
        self.weight_initializer = weight_initializer
        self.hidden_initializer = hidden_initializer
        self.bias_initializer = bias_initializer
        self._weight: Initializer = by_name("weight_initializer", weight_initializer, INITIALIZERS, Initializer)
        self._hidden: Initializer = by_name("hidden_initializer", hidden_initializer, INITIALIZERS, Initializer)
        self._bias: Initializer = by_name("bias_initializer", bias_initializer, INITIALIZERS, Initializer)

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions of the scans in each layer."""
        return ("forward", "reverse") if self.bidirectional else ("forward",)

    @property
    def scans(self) -> list[tuple[int, str, str]]:
        """(layer, direction, what the names of its parameters begin with) of each scan, in order."""
        if self.layers == 1 and not self.bidirectional:
            return [(0, "forward", "")]
        return [
            (layer, direction, f"{layer}.{direction}.") for layer in range(self.layers) for direction in self.directions
        ]

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        given: Any = input_shape
        states: tuple[Any, ...] = ()
        if input_shape and isinstance(input_shape[0], tuple):
            given, *rest = input_shape
            states = tuple(rest)
        if len(given) != 2:
            raise ShapeError(
                f"got samples of shape {given}, wants sequences of shape (time, features); for sequences of single "
                "numbers, reshape them to (time, 1)",
                self,
            )
        state_shape = (self.units,) if len(self.scans) == 1 else (len(self.scans), self.units)
        if states and (len(states) != len(self.states) or any(shape != state_shape for shape in states)):
            names = ", ".join(self.states)
            raise ShapeError(
                f"got initial states of shapes {states}, without the batch; give (x, {names}), and {names} in the "
                f"shape (batch, {', '.join(map(str, state_shape))})",
                self,
            )
        time, features = given
        tree: Tree = {}
        for layer, _, prefix in self.scans:
            inputs = features if layer == 0 else self.units * len(self.directions)
            tree[f"{prefix}weight_input"] = Parameter((inputs, self.gates * self.units), self._weight)
            tree[f"{prefix}weight_hidden"] = Parameter((self.units, self.gates * self.units), self._hidden)
            if self.bias:
                for name in self.biases:
                    tree[f"{prefix}{name}"] = Parameter((self.gates * self.units,), self._bias)
        width = self.units * len(self.directions)
        output: Any = (time, width) if self.return_sequences else (width,)
        if self.return_state:
            output = (output, *(state_shape for _ in self.states))
        return output, tree

    def _options(self) -> dict[str, Any]:
        """Settings of the op besides those that all recurrent ops have."""
        return {}

    def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
        """As of any layer; x is the sequences, or (sequences, *initial states)."""
        sequence, *initial = x if isinstance(x, tuple) else (x,)
        mask = run.mask
        if mask is not None and tuple(mask.shape) != tuple(sequence.shape[:2]):
            raise ShapeError(
                f"got a mask of shape {tuple(mask.shape)} for sequences of shape {tuple(sequence.shape)}; a mask has "
                "the shape (batch, time)",
                self,
            )
        starts = [self._parts(state) for state in initial or [None] * len(self.states)]
        weight_names = ("weight_input", "weight_hidden", *self.biases)
        vjps: list[Any] = []
        last: list[tuple[Array, ...]] = []
        between: list[Any] = []  # of each layer, from the gradient of its output to those of its directions' outputs
        outputs: list[Array] = []
        for number, (layer, direction, prefix) in enumerate(self.scans):
            if layer and direction == "forward":  # the first scan of a layer that has another one below
                sequence, output_vjp = self._between_layers(outputs, run)
                between.append(output_vjp)
                outputs = []
            weights = [parameters.get(f"{prefix}{name}") for name in weight_names]
            states = [parts[number] for parts in starts]
            (y, *new), vjp = OPS[self.op].function(
                sequence,
                *weights,
                *states,
                mask,
                reverse=direction == "reverse",
                input_gradient=run.input_gradient or layer > 0,
                **self._options(),
            )
            outputs.append(y)
            last.append(tuple(new))
            vjps.append(vjp)
        if not self.return_sequences:
            outputs = [states[0] for states in last[-len(self.directions) :]]
            run.mask = None
        y, output_vjp = ops.concatenate(*outputs) if self.bidirectional else (outputs[0], _alone)

        def backward(dy: Any) -> tuple[Any, Tree]:
            dy, *dlast = dy if self.return_state else (dy, *(None for _ in self.states))
            dstates = [list(parts) for parts in zip(*map(self._parts, dlast), strict=True)]
            doutputs = (None,) * len(self.directions) if dy is None else output_vjp(dy)
            if not self.return_sequences:
                for own, doutput in zip(dstates[-len(self.directions) :], doutputs, strict=True):
                    own[0] = sum_gradients((own[0], doutput))
                doutputs = (None,) * len(self.directions)
            gradients: Tree = {}
            dinitial: list[Any] = [None] * len(vjps)
            for layer in reversed(range(self.layers)):
                dinputs = []
                for position in range(len(self.directions)):
                    number = layer * len(self.directions) + position
                    dinput, *rest = vjps[number]((doutputs[position], *dstates[number]))
                    dinputs.append(dinput)
                    for name, gradient in zip(weight_names, rest, strict=False):
                        if gradient is not None:
                            gradients[f"{self.scans[number][2]}{name}"] = gradient
                    dinitial[number] = rest[len(weight_names) : -1]
                dx = sum_gradients(tuple(dinputs))
                if layer:
                    doutputs = between[layer - 1](dx)
            if not isinstance(x, tuple):
                return dx, gradients
            return (dx, *(self._joined(parts) for parts in zip(*dinitial, strict=True))), gradients

        if not self.return_state:
            return y, backward
        return (y, *(self._joined(parts) for parts in zip(*last, strict=True))), backward

    def _between_layers(self, outputs: list[Array], run: Run) -> tuple[Array, Any]:
        """What the next layer gets of the outputs of this one, and vjp(dsequence) -> their gradients."""
        sequence, join_vjp = ops.concatenate(*outputs) if len(outputs) > 1 else (outputs[0], _alone)
        if not run.training or self.dropout == 0.0:
            return sequence, join_vjp
        dropped, dropout_vjp = ops.dropout(sequence, run.random_key(), self.dropout)
        return dropped, lambda dy: join_vjp(dropout_vjp(dy)[0])

    def _parts(self, state: Any) -> list[Any]:
        """A state, or its gradient, as one array (batch, units) for each scan; None as None for each."""
        count = len(self.scans)
        if state is None or count == 1:
            return [state] * count
        return [state[:, number, ...] for number in range(count)]

    def _joined(self, parts: Sequence[Array]) -> Array:
        """What `_parts` took apart."""
        if len(parts) == 1:
            return parts[0]
        return ops.reshape(ops.concatenate(*parts)[0], (len(parts), self.units))[0]


def _alone(dy: Any) -> tuple[Any]:
    """The derivative of a concatenation of one array."""
    return (dy,)


class RNN(_Recurrent):
    """The simple recurrent network, h_t = f(x_t W + h_(t-1) U + b); see `xpnn.ops.rnn`.

    The input is (batch, time, features), or a tuple of it and the initial state, which is zeros otherwise. A state has
    the shape (batch, units); with several layers or directions (batch, layers * directions, units), the first layer
    first, and in each layer "forward" before "reverse".

    A mask (see `Masking`) says which steps count: at the others, states stay as they are, and the output is 0. So
    sequences that are padded behind their ends give what they give without the padding.

    The parameters are "weight_input", "weight_hidden" and "bias"; with several layers or directions, the number of the
    layer and the direction stand in front, as in "0.forward.bias".

    Args:
        units: the length of the state, and of the output in each direction.
        layers: how many are stacked; each gets the outputs of the one below.
        bidirectional: True for a second scan in each layer, from the end; the outputs of both are concatenated.
        return_sequences: True for the outputs of all steps, (batch, time, units); False for that of the last step that
            counts, (batch, units). The last step of a scan from the end is the first one of the sequence.
        return_state: True to return (output, last state).
        dropout: the probability with which, in training, a number that goes from one layer to the next is set to 0;
            it needs at least two layers.
        bias: False leaves b out.
        activation: f, "tanh" or "relu".
        weight_initializer: for W, (features, units); an object or a name.
        hidden_initializer: for U, (units, units).
        bias_initializer: for b.

    Raises:
        ConfigError: an argument makes no sense.
        ShapeError: (when built) the input is no sequence, or a state has a wrong shape.
    """

    op = "rnn"
    gates = 1

    def __init__(
        self,
        units: int,
        layers: int = 1,
        bidirectional: bool = False,
        return_sequences: bool = False,
        return_state: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        activation: str = "tanh",
        weight_initializer: Initializer | str = "glorot_uniform",
        hidden_initializer: Initializer | str = "orthogonal",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(
            units,
            layers,
            bidirectional,
            return_sequences,
            return_state,
            dropout,
            bias,
            weight_initializer,
            hidden_initializer,
            bias_initializer,
        )
        if activation not in RNN_ACTIVATIONS:
            raise ConfigError(f"activation={activation!r} is unknown; choose {' or '.join(map(repr, RNN_ACTIVATIONS))}")
        self.activation = activation

    def _options(self) -> dict[str, Any]:
        return {"activation": self.activation}


class LSTM(_Recurrent):
    """Long short-term memory with a forget gate; see `xpnn.ops.lstm`.

    It has two states: the initial ones are given as (x, hidden, cell), and with return_state the result is (output,
    hidden, cell). All else is as for `RNN`; the blocks of columns are those of the input gate, the forget gate, the new
    memory and the output gate.

    Args:
        units: as for `RNN`, and so are those that are not explained here.
        forget_bias: what is added to the first values of the forget gate's bias. With 1 the cell remembers from the
            start (Jozefowicz, Zaremba and Sutskever, ICML 2015).
        weight_initializer: for "weight_input", (features, 4 units).
        hidden_initializer: for "weight_hidden", (units, 4 units).
        bias_initializer: for "bias", (4 units,).

    Raises:
        ConfigError: an argument makes no sense.
        ShapeError: (when built) the input is no sequence, or a state has a wrong shape.
    """

    op = "lstm"
    gates = 4
    states = ("hidden", "cell")

    def __init__(
        self,
        units: int,
        layers: int = 1,
        bidirectional: bool = False,
        return_sequences: bool = False,
        return_state: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        forget_bias: float = 1.0,
        weight_initializer: Initializer | str = "glorot_uniform",
        hidden_initializer: Initializer | str = "orthogonal",
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__(
            units,
            layers,
            bidirectional,
            return_sequences,
            return_state,
            dropout,
            bias,
            weight_initializer,
            hidden_initializer,
            bias_initializer,
        )
        self.forget_bias = check_number("forget_bias", forget_bias, "a finite number", math.isfinite)
        self._bias = _ForgetBias(self._bias, self.forget_bias)


class GRU(_Recurrent):
    """The gated recurrent unit in PyTorch's form; see `xpnn.ops.gru`.

    All is as for `RNN`; the blocks of columns are those of the reset gate, the update gate and the new state, and there
    are two biases, "bias_input" and "bias_hidden".

    Args:
        units: as for `RNN`, and so are those that are not explained here.
        weight_initializer: for "weight_input", (features, 3 units).
        hidden_initializer: for "weight_hidden", (units, 3 units).
        bias_initializer: for both biases, (3 units,).

    Raises:
        ConfigError: an argument makes no sense.
        ShapeError: (when built) the input is no sequence, or a state has a wrong shape.
    """

    op = "gru"
    gates = 3
    biases = ("bias_input", "bias_hidden")


class _ForgetBias(Initializer):
    """The bias of an LSTM: what `initializer` gives, and `forget_bias` added in the forget gate's block."""

    def __init__(self, initializer: Initializer, forget_bias: float) -> None:
        self.initializer = initializer
        self.forget_bias = forget_bias

    def sample(self, shape: tuple[int, ...], draw: Draw) -> Array:
        xp = host().xp
        block = xp.arange(shape[0]) // (shape[0] // 4)
        return self.initializer.sample(shape, draw) + xp.where(block == 1, self.forget_bias, 0.0)
