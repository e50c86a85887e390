"""Every backend at every instruction level this machine can run, and how a test has one of them.

Not in conftest.py: pytest and a file that imports that have a module each, with classes of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

import softxent as sx
from softxent import _plan, _tuning

#: The levels SOFTXENT_MAX_ISA knows, with what NumPy, another party, must find in the processor.
LEVELS = {
    "v2": ("SSE42",),
    "v3": ("AVX2", "FMA3"),
    "v4": ("AVX2", "FMA3", "AVX512F", "AVX512CD", "AVX512BW", "AVX512DQ", "AVX512VL"),
}
#: Levels that a backend does not have, by design: the Numba walk's arithmetic is FMA's.
LACKS = {"numba": {"v2"}}


class Level(NamedTuple):
    """A backend at an instruction level; `isa` is "" or "generic" where there is no choice."""

    backend: str
    isa: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend


def _processor_has(feature: str) -> bool:
    core = getattr(np, "_core", None) or np.core
    features = core._multiarray_umath.__cpu_features__
    if feature in features:
        return features[feature]
    # Newer NumPy names whole levels only.
    level = "X86_V4" if feature.startswith("AVX512") else "X86_V3"
    return features.get("X86_V2" if feature == "SSE42" else level, False)


def usable_levels() -> list[Level]:
    """Every backend that is available, at every level the processor has."""
    usable = []
    for backend, state in sx.available_backends().items():
        if state != "available":
            continue
        best = sx.explain((4, 4), "float32", backend=backend).isa
        if best not in LEVELS:
            usable.append(Level(backend, best))
            continue
        usable += [
            Level(backend, isa)
            for isa, features in LEVELS.items()
            if isa not in LACKS.get(backend, ())
            and all(_processor_has(feature) for feature in features)
        ]
    return usable


def force(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `backend=level.backend` run at `level.isa` until the test ends, and check that it does.

    A level that the processor has and the build lacks is a failure: what is tested would silently
    be another level.
    """
    monkeypatch.delenv("SOFTXENT_BACKEND", raising=False)
    if level.isa in LEVELS:
        monkeypatch.setenv("SOFTXENT_MAX_ISA", level.isa)
    plan = sx.explain((4, 4), "float32", backend=level.backend)
    assert (plan.backend, plan.isa) == level


def share_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every call one for all threads, in pieces of a row.

    A long row's classes are cut, and a gradient that may be is stored past the caches. Forget the
    plans afterwards.
    """
    tuning = replace(_tuning.Tuning(), parallel_from_ns=0.0, wakes_from_ns=0.0, streamed_row=0.0)
    monkeypatch.setattr(_tuning, "_adopted", [tuning])
    monkeypatch.setattr(_plan, "last_level_cache", lambda: 0)
    monkeypatch.setattr(_plan, "PIECE_NS", 1.0)
    monkeypatch.setattr(_plan, "CUT_FROM", 65)
    _plan.forget_plans()
