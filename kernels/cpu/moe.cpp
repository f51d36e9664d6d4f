// A mixture of SwiGLU experts, forward in fp32, bf16 and fp16, backward in fp32: y[t] = sum over chosen e of w[t,e] · down_e(silu(gate_e x[t]) · up_e x[t]).
// The contract (arguments, layouts, workspace, status codes) is in kernels/README.md.
//
// One source, compiled once per instruction set (the flags choose the vector width). Three rules make it quick:
//   - weights are read once per call, in place, in the layout that torch stores; only the few tokens are rearranged;
//   - an expert with few tokens runs dot products along the weights' rows (memory-bound), one with many keeps tokens
//     in the vector lanes and broadcasts weights (compute-bound), so neither pays for the other's layout;
//   - work is cut into blocks that threads take from a counter, largest experts first; every output element is
//     added up by one thread in one order, so results are the same bits on any number of threads.

#include <algorithm>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "moe/backward.h"
#include "moe/forward.h"
#include "moe/routing.h"

namespace {

enum Format : int { FLOAT16 = 0, BFLOAT16 = 1 };
enum Status : int { OK = 0, BAD_SIZE = -2, BAD_EXPERT = -4, SMALL_WORKSPACE = -5 };

// Fresh memory is cheaper by the large page: a gradient of all experts is written once and given back.
void prefer_large_pages([[maybe_unused]] float* values, [[maybe_unused]] int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = uintptr_t(1) << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(values) + PAGE - 1) & ~(PAGE - 1);
    const uintptr_t end = reinterpret_cast<uintptr_t>(values + count) & ~(PAGE - 1);
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: no harm if refused
#endif
}

struct Gate {
    int kind, normalise;
    float scale;
};

// Tokens of 16 bits as floats, which all that follows computes in.
template <typename Weight>
void widen_tokens([[maybe_unused]] int threads, const Shape& s, const Weight* x, float* to) {
    [[maybe_unused]] const bool many = s.tokens * s.model > 65536;
#pragma omp parallel for num_threads(threads) if (many)
    for (int64_t t = 0; t < s.tokens; ++t) widen_all(x + t * s.model, to + t * s.model, s.model);
}

template <typename Weight>
int forward(Forward<Weight> f, const int32_t* expert, void* workspace, int64_t workspace_bytes) {
    if (!f.s.sound() || f.threads < 1) return BAD_SIZE;
    if (carve_forward(f, whole(workspace, workspace_bytes), static_cast<char*>(workspace)) > workspace_bytes)
        return SMALL_WORKSPACE;
    if (!sort_copies(f.order, f.s, expert, f.saved ? 0 : DOT_TOKENS, true)) return BAD_EXPERT;
    f.run();
    return OK;
}

template <typename Weight>
int forward_16(int threads, Shape s, const void* x, const int32_t* expert, const float* weight, const void* gate_up,
               const void* down, void* y, void* workspace, int64_t workspace_bytes) {
    if (!s.sound() || threads < 1) return BAD_SIZE;
    Carver carver = whole(workspace, workspace_bytes);
    float* tokens = carver.take<float>(s.tokens * s.model);
    float* sums = carver.take<float>(s.tokens * s.model);
    if (!carver.fits()) return SMALL_WORKSPACE;
    widen_tokens(threads, s, static_cast<const Weight*>(x), tokens);
    const Forward<Weight> f{s, threads, tokens, weight, static_cast<const Weight*>(gate_up),
                            static_cast<const Weight*>(down), sums, nullptr, static_cast<const Weight*>(x),
                            static_cast<Weight*>(y), {}, nullptr, nullptr, nullptr};
    return forward(f, expert, carver.at, carver.end - carver.at);
}

// Routes, then computes: `run(shape, tokens as floats, choices, mixing weights, what is left of the workspace)`.
template <typename Weight, typename Run>
int layer(int threads, Shape s, int64_t shared, Gate gate, const Weight* x, const Weight* router, const float* bias,
          void* workspace, int64_t workspace_bytes, Run run) {
    if (shared < 0 || s.tokens < 1 || threads < 1) return BAD_SIZE;
    Carver carver = whole(workspace, workspace_bytes);
    int32_t* expert = carver.take<int32_t>(s.tokens * (s.chosen + shared));
    float* weight = carver.take<float>(s.tokens * (s.chosen + shared));
    float* scores = carver.take<float>(s.tokens * s.experts);
    float* widened = NARROW<Weight> ? carver.take<float>(s.tokens * s.model) : nullptr;
    if (!carver.fits()) return SMALL_WORKSPACE;
    const float* tokens;
    if constexpr (NARROW<Weight>) widen_tokens(threads, s, x, widened), tokens = widened;
    else tokens = x;
    const Router<Weight> r{s.tokens, s.model, s.experts, s.chosen, shared, gate.kind, gate.normalise, gate.scale,
                           tokens, router, bias, expert, weight, scores};
    if (!r.sound()) return BAD_SIZE;
    r.run(threads);
    const Shape all{s.tokens, s.model, s.width, s.experts + shared, s.chosen + shared};
    return run(all, tokens, expert, weight, carver);
}

template <typename Weight>
int layer_16(int threads, Shape s, int64_t shared, Gate gate, const void* x, const void* router, const float* bias,
             const void* gate_up, const void* down, void* y, void* workspace, int64_t workspace_bytes) {
    const auto compute = [&](Shape all, const float* tokens, const int32_t* expert, const float* weight, Carver left) {
        float* sums = left.take<float>(s.tokens * s.model);
        if (!left.fits()) return int(SMALL_WORKSPACE);
        const Forward<Weight> f{all, threads, tokens, weight, static_cast<const Weight*>(gate_up),
                                static_cast<const Weight*>(down), sums, nullptr, static_cast<const Weight*>(x),
                                static_cast<Weight*>(y), {}, nullptr, nullptr, nullptr};
        return forward(f, expert, left.at, left.end - left.at);
    };
    return layer(threads, s, shared, gate, static_cast<const Weight*>(x), static_cast<const Weight*>(router), bias,
                 workspace, workspace_bytes, compute);
}

}  // namespace

extern "C" {

int fb_abi_version() { return 1; }

const char* fb_moe_path() { return NAME; }

const char* fb_moe_path_16(int format) { return format == BFLOAT16 ? BRAIN_NAME : NAME; }

int fb_moe_parallel() {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

int64_t fb_moe_workspace(int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts, int64_t chosen) {
    const Shape s{tokens, model, width, experts, chosen};
    if (!s.sound() || threads < 1) return BAD_SIZE;
    Forward<float> f{};
    Backward b{};
    f.s = b.s = s;
    f.threads = b.threads = threads;
    char* zero = nullptr;
    return std::max(carve_forward(f, {zero, zero}, zero), carve_backward(b, {zero, zero}, zero)) + LINE;
}

int64_t fb_moe_workspace_16(int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts, int64_t chosen) {
    const int64_t inner = fb_moe_workspace(threads, tokens, model, width, experts, chosen);
    return inner < 0 ? inner : inner + 2 * (4 * tokens * model + 2 * LINE);
}

// Lanes that a forward call computes for these choices; what they exceed tokens x chosen by is padding.
int64_t fb_moe_lanes(int64_t tokens, int64_t experts, int64_t chosen, const int32_t* expert, void* workspace,
                     int64_t workspace_bytes) {
    const Shape s{tokens, 1, 1, experts, chosen};
    if (!s.sound()) return BAD_SIZE;
    Carver carver = whole(workspace, workspace_bytes);
    Order order = carve_order(carver, s);
    if (!carver.fits()) return SMALL_WORKSPACE;
    return sort_copies(order, s, expert, DOT_TOKENS, true) ? order.slots : int64_t(BAD_EXPERT);
}

int fb_moe_forward(int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts, int64_t chosen,
                   const float* x, const int32_t* expert, const float* weight, const float* gate_up, const float* down,
                   float* y, float* saved, void* workspace, int64_t workspace_bytes) {
    const Shape s{tokens, model, width, experts, chosen};
    const Forward<float> f{s, threads, x, weight, gate_up, down, y, saved, nullptr, nullptr, {}, nullptr, nullptr,
                           nullptr};
    return forward(f, expert, workspace, workspace_bytes);
}

int fb_moe_forward_16(int format, int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts,
                      int64_t chosen, const void* x, const int32_t* expert, const float* weight, const void* gate_up,
                      const void* down, void* y, void* workspace, int64_t workspace_bytes) {
    const Shape s{tokens, model, width, experts, chosen};
    const auto run = format == FLOAT16 ? forward_16<Half> : forward_16<Brain>;
    return run(threads, s, x, expert, weight, gate_up, down, y, workspace, workspace_bytes);
}

int fb_moe_backward(int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts, int64_t chosen,
                    const float* x, const int32_t* expert, const float* weight, const float* gate_up, const float* down,
                    const float* saved, const float* y_grad, float* x_grad, float* weight_grad, float* gate_up_grad,
                    float* down_grad, void* workspace, int64_t workspace_bytes) {
    Backward b{};
    b.s = {tokens, model, width, experts, chosen};
    b.threads = threads;
    if (!b.s.sound() || threads < 1) return BAD_SIZE;
    if (carve_backward(b, whole(workspace, workspace_bytes), static_cast<char*>(workspace)) > workspace_bytes)
        return SMALL_WORKSPACE;
    b.x = x, b.weight = weight, b.gate_up = gate_up, b.down = down, b.saved = saved, b.y_grad = y_grad;
    b.x_grad = x_grad, b.weight_grad = weight_grad, b.gate_up_grad = gate_up_grad, b.down_grad = down_grad;
    if (!sort_copies(b.order, b.s, expert, 0, false)) return BAD_EXPERT;
    prefer_large_pages(gate_up_grad, experts * 2 * width * model);
    prefer_large_pages(down_grad, experts * model * width);
    b.run();
    return OK;
}

int fb_moe_route(int threads, int64_t tokens, int64_t model, int64_t experts, int64_t chosen, int gate, int normalise,
                 float scale, const float* x, const float* router, const float* bias, int32_t* expert, float* weight,
                 float* scores) {
    const Router<float> r{tokens, model, experts, chosen, 0, gate, normalise, scale, x, router, bias, expert, weight, scores};
    if (!r.sound() || threads < 1) return BAD_SIZE;
    r.run(threads);
    return OK;
}

int64_t fb_moe_layer_workspace(int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts,
                               int64_t shared, int64_t chosen) {
    const int64_t inner = fb_moe_workspace(threads, tokens, model, width, experts + shared, chosen + shared);
    return inner < 0 ? inner : inner + 4 * LINE + 4 * tokens * (2 * (chosen + shared) + experts);
}

int fb_moe_layer(int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts, int64_t shared,
                 int64_t chosen, int gate, int normalise, float scale, const float* x, const float* router,
                 const float* bias, const float* gate_up, const float* down, float* y, void* workspace,
                 int64_t workspace_bytes) {
    const Shape s{tokens, model, width, experts, chosen};
    const auto compute = [&](Shape all, const float*, const int32_t* expert, const float* weight, Carver left) {
        return fb_moe_forward(threads, tokens, model, width, all.experts, all.chosen, x, expert, weight, gate_up, down,
                              y, nullptr, left.at, left.end - left.at);
    };
    return layer(threads, s, shared, Gate{gate, normalise, scale}, x, router, bias, workspace, workspace_bytes, compute);
}

int64_t fb_moe_layer_workspace_16(int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts,
                                  int64_t shared, int64_t chosen) {
    const int64_t inner = fb_moe_layer_workspace(threads, tokens, model, width, experts, shared, chosen);
    return inner < 0 ? inner : inner + 2 * (4 * tokens * model + 2 * LINE);
}

int fb_moe_layer_16(int format, int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts,
                    int64_t shared, int64_t chosen, int gate, int normalise, float scale, const void* x,
                    const void* router, const float* bias, const void* gate_up, const void* down, void* y,
                    void* workspace, int64_t workspace_bytes) {
    const Shape s{tokens, model, width, experts, chosen};
    const auto run = format == FLOAT16 ? layer_16<Half> : layer_16<Brain>;
    return run(threads, s, shared, Gate{gate, normalise, scale}, x, router, bias, gate_up, down, y, workspace,
               workspace_bytes);
}

}  // extern "C"
