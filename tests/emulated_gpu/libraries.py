"""Stand-ins for the CUDA libraries that CuPy's modules are linked to: cuBLAS computes, the others only exist."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
from collections import defaultdict
from pathlib import Path

from emulated_gpu import build

_OURS = {"libcublas.so.13": ["cublas.cpp"]}
"""Libraries with sources here, which define some of their functions."""

_WANTED = ("libcublas.", "libcurand.", "libcusolver.", "libcusparse.", "libcufft.")


def _symbols() -> dict[str, set[str]]:
    """Library -> the names that CuPy's compiled modules take from it."""
    specification = importlib.util.find_spec("cupy_backends")
    assert specification is not None
    assert specification.origin is not None
    base = Path(specification.origin).parent
    wanted = defaultdict(set)
    for file in [*(base / "cuda" / "libs").glob("*.so"), *(base.parent / "cupy" / "cuda").glob("cufft*.so")]:
        listed = subprocess.run(["nm", "-D", "--undefined-only", str(file)], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            name, _, version = line.split()[-1].partition("@")
            if version.startswith(_WANTED):
                wanted[version.lstrip("@")].add(name)
    return wanted


def install() -> None:
    """Load the stand-ins: the linker takes a library that is loaded already for one that is asked for by its name."""
    for soname, names in sorted(_symbols().items()):
        ctypes.CDLL(str(_library(soname, names)), ctypes.RTLD_GLOBAL)


def _library(soname: str, names: set[str]) -> Path:
    folder = build.cache_folder() / "stand-ins"
    sources = [build.FOLDER / name for name in _OURS.get(soname, [])]
    # What no source here defines is not supported: its status, of all these libraries, is a number that is not zero.
    rows = "".join(f"__attribute__((weak)) int {name}(void) {{ return 15; }}\n" for name in sorted(names))
    stubs = folder / f"{soname}-{build.digest(rows)}.cpp"
    versions = stubs.with_suffix(".map")
    if not versions.exists():
        with build.atomically(stubs) as made:
            made.write_text(f'extern "C" {{\n{rows}}}\n')
        with build.atomically(versions) as made:
            made.write_text(f"{soname} {{ global: *; }};\n")
    flags = [f"-Wl,-soname,{soname}", f"-Wl,--version-script={versions}"]
    return build.library(soname.partition(".")[0], [stubs, *sources], flags)
