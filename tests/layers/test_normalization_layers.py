"""Normalisation layers: running statistics in training, evaluation, files and moves; settings; shapes."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Buffer, Parameter, Run
from xpnn.testing import check_gradients, check_layer

X = np.random.default_rng(0).normal(1.0, 2.0, (22, 4))
Y = np.random.default_rng(1).normal(0.0, 1.0, (22, 2))


def network(*middle, **options):
    middle = middle or (xpnn.BatchNorm(), xpnn.Tanh())
    # No bias before a normalisation: its gradient would be 0, and rounding errors are all that it would be trained by.
    first, last = xpnn.Dense(4, 5, bias=False), xpnn.Dense(2)
    return xpnn.Network(first, *middle, last, **{"dtype": "float64", "seed": 1, **options})


def train(net, epochs=3, **options):
    net.fit(X, Y, loss="mse", optimizer=xpnn.Adam(0.05), epochs=epochs, batch_size=8, verbose=0, **options)
    return net


def on_host(net):
    return {name: np.asarray(net.backend.to_host(value)) for name, value in net.parameters.items()}


def statistics(net):
    return [on_host(net)[f"1.running_{name}"] for name in ("mean", "variance")]


@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (xpnn.BatchNorm(weight=False), (5, 3)),
        (xpnn.BatchNorm(bias=False, epsilon=0.5), (3, 4, 2)),
        (xpnn.BatchNorm(frozen=True, weight=False), (3, 4, 4, 2)),
        (xpnn.BatchNorm(), (1, 3)),
        (xpnn.LayerNorm(bias=False), (5, 1)),
        (xpnn.LayerNorm(2, weight=False), (1, 4, 3)),
        (xpnn.RMSNorm(2, weight=False), (2, 4, 3)),
        (xpnn.GroupNorm(3, weight=False, bias=False), (2, 9)),
        (xpnn.InstanceNorm(bias=False), (1, 5, 5, 2)),
        (xpnn.WeightNorm(xpnn.Conv2D(3, 2)), (2, 4, 4, 2)),
        (xpnn.WeightNorm(xpnn.ConvTranspose1D(3, 2), axis=-2), (2, 4, 2)),
        (xpnn.WeightNorm(xpnn.Embedding(4, 3)), (5, 2)),
        (xpnn.Sequential(xpnn.WeightNorm(xpnn.Dense(3)), xpnn.ReLU()), (4, 2)),
        (xpnn.Sequential(xpnn.Conv2D(3, 2, bias=False), xpnn.BatchNorm(), xpnn.ReLU()), (2, 4, 4, 2)),
    ],
    ids=repr,
)
def test_layers_are_right_on_every_row(backend, dtype, layer, input_shape):
    check_layer(layer, input_shape, backend, dtype)


@pytest.mark.parametrize("layer", [xpnn.BatchNorm(), xpnn.GroupNorm(1), xpnn.WeightNorm(xpnn.Dense(2))], ids=repr)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_agree_with_central_differences(layer, training):
    check_gradients(layer, (5, 4), training=training)


def test_running_statistics_move_by_momentum_and_the_variance_is_unbiased(backend, dtype):
    layer = xpnn.BatchNorm(momentum=0.25)
    net = xpnn.Network(layer, xpnn.Dense(2), backend=backend, dtype=dtype, input_shape=(4,))
    names = "0.running_mean", "0.running_variance"
    np.testing.assert_array_equal(on_host(net)[names[0]], np.zeros(4))
    np.testing.assert_array_equal(on_host(net)[names[1]], np.ones(4))
    net.fit(X, Y, loss="mse", optimizer="sgd", epochs=2, batch_size=8, shuffle=False, verbose=0)
    mean, variance = np.zeros(4), np.ones(4)
    for rows in 2 * (X[:8], X[8:16], X[16:]):
        mean = 0.75 * mean + 0.25 * rows.mean(axis=0)
        variance = 0.75 * variance + 0.25 * rows.var(axis=0, ddof=1)
    tolerance = 1e-13 if dtype == "float64" else 2e-6
    np.testing.assert_allclose(on_host(net)[names[0]], mean, rtol=tolerance)
    np.testing.assert_allclose(on_host(net)[names[1]], variance, rtol=tolerance)


def test_the_normalised_batch_has_mean_0_and_variance_1_and_evaluation_takes_the_running_ones(backend, dtype):
    tree = {
        "running_mean": backend.asarray(np.full(4, 2.0), dtype),
        "running_variance": backend.asarray(np.full(4, 4.0), dtype),
    }
    layer = xpnn.BatchNorm(weight=False, bias=False, epsilon=1e-7)
    x = backend.asarray(X, dtype)
    y = backend.to_host(layer.forward(x, tree, Run(training=True))[0])
    np.testing.assert_allclose(y.mean(axis=0), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(y.var(axis=0), np.ones(4), rtol=1e-5)
    for frozen, training in ((False, False), (True, True), (True, False)):
        layer = xpnn.BatchNorm(weight=False, bias=False, epsilon=1e-7, frozen=frozen)
        y, backward = layer.forward(x, tree, Run(training=training))
        np.testing.assert_allclose(backend.to_host(y), (X - 2.0) / 2.0, rtol=1e-5, atol=1e-6)
        assert backward(x)[1] == {}


def test_evaluation_does_not_depend_on_the_other_samples_of_the_batch(backend, dtype):
    net = train(network(backend=backend, dtype=dtype))
    before = statistics(net)
    whole = net.predict(X)
    np.testing.assert_allclose(whole, net.predict(X, batch_size=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole[3:5], net.predict(X[3:5]), rtol=1e-5, atol=1e-6)
    net.evaluate(X, Y, loss="mse")
    net.loss_and_gradients(X, Y, loss="mse")
    for a, b in zip(before, statistics(net), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_agree_on_the_trained_network(backend, dtype):
    mine, reference = on_host(train(network(backend=backend, dtype=dtype))), on_host(train(network(backend="numpy")))
    assert list(mine) == list(reference)
    for name, value in reference.items():
        np.testing.assert_allclose(mine[name], value, rtol=0, atol=1e-12 if dtype == "float64" else 5e-4, err_msg=name)


def test_a_convolutional_network_trains_alike_on_every_row(backend, dtype):
    def trained(where, dtype):
        net = xpnn.Network(
            xpnn.Conv2D(3, 3, bias=False),
            xpnn.BatchNorm(),
            xpnn.ReLU(),
            xpnn.Residual(xpnn.Conv2D(3, 3, padding="same", bias=False), xpnn.GroupNorm(3), xpnn.Tanh()),
            xpnn.Flatten(),
            xpnn.Dense(2),
            backend=where,
            dtype=dtype,
        )
        images = np.random.default_rng(2).standard_normal((22, 6, 6, 2))
        net.fit(images, Y, loss="mse", optimizer=xpnn.SGD(0.05), epochs=2, batch_size=8, verbose=0)
        return on_host(net)

    mine, reference = trained(backend, dtype), trained("numpy", "float64")
    for name, value in reference.items():
        np.testing.assert_allclose(mine[name], value, rtol=0, atol=1e-11 if dtype == "float64" else 1e-4, err_msg=name)


@pytest.mark.xpnn_rows(dtypes="float64")
def test_a_saved_network_comes_back_with_its_statistics_and_goes_on(tmp_path, backend, dtype):
    whole = train(network(backend=backend), epochs=4)
    half = train(network(backend=backend), epochs=2)
    half.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend=backend)
    assert again.root == half.root
    for a, b in zip(statistics(again), statistics(half), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.predict(X), half.predict(X))
    again.fit(X, Y, epochs=2, batch_size=8, verbose=0, resume=True)
    for name, value in on_host(whole).items():
        np.testing.assert_allclose(on_host(again)[name], value, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.xpnn_rows(dtypes="float64")
def test_a_network_keeps_its_statistics_when_it_moves(backend, dtype):
    net = train(network(backend="numpy"))
    before, predicted = statistics(net), net.predict(X)
    net.to(backend)
    for a, b in zip(before, statistics(net), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(net.predict(X), predicted, rtol=0, atol=1e-12)
    train(net, epochs=1)
    assert not np.allclose(before[0], statistics(net)[0])


def test_freezing_the_layer_by_name_keeps_weight_bias_and_statistics():
    net = train(network())
    net.freeze("1")
    before = on_host(net)
    train(net, epochs=1)
    after = on_host(net)
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("1."), name


def test_a_frozen_batch_norm_trains_its_weight_and_leaves_its_statistics(backend, dtype):
    net = train(network(xpnn.BatchNorm(frozen=True), xpnn.Tanh(), backend=backend, dtype=dtype))
    mean, variance = statistics(net)
    np.testing.assert_array_equal(mean, np.zeros(5))
    np.testing.assert_array_equal(variance, np.ones(5))
    assert (on_host(net)["1.weight"] != 1.0).all()


def test_a_batch_of_one_trains_without_nan_and_moves_the_mean_alone(backend, dtype):
    net = network(backend=backend, dtype=dtype)
    net.fit(X[:3], Y[:3], loss="mse", optimizer=xpnn.SGD(0.1), epochs=1, batch_size=1, verbose=0)
    assert all(np.isfinite(value).all() for value in on_host(net).values())
    mean, variance = statistics(net)
    assert (mean != 0.0).all()
    np.testing.assert_array_equal(variance, np.ones(5))


def test_an_empty_batch_moves_nothing(backend, dtype):
    layer = xpnn.BatchNorm()
    tree = {name: backend.asarray(np.ones(3), dtype) for name in ("weight", "bias", "running_mean", "running_variance")}
    y, backward = layer.forward(backend.asarray(np.ones((0, 3)), dtype), tree, Run(training=True))
    dx, gradients = backward(y)
    assert tuple(y.shape) == tuple(dx.shape) == (0, 3)
    assert set(gradients) == {"weight", "bias"}


def test_momentum_0_keeps_the_statistics_and_1_takes_those_of_the_last_batch():
    for momentum, want in ((0.0, np.zeros(4)), (1.0, X[16:].mean(axis=0))):
        net = xpnn.Network(xpnn.BatchNorm(momentum), xpnn.Dense(2), dtype="float64", input_shape=(4,))
        net.fit(X, Y, loss="mse", optimizer="sgd", epochs=1, batch_size=8, shuffle=False, verbose=0)
        np.testing.assert_allclose(on_host(net)["0.running_mean"], want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("activation", [xpnn.ReLU(), xpnn.Tanh(), xpnn.GELU(), xpnn.SiLU(), xpnn.Sigmoid()], ids=repr)
@pytest.mark.parametrize("layer", [xpnn.BatchNorm(), xpnn.WeightNorm(xpnn.Dense(5))], ids=repr)
def test_a_fused_activation_changes_nothing(layer, activation):
    fused = network(layer, activation)
    apart = network(layer, xpnn.Sequential(activation))
    assert len(fused.root._plan) == len(apart.root._plan) - 1
    np.testing.assert_array_equal(fused.predict(X), apart.predict(X))
    for net in (fused, apart):
        train(net)
    for a, b in zip(on_host(fused).values(), on_host(apart).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_buffers_and_parameters_of_each_layer():
    shapes = {
        xpnn.BatchNorm(): {"weight": (6,), "bias": (6,), "running_mean": (6,), "running_variance": (6,)},
        xpnn.BatchNorm(bias=False): {"weight": (6,), "running_mean": (6,), "running_variance": (6,)},
        xpnn.LayerNorm(): {"weight": (6,), "bias": (6,)},
        xpnn.LayerNorm(3): {"weight": (3, 4, 6), "bias": (3, 4, 6)},
        xpnn.RMSNorm(2): {"weight": (4, 6)},
        xpnn.GroupNorm(2): {"weight": (6,), "bias": (6,)},
        xpnn.InstanceNorm(weight=False): {"bias": (6,)},
        xpnn.WeightNorm(xpnn.Dense(5)): {"direction": (6, 5), "magnitude": (5,), "bias": (5,)},
        xpnn.WeightNorm(xpnn.Conv2D(5, 3)): {"direction": (3, 3, 6, 5), "magnitude": (5,), "bias": (5,)},
    }
    for layer, want in shapes.items():
        shape, tree = layer.build((3, 4, 6))
        assert {name: item.shape for name, item in tree.items()} == want, layer
        kinds = {name for name, item in tree.items() if isinstance(item, Buffer)}
        assert kinds == {name for name in want if name.startswith("running")}
        assert all(isinstance(item, (Parameter, Buffer)) for item in tree.values())
        if not isinstance(layer, xpnn.WeightNorm):
            assert shape == (3, 4, 6)


def test_initializers():
    net = network(xpnn.BatchNorm(weight_initializer="zeros", bias_initializer=xpnn.initializers.Constant(2.0)))
    assert (net.parameters["1.weight"] == 0.0).all()
    assert (net.parameters["1.bias"] == 2.0).all()


@pytest.mark.parametrize("inner", [xpnn.Dense(3), xpnn.Conv1D(3, 2), xpnn.Conv2D(3, 2, bias=False)], ids=repr)
def test_weight_norm_starts_as_the_layer_itself(inner):
    shape = {xpnn.Dense: (4,), xpnn.Conv1D: (5, 4), xpnn.Conv2D: (5, 5, 4)}[type(inner)]
    before, after = xpnn.Dense(4), xpnn.Dense(2)  # so that the parameters' numbers are not the first ones

    def first_output(layer):
        net = xpnn.Network(before, layer, after, dtype="float64", seed=3, input_shape=shape)
        return net, net.predict(np.random.default_rng(5).standard_normal((2, *shape)))

    wrapped, got = first_output(xpnn.WeightNorm(inner))
    direction = np.asarray(wrapped.parameters["1.direction"])
    lengths = np.sqrt((direction**2).sum(axis=tuple(range(direction.ndim - 1))))
    np.testing.assert_allclose(wrapped.parameters["1.magnitude"], lengths, rtol=1e-15)
    plain, _ = first_output(inner)
    names = {name: name.replace("1.weight", "1.direction") for name in plain.parameters}
    plain.set_parameters({name: wrapped.parameters[other] for name, other in names.items()})
    x = np.random.default_rng(5).standard_normal((2, *shape))
    np.testing.assert_allclose(got, plain.predict(x), rtol=1e-12)


def test_weight_norm_saves_and_shares(tmp_path):
    shared = xpnn.WeightNorm(xpnn.Dense(5))
    net = train(network(shared, xpnn.Tanh(), shared))
    assert [name for name in net.parameters if name.startswith("1.")] == ["1.direction", "1.magnitude", "1.bias"]
    net.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")
    np.testing.assert_array_equal(again.predict(X), net.predict(X))


def test_shapes_that_do_not_fit_are_named_at_build_time():
    with pytest.raises(
        ShapeError,
        match=r"layer 1 GroupNorm\(groups=4\): got samples of shape \(5,\): 5 channels .* 4 groups do not divide",
    ):
        network(xpnn.GroupNorm(4))
    with pytest.raises(ShapeError, match=r"layer 1 LayerNorm\(axes=2\): got samples of shape \(5,\), wants at least 2"):
        network(xpnn.LayerNorm(axes=2))
    with pytest.raises(ShapeError, match=r"layer 1 InstanceNorm\(\): got samples of shape \(5,\), one value for each"):
        network(xpnn.InstanceNorm())
    for layer in (xpnn.BatchNorm(), xpnn.GroupNorm(1), xpnn.InstanceNorm()):
        with pytest.raises(ShapeError, match="got samples that are single numbers"):
            xpnn.Network(layer, input_shape=())
    with pytest.raises(ShapeError, match=r"Dense\(4, 2\): got samples of shape \(5,\)"):
        network(xpnn.WeightNorm(xpnn.Dense(4, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xpnn.BatchNorm(1.5), r"momentum=1.5 makes no sense; give a number in \[0, 1\]"),
        (lambda: xpnn.BatchNorm(epsilon=0.0), "epsilon=0.0 makes no sense; give a positive number"),
        (lambda: xpnn.LayerNorm(epsilon=float("nan")), "epsilon=nan makes no sense"),
        (lambda: xpnn.BatchNorm(frozen=1), "frozen=1 makes no sense; give True or False"),
        (lambda: xpnn.RMSNorm(weight="ones"), "weight='ones' makes no sense; give True or False"),
        (lambda: xpnn.LayerNorm(0), "axes=0 makes no sense"),
        (lambda: xpnn.GroupNorm(0), "groups=0 makes no sense"),
        (lambda: xpnn.BatchNorm(weight_initializer="one"), "weight_initializer='one' is unknown"),
        (lambda: xpnn.WeightNorm(5), "the layer of WeightNorm is 5, which is no xpnn.Layer"),
        (lambda: xpnn.WeightNorm(xpnn.Dense(5), axis=0), "axis=0 makes no sense"),
        (lambda: network(xpnn.WeightNorm(xpnn.Tanh())), r"Tanh\(\) has no parameter called 'weight'"),
        (lambda: network(xpnn.WeightNorm(xpnn.LayerNorm(), axis=-2)), r"axis=-2 does not exist in .* shape \(5,\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_repr_and_equality():
    assert repr(xpnn.BatchNorm()) == "BatchNorm()"
    assert repr(xpnn.BatchNorm(0.01, frozen=True)) == "BatchNorm(momentum=0.01, frozen=True)"
    assert repr(xpnn.GroupNorm(4, bias=False)) == "GroupNorm(groups=4, bias=False)"
    assert repr(xpnn.WeightNorm(xpnn.Dense(3))) == "WeightNorm(layer=Dense(3))"
    assert xpnn.LayerNorm() == xpnn.LayerNorm(1)
    assert xpnn.InstanceNorm() != xpnn.InstanceNorm(1e-3)


@pytest.mark.parametrize(("momentum", "times"), [(1.0, 3), (0.1, 24)])
def test_a_batch_norm_that_is_used_many_times_keeps_its_statistics_in_range(momentum, times):
    shared = xpnn.BatchNorm(momentum)
    layers = [layer for _ in range(times) for layer in (xpnn.Dense(4, 4), shared)]
    net = xpnn.Network(*layers, xpnn.Dense(2), dtype="float64", seed=1)
    net.fit(X, Y, loss="mse", optimizer="sgd", epochs=10, batch_size=11, verbose=0)
    variance = net.parameters["1.running_variance"]
    assert np.all(variance > 0.0)
    assert np.all(variance < 100.0)
    assert np.all(np.isfinite(net.predict(X)))


def test_the_best_weights_are_restored_with_their_running_statistics(tmp_path):
    seen = []

    class Watch(xpnn.Callback):
        """Writes down what a prediction gives after each epoch, and the statistics behind it."""

        def on_epoch_end(self, epoch, logs):
            seen.append((logs["val_loss"], self.network.parameters["1.running_variance"], self.network.predict(X)))

    path = tmp_path / "best.safetensors"
    net = network()
    callbacks = [xpnn.EarlyStopping(patience=50), xpnn.ModelCheckpoint(path, save_best_only=True), Watch()]
    net.fit(
        X,
        Y,
        loss="mse",
        optimizer=xpnn.SGD(0.3),
        epochs=12,
        batch_size=4,
        validation_data=(X[:7], -Y[:7]),
        verbose=0,
        callbacks=callbacks,
    )
    losses = [loss for loss, _, _ in seen]
    best = losses.index(min(losses))
    assert best < len(seen) - 1
    for kept in (net, xpnn.Network.load(path)):
        assert np.array_equal(kept.parameters["1.running_variance"], seen[best][1])
        assert np.array_equal(kept.predict(X), seen[best][2])


SEVERAL = ((4, 4, 2), (4, 4, 2), (5,))


@pytest.mark.parametrize(
    "layer",
    [
        xpnn.BatchNorm(),
        xpnn.LayerNorm(),
        xpnn.RMSNorm(),
        xpnn.GroupNorm(2),
        xpnn.InstanceNorm(),
        xpnn.LocalResponseNorm(3),
        xpnn.RandomFlip(),
        xpnn.RandomShift(1),
        xpnn.Dense(3),
        xpnn.Flatten(),
        xpnn.Reshape(-1),
    ],
    ids=repr,
)
def test_several_inputs_are_refused_by_a_layer_for_one(layer):
    with pytest.raises(ShapeError, match=r"got several inputs, of shapes \(\(4, 4, 2\), .* wants one; see xpnn.Each"):
        layer.build(SEVERAL)


def test_several_inputs_are_refused_by_a_convolution():
    with pytest.raises(ShapeError, match=r"got samples of shape \(\(4, 4, 2\), .* wants \(height, width, channels\)"):
        xpnn.Conv2D(3, 3).build(SEVERAL)
