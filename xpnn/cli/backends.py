"""`xpnn backends`."""

from __future__ import annotations

from collections.abc import Sequence

from xpnn.backend import describe_backends

_HEADER = ("backend", "version", "usable", "devices, or why not")


def backends_table() -> str:
    """Every known backend: version, whether usable, devices or why not; then the ops with code of their own."""
    found = describe_backends()
    lines = [
        (
            each.name,
            each.version,
            "yes" if each.reason is None else "no",
            ", ".join(each.devices) if each.reason is None else each.reason,
        )
        for each in found
    ]
    overrides = [(each.name, ", ".join(each.overrides) or "none") for each in found if each.reason is None]
    return f"{aligned(_HEADER, lines)}\n\n{aligned(('backend', 'ops with code of their own'), overrides)}"


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text with the columns one below the other; the last column may be as long as it likes."""
    rows = [header, *lines]
    widths = [max(len(row[index]) for row in rows) for index in range(len(header) - 1)]
    text = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        text.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(text)
