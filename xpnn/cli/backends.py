"""`xpnn backends`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

from xpnn import dispatch
from xpnn.backend import describe_backends

_HEADER = ("backend", "version", "usable", "devices, or why not")
_MEMORY_HEADER = ("memory of", "free", "of", "in the library's pool", "in arrays")


def backends_table() -> str:
    """Every known backend: version, usable or why not, devices; the ops with code of their own; memory; notices.

    Listed are the ops whose own code is in use, and the memory of devices whose library keeps account of it. A notice
    says what is not as it should be on this machine.
    """
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
    none = "none" if dispatch.overrides_active() else "none: switched off by the variable XPNN_OVERRIDES"
    overrides = [(each.name, ", ".join(each.overrides) or none) for each in found if each.reason is None]
    # A terminal would break long lines anywhere; a file or a pipe gets each as one line.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    own_code = aligned(("backend", "ops with code of their own"), overrides, width)
    blocks = [aligned(_HEADER, lines, width), own_code]
    memory = [
        (f"{each.name}:{device}", *map(gibibytes, (known.free, known.total, known.pool, known.live)))
        for each in found
        for device, known in each.memory.items()
    ]
    if memory:
        blocks.append(aligned(_MEMORY_HEADER, memory, width))
    notices = [f"{each.name}: {notice}" for each in found for notice in each.notices]
    if notices:
        blocks.append("\n".join(notices))
    return "\n\n".join(blocks)


def gibibytes(count: int) -> str:
    """A number of bytes for people: "1.50 GiB"."""
    return f"{count / 2**30:.2f} GiB"


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Lines of cells as text with the columns one below the other.

    Args:
        header: the names of the columns.
        lines: the cells of each line.
        width: the last column goes on in further lines where a line would be longer; without it, it is never broken.
    """
    rows = [header, *lines]
    widths = [max(len(row[index]) for row in rows) for index in range(len(header) - 1)]
    text = []
    for row in rows:
        before = "".join(f"{cell.ljust(size)}  " for cell, size in zip(row, widths, strict=False))
        parts = [row[-1]]
        if width is not None:
            room = max(width - len(before), 30)
            parts = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
        for part in parts:
            text.append(f"{before}{part}".rstrip())
            before = " " * len(before)
    return "\n".join(text)
