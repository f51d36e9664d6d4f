// Products of bfloat16 by the processor's own instruction, which adds two neighbouring products into each float32 sum.
// A word is two neighbouring values; tokens in the lanes lie as words[k / 2][lane], an odd depth filled up with a zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../common/each.h"
#include "products.h"

namespace {

#if defined(__AVX512BF16__)
template <typename Weight>
constexpr bool PAIRS = std::is_same<Weight, Brain>::value;
constexpr const char* BRAIN_NAME = "avx512_bf16";
#else
template <typename Weight>
constexpr bool PAIRS = false;
constexpr const char* BRAIN_NAME = NAME;
#endif
constexpr int64_t IN_WORD = 2, PAIR_LINE = IN_LINE<Brain>;  // values

// As `tiles` of floats: c[n][lane] (+)= sum over k of b[n·bn + k] · v[k][lane]. Defined where the instruction exists.
template <int W, bool HALF, bool NEXT>
void pair_tiles(int64_t rows, int64_t depth, const Brain* b, int64_t bn, const float* v, int64_t vk, float* c,
                int64_t cn, bool add);

// As `pack_floats`, two values a word: to[k / 2·lanes + lane].
void pack_words(const Brain* const* from, int64_t tokens, int64_t lanes, int64_t depth, float* to);

// Rows of floats (rows x lanes) as words, each value rounded to the nearest.
void pair_rows(const float* from, int64_t rows, int64_t lanes, float* to);

#if defined(__AVX512BF16__)

FB_INLINE inline V multiply_words(V sum, V words, int32_t weights) {
    return V(_mm512_dpbf16_ps(__m512(sum), (__m512bh)words, (__m512bh)_mm512_set1_epi32(weights)));
}

using HalfV = Vector<LANES / 2>::type;

FB_INLINE inline HalfV multiply_words(HalfV sum, HalfV words, int32_t weights) {
    return HalfV(_mm256_dpbf16_ps(__m256(sum), (__m256bh)words, (__m256bh)_mm256_set1_epi32(weights)));
}

// Values 0 and 1 of a row, or value 0 alone.
FB_INLINE inline int32_t word(const Brain* at) {
    int32_t both;
    std::memcpy(&both, at, sizeof both);
    return both;
}
FB_INLINE inline int32_t last_word(const Brain* at) { return at->bits; }

template <int W, bool HALF, int RN, bool NEXT>
inline void pair_tile(int64_t depth, const Brain* b, int64_t bn, const float* v, int64_t vk, float* c, int64_t cn,
                      bool add) {
    constexpr int FULL = W > 0 ? W : 1;
    constexpr int SETS = W + HALF < 2 ? 2 : 1;  // of sums: with one, few lanes would wait for the one before
    V sums[SETS][RN][FULL];
    HalfV halves[SETS][RN];
    each<RN>([&](auto n) FB_INLINE {
        each<W>([&](auto w) FB_INLINE { sums[0][n][w] = add ? load<LANES>(c + n * cn + w * LANES) : V{}; });
        if constexpr (HALF) halves[0][n] = add ? load<LANES / 2>(c + n * cn + W * LANES) : HalfV{};
        each<SETS - 1>([&](auto) FB_INLINE {
            each<W>([&](auto w) FB_INLINE { sums[SETS - 1][n][w] = V{}; });
            halves[SETS - 1][n] = HalfV{};
        });
    });
    constexpr std::integral_constant<int, 0> FIRST{};
    constexpr std::integral_constant<int, SETS - 1> LAST{};
    const auto one = [&](auto set, int64_t k, auto word_of) FB_INLINE {
        const float* at = v + k / IN_WORD * vk;
        V lanes[FULL];
        HalfV half{};
        each<W>([&](auto w) FB_INLINE { lanes[w] = load<LANES>(at + w * LANES); });
        if constexpr (HALF) half = load<LANES / 2>(at + W * LANES);
        each<RN>([&](auto n) FB_INLINE {
            const int32_t weights = word_of(b + n * bn + k);
            each<W>([&](auto w) FB_INLINE { sums[set][n][w] = multiply_words(sums[set][n][w], lanes[w], weights); });
            if constexpr (HALF) halves[set][n] = multiply_words(halves[set][n], half, weights);
        });
    };
    int64_t k = 0;
    if constexpr (NEXT)
        for (; k + PAIR_LINE <= depth; k += PAIR_LINE) {
            const Brain* soon = k + SOON<Brain> < depth ? b + k + SOON<Brain> : b + RN * bn + (k + SOON<Brain> - depth);
            each<RN>([&](auto n) FB_INLINE { __builtin_prefetch(soon + n * bn, 0, SECOND_CACHE); });
            for (int64_t i = 0; i < PAIR_LINE; i += 2 * IN_WORD) {
                one(FIRST, k + i, word);
                one(LAST, k + i + IN_WORD, word);
            }
        }
    for (; k + 2 * IN_WORD <= depth; k += 2 * IN_WORD) {
        one(FIRST, k, word);
        one(LAST, k + IN_WORD, word);
    }
    if (k + IN_WORD <= depth) one(FIRST, k, word), k += IN_WORD;
    if (k < depth) one(LAST, k, last_word);
    each<RN>([&](auto n) FB_INLINE {
        each<SETS - 1>([&](auto) FB_INLINE {
            each<W>([&](auto w) FB_INLINE { sums[0][n][w] += sums[SETS - 1][n][w]; });
            halves[0][n] += halves[SETS - 1][n];
        });
        each<W>([&](auto w) FB_INLINE { store<LANES>(c + n * cn + w * LANES, sums[0][n][w]); });
        if constexpr (HALF) store<LANES / 2>(c + n * cn + W * LANES, halves[0][n]);
    });
}

template <int W, bool HALF, bool NEXT>
void pair_tiles(int64_t rows, int64_t depth, const Brain* b, int64_t bn, const float* v, int64_t vk, float* c,
                int64_t cn, bool add) {
    int64_t n = 0;
    const auto run = [&](auto number) {
        constexpr int RN = decltype(number)::value;
        for (; n + RN <= rows; n += RN)
            pair_tile<W, HALF, RN, NEXT>(depth, b + n * bn, bn, v, vk, c + n * cn, cn, add);
    };
    run(std::integral_constant<int, ROWS>{});
    run(std::integral_constant<int, 2>{});
    run(std::integral_constant<int, 1>{});
}

void pack_words(const Brain* const* from, int64_t tokens, int64_t lanes, int64_t depth, float* to) {
    for (int64_t k0 = 0; k0 < depth; k0 += PAIR_LINE) {
        const int64_t k1 = std::min(k0 + PAIR_LINE, depth), whole = k1 / IN_WORD * IN_WORD;
        for (int64_t i = 0; i < tokens; ++i) {
            for (int64_t k = k0; k < whole; k += IN_WORD) std::memcpy(to + k / IN_WORD * lanes + i, from[i] + k, 4);
            if (whole < k1) to[whole / IN_WORD * lanes + i] = float_of(from[i][whole].bits);
        }
        for (int64_t i = tokens; i < lanes; ++i)
            for (int64_t k = k0; k < k1; k += IN_WORD) to[k / IN_WORD * lanes + i] = 0.0f;
    }
}

// The words of a vector of lanes from two rows of floats.
inline V words_of(V even, V odd) {
    const __m512i low = _mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(__m512(even))));
    const __m512i high = _mm512_cvtepu16_epi32(__m256i(_mm512_cvtneps_pbh(__m512(odd))));
    return V(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

void pair_rows(const float* from, int64_t rows, int64_t lanes, float* to) {
    for (int64_t n = 0; n < rows; n += IN_WORD) {
        const float *even = from + n * lanes, *odd = even + lanes;
        float* words = to + n / IN_WORD * lanes;
        for (int64_t i = 0; i < lanes; i += LANES) {
            const __mmask16 here = lanes - i >= LANES ? 0xFFFF : 0x00FF;
            const V second = n + 1 < rows ? V(_mm512_maskz_loadu_ps(here, odd + i)) : V{};
            const V found = words_of(V(_mm512_maskz_loadu_ps(here, even + i)), second);
            _mm512_mask_storeu_ps(words + i, here, __m512(found));
        }
    }
}

#endif

}  // namespace
