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
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple, cast

from xpnn import dispatch
from xpnn.dispatch import Array, Body, Kind
from xpnn.errors import BackendError


class Memory(NamedTuple):
    """The memory of one device, in bytes.

    Attributes:
        free: what nobody holds: neither this process nor another one.
        total: all that the device has.
        pool: what the library holds of it in this process, in use or ready to be used again.
        live: the part of the pool that arrays occupy.
    """

    free: int
    total: int
    pool: int
    live: int


class Backend:
    """One array library, bound to one device.

    Subclasses live in `xpnn_backends` (or in a package of yours, offered through the entry-point group
    `xpnn.backends`). Only `namespace` has no default.

    Attributes:
        name: the name in specs.
        device_name: the device part of the spec; "" is the library's default device.
        blocked: True where arrays have no views: the parameter vector is then one block per parameter.
        one_device: True where arrays of this library can lie on one device only.
        streams: True where data of the host that are too large for the device stay there, and travel in batches.
        overrides: op name -> faster body for this library's arrays.
        array_packages: the top-level packages that define its array types.
        precisions: what `Network(precision=...)` may be here.
        half_dtypes: "float16" and "bfloat16" -> the library's dtype object (what `x.dtype` is), where it has them.
    """

    name: ClassVar[str]
    blocked: ClassVar[bool] = False
    one_device: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    overrides: ClassVar[Mapping[str, Body]] = {}
    array_packages: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    half_dtypes: ClassVar[Mapping[str, Any]] = {}

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
    def describe_device(cls, name: str) -> str:
        """What hides behind one of `devices()`, such as the name of a GPU; "" where the device part says it all."""
        return ""

    @classmethod
    def device_memory(cls, name: str) -> Memory | None:
        """The memory of one of `devices()`, or of the default device, ""; None where the library keeps no account."""
        return None

    @classmethod
    def own_ops(cls) -> set[str]:
        """The names of the ops that have a faster body here, in a compiled step or outside."""
        return set(cls.overrides)

    @classmethod
    def device_label(cls, device: Any) -> str:
        """The device part of a spec for a device object of the library."""
        return str(device)

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

    @classmethod
    def notices(cls) -> list[str]:
        """What a user should know of the library on this machine: one line each, with what mends it."""
        return []

    def computing(self, precision: str) -> contextlib.AbstractContextManager[Any]:
        """A block in which the library computes as one of `precisions` says; entered around each step.

        The arrays of a step in half precision are of that dtype: only what the dtype does not say is left to do here.
        """
        return contextlib.nullcontext()

    def discipline(self) -> contextlib.AbstractContextManager[Any]:
        """A block in which the library refuses what would not run, or would wait, on some device; for tests."""
        return contextlib.nullcontext()

    def dtype(self, name: str) -> Any:
        """The library's dtype object for a name such as "float32". Raises BackendError where it has none."""
        found = self.half_dtypes.get(name, getattr(self.xp, name, None))
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
                # NumPy has no bfloat16: such numbers travel as float32.
                x = host().xp.asarray(x, dtype=getattr(host().xp, "float32" if dtype == "bfloat16" else dtype))
                if dtype == "bfloat16":
                    return self.xp.astype(self.xp.asarray(x, device=self.device), wanted)
            return self.xp.asarray(x, dtype=wanted, device=self.device)

    def to_host(self, x: Array) -> Any:
        """x as a host array (of NumPy)."""
        raise NotImplementedError

    def is_ready(self, x: object, dtype: str) -> bool:
        """True if x surely is an array of this library, on this device and of this dtype; False says nothing."""
        return False

    def total(self, x: Array) -> float:
        """The sum of all numbers in x, on the host; infinite or NaN if one of them is, and without a warning."""
        return float(self.to_host(self.xp.sum(x)))

    def owns(self, x: object) -> bool:
        """True if x is an array of this library."""
        return dispatch.backend_of(x) == self.name

    def copy(self, x: Array) -> Array:
        """A copy of x that shares no memory with it."""
        with self.context():
            return self.xp.asarray(x, copy=True)

    def memory(self) -> Memory | None:
        """The memory of this device; None where the library keeps no account of it."""
        return self.device_memory(self.device_name)

    def keeps(self, byte_count: int) -> bool:
        """True if a data set of the host of that many bytes moves to the device as a whole.

        Else it stays on the host, and its rows travel by `batches`. Asked only where `streams` is set.
        """
        return True

    def batches(
        self, arrays: Sequence[Array], dtypes: Sequence[str], size: int, order: Array | None = None
    ) -> Generator[tuple[Array, ...]]:
        """Rows of host arrays on this device, `size` of them at a time; the last ones may be fewer.

        The arrays of a batch hold it only until the next one is asked for: their memory may then be used again. Close
        the generator if you leave it before its end.

        Args:
            arrays: of the host, all of one length.
            dtypes: what each is converted to.
            size: rows in a batch.
            order: the numbers of the rows to go through, on the host; None takes all rows as they stand.
        """
        count = int(arrays[0].shape[0] if order is None else order.shape[0])
        take = host().xp.take
        for start in range(0, count, size):
            stop = min(start + size, count)
            yield tuple(
                self.asarray(array[start:stop] if order is None else take(array, order[start:stop], axis=0), dtype)
                for array, dtype in zip(arrays, dtypes, strict=True)
            )

    def compile(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A faster function with the results of `step(state, batch)`; here, the step itself.

        The state that it is given is donated: its memory may be used again for the state that it returns.
        """
        return step

    def evaluate(self, function: Callable[..., tuple[Any, Any]], *arrays: Array) -> tuple[Any, Any]:
        """function(*arrays) -> (value, backward); where the device stands for that, as a compiled step runs it.

        For tests. `backward` maps cotangents to gradients; it may be called once.
        """
        return function(*arrays)

    def synchronize(self) -> None:
        """Wait until all work on the device is done (for timing)."""

    def __deepcopy__(self, memo: Any) -> Backend:
        return self  # two networks of one backend hold the same object, also when one is a copy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device_name,)  # device objects of some libraries cannot be pickled

    def __repr__(self) -> str:
        return f"<backend {self.spec}>"


class HostBackend(Backend):
    """The backend of host arrays, which makes the random bits for all: not every device has 64-bit integers."""

    def random_words(self, seed: int, stream: int, step: int, count: int) -> Array:
        """`count` uint64 words of Philox4x64-10 with key (seed, stream) and counter (0, 0, step, 0).

        The order is that of `numpy.random.Philox.random_raw`.
        """
        raise NotImplementedError

    def keep_mask(self, seed: int, stream: int, step: int, shape: tuple[int, ...], threshold: int) -> Array:
        """A bool array, True where the next 16 random bits, as an integer, are >= `threshold`.

        16-bit piece number j is bits 16(j mod 4) and up of word j // 4 of `random_words`.
        """
        raise NotImplementedError


class _Entry(NamedTuple):
    target: str  # "module:class"
    library: str  # what must be importable
    install: str  # what to install when it is not
    packages: tuple[str, ...]  # which top-level packages define its array types


_BUILTIN: dict[str, _Entry] = {
    "numpy": _Entry("xpnn_backends.numpy_backend:NumpyBackend", "numpy", "pip install numpy", ("numpy",)),
    "cupy": _Entry(
        "xpnn_backends.cupy_backend:CupyBackend",
        "cupy",
        'pip install "xpnn[cuda12]", or "xpnn[cuda13]" for a driver of CUDA 13',
        ("cupy",),
    ),
    "strict": _Entry(
        "xpnn_backends.strict_backend:StrictBackend",
        "array_api_strict",
        "pip install array-api-strict",
        ("array_api_strict",),
    ),
    "torch": _Entry("xpnn_backends.torch_backend:TorchBackend", "torch", "pip install torch", ("torch",)),
    "jax": _Entry("xpnn_backends.jax_backend:JaxBackend", "jax", "pip install jax", ("jax", "jaxlib")),
}


@cache
def _registry() -> dict[str, _Entry]:
    """The built-in backends, which work in a checkout that was never installed, and those of other packages.

    Other packages may add names, and never replace a built-in one.
    """
    from importlib.metadata import entry_points  # takes longer to import than all of xpnn

    table = dict(_BUILTIN)
    for point in entry_points(group="xpnn.backends"):
        module = point.value.partition(":")[0].partition(".")[0]
        table.setdefault(point.name, _Entry(point.value, module, f"pip install {module}", ()))
    return table


@cache
def _load(name: str) -> type[Backend] | str:
    """The class of a backend, or the reason why it cannot be used here."""
    entry = _registry()[name]
    try:
        if find_spec(entry.library) is None:
            return f"{entry.library} is not installed; {entry.install}"
        module, _, attribute = entry.target.partition(":")
        with warnings.catch_warnings():
            # A library that warns while it is imported is usable all the same, also under `python -W error`.
            warnings.simplefilter("ignore")
            found = getattr(importlib.import_module(module), attribute)
            if not (isinstance(found, type) and issubclass(found, Backend) and found.name == name):
                return f"{entry.target} is no xpnn.Backend class with name = {name!r}"
            reason = found.probe()
    except Exception as error:  # a broken installation or plug-in is reported, whatever it raises
        return f"{entry.library} does not load: {one_line(error)}"
    return found if reason is None else reason


def one_line(error: BaseException) -> str:
    """An error's type and message as one line of bounded length."""
    message = " ".join(str(error).split())
    if len(message) > 300:
        message = f"{message[:300]}..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def why_not(name: str) -> str | None:
    """None if the backend of that name is usable here, else the reason and what mends it."""
    _check_name(name)
    loaded = _load(name)
    return loaded if isinstance(loaded, str) else None


def installed_version(name: str) -> str:
    """The version of a backend's library as its package says it, or "-" where it is not installed."""
    from importlib.metadata import packages_distributions, version

    _check_name(name)
    library = _registry()[name].library
    found = set()
    for distribution in packages_distributions().get(library, []):
        label = "" if distribution.lower().replace("-", "_") == library.lower() else f"{distribution} "
        found.add(f"{label}{version(distribution)}")
    return ", ".join(sorted(found)) or "-"


def available_backends() -> dict[str, str | None]:
    """Every known backend: name -> None if it is usable here, else the reason why not."""
    return {name: why_not(name) for name in _registry()}


class BackendInfo(NamedTuple):
    """One line of the table of backends.

    Attributes:
        name: the name in specs.
        version: of the library, "-" where it is not installed.
        reason: None if it is usable here, else why not and what mends it.
        devices: the device parts that a spec may have, with what hides behind them: "0 (NVIDIA H200)".
        overrides: the names of the ops that have a faster body here which is in use: none where overrides are off.
        notices: what a user should know of it on this machine, one line each.
        memory: device part -> the memory of that device, where the library keeps account of it.
    """

    name: str
    version: str
    reason: str | None
    devices: tuple[str, ...]
    overrides: tuple[str, ...]
    notices: tuple[str, ...] = ()
    memory: Mapping[str, Memory] = {}


def describe_backends() -> list[BackendInfo]:
    """Every known backend, with all that a user wants to know of it. Imports the libraries that are installed."""
    table = []
    for name in _registry():
        loaded = _load(name)
        if isinstance(loaded, str):
            table.append(BackendInfo(name, installed_version(name), loaded, (), ()))
            continue
        devices = []
        memory = {}
        for device in loaded.devices():
            description = loaded.describe_device(device)
            devices.append(f"{device} ({description})" if description else device)
            known = loaded.device_memory(device)
            if known is not None:
                memory[device] = known
        overrides = tuple(sorted(loaded.own_ops())) if dispatch.overrides_active() else ()
        notices = tuple(loaded.notices())
        table.append(BackendInfo(name, installed_version(name), None, tuple(devices), overrides, notices, memory))
    return table


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
        variable = os.environ.get("XPNN_BACKEND")
        if not variable:
            return get_backend("numpy")
        try:
            return get_backend(variable)
        except BackendError as error:
            raise BackendError(f"the variable XPNN_BACKEND: {error}") from None
    if not isinstance(spec, str):
        raise BackendError(f'a backend is named by a string such as "numpy" or "cupy:1", not by {spec!r}')
    name, _, device_name = spec.partition(":")
    if name == "auto":
        if device_name:
            raise BackendError(f'spec {spec!r}: "auto" chooses the device itself; name the backend, as in "cupy:1"')
        name = "cupy" if why_not("cupy") is None else "numpy"
    _check_name(name)
    return _bound(name, device_name)


def set_backend(spec: str | Backend | None) -> Backend:
    """Set the backend that networks of this process use when they name none; None takes the choice back."""
    global _process
    _process = None if spec is None else get_backend(spec)
    return get_backend()


@contextlib.contextmanager
def use_backend(spec: str | Backend) -> Iterator[Backend]:
    """A block in which networks that name no backend use this one."""
    backend = get_backend(spec)
    token = _current.set(backend)
    try:
        yield backend
    finally:
        _current.reset(token)


def host() -> HostBackend:
    """The backend of host arrays: NumPy, which is always installed."""
    return cast(HostBackend, _bound("numpy", ""))


def _kind_of_type(kind: type) -> Kind | None:
    """Which backend's arrays a type is of: by the package that defines it."""
    if not hasattr(kind, "shape"):
        return None
    package = kind.__module__.partition(".")[0]
    for name, entry in _registry().items():
        if package in entry.packages or (name not in _BUILTIN and package in _packages_of_plugin(name)):
            loaded = _load(name)
            if isinstance(loaded, str):
                return None
            overrides = dict(loaded.overrides)
            return Kind(
                name,
                loaded.namespace(),
                loaded.device_of,
                loaded.one_device,
                overrides,
                loaded.device_label,
                frozenset(loaded.half_dtypes.values()),
            )
    return None


def _packages_of_plugin(name: str) -> tuple[str, ...]:
    loaded = _load(name)
    return () if isinstance(loaded, str) else loaded.array_packages


dispatch.set_kind_resolver(_kind_of_type)

# What counts only before a library is loaded: with which kernels NumPy's BLAS shall compute.
importlib.import_module("xpnn_backends.blas").prepare()
