# ---- distillation --------------------------------------------------------------------------------
#
# Three softmaxes of a row, block by block side by side: the student's and the teacher's at the
# temperature, and the student's at 1 under cross-entropy, where that has a share. Each has a call and
# rows of its own, for the functions that all losses share. Two sums need both logits: with u the
# teacher's, e = exp(u) / 2^n, both of e times a gap,
#
#   mix = sum of e (top_u - u),    cross = sum of e (top_z - z),
#
# over the row's references so far. The divergence is the difference of two sums of terms >= 0,
#
#   [log1p(S'_z / e_z,top) + cross / S_u] - [log1p(S'_u / e_u,top) + mix / S_u],
#
# exactly 0 where both logits are the same.

from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef struct Distillation:
    double share                # of cross-entropy: h
    double spread               # what the divergence is multiplied with: (1 - h) temperature^2
    sx_call student
    sx_call teacher
    sx_call hard
    sx_cursor at_student
    sx_cursor at_teacher
    sx_cursor at_hard
    Rows of_student
    Rows of_teacher
    Rows of_hard
    double mix[GROUP]           # over 2^n as the entropy's: MIX_POWER lower
    double mix_carry[GROUP]
    double cross[GROUP]
    double cross_carry[GROUP]
    double impossible[GROUP]    # 1: the teacher gives a class some mass that the student excludes


cdef void start_parts(const sx_call* call, Distillation* d, int64_t lo) noexcept nogil:
    cdef int64_t j
    d.share = call.hard_weight
    d.spread = (1.0 - call.hard_weight) * call.temperature * call.temperature
    d.hard = call[0]
    memset(&d.hard.soft, 0, sizeof(sx_matrix))
    d.hard.op = CROSS_ENTROPY
    d.hard.temperature = 1.0
    d.hard.scale = call.scale * d.share
    d.hard.out_rows = NULL
    d.student = d.hard
    d.student.op = SOFTMAX
    d.student.temperature = call.temperature
    d.student.scale = call.scale * ((1.0 - call.hard_weight) * call.temperature)
    d.student.out_rows = call.out_rows
    d.student.class_weight = NULL
    d.student.class_weight_real = NULL
    d.student.class_unit = 1.0
    d.student.smoothing = 0.0
    d.teacher = d.student
    d.teacher.logits = call.soft
    sx_cursor_start(&d.at_student, &d.student, lo)
    sx_cursor_start(&d.at_teacher, &d.teacher, lo)
    sx_cursor_start(&d.at_hard, &d.hard, lo)
    keep_nothing(&d.of_student)
    keep_nothing(&d.of_teacher)
    keep_nothing(&d.of_hard)
    for j in range(GROUP):
        d.of_hard.focus[j] = 1.0
        d.of_hard.pull[j] = 1.0


cdef void load_parts(Distillation* d, int64_t count) noexcept nogil:
    cdef int64_t j
    sx_float_subnormals(True)
    load_rows(&d.student, &d.at_student, &d.of_student, count)
    load_rows(&d.teacher, &d.at_teacher, &d.of_teacher, count)
    if d.share > 0.0:
        load_rows(&d.hard, &d.at_hard, &d.of_hard, count)
    sx_float_subnormals(False)
    for j in range(GROUP):
        # Which rows count, the targets have said.
        d.of_student.y[j] = d.of_teacher.y[j] = -1
        d.mix[j] = d.mix_carry[j] = 0.0
        d.cross[j] = d.cross_carry[j] = 0.0
        d.impossible[j] = 0.0


cdef inline bint has_hard(Distillation* d, int64_t j, int64_t lane) noexcept nogil:
    # Whether the row has a term of cross-entropy, and goes that lane with it.
    return d.share > 0.0 and d.of_hard.lane[j] == lane


# ---- reduce

cdef void block_gaps(const real* x, const real* u, int64_t length, real top_z, real top_u, real k,
                     real low, const sx_scale* scale, double* mix, double* cross) noexcept nogil:
    # Sums of e (top_u - u) and e (top_z - x), of e = exp(u); see block_mix.
    cdef double mixes[LANES]
    cdef double crosses[LANES]
    cdef double e
    cdef int64_t i, j
    for j in range(LANES):
        mixes[j] = 0.0
        crosses[j] = 0.0
    i = 0
    while i + LANES <= length:
        for j in range(LANES):
            e = <double>exp_of(u[i + j], k, low, scale)
            mixes[j] += e * gap_of(u[i + j], top_u)
            crosses[j] += e * gap_of(x[i + j], top_z)
        i += LANES
    for j in range(length - i):
        e = <double>exp_of(u[i + j], k, low, scale)
        mixes[j] += e * gap_of(u[i + j], top_u)
        crosses[j] += e * gap_of(x[i + j], top_z)
    mix[0] = sx_fold_lanes(mixes)
    cross[0] = sx_fold_lanes(crosses)


cdef bint has_excluded(const real* x, const real* u, int64_t length) noexcept nogil:
    cdef int64_t i
    cdef int found = 0
    for i in range(length):
        found |= (x[i] == <real>-INFINITY) & (u[i] != <real>-INFINITY)
    return found != 0


cdef inline void rise(double* total, double* carry, double so_far, double before,
                      double top) noexcept nogil:
    # A sum of e (top - z) after its largest logit has risen from `before`, e adding up to `so_far`.
    if top > before > -INFINITY and so_far > 0.0:
        sx_two_sum(total, carry, so_far * MIX_UNIT * (top - before))


cdef void reduce_parts(Distillation* d, int64_t j, const real* x, const real* u, int64_t k0,
                       int64_t length, const sx_scale* scale, char* room) noexcept nogil:
    cdef sx_unit unit
    cdef Rows* student = &d.of_student
    cdef Rows* teacher = &d.of_teacher
    cdef double n = teacher.n[j], top_z = student.top[j], top_u = teacher.top[j], shift, mix, cross
    cdef double so_far = (teacher.rest[j] + teacher.carry[j]) + teacher.e_top[j]
    cdef real k, low
    cdef real largest = block_top(x, length)
    cdef Next none = nothing_next()
    reduce_block(&d.student, student, j, x, <const real*>NULL, k0, length, largest, 0, &none, scale, room)
    reduce_block(&d.teacher, teacher, j, u, <const real*>NULL, k0, length, block_top(u, length), 0, &none,
                 scale, room)
    if has_hard(d, j, FAST):
        reduce_block(&d.hard, &d.of_hard, j, x, <const real*>NULL, k0, length, largest, 0, &none, &unit,
                     room)
    if student.lane[j] != FAST or teacher.lane[j] != FAST:
        return
    if has_excluded(x, u, length):
        d.impossible[j] = 1.0
    if not teacher.top[j] > -INFINITY:
        return
    if top_u > -INFINITY:
        shift = sx_pow2(n - teacher.n[j])
        so_far *= shift
        d.mix[j] *= shift
        d.mix_carry[j] *= shift
        d.cross[j] *= shift
        d.cross_carry[j] *= shift
        rise(&d.mix[j], &d.mix_carry[j], so_far, top_u, teacher.top[j])
        rise(&d.cross[j], &d.cross_carry[j], so_far, top_z, student.top[j])
    power_of(teacher.n[j] - MIX_POWER, &k, &low, scale)
    block_gaps(x, u, length, <real>student.top[j], <real>teacher.top[j], k, low, scale, &mix, &cross)
    sx_two_sum(&d.mix[j], &d.mix_carry[j], mix)
    sx_two_sum(&d.cross[j], &d.cross_carry[j], cross)


cdef void gaps_columns(Distillation* d, int64_t classes, const real* x, const real* u,
                       const sx_scale* scale) noexcept nogil:
    # C <= 64: class k of row j at k GROUP + j.
    cdef real k_of[GROUP]
    cdef real low_of[GROUP]
    cdef real top_z[GROUP]
    cdef real top_u[GROUP]
    cdef double e
    cdef int64_t i, j
    for j in range(GROUP):
        power_of(d.of_teacher.n[j] - MIX_POWER, &k_of[j], &low_of[j], scale)
        top_z[j] = <real>d.of_student.top[j]
        top_u[j] = <real>d.of_teacher.top[j]
    for i in range(classes):
        for j in range(GROUP):
            e = <double>exp_of(u[i * GROUP + j], k_of[j], low_of[j], scale)
            add(<real*>NULL, &d.mix[j], &d.mix_carry[j], e * gap_of(u[i * GROUP + j], top_u[j]))
            add(<real*>NULL, &d.cross[j], &d.cross_carry[j], e * gap_of(x[i * GROUP + j], top_z[j]))
        for j in range(GROUP):
            d.impossible[j] = 1.0 if (x[i * GROUP + j] == <real>-INFINITY) & (
                u[i * GROUP + j] != <real>-INFINITY) else d.impossible[j]


cdef int gaps_slow(Distillation* d, int64_t j, const sx_scale* scale,
                   sx_control* control) noexcept nogil:
    # After reduce_slow of both.
    cdef int64_t k
    cdef double z, u, e, power, low
    cdef Rows* student = &d.of_student
    cdef Rows* teacher = &d.of_teacher
    power_of(teacher.n[j] - MIX_POWER, &power, &low, scale)
    student.gap_unit[j] *= student.gap_unit[j]    # for e is as much larger here
    d.mix[j] = d.mix_carry[j] = 0.0
    d.cross[j] = d.cross_carry[j] = 0.0
    d.impossible[j] = 0.0
    for k in range(d.student.n_classes):
        z = sx_load_real(student.z[j] + k * d.student.logits.class_stride,
                         d.student.logits.rows.type)
        u = sx_load_real(teacher.z[j] + k * d.teacher.logits.class_stride,
                         d.teacher.logits.rows.type)
        if z == -INFINITY and u != -INFINITY:
            d.impossible[j] = 1.0
        e = exp_of(u - teacher.moved[j], power, low, scale)
        sx_two_sum(&d.mix[j], &d.mix_carry[j], slow_gap(e, teacher.top[j], u, 1.0))
        sx_two_sum(&d.cross[j], &d.cross_carry[j],
                   slow_gap(e, student.top[j], z, student.gap_unit[j]))
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    return 0


cdef int finish_parts(const sx_call* call, Distillation* d, int64_t first, real* unused,
                      const sx_scale* scale, sx_control* control) noexcept nogil:
    # The slow rows, all of which is then slow; and the heads.
    cdef sx_unit unit
    cdef int64_t j
    cdef double limit = limit_of(unused, scale), hard_limit = limit_of(unused, &unit)
    cdef bint slow
    for j in range(d.of_student.count):
        d.of_student.gap_unit[j] = 1.0
        if d.of_student.lane[j] not in (FAST, SLOW):
            continue
        slow = (d.of_student.lane[j] == SLOW or d.of_teacher.lane[j] == SLOW
                or not fabs(d.of_student.top[j]) <= limit
                or not fabs(d.of_teacher.top[j]) <= limit
                or not d.cross[j] < INFINITY)
        slow = slow or has_hard(d, j, SLOW) or (
            has_hard(d, j, FAST) and not (fabs(d.of_hard.top[j]) <= hard_limit
                                          and d.of_hard.flat.gap[j] < INFINITY))
        if not slow:
            continue
        d.of_student.lane[j] = d.of_teacher.lane[j] = SLOW
        if has_hard(d, j, FAST):
            d.of_hard.lane[j] = SLOW
        sx_float_subnormals(call.all_slow != 0)
        if (reduce_slow(&d.student, &d.of_student, j, scale, control)
                or reduce_slow(&d.teacher, &d.of_teacher, j, scale, control)
                or gaps_slow(d, j, scale, control)):
            return SX_STOPPED
        sx_float_subnormals(False)
    if d.share > 0.0 and finish_reduce(&d.hard, &d.of_hard, first, unused, &unit, control):
        return SX_STOPPED
    head_distillation(d, scale)
    store_values(&d.student, &d.of_student, first)
    return 0


# ---- head

cdef void head_distillation(Distillation* d, const sx_scale* scale) noexcept nogil:
    cdef double rest, e_top, total_z, total_u, value, apart, cross, mix, unit
    cdef double several = 1.0 if d.student.n_classes > 1 else 0.0
    cdef int64_t j
    for j in range(lanes_of(&d.of_student)):
        rest = d.of_student.rest[j] + d.of_student.carry[j]
        e_top = d.of_student.e_top[j]
        total_z = rest + e_top
        value = sx_log1p_any(rest / e_top)
        rest = d.of_teacher.rest[j] + d.of_teacher.carry[j]
        e_top = d.of_teacher.e_top[j]
        total_u = rest + e_top
        value = value - sx_log1p_any(rest / e_top)
        unit = scale.inverse / MIX_UNIT / total_u
        cross = times(summed(d.cross[j], d.cross_carry[j]) * unit, d.of_student.gap_unit[j])
        mix = summed(d.mix[j], d.mix_carry[j]) * unit
        value = value + (cross - mix)
        value = 0.0 if value < 0.0 else value
        value = INFINITY if d.impossible[j] > 0.0 else value
        value = d.spread * or_nan(or_nan(value, total_z), total_u)
        d.of_student.value[j] = d.of_student.weight[j] * value
        d.of_student.weight[j] = 1.0
        apart = d.of_student.w[j] * several
        d.of_student.a[j] = apart / total_z
        d.of_teacher.a[j] = (0.0 - apart) / total_u
    if d.share > 0.0:
        for j in range(d.of_student.count):
            d.of_student.value[j] += d.share * (d.of_hard.weight[j] * d.of_hard.value[j])


# ---- map

cdef void map_parts(Distillation* d, int64_t j, const real* x, const real* u, const real* hard,
                    real* out, int64_t length, const sx_scale* scale) noexcept nogil:
    # p a - q a', each rounded, so that they are 0 where both are the same; hard: cross-entropy's,
    # or NULL. out is no other's memory.
    cdef double a = d.of_student.a[j], b = d.of_teacher.a[j]
    cdef real narrow_a = <real>a, narrow_b = <real>b, k_z, low_z, k_u, low_u
    cdef int64_t i
    power_of(d.of_student.n[j], &k_z, &low_z, scale)
    power_of(d.of_teacher.n[j], &k_u, &low_u, scale)
    if not (is_narrow(a) and is_narrow(b)):
        for i in range(length):
            out[i] = <real>((times(exp_of(x[i], k_z, low_z, scale), a)
                             + times(exp_of(u[i], k_u, low_u, scale), b))
                            + (hard[i] if hard != NULL else <real>0.0))
        return
    for i in range(length):
        out[i] = (fma_of(exp_of(x[i], k_z, low_z, scale), narrow_a, <real>0.0)
                  + fma_of(exp_of(u[i], k_u, low_u, scale), narrow_b, <real>0.0))
    if hard != NULL:
        for i in range(length):
            out[i] += hard[i]


cdef void map_hard(Distillation* d, int64_t j, const real* x, real* out, int64_t k0, int64_t length,
                   char* room) noexcept nogil:
    cdef sx_unit unit
    cdef int64_t y = d.of_hard.y[j]
    if d.hard.smoothing > 0.0:
        map_mixed(&d.hard, &d.of_hard, j, x, <const real*>NULL, <const real*>NULL, out, k0, length,
                  &unit, room)
    else:
        map_run(&d.hard, &d.of_hard, j, x, <const real*>NULL, out, k0, length, &unit, False, room)
    if k0 <= y < k0 + length:
        out[y - k0] = <real>d.of_hard.apart[j]


cdef int map_parts_slow(const sx_call* call, Distillation* d, int64_t j, char* g, int64_t g_stride,
                        int64_t g_kind, const sx_scale* scale, sx_control* control) noexcept nogil:
    # A whole row that is not FAST; the student's logits and g may be the same memory.
    cdef sx_unit unit
    cdef int64_t k
    cdef double value, z, u, k_z, low_z, k_u, low_u, k_hard, low_hard
    cdef bint hard = has_hard(d, j, SLOW)
    power_of(d.of_student.n[j], &k_z, &low_z, scale)
    power_of(d.of_teacher.n[j], &k_u, &low_u, scale)
    power_of(d.of_hard.n[j], &k_hard, &low_hard, &unit)
    sx_float_subnormals(call.all_slow != 0)
    for k in range(call.n_classes):
        if d.of_student.lane[j] == SKIPPED:
            value = 0.0
        elif d.of_student.lane[j] == POISONED:
            value = NAN
        else:
            z = sx_load_real(d.of_student.z[j] + k * call.logits.class_stride,
                             call.logits.rows.type)
            u = sx_load_real(d.of_teacher.z[j] + k * call.soft.class_stride, call.soft.rows.type)
            value = (times(exp_of(z - d.of_student.moved[j], k_z, low_z, scale), d.of_student.a[j])
                     + times(exp_of(u - d.of_teacher.moved[j], k_u, low_u, scale),
                             d.of_teacher.a[j]))
            if hard and k == d.of_hard.y[j]:
                value += d.of_hard.apart[j]
            elif hard:
                value += (times(exp_of(z - d.of_hard.moved[j], k_hard, low_hard, &unit),
                                d.of_hard.a[j])
                          + beside(&d.hard, &d.of_hard, j, 0.0, k))
        sx_store_real(g + k * g_stride, g_kind, value)
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    sx_float_subnormals(False)
    return 0


cdef void map_columns_parts(const sx_call* call, Distillation* d, const real* hard, const real* u,
                            real* e) noexcept nogil:
    # From kept e of the student and the teacher (u) to the result, in e; hard: cross-entropy's, or
    # NULL.
    cdef real a[GROUP]
    cdef real b[GROUP]
    cdef real has[GROUP]
    cdef int64_t i, j
    for j in range(GROUP):
        a[j] = <real>d.of_student.a[j]
        b[j] = <real>d.of_teacher.a[j]
        has[j] = 1.0 if has_hard(d, j, FAST) else 0.0
    for i in range(call.n_classes):
        for j in range(GROUP):
            e[i * GROUP + j] = (fma_of(e[i * GROUP + j], a[j], <real>0.0)
                                + fma_of(u[i * GROUP + j], b[j], <real>0.0))
        if hard != NULL:
            for j in range(GROUP):
                e[i * GROUP + j] += hard[i * GROUP + j] if has[j] > 0 else <real>0.0


cdef inline bint is_wide_pair(Distillation* d, int64_t j) noexcept nogil:
    return not (is_narrow(d.of_student.a[j]) and is_narrow(d.of_teacher.a[j]))


cdef void map_wide_columns(const sx_call* call, Distillation* d, const real* u,
                           real* e) noexcept nogil:
    # Rows whose factors need float64: done before all, their factors then 1 and 0.
    cdef int64_t i, j
    for j in range(d.of_student.count):
        if d.of_student.lane[j] != FAST or not is_wide_pair(d, j):
            continue
        for i in range(call.n_classes):
            e[i * GROUP + j] = <real>(times(e[i * GROUP + j], d.of_student.a[j])
                                      + times(u[i * GROUP + j], d.of_teacher.a[j]))
        d.of_student.a[j] = 1.0
        d.of_teacher.a[j] = 0.0


# ---- the walk

cdef int walk_small_group(const sx_call* call, Distillation* d, int64_t first,
                          const sx_scale* scale, sx_control* control, char* room,
                          real* unused) noexcept nogil:
    # C <= 64: tiles in which rows are neighbours.
    cdef sx_unit unit
    cdef int64_t j, classes = call.n_classes, stride = GROUP * sizeof(real)
    cdef int64_t kind = SX_TYPE_FLOAT | sizeof(real)
    cdef real* e = <real*>(room + ROOM_LOGITS)
    cdef real* x = e + GROUP * SMALL
    cdef real* teacher_e = x + GROUP * SMALL
    cdef real* u = teacher_e + GROUP * SMALL
    cdef real* hard = <real*>(room + ROOM_SOFT)
    cdef real* unweighted = hard + GROUP * SMALL
    gather(&d.student.logits, d.of_student.z, d.of_student.count, 0, classes, 1, GROUP, 0, x)
    gather(&d.teacher.logits, d.of_teacher.z, d.of_student.count, 0, classes, 1, GROUP, 0, u)
    clear_unused(&d.of_student, classes, x)
    clear_unused(&d.of_student, classes, u)
    reduce_columns(&d.of_student, classes, x, e, scale)
    reduce_columns(&d.of_teacher, classes, u, teacher_e, scale)
    gaps_columns(d, classes, x, u, scale)
    if d.share > 0.0:
        reduce_columns(&d.of_hard, classes, x, hard, &unit)
        if d.hard.smoothing > 0.0:
            reduce_soft_columns(&d.hard, &d.of_hard, x, <const real*>NULL, unweighted)
    if finish_parts(call, d, first, unused, scale, control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    if d.share > 0.0:
        map_columns(&d.hard, &d.of_hard, x, <const real*>NULL, <real*>NULL, hard, &unit)
    map_wide_columns(call, d, teacher_e, e)
    map_columns_parts(call, d, hard if d.share > 0.0 else <const real*>NULL, teacher_e, e)
    for j in range(d.of_student.count):
        if d.of_student.lane[j] != FAST and map_parts_slow(
                call, d, j, <char*>(e + j), stride, kind, scale, control):
            return SX_STOPPED
    scatter(&call.out_map, d.of_student.g, d.of_student.count, 0, classes, 1, GROUP, 0, e)
    return 0


cdef int walk_group(const sx_call* call, Distillation* d, int64_t first, const sx_scale* scale,
                    sx_control* control, char* room, real* unused) noexcept nogil:
    cdef int64_t j, b, k0, length, classes = call.n_classes
    cdef const real* x
    cdef const real* u
    cdef real top
    cdef real* hard
    cdef real* out = <real*>(room + ROOM_OUT)
    for j in range(d.of_student.count):
        for b in range(blocks_of(classes)):
            if d.of_student.lane[j] != FAST or d.of_teacher.lane[j] != FAST:
                break
            k0 = b * BLOCK
            length = block_length(k0, classes)
            x = row_block(&d.student, &d.of_student, j, k0, length, <real*>(room + ROOM_BLOCK), &top)
            u = row_block(&d.teacher, &d.of_teacher, j, k0, length, <real*>(room + ROOM_TARGETS),
                          &top)
            reduce_parts(d, j, x, u, k0, length, scale, room)
            if sx_tick(control, 2 * length):
                return SX_STOPPED
    if finish_parts(call, d, first, unused, scale, control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    for j in range(d.of_student.count):
        if d.of_student.lane[j] != FAST:
            if map_parts_slow(call, d, j, d.of_student.g[j], call.out_map.class_stride,
                              call.out_map.rows.type, scale, control):
                return SX_STOPPED
            continue
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            x = row_block(&d.student, &d.of_student, j, k0, length, <real*>(room + ROOM_BLOCK), &top)
            u = row_block(&d.teacher, &d.of_teacher, j, k0, length, <real*>(room + ROOM_TARGETS),
                          &top)
            hard = NULL
            if has_hard(d, j, FAST):
                hard = <real*>(room + ROOM_CAPPED)
                map_hard(d, j, x, hard, k0, length, room)
            map_parts(d, j, x, u, hard, out, length, scale)
            store_block(&call.out_map, d.of_student.g[j] + k0 * call.out_map.class_stride, length,
                        <const real*>out)
            if sx_tick(control, 2 * length):
                return SX_STOPPED
    return 0


cdef int64_t walk_distillation(const sx_call* call, int64_t lo, int64_t hi, sx_control* control,
                               const sx_scale* scale, real* unused) noexcept nogil:
    # Not on the stack, which may be small, nor in the thread's room: see sx_room.
    cdef Distillation* d = <Distillation*>calloc(1, sizeof(Distillation))
    cdef int64_t i = lo, together = min(max(NEAR // (2 * call.n_classes), 1), GROUP)
    cdef int stopped = 0
    if call.n_classes <= SMALL:
        together = GROUP
    if d == NULL:
        sx_lack_memory(call)
        return SX_STOPPED
    start_parts(call, d, lo)
    while i < hi and not stopped:
        load_parts(d, min(hi - i, together))
        if call.n_classes <= SMALL:
            stopped = walk_small_group(call, d, i, scale, control, sx_room(), unused)
            stopped = stopped or sx_tick(control, 2 * d.of_student.count * call.n_classes)
        else:
            stopped = walk_group(call, d, i, scale, control, sx_room(), unused)
        i += d.of_student.count
    free(d)
    return SX_STOPPED if stopped else 0
