"""A whole fit."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._cells import Timed, once


class Trainer(Timed):
    """An estimator in scikit-learn's manner, on data that has structure; which one is yours to say.

    Override `estimator`, and `params` for other data: rows, features and classes.
    """

    repeat = (2, 5, 2.0)
    params = (("1797x64x10", "20000x50x10", "5000x100x100"),)
    param_names = ("data",)

    def estimator(self) -> Any:
        """Return what is to be fitted, new."""
        try:
            from softxent.sklearn import SoftmaxRegression
        except ImportError as error:
            raise NotImplementedError(f"no SoftmaxRegression here: {error}") from error
        return SoftmaxRegression(max_iter=50)

    def setup(self, data: str) -> None:
        """Make the data; a first fit may compile."""
        self.x, self.y = made(data)
        once((type(self), data), lambda: self.time_fit(data))

    def time_fit(self, data: str) -> None:
        """Fit an estimator that is new."""
        _fit(self.estimator(), self.x, self.y)

    def track_final_loss(self, data: str) -> float:
        """Return the mean loss over the data it was fitted to, by `predict_proba`."""
        p = _fit(self.estimator(), self.x, self.y).predict_proba(self.x)
        at_target = p[np.arange(len(self.y)), self.y]
        return float(-np.log(np.maximum(at_target, np.finfo(p.dtype).tiny)).mean())


@functools.lru_cache(maxsize=1)
def made(data: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return rows around their classes' centres, near enough to each other to be confused."""
    rows, features, classes = map(int, data.split("x"))
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, rows)
    centres = rng.standard_normal((classes, features)) * (4 / np.sqrt(features))
    return centres[y] + rng.standard_normal((rows, features)), y


def _fit(estimator: Any, x: NDArray[np.float64], y: NDArray[np.int64]) -> Any:
    with warnings.catch_warnings():
        # That so many iterations are not all there could be is meant.
        warnings.simplefilter("ignore")
        return estimator.fit(x, y)
