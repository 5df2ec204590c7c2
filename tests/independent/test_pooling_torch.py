"""Pooling, resampling, padding, cropping and local response normalisation against PyTorch, in float64."""

import itertools
import math

import numpy as np
import pytest

import xpnn
from xpnn import ops

torch = pytest.importorskip("torch")
functional = torch.nn.functional

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def channels_first(x):
    return np.moveaxis(x, -1, 1)


def compare(name, options, reference, x, seed=1):
    """The op's value and gradient are those of `reference`, which takes and gives channels first."""
    tensor = torch.tensor(channels_first(x).copy(), requires_grad=True)
    want = reference(tensor)
    y, vjp = getattr(ops, name)(x, **options)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    want.backward(torch.tensor(channels_first(dy).copy()))
    np.testing.assert_allclose(channels_first(y), want.detach().numpy(), **TOLERANCE)
    np.testing.assert_allclose(channels_first(vjp(dy)[0]), tensor.grad.numpy(), **TOLERANCE)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def with_ties(shape, seed=0):
    """A few different values only, all of them negative: zeros in the padding would win."""
    return np.random.default_rng(seed).integers(-5, -1, shape).astype(np.float64)


def same_on_both_sides(padding):
    return tuple((number, number) for number in padding)


GRID_2D = [
    pytest.param(window, stride, padding, id=f"{window}-{stride}-{padding}")
    for window, stride, padding in itertools.product(
        [(2, 2), (3, 2), (3, 3), (4, 1), (1, 1), (2, 5)],
        [(1, 1), (2, 2), (3, 1), (2, 5)],
        [(0, 0), (1, 0), (1, 1), (2, 0)],
    )
    if all(2 * number <= length for number, length in zip(padding, window, strict=True))
]
GRID_1D = [
    pytest.param(window, stride, padding, id=f"{window}-{stride}-{padding}")
    for window, stride, padding in itertools.product([1, 2, 3, 4, 7], [1, 2, 3, 8], [0, 1, 3])
    if 2 * padding <= window
]
SHAPES_2D = [(3, 7, 6, 2), (1, 5, 9, 3), (0, 4, 5, 2)]
SHAPES_1D = [(3, 7, 2), (1, 10, 1), (0, 8, 2)]


@pytest.mark.parametrize(("window", "stride", "padding"), GRID_2D)
@pytest.mark.parametrize("shape", SHAPES_2D)
@pytest.mark.parametrize("values", [normal, with_ties])
def test_max_pool_2d(window, stride, padding, shape, values):
    options = {"window": window, "stride": stride, "padding": same_on_both_sides(padding)}
    compare("max_pool", options, lambda x: functional.max_pool2d(x, window, stride, padding), values(shape))


@pytest.mark.parametrize(("window", "stride", "padding"), GRID_2D)
@pytest.mark.parametrize("shape", SHAPES_2D)
@pytest.mark.parametrize("count_padding", [True, False])
def test_average_pool_2d(window, stride, padding, shape, count_padding):
    options = {
        "window": window,
        "stride": stride,
        "padding": same_on_both_sides(padding),
        "count_padding": count_padding,
    }

    def reference(x):
        return functional.avg_pool2d(x, window, stride, padding, count_include_pad=count_padding)

    compare("average_pool", options, reference, normal(shape))


@pytest.mark.parametrize(("window", "stride", "padding"), GRID_1D)
@pytest.mark.parametrize("shape", SHAPES_1D)
def test_pooling_1d(window, stride, padding, shape):
    options = {"window": (window,), "stride": (stride,), "padding": ((padding, padding),)}
    for x in (normal(shape), with_ties(shape)):
        compare("max_pool", options, lambda x: functional.max_pool1d(x, window, stride, padding), x)
    for counted in (True, False):
        compare(
            "average_pool",
            {**options, "count_padding": counted},
            lambda x, counted=counted: functional.avg_pool1d(x, window, stride, padding, count_include_pad=counted),
            normal(shape),
        )


@pytest.mark.parametrize("window", [33, 37, 64, 96])
@pytest.mark.parametrize("stride", [1, 5, 40, 120])
@pytest.mark.parametrize("padding", [0, 7, 16])
def test_the_average_over_long_windows(window, stride, padding):
    for length, counted in itertools.product((100, 131), (True, False)):
        options = {
            "window": (window,),
            "stride": (stride,),
            "padding": ((padding, padding),),
            "count_padding": counted,
        }
        compare(
            "average_pool",
            options,
            lambda x, counted=counted: functional.avg_pool1d(x, window, stride, padding, count_include_pad=counted),
            normal((2, length, 2)),
        )


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 1, 1), (2, 3, 1), (3, 2, 0)])
@pytest.mark.parametrize("shape", [(2, 4, 5, 6, 2), (1, 3, 3, 4, 1)])
def test_pooling_3d(window, stride, padding, shape):
    options = {"window": (window,) * 3, "stride": (stride,) * 3, "padding": ((padding, padding),) * 3}
    for x in (normal(shape), with_ties(shape)):
        compare("max_pool", options, lambda x: functional.max_pool3d(x, window, stride, padding), x)
    compare("average_pool", options, lambda x: functional.avg_pool3d(x, window, stride, padding), normal(shape))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (7, 6), (5, 4), (9, 13)])
@pytest.mark.parametrize("shape", [(2, 7, 6, 3), (1, 8, 5, 1), (0, 3, 4, 2), (2, 1, 11, 2)])
def test_adaptive_average_pool(size, shape):
    options = {"size": size}
    compare("adaptive_average_pool", options, lambda x: functional.adaptive_avg_pool2d(x, size), normal(shape))
    first = {"size": size[:1]}
    compare("adaptive_average_pool", first, lambda x: functional.adaptive_avg_pool1d(x, size[0]), normal(shape[1:]))


@pytest.mark.parametrize("shape", [(3, 7, 6, 2), (1, 1, 1, 3), (2, 5, 4), (0, 3, 2)])
def test_global_pooling(shape):
    spatial = tuple(range(2, len(shape)))
    compare("global_average_pool", {}, lambda x: torch.mean(x, dim=spatial), normal(shape))
    axes = len(shape) - 2
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d}[axes]
    for x in (normal(shape), with_ties(shape)):
        compare("global_max_pool", {}, lambda x: pool(x, x.shape[2:]).flatten(1), x)


@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (3, 2), (1, 5), (4, 7)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 1, 5, 1), (3, 2, 1, 2), (0, 3, 2, 1)])
def test_upsampling_2d(factor, shape):
    def reference(mode, **options):
        # PyTorch refuses an empty batch here; what it would give is plain.
        if shape[0] == 0:
            return lambda x: x.repeat_interleave(factor[0], dim=2).repeat_interleave(factor[1], dim=3)
        return lambda x: functional.interpolate(x, scale_factor=factor, mode=mode, **options)

    options = {"factor": factor}
    compare("upsample_nearest", options, reference("nearest"), normal(shape))
    compare("upsample_bilinear", options, reference("bilinear", align_corners=False), normal(shape))


@pytest.mark.parametrize("factor", [1, 2, 3, 6])
def test_upsampling_1d_and_3d(factor):
    line, cube = normal((2, 5, 3)), normal((2, 3, 2, 4, 1))
    for x, mode in ((line, "linear"), (cube, "trilinear")):
        options = {"factor": (factor,) * (x.ndim - 2)}
        compare(
            "upsample_bilinear",
            options,
            lambda x, mode=mode: functional.interpolate(x, scale_factor=factor, mode=mode, align_corners=False),
            x,
        )
        compare("upsample_nearest", options, lambda x: functional.interpolate(x, scale_factor=factor), x)


@pytest.mark.parametrize("pairs", [((0, 0), (0, 0)), ((1, 0), (0, 2)), ((2, 2), (1, 3))])
@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (1, 7, 5, 1), (0, 5, 5, 2)])
def test_padding_and_cropping(pairs, shape):
    (top, bottom), (left, right) = pairs
    compare("pad", {"padding": pairs}, lambda x: functional.pad(x, (left, right, top, bottom)), normal(shape))
    compare("crop", {"cropping": pairs}, lambda x: functional.pad(x, (-left, -right, -top, -bottom)), normal(shape))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (1, 3, 1), (0, 4, 5), (2, 3, 4, 2, 6)])
@pytest.mark.parametrize(("alpha", "beta", "k"), [(1e-4, 0.75, 1.0), (2.0, 0.5, 2.0), (5.0, 1.5, 0.1), (0.0, 1.0, 3.0)])
def test_local_response_norm(size, shape, alpha, beta, k):
    options = {"size": size, "alpha": alpha, "beta": beta, "k": k}
    for x in (normal(shape), 50.0 * normal(shape, 4)):
        compare("local_response_norm", options, lambda x: functional.local_response_norm(x, size, alpha, beta, k), x)


def test_nan_wins_as_in_pytorch():
    x = normal((2, 6, 6, 2))
    x[np.random.default_rng(3).random(x.shape) < 0.2] = math.nan
    y, _ = ops.max_pool(x, window=(2, 3), stride=(1, 2), padding=((1, 1), (0, 0)))
    want = functional.max_pool2d(torch.tensor(channels_first(x).copy()), (2, 3), (1, 2), (1, 0))
    assert np.isnan(y).any()
    assert not np.isnan(y).all()
    np.testing.assert_array_equal(channels_first(y), want.numpy())


def test_a_network_of_all_of_them():
    network = xpnn.Network(
        xpnn.ZeroPadding2D(((1, 0), (0, 1))),
        xpnn.Conv2D(4, 3),
        xpnn.MaxPool2D(3, stride=2, padding=1),
        xpnn.UpSampling2D(2, interpolation="bilinear"),
        xpnn.AveragePool2D(2, stride=1, padding=1, count_padding=False),
        xpnn.Cropping2D(1),
        xpnn.UpSampling2D((1, 2)),
        xpnn.AdaptiveAveragePool2D((3, 4)),
        xpnn.GlobalAveragePool2D(),
        xpnn.Dense(2),
        dtype="float64",
        input_shape=(7, 6, 2),
    )
    x = normal((3, 7, 6, 2))
    parameters = {name: torch.tensor(value, requires_grad=True) for name, value in network.parameters.items()}
    h = functional.pad(torch.tensor(channels_first(x).copy()), (0, 1, 1, 0))
    h = functional.conv2d(h, parameters["1.weight"].permute(3, 2, 0, 1), parameters["1.bias"])
    h = functional.max_pool2d(h, 3, 2, 1)
    h = functional.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
    h = functional.avg_pool2d(h, 2, 1, 1, count_include_pad=False)[:, :, 1:-1, 1:-1]
    h = functional.adaptive_avg_pool2d(functional.interpolate(h, scale_factor=(1, 2)), (3, 4)).mean(dim=(2, 3))
    want = h @ parameters["9.weight"] + parameters["9.bias"]
    np.testing.assert_allclose(network.predict(x), want.detach().numpy(), **TOLERANCE)
    target = normal((3, 2), 5)
    functional.mse_loss(want, torch.tensor(target)).backward()
    _, gradients = network.loss_and_gradients(x, target, loss="mse")
    assert set(gradients) == set(parameters)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, parameters[name].grad.numpy(), err_msg=name, **TOLERANCE)
