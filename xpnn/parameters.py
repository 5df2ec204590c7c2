"""The parameters of a network as one vector.

All trainable arrays lie in one contiguous vector theta; a layer sees named views of it. The gradient is a vector of the
same layout, and so is every slot of an optimizer. Each parameter starts on a 256-byte boundary (vector loads, matrix
libraries' fast paths); the padding between has gradient zero and stays zero.

Where arrays have no views (JAX), the vector is held as one block per parameter. A vector is therefore a tuple of
arrays everywhere: of one array, or of one for each parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from xpnn.backend import Backend, host
from xpnn.dispatch import Array, device, namespace
from xpnn.errors import ConfigError, ShapeError
from xpnn.half_precision import widened
from xpnn.initializers import Draw
from xpnn.layers.layer import Buffer, Layer, Parameter, Tree
from xpnn.ops.pack import pack

if TYPE_CHECKING:
    from xpnn.network import Network

Vector = tuple[Array, ...]

_ALIGNMENT_BYTES = 256
_ITEM_BYTES = {"float32": 4, "float64": 8}


class Entry(NamedTuple):
    """One parameter or buffer of a network: its name ("0.weight"), number, specification, and where layers see it.

    `places` has one path for each occurrence: a layer that is used twice sees its parameters in two places.
    """

    name: str
    number: int
    parameter: Parameter | Buffer
    places: tuple[tuple[str, ...], ...]

    @property
    def is_buffer(self) -> bool:
        """True for what a layer keeps and nobody trains."""
        return isinstance(self.parameter, Buffer)


class Structure(NamedTuple):
    """The parameters and buffers of a network, and the nested dicts (from `build`) in which layers see them."""

    entries: tuple[Entry, ...]
    tree: Tree


def collect(root: Layer, tree: Tree) -> Structure:
    """Every parameter and buffer below `root`, in the order of the layers; shared layers count once.

    Raises ShapeError if a layer is used twice with inputs for which it would need different parameters.
    """
    entries: dict[str, Entry] = {}
    first_path: dict[int, tuple[str, ...]] = {}

    def walk(layer: Layer, node: Tree, path: tuple[str, ...]) -> None:
        canonical = first_path.setdefault(id(layer), path)
        for key, item in node.items():
            if isinstance(item, (Parameter, Buffer)):
                name = ".".join((*canonical, key))
                place = (*path, key)
                known = entries.get(name)
                if known is None:
                    entries[name] = Entry(name, len(entries), item, (place,))
                elif known.parameter.shape == item.shape:
                    entries[name] = known._replace(places=(*known.places, place))
                else:
                    error = ShapeError(
                        f"is used at {'.'.join(canonical)!r} too, where its {key} has shape {known.parameter.shape}; "
                        f"here it would need {item.shape}. Layers that share parameters must get inputs of one shape",
                        layer,
                    )
                    for part in reversed(path):
                        error.inside(part)
                    raise error
        for key, child in layer.children.items():
            walk(child, node[key], (*path, key))

    walk(root, tree, ())
    return Structure(tuple(entries.values()), tree)


class Layout:
    """Where each trainable parameter lies in theta.

    Args:
        structure: all parameters and buffers of the network, from `collect`.
        dtype: "float32" or "float64".
        blocked: True for one block per parameter.
        frozen: names of parameters that are not trained, and of buffers that are not changed. Both live beside theta,
            in the state's buffers, as all buffers do.
    """

    def __init__(self, structure: Structure, dtype: str, blocked: bool, frozen: Iterable[str] = ()) -> None:
        self.structure = structure
        self.entries = structure.entries
        self.dtype = dtype
        self.blocked = blocked
        self.frozen = frozenset(frozen)
        self.trained = tuple(entry for entry in self.entries if entry.name not in self.frozen and not entry.is_buffer)
        trained = {entry.name for entry in self.trained}
        self.beside = tuple(entry for entry in self.entries if entry.name not in trained)
        self._changing = tuple(entry for entry in self.beside if entry.is_buffer and entry.name not in self.frozen)
        unit = _ALIGNMENT_BYTES // _ITEM_BYTES[dtype]
        self.spans: dict[str, tuple[int, int]] = {}
        start = 0
        for entry in self.trained:
            stop = start + math.prod(entry.parameter.shape)
            self.spans[entry.name] = (start, stop)
            start = -(-stop // unit) * unit
        self.size = start
        self.starts = tuple(start for start, _ in self.spans.values())
        # Most networks are one level deep with nothing shared: their gradients are found by two look-ups.
        simple = all(len(entry.places) == 1 and len(entry.places[0]) == 2 for entry in self.trained)
        self._flat_places = [entry.places[0] for entry in self.trained] if simple else None
        self._cached: tuple[Any, Tree] | None = None
        self._constants: dict[tuple[float, ...], Vector] = {}
        self._gradients_checked: set[Any] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}  # views would be copied as arrays of their own

    @property
    def names(self) -> list[str]:
        """The names of the trained parameters, in the order of theta."""
        return [entry.name for entry in self.trained]

    def join(self, arrays: Mapping[str, Array]) -> Vector:
        """A vector from one array per trained parameter."""
        return self._join([arrays[entry.name] for entry in self.trained])

    def _join(self, values: list[Array]) -> Vector:
        if self.blocked:
            return tuple(values)
        if not values:
            return ()
        packed, _ = pack(*values, starts=self.starts, size=self.size)
        return (packed,)

    def split(self, vector: Vector) -> dict[str, Array]:
        """Name -> the parameter's part of a vector (a view where the library has views)."""
        if self.blocked:
            return {entry.name: block for entry, block in zip(self.trained, vector, strict=True)}
        if not vector:
            return {}
        (flat,) = vector
        xp = namespace(flat)
        parts = {}
        for entry in self.trained:
            start, stop = self.spans[entry.name]
            parts[entry.name] = xp.reshape(flat[start:stop], entry.parameter.shape)
        return parts

    def constant(self, values: Mapping[str, float], like: Vector) -> tuple[Any, ...]:
        """One factor for each block of a vector, from one number for each parameter (0 where none is given).

        A factor is a number where the whole block has one, else an array of the block's shape. Computed once.
        """
        key = tuple(float(values.get(entry.name, 0.0)) for entry in self.trained)
        if self.blocked:
            return key
        if len(set(key)) < 2:
            return key[:1]
        found = self._constants.get(key)
        if found is None:
            parts = self.split(like)
            xp = namespace(like[0])
            filled = {name: xp.full_like(part, values.get(name, 0.0)) for name, part in parts.items()}
            found = self.join(filled)
            if device(like[0]) is not None:  # what a step that is being compiled makes, belongs to that step
                self._constants[key] = found
        return found

    def zeros(self, like: Vector) -> Vector:
        """A vector of zeros."""
        return tuple(namespace(block).zeros_like(block) for block in like)

    def tree(self, theta: Vector, buffers: Mapping[str, Array]) -> Tree:
        """theta and the buffers as the nested dicts that the layers' `forward` reads."""
        cached = self._cached
        if cached is not None and theta and cached[0] is theta[0] and not buffers:
            return cached[1]
        arrays = {**self.split(theta), **buffers}
        at_place = {place: arrays[entry.name] for entry in self.entries for place in entry.places}
        tree = _fill(self.structure.tree, (), at_place)
        if theta and not self.blocked and not buffers:
            # A step that works in place gets the same theta again and again: its views are still right.
            self._cached = (theta[0], tree)
        return tree

    def gather(self, gradients: Tree) -> dict[str, Array]:
        """Nested gradients by name; those of a shared layer are added up."""
        return dict(zip(self.names, self._gather(gradients), strict=True))

    def gradient_vector(self, gradients: Tree, dtype: Any = None) -> Vector:
        """Nested gradients as one vector; those of a shared layer are added up.

        In half precision, `dtype` is the dtype object of the layers' arrays. Their gradients are widened: the vector is
        float32, and a gradient that came in float32 keeps its digits.

        Raises ConfigError if gradients are missing, or (looked for in the first call only) are wrong in shape or dtype.
        """
        try:
            found = self._gather(gradients)
        except (KeyError, TypeError, IndexError):
            self.check_gradients(gradients, dtype)
            raise
        if dtype not in self._gradients_checked:
            self.check_gradients(gradients, dtype)
            self._gradients_checked.add(dtype)
        return self._join(found if dtype is None else [widened(gradient) for gradient in found])

    def changed_buffers(self, buffers: Mapping[str, Array], gradients: Tree) -> Mapping[str, Array]:
        """The buffers after a training step: to each is added what the backward pass returned under its name.

        Where a layer was used several times, that is the mean of what it returned; see `Buffer`.
        """
        if not self._changing:
            return buffers
        changed = dict(buffers)
        for entry in self._changing:
            changes = []
            for place in entry.places:
                change: Any = gradients
                for key in place:
                    change = change.get(key, {})
                if hasattr(change, "shape"):
                    changes.append(change)
            if changes:
                total = sum(changes[1:], start=changes[0])
                mean = total / len(changes) if len(changes) > 1 else total
                changed[entry.name] = changed[entry.name] + mean
        return changed

    def check_gradients(self, gradients: Tree, dtype: Any = None) -> None:
        """Raise ConfigError, which names layer and parameter, unless there is a gradient as wanted for each of them.

        In half precision, gradients may have that `dtype` too; what is added to a buffer has the dtype of the layout.
        """
        known = {place for entry in self.entries for place in entry.places}
        given = dict(_leaves(gradients))
        for place in given:
            if place not in known:
                raise ConfigError(
                    f"{_backward_of(place)} gives a gradient of {place[-1]!r}, which is none of its parameters"
                )
        for entry in (*self.trained, *self._changing):
            for place in entry.places:
                gradient: Any = given.get(place)
                if gradient is None and entry.is_buffer:
                    continue
                if not hasattr(gradient, "shape"):
                    raise ConfigError(
                        f"{_backward_of(place)} gives no gradient of its parameter {place[-1]!r}; it must return "
                        "(dx, gradients), gradients a dict with an array for each parameter"
                    )
                shape, wanted = tuple(gradient.shape), getattr(namespace(gradient), self.dtype)
                half = dtype is not None and not entry.is_buffer and gradient.dtype == dtype
                if shape != entry.parameter.shape or not (half or gradient.dtype == wanted):
                    raise ConfigError(
                        f"{_backward_of(place)} gives a gradient of {place[-1]!r} of shape {shape} and dtype "
                        f"{gradient.dtype}; the parameter has {entry.parameter.shape} and {self.dtype}. "
                        "xpnn.testing.check_layer finds the layer where a wrong dtype comes in"
                    )

    def _gather(self, gradients: Tree) -> list[Array]:
        if self._flat_places is not None:
            return [gradients[layer][name] for layer, name in self._flat_places]
        found = []
        for entry in self.trained:
            total = None
            for place in entry.places:
                node: Any = gradients
                for key in place:
                    node = node[key]
                total = node if total is None else total + node
            found.append(total)
        return found

    def initialize(self, seed: int, backend: Backend) -> tuple[Vector, dict[str, Array]]:
        """First values for all parameters and buffers: (theta, buffers), with the same bits on every backend."""
        xp = host().xp
        arrays = {}
        for entry in self.entries:
            value = entry.parameter.initializer.sample(entry.parameter.shape, Draw(seed, entry.number))
            if tuple(value.shape) != entry.parameter.shape:
                raise ConfigError(
                    f"{entry.parameter.initializer!r} gave an array of shape {tuple(value.shape)} for the parameter "
                    f"{entry.name!r} of shape {entry.parameter.shape}"
                )
            arrays[entry.name] = xp.astype(value, getattr(xp, self.dtype))
        return self.place(arrays, backend)

    def place(self, arrays: Mapping[str, Array], backend: Backend) -> tuple[Vector, dict[str, Array]]:
        """Host arrays, one for each parameter, on the backend's device: (theta, buffers)."""
        theta = tuple(backend.asarray(block, self.dtype) for block in self.join(arrays))
        buffers = {
            name: backend.asarray(arrays[name], self.dtype) for name in sorted(entry.name for entry in self.beside)
        }
        return theta, buffers


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, item) for each item of nested dicts that is neither a dict nor None."""
    if isinstance(node, dict):
        for key, item in node.items():
            yield from _leaves(item, (*path, key))
    elif node is not None:
        yield path, node


def _backward_of(place: tuple[str, ...]) -> str:
    return f"the backward function of layer {'.'.join(place[:-1])!r}" if place[:-1] else "the backward function"


def _fill(structure: Tree, path: tuple[str, ...], at_place: Mapping[tuple[str, ...], Array]) -> Tree:
    """The nested dicts of `structure`, with arrays in the places of the parameters."""
    return {
        key: at_place[(*path, key)] if isinstance(item, (Parameter, Buffer)) else _fill(item, (*path, key), at_place)
        for key, item in structure.items()
    }


class NamedParameters(Mapping[str, Array]):
    """The parameters of a network by name; each is copied when it is asked for."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __getitem__(self, name: str) -> Array:
        network = self._network
        if name in network._buffers:
            return network.backend.copy(network._buffers[name])
        return network.backend.copy(network.layout.split(network._theta)[name])

    def __iter__(self) -> Iterator[str]:
        return iter(entry.name for entry in self._network.layout.entries)

    def __len__(self) -> int:
        return len(self._network.layout.entries)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{entry.name} {entry.parameter.shape}" for entry in self._network.layout.entries)
        return f"<parameters: {shapes}>"
