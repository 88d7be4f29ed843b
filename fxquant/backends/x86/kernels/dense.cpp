// A linear that stays in float, such as a small head: rows of four vectors of results at a time.
#include "abi.h"
#include "share.h"
#include "simd.h"

namespace {

constexpr int WIDE = 4;  // vectors of results held in registers

}  // namespace

void fxq_dense(const fxq_dense_arguments* a, int32_t part, int32_t parts) {
    using namespace fxq;
    const Share mine = share(a->columns, LANES, part, parts);
    for (int64_t r = 0; r < a->rows; ++r) {
        const float* x = a->input + r * a->input_stride;
        float* to = a->output + r * a->columns;
        int64_t c = mine.begin;
        for (; c + WIDE * LANES <= mine.end; c += WIDE * LANES) {
            F32 sums[WIDE];
            for (int v = 0; v < WIDE; ++v) sums[v] = load<F32>(a->bias + c + v * LANES);
            for (int64_t k = 0; k < a->inner; ++k) {
                const F32 factor = splat(x[k]);
                const float* row = a->weight + k * a->columns + c;
                for (int v = 0; v < WIDE; ++v) sums[v] += factor * load<F32>(row + v * LANES);
            }
            for (int v = 0; v < WIDE; ++v) store(to + c + v * LANES, sums[v]);
        }
        for (; c < mine.end; ++c) {
            float sum = a->bias[c];
            for (int64_t k = 0; k < a->inner; ++k) sum += x[k] * a->weight[k * a->columns + c];
            to[c] = sum;
        }
    }
}
