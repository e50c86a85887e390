/* Prints the worst error of sx_log1p_f32 in ulp over every STEP-th float32 of [2^-126, 1], against the
   C library's double.

   Arguments: step. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "elementary.h"

int main(int argc, char **argv)
{
    uint32_t step = argc > 1 ? (uint32_t)atol(argv[1]) : 1, u;
    double worst = 0.0;
    for (u = 0x00800000u; u <= 0x3f800000u; u += step) {
        float x = sx_f32_of_bits(u);
        double true_value = log1p((double)x), error;
        int place;
        frexp(true_value, &place);
        error = fabs((double)sx_log1p_f32(x) - true_value) / ldexp(1.0, place - 24);
        worst = error > worst || error != error ? error : worst;
    }
    printf("%.3f\n", worst);
    return 0;
}
