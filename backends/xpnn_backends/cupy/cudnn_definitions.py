"""The cuDNN graphs that are used here, each as a description of plain numbers that `define` turns into a graph.

A description is the key of its plan too: two calls with equal ones run the same plan. Nothing in this file needs a
GPU or CuPy, so every graph can be built on a machine that has neither (see tests/backends/cudnn_plans.py).

cuDNN names axes in the order (batch, channels, *spatial) and is told by strides, in elements, how they lie in memory:
channels last, as everywhere in xpnn. A weight is named (out, in, *kernel) and lies as (out, *kernel, in).

The tensors of a graph have the uids 1, 2, ... in the order in which a definition lists them, results last.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

_DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}


class Definition(Protocol):
    """What every description here has."""

    @property
    def dtype(self) -> str:
        """Of the arrays; sums are always taken in float32."""
        ...

    @property
    def tensor_cores(self) -> bool:
        """False for float32 that means float32: tensor cores would round its products to TF32."""
        ...

    def define(self, cudnn: Any, graph: Any) -> None:
        """Write the operations into an empty graph."""
        ...


def build(cudnn: Any, definition: Definition, **where: Any) -> Any:
    """The graph of a description with an executable plan.

    Args:
        cudnn: the module.
        definition: what to build.
        where: `handle=`, or the properties of a device that is not there.

    Raises whatever cuDNN raises where it has no plan.
    """
    graph = cudnn.pygraph(
        io_data_type=data_type(cudnn, definition.dtype),
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        **where,
    )
    definition.define(cudnn, graph)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    if not definition.tensor_cores:
        graph.deselect_numeric_notes([cudnn.numerical_note.TENSOR_CORE])
    graph.deselect_numeric_notes([cudnn.numerical_note.NONDETERMINISTIC])
    graph.check_support()
    graph.build_plans()
    return graph


def data_type(cudnn: Any, dtype: str) -> Any:
    """cuDNN's name of a dtype."""
    return getattr(cudnn.data_type, _DATA_TYPES[dtype])


def channels_last(dims: Ints) -> Ints:
    """The strides of dims (batch, channels, *spatial) whose channels lie next to each other."""
    _, channels, *spatial = dims
    strides = [1]
    step = channels
    for length in reversed(spatial):
        strides.insert(1, step)
        step *= length
    return (step, *strides)


class _Writer:
    """Adds tensors with their uids to a graph."""

    def __init__(self, cudnn: Any, graph: Any) -> None:
        self.cudnn = cudnn
        self.graph = graph
        self.used = 0

    def _next(self) -> int:
        self.used += 1
        return self.used

    def operand(self, dims: Ints, dtype: str, strides: Ints | None = None) -> Any:
        """An array that the graph reads."""
        return self.graph.tensor(
            dim=list(dims),
            stride=list(channels_last(dims) if strides is None else strides),
            data_type=data_type(self.cudnn, dtype),
            uid=self._next(),
        )

    def number(self, axes: int) -> Any:
        """A float32 in host memory that the graph reads when it is launched."""
        return self.graph.tensor(
            dim=[1] * axes,
            stride=[1] * axes,
            data_type=self.cudnn.data_type.FLOAT,
            is_pass_by_value=True,
            uid=self._next(),
        )

    def result(self, tensor: Any, dims: Ints, dtype: str, strides: Ints | None = None) -> None:
        """Says of what an operation gave that it is written to an array."""
        tensor.set_output(True)
        tensor.set_uid(self._next())
        tensor.set_dim(list(dims))
        tensor.set_stride(list(channels_last(dims) if strides is None else strides))
        tensor.set_data_type(data_type(self.cudnn, dtype))


class Convolution(NamedTuple):
    """One of the three products of a convolution; the number of groups follows from the channels.

    Attributes:
        product: "forward" (uids: image, weight, bias if there is one; places), "input" (places, weight; image) or
            "weight" (image, places; weight).
        dtype: of all arrays.
        tensor_cores: see `Definition`.
        image: (batch, channels, *spatial).
        weight: (out, in / groups, *kernel).
        places: (batch, out, *places).
        stride: along each spatial axis.
        padding: (before, after) along each.
        dilation: along each.
        bias: True adds a bias to a forward product.
    """

    product: str
    dtype: str
    tensor_cores: bool
    image: Ints
    weight: Ints
    places: Ints
    stride: Ints
    padding: Pairs
    dilation: Ints
    bias: bool = False

    def define(self, cudnn: Any, graph: Any) -> None:
        writer = _Writer(cudnn, graph)
        settings = {
            "pre_padding": [before for before, _ in self.padding],
            "post_padding": [after for _, after in self.padding],
            "stride": list(self.stride),
            "dilation": list(self.dilation),
        }
        if self.product == "forward":
            image = writer.operand(self.image, self.dtype)
            weight = writer.operand(self.weight, self.dtype)
            result = graph.conv_fprop(image=image, weight=weight, **settings)
            if self.bias:
                bias = writer.operand((1, self.weight[0], *(1 for _ in self.stride)), self.dtype)
                result = graph.bias(input=result, bias=bias)
            writer.result(result, self.places, self.dtype)
        elif self.product == "input":
            places = writer.operand(self.places, self.dtype)
            weight = writer.operand(self.weight, self.dtype)
            writer.result(graph.conv_dgrad(loss=places, filter=weight, **settings), self.image, self.dtype)
        else:
            image = writer.operand(self.image, self.dtype)
            places = writer.operand(self.places, self.dtype)
            writer.result(graph.conv_wgrad(image=image, loss=places, **settings), self.weight, self.dtype)


class Normalization(NamedTuple):
    """One pass of a normalisation of a matrix (rows, columns).

    Attributes:
        operation: "batch_norm" (uids: x, scale, shift, old mean, old variance, epsilon, momentum; y, mean, inverse
            deviation, new mean, new variance), "batch_norm_backward" (dy, x, scale, mean, inverse deviation; dx,
            dscale, dshift), "batch_norm_inference" (x, mean, inverse deviation, scale, shift; y),
            "layer_norm" (x, scale, shift, epsilon; y, mean, inverse deviation), "layer_norm_backward" (dy, x, scale,
            mean, inverse deviation; dx, dscale, dshift), "rms_norm" (x, scale, epsilon; y, inverse deviation) or
            "rms_norm_backward" (dy, x, scale, inverse deviation; dx, dscale).
        dtype: of x, y, dx and dy. All others are float32.
        rows: for batch norm, the numbers that a statistic is taken over; for the others, how many statistics.
        columns: the channels.
    """

    operation: str
    dtype: str
    rows: int
    columns: int

    @property
    def tensor_cores(self) -> bool:
        return True  # no products of matrices: there is nothing that they could round

    def define(self, cudnn: Any, graph: Any) -> None:
        writer = _Writer(cudnn, graph)
        matrix = (self.rows, self.columns, 1, 1)
        channels = (1, self.columns, 1, 1)
        samples = (self.rows, 1, 1, 1)
        getattr(self, f"_{self.operation}")(cudnn, graph, writer, matrix, channels, samples)

    def _batch_norm(self, cudnn: Any, graph: Any, writer: _Writer, matrix: Ints, channels: Ints, samples: Ints) -> None:
        x = writer.operand(matrix, self.dtype)
        scale, shift, old_mean, old_variance = (writer.operand(channels, "float32") for _ in range(4))
        results = graph.batchnorm(
            input=x,
            scale=scale,
            bias=shift,
            in_running_mean=old_mean,
            in_running_var=old_variance,
            epsilon=writer.number(4),
            momentum=writer.number(4),
        )
        writer.result(results[0], matrix, self.dtype)
        for statistic in results[1:5]:
            writer.result(statistic, channels, "float32")

    def _batch_norm_backward(
        self, cudnn: Any, graph: Any, writer: _Writer, matrix: Ints, channels: Ints, samples: Ints
    ) -> None:
        dy, x = (writer.operand(matrix, self.dtype) for _ in range(2))
        scale, mean, inverse = (writer.operand(channels, "float32") for _ in range(3))
        dx, dscale, dshift = graph.batchnorm_backward(grad=dy, input=x, scale=scale, mean=mean, inv_variance=inverse)
        writer.result(dx, matrix, self.dtype)
        writer.result(dscale, channels, "float32")
        writer.result(dshift, channels, "float32")

    def _batch_norm_inference(
        self, cudnn: Any, graph: Any, writer: _Writer, matrix: Ints, channels: Ints, samples: Ints
    ) -> None:
        x = writer.operand(matrix, self.dtype)
        mean, inverse, scale, shift = (writer.operand(channels, "float32") for _ in range(4))
        y = graph.batchnorm_inference(input=x, mean=mean, inv_variance=inverse, scale=scale, bias=shift)
        writer.result(y, matrix, self.dtype)

    def _layer_norm(self, cudnn: Any, graph: Any, writer: _Writer, matrix: Ints, channels: Ints, samples: Ints) -> None:
        x = writer.operand(matrix, self.dtype)
        scale, shift = (writer.operand(channels, "float32") for _ in range(2))
        y, mean, inverse = graph.layernorm(
            norm_forward_phase=cudnn.norm_forward_phase.TRAINING,
            input=x,
            scale=scale,
            bias=shift,
            epsilon=writer.number(4),
        )
        writer.result(y, matrix, self.dtype)
        writer.result(mean, samples, "float32")
        writer.result(inverse, samples, "float32")

    def _layer_norm_backward(
        self, cudnn: Any, graph: Any, writer: _Writer, matrix: Ints, channels: Ints, samples: Ints
    ) -> None:
        dy, x = (writer.operand(matrix, self.dtype) for _ in range(2))
        scale = writer.operand(channels, "float32")
        mean, inverse = (writer.operand(samples, "float32") for _ in range(2))
        dx, dscale, dshift = graph.layernorm_backward(grad=dy, input=x, scale=scale, mean=mean, inv_variance=inverse)
        writer.result(dx, matrix, self.dtype)
        writer.result(dscale, channels, "float32")
        writer.result(dshift, channels, "float32")

    def _rms_norm(self, cudnn: Any, graph: Any, writer: _Writer, matrix: Ints, channels: Ints, samples: Ints) -> None:
        x = writer.operand(matrix, self.dtype)
        scale = writer.operand(channels, "float32")
        y, inverse = graph.rmsnorm(
            norm_forward_phase=cudnn.norm_forward_phase.TRAINING, input=x, scale=scale, epsilon=writer.number(4)
        )
        writer.result(y, matrix, self.dtype)
        writer.result(inverse, samples, "float32")

    def _rms_norm_backward(
        self, cudnn: Any, graph: Any, writer: _Writer, matrix: Ints, channels: Ints, samples: Ints
    ) -> None:
        dy, x = (writer.operand(matrix, self.dtype) for _ in range(2))
        scale = writer.operand(channels, "float32")
        inverse = writer.operand(samples, "float32")
        results = graph.rmsnorm_backward(grad=dy, input=x, scale=scale, inv_variance=inverse, has_dbias=False)
        writer.result(results[0], matrix, self.dtype)
        writer.result(results[1], channels, "float32")


class Attention(NamedTuple):
    """Scaled dot-product attention; "forward" (uids: query, key, value; y, statistics) or "backward" (query, key,
    value, y, dy, statistics; dquery, dkey, dvalue).

    Attributes:
        product: "forward" or "backward".
        dtype: of all arrays but the statistics, which are float32: for each query, the logarithm of the sum of the
            exponentials of its scores.
        query: (batch, heads, queries, size).
        key: (batch, key heads, keys, size).
        value: (batch, key heads, keys, value size).
        strides: of query, key and value, in elements. All others lie as (batch, time, heads, size).
        causal: True if query i sees keys 0 to i.
        scale: what the scores are multiplied by.
    """

    product: str
    dtype: str
    query: Ints
    key: Ints
    value: Ints
    strides: tuple[Ints, Ints, Ints]
    causal: bool
    scale: float

    @property
    def tensor_cores(self) -> bool:
        return True

    def define(self, cudnn: Any, graph: Any) -> None:
        writer = _Writer(cudnn, graph)
        result = (*self.query[:3], self.value[3])
        statistics = (*self.query[:3], 1)
        in_order = (math.prod(statistics[1:]), statistics[2], 1, 1)
        query, key, value = (
            writer.operand(dims, self.dtype, strides)
            for dims, strides in zip((self.query, self.key, self.value), self.strides, strict=True)
        )
        settings = {"attn_scale": self.scale, "use_causal_mask": self.causal}
        if self.product == "forward":
            y, logarithms = graph.sdpa(q=query, k=key, v=value, generate_stats=True, **settings)
            writer.result(y, result, self.dtype, by_time(result))
            writer.result(logarithms, statistics, "float32", in_order)
            return
        y = writer.operand(result, self.dtype, by_time(result))
        dy = writer.operand(result, self.dtype, by_time(result))
        logarithms = writer.operand(statistics, "float32", in_order)
        settings["use_deterministic_algorithm"] = True
        gradients = graph.sdpa_backward(q=query, k=key, v=value, o=y, dO=dy, stats=logarithms, **settings)
        for gradient, dims in zip(gradients, (self.query, self.key, self.value), strict=True):
            writer.result(gradient, dims, self.dtype, by_time(dims))


def by_time(dims: Ints) -> Ints:
    """The strides of dims (batch, heads, time, size) that lie in memory as (batch, time, heads, size)."""
    _, heads, time, size = dims
    return heads * time * size, size, heads * size, 1
