"""Programs: memory that is used again, calls that are dropped, inputs that are exchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnn
from xpnn.dispatch import namespace
from xpnn_backends.fast import why_not
from xpnn_backends.numpy_backend import NumpyBackend
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recording import COPY, Kernel, Recorder

assert NumpyBackend  # it makes recorded arrays known to the dispatch table

native_too = pytest.mark.parametrize(
    "native",
    [False, pytest.param(True, marks=pytest.mark.skipif(why_not() is not None, reason=str(why_not())))],
    ids=["numpy", "native"],
)

# Random programs. All numbers are small and whole, so that no order of additions changes a result.


def _bounded(xp, x):
    return xp.minimum(xp.maximum(x, -8.0), 8.0)


def _flipped(xp, x):
    return xp.flip(x, axis=0)


ONE = {
    "negative": lambda xp, x: -x,
    "relu": lambda xp, x: xp.maximum(x, 0.0),
    "transposed": lambda xp, x: x.T,
    "rows": lambda xp, x: x[1:, :],
    "columns": lambda xp, x: x[:, ::2],
    "row": lambda xp, x: x[:1, :],
    "flipped": _flipped,
    "sum of rows": lambda xp, x: _bounded(xp, xp.sum(x, axis=0, keepdims=True)),
    "sum of columns": lambda xp, x: _bounded(xp, xp.sum(x, axis=1, keepdims=True)),
    "flat": lambda xp, x: xp.reshape(x, (1, x.shape[0] * x.shape[1])),
    "square": lambda xp, x: _bounded(xp, x * x),
    "positive": lambda xp, x: xp.where(x > 0.0, x, xp.zeros_like(x)),
    "row times row": lambda xp, x: _bounded(xp, x @ x.T),
    "columns times columns": lambda xp, x: _bounded(xp, x.T @ x),
}
TWO = {
    "sum": lambda xp, x, y: _bounded(xp, x + y),
    "difference": lambda xp, x, y: _bounded(xp, x - y),
    "larger": lambda xp, x, y: xp.maximum(x, y),
    "chosen": lambda xp, x, y: xp.where(x < y, x, y),
    "side by side": lambda xp, x, y: xp.concat([x, y], axis=1),
    "first of both": lambda xp, x, y: xp.concat([x, y, x], axis=0)[2:, :],
    "packed": lambda xp, x, y: xp.reshape(
        xpnn.ops.pack(x, y, starts=(0, x.size), size=x.size + y.size)[0], (2, x.size)
    ),
}


def run_lines(xp, lines, arrays):
    """All values: those that are given, and that of each line (its function, and the positions of its operands)."""
    values = list(arrays)
    for function, positions in lines:
        values.append(function(xp, *(values[position] for position in positions)))
    return values


@st.composite
def programs(draw):
    """(arrays, lines, which values are asked for); every line fits the shapes of its operands."""
    shape = (draw(st.integers(0, 5)), draw(st.integers(0, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    arrays = [rng.integers(-8, 9, shape).astype(np.float32) for _ in range(3)]
    lines = []
    values = list(arrays)
    for _ in range(draw(st.integers(1, 14))):
        first = draw(st.integers(0, len(values) - 1))
        equal = [position for position, value in enumerate(values) if value.shape == values[first].shape]
        if draw(st.booleans()):
            line = TWO[draw(st.sampled_from(sorted(TWO)))], (first, draw(st.sampled_from(equal)))
        else:
            line = ONE[draw(st.sampled_from(sorted(ONE)))], (first,)
        made = run_lines(np, [line], values)[-1]
        if made.size <= 400:
            lines.append(line)
            values.append(made)
    count = len(values)
    wanted = draw(st.lists(st.integers(0, count - 1), max_size=3, unique=True))
    return arrays, lines, sorted({*wanted, count - 1})


@native_too
@settings(max_examples=150, deadline=None)
@given(program=programs())
def test_random_programs_give_what_the_same_calls_give(native, program):
    """Pieces of memory that overlap while both are in use would change a result."""
    arrays, lines, wanted = program
    recorder = Recorder()
    inputs = [recorder.input(array) for array in arrays]
    values = run_lines(namespace(inputs[0]), lines, inputs)
    results = [recorder.contiguous(values[position]) for position in wanted]
    recorder.call(KEEP, *results)
    replayed = Program(recorder, arrays, native)
    for time in range(3):
        given = [array + np.float32(time) for array in arrays]
        for number, array in enumerate(given):
            replayed.bind(number, array)
        before = [array.copy() for array in given]
        replayed.run(time)
        eager = run_lines(np, lines, given)
        for position, result in zip(wanted, results, strict=True):
            np.testing.assert_array_equal(replayed.array(result), eager[position])
        for array, unchanged in zip(given, before, strict=True):
            np.testing.assert_array_equal(array, unchanged)


def test_memory_is_used_again():
    x = np.ones((100, 100))
    recorder = Recorder()
    y = recorder.input(x)
    made = []
    for _ in range(40):
        y = y + 1.0
        made.append(y)
    recorder.call(KEEP, y)
    program = Program(recorder, [x], False)
    program.run(0)
    assert len({program.array(each).ctypes.data for each in made}) == 2
    np.testing.assert_array_equal(program.array(y), x + 40.0)


def test_what_is_kept_shares_its_memory_with_nothing():
    x = np.ones((10, 10))
    recorder = Recorder()
    kept = recorder.kept((200,), np.float64)
    one = recorder.input(x)
    recorder.put_inside(one * 2.0, kept, 100)
    others = [one]
    for _ in range(5):
        others.append(others[-1] * 2.0)
    recorder.call(KEEP, others[-1])
    recorder.call(KEEP, kept)
    program = Program(recorder, [x], False)
    for _ in range(2):
        program.run(0)
        np.testing.assert_array_equal(program.array(kept), [0.0] * 100 + [2.0] * 100)
    for other in others[1:]:
        assert not np.shares_memory(program.array(kept), program.array(other))


# Calls that are dropped.


def counting(log, name):
    def double(x, out):
        log.append(name)
        np.multiply(x, 2.0, out=out)

    return Kernel(name, double)


def test_calls_whose_results_nobody_reads_are_dropped():
    log = []
    x = np.arange(4.0)
    recorder = Recorder()
    given = recorder.input(x)
    needed, dead, dead_too, late = (recorder.empty((4,), x.dtype) for _ in range(4))
    recorder.call(counting(log, "needed"), given, needed)
    recorder.call(counting(log, "dead"), needed, dead)
    recorder.call(counting(log, "reads what is dead"), dead, dead_too)
    recorder.call(counting(log, "late"), needed, late)
    recorder.call(KEEP, late)
    program = Program(recorder, [x], False)
    program.run(0)
    assert log == ["needed", "late"]
    np.testing.assert_array_equal(program.array(late), 4 * x)


def test_a_call_that_writes_into_an_array_of_the_callers_is_kept():
    log = []
    x, y = np.arange(4.0), np.zeros(4)
    recorder = Recorder()
    given, target = recorder.input(x), recorder.input(y)
    recorder.call(counting(log, "write"), given, target)
    Program(recorder, [x, y], False).run(0)
    assert log == ["write"]
    np.testing.assert_array_equal(y, 2 * x)


def test_a_call_with_two_results_is_kept_for_either():
    def both(x, first, second):
        first[...] = x + 1.0
        second[...] = x + 2.0

    kernel = Kernel("both", both, None, (1, 2))
    x = np.arange(3.0)
    for position in (0, 1):
        recorder = Recorder()
        results = [recorder.empty((3,), x.dtype) for _ in range(2)]
        recorder.call(kernel, recorder.input(x), *results)
        last = results[position] * 2.0
        recorder.call(KEEP, last)
        program = Program(recorder, [x], False)
        program.run(0)
        np.testing.assert_array_equal(program.array(last), 2.0 * (x + 1.0 + position))


# Arrays that are made inside another.


@native_too
def test_put_inside(native):
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)

    def pieces(x):
        twice = x + x
        return {
            "made there": x * 3.0,
            "an input": x,
            "a transposed view": (x - 1.0).T,
            "a row": (x * 2.0)[1, :],
            "used before": twice,
            "the same again": twice,
            "used after": x - 2.0,
            "a constant": namespace(x).ones((2,), dtype=namespace(x).float32),
            "a number": namespace(x).sum(x * 1.0),
        }

    recorder = Recorder()
    stand_in = recorder.input(x)
    given = pieces(stand_in)
    before = given["used before"] * 10.0
    outer = recorder.kept((64,), x.dtype)
    start, places = 2, {}
    for name, piece in given.items():
        recorder.put_inside(piece, outer, start)
        places[name] = slice(start, start + piece.size)
        start += piece.size + 1
    after = given["used after"] * 10.0
    total = namespace(stand_in).sum(outer)
    recorder.call(KEEP, before, after, outer, total)
    program = Program(recorder, [x], native)
    for factor in (1.0, -3.0):
        array = x * np.float32(factor)
        program.bind(0, array)
        program.run(0)
        wanted = np.zeros(64, x.dtype)
        made = pieces(array)
        for name, piece in made.items():
            wanted[places[name]] = piece.reshape(-1)
        np.testing.assert_array_equal(program.array(outer), wanted)
        np.testing.assert_array_equal(program.array(before), made["used before"] * 10.0)
        np.testing.assert_array_equal(program.array(after), made["used after"] * 10.0)
        np.testing.assert_array_equal(program.array(total), wanted.sum())


@native_too
def test_pack_within_pack(native):
    x = np.arange(3.0, dtype=np.float32)

    def function(x):
        inner, inner_vjp = xpnn.ops.pack(x * 2.0, x + 1.0, starts=(0, 4), size=8)
        outer, outer_vjp = xpnn.ops.pack(inner, x, starts=(0, 8), size=12)
        dinner, dx = outer_vjp(outer * outer)
        first, second = inner_vjp(dinner)
        return outer, namespace(x).concat([dx, first, second])

    recorder = Recorder()
    results = function(recorder.input(x))
    recorder.call(KEEP, *results)
    program = Program(recorder, [x], native)
    program.run(0)
    for mine, theirs in zip(results, function(x), strict=True):
        np.testing.assert_array_equal(program.array(mine), theirs)


# Inputs.


@native_too
def test_inputs_are_exchanged_wherever_they_are_used(native):
    x, y = (np.random.default_rng(seed).integers(-8, 9, (4, 6)).astype(np.float32) for seed in (0, 1))

    def function(x, y):
        xp = namespace(x)
        return xp.sum(x.T[1:3, :] + y[:, :2].T, axis=0), x[-1, :] - y[0, ::-1], xp.cumulative_sum(x, axis=1) * y

    recorder = Recorder()
    given = recorder.input(x), recorder.input(y)
    results = function(*given)
    target = recorder.input(np.zeros(6, np.float32))
    recorder.call(COPY, results[1], target)
    recorder.call(KEEP, *results)
    program = Program(recorder, [x, y, np.zeros(6, np.float32)], native)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        # an array may begin anywhere in memory, if only in C order
        arrays = [rng.integers(-8, 9, 25).astype(np.float32)[1:].reshape(4, 6) for _ in range(2)]
        written = np.zeros(6, np.float32)
        for number, array in enumerate((*arrays, written)):
            program.bind(number, array)
            assert program.is_bound(number, array)
        program.run(0)
        wanted = function(*arrays)
        for mine, theirs in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(program.array(mine), theirs)
        np.testing.assert_array_equal(written, wanted[1])
    assert not program.is_bound(0, x)


@native_too
def test_two_inputs_may_be_one_array(native):
    x = np.arange(5.0)
    recorder = Recorder()
    result = recorder.input(x) * 2.0 + recorder.input(x)
    recorder.call(KEEP, result)
    program = Program(recorder, [x, x], native)
    program.run(0)
    np.testing.assert_array_equal(program.array(result), 3 * x)


@native_too
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (0,)])
def test_arrays_without_elements(shape, native):
    def function(x):
        xp = namespace(x)
        flat = xp.reshape(x * 2.0 - x, (-1,)) if x.shape != (0, 0) else x[0:, 0:]
        rows = xp.sum(x, axis=0)
        return flat, rows, xp.sum(x), xp.concat([x, x + 1.0], axis=0), xp.ones((2,)) + xp.sum(x)

    x = np.zeros(shape)
    recorder = Recorder()
    results = function(recorder.input(x))
    recorder.call(KEEP, *results)
    program = Program(recorder, [x], native)
    program.run(0)
    for mine, theirs in zip(results, function(x), strict=True):
        found = program.array(mine)
        assert found.shape == theirs.shape
        np.testing.assert_array_equal(found, theirs)


@native_too
def test_products_with_an_empty_side(native):
    for left, right in [((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0))]:
        x, y = np.ones(left), np.ones(right)
        recorder = Recorder()
        result = recorder.input(x) @ recorder.input(y)
        recorder.call(KEEP, result)
        program = Program(recorder, [x, y], native)
        program.array(result)[...] = 5.0
        program.run(0)
        np.testing.assert_array_equal(program.array(result), x @ y)


def test_a_program_without_calls():
    x = np.arange(3.0)
    recorder = Recorder()
    given = recorder.input(x)
    recorder.call(KEEP, given)
    program = Program(recorder, [x], False)
    program.run(0)
    assert program.array(given) is x
