// ARM with dot products of bytes: one instruction adds four products into each of four sums.
#pragma once

#include <arm_neon.h>

#include "../common/each.h"
#include "format.h"

namespace {

constexpr const char* NAME = "neon_dot";
constexpr int MOST_TOKENS = 4, MOST_PANELS = 4;  // of a tile; one panel after another, of 16 sums in 32 registers
constexpr int FEW_TOKENS = 0;                    // every 4-bit block is unpacked before it is used
constexpr int64_t AHEAD = 2048;                  // bytes between a read of weights and its prefetch
constexpr int PARTS = 4;                         // vectors of the rows of a panel

// Scale of a block of activations and its int8 codes; their sum is not needed here.
inline void quantise(const float* x, int8_t* codes, float* scale, int32_t* sum) {
    float32x4_t most = vdupq_n_f32(0.0f);
    for (int i = 0; i < DEPTH; i += 4) most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + i)));
    const float top = vmaxvq_f32(most);
    const float32x4_t inverse = vdupq_n_f32(top > 0.0f ? LIMIT / top : 0.0f);
    for (int i = 0; i < DEPTH; i += 16) {
        int32x4_t whole[4];
        each<4>([&](auto j) FB_INLINE { whole[j] = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i + 4 * j), inverse)); });
        const int16x8_t low = vcombine_s16(vqmovn_s32(whole[0]), vqmovn_s32(whole[1]));
        const int16x8_t high = vcombine_s16(vqmovn_s32(whole[2]), vqmovn_s32(whole[3]));
        vst1q_s8(codes + i, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    }
    *scale = top / LIMIT;
    *sum = 0;
}

// Tables of what a scale and an offset add to the code, and where the fields of a row stand.
struct Fields {
    uint8x16_t by_scale, by_offset, rows[PARTS], words[PARTS];

    Fields() {
        uint8_t scales[16], offsets[16], row[16], word[16];
        for (int i = 0; i < 16; ++i) {
            scales[i] = uint8_t(ZERO + group_floor(i + 1, 8));
            offsets[i] = uint8_t(OFFSET_STEP * (i - 8));
        }
        by_scale = vld1q_u8(scales), by_offset = vld1q_u8(offsets);
        for (int p = 0; p < PARTS; ++p) {
            for (int i = 0; i < 16; ++i) {
                row[i] = uint8_t(4 * p + i / 4);
                word[i] = i % 2 ? 0xFF : row[i];  // upper bytes become 0
            }
            rows[p] = vld1q_u8(row), words[p] = vld1q_u8(word);
        }
    }
};

// A block of 4-bit weights to bytes. Two bytes are multiplied at once: no product exceeds a byte.
inline void unpack(const Fields& f, const uint8_t* block, uint8_t* out, int64_t ahead) {
    const uint8x16_t low = vdupq_n_u8(15);
    for (int64_t i = 0; i < 2 * HALF4; i += LINE) __builtin_prefetch(block + i + ahead, 0, SECOND_CACHE);
    for (int64_t g = 0; g < DEPTH / GROUP; ++g) {
        const uint8_t* half = block + g / 4 * HALF4;
        const uint8x16_t fields = vld1q_u8(half + g % 4 * ROWS);
        const uint8x16_t scale_code = vandq_u8(fields, low);
        const uint8x16_t scale = vaddq_u8(scale_code, vdupq_n_u8(1));
        const uint8x16_t floor = vaddq_u8(vqtbl1q_u8(f.by_scale, scale_code), vqtbl1q_u8(f.by_offset, vshrq_n_u8(fields, 4)));
        for (int p = 0; p < PARTS; ++p) {
            const uint16x8_t factor = vreinterpretq_u16_u8(vqtbl1q_u8(scale, f.words[p]));
            const uint8x16_t base = vqtbl1q_u8(floor, f.rows[p]);
            for (int j = 0; j < 2; ++j) {
                const uint8x16_t both = vld1q_u8(half + 64 + g % 4 * 128 + j * 64 + p * 16);
                const auto put = [&](int64_t q, uint8x16_t codes) FB_INLINE {
                    const uint8x16_t value = vreinterpretq_u8_u16(vmulq_u16(vreinterpretq_u16_u8(codes), factor));
                    vst1q_u8(out + g * 256 + q * 64 + p * 16, vaddq_u8(value, base));
                };
                put(2 * j, vandq_u8(both, low));
                put(2 * j + 1, vshrq_n_u8(both, 4));
            }
        }
    }
}

template <int M>
inline void one_panel(const uint8_t* weights, const int8_t* codes, const float* scale, float* c, int64_t apart, bool add,
                      int64_t ahead) {
    const uint8x16_t zero = vdupq_n_u8(ZERO);
    int32x4_t total[M][PARTS];
    each<M>([&](auto m) FB_INLINE { each<PARTS>([&](auto p) FB_INLINE { total[m][p] = vdupq_n_s32(0); }); });
    for (int64_t q = 0; q < DEPTH / QUAD; q += 4) {
        int8x16_t a[M];
        each<M>([&](auto m) FB_INLINE { a[m] = vld1q_s8(codes + m * DEPTH + q * QUAD); });
        each<4>([&](auto i) FB_INLINE {
            if (ahead) __builtin_prefetch(weights + (q + i) * 64 + ahead, 0, SECOND_CACHE);
            each<PARTS>([&](auto p) FB_INLINE {
                const int8x16_t w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(weights + (q + i) * 64 + 16 * p), zero));
                each<M>([&](auto m) FB_INLINE { total[m][p] = vdotq_laneq_s32(total[m][p], w, a[m], i); });
            });
        });
    }
    each<M>([&](auto m) FB_INLINE {
        each<PARTS>([&](auto p) FB_INLINE {
            float* to = c + m * apart + 4 * p;
            const float32x4_t before = add ? vld1q_f32(to) : vdupq_n_f32(0.0f);
            vst1q_f32(to, vfmaq_n_f32(before, vcvtq_f32_s32(total[m][p]), scale[m]));
        });
    });
}

template <int M>
inline void one_panel(const uint8_t* weights, const float* x, float* c, int64_t apart, bool add, int64_t ahead) {
    float32x4_t total[M][PARTS];
    each<M>([&](auto m) FB_INLINE {
        each<PARTS>([&](auto p) FB_INLINE { total[m][p] = add ? vld1q_f32(c + m * apart + 4 * p) : vdupq_n_f32(0.0f); });
    });
    for (int64_t k = 0; k < DEPTH; ++k) {
        const float* w = reinterpret_cast<const float*>(weights) + k * ROWS;
        if (ahead) __builtin_prefetch(weights + k * 64 + ahead, 0, SECOND_CACHE);
        each<PARTS>([&](auto p) FB_INLINE {
            const float32x4_t lanes = vld1q_f32(w + 4 * p);
            each<M>([&](auto m) FB_INLINE { total[m][p] = vfmaq_n_f32(total[m][p], lanes, x[m * DEPTH + k]); });
        });
    }
    each<M>([&](auto m) FB_INLINE {
        each<PARTS>([&](auto p) FB_INLINE { vst1q_f32(c + m * apart + 4 * p, total[m][p]); });
    });
}

// c[m][16·v + row] (+)= scale[m] · sum over a block of weight · activation, for M tokens and V panels.
template <int M, int V>
inline void tile(const uint8_t* const* weights, const int8_t* codes, const float* scale, const int32_t*, float* c,
                 int64_t apart, bool add, int64_t ahead) {
    for (int v = 0; v < V; ++v) one_panel<M>(weights[v], codes, scale, c + v * ROWS, apart, add, ahead);
}

template <int M, int V>
inline void tile(const uint8_t* const* weights, const float* x, float* c, int64_t apart, bool add, int64_t ahead) {
    for (int v = 0; v < V; ++v) one_panel<M>(weights[v], x, c + v * ROWS, apart, add, ahead);
}

}  // namespace
