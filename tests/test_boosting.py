"""Objectives of XGBoost and LightGBM: values, both interfaces, and the libraries' own beside ours.

Tried: XGBoost 3.2.0 (whose own Hessian is `hessian="xgboost"`), LightGBM 4.7.0 ("lightgbm").
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import re
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest

import softxent as sx
from softxent import _threads
from softxent.lightgbm import make_objective as for_lightgbm
from softxent.lightgbm import multiclass_objective
from softxent.xgboost import make_objective as for_xgboost
from softxent.xgboost import softprob_objective

READY = {"xgboost": softprob_objective, "lightgbm": multiclass_objective}
MAKERS = {"xgboost": for_xgboost, "lightgbm": for_lightgbm}


class Data:
    """Training data as the objective knows it."""

    def __init__(self, label, weight=None):
        self.label, self.weight = label, weight

    def get_label(self):
        return self.label

    def get_weight(self):
        return self.weight


def margins(library, n=200, n_classes=5, seed=0):
    """As the library has them; values of float32 in either case."""
    z = np.random.default_rng(seed).normal(0, 3, (n, n_classes)).astype(np.float32)
    return z if library == "xgboost" else np.asfortranarray(z, np.float64)


def labels(n=200, n_classes=5):
    return np.random.default_rng(1).integers(0, n_classes, n).astype(np.float32)


def formula(z, t, hessian, *, sample_weight=1.0, class_weight=None, label_smoothing=0.0, tau=1.0):
    """Gradient and Hessian in float64, from probabilities `t`."""
    z, t = z.astype(np.float64) / tau, t.astype(np.float64)
    n_classes = z.shape[1]
    v = np.ones(n_classes) if class_weight is None else np.asarray(class_weight)
    s = np.broadcast_to(sample_weight, len(z))[:, None]
    t = v * ((1 - label_smoothing) * t + label_smoothing / n_classes)
    mass = t.sum(axis=1, keepdims=True)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g = s * (mass * p - t) / tau
    h = s * mass * p * (1 - p) / tau**2
    return g, {"diagonal": h, "xgboost": np.maximum(2 * h, 1e-16),
               "xgboost-residual": np.maximum(np.abs(g) / tau, 1e-16),
               "lightgbm": n_classes / (n_classes - 1) * h}[hessian]


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hessian", ["diagonal", "xgboost", "xgboost-residual", "lightgbm"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("options", [
    {}, {"label_smoothing": 0.1}, {"class_weight": [0.5, 1, 2, 1, 0.25]}, {"temperature": 1.5},
    {"label_smoothing": 0.2, "class_weight": np.arange(1.0, 6), "temperature": 0.7},
], ids=lambda options: ",".join(options) or "plain")
@pytest.mark.parametrize("library", MAKERS)
def test_values(library, options, soft, hessian):
    """The formula in float64, with weights of the rows and without."""
    z, y = margins(library), labels()
    t = np.random.default_rng(2).dirichlet(np.ones(5), len(z)) if soft else np.eye(5)[y.astype(int)]
    objective = MAKERS[library](hessian=hessian, targets=t if soft else None, **options)
    s = np.random.default_rng(3).uniform(0.2, 3, len(z)).astype(np.float32)
    arguments = {"tau" if name == "temperature" else name: value for name, value in options.items()}
    for weight in (None, s):
        g, h = objective(z, Data(y, weight))
        wanted = formula(z, t, hessian, sample_weight=1.0 if weight is None else weight,
                         **arguments)
        for found, true in zip((g, h), wanted, strict=True):
            # Differences of numbers of the weights' size.
            np.testing.assert_allclose(found, true, rtol=2e-6, atol=2e-6 if soft or options else 0)


@pytest.mark.parametrize("library", READY)
def test_rows_that_do_not_count(library):
    """Of weight 0, or with the label -100."""
    z, y = margins(library), labels()
    plain = READY[library](z, Data(y))
    y[3], weight = -100, np.ones(len(z), np.float32)
    weight[8] = 0
    for found, all_rows in zip(READY[library](z, Data(y, weight)), plain, strict=True):
        assert not found[[3, 8]].any()
        others = np.setdiff1d(np.arange(len(z)), [3, 8])
        np.testing.assert_array_equal(found[others], all_rows[others])


@pytest.mark.parametrize("library", READY)
def test_both_interfaces(library):
    """The same bits, by weights given or not, or XGBoost's empty array for none."""
    z, y, w = margins(library), labels(), np.linspace(0, 2, 200)
    objective = READY[library]
    plain, weighted = objective(z, Data(y)), objective(z, Data(y, w))
    for same, wanted in (
            (objective(y, z), plain), (objective(y, z, None), plain),
            (objective(y.astype(int), z), plain), (objective(y.tolist(), z.tolist()), plain),
            (objective(z, Data(y, np.empty(0, np.float32))), plain),
            (objective(y, z, w), weighted), (objective(y, z, sample_weight=w), weighted)):
        np.testing.assert_array_equal(same, wanted)


@pytest.mark.parametrize("library", READY)
def test_outputs_are_read_as_they_are(library):
    """float32 in the order of the library's margins, new ones each round; inputs stay."""
    z, y, w = margins(library), labels(), np.ones(200, np.float32)
    before = z.copy(), y.copy(), w.copy()
    first = READY[library](z, Data(y, w))
    second = READY[library](z, Data(y, w))
    for array in first + second:
        assert array.dtype == np.float32
        assert array.flags.c_contiguous if library == "xgboost" else array.flags.f_contiguous
        assert np.shares_memory(array, array.ravel(order="C" if library == "xgboost" else "F"))
    arrays = [*first, *second, z]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    for array, kept in zip((z, y, w), before, strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("library", READY)
def test_memory(library, soft):
    """Beside gradient and Hessian: of rows, and a fixed size; not of rows and classes."""
    n, n_classes = 20_000, 100
    z, y = margins(library, n, n_classes), labels(n, n_classes)
    targets = np.full((n, n_classes), 0.01) if soft else None
    objective = MAKERS[library](targets=targets)
    objective(z, Data(y))
    tracemalloc.start()
    try:
        objective(z, Data(y))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    outputs = 2 * 4 * n * n_classes
    assert outputs <= peak <= outputs + 40 * n + 2**20


@pytest.fixture
def two_threads(monkeypatch):
    """Calls have two threads, on a machine of one CPU too."""
    monkeypatch.setattr(_threads, "_affinity", lambda: 2)
    monkeypatch.setattr(_threads, "_quota", lambda: None)
    with sx.set_num_threads(2):
        yield


@pytest.mark.parametrize("library", READY)
@pytest.mark.usefixtures("two_threads")
def test_threads_do_not_show(library):
    z, y = margins(library, 20_000, 20), labels(20_000, 20)
    assert sx.explain(z.shape, order="C" if library == "xgboost" else "F").n_threads == 2
    for one, two in zip(*(MAKERS[library](n_threads=n)(z, Data(y)) for n in (1, 2)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("backend", ["numpy", "numba", "cython"])
def test_backends(backend):
    if sx.available_backends()[backend] != "available":
        pytest.skip(f"{backend} is not available")
    z, y = margins("xgboost"), labels()
    for found, wanted in zip(for_xgboost(backend=backend)(z, Data(y)), softprob_objective(y, z),
                             strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-6)


@pytest.mark.parametrize("library", MAKERS)
def test_objective_is_a_value(library):
    """It can be pickled, and copied without copying its targets."""
    z, y = margins(library), labels()
    targets = np.random.default_rng(0).dirichlet(np.ones(5), 200)
    for objective in (READY[library], MAKERS[library](targets=targets, label_smoothing=0.1)):
        again = pickle.loads(pickle.dumps(objective))
        np.testing.assert_array_equal(again(y, z), objective(y, z))
    assert copy.deepcopy(objective).targets is targets
    assert repr(objective).startswith(f"<softmax cross-entropy: hessian={library}")
    assert "label_smoothing=0.1" in repr(objective)
    assert "targets=<200 x 5>" in repr(objective)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "message", "y", "z", "w"), [
    (ValueError, r"two classes or more, got \(3,\); set num_class", [0, 1, 0], np.zeros(3), None),
    (ValueError, r"got \(3, 1\)", [0, 1, 0], np.zeros((3, 1)), None),
    (ValueError, r"0 to 3: label 1 is 1\.5; class prob", [0.0, 1.5, 2.5], np.zeros((3, 4)), None),
    (ValueError, "label 2 is nan", [0.0, 1.0, np.nan], np.zeros((3, 4)), None),
    (ValueError, "label 0 is inf", [np.inf, 1.0, 0.0], np.zeros((3, 4)), None),
    (ValueError, r"label 0 is 1e\+30", [1e30, 1.0, 0.0], np.zeros((3, 4)), None),
    (ValueError, "has no labels; pass label=", [], np.zeros((3, 4)), None),
    (IndexError, r"targets\[1\] = 4 is out of range for 4 classes", [1.0, 4.0, 2.0],
     np.zeros((3, 4)), None),
    (IndexError, r"targets\[0\] = -1 is out of range", [-1.0, 0.0, 2.0], np.zeros((3, 4)), None),
    (ValueError, "targets must have", [0.0, 1.0], np.zeros((3, 4)), None),
    (ValueError, r"sample_weight\[1\] = -1", [0.0, 1.0, 0.0], np.zeros((3, 4)), [1, -1, 1]),
    (ValueError, "sample_weight must have shape", [0.0, 1.0, 0.0], np.zeros((3, 4)), [1, 1]),
])
@pytest.mark.parametrize("objective", READY.values(), ids=READY)
def test_bad_rounds(objective, error, message, y, z, w):
    z = z.astype(np.float32)
    weight = None if w is None else np.array(w, float)
    with pytest.raises(error, match=message):
        objective(z, Data(np.array(y), weight))
    with pytest.raises(error, match=message):
        objective(np.array(y), z, weight)


@pytest.mark.parametrize(("message", "options"), [
    ("hessian must be one of", {"hessian": "newton"}),
    ("label_smoothing must be within", {"label_smoothing": 1.5}),
    ("temperature must be > 0", {"temperature": 0}),
    (r"class_weight\[1\] = -1", {"class_weight": [1, -1]}),
    ("class_weight must have shape", {"class_weight": [1, 1], "targets": np.eye(3)}),
    ("backend must be one of", {"backend": "fortran"}),
    ("n_threads must be at least 1", {"n_threads": 0}),
    (r"shape \(rows, classes\), got shape \(3,\); class numbers", {"targets": [0.0, 1.0, 2.0]}),
    ("one-hot rows", {"targets": np.eye(3, dtype=int)}),
])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_bad_options(make, message, options):
    """When the objective is made, not when training begins."""
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_targets_of_other_rows(make):
    objective = make(targets=np.full((7, 3), 1 / 3))
    with pytest.raises(ValueError, match="targets has 7 rows, the training data 5"):
        objective(np.zeros((5, 3), np.float32), Data(np.zeros(5)))
    with pytest.raises(ValueError, match="probability targets must be"):
        make(targets=np.full((5, 3), -0.5))(np.zeros((5, 3), np.float32), Data(np.zeros(5)))


# ---- documentation, imports ----------------------------------------------------------------------


@pytest.mark.parametrize("library", MAKERS)
def test_documented(library):
    """Every option; the module's example runs with the library."""
    make = MAKERS[library]
    section = inspect.getdoc(make).split("Parameters\n---")[1].split("Returns\n---")[0]
    entries = re.findall(r"^(\w[\w, ]*?)(?: :.*)?$", section, flags=re.M)
    described = [name for entry in entries for name in entry.split(", ")]
    assert described == list(inspect.signature(make).parameters)
    default = inspect.signature(make).parameters["hessian"].default
    assert READY[library].options["hessian"] == default
    pytest.importorskip(library)
    pytest.importorskip("sklearn")
    doc = importlib.import_module(f"softxent.{library}").__doc__
    names = {}
    for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", doc):
        exec(textwrap.dedent(block), names)
    assert sx.accuracy(names["probabilities"], names["y"]) > 0.9
    np.testing.assert_allclose(names["probabilities"].sum(axis=1), 1, rtol=1e-5)


def test_nothing_is_imported_for_them():
    code = ("import sys, softxent; assert 'softxent.xgboost' not in sys.modules; "
            "import softxent.xgboost, softxent.lightgbm; "
            "assert not {'xgboost', 'lightgbm', 'sklearn', 'scipy'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
                   check=True, timeout=60)


# ---- beside the libraries' own -------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """(x, y, weights) of 900 digits."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits are its")
    x, y = datasets.load_digits(return_X_y=True)
    return x[:900], y[:900], np.random.default_rng(0).uniform(0.2, 3, 900).astype(np.float32)


@pytest.fixture(scope="module")
def xgb():
    return pytest.importorskip("xgboost")


@pytest.fixture(scope="module")
def lgb():
    return pytest.importorskip("lightgbm")


XGB = {"objective": "multi:softprob", "num_class": 10, "max_depth": 4, "nthread": 1,
       "base_score": 0.0}
LGB = {"num_class": 10, "num_leaves": 15, "verbose": -1, "num_threads": 1, "deterministic": True,
       "force_row_wise": True}


def assert_same_model(ours, theirs):
    """Margins within 1e-4, and the same labels on 99.9 % of the rows and more."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)) >= 0.999
    assert np.abs(theirs).max() > 1


@pytest.fixture(scope="module")
def xgb_rule(xgb):
    """The Hessian of XGBoost's own objective, by the only leaf of a tree.

    p is 1/3: -g / h of a class that no row has is -3/4 where h = 2p(1 - p), -1 where it is |g|.
    """
    data = xgb.DMatrix(np.zeros((4, 1)), label=[0, 0, 1, 1])
    booster = xgb.train({"objective": "multi:softprob", "num_class": 3, "eta": 1, "reg_lambda": 0,
                         "base_score": 0.0, "min_child_weight": 0, "nthread": 1}, data, 1)
    leaf = booster.predict(data, output_margin=True)[0, 2]
    rule = {-0.75: "xgboost", -1.0: "xgboost-residual"}[round(float(leaf), 4)]
    if xgb.__version__.startswith("3.2."):
        assert rule == "xgboost"
    return rule


@pytest.mark.parametrize("method", ["hist", "exact"])
@pytest.mark.parametrize("weighted", [False, True])
def test_xgboost_own(xgb, xgb_rule, digits, weighted, method):
    x, y, w = digits
    data = xgb.DMatrix(x, label=y, weight=w if weighted else None)
    parameters = {**XGB, "tree_method": method}
    objective = softprob_objective if xgb_rule == "xgboost" else for_xgboost(hessian=xgb_rule)
    ours, theirs = (xgb.train(parameters, data, 20, obj=obj) for obj in (objective, None))
    assert_same_model(ours.predict(data, output_margin=True),
                      theirs.predict(data, output_margin=True))
    np.testing.assert_allclose(ours.predict(data), theirs.predict(data), atol=1e-5)


def test_xgboost_own_floor(xgb, xgb_rule):
    """1e-16, by the leaf of a class that no row has, of p = 3.1e-17: -g / h is -0.31."""
    if xgb_rule != "xgboost":
        pytest.skip(f"XGBoost {xgb.__version__} has another rule")
    start = np.zeros((4, 3), np.float32)
    start[:2, 0] = start[2:, 1] = 38
    data = xgb.DMatrix(np.array([0.0, 0, 1, 1])[:, None], label=[0, 0, 1, 1], base_margin=start)
    parameters = {**XGB, "num_class": 3, "eta": 1, "reg_lambda": 0, "min_child_weight": 0}
    ours, theirs = (xgb.train(parameters, data, 1, obj=obj).predict(data, output_margin=True)[:, 2]
                    for obj in (softprob_objective, None))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(ours, -np.exp(-38.0) / 1e-16, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("start", ["zero", "prior"])
def test_lightgbm_own(lgb, digits, start, weighted):
    x, y, w = digits
    w = w if weighted else None
    prior = np.zeros(10)
    if start == "prior":
        prior = np.log(np.bincount(y, weights=w) / (len(y) if w is None else w.sum(dtype=float)))
    init = np.tile(prior, (len(y), 1)) if start == "prior" else None
    ours = lgb.train({**LGB, "objective": multiclass_objective},
                     lgb.Dataset(x, y, weight=w, init_score=init), 20)
    theirs = lgb.train({**LGB, "objective": "multiclass", "boost_from_average": start == "prior"},
                       lgb.Dataset(x, y, weight=w), 20)
    assert_same_model(ours.predict(x, raw_score=True) + prior, theirs.predict(x, raw_score=True))


def test_lightgbm_own_of_two_classes(lgb, digits):
    """Where the factor C / (C - 1) is 2."""
    x, y, _ = digits
    parameters = {**LGB, "num_class": 2}
    ours, theirs, other = (
        lgb.train({**parameters, "objective": objective, "boost_from_average": False},
                  lgb.Dataset(x, y % 2), 20).predict(x, raw_score=True)
        for objective in (multiclass_objective, "multiclass", for_lightgbm(hessian="diagonal")))
    assert_same_model(ours, theirs)
    assert np.abs(other - theirs).max() > 0.1


# ---- soft labels ---------------------------------------------------------------------------------


def assert_next_to(found, wanted):
    """Probabilities have bits of their own, if of the same numbers."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_xgboost_soft_labels(xgb, digits):
    """One-hot probabilities are the classes: with the objective, or as the data's labels."""
    x, y, w = digits
    one_hot = np.eye(10)[y]
    data = xgb.DMatrix(x, label=y, weight=w)
    soft = xgb.DMatrix(x, label=one_hot, weight=w)
    without = {name: value for name, value in XGB.items() if name not in ("objective", "num_class")}
    wanted = xgb.train(XGB, data, 5, obj=softprob_objective).predict(data, output_margin=True)
    found = xgb.train(XGB, data, 5, obj=for_xgboost(targets=one_hot))
    assert_next_to(found.predict(data, output_margin=True), wanted)
    found = xgb.train(without, soft, 5, obj=softprob_objective)
    assert_next_to(found.predict(data, output_margin=True), wanted)
    # Its labels go along with rows.
    some = np.arange(0, 900, 3)
    part, soft_part = data.slice(some), soft.slice(some)
    wanted = xgb.train(XGB, part, 5, obj=softprob_objective).predict(data, output_margin=True)
    found = xgb.train(without, soft_part, 5, obj=softprob_objective)
    assert_next_to(found.predict(data, output_margin=True), wanted)
    assert xgb.cv(without, soft, 2, nfold=3, obj=softprob_objective, as_pandas=False)
    with pytest.raises(ValueError, match="targets has 900 rows, the training data 300"):
        xgb.train(XGB, part, 1, obj=for_xgboost(targets=one_hot))


def test_lightgbm_soft_labels(lgb, digits):
    """One-hot probabilities are the classes; folds and subsets take their rows."""
    x, y, w = digits
    objectives = multiclass_objective, for_lightgbm(targets=np.eye(10)[y])
    wanted, found = (
        lgb.train({**LGB, "objective": objective}, lgb.Dataset(x, y, weight=w), 5).predict(x)
        for objective in objectives)
    assert_next_to(found, wanted)
    wanted, found = (
        lgb.cv({**LGB, "objective": objective, "metric": "multi_error"},
               lgb.Dataset(x, y, weight=w), 4, nfold=3, seed=1)["valid multi_error-mean"]
        for objective in objectives)
    assert_next_to(found, wanted)
    assert wanted[-1] < 0.3
    some = np.arange(0, 900, 3)
    wanted, found = (
        lgb.train({**LGB, "objective": objective},
                  lgb.Dataset(x, y, free_raw_data=False).subset(some), 3).predict(x)
        for objective in objectives)
    assert_next_to(found, wanted)


# ---- what else they are used with ----------------------------------------------------------------


def test_xgboost_metrics_stop_early(xgb, xgb_rule, digits):
    """Its own mlogloss sees probabilities, whoever makes the gradients; `cv` too."""
    x, y, _ = digits
    train, held_out = xgb.DMatrix(x[:600], label=y[:600]), xgb.DMatrix(x[600:], label=y[600:])
    curves, best = [], []
    for objective in (for_xgboost(hessian=xgb_rule), None):
        log = {}
        booster = xgb.train({**XGB, "eta": 1.0}, train, 40, evals=[(held_out, "test")],
                            obj=objective, early_stopping_rounds=2, evals_result=log,
                            verbose_eval=False)
        curves.append(log["test"]["mlogloss"])
        best.append(booster.best_iteration)
    assert best[0] == best[1] < 37
    np.testing.assert_allclose(*curves, rtol=1e-4)
    ours, theirs = (xgb.cv(XGB, train, 3, nfold=3, obj=obj, seed=0, as_pandas=False)
                    for obj in (for_xgboost(hessian=xgb_rule), None))
    np.testing.assert_allclose(ours["test-mlogloss-mean"], theirs["test-mlogloss-mean"], rtol=1e-4)


def test_lightgbm_metrics_stop_early(lgb, digits):
    """By the metric of the module's docstring."""
    x, y, _ = digits
    names = {}
    doc = importlib.import_module("softxent.lightgbm").__doc__
    metric = re.search(r"    def logloss(?:.*\n|\n)+?(?=\n\S)", doc)[0]
    exec(textwrap.dedent(metric), {"sx": sx}, names)
    curves = []
    for objective, feval, parameters in (
            (multiclass_objective, names["logloss"], {"metric": "None"}),
            ("multiclass", None, {"metric": "multi_logloss", "boost_from_average": False})):
        log = {}
        train = lgb.Dataset(x[:600], y[:600])
        lgb.train({**LGB, "objective": objective, "learning_rate": 0.5, **parameters}, train, 60,
                  valid_sets=[lgb.Dataset(x[600:], y[600:], reference=train)], feval=feval,
                  callbacks=[lgb.early_stopping(2, verbose=False), lgb.record_evaluation(log)])
        curves += log["valid_0"].values()
    assert len(curves[0]) == len(curves[1]) < 60
    np.testing.assert_allclose(*curves, rtol=1e-4)


def test_xgb_classifier(xgb, xgb_rule, digits):
    """As its own, with weights; cloned, cross-validated, pickled."""
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    x, y, w = digits
    model = xgb.XGBClassifier(objective=for_xgboost(hessian=xgb_rule), n_estimators=10, max_depth=3,
                              n_jobs=1, base_score=0.0)
    own = xgb.XGBClassifier(n_estimators=10, max_depth=3, n_jobs=1, base_score=0.0)
    for weight in (None, w):
        ours, theirs = (base.clone(m).fit(x, y, sample_weight=weight) for m in (model, own))
        assert_same_model(ours.predict(x, output_margin=True),
                          theirs.predict(x, output_margin=True))
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5)
        np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.predict(x), ours.predict(x))
    scores = [selection.cross_val_score(m, x[:300], y[:300], cv=3) for m in (model, own)]
    np.testing.assert_array_equal(*scores)


def test_unlabelled_rows(xgb, lgb, digits):
    """The label -100 is as good as a weight of 0."""
    x, y, _ = digits
    y, w = y.copy(), np.ones(len(y))
    y[::5], w[::5] = -100, 0
    data = xgb.DMatrix(x, label=y)
    weighted = xgb.DMatrix(x, label=np.maximum(y, 0), weight=w)
    booster, other = (xgb.train(XGB, d, 3, obj=softprob_objective) for d in (data, weighted))
    np.testing.assert_array_equal(booster.predict(data), other.predict(data))
    booster, other = (
        lgb.train({**LGB, "objective": multiclass_objective}, d, 3)
        for d in (lgb.Dataset(x, y), lgb.Dataset(x, np.maximum(y, 0), weight=w)))
    np.testing.assert_array_equal(booster.predict(x), other.predict(x))


def test_two_classes(xgb, lgb, digits):
    """Two scores a row where `num_class` is 2; estimators make it one, which is refused."""
    pytest.importorskip("sklearn")
    x, y, _ = digits
    y = y % 2
    for model in (xgb.XGBClassifier(objective=softprob_objective, n_estimators=2, n_jobs=1),
                  lgb.LGBMClassifier(objective=multiclass_objective, n_jobs=1, verbose=-1)):
        with pytest.raises(ValueError, match=r"two classes or more.*set num_class"):
            model.fit(x, y)
    data = xgb.DMatrix(x, label=y)
    booster = xgb.train({**XGB, "num_class": 2}, data, 20, obj=softprob_objective)
    assert sx.accuracy(booster.predict(data), y) > 0.95


def test_lgbm_classifier(lgb, digits):
    """As its own, with weights, but that it predicts scores; cloned, pickled."""
    base = pytest.importorskip("sklearn.base")
    x, y, w = digits
    options = {name: value for name, value in LGB.items() if name not in (
        "num_class", "num_threads")} | {"n_estimators": 10, "n_jobs": 1}
    model = lgb.LGBMClassifier(objective=multiclass_objective, **options)
    own = lgb.LGBMClassifier(boost_from_average=False, **options)
    for weight in (None, w):
        ours, theirs = (base.clone(m).fit(x, y, sample_weight=weight) for m in (model, own))
        scores = ours.predict(x, raw_score=True)
        assert_same_model(scores, theirs.predict(x, raw_score=True))
        np.testing.assert_allclose(sx.softmax(scores), theirs.predict_proba(x), atol=1e-5)
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.predict(x, raw_score=True), scores)


@pytest.mark.parametrize("library", READY)
@pytest.mark.usefixtures("two_threads")
def test_trainings_at_once(library, digits):
    """One objective in threads and in processes, beside the library's own threads and ours."""
    pytest.importorskip(library)
    joblib = pytest.importorskip("joblib")
    x, y, _ = digits
    x, y = np.tile(x, (2, 1)), np.tile(y, 2)
    assert sx.explain((len(x), 10)).n_threads == 2
    jobs = [joblib.delayed(fit)(library, x, y, seed) for seed in range(3)]
    wanted = [job[0](*job[1], **job[2]) for job in jobs]
    for backend in ("threading", "loky"):
        found = joblib.Parallel(n_jobs=2, backend=backend, timeout=120)(jobs)
        np.testing.assert_array_equal(found, wanted)


def fit(library, x, y, seed):
    """Train on two threads; return margins."""
    module = importlib.import_module(library)
    if library == "xgboost":
        parameters = {**XGB, "nthread": 2, "seed": seed, "subsample": 0.9, "max_depth": 2}
        data = module.DMatrix(x, label=y)
        return module.train(parameters, data, 2, obj=softprob_objective).predict(
            data, output_margin=True)
    parameters = {**LGB, "num_threads": 2, "seed": seed, "bagging_fraction": 0.9, "bagging_freq": 1}
    return module.train({**parameters, "objective": multiclass_objective},
                        module.Dataset(x, y), 4).predict(x)
