"""Residual and Parallel."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Run
from xpnn.parameters import Layout, collect
from xpnn.testing import check_layer

COMPOSITES = {
    "residual": lambda: xpnn.Residual(xpnn.Dense(3), xpnn.Tanh()),
    "residual-list": lambda: xpnn.Residual([xpnn.Dense(4), xpnn.Tanh(), xpnn.Dense(3)]),
    "residual-shortcut": lambda: xpnn.Residual(xpnn.Dense(4), xpnn.Tanh(), xpnn.Dense(5), shortcut=xpnn.Dense(5)),
    "residual-in-residual": lambda: xpnn.Residual(xpnn.Residual(xpnn.Dense(3)), xpnn.Residual(xpnn.Tanh())),
    "residual-dropout": lambda: xpnn.Residual(xpnn.Dropout(0.3), xpnn.Dense(3)),
    "parallel-add": lambda: xpnn.Parallel(xpnn.Dense(2), [xpnn.Dense(4), xpnn.Tanh(), xpnn.Dense(2)]),
    "parallel-concatenate": lambda: xpnn.Parallel(xpnn.Dense(2), xpnn.Dense(4), combine="concatenate"),
    "parallel-identity": lambda: xpnn.Parallel(xpnn.Sequential(), xpnn.Tanh(), xpnn.Dense(3)),
    "parallel-one": lambda: xpnn.Parallel(xpnn.Dense(2)),
    "parallel-of-parallels": lambda: xpnn.Parallel(
        xpnn.Parallel(xpnn.Dense(2), xpnn.Dense(2)), xpnn.Residual(xpnn.Dense(3)), combine="concatenate"
    ),
}
composite = pytest.mark.parametrize("make", COMPOSITES.values(), ids=COMPOSITES)


@composite
def test_composites_are_right_on_every_row(backend, dtype, make):
    check_layer(make(), (5, 3), backend, dtype)


@composite
def test_parameter_gradients_are_the_same_without_an_input_gradient(make):
    """As the first layer, where nobody needs dx, each inner layer must still get the gradients that it needs."""
    root = xpnn.Sequential(make(), xpnn.Tanh(), xpnn.Dense(2))
    _, tree = root.build((3,))
    layout = Layout(collect(root, tree), "float64", blocked=False)
    theta, buffers = layout.initialize(0, xpnn.get_backend("numpy"))
    x = np.random.default_rng(0).standard_normal((6, 3))
    results = []
    for wanted in (True, False):
        y, backward = root.forward(x, layout.tree(theta, buffers), Run(True, input_gradient=wanted))
        dx, gradients = backward(np.cos(y))
        assert (dx is not None) is wanted
        results.append(layout.gather(gradients))
    assert results[0]
    for name, gradient in results[0].items():
        np.testing.assert_array_equal(gradient, results[1][name])


def test_residual_adds_its_input():
    network = xpnn.Network(xpnn.Residual(xpnn.Dense(2, 2)), dtype="float64")
    network.set_parameters({"0.0.weight": [[1.0, 2.0], [3.0, 4.0]], "0.0.bias": [0.5, 0.5]})
    np.testing.assert_array_equal(network.predict(np.array([[1.0, 1.0]])), [[5.5, 7.5]])


def test_parallel_adds_or_concatenates():
    branches = [xpnn.Sequential(), xpnn.Lambda(lambda x: (10.0 * x, lambda dy: (10.0 * dy,)))]
    x = np.array([[1.0, 2.0]])
    for options, want in (({}, [[11.0, 22.0]]), ({"combine": "concatenate"}, [[1.0, 2.0, 10.0, 20.0]])):
        network = xpnn.Network(xpnn.Parallel(*branches, **options), dtype="float64", input_shape=(2,))
        np.testing.assert_array_equal(network.predict(x), want)


@pytest.mark.parametrize(("axis", "shape"), [(1, (5, 2)), (-2, (5, 2)), (2, (2, 5)), (-1, (2, 5))])
def test_parallel_concatenates_along_any_axis_of_the_samples(axis, shape):
    inside = [xpnn.Reshape(2, 3), xpnn.Reshape(2, 2)] if shape == (2, 5) else [xpnn.Reshape(3, 2), xpnn.Reshape(2, 2)]
    branches = [[xpnn.Dense(6), inside[0]], [xpnn.Dense(4), inside[1]]]
    layer = xpnn.Parallel(branches, combine="concatenate", axis=axis)
    assert layer.build((3,))[0] == shape
    check_layer(layer, (4, 3))


def test_names_of_parameters():
    network = xpnn.Network(
        xpnn.Residual(xpnn.Dense(3, 4, bias=False), shortcut=xpnn.Dense(4, bias=False)),
        xpnn.Parallel(xpnn.Dense(2, bias=False), [xpnn.Dense(2, bias=False)]),
    )
    assert list(network.parameters) == [
        "0.0.weight",
        "0.shortcut.weight",
        "1.branches.0.weight",
        "1.branches.1.0.weight",
    ]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (xpnn.Residual(xpnn.Dense(4)), r"layer 1 Residual\(Dense\(4\)\): got samples of shape \(3,\).*of shape \(4,\)"),
        (
            xpnn.Residual(xpnn.Dense(4), shortcut=xpnn.Dense(5)),
            r"of shape \(4,\).*its shortcut samples of shape \(5,\)",
        ),
        (xpnn.Residual(xpnn.Dense(4), shortcut=xpnn.Dense(2, 4)), r"layer 1\.shortcut Dense\(2, 4\): got samples of"),
        (xpnn.Residual(xpnn.Tanh(), xpnn.Dense(4, 3)), r"layer 1\.1 Dense\(4, 3\): got samples of shape \(3,\)"),
        (xpnn.Parallel(xpnn.Dense(4), xpnn.Dense(5)), r"layer 1 Parallel\(.*shapes \(4,\), \(5,\); a sum needs one"),
        (
            xpnn.Parallel(xpnn.Dense(4), xpnn.Reshape(3, 1), combine="concatenate"),
            r"shapes \(4,\), \(3, 1\); they may differ in axis -1 only",
        ),
        (xpnn.Parallel(xpnn.Dense(4), combine="concatenate", axis=2), r"shapes \(4,\), without axis 2"),
        (xpnn.Parallel(xpnn.Dense(4), combine="concatenate", axis=-2), r"shapes \(4,\), without axis -2"),
        (xpnn.Parallel(xpnn.Dense(4), xpnn.Dense(7, 4)), r"layer 1\.branches\.1 Dense\(7, 4\): got samples of shape"),
    ],
)
def test_shapes_that_do_not_fit_are_named(layer, message):
    with pytest.raises(ShapeError, match=message):
        xpnn.Network(xpnn.Dense(2, 3), layer)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (xpnn.Residual, "Residual() has no layers"),
        (lambda: xpnn.Residual(xpnn.Tanh), "layer 0 is .*write Tanh"),
        (lambda: xpnn.Residual(xpnn.Tanh(), shortcut=3), "shortcut is 3, which is no"),
        (xpnn.Parallel, "Parallel() has no branches"),
        (lambda: xpnn.Parallel([]), "Parallel() has no branches"),
        (lambda: xpnn.Parallel(xpnn.Tanh(), "x"), "branch 1 is 'x', which is no"),
        (lambda: xpnn.Parallel(xpnn.Tanh(), combine="multiply"), "'multiply' is unknown; choose 'add' or 'conc"),
        (lambda: xpnn.Parallel(xpnn.Tanh(), axis=0), "axis=0 is the batch"),
        (lambda: xpnn.Parallel(xpnn.Tanh(), axis=1.0), "axis=1.0 makes no sense"),
        (lambda: xpnn.Parallel(xpnn.Dense(2), xpnn.Embedding(3, 2)), "some branches look up indices"),
    ],
)
def test_settings_that_make_no_sense(build, message):
    with pytest.raises(ConfigError, match=message.replace("()", r"\(\)")):
        build()


def test_repr():
    layer = xpnn.Residual(xpnn.Dense(3), shortcut=xpnn.Parallel(xpnn.Dense(3), [xpnn.Tanh()], combine="concatenate"))
    assert repr(layer) == ("Residual(Dense(3), shortcut=Parallel(Dense(3), Sequential(Tanh()), combine='concatenate'))")


def _masked_steps():
    """Sequences whose last steps are padding."""
    x = np.random.default_rng(5).normal(size=(3, 6, 2))
    x[0, 4:] = 0.0
    x[1, 2:] = 0.0
    return x


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_branch_starts_with_the_mask_that_came_in(order):
    branches = [xpnn.GlobalMaxPool1D()], [xpnn.GlobalAveragePool1D()]  # behind each of them there is no mask
    x = _masked_steps()
    alone = [xpnn.Network(xpnn.Masking(), *branches[i], input_shape=(6, 2), dtype="float64").predict(x) for i in order]
    parallel = xpnn.Parallel(*(branches[i] for i in order), combine="concatenate")
    got = xpnn.Network(xpnn.Masking(), parallel, input_shape=(6, 2), dtype="float64").predict(x)
    np.testing.assert_allclose(got, np.concatenate(alone, axis=-1))


@pytest.mark.parametrize("around", [xpnn.Residual, lambda *f: xpnn.Parallel([], list(f))])
def test_the_mask_outlives_a_branch_that_lengthens_the_sequence_in_between(around):
    causal = xpnn.ZeroPadding1D((2, 0)), xpnn.Conv1D(2, 3, weight_initializer="zeros")
    x = _masked_steps()
    mean = xpnn.Network(xpnn.Masking(), xpnn.GlobalAveragePool1D(), input_shape=(6, 2), dtype="float64").predict(x)
    layers = xpnn.Masking(), around(*causal), xpnn.GlobalAveragePool1D()
    np.testing.assert_allclose(xpnn.Network(*layers, input_shape=(6, 2), dtype="float64").predict(x), mean)


def test_a_mask_that_only_a_branch_sets_is_there_behind_it():
    x = _masked_steps()
    shared = xpnn.Network(xpnn.Masking(), xpnn.GlobalAveragePool1D(), input_shape=(6, 2), dtype="float64").predict(x)
    for layer in (xpnn.Parallel([], [xpnn.Masking()]), xpnn.Residual(xpnn.Masking())):
        network = xpnn.Network(layer, xpnn.GlobalAveragePool1D(), input_shape=(6, 2), dtype="float64")
        np.testing.assert_allclose(network.predict(x), 2.0 * shared)
