"""What is counted rather than differentiated: accuracy, and the divisor of a mean."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from softxent._problem import divisor_of, normalise, targets_divisor
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import Spec

ACCURACY = Spec("accuracy", Op.RANK, {"classes": ("axis", "ignore_index", "backend", "n_threads")})


def accuracy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    k: SupportsIndex = 1,
    axis: SupportsIndex = -1,
    ignore_index: SupportsIndex | None = -100,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float:
    """Share of the rows whose target is among the k largest logits.

    Any monotone function of the logits (probabilities, log-probabilities) has the same accuracy, up
    to the ties that its rounding makes.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Any range; any strides and byte order.
    targets : array of integers, the logits' shape without `axis`
        Class numbers 0 ... C-1, or `ignore_index`.
    k : int, default 1
        >= 1; from C on every target is found. Of equal logits the one of the lower class comes
        first.
    axis : int, default -1
        The classes' axis.
    ignore_index : int or None, default -100
        Rows with this target do not count.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    float
        From 0.0 to 1.0; 0.0 when no row counts. A NaN counts as larger than any number, as in
        `numpy.argmax`, and a target of NaN is not found.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `cross_entropy`; `k` below 1.

    Notes
    -----
    One pass, no sorting. Memory: one number a row, and as `cross_entropy`.

    Examples
    --------
    >>> import softxent as sx
    >>> logits = [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    >>> sx.accuracy(logits, [0, 1])
    0.5
    >>> sx.accuracy(logits, [0, 1], k=2)
    1.0
    """
    try:
        first = operator.index(k)
    except TypeError:
        raise TypeError(f"k must be an integer, got {type(k).__name__}") from None
    if first < 1:
        raise ValueError(f"k must be >= 1, got {first}")
    problem = normalise(ACCURACY, logits, targets, axis=axis, ignore_index=ignore_index)
    count = divisor_of(problem.call)
    ranks = evaluate(problem, backend, n_threads)[0]
    # Rows that do not count have rank infinity.
    return float(np.count_nonzero(ranks < first)) / count if count else 0.0


def mean_divisor(
    targets: ArrayLike,
    *,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
) -> float:
    r"""Return what the "mean" of a batch divides by, for micro-batches that add up to it.

    .. math:: D = \sum_{i : y_i \ne \mathrm{ignore\_index}} s_i \, v_{y_i}

    Pass it as `divisor` with each part of the batch: the losses' sum is then the batch's mean, and
    the gradients are the batch's.

    Parameters
    ----------
    targets : array of integers, of any shape
        Class numbers, or `ignore_index`.
    class_weight : array of shape (C,), optional
        v, >= 0.
    sample_weight : array of the targets' shape, optional
        s, >= 0.
    ignore_index : int or None, default -100
        Targets that do not count.

    Returns
    -------
    float
        The sum of s_i·v[y_i] over the rows that count; their number without weights.

    Raises
    ------
    IndexError
        A target that `class_weight` has no entry for.
    TypeError
        Targets that are no integers. (With probabilities D is the sum of the sample weights,
        without them the number of rows.)
    ValueError
        A weight of the wrong shape, negative, NaN or infinite.

    Examples
    --------
    >>> import softxent as sx
    >>> sx.mean_divisor([0, 2, -100, 1])
    3.0
    >>> sx.mean_divisor([0, 2, -100, 1], class_weight=[1.0, 1.0, 0.5])
    2.5
    """
    return targets_divisor(targets, class_weight, sample_weight, ignore_index)
