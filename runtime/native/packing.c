#include "native.h"

/* Rows [num_rows, row_bytes] in the order of the tiles (packing.py says which), rows that are missing as zeros. One
 * line of a tile is one word of each of 16 rows. */
EXPORT void jitney_pack(const char *rows, int64_t num_rows, int64_t row_bytes, int32_t *out) {
    __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i starts = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)row_bytes));
    for (int64_t first = 0; first < num_rows; first += PANEL)
        for (int64_t at = 0; at < row_bytes; at += 64)
            for (int64_t row = first; row < first + PANEL; row += 16) {
                int64_t left = num_rows - row;
                __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
                for (int word = 0; word < 64; word += 4, out += 16) {
                    const char *from = rows + row * row_bytes + at + word;
                    _mm512_store_si512(out, _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, starts, from, 1));
                }
            }
}
