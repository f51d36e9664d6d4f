// How quantised matrices and activations are stored; see kernels/README.md.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/work.h"

namespace {

enum Format : int { FLOAT32 = 32, INT8 = 8, INT4 = 4 };

constexpr int64_t ROWS = 16;      // outputs of a panel
constexpr int64_t DEPTH = 128;    // inputs of a block, which share the scale of an activation
constexpr int64_t QUAD = 4;       // inputs that one instruction adds up
constexpr int64_t GROUP = 16;     // inputs of a row that share a 4-bit scale and a 4-bit offset
constexpr int64_t HALF = 64;      // inputs of half a 4-bit block: 64 bytes of scales and offsets, then 512 of codes
constexpr int ZERO = 128;         // what stands for weight 0 among unsigned bytes
constexpr int LIMIT = 127;        // largest magnitude of a weight or an activation
constexpr int OFFSET_STEP = 3;    // of a group, in units of the row's scale
constexpr int TOP = 15;           // largest 4-bit code

constexpr int64_t CODES8 = ROWS * DEPTH;                      // bytes of an int8 block
constexpr int64_t HALF4 = ROWS * HALF / 2 + ROWS * HALF / GROUP;  // bytes of half an int4 block

constexpr int64_t block_bytes(int format) {
    return format == FLOAT32 ? CODES8 * 4 : format == INT8 ? CODES8 : 2 * HALF4;
}

// One weight of a group: scale · code + floor, in units of the row's scale.
constexpr int group_floor(int scale, int offset) { return -8 * scale + scale / 2 + OFFSET_STEP * (offset - 8); }

struct Matrix {
    int format;
    int64_t outputs, inputs;
    uint8_t* data;
    int64_t panels() const { return blocks(outputs, ROWS); }
    int64_t depths() const { return blocks(inputs, DEPTH); }
    int64_t panel_bytes() const { return depths() * block_bytes(format); }
    int64_t scale_bytes() const { return format == FLOAT32 ? 0 : panels() * ROWS * 4; }
    int64_t bytes() const { return panels() * panel_bytes() + scale_bytes(); }
    uint8_t* block(int64_t panel, int64_t depth) const { return data + panel * panel_bytes() + depth * block_bytes(format); }
    float* scales() const { return reinterpret_cast<float*>(data + panels() * panel_bytes()); }
    bool sound() const {
        return (format == FLOAT32 || format == INT8 || format == INT4) && outputs > 0 && inputs > 0 && inputs <= 65536;
    }
};

struct Group {
    int scale, offset;
    uint8_t code[GROUP];
};

// The 4-bit group nearest to x (in units of the row's scale) by squared error, among the scales and offsets that suit its range.
inline Group encode(const float* x) {
    float low = x[0], high = x[0];
    for (int i = 1; i < GROUP; ++i) low = std::min(low, x[i]), high = std::max(high, x[i]);
    const int wanted = int(std::ceil((high - low) / TOP));
    // Offsets reach only so far: a group on one side of zero needs a larger scale.
    const int covering = int(std::ceil((std::max(-low, high) - 7 * OFFSET_STEP) / 7.5f));
    const int most = std::clamp(std::max(wanted + 2, covering), 1, 16);
    const float middle = (low + high) / 2;
    Group best{};
    float least = INFINITY;
    for (int scale = std::clamp(wanted - 2, 1, 16); scale <= most; ++scale) {
        const float ideal = (middle - 7.5f * scale - group_floor(scale, 8)) / OFFSET_STEP;
        const int centre = std::clamp(int(std::lrint(ideal)) + 8, 0, TOP);
        for (int offset = std::max(centre - 1, 0); offset <= std::min(centre + 1, TOP); ++offset) {
            const float floor = float(group_floor(scale, offset)), inverse = 1.0f / scale;
            const float first = std::max(0.0f, std::ceil((-LIMIT - floor) * inverse));
            const float last = std::min(float(TOP), std::floor((LIMIT - floor) * inverse));
            float codes[GROUP], error = 0.0f;
            for (int i = 0; i < GROUP; ++i) {
                const float exact = (x[i] - floor) * inverse;
                const float code = (std::min(std::max(exact, first), last) + 12582912.0f) - 12582912.0f;  // to nearest
                const float miss = x[i] - (code * scale + floor);
                codes[i] = code;
                error += miss * miss;
            }
            if (!(error < least)) continue;
            least = error, best.scale = scale, best.offset = offset;
            for (int i = 0; i < GROUP; ++i) best.code[i] = uint8_t(codes[i]);
        }
    }
    return best;
}

struct Packer {
    Matrix to;
    const float* from;

    // One panel. False when a weight is not finite.
    bool panel(int64_t p, float* row) const {
        for (int64_t r = 0; r < ROWS; ++r) {
            const int64_t n = p * ROWS + r;
            std::fill(row, row + to.depths() * DEPTH, 0.0f);
            if (n < to.outputs) std::memcpy(row, from + n * to.inputs, to.inputs * 4);
            float most = 0.0f, finite = 0.0f;
            for (int64_t k = 0; k < to.inputs; ++k) most = std::max(most, std::fabs(row[k])), finite += row[k] * 0.0f;
            if (finite != 0.0f) return false;
            if (to.format == FLOAT32) plain(p, r, row);
            else codes(p, r, row, most);
        }
        return true;
    }

    void plain(int64_t p, int64_t r, const float* row) const {
        for (int64_t d = 0; d < to.depths(); ++d) {
            float* block = reinterpret_cast<float*>(to.block(p, d));
            for (int64_t k = 0; k < DEPTH; ++k) block[k * ROWS + r] = row[d * DEPTH + k];
        }
    }

    void codes(int64_t p, int64_t r, float* row, float most) const {
        const float scale = most / LIMIT, inverse = most > 0.0f ? LIMIT / most : 0.0f;
        to.scales()[p * ROWS + r] = scale;
        for (int64_t k = 0; k < to.depths() * DEPTH; ++k) row[k] *= inverse;
        for (int64_t d = 0; d < to.depths(); ++d) {
            uint8_t* block = to.block(p, d);
            if (to.format == INT8) bytes(block, r, row + d * DEPTH);
            else for (int64_t h = 0; h < 2; ++h) nibbles(block + h * HALF4, r, row + d * DEPTH + h * HALF);
        }
    }

    static void bytes(uint8_t* block, int64_t r, const float* x) {
        for (int64_t k = 0; k < DEPTH; ++k)
            block[(k / QUAD * ROWS + r) * QUAD + k % QUAD] = uint8_t(std::lrint(x[k]) + ZERO);
    }

    static void nibbles(uint8_t* half, int64_t r, const float* x) {
        uint8_t* codes = half + ROWS * HALF / GROUP;
        for (int64_t g = 0; g < HALF / GROUP; ++g) {
            const Group found = encode(x + g * GROUP);
            half[g * ROWS + r] = uint8_t((found.scale - 1) | found.offset << 4);
            for (int64_t i = 0; i < GROUP; ++i) {
                uint8_t& byte = codes[(g * 2 + i / (2 * QUAD)) * 64 + r * QUAD + i % QUAD];
                byte = i / QUAD % 2 ? uint8_t(byte | found.code[i] << 4) : found.code[i];
            }
        }
    }
};

}  // namespace
