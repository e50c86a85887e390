"""Softmax cross-entropy for a user's own Cython code: `from softxent cimport kernels`.

Nothing here is for Python: `kernels.pxd` has the functions, and says what they do.

Raises
------
BackendUnavailableError
    On import, where the Cython backend has no kernel that this processor can run.
"""

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memset

from softxent._plan import BackendUnavailableError
from softxent.backends import backend
from softxent.backends._contract import Key, Op

cdef extern from "_control.h" nogil:
    ctypedef struct sx_control:
        int64_t elements
        int32_t (*poll)(sx_control*) noexcept nogil
        void* owner
    ctypedef int64_t (*sx_kernel)(void*, int64_t, int64_t, sx_control*) noexcept nogil

cdef extern from "call.h" nogil:
    enum:
        SX_TYPE_FLOAT
        SX_IN_PLACE
        SX_STRIDED
    ctypedef struct sx_rows:
        char* data
        int64_t type
        int64_t* strides
    ctypedef struct sx_matrix:
        sx_rows rows
        int64_t class_stride
        int64_t direct
    ctypedef struct sx_call:
        int64_t op, n_rows, n_classes, n_axes
        int64_t* shape
        sx_matrix logits, out_map
        sx_rows targets
        double class_unit, class_weight_mean
        int64_t has_ignore, ignore_index
        double scale, temperature
        void* out_rows
        int64_t out_rows_is_double

cdef enum:
    IGNORED = -100    # the public functions' default
cdef int64_t CROSS_ENTROPY = Op.CROSS_ENTROPY
cdef int64_t LOGSUMEXP = Op.LOGSUMEXP
cdef int64_t SOFTMAX = Op.SOFTMAX
cdef int64_t LOG_SOFTMAX = Op.LOG_SOFTMAX


cdef uintptr_t find(str dtype) except 0:
    cython = backend("cython")
    state = cython.availability()
    if state != "available":
        raise BackendUnavailableError(f"softxent.kernels are the Cython backend's, and {state}")
    return cython.kernel(Key(Op.CROSS_ENTROPY, dtype, "C", True, "classes"), cython.isa(), 0)[0]


cdef sx_kernel walk_f32 = <sx_kernel>find("float32")
cdef sx_kernel walk_f64 = <sx_kernel>find("float64")


cdef int32_t never(sx_control* control) noexcept nogil:
    return 0


cdef inline void place(sx_matrix* matrix, char* data, int64_t size, int64_t row_stride,
                       int64_t class_stride) noexcept nogil:
    matrix.rows.data = data
    matrix.rows.type = SX_TYPE_FLOAT | size
    matrix.rows.strides[0] = row_stride
    matrix.class_stride = class_stride
    matrix.direct = SX_IN_PLACE if class_stride == size else SX_STRIDED


# Code that Numba has compiled, and cached, calls this by a name with its version (numba.py). Strides
# are in bytes; targets in [0, n_classes) or IGNORED, of any integer type (call.h's number of it).
cdef int64_t rows(int64_t op, int64_t size, int64_t n_rows, int64_t n_classes, char* logits,
                  int64_t row_stride, int64_t class_stride, char* targets, int64_t target_type,
                  int64_t target_stride, double upstream, char* values, int64_t value_size, char* out,
                  int64_t out_row_stride, int64_t out_class_stride) noexcept nogil:
    cdef sx_call call
    cdef sx_control control
    if n_rows < 1:
        return 0
    memset(&call, 0, sizeof(sx_call))
    call.op = op
    call.n_rows = n_rows
    call.n_classes = n_classes
    call.n_axes = 1
    call.shape[0] = n_rows
    place(&call.logits, logits, size, row_stride, class_stride)
    if out != NULL:
        place(&call.out_map, out, size, out_row_stride, out_class_stride)
    call.targets.data = targets
    call.targets.type = target_type
    call.targets.strides[0] = target_stride
    call.has_ignore = targets != NULL
    call.ignore_index = IGNORED
    call.class_unit = 1.0
    call.class_weight_mean = 1.0
    call.temperature = 1.0
    call.scale = upstream
    call.out_rows = values
    call.out_rows_is_double = value_size == sizeof(double)
    control.elements = 0
    control.poll = never
    control.owner = NULL
    return (walk_f64 if size == sizeof(double) else walk_f32)(&call, 0, n_rows, &control)


def address():
    """Return the address of `rows`, for softxent.numba."""
    return <uintptr_t>&rows


# ---- contiguous rows -----------------------------------------------------------------------------

cdef int64_t cross_entropy(int64_t size, const void* logits, const int64_t* targets, int64_t n_rows,
                           int64_t n_classes, double upstream, void* losses,
                           void* grad) noexcept nogil:
    cdef int64_t i
    for i in range(n_rows):
        if not 0 <= targets[i] < n_classes and targets[i] != IGNORED:
            return -1 - i
    return rows(CROSS_ENTROPY, size, n_rows, n_classes, <char*>logits, n_classes * size, size,
                <char*>targets, sizeof(int64_t), sizeof(int64_t), upstream, <char*>losses, size,
                <char*>grad, n_classes * size, size)


cdef void piece(int64_t op, int64_t size, const void* logits, int64_t n_rows, int64_t n_classes,
                void* values, void* out) noexcept nogil:
    rows(op, size, n_rows, n_classes, <char*>logits, n_classes * size, size, NULL, 0, 0, 1.0,
         <char*>values, size, <char*>out, n_classes * size, size)


cdef int64_t cross_entropy_f32(const float* logits, const int64_t* targets, int64_t n_rows,
                               int64_t n_classes, double upstream, float* losses,
                               float* grad) noexcept nogil:
    return cross_entropy(sizeof(float), logits, targets, n_rows, n_classes, upstream, losses, grad)


cdef int64_t cross_entropy_f64(const double* logits, const int64_t* targets, int64_t n_rows,
                               int64_t n_classes, double upstream, double* losses,
                               double* grad) noexcept nogil:
    return cross_entropy(sizeof(double), logits, targets, n_rows, n_classes, upstream, losses, grad)


cdef void logsumexp_f32(const float* logits, int64_t n_rows, int64_t n_classes,
                        float* out) noexcept nogil:
    piece(LOGSUMEXP, sizeof(float), logits, n_rows, n_classes, out, NULL)


cdef void logsumexp_f64(const double* logits, int64_t n_rows, int64_t n_classes,
                        double* out) noexcept nogil:
    piece(LOGSUMEXP, sizeof(double), logits, n_rows, n_classes, out, NULL)


cdef void softmax_f32(const float* logits, int64_t n_rows, int64_t n_classes,
                      float* out) noexcept nogil:
    piece(SOFTMAX, sizeof(float), logits, n_rows, n_classes, NULL, out)


cdef void softmax_f64(const double* logits, int64_t n_rows, int64_t n_classes,
                      double* out) noexcept nogil:
    piece(SOFTMAX, sizeof(double), logits, n_rows, n_classes, NULL, out)


cdef void log_softmax_f32(const float* logits, int64_t n_rows, int64_t n_classes,
                          float* out) noexcept nogil:
    piece(LOG_SOFTMAX, sizeof(float), logits, n_rows, n_classes, NULL, out)


cdef void log_softmax_f64(const double* logits, int64_t n_rows, int64_t n_classes,
                          double* out) noexcept nogil:
    piece(LOG_SOFTMAX, sizeof(double), logits, n_rows, n_classes, NULL, out)
