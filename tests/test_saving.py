"""Model files: what comes back, what is refused, and what a failure leaves behind."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xpnn
from xpnn import saving
from xpnn.config import class_name
from xpnn.errors import BackendError, CheckpointError, ConfigError, ShapeError

BACKENDS = [name for name in ("numpy", "strict", "torch", "jax", "cupy") if xpnn.available_backends()[name] is None]


def data(samples=24):
    rng = np.random.default_rng(0)
    return rng.standard_normal((samples, 4)).astype(np.float32), rng.integers(0, 3, samples)


def network(backend="numpy", **options):
    options.setdefault("seed", 3)
    return xpnn.Network(xpnn.Dense(4, 8), xpnn.ReLU(), xpnn.Dropout(0.25), xpnn.Dense(3), backend=backend, **options)


def trained(backend="numpy", epochs=2, **options):
    net = network(backend, **options)
    net.fit(*data(), loss="cross_entropy", optimizer=xpnn.Adam(0.01), epochs=epochs, batch_size=7, verbose=0)
    return net


def on_host(net):
    return {name: np.asarray(net.backend.to_host(value)) for name, value in net.parameters.items()}


def test_an_untrained_network_comes_back(tmp_path):
    net = network(dtype="float64")
    net.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")
    assert again.root == net.root
    assert (again.dtype, again.seed, again.input_shape) == ("float64", 3, (4,))
    assert again.training is None
    for name, value in on_host(net).items():
        assert np.array_equal(on_host(again)[name], value)
    x = data()[0].astype(np.float64)
    assert np.array_equal(again.predict(x), net.predict(x))


def test_the_file_is_plain_safetensors(tmp_path):
    net = trained()
    net.save(tmp_path / "m.safetensors")
    arrays = load_file(tmp_path / "m.safetensors")
    assert np.array_equal(arrays["0.weight"], on_host(net)["0.weight"])
    slots = {name for name in arrays if name.startswith("optimizer.")}
    assert len(slots) == 2 * len(net.parameters)
    assert all(arrays[name].shape == arrays[name.partition("/")[2]].shape for name in slots)
    assert b"pickle" not in (tmp_path / "m.safetensors").read_bytes()


@pytest.mark.parametrize("target", BACKENDS)
@pytest.mark.parametrize("source", BACKENDS)
def test_every_backend_reads_what_every_backend_wrote(tmp_path, source, target):
    net = trained(source)
    net.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend=target)
    assert again.backend.name == target
    for name, value in on_host(net).items():
        assert np.array_equal(on_host(again)[name], value)
    assert (again.training.step, again.training.epoch) == (8, 2)
    assert again.training.optimizer == net.training.optimizer
    assert again.training.loss == net.training.loss
    for slot, vector in net.training.slots.items():
        mine = again.layout.split(again.training.slots[slot])
        for name, value in net.layout.split(vector).items():
            assert np.array_equal(again.backend.to_host(mine[name]), net.backend.to_host(value))
    # the state is whole: the training goes on
    history = again.fit(*data(), epochs=1, batch_size=7, resume=True, verbose=0)
    assert np.isfinite(history["loss"][-1])


CONTINUE = """
import sys
import numpy as np
import xpnn

rng = np.random.default_rng(0)
x, y = rng.standard_normal((24, 4)).astype(np.float32), rng.integers(0, 3, 24)
net = xpnn.Network.load(sys.argv[1], backend="numpy")
history = net.fit(x, y, epochs=5, batch_size=7, resume=True, verbose=0)
net.save(sys.argv[2])
print(repr([float(value) for value in history["loss"]]))
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_training_resumed_in_a_new_process_is_bit_identical(tmp_path, dtype):
    whole = trained(epochs=10, dtype=dtype)
    half = network(dtype=dtype)
    half.fit(*data(), loss="cross_entropy", optimizer=xpnn.Adam(0.01), epochs=5, batch_size=7, verbose=0)
    assert not np.array_equal(on_host(half)["0.weight"], on_host(whole)["0.weight"])
    half.save(tmp_path / "half.safetensors")
    arguments = [sys.executable, "-c", CONTINUE, tmp_path / "half.safetensors", tmp_path / "end.safetensors"]
    subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment())
    end = xpnn.Network.load(tmp_path / "end.safetensors", backend="numpy")
    for name, value in on_host(whole).items():
        assert np.array_equal(on_host(end)[name], value), name
    assert (end.training.step, end.training.epoch) == (whole.training.step, 10)
    for slot, vector in whole.training.slots.items():
        for mine, theirs in zip(end.training.slots[slot], vector, strict=True):
            assert np.array_equal(mine, theirs), slot


@pytest.mark.parametrize("name", sorted(xpnn.optimizers.OPTIMIZERS))
def test_every_optimizer_continues_where_it_was(tmp_path, name):
    x, y = data()
    options = {"loss": "cross_entropy", "metrics": ["accuracy"], "batch_size": None, "verbose": 0}
    optimizer = xpnn.optimizers.OPTIMIZERS[name](ema=0.9)
    whole = network()
    whole.fit(x, y, optimizer=optimizer, epochs=6, **options)
    half = network()
    half.fit(x, y, optimizer=optimizer, epochs=3, **options)
    half.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")
    assert again.training.optimizer == optimizer
    assert again.training.metrics == half.training.metrics
    again.fit(x, y, epochs=3, batch_size=None, resume=True, verbose=0)
    for parameter, value in on_host(whole).items():
        assert np.array_equal(on_host(again)[parameter], value), parameter
    assert set(again.training.slots) == set(whole.training.slots)


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_layers_that_share_parameters_still_do(tmp_path):
    shared = xpnn.Dense(4, 4)
    net = xpnn.Network(shared, xpnn.Tanh(), shared, backend="numpy")
    net.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")
    assert list(again.parameters) == ["0.weight", "0.bias"]
    assert again.root.layers[0] is again.root.layers[2]
    assert np.array_equal(again.predict(data()[0]), net.predict(data()[0]))


def test_frozen_parameters_stay_frozen(tmp_path):
    net = network()
    net.freeze("0")
    net.fit(*data(), loss="cross_entropy", optimizer="adam", epochs=1, verbose=0)
    net.save(tmp_path / "m.safetensors")
    again = xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")
    assert again.layout.frozen == net.layout.frozen
    before = on_host(again)
    again.fit(*data(), epochs=1, resume=True, verbose=0)
    assert np.array_equal(on_host(again)["0.weight"], before["0.weight"])
    assert not np.array_equal(on_host(again)["3.weight"], before["3.weight"])


class Shift(xpnn.Layer):
    def __init__(self, by):
        self.by = by

    def forward(self, x, parameters, run):
        return x + self.by, lambda dy: (dy, {})


def test_a_class_of_ones_own(tmp_path, monkeypatch):
    net = xpnn.Network(xpnn.Dense(4, 2), Shift(0.5), backend="numpy")
    net.save(tmp_path / "m.safetensors")
    monkeypatch.delitem(xpnn.config.Configurable._classes, class_name(Shift))
    with pytest.raises(CheckpointError, match=r"names a class '.*\.Shift' .*custom=\[Shift\]"):
        xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")
    again = saving.load(tmp_path / "m.safetensors", backend="numpy", custom=[Shift])
    assert np.array_equal(again.predict(data()[0]), net.predict(data()[0]))


def test_metadata_comes_back(tmp_path):
    given = {"names": ["é", "b\n"], "mean": [0.1, 1e-300], "nothing": None}
    saving.save(network(), tmp_path / "m.safetensors", metadata=given)
    assert saving.read_metadata(tmp_path / "m.safetensors") == given
    network().save(tmp_path / "m.safetensors")
    assert saving.read_metadata(tmp_path / "m.safetensors") == {}


def test_metadata_that_json_cannot_hold(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        saving.save(network(), tmp_path / "m.safetensors", metadata={"x": np.ones(2)})
    assert os.listdir(tmp_path) == []


def test_a_network_without_parameters(tmp_path):
    with pytest.raises(ShapeError, match="no parameters yet"):
        xpnn.Network(xpnn.Dense(3), backend="numpy").save(tmp_path / "m.safetensors")


# ---- what is refused


def rewrite(path, change_arrays=None, change_text=None):
    """Save the file again with changed arrays or description."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        text = json.loads(file.metadata()["xpnn"])
    arrays = load_file(path)
    if change_arrays:
        change_arrays(arrays)
    if change_text:
        change_text(text)
    save_file(arrays, path, {"xpnn": json.dumps(text)})


def test_all_wrong_arrays_are_listed_in_one_error(tmp_path):
    path = tmp_path / "m.safetensors"
    trained().save(path)

    def change(arrays):
        del arrays["0.bias"]
        arrays["9.weight"] = np.zeros(2, np.float32)
        arrays["0.weight"] = np.zeros((8, 4), np.float32)
        arrays["3.bias"] = np.zeros(3, np.float64)
        slot = next(name for name in arrays if name.endswith("/3.weight"))
        arrays["stray"] = arrays.pop(slot)

    rewrite(path, change)
    with pytest.raises(CheckpointError) as caught:
        xpnn.Network.load(path, backend="numpy")
    text = str(caught.value)
    assert "missing: 0.bias, optimizer." in text
    assert "unexpected: 9.weight, stray" in text
    assert "0.weight has shape (8, 4), wants (4, 8)" in text
    assert "3.bias is float64, wants float32" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "is damaged, or no safetensors file"),
        (lambda content: b"just text, and quite a lot of it", "is damaged, or no safetensors file"),
        (lambda content: content[:-1], "is damaged, or no safetensors file"),
        (lambda content: content[:100], "is damaged, or no safetensors file"),
        (lambda content: content + b"x", "is damaged, or no safetensors file"),
        (lambda content: b"\xff" * 8 + content[8:], "is damaged, or no safetensors file"),
    ],
)
def test_damaged_files(tmp_path, damage, message):
    path = tmp_path / "m.safetensors"
    network().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        xpnn.Network.load(path, backend="numpy")


def test_a_file_of_another_program(tmp_path):
    save_file({"w": np.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"another program wrote it.*set_parameters"):
        xpnn.Network.load(tmp_path / "m.safetensors", backend="numpy")


def test_a_newer_format(tmp_path):
    path = tmp_path / "m.safetensors"
    network().save(path)
    rewrite(path, change_text=lambda text: text.update(format=saving.FORMAT + 1, version="9.9"))
    with pytest.raises(CheckpointError, match=r"written by xpnn 9\.9 in format 2.*pip install --upgrade xpnn"):
        xpnn.Network.load(path, backend="numpy")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.pop("layers"),
        lambda text: text.pop("format"),
        lambda text: text.update(format="new"),
        lambda text: text.update(seed="x"),
        lambda text: text.update(dtype=3),
        lambda text: text.update(input_shape=[5]),
        lambda text: text.update(input_shape=None),
        lambda text: text["layers"].update({"class": "xpnn.optimizers.Adam"}),
        lambda text: text["layers"]["positional"][0].update(positional=["many"]),
        lambda text: text["layers"]["positional"][0].update(keyword={"no_such": 1}),
        lambda text: text["layers"]["positional"].append({"same": 99}),
        lambda text: text.update(training={"optimizer": None}),
        lambda text: text["training"].update(step="many"),
    ],
)
def test_a_damaged_description(tmp_path, change):
    path = tmp_path / "m.safetensors"
    trained().save(path)
    rewrite(path, change_text=change)
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        xpnn.Network.load(path, backend="numpy")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is not there"):
        xpnn.Network.load(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        xpnn.Network.load(tmp_path)


def test_an_unknown_backend(tmp_path):
    network().save(tmp_path / "m.safetensors")
    with pytest.raises(BackendError, match="unknown backend 'tpu'"):
        xpnn.Network.load(tmp_path / "m.safetensors", backend="tpu")


# ---- what a failure leaves behind


@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
def test_the_old_file_survives_a_failure(tmp_path, monkeypatch, function):
    path = tmp_path / "m.safetensors"
    network(seed=1).save(path)
    before = path.read_bytes()

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"xpnn.files.os.{function}", fail)
        with pytest.raises(CheckpointError, match=r"cannot write .*No space left on device"):
            network(seed=2).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


FULL_DISK = """
import resource, signal, sys
import xpnn

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
net = xpnn.Network(xpnn.Dense(100, 100), backend="numpy")
try:
    net.save(sys.argv[1])
except xpnn.errors.CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limit on file sizes is a thing of POSIX")
def test_the_old_file_survives_a_full_disk(tmp_path):
    path = tmp_path / "m.safetensors"
    network().save(path)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), path],
        capture_output=True, text=True, env=environment(), check=True,
    )  # fmt: skip
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_the_order_is_write_flush_rename_flush(tmp_path, monkeypatch):
    calls = []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    monkeypatch.setattr("xpnn.files.os.fsync", lambda fd: (calls.append("fsync"), real["fsync"](fd)))
    monkeypatch.setattr("xpnn.files.os.replace", lambda a, b: (calls.append("replace"), real["replace"](a, b)))
    network().save(tmp_path / "m.safetensors")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_missing_folder_and_a_folder_as_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no folder .*no/such'; make it first"):
        network().save(tmp_path / "no" / "such" / "m.safetensors")
    with pytest.raises(CheckpointError, match="it is a folder"):
        network().save(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="permissions and links as POSIX has them")
def test_links_and_permissions_are_kept(tmp_path):
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "m.safetensors"
    network(seed=1).save(real)
    assert real.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    real.chmod(0o640)
    link = tmp_path / "link.safetensors"
    link.symlink_to(real)
    network(seed=2).save(link)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert xpnn.Network.load(real, backend="numpy").seed == 2


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_importing_xpnn_does_not_load_safetensors():
    code = "import sys, xpnn, xpnn.saving; print('safetensors' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.split() == ["False", "False"]


def with_description(path, change):
    """The file with its description changed."""
    arrays, text = load_file(path), json.dumps(change(json.loads(description_of(path))))
    save_file(arrays, path, {"xpnn": text})


def description_of(path):
    with saving._open(path) as file:
        return file.metadata()["xpnn"]


def set_in(description, value, *keys):
    inner = description
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return description


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("training", "step"), float("inf")),
        (("training", "step"), -7),
        (("training", "step"), "7"),
        (("training", "step"), 10**400),
        (("training", "epoch"), float("-inf")),
        (("training", "epoch"), -1),
        (("input_shape",), [float("inf")]),
        (("input_shape",), "4"),
        (("layers", "positional", 0, "positional"), [4, 10**12]),  # more memory than there is
        (("layers", "class"), "os.system"),
    ],
)
def test_a_description_that_makes_no_sense(tmp_path, keys, value):
    path = tmp_path / "m.safetensors"
    trained().save(path)
    with_description(path, lambda description: set_in(description, value, *keys))
    with pytest.raises(CheckpointError):
        xpnn.Network.load(path, backend="numpy")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_a_description_that_is_nested_without_end(tmp_path, text):
    path = tmp_path / "m.safetensors"
    save_file({}, path, {"xpnn": text})
    for read in (xpnn.Network.load, saving.read_metadata):
        with pytest.raises(CheckpointError, match="damaged description"):
            read(path)


def test_metadata_that_is_no_dict_and_a_name_that_is_too_long(tmp_path):
    with pytest.raises(ConfigError, match="is no dict"):
        network().save(tmp_path / "m.safetensors", metadata=[1])
    for use in (network().save, xpnn.Network.load):
        with pytest.raises(CheckpointError):
            use(tmp_path / ("x" * 300))
