// Attention in float, with products in bf16 where the CPU has them: the int8 kernel's structure on
// words of two bf16 numbers, or of one float.
#include "attention.h"

#include "exponential.h"

namespace {

using namespace fxq;
using Arguments = fxq_float_attention_arguments;

#if FXQ_LANES == 16 && defined(__AVX512BF16__)

constexpr int WORD = 2;

// LANES words of a row: of 2 * LANES numbers, where `remaining` numbers are still in the row.
I32 row_words(const float* from, int64_t remaining) {
    const __m512 high = remaining > LANES ? _mm512_loadu_ps(from + LANES) : _mm512_setzero_ps();
    return (I32)_mm512_cvtne2ps_pbh(high, _mm512_loadu_ps(from));
}
// LANES words of two rows, one number of each.
I32 column_words(const F32 (&rows)[WORD]) {
    const __m256i first = (__m256i)_mm512_cvtneps_pbh((__m512)rows[0]);
    const __m256i second = (__m256i)_mm512_cvtneps_pbh((__m512)rows[1]);
    return (I32)_mm512_cvtepu16_epi32(first) | (I32)_mm512_cvtepu16_epi32(second) << 16;
}
void store_numbers(char* codes, int64_t vector, F32 value) {
    store(codes + vector * LANES * 2, (__m256i)_mm512_cvtneps_pbh((__m512)value));
}
struct FloatProduct {
    using Vector = F32;
    static F32 dot(F32 sum, I32 left, I32 right) {
        return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
    }
};

#else

constexpr int WORD = 1;

I32 row_words(const float* from, int64_t) { return load<I32>(from); }
I32 column_words(const F32 (&rows)[WORD]) { return bits(rows[0]); }
void store_numbers(char* codes, int64_t vector, F32 value) {
    store(codes + vector * LANES * 4, value);
}
struct FloatProduct {
    using Vector = F32;
    static F32 dot(F32 sum, I32 left, I32 right) { return floats(left) * floats(right) + sum; }
};

#endif

using Shape = AttentionShape<WORD>;

void pack_keys(const Arguments& a, const Shape& shape, const float* key,
               const AttentionScratch& scratch) {
    for (int64_t vector = 0; vector < shape.score_vectors; ++vector) {
        const Packed to(scratch.keys, vector, shape.score_words, shape.score_vectors);
        const int64_t first = vector * LANES;
        for (int64_t word = 0; word < shape.score_words; word += LANES) {
            I32 block[LANES];
            for (int i = 0; i < LANES; ++i)
                block[i] = first + i < shape.tokens
                               ? row_words(key + (first + i) * a.input_stride + word * WORD,
                                           shape.width - word * WORD)
                               : I32{};
            transpose(block);
            const int64_t count = std::min<int64_t>(LANES, shape.score_words - word);
            for (int64_t i = 0; i < count; ++i) store(to.row(word + i), block[i]);
        }
    }
}

void pack_values(const Arguments& a, const Shape& shape, const float* value,
                 const AttentionScratch& scratch) {
    for (int64_t vector = 0; vector < shape.value_vectors; ++vector) {
        const Packed to(scratch.values, vector, shape.value_words, shape.value_vectors);
        for (int64_t word = 0; word < shape.value_words; ++word) {
            F32 rows[WORD];
            for (int i = 0; i < WORD; ++i) {
                const int64_t token = word * WORD + i;
                rows[i] = token < shape.tokens
                              ? load<F32>(value + token * a.input_stride + vector * LANES)
                              : F32{};
            }
            store(to.row(word), column_words(rows));
        }
    }
}

// Scales a row of scores, adds the bias and returns the largest.
template <bool BIAS>
F32 largest(float* scores, int64_t last, I32 real, float scale, const float* bias) {
    F32 top = splat(-3e38f);
    const auto scaled = [&](int64_t v) {
        const F32 score = load<F32>(scores + v * LANES) * scale;
        return BIAS ? score + load<F32>(bias + v * LANES) : score;
    };
    const auto keep = [&](int64_t v, F32 score) {
        store(scores + v * LANES, score);
        top = max(top, score);
    };
    for (int64_t v = 0; v < last; ++v) keep(v, scaled(v));
    const F32 score = scaled(last);
    keep(last, real ? score : splat(-3e38f));
    return across(top, [](F32 a, F32 b) { return max(a, b); });
}

// Turns a row of scores into probabilities.
void probabilities(float* scores, char* codes, int64_t last, I32 real, F32 top,
                   Exponential exponential) {
    F32 total = {};
    const auto keep = [&](int64_t v, F32 found) {
        store(scores + v * LANES, found);
        total += found;
    };
    for (int64_t v = 0; v < last; ++v)
        keep(v, exponential(load<F32>(scores + v * LANES) - top));
    keep(last, floats(bits(exponential(load<F32>(scores + last * LANES) - top)) & real));
    const F32 inverse = 1.0f / across(total, [](F32 a, F32 b) { return a + b; });
    for (int64_t v = 0; v <= last; ++v)
        store_numbers(codes, v, load<F32>(scores + v * LANES) * inverse);
}

template <int ROWS>
void block(const Arguments& a, const Shape& shape, const AttentionScratch& scratch, int64_t group,
           int64_t head, int64_t first, int64_t rows) {
    const float* queries = a.query + (group * a.tokens + first) * a.input_stride + head * a.width;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t word = 0; word < shape.score_words; word += LANES)
            store(scratch.queries + r * shape.query_stride + word * 4,
                  row_words(queries + r * a.input_stride + word * WORD,
                            shape.width - word * WORD));
    panels<FloatProduct, ROWS>(scratch.queries, shape.query_stride, scratch.keys,
                               shape.score_words, shape.score_vectors, nullptr, scratch.scores,
                               shape.score_stride);

    const int64_t last = shape.score_vectors - 1;
    const I32 real = lane_numbers() < splat((int32_t)(shape.tokens - last * LANES));
    const Exponential exponential(1.0f);
    F32 tops[ROWS];
    for (int64_t r = 0; r < rows; ++r) {
        float* row = (float*)(scratch.scores + r * shape.score_stride);
        tops[r] = a.score_bias ? largest<true>(row, last, real, a.score_scale,
                                               bias_row(a, group, head, first + r))
                               : largest<false>(row, last, real, a.score_scale, nullptr);
    }
    for (int64_t r = 0; r < rows; ++r)
        probabilities((float*)(scratch.scores + r * shape.score_stride),
                      scratch.codes + r * shape.code_stride, last, real, tops[r], exponential);

    panels<FloatProduct, ROWS>(scratch.codes, shape.code_stride, scratch.values,
                               shape.value_words, shape.value_vectors, nullptr, scratch.scores,
                               shape.score_stride);
    const AttentionOutput output(a, group, head, first);
    output.rows(rows, [&](int64_t row, int64_t channel) {
        return load<F32>(scratch.scores + row * shape.score_stride + 4 * channel);
    });
}

}  // namespace

extern "C" int64_t fxq_float_attention_scratch(const fxq_float_attention_arguments* a) {
    return AttentionScratch(nullptr, Shape(a->tokens, a->width)).bytes;
}

extern "C" void fxq_float_attention(const fxq_float_attention_arguments* arguments, int32_t part,
                                    int32_t parts) {
    const Arguments& a = *arguments;
    const Shape shape(a.tokens, a.width);
    const AttentionScratch scratch(a.scratch, shape);
    for_units(
        a, shape.query_blocks, part, parts,
        [&](int64_t group, int64_t head) {
            const int64_t at = group * a.tokens * a.input_stride + head * a.width;
            pack_keys(a, shape, a.key + at, scratch);
            pack_values(a, shape, a.value + at, scratch);
        },
        [&](int64_t group, int64_t head, int64_t first, int64_t rows) {
            with_rows(rows, [&](auto count) {
                block<decltype(count)::value>(a, shape, scratch, group, head, first, rows);
            });
        });
}
