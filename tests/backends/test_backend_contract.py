"""What every backend must do, on every row of the matrix."""

import numpy as np
import pytest

import xpnn
from xpnn import dispatch, ops
from xpnn.errors import BackendError, DataError, DeviceError
from xpnn.random import RandomKey, mask_threshold
from xpnn.training import make_step


def test_host_arrays_travel_there_and_back(backend, dtype):
    host = np.arange(6.0).reshape(2, 3)
    there = backend.asarray(host, dtype)
    assert backend.owns(there)
    assert there.dtype == backend.dtype(dtype)
    back = backend.to_host(there)
    assert type(back) is np.ndarray
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, host)


@pytest.mark.parametrize("change", [lambda x: x[::-1], lambda x: x.T, lambda x: x.astype(">f8"), lambda x: x[:, ::2]])
def test_host_arrays_of_any_layout_travel(backend, dtype, change):
    host = change(np.arange(12.0).reshape(3, 4))
    host.flags.writeable = False
    np.testing.assert_array_equal(backend.to_host(backend.asarray(host, dtype)), host)
    np.testing.assert_array_equal(backend.to_host(backend.asarray(host.astype(dtype))), host)


def test_asarray_converts_its_own_arrays(backend, dtype):
    integers = backend.asarray(np.arange(3), "int64")
    converted = backend.asarray(integers, dtype)
    assert converted.dtype == backend.dtype(dtype)
    assert backend.to_host(converted).tolist() == [0.0, 1.0, 2.0]


def test_arrays_lie_where_the_spec_says(backend, dtype):
    x = backend.asarray([1.0], dtype)
    where = dispatch.device(x)
    assert backend.device is None or where == backend.device
    if not backend.one_device:
        again = xpnn.get_backend(f"{backend.name}:{backend.device_label(where)}")
        assert dispatch.device(again.asarray([1.0], dtype)) == where


def test_copy_shares_no_memory(backend, dtype):
    x = backend.asarray([1.0, 2.0], dtype)
    copy = backend.copy(x)
    assert backend.owns(copy)
    assert copy is not x
    try:
        copy[0] = 5.0
    except (TypeError, ValueError):
        return  # an array that nobody can write to may be shared
    assert backend.to_host(x).tolist() == [1.0, 2.0]


def test_sign_keeps_nan(backend, dtype):
    # CuPy's own sign makes 0 of it, which would hide a divergence from Lion.
    x = backend.asarray([-np.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, np.inf, np.nan], dtype)
    with backend.discipline():
        found = backend.xp.sign(x)
    assert found.dtype == backend.dtype(dtype)
    np.testing.assert_array_equal(backend.to_host(found), [-1, -1, 0, 0, 1, 1, 1, np.nan])


def test_masks_are_the_same_bits_everywhere(backend, dtype):
    x = backend.asarray(np.zeros((5, 3)), dtype)
    mask, _ = ops.random_mask(x, RandomKey(3, 5, 7), 0.3)
    assert backend.owns(mask)
    np.testing.assert_array_equal(
        backend.to_host(mask), xpnn.backend.host().keep_mask(3, 5, 7, (5, 3), mask_threshold(0.3))
    )


def test_no_value_is_lost_in_the_spec(backend):
    assert xpnn.get_backend(backend.spec) is backend
    assert backend.device_name in backend.spec
    assert type(backend).devices()


def test_compiled_step_gives_what_the_step_gives(backend, dtype):
    net = xpnn.Network(xpnn.Dense(3, 4), xpnn.Tanh(), xpnn.Dense(2), backend=backend, dtype=dtype)
    x, y = np.linspace(-1, 1, 12).reshape(4, 3), np.linspace(0, 1, 8).reshape(4, 2)
    optimizer = xpnn.SGD(0.1)
    eager = make_step(net.root, net.layout, xpnn.losses.MSE(), optimizer)
    compiled = net.step("mse", optimizer)
    batch = net.prepare(x, y, "mse")
    first, loss = eager(net.initial_state(optimizer), batch)
    second, compiled_loss = compiled(net.initial_state(optimizer), batch)
    tolerance = {"float32": 1e-6, "float64": 1e-14}[dtype]
    np.testing.assert_allclose(backend.to_host(compiled_loss), backend.to_host(loss), rtol=tolerance)
    for mine, reference in zip(second.theta, first.theta, strict=True):
        np.testing.assert_allclose(backend.to_host(mine), backend.to_host(reference), rtol=tolerance, atol=tolerance)


NUMPY_ROWS = ["numpy", "numpy-readonly", "numpy-compiled", "numpy-fast"]
NOT_NUMPY = pytest.mark.xpnn_rows(skip=NUMPY_ROWS, reason="NumPy arrays are the other library here")


@NOT_NUMPY
def test_ops_refuse_arrays_of_two_libraries(backend, dtype):
    mine, other = backend.asarray([[1.0]], dtype), np.ones((1, 1))
    with pytest.raises(DeviceError, match=r"ops.add: 'arrays\[0\]' lies on numpy, 'arrays\[1\]' on " + backend.name):
        ops.add(other, mine)
    with pytest.raises(DeviceError, match=rf"ops.mse: 'prediction' lies on {backend.name}.*, 'weight' on numpy"):
        ops.mse(mine, mine, weight=other)


@NOT_NUMPY
def test_error_names_a_way_out_that_works(backend, dtype):
    x, y = backend.asarray([[1.0]], dtype), np.ones((1, 1), dtype=dtype)
    with pytest.raises(DeviceError) as caught:
        ops.add(x, y)
    here = f"{backend.name}:{backend.device_label(dispatch.device(x))}"
    assert f'xpnn.get_backend("{here}").asarray(xpnn.get_backend("numpy").to_host(arrays[1]))' in str(caught.value)
    moved = xpnn.get_backend(here).asarray(xpnn.get_backend("numpy").to_host(y))
    assert backend.to_host(ops.add(x, moved)[0]).tolist() == [[2.0]]


@pytest.mark.xpnn_rows(only="strict")
def test_ops_refuse_arrays_on_two_devices(backend, dtype):
    here = backend.asarray([[1.0]], dtype)
    there = xpnn.get_backend("strict:CPU_DEVICE").asarray([[1.0]], dtype)
    with pytest.raises(DeviceError, match="'x' lies on strict:device1, 'weight' on strict:CPU_DEVICE"):
        ops.linear(here, there)


@pytest.mark.xpnn_rows(only="strict", dtypes="float32")
def test_network_refuses_inputs_on_another_device(backend):
    net = xpnn.Network(xpnn.Dense(1, 1), backend=backend)
    there = xpnn.get_backend("strict:CPU_DEVICE").asarray([[1.0]], "float32")
    with pytest.raises(DeviceError, match="X lies on strict"):
        net.predict(there)


@pytest.mark.xpnn_rows(only=["torch", "jax", "strict"], dtypes="float32")
def test_network_refuses_arrays_of_another_library(backend):
    net = xpnn.Network(xpnn.Dense(1, 1), backend="numpy")
    with pytest.raises(DeviceError, match=f"X is an array of {backend.name}, the network runs on numpy"):
        net.predict(backend.asarray([[1.0]], "float32"))


@pytest.mark.xpnn_rows(only="torch")
def test_tensor_that_wants_autograd_is_taken_without_it(backend, dtype):
    import torch

    x = torch.ones((4, 3), dtype=getattr(torch, dtype), requires_grad=True)
    assert not backend.asarray(x).requires_grad
    net = xpnn.Network(xpnn.Dense(3, 2), backend=backend, dtype=dtype)
    assert not net.predict(x).requires_grad
    net.fit(x, np.ones((4, 2)), loss="mse", optimizer="sgd", epochs=1, verbose=False)
    assert x.grad is None
    assert not any(array.requires_grad for array in net.parameters.values())


@pytest.mark.xpnn_rows(only="strict-no64")
def test_device_without_float64_says_so(backend):
    with pytest.raises(BackendError, match="has no float64"):
        xpnn.Network(xpnn.Dense(1), backend=backend, dtype="float64")


@pytest.mark.xpnn_rows(only="strict", dtypes="float32")
def test_discipline_forbids_host_reads_and_is_lifted_again(backend):
    x = backend.asarray([1.0], "float32")
    with backend.discipline():
        for read in (float, int, bool):
            with pytest.raises(RuntimeError, match="was read into Python"):
                read(x[0])
        with pytest.raises(RuntimeError, match="boolean_indexing"):
            x[x > 0]
    cpu = xpnn.get_backend("strict:CPU_DEVICE").asarray([1.0], "float32")
    assert float(cpu[0]) == 1.0


@pytest.mark.xpnn_rows(only="numpy", dtypes="float32")
def test_text_is_no_data(backend):
    net = xpnn.Network(xpnn.Dense(1, 1), backend=backend)
    with pytest.raises(DataError, match="X"):
        net.predict(np.array([["a"]]))
