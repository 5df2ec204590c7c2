"""The report of what ran on a GPU: steps with their limits, counts of tests, and what is left of a run cut short."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

from xpnn.testing.rows import ROWS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu_report():
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "ci" / "gpu_report.py")
    module = importlib.util.module_from_spec(spec)
    # NamedTuple looks its annotations up in the module.
    sys.modules["gpu_report"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_report"]


def step(gpu_report, name, *arguments, limit=60.0, is_pytest=False):
    return gpu_report.Step(name, f"the step {name}", arguments, limit, {}, is_pytest)


def test_a_step_that_fails_or_hangs_does_not_stop_the_others(gpu_report, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "GRACE_SECONDS", 2.0)
    steps = [
        step(gpu_report, "fails", "-c", "print('why it fails'); raise SystemExit(3)"),
        step(gpu_report, "hangs", "-c", "import time; print('waiting', flush=True); time.sleep(60)", limit=2.0),
        step(gpu_report, "passes", "-c", "print('well')"),
    ]
    gpu_report.run(steps, tmp_path, total=60)
    report = json.loads((tmp_path / "report.json").read_text())
    results = {entry["name"]: (entry["ok"], entry["result"]) for entry in report["steps"]}
    assert results == {
        "fails": (False, "failed with code 3"),
        "hangs": (False, "cut short after 2 s"),
        "passes": (True, "passed"),
    }
    printed = (tmp_path / "report.md").read_text()
    assert "| the step fails | failed with code 3 |" in printed
    assert "why it fails" in printed
    assert "waiting" in (tmp_path / "log.txt").read_text()
    files = list(tmp_path.iterdir())
    assert len(files) <= 8
    assert all(file.is_file() and re.fullmatch(r"[A-Za-z0-9._-]+", file.name) for file in files)


def test_tests_are_counted(gpu_report, tmp_path, monkeypatch):
    monkeypatch.delenv("XPNN_REQUIRE_BACKENDS", raising=False)  # which the sessions below would fail for
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n\n"
        "@pytest.mark.parametrize('number', range(5))\n"
        "def test_number(number):\n"
        "    if number == 1: pytest.skip('no')\n"
        "    assert number != 2\n"
    )
    alone = ("-m", "pytest", "-q", "-r", "fE", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}")
    steps = [
        step(gpu_report, "some", *alone, str(tests), is_pytest=True),
        step(gpu_report, "skipped", *alone, f"{tests}::test_number[1]", is_pytest=True),
    ]
    some, skipped = gpu_report.run(steps, tmp_path / "out", total=100)["steps"]
    assert some["tests"] == {"failed": 1, "passed": 3, "skipped": 1}
    assert not some["ok"]
    assert len(some["failures"]) == 1
    assert some["failures"][0].startswith("FAILED")
    assert "test_number[2]" in (tmp_path / "out" / "report.md").read_text()
    assert (skipped["ok"], skipped["code"]) == (False, 0)
    assert skipped["result"].startswith("failed: no test has passed")


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("....\n12 passed, 3 skipped in 1.20s\n", {"passed": 12, "skipped": 3}),
        ("==== 1 failed, 2 passed, 4 errors in 61.00s (0:01:01) ====", {"failed": 1, "passed": 2, "errors": 4}),
        ("1 error in 0.30s", {"errors": 1}),
        # killed before its last line
        ("8 workers\n....F.s. [ 40%]\n..E\nsomething else\n", {"passed": 8, "failed": 1, "skipped": 1, "errors": 1}),
        ("cannot import\n", {}),
    ],
)
def test_what_pytest_prints_is_understood(gpu_report, output, counts):
    assert gpu_report.count_tests(output) == counts


def pytest_alone(folder, *arguments):
    """Arguments of Python for pytest on a folder that has nothing to do with this repository's settings."""
    command = ("-m", "pytest", "-q", "-r", "fE", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={folder}")
    return (*command, *arguments, str(folder))


def test_a_test_that_hangs_is_named(gpu_report, tmp_path, monkeypatch):
    monkeypatch.delenv("XPNN_REQUIRE_BACKENDS", raising=False)
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        "import time\n\ndef test_well(): pass\n\ndef test_endless():\n    time.sleep(60)\n"
    )
    arguments = pytest_alone(folder, "-o", "faulthandler_timeout=2")
    (found,) = gpu_report.run([step(gpu_report, "x", *arguments, limit=10, is_pytest=True)], tmp_path, total=60)[
        "steps"
    ]
    assert found["result"].startswith("cut short after 10 s: 1 passed")
    assert any(re.fullmatch(r"SLOW \S*test_some\.py:6 in test_endless", line) for line in found["failures"])
    assert "in test_endless" in (tmp_path / "report.md").read_text()


def test_a_lost_device_does_not_take_other_tests_along(gpu_report, tmp_path, monkeypatch):
    pytest.importorskip("xdist")
    monkeypatch.delenv("XPNN_REQUIRE_BACKENDS", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        "import sys, types\n"
        "import pytest\n\n"
        "lost = []\n\n"
        "def synchronize():\n"
        "    assert not lost, 'illegal address'\n\n"
        "runtime = types.SimpleNamespace(deviceSynchronize=synchronize)\n"
        "sys.modules['cupy'] = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))\n\n"
        "@pytest.mark.parametrize('number', range(6))\n"
        "def test_number(number):\n"
        "    lost.extend([number] if number == 2 else [])\n"
        "    assert number != 4\n"
        "    synchronize()\n"
    )
    arguments = pytest_alone(folder, "-p", "ci.lost_device", "-n", "1")
    (found,) = gpu_report.run([step(gpu_report, "x", *arguments, is_pytest=True)], tmp_path, total=60)["steps"]
    # Without the plug-in numbers 3 and 5 fail too.
    assert found["tests"] == {"failed": 2, "passed": 4}
    log = (tmp_path / "log.txt").read_text()
    assert "test_number[2] has lost the device" in log
    assert "illegal address" in log
    assert any("test_number[4]" in line for line in found["failures"])


def test_a_run_that_is_killed_leaves_a_report(gpu_report, tmp_path, monkeypatch):
    carry_out = gpu_report.carry_out

    def killed(one, limit, out):
        if one.name == "second":
            raise KeyboardInterrupt
        return carry_out(one, limit, out)

    monkeypatch.setattr(gpu_report, "carry_out", killed)
    steps = [step(gpu_report, name, "-c", "pass") for name in ("first", "second")]
    with pytest.raises(KeyboardInterrupt):
        gpu_report.run(steps, tmp_path, total=60)
    first, second = json.loads((tmp_path / "report.json").read_text())["steps"]
    assert first["ok"]
    assert (second["ok"], second["result"]) == (False, "running, or cut short with the whole run")


def test_the_benchmark_keeps_its_time(gpu_report, tmp_path):
    given = step(gpu_report, "benchmark", "-c", "import sys; print(sys.argv[1:])")
    steps = [step(gpu_report, "tests", "-c", "pass"), given]
    tests, benchmark = gpu_report.run(steps, tmp_path, total=70, reserved=60)["steps"]
    assert tests["result"] == "not run: no time was left"
    assert benchmark["ok"]
    (budget,) = re.findall(r"'--budget', '(\d+)'", benchmark["tail"][-1])
    assert 35 < int(budget) <= 70 - 10 - 15


def test_the_steps_name_what_there_is(gpu_report):
    steps = [*gpu_report.test_steps(workers=4), gpu_report.benchmark_step(pathlib.Path("out"), ())]
    assert len({one.name for one in steps}) == len(steps)
    known = {row.id for row in ROWS}
    for one in steps:
        for argument in one.arguments:
            if "/" in argument and not argument.startswith("-"):
                assert (ROOT / argument).exists(), argument
        for variable in ("XPNN_TEST_BACKENDS", "XPNN_REQUIRE_BACKENDS"):
            assert set(one.environment.get(variable, "numpy").split(",")) <= known
    graphs = [one for one in steps if "tests/backends/test_cupy_graph.py" in one.arguments]
    assert [one.name for one in graphs] == ["graphs"]
    kernels = next(one for one in steps if one.name == "kernels")
    assert "tests/backends/test_cupy_products.py" in kernels.arguments


def test_the_report_names_no_folder_of_the_machine(gpu_report):
    one = step(gpu_report, "x", str(ROOT / "a.py"), "--out", "/somewhere/else")
    assert gpu_report.readable_command(one) == "python ./a.py"
    assert gpu_report.without_paths(f"in {ROOT}/xpnn and {sys.prefix}/lib") == "in ./xpnn and PYTHON/lib"


def test_why_the_benchmark_has_ended_is_in_the_report(gpu_report, tmp_path):
    place = f"{ROOT}/somewhere"
    code = f"import sys; print('first', {place!r}); sys.exit('there is no such card')"
    given = step(gpu_report, "benchmark", "-c", code)
    gpu_report.run([given], tmp_path, total=60)
    assert "there is no such card" in (tmp_path / "report.md").read_text()
    for name in ("report.md", "report.json", "log.txt"):
        text = (tmp_path / name).read_text()
        assert str(ROOT) not in text
    assert "first ./somewhere" in text


def test_report_on_the_emulated_gpu(tmp_path, emulated_gpu):
    out = tmp_path / "out"
    command = [sys.executable, ROOT / "ci" / "gpu_report.py", "--out", out, "--workers", "1", "--total", "250"]
    command += ["--steps", "backends,example,benchmark"]
    command += ["--", "--tiny", "--cases", "small-xor", "--contenders", "xpnn", "--rounds", "1", "--seconds", "0.01"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=emulated_gpu)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert [(entry["name"], entry["ok"]) for entry in report["steps"]] == [
        ("backends", True),
        ("example", True),
        ("benchmark", True),
    ]
    printed = (out / "report.md").read_text()
    assert "(emulated GPU)" in printed
    assert "| 2-3-1 tanh, MSE, SGD, batch 4 | xpnn |" in printed
    assert {path.name for path in out.iterdir()} == {
        "report.json",
        "report.md",
        "benchmark.json",
        "benchmark.md",
        "log.txt",
    }
