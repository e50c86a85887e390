"""The truth the other tests trust: bulk against mpmath, and mpmath against known values."""

import mpmath
import numpy as np
import pytest

import rows
import truth

#: Relative error promised by the bulk functions.
PROMISED = 2.0**-60


def to_mpf(value):
    """A longdouble as an mpmath number, exactly."""
    mantissa, exponent = np.frexp(value)
    high = float(mantissa)
    low = float(mantissa - truth.LD(high))
    with mpmath.workdps(60):
        return mpmath.ldexp(mpmath.mpf(high) + mpmath.mpf(low), int(exponent))


def relative_error(got, true):
    """|got - true| / |true| as a float; 0 for equal infinities and equal zeros."""
    if not mpmath.isfinite(true) or true == 0:
        return 0.0 if truth.from_mpf(true) == got else np.inf
    # Far below every float64 number longdouble itself has fewer bits.
    if abs(true) < mpmath.mpf(2) ** -16000:
        return 0.0 if abs(got) < truth.LD(2) ** -15000 else np.inf
    with mpmath.workdps(60):
        return float(abs((to_mpf(got) - true) / true))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 17, 130])
def test_bulk_agrees_with_mpmath(dtype, n_classes):
    """On a row of every family, every function is within 2**-60; lse of max(1, |lse|)."""
    case = rows.case(n_classes, dtype)
    first = [case.families.index(name) for name in dict.fromkeys(case.families)]
    z, targets = case.logits[first], case.targets[first]
    with np.errstate(invalid="ignore"):
        bulk = {
            "lse": truth.lse(z),
            "loss": truth.loss(z, targets),
            "softmax": truth.softmax(z),
            "log_softmax": truth.log_softmax(z),
            "gradient": truth.gradient(z, targets),
        }
    sample = np.random.default_rng(0).permutation(n_classes)[:6]
    for i, name in enumerate(dict.fromkeys(case.families)):
        exact = truth.row_truth(z[i], targets[i])
        got = bulk["lse"][i]
        scale = abs(exact["lse"]) / max(1, abs(exact["lse"]))
        assert float(scale) * relative_error(got, exact["lse"]) <= PROMISED, name
        assert relative_error(bulk["loss"][i], exact["loss"]) <= PROMISED, name
        for quantity in ("softmax", "log_softmax", "gradient"):
            for k in {*sample, targets[i]}:
                error = relative_error(bulk[quantity][i, k], exact[quantity][k])
                assert error <= PROMISED, (name, quantity, k)


#: Options by name: what `truth.cross_entropy` takes beyond the class weights.
OPTIONS = {
    "none": {},
    "temperature": {"temperature": 0.7},
    "temperature, thirds": {"temperature": 3.0},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-4},
    "softcap": {"softcap": 30.0},
    "all": {"label_smoothing": 0.3, "temperature": 1.7, "softcap": 5.0, "z_loss": 0.2},
}


def of_every_family(n_classes, dtype):
    """A case with one row of each family."""
    return rows.some(rows.case(n_classes, dtype), 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 17, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bulk_cross_entropy_agrees_with_mpmath(dtype, n_classes, kind, weighted):
    """Within 2**-60 of the sum of the absolute terms; with a cap, of logits moved by 2**-9 ulp."""
    case = of_every_family(n_classes, dtype)
    targets = case.targets if kind == "classes" else rows.probabilities(case)
    rng = np.random.default_rng(n_classes)
    for name, options in OPTIONS.items():
        if weighted:
            options = {**options, "class_weight": np.exp(rng.normal(0, 2, n_classes))}
        bulk = truth.cross_entropy(case.logits, targets, **options)
        some = rng.permutation(len(case.families))[: 40 if n_classes < 40 else 8]
        for i in some:
            where = (name, case.families[i], i)
            exact = truth.row_cross_entropy(case.logits[i], targets[i], **options)
            # What rounding the lse, or moving the capped logits, may cost.
            rounded = PROMISED * max(1, abs(bulk.lse[i]))
            for got, true, scale, by_lse, moved in (
                (bulk.loss[i], exact["loss"], bulk.loss[i], bulk.loss_by_lse[i],
                 bulk.moved_loss[i]),
                *zip(bulk.gradient[i], exact["gradient"], bulk.scale[i], bulk.gradient_by_lse[i],
                     bulk.moved_gradient[i], strict=True),
            ):
                allowed = PROMISED * scale + rounded * by_lse + 2.0**-9 * moved
                assert error_within(got, true, allowed), where
                if name in ("none", "temperature", "temperature, thirds") and kind == "classes":
                    assert relative_error(got, true) <= PROMISED, where


def error_within(got, true, allowed):
    """|got - true| <= allowed, beyond the smallest normal longdouble."""
    if not mpmath.isfinite(true):
        return truth.from_mpf(true) == got
    with mpmath.workdps(60):
        return abs(to_mpf(got) - true) <= to_mpf(allowed + truth.LD(2) ** -16000)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bulk_pieces_agree_with_mpmath(dtype, temperature):
    """Relatively within 2**-60: softmax, log_softmax and entropy at a temperature."""
    for n_classes in (1, 2, 3, 17, 40):
        case = of_every_family(n_classes, dtype)
        bulk = {name: getattr(truth, name)(case.logits, temperature)
                for name in ("softmax", "log_softmax", "entropy")}
        for i, name in enumerate(case.families):
            exact = truth.row_truth(case.logits[i], temperature=temperature)
            assert relative_error(bulk["entropy"][i], exact["entropy"]) <= PROMISED, name
            for quantity in ("softmax", "log_softmax"):
                for k in range(n_classes):
                    error = relative_error(bulk[quantity][i, k], exact[quantity][k])
                    assert error <= PROMISED, (name, quantity, k)


def test_bulk_vjp_agrees_with_mpmath():
    """Within 2**-60 of the sum of the absolute terms."""
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.full(19, 0.3), 50)
    u = rng.normal(0, 1, p.shape) * 10.0 ** rng.integers(-5, 6, p.shape)
    value, scale = truth.vjp(p, u)
    with mpmath.workdps(60):
        for i in range(len(p)):
            mean = mpmath.fdot(map(float, p[i]), map(float, u[i]))
            for k in range(p.shape[1]):
                exact = mpmath.mpf(float(p[i, k])) * (mpmath.mpf(float(u[i, k])) - mean)
                assert error_within(value[i, k], exact, PROMISED * scale[i, k])


def naive_loss(x, target, *, class_weight, label_smoothing, temperature, softcap, z_loss):
    """The docstring's formula in mpmath, nothing rearranged; x are mpmath numbers."""
    z = [softcap * mpmath.tanh(value / softcap) / temperature for value in x]
    total = mpmath.fsum(mpmath.exp(value) for value in z)
    log_p = [mpmath.log(mpmath.exp(value) / total) for value in z]
    n = len(x)
    mean = mpmath.fsum(v * -log for v, log in zip(class_weight, log_p, strict=True)) / n
    if np.ndim(target) == 0:
        hard = class_weight[target] * -log_p[target]
    else:
        hard = mpmath.fsum(v * t * -log for v, t, log in zip(class_weight, target, log_p,
                                                             strict=True))
    return ((1 - label_smoothing) * hard + label_smoothing * mean
            + z_loss * mpmath.log(total) ** 2)


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("seed", range(6))
def test_mpmath_gradient_is_the_derivative(seed, kind):
    """`row_cross_entropy` is the formula, and its gradient the formula's numerical derivative."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    x = rng.normal(0, 4, n)
    target = int(rng.integers(n)) if kind == "classes" else rng.dirichlet(np.ones(n)) * 1.5
    options = {
        "class_weight": rng.exponential(1, n), "label_smoothing": rng.choice([0.0, 0.3, 1.0]),
        "temperature": rng.uniform(0.3, 3), "softcap": rng.uniform(2, 10),
        "z_loss": rng.uniform(0, 1),
    }
    exact = truth.row_cross_entropy(x, target, **options)
    with mpmath.workdps(80):
        given = {name: mpmath.mpf(float(value)) for name, value in options.items()
                 if name != "class_weight"}
        given["class_weight"] = [mpmath.mpf(float(v)) for v in options["class_weight"]]
        t = target if kind == "classes" else [mpmath.mpf(float(value)) for value in target]
        numbers = [mpmath.mpf(float(value)) for value in x]

        def loss_at(k, value):
            return naive_loss([*numbers[:k], value, *numbers[k + 1 :]], t, **given)

        assert abs(exact["loss"] - loss_at(0, numbers[0])) < mpmath.mpf(10) ** -55
        for k in range(n):
            slope = mpmath.diff(lambda value, k=k: loss_at(k, value), numbers[k])
            assert abs(exact["gradient"][k] - slope) < mpmath.mpf(10) ** -30


def test_a_capped_logit_of_minus_infinity():
    """Stays -inf: probability 0, gradient -q over the temperature, loss 0 or +inf."""
    x = [0.5, -np.inf, 2.0]
    exact = truth.row_cross_entropy(x, 1, softcap=3.0, temperature=0.5)
    assert exact["loss"] == mpmath.inf
    assert exact["gradient"][1] == -2
    exact = truth.row_cross_entropy(x, [0.25, 0.0, 0.75], softcap=3.0)
    assert mpmath.isfinite(exact["loss"])
    assert exact["gradient"][1] == 0


def test_row_truth_of_known_values():
    """[log 1, log 2, log 4] has p = 1/7, 2/7, 4/7 up to the logits' own rounding."""
    exact = truth.row_truth(np.log([1.0, 2.0, 4.0]), 0)
    assert [float(p) for p in exact["softmax"]] == pytest.approx([1 / 7, 2 / 7, 4 / 7], rel=1e-15)
    assert float(exact["loss"]) == pytest.approx(np.log(7), rel=1e-15)
    assert float(exact["gradient"][0]) == pytest.approx(-6 / 7, rel=1e-15)
    confident = truth.row_truth([20.0, 0.0, 0.0], 0)
    assert float(confident["loss"]) == pytest.approx(2 * np.exp(-20), rel=1e-8)


@pytest.mark.parametrize(
    ("got", "true", "dtype", "ulps"),
    [
        (1.0 + 2.0**-23, 1.0, "float32", 1.0),
        (1.0, 1.0 + 2.0**-25, "float32", 0.25),
        (2.0**-149, 2.0**-149 * 1.5, "float32", 0.5),
        (1.0 + 2.0**-52, 1.0, "float64", 1.0),
        (np.inf, np.inf, "float32", 0.0),
        (np.inf, 1e39, "float32", 0.0),
        (np.inf, 1.0, "float32", np.inf),
        (np.nan, 1.0, "float32", np.inf),
        (-np.inf, np.inf, "float64", np.inf),
        (1.0 + 2.0**-10, 1.0, "float16", 1.0),
        (2.0**-24, 0.0, "float16", 1.0),
        (np.inf, 65520, "float16", 0.0),
        (np.inf, 65519, "float16", np.inf),
        (1.0, 1.0 + 2.0**-8, "bfloat16", 0.5),
        (2.0**-133, 0.0, "bfloat16", 1.0),
    ],
)
def test_ulp_error(got, true, dtype, ulps):
    """Spacings are those of the dtype at the true value, which is not rounded."""
    assert truth.ulp_error(got, truth.LD(true), dtype) == ulps
