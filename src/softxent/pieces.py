"""The pieces of softmax cross-entropy by themselves: log-sum-exp, softmax, entropy and the like."""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._problem import normalise
from softxent._run import evaluate, map_only
from softxent.backends._contract import Op
from softxent.losses._spec import Spec

LOGSUMEXP = Spec("logsumexp", Op.LOGSUMEXP)
SOFTMAX = Spec("softmax", Op.SOFTMAX, output="out")
LOG_SOFTMAX = Spec("log_softmax", Op.LOG_SOFTMAX, output="out")
ENTROPY = Spec("softmax_entropy", Op.ENTROPY)
VJP = Spec("softmax_vjp", Op.SOFTMAX_VJP, argument="probs", output="out")
TARGET_LOG_PROBS = Spec("target_log_probs", Op.CROSS_ENTROPY, {
    "classes": ("axis", "ignore_index", "temperature", "backend", "n_threads"),
})


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
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
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
    if keepdims:
        assert problem.axis is not None
        rows = np.expand_dims(rows, problem.axis)
    return rows


def softmax(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    temperature: float = 1.0,
    out: NDArray[np.floating] | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Probabilities of the classes.

    .. math:: p_{ik} = e^{z_{ik}} / \sum_j e^{z_{ij}}

    For a loss pass the logits themselves to `cross_entropy`.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Any range; any strides and byte order. -inf gives probability +0.
    axis : int, default -1
        The classes' axis.
    temperature : float, default 1.0
        Divides the logits, > 0.
    out : array of the logits' shape and dtype, optional
        Receives the result (of 16-bit logits: float32 too); may be the logits themselves, and else
        shares no memory with them.
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
    problem = normalise(SOFTMAX, logits, axis=axis, temperature=temperature, wants_map=True,
                        out=out)
    return map_only(problem, backend, n_threads)


def log_softmax(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    temperature: float = 1.0,
    out: NDArray[np.floating] | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Log-probabilities of the classes.

    .. math:: \log p_{ik} = z_{ik} - \log \sum_j e^{z_{ij}}

    Parameters
    ----------
    logits, axis, temperature, out, backend, n_threads
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
    problem = normalise(LOG_SOFTMAX, logits, axis=axis, temperature=temperature, wants_map=True,
                        out=out)
    return map_only(problem, backend, n_threads)


def softmax_vjp(
    probs: ArrayLike,
    upstream: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    out: NDArray[np.floating] | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Product of a vector with the softmax's Jacobian, without the Jacobian.

    .. math:: g_{ik} = p_{ik} \Bigl(u_{ik} - \sum_j p_{ij} u_{ij}\Bigr)

    What the gradient with respect to the probabilities, u, is with respect to the logits: for a
    loss of one's own. The Jacobian, diag(p) - p p^T, is symmetric, so this is its JVP as well.

    Parameters
    ----------
    probs : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Rows of probabilities, as `softmax` gives them.
    upstream : array of the same shape, any real dtype
        u, the derivatives with respect to the probabilities.
    axis : int, default -1
        The classes' axis.
    out : array of that shape and dtype, optional
        Receives the result (of 16-bit probabilities: float32 too); may be `probs` itself, and else
        shares no memory with an argument.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    array of the probabilities' shape and dtype
        `out` where it was given.

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.

    Notes
    -----
    Sums and differences are taken in float64. p are probabilities: logits passed here give
    numbers without a meaning. With `softmax` at a temperature the
    derivative with respect to its logits is this divided by the temperature. Memory: as
    `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> p = sx.softmax(np.array([2.0, 0.0, -1.0]))
    >>> sx.softmax_vjp(p, [1.0, 0.0, 0.0]).round(4)
    array([ 0.1318, -0.0964, -0.0354])
    """
    problem = normalise(VJP, probs, axis=axis, cotangent=upstream, wants_map=True, out=out)
    return map_only(problem, backend, n_threads)


def target_log_probs(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    temperature: float = 1.0,
    ignore_index: SupportsIndex | None = -100,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Log-probability of each row's target, without the log-probabilities of the others.

    .. math:: \log p_{i y_i} = z_{i y_i} / \tau - \log \sum_k e^{z_{ik} / \tau}

    What policy gradients and preference losses (REINFORCE, PPO, DPO) take of a model.

    Parameters
    ----------
    logits, targets, axis
        As `cross_entropy`, targets being class numbers.
    temperature : float, default 1.0
        Divides the logits, > 0.
    ignore_index, backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    array of the targets' shape
        <= 0, float32 (float64 for float64 logits); +0.0 for ignored rows, NaN for a row with NaN
        or +inf, or of -inf alone; -inf at a target of -inf.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    As accurate as the loss of `cross_entropy` and, but for the sign, the same numbers: within 2 ulp
    in float32 (6 in float64). Its gradient is minus the loss's. Memory: one number a row, and as
    `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> sx.target_log_probs(np.array([[2.0, 0.0], [0.0, 40.0]]), [0, 1])
    array([-1.26928011e-01, -4.24835426e-18])
    """
    problem = normalise(TARGET_LOG_PROBS, logits, targets, axis=axis, temperature=temperature,
                        ignore_index=ignore_index)
    rows: NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    np.subtract(0.0, rows, out=rows)  # not -rows: +0.0 stays +0.0
    return rows


def softmax_entropy(
    logits: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    temperature: float = 1.0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> NDArray[np.floating]:
    r"""Entropy of the softmax, row by row.

    .. math:: H_i = -\sum_k p_{ik} \log p_{ik}
                  = \log \sum_k e^{z_{ik} - m_i} + \sum_k p_{ik} (m_i - z_{ik}),
              \quad m_i = \max_k z_{ik}

    with z the logits over the temperature. Its gradient with respect to z is
    :math:`-p_{ik} (\log p_{ik} + H_i)`.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Any range; any strides and byte order. -inf excludes a class: 0 log 0 = 0.
    axis : int, default -1
        The classes' axis.
    temperature : float, default 1.0
        Divides the logits, > 0.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    array
        The logits' shape without `axis`, in nats, from +0.0 to log C; float32, float64 for float64
        logits. NaN for a row with NaN or +inf, or of -inf alone.

    Raises
    ------
    TypeError, ValueError
        Logits of another dtype, or without classes.

    Notes
    -----
    All terms are >= 0: within 8 eps, relatively, in float32 (16 in float64), also of the small
    entropy of a confident row. Memory: as `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> sx.softmax_entropy(np.array([[0.0, 0.0], [40.0, 0.0]]))
    array([6.93147181e-01, 1.74182524e-16])
    """
    problem = normalise(ENTROPY, logits, axis=axis, temperature=temperature)
    rows: NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return rows
