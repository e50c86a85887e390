"""Knowledge distillation: a softmax that follows a teacher's."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._problem import normalise
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import COMMON, Spec

SPEC = Spec("distillation_loss", Op.DISTILLATION, {
    "logits": ("hard_targets", "hard_weight", "axis", "class_weight", "ignore_index",
               "label_smoothing", "temperature", *COMMON),
}, second="teacher_logits")


def distillation_loss(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: float = 2.0,
    hard_targets: ArrayLike | None = None,
    hard_weight: float = 0.0,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | NDArray[np.floating]:
    r"""Distillation loss: how far a student's softened softmax is from its teacher's.

    .. math::

        L_i = s_i \Bigl( (1 - h)\, \tau^2 \Bigl( \sum_k q_{ik} \log q_{ik}
              - \sum_k q_{ik} \log p_{ik} \Bigr) + h\, \ell_i \Bigr)

    with q the softmax of `teacher_logits` over the temperature, p that of `logits`, h
    `hard_weight`, s `sample_weight`, and l `cross_entropy` of the logits with `hard_targets` at a
    temperature of 1. The square of the temperature keeps the gradients of the two parts in
    proportion whatever the temperature. Pass both models' logits, not their softmax. The teacher is
    a constant: it gets no gradient.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        The student's, any range, any strides and byte order. -inf excludes a class.
    teacher_logits : array of the logits' shape, of any of these dtypes
        The teacher's. Where they are float64, so is the arithmetic.
    temperature : float, within [2**-500, 2**500]
        What both logits are divided by: above 1, the classes that the teacher holds for unlikely
        count for more.
    hard_targets : array of integers of the rows' shape, optional
        True classes 0 ... C - 1, or `ignore_index`.
    hard_weight : float, within [0, 1]
        The share h of cross-entropy with `hard_targets`. A part whose factor is 0 is not evaluated:
        the values of its arguments do not count, but for the rows that `ignore_index` leaves out.
    axis : int
        The classes' axis of both logits.
    class_weight
        As `cross_entropy`, and of its part alone.
    ignore_index : int or None
        Rows with this hard target cost nothing, neither part of them.
    label_smoothing
        As `cross_entropy`, and of its part alone.
    sample_weight : array of the rows' shape, optional
        Weights s >= 0 of the rows; one of weight 0 does not count.
    reduction : {"mean", "sum", "none"}
        "mean" is the sum of the rows' values over the sum of s_i, the number of rows that count
        without weights; class weights have no part in it.
    divisor, backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    float, or array of the rows' shape
        As `cross_entropy`; >= 0, and exactly 0 where student and teacher are equal and h is 0.

    Raises
    ------
    ValueError
        `hard_weight` > 0 without `hard_targets`, a `teacher_logits` of another shape, and as
        `cross_entropy`.
    TypeError, IndexError, BackendUnavailableError
        As `cross_entropy`.

    See Also
    --------
    distillation_loss_with_grad : the same, with the gradient.
    kl_divergence : from probabilities, such as a stored softmax.

    Notes
    -----
    Within 8 eps (16 in float64) of the sum of the absolute values of the formula's terms, eps that
    of the logits' dtype (16 bits: float32's). With h = 1 it is `cross_entropy`'s value, bit for bit
    under "none". A class that the student excludes (-inf) and the teacher does not makes the row's
    loss +inf; one that both exclude costs nothing.

    Memory: as `cross_entropy`, and 80 KiB a thread.

    References
    ----------
    .. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network" (2015),
       arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> student = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> teacher = np.array([[3.0, 1.0, -2.0], [0.0, 2.0, 1.0]])
    >>> print(sx.distillation_loss(student, teacher, reduction="none").round(6))
    [0.144872 0.356277]
    >>> print(sx.distillation_loss(student, teacher, hard_targets=[0, 1], hard_weight=0.25,
    ...                            reduction="none").round(6))
    [0.151116 0.290938]
    """
    problem = normalise(SPEC, logits, hard_targets, teacher_logits=teacher_logits,
                        temperature=temperature, hard_weight=hard_weight, axis=axis,
                        class_weight=class_weight, ignore_index=ignore_index,
                        label_smoothing=label_smoothing, sample_weight=sample_weight,
                        reduction=reduction, divisor=divisor)
    loss: float | NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return loss


def distillation_loss_with_grad(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: float = 2.0,
    hard_targets: ArrayLike | None = None,
    hard_weight: float = 0.0,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
    grad_out: NDArray[np.floating] | None = None,
    upstream: ArrayLike = 1.0,
) -> tuple[Any, NDArray[np.floating]]:
    r"""Distillation loss and its gradient with respect to the student's logits, in one call.

    .. math::

        g_{ik} = \frac{s_i u_i}{D} \Bigl( (1 - h)\, \tau\, (p_{ik} - q_{ik})
                 + h\, \frac{\partial \ell_i}{\partial z_{ik}} \Bigr)

    in the letters of `distillation_loss`, u `upstream` and D the mean's divisor (1 without "mean").
    Both logits are read once a pass, block by block side by side.

    Parameters
    ----------
    logits, teacher_logits, temperature, hard_targets, hard_weight, axis
        As `distillation_loss`.
    class_weight, ignore_index, label_smoothing
        As `distillation_loss`.
    sample_weight, reduction, divisor, backend, n_threads
        As `distillation_loss`.
    grad_out, upstream
        As `cross_entropy_with_grad`; `grad_out` may be the logits, and shares no memory with the
        teacher's.

    Returns
    -------
    loss : float, or array of the rows' shape
        As `distillation_loss`.
    grad : array of the logits' shape and dtype
        `grad_out` where it was given.

    Raises
    ------
    TypeError, ValueError, IndexError, BackendUnavailableError
        As `distillation_loss` and `cross_entropy_with_grad`.

    See Also
    --------
    distillation_loss : the loss alone.

    Notes
    -----
    Each element within 8 eps (16 in float64) of the sum of the absolute values of its terms, and
    exactly 0 where student and teacher are equal and h is 0. With h = 1 the gradient is
    `cross_entropy_with_grad`'s at a temperature of 1, bit for bit under "none" or the same divisor.

    Memory: as `distillation_loss`.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> student = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> teacher = np.array([[3.0, 1.0, -2.0], [0.0, 2.0, 1.0]])
    >>> loss, grad = sx.distillation_loss_with_grad(student, teacher)
    >>> print(grad.round(6))
    [[-0.06114  -0.022492  0.083633]
     [-0.032043  0.184958 -0.152915]]
    """
    problem = normalise(SPEC, logits, hard_targets, teacher_logits=teacher_logits,
                        temperature=temperature, hard_weight=hard_weight, axis=axis,
                        class_weight=class_weight, ignore_index=ignore_index,
                        label_smoothing=label_smoothing, sample_weight=sample_weight,
                        reduction=reduction, divisor=divisor, wants_map=True, out=grad_out,
                        upstream=upstream)
    return evaluate(problem, backend, n_threads)
