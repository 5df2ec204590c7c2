"""The linear map on CuPy against the same op on NumPy in float64."""

import sys

import numpy as np
import pytest

from xpnn.ops import linear as linear_op
from xpnn.ops.linear import FUSABLE

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
WIDE_EPS = {"float64": 2.0**-52}
"""Of the type in which products are summed; float32's where it is not named."""


@pytest.fixture
def cupy(gpu):
    cupy = pytest.importorskip("cupy")
    with gpu.context():
        yield cupy


@pytest.fixture
def products(gpu):
    from xpnn_backends.cupy import products

    return products


@pytest.fixture
def lt(products):
    """Products through cublasLt, or a skip that says why not."""
    reason = products.why_not()
    if reason is not None:
        pytest.skip(f"no cublasLt here: {reason}")
    return products


@pytest.fixture
def emulated(lt):
    """The switches of the emulated cublasLt."""
    module = sys.modules.get("emulated_gpu.cublaslt")
    if module is None:
        pytest.skip("a GPU's cublasLt cannot be told to refuse; the emulated one can (tests/emulated_gpu)")
    return module


def to_host(x):
    return np.asarray(x.get(), dtype=np.float64)


def random_array(cupy, seed, shape, dtype, layout="rows"):
    """Random numbers on the device, whose last two axes lie in memory as `layout` says."""
    numbers = np.random.default_rng(seed)

    def make(shape):
        return cupy.asarray(numbers.standard_normal(shape).astype(np.float32)).astype(dtype)

    if layout == "columns" and len(shape) > 1:
        return cupy.swapaxes(make((*shape[:-2], shape[-1], shape[-2])), -1, -2)
    if layout == "sliced":
        return make(tuple(2 * length + 1 for length in shape))[tuple(slice(1, 2 * length, 2) for length in shape)]
    if layout == "reversed":
        return make(shape)[..., ::-1]
    return make(shape)


@pytest.fixture(params=["fused", "refused epilogues", "CuPy alone"])
def linear_way(request, products, monkeypatch):
    """cublasLt with its epilogues, without them, and CuPy's own products."""
    if request.param == "CuPy alone":
        monkeypatch.setattr(products, "library", lambda: "nvmath is not installed")
    elif products.why_not() is not None:
        pytest.skip(f"no cublasLt here: {products.why_not()}")
    elif request.param == "refused epilogues":
        monkeypatch.setattr(products, "_may_fuse", lambda a, b: False)
    return request.param


def check_linear(cupy, x, weight, bias, dtype, dy_of=lambda dy: dy, **options):
    """The op on the device against itself on NumPy in float64."""
    y, vjp = linear_op(x, weight, bias, **options)
    hosts = [None if array is None else to_host(array) for array in (x, weight, bias)]
    wanted, wanted_vjp = linear_op(*hosts, **options)
    dy = dy_of(random_array(cupy, 40, wanted.shape, dtype))
    dy_host = to_host(dy)
    given = vjp(dy)
    gradients = wanted_vjp(dy_host)
    x_size, weight_size = abs(hosts[0]), abs(hosts[1])
    flat_x = x_size.reshape(-1, x_size.shape[-1])
    flat_dy = abs(dy_host).reshape(-1, dy_host.shape[-1])
    bias_size = 0.0 if bias is None else abs(hosts[2])
    magnitudes = [
        x_size @ weight_size + bias_size,
        abs(dy_host) @ weight_size.T,
        flat_x.T @ flat_dy,
        flat_dy.sum(0),
    ]
    # Half precision rounds z, what is kept of it, f'(z) dy and the result; the sums are wide.
    wide = WIDE_EPS.get(dtype, EPS["float32"])
    terms = max(x.shape[-1], flat_dy.shape[0], weight.shape[1]) + 8
    for got, right, magnitude, to in zip(
        (y, *given), (wanted, *gradients), magnitudes, (x, x, weight, bias), strict=True
    ):
        if right is None:
            assert got is None
            continue
        assert got.shape == right.shape
        wide_gradient = dtype in ("float16", "bfloat16") and to is weight
        assert got.dtype == ("float32" if wide_gradient else to.dtype)
        rounding = (6 * EPS[dtype] + 2 * terms * wide) * np.maximum(magnitude, 0.1 if dtype == "float16" else 0.0)
        assert np.all(abs(to_host(got) - right) <= rounding)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *FUSABLE])
def test_linear(cupy, linear_way, dtype, activation):
    for shape, columns in [((17, 33), 15), ((2, 5, 16), 8), ((1, 1), 1), ((4, 1), 3), ((1, 5), 1), ((7,), 4)]:
        x = random_array(cupy, 37, shape, dtype)
        weight = random_array(cupy, 38, (shape[-1], columns), dtype) * 0.3
        bias = random_array(cupy, 39, (columns,), dtype)
        check_linear(cupy, x, weight, bias, dtype, activation=activation)
        check_linear(cupy, x, weight, None, dtype, activation=activation, input_gradient=False)


def test_linear_on_views(cupy, linear_way):
    theta = random_array(cupy, 41, (2000,), "float32")
    weight, bias = theta[64 : 64 + 200].reshape(20, 10), theta[320:330]
    for x in (
        random_array(cupy, 42, (9, 20), "float32", "columns"),
        random_array(cupy, 43, (3, 4, 20), "float32", "sliced"),
        random_array(cupy, 44, (9, 20), "float32", "reversed"),
    ):
        for activation in (None, "relu", "gelu"):
            check_linear(cupy, x, weight, bias, "float32", activation=activation)
            check_linear(cupy, x, weight, theta[321:331], "float32", activation=activation)
            check_linear(
                cupy,
                x,
                weight,
                bias,
                "float32",
                lambda dy: cupy.broadcast_to(dy[..., :1], dy.shape),
                activation=activation,
            )


def test_linear_on_what_it_leaves_to_the_generic_body(cupy, gpu):
    weight = cupy.ones((4, 3), "float32")
    y, vjp = linear_op(cupy.ones((0, 4), "float32"), weight, cupy.ones(3, "float32"), activation="relu")
    assert y.shape == (0, 3)
    dx, dweight, dbias = vjp(y)
    assert (dx.shape, dweight.shape, dbias.shape) == ((0, 4), (4, 3), (3,))
    assert float(abs(dweight).sum() + abs(dbias).sum()) == 0.0


def test_linear_is_one_product_forward_and_two_backward(cupy, lt, emulated):
    x, weight, bias = (random_array(cupy, 45, shape, "float32") for shape in ((8, 16), (16, 12), (12,)))
    linear_op(x, weight, bias, activation="relu")  # the trial whether NaN stays
    for activation in (None, "relu", "tanh"):
        start = emulated.products()
        y, vjp = linear_op(x, weight, bias, activation=activation)
        assert emulated.products() - start == 1
        vjp(y)
        assert emulated.products() - start == 3
        _, vjp = linear_op(x, weight, bias, activation=activation, input_gradient=False)
        vjp(y)
        assert emulated.products() - start == 5


def test_linear_keeps_nan(cupy, linear_way):
    x = cupy.ones((4, 8), "float32")
    x[1, 2] = float("nan")
    y, vjp = linear_op(x, cupy.ones((8, 8), "float32"), cupy.ones(8, "float32"), activation="relu")
    assert np.array_equal(np.isnan(y.get()).all(axis=1), [False, True, False, False])
    assert np.array_equal(np.isnan(vjp(cupy.ones((4, 8), "float32"))[1].get()).any(axis=1), np.arange(8) == 2)
