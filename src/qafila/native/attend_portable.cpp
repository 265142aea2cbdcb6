// Attention over the blocks of the KV cache, slow and obvious: the oracle of every other instruction set.

#include <cmath>
#include <limits>

#include "floats.h"
#include "kernels_portable.h"

namespace qafila::portable {
namespace {

std::uint16_t saturated_half(float value) {
    // The comparisons are false for NaN, which stays NaN.
    if (value > 65504.0f) value = 65504.0f;
    if (value < -65504.0f) value = -65504.0f;
    return half_from_float32(value);
}

// scale = max|x| / 127, quants = x / scale, to nearest, ties to even.
float int8_scale(const float* x, std::size_t n) {
    float largest = 0.0f;
    for (std::size_t i = 0; i < n; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    return largest / 127.0f;
}

std::int8_t int8_quant(float x, float scale) {
    if (!(scale > 0.0f)) return 0;
    const float quant = std::nearbyint(x / scale);
    // NaN and infinities have no quant: they end at the border.
    return static_cast<std::int8_t>(quant > 127.0f ? 127.0f : quant > -127.0f ? quant : -127.0f);
}

constexpr std::int32_t kTokens = kBlockTokens;

// The scales that follow a block's int8 keys and values.
const float* scales_of(const void* block, std::size_t head_dim) {
    return reinterpret_cast<const float*>(static_cast<const std::int8_t*>(block) + 2 * kBlockTokens * head_dim);
}

float key_scale(const AttendArgs& args, std::int32_t position) {
    if (!args.int8) return 1.0f;
    return scales_of(args.blocks[(position - args.begin) / kTokens], args.head_dim)[position % kTokens];
}

float value_scale(const AttendArgs& args, std::int32_t position) {
    if (!args.int8) return 1.0f;
    return scales_of(args.blocks[(position - args.begin) / kTokens], args.head_dim)[kTokens + position % kTokens];
}

float as_float(std::uint16_t half) { return float32_from_half(half); }
float as_float(std::int8_t quant) { return static_cast<float>(quant); }

// One row, over positions [from, to) of the split. T is what keys and values are stored as.
template <typename T>
void attend_row(const AttendArgs& args, std::size_t row, std::int32_t from, std::int32_t to) {
    const std::size_t head_dim = args.head_dim;
    const float* query = args.queries + row * head_dim;
    float* values = args.values + row * head_dim;
    float* scores = args.scratch;
    float maximum = -std::numeric_limits<float>::infinity();
    float sum = 0.0f;
    for (std::size_t n = 0; n < head_dim; ++n) values[n] = 0.0f;
    for (std::int32_t start = from - from % kTokens; start < to; start += kTokens) {
        const T* keys = static_cast<const T*>(args.blocks[(start - args.begin) / kTokens]);
        float dots[kBlockTokens] = {};
        for (std::size_t n = 0; n < head_dim; ++n)
            for (std::size_t slot = 0; slot < kBlockTokens; ++slot)
                dots[slot] += query[n] * as_float(keys[n * kBlockTokens + slot]);
        const std::int32_t end = start + kTokens < to ? start + kTokens : to;
        for (std::int32_t position = start > from ? start : from; position < end; ++position) {
            const float score = dots[position - start] * key_scale(args, position);
            scores[position - args.begin] = score;
            if (score > maximum) maximum = score;
        }
    }
    for (std::int32_t position = from; position < to; ++position) {
        const float weight = std::exp(scores[position - args.begin] - maximum);
        sum += weight;
        const float scaled = weight * value_scale(args, position);
        const T* block = static_cast<const T*>(args.blocks[(position - args.begin) / kTokens]);
        const T* value = block + (kBlockTokens + static_cast<std::size_t>(position % kTokens)) * head_dim;
        for (std::size_t n = 0; n < head_dim; ++n) values[n] += scaled * as_float(value[n]);
    }
    args.maximum[row] = maximum;
    args.sum[row] = sum;
}

}  // namespace

void store_kv(const float* key, const float* value, std::size_t head_dim, std::size_t slot, bool int8, void* block) {
    if (!int8) {
        auto* halves = static_cast<std::uint16_t*>(block);
        for (std::size_t n = 0; n < head_dim; ++n) {
            halves[n * kBlockTokens + slot] = saturated_half(key[n]);
            halves[(kBlockTokens + slot) * head_dim + n] = saturated_half(value[n]);
        }
        return;
    }
    auto* quants = static_cast<std::int8_t*>(block);
    const float of_key = int8_scale(key, head_dim), of_value = int8_scale(value, head_dim);
    for (std::size_t n = 0; n < head_dim; ++n) {
        quants[n * kBlockTokens + slot] = int8_quant(key[n], of_key);
        quants[(kBlockTokens + slot) * head_dim + n] = int8_quant(value[n], of_value);
    }
    auto* scales = reinterpret_cast<float*>(quants + 2 * kBlockTokens * head_dim);
    scales[slot] = of_key;
    scales[kBlockTokens + slot] = of_value;
}

void attend(const AttendArgs& args) {
    for (std::size_t row = 0; row < args.rows; ++row) {
        const std::int32_t from = args.first[row] > args.begin ? args.first[row] : args.begin;
        const std::int32_t to = args.last[row] < args.end ? args.last[row] + 1 : args.end;
        if (args.int8) {
            attend_row<std::int8_t>(args, row, from, to);
        } else {
            attend_row<std::uint16_t>(args, row, from, to);
        }
    }
}

void merge(const float* maximum, const float* sum, const float* values, std::size_t splits, std::size_t stride,
           std::size_t head_dim, float* out) {
    float largest = -std::numeric_limits<float>::infinity();
    for (std::size_t s = 0; s < splits; ++s)
        if (maximum[s * stride] > largest) largest = maximum[s * stride];
    float total = 0.0f;
    for (std::size_t n = 0; n < head_dim; ++n) out[n] = 0.0f;
    for (std::size_t s = 0; s < splits; ++s) {
        // A split in which nothing was seen. (A sum that is NaN goes on, into the result.)
        if (sum[s * stride] == 0.0f) continue;
        const float weight = std::exp(maximum[s * stride] - largest);
        total += weight * sum[s * stride];
        for (std::size_t n = 0; n < head_dim; ++n)
            out[n] += weight * values[s * stride * head_dim + n];
    }
    if (total == 0.0f) return;
    for (std::size_t n = 0; n < head_dim; ++n) out[n] /= total;
}

}  // namespace qafila::portable
