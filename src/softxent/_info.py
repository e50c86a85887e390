"""What a bug report needs: backends and why, versions, limits of this machine."""

from __future__ import annotations

import os
import sys
from typing import Any

from softxent import _machine, _threads
from softxent._plan import available_backends

#: Distributions whose version matters, and environment variables that change what runs.
_DISTRIBUTIONS = ("softxent", "numpy", "numba", "llvmlite", "cython", "scipy", "scikit-learn",
                  "torch", "jax", "threadpoolctl")
_VARIABLES = ("SOFTXENT_BACKEND", "SOFTXENT_NUM_THREADS", "SOFTXENT_MAX_ISA",
              "SOFTXENT_CACHE_DIR", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


def collect() -> dict[str, Any]:
    """Return the facts, as `softxent info --json` prints them."""
    import importlib.metadata  # 20 ms that an import of the package need not cost
    import platform

    versions = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "backends": available_backends(),
        "isa": _machine.usable_levels()[:1],
        "cpu": _machine.cpu_level() or "unknown (no extension)",
        "threads": _threads.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.replace("\n", " "),
        "versions": versions,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def as_text(facts: dict[str, Any]) -> str:
    """Return `collect()`'s facts in lines for people."""
    lines = []
    for title, value in facts.items():
        if isinstance(value, dict):
            lines.append(f"{title}:")
            width = max(map(len, value), default=0)
            lines += [f"  {name:<{width}}  {text}" for name, text in value.items()]
        else:
            shown = ", ".join(value) if isinstance(value, tuple) else value
            lines.append(f"{title}: {shown}")
    return "\n".join(lines)


def show_versions() -> None:
    """Print everything that a bug report needs.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.show_versions()  # doctest: +ELLIPSIS
    backends:
      ...
    """
    print(as_text(collect()))
