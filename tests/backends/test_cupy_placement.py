"""Pieces of a vector that a graph has made where they belong, and the sums over an epoch."""

import numpy as np
import pytest

import xpnn
from xpnn.dispatch import OPS
from xpnn_backends import trees

placement = pytest.importorskip("xpnn_backends.cupy.placement", reason="CuPy is not installed")


def packed(gpu, function, *arrays):
    """The step's result, run as it is and as a graph, and the graph."""
    from xpnn_backends.cupy.captures import run_as_graph

    def step(state, batch):
        return state, function(*batch)

    _, wanted = step((), arrays)
    graph, (_, found) = run_as_graph(step, (), arrays)
    for mine, theirs in trees.pairs(wanted, found):
        np.testing.assert_array_equal(gpu.to_host(mine), gpu.to_host(theirs))
    return graph


def test_pieces_are_made_in_their_places(gpu):
    x, y = (gpu.asarray(np.arange(n, dtype=np.float32)) for n in (5, 7))

    def function(x, y):
        return OPS["pack"](x + 1.0, y * 2.0, starts=(0, 64), size=128)[0]

    graph = packed(gpu, function, x, y)
    assert [piece.start for piece in graph.placement._pieces.values()] == [0, 256]
    assert len(graph.placement.vectors) == 1


def test_pieces_that_are_views_inputs_or_packed_twice_are_copied(gpu):
    x = gpu.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))

    def function(x):
        made = x + 1.0
        first = OPS["pack"](x, made.T, made, starts=(0, 12, 24), size=36)[0]
        return first, OPS["pack"](made, made[1], starts=(0, 16), size=20)[0]

    graph = packed(gpu, function, x)
    assert len(graph.placement.vectors) in (0, 2)


def test_a_step_that_allocates_otherwise_is_captured_all_the_same(gpu):
    x = gpu.asarray(np.arange(6, dtype=np.float32))
    calls = []

    def function(x):
        calls.append(None)
        made = x + 1.0
        if len(calls) % 2:
            made = made + 0.0  # one more allocation of the same size
        return OPS["pack"](made, x * 3.0, starts=(0, 64), size=70)[0]

    packed(gpu, function, x)


def test_the_gradient_of_a_network_is_not_copied(gpu):
    net = xpnn.Network(xpnn.Dense(5), xpnn.ReLU(), xpnn.Dense(3), backend=gpu, input_shape=(4,))
    generator = np.random.default_rng(0)
    batch = net.prepare(generator.standard_normal((8, 4)), generator.integers(0, 3, 8), "cross_entropy")
    step, state = net.step("cross_entropy", "adam"), net.initial_state("adam", "cross_entropy")
    for _ in range(3):
        state, _ = step(state, batch)
    assert len(step._last.placement._pieces) == 4


@pytest.mark.parametrize("share", [3, 0.5, np.float32(0.25)])
def test_sums_that_are_given_away_are_overwritten(gpu, share):
    total, weights = gpu.asarray(np.float64(1.5)), gpu.asarray(np.float64(2.0))
    value = gpu.asarray(np.float32(0.75))
    given = gpu.asarray(share) if isinstance(share, np.float32) else share
    (new_total, new_weights), vjp = OPS["add_to_sums"](total, weights, value, given, donate=True)
    assert vjp is None
    assert new_total is total
    assert new_weights is weights
    assert float(gpu.to_host(total)) == 1.5 + 0.75 * float(share)
    assert float(gpu.to_host(weights)) == 2.0 + float(share)
