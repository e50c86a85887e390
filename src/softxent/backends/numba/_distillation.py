"""Distillation: `backends/cython/_distillation.pxi` is the original, with these names and bits."""

from __future__ import annotations

import ctypes
from ctypes import c_double

import numpy as np

from softxent.backends.numba._elementary import (
    exp_of,
    inverse_of,
    limit_of,
    log1p_any,
    pow2,
    power_of,
    subnormals,
    times,
    two_sum,
)
from softxent.backends.numba._exp_many import fold_sum
from softxent.backends.numba._head import finish_reduce, or_nan, store_values, summed
from softxent.backends.numba._jit import (
    address_of,
    as_type,
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
from softxent.backends.numba._layout import GROUP, Call, Cursor, Matrix, PlainCall, Rows
from softxent.backends.numba._load import cursor_start, greater, lesser, load_real, store_real
from softxent.backends.numba._map import (
    beside,
    is_narrow,
    kind_of,
    map_columns,
    map_mixed,
    map_run,
)
from softxent.backends.numba._reduce import (
    add,
    counted,
    gap_of,
    reduce_block,
    reduce_columns,
    reduce_slow,
    reduce_soft_columns,
    slow_gap,
)
from softxent.backends.numba._rows import (
    BLOCK,
    CROSS_ENTROPY,
    FAST,
    INF,
    LANES,
    MIX_POWER,
    MIX_UNIT,
    NAN,
    NEAR,
    POISONED,
    ROOM_BLOCK,
    ROOM_CAPPED,
    ROOM_LOGITS,
    ROOM_OUT,
    ROOM_SOFT,
    ROOM_TARGETS,
    SKIPPED,
    SLOW,
    SMALL,
    SOFTMAX,
    block_length,
    blocks_of,
    clear_unused,
    gather,
    is_single,
    load_rows,
    room_at,
    row_block,
    scatter,
    store_block,
    tick,
)


class Distillation(ctypes.Structure):
    """Three softmaxes of the same rows, and two sums that need both logits."""

    _fields_ = [
        ("share", c_double),  # of cross-entropy: h
        ("spread", c_double),  # what the divergence is multiplied with: (1 - h) temperature^2
        ("student", PlainCall), ("teacher", PlainCall), ("hard", Call),
        ("at_student", Cursor), ("at_teacher", Cursor), ("at_hard", Cursor),
        ("of_student", Rows), ("of_teacher", Rows), ("of_hard", Rows),
        *((name, c_double * GROUP) for name in (
            "mix", "mix_carry", "cross", "cross_carry",
            "impossible")),  # 1: the teacher gives a class some mass that the student excludes
    ]


_WORD = 8
WORDS = ctypes.sizeof(Distillation) // _WORD
CALL_WORDS = ctypes.sizeof(Call) // _WORD
MATRIX_WORDS = ctypes.sizeof(Matrix) // _WORD


@inlined
def clear(structure, words):
    to = pointer_at(address_of(structure), np.int64(0))
    for i in range(words):
        to[i] = 0


@inlined
def copy(structure, words, to_structure):
    source = pointer_at(address_of(structure), np.int64(0))
    to = pointer_at(address_of(to_structure), np.int64(0))
    for i in range(words):
        to[i] = source[i]


@part
def start_parts(call, d, lo):
    stay_apart()
    clear(d, WORDS)
    d.share = call.hard_weight
    d.spread = (1.0 - call.hard_weight) * call.temperature * call.temperature
    copy(call, CALL_WORDS, d.hard)
    clear(d.hard.soft, MATRIX_WORDS)
    d.hard.op = CROSS_ENTROPY
    d.hard.temperature = 1.0
    d.hard.scale = call.scale * d.share
    d.hard.out_rows = 0
    copy(d.hard, CALL_WORDS, d.student)
    d.student.op = SOFTMAX
    d.student.temperature = call.temperature
    d.student.scale = call.scale * ((1.0 - call.hard_weight) * call.temperature)
    d.student.out_rows = call.out_rows
    d.student.class_weight = 0
    d.student.class_weight_real = 0
    d.student.class_unit = 1.0
    d.student.smoothing = 0.0
    copy(d.student, CALL_WORDS, d.teacher)
    copy(call.soft, MATRIX_WORDS, d.teacher.logits)
    cursor_start(d.at_student, d.student, lo)
    cursor_start(d.at_teacher, d.teacher, lo)
    cursor_start(d.at_hard, d.hard, lo)
    for j in range(GROUP):
        d.of_hard.focus[j] = 1.0
        d.of_hard.pull[j] = 1.0


@part
def load_parts(d, count):
    stay_apart()
    subnormals(True)
    load_rows(d.student, d.at_student, d.of_student, count)
    load_rows(d.teacher, d.at_teacher, d.of_teacher, count)
    if d.share > 0.0:
        load_rows(d.hard, d.at_hard, d.of_hard, count)
    subnormals(False)
    for j in range(GROUP):
        # Which rows count, the targets have said.
        d.of_student.y[j] = -1
        d.of_teacher.y[j] = -1
        d.mix[j] = 0.0
        d.mix_carry[j] = 0.0
        d.cross[j] = 0.0
        d.cross_carry[j] = 0.0
        d.impossible[j] = 0.0


@inlined
def has_hard(d, j, lane):
    # Whether the row has a term of cross-entropy, and goes that lane with it.
    return d.share > 0.0 and d.of_hard.lane[j] == lane


# ---- reduce --------------------------------------------------------------------------------------


@part
def block_gaps(x, u, length, top_z, top_u, k, low, scale):
    # Sums of e (top_u - u) and e (top_z - x), of e = exp(u); see block_mix.
    stay_apart()
    mixes = stack(LANES, 0.0)
    crosses = stack(LANES, 0.0)
    for j in range(LANES):
        mixes[j] = 0.0
        crosses[j] = 0.0
    i = 0
    while i + LANES <= length:
        p = moved(u, i)
        q = moved(x, i)
        for j in range(LANES):
            e = np.float64(exp_of(p[j], k, low, scale))
            mixes[j] += e * gap_of(p[j], top_u)
            crosses[j] += e * gap_of(q[j], top_z)
        i += LANES
    for j in range(length - i):
        e = np.float64(exp_of(u[i + j], k, low, scale))
        mixes[j] += e * gap_of(u[i + j], top_u)
        crosses[j] += e * gap_of(x[i + j], top_z)
    return fold_sum(mixes), fold_sum(crosses)


@part
def has_excluded(x, u, length):
    stay_apart()
    found = np.int32(0)
    for i in range(length):
        found = counted(found, (x[i] == -INF) & (u[i] != -INF))
    return found != 0


@inlined
def rise(total, carry, j, so_far, before, top):
    # A sum of e (top - z) after its largest logit has risen from `before`, e adding up to `so_far`.
    if top > before and before > -INF and so_far > 0.0:
        two_sum(total, carry, j, so_far * MIX_UNIT * (top - before))


@part
def reduce_parts(d, j, x, u, k0, length, scale, room):
    stay_apart()
    zero = as_type(x[0], 0.0)
    student = d.of_student
    teacher = d.of_teacher
    n = teacher.n[j]
    top_z = student.top[j]
    top_u = teacher.top[j]
    so_far = (teacher.rest[j] + teacher.carry[j]) + teacher.e_top[j]
    reduce_block(d.student, student, j, x, x, False, k0, length, scale, room)
    reduce_block(d.teacher, teacher, j, u, u, False, k0, length, scale, room)
    if has_hard(d, j, FAST):
        reduce_block(d.hard, d.of_hard, j, x, x, False, k0, length, None, room)
    if student.lane[j] != FAST or teacher.lane[j] != FAST:
        return
    if has_excluded(x, u, length):
        d.impossible[j] = 1.0
    if not teacher.top[j] > -INF:
        return
    if top_u > -INF:
        shift = pow2(n - teacher.n[j])
        so_far *= shift
        d.mix[j] *= shift
        d.mix_carry[j] *= shift
        d.cross[j] *= shift
        d.cross_carry[j] *= shift
        rise(d.mix, d.mix_carry, j, so_far, top_u, teacher.top[j])
        rise(d.cross, d.cross_carry, j, so_far, top_z, student.top[j])
    k, low = power_of(teacher.n[j] - MIX_POWER, zero, scale)
    mix, cross = block_gaps(x, u, length, as_type(zero, student.top[j]),
                            as_type(zero, teacher.top[j]), k, low, scale)
    two_sum(d.mix, d.mix_carry, j, mix)
    two_sum(d.cross, d.cross_carry, j, cross)


@part
def gaps_columns(d, classes, x, u, scale):
    # C <= 64: class k of row j at k GROUP + j.
    stay_apart()
    zero = as_type(x[0], 0.0)
    k_of = stack(GROUP, zero)
    low_of = stack(GROUP, zero)
    top_z = stack(GROUP, zero)
    top_u = stack(GROUP, zero)
    for j in range(GROUP):
        k_of[j], low_of[j] = power_of(d.of_teacher.n[j] - MIX_POWER, zero, scale)
        top_z[j] = as_type(zero, d.of_student.top[j])
        top_u[j] = as_type(zero, d.of_teacher.top[j])
    for i in range(classes):
        p = moved(u, i * GROUP)
        q = moved(x, i * GROUP)
        for j in range(GROUP):
            e = np.float64(exp_of(p[j], k_of[j], low_of[j], scale))
            add(zero, d.mix, d.mix_carry, j, e * gap_of(p[j], top_u[j]))
            add(zero, d.cross, d.cross_carry, j, e * gap_of(q[j], top_z[j]))
        for j in range(GROUP):
            d.impossible[j] = choose((q[j] == -INF) & (p[j] != -INF), 1.0, d.impossible[j])


@part
def gaps_slow(d, j, scale, control):
    # After reduce_slow of both.
    stay_apart()
    student = d.of_student
    teacher = d.of_teacher
    power, low = power_of(teacher.n[j] - MIX_POWER, 0.0, scale)
    student.gap_unit[j] *= student.gap_unit[j]  # for e is as much larger here
    d.mix[j] = 0.0
    d.mix_carry[j] = 0.0
    d.cross[j] = 0.0
    d.cross_carry[j] = 0.0
    d.impossible[j] = 0.0
    for k in range(d.student.n_classes):
        z = load_real(student.z[j] + k * d.student.logits.class_stride,
                      d.student.logits.rows.type)
        u = load_real(teacher.z[j] + k * d.teacher.logits.class_stride,
                      d.teacher.logits.rows.type)
        if z == -INF and u != -INF:
            d.impossible[j] = 1.0
        e = exp_of(u - teacher.moved[j], power, low, scale)
        two_sum(d.mix, d.mix_carry, j, slow_gap(e, teacher.top[j], u, 1.0))
        two_sum(d.cross, d.cross_carry, j, slow_gap(e, student.top[j], z, student.gap_unit[j]))
        if (k & 65535) == 65535 and tick(control, 65536):
            return True
    return False


@part
def is_slow(d, j, limit, hard_limit):
    return (d.of_student.lane[j] == SLOW or d.of_teacher.lane[j] == SLOW
            or not fabs(d.of_student.top[j]) <= limit
            or not fabs(d.of_teacher.top[j]) <= limit
            or not d.cross[j] < INF
            or has_hard(d, j, SLOW)
            or (has_hard(d, j, FAST) and not (fabs(d.of_hard.top[j]) <= hard_limit
                                              and d.of_hard.flat.gap[j] < INF)))


@part
def finish_parts(call, d, first, zero, scale, control):
    # The slow rows, all of which is then slow; and the heads.
    limit = limit_of(zero, scale)
    hard_limit = limit_of(zero, None)
    for j in range(d.of_student.count):
        d.of_student.gap_unit[j] = 1.0
        lane = d.of_student.lane[j]
        if (lane != FAST and lane != SLOW) or not is_slow(d, j, limit, hard_limit):
            continue
        d.of_student.lane[j] = SLOW
        d.of_teacher.lane[j] = SLOW
        if has_hard(d, j, FAST):
            d.of_hard.lane[j] = SLOW
        subnormals(call.all_slow != 0)
        if (reduce_slow(d.student, d.of_student, j, scale, control)
                or reduce_slow(d.teacher, d.of_teacher, j, scale, control)
                or gaps_slow(d, j, scale, control)):
            return True
        subnormals(False)
    if d.share > 0.0 and finish_reduce(d.hard, d.of_hard, first, zero, None, control):
        return True
    head_distillation(d, scale)
    subnormals(True)
    store_values(d.student, d.of_student, first)
    subnormals(False)
    return False


# ---- head ----------------------------------------------------------------------------------------


@part
def head_distillation(d, scale):
    stay_apart()
    several = 1.0 if d.student.n_classes > 1 else 0.0
    spread = d.spread
    share = d.share
    inverse = inverse_of(scale)
    for j in range(GROUP):
        rest = d.of_student.rest[j] + d.of_student.carry[j]
        e_top = d.of_student.e_top[j]
        total_z = rest + e_top
        value = log1p_any(rest / e_top)
        rest = d.of_teacher.rest[j] + d.of_teacher.carry[j]
        e_top = d.of_teacher.e_top[j]
        total_u = rest + e_top
        value = value - log1p_any(rest / e_top)
        unit = inverse / MIX_UNIT / total_u
        cross = times(summed(d.cross[j], d.cross_carry[j]) * unit, d.of_student.gap_unit[j])
        mix = summed(d.mix[j], d.mix_carry[j]) * unit
        value = value + (cross - mix)
        value = 0.0 if value < 0.0 else value
        value = INF if d.impossible[j] > 0.0 else value
        value = spread * or_nan(or_nan(value, total_z), total_u)
        d.of_student.value[j] = d.of_student.weight[j] * value
        d.of_student.weight[j] = 1.0
        w = d.of_student.w[j] * several
        d.of_student.a[j] = w / total_z
        d.of_teacher.a[j] = (0.0 - w) / total_u
    if share > 0.0:
        for j in range(d.of_student.count):
            d.of_student.value[j] += share * (d.of_hard.weight[j] * d.of_hard.value[j])


# ---- map -----------------------------------------------------------------------------------------


@part
def map_parts(d, j, x, u, hard, has_hard_part, out, length, scale):
    # p a - q a', each rounded, so that they are 0 where both are the same; hard: cross-entropy's.
    # out is no other's memory.
    stay_apart()
    zero = as_type(x[0], 0.0)
    wide_a = d.of_student.a[j]
    wide_b = d.of_teacher.a[j]
    a = as_type(zero, wide_a)
    b = as_type(zero, wide_b)
    k_z, low_z = power_of(d.of_student.n[j], zero, scale)
    k_u, low_u = power_of(d.of_teacher.n[j], zero, scale)
    if not (is_narrow(wide_a) and is_narrow(wide_b)):
        for i in range(length):
            value = (times(np.float64(exp_of(x[i], k_z, low_z, scale)), wide_a)
                     + times(np.float64(exp_of(u[i], k_u, low_u, scale)), wide_b))
            out[i] = as_type(zero, value + (np.float64(hard[i]) if has_hard_part else 0.0))
        return
    for i in range(length):
        out[i] = (fma(exp_of(x[i], k_z, low_z, scale), a, zero)
                  + fma(exp_of(u[i], k_u, low_u, scale), b, zero))
    if has_hard_part:
        for i in range(length):
            out[i] += hard[i]


@part
def map_hard(d, j, x, out, k0, length, room):
    stay_apart()
    y = d.of_hard.y[j]
    if d.hard.smoothing > 0.0:
        map_mixed(d.hard, d.of_hard, j, x, x, False, x, False, out, k0, length, None, room, 0)
    else:
        map_run(d.of_hard, j, x, x, False, out, k0, length, None, 0)
    if k0 <= y < k0 + length:
        out[y - k0] = as_type(x[0], d.of_hard.apart[j])


@part
def map_parts_slow(call, d, j, g, g_stride, g_kind, scale, control):
    # A whole row that is not FAST, to address g; the student's logits and g may be the same memory.
    stay_apart()
    hard = has_hard(d, j, SLOW)
    k_z, low_z = power_of(d.of_student.n[j], 0.0, scale)
    k_u, low_u = power_of(d.of_teacher.n[j], 0.0, scale)
    k_hard, low_hard = power_of(d.of_hard.n[j], 0.0, None)
    subnormals(call.all_slow != 0)
    for k in range(call.n_classes):
        if d.of_student.lane[j] == SKIPPED:
            value = 0.0
        elif d.of_student.lane[j] == POISONED:
            value = NAN
        else:
            z = load_real(d.of_student.z[j] + k * call.logits.class_stride, call.logits.rows.type)
            u = load_real(d.of_teacher.z[j] + k * call.soft.class_stride, call.soft.rows.type)
            value = (times(exp_of(z - d.of_student.moved[j], k_z, low_z, scale), d.of_student.a[j])
                     + times(exp_of(u - d.of_teacher.moved[j], k_u, low_u, scale),
                             d.of_teacher.a[j]))
            if hard:
                if k == d.of_hard.y[j]:
                    value += d.of_hard.apart[j]
                else:
                    value += (times(exp_of(z - d.of_hard.moved[j], k_hard, low_hard, None),
                                    d.of_hard.a[j])
                              + beside(d.hard, d.of_hard, j, 0.0, k))
        store_real(g + k * g_stride, g_kind, value)
        if (k & 65535) == 65535 and tick(control, 65536):
            return True
    subnormals(False)
    return False


@part
def map_columns_parts(call, d, hard, has_hard_part, u, e):
    # From kept e of the student and the teacher (u) to the result, in e; hard: cross-entropy's.
    stay_apart()
    zero = as_type(e[0], 0.0)
    a = stack(GROUP, zero)
    b = stack(GROUP, zero)
    has = stack(GROUP, zero)
    for j in range(GROUP):
        a[j] = as_type(zero, d.of_student.a[j])
        b[j] = as_type(zero, d.of_teacher.a[j])
        has[j] = as_type(zero, 1.0 if has_hard(d, j, FAST) else 0.0)
    for i in range(call.n_classes):
        p = moved(e, i * GROUP)
        q = moved(u, i * GROUP)
        for j in range(GROUP):
            p[j] = fma(p[j], a[j], zero) + fma(q[j], b[j], zero)
        if has_hard_part:
            h = moved(hard, i * GROUP)
            for j in range(GROUP):
                p[j] += choose(has[j] > zero, h[j], zero)


@part
def map_wide_columns(call, d, u, e):
    # Rows whose factors need float64: done before all, their factors then 1 and 0.
    stay_apart()
    zero = as_type(e[0], 0.0)
    for j in range(d.of_student.count):
        if d.of_student.lane[j] != FAST or (is_narrow(d.of_student.a[j])
                                            and is_narrow(d.of_teacher.a[j])):
            continue
        for i in range(call.n_classes):
            value = (times(np.float64(e[i * GROUP + j]), d.of_student.a[j])
                     + times(np.float64(u[i * GROUP + j]), d.of_teacher.a[j]))
            e[i * GROUP + j] = as_type(zero, value)
        d.of_student.a[j] = 1.0
        d.of_teacher.a[j] = 0.0


# ---- the walk ------------------------------------------------------------------------------------


@part
def walk_small_group(call, d, first, zero, scale, control, room):
    # C <= 64: tiles in which rows are neighbours.
    stay_apart()
    classes = call.n_classes
    e = room_at(room, ROOM_LOGITS, zero)
    x = moved(e, GROUP * SMALL)
    teacher_e = moved(x, GROUP * SMALL)
    u = moved(teacher_e, GROUP * SMALL)
    hard = room_at(room, ROOM_SOFT, zero)
    unweighted = moved(hard, GROUP * SMALL)
    gather(d.student.logits, d.of_student.z, d.of_student.count, 0, classes, 1, GROUP, 0, x)
    gather(d.teacher.logits, d.of_teacher.z, d.of_student.count, 0, classes, 1, GROUP, 0, u)
    clear_unused(d.of_student, classes, x)
    clear_unused(d.of_student, classes, u)
    reduce_columns(d.of_student, classes, x, e, scale)
    reduce_columns(d.of_teacher, classes, u, teacher_e, scale)
    gaps_columns(d, classes, x, u, scale)
    if d.share > 0.0:
        reduce_columns(d.of_hard, classes, x, hard, None)
        if d.hard.smoothing > 0.0:
            subnormals(True)
            reduce_soft_columns(d.hard, d.of_hard, x, x, False, unweighted)
            subnormals(False)
    if finish_parts(call, d, first, zero, scale, control):
        return True
    if call.out_map.rows.data == 0:
        return False
    if d.share > 0.0:
        map_columns(d.hard, d.of_hard, x, x, False, x, False, hard, None)
    map_wide_columns(call, d, teacher_e, e)
    map_columns_parts(call, d, hard, d.share > 0.0, teacher_e, e)
    kind = kind_of(zero)
    size = 4 if is_single(zero) else 8
    for j in range(d.of_student.count):
        g = address_of(e) + j * size
        if d.of_student.lane[j] != FAST and map_parts_slow(
                call, d, j, g, GROUP * size, kind, scale, control):
            return True
    scatter(call.out_map, d.of_student.g, d.of_student.count, 0, classes, 1, GROUP, 0, e)
    return False


@part
def reduce_group(d, classes, zero, scale, control, room):
    stay_apart()
    near_x = room_at(room, ROOM_BLOCK, zero)
    near_u = room_at(room, ROOM_TARGETS, zero)
    for j in range(d.of_student.count):
        for b in range(blocks_of(classes)):
            if d.of_student.lane[j] != FAST or d.of_teacher.lane[j] != FAST:
                break
            k0 = b * BLOCK
            length = block_length(k0, classes)
            x = row_block(d.student, d.of_student, j, k0, length, near_x)
            u = row_block(d.teacher, d.of_teacher, j, k0, length, near_u)
            reduce_parts(d, j, x, u, k0, length, scale, room)
            if tick(control, 2 * length):
                return True
    return False


@part
def walk_group(call, d, first, zero, scale, control, room):
    stay_apart()
    classes = call.n_classes
    near_x = room_at(room, ROOM_BLOCK, zero)
    near_u = room_at(room, ROOM_TARGETS, zero)
    hard = room_at(room, ROOM_CAPPED, zero)
    out = room_at(room, ROOM_OUT, zero)
    if reduce_group(d, classes, zero, scale, control, room):
        return True
    if finish_parts(call, d, first, zero, scale, control):
        return True
    if call.out_map.rows.data == 0:
        return False
    for j in range(d.of_student.count):
        if d.of_student.lane[j] != FAST:
            if map_parts_slow(call, d, j, d.of_student.g[j], call.out_map.class_stride,
                              call.out_map.rows.type, scale, control):
                return True
            continue
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            x = row_block(d.student, d.of_student, j, k0, length, near_x)
            u = row_block(d.teacher, d.of_teacher, j, k0, length, near_u)
            has_part = has_hard(d, j, FAST)
            if has_part:
                map_hard(d, j, x, hard, k0, length, room)
            map_parts(d, j, x, u, hard, has_part, out, length, scale)
            store_block(call.out_map, d.of_student.g[j] + k0 * call.out_map.class_stride, length,
                        out)
            if tick(control, 2 * length):
                return True
    return False


@part
def walk_distillation(call, lo, hi, zero, scale, control, d, room):
    stay_apart()
    is_small = call.n_classes <= SMALL
    together = GROUP if is_small else lesser(greater(NEAR // (2 * call.n_classes), 1), GROUP)
    start_parts(call, d, lo)
    i = lo
    while i < hi:
        load_parts(d, lesser(hi - i, together))
        if is_small:
            if walk_small_group(call, d, i, zero, scale, control, room):
                return True
            if tick(control, 2 * d.of_student.count * call.n_classes):
                return True
        elif walk_group(call, d, i, zero, scale, control, room):
            return True
        i += d.of_student.count
    return False
