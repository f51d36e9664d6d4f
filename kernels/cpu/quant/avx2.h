// AVX2: products of bytes in pairs, with the sign of a weight moved to the activation so that no sum of two saturates.
#pragma once

#include <immintrin.h>

#include "../common/each.h"
#include "format.h"

namespace {

constexpr const char* NAME = "avx2";
constexpr int MOST_TOKENS = 4, MOST_PANELS = 4;  // of a tile; one panel after another, of eight sums in 16 registers
constexpr int FEW_TOKENS = 1;                    // that use 4-bit weights as they are unpacked
constexpr int64_t AHEAD = 4096;                   // bytes between a read of weights and its prefetch
constexpr int PARTS = 2;                         // vectors of the rows of a panel

typedef int32_t Sums __attribute__((vector_size(32)));  // its own type: as __m256i, GCC keeps copies in memory

inline float largest(__m256 v) {
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

// Scale of a block of activations and its int8 codes; their sum is not needed here.
inline void quantise(const float* x, int8_t* codes, float* scale, int32_t* sum) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    __m256 most = _mm256_setzero_ps();
    for (int i = 0; i < DEPTH; i += 8) most = _mm256_max_ps(most, _mm256_and_ps(_mm256_loadu_ps(x + i), magnitude));
    const float top = largest(most);
    const __m256 inverse = _mm256_set1_ps(top > 0.0f ? LIMIT / top : 0.0f);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < DEPTH; i += 32) {
        __m256i whole[4];
        for (int j = 0; j < 4; ++j) whole[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * j), inverse));
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
        _mm256_store_si256(reinterpret_cast<__m256i*>(codes + i), _mm256_permutevar8x32_epi32(bytes, order));
    }
    *scale = top / LIMIT;
    *sum = 0;
}

FB_INLINE inline __m256i bytes_at(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

FB_INLINE inline __m256i four(const int8_t* codes) {
    int32_t found;
    std::memcpy(&found, codes, 4);
    return _mm256_set1_epi32(found);
}

FB_INLINE inline void finish(Sums total, float scale, float* to, bool add) {
    const __m256 before = add ? _mm256_loadu_ps(to) : _mm256_setzero_ps();
    _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(__m256i(total)), _mm256_set1_ps(scale), before));
}

// Sums of four products each; `factors` multiply pairs of neighbours.
FB_INLINE inline Sums products(__m256i unsigned_bytes, __m256i signed_bytes, __m256i factors) {
    return Sums(_mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_bytes, signed_bytes), factors));
}

// A 4-bit block for the instructions above: weights are scale · code + floor, so codes are multiplied first, scales
// take the place of the ones that add up pairs, and floors meet the activations' sums.
struct Fields {
    __m256i low = _mm256_set1_epi8(0x0F), ones = _mm256_set1_epi16(1), by_scale, by_offset, words[PARTS], rows[PARTS];

    Fields() {
        alignas(16) int8_t scales[16], offsets[16];
        for (int i = 0; i < 16; ++i) {
            scales[i] = int8_t(group_floor(i + 1, 8));
            offsets[i] = int8_t(OFFSET_STEP * (i - 8));
        }
        by_scale = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(scales)));
        by_offset = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(offsets)));
        for (int p = 0; p < PARTS; ++p) {
            rows[p] = _mm256_mullo_epi32(_mm256_setr_epi32(8 * p, 8 * p + 1, 8 * p + 2, 8 * p + 3, 8 * p + 4, 8 * p + 5, 8 * p + 6, 8 * p + 7),
                                         _mm256_set1_epi32(0x01010101));
            words[p] = _mm256_or_si256(rows[p], _mm256_set1_epi16(short(0x8000)));  // upper bytes become 0
        }
    }
};

// Scales of a group in words; the two parts of its floors in bytes, since their sum may need more.
struct Group16 {
    __m256i scale[PARTS], base[PARTS], offset[PARTS];
    FB_INLINE Group16(const Fields& f, const uint8_t* at) {
        const __m256i fields = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
        const __m256i scale_code = _mm256_and_si256(fields, f.low);
        const __m256i offset_code = _mm256_and_si256(_mm256_srli_epi16(fields, 4), f.low);
        const __m256i factor = _mm256_add_epi8(scale_code, _mm256_set1_epi8(1));
        const __m256i bases = _mm256_shuffle_epi8(f.by_scale, scale_code);
        const __m256i offsets = _mm256_shuffle_epi8(f.by_offset, offset_code);
        each<PARTS>([&](auto p) FB_INLINE {
            scale[p] = _mm256_shuffle_epi8(factor, f.words[p]);
            base[p] = _mm256_shuffle_epi8(bases, f.rows[p]);
            offset[p] = _mm256_shuffle_epi8(offsets, f.rows[p]);
        });
    }
};

inline void unpack(const Fields& f, const uint8_t* block, uint8_t* out, int64_t ahead) {
    for (int64_t i = 0; i < 2 * HALF4; i += LINE) __builtin_prefetch(block + i + ahead, 0, SECOND_CACHE);
    const __m256i zero = _mm256_set1_epi8(char(ZERO));
    for (int64_t h = 0; h < 2; ++h)
        for (int64_t g = 0; g < HALF / GROUP; ++g) {
            const uint8_t* half = block + h * HALF4;
            const Group16 group(f, half + g * ROWS);
            uint8_t* to = out + h * CODES8 / 2 + g * 256;
            each<2>([&](auto j) FB_INLINE {
                each<PARTS>([&](auto p) FB_INLINE {
                    const __m256i both = bytes_at(half + 64 + g * 128 + j * 64 + p * 32);
                    const __m256i base = _mm256_add_epi8(_mm256_add_epi8(group.base[p], group.offset[p]), zero);
                    const auto put = [&](int64_t q, __m256i codes) FB_INLINE {
                        const __m256i value = _mm256_add_epi8(_mm256_mullo_epi16(codes, group.scale[p]), base);
                        _mm256_store_si256(reinterpret_cast<__m256i*>(to + q * 64 + p * 32), value);
                    };
                    put(2 * j, _mm256_and_si256(both, f.low));
                    put(2 * j + 1, _mm256_and_si256(_mm256_srli_epi16(both, 4), f.low));
                });
            });
        }
}

template <int M>
inline void one_panel(const uint8_t* weights, const int8_t* codes, const float* scale, float* c, int64_t apart, bool add,
                      int64_t ahead) {
    const __m256i zero = _mm256_set1_epi8(char(ZERO)), ones = _mm256_set1_epi16(1);
    Sums total[M][PARTS] = {};
    for (int64_t q = 0; q < DEPTH / QUAD; ++q) {
        __m256i weight[PARTS], magnitude[PARTS];
        if (ahead) __builtin_prefetch(weights + q * 64 + ahead, 0, SECOND_CACHE);
        each<PARTS>([&](auto p) FB_INLINE {
            weight[p] = _mm256_xor_si256(bytes_at(weights + q * 64 + 32 * p), zero);
            magnitude[p] = _mm256_abs_epi8(weight[p]);
        });
        each<M>([&](auto m) FB_INLINE {
            const __m256i a = four(codes + m * DEPTH + q * QUAD);
            each<PARTS>([&](auto p) FB_INLINE {
                total[m][p] += products(magnitude[p], _mm256_sign_epi8(a, weight[p]), ones);
            });
        });
    }
    each<M>([&](auto m) FB_INLINE {
        each<PARTS>([&](auto p) FB_INLINE { finish(total[m][p], scale[m], c + m * apart + 8 * p, add); });
    });
}

// c[m][16·v + row] (+)= scale[m] · sum over a block of weight · activation, for M tokens and V panels.
template <int M, int V>
inline void tile(const uint8_t* const* weights, const int8_t* codes, const float* scale, const int32_t*, float* c,
                 int64_t apart, bool add, int64_t ahead) {
    for (int v = 0; v < V; ++v) one_panel<M>(weights[v], codes, scale, c + v * ROWS, apart, add, ahead);
}

// The same for one panel of 4-bit weights and so few tokens that its codes are used at once rather than stored.
template <int M>
inline void tile(const Fields& f, const uint8_t* block, const int8_t* codes, const float* scale, const int32_t*, float* c,
                 int64_t apart, bool add, int64_t ahead) {
    Sums total[M][PARTS] = {};
    for (int64_t g = 0; g < DEPTH / GROUP; ++g) {
        const uint8_t* half = block + g / 4 * HALF4;
        const Group16 group(f, half + g % 4 * ROWS);
        const uint8_t* at = half + 64 + g % 4 * 128;
        each<3>([&](auto i) FB_INLINE { __builtin_prefetch(at + i * LINE + ahead, 0, SECOND_CACHE); });
        __m256i fours[M];  // of each token, sums of four neighbouring activations of the group: floors multiply them
        each<M>([&](auto m) FB_INLINE { fours[m] = _mm256_setzero_si256(); });
        each<2>([&](auto j) FB_INLINE {
            __m256i part[PARTS][2];
            each<PARTS>([&](auto p) FB_INLINE {
                const __m256i both = bytes_at(at + j * 64 + p * 32);
                part[p][0] = _mm256_and_si256(both, f.low);
                part[p][1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), f.low);
            });
            each<M>([&](auto m) FB_INLINE {
                each<2>([&](auto n) FB_INLINE {
                    const __m256i a = four(codes + m * DEPTH + g * GROUP + (2 * j + n) * QUAD);
                    fours[m] = _mm256_add_epi16(fours[m], _mm256_maddubs_epi16(_mm256_set1_epi8(1), a));
                    each<PARTS>([&](auto p) FB_INLINE { total[m][p] += products(part[p][n], a, group.scale[p]); });
                });
            });
        });
        each<M>([&](auto m) FB_INLINE {
            each<PARTS>([&](auto p) FB_INLINE {
                // Bytes of a row are all alike: widened to words, they multiply pairs of the sums.
                const __m256i floor = _mm256_add_epi16(_mm256_srai_epi16(group.base[p], 8), _mm256_srai_epi16(group.offset[p], 8));
                total[m][p] += Sums(_mm256_madd_epi16(fours[m], floor));
            });
        });
    }
    each<M>([&](auto m) FB_INLINE {
        each<PARTS>([&](auto p) FB_INLINE { finish(total[m][p], scale[m], c + m * apart + 8 * p, add); });
    });
}

template <int M>
inline void one_panel(const uint8_t* weights, const float* x, float* c, int64_t apart, bool add, int64_t ahead) {
    __m256 total[M][PARTS];
    const auto place = [&](int m, int p) FB_INLINE { return c + m * apart + 8 * p; };
    each<M>([&](auto m) FB_INLINE {
        each<PARTS>([&](auto p) FB_INLINE { total[m][p] = add ? _mm256_loadu_ps(place(m, p)) : _mm256_setzero_ps(); });
    });
    for (int64_t k = 0; k < DEPTH; ++k) {
        const float* w = reinterpret_cast<const float*>(weights) + k * ROWS;
        if (ahead) __builtin_prefetch(weights + k * 64 + ahead, 0, SECOND_CACHE);
        each<M>([&](auto m) FB_INLINE {
            const __m256 a = _mm256_set1_ps(x[m * DEPTH + k]);
            each<PARTS>([&](auto p) FB_INLINE { total[m][p] = _mm256_fmadd_ps(_mm256_loadu_ps(w + 8 * p), a, total[m][p]); });
        });
    }
    each<M>([&](auto m) FB_INLINE {
        each<PARTS>([&](auto p) FB_INLINE { _mm256_storeu_ps(place(m, p), total[m][p]); });
    });
}

template <int M, int V>
inline void tile(const uint8_t* const* weights, const float* x, float* c, int64_t apart, bool add, int64_t ahead) {
    for (int v = 0; v < V; ++v) one_panel<M>(weights[v], x, c + v * ROWS, apart, add, ahead);
}

}  // namespace
