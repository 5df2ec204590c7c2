"""cuDNN itself builds plans for the graphs of the bodies, for GPUs that are not there; see cudnn_plans.py."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("cudnn_plans.py")

NOT_EVERYWHERE = ("3 channels: weight", "groups: weight", "depthwise: weight", "float32 conv 3x3: weight")
"""What the smaller of cuDNN's packages, nvidia-cudnn-jit, has no engine for: the bodies go on without it there."""


def _missing():
    """What these tests need and do not find, or None."""
    if not sys.platform.startswith("linux"):
        return "Linux: a driver that does nothing is made for its linker"
    if shutil.which(os.environ.get("CC", "gcc")) is None:
        return "a C compiler"
    # A stand-in for the module, which the emulated GPU puts into its place, is no package.
    found = importlib.util.find_spec("cudnn") if "cudnn" not in sys.modules else sys.modules["cudnn"].__spec__
    if found is None or found.origin is None:
        return "nvidia-cudnn-frontend"
    if importlib.util.find_spec("nvidia") is None:
        return "nvidia-cudnn-jit-cu13, or nvidia-cudnn-cu13"
    folders = [Path(folder) for folder in importlib.util.find_spec("nvidia").submodule_search_locations]
    if not any(folder.joinpath(name).is_dir() for folder in folders for name in ("cudnn_jit", "cudnn")):
        return "nvidia-cudnn-jit-cu13, or nvidia-cudnn-cu13"
    return None


@pytest.mark.parametrize("sm", [80, 90])
def test_plans_for_a_gpu_that_is_not_there(sm):
    missing = _missing()
    if missing is not None:
        assert not os.environ.get("XPNN_REQUIRE_CUDNN"), f"missing: {missing}"
        pytest.skip(f"missing: {missing} (XPNN_REQUIRE_CUDNN=1 makes this a failure)")
    done = subprocess.run([sys.executable, str(PROGRAM), str(sm)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    refused = {
        name: reason for name, reason in results.items() if reason is not None and not name.endswith(NOT_EVERYWHERE)
    }
    assert refused == {}
    assert len(results) > 40
