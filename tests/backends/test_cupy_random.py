"""Random bits and dropout on the GPU: the same bits as NumPy's."""

import numpy as np
import pytest

from xpnn import ops, random
from xpnn.backend import host
from xpnn.dispatch import OPS
from xpnn.random import RandomKey

SIZES = (0, 1, 15, 16, 17, 1023, 2048, 4099)
KEY = RandomKey(2**64 - 3, random.stream(random.DROPOUT, 5) + (7 << 40), 2**40 + 1)
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def as_float64(backend, x):
    return backend.to_host(backend.xp.astype(x, backend.xp.float64))


@pytest.mark.parametrize("count", SIZES)
def test_words_are_those_of_numpy(gpu, count):
    from xpnn_backends.cupy.bodies_random import random_words

    got = gpu.to_host(random_words(*KEY, count))
    assert np.array_equal(got, host().random_words(*KEY, count))


def test_counter_carries_into_its_second_word(gpu):
    from xpnn_backends.cupy.bodies_random import random_words

    got = gpu.to_host(random_words(1, 2, 3, 8, first=2**64 - 2))
    generator = np.random.Philox(key=np.array([1, 2], np.uint64), counter=np.array([2**64 - 2, 0, 3, 0], np.uint64))
    assert np.array_equal(got, generator.random_raw(8))


@pytest.mark.parametrize("shape", [(0,), (1,), (15,), (16,), (17,), (31, 33), (3, 4, 5, 6), (4099,)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999999])
def test_mask_is_that_of_the_host(gpu, shape, rate):
    mask, vjp = ops.random_mask(gpu.xp.zeros(shape, dtype=gpu.xp.float32), KEY, rate)
    want = host().keep_mask(*KEY, shape, random.mask_threshold(rate))
    assert mask.dtype == gpu.xp.bool
    assert np.array_equal(gpu.to_host(mask), want)
    assert vjp(mask) == (None,)


@pytest.mark.parametrize("step", [3, np.int64(3)])
def test_step_may_lie_on_the_device(gpu, step):
    x = gpu.asarray(np.ones((5, 7)), "float32")
    here, _ = ops.dropout(x, KEY._replace(step=step), 0.4)
    there, vjp = ops.dropout(x, KEY._replace(step=gpu.asarray(np.asarray(step), "int64")), 0.4)
    assert np.array_equal(gpu.to_host(here), gpu.to_host(there))
    assert np.array_equal(gpu.to_host(vjp(x)[0]), gpu.to_host(there))


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("count", SIZES)
def test_dropout_equals_the_generic_body(gpu, dtype, count):
    values = random.uniform(1, 2, 3, (2, count)) - 0.5
    x, dy = (gpu.asarray(part, dtype) for part in values)
    y, vjp = ops.dropout(x, KEY, 0.3)
    (dx,) = vjp(dy)
    want, want_vjp = OPS["dropout"].generic(as_float64(gpu, x), KEY, 0.3)
    (want_dx,) = want_vjp(as_float64(gpu, dy))
    for got, reference in ((y, want), (dx, want_dx)):
        assert got.dtype == x.dtype
        got = as_float64(gpu, got)
        assert np.array_equal(got == 0, reference == 0)
        assert np.all(np.abs(got - reference) <= EPS[dtype] * np.abs(reference))


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("start", [1, 3, 4])
def test_bits_do_not_depend_on_the_alignment(gpu, dtype, start):
    whole = gpu.asarray(random.uniform(1, 2, 3, (5000,)), dtype)
    part = whole[start : start + 4500]
    got, _ = ops.dropout(part, KEY, 0.5)
    want, _ = ops.dropout(gpu.copy(part), KEY, 0.5)
    assert np.array_equal(as_float64(gpu, got), as_float64(gpu, want))


def test_non_contiguous_arrays_are_counted_in_c_order(gpu):
    x = gpu.asarray(random.uniform(1, 2, 3, (40, 60)), "float32")
    y, vjp = ops.dropout(x.T, KEY, 0.5)
    want, _ = OPS["dropout"].generic(np.ascontiguousarray(gpu.to_host(x).T), KEY, 0.5)
    assert np.array_equal(gpu.to_host(y), want)
    (dx,) = vjp(x.T)
    assert np.array_equal(gpu.to_host(dx), want)


def test_what_is_dropped_may_be_anything(gpu):
    x = gpu.xp.full((64,), float("nan"), dtype=gpu.xp.float32)
    y = gpu.to_host(ops.dropout(x, KEY, 0.5)[0])
    kept = host().keep_mask(*KEY, (64,), random.mask_threshold(0.5))
    assert np.array_equal(np.isnan(y), kept)
    assert np.all(y[~kept] == 0)


def test_a_replayed_graph_draws_new_bits(gpu):
    import cupy

    x = gpu.asarray(np.ones((70, 33)), "float32")
    step = cupy.zeros((), dtype=cupy.int64)

    def forward_and_backward():
        y, vjp = ops.dropout(x, KEY._replace(step=step), 0.5)
        return y, *vjp(x)

    forward_and_backward()  # compiles the kernels
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        stream.begin_capture()
        y, dx = forward_and_backward()
        graph = stream.end_capture()
        for number in range(3):
            step.fill(number)
            graph.launch()
            stream.synchronize()
            want = OPS["dropout"].generic(gpu.to_host(x), KEY._replace(step=number), 0.5)[0]
            assert np.array_equal(gpu.to_host(y), want)
            assert np.array_equal(gpu.to_host(dx), want)


def test_attention_drops_the_same_weights_as_on_the_host(gpu):
    shapes = ((2, 9, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8))
    arrays = [random.uniform(4, 5, number, shape) for number, shape in enumerate(shapes)]
    options = {"dropout_key": KEY, "dropout_rate": 0.4, "block": 4}
    want, want_vjp = ops.attention(*arrays, **options)
    got, got_vjp = ops.attention(*[gpu.asarray(array, "float64") for array in arrays], **options)
    assert np.allclose(gpu.to_host(got), want, rtol=1e-12, atol=1e-13)
    gradients = got_vjp(gpu.asarray(want, "float64"))
    for mine, reference in zip(gradients[:3], want_vjp(want)[:3], strict=True):
        assert np.allclose(gpu.to_host(mine), reference, rtol=1e-11, atol=1e-12)
