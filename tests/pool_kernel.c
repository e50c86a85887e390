/* A kernel for tests of the pool: notes who did each unit and in which state, and can take long. */
#define _GNU_SOURCE
#include "_control.h"

#include <time.h>
#include <unistd.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#else
#define _mm_getcsr() 0u
#define _mm_setcsr(state) ((void)(state))
#endif

struct unit {
    int32_t visits;
    int32_t thread;
    uint32_t float_state;
};

struct watched {
    struct unit *units;
    int64_t nanoseconds;  /* a unit */
    int64_t flush;        /* set flush-to-zero meanwhile, as our kernels do */
    int64_t broken;       /* return 7 at this unit; -1: nowhere */
    int32_t quick_thread; /* waits until another thread has a unit; its own take no time */
    int32_t others;       /* units of other threads */
};

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int64_t watched(void *args, int64_t lo, int64_t hi, sx_control *control)
{
    struct watched *self = args;
    uint32_t state = _mm_getcsr();
    int64_t outcome = 0;
    int quick = self->quick_thread == (int32_t)gettid();

    if (!quick)
        __atomic_fetch_add(&self->others, 1, __ATOMIC_RELAXED);
    while (quick && __atomic_load_n(&self->others, __ATOMIC_RELAXED) == 0)
        ;
    if (self->flush)
        _mm_setcsr(state | 0x8040);
    for (int64_t i = lo; i < hi && outcome == 0; i++) {
        int64_t until = self->nanoseconds && !quick ? now() + self->nanoseconds : 0;

        __atomic_fetch_add(&self->units[i].visits, 1, __ATOMIC_RELAXED);
        self->units[i].thread = (int32_t)gettid();
        self->units[i].float_state = state;
        if (i == self->broken)
            outcome = 7;
        while (outcome == 0 && until > 0 && now() < until)
            if (sx_tick(control, SX_POLL_ELEMENTS / 4))
                outcome = SX_STOPPED;
    }
    _mm_setcsr(state);
    return outcome;
}

void set_float_state(uint32_t state)
{
    _mm_setcsr(state);
}
