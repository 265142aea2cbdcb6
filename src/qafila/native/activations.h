// Buffers that hold a product's input in the forms the weight types read (kernels.h, Activations).
#pragma once

#include "kernels.h"
#include "mapping.h"

namespace qafila {

// Forms beside float32, as bits.
enum Forms : unsigned { kValuesOnly = 0, kQuantised = 1, kRounded = 2 };

inline unsigned form_of(WeightType type) {
    if (type == WeightType::kF32 || type == WeightType::kF16) return kValuesOnly;
    return type == WeightType::kBF16 ? kRounded : kQuantised;
}

struct ActivationBuffer {
    float* values = nullptr;
    std::uint16_t* rounded = nullptr;
    std::int8_t* quants = nullptr;
    float* scales = nullptr;
    float* scaled_sums = nullptr;
    std::int32_t* sums = nullptr;
    std::int32_t* half_sums = nullptr;

    static std::size_t stride(std::size_t columns) { return round_up(columns, kBlockColumns); }

    // Room for any shape with at most `tokens` tokens of `columns` columns.
    void place(Layout& layout, std::size_t columns, std::size_t tokens, unsigned forms) {
        const std::size_t elements = stride(columns) * tokens, blocks = elements / kBlockColumns;
        layout.place(values, elements);
        layout.place(rounded, forms & kRounded ? elements : 0);
        layout.place(quants, forms & kQuantised ? elements : 0);
        layout.place(scales, forms & kQuantised ? blocks : 0);
        layout.place(scaled_sums, forms & kQuantised ? blocks : 0);
        layout.place(sums, forms & kQuantised ? blocks : 0);
        layout.place(half_sums, forms & kQuantised ? 2 * blocks : 0);
    }

    Activations view(std::size_t columns, std::size_t tokens) const {
        return {tokens, columns, stride(columns), values, rounded, quants, scales, scaled_sums, sums, half_sums};
    }

    // The other forms of columns [begin, end) of one token, whose values stand there; whole blocks for kQuantised.
    // Padding is cleared by whoever encodes the last column.
    void encode(const Kernels& kernels, unsigned forms, std::size_t columns, std::size_t tokens, std::size_t token,
                std::size_t begin, std::size_t end) const {
        const std::size_t width = stride(columns);
        float* row = values + token * width;
        if (end == columns)
            for (std::size_t i = columns; i < width; ++i) row[i] = 0.0F;
        if (forms & kQuantised) {
            const std::size_t block = begin / kBlockColumns * tokens;
            kernels.quantise(row + begin, end - begin, token, tokens, quants + block * kBlockColumns, scales + block,
                             scaled_sums + block, sums + block, half_sums + 2 * block);
        }
        if (forms & kRounded)
            kernels.round_bf16(row + begin, (end == columns ? width : end) - begin, rounded + token * width + begin);
    }
};

}  // namespace qafila
