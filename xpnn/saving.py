"""Model files.

A model file is a safetensors file: the arrays by name, and text. One array for each parameter ("0.weight"), and, where
the network was trained, one for each slot of the optimizer and each trained parameter
("optimizer.first_moment/0.weight"). The text, under the key "xpnn", is JSON: the layers, the settings of the network
and of its training, and whatever the user adds. Nothing in it is executed: loading builds objects of known classes
from their constructor arguments.

Arrays are stored by the parameter's name, not as the vector, so that a file from one backend loads on any other.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xpnn.backend import Backend, host
from xpnn.config import Configurable, check_integer, check_number, decode, encode
from xpnn.errors import CheckpointError, ConfigError, XpnnError
from xpnn.files import write_atomically
from xpnn.layers import Layer, Sequential
from xpnn.layers.layer import as_input_shape, checked_build
from xpnn.parameters import Layout, collect

if TYPE_CHECKING:
    from xpnn.network import Network

FORMAT = 1
"""The version of the file format that this xpnn writes; it reads this one and all before it."""

_KEY = "xpnn"
_DTYPES = {"F32": "float32", "F64": "float64"}

Arrays = dict[str, Any]


class _Wanted(NamedTuple):
    """The arrays that a file must hold: name -> shape."""

    shapes: dict[str, tuple[int, ...]]
    dtype: str


def save(network: Network, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a network, with the state of its training, into a safetensors file.

    The file is complete or not there: it is written under another name, flushed to the disk, and renamed. A failure
    leaves an older file of that name as it was.

    Args:
        network: a network whose parameters exist.
        path: the file; its folder must exist.
        metadata: anything that JSON can hold; `read_metadata` gives it back.

    Raises:
        ShapeError: the network does not know its input shape yet, so it has no parameters.
        ConfigError: a layer or the metadata cannot be described in JSON.
        CheckpointError: the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    if metadata is not None and not isinstance(metadata, Mapping):
        raise ConfigError(f"metadata={metadata!r} is no dict")
    arrays, description = _describe(network, metadata)
    try:
        text = json.dumps(description)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metadata={metadata!r} cannot be written as JSON: {error}") from None
    try:
        write_atomically(path, to_bytes(arrays, {_KEY: text}))
    except OSError as error:
        raise CheckpointError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error


def load(
    path: str | os.PathLike[str],
    backend: str | Backend | None = None,
    custom: Iterable[type[Configurable]] = (),
    precision: str = "float32",
) -> Network:
    """The network that a model file describes, with its parameters and the state of its training.

    Args:
        path: a file that `save` wrote, on this backend or another.
        backend: where the network is to live; without one, the current backend.
        custom: layer, loss, optimizer or metric classes of your own that the file names.
        precision: how it is to compute, as in `Network(precision=...)`: a file does not say it.

    Raises:
        CheckpointError: the file is missing, damaged, of another program or of a newer xpnn; it names a class that is
            not known; or its arrays do not fit its layers: all that are missing, unexpected or of a wrong shape are
            listed.
        BackendError: the backend is unknown or not usable here.
    """
    classes = tuple(custom)
    with _open(path) as file:
        description = _description(path, file)
        with _faults_named(path):
            root = _decoded(description["layers"], classes, Sequential)
            plan = _plan(description["training"], classes)
            wanted = _wanted(root, description, plan)
        # Before the network is built: a damaged description could ask for any amount of memory.
        arrays = _read(path, file, wanted)
    with _faults_named(path):
        network = _build(root, description, backend)
    network._theta, network._buffers = network.layout.place(arrays, network.backend)
    if plan is not None:
        network.training = _training_state(plan, arrays, network)
    return network.to(precision=precision)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was given to `save` as `metadata`; {} if nothing was. Raises CheckpointError as `load` does."""
    with _open(path) as file:
        found: dict[str, Any] = _description(path, file).get("metadata") or {}
        return found


def _describe(network: Network, metadata: Mapping[str, Any] | None) -> tuple[Arrays, dict[str, Any]]:
    """(arrays by name, description) of a network."""
    from xpnn import __version__

    layout = network.layout
    arrays = {name: _on_host(network, value) for name, value in network.parameters.items()}
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "layers": encode(network.root),
        "dtype": network.dtype,
        "seed": network.seed,
        "input_shape": list(network.input_shape or ()),
        "frozen": sorted(layout.frozen),
        "training": None,
        "metadata": None if metadata is None else dict(metadata),
    }
    state = network.training
    if state is not None:
        for slot, vector in state.slots.items():
            for name, value in state.optimizer.slot_layout(slot, layout).split(vector).items():
                arrays[_slot_name(slot, name)] = _on_host(network, value)
        description["training"] = {
            "optimizer": encode(state.optimizer),
            "loss": encode(state.loss),
            "metrics": [encode(metric) for metric in state.metrics],
            "slots": list(state.slots),
            "step": int(network.backend.to_host(state.step) if network.backend.owns(state.step) else state.step),
            "epoch": int(state.epoch),
            "scaling": [float(network.backend.to_host(part)) for part in state.scaling],
        }
    return arrays, description


def _slot_name(slot: str, parameter: str) -> str:
    return f"optimizer.{slot}/{parameter}"


def _on_host(network: Network, value: Any) -> Any:
    # The file holds the bytes in row-major order; a transposed view must be copied first.
    return host().xp.asarray(network.backend.to_host(value), order="C")


def _open(path: str | os.PathLike[str]) -> Any:
    """The file, opened for reading; its header and its length are checked."""
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    try:
        if not Path(path).is_file():
            raise CheckpointError(
                f"{name!r} is {'a folder' if Path(path).is_dir() else 'not there'}; give a model file"
            )
        return safe_open(name, framework="numpy")
    except SafetensorError as error:
        raise CheckpointError(f"{name!r} is damaged, or no safetensors file: {error}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {name!r}: {error.strerror or error}") from None


def _description(path: str | os.PathLike[str], file: Any) -> dict[str, Any]:
    """The description that `save` wrote."""
    name = os.fspath(path)
    text = (file.metadata() or {}).get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{name!r} holds arrays, but no description by xpnn: another program wrote it. Build the network and use "
            "network.set_parameters(...) with those arrays"
        )
    try:
        description = json.loads(text)
        version = description["format"]
        writer = description["version"]
        newer = version > FORMAT
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{name!r} has a damaged description: {type(error).__name__}: {error}") from None
    if newer:
        raise CheckpointError(
            f"{name!r} was written by xpnn {writer} in format {version}, and this xpnn reads up to format {FORMAT}; "
            "pip install --upgrade xpnn"
        )
    checked: dict[str, Any] = description
    return checked


def _read(path: str | os.PathLike[str], file: Any, wanted: _Wanted) -> Arrays:
    """The arrays of the file, if they are exactly the wanted ones; else one error that lists what is not."""
    there = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    faults = []
    missing = [name for name in wanted.shapes if name not in there]
    unexpected = [name for name in there if name not in wanted.shapes]
    if missing:
        faults.append(f"missing: {', '.join(missing)}")
    if unexpected:
        faults.append(f"unexpected: {', '.join(sorted(unexpected))}")
    for name, shape in wanted.shapes.items():
        if name not in there:
            continue
        found = tuple(there[name].get_shape())
        dtype = _DTYPES.get(there[name].get_dtype(), there[name].get_dtype())
        if found != shape:
            faults.append(f"{name} has shape {found}, wants {shape}")
        elif dtype != wanted.dtype:
            faults.append(f"{name} is {dtype}, wants {wanted.dtype}")
    if faults:
        raise CheckpointError(f"{os.fspath(path)!r} does not fit the network that it describes: {'; '.join(faults)}")
    return {name: file.get_tensor(name) for name in wanted.shapes}


def _wanted(root: Layer, description: dict[str, Any], plan: dict[str, Any] | None) -> _Wanted:
    """The arrays that a file with this description must hold."""
    structure = collect(root, checked_build(root, as_input_shape(description["input_shape"]))[1])
    shapes = {entry.name: entry.parameter.shape for entry in structure.entries}
    if plan:
        layout = Layout(structure, description["dtype"], False, description["frozen"])
        for slot in plan["slots"]:
            for entry in plan["optimizer"].slot_layout(slot, layout).trained:
                shapes[_slot_name(slot, entry.name)] = entry.parameter.shape
    return _Wanted(shapes, description["dtype"])


@contextlib.contextmanager
def _faults_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """A block in which what constructors raise for a description that makes no sense becomes a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error) if isinstance(error, XpnnError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{os.fspath(path)!r} describes a network that cannot be built: {reason}") from error


def _build(root: Sequential, description: dict[str, Any], backend: str | Backend | None) -> Network:
    """The network of a description, with parameters that are still those of its seed."""
    from xpnn.network import Network

    network = Network(
        *root.layers,
        backend=backend,
        dtype=description["dtype"],
        seed=description["seed"],
        input_shape=description["input_shape"],
    )
    return network.freeze(*description["frozen"])


def _plan(training: dict[str, Any] | None, custom: tuple[type[Configurable], ...]) -> dict[str, Any] | None:
    """The training state without its arrays."""
    from xpnn.losses import Loss
    from xpnn.metrics import Metric
    from xpnn.optimizers import Optimizer

    if training is None:
        return None
    return {
        "optimizer": _decoded(training["optimizer"], custom, Optimizer),
        "loss": _decoded(training["loss"], custom, Loss),
        "metrics": tuple(_decoded(metric, custom, Metric) for metric in training["metrics"]),
        "slots": [str(slot) for slot in training["slots"]],
        "step": _count("step", training["step"]),
        "epoch": _count("epoch", training["epoch"]),
        "scaling": _scaling(training.get("scaling", [])),  # older files have none
    }


def _count(name: str, value: Any) -> int:
    """A number of steps or epochs. Raises ConfigError if it is none."""
    count = check_integer(name, value, minimum=0)
    if count >= 2**63:
        raise ConfigError(f"{name}={count} is more than a training can have")
    return count


def _scaling(numbers: Any) -> tuple[float, ...]:
    """The loss scale of a training in float16, and its good steps; () if there is none."""
    if not numbers:
        return ()
    scale, good_steps = numbers
    return (
        check_number("scale", scale, "a finite number > 0", lambda number: 0.0 < number < math.inf),
        check_number("good_steps", good_steps, "a number >= 0", lambda number: 0.0 <= number < math.inf),
    )


def _decoded(data: Any, custom: tuple[type[Configurable], ...], wanted: type) -> Any:
    """The object that the data describe. Raises TypeError if it is no `wanted`."""
    found = decode(data, custom)
    if not isinstance(found, wanted):
        raise TypeError(f"it has {found!r} where {wanted.__name__} is wanted")
    return found


def _training_state(plan: dict[str, Any], arrays: Arrays, network: Network) -> Any:
    from xpnn.training import TrainingState
    from xpnn.training.precision import scaling_from

    slots = {
        slot: _vector(slot, arrays, plan["optimizer"].slot_layout(slot, network.layout), network.backend)
        for slot in plan["slots"]
    }
    scaling = scaling_from(plan["scaling"], network.backend) if plan["scaling"] else ()
    return TrainingState(**{**plan, "slots": slots, "scaling": scaling})


def _vector(slot: str, arrays: Arrays, layout: Layout, backend: Backend) -> tuple[Any, ...]:
    """One slot as a vector of its layout, on the network's device."""
    parts = {name: arrays[_slot_name(slot, name)] for name in layout.names}
    return tuple(backend.asarray(block, layout.dtype) for block in layout.join(parts))
