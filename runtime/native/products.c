#include "native.h"

/* Rows that go through all panels of a task before the next ones do, so that they stay in the second-level cache. */
enum { BLOCK = 32, STRIP = 256, AHEAD = 1024 };

/* Two tiles of inputs (16 rows each) by two tiles of weights (16 outputs each), summed over the inputs in order. With
 * each step `lines` lines of weights that are wanted later are asked for. */
#define SUM(name, dot)                                                                                               \
    static inline __attribute__((always_inline)) void name(const char *rows, int64_t stride, const char *words,      \
                                                           int64_t steps, int tall, const char *later, int lines,    \
                                                           void *out) {                                              \
        _tile_zero(0);                                                                                               \
        _tile_zero(1);                                                                                               \
        _tile_zero(2);                                                                                               \
        _tile_zero(3);                                                                                               \
        for (int64_t i = 0; i < steps; i++, rows += 64, words += 2048) {                                             \
            for (int line = 0; line < lines; line++, later += 64)                                                    \
                _mm_prefetch(later, _MM_HINT_T0);                                                                    \
            _tile_loadd(4, rows, stride);                                                                            \
            _tile_loadd(6, words, 64);                                                                               \
            _tile_loadd(7, words + 1024, 64);                                                                        \
            dot(0, 4, 6);                                                                                            \
            dot(1, 4, 7);                                                                                            \
            if (tall) {                                                                                              \
                _tile_loadd(5, rows + 16 * stride, stride);                                                          \
                dot(2, 5, 6);                                                                                        \
                dot(3, 5, 7);                                                                                        \
            }                                                                                                        \
        }                                                                                                            \
        _tile_stored(0, out, 128);                                                                                   \
        _tile_stored(1, (char *)out + 64, 128);                                                                      \
        _tile_stored(2, (char *)out + 2048, 128);                                                                    \
        _tile_stored(3, (char *)out + 2112, 128);                                                                    \
    }
SUM(sum_bf16, _tile_dpbf16ps)
SUM(sum_int8, _tile_dpbssd)

/* Where a block of rows stands: block `at` of the `count` that one panel is computed for. */
struct turn {
    int64_t row, rows, at, count;
};

/* Up to 32 rows by one panel of 32 outputs, as floats [32, 32]. Weights come from memory while others are computed
 * with: a lone block asks for those a little ahead, several blocks in turns for the next panel. */
static void block(const struct inputs *inputs, const struct linear *linear, const struct turn *turn, int64_t panel,
                  float *out) {
    int64_t bytes = linear->inputs * (inputs->peaks ? 1 : 2), steps = bytes / 64, stride = inputs->stride;
    const char *rows = inputs->rows + turn->row * stride;
    const char *words = (const char *)linear->words + panel * bytes * PANEL, *later = words + 1024;
    int lines = (int)((32 + turn->count - 1) / turn->count);
    if (turn->count > 1)
        later = words + bytes * PANEL + turn->at * steps * lines * 64;
    if (inputs->peaks && turn->rows > 16)
        sum_int8(rows, stride, words, steps, 1, later, lines, out);
    else if (inputs->peaks)
        sum_int8(rows, stride, words, steps, 0, later, lines, out);
    else if (turn->rows > 16)
        sum_bf16(rows, stride, words, steps, 1, later, lines, out);
    else
        sum_bf16(rows, stride, words, steps, 0, later, lines, out);
}

/* Sixteen outputs of one row in their own unit, with the bias. */
static inline __m512 finish(const struct inputs *inputs, const struct linear *linear, int64_t row, int64_t output,
                            const float *sums) {
    __m512 value = _mm512_loadu_ps(sums);
    if (inputs->peaks) {
        __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(linear->scale + output), _mm512_set1_ps(inputs->peaks[row]));
        value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(value)), scale);
    }
    return linear->bias ? _mm512_add_ps(value, _mm512_loadu_ps(linear->bias + output)) : value;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Sixteen outputs of a row that has `outputs`, some of which may be past its end. */
static void put(float *row, int64_t outputs, int64_t output, __m512 value, int add) {
    if (output >= outputs)
        return;
    __mmask16 mask = outputs - output >= 16 ? 0xffff : (__mmask16)((1 << (outputs - output)) - 1);
    if (add)
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, row + output));
    _mm512_mask_storeu_ps(row + output, mask, value);
}

enum kind { STORE, ADD, ACTIVATE };

struct product {
    const struct linear *linear;
    enum kind kind;
    float *out;
    int64_t rows, panels, gate; /* panels of results; 1: as many again hold what they are multiplied by */
};

static void compute(struct run *run, const struct product *product, const struct turn *turn, int64_t panel) {
    const struct inputs *inputs = &run->inputs;
    const struct linear *linear = product->linear;
    enum activation activation = (enum activation)run->model->activation;
    _Alignas(64) float sums[BLOCK * PANEL], factors[BLOCK * PANEL];
    int64_t other = panel + product->panels, width = product->gate ? product->panels * PANEL : linear->outputs;
    block(inputs, linear, turn, panel, sums);
    if (product->gate)
        block(inputs, linear, turn, other, factors);
    for (int64_t i = 0; i < turn->rows; i++)
        for (int half = 0; half < PANEL; half += 16) {
            int64_t row = turn->row + i, place = i * PANEL + half;
            __m512 value = finish(inputs, linear, row, panel * PANEL + half, sums + place);
            if (product->kind == ACTIVATE)
                value = activate(value, activation);
            if (product->gate)
                value = _mm512_mul_ps(value, finish(inputs, linear, row, other * PANEL + half, factors + place));
            put(product->out + row * width, width, panel * PANEL + half, value, product->kind == ADD);
        }
}

static void multiply(struct run *run, struct worker *worker, struct product product) {
    int64_t panels = (product.linear->outputs + PANEL - 1) / PANEL / (1 + product.gate), size = team_size(run->team);
    int64_t grain = size > 1 ? panels / (size * 8) + 1 : panels, groups = (panels + grain - 1) / grain;
    int64_t strips = (product.rows + STRIP - 1) / STRIP;
    product.panels = panels;
    for (int64_t i = first_task(worker, strips * groups); i >= 0; i = next_task(worker)) {
        int64_t first = i / groups * STRIP, rows = least(STRIP, product.rows - first), blocks = (rows + BLOCK - 1) / BLOCK;
        int64_t panel = i % groups * grain, end = least(panel + grain, panels);
        for (; panel < end; panel++)
            for (int64_t at = 0; at < blocks; at++) {
                struct turn turn = {first + at * BLOCK, least(BLOCK, rows - at * BLOCK), at, blocks};
                compute(run, &product, &turn, panel);
            }
    }
}

void store_product(struct run *run, struct worker *worker, const struct linear *linear, int64_t rows, float *out) {
    multiply(run, worker, (struct product){linear, STORE, out, rows, 0, 0});
}

void add_product(struct run *run, struct worker *worker, const struct linear *linear, int64_t rows, float *out) {
    multiply(run, worker, (struct product){linear, ADD, out, rows, 0, 0});
}

void activate_product(struct run *run, struct worker *worker, const struct linear *linear, int64_t rows) {
    multiply(run, worker, (struct product){linear, ACTIVATE, run->wide, rows, 0, run->model->gated});
}
