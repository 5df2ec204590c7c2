"""Sums over an epoch: they grow on the device, batch by batch, and are read once at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xpnn import ops
from xpnn.backend import Backend, host
from xpnn.dispatch import Array
from xpnn.errors import BackendError
from xpnn.losses.loss import Loss
from xpnn.metrics import Metric

TotalsTree = Mapping[str, tuple[Any, ...]]
"""Name ("loss" or a metric's) -> sums."""


def sum_dtype(backend: Backend) -> str:
    """The dtype of the sums: float64 where the device has it, for thousands of small terms are added up."""
    try:
        backend.dtype("float64")
    except BackendError:
        return "float32"
    return "float64"


class Totals:
    """The sums of one loss and some metrics on one backend.

    Args:
        backend: where the sums lie.
        metrics: as `Metric.resolve` gave them.
        output_shape: the shape of one sample of the network's output.
    """

    def __init__(self, backend: Backend, metrics: Sequence[Metric], output_shape: tuple[int, ...]) -> None:
        self.backend = backend
        self.metrics = tuple(metrics)
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {"loss": ((), ())}
        for metric in metrics:
            self.shapes[metric.name] = metric.sum_shapes(output_shape)
        self._dtype = backend.dtype(sum_dtype(backend))

    def zero(self) -> dict[str, tuple[Array, ...]]:
        """The sums before the first batch."""
        zeros, dtype, device = self.backend.xp.zeros, self._dtype, self.backend.device
        with self.backend.context():
            return {
                name: tuple(zeros(shape, dtype=dtype, device=device) for shape in shapes)
                for name, shapes in self.shapes.items()
            }

    def read(self, totals: TotalsTree, loss: Loss) -> dict[str, Any]:
        """Loss and metrics as Python numbers: one transfer from the device."""
        sums = self._on_host(totals)
        logs: dict[str, Any] = {}
        loss_sum, weight_sum = sums["loss"]
        logs["loss"] = loss_sum / weight_sum if loss.averages and weight_sum else loss_sum
        for metric in self.metrics:
            logs[metric.name] = metric.result(sums[metric.name])
        return logs

    def _on_host(self, totals: TotalsTree) -> dict[str, tuple[Any, ...]]:
        """Each sum as a float or a host array."""
        if self.backend.name == host().name:
            return {
                name: tuple(part if shape else float(part) for part, shape in zip(totals[name], shapes, strict=True))
                for name, shapes in self.shapes.items()
            }
        xp = self.backend.xp
        with self.backend.context():
            flat = [xp.reshape(xp.astype(part, self._dtype), (-1,)) for name in self.shapes for part in totals[name]]
            values = self.backend.to_host(xp.concat(flat))
        sums: dict[str, tuple[Any, ...]] = {}
        position = 0
        for name, shapes in self.shapes.items():
            parts: list[Any] = []
            for shape in shapes:
                stop = position + math.prod(shape)
                parts.append(values[position:stop].reshape(shape) if shape else float(values[position]))
                position = stop
            sums[name] = tuple(parts)
        return sums


def add_to_totals(
    totals: TotalsTree,
    loss: Loss,
    metrics: Sequence[Metric],
    prediction: Array,
    target: Array,
    weight: Array | None,
    value: Array,
) -> dict[str, tuple[Any, ...]]:
    """The totals after one more batch; all on the device.

    A mean over a data set is made of the batches' means, each counted by its total weight, so that it does not depend
    on how the data were cut.
    """
    share = loss.total_weight(target, weight, value)
    loss_sum, weight_sum = totals["loss"]
    sums, _ = ops.add_to_sums(loss_sum, weight_sum, value, share, donate=True)
    new: dict[str, tuple[Any, ...]] = {"loss": sums}
    for metric in metrics:
        new[metric.name] = metric.add(totals[metric.name], prediction, target, weight)
    return new
