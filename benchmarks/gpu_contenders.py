"""The contenders of `gpu.py`: each returns a function that makes n calls of what is measured, on a GPU.

With XPNN_BENCHMARK_DEVICE=cpu everybody runs on the processor, to try the script out where there is no GPU.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import contenders
import models
from deep import Deep
from networks import Spec, data
from turns import Calls, Contender, NotApplicableError, Timed

DEVICE_VARIABLE = "XPNN_BENCHMARK_DEVICE"


def device() -> str:
    """Where PyTorch computes: "cuda" or "cpu"."""
    return os.environ.get(DEVICE_VARIABLE, "cuda")


class Job(NamedTuple):
    """A network to be trained, and how products are computed: "float32", "tf32" or "bfloat16".

    Attributes:
        spec: the network with its loss, optimizer and batch.
        precision: of the layers; parameters and optimizer are float32 throughout.
        batches: of the data set, where one is gone through.
    """

    spec: Spec | Deep
    precision: str = "float32"
    batches: int = 1


# xpnn


def xpnn_backend() -> str:
    """The name of xpnn's backend for the device."""
    return "cupy" if device() == "cuda" else "numpy"


def _network(job: Job, backend: str) -> Any:
    import xpnn

    # On the processor there is float32 alone; what is tried out there is the script.
    settings = {"backend": backend, "precision": job.precision if backend == "cupy" else "float32"}
    if isinstance(job.spec, Deep):
        return xpnn.Network(*job.spec.xpnn(), input_shape=job.spec.input_shape, **settings)
    return models.xpnn_network(job.spec.sizes, job.spec.activation, **settings)


def _optimizer(job: Job) -> Any:
    import xpnn

    kind = xpnn.SGD if job.spec.optimizer == "sgd" else xpnn.Adam
    return kind(models.RATES[job.spec.optimizer])


def xpnn_step(job: Job, backend: str | None = None) -> Calls:
    """One call of the compiled step after the other: on CuPy, a CUDA graph."""
    net = _network(job, backend or xpnn_backend())
    optimizer, loss = _optimizer(job), job.spec.loss
    step, state = net.step(loss, optimizer), net.initial_state(optimizer, loss)
    batch = net.prepare(*data(job.spec), loss)

    def steps(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, value = step(state, batch)
        net.backend.synchronize()
        return float(value)

    steps.note = lambda: getattr(step, "how", "as it is")
    return steps


def xpnn_fit(job: Job) -> Calls:
    """What a step costs within `fit`, on data of the device: batches picked at random, losses added up."""
    net = _network(job, xpnn_backend())
    # A batch of the backend's own arrays: fit moves nothing.
    inputs, target, _ = net.prepare(*_many_batches(job), job.spec.loss)
    return _fits(job, net, inputs, target)


def xpnn_streamed(job: Job) -> Calls:
    """The same with data of the host; XPNN_DATA_SHARE says whether they are moved as a whole or batch by batch."""
    return _fits(job, _network(job, xpnn_backend()), *_many_batches(job))


def _many_batches(job: Job) -> tuple[Any, Any]:
    """(inputs, targets) of all batches of a job, as NumPy arrays."""
    return data(job.spec._replace(batch=job.spec.batch * job.batches))


def _fits(job: Job, net: Any, inputs: Any, targets: Any) -> Calls:
    def steps(count: int) -> Timed:
        epochs = 1 + max(2, math.ceil(count / job.batches))
        history = net.fit(
            inputs,
            targets,
            loss=job.spec.loss,
            optimizer=_optimizer(job),
            epochs=epochs,
            batch_size=job.spec.batch,
            verbose=0,
        )
        # In the first epoch of a fit its step is captured.
        return Timed(statistics.median(history.seconds[1:]) / job.batches, history["loss"][-1])

    def note() -> str:
        kept = net.backend.keeps(inputs.nbytes)
        return f"{net.compiled['fit']}; data on the {'device' if kept else 'host'}"

    steps.note = note
    return steps


def xpnn_on_numpy(job: Job) -> Calls:
    """The compiled step on the NumPy backend."""
    return xpnn_step(job, "numpy")


def bare(job: Job) -> Calls:
    """Only the matrix products of the step, through cublasLt into existing arrays, as one CUDA graph."""
    if device() != "cuda":
        raise NotApplicableError("cublasLt is on GPUs only")
    import cupy
    import numpy as np

    import xpnn
    from xpnn_backends.cupy import products

    spec, backend = job.spec, xpnn.get_backend("cupy")
    assert isinstance(spec, Spec)
    dtype = backend.dtype("bfloat16" if job.precision == "bfloat16" else "float32")
    largest = max(*(m * n for m, n in itertools.pairwise(spec.sizes)), *(spec.batch * n for n in spec.sizes))
    numbers = np.random.Generator(np.random.Philox(1)).standard_normal(largest, dtype=np.float32) * np.float32(0.01)

    def normal(*shape: int) -> Any:
        return backend.asarray(numbers[: math.prod(shape)].reshape(shape)).astype(dtype)

    with backend.context(), backend.computing(job.precision):
        weights = [normal(m, n) for m, n in itertools.pairwise(spec.sizes)]
        activations = [normal(spec.batch, n) for n in spec.sizes]
        errors = [normal(spec.batch, n) for n in spec.sizes]
        gradients = [cupy.empty_like(weight) for weight in weights]

        def step() -> None:
            for index, weight in enumerate(weights):
                products.matmul(activations[index], weight, activations[index + 1])
            for index in reversed(range(len(weights))):
                products.matmul(activations[index].T, errors[index + 1], gradients[index])
                if index:  # nobody needs the gradient of the inputs
                    products.matmul(errors[index + 1], weights[index].T, errors[index])

        stream = cupy.cuda.Stream(non_blocking=True)
        backend.synchronize()
        with stream:
            products.prepare()
            step()
            stream.begin_capture()
            step()
            graph = stream.end_capture()

    def steps(count: int) -> float:
        with backend.context(), stream:
            for _ in range(count):
                graph.launch(stream)
            stream.synchronize()
            return float(gradients[0][0, 0])

    return steps


# PyTorch


def _torch_settings(job: Job) -> Any:
    """Set the precision of products; the block in which network and loss are computed."""
    import torch

    tf32 = job.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True  # of all ways to do a convolution, the fastest
    if job.precision != "bfloat16":
        return contextlib.nullcontext
    return lambda: torch.autocast(device(), torch.bfloat16)


def _torch_parts(job: Job) -> tuple[Any, Any, Any]:
    is_image = isinstance(job.spec, Deep) and job.spec.is_image
    return contenders.torch_parts(job.spec, channels_last=is_image, device=device())


def torch_eager(job: Job) -> Calls:
    """PyTorch, eager, with its fused optimizers; images have the memory format channels_last."""
    autocast = _torch_settings(job)
    net, inputs, targets = _torch_parts(job)
    return contenders.torch_steps(net, job.spec, True, inputs, targets, autocast)


def torch_compiled_model(job: Job) -> Calls:
    """The compiled model, as PyTorch's tutorials have it: its passes are CUDA graphs, loss and optimizer are eager."""
    import torch

    autocast = _torch_settings(job)
    net, inputs, targets = _torch_parts(job)
    net = torch.compile(net, dynamic=False, mode="reduce-overhead")
    steps = contenders.torch_steps(net, job.spec, True, inputs, targets, autocast)
    steps.note = _skipped_graphs
    return steps


def torch_compiled_step(job: Job) -> Calls:
    """The whole step, with gradients and update, compiled as one graph, and run as one CUDA graph.

    Where PyTorch cannot do that, the compiled model.
    """
    import torch

    try:
        steps = _torch_whole_step(job)
        steps(1)
    except Exception as error:  # whatever the compiler raises is the reason
        torch._dynamo.reset()
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
        steps = torch_compiled_model(job)
        steps.note = lambda: f"the model alone; {_skipped_graphs()}; the whole step: {reason}"
    return steps


def _torch_whole_step(job: Job) -> Calls:
    import torch

    autocast = _torch_settings(job)
    net, inputs, targets = _torch_parts(job)
    for tensor in (inputs, targets):
        torch._dynamo.mark_static_address(tensor)
    spec = job.spec
    step, _ = models.torch_compiled_step(net, spec.loss, spec.optimizer, mode="reduce-overhead", autocast=autocast)

    def steps(count: int) -> float:
        for _ in range(count):
            value = step(inputs, targets)
        return value.item()

    steps.note = _skipped_graphs
    return steps


def _skipped_graphs() -> str:
    from torch._dynamo.utils import counters

    skipped = counters["inductor"].get("cudagraph_skips", 0)
    return f"CUDA graphs refused {skipped} times" if skipped else "CUDA graphs"


# JAX


def jax(job: Job, flat: bool = False) -> Calls:
    """The whole step in one jit, the state donated, the batch on the device."""
    import jax
    import jax.numpy as jnp

    # XLA takes TF32 for float32 products unless it is told otherwise; bfloat16 is cast to.
    precisions = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "default"}
    jax.config.update("jax_default_matmul_precision", precisions[job.precision])
    spec = job.spec
    assert isinstance(spec, Spec)
    if flat:
        made = models.jax_flat_step(spec.sizes, spec.activation, spec.loss, spec.optimizer)
        return contenders.jax_steps(spec, models.jax_parameters(spec.sizes), made)

    def forward(parameters: Any, inputs: Any) -> Any:
        if job.precision != "bfloat16":
            return models.jax_forward(parameters, inputs, spec.sizes, spec.activation)
        halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (parameters, inputs))
        return models.jax_forward(*halved, spec.sizes, spec.activation).astype(jnp.float32)

    made = models.jax_step_of(forward, spec.loss, spec.optimizer)
    return contenders.jax_steps(spec, models.jax_parameters(spec.sizes), made)


def jax_flat(job: Job) -> Calls:
    """The same, with all parameters in one vector: cheaper to call, for small networks."""
    return jax(job, flat=True)


# What memory bounds


class Traffic(NamedTuple):
    """Work whose least traffic with the device's memory is known.

    Attributes:
        work: "adam" or "cross_entropy".
        shape: of the parameters, or of the logits; float32.
        byte_count: read and written: of Adam, theta and both moments are read and written and the gradient is read; of
            the cross-entropy with its gradient, the logits are read and their gradient is written.
    """

    work: str
    shape: tuple[int, ...]

    @property
    def byte_count(self) -> int:
        return (28 if self.work == "adam" else 8) * math.prod(self.shape)


def _timed_by_events(traffic: Traffic, once: Callable[[], Any]) -> Calls:
    """`once`, so many times between two events of the device; the result is the rate in GB/s."""
    import cupy

    import xpnn

    backend = xpnn.get_backend("cupy")

    def calls(count: int) -> Timed:
        with backend.context():
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            for _ in range(count):
                once()
            end.record()
            end.synchronize()
        seconds = cupy.cuda.get_elapsed_time(start, end) / 1e3 / count
        return Timed(seconds, traffic.byte_count / seconds / 1e9)

    return calls


def copy(traffic: Traffic) -> Calls:
    """A copy on the device that reads and writes as many bytes: the floor."""
    if device() != "cuda":
        raise NotApplicableError("on GPUs only")
    import cupy

    import xpnn

    with xpnn.get_backend("cupy").context():
        half = traffic.byte_count // 2
        source = (cupy.arange(half // 4, dtype=cupy.float32) * 1e-3).view(cupy.uint8)
        target = cupy.empty_like(source)

    def once() -> None:
        target.data.copy_from_device_async(source.data, source.nbytes, cupy.cuda.get_current_stream())

    return _timed_by_events(traffic, once)


def xpnn_op(traffic: Traffic) -> Calls:
    """The op on the CuPy backend."""
    if device() != "cuda":
        raise NotApplicableError("on GPUs only")
    return _adam(traffic) if traffic.work == "adam" else _cross_entropy(traffic)


def _adam(traffic: Traffic) -> Calls:
    import cupy

    import xpnn

    with xpnn.get_backend("cupy").context():
        gradient = cupy.cos(cupy.arange(traffic.shape[0], dtype=cupy.float32))
        arrays = [cupy.sin(gradient), cupy.zeros_like(gradient), cupy.zeros_like(gradient)]

    def once() -> None:
        theta, first, second = arrays
        # learning rate, beta1, beta2, epsilon, and the corrections of a late step
        numbers = (1e-3, 0.9, 0.999, 1e-8, 1.0, 0.999)
        arrays[:] = xpnn.ops.adam(theta, gradient, first, second, *numbers, donate=True)[0]

    return _timed_by_events(traffic, once)


def _cross_entropy(traffic: Traffic) -> Calls:
    import cupy

    import xpnn

    rows, classes = traffic.shape
    with xpnn.get_backend("cupy").context():
        logits = 4 * cupy.cos(cupy.arange(rows * classes, dtype=cupy.float32)).reshape(rows, classes)
        labels = cupy.arange(rows, dtype=cupy.int64) * 7919 % classes

    def once() -> None:
        _, vjp = xpnn.ops.cross_entropy(logits, labels)
        vjp(1.0)

    return _timed_by_events(traffic, once)


# Environments

_JAX = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else the first process takes most of the memory
    "JAX_PLATFORMS": "cpu" if device() == "cpu" else "cuda",
}
_TORCH = {"TORCHINDUCTOR_COMPILE_THREADS": "2"}  # several are built side by side

XPNN = Contender(xpnn_step)
FIT = Contender(xpnn_fit)
HOST_FED = Contender(xpnn_streamed, environment={"XPNN_DATA_SHARE": "0"})
ON_DEVICE = Contender(xpnn_streamed, environment={"XPNN_DATA_SHARE": "1"})
NUMPY = Contender(xpnn_on_numpy)
BARE = Contender(bare)
TORCH = Contender(torch_eager, ("torch",))
TORCH_MODEL = Contender(torch_compiled_model, ("torch",), _TORCH)
TORCH_STEP = Contender(torch_compiled_step, ("torch",), _TORCH)
JAX = Contender(jax, ("jax", "jaxlib"), _JAX, alone=True)
JAX_FLAT = Contender(jax_flat, ("jax", "jaxlib"), _JAX)
COPY = Contender(copy)
OP = Contender(xpnn_op)
