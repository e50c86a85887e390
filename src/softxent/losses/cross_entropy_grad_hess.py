"""Cross-entropy with its gradient and the diagonal of its Hessian, for boosting."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent import _small
from softxent._problem import Problem, matrix, rows_output, rows_that_count
from softxent._run import evaluate, evaluate_both
from softxent.losses.cross_entropy import SPEC

#: Dtypes that outputs may have beside the logits'.
FLOATS = ("float32", "float64")
#: Rows' worth of elements at a time where the Hessian is made of the gradient: 256 KiB of float64.
PIECE = 32_768


def cross_entropy_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    hessian: str = "diagonal",
    axis: SupportsIndex = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    loss_out: NDArray[np.floating] | None = None,
    grad_out: NDArray[np.floating] | None = None,
    hess_out: NDArray[np.floating] | None = None,
    backend: str | None = None,
    n_threads: int | None = None,
) -> tuple[Any, Any, Any]:
    r"""Cross-entropy a row, its gradient, and the diagonal of its Hessian.

    .. math::

        g_{ik} = \frac{s_i}{\tau} \bigl( A_i p_{ik} - v_k t_{ik} \bigr), \qquad
        h_{ik} = \frac{s_i A_i}{\tau^2} \, p_{ik} (1 - p_{ik}), \qquad
        A_i = \sum_j v_j t_{ij}

    in the letters of `cross_entropy`, t with its label smoothing, nothing divided by the number of
    rows. For gradient boosting and other Newton-type solvers, which ask for both derivatives of
    every row and class.

    Parameters
    ----------
    logits, targets
        As `cross_entropy`.
    hessian : {"diagonal", "xgboost", "xgboost-residual", "lightgbm"}
        "diagonal": h. "xgboost": 2h, at least 1e-16, as XGBoost's own objective had it;
        "xgboost-residual": :math:`|g| / \tau`, at least 1e-16, as it has it since its pull request
        12537. "lightgbm": h C / (C - 1), as LightGBM's own, of two classes and more. Rows that do
        not count have 0.
    axis, class_weight, sample_weight, ignore_index, label_smoothing, temperature
        As `cross_entropy`.
    loss_out : array of the rows' shape, float32 or float64, optional
        Receives the row losses.
    grad_out, hess_out : array of the logits' shape, optional
        Receive gradient and Hessian: the logits' dtype, float32 or float64; any strides (XGBoost
        wants C order, LightGBM Fortran's). One of them may be the logits themselves.
    backend, n_threads
        As `cross_entropy`.

    Returns
    -------
    loss : array of the rows' shape
        As ``cross_entropy(..., reduction="none")``.
    grad, hess : array of the logits' shape
        `grad_out` and `hess_out` where given, else new ones of the logits' dtype, laid out like
        them.

    Raises
    ------
    IndexError, TypeError, ValueError, BackendUnavailableError
        As `cross_entropy_with_grad`; for outputs that share memory; for an unknown `hessian`, and
        "lightgbm" with a single class.

    See Also
    --------
    cross_entropy_with_grad : without a Hessian, with reductions and all options.

    Notes
    -----
    Loss and gradient have the bits of `cross_entropy_with_grad` where the output has the logits'
    dtype. The Hessian is within 8 eps (16 in float64) of (p + p\ :sup:`2`) s A / tau\ :sup:`2`, and
    keeps its digits where p is next to 1: of the largest logit, 1 - p is the sum of the others'
    shares. An output wider than the logits' dtype has no more digits than theirs. A row of NaN or
    +inf has NaN in all three.

    One walk over the logits (two by Numba and NumPy). Memory: as `cross_entropy`.

    References
    ----------
    .. [1] J. Friedman, "Greedy function approximation: a gradient boosting machine", Annals of
       Statistics 29 (2001), algorithm 6.
    .. [2] T. Chen, C. Guestrin, "XGBoost: a scalable tree boosting system", KDD (2016).

    Examples
    --------
    >>> import numpy as np, softxent as sx
    >>> logits = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    >>> loss, grad, hess = sx.cross_entropy_grad_hess(logits, [0, 2])
    >>> print(hess.round(6))
    [[0.131805 0.101155 0.040245]
     [0.043228 0.082356 0.043228]]
    """
    problem = _small.normalise(SPEC, logits, targets, axis=axis, class_weight=class_weight,
                               ignore_index=ignore_index, label_smoothing=label_smoothing,
                               temperature=temperature, sample_weight=sample_weight,
                               wants_map=True, out=grad_out,
                               out_dtypes=FLOATS, hessian=(hessian, hess_out))
    rows = None
    if loss_out is not None or hessian == "xgboost-residual":
        if isinstance(problem, _small.Ready):
            problem = problem.plain()
        assert problem.second is not None
        rows = rows_output(problem, loss_out, "loss_out",
                           {"grad_out": problem.out, "hess_out": problem.second.out})
    if hessian == "xgboost-residual":
        assert isinstance(problem, Problem)
        loss, grad = evaluate(problem, backend, n_threads)
        hess = _residuals(problem, grad)
    else:
        loss, grad, hess = evaluate_both(problem, backend, n_threads)
    if rows is not None:
        rows[...] = loss
        loss = loss_out
    return loss, grad, hess


def _residuals(problem: Problem, grad: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the Hessian's stand-in that is made of the gradient, some rows at a time."""
    second = problem.second
    assert second is not None
    call, result = problem.call, second.given_out
    if result is None:
        result = np.empty_like(problem.logits, order="K")
    counts = rows_that_count(call)[..., np.newaxis]
    assert problem.axis is not None
    into, g = (matrix(np.asarray(array), problem.axis) for array in (result, grad))
    step = max(1, PIECE * len(into) // max(into.size, 1))
    for i in range(0, len(into), step):
        some = into[i : i + step]
        np.abs(g[i : i + step], out=some, casting="unsafe")
        some *= second.call.scale
        np.maximum(some, second.call.floor, out=some)
        some *= counts[i : i + step]
    return result
