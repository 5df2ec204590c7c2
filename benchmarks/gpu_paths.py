"""Texts without the folders of the machine that they were made on: a report is for everybody."""

from __future__ import annotations

import os
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def without_paths(text: str) -> str:
    """The text with names in the place of this repository, of Python, of other packages, and of the user's folders."""
    places = dict.fromkeys(os.environ.get("PYTHONPATH", "").split(os.pathsep), "PACKAGES")
    places |= {sys.prefix: "PYTHON", sys.base_prefix: "PYTHON", str(pathlib.Path.home()): "HOME"}
    places |= {tempfile.gettempdir(): "TMP", str(ROOT): "."}
    # "/usr" and "/" are in every path, and say nothing of the machine.
    named = {place: name for place, name in places.items() if len(place) > 4 or name == "TMP"}
    for place in sorted(named, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-]){re.escape(place)}(?![\w.-])", named[place], text)
    return text
