"""Each: a layer for each of several inputs."""

import numpy as np
import pytest

import xpnn
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Run
from xpnn.parameters import Layout, collect
from xpnn.testing import check_layer

CASES = {
    "two": (lambda: xpnn.Each(xpnn.Dense(2), xpnn.Tanh()), ((4, 3), (4, 2, 2))),
    "one": (lambda: xpnn.Each(xpnn.Dense(2)), ((4, 3),)),
    "dropout": (lambda: xpnn.Each(xpnn.Dropout(0.4), [xpnn.Dense(2), xpnn.Dropout(0.4)]), ((4, 3), (4, 3))),
    "indices": (lambda: xpnn.Each(xpnn.Dense(2), xpnn.Embedding(5, 2), [xpnn.Flatten()]), ((4, 3), (4, 2), (4, 2, 1))),
    "add": (lambda: xpnn.Each(xpnn.Dense(2), xpnn.Sequential(), combine="add"), ((4, 3), (4, 2))),
    "axis": (lambda: xpnn.Each(xpnn.Tanh(), xpnn.Sequential(), combine="concatenate", axis=1), ((4, 3, 2), (4, 1, 2))),
    "into-attention": (
        lambda: xpnn.Sequential(xpnn.Each(xpnn.Dense(4), xpnn.Embedding(5, 3)), xpnn.MultiHeadAttention(2, bias=False)),
        ((2, 3, 2), (2, 4)),
    ),
    "each-behind-each": (
        lambda: xpnn.Sequential(
            xpnn.Each(xpnn.Flatten(), xpnn.Dense(3)),
            xpnn.Each(xpnn.Embedding(5, 2), xpnn.Tanh()),
            xpnn.Each(xpnn.Flatten(), xpnn.Sequential(), combine="concatenate"),
        ),
        ((4, 2), (4, 2)),
    ),
}
case = pytest.mark.parametrize(("make", "shapes"), CASES.values(), ids=CASES)


@case
def test_right_on_every_row(backend, dtype, make, shapes):
    check_layer(make(), shapes, backend, dtype)


def test_parameter_gradients_are_the_same_without_an_input_gradient():
    root = xpnn.Sequential(xpnn.Each(xpnn.Dense(2), [xpnn.Tanh(), xpnn.Dense(2)], combine="add"), xpnn.Tanh())
    _, tree = root.build(((3,), (4,)))
    layout = Layout(collect(root, tree), "float64", blocked=False)
    theta, buffers = layout.initialize(0, xpnn.get_backend("numpy"))
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((6, 3)), generator.standard_normal((6, 4)))
    results = []
    for wanted in (True, False):
        y, backward = root.forward(x, layout.tree(theta, buffers), Run(True, input_gradient=wanted))
        dx, gradients = backward(np.cos(y))
        assert (dx is not None) is wanted
        results.append(layout.gather(gradients))
    assert list(results[0]) == ["0.0.weight", "0.0.bias", "0.1.1.weight", "0.1.1.bias"]
    for name, gradient in results[0].items():
        np.testing.assert_array_equal(gradient, results[1][name])


def test_each_input_goes_through_its_layer():
    network = xpnn.Network(xpnn.Each(xpnn.Dense(2, 1), xpnn.Dense(1, 1), combine="concatenate"), dtype="float64")
    assert network.input_shape == ((2,), (1,))
    network.set_parameters({"0.0.weight": [[1.0], [10.0]], "0.0.bias": [0.5], "0.1.weight": [[3.0]], "0.1.bias": [0.0]})
    x = (np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[5.0], [6.0]]))
    np.testing.assert_array_equal(network.predict(x), [[21.5, 15.0], [43.5, 18.0]])


class Watching(xpnn.Layer):
    """Notes the mask that it sees."""

    input_kind = "any"

    def __init__(self):
        self.seen = []

    def forward(self, x, parameters, run):
        self.seen.append(run.mask)
        return x, lambda dy: (dy, {})


@pytest.mark.parametrize("combine", [None, "add"])
def test_a_mask_speaks_of_the_first_input(combine):
    watchers = [Watching() for _ in range(4)]
    before, first, second, behind = watchers
    root = xpnn.Sequential(
        xpnn.Each([xpnn.Masking(), before], xpnn.Masking()),
        xpnn.Each(first, second, combine=combine),
        behind,
    )
    shapes = ((3, 2), (3, 2))
    _, tree = root.build(shapes)
    assert collect(root, tree).entries == ()
    x = np.ones((2, 3, 2))
    x[0, 2] = 0.0
    other = np.ones((2, 3, 2))
    other[1, 0] = 0.0
    parameters = {str(layer): {str(branch): {} for branch in range(2)} for layer in range(3)}
    parameters["0"]["0"] = {"0": {}, "1": {}}
    root.forward((x, other), parameters, Run())
    wanted = [[True, True, False], [True, True, True]]
    np.testing.assert_array_equal(before.seen[0], wanted)
    np.testing.assert_array_equal(first.seen[0], wanted)
    assert second.seen == [None]
    if combine is None:
        np.testing.assert_array_equal(behind.seen[0], wanted)
    else:
        assert behind.seen == [None]


def test_kinds_and_limits_are_those_of_each_input():
    each = xpnn.Each(xpnn.Embedding(7, 2), xpnn.Dense(2), xpnn.Flatten())
    assert each.input_kind == ("index", "float", "any")
    assert each.index_limit == (7, None, None)
    behind = xpnn.Sequential(each, xpnn.Each(xpnn.Dense(2), xpnn.Dense(2), xpnn.Embedding(9, 2)))
    assert behind.input_kind == ("index", "float", "index")
    assert behind.index_limit == (7, None, 9)
    assert xpnn.Parallel(
        xpnn.Each(xpnn.Embedding(7, 2), xpnn.Flatten(), combine="add"),
        xpnn.Each(xpnn.Embedding(4, 2), xpnn.Embedding(3, 2), combine="add"),
    ).index_limit == (4, 3)
    kinds = xpnn.Parallel(
        xpnn.Each(xpnn.Embedding(7, 2), xpnn.Flatten(), combine="add"),
        xpnn.Each(xpnn.Flatten(), xpnn.Dense(2), combine="add"),
    ).input_kind
    assert kinds == ("index", "float")
    assert xpnn.Parallel(xpnn.MultiHeadAttention(2), xpnn.Each(xpnn.Tanh(), xpnn.Flatten())).input_kind == (
        "float",
        "float",
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xpnn.Each(), "no layers"),
        (lambda: xpnn.Each(3), "layer 0 is 3"),
        (lambda: xpnn.Each(xpnn.Tanh(), combine="multiply"), "None, 'add' or 'concatenate'"),
        (lambda: xpnn.Each(xpnn.Tanh(), axis=0), "axis=0 is the batch"),
        (lambda: xpnn.Each(xpnn.Each(xpnn.Tanh()), xpnn.Tanh()), "layer 0, .* takes several inputs"),
        (
            lambda: xpnn.Sequential(
                xpnn.Each(xpnn.Tanh(), xpnn.Dense(3)), xpnn.Each(xpnn.Tanh(), xpnn.Embedding(3, 2))
            ),
            "layer 1, .* looks up indices, but Each",
        ),
        (lambda: xpnn.Sequential(xpnn.LSTM(3, return_state=True), xpnn.Each(xpnn.Embedding(3, 2))), "must come first"),
        (
            lambda: xpnn.Parallel(xpnn.Each(xpnn.Tanh(), xpnn.Tanh()), xpnn.Each(xpnn.Tanh())),
            "not the same number of them",
        ),
        (lambda: xpnn.Parallel(xpnn.Each(xpnn.Tanh(), xpnn.Tanh()), xpnn.Embedding(3, 2)), "some branches look up"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("each", "shapes", "message"),
    [
        (xpnn.Each(xpnn.Tanh(), xpnn.Tanh()), (3,), r"got samples of one input, \(3,\), wants a tuple of 2"),
        (xpnn.Each(xpnn.Tanh(), xpnn.Tanh()), ((3,),), "got samples of 1 inputs"),
        (xpnn.Each(xpnn.Tanh(), xpnn.LSTM(2, return_state=True)), ((3,), (4, 2)), "layer 1 gives several arrays"),
        (xpnn.Each(xpnn.Tanh(), xpnn.Tanh(), combine="add"), ((3,), (2,)), "a sum needs one shape"),
        (xpnn.Each(xpnn.Tanh(), xpnn.Tanh(), combine="concatenate"), ((3, 2), (2, 3)), "may differ in axis -1 only"),
        (xpnn.Each(xpnn.Tanh(), xpnn.Dense(4, 2)), ((3,), (2,)), "layer 1 Dense"),
        (xpnn.Parallel(xpnn.Each(xpnn.Tanh(), xpnn.Tanh())), ((3,), (3,)), "one of them gives several arrays"),
    ],
)
def test_shapes_that_do_not_fit(each, shapes, message):
    with pytest.raises(ShapeError, match=message):
        each.build(shapes)
