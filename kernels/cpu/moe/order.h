// Sizes of a call, its workspace, copies sorted by expert, and how threads share the work.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "vectors.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

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

}  // namespace
