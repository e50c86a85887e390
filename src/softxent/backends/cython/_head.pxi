# ---- head ----------------------------------------------------------------------------------------
#
# Loops over the rows of a group without a branch, so that they are compiled to vectors. A row
# without a result (NaN in a sum) stays NaN: sx_log alone would not see to that.

cdef inline double or_nan(double value, double total) noexcept nogil:
    return value if total < INFINITY else NAN


cdef inline double exp_at(double z, double n, const scaling* scale) noexcept nogil:
    # exp(z) 2^-n in float64.
    cdef double k, low
    power_of(n, &k, &low, scale)
    return exp_of(z, k, low, scale)


cdef inline double summed(double total, double carry) noexcept nogil:
    # A sum that overflowed has no carry to speak of.
    return total + carry if fabs(total) < INFINITY else total


cdef inline double surprise(double e_y, double others, double total, double to_target) noexcept nogil:
    # -log p of the target: log1p(S'/e_y) where it leads, else log S - (z_y - r).
    cdef double f, k
    sx_split_log1p_or_log(e_y >= others, others / e_y, total, &f, &k)
    return sx_log_reduced(f, k) - (0.0 if e_y >= others else to_target)


cdef inline double half_way(double z, double high, double low, const scaling* scale) noexcept nogil:
    # z - (high + low), divided by the temperature. Of large numbers in halves, for the difference
    # may overflow where the quotient does not.
    if scaling is sx_unit:
        return (z - high) - low
    else:
        return ((0.5 * z - 0.5 * high) - 0.5 * low) * (2.0 * scale.inverse)


cdef void surprises(Rows* rows, const scaling* scale, double* e_y, double* others,
                    double* value) noexcept nogil:
    # -log p of the targets, with their e and the sums of the others. Step by step for all rows: one
    # row after another is a chain of 200 cycles, longer than a processor sees ahead.
    cdef double to_target[GROUP]
    cdef double f[GROUP]
    cdef double k[GROUP]
    cdef double high, low
    cdef int64_t j
    for j in range(lanes_of(rows)):
        e_y[j] = exp_at(rows.z_y[j] - rows.moved[j], rows.n[j], scale)
    for j in range(lanes_of(rows)):
        others[j] = (rows.rest[j] + rows.carry[j]) + rows.e_top[j]
        low = reference_low(rows.n[j], &high, scale)
        high = high + rows.moved[j]          # one of the two is 0
        to_target[j] = half_way(rows.z_y[j], high, low, scale)
    for j in range(lanes_of(rows)):
        sx_split_log1p_or_log(e_y[j] >= others[j], others[j] / e_y[j], others[j] + e_y[j],
                              &f[j], &k[j])
    for j in range(lanes_of(rows)):
        value[j] = sx_log_reduced(f[j], k[j]) - (0.0 if e_y[j] >= others[j] else to_target[j])


cdef void focus_rows(Rows* rows, double gamma, const scaling* scale) noexcept nogil:
    # Of (1 - p)^gamma (-log p), and of its derivative by log p:
    # -(1 - p)^gamma (1 + gamma p (-log p) / (1 - p)). 1 - p = S'/S; where it is 0, -log p is as small.
    cdef double e_y[GROUP]
    cdef double others[GROUP]
    cdef double minus_log_p[GROUP]
    cdef double total, value, rest, focus
    cdef int64_t j
    surprises(rows, scale, e_y, others, minus_log_p)
    for j in range(lanes_of(rows)):
        total = others[j] + e_y[j]
        rest = others[j] / total
        focus = sx_power(rest, gamma)
        value = minus_log_p[j] / rest if rest > 0.0 else 1.0
        rows.focus[j] = focus
        rows.pull[j] = times(focus, 1.0 + gamma * times(e_y[j] / total, value))


cdef void head_cross_entropy(Rows* rows, const scaling* scale) noexcept nogil:
    cdef double e_y[GROUP]
    cdef double others[GROUP]
    cdef double minus_log_p[GROUP]
    cdef double total
    cdef int64_t j
    surprises(rows, scale, e_y, others, minus_log_p)
    for j in range(lanes_of(rows)):
        total = others[j] + e_y[j]
        rows.value[j] = or_nan(rows.focus[j] * minus_log_p[j], total)
        rows.a[j] = rows.w[j] * rows.pull[j] / total
        # p_y - 1 would cancel; 0 - 0 is +0.
        rows.apart[j] = 0.0 - times(others[j] / total, rows.w[j] * rows.pull[j])


cdef void head_mixed(const sx_call* call, Rows* rows, const scaling* scale) noexcept nogil:
    # Probabilities, smoothing, z-loss: with target masses of sum A, of it `hard` on the class y,
    #   loss = hard (-log p_y) + (A - hard)(-log p_top) + sum of masses (top - z) + lambda lse^2,
    # all terms >= 0; the KL divergence has the sum of t log t added.
    cdef double e_y, e_top, rest, beside, others, total, high, low, lse, mass, gap, value, f, k, more
    cdef double hard, w, n, z_y, moved, impossible, unit, soft_mass, soft_gap, flat_gap, focus, pull
    cdef double own
    cdef double inverse = inverse_of(scale), narrow = 1.0 / call.class_unit
    cdef double keep = 1.0 - call.smoothing, spread = call.smoothing / call.n_classes
    cdef double spread_mass = call.smoothing * call.class_weight_mean
    cdef double slack = call.slack
    cdef double z_loss = call.z_loss * narrow, has_z_loss = 1.0 if call.z_loss > 0.0 else 0.0
    cdef double has_classes = 1.0 if call.soft.rows.data == NULL else 0.0
    # A single class: p = 1, and what is left of A p - A is nothing.
    cdef double several = 1.0 if call.n_classes > 1 else 0.0
    cdef bint leads
    cdef int64_t j
    for j in range(lanes_of(rows)):
        # All loads first: what is behind a condition then is arithmetic alone.
        n = rows.n[j]
        z_y = rows.z_y[j]
        moved = rows.moved[j]
        hard = rows.hard[j]
        w = rows.w[j]
        e_top = rows.e_top[j]
        impossible = rows.impossible[j]
        focus = rows.focus[j]
        pull = rows.pull[j]
        unit = rows.gap_unit[j]
        rest = rows.rest[j] + rows.carry[j]
        soft_mass = summed(rows.soft.mass[j], rows.soft.mass_carry[j])
        soft_gap = summed(rows.soft.gap[j], rows.soft.gap_carry[j])
        own = summed(rows.self[j], rows.self_carry[j])
        flat_gap = summed(rows.flat.gap[j], rows.flat.gap_carry[j])
        leads = rows.k_top[j] == rows.y[j]

        e_y = exp_at(z_y - moved, n, scale)
        e_y = e_y if has_classes > 0.0 else 0.0
        others = rest + e_top
        total = others + e_y
        beside = rest + e_y
        beside = rest if leads else beside
        e_top = e_y if leads else e_top
        low = reference_low(n, &high, scale)
        high = high + moved
        low = half_way(z_y, high, low, scale)
        f = sx_split_log(total, &k)
        lse = moved * inverse + sx_log_reduced(f, k + n)
        lse = lse if has_z_loss > 0.0 else 0.0
        mass = keep * soft_mass + spread_mass
        gap = (keep * soft_gap + spread * flat_gap) * inverse * unit
        value = hard * (focus * surprise(e_y, others, total, low))
        value = value if hard > 0.0 else 0.0
        value = (value + times(sx_log1p_any(beside / e_top), mass)) + gap
        value = value + z_loss * lse * lse
        # Only a divergence can come out below 0: of targets that sum to 1, by its roundings.
        value = value + own
        value = 0.0 if value < 0.0 and fabs(mass - 1.0) <= slack else value
        value = INFINITY if impossible > 0.0 else value
        rows.value[j] = or_nan(value, total)

        hard = hard * pull * several
        more = mass * several + 2.0 * (z_loss * lse)
        rows.a[j] = times(hard + more, w) / total
        rows.b[j] = 0.0 - w * (keep * several)
        rows.c[j] = 0.0 - w * (spread * several)
        rows.apart[j] = ((0.0 - times(hard * (others / total), w)) + times(e_y / total, more * w))


cdef void head_squared_error(const sx_call* call, Rows* rows, const scaling* scale) noexcept nogil:
    # Half the sum of (p - t)^2, with c = sum of p (p - t) and the gradient p (p - t - c).
    # Of a class y, with squares the sum of the others' p^2 and 1 - p_y = S'/S: c is
    # squares - p_y (1 - p_y), and the target's entry -p_y ((1 - p_y)^2 + squares).
    cdef double e_y, others, total, p, rest, squares, cross, soft, value, mean, w
    cdef double has_classes = 1.0 if call.soft.rows.data == NULL else 0.0
    cdef int64_t j
    for j in range(lanes_of(rows)):
        w = rows.w[j]
        squares = rows.square[j] + rows.square_carry[j]
        cross = summed(rows.cross[j], rows.cross_carry[j])
        soft = summed(rows.soft_square[j], rows.soft_square_carry[j])
        e_y = exp_at(rows.z_y[j] - rows.moved[j], rows.n[j], scale)
        e_y = e_y if has_classes > 0.0 else 0.0
        others = (rows.rest[j] + rows.carry[j]) + rows.e_top[j]
        total = others + e_y
        p = e_y / total
        rest = others / total
        squares = squares / total / total
        cross = cross / total
        value = squares + rest * rest if has_classes > 0.0 else (squares + soft) - 2.0 * cross
        mean = squares - (p * rest if has_classes > 0.0 else cross)
        value = 0.0 if value < 0.0 else 0.5 * value
        rows.value[j] = or_nan(value, total)
        rows.a[j] = 0.0 - times(mean, w) / total
        rows.q[j] = w / total / total
        rows.d[j] = (0.0 - w) / total
        rows.apart[j] = 0.0 - times(p * (rest * rest + squares), w)


cdef void head_hessian(const sx_call* call, Rows* rows, const scaling* scale) noexcept nogil:
    # A p (1 - p), A the sum of the target masses: e (A/S - e A/S^2). Of the largest logit apart, 1 - p
    # is S'/S: no other p is beyond a half.
    cdef double e_y, e_top, rest, beside, total, mass, w
    cdef double keep = 1.0 - call.smoothing
    cdef double spread_mass = call.smoothing * call.class_weight_mean
    cdef double has_classes = 1.0 if call.soft.rows.data == NULL else 0.0
    cdef double plain = 1.0 if is_plain(call) else 0.0
    cdef int64_t j
    for j in range(lanes_of(rows)):
        e_top = rows.e_top[j]
        rest = rows.rest[j] + rows.carry[j]
        mass = rows.hard[j] + (keep * summed(rows.soft.mass[j], rows.soft.mass_carry[j])
                               + spread_mass)
        w = rows.w[j] * (1.0 if plain > 0.0 else mass)
        e_y = exp_at(rows.z_y[j] - rows.moved[j], rows.n[j], scale)
        e_y = e_y if has_classes > 0.0 else 0.0
        total = (rest + e_top) + e_y
        beside = rest if rows.k_top[j] == rows.y[j] else rest + e_y
        e_top = e_y if rows.k_top[j] == rows.y[j] else e_top
        w = or_nan(w, total)
        rows.value[j] = 0.0
        rows.a[j] = w / total
        rows.q[j] = (0.0 - w) / total / total
        rows.d[j] = 0.0
        rows.apart[j] = at_least(call.floor, times(e_top / total * (beside / total), w))
    for j in range(rows.count):
        if rows.lane[j] == FAST or rows.lane[j] == SLOW:
            rows.y[j] = rows.k_top[j]


cdef void head_entropy(Rows* rows, const scaling* scale) noexcept nogil:
    # log S - (top - r) + sum of p (top - z).
    cdef double apart, total
    cdef int64_t j
    for j in range(lanes_of(rows)):
        apart = rows.rest[j] + rows.carry[j]
        total = apart + rows.e_top[j]
        rows.value[j] = or_nan(
            sx_log1p_any(apart / rows.e_top[j])
            + summed(rows.mix[j], rows.mix_carry[j]) * inverse_of(scale) / MIX_UNIT / total, total)


cdef void head_shares(Rows* rows) noexcept nogil:
    # Softmax, of whose values nobody asks, and the others' sum: without a logarithm.
    cdef double others
    cdef int64_t j
    for j in range(lanes_of(rows)):
        others = rows.rest[j] + rows.carry[j]
        rows.a[j] = rows.w[j] / (others + rows.e_top[j])
        rows.apart[j] = others / rows.e_top[j]
        rows.value[j] = rows.apart[j]


cdef void head_piece(Rows* rows, const scaling* scale) noexcept nogil:
    # logsumexp and log_softmax.
    cdef double others, total, high, low, f, k
    cdef int64_t j
    for j in range(lanes_of(rows)):
        others = rows.rest[j] + rows.carry[j]
        total = others + rows.e_top[j]
        f = sx_split_log(total, &k)
        low = reference_low(rows.n[j], &high, scale)
        rows.high[j] = high + rows.moved[j]
        rows.low[j] = low * inverse_of(scale) + or_nan(sx_log_reduced(f, k), total)
        # Not high + low: near 0 they cancel. S 2^n has one exponent, S's and n.
        rows.value[j] = rows.moved[j] * inverse_of(scale) + or_nan(sx_log_reduced(f, k + rows.n[j]), total)
        rows.a[j] = rows.w[j] / total
        rows.apart[j] = others / rows.e_top[j]


cdef void finish_apart(const sx_call* call, Rows* rows) noexcept nogil:
    # The target's entry: what smoothing adds, and the softcap's slope.
    cdef int64_t j
    cdef double v, slope
    for j in range(rows.count):
        if rows.y[j] < 0:
            continue
        if call.smoothing > 0.0:
            v = call.class_weight[rows.y[j]] / call.class_unit if call.class_weight != NULL else 1.0
            rows.apart[j] += times(v, rows.c[j])
        if call.softcap != 0.0:
            capped(call, rows.half, sx_load_real(rows.z[j] + rows.y[j] * call.logits.class_stride,
                                                  call.logits.rows.type), &slope)
            rows.apart[j] = times(slope, rows.apart[j])


cdef void store_values(const sx_call* call, Rows* rows, int64_t first) noexcept nogil:
    cdef int64_t j
    if are_fast(rows) and call.out_rows_is_double and not has_row_weights(call):
        # What was computed without subnormals is none.
        if call.out_rows != NULL:
            for j in range(rows.count):
                (<double*>call.out_rows)[first + j] = rows.value[j]
        return
    # A weighted loss below the smallest normal number is nobody's subnormal probability.
    sx_float_subnormals(True)
    if are_fast(rows):
        if call.out_rows == NULL:
            pass
        elif call.out_rows_is_double:
            for j in range(rows.count):
                (<double*>call.out_rows)[first + j] = rows.weight[j] * rows.value[j]
        else:
            for j in range(rows.count):
                (<float*>call.out_rows)[first + j] = <float>(rows.weight[j] * rows.value[j])
        sx_float_subnormals(False)
        return
    for j in range(rows.count):
        if rows.lane[j] == SKIPPED:
            rows.value[j] = 0.0
            rows.a[j] = 0.0
        elif rows.lane[j] == POISONED:
            rows.value[j] = NAN
            rows.a[j] = NAN
        elif call.op == LOGSUMEXP and rows.lane[j] == SLOW and rows.rest[j] != rows.rest[j]:
            rows.value[j] = rows.no_result[j]
        if call.out_rows == NULL:
            continue
        if call.out_rows_is_double:
            (<double*>call.out_rows)[first + j] = rows.weight[j] * rows.value[j]
        else:
            (<float*>call.out_rows)[first + j] = <float>(rows.weight[j] * rows.value[j])
    sx_float_subnormals(False)


cdef void head(const sx_call* call, Rows* rows, int64_t first,
               const scaling* scale) noexcept nogil:
    # From the sums to the rows' values, and to the map's numbers.
    cdef int64_t j
    if call.op == FOCAL:
        focus_rows(rows, call.gamma, scale)
    if call.op == SQUARED_ERROR:
        head_squared_error(call, rows, scale)
    elif call.op == HESSIAN:
        head_hessian(call, rows, scale)
    elif call.op < LOGSUMEXP:
        if is_plain(call):
            head_cross_entropy(rows, scale)
        else:
            head_mixed(call, rows, scale)
        if call.out_map.rows.data != NULL and (call.smoothing > 0.0 or call.softcap != 0.0):
            finish_apart(call, rows)
    elif call.op == ENTROPY:
        head_entropy(rows, scale)
    elif call.op == SOFTMAX or call.op == BELOW:
        head_shares(rows)
    else:
        head_piece(rows, scale)
    store_values(call, rows, first)


cdef int finish_reduce(const sx_call* call, Rows* rows, int64_t first, real* unused,
                       const scaling* scale, sx_control* control) noexcept nogil:
    # Rows for the slow lane, then every row's head.
    cdef int64_t j, slow = 0
    cdef double limit = limit_of(unused, scale)
    if is_plain(call) and are_fast(rows):
        for j in range(lanes_of(rows)):
            slow |= not fabs(rows.top[j]) <= limit
        if not slow:
            head(call, rows, first, scale)
            return 0
    for j in range(rows.count):
        if rows.lane[j] == FAST and not fabs(rows.top[j]) <= limit:
            rows.lane[j] = SLOW
        if rows.lane[j] == FAST and not is_plain(call) and not (rows.soft.gap[j] < INFINITY
                                                               and rows.flat.gap[j] < INFINITY):
            rows.lane[j] = SLOW    # overflow, of float64 logits
        if rows.lane[j] == SLOW:
            # An option that sent every row here may make subnormal logits count.
            sx_float_subnormals(call.all_slow != 0)
            if reduce_slow(call, rows, j, scale, control):
                return SX_STOPPED
            sx_float_subnormals(False)
    head(call, rows, first, scale)
    return 0
