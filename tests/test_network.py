"""The network's own methods: parameters, moving, freezing, summary."""

import copy
import pickle

import numpy as np
import pytest

import xpnn
from xpnn.errors import BackendError, ConfigError, DataError, DeviceError, ShapeError


def network(**options):
    layers = [xpnn.Dense(2, 4), xpnn.ReLU(), xpnn.Dense(3)]
    return xpnn.Network(*layers, **{"dtype": "float64", "backend": "numpy", "seed": 3, **options})


def on_host(net):
    return {name: net.backend.to_host(value) for name, value in net.parameters.items()}


X = np.random.default_rng(0).standard_normal((12, 2))
Y = np.arange(12) % 3


def test_names_and_shapes(backend, dtype):
    net = network(backend=backend, dtype=dtype)
    shapes = {name: tuple(value.shape) for name, value in net.parameters.items()}
    assert shapes == {"0.weight": (2, 4), "0.bias": (4,), "2.weight": (4, 3), "2.bias": (3,)}
    assert list(net.parameters) == list(shapes)
    assert len(net.parameters) == 4
    with pytest.raises(KeyError):
        net.parameters["1.weight"]


def test_layers_may_come_as_a_list():
    assert on_host(xpnn.Network([xpnn.Dense(2, 3)])).keys() == {"0.weight", "0.bias"}


def test_parameters_are_copies():
    net = network()
    net.parameters["0.weight"][...] = 7.0
    assert (net.parameters["0.weight"] != 7.0).all()


def test_the_input_shape_comes_from_the_data_or_is_given():
    net = xpnn.Network(xpnn.Dense(3))
    for use in (lambda: net.parameters["0.weight"], net.summary, lambda: net.freeze("0")):
        with pytest.raises(ShapeError, match="does not know the shape of its input"):
            use()
    assert net.input_shape is None
    net.predict(np.ones((1, 5)))
    assert net.input_shape == (5,)
    assert net.output_shape == (3,)
    assert xpnn.Network(xpnn.Flatten(), xpnn.Dense(3), input_shape=(2, 3)).parameters["1.weight"].shape == (6, 3)


def test_loss_and_gradients(backend, dtype):
    net = network(backend=backend, dtype=dtype)
    before = on_host(net)
    value, gradients = net.loss_and_gradients(X, Y, loss="cross_entropy")
    assert tuple(value.shape) == ()
    assert backend.owns(value) or backend.name == "numpy"
    assert gradients.keys() == before.keys()
    reference = network(dtype="float64")
    expected, expected_gradients = reference.loss_and_gradients(X, Y, loss="cross_entropy")
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    assert float(backend.to_host(value)) == pytest.approx(float(expected), rel=tolerance)
    for name, gradient in gradients.items():
        assert gradient.dtype == backend.dtype(dtype)
        np.testing.assert_allclose(backend.to_host(gradient), expected_gradients[name], rtol=tolerance, atol=tolerance)
    with pytest.raises(ConfigError, match="does not know the loss"):
        net.loss_and_gradients(X, Y)
    with pytest.raises(ConfigError, match="remove the Softmax"):
        xpnn.Network(xpnn.Dense(2, 3), xpnn.Softmax()).loss_and_gradients(X, Y, loss="cross_entropy")


@pytest.mark.parametrize("batch_size", [None, 1, 5, 12, 100])
def test_predict_in_batches(batch_size):
    net = network()
    np.testing.assert_allclose(net.predict(X, batch_size=batch_size), net.predict(X), rtol=1e-12)
    with pytest.raises(ConfigError, match="batch_size=0"):
        net.predict(X, batch_size=0)


def test_predict_nothing(backend, dtype):
    net = network(backend=backend, dtype=dtype)
    for empty in (np.ones((0, 2)), [], np.ones((0, 2), "int32")):
        found = net.predict(empty)
        assert type(found) is np.ndarray
        assert found.shape == (0, 3)
        assert found.dtype == dtype
    found = net.predict(backend.asarray(np.ones((0, 2)), dtype))
    assert backend.owns(found)
    assert tuple(found.shape) == (0, 3)


def test_set_parameters(backend, dtype):
    net, other = network(backend=backend, dtype=dtype), network(backend=backend, dtype=dtype, seed=4)
    net.set_parameters(on_host(other))
    np.testing.assert_array_equal(net.predict(X), other.predict(X))
    net = network(backend=backend, dtype=dtype).freeze("0.bias")
    net.set_parameters(dict(other.parameters))
    np.testing.assert_array_equal(net.predict(X), other.predict(X))
    net.fit(X, Y, loss="cross_entropy", optimizer="adam", verbose=0)
    np.testing.assert_array_equal(
        on_host(other)["2.bias"], on_host(network(backend=backend, dtype=dtype, seed=4))["2.bias"]
    )


def test_set_parameters_lists_all_that_is_wrong():
    net = network()
    before = on_host(net)
    with pytest.raises(ConfigError) as caught:
        net.set_parameters({"0.weight": np.ones((2, 5)), "0.bias": np.ones(4), "3.weight": np.ones(1)})
    message = str(caught.value)
    for part in (
        "2.weight is missing",
        "2.bias is missing",
        "3.weight is unexpected",
        "0.weight has shape (2, 5), wants (2, 4)",
    ):
        assert part in message
    for name, value in on_host(net).items():
        np.testing.assert_array_equal(value, before[name])


def test_set_parameters_keeps_no_reference():
    net = network()
    given = on_host(net)
    net.set_parameters(given)
    given["0.weight"][...] = 5.0
    assert (net.parameters["0.weight"] != 5.0).all()


def test_moving_there_and_back_is_no_change(backend, dtype):
    net, moving = network(dtype=dtype), network(dtype=dtype)
    options = {"loss": "cross_entropy", "batch_size": 5, "verbose": 0}
    for each in (net, moving):
        each.freeze("0.bias").fit(X, Y, optimizer=xpnn.Adam(0.01), epochs=2, **options)
    assert moving.to(backend) is moving
    assert moving.backend is backend
    assert moving.layout.blocked == backend.blocked
    assert moving.layout.frozen == {"0.bias"}
    there = moving.parameters["0.weight"]
    assert backend.owns(there)
    np.testing.assert_array_equal(backend.to_host(there), net.parameters["0.weight"])
    # the optimizer's memory went along: the training goes on as on the other side
    moving.fit(X, Y, epochs=1, resume=True, batch_size=5, verbose=0)
    moving.to("numpy")
    net.fit(X, Y, epochs=1, resume=True, batch_size=5, verbose=0)
    tolerance = {"rtol": 1e-8, "atol": 1e-10} if dtype == "float64" else {"rtol": 1e-3, "atol": 1e-5}
    for name, value in on_host(net).items():
        np.testing.assert_allclose(moving.parameters[name], value, **tolerance)
    for slot in net.training.slots:
        for name, value in net.layout.split(net.training.slots[slot]).items():
            found = moving.layout.split(moving.training.slots[slot])[name]
            np.testing.assert_allclose(found, value, **tolerance)


def test_a_network_without_parameters_yet_can_be_moved():
    net = xpnn.Network(xpnn.Dense(3)).to("strict:device1")
    assert net.backend.spec == "strict:device1"
    assert net.predict(np.ones((2, 2))).shape == (2, 3)


def test_moving_where_the_dtype_does_not_exist():
    net = network()
    with pytest.raises(BackendError, match="float64"):
        net.to("strict:no_float64")
    with pytest.raises(BackendError, match="unknown backend 'nunpy'"):
        net.to("nunpy")
    assert net.backend.name == "numpy"


def test_freezing_by_name_and_path():
    shared = xpnn.Dense(4)
    net = xpnn.Network(xpnn.Parallel(shared, xpnn.Dense(4)), shared, xpnn.Dense(1), input_shape=(4,))
    before = on_host(net)

    def frozen(*names):
        net.unfreeze()
        net.freeze(*names)
        return set(net.layout.frozen)

    assert frozen("2.weight") == {"2.weight"}
    assert frozen("0.branches.1") == {"0.branches.1.weight", "0.branches.1.bias"}
    assert frozen("1") == {"0.branches.0.weight", "0.branches.0.bias"}
    assert frozen("0", "2") == set(before)
    assert frozen() == set()
    net.freeze("0").unfreeze("0.branches.1")
    assert net.layout.frozen == {"0.branches.0.weight", "0.branches.0.bias"}
    for name, value in on_host(net).items():
        np.testing.assert_array_equal(value, before[name])
    for wrong in ("5", "0.weigh", "0.branches.1.w", ""):
        with pytest.raises(ConfigError, match="no parameter is called"):
            net.freeze(wrong)


def test_frozen_parameters_have_no_gradient_and_count_in_the_output(backend, dtype):
    net = network(backend=backend, dtype=dtype)
    expected = net.predict(X)
    net.freeze("0")
    np.testing.assert_allclose(net.predict(X), expected, rtol=1e-6)
    _, gradients = net.loss_and_gradients(X, Y, loss="cross_entropy")
    assert set(gradients) == {"2.weight", "2.bias"}
    net.freeze("2")
    np.testing.assert_allclose(net.predict(X), expected, rtol=1e-6)
    assert len(net.parameters) == 4


def test_the_memory_of_an_optimizer_survives_freezing():
    net = network()
    net.fit(X, Y, loss="cross_entropy", optimizer="adam", epochs=2, verbose=0)
    before = {slot: net.layout.split(vector) for slot, vector in net.training.slots.items()}
    before = {slot: {name: part.copy() for name, part in parts.items()} for slot, parts in before.items()}
    net.freeze("0")
    for slot, vector in net.training.slots.items():
        parts = net.layout.split(vector)
        assert set(parts) == {"2.weight", "2.bias"}
        for name, part in parts.items():
            np.testing.assert_array_equal(part, before[slot][name])
    net.unfreeze()
    for slot, vector in net.training.slots.items():
        for name, part in net.layout.split(vector).items():
            np.testing.assert_array_equal(part, before[slot][name] if name.startswith("2") else 0.0)
    net.fit(X, Y, epochs=1, resume=True, verbose=0)
    assert net.training.step == 3


def test_summary(capsys):
    net = xpnn.Network(
        xpnn.Flatten(), xpnn.Dense(64), xpnn.ReLU(), xpnn.Residual(xpnn.Dense(64), xpnn.Tanh()), xpnn.Dense(10),
        input_shape=(8, 8),
    )  # fmt: skip
    net.freeze("1.bias")
    assert net.summary() is None
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line[:1].isdigit()}
    assert lines["1"].split() == ["1", "Dense(64)", "(64,)", "4,160"]
    assert lines["3"].split() == ["3", "Residual", "(64,)", "4,160"]
    assert lines["3.0"].split() == ["3.0", "Dense(64)", "4,160"]
    assert lines["4"].split() == ["4", "Dense(10)", "(10,)", "650"]
    total = 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert f"{total:,} parameters (35.9 kB in float32), 64 of them frozen" in out
    assert "input (8, 8), backend numpy" in out


def test_wrong_settings():
    for options in ({"dtype": "float16"}, {"seed": -1}, {"seed": 1.5}):
        with pytest.raises(ConfigError):
            network(**options)
    with pytest.raises(ShapeError, match="layer 2"):
        xpnn.Network(xpnn.Dense(2, 3), xpnn.ReLU(), xpnn.Dense(4, 1))


def test_a_seed_decides_the_weights_on_every_backend(backend, dtype):
    expected = on_host(network(dtype=dtype))
    for name, value in on_host(network(backend=backend, dtype=dtype)).items():
        np.testing.assert_array_equal(value, expected[name])
    assert (on_host(network(dtype=dtype, seed=4))["0.weight"] != expected["0.weight"]).any()


def test_repr():
    assert repr(network(dtype="float32")) == (
        "Network(Dense(2, 4), ReLU(), Dense(3), backend='numpy', dtype='float32', seed=3)"
    )


def test_weights_of_another_layout_are_refused():
    net = network()
    kept = net.copy_weights()
    net.freeze("0")
    with pytest.raises(ConfigError, match="moved, frozen or unfrozen"):
        net.restore_weights(kept)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
@pytest.mark.xpnn_rows(dtypes=["float64"], reason="copies do not depend on the dtype")
def test_a_copy_is_a_network_of_its_own(backend, dtype, duplicate):
    net = network(backend=backend)
    options = {"loss": "cross_entropy", "optimizer": xpnn.Adam(0.01, ema=0.9), "verbose": 0, "batch_size": 5}
    net.fit(X, Y, **options)
    before = on_host(net)
    again = duplicate(net)
    assert again.backend.spec == net.backend.spec
    assert again.fit(X, Y, resume=True, verbose=0).epochs == [2]
    for name, value in on_host(net).items():
        np.testing.assert_array_equal(value, before[name])
    # and it has taken the step that the original takes
    net.fit(X, Y, resume=True, verbose=0)
    for name, value in on_host(net).items():
        np.testing.assert_array_equal(value, on_host(again)[name])


@pytest.mark.parametrize("shape", [3, "3", ("3",), (-3,), (3.0,), {3}])
def test_an_input_shape_that_is_none(shape):
    with pytest.raises(ConfigError, match="input_shape"):
        xpnn.Network(xpnn.Dense(2), backend="numpy", input_shape=shape)


def test_a_build_that_fails_changes_nothing():
    net = network()
    before = on_host(net)
    with pytest.raises(ShapeError):
        net.build((5,))
    assert net.input_shape == (2,)
    np.testing.assert_array_equal(net.predict(X).shape, (12, 3))
    for name, value in on_host(net).items():
        np.testing.assert_array_equal(value, before[name])


def test_the_prediction_of_a_network_without_parameters_is_not_x_itself(backend, dtype):
    x = np.ones((2, 3), dtype)
    for layers in ((), (xpnn.Flatten(),), (xpnn.Dropout(0.5),)):
        y = np.array(xpnn.Network(*layers, backend=backend, dtype=dtype).predict(x), copy=False)
        assert not np.shares_memory(x, y)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ([["a"] * 4] * 2, DataError),
        ([[1j] * 4] * 2, DataError),
        ([[1, 2], [3]], DataError),
        (None, DataError),
    ],
    ids=["text", "complex", "ragged", "none"],
)
def test_parameters_that_are_no_numbers(value, error):
    net = network()
    with pytest.raises(error, match=r"0\.weight"):
        net.set_parameters({**net.parameters, "0.weight": value})
    with pytest.raises(ConfigError, match="as a dict"):
        net.set_parameters(list(net.parameters))


def test_parameters_of_another_library_do_not_travel_silently():
    net = network()
    theirs = xpnn.get_backend("strict").asarray(net.parameters["0.weight"])
    with pytest.raises(DeviceError, match=r"0\.weight is an array of strict"):
        net.set_parameters({**net.parameters, "0.weight": theirs})


def test_data_that_are_refused_do_not_fix_the_input_shape():
    net = xpnn.Network(xpnn.Dense(4), xpnn.Tanh(), xpnn.Dense(3), backend="numpy")
    with pytest.raises(DataError, match="6 samples and y has 5"):
        net.fit(np.zeros((6, 9)), np.zeros(5, int), loss="cross_entropy", optimizer="sgd", verbose=0)
    assert net.input_shape is None
    net.fit(np.zeros((6, 2)), np.zeros(6, int), loss="cross_entropy", optimizer="sgd", verbose=0)
    with pytest.raises(DataError, match="6 samples and y has 5"):
        net.evaluate(np.zeros((6, 2)), np.zeros(5, int))
    assert net.parameters["0.weight"].shape == (2, 4)


def test_predictions_from_host_data_can_be_written_to(backend, dtype):
    net = xpnn.Network(xpnn.Dense(2, 3), backend=backend, dtype=dtype)
    prediction = net.predict(np.ones((4, 2)))
    prediction[0, 0] = 7.0
    assert prediction[0, 0] == 7.0
