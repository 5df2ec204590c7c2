"""Scaling, encoding of targets, and the split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpnn.data import Scaling, encode_target, split
from xpnn.errors import DataError


def test_scaling_gives_mean_zero_and_deviation_one():
    x = np.random.default_rng(0).normal(3.0, [1e-8, 1.0, 1e8], (50, 3))
    scaled = Scaling.of(x).apply(x)
    assert np.allclose(scaled.mean(axis=0), 0, atol=1e-6)
    assert np.allclose(scaled.std(axis=0), 1, rtol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e300, 1e-300])
def test_a_constant_column_becomes_zero(constant):
    x = np.stack([np.full(7, constant), np.arange(7.0)], axis=1)
    scaled = Scaling.of(x).apply(x)
    assert np.allclose(scaled[:, 0], 0, atol=1e-12 * max(1.0, abs(constant)))
    assert np.isfinite(scaled).all()


def test_values_whose_squares_overflow():
    x = np.array([[1e200], [-1e200], [3e200]])
    scaled = Scaling.of(x).apply(x)
    assert np.allclose(scaled.std(axis=0), 1)


def test_pixels_share_one_scale():
    x = np.zeros((10, 4))
    x[0, 0] = 255.0
    scaling = Scaling.of(x, together=True)
    assert len(set(scaling.scale.tolist())) == 1
    assert scaling.scale[0] == pytest.approx(x.std())


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_undo_is_the_inverse_also_through_json(values):
    x = np.array(values)[:, None]
    scaling = Scaling.from_json(Scaling.of(x).to_json())
    assert np.allclose(scaling.undo(scaling.apply(x)), x, rtol=1e-9, atol=1e-9)


def test_text_becomes_numbers_in_order_of_the_names():
    target = encode_target(np.array(["dog", "cat", "dog"]), "y")
    assert target.task == "classification"
    assert target.class_names == ("cat", "dog")
    assert target.values.tolist() == [1, 0, 1]


def test_integers_with_few_values_are_classes_and_keep_their_names():
    target = encode_target(np.array([7, 3, 7, 3]), "y")
    assert target.task == "classification"
    assert target.class_names == ("3", "7")
    assert target.values.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("values", [np.arange(30), np.array([0.5, 1.5, 0.5, 1.5]), np.arange(10)])
def test_other_numbers_are_a_regression(values):
    target = encode_target(values, "y")
    assert target.task == "regression"
    assert target.values.dtype == np.float64


def test_the_task_can_be_chosen():
    assert encode_target(np.arange(30), "y", "classification").class_names[-1] == "29"
    assert encode_target(np.array([0, 1, 0, 1]), "y", "regression").task == "regression"
    assert encode_target(np.array([0.5, 1.0, 0.5]), "y", "classification").class_names == ("0.5", "1")


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (np.array(["a", "a"]), None, "has one class only"),
        (np.array([1, 1, 1]), None, "has one class only"),
        (np.array([0.5, 0.5]), None, "has one value only"),
        (np.array(["a", "b"]), "regression", "holds text such as 'a'"),
        (np.array([1.0, np.nan]), None, "is nan in row 2"),
        (np.array([1.0, np.inf]), None, "is inf in row 2"),
        (np.array(["1", "2", "x"]), None, "holds numbers, and 'x' in row 3"),
    ],
)
def test_targets_that_are_refused(values, task, message):
    with pytest.raises(DataError, match=message):
        encode_target(values, "y", task)


@given(st.integers(0, 2**32), st.integers(4, 200), st.sampled_from([0.1, 0.2, 0.5]))
def test_split_of_numbers(seed, samples, share):
    if round(share * samples) == 0:
        return
    target = encode_target(np.arange(samples) + 0.5, "y")
    training, held_out = split(target, share, seed)
    assert sorted([*training, *held_out]) == list(range(samples))
    assert len(held_out) == round(share * samples)


@given(st.integers(0, 2**32), st.lists(st.integers(2, 30), min_size=2, max_size=6))
def test_split_of_classes_keeps_their_shares(seed, counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    target = encode_target(labels, "y", "classification")
    if sum(counts) < 10:
        return
    training, held_out = split(target, 0.2, seed)
    assert sorted([*training, *held_out]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        there = int((target.values[held_out] == label).sum())
        assert abs(there - 0.2 * count) < 2
        assert there < count


def test_split_follows_the_seed():
    target = encode_target(np.arange(50) + 0.5, "y")
    first, again, other = (split(target, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_split_with_an_empty_part_is_refused():
    target = encode_target(np.array([0.5, 1.5]), "y")
    with pytest.raises(DataError, match="cannot be split"):
        split(target, 0.01, 0)
