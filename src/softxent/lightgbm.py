"""Softmax cross-entropy as an objective of LightGBM, from 4.0 on.

`multiclass_objective` is LightGBM's own "multiclass", for both of its interfaces; `make_objective`
has soft targets, label smoothing, class weights, other Hessians::

    import lightgbm, numpy as np, softxent as sx
    from softxent.lightgbm import multiclass_objective

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = x[:, :3].argmax(axis=1)

    parameters = {"objective": multiclass_objective, "num_class": 3, "verbose": -1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, y), 20)
    probabilities = sx.softmax(booster.predict(x))

    model = lightgbm.LGBMClassifier(objective=multiclass_objective, n_estimators=20, verbose=-1)
    probabilities = sx.softmax(model.fit(x, y).predict(x, raw_score=True))

With an objective of one's own LightGBM predicts scores, not probabilities, and its "multi_logloss"
takes them for probabilities. As it should be, for `feval`::

    def logloss(preds, data):
        return "logloss", sx.cross_entropy(preds, data.get_label().astype(int),
                                           sample_weight=data.get_weight()), False

It starts from scores of 0, LightGBM's own from the labels' log-frequencies: to compare them, give
that one `boost_from_average=False`, or the data these as `init_score`.
"""

from __future__ import annotations

from typing import SupportsIndex

from numpy.typing import ArrayLike

from softxent._boosting import Objective, make

__all__ = ["make_objective", "multiclass_objective"]


def make_objective(
    *,
    hessian: str = "lightgbm",
    targets: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex | None = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    backend: str | None = None,
    n_threads: int | None = None,
) -> Objective:
    r"""Return softmax cross-entropy with options as an objective of LightGBM.

    .. math:: g_{ik} = s_i \, (p_{ik} - t_{ik}), \qquad
              h_{ik} = \frac{C}{C - 1} s_i \, p_{ik} (1 - p_{ik})

    with p the softmax of row i's scores, t its label one-hot and s its weight: what "multiclass" of
    LightGBM 4.7 has. `cross_entropy_grad_hess` has it with all options.

    Parameters
    ----------
    hessian : {"lightgbm", "diagonal", "xgboost", "xgboost-residual"}
        "lightgbm" as above, "diagonal" without the factor, which matters most for few classes.
    targets : array of shape (N, C), optional
        Probabilities, in place of the training data's labels (which LightGBM asks for all the
        same). They are not copied, and are of all its rows; folds of `lightgbm.cv` take theirs.
    class_weight : array of shape (C,), optional
        As `cross_entropy`; times the training data's weights.
    ignore_index : int or None, default -100
        Rows with this label have gradient and Hessian 0.
    label_smoothing, temperature
        As `cross_entropy`. (Probabilities are then the softmax of scores / `temperature`.)
    backend, n_threads
        As `cross_entropy`. LightGBM's own threads are its `num_threads`.

    Returns
    -------
    Objective
        To be passed as the parameter "objective" of `lightgbm.train` and `lightgbm.cv`, or
        `objective` of LGBMClassifier.

    Raises
    ------
    TypeError, ValueError, BackendUnavailableError
        An option that does not fit. What comes with a round is looked at there: labels that are no
        whole numbers, or out of range (IndexError), weights, numbers of rows; a model of one score
        a row, as LGBMClassifier makes of two classes (`lightgbm.train` takes a `num_class` of 2).

    See Also
    --------
    softxent.cross_entropy_grad_hess : what a round calls.

    Notes
    -----
    LightGBM keeps scores in float64 and gradients in float32: a round is worked in float32, so a
    gradient has a relative error of up to 6e-8 times the scores' size. What it returns is in the
    order in which LightGBM reads it. Memory: gradient and Hessian, float32, and as `cross_entropy`;
    a copy of a fold's rows of `targets`.

    References
    ----------
    .. [1] G. Ke et al., "LightGBM: a highly efficient gradient boosting decision tree", NIPS
       (2017).

    Examples
    --------
    >>> import numpy as np
    >>> from softxent.lightgbm import make_objective
    >>> objective = make_objective(label_smoothing=0.1)
    >>> grad, hess = objective(np.array([0.0, 1.0]), np.zeros((2, 2)))
    >>> print(grad)
    [[-0.45  0.45]
     [ 0.45 -0.45]]
    """
    return make(targets, hessian=hessian, class_weight=class_weight, ignore_index=ignore_index,
                label_smoothing=label_smoothing, temperature=temperature, backend=backend,
                n_threads=n_threads)


#: `make_objective()`: LightGBM's own, as ``objective(preds, train_data)`` and as
#: ``objective(y_true, y_pred, weight)``.
multiclass_objective = Objective(None, {"hessian": "lightgbm"})
