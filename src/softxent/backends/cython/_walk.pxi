# The walk over a row, for every loss and every piece: reduce, head, map.
#
#   reduce   one read of the logits: the row's reference power n, S' and what the head asks for
#   head     some float64 operations a row; the only place that knows the loss
#   map      one write: g_k = e_k a + c, the target's entry stored last
#
# Options are stages of their own, block by block, on memory that is near:
#
#   softcap         before the reduce and the map: x becomes z, and the map is times its slope
#   temperature     in exp (elementary.h, sx_scale) and in the heads; z below is not divided yet
#   probabilities   after a block's sums: T = sum of u, G = sum of u (top - z), u = v t;
#                   after the map: b u is added
#   smoothing       the same with u = v: H = sum of v (top - z); c v is added
#   z-loss          in the head alone
#   16-bit logits   become float32 before all of it, and the result 16-bit after
#
# float32 logits: e_k, the map and its factors in float32; a row's sums and its head in float64.
# float64 logits: everything in float64. 16-bit ones: as float32.
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

from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t
from libc.math cimport INFINITY, NAN, rint, fabs, fabsf
from libc.string cimport memcpy

cdef extern from "_control.h" nogil:
    ctypedef struct sx_control:
        pass
    int sx_tick(sx_control* control, int64_t elements)
    enum: SX_STOPPED

cdef extern from "call.h" nogil:
    ctypedef int64_t sx_line
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
        int64_t holds_probabilities
    enum:
        SX_IN_PLACE
        SX_STRIDED
        SX_SIXTEEN
        SX_SINGLE
        SX_TYPE_BRAIN
    ctypedef struct sx_call:
        int64_t op, n_rows, n_classes
        sx_matrix logits, out_map, soft
        int64_t n_axes
        sx_rows targets, sample_weight, upstream, pos_weight
        const double* class_weight
        const void* class_weight_real
        double class_unit, class_weight_mean
        int64_t has_ignore, ignore_index
        double scale, smoothing, temperature, softcap, z_loss, gamma, slack, floor
        int64_t n_points, summed
        int64_t all_slow, streams
        double hard_weight
        void* out_rows
        int64_t out_rows_is_double
        const sx_call* second
    ctypedef struct sx_cursor:
        char* logits
        char* out_map
        char* soft
        char* targets
        char* sample_weight
        char* upstream
        char* pos_weight
    void sx_cursor_start(sx_cursor* cursor, const sx_call* call, int64_t row)
    void sx_cursor_next(sx_cursor* cursor, const sx_call* call)
    void sx_cursor_skip(sx_cursor* cursor, const sx_call* call, int64_t rows)
    int64_t sx_cursor_run(const sx_cursor* cursor, const sx_call* call)
    bint sx_is_no_share(double t)
    enum:
        SX_TYPE_UNSIGNED
        SX_TYPE_SIZE
        SX_TYPE_SWAPPED
        SX_TYPE_F16
        SX_TYPE_BF16
    int64_t sx_load_integer(const char* p, int64_t type)
    double sx_load_real(const char* p, int64_t type)
    void sx_store_real(char* p, int64_t type, double value)
    float sx_probability_f32(double t)
    bint sx_is_positive_f32(float t)
    bint sx_is_positive_f64(double t)
    bint sx_is_refused_f32(float t)
    bint sx_is_refused_f64(double t)
    void sx_refuse(const sx_call* call)
    void sx_lack_memory(const sx_call* call)
    char* sx_room()
    int64_t sx_second_cache()
    char* sx_kept_take()
    void sx_kept_release(char* kept)
    enum:
        SX_KEPT
    void sx_widen(const uint16_t* p, int is_brain, int64_t length, float* to)
    void sx_narrow(const float* p, int is_brain, int64_t length, uint16_t* to)

cdef extern from "lanes.h" nogil:
    void sx_prefetch_far(const char* p, int64_t bytes)
    void sx_prefetch(const char* p, int64_t bytes)
    int64_t sx_first_place_f32(const float* x, int64_t length, float value)
    int64_t sx_first_place_f64(const double* x, int64_t length, double value)
    float sx_top_f32(const float* x, int64_t length)
    double sx_top_f64(const double* x, int64_t length)
    void sx_add_stripe_f32(const float* e, int64_t length, double* lanes)
    void sx_add_stripe_f64(const double* e, int64_t length, double* lanes)
    void sx_add_stripe_but_f32(float* e, int64_t length, int64_t place_1, int64_t place_2,
                               double* lanes)
    void sx_add_stripe_but_f64(double* e, int64_t length, int64_t place_1, int64_t place_2,
                               double* lanes)
    double sx_fold_lanes(double* lanes)
    void sx_copy_tail_f32(const float* x, int64_t length, float* to)
    void sx_copy_tail_f64(const double* x, int64_t length, double* to)
    void sx_columns_of_rows_f32(const float* rows, int64_t count, int64_t classes, int64_t pitch,
                                float* columns)
    void sx_rows_of_columns_f32(const float* columns, int64_t count, int64_t classes, int64_t pitch,
                                float* rows)
    void sx_columns_of_rows_f64(const double* rows, int64_t count, int64_t classes, int64_t pitch,
                                double* columns)
    void sx_rows_of_columns_f64(const double* columns, int64_t count, int64_t classes, int64_t pitch,
                                double* rows)
    int64_t sx_rows_of_classes_f32(const char* at, int64_t stride, int64_t count, int64_t length,
                                   int64_t pitch, int64_t ahead, float* tile)
    int64_t sx_classes_of_rows_f32(const float* tile, int64_t pitch, int64_t count, int64_t length,
                                   char* at, int64_t stride, int64_t ahead)
    int64_t sx_rows_of_classes_f64(const char* at, int64_t stride, int64_t count, int64_t length,
                                   int64_t pitch, int64_t ahead, double* tile)
    int64_t sx_classes_of_rows_f64(const double* tile, int64_t pitch, int64_t count, int64_t length,
                                   char* at, int64_t stride, int64_t ahead)
    void sx_scale_run_f32(const float* e, float shift, float a, int64_t length, float* to)
    void sx_scale_run_f64(const double* e, double shift, double a, int64_t length, double* to)
    void sx_stream_run_f32(const float* e, float shift, float a, int64_t length, float* to)
    void sx_stream_run_f64(const double* e, double shift, double a, int64_t length, double* to)
    void sx_stream_end()
    int64_t sx_before_line(const void* to, int64_t size, int64_t length)

cdef extern from "exp_block.h" nogil:
    ctypedef struct sx_beside:
        const void* e
        void* to
        double shift, a
        int64_t length
        int streams
    const int SX_HAS_EXP_BLOCK
    void sx_exp_many_f32(const float* x, int64_t length, float k, float low, float* e)
    void sx_exp_many_f64(const double* x, int64_t length, double k, double low, double* e)
    int64_t sx_exp_times_many_f32(const float* x, int64_t length, float k, float low, float a,
                                   float* to)
    int64_t sx_exp_times_many_f64(const double* x, int64_t length, double k, double low, double a,
                                   double* to)
    void sx_exp_times_classes_f32(const char* at, int64_t stride, int64_t count, int64_t length,
                                  const float* k, const float* low, const float* a, char* to,
                                  int64_t to_stride, int64_t ahead, int64_t to_ahead)
    void sx_exp_times_classes_f64(const char* at, int64_t stride, int64_t count, int64_t length,
                                  const double* k, const double* low, const double* a, char* to,
                                  int64_t to_stride, int64_t ahead, int64_t to_ahead)
    void sx_top_columns_f32(const float* x, int64_t classes, float* tops, float* places)
    void sx_top_columns_f64(const double* x, int64_t classes, double* tops, double* places)
    void sx_exp_and_sum_columns_f32(const float* x, int64_t classes, const float* k, const float* low,
                                    const float* places, const float* targets, float* e,
                                    double* rest, double* carry, float* e_places)
    void sx_exp_and_sum_columns_f64(const double* x, int64_t classes, const double* k,
                                    const double* low, const double* places, const double* targets,
                                    double* e, double* rest, double* carry, double* e_places)
    void sx_stream_line_f32(const float* e, int64_t length, float shift, float next_shift, float a,
                            float* to)
    void sx_stream_line_f64(const double* e, int64_t length, double shift, double next_shift,
                            double a, double* to)
    double sx_exp_block_f32(const float* x, int64_t length, int64_t place_1, int64_t place_2, float k,
                            float low, const float* next, int64_t next_length, int64_t ahead,
                            sx_beside* beside, float* e, float* top, int64_t* start)
    double sx_exp_block_f64(const double* x, int64_t length, int64_t place_1, int64_t place_2,
                            double k, double low, const double* next, int64_t next_length,
                            int64_t ahead, sx_beside* beside, double* e, double* top,
                            int64_t* start)

cdef extern from "sixteen_lanes.h" nogil:
    float sx_widen_and_top(const uint16_t* p, int is_brain, int64_t length, float* to)
    void sx_scale_run_sixteen(const float* e, float shift, float a, int64_t length, int is_brain,
                              int streams, uint16_t* to)

cdef extern from "elementary.h" nogil:
    ctypedef struct sx_power_f32:
        float k, low
    ctypedef struct sx_power_f64:
        double k, low
    sx_power_f32 sx_power_of_f32(double n)
    sx_power_f64 sx_power_of_f64(double n)
    float sx_exp_f32(float z, float k, float low)
    double sx_exp_f64(double z, double k, double low)
    ctypedef struct sx_unit:
        pass
    ctypedef struct sx_scale:
        double temperature, inverse, octaves
    void sx_scale_by(sx_scale* scale, double temperature)
    float sx_exp_scaled_f32(float x, float k, float low, const sx_scale* scale)
    double sx_exp_scaled_f64(double x, double k, double low, const sx_scale* scale)
    float sx_softcap_f32(float x, double cap, const sx_scale* half, float* slope)
    double sx_softcap_f64(double x, double cap, const sx_scale* half, double* slope)
    double sx_product_rest(double a, double b, double p)
    float sx_fma_f32(float a, float b, float c)
    double sx_fma_f64(double a, double b, double c)
    double sx_pow2(double d)
    double sx_log(double x)
    double sx_log1p(double x)
    float sx_log1p_f32(float x)
    float sx_inverse_f32(float d)
    double sx_inverse_f64(double d)
    double sx_log_reduced(double f, double k)
    void sx_split_log1p_or_log(int which, double share, double total, double* f, double* k)
    void sx_two_sum(double* total, double* carry, double x)
    void sx_kahan(double* total, double* carry, double x)
    double sx_split_log(double x, double* k)
    double sx_reference_low(double n, double* high)
    double sx_scaled_reference_low(double n, double* high, const sx_scale* scale)
    double sx_log1p_any(double x)
    double sx_power(double x, double exponent)
    double sx_self_information(double t)
    ctypedef unsigned long sx_float_state
    sx_float_state sx_float_enter()
    void sx_float_subnormals(bint kept)
    void sx_float_leave(sx_float_state state)
    const int SX_HAS_FMA
    const double SX_LOG2E, SX_LIMIT_F32, SX_LIMIT_F64, SX_OUT_OF_REACH

ctypedef fused real:
    float
    double

# Whether there is a temperature: exp without one is a constant's work.
ctypedef fused scaling:
    sx_unit
    sx_scale

# backends/_contract.py's Op: the losses, then the pieces.
cdef enum:
    CROSS_ENTROPY = 0
    FOCAL
    KL
    SQUARED_ERROR
    NLL
    SIGMOID
    HESSIAN
    DISTILLATION
    LOGSUMEXP
    SOFTMAX
    LOG_SOFTMAX
    BELOW
    ENTROPY
    RANK
    SOFTMAX_VJP

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
    # Rows of as few classes go one by one up to here, or half of it where classes are no more than
    # that. (EPYC, v4, float32, calls of 1, 8, 9 rows from compiled code: of 64 classes 373, 817 and
    # 2123 ns, of 2 classes 336, 547 and 448; a tile for one row of 64 is 3838. November 2026.)
    FEW = 8
    LINE = 64
    LANES = 64
    STRIPE = 256       # four lanes' worth: what is summed in the logits' precision
    BLOCK = 1024
    # What a walk needs beside its rows, once a thread (call.h): logits of other layouts in class
    # order, the probabilities that go with them, and some blocks' worth of intermediate results.
    TILE_BYTES = 133120       # 16 rows of doubles, 32 of floats, of a block and TILE_GAP each
    TILE_GAP = 16             # rows a power of two apart would share their few places in an L1
    BLOCK_BYTES = 8192        # BLOCK doubles
    ROOM_LOGITS = 0
    ROOM_SOFT = 133120
    ROOM_BLOCK = 266240       # converted logits
    ROOM_CAPPED = 274432      # and these behind the softcap,
    ROOM_SLOPE = 282624       # with its derivative
    ROOM_TARGETS = 290816     # a row's probabilities
    ROOM_MASS = 299008        # times the class weights
    ROOM_OUT = 307200         # a result that is yet to be made 16-bit
    ROOM_E = 315392           # a block's e that nobody keeps, and of the next one's a line
    # How far behind the next block, whose largest is sought meanwhile, is fetched what follows. By
    # trial on a Zen 4, from memory: 0 takes 10 % longer for float and 40 for double, 4,096 and more
    # 5-10 % for float.
    AHEAD = 2048
    # Rows up to here, of outputs from there. By trial on a Zen 4, one thread: 65,536 x 100 takes 0.84 of
    # the time, 8,192 x 1,000 0.88; 1,024 x 32,000 1.04, and 640 x 1,000, which stays near, 1.03.
    FETCHED_ROW = 8192
    FETCHED_FROM = 4194304
    # Of up to 64 classes, logits of that many bytes are fetched two groups ahead, outputs one. By trial
    # on an EPYC (Zen 3), one thread and two, other memory at work between: 65,536 x 10 1.20 and 1.22,
    # doubles 1.08, 20,000 x 50 on two 1.09; near ones, 8,192 x 10, 0.89 to 0.97.
    FETCHED_FEW_FROM = 1048576
    # Class-major rows up to here are fetched with the rows before them, of longer ones the classes
    # that many further on: lines of as many classes stay in an L2 until they are used.
    FETCHED_CLASSES = 1024
    FETCHED_AHEAD = 32
    # Blocks whose power is kept: what SX_KEPT holds of float32, and a shorter one a row; of one long
    # row, whose output has further e, about a million classes.
    KEPT_POWERS = 1024
    # Longest stretch of rows (elements) between the passes, where e is kept, by trial; and where it is
    # not: half of the smallest usual L1.
    NEAR_KEPT = 16384
    NEAR = 4096

# Factors within these bounds are applied in the logits' precision, others in float64: up to here
# no product with an e leaves float32.
cdef double NARROW_LEAST = 2.0 ** -60
cdef double NARROW_MOST = 2.0 ** 60

# The entropy's e are taken over a power this much lower, and its sum is that much larger: e (top - z)
# may be a normal number where e is not.
cdef double MIX_POWER = 64.0
cdef double MIX_UNIT = 2.0 ** 64
# Gaps from here on are summed over that unit: 2^20 of them, times weights, could overflow.
cdef double WIDE_GAP = 2.0 ** 900


# Some weights u of the classes: sum of u, and of u (top - z) with the row's largest logit so far; all
# terms >= 0. Each with what its additions have lost.
cdef struct Moments:
    double mass[GROUP]
    double mass_carry[GROUP]
    double gap[GROUP]
    double gap_carry[GROUP]


# A group of rows, field by field, so that heads are loops over the rows. Lanes behind the last row
# hold harmless numbers.
cdef struct Rows:
    int64_t count
    const sx_scale* half     # of a softcap's exp
    # The e of the reduce, for the map: each row's first `kept_pitch` classes, and their blocks'
    # powers; NULL: none is kept.
    char* kept
    int64_t kept_pitch
    char* e_to               # where the next block's e go instead; NULL: nowhere
    int64_t kept_in_output   # up to there, further e of a row by itself are in its output
    int64_t unused[2]        # up to a line, so that no vector of a field lies in two
    double kept_n[KEPT_POWERS]
    char* z[GROUP]
    char* g[GROUP]
    char* t[GROUP]           # probabilities
    int64_t y[GROUP]         # the target; -1: none
    int64_t lane[GROUP]      # FAST, SLOW, SKIPPED or POISONED
    double weight[GROUP]     # s v_y; s alone where there is more to a row than its target
    double hard[GROUP]       # (1 - epsilon) v_y, in that case
    double w[GROUP]          # weight, upstream and divisor: what multiplies the gradient
    double n[GROUP]          # the reference power
    double top[GROUP]        # the largest logit
    int64_t k_top[GROUP]     # its first place
    double rest[GROUP]       # sum of e without the largest and the target
    double carry[GROUP]      # what the additions to `rest` have lost
    double e_top[GROUP]      # 0 where the target is the largest
    double z_y[GROUP]
    double moved[GROUP]      # what is subtracted from a logit beyond the limit, n = 0; else 0
    double no_result[GROUP]  # logsumexp of a row without a softmax
    Moments soft             # of the probabilities (times the class weights)
    Moments flat             # of the class weights, for smoothing
    double gap_unit[GROUP]   # of the moments' gaps: 2^64 where they would overflow, else 1
    double mix[GROUP]        # sum of 2^64 e (top - z), for the entropy
    double mix_carry[GROUP]
    double self[GROUP]       # sum of t log t, for the KL divergence
    double self_carry[GROUP]
    # For the squared error, of all classes but a class target: sums of e^2, e t and t^2.
    double square[GROUP]
    double square_carry[GROUP]
    double cross[GROUP]
    double cross_carry[GROUP]
    double soft_square[GROUP]
    double soft_square_carry[GROUP]
    double impossible[GROUP] # 1: a class with some target mass has logit -inf
    # What the target's -log p is multiplied with, in the row's value and in the gradient; 1 but for
    # focal loss.
    double focus[GROUP]
    double pull[GROUP]
    # From the head:
    double value[GROUP]      # the row's value, still without its weight
    double a[GROUP]          # the map's factor
    double apart[GROUP]      # the entry that the map does not give: the target's, or a leader's
    double high[GROUP]       # log S + the reference as a logit, in two parts: the map's terms
    double low[GROUP]
    double b[GROUP]          # what the map adds: b u + c v
    double c[GROUP]
    double q[GROUP]          # the map of squared error and Hessian: e (a + q e + d t)
    double d[GROUP]


cdef struct Groups:
    sx_line unused
    int64_t unused_too[7]
    Rows rows[2]


cdef inline real exp_of(real z, real k, real low, const scaling* scale) noexcept nogil:
    if real is float:
        if scaling is sx_unit:
            return sx_exp_f32(z, k, low)
        else:
            return sx_exp_scaled_f32(z, k, low, scale)
    else:
        if scaling is sx_unit:
            return sx_exp_f64(z, k, low)
        else:
            return sx_exp_scaled_f64(z, k, low, scale)


cdef inline real fma_of(real a, real b, real c) noexcept nogil:
    if real is float:
        return sx_fma_f32(a, b, c)
    else:
        return sx_fma_f64(a, b, c)


cdef inline double inverse_of(const scaling* scale) noexcept nogil:
    if scaling is sx_unit:
        return 1.0
    else:
        return scale.inverse


cdef inline void power_of(double n, real* k, real* low, const scaling* scale) noexcept nogil:
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
    if scaling is sx_scale:
        low[0] = <real>(low[0] * scale.temperature)


cdef inline double limit_of(real* unused, const scaling* scale) noexcept nogil:
    cdef double limit
    if real is float:
        limit = SX_LIMIT_F32
    else:
        limit = SX_LIMIT_F64
    if scaling is sx_scale:
        # The rounding of log2 e / temperature is not as kind as log2 e's own, which shows with large
        # limits; without FMA they are small.
        limit = (0.25 if SX_HAS_FMA else 1.0) * limit * scale.temperature
    return limit


cdef inline double power_near(double z, const scaling* scale) noexcept nogil:
    # One less than the nearest: e of the largest is then in [sqrt 2, 2 sqrt 2], S above 1, and
    # every normal probability comes from a normal e.
    if scaling is sx_unit:
        return rint(z * SX_LOG2E) - 1.0
    else:
        return rint(z * scale.octaves) - 1.0


cdef inline double reference_low(double n, double* high, const scaling* scale) noexcept nogil:
    if scaling is sx_unit:
        return sx_reference_low(n, high)
    else:
        return sx_scaled_reference_low(n, high, scale)


cdef inline double times(double p, double factor) noexcept nogil:
    # 0 times a factor that overflowed is 0; times NaN, a row without a result, it is NaN.
    return 0.0 if p == 0.0 and factor == factor else p * factor


cdef inline bint is_squared(const sx_call* call) noexcept nogil:
    # Whether the map is e (a + q e + d t).
    return call.op == SQUARED_ERROR or call.op == HESSIAN


cdef inline double at_least(double least, double value) noexcept nogil:
    # A NaN stays.
    return least if value < least else value


# ---- rows ----------------------------------------------------------------------------------------

cdef inline bint is_plain(const sx_call* call) noexcept nogil:
    # Whether a row's loss is its target's alone.
    return call.soft.rows.data == NULL and call.smoothing == 0.0 and call.z_loss == 0.0


cdef inline int64_t lanes_of(Rows* rows) noexcept nogil:
    # How far a loop over a group's rows goes: whole vectors of any width, which compilers are told by
    # this mask. (All of a group for one row of 32,000 classes: 0.3 us of 10.)
    return (rows.count + 7) & ~<int64_t>7


cdef void start_sums(Rows* rows, int64_t lanes) noexcept nogil:
    # Those that stand beside the softmax.
    cdef int64_t j
    for j in range(lanes):
        rows.soft.mass[j] = rows.soft.mass_carry[j] = 0.0
        rows.soft.gap[j] = rows.soft.gap_carry[j] = 0.0
        rows.flat.mass[j] = rows.flat.mass_carry[j] = 0.0
        rows.flat.gap[j] = rows.flat.gap_carry[j] = 0.0
        rows.mix[j] = rows.mix_carry[j] = 0.0
        rows.self[j] = rows.self_carry[j] = 0.0
        rows.gap_unit[j] = 1.0
        rows.hard[j] = 0.0
        rows.impossible[j] = 0.0


cdef inline bint are_fast(Rows* rows) noexcept nogil:
    cdef int64_t j, other = 0
    for j in range(lanes_of(rows)):
        other |= rows.lane[j] ^ FAST    # FAST behind the last row, too
    return other == 0


cdef inline void set_weight(const sx_call* call, sx_cursor* cursor, Rows* rows, int64_t j,
                            double weight) noexcept nogil:
    cdef double scale = call.scale
    if call.upstream.data != NULL:
        scale *= sx_load_real(cursor.upstream, call.upstream.type)
    rows.weight[j] = weight
    rows.w[j] = weight * scale


cdef inline bint are_simple(const sx_call* call) noexcept nogil:
    # Whether rows differ in their targets and weights alone: native int64 classes, native floats; or
    # have neither.
    cdef int64_t weights = call.sample_weight.type
    if not is_plain(call) or call.upstream.data != NULL or call.all_slow:
        return False
    if call.targets.data == NULL:
        return call.sample_weight.data == NULL and call.class_unit == 1.0
    return (call.targets.type == sizeof(int64_t)
            and (call.sample_weight.data == NULL or weights == (SX_TYPE_FLOAT | sizeof(float))
                 or weights == (SX_TYPE_FLOAT | sizeof(double))))


cdef void weigh_simple_rows(const sx_call* call, sx_cursor* cursor, Rows* rows,
                            int64_t count) noexcept nogil:
    cdef int64_t j, stride = call.sample_weight.strides[call.n_axes - 1]
    cdef float single = 1.0
    cdef double weight[GROUP]
    if call.sample_weight.data == NULL:
        for j in range(count):
            weight[j] = 1.0
    elif call.sample_weight.type == (SX_TYPE_FLOAT | sizeof(float)):
        for j in range(count):
            memcpy(&single, cursor.sample_weight + j * stride, sizeof(float))
            weight[j] = single
    else:
        for j in range(count):
            memcpy(&weight[j], cursor.sample_weight + j * stride, sizeof(double))
    if call.class_weight != NULL:
        for j in range(count):
            if rows.lane[j] == FAST:
                weight[j] *= call.class_weight[rows.y[j]]
    for j in range(count):
        if weight[j] == 0.0:
            rows.lane[j] = SKIPPED
            rows.y[j] = -1
        rows.weight[j] = weight[j] if rows.lane[j] == FAST else 1.0
        rows.w[j] = rows.weight[j] * call.scale


cdef inline bint has_row_weights(const sx_call* call) noexcept nogil:
    # Whether rows are loaded by arithmetic, and their losses multiplied by more than 1. It wants
    # subnormals, and a processor finishes all it has begun when they are turned on or off: without it
    # 65,536 x 10 on two threads is 1.02, in place 1.06 (Xeon, Granite Rapids).
    return (not are_simple(call) or call.sample_weight.data != NULL or call.class_weight != NULL
            or call.class_unit != 1.0)


cdef inline void load_simple_targets(const sx_call* call, sx_cursor* cursor, Rows* rows,
                                     int64_t count) noexcept nogil:
    cdef int64_t j, y, lane, classes = call.n_classes, stride = call.targets.strides[call.n_axes - 1]
    cdef int64_t ignored = call.ignore_index if call.has_ignore else -1    # which is no class
    cdef uint64_t signs = 0
    if stride == sizeof(int64_t):
        memcpy(rows.y, cursor.targets, count * sizeof(int64_t))
    else:
        for j in range(count):
            memcpy(&rows.y[j], cursor.targets + j * stride, sizeof(int64_t))
    for j in range(count):
        signs |= <uint64_t>rows.y[j] | (<uint64_t>(classes - 1) - <uint64_t>rows.y[j])
    if signs >> 63 == 0 and ignored < 0:
        return    # all are classes that count
    for j in range(count):
        y = rows.y[j]
        lane = FAST if 0 <= y < classes else POISONED
        lane = SKIPPED if call.has_ignore and y == ignored else lane
        rows.lane[j] = lane
        rows.y[j] = y if lane == FAST else -1


cdef void load_simple_rows(const sx_call* call, sx_cursor* cursor, Rows* rows,
                           int64_t count) noexcept nogil:
    # Rows of one run, all but without a branch.
    cdef int64_t j, last = call.n_axes - 1
    cdef int64_t z_stride = call.logits.rows.strides[last], g_stride = call.out_map.rows.strides[last]
    cdef char* z = cursor.logits
    cdef char* g = cursor.out_map
    for j in range(count):
        # Sums, for there are no vectors of 64-bit products before AVX-512.
        rows.z[j] = z
        rows.g[j] = g
        z += z_stride
        g += g_stride
    for j in range(count):
        rows.w[j] = call.scale
    if call.targets.data != NULL:
        load_simple_targets(call, cursor, rows, count)
        if call.sample_weight.data != NULL or call.class_weight != NULL:
            weigh_simple_rows(call, cursor, rows, count)
    sx_cursor_skip(cursor, call, count)


cdef void load_weighted_row(const sx_call* call, sx_cursor* cursor, Rows* rows,
                            int64_t j) noexcept nogil:
    cdef int64_t y
    cdef double weight = 1.0, v, narrow = 1.0 / call.class_unit
    cdef bint plain = is_plain(call)
    rows.z[j] = cursor.logits
    rows.g[j] = cursor.out_map
    rows.t[j] = cursor.soft
    if call.all_slow:
        rows.lane[j] = SLOW
    if call.sample_weight.data != NULL:
        weight = sx_load_real(cursor.sample_weight, call.sample_weight.type)
    if weight == 0.0:
        rows.lane[j] = SKIPPED
    elif call.soft.rows.data != NULL or call.targets.data == NULL:
        set_weight(call, cursor, rows, j, weight * call.class_unit)
    else:
        y = sx_load_integer(cursor.targets, call.targets.type)
        if call.has_ignore and y == call.ignore_index:
            rows.lane[j] = SKIPPED
        elif y < 0 or y >= call.n_classes:
            rows.lane[j] = POISONED
        else:
            v = call.class_weight[y] if call.class_weight != NULL else 1.0
            if plain:
                weight = weight * v
            else:
                rows.hard[j] = (1.0 - call.smoothing) * (v * narrow)
                weight = weight * call.class_unit
            if weight == 0.0:
                rows.lane[j] = SKIPPED
            else:
                rows.y[j] = y
                set_weight(call, cursor, rows, j, weight)
    sx_cursor_next(cursor, call)


cdef void load_rows(const sx_call* call, sx_cursor* cursor, Rows* rows, int64_t count) noexcept nogil:
    cdef int64_t j, lanes
    rows.count = count
    # A tile's loops take in all of a group, for its columns have that many rows.
    lanes = GROUP if call.n_classes <= SMALL else lanes_of(rows)
    for j in range(lanes):
        rows.y[j] = -1
        rows.lane[j] = FAST
        rows.weight[j] = 1.0
        rows.w[j] = 1.0
        rows.moved[j] = 0.0
    if call.n_classes > SMALL or are_few(call, count):
        # Else reduce_columns sets them all.
        for j in range(lanes):
            rows.n[j] = 0.0
            rows.top[j] = -INFINITY
            rows.k_top[j] = 0
            rows.rest[j] = 0.0
            rows.carry[j] = 0.0
            rows.e_top[j] = 0.0
            rows.z_y[j] = 0.0
    if not is_plain(call) or call.op == ENTROPY:
        start_sums(rows, lanes)
    if call.op == SQUARED_ERROR:
        for j in range(lanes):
            rows.square[j] = rows.square_carry[j] = 0.0
            rows.cross[j] = rows.cross_carry[j] = 0.0
            rows.soft_square[j] = rows.soft_square_carry[j] = 0.0
    if are_simple(call) and sx_cursor_run(cursor, call) >= count:
        load_simple_rows(call, cursor, rows, count)
    else:
        for j in range(count):
            load_weighted_row(call, cursor, rows, j)


include "_kept.pxi"
include "_reduce.pxi"
include "_head.pxi"
include "_map.pxi"
include "_blocks.pxi"


# ---- the walks -----------------------------------------------------------------------------------

cdef inline void clear_unused(Rows* rows, int64_t classes, real* tile) noexcept nogil:
    # Lanes without a row that counts: numbers that do no harm.
    cdef int64_t i, j
    if rows.count == GROUP and are_fast(rows):
        return
    for j in range(GROUP):
        if j >= rows.count or rows.lane[j] == SKIPPED:
            for i in range(classes):
                tile[i * GROUP + j] = 0


cdef void gather_soft(const sx_call* call, Rows* rows, int64_t k0, int64_t length, int64_t row_pitch,
                      int64_t class_pitch, real* tile) noexcept nogil:
    sx_float_subnormals(True)
    gather(&call.soft, rows.t, rows.count, k0, length, row_pitch, class_pitch,
           fetched_ahead(call, &call.soft, rows.count), tile)
    sx_float_subnormals(False)


cdef void share_sums(const sx_call* call, Rows* rows, Rows* second) noexcept nogil:
    # What the reduce has found, for another head.
    memcpy(second.lane, rows.lane, sizeof(rows.lane))
    memcpy(second.n, rows.n, sizeof(rows.n))
    memcpy(second.top, rows.top, sizeof(rows.top))
    memcpy(second.k_top, rows.k_top, sizeof(rows.k_top))
    memcpy(second.rest, rows.rest, sizeof(rows.rest))
    memcpy(second.carry, rows.carry, sizeof(rows.carry))
    memcpy(second.e_top, rows.e_top, sizeof(rows.e_top))
    memcpy(second.z_y, rows.z_y, sizeof(rows.z_y))
    memcpy(second.moved, rows.moved, sizeof(rows.moved))
    second.kept = rows.kept
    second.kept_pitch = rows.kept_pitch
    if rows.kept != NULL:
        memcpy(second.kept_n, rows.kept_n, sizeof(rows.kept_n))
    if not is_plain(call):
        second.soft = rows.soft


cdef int walk_small(const sx_call* call, Rows* rows, Rows* second, int64_t first,
                    const scaling* scale, const sx_scale* half, sx_control* control, char* room,
                    real* unused) noexcept nogil:
    # C <= 64: a tile in which rows are neighbours.
    cdef int64_t j, classes = call.n_classes, stride = GROUP * sizeof(real), kind
    cdef real* e = <real*>(room + ROOM_LOGITS)
    cdef real* x = e + GROUP * SMALL
    cdef real* t = <real*>(room + ROOM_SOFT)
    cdef real* u = t + GROUP * SMALL
    cdef real* slope = u + GROUP * SMALL
    cdef real* also = slope + GROUP * SMALL
    kind = SX_TYPE_FLOAT | sizeof(real)
    j = classes * stride
    if call.logits.direct == SX_IN_PLACE and call.n_rows // GROUP * j >= FETCHED_FEW_FROM:
        sx_prefetch_far(rows.z[0] + 2 * j, j)
        if call.out_map.direct == SX_IN_PLACE and rows.g[0] != rows.z[0]:
            sx_prefetch_far(rows.g[0] + j, j)
    gather(&call.logits, rows.z, rows.count, 0, classes, 1, GROUP, 0, x)
    clear_unused(rows, classes, x)
    if call.softcap != 0.0:
        cap(call, half, x, classes * GROUP, x,
            slope if call.out_map.rows.data != NULL else <real*>NULL)
    reduce_columns(rows, classes, x, e, scale)
    if call.soft.rows.data == NULL:
        t = NULL
    else:
        gather_soft(call, rows, 0, classes, 1, GROUP, t)
        clear_unused(rows, classes, t)
    if t != NULL or call.smoothing > 0.0:
        reduce_soft_columns(call, rows, x, t, u)
    if call.op == SQUARED_ERROR:
        reduce_square_columns(call, rows, t, e)
    elif call.op == ENTROPY:
        reduce_mix_columns(rows, classes, x, scale)
    if finish_reduce(call, rows, first, unused, scale, control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    if second != NULL:
        memcpy(also, e, classes * GROUP * sizeof(real))
        share_sums(call, rows, second)
        head(call.second, second, first, scale)
        map_columns(call.second, second, x, t, <real*>NULL, also, scale)
        for j in range(0 if are_fast(rows) else rows.count):
            if rows.lane[j] != FAST and map_slow(call.second, second, j, <char*>(also + j), stride,
                                                 kind, scale, control):
                return SX_STOPPED
            if rows.lane[j] == SLOW:
                map_apart(call.second, second, j, <char*>(also + j), stride, kind)
    map_columns(call, rows, x, t, slope if call.softcap != 0.0 else <real*>NULL, e, scale)
    for j in range(rows.count if call.op == LOG_SOFTMAX or not are_fast(rows) else 0):
        if rows.lane[j] != FAST:
            if map_slow(call, rows, j, <char*>(e + j), stride, kind, scale, control):
                return SX_STOPPED
        if rows.lane[j] == SLOW or call.op == LOG_SOFTMAX:
            map_apart(call, rows, j, <char*>(e + j), stride, kind)
    if second != NULL:
        scatter(&call.second.out_map, second.g, rows.count, 0, classes, 1, GROUP, 0, also)
    scatter(&call.out_map, rows.g, rows.count, 0, classes, 1, GROUP, 0, e)
    return 0


cdef inline bint are_few(const sx_call* call, int64_t count) noexcept nogil:
    # Whether rows of up to 64 classes are fewer than a tile is worth, used where they are, and of a
    # loss or piece that needs no further sums.
    return (count <= (FEW if call.n_classes > FEW else FEW // 2) and call.n_classes <= SMALL
            and is_plain(call) and call.softcap == 0.0
            and not is_squared(call) and call.op != ENTROPY
            and call.second == NULL and call.logits.direct == SX_IN_PLACE
            and (call.out_map.rows.data == NULL or call.out_map.direct == SX_IN_PLACE))


cdef void map_few(const sx_call* call, Rows* rows, int64_t j, const real* e,
                  const scaling* scale) noexcept nogil:
    # map_columns, of one row.
    cdef int64_t i, classes = call.n_classes
    cdef real* out = <real*>rows.g[j]
    cdef real a = <real>rows.a[j]
    if call.op == LOG_SOFTMAX:
        map_log(rows, j, <const real*>rows.z[j], out, classes, scale)
    elif classes == 1 and call.op == SOFTMAX:
        out[0] = <real>rows.w[j] if rows.a[j] == rows.a[j] else <real>NAN    # 1, exactly
    elif is_narrow(rows.a[j]):
        for i in range(classes):
            out[i] = fma_of(e[i], a, <real>0.0)
    else:
        for i in range(classes):
            out[i] = widely(e[i], rows.a[j], 1.0)


cdef int walk_few(const sx_call* call, Rows* rows, int64_t first, const scaling* scale,
                  sx_control* control, char* room, real* unused) noexcept nogil:
    # C <= 64, one row at a time: a tile costs the same for one as for 32.
    cdef real* e = <real*>(room + ROOM_LOGITS)
    cdef int64_t j
    for j in range(rows.count):
        if rows.lane[j] == FAST:
            reduce_row(rows, j, <const real*>rows.z[j], call.n_classes, e + j * SMALL, scale)
    if finish_reduce(call, rows, first, unused, scale, control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    for j in range(rows.count):
        if rows.lane[j] == FAST:
            map_few(call, rows, j, e + j * SMALL, scale)
    return finish_map(call, rows, scale, control)


cdef int finish_map(const sx_call* call, Rows* rows, const scaling* scale,
                    sx_control* control) noexcept nogil:
    # Rows that the map left out, and the entries that are stored last.
    cdef int64_t j, stride = call.out_map.class_stride, kind = call.out_map.rows.type
    for j in range(rows.count):
        if rows.lane[j] != FAST and map_slow(call, rows, j, rows.g[j], stride, kind, scale, control):
            return SX_STOPPED
        map_apart(call, rows, j, rows.g[j], stride, kind)
    return 0


cdef inline int64_t blocks_of(int64_t classes) noexcept nogil:
    return (classes + BLOCK - 1) // BLOCK


cdef inline int64_t block_length(int64_t k0, int64_t classes) noexcept nogil:
    return BLOCK if classes - k0 > BLOCK else classes - k0


cdef struct Place:
    # Where the map of some rows stands.
    int64_t j
    int64_t k0
    int64_t done    # elements of that block which are made already; -1: a block by itself


cdef inline int64_t shared_line(const void* to, int64_t size, int64_t left) noexcept nogil:
    # How many elements of the next block are in the line that ends the one before `to`, if there are
    # that many. Past the caches such a line goes whole: one that is written in parts is read first, and
    # what follows waits for it. (Xeon, Granite Rapids, 1,024 x 32,000: 0.12 of 0.6 ns an element.)
    return sx_before_line(to, size, left) if left >= LINE // size else 0


cdef inline int64_t shared_kept_line(const sx_call* call, Rows* rows, int64_t j, int64_t k0,
                                     const void* to, int64_t size, real* unused) noexcept nogil:
    # The same of kept e; k0: where the next block begins.
    cdef int64_t done = shared_line(to, size, call.n_classes - k0)
    if done > 0 and has_kept(call, rows, j, k0, block_length(k0, call.n_classes), unused):
        return done
    return 0


cdef inline bint is_product(const sx_call* call, Rows* rows, int64_t j) noexcept nogil:
    # Whether a row's map is its e times a number.
    return (rows.lane[j] == FAST and keeps(call) and is_plain(call) and not is_squared(call)
            and is_narrow(rows.a[j]))


cdef int map_next(const sx_call* call, Rows* rows, Place* at, const scaling* scale,
                  const sx_scale* half, sx_control* control, char* room,
                  real* unused) noexcept nogil:
    # A block of the map; behind the last row it does nothing.
    cdef int64_t j = at.j, k0 = at.k0, length, stride = call.out_map.class_stride, first, done = 0
    cdef const real* x = NULL
    cdef const real* t
    cdef real* out
    cdef real top
    if j >= rows.count:
        return 0
    length = block_length(k0, call.n_classes)
    if call.logits.direct == SX_IN_PLACE or not has_kept(call, rows, j, k0, length, unused):
        x = row_block(call, rows, j, k0, length, <real*>(room + ROOM_BLOCK), &top)
    t = soft_block(call, rows, j, k0, length, <real*>(room + ROOM_TARGETS))
    if call.out_map.direct == SX_IN_PLACE:
        out = <real*>(rows.g[j] + k0 * stride)
        first = 0
        if (call.streams and at.done >= 0 and call.logits.direct == SX_IN_PLACE
                and is_product(call, rows, j) and not has_kept(call, rows, j, k0, length, unused)):
            # To where a line ends: any of the row's e may be taken over its own power.
            first = at.done
            done = shared_line(out + length, sizeof(real), call.n_classes - k0 - length)
        map_given(call, rows, j, x + first, t, out + first, k0, length - first + done, scale, half,
                  room)
    elif map_sixteen(call, rows, at, length, &done, unused):
        pass
    elif rows.lane[j] == FAST:
        out = <real*>(room + ROOM_OUT)
        map_given(call, rows, j, x, t, out, k0, length, scale, half, room)
        store_block(&call.out_map, rows.g[j] + k0 * stride, length, <const real*>out)
    return pass_block(call, at, done, control)


cdef inline int pass_block(const sx_call* call, Place* at, int64_t done,
                           sx_control* control) noexcept nogil:
    cdef int64_t length = block_length(at.k0, call.n_classes)
    at.done = done
    at.k0 += length
    if at.k0 == call.n_classes:
        at.k0 = 0
        at.j += 1
    return sx_tick(control, length)


cdef inline bint begin_beside(const sx_call* call, Rows* rows, const Place* at, sx_beside* beside,
                              real* unused) noexcept nogil:
    # Whether the next block of the map is kept e times a number, and made while another block's exp is:
    # one stores while the other computes.
    cdef int64_t j = at.j, k0 = at.k0, length = block_length(k0, call.n_classes), done = at.done
    cdef const real* e
    cdef real* to
    if (not SX_HAS_EXP_BLOCK or j >= rows.count or call.out_map.direct != SX_IN_PLACE
            or not is_product(call, rows, j) or not has_kept(call, rows, j, k0, length, unused)):
        return False
    e = kept_block(rows, j, k0, length, unused)
    to = <real*>rows.g[j] + k0
    beside.shift = sx_pow2(kept_steps(rows, j, k0))
    beside.a = rows.a[j]
    beside.streams = call.streams
    if call.streams and done == 0:
        done = sx_before_line(to, sizeof(real), length)
        store_products(e, <real>beside.shift, beside.a, done, False, to)
    beside.e = e + done
    beside.to = to + done
    beside.length = length - done
    return True


cdef inline int end_beside(const sx_call* call, Rows* rows, Place* at, sx_beside* beside,
                           sx_control* control, real* unused) noexcept nogil:
    # What is left of it.
    cdef int64_t j = at.j, k0 = at.k0 + block_length(at.k0, call.n_classes), line, done = 0
    cdef const real* e = <const real*>beside.e
    cdef real* to = <real*>beside.to
    cdef real shift
    if beside.streams:
        done = shared_kept_line(call, rows, j, k0, to + beside.length, sizeof(real), unused)
    if done > 0:
        line = LINE // sizeof(real) - done
        beside.length -= line
        shift = <real>sx_pow2(kept_steps(rows, j, k0))
        if real is float:
            sx_stream_line_f32(e + beside.length, line, <float>beside.shift, shift, <float>beside.a,
                               to + beside.length)
        else:
            sx_stream_line_f64(e + beside.length, line, beside.shift, shift, beside.a,
                               to + beside.length)
    store_products(e, <real>beside.shift, beside.a, beside.length, beside.streams != 0, to)
    beside.length = 0
    return pass_block(call, at, done, control)


cdef inline bint are_kept_alone(const sx_call* call) noexcept nogil:
    # Whether rows of a block are mapped as `map_next` would, which asks more than there is to do.
    return (call.n_classes <= BLOCK and keeps(call) and is_plain(call) and not is_squared(call)
            and call.out_map.direct == SX_IN_PLACE and not call.streams)


cdef inline bint map_kept(const sx_call* call, Rows* rows, int64_t j, real* unused) noexcept nogil:
    # A row whose map is its kept e times a number; False: of another kind.
    cdef int64_t classes = call.n_classes
    cdef real* e = kept_block(rows, j, 0, classes, unused)
    cdef double steps
    if e == NULL or rows.lane[j] != FAST or not is_narrow(rows.a[j]):
        return False
    steps = kept_steps(rows, j, 0)
    if not least_shift(unused) <= steps <= 0.0:
        return False
    store_products(e, <real>sx_pow2(steps), rows.a[j], classes, False, <real*>rows.g[j])
    return True


cdef int map_rest(const sx_call* call, Rows* rows, Place* at, const scaling* scale,
                  const sx_scale* half, sx_control* control, char* room,
                  real* unused) noexcept nogil:
    # What is left of the map, rows that it leaves out, and the entries that are stored last.
    cdef bint are_short = are_kept_alone(call)
    while at.j < rows.count:
        if are_short and map_kept(call, rows, at.j, unused):
            at.j += 1
            if sx_tick(control, call.n_classes):
                return SX_STOPPED
            continue
        if map_next(call, rows, at, scale, half, control, room, unused):
            return SX_STOPPED
    return finish_map(call, rows, scale, control)


cdef inline bint fetches_output(const sx_call* call, real* unused) noexcept nogil:
    # Whether memory that the map will write is fetched while the reduce computes.
    cdef int64_t row = call.n_classes * sizeof(real)
    return (call.out_map.direct == SX_IN_PLACE and not call.streams and row <= FETCHED_ROW
            and call.n_rows * row >= FETCHED_FROM)


cdef int walk_rows(const sx_call* call, Rows* rows, Rows* before, Rows* second, int64_t first,
                   const scaling* scale, const sx_scale* half, sx_control* control, char* room,
                   real* unused) noexcept nogil:
    # Classes side by side in memory, here and in the output: used where they are, or, of 16 bits,
    # converted a block at a time. The map is that of the rows before, block by block in turn with the
    # reduce, for one waits for memory and the other computes; or `before` is NULL, and the map finds
    # these rows in the caches.
    cdef int64_t j, b, k0, length, classes = call.n_classes
    cdef const real* x
    cdef const real* t
    cdef Next next = nothing_next()
    cdef real top
    cdef int64_t start
    cdef Place at = Place(0, 0, 0)
    cdef bint fetches = fetches_output(call, unused), beside
    if sees_ahead(call):
        next.top = block_top(<const real*>rows.z[0], block_length(0, classes))
    for j in range(rows.count):
        for b in range(blocks_of(classes)):
            k0 = b * BLOCK
            length = block_length(k0, classes)
            top = <real>next.top
            start = next.start
            x = row_block(call, rows, j, k0, length, <real*>(room + ROOM_BLOCK), &top)
            t = soft_block(call, rows, j, k0, length, <real*>(room + ROOM_TARGETS))
            if sees_ahead(call):
                if k0 + length < classes:
                    next.x = <const char*>(x + length)
                    next.length = block_length(k0 + length, classes)
                elif j + 1 < rows.count:
                    next.x = rows.z[j + 1]
                    next.length = block_length(0, classes)
                else:
                    next.x = NULL
            if fetches and rows.g[j] != rows.z[j]:
                sx_prefetch_far(rows.g[j] + k0 * sizeof(real), length * sizeof(real))
            beside = before != NULL and begin_beside(call, before, &at, &next.beside, unused)
            reduce_given(call, rows, j, x, t, k0, length, top, start, &next, scale, half, room)
            if sx_tick(control, length):
                return SX_STOPPED
            if beside:
                if end_beside(call, before, &at, &next.beside, control, unused):
                    return SX_STOPPED
            elif before != NULL and map_next(call, before, &at, scale, half, control, room, unused):
                return SX_STOPPED
    if before != NULL and map_rest(call, before, &at, scale, half, control, room, unused):
        return SX_STOPPED
    if finish_reduce(call, rows, first, unused, scale, control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL or before != NULL:
        return 0
    if second != NULL:
        share_sums(call, rows, second)
        head(call.second, second, first, scale)
        at = Place(0, 0, 0)
        if map_rest(call.second, second, &at, scale, half, control, room, unused):
            return SX_STOPPED
    at = Place(0, 0, 0)
    return map_rest(call, rows, &at, scale, half, control, room, unused)


cdef inline int64_t tile_pitch(const sx_call* call) noexcept nogil:
    # From a tile's row to the next.
    return min((call.n_classes + TILE_GAP - 1) & ~<int64_t>(TILE_GAP - 1), BLOCK) + TILE_GAP


cdef inline bint begins_at_line(const sx_matrix* matrix, int64_t rows, real* unused) noexcept nogil:
    # Whether so many rows are where a line ends, in each class.
    cdef uint64_t at = <uint64_t>matrix.rows.data + rows * sizeof(real)
    return matrix.rows.data == NULL or not (at | matrix.class_stride) % LINE


cdef inline int64_t rows_to_line(const sx_call* call, real* unused) noexcept nogil:
    # How many rows of class-major logits come before a line, in each class: arrays from `malloc` do not
    # begin at one. None where a group more would cost more than it gains.
    if (call.logits.direct != SX_STRIDED or call.n_axes != 1 or call.logits.class_stride % LINE
            or call.logits.rows.strides[0] != sizeof(real)
            or call.n_rows < 2 * GROUP or call.n_classes <= SMALL):
        return 0
    return <int64_t>(-<uint64_t>call.logits.rows.data % LINE // sizeof(real))


cdef inline int64_t tile_rows(const sx_call* call, int64_t before, real* unused) noexcept nogil:
    # How many rows a tile has behind the first `before`: whole squares of them. A class of 16 floats is
    # a line where it begins at one; elsewhere it is in two, and one of 32 in three.
    cdef int64_t room = TILE_BYTES
    if (begins_at_line(&call.logits, before, unused)
            and begins_at_line(&call.out_map, before, unused)):
        room = TILE_BYTES // 2
    return min(room // (tile_pitch(call) * <int64_t>sizeof(real)), GROUP) & ~<int64_t>7


cdef bint needs_logits(const sx_call* call, Rows* rows, int64_t k0, int64_t length,
                       real* unused) noexcept nogil:
    # Whether the map of some rows' block is made of more than the e that are kept. What the tile has of
    # a row in the slow lane is stored, perhaps over its logits, and the lane reads them after that.
    cdef int64_t j
    for j in range(rows.count):
        if rows.lane[j] == SLOW or (
                rows.lane[j] == FAST and not has_kept(call, rows, j, k0, length, unused)):
            return True
    return False


cdef inline bint is_by_class(const sx_call* call, const scaling* scale, real* unused) noexcept nogil:
    # Whether the map of class-major rows is e times a row's factor, and is made where the logits are: of
    # floats, whose exp takes less time than a tile of kept e, and of doubles where those have no room.
    # Fewer rows than a group leave vectors half empty: 3 x 4,099 would take 1.3 times as long.
    return (scaling is sx_unit and SX_HAS_EXP_BLOCK and call.n_rows >= GROUP and keeps(call)
            and is_plain(call) and not is_squared(call) and call.op != NLL
            and call.logits.direct == SX_STRIDED and call.out_map.direct == SX_STRIDED
            and (real is float or call.n_classes * LINE > SX_KEPT))


cdef bint map_by_class(const sx_call* call, Rows* rows, const scaling* scale, sx_control* control,
                       int* stopped, real* unused) noexcept nogil:
    # Vectors of rows instead of tiles; False: not of these rows.
    cdef real k[GROUP]
    cdef real low[GROUP]
    cdef real a[GROUP]
    cdef int64_t j, b, k0, length, count = rows.count, classes = call.n_classes
    cdef int64_t stride = call.logits.class_stride, to_stride = call.out_map.class_stride
    cdef int64_t ahead = fetched_ahead(call, &call.logits, count)
    cdef int64_t to_ahead = fetched_ahead(call, &call.out_map, count)
    if (not is_by_class(call, scale, unused)
            or not are_neighbours(rows.z, count, sizeof(real))
            or not are_neighbours(rows.g, count, sizeof(real))):
        return False
    for j in range(GROUP):
        k[j] = low[j] = a[j] = 0
    for j in range(count):
        if rows.lane[j] == FAST and is_narrow(rows.a[j]):
            power_of(rows.n[j], &k[j], &low[j], scale)
            a[j] = <real>rows.a[j]
        elif rows.lane[j] == FAST or rows.lane[j] == SLOW:
            return False
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        if real is float:
            sx_exp_times_classes_f32(rows.z[0] + k0 * stride, stride, count, length, k, low, a,
                                     rows.g[0] + k0 * to_stride, to_stride, ahead, to_ahead)
        else:
            sx_exp_times_classes_f64(rows.z[0] + k0 * stride, stride, count, length, k, low, a,
                                     rows.g[0] + k0 * to_stride, to_stride, ahead, to_ahead)
        stopped[0] = sx_tick(control, count * length)
        if stopped[0]:
            break
    return True


cdef int map_tiles(const sx_call* call, Rows* rows, const scaling* scale, const sx_scale* half,
                   sx_control* control, char* room, real* unused) noexcept nogil:
    cdef int64_t j, b, k0, length, classes = call.n_classes, pitch = tile_pitch(call)
    cdef real* tile = <real*>(room + ROOM_LOGITS)
    cdef real* soft = <real*>(room + ROOM_SOFT)
    cdef bint has_soft = call.soft.rows.data != NULL
    cdef int stopped = 0
    if map_by_class(call, rows, scale, control, &stopped, unused):
        return stopped or finish_map(call, rows, scale, control)
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        if needs_logits(call, rows, k0, length, unused):
            gather(&call.logits, rows.z, rows.count, k0, length, pitch, 1,
                   fetched_ahead(call, &call.logits, rows.count), tile)
        if has_soft:
            gather_soft(call, rows, k0, length, pitch, 1, soft)
        for j in range(rows.count):
            map_given(call, rows, j, <const real*>(tile + j * pitch),
                      <const real*>(soft + j * pitch) if has_soft else <const real*>NULL,
                      tile + j * pitch, k0, length, scale, half, room)
        scatter(&call.out_map, rows.g, rows.count, k0, length, pitch, 1,
                fetched_ahead(call, &call.out_map, rows.count), tile)
        if sx_tick(control, rows.count * length):
            return SX_STOPPED
    return finish_map(call, rows, scale, control)


cdef int walk_tiles(const sx_call* call, Rows* rows, Rows* second, int64_t first,
                    const scaling* scale, const sx_scale* half, sx_control* control, char* room,
                    real* unused) noexcept nogil:
    # Any other layout: block by block through the tile.
    cdef int64_t j, b, k0, length, classes = call.n_classes, pitch = tile_pitch(call)
    cdef real* tile = <real*>(room + ROOM_LOGITS)
    cdef real* soft = <real*>(room + ROOM_SOFT)
    cdef bint has_soft = call.soft.rows.data != NULL
    cdef Next next = nothing_next()
    cdef real top = 0
    cdef int64_t start = 0
    for b in range(blocks_of(classes)):
        k0 = b * BLOCK
        length = block_length(k0, classes)
        gather(&call.logits, rows.z, rows.count, k0, length, pitch, 1,
               fetched_ahead(call, &call.logits, rows.count), tile)
        if has_soft:
            gather_soft(call, rows, k0, length, pitch, 1, soft)
        if call.softcap == 0.0:
            next.length = length
            next.x = <const char*>tile
            see(&next, unused)
        for j in range(rows.count):
            if call.softcap == 0.0:
                top = <real>next.top
                start = next.start
                next.x = <const char*>(tile + (j + 1) * pitch) if j + 1 < rows.count else NULL
            reduce_given(call, rows, j, <const real*>(tile + j * pitch),
                         <const real*>(soft + j * pitch) if has_soft else <const real*>NULL,
                         k0, length, top, start, &next, scale, half, room)
        if sx_tick(control, rows.count * length):
            return SX_STOPPED
    if finish_reduce(call, rows, first, unused, scale, control):
        return SX_STOPPED
    if call.out_map.rows.data == NULL:
        return 0
    if second != NULL:
        share_sums(call, rows, second)
        head(call.second, second, first, scale)
        if map_tiles(call.second, second, scale, half, control, room, unused):
            return SX_STOPPED
    return map_tiles(call, rows, scale, half, control, room, unused)


include "_other.pxi"
include "_points.pxi"
include "_distillation.pxi"
include "_split.pxi"

cdef int64_t SECOND_CACHE = sx_second_cache()


cdef inline bint goes_in_turn(const sx_call* call, int64_t together, real* unused) noexcept nogil:
    # Whether the map of some rows is made while the next ones are reduced. The logits of both, and the e
    # that are kept, should be found in an L2 then.
    cdef int64_t row = call.n_classes * sizeof(real), span = together * row
    cdef bint fits = row <= SX_KEPT and 2 * span + min(2 * span, SX_KEPT) <= SECOND_CACHE // 8 * 7
    if call.streams:
        return fits or row <= SX_KEPT // 2
    return (fits and SX_HAS_EXP_BLOCK and call.n_classes >= STRIPE and is_plain(call)
            and not is_squared(call) and call.out_map.direct == SX_IN_PLACE)


cdef int64_t walk(const sx_call* call, int64_t lo, int64_t hi, sx_control* control,
                  const scaling* scale, real* unused) noexcept nogil:
    cdef Groups memory
    cdef Rows* groups = memory.rows    # those of a turn, and of the one before
    cdef Rows* rows = groups
    cdef Rows* second = &groups[1] if call.second != NULL else NULL
    cdef sx_cursor cursor, second_cursor
    cdef sx_scale half
    cdef Place start = Place(0, 0, 0)
    cdef char* room = sx_room()
    cdef char* kept = NULL
    cdef int64_t i, count, together, near, turn = 0, classes = call.n_classes
    cdef int64_t before = rows_to_line(call, unused)
    cdef bint in_order = (
        call.logits.direct in (SX_IN_PLACE, SX_SIXTEEN)
        and (call.out_map.rows.data == NULL or call.out_map.direct in (SX_IN_PLACE, SX_SIXTEEN))
        and (call.second == NULL or call.second.out_map.direct in (SX_IN_PLACE, SX_SIXTEEN)))
    cdef bint in_turn
    cdef bint weighs = has_row_weights(call) or second != NULL
    cdef int stopped = 0
    # All that many rows further on, and the first piece takes them, too: groups begin at lines then,
    # and no line is two threads'.
    if lo > 0:
        lo = min(lo + before, call.n_rows)
    hi = min(hi + before, call.n_rows)
    if call.softcap != 0.0:
        sx_scale_by(&half, 0.5 * call.softcap)
    if classes <= SMALL:
        together = GROUP
    else:
        if keeps(call) and call.op != NLL and (in_order or not is_by_class(call, scale, unused)):
            kept = sx_kept_take()
        if in_order and call.out_map.rows.data == NULL:
            together = GROUP    # no map that would have to find them near
        elif in_order:
            near = NEAR if kept == NULL else NEAR_KEPT
            together = min(max(near // classes, 1), GROUP)
        else:
            together = tile_rows(call, before, unused)
    in_turn = in_order and kept != NULL and second == NULL and goes_in_turn(call, together, unused)
    for turn in range(2):
        rows = &groups[turn]
        rows.count = 0
        rows.half = &half
        keep_nothing(rows)
        if in_turn:
            keep_rows(rows, kept + turn * (SX_KEPT // 2), SX_KEPT // 2, together, classes, unused)
        else:
            keep_rows(rows, kept, SX_KEPT, together, classes, unused)
        if (in_order and together == 1 and second == NULL and keeps(call)
                and call.out_map.direct == SX_IN_PLACE and not call.streams):
            rows.kept_in_output = min(classes & ~<int64_t>(LANES - 1), KEPT_POWERS * BLOCK)
        for i in range(GROUP):
            rows.focus[i] = 1.0
            rows.pull[i] = 1.0
    sx_cursor_start(&cursor, call, lo)
    if second != NULL:
        second.kept = NULL
        sx_cursor_start(&second_cursor, call.second, lo)
    sx_float_subnormals(False)
    i = lo
    turn = 0
    while i < hi and not stopped:
        rows = &groups[turn]
        if weighs:
            sx_float_subnormals(True)
        count = before if i == 0 and before > 0 else together
        load_rows(call, &cursor, rows, min(count, hi - i))
        if second != NULL:
            load_rows(call.second, &second_cursor, second, rows.count)
        if weighs:
            sx_float_subnormals(False)
        if call.op == RANK:
            stopped = walk_rank(call, rows, i, control, room, unused)
        elif call.op == NLL:
            stopped = walk_nll(call, rows, i, control, unused)
        elif classes <= SMALL:
            if are_few(call, rows.count):
                stopped = walk_few(call, rows, i, scale, control, room, unused)
            else:
                stopped = walk_small(call, rows, second, i, scale, &half, control, room, unused)
            stopped = stopped or sx_tick(control, rows.count * classes)
        elif in_order:
            stopped = walk_rows(call, rows, &groups[1 - turn] if in_turn else <Rows*>NULL, second, i,
                                scale, &half, control, room, unused)
            if in_turn:
                turn = 1 - turn
        else:
            stopped = walk_tiles(call, rows, second, i, scale, &half, control, room, unused)
        i += rows.count
    if in_turn:
        stopped = stopped or map_rest(call, rows, &start, scale, &half, control, room, unused)
    sx_kept_release(kept)
    if call.streams:
        sx_stream_end()
    return SX_STOPPED if stopped else 0


cdef int64_t walk_any(const sx_call* call, int64_t lo, int64_t hi, sx_control* control,
                      real* unused) noexcept nogil:
    cdef sx_unit unit
    cdef sx_scale scale
    cdef sx_float_state state = sx_float_enter()
    cdef int64_t status
    if call.op == SOFTMAX_VJP:
        status = walk_vjp(call, lo, hi, control, unused)
    elif call.op == SIGMOID:
        status = walk_points(call, lo, hi, control, unused)
    elif call.op == DISTILLATION:
        sx_scale_by(&scale, call.temperature)
        status = walk_distillation(call, lo, hi, control, &scale, unused)
    elif call.temperature == 1.0:
        status = walk(call, lo, hi, control, &unit, unused)
    else:
        sx_scale_by(&scale, call.temperature)
        status = walk(call, lo, hi, control, &scale, unused)
    sx_float_leave(state)
    return status


cdef int64_t walk_f32(void* args, int64_t lo, int64_t hi, sx_control* control) noexcept nogil:
    return walk_any(<const sx_call*>args, lo, hi, control, <float*>NULL)


cdef int64_t walk_f64(void* args, int64_t lo, int64_t hi, sx_control* control) noexcept nogil:
    return walk_any(<const sx_call*>args, lo, hi, control, <double*>NULL)


cdef int64_t walk_split_f32(void* args, int64_t lo, int64_t hi, sx_control* control) noexcept nogil:
    return walk_split(<Split*>args, lo, hi, control, <float*>NULL)


cdef int64_t walk_split_f64(void* args, int64_t lo, int64_t hi, sx_control* control) noexcept nogil:
    return walk_split(<Split*>args, lo, hi, control, <double*>NULL)


def split_kernels():
    """Return the addresses of the walks that cut rows, by the size of the element."""
    return {4: <uint64_t>&walk_split_f32, 8: <uint64_t>&walk_split_f64}


def split_bytes(int64_t n_units):
    """Return the size of such a walk's arguments: the call's address, a stage's number, its memory."""
    return sizeof(Split) + n_units * sizeof(Part)


def kernels():
    """Return the addresses of the two walks, by the size of the element that they work in."""
    return {4: <uint64_t>&walk_f32, 8: <uint64_t>&walk_f64}
