// Carving a workspace, and how threads share work.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

constexpr int64_t LINE = 64;     // bytes
constexpr int SECOND_CACHE = 2;  // of __builtin_prefetch

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

int64_t padded(int64_t value, int64_t step) { return blocks(value, step) * step; }

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

Carver whole(void* workspace, int64_t bytes) {
    char* begin = static_cast<char*>(workspace);
    return {begin, begin + bytes};
}

// Threads take pieces of work in order until none is left.
template <typename Piece>
void share(std::atomic<int64_t>& next, int64_t pieces, Piece piece) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < pieces;
         i = next.fetch_add(1, std::memory_order_relaxed))
        piece(i);
}

// Work in which each thread walks through a stretch of its own, then helps the others: what it reads lies in a row.
struct Stretches {
    static constexpr int64_t STEP = LINE / sizeof(std::atomic<int64_t>);
    std::atomic<int64_t>* next;  // of each stretch, a line apart
    int threads;
    int64_t pieces;

    int64_t begin(int64_t thread) const { return pieces * thread / threads; }

    void take(Carver& carver) { next = carver.take<std::atomic<int64_t>>(threads * STEP); }
    void start() const {
        for (int t = 0; t < threads; ++t) next[t * STEP].store(begin(t), std::memory_order_relaxed);
    }
    template <typename Piece>
    void walk(int me, Piece piece) const {
        for (int other = 0; other < threads; ++other) {
            const int owner = (me + other) % threads;
            share(next[owner * STEP], begin(owner + 1), piece);
        }
    }
};

int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace
