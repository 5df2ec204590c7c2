"""Bodies of the optimizers' ops: one pass over memory for each update, in place on what is donated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cupy

from xpnn.dispatch import Body
from xpnn_backends.cupy.kernels import THREADS, blocks_for, generic, in_order, launch, number
from xpnn_backends.cupy.memory import note_donation

BODIES: dict[str, Body] = {}
"""op name -> body."""

FAMILY = "optimizers"

_DTYPES = ("float32", "float64")

KERNELS: list[tuple[str, str, tuple[Any, ...]]] = [
    *(
        (FAMILY, name, (dtype,))
        for name in ("sgd", "nadam", "adagrad", "adadelta", "moving_average")
        for dtype in _DTYPES
    ),
    *(
        (FAMILY, name, (dtype, flag))
        for name in ("sgd_momentum", "adam", "amsgrad", "rmsprop", "rmsprop_centered", "lion", "add_weight_decay")
        for dtype in _DTYPES
        for flag in (False, True)
    ),
]
"""(family, kernel, template parameters) of all that is launched here."""


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register function(*arguments, **options) as the body of the op of its name.

    It gives the new values, or None for "not in this case": the generic body then does it. The vjp, which a donated
    theta does not have, is the generic body's too.
    """
    name = function.__name__

    @functools.wraps(function)
    def body(*arguments: Any, **options: Any) -> tuple[Any, Any]:
        value = function(*arguments, **options)
        if value is None:
            return generic(name)(*arguments, **options)
        if options.get("donate", False):
            return value, None

        def vjp(cotangents: Any) -> Any:
            return generic(name)(*arguments, **options)[1](cotangents)

        return value, vjp

    BODIES[name] = body
    return body


def is_number(x: Any) -> bool:
    """True if a kernel can take x as a NUMBER: it has no axes."""
    return getattr(x, "shape", ()) == ()


def _alike(arrays: tuple[Any, ...]) -> bool:
    """True if all are arrays of one shape and dtype that the kernels know, with at least one element."""
    first = arrays[0]
    return (
        first.size > 0
        and first.dtype.name in _DTYPES
        and all(isinstance(x, cupy.ndarray) and x.shape == first.shape and x.dtype == first.dtype for x in arrays)
    )


def _updated(
    kernel: str,
    flags: tuple[bool, ...],
    changed: tuple[Any, ...],
    gradient: Any,
    numbers: tuple[Any, ...],
    donate: bool = False,
) -> tuple[Any, ...] | None:
    """The new arrays, one for each that is not None in `changed`; None if the generic body is to make them.

    Args:
        kernel: its name; its parameters are the arrays (None for one that is not there), the new arrays, the gradient,
            the count and the numbers.
        flags: its template parameters after the dtype.
        changed: theta and the slots.
        gradient: what is read besides.
        numbers: the settings.
        donate: overwrite theta and the slots.
    """
    present = tuple(x for x in changed if x is not None)
    if not _alike((*present, gradient)) or not all(map(is_number, numbers)):
        return None
    return _launched(kernel, flags, changed, (in_order(gradient),), numbers, donate)


def _updated_with_decay(
    kernel: str, changed: tuple[Any, ...], gradient: Any, numbers: tuple[Any, ...], decay: Any, donate: bool = False
) -> tuple[Any, ...] | None:
    """As `_updated`, for the kernels that want, after the gradient, a decay for each element or a null pointer.

    Their template parameter says which, and their last number is the decay of all.
    """
    if not _alike((*changed, gradient)) or not all(map(is_number, numbers)):
        return None
    if is_number(decay):
        return _launched(kernel, (False,), changed, (in_order(gradient), None), (*numbers, decay), donate)
    if not _alike((gradient, decay)):
        return None
    return _launched(kernel, (True,), changed, (in_order(gradient), in_order(decay)), (*numbers, 0.0), donate)


def _launched(
    kernel: str,
    flags: tuple[bool, ...],
    changed: tuple[Any, ...],
    read: tuple[Any, ...],
    numbers: tuple[Any, ...],
    donate: bool,
) -> tuple[Any, ...]:
    theta = changed[0]
    old = tuple(None if x is None else in_order(x) for x in changed)
    if donate and all(given is ordered for given, ordered in zip(changed, old, strict=True)):
        new = old
        note_donation()
    else:
        new = tuple(None if x is None else cupy.empty(theta.shape, theta.dtype) for x in old)
    settings = [part for setting in numbers for part in number(setting)]
    blocks = blocks_for(theta.size, THREADS * 16 // theta.itemsize)
    arguments = (*old, *new, *read, theta.size, *settings)
    launch(FAMILY, kernel, (theta.dtype.name, *flags), blocks, THREADS, arguments)
    return tuple(x for x in new if x is not None)


@_body
def sgd(theta: Any, gradient: Any, learning_rate: Any, *, donate: bool = False) -> Any:
    """theta - learning_rate * gradient."""
    new = _updated("sgd", (), (theta,), gradient, (learning_rate,), donate)
    return None if new is None else new[0]


@_body
def sgd_momentum(
    theta: Any,
    gradient: Any,
    velocity: Any,
    learning_rate: Any,
    momentum: Any,
    gradient_weight: Any = 1.0,
    *,
    nesterov: bool = False,
    donate: bool = False,
) -> Any:
    """theta and velocity in one pass."""
    numbers = (learning_rate, momentum, gradient_weight)
    return _updated("sgd_momentum", (bool(nesterov),), (theta, velocity), gradient, numbers, donate)


@_body
def adam(
    theta: Any,
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction1: Any,
    correction2: Any,
    decay: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """theta and both moments in one pass."""
    changed = (theta, first_moment, second_moment)
    numbers = (learning_rate, beta1, beta2, epsilon, correction1, correction2)
    return _updated_with_decay("adam", changed, gradient, numbers, decay, donate)


@_body
def amsgrad(
    theta: Any,
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    largest_second_moment: Any,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction1: Any,
    correction2: Any,
    decay: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """theta and the three moments in one pass."""
    changed = (theta, first_moment, second_moment, largest_second_moment)
    numbers = (learning_rate, beta1, beta2, epsilon, correction1, correction2)
    return _updated_with_decay("amsgrad", changed, gradient, numbers, decay, donate)


@_body
def nadam(
    theta: Any,
    gradient: Any,
    first_moment: Any,
    second_moment: Any,
    gradient_rate: Any,
    moment_rate: Any,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    correction2: Any,
    *,
    donate: bool = False,
) -> Any:
    """theta and both moments in one pass."""
    changed = (theta, first_moment, second_moment)
    numbers = (gradient_rate, moment_rate, beta1, beta2, epsilon, correction2)
    return _updated("nadam", (), changed, gradient, numbers, donate)


@_body
def rmsprop(
    theta: Any,
    gradient: Any,
    square_average: Any,
    velocity: Any,
    learning_rate: Any,
    alpha: Any,
    epsilon: Any,
    momentum: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """theta and the slots in one pass."""
    changed = (theta, square_average, velocity)
    numbers = (learning_rate, alpha, epsilon, momentum)
    return _updated("rmsprop", (velocity is not None,), changed, gradient, numbers, donate)


@_body
def rmsprop_centered(
    theta: Any,
    gradient: Any,
    variance: Any,
    average: Any,
    velocity: Any,
    learning_rate: Any,
    alpha: Any,
    epsilon: Any,
    momentum: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """theta and the slots in one pass."""
    changed = (theta, variance, average, velocity)
    numbers = (learning_rate, alpha, epsilon, momentum)
    return _updated("rmsprop_centered", (velocity is not None,), changed, gradient, numbers, donate)


@_body
def adagrad(
    theta: Any, gradient: Any, square_sum: Any, learning_rate: Any, epsilon: Any, *, donate: bool = False
) -> Any:
    """theta and the sum in one pass."""
    return _updated("adagrad", (), (theta, square_sum), gradient, (learning_rate, epsilon), donate)


@_body
def adadelta(
    theta: Any,
    gradient: Any,
    square_average: Any,
    square_step_average: Any,
    learning_rate: Any,
    rho: Any,
    epsilon: Any,
    *,
    donate: bool = False,
) -> Any:
    """theta and the averages in one pass."""
    changed = (theta, square_average, square_step_average)
    return _updated("adadelta", (), changed, gradient, (learning_rate, rho, epsilon), donate)


@_body
def lion(
    theta: Any,
    gradient: Any,
    momentum: Any,
    learning_rate: Any,
    beta1: Any,
    beta2: Any,
    decay: Any = 0.0,
    *,
    donate: bool = False,
) -> Any:
    """theta and the momentum in one pass."""
    return _updated_with_decay("lion", (theta, momentum), gradient, (learning_rate, beta1, beta2), decay, donate)


@_body
def add_weight_decay(gradient: Any, theta: Any, decay: Any) -> Any:
    """gradient + decay * theta: in the kernel, the gradient is what changes."""
    new = _updated_with_decay("add_weight_decay", (gradient,), theta, (), decay)
    return None if new is None else new[0]


@_body
def moving_average(average: Any, value: Any, decay: Any, *, donate: bool = False) -> Any:
    """decay * average + (1 - decay) * value."""
    new = _updated("moving_average", (), (average,), value, (decay,), donate)
    return None if new is None else new[0]
