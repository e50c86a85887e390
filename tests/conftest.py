"""Fixtures of the whole suite: every backend at every instruction level this machine can run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

import softxent as sx
from softxent import _plan, _tuning
from softxent.backends import BACKENDS

# As shipped, whatever `tune` has kept on this machine.
_tuning.adopt(_tuning.Tuning())

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


@pytest.fixture(params=usable_levels(), ids=str)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Level:
    """Each usable backend and level in turn; the level is in force during the test."""
    force(request.param, monkeypatch)
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _compiled(request: pytest.FixtureRequest) -> None:
    """Compile what is compiled on first use once: children find it in the cache.

    Of a backend that no test forces a level of, and calls do not get, only what a call asks for is
    compiled, by that: all that there is takes Numba minutes.
    """
    for backend in {sx.explain((4, 4)).backend}.union(*map(_levelled, request.session.items)):
        if sx.available_backends()[backend] == "available":
            sx.warmup(backend=backend)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt: a shell that starts jobs in the background has it ignored.

    Interpreters that a test starts inherit that, unless they set the handler themselves.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    """The logits' dtype."""
    return request.param


@pytest.fixture(params=["float32", "float64", "float16", "bfloat16"])
def any_dtype(request: pytest.FixtureRequest) -> str:
    """The logits' dtype, the formats of 16 bits too."""
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 is its")
    return request.param


@pytest.fixture
def all_take_part(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every thread takes part, a few rows at a time, however small the call is."""
    share_all(monkeypatch)
    monkeypatch.setattr(_plan, "ROWS_TOGETHER", 1)
    yield
    _plan.forget_plans()


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


#: What other Pythons, the wheel, the sdist and a build without a compiler run (`-m subset`): of
#: these files, what is of no backend, of NumPy's, or of the backend and level that calls get there.
SUBSET = {
    "test_bad_input.py", "test_cli.py", "test_constants.py", "test_docs.py", "test_float_state.py",
    "test_import.py", "test_layers.py", "test_objects.py", "test_plan.py", "test_readme.py",
    "test_reference.py", "test_threads.py",
}


#: Of those, what takes long and says nothing of an environment.
LEFT_OUT = {"test_far_scales", "test_more_than_2_to_the_31_elements", "test_peak_memory"}


def _of(item: pytest.Item) -> set[Level | str]:
    """Return what backends, and levels of one, a test is of by its parameters."""
    parameters = getattr(item, "callspec", None)
    # Files that import this one have a `Level` of their own, equal but another class.
    return {value for value in parameters.params.values()
            if (isinstance(value, tuple) and hasattr(value, "isa"))
            or (isinstance(value, str) and value in BACKENDS)} if parameters else set()


def _levelled(item: pytest.Item) -> set[str]:
    """Return the backends of which a test is at a level: of its kind there are hundreds."""
    return {value.backend for value in _of(item) if not isinstance(value, str)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the subset."""
    plan = sx.explain((4, 4))
    served = {plan.backend, Level(plan.backend, plan.isa), "numpy", Level("numpy", "")}
    for item in items:
        name = getattr(item, "originalname", item.name)
        if item.path.name in SUBSET and name not in LEFT_OUT and _of(item) <= served:
            item.add_marker(pytest.mark.subset)
