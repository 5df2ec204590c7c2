"""Targets at the entry of fit and evaluate: what is taken, what is mended, what is an error."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import xpnn
from xpnn.backend import get_backend
from xpnn.errors import ConfigError, DataError
from xpnn.losses import LOSSES

ELEMENTWISE = ("mse", "mae", "huber", "cosine")
WITH_LABELS = ("cross_entropy", "cross_entropy_from_probabilities", "nll", "categorical_hinge", "focal")


def prepare(loss, targets, output_shape, backend=None, dtype="float32"):
    """Through `enter`'s conventions: floats in the network's dtype, integers as int64."""
    backend = backend or get_backend("numpy")
    targets = np.asarray(targets)
    array = backend.asarray(targets, dtype if targets.dtype.kind == "f" else "int64")
    result = loss.prepare(array, output_shape, backend, dtype)
    return result, backend.to_host(result)


# --- taken and mended -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_columns_and_vectors_are_the_same(backend, dtype, name):
    for shape, output_shape in (((4,), (1,)), ((4, 1), ()), ((4, 1), (1,)), ((4, 1, 3), (3,)), ((4, 3), (3, 1))):
        result, host = prepare(LOSSES[name](), np.ones(shape, np.int64), output_shape, backend, dtype)
        assert host.shape == (4, *output_shape)
        assert result.dtype == backend.dtype(dtype)


@pytest.mark.parametrize("name", WITH_LABELS)
@pytest.mark.parametrize("labels", [[0, 2, 1], [[0], [2], [1]], [0.0, 2.0, 1.0]], ids=["vector", "column", "floats"])
def test_class_labels(backend, dtype, name, labels):
    result, host = prepare(LOSSES[name](), labels, (3,), backend, dtype)
    assert result.dtype == backend.dtype("int64")
    assert host.tolist() == [0, 2, 1]


def test_class_labels_of_small_integers_and_bools():
    """What a user puts on the device comes in any dtype: image data sets have uint8 labels."""
    backend = get_backend("numpy")
    loss = xpnn.CrossEntropy()
    for labels in (np.array([0, 1], np.uint8), np.array([0, 1], np.int32), np.array([False, True])):
        result = loss.prepare(labels, (2,), backend, "float32")
        assert result.dtype == np.int64
        assert result.tolist() == [0, 1]


def test_labels_at_positions(backend, dtype):
    _, host = prepare(xpnn.CrossEntropy(), np.ones((4, 5), np.int64), (5, 3), backend, dtype)
    assert host.shape == (4, 5)
    _, host = prepare(xpnn.CrossEntropy(), np.full((4, 5, 3), 1 / 3), (5, 3), backend, dtype)
    assert host.shape == (4, 5, 3)
    # as many positions as classes: the number of axes tells labels from rows
    assert prepare(xpnn.CrossEntropy(), np.ones((4, 3), np.int64), (3, 3))[1].shape == (4, 3)


def test_one_hot_and_soft_rows(backend, dtype):
    result, host = prepare(xpnn.CrossEntropy(), np.eye(3, dtype=np.int64), (3,), backend, dtype)
    assert result.dtype == backend.dtype(dtype)
    np.testing.assert_array_equal(host, np.eye(3))
    _, host = prepare(xpnn.CrossEntropy(), [[0.3334, 0.3333, 0.3333]], (3,), backend, dtype)
    assert host.shape == (1, 3)
    _, host = prepare(xpnn.CategoricalHinge(), np.eye(3)[[2, 0]], (3,), backend, dtype)
    assert host.tolist() == [2, 0]


def test_ignored_labels(backend, dtype):
    _, host = prepare(xpnn.CrossEntropy(ignore_index=-100), [0, -100, 2], (3,), backend, dtype)
    assert host.tolist() == [0, -100, 2]


def test_hinge_labels(backend, dtype):
    for labels in ([0, 1, 1, 0], [-1, 1, 1, -1], [-1.0, 1.0, 1.0, -1.0]):
        result, host = prepare(xpnn.Hinge(), labels, (1,), backend, dtype)
        assert result.dtype == backend.dtype(dtype)
        assert host.tolist() == [[-1.0], [1.0], [1.0], [-1.0]]


def test_probability_targets(backend, dtype):
    prepare(xpnn.BinaryCrossEntropy(), [0, 1, 1], (1,), backend, dtype)
    prepare(xpnn.BinaryCrossEntropyFromProbabilities(), [0.0, 0.5, 1.0], (1,), backend, dtype)
    rows = np.array([[0.25, 0.75], [1.0, 0.0]])
    prepare(xpnn.KLDivergence(), rows, (2,), backend, dtype)
    prepare(xpnn.KLDivergence(log_target=True), np.log(rows[:1]), (2,), backend, dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_no_samples(backend, dtype, name):
    output_shape = (5, 3) if name == "ctc" else (3,)
    shape = (0,) if name in (*WITH_LABELS, "triplet") else (0, 3)
    _, host = prepare(LOSSES[name](), np.zeros(shape), output_shape, backend, dtype)
    assert host.shape == shape


@pytest.mark.parametrize("name", LOSSES)
def test_targets_are_not_modified(name):
    targets = np.eye(3)[:2] if name != "kl_divergence" else np.full((2, 3), 1.0 / 3.0)
    if name == "ctc":
        targets = np.asarray([[1.0, 2.0, 1.0], [2.0, -1.0, -1.0]])
    elif name == "triplet":
        targets = np.asarray([3.0, 1.0, 3.0])
    targets.flags.writeable = False
    before = targets.copy()
    LOSSES[name]().prepare(targets, (5, 3) if name == "ctc" else (3,), get_backend("numpy"), "float64")
    np.testing.assert_array_equal(targets, before)


# --- errors -----------------------------------------------------------------------------------------------------------

ERRORS = {
    "shape": (
        xpnn.MSE(),
        np.zeros((4, 2)),
        (3,),
        r"y has shape \(4, 2\), the network gives \(4, 3\); give y that shape",
    ),
    "labels-for-mse": (xpnn.MSE(), np.array([0, 1, 2]), (3,), 'if y holds class labels, use loss="cross_entropy"'),
    "label-too-large": (
        xpnn.CrossEntropy(),
        np.array([1, 2, 3]),
        (3,),
        "y holds the label 3, and the network has 3 outputs: labels run from 0 to 2; number the classes from 0",
    ),
    "label-negative": (xpnn.CrossEntropy(), np.array([0, -1]), (3,), "y holds the label -1"),
    "label-not-ignored": (
        xpnn.NLL(ignore_index=-100),
        np.array([0, -1, -100]),
        (3,),
        "y holds the label -1, .*from 0 to 2, or ignore_index=-100",
    ),
    "label-not-whole": (xpnn.CrossEntropy(), np.array([0.5, 1.0]), (3,), "y holds numbers that are not whole"),
    "label-shape": (
        xpnn.CrossEntropy(),
        np.zeros((4, 2), np.int64),
        (3,),
        r"y has shape \(4, 2\), the network gives \(4, 3\); y must hold integer labels of shape \(4,\), or one number",
    ),
    "soft-sum": (xpnn.CrossEntropy(), np.array([[0.5, 0.4]]), (2,), "a row of y has the sum 0.9, not 1; divide"),
    "soft-negative": (xpnn.CrossEntropy(), np.array([[-0.5, 1.5]]), (2,), "y holds -0.5; give numbers >= 0"),
    "soft-ignore": (
        xpnn.CrossEntropy(ignore_index=0),
        np.array([[0.5, 0.5]]),
        (2,),
        "ignore_index=0 is for integer labels",
    ),
    "many-hot": (xpnn.CrossEntropy(), np.array([[1, 1, 0]]), (3,), 'right at once, use loss="binary_cross_entropy"'),
    "soft-for-hinge": (xpnn.CategoricalHinge(), np.array([[0.5, 0.5]]), (2,), "one right class for each row"),
    "binary-above": (xpnn.BinaryCrossEntropy(), np.array([1, 2]), (1,), "targets from 0 to 1: y holds .* from 1 to 2"),
    "binary-signs": (
        xpnn.BinaryCrossEntropyFromProbabilities(),
        np.array([-1, 1]),
        (1,),
        r"y holds numbers from -1 to 1; recode .* \(y \+ 1\) / 2",
    ),
    "hinge-values": (xpnn.Hinge(), np.array([0, 1, 2]), (1,), r"labels -1 and \+1, or 0 and 1.*from 0 to 2"),
    "hinge-mixed": (xpnn.Hinge(), np.array([0, 1, -1]), (1,), "y holds 0 and -1; recode one of them"),
    "kl-sum": (xpnn.KLDivergence(), np.array([[0.5, 0.7]]), (2,), "a row of y has the sum 1.2, not 1"),
    "kl-log-sum": (
        xpnn.KLDivergence(log_target=True),
        np.array([[1000.0, 0.0]]),
        (2,),
        "the exponentials of a row of y have the sum .*; for plain probabilities, write log_target=False",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(backend, dtype, case):
    loss, targets, output_shape, message = ERRORS[case]
    with pytest.raises(DataError, match=message) as error:
        prepare(loss, targets, output_shape, backend, dtype)
    assert type(loss).__name__ in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_targets_that_are_no_numbers(name, bad):
    targets = np.zeros((4, 3))
    targets[1, 2] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="y holds 1 number that is NaN or infinite; remove"):
            prepare(LOSSES[name](), targets, (5, 3) if name == "ctc" else (3,))


def test_a_network_with_one_output_has_no_classes():
    for name in WITH_LABELS:
        with pytest.raises(ConfigError, match='has one output; use loss="binary_cross_entropy"'):
            prepare(LOSSES[name](), [0, 1], (1,))


def test_weights_that_do_not_fit_the_outputs():
    with pytest.raises(ConfigError, match="class_weights has 2 numbers, and the network has 3 outputs"):
        prepare(xpnn.CrossEntropy(class_weights=[1, 2]), [0, 1], (3,))
    with pytest.raises(ConfigError, match="positive_weight has 2 numbers"):
        prepare(xpnn.BinaryCrossEntropy(positive_weight=[1, 2]), np.zeros((2, 3)), (3,))
