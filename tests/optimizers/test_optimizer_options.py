"""Weight decay, clipping, averaged weights and schedules, against their definitions."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError
from xpnn.optimizers import OPTIMIZERS

RATE = 0.5


def one_step(optimizer, layout, theta, gradient, step=0):
    """The change of each parameter in one step."""
    start, slots = layout.join(theta), optimizer.initial_slots(layout.join(theta), layout)
    new, slots = optimizer.apply((start[0] + 0.0,), layout.join(gradient), slots, step, layout)
    return layout.split(new), slots


@pytest.fixture
def problem(make_layout, draw):
    layout = make_layout()
    return layout, draw(layout, 0), draw(layout, 1)


def test_coupled_decay_leaves_biases_out(problem):
    layout, theta, gradient = problem
    new, _ = one_step(xpnn.SGD(RATE, weight_decay=0.1), layout, theta, gradient)
    for name, value in theta.items():
        decay = 0.1 if name.endswith("weight") else 0.0
        np.testing.assert_allclose(new[name], value - RATE * (gradient[name] + decay * value), rtol=1e-14)


def test_coupled_decay_of_everything(problem):
    layout, theta, gradient = problem
    new, _ = one_step(xpnn.SGD(RATE, weight_decay=0.1, decay_biases=True), layout, theta, gradient)
    for name, value in theta.items():
        np.testing.assert_allclose(new[name], value - RATE * (gradient[name] + 0.1 * value), rtol=1e-14)


@pytest.mark.parametrize("decay_biases", [False, True])
@pytest.mark.parametrize("kind", [xpnn.AdamW, xpnn.Lion])
def test_decoupled_decay_shrinks_theta_beside_the_step(kind, decay_biases, problem):
    layout, theta, gradient = problem
    plain, _ = one_step(kind(RATE, weight_decay=0.0), layout, theta, gradient)
    decayed, _ = one_step(kind(RATE, weight_decay=0.1, decay_biases=decay_biases), layout, theta, gradient)
    for name, value in theta.items():
        decay = 0.1 if decay_biases or name.endswith("weight") else 0.0
        np.testing.assert_allclose(decayed[name], plain[name] - RATE * decay * value, rtol=1e-13, atol=1e-15)


def test_clip_value(problem):
    layout, theta, gradient = problem
    new, _ = one_step(xpnn.SGD(RATE, clip_value=0.25), layout, theta, gradient)
    for name, value in theta.items():
        np.testing.assert_allclose(new[name], value - RATE * np.clip(gradient[name], -0.25, 0.25), rtol=1e-14)


def test_clip_norm_acts_on_each_parameter(problem):
    layout, theta, gradient = problem
    gradient["1.bias"] = np.array([1e-3, 2e-3])
    new, _ = one_step(xpnn.SGD(RATE, clip_norm=0.25), layout, theta, gradient)
    for name, value in theta.items():
        norm = np.linalg.norm((value - new[name]) / RATE)
        assert norm == pytest.approx(min(0.25, np.linalg.norm(gradient[name])), rel=1e-5)


def test_clip_global_norm_keeps_the_direction(problem):
    layout, theta, gradient = problem
    new, _ = one_step(xpnn.SGD(RATE, clip_global_norm=0.25), layout, theta, gradient)
    steps = np.concatenate([np.ravel(theta[name] - new[name]) / RATE for name in theta])
    whole = np.concatenate([np.ravel(gradient[name]) for name in theta])
    assert np.linalg.norm(steps) == pytest.approx(0.25, rel=1e-5)
    np.testing.assert_allclose(steps / 0.25, whole / np.linalg.norm(whole), rtol=1e-5)


def test_a_short_gradient_is_not_touched(problem):
    layout, theta, gradient = problem
    limits = {"clip_value": 1e3, "clip_norm": 1e3, "clip_global_norm": 1e3}
    plain, _ = one_step(xpnn.SGD(RATE), layout, theta, gradient)
    clipped, _ = one_step(xpnn.SGD(RATE, **limits), layout, theta, gradient)
    assert all(np.array_equal(plain[name], clipped[name]) for name in theta)


def test_average_of_the_weights(problem, draw):
    layout, theta, _ = problem
    optimizer = xpnn.Adam(0.1, ema=0.8)
    vector = layout.join(theta)
    slots = optimizer.initial_slots(vector, layout)
    expected = vector[0].copy()
    for number in range(10):
        vector, slots = optimizer.apply(vector, layout.join(draw(layout, number)), slots, number, layout)
        expected = 0.8 * expected + 0.2 * vector[0]
    np.testing.assert_allclose(optimizer.averaged(slots)[0], expected, rtol=1e-13)
    assert np.abs(expected - vector[0]).max() > 0.01


def test_no_average_where_none_was_asked_for(problem):
    layout, theta, _ = problem
    optimizer = xpnn.Adam()
    with pytest.raises(ConfigError, match=r"Adam\(\) keeps no average"):
        optimizer.averaged(optimizer.initial_slots(layout.join(theta), layout))


def test_a_schedule_and_a_function_give_the_rate(problem):
    layout, theta, gradient = problem
    for rate in (xpnn.MultiStep(0.4, [3], 0.5), lambda step: 0.2 if step == 3 else 0.4):
        for step, expected in ((2, 0.4), (3, 0.2)):
            new, _ = one_step(xpnn.SGD(rate), layout, theta, gradient, step)
            for name, value in theta.items():
                np.testing.assert_allclose(new[name], value - expected * gradient[name], rtol=1e-14)


@pytest.mark.parametrize(
    "rate",
    [lambda step: np.float64(0.1), lambda step: np.asarray(0.1), lambda step: 0.1 * np.exp(-step / np.float64(10))],
    ids=["scalar", "array", "computed"],
)
@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_rate_in_float64_does_not_spread_to_float32_parameters(kind, rate, make_layout, draw):
    layout = make_layout("float32")
    optimizer = kind(rate)
    theta = tuple(block.astype(np.float32) for block in layout.join(draw(layout, 0)))
    gradient = tuple(block.astype(np.float32) for block in layout.join(draw(layout, 1)))
    slots = optimizer.initial_slots(theta, layout)
    for step in range(3):
        theta, slots = optimizer.apply(theta, gradient, slots, step, layout)
        arrays = [*theta, *(block for vector in slots.values() for block in vector)]
        assert {block.dtype for block in arrays} == {np.dtype("float32")}
