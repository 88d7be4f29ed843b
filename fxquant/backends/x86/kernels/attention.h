// Sizes, scratch memory and the walk over the units of work, common to both attention kernels.
#pragma once

#include "abi.h"
#include "share.h"
#include "tile.h"

namespace fxq {

// All counts of one attention; WORD is how many elements of a product share a 32-bit word.
template <int WORD>
struct AttentionShape {
    int64_t tokens, width;
    int64_t score_words, score_vectors;  // keys packed: [width / WORD][tokens]
    int64_t value_words, value_vectors;  // values packed: [tokens / WORD][width]
    // Between rows of a block, in bytes; a row of scores is one of results in the end.
    int64_t query_stride, code_stride, score_stride;
    int64_t query_blocks;

    AttentionShape(int64_t tokens, int64_t width)
        : tokens(tokens),
          width(width),
          score_words(width / WORD),
          score_vectors(ceil_div(tokens, LANES)),
          value_words(ceil_div(tokens, WORD)),
          value_vectors(ceil_div(width, LANES)),
          query_stride(odd_lines(width * 4 / WORD)),
          code_stride(odd_lines(score_vectors * LANES * 4 / WORD)),
          score_stride(odd_lines(std::max(score_vectors, value_vectors) * LANES * 4)),
          query_blocks(ceil_div(tokens, TILE_ROWS)) {}

private:
    // An odd number of cache lines: rows a power of two apart would share the cache's sets.
    static int64_t odd_lines(int64_t bytes) { return (ceil_div(bytes, 64) | 1) * 64; }
};

// Where a part keeps the packed head and one block of rows.
struct AttentionScratch {
    int32_t *keys, *values, *start;
    char *queries, *scores, *codes;
    int64_t bytes;

    template <int WORD>
    AttentionScratch(void* memory, const AttentionShape<WORD>& shape) {
        const uintptr_t begin = (uintptr_t)memory;
        uintptr_t next = (begin + 63) / 64 * 64;
        const auto take = [&](int64_t size) {
            const uintptr_t from = next;
            next += (uintptr_t)ceil_div(size, 64) * 64;
            return (char*)from;
        };
        keys = (int32_t*)take(shape.score_words * shape.score_vectors * LANES * 4);
        values = (int32_t*)take(shape.value_words * shape.value_vectors * LANES * 4);
        start = (int32_t*)take(shape.score_vectors * LANES * 4);
        scores = take(TILE_ROWS * shape.score_stride);
        queries = take(TILE_ROWS * shape.query_stride);
        codes = take(TILE_ROWS * shape.code_stride);
        bytes = (int64_t)(next - begin) + 64;  // and room to align
    }
};

// pack(group, head) once for every head this part meets, then block(group, head, first row, rows).
template <class Arguments, class Pack, class Block>
inline void for_units(const Arguments& a, int64_t query_blocks, int32_t part, int32_t parts,
                      Pack&& pack, Block&& block) {
    const int64_t units = a.groups * a.heads * query_blocks;
    const Share mine = share(units, 1, part, parts);
    int64_t packed = -1;
    for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
        const int64_t pair = unit / query_blocks;
        const int64_t group = pair / a.heads, head = pair % a.heads;
        if (pair != packed) pack(group, head);
        packed = pair;
        const int64_t first = unit % query_blocks * TILE_ROWS;
        block(group, head, first, std::min<int64_t>(TILE_ROWS, a.tokens - first));
    }
}

template <class Arguments>
inline const float* bias_row(const Arguments& a, int64_t group, int64_t head, int64_t row) {
    return a.score_bias + group * a.bias_group_stride + head * a.bias_head_stride +
           row * a.bias_row_stride;
}

// Scales a block's results and stores them as codes or numbers.
struct AttentionOutput {
    const float *scale, *bias;
    char* to;
    int64_t stride, width;
    bool codes;

    template <class Arguments>
    AttentionOutput(const Arguments& a, int64_t group, int64_t head, int64_t first)
        : scale(a.output_scale + head * a.width),
          bias(a.output_bias + head * a.width),
          stride(a.output_stride),
          width(a.width),
          codes(a.store == FXQ_U8_ROWS) {
        const int64_t at = (group * a.tokens + first) * stride + head * width;
        to = (char*)a.output + at * (codes ? 1 : (int64_t)sizeof(float));
    }

    // result(row, vector) for all of a block.
    template <class Result>
    void rows(int64_t rows, Result&& result) const {
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t channel = 0; channel < width; channel += LANES)
                put(row, channel, result(row, channel));
    }

private:
    void put(int64_t row, int64_t channel, F32 value) const {
        const int64_t at = row * stride + channel;
        const size_t count = (size_t)std::min<int64_t>(LANES, width - channel);
        value = value * load<F32>(scale + channel) + load<F32>(bias + channel);
        if (codes) {
            value = min(max(value, splat(0.0f)), splat(255.0f));
            uint8_t bytes[LANES];
            if (count == LANES) return store_bytes((uint8_t*)to + at, round_to_int(value));
            store_bytes(bytes, round_to_int(value));
            std::memcpy((uint8_t*)to + at, bytes, count);
        } else {
            if (count == LANES) return store((float*)to + at, value);
            std::memcpy((float*)to + at, &value, count * sizeof(float));
        }
    }
};

}  // namespace fxq
