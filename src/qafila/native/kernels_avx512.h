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

}  // namespace qafila::avx512
