// float32 to plain types and to blocks of 32. Twin of quant/floats.py and legacy_blocks.py, bit for bit.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "floats.h"

namespace qafila {
namespace {

constexpr int kBlock = 32;

// 1 / d, and 0 where d is so small that there is none.
float inverse(float d) {
    if (d == 0.0f) return 0.0f;
    const float reciprocal = 1.0f / d;
    return std::isfinite(reciprocal) ? reciprocal : 0.0f;
}

// Reductions compare bit patterns or fold halves onto each other: both are exact, and both vectorise.

template <typename T, typename Choose>
T folded(T (&items)[kBlock], Choose choose) {
    for (int i = 0; i < 16; ++i) items[i] = choose(items[i], items[i + 16]);
    for (int i = 0; i < 8; ++i) items[i] = choose(items[i], items[i + 8]);
    for (int i = 0; i < 4; ++i) items[i] = choose(items[i], items[i + 4]);
    return choose(choose(items[0], items[2]), choose(items[1], items[3]));
}

constexpr auto kSmaller = [](auto a, auto b) { return a < b ? a : b; };
constexpr auto kGreater = [](auto a, auto b) { return a > b ? a : b; };

std::int32_t magnitude_bits(float value) { return std::bit_cast<std::int32_t>(value) & 0x7FFFFFFF; }

// Largest magnitude of a block. As bit patterns magnitudes are in order too, with infinity and NaN above all others.
float magnitude(const float* values) {
    std::int32_t bits[kBlock];
    for (int i = 0; i < kBlock; ++i) bits[i] = magnitude_bits(values[i]);
    return std::bit_cast<float>(folded(bits, kGreater));
}

// The first value whose magnitude is the given one.
float first_of_magnitude(const float* values, float wanted) {
    const std::int32_t wanted_bits = magnitude_bits(wanted);
    std::int32_t index[kBlock];
    for (int i = 0; i < kBlock; ++i) index[i] = magnitude_bits(values[i]) == wanted_bits ? i : kBlock - 1;
    return values[folded(index, kSmaller)];
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
    const float d = first_of_magnitude(values, largest) / -8.0f;
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

Fit pack(const float* values, BlockQ4_1& block) {
    if (!std::isfinite(magnitude(values))) return Fit::kOutOfRange;
    float items[kBlock];
    std::copy(values, values + kBlock, items);
    float least = folded(items, kSmaller);
    std::copy(values, values + kBlock, items);
    float greatest = folded(items, kGreater);
    // Among zeros of either sign the first decides which one is stored.
    if (least == 0.0f) least = first_of_magnitude(values, 0.0f);
    if (greatest == 0.0f) greatest = first_of_magnitude(values, 0.0f);
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
