"""Fixtures of the whole suite: every backend at every instruction level this machine can run."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

import softxent as sx
from levels import Level, force, share_all, usable_levels
from softxent import _plan, _tuning
from softxent.backends import BACKENDS

# As shipped, whatever `tune` has kept on this machine.
_tuning.adopt(_tuning.Tuning())

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
    for backend in {sx.explain((4, 4)).backend}.union(*map(_forced, request.session.items)):
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
    return {value for value in parameters.params.values()
            if isinstance(value, Level) or (isinstance(value, str) and value in BACKENDS)
            } if parameters else set()


def _forced(item: pytest.Item) -> set[str]:
    """Return the backends that a test forces a level of."""
    return {value.backend for value in _of(item) if isinstance(value, Level)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the subset."""
    plan = sx.explain((4, 4))
    served = {plan.backend, Level(plan.backend, plan.isa), "numpy", Level("numpy", "")}
    for item in items:
        name = getattr(item, "originalname", item.name)
        if item.path.name in SUBSET and name not in LEFT_OUT and _of(item) <= served:
            item.add_marker(pytest.mark.subset)
