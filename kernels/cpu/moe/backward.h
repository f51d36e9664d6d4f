// Gradients of inputs, mixing weights and both matrices.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "order.h"
#include "products.h"

namespace {

struct Backward {
    Shape s;
    int threads;
    const float *x, *weight, *gate_up, *down, *saved, *y_grad;
    float *x_grad, *weight_grad, *gate_up_grad, *down_grad;
    Order order;
    float *x_rows, *y_rows;            // copies x model, sorted
    float *inner;                      // copies x 2·width: gradients of gate and up
    float *mixed;                      // copies x width: weighted hidden values
    float *partial;                    // pieces x copies: parts of the mixing weights' gradients
    float *scratch;

    int64_t token(int64_t sorted) const { return order.copy[sorted] / s.chosen; }
    float* own_scratch() const { return scratch + thread_number() * scratch_size(); }
    static constexpr int64_t COLUMNS = 4 * WIDE;  // of weights taken at once: half a kilobyte of each row, or more
    static constexpr int64_t DEEP = 64;           // rows of weights taken at once
    static constexpr int64_t MOST = 96;           // copies taken at once
    static int64_t scratch_size() { return (DEEP + MOST) * COLUMNS; }
    int64_t strip(int64_t columns) const {
        return std::clamp<int64_t>(padded(columns / (threads * 4), WIDE), WIDE, COLUMNS);
    }

    void gather(int64_t sorted) const {
        std::memcpy(x_rows + sorted * s.model, x + token(sorted) * s.model, size_t(s.model) * 4);
        std::memcpy(y_rows + sorted * s.model, y_grad + token(sorted) * s.model, size_t(s.model) * 4);
    }

    // sums[row][column] = sum over k of left[row·stride + k] · weights[k·across + column], for up to MOST rows.
    float* multiply(const float* left, int64_t stride, int64_t rows, const float* weights, int64_t across, int64_t depth,
                    int64_t columns) const {
        float* block = own_scratch();
        float* sums = block + DEEP * COLUMNS;
        const int64_t whole = padded(columns, WIDE);
        for (int64_t k0 = 0; k0 < depth; k0 += DEEP) {
            const int64_t deep = std::min(DEEP, depth - k0);
            for (int64_t k = 0; k < deep; ++k) {
                float* to = block + k * COLUMNS;
                std::memcpy(to, weights + (k0 + k) * across, size_t(columns) * 4);
                std::fill(to + columns, to + whole, 0.0f);
            }
            for (int64_t r = 0; r < rows; r += ROWS)
                for (int64_t c = 0; c < whole; c += WIDE)
                    tiles<VECTORS, false, true, false>(std::min<int64_t>(ROWS, rows - r), deep, left + r * stride + k0,
                                                       stride, 1, block + c, COLUMNS, sums + r * COLUMNS + c, COLUMNS,
                                                       k0 > 0);
        }
        return sums;
    }

    // Gradients of gate and up, columns f0..f1 of one expert.
    void through_down(const Segment& g, int64_t piece, int64_t f0, int64_t f1) const {
        const float* weights = down + g.expert * s.model * s.width + f0;
        for (int64_t i = 0; i < g.count; i += MOST) {
            const int64_t rows = std::min(MOST, g.count - i);
            const float* sums = multiply(y_rows + (g.first + i) * s.model, s.model, rows, weights, s.width, s.model, f1 - f0);
            for (int64_t r = 0; r < rows; ++r) through_activation(g.first + i + r, piece, f0, f1, sums + r * COLUMNS);
        }
    }

    void through_activation(int64_t sorted, int64_t piece, int64_t f0, int64_t f1, const float* hidden_grad) const {
        const float* gates = saved + sorted * 2 * s.width + f0;
        const float* ups = gates + s.width;
        float* gate_grad = inner + sorted * 2 * s.width + f0;
        float* up_grad = gate_grad + s.width;
        float* mix = mixed + sorted * s.width + f0;
        const float part = weight[order.copy[sorted]];
        const int64_t columns = f1 - f0;
        float padded_in[3][COLUMNS], out[3][COLUMNS];
        const float* inputs[3] = {gates, ups, hidden_grad};
        const int64_t whole = padded(columns, LANES);
        for (int i = 0; i < 3; ++i) {
            std::memcpy(padded_in[i], inputs[i], size_t(columns) * 4);
            std::fill(padded_in[i] + columns, padded_in[i] + whole, 0.0f);
        }
        V product{};
        for (int64_t c = 0; c < whole; c += LANES) {
            const V a = load<LANES>(padded_in[0] + c), u = load<LANES>(padded_in[1] + c), h = load<LANES>(padded_in[2] + c);
            const V open = sigmoid(a), silu = a * open;
            product += h * silu * u;
            store<LANES>(out[0] + c, h * part * u * (open + silu * (1.0f - open)));
            store<LANES>(out[1] + c, h * part * silu);
            store<LANES>(out[2] + c, silu * u * part);
        }
        std::memcpy(gate_grad, out[0], size_t(columns) * 4);
        std::memcpy(up_grad, out[1], size_t(columns) * 4);
        std::memcpy(mix, out[2], size_t(columns) * 4);
        partial[piece * s.copies() + sorted] = total<LANES>(product);
    }

    // Columns d0..d1 of the inputs' gradient, all experts: one thread, one order.
    void to_inputs(int64_t d0, int64_t d1) const {
        const int64_t inside = 2 * s.width;
        for (int64_t t = 0; t < s.tokens; ++t) std::fill(x_grad + t * s.model + d0, x_grad + t * s.model + d1, 0.0f);
        for (int64_t n = 0; n < order.hit; ++n) {
            const Segment& g = order.segments[n];
            const float* weights = gate_up + g.expert * inside * s.model + d0;
            for (int64_t i = 0; i < g.count; i += MOST) {
                const int64_t rows = std::min(MOST, g.count - i);
                const float* sums = multiply(inner + (g.first + i) * inside, inside, rows, weights, s.model, inside, d1 - d0);
                for (int64_t r = 0; r < rows; ++r) {
                    float* to = x_grad + token(g.first + i + r) * s.model + d0;
                    for (int64_t d = 0; d < d1 - d0; ++d) to[d] += sums[r * COLUMNS + d];
                }
            }
        }
    }

    // grad[n][column] = sum over the expert's copies of left[copy][n] · right[copy][column], rows n0..n1.
    static void outer(const Segment& g, const float* left, int64_t left_width, const float* right, int64_t right_width,
                      int64_t n0, int64_t n1, float* grad) {
        left += g.first * left_width + n0;
        right += g.first * right_width;
        grad += n0 * right_width;
        const int64_t even = right_width / WIDE * WIDE;
        for (int64_t n = 0; n < n1 - n0; n += ROWS) {  // a few rows at a time, each written from end to end
            const int64_t rows = std::min<int64_t>(ROWS, n1 - n0 - n);
            for (int64_t c = 0; c < even; c += WIDE)
                tiles<VECTORS, false, false, false>(rows, g.count, left + n, 1, left_width, right + c, right_width,
                                                    grad + n * right_width + c, right_width, false);
            for (int64_t c = even; c < right_width; ++c)
                for (int64_t r = n; r < n + rows; ++r) {
                    float sum = 0.0f;
                    for (int64_t i = 0; i < g.count; ++i) sum += left[i * left_width + r] * right[i * right_width + c];
                    grad[r * right_width + c] = sum;
                }
        }
    }

    void to_weights(int64_t expert, const Segment* g, int64_t piece) const {
        const int64_t above = blocks(2 * s.width, BLOCK);
        float* gate_up_part = gate_up_grad + expert * 2 * s.width * s.model;
        float* down_part = down_grad + expert * s.model * s.width;
        const bool first = piece < above;
        const int64_t n0 = (first ? piece : piece - above) * BLOCK;
        const int64_t n1 = std::min(n0 + BLOCK, first ? 2 * s.width : s.model);
        if (!g) {
            if (first) std::fill(gate_up_part + n0 * s.model, gate_up_part + n1 * s.model, 0.0f);
            else std::fill(down_part + n0 * s.width, down_part + n1 * s.width, 0.0f);
        } else if (first) {
            outer(*g, inner, 2 * s.width, x_rows, s.model, n0, n1, gate_up_part);
        } else {
            outer(*g, y_rows, s.model, mixed, s.width, n0, n1, down_part);
        }
    }

    void run() const {
        const int64_t input_step = strip(s.model);
        const int64_t strips = blocks(s.width, COLUMNS);  // not by threads: parts of sums would differ
        const int64_t rows = blocks(2 * s.width, BLOCK) + blocks(s.model, BLOCK);
        std::atomic<int64_t> gathering{0}, inward{0}, inputs{0}, weights{0}, sums{0};
#pragma omp parallel num_threads(threads)
        {
            share(gathering, s.copies(), [&](int64_t i) { gather(i); });
#pragma omp barrier
            share(inward, order.hit * strips, [&](int64_t i) {
                const int64_t f0 = i % strips * COLUMNS;
                through_down(order.segments[i / strips], i % strips, f0, std::min(f0 + COLUMNS, s.width));
            });
#pragma omp barrier
            share(inputs, blocks(s.model, input_step), [&](int64_t i) {
                to_inputs(i * input_step, std::min((i + 1) * input_step, s.model));
            });
            share(weights, s.experts * rows, [&](int64_t i) {
                const int64_t place = i / rows;  // busiest experts first, then those that served nobody
                if (place < order.hit) to_weights(order.segments[place].expert, &order.segments[place], i % rows);
                else to_weights(idle(place - order.hit), nullptr, i % rows);
            });
            share(sums, s.copies(), [&](int64_t i) {
                float sum = 0.0f;
                for (int64_t p = 0; p < strips; ++p) sum += partial[p * s.copies() + i];
                weight_grad[order.copy[i]] = sum;
            });
        }
    }

    int64_t idle(int64_t number) const {
        for (int64_t e = 0; e < s.experts; ++e)
            if (!order.counts[e] && number-- == 0) return e;
        return 0;
    }
};

int64_t carve_backward(Backward& b, Carver carver, char* begin) {
    b.order = carve_order(carver, b.s);
    const int64_t copies = b.s.copies();
    b.x_rows = carver.take<float>(copies * b.s.model);
    b.y_rows = carver.take<float>(copies * b.s.model);
    b.inner = carver.take<float>(copies * 2 * b.s.width);
    b.mixed = carver.take<float>(copies * b.s.width);
    b.partial = carver.take<float>(blocks(b.s.width, Backward::COLUMNS) * copies);
    b.scratch = carver.take<float>(b.threads * Backward::scratch_size());
    return carver.at - begin;
}

}  // namespace
