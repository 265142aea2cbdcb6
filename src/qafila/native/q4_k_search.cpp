// Quantising to Q4_K. Twin of quant/q4_k_search.py, bit for bit; what is done and why is told there.
//
// Bit equality rests on the order of sums (folded in halves), on no fused multiply-add (-ffp-contract=off), and on the
// same order of operations in every expression.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "blocks.h"
#include "floats.h"

namespace qafila {
namespace {

constexpr int kSub = 32;   // weights in a sub-block
constexpr int kSubs = 8;   // sub-blocks in a block
constexpr float kGridStart = 13.0f, kGridStep = 0.4f;
constexpr int kGridCount = 8;
constexpr int kRounds = 3;
constexpr float kNarrowest = 0x1p-40f;
constexpr float kLimit = 1e9f;

struct Line {  // a weight is scale * q - minimum
    float scale, minimum;
};

float folded_sum(float (&terms)[kSub]) {
    for (int i = 0; i < 16; ++i) terms[i] += terms[i + 16];
    for (int i = 0; i < 8; ++i) terms[i] += terms[i + 8];
    for (int i = 0; i < 4; ++i) terms[i] += terms[i + 4];
    return (terms[0] + terms[2]) + (terms[1] + terms[3]);
}

float clamped(float value, float largest) {
    const float positive = value > 0.0f ? value : 0.0f;
    return positive < largest ? positive : largest;
}

// Nearest integer, halves up, from 0 to `largest`.
float rounded(float value, float largest) {
    return static_cast<float>(static_cast<std::int32_t>(clamped(value, largest) + 0.5f));
}

float squared_error(const float* x, const float* weights, const float* q, Line line) {
    float terms[kSub];
    for (int i = 0; i < kSub; ++i) {
        const float residual = (line.scale * q[i] - line.minimum) - x[i];
        terms[i] = weights[i] * (residual * residual);
    }
    return folded_sum(terms);
}

// The q nearest to x on a given line.
void integers(const float* x, Line line, float* q) {
    if (!(line.scale > 0.0f)) {
        std::fill(q, q + kSub, 0.0f);
        return;
    }
    for (int i = 0; i < kSub; ++i) q[i] = rounded((x[i] + line.minimum) / line.scale, 15.0f);
}

Line best_fit(const float* x, const float* weights) {
    float least = 0.0f, greatest = x[0];
    for (int i = 0; i < kSub; ++i) {
        least = x[i] < least ? x[i] : least;
        greatest = x[i] > greatest ? x[i] : greatest;
    }
    const float width = greatest - least;
    if (width < kNarrowest) return {0.0f, 0.0f - least};

    float q[kSub], weighted_x[kSub], terms[kSub], more[kSub], most[kSub];
    for (int i = 0; i < kSub; ++i) terms[i] = weights[i];
    const float sum_w = folded_sum(terms);
    for (int i = 0; i < kSub; ++i) terms[i] = weighted_x[i] = weights[i] * x[i];
    const float sum_x = folded_sum(terms);

    Line best{width / 15.0f, 0.0f - least};
    integers(x, best, q);
    float error = squared_error(x, weights, q, best);
    for (int k = 0; k < kGridCount; ++k) {
        Line line{width / (kGridStart + kGridStep * static_cast<float>(k)), 0.0f - least};
        for (int round = 0; round < kRounds; ++round) {
            integers(x, line, q);
            for (int i = 0; i < kSub; ++i) {
                terms[i] = weights[i] * q[i];
                more[i] = terms[i] * q[i];
                most[i] = weighted_x[i] * q[i];
            }
            const float sum_q = folded_sum(terms), sum_qq = folded_sum(more), sum_qx = folded_sum(most);
            const float determinant = sum_w * sum_qq - sum_q * sum_q;
            if (!(determinant > 0.0f && sum_qq > 0.0f)) break;
            line = {(sum_w * sum_qx - sum_x * sum_q) / determinant, (sum_q * sum_qx - sum_qq * sum_x) / determinant};
            if (line.minimum < 0.0f) line = {sum_qx / sum_qq, 0.0f};
            if (!(line.scale > 0.0f)) break;
            const float tried = squared_error(x, weights, q, line);
            if (tried < error) {
                error = tried;
                best = line;
            }
        }
    }
    return best;
}

// The float16 factor that eight numbers share, and their six-bit integers.
std::uint16_t common_factor(const float (&values)[kSubs], float (&integers)[kSubs]) {
    float largest = values[0];
    for (float value : values) largest = value > largest ? value : largest;
    const std::uint16_t half = half_from_float32((largest + 0.0f) / 63.0f);  // -0 becomes 0
    const float factor = float32_from_half(half);
    for (int i = 0; i < kSubs; ++i) integers[i] = factor > 0.0f ? rounded(values[i] / factor, 63.0f) : 0.0f;
    return half;
}

// Moves a sub-block's six-bit scale and minimum to the best of their neighbours; q becomes the integers for it.
void refine(const float* x, const float* weights, float d, float dmin, float& scale, float& minimum, float* q) {
    const float first_scale = scale, first_minimum = minimum;
    const Line first{d * scale, dmin * minimum};
    integers(x, first, q);
    float error = squared_error(x, weights, q, first);
    for (int step = -1; step <= 1; ++step) {
        for (int shift = -1; shift <= 1; ++shift) {
            const float near_scale = clamped(first_scale + static_cast<float>(step), 63.0f);
            const float near_minimum = clamped(first_minimum + static_cast<float>(shift), 63.0f);
            const Line line{d * near_scale, dmin * near_minimum};
            float near_q[kSub];
            integers(x, line, near_q);
            const float tried = squared_error(x, weights, near_q, line);
            if (tried < error) {
                error = tried;
                scale = near_scale;
                minimum = near_minimum;
                std::copy(near_q, near_q + kSub, q);
            }
        }
    }
}

bool small_enough(const float* values) {
    bool good = true;
    for (int i = 0; i < kSub * kSubs; ++i) good &= std::fabs(values[i]) < kLimit;  // false for NaN
    return good;
}

Fit pack(const float* values, BlockQ4_K& block) {
    if (!small_enough(values)) return Fit::kOutOfRange;
    float weights[kSubs][kSub], scales[kSubs], minima[kSubs];
    for (int sub = 0; sub < kSubs; ++sub) {
        const float* x = values + kSub * sub;
        float terms[kSub];
        for (int i = 0; i < kSub; ++i) terms[i] = x[i] * x[i];
        const float rms = std::sqrt(folded_sum(terms) / 32.0f);
        for (int i = 0; i < kSub; ++i) weights[sub][i] = rms + std::fabs(x[i]);
        const Line line = best_fit(x, weights[sub]);
        scales[sub] = line.scale;
        minima[sub] = line.minimum;
    }
    float sc[kSubs], m[kSubs];
    block.d = common_factor(scales, sc);
    block.dmin = common_factor(minima, m);
    if (!half_is_finite(block.d) || !half_is_finite(block.dmin)) return Fit::kOutOfRange;
    const float d = float32_from_half(block.d), dmin = float32_from_half(block.dmin);

    std::uint8_t scale[kSubs], minimum[kSubs], q[kSubs][kSub];
    for (int sub = 0; sub < kSubs; ++sub) {
        float near_q[kSub];
        refine(values + kSub * sub, weights[sub], d, dmin, sc[sub], m[sub], near_q);
        scale[sub] = static_cast<std::uint8_t>(sc[sub]);
        minimum[sub] = static_cast<std::uint8_t>(m[sub]);
        for (int i = 0; i < kSub; ++i) q[sub][i] = static_cast<std::uint8_t>(near_q[i]);
    }
    for (int i = 0; i < 4; ++i) {
        block.scales[i] = static_cast<std::uint8_t>(scale[i] | ((scale[4 + i] >> 4) << 6));
        block.scales[4 + i] = static_cast<std::uint8_t>(minimum[i] | ((minimum[4 + i] >> 4) << 6));
        block.scales[8 + i] = static_cast<std::uint8_t>((scale[4 + i] & 15) | ((minimum[4 + i] & 15) << 4));
    }
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < kSub; ++i)
            block.qs[kSub * pair + i] = static_cast<std::uint8_t>(q[2 * pair][i] | (q[2 * pair + 1][i] << 4));
    return Fit::kGood;
}

}  // namespace

Fit quantise_q4_k(const float* values, std::uint8_t* data, std::size_t blocks) {
    for (std::size_t i = 0; i < blocks; ++i) {
        BlockQ4_K block;
        if (pack(values + i * kSub * kSubs, block) != Fit::kGood) return Fit::kOutOfRange;
        std::memcpy(data + i * sizeof(block), &block, sizeof(block));
    }
    return Fit::kGood;
}

}  // namespace qafila
