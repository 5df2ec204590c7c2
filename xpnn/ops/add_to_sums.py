"""The running sums of which a mean over an epoch is made."""

from __future__ import annotations

from typing import Any

from xpnn.dispatch import Array, Vjp, namespace, op


@op
def add_to_sums(
    total: Array, weights: Array, value: Array, share: Any, *, donate: bool = False
) -> tuple[tuple[Array, Array], Vjp]:
    """total' = total + value * share, weights' = weights + share: the mean of the values is then total / weights.

    Derivatives: those of total and weights pass, dvalue = dtotal * share, dshare = dtotal * value + dweights.

    Args:
        total: the sum so far, without axes; of the value's dtype or a wider one.
        weights: the sum of the shares so far, as total.
        value: of a batch, without axes.
        share: what it counts; a number, or an array without axes of the value's dtype.
        donate: True lets an accelerated body overwrite total and weights; there is then no vjp.

    Returns:
        (total', weights'), and vjp(cotangents of these) -> gradients for (total, weights, value, share), without the
        last one if share is a number.
    """
    xp = namespace(total)
    is_number = isinstance(share, (int, float))
    counted = share if is_number else xp.astype(share, total.dtype)

    def vjp(cotangents: tuple[Array, Array]) -> tuple[Any, ...]:
        dtotal, dweights = cotangents
        dvalue = xp.astype(dtotal * counted, value.dtype)
        if is_number:
            return dtotal, dweights, dvalue
        return dtotal, dweights, dvalue, xp.astype(dtotal * xp.astype(value, dtotal.dtype) + dweights, share.dtype)

    return (total + xp.astype(value * share, total.dtype), weights + counted), vjp
