"""Compiled steps on NumPy where they are easily wrong: shared memory, changed structures, impure steps, threads."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest

import xpnn
from xpnn_backends import fast
from xpnn_backends.compiled_step import CompiledStep
from xpnn_backends.recording import RecordingError

NATIVE = [False, True] if fast.why_not() is None else [False]


class State(NamedTuple):
    a: Any
    b: Any
    step: int


@pytest.fixture(params=NATIVE, ids=lambda native: "native" if native else "numpy")
def native(request):
    return request.param


def state(a: Any = None, b: Any = None) -> State:
    return State(np.zeros(2) if a is None else a, np.zeros(2) if b is None else b, 0)


def batch(value: float = 1.0) -> tuple[Any]:
    return (np.full(2, value),)


def test_a_value_that_is_an_input_is_that_of_this_call(native):
    step = CompiledStep(lambda old, given: (old, given[0]), native)
    start = state()
    start, first = step(start._replace(step=0), batch(1.0))
    assert step.why_not == "RecordingError: the new state does not count one step more"
    identity = CompiledStep(lambda old, given: (old._replace(step=old.step + 1), given[0]), native)
    new, first = identity(state(), batch(1.0))
    _, second = identity(new, batch(2.0))
    assert identity.why_not is None
    np.testing.assert_array_equal([first, second], [[1, 1], [2, 2]])


def test_a_network_of_views_predicts_from_the_samples_it_is_given():
    net = xpnn.Network(xpnn.Flatten(), input_shape=(2, 3), backend="numpy")
    samples = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_array_equal(net.predict(samples), samples.reshape(2, 6))
    np.testing.assert_array_equal(net.predict(samples + 100), samples.reshape(2, 6) + 100)


def test_a_value_that_is_of_the_old_state_is_not_overwritten(native):
    step = CompiledStep(lambda old, given: (State(old.a + given[0], old.b, old.step + 1), old.a), native)
    new, first = step(state(), batch())
    _, second = step(new, batch())
    assert step.why_not is None
    np.testing.assert_array_equal([first, second], [[0, 0], [1, 1]])


def test_arrays_of_a_state_that_share_memory_are_not_overwritten(native):
    step = CompiledStep(lambda old, given: (State(old.a + 1, old.b + 10, old.step + 1), given[0] * 2), native)
    shared = np.zeros(2)
    new, _ = step(state(shared, shared), batch())
    np.testing.assert_array_equal([new.a, new.b], [[1, 1], [10, 10]])
    assert "shares memory" in str(step.why_not)
    whole = np.zeros(3)
    new, _ = step(state(whole[:2], whole[1:]), batch())
    np.testing.assert_array_equal([new.a, new.b], [[1, 1], [10, 10]])
    halves = np.zeros(4)
    new, _ = step(state(halves[:2], halves[2:]), batch())
    np.testing.assert_array_equal(halves, [1, 1, 10, 10])


def test_an_array_of_the_batch_that_lies_in_the_state_is_not_overwritten(native):
    def add(old: State, given: Any) -> Any:
        return State(old.a + given[0], old.b + given[0], old.step + 1), given[0] * 2

    step = CompiledStep(add, native)
    theta = np.ones(2)
    new, _ = step(state(theta), (theta,))
    np.testing.assert_array_equal([new.a, new.b, theta], [[2, 2], [1, 1], [1, 1]])


def test_a_read_only_state_is_not_written_to(native):
    step = CompiledStep(lambda old, given: (State(old.a + 1, old.b, old.step + 1), given[0] * 2), native)
    fixed = np.zeros(2)
    fixed.flags.writeable = False
    new, _ = step(state(fixed), batch())
    np.testing.assert_array_equal([new.a, fixed], [[1, 1], [0, 0]])


@pytest.mark.parametrize("names", [("m", "v"), ("v", "m")])
def test_parts_of_a_state_are_found_by_name(native, names):
    def count(old: State, given: Any) -> Any:
        return State({"m": old.a["m"] + 1, "v": old.a["v"] + 100}, old.b, old.step + 1), given[0] * 2

    step = CompiledStep(count, native)
    step(state({"m": np.zeros(2), "v": np.zeros(2)}), batch())  # the other order has a program already
    new = state({name: np.zeros(2) for name in names})
    for _ in range(2):
        new, _ = step(new, batch())
    assert step.why_not is None
    np.testing.assert_array_equal([new.a["m"], new.a["v"]], [[2, 2], [200, 200]])


def test_a_training_goes_on_from_slots_in_another_order():
    samples = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    target = samples[:, :1].copy()

    def trained(swap: bool) -> Any:
        net = xpnn.Network(xpnn.Dense(1), input_shape=(3,), backend="numpy")
        net.fit(samples, target, loss="mse", optimizer="adam", epochs=1, batch_size=8, verbose=0)
        assert net.training is not None
        if swap:
            slots = dict(reversed(net.training.slots.items()))
            net.training = net.training._replace(slots=slots)
        net.fit(samples, target, epochs=2, batch_size=8, verbose=0, resume=True)
        return net.parameters["0.weight"]

    np.testing.assert_array_equal(trained(True), trained(False))


def test_settings_that_are_equal_and_of_other_types_have_programs_of_their_own(native):
    def kind(old: State, given: Any) -> Any:
        return State(old.a + (5 if given[0] is True else 1), old.b, old.step + 1), old.b * 1

    step = CompiledStep(kind, native)
    assert [step(state(), (flag,))[0].a[0] for flag in (1, True, 1.0)] == [1, 5, 1]


def test_a_batch_with_a_list_runs_as_it_is(native):
    step = CompiledStep(lambda old, given: (old._replace(a=old.a + given[0][1]), old.b), native)
    new, _ = step(state(), ([1.0, 2.0],))
    np.testing.assert_array_equal(new.a, [2, 2])


def test_what_a_step_changes_beside_arrays_is_not_lost(native):
    def skip(old: State, given: Any) -> Any:
        return State(old.a + 1, old.b + 1, old.step + 2), given[0] * 2

    def rename(old: State, given: Any) -> Any:
        return State(old.a + 1, "second", old.step + 1), given[0] * 2

    assert CompiledStep(skip, native)(state(), batch())[0].step == 2
    assert CompiledStep(rename, native)(state(b="first"), batch())[0].b == "second"


def test_a_step_that_draws_random_numbers_of_its_own_is_not_frozen(native):
    rng = np.random.default_rng(0)
    step = CompiledStep(lambda old, given: (old._replace(step=old.step + 1), given[0] + rng.normal()), native)
    new, values = state(), []
    for _ in range(3):
        new, value = step(new, batch())
        values.append(value[0])
    assert len(set(values)) == 3


def test_a_step_that_counts_its_calls_is_not_frozen(native):
    calls = []

    def count(old: State, given: Any) -> Any:
        calls.append(1)
        return old._replace(step=old.step + 1), given[0] * len(calls)

    step = CompiledStep(count, native)
    new, first = step(state(), batch())
    _, second = step(new, batch())
    assert second[0] == first[0] + 1


def test_an_array_that_a_step_has_kept_from_an_earlier_call_is_named(native):
    kept: list[Any] = []

    def cache(old: State, given: Any) -> Any:
        if not kept:
            kept.append(given[0] * 2)
        return old._replace(step=old.step + 1), kept[0] + given[0]

    step = CompiledStep(cache, native)
    with pytest.raises(RecordingError, match="compute it anew in each call"):
        step(state(), batch())


def with_array_equal(xp: Any, x: Any) -> Any:
    return x * (2.0 if xp.array_equal(x, x * 0) else 3.0)


def with_result_by_position(xp: Any, x: Any) -> Any:
    made = x * 2
    xp.add(x, x, made)
    return xp.add(made, 1, made)


def with_copyto(xp: Any, x: Any) -> Any:
    made = x * 2
    xp.copyto(made, x + 5)
    return made


def with_a_view_of_what_is_changed_in_place(xp: Any, x: Any) -> Any:
    made = x * 2
    first = made[:1]
    made += 1
    return first * 1


@pytest.mark.parametrize(
    "function",
    [with_array_equal, with_result_by_position, with_copyto, with_a_view_of_what_is_changed_in_place],
)
def test_functions_that_no_program_can_hold_run_as_they_are(native, function):
    step = CompiledStep(
        lambda old, given: (old._replace(step=old.step + 1), function(np_of(given[0]), given[0])), native
    )
    _, value = step(state(), batch(3.0))
    np.testing.assert_array_equal(value, function(np, np.full(2, 3.0)))
    assert "RecordingError" in str(step.why_not)


def np_of(x: Any) -> Any:
    return x.__array_namespace__()


def test_numbers_of_the_step_keep_their_type(native):
    def numbers(old: State, given: Any) -> Any:
        xp = np_of(given[0])
        late = xp.where(xp.asarray(old.step > 0), given[0], -given[0])
        whole = xp.arange(2) * old.step
        return State(late, whole, old.step + 1), whole * 1

    step = CompiledStep(numbers, native)
    new = State(np.zeros(2), np.zeros(2, np.int64), 0)
    for wanted, sign in (([0, 0], -1), ([0, 1], 1), ([0, 2], 1)):
        new, whole = step(new, batch())
        assert whole.dtype == np.int64
        np.testing.assert_array_equal(whole, wanted)
        np.testing.assert_array_equal(new.a, [sign, sign])
    assert step.why_not is None


def test_many_steps_go_on_with_their_own_state_beside_another_thread():
    """The other thread's steps run between the first of many and the rest of them."""
    samples = np.arange(64, dtype=np.float64).reshape(64, 1)
    rows = np.arange(64)

    def add(old: State, given: Any) -> Any:
        data, picked = given
        total = old.a + np_of(data).sum(np_of(data).take(data, picked, axis=0))
        return State(total, old.b, old.step + 1), total

    step = CompiledStep(add, NATIVE[-1])
    found: list[float] = []

    def work() -> None:
        for _ in range(50):
            found.append(float(step.many(State(np.zeros(()), np.zeros(()), 0), (samples,), rows, 4).a))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [samples.sum()] * 200


def test_large_data_are_not_kept_alive():
    net = xpnn.Network(xpnn.Dense(1), input_shape=(3,), backend="numpy")
    samples, target = np.ones((64, 3), np.float32), np.ones((64, 1), np.float32)
    weak = weakref.ref(samples)
    for _ in range(2):
        net.fit(samples, target, loss="mse", optimizer="sgd", epochs=2, batch_size=30, verbose=0)
        net.evaluate(samples, target)
        net.predict(samples, batch_size=30)
    del samples
    gc.collect()
    assert weak() is None


def test_a_step_goes_on_after_it_has_let_go_of_its_arrays(native):
    step = CompiledStep(lambda old, given: (State(old.a + given[0], old.b, old.step + 1), given[0] * 2), native)
    given = batch()
    new, _ = step(state(), given)
    step.release()
    new, value = step(new, given)
    np.testing.assert_array_equal([new.a, value], [[2, 2], [2, 2]])


@pytest.mark.skipif(NATIVE == [False], reason="needs the fast extra")
def test_a_kernel_that_does_not_compile_leaves_numpys(monkeypatch, caplog):
    from xpnn_backends.native import registry

    def fails(name: str, *_: Any) -> Any:
        raise RuntimeError("no code for this processor")

    monkeypatch.setattr(registry, "_entry", fails)
    monkeypatch.setattr(registry, "compiled", registry.compiled.__wrapped__)
    monkeypatch.setattr(fast, "_broken", [])
    step = CompiledStep(lambda old, given: (State(old.a + given[0], old.b * 2, old.step + 1), given[0] * 3), True)
    new = state()
    for _ in range(2):
        new, value = step(new, batch())
    np.testing.assert_array_equal([new.a, value], [[2, 2], [3, 3]])
    assert "no code for this processor" in str(fast.why_not())
    assert sum("no code for this processor" in record.getMessage() for record in caplog.records) == 1
    assert step.why_not is None  # it is a program all the same


@pytest.mark.skipif(NATIVE == [False], reason="needs the fast extra")
def test_threads_that_were_not_woken_because_of_an_interrupt_are_woken_by_the_next_run(monkeypatch):
    from xpnn_backends.native import machine, threads

    monkeypatch.setattr(machine.Blas, "threads", lambda self: 2)
    monkeypatch.setattr(threads, "core_count", lambda: 2)
    machine.blas()
    pool = threads.Threads(2, 0)
    monkeypatch.setattr(machine._POOL, "with_parts", lambda parts: pool)
    matrix = np.ones((300, 300), np.float32)
    step = CompiledStep(lambda old, given: (old._replace(step=old.step + 1), np_of(given[0]).exp(given[0])), True)
    new, _ = step(state(), (matrix,))

    class Interrupted:
        def put(self, item: None) -> None:
            raise KeyboardInterrupt

    wake = pool._wake
    asleep = threading.Event()
    for _ in range(2000):
        pool._wake = Interrupted()  # type: ignore[assignment]
        try:
            new, _ = step(new, (matrix,))
        except KeyboardInterrupt:
            asleep.set()
            break
        finally:
            pool._wake = wake
        threading.Event().wait(0.01)
    assert asleep.is_set(), "the thread never went to sleep"
    finished = threading.Event()
    threading.Thread(target=lambda: (step(new, (matrix,)), finished.set()), daemon=True).start()
    assert finished.wait(60)
