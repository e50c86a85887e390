"""The native pool (_pool.c) and what the processor is, for Python.

Compiled for any processor: nothing here may need a newer one than the package itself does.
"""

import os
import threading

from cpython.pystate cimport PyThreadState
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int32_t, int64_t, uintptr_t


cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <cpuid.h>
    #endif

    /* The best x86-64 level whose every instruction this processor, and the system under it, can
       run; the builtin looks at both. Bits it does not know in every compiler we accept come from
       CPUID; they need no support from the system. */
    static const char *sx_cpu_level(void)
    {
    #if defined(__x86_64__) && defined(__GNUC__)
        unsigned eax, ebx, ecx = 0, edx, extended = 0;

        __builtin_cpu_init();
        __get_cpuid(1, &eax, &ebx, &ecx, &edx);
        __get_cpuid(0x80000001, &eax, &ebx, &extended, &edx);
        if (!(__builtin_cpu_supports("sse3") && __builtin_cpu_supports("ssse3")
              && __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("sse4.2")
              && __builtin_cpu_supports("popcnt")))
            return "baseline";
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
              && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")
              && (ecx & 1u << 29)          /* f16c */
              && (ecx & 1u << 22)          /* movbe */
              && (extended & 1u << 5)))    /* lzcnt */
            return "v2";
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
              && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
              && __builtin_cpu_supports("avx512vl")))
            return "v3";
        return "v4";
    #elif defined(_M_X64)
        return "baseline"; /* no builtin to ask; nothing is built for a level either */
    #else
        return "generic";
    #endif
    }

    /* So that Cython passes on what a signal handler raised during the run. */
    static int sx_raise_pending(void)
    {
        return PyErr_Occurred() != NULL ? -1 : 0;
    }
    """
    const char *sx_cpu_level() noexcept
    int sx_raise_pending() except -1

cdef extern from "Python.h":
    PyThreadState *PyEval_SaveThread() noexcept nogil
    void PyEval_RestoreThread(PyThreadState *thread) noexcept nogil
    int PyErr_CheckSignals() noexcept nogil

cdef extern from "_pool.h":
    ctypedef int64_t (*sx_kernel)(void *, int64_t, int64_t, void *) noexcept nogil
    ctypedef int32_t (*sx_interrupted)(void *) noexcept nogil
    enum sx_outcome:
        SX_COMPLETE
        SX_GAVE_UP
        SX_FORKED
    const int SX_HAVE_POOL
    int sx_pool_setup() noexcept
    sx_outcome sx_pool_run(sx_kernel, void *, int64_t, int64_t, int64_t, int, sx_interrupted,
                           void *) noexcept nogil
    int sx_pool_size() noexcept
    unsigned int sx_float_state() noexcept


# Signal handlers run in Python's main thread only; every other thread spares itself the lock.
cdef unsigned long main_thread = threading.main_thread().ident


def _start_afresh():
    global main_thread
    main_thread = PyThread_get_thread_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
if sx_pool_setup() != 0:
    raise MemoryError


cdef int32_t check_signals(void *context) noexcept nogil:
    """Run pending signal handlers; non-zero if one raised, which stays pending in this thread."""
    cdef PyThreadState **thread = <PyThreadState **> context
    cdef int raised
    PyEval_RestoreThread(thread[0])
    raised = PyErr_CheckSignals()
    thread[0] = PyEval_SaveThread()
    return raised


cdef sx_outcome run_released(sx_kernel kernel, void *args, int64_t n_units, int64_t grain,
                             int64_t n_threads, bint wakes, bint sees_signals) noexcept nogil:
    cdef PyThreadState *thread = PyEval_SaveThread()
    cdef sx_interrupted interrupted = NULL
    cdef sx_outcome outcome
    if sees_signals:
        interrupted = check_signals
    outcome = sx_pool_run(kernel, args, n_units, grain, n_threads, wakes, interrupted, &thread)
    PyEval_RestoreThread(thread)
    return outcome


def run(uintptr_t function, uintptr_t args, int64_t n_units, int64_t grain, int64_t n_threads,
        bint wakes=True):
    """Run the kernel at address `function` over [0, n_units), `grain` units at a time.

    At most `n_threads` threads take part, this one included, without the interpreter's lock; unless
    it `wakes` workers, only if another run has ended some microseconds ago. In Python's main thread
    signal handlers run meanwhile, and what they raise ends the run.
    """
    cdef sx_outcome outcome
    if function == 0 or n_units < 1 or grain < 1:
        raise ValueError(f"no kernel or nothing to do: {function=}, {n_units=}, {grain=}")
    outcome = run_released(<sx_kernel> function, <void *> args, n_units, grain, n_threads, wakes,
                           PyThread_get_thread_ident() == main_thread)
    sx_raise_pending()
    if outcome == SX_FORKED:
        raise RuntimeError("a signal handler forked during this call; the child has no result")
    if outcome != SX_COMPLETE:
        raise RuntimeError("a kernel gave up without being asked to")


def run_cut(uintptr_t function, uintptr_t args, int64_t n_units, int64_t grain, int64_t n_threads,
            bint wants_map, bint wakes=True):
    """Run a kernel that cuts rows: its stages one after another, those of blocks side by side.

    `args`: the call's address, a stage's number, what it holds, and the kernel's own memory.
    """
    cdef int64_t *stage = <int64_t *> args + 1
    cdef int64_t i
    stage[1] = 0
    try:
        for i in range(5 if wants_map else 3):
            stage[0] = i
            if i & 1:
                run(function, args, n_units, grain, n_threads, wakes)
            else:
                run(function, args, 1, 1, 1)
    finally:
        stage[0] = 5    # gives back what it holds, in the thread that has taken it
        (<sx_kernel> function)(<void *> args, 0, 1, NULL)


cdef extern from "_memory.h":
    ctypedef struct sx_memory:
        int64_t what
        float *from_ "from"
        float *to
    int64_t sx_memory_run(void *, int64_t, int64_t, void *) noexcept nogil
    enum:
        SX_READ
        SX_UPDATE
        SX_COPY
        SX_STREAM

_LOOPS = {"read": SX_READ, "update": SX_UPDATE, "copy": SX_COPY, "stream": SX_STREAM}


def move_memory(str loop, uintptr_t source, uintptr_t target, int64_t lines, int64_t grain,
                int64_t n_threads):
    """Read `lines` lines of 64 bytes, or read and write them: what any kernel has to do at least.

    `loop`: "read", "update" (in place), "copy", "stream" (a copy past the caches). Both addresses
    are a line's.
    """
    cdef sx_memory memory
    if source % 64 or target % 64 or not source or not target:
        raise ValueError("addresses must be those of 64-byte lines")
    memory.what = _LOOPS[loop]
    memory.from_ = <float *> source
    memory.to = <float *> target
    run(<uintptr_t> &sx_memory_run, <uintptr_t> &memory, lines, grain, n_threads)


def cpu_level():
    """Return "v4", "v3", "v2" or "baseline" (x86-64), or "generic" (anything else)."""
    return sx_cpu_level().decode()


def has_pool():
    """Whether runs can use more than the calling thread."""
    return bool(SX_HAVE_POOL)


def pool_size():
    """Return the number of workers alive in this process."""
    return sx_pool_size()


def float_state():
    """Return the calling thread's MXCSR, 0 where there is none."""
    return sx_float_state()
