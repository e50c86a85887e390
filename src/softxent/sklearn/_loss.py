"""scikit-learn's multinomial loss object, computing on softxent."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn._loss.loss import HalfMultinomialLoss as _Loss

import softxent as sx
from softxent.sklearn._closs import HalfMultinomialCLoss


class HalfMultinomialLoss(_Loss):  # type: ignore[misc]
    r"""scikit-learn's loss object of the same name, computing on softxent.

    .. math::

        L_i = -w_i \log p_{i y_i}, \qquad
        g_{ik} = w_i (p_{ik} - [k = y_i]), \qquad
        h_{ik} = w_i \, p_{ik} (1 - p_{ik}), \qquad
        p_{ik} = e^{z_{ik}} / \sum_j e^{z_{ij}}

    for z = `raw_prediction`, each row for itself, not divided by their number. It is a
    `sklearn._loss.HalfMultinomialLoss` in all but its results' accuracy and speed, and goes where
    one goes: ``LinearModelLoss(base_loss=...)``, ``HistGradientBoostingClassifier(loss=...)``. Its
    methods are scikit-learn's own: ``loss``, ``loss_gradient``, ``gradient``,
    ``gradient_hessian``, ``gradient_proba``, ``predict_proba``, ``fit_intercept_only`` and the
    rest of `BaseLoss`.

    Parameters
    ----------
    sample_weight : None or array
        As scikit-learn's, which does not use it here; weights go to the methods.
    n_classes : int, default 3
        C, for ``fit_intercept_only`` and ``init_gradient_and_hessian``.
    **options
        What else scikit-learn's takes (``xp`` and ``device`` in 1.9), to no effect.

    Raises
    ------
    TypeError, ValueError
        From its methods, before any output is touched: for labels that are not floats, as
        scikit-learn has them, or not whole numbers from 0 to C - 1 (scikit-learn reads past the
        row); for shapes that do not fit and weights that are not finite.

    See Also
    --------
    patch : put it under scikit-learn's own estimators.
    softxent.cross_entropy_with_grad : what computes, for arrays of one's own.

    Notes
    -----
    Accuracy is that of `softxent.cross_entropy_with_grad` and `softxent.cross_entropy_grad_hess`:
    a row whose target leads by 17 in float32 (37 in float64) has a loss and a gradient, where
    scikit-learn's are 0. A row of weight 0 has 0 in every output but the probabilities.

    `raw_prediction` and the outputs may have any strides and be float32 or float64, each as it
    likes. ``n_threads`` is 1 by default, as there; None stands for `softxent.get_num_threads`.

    Memory beside the outputs: the labels as int64 and one number a row; 512 KiB where a gradient or
    probabilities have another dtype than `raw_prediction`. Those two are two computations in
    ``gradient_proba``, gradient and Hessian are two in ``gradient_hessian``.

    References
    ----------
    .. [1] scikit-learn, ``sklearn/_loss/loss.py``.

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.sklearn import HalfMultinomialLoss
    >>> loss = HalfMultinomialLoss(n_classes=3)
    >>> y = np.array([0.0, 2.0])
    >>> raw = np.array([[40.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    >>> rows, gradient = loss.loss_gradient(y, raw)
    >>> print([f"{row:.6g}" for row in rows])
    ['8.49671e-18', '3.09492']
    >>> print(f"{gradient[0, 0]:.6g}")
    -8.49671e-18
    """

    def __init__(self, sample_weight: NDArray[np.floating] | None = None, n_classes: int = 3,
                 **options: Any) -> None:
        super().__init__(sample_weight=sample_weight, n_classes=n_classes, **options)
        self.closs = HalfMultinomialCLoss()

    def predict_proba(self, raw_prediction: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the rows' probabilities: `softxent.softmax`.

        Parameters
        ----------
        raw_prediction : array of shape (N, C)
            The logits.

        Returns
        -------
        array of shape (N, C)
            Probabilities, laid out like the logits.
        """
        return sx.softmax(raw_prediction)
