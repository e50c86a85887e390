"""`tune`: measures on this machine what `_plan` decides by."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softxent import _plan, _tuning
from softxent._machine import last_level_cache
from softxent._threads import effective_threads
from softxent._tuning import SHORT_ROWS, Tuning
from softxent.losses.cross_entropy import cross_entropy_with_grad

#: (rows, classes) that the time of a row and of a logit are fitted to: two of each class of shapes,
#: 64 Ki logits and more, so that a call's own cost does not count.
SHAPES = ((32_768, 2), (4_096, 32), (1_024, 100), (64, 4_096))
#: Rounds of a comparison, at the least; more while there is time.
ROUNDS = 5
#: As long as a worker takes to park.
PARKED_SECONDS = 3e-4
#: Work in us at which one thread and two are compared.
WORK = (5, 10, 15, 20, 30, 45, 70, 100, 150, 220, 330, 500)
#: Classes at which stores are compared, float32, and the bytes of the logits; of a processor whose
#: caches hold them and the gradient too, what it had is kept.
STREAMED = (512, 1_024, 2_048, 4_096, 8_192, 32_768)
STREAMED_BYTES = 1 << 26

Call = Callable[[], object]


class _Clock:
    """Hands out the time that is left, in equal parts to the comparisons that are left."""

    def __init__(self, seconds: float, parts: int) -> None:
        self.end = time.perf_counter() + seconds
        self.parts = parts

    def share(self) -> float:
        """Return when the next comparison is to end."""
        now = time.perf_counter()
        until = now + max(0.0, self.end - now) / max(self.parts, 1)
        self.parts -= 1
        return until


def _compare(calls: Sequence[Call], until: float, pause: float = 0.0) -> list[float]:
    """Return each call's median seconds, of rounds in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    while len(times[0]) < ROUNDS or (time.perf_counter() < until and len(times[0]) < 200):
        for values, call in zip(times, calls, strict=True):
            if not pause:
                call()
                call()
            else:
                time.sleep(pause)
            begin = time.perf_counter()
            call()
            values.append(time.perf_counter() - begin)
    return [statistics.median(values) for values in times]


def _arrays(n: int, c: int, dtype: Any) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, c), dtype), rng.integers(0, c, n)


def _fit(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return the ns of a row and of a logit that go with (classes, ns a row)."""
    if len({c for c, _ in points}) < 2:
        c, ns = points[0]
        return 0.0, ns / c
    slope, ground = np.polyfit([c for c, _ in points], [ns for _, ns in points], 1)
    return max(float(ground), 0.0), max(float(slope), 0.01)


def _crossover(works: Sequence[float], gains: Sequence[bool]) -> float:
    """Return the least work from which every larger one gains; inf: the largest does not."""
    least = math.inf
    for work, gain in zip(reversed(works), reversed(gains), strict=True):
        if not gain:
            break
        least = work
    return least


def tune(
    *,
    shapes: Iterable[tuple[int, int]] | None = None,
    dtypes: Iterable[str] = ("float32", "float64"),
    seconds: float = 30.0,
    save: bool = True,
) -> Tuning:
    """Measure where backends, threads and stores cross over on this machine, and go by it.

    What is computed stays the same to the bit; only how fast may change. Let nothing else run.

    Parameters
    ----------
    shapes : iterable of (rows, classes), optional
        What the time of a call is estimated from; None: some of few and of many classes.
    dtypes : iterable of {"float32", "float64"}
        The dtypes to measure; the other keeps what it had.
    seconds : float
        About how long it may take; less than a few seconds measure little.
    save : bool
        Keep the result in the cache directory (`SOFTXENT_CACHE_DIR`), for this processor and these
        versions: later processes read it. A file that is damaged or another's is ignored.

    Returns
    -------
    Tuning
        What calls of this process go by from now on; `print()` it. `explain` shows what follows.

    Raises
    ------
    ValueError
        A dtype, a shape or a time that cannot be measured.

    Examples
    --------
    >>> import softxent as sx
    >>> tuning = sx.tune(seconds=0.5, dtypes=["float32"], save=False)  # doctest: +SKIP
    """
    wanted = tuple(dtypes)
    unknown = [dtype for dtype in wanted if dtype not in ("float32", "float64")]
    if unknown or not wanted:
        raise ValueError(f"dtypes must be of 'float32' and 'float64', got {wanted!r}")
    chosen = SHAPES if shapes is None else tuple((int(n), int(c)) for n, c in shapes)
    if not chosen or min(min(shape) for shape in chosen) < 1:
        raise ValueError(f"shapes must be (rows, classes), both at least 1; got {chosen!r}")
    if not 0.0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive and finite, got {seconds!r}")
    many = effective_threads(None) > 1
    parts = len(chosen) * len(wanted) + (2 * len(WORK) + len(STREAMED)) * many
    clock = _Clock(seconds, parts)
    before = _tuning.current()
    tuning = replace(before, measured=True)
    try:
        for dtype in wanted:
            tuning = _tune_costs(tuning, dtype, chosen, clock)
        if many:
            # Comparisons of 1 thread and 2 that a threshold would not let happen.
            _adopt(replace(tuning, parallel_from_ns=0.0, wakes_from_ns=0.0))
            tuning = replace(tuning, parallel_from_ns=_from(tuning, 0.0, clock))
            tuning = replace(tuning, wakes_from_ns=max(
                tuning.parallel_from_ns, _from(tuning, PARKED_SECONDS, clock)))
            tuning = replace(tuning, streamed_row=_streamed(tuning, clock))
    except BaseException:
        _adopt(before)
        raise
    _adopt(tuning)
    if save:
        _tuning.store(tuning)
    return tuning


def _adopt(tuning: Tuning) -> None:
    _tuning.adopt(tuning)
    _plan.forget_plans()


def _tune_costs(
    tuning: Tuning, dtype: str, shapes: Sequence[tuple[int, int]], clock: _Clock
) -> Tuning:
    """Fit a dtype's costs, and prefer the backend that takes less."""
    names = [name for name, state in _plan.available_backends().items()
             if state == "available" and name != "numpy"] or ["numpy"]
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for n, c in shapes:
        z, y = _arrays(n, c, dtype)
        grad = np.empty_like(z)

        def call(name: str, z: NDArray[np.floating] = z, y: NDArray[np.int64] = y,
                 grad: NDArray[np.floating] = grad) -> object:
            return cross_entropy_with_grad(z, y, grad_out=grad, backend=name, n_threads=1)

        times = _compare([lambda name=name: call(name) for name in names],  # type: ignore[misc]
                         clock.share())
        for name, taken in zip(names, times, strict=True):
            points[name].append((c, taken / n * 1e9))
    best = min(names, key=lambda name: math.prod(ns for _, ns in points[name]))
    rows, elements = list(tuning.row_ns[dtype]), list(tuning.element_ns[dtype])
    for long in (False, True):
        of_class = [(c, ns) for c, ns in points[best] if (c > SHORT_ROWS) == long]
        if of_class:
            rows[long], elements[long] = _fit(of_class)
    return replace(
        tuning,
        row_ns={**tuning.row_ns, dtype: (rows[0], rows[1])},
        element_ns={**tuning.element_ns, dtype: (elements[0], elements[1])},
        backend={**tuning.backend, dtype: best},
    )


def _from(tuning: Tuning, pause: float, clock: _Clock) -> float:
    """Return the ns of work from which a second thread pays, `pause` seconds after another call."""
    works, gains = [], []
    for work in WORK:
        n = max(2, round(work * 1e3 / tuning.row("float32", 10)))
        z, y = _arrays(n, 10, "float32")
        grad = np.empty_like(z)
        calls = [lambda k=k, z=z, y=y, grad=grad: cross_entropy_with_grad(
            z, y, grad_out=grad, n_threads=k) for k in (1, 2)]
        one, two = _compare(calls, clock.share(), pause)
        works.append(work * 1e3)
        gains.append(two < 0.95 * one)
    return min(_crossover(works, gains), 1e9)


def _streamed(tuning: Tuning, clock: _Clock) -> float:
    """Return the bytes of a row from which stores past the caches pay."""
    if last_level_cache() >= 2 * STREAMED_BYTES:
        return tuning.streamed_row
    sizes, gains = [], []
    # Drawn once: it takes longer than what is measured.
    numbers = _arrays(1, STREAMED_BYTES // 4, "float32")[0]
    room = np.empty_like(numbers)
    for c in STREAMED:
        z, grad = numbers.reshape(-1, c), room.reshape(-1, c)
        y = np.arange(len(z)) % c

        def call(row: float, z: NDArray[np.floating] = z, y: NDArray[np.int64] = y,
                 grad: NDArray[np.floating] = grad) -> object:
            _adopt(replace(tuning, streamed_row=row))
            return cross_entropy_with_grad(z, y, grad_out=grad)

        normal, streamed = _compare([lambda: call(math.inf), lambda: call(0.0)],
                                    clock.share())
        sizes.append(4.0 * c)
        gains.append(streamed < 0.98 * normal)
    return _crossover(sizes, gains)
