/* Loops that do nothing but move memory: what the machine can do, for `softxent bench`. Addresses are
   64-byte aligned, lengths whole lines. */
#ifndef SOFTXENT_MEMORY_H
#define SOFTXENT_MEMORY_H

#include <stdint.h>

#include "_control.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { SX_READ, SX_UPDATE, SX_COPY, SX_STREAM };

/* Lines [lo, hi) of 64 bytes. */
typedef struct {
    int64_t what;
    float *from, *to;
    float sink[64];    /* what was read, lest the reads be left out */
} sx_memory;

static int64_t sx_memory_run(void *args, int64_t lo, int64_t hi, sx_control *control)
{
    sx_memory *m = (sx_memory *)args;
    const float *from = m->from + 16 * lo;
    float *to = m->what == SX_UPDATE ? m->from + 16 * lo : m->to + 16 * lo;
    int64_t i, n = 16 * (hi - lo);
    (void)control;
#if defined(__SSE2__)
    if (m->what == SX_READ) {
        __m128 a = _mm_setzero_ps(), b = a, c = a, d = a;
        for (i = 0; i < n; i += 16) {
            a = _mm_add_ps(a, _mm_load_ps(from + i));
            b = _mm_add_ps(b, _mm_load_ps(from + i + 4));
            c = _mm_add_ps(c, _mm_load_ps(from + i + 8));
            d = _mm_add_ps(d, _mm_load_ps(from + i + 12));
        }
        _mm_storeu_ps(m->sink + lo % 13, _mm_add_ps(_mm_add_ps(a, b), _mm_add_ps(c, d)));
    } else if (m->what == SX_STREAM) {
        for (i = 0; i < n; i += 4)
            _mm_stream_ps(to + i, _mm_load_ps(from + i));
        _mm_sfence();
    } else {
        __m128 unit = _mm_set1_ps(1.0f);
        for (i = 0; i < n; i += 4)
            _mm_store_ps(to + i, _mm_mul_ps(_mm_load_ps(from + i), unit));
    }
#else
    if (m->what == SX_READ) {
        float sum[16] = {0};
        int64_t j;
        for (i = 0; i < n; i += 16)
            for (j = 0; j < 16; j++)
                sum[j] += from[i + j];
        for (j = 0; j < 16; j++)
            m->sink[j] = sum[j];
    } else {
        for (i = 0; i < n; i++)
            to[i] = from[i] * 1.0f;
    }
#endif
    return 0;
}

#endif
