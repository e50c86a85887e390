/* The arguments of a compiled walk, filled by _bind.pyx from a `Call` (backends/_contract.py). */
#ifndef SOFTXENT_CALL_H
#define SOFTXENT_CALL_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__unix__)
#include <unistd.h>
#endif

#include "elementary.h"
#include "sixteen.h"

/* NumPy's limit; rows' axes are merged where strides allow, so one is the rule. */
#define SX_MAX_AXES 64

/* An element type, as a number: size in bytes, and what else a load must know. */
#define SX_TYPE_SIZE 31
#define SX_TYPE_UNSIGNED 32
#define SX_TYPE_FLOAT 64
#define SX_TYPE_SWAPPED 128
#define SX_TYPE_BRAIN 256 /* of two-byte floats: bfloat16 */
#define SX_TYPE_F16 (SX_TYPE_FLOAT | 2)
#define SX_TYPE_BF16 (SX_TYPE_FLOAT | SX_TYPE_BRAIN | 2)

/* An array with one element a row: element (i0, i1, ...) at data + i0 stride[0] + ...; data may be
   NULL, for an array that was not given. */
typedef struct {
    char *data;
    int64_t type;
    int64_t strides[SX_MAX_AXES];
} sx_rows;

/* An array of the logits' shape, and how a walk in float or double may use it. Elements are aligned
   and in native byte order but with SX_ANY. */
enum {
    SX_ANY = 0,
    SX_IN_PLACE = 1,  /* the walk's own type, classes side by side: used as it is */
    SX_STRIDED = 2,   /* the walk's own type */
    SX_SIXTEEN = 3,   /* two bytes wide, classes side by side: converted a stretch at a time */
    SX_SINGLE = 4     /* float, of a walk in double */
};

typedef struct {
    sx_rows rows;
    int64_t class_stride;
    int64_t direct;
    int64_t holds_probabilities;
} sx_matrix;

typedef struct sx_call {
    int64_t op;
    int64_t n_rows, n_classes;
    int64_t n_axes;
    int64_t shape[SX_MAX_AXES];
    sx_matrix logits, out_map, soft;
    sx_rows targets, sample_weight, upstream, pos_weight;
    /* Class weights; the walk's own type, over a power of two that brings the largest into [1, 2):
       float, or the same doubles. `class_unit` is that power; the mean is over it. */
    const double *class_weight;
    const void *class_weight_real;
    double class_unit, class_weight_mean;
    int64_t has_ignore, ignore_index;
    double scale, smoothing, temperature, softcap, z_loss, gamma, slack, floor;
    /* Rows that go together (Op SIGMOID): how many there are, and whether out_rows has their sums. */
    int64_t n_points, summed;
    /* Every row by the slow lane: an option beyond the range of the logits' precision. */
    int64_t all_slow;
    /* The map may go past the caches: it is large, apart from the logits, and nobody waits for it. */
    int64_t streams;
    /* Set by a walk that met a probability it refuses; that found no memory for itself. */
    int64_t refused, no_memory;
    double hard_weight;
    void *out_rows;
    int64_t out_rows_is_double;
    /* Another call of the same rows and sums, which has a head and a map of its own: the Hessian's; or
       NULL. Its output is not the logits' memory. */
    const struct sx_call *second;
} sx_call;

/* Where a run over consecutive rows stands. */
typedef struct {
    int64_t index[SX_MAX_AXES];
    char *logits, *out_map, *soft, *targets, *sample_weight, *upstream, *pos_weight;
} sx_cursor;

static inline void sx_cursor_move(sx_cursor *c, const sx_call *call, int64_t axis, int64_t steps)
{
    c->logits += steps * call->logits.rows.strides[axis];
    c->out_map += steps * call->out_map.rows.strides[axis];
    c->soft += steps * call->soft.rows.strides[axis];
    c->targets += steps * call->targets.strides[axis];
    c->sample_weight += steps * call->sample_weight.strides[axis];
    c->upstream += steps * call->upstream.strides[axis];
    c->pos_weight += steps * call->pos_weight.strides[axis];
}

static inline void sx_cursor_start(sx_cursor *c, const sx_call *call, int64_t row)
{
    int64_t axis;
    c->logits = call->logits.rows.data;
    c->out_map = call->out_map.rows.data;
    c->soft = call->soft.rows.data;
    c->targets = call->targets.data;
    c->sample_weight = call->sample_weight.data;
    c->upstream = call->upstream.data;
    c->pos_weight = call->pos_weight.data;
    for (axis = call->n_axes - 1; axis >= 0; axis--) {
        c->index[axis] = row % call->shape[axis];
        row /= call->shape[axis];
        sx_cursor_move(c, call, axis, c->index[axis]);
    }
}

/* By rows that the last axis still has. */
static inline void sx_cursor_skip(sx_cursor *c, const sx_call *call, int64_t rows)
{
    int64_t axis;
    for (axis = call->n_axes - 1; axis >= 0; axis--) {
        sx_cursor_move(c, call, axis, rows);
        c->index[axis] += rows;
        if (c->index[axis] < call->shape[axis] || axis == 0)
            return;
        sx_cursor_move(c, call, axis, -c->index[axis]);
        c->index[axis] = 0;
        rows = 1;
    }
}

static inline void sx_cursor_next(sx_cursor *c, const sx_call *call)
{
    sx_cursor_skip(c, call, 1);
}

/* How many rows follow at the last axis's strides. */
static inline int64_t sx_cursor_run(const sx_cursor *c, const sx_call *call)
{
    return call->shape[call->n_axes - 1] - c->index[call->n_axes - 1];
}

/* ---- loads and stores of one element, whatever its alignment and byte order ------------------ */

static inline uint64_t sx_load_bits(const char *p, int64_t type)
{
    unsigned char b[8];
    uint64_t u = 0;
    int64_t size = type & SX_TYPE_SIZE, i;
    memcpy(b, p, (size_t)size);
    for (i = 0; i < size; i++) {
        int64_t at = type & SX_TYPE_SWAPPED ? size - 1 - i : i;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        at = size - 1 - at;
#endif
        u |= (uint64_t)b[at] << (8 * i);
    }
    return u;
}

/* An integer of any width and byte order; a uint64 from 2^63 on comes out negative. */
static inline int64_t sx_load_integer(const char *p, int64_t type)
{
    uint64_t u;
    int64_t spare;
    if (type == 8) {
        memcpy(&u, p, 8);
        return (int64_t)u;
    }
    u = sx_load_bits(p, type);
    if (type & SX_TYPE_UNSIGNED)
        return (int64_t)u;
    spare = 64 - 8 * (type & SX_TYPE_SIZE);
    return (int64_t)(u << spare) >> spare;
}

static inline double sx_load_long_double(const char *p, int64_t type)
{
    unsigned char b[sizeof(long double)];
    size_t i;
    long double x = 0.0L, size;
    for (i = 0; i < sizeof b; i++)
        b[i] = (unsigned char)p[type & SX_TYPE_SWAPPED ? sizeof b - 1 - i : i];
    memcpy(&x, b, sizeof b);
    /* What float64 cannot hold stays finite, and of its sign. */
    size = x < 0.0L ? -x : x;
    if (size > 1.7976931348623157e308L && size <= LDBL_MAX)
        x = x < 0.0L ? -1.7976931348623157e308L : 1.7976931348623157e308L;
    if (size > 0.0L && size < 4.9406564584124654e-324L)
        x = x < 0.0L ? -4.9406564584124654e-324L : 4.9406564584124654e-324L;
    return (double)x;
}

static inline double sx_load_real(const char *p, int64_t type)
{
    if (type == (SX_TYPE_FLOAT | 8)) {
        double x;
        memcpy(&x, p, 8);
        return x;
    }
    if (type == (SX_TYPE_FLOAT | 4)) {
        float x;
        memcpy(&x, p, 4);
        return (double)x;
    }
    if (type & SX_TYPE_FLOAT) {
        uint64_t u;
        if ((type & SX_TYPE_SIZE) > 8)
            return sx_load_long_double(p, type);
        u = sx_load_bits(p, type);
        if ((type & SX_TYPE_SIZE) == 2)
            return (double)(type & SX_TYPE_BRAIN ? sx_f32_of_bf16((uint16_t)u)
                                                 : sx_f32_of_f16((uint16_t)u));
        return (type & SX_TYPE_SIZE) == 8 ? sx_f64_of_bits(u)
                                          : (double)sx_f32_of_bits((uint32_t)u);
    }
    if ((type & SX_TYPE_UNSIGNED) && (type & SX_TYPE_SIZE) == 8)
        return (double)sx_load_bits(p, type);
    return (double)sx_load_integer(p, type);
}

static inline void sx_swap_bytes(char *p, int64_t size)
{
    int64_t i;
    for (i = 0; i < size / 2; i++) {
        char c = p[i];
        p[i] = p[size - 1 - i];
        p[size - 1 - i] = c;
    }
}

static inline void sx_store_real(char *p, int64_t type, double value)
{
    char bytes[SX_TYPE_SIZE + 1];    /* 8 are used; a compiler sees only that size has five bits */
    int64_t size = type & SX_TYPE_SIZE;
    float narrow = (float)value;
    uint16_t half;
    if (size == 8) {
        memcpy(bytes, &value, 8);
    } else if (size == 4) {
        memcpy(bytes, &narrow, 4);
    } else {
        half = type & SX_TYPE_BRAIN ? sx_bf16_of_f32(narrow) : sx_f16_of_f32(narrow);
        memcpy(bytes, &half, 2);
    }
    if (type & SX_TYPE_SWAPPED)
        sx_swap_bytes(bytes, size);
    memcpy(p, bytes, (size_t)size);
}

/* ---- what a probability target may be --------------------------------------------------------- */

/* By the bits, for subnormals count: as numbers they are zero inside a walk. */
static inline int sx_is_positive_f32(float t) { return sx_bits_of_f32(t) - 1u < 0x7f7fffffu; }
static inline int sx_is_positive_f64(double t)
{
    return sx_bits_of_f64(t) - 1u < 0x7fefffffffffffffu;
}

static inline int sx_is_refused_f32(float t)
{
    uint32_t u = sx_bits_of_f32(t);
    return u >= 0x7f800000u && u != 0x80000000u;
}

static inline int sx_is_refused_f64(double t)
{
    uint64_t u = sx_bits_of_f64(t);
    return u >= 0x7ff0000000000000u && u != 0x8000000000000000u;
}

/* A wider probability for a walk in float: what is none stays none, what is positive stays so, and
   what float cannot hold is too large for any but the slow lane, which reads it as it is. */
static inline float sx_probability_f32(double t)
{
    if (t < 0.0)
        return -1.0f;
    if (t > 0.0 && t < 0x1p-149)
        return 0x1p-149f;
    if (t > 0x1.fffffep127 && t < INFINITY)
        return 0x1p127f;
    return (float)t;
}

/* Whether a target is outside [0, 1]. */
static inline int sx_is_no_share(double t) { return !(t >= 0.0 && t <= 1.0); }

/* Several threads may say so at once. */
static inline void sx_note(const int64_t *flag)
{
#if defined(__GNUC__)
    __atomic_store_n((int64_t *)flag, 1, __ATOMIC_RELAXED);
#else
    *(volatile int64_t *)flag = 1;
#endif
}

static inline void sx_refuse(const sx_call *call) { sx_note(&call->refused); }
static inline void sx_lack_memory(const sx_call *call) { sx_note(&call->no_memory); }

/* ---- room for a walk ------------------------------------------------------------------------- */

#if defined(_MSC_VER)
#define SX_THREAD_LOCAL __declspec(thread) SX_ALIGNED
#else
#define SX_THREAD_LOCAL _Thread_local SX_ALIGNED
#endif

/* What a struct begins with that shall begin at a line. */
typedef SX_ALIGNED int64_t sx_line;

/* Once a thread, and not on its stack, which its owner may have made small. */

#define SX_ROOM 324096 /* two tiles of 130 KiB, seven blocks of 8, a line more (_walk.pxi, ROOM_...) */

/* Nothing in it outlives an sx_tick: a signal handler may run another walk in this thread there. */
static inline char *sx_room(void)
{
    static SX_THREAD_LOCAL char room[SX_ROOM];
    return room;
}

/* A row of 155,648 float32, or half of it twice: as long as vocabularies are, and near what memory a
   thread may have. Farther caches than an L2 still give e sooner than exp does (EPYC, Zen 3, one thread,
   with and without: 256 x 128,256 1.32 and in place 1.10, 64 x 151,936 1.35 and 1.08). */
#define SX_KEPT 622592

/* Bytes of this processor's second cache; where the C library does not say, of a small one. */
static inline int64_t sx_second_cache(void)
{
    long size = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return size > 0 ? size : 262144;
}

/* What a walk keeps between its passes, sx_ticks included: one walk of a thread has it at a time,
   another (a signal handler's) gets NULL, and does without. */
static SX_THREAD_LOCAL int sx_kept_is_taken;

static inline char *sx_kept_take(void)
{
    static SX_THREAD_LOCAL char kept[SX_KEPT];
    if (sx_kept_is_taken)
        return NULL;
    sx_kept_is_taken = 1;
    return kept;
}

static inline void sx_kept_release(const char *kept)
{
    if (kept != NULL)
        sx_kept_is_taken = 0;
}

#endif
