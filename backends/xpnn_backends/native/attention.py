"""Attention, head by head: the scores of some queries stay in the cache between their two products.

Arrays are (batch, time, heads, size), flat; a head is a matrix whose rows lie heads * size numbers apart, which
OpenBLAS reads as it is.
"""
# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numba.extending import register_jitable

from xpnn_backends.native.activations import largest_or_nan
from xpnn_backends.native.elementary import exp
from xpnn_backends.native.lanes import row_products, row_sum
from xpnn_backends.native.products import scaled_gemm
from xpnn_backends.native.registry import kernel, share


@register_jitable
def _address(x, offset):
    """The address of number `offset` of an array."""
    return x.ctypes.data + x.itemsize * offset


@register_jitable
def _scores(address, query, key, from_query, from_key, query_width, key_width, rows, keys, size, scale, out):
    """out = scale q k^T for some queries of a head, in rows of `keys` numbers."""
    scaled_gemm(
        out, address, 0, 1, rows, keys, size, scale, _address(query, from_query), query_width,
        _address(key, from_key), key_width, 0.0, _address(out, 0), keys,
    )  # fmt: skip


@register_jitable
def _mask_row(row, allowed, limit):
    """Minus infinity for keys that are masked."""
    lowest = row.dtype.type(-np.inf)
    for j in range(min(limit, allowed.size)):
        row[j] = row[j] if allowed[j] else lowest


@register_jitable
def _powers(row, limit, largest):
    """exp(row - largest) for the first `limit` scores, 0 for the others."""
    seen, hidden = row[:limit], row[limit:]
    for j in range(seen.size):
        seen[j] = exp(seen[j] - largest)
    for j in range(hidden.size):
        hidden[j] = row.dtype.type(0)


@register_jitable
def _times(row, factor):
    for j in range(row.size):
        row[j] *= factor


@register_jitable
def _limit(causal, i, keys):
    """How many keys query number i may look at."""
    return min(i + 1, keys) if causal else keys


@register_jitable
def _drop(weights, kept, mask_keys, scale, out):
    """out = weights times scale where dropout keeps them, else 0; both in rows, `kept` in shorter ones if causal."""
    rows = kept.size // mask_keys
    keys = weights.size // rows
    zero = out.dtype.type(0)
    factor = out.dtype.type(scale)
    for i in range(rows):
        given, made, keep = weights[i * keys :][:keys], out[i * keys :][:keys], kept[i * mask_keys :][:mask_keys]
        for j in range(mask_keys):
            made[j] = given[j] * factor if keep[j] else zero
        for j in range(mask_keys, keys):
            made[j] = zero


@kernel(
    "int T:1 T:1 T:1 b1:1 int int int int int int int int int number int int int b1:1 int number T:1 T:1 T:1 T:1",
    parallel=True,
    work=1,
)
def attention(
    part, parts, address, query, key, value, allowed, batch, queries, keys, heads, groups, size, value_size, causal,
    block, scale, keeps, begin, end, dropout_mask, mask_keys, dropout_scale, room, y, weights, kept,
):  # fmt: skip
    """y = softmax(scale q k^T) v for queries from `begin` to `end` - 1, and what the backward pass needs.

    With `keeps`, `weights` has room for all weights of all heads, and they stay there; else it has room for one block
    of queries for each of `parts` threads. `kept` gets the largest score of each query, and 1 / (sum of its powers).
    With dropout there is one block, whose mask has rows of `mask_keys`; `room` is for one block for each thread.
    """
    real = query.dtype.type
    lowest = np.finfo(np.float32).min if query.itemsize == 4 else np.finfo(np.float64).min
    members = heads // groups
    width, key_width, value_width = heads * size, groups * size, groups * value_size
    first, last = share(batch * heads, part, parts)
    for task in range(first, last):
        sample, head = task // heads, task % heads
        group = head // members
        from_key = (sample * keys * groups + group) * size
        from_value = (sample * keys * groups + group) * value_size
        may = allowed[sample * keys : (sample + 1) * keys] if allowed.size else allowed
        for start in range(begin, end, block):
            rows = min(block, end - start)
            place = task * queries * keys if keeps else part * block * keys
            here = weights[place : place + rows * keys]
            from_query = (sample * queries + start) * width + head * size
            _scores(address, query, key, from_query, from_key, width, key_width, rows, keys, size, scale, here)
            for i in range(rows):
                row = here[i * keys : (i + 1) * keys]
                limit = _limit(causal, start + i, keys)
                _mask_row(row, may, limit)
                largest = largest_or_nan(row[:limit])
                largest = real(lowest) if largest < real(lowest) else largest
                _powers(row, limit, largest)
                total = row_sum(row, row, 0.0, 1.0)
                inverse = real(1.0 / total) if total != 0.0 else real(1.0)
                _times(row, inverse)
                index = 2 * (task * queries + start + i)
                kept[index], kept[index + 1] = largest, inverse
            if dropout_mask.size:
                dropped = room[part * block * keys :][: rows * keys]
                mask = dropout_mask[task * rows * mask_keys :][: rows * mask_keys]
                _drop(here, mask, mask_keys, dropout_scale, dropped)
                here = dropped
            scaled_gemm(
                y, address, 0, 0, rows, value_size, keys, 1.0, _address(here, 0), keys, _address(value, from_value),
                value_width, 0.0, _address(y, ((sample * queries + start) * heads + head) * value_size),
                heads * value_size,
            )  # fmt: skip


@kernel(
    "int T:1 T:1 T:1 b1:1 int int int int int int int int int number int int int b1:1 int number "
    "T:1 T:1 T:1 T:1 T:1 T:1 T:1",
    parallel=True,
    work=1,
)
def attention_gradient(
    part, parts, address, query, key, value, allowed, batch, queries, keys, heads, groups, size, value_size, causal,
    block, scale, keeps, begin, end, dropout_mask, mask_keys, dropout_scale, weights, kept, dy, room, dquery, dkey,
    dvalue,
):  # fmt: skip
    """dquery, dkey and dvalue; a group of keys and values is the work of one thread.

    `room` is for two blocks of scores for each thread. Without `keeps` the weights are computed again. What the queries
    before `begin` have added to dkey and dvalue stays.
    """
    real = query.dtype.type
    members = heads // groups
    width, key_width, value_width, y_width = heads * size, groups * size, groups * value_size, heads * value_size
    first, last = share(batch * groups, part, parts)
    for task in range(first, last):
        sample, group = task // groups, task % groups
        from_key = (sample * keys * groups + group) * size
        from_value = (sample * keys * groups + group) * value_size
        may = allowed[sample * keys : (sample + 1) * keys] if allowed.size else allowed
        so_far = 1.0 if begin else 0.0  # 0: the first product overwrites the gradients of keys and values
        for head in range(group * members, (group + 1) * members):
            for start in range(begin, end, block):
                rows = min(block, end - start)
                from_query = (sample * queries + start) * width + head * size
                from_y = (sample * queries + start) * y_width + head * value_size
                scores = room[2 * part * block * keys :][: rows * keys]
                derivative = room[(2 * part + 1) * block * keys :][: rows * keys]
                if keeps:
                    scores = weights[(sample * heads + head) * queries * keys :][: rows * keys]
                else:
                    _scores(
                        address, query, key, from_query, from_key, width, key_width, rows, keys, size, scale, scores
                    )
                    for i in range(rows):
                        row = scores[i * keys : (i + 1) * keys]
                        limit = _limit(causal, start + i, keys)
                        _mask_row(row, may, limit)
                        index = 2 * ((sample * heads + head) * queries + start + i)
                        _powers(row, limit, kept[index])
                        _times(row, kept[index + 1])
                used = scores
                mask = dropout_mask[(sample * heads + head) * rows * mask_keys :][: rows * mask_keys]
                if dropout_mask.size:
                    _drop(scores, mask, mask_keys, dropout_scale, derivative)
                    used = derivative
                scaled_gemm(
                    dy, address, 1, 0, keys, value_size, rows, 1.0, _address(used, 0), keys,
                    _address(dy, from_y), y_width, so_far, _address(dvalue, from_value), value_width,
                )  # fmt: skip
                scaled_gemm(
                    dy, address, 0, 1, rows, keys, value_size, 1.0, _address(dy, from_y), y_width,
                    _address(value, from_value), value_width, 0.0, _address(derivative, 0), keys,
                )  # fmt: skip
                if dropout_mask.size:
                    _drop(derivative, mask, mask_keys, dropout_scale, derivative)
                for i in range(rows):
                    weight, made = scores[i * keys : (i + 1) * keys], derivative[i * keys : (i + 1) * keys]
                    mean = real(row_products(weight, made, 0.0, 1.0))
                    for j in range(made.size):
                        made[j] = weight[j] * (made[j] - mean)
                scaled_gemm(
                    dy, address, 0, 0, rows, size, keys, scale, _address(derivative, 0), keys,
                    _address(key, from_key), key_width, 0.0, _address(dquery, from_query), width,
                )  # fmt: skip
                scaled_gemm(
                    dy, address, 1, 0, keys, size, rows, scale, _address(derivative, 0), keys,
                    _address(query, from_query), width, so_far, _address(dkey, from_key), key_width,
                )  # fmt: skip
                so_far = 1.0
