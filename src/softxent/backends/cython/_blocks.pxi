# ---- other layouts -------------------------------------------------------------------------------

cdef bint are_neighbours(char** p, int64_t count, int64_t step) noexcept nogil:
    cdef int64_t j, odd = 0
    for j in range(1, count):
        odd |= (p[j] - p[j - 1]) ^ step
    return odd == 0


cdef int64_t packed_rows(const sx_matrix* matrix, char** rows, int64_t count,
                         int64_t length, real* unused) noexcept nogil:
    # How many of the rows lie one after another, all their classes used: whole squares of them.
    count &= ~<int64_t>7
    if matrix.direct != SX_IN_PLACE or not are_neighbours(rows, count, length * sizeof(real)):
        return 0
    return count


cdef void load_block(const sx_matrix* matrix, const char* p, int64_t length,
                            real* to) noexcept nogil:
    # Consecutive classes of one row, as real.
    cdef int64_t k
    if matrix.direct == SX_IN_PLACE:
        for k in range(length):
            to[k] = (<const real*>p)[k]
        return
    if real is float:
        if matrix.direct == SX_SIXTEEN:
            sx_widen(<const uint16_t*>p, matrix.rows.type & SX_TYPE_BRAIN != 0, length, to)
            return
        if matrix.holds_probabilities:
            for k in range(length):
                to[k] = sx_probability_f32(sx_load_real(p + k * matrix.class_stride,
                                                        matrix.rows.type))
            return
    for k in range(length):
        to[k] = <real>sx_load_real(p + k * matrix.class_stride, matrix.rows.type)


cdef void store_block(const sx_matrix* matrix, char* p, int64_t length,
                             const real* given) noexcept nogil:
    cdef int64_t k
    if matrix.direct == SX_IN_PLACE:
        for k in range(length):
            (<real*>p)[k] = given[k]
        return
    if real is float:
        if matrix.direct == SX_SIXTEEN:
            sx_narrow(given, matrix.rows.type & SX_TYPE_BRAIN != 0, length, <uint16_t*>p)
            return
    for k in range(length):
        sx_store_real(p + k * matrix.class_stride, matrix.rows.type, given[k])


cdef inline int64_t fetched_ahead(const sx_call* call, const sx_matrix* matrix,
                                  int64_t count) noexcept nogil:
    # How far from a tile's elements, in bytes, is what will be used next and fetched now.
    if call.n_classes <= FETCHED_CLASSES:
        return count * (matrix.rows.type & SX_TYPE_SIZE)
    return FETCHED_AHEAD * matrix.class_stride


cdef void gather(const sx_matrix* matrix, char** rows, int64_t count, int64_t k0, int64_t length,
                 int64_t row_pitch, int64_t class_pitch, int64_t ahead, real* tile) noexcept nogil:
    # Classes k0 .. k0 + length of some rows: class k0 + k of row j to j row_pitch + k class_pitch.
    cdef int64_t j, k, done = 0, whole = 0, stride = matrix.class_stride
    cdef real block[SMALL]
    cdef const real* p
    if matrix.direct == SX_STRIDED and are_neighbours(rows, count, sizeof(real)):
        if class_pitch == 1:
            whole = count if count >= 8 else 0
            if real is float:
                done = sx_rows_of_classes_f32(rows[0] + k0 * stride, stride, whole, length, row_pitch,
                                              ahead, tile)
            else:
                done = sx_rows_of_classes_f64(rows[0] + k0 * stride, stride, whole, length, row_pitch,
                                              ahead, tile)
        for k in range(done if whole > 0 else 0, length):
            p = <const real*>(rows[0] + (k0 + k) * stride)
            for j in range(count):
                tile[j * row_pitch + k * class_pitch] = p[j]
        return
    if class_pitch == GROUP:
        done = packed_rows(matrix, rows, count, length, <real*>NULL)
        if real is float:
            sx_columns_of_rows_f32(<const float*>rows[0], done, length, GROUP, tile)
        else:
            sx_columns_of_rows_f64(<const double*>rows[0], done, length, GROUP, tile)
    for j in range(done, count):
        if class_pitch == 1:
            load_block(matrix, rows[j] + k0 * stride, length, tile + j * row_pitch)
        elif matrix.direct == SX_IN_PLACE:
            p = <const real*>(rows[j] + k0 * stride)
            for k in range(length):
                tile[j * row_pitch + k * class_pitch] = p[k]
        else:
            load_block(matrix, rows[j] + k0 * stride, length, block)    # length <= SMALL
            for k in range(length):
                tile[j * row_pitch + k * class_pitch] = block[k]


cdef void scatter(const sx_matrix* matrix, char** rows, int64_t count, int64_t k0, int64_t length,
                  int64_t row_pitch, int64_t class_pitch, int64_t ahead,
                  const real* tile) noexcept nogil:
    # The way back.
    cdef int64_t j, k, done = 0, whole = 0, stride = matrix.class_stride
    cdef real block[SMALL]
    cdef real* p
    cdef float* single
    if real is double and matrix.direct == SX_SINGLE:
        if are_neighbours(rows, count, sizeof(float)):
            for k in range(length):
                single = <float*>(rows[0] + (k0 + k) * stride)
                for j in range(count):
                    single[j] = <float>tile[j * row_pitch + k * class_pitch]
        else:
            for j in range(count):
                for k in range(length):
                    (<float*>(rows[j] + (k0 + k) * stride))[0] = <float>tile[j * row_pitch
                                                                             + k * class_pitch]
        return
    if matrix.direct == SX_STRIDED and are_neighbours(rows, count, sizeof(real)):
        if class_pitch == 1:
            whole = count if count >= 8 else 0
            if real is float:
                done = sx_classes_of_rows_f32(tile, row_pitch, whole, length, rows[0] + k0 * stride,
                                              stride, ahead)
            else:
                done = sx_classes_of_rows_f64(tile, row_pitch, whole, length, rows[0] + k0 * stride,
                                              stride, ahead)
        for k in range(done if whole > 0 else 0, length):
            p = <real*>(rows[0] + (k0 + k) * stride)
            for j in range(count):
                p[j] = tile[j * row_pitch + k * class_pitch]
        return
    if class_pitch == GROUP:
        done = packed_rows(matrix, rows, count, length, <real*>NULL)
        if real is float:
            sx_rows_of_columns_f32(tile, done, length, GROUP, <float*>rows[0])
        else:
            sx_rows_of_columns_f64(tile, done, length, GROUP, <double*>rows[0])
    for j in range(done, count):
        if class_pitch == 1:
            store_block(matrix, rows[j] + k0 * stride, length, tile + j * row_pitch)
        elif matrix.direct == SX_IN_PLACE:
            p = <real*>(rows[j] + k0 * stride)
            for k in range(length):
                p[k] = tile[j * row_pitch + k * class_pitch]
        else:
            for k in range(length):
                block[k] = tile[j * row_pitch + k * class_pitch]
            store_block(matrix, rows[j] + k0 * stride, length, <const real*>block)


# ---- a block on its way ---------------------------------------------------------------------------

cdef void cap(const sx_call* call, const sx_scale* half, const real* x, int64_t length,
                     real* z, real* slope) noexcept nogil:
    # z may be x; slope NULL: not wanted.
    cdef int64_t i
    cdef real unwanted
    if slope == NULL:
        for i in range(length):
            if real is float:
                z[i] = sx_softcap_f32(x[i], call.softcap, half, &unwanted)
            else:
                z[i] = sx_softcap_f64(x[i], call.softcap, half, &unwanted)
        return
    for i in range(length):
        if real is float:
            z[i] = sx_softcap_f32(x[i], call.softcap, half, &slope[i])
        else:
            z[i] = sx_softcap_f64(x[i], call.softcap, half, &slope[i])


cdef inline const real* row_block(const sx_call* call, Rows* rows, int64_t j, int64_t k0,
                                  int64_t length, real* room, real* top) noexcept nogil:
    # A block's logits where they are, or brought near; top: the largest of those of 16 bits.
    cdef const char* p = rows.z[j] + k0 * call.logits.class_stride
    if call.logits.direct == SX_IN_PLACE:
        return <const real*>p
    if real is float:
        if call.logits.direct == SX_SIXTEEN:
            if rows.lane[j] == FAST:
                top[0] = sx_widen_and_top(<const uint16_t*>p,
                                          call.logits.rows.type & SX_TYPE_BRAIN != 0, length, room)
            return room
    if rows.lane[j] == FAST:
        load_block(&call.logits, p, length, room)
    return room


cdef inline const real* soft_block(const sx_call* call, Rows* rows, int64_t j, int64_t k0,
                                   int64_t length, real* room) noexcept nogil:
    # The row's probabilities, where they are or brought near; NULL: none.
    cdef const char* p
    if call.soft.rows.data == NULL or rows.lane[j] != FAST:
        return NULL
    p = rows.t[j] + k0 * call.soft.class_stride
    if call.soft.direct == SX_IN_PLACE:
        return <const real*>p
    sx_float_subnormals(True)    # see reduce_soft
    load_block(&call.soft, p, length, room)
    sx_float_subnormals(False)
    return room


cdef inline bint sees_ahead(const sx_call* call) noexcept nogil:
    # Whether a block's logits are what its row's softmax is of, where they are.
    return call.logits.direct == SX_IN_PLACE and call.softcap == 0.0


cdef void reduce_given(const sx_call* call, Rows* rows, int64_t j, const real* x,
                              const real* t, int64_t k0, int64_t length, real top, int64_t start,
                              Next* next, const scaling* scale, const sx_scale* half,
                              char* room) noexcept nogil:
    # A block of the logits as they are given; top: its largest, unless there is a softcap; start: no
    # earlier one is as large.
    cdef real* z = <real*>(room + ROOM_CAPPED)
    if rows.lane[j] != FAST:
        see(next, <real*>NULL)
        return
    if call.softcap != 0.0:
        cap(call, half, x, length, z, <real*>NULL)
        x = z
        top = block_top(x, length)
        start = 0
    reduce_block(call, rows, j, x, t, k0, length, top, start, next, scale, room)


cdef bint map_sixteen(const sx_call* call, Rows* rows, const Place* at, int64_t length, int64_t* done,
                      real* unused) noexcept nogil:
    # The map of kept e into 16 bits; False: not such a map. done: elements of the next block that are
    # made with it, for they share a line.
    cdef int64_t j = at.j, k0 = at.k0, first = 0, line, size = sizeof(uint16_t)
    cdef bint brain = call.out_map.rows.type & SX_TYPE_BRAIN != 0
    cdef float shift, a
    cdef float part[LINE]
    cdef const float* e
    cdef uint16_t* to
    if real is float:
        if (call.out_map.direct != SX_SIXTEEN or rows.lane[j] != FAST or is_squared(call)
                or call.soft.rows.data != NULL or call.smoothing > 0.0
                or not has_kept(call, rows, j, k0, length, unused)):
            return False
        e = kept_block(rows, j, k0, length, unused)
        to = <uint16_t*>(rows.g[j] + k0 * size)
        shift = <float>sx_pow2(kept_steps(rows, j, k0))
        a = <float>rows.a[j]
        if call.streams and at.done >= 0:
            first = at.done
            k0 += length
            if a == a:
                done[0] = shared_kept_line(call, rows, j, k0, to + length, size, unused)
        if done[0] > 0:
            line = LINE // size - done[0]
            length -= line
            sx_scale_run_f32(e + length, shift, a, line, part)
            sx_scale_run_f32(e + length + line, <float>sx_pow2(kept_steps(rows, j, k0)), a, done[0],
                             part + line)
            sx_scale_run_sixteen(part, 1, 1, line + done[0], brain, True, to + length)
        sx_scale_run_sixteen(e + first, shift, a, length - first, brain, call.streams, to + first)
        return True
    else:
        return False


cdef void map_given(const sx_call* call, Rows* rows, int64_t j, const real* x, const real* t,
                           real* out, int64_t k0, int64_t length, const scaling* scale,
                           const sx_scale* half, char* room) noexcept nogil:
    cdef real* z = <real*>(room + ROOM_CAPPED)
    cdef real* slope = <real*>(room + ROOM_SLOPE)
    if rows.lane[j] != FAST:
        return
    if call.softcap != 0.0:
        cap(call, half, x, length, z, slope)
        x = z
    else:
        slope = NULL
    if call.op == LOG_SOFTMAX:
        map_log(rows, j, x, out, length, scale)
    elif is_squared(call):
        map_square(call, rows, j, x, t, out, k0, length, scale)
        raise_to_floor(call, out, length)
    elif t != NULL or call.smoothing > 0.0:
        map_mixed(call, rows, j, x, t, slope, out, k0, length, scale, room)
    else:
        map_run(call, rows, j, x, slope, out, k0, length, scale,
                slope == NULL and call.out_map.direct == SX_IN_PLACE, room)


