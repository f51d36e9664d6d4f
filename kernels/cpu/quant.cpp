// Linear layers and mixtures of experts with weights of 4, 8 or 32 bits. Activations are rounded to 8 bits where weights are quantised.
// The contract (layouts, workspace, status codes) is in kernels/README.md.
//
// One source, compiled once per instruction set. Weights lie in panels of 16 outputs whose blocks of 128 inputs follow one
// another, so each thread reads long contiguous stretches. Four bits become eight exactly (code · scale + offset fits a
// byte), once per block and however many tokens; all products are then of bytes, with integer sums over a block.

#include <new>

#include "quant/experts.h"

namespace {

enum Status : int { OK = 0, BAD_SIZE = -2, BAD_EXPERT = -4, SMALL_WORKSPACE = -5, NOT_FINITE = -6 };

constexpr int64_t REDUNDANT = 32768;  // activations that every thread rounds for itself rather than wait for the others

struct Product {
    Matrix w;
    int threads;
    int64_t tokens;
    Activations* activations;  // one, or one per thread
    Scratch* scratch;
    Stretches strips;

    bool redundant() const { return tokens * w.inputs <= REDUNDANT; }

    void take(Carver& carver) {
        const int64_t sets = redundant() ? threads : 1;
        activations = carver.take<Activations>(sets);
        scratch = carver.take<Scratch>(threads);
        strips = {nullptr, threads, blocks(w.panels(), MOST_PANELS)};
        strips.take(carver);
        const bool real = carver.end != nullptr;
        for (int64_t i = 0; i < sets; ++i) {
            Activations a{tokens, w.inputs, nullptr, nullptr, nullptr, nullptr};
            a.take(carver, w.format != FLOAT32);
            if (real && carver.fits()) activations[i] = a;
        }
        for (int i = 0; i < threads; ++i) {
            Scratch s{};
            s.take(carver, tokens);
            if (real && carver.fits()) scratch[i] = s;
        }
    }

    void run(const float* x, float* y) const {
        std::atomic<int64_t> rounding{0};
        strips.start();
#pragma omp parallel num_threads(threads)
        {
            const int me = thread_number();
            const Activations& a = activations[redundant() ? me : 0];
            const auto round = [&](int64_t i) { a.fill(x + i / a.depths() * w.inputs, i / a.depths(), i % a.depths()); };
            if (redundant())
                for (int64_t i = 0; i < tokens * a.depths(); ++i) round(i);
            else {
                share(rounding, tokens * a.depths(), round);
#pragma omp barrier
            }
            strips.walk(me, [&](int64_t strip) { multiply(a, scratch[me], strip, y); });
        }
    }

    void multiply(const Activations& a, const Scratch& own, int64_t strip, float* y) const {
        const int64_t first = strip * MOST_PANELS;
        panels(w, a, own, 0, tokens, first, std::min<int64_t>(MOST_PANELS, w.panels() - first),
               [&](int64_t m, int64_t begin, int64_t values, const float* sums) {
                   std::memcpy(y + m * w.outputs + begin, sums, values * 4);
               });
    }
};

}  // namespace

extern "C" {

int fb_abi_version() { return 1; }

const char* fb_quant_path() { return NAME; }

int fb_quant_parallel() {
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

int64_t fb_quant_bytes(int format, int64_t outputs, int64_t inputs) {
    const Matrix w{format, outputs, inputs, nullptr};
    return w.sound() ? w.bytes() : int64_t(BAD_SIZE);
}

int fb_quant_pack(int format, int threads, int64_t outputs, int64_t inputs, const float* weights, void* packed) {
    const Packer packer{{format, outputs, inputs, static_cast<uint8_t*>(packed)}, weights};
    if (!packer.to.sound() || threads < 1) return BAD_SIZE;
    std::atomic<int64_t> next{0}, bad{0};
#pragma omp parallel num_threads(threads)
    {
        float* row = new (std::nothrow) float[packer.to.depths() * DEPTH];
        share(next, packer.to.panels(), [&](int64_t p) {
            if (!row) bad = SMALL_WORKSPACE;
            else if (!packer.panel(p, row)) bad = NOT_FINITE;
        });
        delete[] row;
    }
    return int(bad);
}

int64_t fb_quant_workspace(int format, int threads, int64_t tokens, int64_t outputs, int64_t inputs) {
    Product product{{format, outputs, inputs, nullptr}, threads, tokens, nullptr, nullptr, {}};
    if (!product.w.sound() || threads < 1 || tokens < 1) return BAD_SIZE;
    Carver carver{nullptr, nullptr};
    product.take(carver);
    return carver.at - static_cast<char*>(nullptr) + LINE;
}

int fb_quant_linear(int format, int threads, int64_t tokens, int64_t outputs, int64_t inputs, const float* x,
                    const void* packed, float* y, void* workspace, int64_t workspace_bytes) {
    uint8_t* data = static_cast<uint8_t*>(const_cast<void*>(packed));
    Product product{{format, outputs, inputs, data}, threads, tokens, nullptr, nullptr, {}};
    if (!product.w.sound() || threads < 1 || tokens < 1) return BAD_SIZE;
    Carver carver = whole(workspace, workspace_bytes);
    product.take(carver);
    if (!carver.fits()) return SMALL_WORKSPACE;
    product.run(x, y);
    return OK;
}

int64_t fb_quant_moe_workspace(int format, int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts,
                               int64_t chosen) {
    Experts e{};
    e.s = {tokens, model, width, experts, chosen}, e.format = format, e.threads = threads;
    if (!e.s.sound() || !e.inward().sound() || !e.outward().sound() || threads < 1) return BAD_SIZE;
    return e.take({nullptr, nullptr}) + LINE;
}

int fb_quant_moe(int format, int threads, int64_t tokens, int64_t model, int64_t width, int64_t experts, int64_t chosen,
                 const float* x, const int32_t* expert, const float* weight, const void* gate_up, const void* down,
                 float* y, void* workspace, int64_t workspace_bytes) {
    Experts e{};
    e.s = {tokens, model, width, experts, chosen}, e.format = format, e.threads = threads;
    if (!e.s.sound() || !e.inward().sound() || !e.outward().sound() || threads < 1) return BAD_SIZE;
    e.x = x, e.weight = weight, e.y = y;
    e.gate_up = static_cast<uint8_t*>(const_cast<void*>(gate_up)), e.down = static_cast<uint8_t*>(const_cast<void*>(down));
    if (fb_quant_moe_workspace(format, threads, tokens, model, width, experts, chosen) > workspace_bytes)
        return SMALL_WORKSPACE;
    e.take(whole(workspace, workspace_bytes));
    if (!sort_copies(e.order, e.s, expert)) return BAD_EXPERT;
    e.run();
    return OK;
}

}  // extern "C"
