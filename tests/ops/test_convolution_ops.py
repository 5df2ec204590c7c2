"""Convolution: against its definition, what is left out, and what is refused."""

import itertools

import numpy as np
import pytest

from xpnn import ops
from xpnn.errors import ShapeError
from xpnn.ops.linear import FUSABLE


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def settings(axes, stride=1, padding=0, dilation=1, **others):
    return {
        "stride": (stride,) * axes,
        "padding": ((padding, padding),) * axes,
        "dilation": (dilation,) * axes,
        **others,
    }


def by_definition(x, weight, stride, padding, dilation, groups):
    """The sum as it stands in the docstring of `ops.conv`, one number after the other, in two dimensions."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    (rows, columns, inputs, outputs) = weight.shape
    height = (x.shape[1] - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    width = (x.shape[2] - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    y = np.zeros((x.shape[0], height, width, outputs))
    for n, p, q, o in itertools.product(*map(range, y.shape)):
        first = o // (outputs // groups) * inputs
        for i, j, c in itertools.product(range(rows), range(columns), range(inputs)):
            value = x[n, stride[0] * p + dilation[0] * i, stride[1] * q + dilation[1] * j, first + c]
            y[n, p, q, o] += value * weight[i, j, c, o]
    return y


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 2), (0, 3))])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_is_its_definition(stride, padding, dilation, groups):
    x, weight = normal(2, 5, 6, 4), normal(3, 2, 4 // groups, 4)
    y, _ = ops.conv(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    np.testing.assert_allclose(y, by_definition(x, weight, stride, padding, dilation, groups), rtol=1e-12, atol=1e-13)


def test_the_kernel_is_not_flipped():
    x = np.array([1.0, 2.0, 4.0]).reshape(1, 3, 1)
    weight = np.array([1.0, 10.0]).reshape(2, 1, 1)
    y, vjp = ops.conv(x, weight, np.array([0.5]), **settings(1))
    np.testing.assert_array_equal(y.ravel(), [21.5, 42.5])
    dx, dweight, dbias = vjp(np.array([1.0, 2.0]).reshape(1, 2, 1))
    np.testing.assert_array_equal(dx.ravel(), [1.0, 12.0, 20.0])
    np.testing.assert_array_equal(dweight.ravel(), [5.0, 10.0])
    np.testing.assert_array_equal(dbias, [3.0])


def test_each_number_writes_a_window_in_a_transposed_convolution():
    x = np.array([1.0, 2.0]).reshape(1, 2, 1)
    weight = np.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    y, _ = ops.conv_transpose(x, weight, output_padding=(0,), **settings(1, stride=2))
    np.testing.assert_array_equal(y.ravel(), [1.0, 10.0, 102.0, 20.0, 200.0])
    y, _ = ops.conv_transpose(x, weight, output_padding=(1,), **settings(1, stride=2, padding=1))
    np.testing.assert_array_equal(y.ravel(), [10.0, 102.0, 20.0, 200.0])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose_is_the_input_gradient_of_conv(stride, padding, groups):
    x, weight = normal(2, 7, 8, 4), normal(3, 2, 4 // groups, 6)
    y, vjp = ops.conv(x, weight, **settings(2, stride, padding, groups=groups))
    dy = normal(*y.shape)
    shortest = [
        (length - 1) * stride + kernel - 2 * padding for length, kernel in zip(y.shape[1:3], (3, 2), strict=True)
    ]
    extra = tuple(length - short for length, short in zip((7, 8), shortest, strict=True))
    back, _ = ops.conv_transpose(dy, weight, output_padding=extra, **settings(2, stride, padding, groups=groups))
    np.testing.assert_allclose(back, vjp(dy)[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("activation", FUSABLE)
@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_a_fused_activation_gives_what_a_separate_one_gives(name, activation):
    given = settings(2, 2, 1, **({"output_padding": (1, 0)} if name == "conv_transpose" else {}))
    x, weight, bias = normal(2, 5, 4, 3), normal(3, 3, 3, 3), normal(3)
    op = getattr(ops, name)
    fused, fused_vjp = op(x, weight, bias, activation=activation, **given)
    z, vjp = op(x, weight, bias, **given)
    y, activation_vjp = getattr(ops, activation)(z)
    np.testing.assert_allclose(fused, y, rtol=1e-12, atol=1e-13)
    dy = normal(*y.shape)
    for got, want in zip(fused_vjp(dy), vjp(*activation_vjp(dy)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
def test_what_is_not_needed_is_none_and_the_rest_the_same(name):
    given = settings(1, **({"output_padding": (0,)} if name == "conv_transpose" else {}))
    x, weight = normal(2, 5, 3), normal(2, 3, 3)
    y, vjp = getattr(ops, name)(x, weight, **given)
    _, shorter = getattr(ops, name)(x, weight, input_gradient=False, **given)
    dy = normal(*y.shape)
    dx, dweight, dbias = vjp(dy)
    assert dx is not None
    assert dbias is None
    dx, same, dbias = shorter(dy)
    assert dx is None
    assert dbias is None
    np.testing.assert_array_equal(same, dweight)


@pytest.mark.parametrize("name", ["conv", "conv_transpose"])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_empty_batch(backend, dtype, name, groups):
    given = settings(2, 2, 1, groups=groups, **({"output_padding": (1, 0)} if name == "conv_transpose" else {}))
    x = backend.asarray(np.zeros((0, 5, 4, 4)), dtype)
    weight, bias = backend.asarray(normal(3, 2, 4 // groups, 4), dtype), backend.asarray(normal(4), dtype)
    lengths = (3, 3) if name == "conv" else (10, 6)
    with backend.context(), backend.discipline():
        y, vjp = getattr(ops, name)(x, weight, bias, **given)
        dx, dweight, dbias = vjp(y)
    assert tuple(y.shape) == (0, *lengths, 4)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(backend.to_host(dweight), np.zeros(weight.shape))
    np.testing.assert_array_equal(backend.to_host(dbias), np.zeros(4))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "given", "message"),
    [
        ((2, 5, 3), (2, 4, 5), None, {}, r"x of shape \(2, 5, 3\) has 3 channels; .* groups=1 want 4"),
        ((2, 5, 3), (2, 2, 3, 5), None, {}, r"give x \(batch, \*spatial, channels\)"),
        ((5, 3), (3, 5), None, {}, "with as many spatial axes"),
        ((2, 5, 4), (2, 2, 5), None, {"groups": 2}, "groups=2 must divide the 5 channels"),
        ((2, 5, 4), (2, 4, 5), None, {"groups": 0}, "groups=0 must divide"),
        ((2, 5, 4), (2, 4, 5), (1, 5), {}, r"bias has shape \(1, 5\); give one number for each of 5"),
        ((2, 5, 4), (6, 4, 5), None, {}, "is larger than the padded input"),
        ((2, 5, 4), (2, 4, 5), None, {"stride": (0,)}, "stride=.* does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, bias, given, message):
    arrays = [None if shape is None else np.ones(shape) for shape in (x, weight, bias)]
    with pytest.raises(ShapeError, match=message):
        ops.conv(*arrays, **{**settings(1), **given})


@pytest.mark.parametrize(
    ("weight", "given", "message"),
    [
        ((2, 5, 3), {}, "x of shape .* has 4 channels"),
        ((2, 5, 4), {"padding": ((3, 3),)}, "nothing is left of the output"),
        ((2, 5, 4), {"output_padding": (2,), "stride": (2,)}, r"output_padding=\(2,\) does not fit"),
        ((2, 5, 4), {"output_padding": (-1,)}, "integers from 0 on"),
        ((2, 5, 4), {"output_padding": (0, 0)}, "give 1 integers"),
    ],
)
def test_what_does_not_fit_a_transposed_convolution_is_refused(weight, given, message):
    with pytest.raises(ShapeError, match=message):
        ops.conv_transpose(np.ones((2, 5, 4)), np.ones(weight), **{**settings(1), "output_padding": (0,), **given})
