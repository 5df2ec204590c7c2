"""Random masks, the same bits on every backend."""

from __future__ import annotations

from xpnn.backend import host
from xpnn.dispatch import Array, Vjp, device, namespace, op
from xpnn.half_precision import handles_half
from xpnn.random import RandomKey, mask_threshold


@op
@handles_half
def random_mask(x: Array, key: RandomKey, rate: float) -> tuple[Array, Vjp]:
    """A bool array of x's shape, on x's device, False with probability `rate` (to the nearest 1/65536).

    Element number j is True where 16-bit piece number j of the Philox words of `key` is >= round(65536 rate).
    The mask does not depend on the values of x; its derivative is None.
    """
    mask = host().keep_mask(key.seed, key.stream, key.step, tuple(x.shape), mask_threshold(rate))

    def vjp(dy: Array) -> tuple[None]:
        return (None,)

    return namespace(x).asarray(mask, device=device(x)), vjp
