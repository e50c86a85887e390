# ---- e between the passes ------------------------------------------------------------------------
#
# The reduce's e, by blocks over their own powers. An exact shift makes them those of the row's power,
# to the bit: e_k is +0 below the smallest normal number either way. In memory of this thread's, for
# logits may be overwritten by the map, and may yet have to be read by the slow lane.

# Shifts from here down are left to exp: 2^-100 is a normal float, 2^-900 a normal double.
cdef inline double least_shift(real* unused) noexcept nogil:
    return -100.0 if real is float else -900.0


cdef inline bint keeps(const sx_call* call) noexcept nogil:
    # Whether the map is made of e as it is.
    return call.out_map.rows.data != NULL and call.softcap == 0.0 and call.op != LOG_SOFTMAX


cdef inline void keep_nothing(Rows* rows) noexcept nogil:
    rows.kept = NULL
    rows.kept_pitch = 0
    rows.kept_in_output = 0
    rows.e_to = NULL


cdef inline void keep_rows(Rows* rows, char* kept, int64_t size, int64_t together, int64_t classes,
                           real* unused) noexcept nogil:
    # In `size` bytes at `kept`; NULL: nowhere.
    rows.kept = kept
    rows.kept_pitch = min(size // (<int64_t>sizeof(real) * together) & ~<int64_t>(LANES - 1),
                          whole_lanes(classes))


cdef inline int64_t kept_power_at(Rows* rows, int64_t j, int64_t k0) noexcept nogil:
    return j * ((rows.kept_pitch + BLOCK - 1) // BLOCK) + k0 // BLOCK


cdef inline real* kept_block(Rows* rows, int64_t j, int64_t k0, int64_t length,
                             real* unused) noexcept nogil:
    # Where a block's e are kept, or NULL.
    if rows.kept == NULL or k0 + whole_lanes(length) > rows.kept_pitch:
        if k0 + whole_lanes(length) <= rows.kept_in_output and rows.g[j] != rows.z[j]:
            return <real*>rows.g[j] + k0
        return NULL
    return <real*>rows.kept + (j * rows.kept_pitch + k0)


cdef inline void keep_power(Rows* rows, int64_t j, int64_t k0, double n) noexcept nogil:
    rows.kept_n[kept_power_at(rows, j, k0)] = n


cdef inline double kept_steps(Rows* rows, int64_t j, int64_t k0) noexcept nogil:
    return rows.kept_n[kept_power_at(rows, j, k0)] - rows.n[j]


cdef inline bint has_kept(const sx_call* call, Rows* rows, int64_t j, int64_t k0, int64_t length,
                          real* unused) noexcept nogil:
    # Whether a block's map needs no logits.
    return (kept_block(rows, j, k0, length, unused) != NULL and not is_wide(call, rows, j)
            and least_shift(unused) <= kept_steps(rows, j, k0) <= 0.0)
