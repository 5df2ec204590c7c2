"""Backends and how one is chosen.

A backend is an array library bound to a device. It knows what the array-API standard leaves out: where host data
goes, how random bits are made, how a training step is compiled. Which one a network uses is decided once, when it
is built:

    its own `backend=` > `with use_backend(...)` > `set_backend(...)` > the variable XPNN_BACKEND > "numpy"

A spec is "name" or "name:device": "numpy", "cupy", "cupy:1", "torch:cuda:0", "jax", "strict", or "auto". Only "auto"
may choose (CuPy where it is usable, else NumPy); an explicit name that cannot run is an error with its reason.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

from xpnn import dispatch
from xpnn.dispatch import Array, Body, Kind
from xpnn.errors import BackendError


class Backend:
    """One array library, bound to one device.

    Subclasses live in `xpnn_backends` (or in a package of yours, offered through the entry-point group
    `xpnn.backends`). Only `namespace` has no default.

    Attributes:
        name: the name in specs.
        device_name: the device part of the spec; "" is the library's default device.
        blocked: True where arrays have no views: the parameter vector is then one block per parameter.
        one_device: True where arrays of this library can lie on one device only.
        overrides: op name -> faster body for this library's arrays.
    """

    name: ClassVar[str]
    blocked: ClassVar[bool] = False
    one_device: ClassVar[bool] = False
    overrides: ClassVar[Mapping[str, Body]] = {}

    def __init__(self, device_name: str = "") -> None:
        self.device_name = device_name
        self.device = self.parse_device(device_name)

    @classmethod
    def probe(cls) -> str | None:
        """None if the library can compute here, else the reason and what mends it. Called after it was imported."""
        return None

    @classmethod
    def devices(cls) -> list[str]:
        """The device parts that a spec may have here."""
        return ["cpu"]

    @classmethod
    def namespace(cls) -> Any:
        """The array-API namespace of the library."""
        raise NotImplementedError

    @classmethod
    def device_of(cls, x: Array) -> Any:
        """The device of x, as the creation functions' `device=` wants it."""
        return x.device

    def parse_device(self, name: str) -> Any:
        """The library's device object from the device part of a spec; None is its default device."""
        if name not in ("", "cpu"):
            raise BackendError(f"backend {self.name!r} has no device {name!r}; it has: {', '.join(self.devices())}")
        return None

    @property
    def spec(self) -> str:
        """The spec that gives this backend again."""
        return f"{self.name}:{self.device_name}" if self.device_name else self.name

    @property
    def xp(self) -> Any:
        """The array-API namespace, for short."""
        return self.namespace()

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """A block in which new arrays lie on this backend's device."""
        return contextlib.nullcontext()

    def discipline(self) -> contextlib.AbstractContextManager[Any]:
        """A block in which the library refuses what would not run, or would wait, on some device; for tests."""
        return contextlib.nullcontext()

    def dtype(self, name: str) -> Any:
        """The library's dtype object for a name such as "float32". Raises BackendError where it has none."""
        found = getattr(self.xp, name, None)
        if found is None:
            raise BackendError(f"backend {self.spec!r} has no dtype {name!r}")
        return found

    def enable_float64(self) -> None:
        """Make float64 possible where a library wants that said (JAX); used by the gradient checks."""

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        """x (a host array, or an array of this library) as an array on this device, of its own dtype or of `dtype`.

        A host array is converted before it travels.
        """
        with self.context():
            if dtype is None:
                return self.xp.asarray(x, device=self.device)
            wanted = self.dtype(dtype)
            if not self.owns(x):
                x = host().xp.asarray(x, dtype=getattr(host().xp, dtype))
            return self.xp.asarray(x, dtype=wanted, device=self.device)

    def to_host(self, x: Array) -> Any:
        """x as a host array (of NumPy)."""
        raise NotImplementedError

    def owns(self, x: object) -> bool:
        """True if x is an array of this library."""
        return dispatch.backend_of(x) == self.name

    def copy(self, x: Array) -> Array:
        """A copy of x that shares no memory with it."""
        with self.context():
            return self.xp.asarray(x, copy=True)

    def random_words(self, seed: int, stream: int, step: int, count: int) -> Array:
        """`count` uint64 words of Philox4x64-10 with key (seed, stream) and counter (0, 0, step, 0).

        The same words on every backend, bit for bit; the order is that of `numpy.random.Philox.random_raw`.
        """
        return self.asarray(host().random_words(seed, stream, step, count))

    def keep_mask(self, seed: int, stream: int, step: int, shape: tuple[int, ...], threshold: int) -> Array:
        """A bool array, True where the next 16 random bits, as an integer, are >= `threshold`.

        16-bit piece number j is bits 16(j mod 4) and up of word j // 4 of `random_words`.
        """
        return self.asarray(host().keep_mask(seed, stream, step, shape, threshold))

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A faster function with the results of `step(state, batch)`; here, the step itself.

        The state that it is given is donated: its memory may be used again for the state that it returns.
        """
        return step

    def synchronize(self) -> None:
        """Wait until all work on the device is done (for timing)."""

    def __repr__(self) -> str:
        return f"<backend {self.spec}>"


class _Entry(NamedTuple):
    target: str  # "module:class"
    library: str  # what must be importable
    install: str  # what to install when it is not


_BUILTIN: dict[str, _Entry] = {
    "numpy": _Entry("xpnn_backends.numpy_backend:NumpyBackend", "numpy", "pip install numpy"),
    "cupy": _Entry("xpnn_backends.cupy_backend:CupyBackend", "cupy", 'pip install "xpnn[cuda12]" (or cuda13)'),
    "strict": _Entry("xpnn_backends.strict_backend:StrictBackend", "array_api_strict", "pip install array-api-strict"),
    "torch": _Entry("xpnn_backends.torch_backend:TorchBackend", "torch", "pip install torch"),
    "jax": _Entry("xpnn_backends.jax_backend:JaxBackend", "jax", "pip install jax"),
}
_LIBRARY_OF_MODULE = {"jaxlib": "jax"}


@cache
def _registry() -> dict[str, _Entry]:
    """The built-in backends, which work in a checkout that was never installed, and those of other packages."""
    table = dict(_BUILTIN)
    for point in entry_points(group="xpnn.backends"):
        module = point.value.partition(":")[0].partition(".")[0]
        table.setdefault(point.name, _Entry(point.value, module, f"pip install {module}"))
    return table


def backend_names() -> list[str]:
    """The names that a spec may begin with: the built-in ones and those that installed packages add."""
    return list(_registry())


@cache
def _load(name: str) -> type[Backend] | str:
    """The class of a backend, or the reason why it cannot be used here."""
    entry = _registry()[name]
    if find_spec(entry.library) is None:
        return f"{entry.library} is not installed; {entry.install}"
    module, _, attribute = entry.target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        reason = found.probe()
    except Exception as error:  # a broken installation or plug-in is reported, whatever it raises
        return f"{entry.library} does not load: {type(error).__name__}: {error}"
    if reason is not None:
        return str(reason)
    backend_class: type[Backend] = found
    return backend_class


def why_not(name: str) -> str | None:
    """None if the backend of that name is usable here, else the reason and what mends it."""
    _check_name(name)
    loaded = _load(name)
    return loaded if isinstance(loaded, str) else None


def available_backends() -> dict[str, str | None]:
    """Every known backend: name -> None if it is usable here, else the reason why not."""
    return {name: why_not(name) for name in _registry()}


def _check_name(name: str) -> None:
    if name not in _registry():
        raise BackendError(f"unknown backend {name!r}; known: {', '.join(_registry())}, auto")


@cache
def _bound(name: str, device_name: str) -> Backend:
    loaded = _load(name)
    if isinstance(loaded, str):
        raise BackendError(f"backend {name!r} is not usable here: {loaded}")
    return loaded(device_name)


_current: ContextVar[Backend | None] = ContextVar("xpnn_backend", default=None)
_process: Backend | None = None


def get_backend(spec: str | Backend | None = None) -> Backend:
    """The backend of a spec; without one, the backend that a new network would use.

    Raises BackendError if the name is unknown or the backend cannot run here.
    """
    if isinstance(spec, Backend):
        return spec
    if spec is None:
        chosen = _current.get() or _process
        if chosen is not None:
            return chosen
        spec = os.environ.get("XPNN_BACKEND") or "numpy"
    if not isinstance(spec, str):
        raise BackendError(f'a backend is named by a string such as "numpy" or "cupy:1", not by {spec!r}')
    name, _, device_name = spec.partition(":")
    if name == "auto":
        name = "cupy" if why_not("cupy") is None else "numpy"
    _check_name(name)
    return _bound(name, device_name)


def set_backend(spec: str | Backend) -> Backend:
    """Set the backend that networks of this process use when they name none."""
    global _process
    _process = get_backend(spec)
    return _process


@contextlib.contextmanager
def use_backend(spec: str | Backend) -> Iterator[Backend]:
    """A block in which networks that name no backend use this one."""
    backend = get_backend(spec)
    token = _current.set(backend)
    try:
        yield backend
    finally:
        _current.reset(token)


def host() -> Backend:
    """The backend of host arrays: NumPy, which is always installed."""
    return _bound("numpy", "")


def _kind_of_type(kind: type) -> Kind | None:
    """Which backend's arrays a type is of: by the package that defines it."""
    package = kind.__module__.partition(".")[0]
    package = _LIBRARY_OF_MODULE.get(package, package)
    for name, entry in _registry().items():
        if package == entry.library and (name in _BUILTIN or hasattr(kind, "shape")):
            loaded = _load(name)
            if isinstance(loaded, str):
                return None
            if not hasattr(kind, "shape"):
                return None
            return Kind(name, loaded.namespace(), loaded.device_of, loaded.one_device, dict(loaded.overrides))
    return None


dispatch.set_kind_resolver(_kind_of_type)
