"""Drawing a class from logits."""

import numpy as np
import pytest

from xpnn.errors import ConfigError, DataError
from xpnn.sampling import draw


def counts(logits, temperature=1.0, draws=4000):
    found = [draw(logits, seed=3, step=step, temperature=temperature) for step in range(draws)]
    return np.bincount(found, minlength=len(logits)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_shares_are_those_of_the_softmax(temperature):
    logits = np.array([0.3, -1.0, 2.0, 0.0])
    wanted = np.exp(logits / temperature)
    wanted /= wanted.sum()
    # a share of 4000 draws has a standard deviation of at most 0.008
    assert np.abs(counts(logits, temperature) - wanted).max() < 0.04


def test_the_draw_is_a_function_of_seed_and_step():
    logits = np.zeros(50)
    one = [draw(logits, 1, step) for step in range(20)]
    assert one == [draw(logits.astype(np.float32), 1, step) for step in range(20)]
    assert one != [draw(logits, 2, step) for step in range(20)]
    assert len(set(one)) > 5


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-3])
def test_a_small_temperature_takes_the_most_probable(temperature):
    assert {draw([1.0, 3.0, 2.0], 0, step, temperature) for step in range(50)} == {1}


def test_extreme_logits_and_temperatures():
    assert draw([1e308, -1e308, 0.0], temperature=1e-9) == 0
    assert 0.4 < counts([1e4, -1e4], temperature=1e300, draws=400)[0] < 0.6
    assert draw([5.0]) == 0
    assert draw([-1e4, 0.0, -1e4]) == 1


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf"), "hot", True])
def test_temperatures_that_make_no_sense(temperature):
    with pytest.raises(ConfigError, match="give a number from 0 on"):
        draw([0.0, 1.0], temperature=temperature)


@pytest.mark.parametrize("logits", [[], [[0.0, 1.0]], 3.0, [0.0, float("nan")], [float("inf"), 0.0]])
def test_what_is_no_vector_of_numbers(logits):
    with pytest.raises(DataError, match="no vector of finite numbers"):
        draw(logits)


def test_a_seed_out_of_range():
    with pytest.raises(ConfigError, match="seed=-1"):
        draw([0.0, 1.0], seed=-1)
