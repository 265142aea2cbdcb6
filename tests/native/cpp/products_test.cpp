// Products of every table and type: against weights and activations read back in float64, and the same bits however
// tokens and panels are cut.

#include <vector>

#include "check.h"

namespace qafila::test {
namespace {

struct Input {
    Input(const Kernels& table, std::size_t tokens, std::size_t columns, bool quantised, Random& random)
        : tokens(tokens), columns(columns), stride((columns + 31) / 32 * 32), blocks(quantised ? columns / 32 : 0),
          values(tokens * stride), rounded(tokens * stride), quants(blocks * tokens * 32), scales(blocks * tokens),
          scaled_sums(blocks * tokens), sums(blocks * tokens), half_sums(2 * blocks * tokens) {
        const Exact<float> x(columns);
        for (std::size_t t = 0; t < tokens; ++t) {
            fill(x, random);
            std::memcpy(values.data() + t * stride, x.data(), columns * sizeof(float));
            table.round_bf16(x.data(), columns, rounded.data() + t * stride);
            if (quantised)
                table.quantise(x.data(), columns, t, tokens, quants.data(), scales.data(), scaled_sums.data(),
                               sums.data(), half_sums.data());
        }
    }

    Activations view() const {
        return {tokens, columns, stride, values.data(), rounded.data(), quants.data(), scales.data(), scaled_sums.data(),
                sums.data(), half_sums.data()};
    }

    // What the product sees of a column.
    double value(WeightType type, std::size_t token, std::size_t column) const {
        if (type == WeightType::kBF16) return float32_from_bfloat16(rounded[token * stride + column]);
        if (blocks == 0) return values[token * stride + column];
        const std::size_t block = column / 32 * tokens + token;
        return static_cast<double>(scales[block]) * quants[block * 32 + column % 32];
    }

    std::size_t tokens, columns, stride, blocks;
    Exact<float> values;
    Exact<std::uint16_t> rounded;
    Exact<std::int8_t> quants;
    Exact<float> scales, scaled_sums;
    Exact<std::int32_t> sums, half_sums;
};

void check(const Kernels& table, WeightType type, std::size_t rows, std::size_t columns, std::size_t tokens, Random& random) {
    const Exact<std::uint8_t> data(rows * row_bytes(type, columns));
    fill_rows(type, data, random);
    const std::size_t count = panel_count(rows), room = count * kPanelRows;
    const Exact<std::uint8_t> panels(count * panel_bytes(type, columns));
    pack(type, data.data(), rows, columns, 0, count, panels.data());
    const Input input(table, tokens, columns, block_columns(type) > 1, random);
    const Product product = table.product[static_cast<int>(type)];
    const Exact<float> out(tokens * room), pieces(tokens * room);
    product(panels.data(), 0, count, input.view(), 0, tokens, out.data(), room);
    const std::size_t panel = random.below(count + 1), token = random.below(tokens + 1);
    for (const auto& [first, last] : {std::pair{std::size_t{0}, panel}, std::pair{panel, count}}) {
        product(panels.data(), first, last, input.view(), 0, token, pieces.data(), room);
        product(panels.data(), first, last, input.view(), token, tokens, pieces.data(), room);
    }
    CHECK(std::memcmp(out.data(), pieces.data(), out.size() * sizeof(float)) == 0, "%s, type %d, %zu x %zu, %zu tokens",
          table.name, static_cast<int>(type), rows, columns, tokens);
    const Exact<float> weights(columns);
    for (std::size_t row = 0; row < rows; ++row) {
        unpack_row(type, panels.data(), columns, row, weights.data());
        for (std::size_t t = 0; t < tokens; ++t) {
            double sum = 0, size = 0;
            for (std::size_t c = 0; c < columns; ++c) {
                const double term = static_cast<double>(weights[c]) * input.value(type, t, c);
                sum += term;
                size += std::fabs(term);
            }
            const double found = out[t * room + row];
            CHECK(std::fabs(found - sum) <= 1e-5 * size + 1e-6, "%s, type %d, row %zu of %zu x %zu, token %zu: %g, not %g",
                  table.name, static_cast<int>(type), row, rows, columns, t, found, sum);
        }
    }
}

}  // namespace

void test_products() {
    for (const char* name : kTables) {
        const Kernels* table = find_kernels(name);
        if (table == nullptr) continue;
        Random random(2);
        for (int type = 0; type < static_cast<int>(WeightType::kCount); ++type) {
            const auto kind = static_cast<WeightType>(type);
            const std::size_t block = block_columns(kind);
            // Plain types end anywhere, the others with a block.
            const std::vector<std::size_t> widths = block == 1    ? std::vector<std::size_t>{1, 31, 65}
                                                    : block == 32 ? std::vector<std::size_t>{32, 96, 576}
                                                                  : std::vector<std::size_t>{256, 768};
            for (const std::size_t columns : widths)
                for (const std::size_t tokens : {1, 2, 3, 4, 5, 7, 8, 9, 17}) check(*table, kind, 35, columns, tokens, random);
            check(*table, kind, 1, block, 1, random);
        }
    }
}

}  // namespace qafila::test
