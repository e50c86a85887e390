"""What is the Numba backend's own: its cache, where it is missing or broken, and without the pool.

That it computes the same as every other backend is all other tests' matter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import softxent as sx
from softxent import _cache

numba = pytest.mark.skipif(sx.available_backends()["numba"] != "available",
                           reason="the Numba backend is not available")
#: What a script needs that calls, in each situation below; `without()` makes modules unimportable.
HEAD = """
import sys, warnings
import numpy as np
def without(*names):
    sys.modules.update(dict.fromkeys(names))
def call(backend=None, **options):
    import softxent as sx
    rng = np.random.default_rng(3)
    z = rng.standard_normal((500, 70)) * 5
    loss, grad = sx.cross_entropy_with_grad(z, rng.integers(0, 70, 500), reduction="none",
                                            backend=backend, **options)
    return loss.tobytes() + grad.tobytes()
"""


@pytest.fixture
def run(tmp_path):
    """A function that runs a script in an interpreter of its own and returns what it printed."""

    def run(script, *, warnings="error", cache=None, path=(), timeout=200):
        done = subprocess.run(
            [sys.executable, "-W", warnings, "-c", HEAD + textwrap.dedent(script)],
            capture_output=True, text=True, timeout=timeout, check=False,
            env={**os.environ, "SOFTXENT_CACHE_DIR": str(cache or _cache.directory()),
                 "PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, sys.path)])})
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


# ---- the cache -----------------------------------------------------------------------------------


@numba
def test_a_second_process_needs_no_numba(run):
    run("""
        call("numba")
        assert "llvmlite" in sys.modules
        assert "numba" not in sys.modules
    """)


@numba
def test_sources_and_versions_decide_what_the_cache_is_for(monkeypatch):
    from softxent.backends.numba import _backend

    before = _backend._key("v3")
    assert before != _backend._key("v4")
    monkeypatch.setattr(_backend.importlib.metadata, "version", lambda name: "0")
    assert before != _backend._key("v3")


# ---- where something is missing ------------------------------------------------------------------


@numba
def test_without_the_extension_numba_serves(run):
    """Cython's bits, on Python threads, whatever their number."""
    run("""
        import softxent as sx
        reference = call("cython") if sx.available_backends()["cython"] == "available" else None
        for name in [name for name in sys.modules if name.startswith("softxent")]:
            del sys.modules[name]
        without("softxent._native", "softxent.backends.cython._bind")
        import softxent as sx
        states = sx.available_backends()
        assert states["cython"] != "available"
        assert states["numba"] == "available"
        plan = sx.explain((500, 70), "float64")
        assert plan.backend == "numba", plan
        serial = call(n_threads=1)
        assert reference in (None, serial)
        z = np.random.default_rng(0).standard_normal((40_000, 70))
        y = np.zeros(len(z), int)
        one = sx.cross_entropy_with_grad(z, y, n_threads=1)
        two = sx.cross_entropy_with_grad(z, y, n_threads=2)
        assert one[0] == two[0]
        assert one[1].tobytes() == two[1].tobytes()
    """)


@numba
def test_without_the_extension_ctrl_c_ends_a_call(run):
    """In the middle of one row, and nothing hangs on."""
    run("""
        import os, signal, threading, time
        without("softxent._native")
        import softxent as sx
        signal.signal(signal.SIGINT, signal.default_int_handler)
        z = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (1, 1 << 33), (0, 0))
        sx.logsumexp(z[:, :99], backend="numba")
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            sx.logsumexp(z, backend="numba")
        except KeyboardInterrupt:
            print("interrupted")
        sx.logsumexp(z[:, :99], backend="numba")
    """)


def test_without_numba_nothing_is_said(run):
    run("""
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: name != "numba" and find(name, *rest) or None
        import softxent as sx
        assert sx.available_backends()["numba"] == "Numba is not installed"
        call()
        try:
            call("numba")
        except sx.BackendUnavailableError as error:
            assert "Numba is not installed" in str(error)
        else:
            raise AssertionError
    """)


def test_a_broken_numba_is_said_once_and_the_next_backend_serves(run, tmp_path):
    """Only by those who come to it: without the extension, or who ask for it."""
    (tmp_path / "numba.py").write_text('raise ImportError("NumPy is too new")')
    (tmp_path / "cache").mkdir()
    run("""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            import softxent as sx
            if sx.explain((4, 4)).backend == "cython":
                call()
                assert not seen, seen
            without("softxent._native", "softxent.backends.cython._bind")
            from softxent import _plan, _threads
            from softxent.backends.cython import _backend
            for cached in (_backend._load, _threads.native, _plan._plan):
                cached.cache_clear()
            reference = call("numpy")
            assert not seen, seen
            assert call() == reference
            assert call() == reference
            call(temperature=2.0)
        assert [str(one.category) for one in seen] == [str(RuntimeWarning)], seen
        assert "NumPy is too new" in str(seen[0].message)
        assert "NumPy is too new" in sx.available_backends()["numba"]
        assert "NumPy is too new" in sx.explain((4, 4)).why["numba"]
    """, path=[tmp_path], cache=tmp_path / "cache")


@pytest.mark.parametrize("isa", ["v2"])
def test_no_fma_no_numba(isa, monkeypatch):
    monkeypatch.setenv("SOFTXENT_MAX_ISA", isa)
    if sx.explain((4, 4)).backend == "cython":
        assert "FMA" in sx.available_backends()["numba"]


# ---- machine code --------------------------------------------------------------------------------


@numba
def test_what_is_compiled_calls_nothing_else(monkeypatch):
    """No math library, no Numba runtime: a table of what an object may ask the process for."""
    from llvmlite import binding

    from softxent.backends.numba import _backend, _build

    level = _backend.BACKEND.isa()
    for walk in _build.WALKS:
        code = _cache.read(f"{walk}-{level}", _backend._key(level))
        assert code is not None
        allowed = {"malloc", "free", "memcpy", "memset", "memmove", "PyEval_SaveThread",
                   "PyEval_RestoreThread", "PyObject_CallNoArgs", "PyObject_IsTrue", "Py_DecRef"}
        binding.object_file.ObjectFileRef.from_data(code)
        names = undefined(code)
        assert names <= allowed, (walk, names - allowed)


def undefined(code: bytes) -> set[str]:
    """Names that an ELF object leaves to be found elsewhere (its symbol table, by hand)."""
    if code[:4] != b"\x7fELF":
        pytest.skip("not an ELF object")
    at, size, count = np.frombuffer(code, "<u8", 1, 40)[0], *np.frombuffer(code, "<u2", 2, 58)
    header = np.dtype([("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("addr", "<u8"),
                       ("offset", "<u8"), ("size", "<u8"), ("link", "<u4"), ("info", "<u4"),
                       ("align", "<u8"), ("entsize", "<u8")])
    assert size == header.itemsize
    sections = np.frombuffer(code, header, count, at)
    symbol = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"),
                       ("value", "<u8"), ("size", "<u8")])
    (table,) = sections[sections["type"] == 2]
    symbols = np.frombuffer(code, symbol, int(table["size"]) // symbol.itemsize, table["offset"])
    strings = int(sections[table["link"]]["offset"])
    names = {code[(start := strings + int(one["name"])): code.index(b"\0", start)].decode()
             for one in symbols[1:] if one["section"] == 0}
    return names - {""}


@numba
def test_the_structures_are_as_ctypes_lays_them_out():
    """The control block is the pool's: its first fields are those of `_control.h`."""
    from softxent.backends.numba import _layout

    assert [name for name, _ in _layout.Control._fields_[:3]] == ["elements", "poll", "owner"]
    assert _layout.Control.owner.offset == 16


@numba
@pytest.mark.parametrize("digits", [
    "0", "-0", "1", "-2.5", "1e-320", "5e-324", "2e-324", "1e-400", "-1e-4900", "1e308", "1.8e308",
    "1e4000", "-1e4000", "inf", "-inf", "nan", "7.4e-324", "2.2250738585072012e-308",
    "1.00000000000000011102230246251565404236316680908203125",  # 1 + 2^-53: a tie, to even
    "1.00000000000000011113072267976",  # 1 + 2^-53 + 2^-63
    "1.00000000000000033306690738754696212708950042724609375",  # 1 + 3 2^-53: a tie, to even
])
@pytest.mark.parametrize("order", ["=", "S"])
def test_long_doubles_are_read_as_c_reads_them(digits, order):
    """As factors, which the Cython walk reads through the C compiler's conversion."""
    if sx.available_backends()["cython"] != "available":
        pytest.skip("no Cython walk to compare with")
    wide = np.longdouble(digits)
    u = np.array([[wide, 1, -3, 0.25]], np.longdouble)
    u = u.astype(u.dtype.newbyteorder(order))
    p = np.array([[0.5, 0.25, 0.125, 0.125]])
    ours = sx.softmax_vjp(p, u, backend="numba")
    theirs = sx.softmax_vjp(p, u, backend="cython")
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(np.signbit(ours), np.signbit(theirs))
