// The functions behind portable_kernels(), one source file a subject; kernels.h says what each does.
#pragma once

#include "kernels.h"

namespace qafila::portable {

// product_portable.cpp, in the order of WeightType
extern const Product products[static_cast<int>(WeightType::kCount)];

// attend_portable.cpp
void store_kv(const float* key, const float* value, std::size_t head_dim, std::size_t slot, bool int8, void* block);
void attend(const AttendArgs& args);
void merge(const float* maximum, const float* sum, const float* values, std::size_t splits, std::size_t stride,
           std::size_t head_dim, float* out);

}  // namespace qafila::portable
