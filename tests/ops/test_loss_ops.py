"""The loss ops at their edges, on every row: extremes, kinks, nothing to add up, wrong arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpnn import ops
from xpnn.dispatch import without_overrides
from xpnn.errors import ConfigError, ShapeError

ELEMENTWISE = ("mse", "mae", "huber", "binary_cross_entropy", "binary_cross_entropy_from_probabilities", "hinge")
BY_ROW = ("kl_divergence", "cosine_distance")
WITH_LABELS = ("cross_entropy", "cross_entropy_from_probabilities", "nll", "categorical_hinge")
ALL = ELEMENTWISE + BY_ROW + WITH_LABELS
WITH_IGNORED_LABELS = ("cross_entropy", "cross_entropy_from_probabilities", "nll")


def on_device(backend, array, dtype):
    if array is None:
        return None
    array = np.asarray(array)
    return backend.asarray(array, "int64" if array.dtype.kind in "iu" else dtype)


def call(backend, dtype, name, *arrays, **options):
    """(loss as a float, gradients on the host); arrays of integers are labels."""
    arguments = [on_device(backend, array, dtype) for array in arrays]
    with backend.context(), backend.discipline():
        value, vjp = ops.OPS[name](*arguments, **options)
        gradients = vjp(1.0)
    assert value.shape == ()
    assert value.dtype == backend.dtype(dtype)
    assert gradients[0].dtype == backend.dtype(dtype)
    return float(backend.to_host(value)), [None if g is None else backend.to_host(g) for g in gradients]


def tolerance(dtype):
    return 4e-7 if dtype == "float32" else 1e-14


# --- extremes ---------------------------------------------------------------------------------------------------------


def test_cross_entropy_of_huge_logits(backend, dtype):
    logits = np.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]])
    value, (slope, *_) = call(backend, dtype, "cross_entropy", logits, np.array([0, 1, 2, 0]), reduction="sum")
    assert value == pytest.approx(2e4 + math.log(3.0) + math.log(2.0), rel=tolerance(dtype))
    third = 1.0 / 3.0
    expected = [[0, 0, 0], [1, -1, 0], [third, third, third - 1.0], [-0.5, 0.5, 0]]
    np.testing.assert_allclose(slope, expected, atol=tolerance(dtype))


def test_cross_entropy_keeps_a_small_loss(backend, dtype):
    """With a clear winner the loss is about exp(-20), which 1 - p would round away in float32."""
    value, _ = call(backend, dtype, "cross_entropy", np.array([[20.0, 0.0]]), np.array([1]))
    assert value == pytest.approx(20.0 + math.log1p(math.exp(-20.0)), rel=tolerance(dtype))


def test_cross_entropy_takes_impossible_classes(backend, dtype):
    """A logit of -infinity is a class of probability 0: nothing but its own label feels it."""
    logits = np.array([[0.0, 0.0, -np.inf]])
    for labels in (np.array([0]), np.array([[1.0, 0.0, 0.0]])):
        value, (slope, *_) = call(backend, dtype, "cross_entropy", logits, labels)
        assert value == pytest.approx(math.log(2.0), rel=tolerance(dtype))
        np.testing.assert_allclose(slope, [[-0.5, 0.5, 0.0]], atol=tolerance(dtype))


def test_binary_cross_entropy_of_huge_logits(backend, dtype):
    logits = np.array([[1e4, 1e4, -1e4, -1e4, 0.0, -80.0]])
    labels = np.array([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]])
    value, (slope, *_) = call(backend, dtype, "binary_cross_entropy", logits, labels, reduction="sum")
    assert value == pytest.approx(2e4 + math.log(2.0), rel=tolerance(dtype))
    np.testing.assert_allclose(slope[0, :5], [0, 1, -1, 0, -0.5], atol=tolerance(dtype))
    assert slope[0, 5] == pytest.approx(math.exp(-80.0), rel=1e-4)


@pytest.mark.parametrize("name", ["huber", "mae", "hinge", "categorical_hinge"])
def test_linear_losses_of_huge_numbers(backend, dtype, name):
    huge = np.array([[1e30, -1e30]])
    target = np.array([0]) if name == "categorical_hinge" else np.array([[-1.0, 1.0]])
    value, (slope, *_) = call(backend, dtype, name, huge, target, reduction="sum")
    expected = 0.0 if name == "categorical_hinge" else 2e30
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(slope, [[0.0, 0.0]] if expected == 0.0 else [[1.0, -1.0]])


def test_cosine_of_huge_tiny_and_zero_vectors(backend, dtype):
    x = np.array([[3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
    y = np.array([[4e30, 3e30], [4.0, 3.0], [1.0, 0.0]])
    for row, expected in ((0, 1.0 - 0.96), (1, 1.0), (2, 1.0)):
        value, (dx, dy, _) = call(backend, dtype, "cosine_distance", x[row : row + 1], y[row : row + 1])
        assert value == pytest.approx(expected, abs=tolerance(dtype))
        assert np.all(np.isfinite(dx))
        assert np.all(np.isfinite(dy))
    # the shorter vector counts as one of length eps: the gradient is the target's direction over eps
    np.testing.assert_allclose(dx, [[-1e8, 0.0]], rtol=tolerance(dtype))


@pytest.mark.parametrize("probability", [0.0, 1e-45, 1e-30, 0.5, 1.0])
def test_cross_entropy_from_any_probability_is_finite(backend, dtype, probability):
    rows = np.array([[probability, 1.0 - probability]])
    value, (slope, *_) = call(backend, dtype, "cross_entropy_from_probabilities", rows, np.array([0]))
    floor = float(np.finfo(dtype).smallest_normal) * 64.0
    exact = -math.log(probability) if probability >= floor else -math.log(floor) + 1.0
    assert value == pytest.approx(exact, abs=1e-5 if dtype == "float32" else 1e-12)
    assert slope[0, 0] == pytest.approx(-1.0 / max(probability, floor), rel=1e-5)
    assert slope[0, 1] == 0.0


@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("probability", [0.0, 1e-30, 0.25, 1.0])
def test_binary_cross_entropy_from_any_probability_is_finite(backend, dtype, probability, label):
    value, (slope, *_) = call(
        backend, dtype, "binary_cross_entropy_from_probabilities", np.array([[probability]]), np.array([[label]])
    )
    assert math.isfinite(value)
    assert np.isfinite(slope[0, 0])
    if (probability, label) in ((0.0, 1.0), (1.0, 0.0)):
        assert value > 15.0
        assert (slope[0, 0] < 0.0) == (label == 1.0)  # it still points to the label
    if probability == 0.25:
        exact = -label * math.log(0.25) - (1.0 - label) * math.log(0.75)
        assert value == pytest.approx(exact, rel=tolerance(dtype))


@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_slope_at_the_floor_leaves_room_for_a_class_weight(backend, dtype, scale):
    rows, labels = np.array([[0.0, 1.0]]), np.array([0])
    _, (slope, *_) = call(
        backend, dtype, "cross_entropy_from_probabilities", rows, labels, class_weights=(scale, 1.0), reduction="sum"
    )
    assert np.isfinite(slope[0, 0])


def test_kl_divergence_of_zero_targets(backend, dtype):
    log_probabilities = np.log([[0.5, 0.5]])
    value, (dprediction, dtarget, _) = call(backend, dtype, "kl_divergence", log_probabilities, np.array([[1.0, 0.0]]))
    assert value == pytest.approx(math.log(2.0), rel=tolerance(dtype))
    np.testing.assert_allclose(dprediction, [[-1.0, 0.0]], rtol=tolerance(dtype))
    np.testing.assert_allclose(dtarget, [[1.0 + math.log(2.0), 0.0]], rtol=tolerance(dtype))


# --- kinks and ties ---------------------------------------------------------------------------------------------------


def test_slopes_at_kinks(backend, dtype):
    zeros = np.zeros((1, 2))
    assert call(backend, dtype, "mae", zeros, zeros)[1][0].tolist() == [[0.0, 0.0]]
    at_delta = call(backend, dtype, "huber", np.array([[2.0, -2.0]]), zeros, delta=2.0, reduction="sum")
    assert at_delta[0] == 4.0
    assert at_delta[1][0].tolist() == [[2.0, -2.0]]
    assert call(backend, dtype, "hinge", np.array([[1.0, -1.0]]), np.array([[1.0, -1.0]]))[1][0].tolist() == [[0, 0]]


def test_categorical_hinge_takes_the_first_of_equal_rivals(backend, dtype):
    scores = np.array([[0.5, 1.0, 1.0, 1.0], [2.0, 1.0, 0.0, 0.0]])
    value, (slope, *_) = call(backend, dtype, "categorical_hinge", scores, np.array([2, 0]), reduction="sum")
    assert value == 1.0
    assert slope.tolist() == [[0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


# --- nothing to add up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "weighted"), [("mean", False), ("mean", True), ("half_sum", False)])
@pytest.mark.parametrize("name", ALL)
def test_empty_batch(backend, dtype, name, reduction, weighted):
    target = np.zeros((0,), np.int64) if name in WITH_LABELS else np.zeros((0, 3))
    weight = np.zeros((0,)) if weighted else None
    value, (slope, *_) = call(backend, dtype, name, np.zeros((0, 3)), target, weight, reduction=reduction)
    assert value == 0.0
    assert slope.shape == (0, 3)


@pytest.mark.parametrize("options", [{}, {"class_weights": (1.0, 2.0, 3.0)}, {"reduction": "sum"}])
@pytest.mark.parametrize("name", WITH_IGNORED_LABELS)
def test_all_labels_ignored(backend, dtype, name, options):
    rows = np.full((2, 3), 1.0 / 3.0)
    for weight in (None, np.array([1.0, 2.0])):
        value, (slope, *_) = call(backend, dtype, name, rows, np.array([-1, -1]), weight, ignore_index=-1, **options)
        assert value == 0.0
        np.testing.assert_array_equal(slope, np.zeros((2, 3)))


@pytest.mark.parametrize("name", ALL)
def test_weights_of_zero(backend, dtype, name):
    """Samples of weight 0 might as well not be there; with no other sample the loss is 0."""
    rng = np.random.default_rng(3)
    prediction = rng.uniform(0.1, 0.9, (4, 3))
    target = rng.integers(0, 3, 4) if name in WITH_LABELS else rng.uniform(0.1, 0.9, (4, 3))
    weight = np.array([2.0, 0.0, 1.0, 0.0])
    value, (slope, *_) = call(backend, dtype, name, prediction, target, weight)
    kept, (kept_slope, *_) = call(backend, dtype, name, prediction[::2], target[::2], weight[::2])
    assert value == pytest.approx(kept, rel=tolerance(dtype))
    np.testing.assert_allclose(slope[::2], kept_slope, rtol=1e-5, atol=tolerance(dtype))
    np.testing.assert_array_equal(slope[1::2], np.zeros((2, 3)))
    nothing, (no_slope, *_) = call(backend, dtype, name, prediction, target, np.zeros(4))
    assert nothing == 0.0
    np.testing.assert_array_equal(no_slope, np.zeros((4, 3)))


# --- the same loss said in two ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_labels_are_integer_labels(backend, dtype, smoothing):
    rng = np.random.default_rng(5)
    logits, labels, weight = rng.normal(size=(4, 2, 3)), rng.integers(0, 3, (4, 2)), rng.uniform(0.5, 2.0, 4)
    value, (slope, *_) = call(backend, dtype, "cross_entropy", logits, labels, weight, label_smoothing=smoothing)
    rows, (rows_slope, *_) = call(
        backend, dtype, "cross_entropy", logits, np.eye(3)[labels], weight, label_smoothing=smoothing
    )
    assert value == pytest.approx(rows, rel=tolerance(dtype))
    np.testing.assert_allclose(slope, rows_slope, atol=tolerance(dtype))


def test_a_label_in_range_can_be_ignored(backend, dtype):
    rng = np.random.default_rng(6)
    logits, labels = rng.normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 2])
    value, (slope, *_) = call(backend, dtype, "cross_entropy", logits, labels, ignore_index=0, label_smoothing=0.2)
    kept = labels != 0
    want, (want_slope, *_) = call(backend, dtype, "cross_entropy", logits[kept], labels[kept], label_smoothing=0.2)
    assert value == pytest.approx(want, rel=tolerance(dtype))
    np.testing.assert_allclose(slope[kept], want_slope, atol=tolerance(dtype))
    np.testing.assert_array_equal(slope[~kept], np.zeros((2, 3)))


def test_generic_body_is_the_fused_one(backend, dtype):
    """A backend's own body of the plain case gives what the generic body gives."""
    rng = np.random.default_rng(8)
    logits, labels = rng.normal(size=(5, 4)) * 30.0, rng.integers(0, 4, 5)
    value, (slope, *_) = call(backend, dtype, "cross_entropy", logits, labels)
    with without_overrides():
        generic, (generic_slope, *_) = call(backend, dtype, "cross_entropy", logits, labels)
    assert value == pytest.approx(generic, rel=tolerance(dtype))
    np.testing.assert_allclose(slope, generic_slope, atol=tolerance(dtype))


# --- wrong arguments --------------------------------------------------------------------------------------------------


def test_wrong_arguments():
    scores = np.zeros((4, 3))
    with pytest.raises(ShapeError, match=r"labels of shape \(5,\) do not fit scores of shape \(4, 3\)"):
        ops.cross_entropy(scores, np.zeros(5, np.int64))
    with pytest.raises(ConfigError, match="2 numbers and there are 3 classes"):
        ops.nll(scores, np.zeros(4, np.int64), class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="reduction='median' is unknown; known: mean, sum"):
        ops.mae(scores, scores, reduction="median")


@pytest.mark.parametrize("name", ELEMENTWISE + BY_ROW)
def test_a_column_against_a_row_is_refused(name):
    with pytest.raises(ShapeError, match=r"\(4, 1\).*\(4,\)"):
        ops.OPS[name](np.full((4, 1), 0.5), np.full(4, 0.5))


def test_categorical_hinge_refuses_a_column_of_labels():
    with pytest.raises(ShapeError, match=r"\(2, 1\).*\(2, 3\)"):
        ops.categorical_hinge(np.zeros((2, 3)), np.zeros((2, 1), np.int64))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("weight", [np.ones(1), np.ones(3), np.ones((4, 1))], ids=["one", "too-few", "column"])
def test_weights_of_another_shape_are_refused(name, weight):
    labels = np.zeros(4, np.int64) if name in WITH_LABELS else np.full((4, 2), 0.5)
    with pytest.raises(ShapeError, match="weight has shape"):
        ops.OPS[name](np.full((4, 2), 0.5), labels, weight)


@pytest.mark.parametrize("name", WITH_IGNORED_LABELS)
def test_one_hot_rows_and_weights_of_integers_leave_float32_as_it_is(name):
    scores = np.full((2, 3), 0.25, np.float32)
    want, want_vjp = ops.OPS[name](scores, np.array([2, 0]), np.array([1.0, 3.0], np.float32))
    value, vjp = ops.OPS[name](scores, np.array([[0, 0, 1], [1, 0, 0]]), np.array([1, 3]))
    assert value.dtype == vjp(1.0)[0].dtype == np.float32
    assert float(value) == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_allclose(vjp(1.0)[0], want_vjp(1.0)[0], rtol=1e-6)
