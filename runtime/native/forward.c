/* The forward pass of a decoder over a flat list of tokens: what Python calls, once a step. */
#define _GNU_SOURCE
#include "native.h"

#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LOOPS_PER_LAYER = 10, LOOPS_AROUND = 5, REQUEST_TILES = 0x1023, TILE_DATA = 18 };

/* Every tile is 16 rows of 64 bytes; the setting is the calling thread's. */
static void open_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((packed)) tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        tiles.bytes[i] = 64;
        tiles.rows[i] = 16;
    }
    _tile_loadconfig(&tiles);
}

static void narrow_wide(struct run *run, struct worker *worker, int64_t rows, int64_t size) {
    for (int64_t i = first_task(worker, rows); i >= 0; i = next_task(worker))
        narrow_row(&run->inputs, i, run->wide + i * size, size);
}

static void norm_inputs(struct run *run, struct worker *worker, const struct norm *norm) {
    int64_t hidden = run->model->hidden;
    for (int64_t i = first_task(worker, run->batch->num_tokens); i >= 0; i = next_task(worker)) {
        norm_row(run->model, norm, run->x + i * hidden, run->wide + i * hidden);
        narrow_row(&run->inputs, i, run->wide + i * hidden, hidden);
    }
}

static void attention(struct run *run, struct worker *worker, const struct layer *layer) {
    int64_t tokens = run->batch->num_tokens;
    norm_inputs(run, worker, &layer->attention_norm);
    store_product(run, worker, &layer->qkv, tokens, run->qkv);
    for (int64_t i = first_task(worker, tokens); i >= 0; i = next_task(worker))
        rotate_and_write(run, layer, i);
    for (int64_t i = first_task(worker, run->num_pieces); i >= 0; i = next_task(worker))
        attend(run, layer, run->pieces + i);
    narrow_wide(run, worker, tokens, run->model->heads * run->model->dim);
    add_product(run, worker, &layer->out, tokens, run->x);
}

static void mlp(struct run *run, struct worker *worker, const struct layer *layer) {
    int64_t tokens = run->batch->num_tokens;
    norm_inputs(run, worker, &layer->mlp_norm);
    activate_product(run, worker, &layer->up, tokens);
    narrow_wide(run, worker, tokens, run->model->inner);
    add_product(run, worker, &layer->down, tokens, run->x);
}

static void head(struct run *run, struct worker *worker, const float *hidden, int64_t rows, float *logits) {
    int64_t size = run->model->hidden;
    for (int64_t i = first_task(worker, rows); i >= 0; i = next_task(worker))
        narrow_row(&run->inputs, i, hidden + i * size, size);
    store_product(run, worker, &run->model->head, rows, logits);
}

static void pass(struct worker *worker, void *argument) {
    struct run *run = argument;
    const struct model *model = run->model;
    const struct batch *batch = run->batch;
    open_tiles();
    for (int64_t i = first_task(worker, batch->num_tokens); i >= 0; i = next_task(worker))
        embed(run, i);
    for (int64_t i = 0; i < model->num_layers; i++) {
        attention(run, worker, model->layers + i);
        mlp(run, worker, model->layers + i);
    }
    for (int64_t i = first_task(worker, batch->num_tokens); i >= 0; i = next_task(worker))
        batch->sums[i] = sum_row(run->x + i * model->hidden, model->hidden);
    for (int64_t i = first_task(worker, batch->num_chosen); i >= 0; i = next_task(worker))
        norm_row(model, &model->norm, run->x + batch->chosen[i] * model->hidden, batch->hidden + i * model->hidden);
    head(run, worker, batch->hidden, batch->num_sampled, batch->logits);
    _tile_release();
}

struct scoring {
    struct run *run;
    const float *hidden;
    int64_t rows;
    float *logits;
};

static void score(struct worker *worker, void *argument) {
    struct scoring *scoring = argument;
    open_tiles();
    head(scoring->run, worker, scoring->hidden, scoring->rows, scoring->logits);
    _tile_release();
}

static void *array(int64_t count, size_t size) {
    size_t bytes = ((size_t)count * size + 63) / 64 * 64;
    void *found = aligned_alloc(64, bytes);
    return found ? memset(found, 0, bytes) : NULL;
}

static void free_arrays(struct run *run) {
    void *arrays[] = {run->x, run->qkv, run->wide, run->q, run->inputs.rows, run->inputs.peaks};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
    run->room = 0;
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Arrays for `tokens` rows. An odd number of cache lines lies between rows of inputs, or the 16 rows of a tile could
 * share one set of the first-level cache. */
static int make_room(struct run *run, int64_t tokens) {
    const struct model *model = run->model;
    if (tokens <= run->room)
        return 0;
    free_arrays(run);
    tokens = (tokens + 31) / 32 * 32;
    int64_t width = (model->heads + 2 * model->kv_heads) * model->dim;
    int64_t widest = most(most(model->hidden, model->inner), model->heads * model->dim);
    run->inputs.stride = (widest * (model->quantized ? 1 : 2) / 64 | 1) * 64 + 128;
    run->x = array(tokens * model->hidden, sizeof *run->x);
    run->qkv = array(tokens * width, sizeof *run->qkv);
    run->q = array(tokens * width, sizeof *run->q);
    run->wide = array(tokens * widest, sizeof *run->wide);
    run->inputs.rows = array(tokens * run->inputs.stride, 1);
    run->inputs.peaks = model->quantized ? array(tokens, sizeof *run->inputs.peaks) : NULL;
    if (!run->x || !run->qkv || !run->q || !run->wide || !run->inputs.rows ||
        (model->quantized && !run->inputs.peaks))
        return -1;
    run->room = tokens;
    return 0;
}

static int make_pieces(struct run *run) {
    run->num_pieces = cut_pieces(run->model, run->batch, NULL);
    if (run->num_pieces > run->room_for_pieces) {
        free(run->pieces);
        run->pieces = malloc((size_t)run->num_pieces * sizeof *run->pieces);
        run->room_for_pieces = run->pieces ? run->num_pieces : 0;
    }
    if (!run->pieces)
        return -1;
    cut_pieces(run->model, run->batch, run->pieces);
    return 0;
}

/* Whether the system lets this process use tiles. */
EXPORT int jitney_tiles(void) { return !syscall(SYS_arch_prctl, REQUEST_TILES, TILE_DATA); }

EXPORT void jitney_close(struct run *run) {
    if (run->team)
        close_team(run->team);
    free_arrays(run);
    free(run->pieces);
    free(run);
}

/* `model` and all that it points to must live until the close. Null where memory or threads are short. */
EXPORT struct run *jitney_open(const struct model *model, int num_threads) {
    struct run *run = calloc(1, sizeof *run);
    if (!run)
        return NULL;
    run->model = model;
    run->team = open_team(num_threads);
    if (run->team)
        return run;
    jitney_close(run);
    return NULL;
}

/* 0, or -1 where memory is short. One caller at a time. */
EXPORT int jitney_forward(struct run *run, const struct batch *batch) {
    run->batch = batch;
    if (make_room(run, batch->num_tokens) || make_pieces(run))
        return -1;
    return run_team(run->team, pass, run, (int)run->model->num_layers * LOOPS_PER_LAYER + LOOPS_AROUND);
}

/* The logits of normed states [rows, hidden]. As `jitney_forward`. */
EXPORT int jitney_logits(struct run *run, const float *hidden, int64_t rows, float *logits) {
    struct scoring scoring = {run, hidden, rows, logits};
    return make_room(run, rows) ? -1 : run_team(run->team, score, &scoring, LOOPS_AROUND);
}
