"""Steps that are captured as CUDA graphs: replayed, they give what they give when they run call by call."""

import gc
import math
import sys
import threading

import numpy as np
import pytest

import xpnn
from xpnn import dispatch

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


def data(samples=24):
    generator = np.random.default_rng(5)
    return generator.standard_normal((samples, 6)).astype(np.float32), generator.integers(0, 3, samples)


def network(gpu, *layers, **settings):
    layers = layers or (xpnn.Dense(8), xpnn.Tanh(), xpnn.Dropout(0.25), xpnn.Dense(3))
    return xpnn.Network(*layers, backend=gpu, input_shape=(6,), seed=3, **settings)


def losses(net, optimizer, steps, batches, compiled=True):
    """The losses of so many steps, going round the batches, and the parameters after them."""
    step = net.step("cross_entropy", optimizer)
    if not compiled:
        step = net.backend._as_it_is(step._step)
    state = net.initial_state(optimizer, "cross_entropy")
    found = []
    for number in range(steps):
        state, loss = step(state, batches[number % len(batches)])
        found.append(loss)
    assert state.step == steps
    to_host = net.backend.to_host
    return [float(to_host(loss)) for loss in found], to_host(state.theta[0]), step


def batches_of(net, count, samples=24):
    x, y = data(samples * count)
    return [
        net.prepare(x[k * samples : (k + 1) * samples], y[k * samples : (k + 1) * samples], "cross_entropy")
        for k in range(count)
    ]


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


@pytest.fixture
def captured(gpu, monkeypatch):
    """A function that gives the number of graphs that were captured since it was last called."""
    from xpnn_backends.cupy import captures

    found, plain = [], captures.Graph.__init__

    def counting(graph, *arguments):
        found.append(None)
        plain(graph, *arguments)

    def count():
        number = len(found)
        found.clear()
        return number

    monkeypatch.setattr(captures.Graph, "__init__", counting)
    return count


class SetsParameters(xpnn.Callback):
    def on_epoch_end(self, epoch, logs):
        to_host = self.network.backend.to_host
        self.network.set_parameters({name: 0.5 * to_host(value) for name, value in self.network.parameters.items()})
        self.network.predict(data(5)[0])


@pytest.mark.parametrize("streamed", [False, True])
def test_a_training_is_captured_once_for_each_shape(gpu, captured, monkeypatch, streamed):
    if streamed:
        monkeypatch.setenv("XPNN_DATA_SHARE", "0")
    x, y = data(70)
    net = network(gpu)
    settings = {"loss": "cross_entropy", "optimizer": "adam", "batch_size": 16, "verbose": 0}
    callbacks = [SetsParameters()]
    net.fit(x, y, epochs=8, validation_data=(x[:20], y[:20]), callbacks=callbacks, **settings)
    assert captured() <= 4 + 1  # whole and last batches, validation, prediction; the sixth is for a shape that moves
    net.fit(x, y, epochs=3, validation_data=(x[:20], y[:20]), callbacks=callbacks, **settings)
    assert captured() <= 3  # arrays that are read where they lie may lie elsewhere now
    for _ in range(3):
        net.fit(x, y, epochs=2, batch_size=16, resume=True, verbose=0)
    assert captured() <= 6


def test_large_batches_from_places_in_turn_are_captured_once(gpu, captured, monkeypatch):
    monkeypatch.setenv("XPNN_DATA_SHARE", "0")
    x, y = np.ones((1600, 700), np.float32), np.zeros(1600, np.int64)
    net = xpnn.Network(xpnn.Dense(3), backend=gpu, input_shape=(700,))
    net.fit(x, y, loss="cross_entropy", optimizer="sgd", epochs=3, batch_size=400, verbose=0)
    assert captured() == 1


def test_two_states_that_take_turns_have_a_graph_each(gpu, captured):
    net, optimizer = network(gpu), xpnn.Adam(0.02)
    (batch,) = batches_of(net, 1)
    step = net.step("cross_entropy", optimizer)
    states = [net.initial_state(optimizer, "cross_entropy") for _ in range(2)]
    for _ in range(6):
        states = [step(state, batch)[0] for state in states]
    assert captured() == 2


def test_more_shapes_than_graphs_are_not_captured_again_and_again(gpu, captured, monkeypatch):
    from xpnn_backends.cupy import graph

    monkeypatch.setattr(graph, "MOST_GRAPHS", 4)
    net, optimizer = network(gpu, xpnn.Dense(3)), xpnn.SGD(0.01)
    batches = [batches_of(net, 1, size)[0] for size in range(1, 7)]
    replayed, _, _ = losses(net, optimizer, 72, batches)
    assert 4 <= captured() <= 10
    eager, _, _ = losses(net, optimizer, 72, batches, compiled=False)
    np.testing.assert_allclose(replayed, eager, rtol=2e-6)


def test_a_batch_that_is_changed_in_place_is_read_anew(gpu):
    net, optimizer = network(gpu), xpnn.SGD(0.1)
    first, second, third = batches_of(net, 3)
    step, state = net.step("cross_entropy", optimizer), net.initial_state(optimizer, "cross_entropy")
    for batch in (first, second, second):
        state, _ = step(state, batch)
    copy = state._replace(theta=tuple(block.copy() for block in state.theta))
    second[0][...] = third[0]
    second[1][...] = third[1]
    _, loss = step(state, second)
    _, wanted = net.backend._as_it_is(step._step)(copy, third)
    np.testing.assert_allclose(gpu.to_host(loss), gpu.to_host(wanted), rtol=1e-6)


def test_each_stream_has_its_graphs(gpu):
    import cupy

    net, optimizer = network(gpu), xpnn.Adam(0.01)
    (batch,) = batches_of(net, 1)
    expected, _, _ = losses(net, optimizer, 12, [batch])
    step, state = net.step("cross_entropy", optimizer), net.initial_state(optimizer, "cross_entropy")
    other, found, pools = cupy.cuda.Stream(non_blocking=True), [], {}
    for number in range(12):
        with other if number // 3 % 2 else cupy.cuda.Stream.null as stream:
            state, loss = step(state, batch)
            found.append(loss)
            if step._last is not None:
                assert step._last.place.stream == stream.ptr
                pools[stream.ptr] = step._last.ground
            stream.synchronize()
    assert [float(gpu.to_host(loss)) for loss in found] == expected
    here, there = pools.values()
    assert here.pool is not there.pool
    assert here.stream.ptr != there.stream.ptr


def test_a_state_in_another_order_is_not_taken_for_the_graphs_own(gpu):
    import cupy

    def step(state, batch):
        (x,) = state
        return (x + batch[0],), x.sum()

    compiled = gpu.compile(step)
    batch = (cupy.asarray([[0.0, 1.0], [0.0, 0.0]]),)
    state = (cupy.zeros((2, 2)),)
    for _ in range(3):
        state, _ = compiled(state, batch)
    state, _ = compiled((state[0].T,), batch)
    np.testing.assert_array_equal(gpu.to_host(state[0]), [[0, 1], [3, 0]])


def test_a_capture_that_breaks_off_leaves_all_as_it_was(gpu):
    import cupy

    failures = [ValueError("mine"), KeyboardInterrupt()]
    calls = []

    def step(state, batch):
        calls.append(None)
        (x,) = state
        x += 1.0  # as a donated array may be
        if len(calls) in (2, 4):
            raise failures.pop(0)
        return (x,), x.sum() + batch[0]

    compiled = gpu.compile(step)
    batch = (cupy.asarray(1.0),)
    state = (cupy.zeros(3),)
    state, _ = compiled(state, batch)
    state, value = compiled(state, batch)  # it gives the capture up, and runs as it is
    assert float(value) == 7.0
    assert "mine" in compiled.how
    with pytest.raises(KeyboardInterrupt):
        gpu.compile(step)(state, batch)  # in the first run
    np.testing.assert_array_equal(gpu.to_host(state[0]), 2.0)
    assert not cupy.cuda.get_current_stream().is_capturing()
    again = gpu.compile(step)
    for _ in range(4):
        state, value = again(state, batch)
    assert again.how == "a CUDA graph"
    np.testing.assert_array_equal(gpu.to_host(state[0]), 6.0)


@pytest.fixture
def memory_limit(gpu):
    """The emulated GPU's switch that takes memory away."""
    device = sys.modules.get("emulated_gpu.device")
    if device is None:
        pytest.skip("a GPU's memory cannot be taken away; the emulated one's can (tests/emulated_gpu)")
    return device.memory_limit


@pytest.mark.parametrize(("room", "how"), [(110, "a CUDA graph"), (85, "call by call")])
def test_memory_that_a_capture_uses_is_not_freed_in_it(gpu, memory_limit, room, how):
    import cupy

    def step(state, batch):
        (x,) = state
        small = cupy.full(40 << 18, 2.0, cupy.float32)  # 40 MiB
        x = x + small[:3] * batch[0]
        del small
        large = cupy.full(60 << 18, 3.0, cupy.float32)
        return (x + large[-3:],), x.sum()

    from xpnn_backends.cupy import memory, products

    compiled = gpu.compile(step)
    state, batch = (cupy.zeros(3, cupy.float32),), (cupy.ones(3, cupy.float32),)
    pool = cupy.get_default_memory_pool()
    with gpu.context():
        products.products_here().workspace(cupy.cuda.get_current_stream().ptr)
        memory.free_caches()
        free, total = cupy.cuda.runtime.memGetInfo()
    with memory_limit(total - free + (room << 20)):
        for _ in range(5):
            state, _ = compiled(state, batch)
            pool.free_all_blocks()
        assert compiled.how.startswith(how), compiled.how
    np.testing.assert_array_equal(gpu.to_host(state[0]), 25.0)


def test_the_memory_of_graphs_goes_back_to_the_device_where_it_is_wanted(gpu):
    import cupy

    from xpnn_backends.cupy import memory

    def free():
        memory.free_caches()
        return cupy.cuda.runtime.memGetInfo()[0]

    def step(state, batch):
        return state, (batch[0] + cupy.full(16 << 20, 1.0, cupy.float32)).sum()

    compiled, batch = gpu.compile(step), (cupy.ones(16 << 20, cupy.float32),)
    before = free()
    for _ in range(3):
        compiled((cupy.zeros(1),), batch)
    assert compiled.how == "a CUDA graph"
    assert cupy.cuda.runtime.memGetInfo()[0] < before - (64 << 20)
    assert free() >= before - (1 << 20)
    assert float(compiled((cupy.zeros(1),), batch)[1]) == 2.0 * (16 << 20)


def test_memory_that_runs_out_elsewhere_takes_the_graphs_and_the_training_goes_on(gpu):
    from xpnn_backends.cupy import memory

    net, optimizer = network(gpu), xpnn.Adam(0.01)
    (batch,) = batches_of(net, 1)
    expected, _, _ = losses(net, optimizer, 40, [batch])
    stop = threading.Event()

    def press():
        while not stop.is_set():
            memory.free_caches()

    thread = threading.Thread(target=press)
    thread.start()
    try:
        found, _, _ = losses(net, optimizer, 40, [batch])
    finally:
        stop.set()
        thread.join()
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_a_long_row_of_steps_waits_for_the_device(gpu, monkeypatch):
    import cupy

    waits, plain = [], cupy.cuda.Event

    class Counted(plain):
        def synchronize(self):
            waits.append(None)
            super().synchronize()

    net = network(gpu)
    x, y = data(64)
    net.fit(x, y, loss="cross_entropy", optimizer="sgd", epochs=1, batch_size=8, verbose=0)
    monkeypatch.setattr(cupy.cuda, "Event", Counted)
    (step,) = [step for use, (_, step) in net._compiled.items() if use == "fit"]
    state = net.initial_state("sgd", "cross_entropy")
    arrays = tuple(net.prepare(x, y, "cross_entropy"))
    rows = gpu.asarray(np.arange(64))
    for _ in range(5):
        state = step.many(state, arrays, rows, 8)
    assert len(waits) >= 3
    assert state.step == 40


def own_formulas():
    """Functions of the step's number, with functions of its namespace where Python's own cannot be used."""
    of = dispatch.namespace
    nan = math.nan
    return {
        "floor division": lambda t: (t - 7) // 3 + 10 * ((t - 7) // -3) + (t * 0.1) // 0.1,
        "remainder": lambda t: (t - 7) % 3 + 10 * ((t - 7) % -3) + (t * 0.1) % 0.1 + -5.5 % (t - 3.25),
        "powers": lambda t: (t - 5) ** 3 + 0.5 ** (t - 5) + (t + 1) ** 0.5,
        "comparisons": lambda t: (t > 3) * 2 + (t == 4) - (t <= 9) / 4,
        "logic": lambda t: (((t > 2) & (t < 6)) | (t == 9)) + 0.5,
        "smaller": lambda t: of(t).minimum(1.0, t * nan) + 2 * of(t).minimum(t, 5),
        "larger": lambda t: of(t).maximum(1.0, t * nan) + 2 * of(t).maximum(t - 4, 0),
        "where": lambda t: of(t).where(t > 3, of(t).sqrt(abs(t - 3)), -t),
        "functions": lambda t: of(t).exp(-t) * of(t).cos(t) + of(t).expm1(1e-9 * t) + of(t).log1p(t) + of(t).log(t + 2),
        "a stair": lambda t: of(t).floor(t * 0.1 + 0.3) * 1.0,
        "one used often": lambda t: doubled_and_squared(t * 1e-3),
    }


def doubled_and_squared(x):
    for _ in range(60):
        x = x * x + x * 0.5  # written out, it would be 2 to the 60th factors
    return x


def test_numbers_of_the_step_are_pythons(gpu):
    from xpnn_backends.cupy.numbers import StepNumbers

    formulas = own_formulas()
    numbers = StepNumbers()
    step = numbers.begin_run(1)
    places = {name: numbers.place(formula(step)) for name, formula in formulas.items()}
    for name, formula in formulas.items():
        assert float(places[name]) == formula(1), name
    numbers.prepare()
    for number in range(60):
        numbers.count(number, 1)
        numbers.begin_capture()
        for name, formula in formulas.items():
            np.testing.assert_allclose(float(places[name]), float(formula(number)), rtol=1e-15, err_msg=name)
