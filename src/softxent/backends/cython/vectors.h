/* A vector as large as the level has them, of float and of double: what AVX-512 and AVX2 have different
   instructions for. Where there is neither, none: SX_HAS_VECTORS is 0. */
#ifndef SOFTXENT_VECTORS_H
#define SOFTXENT_VECTORS_H

#include <stdint.h>

#include "elementary.h"

#if defined(__AVX512F__) && SX_HAS_FMA
#include <immintrin.h>
#define SX_HAS_VECTORS 1
#define SX_BYTES_OF_VECTOR 64
#define SX_VECTOR_F32(name) _mm512_##name##_ps
#define SX_VECTOR_F64(name) _mm512_##name##_pd
typedef __m512 sx_vector_f32;
typedef __m512d sx_vector_f64;
typedef __mmask16 sx_mask_f32;
typedef __mmask8 sx_mask_f64;

/* The first n of a vector's elements, any n; the nth. */
SX_INLINE sx_mask_f32 sx_first_f32(int64_t n)
{
    return (sx_mask_f32)(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
}

SX_INLINE sx_mask_f64 sx_first_f64(int64_t n)
{
    return (sx_mask_f64)(n >= 8 ? 0xff : n <= 0 ? 0 : (1 << n) - 1);
}

SX_INLINE sx_mask_f32 sx_nth_f32(int64_t n) { return (sx_mask_f32)(1 << n); }
SX_INLINE sx_mask_f64 sx_nth_f64(int64_t n) { return (sx_mask_f64)(1 << n); }

SX_INLINE sx_vector_f32 sx_masked_load_f32(const float *x, sx_mask_f32 which, sx_vector_f32 other)
{
    return _mm512_mask_loadu_ps(other, which, x);
}

SX_INLINE sx_vector_f64 sx_masked_load_f64(const double *x, sx_mask_f64 which, sx_vector_f64 other)
{
    return _mm512_mask_loadu_pd(other, which, x);
}

SX_INLINE void sx_masked_store_f32(float *x, sx_mask_f32 which, sx_vector_f32 v)
{
    _mm512_mask_storeu_ps(x, which, v);
}

SX_INLINE void sx_masked_store_f64(double *x, sx_mask_f64 which, sx_vector_f64 v)
{
    _mm512_mask_storeu_pd(x, which, v);
}

SX_INLINE sx_mask_f32 sx_larger_f32(sx_vector_f32 a, sx_vector_f32 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

SX_INLINE sx_mask_f64 sx_larger_f64(sx_vector_f64 a, sx_vector_f64 b)
{
    return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
}

SX_INLINE sx_mask_f32 sx_equal_f32(sx_vector_f32 a, sx_vector_f32 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

SX_INLINE sx_mask_f64 sx_equal_f64(sx_vector_f64 a, sx_vector_f64 b)
{
    return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ);
}

/* Whether any are equal. */
SX_INLINE int sx_has_equal_f32(sx_vector_f32 a, sx_vector_f32 b) { return sx_equal_f32(a, b) != 0; }
SX_INLINE int sx_has_equal_f64(sx_vector_f64 a, sx_vector_f64 b) { return sx_equal_f64(a, b) != 0; }

/* a there, b elsewhere; +0 there, b elsewhere. */
SX_INLINE sx_vector_f32 sx_choose_f32(sx_mask_f32 there, sx_vector_f32 a, sx_vector_f32 b)
{
    return _mm512_mask_mov_ps(b, there, a);
}

SX_INLINE sx_vector_f64 sx_choose_f64(sx_mask_f64 there, sx_vector_f64 a, sx_vector_f64 b)
{
    return _mm512_mask_mov_pd(b, there, a);
}

SX_INLINE sx_vector_f32 sx_clear_f32(sx_mask_f32 there, sx_vector_f32 b)
{
    return _mm512_maskz_mov_ps((sx_mask_f32)~there, b);
}

SX_INLINE sx_vector_f64 sx_clear_f64(sx_mask_f64 there, sx_vector_f64 b)
{
    return _mm512_maskz_mov_pd((sx_mask_f64)~there, b);
}

/* The last bits of a number as its exponent. */
SX_INLINE sx_vector_f32 sx_to_exponent_f32(sx_vector_f32 a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}

SX_INLINE sx_vector_f64 sx_to_exponent_f64(sx_vector_f64 a)
{
    return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(a), 52));
}

/* Of equals the earlier stays. */
SX_INLINE float sx_top_of_vector_f32(sx_vector_f32 t)
{
    __m256 e = _mm256_max_ps(_mm512_extractf32x8_ps(t, 1), _mm512_castps512_ps256(t));
    __m128 f = _mm_max_ps(_mm256_extractf128_ps(e, 1), _mm256_castps256_ps128(e));
    f = _mm_max_ps(_mm_movehl_ps(f, f), f);
    return _mm_cvtss_f32(_mm_max_ss(_mm_shuffle_ps(f, f, 1), f));
}

SX_INLINE double sx_top_of_vector_f64(sx_vector_f64 t)
{
    __m256d e = _mm256_max_pd(_mm512_extractf64x4_pd(t, 1), _mm512_castpd512_pd256(t));
    __m128d f = _mm_max_pd(_mm256_extractf128_pd(e, 1), _mm256_castpd256_pd128(e));
    return _mm_cvtsd_f64(_mm_max_sd(_mm_unpackhi_pd(f, f), f));
}

/* Each half of a vector of float, as double. */
SX_INLINE sx_vector_f64 sx_lower_half(sx_vector_f32 a)
{
    return _mm512_cvtps_pd(_mm512_castps512_ps256(a));
}

SX_INLINE sx_vector_f64 sx_upper_half(sx_vector_f32 a)
{
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
}

/* Half against half, down to one. */
SX_INLINE double sx_fold_vector(sx_vector_f64 a)
{
    __m256d e = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d f = _mm_add_pd(_mm256_castpd256_pd128(e), _mm256_extractf128_pd(e, 1));
    return _mm_cvtsd_f64(_mm_add_sd(f, _mm_unpackhi_pd(f, f)));
}

#elif defined(__AVX2__) && SX_HAS_FMA
#include <immintrin.h>
#define SX_HAS_VECTORS 1
#define SX_BYTES_OF_VECTOR 32
#define SX_VECTOR_F32(name) _mm256_##name##_ps
#define SX_VECTOR_F64(name) _mm256_##name##_pd
typedef __m256 sx_vector_f32;
typedef __m256d sx_vector_f64;
typedef __m256i sx_mask_f32;
typedef __m256i sx_mask_f64;

SX_INLINE sx_mask_f32 sx_first_f32(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

SX_INLINE sx_mask_f64 sx_first_f64(int64_t n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

SX_INLINE sx_mask_f32 sx_nth_f32(int64_t n)
{
    return _mm256_cmpeq_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

SX_INLINE sx_mask_f64 sx_nth_f64(int64_t n)
{
    return _mm256_cmpeq_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

SX_INLINE sx_vector_f32 sx_choose_f32(sx_mask_f32 there, sx_vector_f32 a, sx_vector_f32 b)
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(there));
}

SX_INLINE sx_vector_f64 sx_choose_f64(sx_mask_f64 there, sx_vector_f64 a, sx_vector_f64 b)
{
    return _mm256_blendv_pd(b, a, _mm256_castsi256_pd(there));
}

SX_INLINE sx_vector_f32 sx_clear_f32(sx_mask_f32 there, sx_vector_f32 b)
{
    return _mm256_andnot_ps(_mm256_castsi256_ps(there), b);
}

SX_INLINE sx_vector_f64 sx_clear_f64(sx_mask_f64 there, sx_vector_f64 b)
{
    return _mm256_andnot_pd(_mm256_castsi256_pd(there), b);
}

SX_INLINE sx_vector_f32 sx_masked_load_f32(const float *x, sx_mask_f32 which, sx_vector_f32 other)
{
    return sx_choose_f32(which, _mm256_maskload_ps(x, which), other);
}

SX_INLINE sx_vector_f64 sx_masked_load_f64(const double *x, sx_mask_f64 which, sx_vector_f64 other)
{
    return sx_choose_f64(which, _mm256_maskload_pd(x, which), other);
}

SX_INLINE void sx_masked_store_f32(float *x, sx_mask_f32 which, sx_vector_f32 v)
{
    _mm256_maskstore_ps(x, which, v);
}

SX_INLINE void sx_masked_store_f64(double *x, sx_mask_f64 which, sx_vector_f64 v)
{
    _mm256_maskstore_pd(x, which, v);
}

SX_INLINE sx_mask_f32 sx_larger_f32(sx_vector_f32 a, sx_vector_f32 b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

SX_INLINE sx_mask_f64 sx_larger_f64(sx_vector_f64 a, sx_vector_f64 b)
{
    return _mm256_castpd_si256(_mm256_cmp_pd(a, b, _CMP_GT_OQ));
}

SX_INLINE sx_mask_f32 sx_equal_f32(sx_vector_f32 a, sx_vector_f32 b)
{
    return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}

SX_INLINE sx_mask_f64 sx_equal_f64(sx_vector_f64 a, sx_vector_f64 b)
{
    return _mm256_castpd_si256(_mm256_cmp_pd(a, b, _CMP_EQ_OQ));
}

SX_INLINE int sx_has_equal_f32(sx_vector_f32 a, sx_vector_f32 b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0;
}

SX_INLINE int sx_has_equal_f64(sx_vector_f64 a, sx_vector_f64 b)
{
    return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_EQ_OQ)) != 0;
}

SX_INLINE sx_vector_f32 sx_to_exponent_f32(sx_vector_f32 a)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}

SX_INLINE sx_vector_f64 sx_to_exponent_f64(sx_vector_f64 a)
{
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(a), 52));
}

SX_INLINE float sx_top_of_vector_f32(sx_vector_f32 t)
{
    __m128 f = _mm_max_ps(_mm256_extractf128_ps(t, 1), _mm256_castps256_ps128(t));
    f = _mm_max_ps(_mm_movehl_ps(f, f), f);
    return _mm_cvtss_f32(_mm_max_ss(_mm_shuffle_ps(f, f, 1), f));
}

SX_INLINE double sx_top_of_vector_f64(sx_vector_f64 t)
{
    __m128d f = _mm_max_pd(_mm256_extractf128_pd(t, 1), _mm256_castpd256_pd128(t));
    return _mm_cvtsd_f64(_mm_max_sd(_mm_unpackhi_pd(f, f), f));
}

SX_INLINE sx_vector_f64 sx_lower_half(sx_vector_f32 a)
{
    return _mm256_cvtps_pd(_mm256_castps256_ps128(a));
}

SX_INLINE sx_vector_f64 sx_upper_half(sx_vector_f32 a)
{
    return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}

SX_INLINE double sx_fold_vector(sx_vector_f64 a)
{
    __m128d f = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(f, _mm_unpackhi_pd(f, f)));
}

#else
#define SX_HAS_VECTORS 0
#endif

#if SX_HAS_VECTORS
#define SX_WIDTH_F32 (SX_BYTES_OF_VECTOR / 4)
#define SX_WIDTH_F64 (SX_BYTES_OF_VECTOR / 8)

/* The first n, any n; `other` in the rest. */
SX_INLINE sx_vector_f32 sx_load_first_f32(const float *x, int64_t n, sx_vector_f32 other)
{
    if (n >= SX_WIDTH_F32)
        return SX_VECTOR_F32(loadu)(x);
    if (n <= 0)
        return other;    /* not read at all: a fault that a mask hides takes long */
    return sx_masked_load_f32(x, sx_first_f32(n), other);
}

SX_INLINE sx_vector_f64 sx_load_first_f64(const double *x, int64_t n, sx_vector_f64 other)
{
    if (n >= SX_WIDTH_F64)
        return SX_VECTOR_F64(loadu)(x);
    if (n <= 0)
        return other;
    return sx_masked_load_f64(x, sx_first_f64(n), other);
}
#endif

#endif
