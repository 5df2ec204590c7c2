"""Convolutional layers: shapes, settings, fusion, weights of other libraries, and what is refused."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Run
from xpnn.ops.linear import FUSABLE

TOLERANCE = {"rtol": 1e-12, "atol": 1e-13}
ALL = [
    (xpnn.Conv1D(4, 3), (7, 2)),
    (xpnn.Conv2D(4, 3), (5, 6, 2)),
    (xpnn.Conv3D(4, 2), (3, 4, 3, 2)),
    (xpnn.ConvTranspose1D(4, 3), (5, 2)),
    (xpnn.ConvTranspose2D(4, 3, stride=2), (3, 4, 2)),
    (xpnn.DepthwiseConv1D(3, multiplier=2), (7, 2)),
    (xpnn.DepthwiseConv2D(3), (5, 6, 2)),
    (xpnn.SeparableConv1D(4, 3), (7, 2)),
    (xpnn.SeparableConv2D(4, 3, multiplier=2), (5, 6, 2)),
]
EVERY_LAYER = pytest.mark.parametrize(("layer", "sample"), ALL, ids=lambda value: repr(value))


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def parameters_of(layer, sample):
    """Random arrays for the parameters that the layer asks for."""
    return {name: normal(*item.shape) for name, item in layer.build(sample)[1].items()}


def shape_of(layer, sample):
    return layer.build(sample)[0]


@EVERY_LAYER
def test_build_says_what_forward_gives(layer, sample):
    parameters = parameters_of(layer, sample)
    y, backward = layer.forward(normal(3, *sample), parameters, Run())
    assert y.shape == (3, *shape_of(layer, sample))
    dx, gradients = backward(normal(*y.shape))
    assert dx.shape == (3, *sample)
    assert {name: value.shape for name, value in gradients.items()} == {k: v.shape for k, v in parameters.items()}


@EVERY_LAYER
@pytest.mark.parametrize("activation", FUSABLE)
def test_a_fused_activation_gives_what_a_separate_one_gives(layer, sample, activation):
    parameters, x = parameters_of(layer, sample), normal(2, *sample)
    fused, fused_backward = layer.forward(x, parameters, Run(), activation)
    z, backward = layer.forward(x, parameters, Run())
    y, vjp = getattr(xpnn.ops, activation)(z)
    np.testing.assert_allclose(fused, y, **TOLERANCE)
    dy = normal(*y.shape)
    got_dx, got = fused_backward(dy)
    want_dx, want = backward(*vjp(dy))
    np.testing.assert_allclose(got_dx, want_dx, **TOLERANCE)
    assert list(got) == list(want)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], **TOLERANCE)


@EVERY_LAYER
def test_an_activation_behind_the_layer_is_fused(layer, sample, monkeypatch):
    network = xpnn.Network(layer, xpnn.ReLU(), input_shape=sample, dtype="float64")
    separate = xpnn.Network(layer, input_shape=sample, dtype="float64")
    x = normal(2, *sample)
    want = np.maximum(separate.predict(x), 0.0)
    seen = []
    forward = type(layer).forward
    monkeypatch.setattr(type(layer), "forward", lambda *given: seen.append(given[4:]) or forward(*given))
    np.testing.assert_array_equal(network.predict(x), want)
    assert seen
    assert all(given == ("relu",) for given in seen)


@EVERY_LAYER
def test_the_input_gradient_is_left_out_where_nobody_needs_it(layer, sample):
    parameters, x = parameters_of(layer, sample), normal(2, *sample)
    y, backward = layer.forward(x, parameters, Run())
    _, shorter = layer.forward(x, parameters, Run(input_gradient=False))
    dy = normal(*y.shape)
    dx, gradients = shorter(dy)
    assert dx is None
    for name, want in backward(dy)[1].items():
        np.testing.assert_array_equal(gradients[name], want)


@EVERY_LAYER
def test_a_network_with_the_layer_is_saved_and_loaded(layer, sample, tmp_path):
    network = xpnn.Network(layer, xpnn.Flatten(), xpnn.Dense(2), input_shape=sample)
    network.save(tmp_path / "net.safetensors")
    loaded = xpnn.Network.load(tmp_path / "net.safetensors")
    assert loaded.root.layers[0] == layer
    x = normal(3, *sample)
    np.testing.assert_array_equal(loaded.predict(x), network.predict(x))


def test_a_small_network_learns():
    images = np.zeros((40, 6, 6, 1))
    images[:20, 2] = 1.0  # a horizontal line
    images[20:, :, 3] = 1.0  # a vertical one
    images += 0.1 * np.random.default_rng(0).standard_normal(images.shape)
    labels = np.repeat([0, 1], 20)
    network = xpnn.Network(
        xpnn.Conv2D(4, 3), xpnn.ReLU(), xpnn.SeparableConv2D(4, 2, stride=2), xpnn.ReLU(), xpnn.Flatten(), xpnn.Dense(2)
    )
    network.fit(images, labels, loss="cross_entropy", optimizer=xpnn.Adam(0.02), epochs=20, batch_size=8, verbose=False)
    assert (network.predict(images).argmax(axis=1) == labels).all()


@pytest.mark.parametrize(
    ("layer", "sample", "wanted"),
    [
        (xpnn.Conv2D(8, 3), (7, 9, 2), (5, 7, 8)),
        (xpnn.Conv2D(8, 3, padding="same"), (7, 9, 2), (7, 9, 8)),
        (xpnn.Conv2D(8, 3, padding="same", stride=2), (7, 8, 2), (4, 4, 8)),
        (xpnn.Conv2D(8, (3, 5), stride=(2, 1), padding=(1, 2)), (7, 9, 2), (4, 9, 8)),
        (xpnn.Conv2D(8, 2, padding=((1, 0), (0, 2))), (7, 9, 2), (7, 10, 8)),
        (xpnn.Conv2D(8, 3, dilation=3), (7, 9, 2), (1, 3, 8)),
        (xpnn.Conv1D(8, 3, padding="causal", dilation=4), (6, 2), (6, 8)),
        (xpnn.Conv1D(8, 3, padding="causal", stride=2), (6, 2), (3, 8)),
        (xpnn.Conv1D(8, 3, padding=(0, 1)), (6, 2), (5, 8)),
        (xpnn.Conv3D(8, (1, 2, 3), padding=1), (4, 5, 6, 2), (6, 6, 6, 8)),
        (xpnn.DepthwiseConv2D(3, multiplier=3), (7, 9, 2), (5, 7, 6)),
        (xpnn.SeparableConv1D(5, 3, padding="same"), (7, 2), (7, 5)),
        (xpnn.ConvTranspose2D(8, 4, stride=2, padding=1), (7, 9, 2), (14, 18, 8)),
        (xpnn.ConvTranspose1D(8, 3, stride=2, padding=(0, 1), output_padding=1), (4, 2), (9, 8)),
        (xpnn.ConvTranspose2D(8, (4, 1), stride=(2, 3), padding="same"), (7, 9, 2), (14, 27, 8)),
        (xpnn.ConvTranspose1D(8, 3, stride=2, padding="valid"), (4, 2), (9, 8)),
    ],
    ids=repr,
)
def test_output_shapes(layer, sample, wanted):
    assert shape_of(layer, sample) == wanted


def test_the_odd_zero_of_same_padding_goes_after():
    x = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1)
    ones = {"weight": np.ones((2, 1, 1))}
    y, _ = xpnn.Conv1D(1, 2, padding="same", bias=False).forward(x, ones, Run())
    np.testing.assert_array_equal(y.ravel(), [3.0, 6.0, 12.0, 8.0])
    # Window 3, stride 2, length 4: two places need five positions, so that one zero is added, behind.
    ones = {"weight": np.ones((3, 1, 1))}
    y, _ = xpnn.Conv1D(1, 3, padding="same", stride=2, bias=False).forward(x, ones, Run())
    np.testing.assert_array_equal(y.ravel(), [7.0, 12.0])


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_padding_of_a_transposed_convolution_is_that_of_the_convolution_back(kernel, stride, dilation):
    given = {"kernel_size": kernel, "stride": stride, "dilation": dilation, "padding": "same", "bias": False}
    back, there = xpnn.Conv1D(2, **given), xpnn.ConvTranspose1D(3, **given)
    x, weight = normal(1, 4, 2), {"weight": normal(kernel, 3, 2)}
    y, _ = there.forward(x, weight, Run())
    assert y.shape == (1, 4 * stride, 3)
    _, backward = back.forward(np.zeros(y.shape), weight, Run())
    np.testing.assert_allclose(y, backward(x)[0], **TOLERANCE)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(
    "kind",
    [
        lambda **given: xpnn.Conv1D(2, 3, **given),
        xpnn.DepthwiseConv1D,
        lambda **given: xpnn.SeparableConv1D(2, 3, **given),
    ],
)
def test_causal_outputs_depend_on_no_later_input(kind, stride, dilation):
    given = {"padding": "causal", "stride": stride, "dilation": dilation}
    layer = kind(kernel_size=3, **given) if kind is xpnn.DepthwiseConv1D else kind(**given)
    parameters, x = parameters_of(layer, (9, 2)), normal(1, 9, 2)
    y, _ = layer.forward(x, parameters, Run())
    for time in range(9):
        changed = x.copy()
        changed[:, time] += 1.0
        z, _ = layer.forward(changed, parameters, Run())
        differs = np.any(y != z, axis=(0, 2))
        first = -(-time // stride)  # the first place whose last position is `time` or later
        assert not differs[:first].any()
        if time % stride == 0:
            assert differs[first]


def test_parameters_and_their_shapes():
    built = xpnn.Conv2D(6, (3, 2), groups=2).build((5, 5, 4))[1]
    assert {name: item.shape for name, item in built.items()} == {"weight": (3, 2, 2, 6), "bias": (6,)}
    built = xpnn.ConvTranspose2D(6, (3, 2), groups=2).build((5, 5, 4))[1]
    assert {name: item.shape for name, item in built.items()} == {"weight": (3, 2, 3, 4), "bias": (6,)}
    built = xpnn.DepthwiseConv2D(3, multiplier=2, bias=False).build((5, 5, 4))[1]
    assert {name: item.shape for name, item in built.items()} == {"weight": (3, 3, 1, 8)}
    built = xpnn.SeparableConv1D(5, 3, multiplier=2).build((6, 4))[1]
    assert {name: item.shape for name, item in built.items()} == {
        "depthwise_weight": (3, 1, 8),
        "pointwise_weight": (8, 5),
        "bias": (5,),
    }


def test_initializers_count_the_receptive_field():
    network = xpnn.Network(xpnn.Conv2D(64, 5, weight_initializer="he_normal"), input_shape=(8, 8, 32))
    weight = network.parameters["0.weight"]
    np.testing.assert_allclose(weight.std(), np.sqrt(2.0 / (5 * 5 * 32)), rtol=0.02)
    network = xpnn.Network(
        xpnn.Conv1D(4, 3, weight_initializer="ones", bias_initializer=xpnn.initializers.Constant(0.5)),
        input_shape=(5, 2),
    )
    assert (network.parameters["0.weight"] == 1.0).all()
    assert (network.parameters["0.bias"] == 0.5).all()


def test_a_separable_convolution_is_two_layers():
    layer, sample = xpnn.SeparableConv2D(5, 3, stride=2, padding="same", multiplier=2), (6, 5, 3)
    parameters, x = parameters_of(layer, sample), normal(2, *sample)
    between, _ = xpnn.DepthwiseConv2D(3, stride=2, padding="same", multiplier=2, bias=False).forward(
        x, {"weight": parameters["depthwise_weight"]}, Run()
    )
    pointwise = {"weight": parameters["pointwise_weight"][None, None], "bias": parameters["bias"]}
    want, _ = xpnn.Conv2D(5, 1).forward(between, pointwise, Run())
    got, _ = layer.forward(x, parameters, Run())
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xpnn.Conv2D(0, 3), "channels=0 makes no sense"),
        (lambda: xpnn.Conv2D(4, 0), "kernel_size=0 makes no sense"),
        (lambda: xpnn.Conv2D(4, (3, 3, 3)), "kernel_size="),
        (lambda: xpnn.Conv2D(4, 3, stride=0), "Conv2D: stride=0 makes no sense; give an integer of at least 1"),
        (lambda: xpnn.Conv2D(4, 3, stride=(1, 0)), "stride"),
        (lambda: xpnn.Conv2D(4, 3, dilation=0), "dilation=0"),
        (lambda: xpnn.Conv2D(4, 3, padding="full"), "padding='full' is unknown"),
        (lambda: xpnn.Conv2D(4, 3, padding="causal"), "padding='causal' is unknown"),
        (lambda: xpnn.Conv2D(4, 3, padding=-1), "padding=-1 makes no sense"),
        (lambda: xpnn.Conv2D(4, 3, padding=((1, 1, 1), (0, 0))), "padding="),
        (lambda: xpnn.Conv2D(4, 3, groups=3), "Conv2D: groups=3 does not divide channels=4"),
        (lambda: xpnn.Conv2D(4, 3, groups=0), "groups=0 makes no sense"),
        (lambda: xpnn.Conv2D(4, 3, weight_initializer="best"), "weight_initializer='best' is unknown"),
        (lambda: xpnn.ConvTranspose2D(4, 3, groups=3), "groups=3 does not divide channels=4"),
        (
            lambda: xpnn.ConvTranspose2D(4, 3, stride=2, output_padding=2),
            "output_padding=2 makes no sense with stride=2",
        ),
        (lambda: xpnn.ConvTranspose2D(4, 3, output_padding=-1), "output_padding=-1"),
        (
            lambda: xpnn.ConvTranspose2D(4, 3, stride=2, padding="same", output_padding=1),
            "ConvTranspose2D: output_padding=1 makes no sense with padding='same'",
        ),
        (lambda: xpnn.ConvTranspose1D(4, 3, padding="causal"), "ConvTranspose1D: padding='causal' is unknown"),
        (lambda: xpnn.DepthwiseConv2D(3, multiplier=0), "multiplier=0 makes no sense"),
        (lambda: xpnn.SeparableConv2D(3, 3, multiplier=0), "multiplier=0 makes no sense"),
        (lambda: xpnn.SeparableConv1D(0, 3), "channels=0 makes no sense"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "sample", "message"),
    [
        (xpnn.Conv2D(4, 5), (4, 6, 1), r"window of \(5, 5\) is larger than the padded input of \(4, 6\)"),
        (xpnn.Conv2D(4, 3, dilation=3), (6, 7, 1), r"window of \(7, 7\) \(kernel \(3, 3\) with dilation \(3, 3\)\)"),
        (xpnn.Conv2D(4, 3), (8, 8), r"got samples of shape \(8, 8\), wants \(height, width, channels\)"),
        (xpnn.Conv1D(4, 3), (8,), r"wants \(time, channels\)"),
        (xpnn.Conv3D(4, 3), (8, 8, 3), r"wants \(depth, height, width, channels\)"),
        (
            xpnn.Conv2D(4, 3, groups=2),
            (8, 8, 3),
            r"\(8, 8, 3\): 3 channels .* groups=2 does not divide; change groups=",
        ),
        (xpnn.ConvTranspose2D(4, 3, groups=2), (8, 8, 3), "3 channels in the last axis, which groups=2 does not"),
        (xpnn.Conv2D(4, 3, padding=1), (0, 8, 1), "with at least one position"),
        (xpnn.ConvTranspose2D(4, 2, padding=4), (2, 2, 3), "nothing is left of the output"),
        (xpnn.ConvTranspose1D(4, 2), (2, 2, 3), r"wants \(time, channels\)"),
        (xpnn.DepthwiseConv1D(9), (8, 2), r"window of \(9,\) is larger"),
        (xpnn.DepthwiseConv2D(3), (8, 8, 0), "wants at least one channel"),
        (xpnn.SeparableConv2D(3, 3), (2, 8, 2), "is larger than the padded input"),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_refused_when_built(layer, sample, message):
    with pytest.raises(ShapeError, match=rf"^layer 1 {type(layer).__name__}\(.*{message}"):
        xpnn.Network(xpnn.Lambda("relu"), layer, input_shape=sample)


@pytest.mark.parametrize("make", [np.int64, np.int32])
def test_settings_may_be_integers_of_numpy(make, tmp_path):
    layers = xpnn.Conv2D(make(4), (make(3), 2), padding=make(1)), xpnn.MaxPool2D(make(2), stride=[make(1), make(2)])
    network = xpnn.Network(*layers, input_shape=(5, 5, 1))
    network.save(tmp_path / "net.safetensors")
    loaded = xpnn.Network.load(tmp_path / "net.safetensors")
    assert loaded.root == xpnn.Sequential(xpnn.Conv2D(4, (3, 2), padding=1), xpnn.MaxPool2D(2, stride=(1, 2)))


def test_repr_and_equality():
    assert repr(xpnn.Conv2D(8, 3)) == "Conv2D(channels=8, kernel_size=3)"
    assert repr(xpnn.Conv1D(8, 3, padding="causal", bias=False)) == (
        "Conv1D(channels=8, kernel_size=3, padding='causal', bias=False)"
    )
    assert xpnn.Conv2D(8, [3, 2], padding=[[1, 0], [0, 1]]) == xpnn.Conv2D(8, (3, 2), padding=((1, 0), (0, 1)))
    assert xpnn.Conv2D(8, 3) != xpnn.Conv2D(8, 3, stride=2)
    assert xpnn.Conv1D(8, 3) != xpnn.Conv2D(8, 3)


@pytest.mark.parametrize("shape", [(3, 4), (5, 3, 4), (5, 2, 3, 4), (2, 2, 2, 3, 4)])
def test_weights_come_back_from_the_layout_of_pytorch(shape):
    weight = normal(*shape)
    there = xpnn.layers.weight_to_torch(weight)
    assert there.shape == (*shape[:-3:-1], *shape[:-2])
    np.testing.assert_array_equal(xpnn.layers.weight_from_torch(there), weight)


def test_weights_behind_a_flatten_come_back():
    weight = normal(2 * 3 * 5, 4)
    there = xpnn.layers.weight_to_torch(weight, flattened=(5, 2, 3))
    assert there.shape == (4, 30)
    np.testing.assert_array_equal(xpnn.layers.weight_from_torch(there, flattened=(5, 2, 3)), weight)


@pytest.mark.parametrize("convert", [xpnn.layers.weight_from_torch, xpnn.layers.weight_to_torch])
def test_what_is_no_weight_is_refused(convert):
    with pytest.raises(ShapeError, match="give a matrix or a kernel"):
        convert(np.ones(3))
    for weight in (np.ones((5, 3)), np.ones((3, 4, 4))):
        with pytest.raises(ShapeError, match=r"flattened=\(2, 2\) does not fit"):
            convert(weight, flattened=(2, 2))
