"""softxent.numba: the public functions' bits from a user's compiled code, its errors, its cache."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import softxent as sx
from softxent import _cache

pytest.importorskip("numba", reason="it is for Numba's users")
from numba import njit
from numba.core.errors import TypingError
from numba.core.runtime import _nrt_python, rtsys

import softxent.numba as sn

#: Whose kernels they are.
BACKEND = "cython" if sx.available_backends()["cython"] == "available" else "numba"
CLASSES = [1, 2, 3, 63, 64, 65, 1000, 1024, 1025, 5000]


def rows(n_classes, dtype, n_rows=37):
    """Logits, and targets: ordinary rows, confident ones, and every kind of row that is not."""
    rng = np.random.default_rng(n_classes)
    z = (rng.standard_normal((n_rows, n_classes)) * 5).astype(dtype)
    y = rng.integers(0, n_classes, n_rows)
    y[3] = -100
    z[4] += 1e6
    z[5, 0] = np.nan
    z[6, -1] = np.inf
    z[7, 0] = -np.inf
    z[8] = -np.inf
    z[9, y[9]] += 30
    z[10] = 3.0e38
    z[11] *= 1e-42
    return z, y


def same(ours, theirs):
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()


# ---- bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", CLASSES)
def test_many_rows_have_the_public_bits(n_classes, dtype):
    z, y = rows(n_classes, dtype)
    loss, out = np.empty(len(z), dtype), np.empty_like(z)
    sn.cross_entropy(z, y, loss)
    assert same(loss, sx.cross_entropy(z, y, reduction="none", backend=BACKEND))
    sn.cross_entropy_with_grad(z, y, loss, out, 1 / 36)
    _, mean = sx.cross_entropy_with_grad(z, y, backend=BACKEND)
    assert same(loss, sx.cross_entropy(z, y, reduction="none", backend=BACKEND))
    assert same(out, mean)
    sn.logsumexp(z, loss)
    assert same(loss, sx.logsumexp(z, backend=BACKEND))
    sn.softmax(z, out)
    assert same(out, sx.softmax(z, backend=BACKEND))
    sn.log_softmax(z, out)
    assert same(out, sx.log_softmax(z, backend=BACKEND))


@pytest.mark.parametrize("n_classes", CLASSES)
def test_one_row_has_the_public_bits(n_classes, dtype):
    z, y = rows(n_classes, dtype)
    loss, grad = sx.cross_entropy_with_grad(z, y, reduction="none", upstream=-0.3, backend=BACKEND)
    lse = sx.logsumexp(z, backend=BACKEND)
    p, log_p = sx.softmax(z, backend=BACKEND), sx.log_softmax(z, backend=BACKEND)
    for i in range(len(z)):
        out = np.empty(n_classes, dtype)
        value = sn.cross_entropy_row_with_grad(z[i], y[i], out, -0.3)
        assert isinstance(value, float)
        assert same(np.asarray(value, dtype), loss[i])
        assert same(out, grad[i])
        assert value == sn.cross_entropy_row(z[i], y[i]) or np.isnan(value)
        assert same(np.asarray(sn.logsumexp_row(z[i]), dtype), lse[i])
        sn.softmax_row(z[i], out)
        assert same(out, p[i])
        sn.log_softmax_row(z[i], out)
        assert same(out, log_p[i])


def test_float64_values_are_those_that_sums_are_of():
    """Of float32 logits; one row's is what the public function returns for it."""
    z, y = rows(100, "float32")
    loss = np.empty(len(z))
    sn.cross_entropy(z, y, loss)
    for i in range(len(z)):
        alone = sx.cross_entropy(z[i], y[i], backend=BACKEND)
        assert np.array_equal([loss[i], sn.cross_entropy_row(z[i], y[i])], [alone] * 2,
                              equal_nan=True)


@pytest.mark.parametrize("n_classes", [5, 64, 70, 1100])
def test_any_strides(n_classes):
    """Columns, every second class backwards, and an output of other strides."""
    z, y = rows(n_classes, "float32")
    _, grad = sx.cross_entropy_with_grad(z, y, reduction="none", backend=BACKEND)
    loss = np.empty(len(z))
    spread = np.repeat(z, 2, axis=1)[:, ::2]
    out = np.full((2 * n_classes, len(z)), 7, "f4").T[:, ::-2]
    for logits in (np.asfortranarray(z), spread, z[:, ::-1].copy()[:, ::-1]):
        sn.cross_entropy_with_grad(logits, y, loss, out)
        assert same(np.ascontiguousarray(out), grad)
        for i in range(len(z)):
            sn.cross_entropy_row_with_grad(logits[i], y[i], out[i])
        assert same(np.ascontiguousarray(out), grad)
    assert (out.base.T[:, ::2] == 7).all()


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "u8"])
def test_targets_of_any_width(kind):
    z, y = rows(100, "float32")
    y[3] = 99
    loss = np.empty(len(z), "f4")
    sn.cross_entropy(z, y.astype(kind), loss)
    assert same(loss, sx.cross_entropy(z, y, reduction="none", backend=BACKEND))
    sn.cross_entropy(z, np.repeat(y.astype(kind), 3)[::3], loss)
    assert same(loss, sx.cross_entropy(z, y, reduction="none", backend=BACKEND))


@pytest.mark.parametrize("n_classes", [5, 100, 3000])
def test_in_place(n_classes, dtype):
    z, y = rows(n_classes, dtype)
    expected = sx.cross_entropy_with_grad(z, y, reduction="none", backend=BACKEND)[1]
    both = z.copy()
    sn.cross_entropy_with_grad(both, y, np.empty(len(z)), both)
    assert same(both, expected)
    both = z.copy()
    for i in range(len(z)):
        sn.cross_entropy_row_with_grad(both[i], y[i], both[i])
    assert same(both, expected)


def test_no_rows():
    empty, none = np.empty((0, 5)), np.empty(0)
    sn.cross_entropy_with_grad(empty, np.empty(0, int), none, empty)
    sn.logsumexp(empty, none)
    sn.softmax(empty, empty)


def test_nothing_is_allocated():
    z, y = rows(2000, "float32")
    y[3] = 0
    grad = np.empty_like(z)

    @njit
    def total(z, y, grad):
        loss = 0.0
        for i in range(len(z)):
            loss += cross_entropy_row_with_grad(z[i], y[i], grad[i]) + logsumexp_row(z[i])
            softmax_row(z[i], grad[i])
        return loss

    total(z, y, grad)
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats()
        total(z, y, grad)
        after = rtsys.get_allocation_stats()
    finally:
        _nrt_python.memsys_disable_stats()
    # Numba makes one record for each array that comes from Python.
    assert after.mi_alloc - before.mi_alloc <= 3
    assert after.alloc - before.alloc <= 3


cross_entropy_row_with_grad = sn.cross_entropy_row_with_grad
logsumexp_row, softmax_row = sn.logsumexp_row, sn.softmax_row


# ---- errors: before an output is touched ---------------------------------------------------------


@pytest.mark.parametrize("bad", [7, -1, -99, 2**62])
def test_targets_out_of_range(bad):
    z, y = np.zeros((4, 7)), np.array([0, 1, 2, 3])
    loss, grad = np.full(4, 7.0), np.full((4, 7), 7.0)
    y[2] = bad
    with pytest.raises(IndexError, match="not in \\[0, n_classes\\)") as caught:
        sn.cross_entropy_with_grad(z, y, loss, grad)
    assert caught.value.args[1:] == (2, bad, 7)
    with pytest.raises(IndexError):
        sn.cross_entropy(z, y, loss)
    with pytest.raises(IndexError):
        sn.cross_entropy_row_with_grad(z[2], bad, grad[2])
    with pytest.raises(IndexError):
        sn.cross_entropy_row(z[2], bad)
    assert (loss == 7).all()
    assert (grad == 7).all()


def test_shapes_that_do_not_fit():
    z, y = np.zeros((4, 7)), np.zeros(4, int)
    loss, grad = np.full(4, 7.0), np.full((4, 7), 7.0)
    for arguments in [(z, y[1:], loss, grad), (z, y, loss[1:], grad), (z, y, loss, grad[1:]),
                      (z, y, loss, grad[:, 1:]), (z[:, :0], y, loss, grad[:, :0]),
                      (z[:2], y[:2], loss[::2], grad[:2])]:
        with pytest.raises(ValueError, match="must"):
            sn.cross_entropy_with_grad(*arguments)
    for function in (sn.softmax, sn.log_softmax):
        with pytest.raises(ValueError, match="shape"):
            function(z, grad[1:])
    with pytest.raises(ValueError, match="length"):
        sn.logsumexp(z, loss[1:])
    with pytest.raises(ValueError, match="at least one class"):
        sn.logsumexp_row(z[0, :0])
    with pytest.raises(ValueError, match="shape"):
        sn.cross_entropy_row_with_grad(z[0], 0, grad[0, 1:])
    assert (loss == 7).all()
    assert (grad == 7).all()


def test_types_that_are_not_served():
    z, y = np.zeros((4, 7), "f4"), np.zeros(4, int)
    fixed = np.zeros((4, 7), "f4")
    fixed.flags.writeable = False
    for function, arguments, message in [
        (sn.cross_entropy, (z.astype(int), y, np.empty(4)), "logits must be a float32 or float64"),
        (sn.cross_entropy, (z, y.astype(float), np.empty(4)), "targets must be a 1-D array of int"),
        (sn.cross_entropy, (z, y, np.empty(4, int)), "must be a writeable 1-D array of float32 or"),
        (sn.cross_entropy_row, (z[0], 1.0), "a row's target must be an integer"),
        (sn.softmax, (z, np.empty((4, 7))), "must be a writeable 2-D array of float32"),
        (sn.softmax, (z, fixed), "must be a writeable 2-D array of float32"),
        (sn.softmax_row, (z[0], z), "must be a writeable 1-D array of float32"),
    ]:
        with pytest.raises(TypingError, match=message):
            function(*arguments)


# ---- other processes -----------------------------------------------------------------------------

USER = """
import numpy as np
from numba import njit, prange
from softxent.numba import cross_entropy_row_with_grad

@njit(cache=True, parallel=True)
def step(logits, targets, grad):
    losses = np.empty(len(logits))
    for i in prange(len(logits)):
        losses[i] = cross_entropy_row_with_grad(logits[i], targets[i], grad[i])
    return losses
"""
SCRIPT = """
import sys
import numpy as np
{before}
import user, softxent as sx
rng = np.random.default_rng(1)
z, y = rng.standard_normal((500, 70)) * 9, rng.integers(0, 70, 500)
grad = np.empty_like(z)
losses = user.step(z, y, grad)
theirs = sx.cross_entropy_with_grad(z, y, reduction="none", backend={backend!r})
assert losses.tobytes() == theirs[0].tobytes()
assert grad.tobytes() == theirs[1].tobytes()
print(sum(user.step.stats.cache_hits.values()))
"""


@pytest.fixture
def run(tmp_path):
    """A function that runs SCRIPT in a process of its own, and returns what it printed."""
    (tmp_path / "user.py").write_text(USER)

    def run(before="", backend=BACKEND):
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(SCRIPT.format(before=before, backend=backend)))
        done = subprocess.run(
            [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=200,
            check=False,
            env={**os.environ, "SOFTXENT_CACHE_DIR": str(_cache.directory()),
                 "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return run


def test_a_users_cache_serves_the_next_process_and_other_kernels(run):
    """What was compiled for one backend's kernels is right with another's: it has none in it."""
    assert run() == "0"
    assert run() == "1"
    if sx.available_backends()["numba"] == "available":
        assert run("sys.modules['softxent.kernels'] = None", "numba") == "1"


def test_without_any_kernel_the_import_says_so(run):
    script = """
        sys.modules["softxent.kernels"] = None
        from softxent.backends.numba._backend import Numba
        Numba.supports = lambda self, key: "there is no FMA"
        try:
            import softxent.numba
        except Exception as error:
            assert type(error).__name__ == "BackendUnavailableError", error
            assert "there is no FMA" in str(error), error
            print("said")
            raise SystemExit
        raise AssertionError
    """
    assert run(textwrap.dedent(script)) == "said"
