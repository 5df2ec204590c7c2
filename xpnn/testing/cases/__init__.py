"""The cases of the matrix: at least one for every op (a test fails if an op has none).

To add an op: write it in `xpnn/ops`, and its case in the file of its family here.
"""

from xpnn.testing.cases import activations, core, losses, optimizers, vectors
from xpnn.testing.cases.case import Case, Distinct, Integers, Probabilities, Reals, Values

CASES: tuple[Case, ...] = (*core.CASES, *activations.CASES, *losses.CASES, *optimizers.CASES, *vectors.CASES)

__all__ = ["CASES", "Case", "Distinct", "Integers", "Probabilities", "Reals", "Values"]
