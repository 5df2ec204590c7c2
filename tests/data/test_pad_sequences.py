"""Sequences of different lengths as one array."""

import numpy as np
import pytest

from xpnn.data import pad_sequences
from xpnn.errors import ConfigError, DataError

WORDS = [[1, 2, 3], [4], [], [5, 6]]


def test_sides():
    padded = pad_sequences(WORDS)
    np.testing.assert_array_equal(padded, [[1, 2, 3], [4, 0, 0], [0, 0, 0], [5, 6, 0]])
    assert padded.dtype == np.int64
    np.testing.assert_array_equal(
        pad_sequences(WORDS, value=-1, side="before"), [[1, 2, 3], [-1, -1, 4], [-1, -1, -1], [-1, 5, 6]]
    )


def test_truncation():
    np.testing.assert_array_equal(pad_sequences(WORDS, 2), [[1, 2], [4, 0], [0, 0], [5, 6]])
    np.testing.assert_array_equal(pad_sequences(WORDS, 2, truncate="before"), [[2, 3], [4, 0], [0, 0], [5, 6]])
    assert pad_sequences(WORDS, 0, truncate="before").shape == (4, 0)
    assert pad_sequences(WORDS, 5).shape == (4, 5)


def test_steps_with_features():
    sequences = [np.ones((2, 3)), np.full((1, 3), 2.0), []]
    padded = pad_sequences(sequences, value=9.0)
    np.testing.assert_array_equal(padded[:, :, 0], [[1.0, 1.0], [2.0, 9.0], [9.0, 9.0]])
    assert padded.shape == (3, 2, 3)
    assert padded.dtype == np.float64


def test_kinds_of_numbers():
    assert pad_sequences([[1, 2], [1.5]]).dtype == np.float64
    assert pad_sequences([[1, 2], [3]], value=0.5).dtype == np.float64
    assert pad_sequences([[True], [False, True]]).dtype == np.int64
    assert pad_sequences([]).shape == (0, 0)


def test_errors():
    with pytest.raises(DataError, match="sequence 1 is the single number 2"):
        pad_sequences([[1], 2])
    with pytest.raises(DataError, match="sequence 1 has dtype"):
        pad_sequences([[1], ["a"]])
    with pytest.raises(DataError, match=r"the steps of sequence 1 have shape \(2,\), those before it \(3,\)"):
        pad_sequences([np.ones((2, 3)), np.ones((2, 2))])
    with pytest.raises(ConfigError, match="side='left'"):
        pad_sequences(WORDS, side="left")
    with pytest.raises(ConfigError, match="truncate='left'"):
        pad_sequences(WORDS, truncate="left")
    with pytest.raises(ConfigError, match="length=-1"):
        pad_sequences(WORDS, -1)
