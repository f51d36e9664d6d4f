// A mixture of SwiGLU experts in fp32, forward and backward: y[t] = sum over chosen e of w[t,e] · down_e(silu(gate_e x[t]) · up_e x[t]).
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

}  // namespace

extern "C" {

int fb_abi_version() { return 1; }

const char* fb_moe_path() { return NAME; }

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
    Forward f{};
    Backward b{};
    f.s = b.s = s;
    f.threads = b.threads = threads;
    char* zero = nullptr;
    return std::max(carve_forward(f, {zero, zero}, zero), carve_backward(b, {zero, zero}, zero)) + LINE;
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
    Forward f{};
    f.s = {tokens, model, width, experts, chosen};
    f.threads = threads;
    if (!f.s.sound() || threads < 1) return BAD_SIZE;
    if (carve_forward(f, whole(workspace, workspace_bytes), static_cast<char*>(workspace)) > workspace_bytes)
        return SMALL_WORKSPACE;
    f.x = x, f.weight = weight, f.gate_up = gate_up, f.down = down, f.y = y, f.saved = saved;
    if (!sort_copies(f.order, f.s, expert, saved ? 0 : DOT_TOKENS, true)) return BAD_EXPERT;
    f.run();
    return OK;
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
    const Router r{tokens, model, experts, chosen, 0, gate, normalise, scale, x, router, bias, expert, weight, scores};
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
    if (shared < 0 || tokens < 1) return BAD_SIZE;
    Carver carver = whole(workspace, workspace_bytes);
    int32_t* expert = carver.take<int32_t>(tokens * (chosen + shared));
    float* weight = carver.take<float>(tokens * (chosen + shared));
    float* scores = carver.take<float>(tokens * experts);
    if (!carver.fits()) return SMALL_WORKSPACE;
    const Router r{tokens, model, experts, chosen, shared, gate, normalise, scale, x, router, bias, expert, weight, scores};
    if (!r.sound() || threads < 1) return BAD_SIZE;
    r.run(threads);
    return fb_moe_forward(threads, tokens, model, width, experts + shared, chosen + shared, x, expert, weight, gate_up,
                          down, y, nullptr, carver.at, carver.end - carver.at);
}

}  // extern "C"
