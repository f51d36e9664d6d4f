// Runs one call of a kernel on what standard input holds and writes the results: for processors that can only be emulated.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" {
const char* fb_quant_path();
int64_t fb_quant_bytes(int, int64_t, int64_t);
int fb_quant_pack(int, int, int64_t, int64_t, const float*, void*);
int64_t fb_quant_workspace(int, int, int64_t, int64_t, int64_t);
int fb_quant_linear(int, int, int64_t, int64_t, int64_t, const float*, const void*, float*, void*, int64_t);
const char* fb_moe_path();
int64_t fb_moe_workspace(int, int64_t, int64_t, int64_t, int64_t, int64_t);
int fb_moe_forward(int, int64_t, int64_t, int64_t, int64_t, int64_t, const float*, const int32_t*, const float*, const float*,
                   const float*, float*, float*, void*, int64_t);
int fb_moe_backward(int, int64_t, int64_t, int64_t, int64_t, int64_t, const float*, const int32_t*, const float*,
                    const float*, const float*, const float*, const float*, float*, float*, float*, float*, void*, int64_t);
}

template <typename T>
std::vector<T> take(int64_t count) {
    std::vector<T> found(count);
    if (std::fread(found.data(), sizeof(T), count, stdin) != size_t(count)) std::exit(9);
    return found;
}

template <typename T>
void give(const T* values, int64_t count) { std::fwrite(values, sizeof(T), count, stdout); }

struct Space {
    char* at;
    explicit Space(int64_t bytes) : at(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
    ~Space() { std::free(at); }
};

#if defined(QUANT)
const char* path() { return fb_quant_path(); }

int call(const std::vector<int64_t>& n) {  // format, threads, tokens, outputs, inputs
    const auto x = take<float>(n[2] * n[4]), w = take<float>(n[3] * n[4]);
    const int64_t size = fb_quant_bytes(int(n[0]), n[3], n[4]), room = fb_quant_workspace(int(n[0]), int(n[1]), n[2], n[3], n[4]);
    if (size < 0 || room < 0) return -2;
    Space packed(size), space(room);
    std::memset(packed.at, 0, size);
    std::vector<float> y(n[2] * n[3]);
    if (const int status = fb_quant_pack(int(n[0]), int(n[1]), n[3], n[4], w.data(), packed.at)) return status;
    const int status = fb_quant_linear(int(n[0]), int(n[1]), n[2], n[3], n[4], x.data(), packed.at, y.data(), space.at, room);
    give(packed.at, size), give(y.data(), y.size());
    return status;
}
#else
const char* path() { return fb_moe_path(); }

int call(const std::vector<int64_t>& n) {  // threads, tokens, model, width, experts, chosen
    const int64_t T = n[1], D = n[2], F = n[3], E = n[4], K = n[5];
    const auto x = take<float>(T * D), weight = take<float>(T * K), up = take<float>(E * 2 * F * D), down = take<float>(E * D * F);
    const auto grad = take<float>(T * D);
    const auto expert = take<int32_t>(T * K);
    const int64_t room = fb_moe_workspace(int(n[0]), T, D, F, E, K);
    if (room < 0) return int(room);
    Space space(room);
    std::vector<float> y(T * D), saved(T * K * 2 * F), gx(T * D), gw(T * K), gu(up.size()), gd(down.size());
    int status = fb_moe_forward(int(n[0]), T, D, F, E, K, x.data(), expert.data(), weight.data(), up.data(), down.data(),
                                y.data(), saved.data(), space.at, room);
    if (!status)
        status = fb_moe_backward(int(n[0]), T, D, F, E, K, x.data(), expert.data(), weight.data(), up.data(), down.data(),
                                 saved.data(), grad.data(), gx.data(), gw.data(), gu.data(), gd.data(), space.at, room);
    give(y.data(), y.size()), give(gx.data(), gx.size()), give(gw.data(), gw.size());
    give(gu.data(), gu.size()), give(gd.data(), gd.size());
    return status;
}
#endif

int main() {
    std::fprintf(stderr, "%s", path());
    const auto count = take<int64_t>(1);
    const int status = call(take<int64_t>(count[0]));
    std::fflush(stdout);
    return -status;
}
