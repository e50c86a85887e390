"""What this processor can run, as far as kernels care. Found out on first use, never at import."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

from softxent._settings import environment
from softxent._threads import native

#: x86-64's levels, best first. A processor that has one has those after it.
X86_LEVELS = ("v4", "v3", "v2")


@functools.cache
def cpu_level() -> str:
    """Return "v4", "v3", "v2", "baseline" (less than v2), "generic" (not x86-64), or "" (unknown).

    Asked of the extension, which is compiled for any processor; without it, of Numba's LLVM.
    """
    extension = native()
    return _level_of_llvm() if extension is None else str(extension.cpu_level())


#: What each level needs beyond those after it, by LLVM's names.
_FEATURES = {
    "v4": {"avx512f", "avx512cd", "avx512vl", "avx512bw", "avx512dq"},
    "v3": {"avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe"},
    "v2": {"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt"},
}


def _level_of_llvm() -> str:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "generic"
    try:
        from llvmlite import binding
    except Exception:  # absent, or broken: Numba says so where it is asked for
        return ""
    has = {name for name, there in binding.get_host_cpu_features().items() if there}
    needed: set[str] = set()
    best = "baseline"
    for level in reversed(X86_LEVELS):
        needed |= _FEATURES[level]
        best = level if needed <= has else best
    return best


@functools.cache
def cpu_name() -> str:
    """Return the processor's name, as the system has it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


#: Bytes of a last-level cache where the system does not say: a server's of 8 cores or so.
USUAL_CACHE = 32 << 20
#: Of it, what a processor can count on at most: a virtual machine is told of all of its host's,
#: which others have, too. Two processors of a Xeon (Granite Rapids) with "480 MB", rows of 1,000
#: float32, the time with normal stores over that past the caches, by the bytes of logits and
#: gradient: 33 MB 0.90, 66 MB 1.02, 131 MB 1.15; 1,024 x 32,000 1.28. The largest that eight cores
#: share, 96 MB of an EPYC, are less.
CACHE_OF_PROCESSOR = 32 << 20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@functools.cache
def last_level_cache() -> int:
    """Return the bytes of the largest cache of the first processor that are within reach."""
    found = []
    try:
        for text in (path.read_text() for path in _CACHES.glob("index*/size")):
            match = re.fullmatch(r"(\d+)([KMG]?)\s*", text)
            if match:
                found.append(int(match[1]) * _UNITS[match[2]])
    except OSError:
        pass
    return min(max(found, default=USUAL_CACHE), CACHE_OF_PROCESSOR * (os.cpu_count() or 1))


def usable_levels() -> tuple[str, ...]:
    """Return the levels that kernels may be taken from, best first.

    `SOFTXENT_MAX_ISA` (`v2`, `v3`, `v4`) lowers the best; it says nothing where there are no
    levels.
    """
    level = cpu_level()
    if level == "generic":
        return ("generic",)
    if level not in X86_LEVELS:
        return ()
    return X86_LEVELS[max(X86_LEVELS.index(level), X86_LEVELS.index(highest_level())) :]


def highest_level() -> str:
    """Return the best level that `SOFTXENT_MAX_ISA` allows."""
    return environment("SOFTXENT_MAX_ISA", _parse_level, "v2, v3 or v4") or "v4"


def _parse_level(text: str) -> str:
    if text not in X86_LEVELS:
        raise ValueError(text)
    return text
