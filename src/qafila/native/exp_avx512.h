// The exponential of 16 numbers, for the AVX-512 kernels only.
#pragma once

#include <immintrin.h>

namespace qafila::avx512 {

// exp(x) within 0.9 ulp (measured over [-104, 88]), exactly 1 at 0; 0 below -104, infinity above 89, NaN of NaN.
//
// exp(x) = 2^k exp(r) with k = round(x / ln 2), |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 p(r), where p minimises the largest
// relative error (3.1e-9; found by Lawson's iteration).
static inline __m512 exp16(__m512 x) {
    // In this order NaN passes through both.
    x = _mm512_max_ps(_mm512_set1_ps(-105.0f), _mm512_min_ps(_mm512_set1_ps(90.0f), x));
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0x1.62e43p-1f), x);
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(-0x1.05c61p-29f), r);
    __m512 p = _mm512_set1_ps(0x1.6a23dp-10f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.123a2p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5558f2p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555492p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffffcp-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, k);
}

// The first n of 16 lanes; n may be larger.
static inline __mmask16 first_lanes(unsigned long n) {
    return n >= 16 ? static_cast<__mmask16>(0xFFFF) : static_cast<__mmask16>((1u << n) - 1u);
}

}  // namespace qafila::avx512
