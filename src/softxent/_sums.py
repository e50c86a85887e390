"""Sums of one number a row, over a tree that the number of rows alone decides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Below this Python's own additions, the same ones, take less time than NumPy's calls.
_FEW = 64


def tree_sum(values: NDArray[np.floating]) -> float:
    """Return the sum of `values`, a contiguous float64 vector that is used up on the way.

    The upper half is added to the lower one until one value is left: every addition is an IEEE
    one of two given operands, so the result depends on the values and their order only, not on
    NumPy's version, the processor or memory. Error: log2(n) roundings at the most.
    """
    n = values.size
    if n <= _FEW:
        few = values.tolist() or [0.0]
        while len(few) > 1:
            half = (len(few) + 1) // 2
            lower, upper = few[:half], few[half:]
            few = [a + b for a, b in zip(lower, upper, strict=False)] + lower[len(upper) :]
        return float(few[0])
    with np.errstate(all="ignore"):
        while n > 1:
            half = (n + 1) // 2
            values[: n - half] += values[half:n]
            n = half
    return float(values[0])
