// Bytes multiplied with AVX2: pairs of products in 16 bits, as many as fit before they are widened.

#include <immintrin.h>

#include "kernels_avx2.h"

namespace qafila::avx2 {
namespace {

// Four int8 activations in every lane.
[[gnu::always_inline]] inline __m256i broadcast4(const std::int8_t* p) {
    std::int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}

[[gnu::always_inline]] inline __m256i add_pairs(__m256i sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <int T, int kGroups, int kFit>
[[gnu::always_inline]] inline void add_groups(const __m256i (*w)[2], const std::int8_t* q, __m256i (*sums)[2]) {
#pragma GCC unroll 8
    for (int first = 0; first < kGroups; first += kFit) {
        __m256i pairs[T][2];
#pragma GCC unroll 8
        for (int g = first; g < first + kFit; ++g)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
                const __m256i x = broadcast4(q + 32 * t + 4 * g);
#pragma GCC unroll 2
                for (int h = 0; h < 2; ++h) {
                    const __m256i products = _mm256_maddubs_epi16(w[g][h], x);
                    pairs[t][h] = g == first ? products : _mm256_add_epi16(pairs[t][h], products);
                }
            }
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) sums[t][h] = add_pairs(sums[t][h], pairs[t][h]);
    }
}

// 255 * 127 * 2 is too large for 16 bits, |-128| * 127 * 2 is not: the weight's sign moves to the activation.
constexpr int kByteZeroBits = 0;

template <int T>
[[gnu::always_inline]] inline void add_bytes(const __m256i (*w)[2], const std::int8_t* q, __m256i (*sums)[2]) {
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            const __m256i weight = _mm256_xor_si256(w[g][h], _mm256_set1_epi8(-128));
            const __m256i magnitude = _mm256_abs_epi8(weight);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
                const __m256i x = _mm256_sign_epi8(broadcast4(q + 32 * t + 4 * g), weight);
                sums[t][h] = add_pairs(sums[t][h], _mm256_maddubs_epi16(magnitude, x));
            }
        }
}

}  // namespace
}  // namespace qafila::avx2

#define QAFILA_ISA avx2
#include "product_ymm.h"
