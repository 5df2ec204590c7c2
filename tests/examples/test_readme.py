"""What README.md shows is run as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import xpnn
from xpnn.cli.app import run
from xpnn.data import load_dataset

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def block_with(language: str, words: str) -> str:
    found = [block for block in blocks(language) if words in block]
    assert len(found) == 1, f"README.md has {len(found)} {language} blocks with {words!r}"
    return found[0]


def layer_from_readme() -> xpnn.Layer:
    names: dict[str, type[xpnn.Layer]] = {}
    exec(block_with("python", "class Scale"), names)
    return names["Scale"]()


def test_the_twenty_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    code = block_with("python", "net.save")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(code, names)
    net, same, held_out = names["net"], names["same"], names["Xv"]
    assert net.evaluate(held_out, names["yv"])["accuracy"] > 0.85
    assert (same.predict(held_out) == net.predict(held_out)).all()


def test_the_convolutional_network_trains():
    digits = load_dataset("digits")
    names = {
        "xpnn": xpnn,
        "X": digits.x[360:] / 16,
        "y": digits.y[360:],
        "Xv": digits.x[:360] / 16,
        "yv": digits.y[:360],
    }
    exec(block_with("python", "xpnn.Conv2D"), names)
    net, images = names["net"], names["images"]
    assert net.evaluate(images, names["yv"], metrics=["accuracy"])["accuracy"] > 0.9
    assert net.parameters["1.running_mean"].any()


def test_every_layer_that_the_table_names_exists():
    table = TEXT[TEXT.index("## Layers") : TEXT.index("## Backends")]
    for name in re.findall(r"`([A-Z]\w+)`", table):
        assert hasattr(xpnn, name) or hasattr(xpnn, f"{name}2D"), name


def test_the_layer_passes_the_checks_shown_below_it():
    names = {"xpnn": xpnn, "Scale": lambda: layer_from_readme()}
    exec(block_with("python", "check_gradients(Scale()"), names)


def test_the_layer_joins_the_matrix_with_the_lines_shown(backend, dtype):
    names = {"xpnn": xpnn, "Scale": lambda: layer_from_readme()}
    exec(block_with("python", "def test_scale"), names)
    names["test_scale"](backend, dtype)


@pytest.fixture
def folder_with_tables(tmp_path, monkeypatch):
    """A folder with the two CSV files and the folder of pictures that the commands name."""
    iris = load_dataset("iris")
    header = ",".join(iris.features)
    rows = [",".join(str(number) for number in row) for row in iris.x]
    names = [iris.class_names[label] for label in iris.y]
    labelled = [f"{row},{name}" for row, name in zip(rows, names, strict=True)]
    (tmp_path / "flowers.csv").write_text("\n".join([f"{header},species", *labelled]) + "\n")
    (tmp_path / "new_flowers.csv").write_text("\n".join([header, *rows[::10]]) + "\n")
    for number in range(20):
        path = tmp_path / "photos" / ("dark" if number % 2 else "bright") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + number, 12), (40 if number % 2 else 200, number, 3 * number)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run(folder_with_tables, capsys):
    lines = [line.partition("#")[0] for line in block_with("sh", "xpnn backends").splitlines()]
    commands = [shlex.split(line) for line in lines if line.strip()]
    assert [command[:2] for command in commands] == [
        ["xpnn", "train"],
        ["xpnn", "train"],
        ["xpnn", "predict"],
        ["xpnn", "train"],
        ["xpnn", "predict"],
        ["xpnn", "backends"],
        ["xpnn", "check"],
    ]
    # `xpnn check` runs every case on every backend: it has tests of its own.
    for command in commands[:-1]:
        assert run(command[1:]) == 0, capsys.readouterr().err
    assert (folder_with_tables / "iris.safetensors").stat().st_size > 0
    assert (folder_with_tables / "iris.png").read_bytes().startswith(b"\x89PNG")


def test_every_file_and_folder_that_is_named_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    folders = re.findall(r"`([a-z_/]+/)`", TEXT)
    scripts = re.findall(r"(?:ci|examples|benchmarks)/\w+\.(?:sh|py)", TEXT)
    assert links
    assert folders
    assert scripts
    missing = [name for name in {*links, *folders, *scripts} if not (ROOT / name).exists()]
    assert not missing


def test_every_example_is_listed():
    listed = set(re.findall(r"\]\(examples/(\w+\.py)\)", TEXT))
    assert listed == {path.name for path in (ROOT / "examples").glob("*.py")}
