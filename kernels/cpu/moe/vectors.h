// The constants that follow from the width of a vector.
#pragma once

#include <cstdint>

#include "../common/vectors.h"
#include "../common/work.h"

namespace {

#if defined(__AVX512F__)
constexpr const char* NAME = "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
constexpr const char* NAME = "avx2";
#elif defined(__ARM_NEON)
constexpr const char* NAME = "neon";
#else
constexpr const char* NAME = "portable";
#endif
constexpr int VECTORS = 2, ROWS = 6;      // sums in registers; more rows, 4096 bytes apart, would evict each other
constexpr int DOT_TOKENS = 4;             // an expert with no more of them runs dot products
constexpr int WIDE = LANES * VECTORS;     // tokens of a full panel
constexpr int GRAIN = LANES / 2;          // its lanes are a multiple of it
constexpr int64_t AHEAD = 512;            // values between a read and its prefetch into the second cache
constexpr int64_t DEPTH = 256;            // values of the inner dimension whose operands stay in the first cache
constexpr int64_t BLOCK = 36;             // most expert rows of one piece of work; a multiple of every ROWS
constexpr int64_t PIECES = 8;             // of each phase per thread, at least, so that threads end together
constexpr int64_t BATCH = 16;             // panels whose sums are kept at once

}  // namespace
