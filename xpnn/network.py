"""A network: layers, their parameters, and a backend to run on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from xpnn import dispatch
from xpnn.backend import Backend, get_backend, host
from xpnn.config import Configurable, by_name, classes_in, encode
from xpnn.dispatch import Array
from xpnn.errors import ConfigError, DeviceError, ShapeError
from xpnn.layers import Layer, Sequential
from xpnn.layers.layer import as_input_shape, checked_build
from xpnn.losses import LOSSES, Loss, check_output
from xpnn.metrics import Metric, metrics_from
from xpnn.optimizers import OPTIMIZERS, Optimizer
from xpnn.parameters import Layout, NamedParameters, Vector, collect
from xpnn.random import check_seed
from xpnn.training.callbacks import Callback
from xpnn.training.data import (
    HostData,
    check_batch_size,
    count_samples,
    enter_data,
    enter_samples,
    numbers_on_host,
    rows_of,
)
from xpnn.training.fit import EVALUATION_BATCH, evaluate, fit, predict_batches, release
from xpnn.training.history import History
from xpnn.training.move import move_scaling, move_slots
from xpnn.training.precision import precision_for
from xpnn.training.state import TrainingState
from xpnn.training.step import (
    Batch,
    EvaluationState,
    State,
    Step,
    gather_rows,
    make_evaluation_step,
    make_gradient_function,
    make_prediction_step,
    make_step,
)
from xpnn.training.summary import summary
from xpnn.training.totals import Totals

InputShape = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""Of a sample, without the batch; with several inputs, the shape of each."""
Weights = tuple[Layout, Vector, dict[str, Array]]

_STATELESS = EvaluationState({})
"""What a prediction changes: nothing."""


class Network:
    """Layers one after the other, with parameters on one backend.

    >>> net = xpnn.Network(xpnn.Dense(64), xpnn.ReLU(), xpnn.Dense(10), backend="numpy", dtype="float32", seed=0)

    The parameters are drawn when the shape of an input sample is known: at once if the first layer fixes it or
    `input_shape` is given, else when the first data come in.

    Args:
        layers: the layers, or one list of them.
        backend: a spec such as "numpy" or "cupy:1"; without one, the current backend (see `xpnn.use_backend`).
        dtype: "float32" or "float64"; of the parameters and of everything computed from them.
        precision: how layers compute, where the backend can do it in more ways than one: "float32", "tf32", "bfloat16"
            or "float16" (see `xpnn.training.precision`). Parameters and results stay what `dtype` says.
        seed: decides the initial weights, the order of the data and the dropout masks, on every backend alike.
        input_shape: the shape of one input sample, without the batch; for a network with several inputs, a tuple with
            the shape of each.

    Attributes:
        root: the layers, as one Sequential.
        precision: may be set anew at any time between calls; model files do not hold it.
        training: what is needed to resume the last training (a `TrainingState`); None before the first one.
        input_shape: the shape of an input sample; None while it is not known.
        output_shape: the shape of an output sample.

    A network may take several inputs: one that begins with `Each`, or any whose input_shape is a tuple of shapes. X
    is then a tuple of arrays, wherever it is asked for.

    Raises:
        ConfigError: an argument makes no sense.
        BackendError: the backend is unknown or not usable here, or has no such precision.
        ShapeError: the layers do not fit together.
    """

    def __init__(
        self,
        *layers: Layer | Iterable[Layer],
        backend: str | Backend | None = None,
        dtype: str = "float32",
        seed: int = 0,
        input_shape: InputShape | None = None,
        precision: str = "float32",
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise ConfigError(f'dtype={dtype!r} is not supported; choose "float32" or "float64"')
        self.root = Sequential(*layers)  # type: ignore[arg-type]
        self.backend = get_backend(backend)
        self.backend.dtype(dtype)
        self.dtype = dtype
        self._precision = precision_for(precision, dtype, self.backend)
        self.seed = check_seed(seed)
        self.training: TrainingState | None = None
        self.input_shape: InputShape | None = None
        self.output_shape: tuple[int, ...] = ()
        self._layout: Layout | None = None
        self._theta: Vector = ()
        self._buffers: dict[str, Array] = {}
        self._compiled: dict[str, tuple[Any, Step]] = {}
        shape = self.root.input_shape if input_shape is None else input_shape
        if shape is not None:
            self.build(shape)

    def build(self, input_shape: InputShape) -> None:
        """Fix the shape of an input sample and draw the parameters.

        Raises:
            ConfigError: input_shape is no shape, or a layer of yours asks for parameters that make no sense.
            ShapeError: the layers do not fit together.
        """
        shape = as_input_shape(input_shape)
        output_shape, tree = checked_build(self.root, shape)
        if output_shape and isinstance(output_shape[0], tuple):
            raise ShapeError(
                f"the last layer gives {len(output_shape)} arrays, with samples of shapes {output_shape}, and a "
                "network gives one: end it in a layer that makes one of them, such as "
                'Each(..., combine="concatenate"), or leave return_state and return_memory out of the last layer'
            )
        layout = Layout(collect(self.root, tree), self.dtype, self.backend.blocked)
        theta, buffers = layout.initialize(self.seed, self.backend)
        # Set in the end, and together: a network is built as a whole or not at all.
        self.input_shape, self.output_shape, self.training = shape, output_shape, None
        self._layout, self._theta, self._buffers = layout, theta, buffers

    @property
    def precision(self) -> str:
        """How the layers compute: "float32", "tf32", "bfloat16" or "float16"."""
        return self._precision.name

    @precision.setter
    def precision(self, name: str) -> None:
        self._precision = precision_for(name, self.dtype, self.backend)

    def _forget_input_shape(self) -> None:
        """Undo `build`."""
        self.input_shape, self.output_shape, self.training = None, (), None
        self._layout, self._theta, self._buffers = None, (), {}

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
        return NamedParameters(self)

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        loss: str | Loss | None = None,
        optimizer: str | Optimizer | None = None,
        epochs: int = 1,
        batch_size: int | None = 32,
        validation_data: Any = None,
        validation_split: float = 0.0,
        metrics: Iterable[str | Metric] | None = None,
        shuffle: bool = True,
        verbose: Any = "auto",
        callbacks: Iterable[Callback] = (),
        sample_weight: Any = None,
        resume: bool = False,
    ) -> History:
        """Train the network.

        Each epoch goes once through the data, in batches; the last batch of an epoch may be smaller. The order of the
        data is a function of the network's seed and the number of the epoch. Ctrl-C ends the training after the
        running step and returns the history so far; the network keeps the weights of that step.

        Data of the host move to a GPU once, if half of its free memory holds them (XPNN_DATA_SHARE says another share);
        larger ones stay, and each batch travels while the one before is computed with. The results are the same.

        Args:
            X: (samples, *input_shape): a host array, list or data frame, or an array of the network's backend. For a
                network with several inputs, a tuple with one of these for each.
            y: (samples, ...): what the loss wants, for example integer labels.
            loss: a name such as "mse", or an xpnn.Loss.
            optimizer: a name such as "adam", or an xpnn.Optimizer.
            epochs: how often to go through the data.
            batch_size: samples per step; 1 is stochastic descent, None takes all samples in each step.
            validation_data: (X, y) or (X, y, sample_weight), evaluated after each epoch.
            validation_split: or else the share of the samples to hold out for that, picked at random by the seed.
            metrics: names such as "accuracy", or xpnn.metrics.Metric objects.
            shuffle: False takes the samples in their order.
            verbose: "auto" or 1 shows a bar on a terminal and lines elsewhere, 2 lines, 0 nothing.
            callbacks: xpnn.Callback objects.
            sample_weight: (samples,): how much each sample counts.
            resume: True continues the training before, also one from a model file: with the optimizer's memory, the
                step and the epoch number. Loss, optimizer and metrics that are not given are taken from there.

        Returns:
            The history: loss and metrics of each epoch, the loss as the mean over its batches while they were trained.

        Raises:
            ConfigError: an argument makes no sense, alone or with the others.
            DataError: the data cannot be used: wrong length, no samples, NaN, labels out of range.
            ShapeError: the samples do not fit the network.
            DeviceError: the data lie with another library or on another device.
            TrainingError: the loss became infinite or NaN.
        """
        return fit(
            self,
            X,
            y,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            validation_data=validation_data,
            validation_split=validation_split,
            metrics=metrics,
            shuffle=shuffle,
            verbose=verbose,
            callbacks=callbacks,
            sample_weight=sample_weight,
            resume=resume,
        )

    def evaluate(
        self,
        X: Any,
        y: Any,
        *,
        loss: str | Loss | None = None,
        metrics: Iterable[str | Metric] | None = None,
        batch_size: int | None = EVALUATION_BATCH,
        sample_weight: Any = None,
    ) -> dict[str, Any]:
        """Loss and metrics on a data set, as numbers; dropout is off.

        Args:
            X: (samples, *input_shape).
            y: (samples, ...).
            loss: without it, that of the last training.
            metrics: without them, those of the last training.
            batch_size: how many samples are taken at once; the result does not depend on it, but for rounding.
            sample_weight: (samples,) or None.

        Returns:
            {"loss": ..., and each metric by its name}.

        Raises:
            ConfigError: no loss is given, and there was no training; or an argument makes no sense.
            DataError, ShapeError, DeviceError: as in `fit`.
        """
        return evaluate(self, X, y, loss=loss, metrics=metrics, batch_size=batch_size, sample_weight=sample_weight)

    def predict(self, X: Any, batch_size: int | None = EVALUATION_BATCH) -> Any:
        """The network's output for samples X: (samples, *output_shape), the kind of array that X is.

        A list or data frame gives a NumPy array. No samples give an empty array. Dropout is off.
        """
        size = check_batch_size(batch_size)
        inputs, mine = enter_samples(self, X)
        streamed = isinstance(inputs, HostData)
        samples = count_samples(inputs)
        size = size or max(samples, 1)
        with self.backend.context():
            step = self._compiled_prediction_step()
            pieces = predict_batches(step, _STATELESS, self, inputs, size) if streamed else []
            for start in range(0, 0 if streamed else max(samples, 1), size):
                rows = rows_of(inputs, start, min(start + size, samples)) if samples > size else inputs
                pieces.append(step(_STATELESS, (self._theta, self._buffers, rows))[1])
            if samples > size:
                release(step)
            if isinstance(pieces[0], tuple):
                raise ShapeError(
                    f"the network gives {len(pieces[0])} arrays, and its layers' build promised one, of samples of "
                    f"shape {self.output_shape}; a layer of yours is wrong: xpnn.testing.check_layer says which"
                )
            # What was streamed lies on the host already.
            xp = host().xp if streamed else self.backend.xp
            output = pieces[0] if len(pieces) == 1 else xp.concat(pieces)
            if tuple(output.shape[1:]) != self.output_shape:
                raise ShapeError(
                    f"the network gives samples of shape {tuple(output.shape[1:])}, and its layers' build promised "
                    f"{self.output_shape}; a layer of yours is wrong: xpnn.testing.check_layer says which"
                )
            if not self.layout.entries and not streamed:
                output = self.backend.copy(output)  # layers such as Flatten give back X itself
        return output if mine or streamed else self.backend.to_host(output)

    def loss_and_gradients(
        self, X: Any, y: Any, loss: str | Loss | None = None, sample_weight: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        """The loss on one batch, as a 0-d array, and its gradient with respect to each trained parameter, by name.

        Dropout is off. Nothing is changed. Without `loss`, that of the last training is taken.
        """
        if loss is None and self.training is None:
            raise ConfigError('loss_and_gradients does not know the loss: give loss="mse", say')
        criterion: Loss = by_name("loss", self.training.loss if loss is None and self.training else loss, LOSSES, Loss)
        data = enter_data(self, X, y, criterion, sample_weight)
        self.check_loss(criterion)
        with self.backend.context():
            differentiate = make_gradient_function(self.root, self.layout, criterion, self._precision)
            value, gradients = differentiate(self._theta, self._buffers, tuple(data))
            return self.backend.xp.asarray(value), gradients

    def set_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Set all parameters, from host arrays or arrays of the network's backend, by name as in `parameters`.

        Raises:
            ConfigError: lists every name that is missing, unexpected, or has an array of a wrong shape.
            DataError: a value is no array of numbers.
            DeviceError: an array is of another library.
        """
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"parameters are given by name, as a dict; got a {type(parameters).__name__}")
        wanted = {entry.name: entry.parameter.shape for entry in self.layout.entries}
        faults = [f"{name} is missing" for name in wanted if name not in parameters]
        faults += [f"{name} is unexpected" for name in parameters if name not in wanted]
        arrays = {}
        for name, value in parameters.items():
            if name not in wanted:
                continue
            owner = dispatch.backend_of(value)
            if owner not in (None, "numpy", self.backend.name):
                raise DeviceError(
                    f"{name} is an array of {owner}, the network lives on {self.backend.spec}; give a NumPy array"
                )
            mine = owner == self.backend.name and owner != "numpy"
            array = self.backend.asarray(value if mine else numbers_on_host(name, value), self.dtype)
            if tuple(array.shape) != wanted[name]:
                faults.append(f"{name} has shape {tuple(array.shape)}, wants {wanted[name]}")
            arrays[name] = array
        if faults:
            raise ConfigError(f"the parameters do not fit the network: {'; '.join(faults)}")
        with self.backend.context():
            self._theta = tuple(self.backend.copy(block) for block in self.layout.join(arrays))
            self._buffers = {name: self.backend.copy(arrays[name]) for name in self._buffers}

    def summary(self) -> None:
        """Print a table of the layers: path, layer, shape of an output sample, number of parameters."""
        print(summary(self))

    def to(self, backend: str | Backend | None = None, precision: str | None = None) -> Network:
        """Move the network, with the state of its training, to another backend or device; returns the network.

        Args:
            backend: where to; without one, the network stays.
            precision: how it is to compute from now on; without one, as before.

        Raises:
            BackendError: that backend is unknown, not usable here, or lacks the network's dtype or precision.
            ConfigError: there is no such precision, or it does not go with the network's dtype.
        """
        target = self.backend if backend is None else get_backend(backend)
        target.dtype(self.dtype)
        computation = precision_for(precision or self.precision, self.dtype, target)
        if target is not self.backend:
            self._lay_out(target, self._layout.frozen if self._layout else frozenset())
        self._precision = computation
        return self

    def freeze(self, *names: str) -> Network:
        """Exclude parameters from training; returns the network.

        Args:
            names: of parameters ("0.weight") or layers ("0", "1.branches.0"; all parameters inside).

        Raises:
            ConfigError: no parameter has such a name.
            ShapeError: the network does not know its input shape yet, so it has no parameters.
        """
        self._lay_out(self.backend, self.layout.frozen | self._named(names))
        return self

    def unfreeze(self, *names: str) -> Network:
        """Train parameters again, named as in `freeze`; without names, all of them. Returns the network."""
        thawed = self._named(names) if names else self.layout.frozen
        self._lay_out(self.backend, self.layout.frozen - thawed)
        return self

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the network, with the state of its training, to a safetensors file; see `xpnn.saving.save`."""
        from xpnn.saving import save

        save(self, path, metadata)

    @staticmethod
    def load(
        path: str | os.PathLike[str],
        backend: str | Backend | None = None,
        custom: Iterable[type[Configurable]] = (),
        precision: str = "float32",
    ) -> Network:
        """The network in a file that `save` wrote, on this backend or another; see `xpnn.saving.load`."""
        from xpnn.saving import load

        return load(path, backend, custom, precision)

    def step(self, loss: str | Loss, optimizer: str | Optimizer, metrics: Iterable[str | Metric] = ()) -> Step:
        """The compiled training step, for a loop of your own: step(state, batch) -> (state, loss).

        >>> step, state = net.step("mse", xpnn.SGD(0.1)), net.initial_state(xpnn.SGD(0.1))
        >>> state, loss = step(state, net.prepare(X, y, "mse"))
        >>> net.set_state(state)

        The state that goes in is donated: its arrays must not be used again.
        """
        criterion = by_name("loss", loss, LOSSES, Loss)
        self.check_loss(criterion)
        chosen = by_name("optimizer", optimizer, OPTIMIZERS, Optimizer)
        resolved = tuple(metric.resolve(criterion, self.output_shape) for metric in metrics_from(metrics))
        return self.backend.compile(make_step(self.root, self.layout, criterion, chosen, resolved, self._precision))

    def initial_state(
        self, optimizer: str | Optimizer, loss: str | Loss = "mse", metrics: Iterable[str | Metric] = ()
    ) -> State:
        """The state before the first step: a copy of the parameters, and fresh slots of the optimizer.

        The loss matters only beside metrics: it decides how they read the outputs.
        """
        chosen: Optimizer = by_name("optimizer", optimizer, OPTIMIZERS, Optimizer)
        criterion = by_name("loss", loss, LOSSES, Loss)
        resolved = tuple(metric.resolve(criterion, self.output_shape) for metric in metrics_from(metrics))
        totals = Totals(self.backend, resolved, self.output_shape).zero()
        with self.backend.context():
            theta = tuple(self.backend.copy(block) for block in self._theta)
            buffers = {name: self.backend.copy(array) for name, array in self._buffers.items()}
            slots = chosen.initial_slots(theta, self.layout)
        return State(theta, slots, buffers, 0, self.seed, totals, self._precision.first_scaling(self.backend))

    def prepare(self, X: Any, y: Any, loss: str | Loss, sample_weight: Any = None) -> Batch:
        """A batch for `step`: checked, on the network's device, the targets as the loss wants them."""
        return tuple(enter_data(self, X, y, by_name("loss", loss, LOSSES, Loss), sample_weight))

    def set_state(self, state: State) -> None:
        """Take the parameters and buffers from a state that `step` returned."""
        self._theta = tuple(self.backend.copy(block) for block in state.theta)
        self._buffers = {name: self.backend.copy(array) for name, array in state.buffers.items()}

    def use_averaged_weights(self) -> Network:
        """Replace the weights by their average over the last training (an optimizer with `ema=`); returns the network.

        Do it after the training: one that is resumed would go on from the average.

        Raises ConfigError if there is no average.
        """
        if self.training is None:
            raise ConfigError("the network was not trained yet, so there is no average of its weights")
        averaged = self.training.optimizer.averaged(self.training.slots)
        self._theta = tuple(self.backend.copy(block) for block in averaged)
        return self

    def check_loss(self, loss: Loss) -> None:
        """Raise ConfigError if the loss cannot take what the last layer gives; the message says what to write."""
        check_output(loss, self.root.output_kind)

    def copy_weights(self) -> Weights:
        """A copy of all parameters that stays on the device, for `restore_weights`."""
        copy = self.backend.copy
        buffers = {name: copy(array) for name, array in self._buffers.items()}
        return self.layout, tuple(copy(block) for block in self._theta), buffers

    def restore_weights(self, weights: Weights) -> None:
        """Take back what `copy_weights` returned. Raises ConfigError if the network was laid out anew since."""
        layout, theta, buffers = weights
        if layout is not self._layout:
            raise ConfigError("these weights are of another network, or of before it was moved, frozen or unfrozen")
        self._theta = tuple(self.backend.copy(block) for block in theta)
        self._buffers = {name: self.backend.copy(array) for name, array in buffers.items()}

    @property
    def compiled(self) -> dict[str, str]:
        """How the steps of `fit`, `evaluate` and `predict` run that were used so far.

        {"fit": "a CUDA graph"}, say; or "call by call: " and the reason, where the backend could not compile the step.
        """
        return {use: getattr(step, "how", "as the library runs it") for use, (_, step) in self._compiled.items()}

    def compiled_fit_step(self, loss: Loss, optimizer: Optimizer, metrics: Iterable[Metric]) -> Step:
        """The compiled step of `fit`, which picks the rows of its batch itself; compiled again only after a change."""
        resolved = tuple(metric.resolve(loss, self.output_shape) for metric in metrics)
        step = gather_rows(make_step(self.root, self.layout, loss, optimizer, resolved, self._precision))
        return self._compile("fit", (self.root, loss, optimizer, tuple(metrics)), step)

    def compiled_evaluation_step(self, loss: Loss, metrics: Iterable[Metric]) -> Step:
        """The compiled step of `evaluate`."""
        resolved = tuple(metric.resolve(loss, self.output_shape) for metric in metrics)
        step = make_evaluation_step(self.root, self.layout, loss, resolved, self._precision)
        return self._compile("evaluate", (self.root, loss, tuple(metrics)), step)

    def _compiled_prediction_step(self) -> Step:
        """The compiled step of `predict`; the layers of a network never change."""
        known = self._compiled.get("predict")
        key = (self.backend, self._layout, self.precision, dispatch.overrides_active())
        if known is None or known[0] != key:
            step = make_prediction_step(self.root, self.layout, self._precision)
            known = self._compiled["predict"] = (key, self.backend.compile(step))
        return known[1]

    def _compile(self, use: str, settings: tuple[Any, ...], step: Step) -> Step:
        """The compiled step; one from before, if everything that it was compiled from is the same."""
        try:
            described = json.dumps(encode(settings))
        except (ConfigError, TypeError, ValueError):
            # A setting without a description (a function, an array) may have changed unseen.
            return self.backend.compile(step)
        # A class that was defined anew under its old name, as in a notebook, has the same description.
        active = dispatch.overrides_active()
        key = (self.backend, self.layout, self.precision, active, described, tuple(classes_in(settings)))
        known = self._compiled.get(use)
        if known is None or known[0] != key:
            known = self._compiled[use] = (key, self.backend.compile(step))
        return known[1]

    def _named(self, names: Iterable[str]) -> frozenset[str]:
        """The parameters that `names` stand for, each a parameter's name or the path of a layer."""
        found: set[str] = set()
        for name in names:
            places = {
                entry.name: [entry.name, *(".".join(place) for place in entry.places)] for entry in self.layout.entries
            }
            matching = {
                parameter
                for parameter, paths in places.items()
                if any(path == name or path.startswith(f"{name}.") for path in paths)
            }
            if not matching:
                raise ConfigError(
                    f"no parameter is called {name!r} or lies in a layer of that path; known: "
                    f"{', '.join(self.parameters)}"
                )
            found |= matching
        return frozenset(found)

    def _lay_out(self, backend: Backend, frozen: frozenset[str]) -> None:
        """Move everything to a new layout, a new backend, or both; arrays travel by the host."""
        old, source = self._layout, self.backend
        if old is None:
            self.backend = backend
            return
        if old.frozen == frozen and backend is source:
            return
        arrays = {name: source.to_host(value) for name, value in self.parameters.items()}
        layout = Layout(old.structure, self.dtype, backend.blocked, frozen)
        theta, buffers = layout.place(arrays, backend)
        training = self.training
        if training is not None:
            slots = move_slots(training.optimizer, training.slots, old, source, theta, layout, backend)
            scaling = move_scaling(training.scaling, source, backend)
            training = training._replace(slots=slots, scaling=scaling)
        self.backend, self._layout, self._theta, self._buffers, self.training = (
            backend,
            layout,
            theta,
            buffers,
            training,
        )
        self._compiled = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}  # a compiled step can neither be copied nor pickled

    def __repr__(self) -> str:
        layers = ", ".join(repr(layer) for layer in self.root.layers)
        precision = "" if self.precision == "float32" else f", precision={self.precision!r}"
        return f"Network({layers}, backend={self.backend.spec!r}, dtype={self.dtype!r}{precision}, seed={self.seed})"
