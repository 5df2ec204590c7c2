"""Which kernels NumPy's OpenBLAS is told to run, and what is said where it runs others."""

import json
import os
import subprocess
import sys

import pytest
import threadpoolctl

import xpnn
from xpnn.backend import describe_backends
from xpnn_backends import blas

AVX = ["fpu", "sse2", "ssse3", "sse4_1", "sse4_2", "popcnt", "aes", "avx"]
AVX2 = [*AVX, "fma", "movbe", "f16c", "abm", "bmi1", "avx2", "bmi2"]
SKYLAKE_X = [*AVX2, "avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"]
ICE_LAKE = [*SKYLAKE_X, "avx512ifma", "avx512vbmi", "avx512_vnni"]
BFLOAT16 = [*ICE_LAKE, "avx512_bf16"]
SAPPHIRE_RAPIDS = [*BFLOAT16, "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"]
INTEL, AMD = "GenuineIntel", "AuthenticAMD"
ZEN_5 = blas.Processor(AMD, 26, frozenset(BFLOAT16))

HERE = blas.processor()
TOLD_HERE = None if HERE is None else blas.kernels_for(*HERE)


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "told"),
    [
        pytest.param(INTEL, 6, AVX, None, id="Sandy Bridge"),
        pytest.param(INTEL, 6, AVX2, None, id="Haswell"),
        pytest.param(INTEL, 6, [*AVX2, "avx512f", "avx512pf", "avx512er", "avx512cd"], None, id="Knights Landing"),
        pytest.param(INTEL, 6, SKYLAKE_X, None, id="Skylake-X"),
        pytest.param(INTEL, 6, ICE_LAKE, None, id="Ice Lake"),
        pytest.param(INTEL, 6, SAPPHIRE_RAPIDS, None, id="Sapphire Rapids"),
        pytest.param(AMD, 21, AVX, None, id="Bulldozer"),
        pytest.param(AMD, 23, AVX2, None, id="Zen 2"),
        pytest.param(AMD, 25, AVX2, None, id="Zen 3"),
        pytest.param(AMD, 25, BFLOAT16, None, id="Zen 4"),
        pytest.param(AMD, 26, BFLOAT16, "SKYLAKEX", id="Zen 5"),
        pytest.param(AMD, 26, SKYLAKE_X, "SKYLAKEX", id="Zen 5, no bfloat16 in this virtual machine"),
        pytest.param(AMD, 26, AVX2, None, id="Zen 5, AVX-512 not enabled"),
        pytest.param(AMD, 27, SAPPHIRE_RAPIDS, "SKYLAKEX", id="after Zen 5"),
        pytest.param(AMD, 26, [], None, id="no flags"),
        pytest.param("HygonGenuine", 24, AVX2, None, id="Hygon"),
        pytest.param("CentaurHauls", 7, SKYLAKE_X, None, id="Zhaoxin"),
        pytest.param("", 0, BFLOAT16, None, id="unknown vendor"),
    ],
)
def test_decision_table(vendor, family, flags, told):
    assert blas.kernels_for(vendor, family, flags) == told


@pytest.mark.parametrize(
    "missing", ["avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "bmi2", "abm", "movbe"]
)
def test_one_missing_instruction_set_forbids_the_kernels(missing):
    assert blas.kernels_for(AMD, 26, [flag for flag in BFLOAT16 if flag != missing]) is None


def test_processor_is_the_first_of_the_file(tmp_path):
    file = tmp_path / "cpuinfo"
    block = "processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nmodel name\t: A: B\nflags\t\t: {}\n\n"
    file.write_text(block.format(AMD, 26, "avx2 avx512f") + block.format(INTEL, 6, "avx"))
    assert blas.processor(str(file)) == (AMD, 26, {"avx2", "avx512f"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\n\n",  # aarch64
        f"vendor_id\t: {AMD}\ncpu family\t: 26\n\n",  # no flags
        f"vendor_id\t: {AMD}\ncpu family\t: unknown\nflags\t: avx2\n\n",
    ],
)
def test_processor_that_is_not_described_is_none(tmp_path, text):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert blas.processor(str(file)) is None


def test_processor_of_a_system_without_the_file_is_none(tmp_path):
    assert blas.processor(str(tmp_path / "cpuinfo")) is None
    assert blas.processor(str(tmp_path)) is None


@pytest.fixture
def prepare(monkeypatch):
    """prepare(here, {variable: value}, numpy_loaded) -> the OPENBLAS_CORETYPE that `prepare` leaves."""

    def call(here, variables=None, numpy_loaded=False):
        with monkeypatch.context() as patch:
            patch.setattr(blas, "processor", lambda: here)
            patch.setattr(os, "environ", dict(variables or {}))
            patch.setattr(sys, "modules", {"numpy": sys} if numpy_loaded else {})
            blas.prepare()
            return os.environ.get(blas.VARIABLE)

    return call


def test_prepare_sets_what_the_table_says(prepare):
    assert prepare(ZEN_5) == "SKYLAKEX"
    assert prepare(blas.Processor(INTEL, 6, frozenset(SAPPHIRE_RAPIDS))) is None
    assert prepare(None) is None


def test_prepare_comes_never_too_late(prepare):
    assert prepare(ZEN_5, numpy_loaded=True) is None


@pytest.mark.parametrize("value", ["Haswell", "ZEN", ""])
def test_prepare_respects_the_users_own_choice(prepare, value):
    assert prepare(ZEN_5, {"OPENBLAS_CORETYPE": value}) == value


@pytest.mark.parametrize("value", ["0", "off", "False", "no"])
def test_prepare_can_be_switched_off(prepare, value):
    assert prepare(ZEN_5, {"XPNN_TUNE_BLAS": value}) is None


@pytest.mark.parametrize("value", ["", "1", "on"])
def test_other_values_of_the_switch_leave_it_on(prepare, value):
    assert prepare(ZEN_5, {"XPNN_TUNE_BLAS": value}) == "SKYLAKEX"


@pytest.mark.parametrize("running", ["SkylakeX", "Cooperlake", "SapphireRapids", "a name of the future"])
def test_nothing_is_said_of_good_kernels(running):
    assert blas.notice_for(ZEN_5, running, None, False) is None


@pytest.mark.parametrize("running", ["Haswell", "Zen", "Prescott"])
def test_nothing_is_said_where_the_processor_has_no_better(running):
    assert blas.notice_for(blas.Processor(AMD, 25, frozenset(AVX2)), running, None, False) is None


@pytest.mark.parametrize(
    ("variable", "switched_off", "mend"),
    [
        ("Haswell", False, "The cause is OPENBLAS_CORETYPE=Haswell: unset it"),
        (None, False, "set OPENBLAS_CORETYPE=SKYLAKEX before Python starts, or `import xpnn` before numpy"),
        (None, True, "set OPENBLAS_CORETYPE=SKYLAKEX before Python starts, or unset XPNN_TUNE_BLAS"),
        ("SKYLAKEX", False, "OPENBLAS_CORETYPE=SKYLAKEX came too late, or this OpenBLAS has no such kernels"),
    ],
)
def test_notice_says_what_is_lost_and_what_mends_it(variable, switched_off, mend):
    notice = blas.notice_for(ZEN_5, "Haswell", variable, switched_off)
    assert notice.startswith("OpenBLAS runs its Haswell kernels, without the AVX-512 of this processor")
    assert mend in notice
    assert "\n" not in notice


def test_notice_promises_nothing_of_xpnn_where_it_would_do_nothing():
    skylake = blas.Processor(INTEL, 6, frozenset(SKYLAKE_X))
    notice = blas.notice_for(skylake, "Haswell", None, False)
    assert notice.endswith("set OPENBLAS_CORETYPE=SKYLAKEX before Python starts")


def test_numpys_openblas_is_told_from_that_of_others():
    site = "/v/site-packages"
    own, scipys = f"{site}/numpy.libs/libscipy_openblas64_-1.so", f"{site}/scipy.libs/libscipy_openblas-2.so"
    assert blas._numpys_openblas([scipys, "/lib/libc.so.6", own]) == [own]
    assert blas._numpys_openblas([scipys, "[heap]"]) == []
    shared = "/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3"
    assert blas._numpys_openblas([scipys, shared]) == [shared]


def in_its_own_process(*arguments, **variables):
    """What a Python process prints as JSON, with these variables and none of this process's that matter here."""
    environment = {name: value for name, value in os.environ.items() if name not in (blas.VARIABLE, blas.SWITCH)}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment, **variables}, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REPORT = """
import json, os, threadpoolctl
from xpnn_backends import blas
pools = [pool for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"]
print(json.dumps({
    "variable": os.environ.get("OPENBLAS_CORETYPE"),
    "kernels": pools[0]["architecture"] if pools else None,
    "running": blas.running_kernels(),
    "notices": xpnn.get_backend("numpy").notices(),
}))
"""
XPNN_FIRST = "import xpnn, numpy" + REPORT
NUMPY_FIRST = "import numpy, xpnn" + REPORT


def test_running_kernels_are_what_threadpoolctl_finds():
    found = in_its_own_process("-c", XPNN_FIRST)
    assert found["running"] == found["kernels"]


def test_import_of_xpnn_prepares_numpy():
    found = in_its_own_process("-c", XPNN_FIRST)
    assert found["variable"] == TOLD_HERE
    if TOLD_HERE is not None and found["kernels"] is not None:
        assert found["kernels"].upper() == TOLD_HERE
        assert found["notices"] == []


def test_import_of_xpnn_alone_does_not_load_numpy():
    assert in_its_own_process("-c", "import xpnn, sys, json; print(json.dumps('numpy' in sys.modules))") is False


def test_switch_is_respected():
    assert in_its_own_process("-c", XPNN_FIRST, XPNN_TUNE_BLAS="0")["variable"] is None


def test_numpy_loaded_first_is_left_alone():
    assert in_its_own_process("-c", NUMPY_FIRST)["variable"] is None


def expect_older_kernels(found, mend):
    """NumPy was made to run Haswell's kernels: that is said where this processor has better, and only there."""
    if found["kernels"] != "Haswell":  # NumPy has another BLAS here, or one without these kernels
        return
    if blas._has_avx512(HERE.flags):
        (notice,) = found["notices"]
        assert "Haswell" in notice
        assert mend in notice
    else:
        assert found["notices"] == []


@pytest.mark.skipif(HERE is None or "avx2" not in HERE.flags, reason="Haswell's kernels would crash here")
@pytest.mark.parametrize("code", [XPNN_FIRST, NUMPY_FIRST])
def test_users_own_kernels_are_left_alone_and_their_cost_is_said(code):
    found = in_its_own_process("-c", code, OPENBLAS_CORETYPE="Haswell")
    assert found["variable"] == "Haswell"
    expect_older_kernels(found, "unset it")


@pytest.mark.skipif(HERE is None or "avx2" not in HERE.flags, reason="Haswell's kernels would crash here")
def test_numpy_loaded_first_with_older_kernels_is_left_alone_and_the_cost_is_said():
    # The variable is gone before xpnn comes: so it looks where OpenBLAS chose these kernels by itself.
    code = "import numpy, os; del os.environ['OPENBLAS_CORETYPE']; import xpnn" + REPORT
    found = in_its_own_process("-c", code, OPENBLAS_CORETYPE="Haswell")
    assert found["variable"] is None
    expect_older_kernels(found, "set OPENBLAS_CORETYPE=SKYLAKEX before Python starts")


CHILDREN = """
import json, multiprocessing, os, sys

def work(queue):
    import xpnn, numpy
    from xpnn_backends import blas
    queue.put([os.environ.get("OPENBLAS_CORETYPE"), blas.running_kernels()])

if __name__ == "__main__":
    import xpnn, numpy
    from xpnn_backends import blas
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    answer = queue.get(timeout=60)
    child.join()
    print(json.dumps([[os.environ.get("OPENBLAS_CORETYPE"), blas.running_kernels()], answer]))
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_run_the_same_kernels(tmp_path, method):
    file = tmp_path / "parent.py"
    file.write_text(CHILDREN)
    parent, child = in_its_own_process(file, method)
    assert parent == child
    assert parent[0] == TOLD_HERE


def test_backends_have_no_notices_of_their_own_accord():
    assert xpnn.Backend.notices() == []


def test_table_of_backends_holds_the_notices(monkeypatch):
    monkeypatch.setattr(type(xpnn.get_backend("numpy")), "notices", classmethod(lambda cls: ["one", "two"]))
    found = {info.name: info.notices for info in describe_backends()}
    assert found["numpy"] == ("one", "two")
    assert found["strict"] == ()


def test_notices_here_agree_with_the_kernels_that_run():
    kernels = [pool["architecture"] for pool in threadpoolctl.threadpool_info() if "numpy.libs" in pool["filepath"]]
    if not kernels or HERE is None:
        assert blas.notices() == []
        return
    expected = blas.notice_for(HERE, kernels[0], os.environ.get(blas.VARIABLE), blas._switched_off())
    assert blas.notices() == ([] if expected is None else [expected])
