"""From a row's sums to its value, and to the numbers of its map: the only place that knows losses.

Loops over the rows of a group without a branch, so that they are compiled to vectors. A row without
a result (NaN in a sum) stays NaN: log alone would not see to that.
"""

from __future__ import annotations

import numpy as np

from softxent.backends.numba._elementary import (
    exp_of,
    inverse_of,
    limit_of,
    log1p_any,
    log_reduced,
    power,
    power_of,
    reference_parts,
    split_log,
    split_log1p_or_log,
    subnormals,
    times,
)
from softxent.backends.numba._jit import (
    as_type,
    beyond_plain,
    choose,
    fabs,
    inlined,
    part,
    pointer_at,
    stay_apart,
)
from softxent.backends.numba._layout import GROUP
from softxent.backends.numba._load import load_real
from softxent.backends.numba._reduce import reduce_slow
from softxent.backends.numba._rows import (
    BELOW,
    ENTROPY,
    FAST,
    FOCAL,
    HESSIAN,
    INF,
    LOGSUMEXP,
    MIX_UNIT,
    NAN,
    POISONED,
    SKIPPED,
    SLOW,
    SQUARED_ERROR,
    are_fast,
    at_least,
    capped,
    class_weight_of,
    is_plain,
)


@inlined
def or_nan(value, total):
    return value if total < INF else NAN


@inlined
def exp_at(z, n, scale):
    # exp(z) 2^-n in float64.
    k, low = power_of(n, 0.0, scale)
    return exp_of(z, k, low, scale)


@inlined
def summed(total, carry):
    # A sum that overflowed has no carry to speak of.
    return total + carry if fabs(total) < INF else total


@inlined
def surprise(e_y, others, total, to_target):
    # -log p of the target: log1p(S'/e_y) where it leads, else log S - (z_y - r).
    leads = e_y >= others
    f, k = split_log1p_or_log(leads, others / e_y, total)
    return log_reduced(f, k) - (0.0 if leads else to_target)


@inlined
def half_way(z, high, low, scale):
    # z - (high + low), divided by the temperature. Of large numbers in halves, for the difference
    # may overflow where the quotient does not.
    if scale is None:
        return (z - high) - low
    return ((0.5 * z - 0.5 * high) - 0.5 * low) * (2.0 * scale.inverse)


@inlined
def minus_log_p(rows, j, scale):
    # Of the target, with its e and the sum of the others.
    e_y = exp_at(rows.z_y[j] - rows.moved[j], rows.n[j], scale)
    others = (rows.rest[j] + rows.carry[j]) + rows.e_top[j]
    high, low = reference_parts(rows.n[j], scale)
    to_target = half_way(rows.z_y[j], high + rows.moved[j], low, scale)  # one of two is 0
    return surprise(e_y, others, others + e_y, to_target), e_y, others


@beyond_plain(None)
def focus_rows(call, rows, scale):
    # Of (1 - p)^gamma (-log p), and of its derivative by log p:
    # -(1 - p)^gamma (1 + gamma p (-log p) / (1 - p)). 1 - p = S'/S; where it is 0, -log p is as
    # small.
    stay_apart()
    for j in range(GROUP):
        value, e_y, others = minus_log_p(rows, j, scale)
        total = others + e_y
        rest = others / total
        focus = power(rest, call.gamma)
        value = value / rest if rest > 0.0 else 1.0
        rows.focus[j] = focus
        rows.pull[j] = times(focus, 1.0 + call.gamma * times(e_y / total, value))


@part
def head_cross_entropy(rows, scale):
    stay_apart()
    for j in range(GROUP):
        value, e_y, others = minus_log_p(rows, j, scale)
        total = others + e_y
        rows.value[j] = or_nan(rows.focus[j] * value, total)
        rows.a[j] = rows.w[j] * rows.pull[j] / total
        # p_y - 1 would cancel; 0 - 0 is +0.
        rows.apart[j] = 0.0 - times(others / total, rows.w[j] * rows.pull[j])


@beyond_plain(None)
def head_mixed(call, rows, scale):
    # Probabilities, smoothing, z-loss: with target masses of sum A, of it `hard` on the class y,
    #   loss = hard (-log p_y) + (A - hard)(-log p_top) + sum of masses (top - z) + lambda lse^2,
    # all terms >= 0; the KL divergence has the sum of t log t added.
    stay_apart()
    slack = call.slack
    inverse = inverse_of(scale)
    narrow = 1.0 / call.class_unit
    keep = 1.0 - call.smoothing
    spread = call.smoothing / call.n_classes
    spread_mass = call.smoothing * call.class_weight_mean
    z_loss = call.z_loss * narrow
    has_z_loss = call.z_loss > 0.0
    has_classes = call.soft.rows.data == 0
    # A single class: p = 1, and what is left of A p - A is nothing.
    several = 1.0 if call.n_classes > 1 else 0.0
    for j in range(GROUP):
        # All loads first: what is behind a condition then is arithmetic alone.
        n = rows.n[j]
        z_y = rows.z_y[j]
        moved = rows.moved[j]
        hard = rows.hard[j]
        w = rows.w[j]
        e_top = rows.e_top[j]
        impossible = rows.impossible[j]
        focus = rows.focus[j]
        pull = rows.pull[j]
        unit = rows.gap_unit[j]
        rest = rows.rest[j] + rows.carry[j]
        soft_mass = summed(rows.soft.mass[j], rows.soft.mass_carry[j])
        soft_gap = summed(rows.soft.gap[j], rows.soft.gap_carry[j])
        own = summed(rows.self[j], rows.self_carry[j])
        flat_gap = summed(rows.flat.gap[j], rows.flat.gap_carry[j])
        leads = rows.k_top[j] == rows.y[j]

        e_y = exp_at(z_y - moved, n, scale)
        e_y = e_y if has_classes else 0.0
        others = rest + e_top
        total = others + e_y
        beside = rest if leads else rest + e_y
        e_top = e_y if leads else e_top
        high, low = reference_parts(n, scale)
        to_target = half_way(z_y, high + moved, low, scale)
        f, k = split_log(total)
        lse = moved * inverse + log_reduced(f, k + n)
        lse = lse if has_z_loss else 0.0
        mass = keep * soft_mass + spread_mass
        gap = (keep * soft_gap + spread * flat_gap) * inverse * unit
        value = hard * (focus * surprise(e_y, others, total, to_target))
        value = value if hard > 0.0 else 0.0
        value = (value + times(log1p_any(beside / e_top), mass)) + gap
        value = value + z_loss * lse * lse
        # Only a divergence can come out below 0: of targets that sum to 1, by its roundings.
        value = value + own
        value = 0.0 if (value < 0.0) & (fabs(mass - 1.0) <= slack) else value
        value = INF if impossible > 0.0 else value
        rows.value[j] = or_nan(value, total)

        hard = hard * pull * several
        more = mass * several + 2.0 * (z_loss * lse)
        rows.a[j] = times(hard + more, w) / total
        rows.b[j] = 0.0 - w * (keep * several)
        rows.c[j] = 0.0 - w * (spread * several)
        rows.apart[j] = (0.0 - times(hard * (others / total), w)) + times(e_y / total, more * w)


@beyond_plain(None)
def head_squared_error(call, rows, scale):
    # Half the sum of (p - t)^2, with c = sum of p (p - t) and the gradient p (p - t - c).
    # Of a class y, with squares the sum of the others' p^2 and 1 - p_y = S'/S: c is
    # squares - p_y (1 - p_y), and the target's entry -p_y ((1 - p_y)^2 + squares).
    stay_apart()
    has_classes = call.soft.rows.data == 0
    for j in range(GROUP):
        w = rows.w[j]
        squares = rows.square[j] + rows.square_carry[j]
        cross = summed(rows.cross[j], rows.cross_carry[j])
        soft = summed(rows.soft_square[j], rows.soft_square_carry[j])
        e_y = exp_at(rows.z_y[j] - rows.moved[j], rows.n[j], scale)
        e_y = e_y if has_classes else 0.0
        others = (rows.rest[j] + rows.carry[j]) + rows.e_top[j]
        total = others + e_y
        p = e_y / total
        rest = others / total
        squares = squares / total / total
        cross = cross / total
        value = squares + rest * rest if has_classes else (squares + soft) - 2.0 * cross
        mean = squares - (p * rest if has_classes else cross)
        value = 0.0 if value < 0.0 else 0.5 * value
        rows.value[j] = or_nan(value, total)
        rows.a[j] = 0.0 - times(mean, w) / total
        rows.q[j] = w / total / total
        rows.d[j] = (0.0 - w) / total
        rows.apart[j] = 0.0 - times(p * (rest * rest + squares), w)


@beyond_plain(None)
def head_hessian(call, rows, scale):
    # A p (1 - p), A the sum of the target masses: e (A/S - e A/S^2). Of the largest logit apart,
    # 1 - p is S'/S: no other p is beyond a half.
    stay_apart()
    keep = 1.0 - call.smoothing
    spread_mass = call.smoothing * call.class_weight_mean
    has_classes = call.soft.rows.data == 0
    plain = is_plain(call)
    for j in range(GROUP):
        e_top = rows.e_top[j]
        rest = rows.rest[j] + rows.carry[j]
        mass = rows.hard[j] + (keep * summed(rows.soft.mass[j], rows.soft.mass_carry[j])
                               + spread_mass)
        w = rows.w[j] * (1.0 if plain else mass)
        e_y = exp_at(rows.z_y[j] - rows.moved[j], rows.n[j], scale)
        e_y = e_y if has_classes else 0.0
        total = (rest + e_top) + e_y
        leads = rows.k_top[j] == rows.y[j]
        beside = rest if leads else rest + e_y
        e_top = e_y if leads else e_top
        w = or_nan(w, total)
        rows.value[j] = 0.0
        rows.a[j] = w / total
        rows.q[j] = (0.0 - w) / total / total
        rows.d[j] = 0.0
        rows.apart[j] = at_least(call.floor, times(e_top / total * (beside / total), w))
    for j in range(rows.count):
        if rows.lane[j] == FAST or rows.lane[j] == SLOW:
            rows.y[j] = rows.k_top[j]


@beyond_plain(None)
def head_entropy(call, rows, scale):
    # log S - (top - r) + sum of p (top - z).
    stay_apart()
    for j in range(GROUP):
        apart = rows.rest[j] + rows.carry[j]
        total = apart + rows.e_top[j]
        mix = summed(rows.mix[j], rows.mix_carry[j]) * inverse_of(scale) / MIX_UNIT / total
        rows.value[j] = or_nan(log1p_any(apart / rows.e_top[j]) + mix, total)


@part
def head_piece(rows, scale):
    # logsumexp, softmax and log_softmax.
    stay_apart()
    for j in range(GROUP):
        others = rows.rest[j] + rows.carry[j]
        total = others + rows.e_top[j]
        f, k = split_log(total)
        high, low = reference_parts(rows.n[j], scale)
        rows.high[j] = high + rows.moved[j]
        rows.low[j] = low * inverse_of(scale) + or_nan(log_reduced(f, k), total)
        # Not high + low: near 0 they cancel. S 2^n has one exponent, S's and n.
        rows.value[j] = (rows.moved[j] * inverse_of(scale)
                         + or_nan(log_reduced(f, k + rows.n[j]), total))
        rows.a[j] = rows.w[j] / total
        rows.apart[j] = others / rows.e_top[j]


@beyond_plain(None)
def finish_apart(call, rows):
    # The target's entry: what smoothing adds, and the softcap's slope.
    stay_apart()
    for j in range(rows.count):
        if rows.y[j] < 0:
            continue
        if call.smoothing > 0.0:
            v = 1.0
            if call.class_weight != 0:
                v = class_weight_of(call, rows.y[j]) / call.class_unit
            rows.apart[j] += times(v, rows.c[j])
        if call.softcap != 0.0:
            p = rows.z[j] + rows.y[j] * call.logits.class_stride
            slope = capped(call, load_real(p, call.logits.rows.type))[1]
            rows.apart[j] = times(slope, rows.apart[j])


@part
def store_values(call, rows, first):
    # With subnormals on: a weighted loss below the smallest normal number is nobody's subnormal
    # probability.
    stay_apart()
    doubles = pointer_at(call.out_rows, 0.0)
    floats = pointer_at(call.out_rows, as_type(np.float32(0), 0.0))
    if are_fast(rows):
        if call.out_rows == 0:
            return
        if call.out_rows_is_double != 0:
            for j in range(rows.count):
                doubles[first + j] = rows.weight[j] * rows.value[j]
        else:
            for j in range(rows.count):
                floats[first + j] = rows.weight[j] * rows.value[j]
        return
    for j in range(rows.count):
        if rows.lane[j] == SKIPPED:
            rows.value[j] = 0.0
            rows.a[j] = 0.0
        elif rows.lane[j] == POISONED:
            rows.value[j] = NAN
            rows.a[j] = NAN
        elif call.op == LOGSUMEXP and rows.lane[j] == SLOW and rows.rest[j] != rows.rest[j]:
            rows.value[j] = rows.no_result[j]
        if call.out_rows == 0:
            continue
        if call.out_rows_is_double != 0:
            doubles[first + j] = rows.weight[j] * rows.value[j]
        else:
            floats[first + j] = rows.weight[j] * rows.value[j]


@part
def head(call, rows, first, scale):
    if call.op == FOCAL:
        focus_rows(call, rows, scale)
    if call.op == SQUARED_ERROR:
        head_squared_error(call, rows, scale)
    elif call.op == HESSIAN:
        head_hessian(call, rows, scale)
    elif call.op < LOGSUMEXP:
        if is_plain(call):
            head_cross_entropy(rows, scale)
        else:
            head_mixed(call, rows, scale)
        if call.out_map.rows.data != 0 and (call.smoothing > 0.0 or call.softcap != 0.0):
            finish_apart(call, rows)
    elif call.op == ENTROPY:
        head_entropy(call, rows, scale)
    else:
        head_piece(rows, scale)
        if call.op == BELOW:
            for j in range(GROUP):
                rows.value[j] = rows.apart[j]
    subnormals(True)
    store_values(call, rows, first)
    subnormals(False)


@part
def finish_reduce(call, rows, first, zero, scale, control):
    # Rows for the slow lane, then every row's head.
    limit = limit_of(zero, scale)
    if is_plain(call) and are_fast(rows):
        slow = np.int64(0)
        for j in range(GROUP):
            slow |= choose(fabs(rows.top[j]) <= limit, np.int64(0), np.int64(1))
        if slow == 0:
            head(call, rows, first, scale)
            return False
    for j in range(rows.count):
        if rows.lane[j] == FAST and not fabs(rows.top[j]) <= limit:
            rows.lane[j] = SLOW
        if (rows.lane[j] == FAST and not is_plain(call)
                and not (rows.soft.gap[j] < INF and rows.flat.gap[j] < INF)):
            rows.lane[j] = SLOW  # overflow, of float64 logits
        if rows.lane[j] == SLOW:
            # An option that sent every row here may make subnormal logits count.
            subnormals(call.all_slow != 0)
            if reduce_slow(call, rows, j, scale, control):
                return True
            subnormals(False)
    head(call, rows, first, scale)
    return False
