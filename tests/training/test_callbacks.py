"""Callbacks, early stopping, checkpoints, and Ctrl-C."""

import os
import signal
import threading

import numpy as np
import pytest

import xpnn
from xpnn.dispatch import without_overrides
from xpnn.errors import ConfigError
from xpnn.training.interrupt import Interrupt

X = np.linspace(-1.0, 1.0, 20)[:, None]
Y = 3.0 * X - 1.0


def network(**options):
    return xpnn.Network(xpnn.Dense(1, 1), **{"dtype": "float64", **options})


def fit(net, *callbacks, **options):
    options = {"loss": "mse", "optimizer": xpnn.SGD(0.1), "epochs": 3, "batch_size": 8, "verbose": 0, **options}
    return net.fit(X, Y, callbacks=list(callbacks), **options)


class Recorder(xpnn.Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self):
        self.calls.append("train begins")

    def on_epoch_begin(self, epoch):
        self.calls.append(f"epoch {epoch} begins")

    def on_batch_begin(self, batch):
        self.calls.append(f"batch {batch} begins")

    def on_batch_end(self, batch, loss):
        assert loss.shape == ()
        self.calls.append(f"batch {batch} ends")

    def on_epoch_end(self, epoch, logs):
        assert set(logs) == {"loss"}
        self.calls.append(f"epoch {epoch} ends")

    def on_train_end(self):
        self.calls.append("train ends")


def test_hooks_come_in_order():
    recorder = Recorder()
    fit(network(), recorder, epochs=2)
    batches = [f"batch {batch} {what}" for batch in range(3) for what in ("begins", "ends")]
    epochs = [line for epoch in (1, 2) for line in (f"epoch {epoch} begins", *batches, f"epoch {epoch} ends")]
    assert recorder.calls == ["train begins", *epochs, "train ends"]


@pytest.mark.parametrize("row", ["numpy", "jax", "torch"])
def test_in_every_hook_the_network_holds_the_current_weights(row):
    if reason := xpnn.available_backends()[row]:
        pytest.skip(f"{row}: {reason}")
    seen = []

    class Watch(xpnn.Callback):
        def on_batch_end(self, batch, loss):
            seen.append(float(self.network.parameters["0.weight"][0, 0]))
            self.network.predict(X)

        def on_epoch_end(self, epoch, logs):
            assert float(self.network.parameters["0.weight"][0, 0]) == seen[-1]
            self.network.evaluate(X, Y)

    net = network(backend=row, dtype="float32")
    fit(net, Watch())
    assert len(set(seen)) == 9
    assert float(net.parameters["0.weight"][0, 0]) == seen[-1]


def test_weights_that_a_callback_sets_are_trained_on():
    def reset(epoch, logs):
        net.set_parameters({"0.weight": [[0.0]], "0.bias": [0.0]})

    net, other = network(), network()
    fit(net, xpnn.LambdaCallback(on_epoch_end=reset), epochs=2)
    assert net.parameters["0.weight"][0, 0] == 0.0
    other.set_parameters({"0.weight": [[0.0]], "0.bias": [0.0]})
    history = fit(other, epochs=1, shuffle=False)
    again = fit(net, xpnn.LambdaCallback(on_epoch_begin=lambda epoch: reset(0, {})), epochs=2, shuffle=False)
    assert again["loss"] == [history["loss"][0]] * 2


@pytest.mark.parametrize("row", ["numpy", "jax"])
def test_frozen_weights_that_a_callback_sets_are_kept(row):
    if reason := xpnn.available_backends()[row]:
        pytest.skip(f"{row}: {reason}")
    net = network(backend=row, dtype="float32").freeze("0.bias")
    values = {"0.weight": [[0.0]], "0.bias": [0.5]}
    fit(net, xpnn.LambdaCallback(on_epoch_begin=lambda epoch: net.set_parameters(values)))
    assert float(net.parameters["0.bias"][0]) == 0.5
    assert float(net.parameters["0.weight"][0, 0]) != 0.0


def test_a_callback_must_not_freeze_layers():
    net = network()
    with pytest.raises(ConfigError, match="froze"):
        fit(net, xpnn.LambdaCallback(on_epoch_end=lambda epoch, logs: net.freeze("0.bias") and None))


def test_a_callback_can_stop_the_training():
    history = fit(network(), xpnn.LambdaCallback(on_epoch_end=lambda epoch, logs: epoch == 2), epochs=9)
    assert history.epochs == [1, 2]
    assert "LambdaCallback" in history.stopped

    net = network()
    history = fit(net, xpnn.LambdaCallback(on_batch_end=lambda batch, loss: batch == 1), epochs=9)
    assert history.epochs == []
    assert net.training.step == 2
    assert net.training.epoch == 0

    # after the last batch of an epoch, the epoch counts
    net = network()
    history = fit(net, xpnn.LambdaCallback(on_batch_end=lambda batch, loss: batch == 2), epochs=9)
    assert history.epochs == [1]
    assert net.training.epoch == 1


def test_a_stopped_callback_can_be_used_again():
    stop = xpnn.LambdaCallback(on_epoch_end=lambda epoch, logs: True)
    net = network()
    assert fit(net, stop).epochs == [1]
    assert fit(net, stop, resume=True).epochs == [2]


def test_lambda_callback_refuses_unknown_hooks():
    with pytest.raises(ConfigError, match="on_epoch_end"):
        xpnn.LambdaCallback(on_epoch_ends=print)


def _scripted(values):
    """A metric whose values are given, one for each evaluation."""

    class Scripted(xpnn.metrics.Metric):
        name = "score"
        higher_is_better = True

        def add(self, sums, prediction, target, weight):
            return sums

        def result(self, sums):
            return next(values)

    return Scripted()


@pytest.mark.parametrize(
    ("patience", "min_delta", "epochs", "best"),
    [(1, 0.0, 3, 2), (2, 0.0, 6, 4), (0, 0.0, 3, 2), (3, 0.0, 7, 4), (1, 0.5, 2, 1)],
)
def test_early_stopping(patience, min_delta, epochs, best):
    weights = []
    net = network()
    watch = xpnn.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(net.parameters["0.weight"][0, 0]))
    stop = xpnn.EarlyStopping("score", patience=patience, min_delta=min_delta)
    scores = iter([1.0, 1.4, 1.3, 1.5, 1.5, 1.2, 1.1, 9.0])
    history = fit(net, watch, stop, epochs=20, metrics=[_scripted(scores)])
    assert history.epochs == list(range(1, epochs + 1))
    assert stop.best_epoch == best
    assert net.parameters["0.weight"][0, 0] == weights[best - 1] != weights[-1]
    assert "EarlyStopping" in history.stopped


def test_early_stopping_without_restoring():
    net = network()
    weights = []
    watch = xpnn.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(net.parameters["0.weight"][0, 0]))
    scores = iter([1.0, 2.0, 3.0, 4.0])
    stop = xpnn.EarlyStopping("score", patience=2, mode="min", restore_best=False)
    fit(net, watch, stop, epochs=9, metrics=[_scripted(scores)])
    assert len(weights) == 3
    assert net.parameters["0.weight"][0, 0] == weights[-1]


def test_early_stopping_needs_its_number():
    with pytest.raises(ConfigError, match="monitors 'val_loss', an epoch has loss; give fit validation data"):
        fit(network(), xpnn.EarlyStopping())
    for options in ({"patience": -1}, {"min_delta": -0.1}, {"mode": "up"}):
        with pytest.raises(ConfigError):
            xpnn.EarlyStopping(**options)


def test_checkpoints(tmp_path):
    net = network()
    fit(net, xpnn.ModelCheckpoint(tmp_path / "at-{epoch:02d}.safetensors"), epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"at-0{epoch}.safetensors" for epoch in (1, 2, 3)]
    second = xpnn.Network.load(tmp_path / "at-02.safetensors", backend="numpy")
    assert second.training.epoch == 2
    second.fit(X, Y, epochs=1, batch_size=8, resume=True, verbose=0)
    np.testing.assert_array_equal(second.parameters["0.weight"], net.parameters["0.weight"])


def test_checkpoints_of_the_best_epochs_alone(tmp_path):
    scores = iter([1.0, 0.5, 2.0, 1.0])
    best = xpnn.ModelCheckpoint(tmp_path / "{epoch}.safetensors", save_best_only=True, monitor="score")
    fit(network(), best, epochs=4, metrics=[_scripted(scores)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.safetensors", "3.safetensors"]
    with pytest.raises(ConfigError, match="known names: epoch, loss"):
        fit(network(), xpnn.ModelCheckpoint(tmp_path / "{val_loss}.safetensors"))


def test_ctrl_c_waits_for_the_end_of_the_step():
    net, reference = network(), network()
    before = signal.getsignal(signal.SIGINT)
    recorder = Recorder()

    def press(batch):
        if net.training.epoch == 1 and batch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    history = fit(net, xpnn.LambdaCallback(on_batch_begin=press), recorder, epochs=9)
    assert history.interrupted
    assert history.epochs == [1]
    assert net.training.step == 3 + 2
    assert recorder.calls[-2:] == ["batch 1 ends", "train ends"]
    assert signal.getsignal(signal.SIGINT) is before
    # what it holds is what a training gives that ends there
    steps = []
    stop = xpnn.LambdaCallback(on_batch_end=lambda batch, loss: steps.append(batch) or len(steps) == 5)
    fit(reference, stop, epochs=9)
    np.testing.assert_array_equal(net.parameters["0.weight"], reference.parameters["0.weight"])
    # and the interrupted epoch can be taken up again
    assert fit(net, epochs=1, resume=True).epochs == [2]


def test_a_keyboard_interrupt_from_anywhere_ends_cleanly():
    def interrupt(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    net = network()
    history = fit(net, xpnn.LambdaCallback(on_epoch_end=interrupt), epochs=9)
    assert history.interrupted
    assert history.epochs == [1, 2]
    assert net.training.epoch == 2


def test_an_error_in_a_step_leaves_the_last_complete_state():
    calls = []

    class Failing(xpnn.MSE):
        def __call__(self, prediction, target, weight=None):
            calls.append(1)
            if len(calls) == 5:
                raise RuntimeError("out of memory")
            return super().__call__(prediction, target, weight)

    net, reference = network(), network()
    # Without overrides a step runs as it is; a recorded one calls the loss once, and never again.
    with without_overrides(), pytest.raises(RuntimeError, match="out of memory"):
        fit(net, loss=Failing())
    steps = []
    with without_overrides():
        fit(reference, xpnn.LambdaCallback(on_batch_end=lambda batch, loss: steps.append(batch) or len(steps) == 4))
    np.testing.assert_array_equal(net.parameters["0.weight"], reference.parameters["0.weight"])
    assert net.training.step == 4


def test_the_second_ctrl_c_breaks():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.wanted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_programs_own_handler_is_left_alone():
    mine = []
    before = signal.signal(signal.SIGINT, lambda number, frame: mine.append(number))
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        assert not interrupt.wanted
        assert mine == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_fit_works_in_a_thread():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(fit(network())))
    thread.start()
    thread.join()
    assert histories[0].epochs == [1, 2, 3]


def test_the_second_ctrl_c_does_not_break_into_a_step_and_the_fifth_does():
    with Interrupt() as interrupt:
        interrupt.stepping = True
        for _ in range(4):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.wanted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


class PressedDuringAStep(xpnn.MSE):
    """Ctrl-C, twice, when the first step is in its loss."""

    def __call__(self, prediction, target, weight=None):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return super().__call__(prediction, target, weight)


@pytest.mark.xpnn_rows(dtypes=["float64"], reason="when a step may be broken does not depend on the dtype")
@pytest.mark.parametrize("own_handler", [False, True])
def test_a_step_is_finished_whoever_handles_ctrl_c(backend, dtype, own_handler):
    before = signal.getsignal(signal.SIGINT)

    def own(number, frame):
        raise KeyboardInterrupt

    net = network(backend=backend)
    if own_handler:
        signal.signal(signal.SIGINT, own)
    try:
        history = fit(net, loss=PressedDuringAStep())
    finally:
        signal.signal(signal.SIGINT, before)
    assert history.interrupted
    assert net.training.step == 1
    assert net.predict(X).shape == (20, 1)
    assert fit(net, loss="mse", optimizer=None, resume=True).epochs == [1, 2, 3]


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end"])
def test_parameters_set_in_any_hook_are_trained_on(hook):
    net, calls = network(), []

    def set_once(*given):
        if not calls:
            net.set_parameters({"0.weight": [[100.0]], "0.bias": [100.0]})
        calls.append(1)

    fit(net, xpnn.LambdaCallback(**{hook: set_once}), optimizer=xpnn.SGD(1e-6))
    assert calls
    assert 90 < float(net.parameters["0.weight"][0, 0]) < 101


CHANGES = {
    "freeze": lambda net: net.freeze("0.bias"),
    "move": lambda net: net.to("strict"),
    "build": lambda net: net.build((1,)),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end"])
def test_a_callback_that_lays_the_network_out_anew_is_refused_and_breaks_nothing(hook, change):
    net = network(backend="numpy")
    with pytest.raises(ConfigError, match="froze, unfroze or moved"):
        fit(net, xpnn.LambdaCallback(**{hook: lambda *given: CHANGES[change](net)}))
    assert {name: tuple(value.shape) for name, value in net.parameters.items()} == {"0.weight": (1, 1), "0.bias": (1,)}
    assert net.predict(X).shape == (20, 1)
    assert len(fit(net)["loss"]) == 3


def test_a_callback_may_use_the_network_it_watches(tmp_path):
    net, seen = network(), []

    def use(epoch, logs):
        seen.append((net.predict(X).shape, net.evaluate(X, Y)["loss"]))
        net.save(tmp_path / "m.safetensors")
        fit(net, epochs=1)

    history = fit(net, xpnn.LambdaCallback(on_epoch_end=use))
    assert [shape for shape, _ in seen] == [(20, 1)] * 3
    assert history["loss"][2] < history["loss"][0]
    assert net.training.epoch == 3


def test_callbacks_may_be_none_and_must_be_a_list():
    assert fit_with(None).epochs == [1]
    with pytest.raises(ConfigError, match=r"no list of xpnn\.Callback"):
        fit_with(3)


def fit_with(callbacks):
    return network().fit(X, Y, loss="mse", optimizer="sgd", verbose=0, callbacks=callbacks)
