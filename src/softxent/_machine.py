"""What this processor can run, as far as kernels care. Found out on first use, never at import."""

from __future__ import annotations

import functools

from softxent._settings import environment
from softxent._threads import native

#: x86-64's levels, best first. A processor that has one has those after it.
X86_LEVELS = ("v4", "v3", "v2")


@functools.cache
def cpu_level() -> str:
    """Return "v4", "v3", "v2", "baseline" (less than v2), "generic" (not x86-64), or "" (no build).

    Asked of the extension, which is compiled for any processor; without it there is no compiled
    walk to choose.
    """
    extension = native()
    return "" if extension is None else str(extension.cpu_level())


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
    limit = environment("SOFTXENT_MAX_ISA", _parse_level, "v2, v3 or v4")
    return X86_LEVELS[max(X86_LEVELS.index(level), X86_LEVELS.index(limit or "v4")) :]


def _parse_level(text: str) -> str:
    if text not in X86_LEVELS:
        raise ValueError(text)
    return text
