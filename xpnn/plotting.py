"""Pictures of a training. matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xpnn.errors import ConfigError
from xpnn.files import write_atomically

_FORMATS = (".png", ".svg", ".pdf")
_INK = {"loss": "#1f5fa8", "val_loss": "#c8501e"}
_LABELS = {"loss": "training", "val_loss": "validation"}


def check_plot_path(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError if no picture could be drawn into such a file: its ending, or matplotlib is missing."""
    ending = Path(path).suffix.lower()
    if ending not in _FORMATS:
        raise ConfigError(f"the picture {os.fspath(path)!r} must end in {', '.join(_FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'pictures are drawn with matplotlib, which does not load ({error}); pip install "xpnn[plot]"'
        ) from None


def plot_history(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str], title: str = "loss") -> None:
    """Draw the curves of the training and validation loss over the epochs; logarithmic where they span a decade.

    Args:
        history: name -> value after each epoch; "loss", and "val_loss" if there is one.
        path: a .png, .svg or .pdf file.
        title: above the picture.

    Raises:
        ConfigError: the path has another ending, or matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check_plot_path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    drawn: list[float] = []
    for name, label in _LABELS.items():
        values = [float(value) for value in history.get(name, ())]
        if not values:
            continue
        epochs = range(1, len(values) + 1)
        # A single epoch has no line: show its point.
        marker = "o" if len(values) == 1 else ""
        axes.plot(epochs, values, color=_INK[name], label=label, linewidth=1.8, marker=marker)
        drawn += values
    _set_axes(axes, drawn, title)
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:].lower())
    write_atomically(path, picture.getvalue())


def _set_axes(axes: Any, drawn: list[float], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    if drawn and min(drawn) > 0 and max(drawn) > 10 * min(drawn):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_title(title, loc="left")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if drawn:
        axes.legend(frameon=False)
