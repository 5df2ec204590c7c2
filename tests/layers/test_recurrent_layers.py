"""RNN, LSTM, GRU, Masking, TimeDistributed: settings, shapes, masks, and training on every row."""

import numpy as np
import pytest

import xpnn
from xpnn.data import pad_sequences
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Run
from xpnn.layers.layer import checked_build

LAYERS = {"rnn": xpnn.RNN, "lstm": xpnn.LSTM, "gru": xpnn.GRU}
KINDS = pytest.mark.parametrize("kind", LAYERS.values())


def built(layer, input_shape=(5, 3), seed=0):
    """A network of one layer in float64."""
    return xpnn.Network(layer, dtype="float64", input_shape=input_shape, seed=seed)


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@KINDS
def test_shapes_of_outputs(kind):
    assert checked_build(kind(4), (5, 3))[0] == (4,)
    assert checked_build(kind(4, bidirectional=True), (5, 3))[0] == (8,)
    assert checked_build(kind(4, 2, return_sequences=True), (5, 3))[0] == (5, 4)
    states = len(kind.states)
    assert checked_build(kind(4, return_state=True), (5, 3))[0] == ((4,), *[(4,)] * states)
    deep = kind(4, 2, True, return_sequences=True, return_state=True)
    assert checked_build(deep, (5, 3))[0] == ((5, 8), *[(4, 4)] * states)


def test_names_and_first_values_of_parameters():
    network = built(xpnn.LSTM(4))
    assert list(network.parameters) == ["0.weight_input", "0.weight_hidden", "0.bias"]
    np.testing.assert_array_equal(network.parameters["0.bias"], [0] * 4 + [1] * 4 + [0] * 8)
    hidden = network.parameters["0.weight_hidden"]
    np.testing.assert_allclose(hidden @ hidden.T, np.eye(4), atol=1e-14)
    np.testing.assert_array_equal(built(xpnn.LSTM(4, forget_bias=0.0)).parameters["0.bias"], 0.0)
    assert list(built(xpnn.GRU(4)).parameters) == ["0.weight_input", "0.weight_hidden", "0.bias_input", "0.bias_hidden"]
    deep = built(xpnn.RNN(4, layers=2, bidirectional=True, bias=False))
    assert {name: value.shape for name, value in deep.parameters.items()} == {
        "0.0.forward.weight_input": (3, 4),
        "0.0.forward.weight_hidden": (4, 4),
        "0.0.reverse.weight_input": (3, 4),
        "0.0.reverse.weight_hidden": (4, 4),
        "0.1.forward.weight_input": (8, 4),
        "0.1.forward.weight_hidden": (4, 4),
        "0.1.reverse.weight_input": (8, 4),
        "0.1.reverse.weight_hidden": (4, 4),
    }


@KINDS
def test_results_belong_together(kind):
    """The same parameters give the sequence of outputs, the last one, and the states."""
    x = normal((2, 5, 3))
    parameters = {name[2:]: value for name, value in built(kind(4, 2, True)).parameters.items()}
    last, _ = kind(4, 2, True).forward(x, parameters, Run())
    sequence, _ = kind(4, 2, True, return_sequences=True).forward(x, parameters, Run())
    (again, hidden, *_), _ = kind(4, 2, True, return_state=True).forward(x, parameters, Run())
    np.testing.assert_array_equal(last, np.concatenate([sequence[:, -1, :4], sequence[:, 0, 4:]], axis=-1))
    np.testing.assert_array_equal(again, last)
    np.testing.assert_array_equal(hidden[:, 2:].reshape(2, 8), last)


@KINDS
def test_dropout_acts_between_layers_in_training_only(kind):
    x = normal((2, 5, 3))
    parameters = {name[2:]: value for name, value in built(kind(4, 2)).parameters.items()}
    plain, _ = kind(4, 2).forward(x, parameters, Run(training=True))
    quiet, _ = kind(4, 2, dropout=0.5).forward(x, parameters, Run())
    noisy, _ = kind(4, 2, dropout=0.5).forward(x, parameters, Run(training=True))
    np.testing.assert_array_equal(quiet, plain)
    assert not np.allclose(noisy, plain)


@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("bidirectional", [False, True])
@KINDS
def test_padding_changes_nothing(kind, bidirectional, side):
    sequences = [normal((length, 3), length) for length in (4, 1, 6)]
    network = xpnn.Network(
        xpnn.Masking(-9.0), kind(4, 2, bidirectional), xpnn.Dense(2), dtype="float64", input_shape=(6, 3)
    )
    padded = pad_sequences(sequences, value=-9.0, side=side)
    for sequence, row in zip(sequences, network.predict(padded), strict=True):
        alone = xpnn.Network(
            xpnn.Masking(-9.0), kind(4, 2, bidirectional), xpnn.Dense(2), dtype="float64", input_shape=sequence.shape
        )
        alone.set_parameters(network.parameters)
        np.testing.assert_allclose(row, alone.predict(sequence[None])[0], rtol=1e-12)


def test_masks_travel_as_far_as_the_steps_do():
    x = normal((2, 4, 3))
    x[0, 2:] = 0.0
    seen = []

    class Look(xpnn.Layer):
        def forward(self, x, parameters, run):
            seen.append(None if run.mask is None else run.mask.tolist())
            return x, lambda dy: (dy, {})

    mask = [[True, True, False, False], [True] * 4]
    layers = [
        *(xpnn.Masking(), Look(), xpnn.LSTM(3, return_sequences=True), Look()),
        *(xpnn.TimeDistributed([xpnn.Dense(2), Look()]), Look(), xpnn.GRU(3), Look()),
    ]
    network = xpnn.Network(*layers, dtype="float64", input_shape=(4, 3))
    seen.clear()
    network.predict(x)
    assert seen == [mask, mask, None, mask, None]


def test_embedding_marks_its_padding():
    network = xpnn.Network(xpnn.Embedding(5, 3, padding_index=0), xpnn.LSTM(4), dtype="float64", input_shape=(5,))
    tokens = pad_sequences([[1, 2, 3], [4, 4, 1, 2, 3]], value=0)
    whole = network.predict(tokens)
    short = xpnn.Network(xpnn.Embedding(5, 3), xpnn.LSTM(4), dtype="float64", input_shape=(3,))
    short.set_parameters(network.parameters)
    np.testing.assert_allclose(whole[0], short.predict(np.asarray([[1, 2, 3]]))[0], rtol=1e-12)
    with pytest.raises(ConfigError, match="padding_index=5 is no row"):
        xpnn.Embedding(5, 3, padding_index=5)
    with pytest.raises(ShapeError, match="padding_index wants sequences"):
        checked_build(xpnn.Embedding(5, 3, padding_index=0), (2, 3))


def test_time_distributed_is_the_layer_on_each_step():
    layer = xpnn.TimeDistributed(xpnn.Sequential(xpnn.Flatten(), xpnn.Dense(2)))
    network = built(layer, (4, 3, 2))
    x = normal((5, 4, 3, 2))
    weight, bias = network.parameters["0.layer.1.weight"], network.parameters["0.layer.1.bias"]
    np.testing.assert_allclose(network.predict(x), x.reshape(5, 4, 6) @ weight + bias, rtol=1e-13)


@KINDS
def test_settings_without_sense(kind):
    with pytest.raises(ConfigError, match="units=0"):
        kind(0)
    with pytest.raises(ConfigError, match="layers=0"):
        kind(3, layers=0)
    with pytest.raises(ConfigError, match="dropout=1"):
        kind(3, layers=2, dropout=1.0)
    with pytest.raises(ConfigError, match=r"dropout=0.5\) acts between layers, and there is one layer; give layers=2"):
        kind(3, dropout=0.5)
    with pytest.raises(ConfigError, match="weight_initializer='nought'"):
        kind(3, weight_initializer="nought")
    with pytest.raises(ShapeError, match=r"samples of shape \(3,\), wants sequences"):
        checked_build(kind(3), (3,))
    with pytest.raises(ShapeError, match="got initial states of shapes"):
        checked_build(kind(3), ((5, 2), (4,)))
    run = Run()
    run.mask = np.ones((2, 4), bool)
    parameters = {name[2:]: value for name, value in built(kind(3)).parameters.items()}
    with pytest.raises(ShapeError, match=r"mask of shape \(2, 4\) for sequences of shape \(2, 5, 3\)"):
        kind(3).forward(normal((2, 5, 3)), parameters, run)


def test_more_settings_without_sense():
    with pytest.raises(ConfigError, match="activation='gelu'"):
        xpnn.RNN(3, activation="gelu")
    with pytest.raises(ConfigError, match="forget_bias=nan"):
        xpnn.LSTM(3, forget_bias=float("nan"))
    with pytest.raises(ConfigError, match="value=inf"):
        xpnn.Masking(float("inf"))
    with pytest.raises(ShapeError, match="wants sequences"):
        checked_build(xpnn.Masking(), (3,))
    with pytest.raises(ConfigError, match=r"no xpnn.Layer"):
        xpnn.TimeDistributed("dense")
    with pytest.raises(ShapeError, match="wants sequences"):
        checked_build(xpnn.TimeDistributed(xpnn.Dense(2)), ())


def test_a_saved_network_gives_the_same(tmp_path):
    network = xpnn.Network(
        xpnn.Masking(),
        xpnn.RNN(3, return_sequences=True, activation="relu"),
        xpnn.GRU(3, bidirectional=True, return_sequences=True),
        xpnn.LSTM(2, layers=2, dropout=0.5, forget_bias=0.5),
        input_shape=(5, 3),
    )
    network.save(tmp_path / "model.xpnn")
    x = normal((2, 5, 3))
    again = xpnn.Network.load(tmp_path / "model.xpnn")
    np.testing.assert_array_equal(again.predict(x), network.predict(x))
    assert again.root == network.root


def memory_task(samples, seed):
    """Sequences of different lengths that begin with 0 or 1; which of them it was, is asked in the end."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 2, samples)
    sequences = []
    for bit in first:
        steps = rng.uniform(0.1, 0.9, (rng.integers(3, 9), 2))
        steps[0] = (bit, 1 - bit)
        sequences.append(steps)
    return pad_sequences(sequences, length=8), first


@pytest.mark.xpnn_rows(dtypes="float32")
@KINDS
def test_learns_to_remember(kind, backend):
    x, y = memory_task(200, 0)
    network = xpnn.Network(xpnn.Masking(), kind(8), xpnn.Dense(2), backend=backend, seed=1)
    history = network.fit(x, y, loss="cross_entropy", optimizer=xpnn.Adam(0.03), epochs=12, batch_size=50, verbose=0)
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    result = network.evaluate(*memory_task(100, 1), metrics=["accuracy"])
    assert result["accuracy"] > 0.9


def reading_task(samples, seed):
    """Noisy strips in which each label takes two or three steps; y begins with the number of steps."""
    rng = np.random.default_rng(seed)
    strips, labels = [], []
    for _ in range(samples):
        word = rng.integers(1, 4, rng.integers(1, 3))
        steps = [row for label in word for row in [np.eye(4)[label]] * rng.integers(2, 4) + [np.eye(4)[0]]]
        strips.append(np.asarray(steps) + 0.1 * rng.standard_normal((len(steps), 4)))
        labels.append([len(steps), *word])
    return pad_sequences(strips, length=8), pad_sequences(labels, length=3, value=-1)


@pytest.mark.xpnn_rows(dtypes="float32")
def test_learns_to_read_by_ctc(backend):
    x, y = reading_task(100, 0)
    layers = [xpnn.GRU(12, return_sequences=True), xpnn.Dense(4)]
    network = xpnn.Network(*layers, backend=backend, seed=1)
    loss = xpnn.CTC(input_lengths=True)
    history = network.fit(x, y, loss=loss, optimizer=xpnn.Adam(0.02), epochs=15, batch_size=50, verbose=0)
    assert history["loss"][-1] < 0.3 * history["loss"][0]


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (xpnn.CTC(), [[1, 4]], "row 0 of y has the labels .*labels run from 0 to 3, without the blank, 0"),
        (xpnn.CTC(), [[1, 2], [0, 2]], "row 1 of y has the labels"),
        (xpnn.CTC(), [[-1, 2]], "give -1 behind the last label, and only there"),
        (xpnn.CTC(), [[1, -2]], "give -1 behind the last label, and only there"),
        (xpnn.CTC(), [[1, 1, 1, 2]], "4 labels, 2 of them equal to the one before; that takes 6 time steps, .* are 5"),
        (xpnn.CTC(), [1, 2], "give the labels of each sample as a row"),
        (xpnn.CTC(), [[1.5]], "not whole"),
        (xpnn.CTC(input_lengths=True), [[6, 1]], "begins with 6, the number of its time steps; the network gives 5"),
        (xpnn.CTC(input_lengths=True), [[1, 1, 2]], "that takes 2 time steps, and there are 1"),
    ],
)
def test_targets_that_ctc_refuses(loss, targets, message):
    network = xpnn.Network(xpnn.LSTM(3, return_sequences=True), xpnn.Dense(4), input_shape=(5, 2))
    with pytest.raises(xpnn.errors.DataError, match=message):
        network.loss_and_gradients(np.zeros((len(targets), 5, 2)), np.asarray(targets), loss=loss)


def test_ctc_wants_steps_and_classes():
    network = xpnn.Network(xpnn.LSTM(3), xpnn.Dense(4), input_shape=(5, 2))
    with pytest.raises(ConfigError, match="let the last recurrent layer return_sequences"):
        network.loss_and_gradients(np.zeros((1, 5, 2)), np.asarray([[1]]), loss="ctc")
    network = xpnn.Network(xpnn.LSTM(3, return_sequences=True), input_shape=(5, 2))
    with pytest.raises(ConfigError, match=r"CTC\(blank=3\): the network has the classes 0 to 2"):
        network.loss_and_gradients(np.zeros((1, 5, 2)), np.asarray([[1]]), loss=xpnn.CTC(blank=3))
    with pytest.raises(ConfigError, match="blank=-1"):
        xpnn.CTC(blank=-1)
