// The functions behind the table avx512_kernels(); only files compiled for AVX-512 include this.
#pragma once

#include "kernels.h"

namespace qafila::avx512 {

void product_f32(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                 std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);
void product_f16(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                 std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);
void product_bf16(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                  std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);
void product_q8_0(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                  std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);
void product_q4_0(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                  std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);
void product_q4_1(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                  std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);
void product_q4_k(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                  std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);
void product_q5_k(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                  std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);
void product_q6_k(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                  std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);

// attend_avx512.cpp
void store_kv(const float* key, const float* value, std::size_t head_dim, std::size_t slot, bool int8, void* block);
void attend(const AttendArgs& args);
void merge(const float* maximum, const float* sum, const float* values, std::size_t splits, std::size_t stride,
           std::size_t head_dim, float* out);

// elementwise_avx512.cpp
void quantise(const float* x, std::size_t columns, std::size_t token, std::size_t tokens, std::int8_t* quants,
              float* scales, float* scaled_sums, std::int32_t* sums, std::int32_t* half_sums);
void round_bf16(const float* x, std::size_t n, std::uint16_t* out);
void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* y);
void rope(float* x, const float* cosines, const float* sines, std::size_t n, bool interleaved);
void silu_mul(const float* gate, const float* up, std::size_t n, float* out);
void add(const float* x, std::size_t n, float* y);
void scale(float* x, float factor, std::size_t n);
void log_sum_exp(const float* x, std::size_t n, float* maximum, double* log_sum);

}  // namespace qafila::avx512
