"""Recording a training step, so that it can be run again without its Python code.

xpnn's layers, losses and optimizers read no value and change no argument: for given shapes they always make the same
calls in the same order. A `Recorder` writes these calls down, once, while the step runs on stand-ins for its arrays;
`program.Program` then makes them again and again, on memory that was laid out beforehand. It is what a CUDA graph is
on a GPU.

A stand-in (`RecordedArray`) has shape, dtype and strides, and no values: it owns address space that is never
touched. Views of it are made by NumPy itself. The step number is a `RecordedNumber`: what is computed from it, such as
a learning rate, is computed by Python in each step.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpnn import numbers
from xpnn.dispatch import Body, Kind, register_kind


class RecordingError(Exception):
    """The step does something that cannot be recorded; it then runs as it is."""


class Memory:
    """A piece of memory that a program needs.

    Attributes:
        ghost: an array of bytes that stands for it while recording.
        role: "scratch" (given up after its last use), "kept" (zero before the first run, and used by nothing else),
            "input" (bound to an array of the caller's), or "constant".
        number: of an input: which one.
        value: of a constant: its array.
        inside: (memory, offset in bytes) if it lies within another piece, else None.
    """

    __slots__ = ("ghost", "inside", "number", "role", "value")

    def __init__(self, ghost: Any, role: str, number: int = -1, value: Any = None) -> None:
        self.ghost = ghost
        self.role = role
        self.number = number
        self.value = value
        self.inside: tuple[Memory, int] | None = None

    def place(self) -> tuple[Memory, int]:
        """(the piece that is not inside another, offset in it)."""
        memory, offset = self, 0
        while memory.inside is not None:
            outer, start = memory.inside
            memory, offset = outer, offset + start
        return memory, offset


class Kernel(NamedTuple):
    """What an instruction runs.

    Attributes:
        name: for listings.
        function: function(*operands) on NumPy arrays; it writes its results into some of them.
        native: the name of a native kernel with the same operands; or a function of the operands that gives (name,
            operands), or None where there is none; or None.
        writes: the positions of the operands that it writes into.
    """

    name: str
    function: Callable[..., Any]
    native: Any = None
    writes: tuple[int, ...] = (-1,)


class Instruction(NamedTuple):
    """One call: of a kernel with operands that are recorded arrays, recorded numbers, or settings."""

    kernel: Kernel
    operands: tuple[Any, ...]


class RecordedNumber:
    """A Python number that differs from step to step; `function` of the numbers `operands`.

    The number of the step has no function. `ghost` is a number of its type: what stands for it while recording.
    """

    __array_ufunc__ = None  # so that an array on the left leaves the operation to the number

    def __init__(self, recorder: Recorder, function: Callable[..., Any] | None = None, *operands: Any) -> None:
        self.recorder = recorder
        self.function = function
        self.operands = operands
        self.index = len(recorder.numbers)
        self.ghost: Any = 1
        if function is not None:
            ghosts = [operand.ghost if isinstance(operand, RecordedNumber) else operand for operand in operands]
            try:
                self.ghost = type(function(*ghosts))(1)
            except (ArithmeticError, ValueError):  # the formula does not hold for these numbers
                self.ghost = 1.0
        recorder.numbers.append(self)

    def _apply(self, function: Callable[..., Any], *operands: Any) -> Any:
        if not all(isinstance(operand, (RecordedNumber, bool, int, float)) for operand in operands):
            return NotImplemented
        return RecordedNumber(self.recorder, function, *operands)

    def __bool__(self) -> bool:
        raise RecordingError("a branch depends on the number of the step")

    def __float__(self) -> float:
        raise RecordingError("the number of the step is converted by Python")

    __int__ = __index__ = __float__
    __hash__ = None  # type: ignore[assignment]


class RecordedArray:
    """The stand-in for an array: all that can be done with an array of the standard, but for reading its values."""

    __array_ufunc__ = None  # NumPy's own functions refuse it
    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("ghost", "memory", "recorder")

    def __init__(self, recorder: Recorder | None, memory: Memory, ghost: Any) -> None:
        self.recorder = recorder  # None for a constant
        self.memory = memory
        self.ghost = ghost

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.ghost.shape)

    @property
    def ndim(self) -> int:
        return int(self.ghost.ndim)

    @property
    def size(self) -> int:
        return int(self.ghost.size)

    @property
    def dtype(self) -> Any:
        return self.ghost.dtype

    @property
    def device(self) -> None:
        return None

    @property
    def T(self) -> RecordedArray:  # noqa: N802
        return self.view(self.ghost.T)

    @property
    def mT(self) -> RecordedArray:  # noqa: N802
        return self.view(self.ghost.mT)

    @property
    def is_whole(self) -> bool:
        """True if it is all of its memory, in C order."""
        return bool(self.ghost.flags.c_contiguous and self.ghost.nbytes == self.memory.ghost.nbytes)

    @property
    def offset(self) -> int:
        """Where it begins in its memory, in bytes."""
        return int(_address(self.ghost) - _address(self.memory.ghost))

    def view(self, ghost: Any) -> RecordedArray:
        """The part of this array that `ghost` is of its ghost."""
        return RecordedArray(self.recorder, self.memory, ghost)

    def reshape(self, shape: tuple[int, ...]) -> RecordedArray:
        """As `numpy.reshape`."""
        found: RecordedArray = NAMESPACE.reshape(self, shape)
        return found

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return NAMESPACE

    def __getitem__(self, index: Any) -> RecordedArray:
        parts = index if isinstance(index, tuple) else (index,)
        if not all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts):
            raise RecordingError("an array is indexed by something else than numbers and slices; use xp.take")
        return self.view(np.asarray(self.ghost[(*parts, ...)] if Ellipsis not in parts else self.ghost[index]))

    def __bool__(self) -> bool:
        raise RecordingError("a branch depends on the values of an array")

    def __float__(self) -> float:
        raise RecordingError("the value of an array is read by Python")

    __int__ = __index__ = __complex__ = __float__

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RecordingError(f"a NumPy function is called that is not of the array's namespace, or {_KEPT}")

    def __len__(self) -> int:
        return len(self.ghost)

    def __iter__(self) -> Any:
        return (self[position] for position in range(len(self)))


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "pow",
    "matmul": "matmul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}
"""Python's operators -> the standard's functions."""

_UNARY_OPERATORS = {"neg": "negative", "pos": "positive", "abs": "abs", "invert": "bitwise_invert"}


def _refuse_in_place(*_: Any) -> Any:
    raise RecordingError("an array is changed in place; write y = y + x instead of y += x")


def _add_operators() -> None:
    """Give recorded arrays and numbers Python's operators."""

    def of_array(function: str, swapped: bool) -> Any:
        def method(self: RecordedArray, other: Any) -> Any:
            if not isinstance(other, (RecordedArray, RecordedNumber, np.ndarray, np.generic, bool, int, float)):
                return NotImplemented
            return getattr(NAMESPACE, function)(*((other, self) if swapped else (self, other)))

        return method

    def of_number(function: Callable[..., Any], swapped: bool) -> Any:
        def method(self: RecordedNumber, other: Any) -> Any:
            return self._apply(function, *((other, self) if swapped else (self, other)))

        return method

    for name, function in _OPERATORS.items():
        by_python = getattr(operator, {"and": "and_", "or": "or_"}.get(name, name))
        setattr(RecordedArray, f"__{name}__", of_array(function, False))
        setattr(RecordedNumber, f"__{name}__", of_number(by_python, False))
        if name not in ("eq", "ne", "lt", "le", "gt", "ge"):
            setattr(RecordedArray, f"__r{name}__", of_array(function, True))
            setattr(RecordedNumber, f"__r{name}__", of_number(by_python, True))
        if f"__i{name}__" in dir(operator):
            setattr(RecordedArray, f"__i{name}__", _refuse_in_place)
    for name, function in _UNARY_OPERATORS.items():
        setattr(RecordedArray, f"__{name}__", lambda self, function=function: getattr(NAMESPACE, function)(self))
        by_python = getattr(operator, name)
        setattr(RecordedNumber, f"__{name}__", lambda self, by_python=by_python: self._apply(by_python, self))


_KEPT = "a layer has kept an array from an earlier call; layers hold settings only, so compute it anew in each call"


class Recorder:
    """What is written down while a step runs on stand-ins.

    Attributes:
        instructions: the calls, in order.
        numbers: all recorded numbers, each after those that it is computed from; the first is the number of the step.
        inputs: the memory of each input.
        finished: True when the step has been recorded.
    """

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.numbers: list[RecordedNumber] = []
        self.inputs: list[Memory] = []
        self.finished = False
        self.step = RecordedNumber(self)

    def input(self, array: Any) -> RecordedArray:
        """The stand-in for an array of the caller's; in C order."""
        ghost = np.zeros(array.shape, array.dtype)
        memory = Memory(ghost, "input", len(self.inputs))
        self.inputs.append(memory)
        return RecordedArray(self, memory, ghost)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> RecordedArray:
        """A new array; whoever asks for it writes down how it is filled."""
        ghost = np.zeros(shape, dtype)
        return RecordedArray(self, Memory(ghost, "scratch"), ghost)

    def kept(self, shape: tuple[int, ...], dtype: Any) -> RecordedArray:
        """An array that is zero before the first run, and whose memory nothing else uses."""
        made = self.empty(shape, dtype)
        made.memory.role = "kept"
        return made

    def call(self, kernel: Kernel, *operands: Any) -> None:
        """Write down the call of a kernel."""
        if self.finished:
            raise RecordingError(_KEPT)
        self.instructions.append(Instruction(kernel, operands))

    def contiguous(self, x: Any) -> RecordedArray:
        """x in C order."""
        if not isinstance(x, RecordedArray):
            return constant(x)
        if x.ghost.flags.c_contiguous:
            return x
        copy = self.empty(x.shape, x.dtype)
        self.call(COPY, x, copy)
        return copy

    def reshape(self, x: RecordedArray, shape: tuple[int, ...]) -> RecordedArray:
        """x with another shape."""
        return x.reshape(shape)

    def put_inside(self, x: Any, outer: RecordedArray, start: int) -> None:
        """See to it that x is found in `outer` (one axis, kept) from element `start` on: made there, or copied."""
        whole = isinstance(x, RecordedArray) and x.is_whole and x.memory.inside is None
        if whole and x.memory.role == "scratch":
            x.memory.inside = (outer.memory, start * outer.ghost.itemsize)
        else:
            self.call(COPY, self.reshape(self.contiguous(x), (math.prod(x.shape),)), outer[start : start + x.size])


def constant(value: Any) -> RecordedArray:
    """An array that is the same in every step."""
    array = np.array(value, order="C")
    return RecordedArray(None, Memory(array, "constant", value=array), array)


def _native(name: str) -> Callable[..., Any]:
    """The function of `primitives` of that name: that module needs this one."""

    def translate(*operands: Any) -> Any:
        from xpnn_backends import primitives

        return getattr(primitives, name)(*operands)

    return translate


def _copy(x: Any, out: Any) -> None:
    np.copyto(out, x, casting="unsafe")


COPY = Kernel("copy", _copy, _native("copy"))
"""copy(x, out): x, converted to the dtype of `out`."""


class _Namespace:
    """The array-API namespace of recorded arrays: each function is NumPy's, written down instead of called."""

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(np, name)
        if name.startswith("_") or isinstance(attribute, type) or not callable(attribute):
            if name == "linalg":
                raise RecordingError("functions of xp.linalg are not recorded")
            return attribute
        found = _recorded(name, attribute)
        setattr(self, name, found)
        return found


_FORBIDDEN = frozenset(
    {"argwhere", "extract", "flatnonzero", "from_dlpack", "nonzero", "unique", "unique_all", "unique_counts"}
    | {"unique_inverse", "unique_values"}
)
"""Functions whose result has a shape that depends on values."""

_OF_DTYPES = frozenset(
    {"broadcast_shapes", "can_cast", "finfo", "iinfo", "isdtype", "iscomplexobj", "isrealobj", "ndim", "result_type"}
    | {"shape", "size"}
)
"""Functions that give no array, and look only at shapes and dtypes."""

_LIKE = frozenset({"empty_like", "full_like", "ones_like", "zeros_like"})
"""Functions that look only at the shape and the dtype of an array."""

_WITH_OUT = frozenset(
    {"all", "any", "argmax", "argmin", "concat", "concatenate", "cumulative_sum", "cumsum", "max", "mean", "min"}
    | {"prod", "round", "stack", "std", "sum", "take", "var"}
)
"""Functions that are no ufuncs and can write into an array."""


def _recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a recorded array's namespace."""

    def call(*arguments: Any, **options: Any) -> Any:
        if name in _FORBIDDEN:
            raise RecordingError(f"the shape of what {name} gives depends on values")
        arguments = tuple(map(_with_constants, arguments))
        recorder: Recorder | None = None
        operands: list[RecordedArray | RecordedNumber] = []

        def ghost_of(argument: Any) -> Any:
            nonlocal recorder
            if isinstance(argument, RecordedArray):
                recorder = recorder or argument.recorder
                if argument.recorder not in (None, recorder):
                    raise RecordingError(_KEPT)
                operands.append(argument)
                return argument.ghost
            if isinstance(argument, RecordedNumber):
                recorder = argument.recorder
                operands.append(argument)
                return argument.ghost
            if isinstance(argument, (list, tuple)):
                return type(argument)([ghost_of(part) for part in argument])
            return argument

        ghosts = [ghost_of(argument) for argument in arguments]
        count = len(operands)
        for option in options.values():
            ghost_of(option)
        if len(operands) > count:
            raise RecordingError(f"{name} is given an array by keyword; give it by position")
        with np.errstate(all="ignore"):
            result = function(*ghosts, **options)
        if isinstance(result, (tuple, list)) and any(isinstance(part, np.ndarray) for part in result):
            raise RecordingError(f"{name} gives several arrays")
        if not isinstance(result, (np.ndarray, np.generic)):
            if operands and name not in _OF_DTYPES:
                raise RecordingError(f"{name} gives no array")
            return result
        if isinstance(function, np.ufunc) and len(arguments) > function.nin:
            raise RecordingError(f"{name} is given an array for its result")
        result = np.asarray(result)
        for operand in operands:
            if isinstance(operand, RecordedArray) and np.may_share_memory(result, operand.memory.ghost):
                return operand.view(result)
        if recorder is None or (name in _LIKE and len(operands) == 1):
            return constant(result)
        out = recorder.empty(result.shape, result.dtype)
        _write_down(recorder, name, function, arguments, options, out)
        return out

    call.__name__ = name
    return call


def _with_constants(argument: Any) -> Any:
    """NumPy's own arrays become constants: a program computes with what they hold now."""
    if isinstance(argument, (list, tuple)):
        return type(argument)([_with_constants(part) for part in argument])
    return constant(argument) if isinstance(argument, np.ndarray) else argument


def _maximum(x: Any, y: Any, out: Any) -> None:
    np.maximum(x, y, out=out)


def _minimum(x: Any, y: Any, out: Any) -> None:
    np.minimum(x, y, out=out)


_BY_KEYWORD: dict[Any, Callable[..., None]] = {np.maximum: _maximum, np.minimum: _minimum}
"""NumPy's functions that want the array for their result by its name."""


def _write_down(
    recorder: Recorder, name: str, function: Any, arguments: Sequence[Any], options: dict[str, Any], out: RecordedArray
) -> None:
    """Write down function(*arguments, **options) -> out, as a call whose operands stand side by side."""
    from xpnn_backends import primitives

    if name == "astype" or (name == "asarray" and isinstance(arguments[0], (RecordedArray, RecordedNumber))):
        recorder.call(COPY, arguments[0], out)
        return
    if name == "reshape" and isinstance(arguments[0], RecordedArray):
        # NumPy had to copy, into C order; the shape is then another view of the copy.
        recorder.call(COPY, arguments[0], out.view(out.ghost.reshape(arguments[0].shape)))
        return
    if name == "where" and not options:
        recorder.call(WHERE, *arguments, out)
        return
    if isinstance(function, np.ufunc) and not options:
        recorder.call(Kernel(name, _BY_KEYWORD.get(function, function), primitives.ufunc(function)), *arguments, out)
        return
    if name in ("concat", "concatenate", "stack") and options.get("axis", 0) is not None and len(arguments) == 1:
        _write_down_parts(recorder, name, arguments[0], options.get("axis", 0), out)
        return
    if name == "full_like":
        recorder.call(COPY, arguments[1], out)
        return
    flat: list[Any] = []
    structure = [_flatten(argument, flat) for argument in arguments]
    if name == "concat":
        name, function = "concatenate", np.concatenate
    writes = isinstance(function, np.ufunc) or name in _WITH_OUT

    def run(*operands: Any) -> None:
        *given, target = operands
        rebuilt = [_rebuild(part, given) for part in structure]
        if writes:
            function(*rebuilt, **options, out=target)
        else:
            np.copyto(target, function(*rebuilt, **options))

    recorder.call(Kernel(name, run, primitives.call(name, options)), *flat, out)


def _write_down_parts(recorder: Recorder, name: str, parts: Sequence[Any], axis: int, out: RecordedArray) -> None:
    """concat or stack: each part is copied into its place."""
    start = 0
    for part in parts:
        if name == "stack":
            part = NAMESPACE.expand_dims(part, axis=axis)
        place: list[Any] = [slice(None)] * out.ndim
        place[axis] = slice(start, start + part.shape[axis])
        recorder.call(COPY, part, out[tuple(place)])
        start += part.shape[axis]


def _flatten(argument: Any, flat: list[Any]) -> Any:
    """The structure of an argument, with positions in `flat` for what is in it."""
    if isinstance(argument, (list, tuple)):
        return [_flatten(part, flat) for part in argument], type(argument)
    flat.append(argument)
    return len(flat) - 1


def _rebuild(structure: Any, flat: Sequence[Any]) -> Any:
    if isinstance(structure, tuple):
        parts, kind = structure
        return kind([_rebuild(part, flat) for part in parts])
    return flat[structure]


def _where(condition: Any, x: Any, y: Any, out: Any) -> None:
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


WHERE = Kernel("where", _where, _native("where"))

NAMESPACE: Any = _Namespace()
_add_operators()


class _NumberNamespace:
    """`xpnn.numbers` for recorded numbers."""

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(numbers, name)
        if not callable(attribute):
            return attribute

        def call(*operands: Any) -> Any:
            first = next((o for o in operands if isinstance(o, RecordedNumber)), None)
            return attribute(*operands) if first is None else type(first)(first.recorder, attribute, *operands)

        return call


def register_recorded_arrays(bodies: dict[str, Body]) -> None:
    """Make recorded arrays known to the dispatch table, with these bodies for ops."""
    register_kind(RecordedArray, Kind("numpy", NAMESPACE, lambda _: None, True, bodies))
    number_kind(RecordedNumber)


def number_kind(kind: type[RecordedNumber]) -> None:
    """Make a class of recorded numbers known to the dispatch table."""
    register_kind(kind, Kind("", _NumberNamespace(), lambda _: None, True, {}))
