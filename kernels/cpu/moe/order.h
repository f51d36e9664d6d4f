// Where the copies of an expert lie: in panels of vector lanes, or token by token where they are few.
#pragma once

#include "../common/order.h"
#include "vectors.h"

namespace {

// Lanes of the panel that holds `left` tokens.
int64_t panel_lanes(int64_t left) { return std::min<int64_t>(padded(left, GRAIN), WIDE); }

// Sorts the copies and gives each segment its lanes.
bool sort_copies(Order& order, const Shape& s, const int32_t* expert, int64_t dot_tokens, bool panels) {
    if (!sort_copies(order, s, expert)) return false;
    for (int64_t i = 0; i < order.hit; ++i) {
        Segment& segment = order.segments[i];
        segment.rows = segment.count <= dot_tokens;
        segment.slot = order.slots;
        const int64_t full = segment.count / WIDE * WIDE, rest = segment.count - full;
        order.slots += segment.rows || !panels ? segment.count : full + (rest ? panel_lanes(rest) : 0);
    }
    return true;
}

// Tokens into the lanes of a panel, filled up with zeros: to[k·lanes + lane].
inline void pack_floats(const float* const* from, int64_t tokens, int64_t lanes, int64_t depth, float* to) {
    for (int64_t k0 = 0; k0 < depth; k0 += 16) {
        const int64_t k1 = std::min(k0 + 16, depth);
        for (int64_t i = 0; i < tokens; ++i)
            for (int64_t k = k0; k < k1; ++k) to[k * lanes + i] = from[i][k];
        for (int64_t i = tokens; i < lanes; ++i)
            for (int64_t k = k0; k < k1; ++k) to[k * lanes + i] = 0.0f;
    }
}

// Columns of the output in one piece: small enough that every thread gets some, large enough to be worth it.
int64_t output_block(int64_t columns, int threads) {
    return std::clamp<int64_t>(padded(columns / (threads * PIECES), ROWS), ROWS, 96 / ROWS * ROWS);
}

}  // namespace
