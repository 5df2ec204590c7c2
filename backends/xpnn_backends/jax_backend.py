"""JAX: immutable arrays and jit, which prove that xpnn writes nothing in place and branches on no value."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy
import jax.scipy.special
import numpy as np

from xpnn.backend import Backend
from xpnn.dispatch import Body
from xpnn.errors import BackendError
from xpnn.ops.connectionist_temporal_classification import ctc_in_steps, in_steps
from xpnn.ops.embedding import check_scatter
from xpnn.ops.scan import one_step, product_of_hidden, weight_gradients, with_zeros
from xpnn.random import mask_threshold
from xpnn_backends import philox


def _random_mask(x: Any, key: Any, rate: float) -> tuple[Any, Any]:
    """The host's Philox words; under jit, where the step is not known while tracing, through a callback."""
    threshold = mask_threshold(rate)
    shape = tuple(x.shape)

    def on_host(step: Any) -> Any:
        return philox.keep_mask(key.seed, key.stream, int(step), shape, threshold)

    def vjp(_: Any) -> tuple[None]:
        return (None,)

    if isinstance(key.step, jax.core.Tracer):
        result = jax.ShapeDtypeStruct(shape, jax.numpy.bool_)
        return jax.pure_callback(on_host, result, key.step), vjp
    return jax.numpy.asarray(on_host(key.step), device=JaxBackend.device_of(x)), vjp


def _scatter_add(values: Any, indices: Any, length: int) -> tuple[Any, Any]:
    check_scatter(values, indices)
    features = values.shape[-1]
    rows = jax.numpy.reshape(values, (indices.size, features))
    zeros = jax.numpy.zeros((length, features), dtype=values.dtype, device=JaxBackend.device_of(values))
    total = zeros.at[jax.numpy.ravel(indices)].add(rows)

    def vjp(dy: Any) -> tuple[Any, None]:
        return jax.numpy.take(dy, indices, axis=0), None

    return total, vjp


def _erf(x: Any) -> tuple[Any, Any]:
    def vjp(dy: Any) -> tuple[Any]:
        return (dy * (jax.numpy.exp(-x * x) * (2.0 / math.sqrt(math.pi))),)

    return jax.scipy.special.erf(x), vjp


def _normal_cdf(x: Any) -> tuple[Any, Any]:
    def vjp(dy: Any) -> tuple[Any]:
        return (dy * (jax.numpy.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))),)

    return jax.scipy.special.ndtr(x), vjp


def _ctc(logits: Any, *others: Any, **options: Any) -> tuple[Any, Any]:
    """The generic body; under jit, its steps are one loop of XLA, which compiles in a moment.

    Outside, each call would compile it anew, for its steps are functions that are made in the call.
    """
    return ctc_in_steps(_in_steps if isinstance(logits, jax.core.Tracer) else in_steps, logits, *others, **options)


def _in_steps(_: Any, step: Any, start: Any, given: Any, reverse: bool) -> Any:
    return jax.lax.scan(step, start, given, reverse=reverse)


def _scan(
    products: Any,
    weight_hidden: Any,
    bias_hidden: Any,
    mask: Any,
    *states: Any,
    step: Any,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """`xpnn.ops.scan` as one loop of XLA each way: unrolled, 64 steps would take minutes to compile."""
    counts = None if mask is None else jax.numpy.expand_dims(mask.T, axis=-1)
    outputs, last, hidden_products, before = _steps_forward(
        products, weight_hidden, bias_hidden, counts, states, step, reverse
    )

    def vjp(cotangents: Any) -> tuple[Any, ...]:
        doutputs, *dlast = cotangents
        dstates = with_zeros(jax.numpy, dlast, states)
        given = products, hidden_products, before, counts, doutputs
        dproducts, dweight, dbias, dstates = _steps_backward(given, weight_hidden, bias_hidden, dstates, step, reverse)
        return dproducts, dweight, dbias, None, *dstates

    return (outputs, *last), vjp


@functools.partial(jax.jit, static_argnames=("step", "reverse"))
def _steps_forward(
    products: Any, weight_hidden: Any, bias_hidden: Any, counts: Any, states: Any, step: Any, reverse: bool
) -> tuple[Any, ...]:
    """(outputs, last states, h U + c of each step, states before each step); all but outputs with time in front."""

    def body(states: Any, given: Any) -> tuple[Any, Any]:
        product, counts_here = given
        hidden_product = product_of_hidden(jax.numpy, states[0], weight_hidden, bias_hidden)
        output, new, _ = one_step(jax.numpy, step, product, hidden_product, states, counts_here, weight_hidden)
        return new, (output, hidden_product, states)

    last, (outputs, hidden_products, before) = jax.lax.scan(body, states, (products, counts), reverse=reverse)
    return jax.numpy.permute_dims(outputs, (1, 0, 2)), last, hidden_products, before


@functools.partial(jax.jit, static_argnames=("step", "reverse"))
def _steps_backward(
    given: Any, weight_hidden: Any, bias_hidden: Any, dstates: Any, step: Any, reverse: bool
) -> tuple[Any, ...]:
    """(dproducts, dweight_hidden, dbias_hidden, dstates).

    What happened inside a step is computed again: a loop of XLA hands on arrays, no functions.
    """
    products, hidden_products, before, counts, doutputs = given
    if doutputs is not None:
        doutputs = jax.numpy.permute_dims(doutputs, (1, 0, 2))

    def body(dstates: Any, given: Any) -> tuple[Any, Any]:
        product, hidden_product, states, counts_here, doutput = given
        _, _, derivative = one_step(jax.numpy, step, product, hidden_product, states, counts_here, weight_hidden)
        dproduct, dhidden_product, dbefore = derivative(doutput, dstates)
        return dbefore, (dproduct, dhidden_product)

    arrays = products, hidden_products, before, counts, doutputs
    dstates, (dproducts, dhidden_products) = jax.lax.scan(body, dstates, arrays, reverse=not reverse)
    time, batch, units = before[0].shape
    rows = jax.numpy.reshape(before[0], (time * batch, units))
    return dproducts, *weight_gradients(jax.numpy, rows, dhidden_products, bias_hidden), dstates


class JaxBackend(Backend):
    """JAX; the training step is compiled by `jax.jit`."""

    name = "jax"
    array_packages = ("jax", "jaxlib")
    precisions = ("float32", "bfloat16", "float16")
    half_dtypes: ClassVar[Mapping[str, Any]] = {
        "float16": np.dtype(jax.numpy.float16),
        "bfloat16": np.dtype(jax.numpy.bfloat16),
    }
    blocked = True
    overrides: ClassVar[Mapping[str, Body]] = {
        "ctc": _ctc,
        "erf": _erf,
        "normal_cdf": _normal_cdf,
        "random_mask": _random_mask,
        "scan": _scan,
        "scatter_add": _scatter_add,
    }

    @classmethod
    def namespace(cls) -> Any:
        return jax.numpy

    @classmethod
    def devices(cls) -> list[str]:
        return [f"{device.platform}:{device.id}" for device in jax.devices()]

    @classmethod
    def device_of(cls, x: Any) -> Any:
        # Inside jit an array has no device yet: None leaves the choice to the compiler.
        return None if isinstance(x, jax.core.Tracer) else x.device

    @classmethod
    def device_label(cls, device: Any) -> str:
        return f"{device.platform}:{device.id}" if hasattr(device, "platform") else str(device)

    @classmethod
    def describe_device(cls, name: str) -> str:
        platform, _, index = name.partition(":")
        kind = str(next(d for d in jax.devices(platform) if d.id == int(index)).device_kind)
        return "" if kind == platform else kind

    def parse_device(self, name: str) -> Any:
        if not name:
            return None
        platform, _, index = name.partition(":")
        try:
            return jax.devices(platform.lower())[int(index or 0)]
        except (RuntimeError, ValueError, IndexError):
            raise BackendError(f"backend 'jax' has no device {name!r}; it has: {', '.join(self.devices())}") from None

    def dtype(self, name: str) -> Any:
        if name == "float64" and not jax.config.jax_enable_x64:
            raise BackendError(
                "JAX has float64 switched off; set JAX_ENABLE_X64=1 before starting, "
                'or jax.config.update("jax_enable_x64", True), or use dtype="float32"'
            )
        if name == "int64" and not jax.config.jax_enable_x64:
            name = "int32"
        return super().dtype(name)

    def enable_float64(self) -> None:
        jax.config.update("jax_enable_x64", True)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        # On GPUs and TPUs, JAX would otherwise round the factors of float32 products to fewer bits.
        if jax.default_backend() == "cpu":
            return contextlib.nullcontext()
        block: contextlib.AbstractContextManager[Any] = jax.default_matmul_precision("float32")
        return block

    def to_host(self, x: Any) -> Any:
        # A copy: JAX lends its own memory read-only. NumPy has no bfloat16.
        return np.array(x, dtype=np.float32 if x.dtype == jax.numpy.bfloat16 else None)

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        # The seed is no array: it selects the random stream, and a 64-bit seed would not survive as an int32.
        def split(key: int, state: Any, batch: Any) -> Any:
            new, loss = step(state._replace(key=key), batch)
            return new._replace(key=0), loss

        jitted = jax.jit(split, static_argnums=0, donate_argnums=1)

        def run(state: Any, batch: Any) -> Any:
            new, loss = jitted(state.key, state._replace(key=0), batch)
            return new._replace(key=state.key), loss

        return run

    def synchronize(self) -> None:
        jax.effects_barrier()
