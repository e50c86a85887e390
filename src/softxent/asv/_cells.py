"""What the benchmarks share: arrays, what must be there, how long to measure.

asv takes from a class its `params` and the attributes named here, makes a process a cell, calls
`setup`, and then the benchmark again and again. `setup` is called before each sample too: it must
cost little the second time, and leave everything as it was, the caches of the processor above all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shapes import Shape

BACKENDS = ("cython", "numba", "numpy")
#: More than a machine has are skipped.
THREADS = (1, 2)


class Timed:
    """How long asv measures a `time_` cell: about a second, interpreter included, in each round.

    Two rounds are two processes: where a process's pages happen to lie is worth some percent, and
    does not show within one. In each a sample is 10 ms of calls, or one call that takes longer, and
    there are up to 10 within half a second, at least 2: a median that one disturbance cannot move.
    """

    #: A benchmark's identity. Raised by hand when what it measures changes: without it asv takes a
    #: hash of the source, and a comment that is edited ends the series.
    version = "1"
    rounds = 2
    repeat = (2, 10, 0.5)
    sample_time = 0.01
    warmup_time = 0.1
    #: A first call on Numba may compile for a minute.
    timeout = 300


@functools.lru_cache(maxsize=1)
def arrays(shape: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return logits and targets of a shape in the project's text form; skip what cannot be had."""
    try:
        return Shape.parse(shape).arrays()
    except ImportError as error:
        raise NotImplementedError(str(error)) from error


@functools.lru_cache(maxsize=1)
def room(shape: str) -> NDArray[Any]:
    """Return memory for a gradient, of which all pages are there."""
    return np.zeros_like(arrays(shape)[0])


@functools.lru_cache(maxsize=1)
def scratch(shape: str) -> NDArray[Any]:
    """Return logits that may be overwritten; what they become takes as long as what they were."""
    return arrays(shape)[0].copy(order="K")


def require(backend: str, n_threads: int = 1) -> None:
    """Skip the cell unless the commit has the backend, and the machine the threads."""
    import softxent as sx

    state = sx.available_backends().get(backend, "not known")
    if state != "available":
        raise NotImplementedError(f"{backend}: {state}")
    if n_threads > sx.get_num_threads():
        raise NotImplementedError(f"{n_threads} threads, of {sx.get_num_threads()}")


def function(name: str) -> Callable[..., Any]:
    """Return a public function; skip the cell on a commit that has none of that name."""
    import softxent as sx

    found: Callable[..., Any] | None = getattr(sx, name, None)
    if found is None:
        raise NotImplementedError(f"there is no {name}")
    return found


_done: set[object] = set()


def once(key: object, call: Callable[[], object]) -> None:
    """Make a process's first call of a kind, which may compile, before a clock is started.

    A commit that refuses it (a dtype it does not know yet) has the cell skipped.
    """
    if key in _done:
        return
    try:
        call()
    except (TypeError, ValueError) as error:
        raise NotImplementedError(f"this commit cannot: {error}") from error
    _done.add(key)
