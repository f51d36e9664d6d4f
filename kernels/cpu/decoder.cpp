// A decoder-only language model, one call per step, on weights of 4, 8 or 32 bits.
// The contract (shape, table of weights, cache, status codes) is in kernels/README.md.
//
// The whole step is one parallel region: threads meet five times a layer and nowhere else.

#include "decoder/model.h"

namespace {

enum Status : int { OK = 0, BAD_SIZE = -2, SMALL_WORKSPACE = -5 };

}  // namespace

extern "C" {

int fb_abi_version() { return 1; }

const char* fb_decoder_path() { return NAME; }

// `shape`: the nine numbers of DecoderShape.
int64_t fb_decoder_workspace(const int64_t* shape, int threads, int64_t tokens) {
    Decoder d{};
    std::memcpy(&d.s, shape, sizeof d.s);
    d.threads = threads, d.tokens = tokens;
    const bool sound = d.s.sound() && threads > 0 && tokens > 0 && d.matrix(d.s.vocabulary, d.s.model).sound() &&
                       d.matrix(d.s.model, d.s.width).sound() && d.matrix(d.s.model, d.s.queries()).sound();
    return sound ? d.take({nullptr, nullptr}) + LINE : int64_t(BAD_SIZE);
}

int fb_decoder_step(const int64_t* shape, int threads, int64_t tokens, int64_t position, float epsilon, float base,
                    const int32_t* token, const void* const* weights, void* keys, void* values, float* logits,
                    void* workspace, int64_t workspace_bytes) {
    const int64_t wanted = fb_decoder_workspace(shape, threads, tokens);
    if (wanted < 0) return int(wanted);
    if (wanted > workspace_bytes) return SMALL_WORKSPACE;
    Decoder d{};
    std::memcpy(&d.s, shape, sizeof d.s);
    if (position < 0 || position + tokens > d.s.context) return BAD_SIZE;
    for (int64_t t = 0; t < tokens; ++t)
        if (token[t] < 0 || token[t] >= d.s.vocabulary) return BAD_SIZE;
    d.threads = threads, d.tokens = tokens, d.position = position, d.epsilon = epsilon, d.base = base, d.token = token;
    d.weights = weights, d.keys = static_cast<Half*>(keys), d.values = static_cast<Half*>(values), d.logits = logits;
    d.take(whole(workspace, workspace_bytes));
    d.run();
    return OK;
}

}  // extern "C"
