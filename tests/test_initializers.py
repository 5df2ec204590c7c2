"""Initializers: distributions, formulas, names, and the same bits on every backend."""

import math

import numpy as np
import pytest

import xpnn
from xpnn import initializers
from xpnn.config import by_name, decode, encode
from xpnn.errors import ConfigError
from xpnn.initializers import INITIALIZERS, Draw, Initializer

SHAPE = (400, 250)
COUNT = SHAPE[0] * SHAPE[1]
FAN_IN, FAN_OUT = SHAPE

UNIFORM_LIMITS = {
    "GlorotUniform": math.sqrt(6 / (FAN_IN + FAN_OUT)),
    "HeUniform": math.sqrt(6 / FAN_IN),
    "LeCunUniform": math.sqrt(3 / FAN_IN),
}
NORMAL_STDS = {
    "GlorotNormal": math.sqrt(2 / (FAN_IN + FAN_OUT)),
    "HeNormal": math.sqrt(2 / FAN_IN),
    "LeCunNormal": math.sqrt(1 / FAN_IN),
}


def sample(initializer, shape=SHAPE, seed=5, index=2):
    values = initializer.sample(shape, Draw(seed, index))
    assert values.shape == shape
    assert values.dtype == np.float64
    return values


def assert_moments(values, mean, std, kurtosis):
    """Mean and standard deviation within five standard errors; `kurtosis` is that of the distribution."""
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(values.size)
    assert abs(values.std() - std) < 5 * std * math.sqrt((kurtosis - 1) / 4 / values.size)


@pytest.mark.parametrize(("name", "limit"), UNIFORM_LIMITS.items())
def test_the_scaled_uniform_distributions(name, limit):
    values = sample(getattr(initializers, name)())
    assert_moments(values, 0.0, limit / math.sqrt(3), 1.8)
    assert limit * 0.999 < np.abs(values).max() < limit


@pytest.mark.parametrize(("name", "std"), NORMAL_STDS.items())
def test_the_scaled_normal_distributions(name, std):
    values = sample(getattr(initializers, name)())
    assert_moments(values, 0.0, std, 3.0)
    # A share q of n numbers has the standard error sqrt(q (1 - q) / n).
    assert abs((np.abs(values) > std).mean() - 0.317311) < 5 * 0.00147
    assert abs((np.abs(values) > 3 * std).mean() - 0.0026998) < 5 * 0.000164


def test_uniform_and_normal_with_their_arguments():
    assert_moments(sample(initializers.Uniform(-1.0, 3.0)), 1.0, 4 / math.sqrt(12), 1.8)
    assert_moments(sample(initializers.Normal(std=2.0, mean=-3.0)), -3.0, 2.0, 3.0)


def test_truncated_normal_is_cut_at_two_std():
    values = sample(initializers.TruncatedNormal(std=0.5, mean=1.0))
    assert np.abs(values - 1.0).max() < 1.0
    assert np.abs(values - 1.0).max() > 0.999
    # The density at 2 is 0.05399, the probability within is 0.95450: variance 1 - 2 * 2 * 0.05399 / 0.95450.
    assert_moments(values, 1.0, 0.5 * math.sqrt(1 - 4 * 0.0539909665 / 0.9544997361), 2.36)


def test_constants():
    assert (sample(initializers.Zeros()) == 0.0).all()
    assert (sample(initializers.Ones()) == 1.0).all()
    assert (sample(initializers.Constant(-0.25)) == -0.25).all()


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (2, 3, 4), (3, 3, 2, 40)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape):
    values = sample(initializers.Orthogonal(gain=2.0), shape)
    matrix = values.reshape(-1, shape[-1])
    rows, columns = matrix.shape
    product = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    np.testing.assert_allclose(product, 4.0 * np.eye(min(rows, columns)), atol=1e-13)


def test_orthogonal_matrices_are_uniformly_distributed():
    """Without the sign fix the diagonal of Q has a fixed sign; under the Haar measure E trace = 0, E trace^2 = 1."""
    traces = [np.trace(sample(initializers.Orthogonal(), (3, 3), seed=seed)) for seed in range(3000)]
    assert abs(np.mean(traces)) < 5 / math.sqrt(3000)
    assert abs(np.mean(np.square(traces)) - 1.0) < 5 * math.sqrt(2 / 3000)


def test_orthogonal_refuses_vectors():
    with pytest.raises(ConfigError, match="two or more axes"):
        sample(initializers.Orthogonal(), (4,))


@pytest.mark.parametrize(
    ("shape", "want"),
    [((3, 4), (3, 4)), ((5,), (5, 5)), ((), (1, 1)), ((3, 3, 8, 16), (72, 144)), ((0, 4), (1, 4))],
)
def test_fans(shape, want):
    assert initializers.fans(shape) == want


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_every_name_builds_an_initializer_that_works_in_a_layer(name):
    assert isinstance(by_name("weight_initializer", name, INITIALIZERS, Initializer), INITIALIZERS[name])
    network = xpnn.Network(xpnn.Dense(4, 3, weight_initializer=name))
    want = INITIALIZERS[name]().sample((4, 3), Draw(0, 0)).astype(np.float32)
    np.testing.assert_array_equal(network.parameters["0.weight"], want)


def test_every_initializer_has_a_name():
    classes = {cls for cls in vars(initializers).values() if isinstance(cls, type) and issubclass(cls, Initializer)}
    # A constant needs its value.
    assert classes - {Initializer, initializers.Constant} == set(INITIALIZERS.values())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"weight_initializer='hee' is unknown; known names: .*he_normal"):
        xpnn.Dense(3, weight_initializer="hee")


@pytest.mark.parametrize(
    "build",
    [
        lambda: initializers.Normal(std=0.0),
        lambda: initializers.TruncatedNormal(std=-1.0),
        lambda: initializers.Normal(std=math.nan),
        lambda: initializers.Uniform(1.0, 1.0),
        lambda: initializers.Uniform("a", 1.0),
        lambda: initializers.Constant(math.inf),
        lambda: initializers.Constant([1.0]),
        lambda: initializers.Constant(True),
        lambda: initializers.Orthogonal(gain=None),
    ],
)
def test_arguments_that_make_no_sense(build):
    with pytest.raises(ConfigError, match="makes no sense; give"):
        build()


@pytest.mark.parametrize(
    "initializer",
    [initializers.Normal(0.3, 1.0), initializers.Uniform(0.0, 2.0), initializers.Orthogonal(1.5), initializers.Zeros()],
)
def test_initializers_survive_a_model_file(initializer):
    assert decode(encode(initializer)) == initializer


def test_each_parameter_and_each_seed_gets_numbers_of_its_own():
    first = sample(initializers.HeNormal(), (5, 5), seed=1, index=0)
    assert (first != sample(initializers.HeNormal(), (5, 5), seed=1, index=1)).all()
    assert (first != sample(initializers.HeNormal(), (5, 5), seed=2, index=0)).all()
    np.testing.assert_array_equal(first, sample(initializers.HeNormal(), (5, 5), seed=1, index=0))


@pytest.mark.parametrize("name", sorted(set(INITIALIZERS) - {"zeros", "ones"}))
def test_one_seed_gives_the_same_bits_on_every_backend(backend, dtype, name):
    network = xpnn.Network(xpnn.Dense(7, 5, weight_initializer=name), backend=backend, dtype=dtype, seed=3)
    want = INITIALIZERS[name]().sample((7, 5), Draw(3, 0)).astype(dtype)
    got = backend.to_host(network.parameters["0.weight"])
    assert got.dtype == want.dtype
    assert got.tobytes() == want.tobytes()
