"""Negative log-likelihood of log-probabilities that are there already."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent import _small
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import COMMON, Spec

SPEC = Spec("nll_loss", Op.NLL, {
    "classes": ("axis", "class_weight", "ignore_index", *COMMON),
}, argument="log_probs")


def nll_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | NDArray[np.floating]:
    r"""Negative log-likelihood: minus the targets' log-probabilities.

    .. math::

        L_i = - s_i \, v_{y_i} \, \ell_{i y_i}

    with :math:`\ell` the log-probabilities, y the targets, v `class_weight`, s `sample_weight`. For
    logits use `cross_entropy`, which needs no log-probabilities stored and is more accurate than
    the two steps: what `log_softmax` has rounded cannot be had back.

    Parameters
    ----------
    log_probs : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Log-probabilities, as `log_softmax` gives them; any strides and byte order. Only the
        targets' entries are read.
    targets : array of integers
        Class numbers 0 ... C-1, or `ignore_index`, in the shape of `log_probs` without `axis`.
    axis, class_weight, ignore_index, sample_weight, reduction, divisor, backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    float, or array of the rows' shape
        As `cross_entropy`.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `cross_entropy`; probabilities as targets are a `TypeError`.

    See Also
    --------
    nll_loss_with_grad : the same, with the gradient.
    cross_entropy : of logits.

    Notes
    -----
    A row's value is the weighted log-probability, rounded once. NaN and infinite entries beside the
    targets' do not matter.

    Memory: as `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> log_probs = sx.log_softmax(np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]]))
    >>> print(f"{sx.nll_loss(log_probs, [0, 2]):.6f}")
    1.632384
    """
    problem = _small.normalise(
        SPEC, log_probs, targets, axis=axis, class_weight=class_weight, ignore_index=ignore_index,
        sample_weight=sample_weight, reduction=reduction, divisor=divisor
    )
    loss: float | NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return loss


def nll_loss_with_grad(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
    grad_out: NDArray[np.floating] | None = None,
    upstream: ArrayLike = 1.0,
) -> tuple[Any, NDArray[np.floating]]:
    r"""Negative log-likelihood and its gradient with respect to the log-probabilities.

    .. math::

        g_{ik} = - \frac{s_i u_i}{D} \, v_{y_i} \, [k = y_i]

    in the letters of `nll_loss`, u `upstream`, D the mean's divisor (1 for "sum", "none"). It does
    not go through a softmax: with respect to logits it is `cross_entropy_with_grad`'s that is
    wanted.

    Parameters
    ----------
    log_probs, targets, axis, class_weight, ignore_index
        As `nll_loss`.
    sample_weight, reduction, divisor, backend, n_threads
        As `nll_loss`.
    grad_out, upstream
        As `cross_entropy_with_grad`, of the shape and dtype of `log_probs`.

    Returns
    -------
    loss : float, or array of the rows' shape
        As `nll_loss`.
    grad : array of the shape and dtype of `log_probs`
        `grad_out` where it was given. 0 but at the targets, whatever `log_probs` holds.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `nll_loss`, and for a `grad_out` or `upstream` that does not fit; before anything is
        written.

    See Also
    --------
    nll_loss : the loss alone.

    Notes
    -----
    Memory: as `cross_entropy`; no temporary of the shape of `log_probs`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> log_probs = sx.log_softmax(np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]]))
    >>> loss, grad = sx.nll_loss_with_grad(log_probs, [0, 2])
    >>> print(grad)
    [[-0.5  0.   0. ]
     [ 0.   0.  -0.5]]
    """
    problem = _small.normalise(
        SPEC, log_probs, targets, axis=axis, class_weight=class_weight, ignore_index=ignore_index,
        sample_weight=sample_weight, reduction=reduction, divisor=divisor, wants_map=True,
        out=grad_out, upstream=upstream
    )
    return evaluate(problem, backend, n_threads)
