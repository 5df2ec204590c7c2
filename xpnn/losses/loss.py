"""What a loss is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from xpnn.backend import Backend
from xpnn.config import Configurable
from xpnn.dispatch import Array, Vjp, namespace
from xpnn.errors import ConfigError
from xpnn.losses.targets import same_shape
from xpnn.ops.reduction import REDUCTIONS


class Loss(Configurable):
    """How far predictions are from targets, as one number.

    A subclass gives `__call__`, made of one op. The targets that it gets have been through `prepare`, once, when the
    data came in.

    Attributes:
        expects: what the network's output must be: "logits", "probabilities", "log_probabilities", or "any".
        instead: what to write where the output is of a kind that the loss cannot take: kind -> advice.
        compares_classes: True if the largest output is a guess at a class that the targets hold. Where it is not,
            metrics of classes, such as accuracy, are refused.
        averages: True if the loss of a data set is the mean over its samples, False if it is the sum.
    """

    expects: ClassVar[str] = "any"
    instead: ClassVar[Mapping[str, str]] = {}
    compares_classes: ClassVar[bool] = True
    name: ClassVar[str]

    @property
    def averages(self) -> bool:
        return bool(getattr(self, "reduction", "mean").endswith("mean"))

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        """The targets in the shape and dtype that `__call__` wants; called once for a whole data set.

        This may wait for the device: it reads whether the targets are right.

        Args:
            targets: (samples, ...), an array of the backend.
            output_shape: the shape of one sample of the network's output.
            backend: where the arrays lie.
            dtype: the network's dtype.

        Raises:
            DataError: the targets do not fit the output, or hold values that the loss has no meaning for.
            ConfigError: the loss does not fit the network.
        """
        return same_shape(type(self).__name__, targets, output_shape, backend, dtype)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        """(loss as a 0-d array, vjp) with vjp(1.0)[0] the gradient with respect to the prediction."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, prediction, target, weight=None)")

    def total_weight(self, target: Array, weight: Array | None, like: Array | None = None) -> Any:
        """What this batch's loss counts for in the loss of a whole data set: the sum of its weights.

        The losses of batches, times their total weights, summed and divided by the sum of the total weights, are the
        loss of the data set. If the loss does not average (`averages` is False), the losses of batches just add up.

        Args:
            target: the batch's targets, through `prepare`.
            weight: the batch's sample weights, or None.
            like: an array of the network's dtype, such as the loss's value; the result takes its dtype. Without it,
                the dtype of `weight`, else float32.

        Returns:
            A Python number, or a 0-d array on the device.
        """
        if not self.averages:
            return 1.0
        if weight is None:
            return float(target.shape[0])
        return namespace(weight).sum(weight)


def check_reduction(reduction: str) -> str:
    """`reduction` itself. Raises ConfigError if it is none that is known."""
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction={reduction!r} is unknown; known: {', '.join(REDUCTIONS)}")
    return reduction


def check_output(loss: Loss, output_kind: str) -> None:
    """Check that a loss can take what a network's last layer gives.

    Args:
        loss: the loss.
        output_kind: of the last layer: "any" (logits, or values of no special kind), "probabilities",
            "log_probabilities", "sigmoid" (a probability of its own for each output), or "same" (the input's).

    Raises:
        ConfigError: it cannot; the message says what to write instead.
    """
    advice = loss.instead.get(output_kind)
    if advice is None:
        return
    described = {"sigmoid": "probabilities (of a sigmoid)", "log_probabilities": "log-probabilities"}
    wanted = described.get(loss.expects, loss.expects)
    given = described.get(output_kind, output_kind)
    raise ConfigError(
        f"loss {type(loss).__name__} wants {wanted}, and the network's last layer gives {given}; write {advice}"
    )
