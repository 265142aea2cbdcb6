// Between a file's rows and panels. The panel of a block type is, for each block of columns, what kernels.h describes;
// a row's share of it is taken from and given back as the file's own block, so that dequantise.cpp reads both.

#include "packing.h"

#include <cstring>

#include "blocks.h"

namespace qafila {
namespace {

constexpr std::size_t kRows = kPanelRows;

const Format& format_of(WeightType type) {
    static constexpr int kGgmlTypes[] = {0, 1, 30, 8, 2, 3, 12, 13, 14};  // in the order of WeightType
    static_assert(sizeof(kGgmlTypes) / sizeof(int) == static_cast<std::size_t>(WeightType::kCount));
    return *find_format(kGgmlTypes[static_cast<int>(type)]);
}

void put_half(std::uint8_t* halves, std::size_t row, std::uint16_t half) { std::memcpy(halves + 2 * row, &half, 2); }

std::uint16_t take_half(const std::uint8_t* halves, std::size_t row) {
    std::uint16_t half;
    std::memcpy(&half, halves + 2 * row, 2);
    return half;
}

std::uint32_t take_word(const std::uint8_t* bytes) {
    std::uint32_t word;
    std::memcpy(&word, bytes, sizeof(word));
    return word;
}

// Groups of four bytes of one row into [group][16 rows][4], and back.
void put_bytes(std::uint8_t* groups, std::size_t row, const std::uint8_t* bytes, std::size_t count) {
    for (std::size_t g = 0; g < count / 4; ++g) std::memcpy(groups + (g * kRows + row) * 4, bytes + 4 * g, 4);
}

void take_bytes(const std::uint8_t* groups, std::size_t row, std::uint8_t* bytes, std::size_t count) {
    for (std::size_t g = 0; g < count / 4; ++g) std::memcpy(bytes + 4 * g, groups + (g * kRows + row) * 4, 4);
}

// The six-bit scales and minima of Q4_K and Q5_K, eight of each in twelve bytes; see quant/k_blocks.py.
void read_six_bits(const std::uint8_t (&packed)[12], std::uint8_t (&scales)[8], std::uint8_t (&minima)[8]) {
    for (int i = 0; i < 4; ++i) {
        scales[i] = packed[i] & 63;
        minima[i] = packed[4 + i] & 63;
        scales[4 + i] = static_cast<std::uint8_t>((packed[8 + i] & 15) | ((packed[i] >> 6) << 4));
        minima[4 + i] = static_cast<std::uint8_t>((packed[8 + i] >> 4) | ((packed[4 + i] >> 6) << 4));
    }
}

void write_six_bits(const std::uint8_t (&scales)[8], const std::uint8_t (&minima)[8], std::uint8_t (&packed)[12]) {
    for (int i = 0; i < 4; ++i) {
        packed[i] = static_cast<std::uint8_t>(scales[i] | ((scales[4 + i] >> 4) << 6));
        packed[4 + i] = static_cast<std::uint8_t>(minima[i] | ((minima[4 + i] >> 4) << 6));
        packed[8 + i] = static_cast<std::uint8_t>((scales[4 + i] & 15) | ((minima[4 + i] & 15) << 4));
    }
}

// Thirty-two low nibbles of one sub-block as sixteen bytes, the second half of the columns in the high nibbles.
void fold_nibbles(const std::uint8_t* values, std::uint8_t (&bytes)[16]) {
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>((values[i] & 15) | ((values[16 + i] & 15) << 4));
}

void unfold_nibbles(const std::uint8_t (&bytes)[16], std::uint8_t* values) {
    for (int i = 0; i < 16; ++i) {
        values[i] = bytes[i] & 15;
        values[16 + i] = bytes[i] >> 4;
    }
}

void put(const BlockQ8_0& block, std::uint8_t* panel, std::size_t row) {
    std::uint8_t shifted[32];
    for (int i = 0; i < 32; ++i) shifted[i] = static_cast<std::uint8_t>(block.qs[i] + 128);
    put_half(panel, row, block.d);
    put_bytes(panel + 32, row, shifted, 32);
}

void take(const std::uint8_t* panel, std::size_t row, BlockQ8_0& block) {
    std::uint8_t shifted[32];
    block.d = take_half(panel, row);
    take_bytes(panel + 32, row, shifted, 32);
    for (int i = 0; i < 32; ++i) block.qs[i] = static_cast<std::int8_t>(shifted[i] - 128);
}

void put(const BlockQ4_0& block, std::uint8_t* panel, std::size_t row) {
    put_half(panel, row, block.d);
    put_bytes(panel + 32, row, block.qs, 16);
}

void take(const std::uint8_t* panel, std::size_t row, BlockQ4_0& block) {
    block.d = take_half(panel, row);
    take_bytes(panel + 32, row, block.qs, 16);
}

void put(const BlockQ4_1& block, std::uint8_t* panel, std::size_t row) {
    put_half(panel, row, block.d);
    put_half(panel + 32, row, block.m);
    put_bytes(panel + 64, row, block.qs, 16);
}

void take(const std::uint8_t* panel, std::size_t row, BlockQ4_1& block) {
    block.d = take_half(panel, row);
    block.m = take_half(panel + 32, row);
    take_bytes(panel + 64, row, block.qs, 16);
}

constexpr std::size_t kSubBlocks = 64 + 2 * 8 * kRows;  // where the sub-blocks of Q4_K and Q5_K begin

template <typename Block>
void put_scales(const Block& block, std::uint8_t* panel, std::size_t row) {
    std::uint8_t scales[8], minima[8];
    read_six_bits(block.scales, scales, minima);
    put_half(panel, row, block.d);
    put_half(panel + 32, row, block.dmin);
    for (int sub = 0; sub < 8; ++sub) {
        panel[64 + sub * kRows + row] = scales[sub];
        panel[64 + (8 + sub) * kRows + row] = minima[sub];
    }
}

template <typename Block>
void take_scales(const std::uint8_t* panel, std::size_t row, Block& block) {
    std::uint8_t scales[8], minima[8];
    for (int sub = 0; sub < 8; ++sub) {
        scales[sub] = panel[64 + sub * kRows + row];
        minima[sub] = panel[64 + (8 + sub) * kRows + row];
    }
    write_six_bits(scales, minima, block.scales);
    block.d = take_half(panel, row);
    block.dmin = take_half(panel + 32, row);
}

// Sub-block pairs share bytes in the file: low nibbles the even one, high nibbles the odd one.
void put_pairs(const std::uint8_t (&qs)[128], std::uint8_t* first, std::size_t stride, std::size_t row) {
    for (int sub = 0; sub < 8; ++sub) {
        std::uint8_t values[32], folded[16];
        for (int i = 0; i < 32; ++i) values[i] = static_cast<std::uint8_t>(qs[32 * (sub / 2) + i] >> (4 * (sub % 2)));
        fold_nibbles(values, folded);
        put_bytes(first + sub * stride, row, folded, 16);
    }
}

void take_pairs(const std::uint8_t* first, std::size_t stride, std::size_t row, std::uint8_t (&qs)[128]) {
    for (int pair = 0; pair < 4; ++pair) {
        std::uint8_t folded[16], low[32], high[32];
        take_bytes(first + 2 * pair * stride, row, folded, 16);
        unfold_nibbles(folded, low);
        take_bytes(first + (2 * pair + 1) * stride, row, folded, 16);
        unfold_nibbles(folded, high);
        for (int i = 0; i < 32; ++i) qs[32 * pair + i] = static_cast<std::uint8_t>(low[i] | (high[i] << 4));
    }
}

void put(const BlockQ4_K& block, std::uint8_t* panel, std::size_t row) {
    put_scales(block, panel, row);
    put_pairs(block.qs, panel + kSubBlocks, 16 * kRows, row);
}

void take(const std::uint8_t* panel, std::size_t row, BlockQ4_K& block) {
    take_scales(panel, row, block);
    take_pairs(panel + kSubBlocks, 16 * kRows, row, block.qs);
}

// Four bits of row `row` in each of the eight words: bits 4 row to 4 row + 3, that is half a byte.
void put(const BlockQ5_K& block, std::uint8_t* panel, std::size_t row) {
    constexpr std::size_t kStride = 16 * kRows + 64;
    put_scales(block, panel, row);
    put_pairs(block.qs, panel + kSubBlocks, kStride, row);
    for (int sub = 0; sub < 8; ++sub) {
        std::uint8_t* high = panel + kSubBlocks + sub * kStride + 16 * kRows;
        for (int g = 0; g < 8; ++g) {
            // One bit of each of four bytes; the product lines them up in its top byte.
            const std::uint32_t apart = (take_word(block.qh + 4 * g) >> sub) & 0x01010101u;
            const auto bits = static_cast<int>((apart * 0x01020408u) >> 24);
            std::uint8_t& both = high[8 * g + row / 2];
            both = static_cast<std::uint8_t>(row % 2 == 0 ? (both & 0xF0) | bits : (both & 0x0F) | (bits << 4));
        }
    }
}

void take(const std::uint8_t* panel, std::size_t row, BlockQ5_K& block) {
    constexpr std::size_t kStride = 16 * kRows + 64;
    take_scales(panel, row, block);
    take_pairs(panel + kSubBlocks, kStride, row, block.qs);
    std::memset(block.qh, 0, sizeof(block.qh));
    for (int sub = 0; sub < 8; ++sub) {
        const std::uint8_t* high = panel + kSubBlocks + sub * kStride + 16 * kRows;
        for (int g = 0; g < 8; ++g) {
            const int bits = high[8 * g + row / 2] >> (4 * (row % 2));
            for (int i = 0; i < 4; ++i)
                block.qh[4 * g + i] = static_cast<std::uint8_t>(block.qh[4 * g + i] | (((bits >> i) & 1) << sub));
        }
    }
}

constexpr std::size_t kSixBitStride = 16 * kRows + 2 * 4 * kRows;

// Sub-block `sub` in the file: nibble sub / 2 % 2 of 32 bytes of ql, bits 2 (sub % 4) of 32 bytes of qh.
void put(const BlockQ6_K& block, std::uint8_t* panel, std::size_t row) {
    put_half(panel, row, block.d);
    for (int part = 0; part < 16; ++part) panel[32 + part * kRows + row] = static_cast<std::uint8_t>(block.scales[part]);
    for (int sub = 0; sub < 8; ++sub) {
        const std::uint8_t* ql = block.ql + 64 * (sub / 4) + 32 * (sub % 2);
        const std::uint8_t* qh = block.qh + 32 * (sub / 4);
        std::uint8_t low[32], folded[16], high[8];
        for (int i = 0; i < 32; ++i) low[i] = static_cast<std::uint8_t>(ql[i] >> (4 * (sub / 2 % 2)));
        fold_nibbles(low, folded);
        for (int j = 0; j < 2; ++j) {
            std::uint32_t word = 0;
            for (int c = 0; c < 4; ++c)
                word |= ((take_word(qh + 16 * j + 4 * c) >> (2 * (sub % 4))) & 0x03030303u) << (2 * c);
            std::memcpy(high + 4 * j, &word, sizeof(word));
        }
        std::uint8_t* first = panel + 32 + 16 * kRows + sub * kSixBitStride;
        put_bytes(first, row, folded, 16);
        put_bytes(first + 16 * kRows, row, high, 8);
    }
}

void take(const std::uint8_t* panel, std::size_t row, BlockQ6_K& block) {
    std::memset(&block, 0, sizeof(block));
    block.d = take_half(panel, row);
    for (int part = 0; part < 16; ++part) block.scales[part] = static_cast<std::int8_t>(panel[32 + part * kRows + row]);
    for (int sub = 0; sub < 8; ++sub) {
        const std::uint8_t* first = panel + 32 + 16 * kRows + sub * kSixBitStride;
        std::uint8_t* ql = block.ql + 64 * (sub / 4) + 32 * (sub % 2);
        std::uint8_t* qh = block.qh + 32 * (sub / 4);
        std::uint8_t low[32], folded[16], high[8];
        take_bytes(first, row, folded, 16);
        take_bytes(first + 16 * kRows, row, high, 8);
        unfold_nibbles(folded, low);
        for (int i = 0; i < 32; ++i) {
            const int bits = (high[4 * (i / 16) + i % 4] >> (2 * (i / 4 % 4))) & 3;
            ql[i] = static_cast<std::uint8_t>(ql[i] | (low[i] << (4 * (sub / 2 % 2))));
            qh[i] = static_cast<std::uint8_t>(qh[i] | (bits << (2 * (sub % 4))));
        }
    }
}

constexpr std::size_t kQ4_KBytes = kSubBlocks + 8 * 16 * kRows;
constexpr std::size_t kQ5_KBytes = kSubBlocks + 8 * (16 * kRows + 64);
constexpr std::size_t kQ6_KBytes = 32 + 16 * kRows + 8 * kSixBitStride;

// Bytes of 16 rows of one block; for plain types of one column.
std::size_t panel_block_bytes(WeightType type) {
    switch (type) {
        case WeightType::kF32: return 4 * kRows;
        case WeightType::kF16: return 2 * kRows;
        case WeightType::kBF16: return 2 * kRows;
        case WeightType::kQ8_0: return 34 * kRows;
        case WeightType::kQ4_0: return 18 * kRows;
        case WeightType::kQ4_1: return 20 * kRows;
        case WeightType::kQ4_K: return kQ4_KBytes;
        case WeightType::kQ5_K: return kQ5_KBytes;
        case WeightType::kQ6_K: return kQ6_KBytes;
        case WeightType::kCount: break;
    }
    return 0;
}

// Panels of a plain type: `kWidth` neighbouring columns of a row stay together. `rows` of the 16 rows exist.
template <typename Element, std::size_t kWidth>
void pack_plain(const std::uint8_t* data, std::size_t rows, std::size_t columns, std::uint8_t* panel) {
    // So many columns at once: rows may lie a power of two apart, where a column alone would fight for the cache's lines.
    constexpr std::size_t kColumns = 32;
    for (std::size_t first = 0; first < columns; first += kColumns) {
        const std::size_t count = columns - first < kColumns ? columns - first : kColumns;
        Element in[kRows][kColumns] = {}, out[kColumns / kWidth][kRows][kWidth];
        for (std::size_t r = 0; r < rows; ++r)
            std::memcpy(in[r], data + (r * columns + first) * sizeof(Element), count * sizeof(Element));
        for (std::size_t k = 0; k < kColumns / kWidth; ++k)
            for (std::size_t r = 0; r < kRows; ++r)
                for (std::size_t i = 0; i < kWidth; ++i) out[k][r][i] = in[r][k * kWidth + i];
        const std::size_t padded = (count + kWidth - 1) / kWidth * kWidth;
        std::memcpy(panel + first * kRows * sizeof(Element), out, padded * kRows * sizeof(Element));
    }
}

template <typename Element, std::size_t kWidth>
void unpack_plain(const std::uint8_t* panel, std::size_t columns, std::size_t row, float* out, DequantiseRun convert) {
    for (std::size_t k = 0; k < columns; ++k) {
        const std::size_t place = (k / kWidth * kRows + row) * kWidth + k % kWidth;
        convert(panel + place * sizeof(Element), out + k, 1);
    }
}

template <typename Block>
void pack_blocks(const std::uint8_t* data, std::size_t rows, std::size_t blocks, std::size_t panel_block,
                 std::uint8_t* panel) {
    for (std::size_t b = 0; b < blocks; ++b)
        for (std::size_t r = 0; r < kRows; ++r) {
            Block block = {};
            if (r < rows) std::memcpy(&block, data + (r * blocks + b) * sizeof(Block), sizeof(Block));
            put(block, panel + b * panel_block, r);
        }
}

template <typename Block>
void unpack_blocks(const std::uint8_t* panel, std::size_t blocks, std::size_t panel_block, const Format& format,
                   std::size_t row, float* out) {
    for (std::size_t b = 0; b < blocks; ++b) {
        Block block;
        take(panel + b * panel_block, row, block);
        format.dequantise(reinterpret_cast<const std::uint8_t*>(&block), out + b * format.elements, 1);
    }
}

}  // namespace

std::size_t block_columns(WeightType type) { return format_of(type).elements; }

std::size_t row_bytes(WeightType type, std::size_t columns) {
    const Format& format = format_of(type);
    return columns / format.elements * format.bytes;
}

std::size_t panel_bytes(WeightType type, std::size_t columns) {
    const std::size_t blocks = type == WeightType::kBF16 ? columns + columns % 2 : columns / block_columns(type);
    return blocks * panel_block_bytes(type);
}

void pack(WeightType type, const std::uint8_t* rows_data, std::size_t rows, std::size_t columns, std::size_t begin,
          std::size_t end, std::uint8_t* panels) {
    const std::size_t size = panel_bytes(type, columns), unit = panel_block_bytes(type);
    const std::size_t blocks = columns / block_columns(type);
    for (std::size_t p = begin; p < end; ++p) {
        const std::uint8_t* data = rows_data + p * kRows * row_bytes(type, columns);
        const std::size_t left = rows - p * kRows, here = left < kRows ? left : kRows;
        std::uint8_t* panel = panels + p * size;
        switch (type) {
            case WeightType::kF32: pack_plain<std::uint32_t, 1>(data, here, columns, panel); break;
            case WeightType::kF16: pack_plain<std::uint16_t, 1>(data, here, columns, panel); break;
            case WeightType::kBF16: pack_plain<std::uint16_t, 2>(data, here, columns, panel); break;
            case WeightType::kQ8_0: pack_blocks<BlockQ8_0>(data, here, blocks, unit, panel); break;
            case WeightType::kQ4_0: pack_blocks<BlockQ4_0>(data, here, blocks, unit, panel); break;
            case WeightType::kQ4_1: pack_blocks<BlockQ4_1>(data, here, blocks, unit, panel); break;
            case WeightType::kQ4_K: pack_blocks<BlockQ4_K>(data, here, blocks, unit, panel); break;
            case WeightType::kQ5_K: pack_blocks<BlockQ5_K>(data, here, blocks, unit, panel); break;
            case WeightType::kQ6_K: pack_blocks<BlockQ6_K>(data, here, blocks, unit, panel); break;
            case WeightType::kCount: break;
        }
    }
}

void unpack_row(WeightType type, const std::uint8_t* panels, std::size_t columns, std::size_t row, float* out) {
    const Format& format = format_of(type);
    const std::uint8_t* panel = panels + row / kRows * panel_bytes(type, columns);
    const std::size_t r = row % kRows, unit = panel_block_bytes(type), blocks = columns / format.elements;
    switch (type) {
        case WeightType::kF32: unpack_plain<std::uint32_t, 1>(panel, columns, r, out, format.dequantise); break;
        case WeightType::kF16: unpack_plain<std::uint16_t, 1>(panel, columns, r, out, format.dequantise); break;
        case WeightType::kBF16: unpack_plain<std::uint16_t, 2>(panel, columns, r, out, format.dequantise); break;
        case WeightType::kQ8_0: unpack_blocks<BlockQ8_0>(panel, blocks, unit, format, r, out); break;
        case WeightType::kQ4_0: unpack_blocks<BlockQ4_0>(panel, blocks, unit, format, r, out); break;
        case WeightType::kQ4_1: unpack_blocks<BlockQ4_1>(panel, blocks, unit, format, r, out); break;
        case WeightType::kQ4_K: unpack_blocks<BlockQ4_K>(panel, blocks, unit, format, r, out); break;
        case WeightType::kQ5_K: unpack_blocks<BlockQ5_K>(panel, blocks, unit, format, r, out); break;
        case WeightType::kQ6_K: unpack_blocks<BlockQ6_K>(panel, blocks, unit, format, r, out); break;
        case WeightType::kCount: break;
    }
}

}  // namespace qafila
