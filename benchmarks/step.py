"""How long one training step takes, side by side in one run: forward, loss, backward, update.

python benchmarks/step.py [--networks xor,small] [--contenders xpnn,torch] [--rounds 9] [--json FILE]
"""

from __future__ import annotations

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends")]

from contenders import CONTENDERS  # noqa: E402
from networks import SPECS  # noqa: E402
from turns import Case, Table, run  # noqa: E402

TABLE = Table(
    script=__file__,
    description=__doc__,
    call="step",
    cases={name: Case(spec.title, spec) for name, spec in SPECS.items()},
    contenders=CONTENDERS,
)

if __name__ == "__main__":
    run(TABLE)
