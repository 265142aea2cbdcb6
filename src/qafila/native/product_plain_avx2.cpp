// Products of F32, F16 and BF16 weights with AVX2: a row's sum is one chain of multiply-adds over rising columns. To
// have enough chains in flight, few tokens go through several panels at once; that changes no chain.

#include <immintrin.h>

#include "kernels_avx2.h"

namespace qafila::avx2 {
namespace {

// Each type reads kWidth columns of 16 rows at a time, and of those column `i` of the rows of one half.
struct F32 {
    static constexpr std::size_t kWidth = 1, kStepBytes = 64;
    static __m256 weights(const char* panel, std::size_t half, std::size_t) {
        return _mm256_loadu_ps(reinterpret_cast<const float*>(panel + 32 * half));
    }
    static __m256 value(const Activations& x, std::size_t place, std::size_t) {
        return _mm256_set1_ps(x.values[place]);
    }
};

struct F16 {
    static constexpr std::size_t kWidth = 1, kStepBytes = 32;
    static __m256 weights(const char* panel, std::size_t half, std::size_t) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + 16 * half)));
    }
    static __m256 value(const Activations& x, std::size_t place, std::size_t) {
        return _mm256_set1_ps(x.values[place]);
    }
};

struct BF16 {
    static constexpr std::size_t kWidth = 2, kStepBytes = 64;
    static __m256 one_of(__m256i pairs, std::size_t i) {
        const __m256i upper = _mm256_and_si256(pairs, _mm256_set1_epi32(-65536));
        return _mm256_castsi256_ps(i == 0 ? _mm256_slli_epi32(pairs, 16) : upper);
    }
    static __m256 weights(const char* panel, std::size_t half, std::size_t i) {
        return one_of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * half)), i);
    }
    static __m256 value(const Activations& x, std::size_t place, std::size_t i) {
        std::int32_t pair;
        __builtin_memcpy(&pair, x.rounded + place, sizeof pair);
        return one_of(_mm256_set1_epi32(pair), i);
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
    for (std::size_t step = 0; step < steps; ++step, panels += Type::kStepBytes)
#pragma GCC unroll 2
        for (std::size_t i = 0; i < Type::kWidth; ++i) {
            __m256 values[T];
#pragma GCC unroll 4
            for (std::size_t t = 0; t < T; ++t)
                values[t] = Type::value(x, (token + t) * x.stride + step * Type::kWidth, i);
#pragma GCC unroll 4
            for (std::size_t p = 0; p < P; ++p)
#pragma GCC unroll 2
                for (std::size_t h = 0; h < 2; ++h) {
                    const __m256 weights = Type::weights(panels + p * panel_bytes, h, i);
#pragma GCC unroll 4
                    for (std::size_t t = 0; t < T; ++t)
                        acc[p][t][h] = _mm256_fmadd_ps(weights, values[t], acc[p][t][h]);
                }
        }
#pragma GCC unroll 4
    for (std::size_t p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (std::size_t t = 0; t < T; ++t)
            for (std::size_t h = 0; h < 2; ++h)
                _mm256_storeu_ps(out + t * out_stride + 16 * p + 8 * h, acc[p][t][h]);
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
    constexpr std::size_t kTokens = 4 / Type::kWidth;  // two columns at once need the registers of two tokens
    const char* data = static_cast<const char*>(panels);
    const std::size_t full = token_begin + (token_end - token_begin) / kTokens * kTokens;
    // Panels stay in the cache for all their tokens.
    for (std::size_t p = panel_begin; p < panel_end; p += Type::kWidth) {
        const std::size_t end = p + Type::kWidth < panel_end ? p + Type::kWidth : panel_end;
        for (std::size_t token = token_begin; token < full; token += kTokens)
            run<Type, Type::kWidth, kTokens>(data, p, end, x, token, out, out_stride);
    }
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
