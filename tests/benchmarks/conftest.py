"""What the tests of the benchmarks and of the GPU's report share."""

import importlib.util
import os
import pathlib
import shutil

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def emulated_gpu(tmp_path):
    """The environment of a process whose CuPy runs on the emulated GPU, and that of all processes which it starts."""
    if importlib.util.find_spec("cupy") is None:
        pytest.skip('CuPy is not installed: pip install "xpnn[emulated-gpu]"')
    if shutil.which("g++") is None:
        pytest.skip("the emulated GPU needs g++")
    folder = tmp_path / "emulated"
    folder.mkdir()
    # Python imports a module of this name before it does anything else.
    (folder / "sitecustomize.py").write_text("from emulated_gpu import device\n\ndevice.install()\n")
    paths = [folder, ROOT, ROOT / "backends", ROOT / "tests"]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("XPNN_")},
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTEST_ADDOPTS": "-p emulated_gpu.plugin",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
