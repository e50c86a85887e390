"""What the NumPy backend alone can be asked: early ends, races on targets, memory."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from softxent.backends._contract import Call, Op
from softxent.backends.reference.rows import BLOCK, RowsTask


def never():
    """The answer of a caller that waits for the end."""
    return False


@pytest.mark.parametrize("ignore_index", [None, -100])
@pytest.mark.parametrize("bad", [-100, -1, 5, 127])
def test_target_changed_after_the_check(bad, ignore_index):
    """A target that has left its range while the call runs: that row is NaN, others stand."""
    z = np.random.default_rng(0).normal(0, 1, (4, 5))
    targets = np.array([0, bad, 4, 1], dtype=np.int8)
    loss, g = np.empty(4), np.empty((4, 5))
    call = Call(Op.CROSS_ENTROPY, z, targets, ignore_index, out_rows=loss, out_map=g)
    RowsTask(call)(0, 4, never)
    if bad == ignore_index:
        assert loss[1] == 0
        assert not g[1].any()
    else:
        assert np.isnan(loss[1])
        assert np.isnan(g[1]).all()
    assert np.isfinite(loss[[0, 2, 3]]).all()
    assert np.isfinite(g[[0, 2, 3]]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, ">i8", np.int32])
def test_targets_of_any_width(dtype):
    """Comparison with an ignore_index that the dtype cannot hold is no error."""
    z = np.random.default_rng(0).normal(0, 1, (4, 5))
    loss, expected = np.empty(4), np.empty(4)
    targets = np.array([0, 3, 4, 1])
    for dt, out in ((dtype, loss), (np.int64, expected)):
        call = Call(Op.CROSS_ENTROPY, z, targets.astype(dt), -100, out_rows=out)
        RowsTask(call)(0, 4, never)
    assert (loss == expected).all()


@pytest.mark.parametrize("op", Op)
def test_ends_early(op):
    """`stopped` is asked before every block of rows and of classes."""
    z = np.zeros((3, 2 * BLOCK + 1), dtype=np.float32)
    asked = []

    def stopped(limit):
        asked.append(None)
        return len(asked) > limit

    wants_map = op is not Op.LOGSUMEXP
    for limit in (0, 2, 5, 7):
        asked.clear()
        out_rows = np.full(3, -7.0)
        out_map = np.full_like(z, -7) if wants_map else None
        call = Call(op, z, np.zeros(3, dtype=int), out_rows=out_rows, out_map=out_map)
        RowsTask(call)(0, 3, lambda limit=limit: stopped(limit))
        assert len(asked) == limit + 1
        assert out_rows[2] == -7


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_no_rows(shape):
    """An empty range does nothing."""
    z = np.empty(shape)
    call = Call(Op.SOFTMAX, z, out_map=z)
    RowsTask(call)(0, 0, never)


def test_error_state_is_left_alone():
    """No warning escapes, and the caller's np.errstate is as it was."""
    z = np.array([[np.inf, np.nan], [-np.inf, -np.inf], [1e308, -1e308]])
    with np.errstate(all="raise"):
        before = np.geterr()
        out = np.empty(3)
        call = Call(Op.CROSS_ENTROPY, z, np.array([1, 0, 1]), out_rows=out, out_map=z.copy())
        RowsTask(call)(0, 3, never)
        assert np.geterr() == before
    assert np.isnan(out[:2]).all()
    assert out[2] == np.inf


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
@pytest.mark.parametrize("shape", ["(1, 50_000_000)", "(5_000_000, 10)", "(2, 1_000, 10_000)"])
def test_peak_memory(shape):
    """M1: at most 64 MiB beside the outputs, here shared with the inputs by broadcasting."""
    script = f"""
        import numpy as np
        from softxent.backends._contract import Call, Op
        from softxent.backends.reference.rows import RowsTask

        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if "VmHWM" in line)

        shape = {shape}
        logits = np.broadcast_to(np.zeros((), dtype=np.float64), shape)
        targets = np.broadcast_to(np.zeros((), dtype=np.int64), shape[:-1])
        out = np.lib.stride_tricks.as_strided(np.zeros(1), shape, (0,) * len(shape))
        rows = np.lib.stride_tricks.as_strided(np.zeros(1), shape[:-1], (0,) * (len(shape) - 1))
        calls = [Call(Op.CROSS_ENTROPY, logits, targets, out_rows=rows, out_map=out),
                 Call(Op.LOG_SOFTMAX, logits, out_map=out)]
        before = peak()
        for call in calls:
            RowsTask(call)(0, call.n_rows, lambda: False)
        print(peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) <= 64 * 1024
