"""Choosing at random what a network holds probable."""

from __future__ import annotations

from typing import Any

from xpnn import ops, random
from xpnn.backend import host
from xpnn.config import check_number
from xpnn.errors import DataError


def draw(logits: Any, seed: int = 0, step: int = 0, temperature: float = 1.0) -> int:
    """A class, drawn with the probabilities softmax(logits / temperature).

    It is the first class up to which the probabilities add up to more than u, with u uniform on (0, 1) from the
    Philox generator: the same number for the same seed and step.

    Args:
        logits: (classes,), on the host.
        seed: of the draws.
        step: the number of this draw.
        temperature: below 1 the probable classes become more probable, above 1 less; 0 takes the most probable one.

    Raises:
        ConfigError: the temperature is negative or no number.
        DataError: the logits are no vector of finite numbers.
    """
    temperature = check_number(
        "temperature", temperature, "a number from 0 on", lambda value: 0 <= value < float("inf")
    )
    seed = random.check_seed(seed)
    xp = host().xp
    scores = xp.asarray(logits, dtype=xp.float64)
    if scores.ndim != 1 or scores.shape[0] == 0 or not xp.isfinite(scores).all():
        raise DataError(f"logits of shape {scores.shape} are no vector of finite numbers; give those of one place")
    if temperature == 0:
        return int(xp.argmax(scores))
    # From the largest score down, so that what a small temperature makes huge is negative: exp gives 0, not infinity.
    with xp.errstate(over="ignore"):
        scaled = xp.maximum((scores - xp.max(scores)) / temperature, xp.asarray(-1e4))
    probabilities, _ = ops.softmax(scaled)
    sums = xp.cumulative_sum(probabilities)
    u = random.uniform(seed, random.stream(random.SAMPLING), step, (1,))[0]
    return min(int(xp.sum(sums <= u * sums[-1])), len(scores) - 1)
