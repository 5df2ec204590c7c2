"""The derivative of the square root, for the ops that divide by one."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array


def square_root_gradient(xp: Any, root: Array, dy: Array) -> Array:
    """dy / (2 root), the gradient through root = sqrt(x); 0 where root is 0, since no finite slope exists there."""
    positive = root > 0
    return xp.where(positive, 0.5 * dy / xp.where(positive, root, 1.0), 0.0)
