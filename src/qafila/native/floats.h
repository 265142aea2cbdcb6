// Plain floating-point types to and from float32. Twin of quant/floats.py, bit for bit.
//
// Everything is integer arithmetic or exact, without branches, so that loops over these functions vectorise.
#pragma once

#include <bit>
#include <cstdint>

namespace qafila {

static_assert(std::endian::native == std::endian::little, "weights are little-endian in every file");

// a where the condition holds, else b. Masks, because the compiler turns ?: around arithmetic into jumps.
inline std::uint32_t select(bool condition, std::uint32_t a, std::uint32_t b) {
    const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
    return (a & mask) | (b & ~mask);
}

inline bool half_is_finite(std::uint16_t half) { return (half & 0x7C00u) != 0x7C00u; }

// Exact. NaN keeps its sign and payload and becomes quiet.
inline float float32_from_half(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16;
    const std::uint32_t magnitude = half & 0x7FFFu;
    const std::uint32_t normal = (magnitude << 13) + (112u << 23);
    // Subnormal halves are multiples of 2^-24.
    const float steps = static_cast<float>(static_cast<std::int32_t>(magnitude));
    const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(steps * 0x1p-24f);
    const std::uint32_t special = 0x7F800000u | (magnitude << 13) | select(magnitude > 0x7C00u, 0x00400000u, 0u);
    const std::uint32_t finite = select(magnitude < 0x0400u, subnormal, normal);
    return std::bit_cast<float>(sign | select(magnitude >= 0x7C00u, special, finite));
}

// Round to nearest even; too large becomes infinity; NaN keeps its sign and upper payload and becomes quiet.
inline std::uint16_t half_from_float32(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
    // The carry of a mantissa rounded up lands in the exponent, and beyond the last exponent makes infinity.
    const std::uint32_t normal = (magnitude - (112u << 23) + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
    // Between 0.5 and 1 a float32 counts in steps of 2^-24, as subnormal halves do: the addition rounds.
    const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
    const std::uint32_t nan = 0x7E00u | ((magnitude >> 13) & 0x03FFu);
    const std::uint32_t finite = select(magnitude < 0x38800000u, subnormal, normal);
    const std::uint32_t special = select(magnitude > 0x7F800000u, nan, 0x7C00u);
    return static_cast<std::uint16_t>(sign | select(magnitude >= 0x47800000u, special, finite));
}

inline float float32_from_bfloat16(std::uint16_t word) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(word) << 16);
}

// Round to nearest even; NaN keeps its sign and upper payload and becomes quiet.
inline std::uint16_t bfloat16_from_float32(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const std::uint32_t nan = (bits >> 16) | 0x40u;
    return static_cast<std::uint16_t>(select((bits & 0x7FFFFFFFu) > 0x7F800000u, nan, rounded));
}

}  // namespace qafila
