/* exp of a run of logits, and of a block with its sum and the next block's largest, by vectors.

   A compiler makes one vector's exp after another. The next ones begin before the first is done as far
   as the processor sees ahead, which is not far where two threads share a core: four side by side, step
   by step, take (EPYC, Zen 3, cycles a vector of eight floats from the first cache) 5.6 where one after
   another takes 6.2, and 6.2 instead of 8.5 while the core's other thread is at work. The operations are
   sx_exp's, so the bits are. */
#ifndef SOFTXENT_EXP_BLOCK_H
#define SOFTXENT_EXP_BLOCK_H

#include "lanes.h"

/* A map that is made beside something else: `length` kept e times a power of two, times a, + 0, into
   `to`; past the caches if `streams`, and `to` begins at a line then. What is made is taken off. */
typedef struct {
    const void *e;
    void *to;
    double shift, a;
    int64_t length;
    int streams;
} sx_beside;

/* How far ahead of it, in bytes, kept e and the output are fetched from an L2. */
#define SX_BESIDE_AHEAD 1024

/* The same for logits whose exp is taken again, of a row that an L2 does not hold. */
#define SX_AGAIN_AHEAD 4096

#if SX_HAS_VECTORS
#define SX_HAS_EXP_BLOCK 1

#define SX_EACH for (i = 0; i < 4; i++)

/* Terms of a vector's elements, widened and added to their sums. */
SX_INLINE void sx_add_terms_f32(sx_vector_f32 terms, sx_vector_f64 *sums)
{
    sums[0] = SX_VECTOR_F64(add)(sums[0], sx_lower_half(terms));
    sums[1] = SX_VECTOR_F64(add)(sums[1], sx_upper_half(terms));
}

SX_INLINE void sx_add_terms_f64(sx_vector_f64 terms, sx_vector_f64 *sums)
{
    sums[0] = SX_VECTOR_F64(add)(sums[0], terms);
}

/* The same without loss: up to 64 floats add up in double, doubles are compensated as by sx_kahan. */
SX_INLINE void sx_add_exact_f32(sx_vector_f32 terms, sx_vector_f64 *sums, sx_vector_f64 *unused)
{
    (void)unused;
    sx_add_terms_f32(terms, sums);
}

SX_INLINE void sx_add_exact_f64(sx_vector_f64 terms, sx_vector_f64 *sum, sx_vector_f64 *carry)
{
    sx_vector_f64 y = SX_VECTOR_F64(add)(terms, *carry), total = SX_VECTOR_F64(add)(*sum, y);
    *carry = SX_VECTOR_F64(sub)(y, SX_VECTOR_F64(sub)(total, *sum));
    *sum = total;
}

/* Lanes one vector after another, a power of two of them: as sx_fold_lanes. */
SX_INLINE double sx_fold_vectors(sx_vector_f64 *v, int count)
{
    int width, i;
    for (width = count / 2; width > 0; width /= 2)
        for (i = 0; i < width; i++)
            v[i] = SX_VECTOR_F64(add)(v[i], v[i + width]);
    return sx_fold_vector(v[0]);
}

#define SX_REAL float
#define SX_VECTOR sx_vector_f32
#define SX_MASK sx_mask_f32
#define SX_WIDTH SX_WIDTH_F32
#define SX_DO SX_VECTOR_F32
#define SX_OF(name) name##_f32
#define SX_LOG2_OF_E ((float)SX_LOG2E)
#define SX_LN2_PART -SX_LN2_24_F32
#define SX_LN2_PART_REST -SX_LN2_24_REST_F32
#define SX_POLYNOMIAL(first, then) \
    first(SX_Q4_F32) then(SX_Q3_F32) then(SX_Q2_F32) then(SX_Q1_F32) then(SX_Q0_F32)
#include "exp_block_of.h"

#define SX_REAL double
#define SX_VECTOR sx_vector_f64
#define SX_MASK sx_mask_f64
#define SX_WIDTH SX_WIDTH_F64
#define SX_DO SX_VECTOR_F64
#define SX_OF(name) name##_f64
#define SX_LOG2_OF_E SX_LOG2E
#define SX_LN2_PART -SX_LN2
#define SX_LN2_PART_REST -SX_LN2_REST
#define SX_POLYNOMIAL(first, then) \
    first(SX_Q9_F64) then(SX_Q8_F64) then(SX_Q7_F64) then(SX_Q6_F64) then(SX_Q5_F64) \
    then(SX_Q4_F64) then(SX_Q3_F64) then(SX_Q2_F64) then(SX_Q1_F64) then(SX_Q0_F64)
#include "exp_block_of.h"

#undef SX_EACH

#else
#define SX_HAS_EXP_BLOCK 0
#define sx_exp_many_f32(x, length, k, low, e) (void)0
#define sx_exp_many_f64(x, length, k, low, e) (void)0
#define sx_exp_times_many_f32(x, length, k, low, a, to) 0
#define sx_exp_times_many_f64(x, length, k, low, a, to) 0
#define sx_exp_times_classes_f32(at, stride, count, length, k, low, a, to, to_stride, ahead, to_ahead) \
    (void)0
#define sx_exp_times_classes_f64(at, stride, count, length, k, low, a, to, to_stride, ahead, to_ahead) \
    (void)0
#define sx_top_columns_f32(x, classes, tops, places) (void)0
#define sx_top_columns_f64(x, classes, tops, places) (void)0
#define sx_exp_and_sum_columns_f32(x, classes, k, low, places, targets, e, rest, carry, e_places) (void)0
#define sx_exp_and_sum_columns_f64(x, classes, k, low, places, targets, e, rest, carry, e_places) (void)0
#define sx_stream_line_f32(e, length, shift, next_shift, a, to) (void)0
#define sx_stream_line_f64(e, length, shift, next_shift, a, to) (void)0
#define sx_exp_block_f32(x, length, place_1, place_2, k, low, next, next_length, ahead, beside, e, top, \
                         start) 0
#define sx_exp_block_f64(x, length, place_1, place_2, k, low, next, next_length, ahead, beside, e, top, \
                         start) 0
#endif

#endif
