"""`warmup`: what a first call would do beside its work, done before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from softxent._explain import key_of
from softxent._plan import select
from softxent.losses import LOSSES


def warmup(
    *,
    losses: Iterable[str] | None = None,
    dtypes: Iterable[str] = ("float32", "float64"),
    backend: str | None = None,
) -> None:
    """Compile what later calls would compile, or load it from the cache.

    Only the Numba backend compiles, once a machine (see `SOFTXENT_CACHE_DIR`): 4 to 7 s a dtype for
    what cross-entropy does by default, twice that for other losses and options, again with a
    temperature, and three times that for distillation. Call it before forking, or before a clock is
    started.

    Parameters
    ----------
    losses : iterable of str, optional
        Names of losses; None: all.
    dtypes : iterable of {"float32", "float64", "float16", "bfloat16"}
        The logits' dtypes.
    backend : {"cython", "numba", "numpy"}, optional
        As the calls will pass it.

    Raises
    ------
    ValueError
        A name of nothing.
    BackendUnavailableError
        `backend` cannot be used here.

    See Also
    --------
    explain : what a call would use.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.warmup(losses=["cross_entropy"], dtypes=["float32"], backend="numpy")
    """
    names = tuple(LOSSES) if losses is None else tuple(losses)
    for dtype in dtypes:
        for loss in names:
            # An unknown name is refused by key_of.
            for kind in LOSSES[loss].targets if loss in LOSSES else ("classes",):
                key = key_of(dtype, "C", loss, kind, grad=True)
                for temperature, options in itertools.product((False, True), repeat=2):
                    select(key._replace(temperature=temperature, options=options), 1, 2, backend,
                           None)
