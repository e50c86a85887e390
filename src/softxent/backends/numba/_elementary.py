"""The arithmetic of the walk: `backends/cython/elementary.h` for Numba, formula by formula.

That file says what each function does, how exactly, and why; a constant's name here is its name
there without `SX_`. FMA is a condition: without it this backend is not available.

float32 logits: exp in float32, sums and heads in float64. float64 logits: all in float64. NaN goes
through every function but `log_reduced` of `split_log`; -inf gives exp +0.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba.core import types

from softxent.backends.numba._jit import (
    as_type,
    bits_of,
    by_type,
    copysign,
    fabs,
    float_of,
    fma,
    inlined,
    power_in,
    rint,
    set_float_state,
)

_hex = float.fromhex
INF = float("inf")
NAN = float("nan")

LOG2E = _hex("0x1.71547652b82fep+0")
LN2 = _hex("0x1.62e42fefa39efp-1")
LN2_REST = _hex("0x1.abc9e3b39803fp-56")
LN2_32 = _hex("0x1.62e42feep-1")
LN2_32_REST = _hex("0x1.a39ef35793c76p-33")
LN2_24_F32 = np.float32(_hex("0x1.62e430p-1"))
LN2_24_REST_F32 = np.float32(_hex("-0x1.05c610p-29"))
SQRT2 = _hex("0x1.6a09e667f3bcdp+0")
SQRT2_LESS_1 = _hex("0x1.a827999fcef32p-2")
MAGIC_F32, MAGIC_F64 = _hex("0x1.8p+23"), _hex("0x1.8p+52")
BIAS_F32, BIAS_F64 = 127.0, 1023.0
LIMIT_F32, LIMIT_F64 = _hex("0x1p20"), _hex("0x1p40")
OUT_OF_REACH = 1024.0

Q0_F32 = np.float32(_hex("0x1.fffffap-2"))
Q1_F32 = np.float32(_hex("0x1.555470p-3"))
Q2_F32 = np.float32(_hex("0x1.55598ep-5"))
Q3_F32 = np.float32(_hex("0x1.125214p-7"))
Q4_F32 = np.float32(_hex("0x1.69fc3ap-10"))
Q0_F64 = _hex("0x1.0000000000009p-1")
Q1_F64 = _hex("0x1.5555555555558p-3")
Q2_F64 = _hex("0x1.5555555550387p-5")
Q3_F64 = _hex("0x1.111111110f7e7p-7")
Q4_F64 = _hex("0x1.6c16c18617fa4p-10")
Q5_F64 = _hex("0x1.a01a01b019bfep-13")
Q6_F64 = _hex("0x1.a01993751a68cp-16")
Q7_F64 = _hex("0x1.71ddf68d91b88p-19")
Q8_F64 = _hex("0x1.28b44b9651a1fp-22")
Q9_F64 = _hex("0x1.af63731e21625p-26")

R0 = _hex("0x1.5555555555558p-1")
R1 = _hex("0x1.99999999952ccp-2")
R2 = _hex("0x1.2492492df3ba9p-2")
R3 = _hex("0x1.c71c62e26208bp-3")
R4 = _hex("0x1.7462b58e46ebep-3")
R5 = _hex("0x1.39fe42e9740a7p-3")
R6 = _hex("0x1.2b59b713616c9p-3")

THIRD = _hex("-0x1.5555555555555p-2")
THIRD_REST = _hex("-0x1.5555555555555p-56")
TANH_0 = _hex("0x1.1111111111111p-3")
TANH_1 = _hex("-0x1.ba1ba1ba1b9a2p-5")
TANH_2 = _hex("0x1.664f4882bb912p-6")
TANH_3 = _hex("-0x1.226e355cd9bddp-7")
TANH_4 = _hex("0x1.d6d3d0685fa9cp-9")
TANH_5 = _hex("-0x1.7da35954f10b9p-10")
TANH_6 = _hex("0x1.35577cdd2e3acp-11")
TANH_7 = _hex("-0x1.f56fafe4f237cp-13")
TANH_8 = _hex("0x1.9616d52da0164p-14")
TANH_9 = _hex("-0x1.474b580171f39p-15")
TANH_10 = _hex("0x1.024cc2ecbbd0cp-16")
TANH_11 = _hex("-0x1.7d5c4b2449ff0p-18")
TANH_12 = _hex("0x1.df24fb17feea2p-20")
TANH_13 = _hex("-0x1.b26abbeb78e17p-22")
TANH_14 = _hex("0x1.96cc3f6f32f98p-25")
TANH_SHORT_0 = _hex("0x1.1111110b40410p-3")
TANH_SHORT_1 = _hex("-0x1.ba1b93550d7e4p-5")
TANH_SHORT_2 = _hex("0x1.664c547335b28p-6")
TANH_SHORT_3 = _hex("-0x1.2232624a10f36p-7")
TANH_SHORT_4 = _hex("0x1.d218cb9471f17p-9")
TANH_SHORT_5 = _hex("-0x1.62e25282f0cf3p-10")
TANH_SHORT_6 = _hex("0x1.b991f210f4801p-12")
TANH_SHORT_7 = _hex("-0x1.357342a222c75p-14")
LOG1P_0_F32 = np.float32(_hex("0x1.0000000000000p+0"))
LOG1P_1_F32 = np.float32(_hex("-0x1.ffffb80000000p-2"))
LOG1P_2_F32 = np.float32(_hex("0x1.554bd60000000p-2"))
LOG1P_3_F32 = np.float32(_hex("-0x1.ff02540000000p-3"))
LOG1P_4_F32 = np.float32(_hex("0x1.92b4300000000p-3"))
LOG1P_5_F32 = np.float32(_hex("-0x1.38b9080000000p-3"))
LOG1P_6_F32 = np.float32(_hex("0x1.afdde80000000p-4"))
LOG1P_7_F32 = np.float32(_hex("-0x1.cdd0080000000p-5"))
LOG1P_8_F32 = np.float32(_hex("0x1.402f4c0000000p-6"))
LOG1P_9_F32 = np.float32(_hex("-0x1.a04aca0000000p-9"))
INVERSE_0_F32 = np.float32(_hex("0x1.6a09c20000000p+1"))
INVERSE_1_F32 = np.float32(_hex("-0x1.783c560000000p+1"))
INVERSE_2_F32 = np.float32(_hex("0x1.54bde40000000p+0"))
INVERSE_3_F32 = np.float32(_hex("-0x1.c652860000000p-3"))
INVERSE_0_F64 = _hex("0x1.6a09c2c5e0f16p+1")
INVERSE_1_F64 = _hex("-0x1.783c56f5cba58p+1")
INVERSE_2_F64 = _hex("0x1.54bde47e00e33p+0")
INVERSE_3_F64 = _hex("-0x1.c65285fd56843p-3")
TANH_UP_TO = 0.9

LOG2E_F32, _ONE_F32, _MAGIC = np.float32(LOG2E), np.float32(1.0), np.float32(MAGIC_F32)
_EXPONENT_ONE = 0x3FF0000000000000
_EXPONENT_52 = 0x4330000000000000
_MANTISSA = 0x000FFFFFFFFFFFFF


# ---- exp -----------------------------------------------------------------------------------------

#: A temperature, as exp needs it; None where there is none, and branches on that cost nothing.
Scale = namedtuple("Scale", "temperature inverse octaves first last "
                            "inverse_f32 octaves_f32 first_f32 last_f32")


@inlined
def scale_by(temperature):
    high = temperature * LN2
    rest = fma(temperature, LN2, -high) + temperature * LN2_REST
    octaves = LOG2E / temperature
    first_f32 = np.float32(high)
    return Scale(temperature, 1.0 / temperature, octaves, high, rest,
                 np.float32(1.0 / temperature), np.float32(octaves), first_f32,
                 np.float32((high - first_f32) + rest))


@inlined
def exp_rest_f32(r, t):
    q = fma(Q4_F32, r, Q3_F32)
    q = fma(q, r, Q2_F32)
    q = fma(q, r, Q1_F32)
    q = fma(q, r, Q0_F32)
    return fma(fma(q, r, _ONE_F32), r, _ONE_F32) * power_in(t)


@inlined
def exp_q_f64(r):
    q = fma(Q9_F64, r, Q8_F64)
    q = fma(q, r, Q7_F64)
    q = fma(q, r, Q6_F64)
    q = fma(q, r, Q5_F64)
    q = fma(q, r, Q4_F64)
    q = fma(q, r, Q3_F64)
    q = fma(q, r, Q2_F64)
    q = fma(q, r, Q1_F64)
    return fma(q, r, Q0_F64)


@inlined
def exp_rest_f64(r, t):
    return fma(fma(exp_q_f64(r), r, 1.0), r, 1.0) * power_in(t)


@inlined
def exp_f32(z, k, low):
    z = low if low > z else z
    t = fma(z, LOG2E_F32, k)
    n = t - k
    r = fma(n, -LN2_24_F32, z)
    return exp_rest_f32(fma(n, -LN2_24_REST_F32, r), t)


@inlined
def exp_f64(z, k, low):
    z = low if low > z else z
    t = fma(z, LOG2E, k)
    n = t - k
    r = fma(n, -LN2, z)
    return exp_rest_f64(fma(n, -LN2_REST, r), t)


@inlined
def exp_scaled_f32(x, k, low, scale):
    x = low if low > x else x
    # By k, which may be odd, a half would be rounded otherwise beside another power: elementary.h.
    n = fma(x, scale.octaves_f32, _MAGIC) - _MAGIC
    r = fma(n, -scale.first_f32, x)
    return exp_rest_f32(fma(n, -scale.last_f32, r) * scale.inverse_f32, n + k)


@inlined
def exp_scaled_f64(x, k, low, scale):
    x = low if low > x else x
    n = fma(x, scale.octaves, MAGIC_F64) - MAGIC_F64
    r = fma(n, -scale.first, x)
    return exp_rest_f64(fma(n, -scale.last, r) * scale.inverse, n + k)


def _exp_of(z, k, low, scale):
    if isinstance(scale, types.NoneType):
        if z == types.float32:
            return lambda z, k, low, scale: exp_f32(z, k, low)
        return lambda z, k, low, scale: exp_f64(z, k, low)
    if z == types.float32:
        return lambda z, k, low, scale: exp_scaled_f32(z, k, low, scale)
    return lambda z, k, low, scale: exp_scaled_f64(z, k, low, scale)


@by_type(_exp_of)
def exp_of(z, k, low, scale):
    """Return exp(z / temperature) 2^-n in z's type; k and low are `power_of(n)`."""


def _power_of(n, zero, scale):
    magic, bias = (MAGIC_F32, BIAS_F32) if zero == types.float32 else (MAGIC_F64, BIAS_F64)
    top = magic + bias
    if isinstance(scale, types.NoneType):
        return lambda n, zero, scale: (as_type(zero, top - n), as_type(zero, (n - bias) * LN2))
    return lambda n, zero, scale: (
        as_type(zero, top - n),
        as_type(zero, as_type(zero, (n - bias) * LN2) * scale.temperature))


@by_type(_power_of)
def power_of(n, zero, scale):
    """Return k and low of the reference power n, in zero's type."""


def _limit_of(zero, scale):
    limit = LIMIT_F32 if zero == types.float32 else LIMIT_F64
    if isinstance(scale, types.NoneType):
        return lambda zero, scale: limit
    # The rounding of log2 e / temperature is not as kind as log2 e's own.
    return lambda zero, scale: 0.25 * limit * scale.temperature


@by_type(_limit_of)
def limit_of(zero, scale):
    """Return the largest |max| of a row that the pieces serve."""


@inlined
def inverse_of(scale):
    if scale is None:
        return 1.0
    return scale.inverse


@inlined
def power_near(z, scale):
    # One less than the nearest: S is then above 1, and every normal probability comes from a
    # normal e.
    if scale is None:
        return rint(z * LOG2E) - 1.0
    return rint(z * scale.octaves) - 1.0


@inlined
def reference_parts(n, scale):
    # n ln2 (times the temperature) in two parts, as a logit: high, low.
    if scale is None:
        high = n * LN2
        return high, fma(n, LN2_REST, fma(n, LN2, -high))
    high = n * scale.first
    return high, fma(n, scale.last, fma(n, scale.first, -high))


@inlined
def product_rest(a, b, p):
    return fma(a, b, -p)


# ---- softcap -------------------------------------------------------------------------------------


@inlined
def softcap_f64(x, cap, half):
    # The capped logit and the slope there.
    size = fabs(x)
    per_cap = 0.5 * half.inverse
    k = MAGIC_F64 + BIAS_F64 - 0.0
    low = (0.0 - BIAS_F64) * LN2 * half.temperature
    # E = 1 + s, times a power of two: exp with its last addition in two parts.
    t = -size
    r = low if low > t else t
    t = fma(r, half.octaves, k)
    n = t - k
    r = fma(n, -half.first, r)
    r = fma(n, -half.last, r) * half.inverse
    q = exp_q_f64(r)
    s = fma(q * r, r, r)
    p = power_in(t)
    e = 1.0 + s
    e_low = ((1.0 - e) + s) * p
    e = e * p
    # 2E / (1 + E), the division's remainder taken along.
    total = 1.0 + e
    total_low = ((1.0 - total) + e) + e_low
    per_total = 1.0 / total
    q = 2.0 * e * per_total
    q_low = q * total
    q_low = ((2.0 * e - q_low) - product_rest(q, total, q_low)
             + (2.0 * e_low - q * total_low)) * per_total
    c = cap * q
    beyond = cap - c
    c = ((cap - beyond) - c) - product_rest(cap, q, c) - cap * q_low
    beyond += c

    y = size * per_cap
    c = y * cap
    y_low = ((size - c) - product_rest(y, cap, c)) * per_cap
    w = y * y
    w_low = product_rest(y, y, w) + 2.0 * y * y_low
    q = fma(TANH_14, w, TANH_13)
    q = fma(q, w, TANH_12)
    q = fma(q, w, TANH_11)
    q = fma(q, w, TANH_10)
    q = fma(q, w, TANH_9)
    q = fma(q, w, TANH_8)
    q = fma(q, w, TANH_7)
    q = fma(q, w, TANH_6)
    q = fma(q, w, TANH_5)
    q = fma(q, w, TANH_4)
    q = fma(q, w, TANH_3)
    q = fma(q, w, TANH_2)
    q = fma(q, w, TANH_1)
    q = fma(q, w, TANH_0)
    q = q * w
    p = THIRD + q
    p_low = ((THIRD - p) + q) + THIRD_REST
    c = p * w
    q = product_rest(p, w, c) + (p_low * w + p * w_low)
    # size + size (c + q), size c kept whole.
    p = size * c
    near_0 = size + p
    near_0 += ((size - near_0) + p) + (product_rest(size, c, p) + size * q)

    slope = 4.0 * e * per_total * per_total if size < INF else 1.0
    y = near_0 if y < TANH_UP_TO else beyond
    y = y if size < INF else size
    return copysign(y if x == x else x, x), slope


@inlined
def softcap_f32(given, cap, half):
    x = np.float64(given)
    size = fabs(x)
    low = (0.0 - BIAS_F64) * LN2 * half.temperature
    e = exp_scaled_f64(-size, MAGIC_F64 + BIAS_F64 - 0.0, low, half)
    per_total = 1.0 / (1.0 + e)
    y = size * half.inverse * 0.5
    w = y * y
    q = fma(TANH_SHORT_7, w, TANH_SHORT_6)
    q = fma(q, w, TANH_SHORT_5)
    q = fma(q, w, TANH_SHORT_4)
    q = fma(q, w, TANH_SHORT_3)
    q = fma(q, w, TANH_SHORT_2)
    q = fma(q, w, TANH_SHORT_1)
    q = fma(q, w, TANH_SHORT_0)
    q = fma(q, w, THIRD)
    y = size + size * (q * w) if y < TANH_UP_TO else cap - cap * (2.0 * e * per_total)
    slope = np.float32(4.0 * e * per_total * per_total) if size < INF else _ONE_F32
    y = y if size < INF else size
    return np.float32(copysign(y if x == x else x, x)), slope


def _softcap_of(x, cap, half):
    if x == types.float32:
        return lambda x, cap, half: softcap_f32(x, cap, half)
    return lambda x, cap, half: softcap_f64(x, cap, half)


@by_type(_softcap_of)
def softcap_of(x, cap, half):
    """Return cap tanh(x / cap) and its derivative, in x's type; `half` is `scale_by(cap / 2)`."""


# ---- sums ----------------------------------------------------------------------------------------


@inlined
def pow2(d):
    # 2^d for d <= 1023; +0 below -1022.
    return 0.0 if d < -1022.0 else float_of((np.int64(d) + 1023) << 52, 0.0)


@inlined
def two_sum(total, carry, j, x):
    # total[j] + carry[j] += x, without loss: `carry` takes what the addition rounds away.
    before = total[j]
    after = before + x
    part = after - before
    carry[j] += (before - (after - part)) + (x - part)
    total[j] = after


@inlined
def kahan(total, carry, j, x):
    # total[j] + carry[j] += x for many x of one sign.
    before = total[j]
    y = x + carry[j]
    after = before + y
    carry[j] = y - (after - before)
    total[j] = after


@inlined
def times(p, factor):
    # 0 times a factor that overflowed is 0; times NaN, a row without a result, it is NaN.
    return 0.0 if p == 0.0 and factor == factor else p * factor


_LEAST_NORMAL = 2.0**-1022

# ---- log -----------------------------------------------------------------------------------------


@inlined
def log_reduced(f, k):
    s = f / (2.0 + f)
    w = s * s
    half_square = 0.5 * f * f
    q = fma(R6, w, R5)
    q = fma(q, w, R4)
    q = fma(q, w, R3)
    q = fma(q, w, R2)
    q = fma(q, w, R1)
    q = fma(q, w, R0)
    return k * LN2_32 - ((half_square - (s * (half_square + q * w) + k * LN2_32_REST)) - f)


@inlined
def split_log(x):
    # f and k of log x, x normal, positive and finite.
    bits = bits_of(x)
    m = float_of((bits & _MANTISSA) | _EXPONENT_ONE, 0.0)
    exponent = float_of(((bits >> 52) & 0xFFF) | _EXPONENT_52, 0.0) - (4503599627370496.0 + 1023.0)
    above = m > SQRT2
    return (m * 0.5 if above else m) - 1.0, exponent + 1.0 if above else exponent


@inlined
def split_log1p(x):
    above = x > SQRT2_LESS_1
    return (x - 1.0) * 0.5 if above else x, 1.0 if above else 0.0


@inlined
def split_log1p_or_log(log1p_of_share, share, total):
    f_share, k_share = split_log1p(share)
    f_total, k_total = split_log(total)
    return f_share if log1p_of_share else f_total, k_share if log1p_of_share else k_total


@inlined
def log1p(x):
    f, k = split_log1p(x)
    return log_reduced(f, k)


@inlined
def log1p_f32(x):
    q = fma(LOG1P_9_F32, x, LOG1P_8_F32)
    q = fma(q, x, LOG1P_7_F32)
    q = fma(q, x, LOG1P_6_F32)
    q = fma(q, x, LOG1P_5_F32)
    q = fma(q, x, LOG1P_4_F32)
    q = fma(q, x, LOG1P_3_F32)
    q = fma(q, x, LOG1P_2_F32)
    q = fma(q, x, LOG1P_1_F32)
    return fma(q * x, x, x)  # the first coefficient is 1


@inlined
def inverse_f32(d):
    r = fma(INVERSE_3_F32, d, INVERSE_2_F32)
    r = fma(r, d, INVERSE_1_F32)
    r = fma(r, d, INVERSE_0_F32)
    r = fma(r, fma(-d, r, np.float32(1.0)), r)
    return fma(r, fma(-d, r, np.float32(1.0)), r)


@inlined
def inverse_f64(d):
    r = fma(INVERSE_3_F64, d, INVERSE_2_F64)
    r = fma(r, d, INVERSE_1_F64)
    r = fma(r, d, INVERSE_0_F64)
    r = fma(r, fma(-d, r, 1.0), r)
    r = fma(r, fma(-d, r, 1.0), r)
    return fma(r, fma(-d, r, 1.0), r)


def _near_inverse(d):
    if d == types.float32:
        return lambda d: inverse_f32(d)
    return lambda d: inverse_f64(d)


@by_type(_near_inverse)
def near_inverse(d):
    """Return 1 / d of 1 <= d <= 2."""


def _log1p_of(x):
    if x == types.float32:
        return lambda x: log1p_f32(x)
    return lambda x: log1p(x)


@by_type(_log1p_of)
def log1p_of(x):
    """Return log(1 + x), 0 <= x <= 1, in x's type."""


@inlined
def log1p_any(x):
    f, k = split_log1p_or_log(x <= 1.0, x if x <= 1.0 else 1.0, 1.0 + x)
    return log_reduced(f, k)


@inlined
def power(x, exponent):
    f, k = split_log(x)
    t = 2.0 + f
    s = f / t
    w = s * s
    p = s * t
    low = (((f - p) - product_rest(s, t, p)) - s * (f - (t - 2.0))) / t
    q = fma(R6, w, R5)
    q = fma(q, w, R4)
    q = fma(q, w, R3)
    q = fma(q, w, R2)
    q = fma(q, w, R1)
    q = fma(q, w, R0)
    low = (2.0 * low + s * w * q) + k * LN2_32_REST
    p = k * LN2_32
    high = p + 2.0 * s
    low += 0.0 if k == 0.0 else (p - high) + 2.0 * s
    p = high + low
    low -= p - high
    high = p
    p = exponent * high
    p = p if p > -1000.0 else -1000.0
    low = product_rest(exponent, high, p) + exponent * low if p > -1000.0 else 0.0
    e = exp_f64(p, MAGIC_F64 + BIAS_F64 - 0.0, (0.0 - BIAS_F64) * LN2)
    e = e + e * low
    return e if x > 0.0 else (0.0 if exponent > 0.0 else 1.0)


@inlined
def self_information(t):
    # t log t; with subnormals on: their logarithm is that of 2^54 t.
    tiny = t < _LEAST_NORMAL
    f, k = split_log(t * 18014398509481984.0 if tiny else t)
    share = t if t > 0.0 else 0.0
    return share * log_reduced(f, k - 54.0 if tiny else k)


# ---- floating-point state ------------------------------------------------------------------------


@inlined
def subnormals(kept):
    # Rounding to nearest, nothing trapped; flush-to-zero and denormals-are-zero unless `kept`.
    set_float_state(0x1F80 if kept else 0x9FC0)
