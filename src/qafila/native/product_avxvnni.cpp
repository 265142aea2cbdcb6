// Bytes multiplied with AVX-VNNI. On a processor that has the same instruction only in AVX-512's encoding, tests build
// this file with QAFILA_VNNI_AS_AVX512.

#include <immintrin.h>

#include "kernels_avx2.h"

namespace qafila::avxvnni {
namespace {

[[gnu::always_inline]] inline __m256i dot4(__m256i sum, __m256i weights, __m256i x) {
#ifdef QAFILA_VNNI_AS_AVX512
    return _mm256_dpbusd_epi32(sum, weights, x);
#else
    return _mm256_dpbusd_avx_epi32(sum, weights, x);
#endif
}

template <int T, int kGroups, int>
[[gnu::always_inline]] inline void add_groups(const __m256i (*w)[2], const std::int8_t* q, __m256i (*sums)[2]) {
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
            std::int32_t word;
            __builtin_memcpy(&word, q + 32 * t + 4 * g, sizeof word);
            const __m256i x = _mm256_set1_epi32(word);
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) sums[t][h] = dot4(sums[t][h], w[g][h], x);
        }
}

constexpr int kByteZeroBits = 7;

template <int T>
[[gnu::always_inline]] inline void add_bytes(const __m256i (*w)[2], const std::int8_t* q, __m256i (*sums)[2]) {
    add_groups<T, 8, 0>(w, q, sums);
}

}  // namespace
}  // namespace qafila::avxvnni

#define QAFILA_ISA avxvnni
#include "product_ymm.h"
