// What is left between products: elements gathered by an index, means over rows, sums.
#include <cstring>

#include "abi.h"
#include "share.h"
#include "simd.h"

void fxq_gather(const fxq_gather_arguments* a, int32_t part, int32_t parts) {
    const fxq::Share pieces = fxq::share(a->pieces, 1, part, parts);
    const uint8_t* from = (const uint8_t*)a->input;
    uint8_t* to = (uint8_t*)a->output;
    for (int64_t p = pieces.begin; p < pieces.end; ++p) {
        std::memcpy(to + p * a->piece_bytes, from + a->map[p] * a->piece_bytes,
                    (size_t)a->piece_bytes);
    }
}

void fxq_mean(const fxq_mean_arguments* a, int32_t part, int32_t parts) {
    using namespace fxq;
    const int64_t vectors = (a->columns + LANES - 1) / LANES;
    const Share mine = share(vectors, 1, part, parts);
    const float factor = 1.0f / (float)a->rows;
    for (int64_t v = mine.begin; v < mine.end; ++v) {
        const int64_t first = v * LANES;
        if (first + LANES <= a->columns) {
            F32 total = splat(0.0f);
            for (int64_t r = 0; r < a->rows; ++r) {
                total += load<F32>(a->input + r * a->input_stride + first);
            }
            store(a->output + first, total * factor);
            continue;
        }
        for (int64_t c = first; c < a->columns; ++c) {
            float total = 0;
            for (int64_t r = 0; r < a->rows; ++r) total += a->input[r * a->input_stride + c];
            a->output[c] = total * factor;
        }
    }
}

void fxq_add(const fxq_add_arguments* a, int32_t part, int32_t parts) {
    const fxq::Share rows = fxq::share(a->rows, 1, part, parts);
    for (int64_t r = rows.begin; r < rows.end; ++r) {
        const float* left = a->left + r * a->left_stride;
        const float* right = a->right + r * a->right_stride;
        float* to = a->output + r * a->columns;
        for (int64_t c = 0; c < a->columns; ++c) to[c] = left[c] + right[c];
    }
}
