// Products in plain C++: the obvious loops, shaped so that any compiler's vectoriser finds 8 lanes of int16 or 4 of float.
//
// A block of 32 columns is first decoded to signed 16-bit weights in the panel's own order, [8 groups][16 rows][4], and
// then multiplies every token of a tile. Sums of a few products fit in 16 bits (each type says how many), which is what
// baseline instruction sets multiply fastest.

#include <cstring>

#include "floats.h"
#include "kernels_portable.h"

namespace qafila::portable {
namespace {

constexpr int kRows = static_cast<int>(kPanelRows);
constexpr std::size_t kTile = 16;  // tokens that share the decoding of a block

struct Block {
    std::int16_t weights[8][4 * kRows];
    float scale[kRows];
    float other[kRows];  // the minimum, or the scale of the second half
};

void decode_halves(const std::uint8_t* halves, float* out) {
    for (int r = 0; r < kRows; ++r) {
        std::uint16_t half;
        std::memcpy(&half, halves + 2 * r, 2);
        out[r] = float32_from_half(half);
    }
}

// q[4][16][4] bytes: low nibbles are groups 0 to 3, high nibbles groups 4 to 7.
void decode_nibbles(const std::uint8_t* q, int zero, std::int16_t (&weights)[8][4 * kRows]) {
    for (int g = 0; g < 4; ++g)
        for (int l = 0; l < 4 * kRows; ++l) {
            weights[g][l] = static_cast<std::int16_t>((q[4 * kRows * g + l] & 15) - zero);
            weights[4 + g][l] = static_cast<std::int16_t>((q[4 * kRows * g + l] >> 4) - zero);
        }
}

// Each type: how many groups of products fit in 16 bits, whether it has minima or a scale for each half, and how block
// `b` of a panel is decoded.
struct Q8_0 {
    static constexpr std::size_t kColumns = 32, kBytes = 34 * kPanelRows;
    static constexpr int kGroups = 2;  // 2 * 128 * 127 < 2^15
    static constexpr bool kMinimum = false, kHalves = false;
    static void decode(const std::uint8_t* panel, std::size_t b, Block& block) {
        const std::uint8_t* data = panel + b * 34 * kRows;
        decode_halves(data, block.scale);
        for (int g = 0; g < 8; ++g)
            for (int l = 0; l < 4 * kRows; ++l)
                block.weights[g][l] = static_cast<std::int16_t>(data[2 * kRows + 4 * kRows * g + l] - 128);
    }
};

struct Q4_0 {
    static constexpr std::size_t kColumns = 32, kBytes = 18 * kPanelRows;
    static constexpr int kGroups = 8;  // 8 * 8 * 127 < 2^15
    static constexpr bool kMinimum = false, kHalves = false;
    static void decode(const std::uint8_t* panel, std::size_t b, Block& block) {
        const std::uint8_t* data = panel + b * 18 * kRows;
        decode_halves(data, block.scale);
        decode_nibbles(data + 2 * kRows, 8, block.weights);
    }
};

struct Q4_1 {
    static constexpr std::size_t kColumns = 32, kBytes = 20 * kPanelRows;
    static constexpr int kGroups = 8;  // 8 * 15 * 127 < 2^15
    static constexpr bool kMinimum = true, kHalves = false;
    static void decode(const std::uint8_t* panel, std::size_t b, Block& block) {
        const std::uint8_t* data = panel + b * 20 * kRows;
        decode_halves(data, block.scale);
        decode_halves(data + 2 * kRows, block.other);
        decode_nibbles(data + 4 * kRows, 0, block.weights);
    }
};

// Scales and minima of sub-block `sub` of Q4_K and Q5_K.
void decode_scales(const std::uint8_t* data, std::size_t sub, Block& block) {
    decode_halves(data, block.scale);
    decode_halves(data + 2 * kRows, block.other);
    const std::uint8_t* scales = data + 4 * kRows + sub * kRows;
    const std::uint8_t* minima = scales + 8 * kRows;
    for (int r = 0; r < kRows; ++r) block.scale[r] *= static_cast<float>(scales[r]);
    for (int r = 0; r < kRows; ++r) block.other[r] = -(block.other[r] * static_cast<float>(minima[r]));
}

constexpr int kSubBlocks = 4 * kRows + 16 * kRows;  // where the sub-blocks of Q4_K and Q5_K begin

struct Q4_K {
    static constexpr std::size_t kColumns = 256, kBytes = 148 * kPanelRows;
    static constexpr int kGroups = 8;
    static constexpr bool kMinimum = true, kHalves = false;
    static void decode(const std::uint8_t* panel, std::size_t b, Block& block) {
        const std::uint8_t* data = panel + b / 8 * (kSubBlocks + 8 * 16 * kRows);
        decode_scales(data, b % 8, block);
        decode_nibbles(data + kSubBlocks + b % 8 * 16 * kRows, 0, block.weights);
    }
};

struct Q5_K {
    static constexpr std::size_t kColumns = 256, kBytes = 180 * kPanelRows;
    static constexpr int kGroups = 8;  // 8 * 31 * 127 < 2^15
    static constexpr bool kMinimum = true, kHalves = false;
    static void decode(const std::uint8_t* panel, std::size_t b, Block& block) {
        constexpr int kStride = 16 * kRows + 64;
        const std::uint8_t* data = panel + b / 8 * (kSubBlocks + 8 * kStride);
        const std::uint8_t* nibbles = data + kSubBlocks + b % 8 * kStride;
        decode_scales(data, b % 8, block);
        decode_nibbles(nibbles, 0, block.weights);
        for (int g = 0; g < 8; ++g)
            for (int l = 0; l < 4 * kRows; ++l) {
                const int bit = (nibbles[16 * kRows + 8 * g + l / 8] >> (l % 8)) & 1;
                block.weights[g][l] = static_cast<std::int16_t>(block.weights[g][l] | (bit << 4));
            }
    }
};

struct Q6_K {
    static constexpr std::size_t kColumns = 256, kBytes = 210 * kPanelRows;
    static constexpr int kGroups = 4;  // one scale spans 4 groups
    static constexpr bool kMinimum = false, kHalves = true;
    static void decode(const std::uint8_t* panel, std::size_t b, Block& block) {
        constexpr int kStride = 16 * kRows + 8 * kRows;
        const std::uint8_t* data = panel + b / 8 * (2 * kRows + 16 * kRows + 8 * kStride);
        const std::uint8_t* scales = data + 2 * kRows + b % 8 * 2 * kRows;
        const std::uint8_t* nibbles = data + 2 * kRows + 16 * kRows + b % 8 * kStride;
        const std::uint8_t* high = nibbles + 16 * kRows;
        decode_halves(data, block.scale);
        for (int r = 0; r < kRows; ++r) {
            block.other[r] = block.scale[r] * static_cast<float>(static_cast<std::int8_t>(scales[kRows + r]));
            block.scale[r] *= static_cast<float>(static_cast<std::int8_t>(scales[r]));
        }
        decode_nibbles(nibbles, 0, block.weights);
        for (int g = 0; g < 8; ++g)
            for (int l = 0; l < 4 * kRows; ++l) {
                const int bits = (high[4 * kRows * (g / 4) + l] >> (2 * (g % 4))) & 3;
                block.weights[g][l] = static_cast<std::int16_t>((block.weights[g][l] | (bits << 4)) - 32);
            }
    }
};

// sums[r] += products of `kGroups` groups of columns from `first` on.
template <int kGroups>
void add_products(const std::int16_t (&weights)[8][4 * kRows], const std::int16_t (&x)[8][8], int first,
                  std::int32_t (&sums)[kRows]) {
    std::int16_t lanes[4 * kRows] = {};
    for (int g = first; g < first + kGroups; ++g)
        for (int v = 0; v < 4 * kRows; v += 8)
            for (int l = 0; l < 8; ++l)
                lanes[v + l] = static_cast<std::int16_t>(lanes[v + l] + weights[g][v + l] * x[g][l]);
    for (int r = 0; r < kRows; ++r) sums[r] += lanes[4 * r] + lanes[4 * r + 1] + lanes[4 * r + 2] + lanes[4 * r + 3];
}

// sum[r] += products of groups [first, last) by the scale.
template <int kGroups>
void add_groups(const Block& block, const std::int16_t (&x)[8][8], int first, int last, const float (&scale)[kRows],
                float x_scale, float* sum) {
    std::int32_t dots[kRows] = {};
    for (int g = first; g < last; g += kGroups) add_products<kGroups>(block.weights, x, g, dots);
    for (int r = 0; r < kRows; ++r) sum[r] += static_cast<float>(dots[r]) * (scale[r] * x_scale);
}

// Calls `tile(panel's data, begin, end, out)` for every panel and every tile of tokens.
template <typename Tile>
void for_tiles(const void* panels, std::size_t bytes, std::size_t panel_begin, std::size_t panel_end,
               std::size_t token_begin, std::size_t token_end, float* out, Tile tile) {
    for (std::size_t p = panel_begin; p < panel_end; ++p)
        for (std::size_t begin = token_begin; begin < token_end; begin += kTile) {
            const std::size_t end = token_end - begin < kTile ? token_end : begin + kTile;
            tile(static_cast<const std::uint8_t*>(panels) + p * bytes, begin, end, out + p * kPanelRows);
        }
}

template <typename Type>
void quantised_tile(const std::uint8_t* panel, const Activations& x, std::size_t begin, std::size_t end, float* out,
                    std::size_t out_stride) {
    float sums[kTile][kRows] = {};
    for (std::size_t b = 0; b < x.columns / kBlockColumns; ++b) {
        Block block;
        Type::decode(panel, b, block);
        for (std::size_t t = begin; t < end; ++t) {
            const std::size_t place = b * x.tokens + t;
            // Each group's four activations twice: the pattern of 8 lanes of weights.
            std::int16_t pattern[8][8];
            for (int g = 0; g < 8; ++g)
                for (int l = 0; l < 8; ++l) pattern[g][l] = x.quants[place * kBlockColumns + 4 * g + l % 4];
            float* sum = sums[t - begin];
            const float scale = x.scales[place];
            add_groups<Type::kGroups>(block, pattern, 0, Type::kHalves ? 4 : 8, block.scale, scale, sum);
            if constexpr (Type::kHalves)
                add_groups<Type::kGroups>(block, pattern, 4, 8, block.other, scale, sum);
            if constexpr (Type::kMinimum)
                for (int r = 0; r < kRows; ++r) sum[r] += block.other[r] * x.scaled_sums[place];
        }
    }
    for (std::size_t t = begin; t < end; ++t) std::memcpy(out + t * out_stride, sums[t - begin], sizeof(sums[0]));
}

template <typename Type>
void quantised(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
               std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    const std::size_t bytes = x.columns / Type::kColumns * Type::kBytes;
    for_tiles(panels, bytes, panel_begin, panel_end, token_begin, token_end, out,
              [&](const std::uint8_t* panel, std::size_t begin, std::size_t end, float* rows) {
                  quantised_tile<Type>(panel, x, begin, end, rows, out_stride);
              });
}

// Plain types: how 16 weights of column k and an activation become float32.
struct F32 {
    static constexpr std::size_t kWidth = 1, kElement = 4;
    static void column(const std::uint8_t* panel, std::size_t k, float* out) {
        std::memcpy(out, panel + k * 4 * kRows, 4 * kRows);
    }
    static float value(const Activations& x, std::size_t place) { return x.values[place]; }
};

struct F16 {
    static constexpr std::size_t kWidth = 1, kElement = 2;
    static void column(const std::uint8_t* panel, std::size_t k, float* out) {
        decode_halves(panel + k * 2 * kRows, out);
    }
    static float value(const Activations& x, std::size_t place) { return x.values[place]; }
};

struct BF16 {
    static constexpr std::size_t kWidth = 2, kElement = 2;
    static void column(const std::uint8_t* panel, std::size_t k, float* out) {
        for (int r = 0; r < kRows; ++r) {
            std::uint16_t word;
            std::memcpy(&word, panel + k / 2 * 4 * kRows + 4 * r + k % 2 * 2, 2);
            out[r] = float32_from_bfloat16(word);
        }
    }
    static float value(const Activations& x, std::size_t place) { return float32_from_bfloat16(x.rounded[place]); }
};

template <typename Type>
void plain_tile(const std::uint8_t* panel, const Activations& x, std::size_t begin, std::size_t end, float* out,
                std::size_t out_stride) {
    float sums[kTile][kRows] = {};
    for (std::size_t k = 0; k < x.columns; ++k) {
        float weights[kRows];
        Type::column(panel, k, weights);
        for (std::size_t t = begin; t < end; ++t) {
            const float factor = Type::value(x, t * x.stride + k);
            float* sum = sums[t - begin];
            for (int r = 0; r < kRows; ++r) sum[r] += weights[r] * factor;
        }
    }
    for (std::size_t t = begin; t < end; ++t) std::memcpy(out + t * out_stride, sums[t - begin], sizeof(sums[0]));
}

template <typename Type>
void plain(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
           std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    const std::size_t padded = (x.columns + Type::kWidth - 1) / Type::kWidth * Type::kWidth;
    for_tiles(panels, padded * Type::kElement * kPanelRows, panel_begin, panel_end, token_begin, token_end, out,
              [&](const std::uint8_t* panel, std::size_t begin, std::size_t end, float* rows) {
                  plain_tile<Type>(panel, x, begin, end, rows, out_stride);
              });
}

}  // namespace

const Product products[static_cast<int>(WeightType::kCount)] = {
    plain<F32>,      plain<F16>,      plain<BF16>,     quantised<Q8_0>, quantised<Q4_0>,
    quantised<Q4_1>, quantised<Q4_K>, quantised<Q5_K>, quantised<Q6_K>,
};

}  // namespace qafila::portable
