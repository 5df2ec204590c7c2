"""Training reads nothing from the device between epochs, modifies no input, and takes an empty batch."""

import numpy as np
import pytest

import xpnn


def network(backend, dtype, **options):
    return xpnn.Network(
        xpnn.Dense(3, 4), xpnn.ReLU(), xpnn.Dropout(0.25), xpnn.Dense(2), backend=backend, dtype=dtype, **options
    )


def data(samples=16):
    return np.cos(np.arange(3.0 * samples)).reshape(samples, 3), np.arange(samples) % 2


@pytest.mark.xpnn_rows(only=["strict", "strict-no64"])
@pytest.mark.parametrize("optimizer", sorted(xpnn.optimizers.OPTIMIZERS))
def test_step_reads_nothing_and_stays_within_the_standard(optimizer, backend, dtype):
    net = network(backend, dtype)
    x, y = data()
    state, batch = net.initial_state(optimizer), net.prepare(x, y, "cross_entropy")
    step = net.step("cross_entropy", optimizer)
    with backend.discipline():
        for _ in range(2):
            state, loss = step(state, batch)
    assert np.isfinite(backend.to_host(loss))
    assert all(block.dtype == backend.dtype(dtype) for block in state.theta)


def test_number_of_reads_does_not_grow_with_the_batches(backend, dtype, monkeypatch):
    reads = []

    def count_calls(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: reads.append(name) or original(*arguments))

    count_calls(type(backend), "to_host")
    if backend.name == "strict":
        for name in ("__bool__", "__float__", "__int__", "__index__"):
            count_calls(type(backend.asarray([1.0], dtype)), name)

    def count(batch_size):
        x, y = data()
        net = network(backend, dtype)
        reads.clear()
        net.fit(
            x,
            y,
            loss="cross_entropy",
            optimizer="sgd",
            epochs=1,
            batch_size=batch_size,
            metrics=["accuracy"],
            verbose=False,
        )
        return len(reads)

    # Labels are checked when they come in, and losses are read when an epoch ends: neither knows of batches.
    assert count(2) == count(16)


def test_inputs_are_not_modified(backend, dtype):
    x, y = data()
    x.flags.writeable = y.flags.writeable = False
    net = network(backend, dtype)
    mine = backend.asarray(x, dtype)
    before = backend.to_host(mine).copy()
    for inputs in (x, mine):
        net.fit(inputs, y, loss="cross_entropy", optimizer="adam", epochs=1, batch_size=4, verbose=False)
        net.evaluate(inputs, y, loss="cross_entropy")
        net.predict(inputs)
    np.testing.assert_array_equal(backend.to_host(mine), before)


def test_empty_batch(backend, dtype):
    net = network(backend, dtype)
    assert net.predict(np.zeros((0, 3))).shape == (0, 2)


def test_one_sample(backend, dtype):
    net = network(backend, dtype)
    x, y = data(1)
    value, gradients = net.loss_and_gradients(x, y, loss="cross_entropy")
    assert value.shape == ()
    assert value.dtype == backend.dtype(dtype)
    assert list(gradients) == list(net.parameters)
    assert all(gradients[name].shape == net.parameters[name].shape for name in gradients)


@pytest.mark.xpnn_rows(only=["numpy", "torch", "strict"])
def test_inputs_that_are_not_contiguous(backend, dtype):
    net = network(backend, dtype)
    x, _ = data(16)
    wide = backend.asarray(np.concatenate([x, x], axis=1), dtype)
    got = backend.to_host(net.predict(wide[:, :3]))
    np.testing.assert_array_equal(got, backend.to_host(net.predict(backend.asarray(x, dtype))))
