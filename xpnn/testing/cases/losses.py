"""Cases of the losses; kinks (a residual of 0, a margin of 0) are avoided."""

from typing import Any

from xpnn.ops.reduction import REDUCTIONS
from xpnn.testing.cases.case import Case, Distinct, Integers, Probabilities, Reals, Values

_ABOVE = Reals((4, 3), 0.5, 2.0)
_BELOW = Reals((4, 3), -2.0, 0.0)
_WEIGHT = Reals((4,), 0.5, 2.0)
_SIGNS = Values(((1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, -1.0), (-1.0, -1.0, 1.0)))
_BITS = Values(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
_CLASS_WEIGHTS = (0.5, 2.0, 1.0)

_SQUARED = (
    *(
        Case("mse", (Reals((4, 3)), Reals((4, 3))), {"reduction": reduction}, label=reduction, terms=12)
        for reduction in REDUCTIONS
    ),
    Case("mse", (Reals((4, 3)), Reals((4, 3)), _WEIGHT), label="weighted", terms=12),
    Case("mse", (Reals((4, 4)), Reals((4, 4))), label="dyadic", exact=True, terms=16),
)

_ABSOLUTE = (
    *(Case("mae", (_ABOVE, _BELOW), {"reduction": reduction}, label=reduction, terms=12) for reduction in REDUCTIONS),
    Case("mae", (_BELOW, _ABOVE, _WEIGHT), label="weighted", terms=12),
    Case("mae", (Distinct((4, 4)), Reals((4, 4), 5.0, 6.0)), label="dyadic", exact=True, terms=16),
    Case("huber", (_ABOVE, _BELOW), {"delta": 0.25}, label="straight", terms=12),
    Case("huber", (_ABOVE, _BELOW), {"delta": 5.0}, label="parabola", terms=12),
    Case(
        "huber",
        (Distinct((4, 3)), Values(((0.1,) * 3,) * 4), _WEIGHT),
        {"delta": 0.8, "reduction": "half_batch_mean"},
        label="weighted",
        terms=12,
    ),
    Case(
        "huber", (Distinct((4, 4)), Values(((0.125,) * 4,) * 4)), {"delta": 0.5}, label="dyadic", exact=True, terms=16
    ),
)

_Options = tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...]
"""(label, arguments after the first, options) of cases that several ops share."""

_LABELS = Integers((4,), 3)
_LABELS_2D = Integers((4, 2), 3)
_CLASS_OPTIONS: _Options = (
    ("labels", (_LABELS,), {}),
    ("sum", (_LABELS,), {"reduction": "sum"}),
    ("half-sum", (_LABELS,), {"reduction": "half_sum"}),
    ("weighted", (_LABELS, _WEIGHT), {}),
    ("soft", (Probabilities((4, 3)),), {}),
    ("soft-class-weights", (Probabilities((4, 3)), _WEIGHT), {"class_weights": _CLASS_WEIGHTS}),
    ("class-weights", (_LABELS,), {"class_weights": _CLASS_WEIGHTS}),
    ("ignore", (_LABELS, _WEIGHT), {"ignore_index": 1}),
    ("ignore-class-weights", (_LABELS, _WEIGHT), {"class_weights": _CLASS_WEIGHTS, "ignore_index": 0}),
    ("batch-mean", (_LABELS,), {"class_weights": _CLASS_WEIGHTS, "reduction": "batch_mean"}),
)
_SMOOTHING_OPTIONS: _Options = (
    ("smoothing", (_LABELS,), {"label_smoothing": 0.1}),
    (
        "smoothing-all",
        (_LABELS, _WEIGHT),
        {"label_smoothing": 0.25, "class_weights": _CLASS_WEIGHTS, "ignore_index": 2},
    ),
    ("smoothing-soft", (Probabilities((4, 3)),), {"label_smoothing": 0.1, "class_weights": _CLASS_WEIGHTS}),
)

_CROSS_ENTROPY = (
    *(
        Case("cross_entropy", (Reals((4, 3)), *arguments), options, label=label, terms=12)
        for label, arguments, options in (*_CLASS_OPTIONS, *_SMOOTHING_OPTIONS)
    ),
    Case(
        "cross_entropy",
        (Reals((4, 2, 3)), _LABELS_2D, _WEIGHT),
        {"ignore_index": 1, "class_weights": _CLASS_WEIGHTS, "label_smoothing": 0.1},
        label="3d",
        terms=24,
    ),
    *(
        Case("cross_entropy_from_probabilities", (Probabilities((4, 3)), *arguments), options, label=label, terms=12)
        for label, arguments, options in (*_CLASS_OPTIONS, *_SMOOTHING_OPTIONS)
    ),
    Case("cross_entropy_from_probabilities", (Probabilities((4, 2, 3)), _LABELS_2D, _WEIGHT), label="3d", terms=24),
    *(
        Case("nll", (Reals((4, 3), -3.0, -0.1), *arguments), options, label=label, terms=12)
        for label, arguments, options in _CLASS_OPTIONS
    ),
    Case("nll", (Reals((4, 2, 3), -3.0, -0.1), _LABELS_2D, _WEIGHT), {"ignore_index": 2}, label="3d", terms=24),
    Case("nll", (Reals((4, 3), -3.0, -0.1), _LABELS), label="dyadic", exact=True, terms=12),
)

_BINARY = (
    Case("binary_cross_entropy", (Reals((4, 3)), _BITS), terms=12),
    Case("binary_cross_entropy", (Reals((4, 3)), _BITS), {"reduction": "sum"}, label="sum", terms=12),
    Case("binary_cross_entropy", (Reals((4, 3)), Reals((4, 3), 0.0, 1.0), _WEIGHT), label="soft-weighted", terms=12),
    Case("binary_cross_entropy", (Reals((4, 3)), _BITS), {"positive_weight": 3.0}, label="positive-weight", terms=12),
    Case(
        "binary_cross_entropy",
        (Reals((4, 3)), _BITS, _WEIGHT),
        {"positive_weight": (3.0, 1.0, 0.25)},
        label="positive-weights",
        terms=12,
    ),
    Case("binary_cross_entropy_from_probabilities", (Reals((4, 3), 0.1, 0.9), _BITS), terms=12),
    Case(
        "binary_cross_entropy_from_probabilities",
        (Reals((4, 3), 0.1, 0.9), Reals((4, 3), 0.0, 1.0), _WEIGHT),
        {"reduction": "batch_mean"},
        label="soft-weighted",
        terms=12,
    ),
)

_DIVERGENCE = (
    Case("kl_divergence", (Reals((4, 3), -3.0, -0.1), Probabilities((4, 3))), terms=12),
    Case("kl_divergence", (Reals((4, 3), -3.0, -0.1), Probabilities((4, 3)), _WEIGHT), label="weighted", terms=12),
    Case(
        "kl_divergence",
        (Reals((4, 3), -3.0, -0.1), Probabilities((4, 3))),
        {"reduction": "mean"},
        label="mean",
        terms=12,
    ),
    Case(
        "kl_divergence",
        (Reals((4, 3), -3.0, -0.1), Reals((4, 3), -3.0, -0.1)),
        {"log_target": True, "reduction": "sum"},
        label="log-target",
        terms=12,
    ),
)

_HINGE = (
    Case("hinge", (Reals((4, 3), avoid=(-1.0, 1.0)), _SIGNS), terms=12),
    Case("hinge", (Reals((4, 3), avoid=(-1.0, 1.0)), _SIGNS, _WEIGHT), label="weighted", terms=12),
    Case("hinge", (Reals((4, 3), avoid=(-1.0, 1.0)), _SIGNS), {"reduction": "sum"}, label="sum", exact=True, terms=12),
    Case("categorical_hinge", (Distinct((4, 3), 0.3), _LABELS), terms=4),
    Case("categorical_hinge", (Distinct((4, 2, 3), 0.3), _LABELS_2D, _WEIGHT), label="3d", terms=8),
    Case("categorical_hinge", (Distinct((4, 3), 0.375), _LABELS), label="dyadic", exact=True, terms=4),
)

_COSINE = (
    Case("cosine_distance", (Reals((4, 3)), Reals((4, 3))), terms=12),
    Case("cosine_distance", (Reals((4, 3)), Reals((4, 3)), _WEIGHT), label="weighted", terms=12),
    Case("cosine_distance", (Reals((4, 2, 3)), Reals((4, 2, 3))), {"reduction": "sum"}, label="3d", terms=24),
    Case("cosine_distance", (Reals((4, 3)), Reals((4, 3))), {"eps": 100.0}, label="short", terms=12),
)

CASES = (*_SQUARED, *_ABSOLUTE, *_CROSS_ENTROPY, *_BINARY, *_DIVERGENCE, *_HINGE, *_COSINE)
