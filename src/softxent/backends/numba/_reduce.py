"""One read of the logits: each row's reference power, S' and what its head asks for."""

from __future__ import annotations

import numpy as np

from softxent.backends.numba._elementary import (
    OUT_OF_REACH,
    exp_of,
    inverse_of,
    kahan,
    limit_of,
    pow2,
    power_near,
    power_of,
    self_information,
    subnormals,
    times,
    two_sum,
)
from softxent.backends.numba._exp_many import (
    MANY,
    add_four,
    add_one,
    add_three,
    add_two,
    exp_and_sum_column,
    exp_many,
    fetch,
    fold_sum,
    fold_top,
)
from softxent.backends.numba._jit import (
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
from softxent.backends.numba._kept import keep_power, kept_block
from softxent.backends.numba._layout import GROUP
from softxent.backends.numba._load import is_positive, is_refused, lesser, load_real
from softxent.backends.numba._rows import (
    AHEAD,
    BLOCK,
    ENTROPY,
    FAST,
    INF,
    KL,
    LANES,
    LINE,
    MIX_POWER,
    MIX_UNIT,
    NAN,
    NARROW_MOST,
    POISONED,
    ROOM_MASS,
    SLOW,
    SQUARED_ERROR,
    STRIPE,
    WIDE_GAP,
    capped,
    class_weight_of,
    is_single,
    room_at,
    start_moments,
    start_squares,
    tick,
)

# ---- C > 64: sums over a block, in 64 lanes folded 32, 16, 8, 4, 2, 1 apart ----------------------


@inlined
def larger(a, b):
    return choose(b > a, b, a)


@part
def block_top(x, length):
    stay_apart()
    lanes = stack(LANES, x[0])
    folded = stack(LANES, x[0])
    for j in range(LANES):
        lanes[j] = -INF
    i = 0
    while i + STRIPE <= length:
        p = moved(x, i)
        for j in range(LANES):
            a = larger(larger(lanes[j], p[j]), p[LANES + j])
            lanes[j] = larger(larger(a, p[2 * LANES + j]), p[3 * LANES + j])
        i += STRIPE
    while i + LANES <= length:
        p = moved(x, i)
        for j in range(LANES):
            lanes[j] = larger(lanes[j], p[j])
        i += LANES
    # To another place: a choice between what is there and something else becomes a masked store,
    # which some processors (Zen 3) take 20 cycles for.
    left = length - i
    p = moved(x, i)
    for j in range(left):
        folded[j] = larger(lanes[j], p[j])
    for j in range(left, LANES):
        folded[j] = lanes[j]
    return fold_top(folded)


@inlined
def counted(count, condition):
    # Counts become vectors; a disjunction of conditions would become a branch for each.
    return np.int32(count + np.int32(condition))


@part
def first_place(x, length, value):
    stay_apart()
    i = 0
    while i + LANES <= length:
        p = moved(x, i)
        found = np.int32(0)
        for j in range(LANES):
            found = counted(found, p[j] == value)
        if found != 0:
            break
        i += LANES
    left = lesser(length - i, LANES)
    p = moved(x, i)
    place = np.int32(LANES)
    for j in range(left):
        place = lesser(place, choose(p[j] == value, np.int32(j), np.int32(LANES)))
    return i + place if place < LANES else 0


# Two loops where one would do: in a loop with a float64 in it, vectors of float32 are half empty.


@inlined
def widen_to(lanes, terms):
    for j in range(LANES):
        lanes[j] += np.float64(terms[j])


@inlined
def exp_lanes(x, parts, k, low, scale, e):
    # Of whole lanes.
    if scale is None:
        for i in range(0, parts * LANES, MANY):
            exp_many(moved(x, i), moved(e, i), k, low)
    else:
        for i in range(parts * LANES):
            e[i] = exp_of(x[i], k, low, scale)


@inlined
def add_stripe(e, parts, lanes):
    if parts == 4:
        add_four(e, lanes)
    elif parts == 3:
        add_three(e, lanes)
    elif parts == 2:
        add_two(e, lanes)
    else:
        add_one(e, lanes)


@inlined
def add_stripe_and_squares(x, parts, k, low, scale, terms, squares, lanes, square_lanes):
    # Of as many terms of a lane as there are, and of their squares.
    for j in range(LANES):
        e = exp_of(x[j], k, low, scale)
        terms[j] = e
        squares[j] = e * e
    for i in range(1, parts):
        p = moved(x, i * LANES)
        for j in range(LANES):
            e = exp_of(p[j], k, low, scale)
            terms[j] += e
            squares[j] = fma(e, e, squares[j])
    widen_to(lanes, terms)
    widen_to(square_lanes, squares)


@part
def block_rest(x, length, skip_1, skip_2, k, low, scale, kept):
    return block_sums(x, length, skip_1, skip_2, k, low, scale, None, kept)


@part
def block_rest_and_squares(x, length, skip_1, skip_2, k, low, scale):
    squares = stack(LANES, 0.0)
    for j in range(LANES):
        squares[j] = 0.0
    rest = block_sums(x, length, skip_1, skip_2, k, low, scale, squares, 0)
    return rest, fold_sum(squares)


@part
def block_sums(x, length, skip_1, skip_2, k, low, scale, square_lanes, kept):
    # Sum of e over a block but two places (-1: none), and of e^2 into 64 lanes (None: not wanted);
    # kept: where all of e go, in whole lanes, or 0.
    # A stripe that holds such a place, or ends early, is read through a copy with -inf there: its e
    # is +0, and adding +0 is exact.
    stay_apart()
    lanes = stack(LANES, 0.0)
    terms = stack(LANES, k)
    squares = stack(LANES, k)
    patched = stack(STRIPE, k)
    few = stack(STRIPE, k)
    e = few
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    size = 4 if is_single(k) else 8
    while i < length:
        for ahead in range(0, lesser(length - i, STRIPE) * size, LINE):
            fetch(moved(x, i), BLOCK * size + AHEAD + ahead)
        if i + STRIPE <= length and not (i <= skip_1 < i + STRIPE or i <= skip_2 < i + STRIPE):
            p = moved(x, i)
            parts = 4
        else:
            left = lesser(length - i, STRIPE)
            parts = (left + (LANES - 1)) // LANES
            p = moved(x, i)
            for j in range(left):
                patched[j] = p[j]
            for j in range(left, parts * LANES):
                patched[j] = -INF
            if i <= skip_1 < i + STRIPE:
                patched[skip_1 - i] = -INF
            if i <= skip_2 < i + STRIPE:
                patched[skip_2 - i] = -INF
            p = patched
        if square_lanes is not None:
            add_stripe_and_squares(p, parts, k, low, scale, terms, squares, lanes, square_lanes)
        else:
            if kept != 0:
                e = pointer_at(kept + i * size, k)
            exp_lanes(p, parts, k, low, scale, e)
            add_stripe(e, parts, lanes)
        i += STRIPE
    if kept != 0:
        e = pointer_at(kept, k)
        if skip_1 >= 0:
            e[skip_1] = exp_of(x[skip_1], k, low, scale)
        if skip_2 >= 0:
            e[skip_2] = exp_of(x[skip_2], k, low, scale)
    return fold_sum(lanes)


@part
def merge_block(rows, j, n, top, k_top, e_top, rest):
    if not top > rows.top[j]:
        shift = pow2(n - rows.n[j]) if top > -INF else 1.0
        two_sum(rows.rest, rows.carry, j, rest * shift)
        two_sum(rows.rest, rows.carry, j, e_top * shift)
        return
    if rows.top[j] > -INF:
        shift = pow2(rows.n[j] - n)
        rows.rest[j] *= shift
        rows.carry[j] *= shift
        two_sum(rows.rest, rows.carry, j, rows.e_top[j] * shift)
    two_sum(rows.rest, rows.carry, j, rest)
    rows.n[j] = n
    rows.top[j] = top
    rows.k_top[j] = k_top
    rows.e_top[j] = e_top


@inlined
def gap_of(x, top):
    # A class of logit -inf has no part in it: has_impossible sees to those with target mass.
    gap = np.float64(top - x)
    return gap if (gap > 0.0) & (gap < INF) else 0.0


@part
def block_sum(u, length):
    stay_apart()
    lanes = stack(LANES, 0.0)
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        p = moved(u, i)
        for j in range(LANES):
            lanes[j] += np.float64(p[j])
        i += LANES
    for j in range(length - i):
        lanes[j] += np.float64(u[i + j])
    return fold_sum(lanes)


@part
def block_gap(x, u, has_u, length, top):
    # Sum of u (top - x); without u: of top - x.
    stay_apart()
    lanes = stack(LANES, 0.0)
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        p = moved(x, i)
        if has_u:
            q = moved(u, i)
            for j in range(LANES):
                lanes[j] += np.float64(q[j]) * gap_of(p[j], top)
        else:
            for j in range(LANES):
                lanes[j] += gap_of(p[j], top)
        i += LANES
    for j in range(length - i):
        gap = gap_of(x[i + j], top)
        lanes[j] += np.float64(u[i + j]) * gap if has_u else gap
    return fold_sum(lanes)


@part
def block_mix(x, length, top, k, low, scale):
    # Sum of e (top - x); k and low are those of the reference less MIX_POWER.
    stay_apart()
    lanes = stack(LANES, 0.0)
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        p = moved(x, i)
        for j in range(LANES):
            lanes[j] += np.float64(exp_of(p[j], k, low, scale)) * gap_of(p[j], top)
        i += LANES
    for j in range(length - i):
        lanes[j] += np.float64(exp_of(x[i + j], k, low, scale)) * gap_of(x[i + j], top)
    return fold_sum(lanes)


@part
def block_self(t, length):
    # Sum of t log t.
    stay_apart()
    lanes = stack(LANES, 0.0)
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        p = moved(t, i)
        for j in range(LANES):
            lanes[j] += self_information(np.float64(p[j]))
        i += LANES
    for j in range(length - i):
        lanes[j] += self_information(np.float64(t[i + j]))
    return fold_sum(lanes)


@part
def block_squares(t, length):
    # Sum of t^2.
    stay_apart()
    lanes = stack(LANES, 0.0)
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        p = moved(t, i)
        for j in range(LANES):
            lanes[j] += np.float64(p[j]) * np.float64(p[j])
        i += LANES
    for j in range(length - i):
        lanes[j] += np.float64(t[i + j]) * np.float64(t[i + j])
    return fold_sum(lanes)


@part
def block_cross(x, t, length, k, low, scale):
    # Sum of e t.
    stay_apart()
    lanes = stack(LANES, 0.0)
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        p = moved(x, i)
        q = moved(t, i)
        for j in range(LANES):
            lanes[j] += np.float64(exp_of(p[j], k, low, scale)) * np.float64(q[j])
        i += LANES
    for j in range(length - i):
        lanes[j] += np.float64(exp_of(x[i + j], k, low, scale)) * np.float64(t[i + j])
    return fold_sum(lanes)


@inlined
def is_large(t):
    # Products with it could leave float32.
    return is_single(t) & (t > as_type(t, NARROW_MOST))


@part
def has_impossible(x, t, has_t, v, has_v, length):
    # Whether a class of logit -inf has target mass; without t, v: they are 1.
    stay_apart()
    found = np.int32(0)
    for i in range(length):
        found = counted(found, x[i] == -INF)
    if found == 0:
        return False
    for i in range(length):
        if x[i] == -INF and (not has_t or is_positive(t[i])) and (not has_v or v[i] > 0.0):
            return True
    return False


@part
def merge_moments(moments, j, mass, gap, before, top):
    # A block's sums, its largest logit `top`; the row's was `before`.
    if top > -INF:
        if top > before:
            if before > -INF:
                two_sum(moments.gap, moments.gap_carry, j,
                        times(top - before, moments.mass[j] + moments.mass_carry[j]))
        else:
            gap += times(before - top, mass)
        two_sum(moments.gap, moments.gap_carry, j, gap)
    two_sum(moments.mass, moments.mass_carry, j, mass)


@part
def merge_mix(rows, j, n, top, total, mix):
    # Before merge_block; total, mix: the block's sums of e and e (top - z), over 2^n.
    if not top > -INF:
        return
    if top > rows.top[j]:
        if rows.top[j] > -INF:
            shift = pow2(rows.n[j] - n)
            so_far = (rows.rest[j] + rows.carry[j]) + rows.e_top[j]
            rows.mix[j] *= shift
            rows.mix_carry[j] *= shift
            if shift > 0.0:
                two_sum(rows.mix, rows.mix_carry, j,
                        so_far * MIX_UNIT * shift * (top - rows.top[j]))
    else:
        shift = pow2(n - rows.n[j])
        mix *= shift
        if shift > 0.0:
            mix += total * MIX_UNIT * shift * (rows.top[j] - top)
    two_sum(rows.mix, rows.mix_carry, j, mix)


@part
def merge_squares(rows, j, n, top, square, cross):
    # Before merge_block; square, cross: the block's sums of e^2 and e t, over 2^2n and 2^n.
    if top > rows.top[j]:
        if rows.top[j] > -INF:
            shift = pow2(rows.n[j] - n)
            rows.square[j] *= shift * shift
            rows.square_carry[j] *= shift * shift
            rows.cross[j] *= shift
            rows.cross_carry[j] *= shift
    elif top > -INF:
        shift = pow2(n - rows.n[j])
        square *= shift * shift
        cross *= shift
    two_sum(rows.square, rows.square_carry, j, square)
    two_sum(rows.cross, rows.cross_carry, j, cross)


@inlined
def weighted(call, t, k0, length, room):
    # u = v t.
    if call.class_weight_real == 0:
        return t
    v = moved(pointer_at(call.class_weight_real, as_type(t[0], 0.0)), k0)
    for i in range(length):
        room[i] = t[i] * v[i]
    return room


@part
def judge(t, length):
    # Whether a block's probabilities hold one that is refused; one too large for float32.
    stay_apart()
    refused = np.int32(0)
    large = np.int32(0)
    for i in range(length):
        refused = counted(refused, is_refused(t[i]))
        large = counted(large, is_large(t[i]))
    return refused != 0, large != 0


@beyond_plain(None)
def reduce_soft(call, rows, j, x, t, has_t, k0, length, top, before, room):
    # Probabilities and smoothing. Subnormal targets count: times a gap they may be more than a
    # subnormal number.
    stay_apart()
    has_v = call.class_weight_real != 0
    v = moved(pointer_at(call.class_weight_real, top), k0)
    wide_top = np.float64(top)
    if has_t:
        refused, large = judge(t, length)
        if refused:
            call.refused = 1
        if refused or large:
            rows.lane[j] = POISONED if refused else SLOW
            return
        if call.op == SQUARED_ERROR:
            two_sum(rows.soft_square, rows.soft_square_carry, j, block_squares(t, length))
            return
        if call.op == KL:
            two_sum(rows.self, rows.self_carry, j, block_self(t, length))
        u = weighted(call, t, k0, length, room_at(room, ROOM_MASS, top))
        merge_moments(rows.soft, j, block_sum(u, length), block_gap(x, u, True, length, top),
                      before, wide_top)
        if call.smoothing < 1.0 and has_impossible(x, t, True, v, has_v, length):
            rows.impossible[j] = 1.0
    if call.smoothing > 0.0:
        mass = block_sum(v, length) if has_v else np.float64(length)
        merge_moments(rows.flat, j, mass, block_gap(x, v, has_v, length, top), before, wide_top)
        if has_impossible(x, t, False, v, has_v, length):
            rows.impossible[j] = 1.0


@beyond_plain(0.0)
def reduce_squares(call, rows, j, x, t, has_t, length, place, y_place, n, top, e_top, scale):
    k, low = power_of(n, as_type(x[0], 0.0), scale)
    rest, square = block_rest_and_squares(x, length, place, y_place, k, low, scale)
    cross = block_cross(x, t, length, k, low, scale) if has_t else 0.0
    merge_squares(rows, j, n, top, square + e_top * e_top, cross)
    return rest


@beyond_plain(None)
def reduce_mix(call, rows, j, x, length, n, real_top, total, scale):
    k, low = power_of(n - MIX_POWER, as_type(x[0], 0.0), scale)
    merge_mix(rows, j, n, np.float64(real_top), total,
              block_mix(x, length, real_top, k, low, scale))


@part
def reduce_block(call, rows, j, x, t, has_t, k0, length, scale, room):
    zero = as_type(x[0], 0.0)
    limit = limit_of(zero, scale)
    y = rows.y[j]
    y_place = -1
    if k0 <= y < k0 + length:
        y_place = y - k0
        rows.z_y[j] = x[y_place]
    real_top = block_top(x, length)
    top = np.float64(real_top)
    if top > limit:
        rows.lane[j] = SLOW
        return
    if has_t or call.smoothing > 0.0:
        subnormals(True)
        reduce_soft(call, rows, j, x, t, has_t, k0, length, real_top, rows.top[j], room)
        subnormals(False)
        if rows.lane[j] != FAST:
            return
    n = 0.0
    place = -1
    e_top = 0.0
    if top > -INF:
        # Far below the limit the power may stop: nothing there reaches a row served here.
        far = limit + OUT_OF_REACH / inverse_of(scale)
        n = power_near(top if top > -far else -far, scale)
    k, low = power_of(n, zero, scale)
    if top > -INF:
        place = first_place(x, length, real_top)
        if k0 + place != y:
            e_top = np.float64(exp_of(real_top, k, low, scale))
    if call.op == SQUARED_ERROR:
        rest = reduce_squares(call, rows, j, x, t, has_t, length, place, y_place, n, top, e_top,
                              scale)
    else:
        kept = kept_block(rows, j, k0, length, zero)
        if kept != 0:
            keep_power(rows, j, k0, n if top > -INF else -INF)
        rest = block_rest(x, length, place, y_place, k, low, scale, kept)
    if call.op == ENTROPY:
        reduce_mix(call, rows, j, x, length, n, real_top, rest + e_top, scale)
    merge_block(rows, j, n, top, k0 + place, e_top, rest)


# ---- C <= 64: class k of row j at k GROUP + j, so that every loop runs over the rows -------------


@inlined
def add(zero, total, carry, j, x):
    # Up to 64 terms that are exact, or rounded to float32, need no compensation in float64.
    if is_single(zero):
        total[j] += x
    else:
        kahan(total, carry, j, x)


@inlined
def sum_columns(zero, classes, x, k, low, places, targets, e, rest, carry, e_tops, scale):
    # e; those at `places`, +0 where they are the targets'; and the sums of the others.
    if scale is None:
        for i in range(classes):
            exp_and_sum_column(moved(x, i * GROUP), moved(e, i * GROUP), k, low, places, targets,
                               rest, carry, e_tops, as_type(zero, i))
        return
    terms = stack(GROUP, zero)
    for i in range(classes):
        at = as_type(zero, i)
        p = moved(x, i * GROUP)
        q = moved(e, i * GROUP)
        for j in range(GROUP):
            value = exp_of(p[j], k[j], low[j], scale)
            q[j] = value
            # Sums of one term, where a choice would be compiled to a masked store.
            value = choose(targets[j] == at, zero, value)
            e_tops[j] += choose(places[j] == at, value, zero)
            terms[j] = choose(places[j] == at, zero, value)
        for j in range(GROUP):  # see widen_to
            add(zero, rest, carry, j, np.float64(terms[j]))


@part
def reduce_columns(rows, classes, x, e, scale):
    stay_apart()
    zero = as_type(x[0], 0.0)
    limit = limit_of(zero, scale)
    rest = stack(GROUP, 0.0)
    carry = stack(GROUP, 0.0)
    tops = stack(GROUP, zero)
    places = stack(GROUP, zero)
    targets = stack(GROUP, zero)
    e_tops = stack(GROUP, zero)
    k_of = stack(GROUP, zero)
    low_of = stack(GROUP, zero)
    for j in range(GROUP):
        tops[j] = -INF
        places[j] = zero
        targets[j] = as_type(zero, np.int32(rows.y[j]))
        rest[j] = 0.0
        carry[j] = 0.0
        e_tops[j] = 0
    for i in range(classes):
        at = as_type(zero, i)
        p = moved(x, i * GROUP)
        for j in range(GROUP):
            is_larger = p[j] > tops[j]
            places[j] = choose(is_larger, at, places[j])
            tops[j] = choose(is_larger, p[j], tops[j])
    for j in range(GROUP):
        top = np.float64(tops[j])
        rows.top[j] = top
        rows.k_top[j] = np.int64(np.int32(places[j]))
        # Rows for the slow lane (finish_reduce): any number that does no harm.
        rows.n[j] = power_near(top if (top >= -limit) & (top <= limit) else 0.0, scale)
        k_of[j], low_of[j] = power_of(rows.n[j], zero, scale)
    sum_columns(zero, classes, x, k_of, low_of, places, targets, e, rest, carry, e_tops, scale)
    for j in range(GROUP):
        i = choose(rows.y[j] > 0, rows.y[j], np.int64(0))  # without a target: any number
        rows.z_y[j] = x[i * GROUP + j]
    for j in range(GROUP):
        rows.rest[j] = rest[j]
        rows.carry[j] = carry[j]
        rows.e_top[j] = e_tops[j]


@part
def reduce_row(rows, j, x, classes, e, scale):
    # The same for one row, its classes side by side: every sum is of the same terms in the same
    # order. e, apart from x, has room for SMALL.
    stay_apart()
    zero = as_type(x[0], 0.0)
    limit = limit_of(zero, scale)
    rest = stack(1, 0.0)
    carry = stack(1, 0.0)
    y = rows.y[j]
    real_top = block_top(x, classes)
    place = first_place(x, classes, real_top)
    top = np.float64(real_top)
    rows.top[j] = top
    rows.k_top[j] = place
    rows.n[j] = power_near(top if (top >= -limit) & (top <= limit) else 0.0, scale)
    rows.z_y[j] = x[y if y > 0 else 0]
    k, low = power_of(rows.n[j], zero, scale)
    for i in range(classes):
        e[i] = exp_of(x[i], k, low, scale)
    e_top = e[place]
    e_y = zero
    e[place] = zero
    if y >= 0:
        e_y = e[y]
        e[y] = zero
    rest[0] = 0.0
    carry[0] = 0.0
    for i in range(classes):
        add(zero, rest, carry, 0, np.float64(e[i]))
    if y == place:
        e_y = e_top
        e_top = zero
    else:
        e[place] = e_top
    if y >= 0:
        e[y] = e_y
    rows.rest[j] = rest[0]
    rows.carry[j] = carry[0]
    rows.e_top[j] = e_top


@part
def reduce_moments(rows, moments, classes, x, u, by_row, v, has_v):
    # By row: u, laid out like x; else v, of each class; without v: 1.
    stay_apart()
    zero = as_type(x[0], 0.0)
    one = as_type(zero, 1.0)
    for i in range(classes):
        for j in range(GROUP):
            weight = u[i * GROUP + j] if by_row else (v[i] if has_v else one)
            gap = gap_of(x[i * GROUP + j], as_type(zero, rows.top[j]))
            add(zero, moments.mass, moments.mass_carry, j, np.float64(weight))
            add(zero, moments.gap, moments.gap_carry, j, np.float64(weight) * gap)


@part
def find_impossible(rows, classes, x, t, has_t, v, has_v):
    stay_apart()
    for i in range(classes):
        if has_v and v[i] == 0.0:
            continue
        for j in range(GROUP):
            found = (x[i * GROUP + j] == -INF) & ((not has_t) | is_positive(t[i * GROUP + j]))
            rows.impossible[j] = choose(found, 1.0, rows.impossible[j])


@part
def check_columns(call, rows, t):
    stay_apart()
    for j in range(rows.count):
        refused = False
        large = False
        for i in range(call.n_classes):
            refused |= is_refused(t[i * GROUP + j])
            large |= is_large(t[i * GROUP + j])
        if rows.lane[j] == FAST or rows.lane[j] == SLOW:
            if refused:
                call.refused = 1
                rows.lane[j] = POISONED
            elif large:
                rows.lane[j] = SLOW


@part
def reduce_self_columns(rows, classes, t):
    stay_apart()
    for i in range(classes):
        for j in range(GROUP):
            two_sum(rows.self, rows.self_carry, j, self_information(np.float64(t[i * GROUP + j])))


@beyond_plain(None)
def reduce_square_columns(call, rows, classes, t, has_t, e):
    # Sums of e^2 but for a class target's; with t also of e t and t^2.
    stay_apart()
    zero = as_type(e[0], 0.0)
    targets = stack(GROUP, zero)
    for j in range(GROUP):
        targets[j] = as_type(zero, rows.y[j])
    for i in range(classes):
        at = as_type(zero, i)
        for j in range(GROUP):
            value = np.float64(choose(targets[j] == at, zero, e[i * GROUP + j]))
            add(zero, rows.square, rows.square_carry, j, value * value)
        if has_t:
            for j in range(GROUP):
                value = np.float64(e[i * GROUP + j])
                share = np.float64(t[i * GROUP + j])
                add(zero, rows.cross, rows.cross_carry, j, value * share)
                add(zero, rows.soft_square, rows.soft_square_carry, j, share * share)


@beyond_plain(None)
def reduce_soft_columns(call, rows, x, t, has_t, u):
    # Probabilities and smoothing, with subnormals on; u: where probabilities are weighted.
    stay_apart()
    classes = call.n_classes
    has_v = call.class_weight_real != 0
    v = pointer_at(call.class_weight_real, as_type(x[0], 0.0))
    if has_t:
        check_columns(call, rows, t)
        if call.op == SQUARED_ERROR:
            return
        if call.op == KL:
            reduce_self_columns(rows, classes, t)
        mass = t
        if has_v:
            for i in range(classes):
                for j in range(GROUP):
                    u[i * GROUP + j] = t[i * GROUP + j] * v[i]
            mass = u
        reduce_moments(rows, rows.soft, classes, x, mass, True, v, False)
        if call.smoothing < 1.0:
            find_impossible(rows, classes, x, t, True, v, has_v)
    if call.smoothing > 0.0:
        reduce_moments(rows, rows.flat, classes, x, x, False, v, has_v)
        find_impossible(rows, classes, x, t, False, v, has_v)


@beyond_plain(None)
def reduce_mix_columns(call, rows, classes, x, scale):
    stay_apart()
    zero = as_type(x[0], 0.0)
    k_of = stack(GROUP, zero)
    low_of = stack(GROUP, zero)
    for j in range(GROUP):
        k_of[j], low_of[j] = power_of(rows.n[j] - MIX_POWER, zero, scale)
    for i in range(classes):
        for j in range(GROUP):
            z = x[i * GROUP + j]
            e = np.float64(exp_of(z, k_of[j], low_of[j], scale))
            add(zero, rows.mix, rows.mix_carry, j, e * gap_of(z, as_type(zero, rows.top[j])))


# ---- the slow lane -------------------------------------------------------------------------------


@inlined
def slow_gap(u, top, z, unit):
    # Over `unit`: the difference may overflow where the product does not.
    return 0.0 if z == -INF or u == 0.0 else u * (top / unit - z / unit)


@part
def reduce_slow(call, rows, j, scale, control):
    # Any values, any layout, one element at a time, in float64. The reference is a power of two, or
    # beyond the limit the largest logit: z - top is exact there where it matters, for both lie
    # within a factor of two of each other.
    stay_apart()
    y = rows.y[j]
    stride = call.logits.class_stride
    kind = call.logits.rows.type
    z = rows.z[j]
    narrow = 1.0 / call.class_unit
    top = -INF
    least = INF
    k_top = 0
    has_nan = False
    for k in range(call.n_classes):
        value = capped(call, load_real(z + k * stride, kind))[0]
        if value > top:
            top = value
            k_top = k
        if -INF < value < least:
            least = value
        if k == y:
            rows.z_y[j] = value
        has_nan |= value != value
        if (k & 65535) == 65535 and tick(control, 65536):
            return True
    rows.top[j] = top
    rows.k_top[j] = k_top
    rows.n[j] = 0.0
    rows.moved[j] = top
    if fabs(top) <= limit_of(0.0, scale):
        rows.n[j] = power_near(top, scale)
        rows.moved[j] = 0.0
    shift = rows.moved[j]
    power_k, power_low = power_of(rows.n[j], 0.0, scale)
    mix_k, mix_low = power_of(rows.n[j] - MIX_POWER, 0.0, scale)
    rows.rest[j] = 0.0
    rows.carry[j] = 0.0
    rows.e_top[j] = 0.0
    if k_top != y:
        rows.e_top[j] = exp_of(top - shift, power_k, power_low, scale)
    rows.mix[j] = 0.0
    rows.mix_carry[j] = 0.0
    rows.self[j] = 0.0
    rows.self_carry[j] = 0.0
    rows.impossible[j] = 0.0
    start_squares(rows, j)
    start_moments(rows.soft, j)
    start_moments(rows.flat, j)
    if has_nan or not fabs(top) < INF:
        rows.rest[j] = NAN
        rows.no_result[j] = NAN if has_nan else top
    unit = MIX_UNIT if 0.5 * top - 0.5 * least > WIDE_GAP else 1.0
    rows.gap_unit[j] = unit
    for k in range(call.n_classes):
        value = capped(call, load_real(z + k * stride, kind))[0]
        if k != k_top and k != y:
            e = exp_of(value - shift, power_k, power_low, scale)
            two_sum(rows.rest, rows.carry, j, e)
            if call.op == ENTROPY:
                e = exp_of(value - shift, mix_k, mix_low, scale)
                two_sum(rows.mix, rows.mix_carry, j, slow_gap(e, top, value, 1.0))
        square_e = 0.0
        if call.op == SQUARED_ERROR:
            square_e = exp_of(value - shift, power_k, power_low, scale)
            if k != y:
                two_sum(rows.square, rows.square_carry, j, square_e * square_e)
        v = class_weight_of(call, k) * narrow if call.class_weight != 0 else 1.0
        if call.soft.rows.data != 0:
            subnormals(True)
            add_slow_soft(call, rows, j, k, top, value, v, unit, square_e)
            subnormals(call.all_slow != 0)
        if call.smoothing > 0.0:
            if value == -INF and v > 0.0:
                rows.impossible[j] = 1.0
            two_sum(rows.flat.gap, rows.flat.gap_carry, j, slow_gap(v, top, value, unit))
        if (k & 65535) == 65535 and tick(control, 65536):
            return True
    return False


@beyond_plain(None)
def add_slow_soft(call, rows, j, k, top, z, v, unit, e):
    # Subnormal targets count.
    stay_apart()
    u = load_real(rows.t[j] + k * call.soft.class_stride, call.soft.rows.type)
    if is_refused(u):
        call.refused = 1
    if z == -INF and u > 0.0 and v > 0.0 and call.smoothing < 1.0:
        rows.impossible[j] = 1.0
    if call.op == KL:
        two_sum(rows.self, rows.self_carry, j, self_information(u))
    if call.op == SQUARED_ERROR:
        two_sum(rows.cross, rows.cross_carry, j, e * u)
        two_sum(rows.soft_square, rows.soft_square_carry, j, u * u)
        rows.impossible[j] = 0.0
    u *= v
    two_sum(rows.soft.mass, rows.soft.mass_carry, j, u)
    two_sum(rows.soft.gap, rows.soft.gap_carry, j, slow_gap(u, top, z, unit))
