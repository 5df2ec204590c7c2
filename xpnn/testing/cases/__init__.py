"""The cases of the matrix: at least one for every op (a test fails if an op has none).

To add an op: write it in `xpnn/ops`, and its case in the file of its family here.
"""

from xpnn.testing.cases import (
    activations,
    attention,
    augmentation,
    convolution,
    core,
    losses,
    normalization,
    optimizers,
    pooling,
    recurrent,
    similarity,
    vectors,
)
from xpnn.testing.cases.case import Booleans, Case, Distinct, Integers, Probabilities, Reals, Values

FAMILIES: dict[str, tuple[Case, ...]] = {
    "layers": (*core.CASES, *augmentation.CASES, *vectors.CASES),
    "convolution": convolution.CASES,
    "pooling": pooling.CASES,
    "attention": attention.CASES,
    "normalization": normalization.CASES,
    "recurrent": recurrent.CASES,
    "activations": activations.CASES,
    "losses": (*losses.CASES, *similarity.CASES),
    "optimizers": optimizers.CASES,
}
CASES: tuple[Case, ...] = tuple(case for family in FAMILIES.values() for case in family)

__all__ = ["CASES", "FAMILIES", "Booleans", "Case", "Distinct", "Integers", "Probabilities", "Reals", "Values"]
