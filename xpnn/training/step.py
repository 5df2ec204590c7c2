"""The training step: a pure function from state and batch to state and loss.

    step(state, batch) -> (state, loss)

Nothing else changes, and nothing is read from the device. The backend decides how the step runs
(`backend.compile(step)`): as it is, jitted, or captured as a graph. The memory of the state that goes in is donated:
use the state that comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from xpnn.dispatch import Array
from xpnn.layers.layer import Layer, Run
from xpnn.losses.loss import Loss
from xpnn.metrics import Metric
from xpnn.optimizers.optimizer import Optimizer, Slots
from xpnn.parameters import Layout, Vector

Batch = tuple[Array, Array, Array | None]
"""(inputs, targets, sample weights or None); all of one length."""


class State(NamedTuple):
    """Everything that a training step reads and changes.

    Attributes:
        theta: the trained parameters, as one vector.
        slots: the optimizer's memory, vectors of theta's layout.
        buffers: name -> array that is read and not trained (frozen parameters).
        step: how many steps were taken.
        key: the seed of the dropout masks.
        totals: running sums since the start of the epoch: "loss", and one for each metric.
    """

    theta: Vector
    slots: Slots
    buffers: Mapping[str, Array]
    step: Any
    key: int
    totals: Mapping[str, tuple[Any, ...]]


Step = Callable[[State, Batch], tuple[State, Array]]


def make_step(root: Layer, layout: Layout, loss: Loss, optimizer: Optimizer, metrics: Sequence[Metric] = ()) -> Step:
    """The training step of a network: forward, loss, backward, update."""

    def step(state: State, batch: Batch) -> tuple[State, Array]:
        x, target, weight = batch
        run = Run(True, state.key, state.step, input_gradient=False)
        prediction, backward = root.forward(x, layout.tree(state.theta, state.buffers), run)
        value, loss_vjp = loss(prediction, target, weight)
        _, gradients = backward(loss_vjp(1.0)[0])
        gradient = layout.join(layout.gather(gradients))
        theta, slots = optimizer.apply(state.theta, gradient, state.slots, state.step, layout)
        totals = add_to_totals(state.totals, loss, metrics, prediction, target, weight, value)
        return State(theta, slots, state.buffers, state.step + 1, state.key, totals), value

    return step


def make_evaluation_step(root: Layer, layout: Layout, loss: Loss, metrics: Sequence[Metric] = ()) -> Step:
    """A step that adds a batch to the totals and changes nothing else: dropout off, no gradients."""

    def step(state: State, batch: Batch) -> tuple[State, Array]:
        x, target, weight = batch
        prediction, _ = root.forward(x, layout.tree(state.theta, state.buffers), Run())
        value, _ = loss(prediction, target, weight)
        return state._replace(
            totals=add_to_totals(state.totals, loss, metrics, prediction, target, weight, value)
        ), value

    return step


def zero_totals(metrics: Sequence[Metric]) -> dict[str, tuple[Any, ...]]:
    """The totals at the start of an epoch."""
    return {"loss": (0.0, 0.0), **{metric.name: metric.zero() for metric in metrics}}


def add_to_totals(
    totals: Mapping[str, tuple[Any, ...]],
    loss: Loss,
    metrics: Sequence[Metric],
    prediction: Array,
    target: Array,
    weight: Array | None,
    value: Array,
) -> dict[str, tuple[Any, ...]]:
    """The totals after one more batch; all on the device."""
    share = loss.total_weight(target, weight)
    loss_sum, weight_sum = totals["loss"]
    new: dict[str, tuple[Any, ...]] = {"loss": (loss_sum + value * share, weight_sum + share)}
    for metric in metrics:
        new[metric.name] = metric.add(totals[metric.name], prediction, target, weight)
    return new


def read_totals(
    totals: Mapping[str, tuple[Any, ...]], loss: Loss, metrics: Sequence[Metric], to_host: Callable[[Any], Any]
) -> dict[str, Any]:
    """The epoch's loss and metrics as Python numbers: the only place where the device is read."""
    loss_sum, weight_sum = (float(to_host(number)) for number in totals["loss"])
    logs: dict[str, Any] = {"loss": loss_sum / weight_sum if loss.averages and weight_sum else loss_sum}
    for metric in metrics:
        logs[metric.name] = metric.result(tuple(to_host(number) for number in totals[metric.name]))
    return logs
