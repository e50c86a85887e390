# ---- reduce: C > 64 ------------------------------------------------------------------------------

cdef inline real larger(real a, real b) noexcept nogil:
    return b if b > a else a


cdef inline real block_top(const real* x, int64_t length) noexcept nogil:
    if real is float:
        return sx_top_f32(x, length)
    else:
        return sx_top_f64(x, length)


cdef inline int64_t first_place(const real* x, int64_t length, real value) noexcept nogil:
    if real is float:
        return sx_first_place_f32(x, length, value)
    else:
        return sx_first_place_f64(x, length, value)


cdef inline int64_t whole_lanes(int64_t length) noexcept nogil:
    return (length + LANES - 1) & ~<int64_t>(LANES - 1)


cdef inline void exp_run(const real* x, int64_t length, real k, real low, const scaling* scale,
                         real* e) noexcept nogil:
    # A multiple of half the lanes, which are whole fours of vectors.
    cdef int64_t i
    if scaling is sx_unit and SX_HAS_EXP_BLOCK:
        if real is float:
            sx_exp_many_f32(x, length, k, low, e)
        else:
            sx_exp_many_f64(x, length, k, low, e)
        return
    for i in range(length):
        e[i] = exp_of(x[i], k, low, scale)


cdef inline void exp_part(const real* x, int64_t length, real k, real low, const scaling* scale,
                          real* e) noexcept nogil:
    # Up to STRIPE of them; e, apart from x, has room for whole lanes: +0 behind `length`.
    cdef real tail[LANES]
    cdef int64_t i = 0, j
    # What comes the block after the next is fetched meanwhile.
    sx_prefetch(<const char*>x + AHEAD + BLOCK * sizeof(real), length * sizeof(real))
    if length == STRIPE:
        exp_run(x, STRIPE, k, low, scale, e)
        return
    while i + LANES <= length:
        exp_run(x + i, LANES, k, low, scale, e + i)
        i += LANES
    if i < length:
        if real is float:
            sx_copy_tail_f32(x + i, length - i, tail)
        else:
            sx_copy_tail_f64(x + i, length - i, tail)
        if length - i > LANES // 2:
            exp_run(<const real*>tail, LANES, k, low, scale, e + i)
        else:
            exp_run(<const real*>tail, LANES // 2, k, low, scale, e + i)
            for j in range(LANES // 2):
                e[i + LANES // 2 + j] = 0


cdef inline real take(real* e, int64_t place) noexcept nogil:
    cdef real taken = 0
    if place >= 0:
        taken = e[place]
        e[place] = 0
    return taken


cdef inline void put_back(real* e, int64_t place, real taken) noexcept nogil:
    if place >= 0:
        e[place] = taken


cdef inline int64_t within(int64_t place, int64_t start) noexcept nogil:
    return place - start if start <= place < start + STRIPE else -1


cdef struct Next:
    # The block that comes next, NULL: none in sight; its largest logit is found before it is due, for
    # its exp would wait for it.
    const char* x
    int64_t length
    double top
    int64_t start    # no earlier one is as large
    sx_beside beside # some other map: what is left of it


cdef inline Next nothing_next() noexcept nogil:
    cdef Next next
    next.x = NULL
    next.length = 0
    next.top = 0.0
    next.start = 0
    next.beside.e = NULL
    next.beside.to = NULL
    next.beside.shift = 1.0
    next.beside.a = 1.0
    next.beside.length = 0
    next.beside.streams = 0
    return next


cdef inline void see(Next* next, real* unused) noexcept nogil:
    if next.x != NULL:
        next.top = block_top(<const real*>next.x, next.length)
        next.start = 0


cdef inline double exp_block(const real* x, int64_t length, int64_t place_1, int64_t place_2, real k,
                             real low, Next* next, real* e) noexcept nogil:
    cdef real top = 0
    cdef double sum
    if real is float:
        sum = sx_exp_block_f32(x, length, place_1, place_2, k, low, <const real*>next.x, next.length,
                               AHEAD + BLOCK * sizeof(real), &next.beside, e, &top,
                               &next.start)
    else:
        sum = sx_exp_block_f64(x, length, place_1, place_2, k, low, <const real*>next.x, next.length,
                               AHEAD + BLOCK * sizeof(real), &next.beside, e, &top,
                               &next.start)
    next.top = top
    return sum


cdef double exp_and_sum(const real* x, int64_t length, int64_t place_1, int64_t place_2, real k,
                        real low, Next* next, const scaling* scale, real* e) noexcept nogil:
    # The e of a block, and the sum of all but two of them (-1: none), which are not the same.
    cdef double lanes[LANES]
    cdef int64_t i = 0, j, part, at_1, at_2
    if scaling is sx_unit and SX_HAS_EXP_BLOCK:
        return exp_block(x, length, place_1, place_2, k, low, next, e)
    for j in range(LANES):
        lanes[j] = 0.0
    see(next, <real*>NULL)
    while i < length:
        part = min(length - i, STRIPE)
        at_1 = within(place_1, i)
        at_2 = within(place_2, i)
        exp_part(x + i, part, k, low, scale, e + i)
        if at_1 < 0 and at_2 < 0:
            if real is float:
                sx_add_stripe_f32(e + i, whole_lanes(part), lanes)
            else:
                sx_add_stripe_f64(e + i, whole_lanes(part), lanes)
        elif real is float:
            sx_add_stripe_but_f32(e + i, whole_lanes(part), at_1, at_2, lanes)
        else:
            sx_add_stripe_but_f64(e + i, whole_lanes(part), at_1, at_2, lanes)
        i += STRIPE
    return sx_fold_lanes(lanes)


cdef double lane_squares(const real* e, int64_t length) noexcept nogil:
    # Of e^2, added as e are.
    cdef double lanes[LANES]
    cdef real terms[LANES]
    cdef int64_t i = 0, j
    for j in range(LANES):
        lanes[j] = 0.0
    while i < length:
        for j in range(LANES):
            terms[j] = e[i + j] * e[i + j]
        i += LANES
        while i < length and i % STRIPE != 0:
            for j in range(LANES):
                terms[j] = fma_of(e[i + j], e[i + j], terms[j])
            i += LANES
        for j in range(LANES):
            lanes[j] += <double>terms[j]
    return sx_fold_lanes(lanes)


cdef inline void merge_block(Rows* rows, int64_t j, double n, double top, int64_t k_top,
                             double e_top, double rest) noexcept nogil:
    cdef double shift
    if not top > rows.top[j]:
        shift = sx_pow2(n - rows.n[j]) if top > -INFINITY else 1.0
        sx_two_sum(&rows.rest[j], &rows.carry[j], rest * shift)
        sx_two_sum(&rows.rest[j], &rows.carry[j], e_top * shift)
        return
    if rows.top[j] > -INFINITY:
        shift = sx_pow2(rows.n[j] - n)
        rows.rest[j] *= shift
        rows.carry[j] *= shift
        sx_two_sum(&rows.rest[j], &rows.carry[j], rows.e_top[j] * shift)
    sx_two_sum(&rows.rest[j], &rows.carry[j], rest)
    rows.n[j] = n
    rows.top[j] = top
    rows.k_top[j] = k_top
    rows.e_top[j] = e_top


# Of what stands beside the softmax: sums over a block in 64 lanes of float64.

cdef double block_sum(const real* u, int64_t length) noexcept nogil:
    cdef double lanes[LANES]
    cdef int64_t i, j
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        for j in range(LANES):
            lanes[j] += <double>u[i + j]
        i += LANES
    for j in range(length - i):
        lanes[j] += <double>u[i + j]
    return sx_fold_lanes(lanes)


cdef inline double gap_of(real x, real top) noexcept nogil:
    # A class of logit -inf has no part in it: has_impossible sees to those with target mass. The
    # largest of subnormal logits was found with all of them read as 0.
    cdef double gap = <double>(top - x)
    return gap if 0.0 < gap < INFINITY else 0.0


cdef double block_gap(const real* x, const real* u, int64_t length, real top) noexcept nogil:
    # Sum of u (top - x); u NULL: of top - x.
    cdef double lanes[LANES]
    cdef int64_t i, j
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    if u == NULL:
        while i + LANES <= length:
            for j in range(LANES):
                lanes[j] += gap_of(x[i + j], top)
            i += LANES
        for j in range(length - i):
            lanes[j] += gap_of(x[i + j], top)
    else:
        while i + LANES <= length:
            for j in range(LANES):
                lanes[j] += <double>u[i + j] * gap_of(x[i + j], top)
            i += LANES
        for j in range(length - i):
            lanes[j] += <double>u[i + j] * gap_of(x[i + j], top)
    return sx_fold_lanes(lanes)


cdef double block_mix(const real* x, int64_t length, real top, real k, real low,
                             const scaling* scale) noexcept nogil:
    # Sum of e (top - x); k and low are those of the reference less MIX_POWER.
    cdef double lanes[LANES]
    cdef int64_t i, j
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        for j in range(LANES):
            lanes[j] += <double>exp_of(x[i + j], k, low, scale) * gap_of(x[i + j], top)
        i += LANES
    for j in range(length - i):
        lanes[j] += <double>exp_of(x[i + j], k, low, scale) * gap_of(x[i + j], top)
    return sx_fold_lanes(lanes)


cdef double block_self(const real* t, int64_t length) noexcept nogil:
    # Sum of t log t.
    cdef double lanes[LANES]
    cdef int64_t i, j
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        for j in range(LANES):
            lanes[j] += sx_self_information(<double>t[i + j])
        i += LANES
    for j in range(length - i):
        lanes[j] += sx_self_information(<double>t[i + j])
    return sx_fold_lanes(lanes)


cdef double block_squares(const real* t, int64_t length) noexcept nogil:
    # Sum of t^2.
    cdef double lanes[LANES]
    cdef int64_t i, j
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        for j in range(LANES):
            lanes[j] += <double>t[i + j] * <double>t[i + j]
        i += LANES
    for j in range(length - i):
        lanes[j] += <double>t[i + j] * <double>t[i + j]
    return sx_fold_lanes(lanes)


cdef double block_cross(const real* e, const real* t, int64_t length) noexcept nogil:
    # Sum of e t.
    cdef double lanes[LANES]
    cdef int64_t i, j
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i + LANES <= length:
        for j in range(LANES):
            lanes[j] += <double>e[i + j] * <double>t[i + j]
        i += LANES
    for j in range(length - i):
        lanes[j] += <double>e[i + j] * <double>t[i + j]
    return sx_fold_lanes(lanes)


cdef inline bint is_positive(real t) noexcept nogil:
    if real is float:
        return sx_is_positive_f32(t)
    else:
        return sx_is_positive_f64(t)


cdef inline bint is_refused(real t) noexcept nogil:
    if real is float:
        return sx_is_refused_f32(t)
    else:
        return sx_is_refused_f64(t)


cdef inline bint is_large(real t) noexcept nogil:
    # Products with it could leave float32.
    if real is float:
        return t > <float>NARROW_MOST
    else:
        return False


cdef bint has_impossible(const real* x, const real* t, const real* v,
                                int64_t length) noexcept nogil:
    # Whether a class of logit -inf has target mass; t, v NULL: they are 1.
    cdef int64_t i
    cdef int found = 0
    if t == NULL and v == NULL:
        for i in range(length):
            found |= x[i] == <real>-INFINITY
    elif t == NULL:
        for i in range(length):
            found |= (x[i] == <real>-INFINITY) & (v[i] > 0)
    elif v == NULL:
        for i in range(length):
            found |= (x[i] == <real>-INFINITY) & is_positive(t[i])
    else:
        for i in range(length):
            found |= (x[i] == <real>-INFINITY) & is_positive(t[i]) & (v[i] > 0)
    return found != 0


cdef void merge_moments(Moments* moments, int64_t j, double mass, double gap,
                               double before, double top) noexcept nogil:
    # A block's sums, its largest logit `top`; the row's was `before`.
    if top > -INFINITY:
        if top > before:
            if before > -INFINITY:
                sx_two_sum(&moments.gap[j], &moments.gap_carry[j],
                           times(top - before, moments.mass[j] + moments.mass_carry[j]))
        else:
            gap += times(before - top, mass)
        sx_two_sum(&moments.gap[j], &moments.gap_carry[j], gap)
    sx_two_sum(&moments.mass[j], &moments.mass_carry[j], mass)


cdef void merge_mix(Rows* rows, int64_t j, double n, double top, double total,
                           double mix) noexcept nogil:
    # Before merge_block; total, mix: the block's sums of e and e (top - z), over 2^n.
    cdef double shift, so_far
    if not top > -INFINITY:
        return
    if top > rows.top[j]:
        if rows.top[j] > -INFINITY:
            shift = sx_pow2(rows.n[j] - n)
            so_far = (rows.rest[j] + rows.carry[j]) + rows.e_top[j]
            rows.mix[j] *= shift
            rows.mix_carry[j] *= shift
            if shift > 0.0:
                sx_two_sum(&rows.mix[j], &rows.mix_carry[j],
                           so_far * MIX_UNIT * shift * (top - rows.top[j]))
    else:
        shift = sx_pow2(n - rows.n[j])
        mix *= shift
        if shift > 0.0:
            mix += total * MIX_UNIT * shift * (rows.top[j] - top)
    sx_two_sum(&rows.mix[j], &rows.mix_carry[j], mix)


cdef void merge_squares(Rows* rows, int64_t j, double n, double top, double square,
                        double cross) noexcept nogil:
    # Before merge_block; square, cross: the block's sums of e^2 and e t, over 2^2n and 2^n.
    cdef double shift
    if top > rows.top[j]:
        if rows.top[j] > -INFINITY:
            shift = sx_pow2(rows.n[j] - n)
            rows.square[j] *= shift * shift
            rows.square_carry[j] *= shift * shift
            rows.cross[j] *= shift
            rows.cross_carry[j] *= shift
    elif top > -INFINITY:
        shift = sx_pow2(n - rows.n[j])
        square *= shift * shift
        cross *= shift
    sx_two_sum(&rows.square[j], &rows.square_carry[j], square)
    sx_two_sum(&rows.cross[j], &rows.cross_carry[j], cross)


cdef inline const real* weighted(const sx_call* call, const real* t, int64_t k0, int64_t length,
                                 real* room) noexcept nogil:
    # u = v t.
    cdef const real* v = <const real*>call.class_weight_real
    cdef int64_t i
    if v == NULL:
        return t
    for i in range(length):
        room[i] = t[i] * v[k0 + i]
    return room


cdef void reduce_soft(const sx_call* call, Rows* rows, int64_t j, const real* x,
                             const real* t, int64_t k0, int64_t length, real top, double before,
                             char* room) noexcept nogil:
    # Probabilities and smoothing.
    cdef const real* v = <const real*>call.class_weight_real
    cdef const real* u
    cdef int64_t i
    cdef int refused = 0, large = 0
    # Subnormal targets count: times a gap they may be more than a subnormal number.
    sx_float_subnormals(True)
    if v != NULL:
        v += k0
    if t != NULL:
        for i in range(length):
            refused |= is_refused(t[i])
            large |= is_large(t[i])
        if refused:
            sx_refuse(call)
        if refused or large:
            rows.lane[j] = POISONED if refused else SLOW
            sx_float_subnormals(False)
            return
        if call.op == SQUARED_ERROR:
            sx_two_sum(&rows.soft_square[j], &rows.soft_square_carry[j], block_squares(t, length))
            sx_float_subnormals(False)
            return
        if call.op == KL:
            sx_two_sum(&rows.self[j], &rows.self_carry[j], block_self(t, length))
        u = weighted(call, t, k0, length, <real*>(room + ROOM_MASS))
        merge_moments(&rows.soft, j, block_sum(u, length), block_gap(x, u, length, top), before,
                      top)
        if has_impossible(x, t, v, length) and call.smoothing < 1.0:
            rows.impossible[j] = 1.0
    if call.smoothing > 0.0:
        merge_moments(&rows.flat, j, <double>length if v == NULL else block_sum(v, length),
                      block_gap(x, v, length, top), before, top)
        if has_impossible(x, <const real*>NULL, v, length):
            rows.impossible[j] = 1.0
    sx_float_subnormals(False)


cdef inline void reduce_block(const sx_call* call, Rows* rows, int64_t j, const real* x,
                              const real* t, int64_t k0, int64_t length, real real_top,
                              int64_t start, Next* next, const scaling* scale,
                              char* room) noexcept nogil:
    # t: the block's probabilities, or NULL; real_top: its largest logit, and start: no earlier one is
    # as large.
    cdef double limit = limit_of(<real*>NULL, scale), top, n, rest, e_top = 0.0
    cdef double square = 0.0, cross = 0.0
    cdef double far = limit + SX_OUT_OF_REACH / inverse_of(scale)
    cdef int64_t place = -1, y = rows.y[j], y_place = -1
    cdef real* e
    cdef real k, low, at_place = 0, at_y = 0
    if rows.lane[j] != FAST:
        see(next, <real*>NULL)
        return
    if k0 <= y < k0 + length:
        y_place = y - k0
        rows.z_y[j] = x[y_place]
    top = real_top
    if top > limit:
        rows.lane[j] = SLOW
        see(next, <real*>NULL)
        return
    if t != NULL or call.smoothing > 0.0:
        reduce_soft(call, rows, j, x, t, k0, length, real_top, rows.top[j], room)
        if rows.lane[j] != FAST:
            see(next, <real*>NULL)
            return
    n = 0.0
    if top > -INFINITY:
        # Far below the limit the power may stop: nothing there reaches a row served here.
        n = power_near(top if top > -far else -far, scale)
    power_of(n, &k, &low, scale)
    e = kept_block(rows, j, k0, length, <real*>NULL)
    if e != NULL:
        keep_power(rows, j, k0, n if top > -INFINITY else -INFINITY)
    else:
        e = <real*>(rows.e_to if rows.e_to != NULL else room + ROOM_E)
    if top > -INFINITY:
        place = start + first_place(x + start, length - start, real_top)
    if place == y_place:
        y_place = -1
    rest = exp_and_sum(x, length, place, y_place, k, low, next, scale, e)
    if top > -INFINITY and k0 + place != y:
        e_top = e[place]
    if call.op == SQUARED_ERROR:
        at_place = take(e, place)
        at_y = take(e, y_place)
        square = lane_squares(e, whole_lanes(length))
        put_back(e, place, at_place)
        if t != NULL:
            cross = block_cross(e, t, length)
        merge_squares(rows, j, n, top, square + e_top * e_top, cross)
    if call.op == ENTROPY:
        power_of(n - MIX_POWER, &k, &low, scale)
        merge_mix(rows, j, n, top, rest + e_top, block_mix(x, length, real_top, k, low, scale))
    merge_block(rows, j, n, top, k0 + place, e_top, rest)


# ---- reduce: C <= 64 -----------------------------------------------------------------------------

cdef inline void add(real* unused, double* total, double* carry, double x) noexcept nogil:
    # Up to 64 terms that are exact, or rounded to float32, need no compensation in float64.
    if real is float:
        total[0] += x
    else:
        sx_kahan(total, carry, x)


cdef inline void top_columns(int64_t classes, const real* x, real* tops, real* places) noexcept nogil:
    cdef real value, at
    cdef int64_t i, j
    if SX_HAS_EXP_BLOCK:
        if real is float:
            sx_top_columns_f32(x, classes, tops, places)
        else:
            sx_top_columns_f64(x, classes, tops, places)
        return
    for j in range(GROUP):
        tops[j] = -INFINITY
        places[j] = <real>SMALL
    # Maxima and minima, where a choice between old and new would be compiled to a store behind a
    # branch.
    for i in range(classes):
        for j in range(GROUP):
            tops[j] = larger(tops[j], x[i * GROUP + j])
    for i in range(classes):
        at = <real>i
        for j in range(GROUP):
            value = at if x[i * GROUP + j] == tops[j] else <real>SMALL
            places[j] = value if value < places[j] else places[j]
    for j in range(GROUP):
        places[j] = <real>0.0 if places[j] == <real>SMALL else places[j]    # of NaN, or of -inf


cdef inline void exp_columns(int64_t classes, const real* x, const real* k, const real* low,
                             const real* places, const real* targets, real* e, double* rest,
                             double* carry, real* e_tops, const scaling* scale) noexcept nogil:
    # e; those at `places`, +0 where they are the targets'; and the sums of the others.
    cdef scaling own = scale[0]    # a store to e cannot change it: the loop below becomes vectors
    cdef real value, at
    cdef int64_t i, j
    if scaling is sx_unit and SX_HAS_EXP_BLOCK:
        if real is float:
            sx_exp_and_sum_columns_f32(x, classes, k, low, places, targets, e, rest, carry, e_tops)
        else:
            sx_exp_and_sum_columns_f64(x, classes, k, low, places, targets, e, rest, carry, e_tops)
        return
    for j in range(GROUP):
        rest[j] = 0.0
        carry[j] = 0.0
        e_tops[j] = 0
    for i in range(classes):
        at = <real>i
        for j in range(GROUP):
            value = exp_of(x[i * GROUP + j], k[j], low[j], &own)
            e[i * GROUP + j] = value
            # Sums of one term, as above.
            value = <real>0.0 if targets[j] == at else value
            e_tops[j] += value if places[j] == at else <real>0.0
            value = <real>0.0 if places[j] == at else value
            if real is float:
                rest[j] += <double>value
            else:
                sx_kahan(&rest[j], &carry[j], value)


cdef void reduce_columns(Rows* rows, int64_t classes, const real* x, real* e,
                         const scaling* scale) noexcept nogil:
    # x, e: class k of row j at k GROUP + j, so that every loop runs over the rows.
    cdef double limit = limit_of(<real*>NULL, scale), top
    cdef double rest[GROUP]
    cdef double carry[GROUP]
    cdef real tops[GROUP]
    cdef real places[GROUP]
    cdef real targets[GROUP]
    cdef real e_tops[GROUP]
    cdef real k_of[GROUP]
    cdef real low_of[GROUP]
    cdef real z_ys[GROUP]
    cdef int32_t at[GROUP]
    cdef int32_t y
    cdef int64_t j
    for j in range(GROUP):
        y = <int32_t>rows.y[j]    # AVX2 has no vectors of the conversion from int64
        targets[j] = <real>y
        at[j] = (y if y > 0 else 0) * GROUP + <int32_t>j    # without a target: any number
    for j in range(GROUP):
        z_ys[j] = x[at[j]]
    top_columns(classes, x, tops, places)
    for j in range(GROUP):
        top = tops[j]
        rows.top[j] = top
        rows.k_top[j] = <int32_t>places[j]
        # Rows for the slow lane (finish_reduce): any number that does no harm.
        rows.n[j] = power_near(top if -limit <= top <= limit else 0.0, scale)
        power_of(rows.n[j], &k_of[j], &low_of[j], scale)
    exp_columns(classes, x, k_of, low_of, places, targets, e, rest, carry, e_tops, scale)
    for j in range(GROUP):
        rows.z_y[j] = z_ys[j]
        rows.rest[j] = rest[j]
        rows.carry[j] = carry[j]
        rows.e_top[j] = e_tops[j]


cdef void reduce_row(Rows* rows, int64_t j, const real* x, int64_t classes, real* e,
                     const scaling* scale) noexcept nogil:
    # The same for one row, its classes side by side: every sum is of the same terms in the same order.
    # e, apart from x, has room for SMALL.
    cdef double limit = limit_of(<real*>NULL, scale), rest = 0.0, carry = 0.0
    cdef real top = block_top(x, classes), k, low, e_top, e_y
    cdef int64_t i, y = rows.y[j], place = first_place(x, classes, top)
    rows.top[j] = top
    rows.k_top[j] = place
    rows.n[j] = power_near(top if -limit <= top <= limit else 0.0, scale)
    rows.z_y[j] = x[y if y > 0 else 0]
    power_of(rows.n[j], &k, &low, scale)
    exp_part(x, classes, k, low, scale, e)
    e_y = take(e, y)
    e_top = take(e, place)
    for i in range(classes):
        add(<real*>NULL, &rest, &carry, e[i])
    put_back(e, place, e_top)
    put_back(e, y, e_y)
    rows.rest[j] = rest
    rows.carry[j] = carry
    rows.e_top[j] = e_top    # +0 where it is the target


cdef void reduce_moments(Rows* rows, Moments* moments, int64_t classes, const real* x,
                         const real* u, const real* v, bint by_row) noexcept nogil:
    # By row: u, laid out like x; else v, of each class; NULL: 1.
    cdef real top, weight
    cdef int64_t i, j
    for i in range(classes):
        for j in range(GROUP):
            top = <real>rows.top[j]
            weight = u[i * GROUP + j] if by_row else (v[i] if v != NULL else <real>1.0)
            add(<real*>NULL, &moments.mass[j], &moments.mass_carry[j], weight)
            add(<real*>NULL, &moments.gap[j], &moments.gap_carry[j],
                <double>weight * gap_of(x[i * GROUP + j], top))


cdef void find_impossible(Rows* rows, int64_t classes, const real* x, const real* t,
                          const real* v) noexcept nogil:
    cdef int64_t i, j
    for i in range(classes):
        if v != NULL and v[i] == 0:
            continue
        for j in range(GROUP):
            if x[i * GROUP + j] == <real>-INFINITY and (t == NULL
                                                        or is_positive(t[i * GROUP + j])):
                rows.impossible[j] = 1.0


cdef void check_columns(const sx_call* call, Rows* rows, const real* t) noexcept nogil:
    cdef int64_t refused[GROUP]
    cdef int64_t large[GROUP]
    cdef int64_t i, j
    for j in range(GROUP):
        refused[j] = 0
        large[j] = 0
    for i in range(call.n_classes):
        for j in range(GROUP):
            refused[j] |= is_refused(t[i * GROUP + j])
            large[j] |= is_large(t[i * GROUP + j])
    for j in range(rows.count):
        if rows.lane[j] == FAST or rows.lane[j] == SLOW:
            if refused[j]:
                sx_refuse(call)
                rows.lane[j] = POISONED
            elif large[j]:
                rows.lane[j] = SLOW


cdef void reduce_soft_columns(const sx_call* call, Rows* rows, const real* x, const real* t,
                              real* u) noexcept nogil:
    # Probabilities (t, or NULL) and smoothing; u: where they are weighted.
    cdef const real* v = <const real*>call.class_weight_real
    cdef const real* mass = t
    cdef int64_t i, j
    sx_float_subnormals(True)    # see reduce_soft
    if t != NULL:
        check_columns(call, rows, t)
        if call.op == SQUARED_ERROR:
            sx_float_subnormals(False)
            return
        if call.op == KL:
            for i in range(call.n_classes):
                for j in range(GROUP):
                    sx_two_sum(&rows.self[j], &rows.self_carry[j],
                               sx_self_information(<double>t[i * GROUP + j]))
        if v != NULL:
            for i in range(call.n_classes):
                for j in range(GROUP):
                    u[i * GROUP + j] = t[i * GROUP + j] * v[i]
            mass = u
        reduce_moments(rows, &rows.soft, call.n_classes, x, mass, <const real*>NULL, True)
        if call.smoothing < 1.0:
            find_impossible(rows, call.n_classes, x, t, v)
    if call.smoothing > 0.0:
        reduce_moments(rows, &rows.flat, call.n_classes, x, <const real*>NULL, v, False)
        find_impossible(rows, call.n_classes, x, <const real*>NULL, v)
    sx_float_subnormals(False)


cdef void reduce_square_columns(const sx_call* call, Rows* rows, const real* t,
                                const real* e) noexcept nogil:
    # Sums of e^2 but for a class target's; with t also of e t and t^2.
    cdef real targets[GROUP]
    cdef real value
    cdef int64_t i, j
    for j in range(GROUP):
        targets[j] = <real>rows.y[j]
    for i in range(call.n_classes):
        for j in range(GROUP):
            value = <real>0.0 if targets[j] == <real>i else e[i * GROUP + j]
            add(<real*>NULL, &rows.square[j], &rows.square_carry[j],
                <double>value * <double>value)
        if t != NULL:
            for j in range(GROUP):
                add(<real*>NULL, &rows.cross[j], &rows.cross_carry[j],
                    <double>e[i * GROUP + j] * <double>t[i * GROUP + j])
                add(<real*>NULL, &rows.soft_square[j], &rows.soft_square_carry[j],
                    <double>t[i * GROUP + j] * <double>t[i * GROUP + j])


cdef void reduce_mix_columns(Rows* rows, int64_t classes, const real* x,
                             const scaling* scale) noexcept nogil:
    cdef real k_of[GROUP]
    cdef real low_of[GROUP]
    cdef real e
    cdef int64_t i, j
    for j in range(GROUP):
        power_of(rows.n[j] - MIX_POWER, &k_of[j], &low_of[j], scale)
    for i in range(classes):
        for j in range(GROUP):
            e = exp_of(x[i * GROUP + j], k_of[j], low_of[j], scale)
            add(<real*>NULL, &rows.mix[j], &rows.mix_carry[j],
                <double>e * gap_of(x[i * GROUP + j], <real>rows.top[j]))


# ---- reduce: the slow lane -----------------------------------------------------------------------

cdef double capped(const sx_call* call, const sx_scale* half, double x,
                   double* slope) noexcept nogil:
    slope[0] = 1.0
    if call.softcap == 0.0:
        return x
    return sx_softcap_f64(x, call.softcap, half, slope)


cdef inline double slow_gap(double u, double top, double z, double unit) noexcept nogil:
    # Over `unit`: the difference may overflow where the product does not.
    return 0.0 if z == -INFINITY or u == 0.0 else u * (top / unit - z / unit)


cdef int reduce_slow(const sx_call* call, Rows* rows, int64_t j, const scaling* scale,
                     sx_control* control) noexcept nogil:
    # Any values, any layout, one element at a time, in float64. The reference is a power of two, or
    # beyond the limit the largest logit: z - top is exact there where it matters, for both lie within
    # a factor of two of each other.
    cdef int64_t k, k_top = 0, y = rows.y[j], stride = call.logits.class_stride
    cdef int64_t kind = call.logits.rows.type
    cdef const char* z = rows.z[j]
    cdef double value, slope, u, v, e = 0.0, narrow = 1.0 / call.class_unit, top = -INFINITY
    cdef double least = INFINITY, unit = 1.0, power_k, power_low, mix_k, mix_low
    cdef bint has_nan = False
    for k in range(call.n_classes):
        value = capped(call, rows.half, sx_load_real(z + k * stride, kind), &slope)
        if value > top:
            top = value
            k_top = k
        if -INFINITY < value < least:
            least = value
        if k == y:
            rows.z_y[j] = value
        has_nan |= value != value
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    rows.top[j] = top
    rows.k_top[j] = k_top
    rows.n[j] = 0.0
    rows.moved[j] = top
    if fabs(top) <= limit_of(<double*>NULL, scale):
        rows.n[j] = power_near(top, scale)
        rows.moved[j] = 0.0
    power_of(rows.n[j], &power_k, &power_low, scale)
    power_of(rows.n[j] - MIX_POWER, &mix_k, &mix_low, scale)
    rows.rest[j] = 0.0
    rows.carry[j] = 0.0
    rows.e_top[j] = 0.0
    if k_top != y:
        rows.e_top[j] = exp_of(top - rows.moved[j], power_k, power_low, scale)
    rows.mix[j] = rows.mix_carry[j] = 0.0
    rows.self[j] = rows.self_carry[j] = 0.0
    rows.square[j] = rows.square_carry[j] = 0.0
    rows.cross[j] = rows.cross_carry[j] = 0.0
    rows.soft_square[j] = rows.soft_square_carry[j] = 0.0
    rows.impossible[j] = 0.0
    rows.soft.mass[j] = rows.soft.mass_carry[j] = rows.soft.gap[j] = rows.soft.gap_carry[j] = 0.0
    rows.flat.mass[j] = rows.flat.mass_carry[j] = rows.flat.gap[j] = rows.flat.gap_carry[j] = 0.0
    if has_nan or not fabs(top) < INFINITY:
        rows.rest[j] = NAN
        rows.no_result[j] = NAN if has_nan else top
    if 0.5 * top - 0.5 * least > WIDE_GAP:
        unit = MIX_UNIT
    rows.gap_unit[j] = unit
    for k in range(call.n_classes):
        value = capped(call, rows.half, sx_load_real(z + k * stride, kind), &slope)
        if k != k_top and k != y:
            e = exp_of(value - rows.moved[j], power_k, power_low, scale)
            sx_two_sum(&rows.rest[j], &rows.carry[j], e)
            if call.op == ENTROPY:
                e = exp_of(value - rows.moved[j], mix_k, mix_low, scale)
                sx_two_sum(&rows.mix[j], &rows.mix_carry[j], slow_gap(e, top, value, 1.0))
        if call.op == SQUARED_ERROR:
            e = exp_of(value - rows.moved[j], power_k, power_low, scale)
            if k != y:
                sx_two_sum(&rows.square[j], &rows.square_carry[j], e * e)
        v = call.class_weight[k] * narrow if call.class_weight != NULL else 1.0
        if call.soft.rows.data != NULL:
            # Subnormal ones count; walks flush them.
            sx_float_subnormals(True)
            u = sx_load_real(rows.t[j] + k * call.soft.class_stride, call.soft.rows.type)
            if is_refused(u):
                sx_refuse(call)
            if value == -INFINITY and u > 0.0 and v > 0.0 and call.smoothing < 1.0:
                rows.impossible[j] = 1.0
            if call.op == KL:
                sx_two_sum(&rows.self[j], &rows.self_carry[j], sx_self_information(u))
            if call.op == SQUARED_ERROR:
                sx_two_sum(&rows.cross[j], &rows.cross_carry[j], e * u)
                sx_two_sum(&rows.soft_square[j], &rows.soft_square_carry[j], u * u)
                rows.impossible[j] = 0.0
            u *= v
            sx_two_sum(&rows.soft.mass[j], &rows.soft.mass_carry[j], u)
            sx_two_sum(&rows.soft.gap[j], &rows.soft.gap_carry[j], slow_gap(u, top, value, unit))
            sx_float_subnormals(call.all_slow != 0)
        if call.smoothing > 0.0:
            if value == -INFINITY and v > 0.0:
                rows.impossible[j] = 1.0
            sx_two_sum(&rows.flat.gap[j], &rows.flat.gap_carry[j], slow_gap(v, top, value, unit))
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    return 0


