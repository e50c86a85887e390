/* The pool: runs a kernel's range side by side on a few native threads.

   One caller at a time owns the workers; another caller meanwhile runs its whole range itself.
   Workers never touch Python. A forked child starts without any. Without pthreads every run is
   serial, in the caller. */
#ifndef SOFTXENT_POOL_H
#define SOFTXENT_POOL_H

#include "_control.h"

#if !defined(_WIN32) && !defined(__STDC_NO_ATOMICS__)
#define SX_HAVE_POOL 1
#else
#define SX_HAVE_POOL 0
#endif

/* threadpoolctl recognises our library by this symbol, so it is visible whatever the flags. */
#if defined(__GNUC__)
#define SX_VISIBLE __attribute__((visibility("default")))
#else
#define SX_VISIBLE
#endif

/* Called in the caller's thread at every poll, with the caller's floating-point state; non-zero:
   give up. NULL where there is nothing to look for. */
typedef int32_t (*sx_interrupted)(void *context);

enum sx_outcome {
    SX_COMPLETE = 0,
    SX_GAVE_UP = 1, /* interrupted, or a kernel said so */
    SX_FORKED = 2   /* this is a child, forked while its own thread was in the run */
};

/* Once, before the first run; non-zero: no memory for the fork handler. */
int sx_pool_setup(void);

/* kernel(args, lo, hi, …) for every piece of `grain` units of [0, n_units), on at most n_threads
   threads, the calling one included. When it returns no thread is inside the kernel any more.
   Without `wakes` other threads take part only if a run that they could be of has ended just now:
   such runs follow one another, and what it costs to wake a thread is paid once for many. */
enum sx_outcome sx_pool_run(sx_kernel kernel, void *args, int64_t n_units, int64_t grain,
                            int64_t n_threads, int wakes, sx_interrupted interrupted,
                            void *context);

/* Workers alive in this process. */
SX_VISIBLE int sx_pool_size(void);

/* The calling thread's MXCSR; 0 where there is none. */
unsigned sx_float_state(void);

#endif
