// A SwiGLU layer in fp32 as a reader would write it down: y = down(silu(gate(x)) * up(x)). One text for every processor,
// no intrinsics, no blocking: what a compiler makes of it is the portable C++ beside the hand-tuned kernel of moe.cpp.
// Layouts as in torch's linear layers: x T x D, gate_up 2F x D, down D x F, y T x D; hidden is T x F of workspace.

#include <cmath>
#include <cstdint>

namespace {

float dot(const float* a, const float* b, int64_t count) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

}  // namespace

extern "C" {

int fb_abi_version() { return 1; }

int fb_plain_ffn(int threads, int64_t tokens, int64_t model, int64_t width, const float* x, const float* gate_up,
                 const float* down, float* y, float* hidden) {
    if (threads < 1 || tokens < 1 || model < 1 || width < 1) return -2;
#pragma omp parallel for num_threads(threads)
    for (int64_t f = 0; f < width; ++f)
        for (int64_t t = 0; t < tokens; ++t) {
            const float gate = dot(x + t * model, gate_up + f * model, model);
            const float up = dot(x + t * model, gate_up + (width + f) * model, model);
            hidden[t * width + f] = gate / (1 + std::exp(-gate)) * up;
        }
#pragma omp parallel for num_threads(threads)
    for (int64_t d = 0; d < model; ++d)
        for (int64_t t = 0; t < tokens; ++t) y[t * model + d] = dot(hidden + t * width, down + d * width, width);
    return 0;
}

}  // extern "C"
