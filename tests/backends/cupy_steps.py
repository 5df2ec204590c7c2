"""A small network, its data and its steps: what the tests of captured steps share."""

import numpy as np

import xpnn


def data(samples=24):
    generator = np.random.default_rng(5)
    return generator.standard_normal((samples, 6)).astype(np.float32), generator.integers(0, 3, samples)


def network(gpu, *layers, **settings):
    layers = layers or (xpnn.Dense(8), xpnn.Tanh(), xpnn.Dropout(0.25), xpnn.Dense(3))
    return xpnn.Network(*layers, backend=gpu, input_shape=(6,), seed=3, **settings)


def losses(net, optimizer, steps, batches, compiled=True):
    """The losses of so many steps, going round the batches, and the parameters after them."""
    step = net.step("cross_entropy", optimizer)
    if not compiled:
        step = net.backend._as_it_is(step._step)
    state = net.initial_state(optimizer, "cross_entropy")
    found = []
    for number in range(steps):
        state, loss = step(state, batches[number % len(batches)])
        found.append(loss)
    assert state.step == steps
    to_host = net.backend.to_host
    return [float(to_host(loss)) for loss in found], to_host(state.theta[0]), step


def batches_of(net, count, samples=24):
    x, y = data(samples * count)
    return [
        net.prepare(x[k * samples : (k + 1) * samples], y[k * samples : (k + 1) * samples], "cross_entropy")
        for k in range(count)
    ]
