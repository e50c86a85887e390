/* See _pool.h. All state is static: nothing is freed, so neither exit nor fork can pull it away
   from a thread that still looks at it. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* pthread_setname_np */
#endif

#include "_pool.h"

#include <stddef.h>
#include <string.h>

#if defined(__SSE__) || defined(_M_X64)
#include <xmmintrin.h>
#define SX_HAVE_MXCSR 1
#else
#define SX_HAVE_MXCSR 0
#endif

unsigned sx_float_state(void)
{
#if SX_HAVE_MXCSR
    return _mm_getcsr();
#else
    return 0;
#endif
}

static void set_float_state(unsigned state)
{
#if SX_HAVE_MXCSR
    _mm_setcsr(state);
#else
    (void)state;
#endif
}

#if SX_HAVE_POOL
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

/* One run, on its caller's stack. */
struct job {
    sx_kernel kernel;
    void *args;
    int64_t n_units, grain;
    sx_interrupted interrupted;
    void *context;
    unsigned float_state; /* the caller's, for what `interrupted` runs */
#if SX_HAVE_POOL
    unsigned generation; /* of the process, see pool.generation */
    atomic_int stop;
    /* The next unit nobody has taken. On a line of its own: every piece writes it. */
    _Alignas(64) atomic_int_fast64_t next;
#endif
};

/* Signal handlers run inside `interrupted`; kernels set flush-to-zero, which is none of theirs. */
static int32_t look_for_interrupt(struct job *job)
{
    unsigned kernel_state = sx_float_state();
    int32_t interrupted;

    if (job->interrupted == NULL)
        return 0;
    set_float_state(job->float_state);
    interrupted = job->interrupted(job->context);
    set_float_state(kernel_state);
    return interrupted;
}

static int32_t poll_alone(sx_control *control)
{
    return look_for_interrupt(control->owner);
}

static enum sx_outcome run_alone(struct job *job)
{
    sx_control control = {0, poll_alone, job};

    if (job->kernel(job->args, 0, job->n_units, &control) != 0)
        return SX_GAVE_UP;
    return SX_COMPLETE;
}

#if SX_HAVE_POOL

/* Pauses before a thread parks: tens of microseconds, as long as a parked thread takes to wake.
   Longer spinning fights BLAS's threads for the cores (DESIGN, "Threads": a trainer's step takes
   8.2-8.4 ms with 2,000, 8.7-12.6 ms with libgomp's spinning). */
#define SPINS 2000
/* A run that has ended so long ago was of another burst; about as long as SPINS take. */
#define BURST_NANOSECONDS 40000
/* Kernels use a few KiB of it; other libraries' thread-local storage is taken from it too. */
#define STACK_BYTES ((size_t)1 << 20)
/* A caller that waits for a worker's long piece looks for Ctrl-C this often. */
#define WAIT_NANOSECONDS 50000000L
/* More than the cores of any machine we know; keeps the two halves of pool.seats apart. */
#define MAX_WORKERS 4096

/* pool.seats: in the low half the workers inside the job, in the high half how many more may
   enter. A job ends only when both are 0, so whoever takes a seat is in the job it belongs to. */
#define INSIDE 0xffffu
#define SEAT 0x10000u

static struct {
    _Alignas(64) atomic_uint seats;
    struct job *job; /* valid while seats != 0 */
    _Alignas(64) atomic_int owned;
    atomic_int parked;  /* workers at `wake`, or about to be */
    atomic_int waiting; /* is the owner at `done`, or about to be? */
    atomic_int size;    /* workers; only the owner adds */
    atomic_uint generation; /* forks between the first process and this one */
    atomic_int_fast64_t ended; /* when the last run for several threads did, by now() */
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- where workers wake up ------------------------------------------------------------------

   Linux likes to wake a thread on the processor of the one that wakes it, and in a virtual machine takes
   a halted processor for a busy one: a worker then waits for the very thread that waits for it, until
   some milliseconds later the load is balanced. So the owner forbids its own processor to a worker that
   it is about to wake, and the worker, once awake, allows it again. */

#if defined(__linux__)
/* With more of them a worker finds another one by itself, and there are more workers to see to. */
#define FEW_PROCESSORS 8

/* Under pool.lock. */
static struct {
    pid_t workers[FEW_PROCESSORS]; /* 0: has not run yet */
    int asleep[FEW_PROCESSORS];
    int moved[FEW_PROCESSORS];
    cpu_set_t allowed; /* the owner's processors */
} places;

static void keep_apart(void)
{
    cpu_set_t others;
    int own = sched_getcpu();

    if (own < 0 || own >= CPU_SETSIZE
        || sched_getaffinity(0, sizeof places.allowed, &places.allowed) != 0
        || CPU_COUNT(&places.allowed) > FEW_PROCESSORS)
        return;
    others = places.allowed;
    CPU_CLR(own, &others);
    if (CPU_COUNT(&others) == 0)
        return;
    for (int i = 0; i < FEW_PROCESSORS; i++)
        if (places.workers[i] != 0 && places.asleep[i])
            places.moved[i] |= sched_setaffinity(places.workers[i], sizeof others, &others) == 0;
}

static void fall_asleep(int number)
{
    if (number < FEW_PROCESSORS) {
        places.workers[number] = (pid_t)syscall(SYS_gettid);
        places.asleep[number] = 1;
    }
}

static void wake_up(int number)
{
    if (number < FEW_PROCESSORS) {
        places.asleep[number] = 0;
        if (places.moved[number])
            sched_setaffinity(0, sizeof places.allowed, &places.allowed);
        places.moved[number] = 0;
    }
}

static void forget_places(void)
{
    memset(&places, 0, sizeof places);
}
#else
static void keep_apart(void) { }
static void fall_asleep(int number) { (void)number; }
static void wake_up(int number) { (void)number; }
static void forget_places(void) { }
#endif

/* The child has this thread only: no workers, no owner, locks in whatever state they were. */
static void start_afresh(void)
{
    atomic_store(&pool.seats, 0);
    atomic_store(&pool.owned, 0);
    atomic_store(&pool.parked, 0);
    atomic_store(&pool.waiting, 0);
    atomic_store(&pool.size, 0);
    atomic_fetch_add(&pool.generation, 1);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    forget_places();
}

int sx_pool_setup(void)
{
    static int done = 0; /* the import lock is held */

    if (!done && pthread_atfork(NULL, NULL, start_afresh) != 0)
        return -1;
    done = 1;
    return 0;
}

int sx_pool_size(void)
{
    return atomic_load(&pool.size);
}

/* Takes pieces until there are none, or somebody stops the job. */
static void work(struct job *job, sx_control *control)
{
    while (!atomic_load_explicit(&job->stop, memory_order_relaxed)) {
        int64_t lo = atomic_fetch_add_explicit(&job->next, job->grain, memory_order_relaxed);
        int64_t hi = job->n_units - lo > job->grain ? lo + job->grain : job->n_units;

        if (lo >= job->n_units)
            return;
        if (job->kernel(job->args, lo, hi, control) != 0)
            atomic_store(&job->stop, 1);
    }
}

/* ---- workers ---------------------------------------------------------------------------- */

static int32_t poll_worker(sx_control *control)
{
    struct job *job = control->owner;

    return atomic_load_explicit(&job->stop, memory_order_relaxed);
}

/* Spins, then parks. A worker that parks first counts itself as parked, then looks for seats; an
   owner first offers seats, then looks for parked workers: one of the two sees the other. */
static struct job *take_seat(int number)
{
    int spins = 0;

    for (;;) {
        unsigned seats = atomic_load_explicit(&pool.seats, memory_order_relaxed);

        if (seats >= SEAT) {
            if (atomic_compare_exchange_weak(&pool.seats, &seats, seats - SEAT + 1))
                return pool.job;
        } else if (spins < SPINS) {
            spins++;
            pause_briefly();
        } else {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.parked, 1);
            fall_asleep(number);
            while (atomic_load(&pool.seats) < SEAT)
                pthread_cond_wait(&pool.wake, &pool.lock);
            wake_up(number);
            atomic_fetch_sub(&pool.parked, 1);
            pthread_mutex_unlock(&pool.lock);
            spins = 0;
        }
    }
}

/* Who leaves has found no piece left, so nobody else need enter. */
static void leave_seat(void)
{
    unsigned seats = atomic_load(&pool.seats);

    while (!atomic_compare_exchange_weak(&pool.seats, &seats, (seats & INSIDE) - 1))
        ;
    if ((seats & INSIDE) == 1 && atomic_load(&pool.waiting)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.lock);
    }
}

static void *worker(void *number)
{
#if SX_HAVE_MXCSR
    set_float_state(0x1f80); /* the default; a new thread has its creator's */
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
#endif
    for (;;) {
        struct job *job = take_seat((int)(intptr_t)number);
        sx_control control = {0, poll_worker, job};

        work(job, &control);
        leave_seat();
    }
    return NULL;
}

/* Starts workers until there are `wanted`, or the system refuses; returns how many may be used. */
static int grow(int wanted)
{
    int size = atomic_load(&pool.size);
    pthread_attr_t attributes;
    sigset_t blocked, before;

    if (size >= wanted)
        return wanted;
    if (pthread_attr_init(&attributes) != 0)
        return size;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    /* Signals are for the process's own threads; but a worker's own fault must still reach
       faulthandler, and blocking it would be undefined. */
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    while (size < wanted) {
        pthread_t thread;

        if (pthread_create(&thread, &attributes, worker, (void *)(intptr_t)size) != 0)
            break;
#if defined(__linux__)
        /* Here, not by itself: who looks for workers after a call finds even one that has not run. */
        {
            char name[16]; /* the kernel's limit */

            snprintf(name, sizeof name, "softxent-%u", (unsigned)size % 1000000u);
            pthread_setname_np(thread, name);
        }
#endif
        size++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    atomic_store(&pool.size, size);
    return size;
}

/* ---- the owner -------------------------------------------------------------------------- */

/* A signal handler may fork. In the child the pieces that workers had are lost. */
static int forked(const struct job *job)
{
    return atomic_load(&pool.generation) != job->generation;
}

static int32_t poll_owner(sx_control *control)
{
    struct job *job = control->owner;

    if (look_for_interrupt(job) || forked(job))
        atomic_store(&job->stop, 1);
    return atomic_load_explicit(&job->stop, memory_order_relaxed);
}

static void offer_seats(struct job *job, int n)
{
    int parked;

    pool.job = job;
    atomic_store(&pool.seats, (unsigned)n * SEAT);
    parked = atomic_load(&pool.parked);
    if (parked == 0)
        return;
    /* Once we have had the lock, those counted as parked do wait. */
    pthread_mutex_lock(&pool.lock);
    keep_apart();
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < n && i < parked; i++)
        pthread_cond_signal(&pool.wake);
}

/* Returns when no worker is in the job. Who has not entered by now need not. */
static void close_seats(sx_control *control)
{
    atomic_fetch_and(&pool.seats, INSIDE);
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool.seats) == 0)
            return;
        pause_briefly();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.waiting, 1);
    while (atomic_load(&pool.seats) != 0) {
        struct timespec until;

        /* The wall clock may be set back: Ctrl-C then waits until the workers are done. */
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WAIT_NANOSECONDS;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        if (pthread_cond_timedwait(&pool.done, &pool.lock, &until) != 0) {
            pthread_mutex_unlock(&pool.lock);
            poll_owner(control);
            pthread_mutex_lock(&pool.lock);
        }
    }
    atomic_store(&pool.waiting, 0);
    pthread_mutex_unlock(&pool.lock);
}

static enum sx_outcome run_together(struct job *job, int n_workers)
{
    sx_control control = {0, poll_owner, job};

    offer_seats(job, n_workers);
    work(job, &control);
    close_seats(&control);
    if (forked(job))
        return SX_FORKED;
    return atomic_load(&job->stop) ? SX_GAVE_UP : SX_COMPLETE;
}

#else

int sx_pool_setup(void)
{
    return 0;
}

int sx_pool_size(void)
{
    return 0;
}

#endif

enum sx_outcome sx_pool_run(sx_kernel kernel, void *args, int64_t n_units, int64_t grain,
                            int64_t n_threads, int wakes, sx_interrupted interrupted,
                            void *context)
{
    struct job job = {.kernel = kernel,
                      .args = args,
                      .n_units = n_units,
                      .grain = grain,
                      .interrupted = interrupted,
                      .context = context,
                      .float_state = sx_float_state()};
#if SX_HAVE_POOL
    int64_t wanted = n_units / grain + (n_units % grain != 0); /* one thread a piece */

    wanted = (wanted < n_threads ? wanted : n_threads) - 1;
    if (wanted > MAX_WORKERS)
        wanted = MAX_WORKERS;
    if (wanted > 0 && !wakes
        && now() - atomic_load_explicit(&pool.ended, memory_order_relaxed) > BURST_NANOSECONDS) {
        enum sx_outcome outcome = run_alone(&job);

        atomic_store_explicit(&pool.ended, now(), memory_order_relaxed);
        return outcome;
    }
    if (wanted > 0 && atomic_exchange(&pool.owned, 1) == 0) {
        enum sx_outcome outcome;
        int n_workers = grow((int)wanted);

        job.generation = atomic_load(&pool.generation);
        outcome = n_workers > 0 ? run_together(&job, n_workers) : run_alone(&job);
        if (!forked(&job)) /* else the child's pool, which this run does not own */
            atomic_store(&pool.owned, 0);
        atomic_store_explicit(&pool.ended, now(), memory_order_relaxed);
        return outcome;
    }
#else
    (void)n_threads, (void)wakes;
#endif
    return run_alone(&job);
}
