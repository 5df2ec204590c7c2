"""What a loss is."""

from __future__ import annotations

from typing import Any, ClassVar

from xpnn.backend import Backend
from xpnn.config import Configurable
from xpnn.dispatch import Array, Vjp
from xpnn.errors import DataError


class Loss(Configurable):
    """How far predictions are from targets, as one number.

    A subclass gives `__call__`, made of one op. The targets that it gets have been through `prepare`, once, when the
    data came in.

    Attributes:
        expects: what the network's output must be: "logits", "probabilities", "log_probabilities", or "any".
        averages: True if the loss of a data set is the mean over its samples, False if it is the sum.
    """

    expects: ClassVar[str] = "any"
    name: ClassVar[str]

    @property
    def averages(self) -> bool:
        return bool(getattr(self, "reduction", "mean").endswith("mean"))

    def prepare(self, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
        """The targets in the shape and dtype that `__call__` wants; called once for a whole data set.

        Args:
            targets: (samples, ...), an array of the backend.
            output_shape: the shape of one sample of the network's output.
            backend: where the arrays lie.
            dtype: the network's dtype.

        Raises:
            DataError: the targets do not fit the output.
        """
        return same_shape(type(self).__name__, targets, output_shape, backend, dtype)

    def __call__(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Vjp]:
        """(loss as a 0-d array, vjp) with vjp(1.0)[0] the gradient with respect to the prediction."""
        raise NotImplementedError

    def total_weight(self, target: Array, weight: Array | None) -> Any:
        """What this batch's loss counts for in the loss of a whole data set: the sum of its weights."""
        if not self.averages:
            return 1.0
        if weight is None:
            return float(target.shape[0])
        from xpnn.dispatch import namespace

        return namespace(weight).sum(weight)


def same_shape(name: str, targets: Array, output_shape: tuple[int, ...], backend: Backend, dtype: str) -> Array:
    """Targets of the output's shape and dtype; a missing or extra axis of length 1 is mended."""
    wanted = (targets.shape[0], *output_shape)
    if targets.shape != wanted:
        if [n for n in targets.shape[1:] if n != 1] != [n for n in output_shape if n != 1]:
            raise DataError(
                f"loss {name} compares targets and outputs element by element: y has shape {tuple(targets.shape)}, the "
                f"network gives {wanted}; give y that shape, or end the network in a layer of another size"
            )
        targets = backend.xp.reshape(targets, wanted)
    return backend.xp.astype(targets, backend.dtype(dtype))
