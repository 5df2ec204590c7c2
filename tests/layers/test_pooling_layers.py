"""The pooling, resampling, padding and cropping layers: shapes, settings, masks, errors."""

import math

import numpy as np
import pytest

import xpnn
from xpnn.config import decode, encode
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Run

LAYERS = [
    (xpnn.MaxPool2D(), (6, 7, 3), (3, 3, 3)),
    (xpnn.MaxPool2D((3, 2), stride=1), (6, 7, 3), (4, 6, 3)),
    (xpnn.MaxPool2D(3, stride=2, padding="same"), (6, 7, 3), (3, 4, 3)),
    (xpnn.MaxPool2D(2, padding=1), (6, 7, 3), (4, 4, 3)),
    (xpnn.MaxPool2D(2, padding=[(1, 0), (0, 1)]), (6, 7, 3), (3, 4, 3)),
    (xpnn.MaxPool2D(2, padding=(1, 0)), (6, 7, 3), (4, 3, 3)),
    (xpnn.MaxPool1D(3, stride=2, padding=(1, 0)), (8, 2), (4, 2)),
    (xpnn.MaxPool1D(4, padding="same"), (9, 2), (3, 2)),
    (xpnn.AveragePool2D(2, count_padding=False), (4, 4, 1), (2, 2, 1)),
    (xpnn.AveragePool1D(3, padding=1), (7, 2), (3, 2)),
    (xpnn.GlobalMaxPool1D(), (7, 2), (2,)),
    (xpnn.GlobalMaxPool2D(), (7, 2, 5), (5,)),
    (xpnn.GlobalAveragePool1D(), (7, 2), (2,)),
    (xpnn.GlobalAveragePool2D(), (7, 2, 5), (5,)),
    (xpnn.AdaptiveAveragePool1D(3), (7, 2), (3, 2)),
    (xpnn.AdaptiveAveragePool2D((3, 9)), (7, 5, 2), (3, 9, 2)),
    (xpnn.UpSampling1D(), (3, 2), (6, 2)),
    (xpnn.UpSampling1D(3, "linear"), (3, 2), (9, 2)),
    (xpnn.UpSampling2D((2, 3), "bilinear"), (3, 2, 4), (6, 6, 4)),
    (xpnn.ZeroPadding1D((2, 1)), (3, 2), (6, 2)),
    (xpnn.ZeroPadding2D(((1, 2), (0, 3))), (3, 2, 1), (6, 5, 1)),
    (xpnn.ZeroPadding2D(2), (3, 2, 1), (7, 6, 1)),
    (xpnn.Cropping1D((2, 1)), (6, 2), (3, 2)),
    (xpnn.Cropping2D([1, [0, 3]]), (6, 5, 1), (4, 2, 1)),
    (xpnn.LocalResponseNorm(5), (3, 3, 4), (3, 3, 4)),
]


@pytest.mark.parametrize(("layer", "input_shape", "output_shape"), LAYERS, ids=[repr(layer) for layer, *_ in LAYERS])
def test_build_tells_the_shape_that_forward_gives(layer, input_shape, output_shape):
    assert layer.build(input_shape) == (output_shape, {})
    for batch in (0, 1, 3):
        y, backward = layer.forward(np.ones((batch, *input_shape)), {}, Run())
        assert y.shape == (batch, *output_shape)
        dx, gradients = backward(y)
        assert dx.shape == (batch, *input_shape)
        assert gradients == {}


@pytest.mark.parametrize("layer", [layer for layer, *_ in LAYERS], ids=repr)
def test_a_layer_survives_a_model_file(layer):
    again = decode(encode(layer))
    assert again == layer
    assert repr(again) == repr(layer)


def test_layers_with_other_settings_differ():
    assert xpnn.MaxPool2D(2) != xpnn.MaxPool2D(3)
    assert xpnn.MaxPool2D([2, 2], padding=[[1, 0], [0, 1]]) == xpnn.MaxPool2D((2, 2), padding=((1, 0), (0, 1)))
    assert repr(xpnn.MaxPool2D(3, stride=2)) == "MaxPool2D(window=3, stride=2)"


def test_same_padding_puts_an_odd_one_after():
    x = np.arange(4.0)[None, :, None]
    y, _ = xpnn.AveragePool1D(2, stride=1, padding="same").forward(x, {}, Run())
    np.testing.assert_array_equal(y.ravel(), [0.5, 1.5, 2.5, 1.5])
    y, _ = xpnn.AveragePool1D(2, stride=1, padding="same", count_padding=False).forward(x, {}, Run())
    np.testing.assert_array_equal(y.ravel(), [0.5, 1.5, 2.5, 3.0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: xpnn.MaxPool2D(0), r"MaxPool2D: window=0 makes no sense; give an integer of at least 1"),
        (lambda: xpnn.MaxPool2D((2, 2, 2)), r"MaxPool2D: window=\(2, 2, 2\) makes no sense; give one integer, or 2"),
        (lambda: xpnn.AveragePool1D(2, stride=0), r"AveragePool1D: stride=0 makes no sense"),
        (lambda: xpnn.MaxPool2D(2, stride=(1, 0)), r"MaxPool2D: stride\[1\]=0 makes no sense"),
        (lambda: xpnn.MaxPool2D(2, padding="full"), "padding='full' is unknown; give 'valid', 'same', an integer"),
        (lambda: xpnn.MaxPool2D(2, padding=-1), "padding=-1 makes no sense"),
        (lambda: xpnn.MaxPool2D(2, padding=(1, 1, 1)), r"padding=\(1, 1, 1\) makes no sense"),
        (lambda: xpnn.MaxPool2D(2, padding=((1, 1, 1), (0, 0))), "makes no sense"),
        (lambda: xpnn.MaxPool2D(3, padding=2), "MaxPool2D: padding=2 is more than half of window=3; .* nothing but"),
        (lambda: xpnn.AveragePool1D(4, padding=(0, 3)), r"padding=\(0, 3\) is more than half of window=4"),
        (lambda: xpnn.AdaptiveAveragePool2D((1, 0)), r"AdaptiveAveragePool2D: size\[1\]=0 makes no sense"),
        (lambda: xpnn.UpSampling2D(1.5), r"UpSampling2D: factor=1.5 makes no sense"),
        (lambda: xpnn.UpSampling2D(2, "linear"), "interpolation='linear' is unknown; give 'nearest' or 'bilinear'"),
        (lambda: xpnn.UpSampling1D(2, "bilinear"), "interpolation='bilinear' is unknown; give 'nearest' or 'linear'"),
        (lambda: xpnn.ZeroPadding2D((1, -1)), r"ZeroPadding2D: padding\[1\]=-1 makes no sense"),
        (lambda: xpnn.Cropping1D((1, 2, 3)), r"Cropping1D: cropping=\(1, 2, 3\) makes no sense"),
        (lambda: xpnn.LocalResponseNorm(0), "size=0 makes no sense"),
        (lambda: xpnn.LocalResponseNorm(3, k=0.0), "k=0.0 makes no sense; give a positive number"),
        (lambda: xpnn.LocalResponseNorm(3, alpha=-1.0), "alpha=-1.0 makes no sense"),
    ],
)
def test_settings_that_make_no_sense(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    ("layer", "input_shape", "message"),
    [
        (xpnn.MaxPool2D(5), (4, 6, 3), r"the window of \(5, 5\) is larger than .* \(4, 6\)"),
        (xpnn.AveragePool1D(4, padding=1), (1, 3), r"the window of \(4,\) is larger than the padded input of \(3,\)"),
        (xpnn.MaxPool2D(2), (4, 3), r"got samples of shape \(4, 3\), wants \(height, width, channels\)"),
        (xpnn.MaxPool1D(2), (4, 4, 3), r"got samples of shape \(4, 4, 3\), wants \(time, channels\)"),
        (xpnn.GlobalAveragePool2D(), (3,), r"got samples of shape \(3,\), wants \(height, width, channels\)"),
        (xpnn.GlobalMaxPool1D(), (0, 3), r"got samples of shape \(0, 3\).*at least one position"),
        (xpnn.AdaptiveAveragePool1D(2), (4, 4, 3), r"got samples of shape \(4, 4, 3\)"),
        (xpnn.UpSampling2D(2), (4, 3), r"got samples of shape \(4, 3\)"),
        (xpnn.ZeroPadding1D(2), (3,), r"got samples of shape \(3,\)"),
        (xpnn.Cropping2D(2), (4, 9, 1), r"cropping \(\(2, 2\), \(2, 2\)\) leaves nothing of samples of .*\(4, 9, 1\)"),
        (xpnn.LocalResponseNorm(3), (4, 0), r"got samples of shape \(4, 0\), wants \(\.\.\., channels\)"),
    ],
)
def test_samples_that_do_not_fit_are_named_when_the_network_is_built(layer, input_shape, message):
    with pytest.raises(ShapeError, match=rf"^layer 0 {type(layer).__name__}\(.*\): {message}"):
        xpnn.Network(layer, input_shape=input_shape)


def test_global_pooling_of_masked_sequences_looks_at_the_steps_that_count(backend, dtype):
    x = np.array([[[1.0], [2.0], [9.0]], [[-4.0], [math.inf], [-2.0]], [[7.0], [7.0], [7.0]]])
    mask = np.array([[True, True, False], [True, False, True], [False, False, False]])
    for layer, want in ((xpnn.GlobalMaxPool1D(), [2.0, -2.0, 0.0]), (xpnn.GlobalAveragePool1D(), [1.5, -3.0, 0.0])):
        run = Run()
        run.mask = backend.asarray(mask, "bool")
        y, backward = layer.forward(backend.asarray(x, dtype), {}, run)
        np.testing.assert_array_equal(backend.to_host(y)[:, 0], want)
        dx = backend.to_host(backward(y)[0])
        np.testing.assert_array_equal(dx[~mask], 0.0)
        np.testing.assert_array_equal(dx.sum(axis=(1, 2)), want)


def test_a_mask_that_does_not_fit_is_an_error():
    run = Run()
    run.mask = np.ones((2, 4), bool)
    with pytest.raises(ShapeError, match=r"the mask has shape \(2, 4\), x \(2, 3, 1\)"):
        xpnn.GlobalAveragePool1D().forward(np.ones((2, 3, 1)), {}, run)
