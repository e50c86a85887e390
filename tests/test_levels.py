"""Levels with FMA give the same bits (E8, as far as there are backends)."""

import pytest

import rows
import softxent as sx
from levels import Level, force, usable_levels

WITH_FMA = [level for level in usable_levels() if level.isa in ("v3", "v4")]


def results(case):
    """Every output of every function over the rows of a case, as bytes."""
    run = {"backend": "cython", "n_threads": 2}
    loss, grad = sx.cross_entropy_with_grad(
        case.logits, case.targets, reduction="none", upstream=0.3, **run)
    pieces = [function(case.logits, **run) for function in (sx.logsumexp, sx.softmax,
                                                            sx.log_softmax)]
    return [array.tobytes() for array in (loss, grad, *pieces)]


@pytest.mark.skipif(len(WITH_FMA) < 2, reason="this processor has no two levels with FMA")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_levels_with_fma_give_the_same_bits(dtype):
    for case in rows.cases(dtype):
        found = []
        for level in WITH_FMA:
            with pytest.MonkeyPatch.context() as patch:
                force(level, patch)
                found.append(results(case))
        assert found[0] == found[1], case.name


@pytest.mark.skipif(Level("cython", "v2") not in usable_levels() or not WITH_FMA,
                    reason="needs a level with FMA and one without")
def test_forcing_a_level_does_change_what_runs(monkeypatch):
    """The test above compares two things: without FMA some bits are others."""
    case = rows.case(1000, "float32")
    force(WITH_FMA[0], monkeypatch)
    with_fma = results(case)
    force(Level("cython", "v2"), monkeypatch)
    assert results(case) != with_fma
