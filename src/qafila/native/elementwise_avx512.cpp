// Norms, rotations, activations and roundings with AVX-512. Every vector may have any length: the last lanes are masked.

#include <immintrin.h>
#include <math.h>

#include "exp_avx512.h"
#include "kernels_avx512.h"

namespace qafila::avx512 {

void quantise(const float* x, std::size_t columns, std::size_t token, std::size_t tokens, std::int8_t* quants,
              float* scales, float* scaled_sums, std::int32_t* sums, std::int32_t* half_sums) {
    for (std::size_t block = 0; block < columns / kBlockColumns; ++block) {
        const __m512 low = _mm512_loadu_ps(x + block * kBlockColumns);
        const __m512 high = _mm512_loadu_ps(x + block * kBlockColumns + 16);
        const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
        // As integers, magnitudes order as floats do, and NaN is above infinity: it becomes the scale.
        const __m512i magnitudes = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                                    _mm512_and_si512(_mm512_castps_si512(high), magnitude));
        const __m128 largest = _mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(magnitudes)));
        const float d = _mm_cvtss_f32(largest) / 127.0f;
        const bool normal = d >= 0x1p-126f && d <= 0x1.fffffep+127f;
        const float scale = d < 0x1p-126f ? 0.0f : d;
        const __mmask16 lanes = normal ? 0xFFFF : 0;
        const __m512 divisor = _mm512_set1_ps(d);
        const __m512i low_quants = _mm512_maskz_cvtps_epi32(lanes, _mm512_div_ps(low, divisor));
        const __m512i high_quants = _mm512_maskz_cvtps_epi32(lanes, _mm512_div_ps(high, divisor));
        const std::size_t at = block * tokens + token;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(quants + at * kBlockColumns), _mm512_cvtsepi32_epi8(low_quants));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(quants + at * kBlockColumns + 16),
                         _mm512_cvtsepi32_epi8(high_quants));
        const std::int32_t low_sum = _mm512_reduce_add_epi32(low_quants);
        const std::int32_t high_sum = _mm512_reduce_add_epi32(high_quants);
        half_sums[2 * at] = low_sum;
        half_sums[2 * at + 1] = high_sum;
        sums[at] = low_sum + high_sum;
        scales[at] = scale;
        scaled_sums[at] = scale * static_cast<float>(low_sum + high_sum);
    }
}

void round_bf16(const float* x, std::size_t n, std::uint16_t* out) {
    // In integers: the instruction for it takes subnormal numbers as zeros.
    for (std::size_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes(n - i);
        const __m512 value = _mm512_maskz_loadu_ps(lanes, x + i);
        const __m512i bits = _mm512_castps_si512(value), upper = _mm512_srli_epi32(bits, 16);
        const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
        const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        const __m512i word = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
        _mm512_mask_cvtepi32_storeu_epi16(out + i, lanes, word);
    }
}

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* y) {
    __m512 squares[4] = {};
    std::size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (std::size_t v = 0; v < 4; ++v) {
            const __m512 part = _mm512_loadu_ps(x + i + 16 * v);
            squares[v] = _mm512_fmadd_ps(part, part, squares[v]);
        }
    for (; i < n; i += 16) {
        const __m512 part = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
        squares[0] = _mm512_fmadd_ps(part, part, squares[0]);
    }
    const __m512 all = _mm512_add_ps(_mm512_add_ps(squares[0], squares[1]), _mm512_add_ps(squares[2], squares[3]));
    const float mean = _mm512_reduce_add_ps(all) / static_cast<float>(n);
    const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_set1_ps(mean + eps)));
    for (i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes(n - i);
        __m512 part = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), factor);
        if (weight != nullptr) part = _mm512_mul_ps(part, _mm512_maskz_loadu_ps(lanes, weight + i));
        _mm512_mask_storeu_ps(y + i, lanes, part);
    }
}

void rope(float* x, const float* cosines, const float* sines, std::size_t n, bool interleaved) {
    const std::size_t half = n / 2;
    if (interleaved) {
        const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
        for (std::size_t i = 0; i < n; i += 16) {
            const __mmask16 lanes = first_lanes(n - i), angles = first_lanes((n - i) / 2 < 8 ? (n - i) / 2 : 8);
            const __m512 pairs = _mm512_maskz_loadu_ps(lanes, x + i);
            const __m512 c = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(angles, cosines + i / 2));
            const __m512 s = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(angles, sines + i / 2));
            const __m512 crossed = _mm512_mul_ps(_mm512_permute_ps(pairs, 0xB1), s);
            _mm512_mask_storeu_ps(x + i, lanes, _mm512_fmaddsub_ps(pairs, c, crossed));
        }
        return;
    }
    for (std::size_t i = 0; i < half; i += 16) {
        const __mmask16 lanes = first_lanes(half - i);
        const __m512 first = _mm512_maskz_loadu_ps(lanes, x + i), second = _mm512_maskz_loadu_ps(lanes, x + half + i);
        const __m512 c = _mm512_maskz_loadu_ps(lanes, cosines + i), s = _mm512_maskz_loadu_ps(lanes, sines + i);
        _mm512_mask_storeu_ps(x + i, lanes, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
        _mm512_mask_storeu_ps(x + half + i, lanes, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
    }
}

void silu_mul(const float* gate, const float* up, std::size_t n, float* out) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (std::size_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes(n - i);
        const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
        const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), g))));
        _mm512_mask_storeu_ps(out + i, lanes, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(lanes, up + i)));
    }
}

void add(const float* x, std::size_t n, float* y) {
    for (std::size_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes(n - i);
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, y + i), _mm512_maskz_loadu_ps(lanes, x + i));
        _mm512_mask_storeu_ps(y + i, lanes, sum);
    }
}

void scale(float* x, float factor, std::size_t n) {
    for (std::size_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes(n - i);
        _mm512_mask_storeu_ps(x + i, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), _mm512_set1_ps(factor)));
    }
}

void log_sum_exp(const float* x, std::size_t n, float* maximum, double* log_sum) {
    const float infinity = __builtin_inff();
    __m512 largest[4];
    for (__m512& lanes : largest) lanes = _mm512_set1_ps(-infinity);
    unsigned nan = 0;
    std::size_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (std::size_t v = 0; v < 4; ++v) {
            const __m512 part = _mm512_loadu_ps(x + i + 16 * v);
            nan |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
            largest[v] = _mm512_max_ps(part, largest[v]);
        }
    for (; i < n; i += 16) {
        const __mmask16 lanes = first_lanes(n - i);
        const __m512 part = _mm512_maskz_loadu_ps(lanes, x + i);
        nan |= _mm512_mask_cmp_ps_mask(lanes, part, part, _CMP_UNORD_Q);
        largest[0] = _mm512_mask_max_ps(largest[0], lanes, part, largest[0]);
    }
    const __m512 all = _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
    *maximum = nan != 0 ? __builtin_nanf("") : _mm512_reduce_max_ps(all);

    const __m512 top = _mm512_set1_ps(*maximum);
    __m512d low[2] = {}, high[2] = {};
    const auto take = [&](__m512 part, std::size_t v) {
        low[v] = _mm512_add_pd(low[v], _mm512_cvtps_pd(_mm512_castps512_ps256(part)));
        high[v] = _mm512_add_pd(high[v], _mm512_cvtps_pd(_mm512_extractf32x8_ps(part, 1)));
    };
    for (i = 0; i + 32 <= n; i += 32)
        for (std::size_t v = 0; v < 2; ++v) take(exp16(_mm512_sub_ps(_mm512_loadu_ps(x + i + 16 * v), top)), v);
    for (; i < n; i += 16) {
        const __mmask16 lanes = first_lanes(n - i);
        take(_mm512_maskz_mov_ps(lanes, exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + i), top))), 0);
    }
    const __m512d sums = _mm512_add_pd(_mm512_add_pd(low[0], low[1]), _mm512_add_pd(high[0], high[1]));
    *log_sum = ::log(_mm512_reduce_add_pd(sums));
}

}  // namespace qafila::avx512
