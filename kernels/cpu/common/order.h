// Sizes of a mixture of experts, and the copies of its tokens sorted by expert.
#pragma once

#include <algorithm>
#include <cstdint>

#include "work.h"

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

// False when a token is routed to an expert that does not exist.
bool sort_copies(Order& order, const Shape& s, const int32_t* expert) {
    std::fill(order.counts, order.counts + s.experts, 0);
    for (int64_t i = 0; i < s.copies(); ++i) {
        if (expert[i] < 0 || expert[i] >= s.experts) return false;
        ++order.counts[expert[i]];
    }
    int64_t first = 0;
    for (int64_t e = 0; e < s.experts; ++e) {
        order.starts[e] = first;
        if (order.counts[e]) order.segments[order.hit++] = {e, order.counts[e], first, first, false};
        first += order.counts[e];
    }
    for (int64_t i = 0; i < s.copies(); ++i) order.copy[order.starts[expert[i]]++] = i;
    std::stable_sort(order.segments, order.segments + order.hit,
                     [](const Segment& a, const Segment& b) { return a.count > b.count; });
    return true;
}

}  // namespace
