"""M3: what `import softxent`, and a first call, do to a process: each in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import softxent as sx
from softxent import _cache

BACKENDS = [name for name, state in sx.available_backends().items() if state == "available"]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def fresh(tmp_path):
    """A function that runs a script in a fresh interpreter and an empty folder, in silence."""

    def run(script, *arguments):
        path = tmp_path / "case.py"
        path.write_text(textwrap.dedent(script))
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-W", "error", path, *arguments], capture_output=True, text=True,
            timeout=60, cwd=folder, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path
                                                             if p),
                 "HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1",
             "SOFTXENT_CACHE_DIR": str(_cache.directory())},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert not os.listdir(folder)
        return done.stdout

    return run


def test_imports_nothing_heavy(fresh):
    """NumPy and the standard library; of us, no extension and no backend."""
    fresh("""
        import sys
        import numpy
        before = set(sys.modules)
        import softxent
        new = {name for name in set(sys.modules) - before}
        roots = {name.split(".")[0] for name in new}
        foreign = roots - set(sys.stdlib_module_names) - {"softxent", "numpy"}
        assert not foreign, foreign
        slow = {"asyncio", "multiprocessing", "concurrent", "ctypes", "subprocess", "email",
                "importlib.metadata", "sqlite3", "unittest", "cProfile", "argparse"}
        assert not slow & new, slow & new
        ours = {name for name in new if name.startswith("softxent")}
        assert not {name for name in ours if sys.modules[name].__file__.endswith(".so")}
        assert not {name for name in ours if "backends.c" in name or "backends.r" in name}
    """)


@linux
@pytest.mark.parametrize("backend", ["", *BACKENDS])
def test_starts_no_thread_and_loads_no_runtime(fresh, backend):
    """At import, and (a serial call) afterwards."""
    fresh("""
        import os, sys, threading
        import numpy as np
        import numpy.linalg
        def state():
            with open("/proc/self/maps") as maps:
                libraries = {line.split()[-1] for line in maps if ".so" in line}
            return len(os.listdir("/proc/self/task")), {
                name for name in libraries
                if any(part in name for part in ("gomp", "omp5", "libomp", "tbb", *compilers))}
        # Numba's machine code comes out of the cache: it takes LLVM's loader, not Numba.
        compilers = () if sys.argv[1] == "numba" else ("LLVM", "llvm")
        before = state()
        import softxent as sx
        if sys.argv[1]:
            sx.cross_entropy_with_grad(np.zeros((3000, 99)), np.zeros(3000, int), n_threads=1,
                                       backend=sys.argv[1])
        assert state() == before, (before, state())
        assert threading.active_count() == 1
        assert "numba" not in sys.modules
    """, backend)


def test_writes_no_file(fresh):
    """No open for writing, no folder made, no process started: as the audit hook sees it."""
    fresh("""
        import os, sys
        import numpy as np
        seen = []
        def hook(event, arguments):
            writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
            if event == "open" and (arguments[2] or 0) & writing:
                seen.append((event, arguments))
            elif event.split(".")[0] in ("subprocess", "socket", "shutil", "tempfile"):
                seen.append((event, arguments))
            elif event in ("os.mkdir", "os.rename", "os.remove", "os.system", "os.fork"):
                seen.append((event, arguments))
        sys.addaudithook(hook)
        with open(os.devnull, "w"):
            pass
        assert len(seen) == 1, "the hook sees nothing"
        import softxent as sx
        for backend, state in sx.available_backends().items():
            if state == "available":
                sx.cross_entropy_with_grad(np.zeros((3, 9)), [0, 1, 2], backend=backend)
        assert len(seen) == 1, seen
    """)


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaves_the_float_state(fresh, backend):
    """MXCSR to the bit, flags included, and subnormal numbers still count; also after a call."""
    fresh("""
        import sys
        import numpy as np
        try:
            from softxent._native import float_state
        except ImportError:
            float_state = int
        tiny = np.array([np.finfo(np.float32).smallest_subnormal] * 64)
        half = np.array([sys.float_info.min / 2] * 64)
        def subnormals():
            return ((tiny + tiny) / 2).tolist(), (half / 2 * 2).tolist(), (tiny * 1).tolist()
        expected = [2.0**-149] * 64, [2.0**-1023] * 64, [2.0**-149] * 64
        assert subnormals() == expected
        import softxent as sx
        assert subnormals() == expected
        z = np.linspace(-200, 5, 700).reshape(10, 70)
        for dtype in ("f4", "f8"):
            for n_threads in (1, 2):
                before = float_state()
                sx.softmax(z.astype(dtype), backend=sys.argv[1], n_threads=n_threads)
                if sys.argv[1] != "numpy":
                    logits = z.astype(dtype)
                    before = float_state()
                    sx.cross_entropy_with_grad(logits, np.zeros(10, int), backend=sys.argv[1],
                                               n_threads=n_threads, reduction="none")
                    assert float_state() == before, (hex(before), hex(float_state()))
                assert float_state() & 0xFFC0 == before & 0xFFC0
                assert subnormals() == expected
    """, backend)


def test_version_costs_an_import_nothing(fresh):
    """`__version__` is looked up when it is asked for; other names are refused as usual."""
    fresh("""
        import sys
        import softxent
        assert "importlib.metadata" not in sys.modules
        try:
            softxent.no_such_name
        except AttributeError as error:
            assert "no_such_name" in str(error)
        else:
            raise AssertionError
    """)
