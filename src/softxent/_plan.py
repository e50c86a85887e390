"""Which backend, and how many threads: pure, printable, decided from shapes and types alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from softxent import _threads
from softxent._machine import last_level_cache
from softxent._settings import Setting, environment, snapshot
from softxent.backends import BACKENDS, backend
from softxent.backends._contract import Key

# A second thread pays from about 50 us of one thread's work where calls follow each other, and from
# 150 us where its workers have parked in between, as in a trainer: a virtual machine takes
# 20-50 us to wake one. By what an element takes: rows of up to 64 classes, longer rows. Measured by
# `python benchmarks/threads.py` on an EPYC (Zen 4, AVX-512), 2 cores, November 2026, float32;
# float64 counts double.
PARALLEL_FROM_NS = 150_000.0
SHORT_ROWS = 64
NS_SHORT, NS_LONG = 2.6, 0.7
# Rows are handed out in pieces of at least this many elements, and about this many pieces a
# thread: small enough to even out cores of unequal speed, large against taking a piece (0.1 us).
PIECE_FROM = 8_192
PIECES_PER_THREAD = 8
# Rows from this many bytes on may be stored past the caches: of shorter ones too many lines have
# two rows' ends in them. Time with normal stores over time past the caches, two threads, float32,
# on an EPYC (Zen 4, AVX-512), 2 cores, November 2026: rows of 1,028 bytes .84, 4,000 1.0, 16,396
# 1.07, 128,000 1.13.
STREAMED_ROW = 8_192
# Rows a kernel may want to treat together: a piece is a multiple of it where rows are short.
ROWS_TOGETHER = 32


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for cannot be used; the message says why, and which can."""


@dataclass(frozen=True)
class Plan:
    """How one call is carried out; `print()` it.

    Attributes
    ----------
    backend : str
        "cython", "numba" or "numpy".
    kernel : str
        What runs: operation, dtype and layout.
    isa : str
        Instruction set: "v2", "v3", "v4" (x86-64 levels), "generic"; "" for NumPy's own.
    n_threads : int
        Threads that take part.
    grain : int
        Rows a thread takes at a time.
    streams : bool
        Whether the gradient goes to memory past the caches: into a `grad_out` of its own that,
        with the logits, is larger than they are.
    why : dict of str to str
        Backend name: why it was chosen or passed over.
    """

    backend: str
    kernel: str
    isa: str
    n_threads: int
    grain: int
    streams: bool
    why: dict[str, str]

    def __str__(self) -> str:
        """Return the plan in lines for people."""
        level = f" ({self.isa})" if self.isa else ""
        threads = f"{self.n_threads} thread{'s' if self.n_threads > 1 else ''}"
        stores = ", stored past the caches" if self.streams else ""
        lines = [f"{self.kernel}: {self.backend}{level}, {threads}, {self.grain} rows at a time"
                 f"{stores}"]
        width = max(map(len, self.why))
        lines += [f"  {name:<{width}}  {reason}" for name, reason in self.why.items()]
        return "\n".join(lines)


def _parse_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(name)
    return name


def _check_name(name: str | None) -> str | None:
    if name is None or name in BACKENDS:
        return name
    known = ", ".join(map(repr, BACKENDS))
    if isinstance(name, str):
        raise ValueError(f"backend must be one of {known}, or None for the fastest; got {name!r}")
    raise TypeError(f"backend must be one of {known}, or None; got {type(name).__name__}")


_setting: Setting[str | None] = Setting(None)


def set_backend(name: str | None) -> object:
    """Choose the backend of every call that does not name one.

    A call sets the process's default; as a context manager it holds for the current context
    (thread, task) and is undone at its end.

    Parameters
    ----------
    name : {"cython", "numba", "numpy"} or None
        None lets dispatch choose (or `SOFTXENT_BACKEND`, where that is set).

    Returns
    -------
    context manager
        Need not be entered.

    Raises
    ------
    BackendUnavailableError
        If the backend cannot be used here.
    ValueError, TypeError
        If there is no backend of that name.

    See Also
    --------
    available_backends : what can be chosen here, and why something cannot.
    explain : what a call would use.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> with sx.set_backend("numpy"):
    ...     sx.cross_entropy(np.array([[2.0, 0.0]]), [0])
    0.1269280110429725
    """
    _check_name(name)
    if name is not None:
        _require(name)
    return _setting.set(name)


def available_backends() -> dict[str, str]:
    """Return every backend's name with "available", or with the reason why it is not.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.available_backends()["numpy"]
    'available'
    """
    return {name: backend(name).availability() for name in BACKENDS}


def _require(name: str) -> None:
    reason = backend(name).availability()
    if reason != "available":
        others = [other for other, state in available_backends().items() if state == "available"]
        raise BackendUnavailableError(
            f"backend {name!r} cannot be used: {reason}; available: {', '.join(others)}"
        )


def select(
    key: Key, n_rows: int, n_classes: int, requested: str | None, n_threads: int | None
) -> Plan:
    """Return the plan for one call.

    `requested`, else `set_backend`, else `SOFTXENT_BACKEND` forces a backend; a forced one that
    cannot serve raises `BackendUnavailableError`. Otherwise the first of `BACKENDS` that can.
    """
    wanted = None if n_threads is None else _threads.check(n_threads)
    ns = n_rows * n_classes * (NS_SHORT if n_classes <= SHORT_ROWS else NS_LONG)
    if key.dtype == "float64":
        ns *= 2.0
    # Asking how many threads there are costs more than a small call should.
    may = _threads.effective_threads(wanted) if ns >= PARALLEL_FROM_NS and n_rows > 1 else 1
    forced = _check_name(requested) or _setting.get()
    return _plan(key, n_rows, n_classes, forced, may, snapshot(_VARIABLES))


_VARIABLES = ("SOFTXENT_BACKEND", "SOFTXENT_MAX_ISA")


@functools.lru_cache(maxsize=256)
def _plan(key: Key, n_rows: int, n_classes: int, forced: str | None, n_threads: int,
          environment_now: tuple[object, ...]) -> Plan:
    # environment_now: what `environment` reads below, for the cache to tell plans apart.
    by = "asked for"
    if forced is None:
        forced = environment("SOFTXENT_BACKEND", _parse_backend, " or ".join(BACKENDS))
        by = "SOFTXENT_BACKEND"
    why: dict[str, str] = {}
    chosen = ""
    for name in BACKENDS:
        if forced is not None and name != forced:
            why[name] = f"not asked for: {forced} is"
        elif chosen:
            why[name] = f"{chosen} comes first"
        else:
            reason = backend(name).supports(key)
            if reason is None:
                chosen = name
                reason = by if forced else "first of those that can"
            why[name] = reason
    if not chosen:
        assert forced is not None, "the last backend serves everything"
        _require(forced)
        raise BackendUnavailableError(f"backend {forced!r} cannot serve this call: {why[forced]}")
    threads = min(n_threads, max(n_rows, 1)) if backend(chosen).parallel else 1
    kernel = " ".join(filter(None, (key.op.name.lower(), key.targets, key.dtype, key.order)))
    return Plan(chosen, kernel, backend(chosen).isa(), threads, _grain(n_rows, n_classes, threads),
                _streams(key, n_rows, n_classes), why)


def _streams(key: Key, n_rows: int, n_classes: int) -> bool:
    """Return whether the map is to go past the caches."""
    size = {"float32": 4, "float64": 8}.get(key.dtype, 0)
    row = n_classes * size
    return (key.apart and key.order == "C" and row >= STREAMED_ROW
            and 2 * n_rows * row > last_level_cache())


def _grain(n_rows: int, n_classes: int, threads: int) -> int:
    """Return the rows that a thread takes at a time."""
    grain = max(-(-PIECE_FROM // n_classes), -(-n_rows // (PIECES_PER_THREAD * max(threads, 1))))
    if grain > 1:
        grain = -(-grain // ROWS_TOGETHER) * ROWS_TOGETHER
    return max(1, min(grain, n_rows))
