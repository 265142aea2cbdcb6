// What AVX2's elementwise functions and attention share: parts of vectors, sums over lanes, the exponential.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace qafila::avx2 {

// All ones in the first n lanes of eight.
inline __m256i first_lanes(std::size_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? static_cast<int>(n) : 8), lane);
}

// The first n (8 where there are more) of what lies at p; the other lanes are zero and not touched in memory.
inline __m256 load(const float* p, std::size_t n) {
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n));
}

inline void store(float* p, std::size_t n, __m256 x) {
    if (n >= 8) {
        _mm256_storeu_ps(p, x);
    } else {
        _mm256_maskstore_ps(p, first_lanes(n), x);
    }
}

inline float sum_lanes(__m256 x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// Of lanes that are numbers.
inline float max_lanes(__m256 x) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

inline __m256 magnitude(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

// exp within 2 units in the last place; below the normal range 0, above it infinity, NaN stays. The polynomial for
// |r| <= ln 2 / 2 is Cephes' expf (S. L. Moshier).
inline __m256 exp8(__m256 x) {
    // The second operand is what comes back where one is NaN.
    const __m256 clamped = _mm256_min_ps(_mm256_set1_ps(89.0f), _mm256_max_ps(_mm256_set1_ps(-88.0f), x));
    const __m256i n = _mm256_cvtps_epi32(_mm256_mul_ps(clamped, _mm256_set1_ps(1.44269504f)));
    const __m256 steps = _mm256_cvtepi32_ps(n);
    __m256 r = _mm256_fnmadd_ps(steps, _mm256_set1_ps(0.693359375f), clamped);
    r = _mm256_fmadd_ps(steps, _mm256_set1_ps(2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    // Two factors, because 2^128 alone is no float32.
    const __m256i half = _mm256_srai_epi32(n, 1), bias = _mm256_set1_epi32(127);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
    const __m256 y = _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
    const __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.33654f), _CMP_LT_OQ);
    return _mm256_andnot_ps(tiny, y);
}

}  // namespace qafila::avx2
