# softxent's kernels for a user's own Cython code; softxent is there where it is compiled and run:
#
#     from softxent cimport kernels
#
#     def mean_gradient(const float[:, ::1] logits, const int64_t[::1] targets, float[:, ::1] grad):
#         cdef int64_t n = logits.shape[0], status
#         with nogil:
#             status = kernels.cross_entropy_f32(&logits[0, 0], &targets[0], n, logits.shape[1],
#                                                1.0 / n, NULL, &grad[0, 0])
#         if status:
#             raise IndexError(f"targets[{-1 - status}] is no class")
#
# Each has the bits of the public function of its name with default options, needs no Python object
# and not the interpreter's lock, and runs in the calling thread alone: call it from as many threads
# as you like, over rows of their own. It allocates nothing and sets the floating-point state back;
# Ctrl-C waits until it returns. The instruction set is chosen when your module is imported: the best
# that the processor has and SOFTXENT_MAX_ISA allows.
#
# Arrays are C-contiguous: logits, grad and out (n_rows, n_classes), targets and losses (n_rows,).
# An output may be the logits themselves, and is then written in place; else it must overlap nothing.
#
# cross_entropy: losses or grad may be NULL, and is then not computed. A target of -100 is ignored:
# loss and gradient of that row are 0. `upstream` multiplies the gradient before its one rounding: 1.0
# for that of the sum, 1.0 / n_rows for that of the mean over rows of which none is ignored. Returns 0,
# or -1 - row for the first row whose target is not in [0, n_classes): nothing is written then.

from libc.stdint cimport int64_t

cdef int64_t cross_entropy_f32(const float* logits, const int64_t* targets, int64_t n_rows,
                               int64_t n_classes, double upstream, float* losses,
                               float* grad) noexcept nogil
cdef int64_t cross_entropy_f64(const double* logits, const int64_t* targets, int64_t n_rows,
                               int64_t n_classes, double upstream, double* losses,
                               double* grad) noexcept nogil

# out: (n_rows,).
cdef void logsumexp_f32(const float* logits, int64_t n_rows, int64_t n_classes,
                        float* out) noexcept nogil
cdef void logsumexp_f64(const double* logits, int64_t n_rows, int64_t n_classes,
                        double* out) noexcept nogil

cdef void softmax_f32(const float* logits, int64_t n_rows, int64_t n_classes,
                      float* out) noexcept nogil
cdef void softmax_f64(const double* logits, int64_t n_rows, int64_t n_classes,
                      double* out) noexcept nogil

cdef void log_softmax_f32(const float* logits, int64_t n_rows, int64_t n_classes,
                          float* out) noexcept nogil
cdef void log_softmax_f64(const double* logits, int64_t n_rows, int64_t n_classes,
                          double* out) noexcept nogil
