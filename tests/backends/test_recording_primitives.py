"""NumPy's functions in recorded steps, called by Python and as native kernels: the results of NumPy itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnn_backends.fast import why_not
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recorded_bodies import BODIES
from xpnn_backends.recording import COPY, NAMESPACE, Recorder, RecordingError

native_too = pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])

F4, F8, I8, B1 = np.float32, np.float64, np.int64, np.bool_
FLOATS = (F4, F8)
ALL = (F4, F8, I8, B1)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-42, 3e38, 1e30, -7.0, 3.0, 40.0]


@pytest.fixture(autouse=True)
def _with_numba(request):
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("native") and why_not():
        pytest.skip(why_not())


def record(function, arrays, native):
    """(program, its result) of function(namespace, *stand-ins)."""
    recorder = Recorder()
    result = function(NAMESPACE, *map(recorder.input, arrays))
    recorder.call(KEEP, result)
    program = Program(recorder, arrays, native)
    return program, program.array(result)


def is_native(program):
    """True if no call goes back to Python."""
    return program._machine is not None and program._machine.length > 0 and len(program._calls) == 1


def outcome(function, arrays, native, in_python=False):
    """(what the program of a function gives, what NumPy gives)."""
    with np.errstate(all="ignore"):
        wanted = np.asarray(function(np, *arrays))
        program, result = record(function, arrays, native)
        program.run(0)
    assert not native or in_python or is_native(program)
    assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
    return result, wanted


def same_bits(result, wanted, zeros=True):
    """`zeros`: the signs of zeros too; which of two different zeros is the larger is up to the processor."""
    np.testing.assert_array_equal(result, wanted)
    if wanted.dtype.kind == "f" and zeros:
        numbers = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(result[numbers]), np.signbit(wanted[numbers]))


def values(dtype, shape, shift=0):
    """Special numbers, in an order that depends on `shift`."""
    size = math.prod(shape)
    chosen = [SPECIAL[(7 * i + shift * (1 + i // len(SPECIAL))) % len(SPECIAL)] for i in range(size)]
    with np.errstate(all="ignore"):
        array = np.array(chosen, F8)
        if np.dtype(dtype).kind == "i":
            array = np.nan_to_num(array, posinf=9, neginf=-9).clip(-9, 9)
        return array.astype(dtype).reshape(shape)


def numbers(dtype, shape, seed=0):
    """Normal numbers, or whole ones."""
    array = np.random.default_rng(seed).normal(size=shape)
    return (3 * array).astype(dtype) if np.dtype(dtype).kind != "f" else array.astype(dtype)


ARITHMETIC = ["add", "subtract", "multiply", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
LOGICAL = ["logical_and", "logical_or", "logical_xor"]
PAIRS = [
    *((name, dtype) for name in ARITHMETIC for dtype in (F4, F8, I8)),
    *((name, dtype) for name in COMPARISONS + LOGICAL for dtype in ALL),
    *(("divide", dtype) for dtype in FLOATS),
    *((name, dtype) for name in ("bitwise_and", "bitwise_or", "bitwise_xor") for dtype in (I8, B1)),
    *((name, B1) for name in ("add", "multiply", "maximum", "minimum")),
]
UNARY = [
    *((name, dtype) for name in ("negative", "abs", "square", "sign", "positive") for dtype in (F4, F8, I8)),
    *((name, dtype) for name in ("sqrt", "floor", "ceil", "trunc", "round") for dtype in FLOATS),
    *((name, dtype) for name in ("reciprocal", "isfinite", "isnan", "isinf") for dtype in FLOATS),
    *(("logical_not", dtype) for dtype in ALL),
    ("bitwise_invert", B1),
    ("positive", I8),
]


def _id(value):
    return value.__name__ if isinstance(value, type) else str(value)


@native_too
@pytest.mark.parametrize(("name", "dtype"), PAIRS, ids=_id)
def test_two_arrays(name, dtype, native):
    def function(xp, x, y):
        return getattr(xp, name)(x, y)

    for shape in [(), (1,), (300,), (7, 5), (0, 3), (2, 3, 4)]:
        result, wanted = outcome(function, [values(dtype, shape), values(dtype, shape, 1)], native)
        same_bits(result, wanted, name not in ("maximum", "minimum"))


@native_too
@pytest.mark.parametrize(("name", "dtype"), UNARY, ids=_id)
def test_one_array(name, dtype, native):
    def function(xp, x):
        return getattr(xp, name)(x)

    for shape in [(), (1,), (300,), (7, 5), (0, 3)]:
        same_bits(*outcome(function, [values(dtype, shape)], native))
    same_bits(*outcome(lambda xp, x: function(xp, x.T), [values(dtype, (40, 9))], native))


@native_too
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "name", ["exp", "log", "expm1", "log1p", "tanh", "sin", "cos", "tan", "atan", "sinh", "cosh", "log2"]
)
def test_elementary_functions_to_four_roundings(name, dtype, native):
    x = np.concatenate([numbers(dtype, (500,)), values(dtype, (len(SPECIAL),))])
    if name in ("sin", "cos", "tan"):
        x = x[np.abs(x) < 100]
    result, wanted = outcome(lambda xp, x: getattr(xp, name)(x), [x], native)
    np.testing.assert_allclose(result, wanted, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).smallest_subnormal)


@native_too
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("exponent", [2, -1, 3, 0.5, 1.5, -2.5, 0])
def test_powers_with_a_number(exponent, dtype, native):
    x = np.concatenate([np.abs(numbers(dtype, (200,))), values(dtype, (len(SPECIAL),))])
    result, wanted = outcome(lambda xp, x: xp.pow(x, exponent), [x], native)
    np.testing.assert_allclose(result, wanted, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).smallest_subnormal)


SHAPES = [
    ((7, 5), (5,)),
    ((7, 5), (7, 1)),
    ((7, 1), (1, 5)),
    ((), (7, 5)),
    ((1, 1), (300,)),
    ((2, 300), (2, 1)),
    ((2, 3, 4), (3, 1)),
    ((2, 1, 4), (3, 1)),
    ((4, 1, 3, 1), (4, 2, 3, 5)),
    ((0, 3), (3,)),
    ((0, 1), (1, 4)),
]


@native_too
@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("dtype", [F4, F8, I8])
def test_broadcasting(left, right, dtype, native):
    in_python = len(left) > 3  # four axes that cannot be put together
    for name in ("subtract", "less"):
        same_bits(
            *outcome(
                lambda xp, x, y, name=name: getattr(xp, name)(x, y),
                [values(dtype, left), values(dtype, right, 3)],
                native,
                in_python,
            )
        )


@native_too
@pytest.mark.parametrize("left", ALL, ids=_id)
@pytest.mark.parametrize("right", ALL, ids=_id)
def test_mixed_dtypes(left, right, native):
    for shapes in [((300,), (300,)), ((7, 5), (7, 1)), ((), ())]:
        arrays = [values(left, shapes[0]), values(right, shapes[1], 3)]
        for name in ("multiply", "maximum", "less", "logical_or"):
            result, wanted = outcome(lambda xp, x, y, name=name: getattr(xp, name)(x, y), arrays, native)
            same_bits(result, wanted, name != "maximum")


@native_too
@pytest.mark.parametrize("number", [2, -3, 0.1, 1e-40, -0.0, math.inf, math.nan])
@pytest.mark.parametrize("dtype", [F4, F8, I8])
def test_python_numbers(number, dtype, native):
    for shape in [(), (300,), (3, 7)]:
        x = values(dtype, shape)
        same_bits(*outcome(lambda xp, x: number * x, [x], native))
        same_bits(*outcome(lambda xp, x: x - number, [x], native))
        same_bits(*outcome(lambda xp, x: x > number, [x], native))


@native_too
def test_the_number_of_the_step(native):
    x = numbers(F4, (300,))
    recorder = Recorder()
    result = recorder.input(x) * (0.5 * recorder.step)
    recorder.call(KEEP, result)
    program = Program(recorder, [x], native)
    assert not native or is_native(program)
    for step in (1, 7):
        program.run(step)
        same_bits(program.array(result), x * (0.5 * step))


VIEWS = {
    "transposed": lambda x: x.T,
    "columns": lambda x: x[:, 2:5],
    "column": lambda x: x[:, 3],
    "every-third": lambda x: x[::3, ...],
    "rows": lambda x: x[2:4, :],
    "one-axis-more": lambda x: x[:, None, 1:],
    "0-d": lambda x: x[3, 4],
}


@native_too
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", ALL, ids=_id)
def test_views(view, dtype, native):
    x = values(dtype, (9, 11))
    same_bits(*outcome(lambda xp, x: xp.maximum(view(x), view(x)), [x], native))
    same_bits(*outcome(lambda xp, x: xp.where(view(x) > 0, view(x), xp.zeros_like(view(x))), [x], native))
    same_bits(*outcome(lambda xp, x: xp.astype(view(x), F8), [x], native, dtype == F8))
    for name in ("max", "any", "argmax"):
        for axis in (-1, None) if view(x).ndim else ():
            if name == "argmax" and axis is None:
                continue
            result, wanted = outcome(
                lambda xp, x, name=name, axis=axis: getattr(xp, name)(view(x), axis=axis), [x], native
            )
            np.testing.assert_array_equal(result, wanted)


@native_too
@pytest.mark.parametrize("reverse", ["0", "1"])
def test_reversed_views(reverse, native):
    x = numbers(F4, (6, 40))
    same_bits(*outcome(lambda xp, x: xp.flip(x, axis=int(reverse)) + x, [x], native))
    same_bits(*outcome(lambda xp, x: xp.flip(x[:, 0]) * 2.0, [x], native))


@native_too
@pytest.mark.parametrize("target", ALL, ids=_id)
@pytest.mark.parametrize("dtype", ALL, ids=_id)
def test_conversions(dtype, target, native):
    for shape in [(), (300,), (0,), (7, 5)]:
        x = values(dtype, shape)
        if np.dtype(dtype).kind == "f" and target is I8:
            x = numbers(dtype, shape) * 5  # what others become is up to the processor
            x = np.asarray(x, dtype)
        recorder = Recorder()
        given = recorder.input(x)
        out = recorder.empty(shape, target)
        recorder.call(COPY, given, out)
        recorder.call(KEEP, out)
        program = Program(recorder, [x], native)
        assert not native or is_native(program)
        with np.errstate(all="ignore"):
            program.run(0)
            same_bits(program.array(out), x.astype(target))


@native_too
@pytest.mark.parametrize("dtype", ALL, ids=_id)
def test_where(dtype, native):
    for shapes in [((300,),) * 3, ((7, 1), (5,), (7, 5)), ((), (4,), (4,)), ((4,), (), ())]:
        kinds = zip((B1, dtype, dtype), shapes, strict=True)
        condition, x, y = (values(kind, shape, 5 * i) for i, (kind, shape) in enumerate(kinds))
        same_bits(*outcome(lambda xp, c, x, y: xp.where(c, x, y), [condition, x, y], native))
    if dtype in FLOATS:
        x = values(dtype, (40,))
        same_bits(*outcome(lambda xp, x: xp.where(x > 0, x, 0.1), [x], native))
        same_bits(*outcome(lambda xp, x: xp.where(x > 0, -math.inf, x), [x], native))


REDUCED = [
    ((300,), None),
    ((7, 5), None),
    ((7, 5), 0),
    ((7, 5), -1),
    ((40, 300), 0),
    ((40, 300), 1),
    ((3, 4, 5), 1),
    ((3, 4, 5), (1, 2)),
    ((3, 4, 5), (0, 1)),
    ((3, 4, 5), (0, 2)),
    ((3, 1, 5), 1),
    ((), None),
]


@native_too
@pytest.mark.parametrize(("shape", "axis"), REDUCED)
@pytest.mark.parametrize("dtype", ALL, ids=_id)
def test_exact_reductions(shape, axis, dtype, native):
    rng = np.random.default_rng(1)
    x = rng.integers(-8, 8, shape).astype(dtype)
    for name in ("sum", "max", "min", "any", "all", "mean"):
        for keepdims in (False, True):
            result, wanted = outcome(
                lambda xp, x, name=name, keep=keepdims: getattr(xp, name)(x, axis=axis, keepdims=keep), [x], native
            )
            if name == "mean":
                np.testing.assert_allclose(result, wanted, rtol=4 * np.finfo(wanted.dtype).eps)
            else:
                same_bits(result, wanted)
    if isinstance(axis, int):
        for name in ("argmax", "argmin"):
            same_bits(*outcome(lambda xp, x, name=name: getattr(xp, name)(x, axis=axis), [x], native))
    powers = (2.0 ** rng.integers(0, 2, shape)).astype(dtype)
    if powers.size <= 60:
        same_bits(*outcome(lambda xp, x: xp.prod(x, axis=axis), [powers], native))


@native_too
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "axis"), [((0,), None), ((0, 3), 0), ((0, 3), 1), ((3, 0), 1), ((3, 0), None)])
def test_reductions_of_nothing(shape, axis, dtype, native):
    x = np.zeros(shape, dtype)
    for name in ("sum", "prod", "any", "all"):
        same_bits(*outcome(lambda xp, x, name=name: getattr(xp, name)(x, axis=axis), [x], native))


@native_too
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1, None])
def test_special_numbers_in_reductions(dtype, axis, native):
    for special in ([np.nan], [np.inf], [np.inf, -np.inf], [-0.0], [np.nan, np.inf], [np.inf, np.inf]):
        for size in (8, 200):
            x = np.full((size, size), -0.0, dtype)
            for place, value in enumerate(special):
                x[3 + place, 3] = x[5, 2 + place] = value
            for name in ("sum", "max", "min", "mean"):
                result, wanted = outcome(lambda xp, x, name=name: getattr(xp, name)(x, axis=axis), [x], native)
                same_bits(result, wanted)
            if axis is not None:
                for name in ("argmax", "argmin"):
                    same_bits(*outcome(lambda xp, x, name=name: getattr(xp, name)(x, axis=axis), [x], native))


@native_too
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_first_maximum_wins(dtype, native):
    x = np.random.default_rng(0).integers(0, 3, (50, 400)).astype(dtype)
    for axis in (0, 1):
        same_bits(*outcome(lambda xp, x, axis=axis: xp.argmax(x, axis=axis), [x], native))
    same_bits(*outcome(lambda xp, x: xp.argmax(x), [x], native))
    same_bits(*outcome(lambda xp, x: xp.argmax(x, axis=1, keepdims=True), [x], native))


@native_too
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(100_001,), (3, 33_333)])
def test_errors_of_long_sums_are_below_a_pairwise_sums(dtype, shape, native):
    x = (np.random.default_rng(0).uniform(size=shape) + 1.0).astype(dtype)
    result, _ = outcome(lambda xp, x: xp.sum(x, axis=-1), [x], native)
    exact = [math.fsum(row) for row in x.reshape(-1, shape[-1]).astype(F8)]
    # pairwise in blocks of 128, each with 8 sums: at most 16 + 3 + log2(n / 128) additions for each number
    bound = (20 + math.log2(shape[-1] / 128)) * np.finfo(dtype).eps / 2
    np.testing.assert_allclose(result.reshape(-1), exact, rtol=bound)
    if native:
        np.testing.assert_allclose(result.reshape(-1), exact, rtol=np.finfo(dtype).eps)


@native_too
@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_over_the_first_axis(dtype, native):
    x = numbers(dtype, (1000, 200))
    result, wanted = outcome(lambda xp, x: xp.sum(x, axis=0), [x], native)
    bound = 1000 * np.finfo(dtype).eps * np.sum(np.abs(x), axis=0).max()
    np.testing.assert_allclose(result, wanted, rtol=0, atol=bound)
    result, _ = outcome(lambda xp, x: xp.sum(x.T, axis=-1), [x], native)
    np.testing.assert_allclose(result, wanted, rtol=0, atol=bound)


@native_too
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["concat", "stack"])
def test_parts_are_put_together(name, axis, native):
    arrays = [numbers(F4, (4, 5)), numbers(F8, (4, 5), 1), numbers(F4, (4, 5), 2)]
    same_bits(*outcome(lambda xp, x, y, z: getattr(xp, name)([x, y, z[:, ::1]], axis=axis), arrays, native))
    same_bits(*outcome(lambda xp, x, y, z: xp.stack([x[0, 0], z[1, 1]], axis=0), arrays, native))
    same_bits(*outcome(lambda xp, x, y, z: xp.concat([x.T, z.T], axis=axis), arrays, native))


@native_too
@pytest.mark.parametrize("dtype", ALL, ids=_id)
def test_rows_by_number(dtype, native):
    rows = np.array([3, 0, 0, -1, 6, -7, 2] * 40)
    for shape in [(7,), (7, 5), (7, 2, 3), (7, 1), (7, 0)]:
        same_bits(*outcome(lambda xp, x, i: xp.take(x, i, axis=0), [values(dtype, shape), rows], native))
    same_bits(*outcome(lambda xp, x, i: xp.take(x, i[:0], axis=0), [values(dtype, (7, 5)), rows], native))
    same_bits(*outcome(lambda xp, x, i: xp.take(x, i, axis=1), [values(dtype, (5, 7)), rows], native, True))


@native_too
def test_rows_that_are_not_there_are_never_read(native):
    table, rows = numbers(F4, (7, 5)), np.array([1, 7, -8, 2])
    program, result = record(lambda xp, x, i: xp.take(x, i, axis=0), [table, rows], native)
    if not native:
        with pytest.raises(IndexError):
            program.run(0)
        return
    program.run(0)
    np.testing.assert_array_equal(result[[0, 3]], table[[1, 2]])
    assert np.isnan(result[1:3]).all()


@native_too
@pytest.mark.parametrize("dtype", ALL, ids=_id)
def test_take_along_axis(dtype, native):
    rng = np.random.default_rng(0)
    for shape, axis, count in [((6, 4), -1, 1), ((6, 4), 1, 7), ((6, 4), 0, 3), ((2, 3, 4), 1, 2), ((5,), 0, 9)]:
        length = shape[axis]
        index_shape = list(shape)
        index_shape[axis] = count
        indices = rng.integers(-length, length, index_shape)
        same_bits(
            *outcome(
                lambda xp, x, i, axis=axis: xp.take_along_axis(x, i, axis=axis), [values(dtype, shape), indices], native
            )
        )


@native_too
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("features", [1, 3, 200])
def test_scatter_add_adds_in_order(features, dtype, native):
    x, rows = numbers(dtype, (1000, features)), np.random.default_rng(0).integers(0, 9, 1000)
    program, result = record(lambda xp, x, i: BODIES["scatter_add"](x, i, 11)[0], [x, rows], native)
    program.run(0)
    wanted = np.zeros((11, features), dtype)
    for row, value in zip(rows, x, strict=True):
        wanted[row] += value
    same_bits(result, wanted)
    assert not native or is_native(program)


@native_too
def test_other_arrays_take_the_places_of_inputs(native):
    x, y = numbers(F4, (6, 8)), numbers(F8, (6,))

    def function(xp, x, y):
        return xp.sum(x.T[2:5, :] * y, axis=0) + y[1]

    program, result = record(function, [x, y], native)
    for seed in (1, 2):
        given = [numbers(F4, (6, 8), seed), numbers(F8, (6,), seed)]
        for number, array in enumerate(given):
            program.bind(number, array)
        program.run(0)
        np.testing.assert_allclose(result, function(np, *given), rtol=1e-13)


@native_too
def test_sums_of_totals(native):
    loss_sum, weight_sum, value = np.array(0.5), np.array(3.0), np.array(0.1, F4)
    recorder = Recorder()
    totals = [recorder.input(array) for array in (loss_sum, weight_sum)]
    recorded = recorder.input(value)
    for new, old in zip((totals[0] + recorded * 4.0, totals[1] + 4.0), totals, strict=True):
        recorder.call(COPY, new, old)
    program = Program(recorder, [loss_sum, weight_sum, value], native)
    assert not native or is_native(program)
    wanted = loss_sum + value * 4.0, weight_sum + 4.0
    program.run(0)
    assert (loss_sum, weight_sum) == wanted


@native_too
def test_constants_are_made_when_recording(native):
    x = numbers(F4, (3, 4))
    recorder = Recorder()
    given = recorder.input(x)
    for made in (NAMESPACE.zeros_like(given), NAMESPACE.full_like(given, 2.0), NAMESPACE.ones_like(given, dtype=F8)):
        assert made.memory.role == "constant"
    assert not recorder.instructions
    same_bits(*outcome(lambda xp, x: x + xp.ones_like(x), [x], native))


def test_arrays_given_by_keyword_are_refused():
    x = Recorder().input(np.ones(3))
    with pytest.raises(RecordingError, match="by position"):
        NAMESPACE.sum(x, where=x > 0)


@native_too
def test_a_large_call_that_is_split(native):
    x, y = numbers(F4, (500, 300)), numbers(F8, (300,))
    same_bits(*outcome(lambda xp, x, y: x.T * y[:, None], [x, y], native))
    same_bits(*outcome(lambda xp, x, y: xp.max(x, axis=0), [x, y], native))
    same_bits(*outcome(lambda xp, x, y: xp.reshape(x, (-1,)) * 2.0, [x, y], native))


@native_too
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_generated_calls(native, data):
    """Any view of any array against any other that it can be broadcast with."""
    rank = data.draw(st.integers(0, 3))
    shape = tuple(data.draw(st.integers(0, 5)) for _ in range(rank))
    order = data.draw(st.permutations(range(rank)))
    other = tuple(1 if data.draw(st.booleans()) else shape[axis] for axis in order)
    skip = data.draw(st.integers(0, rank))
    dtypes = data.draw(st.tuples(st.sampled_from(ALL), st.sampled_from(ALL)))
    name = data.draw(st.sampled_from(["multiply", "less_equal"]))
    arrays = [values(dtypes[0], shape), values(dtypes[1], other[skip:], 3)]

    def function(xp, x, y):
        return getattr(xp, name)(xp.permute_dims(x, order), y)

    empty = 0 in shape  # a view of nothing is not known as a view
    same_bits(*outcome(function, arrays, native, empty))
    axis = data.draw(st.sampled_from([None, *range(rank)]))
    for reduction in ("sum", "any"):

        def function(xp, x, y, reduction=reduction):
            return getattr(xp, reduction)(xp.permute_dims(x, order), axis=axis)

        whole = numbers(I8, shape).astype(dtypes[0])
        same_bits(*outcome(function, [whole, arrays[1]], native, empty or axis == 1))
