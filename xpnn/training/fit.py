"""The training loop, and evaluation."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from xpnn import random
from xpnn.backend import host
from xpnn.config import by_name
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, TrainingError
from xpnn.losses import LOSSES, Loss
from xpnn.metrics import Metric, metrics_from
from xpnn.optimizers import OPTIMIZERS, Optimizer
from xpnn.training.callbacks import Callback
from xpnn.training.data import (
    Data,
    HostData,
    check_batch_size,
    check_epochs,
    check_fraction,
    enter_large_data,
    rows_of,
    split,
)
from xpnn.training.history import History, show
from xpnn.training.interrupt import Interrupt
from xpnn.training.precision import Scaling
from xpnn.training.progress import progress_for
from xpnn.training.state import TrainingState
from xpnn.training.step import EvaluationState, State
from xpnn.training.totals import Totals

if TYPE_CHECKING:
    from xpnn.network import Network

EVALUATION_BATCH = 1024
"""How many samples `evaluate` and `predict` take at once."""

_TOGETHER_SECONDS = 0.02
"""How long steps that are taken together may take."""


def fit(
    network: Network,
    x: Any,
    y: Any,
    *,
    loss: str | Loss | None = None,
    optimizer: str | Optimizer | None = None,
    epochs: int = 1,
    batch_size: int | None = 32,
    validation_data: Any = None,
    validation_split: float = 0.0,
    metrics: Iterable[str | Metric] | None = None,
    shuffle: bool = True,
    verbose: Any = "auto",
    callbacks: Iterable[Callback] = (),
    sample_weight: Any = None,
    resume: bool = False,
) -> History:
    """`Network.fit`; see there."""
    start = _starting_point(network, loss, optimizer, metrics, resume)
    epochs = check_epochs(epochs)
    batch_size = check_batch_size(batch_size)
    fraction = check_fraction(validation_split)
    if fraction and validation_data is not None:
        raise ConfigError("fit got validation_data and validation_split; give one of them")
    hooks = _check_callbacks(callbacks)
    progress = progress_for(verbose)

    data = enter_large_data(network, x, y, start.loss, sample_weight)
    validation = None if validation_data is None else _enter_validation(network, validation_data, start.loss)
    if fraction:
        data, validation = split(data, fraction, network.seed, network.backend)
    trainer = _Trainer(network, start, data, validation, batch_size, bool(shuffle), hooks)
    del start  # and with it the optimizer's memory of the training before, which has been copied

    progress.begin(trainer.epoch + 1, trainer.epoch + epochs, data.samples)
    try:
        with Interrupt() as interrupt:
            return trainer.train(epochs, interrupt, progress)
    finally:
        progress.end()
        trainer.release()


def evaluate(
    network: Network,
    x: Any,
    y: Any,
    *,
    loss: str | Loss | None = None,
    metrics: Iterable[str | Metric] | None = None,
    batch_size: int | None = EVALUATION_BATCH,
    sample_weight: Any = None,
) -> dict[str, Any]:
    """`Network.evaluate`; see there."""
    stored = network.training
    if loss is None and stored is None:
        raise ConfigError('evaluate does not know the loss, because the network was not trained: give loss="mse", say')
    criterion: Loss = by_name("loss", stored.loss if loss is None and stored else loss, LOSSES, Loss)
    watched = (stored.metrics if stored else ()) if metrics is None else metrics_from(metrics)
    batch_size = check_batch_size(batch_size)
    data = enter_large_data(network, x, y, criterion, sample_weight)
    network.check_loss(criterion)
    evaluation = Evaluation(network, criterion, watched)
    try:
        return evaluation.run(data, batch_size)
    finally:
        evaluation.release()


class Evaluation:
    """Loss and metrics of checked data sets, by one compiled step."""

    def __init__(self, network: Network, loss: Loss, metrics: tuple[Metric, ...]) -> None:
        resolved = tuple(metric.resolve(loss, network.output_shape) for metric in metrics)
        self._network = network
        self._loss = loss
        self._totals = Totals(network.backend, resolved, network.output_shape)
        self._step = network.compiled_evaluation_step(loss, metrics)

    def run(self, data: Data | HostData, batch_size: int | None) -> dict[str, Any]:
        """{"loss": ..., and each metric by its name}, with the parameters that the network has now."""
        network = self._network
        state = EvaluationState(self._totals.zero())
        size = batch_size or data.samples
        with network.backend.context(), contextlib.closing(_in_order(data, size)) as batches:
            for batch in batches:
                state, _ = self._step(state, (network._theta, network._buffers, batch))
        return self._totals.read(state.totals, self._loss)

    def release(self) -> None:
        """Let go of the data."""
        release(self._step)


def release(step: Any) -> None:
    """Where a compiled step holds the arrays that it was called with last, let it drop them: they may be large."""
    let_go = getattr(step, "release", None)
    if let_go is not None:
        let_go()


def predict_batches(step: Any, state: Any, network: Network, data: HostData, size: int) -> list[Array]:
    """The outputs for samples that stay on the host, which are brought there too, batch by batch."""
    pieces = []
    with contextlib.closing(data.batches(size)) as batches:
        for inputs, _, _ in batches:
            output = step(state, (network._theta, network._buffers, inputs))[1]
            # Of a network that gives several arrays, which its caller refuses, there is nothing to bring.
            pieces.append(output if isinstance(output, tuple) else network.backend.to_host(output))
    return pieces


def _in_order(data: Data | HostData, size: int) -> Generator[Any]:
    """(inputs, target, weight) of so many samples at a time, as they stand."""
    if isinstance(data, HostData):
        yield from data.batches(size)
        return
    for start in range(0, data.samples, size):
        yield _slice(data, start, min(start + size, data.samples))


def _slice(data: Data, start: int, stop: int) -> Any:
    """The rows from start to stop as (inputs, target, weight)."""
    if start == 0 and stop == data.samples:
        return tuple(data)
    inputs, target, weight = data
    return rows_of(inputs, start, stop), target[start:stop, ...], None if weight is None else weight[start:stop, ...]


def _starting_point(
    network: Network,
    loss: str | Loss | None,
    optimizer: str | Optimizer | None,
    metrics: Iterable[str | Metric] | None,
    resume: bool,
) -> TrainingState:
    """Where the training begins: fresh (without slots yet), or at the end of the one before."""
    stored = network.training if resume else None
    if resume and stored is None:
        raise ConfigError(
            "resume=True, but this network was not trained yet: call fit without it, or load a checkpoint"
        )
    if loss is None and stored is None:
        raise ConfigError(f'fit needs a loss: loss="mse", say; known names: {", ".join(sorted(LOSSES))}')
    if optimizer is None and stored is None:
        raise ConfigError(
            f'fit needs an optimizer: optimizer="adam", say; known names: {", ".join(sorted(OPTIMIZERS))}'
        )
    return TrainingState(
        optimizer=by_name(
            "optimizer", optimizer if optimizer is not None or not stored else stored.optimizer, OPTIMIZERS, Optimizer
        ),
        loss=by_name("loss", loss if loss is not None or not stored else stored.loss, LOSSES, Loss),
        metrics=metrics_from(metrics) if metrics is not None else (stored.metrics if stored else ()),
        slots=stored.slots if stored else {},
        step=stored.step if stored else 0,
        epoch=stored.epoch if stored else 0,
        scaling=stored.scaling if stored else (),
    )


def _check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    if isinstance(callbacks, Callback):
        callbacks = (callbacks,)
    try:
        found = tuple(callbacks or ())
    except TypeError:
        raise ConfigError(f"callbacks={callbacks!r} is no list of xpnn.Callback objects") from None
    for callback in found:
        if not isinstance(callback, Callback):
            hint = f"; write {callback.__name__}(...)" if isinstance(callback, type) else ""
            raise ConfigError(f"callbacks holds {callback!r}, which is no xpnn.Callback{hint}")
    return found


def _enter_validation(network: Network, given: Any, loss: Loss) -> Data | HostData:
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise ConfigError("validation_data must be (X, y) or (X, y, sample_weight)")
    weight = given[2] if len(given) == 3 else None
    return enter_large_data(network, given[0], given[1], loss, weight, ("validation X", "validation y"))


class _Trainer:
    """One call of `fit`. `self.state` is always the state after the last finished step."""

    def __init__(
        self,
        network: Network,
        start: TrainingState,
        data: Data | HostData,
        validation: Data | HostData | None,
        batch_size: int | None,
        shuffle: bool,
        callbacks: tuple[Callback, ...],
    ) -> None:
        self.network = network
        self.backend = network.backend
        self.layout = network.layout
        self.start = start
        self.data = data
        self.validation = validation
        self.shuffle = shuffle
        self.callbacks = callbacks
        self.before_epoch = self._hooks("on_epoch_begin")
        self.before_batch = self._hooks("on_batch_begin")
        self.after_batch = self._hooks("on_batch_end")
        self.size = min(batch_size or data.samples, data.samples)
        self.validation_size = None if batch_size is None else max(batch_size, EVALUATION_BATCH)
        self.step_count = start.step
        self.epoch = start.epoch
        self.buffers = network._buffers

        network.check_loss(start.loss)
        if not self.layout.trained:
            raise ConfigError("the network has nothing to train: it has no parameters, or all of them are frozen")
        resolved = tuple(metric.resolve(start.loss, network.output_shape) for metric in start.metrics)
        self.totals = Totals(self.backend, resolved, network.output_shape)
        self.step = network.compiled_fit_step(start.loss, start.optimizer, start.metrics)
        self.evaluation = Evaluation(network, start.loss, start.metrics)
        self.state = self._first_state()
        self.start = start._replace(slots={}, scaling=())
        self._together = 1

    def _first_state(self) -> State:
        """All arrays are copied: the step may overwrite or free what it is given, and others may hold the old ones."""
        network, start, copy = self.network, self.start, self.backend.copy
        theta = tuple(copy(block) for block in network._theta)
        with self.backend.context():
            slots = start.optimizer.initial_slots(theta, self.layout)
        if start.step:
            if set(slots) != set(start.slots):
                had, has = ", ".join(start.slots) or "none", ", ".join(slots) or "none"
                raise ConfigError(
                    f"resume=True continues with the optimizer's memory ({had}), but {start.optimizer!r} keeps {has}; "
                    "give no optimizer, or one of the same kind"
                )
            slots = {name: tuple(copy(block) for block in vector) for name, vector in start.slots.items()}
        buffers = {name: copy(array) for name, array in network._buffers.items()}
        scaling = network._precision.first_scaling(self.backend)
        if scaling and start.scaling:
            scaling = Scaling(*map(copy, start.scaling))
        return State(theta, slots, buffers, start.step, network.seed, self.totals.zero(), scaling)

    def release(self) -> None:
        """Let go of the data, when the training is over."""
        release(self.step)
        self.evaluation.release()

    def _laid_out_anew(self) -> bool:
        return self.network.layout is not self.layout or self.network.backend is not self.backend

    def publish(self) -> None:
        """Let the network hold the current state, unless a callback has laid it out anew: it then holds its own."""
        if self._laid_out_anew():
            return
        self.network._theta = self.state.theta
        self.network._buffers = self.buffers = dict(self.state.buffers)
        self.network.training = self.start._replace(
            slots=self.state.slots, step=self.step_count, epoch=self.epoch, scaling=self.state.scaling
        )

    def train(self, epochs: int, interrupt: Interrupt, progress: Any) -> History:
        """All epochs, with their hooks."""
        history = History()
        try:
            self.publish()
            self._call("on_train_begin", begin=True)
            self._adopt()
            while self.epoch < self.start.epoch + epochs and not self._stopping() and not interrupt.wanted:
                began = time.perf_counter()
                if not self._run_epoch(interrupt, progress):
                    break
                logs = self._finish_epoch()
                seconds = time.perf_counter() - began
                history.append(self.epoch, logs, seconds)
                progress.epoch_done(self.epoch, logs, seconds)
                self._call("on_epoch_end", self.epoch, logs)
                self._adopt()
        except KeyboardInterrupt:
            interrupt.wanted, interrupt.stepping = True, False
        finally:
            self.publish()
        stopped_by = [callback for callback in self.callbacks if callback.stop]
        history.stopped = repr(stopped_by[0]) if stopped_by else None
        self._call("on_train_end")
        history.interrupted = interrupt.wanted
        return history

    def _call(self, hook: str, *arguments: Any, begin: bool = False) -> None:
        for callback in self.callbacks:
            if begin:
                callback.network = self.network
                callback.stop = False
            getattr(callback, hook)(*arguments)

    def _stopping(self) -> bool:
        return any(callback.stop for callback in self.callbacks)

    def _hooks(self, name: str) -> list[Any]:
        """The callbacks' methods of that name, where they do something."""
        methods = (getattr(callback, name) for callback in self.callbacks)
        return [method for method in methods if getattr(method, "__func__", None) is not getattr(Callback, name)]

    def _run_epoch(self, interrupt: Interrupt, progress: Any) -> bool:
        """All batches; nothing is read from the device. False if the epoch was broken off."""
        before, after = self.before_batch, self.after_batch
        if self.before_epoch:
            for hook in self.before_epoch:
                hook(self.epoch + 1)
            self._adopt()
            if self._stopping():
                return False
        step, ticks, hooked = self.step, progress.ticks, bool(before or after)
        self.state = self.state._replace(totals=self.totals.zero())
        with self.backend.context(), contextlib.ExitStack() as stack:
            rows = self._rows()
            done = 0 if hooked else self._run_many(rows, interrupt, progress)
            batches = stack.enter_context(contextlib.closing(self._batches(rows, done)))
            for number, batch in enumerate(batches, done):
                if interrupt.wanted:
                    return False
                if before:
                    for hook in before:
                        hook(number)
                    self._adopt()
                interrupt.stepping = True
                self.state, loss = step(self.state, batch)
                self.step_count += 1
                interrupt.stepping = False
                if interrupt.deferred is not None:
                    interrupt.deliver()
                if ticks:
                    progress.batch_done(self.epoch + 1, min((number + 1) * self.size, self.data.samples))
                if hooked:
                    self.publish()
                    for hook in after:
                        hook(number, loss)
                    self._adopt()
                if interrupt.wanted or (hooked and self._stopping()):
                    # An epoch whose last step is done counts, and its numbers go into the history.
                    return (number + 1) * self.size >= self.data.samples
        return True

    def _rows(self) -> Array | None:
        """The numbers of this epoch's samples in their order; None if batches are taken as slices, or are all."""
        samples, backend = self.data.samples, self.backend
        if self.size == samples:
            return None
        if self.shuffle:
            order = random.permutation(self.network.seed, random.stream(random.SHUFFLE), self.epoch, samples)
        elif hasattr(self.step, "many") and isinstance(self.data, Data):
            order = host().xp.arange(samples)
        else:
            return None
        # Where arrays have no views, a slice is an operation of its own: the order then stays on the host, and its
        # pieces travel with the call of the step.
        stays = backend.blocked or isinstance(self.data, HostData)
        return order if stays else backend.asarray(order, "int64")

    def _run_many(self, rows: Array | None, interrupt: Interrupt, progress: Any) -> int:
        """Several steps at a time, where the compiled step can do that; returns how many were taken."""
        many = getattr(self.step, "many", None)
        whole = self.data.samples // self.size
        if many is None or rows is None or isinstance(self.data, HostData):
            return 0
        done = 0
        while done < whole and not interrupt.wanted:
            count = min(self._together, whole - done)
            began = time.perf_counter()
            interrupt.stepping = True
            taken = rows[done * self.size : (done + count) * self.size]
            self.state = many(self.state, tuple(self.data), taken, self.size)
            self.step_count += count
            interrupt.stepping = False
            if interrupt.deferred is not None:
                interrupt.deliver()
            done += count
            if progress.ticks:
                progress.batch_done(self.epoch + 1, min(done * self.size, self.data.samples))
            # Nobody who presses Ctrl-C or watches the bar shall wait.
            if count == self._together and time.perf_counter() - began < _TOGETHER_SECONDS / 2:
                self._together *= 2
        return done

    def _batches(self, rows: Array | None, done: int) -> Generator[tuple[Any, Any, Any, Any]]:
        """(inputs, target, weight, rows) for each step of this epoch but the first `done`; rows None means all."""
        if isinstance(self.data, HostData):
            for batch in self.data.batches(self.size, rows):
                yield (*batch, None)
            return
        inputs, target, weight = self.data
        samples, size = self.data.samples, self.size
        if size == samples:
            yield inputs, target, weight, None
            return
        for start in range(done * size, samples, size):
            stop = min(start + size, samples)
            if rows is None:
                yield (*_slice(self.data, start, stop), None)
            else:
                yield inputs, target, weight, rows[start:stop]

    def _finish_epoch(self) -> dict[str, Any]:
        """Read the totals, validate, and make the state public."""
        logs = self.totals.read(self.state.totals, self.start.loss)
        self.epoch += 1
        self.publish()
        self._check_number("loss", logs["loss"])
        if self.validation is not None:
            found = self.evaluation.run(self.validation, self.validation_size)
            logs.update({f"val_{name}": value for name, value in found.items()})
            self._check_number("val_loss", logs["val_loss"])
        return logs

    def _check_number(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            rate = self.start.optimizer.rate(self.step_count)
            shown = f" (it is {show(float(rate))})" if isinstance(rate, (int, float)) else ""
            raise TrainingError(
                f"{name} is {value} after epoch {self.epoch}: the training diverged. Lower the learning rate{shown}, "
                "scale the inputs to about -1 to 1, or clip the gradients. The network holds the weights after that "
                "epoch; build it anew to start over"
            )

    def _adopt(self) -> None:
        """Train on with the parameters that a callback has set."""
        network = self.network
        if self._laid_out_anew():
            raise ConfigError(
                "a callback froze, unfroze or moved the network while it was trained; do that between fits"
            )
        if network._theta is not self.state.theta:
            self.state = self.state._replace(theta=tuple(self.backend.copy(block) for block in network._theta))
        if network._buffers is not self.buffers:
            buffers = {name: self.backend.copy(array) for name, array in network._buffers.items()}
            self.state = self.state._replace(buffers=buffers)
