"""Fills the arguments of a compiled walk from a `Call`."""

cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

cdef extern from "call.h" nogil:
    enum:
        SX_MAX_AXES
        SX_TYPE_UNSIGNED
        SX_TYPE_FLOAT
        SX_TYPE_SWAPPED
    ctypedef struct sx_rows:
        char* data
        int64_t type
        int64_t strides[SX_MAX_AXES]
    ctypedef struct sx_matrix:
        sx_rows rows
        int64_t class_stride
        int64_t direct
    ctypedef struct sx_call:
        int64_t op, n_rows, n_classes, n_axes
        int64_t shape[SX_MAX_AXES]
        sx_matrix logits, out_map
        sx_rows targets, sample_weight, upstream
        const double* class_weight
        int64_t has_ignore, ignore_index
        double scale
        void* out_rows
        int64_t out_rows_is_double

cnp.import_array()


cdef int64_t type_of(cnp.ndarray array) except -1:
    cdef cnp.dtype dtype = array.dtype
    cdef int64_t code = cnp.PyArray_ITEMSIZE(array)
    if dtype.kind == c"f":
        code |= SX_TYPE_FLOAT
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

    def __init__(self, call):
        memset(&self.call, 0, sizeof(sx_call))
        self.owners = []
        self.call.op = call.op
        self.call.n_rows = call.n_rows
        self.call.n_classes = call.n_classes
        self.call.scale = call.scale
        self.matrix(&self.call.logits, call.logits)
        self.matrix(&self.call.out_map, call.out_map)
        self.rows(&self.call.targets, call.targets)
        self.rows(&self.call.sample_weight, call.sample_weight)
        self.rows(&self.call.upstream, call.upstream)
        self.merge_axes(call.logits.shape, call.logits.ndim - 1)
        if call.ignore_index is not None:
            self.call.has_ignore = 1
            # As the loads see it: uint64 wraps, and so does what it is compared with.
            self.call.ignore_index = <int64_t>(<uint64_t>(call.ignore_index & 0xFFFFFFFFFFFFFFFF))
        if call.class_weight is not None:
            self.owners.append(call.class_weight)
            self.call.class_weight = <const double*>cnp.PyArray_DATA(call.class_weight)
        if call.out_rows is not None:
            self.owners.append(call.out_rows)
            self.call.out_rows = cnp.PyArray_DATA(call.out_rows)
            self.call.out_rows_is_double = call.out_rows.dtype.itemsize == 8

    @property
    def address(self):
        """Where the C arguments are; valid while this object lives."""
        return <uint64_t>&self.call

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
        if array is None:
            return 0
        a = array
        self.rows(&into.rows, a)
        last = cnp.PyArray_NDIM(a) - 1
        into.class_stride = cnp.PyArray_STRIDE(a, last)
        into.rows.strides[last] = 0
        if cnp.PyArray_ISBEHAVED_RO(a):
            # 1: kernels use it as it is. 2: rows side by side may be loaded together.
            into.direct = 2
            if into.class_stride == cnp.PyArray_ITEMSIZE(a) or self.call.n_classes == 1:
                into.direct = 1
        return 0

    cdef int merge_axes(self, tuple shape, int n_axes) except -1:
        # Axes of length 1 go, neighbours that every array steps through evenly become one.
        cdef sx_rows* arrays[5]
        cdef int64_t length
        cdef int i, axis, kept = 0
        cdef bint even
        cdef int before
        arrays[0] = &self.call.logits.rows
        arrays[1] = &self.call.out_map.rows
        arrays[2] = &self.call.targets
        arrays[3] = &self.call.sample_weight
        arrays[4] = &self.call.upstream
        for axis in range(n_axes):
            length = shape[axis]
            if length == 1:
                continue
            even = kept > 0
            before = kept - 1 if kept > 0 else 0
            for i in range(5):
                even = even and (arrays[i].strides[before] == arrays[i].strides[axis] * length)
            if not even:
                before = kept
                self.call.shape[before] = 1
                kept += 1
            self.call.shape[before] *= length
            for i in range(5):
                arrays[i].strides[before] = arrays[i].strides[axis]
        if kept == 0:
            self.call.shape[0] = 1
            kept = 1
            for i in range(5):
                arrays[i].strides[0] = 0
        self.call.n_axes = kept
        return 0
