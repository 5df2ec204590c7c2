"""Pooling, resampling, padding, cropping, local response normalisation: what the matrix does not ask."""

import itertools
import math

import numpy as np
import pytest

from xpnn import ops
from xpnn.errors import ShapeError

NONE_2D = ((0, 0), (0, 0))
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def first_maxima(x, dy, window, stride, padding):
    """Max-pooling and its gradient, one window after the other: a NaN wins, else the first of the largest."""
    y, dx = np.empty_like(dy), np.zeros_like(x)
    places = (range(dy.shape[0]), *map(range, dy.shape[1:-1]), range(dy.shape[-1]))
    for sample, *place, channel in itertools.product(*places):
        best = None
        for tap in itertools.product(*map(range, window)):
            position = tuple(p * s + t - b for p, s, t, (b, _) in zip(place, stride, tap, padding, strict=True))
            if any(not 0 <= at < n for at, n in zip(position, x.shape[1:-1], strict=True)):
                continue
            value = x[(sample, *position, channel)]
            if best is None or value > x[best] or (math.isnan(value) and not math.isnan(x[best])):
                best = (sample, *position, channel)
        y[(sample, *place, channel)] = x[best]
        dx[best] += dy[(sample, *place, channel)]
    return y, dx


@pytest.mark.parametrize(
    ("shape", "window", "stride", "padding"),
    [
        ((2, 6, 6, 2), (2, 2), (2, 2), NONE_2D),
        ((2, 5, 7, 2), (3, 3), (1, 2), ((1, 1), (0, 1))),
        ((2, 5, 4, 1), (2, 4), (3, 1), ((1, 0), (2, 3))),
        ((2, 8, 2), (4,), (3,), ((3, 3),)),
        ((1, 3, 4, 5, 2), (2, 2, 3), (1, 2, 1), ((1, 0), (0, 0), (1, 1))),
    ],
)
@pytest.mark.parametrize("special", [(), (-math.inf,), (math.nan,), (math.nan, -math.inf, math.inf)])
def test_the_first_maximum_gets_the_gradient(backend, dtype, shape, window, stride, padding, special):
    rng = np.random.default_rng(0)
    # All are negative: zeros in the padding would win.
    x = rng.integers(-4, -1, shape).astype(np.float64)
    for value in special:
        x[rng.random(shape) < 0.4] = value
    y, vjp = ops.max_pool(backend.asarray(x, dtype), window=window, stride=stride, padding=padding)
    dy = rng.integers(1, 9, tuple(y.shape)).astype(np.float64)
    want, dwant = first_maxima(x, dy, window, stride, padding)
    np.testing.assert_array_equal(backend.to_host(y), want)
    (dx,) = vjp(backend.asarray(dy, dtype))
    np.testing.assert_array_equal(backend.to_host(dx), dwant)


def test_minus_infinity_beats_the_padding(backend, dtype):
    x = backend.asarray(np.full((1, 3, 3, 1), -math.inf), dtype)
    y, vjp = ops.max_pool(x, window=(2, 2), stride=(1, 1), padding=((1, 1), (1, 1)))
    np.testing.assert_array_equal(backend.to_host(y), np.full((1, 4, 4, 1), -math.inf))
    (dx,) = vjp(backend.asarray(np.ones((1, 4, 4, 1)), dtype))
    # The first position of x in a window of 2 by 2: the corner belongs to 4 windows, and is the first in all.
    np.testing.assert_array_equal(backend.to_host(dx)[0, :, :, 0], [[4, 2, 2], [2, 1, 1], [2, 1, 1]])


@pytest.mark.parametrize("special", [(), (-math.inf,), (math.nan,)])
def test_the_global_maximum_is_the_first_too(backend, dtype, special):
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 3, (4, 3, 5, 2)).astype(np.float64)
    for value in special:
        x[rng.random(x.shape) < 0.4] = value
    x[3] = -math.inf
    y, vjp = ops.global_max_pool(backend.asarray(x, dtype))
    dy = rng.integers(1, 9, (4, 2)).astype(np.float64)
    want, dwant = first_maxima(x, dy[:, None, None, :], (3, 5), (1, 1), NONE_2D)
    np.testing.assert_array_equal(backend.to_host(y), want[:, 0, 0, :])
    dx, dmask = vjp(backend.asarray(dy, dtype))
    np.testing.assert_array_equal(backend.to_host(dx), dwant)
    assert dmask is None


def test_masked_positions_count_neither_forward_nor_backward(backend, dtype):
    x = np.array([[1.0, 5.0, 3.0, math.nan], [-2.0, -4.0, -6.0, math.inf], [9.0, 9.0, math.nan, 9.0]])[:, :, None]
    x = np.concatenate([x, x - 1.0], axis=2)
    mask = np.array([[True, False, True, False], [True, True, True, False], [False, False, False, False]])
    arrays = backend.asarray(x, dtype), backend.asarray(mask, "bool")
    dy = backend.asarray(np.array([[6.0, 12.0]] * 3), dtype)
    y, vjp = ops.global_max_pool(*arrays)
    np.testing.assert_array_equal(backend.to_host(y), [[3.0, 2.0], [-2.0, -3.0], [0.0, 0.0]])
    dx, dmask = vjp(dy)
    want = np.zeros((3, 4, 2))
    want[0, 2] = want[1, 0] = [6.0, 12.0]
    np.testing.assert_array_equal(backend.to_host(dx), want)
    assert dmask is None
    y, vjp = ops.global_average_pool(*arrays)
    np.testing.assert_array_equal(backend.to_host(y), [[2.0, 1.0], [-4.0, -5.0], [0.0, 0.0]])
    dx, dmask = vjp(dy)
    want = mask[:, :, None] * np.array([[[6.0, 12.0]]]) / np.maximum(mask.sum(axis=1), 1)[:, None, None]
    np.testing.assert_allclose(backend.to_host(dx), want, rtol=4 * EPS[dtype])
    assert dmask is None


def test_a_masked_maximum_of_minus_infinity_stays_among_the_steps_that_count(backend, dtype):
    x = backend.asarray(np.full((1, 3, 1), -math.inf), dtype)
    y, vjp = ops.global_max_pool(x, backend.asarray(np.array([[False, True, True]]), "bool"))
    np.testing.assert_array_equal(backend.to_host(y), [[-math.inf]])
    np.testing.assert_array_equal(backend.to_host(vjp(backend.asarray([[1.0]], dtype))[0])[0, :, 0], [0.0, 1.0, 0.0])


def averages(x):
    """Every op that takes the mean of all positions of a sequence."""
    length = x.shape[1]
    yield ops.average_pool(x, window=(length,), stride=(1,), padding=((0, 0),))[0]
    yield ops.adaptive_average_pool(x, size=(1,))[0]
    yield ops.global_average_pool(x)[0]


@pytest.mark.parametrize("length", [2, 3, 7, 100])
def test_the_mean_of_huge_values_does_not_overflow(backend, dtype, length):
    largest = 0.99 * float(np.finfo(dtype).max)
    x = backend.asarray(np.full((1, length, 1), largest), dtype)
    for y in averages(x):
        np.testing.assert_allclose(backend.to_host(y).ravel(), [largest], rtol=16 * EPS[dtype])
    uneven = backend.asarray(np.full((1, length + length + 1, 1), largest), dtype)
    y, _ = ops.adaptive_average_pool(uneven, size=(2,))
    np.testing.assert_allclose(backend.to_host(y).ravel(), [largest] * 2, rtol=16 * EPS[dtype])
    # Opposite ends of the range: the difference of neighbours would overflow.
    x = backend.asarray(np.array([largest, -largest])[None, :, None], dtype)
    y, _ = ops.upsample_bilinear(x, factor=(2,))
    np.testing.assert_allclose(backend.to_host(y).ravel() / largest, [1.0, 0.5, -0.5, -1.0], rtol=4 * EPS[dtype])


@pytest.mark.xpnn_rows(dtypes="float32", reason="a plain sum loses 3 digits of 7 in float32")
def test_long_sums_keep_their_digits(backend, dtype):
    values = np.full((1, 5000, 2), [0.1, 0.7], np.float32)
    want = values.astype(np.float64).mean(axis=1)
    plain = np.zeros(2, np.float32)
    for row in values[0]:
        plain = plain + row
    assert (abs(plain / 5000.0 - want) > 100 * EPS["float32"] * want).any()
    for y in averages(backend.asarray(values, dtype)):
        np.testing.assert_allclose(backend.to_host(y).reshape(1, 2), want, rtol=20 * EPS["float32"])


def test_the_mean_is_over_the_window_or_over_what_it_holds(backend, dtype):
    x = backend.asarray(np.array([[[4.0], [8.0], [12.0]]]), dtype)
    settings = {"window": (2,), "stride": (1,), "padding": ((1, 1),)}
    y, vjp = ops.average_pool(x, **settings)
    np.testing.assert_array_equal(backend.to_host(y).ravel(), [2.0, 6.0, 10.0, 6.0])
    np.testing.assert_array_equal(backend.to_host(vjp(y)[0]).ravel(), [4.0, 8.0, 8.0])
    y, vjp = ops.average_pool(x, **settings, count_padding=False)
    np.testing.assert_array_equal(backend.to_host(y).ravel(), [4.0, 6.0, 10.0, 12.0])
    np.testing.assert_array_equal(backend.to_host(vjp(y)[0]).ravel(), [7.0, 8.0, 17.0])


def test_an_infinity_or_nan_stays_in_its_windows(backend, dtype):
    x = np.arange(8.0)[None, :, None]
    x[0, 3, 0] = math.nan
    given = backend.asarray(x, dtype)
    y, _ = ops.average_pool(given, window=(2,), stride=(2,), padding=((0, 0),))
    np.testing.assert_array_equal(backend.to_host(y).ravel(), [0.5, math.nan, 4.5, 6.5])
    y, _ = ops.adaptive_average_pool(given, size=(3,))
    np.testing.assert_array_equal(np.isnan(backend.to_host(y).ravel()), [False, True, False])
    # An odd factor has values that lie on those of x, to which no neighbour contributes.
    y, _ = ops.upsample_bilinear(given, factor=(3,))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(backend.to_host(y).ravel())), [8, 9, 10, 11, 12])


def test_upsampling_of_a_few_numbers(backend, dtype):
    x = backend.asarray(np.array([[[0.0], [4.0]]]), dtype)
    y, vjp = ops.upsample_nearest(x, factor=(3,))
    np.testing.assert_array_equal(backend.to_host(y).ravel(), [0.0, 0.0, 0.0, 4.0, 4.0, 4.0])
    np.testing.assert_array_equal(backend.to_host(vjp(y)[0]).ravel(), [0.0, 12.0])
    y, vjp = ops.upsample_bilinear(x, factor=(2,))
    np.testing.assert_array_equal(backend.to_host(y).ravel(), [0.0, 1.0, 3.0, 4.0])
    (dx,) = vjp(backend.asarray(np.array([[[8.0], [0.0], [4.0], [0.0]]]), dtype))
    np.testing.assert_array_equal(backend.to_host(dx).ravel(), [9.0, 3.0])


def test_padding_and_cropping_undo_each_other(backend, dtype):
    x = np.arange(24.0).reshape(1, 3, 4, 2) + 1.0
    pairs = ((1, 0), (2, 3))
    y, vjp = ops.pad(backend.asarray(x, dtype), padding=pairs)
    np.testing.assert_array_equal(backend.to_host(y), np.pad(x, ((0, 0), *pairs, (0, 0))))
    np.testing.assert_array_equal(backend.to_host(vjp(y)[0]), x)
    back, vjp = ops.crop(y, cropping=pairs)
    np.testing.assert_array_equal(backend.to_host(back), x)
    np.testing.assert_array_equal(backend.to_host(vjp(back)[0]), backend.to_host(y))


def test_local_response_norm_of_huge_values(backend, dtype):
    """The squares of x would overflow; y is x (alpha / size * sum of x^2)^-beta, as k does not matter beside them."""
    huge = 1e30 if dtype == "float32" else 1e200
    x = backend.asarray(np.array([[huge, 2.0 * huge, 0.0, 1.0, 2.0]]), dtype)
    y, vjp = ops.local_response_norm(x, size=3, alpha=3.0, beta=0.75)
    strong, weak = 5.0**-0.75 / math.sqrt(huge), 6.0**-0.75
    want = [strong, 2.0 * strong, 0.0, weak, 2.0 * weak]
    np.testing.assert_allclose(backend.to_host(y)[0], want, rtol=64 * EPS[dtype])
    dx = backend.to_host(vjp(backend.asarray(np.ones((1, 5)), dtype))[0])
    assert np.isfinite(dx).all()


CALLS = [
    ("max_pool", {"window": (2, 2), "stride": (2, 1), "padding": ((1, 0), (0, 1))}),
    ("average_pool", {"window": (2, 2), "stride": (2, 1), "padding": ((1, 0), (0, 1)), "count_padding": False}),
    ("adaptive_average_pool", {"size": (2, 3)}),
    ("global_max_pool", {}),
    ("global_average_pool", {}),
    ("upsample_nearest", {"factor": (2, 3)}),
    ("upsample_bilinear", {"factor": (2, 3)}),
    ("pad", {"padding": ((1, 0), (0, 1))}),
    ("crop", {"cropping": ((1, 0), (0, 1))}),
]


@pytest.mark.parametrize(("name", "options"), CALLS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 3, 4, 0)])
def test_no_samples_or_no_channels(backend, dtype, name, options, shape):
    y, vjp = getattr(ops, name)(backend.asarray(np.zeros(shape), dtype), **options)
    one, _ = getattr(ops, name)(np.zeros((1, 3, 4, 1)), **options)
    assert tuple(y.shape) == (shape[0], *one.shape[1:-1], shape[-1])
    assert tuple(vjp(y)[0].shape) == shape


@pytest.mark.parametrize("name", ["max_pool", "average_pool"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": (9, 1)}, r"the window of \(9, 1\) is larger than the padded input"),
        ({"stride": (0, 1)}, r"stride=\(0, 1\) does not fit"),
        ({"window": (2,)}, r"x has shape \(1, 4, 4, 1\); the settings want .* with 1 spatial axes"),
        ({"padding": ((2, 0), (0, 0))}, "would hold nothing but padding"),
        ({"padding": ((0, 0), (0, 2))}, "would hold nothing but padding"),
        ({"padding": ((-1, 0), (0, 0))}, "pairs"),
    ],
)
def test_pooling_refuses_settings_that_do_not_fit(name, change, message):
    settings = {"window": (2, 2), "stride": (1, 1), "padding": NONE_2D, **change}
    with pytest.raises(ShapeError, match=rf"^{name}: .*{message}"):
        getattr(ops, name)(np.zeros((1, 4, 4, 1)), **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.adaptive_average_pool(x, size=(0, 1)), r"adaptive_average_pool: size=\(0, 1\) does not fit"),
        (lambda x: ops.adaptive_average_pool(x, size=(1,)), "adaptive_average_pool: x has shape"),
        (lambda x: ops.adaptive_average_pool(x[:, :0], size=(1, 1)), "none of them empty"),
        (lambda x: ops.global_max_pool(x[:, :0]), "global_max_pool: .*spatial not empty"),
        (lambda x: ops.global_average_pool(x[:, 0, 0]), "global_average_pool: x has shape"),
        (lambda x: ops.global_average_pool(x, np.ones((1, 4), bool)), r"the mask has shape \(1, 4\), x \(1, 4, 4, 1\)"),
        (lambda x: ops.upsample_nearest(x, factor=(2,)), r"upsample_nearest: factor=\(2,\) does not fit"),
        (lambda x: ops.upsample_bilinear(x, factor=(2, 0)), r"upsample_bilinear: factor=\(2, 0\) does not fit"),
        (lambda x: ops.local_response_norm(x, size=0), "local_response_norm: .* size is 0"),
        (lambda x: ops.local_response_norm(x[..., :0], size=3), "at least one channel"),
        (lambda x: ops.pad(x, padding=((1, 1),)), r"pad: padding=\(\(1, 1\),\) does not fit"),
        (lambda x: ops.pad(x, padding=((1, 1), (-1, 0))), "pad: .*integers from 0 on"),
        (lambda x: ops.crop(x, cropping=((3, 2), (0, 0))), r"crop: cropping=.* cuts off more than x"),
    ],
)
def test_the_others_refuse_what_does_not_fit(call, message):
    with pytest.raises(ShapeError, match=message):
        call(np.zeros((1, 4, 4, 1)))
