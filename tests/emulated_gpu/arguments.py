"""The arguments of a launch against the kernel's parameters, as its source declares them.

CUDA is given an address for each argument and copies as many bytes from it as the parameter has: an argument too few,
a 64-bit integer for an int, or an integer for a double is no error there, but another number.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import numpy as np

NUMBERS = {
    "bool": "bool",
    "char": "int8",
    "u8": "uint8",
    "unsigned char": "uint8",
    "unsigned short": "uint16",
    "int": "int32",
    "u32": "uint32",
    "unsigned": "uint32",
    "unsigned int": "uint32",
    "long long": "int64",
    "u64": "uint64",
    "unsigned long long": "uint64",
    "size_t": "uint64",
    "__half": "float16",
    "__nv_bfloat16": "bfloat16",
    "float": "float32",
    "double": "float64",
}
"""C type -> dtype."""


class Parameter(NamedTuple):
    """A kernel's parameter: its C type without const and pointers, whether it is a pointer, and its name."""

    type: str
    is_pointer: bool
    name: str


def _split(text: str) -> list[str]:
    """The parts between the commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, "<": 1, ")": -1, ">": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _expanded(text: str, source: str) -> str:
    """The text with macros of one argument, such as NUMBER(x), put out in full."""
    for name, argument, body in re.findall(r"^#define\s+(\w+)\((\w+)\)\s+(.*)$", source, flags=re.MULTILINE):
        expanded = re.sub(rf"\b{argument}\b", r"\\g<1>", body).replace("##", "")
        text = re.sub(rf"\b{name}\((\w+)\)", expanded, text)
    return text


@functools.cache
def parameters(source: str, expression: str) -> tuple[Parameter, ...]:
    """Those of a kernel, by its name with template arguments: "adam<float, 4>"."""
    plain = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    name, _, given = expression.partition("<")
    found = re.search(
        rf"(?:template\s*<([^{{}};]*?)>\s*)?__global__\s(?:[^;{{}}]*?[\s)]){name}\s*\(([^{{;]*)\)\s*{{",
        re.sub(r"__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)", " ", plain),
    )
    if found is None:
        raise LookupError(f"the source has no kernel {name}")
    names = [part.split()[-1] for part in _split(found[1] or "")]
    meaning = dict(zip(names, _split(given[:-1]), strict=False))
    result = []
    for text in _split(_expanded(found[2], plain)):
        kind, _, parameter = re.sub(r"\b(const|__restrict__)\b", " ", text).replace("*", " * ").rpartition(" ")
        is_pointer = "*" in kind
        kind = " ".join(kind.replace("*", " ").split())
        wide = re.fullmatch(r"wide<\s*(\w+)\s*>", kind)
        kind = meaning.get(wide[1] if wide else kind, wide[1] if wide else kind)
        if wide:
            kind = "double" if kind == "double" else "float"
        result.append(Parameter(kind, is_pointer, parameter))
    return tuple(result)


def fault(parameter: Parameter, argument: Any) -> str | None:
    """What is wrong with an argument, if anything is."""
    wanted = NUMBERS.get(parameter.type)
    dtype = getattr(argument, "dtype", None)
    if parameter.is_pointer:
        if hasattr(argument, "__cuda_array_interface__") or hasattr(argument, "data"):
            given = None if dtype is None or isinstance(argument, np.generic) else str(dtype)
            if given is not None:
                return None if wanted in (None, given) else f"an array of {given}, wants {wanted}"
        return None if dtype is not None and dtype.kind in "ui" and dtype.itemsize == 8 else "no address"
    if wanted is None:
        return f"a value of type {parameter.type}, which has no dtype"
    if isinstance(argument, bool):
        given = "bool"
    elif isinstance(argument, int):
        given = "int64"
    elif isinstance(argument, float):
        given = "float64"
    elif isinstance(argument, np.generic):
        given = str(dtype)
    else:
        return f"a {type(argument).__name__}, wants a {wanted}"
    same = given.removeprefix("u") == wanted.removeprefix("u")  # signed or not, the bytes are the same
    return None if same else f"a {given}, wants a {wanted}"


def check(source: str, expression: str, arguments: tuple[Any, ...]) -> None:
    """Raise TypeError if a kernel would not get what it declares."""
    declared = parameters(source, expression)
    if len(declared) != len(arguments):
        raise TypeError(f"{expression} has {len(declared)} parameters, and is given {len(arguments)} arguments")
    for number, (parameter, argument) in enumerate(zip(declared, arguments, strict=True)):
        wrong = fault(parameter, argument)
        if wrong is not None:
            raise TypeError(f"{expression}: argument {number}, for {parameter.name}, is {wrong}")


class CheckedKernel:
    """A kernel of CuPy's that looks at its arguments before it starts."""

    def __init__(self, kernel: Any, source: str, expression: str) -> None:
        self._kernel = kernel
        self._source = source
        self._expression = expression

    def __call__(self, grid: Any, block: Any, args: tuple[Any, ...], **options: Any) -> None:
        check(self._source, self._expression, args)
        self._kernel(grid, block, args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def install() -> None:
    """Makes the kernels of each cupy.RawModule look at their arguments."""
    import cupy

    class CheckedModule(cupy.RawModule):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            source = options.get("code", arguments[0] if arguments else None)
            # CuPy's own modules pass Python's 64-bit integers for an int, which a little-endian machine forgives.
            self.source = source if source is not None and "#define NUMBER(" in source else None

        def get_function(self, name: str) -> Any:
            kernel = super().get_function(name)
            return kernel if self.source is None else CheckedKernel(kernel, self.source, name)

    cupy.RawModule = CheckedModule
