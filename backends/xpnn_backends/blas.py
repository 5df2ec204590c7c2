"""Which kernels NumPy's OpenBLAS runs, and what to do where they leave much of the processor unused.

OpenBLAS holds one set of kernels for each family of processors and picks one when it is loaded: from the processor,
or from the variable OPENBLAS_CORETYPE. With AVX2 kernels ("Haswell", "Zen") on a processor whose vector units are 512
bits wide, a product of large matrices takes nearly twice as long as with AVX-512 kernels.

`prepare` sets the variable where OpenBLAS does not know the processor by name, `notices` says where NumPy runs kernels
without AVX-512 all the same. Nothing here loads NumPy: the variable counts only if it is set before.

OPENBLAS_THREAD_TIMEOUT, how long its idle threads spin, is left alone: values from 18 up give the same step times as
its own 26, and lower ones slow middle-sized networks.

    XPNN_TUNE_BLAS=0      leave OPENBLAS_CORETYPE alone ("off", "false" and "no" mean the same)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

VARIABLE = "OPENBLAS_CORETYPE"
SWITCH = "XPNN_TUNE_BLAS"

_SKYLAKEX_INSTRUCTIONS = frozenset(
    # the AVX-512 subsets that the kernels are written in, then what their compiler may use beside them
    ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "bmi1", "bmi2", "abm", "movbe")
)
_AVX512_KERNELS = frozenset({"skylakex", "cooperlake", "sapphirerapids"})
_OLDER_INTEL_KERNELS = frozenset({"prescott", "core2", "nehalem", "sandybridge", "haswell"})
_OLDER_AMD_KERNELS = frozenset({"barcelona", "bulldozer", "piledriver", "steamroller", "excavator", "zen"})
_OLDER_KERNELS = _OLDER_INTEL_KERNELS | _OLDER_AMD_KERNELS
_FIRST_UNLISTED_AMD_FAMILY = 26  # Zen 5
_CORE_NAME_FUNCTIONS = tuple(
    f"{prefix}openblas_get_corename{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")
)


class Processor(NamedTuple):
    """What the operating system says of the processor.

    Attributes:
        vendor: such as "AuthenticAMD" or "GenuineIntel".
        family: its number at that vendor.
        flags: the instruction sets that programs may use. Linux leaves out those that it has not enabled.
    """

    vendor: str
    family: int
    flags: frozenset[str]


def processor(path: str = "/proc/cpuinfo") -> Processor | None:
    """The first processor of this machine; None where it is no x86 or the operating system does not tell."""
    fields: dict[str, str] = {}
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, separator, value = line.partition(":")
                if not separator:
                    break  # an empty line: here the next processor begins, and there may be hundreds
                fields[name.strip()] = value.strip()
        return Processor(fields["vendor_id"], int(fields["cpu family"]), frozenset(fields["flags"].split()))
    except (OSError, KeyError, ValueError):
        return None


def kernels_for(vendor: str, family: int, flags: Iterable[str]) -> str | None:
    """The kernels that OpenBLAS should be told to run on a processor, or None where it is to choose itself.

    | processor                                   | told     | why                                            |
    |---------------------------------------------|----------|------------------------------------------------|
    | AMD from family 26 (Zen 5), AVX-512 enabled | SKYLAKEX | not in the list of many versions of OpenBLAS   |
    | AMD of family 25 (Zen 3, Zen 4) and before  | nothing  | is in the list, with AVX-512 where it has that |
    | Intel                                       | nothing  | is in the list                                 |
    | any other, or one flag is missing           | nothing  | the kernels could crash                        |

    A processor that is not in its list OpenBLAS judges by its features. The versions in NumPy 2.1 to 2.4 so come to
    the same kernels on Zen 5; the name makes that certain, and costs nothing where they would.

    SKYLAKEX needs nothing but AVX-512 as every such server processor has it. COOPERLAKE and SAPPHIRERAPIDS add
    products in bfloat16, which NumPy never calls, and are compiled for processors with more instructions (bfloat16;
    float16 and tiles), some of which AMD's do not have. In float32 and float64 all three run the same code, and
    NumPy's own wheels hold SKYLAKEX alone.

    Args:
        vendor: `Processor.vendor`.
        family: `Processor.family`.
        flags: `Processor.flags`.
    """
    if vendor == "AuthenticAMD" and family >= _FIRST_UNLISTED_AMD_FAMILY and _has_avx512(flags):
        return "SKYLAKEX"
    return None


def _has_avx512(flags: Iterable[str]) -> bool:
    return _SKYLAKEX_INSTRUCTIONS.issubset(flags)


def prepare() -> None:
    """Set OPENBLAS_CORETYPE to `kernels_for` this processor. `import xpnn` calls it.

    Nothing is done where the variable is set already, where NumPy is loaded (it would come too late, and only other
    processes would see it), or where XPNN_TUNE_BLAS=0.
    """
    if VARIABLE in os.environ or "numpy" in sys.modules or _switched_off():
        return
    here = processor()
    kernels = None if here is None else kernels_for(*here)
    if kernels is not None:
        os.environ[VARIABLE] = kernels


def _switched_off() -> bool:
    return os.environ.get(SWITCH, "").strip().lower() in ("0", "off", "false", "no")


def running_kernels() -> str | None:
    """The kernels that NumPy's OpenBLAS runs in this process, by its own word, such as "Haswell" or "SkylakeX".

    None where NumPy is not loaded, has another BLAS, or does not tell (outside Linux).
    """
    if "numpy" not in sys.modules:
        return None
    import ctypes  # takes longer to import than what `import xpnn` may spend here

    for path in _numpys_openblas(_loaded_libraries()):
        try:
            library = ctypes.CDLL(path)  # it is loaded already: this gives the same one again
        except OSError:
            continue
        for name in _CORE_NAME_FUNCTIONS:
            core_name = getattr(library, name, None)
            if core_name is not None:
                core_name.restype = ctypes.c_char_p
                answer = core_name()
                return answer.decode("ascii", "replace") if answer else None
    return None


def _loaded_libraries() -> list[str]:
    """The paths of the files that are mapped into this process."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return []
    columns = (line.split(maxsplit=5) for line in maps.splitlines())
    return list(dict.fromkeys(entry[5] for entry in columns if len(entry) == 6))


def _numpys_openblas(paths: Iterable[str]) -> list[str]:
    """Those of the loaded libraries that are the OpenBLAS of NumPy.

    NumPy's wheels bring one in the directory numpy.libs; other packages, such as SciPy, bring others in theirs. A
    NumPy from a distribution shares the system's.
    """
    found = [path for path in paths if "openblas" in path.lower() and ".so" in Path(path).name]
    own = [path for path in found if Path(path).parent.name == "numpy.libs"]
    return own or [path for path in found if not Path(path).parent.name.endswith(".libs")]


def notices() -> list[str]:
    """What a user should know of NumPy's BLAS on this machine: nothing, or one line with what mends it."""
    here, running = processor(), running_kernels()
    if here is None or running is None:
        return []
    notice = notice_for(here, running, os.environ.get(VARIABLE), _switched_off())
    return [] if notice is None else [notice]


def notice_for(here: Processor, running: str, variable: str | None, switched_off: bool) -> str | None:
    """The line that says what is lost with the kernels that run, and what mends it; None if nothing is.

    Args:
        here: the processor.
        running: the kernels that run, as OpenBLAS names them.
        variable: the value of OPENBLAS_CORETYPE, None where it is not set.
        switched_off: True with XPNN_TUNE_BLAS=0.
    """
    if running.lower() not in _OLDER_KERNELS or not _has_avx512(here.flags):
        return None
    lost = (
        f"OpenBLAS runs its {running} kernels, without the AVX-512 of this processor: "
        "products of large matrices may take twice as long"
    )
    if variable and variable.lower() in _AVX512_KERNELS:
        return f"{lost}. {VARIABLE}={variable} came too late, or this OpenBLAS has no such kernels (NumPy's wheels do)"
    if variable:
        return f"{lost}. The cause is {VARIABLE}={variable}: unset it, and start Python again"
    mend = f"set {VARIABLE}=SKYLAKEX before Python starts"
    if kernels_for(*here) is not None:
        mend += f", or unset {SWITCH}" if switched_off else ", or `import xpnn` before numpy"
    return f"{lost}. To mend it, {mend}"
