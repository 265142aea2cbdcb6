// Bytes multiplied with AVX2: pairs of products in 16 bits, as many as fit before they are widened.

#include <immintrin.h>

#include <utility>

#include "kernels_avx2.h"

namespace qafila::avx2 {
namespace {

// `part` holds 16-bit sums of products that `sum` has not taken yet.
struct Dot {
    __m256i part, sum;
};

// Keeps the compiler from summing all products of a block in a tree, for which there are not enough registers.
[[gnu::always_inline]] inline void keep(__m256i& sum) { asm("" : "+x"(sum)); }

[[gnu::always_inline]] inline void widen(bool first, __m256i part, Dot& dot) {
    const __m256i wide = _mm256_madd_epi16(part, _mm256_set1_epi16(1));
    dot.sum = first ? wide : _mm256_add_epi32(dot.sum, wide);
    keep(dot.sum);
}

template <int kFit>
[[gnu::always_inline]] inline void add_nibbles(int k, __m256i w, __m256i x, Dot& dot) {
    const __m256i products = _mm256_maddubs_epi16(w, x);
    dot.part = k % kFit == 0 ? products : _mm256_add_epi16(dot.part, products);
    keep(dot.part);
    if (k % kFit == kFit - 1) widen(k < kFit, dot.part, dot);
}

// 255 * 127 * 2 is too large for 16 bits, |-128| * 127 * 2 is not: the weight's sign moves to the activation.
constexpr int kByteZeroBits = 0;

[[gnu::always_inline]] inline void add_bytes(int k, __m256i w, __m256i x, Dot& dot) {
    const __m256i weight = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    widen(k == 0, _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(x, weight)), dot);
}

}  // namespace
}  // namespace qafila::avx2

#define QAFILA_ISA avx2
#include "product_ymm.h"
