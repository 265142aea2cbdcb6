// float32 to plain types and to blocks of 32. Twin of quant/floats.py and legacy_blocks.py, bit for bit.

#include <cmath>
#include <cstring>
#include <limits>

#include "blocks.h"
#include "floats.h"

namespace qafila {
namespace {

constexpr int kBlock = 32;

// 1 / d, and 0 where d is so small that there is none.
float inverse(float d) {
    const float reciprocal = 1.0f / d;
    return std::isfinite(reciprocal) ? reciprocal : 0.0f;
}

// Largest magnitude of a block; infinity where a value is infinite or NaN.
float magnitude(const float* values) {
    float largest = 0.0f;
    bool finite = true;
    for (int i = 0; i < kBlock; ++i) {
        const float value = std::fabs(values[i]);
        finite &= value < std::numeric_limits<float>::infinity();
        largest = value > largest ? value : largest;
    }
    return finite ? largest : std::numeric_limits<float>::infinity();
}

// Every kernel returns before it converts a value that does not fit an integer.
Fit pack(const float* values, BlockQ8_0& block) {
    const float d = magnitude(values) / 127.0f;
    block.d = half_from_float32(d);
    if (!half_is_finite(block.d)) return Fit::kOutOfRange;
    const float id = inverse(d);
    for (int i = 0; i < kBlock; ++i) {
        const float scaled = values[i] * id;
        const float size = std::fabs(scaled);
        const int whole = static_cast<int>(size);
        const int rounded = whole + static_cast<int>(2.0f * (size - static_cast<float>(whole)));
        block.qs[i] = static_cast<std::int8_t>(scaled < 0.0f ? -rounded : rounded);
    }
    return Fit::kGood;
}

Fit pack(const float* values, BlockQ4_0& block) {
    const float largest = magnitude(values);
    if (!std::isfinite(largest)) return Fit::kOutOfRange;
    int first = 0;
    while (std::fabs(values[first]) != largest) ++first;
    const float d = values[first] / -8.0f;
    block.d = half_from_float32(d);
    if (!half_is_finite(block.d)) return Fit::kOutOfRange;
    const float id = inverse(d);
    std::uint8_t q[kBlock];
    for (int i = 0; i < kBlock; ++i) {
        const int rounded = static_cast<int>(values[i] * id + 8.5f);
        q[i] = static_cast<std::uint8_t>(rounded > 15 ? 15 : rounded);
    }
    for (int i = 0; i < 16; ++i) block.qs[i] = static_cast<std::uint8_t>(q[i] | (q[16 + i] << 4));
    return Fit::kGood;
}

// The first of the values that equal `wanted`: among zeros of either sign it decides which one is stored.
float first_equal(const float* values, float wanted) {
    int first = 0;
    while (values[first] != wanted) ++first;
    return values[first];
}

Fit pack(const float* values, BlockQ4_1& block) {
    if (!std::isfinite(magnitude(values))) return Fit::kOutOfRange;
    float least = values[0], greatest = values[0];
    for (int i = 1; i < kBlock; ++i) {
        least = values[i] < least ? values[i] : least;
        greatest = values[i] > greatest ? values[i] : greatest;
    }
    least = first_equal(values, least);
    greatest = first_equal(values, greatest);
    const float d = (greatest - least) / 15.0f;
    block.d = half_from_float32(d);
    block.m = half_from_float32(least);
    if (!half_is_finite(block.d) || !half_is_finite(block.m)) return Fit::kOutOfRange;
    const float id = inverse(d);
    std::uint8_t q[kBlock];
    for (int i = 0; i < kBlock; ++i) {
        const int rounded = static_cast<int>((values[i] - least) * id + 0.5f);
        q[i] = static_cast<std::uint8_t>(rounded > 15 ? 15 : rounded);
    }
    for (int i = 0; i < 16; ++i) block.qs[i] = static_cast<std::uint8_t>(q[i] | (q[16 + i] << 4));
    return Fit::kGood;
}

template <typename Block>
Fit quantise_run(const float* values, std::uint8_t* data, std::size_t blocks) {
    for (std::size_t i = 0; i < blocks; ++i) {
        Block block;
        if (pack(values + i * kBlock, block) != Fit::kGood) return Fit::kOutOfRange;
        std::memcpy(data + i * sizeof(Block), &block, sizeof(Block));
    }
    return Fit::kGood;
}

template <typename Convert>
Fit convert_all(const float* values, std::uint8_t* data, std::size_t count, Convert convert) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint16_t word = convert(values[i]);
        std::memcpy(data + i * sizeof(word), &word, sizeof(word));
    }
    return Fit::kGood;
}

}  // namespace

Fit quantise_f32(const float* values, std::uint8_t* data, std::size_t count) {
    if (count > 0) std::memcpy(data, values, count * sizeof(float));
    return Fit::kGood;
}

Fit quantise_f16(const float* values, std::uint8_t* data, std::size_t count) {
    return convert_all(values, data, count, half_from_float32);
}

Fit quantise_bf16(const float* values, std::uint8_t* data, std::size_t count) {
    return convert_all(values, data, count, bfloat16_from_float32);
}

Fit quantise_q8_0(const float* values, std::uint8_t* data, std::size_t blocks) {
    return quantise_run<BlockQ8_0>(values, data, blocks);
}

Fit quantise_q4_0(const float* values, std::uint8_t* data, std::size_t blocks) {
    return quantise_run<BlockQ4_0>(values, data, blocks);
}

Fit quantise_q4_1(const float* values, std::uint8_t* data, std::size_t blocks) {
    return quantise_run<BlockQ4_1>(values, data, blocks);
}

}  // namespace qafila
