"""The pure step, compiled and as it is."""

import numpy as np
import pytest

import xpnn
from xpnn.training import make_step
from xpnn.training.totals import Totals

X = np.random.default_rng(0).standard_normal((12, 4))
Y = np.arange(12) % 3


def network(backend, dtype):
    layers = [xpnn.Dense(4, 8), xpnn.ReLU(), xpnn.Dropout(0.25), xpnn.Dense(3)]
    return xpnn.Network(*layers, backend=backend, dtype=dtype, seed=2**63 + 5)


def test_the_compiled_step_gives_what_the_eager_one_gives(backend, dtype):
    net = network(backend, dtype)
    optimizer, loss = xpnn.Adam(0.01, ema=0.9), xpnn.CrossEntropy()
    metric = xpnn.metrics.Accuracy()
    compiled = net.step(loss, optimizer, [metric])
    eager = make_step(net.root, net.layout, loss, optimizer, [metric.resolve(loss, (3,))])
    batch = net.prepare(X, Y, loss)
    first = net.initial_state(optimizer, loss, [metric])
    second = net.initial_state(optimizer, loss, [metric])
    for _ in range(4):
        first, one = compiled(first, batch)
        second, other = eager(second, batch)
        np.testing.assert_allclose(
            float(backend.to_host(one)), float(backend.to_host(other)), rtol=1e-12 if dtype == "float64" else 1e-5
        )
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    vectors = [(first.theta, second.theta), *((first.slots[name], second.slots[name]) for name in second.slots)]
    for left, right in vectors:
        for one, other in zip(left, right, strict=True):
            np.testing.assert_allclose(backend.to_host(one), backend.to_host(other), **tolerance)
    totals = Totals(backend, (metric.resolve(loss, (3,)),), (3,))
    assert totals.read(first.totals, loss) == pytest.approx(totals.read(second.totals, loss), rel=1e-5)
    assert int(first.step) == int(second.step) == 4
    assert first.key == 2**63 + 5


def test_jax_compiles_once_for_each_batch_shape():
    jax = pytest.importorskip("jax")
    traced = []

    class Traced(xpnn.MSE):
        def __call__(self, prediction, target, weight=None):
            assert isinstance(prediction, jax.core.Tracer)
            traced.append(prediction.shape)
            return super().__call__(prediction, target, weight)

    net = xpnn.Network(xpnn.Dense(1, 1), backend="jax")
    x = np.linspace(-1, 1, 20)[:, None]
    options = {"batch_size": 8, "verbose": 0, "metrics": ["mae"]}
    net.fit(x, x, loss=Traced(), optimizer="adam", epochs=3, validation_data=(x, x), **options)
    assert sorted(traced) == [(4, 1), (8, 1), (20, 1)]
    # the same settings again: nothing is compiled anew
    net.fit(x, x, loss=Traced(), optimizer="adam", epochs=3, validation_data=(x, x), **options)
    assert len(traced) == 3
    net.fit(x, x, loss=Traced(), optimizer=xpnn.Adam(0.5), validation_data=(x, x), **options)
    assert len(traced) == 5


def test_a_changed_setting_is_compiled_anew():
    """On JAX, a rate that is changed between two fits must not be the one that was compiled in."""
    results = {}
    for row in ("numpy", "jax"):
        if xpnn.available_backends()[row]:
            pytest.skip(f"{row} is not here")
        net = xpnn.Network(xpnn.Dense(1, 1), backend=row)
        optimizer = xpnn.SGD(0.1)
        x = np.linspace(-1, 1, 20)[:, None]
        net.fit(x, x, loss="mse", optimizer=optimizer, verbose=0)
        optimizer.learning_rate = 0.0
        before = float(net.parameters["0.weight"][0, 0])
        net.fit(x, x, loss="mse", optimizer=optimizer, verbose=0)
        results[row] = float(net.parameters["0.weight"][0, 0])
        assert results[row] == before
    assert results["jax"] == pytest.approx(results["numpy"], rel=1e-5)


def test_a_class_that_is_defined_anew_is_compiled_anew():
    def scaled_loss(factor):
        class Scaled(xpnn.MSE):
            def __call__(self, prediction, target, weight=None):
                value, vjp = super().__call__(prediction, target, weight)
                return value * factor, lambda dy: vjp(dy * factor)

        return Scaled()

    net = xpnn.Network(xpnn.Dense(1, 1), backend="numpy")
    x = np.linspace(-1, 1, 20)[:, None]
    once, twice = (net.evaluate(x, x, loss=scaled_loss(factor))["loss"] for factor in (1.0, 2.0))
    assert twice == pytest.approx(2 * once)


def test_a_loop_of_ones_own(backend, dtype):
    net, fitted = network(backend, dtype), network(backend, dtype)
    optimizer = xpnn.SGD(0.1)
    before = net.backend.to_host(net.parameters["0.weight"])
    step, state = net.step("cross_entropy", optimizer), net.initial_state(optimizer)
    batch = net.prepare(X, Y, "cross_entropy")
    for _ in range(3):
        state, _ = step(state, batch)
    np.testing.assert_array_equal(backend.to_host(net.parameters["0.weight"]), before)
    net.set_state(state)
    fitted.fit(X, Y, loss="cross_entropy", optimizer=optimizer, epochs=3, batch_size=None, verbose=0)
    for name, value in net.parameters.items():
        found = backend.to_host(fitted.parameters[name])
        np.testing.assert_allclose(backend.to_host(value), found, rtol=1e-5, atol=1e-6)
