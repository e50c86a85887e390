/* Prints the worst errors of sx_inverse_f32, over every STEP-th float32 of [1, 2], and of
   sx_inverse_f64 over SAMPLES numbers there, in ulp, against long double; and how many of 1 and 2
   are not exact.

   Arguments: step, samples. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "elementary.h"

static double ulps(double got, long double exact, int bits)
{
    int place;
    frexpl(exact, &place);
    return (double)(fabsl((long double)got - exact) / ldexpl(1.0L, place - bits));
}

int main(int argc, char **argv)
{
    uint32_t step = argc > 1 ? (uint32_t)atol(argv[1]) : 1, u;
    long samples = argc > 2 ? atol(argv[2]) : 1000000, i;
    uint64_t state = 20261126;
    double f32 = 0.0, f64 = 0.0, error;
    int inexact = (sx_inverse_f32(1.0f) != 1.0f) + (sx_inverse_f32(2.0f) != 0.5f)
        + (sx_inverse_f64(1.0) != 1.0) + (sx_inverse_f64(2.0) != 0.5);
    for (u = 0x3f800000u; u <= 0x40000000u; u += step) {
        float d = sx_f32_of_bits(u);
        error = ulps((double)sx_inverse_f32(d), 1.0L / (long double)d, 24);
        f32 = error > f32 || error != error ? error : f32;
    }
    for (i = 0; i < samples; i++) {
        double d;
        state = state * 6364136223846793005u + 1442695040888963407u;    /* Knuth's MMIX */
        d = 1.0 + (double)(state >> 12) * 0x1p-52;
        error = ulps(sx_inverse_f64(d), 1.0L / (long double)d, 53);
        f64 = error > f64 || error != error ? error : f64;
    }
    printf("%.3f %.3f %d\n", f32, f64, inexact);
    return 0;
}
