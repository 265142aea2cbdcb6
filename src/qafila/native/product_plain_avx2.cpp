// Products of F32, F16 and BF16 weights with AVX2: a row's sum is one chain of multiply-adds over rising columns. To have
// enough chains in flight, few tokens go through several panels at once; that changes no chain.

#include <immintrin.h>

#include "kernels_avx2.h"

namespace qafila::avx2 {
namespace {

// Each type reads kWidth columns of 8 rows at a time; `step` counts such readings, 16 rows each.
struct F32 {
    static constexpr std::size_t kWidth = 1, kStepBytes = 64;
    static void weights(const char* panel, std::size_t half, __m256 (&out)[1]) {
        out[0] = _mm256_loadu_ps(reinterpret_cast<const float*>(panel + 32 * half));
    }
    static void values(const Activations& x, std::size_t place, __m256 (&out)[1]) { out[0] = _mm256_set1_ps(x.values[place]); }
};

struct F16 {
    static constexpr std::size_t kWidth = 1, kStepBytes = 32;
    static void weights(const char* panel, std::size_t half, __m256 (&out)[1]) {
        out[0] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + 16 * half)));
    }
    static void values(const Activations& x, std::size_t place, __m256 (&out)[1]) { out[0] = _mm256_set1_ps(x.values[place]); }
};

// Pairs of bfloat16 as two float32.
[[gnu::always_inline]] inline void split_pairs(__m256i pairs, __m256 (&out)[2]) {
    out[0] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    out[1] = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}

struct BF16 {
    static constexpr std::size_t kWidth = 2, kStepBytes = 64;
    static void weights(const char* panel, std::size_t half, __m256 (&out)[2]) {
        split_pairs(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * half)), out);
    }
    static void values(const Activations& x, std::size_t place, __m256 (&out)[2]) {
        std::int32_t pair;
        __builtin_memcpy(&pair, x.rounded + place, sizeof pair);
        split_pairs(_mm256_set1_epi32(pair), out);
    }
};

template <typename Type, int P, int T>
void tile(const char* panels, std::size_t panel_bytes, const Activations& x, std::size_t token, float* out,
          std::size_t out_stride) {
    __m256 acc[P][T][2];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
            for (int h = 0; h < 2; ++h) acc[p][t][h] = _mm256_setzero_ps();
    const std::size_t steps = (x.columns + Type::kWidth - 1) / Type::kWidth;
    for (std::size_t step = 0; step < steps; ++step, panels += Type::kStepBytes) {
        __m256 values[T][Type::kWidth];
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
            Type::values(x, (token + static_cast<std::size_t>(t)) * x.stride + step * Type::kWidth, values[t]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                __m256 weights[Type::kWidth];
                Type::weights(panels + static_cast<std::size_t>(p) * panel_bytes, static_cast<std::size_t>(h), weights);
#pragma GCC unroll 2
                for (std::size_t i = 0; i < Type::kWidth; ++i)
#pragma GCC unroll 4
                    for (int t = 0; t < T; ++t) acc[p][t][h] = _mm256_fmadd_ps(weights[i], values[t][i], acc[p][t][h]);
            }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
            for (int h = 0; h < 2; ++h)
                _mm256_storeu_ps(out + static_cast<std::size_t>(t) * out_stride + static_cast<std::size_t>(16 * p + 8 * h),
                                 acc[p][t][h]);
}

// T tokens through all panels, P panels at once.
template <typename Type, int P, int T>
void run(const char* panels, std::size_t begin, std::size_t end, const Activations& x, std::size_t token, float* out,
         std::size_t out_stride) {
    const std::size_t bytes = (x.columns + Type::kWidth - 1) / Type::kWidth * Type::kStepBytes;
    out += token * out_stride;
    std::size_t p = begin;
    for (; p + P <= end; p += P) tile<Type, P, T>(panels + p * bytes, bytes, x, token, out + 16 * p, out_stride);
    for (; p < end; ++p) tile<Type, 1, T>(panels + p * bytes, bytes, x, token, out + 16 * p, out_stride);
}

template <typename Type>
void product(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
             std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    const char* data = static_cast<const char*>(panels);
    const std::size_t bytes = (x.columns + Type::kWidth - 1) / Type::kWidth * Type::kStepBytes;
    const std::size_t full = token_begin + (token_end - token_begin) / 4 * 4;
    // A panel stays in the cache for all its tokens.
    for (std::size_t p = panel_begin; p < panel_end; ++p)
        for (std::size_t token = token_begin; token < full; token += 4)
            tile<Type, 1, 4>(data + p * bytes, bytes, x, token, out + token * out_stride + 16 * p, out_stride);
    switch (token_end - full) {
        case 1: run<Type, 4, 1>(data, panel_begin, panel_end, x, full, out, out_stride); break;
        case 2: run<Type, 2, 2>(data, panel_begin, panel_end, x, full, out, out_stride); break;
        case 3: run<Type, 1, 3>(data, panel_begin, panel_end, x, full, out, out_stride); break;
        default: break;
    }
}

}  // namespace

extern const Product plain_products[3] = {product<F32>, product<F16>, product<BF16>};

}  // namespace qafila::avx2
