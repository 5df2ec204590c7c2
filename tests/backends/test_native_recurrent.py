"""Recurrent networks in recorded steps, on NumPy and natively, against the generic bodies."""

import ctypes

import numpy as np
import pytest

import xpnn_backends.numpy_backend  # noqa: F401 (makes recorded arrays known)
from xpnn import dispatch, ops
from xpnn.errors import ShapeError
from xpnn_backends import kernels_recurrent
from xpnn_backends.compiled_step import RecordedCall
from xpnn_backends.fast import why_not
from xpnn_backends.recording import RecordedArray, Recorder

native_too = pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

# op -> (gates, biases, states)
_OPS = {"lstm": (4, 1, 2), "gru": (3, 2, 1), "rnn": (1, 1, 1)}
every_op = pytest.mark.parametrize("op", _OPS)


@pytest.fixture(autouse=True)
def _with_numba(request):
    wanted = getattr(request.node, "callspec", None) and request.node.callspec.params.get("native", False)
    if wanted and why_not():
        pytest.skip(why_not())


class _Example:
    """Arguments of an op, and cotangents of its results.

    Args:
        op: its name.
        batch, time, units: the sizes.
        dtype: of all arrays.
        masked: True for a mask; the first sample has no steps, the second one only its last.
        given: False leaves out biases and initial states.
        cotangents: which results have one: that of y, and those of the last states.
        settings: of the op.
    """

    def __init__(
        self, op, batch, time, units, dtype, masked=False, given=True, cotangents=(True, True), features=5, **settings
    ):
        generator = np.random.default_rng(7)

        def draw(*shape):
            return generator.normal(size=shape).astype(dtype)

        gates, biases, states = _OPS[op]
        x = draw(batch, time, features)
        weights = draw(features, gates * units), draw(units, gates * units) / max(units, 1) ** 0.5
        weights = tuple(weight.astype(dtype) for weight in weights)
        optional = [draw(gates * units) for _ in range(biases)] + [draw(batch, units) for _ in range(states)]
        if not given:
            optional = [None] * len(optional)
        mask = None
        if masked:
            mask = generator.uniform(size=(batch, time)) < 0.6
            mask[:1] = False
            mask[1:2, :-1], mask[1:2, -1:] = False, True
        arguments = (x, *weights, *optional, mask)
        self.arrays = tuple(argument for argument in arguments if argument is not None)
        self._there = [argument is not None for argument in arguments]
        every = [draw(batch, time, units)] + [draw(batch, units) for _ in range(states)]
        wanted = [cotangents[0]] + [cotangents[1]] * states
        self.cotangents = tuple(dy for dy, there in zip(every, wanted, strict=True) if there)
        self._wanted = wanted
        self._function = getattr(ops, op)
        self._settings = settings
        self.dtype = dtype
        self.terms = max(features, units) * max(batch * time, 1)

    def everything(self, *arrays):
        """(results, gradients) for all arrays and cotangents."""
        given = iter(arrays)
        arguments = [next(given) if there else None for there in self._there]
        value, vjp = self._function(*arguments, **self._settings)
        return value, vjp(tuple(next(given) if there else None for there in self._wanted))

    def check(self, native):
        """The recorded op gives what its generic body gives."""
        given = self.arrays + self.cotangents
        results, gradients = RecordedCall(self.everything, given, native)()
        with dispatch.without_overrides():
            wanted_results, wanted_gradients = self.everything(*given)
        for got, want in zip((*results, *gradients), (*wanted_results, *wanted_gradients), strict=True):
            assert (got is None) == (want is None)
            if want is not None:
                self._assert_close(got, want)

    def _assert_close(self, got, want):
        """Equal but for the roundings of a sum of so many terms."""
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        scale = max(1.0, float(np.abs(want).max(initial=0.0)))
        np.testing.assert_allclose(got, want, rtol=0, atol=16 * np.finfo(self.dtype).eps * scale * self.terms**0.5)


@native_too
@both_dtypes
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("batch", "time", "units"), [(3, 7, 5), (4, 5, 16), (1, 7, 8), (33, 3, 19)])
@every_op
def test_a_scan_is_that_of_its_op(op, batch, time, units, masked, reverse, dtype, native):
    _Example(op, batch, time, units, dtype, masked=masked, reverse=reverse).check(native)


@native_too
@pytest.mark.parametrize(("batch", "time"), [(0, 4), (3, 0), (2, 1)])
@every_op
def test_short_sequences_and_small_batches(op, batch, time, native):
    _Example(op, batch, time, 4, "float64").check(native)


@native_too
@pytest.mark.parametrize("cotangents", [(True, False), (False, True)], ids=["of-outputs", "of-states"])
@pytest.mark.parametrize("input_gradient", [True, False])
@every_op
def test_what_is_left_out(op, input_gradient, cotangents, native):
    settings = {"cotangents": cotangents, "input_gradient": input_gradient}
    _Example(op, 3, 6, 4, "float64", given=False, **settings).check(native)


@native_too
@both_dtypes
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_relu_as_activation(masked, dtype, native):
    _Example("rnn", 5, 6, 16, dtype, masked=masked, activation="relu").check(native)


@native_too
@every_op
def test_wide_layers(op, native):
    _Example(op, 32, 2, 128, "float32", features=3).check(native)


@native_too
@every_op
def test_one_kernel_takes_all_steps(op, native):
    example = _Example(op, 4, 9, 4, "float32")
    recorder = Recorder()
    example.everything(*map(recorder.input, example.arrays + example.cotangents))
    names = [instruction.kernel.name for instruction in recorder.instructions]
    assert names.count(f"{op}_scan") == names.count(f"{op}_scan_gradient") == 1
    assert len(names) < 16


@native_too
@pytest.mark.parametrize("number", [-1e4, 1e4])
@every_op
def test_gates_far_from_zero_are_open_or_closed(op, number, native):
    example = _Example(op, 2, 3, 4, "float32")
    arrays = (np.full_like(example.arrays[0], number), np.ones_like(example.arrays[1]), *example.arrays[2:])
    results, gradients = RecordedCall(example.everything, arrays + example.cotangents, native)()
    with dispatch.without_overrides():
        wanted, _ = example.everything(*arrays, *example.cotangents)
    for got, want in zip(results, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    for gradient in gradients:
        assert gradient is None or np.isfinite(gradient).all()


@native_too
@every_op
def test_a_nan_stays_in_its_sample(op, native):
    example = _Example(op, 3, 4, 4, "float32", input_gradient=False)
    example.arrays[0][1, 2, 0] = np.nan
    (y, *last), _ = RecordedCall(example.everything, example.arrays + example.cotangents, native)()
    assert np.isnan(y[1, 2:]).all()
    assert all(np.isnan(state[1]).all() for state in last)
    assert np.isfinite(y[1, :2]).all()
    assert np.isfinite(y[::2]).all()


@native_too
@every_op
def test_shapes_that_do_not_fit_are_refused(op, native):
    example = _Example(op, 3, 4, 4, "float32", given=False)
    x, weight_input, weight_hidden = example.arrays
    with pytest.raises(ShapeError, match=f"{op}: weight_input"):
        RecordedCall(example.everything, (x, weight_input[1:], weight_hidden, *example.cotangents), native)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("rows", "depth", "columns", "blocks"),
    [(32, 128, 512, 4), (32, 512, 128, 4), (3, 5, 7, 1), (32, 128, 384, 4), (600, 512, 128, 1), (32, 1024, 33, 1)],
)
def test_a_product_in_blocks_is_the_product(rows, depth, columns, blocks, dtype):
    generator = np.random.default_rng(3)
    given, weight = (generator.integers(-3, 4, size).astype(dtype) for size in ((rows, depth), (columns, depth)))
    made = np.full((rows, columns), np.nan, dtype)
    product = kernels_recurrent._Product(weight.T, made)
    product(given)
    np.testing.assert_array_equal(made, given @ weight.T)
    assert len(product._weight) == blocks


# ----------------------------------------------------------------------------------------------------------------------
# parts


def _in_parts(example, parts):
    """All results, when each scan runs as so many parts, one by one, the last one first; other kernels run whole."""
    from xpnn_backends.native import machine, recurrent, registry

    assert recurrent in machine.FAMILIES
    recorder = Recorder()
    given = example.arrays + example.cotangents
    inputs = [recorder.input(x) for x in given]
    results, gradients = example.everything(*inputs)
    real = {recorded.memory: x for recorded, x in zip(inputs, given, strict=True)}

    def found(operand):
        if operand.memory.role == "constant":
            return operand.ghost
        if operand.memory not in real:
            real[operand.memory] = np.full(operand.memory.ghost.shape, np.nan, operand.dtype)
        return real[operand.memory]

    split = 0
    for kernel, operands in recorder.instructions:
        name, given = kernel.native(*operands) if callable(kernel.native) else (kernel.native, operands)
        declared = registry.KERNELS[name]
        words = []
        for token, operand in zip(declared.operands.split(), given, strict=True):
            if token == "int":
                words.append(operand)
            else:
                assert isinstance(operand, RecordedArray)
                words += [found(operand).ctypes.data, *(operand.shape if token.endswith(":2") else (operand.size,))]
        block = np.array(words, np.int64)
        call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(registry.compiled(name, "f4").address)
        here = parts if declared.function.__module__ == recurrent.__name__ else 1
        split += here > 1
        for part in reversed(range(here)):
            call(block.ctypes.data, part, here)
    assert split == (4 if parts > 1 else 0), "two scans, and the packing of the weights before each"
    return [found(x).copy().reshape(x.shape) for x in (*results, *gradients) if x is not None]


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize(("batch", "units"), [(1, 16), (5, 19), (32, 16)])
@every_op
def test_the_number_of_parts_changes_no_bit(op, batch, units, parts):
    example = _Example(op, batch, 4, units, "float32", masked=batch == 5)
    for one, many in zip(_in_parts(example, 1), _in_parts(example, parts), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, many)
