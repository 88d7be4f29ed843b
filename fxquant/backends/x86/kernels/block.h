// The integer product of a few rows with a panel of up to four vectors, held in registers.
//
// A panel is [quads][width][LANES][4] bytes: consecutive inner indices in fours, as the dot product
// takes them. A linear broadcasts activations (u8) and has weights (s8) in its panel, a mix the
// other way round.
#pragma once

#include "abi.h"
#include "share.h"
#include "simd.h"

namespace fxq {

constexpr int VECTORS = PANEL / LANES;
#if FXQ_LANES == 16
constexpr int BLOCK_ROWS = 6;  // 24 accumulators, 4 vectors of the panel, 1 broadcast
#else
constexpr int BLOCK_ROWS = 3;  // 12 accumulators of 16 registers
#endif
// Rows of a block that is stored as QUADS.
constexpr int QUAD_ROWS = 4;
constexpr int MOST_ROWS = BLOCK_ROWS > QUAD_ROWS ? BLOCK_ROWS : QUAD_ROWS;

// Sums pass through memory (the cache's first level) on their way to the epilogue: two small
// functions take turns instead of one per combination.
struct Sums {
    I32 at[MOST_ROWS][VECTORS];
};

enum class Broadcast { ACTIVATIONS, WEIGHTS };

// sums[r][v] = start + sum over inner of rows[r] * panel[v]. start: one per column where activations
// are broadcast, one per row where weights are.
template <Broadcast SIDE, int ROWS, int WIDTH>
void multiply(const void* rows, int64_t stride, const void* panel, int64_t quads,
              const int32_t* start, Sums& sums) {
    I32 acc[ROWS][WIDTH];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < WIDTH; ++v)
            acc[r][v] = SIDE == Broadcast::WEIGHTS ? splat(start[r])
                                                   : load<I32>(start + v * LANES);
    const char* left = (const char*)rows;
    const char* right = (const char*)panel;
    for (int64_t quad = 0; quad < quads; ++quad, left += 4, right += 4 * PANEL) {
        I32 vectors[WIDTH];
#pragma GCC unroll 4
        for (int v = 0; v < WIDTH; ++v) vectors[v] = load<I32>(right + 4 * v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; ++r) {
            const I32 four = splat4(left + r * stride);
#pragma GCC unroll 4
            for (int v = 0; v < WIDTH; ++v)
                acc[r][v] = SIDE == Broadcast::WEIGHTS ? dot(acc[r][v], vectors[v], four)
                                                       : dot(acc[r][v], four, vectors[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < WIDTH; ++v) sums.at[r][v] = acc[r][v];
}

using Multiply = void (*)(const void*, int64_t, const void*, int64_t, const int32_t*, Sums&);

template <Broadcast SIDE, int ROWS>
inline Multiply multiply_of_width(int width) {
    constexpr Multiply TABLE[VECTORS] = {multiply<SIDE, ROWS, 1>, multiply<SIDE, ROWS, 2>,
                                         multiply<SIDE, ROWS, 3>, multiply<SIDE, ROWS, 4>};
    return TABLE[width - 1];
}

template <Broadcast SIDE, int ROWS = MOST_ROWS>
inline Multiply multiply_for(int rows, int width) {
    if constexpr (ROWS > 1)
        if (rows < ROWS) return multiply_for<SIDE, ROWS - 1>(rows, width);
    return multiply_of_width<SIDE, ROWS>(width);
}

// Rows of the next block when `left` are left: the last two blocks share what would leave the last
// one short, because few rows do not fill the pipelines.
inline int next_rows(int64_t left, int most) {
    if (left <= most) return (int)left;
    if (most == QUAD_ROWS || left >= 2 * most) return most;
    return (int)(left + 1) / 2;
}

// Whether `parts` shares of rows, rather than of panels, are done: where rows are many, and where
// they can be shared more evenly. By panels every part reads its own weights only.
inline bool by_rows(int64_t rows, int64_t panels, int32_t parts) {
    if (parts == 1 || rows >= 48 * parts) return true;
    const int64_t threes = (rows + 2) / 3;
    const int64_t most_threes = (threes + parts - 1) / parts;
    const int64_t most_panels = (panels + parts - 1) / parts;
    return most_threes * panels < most_panels * threes;
}

struct Work {
    Share rows, panels;
};

// A part's share of a product with one packed side, stored as `store` says. Threes leave two parts
// of 197 rows with 99 and 98, and no block shorter than three.
inline Work work_of(int64_t rows, int64_t columns, int32_t store, int32_t part, int32_t parts) {
    const int64_t panels = (columns + PANEL - 1) / PANEL;
    const int unit = store == FXQ_U8_QUADS ? QUAD_ROWS : 3;
    if (by_rows(rows, panels, parts)) return {share(rows, unit, part, parts), {0, panels}};
    return {{0, rows}, share(panels, 1, part, parts)};
}

}  // namespace fxq
