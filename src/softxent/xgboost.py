"""Softmax cross-entropy as an objective of XGBoost, from 2.1 on.

`softprob_objective` is XGBoost's own "multi:softprob", for both of its interfaces; `make_objective`
has soft targets, label smoothing, class weights, other Hessians::

    import numpy as np, xgboost
    from softxent.xgboost import softprob_objective

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = x[:, :3].argmax(axis=1)

    data = xgboost.DMatrix(x, label=y)
    booster = xgboost.train({"objective": "multi:softprob", "num_class": 3}, data, 20,
                            obj=softprob_objective)
    probabilities = booster.predict(data)

    model = xgboost.XGBClassifier(objective=softprob_objective, n_estimators=20).fit(x, y)
    probabilities = model.predict_proba(x)

Name "multi:softprob" among the parameters all the same (XGBClassifier does): metrics and `predict`
then have probabilities. Without it `predict` gives margins, for `softxent.softmax`.

An objective of one's own starts where `base_score` says, by default 0.5 in every class; XGBoost's
starts, since 3.1, where the labels' frequencies say. Pass the same `base_score` to compare them.
"""

from __future__ import annotations

from typing import SupportsIndex

from numpy.typing import ArrayLike

from softxent._boosting import Objective, make

__all__ = ["make_objective", "softprob_objective"]


def make_objective(
    *,
    hessian: str = "xgboost",
    targets: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Objective:
    r"""Return softmax cross-entropy with options as an objective of XGBoost.

    .. math:: g_{ik} = s_i \, (p_{ik} - t_{ik}), \qquad
              h_{ik} = \max(2 s_i \, p_{ik} (1 - p_{ik}), 10^{-16})

    with p the softmax of row i's margins, t its label one-hot and s its weight: what
    "multi:softprob" of XGBoost 3.2 has. `cross_entropy_grad_hess` has it with all options.

    Parameters
    ----------
    hessian : {"xgboost", "xgboost-residual", "diagonal", "lightgbm"}
        "xgboost" as above, "xgboost-residual" as XGBoost's own has it since its pull request 12537,
        which is later than 3.2; "diagonal" without factor and floor: steps are up to twice as long.
    targets : array of shape (N, C), optional
        Probabilities, in place of the training data's labels. They are not copied, and are of all
        its rows; where it is divided (`xgboost.cv`), pass them as its labels and leave `num_class`
        out: ``DMatrix(x, label=probabilities)``.
    class_weight : array of shape (C,), optional
        As `cross_entropy`; times the training data's weights.
    ignore_index : int or None, default -100
        Rows with this label have gradient and Hessian 0.
    label_smoothing, temperature
        As `cross_entropy`. (Probabilities are then the softmax of margins / `temperature`.)
    backend, n_threads
        As `cross_entropy`. XGBoost's own threads are its `nthread`.

    Returns
    -------
    Objective
        To be passed as `obj` to `xgboost.train` and `xgboost.cv`, as `objective` to XGBClassifier.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        An option that does not fit. What comes with a round is looked at there: labels that are no
        whole numbers, or out of range (IndexError), weights, numbers of rows; a model of one margin
        a row, as XGBClassifier makes of two classes (`xgboost.train` takes a `num_class` of 2).

    See Also
    --------
    softxent.cross_entropy_grad_hess : what a round calls.

    Notes
    -----
    Rounds read margins where XGBoost has put them, and write gradient and Hessian where it reads
    them. Memory: these two, float32, and as `cross_entropy`.

    References
    ----------
    .. [1] T. Chen, C. Guestrin, "XGBoost: a scalable tree boosting system", KDD (2016).

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.xgboost import make_objective
    >>> objective = make_objective(label_smoothing=0.1)
    >>> grad, hess = objective(np.array([0.0, 1.0]), np.zeros((2, 2), np.float32))
    >>> print(grad)
    [[-0.45  0.45]
     [ 0.45 -0.45]]
    """
    return make(targets, hessian=hessian, class_weight=class_weight, ignore_index=ignore_index,
                label_smoothing=label_smoothing, temperature=temperature, backend=backend,
                n_threads=n_threads)


#: `make_objective()`: XGBoost's own, as ``objective(margins, dtrain)`` and as
#: ``objective(y_true, y_pred, sample_weight=None)``.
softprob_objective = Objective(None, {"hessian": "xgboost"})
