/* A team of threads that run the same function side by side and share out the tasks of its loops.
 *
 * A loop is over when its tasks are done, not when every thread has arrived: a thread that the system keeps from
 * running holds up the others only for the one task it may have taken. */
#ifndef JITNEY_TEAM_H
#define JITNEY_TEAM_H

#include <stdint.h>

struct team;
struct worker; /* one thread's place in a job */

typedef void (*job)(struct worker *worker, void *argument);

/* Gives null where memory or threads are short. `size` counts the caller of `run_team`. */
struct team *open_team(int size);
void close_team(struct team *team);
int team_size(const struct team *team);

/* Returns when the job is done. One caller at a time; every loop of the job must be the same for all threads, and
 * there are at most `num_loops`. */
int run_team(struct team *team, job job, void *argument, int num_loops);

/* The loops of a job: for (int64_t i = first_task(worker, count); i >= 0; i = next_task(worker)) ... */
int64_t first_task(struct worker *worker, int64_t count);
int64_t next_task(struct worker *worker);

#endif
