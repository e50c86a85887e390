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
    ],
)
def test_ulp_error(got, true, dtype, ulps):
    """Spacings are those of the dtype at the true value, which is not rounded."""
    assert truth.ulp_error(got, truth.LD(true), dtype) == ulps
