"""Connectionist temporal classification as a loss."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from xpnn import ops
from xpnn.backend import Backend
from xpnn.config import check_integer
from xpnn.dispatch import Array, Vjp
from xpnn.errors import ConfigError, DataError
from xpnn.losses.loss import Loss, check_reduction
from xpnn.losses.targets import whole_numbers


class CTC(Loss):
    """Connectionist temporal classification: labels of a sequence that is not aligned with them; see `ops.ctc`.

    The network gives logits (batch, time, classes), and one of the classes is the blank. The targets are the labels of
    each sample in their order, (samples, longest), with -1 behind the end of shorter ones:
    `xpnn.data.pad_sequences(labels, value=-1)`.

    Args:
        blank: the number of the class that stands for no label.
        input_lengths: True if the first column of the targets is no label, but the number of time steps of the sample
            that count: (samples, 1 + longest). False if all count.
        reduction: "mean" (each loss divided by its number of labels, as in PyTorch), "batch_mean", "sum", or another
            of `MSE`.
        zero_infinity: True to leave samples out whose labels do not fit into their time steps.

    Raises:
        ConfigError: an argument makes no sense.
    """

    name = "ctc"
    expects = "logits"
    compares_classes = False
    instead: ClassVar[Mapping[str, str]] = {
        "probabilities": "a network that ends in logits: remove the Softmax layer",
        "log_probabilities": "a network that ends in logits: remove the LogSoftmax layer",
        "sigmoid": "a network that ends in logits: remove the Sigmoid layer",
    }

    def __init__(
        self, blank: int = 0, input_lengths: bool = False, reduction: str = "mean", zero_infinity: bool = False
    ) -> None:
        self.blank = check_integer("blank", blank, minimum=0)
        self.input_lengths = bool(input_lengths)
        self.reduction = check_reduction(reduction)
        self.zero_infinity = bool(zero_infinity)

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        if len(output_shape) != 2:
            raise ConfigError(
                f"loss CTC wants logits of shape (batch, time, classes), and a sample of the network's output has "
                f"shape {output_shape}; let the last recurrent layer return_sequences, and end in Dense(classes)"
            )
        time, classes = output_shape
        if self.blank >= classes:
            raise ConfigError(f"CTC(blank={self.blank}): the network has the classes 0 to {classes - 1}")
        first = 1 if self.input_lengths else 0
        if targets.ndim != 2 or targets.shape[1] < first:
            raise DataError(
                f"loss CTC: y has shape {tuple(targets.shape)}; give the labels of each sample as a row, with -1 "
                "behind the end of shorter ones" + (", and the number of its time steps in front" if first else "")
            )
        targets = whole_numbers("CTC", targets, backend)
        self._check_rows(backend.to_host(targets).tolist(), first, time, classes)
        return targets

    def _check_rows(self, rows: list[list[int]], first: int, time: int, classes: int) -> None:
        for number, row in enumerate(rows):
            steps = row[0] if first else time
            labels = row[first:]
            length = len([label for label in labels if label >= 0])
            if not 0 <= steps <= time:
                raise DataError(
                    f"loss CTC: row {number} of y begins with {steps}, the number of its time steps; the network gives "
                    f"{time}"
                )
            if any(label >= 0 for label in labels[length:]) or any(label < -1 for label in labels):
                raise DataError(
                    f"loss CTC: row {number} of y is {labels}; give -1 behind the last label, and only there"
                )
            if any(label >= classes or label == self.blank for label in labels[:length]):
                raise DataError(
                    f"loss CTC: row {number} of y has the labels {labels[:length]}; labels run from 0 to "
                    f"{classes - 1}, without the blank, {self.blank}"
                )
            repetitions = sum(label == following for label, following in pairwise(labels[:length]))
            if length + repetitions > steps and not self.zero_infinity:
                raise DataError(
                    f"loss CTC: row {number} of y has {length} labels, {repetitions} of them equal to the one before; "
                    f"that takes {length + repetitions} time steps, and there are {steps}. Give longer inputs, or "
                    "CTC(zero_infinity=True) to leave such samples out"
                )

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        lengths = None
        if self.input_lengths:
            lengths, target = target[:, 0], target[:, 1:]
        return ops.ctc(
            prediction,
            target,
            weight,
            lengths,
            blank=self.blank,
            reduction=self.reduction,
            zero_infinity=self.zero_infinity,
        )
