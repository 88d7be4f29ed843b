// From integer sums to stored results, as abi.h describes: scale, activation, residual, codes.
#pragma once

#include <algorithm>

#include "abi.h"
#include "activation.h"
#include "block.h"

namespace fxq {

// Where a block of sums lies in the result.
struct Place {
    int64_t row, column;
    int rows;
    int64_t columns;  // from `column` on; may be more than a panel
    // Of a linear with ranges per token, otherwise null.
    const float* row_scale = nullptr;
    const float* row_zero_point = nullptr;
    const int32_t* start = nullptr;
};

inline F32 load_floats(const float* from, int count) {
    return count == LANES ? load<F32>(from) : load_some<F32>(from, count);
}

// One vector of results: all but the conversion of `columns` lanes of a row to codes.
template <int ACTIVATION>
class Values {
public:
    Values(const fxq_epilogue& e, int64_t row, int64_t column)
        : e_(e), column_(column), mapped_(e.row_map ? e.row_map[row] : row) {}

    int64_t row() const { return mapped_; }

    F32 operator()(F32 value, int64_t offset, int count) const {
        value = activate<ACTIVATION>(value);
        const int64_t column = column_ + offset;
        if (e_.column_scale) value = value * load_floats(e_.column_scale + column, count);
        if (e_.multiplicand) {
            const int64_t at = mapped_ * e_.multiplicand_stride + column;
            value = value * load_floats(e_.multiplicand + at, count);
        }
        if (e_.residual) {
            const int64_t at = mapped_ * e_.residual_stride + column;
            value = value + load_floats(e_.residual + at, count);
        }
        return value;
    }

private:
    const fxq_epilogue& e_;
    int64_t column_;
    int64_t mapped_;
};

// Codes before the conversion to integers, which is undefined for large values.
inline F32 clamped(F32 value) { return min(max(value, splat(0.0f)), splat(255.0f)); }

// Four rows of codes, byte by byte.
inline I32 interleaved(I32 a, I32 b, I32 c, I32 d) {
    return (a | b << 8) | (c << 16 | d << 24);
}

// The codes of rows at.row.. as bytes of 32-bit lanes. Groups of four begin at multiples of four, as
// blocks stored this way do; of a last, shorter group all four bytes are written.
inline void store_quads(const fxq_epilogue& e, const Place& at, int64_t offset, const I32* codes,
                        int count) {
    uint8_t* output = (uint8_t*)e.output;
    const int64_t column = at.column + offset;
    if (e.row_map) {  // rows that lie anywhere
        for (int r = 0; r < at.rows; ++r) {
            const int64_t row = e.row_map[at.row + r];
            uint8_t* to = output + row / 4 * e.output_stride + 4 * column + row % 4;
            for (int i = 0; i < count; ++i) to[4 * i] = (uint8_t)codes[r][i];
        }
        return;
    }
    uint8_t* to = output + at.row / 4 * e.output_stride + 4 * column;
    const I32 words = interleaved(codes[0], codes[1], codes[2], codes[3]);
    if (count == LANES) store(to, words);
    else store_some(to, words, count);
}

// All of a block. `WHOLE`: all VECTORS vectors are whole, so nothing is tested per vector.
// `PER_ROW`: scale and bias belong to rows (a mix), not to columns (a linear).
template <int ACTIVATION, int STORE, bool PER_ROW, bool WHOLE>
void finish(const fxq_epilogue& e, const Sums& sums, const Place& at) {
    constexpr bool QUADS = STORE == FXQ_U8_QUADS;
    const auto count_of = [&](int v) {
        return WHOLE ? LANES : (int)std::min<int64_t>(LANES, at.columns - v * LANES);
    };
    const int vectors =
        WHOLE ? VECTORS : (int)((std::min<int64_t>(at.columns, PANEL) + LANES - 1) / LANES);
    // Without anything between the scale and the codes, the codes' step goes into the scale.
    const bool direct = STORE != FXQ_F32_ROWS && ACTIVATION == FXQ_NONE && !e.column_scale &&
                        !e.multiplicand && !e.residual;
    const F32 step = splat(e.inverse_step), zero_point = splat(e.zero_point);
    F32 scale[VECTORS], bias[VECTORS];
    if constexpr (!PER_ROW) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            scale[v] = load<F32>(e.scale + at.column + v * LANES);
            bias[v] = load<F32>(e.bias + at.column + v * LANES);
            if (direct) {
                scale[v] = scale[v] * step;
                bias[v] = bias[v] * step + zero_point;
            }
        }
    }
    I32 quads[VECTORS][QUAD_ROWS] = {};
    for (int r = 0; r < at.rows; ++r) {
        const Values<ACTIVATION> values(e, at.row + r, at.column);
        if constexpr (PER_ROW) {
            F32 row_scale = splat(e.scale[at.row + r]), row_bias = splat(e.bias[at.row + r]);
            if (direct) {
                row_scale = row_scale * step;
                row_bias = row_bias * step + zero_point;
            }
            for (int v = 0; v < VECTORS; ++v) scale[v] = row_scale, bias[v] = row_bias;
        }
        F32 result[VECTORS] = {};
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) result[v] = to_float(sums.at[r][v]);
        if (at.row_scale) {
            const F32 factor = splat(at.row_scale[r]), zero = splat(at.row_zero_point[r]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                const F32 start = to_float(load<I32>(at.start + v * LANES));
                result[v] = (result[v] + zero * start) * factor;
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) result[v] = result[v] * scale[v] + bias[v];
        if (!direct) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                result[v] = values(result[v], v * LANES, count_of(v));
                if (STORE != FXQ_F32_ROWS) result[v] = result[v] * step + zero_point;
            }
        }
        const int64_t to = values.row() * e.output_stride + at.column;
        if constexpr (STORE == FXQ_U8_ROWS && WHOLE) {
            I32 codes[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) codes[v] = round_to_int(clamped(result[v]));
            store_bytes4((uint8_t*)e.output + to, codes[0], codes[1], codes[2], codes[3]);
            continue;
        }
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            const int count = count_of(v);
            if constexpr (QUADS) {
                quads[v][r] = round_to_int(clamped(result[v]));
            } else if constexpr (STORE == FXQ_U8_ROWS) {
                uint8_t* bytes = (uint8_t*)e.output + to + v * LANES;
                const I32 codes = round_to_int(clamped(result[v]));
                if (count == LANES) store_bytes(bytes, codes);
                else store_some_bytes(bytes, codes, count);
            } else {
                float* floats = (float*)e.output + to + v * LANES;
                if (count == LANES) store(floats, result[v]);
                else store_some(floats, result[v], count);
            }
        }
    }
    if constexpr (QUADS) {
        for (int v = 0; v < vectors; ++v)
            store_quads(e, at, v * LANES, quads[v], count_of(v));
    }
}

using Finish = void (*)(const fxq_epilogue&, const Sums&, const Place&);

template <bool PER_ROW, bool WHOLE, int ACTIVATION = FXQ_NONE>
inline Finish finish_for(const fxq_epilogue& e) {
    if constexpr (ACTIVATION < FXQ_SILU)
        if (e.activation > ACTIVATION) return finish_for<PER_ROW, WHOLE, ACTIVATION + 1>(e);
    if (e.store == FXQ_F32_ROWS) return finish<ACTIVATION, FXQ_F32_ROWS, PER_ROW, WHOLE>;
    if (e.store == FXQ_U8_ROWS) return finish<ACTIVATION, FXQ_U8_ROWS, PER_ROW, WHOLE>;
    return finish<ACTIVATION, FXQ_U8_QUADS, PER_ROW, WHOLE>;
}

}  // namespace fxq
