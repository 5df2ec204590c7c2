"""The dropout layer: active in training only, a new mask for each use, the same one on every backend."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError
from xpnn.layers import Run
from xpnn.testing import check_layer


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_right_on_every_row(backend, dtype, training):
    check_layer(xpnn.Dropout(0.4), (6, 5), backend, dtype, training=training)


def test_outside_of_training_and_at_rate_zero_it_is_the_identity():
    x = np.arange(6.0).reshape(2, 3)
    for layer, run in ((xpnn.Dropout(0.9), Run()), (xpnn.Dropout(0.0), Run(training=True))):
        y, backward = layer.forward(x, {}, run)
        assert y is x
        assert backward(x) == (x, {})


@pytest.mark.parametrize("rate", [1.0, -0.1, 1.5, "0.5", None, float("nan"), True])
def test_a_rate_outside_of_zero_to_one_is_refused(rate):
    with pytest.raises(ConfigError, match=r"rate=.* makes no sense; give a probability in \[0, 1\)"):
        xpnn.Dropout(rate)


def masks(root, backend, dtype, seed=0, step=0):
    """The masks of the dropout layers that follow each other in `root`, from one forward pass over ones."""
    x = backend.asarray(np.ones((40, 30)), dtype)
    run = Run(True, seed, step, input_gradient=False)
    _, tree = root.build((30,))
    y, _ = root.forward(x, tree, run)
    return backend.to_host(y)


def test_two_dropout_layers_and_one_used_twice_draw_different_masks(backend, dtype):
    shared = xpnn.Dropout(0.5)
    one = masks(xpnn.Sequential(xpnn.Dropout(0.5)), backend, dtype)
    two = masks(xpnn.Sequential(xpnn.Dropout(0.5), xpnn.Dropout(0.5)), backend, dtype)
    twice = masks(xpnn.Sequential(shared, shared), backend, dtype)
    beside = masks(xpnn.Sequential(xpnn.Parallel(shared, shared, combine="concatenate")), backend, dtype)
    # Were the two masks one, half of the numbers would remain; with two, a quarter does.
    assert abs((one > 0).mean() - 0.5) < 5 * np.sqrt(0.25 / 1200)
    assert abs((two > 0).mean() - 0.25) < 5 * np.sqrt(0.1875 / 1200)
    np.testing.assert_array_equal(two, twice)
    np.testing.assert_array_equal(beside[:, :30], one)
    assert (beside[:, :30] != beside[:, 30:]).any()


def test_the_mask_is_a_function_of_seed_and_step_alone(backend, dtype):
    root = xpnn.Sequential(xpnn.Residual(xpnn.Dropout(0.5)))
    host = xpnn.get_backend("numpy")
    first = masks(root, backend, dtype, seed=4, step=2)
    np.testing.assert_array_equal(first, masks(root, host, dtype, seed=4, step=2))
    assert (first != masks(root, backend, dtype, seed=5, step=2)).any()
    assert (first != masks(root, backend, dtype, seed=4, step=3)).any()


def test_the_mean_over_many_masks_is_the_input():
    root = xpnn.Sequential(xpnn.Dropout(0.25))
    host = xpnn.get_backend("numpy")
    mean = np.mean([masks(root, host, "float64", step=step).mean() for step in range(50)])
    assert abs(mean - 1.0) < 5 * np.sqrt(0.25 / 0.75 / (1200 * 50))


def test_backward_uses_the_mask_of_the_forward_pass():
    x = np.ones((20, 20))
    y, backward = xpnn.Dropout(0.5).forward(x, {}, Run(training=True))
    dx, gradients = backward(np.ones_like(y))
    np.testing.assert_array_equal(dx, y)
    assert gradients == {}
