"""Ops, and how a call finds the code that runs it.

An op is a pure function that returns its value and its vjp (vector-Jacobian product). `@op` registers the function
under its name as the *generic body*: array-API code that runs on every backend. A backend may hold a faster body
under the same name; the generic one stays the contract that it is tested against.

The variable XPNN_OVERRIDES=0 ("off", "false" and "no" mean the same) makes every op run its generic body, for
debugging. It is read once, when xpnn is imported; any other value, and none, leaves the faster bodies on.

The first argument's type decides the body. A call costs one dict look-up on the types of all its arguments, so that
arrays of two libraries that meet in it are noticed at no further cost; `namespace(x)` costs a look-up too.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from xpnn.errors import DeviceError

Array = Any
"""An array of whichever library is in use. The standard defines no class to name here."""

Vjp = Callable[..., tuple[Any, ...]]
Body = Callable[..., tuple[Any, Vjp]]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Kind(NamedTuple):
    """What is known of one array type.

    Attributes:
        backend: the name of its backend; "" for Python numbers.
        namespace: its array-API namespace.
        device_of: array -> device object, None where the array has none yet (inside jit).
        one_device: True if all arrays of this type lie on one device.
        overrides: op name -> faster body for this type.
        label_of: device object -> the device part of a spec.
        half_dtypes: the dtypes of half precision that arrays of this type may have; none for most.
    """

    backend: str
    namespace: Any
    device_of: Callable[[Array], Any]
    one_device: bool
    overrides: dict[str, Body]
    label_of: Callable[[Any], str] = str
    half_dtypes: frozenset[Any] = frozenset()


_NOT_ARRAYS = frozenset({type(None), bool, int, float, str, tuple, list, dict})
_kinds: dict[type, Kind] = {}
_namespaces: dict[type, Any] = {}
_overrides_active = os.environ.get("XPNN_OVERRIDES", "").strip().lower() not in ("0", "off", "false", "no")

OPS: dict[str, Op] = {}
"""Every registered op by name; the test matrix is generated from it."""


class Op:
    """What is known of one op: its name, its generic body, and which body runs for which types of arguments.

    Called with arrays, it gives (value, vjp). `vjp(cotangent)` returns one gradient for each array argument, in order;
    None for one that has no derivative.

    Attributes:
        name: the op's name.
        generic: the body in pure array API.
        bodies: types of the arguments (and names of the keywords) -> the body that runs for them.
        signature: that of the generic body.
        function: the dispatching function, which `xpnn.ops` offers under the op's name.
    """

    def __init__(self, generic: Body) -> None:
        self.name = generic.__name__
        self.generic = generic
        self.bodies: dict[tuple[type | str, ...], Body] = {}
        self.signature = inspect.signature(generic)
        parameters = self.signature.parameters.values()
        self._keyword_only = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        self.function = self._dispatching_function()

    def _dispatching_function(self) -> Callable[..., tuple[Any, Vjp]]:
        """What users call: a plain function, which costs less to call than an object, with the generic body's help."""
        known_body, find = self.bodies.get, self._find

        @functools.wraps(self.generic)
        def call(*arguments: Any, **options: Any) -> tuple[Any, Vjp]:
            kinds: tuple[type | str, ...] = (*map(type, arguments), *options)
            body = known_body(kinds)
            if body is None:
                body = find(arguments, options, kinds)
            return body(*arguments, **options)

        return call

    def __call__(self, *arguments: Any, **options: Any) -> tuple[Any, Vjp]:
        """(value, vjp), computed by the body for the type of the first argument."""
        return self.function(*arguments, **options)

    def _positional(
        self, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments, with all that can be positional in its position."""
        try:
            bound = self.signature.bind(*arguments, **options)
        except TypeError as error:
            raise TypeError(f"ops.{self.name}{self.signature}: {error}") from None
        # What is left out in front of an argument that was given by name takes its place as its default.
        names = [name for name in self.signature.parameters if name not in self._keyword_only]
        while names and names[-1] not in bound.arguments:
            names.pop()
        for name in names:
            bound.arguments.setdefault(name, self.signature.parameters[name].default)
        if not bound.args:
            raise TypeError(f"ops.{self.name}{self.signature} was called without an array")
        return bound.args, bound.kwargs

    def _find(self, arguments: tuple[Any, ...], options: dict[str, Any], kinds: tuple[type | str, ...]) -> Body:
        """The body for arguments of these types and keywords, remembered once they are known to go together."""
        if not arguments or not options.keys() <= self._keyword_only:
            # The checks below see positional arguments: an array that was given by name becomes one, in a second call.
            def by_position(*arguments: Any, **options: Any) -> tuple[Any, Vjp]:
                arguments, options = self._positional(arguments, options)
                return self(*arguments, **options)

            self._positional(arguments, options)
            self.bodies[kinds] = by_position
            return by_position
        kind = type(arguments[0])
        known = _kind(kind)
        if known is None:
            first = next(iter(self.signature.parameters))
            raise TypeError(
                f"ops.{self.name}: argument {first!r} is a {kind.__module__}.{kind.__qualname__}, and no backend has "
                "arrays of that type; pass an array (of NumPy, CuPy, PyTorch, JAX or array-api-strict)"
            )
        body = known.overrides.get(self.name, self.generic) if _overrides_active else self.generic
        if known.half_dtypes:
            from xpnn.half_precision import in_float32  # which imports this module

            body = in_float32(body)
        if not known.one_device:
            body = _device_checked(self, body, known, arguments)
        _refuse_mixture(self, arguments)
        self.bodies[kinds] = body
        return body

    def __repr__(self) -> str:
        return f"<op {self.name}{self.signature}>"


def op(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Register `function` as the generic body of the op of the same name; returns the function that dispatches."""
    if function.__name__ in OPS:
        raise ValueError(f"an op named {function.__name__!r} exists already")
    registered = OPS[function.__name__] = Op(cast(Body, function))
    return cast(Callable[Arguments, Result], registered.function)


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
    return _backend_of_type(type(x))


def _backend_of_type(kind: type) -> str | None:
    known = _kind(kind)
    return None if known is None or not known.backend else known.backend


def _kind(kind: type) -> Kind | None:
    known = _kinds.get(kind)
    if known is None and kind not in _NOT_ARRAYS:
        known = _resolve_kind(kind)
        if known is not None:
            register_kind(kind, known)
    return known


class _HalfDtypes(dict[type, frozenset[Any]]):
    """Looked up for every argument of every call, so that a type which was met before costs no call of a function."""

    def __missing__(self, kind: type) -> frozenset[Any]:
        known = _kind(kind)
        found = self[kind] = frozenset() if known is None else known.half_dtypes
        return found


HALF_DTYPES = _HalfDtypes()
"""Type -> the dtypes of half precision that its arrays may have; none for most, and for what is no array."""


def _no_backends(kind: type) -> Kind | None:
    return None


_resolve_kind: Callable[[type], Kind | None] = _no_backends


def register_kind(kind: type, known: Kind) -> None:
    """Make an array type (or a number type) known."""
    _kinds[kind] = known
    _namespaces[kind] = known.namespace
    HALF_DTYPES[kind] = known.half_dtypes


def set_kind_resolver(resolve: Callable[[type], Kind | None]) -> None:
    """How an array type that is met for the first time is looked up (the backend table installs this)."""
    global _resolve_kind
    _resolve_kind = resolve


def refresh_bodies() -> None:
    """Forget which body each array type uses, after overrides have changed."""
    for registered in OPS.values():
        registered.bodies.clear()


def has_faster_body(name: str, x: object) -> bool:
    """True if the op of this name has a faster body for arrays of x's type, and runs it."""
    known = _kind(type(x))
    return known is not None and name in known.overrides and _overrides_active


def overrides_active() -> bool:
    """True if ops run the faster body of a backend where it has one (see XPNN_OVERRIDES and `without_overrides`)."""
    return _overrides_active


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


def _device_checked(registered: Op, body: Body, known: Kind, arguments: tuple[Any, ...]) -> Body:
    """`body` behind a check that arguments of these types lie on one device; one array alone needs none."""
    same_library = [position for position, x in enumerate(arguments) if _backend_of_type(type(x)) == known.backend]
    if len(same_library) < 2:
        return body
    first, *others = same_library
    device_of = known.device_of

    def checked(*arguments: Any, **options: Any) -> tuple[Any, Vjp]:
        where = device_of(arguments[first])
        for position in others:
            if device_of(arguments[position]) != where:
                _refuse_mixture(registered, arguments)
        return body(*arguments, **options)

    return checked


def _refuse_mixture(registered: Op, arguments: tuple[Any, ...]) -> None:
    """Raise DeviceError if the arguments lie with two libraries or on two devices."""
    places: list[tuple[str, str, str]] = []  # argument, library, device
    for position, argument in enumerate(arguments):
        known = _kind(type(argument))
        if known is not None and known.backend:
            where = None if known.one_device else known.device_of(argument)
            label = "" if where is None else known.label_of(where)
            places.append((_argument_name(registered, position), known.backend, label))
    for name, library, label in places[1:]:
        first, first_library, first_label = places[0]
        # No label is no device of its own: inside jit an array lies wherever the compiler puts it.
        if library != first_library or (label and first_label and label != first_label):
            here, there = (":".join(filter(None, place)) for place in ((first_library, first_label), (library, label)))
            raise DeviceError(
                f"ops.{registered.name}: {first!r} lies on {here}, {name!r} on {there}. Move one of them, as in "
                f'xpnn.get_backend("{here}").asarray(xpnn.get_backend("{there}").to_host({name})), '
                "or a network with net.to(...)"
            )


def _argument_name(registered: Op, position: int) -> str:
    parameters = list(registered.signature.parameters.values())
    parameter = parameters[min(position, len(parameters) - 1)]
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"{parameter.name}[{position - parameters.index(parameter)}]"
    return parameter.name
