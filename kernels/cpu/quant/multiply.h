// y = x W^T with packed weights: activations rounded block by block, weights unpacked once per block into the first cache.
#pragma once

#include <type_traits>

#if defined(__AVX512VNNI__)
#include "avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD) && defined(__aarch64__)
#include "neon.h"
#else
#include "portable.h"
#endif

namespace {

constexpr int64_t CHUNK = 256;  // tokens whose sums stay in the second cache
constexpr int64_t APART = MOST_PANELS * ROWS;  // sums of a token

// Rounded activations: blocks outside, tokens inside, so that the rows of a tile lie side by side.
struct Activations {
    int64_t tokens, inputs;
    int8_t* codes;  // depths x tokens x DEPTH
    float* plain;   // the same in float, for unquantised weights
    float* scale;   // depths x tokens
    int32_t* sum;   // depths x tokens

    int64_t depths() const { return blocks(inputs, DEPTH); }

    void take(Carver& carver, bool quantised) {
        const int64_t values = depths() * tokens;
        codes = quantised ? carver.take<int8_t>(values * DEPTH) : nullptr;
        plain = quantised ? nullptr : carver.take<float>(values * DEPTH);
        scale = carver.take<float>(values);
        sum = carver.take<int32_t>(values);
    }

    // One block of one token; x is its row.
    void fill(const float* x, int64_t token, int64_t depth) const {
        const int64_t at = depth * tokens + token, from = depth * DEPTH, here = std::min(DEPTH, inputs - from);
        float rest[DEPTH];
        const float* values = x + from;
        if (here < DEPTH) {
            std::fill(std::copy(values, values + here, rest), rest + DEPTH, 0.0f);
            values = rest;
        }
        if (plain) std::memcpy(plain + at * DEPTH, values, DEPTH * 4);
        else quantise(values, codes + at * DEPTH, scale + at, sum + at);
    }
};

// Where V panels begin, and how far behind each the next one of the same thread lies, in bytes.
template <int V>
struct Strip {
    const Matrix& w;  // of their shape
    const uint8_t* panel[V];
    int64_t next;
    uint8_t* bytes;  // V blocks of CODES8
    Fields fields{};

    // Sums for tokens from..to of a, into c: rows of APART values.
    void run(const Activations& a, int64_t from, int64_t to, float* c) const {
        const int64_t size = block_bytes(w.format);
        for (int64_t d = 0; d < a.depths(); ++d) {
            // Behind the end of a panel lies its neighbour, which is not what comes next.
            const int64_t ahead = (d + 1) * size + AHEAD > w.panel_bytes() ? AHEAD + next - w.panel_bytes() : AHEAD;
            const uint8_t* at[V];
            for (int v = 0; v < V; ++v) at[v] = panel[v] + d * size;
            if (w.format == INT4) {
                if constexpr (FEW_TOKENS > 0)
                    if (to - from <= FEW_TOKENS) {
                        few(a, to - from, at, d, from, c, ahead, std::integral_constant<int, FEW_TOKENS>{});
                        continue;
                    }
                for (int v = 0; v < V; ++v) {
                    unpack(fields, at[v], bytes + v * CODES8, ahead);
                    at[v] = bytes + v * CODES8;
                }
            }
            for (int64_t m = from; m < to;) {
                const int64_t tiles = blocks(to - m, MOST_TOKENS), here = blocks(to - m, tiles);
                const int64_t soon = m == from && w.format != INT4 ? ahead : 0;
                many(a, here, at, d, m, c + (m - from) * APART, soon, std::integral_constant<int, MOST_TOKENS>{});
                m += here;
            }
        }
    }

    template <int M>
    void few(const Activations& a, int64_t count, const uint8_t* const* at, int64_t d, int64_t m, float* c, int64_t ahead,
             std::integral_constant<int, M>) const {
        if constexpr (M > 1)
            if (count < M) return few(a, count, at, d, m, c, ahead, std::integral_constant<int, M - 1>{});
        const int64_t i = d * a.tokens + m;
        for (int v = 0; v < V; ++v)
            tile<M>(fields, at[v], a.codes + i * DEPTH, a.scale + i, a.sum + i, c + v * ROWS, APART, d > 0, ahead);
    }

    template <int M>
    void many(const Activations& a, int64_t count, const uint8_t* const* at, int64_t d, int64_t m, float* c, int64_t ahead,
              std::integral_constant<int, M>) const {
        if constexpr (M > 1)
            if (count < M) return many(a, count, at, d, m, c, ahead, std::integral_constant<int, M - 1>{});
        const int64_t i = d * a.tokens + m;
        if (w.format == FLOAT32) tile<M, V>(at, a.plain + i * DEPTH, c, APART, d > 0, ahead);
        else tile<M, V>(at, a.codes + i * DEPTH, a.scale + i, a.sum + i, c, APART, d > 0, ahead);
    }
};

// Space of one thread: sums and unpacked weights.
struct Scratch {
    float* sums;
    uint8_t* bytes;
    float* row;  // `inputs` values, where the caller asked for them
    void take(Carver& carver, int64_t tokens, int64_t inputs = 0) {
        sums = carver.take<float>(std::min(tokens, CHUNK) * APART);
        bytes = carver.take<uint8_t>(MOST_PANELS * CODES8);
        row = carver.take<float>(inputs);
    }
};

// Panels first..first+count of a product for tokens begin..end, handed over as visit(token, output, values, sums) with
// scales applied.
template <typename Visit>
void panels(const Matrix& w, const Activations& a, const Scratch& own, int64_t begin, int64_t end, int64_t first,
            int64_t count, Visit visit) {
    constexpr int V = MOST_PANELS;
    for (int64_t from = begin; from < end; from += CHUNK) {
        const int64_t to = std::min(from + CHUNK, end), output = first * ROWS;
        if (count == V) {
            Strip<V> strip{w, {}, V * w.panel_bytes(), own.bytes};
            for (int v = 0; v < V; ++v) strip.panel[v] = w.block(first + v, 0);
            strip.run(a, from, to, own.sums);
        } else
            for (int64_t v = 0; v < count; ++v)
                Strip<1>{w, {w.block(first + v, 0)}, w.panel_bytes(), own.bytes}.run(a, from, to, own.sums + v * ROWS);
        const int64_t values = std::min(count * ROWS, w.outputs - output);
        for (int64_t m = from; m < to; ++m) {
            float* sums = own.sums + (m - from) * APART;
            if (w.format != FLOAT32)
                for (int64_t n = 0; n < values; ++n) sums[n] *= w.scales()[output + n];
            visit(m, output, values, sums);
        }
    }
}

}  // namespace
