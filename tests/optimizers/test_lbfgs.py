"""L-BFGS: it finds minima to many digits, and is what it is said to be where a pair of vectors does not count."""

import numpy as np
import pytest

import xpnn
from xpnn.data import load_dataset


def run(optimizer, layout, start, gradient_of, steps):
    """theta after some steps along gradient_of(theta), and the slots."""
    theta = layout.join(start)
    slots = optimizer.initial_slots(theta, layout)
    for number in range(steps):
        theta, slots = optimizer.apply(theta, gradient_of(theta), slots, number, layout)
    return theta, slots


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_quadratic_is_minimised_to_the_last_digits(blocked, dtype, make_layout, draw):
    """Curvatures from 1 to 50: a fixed step would shrink the error by 49/51 each time."""
    layout = make_layout(dtype, blocked)
    start = {name: part.astype(dtype) for name, part in draw(layout, 0).items()}
    scales = {
        name: (1.0 + 49.0 * abs(np.sin(np.arange(part.size) + 1.0)).reshape(part.shape)).astype(dtype)
        for name, part in start.items()
    }
    curvature = layout.join(scales)

    def gradient_of(theta):
        return tuple(h * x for h, x in zip(curvature, theta, strict=True))

    theta, _ = run(xpnn.LBFGS(), layout, start, gradient_of, 60)
    assert max(float(np.abs(block).max()) for block in theta) < (1e-8 if dtype == "float64" else 1e-5)


def test_linear_regression_in_forty_steps():
    """The solution is that of least squares, to nine digits."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6)) * [1.0, 2.0, 0.5, 3.0, 1.0, 0.3]
    y = x @ rng.normal(size=(6, 2)) + 0.1 * rng.normal(size=(100, 2)) + [1.0, -2.0]
    net = xpnn.Network(xpnn.Dense(2), dtype="float64", seed=0)
    net.fit(x, y, loss="mse", optimizer=xpnn.LBFGS(least_curvature=1e-20), epochs=40, batch_size=None, verbose=0)
    best, *_ = np.linalg.lstsq(np.hstack([x, np.ones((100, 1))]), y, rcond=None)
    np.testing.assert_allclose(net.parameters["0.weight"], best[:-1], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(net.parameters["0.bias"], best[-1], rtol=1e-9, atol=1e-10)


def test_softmax_regression_on_iris_reaches_the_minimum():
    """With weight decay the loss is strictly convex: at the minimum the gradient is zero."""
    iris = load_dataset("iris")
    x = (iris.x - iris.x.mean(axis=0)) / iris.x.std(axis=0)
    _, y = np.unique(iris.y, return_inverse=True)
    decay = 1e-3
    net = xpnn.Network(xpnn.Dense(3), dtype="float64", seed=0)
    optimizer = xpnn.LBFGS(weight_decay=decay, decay_biases=True)
    net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=60, batch_size=None, verbose=0)
    _, gradients = net.loss_and_gradients(x, y, loss="cross_entropy")
    for name, value in net.parameters.items():
        assert np.abs(gradients[name] + decay * value).max() < 1e-7
    assert np.mean(net.predict(x).argmax(axis=-1) == y) > 0.97


def test_the_first_step_is_no_longer_than_the_rate(make_layout, draw):
    """It goes along the gradient; if the gradient's absolute values add up to more than 1, they are made to."""
    layout = make_layout()
    start, gradient = draw(layout, 0), draw(layout, 1)
    for scale in (1.0, 1e-3):
        small = {name: scale * part for name, part in gradient.items()}
        theta, _ = run(xpnn.LBFGS(0.5), layout, start, lambda _, small=small: layout.join(small), 1)
        total = sum(np.abs(part).sum() for part in small.values())
        for name, part in layout.split(theta).items():
            np.testing.assert_allclose(part, start[name] - 0.5 * min(1.0, 1.0 / total) * small[name], rtol=1e-14)


def test_pairs_without_curvature_are_not_remembered(make_layout, draw):
    """On a function that bends down, s.y < 0: only steps along the gradient are left, of the full rate."""
    layout = make_layout()
    start = draw(layout, 0, scale=1e-3)
    vector = layout.join(start)[0]
    theta, slots = run(xpnn.LBFGS(0.1, 3), layout, start, lambda theta: (-2.0 * theta[0],), 4)
    np.testing.assert_allclose(theta[0], vector * 1.2**4, rtol=1e-13)
    assert all(np.all(slots[name][0] == 0) for name in slots if name.startswith(("step", "change")))


def test_the_newest_pairs_are_remembered_newest_first(make_layout, draw):
    layout = make_layout()
    curvature = layout.join({name: 1.0 + part**2 for name, part in draw(layout, 1).items()})[0]
    optimizer = xpnn.LBFGS(0.5, history_size=2)
    theta = layout.join(draw(layout, 0))
    slots = optimizer.initial_slots(theta, layout)
    seen = []
    for number in range(5):
        gradient = (curvature * theta[0],)
        before = theta[0].copy()
        theta, slots = optimizer.apply(theta, gradient, slots, number, layout)
        np.testing.assert_allclose(slots["last_step"][0], theta[0] - before, rtol=1e-9, atol=1e-14)
        np.testing.assert_array_equal(slots["last_gradient"][0], gradient[0])
        seen.append(slots["last_step"][0].copy())
    for age in range(2):
        step = seen[-2 - age]
        np.testing.assert_array_equal(slots[f"step_{age}"][0], step)
        np.testing.assert_allclose(slots[f"change_{age}"][0], curvature * step, rtol=1e-9, atol=1e-13)


def test_after_freezing_the_pairs_still_count_for_the_rest():
    """What is left of the pairs is a memory of the smaller problem: the training goes on to its minimum."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 1))
    net = xpnn.Network(xpnn.Dense(1), dtype="float64", seed=0)
    options = {"loss": "mse", "batch_size": None, "verbose": 0}
    net.fit(x, y, optimizer="lbfgs", epochs=4, **options)
    net.freeze("0.bias")
    net.fit(x, y, epochs=25, resume=True, **options)
    bias = np.array(net.parameters["0.bias"])
    best, *_ = np.linalg.lstsq(x, y - bias, rcond=None)
    np.testing.assert_allclose(net.parameters["0.weight"], best, rtol=1e-7, atol=1e-9)
