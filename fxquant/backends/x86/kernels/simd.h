// Vectors of 32-bit lanes for one instruction set, chosen by the compiler's flags. Kernels are
// written once on these names and compiled once per instruction set.
//
// Arithmetic, comparison and `c ? a : b` are the compiler's own on vectors. What follows is the
// rest: memory, conversions, the u8 x s8 dot product, narrowing to bytes.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define FXQ_LANES 16
#else
#define FXQ_LANES 8
#endif

namespace fxq {

constexpr int LANES = FXQ_LANES;
// Columns of one packed panel: four vectors, so that a tile of 6 rows fills the registers of
// AVX-512 (24 accumulators, 4 weights, 1 broadcast).
constexpr int PANEL = 4 * LANES;
// The code of probability one: where dot() saturates above 7-bit codes, the largest that does not.
#if defined(__AVX2__) && !defined(__AVXVNNI__) && FXQ_LANES == 8
constexpr int PROBABILITY_CODES = 127;
#else
constexpr int PROBABILITY_CODES = 255;
#endif

typedef float F32 __attribute__((vector_size(4 * FXQ_LANES)));
typedef int32_t I32 __attribute__((vector_size(4 * FXQ_LANES)));

template <typename V, typename T>
inline V load(const T* from) {  // unaligned
    V value;
    std::memcpy(&value, from, sizeof(V));
    return value;
}
template <typename V, typename T>
inline void store(T* to, V value) {  // unaligned
    std::memcpy(to, &value, sizeof(V));
}
inline F32 splat(float value) { return F32{} + value; }
inline I32 splat(int32_t value) { return I32{} + value; }
// The four bytes at `from`, in every lane.
inline I32 splat4(const void* from) {
    int32_t word;
    std::memcpy(&word, from, 4);
    return splat(word);
}
inline F32 to_float(I32 value) { return __builtin_convertvector(value, F32); }
#if FXQ_LANES == 16  // GCC makes two instructions of a comparison
inline F32 max(F32 a, F32 b) { return (F32)_mm512_max_ps((__m512)a, (__m512)b); }
inline F32 min(F32 a, F32 b) { return (F32)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline F32 max(F32 a, F32 b) { return (F32)_mm256_max_ps((__m256)a, (__m256)b); }
inline F32 min(F32 a, F32 b) { return (F32)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline F32 max(F32 a, F32 b) { return a > b ? a : b; }
inline F32 min(F32 a, F32 b) { return a < b ? a : b; }
#endif
inline I32 max(I32 a, I32 b) { return a > b ? a : b; }
inline I32 min(I32 a, I32 b) { return a < b ? a : b; }
inline I32 bits(F32 value) { return (I32)value; }    // the same bits, not the same value
inline F32 floats(I32 value) { return (F32)value; }

inline float sum(F32 value) {
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += value[i];
    return total;
}
inline int32_t sum(I32 value) {
    int32_t total = 0;
    for (int i = 0; i < LANES; ++i) total += value[i];
    return total;
}
inline float largest(F32 value) {
    float found = value[0];
    for (int i = 1; i < LANES; ++i) found = value[i] > found ? value[i] : found;
    return found;
}

// Nearest integer, ties to even, for |value| < 2^22 (clamp first: beyond that it is undefined).
inline I32 round_to_int(F32 value) {
#if FXQ_LANES == 16
    return (I32)_mm512_cvtps_epi32((__m512)value);
#elif defined(__AVX2__)
    return (I32)_mm256_cvtps_epi32((__m256)value);
#else
    const F32 magic = splat(12582912.0f);  // 1.5 * 2^23: the sum's low mantissa bits are the integer
    return bits(value + magic) - bits(magic);
#endif
}

// accumulator + sum over the four bytes of each lane of unsigned * signed.
inline I32 dot(I32 accumulator, I32 unsigned_bytes, I32 signed_bytes) {
#if FXQ_LANES == 16
    return (I32)_mm512_dpbusd_epi32((__m512i)accumulator, (__m512i)unsigned_bytes,
                                    (__m512i)signed_bytes);
#elif defined(__AVXVNNI__)
    return (I32)_mm256_dpbusd_avx_epi32((__m256i)accumulator, (__m256i)unsigned_bytes,
                                        (__m256i)signed_bytes);
#elif defined(__AVX2__)
    // Pairs are added in 16 bits, which saturates above 7-bit codes: planning allows no more here.
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)unsigned_bytes, (__m256i)signed_bytes);
    return accumulator + (I32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int byte = 0; byte < 4; ++byte) {
        const I32 left = (unsigned_bytes >> (8 * byte)) & 255;
        const I32 right = (signed_bytes << (24 - 8 * byte)) >> 24;
        accumulator += left * right;
    }
    return accumulator;
#endif
}

// LANES bytes, each lane clamped to 0..255.
inline void store_bytes(uint8_t* to, I32 value) {
#if FXQ_LANES == 16
    const __m512i floor = _mm512_max_epi32((__m512i)value, _mm512_setzero_si512());
    _mm_storeu_si128((__m128i*)to, _mm512_cvtusepi32_epi8(floor));
#elif defined(__AVX2__)
    const __m128i low = _mm256_castsi256_si128((__m256i)value);
    const __m128i words = _mm_packs_epi32(low, _mm256_extracti128_si256((__m256i)value, 1));
    _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(words, words));
#else
    value = min(max(value, splat(0)), splat(255));
    for (int i = 0; i < LANES; ++i) to[i] = (uint8_t)value[i];
#endif
}
// PANEL bytes from four vectors, each lane clamped to 0..255.
inline void store_bytes4(uint8_t* to, I32 a, I32 b, I32 c, I32 d) {
#if FXQ_LANES == 16
    const __m512i low = _mm512_packs_epi32((__m512i)a, (__m512i)b);
    const __m512i high = _mm512_packs_epi32((__m512i)c, (__m512i)d);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_packus_epi16(low, high);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, bytes));
#elif defined(__AVX2__)
    const __m256i low = _mm256_packs_epi32((__m256i)a, (__m256i)b);
    const __m256i high = _mm256_packs_epi32((__m256i)c, (__m256i)d);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_packus_epi16(low, high);
    _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32(bytes, order));
#else
    store_bytes(to, a);
    store_bytes(to + LANES, b);
    store_bytes(to + 2 * LANES, c);
    store_bytes(to + 3 * LANES, d);
#endif
}

// The first `count` lanes; the rest is zero, or left alone in memory.
template <typename V, typename T>
inline V load_some(const T* from, int count) {
    V value = {};
    std::memcpy(&value, from, 4 * (size_t)count);
    return value;
}
template <typename V, typename T>
inline void store_some(T* to, V value, int count) {
    std::memcpy(to, &value, 4 * (size_t)count);
}
inline void store_some_bytes(uint8_t* to, I32 value, int count) {
    uint8_t all[LANES];
    store_bytes(all, value);
    std::memcpy(to, all, (size_t)count);
}

}  // namespace fxq
