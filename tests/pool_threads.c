/* The pool alone, for a thread sanitizer: callers side by side, runs of every size, runs that give
   up, forks between and during runs. The command is in CONTRIBUTING.md, "Sanitizers". */
#define _GNU_SOURCE
#include "_pool.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALLERS 4
#define RUNS 2500 /* of each caller */
#define UNITS 64
#define FORKS 50

struct job {
    int visits[UNITS]; /* not atomic: no two threads may have the same unit */
    int64_t broken;
};

static int64_t visit(void *args, int64_t lo, int64_t hi, sx_control *control)
{
    struct job *job = args;

    for (int64_t i = lo; i < hi; i++) {
        job->visits[i]++;
        if (i == job->broken)
            return 7;
        if (sx_tick(control, SX_POLL_ELEMENTS / 4))
            return SX_STOPPED;
    }
    return 0;
}

static int32_t not_interrupted(void *context)
{
    (void)context;
    return 0;
}

static void check(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void run_once(unsigned *seed)
{
    struct job job = {{0}, -1};
    int64_t n_units = 1 + rand_r(seed) % UNITS, grain = 1 + rand_r(seed) % 8;
    enum sx_outcome outcome;

    if (rand_r(seed) % 10 == 0)
        job.broken = rand_r(seed) % n_units;
    outcome = sx_pool_run(visit, &job, n_units, grain, 1 + rand_r(seed) % 8, rand_r(seed) % 2,
                          rand_r(seed) % 2 ? not_interrupted : NULL, NULL);
    check(outcome == (job.broken < 0 ? SX_COMPLETE : SX_GAVE_UP), "outcome");
    for (int64_t i = 0; i < UNITS; i++)
        check(job.visits[i] == (i < n_units) || (job.broken >= 0 && job.visits[i] == 0), "visits");
}

static void *caller(void *number)
{
    unsigned seed = 1 + (unsigned)(intptr_t)number;

    for (int i = 0; i < RUNS; i++)
        run_once(&seed);
    return NULL;
}

static void fork_and_run(unsigned *seed)
{
    int status;
    pid_t child = fork();

    check(child >= 0, "fork");
    if (child == 0) {
        alarm(60);
        check(sx_pool_size() == 0, "a child has no workers");
        for (int i = 0; i < 20; i++)
            run_once(seed);
        _exit(0);
    }
    check(waitpid(child, &status, 0) == child && status == 0, "child");
}

int main(void)
{
    pthread_t threads[CALLERS];
    unsigned seed = 99;

    check(sx_pool_setup() == 0, "setup");
    for (int i = 0; i < CALLERS; i++)
        check(pthread_create(&threads[i], NULL, caller, (void *)(intptr_t)i) == 0, "thread");
    for (int i = 0; i < FORKS; i++)
        fork_and_run(&seed); /* while the others run */
    for (int i = 0; i < CALLERS; i++)
        check(pthread_join(threads[i], NULL) == 0, "join");
    for (int i = 0; i < FORKS; i++) {
        run_once(&seed);
        fork_and_run(&seed);
    }
    printf("%d runs and %d forks, %d workers\n", CALLERS * RUNS + FORKS, 2 * FORKS, sx_pool_size());
    return 0;
}
