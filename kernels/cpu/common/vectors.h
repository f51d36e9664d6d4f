// Vectors of the compiler's own, as wide as the flags allow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

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
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

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

}  // namespace
