"""Cases of the activations; kinks are avoided, since no difference quotient is right there."""

from xpnn.testing.cases.case import Case, Reals

_SHAPE = (4, 3)
_AROUND_ZERO = Reals(_SHAPE, avoid=(0.0,))
_WIDE = Reals(_SHAPE, -6.0, 6.0)

CASES = (
    Case("relu", (_AROUND_ZERO,), exact=True),
    Case("leaky_relu", (_AROUND_ZERO,)),
    Case("leaky_relu", (_AROUND_ZERO,), {"negative_slope": 0.25}, label="quarter", exact=True),
    Case("prelu", (Reals((4, 2, 3), avoid=(0.0,)), Reals((3,))), exact=True, terms=8),
    Case("prelu", (_AROUND_ZERO, Reals((1,))), label="shared", exact=True, terms=12),
    Case("prelu", (Reals((5,), avoid=(0.0,)), Reals((5,))), label="one-axis", exact=True),
    Case("elu", (_AROUND_ZERO,), {"alpha": 1.5}),
    Case("selu", (_AROUND_ZERO,)),
    Case("celu", (_AROUND_ZERO,), {"alpha": 0.5}),
    Case("smelu", (Reals(_SHAPE, avoid=(-1.0, 1.0)),), exact=True),
    Case("smelu", (Reals(_SHAPE, avoid=(-0.7, 0.7)),), {"beta": 0.7}, label="narrow"),
    Case("softplus", (_WIDE,)),
    Case("softplus", (_WIDE,), {"beta": 2.5}, label="steep"),
    Case("softsign", (_AROUND_ZERO,)),
    Case("sigmoid", (_WIDE,)),
    Case("log_sigmoid", (_WIDE,)),
    Case("hard_sigmoid", (Reals(_SHAPE, -6.0, 6.0, avoid=(-3.0, 3.0)),)),
    Case("tanh", (Reals(_SHAPE, -3.0, 3.0),)),
    Case("gelu", (_WIDE,)),
    Case("gelu", (_WIDE,), {"approximate": "tanh"}, label="tanh"),
    Case("gelu_tanh", (_WIDE,)),
    Case("silu", (_WIDE,)),
    Case("mish", (_WIDE,)),
    Case("hard_swish", (Reals(_SHAPE, -6.0, 6.0, avoid=(-3.0, 3.0)),)),
    Case("softmax", (_WIDE,), terms=3),
    Case("softmax", (Reals((4, 3, 2), -6.0, 6.0),), {"axis": 1}, label="inner-axis", terms=3),
    Case("log_softmax", (_WIDE,), terms=3),
    Case("log_softmax", (Reals((4, 3, 2), -6.0, 6.0),), {"axis": 1}, label="inner-axis", terms=3),
    Case("erf", (Reals((8, 3), -4.0, 4.0),)),
    Case("normal_cdf", (Reals((8, 3), -6.0, 6.0),)),
)
