"""The training step: a pure function from state and batch to state and loss.

    step(state, batch) -> (state, loss)

Nothing else changes, and nothing is read from the device. The backend decides how the step runs
(`backend.compile(step)`): as it is, jitted, or captured as a graph. The memory of the state that goes in is donated:
use the state that comes out.

A training loop of your own, without `fit`:

    step = net.step("cross_entropy", xpnn.Adam(1e-3))
    state = net.initial_state(xpnn.Adam(1e-3))
    batch = net.prepare(X, y, "cross_entropy")
    for _ in range(100):
        state, loss = step(state, batch)
    net.set_state(state)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from xpnn.dispatch import Array, namespace
from xpnn.layers.layer import Layer, Run
from xpnn.losses.loss import Loss
from xpnn.metrics import Metric
from xpnn.optimizers.optimizer import Optimizer, Slots
from xpnn.parameters import Layout, Vector
from xpnn.training.precision import FULL, Precision
from xpnn.training.totals import TotalsTree, add_to_totals

Inputs = Array | tuple[Array, ...]
"""The input of a network, or several."""
Batch = tuple[Inputs, Array, Array | None]
"""(inputs, targets, sample weights or None); all of one length."""


class State(NamedTuple):
    """Everything that a training step reads and changes.

    Attributes:
        theta: the trained parameters, as one vector.
        slots: the optimizer's memory, vectors of theta's layout.
        buffers: name -> array that is not trained: what layers keep (running means), and frozen parameters.
        step: how many steps were taken.
        key: the seed of the dropout masks.
        totals: running sums since the start of the epoch: "loss", and one for each metric.
        scaling: in float16, the loss scale (a `xpnn.training.precision.Scaling`); else ().
    """

    theta: Vector
    slots: Slots
    buffers: Mapping[str, Array]
    step: Any
    key: int
    totals: TotalsTree
    scaling: tuple[Array, ...] = ()


class EvaluationState(NamedTuple):
    """What an evaluation step changes: the running sums. The parameters are not part of it: they are not donated."""

    totals: TotalsTree
    key: int = 0


Step = Callable[[Any, Any], tuple[Any, Array]]


def make_step(
    root: Layer,
    layout: Layout,
    loss: Loss,
    optimizer: Optimizer,
    metrics: Sequence[Metric] = (),
    precision: Precision = FULL,
) -> Step:
    """The training step of a network: forward, loss, backward, update.

    Args:
        root: the layers.
        layout: where their parameters lie.
        loss: what is made small; the targets in a batch are as its `prepare` returned them.
        optimizer: how.
        metrics: what is added up besides; as `Metric.resolve` returned them.
        precision: how forward and backward pass are computed.

    Returns:
        step(State, Batch) -> (State, loss as a 0-d array).
    """

    def step(state: State, batch: Batch) -> tuple[State, Array]:
        x, target, weight = batch
        run = Run(True, state.key, state.step, input_gradient=False)
        tree = precision.tree(layout, state.theta, state.buffers)
        output, backward = root.forward(precision.lowered(x), tree, run)
        prediction = precision.raised(output)
        value, loss_vjp = loss(prediction, target, weight)
        _, gradients = backward(precision.output_gradient(loss_vjp(1.0)[0], state.scaling))
        gradient = precision.parameter_gradient(layout.gradient_vector(gradients, precision.dtype), state.scaling)
        theta, slots = precision.kept(state.theta), precision.kept(state.slots)
        theta, slots = optimizer.apply(theta, gradient, slots, state.step, layout)
        buffers = layout.changed_buffers(state.buffers, gradients)
        totals = add_to_totals(state.totals, loss, metrics, prediction, target, weight, value)
        new = State(theta, slots, buffers, state.step + 1, state.key, totals, state.scaling)
        return precision.settled(state, new, gradient), value

    return precision.around(step)


def make_evaluation_step(
    root: Layer, layout: Layout, loss: Loss, metrics: Sequence[Metric] = (), precision: Precision = FULL
) -> Step:
    """step(EvaluationState, (theta, buffers, batch)) -> (EvaluationState, loss): adds a batch to the totals.

    Dropout is off, and no gradients are computed.
    """

    def step(state: EvaluationState, given: tuple[Vector, Mapping[str, Array], Batch]) -> tuple[Any, Array]:
        theta, buffers, (x, target, weight) = given
        output, _ = root.forward(precision.lowered(x), precision.tree(layout, theta, buffers), Run())
        prediction = precision.raised(output)
        value, _ = loss(prediction, target, weight)
        totals = add_to_totals(state.totals, loss, metrics, prediction, target, weight, value)
        return state._replace(totals=totals), value

    return precision.around(step)


def make_prediction_step(root: Layer, layout: Layout, precision: Precision = FULL) -> Step:
    """step(EvaluationState without totals, (theta, buffers, inputs)) -> (that state, outputs), without dropout."""

    def step(state: EvaluationState, given: tuple[Vector, Mapping[str, Array], Inputs]) -> tuple[Any, Array]:
        theta, buffers, x = given
        output, _ = root.forward(precision.lowered(x), precision.tree(layout, theta, buffers), Run())
        return state, precision.raised(output)

    return precision.around(step)


def make_gradient_function(
    root: Layer, layout: Layout, loss: Loss, precision: Precision = FULL
) -> Callable[[Vector, Mapping[str, Array], Batch], tuple[Array, dict[str, Array]]]:
    """function(theta, buffers, batch) -> (loss, gradients by the names of the parameters), without dropout."""

    def differentiate(theta: Vector, buffers: Mapping[str, Array], batch: Batch) -> tuple[Array, dict[str, Array]]:
        x, target, weight = batch
        tree = precision.tree(layout, theta, buffers)
        output, backward = root.forward(precision.lowered(x), tree, Run(input_gradient=False))
        value, loss_vjp = loss(precision.raised(output), target, weight)
        gradient = loss_vjp(1.0)[0]
        scaling = precision.scaling_for(gradient)
        _, gradients = backward(precision.output_gradient(gradient, scaling))
        layout.check_gradients(gradients, precision.dtype)
        named = layout.gather(gradients)
        return value, dict(zip(named, precision.parameter_gradient(tuple(named.values()), scaling), strict=True))

    return precision.around(differentiate)


def gather_rows(step: Step) -> Step:
    """The same step for a batch that is given as whole arrays and the numbers of its rows (None: all of them).

    The rows are picked inside the step, so that a compiled step holds that work too.
    """

    def gathering_step(state: State, given: tuple[Inputs, Array, Array | None, Array | None]) -> tuple[Any, Array]:
        x, target, weight, rows = given
        if rows is not None:
            take = namespace(target).take
            x = tuple(take(part, rows, axis=0) for part in x) if isinstance(x, tuple) else take(x, rows, axis=0)
            target = take(target, rows, axis=0)
            if weight is not None:
                weight = take(weight, rows, axis=0)
        return step(state, (x, target, weight))

    return gathering_step
