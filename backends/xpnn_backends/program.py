"""A recorded step, laid out in memory and ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xpnn_backends.recording import Instruction, Kernel, Memory, RecordedArray, RecordedNumber, Recorder


def _nothing(*_: Any) -> None:
    """Does nothing."""


KEEP = Kernel("keep", _nothing)
"""keep(*arrays): they are read when the program has run, so that nothing else may take their memory; the last call."""

_ALIGNMENT = 64
"""Bytes: a cache line, and the longest vector register."""


class Program:
    """The calls of a recorded step, with memory for all that they compute.

    Args:
        recorder: the step.
        inputs: the arrays of the caller's, in the order in which the recorder met them.
        native: True to run kernels of Numba's where there are some.
    """

    def __init__(self, recorder: Recorder, inputs: Sequence[Any], native: bool) -> None:
        self._numbers = recorder.numbers
        self._values: list[Any] = [0] * len(recorder.numbers)
        self._formulas = _formulas(recorder.numbers)
        self._inputs = list(inputs)
        self._nothing_bound = [memory.ghost for memory in recorder.inputs]
        instructions = _needed(recorder.instructions)
        self._scratch = _plan(instructions)
        self._kept: dict[Memory, Any] = {}
        # input -> (operands of a call, position, how to make the operand from the array)
        self._input_uses: list[list[tuple[list[Any], int, Callable[[Any], Any]]]] = [[] for _ in inputs]
        self._number_uses: list[tuple[list[Any], int, int]] = []
        self._calls: list[tuple[Callable[..., Any], list[Any]]] = []
        self._machine: Any = None
        if native:
            from xpnn_backends.native.machine import Machine

            self._machine = Machine(self.array, len(recorder.numbers))
        self._add_calls([each for each in instructions if each.kernel is not KEEP])

    def _add_calls(self, instructions: Sequence[Instruction]) -> None:
        """Native calls that follow each other become one call of Python's."""
        machine = self._machine
        segments: list[tuple[int, int, int]] = []  # position in the calls, first and last + 1 of the native ones
        for instruction in instructions:
            if machine is not None and machine.add(instruction):
                if segments and segments[-1][0] == len(self._calls) - 1:
                    position, first, _ = segments[-1]
                    segments[-1] = (position, first, machine.length)
                else:
                    segments.append((len(self._calls), machine.length - 1, machine.length))
                    self._calls.append((_nothing, []))
            else:
                self._add_call(instruction)
        if machine is not None:
            machine.finish()
            for position, first, last in segments:
                self._calls[position] = (machine.segment(first, last), [])

    def _add_call(self, instruction: Instruction) -> None:
        operands: list[Any] = []
        for position, operand in enumerate(instruction.operands):
            if isinstance(operand, RecordedArray):
                memory = operand.memory.place()[0]
                if memory.role == "input":
                    self._input_uses[memory.number].append((operands, position, _view_maker(operand)))
                operand = self.array(operand)
            elif isinstance(operand, RecordedNumber):
                self._number_uses.append((operands, position, operand.index))
            operands.append(operand)
        self._calls.append((instruction.kernel.function, operands))

    def array(self, recorded: RecordedArray) -> Any:
        """The array that a stand-in stands for."""
        memory, start = recorded.memory.place()
        if memory.role == "constant":
            return recorded.ghost
        if memory.role == "input":
            return _view_maker(recorded)(self._inputs[memory.number])
        if memory.role == "kept":
            if memory not in self._kept:
                self._kept[memory] = _aligned(memory.ghost.nbytes)
            block = self._kept[memory]
        else:
            arena, offsets = self._scratch
            block, start = arena, start + offsets[memory]
        ghost = recorded.ghost
        return np.ndarray(ghost.shape, ghost.dtype, block, start + recorded.offset, ghost.strides)

    def bind(self, number: int, array: Any) -> None:
        """From now on, input `number` is this array, of the same shape and dtype, in C order."""
        self._inputs[number] = array
        for operands, position, make in self._input_uses[number]:
            operands[position] = make(array)
        if self._machine is not None:
            self._machine.bind(number, array)

    def release(self) -> None:
        """Hold none of the caller's arrays any longer; all inputs must be bound before the next run."""
        for number, ghost in enumerate(self._nothing_bound):
            self.bind(number, ghost)

    def is_bound(self, number: int, array: Any) -> bool:
        """True if that input is this very array."""
        return self._inputs[number] is array

    @property
    def scratch_bytes(self) -> int:
        """The memory for what is given up again within a run."""
        return int(self._scratch[0].nbytes)

    @property
    def is_one_list(self) -> bool:
        """True if one thread can run all of it without Python."""
        machine = self._machine
        return machine is not None and len(self._calls) == 1 and machine.length > 0 and not machine.splits

    def run(self, step: int) -> None:
        """Make all calls, for that number of the step."""
        values = self._evaluate(step)
        for operands, position, index in self._number_uses:
            operands[position] = values[index]
        if self._machine is not None:
            for index in self._machine.used_numbers:
                self._machine.numbers[index] = values[index]
        for function, operands in self._calls:
            function(*operands)

    def run_many(self, step: int, times: int, number: int, stride: int) -> None:
        """Run it that many times, from that number of the step on, where it is one list (`is_one_list`).

        From one time to the next, input `number` moves on by `stride` bytes of its memory.
        """
        table = np.zeros((times, len(self._numbers)))
        if self._machine.used_numbers:
            for time in range(times):
                table[time] = self._evaluate(step + time)
        self._machine.run_repeatedly(table, number, stride)

    def _evaluate(self, step: int) -> list[Any]:
        """All recorded numbers."""
        self._values[0] = step
        self._formulas(self._values)
        return self._values


def _formulas(numbers: Sequence[RecordedNumber]) -> Callable[[list[Any]], None]:
    """A function that computes all recorded numbers but the first, which is given, in a list of them."""
    if len(numbers) < 2:
        return _nothing
    known: dict[str, Any] = {}
    lines = ["def compute(values):"]
    for number in numbers[1:]:
        known[f"function{number.index}"] = number.function
        operands = []
        for position, operand in enumerate(number.operands):
            if isinstance(operand, RecordedNumber):
                operands.append(f"values[{operand.index}]")
            else:
                name = f"constant{number.index}_{position}"
                known[name] = operand
                operands.append(name)
        lines.append(f"    values[{number.index}] = function{number.index}({', '.join(operands)})")
    # One function instead of a loop over all of them: an optimizer's numbers cost as much as a small network's step.
    exec("\n".join(lines), known)
    compute: Callable[[list[Any]], None] = known["compute"]
    return compute


def _view_maker(recorded: RecordedArray) -> Callable[[Any], Any]:
    """Makes, of an array in C order, the view of it that a stand-in is."""
    ghost, offset = recorded.ghost, recorded.offset
    if recorded.is_whole and ghost.shape == recorded.memory.ghost.shape:
        return lambda array: array
    shape, dtype, strides = ghost.shape, ghost.dtype, ghost.strides
    return lambda array: np.ndarray(shape, dtype, array, offset, strides)


def _aligned(size: int) -> Any:
    """Zeroed bytes that begin on a cache line."""
    block = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -block.__array_interface__["data"][0] % _ALIGNMENT
    return block[start : start + size]


def _needed(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Those whose results are used: by a later one that is needed, by the caller, or in the next run."""
    wanted: set[Memory] = set()
    kept: list[Instruction] = []
    for instruction in reversed(instructions):
        kernel, operands = instruction
        touched = [operand.memory.place()[0] for operand in operands if isinstance(operand, RecordedArray)]
        written = [operands[position].memory.place()[0] for position in kernel.writes]
        if kernel is KEEP or any(memory.role == "input" or memory in wanted for memory in written):
            wanted.update(touched)
            kept.append(instruction)
    return kept[::-1]


def _plan(instructions: Sequence[Instruction]) -> tuple[Any, dict[Memory, int]]:
    """(bytes, where each piece of scratch memory lies in them): pieces that are in use at the same time lie apart."""
    lives: dict[Memory, tuple[int, int]] = {}
    for time, instruction in enumerate(instructions):
        for operand in instruction.operands:
            if isinstance(operand, RecordedArray):
                memory = operand.memory.place()[0]
                if memory.role == "scratch":
                    lives[memory] = (lives.get(memory, (time, time))[0], time)
    offsets: dict[Memory, int] = {}
    total = 0
    # The largest first: each takes the lowest place where it meets nothing that lives at the same time.
    for memory in sorted(lives, key=lambda piece: (-piece.ghost.nbytes, lives[piece])):
        first, last = lives[memory]
        size = -(-max(memory.ghost.nbytes, 1) // _ALIGNMENT) * _ALIGNMENT
        occupied = sorted(
            (offsets[other], offsets[other] + other.ghost.nbytes)
            for other in offsets
            if lives[other][0] <= last and first <= lives[other][1]
        )
        start = 0
        for begin, end in occupied:
            if start + size <= begin:
                break
            start = max(start, -(-end // _ALIGNMENT) * _ALIGNMENT)
        offsets[memory] = start
        total = max(total, start + size)
    return _aligned(total), offsets
