"""What comes in: checked, moved, split."""

import numpy as np
import pandas
import pytest

import xpnn
from xpnn.errors import ConfigError, DataError, DeviceError, ShapeError
from xpnn.training.data import check_finite, enter, enter_weights, split

NUMPY = xpnn.get_backend("numpy")


def network(backend="numpy", dtype="float32"):
    return xpnn.Network(xpnn.Dense(2, 3), backend=backend, dtype=dtype)


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], "uint8"),
        np.array([[1, 2], [3, 4]], "float64"),
        np.array([[1, 2], [3, 4]], "float16"),
        np.asfortranarray([[1.0, 2.0], [3.0, 4.0]]),
        np.array([[1, 0, 2], [3, 0, 4]])[:, ::2],
        pandas.DataFrame({"a": [1, 3], "b": [2.0, 4.0]}),
    ],
)
def test_whatever_holds_numbers_is_taken(backend, dtype, value):
    net = network(backend, dtype)
    expected = network(backend, dtype).predict(np.array([[1, 2], [3, 4]], dtype))
    found = net.predict(value)
    assert type(found) is np.ndarray
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


def test_arrays_of_the_backend_come_back_as_such(backend, dtype):
    net = network(backend, dtype)
    X = backend.asarray(np.ones((4, 2)), dtype)
    found = net.predict(X)
    assert backend.owns(found)
    assert tuple(found.shape) == (4, 3)
    y = backend.asarray(np.array([0, 1, 2, 0]), "int64")
    history = net.fit(X, y, loss="cross_entropy", optimizer="sgd", verbose=0)
    assert history["loss"][0] == pytest.approx(
        network(backend, dtype).fit([[1, 1]] * 4, [0, 1, 2, 0], loss="cross_entropy", optimizer="sgd", verbose=0)[
            "loss"
        ][0]
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0, 2.0], [3.0]], "X is no rectangular array"),
        ([["a", "b"]], "X has dtype .*encode text"),
        (np.array([[1, None]], object), "X has dtype object"),
        (np.array([["1", "2"]]), "X has dtype <U1"),
        (3.0, "X is a single number"),
        (np.array([[1j, 0]]), "X has dtype complex128"),
        ([[np.nan, 1.0]], "in 1 of 1 rows, first in row 0"),
        ([[1.0, 1.0], [-np.inf, 1.0], [np.inf, np.nan]], "in 2 of 3 rows, first in row 1"),
        ([[1e39, 0.0]], "too large values for float32"),
    ],
)
def test_what_is_no_number_is_refused(value, message):
    with pytest.raises(DataError, match=message):
        network().predict(value)


def test_large_numbers_fit_float64():
    assert np.isfinite(network(dtype="float64").predict([[1e39, 0.0]])).all()


def test_nan_on_the_device_is_found(backend, dtype):
    X = np.ones((5, 2), dtype)
    X[3, 0] = np.nan
    with pytest.raises(DataError, match="in 1 of 5 rows, first in row 3"):
        network(backend, dtype).predict(backend.asarray(X))
    check_finite("X", backend.asarray(np.ones((0, 2), dtype)), backend, dtype)
    check_finite("X", backend.asarray(np.ones((2, 3, 4), dtype)), backend, dtype)


def test_arrays_of_another_library_are_refused():
    strict = xpnn.get_backend("strict:device1")
    with pytest.raises(DeviceError, match="X is an array of strict, the network runs on numpy"):
        network().predict(strict.asarray(np.ones((2, 2)), "float32"))
    elsewhere = xpnn.get_backend("strict").asarray(np.ones((2, 2)), "float32")
    with pytest.raises(DeviceError, match=r"CPU_DEVICE.*device1"):
        network("strict:device1").predict(elsewhere)


def test_wrong_shapes_name_both():
    with pytest.raises(ShapeError, match=r"X has shape \(4, 5\).*of shape \(2,\)"):
        network().predict(np.ones((4, 5)))
    with pytest.raises(ShapeError, match="layer 0"):
        xpnn.Network(xpnn.Dense(3)).predict(np.ones(4))


def test_indices_outside_the_table_are_refused(backend, dtype):
    net = xpnn.Network(xpnn.Embedding(5, 2), xpnn.Flatten(), xpnn.Dense(1), backend=backend, dtype=dtype)
    assert net.predict([[0, 4]]).shape == (1, 1)
    for bad in (5, -1):
        with pytest.raises(DataError, match=f"index {bad}; .*0 to 4"):
            net.predict([[0, bad]])
    with pytest.raises(DataError, match="must hold integers"):
        net.predict([[0.5, 1.0]])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0], r"has shape \(2,\), wants one number for each of the 3 samples"),
        ([[1.0], [1.0], [1.0]], r"has shape \(3, 1\)"),
        ([1.0, -1.0, 1.0], r"negative value -1\.0"),
        ([0.0, 0.0, 0.0], "0 for every sample"),
        ([1.0, np.nan, 1.0], "sample_weight has NaN"),
    ],
)
def test_sample_weights_are_checked(weight, message):
    with pytest.raises(DataError, match=message):
        enter_weights(weight, 3, NUMPY, "float32")


def test_integer_weights_become_floats(backend, dtype):
    weight = enter_weights([1, 0, 2], 3, backend, dtype)
    assert weight.dtype == backend.dtype(dtype)
    assert backend.to_host(weight).tolist() == [1.0, 0.0, 2.0]


def test_data_are_moved_in_the_networks_dtype(backend, dtype):
    assert enter("X", [[0.1]], backend, dtype).dtype == backend.dtype(dtype)
    assert enter("X", [[1]], backend, dtype).dtype == backend.dtype("int64")
    assert enter("X", [[1]], backend, dtype, integers=dtype).dtype == backend.dtype(dtype)


def test_a_split_is_the_same_on_every_backend(backend, dtype):
    from xpnn.training.data import Data

    rows = np.arange(20)
    data = Data(backend.asarray(rows[:, None], dtype), backend.asarray(rows, "int64"), None)
    first, second = split(data, 0.25, 5, backend)
    found = backend.to_host(second.target).tolist()
    assert len(found) == 5
    assert sorted(found + backend.to_host(first.target).tolist()) == rows.tolist()
    assert backend.to_host(first.inputs)[:, 0].tolist() == backend.to_host(first.target).tolist()
    host_data = Data(rows[:, None], rows, None)
    assert split(host_data, 0.25, 5, NUMPY)[1].target.tolist() == found
    assert split(host_data, 0.25, 6, NUMPY)[1].target.tolist() != found
    with pytest.raises(ConfigError, match="leaves 20 for validation and 0 for training"):
        split(host_data, 0.99, 5, NUMPY)


@pytest.mark.parametrize(
    "frame",
    [
        pandas.DataFrame({"a": [1.5, 2.0], "b": [True, False]}),
        pandas.DataFrame({"a": [1.5, 2.0], "b": pandas.array([1, 0], "Int64")}),
        np.array([[1.5, 1], [2.0, 0]], dtype=object),
    ],
    ids=["bool column", "nullable column", "objects"],
)
def test_columns_of_several_kinds_of_numbers_are_taken(frame):
    np.testing.assert_array_equal(enter("X", frame, NUMPY, "float32"), np.array([[1.5, 1.0], [2.0, 0.0]], "float32"))


def test_objects_that_are_no_numbers_are_refused():
    for column in (["a", "b"], pandas.Series([None, 1], dtype=object), pandas.array([1, None], "Int64")):
        with pytest.raises(DataError, match="wants numbers"):
            enter("X", pandas.DataFrame({"a": [1.5, 2.0], "b": column}), NUMPY, "float32")


def test_masked_entries_are_not_taken_for_numbers():
    with pytest.raises(DataError, match="masked entries"):
        enter("X", np.ma.masked_array([[1.0, 2.0]], mask=[[False, True]]), NUMPY, "float32")
    assert enter("X", np.ma.masked_array([[1.0, 2.0]]), NUMPY, "float32").shape == (1, 2)


def test_integers_do_not_wrap_around(backend, dtype):
    largest = int(backend.xp.iinfo(backend.dtype("int64")).max)
    assert int(backend.to_host(enter("y", np.array([largest, 0]), backend, dtype))[0]) == largest
    # cast to the backend's integers, these would become negative or small ones
    too_large = np.array([largest + 1, 0], "uint64")
    with pytest.raises(DataError, match=f"holds the integer {largest + 1}"):
        enter("y", too_large, backend, dtype)
    assert float(backend.to_host(enter("X", too_large, backend, dtype, integers=dtype))[0]) > 0


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_half_precision_of_the_backend_is_taken_and_complex_numbers_are_not(name):
    if xpnn.available_backends()[name] is not None:
        pytest.skip(xpnn.available_backends()[name])
    net = network(name)
    library = net.backend.xp
    x = library.asarray([[1.0, 2.0], [0.5, 3.0]])
    for half in (library.float16, library.bfloat16):
        y = net.predict(library.astype(x, half))
        np.testing.assert_array_equal(net.backend.to_host(y), net.backend.to_host(net.predict(x)))
    with pytest.raises(DataError, match="wants real numbers"):
        net.predict(library.astype(x, library.complex64))
