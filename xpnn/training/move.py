"""An optimizer's memory in a new layout, or on another device."""

from __future__ import annotations

from xpnn.backend import Backend
from xpnn.dispatch import Array
from xpnn.optimizers.optimizer import Optimizer, Slots
from xpnn.parameters import Layout, Vector
from xpnn.training.precision import scaling_from


def move_slots(
    optimizer: Optimizer,
    slots: Slots,
    old: Layout,
    source: Backend,
    theta: Vector,
    new: Layout,
    target: Backend,
) -> Slots:
    """The slots, laid out as `new` and placed on `target`, each parameter's part found by name.

    A parameter that was frozen before begins with the memory that a fresh training would give it.

    Args:
        optimizer: knows what fresh slots look like.
        slots: the memory so far.
        old: its layout.
        source: where it lies.
        theta: the parameters in the new place, in the new layout.
        new: the new layout.
        target: the new place.
    """
    with target.context():
        fresh = optimizer.initial_slots(theta, new)
    moved: Slots = {}
    for slot, vector in slots.items():
        slot_layout, old_layout = optimizer.slot_layout(slot, new), optimizer.slot_layout(slot, old)
        parts = {name: target.to_host(part) for name, part in slot_layout.split(fresh[slot]).items()}
        known = {name: source.to_host(part) for name, part in old_layout.split(vector).items() if name in parts}
        joined = slot_layout.join({**parts, **known})
        moved[slot] = tuple(target.asarray(block, new.dtype) for block in joined)
    return moved


def move_scaling(scaling: tuple[Array, ...], source: Backend, target: Backend) -> tuple[Array, ...]:
    """The loss scale of a training in float16, placed on `target`; () stays ()."""
    if not scaling or source is target:
        return scaling
    scale, good_steps = (float(source.to_host(part)) for part in scaling)
    return scaling_from((scale, good_steps), target)
