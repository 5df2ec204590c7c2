"""Local response normalisation: each channel divided by the strength of its neighbours."""

from __future__ import annotations

import math

from xpnn.dispatch import Array, Vjp, namespace, op
from xpnn.errors import ShapeError
from xpnn.ops.sweep import Sweep, add_taps, sum_of, taps_along


@op
def local_response_norm(
    x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> tuple[Array, Vjp]:
    """y_c = x_c / (k + alpha / size * sum over the neighbours j of x_j^2)^beta, along the last axis.

    The neighbours of channel c are the `size` channels from c - floor(size / 2) on, those that exist. With
    n = k + alpha / size * sum, dx_c = dy_c n_c^-beta - 2 alpha beta / size x_c sum over j of dy_j x_j n_j^(-beta - 1),
    over the channels j whose neighbour c is.

    No square overflows: where r, the root of alpha / size times the largest neighbour, is above 1, all is divided by r,
    and n is r^2 times a number that stays between 1 and k + size.
    Source: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks",
    NIPS 2012; with the mean of the squares in place of their sum, as in PyTorch.

    Args:
        x: (batch, ..., channels).
        size: how many neighbours a channel has, itself among them.
        alpha: the weight of the neighbours, from 0 on.
        beta: the exponent.
        k: a positive number, for channels whose neighbours are all 0.

    Returns:
        y of x's shape, and vjp(dy) -> (dx,).

    Raises:
        ShapeError: size is not positive, or x has no channel.
    """
    if size < 1 or x.ndim < 2 or x.shape[-1] == 0:
        raise ShapeError(
            f"local_response_norm: x has shape {tuple(x.shape)} and size is {size}; wants (batch, ..., channels) with "
            "at least one channel, and a size of at least 1"
        )
    xp = namespace(x)
    channels = Sweep(x.ndim - 1, x.shape[-1], size, 1, (size // 2, (size - 1) // 2))
    root = math.sqrt(alpha / size)
    neighbours = taps_along(root * x, channels)
    scale = xp.full_like(x, 1.0)
    for neighbour in neighbours:
        scale = xp.maximum(scale, xp.abs(neighbour))
    scaled = [neighbour / scale for neighbour in neighbours]
    norm = sum_of([neighbour * neighbour for neighbour in scaled]) + k / scale / scale
    power = xp.pow(norm, -beta)
    y = (x / scale) * xp.pow(scale, 1.0 - 2.0 * beta) * power

    def vjp(dy: Array) -> tuple[Array]:
        slope = dy * power * xp.pow(scale, -2.0 * beta)
        of_neighbours = (2.0 * beta) * (slope / norm) * scaled[size // 2]
        return (slope - add_taps([of_neighbours * neighbour for neighbour in scaled], channels),)

    return y, vjp
