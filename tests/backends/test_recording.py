"""Recording on NumPy: what stand-ins can do, what they refuse, and the numbers of the step."""

import math
import operator

import numpy as np
import pytest

import xpnn
from xpnn import schedules
from xpnn.dispatch import namespace
from xpnn_backends.numpy_backend import NumpyBackend
from xpnn_backends.program import KEEP, Program
from xpnn_backends.recording import NAMESPACE, RecordedArray, Recorder, RecordingError

assert NumpyBackend  # it makes recorded arrays known to the dispatch table

X = np.array([[1.5, -2.0, 3.0], [0.5, 4.0, -1.0]])
Y = np.array([[2.0, 2.0, -1.0], [3.0, 0.5, 1.0]])
WHOLE = np.array([[5, -7, 3], [2, 9, -4]])
OTHER = np.array([[2, 3, -2], [1, 4, 3]])
TRUE = np.array([[True, False, True], [False, False, True]])
FALSE = np.array([[True, True, False], [False, True, False]])


def replayed(function, *arrays):
    """(what the program of function(*stand-ins) gives, what the function gives for the arrays)."""
    recorder = Recorder()
    result = function(*map(recorder.input, arrays))
    assert isinstance(result, RecordedArray)
    recorder.call(KEEP, result)
    program = Program(recorder, arrays, False)
    program.run(0)
    return program.array(result), np.asarray(function(*arrays))


def same(result, wanted):
    assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(result, wanted)


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]
COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
BITWISE = [operator.and_, operator.or_, operator.xor]
BINARY = [
    *((each, X, Y) for each in (*ARITHMETIC, operator.truediv, *COMPARISONS)),
    *((each, WHOLE, OTHER) for each in (*ARITHMETIC, *COMPARISONS, *BITWISE)),
    *((each, TRUE, FALSE) for each in (*BITWISE, operator.eq, operator.ne)),
    (operator.pow, np.abs(X), Y),
    (operator.matmul, X, np.ascontiguousarray(Y.T)),
]


def _name(value):
    return getattr(value, "__name__", None) or (value.dtype.name if isinstance(value, np.ndarray) else None)


@pytest.mark.parametrize(("operation", "x", "y"), BINARY, ids=_name)
def test_operators_between_arrays(operation, x, y):
    same(*replayed(operation, x, y))
    # an array of NumPy's own, on either side, is a constant of the step
    same(*replayed(lambda given: operation(given, y), x))
    same(*replayed(lambda given: operation(x, given), y))


@pytest.mark.parametrize(("operation", "x", "_"), BINARY[:-1], ids=_name)
def test_operators_with_python_numbers(operation, x, _):
    numbers = {"f": [2.0, 3, 0.5], "i": [3, 1], "b": [True, False]}[x.dtype.kind]
    x = np.abs(x) if operation is operator.pow or x.dtype.kind == "i" else x
    for number in numbers:
        same(*replayed(lambda given, number=number: operation(given, number), x))
        same(*replayed(lambda given, number=number: operation(number, given), x + x.dtype.type(0.25)))


@pytest.mark.parametrize(
    ("operation", "x"),
    [
        *((operator.neg, x) for x in (X, WHOLE)),
        *((operator.pos, x) for x in (X, WHOLE)),
        *((operator.abs, x) for x in (X, WHOLE)),
        *((operator.invert, x) for x in (WHOLE, TRUE)),
    ],
    ids=_name,
)
def test_operators_of_one_array(operation, x):
    same(*replayed(operation, x))


def test_updating_operators_are_refused():
    x = Recorder().input(X)
    for operation in (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow):
        with pytest.raises(RecordingError, match="changed in place"):
            operation(x, 2.0)


def test_an_operand_of_another_kind_is_a_type_error():
    x = Recorder().input(X)
    for other in ("text", None, [1, 2], object()):
        with pytest.raises(TypeError):
            x + other
        with pytest.raises(TypeError):
            other - x


def test_attributes_are_those_of_the_array():
    for array in (X, X.astype(np.float32), np.array(3), np.zeros((0, 4)), np.zeros((2, 3, 4))):
        stand_in = Recorder().input(array)
        for name in ("shape", "ndim", "size", "dtype"):
            assert getattr(stand_in, name) == getattr(array, name)
        assert namespace(stand_in) is stand_in.__array_namespace__() is NAMESPACE
    assert stand_in.device is None
    assert len(stand_in) == 2
    assert stand_in.mT.shape == (2, 4, 3)


METHODS = {
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "reshape": lambda x: x.reshape((3, 2)),
    "reshape of a transposed view": lambda x: x.T.reshape((6,)),
    "rows in turn": lambda x: sum(x),
    "unpacking": lambda x: (lambda first, second: first - second)(*x),
    "number": lambda x: x[1],
    "negative numbers": lambda x: x[-1, -2],
    "slice": lambda x: x[:, 1:],
    "step": lambda x: x[:, ::2],
    "reversed": lambda x: x[::-1, ...],
    "new axis": lambda x: x[None, :, None, 0],
    "ellipsis": lambda x: x[..., 1],
    "beyond the end": lambda x: x[:, 1:99],
    "nothing": lambda x: x[:0, :],
    "view of a view": lambda x: x.T[1:, :][:, 0],
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_and_indices(method):
    for x in (X, WHOLE, TRUE[:, [0, 1, 2]]):
        if x.dtype == bool and method in (METHODS["rows in turn"], METHODS["unpacking"]):
            continue
        result, wanted = replayed(lambda x: method(x), np.ascontiguousarray(x))
        same(result, wanted)
        copied, _ = replayed(lambda x: namespace(x).concat([method(x)[None], method(x)[None]]), np.ascontiguousarray(x))
        np.testing.assert_array_equal(copied, np.stack([wanted, wanted]))


FUNCTIONS = {
    "cumulative_sum": lambda xp, x: xp.cumulative_sum(x, axis=1),
    "std": lambda xp, x: xp.std(x, axis=0),
    "var": lambda xp, x: xp.var(x, axis=0, correction=1),
    "clip": lambda xp, x: xp.clip(x, -1.0, 1.0),
    "roll": lambda xp, x: xp.roll(x, 1, axis=1),
    "tile": lambda xp, x: xp.tile(x, (2, 1)),
    "repeat": lambda xp, x: xp.repeat(x, 3, axis=0),
    "sort": lambda xp, x: xp.sort(x, axis=-1),
    "argsort": lambda xp, x: xp.argsort(x, axis=0),
    "tril": lambda xp, x: xp.tril(x),
    "squeeze": lambda xp, x: xp.squeeze(xp.expand_dims(x, axis=1), axis=1),
    "moveaxis": lambda xp, x: xp.moveaxis(x, 0, 1),
    "permute_dims": lambda xp, x: xp.permute_dims(x, (1, 0)),
    "broadcast_to": lambda xp, x: xp.broadcast_to(x, (4, 2, 3)) + 1.0,
    "tensordot": lambda xp, x: xp.tensordot(x, x, axes=((0,), (0,))),
    "vecdot": lambda xp, x: xp.vecdot(x, x),
    "searchsorted": lambda xp, x: xp.searchsorted(xp.arange(-2.0, 3.0), x),
    "count_nonzero": lambda xp, x: xp.count_nonzero(x > 0, axis=1),
    "hypot": lambda xp, x: xp.hypot(x, 2.0),
    "diff": lambda xp, x: xp.diff(x, axis=1),
    "astype": lambda xp, x: xp.astype(x, xp.float32),
    "asarray": lambda xp, x: xp.asarray(x, dtype=xp.float32),
    "matrix_transpose": lambda xp, x: xp.matrix_transpose(x),
    "logical": lambda xp, x: xp.logical_and(x > 0, xp.isfinite(x)),
    "result_type": lambda xp, x: xp.zeros(3, dtype=xp.result_type(x, xp.float32)) + x,
    "isdtype": lambda xp, x: x * (2.0 if xp.isdtype(x.dtype, "real floating") else 3.0),
    "finfo": lambda xp, x: x * float(xp.finfo(x.dtype).eps),
    "pi": lambda xp, x: x * xp.pi,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_the_standard(function):
    same(*replayed(lambda x: function(namespace(x), x), X))


REFUSALS = {
    "bool": (lambda xp, x: 1 if x[0, 0] > 0 else 2, "branch depends on the values"),
    "any": (lambda xp, x: not xp.any(x > 0), "branch depends on the values"),
    "in": (lambda xp, x: 3.0 in x, "branch depends on the values"),
    "float": (lambda xp, x: float(x[0, 0]), "read by Python"),
    "int": (lambda xp, x: int(x[0, 0]), "read by Python"),
    "complex": (lambda xp, x: complex(x[0, 0]), "read by Python"),
    "range": (lambda xp, x: range(xp.sum(x)), "read by Python"),
    "math": (lambda xp, x: math.sqrt(x[0, 0]), "read by Python"),
    "format": (lambda xp, x: f"{float(x[0, 0]):.2f}", "read by Python"),
    "asarray": (lambda xp, x: np.asarray(x), "not of the array's namespace"),
    "array": (lambda xp, x: np.array(x), "not of the array's namespace"),
    "stack of NumPy's": (lambda xp, x: np.linalg.norm(x), "not of the array's namespace"),
    "list": (lambda xp, x: x[[0, 1]], "use xp.take"),
    "mask": (lambda xp, x: x[x > 0], "use xp.take"),
    "array of indices": (lambda xp, x: x[np.array([0, 1])], "use xp.take"),
    "bool as an index": (lambda xp, x: x[True], "use xp.take"),
    "nonzero": (lambda xp, x: xp.nonzero(x), "nonzero gives depends on values"),
    "unique": (lambda xp, x: xp.unique_values(x), "unique_values gives depends on values"),
    "linalg": (lambda xp, x: xp.linalg.norm(x), "xp.linalg"),
    "keyword": (lambda xp, x: xp.sum(x, where=x > 0), "by position"),
    "several": (lambda xp, x: xp.unstack(x), "gives several arrays"),
    "broadcast_arrays": (lambda xp, x: xp.broadcast_arrays(x, x[0]), "gives several arrays"),
}


@pytest.mark.parametrize(("function", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_reads_values_or_makes_shapes_of_them_is_refused(function, message):
    with pytest.raises(RecordingError, match=message):
        function(NAMESPACE, Recorder().input(X))


def test_what_has_no_meaning_for_a_stand_in_is_an_error_of_python():
    recorder = Recorder()
    x = recorder.input(X)
    for function in (np.sin, hash):
        with pytest.raises(TypeError):
            function(x)
    with pytest.raises(TypeError):
        x[0] = 1.0
    with pytest.raises(IndexError):
        x[2]
    with pytest.raises(ValueError, match="broadcast"):
        x + recorder.input(np.ones(4))
    with pytest.raises(AttributeError):
        NAMESPACE.no_such_function(x)


def test_errors_of_shape_are_those_of_numpy_when_recording():
    recorder = Recorder()
    with pytest.raises(ValueError, match="matmul"):
        recorder.input(X) @ recorder.input(Y)
    assert not recorder.instructions


# The numbers of the step.

STEPS = [0, 1, 2, 3, 6, 7, 10, 99, 100_000]


def number_at(function, steps):
    """The recorded number function(step), for each step."""
    recorder = Recorder()
    one = np.ones(1)
    result = recorder.input(one) * function(recorder.step)
    recorder.call(KEEP, result)
    program = Program(recorder, [one], False)
    found = []
    for step in steps:
        program.run(step)
        found.append(float(program.array(result)[0]))
    return found


NUMBERS = {
    "sum": lambda step: step + 1.5 + step,
    "difference": lambda step: 3 - step - 0.5,
    "product": lambda step: 0.1 * step * 3,
    "quotients": lambda step: (step / 7) + 5 / (step + 1),
    "floor": lambda step: step // 3 + 1000 // (step + 1),
    "remainder": lambda step: step % 4 + 17 % (step + 3),
    "powers": lambda step: 0.9**step + (step + 1) ** 0.5 + (step + 2) ** -1,
    "power of numbers": lambda step: 0.99 ** (step * 0.1),
    "signs": lambda step: -step + +step + abs(3 - step),
    "bits": lambda step: (step & 6) + (step | 1) + (step ^ 3) + ~step,
    "comparisons": lambda step: sum(
        namespace(step).where(test, weight, 0.0)
        for weight, test in enumerate((step == 3, step != 3, step < 3, step <= 3, step > 3, step >= 3), 1)
    ),
    "bits of comparisons": lambda step: namespace(step).where((step > 2) & (step < 7), step, -1.0),
    "where of numbers": lambda step: namespace(step).where(step < 5, 0.1 * step, 1.0 / (step + 1)),
    "where of a constant": lambda step: namespace(step).where(True, step, 1.0),
    "minimum": lambda step: namespace(step).minimum(step, 6) + namespace(step).maximum(2, step),
    "functions": lambda step: (
        namespace(step).cos(step)
        + namespace(step).exp(-0.01 * step)
        + namespace(step).sqrt(step)
        + namespace(step).log1p(step)
        + namespace(step).floor(step / 2)
        + namespace(step).log(step + 1)
        + namespace(step).expm1(-step)
        + namespace(step).pi
    ),
    "the same number": lambda step: step,
}


@pytest.mark.parametrize("function", NUMBERS.values(), ids=NUMBERS)
def test_numbers_of_the_step(function):
    assert number_at(function, STEPS) == [float(function(step)) for step in STEPS]


SCHEDULES = [
    schedules.Constant(0.1),
    schedules.StepDecay(0.1, 3, 0.5),
    schedules.MultiStep(0.1, [2, 5, 50], 0.3),
    schedules.Exponential(0.1, 0.97),
    schedules.Polynomial(0.1, 40, 2.0, 0.01),
    schedules.Cosine(0.1, 40),
    schedules.CosineRestarts(0.1, 4, 2),
    schedules.Warmup(5, then=schedules.Cosine(0.1, 40)),
    schedules.OneCycle(0.1, 40),
    schedules.OneCycle(0.1, 40, warmup=0.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_give_the_rates_of_each_step(schedule):
    steps = [*range(45), 1000]
    assert number_at(schedule, steps) == [float(schedule(step)) for step in steps]


def test_every_schedule_is_in_the_table():
    assert {type(schedule) for schedule in SCHEDULES} == {
        getattr(schedules, name) for name in schedules.__all__ if name != "Schedule"
    }


NUMBER_REFUSALS = {
    "if": (lambda step: 1 if step > 3 else 2, "branch depends on the number of the step"),
    "and": (lambda step: step and 1, "branch depends on the number of the step"),
    "float": (float, "converted by Python"),
    "int": (int, "converted by Python"),
    "range": (range, "converted by Python"),
    "math": (math.sqrt, "converted by Python"),
    "index": (lambda step: [1, 2, 3][step], "converted by Python"),
    "slice": (lambda step: Recorder().input(X)[:step], "converted by Python"),
}


@pytest.mark.parametrize(("function", "message"), NUMBER_REFUSALS.values(), ids=NUMBER_REFUSALS)
def test_numbers_of_the_step_are_not_read_when_recording(function, message):
    with pytest.raises(RecordingError, match=message):
        function(Recorder().step)


def test_arrays_and_numbers_of_the_step():
    def function(x, step):
        xp = namespace(x)
        return xp.where(x > 0, x * step, step - x) + xp.full_like(x, 0.5 * step) / (1.0 + step)

    recorder = Recorder()
    result = function(recorder.input(X), recorder.step)
    recorder.call(KEEP, result)
    program = Program(recorder, [X], False)
    for step in (0, 5, 6):
        program.run(step)
        np.testing.assert_array_equal(program.array(result), function(X, float(step)))


# Constants.


def test_what_is_computed_from_constants_is_computed_when_recording():
    recorder = Recorder()
    x = recorder.input(X)
    xp = namespace(x)
    made = [
        xp.zeros_like(x),
        xp.ones((2, 3)),
        xp.arange(3.0) * 2.0,
        xp.exp(xp.ones(3))[1:],
        xp.where(xp.arange(3) > 1, xp.zeros(3), xp.ones(3)),
        xp.concat([xp.zeros(2), xp.ones(2)]),
    ]
    wanted = [
        np.zeros_like(X),
        np.ones((2, 3)),
        np.arange(3.0) * 2.0,
        np.exp(np.ones(3))[1:],
        np.array([1.0, 1.0, 0.0]),
        np.array([0.0, 0.0, 1.0, 1.0]),
    ]
    assert not recorder.instructions
    program = Program(recorder, [X], False)
    for mine, theirs in zip(made, wanted, strict=True):
        same(program.array(mine), theirs)


def test_a_constant_is_a_copy():
    outside = np.ones(3)
    recorder = Recorder()
    result = recorder.input(X) + outside
    recorder.call(KEEP, result)
    outside[:] = 7.0
    program = Program(recorder, [X], False)
    for _ in range(2):
        program.run(0)
        same(program.array(result), X + 1.0)


def test_ops_run_on_stand_ins_as_on_arrays():
    recorder = Recorder()
    y, vjp = xpnn.ops.tanh(recorder.input(X))
    (dx,) = vjp(recorder.input(Y))
    recorder.call(KEEP, y, dx)
    program = Program(recorder, [X, Y], False)
    program.run(0)
    wanted, wanted_vjp = xpnn.ops.tanh(X)
    np.testing.assert_allclose(program.array(y), wanted, rtol=1e-14)
    np.testing.assert_allclose(program.array(dx), wanted_vjp(Y)[0], rtol=1e-14)
