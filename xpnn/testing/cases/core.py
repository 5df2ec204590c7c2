"""Cases of the linear map, dropout, and the ops that only move values."""

from xpnn.random import RandomKey
from xpnn.testing.cases.case import Case, Integers, Reals

_KEY = RandomKey(7, 3, 11)

CASES = (
    Case("linear", (Reals((5, 3)), Reals((3, 4)), Reals((4,))), exact=True, terms=5),
    Case("linear", (Reals((5, 3)), Reals((3, 4))), label="no-bias", exact=True, terms=5),
    Case("linear", (Reals((2, 5, 3)), Reals((3, 4)), Reals((4,))), label="3d", exact=True, terms=10),
    Case("linear", (Reals((5, 3)), Reals((3, 4)), Reals((4,))), {"activation": "tanh"}, label="tanh", terms=5),
    Case("linear", (Reals((5, 3)), Reals((3, 4)), Reals((4,))), {"activation": "sigmoid"}, label="sigmoid", terms=5),
    Case(
        "linear",
        (Reals((5, 3)), Reals((3, 4)), Reals((4,), 0.3, 0.4)),
        {"activation": "relu"},
        label="relu",
        exact=True,
        terms=5,
    ),
    Case("linear", (Reals((5, 3)), Reals((3, 4)), Reals((4,))), {"activation": "gelu"}, label="gelu", terms=5),
    Case(
        "linear", (Reals((5, 3)), Reals((3, 4)), Reals((4,))), {"activation": "gelu_tanh"}, label="gelu_tanh", terms=5
    ),
    Case(
        "linear_chain",
        (Reals((5, 3)), Reals((3, 4)), Reals((4,), 0.3, 0.4), Reals((4, 2)), Reals((2,))),
        {"activations": ("relu", None)},
        exact=True,
        terms=9,
    ),
    Case(
        "linear_chain",
        (Reals((5, 3)), Reals((3, 4)), None),
        {"activations": (None,)},
        label="one",
        exact=True,
        terms=5,
    ),
    Case(
        "linear_chain",
        (Reals((2, 5, 3)), Reals((3, 4)), None, Reals((4, 2)), Reals((2,))),
        {"activations": (None, None)},
        label="3d",
        exact=True,
        terms=14,
    ),
    Case(
        "linear_chain",
        (Reals((5, 3)), Reals((3, 4)), Reals((4,)), Reals((4, 3)), None, Reals((3, 2)), Reals((2,))),
        {"activations": ("tanh", "gelu", "sigmoid")},
        label="three",
        terms=12,
    ),
    Case(
        "linear_chain",
        (Reals((5, 3)), Reals((3, 8)), Reals((8,)), Reals((8, 4)), Reals((4,)), Reals((4, 2)), Reals((2,))),
        {"activations": ("gelu_tanh", "gelu_tanh", None)},
        label="gelu_tanh",
        terms=15,
    ),
    Case("random_mask", (Reals((5, 3)), _KEY, 0.3), exact=True, differentiable=False),
    Case("dropout", (Reals((5, 3)), _KEY, 0.5), exact=True),
    Case("dropout", (Reals((5, 3)), _KEY, 0.3), label="uneven"),
    Case("flatten", (Reals((5, 3, 2)),), exact=True),
    Case("reshape", (Reals((5, 3, 2)), (2, 3)), exact=True),
    Case("add", (Reals((5, 3)), Reals((5, 3)), Reals((5, 3))), exact=True),
    Case("concatenate", (Reals((5, 3)), Reals((5, 2))), exact=True),
    Case("concatenate", (Reals((5, 3, 2)), Reals((5, 1, 2))), {"axis": 1}, label="inner", exact=True),
    # Nine rows for four numbers: at least one number comes twice, and its gradients must add up.
    Case("embedding", (Reals((4, 3)), Integers((9,), 4)), exact=True, terms=9),
    Case("embedding", (Reals((4, 3)), Integers((2, 5), 4)), label="2d", exact=True, terms=10),
    Case("scatter_add", (Reals((9, 3)), Integers((9,), 4), 4), exact=True, terms=9),
    Case("scatter_add", (Reals((2, 5, 3)), Integers((2, 5), 4), 6), label="empty-rows", exact=True, terms=10),
    Case("normal_quantile", (Reals((6, 4), 0.05, 0.95),)),
)
