"""Softmax cross-entropy, with class numbers or probabilities as targets."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent import _small
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import COMMON, Spec

SPEC = Spec("cross_entropy", Op.CROSS_ENTROPY, {
    "classes": ("axis", "class_weight", "ignore_index", "label_smoothing", "temperature", "softcap",
                "z_loss", *COMMON),
    "probabilities": ("axis", "class_weight", "label_smoothing", "temperature", "softcap", "z_loss",
                      *COMMON),
})


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | NDArray[np.floating]:
    r"""Softmax cross-entropy of logits with class numbers, or with probabilities.

    .. math::

        L_i &= s_i \, \Bigl( \sum_k v_k t_{ik} (\mathrm{lse}_i - z_{ik})
               + \lambda \, \mathrm{lse}_i^2 \Bigr), \qquad
        \mathrm{lse}_i = \log \sum_k e^{z_{ik}} \\
        z_{ik} &= \frac{\kappa}{\tau} \tanh \frac{x_{ik}}{\kappa}, \qquad
        t \leftarrow (1 - \varepsilon) \, t + \varepsilon / C

    with x the logits, t the targets (one-hot for class numbers), s `sample_weight`, v
    `class_weight`, :math:`\varepsilon` `label_smoothing`, :math:`\tau` `temperature`,
    :math:`\kappa` `softcap` (None: z = x / :math:`\tau`) and :math:`\lambda` `z_loss`. By default
    it is lse - z at the target. Pass logits: taking a softmax or a log first costs time and
    accuracy, and probabilities passed as logits train a wrong model.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Unnormalised log-probabilities, any range, any strides and byte order. -inf excludes a
        class.
    targets : array of integers or of floats
        Told apart by dtype. Integers are class numbers 0 ... C-1, or `ignore_index`, in the logits'
        shape without `axis`. Floats are probabilities, in the logits' shape: >= 0 and finite; a
        row that does not sum to 1 is taken as it is.
    axis : int, default -1
        The classes' axis of the logits (1 for PyTorch's (N, C, d1, ...)).
    class_weight : array of shape (C,), optional
        v, >= 0. The terms of a class of weight 0 are exactly 0.
    ignore_index : int or None, default -100
        Rows with this target have loss and gradient 0; their logits are not used. None: no row is
        ignored. Class numbers only.
    label_smoothing : float, default 0.0
        How much of each target, 0 ... 1, is spread evenly over all C classes [2]_.
    temperature : float, default 1.0
        Divides the logits, > 0. (No factor of its square is put back.)
    softcap : float, optional
        Bounds the logits smoothly to within plus and minus this, > 0, before the temperature.
    z_loss : float, default 0.0
        Weight, >= 0, of the squared log-sum-exp, which keeps logits from drifting [3]_.
    sample_weight : array of the rows' shape (the logits' without `axis`), optional
        s, >= 0. A row of weight 0 does not count, as if ignored.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by D: the sum of s_i·v[y_i] over the rows that count (class numbers;
        their number without weights), of s_i (probabilities); 0.0 when nothing counts.
    divisor : float, optional
        Takes D's place, so that the means of micro-batches add up (`mean_divisor`). > 0, or 0: loss
        0.
    backend : {"cython", "numba", "numpy"}, optional
        Default: the fastest that this machine has.
    n_threads : int, optional
        At most so many threads for this call; default `get_num_threads()`.

    Returns
    -------
    float, or array of the rows' shape
        The reduced loss, summed in float64; with "none" the L_i, float32 (float64 for float64
        logits). Nats.

    Raises
    ------
    IndexError
        A target outside [0, C) that is not `ignore_index`.
    TypeError, ValueError
        A dtype, shape, weight, probability or option that does not fit; the message says what
        would.
    BackendUnavailableError
        `backend` cannot be used here.

    See Also
    --------
    cross_entropy_with_grad : the same, with the gradient.
    diagnose : looks for classic mistakes in what is passed here.

    Notes
    -----
    With class numbers, without smoothing and z-loss, a row's loss is within 2 ulp of the true value
    in float32 (6 in float64), however small: where the target leads it is log1p of the other
    classes' share, not a difference of logarithms. Otherwise it is a sum of terms >= 0, within 8
    eps (16) of that sum: with probabilities, (sum of v t) (lse - max z) + sum of v t (max z - z).
    16-bit logits: as float32.

    NaN or +inf in a row that counts, or all of it -inf, makes its loss NaN; target mass on a logit
    of -inf, +inf (label smoothing puts some on every class of weight > 0).

    Memory: one number a row and up to 1 MiB a thread ("numpy": 64 MiB in all).

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA Journal of Numerical Analysis 41 (2021).
    .. [2] C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR
       (2016), section 7.
    .. [3] A. Chowdhery et al., "PaLM: scaling language modeling with pathways", JMLR 24 (2023),
       section 5.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> print(f"{sx.cross_entropy(logits, [0, 2]):.6f}")
    1.632384
    >>> print(f"{sx.cross_entropy(logits, [0, 2], label_smoothing=0.1):.6f}")
    1.665718
    >>> soft = np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]])
    >>> print(f"{sx.cross_entropy(logits, soft):.6f}")
    0.982384
    >>> print(f"{sx.cross_entropy(np.array([40.0, 0.0]), 0):.6g}")
    4.24835e-18
    """
    problem = _small.normalise(
        SPEC, logits, targets, axis=axis, class_weight=class_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
        sample_weight=sample_weight, reduction=reduction, divisor=divisor
    )
    loss: float | NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return loss


def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
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
    r"""Softmax cross-entropy and its gradient with respect to the logits, in one call.

    .. math::

        g_{ik} &= \frac{s_i u_i}{\tau D} \, J_{ik} \bigl( A_i p_{ik} - v_k t_{ik} \bigr), \qquad
        A_i = \sum_j v_j t_{ij} + 2 \lambda \, \mathrm{lse}_i \\
        J_{ik} &= \operatorname{sech}^2 (x_{ik} / \kappa)

    in `cross_entropy`'s letters, p the softmax of z, u `upstream`, D the mean's divisor (1 for
    "sum", "none"), J = 1 without a softcap. By default it is (p - one_hot(target)) / N.

    Parameters
    ----------
    logits, targets, axis, class_weight, ignore_index, label_smoothing, temperature, softcap, z_loss
        As `cross_entropy`.
    sample_weight, reduction, divisor, backend, n_threads
        As `cross_entropy`.
    grad_out : array of the logits' shape and dtype, optional
        Receives the gradient (of 16-bit logits: float32 too); any strides. `grad_out=logits`
        overwrites the logits in place, with the same bits. Nothing else may share memory with it.
        Default: a new array laid out like the logits.
    upstream : float, or with reduction="none" an array of the rows' shape
        The derivative with respect to the loss (PyTorch's grad_output, JAX's cotangent; a loss
        scale). Any sign.

    Returns
    -------
    loss : float, or array of the rows' shape
        As `cross_entropy`.
    grad : array of the logits' shape and dtype
        `grad_out` where it was given. With respect to the logits as given, temperature and softcap
        included.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `cross_entropy`, and for a `grad_out` or `upstream` that does not fit; before anything
        is written. Only a probability that is negative, NaN or infinite may be found at the end:
        `grad_out` then holds anything (logits to be overwritten are still whole).

    See Also
    --------
    cross_entropy : the loss alone.
    softmax_vjp : for a loss of the probabilities that is not here.

    Notes
    -----
    With class numbers, without smoothing, z-loss and softcap, every element is within 4 ulp of the
    true value in float32 (6 in float64) where it is a normal number, the target's too: that one is
    -S'/S, S' the sum over the other classes, where p - 1 would cancel. Otherwise it is within 4 eps
    (8) of the two terms of the difference, each by its absolute value. Rows sum to 0 within 2 eps
    (8) of their absolute sum, but for softcap and z-loss. 16-bit gradients are float32's, rounded
    once.

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
    problem = _small.normalise(
        SPEC, logits, targets, axis=axis, class_weight=class_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, temperature=temperature, softcap=softcap, z_loss=z_loss,
        sample_weight=sample_weight, reduction=reduction, divisor=divisor, wants_map=True,
        out=grad_out, upstream=upstream
    )
    return evaluate(problem, backend, n_threads)
