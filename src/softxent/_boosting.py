"""What the objectives of `softxent.xgboost` and `softxent.lightgbm` are: one class.

Neither library is imported: their training data is known by its `get_label`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softxent import _small, cross_entropy_grad_hess


class Objective:
    """Softmax cross-entropy as XGBoost and LightGBM call it, by either of their interfaces.

    Made by `softxent.xgboost.make_objective` and `softxent.lightgbm.make_objective`. It keeps its
    options and `targets`, and nothing from call to call: it may serve several trainings at once, be
    pickled, cloned and sent to other processes.
    """

    def __init__(self, targets: ArrayLike | None, options: dict[str, Any]) -> None:
        self.targets = None if targets is None else np.asarray(targets)
        self.options = options

    # LightGBM looks for three parameters, XGBoost for the name of the third, to pass weights.
    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[
            NDArray[np.float32], NDArray[np.float32]]:
        """Return gradient and Hessian of every row and class.

        Parameters
        ----------
        y_true : array of shape (N,), or (N, C)
            Class numbers, as integers or whole floats; or probabilities. By the native interface
            the margins come first, as ``objective(margins, training_data)``.
        y_pred : array of shape (N, C)
            Margins, which are the logits; or the training data, which has labels and weights.
        sample_weight : array of shape (N,), optional
            Weights of the rows, >= 0.

        Returns
        -------
        grad, hess : arrays of shape (N, C), float32
            New ones, in the margins' memory order, which is the one the library reads.

        Raises
        ------
        IndexError, TypeError, ValueError
            As `cross_entropy_grad_hess`; margins of a single class; labels that are no whole
            numbers; `targets` of another number of rows.
        """
        data = y_pred if hasattr(y_pred, "get_label") else None
        if data is not None:
            y_true, y_pred, sample_weight = data.get_label(), y_true, data.get_weight()
        margins = np.asarray(y_pred)
        if margins.ndim != 2 or margins.shape[1] < 2:
            raise ValueError(
                f"margins must have shape (rows, classes), two classes or more, got {margins.shape}"
                "; set num_class, or for a model of one margin a row use the library's own binary "
                "objective")
        if self.targets is not None:
            labels = _rows_of(self.targets, len(margins), data)
        else:
            labels = _labels(y_true, margins.shape)
        if sample_weight is not None and np.size(sample_weight) == 0:  # XGBoost's "no weights"
            sample_weight = None
        grad, hess = _pair_like(margins)
        if margins.dtype == np.float64:
            # LightGBM keeps scores in float64, gradients in float32: worked in float32, in place.
            grad[...] = margins
            margins = grad
        cross_entropy_grad_hess(margins, labels, sample_weight=sample_weight, grad_out=grad,
                                hess_out=hess, **self.options)
        return grad, hess

    def __deepcopy__(self, memo: dict[int, Any]) -> Objective:
        # LightGBM copies its parameters several times a training, and `targets` may be large.
        return self

    def __repr__(self) -> str:
        shown = dict(self.options)
        if self.targets is not None:
            shown["targets"] = f"<{' x '.join(map(str, self.targets.shape))}>"
        return f"<softmax cross-entropy: {', '.join(f'{k}={v}' for k, v in shown.items())}>"


def _pair_like(margins: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two new arrays in the margins' shape and order, of one piece of memory.

    From 4 MiB on NumPy asks for huge pages, whose first touch costs a fraction of that of 4 KiB
    ones: each of two arrays may be below.
    """
    if margins.flags.f_contiguous:
        pair = np.empty((2, *margins.shape[::-1]), np.float32)
        return pair[0].T, pair[1].T
    pair = np.empty((2, *margins.shape), np.float32)
    return pair[0], pair[1]


def make(targets: ArrayLike | None, **options: Any) -> Objective:
    """Return an objective whose options have been looked at, not first when training begins."""
    objective = Objective(targets, options)
    labels: NDArray[Any] = np.zeros(0, np.int64)  # of no rows: nothing is computed
    n_classes = 2
    if objective.targets is not None:
        if objective.targets.ndim != 2:
            raise ValueError(
                "targets must be probabilities of shape (rows, classes), got shape "
                f"{objective.targets.shape}; class numbers are the training data's labels")
        labels = objective.targets[:0]
        n_classes = labels.shape[1]
    elif options["class_weight"] is not None:
        n_classes = np.size(options["class_weight"])
    cross_entropy_grad_hess(np.zeros((0, n_classes), np.float32), labels, **options)
    return objective


def _labels(y_true: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return labels, which both libraries keep in float32, as class numbers; or probabilities."""
    labels = np.asarray(y_true)
    if labels.size == 0 and shape[0]:
        raise ValueError("the training data has no labels; pass label= with it, or targets= with "
                         "the objective")
    if labels.dtype.kind != "f" or labels.shape == shape:
        return labels
    known = _small.class_numbers(labels, shape[1])
    if known is not None:
        return known
    with np.errstate(invalid="ignore"):  # NaN and what is too large: found to differ
        classes = labels.astype(np.int64)  # which the loss refuses by its own error
        whole = classes.astype(labels.dtype) == labels
    if not whole.all():
        at = int(whole.argmin())
        raise ValueError(
            f"labels must be whole class numbers, 0 to {shape[1] - 1}: label {at} is "
            f"{labels.flat[at]}; class probabilities? pass them as targets= with the objective")
    return classes


def _rows_of(targets: NDArray[Any], n_rows: int, data: Any) -> NDArray[Any]:
    """Return the rows of `targets` that the training data consists of."""
    if len(targets) == n_rows:
        return targets
    # LightGBM's folds know where they come from.
    rows = getattr(data, "used_indices", None)
    if rows is not None and data.reference.num_data() == len(targets):
        part: NDArray[Any] = targets[np.asarray(rows)]
        return part
    raise ValueError(
        f"targets has {len(targets)} rows, the training data {n_rows}; make an objective for this "
        "data, or with XGBoost pass probabilities as its labels, which go along with their rows")
