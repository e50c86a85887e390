/* exp_block.h includes this for float and for double: SX_REAL, SX_VECTOR of SX_WIDTH of them, SX_DO for
   the instructions' names, SX_AS for a mask as such a vector, SX_OF for the functions' names. */

/* Of the four vectors at x. */
SX_INLINE void SX_OF(sx_exp_four)(const SX_REAL *x, const SX_VECTOR *k, const SX_VECTOR *low,
                                  SX_VECTOR *e)
{
    SX_VECTOR z[4];
    int i;
    SX_EACH z[i] = SX_DO(loadu)(x + i * SX_WIDTH);
    SX_OF(sx_exp_vectors)(z, k, low, e);
}

/* Of whole fours of vectors; returns of how many elements. e: the same memory as x, or apart. */
SX_INLINE int64_t SX_OF(sx_exp_fours)(const SX_REAL *x, int64_t length, SX_REAL k, SX_REAL low,
                                      SX_REAL *e)
{
    SX_VECTOR all_k[4], all_low[4], v[4];
    int64_t j;
    int i;
    SX_EACH all_k[i] = SX_DO(set1)(k), all_low[i] = SX_DO(set1)(low);
    for (j = 0; j + 4 * SX_WIDTH <= length; j += 4 * SX_WIDTH) {
        SX_OF(sx_exp_four)(x + j, all_k, all_low, v);
        SX_EACH SX_DO(storeu)(e + j + i * SX_WIDTH, v[i]);
    }
    return j;
}

/* The same times a, then + 0: no zero of the result is negative. */
SX_INLINE int64_t SX_OF(sx_exp_times_fours)(const SX_REAL *x, int64_t length, SX_REAL k, SX_REAL low,
                                            SX_REAL a, SX_REAL *to)
{
    SX_VECTOR all_a = SX_DO(set1)(a), all_k[4], all_low[4], v[4];
    int64_t j;
    int i;
    SX_EACH all_k[i] = SX_DO(set1)(k), all_low[i] = SX_DO(set1)(low);
    for (j = 0; j + 4 * SX_WIDTH <= length; j += 4 * SX_WIDTH) {
        SX_OF(sx_exp_four)(x + j, all_k, all_low, v);
        SX_EACH SX_DO(storeu)(to + j + i * SX_WIDTH, SX_DO(fmadd)(v[i], all_a, SX_DO(setzero)()));
    }
    return j;
}

/* Class-major: of the `count` rows side by side at `at`, a multiple of two vectors, and of `length`
   classes `stride` bytes apart, e a to `to`, the same memory or apart: each row has a k, a low and an a.
   What lies `ahead` and `to_ahead` bytes behind either is fetched. */
SX_INLINE void SX_OF(sx_exp_times_some)(const char *at, int64_t stride, int64_t length,
                                        const SX_REAL *k, const SX_REAL *low, const SX_REAL *a, char *to,
                                        int64_t to_stride, int64_t ahead, int64_t to_ahead,
                                        const int vectors)
{
    SX_VECTOR of_k[4], of_low[4], of_a[4], v[4];
    int64_t c;
    int i;
    SX_EACH of_k[i] = SX_DO(loadu)(k + i % vectors * SX_WIDTH);
    SX_EACH of_low[i] = SX_DO(loadu)(low + i % vectors * SX_WIDTH);
    SX_EACH of_a[i] = SX_DO(loadu)(a + i % vectors * SX_WIDTH);
    for (c = 0; c < length; c += 4 / vectors) {
        const char *from[4];
        char *into[4];
        SX_EACH {
            /* Of an odd number of classes the last one twice. */
            int64_t of = c + i / vectors < length ? c + i / vectors : length - 1;
            from[i] = at + of * stride + i % vectors * (int64_t)sizeof(SX_VECTOR);
            into[i] = to + of * to_stride + i % vectors * (int64_t)sizeof(SX_VECTOR);
        }
        SX_EACH __builtin_prefetch(from[i] + ahead, 0, 2);
        SX_EACH __builtin_prefetch(into[i] + to_ahead, 1, 2);
        SX_EACH v[i] = SX_DO(loadu)((const SX_REAL *)from[i]);
        SX_OF(sx_exp_vectors)(v, of_k, of_low, v);
        SX_EACH SX_DO(storeu)((SX_REAL *)into[i], SX_DO(fmadd)(v[i], of_a[i], SX_DO(setzero)()));
    }
}

static void SX_OF(sx_exp_times_classes)(const char *at, int64_t stride, int64_t count, int64_t length,
                                        const SX_REAL *k, const SX_REAL *low, const SX_REAL *a, char *to,
                                        int64_t to_stride, int64_t ahead, int64_t to_ahead)
{
    int64_t j = 0;
    for (; j + 4 * SX_WIDTH <= count; j += 4 * SX_WIDTH)
        SX_OF(sx_exp_times_some)(at + j * sizeof(SX_REAL), stride, length, k + j, low + j, a + j,
                                 to + j * sizeof(SX_REAL), to_stride, ahead, to_ahead, 4);
    for (; j < count; j += 2 * SX_WIDTH)
        SX_OF(sx_exp_times_some)(at + j * sizeof(SX_REAL), stride, length, k + j, low + j, a + j,
                                 to + j * sizeof(SX_REAL), to_stride, ahead, to_ahead, 2);
}

/* Classes side by side for 32 rows: each row's largest (-inf if there is none; a NaN takes no part) and
   its first place. */
static void SX_OF(sx_top_columns)(const SX_REAL *x, int64_t classes, SX_REAL *tops, SX_REAL *places)
{
    SX_VECTOR top[4], place[4];
    int64_t j, c;
    int i;
    for (j = 0; j < 32; j += 4 * SX_WIDTH) {
        SX_EACH top[i] = SX_DO(set1)(-INFINITY), place[i] = SX_DO(setzero)();
        for (c = 0; c < classes; c++) {
            SX_VECTOR at = SX_DO(set1)((SX_REAL)c);
            SX_EACH {
                SX_VECTOR v = SX_DO(loadu)(x + 32 * c + j + i * SX_WIDTH);
                place[i] = SX_DO(blendv)(place[i], at, SX_DO(cmp)(v, top[i], _CMP_GT_OQ));
                top[i] = SX_DO(max)(v, top[i]);
            }
        }
        SX_EACH SX_DO(storeu)(tops + j + i * SX_WIDTH, top[i]);
        SX_EACH SX_DO(storeu)(places + j + i * SX_WIDTH, place[i]);
    }
}

/* e of them, of a k and a low each; e at `places`, +0 where that is the target; and the sums of all but
   the two. */
static void SX_OF(sx_exp_and_sum_columns)(const SX_REAL *x, int64_t classes, const SX_REAL *k,
                                          const SX_REAL *low, const SX_REAL *places,
                                          const SX_REAL *targets, SX_REAL *e, double *rest,
                                          double *carry, SX_REAL *e_places)
{
    SX_VECTOR of_k[4], of_low[4], v[4], found[4];
    __m256d sums[SX_WIDTH], carries[SX_WIDTH];    /* of 4 * SX_WIDTH rows */
    int64_t j, c;
    int i;
    for (j = 0; j < 32; j += 4 * SX_WIDTH) {
        SX_EACH of_k[i] = SX_DO(loadu)(k + j + i * SX_WIDTH);
        SX_EACH of_low[i] = SX_DO(loadu)(low + j + i * SX_WIDTH);
        SX_EACH found[i] = SX_DO(setzero)();
        for (i = 0; i < SX_WIDTH; i++)
            sums[i] = carries[i] = _mm256_setzero_pd();
        for (c = 0; c < classes; c++) {
            SX_VECTOR at = SX_DO(set1)((SX_REAL)c);
            SX_OF(sx_exp_four)(x + 32 * c + j, of_k, of_low, v);
            SX_EACH {
                SX_VECTOR is_target = SX_DO(cmp)(SX_DO(loadu)(targets + j + i * SX_WIDTH), at,
                                                 _CMP_EQ_OQ);
                SX_VECTOR is_place = SX_DO(cmp)(SX_DO(loadu)(places + j + i * SX_WIDTH), at,
                                                _CMP_EQ_OQ);
                SX_DO(storeu)(e + 32 * c + j + i * SX_WIDTH, v[i]);
                v[i] = SX_DO(andnot)(is_target, v[i]);
                found[i] = SX_DO(or)(found[i], SX_DO(and)(is_place, v[i]));
                v[i] = SX_DO(andnot)(is_place, v[i]);
                SX_OF(sx_add_exact)(v[i], sums + i * (SX_WIDTH / 4), carries + i * (SX_WIDTH / 4));
            }
        }
        SX_EACH SX_DO(storeu)(e_places + j + i * SX_WIDTH, found[i]);
        for (i = 0; i < SX_WIDTH; i++) {
            _mm256_storeu_pd(rest + j + 4 * i, sums[i]);
            _mm256_storeu_pd(carry + j + 4 * i, carries[i]);
        }
    }
}

/* Whole lanes of them, at most a block: up to four terms of a lane are added, then widened and added to
   the lane's sum, as sx_add_stripe does. */
SX_INLINE double SX_OF(sx_sum_block)(const SX_REAL *e, int64_t length)
{
    __m256d lanes[SX_LANES / 4];
    int64_t i, j, k;
    for (j = 0; j < SX_LANES; j += SX_WIDTH) {
        __m256d sums[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
        for (i = j; i + 3 * SX_LANES < length; i += 4 * SX_LANES)
            SX_OF(sx_add_terms)(
                SX_DO(add)(SX_DO(add)(SX_DO(add)(SX_DO(loadu)(e + i), SX_DO(loadu)(e + i + SX_LANES)),
                                      SX_DO(loadu)(e + i + 2 * SX_LANES)),
                           SX_DO(loadu)(e + i + 3 * SX_LANES)), sums);
        if (i < length) {
            SX_VECTOR terms = SX_DO(loadu)(e + i);
            for (k = i + SX_LANES; k < length; k += SX_LANES)
                terms = SX_DO(add)(terms, SX_DO(loadu)(e + k));
            SX_OF(sx_add_terms)(terms, sums);
        }
        for (k = 0; k < SX_WIDTH / 4; k++)
            lanes[j / 4 + k] = sums[k];
    }
    return sx_fold_vectors(lanes, SX_LANES / 4);
}

/* The largest so far, and where its stripe begins; a NaN takes no part. */
SX_INLINE void SX_OF(sx_note_top)(SX_VECTOR of_stripe, int64_t at, SX_REAL *top, int64_t *start)
{
    SX_REAL value = SX_OF(sx_top_of_vector)(of_stripe);
    *start = value > *top ? at : *start;
    *top = value > *top ? value : *top;
}

/* Elements `from` to `length`, from a multiple of the fours. */
SX_INLINE void SX_OF(sx_find_top)(const SX_REAL *x, int64_t from, int64_t length, SX_REAL *top,
                                  int64_t *start)
{
    int64_t j = from, end;
    int i;
    for (; j + 4 * SX_WIDTH <= length; ) {
        SX_VECTOR low = SX_DO(set1)(-INFINITY), v[4] = {low, low, low, low};
        int64_t at = j;
        end = length - j < 4 * SX_LANES ? length : j + 4 * SX_LANES;
        for (; j + 4 * SX_WIDTH <= end; j += 4 * SX_WIDTH)
            SX_EACH v[i] = SX_DO(max)(SX_DO(loadu)(x + j + i * SX_WIDTH), v[i]);
        SX_OF(sx_note_top)(SX_DO(max)(SX_DO(max)(v[1], v[0]), SX_DO(max)(v[3], v[2])), at, top, start);
    }
    if (j < length) {
        SX_VECTOR low = SX_DO(set1)(-INFINITY), v[4];
        SX_EACH v[i] = SX_OF(sx_load_first)(x + j + i * SX_WIDTH, length - j - i * SX_WIDTH, low);
        SX_EACH v[i] = SX_DO(max)(v[i], low);    /* a NaN takes no part */
        SX_OF(sx_note_top)(SX_DO(max)(SX_DO(max)(v[1], v[0]), SX_DO(max)(v[3], v[2])), j, top, start);
    }
}

/* All of up to four terms of each lane, of whole lanes: as sx_sum_block. */
SX_INLINE double SX_OF(sx_sum_terms)(const SX_REAL *e, int terms)
{
    __m256d lanes[SX_LANES / 8];
    int half = SX_LANES / 2, i, j, t;
#pragma GCC unroll 8
    for (j = 0; j < half; j += SX_WIDTH) {
        SX_VECTOR a = SX_DO(loadu)(e + j), b = SX_DO(loadu)(e + j + half);
        for (t = 1; t < terms; t++) {
            a = SX_DO(add)(a, SX_DO(loadu)(e + t * SX_LANES + j));
            b = SX_DO(add)(b, SX_DO(loadu)(e + t * SX_LANES + j + half));
        }
        for (i = 0; i < SX_WIDTH / 4; i++)
            lanes[j / 4 + i] = _mm256_setzero_pd();
        SX_OF(sx_add_terms)(a, lanes + j / 4);
        SX_OF(sx_add_terms)(b, lanes + j / 4);
    }
    return sx_fold_vectors(lanes, SX_LANES / 8);
}

SX_INLINE double SX_OF(sx_sum_short)(const SX_REAL *e, int64_t length)
{
    if (length == SX_LANES)
        return SX_OF(sx_sum_terms)(e, 1);
    if (length == 2 * SX_LANES)
        return SX_OF(sx_sum_terms)(e, 2);
    if (length == 3 * SX_LANES)
        return SX_OF(sx_sum_terms)(e, 3);
    return SX_OF(sx_sum_terms)(e, 4);
}

/* Takes an element out of its vector, which is returned. By vectors, for one that has just been stored
   in parts would be waited for. */
SX_INLINE SX_VECTOR SX_OF(sx_take_out)(SX_REAL *e, int64_t place)
{
    SX_REAL *at = e + (place & ~(int64_t)(SX_WIDTH - 1));
    SX_VECTOR taken = SX_DO(loadu)(at);
    __m256i before = SX_OF(sx_first)(place % SX_WIDTH), with = SX_OF(sx_first)(place % SX_WIDTH + 1);
    __m256i it = _mm256_andnot_si256(before, with);
    SX_DO(storeu)(at, SX_DO(blendv)(taken, SX_DO(setzero)(), SX_AS(it)));
    return taken;
}

SX_INLINE void SX_OF(sx_put_back)(SX_REAL *e, int64_t place, SX_VECTOR taken)
{
    SX_DO(storeu)(e + (place & ~(int64_t)(SX_WIDTH - 1)), taken);
}

/* e of a block, and the sum of all but two of them (-1: none), which are not the same. e, apart from x,
   has room for whole lanes: +0 behind `length`. Of the block that comes `next`, unless NULL, meanwhile
   the largest (-inf if there is none), and from where on to look for it; what lies `ahead` bytes behind
   x is fetched. (From memory, one thread: 1.3 to 1.5 times as fast as the maximum, exp and the sums of
   every 256 elements in loops of their own. With the sums in the loop of exp, too, registers are
   short, and it is slower.) */
SX_INLINE double SX_OF(sx_exp_block_and)(const SX_REAL *x, int64_t length, int64_t place_1,
                                         int64_t place_2, SX_REAL k, SX_REAL low, const SX_REAL *next,
                                         int64_t next_length, int64_t ahead, SX_REAL *e, SX_REAL *top,
                                         int64_t *start)
{
    SX_VECTOR all_k[4], all_low[4], v[4], taken_1 = SX_DO(setzero)(), taken_2 = taken_1;
    int64_t whole = length & ~(int64_t)(4 * SX_WIDTH - 1), filled = whole, j = 0, end;
    double sum;
    int i;
    SX_EACH all_k[i] = SX_DO(set1)(k), all_low[i] = SX_DO(set1)(low);
    if (next != NULL) {
        *top = -INFINITY;
        *start = 0;
        if (next_length < whole) {
            SX_OF(sx_find_top)(next, 0, next_length, top, start);
            next = NULL;
        }
    }
    while (j < whole) {
        SX_VECTOR of_stripe = SX_DO(set1)(-INFINITY);
        int64_t at = j;
        for (end = whole - j < 4 * SX_LANES ? whole : j + 4 * SX_LANES; j < end; j += 4 * SX_WIDTH) {
            sx_prefetch((const char *)(x + j) + ahead, 4 * SX_WIDTH * sizeof(SX_REAL));
            SX_OF(sx_exp_four)(x + j, all_k, all_low, v);
            SX_EACH SX_DO(storeu)(e + j + i * SX_WIDTH, v[i]);
            if (next != NULL)
                SX_EACH of_stripe = SX_DO(max)(SX_DO(loadu)(next + j + i * SX_WIDTH), of_stripe);
        }
        if (next != NULL)
            SX_OF(sx_note_top)(of_stripe, at, top, start);
    }
    if (next != NULL)
        SX_OF(sx_find_top)(next, whole, next_length, top, start);
    if (whole < length) {
        SX_EACH v[i] = SX_OF(sx_load_first)(x + whole + i * SX_WIDTH, length - whole - i * SX_WIDTH,
                                            SX_DO(set1)(-INFINITY));
        SX_OF(sx_exp_vectors)(v, all_k, all_low, v);
        SX_EACH SX_DO(storeu)(e + whole + i * SX_WIDTH, v[i]);
        filled = whole + 4 * SX_WIDTH;
    }
    for (; filled % SX_LANES != 0; filled += SX_WIDTH)
        SX_DO(storeu)(e + filled, SX_DO(setzero)());
    if (place_1 >= 0)
        taken_1 = SX_OF(sx_take_out)(e, place_1);
    if (place_2 >= 0)
        taken_2 = SX_OF(sx_take_out)(e, place_2);
    sum = filled <= 4 * SX_LANES ? SX_OF(sx_sum_short)(e, filled) : SX_OF(sx_sum_block)(e, filled);
    if (place_2 >= 0)
        SX_OF(sx_put_back)(e, place_2, taken_2);
    if (place_1 >= 0)
        SX_OF(sx_put_back)(e, place_1, taken_1);
    return sum;
}

static double SX_OF(sx_exp_block)(const SX_REAL *x, int64_t length, int64_t place_1, int64_t place_2,
                                  SX_REAL k, SX_REAL low, const SX_REAL *next, int64_t next_length,
                                  int64_t ahead, SX_REAL *e, SX_REAL *top, int64_t *start)
{
    if (next == NULL)
        return SX_OF(sx_exp_block_and)(x, length, place_1, place_2, k, low, NULL, 0, ahead, e, top,
                                       start);
    return SX_OF(sx_exp_block_and)(x, length, place_1, place_2, k, low, next, next_length, ahead, e, top,
                                   start);
}

#undef SX_REAL
#undef SX_VECTOR
#undef SX_WIDTH
#undef SX_DO
#undef SX_AS
#undef SX_OF
