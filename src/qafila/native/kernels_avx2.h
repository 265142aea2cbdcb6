// The functions behind the table avx2_kernels(); only files compiled for AVX2 (with FMA and F16C) or AVX-VNNI include
// this. Processors with AVX-VNNI run all of them, so that its table has products of its own and nothing else.
#pragma once

#include "kernels.h"

namespace qafila::avx2 {

// product_avx2.cpp: Q8_0 to Q6_K, in the order of WeightType
extern const Product quantised_products[6];

// product_plain_avx2.cpp: F32, F16, BF16
extern const Product plain_products[3];

// elementwise_avx2.cpp
void quantise(const float* x, std::size_t columns, std::size_t token, std::size_t tokens, std::int8_t* quants,
              float* scales, float* scaled_sums, std::int32_t* sums, std::int32_t* half_sums);
void round_bf16(const float* x, std::size_t n, std::uint16_t* out);
void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* y);
void rope(float* x, const float* cosines, const float* sines, std::size_t n, bool interleaved);
void silu_mul(const float* gate, const float* up, std::size_t n, float* out);
void add(const float* x, std::size_t n, float* y);
void scale(float* x, float factor, std::size_t n);
void log_sum_exp(const float* x, std::size_t n, float* maximum, double* log_sum);

// attend_avx2.cpp
void store_kv(const float* key, const float* value, std::size_t head_dim, std::size_t slot, bool int8, void* block);
void attend(const AttendArgs& args);
void merge(const float* maximum, const float* sum, const float* values, std::size_t splits, std::size_t stride,
           std::size_t head_dim, float* out);

}  // namespace qafila::avx2

namespace qafila::avxvnni {

// product_avxvnni.cpp
extern const Product quantised_products[6];

}  // namespace qafila::avxvnni
