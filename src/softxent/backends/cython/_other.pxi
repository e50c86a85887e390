# ---- what is no softmax --------------------------------------------------------------------------

cdef int64_t count_before(const real* x, int64_t length, int64_t y_place,
                                 real z_y) noexcept nogil:
    # Classes that come before the target: larger ones and NaN; equal ones of a lower number.
    cdef int64_t i, before, count = 0
    before = y_place if y_place < length else length
    if before < 0:
        before = 0
    for i in range(before):
        count += not x[i] < z_y
    for i in range(before, length):
        count += not x[i] <= z_y
    return count


cdef int walk_rank(const sx_call* call, Rows* rows, int64_t first, sx_control* control, char* room,
                   real* unused) noexcept nogil:
    # Subnormals count: 1e-40 is larger than 0.
    cdef int64_t j, b, k0, length, rank
    cdef real* block = <real*>(room + ROOM_BLOCK)
    cdef const real* x
    cdef real z_y, top
    cdef double value
    sx_float_subnormals(True)
    for j in range(rows.count):
        value = INFINITY
        if rows.lane[j] == POISONED:
            value = NAN
        elif rows.lane[j] != SKIPPED:
            z_y = <real>sx_load_real(rows.z[j] + rows.y[j] * call.logits.class_stride,
                                     call.logits.rows.type)
            rank = 0
            for b in range(blocks_of(call.n_classes)):
                k0 = b * BLOCK
                length = block_length(k0, call.n_classes)
                x = row_block(call, rows, j, k0, length, block, &top)
                rank += count_before(x, length, rows.y[j] - k0, z_y)
                if sx_tick(control, length):
                    return SX_STOPPED
            if z_y == z_y:
                value = <double>rank
        (<double*>call.out_rows)[first + j] = value
    return 0


cdef void zero_block(const sx_matrix* matrix, char* p, int64_t length, real* unused) noexcept nogil:
    cdef int64_t k
    if matrix.direct == SX_IN_PLACE:
        for k in range(length):
            (<real*>p)[k] = 0
    else:
        for k in range(length):
            sx_store_real(p + k * matrix.class_stride, matrix.rows.type, 0.0)


cdef int walk_nll(const sx_call* call, Rows* rows, int64_t first, sx_control* control,
                  real* unused) noexcept nogil:
    # Only the target's entry is read, and only there is the gradient not 0.
    cdef int64_t j, b, k0, k, length
    sx_float_subnormals(True)
    for j in range(rows.count):
        rows.value[j] = 0.0
        if rows.lane[j] == FAST:
            rows.value[j] = 0.0 - sx_load_real(rows.z[j] + rows.y[j] * call.logits.class_stride,
                                               call.logits.rows.type)
    store_values(call, rows, first)
    sx_float_subnormals(True)
    if call.out_map.rows.data == NULL:
        return 0
    for j in range(rows.count):
        for b in range(blocks_of(call.n_classes)):
            k0 = b * BLOCK
            length = block_length(k0, call.n_classes)
            zero_block(&call.out_map, rows.g[j] + k0 * call.out_map.class_stride, length, unused)
            if rows.lane[j] == POISONED:
                for k in range(k0, k0 + length):
                    sx_store_real(rows.g[j] + k * call.out_map.class_stride,
                                  call.out_map.rows.type, NAN)
            if sx_tick(control, length):
                return SX_STOPPED
        if rows.lane[j] == FAST:
            rows.apart[j] = 0.0 - rows.w[j]
            map_apart(call, rows, j, rows.g[j], call.out_map.class_stride, call.out_map.rows.type)
    return 0


cdef void load_doubles(const sx_matrix* matrix, const char* p, int64_t length, double* to,
                              real* unused) noexcept nogil:
    cdef int64_t k
    if matrix.direct == SX_IN_PLACE:
        for k in range(length):
            to[k] = <double>(<const real*>p)[k]
    else:
        for k in range(length):
            to[k] = sx_load_real(p + k * matrix.class_stride, matrix.rows.type)


cdef int64_t walk_vjp(const sx_call* call, int64_t lo, int64_t hi, sx_control* control,
                      real* unused) noexcept nogil:
    # p (u - sum p u): the sum exact to twice float64's precision in 64 lanes, all else float64.
    cdef sx_cursor cursor
    cdef double* p = <double*>(sx_room() + ROOM_BLOCK)
    cdef double* u = <double*>(sx_room() + ROOM_TARGETS)
    cdef double sums[LANES]
    cdef double lost[LANES]
    cdef double product, high, low
    cdef int64_t i, j, k0, length, row
    sx_cursor_start(&cursor, call, lo)
    for row in range(lo, hi):
        for j in range(LANES):
            sums[j] = 0.0
            lost[j] = 0.0
        k0 = 0
        while k0 < call.n_classes:
            length = block_length(k0, call.n_classes)
            load_doubles(&call.logits, cursor.logits + k0 * call.logits.class_stride, length, p,
                         unused)
            load_doubles(&call.soft, cursor.soft + k0 * call.soft.class_stride, length, u, unused)
            i = 0
            while i + LANES <= length:
                for j in range(LANES):
                    product = p[i + j] * u[i + j]
                    lost[j] += sx_product_rest(p[i + j], u[i + j], product)
                    sx_two_sum(&sums[j], &lost[j], product)
                i += LANES
            for j in range(length - i):
                product = p[i + j] * u[i + j]
                lost[j] += sx_product_rest(p[i + j], u[i + j], product)
                sx_two_sum(&sums[j], &lost[j], product)
            k0 += BLOCK
            if sx_tick(control, length):
                return SX_STOPPED
        high = 0.0
        low = 0.0
        for j in range(min(<int64_t>LANES, call.n_classes)):    # the others are 0
            sx_two_sum(&high, &low, sums[j])
            low += lost[j]
        # What overflowed has left NaN in what was lost.
        low = low if fabs(high) < INFINITY else 0.0
        k0 = 0
        while k0 < call.n_classes:
            length = block_length(k0, call.n_classes)
            load_doubles(&call.logits, cursor.logits + k0 * call.logits.class_stride, length, p,
                         unused)
            load_doubles(&call.soft, cursor.soft + k0 * call.soft.class_stride, length, u, unused)
            for i in range(length):
                p[i] = p[i] * ((u[i] - high) - low)
            if call.out_map.direct == SX_IN_PLACE:
                for i in range(length):
                    (<real*>cursor.out_map)[k0 + i] = <real>p[i]
            else:
                for i in range(length):
                    sx_store_real(cursor.out_map + (k0 + i) * call.out_map.class_stride,
                                  call.out_map.rows.type, p[i])
            k0 += BLOCK
            if sx_tick(control, length):
                return SX_STOPPED
        sx_cursor_next(&cursor, call)
    return 0


