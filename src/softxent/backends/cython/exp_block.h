/* AVX2: exp of a run of logits, and of a block with its sum and the next block's largest.

   A compiler makes one vector's exp after another. The next ones begin before the first is done as far
   as the processor sees ahead, which is not far where two threads share a core: four side by side, step
   by step, take (EPYC, Zen 3, cycles a vector of eight floats from the first cache) 5.6 where one after
   another takes 6.2, and 6.2 instead of 8.5 while the core's other thread is at work. The operations are
   sx_exp's, so the bits are. */
#ifndef SOFTXENT_EXP_BLOCK_H
#define SOFTXENT_EXP_BLOCK_H

#include "lanes.h"

#if defined(__AVX2__) && SX_HAS_FMA && !defined(__AVX512F__)
#define SX_HAS_EXP_BLOCK 1

#define SX_EACH for (i = 0; i < 4; i++)

/* sx_exp_f32 of four vectors, of a k and a low each. */
SX_INLINE void sx_exp_vectors_f32(__m256 *z, const __m256 *k, const __m256 *low, __m256 *e)
{
    __m256 n[4], r[4];
    __m256i power[4];
    int i;
#define SX_TIMES_R_PLUS(q) SX_EACH e[i] = _mm256_fmadd_ps(e[i], r[i], _mm256_set1_ps(q))
    SX_EACH r[i] = _mm256_max_ps(low[i], z[i]);
    SX_EACH n[i] = _mm256_fmadd_ps(r[i], _mm256_set1_ps((float)SX_LOG2E), k[i]);
    SX_EACH power[i] = _mm256_slli_epi32(_mm256_castps_si256(n[i]), 23);
    SX_EACH n[i] = _mm256_sub_ps(n[i], k[i]);
    SX_EACH r[i] = _mm256_fmadd_ps(n[i], _mm256_set1_ps(-SX_LN2_24_F32), r[i]);
    SX_EACH r[i] = _mm256_fmadd_ps(n[i], _mm256_set1_ps(-SX_LN2_24_REST_F32), r[i]);
    SX_EACH e[i] = _mm256_set1_ps(SX_Q4_F32);
    SX_TIMES_R_PLUS(SX_Q3_F32);
    SX_TIMES_R_PLUS(SX_Q2_F32);
    SX_TIMES_R_PLUS(SX_Q1_F32);
    SX_TIMES_R_PLUS(SX_Q0_F32);
    SX_TIMES_R_PLUS(1.0f);
    SX_TIMES_R_PLUS(1.0f);
    SX_EACH e[i] = _mm256_mul_ps(e[i], _mm256_castsi256_ps(power[i]));
#undef SX_TIMES_R_PLUS
}

/* sx_exp_f64. */
SX_INLINE void sx_exp_vectors_f64(__m256d *z, const __m256d *k, const __m256d *low, __m256d *e)
{
    __m256d n[4], r[4];
    __m256i power[4];
    int i;
#define SX_TIMES_R_PLUS(q) SX_EACH e[i] = _mm256_fmadd_pd(e[i], r[i], _mm256_set1_pd(q))
    SX_EACH r[i] = _mm256_max_pd(low[i], z[i]);
    SX_EACH n[i] = _mm256_fmadd_pd(r[i], _mm256_set1_pd(SX_LOG2E), k[i]);
    SX_EACH power[i] = _mm256_slli_epi64(_mm256_castpd_si256(n[i]), 52);
    SX_EACH n[i] = _mm256_sub_pd(n[i], k[i]);
    SX_EACH r[i] = _mm256_fmadd_pd(n[i], _mm256_set1_pd(-SX_LN2), r[i]);
    SX_EACH r[i] = _mm256_fmadd_pd(n[i], _mm256_set1_pd(-SX_LN2_REST), r[i]);
    SX_EACH e[i] = _mm256_set1_pd(SX_Q9_F64);
    SX_TIMES_R_PLUS(SX_Q8_F64);
    SX_TIMES_R_PLUS(SX_Q7_F64);
    SX_TIMES_R_PLUS(SX_Q6_F64);
    SX_TIMES_R_PLUS(SX_Q5_F64);
    SX_TIMES_R_PLUS(SX_Q4_F64);
    SX_TIMES_R_PLUS(SX_Q3_F64);
    SX_TIMES_R_PLUS(SX_Q2_F64);
    SX_TIMES_R_PLUS(SX_Q1_F64);
    SX_TIMES_R_PLUS(SX_Q0_F64);
    SX_TIMES_R_PLUS(1.0);
    SX_TIMES_R_PLUS(1.0);
    SX_EACH e[i] = _mm256_mul_pd(e[i], _mm256_castsi256_pd(power[i]));
#undef SX_TIMES_R_PLUS
}

/* Terms of a vector's lanes, widened and added to their sums. */
SX_INLINE void sx_add_terms_f32(__m256 terms, __m256d *lanes)
{
    lanes[0] = _mm256_add_pd(lanes[0], _mm256_cvtps_pd(_mm256_castps256_ps128(terms)));
    lanes[1] = _mm256_add_pd(lanes[1], _mm256_cvtps_pd(_mm256_extractf128_ps(terms, 1)));
}

SX_INLINE void sx_add_terms_f64(__m256d terms, __m256d *lanes)
{
    lanes[0] = _mm256_add_pd(lanes[0], terms);
}

/* The same without loss: up to 64 floats add up in double, doubles are compensated as by sx_kahan. */
SX_INLINE void sx_add_exact_f32(__m256 terms, __m256d *sums, __m256d *unused)
{
    (void)unused;
    sx_add_terms_f32(terms, sums);
}

SX_INLINE void sx_add_exact_f64(__m256d terms, __m256d *sum, __m256d *carry)
{
    __m256d y = _mm256_add_pd(terms, *carry), total = _mm256_add_pd(*sum, y);
    *carry = _mm256_sub_pd(y, _mm256_sub_pd(total, *sum));
    *sum = total;
}

SX_INLINE float sx_top_of_vector_f32(__m256 t)
{
    __m128 f = _mm_max_ps(_mm256_extractf128_ps(t, 1), _mm256_castps256_ps128(t));
    f = _mm_max_ps(_mm_movehl_ps(f, f), f);
    return _mm_cvtss_f32(_mm_max_ss(_mm_shuffle_ps(f, f, 1), f));
}

SX_INLINE double sx_top_of_vector_f64(__m256d t)
{
    __m128d f = _mm_max_pd(_mm256_extractf128_pd(t, 1), _mm256_castpd256_pd128(t));
    return _mm_cvtsd_f64(_mm_max_sd(_mm_unpackhi_pd(f, f), f));
}

/* Lanes 4 i + 0 .. 3 in v[i], a power of two of vectors: as sx_fold_lanes. */
SX_INLINE double sx_fold_vectors(__m256d *v, int count)
{
    __m128d f;
    int width, i;
    for (width = count / 2; width > 0; width /= 2)
        for (i = 0; i < width; i++)
            v[i] = _mm256_add_pd(v[i], v[i + width]);
    f = _mm_add_pd(_mm256_castpd256_pd128(v[0]), _mm256_extractf128_pd(v[0], 1));
    return _mm_cvtsd_f64(_mm_add_sd(f, _mm_unpackhi_pd(f, f)));
}

#define SX_REAL float
#define SX_VECTOR __m256
#define SX_WIDTH 8
#define SX_DO(name) _mm256_##name##_ps
#define SX_AS(mask) _mm256_castsi256_ps(mask)
#define SX_OF(name) name##_f32
#include "exp_block_of.h"

#define SX_REAL double
#define SX_VECTOR __m256d
#define SX_WIDTH 4
#define SX_DO(name) _mm256_##name##_pd
#define SX_AS(mask) _mm256_castsi256_pd(mask)
#define SX_OF(name) name##_f64
#include "exp_block_of.h"

#undef SX_EACH

#else
#define SX_HAS_EXP_BLOCK 0
#define sx_exp_fours_f32(x, length, k, low, e) 0
#define sx_exp_fours_f64(x, length, k, low, e) 0
#define sx_exp_times_fours_f32(x, length, k, low, a, to) 0
#define sx_exp_times_fours_f64(x, length, k, low, a, to) 0
#define sx_exp_times_classes_f32(at, stride, count, length, k, low, a, to, to_stride, ahead, to_ahead) \
    (void)0
#define sx_exp_times_classes_f64(at, stride, count, length, k, low, a, to, to_stride, ahead, to_ahead) \
    (void)0
#define sx_top_columns_f32(x, classes, tops, places) (void)0
#define sx_top_columns_f64(x, classes, tops, places) (void)0
#define sx_exp_and_sum_columns_f32(x, classes, k, low, places, targets, e, rest, carry, e_places) (void)0
#define sx_exp_and_sum_columns_f64(x, classes, k, low, places, targets, e, rest, carry, e_places) (void)0
#define sx_exp_block_f32(x, length, place_1, place_2, k, low, next, next_length, ahead, e, top, start) 0
#define sx_exp_block_f64(x, length, place_1, place_2, k, low, next, next_length, ahead, e, top, start) 0
#endif

#endif
