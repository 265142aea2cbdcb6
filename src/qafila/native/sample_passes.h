// The passes of sample.h, to be included once by a source file for each instruction set, which defines
// QAFILA_PASSES_NAMESPACE. Plain loops that the compiler vectorises; nothing here is shared between those files.

#include <cstddef>
#include <cstdint>

#include "sample.h"

namespace qafila {
namespace QAFILA_PASSES_NAMESPACE {
namespace {

constexpr double kShift = 0x1.8p52;    // adding it rounds to a whole number, which is then in the low bits
constexpr float kShiftF = 0x1.8p23f;

// exp(s) for s <= 0, to about one unit in the last place; what is below -60 counts as -60.
inline double exponential(double s) {
    s = s < -60.0 ? -60.0 : s;
    const double shifted = s * 0x1.71547652b82fep+0 + kShift;
    const double n = shifted - kShift;
    const double r = (s - n * 0x1.62e42fefa38p-1) - n * 0x1.ef35793c7673p-45;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    const std::uint64_t exponent = (__builtin_bit_cast(std::uint64_t, shifted) + 1023) << 52;
    return p * __builtin_bit_cast(double, exponent);
}

// A value from 0 to 2^50, rounded to the nearest whole number, even ones preferred.
inline std::int64_t whole(double value) {
    return static_cast<std::int64_t>(__builtin_bit_cast(std::uint64_t, value + 0x1p52) - 0x4330000000000000u);
}

// 2^t for t <= 0, to 2e-7; what is below -120 counts as -120. The polynomial has the least relative error of those of
// degree 5 on [-1/2, 1/2] that give 1 at 0.
inline float power_of_two(float t) {
    t = t < -120.0f ? -120.0f : t;
    const float shifted = t + kShiftF;
    const float f = t - (shifted - kShiftF);
    float p = 0x1.5bba14p-10f;
    p = p * f + 0x1.3cea88p-7f;
    p = p * f + 0x1.c6b752p-5f;
    p = p * f + 0x1.ebf9bcp-3f;
    p = p * f + 0x1.62e42ap-1f;
    p = p * f + 1.0f;
    const std::uint32_t exponent = (__builtin_bit_cast(std::uint32_t, shifted) + 127) << 23;
    return p * __builtin_bit_cast(float, exponent);
}

template <typename T>
void maxima(const T* x, std::size_t n, T* out) {
    const std::size_t runs = n / kMaximumOf;
    for (std::size_t run = 0; run < runs; ++run) {
        T folded[8];
        for (std::size_t i = 0; i < 8; ++i) {
            const T a = x[run * kMaximumOf + i], b = x[run * kMaximumOf + 8 + i];
            folded[i] = a > b ? a : b;
        }
        for (std::size_t i = 0; i < 4; ++i) folded[i] = folded[i] > folded[i + 4] ? folded[i] : folded[i + 4];
        for (std::size_t i = 0; i < 2; ++i) folded[i] = folded[i] > folded[i + 2] ? folded[i] : folded[i + 2];
        out[run] = folded[0] > folded[1] ? folded[0] : folded[1];
    }
    if (runs * kMaximumOf < n) {
        T largest = x[runs * kMaximumOf];
        for (std::size_t i = runs * kMaximumOf; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
        out[runs] = largest;
    }
}

template <typename T>
void sums_about(const T* x, std::size_t n, T maximum, float inverse, float* out) {
    const float factor = inverse * 0x1.715476p+0f;
    std::size_t begin = 0;
    for (; begin + kSumOf <= n; begin += kSumOf) {
        float lanes[32] = {};
        for (std::size_t i = 0; i < kSumOf; i += 32)
            for (std::size_t j = 0; j < 32; ++j)
                lanes[j] += power_of_two(static_cast<float>(x[begin + i + j] - maximum) * factor);
        for (std::size_t half = 16; half > 0; half /= 2)
            for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
        *out++ = lanes[0];
    }
    if (begin < n) {
        float sum = 0;
        for (; begin < n; ++begin) sum += power_of_two(static_cast<float>(x[begin] - maximum) * factor);
        *out = sum;
    }
}

template <typename T>
void sums(const T* x, std::size_t n, double maximum, double temperature, double scale, std::int64_t* out) {
    for (std::size_t begin = 0; begin < n; begin += kSumOf) {
        const std::size_t end = n - begin < kSumOf ? n : begin + kSumOf;
        std::int64_t sum = 0;
        for (std::size_t i = begin; i < end; ++i)
            sum += whole(exponential((static_cast<double>(x[i]) - maximum) / temperature) * scale);
        *out++ = sum;
    }
}

void weigh(const double* scores, std::size_t n, double scale, std::int64_t* out) {
    for (std::size_t i = 0; i < n; ++i) out[i] = whole(exponential(scores[i]) * scale);
}

}  // namespace
}  // namespace QAFILA_PASSES_NAMESPACE
}  // namespace qafila
