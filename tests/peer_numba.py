"""Parallel code of Numba's own, in a file that its cache can tell from others."""

from __future__ import annotations

import numba
import numpy as np

_NUMBERS = np.arange(2.0**16)


@numba.njit(parallel=True, cache=True)
def _total(x):
    total = 0.0
    for i in numba.prange(len(x)):
        total += x[i]
    return total


def use():
    """Run on Numba's threads."""
    assert _total(_NUMBERS) == 2.0**15 * (2.0**16 - 1)
