"""What layers keep from step to step, the mask of a forward pass, and layers that take several arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnn
from xpnn.dispatch import namespace
from xpnn.errors import CheckError, ConfigError
from xpnn.layers.layer import Backward, Buffer, Layer, Parameter, Run, Shape, Tree

DATA = np.random.default_rng(0).normal(1.0, 2.0, (32, 3))
TARGETS = DATA[:, :2] - 1.0


class Centered(Layer):
    """x minus a running mean that a training step moves by `momentum` of the way to the batch's mean."""

    def __init__(self, momentum: float = 0.25) -> None:
        self.momentum = momentum

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        return input_shape, {"running_mean": Buffer(input_shape, xpnn.initializers.Zeros())}

    def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
        kept = parameters["running_mean"]
        mean = namespace(x).mean(x, axis=0)

        def backward(dy: Any) -> tuple[Any, Tree]:
            return dy, {"running_mean": self.momentum * (mean - kept)}

        return x - kept, backward


def network(*layers: Any, **options: Any) -> xpnn.Network:
    options = {"dtype": "float64", "backend": "numpy", **options}
    return xpnn.Network(*layers, xpnn.Dense(2), **options)


def train(net: xpnn.Network, epochs: int = 1, **options: Any) -> xpnn.Network:
    net.fit(DATA, TARGETS, loss="mse", optimizer="sgd", epochs=epochs, verbose=0, **{"batch_size": 8, **options})
    return net


def means_of_batches(seed: int = 0) -> list[Any]:
    order = xpnn.random.permutation(seed, xpnn.random.stream(xpnn.random.SHUFFLE), 0, 32)
    return [DATA[order[start : start + 8]].mean(axis=0) for start in range(0, 32, 8)]


def test_a_step_adds_the_change_to_the_buffer(backend: Any, dtype: str) -> None:
    net = train(network(Centered(), backend=backend, dtype=dtype))
    expected = np.zeros(3)
    for mean in means_of_batches():
        expected += 0.25 * (mean - expected)
    kept = backend.to_host(net.parameters["0.running_mean"])
    assert np.allclose(kept, expected, rtol=0, atol=1e-12 if dtype == "float64" else 1e-5)


def test_of_the_changes_of_a_layer_that_is_used_twice_the_mean_is_added() -> None:
    shared = Centered(0.5)
    net = network(shared, xpnn.Lambda(lambda x: (2.0 * x, lambda dy: (2.0 * dy,))), shared)
    train(net, batch_size=32)
    # The first one sees DATA, the second one its double.
    assert np.allclose(net.parameters["0.running_mean"], 0.5 * 1.5 * DATA.mean(axis=0))


def test_a_buffer_is_neither_trained_nor_decayed_and_has_no_slots() -> None:
    net = network(Centered())
    net.fit(DATA, TARGETS, loss="mse", optimizer=xpnn.Adam(0.1, weight_decay=0.5), verbose=0, batch_size=None)
    assert np.allclose(net.parameters["0.running_mean"], 0.25 * DATA.mean(axis=0))
    assert net.layout.names == ["1.weight", "1.bias"]
    assert set(net.loss_and_gradients(DATA, TARGETS, "mse")[1]) == {"1.weight", "1.bias"}


def test_evaluation_and_prediction_leave_a_buffer_as_it_is() -> None:
    net = train(network(Centered()))
    before = net.parameters["0.running_mean"]
    net.evaluate(DATA, TARGETS)
    net.predict(DATA)
    assert np.array_equal(net.parameters["0.running_mean"], before)


def test_a_frozen_buffer_keeps_its_value_until_it_is_unfrozen() -> None:
    net = network(Centered(), input_shape=(3,)).freeze("0")
    train(net)
    assert net.parameters["0.running_mean"].tolist() == [0.0, 0.0, 0.0]
    train(net.unfreeze())
    assert net.parameters["0.running_mean"].tolist() != [0.0, 0.0, 0.0]


def test_buffers_move_with_the_network_and_training_goes_on(backend: Any, dtype: str) -> None:
    moved = train(network(Centered(), dtype=dtype))
    moved.to(backend)
    train(moved, resume=True)
    stayed = train(train(network(Centered(), dtype=dtype)), resume=True)
    kept = backend.to_host(moved.parameters["0.running_mean"])
    close = 1e-12 if dtype == "float64" else 1e-5
    assert np.allclose(kept, stayed.parameters["0.running_mean"], rtol=0, atol=close)


def test_a_file_holds_the_buffers_and_a_resumed_training_gives_the_same(tmp_path: Any) -> None:
    path = tmp_path / "net.safetensors"
    net = train(network(Centered()))
    net.save(path)
    loaded = xpnn.Network.load(path, custom=[Centered])
    assert np.array_equal(loaded.parameters["0.running_mean"], net.parameters["0.running_mean"])
    train(net, resume=True)
    train(loaded, resume=True)
    assert np.array_equal(loaded.parameters["0.running_mean"], net.parameters["0.running_mean"])


def test_a_loop_of_ones_own_carries_buffers() -> None:
    net = network(Centered(), input_shape=(3,))
    step, state = net.step("mse", xpnn.SGD(0.1)), net.initial_state(xpnn.SGD(0.1))
    state, _ = step(state, net.prepare(DATA, TARGETS, "mse"))
    net.set_state(state)
    assert np.allclose(net.parameters["0.running_mean"], 0.25 * DATA.mean(axis=0))


def test_restored_weights_include_buffers() -> None:
    net = train(network(Centered()))
    kept, before = net.copy_weights(), net.parameters["0.running_mean"]
    train(net)
    net.restore_weights(kept)
    assert np.array_equal(net.parameters["0.running_mean"], before)


def test_a_change_of_a_wrong_shape_is_refused_with_the_name_of_the_layer() -> None:
    class Wrong(Centered):
        """A change with one number too few."""

        def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
            return x, lambda dy: (dy, {"running_mean": parameters["running_mean"][:2]})

    with pytest.raises(ConfigError, match=r"layer '0' gives a gradient of 'running_mean' of shape \(2,\)"):
        train(network(Wrong()))


def test_summary_counts_buffers_apart(capsys: pytest.CaptureFixture[str]) -> None:
    network(Centered(), input_shape=(3,)).summary()
    assert "8 parameters (64 bytes in float64); and 3 numbers that layers keep" in capsys.readouterr().out


class Marks(Layer):
    """Sets the mask: steps whose first feature is positive."""

    def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
        run.mask = x[:, :, 0] > 0
        return x, lambda dy: (dy, {})


class Sees(Layer):
    """Writes down whether there is a mask."""

    seen: list[Any]

    def __init__(self) -> None:
        self.seen = []

    def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
        self.seen.append(run.mask)
        return x, lambda dy: (dy, {})


def test_a_mask_reaches_the_layers_behind_until_the_time_axis_is_gone() -> None:
    inside, before, after = Sees(), Sees(), Sees()
    layers = xpnn.Sequential(Marks(), xpnn.Residual(inside), before, xpnn.Flatten(), after)
    x = np.random.default_rng(1).normal(size=(2, 4, 3))
    _, tree = layers.build((4, 3))
    layers.forward(x, tree, Run(input_gradient=False))
    assert np.array_equal(inside.seen[0], x[:, :, 0] > 0)
    assert np.array_equal(before.seen[0], x[:, :, 0] > 0)
    assert after.seen == [None]


class Swap(Layer):
    """(a, b) -> (b W, a): several inputs and outputs."""

    def build(self, input_shape: Shape) -> tuple[Shape, Tree]:
        first, second = input_shape
        return (second, first), {"weight": Parameter(second, xpnn.initializers.Ones())}  # type: ignore[return-value, arg-type]

    def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
        first, second = x
        weight = parameters["weight"]

        def backward(dy: Any) -> tuple[Any, Tree]:
            dsecond, dfirst = dy
            return (dfirst, dsecond * weight), {"weight": namespace(first).sum(dsecond * second, axis=0)}

        return (second * weight, first), backward


def test_a_sequential_passes_tuples_on() -> None:
    layers = xpnn.Sequential(Swap(), Swap())
    shape, tree = layers.build(((2,), (3,)))  # type: ignore[arg-type]
    assert shape == ((2,), (3,))
    assert tree["1"]["weight"].shape == (2,)
    ones = {"0": {"weight": np.full(3, 2.0)}, "1": {"weight": np.full(2, 5.0)}}
    a, b = np.ones((4, 2)), np.ones((4, 3))
    (first, second), backward = layers.forward((a, b), ones, Run())
    assert np.array_equal(first, 5.0 * a)
    assert np.array_equal(second, 2.0 * b)
    (da, db), gradients = backward((a, b))
    assert np.array_equal(da, 5.0 * a)
    assert np.array_equal(db, 2.0 * b)
    assert gradients["0"]["weight"].tolist() == [4.0, 4.0, 4.0]


def test_layers_with_several_inputs_are_checked_like_others(backend: Any, dtype: str) -> None:
    report = xpnn.testing.check_layer(Swap(), ((4, 2), (4, 3)), backend, dtype)  # type: ignore[arg-type]
    assert {"output", "input.0", "input.1", "weight"} <= set(report.errors)


def test_a_wrong_gradient_of_one_input_of_several_is_found() -> None:
    class Wrong(Swap):
        """Gives the second input half its gradient."""

        def forward(self, x: Any, parameters: Tree, run: Run) -> tuple[Any, Backward]:
            y, backward = super().forward(x, parameters, run)

            def halved(dy: Any) -> tuple[Any, Tree]:
                (first, second), gradients = backward(dy)
                return (first, 0.5 * second), gradients

            return y, halved

    with pytest.raises(CheckError, match=r"gradient of 'input\.1' is wrong"):
        xpnn.testing.check_gradients(Wrong(), ((4, 2), (4, 3)))  # type: ignore[arg-type]
