"""python -m emulated_gpu SCRIPT [ARGUMENTS]: runs a script on the emulated GPU."""

from __future__ import annotations

import runpy
import sys

from emulated_gpu import device

if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    device.install()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
