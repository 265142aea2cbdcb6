// Products in portable C++, with the vector types that GCC and Clang have for every processor (loops over plain arrays
// were ten times slower: the vectoriser lost its way in them).
//
// A block of 32 columns is first decoded to signed 16-bit weights in the panel's own order, [8 groups][16 rows][4], and
// then multiplies every token of a tile. Sums of a few products fit in 16 bits (each type says how many), which is what
// baseline instruction sets multiply fastest.

#include <bit>
#include <cstring>

#include "floats.h"
#include "kernels_portable.h"

namespace qafila::portable {
namespace {

constexpr int kRows = static_cast<int>(kPanelRows);
constexpr std::size_t kTile = 16;  // tokens that share the decoding of a block

using Words = std::int16_t __attribute__((vector_size(16)));
using Pairs = std::int32_t __attribute__((vector_size(16)));
using Quad = float __attribute__((vector_size(16)));
using Rows = float __attribute__((vector_size(64)));         // one number for each row of a panel
using RowSums = std::int32_t __attribute__((vector_size(64)));

struct Block {
    union {
        std::int16_t weights[8][4 * kRows];
        Words vectors[8][kRows / 2];
    };
    Rows scale;
    Rows other;  // the minimum, or the scale of the second half
};

void decode_halves(const std::uint8_t* halves, Rows& out) {
    std::uint16_t words[kRows];
    float numbers[kRows];
    std::memcpy(words, halves, sizeof(words));
    for (int r = 0; r < kRows; ++r) numbers[r] = float32_from_half(words[r]);
    std::memcpy(&out, numbers, sizeof(out));
}

template <typename Byte>
void decode_bytes(const std::uint8_t* bytes, Rows& out) {
    float numbers[kRows];
    for (int r = 0; r < kRows; ++r) numbers[r] = static_cast<float>(static_cast<Byte>(bytes[r]));
    std::memcpy(&out, numbers, sizeof(out));
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
    Rows factor;
    decode_bytes<std::uint8_t>(scales, factor);
    block.scale *= factor;
    decode_bytes<std::uint8_t>(minima, factor);
    block.other *= -factor;
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
        constexpr Words kBits = {1, 2, 4, 8, 16, 32, 64, 128};
        for (int g = 0; g < 8; ++g)
            for (int v = 0; v < kRows / 2; ++v) {
                const Words byte = static_cast<std::int16_t>(nibbles[16 * kRows + 8 * g + v]) + Words{};
                block.vectors[g][v] |= ((byte & kBits) != 0) & 16;
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
        Rows factor;
        decode_bytes<std::int8_t>(scales + kRows, factor);
        block.other = block.scale * factor;
        decode_bytes<std::int8_t>(scales, factor);
        block.scale *= factor;
        decode_nibbles(nibbles, 0, block.weights);
        for (int g = 0; g < 8; ++g)
            for (int l = 0; l < 4 * kRows; ++l) {
                const int bits = (high[4 * kRows * (g / 4) + l] >> (2 * (g % 4))) & 3;
                block.weights[g][l] = static_cast<std::int16_t>((block.weights[g][l] | (bits << 4)) - 32);
            }
    }
};

Pairs add_neighbours(Pairs a, Pairs b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#else
    return __builtin_shuffle(a, b, Pairs{0, 2, 4, 6}) + __builtin_shuffle(a, b, Pairs{1, 3, 5, 7});
#endif
}

// sums[r] += products of `kGroups` groups of columns from `first` on.
template <int kGroups>
void add_products(const Block& block, const Words (&x)[8], int first, RowSums& sums) {
    Pairs rows[4];
    for (int v = 0; v < kRows / 2; v += 2) {
        Pairs both[2];
        for (int i = 0; i < 2; ++i) {
            Words lanes = block.vectors[first][v + i] * x[first];
            for (int g = first + 1; g < first + kGroups; ++g) lanes += block.vectors[g][v + i] * x[g];
            // Neighbours added: the lower and the upper half of 32 bits.
            const Pairs pairs = std::bit_cast<Pairs>(lanes);
            both[i] = (pairs >> 16) + ((pairs << 16) >> 16);
        }
        rows[v / 2] = add_neighbours(both[0], both[1]);
    }
    RowSums added;
    std::memcpy(&added, rows, sizeof(added));
    sums += added;
}

// sum[r] += products of groups [first, last) by the scale.
template <int kGroups>
void add_groups(const Block& block, const Words (&x)[8], int first, int last, const Rows& scale, float x_scale,
                Rows& sum) {
    RowSums dots = {};
    for (int g = first; g < last; g += kGroups) add_products<kGroups>(block, x, g, dots);
    sum += __builtin_convertvector(dots, Rows) * (scale * x_scale);
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
    Rows sums[kTile] = {};
    for (std::size_t b = 0; b < x.columns / kBlockColumns; ++b) {
        Block block;
        Type::decode(panel, b, block);
        for (std::size_t t = begin; t < end; ++t) {
            const std::size_t place = b * x.tokens + t;
            // Each group's four activations twice: the pattern of 8 lanes of weights.
            Words pattern[8];
            for (int g = 0; g < 8; ++g) {
                const std::int8_t* q = x.quants + place * kBlockColumns + 4 * g;
                pattern[g] = Words{q[0], q[1], q[2], q[3], q[0], q[1], q[2], q[3]};
            }
            Rows& sum = sums[t - begin];
            const float scale = x.scales[place];
            add_groups<Type::kGroups>(block, pattern, 0, Type::kHalves ? 4 : 8, block.scale, scale, sum);
            if constexpr (Type::kHalves) add_groups<Type::kGroups>(block, pattern, 4, 8, block.other, scale, sum);
            if constexpr (Type::kMinimum) sum += block.other * x.scaled_sums[place];
        }
    }
    for (std::size_t t = begin; t < end; ++t) std::memcpy(out + t * out_stride, &sums[t - begin], sizeof(Rows));
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
    static void column(const std::uint8_t* panel, std::size_t k, Rows& out) {
        std::memcpy(&out, panel + k * 4 * kRows, 4 * kRows);
    }
    static float value(const Activations& x, std::size_t place) { return x.values[place]; }
};

struct F16 {
    static constexpr std::size_t kWidth = 1, kElement = 2;
    static void column(const std::uint8_t* panel, std::size_t k, Rows& out) {
        decode_halves(panel + k * 2 * kRows, out);
    }
    static float value(const Activations& x, std::size_t place) { return x.values[place]; }
};

struct BF16 {
    static constexpr std::size_t kWidth = 2, kElement = 2;
    static void column(const std::uint8_t* panel, std::size_t k, Rows& out) {
        RowSums pairs;
        std::memcpy(&pairs, panel + k / 2 * 4 * kRows, sizeof(pairs));
        pairs = k % 2 == 0 ? pairs << 16 : pairs & -65536;
        std::memcpy(&out, &pairs, sizeof(out));
    }
    static float value(const Activations& x, std::size_t place) { return float32_from_bfloat16(x.rounded[place]); }
};

// sum += weights[k] * value k, column after column. In four parts, because compilers keep no longer vector in registers
// than the processor has.
template <typename Type>
void multiply_columns(const Rows* weights, std::size_t columns, const Activations& x, std::size_t place, Rows& sum) {
    Quad parts[4];
    std::memcpy(parts, &sum, sizeof(sum));
    Quad a = parts[0], b = parts[1], c = parts[2], d = parts[3];
    for (std::size_t k = 0; k < columns; ++k) {
        std::memcpy(parts, weights + k, sizeof(parts));
        const float value = Type::value(x, place + k);
        a += parts[0] * value;
        b += parts[1] * value;
        c += parts[2] * value;
        d += parts[3] * value;
    }
    parts[0] = a;
    parts[1] = b;
    parts[2] = c;
    parts[3] = d;
    std::memcpy(&sum, parts, sizeof(sum));
}

template <typename Type>
void plain_tile(const std::uint8_t* panel, const Activations& x, std::size_t begin, std::size_t end, float* out,
                std::size_t out_stride) {
    constexpr std::size_t kColumns = 64;  // decoded once for all tokens of the tile
    Rows sums[kTile] = {}, weights[kColumns];
    for (std::size_t first = 0; first < x.columns; first += kColumns) {
        const std::size_t columns = x.columns - first < kColumns ? x.columns - first : kColumns;
        for (std::size_t k = 0; k < columns; ++k) Type::column(panel, first + k, weights[k]);
        for (std::size_t t = begin; t < end; ++t) {
            multiply_columns<Type>(weights, columns, x, t * x.stride + first, sums[t - begin]);
        }
    }
    for (std::size_t t = begin; t < end; ++t) std::memcpy(out + t * out_stride, &sums[t - begin], sizeof(Rows));
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
