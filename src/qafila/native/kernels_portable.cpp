// The portable table: what runs between products, one element or one lane after the other.

#include "kernels_portable.h"

#include <bit>
#include <cmath>
#include <limits>

#include "floats.h"

namespace qafila::portable {
namespace {

constexpr int kLanes = 16;  // sums run in as many lanes, which are added up pairwise at the end

// Nearest integer, ties to even, for |x| < 2^22: the addition leaves no fraction bits.
std::int32_t nearest(float x) { return std::bit_cast<std::int32_t>(x + 0x1.8p23f) - 0x4B400000; }

template <typename Number>
Number fold(Number (&lanes)[kLanes]) {
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    return lanes[0];
}

// exp within 2 units in the last place; below the normal range 0, above it infinity. The polynomial for
// |r| <= ln 2 / 2 is Cephes' expf (S. L. Moshier).
float exponential(float x) {
    float clamped = x < -88.0f ? -88.0f : x;
    clamped = clamped > 89.0f ? 89.0f : clamped;
    const std::int32_t n = nearest(clamped * 1.44269504f);
    const float steps = static_cast<float>(n);
    const float r = (clamped - steps * 0.693359375f) + steps * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // Two factors, because 2^128 alone is no float32.
    const std::int32_t half = n >> 1;
    const float first = std::bit_cast<float>(static_cast<std::uint32_t>(half + 127) << 23);
    const float second = std::bit_cast<float>(static_cast<std::uint32_t>(n - half + 127) << 23);
    const float y = p * first * second;
    return x < -87.33654f ? 0.0f : y;
}

void quantise(const float* x, std::size_t columns, std::size_t token, std::size_t tokens, std::int8_t* quants,
              float* scales, float* scaled_sums, std::int32_t* sums, std::int32_t* half_sums) {
    constexpr int kSize = static_cast<int>(kBlockColumns);
    for (std::size_t b = 0; b < columns / kBlockColumns; ++b, x += kSize) {
        // As integers magnitudes order like the numbers, and NaN is the largest.
        std::uint32_t top = 0;
        for (int i = 0; i < kSize; ++i) {
            const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(x[i]) & 0x7FFFFFFFu;
            top = magnitude > top ? magnitude : top;
        }
        const float step = std::bit_cast<float>(top) / 127.0f;
        const bool finite = step <= std::numeric_limits<float>::max();
        const bool live = finite && step >= std::numeric_limits<float>::min();
        const std::size_t place = b * tokens + token;
        std::int8_t* q = quants + place * kBlockColumns;
        std::int32_t halves[2] = {};
        for (int i = 0; i < kSize; ++i) {
            const std::int32_t nearest_q = live ? nearest(x[i] / step) : 0;
            q[i] = static_cast<std::int8_t>(nearest_q);
            halves[i / 16] += nearest_q;
        }
        const std::int32_t sum = halves[0] + halves[1];
        scales[place] = live || !finite ? step : 0.0f;
        scaled_sums[place] = scales[place] * static_cast<float>(sum);
        sums[place] = sum;
        half_sums[2 * place] = halves[0];
        half_sums[2 * place + 1] = halves[1];
    }
}

void round_bf16(const float* x, std::size_t n, std::uint16_t* out) {
    for (std::size_t i = 0; i < n; ++i) out[i] = bfloat16_from_float32(x[i]);
}

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* y) {
    float lanes[kLanes] = {};
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * x[i + l];
    for (int l = 0; i < n; ++i, ++l) lanes[l] += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(fold(lanes) / static_cast<float>(n) + eps);
    if (weight == nullptr)
        for (std::size_t k = 0; k < n; ++k) y[k] = x[k] * factor;
    else
        for (std::size_t k = 0; k < n; ++k) y[k] = x[k] * factor * weight[k];
}

void rope(float* x, const float* cosines, const float* sines, std::size_t n, bool interleaved) {
    const std::size_t pairs = n / 2, step = interleaved ? 2 : 1, apart = interleaved ? 1 : pairs;
    for (std::size_t i = 0; i < pairs; ++i) {
        const float first = x[i * step], second = x[i * step + apart];
        x[i * step] = first * cosines[i] - second * sines[i];
        x[i * step + apart] = second * cosines[i] + first * sines[i];
    }
}

void silu_mul(const float* gate, const float* up, std::size_t n, float* out) {
    for (std::size_t i = 0; i < n; ++i) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

void add(const float* x, std::size_t n, float* y) {
    for (std::size_t i = 0; i < n; ++i) y[i] += x[i];
}

void scale(float* x, float factor, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) x[i] *= factor;
}

void log_sum_exp(const float* x, std::size_t n, float* maximum, double* log_sum) {
    float top = -std::numeric_limits<float>::infinity();
    bool nan = false;
    for (std::size_t i = 0; i < n; ++i) {
        top = x[i] > top ? x[i] : top;
        nan |= x[i] != x[i];
    }
    *maximum = nan ? std::numeric_limits<float>::quiet_NaN() : top;
    double lanes[kLanes] = {};
    std::size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(exponential(x[i + l] - top));
    for (int l = 0; i < n; ++i, ++l) lanes[l] += static_cast<double>(exponential(x[i] - top));
    *log_sum = nan ? std::numeric_limits<double>::quiet_NaN() : std::log(fold(lanes));
}

}  // namespace
}  // namespace qafila::portable

namespace qafila {

const Kernels* portable_kernels() {
    using namespace portable;
    static const Kernels table = [] {
        Kernels made{};
        made.name = "portable";
        for (int type = 0; type < static_cast<int>(WeightType::kCount); ++type) made.product[type] = products[type];
        made.quantise = quantise;
        made.round_bf16 = round_bf16;
        made.rms_norm = rms_norm;
        made.rope = rope;
        made.silu_mul = silu_mul;
        made.add = add;
        made.scale = portable::scale;
        made.store_kv = store_kv;
        made.attend = attend;
        made.merge = merge;
        made.log_sum_exp = log_sum_exp;
        return made;
    }();
    return &table;
}

}  // namespace qafila
