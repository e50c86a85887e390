# ---- few rows, their classes cut among threads ---------------------------------------------------
#
# The same blocks, merged left to right by the same function: the bits of an uncut walk. Five stages,
# each a run of its own; those of the blocks side by side, the others by one thread:
#
#   SPLIT_START     rows are loaded
#   SPLIT_REDUCE    unit u: block u mod B of row u / B, B blocks a row; its sums into parts[u]
#   SPLIT_HEAD      blocks are merged, rows' heads
#   SPLIT_MAP       unit u: that block of the map, made of the reduce's e where those were kept: it is no
#                   more than a product then
#   SPLIT_END       rows that the map leaves out, entries that are stored last
#   SPLIT_RELEASE   whatever has happened before

cdef enum:
    SPLIT_START = 0
    SPLIT_REDUCE
    SPLIT_HEAD
    SPLIT_MAP
    SPLIT_END
    SPLIT_RELEASE

cdef struct Part:
    double n
    double top      # +inf: beyond the pieces' limit
    double e_top
    double rest

cdef struct Split:
    const sx_call* call
    int64_t stage
    char* kept      # the calling thread's: for e of the first units
    Rows rows
    Part parts[1]   # as many as there are units


cdef void start_fresh(Rows* rows, int64_t count) noexcept nogil:
    cdef int64_t j
    rows.count = count
    rows.half = NULL
    keep_nothing(rows)
    for j in range(GROUP):
        rows.focus[j] = 1.0
        rows.pull[j] = 1.0
        rows.lane[j] = FAST
        rows.n[j] = 0.0
        rows.top[j] = -INFINITY
        rows.k_top[j] = 0
        rows.rest[j] = 0.0
        rows.carry[j] = 0.0
        rows.e_top[j] = 0.0


cdef inline real* split_e(const sx_call* call, Split* split, int64_t u, int64_t j, int64_t k0,
                          int64_t length, real* unused) noexcept nogil:
    # Where the unit's e are: in the output, if that is none of the logits and has the block's room, or
    # in memory of the calling thread's; NULL: nowhere.
    cdef int64_t block = BLOCK * sizeof(real)
    if not keeps(call):
        return NULL
    if (call.out_map.direct == SX_IN_PLACE and split.rows.g[j] != split.rows.z[j]
            and k0 + whole_lanes(length) <= call.n_classes):
        return <real*>split.rows.g[j] + k0
    if split.kept == NULL or (u + 1) * block > SX_KEPT:
        return NULL
    return <real*>(split.kept + u * block)


cdef int split_reduce(const sx_call* call, Split* split, int64_t lo, int64_t hi, sx_control* control,
                      real* unused) noexcept nogil:
    cdef Rows one
    cdef Next none = nothing_next()
    cdef sx_unit unit
    cdef char* room = sx_room()
    cdef const real* x
    cdef real top = 0
    cdef int64_t u, j, k0, length, blocks = blocks_of(call.n_classes)
    for u in range(lo, hi):
        j = u // blocks
        k0 = (u - j * blocks) * BLOCK
        length = block_length(k0, call.n_classes)
        if split.rows.lane[j] != FAST:
            continue
        start_fresh(&one, 1)
        one.y[0] = split.rows.y[j]
        one.e_to = <char*>split_e(call, split, u, j, k0, length, unused)
        x = row_block(call, &split.rows, j, k0, length, <real*>(room + ROOM_BLOCK), &top)
        if call.logits.direct != SX_SIXTEEN:
            top = block_top(x, length)
        reduce_block(call, &one, 0, x, <const real*>NULL, k0, length, top, 0, &none, &unit, room)
        split.parts[u].n = one.n[0]
        split.parts[u].top = one.top[0] if one.lane[0] == FAST else INFINITY
        split.parts[u].e_top = one.e_top[0]
        split.parts[u].rest = one.rest[0]
        if sx_tick(control, length):
            return SX_STOPPED
    return 0


cdef int split_head(const sx_call* call, Split* split, sx_control* control,
                    real* unused) noexcept nogil:
    cdef Rows* rows = &split.rows
    cdef Part* part
    cdef sx_unit unit
    cdef int64_t j, b, y, blocks = blocks_of(call.n_classes)
    for j in range(rows.count):
        if rows.lane[j] != FAST:
            continue
        for b in range(blocks):
            part = &split.parts[j * blocks + b]
            if part.top == INFINITY:
                rows.lane[j] = SLOW
                break
            merge_block(rows, j, part.n, part.top, b * BLOCK, part.e_top, part.rest)
        y = rows.y[j]
        if y >= 0:
            rows.z_y[j] = sx_load_real(rows.z[j] + y * call.logits.class_stride, call.logits.rows.type)
        if call.op == LOG_SOFTMAX and rows.lane[j] == FAST and rows.top[j] > -INFINITY:
            rows.k_top[j] = split_place(call, rows, j, unused)
    return finish_reduce(call, rows, 0, unused, &unit, control)


cdef int64_t split_place(const sx_call* call, Rows* rows, int64_t j, real* unused) noexcept nogil:
    # Of the largest, which is in the block that k_top begins.
    cdef int64_t k0 = rows.k_top[j], length = block_length(k0, call.n_classes)
    cdef real top
    cdef const real* x = row_block(call, rows, j, k0, length, <real*>(sx_room() + ROOM_BLOCK), &top)
    return k0 + first_place(x, length, <real>rows.top[j])


cdef int split_map(const sx_call* call, Split* split, int64_t lo, int64_t hi, sx_control* control,
                   real* unused) noexcept nogil:
    cdef sx_unit unit
    cdef Place at
    cdef real* e
    cdef real* out
    cdef char* to
    cdef double steps
    cdef int64_t u, length, blocks = blocks_of(call.n_classes)
    for u in range(lo, hi):
        at.j = u // blocks
        at.k0 = (u - at.j * blocks) * BLOCK
        at.done = -1
        length = block_length(at.k0, call.n_classes)
        e = split_e(call, split, u, at.j, at.k0, length, unused)
        steps = split.parts[u].n - split.rows.n[at.j]
        if (e != NULL and split.rows.lane[at.j] == FAST and split.parts[u].top > -INFINITY
                and is_narrow(split.rows.a[at.j]) and least_shift(unused) <= steps <= 0.0):
            to = split.rows.g[at.j] + at.k0 * call.out_map.class_stride
            out = <real*>to if call.out_map.direct == SX_IN_PLACE else e
            store_products(e, <real>sx_pow2(steps), split.rows.a[at.j], length, False, out)
            if out == e and to != <char*>e:
                store_block(&call.out_map, to, length, <const real*>e)
            if sx_tick(control, length):
                return SX_STOPPED
            continue
        if map_next(call, &split.rows, &at, &unit, <const sx_scale*>NULL, control, sx_room(), unused):
            return SX_STOPPED
    if call.streams:
        sx_stream_end()
    return 0


cdef int64_t walk_split(Split* split, int64_t lo, int64_t hi, sx_control* control,
                        real* unused) noexcept nogil:
    cdef const sx_call* call = split.call
    cdef sx_float_state state = sx_float_enter()
    cdef sx_cursor cursor
    cdef sx_unit unit
    cdef int64_t status = 0
    sx_float_subnormals(False)
    if split.stage == SPLIT_RELEASE:
        sx_kept_release(split.kept)
    elif split.stage == SPLIT_START:
        if keeps(call):
            split.kept = sx_kept_take()
        start_fresh(&split.rows, call.n_rows)
        sx_cursor_start(&cursor, call, 0)
        sx_float_subnormals(True)
        load_rows(call, &cursor, &split.rows, call.n_rows)
        sx_float_subnormals(False)
    elif split.stage == SPLIT_REDUCE:
        status = split_reduce(call, split, lo, hi, control, unused)
    elif split.stage == SPLIT_HEAD:
        status = split_head(call, split, control, unused)
    elif split.stage == SPLIT_MAP:
        status = split_map(call, split, lo, hi, control, unused)
    else:
        status = finish_map(call, &split.rows, &unit, control)
    sx_float_leave(state)
    return status
