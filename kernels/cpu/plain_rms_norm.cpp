// RMS norm in fp32 as a reader would write it down: y = x / sqrt(mean(x²) + epsilon) · gain. One text for every processor,
// no intrinsics: the portable C++ beside rms_norm.cpp, with the same layouts.

#include <cmath>
#include <cstdint>

extern "C" {

int fb_abi_version() { return 1; }

int fb_rms_norm(int threads, int64_t tokens, int64_t model, float epsilon, const float* x, const float* gain, float* y) {
    if (threads < 1 || tokens < 1 || model < 1) return -2;
#pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < tokens; ++t) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < model; ++d) sum += x[t * model + d] * x[t * model + d];
        const float scale = 1 / std::sqrt(sum / model + epsilon);
        for (int64_t d = 0; d < model; ++d) y[t * model + d] = x[t * model + d] * scale * gain[d];
    }
    return 0;
}

}  // extern "C"
