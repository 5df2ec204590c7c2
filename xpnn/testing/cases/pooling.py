"""Cases of pooling, resampling, padding and cropping, and local response normalisation.

`Distinct` values lie so far apart that none overtakes another in the derivative tier; with `ties`, most windows hold
several maxima in the exact tier, and the gradient must go to the first of them on every row.
"""

from typing import Any

from xpnn.testing.cases.case import Booleans, Case, Distinct, Reals


def _window(size: tuple[int, ...], stride: tuple[int, ...], *padding: tuple[int, int], **more: Any) -> dict[str, Any]:
    """The options of a pooling; no padding if none is given."""
    return {"window": size, "stride": stride, "padding": padding or ((0, 0),) * len(size), **more}


_PADDED_2D = _window((3, 2), (2, 1), (1, 1), (0, 1))
_PADDED_1D = _window((4,), (3,), (2, 1))

_POOLING = (
    Case("max_pool", (Distinct((2, 4, 6, 3)),), _window((2, 2), (2, 2)), exact=True),
    Case("max_pool", (Distinct((2, 7, 3)),), _PADDED_1D, label="1d", exact=True, terms=2),
    Case("max_pool", (Distinct((2, 3, 4, 5, 2)),), _window((2, 1, 3), (1, 2, 2)), label="3d", exact=True, terms=4),
    Case("max_pool", (Distinct((2, 5, 7, 3)),), _PADDED_2D, label="padded", exact=True, terms=4),
    Case("max_pool", (Distinct((2, 8, 9, 2)),), _window((1, 2), (3, 4)), label="gaps", exact=True),
    # One value is the maximum of up to nine windows.
    Case("max_pool", (Distinct((2, 6, 5, 2)),), _window((3, 3), (1, 1)), label="overlap", exact=True, terms=9),
    Case("average_pool", (Reals((2, 4, 6, 3)),), _window((2, 2), (2, 2)), exact=True, terms=4),
    Case("average_pool", (Reals((2, 7, 3)),), _PADDED_1D, label="1d", exact=True, terms=4),
    Case("average_pool", (Reals((2, 3, 4, 5, 2)),), _window((2, 1, 3), (1, 2, 2)), label="3d", terms=6),
    Case("average_pool", (Reals((2, 5, 7, 3)),), _PADDED_2D, label="padded", terms=6),
    Case(
        "average_pool",
        (Reals((2, 5, 7, 3)),),
        {**_PADDED_2D, "count_padding": False},
        label="padding-not-counted",
        terms=6,
    ),
    Case("average_pool", (Reals((2, 8, 9, 2)),), _window((1, 2), (3, 4)), label="gaps", exact=True, terms=2),
    Case("average_pool", (Reals((2, 6, 5, 2)),), _window((3, 3), (1, 1)), label="overlap", terms=9),
    Case("average_pool", (Reals((2, 80, 2)),), _window((37,), (5,), (3, 2)), label="long", terms=37),
    Case("average_pool", (Reals((1, 140, 2)),), _window((64,), (50,)), label="long-gaps", exact=True, terms=64),
    Case("adaptive_average_pool", (Reals((2, 4, 6, 3)),), {"size": (2, 3)}, exact=True, terms=4),
    Case("adaptive_average_pool", (Reals((2, 7, 5, 3)),), {"size": (3, 2)}, label="uneven", terms=9),
    Case("adaptive_average_pool", (Reals((2, 3, 2)),), {"size": (5,)}, label="larger", terms=3),
    Case("global_max_pool", (Distinct((3, 4, 5, 2)),), exact=True),
    Case("global_max_pool", (Distinct((3, 6, 2)), Booleans((3, 6), never=((1,),))), label="mask", exact=True),
    Case("global_average_pool", (Reals((3, 4, 4, 2)),), exact=True, terms=16),
    Case("global_average_pool", (Reals((2, 7, 11, 2)),), label="long", terms=77),
    Case("global_average_pool", (Reals((3, 6, 2)), Booleans((3, 6), never=((1,),))), label="mask", terms=6),
)

_TIES = (
    Case("max_pool", (Distinct((2, 7, 6, 3), ties=60),), _window((3, 2), (1, 1)), label="ties", exact=True, terms=6),
    Case("max_pool", (Distinct((2, 5, 7, 3), ties=50),), _PADDED_2D, label="ties-padded", exact=True, terms=4),
    Case("global_max_pool", (Distinct((3, 4, 5, 2), ties=20),), label="ties", exact=True),
)

_RESAMPLING = (
    Case("upsample_nearest", (Reals((2, 3, 4, 2)),), {"factor": (2, 3)}, exact=True, terms=6),
    Case("upsample_nearest", (Reals((2, 3, 2)),), {"factor": (4,)}, label="1d", exact=True, terms=4),
    Case("upsample_bilinear", (Reals((2, 3, 4, 2)),), {"factor": (2, 4)}, exact=True, terms=12),
    Case("upsample_bilinear", (Reals((2, 3, 2)),), {"factor": (3,)}, label="1d", terms=6),
    Case("upsample_bilinear", (Reals((2, 1, 3, 2)),), {"factor": (5, 1)}, label="one-row", terms=10),
    Case("pad", (Reals((2, 3, 4, 2)),), {"padding": ((1, 0), (2, 3))}, exact=True),
    Case("pad", (Reals((2, 3, 2)),), {"padding": ((0, 2),)}, label="1d", exact=True),
    Case("crop", (Reals((2, 5, 4, 2)),), {"cropping": ((1, 0), (2, 1))}, exact=True),
    Case("crop", (Reals((2, 3, 2)),), {"cropping": ((0, 2),)}, label="1d", exact=True),
)

_NORMALISATION = (
    Case("local_response_norm", (Reals((2, 3, 7)),), {"size": 5, "alpha": 0.7}, terms=5),
    Case(
        "local_response_norm", (Reals((3, 4)),), {"size": 2, "alpha": 0.5, "beta": 1.5, "k": 2.0}, label="even", terms=2
    ),
    # The neighbours are so strong that their squares are divided first.
    Case("local_response_norm", (Reals((3, 6), -9.0, 9.0),), {"size": 3, "alpha": 8.0}, label="strong", terms=3),
)

CASES = (*_POOLING, *_TIES, *_RESAMPLING, *_NORMALISATION)
