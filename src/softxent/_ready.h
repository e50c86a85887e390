/* What _ready.pyx does beside NumPy. */
#ifndef SOFTXENT_READY_H
#define SOFTXENT_READY_H

#include <stdint.h>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

/* _sums.tree_sum's additions: the upper half is added to the lower one until one value is left. Flags
   that they raise are taken back. */
static double sx_tree_sum(double *values, int64_t n)
{
#if defined(__SSE2__)
    unsigned int state = _mm_getcsr();
#endif
    int64_t i, half;
    while (n > 1) {
        half = (n + 1) / 2;
        for (i = 0; i < n - half; i++)
            values[i] += values[half + i];
        n = half;
    }
#if defined(__SSE2__)
    _mm_setcsr(state);
#endif
    return values[0];
}

#endif
