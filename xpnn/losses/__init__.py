"""Every loss, and the names by which `fit` takes them."""

from xpnn.losses.absolute_error import MAE, Huber
from xpnn.losses.binary_cross_entropy import BinaryCrossEntropy, BinaryCrossEntropyFromProbabilities
from xpnn.losses.connectionist_temporal_classification import CTC
from xpnn.losses.cosine_distance import CosineDistance
from xpnn.losses.cross_entropy import NLL, CrossEntropy, CrossEntropyFromProbabilities
from xpnn.losses.dice import Dice
from xpnn.losses.focal import BinaryFocal, Focal
from xpnn.losses.hinge import CategoricalHinge, Hinge
from xpnn.losses.kl_divergence import KLDivergence
from xpnn.losses.loss import Loss
from xpnn.losses.loss import check_output as check_output
from xpnn.losses.mse import MSE
from xpnn.losses.similarity import InfoNCE, Triplet

_ALL: tuple[type[Loss], ...] = (
    MSE,
    MAE,
    Huber,
    CrossEntropy,
    CrossEntropyFromProbabilities,
    BinaryCrossEntropy,
    BinaryCrossEntropyFromProbabilities,
    NLL,
    KLDivergence,
    Hinge,
    CategoricalHinge,
    CosineDistance,
    CTC,
    Dice,
    Focal,
    BinaryFocal,
    Triplet,
    InfoNCE,
)

LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in _ALL}

__all__ = [
    "CTC",
    "LOSSES",
    "MAE",
    "MSE",
    "NLL",
    "BinaryCrossEntropy",
    "BinaryCrossEntropyFromProbabilities",
    "BinaryFocal",
    "CategoricalHinge",
    "CosineDistance",
    "CrossEntropy",
    "CrossEntropyFromProbabilities",
    "Dice",
    "Focal",
    "Hinge",
    "Huber",
    "InfoNCE",
    "KLDivergence",
    "Loss",
    "Triplet",
]
