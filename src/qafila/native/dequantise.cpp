// Quantised weights to float32. Twin of quant/legacy_blocks.py, k_blocks.py and floats.py, bit for bit.
//
// Each block is copied to a local first: files promise no alignment, and the copy lets the compiler see that input and
// output do not overlap. Loops have constant bounds and no branches, so that they vectorise.

#include <cmath>
#include <cstring>
#include <limits>

#include "blocks.h"
#include "floats.h"

namespace qafila {
namespace {

void unpack(const BlockQ4_0& block, float* out) {
    const float d = float32_from_half(block.d);
    for (int i = 0; i < 16; ++i) out[i] = d * static_cast<float>((block.qs[i] & 15) - 8);
    for (int i = 0; i < 16; ++i) out[16 + i] = d * static_cast<float>((block.qs[i] >> 4) - 8);
}

void unpack(const BlockQ4_1& block, float* out) {
    const float d = float32_from_half(block.d), m = float32_from_half(block.m);
    for (int i = 0; i < 16; ++i) out[i] = d * static_cast<float>(block.qs[i] & 15) + m;
    for (int i = 0; i < 16; ++i) out[16 + i] = d * static_cast<float>(block.qs[i] >> 4) + m;
}

// One bit a weight to 0 or 16.
void fifth_bits(const std::uint8_t (&qh)[4], std::uint8_t (&high)[32]) {
    for (int i = 0; i < 32; ++i) high[i] = static_cast<std::uint8_t>(((qh[i / 8] >> (i % 8)) & 1) << 4);
}

void unpack(const BlockQ5_0& block, float* out) {
    const float d = float32_from_half(block.d);
    std::uint8_t high[32];
    fifth_bits(block.qh, high);
    for (int i = 0; i < 16; ++i) out[i] = d * static_cast<float>(((block.qs[i] & 15) | high[i]) - 16);
    for (int i = 0; i < 16; ++i) out[16 + i] = d * static_cast<float>(((block.qs[i] >> 4) | high[16 + i]) - 16);
}

void unpack(const BlockQ5_1& block, float* out) {
    const float d = float32_from_half(block.d), m = float32_from_half(block.m);
    std::uint8_t high[32];
    fifth_bits(block.qh, high);
    for (int i = 0; i < 16; ++i) out[i] = d * static_cast<float>((block.qs[i] & 15) | high[i]) + m;
    for (int i = 0; i < 16; ++i) out[16 + i] = d * static_cast<float>((block.qs[i] >> 4) | high[16 + i]) + m;
}

void unpack(const BlockQ8_0& block, float* out) {
    const float d = float32_from_half(block.d);
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.qs[i]);
}

void unpack(const BlockQ2_K& block, float* out) {
    const float d = float32_from_half(block.d), dmin = float32_from_half(block.dmin);
    for (int sub = 0; sub < 16; ++sub) {
        const float step = d * static_cast<float>(block.scales[sub] & 15);
        const float minimum = dmin * static_cast<float>(block.scales[sub] >> 4);
        const std::uint8_t* qs = block.qs + 32 * (sub / 8) + 16 * (sub % 2);
        const int shift = 2 * (sub / 2 % 4);
        for (int i = 0; i < 16; ++i) out[16 * sub + i] = step * static_cast<float>((qs[i] >> shift) & 3) - minimum;
    }
}

void unpack(const BlockQ3_K& block, float* out) {
    const float d = float32_from_half(block.d);
    for (int sub = 0; sub < 16; ++sub) {
        const int low = (block.scales[sub % 8] >> (sub < 8 ? 0 : 4)) & 15;
        const int high = (block.scales[8 + sub % 4] >> (2 * (sub / 4))) & 3;
        const float step = d * static_cast<float>((low | (high << 4)) - 32);
        const std::uint8_t* qs = block.qs + 32 * (sub / 8) + 16 * (sub % 2);
        const std::uint8_t* hmask = block.hmask + 16 * (sub % 2);
        const int shift = 2 * (sub / 2 % 4), bit = sub / 2;
        for (int i = 0; i < 16; ++i) {
            const int q = ((qs[i] >> shift) & 3) | (((hmask[i] >> bit) & 1) << 2);
            out[16 * sub + i] = step * static_cast<float>(q - 4);
        }
    }
}

// The six-bit scale and minimum of sub-block `sub` of Q4_K and Q5_K; see k_blocks.six_bit_pairs.
void six_bit_pair(const std::uint8_t (&packed)[12], int sub, int& scale, int& minimum) {
    if (sub < 4) {
        scale = packed[sub] & 63;
        minimum = packed[4 + sub] & 63;
    } else {
        scale = (packed[4 + sub] & 15) | ((packed[sub - 4] >> 6) << 4);
        minimum = (packed[4 + sub] >> 4) | ((packed[sub] >> 6) << 4);
    }
}

void unpack(const BlockQ4_K& block, float* out) {
    const float d = float32_from_half(block.d), dmin = float32_from_half(block.dmin);
    float steps[8], minima[8];
    for (int sub = 0; sub < 8; ++sub) {
        int scale, least;
        six_bit_pair(block.scales, sub, scale, least);
        steps[sub] = d * static_cast<float>(scale);
        minima[sub] = dmin * static_cast<float>(least);
    }
    for (int pair = 0; pair < 4; ++pair) {
        const std::uint8_t* qs = block.qs + 32 * pair;
        const int low = 2 * pair, high = 2 * pair + 1;
        for (int i = 0; i < 32; ++i) out[32 * low + i] = steps[low] * static_cast<float>(qs[i] & 15) - minima[low];
        for (int i = 0; i < 32; ++i) out[32 * high + i] = steps[high] * static_cast<float>(qs[i] >> 4) - minima[high];
    }
}

void unpack(const BlockQ5_K& block, float* out) {
    const float d = float32_from_half(block.d), dmin = float32_from_half(block.dmin);
    for (int sub = 0; sub < 8; ++sub) {
        int scale, least;
        six_bit_pair(block.scales, sub, scale, least);
        const float step = d * static_cast<float>(scale), minimum = dmin * static_cast<float>(least);
        const std::uint8_t* qs = block.qs + 32 * (sub / 2);
        const int shift = 4 * (sub % 2);
        for (int i = 0; i < 32; ++i) {
            const int q = ((qs[i] >> shift) & 15) | (((block.qh[i] >> sub) & 1) << 4);
            out[32 * sub + i] = step * static_cast<float>(q) - minimum;
        }
    }
}

void unpack(const BlockQ6_K& block, float* out) {
    const float d = float32_from_half(block.d);
    for (int sub = 0; sub < 16; ++sub) {
        const float step = d * static_cast<float>(block.scales[sub]);
        const std::uint8_t* ql = block.ql + 64 * (sub / 8) + 16 * (sub % 4);
        const std::uint8_t* qh = block.qh + 32 * (sub / 8) + 16 * (sub % 2);
        const int low_shift = 4 * (sub / 4 % 2), high_shift = 2 * (sub / 2 % 4);
        for (int i = 0; i < 16; ++i) {
            const int q = ((ql[i] >> low_shift) & 15) | (((qh[i] >> high_shift) & 3) << 4);
            out[16 * sub + i] = step * static_cast<float>(q - 32);
        }
    }
}

template <typename Block>
bool scales_are_finite(const Block& block) {
    if constexpr (requires { block.m; }) return half_is_finite(block.d) && half_is_finite(block.m);
    if constexpr (requires { block.dmin; }) return half_is_finite(block.d) && half_is_finite(block.dmin);
    return half_is_finite(block.d);
}

// NaN comes only of scales that are not finite, and which of two NaN operands survives is up to the compiler.
template <std::size_t kCount>
void one_nan(float* values) {
    for (std::size_t i = 0; i < kCount; ++i)
        if (std::isnan(values[i])) values[i] = std::numeric_limits<float>::quiet_NaN();
}

template <typename Block>
constexpr std::size_t kElements = sizeof(Block) < 64 ? 32 : 256;

template <typename Element, typename Convert>
void convert_all(const std::uint8_t* data, float* values, std::size_t count, Convert convert) {
    for (std::size_t i = 0; i < count; ++i) {
        Element element;
        std::memcpy(&element, data + i * sizeof(Element), sizeof(Element));
        values[i] = convert(element);
    }
}

}  // namespace

template <typename Block>
void dequantise_run(const std::uint8_t* data, float* values, std::size_t blocks) {
    for (std::size_t i = 0; i < blocks; ++i) {
        Block block;
        std::memcpy(&block, data + i * sizeof(Block), sizeof(Block));
        float* out = values + i * kElements<Block>;
        unpack(block, out);
        if (!scales_are_finite(block)) one_nan<kElements<Block>>(out);
    }
}

template void dequantise_run<BlockQ4_0>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ4_1>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ5_0>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ5_1>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ8_0>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ2_K>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ3_K>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ4_K>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ5_K>(const std::uint8_t*, float*, std::size_t);
template void dequantise_run<BlockQ6_K>(const std::uint8_t*, float*, std::size_t);

void dequantise_iq4_nl(const std::uint8_t* data, float* values, std::size_t blocks) {
    // Source: ggml-common.h, kvalues_iq4nl.
    static constexpr float kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    for (std::size_t i = 0; i < blocks; ++i) {
        BlockQ4_0 block;
        std::memcpy(&block, data + i * sizeof(block), sizeof(block));
        const float d = float32_from_half(block.d);
        float levels[16];
        for (int level = 0; level < 16; ++level) levels[level] = d * kLevels[level];
        if (!half_is_finite(block.d)) one_nan<16>(levels);
        float* out = values + 32 * i;
        for (int k = 0; k < 16; ++k) out[k] = levels[block.qs[k] & 15];
        for (int k = 0; k < 16; ++k) out[16 + k] = levels[block.qs[k] >> 4];
    }
}

void dequantise_f32(const std::uint8_t* data, float* values, std::size_t count) {
    if (count > 0) std::memcpy(values, data, count * sizeof(float));
}

void dequantise_f16(const std::uint8_t* data, float* values, std::size_t count) {
    convert_all<std::uint16_t>(data, values, count, float32_from_half);
}

void dequantise_bf16(const std::uint8_t* data, float* values, std::size_t count) {
    convert_all<std::uint16_t>(data, values, count, float32_from_bfloat16);
}

void dequantise_f64(const std::uint8_t* data, float* values, std::size_t count) {
    convert_all<double>(data, values, count, [](double value) { return static_cast<float>(value); });
}

}  // namespace qafila
