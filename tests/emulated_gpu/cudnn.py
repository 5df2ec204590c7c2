"""A stand-in for the Python module `cudnn` (nvidia-cudnn-frontend) that computes on host memory, with NumPy.

It knows the operations that xpnn asks for, reads and writes memory by the dimensions and strides that a graph
declares, and checks what cuDNN checks: that shapes follow from each other, that every uid is there once and every
result goes somewhere, that steps come in their order, that pointers are aligned, that nothing runs on another stream
than the handle's. Work goes to the emulated stream, so it is captured and replayed like a kernel.

Sums are taken in float64 and results are rounded once.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import itertools
import math
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

WORKSPACE = 256
"""Bytes that every graph wants; they are overwritten."""

ALIGNMENT = 16

executed: Counter[str] = Counter()
"""How often graphs were put on a stream, by their operations: "conv_fprop+bias"."""

_refusals: list[Callable[[pygraph], bool]] = []


class cudnnGraphNotSupportedError(RuntimeError):  # noqa: N801 (the name in the library)
    """No engine can do this graph."""


data_type = enum.Enum("data_type", ["NOT_SET", "FLOAT", "HALF", "BFLOAT16"])
heur_mode = enum.Enum("heur_mode", ["A", "B", "FALLBACK"])
numerical_note = enum.Enum("numerical_note", ["TENSOR_CORE", "DOWN_CONVERT_INPUTS", "NONDETERMINISTIC"])
norm_forward_phase = enum.Enum("norm_forward_phase", ["INFERENCE", "TRAINING"])


class Misuse(BaseException):
    """The module was used wrongly. No Exception, which xpnn would take for a graph that has no plan."""


def _check(holds: bool, message: str = "a graph that cuDNN would refuse") -> None:
    if not holds:
        raise Misuse(message)


_NUMPY = {
    data_type.FLOAT: np.dtype(np.float32),
    data_type.HALF: np.dtype(np.float16),
}
with contextlib.suppress(ImportError):  # without it CuPy has no bfloat16 either
    import ml_dtypes

    _NUMPY[data_type.BFLOAT16] = np.dtype(ml_dtypes.bfloat16)


class Handle:
    """What cuDNN keeps for one thread: here, a stream."""

    def __init__(self) -> None:
        self.stream = 0


def create_handle() -> Handle:
    _check_no_capture()
    return Handle()


def set_stream(handle: Handle, stream: int) -> None:
    _check_no_capture()
    handle.stream = stream


def _check_no_capture() -> None:
    """cuDNN allocates memory for a handle, and asks the driver about its stream."""
    from cupy.cuda import stream

    _check(not stream.get_current_stream().is_capturing(), "a handle is made, or set, while a graph is captured")


def backend_version() -> int:
    return 92700


class Tensor:
    """An array of a graph, or a value between two operations."""

    def __init__(
        self, dim: list[int], stride: list[int], data_type: Any, uid: int = -1, is_pass_by_value: bool = False
    ):
        self.dim, self.stride, self.data_type, self.uid = list(dim), list(stride), data_type, uid
        self.is_number = is_pass_by_value
        self.inferred: list[int] = list(dim)
        self.is_read = False
        self.is_output = False

    def set_output(self, output: bool) -> Tensor:
        self.is_output = output
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = list(dim)
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = list(stride)
        return self

    def set_data_type(self, data_type: Any) -> Tensor:
        self.data_type = data_type
        return self

    def at(self, address: int) -> Any:
        """The memory from an address on, with this tensor's dimensions and strides."""
        dtype = _NUMPY[self.data_type]
        extent = 1 + sum((length - 1) * step for length, step in zip(self.dim, self.stride, strict=True))
        memory = np.frombuffer((ctypes.c_ubyte * (extent * dtype.itemsize)).from_address(address), dtype=dtype)
        return np.lib.stride_tricks.as_strided(memory, self.dim, [step * dtype.itemsize for step in self.stride])


class _Operation:
    def __init__(self, name: str, inputs: list[Tensor], outputs: list[Tensor], compute: Callable[..., Any]) -> None:
        self.name, self.inputs, self.outputs, self.compute = name, inputs, outputs, compute


_STEPS = ("new", "validated", "has operations", "has plans", "is supported", "built")


class pygraph:  # noqa: N801 (the name in the library)
    """Operations on tensors, then a plan, then its execution; the steps must come in their order."""

    def __init__(
        self, *, io_data_type: Any, intermediate_data_type: Any, compute_data_type: Any, handle: Handle
    ) -> None:
        _check(intermediate_data_type is compute_data_type is data_type.FLOAT, "sums must be float32")
        self.io_data_type, self.handle = io_data_type, handle
        self.operations: list[_Operation] = []
        self.operands: list[Tensor] = []
        self.step = "new"
        self.deselected: list[Any] = []

    def _after(self, wanted: str, step: str) -> None:
        _check(self.step == wanted, f"the graph is {self.step}, and must be {wanted}")
        self.step = step

    def tensor(
        self, *, dim: list[int], stride: list[int], data_type: Any, uid: int, is_pass_by_value: bool = False
    ) -> Tensor:
        self.operands.append(Tensor(dim, stride, data_type, uid, is_pass_by_value))
        return self.operands[-1]

    def _add(self, name: str, inputs: list[Tensor], shapes: list[Any], compute: Callable[..., Any]) -> list[Tensor]:
        _check(self.step == "new")
        outputs = [Tensor(list(shape), [], data_type.NOT_SET) for shape in shapes]
        for tensor in inputs:
            tensor.is_read = True
        self.operations.append(_Operation(name, inputs, outputs, compute))
        return outputs

    def validate(self) -> None:
        self._after("new", "validated")
        results = [tensor for operation in self.operations for tensor in operation.outputs]
        for tensor in results:
            _check(tensor.is_output or tensor.is_read, "a result goes nowhere")
            _check(tensor.dim == tensor.inferred, f"a result has dimensions {tensor.inferred}, not {tensor.dim}")
        outside = [*self.operands, *(tensor for tensor in results if tensor.is_output)]
        uids = [tensor.uid for tensor in outside]
        _check(min(uids) > 0 and len(set(uids)) == len(uids), f"uids {uids}")
        for tensor in outside:
            _check(len(tensor.dim) == len(tensor.stride) and min(tensor.dim) > 0, "dimensions and strides do not fit")
            _check(tensor.data_type in _NUMPY, "a data type is missing")
            _check_apart(tensor)
        for tensor in self.operands:
            _check(tensor.is_read, f"operand {tensor.uid} is not read")
        self.outside = {tensor.uid: tensor for tensor in outside}

    def build_operation_graph(self) -> None:
        self._after("validated", "has operations")

    def create_execution_plans(self, modes: list[Any]) -> None:
        self._after("has operations", "has plans")
        _check(modes)

    def deselect_numeric_notes(self, notes: list[Any]) -> None:
        _check(self.step == "has plans")
        self.deselected += notes

    def check_support(self) -> None:
        self._after("has plans", "is supported")
        if any(refuses(self) for refuses in _refusals):
            raise cudnnGraphNotSupportedError("No execution plans support the graph.")

    def build_plans(self) -> None:
        self._after("is supported", "built")

    def get_workspace_size(self) -> int:
        _check(self.step == "built")
        return WORKSPACE

    @property
    def name(self) -> str:
        """The names of the operations, joined by "+"."""
        return "+".join(operation.name for operation in self.operations)

    def execute(self, pointers: dict[int, int], workspace: int, handle: Handle) -> None:
        _check(self.step == "built")
        _check(pointers.keys() == self.outside.keys(), "each operand and result must have its pointer")
        numbers = {}
        for uid, tensor in self.outside.items():
            address = pointers[uid]
            _check(type(address) is int and address, f"uid {uid} has the pointer {address!r}")
            if tensor.is_number:
                numbers[uid] = tensor.at(address).copy()  # cuDNN reads it now
            else:
                _check(address % ALIGNMENT == 0, f"uid {uid} lies at {address:#x}, which is not aligned")
        _check(workspace)
        fixed = dict(pointers)
        executed[self.name] += 1

        def run() -> None:
            ctypes.memset(workspace, 0xFF, WORKSPACE)
            self._compute(fixed, numbers)

        _enqueue(handle.stream, run)

    def _compute(self, pointers: dict[int, int], numbers: dict[int, Any]) -> None:
        values: dict[int, Any] = {}
        for tensor in self.operands:
            source = numbers[tensor.uid] if tensor.is_number else tensor.at(pointers[tensor.uid])
            values[id(tensor)] = source.astype(np.float64)
        with np.errstate(all="ignore"):
            for operation in self.operations:
                found = operation.compute(*(values[id(tensor)] for tensor in operation.inputs))
                found = found if isinstance(found, tuple) else (found,)
                for tensor, value in zip(operation.outputs, found, strict=True):
                    values[id(tensor)] = value
                    if tensor.is_output:
                        tensor.at(pointers[tensor.uid])[...] = value.astype(_NUMPY[tensor.data_type])

    # Convolution

    def conv_fprop(self, *, image: Tensor, weight: Tensor, **settings: Any) -> Tensor:
        window = _Window(image.dim, weight.dim, **settings)
        shape = [image.dim[0], weight.dim[0], *window.places]
        return self._add("conv_fprop", [image, weight], [shape], window.forward)[0]

    def conv_dgrad(self, *, loss: Tensor, filter: Tensor, **settings: Any) -> Tensor:
        # The image's shape does not follow from the others: it must be set, and fit.
        output = Tensor([], [], data_type.NOT_SET)

        def compute(loss_value: Any, weight: Any) -> Any:
            window = _Window(output.dim, filter.dim, **settings)
            _check(loss.dim == [output.dim[0], filter.dim[0], *window.places], "the places do not fit the image")
            return window.input_gradient(loss_value, weight)

        return self._add_shaped_later("conv_dgrad", [loss, filter], output, compute)

    def conv_wgrad(self, *, image: Tensor, loss: Tensor, **settings: Any) -> Tensor:
        output = Tensor([], [], data_type.NOT_SET)

        def compute(image_value: Any, loss_value: Any) -> Any:
            window = _Window(image.dim, output.dim, **settings)
            _check(loss.dim == [image.dim[0], output.dim[0], *window.places], "the places do not fit the image")
            return window.weight_gradient(image_value, loss_value)

        return self._add_shaped_later("conv_wgrad", [image, loss], output, compute)

    def _add_shaped_later(self, name: str, inputs: list[Tensor], output: Tensor, compute: Callable[..., Any]) -> Tensor:
        for tensor in inputs:
            tensor.is_read = True
        self.operations.append(_Operation(name, inputs, [output], compute))
        output.inferred = output.dim = []

        def set_dim(dim: list[int]) -> Tensor:
            output.dim = output.inferred = list(dim)
            return output

        output.set_dim = set_dim  # type: ignore[method-assign]
        return output

    def bias(self, *, input: Tensor, bias: Tensor) -> Tensor:
        _check(all(length in (1, full) for length, full in zip(bias.dim, input.dim, strict=True)))
        return self._add("bias", [input, bias], [input.dim], lambda x, b: x + b)[0]

    # Normalisation

    def batchnorm(
        self,
        *,
        input: Tensor,
        scale: Tensor,
        bias: Tensor,
        in_running_mean: Tensor,
        in_running_var: Tensor,
        epsilon: Tensor,
        momentum: Tensor,
    ) -> list[Tensor]:
        channels = _channels(input)
        if self.io_data_type is not data_type.FLOAT and channels[1] % 8:
            _refuse_later(self)
        for tensor in (scale, bias, in_running_mean, in_running_var):
            _check(tensor.dim == channels)
        _check(epsilon.is_number and momentum.is_number)
        count = math.prod(input.dim) // channels[1]

        def compute(x: Any, weight: Any, shift: Any, mean: Any, variance: Any, small: Any, share: Any) -> Any:
            z, found_mean, inverse, found_variance = _standardize(x, (0, 2, 3), small)
            new_mean = (1 - share) * mean + share * found_mean
            new_variance = (1 - share) * variance + share * found_variance * count / (count - 1)
            return z * weight + shift, found_mean, inverse, new_mean, new_variance

        inputs = [input, scale, bias, in_running_mean, in_running_var, epsilon, momentum]
        return self._add("batchnorm", inputs, [input.dim, *[channels] * 4], compute)

    def batchnorm_backward(
        self, *, grad: Tensor, input: Tensor, scale: Tensor, mean: Tensor, inv_variance: Tensor
    ) -> list[Tensor]:
        channels = _channels(input)
        for tensor in (scale, mean, inv_variance):
            _check(tensor.dim == channels)
        return self._add_backward("batchnorm_backward", grad, input, scale, [mean, inv_variance], (0, 2, 3))

    def layernorm(
        self, *, norm_forward_phase: Any, input: Tensor, scale: Tensor, bias: Tensor, epsilon: Tensor
    ) -> list[Tensor]:
        _check(norm_forward_phase.name == "TRAINING" and epsilon.is_number)
        _check(scale.dim == bias.dim == [1, *input.dim[1:]])
        samples = [input.dim[0], 1, 1, 1]

        def compute(x: Any, weight: Any, shift: Any, small: Any) -> Any:
            z, mean, inverse, _ = _standardize(x, (1, 2, 3), small)
            return z * weight + shift, mean, inverse

        return self._add("layernorm", [input, scale, bias, epsilon], [input.dim, samples, samples], compute)

    def layernorm_backward(
        self, *, grad: Tensor, input: Tensor, scale: Tensor, mean: Tensor, inv_variance: Tensor
    ) -> list[Tensor]:
        _check(mean.dim == inv_variance.dim == [input.dim[0], 1, 1, 1])
        return self._add_backward("layernorm_backward", grad, input, scale, [mean, inv_variance], (1, 2, 3))

    def rmsnorm(self, *, norm_forward_phase: Any, input: Tensor, scale: Tensor, epsilon: Tensor) -> list[Tensor]:
        _check(norm_forward_phase.name == "TRAINING" and epsilon.is_number)
        _check(scale.dim == [1, *input.dim[1:]])

        def compute(x: Any, weight: Any, small: Any) -> Any:
            inverse = 1 / np.sqrt(np.mean(x * x, axis=(1, 2, 3), keepdims=True) + small)
            return x * inverse * weight, inverse

        return self._add("rmsnorm", [input, scale, epsilon], [input.dim, [input.dim[0], 1, 1, 1]], compute)

    def rmsnorm_backward(
        self, *, grad: Tensor, input: Tensor, scale: Tensor, inv_variance: Tensor, has_dbias: bool
    ) -> list[Any]:
        _check(not has_dbias and inv_variance.dim == [input.dim[0], 1, 1, 1])

        def compute(dy: Any, x: Any, weight: Any, inverse: Any) -> Any:
            z, g = x * inverse, dy * weight
            dx = inverse * (g - z * np.mean(g * z, axis=(1, 2, 3), keepdims=True))
            return dx, np.sum(dy * z, axis=0, keepdims=True)

        results = self._add("rmsnorm_backward", [grad, input, scale, inv_variance], [input.dim, scale.dim], compute)
        return [*results, None]

    def _add_backward(
        self, name: str, grad: Tensor, x: Tensor, scale: Tensor, statistics: list[Tensor], axes: tuple[int, ...]
    ) -> list[Tensor]:
        _check(grad.dim == x.dim)
        others = tuple(axis for axis, length in enumerate(scale.dim) if length == 1)

        def compute(dy: Any, x: Any, weight: Any, mean: Any, inverse: Any) -> Any:
            z, g = (x - mean) * inverse, dy * weight
            mean_of = [np.mean(part, axis=axes, keepdims=True) for part in (g, g * z)]
            sums = [np.sum(part, axis=others, keepdims=True).reshape(scale.dim) for part in (dy * z, dy)]
            return (inverse * (g - mean_of[0] - z * mean_of[1]), *sums)

        return self._add(name, [grad, x, scale, *statistics], [x.dim, scale.dim, scale.dim], compute)

    # Attention

    def sdpa(
        self, *, q: Tensor, k: Tensor, v: Tensor, generate_stats: bool, attn_scale: float, use_causal_mask: bool
    ) -> list[Tensor]:
        if q.dim[3] % 8 or v.dim[3] % 8:
            raise cudnnGraphNotSupportedError("hidden_dim should be multiple of 8")
        _check(
            generate_stats and q.dim[0] == k.dim[0] == v.dim[0] and q.dim[3] == k.dim[3] and k.dim[1:3] == v.dim[1:3]
        )

        def compute(query: Any, key: Any, value: Any) -> Any:
            _, logarithms, weights = _attend(query, key, attn_scale, use_causal_mask)
            return weights @ _for_each_head(value, query), logarithms

        return self._add("sdpa", [q, k, v], [[*q.dim[:3], v.dim[3]], [*q.dim[:3], 1]], compute)

    def sdpa_backward(
        self,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        dO: Tensor,
        stats: Tensor,
        attn_scale: float,
        use_causal_mask: bool,
        use_deterministic_algorithm: bool,
    ) -> list[Tensor]:
        _check(use_deterministic_algorithm, "one seed, one result")
        if q.dim[2] == k.dim[2] == 1:
            raise cudnnGraphNotSupportedError("s_q = s_kv = 1 is not supported.")
        _check(o.dim == dO.dim and stats.dim == [*q.dim[:3], 1])

        def compute(query: Any, key: Any, value: Any, y: Any, dy: Any, logarithms: Any) -> Any:
            scores, _, _ = _attend(query, key, attn_scale, use_causal_mask)
            weights = np.exp(scores - logarithms)
            dweights = dy @ np.swapaxes(_for_each_head(value, query), 2, 3)
            dscores = weights * (dweights - np.sum(dy * y, axis=3, keepdims=True)) * attn_scale
            dkey = np.swapaxes(dscores, 2, 3) @ query
            dvalue = np.swapaxes(weights, 2, 3) @ dy
            return dscores @ _for_each_head(key, query), _summed(dkey, key), _summed(dvalue, value)

        return self._add("sdpa_backward", [q, k, v, o, dO, stats], [q.dim, k.dim, v.dim], compute)


class _Window:
    """The window of a convolution, in cuDNN's order of axes."""

    def __init__(
        self,
        image: list[int],
        weight: list[int],
        *,
        pre_padding: list[int],
        post_padding: list[int],
        stride: list[int],
        dilation: list[int],
    ) -> None:
        self.image, self.weight, self.stride, self.dilation = image, weight, stride, dilation
        self.padding = [(0, 0), (0, 0), *zip(pre_padding, post_padding, strict=True)]
        _check(len(image) == len(weight) == len(self.padding) and len(stride) == len(dilation) == len(image) - 2)
        self.groups = image[1] // weight[1]
        _check(image[1] == self.groups * weight[1] and weight[0] % self.groups == 0, "channels and groups do not fit")
        self.padded = [length + sum(pair) for length, pair in zip(image, self.padding, strict=True)]
        self.places = [
            (length - distance * (size - 1) - 1) // step + 1
            for length, size, step, distance in zip(self.padded[2:], weight[2:], stride, dilation, strict=True)
        ]

    def _taps(self) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
        """Each position of the window with the slices of the padded image that lie under it in all places."""
        for tap in itertools.product(*map(range, self.weight[2:])):
            under = [
                slice(position * distance, position * distance + (count - 1) * step + 1, step)
                for position, distance, count, step in zip(tap, self.dilation, self.places, self.stride, strict=True)
            ]
            yield tap, (slice(None), slice(None), *under)

    def _split(self, x: Any) -> Any:
        """(batch, channels, ...) as (batch, groups, channels of a group, places)."""
        return x.reshape(x.shape[0], self.groups, x.shape[1] // self.groups, -1)

    def _of_tap(self, weight: Any, tap: tuple[int, ...]) -> Any:
        """(groups, out of a group, in of a group)."""
        return weight[(slice(None), slice(None), *tap)].reshape(self.groups, -1, self.weight[1])

    def forward(self, image: Any, weight: Any) -> Any:
        padded = np.pad(image, self.padding)
        total: Any = 0.0
        for tap, under in self._taps():
            total = total + np.einsum("ngip,goi->ngop", self._split(padded[under]), self._of_tap(weight, tap))
        return total.reshape(image.shape[0], self.weight[0], *self.places)

    def input_gradient(self, places: Any, weight: Any) -> Any:
        padded = np.zeros(self.padded)
        for tap, under in self._taps():
            part = np.einsum("ngop,goi->ngip", self._split(places), self._of_tap(weight, tap))
            padded[under] += part.reshape(self.image[0], self.image[1], *self.places)
        inner = [slice(before, before + n) for (before, _), n in zip(self.padding, self.image, strict=True)]
        return padded[tuple(inner)]

    def weight_gradient(self, image: Any, places: Any) -> Any:
        padded = np.pad(image, self.padding)
        gradient = np.zeros(self.weight)
        for tap, under in self._taps():
            part = np.einsum("ngip,ngop->goi", self._split(padded[under]), self._split(places))
            gradient[(slice(None), slice(None), *tap)] = part.reshape(self.weight[:2])
        return gradient


def _channels(x: Tensor) -> list[int]:
    return [1, x.dim[1], 1, 1]


def _standardize(x: Any, axes: tuple[int, ...], epsilon: Any) -> tuple[Any, Any, Any, Any]:
    mean = np.mean(x, axis=axes, keepdims=True)
    variance = np.mean((x - mean) ** 2, axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(variance + epsilon)
    return (x - mean) * inverse, mean, inverse, variance


def _for_each_head(x: Any, query: Any) -> Any:
    """Keys or values, repeated for all query heads that share them."""
    return np.repeat(x, query.shape[1] // x.shape[1], axis=1)


def _summed(gradient: Any, like: Any) -> Any:
    """The sum over the query heads that share a key head."""
    batch, heads, time, size = gradient.shape
    return gradient.reshape(batch, like.shape[1], heads // like.shape[1], time, size).sum(axis=2)


def _attend(query: Any, key: Any, scale: float, causal: bool) -> tuple[Any, Any, Any]:
    """Scores, the logarithms of the sums of their exponentials, and the weights."""
    scores = query @ np.swapaxes(_for_each_head(key, query), 2, 3) * scale
    if causal:
        reached = np.arange(scores.shape[2])[:, None] >= np.arange(scores.shape[3])
        scores = np.where(reached, scores, -np.inf)
    largest = scores.max(axis=3, keepdims=True)
    logarithms = largest + np.log(np.exp(scores - largest).sum(axis=3, keepdims=True))
    return scores, logarithms, np.exp(scores - logarithms)


def _check_apart(tensor: Tensor) -> None:
    """No two elements of a tensor may lie in one place."""
    reached = 0
    for step, length in sorted((s, n) for s, n in zip(tensor.stride, tensor.dim, strict=True) if n > 1):
        _check(step > reached, f"the strides {tensor.stride} overlap for dimensions {tensor.dim}")
        reached += step * (length - 1)


def _refuse_later(graph: pygraph) -> None:
    def check_support() -> None:
        raise cudnnGraphNotSupportedError("No valid engine configs")

    graph.check_support = check_support  # type: ignore[method-assign]


@contextlib.contextmanager
def refusing(predicate: Callable[[pygraph], bool]) -> Iterator[None]:
    """A block in which no engine supports the graphs for which the predicate holds."""
    _refusals.append(predicate)
    try:
        yield
    finally:
        _refusals.remove(predicate)


_jobs: list[Callable[[], None]] = []
"""All that was ever put on a stream: a graph may replay it."""
_failures: list[BaseException] = []


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _run_job(arguments: int) -> None:
    try:
        _jobs[ctypes.c_int64.from_address(arguments).value]()
    except BaseException as error:  # it cannot pass through the runtime: the next enqueuing raises it
        _failures.append(error)


def _enqueue(stream: int, job: Callable[[], None]) -> None:
    from emulated_gpu import device

    if _failures:
        raise _failures.pop()
    _jobs.append(job)
    number = ctypes.c_int64(len(_jobs) - 1)
    put = device._library.emulated_enqueue
    put.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    status = put(stream, ctypes.cast(_run_job, ctypes.c_void_p), ctypes.addressof(number), ctypes.sizeof(number))
    _check(status == 0, f"the emulated runtime refuses work with error {status}")
    if _failures:
        raise _failures.pop()


def install() -> None:
    """From now on, `import cudnn` gives this stand-in."""
    module: Any = types.ModuleType("cudnn", __doc__)
    for name in (
        "backend_version",
        "create_handle",
        "cudnnGraphNotSupportedError",
        "data_type",
        "heur_mode",
        "norm_forward_phase",
        "numerical_note",
        "pygraph",
        "set_stream",
    ):
        setattr(module, name, globals()[name])
    sys.modules["cudnn"] = module
