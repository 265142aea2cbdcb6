// What the test files share: a check that ends the program, random numbers, and memory without a byte to spare.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>

#include "blocks.h"
#include "floats.h"
#include "kernels.h"
#include "packing.h"

#define CHECK(condition, ...)                                                      \
    do {                                                                           \
        if (!(condition)) {                                                        \
            std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);   \
            std::fprintf(stderr, __VA_ARGS__);                                     \
            std::fprintf(stderr, "\n");                                            \
            std::exit(1);                                                          \
        }                                                                          \
    } while (false)

namespace qafila::test {

inline constexpr const char* kTables[] = {"portable", "avx2", "avxvnni", "avx512"};

// The i-th of a stream of random words (splitmix64).
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t word() {
        std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    float uniform() { return static_cast<float>(word() >> 40) * 0x1p-23f - 1.0f; }  // [-1, 1)
    std::size_t below(std::size_t n) { return static_cast<std::size_t>(word() % n); }

private:
    std::uint64_t state_;
};

// Memory of exactly `count` elements, 64-byte aligned: AddressSanitizer sees one element too many. Zeroed.
template <typename T>
class Exact {
public:
    explicit Exact(std::size_t count)
        : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)))), count_(count) {
        std::memset(static_cast<void*>(data_), 0, count * sizeof(T));
    }
    ~Exact() { ::operator delete(static_cast<void*>(data_), std::align_val_t(64)); }
    Exact(const Exact&) = delete;
    Exact& operator=(const Exact&) = delete;
    T* data() const { return data_; }
    std::size_t size() const { return count_; }
    T& operator[](std::size_t i) const { return data_[i]; }

private:
    T* data_;
    std::size_t count_;
};

inline void fill(const Exact<float>& values, Random& random, float scale = 1.0f) {
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = scale * random.uniform();
}

inline int ggml_type(WeightType type) {
    constexpr int kNumbers[] = {0, 1, 30, 8, 2, 3, 12, 13, 14};
    return kNumbers[static_cast<int>(type)];
}

// Random codes in valid blocks: the f16 scales are small numbers.
inline void fill_rows(WeightType type, const Exact<std::uint8_t>& rows, Random& random) {
    const Format& format = *find_format(ggml_type(type));
    const auto put = [&](std::size_t at, float value) {
        const std::uint16_t half = half_from_float32(value);
        std::memcpy(rows.data() + at, &half, sizeof half);
    };
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint8_t>(random.word());
    for (std::size_t at = 0; at < rows.size(); at += format.bytes) {
        const float d = 0.01f * random.uniform();
        switch (type) {
            case WeightType::kF32: {
                const float value = random.uniform();
                std::memcpy(rows.data() + at, &value, sizeof value);
                break;
            }
            case WeightType::kF16: put(at, random.uniform()); break;
            case WeightType::kBF16: {
                const std::uint16_t value = bfloat16_from_float32(random.uniform());
                std::memcpy(rows.data() + at, &value, sizeof value);
                break;
            }
            case WeightType::kQ6_K: put(at + 208, d * 0.1f); break;
            case WeightType::kQ8_0:
            case WeightType::kQ4_0: put(at, d); break;
            default: put(at, d), put(at + 2, 0.01f * random.uniform());
        }
    }
}

void test_formats();
void test_products();
void test_elementwise();
void test_attention();
void test_team();
void test_forward();

}  // namespace qafila::test
