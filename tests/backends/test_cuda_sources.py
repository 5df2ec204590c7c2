"""Every CUDA kernel in every type is compiled by NVRTC, which needs no GPU and no driver; its registers are read."""

import math
import operator
import re
from pathlib import Path

import pytest

nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")

from xpnn import numbers as host_numbers  # noqa: E402
from xpnn_backends.cupy import kernels  # noqa: E402 (needs CuPy, and no GPU)
from xpnn_backends.cupy.bodies import KERNELS  # noqa: E402
from xpnn_backends.cupy.numbers import _FORMULAS, _OPTIONS, StepNumber, StepNumbers  # noqa: E402

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
MOST_REGISTERS = 128
"""Of a thread: with 256 threads in a block, two blocks then fit on a multiprocessor."""


MOST_SPILLS = 64
"""Bytes: what the rare paths of a division or a root save, which are calls. An array that is spilled takes more."""


def include_folders():
    """Where the CUDA headers lie that CuPy compiles with: in packages beside it."""
    nvidia = pytest.importorskip("nvidia", reason="the CUDA headers are not installed; cupy-cuda13x[ctk] brings them")
    return [str(folder) for root in nvidia.__path__ for folder in sorted(Path(root).glob("*/include"))]


def compiled(text, expressions, architecture):
    """(what ptxas says, the size of the machine code)."""
    # CuPy adds -ftz=true to whatever it compiles.
    options = [f"-arch={architecture}", "--ptxas-options=-v", *kernels.OPTIONS, "-ftz=true"]
    options += [f"-I{folder}" for folder in include_folders()]
    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        for wanted in expressions:
            nvrtc.addNameExpression(program, wanted)
        try:
            nvrtc.compileProgram(program, options)
        except Exception as error:
            raise AssertionError(f"{error}\n{nvrtc.getProgramLog(program)}") from None
        for wanted in expressions:
            nvrtc.getLoweredName(program, wanted)
        return nvrtc.getProgramLog(program), len(nvrtc.getCUBIN(program))
    finally:
        nvrtc.destroyProgram(program)


def usage(log):
    """Kernel -> (registers, bytes of spills)."""
    found = {}
    name = None
    for line in log.splitlines():
        entry = re.search(r"entry function '(\w+)'", line) or re.search(r"Function properties for (\w+)", line)
        if entry:
            name = entry[1]
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if spills:
            found.setdefault(name, [0, 0])[1] = int(spills[1]) + int(spills[2])
        registers = re.search(r"Used (\d+) registers", line)
        if registers:
            found.setdefault(name, [0, 0])[0] = int(registers[1])
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", sorted({family for family, _, _ in KERNELS}))
def test_every_kernel_is_compiled_and_keeps_its_numbers_in_registers(family, architecture):
    wanted = [kernels.expression(name, *parameters) for owner, name, parameters in KERNELS if owner == family]
    log, size = compiled(kernels.source(family), wanted, architecture)
    used = usage(log)
    assert size > 1000
    assert len(used) >= len(set(wanted))
    too_many = {name: counts for name, counts in used.items() if counts[0] > MOST_REGISTERS or counts[1] > MOST_SPILLS}
    assert not too_many, f"(registers, bytes of spills): {too_many}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernel_of_a_steps_numbers_is_compiled_with_every_formula(architecture):
    numbers = StepNumbers.__new__(StepNumbers)
    numbers.numbers, numbers._variables = [], {}
    step = StepNumber(numbers)
    for function, formula in _FORMULAS.items():
        is_logic = function in (operator.and_, operator.or_, operator.xor, host_numbers.where)
        operands = (step > 2, step < 9, -math.inf) if is_logic else (step, 0.5)
        count = sum(f"{{{index}}}" in formula for index in range(3))
        numbers._variable(StepNumber(numbers, function, *operands[:count]))
    for constant in (math.inf, -math.inf, math.nan, 1e-320, 10**17):
        numbers._variable(step + constant)
    numbers._places = dict.fromkeys(numbers._variables.values())
    assert len(numbers._places) > len(_FORMULAS)
    options = [f"-arch={architecture}", *_OPTIONS, "-ftz=true"]
    program = nvrtc.createProgram(numbers._source(), "numbers.cu", (), ())
    try:
        nvrtc.compileProgram(program, options)
    except Exception as error:
        raise AssertionError(f"{error}\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


BY_ELEMENTS = (
    *("row_weights", "divisor_of", "loss_total", "norm", "norm_parts", "batch_norm_statistics", "add_parts"),
    *("batch_norm_sums", "batch_norm_gradient_sums", "row_norm_parameter_sums", "add_to_sums", "random_words"),
    *("begin_sort", "count_digits", "counts_to_sums", "place_by_digit", "sort_in_one_block"),
)
"""Kernels that write single numbers: sums, and lists that are sorted."""


def writes_packs(name, parameters):
    """True if an instance of a kernel shall write its results by 8 or 16 bytes at a time, in float32."""
    one_at_a_time = any(type(parameter) is int and parameter == 1 for parameter in parameters)
    other_types = {"float64", "float16", "bfloat16", "int32"} & set(map(str, parameters))
    a_sum = name in BY_ELEMENTS or (name == "column_sums" and "Identity" in parameters)
    small_words = name == "take_rows" and parameters[0] < 8
    return not (one_at_a_time or other_types or a_sum or small_words)


def stores(text, expressions):
    """Expression -> how many stores of vectors its PTX has."""
    options = ["-arch=compute_90", *kernels.OPTIONS, "-ftz=true", *(f"-I{folder}" for folder in include_folders())]
    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        for wanted in expressions:
            nvrtc.addNameExpression(program, wanted)
        nvrtc.compileProgram(program, options)
        names = {nvrtc.getLoweredName(program, wanted): wanted for wanted in expressions}
        ptx = nvrtc.getPTX(program)
    finally:
        nvrtc.destroyProgram(program)
    ptx = ptx.decode() if isinstance(ptx, bytes) else ptx
    parts = {part.partition("(")[0].strip(): part for part in ptx.split(".entry ")[1:]}
    return {wanted: len(re.findall(r"st\.global\S*\.v[24]", parts[name])) for name, wanted in names.items()}


@pytest.mark.parametrize(
    "family", sorted({family for family, name, template in KERNELS if writes_packs(name, template)})
)
def test_packs_are_written_by_one_access(family):
    # A pack whose address was computed in elements may be stored one element at a time: nothing else shows it.
    wanted = [
        kernels.expression(name, *parameters)
        for owner, name, parameters in KERNELS
        if owner == family and writes_packs(name, parameters)
    ]
    found = stores(kernels.source(family), wanted)
    assert not [expression for expression, count in found.items() if count == 0]


def test_a_pack_that_is_written_by_elements_is_found():
    text = """
    struct alignas(16) Pack { float at[4]; };
    template <int N> __global__ void single(float* x) { for (int i = 0; i < N; ++i) x[threadIdx.x + 32 * i] = 1.0f; }
    template <int N> __global__ void packed(Pack* x) { x[threadIdx.x] = Pack{{1.0f, 2.0f, 3.0f, N}}; }"""
    assert stores(text, ["single<4>", "packed<4>"]) == {"single<4>": 0, "packed<4>": 1}


def test_every_kernel_of_the_sources_is_in_the_list():
    listed = {(family, name) for family, name, _ in KERNELS}
    written = {
        (path.stem, name)
        for path in kernels.FOLDER.glob("*.cu")
        for name in re.findall(
            r"__global__\s+(?:__launch_bounds__\([^)]*\)\s+)?void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(",
            path.read_text(),
        )
    }
    assert written == listed


def test_a_fault_in_a_source_is_found():
    with pytest.raises(AssertionError, match="undefined"):
        compiled('extern "C" __global__ void wrong(float* x) { x[0] = nothing; }', ["wrong"], "sm_90")


def test_spills_are_read_from_the_log():
    text = """
    extern "C" __global__ void __launch_bounds__(1024, 2) many(const float* x, float* y) {
      float kept[200];
      for (int i = 0; i < 200; ++i) kept[i] = x[threadIdx.x * 200 + i] * 3.0f;
      for (int k = 0; k < 50; ++k)
        for (int i = 0; i < 200; ++i) kept[i] = kept[i] * kept[(i * 7 + 3) % 200] + x[k];
      for (int i = 0; i < 200; ++i) y[threadIdx.x * 200 + i] = kept[i];
    }"""
    log, _ = compiled(text, ["many"], "sm_90")
    assert any(spilled > MOST_SPILLS for _, spilled in usage(log).values())
