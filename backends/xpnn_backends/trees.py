"""Trees of tuples and dicts, as which steps take and give states and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class TreeError(Exception):
    """Two trees are not made alike."""


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree, with `function` of each leaf."""
    if isinstance(tree, tuple):
        parts = [map_leaves(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, dict):
        return {key: map_leaves(function, part) for key, part in tree.items()}
    return function(tree)


def arrays_of(tree: Any, kind: type, found: list[Any] | None = None) -> list[Any]:
    """All leaves of a type, in the order of `map_leaves`."""
    if found is None:
        found = []
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, (tuple, dict)):
            arrays_of(part, kind, found)
        elif isinstance(part, kind):
            found.append(part)
    return found


def pairs(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    """(old leaf, new leaf) for all places of two trees of one structure. Raises TreeError if it is not one."""
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for mine, theirs in zip(old, new, strict=True):
            yield from pairs(mine, theirs)
    elif isinstance(old, dict) and isinstance(new, Mapping) and old.keys() == new.keys():
        for name, mine in old.items():
            yield from pairs(mine, new[name])
    elif isinstance(old, (tuple, dict)):
        raise TreeError("the new state has other parts than the old one")
    else:
        yield old, new


def step_field(state: Any) -> int | None:
    """Which field of a state counts the steps; None if none does."""
    fields = getattr(state, "_fields", ())
    return fields.index("step") if "step" in fields else None


def signature(tree: Any, kind: type) -> Any:
    """What two calls must have in common to run alike: structure, shapes, dtypes, and what is no array of that type.

    None if something has no hash.
    """
    parts: list[Any] = []
    _describe(tree, kind, parts)
    key = tuple(parts)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _describe(tree: Any, kind: type, parts: list[Any]) -> None:
    if isinstance(tree, kind):
        parts += (tree.shape, tree.dtype)  # type: ignore[attr-defined]
    elif isinstance(tree, tuple):
        parts.append(len(tree))
        for part in tree:
            _describe(part, kind, parts)
    elif isinstance(tree, dict):
        parts.append(tuple(tree))
        for part in tree.values():
            _describe(part, kind, parts)
    else:
        parts += (type(tree), tree)  # 1, 1.0 and True are equal
