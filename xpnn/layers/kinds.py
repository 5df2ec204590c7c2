"""What a layer wants of its input, numbers or the indices of a table: of each input, where it takes several."""

from __future__ import annotations

from typing import Any

Kind = str | tuple[str, ...]
"""As `Layer.input_kind`: one for all inputs, or one for each."""
Limit = int | None | tuple[int | None, ...]
"""As `Layer.index_limit`: one for all inputs, or one for each."""


def of_each(value: Any, count: int) -> tuple[Any, ...]:
    """A kind or a limit, as one for each of `count` inputs."""
    return value if isinstance(value, tuple) else (value,) * count


def behind(first: Kind, second: Kind) -> Kind:
    """What two layers, one behind the other, want: where the first takes anything, its input is for the second."""
    if isinstance(first, str):
        return second if first == "any" else first
    pairs = zip(first, of_each(second, len(first)), strict=False)
    kinds = tuple(then if kind == "any" else kind for kind, then in pairs)
    return kinds if len(kinds) == len(first) else first


def beside(first: Kind, second: Kind) -> Kind | None:
    """What suits two layers that get the same input; None if nothing does."""
    if isinstance(first, str) and isinstance(second, str):
        return behind(first, second) if first == second or "any" in (first, second) else None
    count = len(first) if isinstance(first, tuple) else len(second)
    one, other = of_each(first, count), of_each(second, count)
    if len(one) != len(other):
        return None
    kinds = tuple(beside(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    return None if None in kinds else kinds  # type: ignore[return-value]


def smallest(limits: list[Limit]) -> Limit:
    """The index limit that suits all of several layers which get the same input."""
    count = max((len(limit) for limit in limits if isinstance(limit, tuple)), default=None)
    if count is None:
        return min((limit for limit in limits if isinstance(limit, int)), default=None)
    columns = zip(*(of_each(limit, count) for limit in limits), strict=False)
    return tuple(min((limit for limit in column if limit is not None), default=None) for column in columns)
