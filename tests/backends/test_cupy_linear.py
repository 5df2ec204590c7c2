"""The linear map on CuPy against the same op on NumPy in float64."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError
from xpnn.layers import Run, Sequential
from xpnn.ops import linear as linear_op
from xpnn.ops import linear_chain
from xpnn.ops.linear import FUSABLE

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
WIDE_EPS = {"float64": 2.0**-52}
"""Of the type in which products are summed; float32's where it is not named."""


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
        for activation in (None, "relu", "gelu", "gelu_tanh"):
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
    for activation in ("relu", "gelu_tanh"):
        linear_op(x, weight, bias, activation=activation)  # the trials
    for activation in (None, "relu", "gelu", "gelu_tanh", "tanh"):
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


CHAINS = {
    "relu": ((17, 33), (24, 40, 8), ("relu", "relu", None)),
    "gelu_tanh": ((17, 33), (24, 40, 8), ("gelu_tanh", "gelu_tanh", None)),
    "odd lengths": ((5, 12), (13, 7, 3), ("gelu_tanh", "gelu_tanh", "gelu_tanh")),
    "3-D": ((3, 5, 16), (130, 8), ("relu", None)),
    "mixed": ((9, 12), (20, 7, 16), ("tanh", "relu", "gelu")),
    "ones": ((4, 5), (1, 6, 1), ("relu", "relu", "relu")),
    "one row": ((1, 16), (8, 4), ("relu", "sigmoid")),
    "single": ((6, 8), (4,), ("relu",)),
}
"""Shape of x, lengths of the results, activations."""


def chain_arrays(cupy, shape, sizes, dtype, without_bias=(), shift=0):
    """x, and the weights and biases as views of one array that begin `shift` elements after a multiple of 16 bytes."""
    theta = random_array(cupy, 46, (20000,), dtype)
    x = random_array(cupy, 47, shape, dtype)
    arrays, start, inputs = [], shift, shape[-1]
    for position, outputs in enumerate(sizes):
        weight = theta[start : start + inputs * outputs].reshape(inputs, outputs)
        weight *= float(inputs) ** -0.5
        start += 64 * (-(-inputs * outputs // 64))
        bias = None if position in without_bias else theta[start : start + outputs]
        start += 64 * (-(-outputs // 64))
        arrays += [weight, bias]
        inputs = outputs
    return x, arrays


def check_chain(cupy, x, arrays, dtype, **options):
    """The op on the device against its generic body on NumPy in float64; None where there is no gradient."""
    y, vjp = linear_chain(x, *arrays, **options)
    wanted, wanted_vjp = linear_chain(*[None if a is None else to_host(a) for a in (x, *arrays)], **options)
    dy = random_array(cupy, 48, wanted.shape, dtype)
    kept = [None if a is None else a.get() for a in (x, *arrays, dy)]
    results = (y, *vjp(dy))
    for got, right, to in zip(results, (wanted, *wanted_vjp(to_host(dy))), (x, x, *arrays), strict=True):
        if right is None:
            assert got is None
            continue
        assert got.shape == right.shape
        is_wide = dtype in ("float16", "bfloat16") and got is not y and to is not x and to.ndim == 2
        assert got.dtype == ("float32" if is_wide else dtype)
        # Each map rounds once; its error goes through the others. Where it decides about a sign, a gradient jumps.
        error = np.linalg.norm(to_host(got) - right)
        assert error <= (16 * EPS[dtype]) * np.linalg.norm(right) + 1e-30
    for array, before in zip((x, *arrays, dy), kept, strict=True):
        assert array is None or np.array_equal(array.get(), before)
    return results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_is_its_maps_one_behind_the_other(cupy, linear_way, dtype, chain):
    shape, sizes, activations = CHAINS[chain]
    for without_bias in ((), (0,)):
        for shift in (0, 1):
            x, arrays = chain_arrays(cupy, shape, sizes, dtype, without_bias, shift)
            check_chain(cupy, x, arrays, dtype, activations=activations)
            check_chain(cupy, x, arrays, dtype, activations=activations, input_gradient=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("chain", "names"),
    [
        ("relu", ("RELU_AUX_BIAS",)),
        ("relu", ("DRELU_BGRAD",)),
        ("relu", ("BIAS", "BGRADA", "RELU_BIAS", "DRELU_BGRAD")),
        ("gelu_tanh", ("GELU_AUX_BIAS",)),
        ("gelu_tanh", ("DGELU_BGRAD",)),
        ("gelu_tanh", ("BIAS", "BGRADA", "GELU_AUX_BIAS")),
    ],
)
def test_a_chain_without_some_epilogues(cupy, lt, emulated, monkeypatch, dtype, chain, names):
    plans = pytest.importorskip("xpnn_backends.cupy.product_plans")
    monkeypatch.setattr(plans, "_devices", {})  # what is refused is remembered
    epilogues = plans.library().lt.Epilogue
    shape, sizes, activations = CHAINS[chain]
    x, arrays = chain_arrays(cupy, shape, sizes, dtype)
    fused = check_chain(cupy, x, arrays, dtype, activations=activations)
    plans._devices.clear()
    with emulated.refusing(*[epilogues[name] for name in names]):
        apart = check_chain(cupy, x, arrays, dtype, activations=activations)
    for one, other in zip(fused, apart, strict=True):
        np.testing.assert_allclose(to_host(one), to_host(other), rtol=0, atol=8 * EPS[dtype] * abs(to_host(one)).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_no_product_takes_through_gelu_is_taken_from_the_z_that_one_has_kept(
    cupy, lt, emulated, monkeypatch, dtype
):
    """Where a later layout is refused: the rows of z are longer than the result's."""
    bodies = pytest.importorskip("xpnn_backends.cupy.bodies_linear")
    shape, sizes, activations = CHAINS["odd lengths"]
    x, arrays = chain_arrays(cupy, shape, sizes, dtype)
    monkeypatch.setattr(bodies.products, "through_activation", lambda *arguments: None)
    check_chain(cupy, x, arrays, dtype, activations=activations)


@pytest.mark.parametrize("chain", ["relu", "gelu_tanh"])
def test_some_maps_need_no_kernel_between_their_products(cupy, lt, emulated, chain):
    device = pytest.importorskip("emulated_gpu.device")
    shape, sizes, activations = CHAINS[chain]
    x, arrays = chain_arrays(cupy, shape, sizes, "float32")
    _, vjp = linear_chain(x, *arrays, activations=activations)  # with the trials
    dy = random_array(cupy, 49, (*shape[:-1], sizes[-1]), "float32")
    vjp(dy)
    products, launches = emulated.products(), device.counts().get("launches", 0)
    _, vjp = linear_chain(x, *arrays, activations=activations, input_gradient=False)
    assert emulated.products() - products == 3
    vjp(dy)
    assert emulated.products() - products == 3 + 5
    assert device.counts().get("launches", 0) == launches


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
def test_a_chain_keeps_nan(cupy, linear_way, activation):
    x, arrays = chain_arrays(cupy, (6, 16), (16, 8), "float32")
    x[1, 2] = float("nan")
    y, vjp = linear_chain(x, *arrays, activations=(activation, None))
    wanted, wanted_vjp = linear_chain(*map(to_host, (x, *arrays)), activations=(activation, None))
    dy = random_array(cupy, 50, (6, 8), "float32")
    dy[3, 4] = float("nan")
    for got, right in zip((y, *vjp(dy)), (wanted, *wanted_vjp(to_host(dy))), strict=True):
        assert np.array_equal(np.isnan(got.get()), np.isnan(right))


def test_a_chain_that_does_not_fit_goes_to_the_generic_body(cupy):
    x, arrays = chain_arrays(cupy, (0, 16), (16, 8), "float32")
    y, vjp = linear_chain(x, *arrays, activations=("relu", None))
    assert y.shape == (0, 8)
    assert [gradient.shape for gradient in vjp(y)] == [(0, 16), (16, 16), (16,), (16, 8), (8,)]
    with pytest.raises(ConfigError, match=r"got 4 weights and biases for activations=\('relu',\)"):
        linear_chain(x, *arrays, activations=("relu",))


def _perceptron():
    return (xpnn.Dense(24), xpnn.ReLU(), xpnn.Dense(16), xpnn.ReLU(), xpnn.Dense(8), xpnn.Tanh(), xpnn.Dense(3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_with_chains_trains_as_on_numpy(gpu, lt, dtype):
    numbers = np.random.default_rng(51)
    inputs, targets = numbers.standard_normal((64, 6)), numbers.integers(0, 3, 64)
    networks = []
    for backend in ("numpy", gpu.spec):
        network = xpnn.Network(*_perceptron(), backend=backend, dtype=dtype, seed=2, input_shape=(6,))
        network.fit(inputs, targets, loss="cross_entropy", optimizer=xpnn.SGD(0.1), epochs=4, batch_size=16, verbose=0)
        networks.append(network)
    one, other = networks
    assert list(one.parameters) == list(other.parameters)
    for name in one.parameters:
        tolerance = 2000 * EPS[dtype]
        got = gpu.to_host(other.parameters[name])
        np.testing.assert_allclose(got, one.parameters[name], rtol=0, atol=tolerance)


def test_sequential_chains_dense_layers_in_a_row(cupy, gpu, monkeypatch):
    """What becomes one op, and that the results are those of the layers one by one, under the same names."""

    class Doubled(xpnn.Dense):
        def forward(self, x, parameters, run, activation=None):
            y, backward = super().forward(2.0 * x, parameters, run, activation)

            def doubled(dy):
                dx, gradients = backward(dy)
                return 2.0 * dx, gradients

            return y, doubled

    shared = xpnn.Dense(6, 6)
    root = Sequential(
        xpnn.ReLU(), xpnn.Dense(6), shared, xpnn.ReLU(), shared, xpnn.ELU(), xpnn.Dense(6, bias=False), Doubled(6),
        xpnn.Dense(5), xpnn.ReLU(), xpnn.Dense(4),
    )  # fmt: skip
    tree, width = {}, 6
    for name, layer in root.children.items():
        if not isinstance(layer, xpnn.Dense):
            tree[name] = {}
            continue
        tree[name] = {"weight": random_array(cupy, int(name) + 60, (width, layer.sizes[-1]), "float64")}
        width = layer.sizes[-1]
        if layer.bias:
            tree[name]["bias"] = random_array(cupy, int(name) + 80, (width,), "float64")
    tree["4"] = tree["2"]
    x, called = random_array(cupy, 59, (7, 6), "float64"), []
    chain_op = xpnn.ops.linear_chain

    def counting(*arguments, **options):
        called.append(options["activations"])
        return chain_op(*arguments, **options)

    monkeypatch.setattr(xpnn.ops, "linear_chain", counting)
    results = []
    for way in ("chained", "one by one"):
        if way == "one by one":
            monkeypatch.setattr(root, "_chained_plan", None)
        for input_gradient in (True, False):
            y, backward = root.forward(x, tree, Run(input_gradient=input_gradient))
            dx, gradients = backward(y)
            assert (dx is not None) == input_gradient
            results.append((y, dx, gradients))
    assert called == 2 * [(None, "relu", None), ("relu", None)]
    for (y, dx, gradients), (other_y, other_dx, others) in zip(results[:2], results[2:], strict=True):
        assert {name: set(leaf) for name, leaf in gradients.items()} == {n: set(leaf) for n, leaf in others.items()}
        pairs = [(y, other_y)] + [(gradients[n][p], others[n][p]) for n in others for p in others[n]]
        pairs += [] if dx is None else [(dx, other_dx)]
        for one, other in pairs:
            np.testing.assert_allclose(to_host(one), to_host(other), rtol=1e-9, atol=1e-9)


def test_an_error_in_a_chain_names_the_layer(cupy, gpu):
    root = Sequential(xpnn.Dense(4, bias=False), xpnn.ReLU(), xpnn.Dense(2, bias=False))
    tree = {"0": {"weight": cupy.ones((3, 4))}, "1": {}, "2": {"weight": cupy.ones((5, 2))}}
    with pytest.raises(ValueError, match="matmul") as caught:
        root.forward(cupy.ones((7, 3)), tree, Run())
    wanted = "in the forward pass of layer 2 (Dense), whose input has shape (7, 4)"
    assert wanted in caught.value.__notes__
    tree["2"] = {"weight": cupy.ones((4, 2))}
    _, backward = root.forward(cupy.ones((7, 3)), tree, Run())
    with pytest.raises(ValueError, match="matmul") as caught:
        backward(cupy.ones((7, 3)))
    assert "in the backward pass of layers 0 to 2 (Dense)" in caught.value.__notes__


@pytest.fixture
def epilogues(lt, monkeypatch):
    """The names of the epilogues of all products that are started, those of trials but for the first time apart."""
    plans = pytest.importorskip("xpnn_backends.cupy.product_plans")
    run, started = plans.DeviceProducts.run, []

    def noting(device, a, b, y, epilogue="DEFAULT", *arguments, **options):
        done = run(device, a, b, y, epilogue, *arguments, **options)
        started.extend([epilogue] if done else [])
        return done

    monkeypatch.setattr(plans.DeviceProducts, "run", noting)
    return started


def test_a_network_with_gelu_trains_through_its_epilogues(gpu, lt, emulated, epilogues):
    """As on NumPy; they are met when the plans are made, and when the steps are captured as a graph."""
    numbers = np.random.default_rng(55)
    inputs, targets = numbers.standard_normal((64, 6)), numbers.integers(0, 3, 64)
    layers = (xpnn.Dense(24), xpnn.GELU("tanh"), xpnn.Dense(16), xpnn.GELU("tanh"), xpnn.Dense(3))
    networks = []
    for backend in ("numpy", gpu.spec):
        network = xpnn.Network(*layers, backend=backend, dtype="float32", seed=2, input_shape=(6,))
        network.fit(inputs, targets, loss="cross_entropy", optimizer=xpnn.SGD(0.1), epochs=4, batch_size=16, verbose=0)
        networks.append(network)
    assert epilogues.count("GELU_AUX_BIAS") > 2
    assert epilogues.count("DGELU_BGRAD") > 2
    one, other = networks
    for name in one.parameters:
        got = gpu.to_host(other.parameters[name])
        np.testing.assert_allclose(got, one.parameters[name], rtol=0, atol=2000 * EPS["float32"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_feed_forward_part_of_a_transformer_is_a_chain_where_nothing_is_dropped(
    cupy, gpu, lt, emulated, epilogues, rate, training
):
    block = xpnn.TransformerEncoderBlock(2, 24, rate, activation="gelu_tanh").children["feed_forward"]
    _, tree = block.build((5, 16))
    parameters = {
        name: {key: random_array(cupy, 56, parameter.shape, "float32") * 0.3 for key, parameter in of_map.items()}
        for name, of_map in tree.items()
    }
    x = random_array(cupy, 57, (3, 5, 16), "float32")
    linear_op(x, *parameters["expand"].values(), activation="gelu_tanh")  # the trials
    epilogues.clear()
    results = []
    for backend in (gpu, xpnn.get_backend("numpy")):
        given, theirs = (
            (x, parameters)
            if backend is gpu
            else (
                to_host(x),
                {name: {key: to_host(array) for key, array in of_map.items()} for name, of_map in parameters.items()},
            )
        )
        y, backward = block.forward(given, theirs, Run(training=training, seed=3))
        dx, gradients = backward(y)
        arrays = [y, dx, *(gradients[name][key] for name in tree for key in tree[name])]
        results.append([to_host(array) if backend is gpu else array for array in arrays])
    is_chain = not (training and rate)
    # Six products: one forward and two backward for each map.
    assert len(epilogues) == 6
    assert epilogues[0] == "GELU_AUX_BIAS"
    assert ("DGELU_BGRAD" in epilogues) == is_chain
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=100 * EPS["float32"] * abs(wanted).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chain", ["relu", "gelu_tanh", "odd lengths"])
def test_a_chain_in_a_graph(cupy, gpu, lt, dtype, chain):
    """Captured and replayed, it gives what it gives when it is called."""
    shape, sizes, activations = CHAINS[chain]
    x, arrays = chain_arrays(cupy, shape, sizes, dtype)
    dy = random_array(cupy, 52, (shape[0], sizes[-1]), dtype)

    def both():
        y, vjp = linear_chain(x, *arrays, activations=activations)
        return (y, *vjp(dy))

    both()  # plans and trials
    stream, runs_on = cupy.cuda.Stream(non_blocking=True), cupy.cuda.get_current_stream()
    pool = cupy.cuda.MemoryPool()  # the graph's memory stays its own
    with cupy.cuda.using_allocator(pool.malloc), stream:
        lt.share_workspace(runs_on, stream)
        stream.begin_capture()
        captured = both()
        graph = stream.end_capture()
    for seed in (53, 54):
        x[...] = random_array(cupy, seed, shape, dtype)
        wanted = both()
        graph.launch(runs_on)
        for one, other in zip(captured, wanted, strict=True):
            assert np.array_equal(to_host(one), to_host(other))
