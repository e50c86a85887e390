/* Worst errors of cap tanh(x / cap) in ulp and of its slope in eps, float32 then float64, against
   long double: four numbers. The slope's error is counted beyond what one ulp of x moves it by.
   Then the largest error, in ulp, of exp(x / temperature) in float32 and float64. */
#include <stdio.h>
#include <stdlib.h>

#include "elementary.h"

static double ulp_of(long double true_value, int digits, int least)
{
    int exponent;
    frexpl(true_value, &exponent);
    exponent = exponent - digits < least ? least : exponent - digits;
    return ldexp(1.0, exponent);
}

static uint64_t state = 88172645463325252u;

static double uniform(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) * 0x1p-53;
}

int main(int argc, char **argv)
{
    long samples = argc > 1 ? atol(argv[1]) : 1000000, i;
    double worst[6] = {0}, caps[] = {30.0, 50.0, 1.0, 0.3, 7.7, 1e-3, 12345.678, 0.1, 15.0};
    double temperatures[] = {0.7, 2.0, 1.5, 0.01, 37.3, 1e-3, 1234.5, 3.0, 0.1};
    for (i = 0; i < samples; i++) {
        double cap = caps[i % 9], tau = temperatures[i % 9], slope, low, error, z;
        float slope_f32, low_f32;
        sx_scale half, scale;
        sx_power_f32 p32 = sx_power_of_f32(0.0);
        sx_power_f64 p64 = sx_power_of_f64(0.0);
        /* Of any size, most between a hundredth and forty caps. */
        double y = exp((uniform() - 0.6) * (i % 5 ? 9.0 : 60.0));
        double x = (uniform() < 0.5 ? -1.0 : 1.0) * y * cap;
        float x_f32 = (float)x, got_f32;
        long double wanted, c;
        if (i % 3 == 0)
            cap *= 0.5 + uniform();
        sx_scale_by(&half, 0.5 * cap);
        wanted = cap * tanhl((long double)x_f32 / cap);
        got_f32 = sx_softcap_f32(x_f32, cap, &half, &slope_f32);
        if (fabsl(wanted) >= 0x1p-126L) {
            error = (double)(fabsl(got_f32 - wanted) / ulp_of(wanted, 24, -149));
            worst[0] = error > worst[0] ? error : worst[0];
        }
        c = 1.0L / coshl((long double)x_f32 / cap);
        if (c * c > 0x1p-123L) {
            error = (double)(fabsl(slope_f32 / (c * c) - 1.0L) / 0x1p-23L) - 2.0 * fabs(x_f32 / cap);
            worst[1] = error > worst[1] ? error : worst[1];
        }
        wanted = cap * tanhl((long double)x / cap);
        z = sx_softcap_f64(x, cap, &half, &slope);
        error = (double)(fabsl(z - wanted) / ulp_of(wanted, 53, -1074));
        worst[2] = error > worst[2] ? error : worst[2];
        c = 1.0L / coshl((long double)x / cap);
        if (c * c > 0x1p-1019L) {
            error = (double)(fabsl(slope / (c * c) - 1.0L) / 0x1p-52L) - 2.0 * fabs(x / cap);
            worst[3] = error > worst[3] ? error : worst[3];
        }
        /* exp of logits down to where it vanishes, reference power 0. */
        sx_scale_by(&scale, tau);
        x = -tau * 708.0 * uniform() * (i % 2 ? 1.0 : uniform());
        wanted = expl((long double)x / tau);
        low = p64.low * tau;
        error = (double)(fabsl(sx_exp_scaled_f64(x, p64.k, low, &scale) - wanted)
                         / ulp_of(wanted, 53, -1074));
        worst[5] = error > worst[5] ? error : worst[5];
        x_f32 = (float)(-tau * 87.0 * uniform() * (i % 2 ? 1.0 : uniform()));
        wanted = expl((long double)x_f32 / tau);
        low_f32 = (float)(p32.low * tau);
        error = (double)(fabsl(sx_exp_scaled_f32(x_f32, p32.k, low_f32, &scale) - wanted)
                         / ulp_of(wanted, 24, -149));
        worst[4] = error > worst[4] ? error : worst[4];
    }
    printf("%.4f %.4f %.4f %.4f %.4f %.4f\n", worst[0], worst[1], worst[2], worst[3], worst[4],
           worst[5]);
    return 0;
}
