"""One logit a row: binary cross-entropy, POINTS rows at a time.

`backends/cython/_points.pxi` says what is computed; loops over float32 and over float64 are apart
here.
"""

from __future__ import annotations

import numpy as np

from softxent.backends.numba._elementary import (
    exp_of,
    log1p_of,
    near_inverse,
    power_of,
    subnormals,
)
from softxent.backends.numba._exp_many import fold_sum
from softxent.backends.numba._jit import (
    as_type,
    beyond_plain,
    choose,
    fabs,
    inlined,
    load,
    moved,
    part,
    pointer_at,
    stack,
    stay_apart,
)
from softxent.backends.numba._layout import (
    IN_PLACE,
    STRIDED,
    TYPE_BF16,
    TYPE_BRAIN,
    TYPE_F32,
    TYPE_F64,
    TYPE_SIZE,
    TYPE_UNSIGNED,
)
from softxent.backends.numba._load import (
    cursor_run,
    cursor_skip,
    cursor_start,
    is_no_share,
    lesser,
    load_real,
    store_real,
)
from softxent.backends.numba._map import kind_of
from softxent.backends.numba._reduce import block_sum, counted
from softxent.backends.numba._rows import (
    LANES,
    NARROW_LEAST,
    NARROW_MOST,
    is_single,
    narrow_down,
    room_at,
    tick,
    widen,
)

POINTS = 1024
# In the walk's room: stretches of float64 at most, not a multiple of 4 KiB apart, for a loop reads
# and writes all of them at one place.
ROOM_X = 0
ROOM_G = 8512
ROOM_YES = 17024
ROOM_NO = 25536
ROOM_S = 34048
ROOM_W = 42560
ROOM_VALUE = 51072
# As they are given: float64.
ROOM_GIVEN_T = 59584
ROOM_GIVEN_V = 68096
ROOM_GIVEN_S = 76608
ROOM_GIVEN_W = 85120

_F32, _F64, _I16, _U8 = np.float32(0), np.float64(0), np.int16(0), np.uint8(0)


@inlined
def has_weights(call):
    return (call.pos_weight.data != 0 or call.sample_weight.data != 0 or call.upstream.data != 0)


@inlined
def are_single(call):
    # Whether the targets are of a type that float32 holds, and nothing else is given: they are then
    # float32 all the way.
    kind = call.soft.rows.type
    return (not has_weights(call)) and ((kind & TYPE_SIZE) <= 2 or kind == TYPE_F32)


@part
def load_run(p, kind, stride, count, to):
    # Some rows' numbers of any type that to's holds.
    stay_apart()
    zero = as_type(to[0], 0.0)
    if stride == 0:
        value = as_type(zero, load_real(p, kind))
        for i in range(count):
            to[i] = value
    elif kind == TYPE_F64:
        for i in range(count):
            to[i] = as_type(zero, load(p + i * stride, _F64))
    elif kind == TYPE_F32:
        for i in range(count):
            to[i] = as_type(zero, load(p + i * stride, _F32))
    elif kind == (TYPE_UNSIGNED | 1):  # bool
        for i in range(count):
            to[i] = as_type(zero, load(p + i * stride, _U8))
    else:
        for i in range(count):
            to[i] = as_type(zero, load_real(p + i * stride, kind))


@part
def is_sixteen(p, kind, stride):
    return (kind | TYPE_BRAIN) == TYPE_BF16 and stride == 2 and p & 1 == 0


@part
def load_logits(p, kind, stride, count, to):
    stay_apart()
    zero = as_type(to[0], 0.0)
    if kind == kind_of(zero):
        for i in range(count):
            to[i] = load(p + i * stride, zero)
    elif is_single(zero) and is_sixteen(p, kind, stride):
        widen(pointer_at(p, _I16), (kind & TYPE_BRAIN) != 0, count, to)
    else:
        for i in range(count):
            to[i] = as_type(zero, load_real(p + i * stride, kind))


@part
def store_run(p, kind, stride, count, given):
    stay_apart()
    zero = as_type(given[0], 0.0)
    if is_single(zero) and is_sixteen(p, kind, stride):
        narrow_down(given, (kind & TYPE_BRAIN) != 0, count, pointer_at(p, _I16))
    else:
        for i in range(count):
            store_real(p + i * stride, kind, np.float64(given[i]))


@part
def load_points(call, cursor, length, zero, room):
    # With subnormals on.
    stay_apart()
    last = call.n_axes - 1
    x = room_at(room, ROOM_X, zero)
    single = room_at(room, ROOM_YES, _F32)
    t = room_at(room, ROOM_GIVEN_T, 0.0)
    v = room_at(room, ROOM_GIVEN_V, 0.0)
    s = room_at(room, ROOM_GIVEN_S, 0.0)
    w = room_at(room, ROOM_GIVEN_W, 0.0)
    if has_weights(call):
        for i in range(length):
            v[i] = 1.0
            s[i] = 1.0
            w[i] = 1.0
    i = 0
    while i < length:
        run = lesser(cursor_run(cursor, call), length - i)
        load_logits(cursor.logits, call.logits.rows.type, call.logits.rows.strides[last], run,
                    moved(x, i))
        if is_single(zero) and are_single(call):
            load_run(cursor.soft, call.soft.rows.type, call.soft.rows.strides[last], run,
                     moved(single, i))
        else:
            load_run(cursor.soft, call.soft.rows.type, call.soft.rows.strides[last], run,
                     moved(t, i))
        if call.pos_weight.data != 0:
            load_run(cursor.pos_weight, call.pos_weight.type, call.pos_weight.strides[last], run,
                     moved(v, i))
        if call.sample_weight.data != 0:
            load_run(cursor.sample_weight, call.sample_weight.type,
                     call.sample_weight.strides[last], run, moved(s, i))
        if call.upstream.data != 0:
            load_run(cursor.upstream, call.upstream.type, call.upstream.strides[last], run,
                     moved(w, i))
        cursor_skip(cursor, call, run)
        i += run


@inlined
def is_far(size):
    # No float32, or none that products may be made of. A NaN too.
    return not ((size == 0.0) | ((size >= NARROW_LEAST) & (size <= NARROW_MOST)))


@inlined
def is_far_point(x, yes, s, w):
    return ((not fabs(x) <= as_type(x, NARROW_MOST)) | is_far(yes) | is_far(s)
            | is_far(fabs(w)))


@part
def prepare_points(call, length, zero, room):
    # From what is given to yes, no and the two factors, in the logits' precision; whether a point
    # is far. With subnormals on.
    stay_apart()
    x = room_at(room, ROOM_X, zero)
    yes = room_at(room, ROOM_YES, zero)
    no = room_at(room, ROOM_NO, zero)
    s = room_at(room, ROOM_S, zero)
    w = room_at(room, ROOM_W, zero)
    given_t = room_at(room, ROOM_GIVEN_T, 0.0)
    given_v = room_at(room, ROOM_GIVEN_V, 0.0)
    given_s = room_at(room, ROOM_GIVEN_S, 0.0)
    given_w = room_at(room, ROOM_GIVEN_W, 0.0)
    scale = call.scale
    refused = np.int32(0)
    far = np.int32(0)
    if is_single(zero) and are_single(call):
        least = as_type(zero, NARROW_LEAST)
        most = as_type(zero, NARROW_MOST)
        for i in range(length):
            share = yes[i]
            refused = counted(refused, is_no_share(share))
            far = counted(far, (not fabs(x[i]) <= most) | ((share < least) & (share > zero)))
            no[i] = as_type(zero, 1.0 - np.float64(share))
        far = counted(far, is_far(fabs(scale)))
    elif not has_weights(call):
        for i in range(length):
            t = given_t[i]
            refused = counted(refused, is_no_share(t))
            far = counted(far, (not fabs(x[i]) <= as_type(zero, NARROW_MOST)) | is_far(t))
            yes[i] = as_type(zero, t)
            no[i] = as_type(zero, 1.0 - t)
        far = counted(far, is_far(fabs(scale)))
    else:
        for i in range(length):
            if given_s[i] == 0.0:  # nothing of it is used
                given_t[i] = 0.0
                x[i] = zero
            t = given_t[i]
            factor = given_s[i] * (scale * given_w[i])
            given_w[i] = factor if given_s[i] != 0.0 else 0.0
            refused = counted(refused, is_no_share(t))
            v = given_v[i] * t
            far = counted(far, is_far_point(x[i], v, given_s[i], given_w[i]))
            yes[i] = as_type(zero, v)
            no[i] = as_type(zero, 1.0 - t)
            s[i] = as_type(zero, given_s[i])
            w[i] = as_type(zero, given_w[i])
    if refused != 0:
        call.refused = 1
    return far != 0


@inlined
def of_sum(w, difference):
    # Of weight 0: +0.
    zero = as_type(w, 0.0)
    return zero if (w == zero) & (difference == difference) else w * difference


@inlined
def compute_point(x, yes, no, k, low):
    # The loss, and its derivative.
    zero = as_type(x, 0.0)
    one = as_type(x, 1.0)
    size = fabs(x)
    e = exp_of(zero - size, k, low, None)
    far = near_inverse(one + e)
    near = e * far
    below = x < zero
    side = choose(below, yes, no)
    other = choose(below, no, yes)
    slope = side * far - other * near
    return of_sum(side, size) + (yes + no) * log1p_of(e), choose(below, zero - slope, slope)


@part
def compute_points(call, length, zero, room):
    stay_apart()
    scale = as_type(zero, call.scale)
    weighted = has_weights(call)
    k, low = power_of(0.0, zero, None)
    own_values = stack(LANES, zero)
    own_g = stack(LANES, zero)
    for i in range(0, length, LANES):  # what is behind the last is harmless
        x = moved(room_at(room, ROOM_X, zero), i)
        yes = moved(room_at(room, ROOM_YES, zero), i)
        no = moved(room_at(room, ROOM_NO, zero), i)
        s = moved(room_at(room, ROOM_S, zero), i)
        w = moved(room_at(room, ROOM_W, zero), i)
        values = moved(room_at(room, ROOM_VALUE, 0.0), i)
        g = moved(room_at(room, ROOM_G, zero), i)
        for j in range(LANES):
            own_values[j], own_g[j] = compute_point(x[j], yes[j], no[j], k, low)
        if weighted:
            for j in range(LANES):
                own_values[j] = s[j] * own_values[j]
                g[j] = of_sum(w[j], own_g[j])
        else:
            for j in range(LANES):
                g[j] = of_sum(scale, own_g[j])
        for j in range(LANES):
            values[j] = np.float64(own_values[j])


@part
def compute_far_points(call, length, zero, room):
    stay_apart()
    x = room_at(room, ROOM_X, zero)
    single = room_at(room, ROOM_YES, _F32)
    given_t = room_at(room, ROOM_GIVEN_T, 0.0)
    given_v = room_at(room, ROOM_GIVEN_V, 0.0)
    given_s = room_at(room, ROOM_GIVEN_S, 0.0)
    given_w = room_at(room, ROOM_GIVEN_W, 0.0)
    g = room_at(room, ROOM_G, zero)
    values = room_at(room, ROOM_VALUE, 0.0)
    weighted = has_weights(call)
    are_floats = are_single(call)
    k, low = power_of(0.0, 0.0, None)
    s = 1.0
    w = call.scale
    for i in range(length):
        t = np.float64(single[i]) if are_floats else given_t[i]
        yes = t
        if weighted:
            yes = given_v[i] * t
            s = given_s[i]
            w = given_w[i]
        if is_far_point(x[i], yes, s, w):
            value, slope = compute_point(np.float64(x[i]), yes, 1.0 - t, k, low)
            values[i] = s * value
            g[i] = as_type(zero, of_sum(w, slope))


@part
def store_points(call, first, piece, length, room):
    # The losses, or their sum; with subnormals on.
    stay_apart()
    values = room_at(room, ROOM_VALUE, 0.0)
    doubles = pointer_at(call.out_rows, 0.0)
    floats = pointer_at(call.out_rows, _F32)
    if call.summed != 0:
        doubles[piece] = block_sum(values, length)
    elif call.out_rows_is_double != 0:
        for i in range(length):
            doubles[first + i] = values[i]
    else:
        for i in range(length):
            floats[first + i] = values[i]


# ---- where they are ------------------------------------------------------------------------------


@inlined
def is_own(matrix, axis, zero):
    # Whether a run's numbers are neighbours of the walk's type, aligned.
    return ((matrix.direct == IN_PLACE or matrix.direct == STRIDED)
            and matrix.rows.strides[axis] == (4 if is_single(zero) else 8))


@part
def are_near(call, cursor, length, zero):
    stay_apart()
    last = call.n_axes - 1
    return (length % LANES == 0 and not has_weights(call)
            and call.scale != 0.0 and not is_far(fabs(call.scale))
            and (not is_single(zero) or are_single(call))
            and cursor_run(cursor, call) >= length
            and is_own(call.logits, last, zero)
            and (call.out_map.rows.data == 0 or is_own(call.out_map, last, zero)))


@part
def targets_near(call, cursor, length, zero, room):
    stay_apart()
    last = call.n_axes - 1
    if is_own(call.soft, last, zero):
        return pointer_at(cursor.soft, zero)
    t = room_at(room, ROOM_YES, zero)
    load_run(cursor.soft, call.soft.rows.type, call.soft.rows.strides[last], length, t)
    return t


@part
def has_far_near(x, t, length):
    # Whether a point is far, or refused: something to look at again. With subnormals on.
    stay_apart()
    zero = as_type(x[0], 0.0)
    one = as_type(zero, 1.0)
    most = as_type(zero, NARROW_MOST)
    least = as_type(zero, NARROW_LEAST)
    found = np.int32(0)
    for i in range(length):
        found = counted(found, (not t[i] >= zero) | (not t[i] <= one) | (not fabs(x[i]) <= most))
    if is_single(zero):
        for i in range(length):
            found = counted(found, (t[i] < least) & (t[i] > zero))
    return found != 0


@inlined
def compute_plain_point(x, t, k, low):
    # compute_point of finite x, yes = t and no = 1 - t, which add up to 1.
    zero = as_type(x, 0.0)
    one = as_type(x, 1.0)
    no = one - t
    size = fabs(x)
    e = exp_of(-size, k, low, None)
    far = near_inverse(one + e)
    near = e * far
    below = x < zero
    side = choose(below, t, no)
    other = choose(below, no, t)
    slope = side * far - other * near
    return side * size + log1p_of(e), choose(below, zero - slope, slope)


@part
def compute_near(call, x, t, out, has_out, piece, length):
    # What compute_points and block_sum do; out: the logits' memory, or none of theirs.
    stay_apart()
    zero = as_type(x[0], 0.0)
    scale = as_type(zero, call.scale)
    first = piece * POINTS
    k, low = power_of(0.0, zero, None)
    lanes = stack(LANES, 0.0)
    own_values = stack(LANES, zero)
    own_g = stack(LANES, zero)
    doubles = pointer_at(call.out_rows, 0.0)
    floats = pointer_at(call.out_rows, _F32)
    for j in range(LANES):
        lanes[j] = 0.0
    for i in range(0, length, LANES):
        p = moved(x, i)
        q = moved(t, i)
        for j in range(LANES):
            own_values[j], own_g[j] = compute_plain_point(p[j], q[j], k, low)
        if has_out:
            g = moved(out, i)
            for j in range(LANES):
                g[j] = scale * own_g[j]
        if call.summed != 0:
            for j in range(LANES):
                lanes[j] += np.float64(own_values[j])
        elif call.out_rows_is_double != 0:
            for j in range(LANES):
                doubles[first + i + j] = np.float64(own_values[j])
        else:
            for j in range(LANES):
                floats[first + i + j] = own_values[j]
    if call.summed != 0:
        doubles[piece] = fold_sum(lanes)


@part
def is_done_near(call, cursor, piece, length, zero, room):
    # With subnormals on, which they are again afterwards.
    stay_apart()
    if not are_near(call, cursor, length, zero):
        return False
    x = pointer_at(cursor.logits, zero)
    t = targets_near(call, cursor, length, zero, room)
    if has_far_near(x, t, length):
        return False
    subnormals(False)
    compute_near(call, x, t, pointer_at(cursor.out_map, zero), call.out_map.rows.data != 0, piece,
                 length)
    subnormals(True)
    return True


# ---- the walk ------------------------------------------------------------------------------------


@beyond_plain(False)
def walk_points(call, lo, hi, zero, control, cursor, room):
    stay_apart()
    last = call.n_axes - 1
    g = room_at(room, ROOM_G, zero)
    for piece in range(lo, hi):
        first = piece * POINTS
        length = lesser(POINTS, call.n_points - first)
        cursor_start(cursor, call, first)
        subnormals(True)
        if is_done_near(call, cursor, piece, length, zero, room):
            if tick(control, length):
                return True
            continue
        load_points(call, cursor, length, zero, room)
        has_far = prepare_points(call, length, zero, room)
        subnormals(False)
        compute_points(call, length, zero, room)
        if is_single(zero) and has_far:
            compute_far_points(call, length, zero, room)
        subnormals(True)
        store_points(call, first, piece, length, room)
        subnormals(False)
        if call.out_map.rows.data != 0:
            cursor_start(cursor, call, first)
            i = 0
            while i < length:
                run = lesser(cursor_run(cursor, call), length - i)
                store_run(cursor.out_map, call.out_map.rows.type,
                          call.out_map.rows.strides[last], run, moved(g, i))
                cursor_skip(cursor, call, run)
                i += run
        if tick(control, length):
            return True
    return False
