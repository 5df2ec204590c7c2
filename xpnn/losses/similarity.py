"""Losses that compare the vectors of a batch with each other."""

from __future__ import annotations

import math
from collections import Counter

from xpnn import ops
from xpnn.backend import Backend
from xpnn.config import check_number
from xpnn.dispatch import Array, Vjp
from xpnn.errors import ConfigError, DataError
from xpnn.losses.loss import Loss, check_reduction
from xpnn.losses.targets import same_shape, whole_numbers
from xpnn.ops.triplet import MININGS


class Triplet(Loss):
    """Each sample shall lie nearer to those of its own label than to others, by a margin; see `ops.triplet_mining`.

    The network gives a vector for each sample, (batch, features); targets are integer labels (samples,). The
    triplets are made of the samples of one batch, so that batches must hold several samples of a label, and the loss
    of a data set depends on how it is cut into batches. For triplets that you have, see `ops.triplet`.

    Args:
        margin: by how much.
        mining: which negative a sample is compared with: "hard" or "semihard".
        squared: True for squared distances.
        reduction: as for `MSE`; "mean" is over the samples that have a triplet in their batch.

    Raises:
        ConfigError: a setting makes no sense.
    """

    name = "triplet"
    compares_classes = False

    def __init__(
        self, margin: float = 1.0, mining: str = "hard", squared: bool = False, reduction: str = "mean"
    ) -> None:
        self.margin = check_number("margin", margin, "a finite number >= 0", lambda x: 0.0 <= x < math.inf)
        if mining not in MININGS:
            raise ConfigError(f"mining={mining!r} is unknown; choose {' or '.join(map(repr, MININGS))}")
        self.mining = mining
        self.squared = bool(squared)
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        name = type(self).__name__
        if len(output_shape) != 1:
            raise ConfigError(
                f"loss {name} wants one vector for each sample, and the network gives samples of shape {output_shape}; "
                "end it in Flatten() or Dense(features)"
            )
        labels = whole_numbers(name, targets, backend)
        if math.prod(targets.shape[1:]) != 1:
            raise DataError(f"loss {name}: y has shape {tuple(targets.shape)}; give one integer label for each sample")
        labels = backend.xp.reshape(labels, (targets.shape[0],))
        counts = Counter(backend.to_host(labels).tolist())
        if counts and (len(counts) < 2 or max(counts.values()) < 2):
            raise DataError(
                f"loss {name}: y holds {len(counts)} different labels for {targets.shape[0]} samples, of which no "
                "triplet can be made; that takes two samples of one label and one of another"
            )
        return labels

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        return ops.triplet_mining(
            prediction,
            target,
            weight,
            margin=self.margin,
            mining=self.mining,
            squared=self.squared,
            reduction=self.reduction,
        )


class InfoNCE(Loss):
    """Each vector shall be more like its partner than like the partners of others in its batch; see `ops.info_nce`.

    Where the partners come from, the network's output says:

    - (batch, 2, features): the two views of each sample, which both went through the network: give X as (samples, 2,
      ...). Targets are not looked at: give one number for each sample, 0 say.
    - (batch, features): the targets are the partners, (samples, features), and are not trained.

    The loss of a data set depends on how it is cut into batches.

    Args:
        temperature: what cosines are divided by; positive.
        symmetric: False asks for the partner of the first vector only, not of the second as well.
        reduction: as for `MSE`; "mean" is over the pairs.

    Raises:
        ConfigError: a setting makes no sense.
    """

    name = "info_nce"
    compares_classes = False

    def __init__(self, temperature: float = 0.1, symmetric: bool = True, reduction: str = "mean") -> None:
        self.temperature = check_number("temperature", temperature, "a finite number > 0", lambda x: 0.0 < x < math.inf)
        self.symmetric = bool(symmetric)
        self.reduction = check_reduction(reduction)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        if len(output_shape) == 2 and output_shape[0] == 2:
            with backend.context():
                return backend.xp.zeros((targets.shape[0],), dtype=backend.dtype(dtype), device=backend.device)
        if len(output_shape) != 1:
            raise ConfigError(
                f"loss InfoNCE wants two views of each sample, (2, features), or one vector, (features,); the network "
                f"gives samples of shape {output_shape}"
            )
        return same_shape(type(self).__name__, targets, output_shape, backend, dtype)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        if prediction.ndim == 3:
            return ops.info_nce_of_views(
                prediction,
                weight,
                temperature=self.temperature,
                symmetric=self.symmetric,
                reduction=self.reduction,
            )
        return ops.info_nce(
            prediction,
            target,
            weight,
            temperature=self.temperature,
            symmetric=self.symmetric,
            reduction=self.reduction,
        )
