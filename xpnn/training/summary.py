"""What `Network.summary` prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from xpnn.errors import ShapeError
from xpnn.layers import Each, Layer, Sequential
from xpnn.layers.layer import Shape

if TYPE_CHECKING:
    from xpnn.network import Network


def summary(network: Network) -> str:
    """A table: path, layer, shape of an output sample, number of parameters; layers inside layers are indented."""
    rows = [("path", "layer", "output shape", "parameters")]
    counts = {entry.name: math.prod(entry.parameter.shape) for entry in network.layout.entries}
    # A layer that is used twice has its parameters under its first path alone.
    _add_rows(rows, network.root, (), network.input_shape, counts)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2].ljust(widths[2]), row[3].rjust(widths[3])]
        lines.append("  ".join(cells).rstrip())
    ruler = "-" * max(len(line) for line in lines)
    buffers = sum(counts[entry.name] for entry in network.layout.entries if entry.is_buffer)
    frozen = sum(counts[entry.name] for entry in network.layout.beside) - buffers
    total = sum(counts.values()) - buffers
    size = total * (4 if network.dtype == "float32" else 8)
    foot = f"{total:,} parameters ({_bytes(size)} in {network.dtype}){f', {frozen:,} of them frozen' if frozen else ''}"
    if buffers:
        foot += f"; and {buffers:,} numbers that layers keep (running means)"
    head = f"input {network.input_shape}, backend {network.backend.spec}"
    return "\n".join([head, ruler, lines[0], ruler, *lines[1:], ruler, foot])


def _add_rows(
    rows: list[tuple[str, str, str, str]],
    layer: Layer,
    path: tuple[str, ...],
    input_shape: Any,
    counts: dict[str, int],
) -> None:
    """The rows of the layers inside `layer`. Only Sequential and Each say what shape each of them gets."""
    shape: Any = input_shape
    for number, (name, child) in enumerate(layer.children.items()):
        here = (*path, name)
        given = None
        if isinstance(layer, Sequential):
            given = shape
        elif isinstance(layer, Each) and input_shape is not None:
            given = input_shape[number]
        shape = _output_shape(child, given)
        prefix = ".".join(here) + "."
        number = sum(count for parameter, count in counts.items() if parameter.startswith(prefix))
        label = type(child).__name__ if child.children else repr(child)
        if len(label) > 44:
            label = f"{label[:41]}..."
        rows.append((".".join(here), "  " * len(path) + label, "" if shape is None else str(shape), f"{number:,}"))
        _add_rows(rows, child, here, given, counts)


def _output_shape(layer: Layer, input_shape: Any) -> Shape | None:
    if input_shape is None:
        return None
    try:
        return layer.build(input_shape)[0]
    except ShapeError:
        return None


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
