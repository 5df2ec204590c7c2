"""Cases of the optimizer updates."""

from xpnn.testing.cases.case import Case, Reals

CASES = (Case("sgd", (Reals((7,)), Reals((7,)), 0.25), exact=True),)
