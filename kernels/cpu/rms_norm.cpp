// RMS norm in fp32, row by row: y = x / sqrt(mean(x²) + epsilon) · gain. The second pass over a row finds it in the first
// cache; four sums hide the latency of an addition; threads are only woken where rows are many.
// Layouts as in torch: x and y T x D, gain D.

#include <cmath>
#include <cstdint>

#include "common/vectors.h"

namespace {

constexpr int SUMS = 4;
constexpr int64_t WORTH_A_THREAD = 1 << 14;  // values below which waking threads costs more than they save

float squares(const float* x, int64_t model) {
    V sums[SUMS] = {};
    int64_t d = 0;
    for (; d + SUMS * LANES <= model; d += SUMS * LANES)
        for (int s = 0; s < SUMS; ++s) {
            const V value = load<LANES>(x + d + s * LANES);
            sums[s] += value * value;
        }
    const V all_sums = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += all_sums[lane];
    for (; d < model; ++d) total += x[d] * x[d];
    return total;
}

void row(const float* x, const float* gain, float* y, int64_t model, float epsilon) {
    const float scale = 1 / std::sqrt(squares(x, model) / model + epsilon);
    int64_t d = 0;
    for (; d + LANES <= model; d += LANES) store<LANES>(y + d, load<LANES>(x + d) * scale * load<LANES>(gain + d));
    for (; d < model; ++d) y[d] = x[d] * scale * gain[d];
}

}  // namespace

extern "C" {

int fb_abi_version() { return 1; }

int fb_rms_norm(int threads, int64_t tokens, int64_t model, float epsilon, const float* x, const float* gain, float* y) {
    if (threads < 1 || tokens < 1 || model < 1) return -2;
#pragma omp parallel for num_threads(threads) if (tokens * model >= WORTH_A_THREAD)
    for (int64_t t = 0; t < tokens; ++t) row(x + t * model, gain, y + t * model, model, epsilon);
    return 0;
}

}  // extern "C"
