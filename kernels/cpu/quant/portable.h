// Any processor: loops that a compiler vectorises as far as it can.
#pragma once

#include "format.h"

namespace {

constexpr const char* NAME = "portable";
constexpr int MOST_TOKENS = 2, MOST_PANELS = 2;  // of a tile
constexpr int FEW_TOKENS = 0;                    // every 4-bit block is unpacked before it is used
constexpr int64_t AHEAD = 0;

struct Fields {};

// Scale of a block of activations, its int8 codes and their sum.
inline void quantise(const float* x, int8_t* codes, float* scale, int32_t* sum) {
    float top = 0.0f;
    for (int64_t k = 0; k < DEPTH; ++k) top = std::max(top, std::fabs(x[k]));
    const float inverse = top > 0.0f ? LIMIT / top : 0.0f;
    *sum = 0;
    for (int64_t k = 0; k < DEPTH; ++k) {
        codes[k] = int8_t(std::lrint(x[k] * inverse));
        *sum += codes[k];
    }
    *scale = top / LIMIT;
}

inline void unpack(const Fields&, const uint8_t* block, uint8_t* out, int64_t) {
    for (int64_t h = 0; h < 2; ++h)
        for (int64_t g = 0; g < HALF / GROUP; ++g) {
            const uint8_t* half = block + h * HALF4;
            uint8_t* to = out + h * CODES8 / 2 + g * GROUP * ROWS;
            for (int64_t i = 0; i < ROWS * QUAD; ++i) {
                const int field = half[g * ROWS + i / QUAD], scale = (field & 15) + 1;
                const int floor = ZERO + group_floor(scale, field >> 4);
                for (int64_t j = 0; j < 2; ++j) {
                    const int both = half[64 + (2 * g + j) * 64 + i];
                    to[2 * j * 64 + i] = uint8_t((both & 15) * scale + floor);
                    to[(2 * j + 1) * 64 + i] = uint8_t((both >> 4) * scale + floor);
                }
            }
        }
}

// c[m][row] (+)= scale[m] · sum over a block of weight · activation, for M tokens and V panels.
template <int M, int V>
inline void tile(const uint8_t* const* weights, const int8_t* codes, const float* scale, const int32_t* sums, float* c,
                 int64_t apart, bool add, int64_t) {
    for (int i = 0; i < M * V; ++i) {
        const int m = i / V, v = i % V;
        int32_t total[ROWS];
        for (int64_t r = 0; r < ROWS; ++r) total[r] = -ZERO * sums[m];
        for (int64_t q = 0; q < DEPTH / QUAD; ++q)
            for (int64_t r = 0; r < ROWS; ++r)
                for (int64_t k = 0; k < QUAD; ++k)
                    total[r] += int32_t(weights[v][q * 64 + r * QUAD + k]) * codes[m * DEPTH + q * QUAD + k];
        float* to = c + m * apart + v * ROWS;
        for (int64_t r = 0; r < ROWS; ++r) to[r] = (add ? to[r] : 0.0f) + scale[m] * float(total[r]);
    }
}

template <int M, int V>
inline void tile(const uint8_t* const* weights, const float* x, float* c, int64_t apart, bool add, int64_t) {
    for (int i = 0; i < M * V; ++i) {
        const int m = i / V, v = i % V;
        float total[ROWS], *to = c + m * apart + v * ROWS;
        for (int64_t r = 0; r < ROWS; ++r) total[r] = add ? to[r] : 0.0f;
        for (int64_t k = 0; k < DEPTH; ++k)
            for (int64_t r = 0; r < ROWS; ++r)
                total[r] += reinterpret_cast<const float*>(weights[v])[k * ROWS + r] * x[m * DEPTH + k];
        for (int64_t r = 0; r < ROWS; ++r) to[r] = total[r];
    }
}

}  // namespace
