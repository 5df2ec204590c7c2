"""Backends' own code for ops can be switched off: by the variable XPNN_OVERRIDES, or for a block."""

import json
import os
import subprocess
import sys

import pytest

from xpnn import dispatch
from xpnn.backend import describe_backends

CODE = """
import json
import numpy as np
from xpnn import backend, dispatch, ops

numpy_backend = backend.get_backend("numpy")
before = dispatch.overrides_active()
x, w, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32), np.zeros(4, np.float32)
ops.linear(x, w, b)
body = dispatch.OPS["linear"].bodies[(type(x),) * 3]
with dispatch.without_overrides():
    inside = dispatch.overrides_active()
(info,) = [info for info in backend.describe_backends() if info.name == "numpy"]
print(json.dumps({
    "active": before,
    "generic": body is dispatch.OPS["linear"].generic,
    "inside": inside,
    "after": dispatch.overrides_active(),
    "listed": info.overrides,
}))
"""


def run_with(value):
    environment = {name: text for name, text in os.environ.items() if name != "XPNN_OVERRIDES"}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    if value is not None:
        environment["XPNN_OVERRIDES"] = value
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("value", ["0", "off", "False", " no "])
def test_variable_switches_all_overrides_off(value):
    found = run_with(value)
    assert found == {"active": False, "generic": True, "inside": False, "after": False, "listed": []}


@pytest.mark.parametrize("value", [None, "", "1", "on", "anything else"])
def test_any_other_value_leaves_them_on(value):
    found = run_with(value)
    assert "linear" in found.pop("listed")
    assert found == {"active": True, "generic": False, "inside": False, "after": True}


def test_block_switches_them_off_and_back(monkeypatch):
    monkeypatch.setattr(dispatch, "_overrides_active", True)
    with dispatch.without_overrides():
        assert not dispatch.overrides_active()
        with dispatch.without_overrides():
            assert {info.overrides for info in describe_backends()} == {()}
        assert not dispatch.overrides_active()
    assert dispatch.overrides_active()
    assert "linear" in {info.name: info.overrides for info in describe_backends()}["numpy"]
