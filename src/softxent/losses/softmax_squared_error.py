"""Squared error of a softmax: the contrast case, whose gradient vanishes on confident mistakes."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent import _small
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import COMMON, Spec

SPEC = Spec("softmax_squared_error", Op.SQUARED_ERROR, {
    "classes": ("axis", "ignore_index", "temperature", *COMMON),
    "probabilities": ("axis", "temperature", *COMMON),
})


def softmax_squared_error(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    ignore_index: SupportsIndex | None = -100,
    temperature: float = 1.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | NDArray[np.floating]:
    r"""Half the squared distance of the logits' softmax from the targets: half the Brier score.

    .. math::

        L_i = \frac{s_i}{2} \sum_k (p_{ik} - t_{ik})^2

    with p the softmax of the logits over the temperature, t the targets (one-hot for class
    numbers), s `sample_weight`. It is here for comparison, and to score probabilities: as a loss to
    train with it does badly, for on a confident mistake its gradient vanishes, where
    `cross_entropy`'s is largest.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Unnormalised log-probabilities, any range, any strides and byte order. -inf excludes a
        class.
    targets : array of integers or of floats
        As `cross_entropy`: class numbers, or probabilities of the logits' shape.
    axis, ignore_index, temperature, sample_weight
        As `cross_entropy`.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the sum of s_i over the rows that count (their number without
        weights); 0.0 when nothing counts.
    divisor, backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    float, or array of the rows' shape
        As `cross_entropy`; a row's value is within 0 ... 1 where its targets are a distribution.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `cross_entropy`.

    See Also
    --------
    softmax_squared_error_with_grad : the same, with the gradient.
    cross_entropy : what to train with.

    Notes
    -----
    Within 8 eps (16 in float64) of half the sum of p^2, 2 p t and t^2, eps that of the logits'
    dtype (16 bits: float32's). With class numbers 1 - p of the target is the other classes' share,
    summed, so that the loss of a confident row has its digits.

    Memory: as `cross_entropy`.

    References
    ----------
    .. [1] G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly
       Weather Review 78 (1950).

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> print(sx.softmax_squared_error(logits, [0, 2], reduction="none").round(6))
    [0.019603 0.870315]
    """
    problem = _small.normalise(
        SPEC, logits, targets, axis=axis, ignore_index=ignore_index, temperature=temperature,
        sample_weight=sample_weight, reduction=reduction, divisor=divisor
    )
    loss: float | NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return loss


def softmax_squared_error_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    ignore_index: SupportsIndex | None = -100,
    temperature: float = 1.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
    grad_out: NDArray[np.floating] | None = None,
    upstream: ArrayLike = 1.0,
) -> tuple[Any, NDArray[np.floating]]:
    r"""Squared error of a softmax and its gradient with respect to the logits, in one call.

    .. math::

        g_{ik} = \frac{s_i u_i}{\tau D} \, p_{ik}
                 \Bigl( (p_{ik} - t_{ik}) - \sum_j p_{ij} (p_{ij} - t_{ij}) \Bigr)

    in the letters of `softmax_squared_error` and `cross_entropy_with_grad`. Every entry has the
    factor p: where the softmax is sure, and wrong, the target's p is 0 and all entries are small.
    For two classes it is 2 (q - t) q (1 - q), q the logistic function of the logits' difference.

    Parameters
    ----------
    logits, targets, axis, ignore_index, temperature
        As `softmax_squared_error`.
    sample_weight, reduction, divisor, backend, n_threads
        As `softmax_squared_error`.
    grad_out, upstream
        As `cross_entropy_with_grad`.

    Returns
    -------
    loss : float, or array of the rows' shape
        As `softmax_squared_error`.
    grad : array of the logits' shape and dtype
        `grad_out` where it was given.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `cross_entropy_with_grad`.

    See Also
    --------
    softmax_squared_error : the loss alone.

    Notes
    -----
    Within 8 eps (16 in float64) of p times the sum of the absolute values in the brackets: p, t and
    the sums of p^2 and p t.

    Memory: as `cross_entropy`; no temporary of the logits' shape.

    Examples
    --------
    A confident mistake: cross-entropy corrects it with all its might, squared error hardly.

    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[10.0, 0.0]])
    >>> loss, grad = sx.cross_entropy_with_grad(logits, [1])
    >>> print(grad.round(6))
    [[ 0.999955 -0.999955]]
    >>> loss, grad = sx.softmax_squared_error_with_grad(logits, [1])
    >>> print(grad.round(6))
    [[ 9.1e-05 -9.1e-05]]
    """
    problem = _small.normalise(
        SPEC, logits, targets, axis=axis, ignore_index=ignore_index, temperature=temperature,
        sample_weight=sample_weight, reduction=reduction, divisor=divisor, wants_map=True,
        out=grad_out, upstream=upstream
    )
    return evaluate(problem, backend, n_threads)
