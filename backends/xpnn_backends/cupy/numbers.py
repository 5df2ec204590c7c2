"""Numbers that differ from step to step, where a step is replayed: computed on the device by one small kernel.

While a step is captured, the number of the step is no Python int but a `StepNumber`. Arithmetic with it builds a
formula (a learning rate, 1 - beta^t). What a kernel or an array needs of it gets a place in device memory, and one
kernel at the begin of each replay computes all places from the step counter, which lives on the device too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, cast

import cupy
import numpy as np

from xpnn import numbers
from xpnn_backends.recording import RecordedNumber, RecordingError, number_kind

_MOST_PLACES = 512
"""Numbers of one step that arrays or kernels may need."""

_FORMULAS: dict[Callable[..., Any], str] = {
    operator.add: "({0} + {1})",
    operator.sub: "({0} - {1})",
    operator.mul: "({0} * {1})",
    operator.truediv: "({0} / {1})",
    operator.floordiv: "floor_quotient({0}, {1})",
    operator.mod: "floor_remainder({0}, {1})",
    operator.pow: "pow({0}, {1})",
    operator.eq: "(double)({0} == {1})",
    operator.ne: "(double)({0} != {1})",
    operator.lt: "(double)({0} < {1})",
    operator.le: "(double)({0} <= {1})",
    operator.gt: "(double)({0} > {1})",
    operator.ge: "(double)({0} >= {1})",
    operator.and_: "(double)({0} != 0.0 && {1} != 0.0)",
    operator.or_: "(double)({0} != 0.0 || {1} != 0.0)",
    operator.xor: "(double)(({0} != 0.0) != ({1} != 0.0))",
    operator.neg: "(-{0})",
    operator.pos: "{0}",
    operator.abs: "fabs({0})",
    numbers.cos: "cos({0})",
    numbers.exp: "exp({0})",
    numbers.expm1: "expm1({0})",
    numbers.floor: "floor({0})",
    numbers.log: "log({0})",
    numbers.log1p: "log1p({0})",
    numbers.sqrt: "sqrt({0})",
    numbers.where: "({0} != 0.0 ? {1} : {2})",
    numbers.minimum: "({1} < {0} ? {1} : {0})",
    numbers.maximum: "({1} > {0} ? {1} : {0})",
}
"""A Python function of numbers -> the same in CUDA, for doubles: also for NaN, and for what is negative."""

_HELPERS = """
// NVRTC knows no name for it.
__device__ double infinity() {
  return __longlong_as_double(0x7ff0000000000000LL);
}

// a % b as Python has it: of the sign of b.
__device__ double floor_remainder(double a, double b) {
  double remainder = fmod(a, b);
  if (remainder == 0.0) {
    return copysign(0.0, b);
  }
  return (remainder < 0.0) != (b < 0.0) ? remainder + b : remainder;
}

// a // b as Python has it: floor(a / b) would be a whole number too much where a / b is rounded up to one.
__device__ double floor_quotient(double a, double b) {
  return rint((a - floor_remainder(a, b)) / b);
}
"""

_OPTIONS = ("--fmad=false",)
"""a * b + c is rounded twice, as in Python: floor and comparisons may depend on it."""

_LOGICAL = (operator.and_, operator.or_, operator.xor)


class StepNumber(RecordedNumber):
    """The number of the step, or what was computed from it; meets arrays as an array without axes."""

    __array_priority__ = 1e6  # an array on the left leaves the operation to the number
    recorder: Any
    """The `StepNumbers` that it is one of."""
    variable: str | None = None
    """What it is called in the kernel, once that is known."""
    _known: tuple[int, Any] | None = None  # (step, value)

    def _apply(self, function: Callable[..., Any], *operands: Any) -> Any:
        arrays = [operand for operand in operands if isinstance(operand, cupy.ndarray)]
        if not arrays:
            if not all(isinstance(operand, (RecordedNumber, bool, int, float)) for operand in operands):
                return NotImplemented
            if function in _LOGICAL and not all(_is_bool(operand) for operand in operands):
                raise RecordingError("the bits of a number of the step are used")
            return StepNumber(self.recorder, function, *operands)
        dtype = arrays[0].dtype
        if dtype.kind != "f" and dtype.char != "E":  # E is bfloat16
            raise RecordingError("an array of integers is combined with a number of the step")
        return function(*(o.array(dtype) if isinstance(o, StepNumber) else o for o in operands))

    def place(self) -> int:
        """The address of a double in device memory that holds the number in each step."""
        return int(self.recorder.place(self).data.ptr)

    def array(self, dtype: Any) -> Any:
        """The number as an array without axes."""
        return self.recorder.array(self, np.dtype(dtype))

    def value(self, step: int) -> Any:
        """The number in step number `step`."""
        if self.function is None:
            return step
        if self._known is None or self._known[0] != step:
            operands = (o.value(step) if isinstance(o, StepNumber) else o for o in self.operands)
            self._known = step, self.function(*operands)
        return self._known[1]


def _is_bool(operand: Any) -> bool:
    return isinstance(operand.ghost if isinstance(operand, RecordedNumber) else operand, bool)


def _constant(number: Any) -> str:
    """A Python number in CUDA."""
    value = float(number)
    if math.isnan(value):
        return 'nan("")'
    if math.isinf(value):
        return "infinity()" if value > 0 else "(-infinity())"
    return f"({value!r})"


class StepNumbers:
    """The numbers of a step that is being made into a graph.

    First the step runs as it is, with its numbers computed on the host and written to their places. Then it runs once
    more, captured: it must then ask for the same numbers in the same order, and `launch` has put the kernel that
    computes them in front.

    Attributes:
        numbers: all of them, each after those that it is computed from.
        step: the number of the step.
    """

    def __init__(self) -> None:
        self.numbers: list[Any] = []
        self.step = StepNumber(cast(Any, self))
        self._variables: dict[str, str] = {}  # formula of earlier variables -> variable; each is computed once
        self._places: dict[str, Any] = {}  # variable -> the array that holds it
        self._arrays: dict[tuple[str, Any], Any] = {}
        self._memory = cupy.zeros(_MOST_PLACES, dtype=cupy.float64)
        self._counter = cupy.zeros(1, dtype=cupy.int64)
        self._now: int | None = None
        self._fixed = False
        self._kernel: Any = None
        self._next: int | None = None  # what the counter on the device is, or will be when all replays are done

    def begin_run(self, step: int) -> Any:
        """The number to run the step with, for the first time."""
        self.numbers.clear()
        self._arrays.clear()
        self._now = step
        self.step = StepNumber(cast(Any, self))
        return self.step

    def begin_capture(self) -> Any:
        """The number to capture the step with; launches the kernel that computes the numbers."""
        self.begin_run(0)
        self._fixed = True
        if self._kernel is not None:
            self._kernel((1,), (1,), (self._counter, self._memory))
        return self.step

    def _variable(self, number: Any) -> str:
        """What a number is called in the kernel."""
        if not isinstance(number, StepNumber):
            return _constant(number)
        if number.function is None:
            return "step"
        if number.variable is None:
            text = _FORMULAS.get(number.function)
            if text is None:
                name = getattr(number.function, "__name__", number.function)
                raise RecordingError(f"{name} of the number of the step has no kernel")
            formula = text.format(*map(self._variable, number.operands))
            number.variable = self._variables.setdefault(formula, f"number{len(self._variables)}")
        return number.variable

    def place(self, number: StepNumber) -> Any:
        """The array of one double that holds a number."""
        variable = self._variable(number)
        found = self._places.get(variable)
        if found is None:
            if self._fixed:
                raise RecordingError("the step asks for other numbers when it is run again")
            index = len(self._places)
            if index == _MOST_PLACES:
                raise RecordingError(f"the step needs more than {_MOST_PLACES} numbers that differ from step to step")
            found = self._places[variable] = self._memory[index : index + 1].reshape(())
        if not self._fixed:
            assert self._now is not None
            found.fill(float(number.value(self._now)))
        return found

    def array(self, number: StepNumber, dtype: Any) -> Any:
        """A number as an array without axes, of a dtype."""
        place = self.place(number)
        if dtype == np.float64:
            return place
        key = (self._variable(number), dtype)
        found = self._arrays.get(key)
        if found is None:
            found = self._arrays[key] = place.astype(dtype)
        return found

    def count(self, step: int, times: int) -> None:
        """Let the next replays be those of step number `step` and the ones behind it, so many in all."""
        if step != self._next:
            self._counter.fill(step)
        self._next = step + times

    def prepare(self) -> None:
        """Compile the kernel, which must not happen in a capture; a step that needs no numbers has none."""
        if not self._places:
            return
        self._kernel = cupy.RawKernel(self._source(), "numbers_of_a_step", options=_OPTIONS)
        self._kernel.compile()
        # Its module is loaded when it is first launched.
        before = self._counter.copy()
        self._kernel((1,), (1,), (self._counter, self._memory))
        self._counter[...] = before

    def _source(self) -> str:
        computed = [f"  const double {variable} = {formula};" for formula, variable in self._variables.items()]
        stored = [f"  places[{index}] = {variable};" for index, variable in enumerate(self._places)]
        return "\n".join(
            [
                _HELPERS,
                'extern "C" __global__ void numbers_of_a_step(long long* counter, double* places) {',
                "  const double step = (double)counter[0];",
                *computed,
                *stored,
                "  counter[0] = counter[0] + 1;",
                "}",
            ]
        )


number_kind(StepNumber)
