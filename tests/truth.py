"""What the right answers are, independently of the package: nothing here imports it.

Two truths. `row_truth` and, with every option, `row_cross_entropy` are mpmath at 60 digits, a row
at a time: the definition itself. The bulk functions (`lse`, `softmax`, `log_softmax`, `loss`,
`gradient`, `entropy`, `vjp`, `cross_entropy`) work on arrays in x87 extended precision
(`np.longdouble`, 64-bit significand) and are held against them in `test_truth.py`: their error
stays below 2**-60, that is 2**-7 ulp of float64, of the value, or of the sum of its absolute terms.
Extended precision alone would not do: z - m of two float64 numbers needs more than 64 bits, and so
does its quotient with a temperature; the rounding errors of both are kept and applied to the
exponential. A capped logit has the one of 64 bits, 2**-11 of the ulp that the contract grants it.

Where `np.longdouble` is something else (Windows, Arm), the bulk functions ask mpmath for every
row: the same answers, slowly.

Conventions: logits (N, C) float32 or float64, finite, or -inf beside a finite one; targets (N,), or
probabilities (N, C); `weight` (N,), the factor of the row, as longdouble. NaN rows and ignored rows
have no truth here: the tests state them directly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import mpmath
import numpy as np

LD = np.longdouble
EXTENDED = bool(np.finfo(LD).nmant == 63 and np.finfo(LD).maxexp == 16384)

#: Smallest normal number, by dtype.
F = {"float32": 2.0**-126, "float64": 2.0**-1022, "float16": 2.0**-14, "bfloat16": 2.0**-126}
#: eps as the contract counts it, by dtype.
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}


class _Format(NamedTuple):
    """What `np.finfo` says of a format; of bfloat16 NumPy knows nothing."""

    nmant: int
    minexp: int
    maxexp: int

    @property
    def max(self):
        return np.ldexp(2 - np.ldexp(LD(1), -self.nmant), self.maxexp - 1)


_FINFO = {"float32": _Format(23, -126, 128), "float64": _Format(52, -1022, 1024),
          "float16": _Format(10, -14, 16), "bfloat16": _Format(7, -126, 128)}


# ---- mpmath, a row at a time ---------------------------------------------------------------------


def row_truth(logits, target=None, temperature=1.0):
    """Truth of one row at 60 digits.

    Returns a dict: "lse", "softmax", "log_softmax", "entropy" and, with a target, "loss" and
    "gradient" (of weight 1, with respect to the logits over the temperature), of mpmath numbers.
    """
    with mpmath.workdps(60):
        z = [mpmath.mpf(float(value)) / mpmath.mpf(float(temperature)) for value in logits]
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
            "entropy": mpmath.fsum(p / total * (log_total - value)
                                   for p, value in zip(e, d, strict=True) if p),
        }
        if target is not None:
            gradient = list(truth["softmax"])
            gradient[apart] = -others(apart) / total
            truth["gradient"] = gradient
            truth["loss"] = -truth["log_softmax"][apart]
        return truth


def row_cross_entropy(logits, target, *, class_weight=None, label_smoothing=0.0, temperature=1.0,
                      softcap=None, z_loss=0.0, gamma=None):
    """Cross-entropy of one row with any options, at 60 digits: "loss" and "gradient".

    `target` is a class number, or the row's probabilities. The loss is

        sum of q_k (-log p_k) + z_loss lse^2,    q_k = v_k ((1 - eps) t_k + eps / C),

    of p = softmax(z), z = cap tanh(x / cap) / temperature; terms with q_k = 0 are 0. The gradient,
    with respect to the logits x as given, is the chain rule written out:

        dL/dx_j = (sum of dL/dlog p_k dlog p_k/dz_j + 2 z_loss lse p_j) dz_j/dx_j

    where dlog p_k/dz_j is -p_j, or 1 - p_j for k = j: a sum over the other classes, so that no
    digit is lost. dz_j/dx_j is 1 / temperature at a logit of -inf, which no cap makes finite.

    `gamma`, with a class number: focal loss, of which -log p_k becomes (1 - p_k)^gamma (-log p_k).
    """
    with mpmath.workdps(60):
        tau = mpmath.mpf(float(temperature))
        x = [mpmath.mpf(float(value)) for value in logits]
        z = [_capped(value, softcap) / tau for value in x]
        q = row_shares(target, len(x), class_weight, label_smoothing)
        m = max(z)
        e = [mpmath.exp(value - m) for value in z]
        total = mpmath.fsum(e)
        before, after = [mpmath.mpf(0)], [mpmath.mpf(0)]
        for k in range(len(e)):
            before.append(before[-1] + e[k])
            after.append(after[-1] + e[-1 - k])
        others_of = [before[k] + after[len(e) - 1 - k] for k in range(len(e))]
        log_total = mpmath.log1p(others_of[z.index(m)])
        lse = m + log_total
        loss = mpmath.mpf(float(z_loss)) * lse**2
        costs = [log_total + (m - value) for value in z]
        by_log_p = [mpmath.mpf(1)] * len(z)  # minus the derivatives of the costs
        if gamma is not None:
            focal = [_focal(cost, others / total, value / total, mpmath.mpf(float(gamma)))
                     for cost, others, value in zip(costs, others_of, e, strict=True)]
            costs, by_log_p = zip(*focal, strict=True)
        loss += mpmath.fsum(q[k] * costs[k] for k in range(len(z)) if q[k])
        q = [share * slope for share, slope in zip(q, by_log_p, strict=True)]
        all_q = mpmath.fsum(q)
        gradient = []
        for j in range(len(z)):
            p, not_p = e[j] / total, others_of[j] / total
            other_q = mpmath.fsum(q[:j] + q[j + 1 :]) if q[j] else all_q
            by_z = other_q * p - q[j] * not_p + 2 * mpmath.mpf(float(z_loss)) * lse * p
            gradient.append(by_z * _cap_slope(x[j], softcap) / tau)
        return {"lse": lse, "softmax": [value / total for value in e], "loss": loss,
                "gradient": gradient}


def _focal(cost, rest, p, gamma):
    """(1 - p)^gamma cost, of cost = -log p, and minus its derivative by log p; rest = 1 - p."""
    if rest == 0 or gamma == 0:
        return cost if gamma == 0 else mpmath.mpf(0), mpmath.mpf(int(gamma == 0))
    focus = rest**gamma
    return focus * cost, focus + (gamma * p * rest ** (gamma - 1) * cost if p else 0)


def row_shares(target, n_classes, class_weight=None, label_smoothing=0.0):
    """q_k: what -log p_k is multiplied with in the loss of a row, as mpmath numbers."""
    if np.ndim(target) == 0:
        t = [mpmath.mpf(int(k == target)) for k in range(n_classes)]
    else:
        t = [mpmath.mpf(float(value)) for value in target]
    v = [1.0] * n_classes if class_weight is None else class_weight
    smoothing = mpmath.mpf(float(label_smoothing))
    return [mpmath.mpf(float(v[k])) * ((1 - smoothing) * t[k] + smoothing / n_classes)
            for k in range(n_classes)]


def _capped(x, softcap):
    if softcap is None or not mpmath.isfinite(x):
        return x
    cap = mpmath.mpf(float(softcap))
    return cap * mpmath.tanh(x / cap)


def _cap_slope(x, softcap):
    if softcap is None or not mpmath.isfinite(x):
        return mpmath.mpf(1)
    return mpmath.sech(x / mpmath.mpf(float(softcap))) ** 2


def from_mpf(value):
    """The longdouble nearest to an mpmath number (of its range), not by way of float64."""
    if not mpmath.isfinite(value):
        return LD(float(value))
    sign, mantissa, exponent, bits = value._mpf_
    shift = max(bits - 64, 0)
    kept = int(mantissa) >> shift
    high, low = divmod(kept, 1 << 32)
    # Beyond any longdouble, and still an int that ldexp takes.
    power = min(max(int(exponent) + shift, -40_000), 40_000)
    number = np.ldexp(LD(high) * LD(2**32) + LD(low), power)
    return -number if sign else number


# ---- extended precision, in bulk -----------------------------------------------------------------


@dataclass(frozen=True)
class Exponentials:
    """exp(z - m) of an (N, C) array, and what every result is made of."""

    m: np.ndarray
    d: np.ndarray
    e: np.ndarray
    log_total: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, logits, temperature=1.0, softcap=None):
        """Exponentials of extended precision, of logits capped and over the temperature."""
        with np.errstate(all="ignore"):
            z = capped(logits.astype(LD), softcap)
            first = z.argmax(axis=1)
            m = z.max(axis=1)
            column = m[:, None]
            d = z - column
            minus_m = d - z
            error = (z - (d - minus_m)) - (column + minus_m)
            if temperature != 1.0:
                d, error = _quotient(d, error, LD(temperature))
                m = m / LD(temperature)
            error[~np.isfinite(error)] = 0
            e = np.exp(d)
            e += e * error
            other = others(e, first)
            return cls(m, d, e, np.log1p(other), other + 1)


def capped(x, softcap):
    """Softcap tanh(x / softcap), -inf where x is; x itself without one."""
    if softcap is None:
        return x
    cap = LD(softcap)
    return np.where(x == -np.inf, x, cap * np.tanh(x / cap))


def cap_slope(x, softcap):
    """Derivative of `capped`: 1 / cosh^2, and 1 at -inf."""
    if softcap is None:
        return np.ones(x.shape, LD)
    e = np.exp(-2 * np.abs(x) / LD(softcap))
    return np.where(x == -np.inf, LD(1), 4 * e / (1 + e) ** 2)


def _quotient(dividend, error, divisor):
    """Return (dividend + error) / divisor as a longdouble, and what that leaves out.

    The remainder of the division is exact: the quotient's halves of 32 bits times the divisor's,
    a float64, of 27.
    """
    q = dividend / divisor
    q_high, q_low = _halves(q, 32)
    high, low = _halves(divisor, 37)
    remainder = (((dividend - q_high * high) - q_high * low) - q_low * high) - q_low * low
    return q, (remainder + error) / divisor


def _halves(number, bits):
    """A longdouble as a sum of two, of 64 - `bits` and `bits` bits (Veltkamp)."""
    stretched = number * (LD(2) ** bits + 1)
    high = stretched - (stretched - number)
    return high, number - high


def tree(terms):
    """Sum of each row, as a tree of halves. Overwrites `terms`."""
    n = terms.shape[1]
    while n > 1:
        kept = (n + 1) // 2
        terms[:, : n - kept] += terms[:, kept:n]
        n = kept
    return terms[:, 0].copy()


def others(e, apart):
    """Sum of each row but for the column `apart`, as a tree of halves."""
    terms = e.copy()
    terms[np.arange(len(e)), apart] = 0
    return tree(terms)


def lse(logits):
    """log sum exp of every row."""
    if not EXTENDED:
        return _by_row("lse", logits)
    x = Exponentials.of(logits)
    return x.m + x.log_total


def softmax(logits, temperature=1.0):
    """exp(z) / sum exp(z)."""
    if not EXTENDED:
        return _by_row("softmax", logits, temperature=temperature)
    x = Exponentials.of(logits, temperature)
    return x.e / x.total[:, None]


def log_softmax(logits, temperature=1.0):
    """Log of `softmax`, to full relative precision."""
    if not EXTENDED:
        return _by_row("log_softmax", logits, temperature=temperature)
    x = Exponentials.of(logits, temperature)
    return x.d - x.log_total[:, None]


def entropy(logits, temperature=1.0):
    """-sum p log p of every row, 0 log 0 = 0: a sum of terms that are not negative."""
    if not EXTENDED:
        return _by_row("entropy", logits, temperature=temperature)
    x = Exponentials.of(logits, temperature)
    with np.errstate(invalid="ignore"):
        terms = np.where(x.e > 0, x.e * -x.d, 0)
    return x.log_total + tree(terms) / x.total


def vjp(probs, upstream):
    """p (u - sum p u), and the sum of its absolute terms."""
    p, u = probs.astype(LD), upstream.astype(LD)
    if EXTENDED:
        products = p * u
        sizes = np.abs(products)
        value = p * (u - tree(products.copy())[:, None])
    else:
        with mpmath.workdps(60):
            value = np.array([_row_vjp(*row) for row in zip(probs, upstream, strict=True)], LD)
        sizes = np.abs(p * u)
    return value, p * (np.abs(u) + tree(sizes)[:, None])


def _row_vjp(probs, upstream):
    p = [mpmath.mpf(float(value)) for value in probs]
    u = [mpmath.mpf(float(value)) for value in upstream]
    mean = mpmath.fdot(p, u)
    return [from_mpf(a * (b - mean)) for a, b in zip(p, u, strict=True)]


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


def _by_row(name, logits, targets=None, *, row=row_truth, **options):
    found = []
    for i, logit in enumerate(logits):
        value = row(logit, None if targets is None else targets[i], **options)[name]
        found.append([from_mpf(v) for v in value] if isinstance(value, list) else from_mpf(value))
    return np.array(found, dtype=LD)


def row_kl_divergence(logits, target, **options):
    """`row_cross_entropy` of probabilities, and with it sum of t log t, at 60 digits."""
    with mpmath.workdps(60):
        t = [mpmath.mpf(float(value)) for value in target]
        truth = row_cross_entropy(logits, target, **options)
        own = mpmath.fsum(value * mpmath.log(value) for value in t if value)
        return {**truth, "loss": truth["loss"] + own}


def row_distillation(logits, teacher, *, temperature=2.0, hard_targets=None, hard_weight=0.0,
                     class_weight=None, label_smoothing=0.0):
    """(1 - h) tau^2 KL(q || p) + h cross-entropy at 1, and its gradient, at 60 digits."""
    with mpmath.workdps(60):
        tau, h = mpmath.mpf(float(temperature)), mpmath.mpf(float(hard_weight))
        student = row_truth(logits, None, temperature)
        q, log_q = (row_truth(teacher, None, temperature)[name]
                    for name in ("softmax", "log_softmax"))
        divergence = mpmath.fsum(share * (log - other) for share, log, other in zip(
            q, log_q, student["log_softmax"], strict=True) if share)
        loss = (1 - h) * tau**2 * divergence
        gradient = [(1 - h) * tau * (p - share)
                    for p, share in zip(student["softmax"], q, strict=True)]
        if h:
            hard = row_cross_entropy(logits, int(hard_targets), class_weight=class_weight,
                                     label_smoothing=label_smoothing)
            loss += h * hard["loss"]
            gradient = [a + h * b for a, b in zip(gradient, hard["gradient"], strict=True)]
        return {"loss": loss, "gradient": gradient}


def row_squared_error(logits, target, *, temperature=1.0):
    """Half the sum of (p - t)^2, and its gradient by the logits, at 60 digits.

    1 - p of a class target is a sum over the others.
    """
    with mpmath.workdps(60):
        truth = row_truth(logits, None, temperature)
        p = truth["softmax"]
        if np.ndim(target) == 0:
            others = row_truth(logits, target, temperature)["gradient"][int(target)]
            off = [others if k == target else value for k, value in enumerate(p)]
        else:
            off = [value - mpmath.mpf(float(t)) for value, t in zip(p, target, strict=True)]
        mean = mpmath.fdot(p, off)
        tau = mpmath.mpf(float(temperature))
        return {"softmax": p, "loss": mpmath.fsum(value**2 for value in off) / 2,
                "gradient": [a * (b - mean) / tau for a, b in zip(p, off, strict=True)]}


@dataclass(frozen=True)
class Loss:
    """A loss of rows with any options, and what the contract's bounds are made of.

    With g_k = (A p_k - B_k) J_k, the weights, 1 / temperature and the upstream in A and B, J the
    slope of the cap:

    loss, gradient
        The truth.
    loss_scale
        The sum of the absolute terms of the loss: the loss itself, but for the KL divergence and
        the squared error.
    lse, softmax
        Of the capped logits over the temperature.
    size
        |A|, (N,): the sum of its absolute terms, which z-loss of a negative lse tells from |A|.
    w
        |w|, (N,): the row's weight, with 1 / temperature and the upstream.
    scale
        (|A| p_k + |B_k|) J_k.
    mass
        sum of |B_k|, (N,).
    loss_by_lse, gradient_by_lse
        Derivatives by the lse of the z-loss.
    moved_loss, moved_gradient
        How far either goes when each logit moves by an ulp of `dtype`: a capped one in the softmax,
        a given one in J. 0 without softcap.
    growth
        1 + gamma of focal loss: how much larger a bound is; else 1.
    overflow
        Whether what a weight multiplies, a class's cost, the loss or A, is beyond float64 (N,): an
        infinity is then right, even if a small weight would have brought it back.
    """

    loss: np.ndarray
    gradient: np.ndarray
    loss_scale: np.ndarray
    lse: np.ndarray
    softmax: np.ndarray
    size: np.ndarray
    w: np.ndarray
    scale: np.ndarray
    mass: np.ndarray
    loss_by_lse: np.ndarray
    gradient_by_lse: np.ndarray
    moved_loss: np.ndarray
    moved_gradient: np.ndarray
    growth: np.ndarray
    overflow: np.ndarray

    def rows(self, index):
        """The same of some rows."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))


def cross_entropy(logits, targets, *, class_weight=None, label_smoothing=0.0, temperature=1.0,
                  softcap=None, z_loss=0.0, gamma=None, weight=None, factor=None):
    """Truth of rows (N, C); targets (N,) classes, or (N, C) probabilities.

    `weight` (N,) multiplies loss and gradient, `factor` (N,) the gradient alone (the upstream over
    the mean's divisor). A row of weight 0 has loss and gradient 0.
    """
    dtype = logits.dtype.name
    n, n_classes = logits.shape
    s = np.ones(n, LD) if weight is None else np.asarray(weight).astype(LD)
    factor = np.ones(n, LD) if factor is None else np.asarray(factor).astype(LD)
    # The gradient's weight, with the chain rule's 1 / temperature.
    w = (s * factor / LD(temperature))[:, None]
    q = given_q = shares(targets, n_classes, class_weight, label_smoothing)
    zeta = LD(z_loss)
    with np.errstate(all="ignore"):
        x = Exponentials.of(logits, temperature, softcap)
        p = x.e / x.total[:, None]
        row_lse = x.m + x.log_total
        slope = cap_slope(logits.astype(LD), softcap)
        costs = x.log_total[:, None] - x.d
        # Of a class that costs nothing, no infinity.
        row_costs = np.where(q > 0, costs, 0)
        if gamma is not None:
            at = np.arange(n), targets
            rest = others(x.e, targets) / x.total
            focus = rest ** LD(gamma)
            pull = focus + np.where(p[at] > 0, gamma * p[at] * (focus / rest) * costs[at], 0)
            pull[rest == 0] = gamma == 0
            row_costs[at] *= focus
            # How fast the pull changes with log p.
            bend = gamma * p[at] * (focus / rest) * (
                2 + costs[at] + abs(gamma - 1) * p[at] * costs[at] / rest)
            bend = np.where((rest > 0) & (p[at] > 0), q[at] * bend, 0)
            q = q.copy()
            q[at] *= pull
        total_q = tree(q.copy())[:, None]
        signed = total_q * p - q
        if np.ndim(targets) == 1 and not label_smoothing:
            # One q that is not 0: no difference at its class either.
            at = np.arange(n), targets
            signed[at] = -q[at] * (others(x.e, targets) / x.total)
        by_z = signed + 2 * zeta * row_lse[:, None] * p
        if EXTENDED:
            row_loss = tree(given_q * row_costs) + zeta * row_lse**2
            gradient = by_z * slope * w
        else:
            options = {"class_weight": class_weight, "label_smoothing": label_smoothing,
                       "temperature": temperature, "softcap": softcap, "z_loss": z_loss,
                       "gamma": gamma}
            row_loss, gradient = (
                _by_row(name, logits, targets, row=row_cross_entropy, **options)
                for name in ("loss", "gradient"))
            gradient *= w * LD(temperature)
        size = total_q + 2 * zeta * np.abs(row_lse[:, None])
        most = LD(np.finfo(np.float64).max)
        dear = (row_costs >= most).any(axis=1) & np.isfinite(row_loss)
        overflow = dear | (np.abs(row_loss) >= most) | (size[:, 0] >= most) | (row_lse**2 >= most)

        moved_loss, moved_gradient = np.zeros(n, LD), np.zeros(logits.shape, LD)
        if softcap is not None:
            given = logits.astype(LD)
            finite = np.isfinite(logits)
            step = np.where(finite, spacing(capped(given, softcap), dtype), 0) / LD(temperature)
            # A derivative at any point so near is at most this much larger.
            growth = np.exp(2 * step.max(axis=1, initial=0))[:, None]
            moved_loss = tree(np.abs(by_z) * step * growth)
            by_all = tree(p * step)[:, None]
            moved_p = p * ((1 - p) * step + (by_all - p * step))
            nearer = np.maximum(np.abs(given) - spacing(given, dtype), 0)
            steeper = np.where(finite, cap_slope(nearer, softcap) - slope, 0)
            moved_gradient = (size * moved_p + 2 * zeta * p * by_all) * growth * (slope + steeper)
            moved_gradient += np.abs(by_z) * steeper
            if gamma is not None:
                moved_log_p = ((step[at] + by_all[:, 0]) * bend)[:, None] * growth
                reach = p.copy()
                reach[at] = rest
                moved_gradient += moved_log_p * reach * (slope + steeper)

        counts = s > 0
        column = counts[:, None]
        w_size = np.abs(w)
        return Loss(
            loss=np.where(counts, s * row_loss, 0),
            gradient=np.where(column, gradient, 0),
            loss_scale=np.where(counts, s * row_loss, 0),
            lse=row_lse,
            softmax=p,
            size=np.where(column, w_size * size, 0)[:, 0],
            w=np.where(counts, w_size[:, 0], 0),
            scale=np.where(column, w_size * (size * p + q) * slope, 0),
            mass=np.where(column, w_size * total_q, 0)[:, 0],
            loss_by_lse=s * 2 * zeta * np.abs(row_lse),
            gradient_by_lse=w_size * 2 * zeta * p * slope,
            moved_loss=np.where(counts, s * moved_loss, 0),
            moved_gradient=np.where(column, w_size * moved_gradient, 0),
            growth=np.full(n, 1 if gamma is None else 1 + LD(gamma)),
            overflow=overflow & counts,
        )


def focal_loss(logits, targets, *, gamma=2.0, **options):
    """`cross_entropy` of rows with (1 - p)^gamma (-log p) in the place of -log p."""
    return cross_entropy(logits, targets, gamma=gamma, **options)


def kl_divergence(logits, targets, *, weight=None, **options):
    """`cross_entropy` of rows with probabilities, and with it sum of t log t."""
    found = cross_entropy(logits, targets, weight=weight, **options)
    t = targets.astype(LD)
    own = tree(t * np.log(np.where(t > 0, t, 1)))
    sizes = tree(np.abs(t * np.log(np.where(t > 0, t, 1))))
    s = np.ones(len(t), LD) if weight is None else np.asarray(weight).astype(LD)
    own, sizes = (np.where(s > 0, s * values, 0) for values in (own, sizes))
    if EXTENDED:
        value = found.loss + own
    else:
        value = s * _by_row("loss", logits, targets, row=row_kl_divergence, **options)
    # What a rounding of t has made of a divergence that cannot be negative.
    slack = 8 * float(np.finfo(targets.dtype).eps if targets.dtype.kind == "f" else 2.0**-7)
    normalised = np.abs(tree(t.copy()) - 1) <= slack
    value = np.where(normalised & (value < 0), 0, value)
    return replace(found, loss=value, loss_scale=found.loss + sizes)


def distillation_loss(logits, teacher, *, temperature=2.0, hard_targets=None, hard_weight=0.0,
                      weight=None, factor=None, **options):
    """Truth of rows (N, C) and a teacher's; hard_targets (N,)."""
    n = len(logits)
    s = np.ones(n, LD) if weight is None else np.asarray(weight).astype(LD)
    factor = np.ones(n, LD) if factor is None else np.asarray(factor).astype(LD)
    tau, soft = LD(temperature), 1 - LD(hard_weight)
    with np.errstate(all="ignore"):
        x, u = Exponentials.of(logits, temperature), Exponentials.of(teacher, temperature)
        p, q = x.e / x.total[:, None], u.e / u.total[:, None]
        # Of a class that both exclude, nothing.
        gaps = np.where((teacher == -np.inf) | (q == 0) & np.isfinite(logits), 0, -x.d)
        gaps[(logits == -np.inf) & (teacher != -np.inf)] = np.inf
        own = u.log_total + tree(np.where(q > 0, q * -u.d, 0))
        cross = x.log_total + tree(np.where(np.isinf(gaps), gaps, q * gaps))
        # log p - log q for the sum of q (exp(d) - 1 - d), all of whose terms are >= 0: no digit of
        # the divergence of two that are nearly the same is lost. Only where both are near.
        d = (x.d - u.d) - (x.log_total - u.log_total)[:, None]
        near = np.where(np.abs(d) < 0.5, _exp_beyond(d), np.exp(d) - 1 - d)
        apart = (np.abs(d) > 40) | ~np.isfinite(d)
        divergence = np.where(apart.any(axis=1), cross - own, tree(np.where(q > 0, q * near, 0)))
        loss = soft * tau**2 * divergence
        most = LD(np.finfo(np.float64).max)
        overflow = (divergence >= most) | (loss >= most) | (
            (np.where(q > 0, gaps, 0) >= most).any(axis=1) & np.isfinite(loss))
        sizes = soft * tau**2 * (cross + own)
        w = s * factor * soft * tau
        gradient = w[:, None] * (p - q)
        if not EXTENDED:
            loss, gradient = (
                np.array([[from_mpf(v) for v in np.atleast_1d(value)] for value in (
                    row_distillation(logits[i], teacher[i], temperature=temperature)[name]
                    for i in range(n))], dtype=LD).reshape(shape)
                for name, shape in (("loss", n), ("gradient", logits.shape)))
            loss, gradient = soft * loss, soft * (s * factor)[:, None] * gradient
        counts = s > 0
        zeros = np.zeros(n, LD)
        found = Loss(
            loss=np.where(counts, s * loss, 0),
            gradient=np.where(counts[:, None], gradient, 0),
            loss_scale=np.where(counts, s * sizes, 0),
            lse=zeros, softmax=p,
            size=np.where(counts, np.abs(w), 0), w=np.where(counts, np.abs(w), 0),
            scale=np.where(counts[:, None], np.abs(w)[:, None] * (p + q), 0),
            mass=np.where(counts, np.abs(w), 0),
            loss_by_lse=zeros, gradient_by_lse=np.zeros(p.shape, LD), moved_loss=zeros,
            moved_gradient=np.zeros(p.shape, LD), growth=zeros + 1,
            overflow=counts & overflow,
        )
        if not hard_weight:
            return found
        hard = cross_entropy(logits, hard_targets, weight=weight, factor=factor, **options)
        share = LD(hard_weight)
        if hard_weight == 1:
            return hard
        sums = {name: getattr(found, name) + share * getattr(hard, name) for name in (
            "loss", "gradient", "loss_scale", "size", "w", "scale", "mass")}
        return replace(found, **sums, overflow=found.overflow | hard.overflow)


def _exp_beyond(d):
    """exp(d) - 1 - d for |d| < 1/2, by its series: 20 terms leave 2**-80."""
    value = np.zeros_like(d)
    for k in range(21, 1, -1):
        value = (value + 1) * d / k
    return value * d


def squared_error(logits, targets, *, temperature=1.0, weight=None, factor=None):
    """Truth of rows (N, C); targets (N,) classes, or (N, C) probabilities."""
    n, n_classes = logits.shape
    s = np.ones(n, LD) if weight is None else np.asarray(weight).astype(LD)
    factor = np.ones(n, LD) if factor is None else np.asarray(factor).astype(LD)
    w = (s * factor / LD(temperature))[:, None]
    with np.errstate(all="ignore"):
        x = Exponentials.of(logits, temperature)
        p = x.e / x.total[:, None]
        t = shares(targets, n_classes)
        off = p - t
        if np.ndim(targets) == 1:
            at = np.arange(n), targets
            off[at] = -others(x.e, targets) / x.total
        mean = tree(p * off)[:, None]
        if EXTENDED:
            loss, gradient = tree(off * off) / 2, p * (off - mean) * w
        else:
            loss, gradient = (
                _by_row(name, logits, targets, row=row_squared_error, temperature=temperature)
                for name in ("loss", "gradient"))
            gradient *= w * LD(temperature)
        counts, w_size = s > 0, np.abs(w)
        sizes = p * (p + t + tree(p * (p + t))[:, None])
        zeros = np.zeros(n, LD)
        return Loss(
            loss=np.where(counts, s * loss, 0),
            gradient=np.where(counts[:, None], gradient, 0),
            loss_scale=np.where(counts, s * tree((p + t) ** 2) / 2, 0),
            lse=zeros, softmax=p,
            size=np.where(counts, w_size[:, 0] * (1 + tree(t.copy())), 0),
            w=np.where(counts, w_size[:, 0], 0),
            scale=np.where(counts[:, None], w_size * sizes, 0),
            mass=zeros, loss_by_lse=zeros, gradient_by_lse=np.zeros(p.shape, LD),
            moved_loss=zeros, moved_gradient=np.zeros(p.shape, LD), growth=zeros + 1,
            overflow=counts & (loss >= LD(np.finfo(np.float64).max)),
        )


def nll_loss(log_probs, targets, *, class_weight=None, weight=None, factor=None):
    """Truth of rows (N, C), targets (N,): minus the target's entry."""
    n, n_classes = log_probs.shape
    s = np.ones(n, LD) if weight is None else np.asarray(weight).astype(LD)
    factor = np.ones(n, LD) if factor is None else np.asarray(factor).astype(LD)
    q = shares(targets, n_classes, class_weight)
    taken = s * q[np.arange(n), targets]
    with np.errstate(all="ignore"):
        loss = np.where(taken > 0, -taken * log_probs[np.arange(n), targets].astype(LD), 0)
    size = np.where(s > 0, np.abs(s * factor), 0)[:, None] * q
    zeros = np.zeros(n, LD)
    return Loss(
        loss=loss, gradient=-(s * factor)[:, None] * q, loss_scale=np.abs(loss), lse=zeros,
        softmax=np.zeros(q.shape, LD), size=tree(size.copy()), w=np.abs(s * factor),
        scale=size, mass=zeros,
        loss_by_lse=zeros, gradient_by_lse=np.zeros(q.shape, LD), moved_loss=zeros,
        moved_gradient=np.zeros(q.shape, LD), growth=zeros + 1,
        overflow=np.abs(loss) >= LD(np.finfo(np.float64).max),
    )


def sigmoid_binary_cross_entropy(logits, targets, *, pos_weight=None, weight=None, factor=None):
    """Truth of logits (N, 1), each by itself; targets (N, 1), weights (N,). No cancellation."""
    n = len(logits)
    v, s, up = (np.ones(n, LD) if given is None else np.asarray(given).reshape(n).astype(LD)
                for given in (pos_weight, weight, factor))
    z, t = logits[:, 0].astype(LD), targets[:, 0].astype(LD)
    with np.errstate(all="ignore"):
        e = np.exp(-np.abs(z))
        far, near = 1 / (1 + e), e / (1 + e)
        up_slope, down_slope = np.where(z < 0, near, far), np.where(z < 0, far, near)
        yes_cost, no_cost = (np.log1p(e) + np.maximum(side, 0) for side in (-z, z))
        cost = np.where(v * t > 0, v * t * yes_cost, 0) + np.where(t < 1, (1 - t) * no_cost, 0)
        no, yes = (1 - t) * up_slope, v * t * down_slope
        loss = np.where(s > 0, s * cost, 0)
    w = np.where(s > 0, s * up, 0)
    zeros = np.zeros(n, LD)
    return Loss(
        loss=loss, gradient=np.where(s > 0, w * (no - yes), 0)[:, None], loss_scale=loss, lse=zeros,
        softmax=zeros[:, None], size=np.abs(w) * (v * t + 1), w=np.abs(w),
        scale=(np.abs(w) * (no + yes))[:, None], mass=zeros, loss_by_lse=zeros,
        gradient_by_lse=zeros[:, None], moved_loss=zeros, moved_gradient=zeros[:, None],
        growth=zeros + 1, overflow=np.maximum(cost, loss) >= LD(np.finfo(np.float64).max),
    )


def hessian_masses(targets, n_classes, class_weight=None, sample_weight=None, label_smoothing=0.0,
                   **_):
    """A of every row of cross-entropy, times its weight; 0 where its target is -100."""
    kept = targets if targets.ndim > 1 else np.maximum(targets, 0)
    owed = tree(shares(kept, n_classes, class_weight, label_smoothing))
    if targets.ndim == 1:
        owed = np.where(targets == -100, 0, owed)
    return owed * (1 if sample_weight is None else sample_weight)


def hessian(logits, targets, **options):
    """A p (1 - p) / tau^2 and the sum of its terms' absolute values, (N, C)."""
    tau = LD(options.get("temperature", 1.0))
    with np.errstate(all="ignore"):
        x = Exponentials.of(logits, float(tau))
        p = x.e / x.total[:, None]
        rest = 1 - p
        top = logits.argmax(axis=1)
        rest[np.arange(len(p)), top] = others(x.e, top) / x.total
    owed = (hessian_masses(targets, logits.shape[1], **options) / tau / tau)[:, None]
    return owed * p * rest, owed * (p + p * p)


#: By the loss's name.
LOSSES = {"cross_entropy": cross_entropy, "focal_loss": focal_loss,
          "kl_divergence": kl_divergence, "distillation_loss": distillation_loss,
          "nll_loss": nll_loss,
          "softmax_squared_error": squared_error,
          "sigmoid_binary_cross_entropy": sigmoid_binary_cross_entropy}
#: Losses of single logits: to the truth and the tests, rows of one class.
POINTWISE = ("sigmoid_binary_cross_entropy",)


def shares(targets, n_classes, class_weight=None, label_smoothing=0.0):
    """`row_shares` of rows, as longdouble."""
    if np.ndim(targets) == 1:
        t = (np.arange(n_classes) == targets[:, None]).astype(LD)
    else:
        t = targets.astype(LD)
    if label_smoothing:
        t = (1 - LD(label_smoothing)) * t + LD(label_smoothing) / n_classes
    return t if class_weight is None else t * np.asarray(class_weight).astype(LD)


# ---- distances -----------------------------------------------------------------------------------


def spacing(true, dtype):
    """Distance of neighbouring numbers of `dtype` at `true`; below F that of subnormals."""
    info = _FINFO[dtype]
    _, exponent = np.frexp(np.where(np.isfinite(true), true, 1))
    exponent = np.where(true == 0, info.minexp, exponent)
    exponent = np.clip(exponent - 1, info.minexp, info.maxexp - 1)
    return np.ldexp(LD(1), exponent - info.nmant)


def largest(dtype):
    """The largest finite number of a dtype."""
    return _FINFO[dtype].max


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
