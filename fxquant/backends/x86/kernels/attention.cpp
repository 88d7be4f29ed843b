// Attention over int8 codes. For each head the keys and values are packed once into the order of
// the dot product; then block after block of queries passes scores, soft-max and values without
// leaving the first-level cache.
#include "attention.h"

#include "exponential.h"

namespace {

using namespace fxq;
using Arguments = fxq_attention_arguments;
using Shape = AttentionShape<4>;

struct ByteProduct {
    using Vector = I32;
    static I32 dot(I32 sum, I32 left, I32 right) { return fxq::dot(sum, left, right); }
};

typedef uint8_t Bytes __attribute__((vector_size(LANES)));

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint16_t Shorts8 __attribute__((vector_size(16)));

// As for words in tile.h, and no wider than 16 bytes: the most that every level does in one step.
Bytes16 zip_low(Bytes16 a, Bytes16 b) {
    return __builtin_shuffle(
        a, b, Bytes16{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
Bytes16 zip_high(Bytes16 a, Bytes16 b) {
    return __builtin_shuffle(
        a, b, Bytes16{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}
Shorts8 zip_low(Shorts8 a, Shorts8 b) {
    return __builtin_shuffle(a, b, Shorts8{0, 8, 1, 9, 2, 10, 3, 11});
}
Shorts8 zip_high(Shorts8 a, Shorts8 b) {
    return __builtin_shuffle(a, b, Shorts8{4, 12, 5, 13, 6, 14, 7, 15});
}

const int32_t SIGN = (int32_t)0x80808080;  // u8 codes become s8 by flipping the highest bit
const int32_t NEVER = -(1 << 30);          // score of a key that is not there, below all others

// Keys are dword-transposed; start = -zero_point * sum_d k removes the queries' zero point.
void pack_keys(const Arguments& a, const Shape& shape, const uint8_t* key, int32_t zero_point,
               const AttentionScratch& scratch) {
    for (int64_t vector = 0; vector < shape.score_vectors; ++vector) {
        const Packed to(scratch.keys, vector, shape.score_words, shape.score_vectors);
        const int64_t first = vector * LANES;
        I32 sums = {};
        for (int64_t word = 0; word < shape.score_words; word += LANES) {
            I32 block[LANES];
            for (int i = 0; i < LANES; ++i)
                block[i] = first + i < shape.tokens
                               ? load<I32>(key + (first + i) * a.input_stride + 4 * word) ^ SIGN
                               : I32{};
            transpose(block);
            const int64_t count = std::min<int64_t>(LANES, shape.score_words - word);
            for (int64_t i = 0; i < count; ++i) {
                store(to.row(word + i), block[i]);
                sums = fxq::dot(sums, splat((int32_t)0x01010101), block[i]);
            }
        }
        const I32 real = lane_numbers() < splat((int32_t)(shape.tokens - first));
        store(scratch.start + first, real ? sums * -zero_point : splat(NEVER));
    }
}

// Four rows of values are interleaved byte by byte. Rows beyond the last may be anything, as their
// probabilities are zero.
void pack_values(const Arguments& a, const Shape& shape, const uint8_t* value,
                 const AttentionScratch& scratch) {
    for (int64_t vector = 0; vector < shape.value_vectors; ++vector) {
        const Packed to(scratch.values, vector, shape.value_words, shape.value_vectors);
        const uint8_t* from = value + vector * LANES;
        for (int64_t word = 0; word < shape.value_words; ++word) {
            const auto row = [&](int64_t i) {
                const int64_t token = std::min(4 * word + i, shape.tokens - 1);
                return load<Bytes16>(from + token * a.input_stride) ^ (uint8_t)0x80;
            };
            const Bytes16 even = row(0), odd = row(1), even2 = row(2), odd2 = row(3);
            const Shorts8 low = (Shorts8)zip_low(even, odd), high = (Shorts8)zip_high(even, odd);
            const Shorts8 low2 = (Shorts8)zip_low(even2, odd2);
            const Shorts8 high2 = (Shorts8)zip_high(even2, odd2);
            store(to.row(word), zip_low(low, low2));
            store(to.row(word) + 4, zip_high(low, low2));
            if (LANES == 8) continue;
            store(to.row(word) + 8, zip_low(high, high2));
            store(to.row(word) + 12, zip_high(high, high2));
        }
    }
}

// The largest score of each row, as a float to subtract. Without a bias it is sought among the
// integers; with one the scores become floats first.
template <bool BIAS>
F32 largest(int32_t* scores, int64_t last, I32 real, float scale, const float* bias) {
    if constexpr (BIAS) {
        F32 top = splat(-3e38f);
        for (int64_t v = 0; v < last; ++v) {
            const F32 score =
                to_float(load<I32>(scores + v * LANES)) * scale + load<F32>(bias + v * LANES);
            store(scores + v * LANES, score);
            top = max(top, score);
        }
        F32 score =
            to_float(load<I32>(scores + last * LANES)) * scale + load<F32>(bias + last * LANES);
        score = real ? score : splat(-3e38f);
        store(scores + last * LANES, score);
        return across(max(top, score), [](F32 a, F32 b) { return max(a, b); });
    } else {
        I32 top = load<I32>(scores);
        for (int64_t v = 1; v <= last; ++v) top = max(top, load<I32>(scores + v * LANES));
        return to_float(across(top, [](I32 a, I32 b) { return max(a, b); })) * scale;
    }
}

// Turns rows of scores into codes of 2^(score - largest). Every step is done for all rows before
// the next, so that the processor overlaps rows where one alone would wait for its own results.
template <bool BIAS>
void soft_max(const Arguments& a, const Shape& shape, const AttentionScratch& scratch,
              const float* bias, float scale, int64_t rows, float* inverse) {
    const int64_t last = shape.score_vectors - 1;
    const I32 real = lane_numbers() < splat((int32_t)(shape.tokens - last * LANES));
    const Exponential exponential((float)PROBABILITY_CODES);
    F32 tops[TILE_ROWS];
    for (int64_t r = 0; r < rows; ++r)
        tops[r] = largest<BIAS>((int32_t*)(scratch.scores + r * shape.score_stride), last, real,
                                scale, bias + r * a.bias_row_stride);
    I32 totals[TILE_ROWS];
    for (int64_t r = 0; r < rows; ++r) {
        const int32_t* scores = (int32_t*)(scratch.scores + r * shape.score_stride);
        uint8_t* codes = (uint8_t*)scratch.codes + r * shape.code_stride;
        const F32 top = tops[r];
        const auto code = [&](int64_t v) {
            F32 below;
            if constexpr (BIAS)
                below = load<F32>(scores + v * LANES) - top;
            else
                below = to_float(load<I32>(scores + v * LANES)) * scale - top;
            return round_to_int(exponential(below));
        };
        I32 total = {};
        for (int64_t v = 0; v < last; ++v) {
            const I32 found = code(v);
            total += found;
            store(codes + v * LANES, __builtin_convertvector(found, Bytes));
        }
        const I32 found = code(last) & real;  // with a tiny scale NEVER is not far below
        totals[r] = total + found;
        store(codes + last * LANES, __builtin_convertvector(found, Bytes));
    }
    for (int64_t r = 0; r < rows; ++r)
        inverse[r] = 1.0f / (float)across(totals[r], [](I32 a, I32 b) { return a + b; })[0];
}

template <int ROWS>
void block(const Arguments& a, const Shape& shape, const AttentionScratch& scratch, int64_t group,
           int64_t head, int64_t first, int64_t rows) {
    const char* queries =
        (const char*)a.query + (group * a.tokens + first) * a.input_stride + head * a.width;
    int64_t query_stride = a.input_stride;
    if (rows < ROWS) {  // the tile would read rows that are not there
        for (int64_t r = 0; r < rows; ++r)
            std::memcpy(scratch.queries + r * shape.query_stride, queries + r * query_stride,
                        (size_t)a.width);
        queries = scratch.queries;
        query_stride = shape.query_stride;
    }
    panels<ByteProduct, ROWS>(queries, query_stride, scratch.keys, shape.score_words,
                              shape.score_vectors, scratch.start, scratch.scores,
                              shape.score_stride);
    float inverse[TILE_ROWS];
    if (a.score_bias)
        soft_max<true>(a, shape, scratch, bias_row(a, group, head, first), a.score_scale[head],
                       rows, inverse);
    else
        soft_max<false>(a, shape, scratch, nullptr, a.score_scale[head], rows, inverse);
    panels<ByteProduct, ROWS>(scratch.codes, shape.code_stride, scratch.values, shape.value_words,
                              shape.value_vectors, nullptr, scratch.scores, shape.score_stride);
    const AttentionOutput output(a, group, head, first);
    output.rows(rows, [&](int64_t row, int64_t channel) {
        const I32 sums = load<I32>(scratch.scores + row * shape.score_stride + 4 * channel);
        return to_float(sums) * inverse[row];
    });
}

}  // namespace

extern "C" int64_t fxq_attention_scratch(const fxq_attention_arguments* a) {
    return AttentionScratch(nullptr, Shape(a->tokens, a->width)).bytes;
}

extern "C" void fxq_attention(const fxq_attention_arguments* arguments, int32_t part,
                              int32_t parts) {
    const Arguments& a = *arguments;
    const Shape shape(a.tokens, a.width);
    const AttentionScratch scratch(a.scratch, shape);
    for_units(
        a, shape.query_blocks, part, parts,
        [&](int64_t group, int64_t head) {
            const int64_t at = group * a.tokens * a.input_stride + head * a.width;
            pack_keys(a, shape, a.key + at, a.query_zero_point[head], scratch);
            pack_values(a, shape, a.value + at, scratch);
        },
        [&](int64_t group, int64_t head, int64_t first, int64_t rows) {
            with_rows(rows, [&](auto count) {
                block<decltype(count)::value>(a, shape, scratch, group, head, first, rows);
            });
        });
}
