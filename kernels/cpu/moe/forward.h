// y[t] = sum over chosen e of weight[t, e] · down_e(silu(gate_e x[t]) · up_e x[t]).
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "order.h"
#include "pairs.h"
#include "products.h"

namespace {

// Weight: float, or one of 16 bits. Then `narrow_y` is what y is rounded to, column by column, once it is complete. With
// PAIRS panels are of bfloat16: tokens as they came (`narrow_x`), hidden values rounded to it. Dot products stay those of
// floats: they wait for memory.
template <typename Weight>
struct Forward {
    Shape s;
    int threads;
    const float *x, *weight;
    const Weight *gate_up, *down;
    float *y, *saved;  // saved: copies x 2·width in sorted order, or null
    const Weight* narrow_x;
    Weight* narrow_y;
    Order order;
    float *packed, *hidden, *scratch;

    int64_t token(int64_t sorted) const { return order.copy[sorted] / s.chosen; }
    float share_of(int64_t sorted) const { return weight[order.copy[sorted]]; }
    float* own_scratch() const { return scratch + thread_number() * scratch_size(); }
    static constexpr int64_t DEEP = PAIRS<Weight> ? IN_WORD * DEPTH : DEPTH;
    static constexpr int64_t IN_LANE = PAIRS<Weight> ? IN_WORD : 1;  // values of the inner dimension in a lane
    static int64_t scratch_size() { return (BATCH * 2 * BLOCK + 96) * WIDE; }

    // Each panel of a segment: (first token of the segment, tokens in it, lanes).
    template <typename Visit>
    static void panels(const Segment& g, int64_t from, int64_t to, Visit visit) {
        for (int64_t p = from; p < to; ++p) {
            const int64_t begin = p * WIDE, tokens = std::min<int64_t>(WIDE, g.count - begin);
            visit(p, begin, tokens, panel_lanes(tokens));
        }
    }
    static int64_t panel_count(const Segment& g) { return blocks(g.count, WIDE); }

    // What panels are made of.
    using Input = std::conditional_t<PAIRS<Weight>, Weight, float>;
    const Input* inputs() const {
        if constexpr (PAIRS<Weight>) return narrow_x;
        else return x;
    }

    // Tokens of one segment into panels, every PACKERS-th of them: packed[slot·model + k / IN_LANE·lanes + lane].
    static constexpr int64_t PACKERS = 8;
    void pack(const Segment& g, int64_t part) const {
        if (g.rows) return;
        for (int64_t p = part; p < panel_count(g); p += PACKERS)
            panels(g, p, p + 1, [&](int64_t, int64_t begin, int64_t tokens, int64_t lanes) {
                float* to = packed + (g.slot + begin) * s.model;
                const Input* from[WIDE];
                for (int64_t i = 0; i < tokens; ++i) from[i] = inputs() + token(g.first + begin + i) * s.model;
                if constexpr (PAIRS<Weight>) pack_words(from, tokens, lanes, s.model, to);
                else pack_floats(from, tokens, lanes, s.model, to);
            });
    }

    // Rows of weights times one panel. `fresh`: these weights come from memory.
    static void multiply(int64_t lanes, bool fresh, int64_t rows, int64_t depth, const Weight* b, int64_t bn,
                         const float* v, float* c, bool add) {
        const auto run = [&](auto vectors, auto half) {
            constexpr int W = decltype(vectors)::value;
            constexpr bool HALF = decltype(half)::value;
            if constexpr (PAIRS<Weight>) {
                if (fresh) pair_tiles<W, HALF, true>(rows, depth, b, bn, v, lanes, c, lanes, add);
                else pair_tiles<W, HALF, false>(rows, depth, b, bn, v, lanes, c, lanes, add);
            } else if (fresh) tiles<W, HALF, true, true>(rows, depth, b, bn, 1, v, lanes, c, lanes, add);
            else tiles<W, HALF, true, false>(rows, depth, b, bn, 1, v, lanes, c, lanes, add);
        };
        constexpr std::true_type yes{};
        constexpr std::false_type no{};
        if (lanes == WIDE) run(std::integral_constant<int, 2>{}, no);
        else if (lanes == LANES) run(std::integral_constant<int, 1>{}, no);
        else if (lanes < LANES) run(std::integral_constant<int, 0>{}, yes);
        else run(std::integral_constant<int, 1>{}, yes);
    }

    // Hidden values f0..f1 of one expert.
    void expand(const Segment& g, int64_t f0, int64_t f1) const {
        const Weight* gate = gate_up + g.expert * 2 * s.width * s.model;
        const Weight* up = gate + s.width * s.model;
        if (g.rows) expand_rows(g, f0, f1, gate, up);
        else expand_panels(g, f0, f1, gate, up);
    }

    void expand_panels(const Segment& g, int64_t f0, int64_t f1, const Weight* gate, const Weight* up) const {
        const int64_t rows = f1 - f0, count = panel_count(g), size = 2 * BLOCK * WIDE;
        const bool lone = count == 1;
        const int64_t depth = lone ? s.model : DEEP;
        float* sums = own_scratch();
        for (int64_t from = 0; from < count; from += BATCH) {
            const int64_t to = std::min(from + BATCH, count);
            for (int64_t k = 0; k < s.model; k += depth) {
                const int64_t here = std::min(depth, s.model - k);
                panels(g, from, to, [&](int64_t p, int64_t begin, int64_t, int64_t lanes) {
                    const float* v = packed + (g.slot + begin) * s.model + k / IN_LANE * lanes;
                    float* c = sums + (p - from) * size;
                    multiply(lanes, p == from, rows, here, gate + f0 * s.model + k, s.model, v, c, k > 0);
                    multiply(lanes, p == from, rows, here, up + f0 * s.model + k, s.model, v, c + rows * lanes, k > 0);
                });
            }
            panels(g, from, to, [&](int64_t p, int64_t begin, int64_t tokens, int64_t lanes) {
                activate(g, f0, rows, begin, tokens, lanes, sums + (p - from) * size);
            });
        }
    }

    void activate(const Segment& g, int64_t f0, int64_t rows, int64_t begin, int64_t tokens, int64_t lanes,
                  float* sums) const {
        float shares[WIDE + LANES] = {};
        for (int64_t i = 0; i < tokens; ++i) shares[i] = share_of(g.first + begin + i);
        float* place = hidden + (g.slot + begin) * s.width + f0 / IN_LANE * lanes;
        float* to = PAIRS<Weight> ? sums : place;  // rounded and put in place at once, below
        const float *gates = sums, *ups = sums + rows * lanes;
        const int64_t values = rows * lanes;
        for (int64_t i = lanes; i < lanes + LANES; ++i) shares[i] = shares[i - lanes];
        int64_t i = 0;
        for (; i + LANES <= values; i += LANES) {
            const V a = load<LANES>(gates + i);
            store<LANES>(to + i, a * sigmoid(a) * load<LANES>(ups + i) * load<LANES>(shares + i % lanes));
        }
        for (; i < values; ++i) to[i] = gates[i] / (1.0f + std::exp(-gates[i])) * ups[i] * shares[i % lanes];
        if constexpr (PAIRS<Weight>) pair_rows(to, rows, lanes, place);
        if (!saved) return;
        for (int64_t t = 0; t < tokens; ++t) {
            float* row = saved + (g.first + begin + t) * 2 * s.width + f0;
            for (int64_t f = 0; f < rows; ++f) row[f] = gates[f * lanes + t];
            for (int64_t f = 0; f < rows; ++f) row[s.width + f] = ups[f * lanes + t];
        }
    }

    void expand_rows(const Segment& g, int64_t f0, int64_t f1, const Weight* gate, const Weight* up) const {
        const float* tokens[DOT_TOKENS];
        for (int64_t i = 0; i < g.count; ++i) tokens[i] = x + token(g.first + i) * s.model;
        switch (g.count) {
            case 1: return expand_dots<1>(g, f0, f1, gate, up, tokens);
            case 2: return expand_dots<2>(g, f0, f1, gate, up, tokens);
            case 3: return expand_dots<3>(g, f0, f1, gate, up, tokens);
            default: return expand_dots<4>(g, f0, f1, gate, up, tokens);
        }
    }

    template <int M>
    void expand_dots(const Segment& g, int64_t f0, int64_t f1, const Weight* gate, const Weight* up,
                     const float* const* tokens) const {
        constexpr int PAIR = M <= 2 || LANES == 16 ? 2 : 1;
        float* sums = own_scratch();  // gates of all rows, then ups; M of each row
        const int64_t rows = f1 - f0, part = rows / PAIR;
        const auto run = [&](auto pairs, int64_t row, int64_t apart) {
            constexpr int N = decltype(pairs)::value;
            const Weight* w[2 * N];
            for (int n = 0; n < N; ++n) {
                w[n] = gate + (f0 + row + n * apart) * s.model;
                w[N + n] = up + (f0 + row + n * apart) * s.model;
            }
            float out[2 * N * M];
            dots<2 * N, M>(s.model, w, tokens, out);
            for (int n = 0; n < N; ++n)
                for (int m = 0; m < M; ++m) {
                    sums[(row + n * apart) * M + m] = out[n * M + m];
                    sums[(rows + row + n * apart) * M + m] = out[(N + n) * M + m];
                }
        };
        for (int64_t row = 0; row < part; ++row) run(std::integral_constant<int, PAIR>{}, row, part);
        for (int64_t row = part * PAIR; row < rows; ++row) run(std::integral_constant<int, 1>{}, row, 0);
        finish_rows<M>(g, f0, rows, sums);
    }

    template <int M>
    void finish_rows(const Segment& g, int64_t f0, int64_t rows, float* sums) const {
        const int64_t values = rows * M;
        float* ups = sums + values;
        int64_t i = 0;
        for (; i + LANES <= values; i += LANES) {
            const V a = load<LANES>(sums + i);
            store<LANES>(ups + i, a * sigmoid(a) * load<LANES>(ups + i));
        }
        for (; i < values; ++i) ups[i] *= sums[i] / (1.0f + std::exp(-sums[i]));
        for (int m = 0; m < M; ++m) {
            float* to = hidden + (g.slot + m) * s.width + f0;
            const float part = share_of(g.first + m);
            for (int64_t f = 0; f < rows; ++f) to[f] = ups[f * M + m] * part;
        }
    }

    // Columns d0..d1 of the output, all experts: one thread, one order.
    void reduce(int64_t d0, int64_t d1) const {
        for (int64_t t = 0; t < s.tokens; ++t) std::fill(y + t * s.model + d0, y + t * s.model + d1, 0.0f);
        for (int64_t i = 0; i < order.hit; ++i) {
            const Segment& g = order.segments[i];
            const Weight* rows = down + (g.expert * s.model + d0) * s.width;
            if (g.rows) reduce_rows(g, d0, d1, rows);
            else reduce_panels(g, d0, d1, rows);
        }
        if constexpr (NARROW<Weight>)
            for (int64_t t = 0; t < s.tokens; ++t) {
                const int64_t at = t * s.model + d0;
                narrow_all(y + at, narrow_y + at, d1 - d0);
            }
    }

    void reduce_panels(const Segment& g, int64_t d0, int64_t d1, const Weight* weights) const {
        const int64_t rows = d1 - d0, count = panel_count(g);
        const bool lone = count == 1;
        const int64_t depth = lone ? s.width : DEEP;
        float* sums = own_scratch();
        panels(g, 0, count, [&](int64_t p, int64_t begin, int64_t tokens, int64_t lanes) {
            const float* v = hidden + (g.slot + begin) * s.width;
            for (int64_t k = 0; k < s.width; k += depth)
                multiply(lanes, p == 0, rows, std::min(depth, s.width - k), weights + k, s.width,
                         v + k / IN_LANE * lanes, sums, k > 0);
            for (int64_t i = 0; i < tokens; ++i) {
                float* to = y + token(g.first + begin + i) * s.model + d0;
                for (int64_t d = 0; d < rows; ++d) to[d] += sums[d * lanes + i];
            }
        });
    }

    void reduce_rows(const Segment& g, int64_t d0, int64_t d1, const Weight* weights) const {
        const float* tokens[DOT_TOKENS];
        for (int64_t i = 0; i < g.count; ++i) tokens[i] = hidden + (g.slot + i) * s.width;
        switch (g.count) {
            case 1: return reduce_dots<1>(g, d0, d1, weights, tokens);
            case 2: return reduce_dots<2>(g, d0, d1, weights, tokens);
            case 3: return reduce_dots<3>(g, d0, d1, weights, tokens);
            default: return reduce_dots<4>(g, d0, d1, weights, tokens);
        }
    }

    template <int M>
    void reduce_dots(const Segment& g, int64_t d0, int64_t d1, const Weight* weights, const float* const* tokens) const {
        constexpr int RN = M <= 2 || LANES == 16 ? 4 : 2;
        float* to[M];
        for (int m = 0; m < M; ++m) to[m] = y + token(g.first + m) * s.model;
        const int64_t part = (d1 - d0) / RN;
        const auto run = [&](auto number, int64_t d, int64_t apart) {
            constexpr int N = decltype(number)::value;
            const Weight* w[N];
            for (int n = 0; n < N; ++n) w[n] = weights + (d - d0 + n * apart) * s.width;
            float out[N * M];
            dots<N, M>(s.width, w, tokens, out);
            for (int n = 0; n < N; ++n)
                for (int m = 0; m < M; ++m) to[m][d + n * apart] += out[n * M + m];
        };
        for (int64_t d = d0; d < d0 + part; ++d) run(std::integral_constant<int, RN>{}, d, part);
        for (int64_t d = d0 + part * RN; d < d1; ++d) run(std::integral_constant<int, 1>{}, d, 0);
    }

    void run() const {
        const int64_t rows = std::clamp<int64_t>(padded(s.width * order.hit / (threads * PIECES), ROWS), ROWS, BLOCK);
        const int64_t per = blocks(s.width, rows), block = output_block(s.model, threads);
        std::atomic<int64_t> packing{0}, expanding{0}, reducing{0};
#pragma omp parallel num_threads(threads)
        {
            share(packing, order.hit * PACKERS, [&](int64_t i) { pack(order.segments[i / PACKERS], i % PACKERS); });
#pragma omp barrier
            share(expanding, order.hit * per, [&](int64_t i) {
                const int64_t f0 = i % per * rows;
                expand(order.segments[i / per], f0, std::min(f0 + rows, s.width));
            });
#pragma omp barrier
            share(reducing, blocks(s.model, block), [&](int64_t i) {
                reduce(i * block, std::min((i + 1) * block, s.model));
            });
        }
    }
};

template <typename Weight>
int64_t carve_forward(Forward<Weight>& f, Carver carver, char* begin) {
    f.order = carve_order(carver, f.s);
    const int64_t slots = f.s.copies() + std::min(f.s.experts, f.s.copies()) * (WIDE - 1);
    f.packed = carver.take<float>(slots * f.s.model);
    f.hidden = carver.take<float>(slots * f.s.width);
    f.scratch = carver.take<float>(f.threads * Forward<Weight>::scratch_size());
    return carver.at - begin;
}

}  // namespace
