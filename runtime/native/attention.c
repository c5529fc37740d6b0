#include "native.h"

/* Keys that are scored before the largest score so far is looked at again: blocks begin at fixed positions, so that
 * a query's sums have one order whoever is computed beside it. */
enum { ROWS = 16, KEYS = 256, MOST_DIM = 256 };

struct view {
    const struct run *run;
    const struct layer *layer;
    const struct piece *piece;
    const int64_t *pages; /* of the piece's owner */
    int64_t dim, last;    /* the last position that any row sees */
    int64_t token[ROWS], head[ROWS];
    float largest[ROWS], total[ROWS], decay[ROWS];
    _Alignas(64) bf16 q[ROWS * MOST_DIM];
    _Alignas(64) float out[ROWS * MOST_DIM];
    _Alignas(64) float scores[ROWS * KEYS];
    _Alignas(64) bf16 weights[ROWS * KEYS];
};

static void gather(struct view *view) {
    const struct model *model = view->run->model;
    int64_t group = model->heads / model->kv_heads, width = (model->heads + 2 * model->kv_heads) * view->dim;
    for (int i = 0; i < view->piece->count; i++) {
        int64_t row = view->piece->row + i;
        view->token[i] = view->piece->token + row / group;
        view->head[i] = view->piece->kv_head * group + row % group;
        __builtin_memcpy(view->q + i * view->dim, view->run->q + view->token[i] * width + view->head[i] * view->dim,
                         (size_t)view->dim * sizeof(bf16));
        view->largest[i] = -1e30f;
        view->total[i] = 0.0f;
    }
    __builtin_memset(view->out, 0, sizeof(float) * (size_t)(ROWS * view->dim));
}

static const bf16 *page_of(const struct view *view, int64_t position) {
    const struct model *model = view->run->model;
    int64_t page = view->pages[position / PAGE] * model->kv_heads + view->piece->kv_head;
    return view->layer->pool + page * 2 * view->dim * PAGE;
}

static void fetch(const bf16 *numbers, int64_t count) {
    for (int64_t i = 0; i < count; i += 32)
        _mm_prefetch(numbers + i, _MM_HINT_T0);
}

/* scores [ROWS, KEYS]: each query by the keys from position `at` on. */
static void score(struct view *view, int64_t at, int64_t num_pages) {
    int64_t half = view->dim * PAGE;
    for (int64_t i = 0; i < num_pages; i++) {
        const bf16 *keys = page_of(view, at + i * PAGE);
        if (i + 1 < num_pages)
            fetch(page_of(view, at + (i + 1) * PAGE), half);
        fetch(keys + half, half);
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t d = 0; d < view->dim; d += 32) {
            _tile_loadd(4, view->q + d, view->dim * 2);
            _tile_loadd(6, keys + d * PAGE, PAGE * 4);
            _tile_loadd(7, keys + d * PAGE + 32, PAGE * 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, view->scores + i * PAGE, KEYS * 4);
        _tile_stored(1, view->scores + i * PAGE + 16, KEYS * 4);
    }
}

/* The lanes of keys [at, at + 16) that are in [from, to]. */
static __mmask16 seen(int64_t at, int64_t from, int64_t to) {
    int64_t skipped = from - at, kept = to - at + 1;
    uint32_t low = skipped <= 0 ? 0 : skipped >= 16 ? 0xffff : (1u << skipped) - 1;
    uint32_t high = kept >= 16 ? 0xffff : kept <= 0 ? 0 : (1u << kept) - 1;
    return (__mmask16)(high & ~low);
}

/* Scores become weights relative to the largest score so far; what was summed before decays to the new largest. */
static void weigh(struct view *view, int row, int64_t at, int64_t count) {
    int64_t to = view->run->batch->positions[view->token[row]], window = view->layer->window;
    int64_t from = window && to >= window ? to - window + 1 : 0;
    float *scores = view->scores + row * KEYS;
    __m512 unit = _mm512_set1_ps(1.44269504f / __builtin_sqrtf((float)view->dim));
    __m512 most = _mm512_set1_ps(view->largest[row]);
    for (int64_t i = 0; i < count; i += 16) {
        __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + i), unit);
        _mm512_storeu_ps(scores + i, score);
        most = _mm512_mask_max_ps(most, seen(at + i, from, to), most, score);
    }
    float largest = _mm512_reduce_max_ps(most);
    __m512 top = _mm512_set1_ps(largest), sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16) {
        __m512 power = _mm512_sub_ps(_mm512_loadu_ps(scores + i), top);
        __m512 weight = _mm512_maskz_mov_ps(seen(at + i, from, to), exp2_ps(power));
        sum = _mm512_add_ps(sum, weight);
        _mm256_store_si256((void *)(view->weights + row * KEYS + i), (__m256i)_mm512_cvtneps_pbh(weight));
    }
    float decay = _mm512_cvtss_f32(exp2_ps(_mm512_set1_ps(view->largest[row] - largest)));
    view->decay[row] = decay;
    view->largest[row] = largest;
    view->total[row] = view->total[row] * decay + _mm512_reduce_add_ps(sum);
}

/* out = out x decay + weights x values, 32 elements of the head at a time. */
static void sum_values(struct view *view, int64_t at, int64_t num_pages) {
    _Alignas(64) float sums[ROWS * 32];
    for (int64_t d = 0; d < view->dim; d += 32) {
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t i = 0; i < num_pages; i++) {
            const bf16 *values = page_of(view, at + i * PAGE) + view->dim * PAGE + d * 2;
            _tile_loadd(4, view->weights + i * PAGE, KEYS * 2);
            _tile_loadd(6, values, view->dim * 4);
            _tile_loadd(7, values + 32, view->dim * 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, sums, 128);
        _tile_stored(1, sums + 16, 128);
        for (int row = 0; row < view->piece->count; row++)
            for (int64_t i = 0; i < 32; i += 16) {
                float *out = view->out + row * view->dim + d + i;
                __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(out), _mm512_set1_ps(view->decay[row]));
                _mm512_storeu_ps(out, _mm512_add_ps(kept, _mm512_loadu_ps(sums + row * 32 + i)));
            }
    }
}

/* Each row's sum over its total, to the token's wide row. */
static void scatter(const struct view *view) {
    int64_t dim = view->dim, width = view->run->model->heads * dim;
    for (int row = 0; row < view->piece->count; row++) {
        float *to = view->run->wide + view->token[row] * width + view->head[row] * dim;
        __m512 scale = _mm512_set1_ps(1.0f / view->total[row]);
        for (int64_t i = 0; i < dim; i += 16)
            _mm512_storeu_ps(to + i, _mm512_mul_ps(_mm512_loadu_ps(view->out + row * dim + i), scale));
    }
}

void attend(struct run *run, const struct layer *layer, const struct piece *piece) {
    const struct batch *batch = run->batch;
    struct view view;
    view.run = run;
    view.layer = layer;
    view.piece = piece;
    view.dim = run->model->dim;
    gather(&view);
    view.pages = batch->pages + batch->owners[piece->token] * batch->pages_per_owner;
    view.last = batch->positions[view.token[piece->count - 1]];
    int64_t first = batch->positions[view.token[0]] - layer->window + 1;
    first = layer->window && first > 0 ? first / KEYS * KEYS : 0;
    for (int64_t at = first; at <= view.last; at += KEYS) {
        int64_t num_pages = (view.last - at) / PAGE + 1;
        num_pages = num_pages < KEYS / PAGE ? num_pages : KEYS / PAGE;
        score(&view, at, num_pages);
        for (int row = 0; row < piece->count; row++)
            weigh(&view, row, at, num_pages * PAGE);
        sum_values(&view, at, num_pages);
    }
    scatter(&view);
}

/* Pieces of all runs of tokens, in order; with `pieces` null only their number. */
int64_t cut_pieces(const struct model *model, const struct batch *batch, struct piece *pieces) {
    int64_t group = model->heads / model->kv_heads, num_pieces = 0;
    for (int64_t first = 0, stop; first < batch->num_tokens; first = stop) {
        for (stop = first + 1; stop < batch->num_tokens && batch->owners[stop] == batch->owners[first];)
            stop++;
        for (int64_t row = 0, rows = (stop - first) * group; row < rows; row += ROWS)
            for (int kv_head = 0; kv_head < model->kv_heads; kv_head++, num_pieces++)
                if (pieces)
                    pieces[num_pieces] =
                        (struct piece){first, (int)row, (int)(rows - row < ROWS ? rows - row : ROWS), kv_head};
    }
    return num_pieces;
}
