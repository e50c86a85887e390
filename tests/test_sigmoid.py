"""Binary cross-entropy: every logit a row, of any shape, in any memory."""

import hashlib
import itertools
import tracemalloc

import mpmath
import numpy as np
import pytest

import softxent as sx
import truth
from accuracy_table import FORMATS, storage
from levels import force, usable_levels
from test_accuracy import assert_positive_zero, layouts

LD = truth.LD
#: A9, in eps of the sum of the absolute terms.
BOUND = {"float32": 8.0, "float64": 16.0}
WITH_FMA = [level for level in usable_levels() if level.isa in ("v3", "v4")]


def hard(dtype, shape, seed=0):
    """Logits of every size, their targets (0, 1, and between), weights and upstream."""
    rng = np.random.default_rng([seed, *shape])
    n = int(np.prod(shape))
    z = rng.normal(0, 1, n) * 10.0 ** rng.uniform(-8, 3, n)
    edges = [0.0, -0.0, 16.6, -16.6, 17.5, 36.7, -36.8, 87.2, -87.3, 88.0, 103.9, -104.0, 708.3,
             -708.4, 745.1, 1e6, -1e9, 3e38, -3e38, 1e-38, 1e-45]
    where = rng.random(n) < 0.3
    z[where] = rng.choice(edges, where.sum())
    with np.errstate(over="ignore"):
        z = z.astype(storage(dtype))
    z[~np.isfinite(z.astype(float))] = 1
    t = rng.integers(0, 2, n).astype(float)
    between = rng.random(n) < 0.3
    t[between] = rng.choice([rng.random(), 1e-40, 1e-7, 1 - 1e-7, 0.5], between.sum())
    others = {
        "pos_weight": np.exp(rng.normal(0, 2, n)), "sample_weight": np.exp(rng.normal(0, 2, n)),
        "upstream": rng.normal(0, 1, n) * 1e3,
    }
    others["pos_weight"][rng.random(n) < 0.1] = 0
    return z.reshape(shape), t.reshape(shape), {k: v.reshape(shape) for k, v in others.items()}


def true(z, t, pos_weight=None, sample_weight=None, upstream=None):
    """Loss, gradient and the sum of its absolute terms, in the logits' shape."""
    found = truth.sigmoid_binary_cross_entropy(
        z.reshape(-1, 1), t.reshape(-1, 1), pos_weight=pos_weight, weight=sample_weight,
        factor=upstream)
    return (found.loss.reshape(z.shape), found.gradient.reshape(z.shape),
            found.scale.reshape(z.shape))


def run(level, z, t, **options):
    """Loss and gradient of every logit."""
    given = {"reduction": "none", "backend": level.backend, **options}
    return sx.sigmoid_binary_cross_entropy_with_grad(z, t, **given)


def digest(*arrays):
    """A hash of values in C order."""
    found = hashlib.sha256()
    for array in arrays:
        a = np.array(array, np.asarray(array).dtype.newbyteorder("="), order="C")
        a[np.isnan(a)] = np.nan
        found.update(a.tobytes())
    return found.hexdigest()


# ---- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", ["not", "ordinarily", "far"])
def test_within_the_contract(level, any_dtype, weighted):
    """A9 over logits of every size: relatively so, where the target is 0 or 1."""
    wide = "float64" if any_dtype == "float64" else "float32"
    z, t, others = hard(any_dtype, (40, 257))
    if weighted == "far":  # some of them beyond what products in float32 may be made of
        rng = np.random.default_rng(1)
        others = {name: values * 10.0 ** np.where(rng.random(z.shape) < 0.3,
                                                   rng.uniform(-30, 30, z.shape), 0)
                  for name, values in others.items()}
    options = others if weighted != "not" else {}
    loss, g = run(level, z, t, **options)
    assert loss.dtype == wide
    assert g.dtype == z.dtype
    true_loss, true_g, scale = true(z, t, **options)
    v, s, up = (np.abs(options.get(name, np.ones(z.shape))).astype(LD)
                for name in ("pos_weight", "sample_weight", "upstream"))
    unit = truth.EPS[wide]
    error = truth.absolute_error(loss, true_loss, wide)
    error = error - truth.F[wide] * np.maximum(1, s) * np.maximum(1, v)
    assert (error <= BOUND[wide] * unit * true_loss).all()
    rounding = truth.spacing(np.abs(true_g), any_dtype) / 2 if any_dtype in FORMATS else 0
    flushed = truth.F[wide] * (1 + s * up * (v * t + 1))
    error = truth.absolute_error(g, true_g, any_dtype) - flushed - rounding
    over = np.isinf(g.astype(float)) & (np.abs(true_g) >= truth.largest(any_dtype))
    assert (over | (error <= BOUND[wide] * unit * scale)).all()


def test_extended_precision_is_right():
    """The truth above against mpmath's textbook formula."""
    z, t, others = hard("float64", (1, 60), seed=3)
    loss, g, _ = true(z, t, **others)
    with mpmath.workdps(400):
        for i in range(60):
            x, y, v, s, u = (mpmath.mpf(float(a[0, i])) for a in (z, t, *others.values()))
            if abs(x) > 800:
                continue
            p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
            exact = s * (-v * y * mpmath.log(p) - (1 - y) * mpmath.log(q))
            assert abs(truth_of(loss[0, i]) - exact) <= mpmath.mpf(2) ** -60 * exact
            slope = s * u * ((1 - y) * p - v * y * q)
            scale = abs(s * u) * ((1 - y) * p + v * y * q)
            assert abs(truth_of(g[0, i]) - slope) <= mpmath.mpf(2) ** -60 * scale


def truth_of(number):
    """A longdouble as an mpmath number."""
    fraction, exponent = np.frexp(number)
    high = float(fraction)
    return mpmath.ldexp(mpmath.mpf(high) + float(fraction - LD(high)), int(exponent))


def test_sure_logits_keep_their_digits(level):
    """float32: loss and gradient where sigma(z) - t is 0."""
    z = np.array([20.0, 40.0, 80.0, -20.0], np.float32)
    loss, g = run(level, z, [1, 1, 1, 0])
    np.testing.assert_allclose(loss, np.exp(-np.abs(z.astype(float))), rtol=1e-6)
    np.testing.assert_allclose(g, [-np.exp(-20.0), -np.exp(-40.0), -np.exp(-80.0), np.exp(-20.0)],
                               rtol=1e-6)


def test_two_classes_are_a_logit(level):
    """Cross-entropy of logits 0 and z, and the logistic function's value."""
    z = np.linspace(-30, 30, 61)
    t = np.arange(61) % 2
    loss, g = run(level, z, t)
    rows, g_rows = sx.cross_entropy_with_grad(
        np.stack([np.zeros(61), z], axis=1), t, reduction="none", backend=level.backend)
    np.testing.assert_allclose(loss, rows, rtol=1e-14)
    np.testing.assert_allclose(g, g_rows[:, 1], rtol=1e-14)


def test_gradient_is_the_derivative(level):
    z, t = np.linspace(-4, 4, 33), np.linspace(0, 1, 33)
    options = {"pos_weight": 3.0, "sample_weight": np.linspace(0.5, 2, 33)}
    _, g = run(level, z, t, **options)
    h = 1e-5
    difference = (run(level, z + h, t, **options)[0] - run(level, z - h, t, **options)[0]) / (2 * h)
    np.testing.assert_allclose(g, difference, rtol=1e-8, atol=1e-9)


# ---- exact lines ---------------------------------------------------------------------------------


def test_never_negative(level, any_dtype):
    z, t, others = hard(any_dtype, (33, 65), seed=1)
    others.pop("upstream")
    loss, g = run(level, z, t, **others)
    assert not np.signbit(loss).any()
    assert not np.isnan(g.astype(float)).any()


def test_logits_that_do_not_count(level, any_dtype):
    """Weight 0: +0.0 whatever the logit and its target are; others untouched."""
    z, t, others = hard(any_dtype, (9, 70), seed=2)
    expected = run(level, z, t, **others)
    blank = np.arange(z.size).reshape(z.shape) % 3 == 0
    z[blank] = np.nan
    t[blank] = np.resize([-1, 2, np.nan], blank.sum())
    others["sample_weight"][blank] = 0
    found = run(level, z, t, **others)
    for array, wanted in zip(found, expected, strict=True):
        assert_positive_zero(array[blank].astype(float))
        assert digest(array[~blank]) == digest(wanted[~blank])


def test_what_is_not_finite(level, dtype):
    """Infinite logits cost 0 on their own side, +inf on the other; NaN is its own alone."""
    z = np.array([np.inf, -np.inf, np.inf, -np.inf, np.nan, 0.0, np.inf], dtype)
    loss, g = run(level, z, np.array([1, 0, 0, 1, 1, 0.25, 0.5]))
    np.testing.assert_array_equal(loss[:5], [0, 0, np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(g[:5], [0, 0, 1, -1, np.nan])
    assert loss[6] == np.inf
    assert g[6] == 0.5
    assert_positive_zero(loss[:2])
    assert loss[5] == pytest.approx(np.log(2))


@pytest.mark.parametrize("shape", [(1,), (3000,), (2, 1025), (700, 3), (5, 7, 1, 64), (4097, 1)])
def test_same_bits_however_it_is_cut(level, any_dtype, all_take_part, shape):
    """E7: threads, layouts, in place, a logit by itself; sums too, whatever the memory."""
    z, t, others = hard(any_dtype, shape)
    up = others.pop("upstream")
    wanted = digest(*run(level, z, t, upstream=up, **others))
    total = run(level, z, t, reduction="mean", **others)
    for n_threads in (1, 2, 3, 7):
        assert digest(*run(level, z, t, upstream=up, n_threads=n_threads, **others)) == wanted
        again = run(level, z, t, reduction="mean", n_threads=n_threads, **others)
        assert again[0] == total[0]
        assert digest(again[1]) == digest(total[1])
    flat = run(level, z.reshape(-1), t.reshape(-1), upstream=up.reshape(-1),
               **{k: v.reshape(-1) for k, v in others.items()})
    assert digest(*flat) == wanted
    some = np.unravel_index(np.arange(0, z.size, 97), shape)
    one = [run(level, z[i], t[i], upstream=float(up[i]), **{k: v[i] for k, v in others.items()})
           for i in zip(*some, strict=True)]
    loss, g = run(level, z, t, upstream=up, **others)
    assert digest(np.array([a for a, _ in one])) == digest(loss[some])
    assert digest(np.array([b for _, b in one])) == digest(g[some])
    for how, logits in layouts(z) if z.ndim == 2 else [("F", z.copy(order="F"))]:
        if how == "foreign byte order" and any_dtype == "bfloat16":
            continue
        assert digest(*run(level, logits, t, upstream=up, **others)) == wanted, how
        mean, _ = run(level, logits, np.asfortranarray(t), reduction="mean", **others)
        assert mean == total[0], how
        mine = run(level, logits, t, upstream=up, grad_out=logits, **others)
        assert np.shares_memory(mine[1], logits)
        assert digest(*mine) == wanted, how


@pytest.mark.skipif(len(WITH_FMA) < 2, reason="this processor has no two levels with FMA")
def test_levels_with_fma_give_the_same_bits(any_dtype):
    """E8."""
    z, t, others = hard(any_dtype, (50, 211), seed=4)
    found = set()
    for level in WITH_FMA:
        with pytest.MonkeyPatch.context() as patch:
            force(level, patch)
            found.add(digest(*run(level, z, t, **others)))
            found.add(digest(*run(level, z, t, **others | {"upstream": 1.0}, reduction="sum")))
    assert len(found) == 2


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["?", "i1", "u8", ">i4", "f2", "f4", ">f8", "g"])
def test_targets_of_any_type(level, dtype, code):
    """The same bits for 0 and 1 of every type, strided too."""
    z, t, _ = hard(dtype, (7, 33), seed=5)
    t = (t > 0.5).astype(float)
    wanted = digest(*run(level, z, t))
    given = t.astype(code)
    assert digest(*run(level, z, given)) == wanted
    assert digest(*run(level, z, np.repeat(given, 2, axis=1)[:, ::2])) == wanted


def test_weights_broadcast(level, dtype):
    """By NumPy's rules, without a copy; the mean's divisor is their sum, broadcast."""
    z, t, _ = hard(dtype, (6, 5, 4), seed=6)
    rng = np.random.default_rng(0)
    weights = [np.float32(2), rng.random(4), rng.random((5, 1)), rng.random((6, 1, 1)),
               rng.integers(0, 3, (1, 5, 4)), rng.random((6, 5, 4)) > 0.5]
    for s, v in itertools.product(weights, weights):
        full_s, full_v = (np.broadcast_to(a, z.shape).copy() for a in (s, v))
        found = run(level, z, t, sample_weight=s, pos_weight=v)
        assert digest(*found) == digest(*run(level, z, t, sample_weight=full_s, pos_weight=full_v))
        mean, _ = run(level, z, t, sample_weight=s, pos_weight=v, reduction="mean")
        total, _ = run(level, z, t, sample_weight=s, pos_weight=v, reduction="sum")
        assert mean == pytest.approx(total / full_s.sum(dtype=float), rel=1e-14)


def test_reductions(level, dtype):
    rng = np.random.default_rng(7)
    z = rng.normal(0, 3, (30, 60)).astype(dtype)
    t = rng.random((30, 60)) < 0.3
    others = {"pos_weight": rng.uniform(0, 4, z.shape), "sample_weight": rng.uniform(0, 2, z.shape)}
    rows, _ = run(level, z, t, **others)
    total, g = run(level, z, t, reduction="sum", **others)
    assert type(total) is float
    assert total == pytest.approx(rows.sum(dtype=float), rel=1e-6)
    mean, g_mean = run(level, z, t, reduction="mean", **others)
    d = others["sample_weight"].sum()
    assert mean == pytest.approx(total / d, rel=1e-14)
    np.testing.assert_allclose(g_mean, g / d, rtol=1e-6)
    alone = sx.sigmoid_binary_cross_entropy(z, t, backend=level.backend, **others)
    assert alone == mean
    halves = [run(level, z[part], t[part], reduction="mean", divisor=d,
                  **{k: v[part] for k, v in others.items()}) for part in (slice(11), slice(11, 99))]
    assert sum(loss for loss, _ in halves) == pytest.approx(mean, rel=1e-14)
    assert digest(np.concatenate([half[1] for half in halves])) == digest(g_mean)
    nothing = run(level, z, t, sample_weight=0.0, reduction="mean")
    assert nothing[0] == 0.0
    assert_positive_zero(nothing[1])
    for shape in ((0,), (3, 0)):
        empty = run(level, np.zeros(shape, dtype), np.zeros(shape), reduction="mean")
        assert empty[0] == 0.0
        assert empty[1].shape == shape
        assert run(level, np.zeros(shape, dtype), np.zeros(shape))[0].shape == shape


def test_a_scalar(level):
    """0-d logits with a 0-d target."""
    loss, g = run(level, np.float32(2), 1)
    assert loss.shape == g.shape == ()
    assert sx.sigmoid_binary_cross_entropy(0.0, True, backend=level.backend) == np.log(2)


BAD = {
    "target above 1": (ValueError, ["within [0, 1]", "targets[1, 0] = 2", "cross_entropy"],
                       {"targets": np.array([[0, 1], [2, 0]])}),
    "negative target": (ValueError, ["targets[0, 1] = -0.5"],
                        {"targets": np.array([[0, -0.5], [1, 0]])}),
    "NaN target": (ValueError, ["targets[0, 0] = nan"],
                   {"targets": np.array([[np.nan, 0], [1, 0]])}),
    "class numbers": (ValueError, ["logits' shape (2, 2)", "(2,)", "cross_entropy"],
                      {"targets": np.array([0, 1])}),
    "words": (TypeError, ["real numbers or bool"], {"targets": np.full((2, 2), "yes")}),
    "complex": (TypeError, ["complex128"], {"targets": np.zeros((2, 2), complex)}),
    "integer logits": (TypeError, ["logits must be float32"], {"logits": np.zeros((2, 2), int)}),
    "pos_weight of another shape": (ValueError, ["pos_weight", "broadcast", "(3,)"],
                                    {"pos_weight": np.ones(3)}),
    "sample_weight of another shape": (ValueError, ["sample_weight", "broadcast", "(2, 2)"],
                                       {"sample_weight": np.ones((1, 2, 2))}),
    "negative pos_weight": (ValueError, ["pos_weight", "finite and >= 0", "-1"],
                            {"pos_weight": [-1.0, 1.0]}),
    "infinite sample_weight": (ValueError, ["sample_weight", "inf"], {"sample_weight": np.inf}),
    "reduction": (ValueError, ["reduction", "'average'"], {"reduction": "average"}),
    "divisor with sum": (ValueError, ["divisor"], {"reduction": "sum", "divisor": 2.0}),
    "upstream of a mean": (ValueError, ["upstream", "scalar"], {"upstream": np.ones((2, 2))}),
    "grad_out of another shape": (ValueError, ["grad_out", "(4,)"], {"grad_out": np.zeros(4)}),
    "grad_out over targets": (ValueError, ["grad_out", "targets"], {"grad_out": "targets"}),
    "no targets": (TypeError, ["targets"], {"targets": None}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(level, name):
    """The message says what must hold and what came; nothing is written, in place neither."""
    error, words, change = BAD[name]
    arguments = {"logits": np.ones((2, 2)), "targets": np.zeros((2, 2)), "reduction": "mean",
                 **change}
    if isinstance(change.get("grad_out"), str):
        arguments["grad_out"] = arguments["targets"]
    for in_place in (False, True):
        if in_place and "grad_out" in change:
            break
        if in_place:
            arguments["grad_out"] = arguments["logits"]
        before = arguments["logits"].copy()
        with pytest.raises(error) as raised:
            sx.sigmoid_binary_cross_entropy_with_grad(**arguments, backend=level.backend)
        assert all(word in str(raised.value) for word in words), raised.value
        if in_place:
            assert (arguments["logits"] == before).all()


def test_no_array_of_the_logits_size(level):
    """M1: "mean" keeps a number for 1,024 logits."""
    z = np.zeros((1 << 20, 4), np.float32)
    t = np.zeros(z.shape, bool)
    s = np.ones((4,))
    sx.sigmoid_binary_cross_entropy(z, t, sample_weight=s, backend=level.backend)
    tracemalloc.start()
    sx.sigmoid_binary_cross_entropy_with_grad(z, t, sample_weight=s, grad_out=z,
                                              backend=level.backend)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= (64 << 20 if level.backend == "numpy" else 1 << 20)


def test_inputs_are_not_modified(level, dtype):
    z, t, others = hard(dtype, (5, 40), seed=8)
    arrays = [z, t, *others.values()]
    before = [array.tobytes() for array in arrays]
    for array in arrays:
        array.setflags(write=False)
    run(level, z, t, **others)
    assert [array.tobytes() for array in arrays] == before
