// Bytes multiplied with AVX-VNNI. On a processor that has the same instruction only in AVX-512's encoding, tests build
// this file with QAFILA_VNNI_AS_AVX512.

#include <immintrin.h>

#include <utility>

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

struct Dot {
    __m256i sum;
};

constexpr int kByteZeroBits = 7;

[[gnu::always_inline]] inline void add_bytes(int k, __m256i w, __m256i x, Dot& dot) {
    dot.sum = dot4(k == 0 ? _mm256_setzero_si256() : dot.sum, w, x);
}

template <int>
[[gnu::always_inline]] inline void add_nibbles(int k, __m256i w, __m256i x, Dot& dot) {
    add_bytes(k, w, x, dot);
}

}  // namespace
}  // namespace qafila::avxvnni

#define QAFILA_ISA avxvnni
#include "product_ymm.h"
