"""Bodies of the recurrent ops for recorded arrays. See `recorded_bodies`.

The products of the input with its weights are one product for all steps, and so are the gradients of all weights. One
kernel takes all steps forward, and one takes them all backward.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnn import ops
from xpnn.ops.rnn import RNN_ACTIVATIONS
from xpnn.ops.scan import check_recurrent
from xpnn_backends import kernels_activations
from xpnn_backends import kernels_recurrent as kernels
from xpnn_backends.kernels import PRODUCT
from xpnn_backends.recorded_bodies import _body
from xpnn_backends.recording import Kernel, RecordedArray, Recorder, constant


class _Scan:
    """What the bodies of the three ops share: the arguments in C order, and arrays for results.

    Args:
        recorder: writes the calls down.
        gates: how many blocks of columns the weights have.
        arrays: the op's arguments by name.
        reverse: as the op has it.
    """

    def __init__(self, recorder: Recorder, gates: int, arrays: dict[str, Any], reverse: bool) -> None:
        self.recorder = recorder
        self.x, self.weight = arrays["x"], recorder.contiguous(arrays["weight_hidden"])
        self.dtype, self.reverse = self.x.dtype, int(reverse)
        self.batch, self.time, _ = self.x.shape
        self.units, self.gates = self.weight.shape[0], gates
        mask = arrays["mask"]
        self.mask = constant(np.zeros(0, np.bool_)) if mask is None else recorder.contiguous(mask)

    def given(self, array: Any) -> RecordedArray:
        """An array in C order; an empty one in place of None."""
        return constant(np.zeros(0, self.dtype)) if array is None else self.recorder.contiguous(array)

    def over_time(self, blocks: int = 1) -> RecordedArray:
        """An array (batch, time, blocks of columns)."""
        return self.recorder.empty((self.batch, self.time, blocks * self.units), self.dtype)

    def state(self) -> RecordedArray:
        """An array (batch, units)."""
        return self.recorder.empty((self.batch, self.units), self.dtype)

    def room(self) -> RecordedArray:
        """For the products of one step."""
        return self.recorder.empty((self.batch, self.gates * self.units), self.dtype)

    def call(self, kernel: Kernel, transposed: bool, *operands: Any) -> None:
        """Write down a scan; its weights are packed before."""
        packed = self.recorder.empty((kernels.packed_size(self.weight, transposed),), self.dtype)
        if packed.size:
            self.recorder.call(kernels.PACK, self.weight, int(transposed), self.batch, packed)
        self.recorder.call(kernel, self.weight, packed, self.mask, *operands)

    def weight_gradient(self, before: RecordedArray, dproducts: RecordedArray) -> RecordedArray:
        """Of the hidden states' products with their weights: one product, over all steps of all samples."""
        recorder, rows = self.recorder, self.batch * self.time
        dweight = recorder.empty(self.weight.shape, self.dtype)
        states = recorder.reshape(before, (rows, self.units))
        recorder.call(PRODUCT, states.T, self.rows(dproducts), dweight)
        return dweight

    def rows(self, x: RecordedArray) -> RecordedArray:
        """(batch, time, columns) as a matrix."""
        return self.recorder.reshape(x, (self.batch * self.time, x.shape[-1]))


def _prepare(recorder: Recorder, name: str, gates: int, arrays: dict[str, Any], reverse: bool) -> _Scan | None:
    """The scan of an op with these arguments; None where it is not for one."""
    weight = arrays["weight_hidden"]
    check_recurrent(name, gates, weight.shape[0], arrays)
    dtype = arrays["x"].dtype
    reals = [array for argument, array in arrays.items() if array is not None and argument != "mask"]
    if dtype not in (np.float32, np.float64) or any(array.dtype != dtype or not array.size for array in reals):
        return None
    if arrays["mask"] is not None and arrays["mask"].dtype != np.bool_:
        return None
    return _Scan(recorder, gates, arrays, reverse)


@_body
def lstm(
    recorder: Recorder,
    x: Any,
    weight_input: Any,
    weight_hidden: Any,
    bias: Any = None,
    hidden: Any = None,
    cell: Any = None,
    mask: Any = None,
    *,
    reverse: bool = False,
    input_gradient: bool = True,
) -> Any:
    """One kernel for all steps, each way; products of the input and gradients of weights are single products."""
    arrays = {"x": x, "weight_input": weight_input, "weight_hidden": weight_hidden, "bias": bias}
    scan = _prepare(recorder, "lstm", 4, {**arrays, "hidden": hidden, "cell": cell, "mask": mask}, reverse)
    if scan is None:
        return None
    gates, products_vjp = ops.linear(x, weight_input, bias, input_gradient=input_gradient)
    before, memory, squashed, y = (scan.over_time() for _ in range(4))
    last = scan.state(), scan.state()
    start = scan.given(hidden), scan.given(cell)
    scan.call(kernels.LSTM, False, *start, scan.reverse, scan.room(), gates, before, memory, squashed, y, *last)

    def vjp(cotangents: Any) -> Any:
        dy, dlast_hidden, dlast_cell = map(scan.given, cotangents)
        dgates, dhidden, dcell = scan.over_time(4), scan.state(), scan.state()
        kept = gates, memory, squashed
        given = dlast_hidden, dlast_cell, scan.reverse, *kept, dy, scan.room()
        scan.call(kernels.LSTM_GRADIENT, True, *given, dgates, dhidden, dcell)
        dx, dweight_input, dbias = products_vjp(dgates)
        dweight_hidden = scan.weight_gradient(before, dgates)
        dstates = (None if hidden is None else dhidden), (None if cell is None else dcell)
        return dx, dweight_input, dweight_hidden, dbias, *dstates, None

    return (y, *last), vjp


@_body
def gru(
    recorder: Recorder,
    x: Any,
    weight_input: Any,
    weight_hidden: Any,
    bias_input: Any = None,
    bias_hidden: Any = None,
    hidden: Any = None,
    mask: Any = None,
    *,
    reverse: bool = False,
    input_gradient: bool = True,
) -> Any:
    """As lstm."""
    arrays = {"x": x, "weight_input": weight_input, "weight_hidden": weight_hidden, "bias_input": bias_input}
    arrays = {**arrays, "bias_hidden": bias_hidden, "hidden": hidden, "mask": mask}
    scan = _prepare(recorder, "gru", 3, arrays, reverse)
    if scan is None:
        return None
    gates, products_vjp = ops.linear(x, weight_input, bias_input, input_gradient=input_gradient)
    before, remembered, y = (scan.over_time() for _ in range(3))
    last = scan.state()
    start = scan.given(bias_hidden), scan.given(hidden)
    scan.call(kernels.GRU, False, *start, scan.reverse, scan.room(), gates, before, remembered, y, last)

    def vjp(cotangents: Any) -> Any:
        dy, dlast = map(scan.given, cotangents)
        dgates, dproducts, dhidden = scan.over_time(3), scan.over_time(3), scan.state()
        given = dlast, scan.reverse, gates, before, remembered, dy, scan.room()
        scan.call(kernels.GRU_GRADIENT, True, *given, dgates, dproducts, dhidden)
        dx, dweight_input, dbias_input = products_vjp(dgates)
        dweight_hidden = scan.weight_gradient(before, dproducts)
        dbias_hidden = None
        if bias_hidden is not None:
            dbias_hidden = recorder.empty(bias_hidden.shape, x.dtype)
            recorder.call(kernels_activations.BIAS_GRADIENT, scan.rows(dproducts), dbias_hidden)
        return dx, dweight_input, dweight_hidden, dbias_input, dbias_hidden, None if hidden is None else dhidden, None

    return (y, last), vjp


@_body
def rnn(
    recorder: Recorder,
    x: Any,
    weight_input: Any,
    weight_hidden: Any,
    bias: Any = None,
    hidden: Any = None,
    mask: Any = None,
    *,
    activation: str = "tanh",
    reverse: bool = False,
    input_gradient: bool = True,
) -> Any:
    """As lstm."""
    if activation not in RNN_ACTIVATIONS:
        return None
    arrays = {"x": x, "weight_input": weight_input, "weight_hidden": weight_hidden, "bias": bias}
    scan = _prepare(recorder, "rnn", 1, {**arrays, "hidden": hidden, "mask": mask}, reverse)
    if scan is None:
        return None
    relu = int(activation == "relu")
    products, products_vjp = ops.linear(x, weight_input, bias, input_gradient=input_gradient)
    before, y, last = scan.over_time(), scan.over_time(), scan.state()
    scan.call(kernels.RNN, False, scan.given(hidden), relu, scan.reverse, scan.room(), products, before, y, last)

    def vjp(cotangents: Any) -> Any:
        dy, dlast = map(scan.given, cotangents)
        dproducts, dhidden = scan.over_time(), scan.state()
        scan.call(kernels.RNN_GRADIENT, True, dlast, relu, scan.reverse, y, dy, scan.room(), dproducts, dhidden)
        dx, dweight_input, dbias = products_vjp(dproducts)
        dweight_hidden = scan.weight_gradient(before, dproducts)
        return dx, dweight_input, dweight_hidden, dbias, None if hidden is None else dhidden, None

    return (y, last), vjp
