"""Multinomial logistic regression: scikit-learn's conventions, this library's losses.

Everything is computed in the dtype of X, float32 or float64, but for what the optimiser keeps
(float64) and the loss, which is a float64 total.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from typing import Any

import numpy as np
from joblib import effective_n_jobs  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from softxent import get_num_threads
from softxent.linear import _weight_gradient
from softxent.losses.cross_entropy import cross_entropy_with_grad
from softxent.losses.sigmoid_binary_cross_entropy import sigmoid_binary_cross_entropy_with_grad
from softxent.pieces import log_softmax, softmax

try:  # since scikit-learn 1.9, and experimental there
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands for scikit-learn's where it has none."""


#: Bytes of logits from which dense rows are taken in chunks. (Their time over that of whole logits:
#: 1.2 at 144 kB, 0.86 at 2 MB; Zen 4, one thread, November 2026.)
_WHOLE = 1_000_000
#: Parts of the rows that threads take, whatever their number, which so changes no digit; and bytes
#: of coefficients up to which they do, for each part has a gradient of its own. Larger products are
#: worth a BLAS's own threads; those of a fit's few columns are slower with them. (200,000 x 50, 10
#: classes, 26 iterations, two cores: with a BLAS of two threads 2.0-2.4 s, LogisticRegression too;
#: of one 0.9 s. EPYC, OpenBLAS, November 2026.)
_PARTS = 8
_SHARED = 4_000_000
_DTYPES = [np.float64, np.float32]

Floats = NDArray[np.floating]


class SoftmaxRegression(CallbackSupportMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""Multinomial logistic regression, as scikit-learn's LogisticRegression, on softxent's losses.

    .. math::

        \min_{W, b} \; \frac{1}{\sum_i s_i} \sum_i s_i \,
        \mathrm{cross\_entropy}(W x_i + b, \; y_i)
        + \frac{1}{2 C \sum_i s_i} \lVert W \rVert^2

    with s the sample weights times the class weights; the intercept b is not penalised. With the
    solver "lbfgs" that is LogisticRegression's objective, optimiser and stopping rule, so its
    coefficients too.

    Parameters
    ----------
    C : float, default 1.0
        Inverse strength of the penalty, > 0; infinity: none.
    tol : float or None, default 1e-4
        "lbfgs" stops where no element of the gradient is larger. "sgd" stops where the loss has not
        been smaller than its best minus `tol` for `n_iter_no_change` epochs; None: never.
    max_iter : int, default 100
        At most so many iterations, or epochs.
    solver : {"lbfgs", "sgd"}, default "lbfgs"
        SciPy's L-BFGS-B over all rows, or stochastic gradient descent with momentum over shuffled
        batches.
    fit_intercept : bool, default True
        Whether there is an intercept.
    class_weight : dict, "balanced" or None
        Factors of the sample weights, by class; "balanced": inverse to the classes' (weighted)
        frequencies.
    label_smoothing : float, default 0.0
        How much of each target, 0 ... 1, is spread evenly over all classes.
    warm_start : bool, default False
        Whether `fit` starts from the coefficients there are.
    n_jobs : int or None
        Threads, as scikit-learn counts them; None: softxent's default. Coefficients of more than
        4 MB leave their products to the threads of NumPy's BLAS; with fewer, that has one thread
        during a fit, in the whole process, and rows are shared among threads.
    verbose : int, default 0
        1 or more: print a line an iteration.
    random_state : int, RandomState instance or None
        Shuffles the rows ("sgd").
    batch_size, learning_rate, momentum
        Of "sgd": rows of a batch, 256; step, 0.01; share of the last step that is kept, 0.9.
    n_iter_no_change : int, default 5
        See `tol`.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        The labels.
    coef_ : array of shape (n_classes, n_features), or (1, n_features) for two classes
        W, in the dtype of X. For two classes that of `classes_[1]`, the other's being 0.
    intercept_ : array of shape (n_classes,), or (1,)
        b; zeros without an intercept.
    n_iter_ : array of shape (1,)
        Iterations or epochs that were made.
    loss_curve_ : list of float
        The objective after each iteration; of an epoch the mean over its batches, each as it came.
    n_features_in_, feature_names_in_
        As scikit-learn has them.

    See Also
    --------
    LossCurveDisplay : draws `loss_curve_`.
    sklearn.linear_model.LogisticRegression : has other penalties and solvers.

    Notes
    -----
    Dense and sparse (CSR) X; float32 stays float32. Dense rows of three or more classes are taken
    in chunks, whose logits need up to 64 MB a thread. Beside X the fit has the optimiser's 20 or so
    vectors of the size of the coefficients.

    `partial_fit` makes one epoch of "sgd" over the rows it is given, whatever the solver; its
    penalty is that of these rows.

    scikit-learn's callbacks (`set_callbacks`, since 1.9, experimental) are told of each iteration.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softxent.sklearn import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegression(max_iter=200).fit(X, y)
    >>> model.predict(X[:2])
    array([0, 0])
    >>> print(round(model.score(X, y), 3))
    0.973
    """

    _parameter_constraints: dict[str, Any] = {  # noqa: RUF012
        "C": [Interval(Real, 0, None, closed="right")],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "solver": [StrOptions({"lbfgs", "sgd"})],
        "fit_intercept": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="both")],
        "warm_start": ["boolean"],
        "n_jobs": [None, Integral],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        *,
        C: float = 1.0,
        tol: float | None = 1e-4,
        max_iter: int = 100,
        solver: str = "lbfgs",
        fit_intercept: bool = True,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        warm_start: bool = False,
        n_jobs: int | None = None,
        verbose: int = 0,
        random_state: Any = None,
        batch_size: int = 256,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        n_iter_no_change: int = 5,
    ) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.warm_start = warm_start
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.random_state = random_state
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.n_iter_no_change = n_iter_no_change

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ---- fitting ---------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> SoftmaxRegression:
        """Fit the model.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
            The rows.
        y : array of shape (n_samples,)
            Their labels, of two or more classes.
        sample_weight : array of shape (n_samples,), optional
            Their weights, >= 0.

        Returns
        -------
        SoftmaxRegression
            Itself.

        Raises
        ------
        ValueError
            Labels of one class, a weight that is negative, weights that are all zero, or
            coefficients to start from that do not fit; what scikit-learn's validation refuses.
        """
        if self.tol is None and self.solver == "lbfgs":
            raise ValueError("tol=None, run all epochs, is for solver='sgd'; pass tol=0 to 'lbfgs'")
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=_DTYPES, order="C")
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("y must have at least 2 classes, but the data contains only one "
                             f"class: {classes[0]!r}")
        start = self._start(X, classes, self.coef_ if self.warm_start and hasattr(self, "coef_")
                            else None)
        data = _Data(self, X, y, classes, codes, sample_weight)
        self.classes_ = classes
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        progress = _Progress(self, dict(X=X, y=y, metadata=metadata))
        self.loss_curve_: list[float] = []
        self._velocity = np.zeros(start.shape)
        with data.threads():
            if self.solver == "lbfgs":
                params, converged = self._lbfgs(data, start, progress)
            else:
                params, converged = self._sgd(data, start, progress, self.max_iter)
        self._keep(params, X.dtype)
        self.n_iter_ = np.array([len(self.loss_curve_)], np.int32)
        progress.finish(self._fitted(params, X.dtype))
        if converged:
            warnings.warn(
                f"{self.solver} failed to converge after {len(self.loss_curve_)} iteration(s): "
                f"{converged}. Scale the features, or increase max_iter={self.max_iter} or tol.",
                ConvergenceWarning, stacklevel=3)
        return self

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, classes: ArrayLike | None = None,
                    sample_weight: ArrayLike | None = None) -> SoftmaxRegression:
        """Make one epoch of stochastic gradient descent over some rows.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
            The rows.
        y : array of shape (n_samples,)
            Their labels.
        classes : array of shape (n_classes,), optional
            All labels that there will be; needed at the first call.
        sample_weight : array of shape (n_samples,), optional
            Their weights, >= 0.

        Returns
        -------
        SoftmaxRegression
            Itself.

        Raises
        ------
        ValueError
            As `fit`; `classes` missing at the first call or other ones later; a label that is not
            among them; class_weight="balanced", which needs all rows.
        """
        if self.class_weight == "balanced":
            raise ValueError("class_weight='balanced' needs the labels of all rows, which "
                             "partial_fit has not; pass a dict of weights")
        first = _check_partial_fit_first_call(self, classes)
        try:
            X, y = validate_data(self, X, y, accept_sparse="csr", dtype=_DTYPES, order="C",
                                 reset=first)
            check_classification_targets(y)
            if len(self.classes_) < 2:
                raise ValueError(f"classes must be at least 2, got {self.classes_!r}")
            encoder = LabelEncoder()
            encoder.classes_ = self.classes_
            data = _Data(self, X, y, self.classes_, encoder.transform(y), sample_weight)
        except BaseException:
            if first:  # or the next call would not be the first
                del self.classes_
            raise
        params = self._start(X, self.classes_, None if first else self.coef_)
        if first:
            self.loss_curve_, self._velocity = [], np.zeros(params.shape)
        with data.threads():
            params, _ = self._sgd(data, params, None, 1)
        self._keep(params, X.dtype)
        self.n_iter_ = np.array([len(self.loss_curve_)], np.int32)
        return self

    def _start(self, X: Any, classes: NDArray[Any], coef: Floats | None) -> NDArray[np.float64]:
        """Return parameters to start from: a row an output, the intercept last."""
        n_outputs = 1 if len(classes) == 2 else len(classes)
        params = np.zeros((n_outputs, X.shape[1] + bool(self.fit_intercept)))
        if coef is not None:
            if coef.shape != (n_outputs, X.shape[1]):
                raise ValueError(
                    f"warm_start needs coefficients of shape {(n_outputs, X.shape[1])} for these "
                    f"classes and features, has {coef.shape}; use a new estimator")
            params[:, : X.shape[1]] = coef
            if self.fit_intercept:
                params[:, -1] = self.intercept_
        return params

    def _lbfgs(self, data: _Data, start: NDArray[np.float64],
               progress: _Progress) -> tuple[NDArray[np.float64], str]:
        """Return parameters, and why they are no minimum: "" if they are."""
        shape = start.shape

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            progress.begin()
            loss, grad = data.objective(flat.reshape(shape))
            return loss, grad.ravel()

        def after(intermediate_result: Any) -> None:
            if self._report(float(intermediate_result.fun), progress,
                            intermediate_result.x.reshape(shape), data.X.dtype):
                raise StopIteration

        result = minimize(
            objective, start.ravel(), jac=True, method="L-BFGS-B", callback=after,
            options={"maxiter": self.max_iter, "maxls": 50, "gtol": self.tol,
                     "ftol": 64 * np.finfo(float).eps})
        stopped = result.status in (0, 99)  # 99: a callback asked for it
        return result.x.reshape(shape), "" if stopped else str(result.message)

    def _sgd(self, data: _Data, params: NDArray[np.float64], progress: _Progress | None,
             epochs: int) -> tuple[NDArray[np.float64], str]:
        """Return parameters, and why they are no minimum: "" if the loss has stopped falling."""
        random = check_random_state(self.random_state)
        n = data.X.shape[0]
        size = min(self.batch_size, n)
        velocity, best, waited = self._velocity, np.inf, 0
        for epoch in range(epochs):
            if progress:
                progress.begin()
            order, total = random.permutation(n), 0.0
            for first in range(0, n, size):
                rows = order[first : first + size]
                loss, grad = data.objective(params, rows)
                total += loss * (len(rows) / n)
                with np.errstate(all="ignore"):  # what overflows is found below
                    velocity *= self.momentum
                    velocity -= self.learning_rate * grad
                    params = params + velocity
            if not (np.isfinite(total) and np.isfinite(params).all()):
                raise ValueError(f"the loss overflowed in epoch {epoch + 1}; scale the features, "
                                 f"or lower learning_rate={self.learning_rate}")
            stop = self._report(total, progress, params, data.X.dtype)
            waited = waited + 1 if self.tol is not None and total > best - self.tol else 0
            best = min(best, total)
            if stop or waited >= self.n_iter_no_change:
                return params, ""
        return params, "" if self.tol is None else f"the loss was still falling, at {total:g}"

    def _report(self, loss: float, progress: _Progress | None, params: NDArray[np.float64],
                dtype: np.dtype[Any]) -> bool:
        """Keep and tell the loss of an iteration; return whether a callback wants to stop."""
        self.loss_curve_.append(loss)
        if self.verbose:
            print(f"[{type(self).__name__}] iteration {len(self.loss_curve_)}, loss {loss:.6f}")
        return progress is not None and progress.end(lambda: self._fitted(params, dtype))

    def _fitted(self, params: NDArray[np.float64], dtype: np.dtype[Any]) -> dict[str, Floats]:
        """Return what `params` are as attributes."""
        kept = params.astype(dtype)
        if self.fit_intercept:
            return {"coef_": np.ascontiguousarray(kept[:, :-1]), "intercept_": kept[:, -1].copy()}
        return {"coef_": kept, "intercept_": np.zeros(len(kept), dtype)}

    def _keep(self, params: NDArray[np.float64], dtype: np.dtype[Any]) -> None:
        for name, value in self._fitted(params, dtype).items():
            setattr(self, name, value)

    # ---- predicting ------------------------------------------------------------------------------

    def decision_function(self, X: Any) -> Floats:
        """Return the logits.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
            The rows.

        Returns
        -------
        array of shape (n_samples, n_classes), or (n_samples,) for two classes
            The classes' logits; for two classes that of `classes_[1]`, the other's being 0.
        """
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, accept_sparse="csr", dtype=_DTYPES, reset=False)
        logits: Floats = np.asarray(X @ self.coef_.T) + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def _logits(self, X: Any) -> Floats:
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return np.column_stack([np.zeros_like(logits), logits])
        return logits

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of the largest logit of each row.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
            The rows.

        Returns
        -------
        array of shape (n_samples,)
            Labels.
        """
        largest = self._logits(X).argmax(axis=1)
        found: NDArray[Any] = self.classes_[largest]
        return found

    def predict_proba(self, X: Any) -> Floats:
        """Return the classes' probabilities.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
            The rows.

        Returns
        -------
        array of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        logits = self._logits(X)
        return softmax(logits, out=logits)

    def predict_log_proba(self, X: Any) -> Floats:
        """Return the logarithms of the classes' probabilities, exact where these are 0 or 1.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
            The rows.

        Returns
        -------
        array of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        logits = self._logits(X)
        return log_softmax(logits, out=logits)


class _Data:
    """Rows to learn from, and the objective of parameters over all or some of them."""

    def __init__(self, model: SoftmaxRegression, X: Any, y: NDArray[Any], classes: NDArray[Any],
                 codes: NDArray[np.intp], sample_weight: ArrayLike | None) -> None:
        self.X = X
        self.weight: Floats | None = None
        self.total = float(X.shape[0])
        if sample_weight is not None or model.class_weight is not None:
            s = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
            if model.class_weight is not None:
                s = s * _class_weight(model, classes, y, sample_weight).astype(X.dtype)[codes]
            self.weight = s
            self.total = float(s.sum(dtype=np.float64))
            if self.total <= 0.0:
                raise ValueError("sample weights, times those of the classes, must contain at "
                                 "least one non-zero number")
        self.smoothing = float(model.label_smoothing)
        self.penalty = 1.0 / (model.C * self.total)
        self.n_threads = None if model.n_jobs is None else effective_n_jobs(model.n_jobs)
        self.fit_intercept = bool(model.fit_intercept)
        self.targets: NDArray[Any] = codes
        if len(classes) == 2:
            # One logit, the other being 0: probabilities of classes_[1].
            t = (1.0 - self.smoothing) * codes + self.smoothing / 2
            self.targets = t.astype(X.dtype)[:, None]
            self.weight = None if self.weight is None else self.weight[:, None]
        n, n_features = X.shape
        n_outputs = 1 if len(classes) == 2 else len(classes)
        dense = isinstance(X, np.ndarray)
        self._large = dense and n * n_outputs * X.dtype.itemsize > _WHOLE
        self._shared = n_outputs * n_features * X.dtype.itemsize <= _SHARED
        n_parts = min(_PARTS, n) if self._large and self._shared else 1
        self._parts = [slice(i * n // n_parts, (i + 1) * n // n_parts) for i in range(n_parts)]
        self._pool: ThreadPoolExecutor | None = None

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Have threads for the objective: of our own, with a BLAS of one, where that is faster."""
        if not self._shared:
            yield
            return
        wanted = get_num_threads() if self.n_threads is None else self.n_threads
        with threadpool_limits(1, "blas"), contextlib.ExitStack() as stack:
            if len(self._parts) > 1 and wanted > 1:
                self._pool = stack.enter_context(ThreadPoolExecutor(min(wanted, len(self._parts))))
            yield
        self._pool = None

    def objective(self, params: NDArray[np.float64], rows: NDArray[np.intp] | None = None,
                  ) -> tuple[float, NDArray[np.float64]]:
        """Return the objective and its gradient; of some rows, what stands for all of them."""
        n, n_features = self.X.shape
        divisor = self.total if rows is None else self.total * (len(rows) / n)
        coef = params[:, :n_features]
        narrow = coef.astype(self.X.dtype)
        b = params[:, -1].astype(self.X.dtype) if self.fit_intercept else None
        if rows is not None or len(self._parts) == 1:
            found = [self._part(rows, narrow, b, divisor, self.n_threads)]
        elif self._pool is None:
            found = [self._part(part, narrow, b, divisor, 1) for part in self._parts]
        else:
            # Each in a copy of this context, which may say what backend to take.
            tasks = [self._pool.submit(contextvars.copy_context().run, self._part, part, narrow, b,
                                       divisor, 1) for part in self._parts]
            found = [task.result() for task in tasks]
        grad = np.empty(params.shape)
        grad[:, :n_features] = self.penalty * coef
        loss = 0.5 * self.penalty * float(np.vdot(coef, coef))
        if b is not None:
            grad[:, -1] = 0.0
        for of_part, of_coef, of_b in found:
            loss += of_part
            grad[:, :n_features] += of_coef
            if of_b is not None and b is not None:
                grad[:, -1] += of_b
        return loss, grad

    def _part(self, rows: slice | NDArray[np.intp] | None, coef: Floats, b: Floats | None,
              divisor: float, n_threads: int | None) -> tuple[float, Floats, Floats | None]:
        """Return the share of some rows in the mean loss, and in its gradients."""
        X, y, s = self.X, self.targets, self.weight
        if rows is not None:
            X, y, s = X[rows], y[rows], None if s is None else s[rows]
        binary = len(coef) == 1
        options: dict[str, Any] = dict(sample_weight=s, divisor=divisor, n_threads=n_threads)
        if not binary:
            options["label_smoothing"] = self.smoothing
            if self._large and not isinstance(rows, np.ndarray):
                return _weight_gradient(X, coef, y, bias=b, **options)
        with np.errstate(all="ignore"):
            logits = X @ coef.T
            if b is not None:
                logits += b
            if binary:
                loss, _ = sigmoid_binary_cross_entropy_with_grad(
                    logits, y, grad_out=logits, **options)
            else:
                loss, _ = cross_entropy_with_grad(logits, y, grad_out=logits, **options)
            return loss, (X.T @ logits).T, logits.sum(axis=0, dtype=np.float64)


def _class_weight(
    model: SoftmaxRegression, classes: NDArray[Any], y: NDArray[Any],
    sample_weight: ArrayLike | None,
) -> NDArray[np.float64]:
    options: dict[str, Any] = {}
    # Before it has this (1.6 has not), scikit-learn counts rows, whatever their weights.
    if "sample_weight" in inspect.signature(compute_class_weight).parameters:
        options["sample_weight"] = sample_weight
    found: NDArray[np.float64] = compute_class_weight(
        model.class_weight, classes=classes, y=y, **options)
    return found


class _Progress:
    """Tells scikit-learn's callbacks of a fit and its iterations, where there are callbacks."""

    def __init__(self, estimator: SoftmaxRegression, seen: dict[str, Any]) -> None:
        self._seen = {"estimator": estimator, **seen}
        self._iteration: Any = None
        self._context: Any = None
        if hasattr(estimator, "_init_callback_context"):
            # One more than there are: a line search that fails ends no iteration.
            self._context = estimator._init_callback_context(max_subtasks=estimator.max_iter + 1)
            self._context.call_on_fit_task_begin(**self._seen)

    def begin(self) -> None:
        """Begin an iteration, unless one has begun."""
        if self._context is not None and self._iteration is None:
            self._iteration = self._context.subcontext(task_name="iteration")
            self._iteration.call_on_fit_task_begin(**self._seen)

    def end(self, fitted: Callable[[], dict[str, Floats]]) -> bool:
        """End it, with what is fitted now; return whether a callback wants to stop."""
        if self._iteration is None:
            return False
        stop = self._iteration.call_on_fit_task_end(**self._seen, reconstruction_attributes=fitted)
        self._iteration = None
        return bool(stop)

    def finish(self, fitted: dict[str, Floats]) -> None:
        """End the fit."""
        if self._context is not None:
            self.end(lambda: fitted)
            self._context.call_on_fit_task_end(**self._seen, reconstruction_attributes=fitted)
