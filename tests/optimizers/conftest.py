import numpy as np
import pytest

from xpnn.layers import Dense, Sequential
from xpnn.parameters import Layout, collect


@pytest.fixture
def make_layout():
    """A function that gives the layout of a 3-5-2 network; flat, its vector has padding."""

    def make(dtype="float64", blocked=False):
        root = Sequential(Dense(3, 5), Dense(5, 2))
        return Layout(collect(root, root.build((3,))[1]), dtype, blocked)

    return make


@pytest.fixture
def draw():
    """A function that gives random arrays, one for each parameter of a layout."""

    def arrays(layout, seed, scale=1.0):
        rng = np.random.default_rng(seed)
        return {entry.name: scale * rng.normal(size=entry.parameter.shape) for entry in layout.trained}

    return arrays
