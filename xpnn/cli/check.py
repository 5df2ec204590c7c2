"""`xpnn check`."""

from __future__ import annotations

import sys
from typing import Any

from xpnn.cli.output import check_destination


def check_command(backends: str | None, require: str | None, report: str | None) -> bool:
    """Run the matrix of ops x rows x dtypes, and print it.

    Args:
        backends: rows of the matrix, with commas; all without it.
        require: rows that must have run.
        report: an HTML page to write.

    Returns:
        True if every check passed and every required row ran.

    Raises:
        ConfigError: a row is unknown, or required and not among those to run.
        DataError: the report cannot be written.
    """
    from xpnn.errors import ConfigError
    from xpnn.testing.report import check_row_ids, print_report, run_matrix, write_html

    required = _names(require)
    rows = None if backends is None else _names(backends)
    check_row_ids([*required, *(rows or [])])
    if rows is not None:
        if not rows:
            raise ConfigError(f"--backends {backends!r} names no row")
        left_out = [name for name in required if name not in rows]
        if left_out:
            raise ConfigError(f"--require {','.join(left_out)} is not among --backends {backends}; add it there")
    if report is not None:
        check_destination(report, "the report")
    with _Ticker() as tick:
        found = run_matrix(rows, progress=tick)
    print_report(found, _console())
    if report is not None:
        write_html(found, report)
        print(f"report: {report}")
    missing = found.missing(required)
    if not found.results and not missing:
        print("xpnn: nothing was checked: none of these rows can run here", file=sys.stderr)
    for state in missing:
        print(f"xpnn: required row {state.row} did not run: {state.reason}", file=sys.stderr)
    return not found.failures and not missing and bool(found.results)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _console() -> Any:
    """Where the table goes: as wide as the terminal; wide enough for every column where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


class _Ticker:
    """A bar on stderr while the matrix runs, on a terminal alone."""

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("", total=None)
        self._bar.start()
        return self._tick

    def _tick(self, done: int, total: int, name: str) -> None:
        self._bar.update(self._task, completed=done, total=total, description=name)

    def __exit__(self, *problem: object) -> None:
        self._bar.stop()
