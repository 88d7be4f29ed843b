// What both attention kernels are made of: a product of a few rows with a packed right-hand side,
// held in registers, and the transposition that packs.
//
// A word is 32 bits: four int8 codes, two bf16 numbers or one float. A packed matrix of `words` x
// `vectors` * LANES words lies in panels of TILE_VECTORS vectors, each [words][vectors of the
// panel][LANES], so that a tile reads it from front to back.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

namespace fxq {

// Accumulators per tile, bounded by the registers: 24 of 32, 12 of 16, and 8 of 16 where the dot
// product needs temporaries.
constexpr int TILE_VECTORS = 2;
#if FXQ_LANES == 16
constexpr int TILE_ROWS = 12;
#elif defined(__AVXVNNI__)
constexpr int TILE_ROWS = 6;
#else
constexpr int TILE_ROWS = 4;
#endif

inline int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// The column of vectors number `vector` of a packed matrix.
struct Packed {
    int32_t* first;
    int64_t stride;

    Packed(int32_t* matrix, int64_t vector, int64_t words, int64_t vectors) {
        const int64_t panel = vector - vector % TILE_VECTORS;
        const int64_t beside = std::min<int64_t>(TILE_VECTORS, vectors - panel);
        first = matrix + (panel * words + vector - panel) * LANES;
        stride = beside * LANES;
    }
    int32_t* row(int64_t word) const { return first + word * stride; }
};

// to[r][v] = start[v] + sum over words of left[r] * right[v]. Strides are in bytes.
template <class Product, int ROWS, int VECTORS>
inline void tile(const char* left, int64_t left_stride, const int32_t* right, int64_t words,
                 const int32_t* start, char* to, int64_t to_stride) {
    using Vector = typename Product::Vector;
    Vector sums[ROWS][VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v)
            sums[r][v] = start ? load<Vector>(start + v * LANES) : Vector{};
    // Rows are reached from every third by adding once or twice the stride, which an address does
    // for nothing: a pointer for each row would not fit the registers.
    constexpr int BASES = (ROWS + 2) / 3;
    const char* base[BASES];
#pragma GCC unroll 4
    for (int b = 0; b < BASES; ++b) base[b] = left + 3 * b * left_stride;
    for (int64_t word = 0; word < words; ++word, right += VECTORS * LANES) {
        I32 columns[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) columns[v] = load<I32>(right + v * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            const I32 row = splat4(base[r / 3] + (r % 3) * left_stride);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = Product::dot(sums[r][v], row, columns[v]);
        }
#pragma GCC unroll 4
        for (int b = 0; b < BASES; ++b) base[b] += 4;
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v)
            store(to + r * to_stride + v * (int64_t)sizeof(Vector), sums[r][v]);
}

// The product of ROWS rows with a whole packed matrix, into rows of `vectors` vectors.
template <class Product, int ROWS>
inline void panels(const char* left, int64_t left_stride, const int32_t* right, int64_t words,
                   int64_t vectors, const int32_t* start, char* to, int64_t to_stride) {
    for (int64_t vector = 0; vector < vectors; vector += TILE_VECTORS) {
        const int32_t* panel = right + vector * words * LANES;
        const int32_t* from = start ? start + vector * LANES : nullptr;
        char* into = to + vector * LANES * 4;
        if (vector + TILE_VECTORS <= vectors)
            tile<Product, ROWS, TILE_VECTORS>(left, left_stride, panel, words, from, into,
                                              to_stride);
        else
            tile<Product, ROWS, 1>(left, left_stride, panel, words, from, into, to_stride);
    }
}

// use(constant ROWS) with the least even ROWS >= rows.
template <int ROWS = TILE_ROWS, class Use>
inline void with_rows(int64_t rows, Use&& use) {
    if constexpr (ROWS > 2)
        if (rows <= ROWS - 2) return with_rows<ROWS - 2>(rows, use);
    use(std::integral_constant<int, ROWS>{});
}

// a0 b0 a1 b1 ... of the two vectors' first and second halves.
#if FXQ_LANES == 16
inline I32 zip_low(I32 a, I32 b) {
    return __builtin_shuffle(a, b, I32{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
inline I32 zip_high(I32 a, I32 b) {
    return __builtin_shuffle(a, b,
                             I32{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}
#else
inline I32 zip_low(I32 a, I32 b) {
    return __builtin_shuffle(a, b, I32{0, 8, 1, 9, 2, 10, 3, 11});
}
inline I32 zip_high(I32 a, I32 b) {
    return __builtin_shuffle(a, b, I32{4, 12, 5, 13, 6, 14, 7, 15});
}
#endif

// Element r of vector c becomes element c of vector r: every pass rotates the bits of the index
// (vector, element) by one, and as many passes as an element's index has bits swap the two.
inline void transpose(I32 (&block)[LANES]) {
#pragma GCC unroll 4
    for (int pass = 1; pass < LANES; pass *= 2) {
        I32 zipped[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; ++i) {
            zipped[2 * i] = zip_low(block[i], block[i + LANES / 2]);
            zipped[2 * i + 1] = zip_high(block[i], block[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) block[i] = zipped[i];
    }
}

inline I32 lane_numbers() {
    I32 lanes = {};
    for (int i = 0; i < LANES; ++i) lanes[i] = i;
    return lanes;
}

// combine() over all lanes, in every lane.
template <class V, class Combine>
inline V across(V value, Combine&& combine) {
    const I32 lanes = lane_numbers();
#pragma GCC unroll 4
    for (int step = LANES / 2; step > 0; step /= 2)
        value = combine(value, __builtin_shuffle(value, lanes ^ step));
    return value;
}

}  // namespace fxq
