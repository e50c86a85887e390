/* float16 and bfloat16: to float32, which is exact, and from it, rounded to nearest, ties to even.

   By integer arithmetic, or the processor's F16C instructions, so that subnormal ones survive while
   a walk flushes float32's. */
#ifndef SOFTXENT_SIXTEEN_H
#define SOFTXENT_SIXTEEN_H

#include "elementary.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

SX_INLINE float sx_f32_of_bf16(uint16_t h) { return sx_f32_of_bits((uint32_t)h << 16); }

SX_INLINE uint16_t sx_bf16_of_f32(float x)
{
    uint32_t u = sx_bits_of_f32(x), size = u & 0x7fffffffu;
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (uint16_t)(size > 0x7f800000u ? (u >> 16) | 0x40u : rounded);    /* a NaN stays one */
}

SX_INLINE float sx_f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, size = h & 0x7fffu;
    float subnormal = (float)size * 0x1p-24f;
    uint32_t u = (size << 13) + (112u << 23);             /* the exponent's bias, 127 for 15 */
    u = size >= 0x7c00u ? (size << 13) | 0x7f800000u : u; /* inf, NaN */
    u = size < 0x0400u ? sx_bits_of_f32(subnormal) : u;
    return sx_f32_of_bits(u | sign);
}

SX_INLINE uint16_t sx_f16_of_f32(float x)
{
    uint32_t u = sx_bits_of_f32(x), sign = (u >> 16) & 0x8000u, size = u & 0x7fffffffu, h;
    /* Below 2^-14: the sum with 1/2 has float16's last place, 2^-24, as its own. */
    float shifted = sx_f32_of_bits(size) + 0.5f;
    h = (size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
    h = size >= 0x477ff000u ? 0x7c00u : h;                /* 65520 and up */
    h = size < 0x38800000u ? sx_bits_of_f32(shifted) - 0x3f000000u : h;
    h = size > 0x7f800000u ? 0x7e00u : h;
    return (uint16_t)(h | sign);
}

SX_INLINE void sx_widen(const uint16_t *from, int is_brain, int64_t length, float *to)
{
    int64_t i = 0;
    if (is_brain) {
        for (; i < length; i++)
            to[i] = sx_f32_of_bf16(from[i]);
        return;
    }
#if defined(__F16C__)
    for (; i + 8 <= length; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < length; i++)
        to[i] = sx_f32_of_f16(from[i]);
}

SX_INLINE void sx_narrow(const float *from, int is_brain, int64_t length, uint16_t *to)
{
    int64_t i = 0;
    if (is_brain) {
        for (; i < length; i++)
            to[i] = sx_bf16_of_f32(from[i]);
        return;
    }
#if defined(__F16C__)
    for (; i + 8 <= length; i += 8)
        _mm_storeu_si128((__m128i *)(to + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < length; i++)
        to[i] = sx_f16_of_f32(from[i]);
}

#endif
