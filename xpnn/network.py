"""A network: layers, their parameters, and a backend to run on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from xpnn.backend import Backend, get_backend
from xpnn.config import by_name
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, ShapeError
from xpnn.layers import Layer, Run, Sequential
from xpnn.losses import LOSSES, Loss
from xpnn.parameters import Layout, Vector, collect
from xpnn.random import check_seed
from xpnn.training.data import as_inputs, enter


class Network:
    """Layers one after the other, with parameters on one backend.

    >>> net = xpnn.Network(xpnn.Dense(64), xpnn.ReLU(), xpnn.Dense(10), backend="numpy", dtype="float32", seed=0)

    The parameters are drawn when the shape of an input sample is known: at once if the first layer fixes it or
    `input_shape` is given, else when the first data come in.

    Args:
        layers: the layers, or one list of them.
        backend: a spec such as "numpy" or "cupy:1"; without one, the current backend (see `xpnn.use_backend`).
        dtype: "float32" or "float64"; of the parameters and of everything computed from them.
        seed: decides the initial weights, the order of the data and the dropout masks, on every backend alike.
        input_shape: the shape of one input sample, without the batch.

    Raises:
        ConfigError: an argument makes no sense.
        BackendError: the backend is unknown or not usable here.
        ShapeError: the layers do not fit together.
    """

    def __init__(
        self,
        *layers: Layer | Iterable[Layer],
        backend: str | Backend | None = None,
        dtype: str = "float32",
        seed: int = 0,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise ConfigError(f'dtype={dtype!r} is not supported; choose "float32" or "float64"')
        self.root = Sequential(*layers)  # type: ignore[arg-type]
        self.backend = get_backend(backend)
        self.backend.dtype(dtype)
        self.dtype = dtype
        self.seed = check_seed(seed)
        self.input_shape: tuple[int, ...] | None = None
        self._layout: Layout | None = None
        self._theta: Vector = ()
        self._buffers: dict[str, Array] = {}
        shape = self.root.input_shape if input_shape is None else input_shape
        if shape is not None:
            self.build(shape)

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Fix the shape of an input sample and draw the parameters. Raises ShapeError if the layers do not fit."""
        shape = tuple(int(length) for length in input_shape)
        self.output_shape, tree = self.root.build(shape)
        self._layout = Layout(collect(self.root, tree), self.dtype, self.backend.blocked)
        self._theta, self._buffers = self._layout.initialize(self.seed, self.backend)
        self.input_shape = shape

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in the parameter vector."""
        if self._layout is None:
            raise ShapeError(
                "the network has no parameters yet, because it does not know the shape of its input: give "
                "input_shape=..., write the first layer as Dense(inputs, units), or call fit"
            )
        return self._layout

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name ("0.weight") -> a copy of that parameter, in the order of the layers."""
        return _Parameters(self)

    def predict(self, x: Any, batch_size: int = 1024) -> Any:
        """The network's output for samples x: (samples, *output_shape), the kind of array that x is."""
        inputs, mine = self._enter_inputs(x)
        samples = inputs.shape[0]
        xp = self.backend.xp
        with self.backend.context():
            tree = self.layout.tree(self._theta, self._buffers)
            pieces = []
            for start in range(0, max(samples, 1), batch_size):
                rows = inputs[start : min(start + batch_size, samples), ...]
                pieces.append(self.root.forward(rows, tree, Run())[0])
            output = pieces[0] if len(pieces) == 1 else xp.concat(pieces)
        return output if mine else self.backend.to_host(output)

    def loss_and_gradients(
        self, x: Any, y: Any, loss: str | Loss = "mse", sample_weight: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        """The loss on one batch, as a 0-d array, and its gradient with respect to each parameter, by name.

        Dropout is off. Nothing is changed.
        """
        criterion: Loss = by_name("loss", loss, LOSSES, Loss)
        inputs, _ = self._enter_inputs(x)
        target = criterion.prepare(enter("y", y, self.backend, self.dtype), self.output_shape, self.backend, self.dtype)
        weight = None if sample_weight is None else enter("sample_weight", sample_weight, self.backend, self.dtype)
        with self.backend.context():
            tree = self.layout.tree(self._theta, self._buffers)
            prediction, backward = self.root.forward(inputs, tree, Run(input_gradient=False))
            value, vjp = criterion(prediction, target, weight)
            _, gradients = backward(vjp(1.0)[0])
            return self.backend.xp.asarray(value), self.layout.gather(gradients)

    def fit(self, x: Any, y: Any, **options: Any) -> Any:
        """Placeholder until training/fit.py."""
        from xpnn.training.fit import fit

        return fit(self, x, y, **options)

    def _enter_inputs(self, x: Any) -> tuple[Array, bool]:
        """x on the device in the right dtype, its shape checked, and whether it came from this backend."""
        array = enter("X", x, self.backend, self.dtype)
        shape = tuple(array.shape[1:])
        if self.input_shape is None:
            self.build(shape)
        elif shape != self.input_shape:
            raise ShapeError(
                f"X has shape {tuple(array.shape)}: samples of shape {shape}; the network was built for samples of "
                f"shape {self.input_shape}"
            )
        mine = self.backend.owns(x)
        return as_inputs(array, self.root.input_kind, self.backend, self.dtype), mine

    def __repr__(self) -> str:
        layers = ", ".join(repr(layer) for layer in self.root.layers)
        return f"Network({layers}, backend={self.backend.spec!r}, dtype={self.dtype!r}, seed={self.seed})"


class _Parameters(Mapping[str, Array]):
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
