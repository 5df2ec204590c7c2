"""Where in a sequence a time step is: tables that depend on shapes alone, and the op that adds one.

The angles are computed on the host in float64 and rounded at the end: in float32 the angle of position 100000 would be
off by up to 0.004.
"""

from __future__ import annotations

from typing import Any

from xpnn.backend import host
from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ShapeError


@op
def add_positions(x: Array, positions: Array) -> tuple[Array, Vjp]:
    """y = x + the first rows of `positions`, one for each time step: the same ones for every sample.

    The gradient of a row is the sum over the batch; that of a row behind the end of x is 0.

    Args:
        x: (batch, time, features).
        positions: (length, features), length >= time.

    Returns:
        y of x's shape, and vjp(dy) -> (dx, dpositions).

    Raises:
        ShapeError: the shapes do not fit.
    """
    if x.ndim != 3 or positions.ndim != 2 or x.shape[2] != positions.shape[1] or x.shape[1] > positions.shape[0]:
        raise ShapeError(
            f"add_positions: x {tuple(x.shape)}, positions {tuple(positions.shape)}; give x as (batch, time, "
            "features), and at least as many rows of positions as there are time steps, of as many features"
        )
    xp = namespace(x)
    time = x.shape[1]

    def vjp(dy: Array) -> tuple[Any, ...]:
        dpositions = xp.sum(dy, axis=0)
        missing = positions.shape[0] - time
        if missing:
            zeros = xp.zeros((missing, x.shape[2]), dtype=x.dtype, device=device(x))
            dpositions = xp.concat([dpositions, zeros], axis=0)
        return dy, dpositions

    return x + positions[:time, ...], vjp


def sinusoidal_table(like: Array, length: int, features: int, base: float = 10000.0) -> Array:
    """(length, features): sin(t / base^(2i / features)) in feature 2i of row t, cos of the same in feature 2i + 1.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5. An odd number of features ends in
    a sine.

    Args:
        like: an array of the dtype and on the device that the table shall have.
        length: the number of rows.
        features: the length of a row.
        base: of the frequencies; positive.
    """
    xp = host().xp
    angles = _angles(length, features, base)
    both = xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
    return _placed(xp.reshape(both, (length, 2 * angles.shape[1]))[:, :features], like)


def rotary_tables(like: Array, length: int, size: int, base: float = 10000.0) -> tuple[Array, Array]:
    """(cos, sin) of the angles t base^(-2i / size), for pair i of the row of position t: (length, size / 2) each.

    Args:
        like: an array of the dtype and on the device that the tables shall have.
        length: the number of positions, from 0 on.
        size: how many features are turned; even.
        base: of the frequencies; positive.
    """
    xp = host().xp
    angles = _angles(length, size, base)
    return _placed(xp.cos(angles), like), _placed(xp.sin(angles), like)


def _angles(length: int, features: int, base: float) -> Array:
    """t base^(-2i / features) on the host: (length, features / 2, rounded up)."""
    xp = host().xp
    positions = xp.arange(length, dtype=xp.float64)
    pairs = xp.arange((features + 1) // 2, dtype=xp.float64)
    return positions[:, None] * base ** (-2.0 * pairs[None, :] / max(features, 1))


def _placed(table: Array, like: Array) -> Array:
    """A host table of float64 in the dtype and on the device of `like`; rounded before it travels."""
    xp = namespace(like)
    if xp.finfo(like.dtype).bits == 32:
        table = host().xp.astype(table, host().xp.float32)
    return xp.asarray(table, dtype=like.dtype, device=device(like))
