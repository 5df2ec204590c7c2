"""Training: the pure step, and the loop around it."""

from xpnn.training.step import State, make_step

__all__ = ["State", "make_step"]
