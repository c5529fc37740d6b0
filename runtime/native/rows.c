#include "native.h"

#include <math.h>

/* 2^x to within two units in the last place: a polynomial of the fraction, scaled by the whole part. */
__m512 exp2_ps(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(128.0f), _mm512_max_ps(_mm512_set1_ps(-150.0f), x)); /* keeps a NaN */
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, whole), y = _mm512_set1_ps(1.5403530e-4f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.3333558e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

/* x / (1 + e^-scaled): both silu and the tanh form of gelu. */
static __m512 gate(__m512 x, __m512 scaled) {
    __m512 one = _mm512_set1_ps(1.0f), power = _mm512_mul_ps(scaled, _mm512_set1_ps(-1.44269504f));
    return _mm512_div_ps(x, _mm512_add_ps(one, exp2_ps(power)));
}

__m512 activate(__m512 x, enum activation activation) {
    if (activation == SILU)
        return gate(x, x);
    if (activation == GELU_TANH) {
        __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
        return gate(x, _mm512_mul_ps(_mm512_mul_ps(x, cubic), _mm512_set1_ps(1.59576912f)));
    }
    __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x); /* keeps a NaN */
    return activation == RELU ? positive : _mm512_mul_ps(positive, positive);
}

static __m512 widen(const bf16 *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x)), 16));
}

static void narrow(bf16 *out, __m512 x) {
    _mm256_storeu_si256((void *)out, (__m256i)_mm512_cvtneps_pbh(x));
}

void embed(struct run *run, int64_t token) {
    const struct model *model = run->model;
    const bf16 *row = model->embeddings + run->batch->tokens[token] * model->hidden;
    const bf16 *position = model->learned_positions;
    float *x = run->x + token * model->hidden;
    if (position)
        position += run->batch->positions[token] * model->hidden;
    for (int64_t i = 0; i < model->hidden; i += 16) {
        __m512 value = widen(row + i);
        _mm512_storeu_ps(x + i, position ? _mm512_add_ps(value, widen(position + i)) : value);
    }
}

float sum_row(const float *x, int64_t size) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16)
        sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
    return _mm512_reduce_add_ps(sum);
}

/* One over the root of the mean square of x - mean. */
static __m512 inverse_deviation(const float *x, int64_t size, __m512 mean, float eps) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += 16) {
        __m512 value = _mm512_sub_ps(_mm512_loadu_ps(x + i), mean);
        squares = _mm512_fmadd_ps(value, value, squares);
    }
    return _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + eps));
}

static void norm_values(const float *weight, const float *bias, const float *x, float *out, int64_t size, float eps,
                        int64_t rms) {
    __m512 mean = rms ? _mm512_setzero_ps() : _mm512_set1_ps(sum_row(x, size) / (float)size);
    __m512 scale = inverse_deviation(x, size, mean, eps);
    for (int64_t i = 0; i < size; i += 16) {
        __m512 value = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), mean), scale);
        __m512 shift = bias ? _mm512_loadu_ps(bias + i) : _mm512_setzero_ps();
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(value, _mm512_loadu_ps(weight + i), shift));
    }
}

void norm_row(const struct model *model, const struct norm *norm, const float *x, float *out) {
    norm_values(norm->weight, norm->bias, x, out, model->hidden, model->eps, model->rms);
}

/* The largest absolute value as unsigned bits, so that a NaN is the largest of all. */
static float peak_of(const float *x, int64_t size) {
    __m512i peak = _mm512_setzero_si512(), sign = _mm512_set1_epi32(0x7fffffff);
    for (int64_t i = 0; i < size; i += 16)
        peak = _mm512_max_epu32(peak, _mm512_and_si512(_mm512_loadu_si512(x + i), sign));
    union {
        uint32_t bits;
        float value;
    } found = {_mm512_reduce_max_epu32(peak)};
    return found.value < 1e-12f ? 1e-12f : found.value;
}

void narrow_row(const struct inputs *inputs, int64_t row, const float *x, int64_t size) {
    char *out = inputs->rows + row * inputs->stride;
    if (!inputs->peaks) {
        for (int64_t i = 0; i < size; i += 16)
            narrow((bf16 *)out + i, _mm512_loadu_ps(x + i));
        return;
    }
    float peak = peak_of(x, size);
    inputs->peaks[row] = peak;
    __m512 scale = _mm512_set1_ps(127.0f / peak), half = _mm512_set1_ps(128.5f);
    for (int64_t i = 0; i < size; i += 16) { /* halves go up, as in the torch path */
        __m512i level = _mm512_cvttps_epi32(_mm512_fmadd_ps(_mm512_loadu_ps(x + i), scale, half));
        level = _mm512_sub_epi32(level, _mm512_set1_epi32(128));
        _mm_storeu_si128((void *)(out + i), _mm512_cvtepi32_epi8(level));
    }
}

/* Element i of a head turns with element i + dim / 2. */
static void rotate(float *head, const float *cos, const float *sin, int64_t dim) {
    int64_t half = dim / 2;
    for (int64_t i = 0; i < half; i += 16) {
        __m512 one = _mm512_loadu_ps(head + i), other = _mm512_loadu_ps(head + half + i);
        __m512 turned = _mm512_mul_ps(one, _mm512_loadu_ps(cos + i));
        __m512 partner = _mm512_mul_ps(other, _mm512_loadu_ps(cos + half + i));
        _mm512_storeu_ps(head + i, _mm512_fmadd_ps(other, _mm512_loadu_ps(sin + i), turned));
        _mm512_storeu_ps(head + half + i, _mm512_fmadd_ps(one, _mm512_loadu_ps(sin + half + i), partner));
    }
}

static void write_page(bf16 *page, const bf16 *key, const bf16 *value, int64_t dim, int64_t at) {
    uint32_t *keys = (uint32_t *)page;
    for (int64_t i = 0; i < dim / 2; i++)
        __builtin_memcpy(keys + i * PAGE + at, key + 2 * i, sizeof *keys);
    bf16 *values = page + dim * PAGE + at / 2 * dim * 2 + at % 2;
    for (int64_t i = 0; i < dim; i++)
        values[2 * i] = value[i];
}

void rotate_and_write(struct run *run, const struct layer *layer, int64_t token) {
    const struct model *model = run->model;
    const struct batch *batch = run->batch;
    int64_t dim = model->dim, heads = model->heads, rotated = heads + model->kv_heads;
    int64_t position = batch->positions[token];
    float *head = run->qkv + token * (rotated + model->kv_heads) * dim;
    bf16 *narrowed = run->q + token * (rotated + model->kv_heads) * dim;
    for (int64_t i = 0; i < rotated + model->kv_heads; i++, head += dim) {
        if (i < rotated && layer->qk_norm)
            norm_values(layer->qk_norm + i * dim, NULL, head, head, dim, model->eps, 1);
        if (i < rotated)
            rotate(head, model->cos + position * dim, model->sin + position * dim, dim);
        for (int64_t j = 0; j < dim; j += 16)
            narrow(narrowed + i * dim + j, _mm512_loadu_ps(head + j));
    }
    int64_t page = batch->pages[batch->owners[token] * batch->pages_per_owner + position / PAGE];
    for (int64_t i = 0; i < model->kv_heads; i++)
        write_page(layer->pool + (page * model->kv_heads + i) * 2 * dim * PAGE, narrowed + (heads + i) * dim,
                   narrowed + (rotated + i) * dim, dim, position % PAGE);
}
