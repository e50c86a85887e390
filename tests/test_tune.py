"""`tune`: what it measures decides plans, is kept, and is ignored where it is not to be trusted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

import softxent as sx
from softxent import _cache, _plan, _tuning, cli


@pytest.fixture(autouse=True)
def _afresh(monkeypatch, tmp_path):
    """A cache directory of its own, and nothing adopted."""
    monkeypatch.setenv("SOFTXENT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_tuning, "_adopted", [])
    _tuning._stored.cache_clear()
    _plan.forget_plans()
    yield
    _tuning._stored.cache_clear()
    _plan.forget_plans()


def test_as_shipped_without_a_file():
    assert _tuning.current() == sx.Tuning()
    assert not _tuning.current().measured
    assert "as shipped" in str(_tuning.current())


def test_tune_measures_adopts_and_keeps():
    tuning = sx.tune(seconds=0.5, shapes=[(2000, 3), (500, 40), (50, 200), (5, 5000)])
    assert tuning.measured
    assert _tuning.current() is tuning
    for dtype in ("float32", "float64"):
        assert all(ns > 0 for ns in tuning.element_ns[dtype])
        # What a call takes here, within what any machine may differ from another.
        assert 100 < tuning.row(dtype, 1000) < 1e6
        assert tuning.backend[dtype] in sx.available_backends()
    assert tuning.wakes_from_ns >= tuning.parallel_from_ns
    _tuning._adopted.clear()
    _tuning._stored.cache_clear()
    assert _tuning.current() == tuning
    assert "measured on this machine" in str(tuning)


def test_another_process_reads_it(tmp_path):
    _tuning.store(replace(sx.Tuning(), parallel_from_ns=123.0, measured=True))
    code = ("from softxent import _tuning; t = _tuning.current(); "
            "print(t.measured, t.parallel_from_ns)")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.stdout.split() == ["True", "123.0"]


def test_stores_that_caches_hide_are_not_measured(monkeypatch):
    from softxent import _tune

    monkeypatch.setattr(_tune, "last_level_cache", lambda: 2 * _tune.STREAMED_BYTES)
    tuning = sx.tune(seconds=0.1, shapes=[(50, 3)], dtypes=["float32"], save=False)
    assert tuning.streamed_row == sx.Tuning().streamed_row


def test_not_kept_unless_wanted(tmp_path):
    sx.tune(seconds=0.1, shapes=[(50, 3)], dtypes=["float32"], save=False)
    assert not list(tmp_path.iterdir())


def test_one_dtype_alone_keeps_the_other():
    tuning = sx.tune(seconds=0.1, shapes=[(500, 3), (500, 30)], dtypes=["float32"], save=False)
    assert tuning.row_ns["float64"] == sx.Tuning().row_ns["float64"]
    assert tuning.element_ns["float32"][1] == sx.Tuning().element_ns["float32"][1]


@pytest.mark.parametrize("body", [
    b"", b"\xff\xfe", b"[]", b"{}", b"null", b'{"row_ns": 3}',
    json.dumps({**asdict(sx.Tuning()), "parallel_from_ns": -1.0}).encode(),
    json.dumps({**asdict(sx.Tuning()), "parallel_from_ns": math.nan}).encode(),
    json.dumps({**asdict(sx.Tuning()), "wakes_from_ns": "soon"}).encode(),
    json.dumps({**asdict(sx.Tuning()), "row_ns": {"float32": [1.0, 2.0]}}).encode(),
    json.dumps({**asdict(sx.Tuning()), "element_ns": {"float32": [1.0], "float64": []}}).encode(),
    json.dumps({**asdict(sx.Tuning()), "backend": {"float32": 3}}).encode(),
    json.dumps({**asdict(sx.Tuning()), "backend": 5}).encode(),
])
def test_a_damaged_file_is_ignored(body):
    _cache.write(_tuning._NAME, _tuning._key(), body)
    assert _tuning.current() == sx.Tuning()
    sx.cross_entropy(np.zeros((3, 4)), [0, 1, 2])


def test_a_file_of_another_processor_is_ignored(monkeypatch):
    _tuning.store(replace(sx.Tuning(), parallel_from_ns=1.0))
    key = _tuning._key()
    monkeypatch.setattr(_tuning, "_key", lambda: key + b"another")
    assert _tuning.current() == sx.Tuning()


def test_backends_that_are_preferred_and_cannot():
    """An unknown name, or one that is not there, changes nothing."""
    _tuning.adopt(replace(sx.Tuning(), backend={"float32": "cuda", "float64": "numpy"}))
    _plan.forget_plans()
    assert sx.explain((3, 4), "float64").backend == "numpy"
    first = next(name for name, state in sx.available_backends().items() if state == "available")
    assert sx.explain((3, 4), "float32").backend == first


def test_thresholds_decide():
    z, y = np.zeros((64, 100), np.float32), np.zeros(64, np.int64)
    _tuning.adopt(replace(sx.Tuning(), parallel_from_ns=math.inf))
    _plan.forget_plans()
    assert sx.explain((10**6, 10)).n_threads == 1
    _tuning.adopt(replace(sx.Tuning(), streamed_row=math.inf))
    _plan.forget_plans()
    assert not sx.explain((10**5, 10**4), grad_out=True).streams
    wanted = sx.cross_entropy_with_grad(z, y)
    _tuning.adopt(replace(sx.Tuning(), parallel_from_ns=0.0, wakes_from_ns=0.0, streamed_row=0.0))
    _plan.forget_plans()
    found = sx.cross_entropy_with_grad(z, y, grad_out=np.empty_like(z))
    assert wanted[0] == found[0]
    assert wanted[1].tobytes() == found[1].tobytes()


@pytest.mark.parametrize(("options", "named"), [
    ({"dtypes": ["float16"]}, "dtypes"), ({"dtypes": []}, "dtypes"), ({"shapes": []}, "shapes"),
    ({"shapes": [(0, 3)]}, "shapes"), ({"seconds": 0.0}, "seconds"),
    ({"seconds": math.inf}, "seconds"), ({"seconds": math.nan}, "seconds"),
])
def test_what_cannot_be_measured(options, named):
    with pytest.raises(ValueError, match=named):
        sx.tune(**options)


def test_an_interrupted_one_leaves_all_as_it_was(monkeypatch):
    from softxent import _tune

    before = replace(sx.Tuning(), parallel_from_ns=77.0)
    _tuning.adopt(before)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_tune, "_fit", stop)
    with pytest.raises(KeyboardInterrupt):
        sx.tune(seconds=0.1)
    assert _tuning.current() is before


def test_command(capsys):
    assert cli.main(["tune", "--seconds", "0.3", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]
    assert set(found["row_ns"]) == {"float32", "float64"}
    assert cli.main(["tune", "--seconds", "-1"]) == 1
    assert "seconds" in capsys.readouterr().err
