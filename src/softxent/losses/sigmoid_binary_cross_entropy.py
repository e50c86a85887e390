"""Binary cross-entropy of logits, each by itself: several labels a row, or two classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._problem import normalise_points
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import COMMON, Spec

SPEC = Spec("sigmoid_binary_cross_entropy", Op.SIGMOID, {
    "probabilities": ("pos_weight", *COMMON),
})


def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | NDArray[np.floating]:
    r"""Binary cross-entropy of logits, one target for each.

    .. math::

        L_i = s_i \Bigl( - v_i t_i \log \sigma(z_i) - (1 - t_i) \log \sigma(-z_i) \Bigr), \qquad
        \sigma(z) = \frac{1}{1 + e^{-z}}

    with z the logits, t the targets, v `pos_weight`, s `sample_weight`; i counts logits, whatever
    their axes. For labels that do not exclude one another, and for two classes, of which it is
    `cross_entropy` with logits 0 and z. Pass logits: a sigmoid and a logarithm lose the digits of
    every logit that is sure, and become infinite.

    Parameters
    ----------
    logits : array of any shape, float32, float64, float16 or bfloat16
        Log-odds, any range, any strides and byte order.
    targets : array of the logits' shape, any real, integer or bool dtype
        t, within [0, 1].
    pos_weight : array that broadcasts to the logits' shape, optional
        v, >= 0: multiplies what targets of 1 cost; (n negative) / (n positive) balances labels.
    sample_weight : array that broadcasts to the logits' shape, optional
        s, >= 0. A logit of weight 0 does not count: its values are not used.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by D, the sum of the broadcast s (the number of logits without
        weights); 0.0 when nothing counts.
    divisor : float, optional
        Takes D's place, so that the means of micro-batches add up. > 0, or 0: loss 0.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    float, or array of the logits' shape
        The reduced loss, summed in float64; with "none" the L_i, float32 (float64 for float64
        logits), in C order. Nats.

    Raises
    ------
    TypeError, ValueError
        A dtype, shape, weight, target or option that does not fit; the message says what would.
    BackendUnavailableError
        `backend` cannot be used here.

    See Also
    --------
    sigmoid_binary_cross_entropy_with_grad : the same, with the gradient.
    cross_entropy : classes that exclude one another.

    Notes
    -----
    Within 8 eps (16 in float64) of the sum of the two terms, both >= 0, eps that of the logits'
    dtype (16 bits: float32's): with e = exp(-|z|) they are log1p(e) and |z| + log1p(e), so that
    neither end cancels.

    A logit of -inf or +inf costs 0 on its own side, +inf on the other; NaN makes its loss NaN.

    Memory: one number a logit with "none", else one for 1,024; up to 1 MiB a thread ("numpy": 64
    MiB in all).

    References
    ----------
    .. [1] D. R. Cox, "The regression analysis of binary sequences", Journal of the Royal
       Statistical Society B 20 (1958).

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, -1.0], [0.0, 40.0]])
    >>> targets = np.array([[1, 0], [1, 1]])
    >>> print(sx.sigmoid_binary_cross_entropy(logits, targets, reduction="none"))
    [[1.26928011e-01 3.13261688e-01]
     [6.93147181e-01 4.24835426e-18]]
    """
    problem = normalise_points(SPEC, logits, targets, pos_weight=pos_weight,
                               sample_weight=sample_weight, reduction=reduction, divisor=divisor)
    loss: float | NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return loss


def sigmoid_binary_cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
    grad_out: NDArray[np.floating] | None = None,
    upstream: ArrayLike = 1.0,
) -> tuple[Any, NDArray[np.floating]]:
    r"""Binary cross-entropy and its gradient with respect to the logits, in one call.

    .. math::

        g_i = \frac{s_i u_i}{D} \bigl( (1 - t_i) \, \sigma(z_i) - v_i t_i \, \sigma(-z_i) \bigr)

    in the letters of `sigmoid_binary_cross_entropy`, u `upstream`, D the mean's divisor (1 for
    "sum", "none"): without weights it is (sigma(z) - t) / N, but not computed as that difference,
    which cancels where the logit is right and sure.

    Parameters
    ----------
    logits, targets, pos_weight, sample_weight, reduction, divisor, backend, n_threads
        As `sigmoid_binary_cross_entropy`.
    grad_out : array of the logits' shape and dtype, optional
        Receives the gradient (of 16-bit logits: float32 too); any strides. `grad_out=logits`
        overwrites the logits in place, with the same bits. Nothing else may share memory with it.
        Default: a new array laid out like the logits.
    upstream : float, or with reduction="none" an array of the logits' shape
        The derivative with respect to the loss. Any sign.

    Returns
    -------
    loss : float, or array of the logits' shape
        As `sigmoid_binary_cross_entropy`.
    grad : array of the logits' shape and dtype
        `grad_out` where it was given.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As `sigmoid_binary_cross_entropy`, and for a `grad_out` or `upstream` that does not fit;
        before anything is written. Only a target outside [0, 1] may be found at the end:
        `grad_out` then holds anything (logits to be overwritten are still whole).

    See Also
    --------
    sigmoid_binary_cross_entropy : the loss alone.

    Notes
    -----
    Within 8 eps (16 in float64) of the sum of its two terms' absolute values: relatively so for
    targets of 0 and 1.

    Memory: as `sigmoid_binary_cross_entropy`; no temporary of the logits' size.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> loss, grad = sx.sigmoid_binary_cross_entropy_with_grad(
    ...     np.array([2.0, -1.0, 40.0]), [True, False, True])
    >>> print(grad)
    [-3.97343073e-02  8.96471405e-02 -1.41611809e-18]
    """
    problem = normalise_points(SPEC, logits, targets, pos_weight=pos_weight,
                               sample_weight=sample_weight, reduction=reduction, divisor=divisor,
                               wants_map=True, out=grad_out, upstream=upstream)
    return evaluate(problem, backend, n_threads)
