// What runs between products, with AVX2.

#include <math.h>

#include "kernels_avx2.h"
#include "lanes_avx2.h"

namespace qafila::avx2 {
namespace {

std::int32_t sum_lanes(__m128i x) {
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
}

std::int32_t sum_16(__m256i a, __m256i b) {
    const __m256i both = _mm256_add_epi32(a, b);
    return sum_lanes(_mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
}

// Lanes in order: packing works on each 128-bit half by itself.
__m256i reorder(__m256i packed, int kind) {
    return kind == 8 ? _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
                     : _mm256_permute4x64_epi64(packed, 0xD8);
}

}  // namespace

void quantise(const float* x, std::size_t columns, std::size_t token, std::size_t tokens, std::int8_t* quants,
              float* scales, float* scaled_sums, std::int32_t* sums, std::int32_t* half_sums) {
    for (std::size_t b = 0; b < columns / kBlockColumns; ++b, x += kBlockColumns) {
        __m256 part[4];
        __m256i top = _mm256_setzero_si256();
        for (int i = 0; i < 4; ++i) {
            part[i] = _mm256_loadu_ps(x + 8 * i);
            // As integers magnitudes order like the numbers, and NaN is the largest.
            top = _mm256_max_epi32(top, _mm256_castps_si256(magnitude(part[i])));
        }
        __m128i most = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
        most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4E));
        most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xB1));
        const float step = _mm_cvtss_f32(_mm_castsi128_ps(most)) / 127.0f;
        const bool finite = step <= __FLT_MAX__, live = finite && step >= __FLT_MIN__;
        __m256i q[4];
        for (int i = 0; i < 4; ++i)
            q[i] = live ? _mm256_cvtps_epi32(_mm256_div_ps(part[i], _mm256_set1_ps(step))) : _mm256_setzero_si256();
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        const std::size_t place = b * tokens + token;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(quants + place * kBlockColumns), reorder(packed, 8));
        const std::int32_t first = sum_16(q[0], q[1]), last = sum_16(q[2], q[3]);
        scales[place] = live || !finite ? step : 0.0f;
        scaled_sums[place] = scales[place] * static_cast<float>(first + last);
        sums[place] = first + last;
        half_sums[2 * place] = first;
        half_sums[2 * place + 1] = last;
    }
}

void round_bf16(const float* x, std::size_t n, std::uint16_t* out) {
    for (std::size_t i = 0; i < n; i += 8) {
        const __m256 values = load(x + i, n - i);
        const __m256i bits = _mm256_castps_si256(values), high = _mm256_srli_epi32(bits, 16);
        const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        const __m256i carry = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
        const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(carry, 16), quiet, nan);
        const __m256i packed = reorder(_mm256_packus_epi32(words, words), 64);
        if (n - i >= 8) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_castsi256_si128(packed));
        } else {
            alignas(16) std::uint16_t lanes[8];
            _mm_store_si128(reinterpret_cast<__m128i*>(lanes), _mm256_castsi256_si128(packed));
            for (std::size_t l = 0; l < n - i; ++l) out[i + l] = lanes[l];
        }
    }
}

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* y) {
    __m256 squares[4] = {};
    for (std::size_t i = 0; i < n; i += 8) {
        const __m256 values = load(x + i, n - i);
        squares[i / 8 % 4] = _mm256_fmadd_ps(values, values, squares[i / 8 % 4]);
    }
    const __m256 all = _mm256_add_ps(_mm256_add_ps(squares[0], squares[1]), _mm256_add_ps(squares[2], squares[3]));
    const __m256 mean = _mm256_set1_ps(sum_lanes(all) / static_cast<float>(n) + eps);
    const __m256 factor = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_sqrt_ps(mean));
    for (std::size_t i = 0; i < n; i += 8) {
        __m256 normed = _mm256_mul_ps(load(x + i, n - i), factor);
        if (weight != nullptr) normed = _mm256_mul_ps(normed, load(weight + i, n - i));
        store(y + i, n - i, normed);
    }
}

void rope(float* x, const float* cosines, const float* sines, std::size_t n, bool interleaved) {
    const std::size_t pairs = n / 2;
    if (interleaved) {
        for (std::size_t i = 0; i < pairs; i += 4) {
            // Four angles, each for two neighbours; the sine's sign alternates.
            const std::size_t left = pairs - i;
            const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
            const __m256 cosine = _mm256_permutevar8x32_ps(load(cosines + i, left < 4 ? left : 4), twice);
            const __m256 sine = _mm256_permutevar8x32_ps(load(sines + i, left < 4 ? left : 4), twice);
            const __m256 values = load(x + 2 * i, 2 * left);
            const __m256 crossed = _mm256_mul_ps(_mm256_permute_ps(values, 0xB1), sine);
            store(x + 2 * i, 2 * left, _mm256_fmaddsub_ps(values, cosine, crossed));
        }
        return;
    }
    for (std::size_t i = 0; i < pairs; i += 8) {
        const std::size_t left = pairs - i;
        const __m256 cosine = load(cosines + i, left), sine = load(sines + i, left);
        const __m256 first = load(x + i, left), second = load(x + pairs + i, left);
        store(x + i, left, _mm256_fmsub_ps(first, cosine, _mm256_mul_ps(second, sine)));
        store(x + pairs + i, left, _mm256_fmadd_ps(second, cosine, _mm256_mul_ps(first, sine)));
    }
}

void silu_mul(const float* gate, const float* up, std::size_t n, float* out) {
    for (std::size_t i = 0; i < n; i += 8) {
        const __m256 g = load(gate + i, n - i);
        const __m256 below = exp8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
        const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(below, _mm256_set1_ps(1.0f)));
        store(out + i, n - i, _mm256_mul_ps(silu, load(up + i, n - i)));
    }
}

void add(const float* x, std::size_t n, float* y) {
    for (std::size_t i = 0; i < n; i += 8)
        store(y + i, n - i, _mm256_add_ps(load(y + i, n - i), load(x + i, n - i)));
}

void scale(float* x, float factor, std::size_t n) {
    for (std::size_t i = 0; i < n; i += 8)
        store(x + i, n - i, _mm256_mul_ps(load(x + i, n - i), _mm256_set1_ps(factor)));
}

void log_sum_exp(const float* x, std::size_t n, float* maximum, double* log_sum) {
    const __m256 nothing = _mm256_set1_ps(-__builtin_inff());
    __m256 largest = nothing, nan = _mm256_setzero_ps();
    for (std::size_t i = 0; i < n; i += 8) {
        __m256 values = load(x + i, n - i);
        if (n - i < 8) values = _mm256_blendv_ps(nothing, values, _mm256_castsi256_ps(first_lanes(n - i)));
        largest = _mm256_max_ps(values, largest);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    }
    if (_mm256_movemask_ps(nan) != 0) {
        *maximum = __builtin_nanf("");
        *log_sum = __builtin_nan("");
        return;
    }
    *maximum = max_lanes(largest);
    const __m256 top = _mm256_set1_ps(*maximum);
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    for (std::size_t i = 0; i < n; i += 8) {
        __m256 terms = exp8(_mm256_sub_ps(load(x + i, n - i), top));
        if (n - i < 8) terms = _mm256_and_ps(terms, _mm256_castsi256_ps(first_lanes(n - i)));
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(terms)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(terms, 1)));
    }
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, _mm256_add_pd(low, high));
    *log_sum = ::log((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
}

}  // namespace qafila::avx2
