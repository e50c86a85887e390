# The walk over a row, for every loss and every piece: reduce, head, map.
#
#   reduce   one read of the logits: the row's reference power n, S' and what the head asks for
#   head     some float64 operations a row; the only place that knows the loss
#   map      one write: g_k = e_k a + c, the target's entry stored last
#
# float32 logits: e_k, the map and its factors in float32; a row's sums and its head in float64.
# float64 logits: everything in float64.
# NaN takes no part in a maximum and reaches S through the sum. -inf gives e = +0. A row whose
# largest logit is not finite, or beyond SX_LIMIT, goes through the slow lane (float64, one term
# at a time, the largest logit as the reference).
#
# The bits of a row are a function of its values in class order, C, dtype and options. So:
# - the reference is a power of two, and e_k = exp(z_k) 2^-n. A change of reference is an exact
#   shift: blocks, the rows of a tile and pass two may each use their own.
# - C <= 64: the e are added left to right in float64.
# - C > 64: blocks of 1,024 classes, merged left to right by a compensated float64 sum. In a
#   block, class k belongs to lane k mod 64; four terms of a lane are added in the logits'
#   precision, then widened; the lanes are folded 32, 16, 8, 4, 2, 1 apart.
# - Two terms stand apart from the sums: the largest logit's (its first occurrence; float64 from
#   the logits' precision) and the target's (its exp in float64, for the loss of a confident row
#   is a quotient by it). S - e_max and S - e_target are sums of the others, never differences.

from libc.stdint cimport int64_t, uint64_t
from libc.math cimport INFINITY, NAN, rint, fabs

cdef extern from "_control.h" nogil:
    ctypedef struct sx_control:
        pass
    int sx_tick(sx_control* control, int64_t elements)
    enum: SX_STOPPED

cdef extern from "call.h" nogil:
    ctypedef struct sx_rows:
        char* data
        int64_t type
        int64_t* strides
    ctypedef struct sx_matrix:
        sx_rows rows
        int64_t class_stride
        int64_t direct
    ctypedef struct sx_call:
        int64_t op, n_rows, n_classes
        sx_matrix logits, out_map
        sx_rows targets, sample_weight, upstream
        const double* class_weight
        int64_t has_ignore, ignore_index
        double scale
        void* out_rows
        int64_t out_rows_is_double
    ctypedef struct sx_cursor:
        char* logits
        char* out_map
        char* targets
        char* sample_weight
        char* upstream
    void sx_cursor_start(sx_cursor* cursor, const sx_call* call, int64_t row)
    void sx_cursor_next(sx_cursor* cursor, const sx_call* call)
    int64_t sx_load_integer(const char* p, int64_t type)
    double sx_load_real(const char* p, int64_t type)
    void sx_store_real(char* p, int64_t type, double value)

cdef extern from "elementary.h" nogil:
    ctypedef struct sx_power_f32:
        float k, low
    ctypedef struct sx_power_f64:
        double k, low
    sx_power_f32 sx_power_of_f32(double n)
    sx_power_f64 sx_power_of_f64(double n)
    float sx_exp_f32(float z, float k, float low)
    double sx_exp_f64(double z, double k, double low)
    float sx_fma_f32(float a, float b, float c)
    double sx_fma_f64(double a, double b, double c)
    double sx_pow2(double d)
    double sx_log(double x)
    double sx_log1p(double x)
    void sx_two_sum(double* total, double* carry, double x)
    double sx_reference_low(double n, double* high)
    ctypedef unsigned long sx_float_state
    sx_float_state sx_float_enter()
    void sx_float_leave(sx_float_state state)
    const double SX_LOG2E, SX_LIMIT_F32, SX_LIMIT_F64, SX_OUT_OF_REACH

ctypedef fused real:
    float
    double

# The numbers of backends/_contract.py's Op.
cdef enum:
    CROSS_ENTROPY = 0
    LOGSUMEXP = 1
    SOFTMAX = 2
    LOG_SOFTMAX = 3

cdef enum:
    FAST = 0      # by pieces
    SLOW = 1      # one term at a time
    SKIPPED = 2   # ignored, or of weight 0: +0.0, logits never used
    POISONED = 3  # a target changed under us: NaN, nothing read through it

cdef enum:
    # Rows that share a tile, and whose heads run together.
    GROUP = 32
    # Up to here a row's e are summed one by one, and kept between the passes.
    SMALL = 64
    LANES = 64
    STRIPE = 256       # four lanes' worth: what is summed in the logits' precision
    BLOCK = 1024
    # Logits of other layouts are brought into class order here, 64 KiB of them a thread.
    TILE_F32 = 16384
    TILE_F64 = 8192
    # Longest stretch of rows (elements) between the passes: half of the smallest usual L1.
    NEAR = 4096

# Factors within these bounds are applied in the logits' precision, others in float64: up to here
# no product with an e, nor a factor moved by the 60 octaves of SHARED_SPREAD, leaves float32.
cdef double NARROW_LEAST = 2.0 ** -60
cdef double NARROW_MOST = 2.0 ** 60
# A tile runs on one power if no e can be flushed by it (125 of float32's 126 octaves) ...
cdef double SHARED_DEPTH = 125.0
# ... and no row's own power is further off than this.
cdef double SHARED_SPREAD = 60.0


cdef struct Row:
    char* z
    char* g
    int64_t y          # the target; -1: none
    int64_t lane       # FAST, SLOW, SKIPPED or POISONED
    double weight      # s v_y
    double w           # weight, upstream and divisor: what multiplies the gradient
    double n           # the reference power (FAST)
    double top         # the largest logit
    int64_t k_top      # its first place
    double rest        # sum of e without the largest and the target
    double carry       # what the additions to `rest` have lost
    double e_top
    double z_y
    double e_y
    double high, low   # the reference as a logit, n ln2 or the largest logit, in two parts
    double log_sum     # log S; NaN in a row that has no result
    double a           # the map's factor
    double move        # e as kept is 2^-move of the row's own


cdef inline real exp_of(real z, real k, real low) noexcept nogil:
    if real is float:
        return sx_exp_f32(z, k, low)
    else:
        return sx_exp_f64(z, k, low)


cdef inline real fma_of(real a, real b, real c) noexcept nogil:
    if real is float:
        return sx_fma_f32(a, b, c)
    else:
        return sx_fma_f64(a, b, c)


cdef inline void power_of(double n, real* k, real* low) noexcept nogil:
    cdef sx_power_f32 p32
    cdef sx_power_f64 p64
    if real is float:
        p32 = sx_power_of_f32(n)
        k[0] = p32.k
        low[0] = p32.low
    else:
        p64 = sx_power_of_f64(n)
        k[0] = p64.k
        low[0] = p64.low


cdef inline double limit_of(real* unused) noexcept nogil:
    if real is float:
        return SX_LIMIT_F32
    else:
        return SX_LIMIT_F64


cdef inline double power_near(double z) noexcept nogil:
    # One less than the nearest: e of the largest is then in [sqrt 2, 2 sqrt 2], S above 1, and
    # every normal probability comes from a normal e.
    return rint(z * SX_LOG2E) - 1.0


# ---- rows ----------------------------------------------------------------------------------------

cdef void load_rows(const sx_call* call, sx_cursor* cursor, Row* rows, int64_t count) noexcept nogil:
    cdef int64_t j, y
    cdef double weight
    cdef Row* row
    for j in range(count):
        row = &rows[j]
        row.z = cursor.logits
        row.g = cursor.out_map
        row.y = -1
        row.lane = FAST
        row.weight = 1.0
        row.w = 1.0
        row.top = -INFINITY
        row.k_top = 0
        row.n = 0.0
        row.rest = 0.0
        row.carry = 0.0
        row.e_top = 0.0
        row.e_y = 0.0
        row.move = 0.0
        if call.targets.data != NULL:
            y = sx_load_integer(cursor.targets, call.targets.type)
            weight = 1.0
            if call.sample_weight.data != NULL:
                weight = sx_load_real(cursor.sample_weight, call.sample_weight.type)
            if (call.has_ignore and y == call.ignore_index) or weight == 0.0:
                row.lane = SKIPPED
            elif y < 0 or y >= call.n_classes:
                row.lane = POISONED
            else:
                if call.class_weight != NULL:
                    weight = weight * call.class_weight[y]
                if weight == 0.0:
                    row.lane = SKIPPED
                else:
                    row.y = y
                    row.weight = weight
                    row.w = weight * call.scale
                    if call.upstream.data != NULL:
                        row.w = row.w * sx_load_real(cursor.upstream, call.upstream.type)
                    row.z_y = sx_load_real(row.z + y * call.logits.class_stride,
                                           call.logits.rows.type)
        sx_cursor_next(cursor, call)


# ---- reduce: C > 64 ------------------------------------------------------------------------------

cdef inline real block_top(const real* x, int64_t length) noexcept nogil:
    cdef real lanes[LANES]
    cdef real a, b
    cdef int64_t i, j, half
    for j in range(LANES):
        lanes[j] = -INFINITY
    i = 0
    while i + STRIPE <= length:
        for j in range(LANES):
            a = x[i + j] if x[i + j] > lanes[j] else lanes[j]
            b = x[i + LANES + j] if x[i + LANES + j] > a else a
            a = x[i + 2 * LANES + j] if x[i + 2 * LANES + j] > b else b
            lanes[j] = x[i + 3 * LANES + j] if x[i + 3 * LANES + j] > a else a
        i += STRIPE
    while i + LANES <= length:
        for j in range(LANES):
            lanes[j] = x[i + j] if x[i + j] > lanes[j] else lanes[j]
        i += LANES
    for j in range(length - i):
        lanes[j] = x[i + j] if x[i + j] > lanes[j] else lanes[j]
    half = LANES // 2
    while half > 0:
        for j in range(half):
            lanes[j] = lanes[j + half] if lanes[j + half] > lanes[j] else lanes[j]
        half //= 2
    return lanes[0]


cdef inline int64_t first_place(const real* x, int64_t length, real value) noexcept nogil:
    cdef int64_t i = 0, j
    cdef int found
    while i + LANES <= length:
        found = 0
        for j in range(LANES):
            found |= x[i + j] == value
        if found:
            break
        i += LANES
    while i < length and x[i] != value:
        i += 1
    return i


cdef inline void add_stripe(const real* x0, const real* x1, const real* x2, const real* x3,
                            real k, real low, double* lanes) noexcept nogil:
    cdef int64_t j
    for j in range(LANES):
        lanes[j] += <double>(((exp_of(x0[j], k, low) + exp_of(x1[j], k, low))
                              + exp_of(x2[j], k, low)) + exp_of(x3[j], k, low))


cdef inline void add_short_stripe(const real** x, int64_t parts, real k, real low,
                                  double* lanes) noexcept nogil:
    # The same sums where fewer than four terms of a lane are left.
    cdef real terms[LANES]
    cdef int64_t i, j
    cdef const real* part = x[0]
    for j in range(LANES):
        terms[j] = exp_of(part[j], k, low)
    for i in range(1, parts):
        part = x[i]
        for j in range(LANES):
            terms[j] = terms[j] + exp_of(part[j], k, low)
    for j in range(LANES):
        lanes[j] += <double>terms[j]


cdef inline double block_rest(const real* x, int64_t length, int64_t skip_1, int64_t skip_2,
                              real k, real low) noexcept nogil:
    # Sum of e over a block but two places (-1: none). A part of 64 that holds such a place, or
    # ends early, is read through a copy with -inf there: its e is +0, and adding +0 is exact.
    cdef double lanes[LANES]
    cdef real patched[4 * LANES]
    cdef const real* parts[4]
    cdef int64_t i, j, part, n_parts, start, stop, half
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i < length:
        n_parts = (length - i + LANES - 1) // LANES
        if n_parts > 4:
            n_parts = 4
        for part in range(n_parts):
            start = i + part * LANES
            stop = start + LANES
            parts[part] = x + start
            if (start <= skip_1 < stop) or (start <= skip_2 < stop) or stop > length:
                if stop > length:
                    stop = length
                for j in range(stop - start):
                    patched[part * LANES + j] = x[start + j]
                for j in range(stop - start, LANES):
                    patched[part * LANES + j] = -INFINITY
                if start <= skip_1 < stop:
                    patched[part * LANES + skip_1 - start] = -INFINITY
                if start <= skip_2 < stop:
                    patched[part * LANES + skip_2 - start] = -INFINITY
                parts[part] = &patched[part * LANES]
        if n_parts == 4:
            add_stripe(parts[0], parts[1], parts[2], parts[3], k, low, lanes)
        else:
            add_short_stripe(parts, n_parts, k, low, lanes)
        i += STRIPE
    half = LANES // 2
    while half > 0:
        for j in range(half):
            lanes[j] += lanes[j + half]
        half //= 2
    return lanes[0]


cdef inline void merge_block(Row* row, double n, double top, int64_t k_top, double e_top,
                             double rest) noexcept nogil:
    cdef double shift
    if not top > row.top:
        shift = sx_pow2(n - row.n) if top > -INFINITY else 1.0
        sx_two_sum(&row.rest, &row.carry, rest * shift)
        sx_two_sum(&row.rest, &row.carry, e_top * shift)
        return
    if row.top > -INFINITY:
        shift = sx_pow2(row.n - n)
        row.rest = row.rest * shift
        row.carry = row.carry * shift
        sx_two_sum(&row.rest, &row.carry, row.e_top * shift)
    sx_two_sum(&row.rest, &row.carry, rest)
    row.n = n
    row.top = top
    row.k_top = k_top
    row.e_top = e_top


cdef inline void reduce_block(Row* row, const real* x, int64_t k0, int64_t length) noexcept nogil:
    cdef double limit = limit_of(<real*>NULL), top, n, e_top = 0.0
    cdef int64_t place = -1, y_place = -1
    cdef real real_top, k, low
    if row.lane != FAST:
        return
    real_top = block_top(x, length)
    top = real_top
    if top > limit:
        row.lane = SLOW
        return
    n = 0.0
    if top > -INFINITY:
        # Far below the limit the power may stop: nothing there reaches a row served here.
        n = power_near(top if top > -limit - SX_OUT_OF_REACH else -limit - SX_OUT_OF_REACH)
    power_of(n, &k, &low)
    if top > -INFINITY:
        place = first_place(x, length, real_top)
        if k0 + place != row.y:
            e_top = exp_of(real_top, k, low)
    if k0 <= row.y < k0 + length:
        y_place = row.y - k0
    merge_block(row, n, top, k0 + place, e_top, block_rest(x, length, place, y_place, k, low))


# ---- reduce: C <= 64 -----------------------------------------------------------------------------

cdef void reduce_small(Row* rows, int64_t count, int64_t classes, const real* x,
                       real* e) noexcept nogil:
    # x, e: `count` rows of `classes`, without gaps. e is kept for the map, 2^-move of the row's.
    cdef double limit = limit_of(<real*>NULL)
    cdef double shared = -INFINITY, lowest_power = INFINITY, total, e_top
    cdef real top, value, floor, k, low
    cdef int64_t j, i, place
    cdef bint share = True
    cdef Row* row
    for j in range(count):
        row = &rows[j]
        top = -INFINITY
        place = 0
        for i in range(classes):
            value = x[j * classes + i]
            if value > top:
                top = value
                place = i
        row.top = top
        row.k_top = place
        if row.lane != FAST:
            continue
        if not -limit <= row.top <= limit:
            continue                      # finish_reduce sends it to the slow lane
        row.n = power_near(row.top)
        shared = row.n if row.n > shared else shared
        lowest_power = row.n if row.n < lowest_power else lowest_power
    floor = INFINITY
    for i in range(count * classes):
        value = x[i] if x[i] > -INFINITY else <real>INFINITY
        floor = value if value < floor else floor
    if shared - lowest_power <= SHARED_SPREAD and floor * SX_LOG2E - shared >= -SHARED_DEPTH:
        power_of(shared, &k, &low)
        for i in range(count * classes):
            e[i] = exp_of(x[i], k, low)
    else:
        share = False
    for j in range(count):
        row = &rows[j]
        if row.lane != FAST or not -limit <= row.top <= limit:
            continue
        if share:
            row.move = shared - row.n
        else:
            power_of(row.n, &k, &low)
            for i in range(classes):
                e[j * classes + i] = exp_of(x[j * classes + i], k, low)
        value = e[j * classes + row.k_top]
        e_top = value
        e[j * classes + row.k_top] = 0
        if row.y >= 0:
            e[j * classes + row.y] = 0    # the map stores this entry by itself
            if row.y == row.k_top:
                e_top = 0.0
        total = 0.0
        for i in range(classes):
            total += e[j * classes + i]
        if row.y != row.k_top:
            e[j * classes + row.k_top] = value
        row.rest = total * sx_pow2(row.move)
        row.e_top = e_top * sx_pow2(row.move)


# ---- reduce: the slow lane -----------------------------------------------------------------------

cdef int reduce_slow(const sx_call* call, Row* row, sx_control* control) noexcept nogil:
    # Any values, any layout, one element at a time; the reference is the largest logit. z - top is
    # exact where it matters: beyond SX_LIMIT both lie within a factor of two of each other.
    cdef int64_t k, stride = call.logits.class_stride, kind = call.logits.rows.type
    cdef double z
    cdef bint has_nan = False
    cdef sx_power_f64 power = sx_power_of_f64(0.0)
    row.top = -INFINITY
    row.k_top = 0
    for k in range(call.n_classes):
        z = sx_load_real(row.z + k * stride, kind)
        if z > row.top:
            row.top = z
            row.k_top = k
        has_nan |= z != z
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    row.rest = 0.0
    row.carry = 0.0
    row.e_top = 0.0
    if has_nan or not fabs(row.top) < INFINITY:
        row.rest = NAN
        row.log_sum = NAN if has_nan else row.top     # what logsumexp says of such a row
        return 0
    for k in range(call.n_classes):
        if k != row.k_top and k != row.y:
            z = sx_load_real(row.z + k * stride, kind)
            sx_two_sum(&row.rest, &row.carry, sx_exp_f64(z - row.top, power.k, power.low))
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    row.e_top = 0.0 if row.k_top == row.y else 1.0
    return 0


# ---- head ----------------------------------------------------------------------------------------

cdef inline void put_row_value(const sx_call* call, int64_t i, double value) noexcept nogil:
    if call.out_rows == NULL:
        return
    if call.out_rows_is_double:
        (<double*>call.out_rows)[i] = value
    else:
        (<float*>call.out_rows)[i] = <float>value


cdef inline double head(const sx_call* call, Row* row) noexcept nogil:
    # From the sums to the row's value, and to the map's numbers in `row`.
    cdef double others, total, loss, value
    cdef sx_power_f64 power
    if row.lane == SKIPPED:
        return 0.0
    if row.lane == POISONED:
        row.a = NAN
        row.e_y = NAN
        return NAN
    if row.lane == FAST:
        row.low = sx_reference_low(row.n, &row.high)
        power = sx_power_of_f64(row.n)
        if row.y >= 0:
            row.e_y = sx_exp_f64(row.z_y, power.k, power.low)
    else:
        row.high = row.top
        row.low = 0.0
        power = sx_power_of_f64(0.0)
        if row.y >= 0:
            row.e_y = sx_exp_f64(row.z_y - row.top, power.k, power.low)
    others = (row.rest + row.carry) + row.e_top       # S', or S where there is no target
    total = others + row.e_y
    if not total < INFINITY:                          # NaN: a row without a result
        value = row.log_sum if row.lane == SLOW else NAN
        row.log_sum = NAN
        row.a = NAN
        row.e_y = NAN
        return value if call.op == LOGSUMEXP else NAN
    if call.op == CROSS_ENTROPY:
        if row.e_y >= others:
            loss = sx_log1p(others / row.e_y)
        else:
            loss = sx_log(total) - ((row.z_y - row.high) - row.low)
        row.a = row.w / total
        row.e_y = 0.0 - row.w * (others / total)      # p_y - 1 would cancel; 0 - 0 is +0
        return row.weight * loss
    row.log_sum = sx_log(total)
    row.a = 1.0 / total
    return row.high + (row.low + row.log_sum)


# ---- map -----------------------------------------------------------------------------------------

cdef inline void map_run(Row* row, const real* x, real* out, int64_t length) noexcept nogil:
    # Gradient or softmax of consecutive classes; x and out are the same memory or apart.
    cdef real k, low, a
    cdef int64_t i
    cdef double factor = row.a
    power_of(row.n, &k, &low)
    if real is float:
        if not NARROW_LEAST <= fabs(factor) <= NARROW_MOST:
            for i in range(length):
                out[i] = <real>(<double>exp_of(x[i], k, low) * factor + 0.0)
            return
    a = <real>factor
    # Two loops, for a compiler that cannot know `the same or apart` runs a scalar one.
    if x == out:
        for i in range(length):
            out[i] = fma_of(exp_of(out[i], k, low), a, <real>0.0)
    else:
        for i in range(length):
            out[i] = fma_of(exp_of(x[i], k, low), a, <real>0.0)


cdef inline void map_kept(Row* row, const real* e, real* out, int64_t classes) noexcept nogil:
    # The same from kept e.
    cdef double factor = row.a, move = sx_pow2(row.move)
    cdef real a
    cdef int64_t i
    if not NARROW_LEAST <= fabs(factor) <= NARROW_MOST:
        for i in range(classes):
            out[i] = <real>((<double>e[i] * move) * factor + 0.0)
        return
    a = <real>factor * <real>move
    for i in range(classes):
        out[i] = fma_of(e[i], a, <real>0.0)


cdef inline void map_log(Row* row, const real* x, real* out, int64_t length) noexcept nogil:
    cdef double high = row.high, low = row.low + row.log_sum
    cdef int64_t i
    if x == out:
        for i in range(length):
            out[i] = <real>((<double>out[i] - high) - low)
    else:
        for i in range(length):
            out[i] = <real>((<double>x[i] - high) - low)


cdef int map_slow(const sx_call* call, Row* row, sx_control* control) noexcept nogil:
    cdef int64_t k, kind = call.logits.rows.type
    cdef double z, value
    cdef sx_power_f64 power = sx_power_of_f64(0.0)
    for k in range(call.n_classes):
        if row.lane == SKIPPED:
            value = 0.0
        elif row.lane == POISONED:
            value = NAN
        else:
            z = sx_load_real(row.z + k * call.logits.class_stride, kind)
            if call.op == LOG_SOFTMAX:
                value = (z - row.high) - row.log_sum
            else:
                value = sx_exp_f64(z - row.top, power.k, power.low) * row.a + 0.0
        sx_store_real(row.g + k * call.out_map.class_stride, call.out_map.rows.type, value)
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    return 0


cdef inline void map_apart(const sx_call* call, Row* row) noexcept nogil:
    # The entry that does not come from the map, stored last.
    cdef int64_t k
    cdef double value, others
    if call.op == CROSS_ENTROPY and row.lane != SKIPPED and row.lane != POISONED:
        k = row.y
        value = row.e_y
    elif call.op == LOG_SOFTMAX and row.rest + row.carry < 0.9 * row.e_top:
        # log p of a leader: (z - r) - log S would cancel. Ties of the largest are below 1/2 each,
        # and keep the bits that the map gave them.
        k = row.k_top
        others = row.rest + row.carry
        value = 0.0 - sx_log1p(others / row.e_top)
    else:
        return
    sx_store_real(row.g + k * call.out_map.class_stride, call.out_map.rows.type, value)


# ---- other layouts -------------------------------------------------------------------------------

cdef void gather(const sx_call* call, const Row* rows, int64_t count, int64_t k0, int64_t length,
                 int64_t pitch, real* tile) noexcept nogil:
    # Classes k0 .. k0 + length of some rows, in class order; row j at tile + j pitch.
    cdef int64_t j, k, stride = call.logits.class_stride, kind = call.logits.rows.type
    cdef const char* p
    cdef bint together = call.logits.direct == 2
    for j in range(1, count):
        together = together and rows[j].z - rows[j - 1].z == <int64_t>sizeof(real)
    if call.logits.direct == 1:
        for j in range(count):
            p = rows[j].z + k0 * stride
            for k in range(length):
                tile[j * pitch + k] = (<const real*>p)[k]
    elif together:
        for k in range(length):
            p = rows[0].z + (k0 + k) * stride
            for j in range(count):
                tile[j * pitch + k] = (<const real*>p)[j]
    else:
        for j in range(count):
            for k in range(length):
                tile[j * pitch + k] = <real>sx_load_real(rows[j].z + (k0 + k) * stride, kind)


cdef void scatter(const sx_call* call, const Row* rows, int64_t count, int64_t k0, int64_t length,
                  int64_t pitch, const real* tile) noexcept nogil:
    # The way back, for rows that the map has written (slow and skipped ones write their own).
    cdef int64_t j, k, stride = call.out_map.class_stride, kind = call.out_map.rows.type
    cdef char* p
    cdef bint together = call.out_map.direct == 2
    for j in range(count):
        together = together and rows[j].lane == FAST
        together = together and (j == 0 or rows[j].g - rows[j - 1].g == <int64_t>sizeof(real))
    if together:
        for k in range(length):
            p = rows[0].g + (k0 + k) * stride
            for j in range(count):
                (<real*>p)[j] = tile[j * pitch + k]
        return
    for j in range(count):
        if rows[j].lane != FAST:
            continue
        if call.out_map.direct == 1:
            p = rows[j].g + k0 * stride
            for k in range(length):
                (<real*>p)[k] = tile[j * pitch + k]
        else:
            for k in range(length):
                sx_store_real(rows[j].g + (k0 + k) * stride, kind, tile[j * pitch + k])


# ---- the walk ------------------------------------------------------------------------------------

cdef int finish_reduce(const sx_call* call, Row* rows, int64_t first, int64_t count, double limit,
                       sx_control* control) noexcept nogil:
    # Rows for the slow lane, then every row's head.
    cdef int64_t j
    for j in range(count):
        if rows[j].lane == FAST and not fabs(rows[j].top) <= limit:
            rows[j].lane = SLOW
        if rows[j].lane == SLOW and reduce_slow(call, &rows[j], control):
            return SX_STOPPED
        put_row_value(call, first + j, head(call, &rows[j]))
    return 0


cdef int finish_apart(const sx_call* call, Row* rows, int64_t count,
                      sx_control* control) noexcept nogil:
    # Rows that the map left out, and the entries that are stored last.
    cdef int64_t j
    if call.out_map.rows.data == NULL:
        return 0
    for j in range(count):
        if rows[j].lane != FAST and map_slow(call, &rows[j], control):
            return SX_STOPPED
        map_apart(call, &rows[j])
    return 0


cdef int walk_small(const sx_call* call, Row* rows, int64_t first, int64_t count,
                    sx_control* control, real* tile) noexcept nogil:
    cdef int64_t j, classes = call.n_classes
    cdef real* e = tile
    cdef real* x = tile + GROUP * SMALL
    cdef real* out
    cdef bint flat = call.logits.direct == 1
    for j in range(1, count):
        flat = flat and rows[j].z - rows[j - 1].z == classes * <int64_t>sizeof(real)
    if flat:
        x = <real*>rows[0].z
    else:
        gather(call, rows, count, 0, classes, classes, x)
    reduce_small(rows, count, classes, x, e)
    if finish_reduce(call, rows, first, count, limit_of(tile), control):
        return SX_STOPPED
    if call.out_map.rows.data != NULL:
        for j in range(count):
            if rows[j].lane != FAST:
                continue
            out = <real*>rows[j].g if call.out_map.direct == 1 else e + j * classes
            if call.op == LOG_SOFTMAX:
                map_log(&rows[j], x + j * classes, out, classes)
            else:
                map_kept(&rows[j], e + j * classes, out, classes)
        if call.out_map.direct != 1:
            scatter(call, rows, count, 0, classes, classes, e)
    return finish_apart(call, rows, count, control)


cdef inline void map_block(const sx_call* call, Row* row, const real* x, real* out,
                           int64_t length) noexcept nogil:
    if row.lane != FAST:
        return
    if call.op == LOG_SOFTMAX:
        map_log(row, x, out, length)
    else:
        map_run(row, x, out, length)


cdef inline int64_t blocks_of(int64_t classes) noexcept nogil:
    return (classes + BLOCK - 1) // BLOCK


cdef inline int64_t block_length(int64_t k0, int64_t classes) noexcept nogil:
    return BLOCK if classes - k0 > BLOCK else classes - k0


cdef int walk_rows(const sx_call* call, Row* rows, int64_t first, int64_t count,
                   sx_control* control, real* unused) noexcept nogil:
    # Classes side by side in memory, here and in the output: no copy.
    cdef int64_t j, b, k0, length, classes = call.n_classes
    for j in range(count):
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            reduce_block(&rows[j], <const real*>rows[j].z + k0, k0, length)
            if sx_tick(control, length):
                return SX_STOPPED
    if finish_reduce(call, rows, first, count, limit_of(unused), control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    for j in range(count):
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            map_block(call, &rows[j], <const real*>rows[j].z + k0, <real*>rows[j].g + k0, length)
            if sx_tick(control, length):
                return SX_STOPPED
    return finish_apart(call, rows, count, control)


cdef int walk_tiles(const sx_call* call, Row* rows, int64_t first, int64_t count,
                    sx_control* control, real* tile) noexcept nogil:
    # Any other layout: block by block through the tile.
    cdef int64_t j, b, k0, length, classes = call.n_classes
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        gather(call, rows, count, k0, length, BLOCK, tile)
        for j in range(count):
            reduce_block(&rows[j], tile + j * BLOCK, k0, length)
        if sx_tick(control, count * length):
            return SX_STOPPED
    if finish_reduce(call, rows, first, count, limit_of(tile), control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        gather(call, rows, count, k0, length, BLOCK, tile)
        for j in range(count):
            map_block(call, &rows[j], tile + j * BLOCK, tile + j * BLOCK, length)
        scatter(call, rows, count, k0, length, BLOCK, tile)
        if sx_tick(control, count * length):
            return SX_STOPPED
    return finish_apart(call, rows, count, control)


cdef int64_t walk(const sx_call* call, int64_t lo, int64_t hi, sx_control* control,
                  real* tile) noexcept nogil:
    cdef Row rows[GROUP]
    cdef sx_cursor cursor
    cdef int64_t i, count, together, classes = call.n_classes
    cdef bint in_order = call.logits.direct == 1 and (call.out_map.rows.data == NULL
                                                      or call.out_map.direct == 1)
    cdef int stopped = 0
    if classes <= SMALL:
        together = GROUP
    elif in_order:
        together = min(max(NEAR // classes, 1), GROUP)
    else:
        together = (TILE_F32 if real is float else TILE_F64) // BLOCK
    sx_cursor_start(&cursor, call, lo)
    i = lo
    while i < hi and not stopped:
        count = together if hi - i > together else hi - i
        load_rows(call, &cursor, rows, count)
        if classes <= SMALL:
            stopped = walk_small(call, rows, i, count, control, tile)
            stopped = stopped or sx_tick(control, count * classes)
        elif in_order:
            stopped = walk_rows(call, rows, i, count, control, tile)
        else:
            stopped = walk_tiles(call, rows, i, count, control, tile)
        i += count
    return SX_STOPPED if stopped else 0


cdef int64_t walk_f32(void* args, int64_t lo, int64_t hi, sx_control* control) noexcept nogil:
    cdef float tile[TILE_F32]
    cdef sx_float_state state = sx_float_enter()
    cdef int64_t status = walk[float](<const sx_call*>args, lo, hi, control, tile)
    sx_float_leave(state)
    return status


cdef int64_t walk_f64(void* args, int64_t lo, int64_t hi, sx_control* control) noexcept nogil:
    cdef double tile[TILE_F64]
    cdef sx_float_state state = sx_float_enter()
    cdef int64_t status = walk[double](<const sx_call*>args, lo, hi, control, tile)
    sx_float_leave(state)
    return status


def kernels():
    """Return the addresses of the two walks, by the logits' dtype."""
    return {"float32": <uint64_t>&walk_f32, "float64": <uint64_t>&walk_f64}
