"""Float64 arithmetic that keeps what it rounds, or rounds less than the plain operation.

A number is sometimes a pair `(high, low)`: their unevaluated sum, with |low| at most half a unit in
the last place of high.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float64s: TypeAlias = NDArray[np.float64]

#: ln 2 in two parts. The first ends in 20 zero bits: its product with any exponent is exact.
LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")

#: Veltkamp's constant: a number times this is what splits it into two of 26 bits.
SPLIT = 2.0**27 + 1

#: Up to here `tanh_gap` is the better part of tanh, above `one_minus_tanh`.
TANH_NEAR = 0.7
#: The last denominator of tanh's continued fraction that is used: leaving out the next costs less
#: than 2**-60 for arguments up to TANH_NEAR.
LAST_DENOMINATOR = 15.0

#: Sums of terms below 2**HIGHEST are formed as they are, others after scaling by 2**-DOWN: more
#: than 2**26 terms do not occur, and no cut may overflow.
HIGHEST = 960
DOWN = 128


def times(a: Float64s, b: Float64s | float) -> Float64s:
    """Return a b, with 0 inf = 0."""
    product = np.asarray(a * b)
    product[np.broadcast_to((a == 0.0) | (np.asarray(b) == 0.0), product.shape)] = 0.0
    return product


def two_sum(a: Float64s, b: Float64s) -> tuple[Float64s, Float64s]:
    """Return a + b as a pair (Knuth): without a rounding error."""
    high = a + b
    from_b = high - a
    return high, (a - (high - from_b)) + (b - from_b)


def split(a: Any) -> tuple[Any, Any]:
    """Return a as a pair of numbers of 26 bits (Veltkamp): products of such are exact."""
    scaled = SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high


def remainder(a: Float64s, quotient: Float64s, b: Float64s | float) -> Float64s:
    """Return a - quotient b, exactly (Dekker), quotient being a / b rounded.

    Where nothing overflows: |quotient| below 2**400, |b| within [2**-500, 2**500].
    """
    product = quotient * b
    q_high, q_low = split(quotient)
    b_high, b_low = split(b)
    error = q_low * b_low - (((product - q_high * b_high) - q_low * b_high) - q_high * b_low)
    return np.asarray((a - product) - error)


def over(high: Float64s, low: Float64s, divisor: float) -> tuple[Float64s, Float64s]:
    """Return (high + low) / divisor as a pair; `low` is overwritten."""
    if divisor != 1.0:
        quotient = high / divisor
        low = (remainder(high, quotient, divisor) + low) / divisor
        high = quotient
    # inf - inf, or overflow on the way: at -inf logits, and far beyond what low is needed for.
    low = np.asarray(low)  # of no axis it is a scalar
    low[~np.isfinite(low)] = 0.0
    return high, low


def tanh_gap(a: Float64s, error: Float64s) -> Float64s:
    """Return a - tanh a for 0 <= a <= TANH_NEAR, anything elsewhere; a is meant as a + error.

    Lambert's continued fraction, tanh a = a / (1 + K), K = a^2 / (3 + a^2 / (5 + ...)), in which
    everything is > 0: so is a - tanh a = a K / (1 + K), which keeps its digits for small a.
    """
    square = a * a
    denominator = np.full_like(a, LAST_DENOMINATOR)
    for odd in np.arange(LAST_DENOMINATOR - 2, 1, -2):
        denominator = odd + square / denominator
    k = square / denominator
    gap = a * k / (1 + k)
    return np.asarray(gap + error * (a - gap) ** 2)  # its derivative is tanh^2


def one_minus_tanh(a: Float64s, error: Float64s) -> tuple[Float64s, Float64s]:
    """Return 1 - tanh a for a >= 0 as a pair; a is meant as a + error.

    2 e / (1 + e) with e = exp(-2 a), whose rounding is all that is lost.
    """
    e = np.exp(-2.0 * a)
    below, below_low = two_sum(np.ones(()), e)
    high = 2.0 * e / below
    # error changes e by -2 error e, which changes the quotient by -2 error high / (1 + e).
    return high, (remainder(2.0 * e, high, below) - high * (below_low + 2.0 * error)) / below


def sums(terms: Float64s) -> Float64s:
    """Sum over the last axis of a 2-D array, which is overwritten.

    Each term is cut in two at the same power of two (Rump's extraction), chosen so that the high
    parts add up without rounding, in whatever order `np.sum` likes for the array's shape. What the
    low parts' sum rounds is far below the largest term, but must not depend on the shape either:
    they are added as a tree of halves, element by element. Plainly, a term near 1 would meet a
    rounding at each of 16 levels, and the sum would be 2 to 4 eps off.
    """
    n = terms.shape[1]
    most, least = terms.max(axis=1), terms.min(axis=1)
    largest = np.maximum(most, -least)
    _, exponent = np.frexp(largest)
    down = np.where(exponent > HIGHEST, DOWN, 0)
    if down.any():
        terms = np.ldexp(terms, -down[:, None])
    cut = np.ldexp(1.0, exponent - down + n.bit_length())[:, None]  # > the sum
    high = terms + cut
    high -= cut
    low = terms
    low -= high
    while n > 1:
        kept = (n + 1) // 2
        low[:, : n - kept] += low[:, kept:n]
        n = kept
    total = np.ldexp(high.sum(axis=1) + low[:, 0], down)
    # NaN, an infinity, or NaN for infinities of both signs.
    return np.asarray(np.where(np.isfinite(largest), total, most + least))


def add_log1p(m: Float64s, m_low: Float64s, other: Float64s) -> Float64s:
    """Return m + m_low + log(1 + other), other >= 0, also where the two nearly cancel.

    The logarithm as one number is rounded at its own size (2**-50 for 14, the log of a million);
    at a sum near 0 that would stand. With 1 + other = f 2**n, n ln2 is exact in two parts,
    m + n ln2 keeps its rounding error, and log f, within ln(2)/2 of 0, is rounded below 2**-54.
    """
    f, n = np.frexp(1 + other)
    below = f < np.sqrt(0.5)
    f = np.where(below, 2 * f, f)
    n = np.where(below, n - 1, n)
    log_f = np.where(n == 0, np.log1p(other), np.log(f))
    high, error = two_sum(m, n * LN2_HIGH)
    total = high + (error + (m_low + (n * LN2_LOW + log_f)))
    return np.where(np.isinf(high), high, total)


def odd_float32(values: Float64s) -> NDArray[np.float32]:
    """Round to float32 so that rounding on to fewer bits gives what one rounding would.

    Where a number is not a float32 the neighbour with the odd significand stands for it: never a
    number halfway between two of a shorter format.
    """
    near = values.astype(np.float32)
    even = (near.view(np.uint32) & 1) == 0
    outward = np.where(values > near, np.float32(np.inf), np.float32(-np.inf))
    return np.where(even & (near != values), np.nextafter(near, outward), near)
