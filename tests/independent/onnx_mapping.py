"""ONNX's operators in terms of xpnn's: one function for each, which computes a case and gives its outputs.

A mapping gets a `NodeCase` and `call`, which runs an op on some backend: host arrays in, host arrays out. It returns
(outputs by formal name, the length of the longest sum in them), or raises UnclaimedError. An output may be missing that
xpnn does not give. Nothing is computed here but layouts and masks: ONNX has channels behind the batch, xpnn at the end.
"""

import math

import numpy as np

import xpnn
from xpnn import losses, ops
from xpnn.layers.layer import Run
from xpnn.ops.windows import output_length, same_padding, span

from .onnx_cases import UnclaimedError
from .onnx_unclaimed import (
    ADDITIVE_MASK,
    DILATED_POOLING,
    HALF,
    INTEGERS,
    NO_REDUCTION,
    OWN_RANDOM_NUMBERS,
    PEEPHOLES,
    RESET_BEFORE,
    SOFTCAP,
)

MAPPINGS = {}
"""Op type -> function(case, call)."""


def mapping(*op_types):
    def register(function):
        MAPPINGS.update(dict.fromkeys(op_types, function))
        return function

    return register


def answer(case, call):
    """(outputs by formal name, terms) of any case; raises UnclaimedError."""
    if {"float16", "bfloat16"} & set(case.dtype_names):
        raise UnclaimedError(HALF)
    if "int" in case.dtype_names[0]:
        raise UnclaimedError(INTEGERS)
    outputs, terms = MAPPINGS[case.op_type](case, call)
    case.check_all_was_read()
    return outputs, terms


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def channels_second(x):
    return np.moveaxis(x, -1, 1)


def kernel_first(weight):
    """(out, in / groups, *kernel) -> (*kernel, in / groups, out); a transposed convolution's weight likewise."""
    return np.transpose(weight, (*range(2, weight.ndim), 1, 0))


def pairs_of(pads):
    """ONNX's (all begins, all ends) as pairs."""
    axes = len(pads) // 2
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def window_settings(case, spatial, kernel):
    """(stride, padding, dilation) of a convolution or pooling, the padding as pairs, with what auto_pad asks for."""
    axes = len(kernel)
    stride = case.attribute("strides", (1,) * axes)
    dilation = case.attribute("dilations", (1,) * axes)
    automatic = case.attribute("auto_pad", "NOTSET")
    pads = case.attribute("pads", (0,) * (2 * axes))
    padding = pairs_of(pads)
    if automatic.startswith("SAME"):
        padding = tuple(map(same_padding, spatial, kernel, stride, dilation))
        if automatic == "SAME_LOWER":
            padding = tuple((after, before) for before, after in padding)
    return stride, padding, dilation


@mapping("Conv")
def conv(case, call):
    x, weight, bias = case.input(0), case.input(1), case.input(2)
    kernel = case.attribute("kernel_shape", weight.shape[2:])
    stride, padding, dilation = window_settings(case, x.shape[2:], kernel)
    y = call(
        ops.conv,
        channels_last(x),
        kernel_first(weight),
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=case.attribute("group", 1),
    )
    return {"Y": channels_second(y)}, math.prod(weight.shape[1:])


@mapping("ConvTranspose")
def conv_transpose(case, call):
    x, weight, bias = case.input(0), case.input(1), case.input(2)
    kernel = case.attribute("kernel_shape", weight.shape[2:])
    axes = len(kernel)
    stride = case.attribute("strides", (1,) * axes)
    dilation = case.attribute("dilations", (1,) * axes)
    extra = case.attribute("output_padding", (0,) * axes)
    padding = pairs_of(case.attribute("pads", (0,) * (2 * axes)))
    automatic = case.attribute("auto_pad", "NOTSET")
    lengths = case.attribute("output_shape")
    if automatic.startswith("SAME"):
        lengths = tuple(length * step for length, step in zip(x.shape[2:], stride, strict=True))
    if lengths is not None:
        natural = [
            (length - 1) * step + span(window, distance)
            for length, step, window, distance in zip(x.shape[2:], stride, kernel, dilation, strict=True)
        ]
        # What the output is too long by is cut off, the odd number before; what it is too short by is added.
        surplus = [max(have - want, 0) for have, want in zip(natural, lengths, strict=True)]
        extra = tuple(max(want - have, 0) for have, want in zip(natural, lengths, strict=True))
        padding = tuple((cut - cut // 2, cut // 2) for cut in surplus)
        if automatic == "SAME_UPPER":
            padding = tuple((after, before) for before, after in padding)
    y = call(
        ops.conv_transpose,
        channels_last(x),
        kernel_first(weight),
        bias,
        stride=stride,
        padding=padding,
        output_padding=extra,
        dilation=dilation,
        groups=case.attribute("group", 1),
    )
    return {"Y": channels_second(y)}, math.prod(weight.shape[2:]) * weight.shape[0]


@mapping("MaxPool", "AveragePool")
def pool(case, call):
    x = case.input(0)
    window = case.attribute("kernel_shape")
    stride, padding, dilation = window_settings(case, x.shape[2:], window)
    if max(dilation) > 1:
        raise UnclaimedError(DILATED_POOLING)
    settings = {}
    op = ops.max_pool
    if case.op_type == "AveragePool":
        op = ops.average_pool
        settings["count_padding"] = bool(case.attribute("count_include_pad", 0))
    else:
        case.attribute("storage_order", 0)  # of the indices
    if case.attribute("ceil_mode", 0):
        behind = ceil_padding(x.shape[2:], window, stride, padding)
        if any(behind) and settings.get("count_padding"):
            raise UnclaimedError("ceil_mode whose mean counts the padding, but not what lies behind it")
        padding = tuple((before, after + more) for (before, after), more in zip(padding, behind, strict=True))
    y = call(op, channels_last(x), window=window, stride=stride, padding=padding, **settings)
    return {"Y": channels_second(y)}, math.prod(window)


def ceil_padding(spatial, window, stride, padding):
    """What ceil_mode is, as padding behind the input: a last window that begins in x or in its padding may hang over.

    One that would begin behind them is left out.
    """
    behind = []
    for length, size, step, pair in zip(spatial, window, stride, padding, strict=True):
        places = -(-(length + sum(pair) - size) // step) + 1
        if (places - 1) * step >= length + pair[0]:
            places -= 1
        behind.append(max((places - 1) * step + size - length - sum(pair), 0))
        assert output_length(length, size, step, (pair[0], pair[1] + behind[-1])) == places
    return behind


@mapping("GlobalAveragePool", "GlobalMaxPool")
def global_pool(case, call):
    x = case.input(0)
    op = ops.global_average_pool if case.op_type == "GlobalAveragePool" else ops.global_max_pool
    y = call(op, channels_last(x))
    return {"Y": np.reshape(y, (*y.shape, *(1,) * (x.ndim - 2)))}, math.prod(x.shape[2:])


@mapping("BatchNormalization")
def batch_norm(case, call):
    x, weight, bias, mean, variance = (case.input(position) for position in range(5))
    epsilon, momentum = case.attribute("epsilon", 1e-5), case.attribute("momentum", 0.9)
    if not case.attribute("training_mode", 0):
        y = call(ops.batch_norm_inference, channels_last(x), mean, variance, weight, bias, epsilon=epsilon)
        return {"Y": channels_second(y)}, 1
    y, batch_mean, batch_variance = call(ops.batch_norm, channels_last(x), weight, bias, epsilon=epsilon)
    # ONNX keeps the biased variance; the layer keeps the unbiased one, as PyTorch does. So the op stands here.
    outputs = {
        "Y": channels_second(y),
        "running_mean": call(ops.moving_average, mean, batch_mean, momentum),
        "running_var": call(ops.moving_average, variance, batch_variance, momentum),
    }
    return outputs, x.size // x.shape[1]


@mapping("LayerNormalization", "RMSNormalization")
def norm_over_last_axes(case, call):
    x, weight = case.input(0), case.input(1)
    axis = case.attribute("axis", -1)
    axes = x.ndim - axis if axis >= 0 else -axis
    settings = {"axes": axes, "epsilon": case.attribute("epsilon", 1e-5)}
    if case.op_type == "RMSNormalization":
        y = call(ops.rms_norm, x, weight, **settings)
    else:
        y = call(ops.layer_norm, x, weight, case.input(2), **settings)
    return {"Y": y}, math.prod(x.shape[-axes:])


@mapping("GroupNormalization", "InstanceNormalization")
def group_norm(case, call):
    x, weight, bias = case.input(0), case.input(1), case.input(2)
    channels = x.shape[1]
    groups = channels if case.op_type == "InstanceNormalization" else case.attribute("num_groups")
    epsilon = case.attribute("epsilon", 1e-5)
    y = call(ops.group_norm, channels_last(x), weight, bias, groups=groups, epsilon=epsilon)
    name = "output" if case.op_type == "InstanceNormalization" else "Y"
    return {name: channels_second(y)}, math.prod(x.shape[1:]) // groups


@mapping("LRN")
def local_response_norm(case, call):
    x, size = case.input(0), case.attribute("size")
    if size % 2 == 0:
        raise UnclaimedError("an even size: ONNX then takes one neighbour more behind the channel, xpnn before it")
    y = call(
        ops.local_response_norm,
        channels_last(x),
        size=size,
        alpha=case.attribute("alpha", 1e-4),
        beta=case.attribute("beta", 0.75),
        k=case.attribute("bias", 1.0),
    )
    return {"Y": channels_second(y)}, size


@mapping("Softmax", "LogSoftmax")
def softmax(case, call):
    x, axis = case.input(0), case.attribute("axis", -1)
    y = call(ops.softmax if case.op_type == "Softmax" else ops.log_softmax, x, axis=axis)
    return {"output": y}, x.shape[axis]


@mapping("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
def class_loss(case, call):
    scores, labels, weights = case.input(0), case.input(1), case.input(2)
    reduction = case.attribute("reduction", "mean")
    if reduction == "none":
        raise UnclaimedError(NO_REDUCTION)
    settings = {
        "class_weights": None if weights is None else tuple(map(float, weights)),
        "ignore_index": case.attribute("ignore_index"),
        "reduction": reduction,
    }
    if case.op_type == "NegativeLogLikelihoodLoss":
        return {"loss": call(losses.NLL(**settings), channels_last(scores), labels)}, labels.size
    outputs = {"output": call(losses.CrossEntropy(**settings), channels_last(scores), labels)}
    if "log_prob" in case.expected:
        outputs["log_prob"] = call(ops.log_softmax, scores, axis=1)
    return outputs, labels.size


@mapping("Dropout")
def dropout(case, call):
    x, ratio, training = case.input(0), case.input(1), case.input(2)
    case.attribute("seed")
    rate = float(ratio) if ratio is not None else case.attribute("ratio", 0.5)
    run = Run(training=training is not None and bool(training))
    if run.training and rate > 0.0:
        raise UnclaimedError(OWN_RANDOM_NUMBERS)
    return {"output": call(lambda array: xpnn.Dropout(rate).forward(array, {}, run), x)}, 1


def in_order(matrix, gates, order):
    """The gates' blocks of rows of `matrix` in another order: order[i] is the place of xpnn's gate i in ONNX's."""
    blocks = np.split(matrix, gates, axis=0)
    return np.concatenate([blocks[place] for place in order], axis=0)


@mapping("RNN", "LSTM", "GRU")
def recurrent(case, call):
    # ONNX: input, output, forget, cell -> input, forget, cell, output; update, reset, new -> reset, update, new
    order = {"RNN": (0,), "LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}[case.op_type]
    gates, units = len(order), case.attribute("hidden_size")
    x, weights, recurrences, biases = case.input(0), case.input(1), case.input(2), case.input(3)
    if case.op_type == "LSTM" and case.input(7) is not None:
        raise UnclaimedError(PEEPHOLES)
    batch_first = bool(case.attribute("layout", 0))
    if not batch_first:
        x = np.swapaxes(x, 0, 1)
    reset_after = case.op_type == "GRU" and bool(case.attribute("linear_before_reset", 0))
    if case.op_type == "GRU" and not reset_after and x.shape[1] > 1:
        raise UnclaimedError(RESET_BEFORE)
    direction = case.attribute("direction", "forward")
    reverse = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    results = []
    for number, backwards in enumerate(reverse):
        weight_input = in_order(weights[number], gates, order).T
        weight_hidden = in_order(recurrences[number], gates, order).T
        bias = np.zeros(2 * gates * units, x.dtype) if biases is None else biases[number]
        bias_input, bias_hidden = (in_order(half, gates, order) for half in np.split(bias, 2))
        if case.op_type == "RNN":
            result = call(ops.rnn, x, weight_input, weight_hidden, bias_input + bias_hidden, reverse=backwards)
        elif case.op_type == "LSTM":
            result = call(ops.lstm, x, weight_input, weight_hidden, bias_input + bias_hidden, reverse=backwards)
        else:
            # Where the reset gate acts before the product, this is one step from a state of zeros: it meets the bias
            # alone, and with the biases added up it makes no difference.
            both = (bias_input, bias_hidden) if reset_after else (bias_input + bias_hidden, None)
            result = call(ops.gru, x, weight_input, weight_hidden, *both, reverse=backwards)
        results.append(result)
    y = np.stack([result[0] for result in results], axis=2)  # (batch, time, directions, units)
    last = [np.stack(states, axis=1) for states in list(zip(*results, strict=True))[1:]]  # (batch, directions, units)
    if not batch_first:
        y = np.transpose(y, (1, 2, 0, 3))
        last = [np.swapaxes(states, 0, 1) for states in last]
    outputs = dict(zip(("Y", "Y_h", "Y_c"), (y, *last), strict=False))
    return outputs, x.shape[1] * (x.shape[2] + units)


@mapping("Attention")
def attention(case, call):
    query, key, value = case.input(0), case.input(1), case.input(2)
    if case.attribute("softcap", 0.0):
        raise UnclaimedError(SOFTCAP)
    flat = query.ndim == 3
    if flat:
        heads, key_heads = case.attribute("q_num_heads"), case.attribute("kv_num_heads")
        query, key, value = split_heads(query, heads), split_heads(key, key_heads), split_heads(value, key_heads)
    else:
        query, key, value = swap_heads(query), swap_heads(key), swap_heads(value)
    past_key, past_value, filled = case.input(4), case.input(5), case.input(6)
    if past_key is not None:
        key = call(ops.concatenate, swap_heads(past_key), key, axis=1)
        value = call(ops.concatenate, swap_heads(past_value), value, axis=1)
    past = 0 if past_key is None else past_key.shape[2]
    causal, mask = causal_and_mask(case, query.shape[1], key.shape[1], past, filled)
    settings = {"causal": causal, "scale": case.attribute("scale")}
    y = call(ops.attention, query, key, value, mask, **settings)
    outputs = {
        "Y": np.reshape(y, (*y.shape[:2], -1)) if flat else swap_heads(y),
        "present_key": swap_heads(key),
        "present_value": swap_heads(value),
    }
    if case.attribute("qk_matmul_output_mode", 0) == 3:
        # The weights themselves are the mean of unit vectors.
        keys = key.shape[1]
        unit = np.broadcast_to(np.eye(keys, dtype=query.dtype)[None, :, None, :], (*key.shape[:3], keys))
        outputs["qk_matmul_output"] = swap_heads(call(ops.attention, query, key, unit, mask, **settings))
    return outputs, query.shape[3] + key.shape[1]


def split_heads(x, heads):
    """(batch, time, heads x size) -> (batch, time, heads, size)."""
    return np.reshape(x, (*x.shape[:2], heads, -1))


def swap_heads(x):
    """(batch, heads, time, size) <-> (batch, time, heads, size)."""
    return np.swapaxes(x, 1, 2)


def causal_and_mask(case, queries, keys, past, filled):
    """xpnn's settings `causal` and `mask` for ONNX's is_causal, attn_mask, windows and lengths of a filled cache.

    Query i stands behind `past` keys, or at the end of the `filled` part of the keys of its sample.
    """
    given = case.input(3)
    causal = bool(case.attribute("is_causal", 0))
    left, right = case.attribute("left_window_size", -1), case.attribute("right_window_size", -1)
    conditions = []
    if given is not None:
        if given.dtype != np.bool_:
            if not np.all((given == 0) | (given == -np.inf)):
                raise UnclaimedError(ADDITIVE_MASK)
            given = given == 0
        missing = [(0, 0)] * (given.ndim - 1) + [(0, keys - given.shape[-1])]
        conditions.append(np.pad(given, missing))  # False behind its end
    offset = np.full((1, 1, 1, 1), past) if filled is None else np.reshape(filled - queries, (-1, 1, 1, 1))
    position = np.reshape(np.arange(queries), (1, 1, -1, 1)) + offset
    column = np.reshape(np.arange(keys), (1, 1, 1, -1))
    if filled is not None:
        conditions.append(column < np.reshape(filled, (-1, 1, 1, 1)))
    if causal and (past > 0 or filled is not None):
        causal = False
        conditions.append(column <= position)
    if left >= 0:
        conditions.append(position - column <= left)
    if right >= 0:
        conditions.append(column - position <= right)
    mask = None
    for condition in conditions:
        mask = condition if mask is None else mask & condition
    return causal, mask


@mapping("RotaryEmbedding")
def rotary(case, call):
    x, cos, sin, positions = case.input(0), case.input(1), case.input(2), case.input(3)
    case.attribute("rotary_embedding_dim", 0)  # the tables say it as well
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    flat, heads = x.ndim == 3, case.attribute("num_heads", 0)
    x = split_heads(x, heads) if flat else swap_heads(x)
    y = call(ops.rotary, x, cos, sin, interleaved=bool(case.attribute("interleaved", 0)))
    return {"Y": np.reshape(y, (*y.shape[:2], -1)) if flat else swap_heads(y)}, 2


@mapping("Adam", "Adagrad", "Momentum")
def optimizer(case, call):
    kinds = {"Adam": 4, "Adagrad": 3, "Momentum": 3}[case.op_type]
    rate, step, *arrays = case.inputs
    rate = float(rate)
    if int(step) > 0:
        raise UnclaimedError("a later step: ONNX's corrections then differ from the papers'")
    if case.attribute("norm_coefficient_post", 0.0):
        raise UnclaimedError("weight decay behind the step")
    decay = case.attribute("norm_coefficient", 0.0)
    results = []
    # The arrays come sorted by kind: all parameters, all gradients, all slots.
    tensors = len(arrays) // kinds
    for number in range(tensors):
        theta, gradient, *slots = arrays[number::tensors]
        gradient = call(ops.add_weight_decay, gradient, theta, decay)
        results.append(update(case, call, theta, gradient, slots, rate))
    in_order_of_kinds = [array for kind in zip(*results, strict=True) for array in kind]
    return dict(zip(case.expected, in_order_of_kinds, strict=True)), 4


def update(case, call, theta, gradient, slots, rate):
    if case.op_type == "Adagrad":
        case.attribute("decay_factor", 0.0)  # of the rate, by the number of steps that were done: none
        return call(ops.adagrad, theta, gradient, *slots, rate, case.attribute("epsilon", 1e-6))
    if case.op_type == "Momentum":
        case.attribute("beta")  # the weight of the gradient in later steps
        nesterov = case.attribute("mode") == "nesterov"
        return call(ops.sgd_momentum, theta, gradient, *slots, rate, case.attribute("alpha"), nesterov=nesterov)
    settings = (rate, case.attribute("alpha", 0.9), case.attribute("beta", 0.999), case.attribute("epsilon", 1e-6))
    return call(ops.adam, theta, gradient, *slots, *settings, 1.0, 1.0)
