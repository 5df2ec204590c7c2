"""Sequential: order, names, nesting, fusion, what it infers, and which gradients it computes."""

import numpy as np
import pytest

import xpnn
from xpnn.dispatch import overrides_active
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Layer, Run, Sequential
from xpnn.testing import check_layer


@pytest.mark.parametrize(
    ("layer", "input_shape"),
    [
        (Sequential(xpnn.Dense(4), xpnn.Tanh(), xpnn.Dense(2)), (5, 3)),
        (Sequential([xpnn.Dense(4), [xpnn.Sigmoid(), xpnn.Dense(2)], Sequential()]), (5, 3)),
        (Sequential(xpnn.Tanh(), Sequential(xpnn.Flatten(), Sequential(xpnn.Dense(2)))), (3, 2, 2)),
        (Sequential(), (2, 3)),
    ],
    ids=["flat", "lists", "nested", "empty"],
)
def test_sequential_is_right_on_every_row(backend, dtype, layer, input_shape):
    check_layer(layer, input_shape, backend, dtype)


def test_names_are_positions_from_the_outside_in():
    network = xpnn.Network([xpnn.Dense(2, 3), xpnn.ReLU(), Sequential(xpnn.Dense(4), [xpnn.Dense(1)])])
    weights = [name for name in network.parameters if name.endswith("weight")]
    assert weights == ["0.weight", "2.0.weight", "2.1.0.weight"]


@pytest.mark.parametrize("activation", [xpnn.ReLU, xpnn.Tanh, xpnn.Sigmoid])
def test_a_fused_activation_gives_what_the_two_layers_give(activation, backend, dtype):
    dense = xpnn.Dense(3, 4)
    fused = Sequential(dense, activation())
    apart = Sequential(dense, Sequential(activation()))
    assert len(fused._plan) == 1
    assert len(apart._plan) == 2
    x = backend.asarray(np.random.default_rng(0).standard_normal((5, 3)), dtype)
    weight = backend.asarray(np.random.default_rng(1).standard_normal((3, 4)), dtype)
    leaf = {"weight": weight, "bias": backend.asarray(np.full(4, 0.25), dtype)}
    results = []
    for layer, tree in ((fused, {"0": leaf, "1": {}}), (apart, {"0": leaf, "1": {"0": {}}})):
        y, backward = layer.forward(x, tree, Run())
        dx, gradients = backward(y)
        results.append([backend.to_host(a) for a in (y, dx, gradients["0"]["weight"], gradients["0"]["bias"])])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12 if dtype == "float64" else 1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "steps"),
    [
        ((xpnn.Dense(4), xpnn.ReLU(), xpnn.Dense(4), xpnn.Tanh(), xpnn.Dense(4)), ["0 to 4"]),
        ((xpnn.Dense(4), xpnn.Dense(4), xpnn.ELU(), xpnn.Dense(4), xpnn.Dense(4)), ["0 to 1", "2", "3 to 4"]),
        ((xpnn.Flatten(), xpnn.Dense(4), xpnn.Dense(4), xpnn.LayerNorm()), ["0", "1 to 2", "3"]),
        ((xpnn.Dense(4), xpnn.Dropout(0.5), xpnn.Dense(4)), None),
        ((xpnn.Dense(4), xpnn.WeightNorm(xpnn.Dense(4))), None),
        ((xpnn.Dense(4), type("Own", (xpnn.Dense,), {})(4)), None),
        ((xpnn.Dense(4), xpnn.ReLU()), None),
        ((), None),
    ],
)
def test_dense_layers_in_a_row_are_one_step_of_the_chained_plan(layers, steps):
    plan = Sequential(*layers)._chained_plan
    assert (plan and [name for name, _, _ in plan]) == steps


def test_dense_layers_are_chained_where_the_backend_has_a_body_for_it(backend, dtype, monkeypatch):
    calls = []
    linear_chain = xpnn.ops.linear_chain

    def counting(*arguments, **options):
        calls.append(options["activations"])
        return linear_chain(*arguments, **options)

    monkeypatch.setattr(xpnn.ops, "linear_chain", counting)
    network = xpnn.Network(xpnn.Dense(4), xpnn.ReLU(), xpnn.Dense(2), backend=backend, dtype=dtype, input_shape=(3,))
    network.predict(np.ones((5, 3)))
    has_body = overrides_active() and "linear_chain" in backend.overrides
    assert set(calls) == ({("relu", None)} if has_body else set())


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((xpnn.Dense(2, 3),), (2,)),
        ((xpnn.Dropout(0.1), xpnn.ReLU(), xpnn.Dense(2, 3)), (2,)),
        ((Sequential(Sequential(xpnn.Dense(2, 3))),), (2,)),
        ((xpnn.Residual(xpnn.Dense(2, 2)),), (2,)),
        ((xpnn.Parallel(xpnn.Dense(3), xpnn.Dense(2, 3)),), (2,)),
        ((xpnn.Dense(3),), None),
        ((xpnn.Flatten(), xpnn.Dense(2, 3)), None),
        ((), None),
    ],
)
def test_the_input_shape_is_known_where_the_layers_fix_it(layers, shape):
    assert Sequential(*layers).input_shape == shape


@pytest.mark.parametrize("value", [None, 3, "relu", np.zeros(2)])
def test_what_is_no_layer_is_refused(value):
    with pytest.raises(ConfigError, match=r"layer 1 is .*, which is no xpnn\.Layer"):
        Sequential(xpnn.Dense(2), value)


def test_a_class_in_place_of_an_object_is_explained():
    with pytest.raises(ConfigError, match=r"which is no xpnn\.Layer; write ReLU\(\.\.\.\)"):
        Sequential(xpnn.Dense(2), xpnn.ReLU)


def test_a_shape_error_names_the_whole_path():
    inner = Sequential(xpnn.Dense(3), xpnn.Parallel(xpnn.Dense(2), [xpnn.Tanh(), xpnn.Dense(4, 2)]))
    with pytest.raises(ShapeError, match=r"^layer 1\.1\.branches\.1\.1 Dense\(4, 2\): got samples of shape \(3,\)"):
        xpnn.Network(xpnn.Dense(5), inner, input_shape=(6,))


class Recorder(Layer):
    """The identity; notes whether its input gradient was wanted and whether it was asked for one."""

    def __init__(self):
        self.wanted = []
        self.asked = 0

    def arguments(self):
        return [], {}

    def forward(self, x, parameters, run):
        self.wanted.append(run.input_gradient)

        def backward(dy):
            self.asked += 1
            return dy, {}

        return x, backward


def test_gradients_that_nobody_needs_are_not_computed():
    first, second = Recorder(), Recorder()
    root = Sequential(first, xpnn.Dense(2, 2), second)
    tree = {"0": {}, "1": {"weight": np.ones((2, 2)), "bias": np.zeros(2)}, "2": {}}
    y, backward = root.forward(np.ones((3, 2)), tree, Run(input_gradient=False))
    dx, gradients = backward(np.ones_like(y))
    assert dx is None
    assert set(gradients) == {"1", "2"}
    assert (first.wanted, first.asked) == ([False], 0)
    assert (second.wanted, second.asked) == ([True], 1)
    y, backward = root.forward(np.ones((3, 2)), tree, Run())
    dx, _ = backward(np.ones_like(y))
    assert dx.shape == (3, 2)
    assert first.asked == 1


@pytest.mark.parametrize(
    ("layers", "kind"),
    [
        ((), "any"),
        ((xpnn.Flatten(), xpnn.Reshape(2, 2)), "any"),
        ((xpnn.Flatten(), xpnn.Dense(2)), "float"),
        ((xpnn.Dropout(0.5),), "float"),
        ((xpnn.Reshape(2, 2), xpnn.Embedding(3, 2), xpnn.Dense(2)), "index"),
    ],
)
def test_the_kind_of_input_is_that_of_the_first_layer_that_cares(layers, kind):
    assert Sequential(*layers).input_kind == kind


def test_an_embedding_behind_a_computing_layer_is_refused():
    with pytest.raises(ConfigError, match=r"layer 2, Embedding\(.*looks up indices, but Dense\(2\) before it"):
        Sequential(xpnn.Dense(2), xpnn.Flatten(), xpnn.Embedding(3, 2))


@pytest.mark.parametrize("wrap", [xpnn.Sequential, xpnn.Residual, xpnn.Parallel])
def test_the_work_of_finding_the_input_shape_does_not_double_with_each_level(wrap):
    asked = []

    class Asked(xpnn.Dense):
        @property
        def input_shape(self):
            asked.append(1)
            return super().input_shape

    layer = Asked(3, 3)
    for _ in range(12):
        layer = wrap(layer)
    assert layer.input_shape == (3,)
    assert len(asked) == 1
