"""Cases of the random changes of images."""

from xpnn.random import RandomKey
from xpnn.testing.cases.case import Case, Reals

_KEY = RandomKey(7, 5, 2)

CASES = (
    Case("random_flip", (Reals((6, 3, 4, 2)), _KEY, 0.5), exact=True),
    Case("random_flip", (Reals((6, 3, 4, 2)), _KEY, 0.3), {"axis": 1}, label="vertical", exact=True),
    Case("random_shift", (Reals((6, 5, 4, 2)), _KEY), {"largest": (2, 1)}, exact=True),
    Case("random_shift", (Reals((6, 7, 1)), _KEY), {"largest": (3,)}, label="series", exact=True),
    Case("random_shift", (Reals((4, 3, 2, 3, 2)), _KEY), {"largest": (1, 0, 2)}, label="volume", exact=True),
)
