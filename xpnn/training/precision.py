"""How the numbers of a step are computed: `Network(precision=...)`.

- "float32": as the network's dtype says (which may also be float64).
- "tf32": float32 arrays; tensor cores multiply them, with the factors rounded to 11 significant bits.
- "bfloat16", "float16": forward and backward pass on half-precision arrays. The parameters stay float32 ("master
  weights"): each step rounds a copy of them, and the gradient is widened before the optimizer gets it, so that an
  update much smaller than its weight is not lost. Loss, metrics, running statistics and the optimizer are float32.

float16 has the digits and not the range: gradients below 6e-8 would be 0. The gradient of the loss is therefore
multiplied by a scale, and the gradient of the parameters divided by it. The scale is found while training: it doubles
after 2000 steps without an overflow; a step whose gradient is infinite or NaN is left out, and the scale halves. All of
that happens on the device.

Source: Micikevicius et al., "Mixed precision training", ICLR 2018; the numbers are those of PyTorch's GradScaler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from xpnn.backend import Backend
from xpnn.dispatch import Array, namespace
from xpnn.errors import BackendError, ConfigError
from xpnn.half_precision import rounded, widened
from xpnn.layers.layer import Tree
from xpnn.optimizers.optimizer import copied
from xpnn.parameters import Layout, Vector

if TYPE_CHECKING:
    from xpnn.training.step import State

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")

FIRST_SCALE = 2.0**16
_LARGEST_SCALE, _SMALLEST_SCALE = 2.0**24, 2.0**-24
"""A scale within these bounds and its reciprocal are float32 numbers, whatever happens in a training."""
GROWTH_INTERVAL = 2000
"""The scale doubles after so many good steps in a row."""


class Scaling(NamedTuple):
    """The loss scale of a training in float16, as float32 arrays without axes: they live on the device.

    Attributes:
        scale: what the gradient of the loss is multiplied by; in a training a power of two, so that no digit is lost.
        good_steps: how many steps in a row had a finite gradient since the scale has changed.
    """

    scale: Array
    good_steps: Array


Function = TypeVar("Function", bound=Callable[..., Any])


class Precision:
    """What a step does to its arrays, for "float32": nothing. The other precisions are subclasses.

    Attributes:
        name: as in `Network(precision=...)`.
        dtype: the half-precision dtype that layers compute in; None where it is the network's own.
    """

    name = "float32"
    dtype: Any = None

    def around(self, step: Function) -> Function:
        """The step, run as the backend runs this precision."""
        return step

    def lowered(self, x: Any) -> Any:
        """The inputs of the network (an array, or a tuple of them), in the precision that the layers compute in."""
        return x

    def tree(self, layout: Layout, theta: Vector, buffers: Mapping[str, Array]) -> Tree:
        """Parameters and buffers as the layers see them; running statistics stay as they are."""
        return layout.tree(theta, buffers)

    def raised(self, x: Any) -> Any:
        """What the network gives, in the precision of the loss."""
        return x

    def output_gradient(self, gradient: Array, scaling: tuple[Array, ...]) -> Array:
        """The gradient of the loss with respect to the network's output, as the backward pass wants it."""
        return gradient

    def parameter_gradient(self, gradient: Vector, scaling: tuple[Array, ...]) -> Vector:
        """The gradient with respect to the parameters, as the optimizer wants it."""
        return gradient

    def first_scaling(self, backend: Backend) -> tuple[Array, ...]:
        """The scaling before the first step; () where there is none."""
        return ()

    def scaling_for(self, gradient: Array) -> tuple[Array, ...]:
        """A scaling for this gradient of a loss alone, outside of a training; () where there is none."""
        return ()

    def kept(self, vectors: Any) -> Any:
        """theta or the slots, for an optimizer that may overwrite them."""
        return vectors

    def settled(self, old: State, new: State, gradient: Vector) -> State:
        """The state after a step with this gradient."""
        return new


FULL = Precision()
"""Precision "float32"."""


class _Computing(Precision):
    """A precision that the backend has to know of."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name = name
        self._backend = backend

    def around(self, step: Function) -> Function:
        def computing(*arguments: Any) -> Any:
            with self._backend.computing(self.name):
                return step(*arguments)

        return computing  # type: ignore[return-value]


class _HalfPrecision(_Computing):
    """Forward and backward pass in bfloat16, or in another dtype with the range of float32."""

    def __init__(self, name: str, backend: Backend) -> None:
        super().__init__(name, backend)
        self.dtype = backend.dtype(name)

    def lowered(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(rounded(part, self.dtype) for part in x)
        return rounded(x, self.dtype)

    def tree(self, layout: Layout, theta: Vector, buffers: Mapping[str, Array]) -> Tree:
        statistics = {entry.name for entry in layout.beside if entry.is_buffer}
        lowered = {name: array if name in statistics else rounded(array, self.dtype) for name, array in buffers.items()}
        return layout.tree(self.lowered(theta), lowered)

    def raised(self, x: Any) -> Any:
        return tuple(map(widened, x)) if isinstance(x, tuple) else widened(x)

    def output_gradient(self, gradient: Array, scaling: tuple[Array, ...]) -> Array:
        return rounded(gradient, self.dtype)

    def parameter_gradient(self, gradient: Vector, scaling: tuple[Array, ...]) -> Vector:
        return tuple(map(widened, gradient))


class _ScaledPrecision(_HalfPrecision):
    """Forward and backward pass in float16, whose range is short: with a scaled loss."""

    def output_gradient(self, gradient: Array, scaling: tuple[Array, ...]) -> Array:
        if not scaling:
            raise ConfigError(
                "the state of this training has no loss scale, which precision='float16' needs: make it by "
                "net.initial_state(...) after the precision was set"
            )
        return rounded(gradient * scaling[0], self.dtype)

    def parameter_gradient(self, gradient: Vector, scaling: tuple[Array, ...]) -> Vector:
        factor = 1.0 / scaling[0]
        return tuple(widened(block) * factor for block in gradient)

    def first_scaling(self, backend: Backend) -> tuple[Array, ...]:
        return scaling_from((FIRST_SCALE, 0.0), backend)

    def scaling_for(self, gradient: Array) -> tuple[Array, ...]:
        # The largest entry becomes 1: far from both ends of float16's range.
        xp = namespace(gradient)
        largest = xp.max(xp.abs(gradient)) if 0 not in gradient.shape else xp.sum(gradient)
        # A smaller number would have no finite reciprocal.
        scale = 1.0 / xp.maximum(largest, xp.full_like(largest, 1e-30))
        return Scaling(scale, xp.zeros_like(scale))

    def kept(self, vectors: Any) -> Any:
        # The optimizer may overwrite what it is given, and the old numbers are needed where the step is left out.
        if isinstance(vectors, dict):
            return {name: copied(vector) for name, vector in vectors.items()}
        return copied(vectors)

    def settled(self, old: State, new: State, gradient: Vector) -> State:
        if not gradient:
            return new
        finite = all_finite(gradient)
        where = namespace(finite).where

        def chosen(ours: Vector, theirs: Vector) -> Vector:
            return tuple(where(finite, mine, other) for mine, other in zip(ours, theirs, strict=True))

        return new._replace(
            theta=chosen(new.theta, old.theta),
            slots={name: chosen(vector, old.slots[name]) for name, vector in new.slots.items()},
            buffers={
                name: array if array is old.buffers[name] else where(finite, array, old.buffers[name])
                for name, array in new.buffers.items()
            },
            scaling=_next_scaling(Scaling(*old.scaling), finite),
        )


def all_finite(vector: Vector) -> Array:
    """Whether no number of a vector is infinite or NaN, as a bool array without axes."""
    xp = namespace(vector[0])
    first, *others = [xp.all(xp.isfinite(block)) for block in vector]
    for finite in others:
        first = xp.logical_and(first, finite)
    return first


def _next_scaling(scaling: Scaling, finite: Array) -> Scaling:
    """The scaling after a step whose gradient was finite or not."""
    xp = namespace(finite)
    scale, good_steps = scaling
    good_steps = xp.where(finite, good_steps + 1.0, 0.0)
    grows = good_steps >= GROWTH_INTERVAL
    scale = xp.where(finite, xp.where(grows, scale * 2.0, scale), scale * 0.5)
    scale = xp.minimum(xp.maximum(scale, xp.full_like(scale, _SMALLEST_SCALE)), xp.full_like(scale, _LARGEST_SCALE))
    return Scaling(scale, xp.where(grows, 0.0, good_steps))


def scaling_from(numbers: tuple[float, float], backend: Backend) -> Scaling:
    """The scaling with (scale, good steps) as given, on the device."""
    with backend.context():
        scale, good_steps = (
            backend.xp.asarray(x, dtype=backend.dtype("float32"), device=backend.device) for x in numbers
        )
    return Scaling(scale, good_steps)


def precision_for(name: str, dtype: str, backend: Backend) -> Precision:
    """The precision of that name, for a network of this dtype on this backend.

    Raises:
        ConfigError: there is no such precision, or it does not go with the dtype.
        BackendError: the backend does not have it.
    """
    if name == "float32":
        return FULL
    if name not in PRECISIONS:
        raise ConfigError(f"precision={name!r} is unknown; known: {', '.join(PRECISIONS)}")
    if dtype != "float32":
        raise ConfigError(
            f'precision={name!r} goes with dtype="float32", in which the parameters are kept, and not with '
            f"dtype={dtype!r}; leave one of them out"
        )
    if name not in backend.precisions:
        raise BackendError(
            f"backend {backend.spec!r} computes in {', '.join(backend.precisions)}, not with precision={name!r}; use "
            f'backend="cupy" on a machine with an NVIDIA GPU, or precision="float32"'
        )
    return {"tf32": _Computing, "bfloat16": _HalfPrecision, "float16": _ScaledPrecision}[name](name, backend)
