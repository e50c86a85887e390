"""Focal loss: cross-entropy with class numbers that counts sure rows less."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent import _small
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import COMMON, Spec

SPEC = Spec("focal_loss", Op.FOCAL, {
    "classes": ("gamma", "axis", "class_weight", "ignore_index", "temperature", "softcap", "z_loss",
                *COMMON),
})


def focal_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | NDArray[np.floating]:
    r"""Focal loss of logits with class numbers: cross-entropy that counts sure rows less.

    .. math::

        L_i = s_i \, \Bigl( v_{y_i} (1 - p_i)^{\gamma} (-\log p_i)
              + \lambda \, \mathrm{lse}_i^2 \Bigr), \qquad
        p_i = e^{z_{i y_i} - \mathrm{lse}_i}

    with p the softmax's share of the target y, and the other letters of `cross_entropy`. A row that
    is sure and right (p = 0.9) counts (1 - p)^2 = 0.01 times what it does in cross-entropy, so that
    many easy rows do not drown a few hard ones [1]_. Pass logits, not probabilities.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Unnormalised log-probabilities, any range, any strides and byte order. -inf excludes a
        class.
    targets : array of integers
        Class numbers 0 ... C-1, or `ignore_index`, in the logits' shape without `axis`.
    gamma : float, default 2.0
        How much sure rows are made to count less, >= 0; 0 is `cross_entropy`, bit for bit.
    axis
        As `cross_entropy`.
    class_weight : array of shape (C,), optional
        v, >= 0: the paper's alpha of each class.
    ignore_index, temperature, softcap, z_loss, sample_weight
        As `cross_entropy`.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by D, the sum of s_i·v[y_i] over the rows that count (their number
        without weights); 0.0 when nothing counts. Detection divides by the number of foreground
        boxes: pass it as `divisor`.
    divisor, backend, n_threads
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
    focal_loss_with_grad : the same, with the gradient.
    cross_entropy : every row with the same weight.

    Notes
    -----
    Without z-loss a row's loss is within 2 (1 + gamma) ulp of the true value in float32 (6
    (1 + gamma) in float64), however small: 1 - p is the share of the other classes, summed, not a
    difference.

    torchvision's `sigmoid_focal_loss` is the binary one, a class at a time; this is the softmax's.

    Memory: as `cross_entropy`.

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, "Focal loss for dense object
       detection", ICCV (2017).

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> print(sx.cross_entropy(logits, [0, 2], reduction="none").round(6))
    [0.169846 3.094923]
    >>> print(sx.focal_loss(logits, [0, 2], reduction="none").round(6))
    [0.004144 2.821001]
    """
    problem = _small.normalise(
        SPEC, logits, targets, gamma=gamma, axis=axis, class_weight=class_weight,
        ignore_index=ignore_index, temperature=temperature, softcap=softcap, z_loss=z_loss,
        sample_weight=sample_weight, reduction=reduction, divisor=divisor
    )
    loss: float | NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return loss


def focal_loss_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
    grad_out: NDArray[np.floating] | None = None,
    upstream: ArrayLike = 1.0,
) -> tuple[Any, NDArray[np.floating]]:
    r"""Focal loss and its gradient with respect to the logits, in one call.

    .. math::

        g_{ik} &= \frac{s_i u_i}{\tau D} \, J_{ik} \bigl( v_{y_i} F_i (p_{ik} - [k = y_i])
                  + 2 \lambda \, \mathrm{lse}_i \, p_{ik} \bigr) \\
        F_i &= (1 - p_i)^{\gamma} \Bigl( 1 + \gamma \, p_i \, \frac{-\log p_i}{1 - p_i} \Bigr)

    in the letters of `focal_loss` and `cross_entropy_with_grad`: cross-entropy's gradient, times F.

    Parameters
    ----------
    logits, targets, gamma, axis, class_weight, ignore_index, temperature, softcap, z_loss
        As `focal_loss`.
    sample_weight, reduction, divisor, backend, n_threads
        As `focal_loss`.
    grad_out, upstream
        As `cross_entropy_with_grad`.

    Returns
    -------
    loss : float, or array of the rows' shape
        As `cross_entropy`.
    grad : array of the logits' shape and dtype
        `grad_out` where it was given.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `focal_loss`, and for a `grad_out` or `upstream` that does not fit; before anything is
        written.

    See Also
    --------
    focal_loss : the loss alone.

    Notes
    -----
    Without z-loss and softcap every element is within 4 (1 + gamma) ulp of the true value in
    float32 (6 (1 + gamma) in float64) where it is a normal number, the target's too; rows sum to 0
    as those of `cross_entropy_with_grad`.

    Memory: as `cross_entropy`; no temporary of the logits' shape.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> loss, grad = sx.focal_loss_with_grad(logits, [0, 2])
    >>> print(grad.round(6))
    [[-0.005403  0.00395   0.001453]
     [ 0.026693  0.536148 -0.562842]]
    """
    problem = _small.normalise(
        SPEC, logits, targets, gamma=gamma, axis=axis, class_weight=class_weight,
        ignore_index=ignore_index, temperature=temperature, softcap=softcap, z_loss=z_loss,
        sample_weight=sample_weight, reduction=reduction, divisor=divisor, wants_map=True,
        out=grad_out, upstream=upstream
    )
    return evaluate(problem, backend, n_threads)
