"""Kullback-Leibler divergence of a softmax from probabilities."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent._problem import normalise
from softxent._run import evaluate
from softxent.backends._contract import Op
from softxent.losses._spec import COMMON, Spec

SPEC = Spec("kl_divergence", Op.KL, {
    "probabilities": ("axis", "temperature", "softcap", *COMMON),
})


def kl_divergence(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    temperature: float = 1.0,
    softcap: float | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> float | NDArray[np.floating]:
    r"""Kullback-Leibler divergence of the logits' softmax from given probabilities.

    .. math::

        L_i = s_i \Bigl( \sum_k t_{ik} \log t_{ik} - \sum_k t_{ik} \log p_{ik} \Bigr), \qquad
        \log p_{ik} = z_{ik} - \mathrm{lse}_i, \qquad 0 \log 0 = 0

    with t the targets, z the logits behind softcap and temperature, s `sample_weight`:
    `cross_entropy` less the targets' own entropy, so that its gradient is `cross_entropy`'s, and 0
    is reached where the softmax is the targets. Pass logits, not log-probabilities, and
    probabilities, not their logarithms.

    Parameters
    ----------
    logits : array of shape (..., C, ...), float32, float64, float16 or bfloat16
        Unnormalised log-probabilities, any range, any strides and byte order. -inf excludes a
        class.
    targets : array of floats of the logits' shape
        Probabilities t, >= 0 and finite; a row that does not sum to 1 is taken as it is.
    axis, temperature, softcap, sample_weight
        As `cross_entropy`. (The temperature divides the logits alone, and no factor of its square
        is put back.)
    reduction : {"mean", "sum", "none"}
        "mean" is PyTorch's "batchmean": the sum of the rows' values over the sum of s_i, the
        number of rows without weights.
    divisor, backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    float, or array of the rows' shape
        As `cross_entropy`. Of targets that sum to 1 within 8 eps of their dtype, >= 0.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As `cross_entropy`; class numbers as targets are a `TypeError`.

    See Also
    --------
    kl_divergence_with_grad : the same, with the gradient.
    cross_entropy : without the targets' entropy.

    Notes
    -----
    Within 8 eps (16 in float64) of the sum of the absolute values of the formula's two sums, eps
    that of the logits' dtype (16 bits: float32's). A target on a logit of -inf makes it +inf.

    PyTorch's `kl_div` takes log-probabilities first, and its reduction="mean" divides by the number
    of elements.

    Memory: as `cross_entropy`.

    References
    ----------
    .. [1] S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of Mathematical
       Statistics 22 (1951).

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> targets = np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]])
    >>> print(sx.kl_divergence(logits, targets, reduction="none").round(6))
    [0.044763 0.901776]
    """
    problem = normalise(SPEC, logits, targets, axis=axis, temperature=temperature, softcap=softcap,
                        sample_weight=sample_weight, reduction=reduction, divisor=divisor)
    loss: float | NDArray[np.floating] = evaluate(problem, backend, n_threads)[0]
    return loss


def kl_divergence_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    temperature: float = 1.0,
    softcap: float | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    divisor: float | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
    grad_out: NDArray[np.floating] | None = None,
    upstream: ArrayLike = 1.0,
) -> tuple[Any, NDArray[np.floating]]:
    r"""Kullback-Leibler divergence and its gradient with respect to the logits, in one call.

    .. math::

        g_{ik} = \frac{s_i u_i}{\tau D} \, J_{ik} \Bigl( p_{ik} \sum_j t_{ij} - t_{ik} \Bigr)

    in the letters of `cross_entropy_with_grad`, whose gradient with the same targets it is, bit for
    bit: the targets' entropy is a constant.

    Parameters
    ----------
    logits, targets, axis, temperature, softcap
        As `kl_divergence`.
    sample_weight, reduction, divisor, backend, n_threads
        As `kl_divergence`.
    grad_out, upstream
        As `cross_entropy_with_grad`.

    Returns
    -------
    loss : float, or array of the rows' shape
        As `kl_divergence`.
    grad : array of the logits' shape and dtype
        `grad_out` where it was given.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        As `cross_entropy_with_grad` with probabilities.

    See Also
    --------
    kl_divergence : the loss alone.

    Notes
    -----
    Accuracy and memory: as `cross_entropy_with_grad` with probabilities.

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> targets = np.array([[0.9, 0.1, 0.0], [0.0, 0.5, 0.5]])
    >>> loss, grad = sx.kl_divergence_with_grad(logits, targets)
    >>> print(grad.round(6))
    [[-0.028103  0.007098  0.021005]
     [ 0.022639  0.204721 -0.227361]]
    """
    problem = normalise(SPEC, logits, targets, axis=axis, temperature=temperature, softcap=softcap,
                        sample_weight=sample_weight, reduction=reduction, divisor=divisor,
                        wants_map=True, out=grad_out, upstream=upstream)
    return evaluate(problem, backend, n_threads)
