"""What cross-entropy's options and the pieces must say of one another.

No truth is asked where one call's result decides another's: bits are compared where the contract
has them equal, otherwise twice the bound of either side is allowed.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import rows
import softxent as sx
import truth
from accuracy_table import (
    FORMATS,
    SETTINGS,
    beyond,
    bound,
    forgiven,
    gradient_allowance,
    loss_allowance,
    storage,
)
from test_accuracy import bits
from test_options import FEW, call, of, run

LD = truth.LD
LENGTHS = (1, 2, 3, 8, 33, 64, 65, 128, 1025)


def within(level, got, z, targets, *, times=1.0, **options):
    """Whether (loss, gradient) of rows is that of a call with options, within A6 and A8 or A9.

    `times` is what the gradient is to be the truth's multiple of.
    """
    dtype = z.dtype.name
    true = truth.cross_entropy(z, targets, factor=np.full(len(z), times), **options)
    loss, g = got
    heaviest = np.max(options.get("class_weight", 1.0))
    eps = truth.EPS[dtype]
    errors = beyond(loss, true.loss, dtype, loss_allowance(true, dtype, heaviest), eps * true.loss)
    assert (forgiven(errors, loss, true) <= bound("loss with z-loss", dtype)).all()
    errors = beyond(g, true.gradient, dtype, gradient_allowance(true, dtype), eps * true.scale)
    assert (forgiven(errors, g, true) <= bound("other gradient", dtype)).all()


def ordinary(n_classes, dtype, seed=0, n_rows=12):
    """Logits of ordinary size, class numbers, and positive probabilities."""
    rng = np.random.default_rng([seed, n_classes])
    z = rng.normal(0, 3, (n_rows, n_classes)).astype(storage(dtype))
    t = rng.dirichlet(np.ones(n_classes), n_rows)
    return z, rng.integers(0, n_classes, n_rows), t


def pair(level, z, targets, **options):
    """Loss and gradient, of `run`, without reduction."""
    return tuple(run(level, z, targets, options).values())


def true_loss(z, targets, *, loss="cross_entropy", **options):
    """The truth of a loss, cross-entropy or another."""
    return truth.LOSSES[loss](z, targets, **options)


# ---- defaults ------------------------------------------------------------------------------------

DEFAULTS = {
    "class_weight": [None, "ones"],
    "ignore_index": [-100, np.int8(-100)],
    "label_smoothing": [0.0, 0, np.float32(0), -0.0],
    "temperature": [1.0, 1, np.float32(1)],
    "softcap": [None],
    "z_loss": [0.0, 0, np.float64(0)],
    "sample_weight": [None, "ones"],
    "upstream": [1.0, 1, np.float32(1), "ones"],
    "n_threads": [None],
    "divisor": [None],
    "axis": [-1, 1],
    "grad_out": [None],
}


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_defaults_change_no_bit(level, dtype, kind):
    """Each option given its default, in any type, and all of them."""
    for n_classes in LENGTHS:
        case = rows.some(rows.case(n_classes, dtype), 1)
        z = case.logits
        targets = case.targets if kind == "classes" else rows.probabilities(case)
        ones = {"class_weight": np.ones(n_classes), "sample_weight": np.ones(len(z)),
                "upstream": np.ones(len(z))}
        plain = run(level, z, targets, {})
        options = [(name, ones[name] if isinstance(value, str) else value)
                   for name, values in DEFAULTS.items() for value in values]
        if kind == "probabilities":
            options = [(n, v) for n, v in options if n != "ignore_index" or isinstance(v, int)]
        for given in (*({name: value} for name, value in options), dict(options)):
            got = run(level, z, targets, given)
            for key, array in got.items():
                assert bits(array) == bits(plain[key]), (n_classes, key, given.keys())


def test_defaults_of_the_pieces(level, dtype):
    for n_classes in LENGTHS:
        z, targets, _ = ordinary(n_classes, dtype)
        for function in (sx.softmax, sx.log_softmax, sx.softmax_entropy):
            assert bits(function(z, temperature=np.float32(1), axis=1, backend=level.backend)
                        ) == bits(function(z, backend=level.backend))
        assert bits(sx.target_log_probs(z, targets, temperature=1, ignore_index=None,
                                        backend=level.backend)
                    ) == bits(sx.target_log_probs(z, targets, backend=level.backend))


# ---- one kind of target and another --------------------------------------------------------------


def test_one_hot_probabilities_are_classes(level, dtype):
    """With every option; the classes' mean has another divisor, but where no class weights are."""
    for n_classes in LENGTHS:
        case = rows.some(rows.case(n_classes, dtype), 1)
        z, y = case.logits, case.targets
        one_hot = np.eye(n_classes, dtype=dtype)[y]
        v = np.exp(np.random.default_rng(0).normal(0, 1, n_classes))
        for options in ({}, {"temperature": 0.7}, {"label_smoothing": 0.25}, {"softcap": 30.0},
                        {"class_weight": v}, {"z_loss": 0.01},
                        {"temperature": 2.0, "label_smoothing": 0.1, "class_weight": v}):
            with np.errstate(invalid="ignore"):
                within(level, pair(level, z, one_hot, **options), z, y, **options)
    z, y, _ = ordinary(10, dtype)
    one_hot = np.eye(10, dtype=dtype)[y]
    by_class = sx.cross_entropy(z, y, backend=level.backend)
    assert sx.cross_entropy(z, one_hot, backend=level.backend) == pytest.approx(by_class, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.25, 0.5, 1.0])
def test_smoothing_is_smoothed_probabilities(level, dtype, smoothing):
    """(1 - eps) t + eps / C, for numbers that represent it: each within its bounds of one truth."""
    for n_classes in (1, 2, 8, 64, 128, 1024):
        case = rows.some(rows.case(n_classes, dtype), 1)
        z, y = case.logits, case.targets
        one_hot = np.eye(n_classes, dtype=dtype)[y]
        smoothed = ((1 - smoothing) * one_hot + smoothing / n_classes).astype(dtype)
        v = np.exp(np.random.default_rng(0).normal(0, 1, n_classes))
        for options in ({}, {"class_weight": v, "temperature": 0.7}, {"softcap": 20.0}):
            with np.errstate(invalid="ignore"):
                for targets in (y, one_hot):
                    got = pair(level, z, targets, label_smoothing=smoothing, **options)
                    within(level, got, z, smoothed, **options)
                got = pair(level, z, smoothed, **options)
                within(level, got, z, y, label_smoothing=smoothing, **options)


# ---- options one by one --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("power", [-3, -1, 1, 4])
def test_temperature_scales_the_logits(level, dtype, kind, power):
    """By powers of two, exactly: the truth of z 2^-k; its gradient times 2^-k."""
    for n_classes in LENGTHS:
        z, y, t = ordinary(n_classes, dtype)
        targets = y if kind == "classes" else t.astype(dtype)
        scaled = np.ldexp(z, -power)
        for options in ({}, {"label_smoothing": 0.2}, {"z_loss": 0.1}):
            got = pair(level, z, targets, temperature=2.0**power, **options)
            within(level, got, scaled, targets, times=2.0**-power, **options)
        # And of the pieces, whose bounds are ulps.
        for function in (sx.softmax, sx.log_softmax):
            name = function.__name__
            true = getattr(truth, name)(scaled)
            got = function(z, temperature=2.0**power, backend=level.backend)
            flushed = np.where(np.abs(true) < truth.F[dtype], truth.F[dtype], 0)
            assert (truth.ulp_error(got, true, dtype, flushed) <= bound(name, dtype)).all()


def test_temperature_of_the_gradient_is_the_chain_rules(level, dtype):
    """d/dx of f(x / tau) is f'(x / tau) / tau: upstream tau takes it back."""
    for n_classes in LENGTHS:
        z, y, _ = ordinary(n_classes, dtype)
        g = pair(level, z, y, temperature=4.0)[1]
        assert bits(pair(level, z, y, temperature=4.0, upstream=4.0)[1]) == bits(4 * g)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_a_huge_cap_is_none(level, dtype, kind):
    """cap tanh(x / cap) is x to x^3 / (3 cap^2): nothing, against the bounds."""
    for n_classes in LENGTHS:
        z, y, t = ordinary(n_classes, dtype)
        targets = y if kind == "classes" else t.astype(dtype)
        for cap in (1e12, 1e30, 1e150):
            loss, g = pair(level, z, targets, softcap=cap)
            true = truth.cross_entropy(z, targets, softcap=cap)
            uncapped = truth.cross_entropy(z, targets)
            assert np.abs(true.loss - uncapped.loss).max() < 1e-17
            eps = truth.EPS[dtype]
            errors = beyond(loss, uncapped.loss, dtype, loss_allowance(true, dtype),
                            eps * uncapped.loss)
            assert (errors <= bound("soft loss", dtype)).all()
            errors = beyond(g, uncapped.gradient, dtype, gradient_allowance(true, dtype),
                            eps * uncapped.scale)
            assert (errors <= bound("other gradient", dtype)).all()


def test_cap_bounds_the_logits(level, dtype):
    """Logits far beyond the cap are all equal to it, and have no gradient left."""
    z = np.array([[1e4, 2e4, -3e4, 5e4]], dtype=dtype)
    loss, g = pair(level, z, [2], softcap=5.0)
    true = truth.cross_entropy(np.array([[5, 5, -5, 5]], dtype=dtype), np.array([2]))
    assert truth.ulp_error(loss, true.loss, dtype)[0] <= bound("loss", dtype) + 1
    assert not g.any()
    # The same at any sign, a cap far below 1, and at 0 where the slope is 1.
    for cap in (1e-3, 1.0, 50.0):
        z = np.array([[0.0, 0.0, 0.0]], dtype=dtype)
        assert bits(pair(level, z, [1], softcap=cap)[1]) == bits(pair(level, z, [1])[1])


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_z_loss_adds_its_term(level, kind):
    """L(lambda) = L(0) + lambda lse^2, in float64; and the gradient 2 lambda lse p."""
    for n_classes in LENGTHS:
        z, y, t = ordinary(n_classes, "float64")
        targets = y if kind == "classes" else t
        s = np.random.default_rng(1).uniform(0.5, 2, len(z))
        v = np.random.default_rng(2).uniform(0.5, 2, n_classes)
        weights = {"sample_weight": s, "class_weight": v}
        plain, g = pair(level, z, targets, **weights)
        lse, p = (function(z, backend=level.backend) for function in (sx.logsumexp, sx.softmax))
        for z_loss in (1e-4, 0.5, 30.0):
            with_z, g_z = pair(level, z, targets, z_loss=z_loss, **weights)
            # The class weights leave the z-loss alone.
            np.testing.assert_allclose(with_z, plain + s * z_loss * lse**2, rtol=1e-13)
            wanted = g + (s * 2 * z_loss * lse)[:, None] * p
            scale = np.abs(g) + (s * 2 * z_loss * (1 + np.abs(lse)))[:, None] * p + 1e-300
            assert (np.abs(g_z - wanted) <= 40 * truth.EPS["float64"] * (scale + v.max())).all()


def test_integer_weights_repeat_rows(level, dtype):
    """With every option: sums, means, and each repeated row's gradient."""
    for name, n_classes in itertools.product(FEW, (2, 10, 65)):
        z, targets, options = call(name, n_classes, dtype, 30)
        kept = ~np.isin(np.arange(len(z)), np.flatnonzero(np.abs(z).max(axis=1) > 1e6))
        z, targets = z[kept], targets[kept]
        options.pop("upstream", None)
        options.pop("sample_weight", None)
        options = of(options, kept)
        times = np.random.default_rng(n_classes).integers(0, 4, len(z))
        finite = np.isfinite(pair(level, z, targets, **options)[0])
        times[~finite] = 0
        repeated = np.repeat(np.arange(len(z)), times)
        more = of(options, repeated)
        for reduction in ("sum", "mean"):
            if not len(repeated):
                continue
            with np.errstate(invalid="ignore"):
                got, g = pair(level, z, targets, sample_weight=times, reduction=reduction,
                              **options)
                wanted, g_repeated = pair(level, z[repeated], targets[repeated],
                                          reduction=reduction, **more)
            assert got == pytest.approx(wanted, rel=16 * truth.EPS["float64"], abs=1e-300), name
            first = (np.cumsum(times) - times)[times > 0]
            alone = g_repeated[first].astype(LD) * times[times > 0, None]
            d = 1.0
            if reduction == "mean":
                d = sx.mean_divisor(targets[repeated], class_weight=options.get("class_weight")
                                    ) if targets.ndim == 1 else len(repeated)
            true = true_loss(z, targets, weight=times, factor=np.full(len(z), 1 / d),
                             **options).rows(times > 0)
            allowed = 2 * gradient_allowance(true, dtype)
            allowed += 2 * bound(SETTINGS[name].quantities.gradient, dtype) * truth.EPS[dtype] * (
                true.scale * true.growth[:, None])
            assert (np.abs(g[times > 0] - alone) <= allowed).all(), name
            assert not g[times == 0].any()


@pytest.mark.parametrize("n_classes", [65, 255, 256, 257, 288, 1000, 1024])
def test_a_largest_logit_more_than_once(level, any_logits, n_classes):
    # Of a row that follows another in a walk, the largest is found beside the work on that one, by
    # pieces; of a row by itself before any work. Which of equal ones stands apart from the sums
    # decides their order, so their bits. (`log_softmax` has its leader's place, too.)
    rng = np.random.default_rng(n_classes)
    z = rng.integers(-9, 3, (48, n_classes)).astype(storage(any_logits))
    for row in z:
        row[rng.integers(0, n_classes, rng.integers(1, 5))] = 3
    z[7] = -np.inf
    z[7, n_classes // 2] = 1
    z[11, : n_classes - 1] = np.nan
    z[13] = 0
    y = rng.integers(0, n_classes, len(z))
    def of_rows(rows):
        return [*run(level, z[rows], y[rows], {}).values(),
                sx.softmax(z[rows], backend=level.backend),
                sx.log_softmax(z[rows], backend=level.backend)]

    together = of_rows(slice(None))
    for j in range(len(z)):
        for all_rows, alone in zip(together, of_rows(slice(j, j + 1)), strict=True):
            assert bits(all_rows[j]) == bits(alone[0]), j


def test_axis_is_a_transposition(level, dtype):
    """E7: classes along any axis of any dimension, probabilities too, are those of the last."""
    rng = np.random.default_rng(3)
    for name in ("everything, classes", "everything, probabilities"):
        setting = SETTINGS[name]
        z = rng.normal(0, 3, (2, 3, 4, 17)).astype(dtype)
        targets = rng.integers(0, 17, (2, 3, 4))
        if setting.kind == "probabilities":
            targets = rng.dirichlet(np.ones(17), (2, 3, 4))
        options = {**dict(setting.options), "class_weight": rng.uniform(0, 2, 17),
                   "sample_weight": rng.uniform(0, 2, (2, 3, 4))}
        loss, g = pair(level, z, targets, **options)
        for axis in range(4):
            t = targets if setting.kind == "classes" else np.moveaxis(targets, -1, axis)
            for given in (axis, axis - 4):
                got, g_got = pair(level, np.moveaxis(z, -1, axis), t, axis=given, **options)
                assert bits(got) == bits(loss)
                assert bits(np.moveaxis(g_got, axis, -1)) == bits(g)
        flat = {**options, "sample_weight": options["sample_weight"].T}
        t = targets.T if setting.kind == "classes" else targets.transpose(2, 1, 0, 3)
        got, g_got = pair(level, z.transpose(2, 1, 0, 3), t, **flat)
        assert bits(got.T) == bits(loss)
        assert bits(g_got.transpose(2, 1, 0, 3)) == bits(g)


def test_scalar_upstream_is_a_filled_one(level, dtype):
    """Also with a temperature: the rows' factor is one number, however it is given."""
    for name in FEW:
        z, targets, options = call(name, 33, dtype, 20)
        for up in (0.3, -7.0):
            one = run(level, z, targets, {**options, "upstream": up})
            filled = run(level, z, targets, {**options, "upstream": np.full(len(z), up)})
            assert bits(one["gradient"]) == bits(filled["gradient"]), name


@pytest.mark.parametrize("name", FEW)
def test_upstream_is_linear(level, dtype, name):
    """Exactly, for powers of two and -1, where no gradient is near the subnormal numbers."""
    z, targets, options = call(name, 33, dtype, 20)
    options.pop("upstream", None)
    g = run(level, z, targets, options)["gradient"]
    # Of focal loss the factor, tiny in a confident row, may change to float64 with the upstream.
    ulps = 1 if SETTINGS[name].loss == "focal_loss" else 0
    least = truth.F[dtype] * 2.0**40
    for up in (-1.0, 0.25, 2.0**20):
        scaled = run(level, z, targets, {**options, "upstream": up})["gradient"]
        normal = (np.abs(g) >= least) & (np.abs(g) < np.finfo(dtype).max / 2.0**21)
        np.testing.assert_array_max_ulp(scaled[normal], (up * g[normal]).astype(dtype), ulps)


@pytest.mark.parametrize("name", FEW)
def test_reductions_are_of_the_rows(level, dtype, name):
    """A7: the float64 total of the row values, before their rounding; one divisor for all terms."""
    z, targets, options = call(name, 65, dtype, 60)
    options.pop("upstream", None)
    losses = run(level, z, targets, options)["loss"].astype(float)
    kept = np.isfinite(losses) & (np.abs(losses) < 1e30)
    z, targets, options, losses = z[kept], targets[kept], of(options, kept), losses[kept]
    total, g_sum = pair(level, z, targets, reduction="sum", **options)
    unit = 2.0**-24 if dtype == "float32" else 0.0
    assert abs(total - losses.sum()) <= (unit + 1e-15) * np.abs(losses).sum()
    s = options.get("sample_weight", np.ones(len(z)))
    d = s.sum()
    if targets.ndim == 1:
        d = (s * options.get("class_weight", np.ones(65))[targets]).sum()
        assert sx.mean_divisor(
            targets, sample_weight=s, class_weight=options.get("class_weight")
        ) == pytest.approx(d, rel=1e-15)
    mean, g = pair(level, z, targets, reduction="mean", **options)
    assert mean == pytest.approx(total / d, rel=1e-15)
    numbers = {key: value for key, value in options.items() if key != "sample_weight"}
    true = true_loss(z, targets, weight=s, factor=np.full(len(z), 1 / d), **numbers)
    allowed = 2 * gradient_allowance(true, dtype)
    allowed += 2 * bound(SETTINGS[name].quantities.gradient, dtype) * truth.EPS[dtype] * (
        true.scale * true.growth[:, None])
    assert (np.abs(g.astype(LD) - g_sum.astype(LD) / d) <= allowed).all()
    options.pop("loss")
    alone = getattr(sx, SETTINGS[name].loss)
    assert mean == alone(z, targets, backend=level.backend, **options)


@pytest.mark.parametrize("name", FEW)
def test_micro_batches_add_up(level, any_logits, name):
    """`divisor=mean_divisor(all)`: gradients to the bit, losses to the additions' rounding."""
    z, targets, options = call(name, 33, any_logits, 40)
    options.pop("upstream", None)
    kept = np.isfinite(run(level, z, targets, options)["loss"])
    kept &= np.isfinite(z.astype(float).max(axis=1))
    z, targets, options = z[kept], targets[kept], of(options, kept)
    if targets.ndim == 1:
        targets[::5] = -100
        d = sx.mean_divisor(targets, class_weight=options.get("class_weight"),
                            sample_weight=options.get("sample_weight"))
    else:
        d = float(np.sum(options.get("sample_weight", np.ones(len(z)))))
    whole, g = pair(level, z, targets, reduction="mean", divisor=d, **options)
    own, g_own = pair(level, z, targets, reduction="mean", **options)
    assert own == pytest.approx(whole, rel=1e-15)
    if targets.ndim == 1:
        assert own == whole
        assert bits(g_own) == bits(g)
    parts = [pair(level, z[part], targets[part], reduction="mean", divisor=d, **of(options, part))
             for part in np.array_split(np.arange(len(z)), 4)]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-14)
    assert bits(np.concatenate([g_part for _, g_part in parts])) == bits(g)


@pytest.fixture(params=["float32", "float64", *FORMATS])
def any_logits(request):
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 is its")
    return request.param


# ---- the pieces ----------------------------------------------------------------------------------


def test_target_log_probs_are_minus_the_loss(level, any_logits):
    """The same numbers, to the bit, but for the sign and +0.0."""
    for n_classes, temperature in itertools.product(LENGTHS, (1.0, 0.7)):
        z, targets, _ = call("temperature 0.7", n_classes, any_logits)
        targets[::4] = -100
        loss = sx.cross_entropy(z, targets, reduction="none", temperature=temperature,
                                backend=level.backend)
        got = sx.target_log_probs(z, targets, temperature=temperature, backend=level.backend)
        assert bits(got) == bits(0 - loss)
        assert got.dtype == loss.dtype


def test_entropy_is_cross_entropy_with_the_softmax(level, dtype):
    """H = cross_entropy(z, softmax(z)), to the rounding of the softmax; its gradient is 0."""
    eps = truth.EPS[dtype]
    for n_classes, temperature in itertools.product(LENGTHS, (1.0, 0.7, 3.0)):
        z, _, _ = ordinary(n_classes, dtype)
        options = {"temperature": temperature, "backend": level.backend}
        p = sx.softmax(z, **options)
        entropy = sx.softmax_entropy(z, **options).astype(LD)
        loss, g = pair(level, z, p, temperature=temperature)
        ulps = bound("entropy", dtype) + bound("soft loss", dtype) + bound("softmax", dtype)
        assert (np.abs(loss - entropy) <= ulps * eps * np.maximum(entropy, loss)).all()
        most = (2 * bound("softmax", dtype) + bound("other gradient", dtype)) * eps / temperature
        assert (np.abs(g) <= most * 2 * p + n_classes * truth.F[dtype]).all()
        # At most log C, reached by equal logits.
        assert (entropy <= np.log(n_classes) * (1 + 16 * eps) + 16 * eps).all()
    equal = sx.softmax_entropy(np.full((3, 7), -2.5, dtype), backend=level.backend)
    np.testing.assert_allclose(equal, np.log(7), rtol=16 * eps)


def test_vjp_is_the_gradient_of_a_sum_of_probabilities(level, dtype):
    """d/dz sum u p, against the truth from the logits; chained to a loss of log p_y."""
    eps = truth.EPS[dtype]
    for n_classes in LENGTHS:
        z, y, _ = ordinary(n_classes, dtype)
        rng = np.random.default_rng(n_classes)
        u = rng.normal(0, 1, z.shape).astype(dtype)
        p = sx.softmax(z, backend=level.backend)
        g = sx.softmax_vjp(p, u, backend=level.backend)
        true_p = truth.softmax(z)
        true = true_p * (u - (true_p * u).sum(axis=1, keepdims=True))
        scale = true_p * (np.abs(u) + (true_p * np.abs(u)).sum(axis=1, keepdims=True))
        most = bound("vjp", dtype) + 2 * bound("softmax", dtype)
        assert (np.abs(g - true) <= most * eps * scale).all()
        # -log p_y has u = -1 / p_y: cross-entropy's gradient.
        at = np.arange(len(z)), y
        u = np.zeros_like(z)
        u[at] = -1 / p[at]
        g = sx.softmax_vjp(p, u, backend=level.backend)
        wanted = truth.gradient(z, y)
        scale = true_p + (np.arange(n_classes) == y[:, None])
        assert (np.abs(g - wanted) <= (most + 2) * eps * scale).all()
        # u the same everywhere has no effect on probabilities that sum to 1; it is linear in u.
        flat = sx.softmax_vjp(p, np.full(z.shape, 3.0), backend=level.backend)
        assert (np.abs(flat) <= 3 * 2 * (most + 2) * eps * true_p).all()
        twice = sx.softmax_vjp(p, 2 * u, backend=level.backend)
        assert bits(twice) == bits(2 * g)


@pytest.mark.parametrize("code", ["f2", "f4", "f8", ">f4", "i1", "u8", "?"])
def test_vjp_takes_any_real_upstream(level, code):
    p = sx.softmax(np.random.default_rng(0).normal(0, 1, (5, 9)))
    u = np.random.default_rng(1).integers(0, 5, (5, 9)).astype(code)
    got = sx.softmax_vjp(p, u, backend=level.backend)
    assert bits(got) == bits(sx.softmax_vjp(p, u.astype(np.float64), backend=level.backend))


def ranks(z, targets, axis):
    """Place of each target in the stable descending order of its row: NaN first, 0-based."""
    z = np.moveaxis(z.astype(np.float64), axis, -1)
    key = np.where(np.isnan(z), np.inf, z)
    first = np.isnan(z)
    order = np.lexsort((np.broadcast_to(np.arange(z.shape[-1]), z.shape), -key, ~first), axis=-1)
    return (order == targets[..., None]).argmax(axis=-1)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_accuracy_is_numpys(level, any_logits, axis):
    """Ties, -inf, every k; rows that are ignored; 16 bits."""
    for n_classes in (1, 2, 3, 10, 65, 1025):
        rng = np.random.default_rng(n_classes)
        z = rng.integers(-3, 4, (5, 4, n_classes)) * 0.5
        z[0] = rng.normal(0, 1, (4, n_classes))
        z[rng.random(z.shape) < 0.1] = -np.inf
        z[2, 2] = -np.inf
        z = np.moveaxis(z, -1, axis).astype(storage(any_logits))
        targets = rng.integers(0, n_classes, (5, 4))
        place = ranks(z, targets, axis)
        ignored = targets.copy()
        ignored[rng.random(targets.shape) < 0.3] = -100
        counts = ignored != -100
        for k in {1, 2, 3, n_classes // 2 + 1, n_classes, n_classes + 5}:
            options = {"k": k, "axis": axis, "backend": level.backend}
            assert sx.accuracy(z, targets, **options) == (place < k).mean()
            got = sx.accuracy(z, ignored, **options)
            assert got == ((place < k)[counts].mean() if counts.any() else 0)
            in_range = sx.accuracy(z, targets, ignore_index=0, **options)
            kept = targets != 0
            assert in_range == ((place < k)[kept].mean() if kept.any() else 0)
            assert isinstance(got, float)
        np.testing.assert_equal(
            sx.accuracy(z, targets, axis=axis, backend=level.backend),
            (z.astype(np.float64).argmax(axis=axis) == targets).mean())


def test_accuracy_at_the_edges(level, dtype):
    """NaN is the largest and is not found; monotone functions of the logits say the same."""
    z = np.array([[1.0, np.nan, 2.0], [np.inf, 1.0, 3.0], [0.0, 0.0, 0.0]], dtype=dtype)
    backend = level.backend
    assert sx.accuracy(z, [2, 0, 0], backend=backend) == 2 / 3
    assert sx.accuracy(z, [2, 0, 0], k=2, backend=backend) == 1.0
    assert sx.accuracy(z, [1, 2, 1], k=3, backend=backend) == 2 / 3
    assert sx.accuracy(z, [-100] * 3, backend=backend) == 0.0
    assert sx.accuracy(z[:0], np.zeros(0, int), backend=backend) == 0.0
    z, y, _ = ordinary(10, dtype, n_rows=200)
    by_logits = sx.accuracy(z, y, k=3, backend=backend)
    for function in (sx.softmax, sx.log_softmax):
        assert sx.accuracy(function(z, backend=backend), y, k=3, backend=backend) == by_logits
    for n_threads in (1, 2, 3):
        assert sx.accuracy(z, y, k=3, n_threads=n_threads, backend=backend) == by_logits


def test_mean_divisor():
    """Sums of s v[y] over what counts, of any integer dtype; the number of rows without weights."""
    rng = np.random.default_rng(0)
    targets = rng.integers(-1, 6, (7, 5, 3))
    v, s = rng.uniform(0, 2, 6), rng.uniform(0, 2, targets.shape)
    counts = targets >= 0
    assert sx.mean_divisor(targets, ignore_index=-1) == counts.sum()
    assert isinstance(sx.mean_divisor(targets, ignore_index=-1), float)
    for code in ("i1", "i8", ">i2"):
        y = targets.astype(code)
        wanted = (s * v[targets])[counts].sum()
        got = sx.mean_divisor(y, class_weight=v, sample_weight=s, ignore_index=-1)
        assert got == pytest.approx(wanted, rel=1e-15)
        got = sx.mean_divisor(y, sample_weight=s, ignore_index=-1)
        assert got == pytest.approx(s[counts].sum(), rel=1e-15)
    assert sx.mean_divisor([[2, 1]], class_weight=[5, 1, 2], ignore_index=2) == 1.0
    assert sx.mean_divisor(3) == 1.0
    assert sx.mean_divisor([]) == 0.0
