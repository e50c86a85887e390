/* Prints the worst error of sx_power in ulp, beyond exponent / 32 of them, over random x in [0, 1] and
   exponents, against the C library's long double; and the largest |result| where x^exponent is below the normal numbers, over
   the smallest of those.

   Arguments: number of samples. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "elementary.h"

static uint64_t state = 20261126;

static double uniform(void)
{
    uint64_t x = state += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (double)((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

int main(int argc, char **argv)
{
    long samples = argc > 1 ? atol(argv[1]) : 0, i;
    double worst = 0.0, tiny = 0.0;
    for (i = 0; i < samples; i++) {
        /* Every size of x: of itself, of what it lacks to 1; small exponents and large ones. */
        double x = uniform(), exponent = 8.0 * uniform();
        switch (i % 5) {
        case 0: x = exp2(-1022.0 * x); break;
        case 1: x = 1.0 - exp2(-54.0 * x); break;
        case 2: exponent = exp2(20.0 * uniform() - 10.0); break;
        case 3: exponent = (double)(i % 9); break;
        }
        long double true_value = powl((long double)x, (long double)exponent);
        double value = sx_power(x, exponent);
        if (true_value >= DBL_MIN) {
            int place;
            frexpl(true_value, &place);
            double error = (double)(fabsl((long double)value - true_value) / exp2l(place - 53)) - exponent / 32.0;
            worst = error > worst || error != error ? error : worst;
        } else {
            tiny = fmax(tiny, fabs(value) / DBL_MIN);
        }
    }
    if (sx_power(0.0, 0.0) != 1.0 || sx_power(0.0, 2.0) != 0.0 || sx_power(1.0, 3.5) != 1.0
        || sx_power(0.5, 0.0) != 1.0)
        worst = INFINITY;
    printf("%.3f %.3f\n", worst, tiny);
    return 0;
}
