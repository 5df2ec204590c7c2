"""The command `xpnn`."""

from xpnn.cli.app import main, run

__all__ = ["main", "run"]
