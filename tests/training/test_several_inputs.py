"""Networks with several inputs: X is a tuple of arrays, wherever it is asked for."""

import copy
import pickle

import numpy as np
import pytest

import xpnn
from xpnn import random
from xpnn.errors import ConfigError, DataError, DeviceError, ShapeError
from xpnn.training import make_step
from xpnn_backends.numpy_backend import NumpyBackend

SAMPLES = 50
ROUNDING = {"float64": {"rtol": 1e-8, "atol": 1e-10}, "float32": {"rtol": 2e-3, "atol": 1e-5}}


def data(samples=SAMPLES):
    """Measurements, a number of a kind, and a target that needs both."""
    generator = np.random.default_rng(0)
    measured = generator.standard_normal((samples, 3))
    kinds = generator.integers(0, 4, (samples, 1))
    target = measured[:, :1] * np.array([-1.0, 0.5, 1.0, 2.0])[kinds]
    return (measured, kinds), target


def network(backend="numpy", dtype="float64", dropout=0.0, seed=3):
    return xpnn.Network(
        xpnn.Each(xpnn.Dense(6), [xpnn.Embedding(4, 6), xpnn.Flatten()], combine="concatenate"),
        xpnn.Tanh(),
        xpnn.Dropout(dropout),
        xpnn.Dense(1),
        backend=backend,
        dtype=dtype,
        seed=seed,
    )


def weights(net):
    return {name: net.backend.to_host(value) for name, value in net.parameters.items()}


def assert_close(first, second, dtype="float64"):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], **ROUNDING[dtype], err_msg=name)


QUIET = {"loss": "mse", "verbose": 0}


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_backend_trains_to_the_same_weights(backend, dtype, shuffle):
    X, y = data()
    options = {**QUIET, "batch_size": 16, "epochs": 4, "validation_split": 0.2, "metrics": ["mae"], "shuffle": shuffle}
    net, reference = network(backend, dtype, 0.1), network("strict", dtype, 0.1)
    histories = [each.fit(X, y, optimizer=xpnn.Adam(0.03), **options) for each in (net, reference)]
    assert net.input_shape == ((3,), (1,))
    assert histories[0]["val_loss"][-1] < histories[0]["val_loss"][0]
    for name in histories[0]:
        np.testing.assert_allclose(histories[0][name], histories[1][name], **ROUNDING[dtype])
    assert_close(weights(net), weights(reference), dtype)
    assert net.evaluate(X, y, batch_size=7)["loss"] == pytest.approx(reference.evaluate(X, y)["loss"], rel=2e-3)
    predicted = net.predict(X, batch_size=7)
    assert type(predicted) is np.ndarray
    np.testing.assert_allclose(predicted, reference.predict(X), **ROUNDING[dtype])


@pytest.mark.parametrize("shuffle", [False, True])
def test_epochs_are_steps_over_batches_in_a_known_order(shuffle):
    (measured, kinds), y = data()
    sample_weight = np.linspace(0.1, 2.0, SAMPLES)
    options = {**QUIET, "batch_size": 16, "epochs": 2, "shuffle": shuffle, "sample_weight": sample_weight}
    net, by_hand = network(dropout=0.2), network(dropout=0.2)
    net.fit((measured, kinds), y, optimizer=xpnn.Adam(0.01), **options)
    by_hand.build(((3,), (1,)))
    step, state = by_hand.step("mse", xpnn.Adam(0.01)), by_hand.initial_state(xpnn.Adam(0.01))
    for epoch in range(2):
        order = random.permutation(3, random.stream(random.SHUFFLE), epoch, SAMPLES) if shuffle else np.arange(SAMPLES)
        for start in (0, 16, 32, 48):
            rows = order[start : start + 16]
            batch = by_hand.prepare((measured[rows], kinds[rows]), y[rows], "mse", sample_weight[rows])
            state, _ = step(state, batch)
    by_hand.set_state(state)
    for name, value in weights(net).items():
        np.testing.assert_array_equal(value, weights(by_hand)[name], err_msg=name)


def test_the_recorded_step_is_taken_for_batches_of_several_inputs(monkeypatch):
    """The program gets the new arrays of each batch, and gives what the step gives."""
    (measured, kinds), y = data()
    net = network(NumpyBackend("compiled"))
    net.build(((3,), (1,)))
    optimizer = xpnn.SGD(0.1)
    step = net.step("mse", optimizer)
    eager = make_step(net.root, net.layout, xpnn.MSE(), optimizer)
    state, other = net.initial_state(optimizer), net.initial_state(optimizer)
    searched = []
    find = step._find
    monkeypatch.setattr(step, "_find", lambda *given: searched.append(None) or find(*given))
    for start in (0, 8, 16, 0):
        rows = slice(start, start + 8)
        batch = net.prepare((measured[rows], kinds[rows]), y[rows], "mse")
        state, value = step(state, batch)
        assert len(searched) == 1  # after the first step, new arrays of the same shapes are taken at once
        other, expected = eager(other, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
    # the same arrays in a tuple of its own, and arrays that are not in order
    for again in (((*batch[0],), *batch[1:]), ((np.asfortranarray(batch[0][0]), batch[0][1]), *batch[1:])):
        state, value = step(state, again)
        other, expected = eager(other, again)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert step.why_not is None
    np.testing.assert_allclose(state.theta[0], other.theta[0], rtol=1e-12)


def test_evaluation_and_prediction_of_the_recorded_step_see_each_batch():
    X, y = data()
    recorded, plain = network(NumpyBackend("compiled")), network()
    for net in (recorded, plain):
        net.build(((3,), (1,)))
    for size in (8, 10, 50):
        assert recorded.evaluate(X, y, loss="mse", batch_size=size)["loss"] == pytest.approx(
            plain.evaluate(X, y, loss="mse")["loss"], rel=1e-12
        )
        np.testing.assert_allclose(recorded.predict(X, batch_size=size), plain.predict(X), rtol=1e-12)


def test_gradients(backend, dtype):
    X, y = data(6)
    value, gradients = network(backend, dtype).loss_and_gradients(X, y, loss="mse")
    expected, reference = network("numpy", "float64").loss_and_gradients(X, y, loss="mse")
    to_host = xpnn.get_backend(backend).to_host
    np.testing.assert_allclose(to_host(value), expected, **ROUNDING[dtype])
    assert_close({name: to_host(gradient) for name, gradient in gradients.items()}, reference, dtype)


def test_arrays_of_the_backend(backend, dtype):
    (measured, kinds), y = data()
    net = network(backend, dtype)
    mine = (backend.asarray(measured, dtype), backend.asarray(kinds, "int64"))
    net.fit(mine, backend.asarray(y, dtype), optimizer="adam", **QUIET)
    predicted = net.predict(mine)
    assert net.backend.owns(predicted)
    assert type(net.predict((mine[0], kinds))) is np.ndarray  # one of them came from the host
    expected = backend.to_host(predicted)
    np.testing.assert_allclose(net.predict((measured.tolist(), kinds.tolist())), expected, **ROUNDING[dtype])


def test_validation_data():
    X, y = data()
    net = network()
    held_out = (X[0][:10], X[1][:10])
    history = net.fit(X, y, optimizer="adam", epochs=2, validation_data=(held_out, y[:10]), **QUIET)
    assert history["val_loss"][-1] == pytest.approx(net.evaluate(held_out, y[:10])["loss"], rel=1e-12)
    with pytest.raises(DataError, match="the network takes 2 inputs, and validation X is of type ndarray"):
        net.fit(X, y, optimizer="adam", validation_data=(*held_out, y[:10]), **QUIET)


@pytest.mark.parametrize("through", ["memory", "file", "another backend"])
def test_a_resumed_training_is_the_same(backend, dtype, through, tmp_path):
    X, y = data()
    options = {**QUIET, "optimizer": xpnn.Adam(0.02), "batch_size": 16}
    straight, net = network(backend, dtype, 0.1), network(backend, dtype, 0.1)
    straight.fit(X, y, epochs=4, **options)
    net.fit(X, y, epochs=2, **options)
    if through == "file":
        net.save(tmp_path / "model.safetensors")
        net = xpnn.Network.load(tmp_path / "model.safetensors", backend=backend)
        assert net.input_shape == ((3,), (1,))
        assert net.root == straight.root
    elif through == "another backend":
        net.to("strict").fit(X, y, epochs=1, resume=True, batch_size=16, verbose=0)
        net.to(backend)
    net.fit(X, y, epochs=4 - net.training.epoch, resume=True, batch_size=16, verbose=0)
    assert_close(weights(net), weights(straight), dtype)
    np.testing.assert_allclose(net.predict(X), straight.predict(X), **ROUNDING[dtype])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_predicts_the_same(duplicate):
    X, y = data()
    net = network()
    net.fit(X, y, optimizer="adam", **QUIET)
    np.testing.assert_array_equal(duplicate(net).predict(X), net.predict(X))


def test_no_samples(backend, dtype):
    X, y = data()
    net = network(backend, dtype)
    net.fit(X, y, optimizer="adam", **QUIET)
    assert net.predict((X[0][:0], X[1][:0])).shape == (0, 1)
    assert net.predict(([], X[1][:0])).shape == (0, 1)
    with pytest.raises(DataError, match="X has no samples"):
        net.evaluate((X[0][:0], X[1][:0]), y[:0])


def test_an_input_shape_of_several_says_it_too():
    """Layers that take one input or several are told by it."""
    generator = np.random.default_rng(0)
    x, hidden = generator.standard_normal((6, 4, 2)), generator.standard_normal((6, 3))
    net = xpnn.Network(xpnn.GRU(3), xpnn.Dense(1), input_shape=((4, 2), (3,)), dtype="float64")
    alone = xpnn.Network(xpnn.GRU(3), xpnn.Dense(1), input_shape=(4, 2), dtype="float64")
    assert np.abs(net.predict((x, hidden)) - alone.predict(x)).max() > 0.01
    np.testing.assert_array_equal(net.predict((x, 0.0 * hidden)), alone.predict(x))
    before = weights(net)
    net.fit((x, hidden), np.ones((6, 1)), optimizer="sgd", **QUIET)
    assert np.abs(weights(net)["0.weight_input"] - before["0.weight_input"]).max() > 0.0


def test_a_tuple_of_rows_stays_what_a_list_of_them_is():
    """Only a network that takes several inputs takes a tuple for several."""
    X = np.random.default_rng(0).standard_normal((5, 2, 3))
    net = xpnn.Network(xpnn.Flatten(), xpnn.Dense(1), dtype="float64")
    net.fit(tuple(X), np.ones(5), optimizer="sgd", **QUIET)
    assert net.input_shape == (2, 3)
    for rows in (tuple(X), list(X), X.tolist(), tuple(map(tuple, X.tolist()))):
        np.testing.assert_array_equal(net.predict(rows), net.predict(X))


def test_summary(capsys):
    net = xpnn.Network(
        xpnn.Each(xpnn.Dense(3, 4), [xpnn.Embedding(5, 4), xpnn.Flatten()]),
        xpnn.Each(xpnn.Sequential(), xpnn.Dense(2), combine="concatenate"),
        input_shape=((3,), (2,)),
    )
    net.summary()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "input ((3,), (2,)), backend numpy"
    assert "0 Each ((4,), (8,)) 36" in lines
    assert "0.1 Sequential (8,) 20" in lines
    assert "0.1.0 Embedding(vocabulary=5, features=4) (2, 4) 20" in lines
    assert "1 Each (6,) 18" in lines
    assert "1.1 Dense(2) (2,) 18" in lines


(MEASURED, KINDS), TARGET = data(6)


def changed(array, position, value):
    array = array.copy()
    array[position] = value
    return array


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (MEASURED, DataError, "takes 2 inputs, and X is of type ndarray; give a tuple of 2 arrays"),
        ([MEASURED, KINDS], DataError, "takes 2 inputs, and X is of type list"),
        ((MEASURED,), DataError, "takes 2 inputs, and X is a tuple of 1"),
        ((MEASURED, KINDS, KINDS), DataError, "takes 2 inputs, and X is a tuple of 3"),
        ((MEASURED, KINDS[:5]), DataError, r"X\[0\] has 6 samples and X\[1\] has 5"),
        ((MEASURED, 3), DataError, r"X\[1\] is a single number"),
        ((MEASURED, "text"), DataError, r"X\[1\] has dtype"),
        ((changed(MEASURED, (4, 1), np.nan), KINDS), DataError, r"X\[0\] has NaN.* row 4"),
        ((MEASURED, KINDS + 0.5), DataError, r"X\[1\] must hold integers, got float64"),
        ((MEASURED, changed(KINDS, (2, 0), 4)), DataError, r"X\[1\] holds the index 4"),
        ((MEASURED, changed(KINDS, (2, 0), -1)), DataError, r"X\[1\] holds the index -1"),
    ],
)
def test_data_that_are_refused(X, error, message, built):
    net = network()
    if built:
        net.build(((3,), (1,)))
    with pytest.raises(error, match=message):
        net.fit(X, TARGET, optimizer="adam", **QUIET)
    if not built:
        assert net.input_shape is None
    net.fit((MEASURED, KINDS), TARGET, optimizer="adam", **QUIET)


def test_shapes_that_do_not_fit_are_named():
    net = network()
    net.build(((3,), (1,)))
    with pytest.raises(ShapeError, match=r"X\[1\] has shape \(6, 2\).* built for samples of shape \(1,\)"):
        net.predict((MEASURED, np.concatenate([KINDS, KINDS], axis=1)))
    with pytest.raises(DataError, match="X has 6 samples and y has 5"):
        net.evaluate((MEASURED, KINDS), TARGET[:5], loss="mse")
    with pytest.raises(ShapeError, match="wants a tuple of 2, one for each layer"):
        network().build((3,))


def test_arrays_of_another_library():
    torch = pytest.importorskip("torch")
    net = network()
    net.build(((3,), (1,)))
    with pytest.raises(DeviceError, match=r"X\[1\] is an array of torch"):
        net.predict((MEASURED, torch.asarray(KINDS)))


def test_a_tuple_that_was_taken_for_rows_gets_a_hint():
    generator = np.random.default_rng(0)
    queries, memory = generator.standard_normal((4, 3, 2)), generator.standard_normal((4, 5, 2))
    for other in (memory, queries):  # the second pair fits into one array, whose shape is then wrong
        net = xpnn.Network(xpnn.MultiHeadAttention(2))
        with pytest.raises((DataError, ShapeError)) as caught:
            net.fit((queries, other), queries, optimizer="adam", **QUIET)
        assert "X is a tuple of arrays" in caught.value.__notes__[0]
        assert "input_shape=((...), (...))" in caught.value.__notes__[0]
    dense = xpnn.Network(xpnn.Dense(1))
    with pytest.raises(DataError, match="X has 2 samples and y has 4") as caught:
        dense.fit((np.ones(4), np.ones(4)), np.ones(4), optimizer="adam", **QUIET)
    assert "X is a tuple of arrays" in caught.value.__notes__[0]


@pytest.mark.parametrize("layers", [[xpnn.Each(xpnn.Dense(2, 2), xpnn.Dense(2, 2))], [xpnn.LSTM(3, return_state=True)]])
def test_a_network_gives_one_array(layers):
    shape = ((2,), (2,)) if isinstance(layers[0], xpnn.Each) else (4, 2)
    with pytest.raises(ShapeError, match=r"the last layer gives \d arrays.*combine="):
        xpnn.Network(layers, input_shape=shape)


def test_a_layer_that_gives_a_tuple_unasked():
    class Twins(xpnn.Layer):
        """Promises one array and gives two."""

        def forward(self, x, parameters, run):
            return (x, x), lambda dy: (dy[0], {})

    net = xpnn.Network(Twins(), input_shape=(2,))
    with pytest.raises(ShapeError, match="the network gives 2 arrays, and its layers' build promised one"):
        net.predict(np.ones((3, 2)))


@pytest.mark.parametrize("shape", [((3,), 2), ((3,), (1.5,)), ((-1,), (2,)), 3])
def test_input_shapes_that_are_none(shape):
    with pytest.raises(ConfigError, match="input_shape"):
        network().build(shape)


def reversal(samples, length=4, symbols=6):
    """Sequences of symbols from 1 on: ((what the decoder has written so far, the source), the source reversed)."""
    source = np.random.default_rng(0).integers(1, symbols, (samples, length))
    target = source[:, ::-1]
    begun = np.concatenate([np.zeros((samples, 1), int), target[:, :-1]], axis=1)
    return (begun, source), target


@pytest.mark.xpnn_rows(dtypes="float32", only=("numpy", "numpy-compiled", "numpy-fast", "torch", "jax"))
def test_an_encoder_and_a_decoder_learn_to_reverse(backend, dtype):
    (begun, source), target = reversal(576)

    def embedded():
        return [xpnn.Embedding(6, 16), xpnn.LearnedPositions(4)]

    net = xpnn.Network(
        xpnn.Each(embedded(), [*embedded(), xpnn.TransformerEncoderBlock(2, 32, dropout=0.0)]),
        xpnn.TransformerDecoderBlock(2, 32, dropout=0.0, return_memory=True),
        xpnn.TransformerDecoderBlock(2, 32, dropout=0.0),
        xpnn.LayerNorm(),
        xpnn.Dense(6),
        backend=backend,
        dtype=dtype,
    )
    X = (begun[:512], source[:512])
    net.fit(X, target[:512], loss="cross_entropy", optimizer=xpnn.Adam(0.01), epochs=20, batch_size=32, verbose=0)
    # Sequences that it has not seen, written symbol by symbol.
    written = np.zeros((64, 5), int)
    for position in range(4):
        scores = net.predict((written[:, :4], source[512:]))
        written[:, position + 1] = scores[:, position].argmax(axis=1)
    assert np.mean(written[:, 1:] == target[512:]) > 0.95
