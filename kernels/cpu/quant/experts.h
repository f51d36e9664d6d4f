// y[t] = sum over chosen e of weight[t, e] · down_e(silu(gate_e x[t]) · up_e x[t]), all weights packed alike.
#pragma once

#include "../common/order.h"
#include "../common/vectors.h"
#include "multiply.h"

namespace {

struct Experts {
    Shape s;
    int format, threads;
    const float *x, *weight;
    uint8_t *gate_up, *down;  // per expert: gate, then up (width x model), and down (model x width)
    float* y;
    Order order;
    Activations in, between;
    float* hidden;
    Scratch* scratch;
    Stretches expanding, reducing;

    Matrix inward(int64_t part = 0) const {
        Matrix w{format, s.width, s.model, nullptr};
        if (gate_up) w.data = gate_up + part * w.bytes();
        return w;
    }
    Matrix outward(int64_t expert = 0) const {
        Matrix w{format, s.model, s.width, nullptr};
        if (down) w.data = down + expert * w.bytes();
        return w;
    }
    int64_t token(int64_t sorted) const { return order.copy[sorted] / s.chosen; }

    int64_t take(Carver carver) {
        char* begin = carver.at;
        order = carve_order(carver, s);
        in = {s.copies(), s.model, nullptr, nullptr, nullptr, nullptr};
        in.take(carver, format != FLOAT32);
        between = {s.copies(), s.width, nullptr, nullptr, nullptr, nullptr};
        between.take(carver, format != FLOAT32);
        hidden = carver.take<float>(s.copies() * s.width);
        expanding.threads = reducing.threads = threads;
        expanding.take(carver), reducing.take(carver);
        scratch = carver.take<Scratch>(threads);
        for (int i = 0; i < threads; ++i) {
            Scratch own{};
            own.take(carver, s.copies());
            if (carver.end && carver.fits()) scratch[i] = own;
        }
        return carver.at - begin;
    }

    static constexpr int PAIRS = MOST_PANELS / 2;  // panels of the gate, and as many of up, of one strip

    // One strip of silu(gate x) · up x, for tokens begin..end of a, into rows of `to`.
    static void gated(const Matrix& gate, const Matrix& up, const Activations& a, const Scratch& own, int64_t strip,
                      int64_t begin, int64_t end, float* to) {
        const int64_t first = strip * PAIRS, count = std::min<int64_t>(PAIRS, gate.panels() - first);
        for (int64_t from = begin; from < end; from += CHUNK) {
            const int64_t until = std::min(from + CHUNK, end);
            if (count == PAIRS) {
                Strip<2 * PAIRS> both{gate, {}, PAIRS * gate.panel_bytes(), own.bytes};
                for (int v = 0; v < PAIRS; ++v)
                    both.panel[v] = gate.block(first + v, 0), both.panel[PAIRS + v] = up.block(first + v, 0);
                both.run(a, from, until, own.sums);
            } else {
                Strip<1>{gate, {gate.block(first, 0)}, gate.panel_bytes(), own.bytes}.run(a, from, until, own.sums);
                Strip<1>{up, {up.block(first, 0)}, up.panel_bytes(), own.bytes}.run(a, from, until, own.sums + PAIRS * ROWS);
            }
            for (int64_t m = from; m < until; ++m)
                activate(gate, up, first, count, own.sums + (m - from) * APART, to + m * gate.outputs);
        }
    }

    static void activate(const Matrix& gate, const Matrix& up, int64_t first, int64_t count, float* sums, float* to) {
        const int64_t begin = first * ROWS, values = count * ROWS;
        float *gates = sums, *ups = sums + PAIRS * ROWS;
        if (gate.format != FLOAT32)
            for (int64_t n = 0; n < values; ++n) gates[n] *= gate.scales()[begin + n], ups[n] *= up.scales()[begin + n];
        for (int64_t n = 0; n < values; n += LANES) {
            const V g = load<LANES>(gates + n);
            store<LANES>(gates + n, g * sigmoid(g) * load<LANES>(ups + n));
        }
        std::copy(gates, gates + std::min(values, gate.outputs - begin), to + begin);
    }

    // Outputs of one strip, all experts: one thread, one order.
    void reduce(int64_t strip) const {
        const int64_t first = strip * MOST_PANELS, panel_count = outward().panels();
        const int64_t begin = first * ROWS, count = std::min<int64_t>(MOST_PANELS, panel_count - first);
        const int64_t end = std::min(begin + count * ROWS, s.model);
        for (int64_t t = 0; t < s.tokens; ++t) std::fill(y + t * s.model + begin, y + t * s.model + end, 0.0f);
        for (int64_t i = 0; i < order.hit; ++i) {
            const Segment& g = order.segments[i];
            panels(outward(g.expert), between, scratch[thread_number()], g.first, g.first + g.count, first, count,
                   [&](int64_t m, int64_t output, int64_t values, const float* sums) {
                       float* to = y + token(m) * s.model + output;
                       const float share = weight[order.copy[m]];
                       for (int64_t n = 0; n < values; ++n) to[n] += share * sums[n];
                   });
        }
    }

    void run() {
        const int64_t strips = blocks(inward().panels(), PAIRS);
        std::atomic<int64_t> rounding{0}, again{0};
        expanding.pieces = order.hit * strips, reducing.pieces = blocks(outward().panels(), MOST_PANELS);
        expanding.start(), reducing.start();
#pragma omp parallel num_threads(threads)
        {
            share(rounding, s.copies() * in.depths(), [&](int64_t i) {
                in.fill(x + token(i / in.depths()) * s.model, i / in.depths(), i % in.depths());
            });
#pragma omp barrier
            expanding.walk(thread_number(), [&](int64_t i) {
                const Segment& g = order.segments[i / strips];
                gated(inward(2 * g.expert), inward(2 * g.expert + 1), in, scratch[thread_number()], i % strips, g.first,
                      g.first + g.count, hidden);
            });
#pragma omp barrier
            share(again, s.copies() * between.depths(), [&](int64_t i) {
                between.fill(hidden + i / between.depths() * s.width, i / between.depths(), i % between.depths());
            });
#pragma omp barrier
            reducing.walk(thread_number(), [&](int64_t i) { reduce(i); });
        }
    }
};

}  // namespace
