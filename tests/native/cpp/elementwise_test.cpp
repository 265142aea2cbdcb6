// Elementwise functions of every table, at every size up to a few vectors, against float64.

#include <algorithm>
#include <limits>

#include "check.h"

namespace qafila::test {
namespace {

bool near(double found, double expected) { return std::fabs(found - expected) <= 2e-5 * (1 + std::fabs(expected)); }

void check(const Kernels& table, std::size_t n, Random& random) {
    const Exact<float> x(n), weight(n), y(n);
    fill(x, random, 3.0f);
    fill(weight, random);
    double squares = 0, maximum = -std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < n; ++i) {
        squares += static_cast<double>(x[i]) * x[i];
        maximum = std::max(maximum, static_cast<double>(x[i]));
    }
    const double norm = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
    table.rms_norm(x.data(), weight.data(), n, 1e-5f, y.data());
    for (std::size_t i = 0; i < n; ++i) CHECK(near(y[i], x[i] * norm * weight[i]), "%s: rms_norm of %zu", table.name, n);
    table.rms_norm(x.data(), nullptr, n, 1e-5f, y.data());
    for (std::size_t i = 0; i < n; ++i) CHECK(near(y[i], x[i] * norm), "%s: rms_norm of %zu", table.name, n);
    table.silu_mul(x.data(), weight.data(), n, y.data());
    for (std::size_t i = 0; i < n; ++i)
        CHECK(near(y[i], x[i] / (1 + std::exp(-static_cast<double>(x[i]))) * weight[i]), "%s: silu_mul of %zu", table.name, n);
    std::memcpy(y.data(), weight.data(), n * sizeof(float));
    table.add(x.data(), n, y.data());
    for (std::size_t i = 0; i < n; ++i) CHECK(y[i] == weight[i] + x[i], "%s: add of %zu", table.name, n);
    table.scale(y.data(), 0.5f, n);
    for (std::size_t i = 0; i < n; ++i) CHECK(y[i] == 0.5f * (weight[i] + x[i]), "%s: scale of %zu", table.name, n);
    const Exact<std::uint16_t> rounded(n);
    table.round_bf16(x.data(), n, rounded.data());
    for (std::size_t i = 0; i < n; ++i) CHECK(rounded[i] == bfloat16_from_float32(x[i]), "%s: round_bf16", table.name);
    float found = 0;
    double log_sum = 0, sum = 0;
    table.log_sum_exp(x.data(), n, &found, &log_sum);
    for (std::size_t i = 0; i < n; ++i) sum += std::exp(x[i] - maximum);
    CHECK(found == maximum && std::fabs(log_sum - std::log(sum)) < 1e-5, "%s: log_sum_exp of %zu", table.name, n);
    if (n % 2 != 0) return;
    const Exact<float> cosines(n / 2), sines(n / 2);
    for (std::size_t i = 0; i < n / 2; ++i) cosines[i] = std::cos(0.1f * i), sines[i] = std::sin(0.1f * i);
    for (const bool interleaved : {false, true}) {
        std::memcpy(y.data(), x.data(), n * sizeof(float));
        table.rope(y.data(), cosines.data(), sines.data(), n, interleaved);
        for (std::size_t i = 0; i < n / 2; ++i) {
            const std::size_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + n / 2;
            CHECK(near(y[a], static_cast<double>(x[a]) * cosines[i] - static_cast<double>(x[b]) * sines[i]) &&
                      near(y[b], static_cast<double>(x[b]) * cosines[i] + static_cast<double>(x[a]) * sines[i]),
                  "%s: rope of %zu", table.name, n);
        }
    }
}

// What a model with damaged weights makes: no function may fault on it.
void check_hostile(const Kernels& table) {
    constexpr std::size_t kCount = 96;
    const Exact<float> x(kCount), y(kCount);
    constexpr float kValues[] = {0.0f, -0.0f, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                                 std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::max(),
                                 std::numeric_limits<float>::denorm_min(), -std::numeric_limits<float>::max()};
    for (const float value : kValues) {
        for (std::size_t i = 0; i < kCount; ++i) x[i] = value;
        table.rms_norm(x.data(), nullptr, kCount, 1e-5f, y.data());
        table.silu_mul(x.data(), x.data(), kCount, y.data());
        float maximum = 0;
        double log_sum = 0;
        table.log_sum_exp(x.data(), kCount, &maximum, &log_sum);
        const Exact<std::int8_t> quants(kCount);
        const Exact<float> scales(3), scaled(3);
        const Exact<std::int32_t> sums(3), halves(6);
        table.quantise(x.data(), kCount, 0, 1, quants.data(), scales.data(), scaled.data(), sums.data(), halves.data());
        for (const bool int8 : {false, true}) {
            const Exact<std::uint8_t> block(int8 ? 2 * 16 * kCount + 128 : 4 * 16 * kCount);
            table.store_kv(x.data(), x.data(), kCount, 15, int8, block.data());
        }
    }
}

}  // namespace

void test_elementwise() {
    for (const char* name : kTables) {
        const Kernels* table = find_kernels(name);
        if (table == nullptr) continue;
        Random random(4);
        for (std::size_t n = 1; n <= 70; ++n) check(*table, n, random);
        check(*table, 576, random);
        check(*table, 4099, random);
        check_hostile(*table);
    }
}

}  // namespace qafila::test
