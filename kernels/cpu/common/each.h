// Loops over a constant count that are gone before the compiler looks for arrays to keep in registers.
#pragma once

#include <type_traits>
#include <utility>

#define FB_INLINE __attribute__((always_inline))

namespace {

template <typename Visit, int... I>
FB_INLINE inline void each_of(Visit&& visit, std::integer_sequence<int, I...>) {
    (visit(std::integral_constant<int, I>{}), ...);
}

// visit(0), …, visit(N − 1), each with its number as a constant.
template <int N, typename Visit>
FB_INLINE inline void each(Visit&& visit) {
    each_of(visit, std::make_integer_sequence<int, N>{});
}

}  // namespace
