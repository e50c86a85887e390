/* What a kernel and the thread that runs it share.

   A kernel is a plain C function over a range of rows:

       int64_t kernel(void *args, int64_t lo, int64_t hi, sx_control *control);

   It returns 0, or SX_STOPPED when it gave up because it was asked to. It calls sx_tick() with the
   number of elements it has just read, at least once every SX_POLL_ELEMENTS elements, and stops
   when that answers non-zero. Each thread has a control block of its own; `poll` is where the
   caller's thread looks for signals and a worker looks at the shared stop flag. */
#ifndef SOFTXENT_CONTROL_H
#define SOFTXENT_CONTROL_H

#include <stdint.h>

#define SX_STOPPED 1
/* Ctrl-C is looked for at least this often (CONTRACT: 2**22 elements). */
#define SX_POLL_ELEMENTS ((int64_t)1 << 22)

typedef struct sx_control {
    int64_t elements;                          /* read since the last poll */
    int32_t (*poll)(struct sx_control *self);  /* non-zero: stop now */
    void *owner;                               /* the pool's own */
} sx_control;

typedef int64_t (*sx_kernel)(void *args, int64_t lo, int64_t hi, sx_control *control);

static inline int32_t sx_tick(sx_control *control, int64_t elements)
{
    control->elements += elements;
    if (control->elements < SX_POLL_ELEMENTS)
        return 0;
    control->elements = 0;
    return control->poll(control);
}

#endif
