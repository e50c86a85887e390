/* The arithmetic of the compiled walks: exp by pieces, log and log1p, loads of foreign elements.

   float32 logits: exp in float32, sums and heads in float64. float64 logits: all in float64.
   NaN goes through every function here except sx_log (see there). -inf gives exp +0. +inf never
   gets here: such rows are served by the slow lane.

   exp(z) * 2^-n_ref, with n_ref an integer (the row's or the block's reference power), is

       t = fma(z, log2 e, K)            K = magic + bias - n_ref: t - K is n, z in octaves, rounded
       n = t - K                        exact
       r = z - n ln2                    in two parts; |r| <= 0.3605 (the rounding of log2 e included)
       p = 1 + r + r^2 q(r)             0.7 <= p <= 1.44
       e = p * 2^(n - n_ref)            the power is read from the low bits of t

   z is first raised to `low`, where n - n_ref is -bias and the power's bits are those of +0: that
   is how small terms and -inf become exactly +0, without a compare. A product below the smallest
   normal is flushed by the processor (sx_float_enter). A NaN takes no part in the max (its
   compare is false), so it stays NaN in t, r, p and e, whatever its payload does to the power.

   The bits of a result depend on z and n_ref alone. Since n and r do not know n_ref, changing the
   reference is an exact shift.

   Without FMA (level v2) ln2 is split in three parts short enough for n times the first two to be
   exact, which holds for |z| <= SX_LIMIT only; the bits differ from those of v3 and v4.

   Constants: tests/derive_constants.py prints them again, a test compares. */
#ifndef SOFTXENT_ELEMENTARY_H
#define SOFTXENT_ELEMENTARY_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define SX_INLINE static inline __attribute__((always_inline))
#define SX_NOINLINE __attribute__((noinline))
#else
#define SX_INLINE static inline
#define SX_NOINLINE
#endif

/* At a line of memory. */
#if defined(_MSC_VER)
#define SX_ALIGNED __declspec(align(64))
#else
#define SX_ALIGNED __attribute__((aligned(64)))
#endif

/* A CPU whose compiler flags promise FMA: x86-64-v3 and up, aarch64. */
#if defined(__GNUC__) && (defined(__FMA__) || defined(__aarch64__))
#define SX_HAS_FMA 1
#define sx_fma_f32 __builtin_fmaf
#define sx_fma_f64 __builtin_fma
#else
#define SX_HAS_FMA 0
SX_INLINE float sx_fma_f32(float a, float b, float c) { return a * b + c; }
SX_INLINE double sx_fma_f64(double a, double b, double c) { return a * b + c; }
#endif

SX_INLINE float sx_f32_of_bits(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
SX_INLINE uint32_t sx_bits_of_f32(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
SX_INLINE double sx_f64_of_bits(uint64_t u) { double x; memcpy(&x, &u, 8); return x; }
SX_INLINE uint64_t sx_bits_of_f64(double x) { uint64_t u; memcpy(&u, &x, 8); return u; }

/* ---- constants ------------------------------------------------------------------------------ */

#define SX_LOG2E 0x1.71547652b82fep+0
/* ln2 to 53 bits, and what is missing. */
#define SX_LN2 0x1.62e42fefa39efp-1
#define SX_LN2_REST 0x1.abc9e3b39803fp-56
/* ln2 to 32 bits (times an integer below 2^21: exact), and the rest. */
#define SX_LN2_32 0x1.62e42feep-1
#define SX_LN2_32_REST 0x1.a39ef35793c76p-33

/* What n times ln2 is made of in exp. float32: 24 bits and the rest; 11, the next 11, the rest.
   float64: SX_LN2; 32 bits (above), the next 21; SX_LN2_REST. */
#define SX_LN2_24_F32 0x1.62e430p-1f
#define SX_LN2_24_REST_F32 -0x1.05c610p-29f
#define SX_LN2_11_F32 0x1.62cp-1f
#define SX_LN2_NEXT_11_F32 0x1.214p-12f
#define SX_LN2_22_REST_F32 0x1.fbe8e8p-23f
#define SX_LN2_NEXT_21 0x1.a39efp-33

#define SX_SQRT2 0x1.6a09e667f3bcdp+0
#define SX_SQRT2_LESS_1 0x1.a827999fcef32p-2

/* 1.5 * 2^23 and 1.5 * 2^52: adding one of them rounds to an integer, kept in the low bits. */
#define SX_MAGIC_F32 0x1.8p+23
#define SX_MAGIC_F64 0x1.8p+52
#define SX_BIAS_F32 127
#define SX_BIAS_F64 1023

/* Largest |max| of a row that the pieces serve; beyond it the slow lane does. With FMA, n times
   ln2's first part is exact in any case, and the limit keeps |r| within the polynomials' interval
   (z times the rounding of log2 e: 2^20 * 1.3e-8 octaves; 2^40 * 1.4e-17). Without, n (13 bits)
   times a part of ln2 (11 and 32 bits) must be exact. */
#if SX_HAS_FMA
#define SX_LIMIT_F32 0x1p20
#define SX_LIMIT_F64 0x1p40
#else
#define SX_LIMIT_F32 4096.0
#define SX_LIMIT_F64 4096.0
#endif
/* A block whose maximum lies this far below -SX_LIMIT cannot reach a row that is served here:
   exp of the distance is 0 in either precision (exp(-745.2) is the least float64). */
#define SX_OUT_OF_REACH 1024.0

/* exp(r) = 1 + r + r^2 q(r) on |r| <= 0.3605, minimax: relative error 2^-27.9. */
#define SX_Q0_F32 0x1.fffffap-2f
#define SX_Q1_F32 0x1.555470p-3f
#define SX_Q2_F32 0x1.55598ep-5f
#define SX_Q3_F32 0x1.125214p-7f
#define SX_Q4_F32 0x1.69fc3ap-10f
/* The same on |r| <= 0.3468: relative error 2^-56.8, coefficients rounded. */
#define SX_Q0_F64 0x1.0000000000009p-1
#define SX_Q1_F64 0x1.5555555555558p-3
#define SX_Q2_F64 0x1.5555555550387p-5
#define SX_Q3_F64 0x1.111111110f7e7p-7
#define SX_Q4_F64 0x1.6c16c18617fa4p-10
#define SX_Q5_F64 0x1.a01a01b019bfep-13
#define SX_Q6_F64 0x1.a01993751a68cp-16
#define SX_Q7_F64 0x1.71ddf68d91b88p-19
#define SX_Q8_F64 0x1.28b44b9651a1fp-22
#define SX_Q9_F64 0x1.af63731e21625p-26

/* log(1 + f) = 2s + s^3 R(s^2) on |s| <= 0.1716, Chebyshev: relative error 2^-57.6. */
#define SX_R0 0x1.5555555555558p-1
#define SX_R1 0x1.99999999952ccp-2
#define SX_R2 0x1.2492492df3ba9p-2
#define SX_R3 0x1.c71c62e26208bp-3
#define SX_R4 0x1.7462b58e46ebep-3
#define SX_R5 0x1.39fe42e9740a7p-3
#define SX_R6 0x1.2b59b713616c9p-3

/* tanh(y) = y + y w (-1/3 + w R(w)), w = y^2 <= 0.81, Chebyshev: relative error 2^-59.9; the short
   one 2^-33.1. */
#define SX_THIRD -0x1.5555555555555p-2
#define SX_THIRD_REST -0x1.5555555555555p-56
#define SX_TANH_0 0x1.1111111111111p-3
#define SX_TANH_1 -0x1.ba1ba1ba1b9a2p-5
#define SX_TANH_2 0x1.664f4882bb912p-6
#define SX_TANH_3 -0x1.226e355cd9bddp-7
#define SX_TANH_4 0x1.d6d3d0685fa9cp-9
#define SX_TANH_5 -0x1.7da35954f10b9p-10
#define SX_TANH_6 0x1.35577cdd2e3acp-11
#define SX_TANH_7 -0x1.f56fafe4f237cp-13
#define SX_TANH_8 0x1.9616d52da0164p-14
#define SX_TANH_9 -0x1.474b580171f39p-15
#define SX_TANH_10 0x1.024cc2ecbbd0cp-16
#define SX_TANH_11 -0x1.7d5c4b2449ff0p-18
#define SX_TANH_12 0x1.df24fb17feea2p-20
#define SX_TANH_13 -0x1.b26abbeb78e17p-22
#define SX_TANH_14 0x1.96cc3f6f32f98p-25
#define SX_TANH_SHORT_0 0x1.1111110b40410p-3
#define SX_TANH_SHORT_1 -0x1.ba1b93550d7e4p-5
#define SX_TANH_SHORT_2 0x1.664c547335b28p-6
#define SX_TANH_SHORT_3 -0x1.2232624a10f36p-7
#define SX_TANH_SHORT_4 0x1.d218cb9471f17p-9
#define SX_TANH_SHORT_5 -0x1.62e25282f0cf3p-10
#define SX_TANH_SHORT_6 0x1.b991f210f4801p-12
#define SX_TANH_SHORT_7 -0x1.357342a222c75p-14
/* log(1 + x) / x on [0, 1], float32: within an eighth of an ulp. */
#define SX_LOG1P_0_F32 0x1.000000p+0f
#define SX_LOG1P_1_F32 -0x1.ffffb8p-2f
#define SX_LOG1P_2_F32 0x1.554bd6p-2f
#define SX_LOG1P_3_F32 -0x1.ff0254p-3f
#define SX_LOG1P_4_F32 0x1.92b430p-3f
#define SX_LOG1P_5_F32 -0x1.38b908p-3f
#define SX_LOG1P_6_F32 0x1.afdde8p-4f
#define SX_LOG1P_7_F32 -0x1.cdd008p-5f
#define SX_LOG1P_8_F32 0x1.402f4cp-6f
#define SX_LOG1P_9_F32 -0x1.a04acap-9f
#define SX_INVERSE_0_F32 0x1.6a09c2p+1f
#define SX_INVERSE_1_F32 -0x1.783c56p+1f
#define SX_INVERSE_2_F32 0x1.54bde4p+0f
#define SX_INVERSE_3_F32 -0x1.c65286p-3f
#define SX_INVERSE_0_F64 0x1.6a09c2c5e0f16p+1
#define SX_INVERSE_1_F64 -0x1.783c56f5cba58p+1
#define SX_INVERSE_2_F64 0x1.54bde47e00e33p+0
#define SX_INVERSE_3_F64 -0x1.c65285fd56843p-3
#define SX_TANH_UP_TO 0.9

/* ---- exp ------------------------------------------------------------------------------------ */

/* What exp needs of a reference power. */
typedef struct { float k, low; } sx_power_f32;
typedef struct { double k, low; } sx_power_f64;

SX_INLINE sx_power_f32 sx_power_of_f32(double n_ref)
{
    sx_power_f32 power;
    power.k = (float)(SX_MAGIC_F32 + SX_BIAS_F32 - n_ref);
    power.low = (float)((n_ref - SX_BIAS_F32) * SX_LN2);
    return power;
}

SX_INLINE sx_power_f64 sx_power_of_f64(double n_ref)
{
    sx_power_f64 power;
    power.k = SX_MAGIC_F64 + SX_BIAS_F64 - n_ref;
    power.low = (n_ref - SX_BIAS_F64) * SX_LN2;
    return power;
}

/* exp of what the reduction left, times the power in the low bits of t: r, or without FMA r in two
   parts, exact - last, whose rounding is left out of the linear term. */
SX_INLINE float sx_exp_rest_f32(float r, float exact, float last, float t)
{
    float q, p;
    q = sx_fma_f32(SX_Q4_F32, r, SX_Q3_F32);
    q = sx_fma_f32(q, r, SX_Q2_F32);
    q = sx_fma_f32(q, r, SX_Q1_F32);
    q = sx_fma_f32(q, r, SX_Q0_F32);
#if SX_HAS_FMA
    (void)exact, (void)last;
    p = sx_fma_f32(sx_fma_f32(q, r, 1.0f), r, 1.0f);
#else
    p = 1.0f + (exact + (r * r * q - last));
#endif
    return p * sx_f32_of_bits(sx_bits_of_f32(t) << 23);
}

/* q of exp(r) = 1 + r + r^2 q. */
SX_INLINE double sx_exp_q_f64(double r)
{
    double q;
    q = sx_fma_f64(SX_Q9_F64, r, SX_Q8_F64);
    q = sx_fma_f64(q, r, SX_Q7_F64);
    q = sx_fma_f64(q, r, SX_Q6_F64);
    q = sx_fma_f64(q, r, SX_Q5_F64);
    q = sx_fma_f64(q, r, SX_Q4_F64);
    q = sx_fma_f64(q, r, SX_Q3_F64);
    q = sx_fma_f64(q, r, SX_Q2_F64);
    q = sx_fma_f64(q, r, SX_Q1_F64);
    q = sx_fma_f64(q, r, SX_Q0_F64);
    return q;
}

SX_INLINE double sx_exp_rest_f64(double r, double exact, double last, double t)
{
    double q, p;
    q = sx_exp_q_f64(r);
#if SX_HAS_FMA
    (void)exact, (void)last;
    p = sx_fma_f64(sx_fma_f64(q, r, 1.0), r, 1.0);
#else
    p = 1.0 + (exact + (r * r * q - last));
#endif
    return p * sx_f64_of_bits(sx_bits_of_f64(t) << 52);
}

/* The nearest whole number to z by, and the power in the low bits of t. A half is rounded to the even
   number: by k, which may be odd, the same z would have another number beside another power. With FMA
   no z has a half by log2 e below 2^22, for its last bit is set (of a double's the last but one). */
SX_INLINE float sx_whole_f32(float z, float by, float k, float *t)
{
    float n = sx_fma_f32(z, by, (float)SX_MAGIC_F32) - (float)SX_MAGIC_F32;
    *t = n + k;
    return n;
}

SX_INLINE double sx_whole_f64(double z, double by, double k, double *t)
{
    double n = sx_fma_f64(z, by, SX_MAGIC_F64) - SX_MAGIC_F64;
    *t = n + k;
    return n;
}

/* <= 1 ulp (measured: tests/test_exp.py) where the result is normal, else +0. */
SX_INLINE float sx_exp_f32(float z, float k, float low)
{
    float t, n, r, exact = 0.0f, last = 0.0f;
    z = low > z ? low : z;
#if SX_HAS_FMA
    t = sx_fma_f32(z, (float)SX_LOG2E, k);
    n = t - k;
    r = sx_fma_f32(n, -SX_LN2_24_F32, z);      /* an exact difference */
    r = sx_fma_f32(n, -SX_LN2_24_REST_F32, r);
#else
    n = sx_whole_f32(z, (float)SX_LOG2E, k, &t);
    exact = (z - n * SX_LN2_11_F32) - n * SX_LN2_NEXT_11_F32;
    last = n * SX_LN2_22_REST_F32;
    r = exact - last;
#endif
    return sx_exp_rest_f32(r, exact, last, t);
}

SX_INLINE double sx_exp_f64(double z, double k, double low)
{
    double t, n, r, exact = 0.0, last = 0.0;
    z = low > z ? low : z;
#if SX_HAS_FMA
    t = sx_fma_f64(z, SX_LOG2E, k);
    n = t - k;
    r = sx_fma_f64(n, -SX_LN2, z);              /* an exact difference */
    r = sx_fma_f64(n, -SX_LN2_REST, r);
#else
    n = sx_whole_f64(z, SX_LOG2E, k, &t);
    exact = (z - n * SX_LN2_32) - n * SX_LN2_NEXT_21;
    last = n * SX_LN2_REST;
    r = exact - last;
#endif
    return sx_exp_rest_f64(r, exact, last, t);
}

/* ---- exp(x / temperature) -------------------------------------------------------------------- */

/* A temperature, as exp needs it. x / temperature is never formed: its rounding alone would cost
   exp |z| / 2 eps. The reduction is done on x, in units of the temperature: n times temperature ln2
   is subtracted in parts, and what is left, within half of that, is divided.

   The parts are ln2's: one number and its rest with FMA; without, short enough for n (13 bits)
   times the first two to be exact. */
typedef struct {
    double temperature, inverse;
    double octaves, first, second, last;     /* log2 e / temperature; temperature ln2 in parts */
    float inverse_f32, octaves_f32, first_f32, second_f32, last_f32;
} sx_scale;

/* No temperature. */
typedef struct { char unused; } sx_unit;

/* a b - p, p = a b rounded: what the rounding took. */
SX_INLINE double sx_product_rest(double a, double b, double p)
{
#if SX_HAS_FMA
    return sx_fma_f64(a, b, -p);
#else
    return fma(a, b, -p);    /* the C library's: exact, and slow where the processor lacks it */
#endif
}

SX_INLINE double sx_cut_f64(double x, int bits)
{
    return sx_f64_of_bits(sx_bits_of_f64(x) & ~(((uint64_t)1 << (53 - bits)) - 1));
}

SX_INLINE void sx_scale_by(sx_scale *scale, double temperature)
{
    double high = temperature * SX_LN2;
    double rest = fma(temperature, SX_LN2, -high) + temperature * SX_LN2_REST;
    scale->temperature = temperature;
    scale->inverse = 1.0 / temperature;
    scale->octaves = SX_LOG2E / temperature;
#if SX_HAS_FMA
    scale->first = high;
    scale->second = 0.0;
    scale->last = rest;
    scale->first_f32 = (float)high;
    scale->second_f32 = 0.0f;
    scale->last_f32 = (float)((high - scale->first_f32) + rest);
#else
    scale->first = sx_cut_f64(high, 32);
    scale->second = high - scale->first;
    scale->last = rest;
    scale->first_f32 = (float)sx_cut_f64(high, 11);
    scale->second_f32 = (float)sx_cut_f64(high - scale->first_f32, 11);
    scale->last_f32 = (float)((high - scale->first_f32) - scale->second_f32);
#endif
    scale->inverse_f32 = (float)scale->inverse;
    scale->octaves_f32 = (float)scale->octaves;
}

SX_INLINE float sx_exp_scaled_f32(float x, float k, float low, const sx_scale *scale)
{
    float t, n, r, exact = 0.0f, last = 0.0f;
    x = low > x ? low : x;
    n = sx_whole_f32(x, scale->octaves_f32, k, &t);
#if SX_HAS_FMA
    r = sx_fma_f32(n, -scale->first_f32, x);
    r = sx_fma_f32(n, -scale->last_f32, r) * scale->inverse_f32;
#else
    exact = ((x - n * scale->first_f32) - n * scale->second_f32) * scale->inverse_f32;
    last = n * scale->last_f32 * scale->inverse_f32;
    r = exact - last;
#endif
    return sx_exp_rest_f32(r, exact, last, t);
}

SX_INLINE double sx_exp_scaled_f64(double x, double k, double low, const sx_scale *scale)
{
    double t, n, r, exact = 0.0, last = 0.0;
    x = low > x ? low : x;
    n = sx_whole_f64(x, scale->octaves, k, &t);
#if SX_HAS_FMA
    r = sx_fma_f64(n, -scale->first, x);
    r = sx_fma_f64(n, -scale->last, r) * scale->inverse;
#else
    exact = ((x - n * scale->first) - n * scale->second) * scale->inverse;
    last = n * scale->last * scale->inverse;
    r = exact - last;
#endif
    return sx_exp_rest_f64(r, exact, last, t);
}

/* ---- softcap --------------------------------------------------------------------------------- */

/* cap tanh(x / cap), and its derivative 4E / (1 + E)^2 with E = exp(-2|x| / cap). -inf, +inf and
   NaN stay as they are: a class that was excluded stays so, derivative 1. `half` is the scale of
   temperature cap / 2. Within 1 ulp (measured: tests/test_exp.py): one rounding, of

       x + x w (-1/3 + w R(w)),  w = (x / cap)^2      up to x / cap = 0.9
       cap - cap 2E / (1 + E)                         beyond

   the corrections, up to 0.4 of the sum, carried a little further than float64. */
SX_INLINE double sx_softcap_f64(double x, double cap, const sx_scale *half, double *slope)
{
    double size = fabs(x), per_cap = 0.5 * half->inverse, k, low, t, n, r, s, e, e_low, q, q_low, sum,
           sum_low, per_sum, y, y_low, w, w_low, p, p_low, c, near_0, beyond;
    sx_power_f64 power = sx_power_of_f64(0.0);
    k = power.k;
    low = power.low * half->temperature;
    /* E = 1 + s, times a power of two: exp with its last addition in two parts. */
    t = -size;
    t = low > t ? low : t;
    r = t;
    t = sx_fma_f64(t, half->octaves, k);
    n = t - k;
#if SX_HAS_FMA
    r = sx_fma_f64(n, -half->first, r);
    r = sx_fma_f64(n, -half->last, r) * half->inverse;
#else
    r = (((r - n * half->first) - n * half->second) - n * half->last) * half->inverse;
#endif
    q = sx_exp_q_f64(r);
    s = sx_fma_f64(q * r, r, r);
    p = sx_f64_of_bits(sx_bits_of_f64(t) << 52);
    e = 1.0 + s;
    e_low = ((1.0 - e) + s) * p;
    e = e * p;
    /* 2E / (1 + E), the division's remainder taken along. */
    sum = 1.0 + e;
    sum_low = ((1.0 - sum) + e) + e_low;
    per_sum = 1.0 / sum;
    q = 2.0 * e * per_sum;
    q_low = q * sum;
    q_low = ((2.0 * e - q_low) - sx_product_rest(q, sum, q_low) + (2.0 * e_low - q * sum_low))
            * per_sum;
    c = cap * q;
    beyond = cap - c;
    c = ((cap - beyond) - c) - sx_product_rest(cap, q, c) - cap * q_low;
    beyond += c;

    y = size * per_cap;
    c = y * cap;
    y_low = ((size - c) - sx_product_rest(y, cap, c)) * per_cap;
    w = y * y;
    w_low = sx_product_rest(y, y, w) + 2.0 * y * y_low;
    q = SX_TANH_14;
    q = sx_fma_f64(q, w, SX_TANH_13);
    q = sx_fma_f64(q, w, SX_TANH_12);
    q = sx_fma_f64(q, w, SX_TANH_11);
    q = sx_fma_f64(q, w, SX_TANH_10);
    q = sx_fma_f64(q, w, SX_TANH_9);
    q = sx_fma_f64(q, w, SX_TANH_8);
    q = sx_fma_f64(q, w, SX_TANH_7);
    q = sx_fma_f64(q, w, SX_TANH_6);
    q = sx_fma_f64(q, w, SX_TANH_5);
    q = sx_fma_f64(q, w, SX_TANH_4);
    q = sx_fma_f64(q, w, SX_TANH_3);
    q = sx_fma_f64(q, w, SX_TANH_2);
    q = sx_fma_f64(q, w, SX_TANH_1);
    q = sx_fma_f64(q, w, SX_TANH_0);
    q = q * w;
    p = SX_THIRD + q;
    p_low = ((SX_THIRD - p) + q) + SX_THIRD_REST;
    c = p * w;
    q = sx_product_rest(p, w, c) + (p_low * w + p * w_low);
    /* size + size (c + q), size c kept whole. */
    p = size * c;
    near_0 = size + p;
    near_0 += ((size - near_0) + p) + (sx_product_rest(size, c, p) + size * q);

    *slope = size < INFINITY ? 4.0 * e * per_sum * per_sum : 1.0;
    y = y < SX_TANH_UP_TO ? near_0 : beyond;
    y = size < INFINITY ? y : size;
    return copysign(x == x ? y : x, x);
}

/* The same for float32's needs, in float64. */
SX_INLINE float sx_softcap_f32(float given, double cap, const sx_scale *half, float *slope)
{
    double x = given, size = fabs(x), e, per_sum, w, q, y;
    sx_power_f64 power = sx_power_of_f64(0.0);
    e = sx_exp_scaled_f64(-size, power.k, power.low * half->temperature, half);
    per_sum = 1.0 / (1.0 + e);
    y = size * half->inverse * 0.5;
    w = y * y;
    q = SX_TANH_SHORT_7;
    q = sx_fma_f64(q, w, SX_TANH_SHORT_6);
    q = sx_fma_f64(q, w, SX_TANH_SHORT_5);
    q = sx_fma_f64(q, w, SX_TANH_SHORT_4);
    q = sx_fma_f64(q, w, SX_TANH_SHORT_3);
    q = sx_fma_f64(q, w, SX_TANH_SHORT_2);
    q = sx_fma_f64(q, w, SX_TANH_SHORT_1);
    q = sx_fma_f64(q, w, SX_TANH_SHORT_0);
    q = sx_fma_f64(q, w, SX_THIRD);
    y = y < SX_TANH_UP_TO ? size + size * (q * w) : cap - cap * (2.0 * e * per_sum);
    *slope = size < INFINITY ? (float)(4.0 * e * per_sum * per_sum) : 1.0f;
    y = size < INFINITY ? y : size;
    return (float)copysign(x == x ? y : x, x);
}

/* 2^d for d <= 1023; +0 below -1022 (a sum that far down does not reach the result). */
SX_INLINE double sx_pow2(double d)
{
    return d < -1022.0 ? 0.0 : sx_f64_of_bits((uint64_t)((int64_t)d + 1023) << 52);
}

/* total + carry += x, without loss: `carry` takes what the addition rounds away. */
SX_INLINE void sx_two_sum(double *total, double *carry, double x)
{
    double sum = *total + x, moved = sum - *total;
    *carry += (*total - (sum - moved)) + (x - moved);
    *total = sum;
}

/* n ln2 in two parts, as a logit: the low one returned. */
SX_INLINE double sx_reference_low(double n, double *high)
{
#if SX_HAS_FMA
    *high = n * SX_LN2;
    return sx_fma_f64(n, SX_LN2_REST, sx_fma_f64(n, SX_LN2, -*high));
#else
    *high = n * SX_LN2_32;
    return n * SX_LN2_32_REST;
#endif
}

/* n temperature ln2 in two parts, as a logit that is yet to be divided. */
SX_INLINE double sx_scaled_reference_low(double n, double *high, const sx_scale *scale)
{
    *high = n * scale->first;
#if SX_HAS_FMA
    return sx_fma_f64(n, scale->last, sx_fma_f64(n, scale->first, -*high));
#else
    return n * scale->second + n * scale->last;
#endif
}

/* ---- log ------------------------------------------------------------------------------------ */

/* k ln2 + log(1 + f), sqrt(1/2) <= 1 + f <= sqrt(2): with s = f / (2 + f), log(1 + f) is
   2s + s^3 R(s^2) = f - (f^2/2 - s (f^2/2 + s^2 R)). */
SX_INLINE double sx_log_reduced(double f, double k)
{
    double s = f / (2.0 + f), w = s * s, half_square = 0.5 * f * f, q;
    q = sx_fma_f64(SX_R6, w, SX_R5);
    q = sx_fma_f64(q, w, SX_R4);
    q = sx_fma_f64(q, w, SX_R3);
    q = sx_fma_f64(q, w, SX_R2);
    q = sx_fma_f64(q, w, SX_R1);
    q = sx_fma_f64(q, w, SX_R0);
    return k * SX_LN2_32
           - ((half_square - (s * (half_square + q * w) + k * SX_LN2_32_REST)) - f);
}

/* f and k of log x, x normal, positive and finite. */
SX_INLINE double sx_split_log(double x, double *k)
{
    uint64_t bits = sx_bits_of_f64(x);
    double m = sx_f64_of_bits((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
    /* The exponent's bits become the last of 2^52 + exponent. */
    double exponent = sx_f64_of_bits((bits >> 52) | 0x4330000000000000u) - (0x1p52 + 1023.0);
    int above = m > SX_SQRT2;
    *k = above ? exponent + 1.0 : exponent;
    return (above ? m * 0.5 : m) - 1.0;
}

/* f and k of log(1 + x), 0 <= x <= 1. Above sqrt(2) - 1: 1 + x = 2 (1 + (x - 1) / 2), and x - 1 is
   exact from 1/2 on. */
SX_INLINE double sx_split_log1p(double x, double *k)
{
    int above = x > SX_SQRT2_LESS_1;
    *k = above ? 1.0 : 0.0;
    return above ? (x - 1.0) * 0.5 : x;
}

/* One or the other without a branch, so that one logarithm serves both. */
SX_INLINE void sx_split_log1p_or_log(int log1p_of_share, double share, double total, double *f,
                                     double *k)
{
    double k_share, k_total, f_share, f_total;
    f_share = sx_split_log1p(share, &k_share);
    f_total = sx_split_log(total, &k_total);
    *f = log1p_of_share ? f_share : f_total;
    *k = log1p_of_share ? k_share : k_total;
}

SX_INLINE double sx_log(double x)
{
    double k, f = sx_split_log(x, &k);
    return sx_log_reduced(f, k);
}

/* Relatively exact however small x is. */
SX_INLINE double sx_log1p(double x)
{
    double k, f = sx_split_log1p(x, &k);
    return sx_log_reduced(f, k);
}

/* The same for float32 and 0 <= x <= 1, within 1.5 ulp with FMA, else 2 (tests/test_exp.py);
   no division. */
SX_INLINE float sx_log1p_f32(float x)
{
    float q = sx_fma_f32(SX_LOG1P_9_F32, x, SX_LOG1P_8_F32);
    q = sx_fma_f32(q, x, SX_LOG1P_7_F32);
    q = sx_fma_f32(q, x, SX_LOG1P_6_F32);
    q = sx_fma_f32(q, x, SX_LOG1P_5_F32);
    q = sx_fma_f32(q, x, SX_LOG1P_4_F32);
    q = sx_fma_f32(q, x, SX_LOG1P_3_F32);
    q = sx_fma_f32(q, x, SX_LOG1P_2_F32);
    q = sx_fma_f32(q, x, SX_LOG1P_1_F32);
    return sx_fma_f32(q * x, x, x);    /* the first coefficient is 1 */
}

/* 1 / d for 1 <= d <= 2, within 1 ulp (tests/test_exp.py). With FMA a cubic within 1/577, whose error
   each step squares: a division of 512 bits has twice the cost. */
SX_INLINE float sx_inverse_f32(float d)
{
#if SX_HAS_FMA
    float r = sx_fma_f32(SX_INVERSE_3_F32, d, SX_INVERSE_2_F32);
    r = sx_fma_f32(r, d, SX_INVERSE_1_F32);
    r = sx_fma_f32(r, d, SX_INVERSE_0_F32);
    r = sx_fma_f32(r, sx_fma_f32(-d, r, 1.0f), r);
    return sx_fma_f32(r, sx_fma_f32(-d, r, 1.0f), r);
#else
    return 1.0f / d;
#endif
}

SX_INLINE double sx_inverse_f64(double d)
{
#if SX_HAS_FMA
    double r = sx_fma_f64(SX_INVERSE_3_F64, d, SX_INVERSE_2_F64);
    r = sx_fma_f64(r, d, SX_INVERSE_1_F64);
    r = sx_fma_f64(r, d, SX_INVERSE_0_F64);
    r = sx_fma_f64(r, sx_fma_f64(-d, r, 1.0), r);
    r = sx_fma_f64(r, sx_fma_f64(-d, r, 1.0), r);
    return sx_fma_f64(r, sx_fma_f64(-d, r, 1.0), r);
#else
    return 1.0 / d;
#endif
}

/* log(1 + x) for any x >= 0, relatively exact. */
SX_INLINE double sx_log1p_any(double x)
{
    double f, k;
    sx_split_log1p_or_log(x <= 1.0, x <= 1.0 ? x : 1.0, 1.0 + x, &f, &k);
    return sx_log_reduced(f, k);
}

/* x^exponent of 0 <= x <= 1 and exponent >= 0, within 1.5 ulp and exponent / 32 of them where it is
   normal, else +0 (tests/test_exp.py). log x in two parts, for its error comes out multiplied by the
   exponent: k ln2 + 2s + s w R(w), with what s = f / (2 + f) leaves of the division. */
SX_INLINE double sx_power(double x, double exponent)
{
    double k, f = sx_split_log(x, &k), t = 2.0 + f, s = f / t, w = s * s, high, low, q, p, e;
    sx_power_f64 power = sx_power_of_f64(0.0);
    p = s * t;
    low = (((f - p) - sx_product_rest(s, t, p)) - s * (f - (t - 2.0))) / t;
    q = sx_fma_f64(SX_R6, w, SX_R5);
    q = sx_fma_f64(q, w, SX_R4);
    q = sx_fma_f64(q, w, SX_R3);
    q = sx_fma_f64(q, w, SX_R2);
    q = sx_fma_f64(q, w, SX_R1);
    q = sx_fma_f64(q, w, SX_R0);
    low = (2.0 * low + s * w * q) + k * SX_LN2_32_REST;
    p = k * SX_LN2_32;    /* exact, and larger than 2s where it is not 0 */
    high = p + 2.0 * s;
    low += k == 0.0 ? 0.0 : (p - high) + 2.0 * s;
    p = high + low;
    low -= p - high;
    high = p;
    p = exponent * high;
    p = p > -1000.0 ? p : -1000.0;
    low = p > -1000.0 ? sx_product_rest(exponent, high, p) + exponent * low : 0.0;
    e = sx_exp_f64(p, power.k, power.low);
    e = e + e * low;
    return x > 0.0 ? e : exponent > 0.0 ? 0.0 : 1.0;
}

/* t log t of t >= 0; 0 log 0 = 0. With subnormals on: their logarithm is that of 2^54 t. */
SX_INLINE double sx_self_information(double t)
{
    int tiny = t < 0x1p-1022;
    double k, f = sx_split_log(tiny ? t * 0x1p54 : t, &k);
    t = t > 0.0 ? t : 0.0;
    return t * sx_log_reduced(f, tiny ? k - 54.0 : k);
}

/* total + carry += x for many x of one sign, four additions each (Kahan): error 2 eps. */
SX_INLINE void sx_kahan(double *total, double *carry, double x)
{
    double y = x + *carry, sum = *total + y;
    *carry = y - (sum - *total);
    *total = sum;
}

/* ---- floating-point state ------------------------------------------------------------------- */

/* Walks over a row run with subnormals flushed and read as zero (rows of subnormal probabilities
   would take 8 times as long), rounding to nearest, nothing trapped. Weights are read and row
   values written outside of that. The caller's state comes back whole, sticky flags included. */
#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
typedef unsigned int sx_float_state;
SX_INLINE sx_float_state sx_float_enter(void)
{
    sx_float_state state = _mm_getcsr();
    _mm_setcsr(0x1f80u);
    return state;
}
SX_INLINE void sx_float_subnormals(int kept) { _mm_setcsr(0x1f80u | (kept ? 0 : 0x8040u)); }
SX_INLINE void sx_float_leave(sx_float_state state) { _mm_setcsr(state); }
#elif defined(__aarch64__) && defined(__GNUC__)
typedef uint64_t sx_float_state;
SX_INLINE sx_float_state sx_float_enter(void)
{
    sx_float_state state;
    __asm__ volatile("mrs %0, fpcr" : "=r"(state));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return state;
}
SX_INLINE void sx_float_subnormals(int kept)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(kept ? (uint64_t)0 : (uint64_t)1 << 24));  /* FZ */
}
SX_INLINE void sx_float_leave(sx_float_state state)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(state));
}
#else
typedef int sx_float_state;
SX_INLINE sx_float_state sx_float_enter(void) { return 0; }
SX_INLINE void sx_float_subnormals(int kept) { (void)kept; }
SX_INLINE void sx_float_leave(sx_float_state state) { (void)state; }
#endif
#endif
