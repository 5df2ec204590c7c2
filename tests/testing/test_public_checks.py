"""check_gradients, check_backends and check_layer: they pass what is right and name what is wrong."""

import pytest

import xpnn
from xpnn import initializers
from xpnn.errors import BackendError, CheckError, ConfigError, ShapeError
from xpnn.layers import Layer, Parameter
from xpnn.testing import check_backends, check_gradients, check_layer


class Scale(Layer):
    """y = x * factor, with one factor for each feature; `fault` plants a mistake."""

    def __init__(self, fault=""):
        self.fault = fault

    def build(self, input_shape):
        return input_shape, {"factor": Parameter(input_shape, initializers.Ones())}

    def forward(self, x, parameters, run):
        xp = xpnn.dispatch.namespace(x)
        factor = parameters["factor"]
        if self.fault == "not standard":
            y = xp.einsum("ij,j->ij", x, factor)
        elif self.fault == "host read":
            y = x * factor if xp.sum(x) > 1e9 else factor * x
        else:
            y = x * factor

        def backward(dy):
            if self.fault == "modifies":
                dy *= factor
                return dy, {"factor": xp.sum(dy * x, axis=0)}
            gradient = xp.sum(dy * x, axis=0)
            if self.fault == "wrong":
                gradient = gradient * 1.001
            if self.fault == "shape":
                gradient = dy * x
            if self.fault == "missing":
                return dy * factor, {}
            if self.fault == "none":
                return dy * factor, {"factor": None}
            return dy * factor, {"factor": gradient}

        return y, backward


def test_right_layer_gives_a_report():
    report = check_gradients(xpnn.Sequential(Scale(), xpnn.Tanh(), Scale()), (4, 3))
    assert list(report.errors) == ["input", "0.factor", "2.factor"]
    assert max(report.errors.values()) < 1e-8
    assert "2.factor" in str(report)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong", r"the gradient of '1.factor' is wrong at \(\d,\)"),
        ("shape", r"the gradient of '1.factor' has shape \(4, 3\)"),
        ("missing", "must return .* a gradient for each of 1.factor"),
        ("none", "backward gave None as the gradient of '1.factor'"),
        ("modifies", "modified its input"),
    ],
)
def test_wrong_layer_is_named(fault, message):
    with pytest.raises(CheckError, match=message):
        check_gradients(xpnn.Sequential(xpnn.Tanh(), Scale(fault)), (4, 3))


def test_dropout_keeps_its_mask():
    report = check_gradients(xpnn.Sequential(xpnn.Dense(6), xpnn.Dropout(0.5), xpnn.Dense(2)), (5, 3))
    assert max(report.errors.values()) < 1e-8


def test_indices_have_no_gradient():
    report = check_gradients(xpnn.Sequential(xpnn.Embedding(7, 2), xpnn.Flatten(), xpnn.Dense(3)), (5, 4))
    assert list(report.errors) == ["0.weight", "2.weight", "2.bias"]


def test_shared_layer_is_checked_once():
    shared = Scale()
    report = check_gradients(xpnn.Sequential(shared, xpnn.Tanh(), shared), (4, 3))
    assert list(report.errors) == ["input", "0.factor"]


def test_many_elements_are_sampled():
    report = check_gradients(xpnn.Dense(100), (2, 50), elements=3)
    assert set(report.errors) == {"input", "weight", "bias"}


def test_what_is_no_layer():
    with pytest.raises(ConfigError, match=r"is no xpnn\.Layer"):
        check_gradients(lambda x: x)
    with pytest.raises(ConfigError, match="has no batch"):
        check_gradients(xpnn.Tanh(), ())
    with pytest.raises(ShapeError):
        check_gradients(xpnn.Dense(4, 2), (4, 3))


def test_all_backends_are_listed():
    report = check_backends(xpnn.Dense(2), (4, 3))
    assert {row.row for row in report.rows} == {row.id for row in xpnn.testing.rows.ROWS}
    for row in report.rows:
        assert bool(row.errors) == (row.reason is None)
        assert row.row in str(report)
    ran = [row for row in report.rows if row.reason is None]
    assert {"numpy", "numpy-readonly"} <= {row.row for row in ran}
    assert set(ran[0].errors) == {"output", "input", "weight", "bias"}


def test_unusable_backend_is_listed_with_its_reason(monkeypatch):
    monkeypatch.setattr("xpnn.testing.rows.why_not", lambda name: "it is broken" if name == "cupy" else None)
    report = check_backends(xpnn.Tanh(), (4, 3), ["numpy", "cupy"], dtypes=["float64"])
    assert [(row.row, row.reason) for row in report.rows] == [("numpy", None), ("cupy", "it is broken")]
    assert "not run: it is broken" in str(report)


def test_backends_by_spec():
    report = check_backends(xpnn.Tanh(), (4, 3), "numpy:readonly", dtypes=["float32"])
    assert [(row.row, row.dtype) for row in report.rows] == [("numpy:readonly", "float32")]
    with pytest.raises(BackendError, match="unknown backend 'cuppy'"):
        check_backends(xpnn.Tanh(), (4, 3), ["numpy", "cuppy"])


@pytest.mark.parametrize("fault", ["not standard", "host read"])
def test_strict_row_is_named(fault):
    pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    check_backends(Scale(fault), (4, 3), ["numpy"])
    with pytest.raises(CheckError, match=r"Scale\(fault='.*'\) on strict, float64"):
        check_backends(Scale(fault), (4, 3), ["numpy", "strict"])


def test_rounding_beyond_the_tolerance_is_an_error():
    with pytest.raises(CheckError, match=r"the output is off by .* eps from NumPy in float64; accepted are 0"):
        check_backends(xpnn.Tanh(), (4, 3), ["numpy"], dtypes=["float32"], tolerance=0.0)


def test_check_layer_names_a_wrong_derivative(backend, dtype):
    check_layer(Scale(), (4, 3), backend, dtype)
    if dtype == "float64":
        with pytest.raises(CheckError, match="the gradient of 'factor' is wrong"):
            check_layer(Scale("wrong"), (4, 3), backend, dtype)


def test_check_layer_tries_an_empty_batch():
    class Mean(Layer):
        def forward(self, x, parameters, run):
            if x.shape[0] == 0:
                raise ValueError("no samples")
            return x, lambda dy: (dy, {})

    with pytest.raises(CheckError, match="with an empty batch: ValueError: no samples"):
        check_layer(Mean(), (4, 3))
