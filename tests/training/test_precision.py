"""Precisions: what is computed in half precision and what is not, the loss scale, and what is refused."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import xpnn
from xpnn.dispatch import namespace
from xpnn.errors import BackendError, ConfigError
from xpnn.layers.layer import Layer, Parameter
from xpnn.training.precision import FIRST_SCALE, GROWTH_INTERVAL, Scaling, precision_for, scaling_from
from xpnn_backends.numpy_backend import NumpyBackend

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
HALF = ["bfloat16", "float16"]
on_half_rows = pytest.mark.xpnn_rows(only=["torch", "jax", "cupy"], dtypes="float32")
on_one_row = pytest.mark.xpnn_rows(only=["torch", "cupy"], dtypes="float32")


def blobs(samples=96):
    """Three clouds of points, one for each class, that lie well apart."""
    generator = np.random.default_rng(0)
    labels = np.arange(samples) % 3
    centers = np.array([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    return (centers[labels] + 0.3 * generator.standard_normal((samples, 2))).astype("float32"), labels


def network(backend, precision="float32", **options):
    layers = xpnn.Dense(2, 16), xpnn.BatchNorm(), xpnn.ReLU(), xpnn.Dropout(0.1), xpnn.Dense(3)
    return xpnn.Network(*layers, backend=backend, precision=precision, **options)


def on_host(backend, tree):
    """The arrays of nested tuples and dicts on the host, those of a dict in the order of their names."""
    if isinstance(tree, dict):
        return [array for name in sorted(tree) for array in on_host(backend, tree[name])]
    if isinstance(tree, tuple):
        return [array for part in tree for array in on_host(backend, part)]
    return [np.array(backend.to_host(tree))]


def assert_same(first, second):
    assert len(first) == len(second)
    for mine, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, other)


def numbers(scaling):
    return tuple(float(part) for part in scaling)


@on_half_rows
@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_training_converges(precision, backend, dtype):
    x, y = blobs()
    net = network(backend, precision)
    net.fit(x, y, loss="cross_entropy", optimizer=xpnn.Adam(1e-2), epochs=10, verbose=0)
    found = net.evaluate(x, y, metrics=["accuracy"])
    assert found["accuracy"] == 1.0
    assert found["loss"] < 0.1
    assert bool(net.training.scaling) == (precision == "float16")


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_losses_follow_those_of_float32(precision, backend, dtype):
    """Ten steps of descent: each rounds activations and gradients by half an eps, and steps are small."""
    x, y = blobs()
    losses = []
    for each in ("float32", precision):
        history = network(backend, each).fit(
            x, y, loss="cross_entropy", optimizer=xpnn.SGD(0.05), epochs=10, batch_size=None, verbose=0
        )
        losses.append(history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=4 * EPS[precision])
    assert losses[1] != losses[0]


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_parameters_results_and_statistics_stay_float32(precision, backend, dtype):
    x, y = blobs()
    net = network(backend, precision)
    state, step = net.initial_state("adam"), net.step("cross_entropy", "adam")
    state, loss = step(state, net.prepare(x, y, "cross_entropy"))
    float32 = backend.dtype("float32")
    assert loss.dtype == float32
    assert all(block.dtype == float32 for block in (*state.theta, *state.buffers.values(), *state.scaling))
    assert all(block.dtype == float32 for vector in state.slots.values() for block in vector)
    net.set_state(state)
    assert net.predict(x).dtype == np.float32
    _, gradients = net.loss_and_gradients(x, y, "cross_entropy")
    assert all(gradient.dtype == float32 for gradient in gradients.values())


class Spy(Layer):
    """Gives what it gets, multiplied by its weight, and notes the dtypes of both."""

    seen: list = []  # noqa: RUF012 (tests read it here)

    def build(self, input_shape):
        return input_shape, {"weight": Parameter(input_shape, xpnn.initializers.Ones())}

    def forward(self, x, parameters, run):
        weight = parameters["weight"]
        Spy.seen.append((str(x.dtype).rpartition(".")[2], str(weight.dtype).rpartition(".")[2]))

        def backward(dy):
            Spy.seen.append(str(dy.dtype).rpartition(".")[2])
            return dy * weight, {"weight": (dy * x).sum(0)}

        return x * weight, backward


@on_one_row
@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_see_half_precision(precision, frozen, backend, dtype):
    x, y = blobs()
    net = xpnn.Network(Spy(), xpnn.Dense(3), backend=backend, precision=precision, input_shape=(2,))
    if frozen:
        net.freeze("0")
    Spy.seen.clear()
    net.fit(x, y, loss="cross_entropy", optimizer="sgd", verbose=0, batch_size=None)
    assert Spy.seen == [(precision, precision), precision]
    Spy.seen.clear()
    net.predict(x)
    net.evaluate(x, y)
    assert set(Spy.seen) == {(precision, precision)}


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_indices_are_not_rounded(precision, backend, dtype):
    """300 is no number of bfloat16: as one, it would be another row."""
    net = xpnn.Network(xpnn.Embedding(400, 4), backend=backend, precision=precision, input_shape=(1,))
    rows = np.array([[300], [301], [399]])
    table = backend.to_host(net.parameters["0.weight"])
    np.testing.assert_allclose(net.predict(rows)[:, 0], table[[300, 301, 399]], rtol=EPS[precision])


@on_one_row
@pytest.mark.parametrize("precision", HALF)
def test_padding_that_is_rounded_is_still_padding(precision, backend, dtype):
    """Neither dtype has the number -999.3."""
    x = np.array([[[1.0], [2.0], [-999.3]], [[3.0], [-999.3], [-999.3]]], "float32")
    layers = xpnn.Masking(-999.3), xpnn.RNN(4)
    exact = xpnn.Network(*layers, backend=backend, input_shape=(3, 1))
    half = xpnn.Network(*layers, backend=backend, precision=precision, input_shape=(3, 1))
    np.testing.assert_allclose(half.predict(x), exact.predict(x), atol=4 * EPS[precision])


@on_one_row
def test_a_loss_of_nothing_has_gradients_of_zero(backend, dtype):
    """The scale of a gradient of zeros is finite."""
    net = xpnn.Network(xpnn.Dense(2, 1), backend=backend, precision="float16")
    target = net.predict(np.ones((4, 2), "float32"))
    loss, gradients = net.loss_and_gradients(np.ones((4, 2), "float32"), target, "mse")
    assert float(loss) == 0.0
    assert all(not np.any(net.backend.to_host(gradient)) for gradient in gradients.values())


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_gradients_are_near_those_of_float64(precision, backend, dtype):
    """Three matrix products and two activations lie behind a gradient: each rounds once, by half an eps."""
    x, y = blobs()
    layers = xpnn.Dense(2, 16), xpnn.Tanh(), xpnn.Dense(16, 16), xpnn.Tanh(), xpnn.Dense(16, 3)
    exact = xpnn.Network(*layers, backend="numpy", dtype="float64")
    net = xpnn.Network(*layers, backend=backend, precision=precision)
    net.set_parameters({name: np.array(value, "float32") for name, value in exact.parameters.items()})
    want_loss, want = exact.loss_and_gradients(x, y, "cross_entropy")
    loss, gradients = net.loss_and_gradients(x, y, "cross_entropy")
    np.testing.assert_allclose(float(loss), float(want_loss), rtol=4 * EPS[precision])
    for name, gradient in gradients.items():
        error = np.linalg.norm(backend.to_host(gradient) - want[name]) / np.linalg.norm(want[name])
        assert error < 4 * EPS[precision], name
        assert error > 0


@on_half_rows
def test_small_gradients_survive_float16(backend, dtype):
    """The gradient of the loss is about 1e-8 here: unscaled, float16 would make it 0."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((256, 3)).astype("float32")
    y = 1e-6 * generator.standard_normal((256, 2)).astype("float32")
    net = xpnn.Network(xpnn.Dense(3, 2, bias=False), backend=backend, precision="float16")
    weight = 1e-6 * generator.standard_normal((3, 2)).astype("float32")
    net.set_parameters({"0.weight": weight})
    optimizer = xpnn.SGD(1.0)
    batch = net.prepare(x, y, "mse")
    state, _ = net.step("mse", optimizer)(net.initial_state(optimizer), batch)
    net.set_state(state)
    half = weight.astype("float16").astype("float64")
    x_half = x.astype("float16").astype("float64")
    want = x_half.T @ (2.0 / y.size * (x_half @ half - y))
    assert np.max(np.abs(2.0 / y.size * (x_half @ half - y))) < 2.0**-24
    got = weight - backend.to_host(net.parameters["0.weight"])
    # The output of the network is so small that float16 has few digits for it.
    np.testing.assert_allclose(got, want, atol=0.1 * np.max(np.abs(want)))
    assert np.max(np.abs(want)) > 0


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_updates_smaller_than_a_rounding_add_up(precision, backend, dtype):
    """A weight of 1 that each of 20 steps changes by eps / 100: in half precision it would stay 1."""
    net = xpnn.Network(xpnn.Dense(1, 1, bias=False), backend=backend, precision=precision)
    net.set_parameters({"0.weight": np.ones((1, 1), "float32")})
    eps = EPS[precision]
    optimizer = xpnn.SGD(eps / 100)
    step, state = net.step("mae", optimizer), net.initial_state(optimizer)
    if precision == "float16":
        # The gradient is 1, which the first scale, 2^16, would make larger than float16 holds.
        state = state._replace(scaling=scaling_from((1024.0, 0.0), backend))
    batch = net.prepare(np.ones((1, 1), "float32"), np.zeros((1, 1), "float32"), "mae")
    for _ in range(20):
        state, _ = step(state, batch)
    net.set_state(state)
    weight = float(backend.to_host(net.parameters["0.weight"])[0, 0])
    assert weight == pytest.approx(1.0 - 0.2 * eps, abs=20 * 2.0**-24)


@on_half_rows
@pytest.mark.parametrize("optimizer", [xpnn.Adam(1e-3, ema=0.9), xpnn.SGD(1e-3, momentum=0.9)], ids=["adam", "sgd"])
def test_a_step_that_overflows_is_left_out_and_the_scale_halves(optimizer, backend, dtype):
    x, _ = blobs()
    net = network(backend, "float16")
    step, state = net.step("mse", optimizer), net.initial_state(optimizer)
    targets = np.full((len(x), 3), 3000.0, "float32")
    # The gradient of the loss is about 2 * 3000 / (96 * 3) = 21, and 21 * 2^16 is more than float16 holds.
    batch = net.prepare(x, targets, "mse")
    skipped = 0
    while True:
        before = on_host(backend, (state.theta, state.slots, state.buffers))
        scale, good_steps = numbers(state.scaling)
        state, loss = step(state, batch)
        assert np.isfinite(float(loss))
        assert int(state.step) == skipped + 1
        if numbers(state.scaling)[0] == scale:
            break
        assert numbers(state.scaling) == (scale / 2, 0.0)
        assert_same(on_host(backend, (state.theta, state.slots, state.buffers)), before)
        skipped += 1
    assert skipped >= 2
    assert numbers(state.scaling) == (FIRST_SCALE / 2**skipped, good_steps + 1.0)
    after = on_host(backend, (state.theta, state.slots, state.buffers))
    assert all(np.all(np.isfinite(array)) for array in after)
    assert any(not np.array_equal(mine, other) for mine, other in zip(after, before, strict=True))


@on_half_rows
@pytest.mark.parametrize(
    ("scale", "good_steps", "want"),
    [
        (1024.0, GROWTH_INTERVAL - 2.0, (1024.0, GROWTH_INTERVAL - 1.0)),
        (1024.0, GROWTH_INTERVAL - 1.0, (2048.0, 0.0)),
        (2.0**24, GROWTH_INTERVAL - 1.0, (2.0**24, 0.0)),
    ],
    ids=["not yet", "grows", "largest"],
)
def test_the_scale_grows_after_good_steps(scale, good_steps, want, backend, dtype):
    x, _ = blobs()
    net = xpnn.Network(xpnn.Dense(2, 1), backend=backend, precision="float16")
    # What the network gives is what is wanted: the gradient is 0, which no scale makes too large.
    batch = net.prepare(x * 0, np.zeros((len(x), 1), "float32"), "mse")
    state = net.initial_state("sgd")._replace(scaling=scaling_from((scale, good_steps), backend))
    state, _ = net.step("mse", "sgd")(state, batch)
    assert numbers(state.scaling) == want


@on_half_rows
def test_the_scale_has_a_smallest_value(backend, dtype):
    x, _ = blobs()
    net = xpnn.Network(xpnn.Dense(2, 1), backend=backend, precision="float16")
    batch = net.prepare(x, np.ones((len(x), 1), "float32"), "mae")
    state = net.initial_state("sgd")._replace(scaling=scaling_from((2.0**-24, 5.0), backend))
    inputs, targets, weight = batch
    state, _ = net.step("mae", "sgd")(state, (inputs * float("inf"), targets, weight))
    assert numbers(state.scaling) == (2.0**-24, 0.0)


@on_one_row
def test_saving_and_resuming_go_on_with_the_same_scale(backend, dtype, tmp_path):
    x, y = blobs()
    settings = {"loss": "cross_entropy", "optimizer": "adam", "verbose": 0}
    whole = network(backend, "float16")
    whole.fit(x, y, epochs=4, **settings)
    first = network(backend, "float16")
    first.fit(x, y, epochs=2, **settings)
    first.training = first.training._replace(scaling=scaling_from(numbers(first.training.scaling), backend))
    first.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend=backend, precision="float16")
    assert numbers(again.training.scaling) == (FIRST_SCALE, 6.0)
    again.fit(x, y, epochs=2, resume=True, verbose=0)
    assert numbers(again.training.scaling) == numbers(whole.training.scaling) == (FIRST_SCALE, 12.0)
    assert_same(on_host(backend, again._theta), on_host(backend, whole._theta))


@on_one_row
def test_a_file_says_no_precision(backend, dtype, tmp_path):
    x, y = blobs()
    net = network(backend, "float16")
    net.fit(x, y, loss="cross_entropy", optimizer="adam", verbose=0)
    net.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")
    assert again.precision == "float32"
    again.fit(x, y, resume=True, verbose=0)
    assert again.training.scaling == ()


def test_files_without_a_scale_are_read(tmp_path):
    """As an xpnn without precisions wrote them."""
    x, y = blobs()
    net = network("numpy")
    net.fit(x, y, loss="cross_entropy", optimizer="adam", verbose=0)
    net.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        description = json.loads(file.metadata()["xpnn"])
    del description["training"]["scaling"]
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "old.safetensors", {"xpnn": json.dumps(description)})
    assert xpnn.Network.load(tmp_path / "old.safetensors").training.scaling == ()


@pytest.mark.parametrize("scaling", [[0.0, 1.0], [-1.0, 1.0], ["many", 1.0], [1.0], [1.0, -1.0], 5])
def test_a_damaged_scale_is_named(scaling, tmp_path):
    x, y = blobs()
    net = network("numpy")
    net.fit(x, y, loss="cross_entropy", optimizer="adam", verbose=0)
    net.save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        description = json.loads(file.metadata()["xpnn"])
    description["training"]["scaling"] = scaling
    save_file(load_file(tmp_path / "m.safetensors"), tmp_path / "bad.safetensors", {"xpnn": json.dumps(description)})
    with pytest.raises(xpnn.errors.CheckpointError, match="cannot be built"):
        xpnn.Network.load(tmp_path / "bad.safetensors")


@on_one_row
def test_the_scale_moves_with_the_network(backend, dtype):
    x, y = blobs()
    net = network(backend, "float16")
    net.fit(x, y, loss="cross_entropy", optimizer="adam", verbose=0)
    before = numbers(net.training.scaling)
    net.to("numpy", precision="float32")
    assert isinstance(net.training.scaling, Scaling)
    assert numbers(net.training.scaling) == before
    assert net.precision == "float32"


@on_half_rows
def test_the_precision_can_change_at_any_time(backend, dtype):
    x, y = blobs()
    net = network(backend)
    exact = net.predict(x)
    net.precision = "bfloat16"
    rough = net.predict(x)
    assert net.to(precision="float32") is net
    np.testing.assert_array_equal(net.predict(x), exact)
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=8 * EPS["bfloat16"] * np.max(np.abs(exact)))
    net.fit(x, y, loss="cross_entropy", optimizer="adam", verbose=0)
    net.precision = "float16"
    net.fit(x, y, resume=True, verbose=0)
    assert numbers(net.training.scaling) == (FIRST_SCALE, 3.0)


def test_every_way_to_compute_enters_the_precision(monkeypatch):
    entered = []

    @contextmanager
    def computing(self, precision):
        entered.append(precision)
        yield

    monkeypatch.setattr(NumpyBackend, "precisions", ("float32", "tf32"))
    monkeypatch.setattr(NumpyBackend, "computing", computing)
    x, y = blobs()
    net = network("numpy", "tf32")
    for call in (
        lambda: net.predict(x),
        lambda: net.evaluate(x, y, loss="cross_entropy"),
        lambda: net.loss_and_gradients(x, y, "cross_entropy"),
        lambda: net.fit(x, y, loss="cross_entropy", optimizer="sgd", verbose=0),
    ):
        entered.clear()
        call()
        assert entered
        assert set(entered) == {"tf32"}
    net.precision = "float32"
    entered.clear()
    net.predict(x)
    net.fit(x, y, loss="cross_entropy", optimizer="sgd", verbose=0)
    assert entered == []


def test_unknown_precisions_and_dtypes_are_refused():
    with pytest.raises(ConfigError, match="precision='half' is unknown; known: float32, tf32, bfloat16, float16"):
        network("numpy", "half")
    with pytest.raises(ConfigError, match=r"precision='bfloat16' goes with dtype=\"float32\""):
        network("numpy", "bfloat16", dtype="float64")
    assert network("numpy", dtype="float64").precision == "float32"


@pytest.mark.parametrize("backend", ["numpy", "strict"])
@pytest.mark.parametrize("precision", ["tf32", *HALF])
def test_backends_without_the_precision_say_what_has_it(backend, precision):
    with pytest.raises(BackendError, match=f"'{backend}' computes in float32, not with precision='{precision}'.*cupy"):
        network(backend, precision)
    net = network(backend)
    with pytest.raises(BackendError, match="cupy"):
        net.precision = precision
    assert net.precision == "float32"


@on_one_row
def test_a_network_in_half_precision_does_not_move_where_there_is_none(backend, dtype):
    net = network(backend, "bfloat16")
    with pytest.raises(BackendError, match='precision="float32"'):
        net.to("numpy")
    assert net.backend is backend
    assert net.precision == "bfloat16"


class Widening(Layer):
    """A layer whose gradient is of another dtype than its parameter."""

    def __init__(self, gradient_dtype):
        self.gradient_dtype = gradient_dtype

    def build(self, input_shape):
        return input_shape, {"weight": Parameter(input_shape, xpnn.initializers.Ones())}

    def forward(self, x, parameters, run):
        weight = parameters["weight"]

        def backward(dy):
            xp = namespace(x)
            return dy * weight, {"weight": xp.sum(xp.astype(dy * x, getattr(xp, self.gradient_dtype)), axis=0)}

        return x * weight, backward


@on_half_rows
@pytest.mark.parametrize("precision", HALF)
def test_a_layer_may_give_gradients_in_float32(precision, backend, dtype):
    x, y = blobs()
    net = xpnn.Network(Widening("float32"), xpnn.Dense(3), backend=backend, precision=precision, input_shape=(2,))
    history = net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=3, verbose=0)
    assert history["loss"][-1] < history["loss"][0]
    net.loss_and_gradients(x, y)


@on_one_row
def test_a_gradient_of_another_dtype_names_the_layer(backend, dtype):
    x, y = blobs()
    net = xpnn.Network(Widening("float32"), Widening("float64"), xpnn.Dense(3), backend=backend, input_shape=(2,))
    net.precision = "bfloat16"
    with pytest.raises(ConfigError, match=r"'1' gives a gradient of 'weight' .*float64"):
        net.fit(x, y, loss="cross_entropy", optimizer="sgd", verbose=0)


def test_float32_leaves_a_step_as_it_is():
    precision = precision_for("float32", "float64", xpnn.get_backend("numpy"))

    def step(state, batch):
        return state, batch

    x = np.ones(3)
    assert precision.around(step) is step
    assert precision.lowered(x) is x
    assert precision.raised(x) is x
    assert precision.parameter_gradient((x,), ())[0] is x
    assert network("numpy").initial_state("sgd").scaling == ()


@on_one_row
def test_a_state_without_a_scale_is_refused(backend, dtype):
    x, y = blobs()
    net = network(backend)
    state = net.initial_state("sgd")
    net.precision = "float16"
    with pytest.raises(ConfigError, match="has no loss scale"):
        net.step("cross_entropy", "sgd")(state, net.prepare(x, y, "cross_entropy"))


def test_the_precision_is_shown():
    assert "precision" not in repr(network("numpy"))


@on_one_row
def test_half_precision_is_shown_and_copied(backend, dtype):
    import copy

    net = network(backend, "bfloat16")
    assert "precision='bfloat16'" in repr(net)
    assert copy.deepcopy(net).precision == "bfloat16"
