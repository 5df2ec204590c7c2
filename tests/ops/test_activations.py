"""The activations' values and derivatives against their textbook formulas, evaluated with 400 digits."""

import functools
import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext

import numpy as np
import pytest

import xpnn
from xpnn.dispatch import OPS
from xpnn.errors import ConfigError, ShapeError

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}
POINTS = [0.0] + [sign * size for size in (1e4, 88, 30, 12, 5, 3, 2, 1, 0.3, 1e-3, 1e-8, 1e-30) for sign in (1, -1)]


def _exp(x):
    return Decimal(x).exp()


def _sigmoid(x):
    return 1 / (1 + _exp(-x))


def _tanh(x):
    return (_exp(2 * x) - 1) / (_exp(2 * x) + 1)


def _softplus(x, beta=1):
    beta = Decimal(beta)
    return (1 + _exp(beta * x)).ln() / beta


def _normal_density(x):
    return _exp(-x * x / 2) / Decimal(2 * math.pi).sqrt()


def _normal_cdf(x):
    """Laplace's continued fraction for the tails, the series x + x^3/3 + x^5/15 + ... near 0."""
    if abs(x) > 40:
        return Decimal(int(x > 0))
    if abs(x) > Decimal("1.5"):
        fraction = abs(x)
        for number in range(500, 0, -1):
            fraction = abs(x) + number / fraction
        tail = _normal_density(x) / fraction
        return 1 - tail if x > 0 else tail
    return Decimal("0.5") + _normal_density(x) * _normal_series(x)


def _normal_series(x):
    total = term = x
    for number in range(3, 203, 2):
        term *= x * x / number
        total += term
    return total


def _erf(x):
    z = x * Decimal(2).sqrt()
    if abs(z) < 1:
        return 2 * _normal_density(z) * _normal_series(z)
    return 2 * _normal_cdf(z) - 1


def _gelu_gate(x):
    return _sigmoid(2 * _gelu_argument(x))


def _gelu_argument(x):
    return Decimal(2 / math.pi).sqrt() * (x + Decimal("0.044715") * x**3)


def _gelu_argument_slope(x):
    return Decimal(2 / math.pi).sqrt() * (1 + 3 * Decimal("0.044715") * x**2)


def _mish_gate(x):
    return _tanh(_softplus(x))


_SELU_ALPHA = Decimal("1.67326324235437728481704297")
_SELU_SCALE = Decimal("1.05070098735548049341933498")

# name: (op, options, f(x), f'(x)), for x a Decimal; at a kink, the derivative is the one that the op's text promises
FORMULAS = {
    "relu": ("relu", {}, lambda x: max(x, 0), lambda x: int(x > 0)),
    "leaky_relu": (
        "leaky_relu",
        {"negative_slope": 0.125},
        lambda x: x if x > 0 else x / 8,
        lambda x: Decimal(1) if x > 0 else Decimal(1) / 8,
    ),
    "elu": (
        "elu",
        {"alpha": 1.5},
        lambda x: x if x > 0 else Decimal("1.5") * (_exp(x) - 1),
        lambda x: 1 if x > 0 else Decimal("1.5") * _exp(x),
    ),
    "selu": (
        "selu",
        {},
        lambda x: _SELU_SCALE * (x if x > 0 else _SELU_ALPHA * (_exp(x) - 1)),
        lambda x: _SELU_SCALE * (1 if x > 0 else _SELU_ALPHA * _exp(x)),
    ),
    "celu": (
        "celu",
        {"alpha": 0.25},
        lambda x: x if x > 0 else (_exp(4 * x) - 1) / 4,
        lambda x: 1 if x > 0 else _exp(4 * x),
    ),
    "smelu": (
        "smelu",
        {"beta": 2.0},
        lambda x: 0 if x <= -2 else x if x >= 2 else (x + 2) ** 2 / 8,
        lambda x: 0 if x <= -2 else 1 if x >= 2 else (x + 2) / 4,
    ),
    "softplus": ("softplus", {}, _softplus, _sigmoid),
    "softplus-steep": ("softplus", {"beta": 4.0}, lambda x: _softplus(x, 4), lambda x: _sigmoid(4 * x)),
    "softsign": ("softsign", {}, lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2),
    "sigmoid": ("sigmoid", {}, _sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x)),
    "log_sigmoid": ("log_sigmoid", {}, lambda x: _sigmoid(x).ln(), lambda x: _sigmoid(-x)),
    "hard_sigmoid": (
        "hard_sigmoid",
        {},
        lambda x: min(max(x + 3, Decimal(0)), Decimal(6)) / 6,
        lambda x: Decimal(1) / 6 if -3 < x < 3 else 0,
    ),
    "hard_swish": (
        "hard_swish",
        {},
        lambda x: x * min(max(x + 3, Decimal(0)), Decimal(6)) / 6,
        lambda x: 0 if x <= -3 else 1 if x >= 3 else x / 3 + Decimal("0.5"),
    ),
    "tanh": ("tanh", {}, _tanh, lambda x: 1 - _tanh(x) ** 2),
    "silu": (
        "silu",
        {},
        lambda x: x * _sigmoid(x),
        lambda x: _sigmoid(x) + x * _sigmoid(x) * _sigmoid(-x),
    ),
    "mish": (
        "mish",
        {},
        lambda x: x * _mish_gate(x),
        lambda x: _mish_gate(x) + x * (1 - _mish_gate(x) ** 2) * _sigmoid(x),
    ),
    "gelu": ("gelu", {}, lambda x: x * _normal_cdf(x), lambda x: _normal_cdf(x) + x * _normal_density(x)),
    "gelu-tanh": (
        "gelu",
        {"approximate": "tanh"},
        lambda x: x * _gelu_gate(x),
        lambda x: _gelu_gate(x) + x * _gelu_gate(x) * _sigmoid(-2 * _gelu_argument(x)) * 2 * _gelu_argument_slope(x),
    ),
    "erf": (
        "erf",
        {},
        _erf,
        lambda x: 2 / Decimal(math.pi).sqrt() * _exp(-x * x),
    ),
    "normal_cdf": ("normal_cdf", {}, _normal_cdf, _normal_density),
}
names = pytest.mark.parametrize("name", list(FORMULAS))


@functools.cache
def _wanted(name, dtype):
    """f(x) and f'(x) at the points, rounded to the dtype first."""
    points = [Decimal(float(x)) for x in np.array(POINTS, dtype=dtype)]
    # What is lost at 400 digits, as in 1 - tanh(1e4), is 0 in every dtype.
    with localcontext(Context(prec=400, Emin=MIN_EMIN, Emax=MAX_EMAX)):
        return tuple(np.array([float(function(x)) for x in points]) for function in FORMULAS[name][2:])


def _call(name, x):
    op, options, *_ = FORMULAS[name]
    return OPS[op](x, **options)


@names
def test_value_and_derivative_follow_the_formula_up_to_the_extremes(name, backend, dtype):
    points = np.array(POINTS, dtype=dtype)
    y, vjp = _call(name, backend.asarray(points))
    (dx,) = vjp(backend.xp.ones_like(y))
    assert y.dtype == dx.dtype == backend.dtype(dtype)
    wanted_y, wanted_dx = _wanted(name, dtype)
    limit = 16 * EPS[dtype]
    if name in ("erf", "gelu", "normal_cdf") and "erf" in backend.overrides:
        # The libraries' own functions lose x^2 eps where x is large; the generic bodies do not.
        limit = limit + np.minimum(np.abs(points), 40.0) ** 2 * EPS[dtype]
    # A library may take a number below the smallest normal one for 0, and x multiplies it.
    least = SMALLEST_NORMAL[dtype] * np.maximum(np.abs(points), 1.0)
    error_y = np.abs(backend.to_host(y) - wanted_y)
    assert (error_y <= limit * np.abs(wanted_y) + least).all()
    if name == "tanh":
        least = EPS[dtype]  # 1 - tanh(x)^2 cancels where tanh(x) is near 1
    error_dx = np.abs(backend.to_host(dx) - wanted_dx)
    assert (error_dx <= limit * np.abs(wanted_dx) + least).all()


@names
def test_nothing_overflows_at_half_the_largest_number(name, backend, dtype):
    largest = float(np.finfo(dtype).max) / 2
    y, vjp = _call(name, backend.asarray(np.array([largest, -largest], dtype=dtype)))
    (dx,) = vjp(backend.xp.ones_like(y))
    assert np.isfinite(backend.to_host(y)).all()
    assert np.isfinite(backend.to_host(dx)).all()
    # All of them are straight lines out there; those that fall to 0 have arrived.
    far, _ = _call(name, backend.asarray(np.array([1e4, -1e4], dtype=dtype)))
    assert (np.sign(backend.to_host(y)) == np.sign(backend.to_host(far))).all()


@names
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0), (2, 0, 3), ()])
def test_empty_and_zero_dimensional_inputs(name, shape):
    x = np.ones(shape, dtype="float32")
    y, vjp = _call(name, x)
    (dx,) = vjp(np.ones_like(y))
    assert y.shape == dx.shape == shape
    assert y.dtype == dx.dtype == np.float32


@names
def test_non_contiguous_input(name):
    x = np.linspace(-4, 4, 60).reshape(6, 10)
    strided = x[::-2, 1::3].T
    dy = np.cos(x)[::-2, 1::3].T
    y, vjp = _call(name, strided)
    wanted, wanted_vjp = _call(name, np.ascontiguousarray(strided))
    # Not bit for bit: NumPy may compute exp in another way where it cannot load whole vectors.
    np.testing.assert_allclose(y, wanted, rtol=1e-15, atol=1e-16)
    np.testing.assert_allclose(vjp(dy)[0], wanted_vjp(np.ascontiguousarray(dy))[0], rtol=1e-14, atol=1e-15)


@pytest.mark.xpnn_rows(only=("numpy", "strict"))
def test_erf_and_normal_cdf_are_right_to_a_few_units_in_the_last_place(backend, dtype):
    limit = 6 * EPS[dtype]
    x = np.linspace(-6, 6, 2001).astype(dtype)
    y, _ = OPS["erf"].generic(backend.asarray(x))
    wanted = np.array([math.erf(float(number)) for number in x])
    np.testing.assert_allclose(backend.to_host(y), wanted, rtol=limit, atol=0)
    # erfc(-x / sqrt(2)) is wanted at points where the division is exact, or nearly: x = sqrt(2) h rounded
    h = np.linspace(-8, 2, 1001)
    x = (h * math.sqrt(2)).astype(dtype)
    h_of_x = x.astype("float64") / math.sqrt(2)
    wanted = np.array([0.5 * math.erfc(-number) for number in h_of_x])
    y, _ = OPS["normal_cdf"].generic(backend.asarray(x))
    error = np.abs(backend.to_host(y) / wanted - 1)
    assert (error <= limit + 4 * h_of_x**2 * EPS["float64"]).all()


def test_gelu_of_a_negative_number_does_not_cancel(backend, dtype):
    y, _ = xpnn.ops.gelu(backend.asarray(np.array([-6.0, -1e4], dtype=dtype)))
    wanted = -6.0 * 0.5 * math.erfc(6.0 / math.sqrt(2.0))
    assert -6.0e-9 < wanted < -5.8e-9
    got = backend.to_host(y)
    assert abs(got[0] / wanted - 1) < 50 * EPS[dtype]
    assert got[1] == 0


def test_gelu_refuses_an_unknown_form():
    with pytest.raises(ConfigError, match=r"approximate='exact' is unknown.*'none', 'tanh'"):
        xpnn.ops.gelu(np.zeros(3), approximate="exact")


def test_prelu_gradients_by_hand(backend, dtype):
    x = backend.asarray(np.array([[1.0, -2.0], [-3.0, 4.0], [-1.0, 0.0]], dtype=dtype))
    dy = backend.asarray(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=dtype))
    y, vjp = xpnn.ops.prelu(x, backend.asarray(np.array([0.5, 0.25], dtype=dtype)))
    dx, dslope = vjp(dy)
    assert backend.to_host(y).tolist() == [[1.0, -0.5], [-1.5, 4.0], [-0.5, 0.0]]
    assert backend.to_host(dx).tolist() == [[1.0, 0.5], [1.5, 4.0], [2.5, 1.5]]
    assert backend.to_host(dslope).tolist() == [-3.0 * 3.0 - 1.0 * 5.0, -2.0 * 2.0]
    y, vjp = xpnn.ops.prelu(x, backend.asarray(np.array([0.5], dtype=dtype)))
    dx, dslope = vjp(dy)
    assert backend.to_host(y).tolist() == [[1.0, -1.0], [-1.5, 4.0], [-0.5, 0.0]]
    assert backend.to_host(dslope).tolist() == [-3.0 * 3.0 - 1.0 * 5.0 - 2.0 * 2.0]


@pytest.mark.parametrize("slopes", [1, 3])
@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 2, 3)])
def test_prelu_shapes(shape, slopes):
    y, vjp = xpnn.ops.prelu(-np.ones(shape), np.full(slopes, 0.5))
    dx, dslope = vjp(np.ones(shape))
    assert y.shape == dx.shape == shape
    assert dslope.tolist() == [-math.prod(shape) / slopes] * slopes


@pytest.mark.parametrize("slope_shape", [(2,), (), (1, 3), (0,)])
def test_prelu_refuses_a_slope_of_another_shape(slope_shape):
    with pytest.raises(ShapeError, match=r"slope has shape \(.*one for each feature"):
        xpnn.ops.prelu(np.ones((4, 3)), np.ones(slope_shape))


def test_prelu_of_the_largest_numbers():
    largest = np.finfo("float32").max
    y, _ = xpnn.ops.prelu(np.array([largest, -largest]), np.array([4.0, 0.5], dtype="float32"))
    assert y.tolist() == [largest, -largest / 2]


def test_softmax_adds_up_to_one_and_ignores_a_shift(backend, dtype):
    x = np.array([[0.0, 1.0, 3.0], [-2.0, 0.5, 0.25]], dtype=dtype)
    y = backend.to_host(xpnn.ops.softmax(backend.asarray(x))[0])
    np.testing.assert_allclose(y.sum(axis=1), 1.0, rtol=4 * EPS[dtype])
    np.testing.assert_allclose(y[0], np.exp([0.0, 1.0, 3.0]) / np.exp([0.0, 1.0, 3.0]).sum(), rtol=8 * EPS[dtype])
    shifted = backend.to_host(xpnn.ops.softmax(backend.asarray(x + np.array(1024.0, dtype=dtype)))[0])
    np.testing.assert_allclose(shifted, y, rtol=8 * EPS[dtype])


def test_softmax_at_the_extremes(backend, dtype):
    largest = float(np.finfo(dtype).max)
    rows = [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [largest, -largest, largest], [-largest, -largest, -1e30]]
    x = backend.asarray(np.array(rows, dtype=dtype))
    y, vjp = xpnn.ops.softmax(x)
    third = np.array(1.0, dtype=dtype) / np.array(3.0, dtype=dtype)
    wanted = np.array([[1, 0, 0], [third] * 3, [0.5, 0, 0.5], [0, 0, 1]], dtype=dtype)
    assert (backend.to_host(y) == wanted).all()
    (dx,) = vjp(backend.asarray(np.array([[1.0, 2.0, 3.0]] * 4, dtype=dtype)))
    np.testing.assert_allclose(
        backend.to_host(dx),
        [[0, 0, 0], [-1 / 3, 0, 1 / 3], [-0.5, 0, 0.5], [0, 0, 0]],
        rtol=4 * EPS[dtype],
        atol=4 * EPS[dtype],
    )


def test_log_softmax_at_the_extremes(backend, dtype):
    x = backend.asarray(np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=dtype))
    y, vjp = xpnn.ops.log_softmax(x)
    wanted = np.array([[0.0, -2e4, -1e4], [-math.log(3)] * 3])
    np.testing.assert_allclose(backend.to_host(y), wanted, rtol=2 * EPS[dtype])
    (dx,) = vjp(backend.xp.ones_like(y))
    np.testing.assert_allclose(backend.to_host(dx), [[-2, 1, 1], [0, 0, 0]], atol=8 * EPS[dtype])


@pytest.mark.parametrize("op", [xpnn.ops.softmax, xpnn.ops.log_softmax])
def test_softmax_along_another_axis(op):
    x = np.arange(24.0).reshape(4, 3, 2) ** 2 / 100
    dy = np.sin(x)
    y, vjp = op(x, axis=1)
    moved, moved_vjp = op(np.swapaxes(x, 1, 2))
    np.testing.assert_allclose(y, np.swapaxes(moved, 1, 2), rtol=1e-15)
    np.testing.assert_allclose(vjp(dy)[0], np.swapaxes(moved_vjp(np.swapaxes(dy, 1, 2))[0], 1, 2), atol=1e-15)


@pytest.mark.parametrize("op", [xpnn.ops.softmax, xpnn.ops.log_softmax])
@pytest.mark.parametrize(("shape", "axis"), [((), -1), ((4, 3), 2), ((4, 3), -3)])
def test_softmax_along_an_axis_that_is_not_there(op, shape, axis):
    with pytest.raises(ShapeError, match=f"axis {axis} of an array of shape"):
        op(np.zeros(shape), axis=axis)


@pytest.mark.parametrize("op", [xpnn.ops.softmax, xpnn.ops.log_softmax])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_softmax_of_nothing(op, shape, backend, dtype):
    y, vjp = op(backend.asarray(np.ones(shape, dtype=dtype)))
    (dx,) = vjp(backend.asarray(np.ones(shape, dtype=dtype)))
    assert tuple(y.shape) == tuple(dx.shape) == shape


def test_softmax_gives_masked_entries_no_probability():
    x = np.array([[0.0, -np.inf, 0.0]])
    y, vjp = xpnn.ops.softmax(x)
    assert y.tolist() == [[0.5, 0.0, 0.5]]
    assert vjp(np.array([[1.0, 5.0, 3.0]]))[0].tolist() == [[-0.5, 0.0, 0.5]]
