"""The pieces of softmax cross-entropy by themselves: log-sum-exp, softmax, log-softmax."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._problem import normalise
from softxent._run import evaluate, map_only
from softxent.backends._contract import Op
from softxent.losses._spec import Spec

LOGSUMEXP = Spec("logsumexp", Op.LOGSUMEXP)
SOFTMAX = Spec("softmax", Op.SOFTMAX)
LOG_SOFTMAX = Spec("log_softmax", Op.LOG_SOFTMAX)


def logsumexp(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Logarithm of the sum of exponentials, row by row.

    .. math:: \mathrm{lse}_i = \log \sum_k e^{z_{ik}}

    Its gradient with respect to the logits is `softmax`.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32 or float64
        Any range; any strides and byte order.
    axis : int, default -1
        The classes' axis.
    keepdims : bool, default False
        Keep that axis, with length 1.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    array
        The logits' shape without `axis`; float32, float64 for float64 logits. NaN for a row with a
        NaN, else +inf for one with +inf, -inf for one of -inf alone.

    Raises
    ------
    TypeError, ValueError
        Logits of another dtype, or without classes.

    Notes
    -----
    Within 1.5 eps of max(1, \|lse\|) in float32, 4 eps in float64. Memory: as `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> sx.logsumexp(np.array([[1000.0, 1000.0], [0.0, -np.inf]]))
    array([1000.69314718,    0.        ])
    """
    problem = normalise(LOGSUMEXP, logits, axis=axis)
    rows: NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return np.expand_dims(rows, problem.axis) if keepdims else rows


def softmax(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    out: NDArray[np.floating] | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Probabilities of the classes.

    .. math:: p_{ik} = e^{z_{ik}} / \sum_j e^{z_{ij}}

    For a loss pass the logits themselves to `cross_entropy`.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32 or float64
        Any range; any strides and byte order. -inf gives probability +0.
    axis : int, default -1
        The classes' axis.
    out : array of the logits' shape and dtype, optional
        Receives the result; may be the logits themselves, and else shares no memory with them.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    array of the logits' shape and dtype
        `out` where it was given. NaN throughout a row with NaN or +inf, or of -inf alone.

    Raises
    ------
    TypeError, ValueError
        Logits of another dtype, or without classes; an `out` that does not fit.

    Notes
    -----
    Each within 4 ulp (float64: 6) where it is a normal number, else that or 0. A row sums to 1
    within 2 eps (8). Equal logits of a row have equal bits. Memory: as `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> sx.softmax(np.array([2.0, 0.0, -np.inf])).round(4)
    array([0.8808, 0.1192, 0.    ])
    """
    problem = normalise(SOFTMAX, logits, axis=axis, wants_map=True, out=out)
    return map_only(problem, backend, n_threads)


def log_softmax(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    out: NDArray[np.floating] | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Log-probabilities of the classes.

    .. math:: \log p_{ik} = z_{ik} - \log \sum_j e^{z_{ij}}

    Parameters
    ----------
    logits, axis, out, backend, n_threads
        As `softmax`.

    Returns
    -------
    array of the logits' shape and dtype
        <= 0; -inf where the logit is -inf. NaN throughout a row with NaN or +inf, or of -inf alone.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    Notes
    -----
    Each within 4 ulp (float64: 6), however close to 0: a leader's is -log1p of the others' share.
    Memory: as `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> sx.log_softmax(np.array([40.0, 0.0]))
    array([-4.24835426e-18, -4.00000000e+01])
    """
    problem = normalise(LOG_SOFTMAX, logits, axis=axis, wants_map=True, out=out)
    return map_only(problem, backend, n_threads)
