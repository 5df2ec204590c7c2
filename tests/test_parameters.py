"""The parameter vector, and layers that share parameters."""

import math

import numpy as np
import pytest

import xpnn
from xpnn.errors import ShapeError
from xpnn.layers import Layer, Parameter, Run
from xpnn.parameters import Layout, collect
from xpnn.testing import check_layer


def layout_of(root, input_shape, dtype="float64", blocked=False, frozen=()):
    return Layout(collect(root, root.build(input_shape)[1]), dtype, blocked, frozen)


def network():
    return xpnn.Sequential(xpnn.Dense(5), xpnn.Tanh(), [xpnn.Dense(3, bias=False), xpnn.Flatten()])


@pytest.mark.parametrize(("kind", "unit"), [("float32", 64), ("float64", 32)])
def test_each_parameter_starts_on_a_256_byte_boundary(kind, unit):
    layout = layout_of(network(), (40,), kind)
    assert layout.names == ["0.weight", "0.bias", "2.0.weight"]
    sizes = [200, 5, 15]
    end = 0
    for (start, stop), size in zip(layout.spans.values(), sizes, strict=True):
        assert start % unit == 0
        assert end <= start < end + unit
        assert stop - start == size
        end = stop
    assert layout.size % unit == 0
    assert end <= layout.size < end + unit


def test_join_and_split_are_inverse_and_the_padding_is_zero(backend, dtype):
    for blocked in (False, True):
        layout = layout_of(network(), (4,), dtype, blocked)
        rng = np.random.default_rng(0)
        shapes = {entry.name: entry.parameter.shape for entry in layout.entries}
        arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        vector = layout.join({name: backend.asarray(value, dtype) for name, value in arrays.items()})
        assert len(vector) == (3 if blocked else 1)
        for name, part in layout.split(vector).items():
            np.testing.assert_array_equal(backend.to_host(part), arrays[name])
        if not blocked:
            flat = backend.to_host(vector[0])
            assert flat.shape == (layout.size,)
            assert np.count_nonzero(flat) == sum(math.prod(shape) for shape in shapes.values())


def test_the_tree_has_a_place_for_every_layer(backend, dtype):
    layout = layout_of(network(), (4,), dtype, backend.blocked)
    theta, buffers = layout.initialize(0, backend)
    tree = layout.tree(theta, buffers)
    assert tree["1"] == {}
    assert tree["2"]["1"] == {}
    assert tuple(tree["2"]["0"]["weight"].shape) == (5, 3)


def test_frozen_parameters_lie_beside_the_vector(backend, dtype):
    layout = layout_of(network(), (4,), dtype, backend.blocked, frozen=["0.weight"])
    theta, buffers = layout.initialize(0, backend)
    free, _ = layout_of(network(), (4,), dtype, backend.blocked).initialize(0, backend)
    assert layout.names == ["0.bias", "2.0.weight"]
    assert list(buffers) == ["0.weight"]
    whole = layout_of(network(), (4,), dtype, backend.blocked).split(free)
    np.testing.assert_array_equal(backend.to_host(buffers["0.weight"]), backend.to_host(whole["0.weight"]))
    tree = layout.tree(theta, buffers)
    assert tree["0"]["weight"] is buffers["0.weight"]


def test_a_network_without_parameters():
    layout = layout_of(xpnn.Sequential(xpnn.Tanh()), (3,))
    theta, buffers = layout.initialize(0, xpnn.get_backend("numpy"))
    assert (theta, buffers, layout.names) == ((), {}, [])
    assert layout.gather({}) == {}
    assert layout.tree(theta, buffers) == {"0": {}}


def test_constants_for_each_parameter(backend, dtype):
    layout = layout_of(network(), (4,), dtype, backend.blocked)
    theta, _ = layout.initialize(0, backend)
    assert set(layout.constant(dict.fromkeys(layout.names, 0.5), theta)) == {0.5}
    factors = layout.constant({"0.weight": 2.0, "2.0.weight": 3.0}, theta)
    scaled = tuple(block * 0.0 + factor for block, factor in zip(theta, factors, strict=True))
    for name, part in layout.split(scaled).items():
        want = {"0.weight": 2.0, "0.bias": 0.0, "2.0.weight": 3.0}[name]
        assert (backend.to_host(part) == want).all()


def shared_networks():
    """Networks in which one layer object occurs in several places: (root, names, number of places of the first)."""
    dense, block = xpnn.Dense(3), xpnn.Sequential(xpnn.Dense(3), xpnn.Tanh())
    table = xpnn.Embedding(4, 3)
    return {
        "twice": (xpnn.Sequential(dense, xpnn.Tanh(), dense), ["0.weight", "0.bias"], 2),
        "at once": (xpnn.Sequential(dense, dense), ["0.weight", "0.bias"], 2),
        "block": (xpnn.Sequential(block, xpnn.Sigmoid(), block), ["0.0.weight", "0.0.bias"], 2),
        "inside": (xpnn.Sequential(dense, xpnn.Residual(xpnn.Tanh(), dense)), ["0.weight", "0.bias"], 2),
        "branches": (xpnn.Parallel(dense, [xpnn.Tanh(), dense]), ["branches.0.weight", "branches.0.bias"], 2),
        "shortcut": (xpnn.Residual(dense, dense, shortcut=dense), ["0.weight", "0.bias"], 3),
        "first": (
            xpnn.Sequential(xpnn.Residual(dense, xpnn.Tanh()), xpnn.Parallel(dense, dense, combine="concatenate")),
            ["0.0.weight", "0.0.bias"],
            3,
        ),
        "tables": (xpnn.Parallel(table, [table, xpnn.Tanh()]), ["branches.0.weight"], 2),
    }


shared = pytest.mark.parametrize("case", shared_networks())


@shared
def test_a_layer_that_is_used_twice_has_one_set_of_parameters(case):
    root, names, count = shared_networks()[case]
    structure = collect(root, root.build((3,))[1])
    assert [entry.name for entry in structure.entries] == names
    assert [entry.number for entry in structure.entries] == list(range(len(names)))
    assert all(len(entry.places) == count for entry in structure.entries)


@shared
def test_the_gradients_of_a_shared_layer_add_up_on_every_row(backend, dtype, case):
    root, _, _ = shared_networks()[case]
    check_layer(root, (5, 3), backend, dtype)


@shared
def test_shared_gradients_are_the_sum_over_a_network_of_copies(case):
    """Untied, every place has a parameter of its own; with equal values, their gradients add up to the shared one."""
    root, _, _ = shared_networks()[case]
    _, tree = root.build((3,))
    tied = collect(root, tree)
    entries = [(entry, place) for entry in tied.entries for place in entry.places]
    copies = [
        entry._replace(name=".".join(place), number=number, places=(place,))
        for number, (entry, place) in enumerate(entries)
    ]
    x = np.random.default_rng(2).standard_normal((4, 3))
    if root.input_kind == "index":
        x = np.array([[0, 1, 1], [3, 2, 0], [0, 0, 0], [3, 3, 1]])
    layout = Layout(tied, "float64", blocked=False)
    untied = Layout(tied._replace(entries=tuple(copies)), "float64", blocked=False)
    theta, _ = layout.initialize(1, xpnn.get_backend("numpy"))
    values = layout.split(theta)
    apart = untied.join({copy.name: values[entry.name] for copy, (entry, _) in zip(copies, entries, strict=True)})
    gradients = []
    for each, vector in ((layout, theta), (untied, apart)):
        y, backward = root.forward(x, each.tree(vector, {}), Run(input_gradient=False))
        gradients.append(each.gather(backward(np.cos(y))[1]))
    for entry in tied.entries:
        total = sum(gradients[1][".".join(place)] for place in entry.places)
        np.testing.assert_allclose(gradients[0][entry.name], total, rtol=1e-13)


def test_training_keeps_shared_weights_one(backend, dtype):
    dense = xpnn.Dense(2)
    net = xpnn.Network(dense, xpnn.Tanh(), dense, backend=backend, dtype=dtype, input_shape=(2,))
    x = np.random.default_rng(0).standard_normal((8, 2))
    history = net.fit(x, 0.5 * x, loss="mse", optimizer=xpnn.SGD(0.2), epochs=20, batch_size=None, verbose=0)
    assert history["loss"][-1] < history["loss"][0]
    assert list(net.parameters) == ["0.weight", "0.bias"]
    weight, bias = (backend.to_host(value) for value in net.parameters.values())
    want = np.tanh(x @ weight + bias) @ weight + bias
    np.testing.assert_allclose(net.predict(x), want, rtol=1e-4, atol=1e-5)


def test_a_shared_layer_with_inputs_of_two_shapes_is_an_error_that_names_both_places():
    dense = xpnn.Dense(2)
    message = (
        r"^layer 2 Dense\(2\): is used at '0' too, where its weight has shape \(3, 2\); here it would need \(2, 2\)"
    )
    with pytest.raises(ShapeError, match=message):
        xpnn.Network(dense, xpnn.Tanh(), dense, input_shape=(3,))
    first = xpnn.Parallel(xpnn.Dense(4), [dense, xpnn.Dense(4)])
    message = r"^layer 1\.0 Dense\(2\): is used at '0\.branches\.1\.0' too, where its weight has shape \(3, 2\)"
    with pytest.raises(ShapeError, match=message):
        xpnn.Network(first, xpnn.Residual(dense, shortcut=xpnn.Dense(2)), input_shape=(3,))


class Outer(Layer):
    """A composite of a user's, with a parameter of its own and a child."""

    def __init__(self, inner):
        self.inner = inner
        self.children = {"inner": inner}

    def build(self, input_shape):
        shape, tree = self.build_child("inner", input_shape)
        return shape, {"gain": Parameter(shape, xpnn.initializers.Ones()), "inner": tree}

    def forward(self, x, parameters, run):
        inside, backward_inside = self.inner.forward(x, parameters["inner"], run)

        def backward(dy):
            dx, gradients = backward_inside(dy * parameters["gain"])
            gain = xpnn.dispatch.namespace(dy).sum(dy * inside, axis=0)
            return dx, {"gain": gain, "inner": gradients}

        return inside * parameters["gain"], backward


def test_a_composite_of_a_users_own(backend, dtype):
    layer = Outer(xpnn.Sequential(xpnn.Dense(4), xpnn.Tanh()))
    assert layout_of(layer, (3,)).names == ["gain", "inner.0.weight", "inner.0.bias"]
    check_layer(layer, (5, 3), backend, dtype)
