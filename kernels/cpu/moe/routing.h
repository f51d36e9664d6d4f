// Logits, the chosen experts and their mixing weights.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "order.h"
#include "products.h"

namespace {

// Logits of all tokens, the chosen experts (largest first, the lower number on a tie) and their mixing weights, then
// the shared experts with weight 1. gate 0: softmax over all experts; 1: sigmoid of each. bias (or null) joins the
// choice, not the weight.
template <typename Weight>
struct Router {
    int64_t tokens, model, experts, chosen, shared;
    int gate, normalise;
    float scale;
    const float* x;
    const Weight* router;
    const float* bias;
    int32_t* expert;
    float *weight, *scores;

    static constexpr int64_t COLUMNS = 32, TOKENS = 8;
    bool sound() const { return tokens > 0 && model > 0 && chosen > 0 && chosen <= experts; }

    // Scores of two tokens (the last may stand twice) for experts e0..e1.
    void score(int64_t t, int64_t e0, int64_t e1) const {
        const int64_t both[2] = {t, std::min(t + 1, tokens - 1)};
        const float* at[2] = {x + both[0] * model, x + both[1] * model};
        int64_t e = e0;
        const auto some = [&](auto number) {
            constexpr int N = decltype(number)::value;
            for (; e + N <= e1; e += N) {
                const Weight* w[N];
                for (int n = 0; n < N; ++n) w[n] = router + (e + n) * model;
                float out[N * 2];
                dots<N, 2>(model, w, at, out);
                for (int n = 0; n < N; ++n)
                    for (int i = 0; i < 2; ++i) scores[both[i] * experts + e + n] = out[n * 2 + i];
            }
        };
        some(std::integral_constant<int, 4>{});
        some(std::integral_constant<int, 1>{});
    }

    void open(float* score) const {
        if (gate != 0) {
            for (int64_t e = 0; e < experts; ++e) score[e] = 1.0f / (1.0f + std::exp(-score[e]));
            return;
        }
        const float top = *std::max_element(score, score + experts);
        float sum = 0.0f;
        for (int64_t e = 0; e < experts; ++e) sum += score[e] = std::exp(score[e] - top);
        for (int64_t e = 0; e < experts; ++e) score[e] /= sum;
    }

    void choose(int64_t t) const {
        float* score = scores + t * experts;
        int32_t* numbers = expert + t * (chosen + shared);
        float* shares = weight + t * (chosen + shared);
        open(score);
        float picked = 0.0f;
        for (int64_t k = 0; k < chosen; ++k) {
            int64_t best = -1;
            float most = 0.0f;
            for (int64_t e = 0; e < experts; ++e) {
                const float value = score[e] + (bias ? bias[e] : 0.0f);
                if (best < 0 || value > most) best = e, most = value;
            }
            numbers[k] = int32_t(best);
            picked += shares[k] = score[best];
            score[best] = -std::numeric_limits<float>::infinity();  // not chosen again
        }
        for (int64_t k = 0; k < chosen; ++k) shares[k] *= scale / (normalise ? picked : 1.0f);
        for (int64_t k = 0; k < shared; ++k) numbers[chosen + k] = int32_t(experts + k), shares[chosen + k] = 1.0f;
    }

    void run(int threads) const {
        std::atomic<int64_t> scoring{0}, choosing{0};
        const int64_t per = blocks(experts, COLUMNS);
#pragma omp parallel num_threads(threads)
        {
            share(scoring, blocks(tokens, 2) * per, [&](int64_t i) {
                score(i / per * 2, i % per * COLUMNS, std::min((i % per + 1) * COLUMNS, experts));
            });
#pragma omp barrier
            share(choosing, blocks(tokens, TOKENS), [&](int64_t i) {
                for (int64_t t = i * TOKENS; t < std::min((i + 1) * TOKENS, tokens); ++t) choose(t);
            });
        }
    }
};

}  // namespace
