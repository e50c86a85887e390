"""Softmax cross-entropy with integer targets."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._problem import normalise
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import Spec

SPEC = Spec("cross_entropy", Op.CROSS_ENTROPY, targets=("classes",))


def cross_entropy(
    logits: ArrayLike,
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
    r"""Softmax cross-entropy of logits and class numbers.

    .. math:: L_i = s_i \, v_{y_i} \Bigl(\log \sum_k e^{z_{ik}} - z_{i y_i}\Bigr)

    with logits z, target y, sample weight s and class weight v. Pass logits: taking a softmax or a
    log first costs time and accuracy, and probabilities passed as logits train a wrong model.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32 or float64
        Unnormalised log-probabilities, any range, any strides and byte order. -inf excludes a
        class.
    targets : array of integers, the logits' shape without `axis`
        Class numbers 0 ... C-1, or `ignore_index`. Any integer dtype.
    axis : int, default -1
        The classes' axis of the logits (1 for PyTorch's (N, C, d1, ...)).
    class_weight : array of shape (C,), optional
        v, >= 0. A class of weight 0 costs nothing.
    ignore_index : int or None, default -100
        Rows with this target have loss and gradient 0; their logits are not used. None: no row is
        ignored.
    sample_weight : array of the targets' shape, optional
        s, >= 0. A row of weight 0 does not count, as if ignored.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by D, the sum of s_i·v[y_i] over the rows that count (their number
        without weights); 0.0 when nothing counts.
    divisor : float, optional
        Takes D's place, so that the means of micro-batches add up. > 0, or 0: loss 0.
    backend : {"cython", "numpy"}, optional
        Default: the fastest that this machine has.
    n_threads : int, optional
        At most so many threads for this call; default `get_num_threads()`.

    Returns
    -------
    float, or array of the targets' shape
        The reduced loss, summed in float64; with "none" the L_i, float32 (float64 for float64
        logits). Nats.

    Raises
    ------
    IndexError
        A target outside [0, C) that is not `ignore_index`.
    TypeError, ValueError
        A dtype, shape, weight or option that does not fit; the message says what would.
    BackendUnavailableError
        `backend` cannot be used here.

    See Also
    --------
    cross_entropy_with_grad : the same, with the gradient.

    Notes
    -----
    A row's loss is within 2 ulp of the true value in float32 (6 in float64), however small: where
    the target leads it is log1p of the other classes' share, not a difference of logarithms.
    NaN or +inf in a row that counts, or all of it -inf, makes its loss NaN; -inf at the target,
    +inf.

    Memory: one number a row and up to 1 MiB a thread ("numpy": 64 MiB in all).

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA Journal of Numerical Analysis 41 (2021).

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> print(f"{sx.cross_entropy(logits, [0, 2]):.6f}")
    1.632384
    >>> print(sx.cross_entropy(np.array([40.0, 0.0]), 0, reduction="none"))
    4.248354255291589e-18
    """
    problem = normalise(SPEC, logits, targets, axis=axis, class_weight=class_weight,
                        ignore_index=ignore_index, sample_weight=sample_weight,
                        reduction=reduction, divisor=divisor)
    loss: float | NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return loss


def cross_entropy_with_grad(
    logits: ArrayLike,
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
    r"""Softmax cross-entropy and its gradient with respect to the logits, in one call.

    .. math:: g_{ik} = w_i \, (p_{ik} - [k = y_i]), \qquad w_i = s_i \, v_{y_i} \, u_i / D

    with p the softmax of the row, u `upstream`, and D the mean's divisor (1 for "sum", "none").

    Parameters
    ----------
    logits, targets, axis, class_weight, ignore_index, sample_weight, reduction, divisor
        As `cross_entropy`.
    backend, n_threads
        As `cross_entropy`.
    grad_out : array of the logits' shape and dtype, optional
        Receives the gradient; any strides. `grad_out=logits` overwrites the logits in place, with
        the same bits. Nothing else may share memory with it. Default: a new array laid out like
        the logits.
    upstream : float, or with reduction="none" an array of the targets' shape
        The derivative with respect to the loss (PyTorch's grad_output, JAX's cotangent; a loss
        scale). Any sign.

    Returns
    -------
    loss : float, or array of the targets' shape
        As `cross_entropy`.
    grad : array of the logits' shape and dtype
        `grad_out` where it was given.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `cross_entropy`, and for a `grad_out` or `upstream` that does not fit; before anything
        is written.

    See Also
    --------
    cross_entropy : the loss alone.

    Notes
    -----
    Every element is within 4 ulp of the true value in float32 (6 in float64) where it is a normal
    number, the target's too: that one is -S'/S, S' the sum over the other classes, where p - 1
    would cancel. Rows sum to 0 within 2 eps of their absolute sum.

    Memory: as `cross_entropy`; no temporary of the logits' shape.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> loss, grad = sx.cross_entropy_with_grad(logits, [0, 2])
    >>> print(grad.round(6))
    [[-0.078103  0.057098  0.021005]
     [ 0.022639  0.454721 -0.477361]]
    """
    problem = normalise(SPEC, logits, targets, axis=axis, class_weight=class_weight,
                        ignore_index=ignore_index, sample_weight=sample_weight,
                        reduction=reduction, divisor=divisor, wants_map=True, out=grad_out,
                        out_name="grad_out", upstream=upstream)
    return evaluate(problem, backend, n_threads)
