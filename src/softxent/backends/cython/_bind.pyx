"""Fills the arguments of a compiled walk from a `Call`."""

import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

cdef extern from "call.h" nogil:
    enum:
        SX_MAX_AXES
        SX_TYPE_UNSIGNED
        SX_TYPE_FLOAT
        SX_TYPE_SWAPPED
        SX_TYPE_BRAIN
        SX_TYPE_F16
        SX_TYPE_BF16
    enum:
        SX_ANY
        SX_IN_PLACE
        SX_STRIDED
        SX_SIXTEEN
        SX_SINGLE
    ctypedef struct sx_rows:
        char* data
        int64_t type
        int64_t strides[SX_MAX_AXES]
    ctypedef struct sx_matrix:
        sx_rows rows
        int64_t class_stride
        int64_t direct
        int64_t holds_probabilities
    ctypedef struct sx_call:
        int64_t op, n_rows, n_classes, n_axes
        int64_t shape[SX_MAX_AXES]
        sx_matrix logits, out_map, soft
        sx_rows targets, sample_weight, upstream, pos_weight
        const double* class_weight
        const void* class_weight_real
        double class_unit, class_weight_mean
        int64_t has_ignore, ignore_index
        double scale, smoothing, temperature, softcap, z_loss, gamma, slack, floor
        int64_t n_points, summed
        int64_t all_slow, streams, refused, no_memory
        double hard_weight
        void* out_rows
        int64_t out_rows_is_double
        const sx_call* second

cnp.import_array()

cdef enum:
    ARRAYS = 7    # that have the rows' axes
# Temperatures, caps and (relatively) class weights that float32 walks serve by pieces; others go
# through the slow lane, in float64. No product of theirs with an e leaves float32.
cdef double NARROW_LEAST = 2.0 ** -60
cdef double NARROW_MOST = 2.0 ** 60


cdef bint is_narrow(double scale):
    return NARROW_LEAST <= scale <= NARROW_MOST


cdef int64_t type_of(cnp.ndarray array) except -1:
    cdef cnp.dtype dtype = array.dtype
    cdef int64_t code = cnp.PyArray_ITEMSIZE(array)
    if dtype.kind == c"f":
        code |= SX_TYPE_FLOAT
    elif dtype.kind == c"V" and dtype.name == "bfloat16":
        code |= SX_TYPE_BF16
    elif dtype.kind == c"u" or dtype.kind == c"b":
        code |= SX_TYPE_UNSIGNED
    elif dtype.kind != c"i":
        raise TypeError(f"no kernel loads {dtype}")
    if cnp.PyArray_ISBYTESWAPPED(array):
        code |= SX_TYPE_SWAPPED
    return code


cdef class Bound:
    """The C arguments of one call, and the arrays that they point into."""

    cdef sx_call call
    cdef list owners
    cdef bint wide
    cdef Bound second

    def __init__(self, call):
        memset(&self.call, 0, sizeof(sx_call))
        self.owners = []
        self.call.op = call.op
        self.call.n_rows = call.n_rows
        self.call.n_classes = call.n_classes
        self.call.scale = call.scale
        self.call.smoothing = call.smoothing
        self.call.temperature = call.temperature
        self.call.softcap = call.softcap
        self.call.z_loss = call.z_loss
        self.call.gamma = call.gamma
        self.call.slack = call.slack
        self.call.floor = call.floor
        self.call.hard_weight = call.hard_weight
        self.call.streams = call.streams
        self.wide = call.is_wide
        self.matrix(&self.call.logits, call.logits)
        self.matrix(&self.call.out_map, call.out_map)
        self.matrix(&self.call.soft, call.soft_targets)
        self.call.soft.holds_probabilities = not call.has_teacher
        self.rows(&self.call.targets, call.targets)
        self.rows(&self.call.sample_weight, call.sample_weight)
        self.rows(&self.call.upstream, call.upstream)
        self.rows(&self.call.pos_weight, call.pos_weight)
        self.call.n_points = call.logits.size
        self.call.summed = call.summed
        self.merge_axes(call.logits.shape, call.logits.ndim - 1)
        if call.ignore_index is not None:
            self.call.has_ignore = 1
            # As the loads see it: uint64 wraps, and so does what it is compared with.
            self.call.ignore_index = <int64_t>(<uint64_t>(call.ignore_index & 0xFFFFFFFFFFFFFFFF))
        if not self.wide:
            self.call.all_slow = not (
                is_narrow(self.call.temperature)
                and (self.call.softcap == 0.0 or is_narrow(self.call.softcap)))
        self.call.class_unit = 1.0
        self.call.class_weight_mean = call.class_weight_mean
        if call.class_weight is not None:
            self.owners.append(call.class_weight)
            self.call.class_weight = <const double*>cnp.PyArray_DATA(call.class_weight)
            self.call.class_weight_real = self.call.class_weight
            if not self.wide and (call.smoothing != 0.0 or call.soft_targets is not None):
                self.narrow_class_weight(call.class_weight)
        if call.out_rows is not None:
            self.owners.append(call.out_rows)
            self.call.out_rows = cnp.PyArray_DATA(call.out_rows)
            self.call.out_rows_is_double = call.out_rows.dtype.itemsize == 8
        if call.second is not None:
            self.second = Bound(call.second)
            self.call.second = &self.second.call

    @property
    def address(self):
        """Where the C arguments are; valid while this object lives."""
        return <uint64_t>&self.call

    @property
    def refused(self):
        """Whether a walk met a probability target that is negative, NaN or infinite."""
        return self.call.refused != 0

    @property
    def no_memory(self):
        """Whether a walk found no memory for itself."""
        return self.call.no_memory != 0

    cdef int narrow_class_weight(self, object class_weight) except -1:
        cdef cnp.ndarray narrow = np.empty(len(class_weight), np.float32)
        most = class_weight.max() or 1.0
        unit = 2.0 ** max(int(np.frexp(most)[1]) - 1, -1022)    # its inverse is finite
        np.divide(class_weight, unit, out=narrow, casting="unsafe")
        least = np.min(class_weight, initial=most, where=class_weight > 0.0)
        if least < NARROW_LEAST * unit:
            self.call.all_slow = 1
        self.owners.append(narrow)
        self.call.class_weight_real = cnp.PyArray_DATA(narrow)
        self.call.class_unit = unit
        self.call.class_weight_mean /= unit
        return 0

    cdef int rows(self, sx_rows* into, object array) except -1:
        cdef cnp.ndarray a
        cdef int axis
        if array is None:
            return 0
        a = array
        self.owners.append(a)
        into.data = <char*>cnp.PyArray_DATA(a)
        into.type = type_of(a)
        for axis in range(cnp.PyArray_NDIM(a)):
            into.strides[axis] = cnp.PyArray_STRIDE(a, axis)
        return 0

    cdef int matrix(self, sx_matrix* into, object array) except -1:
        cdef cnp.ndarray a
        cdef int last
        cdef bint side_by_side
        if array is None:
            return 0
        a = array
        self.rows(&into.rows, a)
        last = cnp.PyArray_NDIM(a) - 1
        into.class_stride = cnp.PyArray_STRIDE(a, last)
        into.rows.strides[last] = 0
        into.direct = SX_ANY
        if not cnp.PyArray_ISBEHAVED_RO(a):
            return 0
        side_by_side = into.class_stride == cnp.PyArray_ITEMSIZE(a) or self.call.n_classes == 1
        if into.rows.type == (SX_TYPE_FLOAT | (8 if self.wide else 4)):
            into.direct = SX_IN_PLACE if side_by_side else SX_STRIDED
        elif into.rows.type == (SX_TYPE_FLOAT | 4):
            into.direct = SX_SINGLE
        elif into.rows.type in (SX_TYPE_F16, SX_TYPE_BF16) and side_by_side and not self.wide:
            into.direct = SX_SIXTEEN
        return 0

    cdef int merge_axes(self, tuple shape, int n_axes) except -1:
        # Axes of length 1 go, neighbours that every array steps through evenly become one.
        cdef sx_rows* arrays[ARRAYS]
        cdef int64_t length
        cdef int i, axis, kept = 0
        cdef bint even
        cdef int before
        arrays[0] = &self.call.logits.rows
        arrays[1] = &self.call.out_map.rows
        arrays[2] = &self.call.targets
        arrays[3] = &self.call.sample_weight
        arrays[4] = &self.call.upstream
        arrays[5] = &self.call.soft.rows
        arrays[6] = &self.call.pos_weight
        for axis in range(n_axes):
            length = shape[axis]
            if length == 1:
                continue
            even = kept > 0
            before = kept - 1 if kept > 0 else 0
            for i in range(ARRAYS):
                even = even and (arrays[i].strides[before] == arrays[i].strides[axis] * length)
            if not even:
                before = kept
                self.call.shape[before] = 1
                kept += 1
            self.call.shape[before] *= length
            for i in range(ARRAYS):
                arrays[i].strides[before] = arrays[i].strides[axis]
        if kept == 0:
            self.call.shape[0] = 1
            kept = 1
            for i in range(ARRAYS):
                arrays[i].strides[0] = 0
        self.call.n_axes = kept
        return 0
