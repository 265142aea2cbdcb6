// Block layouts of quantised weights, as in ggml's files, and the kernels over runs of blocks.
//
// Kernels take blocks that lie one after the other, trust their sizes (the binding has checked them), never throw,
// and give the same bits however a run is cut into pieces.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qafila {

struct BlockQ4_0 {  // IQ4_NL too
    std::uint16_t d;
    std::uint8_t qs[16];
};
struct BlockQ4_1 {
    std::uint16_t d, m;
    std::uint8_t qs[16];
};
struct BlockQ5_0 {
    std::uint16_t d;
    std::uint8_t qh[4], qs[16];
};
struct BlockQ5_1 {
    std::uint16_t d, m;
    std::uint8_t qh[4], qs[16];
};
struct BlockQ8_0 {
    std::uint16_t d;
    std::int8_t qs[32];
};
struct BlockQ2_K {
    std::uint8_t scales[16], qs[64];
    std::uint16_t d, dmin;
};
struct BlockQ3_K {
    std::uint8_t hmask[32], qs[64], scales[12];
    std::uint16_t d;
};
struct BlockQ4_K {
    std::uint16_t d, dmin;
    std::uint8_t scales[12], qs[128];
};
struct BlockQ5_K {
    std::uint16_t d, dmin;
    std::uint8_t scales[12], qh[32], qs[128];
};
struct BlockQ6_K {
    std::uint8_t ql[128], qh[64];
    std::int8_t scales[16];
    std::uint16_t d;
};
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// Of quantising a run: whether the type could hold it. What was written for a run that it cannot hold means nothing.
enum class Fit { kGood, kOutOfRange };

using DequantiseRun = void (*)(const std::uint8_t* data, float* values, std::size_t blocks);
using QuantiseRun = Fit (*)(const float* values, std::uint8_t* data, std::size_t blocks);

struct Format {
    int ggml_type;
    const char* name;
    std::size_t elements;  // per block
    std::size_t bytes;     // per block
    DequantiseRun dequantise;
    QuantiseRun quantise;  // null where the type is only read
};

// The format of a ggml type number, or null.
const Format* find_format(int ggml_type);

// One file each: dequantise.cpp, quantise.cpp, q4_k_search.cpp.
template <typename Block>
void dequantise_run(const std::uint8_t* data, float* values, std::size_t blocks);
void dequantise_iq4_nl(const std::uint8_t* data, float* values, std::size_t blocks);
void dequantise_f32(const std::uint8_t* data, float* values, std::size_t count);
void dequantise_f16(const std::uint8_t* data, float* values, std::size_t count);
void dequantise_bf16(const std::uint8_t* data, float* values, std::size_t count);
void dequantise_f64(const std::uint8_t* data, float* values, std::size_t count);

Fit quantise_f32(const float* values, std::uint8_t* data, std::size_t count);
Fit quantise_f16(const float* values, std::uint8_t* data, std::size_t count);
Fit quantise_bf16(const float* values, std::uint8_t* data, std::size_t count);
Fit quantise_q8_0(const float* values, std::uint8_t* data, std::size_t blocks);
Fit quantise_q4_0(const float* values, std::uint8_t* data, std::size_t blocks);
Fit quantise_q4_1(const float* values, std::uint8_t* data, std::size_t blocks);
Fit quantise_q4_k(const float* values, std::uint8_t* data, std::size_t blocks);

}  // namespace qafila
