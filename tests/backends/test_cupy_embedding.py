"""Embedding and scatter_add on the GPU: sums in the order of positions, bit for bit as a loop gives them."""

import numpy as np
import pytest

from xpnn import ops, random
from xpnn.errors import ShapeError

EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def as_float64(backend, x):
    return backend.to_host(backend.xp.astype(x, backend.xp.float64))


def sums_in_order(values, indices, length):
    """Row by row, as the kernel does it: in float32 or float64, one row after the other."""
    total = np.zeros((length, values.shape[-1]), dtype=values.dtype)
    for row, index in zip(values.reshape(-1, values.shape[-1]), indices.reshape(-1), strict=True):
        total[index] += row
    return total


def draw(backend, dtype, count, features, length, *, seed=1):
    """Values on the device, and indices on the host of which the first quarter are the same."""
    values = backend.asarray(random.uniform(seed, 2, 3, (count, features)) - 0.5, dtype)
    indices = np.floor(random.uniform(seed, 5, 3, (count,)) * length).astype(np.int64)
    indices[: count // 4] = length // 2
    return values, indices


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize(("count", "features", "length"), [(1, 1, 1), (37, 3, 5), (300, 8, 2), (1023, 17, 300)])
def test_sum_is_that_of_a_loop(gpu, dtype, count, features, length):
    values, indices = draw(gpu, dtype, count, features, length)
    total, vjp = ops.scatter_add(values, gpu.asarray(indices, "int64"), length)
    working = np.float64 if dtype == "float64" else np.float32
    want = sums_in_order(as_float64(gpu, values).astype(working), indices, length)
    assert total.dtype == values.dtype
    # Half precision is added in float32 and rounded once, by the library's own conversion here.
    assert np.array_equal(as_float64(gpu, total), as_float64(gpu, gpu.asarray(want, dtype)))
    gradient, nothing = vjp(total)
    assert nothing is None
    assert np.array_equal(as_float64(gpu, gradient), as_float64(gpu, total)[indices])


@pytest.mark.parametrize("count", [4096, 4097, 20000])
@pytest.mark.parametrize("length", [1, 255, 256, 70000])
def test_long_lists_of_few_and_of_many_rows(gpu, count, length):
    values, indices = draw(gpu, "float32", count, 1, length)
    total, _ = ops.scatter_add(values, gpu.asarray(indices, "int64"), length)
    assert np.array_equal(gpu.to_host(total), sums_in_order(gpu.to_host(values), indices, length))


@pytest.mark.parametrize("count", [5, 9000])
def test_sort_is_stable(gpu, count):
    from xpnn_backends.cupy.bodies_embedding import _sorted_positions

    indices = np.floor(random.uniform(3, 5, 3, (count,)) * 1000).astype(np.int64)
    indices[count // 2 :: 7] = -1
    indices[count // 2 + 1 :: 7] = 1000
    rows, positions = map(gpu.to_host, _sorted_positions(gpu.asarray(indices, "int64"), 1000))
    known = np.where((indices < 0) | (indices >= 1000), 1000, indices)
    order = np.argsort(known, stable=True)
    assert np.array_equal(positions, order)
    assert np.array_equal(rows, known[order])


@pytest.mark.parametrize("dtype", list(EPS))
@pytest.mark.parametrize("features", [1, 2, 3, 4, 6, 8, 12, 1030])
def test_rows_are_taken_as_they_are(gpu, dtype, features):
    table = gpu.asarray(random.uniform(1, 2, 3, (7, features)), dtype)
    indices = np.array([[6, 0, 3], [3, 3, 5]])
    y, vjp = ops.embedding(table, gpu.asarray(indices, "int64"))
    assert y.dtype == table.dtype
    assert np.array_equal(as_float64(gpu, y), as_float64(gpu, table)[indices])
    dtable, nothing = vjp(y)
    want, _ = ops.scatter_add(y, gpu.asarray(indices, "int64"), 7)
    assert nothing is None
    assert dtable.dtype == table.dtype
    assert np.array_equal(as_float64(gpu, dtable), as_float64(gpu, want))


@pytest.mark.parametrize("dtype", list(EPS))
def test_tables_and_values_need_no_alignment(gpu, dtype):
    memory = gpu.asarray(random.uniform(1, 2, 3, (1 + 9 * 16,)), dtype)
    table = gpu.xp.reshape(memory[1:], (9, 16))
    indices = gpu.asarray(np.array([8, 0, 8, 4, 4]), "int64")
    y, _ = ops.embedding(table, indices)
    assert np.array_equal(as_float64(gpu, y), as_float64(gpu, table)[[8, 0, 8, 4, 4]])
    total, _ = ops.scatter_add(table[:5], indices, 9)
    want, _ = ops.scatter_add(gpu.copy(table[:5]), indices, 9)
    assert np.array_equal(as_float64(gpu, total), as_float64(gpu, want))


def test_non_contiguous_arrays(gpu):
    table = gpu.asarray(random.uniform(1, 2, 3, (6, 9)), "float32").T
    indices = gpu.asarray(np.array([[1, 0], [8, 8], [3, 2]]), "int64").T
    y, vjp = ops.embedding(table, indices)
    assert np.array_equal(gpu.to_host(y), gpu.to_host(table)[gpu.to_host(indices)])
    dy = gpu.asarray(random.uniform(1, 2, 4, (6, 3, 2)), "float32").T
    want = sums_in_order(np.ascontiguousarray(gpu.to_host(dy)), np.ascontiguousarray(gpu.to_host(indices)), 9)
    assert np.array_equal(gpu.to_host(vjp(dy)[0]), want)


def test_empty_arrays(gpu):
    table = gpu.asarray(np.ones((4, 3)), "float32")
    nothing = gpu.asarray(np.zeros((0, 2)), "int64")
    y, vjp = ops.embedding(table, nothing)
    assert y.shape == (0, 2, 3)
    assert np.array_equal(gpu.to_host(vjp(y)[0]), np.zeros((4, 3)))
    assert ops.scatter_add(table[:, :0], gpu.asarray(np.arange(4), "int64"), 5)[0].shape == (5, 0)


def test_indices_of_32_bits(gpu):
    values, indices = draw(gpu, "float32", 50, 4, 6)
    total, _ = ops.scatter_add(values, gpu.asarray(indices, "int32"), 6)
    assert np.array_equal(gpu.to_host(total), sums_in_order(gpu.to_host(values), indices, 6))


def test_an_index_out_of_range_is_seen_and_does_no_harm(gpu):
    table = gpu.asarray(np.ones((4, 3)), "float32")
    indices = gpu.asarray(np.array([0, -1, 4, 2**40]), "int64")
    y, vjp = ops.embedding(table, indices)
    assert np.array_equal(np.isnan(gpu.to_host(y))[:, 0], [False, True, True, True])
    assert np.array_equal(gpu.to_host(vjp(gpu.xp.ones_like(y))[0])[:, 0], [1, 0, 0, 0])


def test_an_infinity_stays_in_its_row(gpu):
    values = gpu.asarray(np.array([[np.inf], [1.0], [2.0]]), "float32")
    total, _ = ops.scatter_add(values, gpu.asarray(np.array([2, 0, 0]), "int64"), 3)
    assert np.array_equal(gpu.to_host(total), [[3.0], [0.0], [np.inf]])


@pytest.mark.parametrize("count", [100, 9000])
def test_a_graph_can_be_replayed_with_other_indices(gpu, count):
    import cupy

    values, first = draw(gpu, "float32", count, 4, 300)
    _, second = draw(gpu, "float32", count, 4, 300, seed=2)
    indices = gpu.asarray(first, "int64")
    ops.scatter_add(values, indices, 300)  # compiles the kernels
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with stream:
        stream.begin_capture()
        total, _ = ops.scatter_add(values, indices, 300)
        taken, _ = ops.embedding(total, indices)
        graph = stream.end_capture()
        for numbers in (first, second):
            indices.set(numbers)
            graph.launch()
            stream.synchronize()
            want = sums_in_order(gpu.to_host(values), numbers, 300)
            assert np.array_equal(gpu.to_host(total), want)
            assert np.array_equal(gpu.to_host(taken), want[numbers])


def test_shapes_are_checked(gpu):
    indices = gpu.asarray(np.array([0, 1]), "int64")
    with pytest.raises(ShapeError, match="wants"):
        ops.scatter_add(gpu.xp.zeros((3, 2), dtype=gpu.xp.float32), indices, 4)
    with pytest.raises(ShapeError, match="wants"):
        ops.embedding(gpu.xp.zeros((3,), dtype=gpu.xp.float32), indices)
