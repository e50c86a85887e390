"""softxent.sklearn's loss object and patch(), beside scikit-learn's own."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
import warnings

import numpy as np
import pytest

import softxent as sx

peer = pytest.importorskip("sklearn._loss.loss", reason="the peer: pip install scikit-learn")

from joblib import Parallel, delayed, parallel_config  # noqa: E402
from sklearn.datasets import load_digits, load_iris, load_wine, make_classification  # noqa: E402
from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV  # noqa: E402
from sklearn.linear_model._linear_loss import LinearModelLoss  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402

from softxent.sklearn import HalfMultinomialLoss, _patch, patch, unpatch  # noqa: E402

#: Of each method: the outputs it takes, in the order in which it returns them.
METHODS = {
    "loss": ["loss_out"],
    "loss_gradient": ["loss_out", "gradient_out"],
    "gradient": ["gradient_out"],
    "gradient_hessian": ["gradient_out", "hessian_out"],
    "gradient_proba": ["gradient_out", "proba_out"],
}
PLACES = [importlib.import_module(name) for name in _patch.PLACES]


def problem(n, n_classes, dtype="float64", seed=0):
    """Float labels, logits, weights."""
    rng = np.random.default_rng([n, n_classes, seed])
    return (rng.integers(0, n_classes, n).astype(dtype),
            (2 * rng.standard_normal((n, n_classes))).astype(dtype),
            rng.uniform(0.1, 2, n).astype(dtype))


def laid_out(array, layout):
    """The values of `array` in another order, or with gaps."""
    if layout in "CF":
        return np.asarray(array, order=layout)
    wide = np.zeros(tuple(2 * size for size in array.shape), array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    if layout == "reversed":
        view = view[..., ::-1]
    view[...] = array
    return view


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", ["none", "positive", "signed"])
@pytest.mark.parametrize("shape", [(1, 2), (37, 3), (300, 10), (40, 101), (3, 3000)])
def test_values_are_those_of_scikit_learn(method, weights, shape):
    y, raw, weight = problem(*shape)
    if weights == "signed":
        weight[::3] *= -1
    weight = None if weights == "none" else weight
    wanted = as_tuple(getattr(peer.HalfMultinomialLoss(n_classes=shape[1]), method)(y, raw, weight))
    got = as_tuple(getattr(HalfMultinomialLoss(n_classes=shape[1]), method)(y, raw, weight))
    assert len(got) == len(wanted) == len(METHODS[method])
    for a, b in zip(got, wanted, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed"])
@pytest.mark.parametrize("of_logits", ["float32", "float64"])
@pytest.mark.parametrize("of_outputs", ["float32", "float64"])
def test_any_layout_and_dtypes(method, layout, of_logits, of_outputs):
    """Logits and outputs laid out at will, each in a dtype of its own; inputs stay as they were."""
    y, raw, weight = problem(500, 300, of_logits)
    wanted = as_tuple(getattr(peer.HalfMultinomialLoss(n_classes=300), method)(
        *(array.astype("float64") for array in (y, raw, weight))))
    y, weight = (array if layout in "CF" else laid_out(array, "strided") for array in (y, weight))
    raw = laid_out(raw, layout)
    inputs = (y, raw, weight)
    before = [array.tobytes() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    outputs = {}
    for name, like in zip(METHODS[method], wanted, strict=True):
        outputs[name] = laid_out(np.full(like.shape, np.nan, of_outputs),
                                 layout if like.ndim == 2 else "C")
    got = as_tuple(getattr(HalfMultinomialLoss(n_classes=300), method)(*inputs, **outputs))
    assert before == [array.tobytes() for array in inputs]
    single = "float32" in (of_logits, of_outputs)
    for a, b, given in zip(got, wanted, outputs.values(), strict=True):
        assert a is given
        np.testing.assert_allclose(a, b, rtol=1e-6 if single else 1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", ["float32", "float64"])
def test_outputs_that_are_not_given_are_like_scikit_learns(method, given):
    """None, or one of two: dtype, shape and order of the other."""
    y, raw, _ = problem(20, 4)
    raw = np.asfortranarray(raw)
    for name in [None, *METHODS[method]]:
        shape = (20,) if name == "loss_out" else (20, 4)
        results = []
        for loss in (peer.HalfMultinomialLoss(n_classes=4), HalfMultinomialLoss(n_classes=4)):
            options = {name: np.empty(shape, given)} if name else {}
            results.append(as_tuple(getattr(loss, method)(y, raw, **options)))
        for a, b in zip(*results, strict=True):
            assert (a.dtype, a.shape, a.strides) == (b.dtype, b.shape, b.strides)


@pytest.mark.parametrize(("dtype", "lead"), [("float32", 17.5), ("float32", 60), ("float64", 37.5),
                                             ("float64", 300)])
def test_sure_rows_have_a_loss_and_a_gradient(dtype, lead):
    """Where scikit-learn's are 0: L = log1p(2 exp(-lead)), g = -2 exp(-lead) / (1 + …)."""
    y, raw = np.array([1.0], dtype), np.array([[0, lead, 0]], dtype)
    # 2 exp(-lead) below 1e-7: both are it, but for a part in 1e7 of float32, 1e16 of float64
    small = 2 * np.exp(-np.longdouble(lead))
    loss, gradient = HalfMultinomialLoss(n_classes=3).loss_gradient(y, raw)
    np.testing.assert_allclose(loss, [float(small)], rtol=2.5 * np.finfo(dtype).eps)
    np.testing.assert_allclose(gradient, [[float(small / 2), -float(small), float(small / 2)]],
                               rtol=2.5 * np.finfo(dtype).eps)
    theirs, of_theirs = peer.HalfMultinomialLoss(n_classes=3).loss_gradient(y, raw)
    assert theirs[0] == 0
    assert of_theirs[0, 1] == 0


def test_no_less_accurate_than_scikit_learn(dtype):
    """Beside the truth in longer precision, over rows from unsure to sure."""
    rng = np.random.default_rng(7)
    y = rng.integers(0, 10, 4000).astype(dtype)
    raw = rng.standard_normal((4000, 10))
    raw[np.arange(4000), y.astype(int)] += np.linspace(0, 60, 4000)
    raw = raw.astype(dtype)
    z = raw.astype(np.longdouble)
    z -= z.max(axis=1, keepdims=True)
    e = np.exp(z)
    others = e.copy()
    others[np.arange(4000), y.astype(int)] = 0
    true = np.log1p(others.sum(axis=1) / e[np.arange(4000), y.astype(int)])
    p = others / e.sum(axis=1, keepdims=True)
    p[np.arange(4000), y.astype(int)] = -p.sum(axis=1)
    errors = []
    for loss in (HalfMultinomialLoss(n_classes=10), peer.HalfMultinomialLoss(n_classes=10)):
        rows, gradient = loss.loss_gradient(y, raw)
        errors.append((np.abs(rows / true - 1).max(), np.abs(gradient / p - 1).max()))
    eps = np.finfo(dtype).eps
    assert errors[0][0] < 6 * eps
    assert errors[0][1] < 6 * eps
    assert errors[1] == (1, 1)  # all of it lost


def test_tiny_shares_and_empty_input():
    y, raw, _ = problem(5, 4, "float32")
    raw[:, 0] -= 95  # its p is subnormal in float32: 0 or nearly so
    loss = HalfMultinomialLoss(n_classes=4)
    gradient, proba = loss.gradient_proba(y, raw)
    assert (np.abs(proba[:, 0]) < 2.0**-126).all()
    assert np.isfinite(gradient).all()
    for method in METHODS:
        for out in as_tuple(getattr(loss, method)(y[:0], raw[:0])):
            assert len(out) == 0


def test_a_row_of_weight_zero_is_not_looked_at():
    y, raw, weight = problem(6, 4)
    raw[2], weight[2] = np.nan, 0
    loss = HalfMultinomialLoss(n_classes=4)
    for out in (*loss.loss_gradient(y, raw, weight), *loss.gradient_hessian(y, raw, weight)):
        assert not out[2].any()
        assert np.isfinite(out).all()


# ---- the object ----------------------------------------------------------------------------------


def test_the_rest_is_scikit_learns():
    y, raw, weight = problem(50, 4)
    ours, theirs = HalfMultinomialLoss(n_classes=4), peer.HalfMultinomialLoss(n_classes=4)
    assert isinstance(ours, peer.HalfMultinomialLoss)
    assert vars(ours).keys() == vars(theirs).keys()
    assert HalfMultinomialLoss(weight, 4, xp=np, device="cpu").n_classes == 4
    for name in ("is_multiclass", "n_classes", "differentiable", "approx_hessian",
                 "constant_hessian", "interval_y_true", "interval_y_pred"):
        assert getattr(ours, name) == getattr(theirs, name)
    for method, arguments in {
        "fit_intercept_only": (y, weight), "constant_to_optimal_zero": (y,),
        "in_y_true_range": (y,), "in_y_pred_range": (sx.softmax(raw),),
    }.items():
        np.testing.assert_array_equal(getattr(ours, method)(*arguments),
                                      getattr(theirs, method)(*arguments))
    np.testing.assert_allclose(ours.predict_proba(raw), theirs.predict_proba(raw), rtol=1e-14)
    for w in (None, weight):
        np.testing.assert_allclose(ours(y, raw, w, n_threads=2), theirs(y, raw, w), rtol=1e-14)
    for order in "CF":
        made = ours.init_gradient_and_hessian(7, np.float32, order)
        assert all(a.shape == (7, 4) and a.flags[f"{order}_CONTIGUOUS"] for a in made)


@pytest.mark.parametrize("make", [copy.deepcopy, copy.copy,
                                  lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copies_and_pickles_are_ours(make):
    y, raw, _ = problem(9, 3)
    loss = HalfMultinomialLoss(n_classes=3)
    made = make(loss)
    assert type(made) is HalfMultinomialLoss
    assert type(made.closs) is type(loss.closs)
    assert made.loss(y, raw).tobytes() == loss.loss(y, raw).tobytes()


@pytest.mark.parametrize("n_threads", [1, 3, None])
@pytest.mark.parametrize("method", METHODS)
def test_threads_are_handed_over_and_change_no_bit(monkeypatch, all_take_part, method, n_threads):
    y, raw, weight = problem(200, 10)
    loss = HalfMultinomialLoss(n_classes=10)
    wanted = [out.tobytes() for out in as_tuple(getattr(loss, method)(y, raw, weight))]
    seen = spy(monkeypatch)
    got = as_tuple(getattr(loss, method)(y, raw, weight, n_threads=n_threads))
    assert [out.tobytes() for out in got] == wanted
    assert set(seen) == {n_threads}


def spy(monkeypatch):
    """The n_threads of each call of ours from now on, as they come."""
    seen = []

    def call(function, *arguments, **options):
        seen.append(options["n_threads"])
        return function(*arguments, **options)

    for name in ("cross_entropy", "cross_entropy_with_grad", "cross_entropy_grad_hess", "softmax"):
        monkeypatch.setattr(sx, name, functools.partial(call, getattr(sx, name)))
    return seen


@pytest.mark.parametrize("dtype_out", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_no_temporary_of_the_logits_size(method, dtype_out):
    n, n_classes = 4000, 500
    y, raw, weight = problem(n, n_classes)
    outputs = {name: np.empty(n if name == "loss_out" else (n, n_classes), dtype_out)
               for name in METHODS[method]}
    call = getattr(HalfMultinomialLoss(n_classes=n_classes), method)
    call(y, raw, weight, **outputs)
    tracemalloc.start()
    call(y, raw, weight, **outputs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * n + 600_000  # the logits: 16 million


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [0.5, 2.5, -1, -100, 4, np.nan, np.inf, -np.inf, 1e300, -2.0**63])
def test_labels_that_are_no_classes(method, bad):
    y, raw, _ = problem(10, 4)
    y[6] = bad
    outputs = {name: np.full(10 if name == "loss_out" else (10, 4), 7.0)
               for name in METHODS[method]}
    with pytest.raises(ValueError, match=r"out of the valid range .* from 0 to 3.* in row 6"):
        getattr(HalfMultinomialLoss(n_classes=4), method)(y, raw, **outputs)
    assert all((out == 7).all() for out in outputs.values())


def test_minus_zero_is_a_label():
    loss = HalfMultinomialLoss(n_classes=2).loss(np.array([-0.0]), np.zeros((1, 2)))
    np.testing.assert_allclose(loss, np.log(2))


@pytest.mark.parametrize("method", METHODS)
def test_shapes_and_dtypes_that_do_not_fit(method):
    y, raw, weight = problem(10, 4)
    call = getattr(HalfMultinomialLoss(n_classes=4), method)
    with pytest.raises(TypeError, match="as floats"):
        call(y.astype(int), raw)
    for arguments in ((y, raw[:, 0]), (y[:9], raw), (y, raw[:9]), (y[:, None], raw),
                      (y, raw, weight[:9])):
        with pytest.raises(ValueError, match="shape"):
            call(*arguments)
    for name in METHODS[method]:
        for dtype in ("float32", "float64"):
            small = np.full(9 if name == "loss_out" else (10, 3), 7, dtype)
            with pytest.raises(ValueError, match="shape"):
                call(y, raw, **{name: small})
            assert (small == 7).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_that_are_not_finite(method, bad, dtype):
    """Found before anything is written, also where that goes by pieces."""
    y, raw, weight = problem(400, 300)
    weight[-1] = bad
    outputs = {name: np.full(400 if name == "loss_out" else (400, 300), 7, dtype)
               for name in METHODS[method]}
    with pytest.raises(ValueError, match="sample_weight must be finite"):
        getattr(HalfMultinomialLoss(n_classes=300), method)(y, raw, weight, **outputs)
    assert all((out == 7).all() for out in outputs.values())


# ---- in scikit-learn -----------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_threads", [1, None])
def test_linear_model_loss(weighted, n_threads):
    rng = np.random.default_rng(0)
    y, x, weight = problem(80, 6)
    y = np.minimum(y, 3)
    weight = weight if weighted else None
    coef = np.asfortranarray(rng.standard_normal((4, 7)))
    ours, theirs = (LinearModelLoss(base_loss=loss(n_classes=4), fit_intercept=True)
                    for loss in (HalfMultinomialLoss, peer.HalfMultinomialLoss))
    close = {"rtol": 1e-11, "atol": 1e-13}
    for method in ("loss", "loss_gradient", "gradient", "gradient_hessian"):
        arguments = (coef.ravel(order="F"), x, y, weight, 0.1)
        wanted = getattr(theirs, method)(*arguments)
        got = getattr(ours, method)(*arguments, n_threads=n_threads)
        for a, b in zip(as_tuple(got), as_tuple(wanted), strict=True):
            np.testing.assert_allclose(a, b, **close)
    flat = coef.ravel(order="F")
    (g, product), (of_theirs, their_product) = (
        loss.gradient_hessian_product(flat, x, y, weight, 0.1) for loss in (ours, theirs))
    np.testing.assert_allclose(g, of_theirs, **close)
    np.testing.assert_allclose(product(flat[::-1]), their_product(flat[::-1]), **close)


def test_boosting_takes_the_object_itself():
    x, y = load_iris(return_X_y=True)
    options = {"max_iter": 5, "early_stopping": False}
    ours = HistGradientBoostingClassifier(loss=HalfMultinomialLoss(n_classes=3), **options)
    theirs = HistGradientBoostingClassifier(**options)
    assert_same_trees(ours.fit(x, y), theirs.fit(x, y))
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.predict_proba(x), ours.predict_proba(x))


# ---- patch ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_patch_is_left():
    yield
    left = _patch._holding or is_patched()
    unpatch()
    assert not left


def is_patched():
    """Whether the estimators' modules have another class than scikit-learn's; all or none do."""
    others = {module.HalfMultinomialLoss is not peer.HalfMultinomialLoss for module in PLACES}
    assert len(others) == 1
    return others.pop()


def assert_same_trees(a, b):
    """The same splits in the same order, leaves the same but for rounding."""
    assert len(a._predictors) == len(b._predictors)
    for i, (of_a, of_b) in enumerate(zip(a._predictors, b._predictors, strict=True)):
        for k, (one, other) in enumerate(zip(of_a, of_b, strict=True)):
            for field in ("feature_idx", "bin_threshold", "left", "right", "is_leaf", "count",
                          "num_threshold", "missing_go_to_left"):
                np.testing.assert_array_equal(one.nodes[field], other.nodes[field],
                                              err_msg=f"tree {i}, class {k}: {field}")
            np.testing.assert_allclose(one.nodes["value"], other.nodes["value"], rtol=1e-5,
                                       atol=1e-7)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:500] / 16, y[:500]


SOLVERS = {"lbfgs": 30, "newton-cg": 6, "newton-cholesky": 4}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("weights", ["none", "sample_weight", "class_weight"])
def test_logistic_regression_finds_the_same(monkeypatch, digits, solver, weights):
    """Equal iterations, none of them cut short by a tolerance: equal coefficients."""
    x, y = digits
    x, y = (x[:, ::4], np.minimum(y, 4)) if solver == "newton-cholesky" else (x, y)
    options = {"solver": solver, "max_iter": SOLVERS[solver], "tol": 0,
               "class_weight": "balanced" if weights == "class_weight" else None}
    weight = np.random.default_rng(0).uniform(0, 2, len(y)) if weights == "sample_weight" else None
    theirs = LogisticRegression(**options).fit(x, y, weight)
    seen = spy(monkeypatch)
    with patch():
        ours = LogisticRegression(**options).fit(x, y, weight)
    assert len(seen) > SOLVERS[solver]
    np.testing.assert_array_equal(ours.n_iter_, theirs.n_iter_)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=0, atol=1e-6)


def test_logistic_regression_in_float32(digits):
    """It comes as near to the float64 fit's objective as scikit-learn's float32 fit does."""
    x, y = digits
    options = {"max_iter": 500, "tol": 1e-5}
    fit = LogisticRegression(**options).fit
    best = objective(fit(x, y), x, y)
    theirs = objective(fit(x.astype("float32"), y), x, y)
    with patch():
        model = fit(x.astype("float32"), y)
    assert model.coef_.dtype == np.float32
    assert objective(model, x, y) - best < max(2 * (theirs - best), 1e-6)


def objective(model, x, y):
    """What logistic regression of C = 1 has made small, in float64 by scikit-learn."""
    loss = LinearModelLoss(peer.HalfMultinomialLoss(n_classes=10), fit_intercept=True)
    coef = np.column_stack([model.coef_, model.intercept_]).astype("float64")
    return loss.loss(np.asfortranarray(coef), x, y.astype("float64"), None, 1 / len(y))


@pytest.mark.parametrize("data", ["digits", "iris", "wine", "made"])
def test_boosting_grows_the_same_trees(data):
    x, y = {"digits": load_digits, "iris": load_iris, "wine": load_wine}[data](
        return_X_y=True) if data != "made" else make_classification(
            1500, 12, n_informative=8, n_classes=6, random_state=0)
    options = {"max_iter": 10, "early_stopping": False, "random_state": 0}
    theirs = HistGradientBoostingClassifier(**options).fit(x, y)
    with patch():
        ours = HistGradientBoostingClassifier(**options).fit(x, y)
    assert_same_trees(ours, theirs)


@pytest.mark.parametrize("case", ["sample_weight", "negative", "class_weight", "early_stopping",
                                  "warm_start"])
def test_boosting_with_options(digits, case):
    x, y = digits
    weight = np.random.default_rng(1).uniform(0, 2, len(y))
    if case == "negative":
        weight[::50] *= -0.1
    fits = {"sample_weight": [weight], "negative": [weight]}.get(case, [None])
    options = {"max_iter": 6, "early_stopping": case == "early_stopping", "random_state": 0,
               "scoring": "loss", "warm_start": case == "warm_start", "max_leaf_nodes": 8,
               "class_weight": "balanced" if case == "class_weight" else None}

    def fit():
        model = HistGradientBoostingClassifier(**options)
        for sample_weight in fits:
            model.fit(x, y, sample_weight)
        if case == "warm_start":
            model.set_params(max_iter=9).fit(x, y)
            assert model.n_iter_ == 9
        return model

    theirs = fit()
    with patch():
        ours = fit()
    assert_same_trees(ours, theirs)
    np.testing.assert_allclose(ours.train_score_, theirs.train_score_, rtol=1e-6)
    np.testing.assert_allclose(ours.validation_score_, theirs.validation_score_, rtol=1e-6)


def test_boosting_keeps_its_own_number_of_threads(monkeypatch, digits):
    module = PLACES[1]
    monkeypatch.setattr(module, "_openmp_effective_n_threads", lambda n_threads=None: 2)
    seen = spy(monkeypatch)
    with patch():
        HistGradientBoostingClassifier(max_iter=2, early_stopping=False).fit(*digits)
    assert seen == [2, 2]


def test_two_classes_and_other_solvers_are_not_touched(monkeypatch, digits):
    x, y = digits
    seen = spy(monkeypatch)
    with patch(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        LogisticRegression(max_iter=5).fit(x, y > 4)
        HistGradientBoostingClassifier(max_iter=1, early_stopping=False).fit(x, y > 4)
        LogisticRegression(solver="saga", max_iter=2).fit(x, y)
    assert not seen


def test_blocks_calls_and_nesting(digits):
    assert not is_patched()
    unpatch()  # of nothing
    with patch():
        assert is_patched()
        with patch():
            assert is_patched()
        assert is_patched()
    assert not is_patched()
    patch()
    scope = patch()
    assert is_patched()
    with scope, pytest.raises(RuntimeError, match="entered once"), scope:
        raise AssertionError("not reached")
    assert is_patched()  # by the first call
    with patch():
        unpatch()
        assert not is_patched()
    assert not is_patched()


def test_an_exception_ends_the_patch(digits):
    with pytest.raises(ValueError, match="NaN"), patch():
        LogisticRegression().fit(np.full((9, 2), np.nan), np.arange(9) % 3)
    assert not is_patched()
    with pytest.raises(KeyError), patch():
        raise KeyError
    assert not is_patched()


def test_threads_that_patch_leave_nothing_behind():
    start = threading.Barrier(4)
    wrong = []

    def work():
        start.wait()
        for _ in range(300):
            with patch():
                if not is_patched():
                    wrong.append(1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert not is_patched()


def missing_name(monkeypatch):
    monkeypatch.delattr(PLACES[1], "HalfMultinomialLoss")
    return "gradient_boosting' has no attribute 'HalfMultinomialLoss'"


def missing_module(monkeypatch):
    monkeypatch.setitem(sys.modules, PLACES[1].__name__, None)
    return PLACES[1].__name__


def missing_home(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn._loss.loss", None)
    return "sklearn._loss.loss"


def missing_closs(monkeypatch):
    monkeypatch.setattr(peer.HalfMultinomialLoss, "__init__", lambda self, n_classes: None)
    return "no attribute 'closs'"


def another_argument(monkeypatch):
    monkeypatch.setattr(peer.HalfMultinomialLoss, "__init__", lambda self, classes: None)
    return "n_classes"


def another_closs(monkeypatch):
    monkeypatch.setattr(peer, "CyHalfMultinomialLoss", lambda: peer.CyHalfBinomialLoss())
    return "CyHalfBinomialLoss"


def another_class(monkeypatch):
    monkeypatch.setattr(PLACES[1], "HalfMultinomialLoss", peer.HalfBinomialLoss)
    return "gradient_boosting.HalfMultinomialLoss"


def further_method(monkeypatch):
    closs = type("CyHalfMultinomialLoss", (), {"hessian_product": lambda self, y_true: None})
    monkeypatch.setattr(peer, "CyHalfMultinomialLoss", closs)
    return "hessian_product"


def further_argument(monkeypatch):
    closs = type("CyHalfMultinomialLoss", (), {"loss": lambda self, y_true, device: None})
    monkeypatch.setattr(peer, "CyHalfMultinomialLoss", closs)
    return "CyHalfMultinomialLoss.loss takes other arguments"


@pytest.mark.parametrize("change", [
    missing_name, missing_module, missing_home, missing_closs, another_argument, another_closs,
    another_class, further_method, further_argument])
def test_a_scikit_learn_that_has_moved_inside(monkeypatch, change):
    """Refused by its version and what is missing, and nothing is replaced."""
    import sklearn

    untouched = PLACES[0].HalfMultinomialLoss
    with monkeypatch.context() as context:
        text = change(context)
        with pytest.raises(RuntimeError, match=f"scikit-learn {sklearn.__version__} is made ") as e:
            patch()
    assert text in str(e.value)
    assert PLACES[0].HalfMultinomialLoss is untouched
    assert not _patch._holding


# ---- other processes, threads and times ----------------------------------------------------------


def fitted_by():
    """The module of what computes for a small model that is fitted here."""
    x, y = load_iris(return_X_y=True)
    model = HistGradientBoostingClassifier(max_iter=1, early_stopping=False).fit(x, y)
    return type(model._loss.closs).__module__


@pytest.fixture(scope="module")
def _loky():
    """Workers are shut down at the end: they must not outlive the tests.

    Until one asks for workers of another kind, the tests have the same: these import for seconds.
    """
    yield
    importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)


@pytest.mark.parametrize("backend", ["threading", "loky"])
@pytest.mark.usefixtures("_loky")
def test_grid_search_under_a_patch(monkeypatch, digits, backend):
    """Threads share the patch; processes fit by scikit-learn's own, to the same scores."""
    grid = GridSearchCV(LogisticRegression(max_iter=300), {"C": [0.1, 1.0]}, cv=2)
    theirs = grid.fit(*digits)
    scores, coef = theirs.cv_results_["mean_test_score"], theirs.best_estimator_.coef_
    seen = spy(monkeypatch)
    with patch(), parallel_config(backend, n_jobs=2):
        ours = grid.fit(*digits)
    np.testing.assert_allclose(ours.cv_results_["mean_test_score"], scores, rtol=1e-12)
    np.testing.assert_allclose(ours.best_estimator_.coef_, coef, atol=1e-4)
    refit = ours.best_estimator_.n_iter_[0]
    assert len(seen) > (4 if backend == "threading" else 1) * refit / 2


@pytest.mark.usefixtures("_loky")
def test_loky_workers_do_not_inherit_the_patch_unless_they_patch_themselves():
    with patch():
        assert fitted_by() == "softxent.sklearn._patch"
        with parallel_config("loky", n_jobs=2):
            assert set(Parallel()(delayed(fitted_by)() for _ in range(2))) == {
                "sklearn._loss._loss"}
    with parallel_config("loky", n_jobs=2, initializer=patch):
        assert set(Parallel()(delayed(fitted_by)() for _ in range(2))) == {
            "softxent.sklearn._patch"}


@pytest.mark.parametrize(("n", "n_threads"), [(26_214, 1), (26_215, None)])
def test_logistic_regression_shares_large_losses(monkeypatch, n, n_threads):
    """Few logits take one thread, from 2**18 on as many as there are; scikit-learn passes 1."""
    y = np.arange(n) % 10
    x = np.random.default_rng(0).normal(0, 1, (n, 2)) + y[:, None]
    seen = spy(monkeypatch)
    with patch(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        LogisticRegression(max_iter=1).fit(x, y)
    assert set(seen) == {n_threads}


def test_cross_validated_logistic_regression(monkeypatch, digits):
    x, y = digits
    options = {"Cs": [0.1, 1.0], "cv": 2, "max_iter": 300, "use_legacy_attributes": False,
               "l1_ratios": (0,), "scoring": "neg_log_loss"}
    theirs = LogisticRegressionCV(**options).fit(x, y)
    seen = spy(monkeypatch)
    with patch():
        ours = LogisticRegressionCV(**options).fit(x, y)
    assert seen
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)


def test_fitted_models_are_scikit_learns_in_pickles(tmp_path, digits):
    """They load where there is no softxent, with the bits of what they predict."""
    x, y = digits
    with patch():
        models = [HistGradientBoostingClassifier(max_iter=2, early_stopping=False).fit(x, y),
                  LogisticRegression(max_iter=300).fit(x, y)]
        text = pickle.dumps(models)
        assert b"softxent" not in text
        copied = copy.deepcopy(models)
    assert b"softxent" not in pickle.dumps(copied)
    wanted = [model.predict_proba(x) for model in models]
    np.testing.assert_array_equal([model.predict_proba(x) for model in copied], wanted)
    (tmp_path / "models").write_bytes(text)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "p.npy", wanted)
    script = """
import pickle, sys
import numpy as np
sys.modules["softxent"] = None  # importing it is an error
with open("models", "rb") as file:
    models = pickle.load(file)
x = np.load("x.npy")
np.testing.assert_array_equal([model.predict_proba(x) for model in models], np.load("p.npy"))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_imports_no_scikit_learn():
    script = """
import sys
import softxent.sklearn
assert "sklearn" not in sys.modules
from softxent.sklearn import patch, unpatch
unpatch()
assert "sklearn" not in sys.modules
sys.modules["sklearn"] = None
try:
    patch()
except ModuleNotFoundError as error:
    assert "sklearn" in str(error)
else:
    raise AssertionError
assert dir(softxent.sklearn) == softxent.sklearn.__all__
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False)
    assert (done.returncode, done.stderr) == (0, "")
