"""Cases of the losses."""

from xpnn.ops.reduction import REDUCTIONS
from xpnn.testing.cases.case import Case, Reals

CASES = (
    *(
        Case("mse", (Reals((4, 3)), Reals((4, 3))), {"reduction": reduction}, label=reduction, terms=12)
        for reduction in REDUCTIONS
    ),
    Case("mse", (Reals((4, 3)), Reals((4, 3)), Reals((4,), 0.5, 2.0)), label="weighted", terms=12),
    Case("mse", (Reals((4, 4)), Reals((4, 4))), label="dyadic", exact=True, terms=16),
)
