"""Kernels of recurrent networks: the scans over all steps of a sequence. See `kernels` for what a kernel is.

Arrays are (batch, time, columns) in C order; `room` is (batch, columns), for the products of one step. The mask (batch,
time) is empty where all steps count; an empty initial state is zeros, and so is an empty gradient. The last states, and
backward the gradients of the initial ones, carry the states from step to step.

Slopes are found from values, s (1 - s) and 1 - y^2, as PyTorch does it; so nothing but the gates has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xpnn_backends import fast
from xpnn_backends.kernels_activations import relu_gradient
from xpnn_backends.kernels_convolution import block_address, is_native, tiling_of
from xpnn_backends.recording import Kernel, RecordedArray, constant

# ----------------------------------------------------------------------------------------------------------------------
# What the scans share
# ----------------------------------------------------------------------------------------------------------------------


def _steps(time: int, reverse: int) -> Iterator[int]:
    return iter(range(time - 1, -1, -1) if reverse else range(time))


def _start(initial: Any, state: Any) -> None:
    np.copyto(state, initial.reshape(state.shape) if initial.size else 0.0)


class _Mask:
    """Which samples do not take a step.

    Args:
        mask: as a kernel has it.
        batch: how many samples there are.
        states: arrays, each as large as a state, that a step changes.
    """

    def __init__(self, mask: Any, batch: int, *states: Any) -> None:
        self.skipped = ~mask.reshape(batch, -1, 1) if mask.size else None
        self._states = states
        self._before = [np.empty_like(state) for state in states] if mask.size else []

    def remember(self) -> None:
        """The step begins."""
        for state, before in zip(self._states, self._before, strict=False):
            np.copyto(before, state)

    def undo(self, step: int, *made: Any) -> None:
        """States of samples that do not take this step are as they were before; what it made of them is 0."""
        if self.skipped is not None:
            for state, before in zip(self._states, self._before, strict=True):
                np.copyto(state, before, where=self.skipped[:, step])
            for array in made:
                np.copyto(array, 0.0, where=self.skipped[:, step])


_QUICK = 1 << 19
"""Multiplications of a product that OpenBLAS makes at once; a larger one it packs, and shares among threads."""


class _Product:
    """made = given W for few rows, step after step: blocks of columns, so few that no thread has to wait for others.

    Args:
        weight: W, (depth, columns).
        made: (rows, columns), in C order.
    """

    def __init__(self, weight: Any, made: Any) -> None:
        depth, columns = weight.shape
        rows, width = made.shape[0], columns
        while width % 2 == 0 and width > 32 and rows * depth * width > _QUICK:
            width //= 2
        if rows * depth * width > _QUICK:  # worth its threads
            width = columns
        self._weight = np.ascontiguousarray(weight.reshape(depth, -1, width).transpose(1, 0, 2))
        self._made = made.reshape(rows, -1, width).transpose(1, 0, 2)

    def __call__(self, given: Any) -> None:
        np.matmul(given, self._weight, out=self._made)


def _sigmoid(x: Any) -> None:
    """In place. Where exp(-x) overflows, the result is 0: callers ignore that."""
    np.negative(x, out=x)
    np.exp(x, out=x)
    np.add(x, 1.0, out=x)
    np.divide(1.0, x, out=x)


def _sigmoid_slope(s: Any, made: Any) -> None:
    np.subtract(1.0, s, out=made)
    np.multiply(made, s, out=made)


def _tanh_slope(y: Any, made: Any) -> None:
    np.multiply(y, y, out=made)
    np.subtract(1.0, made, out=made)


def packed_size(weight: Any, transposed: bool) -> int:
    """How many numbers the packed weights have; 0 if nothing reads them."""
    rows, columns = weight.shape[::-1] if transposed else weight.shape
    return rows * int(tiling_of(weight.dtype).packed_columns(columns)) if is_native(weight.dtype) else 0


def _width(batch: int, columns: int, dtype: Any) -> int:
    """The columns of a block of packed weights, for as many rows as a thread has."""
    tiling = tiling_of(dtype)
    return int(tiling.vectors(-(-batch // fast.most_parts()), columns)) * int(tiling.lanes)


def _native_pack(weight: RecordedArray, transposed: int, batch: int, packed: RecordedArray) -> Any:
    columns = weight.shape[0] if transposed else weight.shape[1]
    width = _width(batch, columns, weight.dtype)
    return "pack_matrix", (transposed, tiling_of(weight.dtype).lanes, width, weight, packed)


def _nothing(*_: Any) -> None:
    """The NumPy functions of the scans read the weights as they are."""


PACK = Kernel("pack_matrix", _nothing, _native_pack)
"""pack_matrix(weight, transposed, batch, packed): the weights, as the native scans read them."""


def _scan(name: str, function: Any, writes: tuple[int, ...], transposed: bool) -> Kernel:
    """A kernel (weight, packed, *others, last state): the native one gets how the weights are packed, and not them."""

    def native(weight: RecordedArray, packed: RecordedArray, *others: Any) -> Any:
        if not packed.size:
            return None
        columns = weight.shape[0] if transposed else weight.shape[1]
        address = block_address("rows", weight.dtype, columns)
        if not address:
            return None
        width = _width(others[-1].shape[0], columns, weight.dtype)
        table = constant(np.zeros(2, np.int64))
        return name, (address, tiling_of(weight.dtype).lanes, width, table, packed, *others)

    return Kernel(name, function, native, writes)


# ----------------------------------------------------------------------------------------------------------------------
# LSTM
# ----------------------------------------------------------------------------------------------------------------------


def _blocks(x: Any, count: int) -> list[Any]:
    """The blocks of columns that belong to the gates."""
    units = x.shape[-1] // count
    return [x[..., number * units : (number + 1) * units] for number in range(count)]


def _lstm(
    weight: Any,
    packed: Any,
    mask: Any,
    initial_hidden: Any,
    initial_cell: Any,
    reverse: int,
    room: Any,
    gates: Any,
    before: Any,
    memory: Any,
    squashed: Any,
    y: Any,
    hidden: Any,
    cell: Any,
) -> None:
    batch, time, units = y.shape
    _start(initial_hidden, hidden)
    _start(initial_cell, cell)
    masked, product = _Mask(mask, batch, hidden, cell), _Product(weight, room)
    sums = np.empty((batch, 3 * units), y.dtype)
    inner, outer = sums[:, : 2 * units], sums[:, 2 * units :]
    with np.errstate(over="ignore"):
        for step in _steps(time, reverse):
            masked.remember()
            before[:, step], memory[:, step] = hidden, cell
            z, bent = gates[:, step], squashed[:, step]
            put_in, keep, candidate, show = _blocks(z, 4)
            product(hidden)
            np.add(candidate, room[:, 2 * units : 3 * units], out=bent)
            np.tanh(bent, out=candidate)
            # Side by side in an array of their own, they are one loop for NumPy and not one for each sample.
            np.add(z[:, : 2 * units], room[:, : 2 * units], out=inner)
            np.add(show, room[:, 3 * units :], out=outer)
            _sigmoid(sums)
            z[:, : 2 * units], show[...] = inner, outer
            np.multiply(put_in, candidate, out=bent)
            np.multiply(cell, keep, out=cell)
            np.add(cell, bent, out=cell)
            np.tanh(cell, out=bent)
            np.multiply(show, bent, out=hidden)
            y[:, step] = hidden
            masked.undo(step, y[:, step])


LSTM = _scan("lstm_scan", _lstm, (7, 8, 9, 10, 11, 12, 13), False)
"""lstm_scan(weight, packed, mask, initial hidden, initial cell, reverse, room, gates, before, memory, squashed, y,
hidden, cell).

`gates` is x W + b before, and i, f, g, o after. Kept: h and c before each step (`before`, `memory`), and tanh(c).
"""


def _lstm_gradient(
    weight: Any,
    packed: Any,
    mask: Any,
    dlast_hidden: Any,
    dlast_cell: Any,
    reverse: int,
    gates: Any,
    memory: Any,
    squashed: Any,
    dy: Any,
    room: Any,
    dgates: Any,
    dhidden: Any,
    dcell: Any,
) -> None:
    batch, time, _ = dgates.shape
    _start(dlast_hidden, dhidden)
    _start(dlast_cell, dcell)
    masked = _Mask(mask, batch, dhidden, dcell)
    change, product = np.empty_like(dcell), _Product(weight.T, dhidden)
    for step in _steps(time, not reverse):
        masked.remember()
        put_in, keep, candidate, show = _blocks(gates[:, step], 4)
        bent, dz = squashed[:, step], dgates[:, step]
        if dy.size:
            np.add(dhidden, dy[:, step], out=dhidden)
        _tanh_slope(bent, change)
        np.multiply(change, show, out=change)
        np.multiply(change, dhidden, out=change)
        np.add(dcell, change, out=dcell)
        factors = (dcell, candidate), (dcell, memory[:, step]), (dcell, put_in), (dhidden, bent)
        for gate, made, (gradient, factor) in zip(
            (put_in, keep, candidate, show), _blocks(dz, 4), factors, strict=True
        ):
            (_tanh_slope if gate is candidate else _sigmoid_slope)(gate, change)
            np.multiply(change, factor, out=change)
            np.multiply(change, gradient, out=made)
        np.multiply(dcell, keep, out=dcell)
        product(dz)
        masked.undo(step, dz)


LSTM_GRADIENT = _scan("lstm_scan_gradient", _lstm_gradient, (11, 12, 13), True)
"""lstm_scan_gradient(weight, packed transposed, mask, dlast hidden, dlast cell, reverse, gates, memory, squashed, dy,
room, dgates, dhidden, dcell)."""


# ----------------------------------------------------------------------------------------------------------------------
# GRU
# ----------------------------------------------------------------------------------------------------------------------


def _gru(
    weight: Any,
    packed: Any,
    mask: Any,
    bias: Any,
    initial_hidden: Any,
    reverse: int,
    room: Any,
    gates: Any,
    before: Any,
    remembered: Any,
    y: Any,
    hidden: Any,
) -> None:
    batch, time, units = y.shape
    _start(initial_hidden, hidden)
    masked, product = _Mask(mask, batch, hidden), _Product(weight, room)
    products = room[:, : 2 * units], room[:, 2 * units :]
    change, sums = np.empty_like(hidden), np.empty((batch, 2 * units), y.dtype)
    with np.errstate(over="ignore"):
        for step in _steps(time, reverse):
            masked.remember()
            before[:, step] = hidden
            z = gates[:, step]
            reset, update, candidate = _blocks(z, 3)
            product(hidden)
            if bias.size:
                np.add(room, bias, out=room)
            remembered[:, step] = products[1]
            np.add(z[:, : 2 * units], products[0], out=sums)
            _sigmoid(sums)
            z[:, : 2 * units] = sums
            np.multiply(reset, products[1], out=change)
            np.add(candidate, change, out=change)
            np.tanh(change, out=candidate)
            np.subtract(1.0, update, out=change)
            np.multiply(change, candidate, out=change)
            np.multiply(hidden, update, out=hidden)
            np.add(hidden, change, out=hidden)
            y[:, step] = hidden
            masked.undo(step, y[:, step])


GRU = _scan("gru_scan", _gru, (7, 8, 9, 10, 11), False)
"""gru_scan(weight, packed, mask, bias, initial hidden, reverse, room, gates, before, remembered, y, hidden).

`gates` is x W + b before, and r, u, n after. Kept: h before each step (`before`), and the last third of q = h U + bias.
"""


def _gru_gradient(
    weight: Any,
    packed: Any,
    mask: Any,
    dlast_hidden: Any,
    reverse: int,
    gates: Any,
    before: Any,
    remembered: Any,
    dy: Any,
    room: Any,
    dgates: Any,
    dproducts: Any,
    dhidden: Any,
) -> None:
    batch, time, columns = dgates.shape
    units = columns // 3
    _start(dlast_hidden, dhidden)
    masked = _Mask(mask, batch, dhidden)
    change, slope = np.empty_like(dhidden), np.empty_like(dhidden)
    product = _Product(weight.T, dhidden)
    for step in _steps(time, not reverse):
        masked.remember()
        reset, update, candidate = _blocks(gates[:, step], 3)
        dz, dq = dgates[:, step], dproducts[:, step]
        dreset, dupdate, dcandidate = _blocks(dz, 3)
        if dy.size:
            np.add(dhidden, dy[:, step], out=dhidden)
        _tanh_slope(candidate, slope)
        np.subtract(1.0, update, out=change)
        np.multiply(change, dhidden, out=change)
        np.multiply(slope, change, out=dcandidate)
        np.multiply(dcandidate, reset, out=dq[:, 2 * units :])
        _sigmoid_slope(reset, slope)
        np.multiply(dcandidate, remembered[:, step], out=change)
        np.multiply(slope, change, out=dreset)
        _sigmoid_slope(update, slope)
        np.subtract(before[:, step], candidate, out=change)
        np.multiply(change, dhidden, out=change)
        np.multiply(slope, change, out=dupdate)
        dq[:, : 2 * units] = dz[:, : 2 * units]
        np.multiply(dhidden, update, out=change)
        product(dq)
        np.add(dhidden, change, out=dhidden)
        masked.undo(step, dz, dq)


GRU_GRADIENT = _scan("gru_scan_gradient", _gru_gradient, (10, 11, 12), True)
"""gru_scan_gradient(weight, packed transposed, mask, dlast hidden, reverse, gates, before, remembered, dy, room,
dgates, dproducts, dhidden)."""


# ----------------------------------------------------------------------------------------------------------------------
# RNN
# ----------------------------------------------------------------------------------------------------------------------


def _rnn(
    weight: Any,
    packed: Any,
    mask: Any,
    initial_hidden: Any,
    relu: int,
    reverse: int,
    room: Any,
    products: Any,
    before: Any,
    y: Any,
    hidden: Any,
) -> None:
    batch, time, _ = y.shape
    _start(initial_hidden, hidden)
    masked, product = _Mask(mask, batch, hidden), _Product(weight, room)
    for step in _steps(time, reverse):
        masked.remember()
        before[:, step] = hidden
        product(hidden)
        np.add(room, products[:, step], out=hidden)
        if relu:
            np.maximum(hidden, 0.0, out=hidden)
        else:
            np.tanh(hidden, out=hidden)
        y[:, step] = hidden
        masked.undo(step, y[:, step])


RNN = _scan("rnn_scan", _rnn, (8, 9, 10), False)
"""rnn_scan(weight, packed, mask, initial hidden, relu, reverse, room, products, before, y, hidden)."""


def _rnn_gradient(
    weight: Any,
    packed: Any,
    mask: Any,
    dlast_hidden: Any,
    relu: int,
    reverse: int,
    y: Any,
    dy: Any,
    room: Any,
    dproducts: Any,
    dhidden: Any,
) -> None:
    batch, time, _ = y.shape
    _start(dlast_hidden, dhidden)
    masked = _Mask(mask, batch, dhidden)
    product = _Product(weight.T, dhidden)
    for step in _steps(time, not reverse):
        masked.remember()
        if dy.size:
            np.add(dhidden, dy[:, step], out=dhidden)
        if relu:
            relu_gradient(np.ascontiguousarray(y[:, step]), dhidden, room)
        else:
            _tanh_slope(y[:, step], room)
            np.multiply(room, dhidden, out=room)
        dproducts[:, step] = room
        product(room)
        masked.undo(step, dproducts[:, step])


RNN_GRADIENT = _scan("rnn_scan_gradient", _rnn_gradient, (9, 10), True)
"""rnn_scan_gradient(weight, packed transposed, mask, dlast hidden, relu, reverse, y, dy, room, dproducts, dhidden)."""
