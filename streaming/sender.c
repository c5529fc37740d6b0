/* Bytes for many sockets, written by one thread that knows nothing of Python: `sender.py` says who calls what, and when.

   Jobs are numbered from 0. One thread gives them and asks for what became of them; `JOBS` may be given and not asked
   for. Sockets do not block: what one does not take at once is left, and `bell` is written to. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { JOBS = 1 << 14 };

typedef struct {
    int fd;
    const char *data;
    int64_t size, sent;
} Job;

typedef struct {
    Job jobs[JOBS];
    _Atomic int64_t done, cut;
    int64_t given; /* under the lock, as is `ends` */
    int ends, bell;
    pthread_mutex_t lock;
    pthread_cond_t some;
    pthread_t thread;
} Sender;

static int64_t due(Sender *sender) {
    pthread_mutex_lock(&sender->lock);
    while (sender->given == atomic_load(&sender->done) && !sender->ends) pthread_cond_wait(&sender->some, &sender->lock);
    int64_t given = sender->given;
    pthread_mutex_unlock(&sender->lock);
    return given;
}

static void *run(void *given) {
    Sender *sender = given;
    for (int64_t at = 0, end; at < (end = due(sender));)
        for (; at < end; atomic_store(&sender->done, ++at)) {
            Job *job = &sender->jobs[at % JOBS];
            job->sent = send(job->fd, job->data, job->size, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (job->sent != job->size) {
                atomic_fetch_add(&sender->cut, 1);
                ssize_t rung = write(sender->bell, "", 1); /* a full pipe has rung already */
                (void)rung;
            }
        }
    return NULL;
}

EXPORT Sender *jitney_sender_open(int bell) {
    Sender *sender = calloc(1, sizeof(Sender));
    if (!sender) return NULL;
    sender->bell = bell;
    pthread_mutex_init(&sender->lock, NULL);
    pthread_cond_init(&sender->some, NULL);
    if (!pthread_create(&sender->thread, NULL, run, sender)) return sender;
    free(sender);
    return NULL;
}

/* The data of all follow one another, and stay where they are until they are done. */
EXPORT void jitney_sender_give(Sender *sender, int64_t count, const int *fds, const char *data, const int64_t *sizes) {
    pthread_mutex_lock(&sender->lock);
    for (int64_t i = 0; i < count; data += sizes[i++])
        sender->jobs[sender->given++ % JOBS] = (Job){.fd = fds[i], .data = data, .size = sizes[i]};
    pthread_cond_signal(&sender->some);
    pthread_mutex_unlock(&sender->lock);
}

/* So many jobs are over. */
EXPORT int64_t jitney_sender_done(Sender *sender) { return atomic_load(&sender->done); }

/* So many of those were not sent whole. */
EXPORT int64_t jitney_sender_cut(Sender *sender) { return atomic_load(&sender->cut); }

/* Bytes of a job that is over; none where the socket is broken. */
EXPORT int64_t jitney_sender_sent(Sender *sender, int64_t number) {
    int64_t sent = sender->jobs[number % JOBS].sent;
    return sent < 0 ? 0 : sent;
}

EXPORT void jitney_sender_wait(Sender *sender, int64_t count) {
    while (atomic_load(&sender->done) < count) sched_yield();
}

/* After the last job. */
EXPORT void jitney_sender_close(Sender *sender) {
    pthread_mutex_lock(&sender->lock);
    sender->ends = 1;
    pthread_cond_signal(&sender->some);
    pthread_mutex_unlock(&sender->lock);
    pthread_join(sender->thread, NULL);
    pthread_cond_destroy(&sender->some);
    pthread_mutex_destroy(&sender->lock);
    free(sender);
}
