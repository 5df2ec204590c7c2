"""The rows of the matrix: each is a backend, on a device that is strict about something."""

from __future__ import annotations

from typing import NamedTuple

from xpnn.backend import Backend, get_backend, installed_version, why_not
from xpnn.errors import BackendError


class Row(NamedTuple):
    """One row of the matrix.

    Attributes:
        id: its name in reports, in XPNN_TEST_BACKENDS and in XPNN_REQUIRE_BACKENDS.
        spec: the backend.
        proves: what this row shows that the others do not.
        dtypes: the dtypes that it runs.
    """

    id: str
    spec: str
    proves: str
    dtypes: tuple[str, ...] = ("float64", "float32")

    @property
    def reason(self) -> str | None:
        """None if the row can run here, else why not."""
        name, _, device = self.spec.partition(":")
        reason = why_not(name)
        if reason is None and device:
            try:
                get_backend(self.spec)
            except BackendError as error:
                reason = str(error)
        return reason

    @property
    def version(self) -> str:
        """The installed version of the library, or "-"; the library is not imported for that."""
        return installed_version(self.spec.partition(":")[0])

    def backend(self) -> Backend:
        """The backend, ready for float64 if the row wants it."""
        backend = get_backend(self.spec)
        if "float64" in self.dtypes:
            backend.enable_float64()
        return backend


ROWS = (
    Row("numpy", "numpy", "the reference: NumPy on the CPU"),
    Row("numpy-readonly", "numpy:readonly", "no op writes into its arguments"),
    Row("numpy-compiled", "numpy:compiled", "a recorded step gives what the step gives"),
    Row("numpy-fast", "numpy:fast", "native kernels give what NumPy gives"),
    Row("cupy", "cupy", "NVIDIA GPUs"),
    Row("cupy-graph", "cupy:graph", "what is captured in a CUDA graph and replayed gives what it gives call by call"),
    Row("strict", "strict:device1", "only the standard is called, every array is made on its input's device"),
    Row("strict-no64", "strict:no_float64", "no float64 appears in a float32 network", ("float32",)),
    Row("torch", "torch", "an independent array library"),
    Row("jax", "jax", "nothing is written in place, no value decides the flow"),
)


def row(row_id: str) -> Row:
    """The row of that id. Raises KeyError if there is none."""
    return {known.id: known for known in ROWS}[row_id]
