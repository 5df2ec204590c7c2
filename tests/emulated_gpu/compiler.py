"""CUDA sources compiled by g++ for the CPU, in the place of NVRTC."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emulated_gpu.build import (
    FOLDER,
    BuildError,
    atomically,
    cache_folder,
    digest,
    include_folders,
    run_compiler,
)

STANDARD = "-std=gnu++17"
FLAGS = (
    "-O1",
    "-fPIC",
    "-w",
    "-fvisibility=hidden",
    # Each library has its own shared memory and constants, also those of templates.
    "-fno-gnu-unique",
    "-fno-threadsafe-statics",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-ffp-contract=off",
    # A GPU faults at an access that is not aligned to its size; the CPU would not.
    "-fsanitize=alignment",
    "-fno-sanitize-recover=alignment",
)

PRELUDE = """#pragma once
#include "cuda_on_cpu.h"
#include <cupy/complex.cuh>
#include <cupy/carray.cuh>
#include <cupy/atomics.cuh>
#include <cupy/float16.cuh>
#include <cupy/bfloat16.cuh>
#include <cupy/math_constants.h>
"""
"""What nearly all sources include, compiled once."""


@functools.cache
def prelude() -> Path:
    """The header of PRELUDE, precompiled."""
    headers = [(FOLDER / name).read_text() for name in ("cuda_on_cpu.h", "crt/host_defines.h")]
    folder = cache_folder() / f"prelude-{digest(PRELUDE, *headers, *include_folders(), *FLAGS)}"
    header = folder / "prelude.h"
    if not folder.exists():
        cache_folder().mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache_folder()))
        (made / "prelude.h").write_text(PRELUDE)
        folders = [f"-I{place}" for place in include_folders()]
        precompiled = ["-x", "c++-header", "-o", str(made / "prelude.h.gch"), str(made / "prelude.h")]
        run_compiler([STANDARD, *FLAGS, *folders, *precompiled])
        try:
            os.rename(made, folder)
        except OSError:  # another process was faster
            shutil.rmtree(made, ignore_errors=True)
    return header


_DYNAMIC_SHARED = re.compile(
    r"\bextern\s+__shared__\s+((?:__align__\s*\([^)]*\)\s*|alignas\s*\([^)]*\)\s*)?)([\w:<>,\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;"
)


def host_source(source: str) -> str:
    """The source with what C++ has no word for put otherwise: dynamic shared memory is a pointer."""

    def pointer(found: re.Match[str]) -> str:
        return f"{found[2]}* {found[3]} = reinterpret_cast<{found[2]}*>(emulated_dynamic_shared);"

    return _DYNAMIC_SHARED.sub(pointer, source)


def plain_kernels(source: str) -> list[str]:
    """The names of the kernels that are no templates and are declared extern "C"."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    blocks = _extern_blocks(text)
    names = []
    for found in re.finditer(r"\b__global__\b([^;{]*?)\b(\w+)\s*\(", _without_bounds(text)):
        before = re.split(r"[;{}]", text[: found.start()])[-1]
        if "template" in before:
            continue
        inside = any(start < found.start() < end for start, end in blocks)
        if (inside or re.search(r'extern\s+"C"', before)) and found[2] not in names:
            names.append(found[2])
    return names


def _without_bounds(text: str) -> str:
    """__launch_bounds__(...) made spaces, so that what is before a parenthesis is the kernel's name."""
    return re.sub(r"__launch_bounds__\s*\([^)]*\)", lambda found: " " * len(found[0]), text)


def _extern_blocks(text: str) -> list[tuple[int, int]]:
    blocks = []
    for found in re.finditer(r'extern\s+"C"\s*\{', text):
        depth = 1
        end = found.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        blocks.append((found.start(), end))
    return blocks


def _kept_options(options: Sequence[str]) -> tuple[str, list[str]]:
    """The language version and those options of NVRTC that mean something to g++."""
    standard = STANDARD
    kept = []
    for option in options:
        found = re.fullmatch(r"(?:-std=|--std=)c\+\+(\d+)", option)
        if found:
            standard = STANDARD if int(found[1]) <= 17 else f"-std=gnu++{found[1]}"
        elif option.startswith(("-I", "-D", "-U")):
            kept.append(option)
        elif option.startswith(("--include-path=", "--define-macro=")):
            kept.append({"--i": "-I", "--d": "-D"}[option[:3]] + option.split("=", 1)[1])
    return standard, kept


def compile_kernels(source: str, options: Sequence[str] = (), name_expressions: Sequence[str] | None = None) -> Path:
    """The shared library of a CUDA source: its extern "C" kernels, and the instances that `name_expressions` name."""
    standard, kept = _kept_options(options)
    names = tuple(name_expressions or ())
    key = digest(source, standard, *kept, "names", *names, str(prelude()))
    target = cache_folder() / key[:2] / f"{key}.so"
    if target.exists():
        return target
    rows = [f'  EMULATED_KERNEL("{name}", {name}),' for name in dict.fromkeys((*plain_kernels(source), *names))]
    table = "\n".join(rows)
    text = (
        f'#line 1 "kernels.cu"\n{host_source(source)}\n#line 1 "emulated_kernels.cpp"\n'
        'extern "C" __attribute__((visibility("default"))) const EmulatedKernel emulated_kernels[] = {\n'
        f"{table}\n  {{nullptr, nullptr, 0, nullptr}}}};\n"
    )
    with atomically(target) as made:
        file = made.with_suffix(".cpp")
        file.write_text(text)
        folders = [f"-I{place}" for place in include_folders()]
        arguments = [standard, *FLAGS, *kept, *folders, "-shared", "-include", str(prelude()), "-o", str(made)]
        run_compiler([*arguments, str(file)])
    return target


def image(path: Path) -> bytes:
    """What the emulated driver's moduleLoadData takes."""
    return b"EMULATED\0" + os.fsencode(path) + b"\0"


def install() -> None:
    """Makes cupy.cuda.compiler compile by g++; call it after CuPy has been imported."""
    from cupy.cuda import compiler, function

    def compile_with_cache(
        source: str,
        options: Sequence[str],
        arch: Any,
        extra_source: Any = None,
        backend: str = "nvrtc",
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        log_stream: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        try:
            path = compile_kernels(source, tuple(options), name_expressions)
        except BuildError as error:
            raise compiler.CompileException(str(error), source, "kernels.cu", tuple(options), "g++") from None
        module = function.Module()
        module.load(image(path))
        if name_expressions:
            module._set_mapping({name: name for name in name_expressions})
        return module

    compiler._compile_with_cache_cuda = compile_with_cache
    compiler._get_nvrtc_version = lambda: (13, 0)
