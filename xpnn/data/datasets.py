"""The data sets that can be asked for by name: two truth tables, and those that scikit-learn carries with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnn.backend import host
from xpnn.data.table import Table
from xpnn.errors import DataError

_GATE_DEFAULTS: dict[str, Any] = {
    "layers": (8,),
    "activation": "tanh",
    "epochs": 300,
    "batch_size": None,
    "learning_rate": 0.05,
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "iris": {"layers": (16,), "epochs": 60, "batch_size": 16, "learning_rate": 0.01},
    "digits": {"layers": (256, 128), "epochs": 30, "batch_size": 32, "learning_rate": 0.001},
    "wine": {"layers": (16,), "epochs": 40, "batch_size": 16, "learning_rate": 0.01},
    "breast_cancer": {"layers": (16,), "epochs": 30, "batch_size": 32, "learning_rate": 0.003},
    "diabetes": {"layers": (16,), "epochs": 30, "batch_size": 32, "learning_rate": 0.003},
}


def load_dataset(name: str) -> Table:
    """A built-in data set.

    Args:
        name: one of `DATASETS`: "xor" and "xnor" (4 samples, 2 features), "iris" (150, 4), "digits" (1797 images of
            8 x 8 pixels), "wine" (178, 13), "breast_cancer" (569, 30), "diabetes" (442, 10; regression).

    Raises:
        DataError: there is no data set of that name, or scikit-learn, which carries it, is not installed.
    """
    if name not in DATASETS:
        raise DataError(f"no data set is called {name!r}; there are: {', '.join(DATASETS)}")
    return DATASETS[name](name)


def _gate(name: str) -> Table:
    """The truth table of XOR or XNOR."""
    xp = host().xp
    x = xp.asarray([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=xp.float64)
    differ = xp.asarray([0, 1, 1, 0], dtype=xp.int64)
    y = differ if name == "xor" else 1 - differ
    return Table(x, y, ("a", "b"), name, "classification", ("0", "1"), split=False, defaults=_GATE_DEFAULTS)


def _bundled(name: str) -> Table:
    """A data set that lies inside the scikit-learn package: nothing is downloaded."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            f'the data set {name!r} comes with scikit-learn, which does not load ({error}); pip install "xpnn[data]"'
        ) from None
    bunch = getattr(datasets, f"load_{name}")()
    xp = host().xp
    return Table(
        x=xp.asarray(bunch.data, dtype=xp.float64),
        y=bunch.target,
        features=tuple(str(feature) for feature in bunch.feature_names),
        target="digit" if name == "digits" else "progression" if name == "diabetes" else "class",
        task="regression" if name == "diabetes" else "classification",
        class_names=tuple(str(each) for each in getattr(bunch, "target_names", ())),
        image=name == "digits",
        image_shape=(8, 8, 1) if name == "digits" else None,
        white=16.0 if name == "digits" else None,
        defaults=_DEFAULTS[name],
    )


DATASETS: dict[str, Callable[[str], Table]] = {
    "xor": _gate,
    "xnor": _gate,
    "iris": _bundled,
    "digits": _bundled,
    "wine": _bundled,
    "breast_cancer": _bundled,
    "diabetes": _bundled,
}
"""Every built-in data set by name."""
