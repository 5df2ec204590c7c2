"""The errors that xpnn raises on purpose. Each says what came, what was wanted, and what mends it."""

from __future__ import annotations


class XpnnError(Exception):
    """Base of every error that xpnn raises on purpose; the command line prints it as one line."""


class BackendError(XpnnError, RuntimeError):
    """A backend is unknown, or known and not usable here."""


class DeviceError(XpnnError, TypeError):
    """Arrays of two libraries, or on two devices, met in one call."""


class DataError(XpnnError, ValueError):
    """Inputs, targets or a data file cannot be used as they are."""


class ConfigError(XpnnError, ValueError):
    """An argument of a layer, a loss, an optimizer or a call has a value that makes no sense."""


class CheckpointError(XpnnError, ValueError):
    """A model file is missing, damaged, or does not fit the network."""


class OutOfMemoryError(XpnnError, MemoryError):
    """The memory of a device does not hold what a call needs, not even after all caches were freed."""


class CheckError(XpnnError, AssertionError):
    """A gradient check or a comparison of backends found a difference."""


class ShapeError(XpnnError, ValueError):
    """A shape does not fit. `path` names the layer from the outside in, as in "2.branch.0"."""

    def __init__(self, message: str, layer: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.layer = layer
        self.path: tuple[str, ...] = ()

    def inside(self, name: str) -> ShapeError:
        """The same error, seen from the layer that holds the failing one under `name`."""
        self.path = (name, *self.path)
        return self

    def __str__(self) -> str:
        if self.layer is None:
            return self.message
        where = f"layer {'.'.join(self.path)} " if self.path else "layer "
        return f"{where}{self.layer!r}: {self.message}"


class TrainingError(XpnnError, ArithmeticError):
    """The training diverged: the loss is no number any more."""
