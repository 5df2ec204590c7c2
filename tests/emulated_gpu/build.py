"""g++: libraries made of C++ and CUDA sources, kept in a folder under the hash of what went into them."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent


class BuildError(Exception):
    """g++ refused a source, or there is no g++, or a header that it needs."""


def cache_folder() -> Path:
    """Where libraries are kept: XPNN_EMULATED_GPU_CACHE, or a folder in the user's cache."""
    given = os.environ.get("XPNN_EMULATED_GPU_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "xpnn" / "emulated_gpu"


@functools.cache
def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise BuildError("the emulated GPU compiles kernels with g++, which is not installed; apt install g++")
    return found


@functools.cache
def _compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def include_folders() -> tuple[str, ...]:
    """This folder, CuPy's headers, the parts of CCCL that those need, and NVIDIA's headers."""
    specification = importlib.util.find_spec("cupy")
    if specification is None or specification.origin is None:
        raise BuildError('the emulated GPU needs CuPy; pip install "cupy-cuda13x[ctk]"')
    include = Path(specification.origin).parent / "_core" / "include"
    parts = include / "cupy" / "_cccl"
    return (
        str(FOLDER),
        str(include),
        *(str(parts / part) for part in ("libcudacxx", "thrust", "cub")),
        str(_nvidia_headers()),
    )


def _nvidia_headers() -> Path:
    specification = importlib.util.find_spec("nvidia")
    for place in (specification.submodule_search_locations or []) if specification else []:
        for part in ("cu13", "cuda_runtime"):
            folder = Path(place) / part / "include"
            if (folder / "cuda_fp16.h").exists():
                return folder
    raise BuildError("the emulated GPU needs NVIDIA's headers (cuda_fp16.h); pip install nvidia-cuda-runtime")


def digest(*parts: str | bytes) -> str:
    """A hash of texts and of the compiler that will read them."""
    total = hashlib.sha256(_compiler_version().encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:32]


def run_compiler(arguments: Sequence[str]) -> None:
    command = [compiler(), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{finished.stderr or finished.stdout}")


def library(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    """The shared library of C++ files, with what they include from this folder; compiled if it is not yet kept."""
    headers = sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*/*.h")])
    contents = [file.read_bytes() for file in (*sources, *headers)]
    target = cache_folder() / f"{name}-{digest(*flags, *include_folders(), *contents)}.so"
    if not target.exists():
        with atomically(target) as made:
            folders = [f"-I{folder}" for folder in include_folders()]
            standard = ["-std=gnu++17", "-O2", "-fPIC", "-shared", "-w", "-pthread", *folders]
            run_compiler([*standard, "-o", str(made), *map(str, sources), "-ldl", *flags])
    return target


class atomically:  # noqa: N801 - it is used like a function
    """with atomically(target) as made: write the file `made`; it then appears as `target`, whole or not at all."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(dir=self.target.parent))
        return self.folder / self.target.name

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.replace(self.folder / self.target.name, self.target)
        shutil.rmtree(self.folder, ignore_errors=True)
