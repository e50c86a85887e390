"""What is particular to a loss: its limit cases bit for bit, its derivative, what it refuses.

Accuracy is test_options.py's and test_option_pairs.py's; single logits are test_sigmoid.py's.
"""

import numpy as np
import pytest

import softxent as sx
from accuracy_table import storage
from softxent.losses import LOSSES
from test_accuracy import assert_positive_zero, bits

ROWS = {name: spec for name, spec in LOSSES.items() if name != "sigmoid_binary_cross_entropy"}
KINDS = [(name, kind) for name, spec in ROWS.items() for kind in spec.targets]
#: Options that take part in a loss's formula, with values that are easy to differentiate.
NUMBERS = {"gamma": 1.7, "hard_weight": 0.3, "label_smoothing": 0.1, "temperature": 0.8,
           "softcap": 6.0, "z_loss": 0.03}


def problem(n_classes, dtype="float64", kind="classes", n_rows=40):
    """Logits, targets, and options that every loss of the kind has."""
    rng = np.random.default_rng([n_classes, n_rows])
    z = rng.normal(0, 3, (n_rows, n_classes))
    z[::7] *= 30
    targets = rng.integers(0, n_classes, n_rows)
    if kind == "probabilities":
        targets = rng.dirichlet(np.ones(n_classes), n_rows)
    elif kind == "logits":
        targets = rng.normal(0, 3, (n_rows, n_classes))
    else:
        targets[1::9] = -100
    return z.astype(storage(dtype)), targets, {"sample_weight": rng.uniform(0, 2, n_rows),
                                               "upstream": rng.normal(0, 2, n_rows)}


def run(level, loss, z, targets, **options):
    """Loss and gradient of every row."""
    given = {"reduction": "none", "backend": level.backend, **options}
    return getattr(sx, f"{loss}_with_grad")(z, targets, **given)


def same(found, wanted):
    """Bit for bit."""
    assert [bits(a) for a in found] == [bits(a) for a in wanted]


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "kind"), KINDS)
@pytest.mark.parametrize("n_classes", [1, 2, 5, 70])
def test_gradient_is_the_derivative(level, loss, kind, n_classes):
    """Central differences of float64 rows, with every option of the formula together."""
    z, targets, options = problem(n_classes, kind=kind, n_rows=6)
    z = z / np.maximum(np.abs(z).max(axis=1, keepdims=True) / 3, 1)
    has = LOSSES[loss].options[kind]
    options = {**options, **{name: value for name, value in NUMBERS.items() if name in has}}
    if "class_weight" in has:
        options["class_weight"] = np.linspace(0.5, 2, n_classes)
    if "hard_targets" in has:
        options["hard_targets"] = np.arange(len(z)) % n_classes
    up = options.pop("upstream")
    _, g = run(level, loss, z, targets, upstream=up, **options)
    h = 1e-5
    for k in range(min(n_classes, 5)):
        step = np.where(np.arange(n_classes) == k, h, 0)
        above, below = (run(level, loss, z + way * step, targets, **options)[0] for way in (1, -1))
        np.testing.assert_allclose(g[:, k], up * (above - below) / (2 * h), rtol=1e-6, atol=2e-9)


# ---- focal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [1, 2, 10, 64, 65, 1030])
def test_focal_loss_at_0_is_cross_entropy(level, any_dtype, n_classes):
    z, targets, options = problem(n_classes, any_dtype)
    options |= {"class_weight": np.linspace(0, 2, n_classes)}
    for more in ({}, {"temperature": 1.5}, {"softcap": 20.0, "z_loss": 1e-2}):
        same(run(level, "focal_loss", z, targets, gamma=0, **options, **more),
             run(level, "cross_entropy", z, targets, **options, **more))


def test_focal_loss_of_sure_rows(level, dtype):
    """(1 - p)^gamma keeps its digits where 1 - p has none: S'/S, not a difference."""
    gap = np.array([20.0, 30.0], dtype)
    z = np.stack([gap, np.zeros(2, dtype)], axis=1)
    loss, g = run(level, "focal_loss", z, [0, 0], gamma=1.0)
    other = np.exp(-gap.astype(float))
    np.testing.assert_allclose(loss, other**2, rtol=1e-5)
    np.testing.assert_allclose(g[:, 0], -2 * other**2, rtol=1e-5)


def test_focal_loss_is_the_papers(level):
    """Lin et al. 2017, -alpha (1 - p)^gamma log p, written out."""
    z, targets, _ = problem(5)
    targets = np.where(targets < 0, 0, targets)
    alpha = np.linspace(0.2, 1, 5)
    p = sx.softmax(z)[np.arange(40), targets]
    ordinary = p < 0.99
    loss, _ = run(level, "focal_loss", z, targets, gamma=2.0, class_weight=alpha)
    np.testing.assert_allclose(loss[ordinary], (-alpha[targets] * (1 - p)**2 * np.log(p))[ordinary],
                               rtol=1e-9)


@pytest.mark.parametrize("gamma", [-0.1, np.nan, np.inf, "2x", [1.0, 2.0]])
def test_focal_loss_refuses_an_exponent(gamma):
    error = ValueError if isinstance(gamma, float) else TypeError
    z = np.zeros((2, 3))
    with pytest.raises(error, match="gamma"):
        sx.focal_loss_with_grad(z, [0, 1], gamma=gamma, grad_out=z)
    assert not z.any()


# ---- KL divergence -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [1, 2, 10, 64, 65, 1030])
def test_kl_divergence_has_the_gradient_of_cross_entropy(level, any_dtype, n_classes):
    """Bit for bit; the loss is less by the targets' entropy."""
    z, targets, options = problem(n_classes, any_dtype, "probabilities")
    for more in ({}, {"temperature": 1.5}, {"softcap": 20.0}):
        loss, g = run(level, "kl_divergence", z, targets, **options, **more)
        other, wanted = run(level, "cross_entropy", z, targets, **options, **more)
        assert bits(g) == bits(wanted)
        with np.errstate(all="ignore"):
            own = np.where(targets > 0, targets * np.log(targets), 0).sum(axis=1)
        wide = "float64" if any_dtype == "float64" else "float32"
        scale = np.finfo(wide).eps * 40 * (np.abs(other) + 5)
        assert (np.abs(loss - (other + options["sample_weight"] * own)) <= scale).all()


def test_kl_divergence_from_itself_is_0(level, dtype):
    """>= +0.0 however the roundings fall; a row that does not sum to 1 may be negative."""
    z, _, _ = problem(300, dtype, n_rows=500)
    z /= 30
    p = sx.softmax(z)
    loss = sx.kl_divergence(z, p, reduction="none", backend=level.backend)
    assert not np.signbit(loss).any()
    assert (loss <= 20 * np.finfo(dtype).eps).all()
    # Of p / 2: half of log 1/2 is left.
    half = sx.kl_divergence(z, p / 2, reduction="none", backend=level.backend)
    np.testing.assert_allclose(half, np.log(0.5) / 2, rtol=1e-5)


def test_kl_divergence_refuses_class_numbers():
    with pytest.raises(TypeError, match="targets must be probabilities"):
        sx.kl_divergence(np.zeros((2, 3)), [0, 1])


# ---- NLL -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [1, 3, 65, 1030])
def test_nll_loss_of_log_softmax_is_cross_entropy(level, dtype, n_classes):
    z, targets, options = problem(n_classes, dtype)
    options["class_weight"] = np.linspace(0.5, 2, n_classes)
    log_p = sx.log_softmax(z, backend=level.backend)
    loss, g = run(level, "nll_loss", log_p, targets, **options)
    wanted, _ = run(level, "cross_entropy", z, targets, **options)
    np.testing.assert_allclose(loss, wanted, rtol=8 * np.finfo(dtype).eps)
    counts, kept = targets != -100, np.maximum(targets, 0)
    w = counts * options["sample_weight"] * options["upstream"] * options["class_weight"][kept]
    expected = np.zeros(z.shape)
    expected[np.arange(40), kept] = -w
    np.testing.assert_allclose(g, expected, rtol=4 * np.finfo(dtype).eps)
    assert_positive_zero(g[expected == 0])


def test_nll_loss_reads_the_targets_entries_alone(level, any_dtype):
    """NaN and infinities beside them do not matter; at them they are the row's value."""
    z = np.full((5, 70), np.nan).astype(storage(any_dtype))
    z[np.arange(5), [3, 4, 5, 6, 7]] = [-1.5, -np.inf, np.nan, 2.0, 0.0]
    loss, g = run(level, "nll_loss", z, [3, 4, 5, 6, 7])
    np.testing.assert_array_equal(loss, [1.5, np.inf, np.nan, -2.0, 0.0])
    assert not np.signbit(loss[4])
    wanted = np.zeros((5, 70))
    wanted[np.arange(5), [3, 4, 5, 6, 7]] = -1
    np.testing.assert_array_equal(g.astype(float), wanted)


def test_nll_loss_keeps_a_subnormal_gradient(level):
    """Nothing is flushed where nothing is computed."""
    _, g = run(level, "nll_loss", np.zeros((2, 3), np.float32), [0, 1], upstream=2.0**-140)
    assert g[0, 0] == -(2.0**-140)


def test_nll_loss_names_its_argument():
    for z, words in ((np.zeros((2, 3), int), "log_probs must be float32"),
                     (np.float32(1), "log_probs must have a class axis")):
        with pytest.raises((TypeError, ValueError), match=words):
            sx.nll_loss(z, [0, 1])
    with pytest.raises(TypeError, match="targets must be integers"):
        sx.nll_loss(np.zeros((2, 3)), np.full((2, 3), 1 / 3))


# ---- squared error -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [1, 2, 10, 64, 65, 1030])
def test_squared_error_is_half_the_brier_score(level, n_classes):
    """Of class numbers as of their one-hot rows, within the contract of either."""
    z, targets, options = problem(n_classes)
    kept = np.where(targets < 0, 0, targets)
    s = np.where(targets < 0, 0, options.pop("sample_weight"))
    one_hot = np.eye(n_classes)[kept]
    loss, g = run(level, "softmax_squared_error", z, kept, sample_weight=s, **options)
    as_shares, g_shares = run(level, "softmax_squared_error", z, one_hot, sample_weight=s,
                              **options)
    np.testing.assert_allclose(loss, s * ((sx.softmax(z) - one_hot) ** 2).sum(axis=1) / 2,
                               rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(as_shares, loss, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(g_shares, g, rtol=1e-9, atol=1e-15)


def test_squared_error_stops_learning_from_confident_mistakes(level):
    """What the docs warn of: loss 1, gradient next to none; cross-entropy's is -1."""
    z = np.array([[0.0, 40.0]])
    loss, g = run(level, "softmax_squared_error", z, [0])
    assert loss == 1.0
    assert 0 < np.abs(g).max() < 1e-15
    assert run(level, "cross_entropy", z, [0])[1][0, 0] == -1.0


def test_squared_error_keeps_the_digits_of_sure_rows(level, dtype):
    """(1 - p)^2 is not the square of a difference."""
    loss, g = run(level, "softmax_squared_error", np.array([[20.0, 0.0]], dtype), [0])
    other = np.exp(-20.0)
    np.testing.assert_allclose(loss, other**2, rtol=1e-5)
    np.testing.assert_allclose(g, [[-2 * other**2, 2 * other**2]], rtol=1e-5)


# ---- distillation --------------------------------------------------------------------------------


def distil(level, z, teacher, **options):
    """Loss and gradient of every row."""
    return run(level, "distillation_loss", z, teacher, **options)


@pytest.mark.parametrize("n_classes", [1, 2, 10, 64, 65, 1030])
def test_distillation_of_classes_alone_is_cross_entropy(level, any_dtype, n_classes):
    """h = 1: the teacher, whose values would make NaN, is not evaluated."""
    z, targets, options = problem(n_classes, any_dtype)
    options |= {"class_weight": np.linspace(0, 2, n_classes), "label_smoothing": 0.2}
    teacher = np.full(z.shape, np.nan)
    for more in ({}, {"ignore_index": 0}, {"label_smoothing": 0.0}):
        given = {**options, **more}
        if "ignore_index" in more:
            targets = np.where(targets < 0, 0, targets)
        same(distil(level, z, teacher, hard_targets=targets, hard_weight=1, **given),
             run(level, "cross_entropy", z, targets, **given))
    given = {"hard_targets": targets, "hard_weight": 1, "divisor": 7.0, "reduction": "mean",
             "ignore_index": 0}
    found = distil(level, z, teacher, **given)
    wanted = run(level, "cross_entropy", z, targets, divisor=7.0, reduction="mean", ignore_index=0)
    assert found[0] == wanted[0]
    assert bits(found[1]) == bits(wanted[1])


@pytest.mark.parametrize("n_classes", [1, 2, 10, 65, 1030])
def test_distillation_from_a_teacher_alone_needs_no_classes(level, any_dtype, n_classes):
    """h = 0: classes, their weights and smoothing change no bit, but for the rows they ignore."""
    z, teacher, options = problem(n_classes, any_dtype, kind="logits")
    expected = distil(level, z, teacher, **options)
    targets = np.arange(40) % n_classes
    same(expected, distil(level, z, teacher, hard_targets=targets, label_smoothing=0.3,
                          class_weight=np.linspace(0, 2, n_classes), **options))
    z[3], teacher[3], targets[3] = np.nan, np.inf, -100
    loss, g = distil(level, z, teacher, hard_targets=targets, **options)
    assert_positive_zero(loss[3:4])
    assert_positive_zero(g[3].astype(float))
    others = np.arange(40) != 3
    same((loss[others], g[others]), (expected[0][others], expected[1][others]))


@pytest.mark.parametrize("temperature", [0.5, 2.0, 7.0])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 65, 1030])
def test_distillation_of_equals_is_0(level, any_dtype, n_classes, temperature):
    """Loss and gradient, exactly."""
    z, _, options = problem(n_classes, any_dtype)
    z[::5, n_classes // 2 + 1 :] = -np.inf
    loss, g = distil(level, z, z.copy(), temperature=temperature, **options)
    assert_positive_zero(loss)
    assert not g.astype(float).any()


def test_distillation_is_hintons(level):
    """(1 - h) tau^2 KL(q || p) + h cross-entropy, written out with this library's own pieces."""
    z, teacher, _ = problem(5, kind="logits")
    targets = np.arange(40) % 5
    tau, h = 3.0, 0.25
    q = sx.softmax(teacher, temperature=tau)
    expected = (1 - h) * tau**2 * sx.kl_divergence(z, q, temperature=tau, reduction="none")
    expected += h * sx.cross_entropy(z, targets, reduction="none")
    loss, _ = distil(level, z, teacher, temperature=tau, hard_targets=targets, hard_weight=h)
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


@pytest.mark.parametrize("n_classes", [3, 10, 64, 65, 1030])
def test_distillation_of_masked_classes(level, dtype, n_classes):
    """Excluded by both: nothing; by the student alone: +inf, and what the teacher gives there."""
    z, teacher, _ = problem(n_classes, dtype, kind="logits", n_rows=8)
    teacher = teacher.astype(dtype)
    z[:, 0] = teacher[:, 0] = -np.inf
    rest = distil(level, z[:, 1:], teacher[:, 1:])
    loss, g = distil(level, z, teacher)
    np.testing.assert_allclose(loss, rest[0], rtol=20 * np.finfo(dtype).eps)
    assert_positive_zero(np.abs(g[:, 0]))
    z[::2, 1] = -np.inf
    loss, g = distil(level, z, teacher)
    assert np.isposinf(loss[::2]).all()
    assert np.isfinite(loss[1::2]).all()
    q = sx.softmax(teacher, temperature=2.0, backend=level.backend)
    np.testing.assert_allclose(g[::2, 1], -2 * q[::2, 1], rtol=8 * np.finfo(dtype).eps)
    # Excluded by the teacher alone: the student is to give it up.
    teacher[:, 2] = -np.inf
    p = sx.softmax(z, temperature=2.0, backend=level.backend)
    _, g = distil(level, z, teacher)
    np.testing.assert_allclose(g[:, 2], 2 * p[:, 2], rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n_classes", [1, 3, 65, 1030])
def test_teachers_without_a_softmax(level, any_dtype, n_classes):
    """NaN, +inf or -inf alone: that row is NaN, and no other."""
    z, teacher, options = problem(n_classes, any_dtype, kind="logits", n_rows=8)
    expected = distil(level, z, teacher, **options)
    teacher[1, n_classes // 2], teacher[3, 0], teacher[5] = np.nan, np.inf, -np.inf
    loss, g = distil(level, z, teacher, **options)
    bad = [1, 3, 5]
    assert np.isnan(loss[bad]).all()
    assert np.isnan(g[bad].astype(float)).all()
    good = [0, 2, 4, 6, 7]
    same((loss[good], g[good]), (expected[0][good], expected[1][good]))


@pytest.mark.parametrize("n_classes", [3, 65, 1030])
def test_teacher_of_another_dtype(level, n_classes):
    """Numbers that both dtypes have: float16 as float32; float64 as if the logits were, too."""
    z, teacher, options = problem(n_classes, "float32", kind="logits")
    narrow = teacher.astype(np.float16)
    same(distil(level, z, narrow, **options), distil(level, z, narrow.astype("f4"), **options))
    loss, g = distil(level, z, teacher, **options)
    wide = distil(level, z.astype(float), teacher, **options)
    assert (loss.dtype, g.dtype) == (np.float32, np.float32)
    same((loss, g), [a.astype("f4") for a in wide])
    # Differences of float64 logits that float32 has not.
    off = teacher + 1e6
    assert np.abs(distil(level, z, off, **options)[0] - loss).max() <= 1e-5 * loss.max()


def test_distillation_divides_by_the_rows_that_count(level):
    z, teacher, _ = problem(5, kind="logits", n_rows=4)
    targets, s, v = np.array([0, -100, 2, 3]), np.array([1.0, 2.0, 0.0, 3.0]), np.arange(5.0)
    options = {"hard_targets": targets, "hard_weight": 0.5, "sample_weight": s, "class_weight": v}
    rows, g = distil(level, z, teacher, **options)
    mean, g_mean = distil(level, z, teacher, reduction="mean", **options)
    assert mean == pytest.approx(rows.sum() / 4)
    np.testing.assert_allclose(g_mean, g / 4, rtol=1e-15)
    # Of a class of weight 0 the divergence stays.
    only, _ = distil(level, z, teacher)
    assert rows[0] == only[0] / 2


@pytest.mark.parametrize(("error", "match", "options"), [
    (ValueError, "hard_weight 0.5 is the share of cross-entropy with hard_targets: pass them",
     {"hard_weight": 0.5}),
    (ValueError, r"hard_weight must be within \[0, 1\]", {"hard_weight": 1.5}),
    (ValueError, r"hard_weight must be within \[0, 1\]", {"hard_weight": np.nan}),
    (TypeError, "hard_weight must be a number", {"hard_weight": "all"}),
    (IndexError, r"hard_targets\[1\] = 3 is out of range for 3 classes", {"hard_targets": [0, 3]}),
    (TypeError, "hard_targets must be integers, got dtype float64",
     {"hard_targets": np.ones((2, 3)) / 3}),
    (ValueError, r"hard_targets must have the logits' shape without axis 1",
     {"hard_targets": [0, 1, 2]}),
    (ValueError, r"teacher_logits must have the logits' shape \(2, 3\), got \(2, 4\)",
     {"teacher_logits": np.zeros((2, 4))}),
    (TypeError, "teacher_logits must be float32, float64, float16 or bfloat16, got int64",
     {"teacher_logits": np.zeros((2, 3), int)}),
    (TypeError, "teacher_logits must be", {"teacher_logits": None}),
    (ValueError, "temperature must be > 0", {"temperature": 0}),
    (ValueError, "grad_out shares memory with teacher_logits", {"grad_out": "teacher"}),
    (ValueError, "grad_out shares memory with hard_targets", {"grad_out": "out"}),
])
def test_distillation_refuses(error, match, options):
    z, teacher = np.full((2, 3), 2.0), np.ones((2, 3))
    memory = np.ones((2, 3))
    how = options.get("grad_out")
    if how == "teacher":
        options = {"grad_out": teacher}
    elif how == "out":
        options = {"grad_out": memory, "hard_targets": memory.view(np.int64)[:, 0]}
        memory.view(np.int64)[:] = 0
    given = {"teacher_logits": teacher, "grad_out": z, **options}
    with pytest.raises(error, match=match):
        sx.distillation_loss_with_grad(z, **given)
    assert (z == 2).all()
    assert (teacher == 1).all()


# ---- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "kind"), KINDS)
def test_options_that_a_loss_has_not_are_no_parameters(loss, kind):
    """A typing error that Python finds itself, or one that names the kind of targets."""
    every = {name for spec in LOSSES.values() for some in spec.options.values() for name in some}
    for name in every - set(LOSSES[loss].options[kind]):
        targets = [0, 1] if kind == "classes" else np.full((2, 3), 1 / 3)
        with pytest.raises(TypeError, match=name):
            getattr(sx, f"{loss}_with_grad")(np.zeros((2, 3)), targets, **{name: 0.25})
