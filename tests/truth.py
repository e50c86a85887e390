"""What the right answers are, independently of the package: nothing here imports it.

Two truths. `row_truth` is mpmath at 60 digits, a row at a time: the definition itself. The bulk
functions (`lse`, `softmax`, `log_softmax`, `loss`, `gradient`) work on arrays in x87 extended
precision (`np.longdouble`, 64-bit significand) and are held against `row_truth` in
`test_truth.py`: their relative error stays below 2**-60, that is 2**-7 ulp of float64.
Extended precision alone would not do: z - m of two float64 numbers needs more than 64 bits, so its
rounding error is kept (two-sum) and applied to the exponential.

Where `np.longdouble` is something else (Windows, Arm), the bulk functions ask `row_truth` for every
row: the same answers, slowly.

Conventions: logits (N, C) float32 or float64, finite, or -inf beside a finite one; targets (N,);
`weight` (N,), the factor of the row, as longdouble. NaN rows and ignored rows have no truth here:
the tests state them directly.
"""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
import numpy as np

LD = np.longdouble
EXTENDED = bool(np.finfo(LD).nmant == 63 and np.finfo(LD).maxexp == 16384)

#: Smallest normal number, by dtype.
F = {"float32": 2.0**-126, "float64": 2.0**-1022}
#: eps as the contract counts it, by dtype.
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}

_FINFO = {"float32": np.finfo(np.float32), "float64": np.finfo(np.float64)}


def row_truth(logits, target=None):
    """Truth of one row at 60 digits.

    Returns a dict: "lse", "softmax", "log_softmax" and, with a target, "loss" and "gradient"
    (of weight 1), of mpmath numbers.
    """
    with mpmath.workdps(60):
        z = [mpmath.mpf(float(value)) for value in logits]
        m = max(z)
        d = [value - m for value in z]
        e = [mpmath.exp(value) for value in d]
        first = z.index(m)
        apart = first if target is None else int(target)

        def others(skipped):
            return mpmath.fsum(value for k, value in enumerate(e) if k != skipped)

        total = mpmath.fsum(e)
        # With the largest set apart, log of the total keeps 60 digits however small it is.
        log_total = mpmath.log1p(others(first))
        truth = {
            "lse": m + log_total,
            "softmax": [value / total for value in e],
            "log_softmax": [value - log_total for value in d],
        }
        if target is not None:
            gradient = list(truth["softmax"])
            gradient[apart] = -others(apart) / total
            truth["gradient"] = gradient
            truth["loss"] = -truth["log_softmax"][apart]
        return truth


def from_mpf(value):
    """The longdouble nearest to an mpmath number (of its range), not by way of float64."""
    if not mpmath.isfinite(value):
        return LD(float(value))
    sign, mantissa, exponent, bits = value._mpf_
    shift = max(bits - 64, 0)
    kept = int(mantissa) >> shift
    high, low = divmod(kept, 1 << 32)
    number = np.ldexp(LD(high) * LD(2**32) + LD(low), int(exponent) + shift)
    return -number if sign else number


@dataclass(frozen=True)
class Exponentials:
    """exp(z - m) of an (N, C) array, and what every result is made of."""

    m: np.ndarray
    d: np.ndarray
    e: np.ndarray
    log_total: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, logits):
        """Exponentials of extended precision."""
        with np.errstate(all="ignore"):
            z = logits.astype(LD)
            first = z.argmax(axis=1)
            m = z.max(axis=1)
            column = m[:, None]
            d = z - column
            minus_m = d - z
            error = (z - (d - minus_m)) - (column + minus_m)
            error[~np.isfinite(error)] = 0
            e = np.exp(d)
            e += e * error
            other = others(e, first)
            return cls(m, d, e, np.log1p(other), other + 1)


def others(e, apart):
    """Sum of each row but for the column `apart`, as a tree of halves."""
    terms = e.copy()
    terms[np.arange(len(e)), apart] = 0
    n = terms.shape[1]
    while n > 1:
        kept = (n + 1) // 2
        terms[:, : n - kept] += terms[:, kept:n]
        n = kept
    return terms[:, 0].copy()


def lse(logits):
    """log sum exp of every row."""
    if not EXTENDED:
        return _by_row("lse", logits)
    x = Exponentials.of(logits)
    return x.m + x.log_total


def softmax(logits):
    """exp(z) / sum exp(z)."""
    if not EXTENDED:
        return _by_row("softmax", logits)
    x = Exponentials.of(logits)
    return x.e / x.total[:, None]


def log_softmax(logits):
    """Log of `softmax`, to full relative precision."""
    if not EXTENDED:
        return _by_row("log_softmax", logits)
    x = Exponentials.of(logits)
    return x.d - x.log_total[:, None]


def loss(logits, targets):
    """Cross-entropy of every row, of weight 1."""
    if not EXTENDED:
        return _by_row("loss", logits, targets)
    x = Exponentials.of(logits)
    return x.log_total - x.d[np.arange(len(logits)), targets]


def gradient(logits, targets):
    """Gradient of `loss`, of weight 1."""
    if not EXTENDED:
        return _by_row("gradient", logits, targets)
    x = Exponentials.of(logits)
    g = x.e / x.total[:, None]
    g[np.arange(len(logits)), targets] = -others(x.e, targets) / x.total
    return g


def _by_row(name, logits, targets=None):
    rows = []
    for i, row in enumerate(logits):
        value = row_truth(row, None if targets is None else targets[i])[name]
        rows.append([from_mpf(v) for v in value] if isinstance(value, list) else from_mpf(value))
    return np.array(rows, dtype=LD)


def spacing(true, dtype):
    """Distance of neighbouring numbers of `dtype` at `true`; below F that of subnormals."""
    info = _FINFO[dtype]
    _, exponent = np.frexp(np.where(np.isfinite(true), true, 1))
    exponent = np.clip(exponent - 1, info.minexp, info.maxexp - 1)
    return np.ldexp(LD(1), exponent - info.nmant)


def absolute_error(got, true, dtype):
    """|got - true| as longdouble: 0 for the same infinity or a true overflow, inf for NaN."""
    got = np.asarray(got).astype(LD)
    true = np.asarray(true, dtype=LD)
    info = _FINFO[dtype]
    # Numbers from here on round to infinity.
    overflow = LD(info.max) + spacing(LD(info.max), dtype) / 2
    with np.errstate(invalid="ignore"):
        error = np.abs(got - true)
    same = np.isinf(got) & (np.abs(true) >= overflow) & (np.signbit(got) == np.signbit(true))
    return np.where(same, LD(0), np.where(np.isnan(error), LD(np.inf), error))


def ulp_error(got, true, dtype, allowance=0.0):
    """|got - true| beyond `allowance`, in spacings of `dtype` at the true value.

    `true` is longdouble and is never rounded to `dtype`. `allowance` is an absolute term of a
    bound, such as what flushing may cost.
    """
    beyond = absolute_error(got, true, dtype) - np.asarray(allowance, dtype=LD)
    return np.maximum(beyond, 0) / spacing(np.asarray(true, dtype=LD), dtype)
