"""One write: the gradient or the softmax, g_k = e_k a + b u_k + c v_k, the target's entry last."""

from __future__ import annotations

import numpy as np

from softxent.backends.numba._elementary import (
    exp_of,
    inverse_of,
    log1p,
    pow2,
    power_of,
    subnormals,
    times,
)
from softxent.backends.numba._exp_many import MANY, exp_times_many
from softxent.backends.numba._head import half_way
from softxent.backends.numba._jit import (
    address_of,
    as_type,
    beyond_plain,
    choose,
    fabs,
    fma,
    inlined,
    moved,
    part,
    pointer_at,
    stack,
    stay_apart,
)
from softxent.backends.numba._kept import kept_block, kept_steps, least_shift
from softxent.backends.numba._layout import GROUP, TYPE_F32, TYPE_F64
from softxent.backends.numba._load import load_real, store_real
from softxent.backends.numba._reduce import weighted
from softxent.backends.numba._rows import (
    HESSIAN,
    LOG_SOFTMAX,
    NAN,
    NARROW_LEAST,
    NARROW_MOST,
    POISONED,
    ROOM_MASS,
    SKIPPED,
    SOFTMAX,
    at_least,
    capped,
    class_weight_of,
    is_plain,
    is_single,
    is_squared,
    room_at,
    tick,
)


@inlined
def is_narrow(factor):
    # A NaN too: all of its row becomes NaN either way.
    size = fabs(factor)
    return not ((factor != 0.0) & ((size < NARROW_LEAST) | (size > NARROW_MOST)))


@inlined
def at_slope(slope, has_slope, i):
    return np.float64(slope[i]) if has_slope else 1.0


@inlined
def widely(e, factor, slope):
    # A slope of 0 takes a factor that overflowed with it.
    return as_type(e, times(slope, times(np.float64(e), factor)))


@inlined
def is_wide(call, rows, j):
    # Whether a factor of the row's map needs float64.
    return not (is_narrow(rows.a[j])
                and (call.soft.rows.data == 0 or is_narrow(rows.b[j]))
                and (call.smoothing == 0.0 or is_narrow(rows.c[j])))


@inlined
def has_kept(call, rows, j, k0, length, zero):
    # The address of a block's e, if its map needs no logits; else 0.
    kept = kept_block(rows, j, k0, length, zero)
    if kept != 0:
        steps = kept_steps(rows, j, k0)
        if is_wide(call, rows, j) or not ((steps >= least_shift(zero)) & (steps <= 0.0)):
            kept = 0
    return kept


@part
def map_run(rows, j, x, slope, has_slope, out, k0, length, scale, kept):
    # Gradient or softmax of consecutive classes; x and out are the same memory or apart. slope: the
    # softcap's; kept: of `has_kept`.
    stay_apart()
    zero = as_type(x[0], 0.0)
    a = as_type(zero, rows.a[j])
    k, low = power_of(rows.n[j], zero, scale)
    if not is_narrow(rows.a[j]):
        a_wide = rows.a[j]
        if has_slope:
            for i in range(length):
                out[i] = widely(exp_of(x[i], k, low, scale), a_wide, np.float64(slope[i]))
        else:
            for i in range(length):
                out[i] = widely(exp_of(x[i], k, low, scale), a_wide, 1.0)
        return
    if kept != 0:
        e = pointer_at(kept, zero)
        shift = as_type(zero, pow2(kept_steps(rows, j, k0)))
        for i in range(length):
            out[i] = fma(e[i] * shift, a, zero)
        return
    whole = 0
    if scale is None:
        whole = length // MANY * MANY
        for i in range(0, whole, MANY):
            exp_times_many(moved(x, i), moved(out, i), k, low, a)
    # Two loops, for a compiler that cannot know `the same or apart` runs a scalar one.
    if address_of(x) == address_of(out):
        for i in range(whole, length):
            out[i] = fma(exp_of(out[i], k, low, scale), a, zero)
    else:
        for i in range(whole, length):
            out[i] = fma(exp_of(x[i], k, low, scale), a, zero)
    if has_slope:
        for i in range(length):
            out[i] *= slope[i]


@part
def map_log(rows, j, x, out, length, scale):
    stay_apart()
    zero = as_type(x[0], 0.0)
    high = rows.high[j]
    low = rows.low[j]
    inverse = inverse_of(scale)
    if address_of(x) == address_of(out):
        for i in range(length):
            out[i] = as_type(zero, (np.float64(out[i]) - high) * inverse - low)
    else:
        for i in range(length):
            out[i] = as_type(zero, (np.float64(x[i]) - high) * inverse - low)


@beyond_plain(0.0)
def beside(call, rows, j, t, k):
    # b u + c v of one class, in float64.
    total = 0.0
    v = 1.0
    if call.class_weight != 0:
        v = class_weight_of(call, k) / call.class_unit
    if call.soft.rows.data != 0:
        total = times(t * v, rows.b[j])
    if call.smoothing > 0.0:
        total += times(v, rows.c[j])
    return total


@beyond_plain(None)
def map_mixed(call, rows, j, x, t, has_t, slope, has_slope, out, k0, length, scale, room, kept):
    # The gradient where probabilities or smoothing are in it.
    stay_apart()
    zero = as_type(x[0], 0.0)
    b = as_type(zero, rows.b[j])
    c = as_type(zero, rows.c[j])
    if is_wide(call, rows, j):
        k, low = power_of(rows.n[j], zero, scale)
        for i in range(length):
            value = times(np.float64(exp_of(x[i], k, low, scale)), rows.a[j])
            value += beside(call, rows, j, np.float64(t[i]) if has_t else 0.0, k0 + i)
            out[i] = as_type(zero, times(at_slope(slope, has_slope, i), value))
        return
    map_run(rows, j, x, slope, False, out, k0, length, scale, kept)
    if has_t:
        u = weighted(call, t, k0, length, room_at(room, ROOM_MASS, zero))
        for i in range(length):
            out[i] = fma(u[i], b, out[i])
    if call.smoothing > 0.0:
        if call.class_weight_real == 0:
            for i in range(length):
                out[i] += c
        else:
            v = pointer_at(call.class_weight_real, zero)
            for i in range(length):
                out[i] = fma(v[k0 + i], c, out[i])
    if has_slope:
        for i in range(length):
            out[i] *= slope[i]


@inlined
def is_wide_square(rows, j):
    return not (is_narrow(rows.a[j]) and is_narrow(rows.q[j]) and is_narrow(rows.d[j]))


@inlined
def square_of(rows, j, e, t):
    # In map_square's order, for float64 has these bits on either way. 0 takes a factor that
    # overflowed with it.
    total = rows.a[j]
    total = fma(e, rows.q[j], total) if e != 0.0 else total
    total = fma(t, rows.d[j], total) if t != 0.0 else total
    return times(e, total)


@beyond_plain(None)
def map_square(call, rows, j, x, t, has_t, out, length, scale):
    # The squared error's gradient: e (a + q e + d t).
    stay_apart()
    zero = as_type(x[0], 0.0)
    a = as_type(zero, rows.a[j])
    q = as_type(zero, rows.q[j])
    d = as_type(zero, rows.d[j])
    k, low = power_of(rows.n[j], zero, scale)
    if is_wide_square(rows, j):
        for i in range(length):
            e = np.float64(exp_of(x[i], k, low, scale))
            out[i] = as_type(zero, square_of(rows, j, e, np.float64(t[i]) if has_t else 0.0))
    elif has_t:
        if address_of(x) == address_of(out):
            for i in range(length):
                e = exp_of(out[i], k, low, scale)
                out[i] = fma(e, fma(t[i], d, fma(e, q, a)), zero)
        else:
            for i in range(length):
                e = exp_of(x[i], k, low, scale)
                out[i] = fma(e, fma(t[i], d, fma(e, q, a)), zero)
    elif address_of(x) == address_of(out):
        for i in range(length):
            e = exp_of(out[i], k, low, scale)
            out[i] = fma(e, fma(e, q, a), zero)
    else:
        for i in range(length):
            e = exp_of(x[i], k, low, scale)
            out[i] = fma(e, fma(e, q, a), zero)


@part
def raise_to_floor(call, out, length):
    least = as_type(out[0], call.floor)
    if call.floor > 0.0:
        for i in range(length):
            out[i] = at_least(least, out[i])


@beyond_plain(None)
def map_columns_square(call, rows, t, has_t, e):
    stay_apart()
    zero = as_type(e[0], 0.0)
    a = stack(GROUP, zero)
    q = stack(GROUP, zero)
    d = stack(GROUP, zero)
    for j in range(GROUP):
        a[j] = rows.a[j]
        q[j] = rows.q[j]
        d[j] = rows.d[j]
        if j < rows.count and is_wide_square(rows, j):
            for i in range(call.n_classes):
                at = i * GROUP + j
                e[at] = as_type(zero, square_of(rows, j, np.float64(e[at]),
                                                np.float64(t[at]) if has_t else 0.0))
            a[j] = 1.0
            q[j] = 0.0
            d[j] = 0.0
    for i in range(call.n_classes):
        p = moved(e, i * GROUP)
        if has_t:
            u = moved(t, i * GROUP)
            for j in range(GROUP):
                p[j] = fma(p[j], fma(u[j], d[j], fma(p[j], q[j], a[j])), zero)
        else:
            for j in range(GROUP):
                p[j] = fma(p[j], fma(p[j], q[j], a[j]), zero)
    raise_to_floor(call, e, call.n_classes * GROUP)


@beyond_plain(None)
def map_columns_mixed(call, rows, t, has_t, slope, has_slope, e):
    stay_apart()
    zero = as_type(e[0], 0.0)
    a = stack(GROUP, zero)
    b = stack(GROUP, zero)
    c = stack(GROUP, zero)
    has_v = call.class_weight_real != 0
    v = pointer_at(call.class_weight_real, zero)
    for j in range(GROUP):
        a[j] = rows.a[j]
        b[j] = rows.b[j]
        c[j] = rows.c[j]
        if j < rows.count and is_wide(call, rows, j):
            for i in range(call.n_classes):
                at = i * GROUP + j
                value = times(np.float64(e[at]), rows.a[j])
                value += beside(call, rows, j, np.float64(t[at]) if has_t else 0.0, i)
                e[at] = as_type(zero, times(at_slope(slope, has_slope, at), value))
                if has_slope:
                    slope[at] = 1.0
            a[j] = 1.0
            b[j] = 0.0
            c[j] = 0.0
    for i in range(call.n_classes):
        weight = v[i] if has_v else as_type(zero, 1.0)
        for j in range(GROUP):
            e[i * GROUP + j] = fma(e[i * GROUP + j], a[j], zero)
        if has_t:
            for j in range(GROUP):
                e[i * GROUP + j] = fma(t[i * GROUP + j] * weight, b[j], e[i * GROUP + j])
        if call.smoothing > 0.0:
            for j in range(GROUP):
                e[i * GROUP + j] = fma(weight, c[j], e[i * GROUP + j])


@part
def map_columns(call, rows, x, t, has_t, slope, has_slope, e, scale):
    # C <= 64: from kept e (log_softmax: from x) to the result, in e; the target's entry with it.
    # slope: the softcap's, used up here.
    stay_apart()
    zero = as_type(x[0], 0.0)
    classes = call.n_classes
    square = is_squared(call)
    mixed = not square and not is_plain(call)
    if call.op == LOG_SOFTMAX:
        inverse = inverse_of(scale)
        for i in range(classes):
            for j in range(GROUP):
                value = (np.float64(x[i * GROUP + j]) - rows.high[j]) * inverse - rows.low[j]
                e[i * GROUP + j] = as_type(zero, value)
        return
    a = stack(GROUP, zero)
    apart = stack(GROUP, zero)
    targets = stack(GROUP, zero)
    wide = np.int64(0)
    for j in range(GROUP):
        wide |= choose(is_narrow(rows.a[j]), np.int64(0), np.int64(1))
    for j in range(GROUP):
        a[j] = rows.a[j]
        apart[j] = rows.apart[j]
        targets[j] = rows.y[j]  # -1 in a softmax: no such class
    if wide != 0 and not mixed and not square:
        for j in range(rows.count):
            if not is_narrow(rows.a[j]):
                for i in range(classes):
                    at = i * GROUP + j
                    e[at] = widely(e[at], rows.a[j], at_slope(slope, has_slope, at))
                    if has_slope:
                        slope[at] = 1.0
                a[j] = 1.0
    if mixed:
        map_columns_mixed(call, rows, t, has_t, slope, has_slope, e)
    if square:
        map_columns_square(call, rows, t, has_t, e)
    if mixed or square:
        for j in range(GROUP):
            a[j] = 1.0
    if has_slope:
        for i in range(classes):
            for j in range(GROUP):
                at = i * GROUP + j
                e[at] = fma(e[at], a[j], zero) * slope[at]
        for j in range(GROUP):
            a[j] = 1.0
    if classes == 1 and call.op == SOFTMAX and not has_slope:
        for j in range(GROUP):
            e[j] = as_type(zero, rows.w[j]) if rows.a[j] == rows.a[j] else NAN  # 1, exactly
        return
    for i in range(classes):
        at_class = as_type(zero, i)
        for j in range(GROUP):
            value = fma(e[i * GROUP + j], a[j], zero)
            e[i * GROUP + j] = choose(targets[j] == at_class, apart[j], value)


@inlined
def kind_of(zero):
    return TYPE_F32 if is_single(zero) else TYPE_F64


@part
def map_slow(call, rows, j, g, g_stride, g_kind, scale, control):
    # A whole row that is not FAST, to address g; the logits and g may be the same memory.
    stay_apart()
    square = is_squared(call)
    mixed = not square and not is_plain(call)
    power_k, power_low = power_of(rows.n[j], 0.0, scale)
    subnormals(call.all_slow != 0)
    for k in range(call.n_classes):
        if rows.lane[j] == SKIPPED:
            value = 0.0
        elif rows.lane[j] == POISONED:
            value = NAN
        else:
            z, slope = capped(call, load_real(rows.z[j] + k * call.logits.class_stride,
                                                    call.logits.rows.type))
            t = 0.0
            if call.soft.rows.data != 0:
                t = load_real(rows.t[j] + k * call.soft.class_stride, call.soft.rows.type)
            if call.op == LOG_SOFTMAX:
                value = half_way(z, rows.high[j], 0.0, scale) - rows.low[j]
            elif square:
                value = square_of(rows, j, exp_of(z - rows.moved[j], power_k, power_low, scale), t)
                if call.op == HESSIAN:
                    value = at_least(call.floor, value)
            else:
                value = times(exp_of(z - rows.moved[j], power_k, power_low, scale), rows.a[j])
            if mixed:
                value += beside(call, rows, j, t, k)
            value = times(slope, value)
        store_real(g + k * g_stride, g_kind, value)
        if (k & 65535) == 65535 and tick(control, 65536):
            return True
    subnormals(False)
    return False


@part
def map_apart(call, rows, j, g, stride, kind):
    # The entry that does not come from the map, stored last.
    if rows.y[j] >= 0:
        store_real(g + rows.y[j] * stride, kind, rows.apart[j])
    elif call.op == LOG_SOFTMAX and rows.apart[j] < 0.9:
        # log p of a leader: (z - r) - log S would cancel. Ties of the largest are below 1/2 each,
        # and keep the bits that the map gave them.
        store_real(g + rows.k_top[j] * stride, kind, 0.0 - log1p(rows.apart[j]))
