/* One decoder on a processor with AMX: its weights as Python packed them, the arrays of a run, and the phases of a
 * forward pass. Matrices are row-major, sizes are counts of elements, and every length is a multiple of 32.
 *
 * Nothing here sums in an order that depends on how many tokens, rows or threads there are. */
#ifndef JITNEY_NATIVE_H
#define JITNEY_NATIVE_H

#include <immintrin.h>
#include <stdint.h>

#include "team.h"

#define EXPORT __attribute__((visibility("default")))

typedef uint16_t bf16;

enum { PANEL = 32, PAGE = 32 };
enum activation { SILU, GELU_TANH, RELU, SQUARED_RELU };

/* A linear layer's weights, tile after tile (packing.py has the order): bfloat16, or int8 with a scale per output,
 * which holds the activations' 1/127 too. `scale` and `bias` reach to the end of the last panel; `bias` may be null. */
struct linear {
    const void *words;
    const float *scale, *bias;
    int64_t outputs, inputs;
};

/* `bias` may be null. */
struct norm {
    const float *weight, *bias;
};

/* `qk_norm` [heads + kv_heads, dim] may be null; `window` 0: attention sees everything. The pool holds for each page
 * and each key-value head the keys [dim / 2, PAGE, 2], then the values [PAGE / 2, dim, 2]. */
struct layer {
    struct norm attention_norm, mlp_norm;
    struct linear qkv, out, up, down;
    const float *qk_norm;
    bf16 *pool;
    int64_t window;
};

struct model {
    int64_t hidden, heads, kv_heads, dim, inner, num_layers, quantized, rms, gated, activation;
    float eps;
    const bf16 *embeddings, *learned_positions; /* [vocab, hidden], [positions, hidden] or null */
    const float *cos, *sin;                     /* [positions, dim]; sin carries the sign */
    struct norm norm;
    struct linear head;
    const struct layer *layers;
};

/* A flat list of tokens: the tokens of one owner stand together, in order of position. `pages` [owners,
 * pages_per_owner]. Out come the normed states [num_chosen, hidden] of the chosen tokens, the logits [num_sampled,
 * vocab] of the first of these, and a sum over each token's state, which is finite unless the token's row failed. */
struct batch {
    int64_t num_tokens, num_chosen, num_sampled, pages_per_owner;
    const int64_t *tokens, *positions, *owners, *pages, *chosen;
    float *hidden, *logits, *sums;
};

/* Sixteen rows of queries of one key-value head: `token` is where their run of tokens starts, `row` the first of
 * their (token, head of the group) pairs in it. */
struct piece {
    int64_t token;
    int row, count, kv_head;
};

/* Activations as a product takes them: bfloat16, or int8 and the largest absolute value of each row. */
struct inputs {
    char *rows;
    int64_t stride; /* bytes */
    float *peaks;   /* null: bfloat16 */
};

struct run {
    const struct model *model;
    const struct batch *batch;
    struct team *team;
    int64_t room;         /* tokens that the arrays below have space for */
    float *x, *qkv, *wide; /* the residual stream; query, key, value; rows that are yet to be narrowed */
    bf16 *q;
    struct inputs inputs;
    struct piece *pieces;
    int64_t num_pieces, room_for_pieces;
};

/* rows.c: one token's row at a time. */
void embed(struct run *run, int64_t token);
void norm_row(const struct model *model, const struct norm *norm, const float *x, float *out);
void narrow_row(const struct inputs *inputs, int64_t row, const float *x, int64_t size);
void rotate_and_write(struct run *run, const struct layer *layer, int64_t token);
float sum_row(const float *x, int64_t size);
__m512 exp2_ps(__m512 x);
__m512 activate(__m512 x, enum activation activation);

/* products.c: one phase each, over the first `rows` of run->inputs. */
void store_product(struct run *run, struct worker *worker, const struct linear *linear, int64_t rows, float *out);
void add_product(struct run *run, struct worker *worker, const struct linear *linear, int64_t rows, float *out);
void activate_product(struct run *run, struct worker *worker, const struct linear *linear, int64_t rows);

/* attention.c */
int64_t cut_pieces(const struct model *model, const struct batch *batch, struct piece *pieces);
void attend(struct run *run, const struct layer *layer, const struct piece *piece);

#endif
