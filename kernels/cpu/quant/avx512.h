// AVX-512 with VNNI: one instruction adds four products of bytes into each of sixteen sums.
#pragma once

#include <immintrin.h>

#include "../common/each.h"
#include "format.h"

namespace {

constexpr const char* NAME = "avx512_vnni";
constexpr int MOST_TOKENS = 6, MOST_PANELS = 4;  // of a tile: 24 sums and 4 vectors of weights in 32 registers
constexpr int FEW_TOKENS = 4;                    // that use 4-bit weights as they are unpacked
constexpr int64_t AHEAD = 2048;                   // bytes between a read of weights and its prefetch

// Scale of a block of activations, its int8 codes and their sum.
inline void quantise(const float* x, int8_t* codes, float* scale, int32_t* sum) {
    __m512 values[8], most = _mm512_setzero_ps();
    for (int i = 0; i < 8; ++i) {
        values[i] = _mm512_loadu_ps(x + 16 * i);
        most = _mm512_max_ps(most, _mm512_abs_ps(values[i]));
    }
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 inverse = _mm512_set1_ps(largest > 0.0f ? LIMIT / largest : 0.0f);
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < 8; ++i) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], inverse));
        total = _mm512_add_epi32(total, whole);
        _mm_store_si128(reinterpret_cast<__m128i*>(codes + 16 * i), _mm512_cvtepi32_epi8(whole));
    }
    *scale = largest / LIMIT;
    *sum = _mm512_reduce_add_epi32(total);
}

// Tables of what a scale and an offset add to the code, and where the fields of a row stand.
struct Fields {
    __m512i low = _mm512_set1_epi8(0x0F), by_scale, by_offset, row, row_in_words;

    Fields() {
        alignas(16) int8_t scales[16], offsets[16];
        for (int i = 0; i < 16; ++i) {
            scales[i] = int8_t(ZERO + group_floor(i + 1, 8));
            offsets[i] = int8_t(OFFSET_STEP * (i - 8));
        }
        by_scale = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(scales)));
        by_offset = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(offsets)));
        // Row 4i + j of the sixteen stands in bytes 4j..4j+3 of lane i.
        row = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                 _mm512_set1_epi32(0x01010101));
        row_in_words = _mm512_or_si512(row, _mm512_set1_epi16(short(0x8000)));  // upper bytes become 0
    }
};

// Half a block of 4-bit weights as bytes, sixteen vectors in order: visit(number, vector). Two bytes are multiplied at
// once: no product exceeds a byte.
template <typename Visit>
FB_INLINE inline void unpack_half(const Fields& f, const uint8_t* half, Visit visit) {
    const __m512i fields = _mm512_loadu_si512(half);
    const __m512i scale_code = _mm512_and_si512(fields, f.low);
    const __m512i offset_code = _mm512_and_si512(_mm512_srli_epi16(fields, 4), f.low);
    const __m512i scale = _mm512_add_epi8(scale_code, _mm512_set1_epi8(1));
    const __m512i floor = _mm512_add_epi8(_mm512_shuffle_epi8(f.by_scale, scale_code),
                                          _mm512_shuffle_epi8(f.by_offset, offset_code));
    each<4>([&](auto g) FB_INLINE {
        constexpr int LANE = g * 0x55;
        const __m512i factor = _mm512_shuffle_epi8(_mm512_shuffle_i32x4(scale, scale, LANE), f.row_in_words);
        const __m512i base = _mm512_shuffle_epi8(_mm512_shuffle_i32x4(floor, floor, LANE), f.row);
        each<2>([&](auto j) FB_INLINE {
            const __m512i both = _mm512_loadu_si512(half + 64 + 128 * g + 64 * j);
            const __m512i first = _mm512_and_si512(both, f.low);
            const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), f.low);
            visit(4 * g + 2 * j, _mm512_add_epi8(_mm512_mullo_epi16(first, factor), base));
            visit(4 * g + 2 * j + 1, _mm512_add_epi8(_mm512_mullo_epi16(second, factor), base));
        });
    });
}

inline void unpack(const Fields& f, const uint8_t* block, uint8_t* out, int64_t ahead) {
    for (int64_t i = 0; i < 2 * HALF4; i += LINE) __builtin_prefetch(block + i + ahead, 0, SECOND_CACHE);
    for (int64_t h = 0; h < 2; ++h)
        unpack_half(f, block + h * HALF4, [&](int64_t q, __m512i bytes) FB_INLINE {
            _mm512_store_si512(out + h * CODES8 / 2 + 64 * q, bytes);
        });
}

typedef int32_t Sums __attribute__((vector_size(64)));  // its own type: as __m512i, GCC keeps copies in memory

inline int32_t four(const int8_t* codes) {
    int32_t found;
    std::memcpy(&found, codes, 4);
    return found;
}

FB_INLINE inline void finish(Sums total, float scale, float* to, bool add) {
    const __m512 before = add ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
    _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(__m512i(total)), _mm512_set1_ps(scale), before));
}

// c[m][16·v + row] (+)= scale[m] · sum over a block of weight · activation, for M tokens and V panels.
template <int M, int V>
inline void tile(const uint8_t* const* weights, const int8_t* codes, const float* scale, const int32_t* sums, float* c,
                 int64_t apart, bool add, int64_t ahead) {
    Sums total[M][V];
    each<M>([&](auto m) FB_INLINE {
        const Sums start = Sums(_mm512_set1_epi32(-ZERO * sums[m]));
        each<V>([&](auto v) FB_INLINE { total[m][v] = start; });
    });
    for (int64_t q = 0; q < DEPTH / QUAD; ++q) {
        __m512i w[V];
        each<V>([&](auto v) FB_INLINE {
            w[v] = _mm512_loadu_si512(weights[v] + q * 64);
            if (ahead) __builtin_prefetch(weights[v] + q * 64 + ahead, 0, SECOND_CACHE);
        });
        each<M>([&](auto m) FB_INLINE {
            const __m512i a = _mm512_set1_epi32(four(codes + m * DEPTH + q * QUAD));
            each<V>([&](auto v) FB_INLINE { total[m][v] = Sums(_mm512_dpbusd_epi32(__m512i(total[m][v]), w[v], a)); });
        });
    }
    each<M>([&](auto m) FB_INLINE {
        each<V>([&](auto v) FB_INLINE { finish(total[m][v], scale[m], c + m * apart + v * ROWS, add); });
    });
}

// The same for one panel of 4-bit weights and so few tokens that its bytes are used at once rather than stored.
template <int M>
inline void tile(const Fields& f, const uint8_t* block, const int8_t* codes, const float* scale, const int32_t* sums,
                 float* c, int64_t apart, bool add, int64_t ahead) {
    Sums total[M];
    each<M>([&](auto m) FB_INLINE { total[m] = Sums(_mm512_set1_epi32(-ZERO * sums[m])); });
    for (int64_t h = 0; h < 2; ++h) {
        const uint8_t* half = block + h * HALF4;
        const int8_t* from = codes + h * HALF;
        each<HALF4 / LINE>([&](auto i) FB_INLINE { __builtin_prefetch(half + i * LINE + ahead, 0, SECOND_CACHE); });
        unpack_half(f, half, [&](int64_t q, __m512i bytes) FB_INLINE {
            each<M>([&](auto m) FB_INLINE {
                const __m512i a = _mm512_set1_epi32(four(from + m * DEPTH + q * QUAD));
                total[m] = Sums(_mm512_dpbusd_epi32(__m512i(total[m]), bytes, a));
            });
        });
    }
    each<M>([&](auto m) FB_INLINE { finish(total[m], scale[m], c + m * apart, add); });
}

template <int M, int V>
inline void tile(const uint8_t* const* weights, const float* x, float* c, int64_t apart, bool add, int64_t ahead) {
    __m512 total[M][V];
    each<M>([&](auto m) FB_INLINE {
        each<V>([&](auto v) FB_INLINE { total[m][v] = add ? _mm512_loadu_ps(c + m * apart + v * ROWS) : _mm512_setzero_ps(); });
    });
    for (int64_t k = 0; k < DEPTH; ++k) {
        __m512 w[V];
        each<V>([&](auto v) FB_INLINE {
            w[v] = _mm512_loadu_ps(weights[v] + k * 64);
            if (ahead) __builtin_prefetch(weights[v] + k * 64 + ahead, 0, SECOND_CACHE);
        });
        each<M>([&](auto m) FB_INLINE {
            const __m512 a = _mm512_set1_ps(x[m * DEPTH + k]);
            each<V>([&](auto v) FB_INLINE { total[m][v] = _mm512_fmadd_ps(w[v], a, total[m][v]); });
        });
    }
    each<M>([&](auto m) FB_INLINE {
        each<V>([&](auto v) FB_INLINE { _mm512_storeu_ps(c + m * apart + v * ROWS, total[m][v]); });
    });
}

}  // namespace
