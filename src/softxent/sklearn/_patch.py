"""scikit-learn's own estimators on softxent: putting our loss into their modules, and back."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softxent.sklearn._closs import HalfMultinomialCLoss

NAME = "HalfMultinomialLoss"
HOME = "sklearn._loss.loss"


#: Logits that are worth a second thread between two matrix products, whose threads spin on when
#: they have done (OpenBLAS). Whole fits on two cores, the loss's time on two threads over that on
#: one: 200,000 logits 1.0, 500,000 .8 to .9, 1,000,000 .67 (Zen 3, November 2026).
SHARED_FROM = 2**18


class _Borrowed(HalfMultinomialCLoss):
    """Computes for an object of scikit-learn's, and is scikit-learn's again in a pickle or copy."""

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return importlib.import_module(HOME).CyHalfMultinomialLoss, ()


class _OwnThreads(_Borrowed):
    """For callers whose `n_threads` is a constant, not a wish."""

    def _threads(self, n_threads: int | None, raw_prediction: NDArray[np.floating]) -> int | None:
        return None if raw_prediction.size >= SHARED_FROM else 1


#: Modules that make loss objects by the name NAME, and what these are to compute by.
#: LogisticRegression passes n_threads=1 whatever there is (scikit-learn's issue 32162).
PLACES: dict[str, type[_Borrowed]] = {
    "sklearn.linear_model._logistic": _OwnThreads,
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting": _Borrowed,
}

#: The calls of `patch` that hold.
_holding: list[Patch] = []


class _Maker:
    """What stands in a module in the place of scikit-learn's class, and knows it."""

    def __init__(self, original: Any, closs: type[_Borrowed]) -> None:
        self.original = original
        self.closs = closs

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        loss = self.original(*arguments, **options)
        loss.closs = self.closs()
        return loss


class Patch:
    """What `patch` returns: enter it to have the patch undone at the end. Good for once."""

    def __init__(self) -> None:
        self._entered = False
        _holding.append(self)

    def __enter__(self) -> None:
        """Nothing is left to do: the call has patched."""
        if self._entered:
            raise RuntimeError("a patch is entered once: call patch() again for each `with`")
        self._entered = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give scikit-learn its loss back, unless another call of `patch` holds."""
        if self in _holding:  # else `unpatch` was called meanwhile
            _holding.remove(self)
        _settle()


def patch() -> Patch:
    """Make scikit-learn's own estimators compute their multinomial loss by softxent.

    `LogisticRegression` and `LogisticRegressionCV` (solvers "lbfgs", "newton-cg" and
    "newton-cholesky") and `HistGradientBoostingClassifier`, of three classes and more, make loss
    objects whose computing is softxent's; all else of them is scikit-learn's. They do what they
    did: with results of the same quality or better, not of the same bits.

    Returns
    -------
    context manager
        Need not be entered: the patch holds from the call on, until `unpatch`. As a context manager
        it ends with the block, also by an exception. Calls may be nested and repeated; the patch
        holds as long as one of them does.

    Raises
    ------
    ModuleNotFoundError
        scikit-learn is not installed.
    RuntimeError
        This scikit-learn is made differently inside; the message says which and what is missing.
        Nothing is replaced then.

    See Also
    --------
    unpatch : the way back, of all calls at once.
    softxent.sklearn.HalfMultinomialLoss : for estimators of one's own.

    Notes
    -----
    *All threads of the process* are concerned, since two modules' attributes are replaced: a fit
    that another thread starts meanwhile takes the loss too, and one that has begun keeps the loss
    with which it began.

    *Other processes* are not: workers that joblib starts (``GridSearchCV(n_jobs=2)``) fit with
    scikit-learn's loss, unless they patch themselves:
    ``joblib.parallel_config("loky", initializer=softxent.sklearn.patch)``. Forked ones inherit it.

    *Threads of a fit*: logistic regression computes its loss on one thread in scikit-learn, here,
    from 262,144 logits on, on as many as `softxent.get_num_threads` says, with what limits those
    (`softxent.set_num_threads`, the environment, joblib's workers, threadpoolctl after
    `softxent.register_threadpoolctl`).
    Gradient boosting hands over its own number of threads, which is kept.

    *Fitted estimators* are scikit-learn's: a pickle or deep copy has scikit-learn's loss, whether
    the patch holds or not, and can be loaded where there is no softxent. Probabilities are
    predicted by scikit-learn.

    Untouched: two classes (another loss), solvers "sag", "saga" and "liblinear", arrays that are
    not NumPy's.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from softxent.sklearn import patch
    >>> X, y = load_iris(return_X_y=True)
    >>> with patch():
    ...     model = LogisticRegression(max_iter=200).fit(X, y)
    >>> print(f"{model.score(X, y):.3f}")
    0.973
    """
    _check()
    scope = Patch()
    _settle()
    return scope


def unpatch() -> None:
    """Undo `patch`, however often it was called; without a patch do nothing.

    See Also
    --------
    patch : what is undone.

    Examples
    --------
    >>> from softxent.sklearn import patch, unpatch
    >>> scope = patch()
    >>> unpatch()
    """
    _holding.clear()
    _settle()


def _settle() -> None:
    """Replace, or put back, until that is what the calls that hold ask for.

    Whoever writes last looks once more: no lock, which a fork could copy while it is held.
    """
    settled = None
    while settled != (wanted := bool(_holding)):
        for place, closs in PLACES.items():
            module = sys.modules.get(place)  # `patch` has imported it
            current = getattr(module, NAME, None)
            if wanted and not isinstance(current, _Maker):
                setattr(module, NAME, _Maker(current, closs))
            elif isinstance(current, _Maker) and not wanted:
                setattr(module, NAME, current.original)
        settled = wanted


def _check() -> None:
    """Raise unless scikit-learn is inside as `patch` knows it."""
    version = importlib.import_module("sklearn").__version__
    try:
        _compare()
    except (ImportError, AttributeError, TypeError) as error:
        raise RuntimeError(
            f"scikit-learn {version} is made differently inside than patch() knows it: {error}. "
            "Nothing was replaced. Leave patch() out, or install scikit-learn 1.5 to 1.9, "
            "which were tried") from error


def _compare() -> None:
    """Raise ImportError, AttributeError or TypeError for what has moved."""
    home = importlib.import_module(HOME)
    for place in PLACES:
        current = getattr(importlib.import_module(place), NAME)
        if current is not getattr(home, NAME) and not isinstance(current, _Maker):
            raise TypeError(f"{place}.{NAME} is not {HOME}'s")
    theirs = getattr(home, NAME)(n_classes=3).closs
    if type(theirs) is not home.CyHalfMultinomialLoss:
        raise TypeError(f"{NAME}.closs is no CyHalfMultinomialLoss but {type(theirs)}")
    for name in dir(theirs):
        if not name.startswith("_"):
            ours = getattr(HalfMultinomialCLoss, name)
            if _parameters(getattr(theirs, name)) != _parameters(ours):
                raise TypeError(f"CyHalfMultinomialLoss.{name} takes other arguments")


def _parameters(function: Callable[..., Any]) -> list[str]:
    # Cython's bound methods of several types still show their `self`.
    return [name for name in inspect.signature(function).parameters if name != "self"]
