"""Which backend, and how many threads: pure, printable, decided from shapes and types alone."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

from softxent import _threads
from softxent._machine import last_level_cache
from softxent._settings import Setting, environment, key_of_variable, lookup
from softxent._tuning import SHORT_ROWS, Tuning, current
from softxent.backends import BACKENDS, backend
from softxent.backends._contract import BLOCK, CUT_ROWS, Key

# Rows are handed out in pieces that take this long at least, and about this many pieces a thread:
# small enough to even out cores of unequal speed, large against starting one (0.5 us).
PIECE_NS = 5_000.0
PIECES_PER_THREAD = 8
# Rows of fewer classes are not cut: there is a stage more to hand over, and in place exp is taken
# twice.
CUT_FROM = 64 * BLOCK
# Rows a kernel treats together: a piece is a multiple of it where rows are short, class-major, or
# many. Of few long ones that would be all there are, and one thread's; of class-major ones a line
# of memory has sixteen.
ROWS_TOGETHER = 32
LINE_OF_ROWS = 16
# Bytes of a row whose e a walk keeps between its passes (call.h, SX_KEPT). What further e are worth
# by the row's length in it, on an EPYC (Zen 3), one thread and two. Stored past the caches, exp
# taken again: 64 x 262,144 float32 1.14 to 1.18 times as fast as with normal stores, 64 x 524,288
# 1.32 and 1.05. Kept in the output: beside that, 64 x 524,288 0.98 and 0.95, 20 x 700,000 1.24 and
# 1.03, 16 x 1,000,000 1.10 and 1.04; of doubles, whose exp takes longer, 32 x 131,072 1.01, 16 x
# 262,144 1.18 and 1.13, 16 x 1,000,000 1.21 and 1.06. But with other memory at work between, 16 x
# 1,000,000 float32 takes 1.03 to 1.13 and 1.10 times as long with e in the output: of doubles only.
KEPT_ROW = 622_592
STREAMED_DOUBLES = 2 * KEPT_ROW
# How much of the last cache logits and gradient may have and still go there. By trial on an EPYC
# (Zen 3), rows of 2,000 float32, two threads, the time with normal stores over that past the
# caches: 16 MB of 32 1.15, followed by a sum of the gradient 1.05, by a product with it 0.95; 25 MB
# 1.21, 1.06 and 1.04; 8 MB 1.06, 0.81 and 0.92.
STREAMED_SHARE = 0.75


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for cannot be used; the message says why, and which can."""


@dataclass(frozen=True, slots=True)
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
        Rows a thread takes at a time; where rows are cut, blocks of 1,024 classes.
    cut : bool
        Whether rows are cut among threads: few of them, of many classes.
    wakes : bool
        Whether threads that sleep are woken for it. If not, only a call that follows another
        closely has more than one.
    streams : bool
        Whether the gradient goes to memory past the caches: into a `grad_out` of its own that,
        with the logits, would take up most of them.
    seconds : float
        What it is estimated to take on one thread: what threads are chosen by.
    why : dict of str to str
        Backend name: why it was chosen or passed over.
    """

    backend: str
    kernel: str
    isa: str
    n_threads: int
    grain: int
    cut: bool
    wakes: bool
    streams: bool
    seconds: float
    why: dict[str, str]
    # The kernel that takes `call.h`'s arguments, if there is one: its address; the blocks of all
    # rows, and the bytes that it has for their sums, or 0.
    entry: tuple[int, int, int] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """Return the plan in lines for people."""
        level = f" ({self.isa})" if self.isa else ""
        threads = f"{self.n_threads} thread{'s' if self.n_threads > 1 else ''}"
        stores = ", stored past the caches" if self.streams else ""
        what = "blocks of a row" if self.cut else "rows"
        if not self.wakes:
            threads += " (if awake)"
        lines = [f"{self.kernel}: {self.backend}{level}, {threads}, {self.grain} {what} at a time"
                 f"{stores}"]
        lines[0] += f"; about {self.seconds * 1e6:,.3g} us on one thread"
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
    # Asking how many threads there are costs more than a small call should.
    may = _threads.effective_threads(wanted) if may_share(key, n_rows, n_classes) else 1
    forced = _check_name(requested) or _setting.get()
    get = lookup()
    return _plan(key, n_rows, n_classes, forced, may, (get(_BACKEND), get(_MAX_ISA)))


def may_share(key: Key, n_rows: int, n_classes: int) -> bool:
    """Return whether a call is one for several threads, where there are some."""
    tuning = current()
    return n_rows * tuning.row(key.dtype, n_classes) >= tuning.parallel_from_ns


_BACKEND = key_of_variable("SOFTXENT_BACKEND")
_MAX_ISA = key_of_variable("SOFTXENT_MAX_ISA")


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
    tuning = current()
    preferred = tuning.backend.get(key.dtype)
    for name in sorted(BACKENDS, key=lambda name: name != preferred):
        if forced is not None and name != forced:
            why[name] = f"not asked for: {forced} is"
        elif chosen:
            why[name] = f"{chosen} comes first"
        else:
            reason = backend(name).supports(key)
            if reason is None:
                chosen = name
                reason = by if forced else (
                    "fastest, as measured here" if name == preferred else "first of those that can")
            why[name] = reason
    if not chosen:
        assert forced is not None, "the last backend serves everything"
        _require(forced)
        raise BackendUnavailableError(f"backend {forced!r} cannot serve this call: {why[forced]}")
    serves = backend(chosen)
    threads = n_threads if serves.parallel else 1
    row_ns = tuning.row(key.dtype, n_classes)
    wakes = n_rows * row_ns >= tuning.wakes_from_ns
    # Rows that do not go round evenly, and are worth what two more hand-overs take.
    cut = (threads > 1 and 0 < n_rows < min(2 * threads, CUT_ROWS + 1) and n_classes >= CUT_FROM
           and serves.cuts(key))
    if not cut:
        threads = min(threads, max(n_rows, 1))
    what = " ".join(filter(None, (key.op.name.lower(), key.targets, key.dtype, key.order)))
    blocks = -(-n_classes // BLOCK)
    least = (ROWS_TOGETHER if n_classes <= SHORT_ROWS else
             LINE_OF_ROWS if key.order != "C" else 1)
    grain = (_grain(n_rows * blocks, row_ns / blocks, threads, 1) if cut
             else _grain(n_rows, row_ns, threads, least))
    isa = serves.isa()
    units = n_rows * blocks if cut else 0
    kernel = serves.kernel(key, isa, units)
    return Plan(chosen, what, isa, threads, grain, cut, wakes or threads == 1,
                _streams(key, n_rows, n_classes, tuning), n_rows * row_ns * 1e-9, why,
                kernel and (kernel[0], units, kernel[1]))


#: Another object from when on plans are other ones.
epoch = object()


def forget_plans() -> None:
    """Make later calls plan anew, by another tuning."""
    global epoch
    _plan.cache_clear()
    epoch = object()


def _streams(key: Key, n_rows: int, n_classes: int, tuning: Tuning) -> bool:
    """Return whether the map is to go past the caches."""
    size = {"float64": 8, "float32": 4}.get(key.dtype, 2)
    row = n_classes * size
    return (key.apart and key.order == "C" and tuning.streamed_row <= row
            and (key.dtype != "float64" or row <= STREAMED_DOUBLES)
            and 2 * n_rows * row > STREAMED_SHARE * last_level_cache())


def _grain(n_units: int, unit_ns: float, threads: int, least: int) -> int:
    """Return the rows, or blocks, that a thread takes at a time: a multiple of `least`, or one."""
    grain = max(math.ceil(PIECE_NS / unit_ns), -(-n_units // (PIECES_PER_THREAD * max(threads, 1))))
    if grain > 1:
        group = ROWS_TOGETHER if grain > ROWS_TOGETHER else least
        grain = -(-grain // group) * group
    return max(1, min(grain, n_units))
