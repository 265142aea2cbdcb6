// From a file's rows to panels of 16 interleaved rows, and back; kernels.h describes the panels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace qafila {

// Bytes of one row in a file, and of one panel of 16 rows; `columns` is a whole number of the type's blocks.
std::size_t row_bytes(WeightType type, std::size_t columns);
std::size_t panel_bytes(WeightType type, std::size_t columns);
inline std::size_t panel_count(std::size_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// Columns that a block of the type has (1 for plain types).
std::size_t block_columns(WeightType type);

// Packs panels [begin, end) of a matrix whose rows lie one after the other at `rows_data` (`rows` of them).
void pack(WeightType type, const std::uint8_t* rows_data, std::size_t rows, std::size_t columns, std::size_t begin,
          std::size_t end, std::uint8_t* panels);

// One row as float32, exactly as dequantise gives it.
void unpack_row(WeightType type, const std::uint8_t* panels, std::size_t columns, std::size_t row, float* out);

}  // namespace qafila
