"""Random words are numpy.random.Philox's, bit for bit, on every backend."""

import numpy as np
import pytest

import xpnn
from xpnn import random
from xpnn.backend import host
from xpnn.errors import ConfigError
from xpnn.random import RandomKey

# The first block of Philox4x64-10 for counter 0 and key 0, from the known answers of Random123, and the rounds'
# constants, from the paper (Salmon et al., SC 2011).
KNOWN_BLOCK = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_MASK = 2**64 - 1


def philox_block(counter, key):
    """One block of four words, in Python integers: an implementation to compare with."""
    words, (k0, k1) = list(counter), key
    for _ in range(10):
        first, second = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        words = [
            (second >> 64) ^ words[1] ^ k0,
            second & _MASK,
            (first >> 64) ^ words[3] ^ k1,
            first & _MASK,
        ]
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return words


def test_the_reference_gives_the_known_answer():
    assert philox_block((0, 0, 0, 0), (0, 0)) == KNOWN_BLOCK


def test_numpy_gives_the_known_answer():
    # numpy counts up before it makes a block: from the largest counter it goes on to 0.
    generator = np.random.Philox(key=np.zeros(2, np.uint64), counter=np.full(4, _MASK, np.uint64))
    assert [int(word) for word in generator.random_raw(4)] == KNOWN_BLOCK


@pytest.mark.parametrize(
    ("seed", "stream", "step"),
    [(0, 0, 0), (7, random.stream(random.DROPOUT, 3), 11), (2**64 - 1, 1, 2**40)],
)
def test_words_are_philox(seed, stream, step):
    got = host().random_words(seed, stream, step, 10)
    want = [word for block in (1, 2, 3) for word in philox_block((block, 0, step, 0), (seed, stream))][:10]
    assert [int(word) for word in got] == want


@pytest.mark.xpnn_rows(dtypes=["float32"], reason="masks have no dtype")
def test_masks_are_pieces_of_the_words_on_every_backend(backend, dtype):
    shape, threshold = (3, 5), 20000
    x = backend.asarray(np.zeros(shape), dtype)
    mask, _ = xpnn.ops.random_mask(x, RandomKey(7, 3, 11), threshold / 65536)
    got = backend.to_host(mask)
    words = [word for block in range(1, 5) for word in philox_block((block, 0, 11, 0), (7, 3))]
    pieces = [(word >> shift) & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    assert got.shape == shape
    assert got.ravel().tolist() == [piece >= threshold for piece in pieces[:15]]


def test_streams_of_different_purposes_and_numbers_differ():
    purposes = (random.INITIALIZATION, random.SHUFFLE, random.DROPOUT, random.SPLIT, random.TESTING)
    streams = {random.stream(purpose, index) for purpose in purposes for index in range(100)}
    assert len(streams) == 500


def test_uniform_lies_inside_the_open_interval_and_is_uniform():
    values = random.uniform(3, 0, 0, (200, 500))
    assert values.shape == (200, 500)
    assert values.dtype == np.float64
    assert values.min() > 0.0
    assert values.max() < 1.0
    # The standard error of the mean of 1e5 numbers is 0.0009, that of the variance 0.00024; five of each are allowed.
    assert abs(values.mean() - 0.5) < 0.0046
    assert abs(values.var() - 1 / 12) < 0.0012
    counts, _ = np.histogram(values, bins=10, range=(0.0, 1.0))
    assert ((counts - 1e4) ** 2 / 1e4).sum() < 45.0  # chi-square with 9 degrees of freedom: 1e-6


def test_uniform_uses_the_upper_52_bits_of_one_word_for_each_number():
    words = np.random.Philox(key=np.array([9, 4], np.uint64), counter=np.array([0, 0, 6, 0], np.uint64)).random_raw(7)
    want = [((int(word) >> 12) + 0.5) / 2**52 for word in words]
    assert random.uniform(9, 4, 6, (7,)).tolist() == want


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)])
def test_uniform_of_unusual_shapes(shape):
    assert random.uniform(0, 0, 0, shape).shape == shape


def test_permutation_holds_every_number_once_and_depends_on_seed_and_epoch():
    first = random.permutation(0, 1, 0, 1000)
    assert sorted(first.tolist()) == list(range(1000))
    assert first.dtype == np.int64
    assert first.tolist() == random.permutation(0, 1, 0, 1000).tolist()
    assert first.tolist() != random.permutation(0, 1, 1, 1000).tolist()
    assert first.tolist() != random.permutation(1, 1, 0, 1000).tolist()
    assert random.permutation(0, 1, 0, 0).shape == (0,)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", None])
def test_a_seed_that_is_no_64_bit_integer_is_refused(seed):
    with pytest.raises(ConfigError, match=r"give an integer from 0 to 2\*\*64 - 1"):
        random.check_seed(seed)


def test_a_seed_may_be_any_integer_type():
    assert random.check_seed(np.uint64(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize(("rate", "threshold"), [(0.0, 0), (0.5, 32768), (0.3, 19661), (1.0 - 1e-9, 65535)])
def test_the_mask_threshold_is_the_nearest_16_bit_integer(rate, threshold):
    assert random.mask_threshold(rate) == threshold


def test_a_random_key_is_a_plain_triple():
    assert RandomKey(1, 2, 3) == (1, 2, 3)
