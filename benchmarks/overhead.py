"""What `fit` adds to the bare step, on the smallest network: 2-3-1, batch 4, epochs of 1000 steps.

    python benchmarks/overhead.py [--contenders xpnn,fit] [--rounds 9] [--json FILE]

`fit.py` prints these ratios as percentages, too.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends")]

import models  # noqa: E402
from networks import SPECS, Spec  # noqa: E402
from turns import Calls, Case, Contender, Table, run  # noqa: E402

STEPS = 1000
"""Steps in an epoch."""


def xor_data(spec: Spec) -> tuple[Any, Any]:
    """The truth table of XOR, as often as an epoch has steps."""
    import numpy as np

    table = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
    targets = np.array([[-1], [1], [1], [-1]], np.float32)
    return np.tile(table, (STEPS, 1)), np.tile(targets, (STEPS, 1))


def bare_steps(spec: Spec) -> Calls:
    """The compiled step, called on batches that were prepared before."""
    net = models.xpnn_network(spec.sizes, spec.activation)
    import xpnn

    inputs, targets = xor_data(spec)
    optimizer = xpnn.SGD(models.RATES["sgd"])
    step, state = net.step(spec.loss, optimizer), net.initial_state(optimizer, spec.loss)
    starts = range(0, len(inputs), spec.batch)
    batches = [net.prepare(inputs[i : i + spec.batch], targets[i : i + spec.batch], spec.loss) for i in starts]

    def epochs(count: int) -> float:
        nonlocal state
        for _ in range(count):
            for batch in batches:
                state, value = step(state, batch)
        return float(value)

    return epochs


def fit_shuffled(spec: Spec) -> Calls:
    """`fit`, which shuffles and picks the rows of each batch."""
    return _fit(spec, shuffle=True)


def fit_in_order(spec: Spec) -> Calls:
    """`fit` with shuffle=False: batches are slices, so that all that it adds is Python."""
    return _fit(spec, shuffle=False)


def _fit(spec: Spec, shuffle: bool) -> Calls:
    net = models.xpnn_network(spec.sizes, spec.activation)
    import xpnn

    inputs, targets = xor_data(spec)
    optimizer = xpnn.SGD(models.RATES["sgd"])

    def epochs(count: int) -> float:
        history = net.fit(
            inputs,
            targets,
            loss=spec.loss,
            optimizer=optimizer,
            epochs=count,
            batch_size=spec.batch,
            shuffle=shuffle,
            verbose=0,
        )
        return float(history["loss"][-1])

    return epochs


_PLAIN = {"XPNN_FAST": "0"}

TABLE = Table(
    script=__file__,
    description=__doc__,
    call="epoch",
    cases={"xor": Case("2-3-1 tanh, MSE, SGD, 1000 batches of 4", SPECS["xor"])},
    contenders={
        "xpnn": Contender(bare_steps, ("numpy",), _PLAIN),
        "fit": Contender(fit_shuffled, ("numpy",), _PLAIN),
        "fit-in-order": Contender(fit_in_order, ("numpy",), _PLAIN),
        "xpnn-fast": Contender(bare_steps, ("numpy", "numba")),
        "fit-fast": Contender(fit_shuffled, ("numpy", "numba")),
        "fit-fast-in-order": Contender(fit_in_order, ("numpy", "numba")),
    },
    result="last loss",
)

if __name__ == "__main__":
    run(TABLE)
