// Small matrix products held in registers: tokens in the lanes, or dot products along the rows of weights.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "weights.h"

namespace {

// c[n][lane] (+)= sum over k of b[n·bn + k·bk] · v[k·vk + lane], for RN rows, and W vectors (and half a one) of lanes.
// NEXT prefetches along the rows and the beginning of the rows that follow, for weights that come from memory. Weights of
// 16 bits become floats a cache line at a time: one by one they would cost more than their product.
template <int W, bool HALF, int RN, bool UNIT, bool NEXT, typename Weight>
inline void tile(int64_t depth, const Weight* b, int64_t bn, int64_t bk, const float* v, int64_t vk, float* c,
                 int64_t cn, bool add) {
    using Some = Vector<LANES / 2>::type;
    constexpr int FULL = W > 0 ? W : 1;
    const int64_t step = UNIT ? 1 : bk;
    V sums[RN][FULL];
    Some halves[RN];
    for (int n = 0; n < RN; ++n) {
        for (int w = 0; w < W; ++w) sums[n][w] = add ? load<LANES>(c + n * cn + w * LANES) : V{};
        if (HALF) halves[n] = add ? load<LANES / 2>(c + n * cn + W * LANES) : Some{};
    }
    const auto one = [&](int64_t k, const auto* from, int64_t apart) {
        V lanes[FULL];
        Some half{};
        for (int w = 0; w < W; ++w) lanes[w] = load<LANES>(v + k * vk + w * LANES);
        if (HALF) half = load<LANES / 2>(v + k * vk + W * LANES);
        for (int n = 0; n < RN; ++n) {
            const float weight = wide(from[n * apart]);
            for (int w = 0; w < W; ++w) sums[n][w] += all<LANES>(weight) * lanes[w];
            if (HALF) halves[n] += all<LANES / 2>(weight) * half;
        }
    };
    int64_t k = 0;
    if constexpr (NEXT || NARROW<Weight>)
        for (; k + IN_LINE<Weight> <= depth; k += IN_LINE<Weight>) {
            if constexpr (NEXT) {
                const Weight* soon = k + SOON<Weight> < depth ? b + k + SOON<Weight> : b + RN * bn + (k + SOON<Weight> - depth);
                for (int n = 0; n < RN; ++n) __builtin_prefetch(soon + n * bn, 0, SECOND_CACHE);
            }
            if constexpr (NARROW<Weight>) {
                float line[RN][IN_LINE<Weight>];
                for (int n = 0; n < RN; ++n)
                    for (int i = 0; i < IN_LINE<Weight>; i += LANES)
                        store<LANES>(line[n] + i, wide_vector(b + n * bn + k + i));
                for (int i = 0; i < IN_LINE<Weight>; ++i) one(k + i, line[0] + i, IN_LINE<Weight>);
            } else {
                for (int i = 0; i < IN_LINE<Weight>; ++i) one(k + i, b + (k + i) * step, bn);
            }
        }
    for (; k < depth; ++k) one(k, b + k * step, bn);
    for (int n = 0; n < RN; ++n) {
        for (int w = 0; w < W; ++w) store<LANES>(c + n * cn + w * LANES, sums[n][w]);
        if (HALF) store<LANES / 2>(c + n * cn + W * LANES, halves[n]);
    }
}

// The same for any number of rows.
template <int W, bool HALF, bool UNIT, bool NEXT, typename Weight>
inline void tiles(int64_t rows, int64_t depth, const Weight* b, int64_t bn, int64_t bk, const float* v, int64_t vk,
                  float* c, int64_t cn, bool add) {
    int64_t n = 0;
    const auto run = [&](auto number) {
        constexpr int RN = decltype(number)::value;
        for (; n + RN <= rows; n += RN)
            tile<W, HALF, RN, UNIT, NEXT>(depth, b + n * bn, bn, bk, v, vk, c + n * cn, cn, add);
    };
    run(std::integral_constant<int, ROWS>{});
    run(std::integral_constant<int, 2>{});
    run(std::integral_constant<int, 1>{});
}

template <int L>
inline float total(typename Vector<L>::type v) {
    float parts[L], sum = 0.0f;
    std::memcpy(parts, &v, sizeof parts);
    for (int half = L / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    sum = parts[0];
    return sum;
}

// out[r·M + m] = w[r] · x[m]. Callers go through RN stretches of memory row by row, so what lies behind a row is next.
template <int RN, int M, typename Weight>
inline void dots(int64_t depth, const Weight* const* w, const float* const* x, float* out) {
    V sums[RN][M] = {};
    const auto one = [&](int64_t k) {
        V tokens[M];
        for (int m = 0; m < M; ++m) tokens[m] = load<LANES>(x[m] + k);
        for (int r = 0; r < RN; ++r) {
            const V weights = wide_vector(w[r] + k);
            for (int m = 0; m < M; ++m) sums[r][m] += weights * tokens[m];
        }
    };
    int64_t k = 0;
    for (; k + IN_LINE<Weight> <= depth; k += IN_LINE<Weight>) {
        for (int r = 0; r < RN; ++r) __builtin_prefetch(w[r] + k + SOON<Weight>, 0, SECOND_CACHE);
        for (int i = 0; i < IN_LINE<Weight>; i += LANES) one(k + i);
    }
    for (; k + LANES <= depth; k += LANES) one(k);
    for (int r = 0; r < RN; ++r)
        for (int m = 0; m < M; ++m) {
            float sum = total<LANES>(sums[r][m]);
            for (int64_t rest = k; rest < depth; ++rest) sum += wide(w[r][rest]) * x[m][rest];
            out[r * M + m] = sum;
        }
}

}  // namespace
