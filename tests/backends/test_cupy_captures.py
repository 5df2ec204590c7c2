"""When steps are captured, with which memory, and what becomes of graphs when states, streams and threads change."""

import gc
import math
import threading
import weakref

import numpy as np
import pytest

import xpnn
from xpnn import dispatch

from .cupy_steps import batches_of, data, losses, network


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
    # There are four shapes: whole and last batches, validation, prediction. A shape whose arrays come to lie elsewhere
    # is captured once more, and where they lie differs from run to run. Anew in each epoch: at least 24, 9 and 12.
    assert captured() <= 8
    net.fit(x, y, epochs=3, validation_data=(x[:20], y[:20]), callbacks=callbacks, **settings)
    assert captured() <= 6
    for _ in range(3):
        net.fit(x, y, epochs=2, batch_size=16, resume=True, verbose=0)
    assert captured() <= 8


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


@pytest.mark.parametrize("pressed", [False, True])
def test_threads_that_share_a_step(gpu, pressed):
    import cupy

    from xpnn_backends.cupy import memory

    net, optimizer = network(gpu), xpnn.Adam(0.01)
    batches = batches_of(net, 2) + batches_of(net, 1, 7)
    expected, _, step = losses(net, optimizer, 30, batches)
    found = {}

    def train(number):
        with cupy.cuda.Stream(non_blocking=True) if number else cupy.cuda.Stream.null as stream:
            state, values = net.initial_state(optimizer, "cross_entropy"), []
            for count in range(30):
                state, loss = step(state, batches[count % 3])
                values.append(loss)
                if pressed and count % 7 == number:
                    memory.free_caches()
            stream.synchronize()
            found[number] = [float(gpu.to_host(value)) for value in values]

    threads = [threading.Thread(target=train, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        np.testing.assert_allclose(found[number], expected, rtol=2e-6)


def test_another_thread_runs_its_graph_when_the_value_of_this_one_is_safe(gpu, monkeypatch):
    import cupy

    from xpnn_backends.cupy import captures

    def sums(state, batch):
        return state, ((batch[0] + 1.0) * 3.0 - 2.0).sum()

    def doubled(state, batch):
        return state, 2.0 * batch[0]

    # The value of the second graph lies where the first one has its temporary arrays.
    batch = (cupy.ones(1000),)
    first, second = gpu.compile(sums), gpu.compile(doubled)
    for step in (first, second):
        for _ in range(3):
            step((), batch)
        assert step.how == "a CUDA graph"
    assert first._last.ground is second._last.ground
    fresh, threads = captures._fresh, []

    def late(leaf):
        if not threads:
            threads.append(threading.Thread(target=first, args=((), batch)))
            threads[0].start()
            threads[0].join(0.3)
        return fresh(leaf)

    monkeypatch.setattr(captures, "_fresh", late)
    _, value = second((), batch)
    threads[0].join()
    np.testing.assert_array_equal(gpu.to_host(value), 2.0)


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


@pytest.mark.parametrize(("room", "how"), [(110, "a CUDA graph"), (85, "call by call")])
def test_memory_that_a_capture_uses_is_not_freed_in_it(gpu, room_for, room, how):
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
    with room_for(room << 20):
        for _ in range(5):
            state, _ = compiled(state, batch)
            pool.free_all_blocks()
        assert compiled.how.startswith(how), compiled.how
    np.testing.assert_array_equal(gpu.to_host(state[0]), 25.0)


def test_the_memory_of_graphs_goes_back_to_the_device_where_it_is_wanted(gpu):
    import cupy

    from xpnn_backends.cupy import memory

    def step(state, batch):
        return state, (batch[0] + cupy.full(16 << 20, 1.0, cupy.float32)).sum()

    compiled, batch = gpu.compile(step), (cupy.ones(16 << 20, cupy.float32),)
    memory.free_caches()
    for _ in range(3):
        compiled((cupy.zeros(1),), batch)
    assert compiled.how == "a CUDA graph"
    pool = compiled._last.ground.pool
    # What is free on the device, other processes change too.
    assert pool.total_bytes() >= 64 << 20
    memory.free_caches()
    assert pool.total_bytes() == 0
    assert float(compiled((cupy.zeros(1),), batch)[1]) == 2.0 * (16 << 20)


def test_a_network_takes_its_graphs_with_it(gpu):
    net, optimizer = network(gpu), xpnn.Adam(0.01)
    batches = batches_of(net, 1) + batches_of(net, 1, 7)
    _, _, step = losses(net, optimizer, 6, batches)
    graphs = [weakref.ref(graph) for _, home in step._homes for graph in home.graphs.values()]
    assert len(graphs) == 2
    gc.disable()
    try:
        del net, step
        assert [graph() for graph in graphs] == [None, None]
    finally:
        gc.enable()


def test_other_streams_keep_no_workspace_where_memory_is_wanted(gpu):
    import cupy

    from xpnn_backends.cupy import memory, products

    net, optimizer = network(gpu), xpnn.Adam(0.01)
    (batch,) = batches_of(net, 1)
    expected, _, _ = losses(net, optimizer, 6, [batch])
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    for stream in streams:
        with stream:
            assert losses(net, optimizer, 6, [batch])[0] == expected
            stream.synchronize()
    workspaces = products.products_here()._workspaces
    assert {(stream.ptr, 0) for stream in streams} <= set(workspaces)
    with streams[0]:
        memory.free_caches()
        assert set(workspaces) == {(streams[0].ptr, 0)}
        assert losses(net, optimizer, 6, [batch])[0] == expected


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
        "endless": lambda t: of(t).minimum(math.inf, t) + of(t).maximum(-math.inf, t),
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
