"""Hooks into the training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from xpnn.dispatch import Array
from xpnn.errors import ConfigError

Logs = Mapping[str, Any]


class Callback:
    """Base: override the hooks that you need. To end the training, set `self.stop = True` in one of them.

    Attributes:
        network: the network in training; in every hook its parameters are the current ones.
        stop: True asks `fit` to end after the running step or epoch.
    """

    network: Any = None
    stop: bool = False

    def on_train_begin(self) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before an epoch; the first one of a training is number 1."""

    def on_batch_begin(self, batch: int) -> None:
        """Before a step; the first one of an epoch is number 0."""

    def on_batch_end(self, batch: int, loss: Array) -> None:
        """After a step. `loss` is an array on the device: whoever reads it makes the training wait for it."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """After an epoch and its validation; `logs` are its loss and metrics. Parameters set here are trained on."""

    def on_train_end(self) -> None:
        """After the last epoch, also if the training was stopped or interrupted; not after an error."""


class LambdaCallback(Callback):
    """Hooks from functions with the arguments of the methods of the same name. One that returns True ends the training.

    >>> xpnn.LambdaCallback(on_epoch_end=lambda epoch, logs: logs["loss"] < 1e-6)
    """

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name, function in hooks.items():
            if name not in known or not callable(function):
                raise ConfigError(f"LambdaCallback({name}={function!r}): give functions for {', '.join(known)}")
            setattr(self, name, self._with_stop(function))

    def _with_stop(self, function: Callable[..., Any]) -> Callable[..., None]:
        def hook(*arguments: Any) -> None:
            if function(*arguments) is True:
                self.stop = True

        return hook


class _Monitor(Callback):
    """Base of the callbacks that compare one number of each epoch with the best so far."""

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        if mode not in ("auto", "min", "max"):
            raise ConfigError(f'mode={mode!r} is unknown; choose "auto", "min" or "max"')
        if min_delta < 0:
            raise ConfigError(f"min_delta={min_delta!r} is negative; give the smallest change that counts as better")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_epoch: int | None = None

    def on_train_begin(self) -> None:
        self.best, self.best_epoch = None, None

    def improved(self, epoch: int, logs: Logs) -> bool:
        """True if this epoch is better than the best so far; remembers it then."""
        value = logs.get(self.monitor)
        if not isinstance(value, (int, float)):
            numbers = [name for name, found in logs.items() if isinstance(found, (int, float))]
            hint = "; give fit validation data" if self.monitor.startswith("val_") and value is None else ""
            raise ConfigError(
                f"{type(self).__name__} monitors {self.monitor!r}, an epoch has {', '.join(numbers)}{hint}"
            )
        ahead = None if self.best is None else (value - self.best if self._upwards() else self.best - value)
        if ahead is not None and ahead <= self.min_delta:
            return False
        self.best, self.best_epoch = value, epoch
        return True

    def _upwards(self) -> bool:
        if self.mode != "auto":
            return self.mode == "max"
        name = self.monitor.removeprefix("val_")
        watched = {metric.name: metric for metric in self.network.training.metrics}
        if name == "loss" or name not in watched:
            return False
        return bool(watched[name].higher_is_better)


class EarlyStopping(_Monitor):
    """End the training when a number has not improved for some epochs.

    Args:
        monitor: which number: "val_loss", "val_accuracy", "loss", ...
        patience: after how many epochs without improvement to stop; 0 is as 1.
        min_delta: a smaller change is no improvement.
        mode: "min" or "max"; "auto" knows which way is up for the loss and for each metric.
        restore_best: put the weights of the best epoch back at the end.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            raise ConfigError(f"patience={patience!r}: give a number of epochs, 0 or more")
        self.patience = patience
        self.restore_best = restore_best
        self._best_weights: Any = None

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self._best_weights = None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.improved(epoch, logs):
            if self.restore_best:
                self._best_weights = self.network.copy_weights()
        elif self.best_epoch is not None and epoch - self.best_epoch >= max(self.patience, 1):
            self.stop = True

    def on_train_end(self) -> None:
        if self._best_weights is not None:
            self.network.restore_weights(self._best_weights)
            self._best_weights = None

    def __repr__(self) -> str:
        return f"EarlyStopping(monitor={self.monitor!r}, patience={self.patience}, best epoch {self.best_epoch})"


class ModelCheckpoint(_Monitor):
    """Save the network after each epoch, with all that is needed to resume the training.

    Args:
        path: the file; "{epoch}" and the names of an epoch's numbers are filled in, as in
            "model-{epoch:03d}-{val_loss:.3f}.safetensors".
        save_best_only: save only epochs that are better than all before.
        monitor: by which number, if so.
        mode: as in `EarlyStopping`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        save_best_only: bool = False,
        monitor: str = "val_loss",
        mode: str = "auto",
    ) -> None:
        super().__init__(monitor, mode)
        self.path = path
        self.save_best_only = save_best_only

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.save_best_only and not self.improved(epoch, logs):
            return
        try:
            path = os.fspath(self.path).format(epoch=epoch, **logs)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"ModelCheckpoint(path={os.fspath(self.path)!r}) cannot be filled in: {error}; known names: epoch, "
                f"{', '.join(logs)}"
            ) from None
        self.network.save(path)
