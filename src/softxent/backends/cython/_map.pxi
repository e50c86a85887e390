# ---- map -----------------------------------------------------------------------------------------

cdef inline bint is_narrow(double factor) noexcept nogil:
    # A NaN too: all of its row becomes NaN either way.
    return not (factor != 0.0) & ((fabs(factor) < NARROW_LEAST) | (fabs(factor) > NARROW_MOST))


cdef inline double at_slope(const real* slope, int64_t i) noexcept nogil:
    return slope[i] if slope != NULL else 1.0


cdef inline real widely(real e, double factor, double slope) noexcept nogil:
    # A slope of 0 takes a factor that overflowed with it.
    return <real>times(slope, times(e, factor))


cdef inline void store_products(const real* e, real shift, double a, int64_t length, bint streams,
                                real* out) noexcept nogil:
    # e times a power of two, times a; past the caches if `streams`.
    if real is float:
        if streams:
            sx_stream_run_f32(e, shift, <float>a, length, out)
        else:
            sx_scale_run_f32(e, shift, <float>a, length, out)
    else:
        if streams:
            sx_stream_run_f64(e, shift, a, length, out)
        else:
            sx_scale_run_f64(e, shift, a, length, out)


cdef void map_run(const sx_call* call, Rows* rows, int64_t j, const real* x, const real* slope,
                  real* out, int64_t k0, int64_t length, const scaling* scale, bint last,
                  char* room) noexcept nogil:
    # Gradient or softmax of consecutive classes; x and out are the same memory or apart. slope: the
    # softcap's, or NULL. last: nothing reads the result again.
    cdef real k, low, shift, a
    cdef real* e
    cdef int64_t i
    if not is_narrow(rows.a[j]):
        power_of(rows.n[j], &k, &low, scale)
        # Apart, or AVX2's masked load of no lane from NULL would take 70 times as long as any other.
        if slope == NULL:
            for i in range(length):
                out[i] = widely(exp_of(x[i], k, low, scale), rows.a[j], 1.0)
        else:
            for i in range(length):
                out[i] = widely(exp_of(x[i], k, low, scale), rows.a[j], slope[i])
        return
    e = NULL
    if has_kept(call, rows, j, k0, length, <real*>NULL):
        e = kept_block(rows, j, k0, length, <real*>NULL)
        shift = <real>sx_pow2(kept_steps(rows, j, k0))
    else:
        power_of(rows.n[j], &k, &low, scale)
        if last and call.streams:
            # Near, for what passes the caches begins at a line of its own.
            e = <real*>(room + ROOM_E)
            shift = 1
            i = 0
            while i < length:
                exp_part(x + i, min(length - i, STRIPE), k, low, scale, e + i)
                i += STRIPE
    if e != NULL:
        store_products(e, shift, rows.a[j], length, last and call.streams != 0, out)
    else:
        # exp and product in one loop: one computes while the other stores.
        a = <real>rows.a[j]
        i = 0
        if scaling is sx_unit and SX_HAS_EXP_BLOCK:
            if real is float:
                i = sx_exp_times_many_f32(x, length, k, low, a, out)
            else:
                i = sx_exp_times_many_f64(x, length, k, low, a, out)
        if x == out:
            for i in range(i, length):
                out[i] = fma_of(exp_of(out[i], k, low, scale), a, <real>0.0)
        else:
            for i in range(i, length):
                out[i] = fma_of(exp_of(x[i], k, low, scale), a, <real>0.0)
    if slope != NULL:
        for i in range(length):
            out[i] *= slope[i]


cdef inline void map_log(Rows* rows, int64_t j, const real* x, real* out, int64_t length,
                         const scaling* scale) noexcept nogil:
    cdef double high = rows.high[j], low = rows.low[j], inverse = inverse_of(scale)
    cdef int64_t i
    if x == out:
        for i in range(length):
            out[i] = <real>((<double>out[i] - high) * inverse - low)
    else:
        for i in range(length):
            out[i] = <real>((<double>x[i] - high) * inverse - low)


cdef inline bint is_wide_square(Rows* rows, int64_t j) noexcept nogil:
    return not (is_narrow(rows.a[j]) and is_narrow(rows.q[j]) and is_narrow(rows.d[j]))


cdef inline bint is_wide(const sx_call* call, Rows* rows, int64_t j) noexcept nogil:
    # Whether a factor of the row's map needs float64.
    if is_squared(call):
        return is_wide_square(rows, j)
    return not (is_narrow(rows.a[j])
                and (call.soft.rows.data == NULL or is_narrow(rows.b[j]))
                and (call.smoothing == 0.0 or is_narrow(rows.c[j])))


cdef double beside(const sx_call* call, Rows* rows, int64_t j, double t,
                          int64_t k) noexcept nogil:
    # b u + c v of one class, in float64.
    cdef double sum = 0.0, v = 1.0
    if call.class_weight != NULL:
        v = call.class_weight[k] / call.class_unit
    if call.soft.rows.data != NULL:
        sum = times(t * v, rows.b[j])
    if call.smoothing > 0.0:
        sum += times(v, rows.c[j])
    return sum


cdef void map_mixed(const sx_call* call, Rows* rows, int64_t j, const real* x, const real* t,
                    const real* slope, real* out, int64_t k0, int64_t length, const scaling* scale,
                    char* room) noexcept nogil:
    # The gradient where probabilities or smoothing are in it: e a + b u + c v.
    cdef const real* v = <const real*>call.class_weight_real
    cdef const real* u
    cdef real b = <real>rows.b[j], c = <real>rows.c[j], k, low
    cdef int64_t i
    if is_wide(call, rows, j):
        power_of(rows.n[j], &k, &low, scale)
        for i in range(length):
            out[i] = <real>times(at_slope(slope, i), (
                times(exp_of(x[i], k, low, scale), rows.a[j])
                + beside(call, rows, j, t[i] if t != NULL else <real>0.0, k0 + i)))
        return
    map_run(call, rows, j, x, <const real*>NULL, out, k0, length, scale, False, room)
    if t != NULL:
        u = weighted(call, t, k0, length, <real*>(room + ROOM_MASS))
        for i in range(length):
            out[i] = fma_of(u[i], b, out[i])
    if call.smoothing > 0.0:
        if v == NULL:
            for i in range(length):
                out[i] += c
        else:
            for i in range(length):
                out[i] = fma_of(v[k0 + i], c, out[i])
    if slope != NULL:
        for i in range(length):
            out[i] *= slope[i]


cdef inline double square_of(Rows* rows, int64_t j, double e, double t) noexcept nogil:
    # In map_square's order, for float64 has these bits on either way. 0 takes a factor that
    # overflowed with it.
    cdef double sum = rows.a[j]
    sum = sx_fma_f64(e, rows.q[j], sum) if e != 0.0 else sum
    sum = sx_fma_f64(t, rows.d[j], sum) if t != 0.0 else sum
    return times(e, sum)


cdef inline real times_square(real e, real q, real a) noexcept nogil:
    return fma_of(e, fma_of(e, q, a), <real>0.0)


cdef inline real times_square_and(real e, real q, real a, real t, real d) noexcept nogil:
    return fma_of(e, fma_of(t, d, fma_of(e, q, a)), <real>0.0)


cdef void map_square(const sx_call* call, Rows* rows, int64_t j, const real* x, const real* t,
                     real* out, int64_t k0, int64_t length, const scaling* scale) noexcept nogil:
    # The squared error's gradient: e (a + q e + d t); t NULL: no d.
    cdef real k, low, shift, a = <real>rows.a[j], q = <real>rows.q[j], d = <real>rows.d[j]
    cdef const real* e
    cdef int64_t i
    power_of(rows.n[j], &k, &low, scale)
    if is_wide_square(rows, j):
        if t == NULL:
            for i in range(length):
                out[i] = <real>square_of(rows, j, exp_of(x[i], k, low, scale), 0.0)
        else:
            for i in range(length):
                out[i] = <real>square_of(rows, j, exp_of(x[i], k, low, scale), t[i])
    elif has_kept(call, rows, j, k0, length, <real*>NULL):
        e = kept_block(rows, j, k0, length, <real*>NULL)
        shift = <real>sx_pow2(kept_steps(rows, j, k0))
        if t == NULL:
            for i in range(length):
                out[i] = times_square(e[i] * shift, q, a)
        else:
            for i in range(length):
                out[i] = times_square_and(e[i] * shift, q, a, t[i], d)
    elif t == NULL:
        if x == out:
            for i in range(length):
                out[i] = times_square(exp_of(out[i], k, low, scale), q, a)
        else:
            for i in range(length):
                out[i] = times_square(exp_of(x[i], k, low, scale), q, a)
    elif x == out:
        for i in range(length):
            out[i] = times_square_and(exp_of(out[i], k, low, scale), q, a, t[i], d)
    else:
        for i in range(length):
            out[i] = times_square_and(exp_of(x[i], k, low, scale), q, a, t[i], d)


cdef void raise_to_floor(const sx_call* call, real* out, int64_t length) noexcept nogil:
    cdef real least = <real>call.floor
    cdef int64_t i
    if call.floor > 0.0:
        for i in range(length):
            out[i] = least if out[i] < least else out[i]


cdef void map_columns_square(const sx_call* call, Rows* rows, const real* t,
                             real* e) noexcept nogil:
    cdef real a[GROUP]
    cdef real q[GROUP]
    cdef real d[GROUP]
    cdef real value
    cdef int64_t i, j
    for j in range(GROUP):
        a[j] = <real>rows.a[j]
        q[j] = <real>rows.q[j]
        d[j] = <real>rows.d[j]
        if j < rows.count and is_wide_square(rows, j):
            for i in range(call.n_classes):
                e[i * GROUP + j] = <real>square_of(rows, j, e[i * GROUP + j],
                                                   t[i * GROUP + j] if t != NULL else <real>0.0)
            a[j] = 1.0
            q[j] = 0.0
            d[j] = 0.0
    for i in range(call.n_classes):
        if t == NULL:
            for j in range(GROUP):
                value = fma_of(e[i * GROUP + j], q[j], a[j])
                e[i * GROUP + j] = fma_of(e[i * GROUP + j], value, <real>0.0)
        else:
            for j in range(GROUP):
                value = fma_of(t[i * GROUP + j], d[j], fma_of(e[i * GROUP + j], q[j], a[j]))
                e[i * GROUP + j] = fma_of(e[i * GROUP + j], value, <real>0.0)
    raise_to_floor(call, e, call.n_classes * GROUP)


cdef void map_columns_mixed(const sx_call* call, Rows* rows, const real* t, real* slope,
                            real* e) noexcept nogil:
    cdef real a[GROUP]
    cdef real b[GROUP]
    cdef real c[GROUP]
    cdef const real* v = <const real*>call.class_weight_real
    cdef real weight
    cdef int64_t i, j, classes = call.n_classes
    for j in range(GROUP):
        a[j] = <real>rows.a[j]
        b[j] = <real>rows.b[j]
        c[j] = <real>rows.c[j]
        if j < rows.count and is_wide(call, rows, j):
            for i in range(classes):
                e[i * GROUP + j] = <real>times(at_slope(slope, i * GROUP + j), (
                    times(e[i * GROUP + j], rows.a[j])
                    + beside(call, rows, j, t[i * GROUP + j] if t != NULL else <real>0.0, i)))
                if slope != NULL:
                    slope[i * GROUP + j] = 1.0
            a[j] = 1.0
            b[j] = 0.0
            c[j] = 0.0
    for i in range(classes):
        weight = v[i] if v != NULL else <real>1.0
        for j in range(GROUP):
            e[i * GROUP + j] = fma_of(e[i * GROUP + j], a[j], <real>0.0)
        if t != NULL:
            for j in range(GROUP):
                e[i * GROUP + j] = fma_of(t[i * GROUP + j] * weight, b[j], e[i * GROUP + j])
        if call.smoothing > 0.0:
            for j in range(GROUP):
                e[i * GROUP + j] = fma_of(weight, c[j], e[i * GROUP + j])


cdef void map_columns(const sx_call* call, Rows* rows, const real* x, const real* t, real* slope,
                      real* e, const scaling* scale) noexcept nogil:
    # C <= 64: from kept e (log_softmax: from x) to the result, in e; the target's entry with it.
    # t: the probabilities, or NULL; slope: the softcap's, or NULL, used up here.
    cdef real a[GROUP]
    cdef real apart[GROUP]
    cdef real targets[GROUP]
    cdef real value
    cdef double inverse = inverse_of(scale)
    cdef int64_t i, j, wide = 0, classes = call.n_classes
    cdef bint square = is_squared(call)
    cdef bint mixed = not square and not is_plain(call)
    if call.op == LOG_SOFTMAX:
        for i in range(classes):
            for j in range(GROUP):
                e[i * GROUP + j] = <real>((<double>x[i * GROUP + j] - rows.high[j]) * inverse
                                          - rows.low[j])
        return
    for j in range(GROUP):
        wide |= not is_narrow(rows.a[j])
    for j in range(GROUP):
        a[j] = <real>rows.a[j]
        apart[j] = <real>rows.apart[j]
        targets[j] = <real><int32_t>rows.y[j]    # -1 in a softmax: no such class
    for j in range(rows.count if wide and not mixed and not square else 0):
        if not is_narrow(rows.a[j]):
            for i in range(classes):
                e[i * GROUP + j] = widely(e[i * GROUP + j], rows.a[j],
                                          at_slope(slope, i * GROUP + j))
                if slope != NULL:
                    slope[i * GROUP + j] = 1.0
            a[j] = 1.0
    if mixed:
        map_columns_mixed(call, rows, t, slope, e)
    if square:
        map_columns_square(call, rows, t, e)
    if mixed or square:
        for j in range(GROUP):
            a[j] = 1.0
    if slope != NULL:
        for i in range(classes):
            for j in range(GROUP):
                e[i * GROUP + j] = fma_of(e[i * GROUP + j], a[j], <real>0.0) * slope[i * GROUP + j]
        for j in range(GROUP):
            a[j] = 1.0
    if classes == 1 and call.op == SOFTMAX and slope == NULL:
        for j in range(GROUP):
            e[j] = <real>rows.w[j] if rows.a[j] == rows.a[j] else <real>NAN    # 1, exactly
        return
    for i in range(classes):
        for j in range(GROUP):
            value = fma_of(e[i * GROUP + j], a[j], <real>0.0)
            e[i * GROUP + j] = apart[j] if targets[j] == <real>i else value


cdef int map_slow(const sx_call* call, Rows* rows, int64_t j, char* g, int64_t g_stride,
                  int64_t g_kind, const scaling* scale, sx_control* control) noexcept nogil:
    # A whole row that is not FAST; the logits and g may be the same memory.
    cdef int64_t k
    cdef double value, slope, t = 0.0, power_k, power_low
    cdef bint square = is_squared(call)
    cdef bint mixed = not square and not is_plain(call)
    power_of(rows.n[j], &power_k, &power_low, scale)
    sx_float_subnormals(call.all_slow != 0)
    for k in range(call.n_classes):
        if rows.lane[j] == SKIPPED:
            value = 0.0
        elif rows.lane[j] == POISONED:
            value = NAN
        else:
            value = capped(call, rows.half, sx_load_real(rows.z[j] + k * call.logits.class_stride,
                                                         call.logits.rows.type), &slope)
            if call.op == LOG_SOFTMAX:
                value = half_way(value, rows.high[j], 0.0, scale) - rows.low[j]
            elif square:
                if call.soft.rows.data != NULL:
                    t = sx_load_real(rows.t[j] + k * call.soft.class_stride, call.soft.rows.type)
                value = square_of(rows, j, exp_of(value - rows.moved[j], power_k, power_low, scale), t)
                if call.op == HESSIAN:
                    value = at_least(call.floor, value)
            else:
                value = times(exp_of(value - rows.moved[j], power_k, power_low, scale), rows.a[j])
            if mixed:
                if call.soft.rows.data != NULL:
                    t = sx_load_real(rows.t[j] + k * call.soft.class_stride, call.soft.rows.type)
                value += beside(call, rows, j, t, k)
            value = times(slope, value)
        sx_store_real(g + k * g_stride, g_kind, value)
        if (k & 65535) == 65535 and sx_tick(control, 65536):
            return SX_STOPPED
    sx_float_subnormals(False)
    return 0


cdef void map_apart(const sx_call* call, Rows* rows, int64_t j, char* g, int64_t stride,
                           int64_t kind) noexcept nogil:
    # The entry that does not come from the map, stored last.
    if rows.y[j] >= 0:
        sx_store_real(g + rows.y[j] * stride, kind, rows.apart[j])
    elif call.op == LOG_SOFTMAX and rows.apart[j] < 0.9:
        # log p of a leader: (z - r) - log S would cancel. Ties of the largest are below 1/2 each,
        # and keep the bits that the map gave them.
        sx_store_real(g + rows.k_top[j] * stride, kind, 0.0 - sx_log1p(rows.apart[j]))


