"""Cases of the recurrent ops and of what sequences need besides."""

from typing import Any

from xpnn.ops.gru import gru_step
from xpnn.ops.lstm import lstm_step
from xpnn.testing.cases.case import Booleans, Case, Reals, Values

_X = Reals((3, 4, 2))
_MASK = Booleans((3, 4), never=((1, 3), (2, 2), (2, 3)))


def _weights(gates: int) -> tuple[Reals, Reals, Reals]:
    """Weights of the input and of the hidden state, and the bias, for 2 features and 5 units."""
    return Reals((2, gates * 5), -1.0, 1.0), Reals((5, gates * 5), -1.0, 1.0), Reals((gates * 5,), -1.0, 1.0)


def _products(gates: int) -> Reals:
    """What the input gives to 4 steps of 3 samples, for 5 units."""
    return Reals((4, 3, gates * 5), -1.0, 1.0)


_STATE = Reals((3, 5), -1.0, 1.0)


def _case(op: str, *arguments: Any, label: str = "", **options: Any) -> Case:
    # The longest sum is that of a bias, over the steps of all samples. What the steps lose to rounding adds up besides.
    return Case(op, arguments, options, label=label, terms=12, roundings=32.0)


_LABELS = Values(((1, 1, 2), (3, -1, -1), (2, 3, 1), (-1, -1, -1)), dtype="int64")
_LENGTHS = Values((6, 3, 5, 4), dtype="int64")
_LOGITS = Reals((4, 6, 4))


def _ctc(label: str, *arguments: Any, **options: Any) -> Case:
    # Logarithms are added up over 6 steps, and each addition of probabilities takes two elementary functions.
    return Case("ctc", (_LOGITS, *arguments), options, label=label, terms=24, roundings=64.0)


CASES = (
    Case(
        "padding_mask",
        (Values((((0.0, 1.0), (0.0, 0.0)), ((0.0, 0.0), (2.0, 2.0)))),),
        exact=True,
        differentiable=False,
    ),
    Case(
        "padding_mask",
        (Values((((5.0,), (0.0,), (5.0,)),)),),
        {"value": 5.0},
        label="value",
        exact=True,
        differentiable=False,
    ),
    Case("fold_time", (Reals((2, 3, 4)),), exact=True),
    Case("unfold_time", (Reals((6, 4)), 2, 3), exact=True),
    _ctc("mean", _LABELS),
    _ctc("lengths", _LABELS, Reals((4,), 0.5, 2.0), _LENGTHS, reduction="batch_mean"),
    _ctc("no-labels", Values(((), (), (), ()), dtype="int64"), reduction="sum"),
    _ctc("blank-last", Values(((0, 1), (2, 2), (1, -1), (0, 0)), dtype="int64"), blank=3, reduction="half_sum"),
    _case("scan", _products(4), _weights(4)[1], None, None, _STATE, _STATE, step=lstm_step),
    _case("scan", _products(3), *_weights(3)[1:], _MASK, _STATE, step=gru_step, reverse=True, label="mask-reverse"),
    _case("scan", Reals((0, 3, 15)), *_weights(3)[1:], None, _STATE, step=gru_step, label="no-steps"),
    _case("rnn", _X, *_weights(1)),
    _case("rnn", _X, *_weights(1), _STATE, _MASK, reverse=True, label="mask-reverse"),
    _case("rnn", _X, *_weights(1)[:2], activation="relu", label="relu"),
    _case("lstm", _X, *_weights(4)),
    _case("lstm", _X, *_weights(4)[:2], label="no-bias"),
    _case("lstm", _X, *_weights(4), _STATE, _STATE, reverse=True, label="states-reverse"),
    _case("lstm", _X, *_weights(4), _STATE, _STATE, _MASK, label="mask"),
    _case("lstm", _X, *_weights(4), _STATE, _STATE, _MASK, reverse=True, label="mask-reverse"),
    _case("lstm", Reals((3, 0, 2)), *_weights(4), _STATE, _STATE, label="no-steps"),
    _case("gru", _X, *_weights(3), _weights(3)[2]),
    _case("gru", _X, *_weights(3)[:2], label="no-bias"),
    _case("gru", _X, *_weights(3), _weights(3)[2], _STATE, _MASK, label="mask"),
    _case("gru", _X, *_weights(3), _weights(3)[2], _STATE, _MASK, reverse=True, label="mask-reverse"),
)
