// Layer norm or a plain affine map, row by row, and the codes of the result.
#include <algorithm>
#include <cmath>
#include <vector>

#include "abi.h"
#include "share.h"
#include "simd.h"

namespace fxq {
namespace {

constexpr float SMALLEST_STEP = 0x1p-126f * 1024;  // as quantize_per_token's

inline F32 clamped(F32 value) { return min(max(value, splat(0.0f)), splat(255.0f)); }

// f(offset, count) for every vector of a row, the last of which may have fewer than LANES lanes.
template <class F>
inline void for_vectors(int64_t columns, F&& f) {
    int64_t c = 0;
    for (; c + LANES <= columns; c += LANES) f(c, LANES);
    if (c < columns) f(c, (int)(columns - c));
}

inline F32 take(const float* from, int count) {
    return count == LANES ? load<F32>(from) : load_some<F32>(from, count);
}

// Sums pairs of halves: shorter chains of additions than lane by lane, and more exact.
inline float total(F32 value) {
    float lanes[LANES];
    store(lanes, value);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// What each part keeps while it works on four rows.
struct Scratch {
    std::vector<float> gathered, result;
};

class Norm {
public:
    explicit Norm(const fxq_norm_arguments& a) : a_(a), run_(a.columns / a.pieces) {}

    void run(Share rows) const {
        static thread_local Scratch scratch;
        const size_t four = (size_t)(4 * (a_.columns + LANES));
        if (scratch.result.size() < four) scratch.result.resize(four);
        if (a_.piece_map && scratch.gathered.size() < four) scratch.gathered.resize(four);
        for (int64_t row = rows.begin; row < rows.end; row += 4) {
            const int count = (int)std::min<int64_t>(4, rows.end - row);
            if (a_.store == FXQ_U8_QUADS) quads(row, count, scratch);
            else
                for (int r = 0; r < count; ++r) one(row + r, scratch);
        }
    }

private:
    struct Affine {
        const float* input;
        float mean, factor;            // y = (x - mean) * factor * weight + bias
        float inverse_step, zero_point;
    };

    // The row's elements, one after the other.
    const float* elements(int64_t row, float* gathered) const {
        if (!a_.piece_map) return a_.input + row * a_.columns;
        for (int64_t p = 0; p < a_.pieces; ++p) {
            const float* from = a_.input + a_.piece_map[row * a_.pieces + p] * a_.piece_stride;
            std::copy(from, from + run_, gathered + p * run_);
        }
        return gathered;
    }

    // Two passes over a row that the first brings into the cache.
    Affine statistics(const float* x) const {
        Affine made{x, 0.0f, 1.0f, a_.inverse_step, a_.zero_point};
        if (a_.kind != FXQ_LAYER_NORM) return made;
        F32 sums[4] = {};
        const int64_t columns = a_.columns;
        for_each_of_four(columns, [&](int i, int64_t c, int n) { sums[i] += take(x + c, n); });
        made.mean = total((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)columns;
        F32 squares[4] = {};
        const F32 mean = splat(made.mean);
        for_each_of_four(columns, [&](int i, int64_t c, int n) {
            F32 d = take(x + c, n) - mean;
            if (n < LANES) d = load_some<F32>((const float*)&d, n);  // lanes beyond count nothing
            squares[i] += d * d;
        });
        const float square = total((squares[0] + squares[1]) + (squares[2] + squares[3]));
        made.factor = 1.0f / std::sqrt(square / (float)columns + a_.epsilon);
        return made;
    }

    // f(accumulator, offset, count): four accumulators in turn, so that additions overlap.
    template <class F>
    static inline void for_each_of_four(int64_t columns, F&& f) {
        int64_t c = 0;
        for (; c + 4 * LANES <= columns; c += 4 * LANES) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) f(i, c + i * LANES, LANES);
        }
        for (; c + LANES <= columns; c += LANES) f(0, c, LANES);
        if (c < columns) f(1, c, (int)(columns - c));
    }

    F32 value(const Affine& row, int64_t c, int count) const {
        F32 y = (take(row.input + c, count) - row.mean) * row.factor;
        if (a_.weight) y = y * take(a_.weight + c, count);
        return a_.bias ? y + take(a_.bias + c, count) : y;
    }

    I32 codes(const Affine& row, int64_t c, int count) const {
        const F32 code = value(row, c, count) * row.inverse_step + row.zero_point;
        return round_to_int(clamped(code));
    }

    // The row, normalized into `result`, with the step and zero point of its own range.
    Affine ranged(Affine row, int64_t index, float* result) const {
        F32 low = splat(0.0f), high = splat(0.0f);
        for_vectors(a_.columns, [&](int64_t c, int n) {
            F32 y = value(row, c, n);
            if (n < LANES) y = load_some<F32>((const float*)&y, n);
            store(result + c, y);
            low = min(low, y);
            high = max(high, y);
        });
        float lowest = 0, highest = 0;
        for (int i = 0; i < LANES; ++i) {
            lowest = std::min(lowest, (float)low[i]);
            highest = std::max(highest, (float)high[i]);
        }
        const float step = std::max((highest - lowest) / 255.0f, SMALLEST_STEP);
        const float inverse = 1.0f / step;
        const float zero_point = std::min(std::max(std::nearbyint(-lowest * inverse), 0.0f), 255.0f);
        a_.row_scale[index] = step;
        a_.row_zero_point[index] = zero_point;
        return {result, 0.0f, 1.0f, inverse, zero_point};
    }

    void one(int64_t index, Scratch& scratch) const {
        const Affine row = statistics(elements(index, scratch.gathered.data()));
        if (a_.store == FXQ_F32_ROWS) {
            float* to = (float*)a_.output + index * a_.output_stride;
            for_vectors(a_.columns, [&](int64_t c, int n) {
                if (n == LANES) store(to + c, value(row, c, n));
                else store_some(to + c, value(row, c, n), n);
            });
            return;
        }
        uint8_t* to = (uint8_t*)a_.output + index * a_.output_stride;
        const auto store_codes = [&](auto&& codes_at) {
            for_vectors(a_.columns, [&](int64_t c, int n) {
                if (n == LANES) store_bytes(to + c, codes_at(c, n));
                else store_some_bytes(to + c, codes_at(c, n), n);
            });
        };
        if (!a_.row_scale) return store_codes([&](int64_t c, int n) { return codes(row, c, n); });
        const Affine own = ranged(row, index, scratch.result.data());
        store_codes([&](int64_t c, int n) { return plain_codes(own, c, n); });
    }

    // Codes of values that are normalized already.
    I32 plain_codes(const Affine& row, int64_t c, int count) const {
        return round_to_int(clamped(take(row.input + c, count) * row.inverse_step + row.zero_point));
    }

    void quads(int64_t first, int count, Scratch& scratch) const {
        Affine rows[4];
        for (int r = 0; r < 4; ++r) {
            float* gathered = scratch.gathered.data() + r * (a_.columns + LANES);
            float* result = scratch.result.data() + r * (a_.columns + LANES);
            rows[r] = r < count ? statistics(elements(first + r, gathered)) : rows[0];
            if (a_.row_scale && r < count) rows[r] = ranged(rows[r], first + r, result);
        }
        uint8_t* to = (uint8_t*)a_.output + first / 4 * a_.output_stride;
        for_vectors(a_.columns, [&](int64_t c, int n) {
            I32 words = splat(0);
#pragma GCC unroll 4
            for (int r = 0; r < 4; ++r) {
                const I32 bytes = a_.row_scale ? plain_codes(rows[r], c, n) : codes(rows[r], c, n);
                words |= bytes << (8 * r);
            }
            if (n == LANES) store(to + 4 * c, words);
            else store_some(to + 4 * c, words, n);
        });
    }

    const fxq_norm_arguments& a_;
    int64_t run_;
};

}  // namespace
}  // namespace fxq

void fxq_norm(const fxq_norm_arguments* a, int32_t part, int32_t parts) {
    using namespace fxq;
    const int unit = a->store == FXQ_U8_QUADS ? 4 : 3;
    Norm(*a).run(share(a->rows, unit, part, parts));
}
