"""SoftmaxRegression: scikit-learn's checks, LogisticRegression's coefficients, and what is more."""
# ruff: noqa: E402

from __future__ import annotations

import inspect
import io
import pickle
import threading
import tracemalloc
import warnings
from contextlib import redirect_stdout

import numpy as np
import pytest

import softxent as sx

pytest.importorskip("sklearn", "1.6")
threadpoolctl = pytest.importorskip("threadpoolctl")
sparse = pytest.importorskip("scipy.sparse")

from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from softxent.sklearn import LossCurveDisplay, SoftmaxRegression
from softxent.sklearn import _regression as regression
from test_layers import described, sections


# Iris as it comes takes more than 100 iterations, LogisticRegression's too.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([
    SoftmaxRegression(), SoftmaxRegression(solver="sgd"),
    SoftmaxRegression(label_smoothing=0.1, C=10.0)])
def test_scikit_learns_checks(estimator, check):
    """All of them, none expected to fail."""
    check(estimator)


def iris(dtype=np.float64, n_classes=3):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < n_classes], y[y < n_classes]
    return StandardScaler().fit_transform(X).astype(dtype), y


@pytest.fixture(params=["whole", "chunks"])
def way(request, monkeypatch):
    """Logits as one array, and dense rows in chunks."""
    monkeypatch.setattr(regression, "_WHOLE", 0 if request.param == "chunks" else 1 << 60)


# ---- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
def test_threads_change_no_digit_and_do_not_stay(n_classes, monkeypatch):
    """Nor does a BLAS keep its limit; the backend of this context is that of each thread."""
    monkeypatch.setattr(regression, "_WHOLE", 0)
    monkeypatch.setattr(regression, "effective_n_jobs", lambda n: n)
    X, y = iris(n_classes=n_classes)
    started = threading.active_count()
    blas = [library["num_threads"] for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"]
    fitted = {}
    for backend in (None, "numpy"):
        with sx.set_backend(backend):
            for n_jobs in (1, 2, 3):
                model = SoftmaxRegression(n_jobs=n_jobs).fit(X, y)
                fitted.setdefault(backend, set()).add(model.coef_.tobytes())
    assert [len(each) for each in fitted.values()] == [1, 1]
    assert threading.active_count() == started
    assert blas == [library["num_threads"] for library in threadpoolctl.threadpool_info()
                    if library["user_api"] == "blas"]


# ---- the same model as LogisticRegression --------------------------------------------------------

WEIGHTS = np.random.default_rng(0).integers(0, 4, 150).astype(float)
SETTINGS = {
    "default": ({}, None),
    "C": ({"C": 0.03}, None),
    "no penalty": ({"C": np.inf, "max_iter": 30}, None),
    "no intercept": ({"fit_intercept": False}, None),
    "sample weights": ({}, WEIGHTS),
    "balanced": ({"class_weight": "balanced"}, WEIGHTS),
    "class weights": ({"class_weight": {0: 3.0, 1: 0.5}}, None),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", ["dense", "dense, in chunks", "csr_array", "csc_matrix"])
def test_coefficients_are_logistic_regressions(name, n_classes, kind, monkeypatch):
    """After as many iterations, and where both have stopped."""
    if kind == "dense, in chunks":
        monkeypatch.setattr(regression, "_WHOLE", 0)
    options, weight = SETTINGS[name]
    X, y = iris(n_classes=n_classes)
    weight = None if weight is None else weight[: len(y)]
    given = X if kind.startswith("dense") else getattr(sparse, kind)(X)
    for stop in ({"max_iter": 10}, {"max_iter": 2000, "tol": 1e-10}):
        if name == "no penalty" and "tol" in stop:
            continue    # separable classes: there is no minimum
        options = {**options, **stop}
        theirs, ours = LogisticRegression(**options), SoftmaxRegression(**options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs.fit(X, y, weight)
            ours.fit(given, y, weight)
        assert ours.coef_.shape == theirs.coef_.shape
        assert ours.intercept_.shape == theirs.intercept_.shape
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours.decision_function(given), theirs.decision_function(X),
                                   atol=1e-5)
        np.testing.assert_allclose(ours.predict_proba(given), theirs.predict_proba(X), atol=1e-6)
        np.testing.assert_allclose(ours.predict_log_proba(given), theirs.predict_log_proba(X),
                                   atol=1e-5)
        np.testing.assert_array_equal(ours.predict(given), theirs.predict(X))
        if "tol" not in stop:
            np.testing.assert_array_equal(ours.n_iter_, theirs.n_iter_)


# ---- the objective, independently ----------------------------------------------------------------


def objective(coef, b, X, y, weight, C, epsilon):
    """The class docstring's formula, in float64 NumPy."""
    z = X @ coef.T + b
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), z])
    t = (1 - epsilon) * np.eye(z.shape[1])[y] + epsilon / z.shape[1]
    top = z.max(axis=1, keepdims=True)
    log_p = z - top - np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    return ((weight * -(t * log_p).sum(axis=1)).sum() + (coef**2).sum() / (2 * C)) / weight.sum()


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_is_the_minimum(n_classes, epsilon, weighted, way):
    X, y = iris(n_classes=n_classes)
    weight = WEIGHTS[: len(y)] if weighted else np.ones(len(y))
    model = SoftmaxRegression(C=2.0, label_smoothing=epsilon, tol=1e-9, max_iter=1000)
    model.fit(X, y, weight if weighted else None)
    args = X, y, weight, 2.0, epsilon
    least = objective(model.coef_, model.intercept_, *args)
    assert model.loss_curve_[-1] == pytest.approx(least, rel=1e-12)
    assert len(model.loss_curve_) == model.n_iter_[0]
    random = np.random.default_rng(0)
    for _ in range(5):
        d, e = random.standard_normal(model.coef_.shape), random.standard_normal(len(model.coef_))
        ends = [objective(model.coef_ + h * d, model.intercept_ + h * e, *args)
                for h in (1e-4, -1e-4)]
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(0, abs=1e-6)
        assert min(ends) > least


def test_mistakes_that_are_sure_are_still_learned_from():
    """p = 1 - 1e-20 of the wrong class, in float32: the loss is 46, log p of the right one too."""
    X = np.array([[1.0], [-1.0], [0.5]], np.float32)
    model = SoftmaxRegression(max_iter=1, fit_intercept=False)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, [0, 1, 0])
    model.coef_[:] = 46.0
    log_p = model.predict_log_proba(X)
    np.testing.assert_allclose(log_p[0, 0], -46.0, rtol=1e-6)
    np.testing.assert_allclose(log_p[0, 1], -np.exp(-46.0), rtol=1e-6)
    assert model.predict_proba(X)[0, 0] == pytest.approx(np.exp(-46.0), rel=1e-5)
    model.coef_[:] = 1e4
    assert model.predict_proba(X).tolist() == [[0, 1], [1, 0], [0, 1]]


# ---- what goes in --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "csr_array"])
@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_float32_stays_float32(kind, solver, n_classes, way):
    X, y = iris(np.float32, n_classes)
    given = X if kind == "dense" else sparse.csr_array(X)
    model = SoftmaxRegression(solver=solver, tol=1e-3, max_iter=1000, random_state=0).fit(given, y)
    for value in (model.coef_, model.intercept_, model.decision_function(given),
                  model.predict_proba(given), model.predict_log_proba(given)):
        assert value.dtype == np.float32
    wide = clone(model).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(model.predict_proba(given), wide.predict_proba(X), atol=2e-3)


def test_no_copy_of_float32_rows_is_made():
    """Nor their logits as a whole: chunks are less than the rows' half."""
    X = np.random.default_rng(0).standard_normal((400_000, 30), np.float32)    # 48 MB
    y = (X[:, :8].argmax(axis=1)).astype(np.int8)
    model = SoftmaxRegression(max_iter=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X[:1000], y[:1000])
        tracemalloc.start()
        try:
            model.fit(X, y)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    # What scikit-learn's validation takes, a copy of int8 labels sorted, and their int64 numbers.
    assert peak < 24e6


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_inputs_are_not_changed():
    X, y = iris()
    weight = WEIGHTS.copy()
    for array in (X, y, weight):
        array.flags.writeable = False
    copies = X.copy(), y.copy(), weight.copy()
    for solver in ("lbfgs", "sgd"):
        model = SoftmaxRegression(solver=solver, class_weight="balanced", max_iter=5)
        model.fit(X, y, weight)
        model.predict_proba(X)
    for array, copy in zip((X, y, weight), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("n_jobs", [None, 1, 2, -1])
def test_threads_change_no_bit(n_jobs):
    X, y = iris()
    np.testing.assert_array_equal(SoftmaxRegression(n_jobs=n_jobs).fit(X, y).coef_,
                                  SoftmaxRegression(n_jobs=1).fit(X, y).coef_)


def test_labels_of_any_kind():
    X, y = iris()
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = SoftmaxRegression().fit(X, names)
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert (model.predict(X) == names).mean() > 0.95
    weighted = SoftmaxRegression(class_weight={"setosa": 2, "virginica": 0.5}).fit(X, names)
    np.testing.assert_allclose(
        weighted.coef_, SoftmaxRegression().fit(X, y, np.array([2, 1, 0.5])[y]).coef_, atol=1e-10)


@pytest.mark.parametrize(("options", "message"), [
    ({"C": 0.0}, "'C' parameter"), ({"tol": -1.0}, "'tol' parameter"),
    ({"tol": None}, "solver='sgd'"), ({"solver": "newton"}, "'solver' parameter"),
    ({"label_smoothing": 1.5}, "'label_smoothing' parameter"),
    ({"momentum": 1.0}, "'momentum' parameter"), ({"max_iter": 0}, "'max_iter' parameter"),
    ({"n_jobs": 0}, "n_jobs == 0"),
])
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**options).fit(*iris())


def test_bad_data():
    X, y = iris()
    model = SoftmaxRegression()
    with pytest.raises(ValueError, match="at least 2 classes"):
        model.fit(X, np.zeros(len(X), int))
    with pytest.raises(ValueError, match=r"Negative values.*sample_weight"):
        model.fit(X, y, -np.ones(len(X)))
    with pytest.raises(ValueError, match="non-zero"):
        model.fit(X, y, np.zeros(len(X)))
    with pytest.raises(NotFittedError):
        model.predict(X)


# ---- fitting again, in parts, step by step -------------------------------------------------------


def test_warm_start():
    X, y = iris()
    model = SoftmaxRegression(warm_start=True, max_iter=5)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)
    before = model.loss_curve_
    model.set_params(max_iter=500).fit(X, y)
    assert model.loss_curve_[0] < before[-1]
    assert model.n_iter_[0] < SoftmaxRegression(max_iter=500).fit(X, y).n_iter_[0]
    with pytest.raises(ValueError, match="warm_start needs coefficients of shape"):
        model.fit(X[:100], y[:100])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_sgd_comes_near_the_minimum(n_classes):
    X, y = iris(n_classes=n_classes)
    options = {"solver": "sgd", "random_state": 0, "max_iter": 3000, "tol": 1e-8,
               "batch_size": 10, "learning_rate": 0.01}
    model = SoftmaxRegression(**options).fit(X, y)
    least = SoftmaxRegression(tol=1e-8, max_iter=1000).fit(X, y).loss_curve_[-1]
    at = objective(model.coef_, model.intercept_, X, y, np.ones(len(y)), 1.0, 0.0)
    assert least <= at < least * 1.01
    assert model.n_iter_[0] < 3000
    again = SoftmaxRegression(**options).fit(X, y)
    np.testing.assert_array_equal(again.coef_, model.coef_)
    other = SoftmaxRegression(**{**options, "random_state": 1}).fit(X, y)
    assert np.abs(other.coef_ - model.coef_).max() > 0
    of_sparse = SoftmaxRegression(**options).fit(sparse.csr_array(X), y)
    np.testing.assert_allclose(of_sparse.coef_, model.coef_, atol=1e-6)


def test_one_batch_and_no_momentum_is_gradient_descent():
    X, y = iris()
    model = SoftmaxRegression(solver="sgd", tol=None, max_iter=3, batch_size=1000, momentum=0.0,
                              learning_rate=0.5, C=2.0).fit(X, y, WEIGHTS)
    assert model.n_iter_[0] == 3
    coef, b = np.zeros((3, 4)), np.zeros(3)
    for _ in range(3):
        z = X @ coef.T + b
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        g = WEIGHTS[:, None] * (p - np.eye(3)[y]) / WEIGHTS.sum()
        coef, b = (coef - 0.5 * (g.T @ X + coef / (2.0 * WEIGHTS.sum())), b - 0.5 * g.sum(axis=0))
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-10)
    np.testing.assert_allclose(model.intercept_, b, rtol=1e-10)


def test_sgd_that_overflows_says_so():
    X, y = iris()
    model = SoftmaxRegression(solver="sgd", learning_rate=1e300, C=1e-6)
    with pytest.raises(ValueError, match="lower learning_rate"):
        model.fit(X, y)


def test_partial_fit():
    X, y = iris()
    options = {"solver": "sgd", "random_state": 3, "batch_size": 32}
    model = SoftmaxRegression(**options)
    with pytest.raises(ValueError, match="classes"):
        model.partial_fit(X, y)
    with pytest.raises(ValueError, match="unseen"):
        model.partial_fit(X, y, classes=[0, 1])
    model.partial_fit(X, y, classes=[0, 1, 2])    # the two that failed were none
    with pytest.warns(ConvergenceWarning):
        epoch = SoftmaxRegression(max_iter=1, **options).fit(X, y)
    np.testing.assert_array_equal(model.coef_, epoch.coef_)
    assert model.loss_curve_ == epoch.loss_curve_
    for _ in range(30):
        model.partial_fit(X[:75], y[:75]).partial_fit(X[75:], y[75:])
    assert model.n_iter_[0] == len(model.loss_curve_) == 61
    assert model.score(X, y) > 0.9
    with pytest.raises(ValueError, match="not the same as"):
        model.partial_fit(X, y, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="balanced"):
        SoftmaxRegression(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])


def test_warns_where_it_has_not_converged():
    X, y = iris()
    for solver in ("lbfgs", "sgd"):
        with pytest.warns(ConvergenceWarning, match=f"{solver} failed to converge after 2 iter"):
            SoftmaxRegression(solver=solver, max_iter=2).fit(X, y)


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_verbose(solver):
    out = io.StringIO()
    X, y = iris()
    with redirect_stdout(out), pytest.warns(ConvergenceWarning):
        model = SoftmaxRegression(solver=solver, max_iter=3, verbose=1).fit(X, y)
    lines = out.getvalue().splitlines()
    assert lines == [f"[SoftmaxRegression] iteration {i + 1}, loss {loss:.6f}"
                     for i, loss in enumerate(model.loss_curve_)]
    assert len(lines) == 3


class Recorder:
    """A callback that keeps what it is told, and asks to stop after some iterations."""

    def __init__(self, X, y, stop=None):
        self.X, self.y, self.stop, self.seen = X, y, stop, []

    def setup(self, estimator, context):
        self.seen.append("setup")

    def teardown(self, estimator, context):
        self.seen.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.seen.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        assert X.shape == self.X.shape
        self.seen.append((context.task_name, objective(
            fitted_estimator.coef_, fitted_estimator.intercept_, self.X, self.y,
            np.ones(len(self.y)), 1.0, 0.0)))
        return self.stop is not None and sum(
            entry[0] == "iteration" for entry in self.seen) >= self.stop


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
@pytest.mark.parametrize("stop", [None, 3])
def test_callbacks(solver, stop):
    pytest.importorskip("sklearn.callback")
    X, y = iris()
    callback = Recorder(X, y, stop)
    model = SoftmaxRegression(solver=solver, tol=1e-2, max_iter=300).set_callbacks(callback)
    model.fit(X, y)
    n = int(model.n_iter_[0])
    assert n == stop if stop else n > 3
    names = [entry if isinstance(entry, str) else entry[0] for entry in callback.seen]
    assert names[:2] == ["setup", "begin fit"]
    assert names[-2:] == ["fit", "teardown"]
    assert names[2:-2] == ["begin iteration", "iteration"] * n
    if solver == "lbfgs":
        told = [entry[1] for entry in callback.seen if entry[0] == "iteration"]
        np.testing.assert_allclose(told, model.loss_curve_, rtol=1e-12)
    assert callback.seen[-2][1] == pytest.approx(objective(
        model.coef_, model.intercept_, X, y, np.ones(len(y)), 1.0, 0.0))


# ---- among scikit-learn's tools ------------------------------------------------------------------


def test_pickle_and_clone():
    X, y = iris()
    model = SoftmaxRegression(label_smoothing=0.1, C=3.0).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    copied = clone(model)
    assert not hasattr(copied, "coef_")
    assert copied.get_params() == model.get_params()


def test_grid_search_in_processes():
    X, y = load_digits(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(tol=1e-3, max_iter=500))
    options = {"param_grid": {"softmaxregression__C": [1e-4, 1e-1]}, "cv": 2,
               "error_score": "raise"}
    search = GridSearchCV(pipeline, n_jobs=2, **options).fit(X[:600], y[:600])
    serial = GridSearchCV(pipeline, **options).fit(X[:600], y[:600])
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"],
                                  serial.cv_results_["mean_test_score"])
    assert search.best_params_ == {"softmaxregression__C": 1e-1}


def test_calibration():
    X, y = make_classification(400, n_informative=5, n_classes=3, random_state=0)
    model = CalibratedClassifierCV(SoftmaxRegression(), cv=3).fit(X, y)
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert model.score(X, y) > 0.6


def test_data_frames_keep_their_names():
    pd = pytest.importorskip("pandas")
    X, y = iris()
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    model = SoftmaxRegression().fit(frame, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c", "d"]])


# ---- LossCurveDisplay ----------------------------------------------------------------------------


@pytest.fixture
def axes():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_display(axes):
    X, y = iris()
    model = SoftmaxRegression().fit(X, y)
    display = LossCurveDisplay.from_estimator(model, ax=axes, color="red")
    assert display.ax_ is axes
    assert display.figure_ is axes.figure
    np.testing.assert_array_equal(display.line_.get_ydata(), model.loss_curve_)
    np.testing.assert_array_equal(display.line_.get_xdata(), np.arange(1, model.n_iter_[0] + 1))
    assert display.line_.get_color() == "red"
    assert axes.get_xlabel() == "iteration"
    assert axes.get_legend().get_texts()[0].get_text() == "SoftmaxRegression"
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression()).fit(X, y)
    second = LossCurveDisplay.from_estimator(pipeline, ax=axes, name="scaled")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "SoftmaxRegression", "scaled"]
    assert second.plot(axes, name="again").line_.get_label() == "again"


def test_display_without_a_name(axes):
    LossCurveDisplay([3.0, 2.0]).plot(axes)
    assert axes.get_legend() is None


def test_display_refuses():
    with pytest.raises(NotFittedError):
        LossCurveDisplay.from_estimator(SoftmaxRegression())
    with pytest.raises(AttributeError, match="LogisticRegression has no loss_curve_"):
        LossCurveDisplay.from_estimator(LogisticRegression().fit(*iris()))
    with pytest.raises(ValueError, match="one dimension"):
        LossCurveDisplay([[1.0]])


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [SoftmaxRegression, LossCurveDisplay])
def test_is_documented(value):
    """Every parameter of the class and its public methods, in order."""
    assert described(sections(value)["Parameters"]) == list(inspect.signature(value).parameters)
    assert ">>> " in sections(value)["Examples"]
    for name, method in vars(value).items():
        method = getattr(method, "__func__", method)
        if not name.startswith("_") and inspect.isfunction(method):
            found = sections(method)
            assert "Returns" in found, name
            parameters = inspect.signature(method).parameters.values()
            assert described(found["Parameters"].replace("**", "")) == [
                parameter.name for parameter in parameters][1:], name
