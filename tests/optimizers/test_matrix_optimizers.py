"""LAMB, LARS, Adafactor, Muon and L-BFGS: by the papers' formulas, on shapes at the edge, in the life of a network."""

import numpy as np
import pytest

import xpnn
from xpnn.data import encode_target, load_dataset, split
from xpnn.layers import Conv2D, Dense, Flatten, Sequential
from xpnn.optimizers.by_parameter import ParameterOptimizer
from xpnn.parameters import Layout, collect

KINDS = [xpnn.LAMB, xpnn.LARS, xpnn.Adafactor, xpnn.Muon, xpnn.LBFGS]
TRAINED = [kind(0.01, ema=0.5) for kind in KINDS[:-1]] + [xpnn.LBFGS(0.01, history_size=2, ema=0.5)]
every_trained = pytest.mark.parametrize("optimizer", TRAINED, ids=lambda optimizer: optimizer.name)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def final_parameters(optimizer, layout, draw, steps):
    """The parameters by name after steps with drawn gradients."""
    theta = layout.join(draw(layout, 0))
    slots = optimizer.initial_slots(theta, layout)
    for number in range(steps):
        theta, slots = optimizer.apply(theta, layout.join(draw(layout, 1 + number)), slots, number, layout)
    return layout.split(theta)


@pytest.mark.parametrize("adapt_biases", [False, True])
@pytest.mark.parametrize("decay_biases", [False, True])
def test_lamb_is_algorithm_2_of_the_paper(adapt_biases, decay_biases, make_layout, draw):
    rate, beta1, beta2, epsilon, decay, steps = 0.02, 0.8, 0.95, 1e-4, 0.1, 30
    layout = make_layout()
    optimizer = xpnn.LAMB(rate, beta1, beta2, epsilon, decay, adapt_biases, decay_biases=decay_biases)
    got = final_parameters(optimizer, layout, draw, steps)
    for name, x in draw(layout, 0).items():
        is_matrix = x.ndim == 2
        m, v = np.zeros_like(x), np.zeros_like(x)
        for t in range(1, steps + 1):
            g = draw(layout, t)[name]
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            r = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + epsilon)
            u = r + (decay * x if is_matrix or decay_biases else 0.0)
            ratio = np.linalg.norm(x) / np.linalg.norm(u) if is_matrix or adapt_biases else 1.0
            x = x - rate * ratio * u
        np.testing.assert_allclose(got[name], x, rtol=1e-11, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("adapt_biases", [False, True])
@pytest.mark.parametrize("decay_biases", [False, True])
def test_lars_is_algorithm_1_of_the_paper(adapt_biases, decay_biases, make_layout, draw):
    rate, momentum, trust, decay, steps = 0.5, 0.9, 0.02, 0.1, 30
    layout = make_layout()
    optimizer = xpnn.LARS(rate, momentum, trust, decay, adapt_biases, decay_biases=decay_biases)
    got = final_parameters(optimizer, layout, draw, steps)
    for name, w in draw(layout, 0).items():
        is_matrix = w.ndim == 2
        beta = decay if is_matrix or decay_biases else 0.0
        v = np.zeros_like(w)
        for t in range(1, steps + 1):
            g = draw(layout, t)[name]
            norm = np.linalg.norm(w)
            local_rate = trust * norm / (np.linalg.norm(g) + beta * norm) if is_matrix or adapt_biases else 1.0
            v = momentum * v + rate * local_rate * (g + beta * w)
            w = w - v
        np.testing.assert_allclose(got[name], w, rtol=1e-11, atol=1e-14, err_msg=name)


@every_kind
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 40), (40, 2), (2, 3, 4, 5), (1, 1, 1), (3,), (1,)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_gradient_and_no_parameter_of_zeros_makes_a_nan(kind, shape, dtype, layout_of):
    """A zero gradient does not move parameters (beyond their decay); zero parameters learn all the same."""
    layout = layout_of(shape, dtype)
    optimizer = kind(weight_decay=0.0)
    ones, zeros = np.ones(shape, dtype), np.zeros(shape, dtype)
    for start, gradient in ((ones, zeros), (zeros, zeros), (zeros, ones), (ones, ones)):
        theta = layout.join({"p": start})
        slots = optimizer.initial_slots(theta, layout)
        for number in range(4):
            theta, slots = optimizer.apply(theta, layout.join({"p": gradient}), slots, number, layout)
        vectors = (theta, *slots.values())
        assert all(np.all(np.isfinite(block)) and block.dtype == dtype for blocks in vectors for block in blocks)
        moved = layout.split(theta)["p"] - start
        assert np.all(moved == 0) if gradient is zeros else np.all(moved < 0)


@pytest.fixture
def layout_of():
    """A function that gives the layout of one parameter "p" of a shape."""

    def make(shape, dtype="float64"):
        parameter = xpnn.Parameter(shape, xpnn.initializers.Zeros())
        entry = xpnn.parameters.Entry("p", 0, parameter, (("p",),))
        return Layout(xpnn.parameters.Structure((entry,), {"p": parameter}), dtype, False)

    return make


def test_adafactor_remembers_rows_and_columns_only():
    root = Sequential(Conv2D(5, 3), Flatten(), Dense(5 * 6 * 6, 4))
    layout = Layout(collect(root, root.build((8, 8, 3))[1]), "float32", False)
    theta, _ = layout.initialize(0, xpnn.get_backend("numpy"))
    optimizer = xpnn.Adafactor(ema=0.9)
    slots = optimizer.initial_slots(theta, layout)
    shapes = {
        (slot, name): part.shape
        for slot, vector in slots.items()
        if slot != "ema"
        for name, part in optimizer.slot_layout(slot, layout).split(vector).items()
    }
    assert shapes == {
        ("row_variance", "0.weight"): (3, 3, 3, 1),
        ("column_variance", "0.weight"): (3, 3, 1, 5),
        ("variance", "0.bias"): (5,),
        ("row_variance", "2.weight"): (180, 1),
        ("column_variance", "2.weight"): (1, 4),
        ("variance", "2.bias"): (4,),
    }
    assert slots["ema"][0].shape == theta[0].shape


def test_muon_makes_the_steps_of_matrices_orthogonal(layout_of):
    """With coefficients that converge: all singular values of the step are the learning rate times the scale."""
    shape = (2, 2, 3, 48)
    layout = layout_of(shape)
    optimizer = xpnn.Muon(0.5, iterations=40, coefficients=(1.875, -1.25, 0.375))
    theta = layout.join({"p": np.zeros(shape)})
    gradient = np.random.default_rng(0).normal(size=shape)
    slots = optimizer.initial_slots(theta, layout)
    theta, _ = optimizer.apply(theta, layout.join({"p": gradient}), slots, 0, layout)
    step = layout.split(theta)["p"].reshape(12, 48)
    np.testing.assert_allclose(step @ step.T, np.eye(12), atol=1e-12)  # rate 0.5, scale sqrt(48 / 12)
    left, _, right = np.linalg.svd(gradient.reshape(12, 48), full_matrices=False)
    np.testing.assert_allclose(step, -left @ right, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (40, 7), (7, 40), (1, 9)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    x = np.random.default_rng(1).normal(size=shape)
    y, _ = xpnn.ops.orthogonalize(x)
    values = np.linalg.svd(y, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
    again, _ = xpnn.ops.orthogonalize(1e200 * x)
    np.testing.assert_allclose(again, y, rtol=1e-9, atol=1e-12)


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(24, 6, 6, 2)), rng.integers(0, 3, 24)


def network(optimizer, epochs=3, dtype="float64"):
    """A trained network that has kernels, matrices, biases, and a frozen bias."""
    net = xpnn.Network(
        Conv2D(4, 3),
        xpnn.ReLU(),
        Flatten(),
        Dense(5),
        xpnn.Tanh(),
        Dense(3),
        dtype=dtype,
        seed=1,
        input_shape=(6, 6, 2),
    )
    net.freeze("3.bias")
    x, y = data()
    return net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=epochs, batch_size=None, verbose=0) and net


def on_host(net):
    return {name: np.array(net.backend.to_host(value)) for name, value in net.parameters.items()}


def memory(net):
    """The optimizer's memory as host arrays by slot and name."""
    state = net.training
    return {
        (slot, name): np.array(net.backend.to_host(part))
        for slot, vector in state.slots.items()
        for name, part in state.optimizer.slot_layout(slot, net.layout).split(vector).items()
    }


@pytest.mark.xpnn_rows(only=["jax", "torch", "strict"])
@every_trained
def test_a_training_moves_to_another_backend_and_back(optimizer, backend, dtype):
    """There it goes on as it would have gone on here: the memory went along."""
    stays, moves = network(optimizer, dtype=dtype), network(optimizer, dtype=dtype)
    before = memory(moves)
    moves.to(backend)
    after = memory(moves)
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[key], value) for key, value in before.items())
    for net in (stays, moves):
        net.fit(*data(), epochs=2, batch_size=None, resume=True, verbose=0)
    moves.to("numpy")
    tolerance = {"rtol": 1e-8, "atol": 1e-10} if dtype == "float64" else {"rtol": 1e-3, "atol": 1e-4}
    for mine, theirs in ((on_host(moves), on_host(stays)), (memory(moves), memory(stays))):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            scale = np.abs(value).max() if value.size else 1.0
            np.testing.assert_allclose(
                mine[key] / (scale or 1.0), value / (scale or 1.0), **tolerance, err_msg=str(key)
            )


@every_trained
def test_a_training_goes_on_from_a_file(optimizer, tmp_path):
    whole, half = network(optimizer, epochs=6), network(optimizer)
    half.save(tmp_path / "half.safetensors")
    again = xpnn.Network.load(tmp_path / "half.safetensors")
    assert again.training.optimizer == optimizer
    again.fit(*data(), epochs=3, batch_size=None, resume=True, verbose=0)
    for found, wanted in ((on_host(again), on_host(whole)), (memory(again), memory(whole))):
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[key], value) for key, value in wanted.items())


@every_trained
def test_freezing_and_thawing_keeps_the_memory_of_the_rest(optimizer):
    net = network(optimizer)
    before = memory(net)
    net.freeze("0")
    frozen = memory(net)
    assert frozen.keys() == {key for key in before if not key[1].startswith("0.")}
    assert all(np.array_equal(value, before[key]) for key, value in frozen.items())
    net.unfreeze()
    thawed = memory(net)
    assert {name for _, name in thawed} == set(net.parameters)
    assert all(np.array_equal(thawed[key], value) for key, value in frozen.items())
    fresh = {key: value for key, value in thawed.items() if key not in frozen}
    assert all(np.all(value == 0) for key, value in fresh.items() if key[0] != "ema")
    net.fit(*data(), epochs=2, batch_size=None, resume=True, verbose=0)
    assert all(np.all(np.isfinite(value)) for value in on_host(net).values())


@pytest.mark.parametrize(
    ("optimizer", "epochs"),
    [(xpnn.Muon(), 4), (xpnn.LAMB(0.01), 8), (xpnn.Adafactor(0.05), 8), (xpnn.LARS(1.0, trust=0.02), 12)],
    ids=lambda value: repr(value),
)
def test_the_handwritten_digits_are_learned(optimizer, epochs):
    digits = load_dataset("digits")
    images = digits.x / 16
    target = encode_target(digits.y, digits.target, digits.task, digits.class_names)
    trained_on, held_out = split(target, 0.2, 0)
    net = xpnn.Network(Dense(64), xpnn.ReLU(), Dense(10), dtype="float32", seed=0)
    options = {"loss": "cross_entropy", "epochs": epochs, "batch_size": 64, "verbose": 0}
    net.fit(images[trained_on], digits.y[trained_on], optimizer=optimizer, **options)
    found = net.predict(images[held_out]).argmax(axis=-1)
    assert np.mean(found == digits.y[held_out]) > 0.93


def test_an_optimizer_of_your_own_by_parameter(make_layout, draw):
    """Gradient descent with steps of length 1 for each parameter, which are counted for each of its columns."""

    class UnitSteps(ParameterOptimizer):
        name = "unit_steps"

        @property
        def slot_names(self):
            return ("count",)

        def slot_shape(self, slot, shape):
            return shape[-1:] if len(shape) == 2 else None

        def update(self, theta, gradient, slots, numbers, decay):
            norm, _ = xpnn.ops.global_norm(gradient)
            new = theta - numbers[0] * gradient / norm
            return (new, *(count + 1.0 for count in slots))

    optimizer = UnitSteps(0.5)
    for blocked in (False, True):
        layout = make_layout(blocked=blocked)
        start, gradient = draw(layout, 0), draw(layout, 1)
        theta = layout.join(start)
        slots = optimizer.initial_slots(theta, layout)
        for number in range(3):
            theta, slots = optimizer.apply(theta, layout.join(gradient), slots, number, layout)
        for name, part in layout.split(theta).items():
            expected = start[name] - 1.5 * gradient[name] / np.linalg.norm(gradient[name])
            np.testing.assert_allclose(part, expected, rtol=1e-13, atol=1e-15)
        counts = optimizer.slot_layout("count", layout).split(slots["count"])
        assert {name: list(part) for name, part in counts.items()} == {"0.weight": [3.0] * 5, "1.weight": [3.0] * 2}
