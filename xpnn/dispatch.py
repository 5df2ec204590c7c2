"""Ops, and how a call finds the code that runs it.

An op is a pure function that returns its value and its vjp (vector-Jacobian product). `@op` registers the function
under its name as the *generic body*: array-API code that runs on every backend. A backend may hold a faster body
under the same name; the generic one stays the contract that it is tested against.

A call costs one dict look-up on the type of its first argument; `namespace(x)` costs the same.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xpnn.errors import DeviceError

Array = Any
"""An array of whichever library is in use. The standard defines no class to name here."""

Vjp = Callable[..., tuple[Any, ...]]
Body = Callable[..., tuple[Any, Vjp]]


class Kind(NamedTuple):
    """What is known of one array type."""

    backend: str
    namespace: Any
    device_of: Callable[[Array], Any]
    one_device: bool
    overrides: dict[str, Body]


_NOT_ARRAYS = frozenset({type(None), bool, int, float, str, tuple, list, dict})
_kinds: dict[type, Kind] = {}
_namespaces: dict[type, Any] = {}
_compatible: set[tuple[type, type]] = set()
_overrides_active = True

OPS: dict[str, Op] = {}
"""Every registered op by name; the test matrix is generated from it."""


class Op:
    """A registered op: call it with arrays, get (value, vjp).

    `vjp(cotangent)` returns one gradient for each array argument, in order; None for one that has no derivative.
    """

    def __init__(self, generic: Body) -> None:
        self.name = generic.__name__
        self.generic = generic
        self.bodies: dict[type, Body] = {}
        self.signature = inspect.signature(generic)
        self.__name__ = generic.__name__
        self.__doc__ = generic.__doc__
        self.__wrapped__ = generic

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Any, Vjp]:
        """(value, vjp), computed by the body for the type of the first argument."""
        if not arguments:
            arguments, options = self._positional(options)
        kind = type(arguments[0])
        try:
            body = self.bodies[kind]
        except KeyError:
            body = self._find(kind)
        for argument in arguments:
            if type(argument) is not kind and (kind, type(argument)) not in _compatible:
                _refuse_mixture(self, arguments)
        return body(*arguments, **options)

    def _positional(self, options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        first = next(iter(self.signature.parameters))
        if first not in options:
            raise TypeError(f"ops.{self.name}{self.signature} was called without {first!r}")
        bound = self.signature.bind(**options)
        return bound.args, bound.kwargs

    def _find(self, kind: type) -> Body:
        known = _kind(kind)
        if known is None:
            first = next(iter(self.signature.parameters))
            raise TypeError(
                f"ops.{self.name}: argument {first!r} is a {kind.__module__}.{kind.__qualname__}, and no backend has "
                "arrays of that type; pass an array (of NumPy, CuPy, PyTorch, JAX or array-api-strict)"
            )
        body = known.overrides.get(self.name, self.generic) if _overrides_active else self.generic
        if not known.one_device:
            body = _device_checked(self, body)
        self.bodies[kind] = body
        return body

    def __repr__(self) -> str:
        return f"<op {self.name}{self.signature}>"


def op(function: Body) -> Op:
    """Register `function` as the generic body of the op of the same name."""
    if function.__name__ in OPS:
        raise ValueError(f"an op named {function.__name__!r} exists already")
    registered = OPS[function.__name__] = Op(function)
    return registered


def namespace(x: Array) -> Any:
    """The array-API namespace of x (for a Python number: `xpnn.numbers`, which has the same function names)."""
    try:
        return _namespaces[type(x)]
    except KeyError:
        known = _kind(type(x))
        if known is None:
            raise TypeError(f"a {type(x).__module__}.{type(x).__qualname__} is no array of any backend") from None
        return known.namespace


def device(x: Array) -> Any:
    """The device of x, as the `device=` argument of its library's creation functions wants it."""
    known = _kind(type(x))
    return None if known is None else known.device_of(x)


def backend_of(x: object) -> str | None:
    """The name of the backend whose arrays x is one of, or None."""
    known = _kind(type(x))
    return None if known is None or not known.backend else known.backend


def _kind(kind: type) -> Kind | None:
    known = _kinds.get(kind)
    if known is None and kind not in _NOT_ARRAYS:
        known = _resolve_kind(kind)
        if known is not None:
            _kinds[kind] = known
            _namespaces[kind] = known.namespace
    return known


def _no_backends(kind: type) -> Kind | None:
    return None


_resolve_kind: Callable[[type], Kind | None] = _no_backends


def register_kind(kind: type, known: Kind) -> None:
    """Make an array type (or a number type) known."""
    _kinds[kind] = known
    _namespaces[kind] = known.namespace


def set_kind_resolver(resolve: Callable[[type], Kind | None]) -> None:
    """How an array type that is met for the first time is looked up (the backend table installs this)."""
    global _resolve_kind
    _resolve_kind = resolve


def refresh_bodies() -> None:
    """Forget which body each array type uses, after overrides have changed."""
    for registered in OPS.values():
        registered.bodies.clear()


@contextlib.contextmanager
def without_overrides() -> Iterator[None]:
    """Run generic bodies alone inside the block (the whole process; for debugging and for the test matrix)."""
    global _overrides_active
    before, _overrides_active = _overrides_active, False
    refresh_bodies()
    try:
        yield
    finally:
        _overrides_active = before
        refresh_bodies()


def _device_checked(registered: Op, body: Body) -> Body:
    def checked(*arguments: Any, **options: Any) -> tuple[Any, Vjp]:
        first = device(arguments[0])
        for argument in arguments[1:]:
            if type(argument) not in _NOT_ARRAYS and hasattr(argument, "shape") and device(argument) != first:
                _refuse_mixture(registered, arguments)
        return body(*arguments, **options)

    return checked


def _refuse_mixture(registered: Op, arguments: tuple[Any, ...]) -> None:
    """Raise DeviceError if the arguments lie with two libraries or on two devices."""
    names = list(registered.signature.parameters)
    places: list[tuple[str, str]] = []
    for position, argument in enumerate(arguments):
        known = _kind(type(argument))
        if known is not None and known.backend:
            place = known.backend if known.one_device else f"{known.backend} ({known.device_of(argument)})"
            places.append((names[min(position, len(names) - 1)], place))
    for name, place in places[1:]:
        if place != places[0][1]:
            raise DeviceError(
                f"ops.{registered.name}: {places[0][0]!r} lies on {places[0][1]}, {name!r} on {place}; move one of "
                f'them: xpnn.get_backend("{places[0][1].split()[0]}").asarray(...), or net.to(...) for a network'
            )
    for argument in arguments[1:]:
        _compatible.add((type(arguments[0]), type(argument)))
