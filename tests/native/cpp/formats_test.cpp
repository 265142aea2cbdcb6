// Block formats: any bytes are read without a fault, and what is written is read back within a step.

#include "check.h"

namespace qafila::test {

void test_formats() {
    Random random(1);
    for (int number = 0; number < 40; ++number) {
        const Format* format = find_format(number);
        if (format == nullptr) continue;
        for (const std::size_t blocks : {std::size_t{1}, std::size_t{2}, std::size_t{17}}) {
            const Exact<std::uint8_t> data(blocks * format->bytes);
            const Exact<float> values(blocks * format->elements);
            for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::uint8_t>(random.word());
            format->dequantise(data.data(), values.data(), blocks);
            if (format->quantise == nullptr) continue;
            fill(values, random);
            CHECK(format->quantise(values.data(), data.data(), blocks) == Fit::kGood, "%s", format->name);
            const Exact<float> again(values.size());
            format->dequantise(data.data(), again.data(), blocks);
            for (std::size_t i = 0; i < values.size(); ++i)
                CHECK(std::fabs(again[i] - values[i]) < 0.2f, "%s: %g became %g", format->name,
                      static_cast<double>(values[i]), static_cast<double>(again[i]));
        }
    }
    for (int type = 0; type < static_cast<int>(WeightType::kCount); ++type) {
        const auto kind = static_cast<WeightType>(type);
        const std::size_t rows = 19, columns = block_columns(kind) > 1 ? 512 : 37;
        const Exact<std::uint8_t> data(rows * row_bytes(kind, columns));
        fill_rows(kind, data, random);
        const Exact<std::uint8_t> panels(panel_count(rows) * panel_bytes(kind, columns));
        pack(kind, data.data(), rows, columns, 0, panel_count(rows), panels.data());
        const Format& format = *find_format(ggml_type(kind));
        const Exact<float> expected(columns), found(columns);
        for (std::size_t row = 0; row < rows; ++row) {
            format.dequantise(data.data() + row * row_bytes(kind, columns), expected.data(), columns / format.elements);
            unpack_row(kind, panels.data(), columns, row, found.data());
            CHECK(std::memcmp(expected.data(), found.data(), columns * sizeof(float)) == 0, "%s, row %zu", format.name, row);
        }
    }
}

}  // namespace qafila::test
