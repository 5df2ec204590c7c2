"""Optimizers whose formula looks at each parameter as a whole."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn.dispatch import device, namespace
from xpnn.layers.layer import Shape
from xpnn.optimizers.optimizer import Optimizer, Slots, copied
from xpnn.parameters import Layout, Structure, Vector


class ParameterOptimizer(Optimizer):
    """Base of the optimizers that need each parameter with its own shape: for its norm, or its rows and columns.

    `update` gets one parameter at a time, with a number for its decay, and those of the slots, in the order of
    `slot_names`, for which `slot_shape` gives a shape.
    """

    decoupled_decay: ClassVar[bool] = True

    def slot_shape(self, slot: str, shape: Shape) -> Shape | None:
        """The shape of what a slot holds for a parameter of this shape; None if it holds nothing for it."""
        return shape

    def slot_layout(self, slot: str, layout: Layout) -> Layout:
        """A layout of the same kind, for the arrays that the slot holds."""
        if slot not in self.slot_names:  # the average of the weights
            return layout
        entries = []
        for entry in layout.trained:
            shape = self.slot_shape(slot, entry.parameter.shape)
            if shape is not None:
                entries.append(entry._replace(parameter=entry.parameter._replace(shape=shape)))
        return Layout(Structure(tuple(entries), {}), layout.dtype, layout.blocked)

    def initial_slots(self, theta: Vector, layout: Layout) -> Slots:
        slots = {}
        for slot in self.slot_names if theta else ():
            like = theta[0]
            xp, where = namespace(like), device(like)
            slot_layout = self.slot_layout(slot, layout)
            slots[slot] = slot_layout.join(
                {
                    entry.name: xp.zeros(entry.parameter.shape, dtype=like.dtype, device=where)
                    for entry in slot_layout.trained
                }
            )
        if self.ema is not None:
            slots["ema"] = copied(theta)
        return slots

    def advance(
        self, theta: Vector, gradient: Vector, slots: Slots, step: Any, decays: tuple[Any, ...] | None, layout: Layout
    ) -> tuple[Vector, Slots]:
        """`update` on each parameter."""
        numbers = self.numbers(self.rate(step, theta[0]), step)
        layouts = {slot: self.slot_layout(slot, layout) for slot in self.slot_names}
        old = {slot: slot_layout.split(slots[slot]) for slot, slot_layout in layouts.items()}
        parameters, gradients = layout.split(theta), layout.split(gradient)
        new: dict[str, dict[str, Any]] = {slot: {} for slot in layouts}
        for index, name in enumerate(layout.names):
            kept = {slot: parts[name] for slot, parts in old.items() if name in parts}
            decay = decays[index] if decays else 0.0
            parameters[name], *values = self.update(
                parameters[name], gradients[name], tuple(kept.values()), numbers, decay
            )
            for slot, value in zip(kept, values, strict=True):
                new[slot][name] = value
        return layout.join(parameters), {slot: layouts[slot].join(arrays) for slot, arrays in new.items()}

    def _decays(self, theta: Vector, layout: Layout) -> tuple[Any, ...]:
        """One number for each parameter."""
        return tuple(self.decay_of(entry.parameter.shape) for entry in layout.trained)
