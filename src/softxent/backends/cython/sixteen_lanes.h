/* 16-bit logits and gradients on their way, each in one loop: as lanes.h, for sixteen.h. */
#ifndef SOFTXENT_SIXTEEN_LANES_H
#define SOFTXENT_SIXTEEN_LANES_H

#include "exp_block.h"
#include "lanes.h"
#include "sixteen.h"

/* How far ahead of what is read the next 16-bit logits are fetched, in bytes: two blocks. */
#define SX_SIXTEEN_AHEAD 4096

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define SX_HAS_SIXTEEN_LANES 1

SX_INLINE __m512 sx_f32x16_of_sixteen(__m256i h, int is_brain)
{
    return is_brain ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))
                    : _mm512_cvtph_ps(h);
}

/* Of numbers, no NaN. */
SX_INLINE __m512i sx_sixteen_of_f32x32(__m512 lower, __m512 upper, int is_brain)
{
    if (is_brain) {
        /* The upper half of each number, once half of its last place is added; of a tie, the even one. */
        __m512i u = _mm512_castps_si512(lower), v = _mm512_castps_si512(upper);
        __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
        __m512i words = _mm512_set_epi16(
            63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19,
            17, 15, 13, 11, 9, 7, 5, 3, 1);
        u = _mm512_add_epi32(_mm512_add_epi32(u, half),
                             _mm512_and_si512(_mm512_srli_epi32(u, 16), one));
        v = _mm512_add_epi32(_mm512_add_epi32(v, half),
                             _mm512_and_si512(_mm512_srli_epi32(v, 16), one));
        return _mm512_permutex2var_epi16(u, words, v);
    }
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_cvtps_ph(lower, _MM_FROUND_TO_NEAREST_INT)),
        _mm512_cvtps_ph(upper, _MM_FROUND_TO_NEAREST_INT), 1);
}

SX_INLINE float sx_widen_part(const uint16_t *from, int is_brain, int64_t length, float *to)
{
    __m512 low = _mm512_set1_ps(-INFINITY), top[4] = {low, low, low, low};
    int64_t i = 0;
    int v;
    for (; i + SX_LANES <= length; i += SX_LANES) {
        sx_prefetch((const char *)(from + i) + SX_SIXTEEN_AHEAD, SX_LANES * sizeof(uint16_t));
        for (v = 0; v < 4; v++) {
            __m512 x = sx_f32x16_of_sixteen(
                _mm256_loadu_si256((const __m256i *)(from + i + 16 * v)), is_brain);
            _mm512_storeu_ps(to + i + 16 * v, x);
            top[v] = _mm512_max_ps(x, top[v]);
        }
    }
    for (v = 0; v < 4 && i + 16 * v < length; v++) {
        __mmask16 m = (__mmask16)(sx_first_lanes(length - i) >> 16 * v);
        __m512 x = sx_f32x16_of_sixteen(_mm256_maskz_loadu_epi16(m, from + i + 16 * v), is_brain);
        _mm512_mask_storeu_ps(to + i + 16 * v, m, x);
        top[v] = _mm512_mask_max_ps(top[v], m, x, top[v]);
    }
    return sx_top_of_vector_f32(_mm512_max_ps(_mm512_max_ps(top[3], top[1]),
                                              _mm512_max_ps(top[2], top[0])));
}

SX_INLINE int64_t sx_narrow_part(const float *e, float shift, float a, int64_t length, int is_brain,
                                 int streams, uint16_t *to)
{
    __m512 by = _mm512_set1_ps(shift), factor = _mm512_set1_ps(a), zero = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 32 <= length; i += 32) {
        __m512 lower = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_loadu_ps(e + i), by), factor, zero);
        __m512 upper = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_loadu_ps(e + i + 16), by), factor, zero);
        __m512i both = sx_sixteen_of_f32x32(lower, upper, is_brain);
        if (streams)
            _mm512_stream_si512((__m512i *)(to + i), both);
        else
            _mm512_storeu_si512(to + i, both);
    }
    return i;
}

#elif defined(__AVX2__) && defined(__F16C__) && SX_HAS_EXP_BLOCK
#define SX_HAS_SIXTEEN_LANES 1

SX_INLINE __m256 sx_f32x8_of_sixteen(const uint16_t *from, int is_brain)
{
    __m128i h = _mm_loadu_si128((const __m128i *)from);
    return is_brain ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))
                    : _mm256_cvtph_ps(h);
}

/* Of numbers, no NaN: see sx_sixteen_of_f32x32 above. */
SX_INLINE __m256i sx_sixteen_of_f32x16(__m256 lower, __m256 upper, int is_brain)
{
    if (is_brain) {
        __m256i u = _mm256_castps_si256(lower), v = _mm256_castps_si256(upper);
        __m256i one = _mm256_set1_epi32(1), half = _mm256_set1_epi32(0x7fff);
        u = _mm256_add_epi32(_mm256_add_epi32(u, half),
                             _mm256_and_si256(_mm256_srli_epi32(u, 16), one));
        v = _mm256_add_epi32(_mm256_add_epi32(v, half),
                             _mm256_and_si256(_mm256_srli_epi32(v, 16), one));
        /* Halves of 128 bits are packed each for itself: put in order after. */
        return _mm256_permute4x64_epi64(
            _mm256_packus_epi32(_mm256_srli_epi32(u, 16), _mm256_srli_epi32(v, 16)), 0xd8);
    }
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm256_cvtps_ph(lower, _MM_FROUND_TO_NEAREST_INT)),
        _mm256_cvtps_ph(upper, _MM_FROUND_TO_NEAREST_INT), 1);
}

SX_INLINE float sx_widen_part(const uint16_t *from, int is_brain, int64_t length, float *to)
{
    __m256 low = _mm256_set1_ps(-INFINITY), top[4] = {low, low, low, low};
    float most;
    int64_t i = 0;
    int v;
    for (; i + 32 <= length; i += 32) {
        __builtin_prefetch((const char *)(from + i) + SX_SIXTEEN_AHEAD, 0, 3);
        for (v = 0; v < 4; v++) {
            __m256 x = sx_f32x8_of_sixteen(from + i + 8 * v, is_brain);
            _mm256_storeu_ps(to + i + 8 * v, x);
            top[v] = _mm256_max_ps(x, top[v]);
        }
    }
    most = sx_top_of_vector_f32(_mm256_max_ps(_mm256_max_ps(top[1], top[0]),
                                              _mm256_max_ps(top[3], top[2])));
    for (; i < length; i++) {
        to[i] = is_brain ? sx_f32_of_bf16(from[i]) : sx_f32_of_f16(from[i]);
        most = to[i] > most ? to[i] : most;
    }
    return most;
}

SX_INLINE int64_t sx_narrow_part(const float *e, float shift, float a, int64_t length, int is_brain,
                                 int streams, uint16_t *to)
{
    __m256 by = _mm256_set1_ps(shift), factor = _mm256_set1_ps(a), zero = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= length; i += 16) {
        __m256 lower = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_loadu_ps(e + i), by), factor, zero);
        __m256 upper = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_loadu_ps(e + i + 8), by), factor, zero);
        __m256i both = sx_sixteen_of_f32x16(lower, upper, is_brain);
        if (streams)
            _mm256_stream_si256((__m256i *)(to + i), both);
        else
            _mm256_storeu_si256((__m256i *)(to + i), both);
    }
    return i;
}
#endif

/* As float32; returns the largest, -INFINITY where there is none but NaN. */
static float sx_widen_and_top(const uint16_t *from, int is_brain, int64_t length, float *to)
{
#if defined(SX_HAS_SIXTEEN_LANES)
    return is_brain ? sx_widen_part(from, 1, length, to) : sx_widen_part(from, 0, length, to);
#else
    sx_widen(from, is_brain, length, to);
    return sx_top_f32(to, length);
#endif
}

/* e times a power of two, then times a, then + 0, as 16 bits; past the caches if `streams`. */
static void sx_scale_run_sixteen(const float *e, float shift, float a, int64_t length, int is_brain,
                                 int streams, uint16_t *to)
{
    float part[256];
    int64_t i = 0, n;
#if defined(SX_HAS_SIXTEEN_LANES)
    if (a != a) {
        i = 0;    /* a row of NaN: below */
    } else if (streams) {
        i = sx_before_line(to, 2, length);    /* fewer than 32 */
        sx_scale_run_f32(e, shift, a, i, part);
        sx_narrow(part, is_brain, i, to);
        i += is_brain ? sx_narrow_part(e + i, shift, a, length - i, 1, 1, to + i)
                      : sx_narrow_part(e + i, shift, a, length - i, 0, 1, to + i);
    } else {
        i = is_brain ? sx_narrow_part(e, shift, a, length, 1, 0, to)
                     : sx_narrow_part(e, shift, a, length, 0, 0, to);
    }
#else
    (void)streams;
#endif
    for (; i < length; i += n) {
        n = length - i < 256 ? length - i : 256;
        sx_scale_run_f32(e + i, shift, a, n, part);
        sx_narrow(part, is_brain, n, to + i);
    }
}

#endif
