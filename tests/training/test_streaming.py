"""Data that stay on the host and travel batch by batch: the same results, bit for bit, and the same refusals."""

import contextlib

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, DataError, ShapeError
from xpnn.training.data import HostData, enter_data, enter_large_data, enter_samples, split
from xpnn_backends.numpy_backend import NumpyBackend


class StreamingNumpy(NumpyBackend):
    """NumPy, to which data travel through one buffer: what is left of a batch is gone when the next one is there."""

    streams = True

    def __init__(self):
        super().__init__()
        self.room = 0
        self.open = 0
        self.sent = []

    def keeps(self, byte_count):
        return byte_count <= self.room

    def batches(self, arrays, dtypes, size, order=None):
        self.open += 1
        try:
            with contextlib.closing(super().batches(arrays, dtypes, size, order)) as whole:
                for parts in whole:
                    self.sent.append(len(parts[0]))
                    copies = tuple(np.array(part) for part in parts)
                    yield copies
                    for copy in copies:
                        copy.fill(0)
        finally:
            self.open -= 1


@pytest.fixture
def streaming(backend, monkeypatch):
    """A function: from its call on, data of the host stay there; it gives the sizes of the batches that travel."""
    sent = []

    def start():
        kind = type(backend)
        batches = kind.batches

        def noted(self, arrays, dtypes, size, order=None):
            with contextlib.closing(batches(self, arrays, dtypes, size, order)) as travelling:
                for parts in travelling:
                    sent.append(parts[0].shape[0])
                    yield parts

        monkeypatch.setattr(kind, "streams", True)
        monkeypatch.setattr(kind, "keeps", lambda self, byte_count: False)
        monkeypatch.setattr(kind, "batches", noted)
        return sent

    return start


def samples(count=50):
    generator = np.random.default_rng(3)
    labels = np.arange(count) % 3
    return (np.eye(3)[labels] @ generator.normal(size=(3, 4)) + 0.2 * generator.normal(size=(count, 4))), labels


def network(backend, dtype="float32", dropout=0.2):
    return xpnn.Network(
        xpnn.Dense(4, 8), xpnn.Tanh(), xpnn.Dropout(dropout), xpnn.Dense(3), backend=backend, dtype=dtype, seed=5
    )


def trained(backend, dtype, X, y, **options):
    """(history, weights, evaluation, predictions) of a small network."""
    net = network(backend, dtype)
    settings = {"loss": "cross_entropy", "optimizer": "adam", "epochs": 3, "batch_size": 16, "verbose": 0, **options}
    history = net.fit(X, y, metrics=["accuracy"], **settings)
    found = net.evaluate(X, y, batch_size=7, sample_weight=options.get("sample_weight"))
    weights = [net.backend.to_host(value) for value in net.parameters.values()]
    return dict(history), weights, found, net.predict(X, batch_size=9)


def assert_same(backend, first, second):
    """The same bits; but XLA compiles the picking of rows into the step, whose last bits may then be others."""
    rounding = 1e-4 if backend.name == "jax" else 0.0
    for one, other in zip(first[:3:2], second[:3:2], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=rounding, atol=0.0, err_msg=name)
    for one, other in zip([*first[1], first[3]], [*second[1], second[3]], strict=True):
        np.testing.assert_allclose(one, other, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("held_out", ["nothing", "a share", "data of their own"])
def test_streamed_training_is_the_same_bit_for_bit(backend, dtype, streaming, shuffle, held_out):
    X, y = samples()
    options = {"shuffle": shuffle, "sample_weight": np.linspace(0.5, 1.5, 50)}
    if held_out == "a share":
        options["validation_split"] = 0.3
    elif held_out == "data of their own":
        options["validation_data"] = (X[:11] + 0.1, y[:11])
    whole = trained(backend, dtype, X, y, **options)
    sent = streaming()
    streamed = trained(backend, dtype, X, y, **options)
    assert_same(backend, whole, streamed)
    epoch = {"a share": [16, 16, 3, 15], "data of their own": [16, 16, 16, 2, 11]}.get(held_out, [16, 16, 16, 2])
    assert sent == 3 * epoch + [7] * 7 + [1] + [9] * 5 + [5]


@pytest.mark.parametrize("batch_size", [None, 1, 17, 50, 80])
def test_every_batch_size(batch_size):
    X, y = samples()
    whole = trained("numpy", "float32", X, y, batch_size=batch_size)
    backend = StreamingNumpy()
    assert_same(backend, whole, trained(backend, "float32", X, y, batch_size=batch_size))
    assert backend.sent[0] == min(batch_size or 50, 50)
    assert backend.open == 0


@pytest.mark.xpnn_rows(skip=("jax", "strict-no64"), reason="the host converts, whatever the backend")
@pytest.mark.parametrize(
    "kind", ["uint8", "bool", "int32", "float16", "float64", "fortran", "strided", "swapped", "list"]
)
def test_data_are_converted_on_their_way_as_they_would_be_at_entry(backend, dtype, streaming, kind):
    X, y = samples()
    X = {
        "fortran": lambda: np.asfortranarray(X),
        "strided": lambda: np.repeat(X, 2, axis=1)[:, ::2],
        "swapped": lambda: X.astype(">f4"),
        "list": lambda: X.tolist(),
    }.get(kind, lambda: (3 * X).astype(kind))()
    whole = trained(backend, dtype, X, y)
    streaming()
    assert_same(backend, whole, trained(backend, dtype, X, y))


@pytest.mark.xpnn_rows(only=("cupy", "strict", "torch", "jax"))
def test_data_on_the_device_do_not_travel(backend, dtype, streaming):
    X, y = samples()
    there = backend.asarray(X, dtype), backend.asarray(y, "int64")
    sent = streaming()
    net = network(backend, dtype)
    net.fit(*there, loss="cross_entropy", optimizer="sgd", verbose=0)
    net.evaluate(*there)
    assert backend.owns(net.predict(there[0]))
    # Where one part lies on the device, all of it goes there.
    net.fit(X, there[1], loss="cross_entropy", optimizer="sgd", verbose=0)
    assert sent == []


def test_what_fits_moves_at_once():
    X, y = samples()
    backend = StreamingNumpy()
    backend.room = 50 * (4 * 4 + 8 + 4)  # float32 inputs, int64 labels, float32 weights
    net = network(backend)
    assert not isinstance(enter_large_data(net, X, y, xpnn.CrossEntropy(), np.ones(50)), HostData)
    backend.room -= 1
    assert isinstance(enter_large_data(net, X, y, xpnn.CrossEntropy(), np.ones(50)), HostData)
    assert not isinstance(enter_data(net, X, y, xpnn.CrossEntropy(), np.ones(50)), HostData)
    backend.room = 50 * 4 * 4
    assert not isinstance(enter_samples(net, X)[0], HostData)
    backend.room -= 1
    assert isinstance(enter_samples(net, X)[0], HostData)


def test_one_step_and_one_gradient_need_all_of_the_batch():
    X, y = samples()
    expected = network("numpy", dropout=0.0).loss_and_gradients(X, y, "cross_entropy")
    backend = StreamingNumpy()
    net = network(backend, dropout=0.0)
    value, gradients = net.loss_and_gradients(X, y, "cross_entropy")
    assert float(value) == float(expected[0])
    assert gradients.keys() == expected[1].keys()
    assert len(net.prepare(X, y, "cross_entropy")) == 3
    assert backend.sent == []


def test_inputs_of_several_kinds(backend, dtype, streaming):
    X = (np.arange(24).reshape(12, 2) % 5, np.linspace(-1, 1, 36).reshape(12, 3))
    y = np.linspace(0, 1, 12)

    def net():
        words = xpnn.Sequential(xpnn.Embedding(5, 3), xpnn.Flatten())
        return xpnn.Network(
            xpnn.Each(words, xpnn.Dense(3, 4), combine="concatenate"), xpnn.Dense(1), backend=backend, dtype=dtype
        )

    def run():
        built = net()
        history = built.fit(X, y, loss="mse", optimizer="adam", epochs=2, batch_size=5, verbose=0)
        return dict(history), built.predict(X, batch_size=5)

    whole = run()
    assert streaming() == []
    streamed = run()
    rounding = 1e-4 if backend.name == "jax" else 0.0
    np.testing.assert_allclose(streamed[0]["loss"], whole[0]["loss"], rtol=rounding)
    np.testing.assert_allclose(streamed[1], whole[1], rtol=rounding, atol=rounding)
    with pytest.raises(DataError, match=r"X\[0\] holds the index 5"):
        net().fit((X[0] + 1, X[1]), y, loss="mse", optimizer="adam", verbose=0)


def test_targets_that_are_the_inputs_travel_too(backend, dtype, streaming):
    X, _ = samples()

    def run():
        net = xpnn.Network(xpnn.Dense(4, 2), xpnn.Dense(4), backend=backend, dtype=dtype)
        return dict(net.fit(X, X, loss="mse", optimizer="adam", epochs=2, batch_size=16, verbose=0))

    whole = run()
    assert streaming() == []
    np.testing.assert_allclose(run()["loss"], whole["loss"], rtol=1e-4 if backend.name == "jax" else 0.0)


def with_entry(array, row, value):
    changed = np.array(array, dtype=np.result_type(array, value))
    changed[row] = value
    return changed


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda X, y: (with_entry(X, 7, np.nan), y), DataError, "X has NaN.*in 1 of 50 rows, first in row 7"),
        (lambda X, y: (X, with_entry(y, 3, 3)), DataError, "the label 3.*3 outputs"),
        (lambda X, y: (X, with_entry(y, 3, -1)), DataError, "the label -1"),
        (lambda X, y: (X, with_entry(y, 3, 0.5)), DataError, "not whole"),
        (lambda X, y: (X[:-1], y), DataError, "X has 49 samples and y has 50"),
        (lambda X, y: (X[:, :3], y), ShapeError, r"\(3,\).*\(4,\)"),
        (lambda X, y: (X[:0], y[:0]), DataError, "no samples"),
        (lambda X, y: ([["a"]], y), DataError, "encode text"),
        (lambda X, y: (1e39 * X, y), DataError, "too large values for float32"),
    ],
)
def test_what_is_wrong_is_found_before_anything_travels(change, error, message):
    backend = StreamingNumpy()
    X, y = change(*samples())
    with pytest.raises(error, match=message):
        network(backend).fit(X, y, loss="cross_entropy", optimizer="sgd", verbose=0)
    assert backend.sent == []


def test_indices_are_checked_whatever_their_dtype():
    backend = StreamingNumpy()
    net = xpnn.Network(xpnn.Embedding(5, 2), xpnn.Flatten(), xpnn.Dense(1), backend=backend)
    for dtype in ("uint8", "int64", "uint64"):
        assert net.predict(np.array([[0, 4]], dtype)).shape == (1, 1)
        with pytest.raises(DataError, match="index 5"):
            net.predict(np.array([[0, 5]], dtype))
    assert net.predict(np.array([[True, False]])).shape == (1, 1)
    with pytest.raises(DataError, match="must hold integers"):
        net.predict([[0.5, 1.0]])


def test_a_network_that_knows_no_shape_yet_is_built_and_forgets_it_after_an_error():
    X, y = samples()
    net = xpnn.Network(xpnn.Dense(3), backend=StreamingNumpy())
    with pytest.raises(DataError, match="the label 9"):
        net.fit(X, with_entry(y, 0, 9), loss="cross_entropy", optimizer="sgd", verbose=0)
    assert net.input_shape is None
    net.fit(X, y, loss="cross_entropy", optimizer="sgd", verbose=0)
    assert net.input_shape == (4,)


def test_no_samples_give_no_predictions():
    net = network(StreamingNumpy())
    assert net.predict(np.empty((0, 4))).shape == (0, 3)


def test_a_network_without_parameters_gives_its_inputs():
    backend = StreamingNumpy()
    X = np.arange(24.0).reshape(6, 2, 2)
    found = xpnn.Network(xpnn.Flatten(), backend=backend, dtype="float64", input_shape=(2, 2)).predict(X, batch_size=4)
    np.testing.assert_array_equal(found, X.reshape(6, 4))
    assert backend.sent == [4, 2]


def test_rows_of_a_split_are_named_rather_than_copied():
    X, y = samples(20)
    backend = StreamingNumpy()
    net = network(backend)
    data = enter_large_data(net, X, y, xpnn.CrossEntropy())
    training, validation = split(data, 0.25, 5, backend)
    assert training.inputs is validation.inputs is data.inputs
    assert (training.samples, validation.samples) == (15, 5)
    assert sorted([*training.rows, *validation.rows]) == list(range(20))
    with pytest.raises(ConfigError, match="leaves 0 for validation"):
        split(data, 0.01, 5, backend)


class StopError(Exception):
    pass


@pytest.mark.parametrize("how", ["error", "stop", "interrupt"])
def test_the_way_is_closed_however_an_epoch_ends(how):
    X, y = samples()
    backend = StreamingNumpy()
    callback = None

    def end(number, loss):
        assert backend.open == 1
        if number == 1 and how == "error":
            raise StopError
        if number == 1 and how == "interrupt":
            raise KeyboardInterrupt
        if number == 1:
            callback.stop = True

    callback = xpnn.LambdaCallback(on_batch_end=end)
    net = network(backend)
    expected = pytest.raises(StopError) if how == "error" else contextlib.nullcontext()
    with expected:
        net.fit(X, y, loss="cross_entropy", optimizer="sgd", batch_size=16, callbacks=[callback], verbose=0)
    assert backend.sent == [16, 16]
    assert backend.open == 0
    assert net.training.step == 2


def test_the_batches_of_a_backend_are_rows_in_order(backend):
    arrays = [np.arange(12.0).reshape(6, 2), np.arange(6)]
    dtype = "float32"

    def found(size, order=None):
        return [
            [backend.to_host(part).tolist() for part in parts]
            for parts in backend.batches(arrays, (dtype, "int64"), size, order)
        ]

    assert [labels for _, labels in found(4)] == [[0, 1, 2, 3], [4, 5]]
    assert [labels for _, labels in found(4, np.array([5, 0, 3, 1, 1]))] == [[5, 0, 3, 1], [1]]
    assert found(2, np.array([4, 2]))[0][0] == [[8.0, 9.0], [4.0, 5.0]]
    assert found(3, np.array([], "int64")) == []
