"""Rows of a table by number, and the sum of rows by number."""

from __future__ import annotations

import math

from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.errors import ShapeError


@op
def scatter_add(values: Array, indices: Array, length: int) -> tuple[Array, Vjp]:
    """Row k of the result is the sum of all rows of `values` whose index is k; 0 where there is none.

    The array API has no such function: this body multiplies by the one-hot matrix of the indices, whose size is
    rows x length, and spreads a NaN or an infinity to all rows; backends have bodies that only add.

    Args:
        values: (..., features).
        indices: the leading shape of `values`; int64, each in [0, length).
        length: number of rows of the result.

    Returns:
        An array of shape (length, features), and vjp(dy) -> (dvalues, None).

    Raises:
        ShapeError: the shapes do not fit.
    """
    check_scatter(values, indices)
    xp = namespace(values)
    features = values.shape[-1]
    rows = math.prod(indices.shape)
    numbers = xp.arange(length, dtype=indices.dtype, device=device(values))
    one_hot = xp.astype(numbers[:, None] == xp.reshape(indices, (1, rows)), values.dtype)
    total = xp.matmul(one_hot, xp.reshape(values, (rows, features)))

    def vjp(dy: Array) -> tuple[Array, None]:
        return take_rows(dy, indices), None

    return total, vjp


@op
def embedding(table: Array, indices: Array) -> tuple[Array, Vjp]:
    """The rows of `table` with the given numbers. A row that is taken twice gets both gradients, added.

    An index out of range is an error on some backends and undefined on others: check indices where data come in.

    Args:
        table: (vocabulary, features).
        indices: any shape; int64, each in [0, vocabulary).

    Returns:
        An array of shape (*indices.shape, features), and vjp(dy) -> (dtable, None).

    Raises:
        ShapeError: the table does not have two axes.
    """
    if table.ndim != 2:
        raise ShapeError(f"embedding: the table has shape {tuple(table.shape)}, wants (vocabulary, features)")

    def vjp(dy: Array) -> tuple[Array, None]:
        total, _ = scatter_add(dy, indices, table.shape[0])
        return total, None

    return take_rows(table, indices), vjp


def take_rows(table: Array, indices: Array) -> Array:
    """table[indices] for indices of any shape; the standard's `take` wants one axis."""
    xp = namespace(table)
    rows = xp.take(table, xp.reshape(indices, (math.prod(indices.shape),)), axis=0)
    return xp.reshape(rows, (*indices.shape, table.shape[-1]))


def check_scatter(values: Array, indices: Array) -> None:
    """Raise ShapeError if `values` does not hold one row for each index."""
    if values.ndim == 0 or tuple(values.shape[:-1]) != tuple(indices.shape):
        raise ShapeError(
            f"scatter_add: values of shape {tuple(values.shape)} for indices of shape {tuple(indices.shape)}; wants "
            f"values of shape (*indices.shape, features)"
        )
