"""The training loop."""

from __future__ import annotations

from typing import Any

from xpnn import random
from xpnn.config import by_name
from xpnn.losses import LOSSES, Loss
from xpnn.metrics import METRICS, Metric
from xpnn.optimizers import OPTIMIZERS, Optimizer
from xpnn.training.data import enter
from xpnn.training.step import State, make_step, read_totals, zero_totals


def fit(
    network: Any,
    x: Any,
    y: Any,
    *,
    loss: Any,
    optimizer: Any = "sgd",
    epochs: int = 1,
    batch_size: int | None = 32,
    metrics: Any = (),
) -> list[dict[str, Any]]:
    """Skeleton."""
    loss = by_name("loss", loss, LOSSES, Loss)
    optimizer = by_name("optimizer", optimizer, OPTIMIZERS, Optimizer)
    metrics = [by_name("metrics", metric, METRICS, Metric) for metric in metrics]
    backend = network.backend
    xp = backend.xp
    inputs, _ = network._enter_inputs(x)
    target = loss.prepare(enter("y", y, backend, network.dtype), network.output_shape, backend, network.dtype)
    layout = network.layout
    theta = tuple(backend.copy(block) for block in network._theta)
    state = State(
        theta, optimizer.initial_slots(theta, layout), network._buffers, 0, network.seed, zero_totals(metrics)
    )
    step = backend.compile(make_step(network.root, layout, loss, optimizer, metrics))
    samples = inputs.shape[0]
    size = batch_size or samples
    history = []
    with backend.context():
        for epoch in range(epochs):
            state = state._replace(totals=zero_totals(metrics))
            order = random.permutation(network.seed, random.stream(random.SHUFFLE), epoch, samples)
            order = backend.asarray(order, "int64")
            for start in range(0, samples, size):
                rows = order[start : min(start + size, samples)]
                state, _ = step(state, (xp.take(inputs, rows, axis=0), xp.take(target, rows, axis=0), None))
            read = lambda number: backend.to_host(number) if backend.owns(number) else number  # noqa: E731
            history.append(read_totals(state.totals, loss, metrics, read))
    network._theta = state.theta
    return history
