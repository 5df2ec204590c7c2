"""Cases of the ops on the parameter vector."""

from xpnn.testing.cases.case import Case, Reals

CASES = (
    Case("pack", (Reals((3, 4)), Reals((4,)), Reals((2, 1))), {"starts": (0, 16, 24), "size": 32}, exact=True),
    Case("pack", (Reals((3,)), Reals((1,))), {"starts": (0, 3), "size": 4}, label="no-gaps", exact=True),
)
