/* The arguments of a compiled walk, filled by _bind.pyx from a `Call` (backends/_contract.py). */
#ifndef SOFTXENT_CALL_H
#define SOFTXENT_CALL_H

#include <stdint.h>
#include <string.h>

#include "elementary.h"

/* NumPy's limit; rows' axes are merged where strides allow, so one is the rule. */
#define SX_MAX_AXES 64

/* An element type, as a number: size in bytes, and what else a load must know. */
#define SX_TYPE_SIZE 15
#define SX_TYPE_UNSIGNED 16
#define SX_TYPE_FLOAT 32
#define SX_TYPE_SWAPPED 64

/* An array with one element a row: element (i0, i1, ...) at data + i0 stride[0] + ...; data may be
   NULL, for an array that was not given. */
typedef struct {
    char *data;
    int64_t type;
    int64_t strides[SX_MAX_AXES];
} sx_rows;

/* An array of the logits' shape. `direct`: class stride is the element's size, elements aligned and
   in native byte order, so that a kernel may use it as it is. */
typedef struct {
    sx_rows rows;
    int64_t class_stride;
    int64_t direct;
} sx_matrix;

typedef struct {
    int64_t op;
    int64_t n_rows, n_classes;
    int64_t n_axes;
    int64_t shape[SX_MAX_AXES];
    sx_matrix logits, out_map;
    sx_rows targets, sample_weight, upstream;
    const double *class_weight;
    int64_t has_ignore, ignore_index;
    double scale;
    void *out_rows;
    int64_t out_rows_is_double;
} sx_call;

/* Where a run over consecutive rows stands. */
typedef struct {
    int64_t index[SX_MAX_AXES];
    char *logits, *out_map, *targets, *sample_weight, *upstream;
} sx_cursor;

static inline void sx_cursor_move(sx_cursor *c, const sx_call *call, int64_t axis, int64_t steps)
{
    c->logits += steps * call->logits.rows.strides[axis];
    c->out_map += steps * call->out_map.rows.strides[axis];
    c->targets += steps * call->targets.strides[axis];
    c->sample_weight += steps * call->sample_weight.strides[axis];
    c->upstream += steps * call->upstream.strides[axis];
}

static inline void sx_cursor_start(sx_cursor *c, const sx_call *call, int64_t row)
{
    int64_t axis;
    c->logits = call->logits.rows.data;
    c->out_map = call->out_map.rows.data;
    c->targets = call->targets.data;
    c->sample_weight = call->sample_weight.data;
    c->upstream = call->upstream.data;
    for (axis = call->n_axes - 1; axis >= 0; axis--) {
        c->index[axis] = row % call->shape[axis];
        row /= call->shape[axis];
        sx_cursor_move(c, call, axis, c->index[axis]);
    }
}

static inline void sx_cursor_next(sx_cursor *c, const sx_call *call)
{
    int64_t axis;
    for (axis = call->n_axes - 1; axis >= 0; axis--) {
        sx_cursor_move(c, call, axis, 1);
        if (++c->index[axis] < call->shape[axis] || axis == 0)
            return;
        sx_cursor_move(c, call, axis, -c->index[axis]);
        c->index[axis] = 0;
    }
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
        uint64_t u = sx_load_bits(p, type);
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
    char bytes[8];
    int64_t size = type & SX_TYPE_SIZE;
    if (size == 8) {
        memcpy(bytes, &value, 8);
    } else {
        float narrow = (float)value;
        memcpy(bytes, &narrow, 4);
    }
    if (type & SX_TYPE_SWAPPED)
        sx_swap_bytes(bytes, size);
    memcpy(p, bytes, (size_t)size);
}

#endif
