"""Matrix products with an activation in them, forward and backward, against the same op in float64."""

import sys

import numpy as np
import pytest

from xpnn.dispatch import OPS

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
WIDE_EPS = {"float64": 2.0**-52}
"""Of the type in which products are summed; float32's where it is not named."""

both = pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])


def to_host(x):
    return np.asarray(x.get(), dtype=np.float64)


def random_array(cupy, seed, shape, dtype):
    numbers = np.random.default_rng(seed).standard_normal(shape)
    return cupy.asarray(numbers.astype(np.float32)).astype(dtype)


def assert_may_refuse():
    """A GPU's cublasLt may have no algorithm for an epilogue; the emulated one has one for all that is asked of it."""
    assert "emulated_gpu.cublaslt" not in sys.modules


@pytest.mark.parametrize("columns", [16, 12, 13])
@both
def test_activations_in_the_product(cupy, lt, activation, columns):
    """Forward with what it keeps, and backward, against the op in float64."""
    for dtype in DTYPES:
        a = random_array(cupy, 37, (9, 20), dtype)
        b = random_array(cupy, 38, (20, columns), dtype)
        bias = random_array(cupy, 39, (columns,), dtype)
        found = lt.with_activation(a, b, bias, activation)
        if found is None:
            assert_may_refuse()
            continue
        y, kept = found
        z = to_host(a) @ to_host(b) + to_host(bias)
        wanted, vjp = OPS[activation].generic(z)
        magnitude = abs(to_host(a)) @ abs(to_host(b)) + abs(to_host(bias))
        bound = (2 * EPS[dtype] + 30 * WIDE_EPS.get(dtype, EPS["float32"])) * magnitude
        assert str(y.dtype) == dtype
        assert np.all(abs(to_host(y) - wanted) <= bound)
        if activation == "gelu_tanh":
            assert np.all(abs(to_host(kept[:, :columns]) - z) <= bound)

        dz = random_array(cupy, 40, (9, 24), dtype)
        weight = random_array(cupy, 41, (columns, 24), dtype)
        found = lt.through_activation(dz, weight.T, kept, activation)
        if found is None:
            assert_may_refuse()
            continue
        dy = to_host(dz) @ to_host(weight).T
        (wanted,) = vjp(dy)
        magnitude = abs(to_host(dz)) @ abs(to_host(weight)).T
        # z was rounded to the dtype, and the slope of GELU's slope is below 1.
        bound = (4 * EPS[dtype] + 30 * WIDE_EPS.get(dtype, EPS["float32"])) * magnitude * (1 + abs(z))
        assert np.all(abs(to_host(found[0]) - wanted) <= bound)
        assert np.all(abs(to_host(found[1]) - wanted.sum(axis=0)) <= bound.sum(axis=0))


def test_the_stand_in_looks_at_the_auxiliary_matrix(cupy, fresh, emulated, plans, monkeypatch):
    """Its rows must be of a multiple of 8 elements, and its type that of the result."""
    a, b, bias = (cupy.ones(shape, "float32") for shape in ((4, 6), (6, 13), (13,)))
    assert fresh.with_activation(a, b, bias, "gelu_tanh") is not None
    plans.products_here()._plans.clear()
    with monkeypatch.context() as patch:
        patch.setitem(plans.ACTIVATIONS, "gelu_tanh", plans.ACTIVATIONS["gelu_tanh"]._replace(multiple=1))
        assert fresh.with_activation(a, b, bias, "gelu_tanh") is None
    attributes, describe = plans.library().lt.MatmulDescAttribute, plans.DeviceProducts._describe
    for type_number, is_right in ((plans.TYPES["f"], True), (plans.TYPES["e"], False)):

        def with_type(device, descriptor, attribute, value, type_number=type_number):
            describe(device, descriptor, attribute, value)
            if attribute == attributes.EPILOGUE_AUX_LD:
                describe(device, descriptor, attributes.EPILOGUE_AUX_DATA_TYPE, type_number)

        plans.products_here()._plans.clear()
        monkeypatch.setattr(plans.DeviceProducts, "_describe", with_type)
        assert (fresh.with_activation(a, b, bias, "gelu_tanh") is not None) == is_right


@both
def test_an_activation_that_loses_nan_is_not_used(cupy, fresh, emulated, plans, activation):
    x = cupy.ones((16, 16), "float32")
    with emulated.swallowing_nan():
        assert fresh.with_activation(x, x, x[0], activation) is None
    # What was found out counts from then on.
    assert fresh.with_activation(x, x, x[0], activation) is None
    plans._devices.clear()
    assert fresh.with_activation(x, x, x[0], activation) is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gelu_of_few_digits_is_used_where_no_more_are_asked_for(cupy, fresh, emulated, dtype):
    x = cupy.ones((16, 16), dtype)
    with emulated.rounding_tanh():
        rough = fresh.with_activation(x, x, x[0], "gelu_tanh")
        assert (rough is not None) == (dtype in ("float16", "bfloat16"))
        with fresh.computing("tf32"):
            rough = fresh.with_activation(x, x, x[0], "gelu_tanh")
        assert (rough is not None) == (dtype != "float64")


@both
def test_an_epilogue_without_the_other_is_not_used(cupy, fresh, emulated, plans, activation):
    epilogues = plans.library().lt.Epilogue
    x = cupy.ones((16, 16), "float32")
    for name in plans.ACTIVATIONS[activation][:2]:
        plans._devices.clear()
        with emulated.refusing(epilogues[name]):
            assert fresh.with_activation(x, x, x[0], activation) is None


@both
def test_no_trial_in_a_capture(cupy, fresh, emulated, activation):
    x = cupy.ones((16, 16), "float32")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        fresh.prepare()
        stream.begin_capture()
        try:
            assert fresh.with_activation(x, x, x[0], activation) is None
        finally:
            stream.end_capture()
    # It is made up for.
    assert fresh.with_activation(x, x, x[0], activation) is not None
