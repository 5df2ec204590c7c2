"""How a backend is chosen, and what is said when it cannot be."""

import subprocess
import sys
import threading
from functools import cache

import pytest

import xpnn
from xpnn import backend as selector
from xpnn.errors import BackendError

pytestmark = pytest.mark.usefixtures("fresh")

CACHED = (selector._registry, selector._load, selector._bound)
PLUGIN = """
from xpnn.backend import Backend

class PaperBackend(Backend):
    name = "paper"

    @classmethod
    def probe(cls):
        return {reason!r}
"""


@pytest.fixture
def fresh(monkeypatch):
    """A process in which nothing was chosen yet; what a test chooses or caches is forgotten."""
    with monkeypatch.context() as patch:
        patch.delenv("XPNN_BACKEND", raising=False)
        patch.setattr(selector, "_process", None)
        for cached in CACHED:
            patch.setattr(selector, cached.__name__, cache(cached.__wrapped__))
        yield


def forget():
    for cached in CACHED:
        getattr(selector, cached.__name__).cache_clear()


class Point:
    """An entry point of another package."""

    def __init__(self, name, value):
        self.name = name
        self.value = value


@pytest.fixture
def plug_in(monkeypatch, tmp_path):
    """A function that offers a backend through the entry-point group, as an installed package would."""

    def offer(name, value, source=""):
        (tmp_path / "paper_backend.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "paper_backend", raising=False)
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point(name, value)])
        forget()

    return offer


def make_unusable(monkeypatch, name, reason="it is broken; mend it"):
    real = selector._load
    monkeypatch.setattr(selector, "_load", lambda wanted: reason if wanted == name else real(wanted))
    selector._bound.cache_clear()


def test_default_is_numpy():
    assert xpnn.get_backend().spec == "numpy"


def test_precedence(monkeypatch):
    pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    monkeypatch.setenv("XPNN_BACKEND", "numpy:readonly")
    assert xpnn.get_backend().spec == "numpy:readonly"
    xpnn.set_backend("strict")
    assert xpnn.get_backend().spec == "strict"
    with xpnn.use_backend("strict:device1") as inner:
        assert xpnn.get_backend() is inner
        assert xpnn.Network(xpnn.Dense(1)).backend.spec == "strict:device1"
        assert xpnn.Network(xpnn.Dense(1), backend="numpy").backend.spec == "numpy"
        with xpnn.use_backend("numpy"):
            assert xpnn.get_backend().spec == "numpy"
        assert xpnn.get_backend().spec == "strict:device1"
    assert xpnn.get_backend().spec == "strict"
    assert xpnn.set_backend(None).spec == "numpy:readonly"


def test_variable_is_read_at_use_not_at_import(monkeypatch):
    assert xpnn.get_backend().spec == "numpy"
    monkeypatch.setenv("XPNN_BACKEND", "nonsense")
    with pytest.raises(BackendError, match="the variable XPNN_BACKEND: unknown backend 'nonsense'"):
        xpnn.get_backend()


def test_network_keeps_its_backend():
    with xpnn.use_backend("numpy:readonly"):
        net = xpnn.Network(xpnn.Dense(2, 1))
    assert net.backend.spec == "numpy:readonly"


def test_use_backend_is_undone_after_an_error():
    with pytest.raises(ZeroDivisionError), xpnn.use_backend("numpy:readonly"):
        raise ZeroDivisionError
    assert xpnn.get_backend().spec == "numpy"


def test_use_backend_holds_in_its_own_thread_alone():
    seen = []
    with xpnn.use_backend("numpy:readonly"):
        thread = threading.Thread(target=lambda: seen.append(xpnn.get_backend().spec))
        thread.start()
        thread.join()
    assert seen == ["numpy"]


def test_auto_takes_cupy_where_it_is_usable_and_numpy_elsewhere(monkeypatch):
    make_unusable(monkeypatch, "cupy")
    assert xpnn.get_backend("auto").spec == "numpy"
    monkeypatch.setattr(selector, "why_not", lambda name: None)
    monkeypatch.setattr(selector, "_bound", lambda name, device: (name, device))
    assert xpnn.get_backend("auto") == ("cupy", "")


def test_auto_takes_no_device():
    with pytest.raises(BackendError, match='"auto" chooses the device itself'):
        xpnn.get_backend("auto:1")


def test_explicit_name_that_cannot_run_is_an_error_with_reason_and_remedy(monkeypatch):
    make_unusable(monkeypatch, "cupy")
    with pytest.raises(BackendError, match="backend 'cupy' is not usable here: it is broken; mend it"):
        xpnn.Network(xpnn.Dense(1), backend="cupy")


def test_library_that_is_not_installed(monkeypatch):
    entry = selector._BUILTIN["cupy"]._replace(library="no_such_library")
    monkeypatch.setitem(selector._BUILTIN, "cupy", entry)
    forget()
    reason = xpnn.available_backends()["cupy"]
    assert reason is not None
    assert reason.startswith("no_such_library is not installed; pip install")


@pytest.mark.parametrize("spec", ["cuppy", "", "numpy2:cpu", " numpy"])
def test_unknown_name_lists_the_known(spec):
    with pytest.raises(BackendError, match="known: numpy, cupy, strict, torch, jax, auto"):
        xpnn.get_backend(spec)


@pytest.mark.parametrize("spec", [3, ["numpy"], 1.5])
def test_spec_that_is_no_string(spec):
    with pytest.raises(BackendError, match="a backend is named by a string"):
        xpnn.get_backend(spec)


@pytest.mark.parametrize("name", ["numpy", "strict", "torch", "jax"])
def test_unknown_device_lists_the_known(name):
    if xpnn.available_backends()[name] is not None:
        pytest.skip(f"{name}: {xpnn.available_backends()[name]}")
    with pytest.raises(BackendError, match=f"backend '{name}' has no device 'moon'; it has: "):
        xpnn.get_backend(f"{name}:moon")


def test_backend_object_is_its_own_spec():
    numpy = xpnn.get_backend("numpy")
    assert xpnn.get_backend(numpy) is numpy
    assert xpnn.get_backend(numpy.spec) is numpy


def test_plug_in_adds_a_backend(plug_in):
    plug_in("paper", "paper_backend:PaperBackend", PLUGIN.format(reason=None))
    assert xpnn.available_backends()["paper"] is None
    assert xpnn.get_backend("paper").name == "paper"
    assert "paper" in [info.name for info in selector.describe_backends()]


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        ("paper_backend:PaperBackend", PLUGIN.format(reason="out of paper; buy some"), "out of paper; buy some"),
        ("paper_backend:PaperBackend", "raise OSError('torn\\nin two')", "does not load: OSError: torn in two"),
        ("paper_backend:PaperBackend", "import warnings", "has no attribute 'PaperBackend'"),
        ("paper_backend:PaperBackend", "PaperBackend = 3", "is no xpnn.Backend class with name = 'paper'"),
        ("no_such_module:PaperBackend", "", "no_such_module is not installed; pip install no_such_module"),
    ],
)
def test_broken_plug_in_is_reported_and_hurts_nobody(plug_in, value, source, reason):
    plug_in("paper", value, source)
    assert reason in xpnn.available_backends()["paper"]
    assert xpnn.available_backends()["numpy"] is None
    assert [info.reason for info in selector.describe_backends() if info.name == "paper"] != [None]
    with pytest.raises(BackendError, match="backend 'paper' is not usable here"):
        xpnn.get_backend("paper")


def test_plug_in_may_not_take_a_built_in_name(plug_in):
    plug_in("numpy", "paper_backend:PaperBackend", PLUGIN.format(reason="hijacked"))
    assert xpnn.available_backends()["numpy"] is None
    assert type(xpnn.get_backend("numpy")).__module__ == "xpnn_backends.numpy_backend"


def test_table_names_versions_devices_and_overrides():
    import numpy as np

    found = {info.name: info for info in selector.describe_backends()}
    assert list(found) == ["numpy", "cupy", "strict", "torch", "jax"]
    assert found["numpy"].version == np.__version__
    assert found["numpy"].devices[0] in ("cpu", "cpu (native kernels)")
    assert "linear" in found["numpy"].overrides
    for info in found.values():
        assert (info.reason is None) == bool(info.devices)


def test_import_loads_no_array_library():
    program = (
        "import sys, xpnn, xpnn.testing.plugin; "
        "print(sorted({'numpy', 'cupy', 'torch', 'jax', 'array_api_strict', 'pandas', 'rich'} & set(sys.modules)))"
    )
    path = [folder for folder in sys.path if folder]
    code = f"import sys; sys.path[:0] = {path!r}; {program}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
