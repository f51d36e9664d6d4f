// One step of a decoder-only language model: RMS norm, grouped-query attention with rotary positions over a cache, SwiGLU.
#pragma once

#include <cmath>

#include "../common/vectors.h"
#include "../quant/experts.h"

namespace {

#if defined(__aarch64__)
typedef __fp16 Half;  // of the cache
#else
typedef _Float16 Half;
#endif

struct DecoderShape {
    int64_t format, layers, model, heads, kv_heads, head, width, vocabulary, context;
    bool sound() const {
        return layers > 0 && model > 0 && heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && head > 0 && head % 2 == 0 &&
               head % LANES == 0 && width > 0 && vocabulary > 0 && context > 0;
    }
    int64_t queries() const { return heads * head; }
    int64_t projected() const { return (heads + 2 * kv_heads) * head; }
    int64_t cached() const { return kv_heads * context * head; }  // values of keys, or of values, of a layer
};

// Pointers of one layer, in this order in the caller's table; then those of the end: norm, head.
struct LayerWeights {
    const float* norm;
    uint8_t *projection, *merge;
    const float* ffn_norm;
    uint8_t *gate, *up, *down;
};

struct Decoder {
    DecoderShape s;
    int threads;
    int64_t tokens, position;
    float epsilon, base;
    const int32_t* token;
    const void* const* weights;
    Half *keys, *values;  // layers x kv_heads x context x head
    float* logits;

    float *stream, *projected, *attended, *hidden, *angles, *scores;
    Activations *narrow, *merged, *wide;  // one, or one per thread
    Scratch* scratch;
    Stretches* products;  // four of each layer, and the head's

    Matrix matrix(int64_t outputs, int64_t inputs, const void* data = nullptr) const {
        return {int(s.format), outputs, inputs, static_cast<uint8_t*>(const_cast<void*>(data))};
    }
    LayerWeights layer(int64_t number) const {
        const void* const* at = weights + 7 * number;
        const auto bytes = [&](int i) { return static_cast<uint8_t*>(const_cast<void*>(at[i])); };
        return {static_cast<const float*>(at[0]), bytes(1), bytes(2), static_cast<const float*>(at[3]), bytes(4), bytes(5), bytes(6)};
    }

    bool alone() const { return tokens == 1; }  // then every thread rounds the one token for itself

    int64_t take(Carver carver) {
        char* begin = carver.at;
        stream = carver.take<float>(tokens * s.model);
        projected = carver.take<float>(tokens * s.projected());
        attended = carver.take<float>(tokens * s.queries());
        hidden = carver.take<float>(tokens * s.width);
        angles = carver.take<float>(tokens * s.head);
        scores = carver.take<float>(threads * (s.context + LANES));
        narrow = rounded(carver, s.model), merged = rounded(carver, s.queries()), wide = rounded(carver, s.width);
        scratch = carver.take<Scratch>(threads);
        for (int i = 0; i < threads; ++i) {
            Scratch own{};
            own.take(carver, tokens, s.model);
            if (carver.end) scratch[i] = own;
        }
        products = carver.take<Stretches>(4 * s.layers + 1);
        for (int64_t i = 0; i <= 4 * s.layers; ++i) {
            Stretches parts{nullptr, threads, 0};
            parts.take(carver);
            if (carver.end) products[i] = parts;
        }
        return carver.at - begin;
    }

    Activations* rounded(Carver& carver, int64_t inputs) const {
        const int64_t sets = alone() ? threads : 1;
        Activations* found = carver.take<Activations>(sets);
        for (int64_t i = 0; i < sets; ++i) {
            Activations a{tokens, inputs, nullptr, nullptr, nullptr, nullptr};
            a.take(carver, s.format != FLOAT32);
            if (carver.end) found[i] = a;
        }
        return found;
    }

    // Each token's row of `from`, normalised if there is a gain, then rounded. With one token nobody waits.
    const Activations& round(Activations* sets, const float* from, int64_t inputs, const float* gain, int me,
                             float* row) const {
        const Activations& a = sets[alone() ? me : 0];
        for (int64_t t = alone() ? 0 : me; t < tokens; t += alone() ? 1 : threads) {
            const float* x = from + t * inputs;
            if (gain) {
                normalise(x, gain, inputs, row);
                x = row;
            }
            for (int64_t d = 0; d < a.depths(); ++d) a.fill(x, t, d);
        }
        if (!alone()) {
#pragma omp barrier
        }
        return a;
    }

    void normalise(const float* x, const float* gain, int64_t size, float* to) const {
        V sums = all<LANES>(0.0f);
        int64_t k = 0;
        for (; k + LANES <= size; k += LANES) sums += load<LANES>(x + k) * load<LANES>(x + k);
        float squares = 0.0f;
        for (int i = 0; i < LANES; ++i) squares += sums[i];
        for (; k < size; ++k) squares += x[k] * x[k];
        const float factor = 1.0f / std::sqrt(squares / size + epsilon);
        for (k = 0; k < size; ++k) to[k] = x[k] * factor * gain[k];
    }

    template <typename Visit>
    void product(int64_t number, const Matrix& w, const Activations& a, int me, Visit visit) const {
        products[number].walk(me, [&](int64_t strip) {
            const int64_t first = strip * MOST_PANELS, count = std::min<int64_t>(MOST_PANELS, w.panels() - first);
            panels(w, a, scratch[me], 0, a.tokens, first, count, visit);
        });
    }

    void rotate(float* x, const float* angle) const {
        const int64_t half = s.head / 2;
        for (int64_t i = 0; i < half; ++i) {
            const float a = x[i], b = x[half + i];
            x[i] = a * angle[i] - b * angle[half + i];
            x[half + i] = b * angle[i] + a * angle[half + i];
        }
    }

    // One key-value head: the new tokens enter the cache, then its queries look at all that is before them.
    void attend(int64_t number, int64_t group, float* score) const {
        Half* k = keys + number * s.cached() + group * s.context * s.head;
        Half* v = values + number * s.cached() + group * s.context * s.head;
        const int64_t per = s.heads / s.kv_heads;
        for (int64_t t = 0; t < tokens; ++t) {
            float* row = projected + t * s.projected();
            float *key = row + s.queries() + group * s.head, *value = key + s.kv_heads * s.head;
            rotate(key, angles + t * s.head);
            for (int64_t i = 0; i < s.head; ++i) k[(position + t) * s.head + i] = Half(key[i]), v[(position + t) * s.head + i] = Half(value[i]);
        }
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t h = group * per; h < (group + 1) * per; ++h) {
                float* query = projected + t * s.projected() + h * s.head;
                rotate(query, angles + t * s.head);
                look(query, k, v, position + t + 1, score, attended + t * s.queries() + h * s.head);
            }
    }

    static V widened(const Half* at) {
        typedef Half Halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
        return __builtin_convertvector(*reinterpret_cast<const Halves*>(at), V);
    }

    void look(const float* query, const Half* k, const Half* v, int64_t length, float* score, float* to) const {
        const float scale = 1.0f / std::sqrt(float(s.head));
        float most = -INFINITY;
        for (int64_t p = 0; p < length; ++p) {
            V sum = all<LANES>(0.0f);
            for (int64_t i = 0; i < s.head; i += LANES) sum += load<LANES>(query + i) * widened(k + p * s.head + i);
            float dot = 0.0f;
            for (int i = 0; i < LANES; ++i) dot += sum[i];
            score[p] = dot * scale;
            most = std::max(most, score[p]);
        }
        for (int64_t p = length; p < length + LANES; ++p) score[p] = -INFINITY;
        float total = 0.0f;
        for (int64_t p = 0; p < length; p += LANES) store<LANES>(score + p, exponential(load<LANES>(score + p) - most));
        for (int64_t p = 0; p < length; ++p) total += score[p];
        for (int64_t i = 0; i < s.head; i += LANES) store<LANES>(to + i, all<LANES>(0.0f));
        for (int64_t p = 0; p < length; ++p) {
            const V share = all<LANES>(score[p] / total);
            for (int64_t i = 0; i < s.head; i += LANES)
                store<LANES>(to + i, load<LANES>(to + i) + share * widened(v + p * s.head + i));
        }
    }

    // The input of a token: the row of the output head that belongs to it, so that tied weights are stored once.
    void embed(int64_t t, const Matrix& table) const {
        const int64_t n = token[t], panel = n / ROWS, row = n % ROWS;
        float* to = stream + t * s.model;
        uint8_t bytes[CODES8 + LINE];
        uint8_t* unpacked = bytes + (LINE - reinterpret_cast<uintptr_t>(bytes) % LINE);
        const Fields fields{};
        for (int64_t d = 0; d < table.depths(); ++d) {
            const uint8_t* block = table.block(panel, d);
            if (table.format == INT4) {
                unpack(fields, block, unpacked, 0);
                block = unpacked;
            }
            for (int64_t k = 0; k < std::min(DEPTH, s.model - d * DEPTH); ++k)
                to[d * DEPTH + k] = table.format == FLOAT32 ? reinterpret_cast<const float*>(block)[k * ROWS + row]
                    : table.scales()[n] * float(int(block[(k / QUAD * ROWS + row) * QUAD + k % QUAD]) - ZERO);
        }
    }

    void run() {
        const Matrix table = matrix(s.vocabulary, s.model, weights[7 * s.layers + 1]);
        for (int64_t t = 0; t < tokens; ++t) {
            embed(t, table);
            for (int64_t i = 0; i < s.head / 2; ++i) {
                const double angle = double(position + t) * std::pow(double(base), -2.0 * i / s.head);
                angles[t * s.head + i] = float(std::cos(angle)), angles[t * s.head + s.head / 2 + i] = float(std::sin(angle));
            }
        }
        const auto strips = [&](int64_t outputs) { return blocks(blocks(outputs, ROWS), MOST_PANELS); };
        for (int64_t l = 0; l < s.layers; ++l) {
            const int64_t sizes[] = {strips(s.projected()), strips(s.model), blocks(blocks(s.width, ROWS), Experts::PAIRS), strips(s.model)};
            for (int i = 0; i < 4; ++i) products[4 * l + i].pieces = sizes[i], products[4 * l + i].start();
        }
        products[4 * s.layers].pieces = strips(s.vocabulary);
        products[4 * s.layers].start();
#pragma omp parallel num_threads(threads)
        {
            const int me = thread_number();
            float* row = scratch[me].row;
            for (int64_t l = 0; l < s.layers; ++l) one_layer(l, layer(l), me, row);
            finish(table, me, row);
        }
    }

    void one_layer(int64_t l, const LayerWeights& w, int me, float* row) const {
        const auto into = [&](float* to, int64_t outputs) {
            return [=](int64_t m, int64_t begin, int64_t count, const float* sums) {
                std::memcpy(to + m * outputs + begin, sums, count * 4);
            };
        };
        const auto add = [&](int64_t m, int64_t begin, int64_t count, const float* sums) {
            float* to = stream + m * s.model + begin;
            for (int64_t n = 0; n < count; ++n) to[n] += sums[n];
        };
        product(4 * l, matrix(s.projected(), s.model, w.projection), round(narrow, stream, s.model, w.norm, me, row), me,
                into(projected, s.projected()));
#pragma omp barrier
        for (int64_t group = me; group < s.kv_heads; group += threads) attend(l, group, scores + me * (s.context + LANES));
#pragma omp barrier
        product(4 * l + 1, matrix(s.model, s.queries(), w.merge), round(merged, attended, s.queries(), nullptr, me, row), me, add);
#pragma omp barrier
        const Activations& a = round(narrow, stream, s.model, w.ffn_norm, me, row);
        const Matrix gate = matrix(s.width, s.model, w.gate), up = matrix(s.width, s.model, w.up);
        products[4 * l + 2].walk(me, [&](int64_t strip) {
            Experts::gated(gate, up, a, scratch[me], strip, 0, tokens, hidden);
        });
#pragma omp barrier
        product(4 * l + 3, matrix(s.model, s.width, w.down), round(wide, hidden, s.width, nullptr, me, row), me, add);
#pragma omp barrier
    }

    // Logits of the last token.
    void finish(const Matrix& table, int me, float* row) const {
        const float* gain = static_cast<const float*>(weights[7 * s.layers]);
        Activations a = narrow[alone() ? me : 0];
        a.tokens = 1;
        if (alone() || me == 0) {
            normalise(stream + (tokens - 1) * s.model, gain, s.model, row);
            for (int64_t d = 0; d < a.depths(); ++d) a.fill(row, 0, d);
        }
        if (!alone()) {
#pragma omp barrier
        }
        product(4 * s.layers, table, a, me, [&](int64_t, int64_t begin, int64_t count, const float* sums) {
            std::memcpy(logits + begin, sums, count * 4);
        });
    }
};

}  // namespace
