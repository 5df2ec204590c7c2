"""What an optimizer is."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn.config import Configurable
from xpnn.dispatch import Array
from xpnn.parameters import Layout, Vector

Slots = dict[str, Vector]


class Optimizer(Configurable):
    """A formula that maps parameters and gradient to new parameters.

    The object holds settings only. Its memory (momentum and the like) is a dict of vectors of theta's layout, part of
    the training state.

    A subclass names its slots and gives `update`, made of one op.
    """

    slot_names: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str]
    learning_rate: Any

    def initial_slots(self, theta: Vector, layout: Layout) -> Slots:
        """The slots before the first step: zeros."""
        return {name: layout.zeros(theta) for name in self.slot_names}

    def rate(self, step: Any) -> Any:
        """The learning rate of step number `step` (the first is 0)."""
        return self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate

    def apply(self, theta: Vector, gradient: Vector, slots: Slots, step: Any, layout: Layout) -> tuple[Vector, Slots]:
        """One step on the whole vector: (theta, slots). The memory of theta and of the slots may be used again."""
        rate = self.rate(step)
        new_theta = []
        new_slots: dict[str, list[Array]] = {name: [] for name in self.slot_names}
        for index, (block, block_gradient) in enumerate(zip(theta, gradient, strict=True)):
            old = tuple(slots[name][index] for name in self.slot_names)
            block, *new = self.update(block, block_gradient, old, rate, step)
            new_theta.append(block)
            for name, value in zip(self.slot_names, new, strict=True):
                new_slots[name].append(value)
        return tuple(new_theta), {name: tuple(blocks) for name, blocks in new_slots.items()}

    def update(
        self, theta: Array, gradient: Array, slots: tuple[Array, ...], learning_rate: Any, step: Any
    ) -> tuple[Array, ...]:
        """One block: (new theta, *new slots)."""
        raise NotImplementedError
