"""Pooling on the GPU against the generic body on NumPy in float64."""

import numpy as np
import pytest

from xpnn import ops, random
from xpnn.dispatch import OPS
from xpnn.errors import ShapeError

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
SETTINGS = {
    "disjoint": ((2, 8, 6, 16), (2, 2), (2, 2), ((0, 0), (0, 0))),
    "overlap": ((2, 7, 9, 8), (3, 3), (2, 1), ((1, 1), (1, 1))),
    "gaps": ((1, 9, 11, 3), (2, 1), (3, 4), ((0, 1), (0, 0))),
    "one-sided": ((2, 5, 7, 5), (3, 2), (2, 2), ((2, 0), (0, 1))),
    "1d": ((3, 17, 4), (5,), (2,), ((2, 2),)),
    "3d": ((2, 4, 5, 6, 2), (2, 3, 2), (1, 2, 2), ((0, 1), (1, 1), (0, 0))),
    "large": ((1, 20, 21, 4), (17, 18), (3, 2), ((4, 4), (8, 9))),
    "4d": ((1, 3, 2, 3, 4, 2), (2, 1, 2, 2), (1, 1, 1, 2), ((0, 0),) * 4),
    "empty": ((0, 4, 4, 3), (2, 2), (2, 2), ((0, 0), (0, 0))),
}


def as_float64(backend, x):
    return backend.to_host(backend.xp.astype(x, backend.xp.float64))


def check(backend, name, x, options, mask=None, terms=1):
    """Value and gradient of an op against the generic body, within `terms` roundings of the largest number."""
    extra = () if mask is None else (mask,)
    on_host = () if mask is None else (backend.to_host(mask),)
    y, vjp = ops.__dict__[name](x, *extra, **options)
    want, want_vjp = OPS[name].generic(as_float64(backend, x), *on_host, **options)
    dy = backend.asarray(random.uniform(8, 9, 1, want.shape) - 0.5, str(x.dtype))
    dx = vjp(dy)[0]
    want_dx = want_vjp(as_float64(backend, dy))[0]
    for got, reference in ((y, want), (dx, want_dx)):
        assert got.dtype == x.dtype
        assert got.shape == reference.shape
        error = np.abs(as_float64(backend, got) - reference)
        assert np.all(error <= terms * EPS[str(x.dtype)] * max(np.max(np.abs(reference), initial=0.0), 1.0))
    return as_float64(backend, y), want


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_max_pool(gpu, dtype, setting):
    shape, window, stride, padding = SETTINGS[setting]
    x = gpu.asarray(np.round(random.uniform(1, 2, 3, shape) * 20), dtype)  # most windows hold ties
    got, want = check(gpu, "max_pool", x, {"window": window, "stride": stride, "padding": padding}, terms=8)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("count_padding", [True, False])
def test_average_pool(gpu, dtype, setting, count_padding):
    shape, window, stride, padding = SETTINGS[setting]
    x = gpu.asarray(random.uniform(1, 2, 3, shape), dtype)
    options = {"window": window, "stride": stride, "padding": padding, "count_padding": count_padding}
    check(gpu, "average_pool", x, options, terms=8)


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("name", ["global_max_pool", "global_average_pool"])
@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 5, 7, 3), (2, 300, 130), (1, 4, 3, 2, 520), (5, 1025, 2), (0, 3, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_global_pools(gpu, dtype, name, shape, masked):
    x = gpu.asarray(np.round(random.uniform(1, 2, 3, shape) * 20) - 30, dtype)
    mask = None
    if masked:
        counting = random.uniform(1, 2, 4, shape[:-1]) < 0.4
        if shape[0]:
            counting[0] = False
        mask = gpu.asarray(counting, "bool")
    check(gpu, name, x, {}, mask, terms=2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_views_that_are_not_aligned_or_not_in_order(gpu, dtype):
    options = {"window": (2, 2), "stride": (1, 2), "padding": ((0, 0), (1, 1))}
    memory = gpu.asarray(random.uniform(1, 2, 3, (1 + 2 * 5 * 6 * 8,)), dtype)
    unaligned = gpu.xp.reshape(memory[1:], (2, 5, 6, 8))
    for x in (unaligned, gpu.xp.permute_dims(gpu.copy(unaligned), (0, 3, 2, 1))):
        check(gpu, "max_pool", x, options, terms=4)
        check(gpu, "average_pool", x, options, terms=4)
        check(gpu, "global_max_pool", x, {})
        check(gpu, "global_average_pool", x, {}, terms=4)


@pytest.mark.parametrize("name", ["max_pool", "global_max_pool"])
def test_nan_is_the_largest_and_minus_infinity_is_more_than_padding(gpu, name):
    values = np.full((1, 4, 4, 2), -np.inf)
    values[0, 1, 2, 0] = values[0, 2, 1, 0] = np.nan
    options = {"window": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))} if name == "max_pool" else {}
    x = gpu.asarray(values, "float32")
    y, vjp = ops.__dict__[name](x, **options)
    want, want_vjp = OPS[name].generic(values, **options)
    assert np.array_equal(gpu.to_host(y), want, equal_nan=True)
    dy = np.arange(1.0, 1.0 + want.size).reshape(want.shape)
    assert np.array_equal(gpu.to_host(vjp(gpu.asarray(dy, "float32"))[0]), want_vjp(dy)[0])


def test_means_of_the_largest_numbers_are_finite(gpu):
    largest = float(np.finfo(np.float32).max)
    x = gpu.xp.full((1, 6, 6, 4), largest, dtype=gpu.xp.float32)
    options = {"window": (3, 3), "stride": (1, 1), "padding": ((0, 0), (0, 0))}
    y, vjp = ops.average_pool(x, **options)
    assert np.allclose(gpu.to_host(y), largest, rtol=1e-6)
    (dx,) = vjp(y)
    assert np.isclose(gpu.to_host(dx)[0, 2, 2, 0], largest, rtol=1e-6)
    assert np.allclose(gpu.to_host(ops.global_average_pool(x)[0]), largest, rtol=1e-6)


def test_settings_are_checked(gpu):
    x = gpu.xp.zeros((1, 4, 4, 2), dtype=gpu.xp.float32)
    with pytest.raises(ShapeError, match="window"):
        ops.max_pool(x, window=(5, 1), stride=(1, 1), padding=((0, 0), (0, 0)))
    with pytest.raises(ShapeError, match="padding"):
        ops.average_pool(x, window=(2, 2), stride=(1, 1), padding=((2, 0), (0, 0)))
    with pytest.raises(ShapeError, match="mask"):
        ops.global_max_pool(x, gpu.xp.zeros((1, 4), dtype=gpu.xp.bool))
