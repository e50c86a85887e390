"""`_problem.normalise` for the calls that most calls are, compiled, and what it makes of them.

A call is simple if every option has its default, the logits are (N, C), in C or Fortran order, the
targets are class numbers in int64, and all arrays are NumPy's own, contiguous, aligned and in native
byte order; gradient and Hessian in either order, whatever the logits', and of any float type that the
loss lets them have. There may be weights of the rows, in float32 or float64. Of such a call the
kernel's arguments are built here, the ones that the backend's binding would build; for any other,
`normalise` is the plain one, with every check and every error.
"""

import cython
import numpy as np

cimport numpy as cnp
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t

from softxent import _plan
from softxent._problem import _CHUNK, hessian_rule
from softxent._problem import normalise as plain
from softxent._settings import lookup
from softxent._small import _plain_class_numbers
from softxent.backends._contract import Key, Op

cdef extern from "_control.h":
    ctypedef struct sx_control:
        int64_t elements
        int32_t (*poll)(sx_control *) noexcept nogil
        void *owner
    ctypedef int64_t (*sx_kernel)(void *, int64_t, int64_t, sx_control *) noexcept nogil

cdef extern from "_ready.h":
    double sx_tree_sum(double *values, int64_t n) noexcept nogil

cdef extern from "call.h" nogil:
    enum:
        SX_TYPE_F16
        SX_TYPE_BF16
        SX_TYPE_FLOAT
        SX_ANY
        SX_IN_PLACE
        SX_STRIDED
        SX_SIXTEEN
        SX_SINGLE
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
        sx_rows targets, sample_weight
        double class_unit, class_weight_mean
        int64_t has_ignore, ignore_index
        double scale, temperature, gamma, floor
        int64_t n_points, streams
        void* out_rows
        int64_t out_rows_is_double
        const sx_call* second

ctypedef fused real:
    float
    double

cnp.import_array()

# Calls of fewer elements keep the interpreter's lock: giving it back and having it again costs as much
# as a thousand of them, and nobody waits for it longer than for a matrix product of NumPy's.
cdef int64_t KEEPS_LOCK = 8192

#: Operations that calls with class numbers have: a bit for each.
cdef int64_t _OPS = sum([1 << op for op in (Op.CROSS_ENTROPY, Op.FOCAL, Op.SQUARED_ERROR, Op.NLL)])
#: Hessians that are maps of the sums: not those made of the gradient.
cdef frozenset _RULES = frozenset(("diagonal", "xgboost", "lightgbm"))
cdef object _setting = _plan._setting
cdef object _BACKEND = _plan._BACKEND, _MAX_ISA = _plan._MAX_ISA
#: A dtype's name in keys, the kernels' number of it, and its own.
cdef tuple _OF_F32 = ("float32", SX_TYPE_FLOAT | 4, 0)
cdef tuple _OF_F64 = ("float64", SX_TYPE_FLOAT | 8, 1)
cdef tuple _OF_F16 = ("float16", SX_TYPE_F16, 2)
cdef tuple _OF_BF16 = ("bfloat16", SX_TYPE_BF16, 3)
#: Every `Known` so far, at `known_of`'s number of it.
cdef list _known = [None] * (32 * len(Op))


cdef int32_t never(sx_control *control) noexcept nogil:
    return 0


@cython.final
cdef class Known:
    """A key that simple calls have, and the plan that its last call of one thread had."""

    cdef readonly object key
    cdef object plan, requested, n_threads, forced, backend, isa, epoch
    cdef int64_t n_rows, n_classes

    cdef object plan_of(self, int64_t n_rows, int64_t n_classes, object requested, object n_threads):
        # `_plan.select`, which need not be asked again while all it goes by is as it was.
        cdef object get = lookup(), forced = _setting.get(), epoch = _plan.epoch
        cdef object backend = get(_BACKEND), isa = get(_MAX_ISA)
        if (n_rows == self.n_rows and n_classes == self.n_classes and requested is self.requested
                and n_threads is self.n_threads and forced is self.forced
                and backend is self.backend and isa is self.isa and epoch is self.epoch):
            return self.plan
        plan = _plan.select(self.key, n_rows, n_classes, requested, n_threads)
        if ((requested is None or type(requested) is str)
                and (n_threads is None or type(n_threads) is int)
                and not _plan.may_share(self.key, n_rows, n_classes)):
            self.plan, self.n_rows, self.n_classes = plan, n_rows, n_classes
            self.requested, self.n_threads, self.forced = requested, n_threads, forced
            self.backend, self.isa, self.epoch = backend, isa, epoch
        return plan


cdef Known known_of(int op, tuple kind, bint by_class, bint wants_map, bint apart):
    # All that a key of a simple call can be.
    cdef int number = kind[2]
    cdef Known found
    number = (((op * 4 + number) * 2 + by_class) * 2 + wants_map) * 2 + apart
    found = _known[number]
    if found is None:
        found = Known.__new__(Known)
        found.key = Key(Op(op), kind[0], "F" if by_class else "C", wants_map, "classes", apart=apart)
        _known[number] = found
    return found


cdef inline bint are_apart(cnp.ndarray a, cnp.ndarray b):
    cdef char *p = <char *>cnp.PyArray_DATA(a)
    cdef char *q = <char *>cnp.PyArray_DATA(b)
    return p + cnp.PyArray_NBYTES(a) <= q or q + cnp.PyArray_NBYTES(b) <= p


cdef inline bint is_matrix(object array, int number, bint by_class):
    return (cnp.PyArray_CheckExact(array) and cnp.PyArray_NDIM(array) == 2
            and cnp.PyArray_TYPE(array) == number and cnp.PyArray_ISBEHAVED_RO(array)
            and (cnp.PyArray_IS_F_CONTIGUOUS(array) if by_class
                 else cnp.PyArray_IS_C_CONTIGUOUS(array)))


cdef tuple kind_of(cnp.ndarray logits, int number):
    # None: no logits.
    if number == cnp.NPY_FLOAT:
        return _OF_F32
    if number == cnp.NPY_DOUBLE:
        return _OF_F64
    if number == cnp.NPY_FLOAT16:
        return _OF_F16
    if cnp.PyArray_ITEMSIZE(logits) == 2 and logits.dtype.name == "bfloat16":
        return _OF_BF16
    return None


cdef void describe(sx_matrix *into, cnp.ndarray array, int64_t type, bint wide):
    # An (N, C) array, contiguous in either order, for a walk in double or in float.
    cdef int64_t size = cnp.PyArray_ITEMSIZE(array)
    cdef bint by_class = not cnp.PyArray_IS_C_CONTIGUOUS(array)
    into.rows.data = <char *>cnp.PyArray_DATA(array)
    into.rows.type = type
    into.rows.strides[0] = size if by_class else cnp.PyArray_DIM(array, 1) * size
    into.class_stride = cnp.PyArray_DIM(array, 0) * size if by_class else size
    if size == 2:
        into.direct = SX_SIXTEEN
    elif (size == 8) != wide:
        into.direct = SX_SINGLE if wide else SX_ANY
    else:
        into.direct = SX_STRIDED if by_class else SX_IN_PLACE


cdef bint is_output(object array, cnp.ndarray logits, tuple others):
    # Whether a map can be written into the array, as far as its own shape and type go.
    cdef int number
    if not (cnp.PyArray_CheckExact(array) and cnp.PyArray_NDIM(array) == 2
            and (cnp.PyArray_ISCARRAY(array) or cnp.PyArray_ISFARRAY(array))
            and cnp.PyArray_DIM(array, 0) == cnp.PyArray_DIM(logits, 0)
            and cnp.PyArray_DIM(array, 1) == cnp.PyArray_DIM(logits, 1)):
        return False
    number = cnp.PyArray_TYPE(array)
    if cnp.PyArray_ITEMSIZE(logits) == 2:
        return number == cnp.PyArray_TYPE(logits) and cnp.PyArray_IS_C_CONTIGUOUS(array)
    return (number == cnp.PyArray_TYPE(logits) or number == cnp.NPY_FLOAT and "float32" in others
            or number == cnp.NPY_DOUBLE and "float64" in others)


cdef inline bint are_one(cnp.ndarray a, cnp.ndarray b):
    # Of arrays of one shape, contiguous: whether they have the same elements at the same places.
    return (cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b) and cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(b)
            and cnp.PyArray_IS_C_CONTIGUOUS(a) == cnp.PyArray_IS_C_CONTIGUOUS(b))


@cython.final
@cython.freelist(8)
cdef class Ready:
    """A checked simple call: its kernel's arguments, and the arrays that they point into."""

    cdef sx_call call
    cdef object spec, ignore_index, reduction, gamma, out_dtypes
    cdef tuple hessian    # rule and output, or None
    cdef cnp.ndarray logits, targets, sample_weight, out
    cdef bint wants_map, given
    cdef double divisor
    cdef Known known
    #: The Hessian, of a call that asked for it and has run.
    cdef readonly cnp.ndarray hess

    def plan(self, requested, n_threads):
        """Return the plan that `_plan.select` makes of the call."""
        return self.known.plan_of(self.call.n_rows, self.call.n_classes, requested, n_threads)

    def plain(self):
        """Return the Problem that the plain `normalise` makes of the call."""
        return plain(self.spec, self.logits, self.targets, ignore_index=self.ignore_index,
                     gamma=self.gamma, sample_weight=self.sample_weight, reduction=self.reduction,
                     wants_map=self.wants_map, out=self.out if self.given else None,
                     out_dtypes=self.out_dtypes, hessian=self.hessian)

    cdef cnp.ndarray map_of(self, sx_matrix *into, cnp.ndarray given):
        # The array that a map is written into, `given` or a new one like the logits.
        cdef int64_t size
        if given is None and self.call.logits.direct == SX_SIXTEEN:
            given = np.empty_like(self.logits)
        elif given is None:
            given = cnp.PyArray_EMPTY(2, cnp.PyArray_DIMS(self.logits),
                                      cnp.PyArray_TYPE(self.logits),
                                      self.call.logits.direct == SX_STRIDED)
        size = cnp.PyArray_ITEMSIZE(given)
        describe(into, given, self.call.logits.rows.type if size == 2 else SX_TYPE_FLOAT | size,
                 cnp.PyArray_ITEMSIZE(self.logits) == 8)
        return given

    def run(self, plan):
        """Run the plan's kernel; return what `_run.evaluate` returns. Once."""
        cdef sx_control control
        cdef tuple found = plan.entry
        cdef uintptr_t kernel = found[0]
        cdef int64_t units = found[1]
        cdef int64_t n_threads = plan.n_threads
        cdef uintptr_t *memory = NULL
        cdef cnp.npy_intp n = self.call.n_rows
        cdef double *values = NULL
        cdef sx_call *second = NULL
        cdef double total
        cdef object rows = None
        cdef bint keeps_rows = self.reduction == "none"
        if self.wants_map:
            self.out = self.map_of(&self.call.out_map, self.out)
        self.call.streams = plan.streams and self.hessian is None
        self.call.out_rows_is_double = not keeps_rows or cnp.PyArray_ITEMSIZE(self.logits) == 8
        if keeps_rows:
            rows = cnp.PyArray_EMPTY(1, &n, cnp.NPY_DOUBLE if self.call.out_rows_is_double
                                     else cnp.NPY_FLOAT, 0)
            self.call.out_rows = cnp.PyArray_DATA(rows)
        else:
            values = <double *>PyMem_RawMalloc(n * sizeof(double))
            if values == NULL:
                raise MemoryError(f"no memory for {n} row values")
            self.call.out_rows = values
        try:
            if self.hessian is not None:
                second = <sx_call *>PyMem_RawMalloc(sizeof(sx_call))
                if second == NULL:
                    raise MemoryError("no memory for a call's arguments")
                second[0] = self.call
                second.op = Op.HESSIAN
                second.out_rows = NULL
                self.hess = self.map_of(&second.out_map, self.hessian[1])
                second.scale, second.floor = hessian_rule(self.hessian[0], 1.0, self.call.n_classes)
                self.call.second = second
            if units:
                from softxent import _native

                memory = <uintptr_t *>PyMem_RawMalloc(found[2])
                if memory == NULL:
                    raise MemoryError(f"no memory for {units} blocks' sums")
                memory[0] = <uintptr_t>&self.call
                _native.run_cut(kernel, <uintptr_t>memory, units, plan.grain, n_threads,
                                self.wants_map, plan.wakes)
            elif n_threads == 1 and n * self.call.n_classes < KEEPS_LOCK:
                control.elements = 0
                control.poll = never
                control.owner = NULL
                (<sx_kernel>kernel)(&self.call, 0, n, &control)
            else:
                from softxent import _native    # not before the first call: it sets the pool up

                _native.run(kernel, <uintptr_t>&self.call, n, plan.grain, n_threads, plan.wakes)
            if keeps_rows:
                return rows, self.out
            total = sx_tree_sum(values, n)
            return total / self.divisor, self.out
        finally:
            PyMem_RawFree(memory)
            PyMem_RawFree(values)
            PyMem_RawFree(second)


cdef bint set_weights(Ready self, object weights, int64_t n) except -1:
    # Whether the weights of the rows can be read as they are, and are finite and >= 0.
    cdef int64_t i
    cdef bint bad = False
    cdef const float *singles
    cdef const double *doubles
    cdef int number
    if not (cnp.PyArray_CheckExact(weights) and cnp.PyArray_NDIM(weights) == 1
            and cnp.PyArray_ISCARRAY_RO(weights) and cnp.PyArray_DIM(weights, 0) == n):
        return False
    number = cnp.PyArray_TYPE(weights)
    if number == cnp.NPY_FLOAT:
        singles = <const float *>cnp.PyArray_DATA(weights)
        for i in range(n):
            bad |= not (singles[i] >= 0.0 and singles[i] - singles[i] == 0.0)
    elif number == cnp.NPY_DOUBLE:
        doubles = <const double *>cnp.PyArray_DATA(weights)
        for i in range(n):
            bad |= not (doubles[i] >= 0.0 and doubles[i] - doubles[i] == 0.0)
    else:
        return False
    if bad:
        return False
    self.sample_weight = weights
    self.call.sample_weight.data = <char *>cnp.PyArray_DATA(weights)
    self.call.sample_weight.type = SX_TYPE_FLOAT | cnp.PyArray_ITEMSIZE(weights)
    self.call.sample_weight.strides[0] = cnp.PyArray_ITEMSIZE(weights)
    return True


cdef double sum_of_weights(Ready self) except -1.0:
    # _problem.divisor_of, of as many rows as it sums at a time; 0: not a divisor.
    cdef int64_t i, n = self.call.n_rows
    cdef const int64_t *ys = <const int64_t *>self.call.targets.data
    cdef bint single = self.call.sample_weight.strides[0] == sizeof(float)
    cdef double total
    cdef double *values
    if n > <int64_t>_CHUNK:
        return 0.0
    values = <double *>PyMem_RawMalloc(n * sizeof(double))
    if values == NULL:
        raise MemoryError(f"no memory for {n} weights")
    for i in range(n):
        if self.call.has_ignore and ys[i] == self.call.ignore_index:
            values[i] = 0.0
        elif single:
            values[i] = (<const float *>self.call.sample_weight.data)[i]
        else:
            values[i] = (<const double *>self.call.sample_weight.data)[i]
    total = sx_tree_sum(values, n)
    PyMem_RawFree(values)
    return total if isfinite(total) else 0.0


cdef int64_t count_of(const int64_t *ys, int64_t n, int64_t classes, bint has_ignore,
                      int64_t ignored) noexcept nogil:
    # How many targets count; -1: some are neither that nor to be ignored.
    cdef uint64_t signs = 0, last = classes - 1
    cdef int64_t i, count = 0
    if not (has_ignore and 0 <= ignored < classes):
        # Mostly all are classes. Additions alone, for SSE2 has no vectors of 64-bit comparisons.
        for i in range(n):
            signs |= <uint64_t>ys[i] | (last - <uint64_t>ys[i])
        if signs >> 63 == 0:
            return n
    for i in range(n):
        if has_ignore and ys[i] == ignored:
            continue
        if ys[i] < 0 or ys[i] >= classes:
            return -1
        count += 1
    return count


cdef Ready ready(object spec, object logits, object targets, object ignore_index, object gamma,
                 object sample_weight, object reduction, bint wants_map, object out,
                 tuple out_dtypes, tuple hessian):
    # None: not a simple call, or not a valid one.
    cdef int number, op = spec.op
    cdef object hess_out = None
    cdef int64_t ignored = 0, count, n, classes
    cdef bint has_ignore = ignore_index is not None, apart = False, by_class
    cdef int64_t size
    cdef tuple kind
    cdef const int64_t *ys
    cdef Ready self
    if not cnp.PyArray_Check(logits):
        return None
    number = cnp.PyArray_TYPE(logits)
    by_class = not cnp.PyArray_IS_C_CONTIGUOUS(logits)
    if not is_matrix(logits, number, by_class):
        return None
    kind = kind_of(logits, number)
    size = cnp.PyArray_ITEMSIZE(logits)
    if kind is None or by_class and size == 2:
        return None
    n = cnp.PyArray_DIM(logits, 0)
    classes = cnp.PyArray_DIM(logits, 1)
    if not (cnp.PyArray_CheckExact(targets) and cnp.PyArray_NDIM(targets) == 1
            and cnp.PyArray_TYPE(targets) == cnp.NPY_INT64 and cnp.PyArray_ISCARRAY_RO(targets)
            and cnp.PyArray_DIM(targets, 0) == n):
        return None
    if not _OPS >> op & 1 or n == 0 or classes == 0:
        return None
    if has_ignore:
        if type(ignore_index) is not int or not -2**63 <= ignore_index < 2**63:
            return None
        ignored = ignore_index
    if type(gamma) is not float or not (isfinite(gamma) and <double>gamma >= 0.0):
        return None
    if reduction != "mean" and reduction != "sum" and reduction != "none":
        return None
    ys = <const int64_t *>cnp.PyArray_DATA(targets)
    count = count_of(ys, n, classes, has_ignore, ignored)
    if count <= 0:
        return None
    if out is not None:
        if not is_output(out, logits, out_dtypes):
            return None
        apart = are_apart(out, logits)
        if not are_apart(out, targets) or not (apart or are_one(out, logits)):
            return None
    if hessian is not None:
        hess_out = hessian[1]
        if (type(hessian[0]) is not str or hessian[0] not in _RULES or classes < 2
                or size == 2):
            return None
        if hess_out is not None and not (
                is_output(hess_out, logits, out_dtypes)
                and are_apart(hess_out, logits) and are_apart(hess_out, targets)
                and (out is None or are_apart(hess_out, out))):
            return None
    self = Ready.__new__(Ready)
    if sample_weight is not None:
        if not set_weights(self, sample_weight, n):
            return None
        if not ((out is None or are_apart(out, sample_weight))
                and (hess_out is None or are_apart(hess_out, sample_weight))):
            return None
    self.spec = spec
    self.ignore_index = ignore_index
    self.gamma = gamma
    self.reduction = reduction
    self.out_dtypes = out_dtypes
    self.hessian = hessian
    self.logits = logits
    self.targets = targets
    self.out = out
    self.wants_map = wants_map
    self.given = out is not None
    self.known = known_of(op, kind, by_class, wants_map, apart)
    self.call.op = op
    self.call.n_rows = n
    self.call.n_classes = classes
    self.call.n_axes = 1
    self.call.shape[0] = n
    self.call.n_points = n * classes
    describe(&self.call.logits, logits, kind[1], size == 8)
    self.call.targets.data = <char *>cnp.PyArray_DATA(targets)
    self.call.targets.type = sizeof(int64_t)
    self.call.targets.strides[0] = sizeof(int64_t)
    self.call.has_ignore = has_ignore
    self.call.ignore_index = ignored
    self.call.class_unit = 1.0
    self.call.class_weight_mean = 1.0
    self.call.temperature = 1.0
    self.call.gamma = gamma
    self.divisor = 1.0
    if reduction == "mean":
        self.divisor = count if sample_weight is None else sum_of_weights(self)
        if self.divisor == 0.0:
            return None
    self.call.scale = 1.0 / self.divisor if wants_map else 1.0
    return self


cdef inline bint convert(const real *labels, int64_t stride, int64_t n, int64_t n_classes,
                         int64_t *classes) noexcept nogil:
    # Whether all are class numbers.
    cdef int64_t i, y
    cdef real label
    cdef bint bad = False
    for i in range(n):
        label = (<const real *>(<const char *>labels + i * stride))[0]
        # Only what an int64 holds is converted: of anything else C leaves the result open.
        y = <int64_t>label if 0 <= label < 9e18 else -1
        bad |= y < 0 or y != label or y >= n_classes
        classes[i] = y
    return not bad


def class_numbers(cnp.ndarray labels not None, n_classes):
    """`_small.class_numbers`, of labels that can be read as they are; else that itself."""
    cdef cnp.ndarray classes
    cdef cnp.npy_intp n
    cdef int64_t stride, most = n_classes
    cdef int number
    cdef bint good = False
    cdef void *data
    cdef int64_t *out
    number = cnp.PyArray_TYPE(labels)
    if not (cnp.PyArray_CheckExact(labels) and cnp.PyArray_NDIM(labels) == 1
            and (number == cnp.NPY_FLOAT or number == cnp.NPY_DOUBLE)
            and cnp.PyArray_ISBEHAVED_RO(labels)):
        return _plain_class_numbers(labels, n_classes)
    n = cnp.PyArray_DIM(labels, 0)
    stride = cnp.PyArray_STRIDE(labels, 0)
    data = cnp.PyArray_DATA(labels)
    classes = cnp.PyArray_EMPTY(1, &n, cnp.NPY_INT64, 0)
    out = <int64_t *>cnp.PyArray_DATA(classes)
    with nogil:
        if number == cnp.NPY_FLOAT:
            good = convert(<const float *>data, stride, n, most, out)
        else:
            good = convert(<const double *>data, stride, n, most, out)
    return classes if good else None


def call_bytes():
    """Return the size of a kernel's arguments."""
    return sizeof(sx_call)


cdef inline bint is_plain_float(object value, double default):
    return type(value) is float and <double>value == default


def normalise(spec, logits, targets=None, *, axis=-1, class_weight=None, ignore_index=-100,
              label_smoothing=0.0, temperature=1.0, softcap=None, z_loss=0.0, gamma=0.0,
              sample_weight=None, reduction="none", divisor=None, wants_map=False, out=None,
              out_dtypes=(), upstream=1.0, hessian=None):
    """Check one call of `spec`: a `Ready` if it is simple, else what the plain `normalise` returns."""
    cdef Ready found
    if (class_weight is None and divisor is None
            and softcap is None and type(axis) is int and axis == -1
            and is_plain_float(label_smoothing, 0.0) and is_plain_float(temperature, 1.0)
            and is_plain_float(z_loss, 0.0) and is_plain_float(upstream, 1.0)):
        found = ready(spec, logits, targets, ignore_index, gamma, sample_weight, reduction, wants_map,
                      out, out_dtypes, hessian)
        if found is not None:
            return found
    return plain(spec, logits, targets, axis=axis, class_weight=class_weight,
                 ignore_index=ignore_index, label_smoothing=label_smoothing,
                 temperature=temperature, softcap=softcap, z_loss=z_loss, gamma=gamma,
                 sample_weight=sample_weight, reduction=reduction, divisor=divisor,
                 wants_map=wants_map, out=out, out_dtypes=out_dtypes,
                 upstream=upstream, hessian=hessian)
