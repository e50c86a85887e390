/* What compilers do not make of a loop: masks, prefetches, stores past the caches. Every function has
   a plain form, with the same results. */
#ifndef SOFTXENT_LANES_H
#define SOFTXENT_LANES_H

#include <stdint.h>
#include <string.h>

#include "vectors.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define SX_LINE 64

/* Asks for `bytes` from p on; p may be anything, nothing is read. */
SX_INLINE void sx_prefetch(const char *p, int64_t bytes)
{
#if defined(__GNUC__)
    int64_t i;
    for (i = 0; i < bytes; i += SX_LINE)
        __builtin_prefetch(p + i, 0, 3);
#else
    (void)p, (void)bytes;
#endif
}

/* The same into the second cache alone: a lot of it would push out what is at work in the first. */
SX_INLINE void sx_prefetch_far(const char *p, int64_t bytes)
{
#if defined(__GNUC__)
    int64_t i;
    for (i = 0; i < bytes; i += SX_LINE)
        __builtin_prefetch(p + i, 0, 2);
#else
    (void)p, (void)bytes;
#endif
}

/* ---- 64 lanes ------------------------------------------------------------------------------------

   Element k of a block is lane k mod 64's. Lanes are folded 32, 16, 8, 4, 2, 1 apart. */

#define SX_LANES 64

#if defined(__AVX512F__)
/* The first n of 64 lanes, 0 < n < 64. */
SX_INLINE uint64_t sx_first_lanes(int64_t n) { return ((uint64_t)1 << n) - 1; }
#endif

/* The largest of a block; -inf if there is none. */
SX_INLINE float sx_top_f32(const float *x, int64_t length)
{
#if defined(__AVX512F__)
    __m512 low = _mm512_set1_ps(-INFINITY), a = low, b = low, c = low, d = low;
    int64_t i = 0;
    for (; i + SX_LANES <= length; i += SX_LANES) {
        a = _mm512_max_ps(_mm512_loadu_ps(x + i), a);
        b = _mm512_max_ps(_mm512_loadu_ps(x + i + 16), b);
        c = _mm512_max_ps(_mm512_loadu_ps(x + i + 32), c);
        d = _mm512_max_ps(_mm512_loadu_ps(x + i + 48), d);
    }
    if (i < length) {
        uint64_t m = sx_first_lanes(length - i);
        a = _mm512_max_ps(_mm512_mask_loadu_ps(low, (__mmask16)m, x + i), a);
        b = _mm512_max_ps(_mm512_mask_loadu_ps(low, (__mmask16)(m >> 16), x + i + 16), b);
        c = _mm512_max_ps(_mm512_mask_loadu_ps(low, (__mmask16)(m >> 32), x + i + 32), c);
        d = _mm512_max_ps(_mm512_mask_loadu_ps(low, (__mmask16)(m >> 48), x + i + 48), d);
    }
    return sx_top_of_vector_f32(_mm512_max_ps(_mm512_max_ps(d, b), _mm512_max_ps(c, a)));
#else
    float lanes[SX_LANES];
    int64_t i = 0, j, width;
    for (j = 0; j < SX_LANES; j++)
        lanes[j] = -INFINITY;
    for (; i + 2 * SX_LANES <= length; i += 2 * SX_LANES)
        for (j = 0; j < SX_LANES; j++) {
            float of_two = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
            lanes[j] = x[i + SX_LANES + j] > of_two ? x[i + SX_LANES + j] : of_two;
        }
    for (; i < length; i += SX_LANES)
        for (j = 0; j < (length - i < SX_LANES ? length - i : SX_LANES); j++)
            lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (width = SX_LANES / 2; width > 0; width /= 2)
        for (j = 0; j < width; j++)
            lanes[j] = lanes[j + width] > lanes[j] ? lanes[j + width] : lanes[j];
    return lanes[0];
#endif
}

SX_INLINE double sx_top_f64(const double *x, int64_t length)
{
#if defined(__AVX512F__)
    __m512d low = _mm512_set1_pd(-INFINITY), lanes[8];
    int64_t i = 0;
    int v;
    for (v = 0; v < 8; v++)
        lanes[v] = low;
    for (; i + 64 <= length; i += 64)
        for (v = 0; v < 8; v++)
            lanes[v] = _mm512_max_pd(_mm512_loadu_pd(x + i + 8 * v), lanes[v]);
    if (i < length)
        for (v = 0; v < 8; v++)
            lanes[v] = _mm512_max_pd(
                _mm512_mask_loadu_pd(low, (__mmask8)(sx_first_lanes(length - i) >> 8 * v),
                                     x + i + 8 * v), lanes[v]);
    for (v = 0; v < 4; v++)
        lanes[v] = _mm512_max_pd(lanes[v + 4], lanes[v]);
    for (v = 0; v < 2; v++)
        lanes[v] = _mm512_max_pd(lanes[v + 2], lanes[v]);
    return sx_top_of_vector_f64(_mm512_max_pd(lanes[1], lanes[0]));
#else
    double lanes[SX_LANES];
    int64_t i = 0, j, width;
    for (j = 0; j < SX_LANES; j++)
        lanes[j] = -INFINITY;
    for (; i + SX_LANES <= length; i += SX_LANES)
        for (j = 0; j < SX_LANES; j++)
            lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (j = 0; j < length - i; j++)
        lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    for (width = SX_LANES / 2; width > 0; width /= 2)
        for (j = 0; j < width; j++)
            lanes[j] = lanes[j + width] > lanes[j] ? lanes[j + width] : lanes[j];
    return lanes[0];
#endif
}

/* Up to four terms of a lane, whole lanes of them: added in e's precision, then widened and added to
   the lane's sum. */
SX_INLINE void sx_add_stripe_f32(const float *e, int64_t length, double *lanes)
{
    float terms[SX_LANES];
    int64_t i, j;
    if (length == 4 * SX_LANES) {
        for (j = 0; j < SX_LANES; j++)
            lanes[j] += (double)(((e[j] + e[SX_LANES + j]) + e[2 * SX_LANES + j])
                                 + e[3 * SX_LANES + j]);
        return;
    }
    for (j = 0; j < SX_LANES; j++)
        terms[j] = e[j];
    for (i = SX_LANES; i < length; i += SX_LANES)
        for (j = 0; j < SX_LANES; j++)
            terms[j] += e[i + j];
    for (j = 0; j < SX_LANES; j++)
        lanes[j] += (double)terms[j];
}

SX_INLINE void sx_add_stripe_f64(const double *e, int64_t length, double *lanes)
{
    double terms[SX_LANES];
    int64_t i, j;
    if (length == 4 * SX_LANES) {
        for (j = 0; j < SX_LANES; j++)
            lanes[j] += ((e[j] + e[SX_LANES + j]) + e[2 * SX_LANES + j]) + e[3 * SX_LANES + j];
        return;
    }
    for (j = 0; j < SX_LANES; j++)
        terms[j] = e[j];
    for (i = SX_LANES; i < length; i += SX_LANES)
        for (j = 0; j < SX_LANES; j++)
            terms[j] += e[i + j];
    for (j = 0; j < SX_LANES; j++)
        lanes[j] += terms[j];
}

/* The same of all but one or two of them, at places within the stripe (-1: none). */
SX_INLINE void sx_add_stripe_but_f32(float *e, int64_t length, int64_t place_1, int64_t place_2,
                                     double *lanes)
{
#if defined(__AVX512F__)
    /* By masks: a load of what was just stored there by halves would wait. */
    uint64_t kept[4] = {~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0};
    int64_t i, v, parts = length / SX_LANES;
    if (place_1 >= 0)
        kept[place_1 / SX_LANES] &= ~((uint64_t)1 << place_1 % SX_LANES);
    if (place_2 >= 0)
        kept[place_2 / SX_LANES] &= ~((uint64_t)1 << place_2 % SX_LANES);
    for (v = 0; v < SX_LANES; v += 16) {
        __m512 terms = _mm512_maskz_loadu_ps((__mmask16)(kept[0] >> v), e + v);
        for (i = 1; i < parts; i++)
            terms = _mm512_add_ps(terms, _mm512_maskz_loadu_ps((__mmask16)(kept[i] >> v),
                                                               e + i * SX_LANES + v));
        _mm512_storeu_pd(lanes + v, _mm512_add_pd(
            _mm512_loadu_pd(lanes + v), _mm512_cvtps_pd(_mm512_castps512_ps256(terms))));
        _mm512_storeu_pd(lanes + v + 8, _mm512_add_pd(
            _mm512_loadu_pd(lanes + v + 8), _mm512_cvtps_pd(_mm512_extractf32x8_ps(terms, 1))));
    }
#else
    float e_1 = 0.0f, e_2 = 0.0f;
    if (place_1 >= 0)
        e_1 = e[place_1], e[place_1] = 0.0f;
    if (place_2 >= 0)
        e_2 = e[place_2], e[place_2] = 0.0f;
    sx_add_stripe_f32(e, length, lanes);
    if (place_2 >= 0)
        e[place_2] = e_2;
    if (place_1 >= 0)
        e[place_1] = e_1;
#endif
}

SX_INLINE void sx_add_stripe_but_f64(double *e, int64_t length, int64_t place_1, int64_t place_2,
                                     double *lanes)
{
#if defined(__AVX512F__)
    uint64_t kept[4] = {~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0};
    int64_t i, v, parts = length / SX_LANES;
    if (place_1 >= 0)
        kept[place_1 / SX_LANES] &= ~((uint64_t)1 << place_1 % SX_LANES);
    if (place_2 >= 0)
        kept[place_2 / SX_LANES] &= ~((uint64_t)1 << place_2 % SX_LANES);
    for (v = 0; v < SX_LANES; v += 8) {
        __m512d terms = _mm512_maskz_loadu_pd((__mmask8)(kept[0] >> v), e + v);
        for (i = 1; i < parts; i++)
            terms = _mm512_add_pd(terms, _mm512_maskz_loadu_pd((__mmask8)(kept[i] >> v),
                                                               e + i * SX_LANES + v));
        _mm512_storeu_pd(lanes + v, _mm512_add_pd(_mm512_loadu_pd(lanes + v), terms));
    }
#else
    double e_1 = 0.0, e_2 = 0.0;
    if (place_1 >= 0)
        e_1 = e[place_1], e[place_1] = 0.0;
    if (place_2 >= 0)
        e_2 = e[place_2], e[place_2] = 0.0;
    sx_add_stripe_f64(e, length, lanes);
    if (place_2 >= 0)
        e[place_2] = e_2;
    if (place_1 >= 0)
        e[place_1] = e_1;
#endif
}

/* Lengths written out, for loops of a known length become vectors. */
SX_INLINE double sx_fold_lanes(double *lanes)
{
    int j;
    for (j = 0; j < 32; j++)
        lanes[j] += lanes[j + 32];
    for (j = 0; j < 16; j++)
        lanes[j] += lanes[j + 16];
    for (j = 0; j < 8; j++)
        lanes[j] += lanes[j + 8];
    for (j = 0; j < 4; j++)
        lanes[j] += lanes[j + 4];
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

/* What is left of a block, fewer than 64 elements, and -inf behind it. */
SX_INLINE void sx_copy_tail_f32(const float *x, int64_t length, float *to)
{
    int64_t i;
#if defined(__AVX512F__)
    uint64_t m = sx_first_lanes(length);
    for (i = 0; i < SX_LANES; i += 16)
        _mm512_storeu_ps(to + i, _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), (__mmask16)(m >> i),
                                                      x + i));
#else
    for (i = 0; i < SX_LANES; i++)
        to[i] = -INFINITY;
    for (i = 0; i < length; i++)
        to[i] = x[i];
#endif
}

SX_INLINE void sx_copy_tail_f64(const double *x, int64_t length, double *to)
{
    int64_t i;
#if defined(__AVX512F__)
    uint64_t m = sx_first_lanes(length);
    for (i = 0; i < SX_LANES; i += 8)
        _mm512_storeu_pd(to + i, _mm512_mask_loadu_pd(_mm512_set1_pd(-INFINITY), (__mmask8)(m >> i),
                                                      x + i));
#else
    for (i = 0; i < SX_LANES; i++)
        to[i] = -INFINITY;
    for (i = 0; i < length; i++)
        to[i] = x[i];
#endif
}

/* ---- the first place of a value -------------------------------------------------------------- */

/* 0 if there is none. */
SX_INLINE int64_t sx_first_place_f32(const float *x, int64_t length, float value)
{
    int64_t i = 0;
#if defined(__AVX512F__)
    __m512 v = _mm512_set1_ps(value);
    for (; i + 64 <= length; i += 64) {
        __mmask16 a = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), v, _CMP_EQ_OQ);
        __mmask16 b = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 16), v, _CMP_EQ_OQ);
        __mmask16 c = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 32), v, _CMP_EQ_OQ);
        __mmask16 d = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 48), v, _CMP_EQ_OQ);
        uint64_t all = (uint64_t)a | (uint64_t)b << 16 | (uint64_t)c << 32 | (uint64_t)d << 48;
        if (all)
            return i + __builtin_ctzll(all);
    }
    for (; i < length; i += 16) {
        __mmask16 few = (__mmask16)sx_first_lanes(length - i);
        few = _mm512_mask_cmp_ps_mask(few, _mm512_maskz_loadu_ps(few, x + i), v, _CMP_EQ_OQ);
        if (few)
            return i + __builtin_ctz(few);
    }
    return 0;
#elif defined(__AVX2__)
    __m256 v = _mm256_set1_ps(value);
    for (; i + 32 <= length; i += 32) {
        __m256 a = _mm256_cmp_ps(_mm256_loadu_ps(x + i), v, _CMP_EQ_OQ);
        __m256 b = _mm256_cmp_ps(_mm256_loadu_ps(x + i + 8), v, _CMP_EQ_OQ);
        __m256 c = _mm256_cmp_ps(_mm256_loadu_ps(x + i + 16), v, _CMP_EQ_OQ);
        __m256 d = _mm256_cmp_ps(_mm256_loadu_ps(x + i + 24), v, _CMP_EQ_OQ);
        uint32_t all = (uint32_t)_mm256_movemask_ps(a) | (uint32_t)_mm256_movemask_ps(b) << 8
                       | (uint32_t)_mm256_movemask_ps(c) << 16
                       | (uint32_t)_mm256_movemask_ps(d) << 24;
        if (all)
            return i + __builtin_ctz(all);
    }
    for (; i < length; i += 8) {
        __m256 few = sx_load_first_f32(x + i, length - i, _mm256_set1_ps(NAN));
        int found = _mm256_movemask_ps(_mm256_cmp_ps(few, v, _CMP_EQ_OQ));
        if (found)
            return i + __builtin_ctz((unsigned)found);
    }
    return 0;
#else
    for (; i < length; i++)
        if (x[i] == value)
            return i;
    return 0;
#endif
}

SX_INLINE int64_t sx_first_place_f64(const double *x, int64_t length, double value)
{
    int64_t i = 0;
#if defined(__AVX512F__)
    __m512d v = _mm512_set1_pd(value);
    for (; i + 32 <= length; i += 32) {
        __mmask8 a = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + i), v, _CMP_EQ_OQ);
        __mmask8 b = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + i + 8), v, _CMP_EQ_OQ);
        __mmask8 c = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + i + 16), v, _CMP_EQ_OQ);
        __mmask8 d = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + i + 24), v, _CMP_EQ_OQ);
        uint32_t all = (uint32_t)a | (uint32_t)b << 8 | (uint32_t)c << 16 | (uint32_t)d << 24;
        if (all)
            return i + __builtin_ctz(all);
    }
    for (; i < length; i += 8) {
        __mmask8 few = (__mmask8)sx_first_lanes(length - i);
        few = _mm512_mask_cmp_pd_mask(few, _mm512_maskz_loadu_pd(few, x + i), v, _CMP_EQ_OQ);
        if (few)
            return i + __builtin_ctz(few);
    }
    return 0;
#elif defined(__AVX2__)
    __m256d v = _mm256_set1_pd(value);
    for (; i + 16 <= length; i += 16) {
        __m256d a = _mm256_cmp_pd(_mm256_loadu_pd(x + i), v, _CMP_EQ_OQ);
        __m256d b = _mm256_cmp_pd(_mm256_loadu_pd(x + i + 4), v, _CMP_EQ_OQ);
        __m256d c = _mm256_cmp_pd(_mm256_loadu_pd(x + i + 8), v, _CMP_EQ_OQ);
        __m256d d = _mm256_cmp_pd(_mm256_loadu_pd(x + i + 12), v, _CMP_EQ_OQ);
        uint32_t all = (uint32_t)_mm256_movemask_pd(a) | (uint32_t)_mm256_movemask_pd(b) << 4
                       | (uint32_t)_mm256_movemask_pd(c) << 8
                       | (uint32_t)_mm256_movemask_pd(d) << 12;
        if (all)
            return i + __builtin_ctz(all);
    }
    for (; i < length; i += 4) {
        __m256d few = sx_load_first_f64(x + i, length - i, _mm256_set1_pd(NAN));
        int found = _mm256_movemask_pd(_mm256_cmp_pd(few, v, _CMP_EQ_OQ));
        if (found)
            return i + __builtin_ctz((unsigned)found);
    }
    return 0;
#else
    for (; i < length; i++)
        if (x[i] == value)
            return i;
    return 0;
#endif
}

/* ---- rows side by side ------------------------------------------------------------------------ */

/* Packed rows, class by class and back: class k of row j of `rows` (C classes each, one row after
   another) from and to `columns` at k pitch + j. In squares of R rows and R classes, each a transpose in
   registers: eight by eight of float while there are that many classes, four by four for what is left
   of them. */
#if defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 12)

typedef float sx_f32x4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float sx_f32x8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef double sx_f64x4 __attribute__((vector_size(32), aligned(8), may_alias));

SX_INLINE void sx_transpose_f64x4(sx_f64x4 *v)
{
    sx_f64x4 a = __builtin_shufflevector(v[0], v[1], 0, 4, 2, 6);
    sx_f64x4 b = __builtin_shufflevector(v[0], v[1], 1, 5, 3, 7);
    sx_f64x4 c = __builtin_shufflevector(v[2], v[3], 0, 4, 2, 6);
    sx_f64x4 d = __builtin_shufflevector(v[2], v[3], 1, 5, 3, 7);
    v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), v[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    v[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5), v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

/* Pairs within 128 bits, fours within 128 bits, then the halves: what processors with 256 bits do in
   an instruction each. */
SX_INLINE void sx_transpose_f32x8(sx_f32x8 *v)
{
    sx_f32x8 a[8], b[8];
    int i;
    for (i = 0; i < 8; i += 2) {
        a[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (i = 0; i < 8; i += 4) {
        b[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        b[i + 2] = __builtin_shufflevector(a[i + 1], a[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        b[i + 3] = __builtin_shufflevector(a[i + 1], a[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (i = 0; i < 4; i++) {
        v[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        v[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Four by four twice: the halves of v[i] are of rows (or classes) i and i + 4. */
SX_INLINE void sx_transpose_halves_f32(sx_f32x8 *v)
{
    sx_f32x8 a = __builtin_shufflevector(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13);
    sx_f32x8 b = __builtin_shufflevector(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
    sx_f32x8 c = __builtin_shufflevector(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13);
    sx_f32x8 d = __builtin_shufflevector(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
    v[0] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
    v[1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
    v[2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
    v[3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
}

/* Eight rows of two classes or more: what a square takes or gives behind its row's end is the next
   row's. `last` is the eighth, for it may be the last of all. */
SX_INLINE void sx_square_columns_f32(const float *row, const float *last, int64_t classes,
                                     int64_t pitch, float *columns)
{
    int64_t k;
    int i;
    for (k = 0; classes - k > 4; k += 8) {
        sx_f32x8 v[8];
        for (i = 0; i < 7; i++)
            v[i] = *(const sx_f32x8 *)(row + i * classes + k);
        v[7] = *(const sx_f32x8 *)(last + k);
        sx_transpose_f32x8(v);
        for (i = 0; i < 8; i++)
            *(sx_f32x8 *)(columns + (k + i) * pitch) = v[i];
    }
    if (k < classes) {
        sx_f32x8 v[4];
        for (i = 0; i < 4; i++)
            v[i] = __builtin_shufflevector(
                *(const sx_f32x4 *)(row + i * classes + k),
                *(const sx_f32x4 *)((i == 3 ? last : row + (i + 4) * classes) + k),
                0, 1, 2, 3, 4, 5, 6, 7);
        sx_transpose_halves_f32(v);
        for (i = 0; i < 4; i++)
            *(sx_f32x8 *)(columns + (k + i) * pitch) = v[i];
    }
}

/* From the last classes to the first, for what a square writes behind its row's end is the next row's,
   which comes later. */
SX_INLINE void sx_square_rows_f32(const float *columns, int64_t classes, int64_t pitch, float *row,
                                  float *last)
{
    int64_t k, left = classes % 8 > 0 && classes % 8 <= 4 ? classes % 8 : 0;
    int i;
    if (left) {
        sx_f32x8 v[4];
        k = classes - left;
        for (i = 0; i < 4; i++)
            v[i] = *(const sx_f32x8 *)(columns + (k + i) * pitch);
        sx_transpose_halves_f32(v);
        for (i = 0; i < 4; i++)
            *(sx_f32x4 *)(row + i * classes + k) = __builtin_shufflevector(v[i], v[i], 0, 1, 2, 3);
        for (i = 0; i < 3; i++)
            *(sx_f32x4 *)(row + (i + 4) * classes + k) = __builtin_shufflevector(v[i], v[i], 4, 5, 6, 7);
        *(sx_f32x4 *)(last + k) = __builtin_shufflevector(v[3], v[3], 4, 5, 6, 7);
    }
    for (k = ((classes - left + 7) & ~(int64_t)7) - 8; k >= 0; k -= 8) {
        sx_f32x8 v[8];
        for (i = 0; i < 8; i++)
            v[i] = *(const sx_f32x8 *)(columns + (k + i) * pitch);
        sx_transpose_f32x8(v);
        for (i = 0; i < 7; i++)
            *(sx_f32x8 *)(row + i * classes + k) = v[i];
        *(sx_f32x8 *)(last + k) = v[7];
    }
}

/* The same of four rows of double. */
SX_INLINE void sx_square_columns_f64(const double *row, const double *last, int64_t classes,
                                     int64_t pitch, double *columns)
{
    int64_t k;
    int i;
    for (k = 0; k < classes; k += 4) {
        sx_f64x4 v[4];
        for (i = 0; i < 3; i++)
            v[i] = *(const sx_f64x4 *)(row + i * classes + k);
        v[3] = *(const sx_f64x4 *)(last + k);
        sx_transpose_f64x4(v);
        for (i = 0; i < 4; i++)
            *(sx_f64x4 *)(columns + (k + i) * pitch) = v[i];
    }
}

SX_INLINE void sx_square_rows_f64(const double *columns, int64_t classes, int64_t pitch, double *row,
                                  double *last)
{
    int64_t k;
    int i;
    for (k = (classes - 1) & ~(int64_t)3; k >= 0; k -= 4) {
        sx_f64x4 v[4];
        for (i = 0; i < 4; i++)
            v[i] = *(const sx_f64x4 *)(columns + (k + i) * pitch);
        sx_transpose_f64x4(v);
        for (i = 0; i < 3; i++)
            *(sx_f64x4 *)(row + i * classes + k) = v[i];
        *(sx_f64x4 *)(last + k) = v[3];
    }
}

/* `count`: a multiple of eight; at most 64 classes; `columns` has room for whole squares. The last row
   goes by way of memory that has such room, too. Not inlined, for eight rows' addresses want registers
   of their own. */
#define SX_LAST_ROOM (64 + 8)

static SX_NOINLINE void sx_columns_of_rows_f32(const float *rows, int64_t count, int64_t classes,
                                               int64_t pitch, float *columns)
{
    float last[SX_LAST_ROOM];
    int64_t j;
    if (classes == 1) {
        memcpy(columns, rows, count * sizeof(float));
        return;
    }
    if (count > 0)
        memcpy(last, rows + (count - 1) * classes, classes * sizeof(float));
    for (j = 0; j < count; j += 8)
        sx_square_columns_f32(rows + j * classes, j + 8 < count ? rows + (j + 7) * classes : last,
                              classes, pitch, columns + j);
}

static SX_NOINLINE void sx_rows_of_columns_f32(const float *columns, int64_t count, int64_t classes,
                                               int64_t pitch, float *rows)
{
    float last[SX_LAST_ROOM];
    int64_t j;
    if (classes == 1) {
        memcpy(rows, columns, count * sizeof(float));
        return;
    }
    for (j = 0; j < count; j += 8)
        sx_square_rows_f32(columns + j, classes, pitch, rows + j * classes,
                           j + 8 < count ? rows + (j + 7) * classes : last);
    if (count > 0)
        memcpy(rows + (count - 1) * classes, last, classes * sizeof(float));
}

static SX_NOINLINE void sx_columns_of_rows_f64(const double *rows, int64_t count, int64_t classes,
                                               int64_t pitch, double *columns)
{
    double last[SX_LAST_ROOM];
    int64_t j;
    if (classes == 1) {
        memcpy(columns, rows, count * sizeof(double));
        return;
    }
    if (count > 0)
        memcpy(last, rows + (count - 1) * classes, classes * sizeof(double));
    for (j = 0; j < count; j += 4)
        sx_square_columns_f64(rows + j * classes, j + 4 < count ? rows + (j + 3) * classes : last,
                              classes, pitch, columns + j);
}

static SX_NOINLINE void sx_rows_of_columns_f64(const double *columns, int64_t count, int64_t classes,
                                               int64_t pitch, double *rows)
{
    double last[SX_LAST_ROOM];
    int64_t j;
    if (classes == 1) {
        memcpy(rows, columns, count * sizeof(double));
        return;
    }
    for (j = 0; j < count; j += 4)
        sx_square_rows_f64(columns + j, classes, pitch, rows + j * classes,
                           j + 4 < count ? rows + (j + 3) * classes : last);
    if (count > 0)
        memcpy(rows + (count - 1) * classes, last, classes * sizeof(double));
}

#define SX_EACH_SQUARE(n)                                                                             \
    for (j = 0; j < count; j = j + 2 * n <= count || j + n == count ? j + n : count - n)

/* Class-major logits: class k of row j at `at` + k stride bytes + j; from and to `tile`, row j's classes
   side by side, rows `pitch` apart. `count` rows, eight at least; `length` classes, of which whole
   squares are done: returns how many. Rows that are no whole square are in one with rows before them.
   What lies `ahead` bytes from there is fetched: each class is a line of its own, far from the others,
   which no processor foresees. (Fetching the next rows, EPYC, v4, one thread: 20,000 x 128 with gradient
   5.1 to 2.9 ms, 2,000 x 1,000 of doubles 7.6 to 4.1.) */
SX_INLINE int64_t sx_rows_of_classes_f32(const char *at, int64_t stride, int64_t count, int64_t length,
                                         int64_t pitch, int64_t ahead, float *tile)
{
    int64_t j, k;
    int i;
    for (k = 0; k + 8 <= length; k += 8)
        SX_EACH_SQUARE(8) {
            sx_f32x8 v[8];
            for (i = 0; i < 8; i++) {
                v[i] = *(const sx_f32x8 *)((const float *)(at + (k + i) * stride) + j);
                __builtin_prefetch((const float *)(at + (k + i) * stride + ahead) + j, 0, 2);
            }
            sx_transpose_f32x8(v);
            for (i = 0; i < 8; i++)
                *(sx_f32x8 *)(tile + (j + i) * pitch + k) = v[i];
        }
    return k;
}

SX_INLINE int64_t sx_classes_of_rows_f32(const float *tile, int64_t pitch, int64_t count,
                                         int64_t length, char *at, int64_t stride, int64_t ahead)
{
    int64_t j, k;
    int i;
    for (k = 0; k + 8 <= length; k += 8)
        SX_EACH_SQUARE(8) {
            sx_f32x8 v[8];
            for (i = 0; i < 8; i++)
                v[i] = *(const sx_f32x8 *)(tile + (j + i) * pitch + k);
            sx_transpose_f32x8(v);
            for (i = 0; i < 8; i++) {
                *(sx_f32x8 *)((float *)(at + (k + i) * stride) + j) = v[i];
                __builtin_prefetch((float *)(at + (k + i) * stride + ahead) + j, 1, 2);
            }
        }
    return k;
}

SX_INLINE int64_t sx_rows_of_classes_f64(const char *at, int64_t stride, int64_t count, int64_t length,
                                         int64_t pitch, int64_t ahead, double *tile)
{
    int64_t j, k;
    int i;
    for (k = 0; k + 4 <= length; k += 4)
        SX_EACH_SQUARE(4) {
            sx_f64x4 v[4];
            for (i = 0; i < 4; i++) {
                v[i] = *(const sx_f64x4 *)((const double *)(at + (k + i) * stride) + j);
                __builtin_prefetch((const double *)(at + (k + i) * stride + ahead) + j, 0, 2);
            }
            sx_transpose_f64x4(v);
            for (i = 0; i < 4; i++)
                *(sx_f64x4 *)(tile + (j + i) * pitch + k) = v[i];
        }
    return k;
}

SX_INLINE int64_t sx_classes_of_rows_f64(const double *tile, int64_t pitch, int64_t count,
                                         int64_t length, char *at, int64_t stride, int64_t ahead)
{
    int64_t j, k;
    int i;
    for (k = 0; k + 4 <= length; k += 4)
        SX_EACH_SQUARE(4) {
            sx_f64x4 v[4];
            for (i = 0; i < 4; i++)
                v[i] = *(const sx_f64x4 *)(tile + (j + i) * pitch + k);
            sx_transpose_f64x4(v);
            for (i = 0; i < 4; i++) {
                *(sx_f64x4 *)((double *)(at + (k + i) * stride) + j) = v[i];
                __builtin_prefetch((double *)(at + (k + i) * stride + ahead) + j, 1, 2);
            }
        }
    return k;
}

#else
#define sx_rows_of_classes_f32(at, stride, count, length, pitch, ahead, tile) 0
#define sx_classes_of_rows_f32(tile, pitch, count, length, at, stride, ahead) 0
#define sx_rows_of_classes_f64(at, stride, count, length, pitch, ahead, tile) 0
#define sx_classes_of_rows_f64(tile, pitch, count, length, at, stride, ahead) 0
SX_INLINE void sx_columns_of_rows_f32(const float *rows, int64_t count, int64_t classes, int64_t pitch,
                                      float *columns)
{
    int64_t j, k;
    for (j = 0; j < count; j++)
        for (k = 0; k < classes; k++)
            columns[k * pitch + j] = rows[j * classes + k];
}

SX_INLINE void sx_rows_of_columns_f32(const float *columns, int64_t count, int64_t classes,
                                      int64_t pitch, float *rows)
{
    int64_t j, k;
    for (j = 0; j < count; j++)
        for (k = 0; k < classes; k++)
            rows[j * classes + k] = columns[k * pitch + j];
}

SX_INLINE void sx_columns_of_rows_f64(const double *rows, int64_t count, int64_t classes,
                                      int64_t pitch, double *columns)
{
    int64_t j, k;
    for (j = 0; j < count; j++)
        for (k = 0; k < classes; k++)
            columns[k * pitch + j] = rows[j * classes + k];
}

SX_INLINE void sx_rows_of_columns_f64(const double *columns, int64_t count, int64_t classes,
                                      int64_t pitch, double *rows)
{
    int64_t j, k;
    for (j = 0; j < count; j++)
        for (k = 0; k < classes; k++)
            rows[j * classes + k] = columns[k * pitch + j];
}
#endif

/* ---- e times a power of two, then times a, then + 0 ------------------------------------------- */

/* How many elements there are before `to` is a line's beginning. */
SX_INLINE int64_t sx_before_line(const void *to, int64_t size, int64_t length)
{
    int64_t ahead = (SX_LINE - (int64_t)((uintptr_t)to & (SX_LINE - 1))) & (SX_LINE - 1);
    return ahead / size < length ? ahead / size : length;
}

/* Up to three that are left. No loop, which would be made one of vectors. */
#define SX_SCALE_FEW(fma)                                    \
    do {                                                     \
        if (i < length)                                      \
            to[i] = fma(e[i] * shift, a, 0);                 \
        if (i + 1 < length)                                  \
            to[i + 1] = fma(e[i + 1] * shift, a, 0);         \
        if (i + 2 < length)                                  \
            to[i + 2] = fma(e[i + 2] * shift, a, 0);         \
    } while (0)

SX_INLINE void sx_scale_run_f32(const float *e, float shift, float a, int64_t length, float *to)
{
    int64_t i = 0;
#if defined(__AVX512F__)
    __m512 by = _mm512_set1_ps(shift), factor = _mm512_set1_ps(a), zero = _mm512_setzero_ps();
    for (; i + 16 <= length; i += 16)
        _mm512_storeu_ps(to + i, _mm512_fmadd_ps(_mm512_mul_ps(_mm512_loadu_ps(e + i), by), factor,
                                                 zero));
    if (i < length) {
        __mmask16 rest = (__mmask16)sx_first_lanes(length - i);
        _mm512_mask_storeu_ps(to + i, rest, _mm512_fmadd_ps(
            _mm512_mul_ps(_mm512_maskz_loadu_ps(rest, e + i), by), factor, zero));
    }
    return;
#elif defined(__AVX2__) && defined(__FMA__)
    __m256 by = _mm256_set1_ps(shift), factor = _mm256_set1_ps(a), zero = _mm256_setzero_ps();
    int64_t j;
    /* Four at a time: as a loop of six instructions it takes a third longer where they lie in two lines
       of the code. */
    for (; i + 32 <= length; i += 32)
        for (j = i; j < i + 32; j += 8)
            _mm256_storeu_ps(to + j, _mm256_fmadd_ps(
                _mm256_mul_ps(_mm256_loadu_ps(e + j), by), factor, zero));
    for (; i + 8 <= length; i += 8)
        _mm256_storeu_ps(to + i, _mm256_fmadd_ps(
            _mm256_mul_ps(_mm256_loadu_ps(e + i), by), factor, zero));
    if (i + 4 <= length) {
        _mm_storeu_ps(to + i, _mm_fmadd_ps(
            _mm_mul_ps(_mm_loadu_ps(e + i), _mm256_castps256_ps128(by)),
            _mm256_castps256_ps128(factor), _mm256_castps256_ps128(zero)));
        i += 4;
    }
    SX_SCALE_FEW(sx_fma_f32);
    return;
#endif
    /* Two loops: a compiler that cannot know `the same or apart` runs a scalar one. */
    if (e == to) {
        for (; i < length; i++)
            to[i] = sx_fma_f32(to[i] * shift, a, 0.0f);
    } else {
        for (; i < length; i++)
            to[i] = sx_fma_f32(e[i] * shift, a, 0.0f);
    }
}

SX_INLINE void sx_scale_run_f64(const double *e, double shift, double a, int64_t length, double *to)
{
    int64_t i = 0;
#if defined(__AVX512F__)
    __m512d by = _mm512_set1_pd(shift), factor = _mm512_set1_pd(a), zero = _mm512_setzero_pd();
    for (; i + 8 <= length; i += 8)
        _mm512_storeu_pd(to + i, _mm512_fmadd_pd(_mm512_mul_pd(_mm512_loadu_pd(e + i), by), factor,
                                                 zero));
    if (i < length) {
        __mmask8 rest = (__mmask8)sx_first_lanes(length - i);
        _mm512_mask_storeu_pd(to + i, rest, _mm512_fmadd_pd(
            _mm512_mul_pd(_mm512_maskz_loadu_pd(rest, e + i), by), factor, zero));
    }
    return;
#elif defined(__AVX2__) && defined(__FMA__)
    __m256d by = _mm256_set1_pd(shift), factor = _mm256_set1_pd(a), zero = _mm256_setzero_pd();
    int64_t j;
    /* Four at a time: as a loop of six instructions it takes a third longer where they lie in two lines
       of the code. */
    for (; i + 16 <= length; i += 16)
        for (j = i; j < i + 16; j += 4)
            _mm256_storeu_pd(to + j, _mm256_fmadd_pd(
                _mm256_mul_pd(_mm256_loadu_pd(e + j), by), factor, zero));
    for (; i + 4 <= length; i += 4)
        _mm256_storeu_pd(to + i, _mm256_fmadd_pd(
            _mm256_mul_pd(_mm256_loadu_pd(e + i), by), factor, zero));
    SX_SCALE_FEW(sx_fma_f64);
    return;
#endif
    /* Two loops: a compiler that cannot know `the same or apart` runs a scalar one. */
    if (e == to) {
        for (; i < length; i++)
            to[i] = sx_fma_f64(to[i] * shift, a, 0.0);
    } else {
        for (; i < length; i++)
            to[i] = sx_fma_f64(e[i] * shift, a, 0.0);
    }
}

/* The same past the caches; sx_stream_end before another thread may read it. */
SX_INLINE void sx_stream_run_f32(const float *e, float shift, float a, int64_t length, float *to)
{
    int64_t i = sx_before_line(to, 4, length);
    sx_scale_run_f32(e, shift, a, i, to);
#if defined(__AVX512F__)
    __m512 by = _mm512_set1_ps(shift), factor = _mm512_set1_ps(a), zero = _mm512_setzero_ps();
    for (; i + 16 <= length; i += 16)
        _mm512_stream_ps(to + i, _mm512_fmadd_ps(_mm512_mul_ps(_mm512_loadu_ps(e + i), by), factor,
                                                 zero));
#elif defined(__AVX2__) && defined(__FMA__)
    __m256 by = _mm256_set1_ps(shift), factor = _mm256_set1_ps(a), zero = _mm256_setzero_ps();
    int64_t j;
    for (; i + 16 <= length; i += 16)
        for (j = i; j < i + 16; j += 8)
            _mm256_stream_ps(to + j, _mm256_fmadd_ps(
                _mm256_mul_ps(_mm256_loadu_ps(e + j), by), factor, zero));
#elif defined(__SSE2__) && !SX_HAS_FMA
    __m128 by = _mm_set1_ps(shift), factor = _mm_set1_ps(a), zero = _mm_setzero_ps();
    for (; i + 4 <= length; i += 4)
        _mm_stream_ps(to + i, _mm_add_ps(_mm_mul_ps(_mm_mul_ps(_mm_loadu_ps(e + i), by), factor),
                                         zero));
#endif
    sx_scale_run_f32(e + i, shift, a, length - i, to + i);
}

SX_INLINE void sx_stream_run_f64(const double *e, double shift, double a, int64_t length, double *to)
{
    int64_t i = sx_before_line(to, 8, length);
    sx_scale_run_f64(e, shift, a, i, to);
#if defined(__AVX512F__)
    __m512d by = _mm512_set1_pd(shift), factor = _mm512_set1_pd(a), zero = _mm512_setzero_pd();
    for (; i + 8 <= length; i += 8)
        _mm512_stream_pd(to + i, _mm512_fmadd_pd(_mm512_mul_pd(_mm512_loadu_pd(e + i), by), factor,
                                                 zero));
#elif defined(__AVX2__) && defined(__FMA__)
    __m256d by = _mm256_set1_pd(shift), factor = _mm256_set1_pd(a), zero = _mm256_setzero_pd();
    int64_t j;
    for (; i + 8 <= length; i += 8)
        for (j = i; j < i + 8; j += 4)
            _mm256_stream_pd(to + j, _mm256_fmadd_pd(
                _mm256_mul_pd(_mm256_loadu_pd(e + j), by), factor, zero));
#elif defined(__SSE2__) && !SX_HAS_FMA
    __m128d by = _mm_set1_pd(shift), factor = _mm_set1_pd(a), zero = _mm_setzero_pd();
    for (; i + 2 <= length; i += 2)
        _mm_stream_pd(to + i, _mm_add_pd(_mm_mul_pd(_mm_mul_pd(_mm_loadu_pd(e + i), by), factor),
                                         zero));
#endif
    sx_scale_run_f64(e + i, shift, a, length - i, to + i);
}

SX_INLINE void sx_stream_end(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
