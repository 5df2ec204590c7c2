"""Piecewise activations around zero: relu and its relatives."""

from __future__ import annotations

from xpnn.dispatch import Array, Vjp, namespace, op


@op
def relu(x: Array) -> tuple[Array, Vjp]:
    """max(x, 0), elementwise; the derivative at 0 is taken as 0 (Nair and Hinton, ICML 2010)."""
    xp = namespace(x)
    y = xp.maximum(x, 0.0)

    def vjp(dy: Array) -> tuple[Array]:
        return (xp.where(y > 0, dy, xp.zeros_like(dy)),)

    return y, vjp
