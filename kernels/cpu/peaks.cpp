// What this processor can do at most: multiply-adds in registers, and bytes to and from memory.
// The contract (arguments, checksums, status codes) is in kernels/README.md.
//
// Every kernel has one body per instruction set, chosen at run time, so that one shared object
// serves every x86-64 (or every AArch64) machine. All arithmetic is exact, so a checksum has one right value.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define TARGET(isa) __attribute__((target(isa)))
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define HAS_BF16  // the compiler
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Tells the compiler that `value` may have changed, so that work on it cannot be hoisted or merged.
#define OPAQUE(value, reg) __asm__ volatile("" : "+" reg(value))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

enum Path : int { AUTO = 0, PORTABLE = 1, AVX2 = 2, AVX512 = 3, AVX512_VNNI = 4, NEON = 5, AVX512_BF16 = 6 };
enum Operation : int { FMA = 0, INT8 = 1, READ = 2, COPY = 3, BF16 = 4 };
enum Status : int { OK = 0, NO_SUCH_PATH = -1, BAD_SIZE = -2, NO_THREAD = -3 };

constexpr size_t LINE = 64;          // bytes in a cache line
constexpr size_t STREAMS = 4;        // read streams per thread: one stream leaves bandwidth unused
constexpr size_t AHEAD = 1024;       // prefetch distance in bytes, per stream
constexpr int64_t BLOCK = 1 << 20;   // FMA pairs before a restart; keeps every value below 2^23, so exact

// ---- fp32: x <- 2x + 2, then x <- x/2 + 1; every pair of multiply-adds adds exactly 2 to x ----------

struct Constants { float twice, two, half, one; };

Constants constants() {
    volatile float twice = 2.0f, two = 2.0f, half = 0.5f, one = 1.0f;  // volatile: never folded
    return {twice, two, half, one};
}

// A block runs `pairs` pairs in each of its chains and returns the sum over chains of (end - start).
using FmaBlock = double (*)(int64_t pairs, Constants c);

double grown(const float* end, int chains) {
    double sum = 0.0;
    for (int i = 0; i < chains; ++i) sum += double(end[i]) - double(i);
    return sum;
}

constexpr int CHAINS_PORTABLE = 32;
double fma_portable(int64_t pairs, Constants c) {
    float x[CHAINS_PORTABLE];
    for (int i = 0; i < CHAINS_PORTABLE; ++i) x[i] = float(i);
    for (int64_t n = 0; n < pairs; ++n) {
        for (float& v : x) v = v * c.twice + c.two;
        for (float& v : x) v = v * c.half + c.one;
    }
    return grown(x, CHAINS_PORTABLE);
}

// The vector bodies differ in type and intrinsics only. 12 registers cover latency 4 x 2 units with room.
#define FMA_BODY(REGISTERS, LANES, VECTOR, LOAD, STORE, BROADCAST, MULADD)                        \
    alignas(64) float start[(REGISTERS) * (LANES)];                                               \
    for (int i = 0; i < (REGISTERS) * (LANES); ++i) start[i] = float(i);                          \
    VECTOR x[REGISTERS];                                                                          \
    UNROLL for (int i = 0; i < (REGISTERS); ++i) x[i] = LOAD(start + i * (LANES));                \
    const VECTOR twice = BROADCAST(c.twice), two = BROADCAST(c.two);                              \
    const VECTOR half = BROADCAST(c.half), one = BROADCAST(c.one);                                \
    for (int64_t n = 0; n < pairs; ++n) {                                                         \
        UNROLL for (int i = 0; i < (REGISTERS); ++i) x[i] = MULADD(x[i], twice, two);             \
        UNROLL for (int i = 0; i < (REGISTERS); ++i) x[i] = MULADD(x[i], half, one);              \
    }                                                                                             \
    UNROLL for (int i = 0; i < (REGISTERS); ++i) STORE(start + i * (LANES), x[i]);                \
    return grown(start, (REGISTERS) * (LANES));

// ---- int8: every group of four bytes adds dot((1,2,3,4), (5,-6,7,-8)) = -18 to a 32-bit accumulator ----

const uint8_t LEFT[4] = {1, 2, 3, 4};
const int8_t RIGHT[4] = {5, -6, 7, -8};

uint32_t packed(const void* four) {
    uint32_t word;
    std::memcpy(&word, four, sizeof word);
    return word;
}

// A block runs `steps` steps in each accumulator and returns the sum of the accumulators modulo 2^32.
using Int8Block = uint32_t (*)(int64_t steps);

uint32_t total(const uint32_t* lanes, int count) {
    uint32_t sum = 0;
    for (int i = 0; i < count; ++i) sum += lanes[i];
    return sum;
}

constexpr int MACS_PORTABLE = 64;
uint32_t int8_portable(int64_t steps) {
    uint32_t sums[16] = {};
    uint8_t left[MACS_PORTABLE];
    int8_t right[MACS_PORTABLE];
    for (int i = 0; i < MACS_PORTABLE; ++i) left[i] = LEFT[i % 4], right[i] = RIGHT[i % 4];
    for (int64_t n = 0; n < steps; ++n) {
        __asm__ volatile("" : : "r"(left), "r"(right) : "memory");
        for (int group = 0; group < MACS_PORTABLE; group += 16)
            for (int i = 0; i < 16; ++i) sums[i] += uint32_t(int32_t(left[group + i]) * int32_t(right[group + i]));
    }
    return total(sums, 16);
}

// ---- bf16: every pair of products adds dot((1, 2), (3, -1)) = 1 to a float ------------------------------

// A block runs `steps` steps in each accumulator and returns the sum of the accumulators; exact below 2^24 steps.
using Bf16Block = double (*)(int64_t steps);
constexpr int SUMS_BF16 = 12, MACS_BF16 = SUMS_BF16 * 32;

// ---- read: the sum of all 64-bit words modulo 2^64 ----------------------------------------------------

using ReadPart = uint64_t (*)(const uint8_t* data, size_t lines);

uint64_t sum_words(const uint8_t* data, size_t lines) {
    uint64_t sum = 0, word;
    for (size_t at = 0; at < lines * LINE; at += 8) {
        std::memcpy(&word, data + at, 8);
        sum += word;
    }
    return sum;
}

uint64_t read_portable(const uint8_t* data, size_t lines) {
    const size_t stride = lines / STREAMS * LINE;
    uint64_t sums[STREAMS] = {};
    for (size_t at = 0; at < stride; at += LINE)
        for (size_t s = 0; s < STREAMS; ++s) {
            __builtin_prefetch(data + s * stride + at + AHEAD);
            sums[s] += sum_words(data + s * stride + at, 1);
        }
    return sums[0] + sums[1] + sums[2] + sums[3] + sum_words(data + STREAMS * stride, lines % STREAMS);
}

#define READ_BODY(VECTOR, WIDTH, ZERO, LOAD, ADD, STORE)                                          \
    const size_t stride = lines / STREAMS * LINE;                                                 \
    VECTOR sums[STREAMS];                                                                         \
    UNROLL for (size_t s = 0; s < STREAMS; ++s) sums[s] = ZERO;                                   \
    for (size_t at = 0; at < stride; at += LINE) {                                                \
        UNROLL for (size_t s = 0; s < STREAMS; ++s) {                                             \
            const uint8_t* line = data + s * stride + at;                                         \
            __builtin_prefetch(line + AHEAD);                                                     \
            UNROLL for (size_t w = 0; w < LINE; w += (WIDTH)) sums[s] = ADD(sums[s], LOAD(line + w)); \
        }                                                                                         \
    }                                                                                             \
    uint64_t words[STREAMS * (WIDTH) / 8], sum = 0;                                               \
    UNROLL for (size_t s = 0; s < STREAMS; ++s) STORE(words + s * (WIDTH) / 8, sums[s]);          \
    for (uint64_t word : words) sum += word;                                                      \
    return sum + sum_words(data + STREAMS * stride, lines % STREAMS);

// ---- copy: returns the sum of the words it moved ------------------------------------------------------

using CopyPart = uint64_t (*)(uint8_t* to, const uint8_t* from, size_t lines);

uint64_t copy_portable(uint8_t* to, const uint8_t* from, size_t lines) {
    uint64_t sum = 0, word;
    for (size_t at = 0; at < lines * LINE; at += 8) {
        std::memcpy(&word, from + at, 8);
        std::memcpy(to + at, &word, 8);
        sum += word;
    }
    return sum;
}

#define COPY_BODY(VECTOR, WIDTH, ZERO, LOAD, ADD, STORE, STREAM)                                  \
    VECTOR sums = ZERO;                                                                           \
    for (size_t at = 0; at < lines * LINE; at += LINE) {                                          \
        __builtin_prefetch(from + at + AHEAD);                                                    \
        UNROLL for (size_t w = 0; w < LINE; w += (WIDTH)) {                                       \
            const VECTOR v = LOAD(from + at + w);                                                 \
            STREAM(to + at + w, v);                                                               \
            sums = ADD(sums, v);                                                                  \
        }                                                                                         \
    }                                                                                             \
    uint64_t words[(WIDTH) / 8], sum = 0;                                                         \
    STORE(words, sums);                                                                           \
    for (uint64_t word : words) sum += word;                                                      \
    return sum;

#if defined(__x86_64__)

constexpr int CHAINS_AVX2 = 12 * 8, CHAINS_AVX512 = 12 * 16;

TARGET("avx2,fma") double fma_avx2(int64_t pairs, Constants c) {
    FMA_BODY(12, 8, __m256, _mm256_load_ps, _mm256_store_ps, _mm256_set1_ps, _mm256_fmadd_ps)
}
TARGET("avx512f") double fma_avx512(int64_t pairs, Constants c) {
    FMA_BODY(12, 16, __m512, _mm512_load_ps, _mm512_store_ps, _mm512_set1_ps, _mm512_fmadd_ps)
}

// `STEP(sum)` performs sum += dot4(left, right) in each 32-bit lane.
#define INT8_BODY(REGISTERS, LANES, VECTOR, ZERO, BROADCAST, STORE, STEP)                         \
    VECTOR sums[REGISTERS];                                                                       \
    UNROLL for (int i = 0; i < (REGISTERS); ++i) sums[i] = ZERO();                                \
    VECTOR left = BROADCAST(int(packed(LEFT)));                                                   \
    const VECTOR right = BROADCAST(int(packed(RIGHT)));                                           \
    for (int64_t n = 0; n < steps; ++n) {                                                         \
        UNROLL for (int i = 0; i < (REGISTERS); ++i) {                                            \
            sums[i] = STEP(sums[i]);                                                              \
            OPAQUE(left, VREG);                                                                   \
        }                                                                                         \
    }                                                                                             \
    alignas(64) uint32_t lanes[(REGISTERS) * (LANES)];                                            \
    UNROLL for (int i = 0; i < (REGISTERS); ++i) STORE(lanes + i * (LANES), sums[i]);             \
    return total(lanes, (REGISTERS) * (LANES));

constexpr int MACS_AVX2 = 8 * 32, MACS_AVX512 = 8 * 64, MACS_VNNI = 16 * 64;

TARGET("avx2") uint32_t int8_avx2(int64_t steps) {
    const __m256i ones = _mm256_set1_epi16(1);
#define VREG "x"
#define STORE256(p, v) _mm256_store_si256((__m256i*)(p), v)
#define MADD256(sum) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(left, right), ones))
    INT8_BODY(8, 8, __m256i, _mm256_setzero_si256, _mm256_set1_epi32, STORE256, MADD256)
#undef VREG
}
TARGET("avx512f,avx512bw") uint32_t int8_avx512(int64_t steps) {
    const __m512i ones = _mm512_set1_epi16(1);
#define VREG "v"
#define STORE512(p, v) _mm512_store_si512((void*)(p), v)
#define MADD512(sum) _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(left, right), ones))
    INT8_BODY(8, 16, __m512i, _mm512_setzero_si512, _mm512_set1_epi32, STORE512, MADD512)
}
TARGET("avx512f,avx512vnni") uint32_t int8_vnni(int64_t steps) {
#define DPBUSD(sum) _mm512_dpbusd_epi32(sum, left, right)
    INT8_BODY(16, 16, __m512i, _mm512_setzero_si512, _mm512_set1_epi32, STORE512, DPBUSD)
#undef VREG
}

#if defined(HAS_BF16)
TARGET("avx512f,avx512bf16") double bf16_avx512(int64_t steps) {
    __m512 sums[SUMS_BF16];
    UNROLL for (int i = 0; i < SUMS_BF16; ++i) sums[i] = _mm512_setzero_ps();
    __m512i left = _mm512_set1_epi32(0x40003F80);  // 1, 2
    const __m512i right = _mm512_set1_epi32(int(0xBF804040));  // 3, -1
    for (int64_t n = 0; n < steps; ++n) {
        UNROLL for (int i = 0; i < SUMS_BF16; ++i) {
            sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)left, (__m512bh)right);
            OPAQUE(left, "v");
        }
    }
    alignas(64) float lanes[SUMS_BF16 * 16];
    double total = 0.0;
    UNROLL for (int i = 0; i < SUMS_BF16; ++i) _mm512_store_ps(lanes + i * 16, sums[i]);
    for (float lane : lanes) total += double(lane);
    return total;
}
#endif

#define LOAD256(p) _mm256_load_si256((const __m256i*)(p))
#define STOREU256(p, v) _mm256_storeu_si256((__m256i*)(p), v)
#define STREAM256(p, v) _mm256_stream_si256((__m256i*)(p), v)
#define LOAD512(p) _mm512_load_si512((const void*)(p))
#define STOREU512(p, v) _mm512_storeu_si512((void*)(p), v)
#define STREAM512(p, v) _mm512_stream_si512((__m512i*)(p), v)

TARGET("avx2") uint64_t read_avx2(const uint8_t* data, size_t lines) {
    READ_BODY(__m256i, 32, _mm256_setzero_si256(), LOAD256, _mm256_add_epi64, STOREU256)
}
TARGET("avx512f") uint64_t read_avx512(const uint8_t* data, size_t lines) {
    READ_BODY(__m512i, 64, _mm512_setzero_si512(), LOAD512, _mm512_add_epi64, STOREU512)
}
TARGET("avx2") uint64_t copy_avx2(uint8_t* to, const uint8_t* from, size_t lines) {
    COPY_BODY(__m256i, 32, _mm256_setzero_si256(), LOAD256, _mm256_add_epi64, STOREU256, STREAM256)
}
TARGET("avx512f") uint64_t copy_avx512(uint8_t* to, const uint8_t* from, size_t lines) {
    COPY_BODY(__m512i, 64, _mm512_setzero_si512(), LOAD512, _mm512_add_epi64, STOREU512, STREAM512)
}
void fence() { _mm_sfence(); }

#elif defined(__aarch64__)

constexpr int CHAINS_NEON = 24 * 4;
#define MULADD_NEON(x, a, b) vfmaq_f32(b, x, a)
double fma_neon(int64_t pairs, Constants c) {
    FMA_BODY(24, 4, float32x4_t, vld1q_f32, vst1q_f32, vdupq_n_f32, MULADD_NEON)
}
constexpr int MACS_NEON = 8 * 8;
uint32_t int8_neon(int64_t steps) {
    int32x4_t sums[8];
    UNROLL for (int i = 0; i < 8; ++i) sums[i] = vdupq_n_s32(0);
    int8x8_t left = vreinterpret_s8_u32(vdup_n_u32(packed(LEFT)));
    const int8x8_t right = vreinterpret_s8_u32(vdup_n_u32(packed(RIGHT)));
    for (int64_t n = 0; n < steps; ++n) {
        UNROLL for (int i = 0; i < 8; ++i) {
            sums[i] = vpadalq_s16(sums[i], vmull_s8(left, right));
            OPAQUE(left, "w");
        }
    }
    uint32_t lanes[32];
    UNROLL for (int i = 0; i < 8; ++i) vst1q_u32(lanes + i * 4, vreinterpretq_u32_s32(sums[i]));
    return total(lanes, 32);
}

#define LOAD128(p) vld1q_u64((const uint64_t*)(p))
#define STREAM128(p, v) vst1q_u64((uint64_t*)(p), v)
uint64_t read_neon(const uint8_t* data, size_t lines) {
    READ_BODY(uint64x2_t, 16, vdupq_n_u64(0), LOAD128, vaddq_u64, vst1q_u64)
}
uint64_t copy_neon(uint8_t* to, const uint8_t* from, size_t lines) {
    COPY_BODY(uint64x2_t, 16, vdupq_n_u64(0), LOAD128, vaddq_u64, vst1q_u64, STREAM128)
}
void fence() {}

#else
void fence() {}
#endif

// ---- dispatch ------------------------------------------------------------------------------------------

struct Kernels {
    const char* name;
    FmaBlock fma; int chains;
    Int8Block int8; int macs;   // multiply-accumulates per step
    ReadPart read;
    CopyPart copy;
    Bf16Block bf16 = nullptr;  // where the processor multiplies bfloat16
};

const Kernels PORTABLE_SET{"portable", fma_portable, CHAINS_PORTABLE, int8_portable, MACS_PORTABLE, read_portable,
                           copy_portable};
#if defined(__x86_64__)
const Kernels AVX2_SET{"avx2", fma_avx2, CHAINS_AVX2, int8_avx2, MACS_AVX2, read_avx2, copy_avx2};
const Kernels AVX512_SET{"avx512", fma_avx512, CHAINS_AVX512, int8_avx512, MACS_AVX512, read_avx512, copy_avx512};
const Kernels VNNI_SET{"avx512_vnni", fma_avx512, CHAINS_AVX512, int8_vnni, MACS_VNNI, read_avx512, copy_avx512};
#if defined(HAS_BF16)
const Kernels BF16_SET{"avx512_bf16", fma_avx512, CHAINS_AVX512, int8_vnni, MACS_VNNI, read_avx512, copy_avx512,
                       bf16_avx512};

bool supports_bf16() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
}
#endif

const Kernels* kernels_x86(int path) {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
#if defined(HAS_BF16)
    if ((path == AUTO || path == AVX512_BF16) && vnni && supports_bf16()) return &BF16_SET;
#endif
    if ((path == AUTO || path == AVX512_VNNI) && vnni) return &VNNI_SET;
    if ((path == AUTO || path == AVX512) && avx512) return &AVX512_SET;
    if ((path == AUTO || path == AVX2) && avx2) return &AVX2_SET;
    return nullptr;
}
#elif defined(__aarch64__)
const Kernels NEON_SET{"neon", fma_neon, CHAINS_NEON, int8_neon, MACS_NEON, read_neon, copy_neon};
#endif

const Kernels* kernels(int path) {
#if defined(__x86_64__)
    if (const Kernels* found = kernels_x86(path)) return found;
#elif defined(__aarch64__)
    if (path == AUTO || path == NEON) return &NEON_SET;
#endif
    return path == AUTO || path == PORTABLE ? &PORTABLE_SET : nullptr;
}

// The number-th core that this thread may use beside the one that it is on, or -1.
[[maybe_unused]] int other_core([[maybe_unused]] int number) {
#if defined(__linux__)
    cpu_set_t allowed;
    const int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return -1;
    for (int core = 0; core < CPU_SETSIZE; ++core)
        if (core != here && CPU_ISSET(core, &allowed) && --number == 0) return core;
#endif
    return -1;
}

// A thread that starts on a core of its own: born on its maker's core, it would wait there for a whole scheduler
// slice, or make its maker wait, while another core idles.
class Helper {
public:
    template <typename Work>
    bool start(int number, Work* work) {
        pthread_attr_t attributes;
        if (pthread_attr_init(&attributes) != 0) return false;
#if defined(__linux__)
        if (const int core = other_core(number); core >= 0) {
            cpu_set_t own;
            CPU_ZERO(&own);
            CPU_SET(core, &own);
            pthread_attr_setaffinity_np(&attributes, sizeof own, &own);
        }
#endif
        started_ = pthread_create(&thread_, &attributes, run<Work>, work) == 0;
        pthread_attr_destroy(&attributes);
        return started_;
    }
    void join() { if (started_) pthread_join(thread_, nullptr); }

private:
    template <typename Work>
    static void* run(void* work) {
        (*static_cast<Work*>(work))();
        return nullptr;
    }
    pthread_t thread_{};
    bool started_ = false;
};

// Runs part(0) .. part(threads - 1), the first on the calling thread, and adds up what they return.
template <typename Sum, typename Part>
int spread(int threads, Sum* checksum, Part part) {
    if (threads < 1) return BAD_SIZE;
    std::vector<Sum> sums(static_cast<size_t>(threads), Sum(0));
    struct Work {
        Part* part;
        Sum* sum;
        int thread;
        void operator()() { *sum = (*part)(thread); }
    };
    std::vector<Work> works;
    for (int t = 0; t < threads; ++t) works.push_back({&part, &sums[size_t(t)], t});
    std::vector<Helper> others(size_t(threads) - 1);
    int status = OK;
    for (int t = 1; t < threads && status == OK; ++t)
        if (!others[size_t(t) - 1].start(t, &works[size_t(t)])) status = NO_THREAD;
    if (status == OK) works[0]();
    for (Helper& other : others) other.join();
    *checksum = Sum(0);
    for (Sum sum : sums) *checksum += sum;
    return status;
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % LINE == 0; }

size_t first_line(size_t lines, int thread, int threads) { return lines * size_t(thread) / size_t(threads); }

}  // namespace

extern "C" {

int fb_abi_version() { return 1; }

const char* fb_which_kernel(int operation, int path) {
    const Kernels* found = kernels(path);
    if (!found) return nullptr;
    if (operation == BF16) return found->bf16 ? found->name : nullptr;
#if defined(__x86_64__)
    if (found->int8 == int8_vnni) return operation == INT8 ? VNNI_SET.name : operation <= COPY ? AVX512_SET.name : nullptr;
#endif
    return operation >= FMA && operation <= COPY ? found->name : nullptr;
}

int fb_fma_fp32(int path, int threads, int64_t fma_per_thread, double* checksum) {
    const Kernels* k = kernels(path);
    if (!k) return NO_SUCH_PATH;
    if (fma_per_thread < 0 || fma_per_thread % (2 * k->chains) != 0) return BAD_SIZE;
    const int64_t pairs = fma_per_thread / (2 * k->chains);
    const Constants c = constants();
    return spread(threads, checksum, [=](int) {
        double sum = 0.0;
        for (int64_t done = 0; done < pairs; done += BLOCK)
            sum += k->fma(pairs - done < BLOCK ? pairs - done : BLOCK, c);
        return sum;
    });
}

int fb_mac_int8(int path, int threads, int64_t mac_per_thread, uint32_t* checksum) {
    const Kernels* k = kernels(path);
    if (!k) return NO_SUCH_PATH;
    if (mac_per_thread < 0 || mac_per_thread % k->macs != 0) return BAD_SIZE;
    return spread(threads, checksum, [=](int) { return k->int8(mac_per_thread / k->macs); });
}

int fb_mac_bf16(int path, int threads, int64_t mac_per_thread, double* checksum) {
    const Kernels* k = kernels(path);
    if (!k || !k->bf16) return NO_SUCH_PATH;
    if (mac_per_thread < 0 || mac_per_thread % MACS_BF16 != 0) return BAD_SIZE;
    const int64_t steps = mac_per_thread / MACS_BF16;
    return spread(threads, checksum, [=](int) {
        double sum = 0.0;
        for (int64_t done = 0; done < steps; done += BLOCK) sum += k->bf16(steps - done < BLOCK ? steps - done : BLOCK);
        return sum;
    });
}

int fb_read(int path, int threads, const uint8_t* data, size_t bytes, uint64_t* checksum) {
    const Kernels* k = kernels(path);
    if (!k) return NO_SUCH_PATH;
    if (bytes % LINE != 0 || !aligned(data)) return BAD_SIZE;
    const size_t lines = bytes / LINE;
    return spread(threads, checksum, [=](int t) {
        const size_t from = first_line(lines, t, threads), to = first_line(lines, t + 1, threads);
        return k->read(data + from * LINE, to - from);
    });
}

int fb_copy(int path, int threads, uint8_t* to, const uint8_t* from, size_t bytes, uint64_t* checksum) {
    const Kernels* k = kernels(path);
    if (!k) return NO_SUCH_PATH;
    if (bytes % LINE != 0 || !aligned(to) || !aligned(from)) return BAD_SIZE;
    const size_t lines = bytes / LINE;
    return spread(threads, checksum, [=](int t) {
        const size_t first = first_line(lines, t, threads), last = first_line(lines, t + 1, threads);
        const uint64_t sum = k->copy(to + first * LINE, from + first * LINE, last - first);
        fence();  // non-temporal stores are visible before the thread ends
        return sum;
    });
}

}  // extern "C"
