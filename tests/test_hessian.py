"""Cross-entropy with gradient and Hessian: values, rules, any outputs, and what is refused."""

import numpy as np
import pytest

import rows
import softxent as sx
import truth
from accuracy_table import FORMATS, bound, option_cases, storage
from levels import force, usable_levels
from test_accuracy import assert_positive_zero, bits, layouts

LD = truth.LD
RULES = ("diagonal", "xgboost", "xgboost-residual", "lightgbm")
OPTIONS = {
    "plain": {},
    "weights": {"class_weight": True, "sample_weight": True},
    "smoothing": {"label_smoothing": 0.1, "class_weight": True},
    "temperature": {"temperature": 1.7},
    "probabilities": {"probabilities": True},
    "everything": {"probabilities": True, "class_weight": True, "sample_weight": True,
                   "label_smoothing": 0.2, "temperature": 0.6},
}


def arguments(case, name):
    """Targets and options of a case, some rows of which do not count."""
    n, n_classes = case.logits.shape
    rng = np.random.default_rng([n, n_classes])
    options = dict(OPTIONS[name])
    targets = case.targets.copy()
    if options.pop("probabilities", False):
        targets = rows.probabilities(case)
    else:
        targets[::11] = -100
    if options.pop("class_weight", False):
        options["class_weight"] = rng.uniform(0.5, 2, n_classes)
    if options.pop("sample_weight", False):
        options["sample_weight"] = np.where(rng.random(n) < 0.1, 0, rng.uniform(0.5, 2, n))
    return targets, options


def run(level, z, targets, **options):
    return sx.cross_entropy_grad_hess(z, targets, backend=level.backend, **options)


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_within_the_contract(level, any_dtype, name):
    """A9, over every family of rows; loss and gradient have cross_entropy_with_grad's bits."""
    for case in option_cases(any_dtype):
        z = case.logits.astype(storage(any_dtype))
        targets, options = arguments(case, name)
        loss, g, h = run(level, z, targets, **options)
        wanted = sx.cross_entropy_with_grad(z, targets, reduction="none", backend=level.backend,
                                            **options)
        assert [bits(loss), bits(g)] == [bits(a) for a in wanted]
        assert h.dtype == z.dtype
        true, scale = truth.hessian(case.logits, targets, **options)
        eps, f = truth.EPS[case.dtype], truth.F[case.dtype]
        masses = truth.hessian_masses(targets, z.shape[1], **options)
        allowed = 2 * z.shape[1] * LD(f) * (1 + masses)[:, None]
        if any_dtype in FORMATS:
            allowed = allowed + truth.spacing(true + allowed, any_dtype) / 2
        over = np.isinf(h.astype(float)) & (true >= truth.largest(any_dtype))
        off = np.abs(np.where(over, 0, h.astype(LD) - true)) - allowed
        assert (off <= bound("Hessian", case.dtype) * eps * scale).all(), case.name
        assert (h.astype(float) >= 0).all()


def test_of_sure_rows(level, dtype):
    """p (1 - p) where 1 - p has no digits as a difference: both classes the same."""
    _, _, h = run(level, np.array([[40.0, 0.0], [-60.0, 5.0]], dtype), [1, 0])
    np.testing.assert_allclose(h, [[np.exp(-40.0)] * 2, [np.exp(-65.0)] * 2], rtol=1e-6)


@pytest.mark.parametrize("n_classes", [1, 2, 5, 70])
def test_is_the_gradients_derivative(level, n_classes):
    rng = np.random.default_rng(n_classes)
    z = rng.normal(0, 1, (6, n_classes))
    options = {"label_smoothing": 0.1, "temperature": 0.8, "sample_weight": rng.random(6),
               "class_weight": rng.uniform(0.5, 2, n_classes)}
    for targets in (rng.integers(0, n_classes, 6), rng.dirichlet(np.ones(n_classes), 6)):
        h = run(level, z, targets, **options)[2]
        for k in range(min(n_classes, 4)):
            step = np.where(np.arange(n_classes) == k, 1e-5, 0)
            above, below = (run(level, z + way * step, targets, **options)[1][:, k]
                            for way in (1, -1))
            np.testing.assert_allclose(h[:, k], (above - below) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_classes", [1, 2, 10, 65, 1030])
@pytest.mark.parametrize("name", OPTIONS)
def test_rules(level, dtype, name, n_classes):
    """Factor and floor of each; 0 in rows that do not count, whatever the floor."""
    case = rows.some(rows.case(n_classes, dtype), 1) if n_classes in rows.CLASSES else None
    z = np.random.default_rng(n_classes).normal(0, 9, (50, n_classes)).astype(dtype)
    case = rows.Case("", z, np.arange(50) % n_classes, [""] * 50) if case is None else case
    targets, options = arguments(case, name)
    tau = options.get("temperature", 1.0)
    # Probabilities that are all 0 are a row that counts, with a floor.
    counts = (options.get("sample_weight", np.ones(len(targets))) > 0)[:, None]
    if targets.ndim == 1:
        counts = counts & (targets != -100)[:, None]
    _, g, h = run(level, case.logits, targets, **options)
    h, size = h.astype(float), np.abs(g.astype(float)) / tau
    wanted = {"xgboost": np.maximum(2 * h, 1e-16), "xgboost-residual": np.maximum(size, 1e-16),
              "lightgbm": h * n_classes / max(n_classes - 1, 1)}
    for rule, expected in wanted.items():
        if rule == "lightgbm" and n_classes == 1:
            continue
        found = run(level, case.logits, targets, hessian=rule, **options)
        expected = np.where(counts, expected, 0)
        least = truth.F[dtype] * 4
        np.testing.assert_allclose(found[2], expected, rtol=4 * np.finfo(dtype).eps, atol=least)
        assert bits(found[1]) == bits(g)
        assert_positive_zero(found[2][~counts[:, 0]])


def test_rows_without_a_softmax(level, dtype):
    """NaN in all three, of that row alone; the floor does not hide it."""
    for n_classes in (3, 70):
        z = np.zeros((4, n_classes), dtype)
        z[0, 1], z[1, 0], z[2] = np.nan, np.inf, -np.inf
        for rule in RULES:
            for arrays in run(level, z, [0, 0, 0, 0], hessian=rule):
                assert np.isnan(arrays[:3]).all()
                assert np.isfinite(arrays[3]).all()


# ---- bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n_classes", [2, 10, 70, 1030])
def test_same_bits_in_any_memory(level, dtype, all_take_part, rule, n_classes):
    """E7: layouts, threads, and either output over the logits."""
    z = np.random.default_rng(n_classes).normal(0, 9, (40, n_classes)).astype(dtype)
    y = np.arange(40) % n_classes
    y[::7] = -100
    wanted = [bits(a) for a in run(level, z, y, hessian=rule)]
    for how, logits in layouts(z):
        for n_threads in (1, 2, 3, 7):
            found = run(level, logits, y, hessian=rule, n_threads=n_threads)
            assert [bits(a) for a in found] == wanted, how
        for name, place in (("grad_out", 1), ("hess_out", 2)):
            mine = logits.copy(order="K")
            found = run(level, mine, y, hessian=rule, **{name: mine})
            assert found[place] is mine
            assert [bits(a) for a in found] == wanted, how


WITH_FMA = [level for level in usable_levels() if level.isa in ("v3", "v4")]


@pytest.mark.skipif(len(WITH_FMA) < 2, reason="this processor has no two levels with FMA")
def test_levels_with_fma_give_the_same_bits(any_dtype):
    """E8."""
    for case in option_cases(any_dtype):
        for name in OPTIONS:
            found = []
            for level in WITH_FMA:
                with pytest.MonkeyPatch.context() as patch:
                    force(level, patch)
                    targets, options = arguments(case, name)
                    z = case.logits.astype(storage(any_dtype))
                    found.append([bits(a) for a in run(level, z, targets, **options)])
            assert all(each == found[0] for each in found), (case.name, name)


# ---- outputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rule", RULES)
def test_outputs_of_another_type_and_order(level, any_dtype, stored, order, rule):
    """Of rows and of the logits' shape; as new ones, but for the rounding."""
    z = np.random.default_rng(0).normal(0, 3, (30, 70)).astype(storage(any_dtype))
    y = np.arange(30) % 70
    outs = {"loss_out": np.empty(30, stored), "grad_out": np.empty(z.shape, stored, order),
            "hess_out": np.empty((60, 70), stored, order)[::2]}
    found = run(level, z, y, hessian=rule, **outs)
    wide = "float64" if any_dtype == "float64" else "float32"
    for name, array, wanted in zip(outs, found, run(level, z.astype(wide), y, hessian=rule),
                                   strict=True):
        assert array is outs[name]
        eps = max(np.finfo(stored).eps, np.finfo(wide).eps)
        np.testing.assert_allclose(array, wanted.astype(float), rtol=4 * eps)


def test_other_axes_and_a_single_row(level):
    z = np.random.default_rng(0).normal(0, 3, (4, 5, 6))
    y = np.arange(24).reshape(4, 6) % 5
    found = run(level, z, y, axis=1)
    flat = run(level, np.moveaxis(z, 1, -1).reshape(-1, 5), y.reshape(-1))
    assert bits(found[0].reshape(-1)) == bits(flat[0])
    for a, b in zip(found[1:], flat[1:], strict=True):
        assert bits(np.moveaxis(a, 1, -1).reshape(-1, 5)) == bits(b)
    for rule in RULES:
        loss, g, h = run(level, z[0, :, 0], 2, hessian=rule)
        assert loss.shape == ()
        assert g.shape == h.shape == (5,)
    for shape in ((0, 5), (2, 0, 5)):
        loss, g, h = run(level, np.zeros(shape), np.zeros(shape[:-1], int))
        assert (loss.shape, g.shape, h.shape) == (shape[:-1], shape, shape)


def refuse_problem():
    z = np.zeros((3, 4))
    return z, np.array([0, 1, 2])


_Z, _Y = refuse_problem()
_T = np.full((3, 4), 0.25)
REFUSED = {
    "rule": (ValueError, ["hessian must be one of", "'newton'"], {"hessian": "newton"}),
    "rule of no string": (ValueError, ["hessian must be one of"], {"hessian": None}),
    "one class": (ValueError, ["two classes"], {"hessian": "lightgbm", "logits": _Z[:, :1],
                                                "targets": [0, 0, 0]}),
    "same array twice": (ValueError, ["hess_out shares memory with grad_out"], "both"),
    "loss in hess": (ValueError, ["loss_out shares memory with hess_out"], "loss in hess"),
    "shape of loss_out": (ValueError, ["loss_out", "(3,)", "(3, 4)"],
                          {"loss_out": np.empty((3, 4))}),
    "dtype of loss_out": (ValueError, ["loss_out", "int64"], {"loss_out": np.empty(3, int)}),
    "list as loss_out": (TypeError, ["loss_out", "list"], {"loss_out": [0.0, 0.0, 0.0]}),
    "read-only hess_out": (ValueError, ["hess_out is read-only"],
                           {"hess_out": np.broadcast_to(np.zeros(4), (3, 4))}),
    "dtype of hess_out": (ValueError, ["hess_out", "float32", "int64"],
                          {"hess_out": np.empty((3, 4), int)}),
    "hess_out over targets": (ValueError, ["hess_out shares memory with targets"], "targets"),
    "hess_out partly over logits": (ValueError, ["hess_out shares memory with logits"], "partly"),
    "a class out of range": (IndexError, ["targets[1] = 9"], {"targets": [0, 9, 1]}),
    "a negative probability": (ValueError, ["probability targets"],
                               {"targets": np.where(np.eye(3, 4) > 0, -1.0, 0.5)}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(level, name):
    """Before logits that are to be overwritten are touched."""
    error, words, given = REFUSED[name]
    z, y = refuse_problem()
    options = {"logits": z, "targets": y}
    if given == "both":
        options["grad_out"] = options["hess_out"] = np.empty(z.shape)
    elif given == "loss in hess":
        options["hess_out"] = np.empty(z.shape)
        options["loss_out"] = options["hess_out"][:, 0]
    elif given == "targets":
        options["targets"] = options["hess_out"] = _T.copy()
    elif given == "partly":
        memory = np.zeros((4, 4))
        options |= {"logits": memory[:3], "hess_out": memory[1:]}
    else:
        options |= given
        if not any(name.endswith("_out") for name in given) and options["logits"] is z:
            options["hess_out"] = z
    before = options["logits"].copy()
    with pytest.raises(error) as caught:
        sx.cross_entropy_grad_hess(backend=level.backend, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert (options["logits"] == before).all()


def test_two_outputs_cannot_both_be_the_logits(level):
    z, y = refuse_problem()
    with pytest.raises(ValueError, match="hess_out shares memory with grad_out"):
        sx.cross_entropy_grad_hess(z, y, grad_out=z, hess_out=z, backend=level.backend)
    assert not z.any()
