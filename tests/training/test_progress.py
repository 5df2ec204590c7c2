"""What a training prints."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

import xpnn
from xpnn.training import progress
from xpnn.training.progress import Bar, Lines, Progress, clock, line, progress_for

X = np.linspace(-1.0, 1.0, 20)[:, None]


def fit(**options):
    net = xpnn.Network(xpnn.Dense(1, 1))
    options = {"loss": "mse", "optimizer": "sgd", "metrics": ["mae"], "validation_data": (X, X), **options}
    return net.fit(X, X, **options)


def test_lines_where_the_output_is_piped(capsys):
    history = fit(epochs=3)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert len(lines) == 3
    assert lines[1].startswith(
        f"epoch 2/3  loss {history['loss'][1]:.4g}  mae {history['mae'][1]:.4g}  "
        f"val_loss {history['val_loss'][1]:.4g}  val_mae {history['val_mae'][1]:.4g}  "
    )
    assert lines[1].endswith(" s")
    assert "\x1b" not in out


@pytest.mark.parametrize("verbose", [0, False])
def test_silence(capsys, verbose):
    fit(epochs=3, verbose=verbose)
    assert capsys.readouterr() == ("", "")


def test_many_epochs_print_about_a_hundred_lines(capsys):
    fit(epochs=1234)
    lines = capsys.readouterr().out.splitlines()
    assert 90 < len(lines) <= 102
    assert lines[0].startswith("epoch    1/1234")
    assert lines[-1].startswith("epoch 1234/1234")


def test_a_resumed_training_counts_on(capsys):
    net = xpnn.Network(xpnn.Dense(1, 1))
    net.fit(X, X, loss="mse", optimizer="sgd", epochs=2)
    net.fit(X, X, epochs=2, resume=True)
    assert [text.split()[1] for text in capsys.readouterr().out.splitlines()] == ["1/2", "2/2", "3/4", "4/4"]


def test_metrics_that_are_no_numbers_are_left_out():
    text = line(3, 20, {"loss": 0.25, "confusion_matrix": [[1, 2], [3, 4]]}, 1.234)
    assert text == "epoch  3/20  loss 0.25  1.2 s"


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def test_which_kind(monkeypatch):
    assert type(progress_for(2)) is type(progress_for("auto")) is Lines
    assert type(progress_for(0)) is Progress
    monkeypatch.setattr(progress, "_on_terminal", lambda: True)
    assert type(progress_for("auto")) is type(progress_for(True)) is Bar
    assert type(progress_for(2)) is Lines
    monkeypatch.setattr(sys, "stdout", None)
    assert type(progress_for("auto")) is Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_is_drawn_at_most_ten_times_a_second(monkeypatch):
    """A clock that moves a millisecond per batch: 2000 batches are two seconds, and give 20 drawings."""
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    now = [0.0]

    def perf_counter():
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(progress.time, "perf_counter", perf_counter)
    bar = progress_for("auto")
    assert type(bar) is Bar
    bar.begin(1, 2, 1000)
    drawings = []
    refresh = bar._bar.refresh
    monkeypatch.setattr(bar._bar, "refresh", lambda: (drawings.append(1), refresh()))
    for epoch in (1, 2):
        for sample in range(1, 1001):
            bar.batch_done(epoch, sample)
        bar.epoch_done(epoch, {"loss": 0.5}, 1.0)
    between = len(drawings)
    bar.end()
    shown = terminal.getvalue()
    assert 15 <= between <= 25
    assert "samples/s" in shown
    assert "left" in shown
    assert "epoch 2/2  loss 0.5  1 s" in shown


def test_an_ordinary_line_fits_into_80_columns(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    bar = progress_for("auto")
    bar.begin(1, 30, 1000)
    logs = {"loss": 0.00094837, "accuracy": 0.99932, "val_loss": 0.061441, "val_accuracy": 0.98053}
    bar.epoch_done(28, logs, 0.0375)
    bar.end()
    wanted = "epoch 28/30  loss 0.000948  accuracy 0.999  val_loss 0.0614  val_accuracy 0.981"
    assert len(wanted) < 80
    assert wanted in terminal.getvalue()
    assert "0.038 s" not in terminal.getvalue()


def test_rich_is_not_imported_before_a_bar_is_drawn():
    code = (
        "import sys, xpnn\n"
        "net = xpnn.Network(xpnn.Dense(1, 1))\n"
        "net.fit([[1.0]], [[1.0]], loss='mse', optimizer='sgd')\n"
        "assert 'rich' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("epoch 1/1  loss ")
