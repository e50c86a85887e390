"""softxent/kernels.pxd: a user's own Cython code, compiled outside the package, has our bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap

import pytest

import softxent as sx
from softxent import _machine

pytest.importorskip("Cython", reason="it is for Cython's users")
pytest.importorskip("setuptools", reason="builds the user's module")
COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]

pytestmark = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C compiler"),
    pytest.mark.skipif(sx.available_backends()["cython"] != "available",
                       reason="the Cython backend is not available"),
]

#: What a user writes: `rows` on all rows of memoryviews, `train` with neither Python nor the lock.
USER = """
# cython: language_level=3, boundscheck=False, wraparound=False
import numpy as np
from cython cimport floating
from libc.stdint cimport int64_t
from softxent cimport kernels


def rows(const floating[:, ::1] logits, const int64_t[::1] targets, double upstream=1.0):
    cdef int64_t n = logits.shape[0], c = logits.shape[1], status = 0
    dtype = np.float32 if floating is float else np.float64
    losses, lse = np.full(n, 7, dtype), np.full(n, 7, dtype)
    grad, p, log_p = (np.full((n, c), 7, dtype) for _ in range(3))
    cdef floating[::1] losses_, lse_
    cdef floating[:, ::1] grad_, p_, log_p_
    losses_, lse_, grad_, p_, log_p_ = losses, lse, grad, p, log_p
    with nogil:
        if floating is float:
            status = kernels.cross_entropy_f32(&logits[0, 0], &targets[0], n, c, upstream,
                                               &losses_[0], &grad_[0, 0])
            kernels.logsumexp_f32(&logits[0, 0], n, c, &lse_[0])
            kernels.softmax_f32(&logits[0, 0], n, c, &p_[0, 0])
            kernels.log_softmax_f32(&logits[0, 0], n, c, &log_p_[0, 0])
        else:
            status = kernels.cross_entropy_f64(&logits[0, 0], &targets[0], n, c, upstream,
                                               &losses_[0], &grad_[0, 0])
            kernels.logsumexp_f64(&logits[0, 0], n, c, &lse_[0])
            kernels.softmax_f64(&logits[0, 0], n, c, &p_[0, 0])
            kernels.log_softmax_f64(&logits[0, 0], n, c, &log_p_[0, 0])
    return status, losses, grad, lse, p, log_p


def either(const double[:, ::1] logits, const int64_t[::1] targets):
    "Losses without a gradient, a gradient without losses, in place."
    cdef int64_t n = logits.shape[0], c = logits.shape[1]
    losses, grad = np.empty(n), np.array(logits)
    cdef double[::1] losses_ = losses
    cdef double[:, ::1] grad_ = grad
    kernels.cross_entropy_f64(&logits[0, 0], &targets[0], n, c, 1.0, &losses_[0], NULL)
    kernels.cross_entropy_f64(&grad_[0, 0], &targets[0], n, c, 1.0, NULL, &grad_[0, 0])
    return losses, grad


cdef double total(const float* logits, const int64_t* targets, int64_t n, int64_t c,
                  float* grad) noexcept nogil:
    cdef float loss
    cdef double sum = 0.0
    cdef int64_t i
    for i in range(n):
        if kernels.cross_entropy_f32(logits + i * c, targets + i, 1, c, 1.0, &loss, grad + i * c):
            return -1.0
        sum += loss
    return sum


def by_rows(const float[:, ::1] logits, const int64_t[::1] targets):
    grad = np.empty((logits.shape[0], logits.shape[1]), np.float32)
    cdef float[:, ::1] grad_ = grad
    cdef double sum
    with nogil:
        sum = total(&logits[0, 0], &targets[0], logits.shape[0], logits.shape[1], &grad_[0, 0])
    return sum, grad


def nothing():
    return kernels.cross_entropy_f64(NULL, NULL, 0, 5, 1.0, NULL, NULL)
"""
SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(name="user", ext_modules=cythonize([Extension("user", ["user.pyx"],
                                                    extra_compile_args=["-O1", "-g0"])]))
"""
HEAD = """
import numpy as np, softxent as sx, user
public = dict(reduction="none", backend="cython")
def rows(n_classes, dtype):
    rng = np.random.default_rng(n_classes)
    z = (rng.standard_normal((37, n_classes)) * 5).astype(dtype)
    y = rng.integers(0, n_classes, 37)
    y[3] = -100
    z[4] += 1e6
    z[5, 0] = np.nan
    z[6, -1] = np.inf
    z[7, 0] = -np.inf
    z[8] = -np.inf
    z[9, y[9]] += 30
    return z, y
def same(ours, theirs):
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
"""


def python(folder, script, **environment):
    done = subprocess.run(
        [sys.executable, *script], cwd=folder, capture_output=True, text=True, timeout=250,
        check=False,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(
            [str(folder), *map(os.path.abspath, filter(None, sys.path))])})
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs a script where the user's module is."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "user.pyx").write_text(USER)
    (folder / "setup.py").write_text(SETUP)
    python(folder, ["setup.py", "-q", "build_ext", "--inplace"])
    return lambda script, head=HEAD, **environment: python(
        folder, ["-W", "error", "-c", head + textwrap.dedent(script)], **environment)


@pytest.mark.parametrize("isa", [
    isa for isa in _machine.usable_levels() if isa != "generic"] or ["generic"])
def test_bits(run, isa):
    """At every level: the one that SOFTXENT_MAX_ISA allows when the user's module is imported."""
    levels = {} if isa == "generic" else {"SOFTXENT_MAX_ISA": isa}
    run("""
        for dtype in ("f4", "f8"):
            for n_classes in (1, 2, 63, 64, 65, 1000, 1024, 1025, 5000):
                z, y = rows(n_classes, dtype)
                status, loss, grad, lse, p, log_p = user.rows(z, y)
                expected = sx.cross_entropy_with_grad(z, y, **public)
                assert status == 0
                assert same(loss, expected[0]) and same(grad, expected[1]), (n_classes, dtype)
                assert same(lse, sx.logsumexp(z, backend="cython")), (n_classes, dtype)
                assert same(p, sx.softmax(z, backend="cython")), (n_classes, dtype)
                assert same(log_p, sx.log_softmax(z, backend="cython")), (n_classes, dtype)
                mean = user.rows(z, y, 1 / 36)[2]
                assert same(mean, sx.cross_entropy_with_grad(z, y, backend="cython")[1])
    """, **levels)


def test_either_output_alone_one_row_and_none(run):
    run("""
        z, y = rows(100, "f8")
        losses, grad = user.either(z, y)
        expected = sx.cross_entropy_with_grad(z, y, **public)
        assert same(losses, expected[0]) and same(grad, expected[1])
        assert user.nothing() == 0
        for n_classes in (3, 64, 100, 3000):
            z, y = rows(n_classes, "f4")
            z, y = z[9:], y[9:]
            total, grad = user.by_rows(z, y)
            loss, expected = sx.cross_entropy_with_grad(z, y, **public)
            assert same(grad, expected)
            assert total == sum(loss.astype(float).tolist())
    """)


def test_a_bad_target_is_said_and_nothing_written(run):
    run("""
        z, y = rows(100, "f4")
        for bad in (100, -1, -99, 2**62, -2**63):
            y[7], y[20] = bad, -5
            status, loss, grad, *_ = user.rows(z, y)
            assert status == -8, status
            assert (loss == 7).all() and (grad == 7).all()
    """)


def test_without_a_kernel_the_import_says_so(run):
    run("""
        import softxent as sx
        from softxent.backends.cython._backend import Cython
        Cython.availability = lambda self: "not built for v2"
        try:
            import user
        except sx.BackendUnavailableError as error:
            assert "not built for v2" in str(error)
        else:
            raise AssertionError
    """, head="")
