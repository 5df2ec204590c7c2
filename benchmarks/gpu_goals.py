"""What the tables of `gpu.py` are to show."""

from __future__ import annotations

from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A goal: xpnn is so many times as fast as the fastest of some others.

    Attributes:
        against: who they are, in words.
        peers: the contenders that are meant.
        wanted: the least that the time of the fastest of them, divided by xpnn's, is to be.
        cases: where it applies; () for all cases of a table.
    """

    against: str
    peers: tuple[str, ...]
    wanted: float
    cases: tuple[str, ...] = ()


def judged(goal: Goal, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What became of a goal, given the rows of a case.

    Returns:
        against, wanted; ratio: what was reached, None if there is nothing to compare; fastest: the peer that it is
        compared with; without: the peers that have no time; met: whether, None if there is no ratio.
    """
    ratios = {name: rows[name]["ratios"]["xpnn"] for name in goal.peers if "xpnn" in rows[name].get("ratios", {})}
    fastest = min(ratios, key=lambda name: ratios[name]) if ratios else None
    ratio = None if fastest is None else ratios[fastest]
    return {
        "against": goal.against,
        "wanted": goal.wanted,
        "ratio": ratio,
        "fastest": fastest,
        "without": [name for name in goal.peers if "seconds" not in rows[name]],
        "met": None if ratio is None else ratio >= goal.wanted,
    }


def goal_cells(found: dict[str, Any]) -> list[str]:
    """Against whom, the ratio, what was wanted, whether it was met: for a table."""
    if found["ratio"] is None:
        return [found["against"], "-", f">= {found['wanted']:g}", "not measured"]
    against = found["against"]
    if found["fastest"] and " of the " in against:
        against += f" ({found['fastest']})"
    met = "yes" if found["met"] else "**no**"
    if found["without"]:
        met += f" (without {', '.join(found['without'])})"
    return [against, f"{found['ratio']:.2f}", f">= {found['wanted']:g}", met]
