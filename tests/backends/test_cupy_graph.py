"""Steps that are captured as CUDA graphs: replayed, they give what they give when they run call by call."""

import gc
import threading

import numpy as np
import pytest

import xpnn
from xpnn import dispatch

from .cupy_steps import batches_of, data, losses, network

RATES = {
    "constant": 0.01,
    "cosine": xpnn.Cosine(0.01, steps=60),
    "warmup": xpnn.Warmup(5, then=xpnn.StepDecay(0.02, 20)),
    "one cycle": xpnn.OneCycle(0.02, steps=90),
    "restarts": xpnn.CosineRestarts(0.01, 7),
    "polynomial": xpnn.Polynomial(0.01, steps=50, power=2.0),
    "milestones": xpnn.MultiStep(0.01, [10, 30, 60]),
    "own": lambda step: 0.01 / (1 + 0.1 * step),
}


@pytest.mark.parametrize("name", RATES)
def test_a_hundred_replays_give_the_losses_of_a_hundred_steps(gpu, name):
    net = network(gpu)
    optimizer = xpnn.Adam(RATES[name])
    batches = batches_of(net, 3)
    replayed, theta, step = losses(net, optimizer, 100, batches)
    assert step.how == "a CUDA graph", step.how
    eager, eager_theta, _ = losses(net, optimizer, 100, batches, compiled=False)
    np.testing.assert_allclose(replayed, eager, rtol=2e-6)
    np.testing.assert_allclose(theta, eager_theta, rtol=2e-5, atol=1e-6)


def test_eager_work_and_garbage_collection_between_replays_change_nothing(gpu):
    import cupy

    net = network(gpu)
    optimizer = xpnn.Adam(0.01)
    batches = batches_of(net, 2)
    quiet, _, _ = losses(net, optimizer, 40, batches)
    step = net.step("cross_entropy", optimizer)
    state = net.initial_state(optimizer, "cross_entropy")
    noisy, rubbish = [], []
    for number in range(40):
        state, loss = step(state, batches[number % 2])
        noisy.append(loss)
        # Of the sizes that the step works with, so that memory which was not kept would be handed out again.
        rubbish += [cupy.full((24, size), np.nan, dtype="float32") for size in (3, 6, 8, 64)]
        rubbish.append(cupy.full(state.theta[0].size, np.nan, dtype="float32") @ state.theta[0])
        if number % 5 == 0:
            rubbish.clear()
            gc.collect()
        if number % 11 == 0:
            cupy.get_default_memory_pool().free_all_blocks()
    assert [float(gpu.to_host(loss)) for loss in noisy] == quiet


def test_the_value_of_a_step_is_not_overwritten_by_the_next(gpu):
    net = network(gpu)
    optimizer = xpnn.SGD(0.1)
    step, state = net.step("cross_entropy", optimizer), net.initial_state(optimizer, "cross_entropy")
    (batch,) = batches_of(net, 1)
    values = []
    for _ in range(5):
        state, loss = step(state, batch)
        values.append(loss)
    assert len({float(gpu.to_host(value)) for value in values}) == 5


def test_two_states_take_turns_in_one_step(gpu):
    net = network(gpu)
    optimizer = xpnn.Adam(0.02)
    (batch,) = batches_of(net, 1)
    alone, _, _ = losses(net, optimizer, 12, [batch])
    step = net.step("cross_entropy", optimizer)
    states = [net.initial_state(optimizer, "cross_entropy") for _ in range(2)]
    found = ([], [])
    for number in range(12):
        for which in (0, 1) if number % 3 else (1, 0):
            states[which], loss = step(states[which], batch)
            found[which].append(loss)
    for values in found:
        assert [float(gpu.to_host(value)) for value in values] == alone


def test_totals_that_somebody_holds_keep_their_numbers(gpu):
    net = network(gpu)
    optimizer = xpnn.SGD(0.1)
    step, state = net.step("cross_entropy", optimizer), net.initial_state(optimizer, "cross_entropy")
    (batch,) = batches_of(net, 1)
    for _ in range(4):
        state, _ = step(state, batch)
    held = state.totals["loss"]
    numbers = [float(gpu.to_host(part)) for part in held]
    assert numbers[1] == 4 * 24
    zero = net.initial_state(optimizer, "cross_entropy").totals
    state = state._replace(totals=zero)
    for _ in range(3):
        state, _ = step(state, batch)
    assert [float(gpu.to_host(part)) for part in held] == numbers
    assert float(gpu.to_host(state.totals["loss"][1])) == 3 * 24


def test_a_state_whose_step_jumps_is_followed(gpu):
    net = network(gpu)
    optimizer = xpnn.SGD(xpnn.StepDecay(0.1, 1, 0.5))
    step, state = net.step("cross_entropy", optimizer), net.initial_state(optimizer, "cross_entropy")
    (batch,) = batches_of(net, 1)
    for _ in range(3):
        state, _ = step(state, batch)
    before = gpu.to_host(state.theta[0])
    state, _ = step(state._replace(step=200), batch)  # the rate is 0.1 / 2**200 there
    assert state.step == 201
    np.testing.assert_array_equal(gpu.to_host(state.theta[0]), before)


def test_each_shape_of_a_batch_has_its_graph(gpu):
    net = network(gpu)
    optimizer = xpnn.Adam(0.01)
    batches = batches_of(net, 1, 24) + batches_of(net, 1, 7) + batches_of(net, 1, 1)
    replayed, _, step = losses(net, optimizer, 30, batches)
    eager, _, _ = losses(net, optimizer, 30, batches, compiled=False)
    np.testing.assert_allclose(replayed, eager, rtol=2e-6)
    assert step.how == "a CUDA graph"


def test_fit_runs_as_graphs_and_gives_what_numpy_gives(gpu):
    x, y = data(70)
    settings = {"loss": "cross_entropy", "epochs": 4, "batch_size": 16, "verbose": 0, "metrics": ["accuracy"]}
    logs = []
    for backend in ("numpy", gpu):
        net = xpnn.Network(xpnn.Dense(8), xpnn.ReLU(), xpnn.Dropout(0.25), xpnn.Dense(3), backend=backend, seed=3)
        history = net.fit(x, y, optimizer=xpnn.Adam(0.01), validation_data=(x[:20], y[:20]), **settings)
        again = net.fit(x, y, resume=True, **settings)
        logs.append((history["loss"] + again["loss"], history["val_loss"], net.predict(x)))
    assert net.compiled["fit"] == "a CUDA graph", net.compiled
    for mine, theirs in zip(*logs, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=1e-6)


def test_predictions_follow_the_parameters(gpu):
    net = network(gpu)
    x, _ = data()
    first = [net.predict(x) for _ in range(4)][-1]
    net.set_parameters({name: 2 * gpu.to_host(value) for name, value in net.parameters.items()})
    twin = network(gpu)
    twin.set_parameters({name: gpu.to_host(value) for name, value in net.parameters.items()})
    for _ in range(4):
        second = net.predict(x)
        np.testing.assert_array_equal(second, twin.predict(x))
    assert not np.allclose(first, second)


def test_a_step_that_reads_the_host_runs_call_by_call_and_says_where(gpu):
    class Peeking(xpnn.Layer):
        input_kind = output_kind = "float"

        def forward(self, x, parameters, run):
            factor = 2.0 if float(x.sum()) > 1e9 else 1.0
            return x * factor, lambda dy: (dy * factor, {})

    net = network(gpu, xpnn.Dense(4), Peeking(), xpnn.Dense(3))
    (batch,) = batches_of(net, 1)
    replayed, _, step = losses(net, xpnn.SGD(0.1), 5, [batch])
    assert "Peeking.forward" in step.how
    assert "read by the host" in step.how
    eager, _, _ = losses(net, xpnn.SGD(0.1), 5, [batch], compiled=False)
    assert replayed == eager


def test_an_op_that_reads_the_host_is_named(gpu, monkeypatch):
    def tanh(x):
        scale = 1.0 if float(abs(x).max()) < 1e30 else 0.0
        y = dispatch.namespace(x).tanh(x) * scale
        return y, lambda dy: (dy * (1 - y * y),)

    where = dispatch.OPS["tanh"].generic.__code__.co_filename
    tanh.__code__ = tanh.__code__.replace(co_filename=where, co_qualname="tanh")
    kind = type(gpu.asarray([1.0]))
    monkeypatch.setitem(dispatch._kinds[kind].overrides, "tanh", tanh)
    dispatch.refresh_bodies()
    try:
        net = network(gpu, xpnn.Dense(4), xpnn.Tanh(), xpnn.Flatten(), xpnn.Lambda("tanh"), xpnn.Dense(3))
        _, _, step = losses(net, xpnn.SGD(0.1), 4, batches_of(net, 1))
    finally:
        monkeypatch.undo()
        dispatch.refresh_bodies()
    assert step.how.startswith("call by call: op 'tanh': a value is read by the host"), step.how


def test_a_rate_that_branches_on_the_step_runs_call_by_call(gpu):
    net = network(gpu)
    optimizer = xpnn.SGD(lambda step: 0.1 if step < 3 else 0.01)
    (batch,) = batches_of(net, 1)
    replayed, _, step = losses(net, optimizer, 6, [batch])
    eager, _, _ = losses(net, optimizer, 6, [batch], compiled=False)
    assert "branch depends on the number of the step" in step.how
    assert replayed == eager


def test_without_cublaslt_the_network_says_why(gpu, monkeypatch):
    from xpnn_backends.cupy import products

    monkeypatch.setattr(products, "why_not", lambda: "nvmath-python is not installed")
    x, y = data()
    net = network(gpu)
    net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=2, batch_size=8, verbose=0)
    assert net.compiled["fit"].startswith("call by call: matrix products in a graph need cublasLt, and nvmath")


def test_a_fault_of_the_step_itself_is_raised_as_it_is(gpu):
    def broken(state, batch):
        raise ZeroDivisionError("mine")

    step = gpu.compile(broken)
    with pytest.raises(ZeroDivisionError, match="mine"):
        step((gpu.asarray([1.0]),), (gpu.asarray([1.0]),))


def test_threads_with_networks_of_their_own(gpu):
    expected, found = {}, {}

    def train(width, into):
        net = network(gpu, xpnn.Dense(width), xpnn.Tanh(), xpnn.Dense(3))
        into[width] = losses(net, xpnn.Adam(0.01), 20, batches_of(net, 2))[0]

    for width in (4, 5, 6):
        train(width, expected)
    threads = [threading.Thread(target=train, args=(width, found)) for width in (4, 5, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_the_data_are_let_go(gpu):
    import weakref

    x, y = (gpu.asarray(part) for part in data(64))
    net = network(gpu)
    net.fit(x, y, loss="cross_entropy", optimizer="adam", epochs=3, batch_size=16, verbose=0)
    held = weakref.ref(x)
    del x
    gc.collect()
    assert held() is None


def test_deterministic_from_run_to_run(gpu):
    runs = []
    for _ in range(2):
        net = network(gpu)
        runs.append(losses(net, xpnn.Adam(0.01), 25, batches_of(net, 2))[0])
    assert runs[0] == runs[1]


OPTIMIZERS = [
    xpnn.SGD(0.05),
    xpnn.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    xpnn.Adam(0.01, clip_global_norm=0.5),
    xpnn.Adam(0.01, amsgrad=True),
    xpnn.AdamW(0.01, weight_decay=0.1, ema=0.9),
    xpnn.Nadam(0.01),
    xpnn.RMSprop(0.01, momentum=0.5, centered=True),
    xpnn.Adagrad(0.05),
    xpnn.Adadelta(),
    xpnn.Lion(1e-3),
    xpnn.LAMB(0.01),
    xpnn.LARS(0.1, momentum=0.9),
    xpnn.Adafactor(),
    xpnn.Muon(0.02),
    xpnn.LBFGS(0.5),
    xpnn.SGD(0.05, clip_value=0.1, clip_norm=0.3),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_every_optimizer_is_captured(gpu, optimizer):
    net = network(gpu, dtype="float64")
    batches = batches_of(net, 1) if isinstance(optimizer, xpnn.LBFGS) else batches_of(net, 2)
    replayed, theta, step = losses(net, optimizer, 12, batches)
    assert step.how == "a CUDA graph", step.how
    eager, eager_theta, _ = losses(net, optimizer, 12, batches, compiled=False)
    np.testing.assert_allclose(replayed, eager, rtol=1e-9)
    np.testing.assert_allclose(theta, eager_theta, rtol=1e-7, atol=1e-12)
