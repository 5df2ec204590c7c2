"""Property tests: ops and layers on any shape, batch 0 and 1, one feature, non-contiguous and read-only arrays."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnn
from xpnn import ops
from xpnn.layers import Run
from xpnn.parameters import Layout, collect

# The same examples in every run; a time limit would fail on a busy machine.
PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)

batches = st.integers(0, 4)
lengths = st.integers(1, 4)
samples = st.lists(lengths, min_size=0, max_size=3).map(tuple)
dtypes = st.sampled_from(["float32", "float64"])
forms = st.sampled_from(["plain", "reversed", "strided", "transposed", "readonly"])


def array(shape, dtype, form, seed=0):
    """Random numbers of that shape in that form of memory."""
    values = np.random.default_rng(seed).uniform(-2.0, 2.0, shape).astype(dtype)
    if form == "reversed":
        return values[..., ::-1] if values.ndim else values
    if form == "strided":
        wide = np.repeat(values, 2, axis=-1) if values.ndim else values
        return wide[..., ::2] if values.ndim else values
    if form == "transposed":
        return np.ascontiguousarray(values.T).T
    if form == "readonly":
        values.flags.writeable = False
    return values


def assert_gradient(gradient, argument):
    assert gradient.shape == argument.shape
    assert gradient.dtype == argument.dtype


@PROPERTY
@given(batches, samples, dtypes, forms)
def test_flatten_keeps_every_value_in_order(batch, sample, dtype, form):
    x = array((batch, *sample), dtype, form)
    before = x.copy()
    y, vjp = ops.flatten(x)
    assert y.shape == (batch, math.prod(sample))
    assert y.ravel().tolist() == x.ravel().tolist()
    (dx,) = vjp(y)
    assert_gradient(dx, x)
    np.testing.assert_array_equal(dx, before)


@PROPERTY
@given(batches, st.lists(lengths, min_size=1, max_size=3), st.randoms(), dtypes, forms)
def test_reshape_there_and_back_is_the_identity(batch, sample, order, dtype, form):
    x = array((batch, *sample), dtype, form)
    target = list(sample)
    order.shuffle(target)
    y, vjp = ops.reshape(x, tuple(target))
    assert y.shape == (batch, *target)
    np.testing.assert_array_equal(ops.reshape(y, tuple(sample))[0], x)
    assert_gradient(vjp(y)[0], x)


@PROPERTY
@given(batches, samples, st.integers(1, 4), dtypes, forms)
def test_add_is_the_sum_and_gives_each_array_its_gradient(batch, sample, count, dtype, form):
    arrays = [array((batch, *sample), dtype, form, seed) for seed in range(count)]
    y, vjp = ops.add(*arrays)
    np.testing.assert_allclose(y, sum(arrays), rtol=1e-6, atol=1e-6)
    gradients = vjp(y)
    assert len(gradients) == count
    for gradient, x in zip(gradients, arrays, strict=True):
        assert_gradient(gradient, x)
        np.testing.assert_array_equal(gradient, y)


@PROPERTY
@given(st.data(), batches, st.lists(lengths, min_size=1, max_size=3), dtypes, forms)
def test_concatenate_puts_together_what_its_vjp_takes_apart(data, batch, sample, dtype, form):
    shape = (batch, *sample)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    widths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    arrays = []
    for seed, width in enumerate(widths):
        own = list(shape)
        own[axis] = width
        arrays.append(array(tuple(own), dtype, form, seed))
    y, vjp = ops.concatenate(*arrays, axis=axis)
    np.testing.assert_array_equal(y, np.concatenate(arrays, axis=axis))
    for gradient, x in zip(vjp(y), arrays, strict=True):
        assert_gradient(gradient, x)
        np.testing.assert_array_equal(gradient, x)


@PROPERTY
@given(st.lists(st.integers(0, 4), max_size=3).map(tuple), st.integers(1, 5), st.integers(1, 3), dtypes, forms)
def test_embedding_is_fancy_indexing_and_its_gradient_a_loop(shape, vocabulary, features, dtype, form):
    table = array((vocabulary, features), dtype, form)
    indices = np.random.default_rng(1).integers(0, vocabulary, shape)
    y, vjp = ops.embedding(table, indices)
    np.testing.assert_array_equal(y, table[indices])
    dy = array(y.shape, dtype, form, 2)
    dtable, _ = vjp(dy)
    want = np.zeros((vocabulary, features))
    for place in np.ndindex(shape):
        want[indices[place]] += dy[place]
    assert_gradient(dtable, table)
    np.testing.assert_allclose(dtable, want, rtol=1e-5, atol=1e-5)


@PROPERTY
@given(batches, samples, lengths, lengths, dtypes, forms, st.booleans())
def test_linear_takes_any_leading_axes(batch, leading, features, units, dtype, form, with_bias):
    x = array((batch, *leading, features), dtype, form)
    weight = array((features, units), dtype, form, 1)
    bias = array((units,), dtype, form, 2) if with_bias else None
    y, vjp = ops.linear(x, weight, bias)
    np.testing.assert_allclose(y, x @ weight + (0.0 if bias is None else bias), rtol=1e-5, atol=1e-5)
    dy = array(y.shape, dtype, form, 3)
    dx, dweight, dbias = vjp(dy)
    assert_gradient(dx, x)
    assert_gradient(dweight, weight)
    np.testing.assert_allclose(dx, dy @ weight.T, rtol=1e-5, atol=1e-5)
    want = x.reshape(-1 if x.size else 0, features).T @ dy.reshape(-1 if dy.size else 0, units)
    np.testing.assert_allclose(dweight, want, rtol=1e-4, atol=1e-4)
    if bias is None:
        assert dbias is None
    else:
        assert_gradient(dbias, bias)
        np.testing.assert_allclose(dbias, dy.reshape(-1 if dy.size else 0, units).sum(axis=0), rtol=1e-4, atol=1e-4)


def nets(features):
    """Networks that use every shape layer, for samples of shape (features,)."""
    return [
        xpnn.Sequential(xpnn.Dense(3), xpnn.Tanh(), xpnn.Dense(1)),
        xpnn.Sequential(xpnn.Reshape(-1, 1), xpnn.Dense(2), xpnn.Flatten(), xpnn.Dropout(0.5), xpnn.Dense(2)),
        xpnn.Sequential(xpnn.Residual(xpnn.Dense(features), xpnn.Tanh()), xpnn.Residual(xpnn.Dropout(0.2))),
        xpnn.Sequential(xpnn.Parallel(xpnn.Dense(2), [xpnn.Dense(3), xpnn.Tanh()], combine="concatenate")),
        xpnn.Sequential(xpnn.Parallel(xpnn.Sequential(), [xpnn.Dense(features), xpnn.Sigmoid()])),
    ]


@pytest.mark.parametrize("number", range(5))
@PROPERTY
@given(batch=batches, features=lengths, dtype=dtypes, form=forms, training=st.booleans(), input_gradient=st.booleans())
def test_layers_on_any_batch(number, batch, features, dtype, form, training, input_gradient):
    root = nets(features)[number]
    output_shape, tree = root.build((features,))
    layout = Layout(collect(root, tree), dtype, blocked=False)
    theta, buffers = layout.initialize(0, xpnn.get_backend("numpy"))
    x = array((batch, features), dtype, form)
    before = x.copy()
    y, backward = root.forward(x, layout.tree(theta, buffers), Run(training, input_gradient=input_gradient))
    assert y.shape == (batch, *output_shape)
    assert y.dtype == x.dtype
    dx, gradients = backward(np.ones_like(y))
    if input_gradient:
        assert_gradient(dx, x)
    else:
        assert dx is None
    for entry in layout.entries:
        gradient = layout.gather(gradients)[entry.name]
        assert gradient.shape == entry.parameter.shape
        assert gradient.dtype == x.dtype
        if batch == 0:
            assert (gradient == 0.0).all()
    np.testing.assert_array_equal(x, before)
