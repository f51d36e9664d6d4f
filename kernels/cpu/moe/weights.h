// Weights and activations of 16 bits: stored so, multiplied as floats.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "vectors.h"

namespace {

struct Brain { uint16_t bits; };  // bfloat16: the upper half of a float
struct Half { uint16_t bits; };   // float16 of IEEE 754

template <typename Weight>
constexpr bool NARROW = !std::is_same<Weight, float>::value;
template <typename Weight>
constexpr int IN_LINE = int(LINE / sizeof(Weight));
template <typename Weight>
constexpr int64_t SOON = AHEAD * int64_t(sizeof(float) / sizeof(Weight));  // values between a read and its prefetch

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float wide(float value) { return value; }

inline float wide(Brain value) { return float_of(uint32_t(value.bits) << 16); }

// Without a float that is subnormal on the way: some processors take a hundred cycles for one.
inline float wide(Half value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
    if (rest < 0x0400) return float_of(bits_of(float(rest) * 5.9604644775390625e-8f) | sign);  // 2^-24
    return float_of(((rest << 13) + ((rest < 0x7c00 ? 112u : 224u) << 23)) | sign);
}

inline V wide_vector(const float* at) { return load<LANES>(at); }

inline V wide_vector(const Brain* at) {
    typedef uint16_t shorts __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
    typedef uint32_t words __attribute__((vector_size(LANES * 4)));
    const words bits = __builtin_convertvector(*reinterpret_cast<const shorts*>(at), words) << 16;
    V values;
    std::memcpy(&values, &bits, sizeof values);
    return values;
}

inline V wide_vector(const Half* at) {
#if defined(__AVX512F__)
    return V(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    return V(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#elif defined(__ARM_NEON)
    return V(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(at)))));
#else
    V values;
    for (int i = 0; i < LANES; ++i) values[i] = wide(at[i]);
    return values;
#endif
}

// To the nearest, to the even one of two. What is no number stays none.
inline void narrow(float value, Brain& to) {
    const uint32_t bits = bits_of(value);
    to.bits = value == value ? uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : uint16_t(bits >> 16 | 0x40);
}

inline void narrow(float value, Half& to) {
    const uint32_t bits = bits_of(value), rest = bits & 0x7fffffff;
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    uint32_t found;
    if (value != value) found = 0x7e00;
    else if (rest >= 0x47800000) found = 0x7c00;                                     // 65536 and more
    else if (rest < 0x38800000) found = bits_of(float_of(rest) + 0.5f) - 0x3f000000;  // subnormal: steps of 2^-24
    else found = (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
    to.bits = uint16_t(sign | found);
}

inline void narrow_all(const float* from, Brain* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) narrow(from[i], to[i]);
}

inline void narrow_all(const float* from, Half* to, int64_t count) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + LANES <= count; i += LANES)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), 0));
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    for (; i + LANES <= count; i += LANES)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < count; ++i) narrow(from[i], to[i]);
}

template <typename Weight>
inline void widen_all(const Weight* from, float* to, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store<LANES>(to + i, wide_vector(from + i));
    for (; i < count; ++i) to[i] = wide(from[i]);
}

}  // namespace
