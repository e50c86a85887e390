/* exp_block.h includes this for float and for double: SX_REAL, SX_VECTOR of SX_WIDTH of them, SX_MASK
   for some of those, SX_DO for the instructions' names, SX_OF for the functions' names, and the numbers
   that exp is made of. */

/* sx_exp of four vectors, of a k and a low each. */
SX_INLINE void SX_OF(sx_exp_vectors)(const SX_VECTOR *z, const SX_VECTOR *k, const SX_VECTOR *low,
                                     SX_VECTOR *e)
{
    SX_VECTOR n[4], r[4], power[4];
    int i;
#define SX_FIRST(q) SX_EACH e[i] = SX_DO(set1)(q);
#define SX_TIMES_R_PLUS(q) SX_EACH e[i] = SX_DO(fmadd)(e[i], r[i], SX_DO(set1)(q));
    SX_EACH r[i] = SX_DO(max)(low[i], z[i]);
    SX_EACH n[i] = SX_DO(fmadd)(r[i], SX_DO(set1)(SX_LOG2_OF_E), k[i]);
    SX_EACH power[i] = SX_OF(sx_to_exponent)(n[i]);
    SX_EACH n[i] = SX_DO(sub)(n[i], k[i]);
    SX_EACH r[i] = SX_DO(fmadd)(n[i], SX_DO(set1)(SX_LN2_PART), r[i]);
    SX_EACH r[i] = SX_DO(fmadd)(n[i], SX_DO(set1)(SX_LN2_PART_REST), r[i]);
    SX_POLYNOMIAL(SX_FIRST, SX_TIMES_R_PLUS)
    SX_TIMES_R_PLUS(1)
    SX_TIMES_R_PLUS(1)
    SX_EACH e[i] = SX_DO(mul)(e[i], power[i]);
#undef SX_TIMES_R_PLUS
#undef SX_FIRST
}

/* Of the four vectors at x. */
SX_INLINE void SX_OF(sx_exp_four)(const SX_REAL *x, const SX_VECTOR *k, const SX_VECTOR *low,
                                  SX_VECTOR *e)
{
    SX_VECTOR z[4];
    int i;
    SX_EACH z[i] = SX_DO(loadu)(x + i * SX_WIDTH);
    SX_OF(sx_exp_vectors)(z, k, low, e);
}

/* Of fewer than four vectors' elements; what stands behind them is -inf. */
SX_INLINE void SX_OF(sx_exp_few)(const SX_REAL *x, int64_t length, const SX_VECTOR *k,
                                 const SX_VECTOR *low, SX_VECTOR *e)
{
    SX_VECTOR z[4];
    int i;
    SX_EACH z[i] = SX_OF(sx_load_first)(x + i * SX_WIDTH, length - i * SX_WIDTH,
                                        SX_DO(set1)(-INFINITY));
    SX_OF(sx_exp_vectors)(z, k, low, e);
}

/* Of whole vectors. e: the same memory as x, or apart. */
SX_INLINE void SX_OF(sx_exp_many)(const SX_REAL *x, int64_t length, SX_REAL k, SX_REAL low, SX_REAL *e)
{
    SX_VECTOR all_k[4], all_low[4], v[4];
    int64_t j;
    int i;
    SX_EACH all_k[i] = SX_DO(set1)(k), all_low[i] = SX_DO(set1)(low);
    for (j = 0; j + 4 * SX_WIDTH <= length; j += 4 * SX_WIDTH) {
        SX_OF(sx_exp_four)(x + j, all_k, all_low, v);
        SX_EACH SX_DO(storeu)(e + j + i * SX_WIDTH, v[i]);
    }
    if (j < length) {
        SX_OF(sx_exp_few)(x + j, length - j, all_k, all_low, v);
        SX_EACH
            if (j + i * SX_WIDTH < length)
                SX_DO(storeu)(e + j + i * SX_WIDTH, v[i]);
    }
}

/* The same times a, then + 0: no zero of the result is negative. Of whole fours of vectors; returns of
   how many elements. */
SX_INLINE int64_t SX_OF(sx_exp_times_many)(const SX_REAL *x, int64_t length, SX_REAL k, SX_REAL low,
                                           SX_REAL a, SX_REAL *to)
{
    SX_VECTOR all_a = SX_DO(set1)(a), all_k[4], all_low[4], v[4];
    int64_t j;
    int i;
    SX_EACH all_k[i] = SX_DO(set1)(k), all_low[i] = SX_DO(set1)(low);
    for (j = 0; j + 4 * SX_WIDTH <= length; j += 4 * SX_WIDTH) {
        sx_prefetch((const char *)(x + j) + SX_AGAIN_AHEAD, 4 * SX_WIDTH * sizeof(SX_REAL));
        SX_OF(sx_exp_four)(x + j, all_k, all_low, v);
        SX_EACH SX_DO(storeu)(to + j + i * SX_WIDTH, SX_DO(fmadd)(v[i], all_a, SX_DO(setzero)()));
    }
    return j;
}

/* Class-major: of the `vectors` of rows side by side at `at`, or of the first `rows` of one vector, and
   of `length` classes `stride` bytes apart, e a to `to`, the same memory or apart: each row has a k, a
   low and an a. What lies `ahead` and `to_ahead` bytes behind either is fetched. */
SX_INLINE void SX_OF(sx_exp_times_some)(const char *at, int64_t stride, int64_t length,
                                        const SX_REAL *k, const SX_REAL *low, const SX_REAL *a, char *to,
                                        int64_t to_stride, int64_t ahead, int64_t to_ahead,
                                        const int vectors, const int64_t rows)
{
    SX_VECTOR of_k[4], of_low[4], of_a[4], v[4];
    const SX_MASK these = SX_OF(sx_first)(rows);
    const int all = rows == SX_WIDTH;
    int64_t c;
    int i;
    SX_EACH of_k[i] = SX_DO(loadu)(k + i % vectors * SX_WIDTH);
    SX_EACH of_low[i] = SX_DO(loadu)(low + i % vectors * SX_WIDTH);
    SX_EACH of_a[i] = SX_DO(loadu)(a + i % vectors * SX_WIDTH);
    for (c = 0; c < length; c += 4 / vectors) {
        const char *from[4];
        char *into[4];
        SX_EACH {
            /* Behind the last class that one again. */
            int64_t of = c + i / vectors < length ? c + i / vectors : length - 1;
            from[i] = at + of * stride + i % vectors * (int64_t)sizeof(SX_VECTOR);
            into[i] = to + of * to_stride + i % vectors * (int64_t)sizeof(SX_VECTOR);
        }
        SX_EACH __builtin_prefetch(from[i] + ahead, 0, 2);
        SX_EACH __builtin_prefetch(into[i] + to_ahead, 1, 2);
        SX_EACH v[i] = all ? SX_DO(loadu)((const SX_REAL *)from[i])
                           : SX_OF(sx_masked_load)((const SX_REAL *)from[i], these, SX_DO(setzero)());
        SX_OF(sx_exp_vectors)(v, of_k, of_low, v);
        SX_EACH v[i] = SX_DO(fmadd)(v[i], of_a[i], SX_DO(setzero)());
        if (all)
            SX_EACH SX_DO(storeu)((SX_REAL *)into[i], v[i]);
        else
            SX_EACH SX_OF(sx_masked_store)((SX_REAL *)into[i], these, v[i]);
    }
}

/* Of `count` rows; there are a k, a low and an a for whole vectors. */
static void SX_OF(sx_exp_times_classes)(const char *at, int64_t stride, int64_t count, int64_t length,
                                        const SX_REAL *k, const SX_REAL *low, const SX_REAL *a, char *to,
                                        int64_t to_stride, int64_t ahead, int64_t to_ahead)
{
    int64_t j = 0;
#define SX_ROWS(vectors, rows)                                                                        \
    SX_OF(sx_exp_times_some)(at + j * sizeof(SX_REAL), stride, length, k + j, low + j, a + j,         \
                             to + j * sizeof(SX_REAL), to_stride, ahead, to_ahead, vectors, rows)
    for (; j + 4 * SX_WIDTH <= count; j += 4 * SX_WIDTH)
        SX_ROWS(4, SX_WIDTH);
    for (; j + 2 * SX_WIDTH <= count; j += 2 * SX_WIDTH)
        SX_ROWS(2, SX_WIDTH);
    for (; j + SX_WIDTH <= count; j += SX_WIDTH)
        SX_ROWS(1, SX_WIDTH);
    if (j < count)
        SX_ROWS(1, count - j);
#undef SX_ROWS
}

/* 32 rows, or as many as four vectors have: */
#define SX_ROWS_AT_ONCE (4 * SX_WIDTH < 32 ? 4 * SX_WIDTH : 32)
#define SX_VECTORS_OF_ROWS (SX_ROWS_AT_ONCE / SX_WIDTH)
#define SX_EACH_OF_ROWS for (i = 0; i < SX_VECTORS_OF_ROWS; i++)

/* Classes side by side for 32 rows: each row's largest (-inf if there is none; a NaN takes no part) and
   its first place. */
static void SX_OF(sx_top_columns)(const SX_REAL *x, int64_t classes, SX_REAL *tops, SX_REAL *places)
{
    SX_VECTOR top[4], place[4];
    int64_t j, c;
    int i;
    for (j = 0; j < 32; j += SX_ROWS_AT_ONCE) {
        SX_EACH_OF_ROWS top[i] = SX_DO(set1)(-INFINITY), place[i] = SX_DO(setzero)();
        for (c = 0; c < classes; c++) {
            SX_VECTOR at = SX_DO(set1)((SX_REAL)c);
            SX_EACH_OF_ROWS {
                SX_VECTOR v = SX_DO(loadu)(x + 32 * c + j + i * SX_WIDTH);
                place[i] = SX_OF(sx_choose)(SX_OF(sx_larger)(v, top[i]), at, place[i]);
                top[i] = SX_DO(max)(v, top[i]);
            }
        }
        SX_EACH_OF_ROWS SX_DO(storeu)(tops + j + i * SX_WIDTH, top[i]);
        SX_EACH_OF_ROWS SX_DO(storeu)(places + j + i * SX_WIDTH, place[i]);
    }
}

/* Four vectors of e, of class c and those after it, to where they belong, and to the sums. */
SX_INLINE void SX_OF(sx_sum_columns)(const SX_VECTOR *v, int64_t c, int of_classes,
                                     const SX_VECTOR *targets, const SX_VECTOR *places, SX_REAL *e,
                                     SX_VECTOR *found, sx_vector_f64 *sums, sx_vector_f64 *carries)
{
    const int halves = SX_WIDTH / SX_WIDTH_F64;
    int i, of;
    for (of = 0; of < of_classes; of++) {
        SX_VECTOR at = SX_DO(set1)((SX_REAL)(c + of));
        SX_EACH_OF_ROWS {
            SX_VECTOR term = v[of * SX_VECTORS_OF_ROWS + i];
            SX_MASK is_place = SX_OF(sx_equal)(places[i], at);
            SX_DO(storeu)(e + 32 * of + i * SX_WIDTH, term);
            term = SX_OF(sx_clear)(SX_OF(sx_equal)(targets[i], at), term);
            found[i] = SX_OF(sx_choose)(is_place, term, found[i]);
            SX_OF(sx_add_exact)(SX_OF(sx_clear)(is_place, term), sums + halves * i,
                                carries + halves * i);
        }
    }
}

/* e of them, of a k and a low each; e at `places`, +0 where that is the target; and the sums of all but
   the two. */
static void SX_OF(sx_exp_and_sum_columns)(const SX_REAL *x, int64_t classes, const SX_REAL *k,
                                          const SX_REAL *low, const SX_REAL *places,
                                          const SX_REAL *targets, SX_REAL *e, double *rest,
                                          double *carry, SX_REAL *e_places)
{
    const int at_once = 4 / SX_VECTORS_OF_ROWS, sums_of = SX_ROWS_AT_ONCE / SX_WIDTH_F64;
    SX_VECTOR of_k[4], of_low[4], v[4], found[4], of_targets[4], of_places[4];
    sx_vector_f64 sums[SX_WIDTH], carries[SX_WIDTH];
    int64_t j, c;
    int i;
    for (j = 0; j < 32; j += SX_ROWS_AT_ONCE) {
        SX_EACH of_k[i] = SX_DO(loadu)(k + j + i % SX_VECTORS_OF_ROWS * SX_WIDTH);
        SX_EACH of_low[i] = SX_DO(loadu)(low + j + i % SX_VECTORS_OF_ROWS * SX_WIDTH);
        SX_EACH_OF_ROWS of_targets[i] = SX_DO(loadu)(targets + j + i * SX_WIDTH);
        SX_EACH_OF_ROWS of_places[i] = SX_DO(loadu)(places + j + i * SX_WIDTH);
        SX_EACH_OF_ROWS found[i] = SX_DO(setzero)();
        for (i = 0; i < sums_of; i++)
            sums[i] = carries[i] = SX_VECTOR_F64(setzero)();
        for (c = 0; c + at_once <= classes; c += at_once) {
            SX_EACH v[i] = SX_DO(loadu)(x + 32 * (c + i / SX_VECTORS_OF_ROWS) + j
                                        + i % SX_VECTORS_OF_ROWS * SX_WIDTH);
            SX_OF(sx_exp_vectors)(v, of_k, of_low, v);
            SX_OF(sx_sum_columns)(v, c, at_once, of_targets, of_places, e + 32 * c + j, found, sums,
                                  carries);
        }
        if (c < classes) {
            SX_EACH v[i] = SX_DO(loadu)(x + 32 * c + j + i % SX_VECTORS_OF_ROWS * SX_WIDTH);
            SX_OF(sx_exp_vectors)(v, of_k, of_low, v);
            SX_OF(sx_sum_columns)(v, c, 1, of_targets, of_places, e + 32 * c + j, found, sums, carries);
        }
        SX_EACH_OF_ROWS SX_DO(storeu)(e_places + j + i * SX_WIDTH, found[i]);
        for (i = 0; i < sums_of; i++) {
            SX_VECTOR_F64(storeu)(rest + j + SX_WIDTH_F64 * i, sums[i]);
            SX_VECTOR_F64(storeu)(carry + j + SX_WIDTH_F64 * i, carries[i]);
        }
    }
}

/* Up to four terms of each lane of a vector's, 64 elements apart, added one after another. */
SX_INLINE SX_VECTOR SX_OF(sx_terms)(const SX_REAL *e, int64_t count)
{
    SX_VECTOR sum = SX_DO(loadu)(e);
    int64_t t;
    for (t = 1; t < count; t++)
        sum = SX_DO(add)(sum, SX_DO(loadu)(e + t * SX_LANES));
    return sum;
}

/* Of whole lanes of e, in up to four stripes of `count` terms a lane: all terms, widened. */
SX_INLINE double SX_OF(sx_sum_terms)(const SX_REAL *e, int stripes, int count)
{
    const int halves = SX_WIDTH / SX_WIDTH_F64;
    sx_vector_f64 lanes[SX_LANES / 2 / SX_WIDTH_F64];
    int v, s, i;
#pragma GCC unroll 8
    for (v = 0; v < SX_LANES / 2; v += SX_WIDTH) {
        sx_vector_f64 low[2], high[2];
        for (i = 0; i < halves; i++)
            low[i] = high[i] = SX_VECTOR_F64(setzero)();
        for (s = 0; s < stripes; s++) {
            const SX_REAL *at = e + s * count * SX_LANES + v;
            SX_OF(sx_add_terms)(SX_OF(sx_terms)(at, count), low);
            SX_OF(sx_add_terms)(SX_OF(sx_terms)(at + SX_LANES / 2, count), high);
        }
        for (i = 0; i < halves; i++)
            lanes[v / SX_WIDTH_F64 + i] = SX_VECTOR_F64(add)(low[i], high[i]);
    }
    return sx_fold_vectors(lanes, SX_LANES / 2 / SX_WIDTH_F64);
}

/* By numbers that are known, for loops of such lengths need no counters. */
SX_INLINE double SX_OF(sx_sum_stripe)(const SX_REAL *e, int64_t count)
{
    if (count == 1)
        return SX_OF(sx_sum_terms)(e, 1, 1);
    if (count == 2)
        return SX_OF(sx_sum_terms)(e, 1, 2);
    if (count == 3)
        return SX_OF(sx_sum_terms)(e, 1, 3);
    return SX_OF(sx_sum_terms)(e, 1, 4);
}

SX_INLINE double SX_OF(sx_sum_stripes)(const SX_REAL *terms, int64_t stripes)
{
    if (stripes == 2)
        return SX_OF(sx_sum_terms)(terms, 2, 1);
    if (stripes == 3)
        return SX_OF(sx_sum_terms)(terms, 3, 1);
    return SX_OF(sx_sum_terms)(terms, 4, 1);
}

/* The largest of a stripe, and of those before it; a NaN takes no part. */
typedef struct {
    SX_VECTOR of_stripe[5], all;
    int stripes;
} SX_OF(sx_tops);

SX_INLINE void SX_OF(sx_note_top)(SX_OF(sx_tops) *tops, SX_VECTOR of_stripe)
{
    tops->of_stripe[tops->stripes++] = of_stripe;
    tops->all = SX_DO(max)(of_stripe, tops->all);
}

/* Elements `from` to `length`, from a multiple of a stripe. */
SX_INLINE void SX_OF(sx_find_top)(const SX_REAL *x, int64_t from, int64_t length,
                                  SX_OF(sx_tops) *tops)
{
    SX_VECTOR low = SX_DO(set1)(-INFINITY), v[4];
    int64_t j = from, end;
    int i;
    while (j < length) {
        SX_EACH v[i] = low;
        end = length - j < 4 * SX_LANES ? length : j + 4 * SX_LANES;
        for (; j + 4 * SX_WIDTH <= end; j += 4 * SX_WIDTH)
            SX_EACH v[i] = SX_DO(max)(SX_DO(loadu)(x + j + i * SX_WIDTH), v[i]);
        if (j < end) {
            SX_EACH v[i] = SX_DO(max)(SX_OF(sx_load_first)(x + j + i * SX_WIDTH,
                                                           length - j - i * SX_WIDTH, low), v[i]);
            j = end;
        }
        SX_OF(sx_note_top)(tops, SX_DO(max)(SX_DO(max)(v[1], v[0]), SX_DO(max)(v[3], v[2])));
    }
}

/* The largest of all (-inf if there is none), and where the first stripe that has it begins. */
SX_INLINE SX_REAL SX_OF(sx_first_top)(const SX_OF(sx_tops) *tops, int64_t *start)
{
    SX_REAL top = SX_OF(sx_top_of_vector)(tops->all);
    SX_VECTOR all = SX_DO(set1)(top);
    unsigned found = 0;
    int s;
    *start = 0;
    if (tops->stripes > 1) {
        for (s = 0; s < tops->stripes; s++)
            found |= (unsigned)SX_OF(sx_has_equal)(tops->of_stripe[s], all) << s;
        *start = (int64_t)__builtin_ctz(found) * 4 * SX_LANES;
    }
    return top;
}

/* Takes an element out of its vector, which is returned. By vectors, for one that has just been stored
   in parts would be waited for. */
SX_INLINE SX_VECTOR SX_OF(sx_take_out)(SX_REAL *e, int64_t place)
{
    SX_REAL *at = e + (place & ~(int64_t)(SX_WIDTH - 1));
    SX_VECTOR taken = SX_DO(loadu)(at);
    SX_DO(storeu)(at, SX_OF(sx_clear)(SX_OF(sx_nth)(place % SX_WIDTH), taken));
    return taken;
}

SX_INLINE void SX_OF(sx_put_back)(SX_REAL *e, int64_t place, SX_VECTOR taken)
{
    SX_DO(storeu)(e + (place & ~(int64_t)(SX_WIDTH - 1)), taken);
}

/* The terms that had it, anew. `filled`: where e end. */
SX_INLINE void SX_OF(sx_add_without)(const SX_REAL *e, int64_t place, int64_t filled, SX_REAL *terms)
{
    int64_t stripe = place & ~(int64_t)(4 * SX_LANES - 1);
    int64_t v = place & (SX_LANES - 1) & ~(int64_t)(SX_WIDTH - 1);
    int64_t count = filled - stripe < 4 * SX_LANES ? (filled - stripe) / SX_LANES : 4;
    SX_DO(storeu)(terms + stripe / 4 + v, SX_OF(sx_terms)(e + stripe + v, count));
}

/* e of less than a stripe, up to whole lanes, +0 behind `length`; returns where they end. */
SX_INLINE int64_t SX_OF(sx_exp_tail)(const SX_REAL *x, int64_t length, const SX_VECTOR *k,
                                     const SX_VECTOR *low, SX_REAL *e)
{
    SX_VECTOR v[4];
    int64_t j = 0;
    int i;
    for (; j + 4 * SX_WIDTH <= length; j += 4 * SX_WIDTH) {
        SX_OF(sx_exp_four)(x + j, k, low, v);
        SX_EACH SX_DO(storeu)(e + j + i * SX_WIDTH, v[i]);
    }
    if (j < length) {
        SX_OF(sx_exp_few)(x + j, length - j, k, low, v);
        SX_EACH SX_DO(storeu)(e + j + i * SX_WIDTH, v[i]);
        j += 4 * SX_WIDTH;
    }
    for (; j % SX_LANES != 0; j += SX_WIDTH)
        SX_DO(storeu)(e + j, SX_DO(setzero)());
    return j;
}

/* e of four vectors, 64 elements apart, whose sum is returned: terms need no registers then. */
SX_INLINE SX_VECTOR SX_OF(sx_exp_terms)(SX_VECTOR *v, const SX_VECTOR *k, const SX_VECTOR *low,
                                        SX_REAL *e)
{
    int i;
    SX_OF(sx_exp_vectors)(v, k, low, v);
    SX_EACH SX_DO(storeu)(e + i * SX_LANES, v[i]);
    return SX_DO(add)(SX_DO(add)(SX_DO(add)(v[0], v[1]), v[2]), v[3]);
}

/* Four vectors of it, while there are as many; how: 0 for none, 1, or 2 past the caches. */
SX_INLINE void SX_OF(sx_step_beside)(const SX_REAL **e, SX_REAL **to, int64_t *left, SX_VECTOR shift,
                                     SX_VECTOR a, const int how)
{
    SX_VECTOR v[4];
    int i;
    if (how == 0 || *left < 4 * SX_WIDTH)
        return;
    sx_prefetch((const char *)*e + SX_BESIDE_AHEAD, 4 * SX_WIDTH * sizeof(SX_REAL));
    if (how == 1)
        sx_prefetch((const char *)*to + SX_BESIDE_AHEAD, 4 * SX_WIDTH * sizeof(SX_REAL));
    SX_EACH v[i] = SX_DO(mul)(SX_DO(loadu)(*e + i * SX_WIDTH), shift);
    SX_EACH v[i] = SX_DO(fmadd)(v[i], a, SX_DO(setzero)());
    if (how == 2)
        SX_EACH SX_DO(stream)(*to + i * SX_WIDTH, v[i]);
    else
        SX_EACH SX_DO(storeu)(*to + i * SX_WIDTH, v[i]);
    *e += 4 * SX_WIDTH;
    *to += 4 * SX_WIDTH;
    *left -= 4 * SX_WIDTH;
}

/* A line of it past the caches: `length` of its elements, the others are the next block's, of a shift of
   their own. */
static void SX_OF(sx_stream_line)(const SX_REAL *e, int64_t length, SX_REAL shift, SX_REAL next_shift,
                                  SX_REAL a, SX_REAL *to)
{
    int64_t j;
    for (j = 0; j < SX_LINE / (int64_t)sizeof(SX_REAL); j += SX_WIDTH) {
        SX_VECTOR by = SX_OF(sx_choose)(SX_OF(sx_first)(length - j), SX_DO(set1)(shift),
                                        SX_DO(set1)(next_shift));
        SX_DO(stream)(to + j, SX_DO(fmadd)(SX_DO(mul)(SX_DO(loadu)(e + j), by), SX_DO(set1)(a),
                                           SX_DO(setzero)()));
    }
}

SX_INLINE double SX_OF(sx_exp_block_and)(const SX_REAL *x, int64_t length, int64_t place_1,
                                         int64_t place_2, SX_REAL k, SX_REAL low, const SX_REAL *next,
                                         int64_t next_length, int64_t ahead, sx_beside *beside,
                                         const int how, SX_REAL *e, SX_REAL *top, int64_t *start)
{
    const int64_t stripe = 4 * SX_LANES;
    SX_VECTOR all_k[4], all_low[4], v[4], taken_1 = SX_DO(setzero)(), taken_2 = taken_1;
    const SX_VECTOR shift = SX_DO(set1)((SX_REAL)beside->shift), a = SX_DO(set1)((SX_REAL)beside->a);
    const SX_REAL *kept = (const SX_REAL *)beside->e;
    SX_REAL *to = (SX_REAL *)beside->to;
    SX_ALIGNED SX_REAL terms[4 * SX_LANES];
    SX_OF(sx_tops) tops;
    int64_t whole = length & ~(stripe - 1), filled = whole, left = beside->length, seen, j, l;
    double sum;
    int i;
    tops.all = SX_DO(set1)(-INFINITY);
    tops.stripes = 0;
    SX_EACH all_k[i] = SX_DO(set1)(k), all_low[i] = SX_DO(set1)(low);
    seen = next != NULL && next_length >= whole ? whole : 0;
    for (j = 0; j < whole; j += stripe) {
        SX_VECTOR of_stripe = SX_DO(set1)(-INFINITY);
        for (l = 0; l < SX_LANES; l += SX_WIDTH) {
            sx_prefetch((const char *)(x + j + 4 * l) + ahead, 4 * SX_WIDTH * sizeof(SX_REAL));
            SX_EACH v[i] = SX_DO(loadu)(x + j + l + i * SX_LANES);
            SX_DO(storeu)(terms + j / 4 + l, SX_OF(sx_exp_terms)(v, all_k, all_low, e + j + l));
            if (seen)
                SX_EACH of_stripe = SX_DO(max)(SX_DO(loadu)(next + j + l + i * SX_LANES), of_stripe);
            SX_OF(sx_step_beside)(&kept, &to, &left, shift, a, how);
        }
        if (seen)
            SX_OF(sx_note_top)(&tops, of_stripe);
    }
    if (next != NULL) {
        SX_OF(sx_find_top)(next, seen, next_length, &tops);
        *top = SX_OF(sx_first_top)(&tops, start);
    }
    sx_prefetch((const char *)(x + whole) + ahead, (length - whole) * sizeof(SX_REAL));
    if (length - whole > 3 * SX_LANES && whole) {
        for (l = 0; l < SX_LANES; l += SX_WIDTH) {
            for (i = 0; i < 3; i++)
                v[i] = SX_DO(loadu)(x + whole + l + i * SX_LANES);
            v[3] = SX_OF(sx_load_first)(x + whole + l + 3 * SX_LANES,
                                        length - whole - l - 3 * SX_LANES, SX_DO(set1)(-INFINITY));
            SX_DO(storeu)(terms + whole / 4 + l,
                          SX_OF(sx_exp_terms)(v, all_k, all_low, e + whole + l));
            SX_OF(sx_step_beside)(&kept, &to, &left, shift, a, how);
        }
        filled = whole + stripe;
    } else if (whole < length) {
        filled = whole + SX_OF(sx_exp_tail)(x + whole, length - whole, all_k, all_low, e + whole);
        for (l = 0; l < SX_LANES && whole; l += SX_WIDTH)
            SX_DO(storeu)(terms + whole / 4 + l,
                          SX_OF(sx_terms)(e + whole + l, (filled - whole) / SX_LANES));
    }
    if (how) {
        beside->e = kept;
        beside->to = to;
        beside->length = left;
    }
    if (place_1 >= 0)
        taken_1 = SX_OF(sx_take_out)(e, place_1);
    if (place_2 >= 0)
        taken_2 = SX_OF(sx_take_out)(e, place_2);
    if (filled <= stripe) {
        sum = SX_OF(sx_sum_stripe)(e, filled / SX_LANES);
    } else {
        if (place_1 >= 0)
            SX_OF(sx_add_without)(e, place_1, filled, terms);
        if (place_2 >= 0)
            SX_OF(sx_add_without)(e, place_2, filled, terms);
        sum = SX_OF(sx_sum_stripes)(terms, (filled + stripe - 1) / stripe);
    }
    if (place_2 >= 0)
        SX_OF(sx_put_back)(e, place_2, taken_2);
    if (place_1 >= 0)
        SX_OF(sx_put_back)(e, place_1, taken_1);
    return sum;
}

/* e of a block, and the sum of all but two of them (-1: none), which are not the same. e, apart from x,
   has room for whole lanes: +0 behind `length`. Of the block that comes `next`, unless NULL, meanwhile
   the largest (-inf if there is none), and from where on to look for it; what lies `ahead` bytes behind
   x is fetched. (From memory, one thread: 1.3 to 1.5 times as fast as the maximum, exp and the sums of
   every 256 elements in loops of their own.) `beside`: as much of it as the loop has turns for. */
static double SX_OF(sx_exp_block)(const SX_REAL *x, int64_t length, int64_t place_1, int64_t place_2,
                                  SX_REAL k, SX_REAL low, const SX_REAL *next, int64_t next_length,
                                  int64_t ahead, sx_beside *beside, SX_REAL *e, SX_REAL *top,
                                  int64_t *start)
{
    int how = beside->length == 0 ? 0 : beside->streams ? 2 : 1;
#define SX_BLOCK(next, how)                                                                           \
    SX_OF(sx_exp_block_and)(x, length, place_1, place_2, k, low, next, next_length, ahead, beside, how, \
                            e, top, start)
    if (how == 2)
        return SX_BLOCK(next, 2);
    if (how == 1)
        return SX_BLOCK(next, 1);
    return next == NULL ? SX_BLOCK(NULL, 0) : SX_BLOCK(next, 0);
#undef SX_BLOCK
}

#undef SX_REAL
#undef SX_VECTOR
#undef SX_MASK
#undef SX_WIDTH
#undef SX_DO
#undef SX_OF
#undef SX_LOG2_OF_E
#undef SX_LN2_PART
#undef SX_LN2_PART_REST
#undef SX_POLYNOMIAL
#undef SX_ROWS_AT_ONCE
#undef SX_VECTORS_OF_ROWS
#undef SX_EACH_OF_ROWS
