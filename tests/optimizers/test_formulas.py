"""Optimizers that PyTorch does not have, and where ours is meant to be better."""

import math

import numpy as np
import pytest

import xpnn
from xpnn.optimizers.adam import momentum_product
from xpnn.optimizers.optimizer import one_minus_power


def test_lion_is_algorithm_2_of_the_paper(make_layout, draw):
    beta1, beta2, decay, rate = 0.9, 0.99, 0.1, 0.01
    layout = make_layout()
    optimizer = xpnn.Lion(rate, beta1, beta2, weight_decay=decay, decay_biases=True)
    theta = layout.join(draw(layout, 0))
    slots = optimizer.initial_slots(theta, layout)
    expected = theta[0].copy()
    momentum = np.zeros_like(expected)
    for number in range(50):
        gradient = layout.join(draw(layout, 1 + number))
        theta, slots = optimizer.apply(theta, gradient, slots, number, layout)
        direction = beta1 * momentum + (1 - beta1) * gradient[0]
        update = np.where(direction > 0, 1.0, np.where(direction < 0, -1.0, 0.0))
        expected = expected - rate * (update + decay * expected)
        momentum = beta2 * momentum + (1 - beta2) * gradient[0]
    np.testing.assert_allclose(theta[0], expected, rtol=1e-12)
    np.testing.assert_allclose(slots["momentum"][0], momentum, rtol=1e-12)


def minimise(optimizer, layout, start, gradient_of, steps):
    theta = layout.join(start)
    slots = optimizer.initial_slots(theta, layout)
    for number in range(steps):
        theta, slots = optimizer.apply(theta, (gradient_of(theta[0]),), slots, number, layout)
    return theta[0]


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize("blocked", [False, True])
def test_barzilai_borwein_beats_the_best_fixed_step_by_far(long, blocked, make_layout, draw):
    """A quadratic with eigenvalues from 1 to 300: a fixed step shrinks the error by (299/301) each time."""
    layout = make_layout(blocked=blocked)
    start = draw(layout, 0)
    scales = {
        name: 1.0 + 299.0 * abs(np.sin(np.arange(part.size) + 1.0)).reshape(part.shape) for name, part in start.items()
    }
    curvature = layout.join(scales)

    def run(optimizer, steps):
        theta = layout.join(start)
        slots = optimizer.initial_slots(theta, layout)
        for number in range(steps):
            gradient = tuple(h * x for h, x in zip(curvature, theta, strict=True))
            theta, slots = optimizer.apply(theta, gradient, slots, number, layout)
        return max(float(np.abs(block).max()) for block in theta)

    best_fixed = 2.0 / (min(s.min() for s in scales.values()) + max(s.max() for s in scales.values()))
    ours = run(xpnn.BarzilaiBorwein(1e-3, long=long), 100)
    fixed = run(xpnn.SGD(best_fixed), 100)
    assert ours < 1e-6
    assert ours < 1e-4 * fixed


def test_barzilai_borwein_on_one_curvature_is_newton(make_layout, draw):
    """On c/2 |x|^2 the second step is Newton's: it lands on the minimum."""
    layout = make_layout()
    after_one = minimise(xpnn.BarzilaiBorwein(0.01), layout, draw(layout, 0), lambda x: 4.0 * x, 1)
    np.testing.assert_allclose(after_one, 0.96 * layout.join(draw(layout, 0))[0], rtol=1e-14)
    after_two = minimise(xpnn.BarzilaiBorwein(0.01), layout, draw(layout, 0), lambda x: 4.0 * x, 2)
    assert np.abs(after_two).max() < 1e-13


def test_barzilai_borwein_without_convexity_takes_the_learning_rate(make_layout, draw):
    """On -c/2 |x|^2, s.y is negative; on a straight line it is 0."""
    layout = make_layout()
    start = draw(layout, 0)
    vector = layout.join(start)[0]
    got = minimise(xpnn.BarzilaiBorwein(0.1), layout, start, lambda x: -2.0 * x, 3)
    np.testing.assert_allclose(got, vector * 1.2**3, rtol=1e-13)
    slope = np.where(vector == 0, 0.0, 1.0)
    got = minimise(xpnn.BarzilaiBorwein(0.1), layout, start, lambda x: slope, 3)
    np.testing.assert_allclose(got, vector - 0.3 * slope, rtol=1e-13, atol=1e-15)


def test_barzilai_borwein_stays_at_the_minimum(make_layout, draw):
    """With s = y = 0 nothing is divided by 0."""
    layout = make_layout()
    got = minimise(xpnn.BarzilaiBorwein(0.25), layout, draw(layout, 0), lambda x: 4.0 * x, 8)
    assert np.all(np.abs(got) < 1e-13)


@pytest.mark.parametrize("momentum_decay", [0.0, 1e-5, 4e-3, 0.1, 2.0])
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9, 0.99])
def test_momentum_product_of_nadam_equals_the_loop(beta1, momentum_decay):
    product = 1.0
    for count in range(1, 60):
        product *= beta1 * (1.0 - 0.5 * 0.96 ** (count * momentum_decay))
        assert momentum_product(beta1, momentum_decay, count) == pytest.approx(product, rel=1e-12, abs=1e-300)


def test_bias_corrections_lose_no_digits():
    for beta in (0.5, 0.9, 0.999, 1.0 - 1e-9):
        for count in (1, 2, 10, 1000):
            exact = -math.expm1(count * math.log1p(beta - 1.0))
            assert one_minus_power(beta, count) == pytest.approx(exact, rel=1e-14)
    assert one_minus_power(0.0, 3) == 1.0


def test_centered_rmsprop_survives_a_constant_gradient(make_layout):
    """The running mean of squares minus the square of the mean would be rounded below 0 here."""
    layout = make_layout("float32")
    ones = {entry.name: np.full(entry.parameter.shape, 0.1, "float32") for entry in layout.trained}
    optimizer = xpnn.RMSprop(1e-3, alpha=0.5, centered=True)
    theta = layout.join(ones)
    slots = optimizer.initial_slots(theta, layout)
    for number in range(200):
        theta, slots = optimizer.apply(theta, layout.join(ones), slots, number, layout)
    assert np.all(np.isfinite(theta[0]))
    assert np.all(slots["variance"][0] >= 0.0)
