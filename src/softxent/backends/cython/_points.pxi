# ---- one logit a row -----------------------------------------------------------------------------
#
# Binary cross-entropy, POINTS rows at a time, whatever axes they have: brought near, computed in
# loops without a branch, and sent back. With e = exp(-|z|), t the target and v the weight of what
# targets of 1 cost, yes = v t and no = 1 - t (in float64, rounded once),
#
#     loss      |z| (yes where z < 0, else no) + (yes + no) log(1 + e)           terms >= 0
#     gradient  no sigma(z) - yes sigma(-z),    sigma(|z|) = 1 / (1 + e), sigma(-|z|) = e / (1 + e)
#
# times s, and s, upstream and the divisor. All of it in the logits' precision. An element of a size
# that could leave float32, or fall below it and count, is computed anew in float64, by itself: its
# neighbours do not tell. The sum of the losses of such a stretch: block_sum's. Where there are no
# weights, and logits and gradient are neighbours of the walk's own type, they are used where they are.

cdef enum:
    POINTS = 1024
    # In a thread's room: stretches of float64 at most, not a multiple of 4 KiB apart, for a loop
    # reads and writes all of them at one place.
    ROOM_X = 0
    ROOM_G = 8512
    ROOM_YES = 17024
    ROOM_NO = 25536
    ROOM_S = 34048
    ROOM_W = 42560
    ROOM_VALUE = 51072
    # As they are given: float64.
    ROOM_GIVEN_T = 59584
    ROOM_GIVEN_V = 68096
    ROOM_GIVEN_S = 76608
    ROOM_GIVEN_W = 85120
    ROOM_BYTES = 93632        # as they are in the array


cdef inline bint has_weights(const sx_call* call) noexcept nogil:
    return (call.pos_weight.data != NULL or call.sample_weight.data != NULL
            or call.upstream.data != NULL)


cdef inline bint are_single(const sx_call* call) noexcept nogil:
    # Whether the targets are float32, bool, or of another type that float32 holds, and nothing else
    # is given: they are then float32 all the way.
    cdef int64_t kind = call.soft.rows.type
    return not has_weights(call) and (
        kind & SX_TYPE_SIZE <= 2 or kind == (SX_TYPE_FLOAT | 4))


cdef void load_run(const char* p, int64_t kind, int64_t stride, int64_t count, char* bytes,
                   real* to) noexcept nogil:
    # Some rows' numbers of any type that `real` holds; with subnormals on.
    cdef int64_t i, size = kind & SX_TYPE_SIZE
    cdef real value
    if stride == 0:
        value = <real>sx_load_real(p, kind)
        for i in range(count):
            to[i] = value
        return
    if stride == size and size <= 8:
        if kind == (SX_TYPE_FLOAT | <int64_t>sizeof(real)):
            memcpy(to, p, count * size)
            return
        memcpy(bytes, p, count * size)
        if kind == (SX_TYPE_FLOAT | 4):
            for i in range(count):
                to[i] = (<const float*>bytes)[i]
            return
        if kind == (SX_TYPE_UNSIGNED | 1):    # bool
            for i in range(count):
                to[i] = (<const unsigned char*>bytes)[i]
            return
        if kind == 8:
            for i in range(count):
                to[i] = <real>(<const int64_t*>bytes)[i]
            return
    for i in range(count):
        to[i] = <real>sx_load_real(p + i * stride, kind)


cdef void load_logits(const char* p, int64_t kind, int64_t stride, int64_t count, char* bytes,
                      real* to) noexcept nogil:
    cdef int64_t i
    if stride == sizeof(real) and kind == (SX_TYPE_FLOAT | <int64_t>sizeof(real)):
        memcpy(to, p, count * sizeof(real))
        return
    if real is float:
        if stride == 2 and (kind == SX_TYPE_F16 or kind == SX_TYPE_BF16):
            memcpy(bytes, p, 2 * count)
            sx_widen(<const uint16_t*>bytes, kind == SX_TYPE_BF16, count, to)
            return
    for i in range(count):
        to[i] = <real>sx_load_real(p + i * stride, kind)


cdef void store_run(char* p, int64_t kind, int64_t stride, int64_t count, char* bytes,
                    const real* given) noexcept nogil:
    cdef int64_t i
    if stride == sizeof(real) and kind == (SX_TYPE_FLOAT | <int64_t>sizeof(real)):
        memcpy(p, given, count * sizeof(real))
        return
    if real is float:
        if stride == 2 and (kind == SX_TYPE_F16 or kind == SX_TYPE_BF16):
            sx_narrow(given, kind == SX_TYPE_BF16, count, <uint16_t*>bytes)
            memcpy(p, bytes, 2 * count)
            return
    for i in range(count):
        sx_store_real(p + i * stride, kind, given[i])


cdef void load_points(const sx_call* call, sx_cursor* cursor, int64_t length, char* room,
                      real* unused) noexcept nogil:
    cdef real* x = <real*>(room + ROOM_X)
    cdef double* t = <double*>(room + ROOM_GIVEN_T)
    cdef double* v = <double*>(room + ROOM_GIVEN_V)
    cdef double* s = <double*>(room + ROOM_GIVEN_S)
    cdef double* w = <double*>(room + ROOM_GIVEN_W)
    cdef float* single = <float*>(room + ROOM_YES)
    cdef char* bytes = room + ROOM_BYTES
    cdef int64_t i = 0, run, last = call.n_axes - 1
    if has_weights(call):
        for i in range(length):
            v[i] = 1.0
            s[i] = 1.0
            w[i] = 1.0
    i = 0
    while i < length:
        run = min(sx_cursor_run(cursor, call), length - i)
        load_logits(cursor.logits, call.logits.rows.type, call.logits.rows.strides[last], run,
                    bytes, x + i)
        if sizeof(real) == 4 and are_single(call):
            load_run(cursor.soft, call.soft.rows.type, call.soft.rows.strides[last], run, bytes,
                     single + i)
        else:
            load_run(cursor.soft, call.soft.rows.type, call.soft.rows.strides[last], run, bytes,
                     t + i)
        if call.pos_weight.data != NULL:
            load_run(cursor.pos_weight, call.pos_weight.type, call.pos_weight.strides[last], run,
                     bytes, v + i)
        if call.sample_weight.data != NULL:
            load_run(cursor.sample_weight, call.sample_weight.type,
                     call.sample_weight.strides[last], run, bytes, s + i)
        if call.upstream.data != NULL:
            load_run(cursor.upstream, call.upstream.type, call.upstream.strides[last], run, bytes,
                     w + i)
        sx_cursor_skip(cursor, call, run)
        i += run


cdef inline real magnitude(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline bint is_far(double size) noexcept nogil:
    # No float32, or none that products may be made of. A NaN too.
    return not (size == 0.0 or (NARROW_LEAST <= size <= NARROW_MOST))


cdef inline bint is_far_point(real x, double yes, double s, double w) noexcept nogil:
    return (not fabs(x) <= NARROW_MOST) | is_far(yes) | is_far(s) | is_far(fabs(w))


cdef bint prepare_points(const sx_call* call, int64_t length, char* room,
                         real* unused) noexcept nogil:
    # From what is given to yes, no and the two factors, in the logits' precision; whether a point
    # is far. With subnormals on.
    cdef real* x = <real*>(room + ROOM_X)
    cdef real* yes = <real*>(room + ROOM_YES)
    cdef real* no = <real*>(room + ROOM_NO)
    cdef real* s = <real*>(room + ROOM_S)
    cdef real* w = <real*>(room + ROOM_W)
    cdef double* given_t = <double*>(room + ROOM_GIVEN_T)
    cdef double* given_v = <double*>(room + ROOM_GIVEN_V)
    cdef double* given_s = <double*>(room + ROOM_GIVEN_S)
    cdef double* given_w = <double*>(room + ROOM_GIVEN_W)
    cdef double scale = call.scale, t, v
    cdef int64_t i
    cdef int refused = 0, far = 0
    cdef real share
    if sizeof(real) == 4 and are_single(call):
        for i in range(length):
            share = yes[i]
            refused |= not (<real>0.0 <= share <= <real>1.0)
            far |= (not magnitude(x[i]) <= <real>NARROW_MOST) | (
                (share < <real>NARROW_LEAST) & (share > <real>0.0))
            no[i] = <real>(1.0 - <double>share)
        far |= is_far(fabs(scale))
    elif not has_weights(call):
        for i in range(length):
            t = given_t[i]
            refused |= sx_is_no_share(t)
            far |= (not fabs(x[i]) <= NARROW_MOST) | is_far(t)
            yes[i] = <real>t
            no[i] = <real>(1.0 - t)
        far |= is_far(fabs(scale))
    else:
        for i in range(length):
            # Of weight 0: nothing of it is used.
            t = given_t[i] if given_s[i] != 0.0 else 0.0
            x[i] = x[i] if given_s[i] != 0.0 else <real>0.0
            v = given_s[i] * (scale * given_w[i])
            given_w[i] = v if given_s[i] != 0.0 else 0.0
            given_t[i] = t
            refused |= sx_is_no_share(t)
            v = given_v[i] * t
            far |= is_far_point(x[i], v, given_s[i], given_w[i])
            yes[i] = <real>v
            no[i] = <real>(1.0 - t)
            s[i] = <real>given_s[i]
            w[i] = <real>given_w[i]
    if refused:
        sx_refuse(call)
    return far != 0


cdef inline real log1p_of(real x) noexcept nogil:
    if real is float:
        return sx_log1p_f32(x)
    else:
        return sx_log1p(x)


cdef inline real near_inverse(real d) noexcept nogil:
    if real is float:
        return sx_inverse_f32(d)
    else:
        return sx_inverse_f64(d)


cdef inline real of_sum(real w, real difference) noexcept nogil:
    # Of weight 0: +0. Without a branch: in one, what it is of would be computed one by one.
    cdef real product = w * difference
    return <real>0.0 if (w == 0.0) & (difference == difference) else product


cdef inline void compute_point(real x, real yes, real no, real k, real low, bint plain,
                               real* value, real* g) noexcept nogil:
    # plain: x is finite, and no is 1 - yes, rounded, to which adding yes gives 1.
    cdef sx_unit unit
    cdef real size = magnitude(x), e, far, near, side, other, slope
    e = exp_of(-size, k, low, &unit)
    far = near_inverse(<real>1.0 + e)
    near = e * far
    side = yes if x < 0.0 else no
    other = no if x < 0.0 else yes
    slope = side * far - other * near
    if plain:
        value[0] = side * size + log1p_of(e)
    else:
        value[0] = of_sum(side, size) + (yes + no) * log1p_of(e)
    g[0] = <real>0.0 - slope if x < 0.0 else slope


cdef void compute_points(const sx_call* call, int64_t length, char* room,
                         real* unused) noexcept nogil:
    cdef const real* x = <const real*>(room + ROOM_X)
    cdef const real* yes = <const real*>(room + ROOM_YES)
    cdef const real* no = <const real*>(room + ROOM_NO)
    cdef const real* s = <const real*>(room + ROOM_S)
    cdef const real* w = <const real*>(room + ROOM_W)
    cdef double* values = <double*>(room + ROOM_VALUE)
    cdef real* g = <real*>(room + ROOM_G)
    cdef real k, low, scale = <real>call.scale
    # Of their own, not in the room: nothing else can be there, and the loop becomes vectors.
    cdef real own_values[LANES]
    cdef real own_g[LANES]
    cdef bint weighted = has_weights(call)
    cdef int64_t i, j
    power_of(0.0, &k, &low, <sx_unit*>NULL)
    i = 0
    while i < length:    # what is behind the last is harmless
        for j in range(LANES):
            compute_point(x[i + j], yes[i + j], no[i + j], k, low, False, &own_values[j], &own_g[j])
        if weighted:
            for j in range(LANES):
                own_values[j] = s[i + j] * own_values[j]
                own_g[j] = of_sum(w[i + j], own_g[j])
        else:
            for j in range(LANES):
                own_g[j] = of_sum(scale, own_g[j])
        for j in range(LANES):
            values[i + j] = <double>own_values[j]
        memcpy(g + i, own_g, sizeof(own_g))
        i += LANES


cdef void compute_far_points(const sx_call* call, int64_t length, char* room,
                             real* unused) noexcept nogil:
    cdef const real* x = <const real*>(room + ROOM_X)
    cdef const double* given_t = <const double*>(room + ROOM_GIVEN_T)
    cdef const double* given_v = <const double*>(room + ROOM_GIVEN_V)
    cdef const double* given_s = <const double*>(room + ROOM_GIVEN_S)
    cdef const double* given_w = <const double*>(room + ROOM_GIVEN_W)
    cdef real* g = <real*>(room + ROOM_G)
    cdef double* values = <double*>(room + ROOM_VALUE)
    cdef bint weighted = has_weights(call)
    cdef const float* single = <const float*>(room + ROOM_YES)
    cdef bint is_single = are_single(call)
    cdef double k, low, t, yes, value = 0.0, slope = 0.0, s = 1.0, w = call.scale
    cdef int64_t i
    power_of(0.0, &k, &low, <sx_unit*>NULL)
    for i in range(length):
        t = single[i] if is_single else given_t[i]
        yes = t
        if weighted:
            yes = given_v[i] * t
            s = given_s[i]
            w = given_w[i]
        if is_far_point(x[i], yes, s, w):
            compute_point(<double>x[i], yes, 1.0 - t, k, low, False, &value, &slope)
            values[i] = s * value
            g[i] = <real>of_sum(w, slope)


cdef inline bint is_own(const sx_matrix* matrix, int64_t axis, real* unused) noexcept nogil:
    # Whether a run's numbers are neighbours of the walk's type, aligned.
    return (matrix.direct in (SX_IN_PLACE, SX_STRIDED)
            and matrix.rows.strides[axis] == sizeof(real))


cdef inline bint are_near(const sx_call* call, sx_cursor* cursor, int64_t length,
                          real* unused) noexcept nogil:
    cdef int64_t last = call.n_axes - 1
    return (length % LANES == 0 and not has_weights(call)
            and call.scale != 0.0 and not is_far(fabs(call.scale))
            and (sizeof(real) == 8 or are_single(call))
            and sx_cursor_run(cursor, call) >= length
            and is_own(&call.logits, last, unused)
            and (call.out_map.rows.data == NULL or is_own(&call.out_map, last, unused)))


cdef const real* targets_near(const sx_call* call, sx_cursor* cursor, int64_t length, char* room,
                              real* unused) noexcept nogil:
    cdef int64_t last = call.n_axes - 1
    cdef real* t = <real*>(room + ROOM_YES)
    if is_own(&call.soft, last, unused):
        return <const real*>cursor.soft
    load_run(cursor.soft, call.soft.rows.type, call.soft.rows.strides[last], length,
             room + ROOM_BYTES, t)
    return t


cdef bint has_far_near(const real* x, const real* t, int64_t length) noexcept nogil:
    # Whether a point is far, or refused: something to look at again. With subnormals on.
    cdef int64_t i
    cdef int found = 0
    for i in range(length):
        found |= ((not t[i] >= <real>0.0) | (not t[i] <= <real>1.0)
                  | (not magnitude(x[i]) <= <real>NARROW_MOST))
    if real is float:
        for i in range(length):
            found |= (t[i] < <real>NARROW_LEAST) & (t[i] > <real>0.0)
    return found != 0


cdef void compute_near(const sx_call* call, const real* x, const real* t, real* out, int64_t piece,
                       int64_t length) noexcept nogil:
    # What compute_points and block_sum do; out: NULL, or the logits' memory, or none of theirs.
    cdef double lanes[LANES]
    cdef real own_values[LANES]
    cdef real own_g[LANES]
    cdef real k, low, scale = <real>call.scale
    cdef int64_t i, j, first = piece * POINTS
    power_of(0.0, &k, &low, <sx_unit*>NULL)
    for j in range(LANES):
        lanes[j] = 0.0
    i = 0
    while i < length:
        for j in range(LANES):
            compute_point(x[i + j], t[i + j], <real>1.0 - t[i + j], k, low, True, &own_values[j],
                          &own_g[j])
            own_g[j] = scale * own_g[j]
        if out != NULL:
            memcpy(out + i, own_g, sizeof(own_g))
        if call.summed:
            for j in range(LANES):
                lanes[j] += <double>own_values[j]
        elif call.out_rows_is_double:
            for j in range(LANES):
                (<double*>call.out_rows)[first + i + j] = <double>own_values[j]
        else:
            for j in range(LANES):
                (<float*>call.out_rows)[first + i + j] = <float>own_values[j]
        i += LANES
    if call.summed:
        (<double*>call.out_rows)[piece] = sx_fold_lanes(lanes)


cdef int64_t walk_points(const sx_call* call, int64_t lo, int64_t hi, sx_control* control,
                         real* unused) noexcept nogil:
    cdef sx_cursor cursor
    cdef char* room = sx_room()
    cdef double* values = <double*>(room + ROOM_VALUE)
    cdef real* g = <real*>(room + ROOM_G)
    cdef int64_t piece, i, run, length, first, last = call.n_axes - 1
    cdef const real* t
    cdef bint has_far
    for piece in range(lo, hi):
        first = piece * POINTS
        length = min(<int64_t>POINTS, call.n_points - first)
        sx_cursor_start(&cursor, call, first)
        sx_float_subnormals(True)
        if are_near(call, &cursor, length, unused):
            t = targets_near(call, &cursor, length, room, unused)
            if not has_far_near(<const real*>cursor.logits, t, length):
                sx_float_subnormals(False)
                compute_near(call, <const real*>cursor.logits, t, <real*>cursor.out_map, piece,
                             length)
                if sx_tick(control, length):
                    return SX_STOPPED
                continue
        load_points(call, &cursor, length, room, unused)
        has_far = prepare_points(call, length, room, unused)
        sx_float_subnormals(False)
        compute_points(call, length, room, unused)
        if real is float:
            if has_far:
                compute_far_points(call, length, room, unused)
        sx_float_subnormals(True)
        if call.summed:
            (<double*>call.out_rows)[piece] = block_sum(<const double*>values, length)
        elif call.out_rows_is_double:
            memcpy((<double*>call.out_rows) + first, values, length * sizeof(double))
        else:
            for i in range(length):
                (<float*>call.out_rows)[first + i] = <float>values[i]
        sx_float_subnormals(False)
        if call.out_map.rows.data != NULL:
            sx_cursor_start(&cursor, call, first)
            i = 0
            while i < length:
                run = min(sx_cursor_run(&cursor, call), length - i)
                store_run(cursor.out_map, call.out_map.rows.type, call.out_map.rows.strides[last],
                          run, room + ROOM_BYTES, <const real*>(g + i))
                sx_cursor_skip(&cursor, call, run)
                i += run
        if sx_tick(control, length):
            return SX_STOPPED
    return 0
