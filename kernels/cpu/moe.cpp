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
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

enum Status : int { OK = 0, BAD_SIZE = -2, BAD_EXPERT = -4, SMALL_WORKSPACE = -5 };

// ---- vectors -------------------------------------------------------------------------------------------

template <int LANES>
struct Vector {
    typedef float type __attribute__((vector_size(LANES * 4)));
    typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
    typedef int32_t ints __attribute__((vector_size(LANES * 4)));
};

template <int LANES>
inline typename Vector<LANES>::type load(const float* at) {
    return *reinterpret_cast<const typename Vector<LANES>::loose*>(at);
}

template <int LANES>
inline void store(float* at, typename Vector<LANES>::type value) {
    *reinterpret_cast<typename Vector<LANES>::loose*>(at) = value;
}

template <int LANES>
inline typename Vector<LANES>::type all(float value) {
    return value - typename Vector<LANES>::type{};
}

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr const char* NAME = "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8;
constexpr const char* NAME = "avx2";
#elif defined(__ARM_NEON)
constexpr int LANES = 4;
constexpr const char* NAME = "neon";
#else
constexpr int LANES = 4;
constexpr const char* NAME = "portable";
#endif
constexpr int VECTORS = 2, ROWS = 6;      // sums in registers; more rows, 4096 bytes apart, would evict each other
constexpr int DOT_TOKENS = 4;             // an expert with no more of them runs dot products
constexpr int WIDE = LANES * VECTORS;     // tokens of a full panel
constexpr int GRAIN = LANES / 2;          // its lanes are a multiple of it
constexpr int64_t LINE = 64;              // bytes
constexpr int64_t AHEAD = 512;            // values between a read and its prefetch into the second cache
constexpr int SECOND_CACHE = 2;           // of __builtin_prefetch
constexpr int64_t DEPTH = 256;            // values of the inner dimension whose operands stay in the first cache
constexpr int64_t BLOCK = 36;             // most expert rows of one piece of work; a multiple of every ROWS
constexpr int64_t PIECES = 8;             // of each phase per thread, at least, so that threads end together
constexpr int64_t BATCH = 16;             // panels whose sums are kept at once

using V = Vector<LANES>::type;

// e^x by 2^n · e^r with |r| <= ln(2)/2 and Taylor's series to the 6th power; relative error below 2e-7.
inline V exponential(V x) {
    const V top = all<LANES>(87.0f), bottom = all<LANES>(-87.0f);
    x = x > top ? top : x;
    x = x < bottom ? bottom : x;
    const V magic = all<LANES>(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number
    const V n = (x * 1.44269504f + magic) - magic;
    const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    V series = r * (1.0f / 720) + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r * r + r + 1.0f;
    const Vector<LANES>::ints power = (__builtin_convertvector(n, Vector<LANES>::ints) + 127) << 23;
    V scale;
    std::memcpy(&scale, &power, sizeof scale);
    return series * scale;
}

inline V sigmoid(V x) { return 1.0f / (1.0f + exponential(-x)); }

// ---- products ------------------------------------------------------------------------------------------

// c[n][lane] (+)= sum over k of b[n·bn + k·bk] · v[k·vk + lane], for RN rows, and W vectors (and half a one) of lanes.
// NEXT prefetches along the rows and the beginning of the rows that follow, for weights that come from memory.
template <int W, bool HALF, int RN, bool UNIT, bool NEXT>
inline void tile(int64_t depth, const float* b, int64_t bn, int64_t bk, const float* v, int64_t vk, float* c,
                 int64_t cn, bool add) {
    using Half = Vector<LANES / 2>::type;
    constexpr int FULL = W > 0 ? W : 1;
    const int64_t step = UNIT ? 1 : bk;
    V sums[RN][FULL];
    Half halves[RN];
    for (int n = 0; n < RN; ++n) {
        for (int w = 0; w < W; ++w) sums[n][w] = add ? load<LANES>(c + n * cn + w * LANES) : V{};
        if (HALF) halves[n] = add ? load<LANES / 2>(c + n * cn + W * LANES) : Half{};
    }
    const auto one = [&](int64_t k) {
        V lanes[FULL];
        Half half{};
        for (int w = 0; w < W; ++w) lanes[w] = load<LANES>(v + k * vk + w * LANES);
        if (HALF) half = load<LANES / 2>(v + k * vk + W * LANES);
        for (int n = 0; n < RN; ++n) {
            const float weight = b[n * bn + k * step];
            for (int w = 0; w < W; ++w) sums[n][w] += all<LANES>(weight) * lanes[w];
            if (HALF) halves[n] += all<LANES / 2>(weight) * half;
        }
    };
    int64_t k = 0;
    if (NEXT)
        for (; k + 16 <= depth; k += 16) {
            const float* soon = k + AHEAD < depth ? b + k + AHEAD : b + RN * bn + (k + AHEAD - depth);
            for (int n = 0; n < RN; ++n) __builtin_prefetch(soon + n * bn, 0, SECOND_CACHE);
            for (int i = 0; i < 16; ++i) one(k + i);
        }
    for (; k < depth; ++k) one(k);
    for (int n = 0; n < RN; ++n) {
        for (int w = 0; w < W; ++w) store<LANES>(c + n * cn + w * LANES, sums[n][w]);
        if (HALF) store<LANES / 2>(c + n * cn + W * LANES, halves[n]);
    }
}

// The same for any number of rows.
template <int W, bool HALF, bool UNIT, bool NEXT>
inline void tiles(int64_t rows, int64_t depth, const float* b, int64_t bn, int64_t bk, const float* v, int64_t vk,
                  float* c, int64_t cn, bool add) {
    int64_t n = 0;
    const auto run = [&](auto number) {
        constexpr int RN = decltype(number)::value;
        for (; n + RN <= rows; n += RN)
            tile<W, HALF, RN, UNIT, NEXT>(depth, b + n * bn, bn, bk, v, vk, c + n * cn, cn, add);
    };
    run(std::integral_constant<int, ROWS>{});
    run(std::integral_constant<int, 2>{});
    run(std::integral_constant<int, 1>{});
}

template <int L>
inline float total(typename Vector<L>::type v) {
    float parts[L], sum = 0.0f;
    std::memcpy(parts, &v, sizeof parts);
    for (int half = L / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
    sum = parts[0];
    return sum;
}

// out[r·M + m] = w[r] · x[m]. Callers go through RN stretches of memory row by row, so what lies behind a row is next.
template <int RN, int M>
inline void dots(int64_t depth, const float* const* w, const float* const* x, float* out) {
    V sums[RN][M] = {};
    const auto one = [&](int64_t k) {
        V tokens[M];
        for (int m = 0; m < M; ++m) tokens[m] = load<LANES>(x[m] + k);
        for (int r = 0; r < RN; ++r) {
            const V weights = load<LANES>(w[r] + k);
            for (int m = 0; m < M; ++m) sums[r][m] += weights * tokens[m];
        }
    };
    int64_t k = 0;
    for (; k + 16 <= depth; k += 16) {
        for (int r = 0; r < RN; ++r) __builtin_prefetch(w[r] + k + AHEAD, 0, SECOND_CACHE);
        for (int i = 0; i < 16; i += LANES) one(k + i);
    }
    for (; k + LANES <= depth; k += LANES) one(k);
    for (int r = 0; r < RN; ++r)
        for (int m = 0; m < M; ++m) {
            float sum = total<LANES>(sums[r][m]);
            for (int64_t rest = k; rest < depth; ++rest) sum += w[r][rest] * x[m][rest];
            out[r * M + m] = sum;
        }
}

// ---- the shape of one call -----------------------------------------------------------------------------

struct Shape {
    int64_t tokens, model, width, experts, chosen;
    int64_t copies() const { return tokens * chosen; }
    bool sound() const {
        return tokens > 0 && model > 0 && width > 0 && experts > 0 && chosen > 0 && chosen <= experts;
    }
};

// The copies that one expert serves: `count` entries of the order from `first`; its lanes start at `slot`.
struct Segment {
    int64_t expert, count, first, slot;
    bool rows;  // few tokens: dot products, hidden values token by token
};

int64_t padded(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Lanes of the panel that holds `left` tokens.
int64_t panel_lanes(int64_t left) { return std::min<int64_t>(padded(left, GRAIN), WIDE); }

struct Carver {
    char* at;
    char* end;
    template <typename T>
    T* take(int64_t count) {
        const auto misfit = reinterpret_cast<uintptr_t>(at) % LINE;
        if (misfit) at += LINE - misfit;
        T* found = reinterpret_cast<T*>(at);
        at += padded(count * int64_t(sizeof(T)), LINE);
        return found;
    }
    bool fits() const { return at <= end; }
};

struct Order {
    Segment* segments;  // of experts that serve a token, busiest first
    int64_t* copy;      // copies sorted by expert: token · chosen + rank
    int64_t* counts;    // per expert
    int64_t* starts;
    int64_t hit = 0, slots = 0;
};

Order carve_order(Carver& carver, const Shape& s) {
    Order order;
    order.segments = carver.take<Segment>(std::min(s.experts, s.copies()));
    order.copy = carver.take<int64_t>(s.copies());
    order.counts = carver.take<int64_t>(s.experts);
    order.starts = carver.take<int64_t>(s.experts);
    return order;
}

bool sort_copies(Order& order, const Shape& s, const int32_t* expert, int64_t dot_tokens, bool panels) {
    std::fill(order.counts, order.counts + s.experts, 0);
    for (int64_t i = 0; i < s.copies(); ++i) {
        if (expert[i] < 0 || expert[i] >= s.experts) return false;
        ++order.counts[expert[i]];
    }
    int64_t first = 0;
    for (int64_t e = 0; e < s.experts; ++e) {
        order.starts[e] = first;
        if (order.counts[e]) order.segments[order.hit++] = {e, order.counts[e], first, 0, order.counts[e] <= dot_tokens};
        first += order.counts[e];
    }
    for (int64_t i = 0; i < s.copies(); ++i) order.copy[order.starts[expert[i]]++] = i;
    std::stable_sort(order.segments, order.segments + order.hit,
                     [](const Segment& a, const Segment& b) { return a.count > b.count; });
    for (int64_t i = 0; i < order.hit; ++i) {
        Segment& segment = order.segments[i];
        segment.slot = order.slots;
        const int64_t full = segment.count / WIDE * WIDE, rest = segment.count - full;
        order.slots += segment.rows || !panels ? segment.count : full + (rest ? panel_lanes(rest) : 0);
    }
    return true;
}

// Threads take pieces of work in order until none is left.
template <typename Piece>
void share(std::atomic<int64_t>& next, int64_t pieces, Piece piece) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < pieces;
         i = next.fetch_add(1, std::memory_order_relaxed))
        piece(i);
}

int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Columns of the output in one piece: small enough that every thread gets some, large enough to be worth it.
int64_t output_block(int64_t columns, int threads) {
    return std::clamp<int64_t>(padded(columns / (threads * PIECES), ROWS), ROWS, 96 / ROWS * ROWS);
}

// ---- forward -------------------------------------------------------------------------------------------

struct Forward {
    Shape s;
    int threads;
    const float *x, *weight, *gate_up, *down;
    float *y, *saved;  // saved: copies x 2·width in sorted order, or null
    Order order;
    float *packed, *hidden, *scratch;

    int64_t token(int64_t sorted) const { return order.copy[sorted] / s.chosen; }
    float share_of(int64_t sorted) const { return weight[order.copy[sorted]]; }
    float* own_scratch() const { return scratch + thread_number() * scratch_size(); }
    static int64_t scratch_size() { return (BATCH * 2 * BLOCK + 96) * WIDE; }

    // Each panel of a segment: (first token of the segment, tokens in it, lanes).
    template <typename Visit>
    static void panels(const Segment& g, int64_t from, int64_t to, Visit visit) {
        for (int64_t p = from; p < to; ++p) {
            const int64_t begin = p * WIDE, tokens = std::min<int64_t>(WIDE, g.count - begin);
            visit(p, begin, tokens, panel_lanes(tokens));
        }
    }
    static int64_t panel_count(const Segment& g) { return blocks(g.count, WIDE); }

    // Tokens of one segment into panels, every PACKERS-th of them: packed[slot·model + k·lanes + lane].
    static constexpr int64_t PACKERS = 8;
    void pack(const Segment& g, int64_t part) const {
        if (g.rows) return;
        for (int64_t p = part; p < panel_count(g); p += PACKERS)
            panels(g, p, p + 1, [&](int64_t, int64_t begin, int64_t tokens, int64_t lanes) {
                float* to = packed + (g.slot + begin) * s.model;
                const float* from[WIDE];
                for (int64_t i = 0; i < tokens; ++i) from[i] = x + token(g.first + begin + i) * s.model;
                for (int64_t k0 = 0; k0 < s.model; k0 += 16) {
                    const int64_t k1 = std::min(k0 + 16, s.model);
                    for (int64_t i = 0; i < tokens; ++i)
                        for (int64_t k = k0; k < k1; ++k) to[k * lanes + i] = from[i][k];
                    for (int64_t i = tokens; i < lanes; ++i)
                        for (int64_t k = k0; k < k1; ++k) to[k * lanes + i] = 0.0f;
                }
            });
    }

    // Rows of weights times one panel. `fresh`: these weights come from memory.
    static void multiply(int64_t lanes, bool fresh, int64_t rows, int64_t depth, const float* b, int64_t bn,
                         const float* v, float* c, bool add) {
        const auto run = [&](auto vectors, auto half) {
            constexpr int W = decltype(vectors)::value;
            constexpr bool HALF = decltype(half)::value;
            if (fresh) tiles<W, HALF, true, true>(rows, depth, b, bn, 1, v, lanes, c, lanes, add);
            else tiles<W, HALF, true, false>(rows, depth, b, bn, 1, v, lanes, c, lanes, add);
        };
        constexpr std::true_type yes{};
        constexpr std::false_type no{};
        if (lanes == WIDE) run(std::integral_constant<int, 2>{}, no);
        else if (lanes == LANES) run(std::integral_constant<int, 1>{}, no);
        else if (lanes < LANES) run(std::integral_constant<int, 0>{}, yes);
        else run(std::integral_constant<int, 1>{}, yes);
    }

    // Hidden values f0..f1 of one expert.
    void expand(const Segment& g, int64_t f0, int64_t f1) const {
        const float* gate = gate_up + g.expert * 2 * s.width * s.model;
        const float* up = gate + s.width * s.model;
        if (g.rows) expand_rows(g, f0, f1, gate, up);
        else expand_panels(g, f0, f1, gate, up);
    }

    void expand_panels(const Segment& g, int64_t f0, int64_t f1, const float* gate, const float* up) const {
        const int64_t rows = f1 - f0, count = panel_count(g), size = 2 * BLOCK * WIDE;
        const bool lone = count == 1;
        const int64_t depth = lone ? s.model : DEPTH;
        float* sums = own_scratch();
        for (int64_t from = 0; from < count; from += BATCH) {
            const int64_t to = std::min(from + BATCH, count);
            for (int64_t k = 0; k < s.model; k += depth) {
                const int64_t here = std::min(depth, s.model - k);
                panels(g, from, to, [&](int64_t p, int64_t begin, int64_t, int64_t lanes) {
                    const float* v = packed + (g.slot + begin) * s.model + k * lanes;
                    float* c = sums + (p - from) * size;
                    multiply(lanes, p == from, rows, here, gate + f0 * s.model + k, s.model, v, c, k > 0);
                    multiply(lanes, p == from, rows, here, up + f0 * s.model + k, s.model, v, c + rows * lanes, k > 0);
                });
            }
            panels(g, from, to, [&](int64_t p, int64_t begin, int64_t tokens, int64_t lanes) {
                activate(g, f0, rows, begin, tokens, lanes, sums + (p - from) * size);
            });
        }
    }

    void activate(const Segment& g, int64_t f0, int64_t rows, int64_t begin, int64_t tokens, int64_t lanes,
                  const float* sums) const {
        float shares[WIDE + LANES] = {};
        for (int64_t i = 0; i < tokens; ++i) shares[i] = share_of(g.first + begin + i);
        float* to = hidden + (g.slot + begin) * s.width + f0 * lanes;
        const float *gates = sums, *ups = sums + rows * lanes;
        const int64_t values = rows * lanes;
        for (int64_t i = lanes; i < lanes + LANES; ++i) shares[i] = shares[i - lanes];
        int64_t i = 0;
        for (; i + LANES <= values; i += LANES) {
            const V a = load<LANES>(gates + i);
            store<LANES>(to + i, a * sigmoid(a) * load<LANES>(ups + i) * load<LANES>(shares + i % lanes));
        }
        for (; i < values; ++i) to[i] = gates[i] / (1.0f + std::exp(-gates[i])) * ups[i] * shares[i % lanes];
        if (!saved) return;
        for (int64_t t = 0; t < tokens; ++t) {
            float* row = saved + (g.first + begin + t) * 2 * s.width + f0;
            for (int64_t f = 0; f < rows; ++f) row[f] = gates[f * lanes + t];
            for (int64_t f = 0; f < rows; ++f) row[s.width + f] = ups[f * lanes + t];
        }
    }

    void expand_rows(const Segment& g, int64_t f0, int64_t f1, const float* gate, const float* up) const {
        const float* tokens[DOT_TOKENS];
        for (int64_t i = 0; i < g.count; ++i) tokens[i] = x + token(g.first + i) * s.model;
        switch (g.count) {
            case 1: return expand_dots<1>(g, f0, f1, gate, up, tokens);
            case 2: return expand_dots<2>(g, f0, f1, gate, up, tokens);
            case 3: return expand_dots<3>(g, f0, f1, gate, up, tokens);
            default: return expand_dots<4>(g, f0, f1, gate, up, tokens);
        }
    }

    template <int M>
    void expand_dots(const Segment& g, int64_t f0, int64_t f1, const float* gate, const float* up,
                     const float* const* tokens) const {
        constexpr int PAIR = M <= 2 || LANES == 16 ? 2 : 1;
        float* sums = own_scratch();  // gates of all rows, then ups; M of each row
        const int64_t rows = f1 - f0, part = rows / PAIR;
        const auto run = [&](auto pairs, int64_t row, int64_t apart) {
            constexpr int N = decltype(pairs)::value;
            const float* w[2 * N];
            for (int n = 0; n < N; ++n) {
                w[n] = gate + (f0 + row + n * apart) * s.model;
                w[N + n] = up + (f0 + row + n * apart) * s.model;
            }
            float out[2 * N * M];
            dots<2 * N, M>(s.model, w, tokens, out);
            for (int n = 0; n < N; ++n)
                for (int m = 0; m < M; ++m) {
                    sums[(row + n * apart) * M + m] = out[n * M + m];
                    sums[(rows + row + n * apart) * M + m] = out[(N + n) * M + m];
                }
        };
        for (int64_t row = 0; row < part; ++row) run(std::integral_constant<int, PAIR>{}, row, part);
        for (int64_t row = part * PAIR; row < rows; ++row) run(std::integral_constant<int, 1>{}, row, 0);
        finish_rows<M>(g, f0, rows, sums);
    }

    template <int M>
    void finish_rows(const Segment& g, int64_t f0, int64_t rows, float* sums) const {
        const int64_t values = rows * M;
        float* ups = sums + values;
        int64_t i = 0;
        for (; i + LANES <= values; i += LANES) {
            const V a = load<LANES>(sums + i);
            store<LANES>(ups + i, a * sigmoid(a) * load<LANES>(ups + i));
        }
        for (; i < values; ++i) ups[i] *= sums[i] / (1.0f + std::exp(-sums[i]));
        for (int m = 0; m < M; ++m) {
            float* to = hidden + (g.slot + m) * s.width + f0;
            const float part = share_of(g.first + m);
            for (int64_t f = 0; f < rows; ++f) to[f] = ups[f * M + m] * part;
        }
    }

    // Columns d0..d1 of the output, all experts: one thread, one order.
    void reduce(int64_t d0, int64_t d1) const {
        for (int64_t t = 0; t < s.tokens; ++t) std::fill(y + t * s.model + d0, y + t * s.model + d1, 0.0f);
        for (int64_t i = 0; i < order.hit; ++i) {
            const Segment& g = order.segments[i];
            const float* rows = down + (g.expert * s.model + d0) * s.width;
            if (g.rows) reduce_rows(g, d0, d1, rows);
            else reduce_panels(g, d0, d1, rows);
        }
    }

    void reduce_panels(const Segment& g, int64_t d0, int64_t d1, const float* weights) const {
        const int64_t rows = d1 - d0, count = panel_count(g);
        const bool lone = count == 1;
        const int64_t depth = lone ? s.width : DEPTH;
        float* sums = own_scratch();
        panels(g, 0, count, [&](int64_t p, int64_t begin, int64_t tokens, int64_t lanes) {
            const float* v = hidden + (g.slot + begin) * s.width;
            for (int64_t k = 0; k < s.width; k += depth)
                multiply(lanes, p == 0, rows, std::min(depth, s.width - k), weights + k, s.width, v + k * lanes, sums, k > 0);
            for (int64_t i = 0; i < tokens; ++i) {
                float* to = y + token(g.first + begin + i) * s.model + d0;
                for (int64_t d = 0; d < rows; ++d) to[d] += sums[d * lanes + i];
            }
        });
    }

    void reduce_rows(const Segment& g, int64_t d0, int64_t d1, const float* weights) const {
        const float* tokens[DOT_TOKENS];
        for (int64_t i = 0; i < g.count; ++i) tokens[i] = hidden + (g.slot + i) * s.width;
        switch (g.count) {
            case 1: return reduce_dots<1>(g, d0, d1, weights, tokens);
            case 2: return reduce_dots<2>(g, d0, d1, weights, tokens);
            case 3: return reduce_dots<3>(g, d0, d1, weights, tokens);
            default: return reduce_dots<4>(g, d0, d1, weights, tokens);
        }
    }

    template <int M>
    void reduce_dots(const Segment& g, int64_t d0, int64_t d1, const float* weights, const float* const* tokens) const {
        constexpr int RN = M <= 2 || LANES == 16 ? 4 : 2;
        float* to[M];
        for (int m = 0; m < M; ++m) to[m] = y + token(g.first + m) * s.model;
        const int64_t part = (d1 - d0) / RN;
        const auto run = [&](auto number, int64_t d, int64_t apart) {
            constexpr int N = decltype(number)::value;
            const float* w[N];
            for (int n = 0; n < N; ++n) w[n] = weights + (d - d0 + n * apart) * s.width;
            float out[N * M];
            dots<N, M>(s.width, w, tokens, out);
            for (int n = 0; n < N; ++n)
                for (int m = 0; m < M; ++m) to[m][d + n * apart] += out[n * M + m];
        };
        for (int64_t d = d0; d < d0 + part; ++d) run(std::integral_constant<int, RN>{}, d, part);
        for (int64_t d = d0 + part * RN; d < d1; ++d) run(std::integral_constant<int, 1>{}, d, 0);
    }

    void run() const {
        const int64_t rows = std::clamp<int64_t>(padded(s.width * order.hit / (threads * PIECES), ROWS), ROWS, BLOCK);
        const int64_t per = blocks(s.width, rows), block = output_block(s.model, threads);
        std::atomic<int64_t> packing{0}, expanding{0}, reducing{0};
#pragma omp parallel num_threads(threads)
        {
            share(packing, order.hit * PACKERS, [&](int64_t i) { pack(order.segments[i / PACKERS], i % PACKERS); });
#pragma omp barrier
            share(expanding, order.hit * per, [&](int64_t i) {
                const int64_t f0 = i % per * rows;
                expand(order.segments[i / per], f0, std::min(f0 + rows, s.width));
            });
#pragma omp barrier
            share(reducing, blocks(s.model, block), [&](int64_t i) {
                reduce(i * block, std::min((i + 1) * block, s.model));
            });
        }
    }
};

int64_t carve_forward(Forward& f, Carver carver, char* begin) {
    f.order = carve_order(carver, f.s);
    const int64_t slots = f.s.copies() + std::min(f.s.experts, f.s.copies()) * (WIDE - 1);
    f.packed = carver.take<float>(slots * f.s.model);
    f.hidden = carver.take<float>(slots * f.s.width);
    f.scratch = carver.take<float>(f.threads * Forward::scratch_size());
    return carver.at - begin;
}

// ---- routing -------------------------------------------------------------------------------------------

// Logits of all tokens, the chosen experts (largest first, the lower number on a tie) and their mixing weights, then
// the shared experts with weight 1. gate 0: softmax over all experts; 1: sigmoid of each. bias (or null) joins the
// choice, not the weight.
struct Router {
    int64_t tokens, model, experts, chosen, shared;
    int gate, normalise;
    float scale;
    const float *x, *router, *bias;
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
                const float* w[N];
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

// ---- backward ------------------------------------------------------------------------------------------

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

// Fresh memory is cheaper by the large page: a gradient of all experts is written once and given back.
void prefer_large_pages([[maybe_unused]] float* values, [[maybe_unused]] int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = uintptr_t(1) << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(values) + PAGE - 1) & ~(PAGE - 1);
    const uintptr_t end = reinterpret_cast<uintptr_t>(values + count) & ~(PAGE - 1);
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: no harm if refused
#endif
}

Carver whole(void* workspace, int64_t bytes) {
    char* begin = static_cast<char*>(workspace);
    return {begin, begin + bytes};
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
