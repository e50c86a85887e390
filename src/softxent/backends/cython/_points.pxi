# ---- one logit a row -----------------------------------------------------------------------------
#
# Binary cross-entropy, POINTS rows at a time, whatever axes they have: brought near, computed in
# loops without a branch, and sent back. exp in the logits' precision, all else in float64. With
# e = exp(-|z|), t the target and v the weight of what targets of 1 cost,
#
#     loss      |z| (v t where z < 0, else 1 - t) + (v t + 1 - t) log(1 + e)    terms >= 0
#     gradient  (1 - t) sigma(z) - v t sigma(-z),    sigma(|z|) = 1 / (1 + e), sigma(-|z|) = e / (1 + e)
#
# The sum of the losses of such a stretch: block_sum's.

cdef enum:
    POINTS = 1024
    # Of float64, in a thread's room; the logits and the gradient in the walk's own type. Not a
    # multiple of 4 KiB apart: the loop reads and writes all of them at one place.
    ROOM_X = 0
    ROOM_G = 8512
    ROOM_T = 17024
    ROOM_V = 25536
    ROOM_S = 34048
    ROOM_W = 42560
    ROOM_VALUE = 51072
    ROOM_BYTES = 59584        # as they are in the array


cdef void load_run(const char* p, int64_t kind, int64_t stride, int64_t count, char* bytes,
                   double* to) noexcept nogil:
    # Some rows' numbers of any type, as float64; with subnormals on.
    cdef int64_t i, size = kind & SX_TYPE_SIZE
    cdef double value
    if stride == 0:
        value = sx_load_real(p, kind)
        for i in range(count):
            to[i] = value
        return
    if stride == size and size <= 8:
        memcpy(bytes, p, count * size)
        if kind == (SX_TYPE_FLOAT | 8):
            memcpy(to, bytes, count * size)
            return
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
                to[i] = <double>(<const int64_t*>bytes)[i]
            return
    for i in range(count):
        to[i] = sx_load_real(p + i * stride, kind)


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
    # And the weights' products: what multiplies the loss, what multiplies the gradient.
    cdef real* x = <real*>(room + ROOM_X)
    cdef double* t = <double*>(room + ROOM_T)
    cdef double* v = <double*>(room + ROOM_V)
    cdef double* s = <double*>(room + ROOM_S)
    cdef double* w = <double*>(room + ROOM_W)
    cdef char* bytes = room + ROOM_BYTES
    cdef int64_t i = 0, run, last = call.n_axes - 1
    cdef int64_t refused = 0
    for i in range(length):
        v[i] = 1.0
        s[i] = 1.0
        w[i] = 1.0
    i = 0
    while i < length:
        run = min(sx_cursor_run(cursor, call), length - i)
        load_logits(cursor.logits, call.logits.rows.type, call.logits.rows.strides[last], run,
                    bytes, x + i)
        load_run(cursor.soft, call.soft.rows.type, call.soft.rows.strides[last], run, bytes, t + i)
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
    for i in range(length):
        w[i] = s[i] * (call.scale * w[i])
        refused |= (s[i] != 0.0) & sx_is_no_share(t[i])
        # Of weight 0: nothing of it is used.
        x[i] = x[i] if s[i] != 0.0 else <real>0.0
        t[i] = t[i] if s[i] != 0.0 else 0.0
        w[i] = w[i] if s[i] != 0.0 else 0.0
    if refused:
        sx_refuse(call)


cdef void compute_points(int64_t length, char* room, real* unused) noexcept nogil:
    cdef const real* x = <const real*>(room + ROOM_X)
    cdef const double* t = <const double*>(room + ROOM_T)
    cdef const double* v = <const double*>(room + ROOM_V)
    cdef const double* s = <const double*>(room + ROOM_S)
    cdef const double* w = <const double*>(room + ROOM_W)
    cdef double* values = <double*>(room + ROOM_VALUE)
    cdef real* g = <real*>(room + ROOM_G)
    cdef sx_unit unit
    cdef real k, low, minus
    cdef double z, size, e, far, near, yes, no, up, down, side
    # Of their own, not in the room: nothing else can be there, and the loop becomes vectors.
    cdef double own_values[LANES]
    cdef real own_g[LANES]
    cdef int64_t i, j
    power_of(0.0, &k, &low, &unit)
    i = 0
    while i < length:    # what is behind the last is harmless
        for j in range(LANES):
            z = x[i + j]
            size = fabs(z)
            minus = <real>(0.0 - size)
            e = exp_of(minus, k, low, &unit)
            far = 1.0 / (1.0 + e)
            near = e * far
            yes = v[i + j] * t[i + j]
            no = 1.0 - t[i + j]
            side = yes if z < 0.0 else no
            up = near if z < 0.0 else far
            down = far if z < 0.0 else near
            own_values[j] = s[i + j] * (times(side, size) + (yes + no) * sx_log1p(e))
            own_g[j] = <real>times(w[i + j], no * up - yes * down)
        memcpy(values + i, own_values, sizeof(own_values))
        memcpy(g + i, own_g, sizeof(own_g))
        i += LANES


cdef int64_t walk_points(const sx_call* call, int64_t lo, int64_t hi, sx_control* control,
                         real* unused) noexcept nogil:
    cdef sx_cursor cursor, start
    cdef char* room = sx_room()
    cdef double* values = <double*>(room + ROOM_VALUE)
    cdef real* g = <real*>(room + ROOM_G)
    cdef int64_t piece, i, run, length, first, last = call.n_axes - 1
    sx_cursor_start(&cursor, call, lo * POINTS)
    for piece in range(lo, hi):
        first = piece * POINTS
        length = min(<int64_t>POINTS, call.n_points - first)
        start = cursor
        sx_float_subnormals(True)
        load_points(call, &cursor, length, room, unused)
        sx_float_subnormals(False)
        compute_points(length, room, unused)
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
            i = 0
            while i < length:
                run = min(sx_cursor_run(&start, call), length - i)
                store_run(start.out_map, call.out_map.rows.type, call.out_map.rows.strides[last],
                          run, room + ROOM_BYTES, <const real*>(g + i))
                sx_cursor_skip(&start, call, run)
                i += run
        if sx_tick(control, length):
            return SX_STOPPED
    return 0
