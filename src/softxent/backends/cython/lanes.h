/* What compilers do not make of a loop: masks, prefetches, stores past the caches. Every function has
   a plain form, with the same results. */
#ifndef SOFTXENT_LANES_H
#define SOFTXENT_LANES_H

#include <stdint.h>

#include "elementary.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
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
#endif
    for (; i < length; i++)
        if (x[i] == value)
            return i;
    return 0;
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
#endif
    for (; i < length; i++)
        if (x[i] == value)
            return i;
    return 0;
}

/* ---- rows side by side ------------------------------------------------------------------------ */

/* Packed rows, class by class and back: class k of row j of `rows` (C classes each, one row after
   another) from and to `columns` at k pitch + j. In squares of R rows and R classes, each a transpose in
   registers: eight by eight of float while there are that many classes, four by four for what is left
   of them. */
#if defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 12)
#define SX_HAS_SQUARES 1

typedef float sx_f32x4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float sx_f32x8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef double sx_f64x4 __attribute__((vector_size(32), aligned(8), may_alias));

/* log2 R times: neighbours half the square apart are interleaved. */
#define SX_LOW_OF_4(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define SX_HIGH_OF_4(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)

SX_INLINE void sx_transpose_f32x4(sx_f32x4 *v)
{
    sx_f32x4 a = SX_LOW_OF_4(v[0], v[2]), b = SX_HIGH_OF_4(v[0], v[2]);
    sx_f32x4 c = SX_LOW_OF_4(v[1], v[3]), d = SX_HIGH_OF_4(v[1], v[3]);
    v[0] = SX_LOW_OF_4(a, c), v[1] = SX_HIGH_OF_4(a, c);
    v[2] = SX_LOW_OF_4(b, d), v[3] = SX_HIGH_OF_4(b, d);
}

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

/* R elements from `at` on; near `end`, those that there are. */
SX_INLINE void sx_take_f32x8(const float *at, const float *end, int near, sx_f32x8 *v)
{
    float part[8] = {0};
    int i;
    if (!near || at + 8 <= end) {
        *v = *(const sx_f32x8 *)at;
        return;
    }
    for (i = 0; i < 8 && at + i < end; i++)
        part[i] = at[i];
    *v = *(const sx_f32x8 *)part;
}

SX_INLINE void sx_take_f32x4(const float *at, const float *end, int near, sx_f32x4 *v)
{
    float part[4] = {0};
    int i;
    if (!near || at + 4 <= end) {
        *v = *(const sx_f32x4 *)at;
        return;
    }
    for (i = 0; i < 4 && at + i < end; i++)
        part[i] = at[i];
    *v = *(const sx_f32x4 *)part;
}

SX_INLINE void sx_take_f64x4(const double *at, const double *end, int near, sx_f64x4 *v)
{
    double part[4] = {0};
    int i;
    if (!near || at + 4 <= end) {
        *v = *(const sx_f64x4 *)at;
        return;
    }
    for (i = 0; i < 4 && at + i < end; i++)
        part[i] = at[i];
    *v = *(const sx_f64x4 *)part;
}

SX_INLINE void sx_give_f32x8(float *at, float *end, int near, sx_f32x8 v)
{
    int i;
    if (!near || at + 8 <= end)
        *(sx_f32x8 *)at = v;
    else
        for (i = 0; i < 8 && at + i < end; i++)
            at[i] = v[i];
}

SX_INLINE void sx_give_f32x4(float *at, float *end, int near, sx_f32x4 v)
{
    int i;
    if (!near || at + 4 <= end)
        *(sx_f32x4 *)at = v;
    else
        for (i = 0; i < 4 && at + i < end; i++)
            at[i] = v[i];
}

SX_INLINE void sx_give_f64x4(double *at, double *end, int near, sx_f64x4 v)
{
    int i;
    if (!near || at + 4 <= end)
        *(sx_f64x4 *)at = v;
    else
        for (i = 0; i < 4 && at + i < end; i++)
            at[i] = v[i];
}

SX_INLINE void sx_square_columns_f32(const float *row, const float *end, int near, int64_t classes,
                                     int64_t pitch, float *columns)
{
    int64_t k;
    int i;
    for (k = 0; classes - k > 4; k += 8) {
        sx_f32x8 v[8];
        for (i = 0; i < 8; i++)
            sx_take_f32x8(row + i * classes + k, end, near, &v[i]);
        sx_transpose_f32x8(v);
        for (i = 0; i < 8; i++)
            *(sx_f32x8 *)(columns + (k + i) * pitch) = v[i];
    }
    if (k < classes) {
        sx_f32x4 v[8];
        for (i = 0; i < 8; i++)
            sx_take_f32x4(row + i * classes + k, end, near, &v[i]);
        sx_transpose_f32x4(v);
        sx_transpose_f32x4(v + 4);
        for (i = 0; i < 4; i++) {
            *(sx_f32x4 *)(columns + (k + i) * pitch) = v[i];
            *(sx_f32x4 *)(columns + (k + i) * pitch + 4) = v[i + 4];
        }
    }
}

/* From the last classes to the first, for what a square writes behind its row's end is the next row's,
   which comes later. */
SX_INLINE void sx_square_rows_f32(const float *columns, int64_t classes, int64_t pitch, float *row,
                                  float *end, int near)
{
    int64_t k, left = classes % 8 > 0 && classes % 8 <= 4 ? classes % 8 : 0;
    int i;
    if (left) {
        sx_f32x4 v[8];
        k = classes - left;
        for (i = 0; i < 4; i++) {
            v[i] = *(const sx_f32x4 *)(columns + (k + i) * pitch);
            v[i + 4] = *(const sx_f32x4 *)(columns + (k + i) * pitch + 4);
        }
        sx_transpose_f32x4(v);
        sx_transpose_f32x4(v + 4);
        for (i = 0; i < 8; i++)
            sx_give_f32x4(row + i * classes + k, end, near, v[i]);
    }
    for (k = ((classes - left + 7) & ~(int64_t)7) - 8; k >= 0; k -= 8) {
        sx_f32x8 v[8];
        for (i = 0; i < 8; i++)
            v[i] = *(const sx_f32x8 *)(columns + (k + i) * pitch);
        sx_transpose_f32x8(v);
        for (i = 0; i < 8; i++)
            sx_give_f32x8(row + i * classes + k, end, near, v[i]);
    }
}

SX_INLINE void sx_square_columns_f64(const double *row, const double *end, int near, int64_t classes,
                                     int64_t pitch, double *columns)
{
    int64_t k;
    int i;
    for (k = 0; k < classes; k += 4) {
        sx_f64x4 v[4];
        for (i = 0; i < 4; i++)
            sx_take_f64x4(row + i * classes + k, end, near, &v[i]);
        sx_transpose_f64x4(v);
        for (i = 0; i < 4; i++)
            *(sx_f64x4 *)(columns + (k + i) * pitch) = v[i];
    }
}

SX_INLINE void sx_square_rows_f64(const double *columns, int64_t classes, int64_t pitch, double *row,
                                  double *end, int near)
{
    int64_t k;
    int i;
    for (k = (classes - 1) & ~(int64_t)3; k >= 0; k -= 4) {
        sx_f64x4 v[4];
        for (i = 0; i < 4; i++)
            v[i] = *(const sx_f64x4 *)(columns + (k + i) * pitch);
        sx_transpose_f64x4(v);
        for (i = 0; i < 4; i++)
            sx_give_f64x4(row + i * classes + k, end, near, v[i]);
    }
}

/* `count`: a multiple of eight; `columns` has room for whole squares. Only the last eight rows (four of
   double) are near the end: squares of those before end within the rows that follow. */
SX_INLINE void sx_columns_of_rows_f32(const float *rows, int64_t count, int64_t classes, int64_t pitch,
                                      float *columns)
{
    const float *end = rows + count * classes;
    int64_t j;
    for (j = 0; j < count - 8; j += 8)
        sx_square_columns_f32(rows + j * classes, end, 0, classes, pitch, columns + j);
    if (count > 0)
        sx_square_columns_f32(rows + j * classes, end, 1, classes, pitch, columns + j);
}

SX_INLINE void sx_rows_of_columns_f32(const float *columns, int64_t count, int64_t classes,
                                      int64_t pitch, float *rows)
{
    float *end = rows + count * classes;
    int64_t j;
    for (j = 0; j < count - 8; j += 8)
        sx_square_rows_f32(columns + j, classes, pitch, rows + j * classes, end, 0);
    if (count > 0)
        sx_square_rows_f32(columns + j, classes, pitch, rows + j * classes, end, 1);
}

SX_INLINE void sx_columns_of_rows_f64(const double *rows, int64_t count, int64_t classes,
                                      int64_t pitch, double *columns)
{
    const double *end = rows + count * classes;
    int64_t j;
    for (j = 0; j < count - 4; j += 4)
        sx_square_columns_f64(rows + j * classes, end, 0, classes, pitch, columns + j);
    if (count > 0)
        sx_square_columns_f64(rows + j * classes, end, 1, classes, pitch, columns + j);
}

SX_INLINE void sx_rows_of_columns_f64(const double *columns, int64_t count, int64_t classes,
                                      int64_t pitch, double *rows)
{
    double *end = rows + count * classes;
    int64_t j;
    for (j = 0; j < count - 4; j += 4)
        sx_square_rows_f64(columns + j, classes, pitch, rows + j * classes, end, 0);
    if (count > 0)
        sx_square_rows_f64(columns + j, classes, pitch, rows + j * classes, end, 1);
}

#else
#define SX_HAS_SQUARES 0
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

SX_INLINE void sx_scale_run_f32(const float *e, float shift, float a, int64_t length, float *to)
{
    int64_t i;
    for (i = 0; i < length; i++)
        to[i] = sx_fma_f32(e[i] * shift, a, 0.0f);
}

SX_INLINE void sx_scale_run_f64(const double *e, double shift, double a, int64_t length, double *to)
{
    int64_t i;
    for (i = 0; i < length; i++)
        to[i] = sx_fma_f64(e[i] * shift, a, 0.0);
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
    for (; i + 8 <= length; i += 8)
        _mm256_stream_ps(to + i, _mm256_fmadd_ps(_mm256_mul_ps(_mm256_loadu_ps(e + i), by), factor,
                                                 zero));
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
    for (; i + 4 <= length; i += 4)
        _mm256_stream_pd(to + i, _mm256_fmadd_pd(_mm256_mul_pd(_mm256_loadu_pd(e + i), by), factor,
                                                 zero));
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
