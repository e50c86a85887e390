"""Consecutive rows, and loads and stores of any element: `backends/cython/call.h`."""

from __future__ import annotations

import numpy as np

from softxent.backends.numba._jit import (
    bits_of,
    fabs,
    float_of,
    float_of_half,
    half_of_float,
    inlined,
    load,
    part,
    stay_apart,
    store,
)
from softxent.backends.numba._layout import (
    TYPE_BRAIN,
    TYPE_F32,
    TYPE_F64,
    TYPE_FLOAT,
    TYPE_SIZE,
    TYPE_SWAPPED,
    TYPE_UNSIGNED,
)


@inlined
def lesser(a, b):
    return a if a < b else b


@inlined
def greater(a, b):
    return a if a > b else b


# ---- consecutive rows ----------------------------------------------------------------------------


@part
def cursor_move(c, call, axis, steps):
    c.logits += steps * call.logits.rows.strides[axis]
    c.out_map += steps * call.out_map.rows.strides[axis]
    c.soft += steps * call.soft.rows.strides[axis]
    c.targets += steps * call.targets.strides[axis]
    c.sample_weight += steps * call.sample_weight.strides[axis]
    c.upstream += steps * call.upstream.strides[axis]
    c.pos_weight += steps * call.pos_weight.strides[axis]


@part
def cursor_start(c, call, row):
    stay_apart()
    c.logits = call.logits.rows.data
    c.out_map = call.out_map.rows.data
    c.soft = call.soft.rows.data
    c.targets = call.targets.data
    c.sample_weight = call.sample_weight.data
    c.upstream = call.upstream.data
    c.pos_weight = call.pos_weight.data
    axis = call.n_axes - 1
    while axis >= 0:
        c.index[axis] = row % call.shape[axis]
        row //= call.shape[axis]
        cursor_move(c, call, axis, c.index[axis])
        axis -= 1


@part
def cursor_skip(c, call, rows):
    # By rows that the last axis still has.
    axis = call.n_axes - 1
    while axis >= 0:
        cursor_move(c, call, axis, rows)
        c.index[axis] += rows
        if c.index[axis] < call.shape[axis] or axis == 0:
            return
        cursor_move(c, call, axis, -c.index[axis])
        c.index[axis] = 0
        rows = 1
        axis -= 1


@part
def cursor_next(c, call):
    cursor_skip(c, call, 1)


@inlined
def cursor_run(c, call):
    # How many rows follow at the last axis's strides.
    return call.shape[call.n_axes - 1] - c.index[call.n_axes - 1]


# ---- loads and stores of one element, whatever its alignment and byte order ----------------------

_I16, _I32, _I64 = np.int16(0), np.int32(0), np.int64(0)
_U8, _U16 = np.uint8(0), np.uint16(0)
_F32, _F64 = np.float32(0), np.float64(0)
_MOST, _LEAST = float.fromhex("0x1.fffffffffffffp+1023"), float.fromhex("0x1p-1074")
INF = float("inf")


@part
def load_bits(p, first, size, swapped):
    # `size` bytes, those from `first` on of an element's little-endian ones.
    u = 0
    for i in range(8):
        if i < size:
            at = p - first - i if swapped else p + first + i
            u |= np.int64(load(at, _U8)) << (8 * i)
    return u


@inlined
def load_own_bits(p, kind):
    size = kind & TYPE_SIZE
    swapped = (kind & TYPE_SWAPPED) != 0
    return load_bits(p + size - 1 if swapped else p, 0, size, swapped)


@inlined
def load_integer(p, kind):
    # Of any width and byte order; a uint64 from 2^63 on comes out negative.
    if kind == 8:
        return load(p, _I64)
    u = load_own_bits(p, kind)
    if kind & TYPE_UNSIGNED:
        return u
    spare = 64 - 8 * (kind & TYPE_SIZE)
    return (u << spare) >> spare


@part
def load_long_double(p, kind):
    # x87's: a sign and 15 bits of exponent over 64 of mantissa. What float64 cannot hold stays
    # finite, and of its sign.
    stay_apart()
    swapped = (kind & TYPE_SWAPPED) != 0
    at = p + (kind & TYPE_SIZE) - 1 if swapped else p
    mantissa = load_bits(at, 0, 8, swapped)
    exponent = load_bits(at, 8, 2, swapped)
    negative = exponent >= 0x8000
    exponent &= 0x7FFF
    if exponent == 0x7FFF:
        x = INF if mantissa << 1 == 0 else INF - INF
    elif mantissa == 0:
        x = 0.0
    else:
        # mantissa 2^power, rounded to nearest even at the last place that float64 has there
        power = exponent - (16383 + 63)
        if mantissa > 0:  # not normal, but numbers all the same
            while mantissa > 0:
                mantissa <<= 1
                power -= 1
        drop = greater(11, -1074 - power)
        if power + 63 > 1023:
            x = _MOST
        elif drop > 64:
            x = _LEAST
        else:
            top = np.uint64(mantissa)
            kept = np.uint64(0) if drop == 64 else top >> np.uint64(drop)
            last = np.uint64(1) << np.uint64(drop - 1)
            rest = top & (last | (last - np.uint64(1)))
            if rest > last or (rest == last and kept & np.uint64(1) != np.uint64(0)):
                kept += np.uint64(1)
            # kept counts units of 2^(power + drop); its own exponent is that of 2^52, or lower.
            biased = greater(power + drop + 1074, 0)
            x = float_of(np.int64(kept) + (biased << 52), 0.0)
            x = lesser(greater(x, _LEAST), _MOST)
    return -x if negative else x


@part
def load_real(p, kind):
    if kind == TYPE_F64:
        return load(p, _F64)
    if kind == TYPE_F32:
        return np.float64(load(p, _F32))
    return load_other_real(p, kind)


@part
def load_other_real(p, kind):
    stay_apart()
    size = kind & TYPE_SIZE
    if kind & TYPE_FLOAT:
        if size > 8:
            return load_long_double(p, kind)
        u = load_own_bits(p, kind)
        if size == 2:
            if kind & TYPE_BRAIN:
                return np.float64(float_of(u << 16, _F32))
            return np.float64(float_of_half(np.int16(u)))
        return float_of(u, _F64) if size == 8 else np.float64(float_of(u, _F32))
    if (kind & TYPE_UNSIGNED) and size == 8:
        return np.float64(np.uint64(load_own_bits(p, kind)))
    return np.float64(load_integer(p, kind))


@part
def store_real(p, kind, value):
    size = kind & TYPE_SIZE
    narrow = np.float32(value)
    if size == 8:
        u = bits_of(value)
    elif size == 4:
        u = np.int64(bits_of(narrow))
    elif kind & TYPE_BRAIN:
        u = np.int64(brain_of_float(narrow))
    else:
        u = np.int64(half_of_float(narrow))
    if kind & TYPE_SWAPPED:
        for i in range(8):
            if i < size:
                store(p + (size - 1 - i), np.uint8((u >> (8 * i)) & 0xFF))
    elif size == 8:
        store(p, u)
    elif size == 4:
        store(p, np.int32(u))
    else:
        store(p, np.int16(u))


@inlined
def brain_of_float(x):
    u = np.int64(bits_of(x)) & 0xFFFFFFFF
    rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    return np.int16((u >> 16) | 0x40 if u & 0x7FFFFFFF > 0x7F800000 else rounded)


@inlined
def float_of_brain(h):
    return float_of(np.int32(h) << 16, _F32)


# ---- what a probability target may be ------------------------------------------------------------
# By the bits, for subnormals count: as numbers they are zero inside a walk.


@inlined
def is_positive(t):
    b = bits_of(t)
    return (b > 0) & (t < INF)


@inlined
def is_refused(t):
    # Negative, NaN or infinite; -0 is not.
    return ((bits_of(t) < 0) & (bits_of(fabs(t)) != 0)) | (not t < INF)


@inlined
def is_no_share(t):
    # Outside [0, 1].
    return not ((t >= 0.0) & (t <= 1.0))


_LEAST_F32, _MOST_F32 = 2.0**-149, float.fromhex("0x1.fffffep127")


@inlined
def probability_f32(t):
    # `call.h`, sx_probability_f32.
    if t < 0.0:
        return np.float32(-1.0)
    if 0.0 < t < _LEAST_F32:
        return np.float32(_LEAST_F32)
    if _MOST_F32 < t < INF:
        return np.float32(2.0**127)
    return np.float32(t)
