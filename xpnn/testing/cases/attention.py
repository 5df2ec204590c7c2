"""Cases of attention and of positions."""

from xpnn.random import RandomKey
from xpnn.testing.cases.case import Booleans, Case, Reals

_KEY = RandomKey(7, 3, 11)
# three samples, five queries, four keys; two heads of size three
_QUERY = Reals((3, 5, 2, 3))
_KEYS = Reals((3, 4, 2, 3))
_VALUES = Reals((3, 4, 2, 3))
_LONG = (_QUERY, Reals((3, 5, 2, 3)), Reals((3, 5, 2, 3)))
# six query heads, two of keys and values
_GROUPED = (Reals((2, 5, 6, 2)), Reals((2, 5, 2, 2)), Reals((2, 5, 2, 4)))

_ATTENTION = (
    Case("attention", (_QUERY, _KEYS, _VALUES), terms=20),
    Case("attention", (_QUERY, _KEYS, _VALUES), {"block": 2}, label="blocks", terms=20),
    Case("attention", (_QUERY, _KEYS, _VALUES), {"scale": 0.25}, label="scale", terms=20),
    Case("attention", _LONG, {"causal": True}, label="causal", terms=20),
    Case("attention", _LONG, {"causal": True, "block": 2}, label="causal-blocks", terms=20),
    # more queries than keys, and the other way round: the triangle starts in the upper left corner
    Case("attention", (_QUERY, _KEYS, _VALUES), {"causal": True, "block": 3}, label="causal-tall", terms=20),
    Case(
        "attention",
        (Reals((3, 3, 2, 3)), _KEYS, _VALUES),
        {"causal": True, "block": 2},
        label="causal-wide",
        terms=20,
    ),
    Case("attention", (_QUERY, _KEYS, _VALUES, Booleans((3, 2, 5, 4))), label="mask", terms=20),
    Case("attention", (_QUERY, _KEYS, _VALUES, Booleans((3, 1, 1, 4))), {"block": 2}, label="key-mask", terms=20),
    Case("attention", (_QUERY, _KEYS, _VALUES, Booleans((5, 4), ((2,),))), {"block": 3}, label="empty-row", terms=20),
    Case("attention", (*_LONG, Booleans((3, 1, 5, 5))), {"causal": True, "block": 2}, label="causal-mask", terms=20),
    Case("attention", _GROUPED, {"causal": True}, label="grouped", terms=60),
    Case("attention", (*_GROUPED, Booleans((2, 6, 5, 5))), {"block": 4}, label="grouped-mask", terms=60),
    Case("attention", (*_GROUPED, Booleans((2, 1, 5, 5))), {"block": 4}, label="grouped-shared-mask", terms=60),
    Case(
        "attention",
        (_QUERY, _KEYS, _VALUES),
        {"dropout_key": _KEY, "dropout_rate": 0.3},
        label="dropout",
        terms=20,
    ),
    Case(
        "attention",
        (*_GROUPED, Booleans((2, 1, 5, 5))),
        {"dropout_key": _KEY, "dropout_rate": 0.25, "block": 2, "causal": True},
        label="dropout-blocks",
        terms=60,
    ),
)

_ROTARY = (
    Case("rotary", (Reals((2, 3, 2, 4)), Reals((3, 2)), Reals((3, 2))), exact=True, terms=2),
    Case(
        "rotary",
        (Reals((2, 3, 2, 4)), Reals((2, 3, 2)), Reals((2, 3, 2))),
        {"interleaved": True},
        label="interleaved",
        exact=True,
        terms=2,
    ),
    Case("rotary", (Reals((2, 3, 2, 5)), Reals((3, 1)), Reals((3, 1))), label="partial", exact=True, terms=2),
    Case(
        "rotary",
        (Reals((2, 3, 2, 5)), Reals((3, 2)), Reals((3, 2))),
        {"interleaved": True},
        label="partial-interleaved",
        exact=True,
        terms=2,
    ),
)

_POSITIONS = (
    Case("add_positions", (Reals((2, 3, 4)), Reals((3, 4))), exact=True, terms=2),
    Case("add_positions", (Reals((2, 3, 4)), Reals((5, 4))), label="longer", exact=True, terms=2),
)

CASES = (*_ATTENTION, *_ROTARY, *_POSITIONS)
