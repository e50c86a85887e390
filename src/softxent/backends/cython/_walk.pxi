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
# - C <= 64: the e are added left to right in float64; compensated where they are float64 too.
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
    enum:
        SX_TYPE_FLOAT
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
    double sx_log_reduced(double f, double k)
    void sx_split_log1p_or_log(int which, double share, double total, double* f, double* k)
    void sx_two_sum(double* total, double* carry, double x)
    void sx_kahan(double* total, double* carry, double x)
    double sx_split_log(double x, double* k)
    double sx_reference_low(double n, double* high)
    ctypedef unsigned long sx_float_state
    sx_float_state sx_float_enter()
    void sx_float_subnormals(bint kept)
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
    # Rows that run together: through one tile where C is small, through one head everywhere.
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
# no product with an e leaves float32.
cdef double NARROW_LEAST = 2.0 ** -60
cdef double NARROW_MOST = 2.0 ** 60


# A group of rows, field by field, so that heads are loops over the rows. Lanes behind the last row
# hold harmless numbers.
cdef struct Rows:
    int64_t count
    char* z[GROUP]
    char* g[GROUP]
    int64_t y[GROUP]         # the target; -1: none
    int64_t lane[GROUP]      # FAST, SLOW, SKIPPED or POISONED
    double weight[GROUP]     # s v_y
    double w[GROUP]          # weight, upstream and divisor: what multiplies the gradient
    double n[GROUP]          # the reference power; 0 in the slow lane
    double top[GROUP]        # the largest logit
    int64_t k_top[GROUP]     # its first place
    double rest[GROUP]       # sum of e without the largest and the target
    double carry[GROUP]      # what the additions to `rest` have lost
    double e_top[GROUP]      # 0 where the target is the largest
    double z_y[GROUP]
    double moved[GROUP]      # what the slow lane subtracts from a logit; 0 elsewhere
    double no_result[GROUP]  # logsumexp of a row without a softmax
    # From the head:
    double value[GROUP]      # the row's value, still without its weight
    double a[GROUP]          # the map's factor
    double apart[GROUP]      # the entry that the map does not give: the target's, or a leader's
    double high[GROUP]       # log S + the reference as a logit, in two parts: the map's terms
    double low[GROUP]


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

cdef void load_rows(const sx_call* call, sx_cursor* cursor, Rows* rows, int64_t count) noexcept nogil:
    cdef int64_t j, y
    cdef double weight
    rows.count = count
    for j in range(GROUP):
        rows.y[j] = -1
        rows.lane[j] = FAST
        rows.weight[j] = 1.0
        rows.w[j] = 1.0
        rows.n[j] = 0.0
        rows.top[j] = -INFINITY
        rows.k_top[j] = 0
        rows.rest[j] = 0.0
        rows.carry[j] = 0.0
        rows.e_top[j] = 0.0
        rows.z_y[j] = 0.0
        rows.moved[j] = 0.0
    for j in range(count):
        rows.z[j] = cursor.logits
        rows.g[j] = cursor.out_map
        if call.targets.data != NULL:
            y = sx_load_integer(cursor.targets, call.targets.type)
            weight = 1.0
            if call.sample_weight.data != NULL:
                weight = sx_load_real(cursor.sample_weight, call.sample_weight.type)
            if (call.has_ignore and y == call.ignore_index) or weight == 0.0:
                rows.lane[j] = SKIPPED
            elif y < 0 or y >= call.n_classes:
                rows.lane[j] = POISONED
            else:
                if call.class_weight != NULL:
                    weight = weight * call.class_weight[y]
                if weight == 0.0:
                    rows.lane[j] = SKIPPED
                else:
                    rows.y[j] = y
                    rows.weight[j] = weight
                    rows.w[j] = weight * call.scale
                    if call.upstream.data != NULL:
                        rows.w[j] *= sx_load_real(cursor.upstream, call.upstream.type)
        sx_cursor_next(cursor, call)


# ---- reduce: C > 64 ------------------------------------------------------------------------------

# Folds of 64 lanes, 32, 16, 8, 4, 2, 1 apart; lengths written out, for loops of a known length
# become vectors.

cdef inline real larger(real a, real b) noexcept nogil:
    return b if b > a else a


cdef inline real fold_top(real* lanes) noexcept nogil:
    cdef int j
    for j in range(32):
        lanes[j] = larger(lanes[j], lanes[j + 32])
    for j in range(16):
        lanes[j] = larger(lanes[j], lanes[j + 16])
    for j in range(8):
        lanes[j] = larger(lanes[j], lanes[j + 8])
    for j in range(4):
        lanes[j] = larger(lanes[j], lanes[j + 4])
    return larger(larger(lanes[0], lanes[2]), larger(lanes[1], lanes[3]))


cdef inline double fold_sum(double* lanes) noexcept nogil:
    cdef int j
    for j in range(32):
        lanes[j] += lanes[j + 32]
    for j in range(16):
        lanes[j] += lanes[j + 16]
    for j in range(8):
        lanes[j] += lanes[j + 8]
    for j in range(4):
        lanes[j] += lanes[j + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


cdef inline real block_top(const real* x, int64_t length) noexcept nogil:
    cdef real lanes[LANES]
    cdef real a
    cdef int64_t i, j
    for j in range(LANES):
        lanes[j] = -INFINITY
    i = 0
    while i + STRIPE <= length:
        for j in range(LANES):
            a = larger(larger(lanes[j], x[i + j]), x[i + LANES + j])
            lanes[j] = larger(larger(a, x[i + 2 * LANES + j]), x[i + 3 * LANES + j])
        i += STRIPE
    while i + LANES <= length:
        for j in range(LANES):
            lanes[j] = larger(lanes[j], x[i + j])
        i += LANES
    for j in range(length - i):
        lanes[j] = larger(lanes[j], x[i + j])
    return fold_top(lanes)


cdef inline int64_t first_place(const real* x, int64_t length, real value) noexcept nogil:
    cdef int64_t i = 0
    cdef int j, at, place
    while i < length:
        place = LANES
        for j in range(LANES if length - i > LANES else <int>(length - i)):
            at = j if x[i + j] == value else LANES
            place = at if at < place else place
        if place < LANES:
            return i + place
        i += LANES
    return 0


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
    cdef int64_t i, j, part, n_parts, start, stop
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
    return fold_sum(lanes)


cdef inline void merge_block(Rows* rows, int64_t j, double n, double top, int64_t k_top,
                             double e_top, double rest) noexcept nogil:
    cdef double shift
    if not top > rows.top[j]:
        shift = sx_pow2(n - rows.n[j]) if top > -INFINITY else 1.0
        sx_two_sum(&rows.rest[j], &rows.carry[j], rest * shift)
        sx_two_sum(&rows.rest[j], &rows.carry[j], e_top * shift)
        return
    if rows.top[j] > -INFINITY:
        shift = sx_pow2(rows.n[j] - n)
        rows.rest[j] *= shift
        rows.carry[j] *= shift
        sx_two_sum(&rows.rest[j], &rows.carry[j], rows.e_top[j] * shift)
    sx_two_sum(&rows.rest[j], &rows.carry[j], rest)
    rows.n[j] = n
    rows.top[j] = top
    rows.k_top[j] = k_top
    rows.e_top[j] = e_top


cdef inline void reduce_block(Rows* rows, int64_t j, const real* x, int64_t k0,
                              int64_t length) noexcept nogil:
    cdef double limit = limit_of(<real*>NULL), top, n, e_top = 0.0
    cdef int64_t place = -1, y = rows.y[j], y_place = -1
    cdef real real_top, k, low
    if rows.lane[j] != FAST:
        return
    if k0 <= y < k0 + length:
        y_place = y - k0
        rows.z_y[j] = x[y_place]
    real_top = block_top(x, length)
    top = real_top
    if top > limit:
        rows.lane[j] = SLOW
        return
    n = 0.0
    if top > -INFINITY:
        # Far below the limit the power may stop: nothing there reaches a row served here.
        n = power_near(top if top > -limit - SX_OUT_OF_REACH else -limit - SX_OUT_OF_REACH)
    power_of(n, &k, &low)
    if top > -INFINITY:
        place = first_place(x, length, real_top)
        if k0 + place != y:
            e_top = exp_of(real_top, k, low)
    merge_block(rows, j, n, top, k0 + place, e_top, block_rest(x, length, place, y_place, k, low))


# ---- reduce: C <= 64 -----------------------------------------------------------------------------

cdef void reduce_columns(Rows* rows, int64_t classes, const real* x, real* e) noexcept nogil:
    # x, e: class k of row j at k GROUP + j, so that every loop runs over the rows.
    cdef double limit = limit_of(<real*>NULL), top
    cdef double rest[GROUP]
    cdef double carry[GROUP]
    cdef real tops[GROUP]
    cdef real places[GROUP]
    cdef real targets[GROUP]
    cdef real e_tops[GROUP]
    cdef real k_of[GROUP]
    cdef real low_of[GROUP]
    cdef real value, at
    cdef int64_t i, j
    for j in range(GROUP):
        tops[j] = -INFINITY
        places[j] = 0
        targets[j] = <real>rows.y[j]
        rest[j] = 0.0
        carry[j] = 0.0
        e_tops[j] = 0
    for i in range(classes):
        at = <real>i
        for j in range(GROUP):
            value = x[i * GROUP + j]
            places[j] = at if value > tops[j] else places[j]
            tops[j] = value if value > tops[j] else tops[j]
    for j in range(GROUP):
        top = tops[j]
        rows.top[j] = top
        rows.k_top[j] = <int64_t>places[j]
        # Rows for the slow lane (finish_reduce): any number that does no harm.
        rows.n[j] = power_near(top if -limit <= top <= limit else 0.0)
        power_of(rows.n[j], &k_of[j], &low_of[j])
    for i in range(classes):
        at = <real>i
        for j in range(GROUP):
            value = exp_of(x[i * GROUP + j], k_of[j], low_of[j])
            e[i * GROUP + j] = value
            value = <real>0.0 if targets[j] == at else value
            e_tops[j] = value if places[j] == at else e_tops[j]
            value = <real>0.0 if places[j] == at else value
            if real is float:
                rest[j] += <double>value
            else:
                sx_kahan(&rest[j], &carry[j], value)
    for j in range(GROUP):
        if rows.y[j] >= 0:
            rows.z_y[j] = x[rows.y[j] * GROUP + j]
        rows.rest[j] = rest[j]
        rows.carry[j] = carry[j]
        rows.e_top[j] = e_tops[j]


# ---- reduce: the slow lane -----------------------------------------------------------------------

cdef int reduce_slow(Rows* rows, int64_t j, const char* z, int64_t stride, int64_t kind,
                     int64_t classes, sx_control* control) noexcept nogil:
    # Any values, any layout, one element at a time; the reference is the largest logit. z - top is
    # exact where it matters: beyond SX_LIMIT both lie within a factor of two of each other.
    cdef int64_t k, k_top = 0, y = rows.y[j]
    cdef double value, top = -INFINITY
    cdef bint has_nan = False
    cdef sx_power_f64 power = sx_power_of_f64(0.0)
    for k in range(classes):
        value = sx_load_real(z + k * stride, kind)
        if value > top:
            top = value
            k_top = k
        if k == y:
            rows.z_y[j] = value
        has_nan |= value != value
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    rows.top[j] = top
    rows.k_top[j] = k_top
    rows.n[j] = 0.0
    rows.moved[j] = top
    rows.rest[j] = 0.0
    rows.carry[j] = 0.0
    rows.e_top[j] = 0.0 if k_top == y else 1.0
    if has_nan or not fabs(top) < INFINITY:
        rows.rest[j] = NAN
        rows.no_result[j] = NAN if has_nan else top
        return 0
    for k in range(classes):
        if k != k_top and k != y:
            value = sx_load_real(z + k * stride, kind)
            sx_two_sum(&rows.rest[j], &rows.carry[j],
                       sx_exp_f64(value - top, power.k, power.low))
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    return 0


# ---- head ----------------------------------------------------------------------------------------
#
# Loops over the rows of a group without a branch, so that they are compiled to vectors. A row
# without a result (NaN in a sum) stays NaN: sx_log alone would not see to that.

cdef inline double times(double p, double factor) noexcept nogil:
    # 0 times a factor that overflowed is 0; times NaN, a row without a result, it is NaN.
    return 0.0 if p == 0.0 and factor == factor else p * factor


cdef inline double or_nan(double value, double total) noexcept nogil:
    return value if total < INFINITY else NAN


cdef void head_cross_entropy(Rows* rows) noexcept nogil:
    cdef double e_y, others, total, share, high, low, f, k
    cdef sx_power_f64 power
    cdef int64_t j
    for j in range(GROUP):
        power = sx_power_of_f64(rows.n[j])
        e_y = sx_exp_f64(rows.z_y[j] - rows.moved[j], power.k, power.low)
        others = (rows.rest[j] + rows.carry[j]) + rows.e_top[j]
        total = others + e_y
        low = sx_reference_low(rows.n[j], &high)
        high = high + rows.moved[j]          # one of the two is 0
        # log1p(S'/e_y) where the target leads, else log S - (z_y - r).
        share = others / e_y
        sx_split_log1p_or_log(e_y >= others, share, total, &f, &k)
        low = 0.0 if e_y >= others else (rows.z_y[j] - high) - low
        rows.value[j] = or_nan(sx_log_reduced(f, k) - low, total)
        rows.a[j] = rows.w[j] / total
        # p_y - 1 would cancel; 0 - 0 is +0.
        rows.apart[j] = 0.0 - times(others / total, rows.w[j])


cdef void head_piece(Rows* rows) noexcept nogil:
    # logsumexp, softmax and log_softmax.
    cdef double others, total, high, low, f, k
    cdef int64_t j
    for j in range(GROUP):
        others = rows.rest[j] + rows.carry[j]
        total = others + rows.e_top[j]
        f = sx_split_log(total, &k)
        low = sx_reference_low(rows.n[j], &high)
        rows.high[j] = high + rows.moved[j]
        rows.low[j] = low + or_nan(sx_log_reduced(f, k), total)
        # Not high + low: near 0 they cancel. S 2^n has one exponent, S's and n.
        rows.value[j] = rows.moved[j] + or_nan(sx_log_reduced(f, k + rows.n[j]), total)
        rows.a[j] = 1.0 / total
        rows.apart[j] = others / rows.e_top[j]


cdef void head(const sx_call* call, Rows* rows, int64_t first) noexcept nogil:
    # From the sums to the rows' values, and to the map's numbers.
    cdef int64_t j
    if call.op == CROSS_ENTROPY:
        head_cross_entropy(rows)
    else:
        head_piece(rows)
    # A weighted loss below the smallest normal number is nobody's subnormal probability.
    sx_float_subnormals(True)
    for j in range(rows.count):
        if rows.lane[j] == SKIPPED:
            rows.value[j] = 0.0
            rows.a[j] = 0.0
        elif rows.lane[j] == POISONED:
            rows.value[j] = NAN
            rows.a[j] = NAN
        elif call.op == LOGSUMEXP and rows.lane[j] == SLOW and rows.rest[j] != rows.rest[j]:
            rows.value[j] = rows.no_result[j]
        if call.out_rows == NULL:
            continue
        if call.out_rows_is_double:
            (<double*>call.out_rows)[first + j] = rows.weight[j] * rows.value[j]
        else:
            (<float*>call.out_rows)[first + j] = <float>(rows.weight[j] * rows.value[j])
    sx_float_subnormals(False)


cdef int finish_reduce(const sx_call* call, Rows* rows, int64_t first, double limit,
                       const char* x, int64_t pitch, int64_t stride, int64_t kind,
                       sx_control* control) noexcept nogil:
    # Rows for the slow lane, then every row's head. Row j is read at x + j pitch, in steps of
    # stride; x NULL: where the caller has it.
    cdef int64_t j
    cdef const char* z
    for j in range(rows.count):
        if rows.lane[j] == FAST and not fabs(rows.top[j]) <= limit:
            rows.lane[j] = SLOW
        if rows.lane[j] == SLOW:
            z = <const char*>rows.z[j] if x == NULL else x + j * pitch
            if reduce_slow(rows, j, z, stride, kind, call.n_classes, control):
                return SX_STOPPED
    head(call, rows, first)
    return 0


# ---- map -----------------------------------------------------------------------------------------

cdef inline bint is_narrow(double factor) noexcept nogil:
    return NARROW_LEAST <= fabs(factor) <= NARROW_MOST


cdef inline real widely(real e, double factor) noexcept nogil:
    return <real>times(e, factor)


cdef inline void map_run(Rows* rows, int64_t j, const real* x, real* out,
                         int64_t length) noexcept nogil:
    # Gradient or softmax of consecutive classes; x and out are the same memory or apart.
    cdef real k, low, a = <real>rows.a[j]
    cdef int64_t i
    power_of(rows.n[j], &k, &low)
    if not is_narrow(rows.a[j]):
        for i in range(length):
            out[i] = widely(exp_of(x[i], k, low), rows.a[j])
        return
    # Two loops, for a compiler that cannot know `the same or apart` runs a scalar one.
    if x == out:
        for i in range(length):
            out[i] = fma_of(exp_of(out[i], k, low), a, <real>0.0)
    else:
        for i in range(length):
            out[i] = fma_of(exp_of(x[i], k, low), a, <real>0.0)


cdef inline void map_log(Rows* rows, int64_t j, const real* x, real* out,
                         int64_t length) noexcept nogil:
    cdef double high = rows.high[j], low = rows.low[j]
    cdef int64_t i
    if x == out:
        for i in range(length):
            out[i] = <real>((<double>out[i] - high) - low)
    else:
        for i in range(length):
            out[i] = <real>((<double>x[i] - high) - low)


cdef void map_columns(const sx_call* call, Rows* rows, const real* x, real* e) noexcept nogil:
    # C <= 64: from kept e (log_softmax: from x) to the result, in e; the target's entry with it.
    cdef real a[GROUP]
    cdef real apart[GROUP]
    cdef real targets[GROUP]
    cdef real value
    cdef int64_t i, j, classes = call.n_classes
    if call.op == LOG_SOFTMAX:
        for i in range(classes):
            for j in range(GROUP):
                e[i * GROUP + j] = <real>((<double>x[i * GROUP + j] - rows.high[j]) - rows.low[j])
        return
    for j in range(GROUP):
        a[j] = <real>rows.a[j]
        if j < rows.count and not is_narrow(rows.a[j]):
            for i in range(classes):
                e[i * GROUP + j] = widely(e[i * GROUP + j], rows.a[j])
            a[j] = 1.0
        apart[j] = <real>rows.apart[j]
        targets[j] = <real>rows.y[j]      # -1 in a softmax: no such class
    for i in range(classes):
        for j in range(GROUP):
            value = fma_of(e[i * GROUP + j], a[j], <real>0.0)
            e[i * GROUP + j] = apart[j] if targets[j] == <real>i else value


cdef int map_slow(const sx_call* call, Rows* rows, int64_t j, const char* z, int64_t z_stride,
                  int64_t z_kind, char* g, int64_t g_stride, int64_t g_kind,
                  sx_control* control) noexcept nogil:
    # A whole row that is not FAST; z and g may be the same memory.
    cdef int64_t k
    cdef double value
    cdef sx_power_f64 power = sx_power_of_f64(0.0)
    for k in range(call.n_classes):
        if rows.lane[j] == SKIPPED:
            value = 0.0
        elif rows.lane[j] == POISONED:
            value = NAN
        else:
            value = sx_load_real(z + k * z_stride, z_kind)
            if call.op == LOG_SOFTMAX:
                value = (value - rows.high[j]) - rows.low[j]
            else:
                value = times(sx_exp_f64(value - rows.top[j], power.k, power.low), rows.a[j])
        sx_store_real(g + k * g_stride, g_kind, value)
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    return 0


cdef inline void map_apart(const sx_call* call, Rows* rows, int64_t j, char* g, int64_t stride,
                           int64_t kind) noexcept nogil:
    # The entry that does not come from the map, stored last.
    if call.op == CROSS_ENTROPY:
        if rows.y[j] >= 0:
            sx_store_real(g + rows.y[j] * stride, kind, rows.apart[j])
    elif call.op == LOG_SOFTMAX and rows.apart[j] < 0.9:
        # log p of a leader: (z - r) - log S would cancel. Ties of the largest are below 1/2 each,
        # and keep the bits that the map gave them.
        sx_store_real(g + rows.k_top[j] * stride, kind, 0.0 - sx_log1p(rows.apart[j]))


# ---- other layouts -------------------------------------------------------------------------------

cdef inline bint are_neighbours(char** p, int64_t count, int64_t step) noexcept nogil:
    cdef int64_t j
    for j in range(1, count):
        if p[j] - p[j - 1] != step:
            return False
    return True


cdef void gather(const sx_call* call, Rows* rows, int64_t k0, int64_t length, int64_t row_pitch,
                 int64_t class_pitch, real* tile) noexcept nogil:
    # Classes k0 .. k0 + length of some rows: class k0 + k of row j to j row_pitch + k class_pitch.
    cdef int64_t j, k, stride = call.logits.class_stride, kind = call.logits.rows.type
    cdef const real* p
    if call.logits.direct == 1:
        for j in range(rows.count):
            p = <const real*>(rows.z[j] + k0 * stride)
            for k in range(length):
                tile[j * row_pitch + k * class_pitch] = p[k]
    elif call.logits.direct == 2 and are_neighbours(rows.z, rows.count, sizeof(real)):
        for k in range(length):
            p = <const real*>(rows.z[0] + (k0 + k) * stride)
            for j in range(rows.count):
                tile[j * row_pitch + k * class_pitch] = p[j]
    else:
        for j in range(rows.count):
            for k in range(length):
                tile[j * row_pitch + k * class_pitch] = <real>sx_load_real(
                    rows.z[j] + (k0 + k) * stride, kind)


cdef void scatter(const sx_call* call, Rows* rows, int64_t k0, int64_t length, int64_t row_pitch,
                  int64_t class_pitch, const real* tile) noexcept nogil:
    # The way back.
    cdef int64_t j, k, stride = call.out_map.class_stride, kind = call.out_map.rows.type
    cdef real* p
    if call.out_map.direct == 1:
        for j in range(rows.count):
            p = <real*>(rows.g[j] + k0 * stride)
            for k in range(length):
                p[k] = tile[j * row_pitch + k * class_pitch]
    elif call.out_map.direct == 2 and are_neighbours(rows.g, rows.count, sizeof(real)):
        for k in range(length):
            p = <real*>(rows.g[0] + (k0 + k) * stride)
            for j in range(rows.count):
                p[j] = tile[j * row_pitch + k * class_pitch]
    else:
        for j in range(rows.count):
            for k in range(length):
                sx_store_real(rows.g[j] + (k0 + k) * stride, kind,
                              tile[j * row_pitch + k * class_pitch])


# ---- the walks -----------------------------------------------------------------------------------

cdef int walk_small(const sx_call* call, Rows* rows, int64_t first, sx_control* control,
                    real* tile) noexcept nogil:
    # C <= 64: a tile in which rows are neighbours.
    cdef int64_t i, j, classes = call.n_classes, stride = GROUP * sizeof(real), kind
    cdef real* e = tile
    cdef real* x = tile + GROUP * SMALL
    kind = SX_TYPE_FLOAT | sizeof(real)
    gather(call, rows, 0, classes, 1, GROUP, x)
    for j in range(GROUP):
        if j >= rows.count or rows.lane[j] == SKIPPED:
            for i in range(classes):
                x[i * GROUP + j] = 0
    reduce_columns(rows, classes, x, e)
    if finish_reduce(call, rows, first, limit_of(tile), <const char*>x, sizeof(real), stride, kind,
                     control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    map_columns(call, rows, x, e)
    for j in range(rows.count):
        if rows.lane[j] == SLOW:
            map_slow(call, rows, j, <const char*>(x + j), stride, kind, <char*>(e + j), stride, kind,
                     control)
        if rows.lane[j] == SLOW or call.op == LOG_SOFTMAX:
            map_apart(call, rows, j, <char*>(e + j), stride, kind)
    scatter(call, rows, 0, classes, 1, GROUP, e)
    return 0


cdef inline void map_block(const sx_call* call, Rows* rows, int64_t j, const real* x, real* out,
                           int64_t length) noexcept nogil:
    if rows.lane[j] != FAST:
        return
    if call.op == LOG_SOFTMAX:
        map_log(rows, j, x, out, length)
    else:
        map_run(rows, j, x, out, length)


cdef int finish_map(const sx_call* call, Rows* rows, sx_control* control) noexcept nogil:
    # Rows that the map left out, and the entries that are stored last.
    cdef int64_t j, stride = call.out_map.class_stride, kind = call.out_map.rows.type
    for j in range(rows.count):
        if rows.lane[j] != FAST and map_slow(call, rows, j, rows.z[j], call.logits.class_stride,
                                             call.logits.rows.type, rows.g[j], stride, kind, control):
            return SX_STOPPED
        map_apart(call, rows, j, rows.g[j], stride, kind)
    return 0


cdef inline int64_t blocks_of(int64_t classes) noexcept nogil:
    return (classes + BLOCK - 1) // BLOCK


cdef inline int64_t block_length(int64_t k0, int64_t classes) noexcept nogil:
    return BLOCK if classes - k0 > BLOCK else classes - k0


cdef int walk_rows(const sx_call* call, Rows* rows, int64_t first, sx_control* control,
                   real* unused) noexcept nogil:
    # Classes side by side in memory, here and in the output: no copy.
    cdef int64_t j, b, k0, length, classes = call.n_classes
    for j in range(rows.count):
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            reduce_block(rows, j, <const real*>rows.z[j] + k0, k0, length)
            if sx_tick(control, length):
                return SX_STOPPED
    if finish_reduce(call, rows, first, limit_of(unused), NULL, 0, call.logits.class_stride,
                     call.logits.rows.type, control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    for j in range(rows.count):
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            map_block(call, rows, j, <const real*>rows.z[j] + k0, <real*>rows.g[j] + k0, length)
            if sx_tick(control, length):
                return SX_STOPPED
    return finish_map(call, rows, control)


cdef int walk_tiles(const sx_call* call, Rows* rows, int64_t first, sx_control* control,
                    real* tile) noexcept nogil:
    # Any other layout: block by block through the tile.
    cdef int64_t j, b, k0, length, classes = call.n_classes
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        gather(call, rows, k0, length, BLOCK, 1, tile)
        for j in range(rows.count):
            reduce_block(rows, j, tile + j * BLOCK, k0, length)
        if sx_tick(control, rows.count * length):
            return SX_STOPPED
    if finish_reduce(call, rows, first, limit_of(tile), NULL, 0, call.logits.class_stride,
                     call.logits.rows.type, control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        gather(call, rows, k0, length, BLOCK, 1, tile)
        for j in range(rows.count):
            if rows.lane[j] == FAST:
                map_block(call, rows, j, tile + j * BLOCK, tile + j * BLOCK, length)
        scatter(call, rows, k0, length, BLOCK, 1, tile)
        if sx_tick(control, rows.count * length):
            return SX_STOPPED
    return finish_map(call, rows, control)


cdef int64_t walk(const sx_call* call, int64_t lo, int64_t hi, sx_control* control,
                  real* tile) noexcept nogil:
    cdef Rows rows
    cdef sx_cursor cursor
    cdef int64_t i, together, classes = call.n_classes
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
        sx_float_subnormals(True)
        load_rows(call, &cursor, &rows, together if hi - i > together else hi - i)
        sx_float_subnormals(False)
        if classes <= SMALL:
            stopped = walk_small(call, &rows, i, control, tile)
            stopped = stopped or sx_tick(control, rows.count * classes)
        elif in_order:
            stopped = walk_rows(call, &rows, i, control, tile)
        else:
            stopped = walk_tiles(call, &rows, i, control, tile)
        i += rows.count
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
    """Return the addresses of the two walks, by the size of the logits' elements."""
    return {4: <uint64_t>&walk_f32, 8: <uint64_t>&walk_f64}
