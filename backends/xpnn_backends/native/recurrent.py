# mypy: disable-error-code="no-untyped-def"
"""Recurrent networks, over all steps of a sequence: the threads share the batch, and wait for nothing.

The samples of a batch do not meet in a recurrent network. So each thread takes some of them through all steps. In each
step their states are multiplied with the packed weights, by tiles (see `tiles`): few rows, and weights that stay in the
thread's second-level cache from one step to the next.

Arrays are (batch, time, columns), flat; `room` is (batch, columns), for the products of one step. A state is
(batch, units) and holds, from step to step, what is carried on. The `mask` (batch, time) is empty where all steps
count, and so are an initial state of zeros, and a gradient of zeros.

Backward, the gradient of a state is made in the array of the gradient of the initial one. Slopes of gates are found
from their values.
"""

from __future__ import annotations

from numba.extending import register_jitable

from xpnn_backends.native.elementary import sigmoid, tanh
from xpnn_backends.native.registry import kernel, share
from xpnn_backends.native.tiles import ACCUMULATE, pack_rows, product_of_packed

# Loops have one result and few operands: LLVM must see that they do not overlap, and tries only for few.


@kernel("int int int T:2 T:1", parallel=True)
def pack_matrix(part, parts, transposed, lanes, width, weight, packed):
    """Pack a matrix, or the transposed one, for `times_weights`."""
    rows, columns = weight.shape
    flat = weight.reshape(rows * columns)
    first, last = share(columns if transposed else rows, part, parts, 32)
    if first >= last:
        return
    if transposed:
        pack_rows(flat, first, 1, columns, last - first, rows, lanes, width, packed, first, columns)
    else:
        pack_rows(flat, first * columns, columns, 1, last - first, columns, lanes, width, packed, first, rows)


@register_jitable
def times_weights(function, lanes, width, zeros, packed, given, made, depth, columns, first, last, flags):
    """made (+)= given W in rows `first` to `last - 1`, for the packed W; given has `depth` columns."""
    size = made.itemsize
    product_of_packed(
        function, given.ctypes.data + first * depth * size, depth, packed.ctypes.data,
        made.ctypes.data + first * columns * size, columns, last - first, columns, depth, lanes, width, size,
        zeros.ctypes.data, flags,
    )  # fmt: skip


@register_jitable
def cut(x, number, length):
    """Piece number `number` of an array of pieces of that length."""
    return x[number * length : (number + 1) * length]


@register_jitable
def copy(given, made):
    """made = given."""
    for j in range(made.size):
        made[j] = given[j]


@register_jitable
def clear(made):
    """made = 0."""
    zero = made.dtype.type(0)
    for j in range(made.size):
        made[j] = zero


@register_jitable
def add(made, given):
    """made += given."""
    for j in range(made.size):
        made[j] += given[j]


@register_jitable
def start(initial, state, first, last):
    """The state of these samples before the first step; without an initial one, zeros."""
    units = state.shape[1]
    flat = state.reshape(state.size)
    if initial.size:
        copy(initial[first * units : last * units], flat[first * units : last * units])
    else:
        clear(flat[first * units : last * units])


@register_jitable
def add_sigmoid(made, given):
    """made = sigmoid(made + given)."""
    for j in range(made.size):
        made[j] = sigmoid(made[j] + given[j])


@register_jitable
def add_tanh(made, given):
    """made = tanh(made + given)."""
    for j in range(made.size):
        made[j] = tanh(made[j] + given[j])


@register_jitable
def times(x, y, made):
    """made = x y."""
    for j in range(made.size):
        made[j] = x[j] * y[j]


@register_jitable
def times_of_sigmoid(dy, factor, s, made):
    """made = dy factor s (1 - s)."""
    one = made.dtype.type(1)
    for j in range(made.size):
        made[j] = dy[j] * factor[j] * (s[j] * (one - s[j]))


@register_jitable
def times_of_tanh(dy, factor, y, made):
    """made = dy factor (1 - y^2)."""
    one = made.dtype.type(1)
    for j in range(made.size):
        made[j] = dy[j] * factor[j] * (one - y[j] * y[j])


# ----------------------------------------------------------------------------------------------------------------------
# LSTM
# ----------------------------------------------------------------------------------------------------------------------


@register_jitable
def new_memory(put_in, keep, candidate, memory):
    """c = f c + i g."""
    for j in range(memory.size):
        memory[j] = keep[j] * memory[j] + put_in[j] * candidate[j]


@register_jitable
def tanh_of(x, made):
    """made = tanh(x)."""
    for j in range(made.size):
        made[j] = tanh(x[j])


@kernel("int int int i8:1 T:1 b1:1 T:1 T:1 int T:1 T:1 T:1 T:1 T:1 T:1 T:2 T:2", parallel=True)
def lstm_scan(
    part, parts, function, lanes, width, zeros, packed, mask, initial_hidden, initial_cell, reverse, room, gates,
    before, memory, squashed, y, hidden, cell,
):  # fmt: skip
    """i, f, g, o = s, s, s and tanh of (gates + h U);  c = f c + i g;  h = o tanh(c).

    `gates` is x W + b before, and the gates after. Kept as well: h and c before each step, and tanh(c).
    """
    batch, units = hidden.shape
    time = y.size // (batch * units)
    first, last = share(batch, part, parts)
    if first >= last:
        return
    start(initial_hidden, hidden, first, last)
    start(initial_cell, cell, first, last)
    hiddens, cells = hidden.reshape(hidden.size), cell.reshape(cell.size)
    for number in range(time):
        step = time - 1 - number if reverse else number
        times_weights(
            function, lanes, width, zeros, packed, hiddens, room, units, 4 * units, first, last, 0
        )  # fmt: skip
        for row in range(first, last):
            place = row * time + step
            h, c = cut(hiddens, row, units), cut(cells, row, units)
            copy(h, cut(before, place, units))
            copy(c, cut(memory, place, units))
            if mask.size and not mask[place]:
                clear(cut(y, place, units))
                continue
            product, gate, bent = cut(room, row, 4 * units), cut(gates, place, 4 * units), cut(squashed, place, units)
            add_sigmoid(gate[: 2 * units], product[: 2 * units])
            add_tanh(gate[2 * units : 3 * units], product[2 * units : 3 * units])
            add_sigmoid(gate[3 * units :], product[3 * units :])
            new_memory(gate[:units], gate[units : 2 * units], gate[2 * units : 3 * units], c)
            tanh_of(c, bent)
            times(gate[3 * units :], bent, h)
            copy(h, cut(y, place, units))


@register_jitable
def add_shown(dh, show, squashed, dc):
    """dc += dh o (1 - tanh(c)^2)."""
    one = dc.dtype.type(1)
    for j in range(dc.size):
        dc[j] += dh[j] * show[j] * (one - squashed[j] * squashed[j])


@kernel("int int int i8:1 T:1 b1:1 T:1 T:1 int T:1 T:1 T:1 T:1 T:1 T:1 T:2 T:2", parallel=True)
def lstm_scan_gradient(
    part, parts, function, lanes, width, zeros, packed, mask, dlast_hidden, dlast_cell, reverse, gates, memory,
    squashed, dy, room, dgates, dhidden, dcell,
):  # fmt: skip
    """The gradients of what the gates are made of, x W + b + h U, and of the initial states; U is packed transposed."""
    batch, units = dhidden.shape
    time = dgates.size // (batch * 4 * units)
    first, last = share(batch, part, parts)
    if first >= last:
        return
    start(dlast_hidden, dhidden, first, last)
    start(dlast_cell, dcell, first, last)
    dhiddens, dcells = dhidden.reshape(dhidden.size), dcell.reshape(dcell.size)
    for number in range(time):
        step = number if reverse else time - 1 - number
        for row in range(first, last):
            place = row * time + step
            dz = cut(room, row, 4 * units)
            if mask.size and not mask[place]:
                clear(dz)
                clear(cut(dgates, place, 4 * units))
                continue
            dh, dc = cut(dhiddens, row, units), cut(dcells, row, units)
            if dy.size:
                add(dh, cut(dy, place, units))
            gate, bent = cut(gates, place, 4 * units), cut(squashed, place, units)
            put_in, keep = gate[:units], gate[units : 2 * units]
            candidate, show = gate[2 * units : 3 * units], gate[3 * units :]
            add_shown(dh, show, bent, dc)
            times_of_sigmoid(dc, candidate, put_in, dz[:units])
            times_of_sigmoid(dc, cut(memory, place, units), keep, dz[units : 2 * units])
            times_of_tanh(dc, put_in, candidate, dz[2 * units : 3 * units])
            times_of_sigmoid(dh, bent, show, dz[3 * units :])
            times(dc, keep, dc)
            clear(dh)
            copy(dz, cut(dgates, place, 4 * units))
        times_weights(
            function, lanes, width, zeros, packed, room, dhiddens, 4 * units, units, first, last, ACCUMULATE
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# GRU
# ----------------------------------------------------------------------------------------------------------------------


@register_jitable
def add_reset(candidate, reset, remembered):
    """n = tanh(z + r q)."""
    for j in range(candidate.size):
        candidate[j] = tanh(candidate[j] + reset[j] * remembered[j])


@register_jitable
def mix(update, candidate, h):
    """h = (1 - u) n + u h."""
    one = h.dtype.type(1)
    for j in range(h.size):
        h[j] = (one - update[j]) * candidate[j] + update[j] * h[j]


@kernel("int int int i8:1 T:1 b1:1 T:1 T:1 int T:1 T:1 T:1 T:1 T:1 T:2", parallel=True)
def gru_scan(
    part, parts, function, lanes, width, zeros, packed, mask, bias, initial_hidden, reverse, room, gates, before,
    remembered, y, hidden,
):  # fmt: skip
    """With q = h U + bias:  r, u = s(gates + q);  n = tanh(gates + r q);  h = (1 - u) n + u h.

    `gates` is x W + b before, and the gates after. Kept as well: h before each step, and the last third of q.
    """
    batch, units = hidden.shape
    time = y.size // (batch * units)
    first, last = share(batch, part, parts)
    if first >= last:
        return
    start(initial_hidden, hidden, first, last)
    hiddens = hidden.reshape(hidden.size)
    for number in range(time):
        step = time - 1 - number if reverse else number
        times_weights(
            function, lanes, width, zeros, packed, hiddens, room, units, 3 * units, first, last, 0
        )  # fmt: skip
        for row in range(first, last):
            place = row * time + step
            h = cut(hiddens, row, units)
            copy(h, cut(before, place, units))
            if mask.size and not mask[place]:
                clear(cut(y, place, units))
                continue
            product, gate = cut(room, row, 3 * units), cut(gates, place, 3 * units)
            if bias.size:
                add(product, bias)
            add_sigmoid(gate[: 2 * units], product[: 2 * units])
            add_reset(gate[2 * units :], gate[:units], product[2 * units :])
            copy(product[2 * units :], cut(remembered, place, units))
            mix(gate[units : 2 * units], gate[2 * units :], h)
            copy(h, cut(y, place, units))


@register_jitable
def of_candidate(dh, update, candidate, made):
    """made = dh (1 - u) (1 - n^2)."""
    one = made.dtype.type(1)
    for j in range(made.size):
        made[j] = dh[j] * (one - update[j]) * (one - candidate[j] * candidate[j])


@register_jitable
def less(x, y, made):
    """made = x - y."""
    for j in range(made.size):
        made[j] = x[j] - y[j]


@kernel("int int int i8:1 T:1 b1:1 T:1 int T:1 T:1 T:1 T:1 T:1 T:1 T:1 T:2", parallel=True)
def gru_scan_gradient(
    part, parts, function, lanes, width, zeros, packed, mask, dlast_hidden, reverse, gates, before, remembered, dy,
    room, dgates, dproducts, dhidden,
):  # fmt: skip
    """The gradients of x W + b, of q, and of the initial state; U is packed transposed."""
    batch, units = dhidden.shape
    time = dgates.size // (batch * 3 * units)
    first, last = share(batch, part, parts)
    if first >= last:
        return
    start(dlast_hidden, dhidden, first, last)
    dhiddens = dhidden.reshape(dhidden.size)
    for number in range(time):
        step = number if reverse else time - 1 - number
        for row in range(first, last):
            place = row * time + step
            dq, dz = cut(room, row, 3 * units), cut(dgates, place, 3 * units)
            if mask.size and not mask[place]:
                clear(dq)
                clear(dz)
                clear(cut(dproducts, place, 3 * units))
                continue
            dh, gate = cut(dhiddens, row, units), cut(gates, place, 3 * units)
            if dy.size:
                add(dh, cut(dy, place, units))
            reset, update, candidate = gate[:units], gate[units : 2 * units], gate[2 * units :]
            dcandidate, change = dz[2 * units :], dq[2 * units :]
            of_candidate(dh, update, candidate, dcandidate)
            times_of_sigmoid(dcandidate, cut(remembered, place, units), reset, dq[:units])
            less(cut(before, place, units), candidate, change)
            times_of_sigmoid(dh, change, update, dq[units : 2 * units])
            times(dcandidate, reset, change)
            times(dh, update, dh)
            copy(dq[: 2 * units], dz[: 2 * units])
            copy(dq, cut(dproducts, place, 3 * units))
        times_weights(
            function, lanes, width, zeros, packed, room, dhiddens, 3 * units, units, first, last, ACCUMULATE
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# RNN
# ----------------------------------------------------------------------------------------------------------------------


@register_jitable
def add_activation(relu, x, y, made):
    """made = f(x + y)."""
    zero = made.dtype.type(0)
    if relu:
        for j in range(made.size):
            z = x[j] + y[j]
            made[j] = zero if z < zero else z
    else:
        for j in range(made.size):
            made[j] = tanh(x[j] + y[j])


@kernel("int int int i8:1 T:1 b1:1 T:1 int int T:1 T:1 T:1 T:1 T:2", parallel=True)
def rnn_scan(
    part, parts, function, lanes, width, zeros, packed, mask, initial_hidden, relu, reverse, room, products, before, y,
    hidden,
):  # fmt: skip
    """h = f(products + h U); kept: h before each step."""
    batch, units = hidden.shape
    time = y.size // (batch * units)
    first, last = share(batch, part, parts)
    if first >= last:
        return
    start(initial_hidden, hidden, first, last)
    hiddens = hidden.reshape(hidden.size)
    for number in range(time):
        step = time - 1 - number if reverse else number
        times_weights(function, lanes, width, zeros, packed, hiddens, room, units, units, first, last, 0)
        for row in range(first, last):
            place = row * time + step
            h = cut(hiddens, row, units)
            copy(h, cut(before, place, units))
            if mask.size and not mask[place]:
                clear(cut(y, place, units))
                continue
            add_activation(relu, cut(products, place, units), cut(room, row, units), h)
            copy(h, cut(y, place, units))


@register_jitable
def times_slope(relu, dh, y, made):
    """made = dh f'(z), found from y = f(z)."""
    zero, one = made.dtype.type(0), made.dtype.type(1)
    if relu:
        for j in range(made.size):
            made[j] = dh[j] if y[j] > zero else zero
    else:
        for j in range(made.size):
            made[j] = dh[j] * (one - y[j] * y[j])


@kernel("int int int i8:1 T:1 b1:1 T:1 int int T:1 T:1 T:1 T:1 T:2", parallel=True)
def rnn_scan_gradient(
    part, parts, function, lanes, width, zeros, packed, mask, dlast_hidden, relu, reverse, y, dy, room, dproducts,
    dhidden,
):  # fmt: skip
    """The gradients of x W + b + h U and of the initial state; U is packed transposed."""
    batch, units = dhidden.shape
    time = dproducts.size // (batch * units)
    first, last = share(batch, part, parts)
    if first >= last:
        return
    start(dlast_hidden, dhidden, first, last)
    dhiddens = dhidden.reshape(dhidden.size)
    for number in range(time):
        step = number if reverse else time - 1 - number
        for row in range(first, last):
            place = row * time + step
            dz = cut(room, row, units)
            if mask.size and not mask[place]:
                clear(dz)
            else:
                dh = cut(dhiddens, row, units)
                if dy.size:
                    add(dh, cut(dy, place, units))
                times_slope(relu, dh, cut(y, place, units), dz)
                clear(dh)
            copy(dz, cut(dproducts, place, units))
        times_weights(function, lanes, width, zeros, packed, room, dhiddens, units, units, first, last, ACCUMULATE)
