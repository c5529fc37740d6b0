#define _GNU_SOURCE
#include "team.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SPINS = 2000 }; /* some tens of microseconds; then the core is offered to others between looks */

struct loop {
    _Alignas(64) atomic_int_fast64_t taken;
    atomic_int_fast64_t done;
};

struct team {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    uint64_t serial; /* of the latest job; this and the next line are under the lock */
    int open, stopping; /* whether helpers may still enter that job; whether they are to end */
    int size, num_threads;
    job job;
    void *argument;
    struct loop *loops;
    int room_for_loops;
    atomic_int inside; /* helpers in the job */
    pthread_t threads[];
};

struct worker {
    struct loop *loop;
    int64_t count;
};

static void relax(int *spins) {
    if (++*spins < SPINS)
        _mm_pause();
    else
        sched_yield();
}

int64_t first_task(struct worker *worker, int64_t count) {
    worker->count = count;
    int64_t task = atomic_fetch_add_explicit(&worker->loop->taken, 1, memory_order_relaxed);
    if (task < count)
        return task;
    for (int spins = 0; atomic_load_explicit(&worker->loop->done, memory_order_acquire) < count;)
        relax(&spins);
    worker->loop++;
    return -1;
}

int64_t next_task(struct worker *worker) {
    atomic_fetch_add_explicit(&worker->loop->done, 1, memory_order_release);
    return first_task(worker, worker->count);
}

/* A helper enters a job under the lock and while it is open, so the caller knows whom to wait for before what the job
 * reads is gone. One that enters late finds tasks done and walks through. */
static void *help(void *argument) {
    struct team *team = argument;
    uint64_t seen = 0;
    pthread_mutex_lock(&team->lock);
    for (;;) {
        while (team->serial == seen && !team->stopping)
            pthread_cond_wait(&team->wake, &team->lock);
        if (team->stopping)
            break;
        seen = team->serial;
        if (!team->open)
            continue;
        atomic_fetch_add(&team->inside, 1);
        pthread_mutex_unlock(&team->lock);
        struct worker worker = {team->loops, 0};
        team->job(&worker, team->argument);
        atomic_fetch_sub(&team->inside, 1);
        pthread_mutex_lock(&team->lock);
    }
    pthread_mutex_unlock(&team->lock);
    return NULL;
}

struct team *open_team(int size) {
    struct team *team = calloc(1, sizeof *team + (size_t)size * sizeof(pthread_t));
    if (!team)
        return NULL;
    team->size = size;
    pthread_mutex_init(&team->lock, NULL);
    pthread_cond_init(&team->wake, NULL);
    sigset_t all, before; /* signals belong to the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (team->num_threads < size - 1 && !pthread_create(&team->threads[team->num_threads], NULL, help, team))
        team->num_threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (team->num_threads == size - 1)
        return team;
    close_team(team);
    return NULL;
}

void close_team(struct team *team) {
    pthread_mutex_lock(&team->lock);
    team->stopping = 1;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);
    for (int i = 0; i < team->num_threads; i++)
        pthread_join(team->threads[i], NULL);
    pthread_cond_destroy(&team->wake);
    pthread_mutex_destroy(&team->lock);
    free(team->loops);
    free(team);
}

int team_size(const struct team *team) { return team->size; }

static int make_room(struct team *team, int num_loops) {
    if (num_loops > team->room_for_loops) {
        free(team->loops);
        team->loops = aligned_alloc(_Alignof(struct loop), (size_t)num_loops * sizeof(struct loop));
        team->room_for_loops = team->loops ? num_loops : 0;
    }
    if (!team->loops)
        return -1;
    memset(team->loops, 0, (size_t)num_loops * sizeof(struct loop));
    return 0;
}

int run_team(struct team *team, job job, void *argument, int num_loops) {
    if (make_room(team, num_loops))
        return -1;
    pthread_mutex_lock(&team->lock);
    team->job = job;
    team->argument = argument;
    team->open = 1;
    team->serial++;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->lock);

    struct worker worker = {team->loops, 0};
    job(&worker, argument);

    pthread_mutex_lock(&team->lock);
    team->open = 0;
    pthread_mutex_unlock(&team->lock);
    for (int spins = 0; atomic_load(&team->inside);)
        relax(&spins);
    return 0;
}
