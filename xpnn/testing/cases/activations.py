"""Cases of the activations; kinks are avoided, since no difference quotient is right there."""

from xpnn.testing.cases.case import Case, Reals

_SHAPE = (4, 3)

CASES = (
    Case("relu", (Reals(_SHAPE, avoid=(0.0,)),), exact=True),
    Case("sigmoid", (Reals(_SHAPE, -6.0, 6.0),)),
    Case("tanh", (Reals(_SHAPE, -3.0, 3.0),)),
)
