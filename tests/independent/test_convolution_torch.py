"""PyTorch's own convolutions, with the same weights, agree: values, input gradients, parameter gradients."""

import itertools

import numpy as np
import pytest

import xpnn
from xpnn.initializers import fans
from xpnn.layers import Run, weight_from_torch

torch = pytest.importorskip("torch")

TOLERANCE = {"rtol": 1e-10, "atol": 1e-11}
CONV = {
    1: (xpnn.Conv1D, torch.nn.Conv1d),
    2: (xpnn.Conv2D, torch.nn.Conv2d),
    3: (xpnn.Conv3D, torch.nn.Conv3d),
}
TRANSPOSED = {
    1: (xpnn.ConvTranspose1D, torch.nn.ConvTranspose1d),
    2: (xpnn.ConvTranspose2D, torch.nn.ConvTranspose2d),
}
SIZES = {1: (8,), 2: (6, 7), 3: (4, 3, 6)}
KERNELS = {1: (3,), 2: (3, 2), 3: (2, 1, 3)}


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def channels_first(x):
    return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def assert_agrees(layer, modules, x, names=("weight",)):
    """The layer gives what the modules give one after the other, forward and backward.

    The weights of the modules, in order, are the parameters `names`; the last one's bias, if it has one, is "bias".
    """
    chain = torch.nn.Sequential(*modules)
    weights = dict(zip(names, (module.weight for module in modules if hasattr(module, "weight")), strict=True))
    bias = modules[-1].bias
    built_shape, built = layer.build(x.shape[1:])
    parameters = {}
    for name, weight in weights.items():
        parameters[name] = weight_from_torch(weight.detach().numpy()).reshape(built[name].shape)
    if bias is not None:
        parameters["bias"] = bias.detach().numpy()
    assert set(built) == set(parameters)

    given = channels_first(x).requires_grad_()
    want = chain(given)
    y, backward = layer.forward(x, parameters, Run())
    np.testing.assert_allclose(y, channels_last(want), **TOLERANCE)
    assert y.shape[1:] == built_shape

    dy = normal(*y.shape)
    want.backward(channels_first(dy))
    dx, gradients = backward(dy)
    np.testing.assert_allclose(dx, channels_last(given.grad), err_msg="dx", **TOLERANCE)
    for name, weight in weights.items():
        expected = weight_from_torch(weight.grad.numpy()).reshape(built[name].shape)
        np.testing.assert_allclose(gradients[name], expected, err_msg=name, **TOLERANCE)
    if bias is not None:
        np.testing.assert_allclose(gradients["bias"], bias.grad.numpy(), err_msg="bias", **TOLERANCE)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_convolution(axes, groups, batch):
    ours, theirs = CONV[axes]
    x = normal(batch, *SIZES[axes], 4)
    for stride, padding, dilation in itertools.product((1, 2, 3), (0, 1, 2), (1, 2)):
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": stride != 2}
        layer = ours(8, KERNELS[axes], **settings)
        assert_agrees(layer, [theirs(4, 8, KERNELS[axes], dtype=torch.float64, **settings)], x)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3), (5, 5), (7, 2)])
def test_odd_and_even_sizes_with_a_setting_for_each_axis(size):
    x = normal(2, *size, 3)
    for kernel, stride in itertools.product(((1, 1), (2, 3), (3, 1)), ((1, 2), (3, 1))):
        settings = {"stride": stride, "padding": (2, 1), "dilation": (1, 1)}
        layer = xpnn.Conv2D(2, kernel, **settings)
        assert_agrees(layer, [torch.nn.Conv2d(3, 2, kernel, dtype=torch.float64, **settings)], x)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_with_stride_one(kernel, dilation):
    settings = {"padding": "same", "dilation": dilation}
    x = normal(2, 5, 6, 2)
    module = torch.nn.Conv2d(2, 3, kernel, dtype=torch.float64, **settings)
    assert_agrees(xpnn.Conv2D(3, kernel, **settings), [module], x)


def test_uneven_and_causal_padding():
    x = normal(2, 6, 5, 2)
    zeros = torch.nn.ZeroPad2d((0, 3, 2, 1))  # left, right, top, bottom
    module = torch.nn.Conv2d(2, 3, (3, 2), stride=2, dtype=torch.float64)
    assert_agrees(xpnn.Conv2D(3, (3, 2), stride=2, padding=((2, 1), (0, 3))), [zeros, module], x)
    x = normal(2, 9, 2)
    module = torch.nn.Conv1d(2, 3, 3, dilation=2, dtype=torch.float64)
    assert_agrees(xpnn.Conv1D(3, 3, dilation=2, padding="causal"), [torch.nn.ConstantPad1d((4, 0), 0.0), module], x)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_transposed_convolution(axes, groups, batch):
    ours, theirs = TRANSPOSED[axes]
    x = normal(batch, *(4, 3)[:axes], 4)
    for stride, padding, dilation, extra in itertools.product((1, 2, 3), (0, 1), (1, 2), (0, 1, 2)):
        if extra >= max(stride, dilation):
            continue
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": extra}
        settings |= {"groups": groups, "bias": stride != 2}
        layer = ours(6, KERNELS[axes], **settings)
        assert_agrees(layer, [theirs(4, 6, KERNELS[axes], dtype=torch.float64, **settings)], x)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_depthwise_convolution(axes, multiplier, batch):
    ours = {1: xpnn.DepthwiseConv1D, 2: xpnn.DepthwiseConv2D}[axes]
    x = normal(batch, *SIZES[axes], 3)
    for stride, padding, dilation in itertools.product((1, 2), (0, 2), (1, 2)):
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "bias": padding == 0}
        layer = ours(KERNELS[axes], multiplier=multiplier, **settings)
        module = CONV[axes][1](3, 3 * multiplier, KERNELS[axes], groups=3, dtype=torch.float64, **settings)
        assert_agrees(layer, [module], x)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_separable_convolution(axes, multiplier, batch):
    ours = {1: xpnn.SeparableConv1D, 2: xpnn.SeparableConv2D}[axes]
    theirs = CONV[axes][1]
    x = normal(batch, *SIZES[axes], 3)
    for stride, padding, dilation in itertools.product((1, 2), (0, 1), (1, 2)):
        bias = padding == 0
        settings = {"stride": stride, "padding": padding, "dilation": dilation}
        layer = ours(5, KERNELS[axes], multiplier=multiplier, bias=bias, **settings)
        between = 3 * multiplier
        depthwise = theirs(3, between, KERNELS[axes], groups=3, bias=False, dtype=torch.float64, **settings)
        pointwise = theirs(between, 5, 1, bias=bias, dtype=torch.float64)
        assert_agrees(layer, [depthwise, pointwise], x, names=("depthwise_weight", "pointwise_weight"))


def test_a_whole_network_with_the_weights_of_pytorch():
    modules = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(4, 3, 2, stride=2),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(3 * 10 * 12, 5),
    ).double()
    network = xpnn.Network(
        xpnn.Conv2D(4, 3, padding="same"),
        xpnn.ReLU(),
        xpnn.ConvTranspose2D(3, 2, stride=2),
        xpnn.Tanh(),
        xpnn.Flatten(),
        xpnn.Dense(5),
        input_shape=(5, 6, 2),
        dtype="float64",
    )

    def from_torch(values):
        ours = {name: value if value.ndim == 1 else weight_from_torch(value) for name, value in values.items()}
        return {**ours, "5.weight": weight_from_torch(values["5.weight"], flattened=(3, 10, 12))}

    network.set_parameters(from_torch({name: value.detach().numpy() for name, value in modules.named_parameters()}))
    x, target = normal(4, 5, 6, 2), normal(4, 5)
    y = modules(channels_first(x))
    np.testing.assert_allclose(network.predict(x), y.detach().numpy(), **TOLERANCE)
    loss = torch.nn.functional.mse_loss(y, torch.tensor(target))
    loss.backward()
    value, gradients = network.loss_and_gradients(x, target, loss="mse")
    np.testing.assert_allclose(value, loss.item(), **TOLERANCE)
    wanted = from_torch({name: value.grad.numpy() for name, value in modules.named_parameters()})
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], err_msg=name, **TOLERANCE)


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Linear(5, 7),
        torch.nn.Conv1d(4, 6, 3),
        torch.nn.Conv2d(4, 6, (3, 2), groups=2),
        torch.nn.Conv3d(2, 6, (3, 2, 1)),
        torch.nn.ConvTranspose2d(4, 6, 3, groups=2),
    ],
    ids=repr,
)
def test_initializers_see_the_fans_that_pytorch_sees(module):
    want = torch.nn.init._calculate_fan_in_and_fan_out(module.weight)
    assert fans(weight_from_torch(module.weight.detach().numpy()).shape) == want
