"""Nothing is read or written beyond an array's ends: each lies beside memory that faults."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import guarded_calls
import softxent as sx
from guard import PAGE, Guarded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses mprotect")
DTYPES = ["float32", "float64", "float16", pytest.param("bfloat16", marks=pytest.mark.skipif(
    importlib.util.find_spec("ml_dtypes") is None, reason="needs ml_dtypes"))]


def child(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_touched_beyond_an_array(level, dtype):
    """Every array of every function, both ends, at C around every vector width."""
    done = child(Path(guarded_calls.__file__), level.backend, dtype)
    assert (done.returncode, done.stderr) == (0, "")
    counts = dict(line.split() for line in done.stdout.splitlines())
    # What takes no arrays, looks at them in Python only, or is the same call.
    beside = {"available_backends", "diagnose", "explain", "finish_row_stats", "get_num_threads",
              "mean_divisor", "merge_row_stats", "register_threadpoolctl", "set_backend",
              "set_num_threads", "show_versions", "tune", "warmup", *guarded_calls.LOSSES}
    assert set(counts) | beside == {name for name in sx.__all__
                                    if not isinstance(getattr(sx, name), type)}
    least = 2 * 3 * len(guarded_calls.FEW)
    assert min(map(int, counts.values())) >= least


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_a_guard_faults(at_end, write):
    """One byte before the first, or behind the last, of an array that is placed there."""
    code = "\n".join([
        "import ctypes, numpy as np",
        "from guard import Guarded",
        f"a = Guarded(24).place(np.arange(3.0), {at_end})",
        f"at = a.ctypes.data + (a.nbytes if {at_end} else -1)",
        f"print(ctypes.c_char.from_address(at + (-1 if {at_end} else 1)).value, flush=True)",
        "byte = ctypes.c_char.from_address(at)",
        "byte.value = b'x'" if write else "byte.value",
        "print('no fault', flush=True)",
    ])
    done = child("-c", code)
    # Not SIGSEGV itself: a sanitizer may take it.
    assert len(done.stdout.splitlines()) == 1, done.stdout + done.stderr
    assert done.returncode
    assert "Traceback" not in done.stderr


def test_places_keep_values_and_layout():
    memory = Guarded(3 * PAGE)
    for z in (np.arange(12.0).reshape(3, 4), np.arange(12.0).reshape(4, 3).T,
              np.arange(12).reshape(3, 4)[::-1, ::-1], np.arange(5, dtype=">i2"), np.float32(3)):
        for at_end in (False, True):
            placed = memory.place(np.asarray(z), at_end)
            assert placed.dtype == np.asarray(z).dtype
            assert (placed == z).all()
            assert (np.sign(placed.strides) == np.sign(np.asarray(z).strides)).all()
