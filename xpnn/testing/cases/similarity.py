"""Cases of the losses that weigh classes, compare regions or compare vectors with each other."""

from xpnn.testing.cases.case import Case, Integers, Probabilities, Reals, Values

_WEIGHT = Reals((4,), 0.5, 2.0)
_BITS = Values(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
_LABELS = Integers((4,), 3)
_CLASS_WEIGHTS = (0.5, 2.0, 1.0)

_DICE = (
    Case("dice", (Probabilities((4, 5, 3)), Reals((4, 5, 3), 0.0, 1.0)), terms=20),
    Case("dice", (Probabilities((4, 2, 3, 3)), Integers((4, 2, 3), 3), _WEIGHT), label="labels", terms=24),
    Case(
        "dice",
        (Probabilities((4, 5, 3)), Reals((4, 5, 3), 0.0, 1.0), _WEIGHT),
        {"squared": True, "smooth": 0.25, "reduction": "batch_mean"},
        label="squared",
        terms=20,
    ),
    Case("dice", (Reals((4, 3), 0.1, 0.9), _BITS), {"reduction": "sum"}, label="no-positions", terms=12),
)

_FOCAL = (
    Case("binary_focal", (Reals((4, 3)), _BITS), terms=12),
    Case(
        "binary_focal",
        (Reals((4, 3), -6.0, 6.0), Reals((4, 3), 0.0, 1.0), _WEIGHT),
        {"gamma": 0.5, "alpha": None},
        label="soft-weighted",
        terms=12,
    ),
    Case("binary_focal", (Reals((4, 3)), _BITS), {"gamma": 0.0, "reduction": "sum"}, label="gamma-0", terms=12),
    Case("focal", (Reals((4, 3)), _LABELS), terms=12),
    Case("focal", (Reals((4, 3)), _LABELS, _WEIGHT), {"gamma": 0.0, "ignore_index": 1}, label="gamma-0", terms=12),
    Case(
        "focal",
        (Reals((4, 2, 3), -4.0, 4.0), Integers((4, 2), 3), _WEIGHT),
        {"gamma": 1.5, "class_weights": _CLASS_WEIGHTS, "ignore_index": 2},
        label="3d",
        terms=24,
    ),
    Case("focal", (Reals((4, 3)), Probabilities((4, 3))), {"gamma": 3.0, "reduction": "sum"}, label="soft", terms=12),
)

# Negatives that are far enough away keep the margin off the kink; some rows lose nothing.
_ROWS = tuple(Reals((4, 3), low, high) for low, high in ((0.0, 1.0), (0.5, 2.0), (-1.0, -0.5)))
_CLUSTERS = Values(
    (
        (0.1, 0.2, 0.9),
        (0.4, -0.3, 0.5),
        (-0.6, 0.8, 0.1),
        (1.1, 0.3, -0.4),
        (-0.2, -0.7, 0.3),
        (0.7, 0.9, 0.6),
        (-1.2, 0.4, -0.8),
    )
)
_CLUSTER_LABELS = Values((0, 1, 1, 0, 1, 0, 0), "int64")
# The last label occurs once: that row has no positive, and does not count.
_LONELY_LABELS = Values((0, 1, 1, 0, 1, 0, 2), "int64")

_TRIPLET = (
    Case("triplet", _ROWS, {"margin": 3.0}, terms=12),
    Case("triplet", (*_ROWS, _WEIGHT), {"margin": 2.0, "reduction": "sum"}, label="weighted", terms=12),
    Case("triplet", _ROWS, {"margin": 5.0, "squared": True}, label="squared", terms=12),
    Case("triplet", tuple(Reals((4, 2, 3), *spec) for spec in ((0.0, 1.0), (0.5, 2.0), (-1.0, -0.5))), label="3d"),
    Case("triplet_mining", (_CLUSTERS, _CLUSTER_LABELS), terms=21),
    Case(
        "triplet_mining",
        (_CLUSTERS, _CLUSTER_LABELS, Reals((7,), 0.5, 2.0)),
        {"mining": "semihard", "margin": 0.7, "squared": True},
        label="semihard",
        terms=21,
    ),
    Case("triplet_mining", (_CLUSTERS, _LONELY_LABELS), {"reduction": "sum"}, label="lonely", terms=21),
)

_CONTRASTIVE = (
    Case("info_nce", (Reals((4, 3)), Reals((4, 3))), terms=12),
    Case(
        "info_nce",
        (Reals((4, 3)), Reals((4, 3)), _WEIGHT),
        {"temperature": 0.5, "symmetric": False},
        label="one-way",
        terms=12,
    ),
    Case("info_nce_of_views", (Reals((4, 2, 3)), _WEIGHT), {"reduction": "batch_mean"}, terms=12),
)

CASES = (*_DICE, *_FOCAL, *_TRIPLET, *_CONTRASTIVE)
