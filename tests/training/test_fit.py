"""The training loop: what it computes, in which order, and what it refuses."""

import numpy as np
import pytest

import xpnn
from xpnn import random
from xpnn.errors import ConfigError, DataError, TrainingError
from xpnn.training.data import enter_inputs
from xpnn_backends.numpy_backend import NumpyBackend
from xpnn_backends.strict_backend import StrictBackend


def blobs(samples=90, dtype="float64"):
    """Three clouds of points, one for each class, that lie well apart."""
    generator = np.random.default_rng(0)
    labels = np.arange(samples) % 3
    centers = np.array([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    return (centers[labels] + 0.3 * generator.standard_normal((samples, 2))).astype(dtype), labels


def network(backend="numpy", dtype="float64", dropout=0.0, seed=0):
    layers = [xpnn.Dense(2, 8), xpnn.Tanh(), *([xpnn.Dropout(dropout)] if dropout else []), xpnn.Dense(3)]
    return xpnn.Network(*layers, backend=backend, dtype=dtype, seed=seed)


def weights(net):
    return {name: net.backend.to_host(value) for name, value in net.parameters.items()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


QUIET = {"loss": "cross_entropy", "verbose": 0}


def test_learns_on_every_backend_with_the_same_losses(backend, dtype):
    X, y = blobs(dtype=dtype)
    options = {**QUIET, "epochs": 8, "batch_size": 16, "metrics": ["accuracy"], "validation_split": 0.2}
    net = network(backend, dtype, dropout=0.1)
    history = net.fit(X, y, optimizer=xpnn.Adam(0.03), **options)
    reference = network("numpy", dtype, dropout=0.1).fit(X, y, optimizer=xpnn.Adam(0.03), **options)
    assert history["accuracy"][-1] > 0.9
    assert history["val_accuracy"][-1] > 0.9
    for name in history:
        np.testing.assert_allclose(history[name], reference[name], rtol=1e-8 if dtype == "float64" else 1e-3)
    assert net.backend.owns(net.parameters["0.weight"])
    assert type(net.predict(X)) is np.ndarray


def test_one_full_batch_step_is_the_formula():
    X, y = blobs()
    net = network()
    before = weights(net)
    _, gradients = net.loss_and_gradients(X, y, loss="cross_entropy")
    net.fit(X, y, optimizer=xpnn.SGD(0.5), batch_size=None, **QUIET)
    for name, value in weights(net).items():
        np.testing.assert_allclose(value, before[name] - 0.5 * gradients[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_epochs_are_steps_over_batches_in_a_known_order(shuffle, weighted):
    X, y = blobs(50)
    sample_weight = np.linspace(0.1, 2.0, 50) if weighted else None
    net, by_hand = network(seed=7), network(seed=7)
    net.fit(
        X, y, optimizer=xpnn.Adam(0.01), epochs=2, batch_size=16, shuffle=shuffle, sample_weight=sample_weight, **QUIET
    )
    step, state = by_hand.step("cross_entropy", xpnn.Adam(0.01)), by_hand.initial_state(xpnn.Adam(0.01))
    for epoch in range(2):
        order = random.permutation(7, random.stream(random.SHUFFLE), epoch, 50) if shuffle else np.arange(50)
        for start in (0, 16, 32, 48):  # the last batch has two samples, and is kept
            rows = order[start : start + 16]
            part = None if sample_weight is None else sample_weight[rows]
            state, _ = step(state, by_hand.prepare(X[rows], y[rows], "cross_entropy", part))
    by_hand.set_state(state)
    assert_same_weights(weights(net), weights(by_hand))
    assert net.training.step == state.step == 8


@pytest.mark.parametrize("batch_size", [None, 1, 16, 50, 1000])
def test_every_sample_is_used_once_per_epoch(batch_size):
    seen = []

    class Recording(xpnn.MSE):
        def __call__(self, prediction, target, weight=None):
            seen.append(target[:, 0].copy())
            return super().__call__(prediction, target, weight)

    X = np.arange(50.0)[:, None]
    net = xpnn.Network(xpnn.Dense(1, 1), dtype="float64")
    net.fit(X, X, loss=Recording(), optimizer=xpnn.SGD(0.0), epochs=2, batch_size=batch_size, verbose=0)
    size = min(batch_size or 50, 50)
    per_epoch = -(-50 // size)
    assert len(seen) == 2 * per_epoch
    for epoch in (seen[:per_epoch], seen[per_epoch:]):
        assert [len(batch) for batch in epoch[:-1]] == [size] * (per_epoch - 1)
        assert sorted(np.concatenate(epoch)) == X[:, 0].tolist()
    if per_epoch > 1:
        assert np.concatenate(seen[:per_epoch]).tolist() != np.concatenate(seen[per_epoch:]).tolist()


class CountingBackend(NumpyBackend):
    """NumPy, in whose batch loop nothing may be brought to the host."""

    name = "strict"  # not the host library: sums must travel

    def __init__(self):
        super().__init__()
        self.reads = 0

    def to_host(self, x):
        self.reads += 1
        return super().to_host(x)

    def owns(self, x):
        return isinstance(x, np.ndarray)


def test_the_device_is_read_once_per_epoch_whatever_the_number_of_batches():
    X, y = blobs()

    def reads(epochs, batch_size):
        backend = CountingBackend()
        net = network(backend)
        enter_inputs(net, X)
        backend.reads = 0
        net.fit(X, y, optimizer="adam", epochs=epochs, batch_size=batch_size, metrics=["accuracy", "f1"], **QUIET)
        return backend.reads

    at_entry = reads(0, 1)
    assert reads(1, 1) == reads(1, 90) == at_entry + 1
    assert reads(5, 7) == at_entry + 5


def test_the_step_reads_nothing_and_keeps_to_the_standard():
    steps = []

    class Disciplined(StrictBackend):
        def compile(self, step):
            def run(state, batch):
                steps.append(step)
                with self.discipline():
                    return step(state, batch)

            return run

    X, y = blobs(dtype="float32")
    net = network(Disciplined("device1"), "float32", dropout=0.2)
    metrics = ["accuracy", "top_2", "precision", "confusion_matrix"]
    history = net.fit(
        X, y, optimizer="adam", epochs=2, batch_size=40, validation_data=(X, y), metrics=metrics,
        sample_weight=np.ones(90), **QUIET,
    )  # fmt: skip
    assert len(steps) == 2 * (3 + 1)
    assert history["accuracy"][0] > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", xpnn.SGD(0.05, momentum=0.9), xpnn.Adam(0.01, ema=0.9)])
def test_resuming_goes_on_bit_for_bit(optimizer):
    X, y = blobs()
    options = {**QUIET, "batch_size": 16, "metrics": ["accuracy"], "validation_split": 0.1}
    at_once, in_parts = network(dropout=0.3), network(dropout=0.3)
    whole = at_once.fit(X, y, optimizer=optimizer, epochs=10, **options)
    first = in_parts.fit(X, y, optimizer=optimizer, epochs=5, **options)
    options = {"batch_size": 16, "validation_split": 0.1, "verbose": 0}
    second = in_parts.fit(X, y, epochs=5, resume=True, **options)
    assert first.epochs + second.epochs == whole.epochs == list(range(1, 11))
    for name in whole:
        assert first[name] + second[name] == whole[name]
    assert_same_weights(weights(at_once), weights(in_parts))
    for slot, vector in at_once.training.slots.items():
        for one, other in zip(vector, in_parts.training.slots[slot], strict=True):
            np.testing.assert_array_equal(one, other)
    assert at_once.training.step == in_parts.training.step == 60
    assert at_once.training.epoch == in_parts.training.epoch == 10


def test_without_resume_the_memory_is_fresh():
    X, y = blobs()
    net = network()
    start = weights(net)
    first = net.fit(X, y, optimizer="adam", epochs=2, **QUIET)
    net.set_parameters(start)
    second = net.fit(X, y, optimizer="adam", epochs=2, **QUIET)
    assert first.to_dict() == second.to_dict()
    assert second.epochs == [1, 2]


def test_resume_may_change_settings_but_not_the_kind_of_memory():
    X, y = blobs()
    net = network()
    with pytest.raises(ConfigError, match="not trained yet"):
        net.fit(X, y, resume=True, verbose=0)
    net.fit(X, y, optimizer=xpnn.Adam(0.01), **QUIET)
    net.fit(X, y, optimizer=xpnn.Adam(0.001), resume=True, metrics=["accuracy"], verbose=0)
    assert net.training.optimizer == xpnn.Adam(0.001)
    assert net.training.metrics == (xpnn.metrics.Accuracy(),)
    with pytest.raises(ConfigError, match="same kind"):
        net.fit(X, y, optimizer="sgd", resume=True, verbose=0)


def test_arrays_that_were_given_out_do_not_change():
    X, y = blobs()
    net = network()
    net.fit(X, y, optimizer="adam", **QUIET)
    given_out = net.parameters["0.weight"]
    kept = given_out.copy()
    theta, slots = net._theta[0], {name: vector[0] for name, vector in net.training.slots.items()}
    before = [theta.copy(), *(slot.copy() for slot in slots.values())]
    X_before, y_before = X.copy(), y.copy()
    net.fit(X, y, epochs=3, resume=True, verbose=0)
    np.testing.assert_array_equal(given_out, kept)
    for array, copy in zip([theta, *slots.values()], before, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(y, y_before)


def test_evaluation_does_not_depend_on_the_batch_size(backend, dtype):
    X, y = blobs(dtype=dtype)
    labels = np.where(np.arange(90) % 4 == 0, -1, y)
    loss = xpnn.CrossEntropy(class_weights=[1.0, 2.0, 0.5], ignore_index=-1)
    net = network(backend, dtype)
    options = {"loss": loss, "metrics": ["accuracy", "f1"], "sample_weight": np.linspace(0.0, 1.0, 90)}
    whole = net.evaluate(X, labels, batch_size=None, **options)
    for batch_size in (1, 7, 64):
        found = net.evaluate(X, labels, batch_size=batch_size, **options)
        assert found == pytest.approx(whole, rel=1e-12 if dtype == "float64" else 1e-5)
    value, _ = net.loss_and_gradients(X, labels, loss=loss, sample_weight=options["sample_weight"])
    assert whole["loss"] == pytest.approx(float(net.backend.to_host(value)), rel=1e-5)


def test_a_sum_is_added_up_over_batches():
    X, y = blobs()
    net = network()
    loss = xpnn.CrossEntropy(reduction="sum")
    assert net.evaluate(X, y, loss=loss, batch_size=7) == pytest.approx(net.evaluate(X, y, loss=loss, batch_size=None))


def test_evaluate_takes_loss_and_metrics_of_the_last_fit():
    X, y = blobs()
    net = network()
    with pytest.raises(ConfigError, match="not trained"):
        net.evaluate(X, y)
    net.fit(X, y, optimizer="adam", metrics=["accuracy"], **QUIET)
    assert net.evaluate(X, y).keys() == {"loss", "accuracy"}
    assert net.evaluate(X, y, metrics=[]).keys() == {"loss"}
    assert net.evaluate(X, np.eye(3)[y], loss="mse", metrics=["mae"]).keys() == {"loss", "mae"}


def test_validation_data_and_split_agree_with_evaluate():
    X, y = blobs()
    net = network()
    held_out = (X[:30], y[:30], np.arange(30.0))
    history = net.fit(
        X[30:], y[30:], optimizer="adam", epochs=3, metrics=["accuracy"], validation_data=held_out, **QUIET
    )
    expected = net.evaluate(X[:30], y[:30], sample_weight=np.arange(30.0))
    assert history["val_loss"][-1] == pytest.approx(expected["loss"])
    assert history["val_accuracy"][-1] == pytest.approx(expected["accuracy"])

    order = random.permutation(0, random.stream(random.SPLIT), 0, 90)
    split, given = network(), network()
    first = split.fit(X, y, optimizer="adam", epochs=2, validation_split=0.3, **QUIET)
    rows, out = np.sort(order[27:]), np.sort(order[:27])
    second = given.fit(X[rows], y[rows], optimizer="adam", epochs=2, validation_data=(X[out], y[out]), **QUIET)
    assert first.to_dict() == second.to_dict()


def test_validation_changes_nothing_in_the_training():
    X, y = blobs()
    plain, watched = network(dropout=0.2), network(dropout=0.2)
    plain.fit(X, y, optimizer="adam", epochs=3, **QUIET)
    watched.fit(X, y, optimizer="adam", epochs=3, validation_data=(X, y), metrics=["accuracy", "f1"], **QUIET)
    assert_same_weights(weights(plain), weights(watched))


def test_a_weight_counts_like_a_repetition():
    X, y = blobs(30)
    counts = np.arange(30) % 3
    weighted, repeated = network(), network()
    options = {**QUIET, "optimizer": xpnn.SGD(0.3), "batch_size": None, "epochs": 5, "metrics": ["accuracy"]}
    first = weighted.fit(X, y, sample_weight=counts, **options)
    second = repeated.fit(np.repeat(X, counts, axis=0), np.repeat(y, counts), **options)
    for name in first:
        assert first[name] == pytest.approx(second[name])
    for name, value in weights(weighted).items():
        np.testing.assert_allclose(value, weights(repeated)[name], rtol=1e-10, atol=1e-12)


def test_frozen_parameters_stay():
    X, y = blobs()
    net = network().freeze("0")
    before = weights(net)
    net.fit(X, y, optimizer="adam", epochs=2, **QUIET)
    after = weights(net)
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("0.")
    net.freeze("2")
    with pytest.raises(ConfigError, match="nothing to train"):
        net.fit(X, y, optimizer="adam", **QUIET)


def test_a_loss_that_is_no_number_ends_the_training():
    X = np.linspace(-10, 10, 20)[:, None]
    net = xpnn.Network(xpnn.Dense(1, 1), dtype="float32")
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingError, match=r"after epoch \d+: .*Lower the learning rate \(it is 1e\+04\)"),
    ):
        net.fit(X, X, loss="mse", optimizer=xpnn.SGD(1e4), epochs=50, verbose=0)
    assert 1 <= net.training.epoch < 50
    assert net.training.step == net.training.epoch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": None}, 'fit needs a loss: loss="mse", say; known names: .*cross_entropy'),
        ({"optimizer": None}, "fit needs an optimizer"),
        ({"loss": "mes"}, "loss='mes' is unknown"),
        ({"optimizer": "adamm"}, "optimizer='adamm' is unknown"),
        ({"metrics": ["acc"]}, "metrics holds 'acc'"),
        ({"epochs": -1}, "epochs=-1"),
        ({"epochs": 2.5}, r"epochs=2\.5"),
        ({"epochs": True}, "epochs=True"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "all"}, "batch_size='all'"),
        ({"batch_size": 1.5}, r"batch_size=1\.5"),
        ({"validation_split": 1.0}, r"validation_split=1\.0"),
        ({"validation_split": 0.001}, "leaves 0 for validation"),
        ({"validation_split": 0.5, "validation_data": ([[0.0, 0.0]], [0])}, "give one of them"),
        ({"validation_data": 3}, r"validation_data must be \(X, y\)"),
        ({"callbacks": [print]}, "no xpnn.Callback"),
        ({"callbacks": [xpnn.EarlyStopping]}, r"write EarlyStopping\(\.\.\.\)"),
        ({"verbose": 7}, "verbose=7"),
        ({"loss": "cross_entropy_from_probabilities", "layers": [xpnn.Dense(2, 3), xpnn.LogSoftmax()]}, "nll"),
        ({"layers": [xpnn.Dense(2, 3), xpnn.Softmax()]}, "cross_entropy_from_probabilities"),
        ({"layers": []}, "nothing to train"),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    X, y = blobs(30)
    options = dict(options)
    net = xpnn.Network(*options.pop("layers", [xpnn.Dense(2, 3)]))
    before = weights(net) if net.input_shape else {}
    if net.root.layers == ():
        y = (y > 0).astype(int)
    with pytest.raises(ConfigError, match=message):
        net.fit(X, y, **{**QUIET, "optimizer": "adam", **options})
    if before:
        assert_same_weights(weights(net), before)
    assert net.training is None


def test_data_that_cannot_be_used():
    X, y = blobs(30)
    net = network()
    with_nan = X.copy()
    with_nan[17, 1] = np.nan
    for arguments, message in [
        ((with_nan, y), r"X has NaN.* in 1 of 30 rows, first in row 17"),
        ((X, y[:-1]), "X has 30 samples and y has 29"),
        ((X[:0], y[:0]), "X has no samples"),
        ((X, y + 1), "label 3"),
    ]:
        with pytest.raises(DataError, match=message):
            net.fit(*arguments, optimizer="adam", **QUIET)
    with pytest.raises(DataError, match="validation y has 29"):
        net.fit(X, y, optimizer="adam", validation_data=(X, y[:-1]), **QUIET)


def test_zero_epochs_give_an_empty_history():
    X, y = blobs()
    net = network()
    before = weights(net)
    history = net.fit(X, y, optimizer="adam", epochs=0, **QUIET)
    assert len(history) == 0
    assert history.epochs == []
    assert_same_weights(weights(net), before)


def test_history():
    X, y = blobs()
    history = network().fit(X, y, optimizer="adam", epochs=3, metrics=["accuracy"], validation_data=(X, y), **QUIET)
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert history.to_dict() == {"epoch": [1, 2, 3], **{name: history[name] for name in history}}
    assert all(type(value) is float for value in history["loss"])
    assert len(history.seconds) == 3
    assert "3 epochs" in repr(history)
    assert not history.interrupted
    with pytest.raises(KeyError, match="the history has no 'accurracy'; it has: loss, accuracy"):
        history["accurracy"]


def test_averaged_weights():
    X, y = blobs()
    net = network()
    with pytest.raises(ConfigError, match="not trained"):
        net.use_averaged_weights()
    net.fit(X, y, optimizer=xpnn.Adam(0.01, ema=0.9), epochs=3, **QUIET)
    expected = net.layout.split(net.training.slots["ema"])
    net.use_averaged_weights()
    assert_same_weights(weights(net), expected)
    net.fit(X, y, optimizer="adam", **QUIET)
    with pytest.raises(ConfigError, match="no average"):
        net.use_averaged_weights()
