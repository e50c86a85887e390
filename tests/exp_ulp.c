/* Worst error of the walks' exp, by the level that this is compiled for; driven by test_exp.py.

   exp_ulp STEP SAMPLES: every STEP-th float32 in [-104, -0] against long double's exp, then SAMPLES
   float64 in [-745, 0]. Prints: worst f32 ulp, f32 results that are not +0 below the smallest
   normal, worst f32 ulp for references up to the limit, worst f64 ulp, f64 not +0 below. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "elementary.h"

static uint64_t state = 0x9e3779b97f4a7c15u;

static double uniform(void) /* xorshift64*, [0, 1) */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (double)((state * 0x2545f4914f6cdd1du) >> 11) * 0x1p-53;
}

static double ulps(long double got, long double want, int digits)
{
    int exponent;
    frexpl(want, &exponent);
    return (double)(fabsl(got - want) / ldexpl(1.0L, exponent - digits));
}

int main(int argc, char **argv)
{
    uint32_t step = (uint32_t)atol(argv[argc - 2]), bits;
    long samples = atol(argv[argc - 1]), i, left_f32 = 0, left_f64 = 0;
    double worst_f32 = 0, worst_far = 0, worst_f64 = 0, u;
    sx_power_f32 one = sx_power_of_f32(0.0);
    sx_power_f64 one_f64 = sx_power_of_f64(0.0);
    sx_float_state float_state = sx_float_enter();

    for (bits = 0x80000000u; bits <= 0xc2d00000u; bits += step) {
        float z = sx_f32_of_bits(bits), e;
        long double want = expl((long double)z);
        sx_float_subnormals(0);
        e = sx_exp_f32(z, one.k, one.low);
        sx_float_subnormals(1);
        if (want < 0x1p-126L) {
            left_f32 += e != 0.0f && want < 0x1.fffffep-127L;
        } else if ((u = ulps(e, want, 24)) > worst_f32) {
            worst_f32 = u;
        }
    }
    for (i = 0; i < samples; i++) {
        double z = -745.0 * uniform() * (i % 2 ? 1.0 : 0.01), e;
        long double want = expl((long double)z);
        sx_float_subnormals(0);
        e = sx_exp_f64(z, one_f64.k, one_f64.low);
        sx_float_subnormals(1);
        if (want < 0x1p-1022L)
            left_f64 += e != 0.0;
        else if ((u = ulps(e, want, 53)) > worst_f64)
            worst_f64 = u;
    }
    for (i = 0; i < samples / 4; i++) {
        double top = (uniform() - 0.5) * 2.0 * SX_LIMIT_F32;
        double n = nearbyint(top * SX_LOG2E) - 1.0;
        sx_power_f32 power = sx_power_of_f32(n);
        float z = (float)(top - 30.0 * uniform());
        /* n ln2 to 2^-64 of itself: 2^-44 at the limit, 2^-20 float32 ulp. */
        long double want = expl((long double)z - n * 0x1.62e42fefa39ef35793c7673007e6p-1L);
        if ((u = ulps(sx_exp_f32(z, power.k, power.low), want, 24)) > worst_far)
            worst_far = u;
    }
    sx_float_leave(float_state);
    printf("%.4f %ld %.4f %.4f %ld\n", worst_f32, left_f32, worst_far, worst_f64, left_f64);
    return 0;
}
