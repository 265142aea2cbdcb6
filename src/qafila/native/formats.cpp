// The table of formats: type numbers are ggml's (ggml.h).

#include "blocks.h"

namespace qafila {

const Format* find_format(int ggml_type) {
    static constexpr Format kFormats[] = {
        {0, "F32", 1, 4, dequantise_f32, quantise_f32},
        {1, "F16", 1, 2, dequantise_f16, quantise_f16},
        {2, "Q4_0", 32, sizeof(BlockQ4_0), dequantise_run<BlockQ4_0>, quantise_q4_0},
        {3, "Q4_1", 32, sizeof(BlockQ4_1), dequantise_run<BlockQ4_1>, quantise_q4_1},
        {6, "Q5_0", 32, sizeof(BlockQ5_0), dequantise_run<BlockQ5_0>, nullptr},
        {7, "Q5_1", 32, sizeof(BlockQ5_1), dequantise_run<BlockQ5_1>, nullptr},
        {8, "Q8_0", 32, sizeof(BlockQ8_0), dequantise_run<BlockQ8_0>, quantise_q8_0},
        {10, "Q2_K", 256, sizeof(BlockQ2_K), dequantise_run<BlockQ2_K>, nullptr},
        {11, "Q3_K", 256, sizeof(BlockQ3_K), dequantise_run<BlockQ3_K>, nullptr},
        {12, "Q4_K", 256, sizeof(BlockQ4_K), dequantise_run<BlockQ4_K>, quantise_q4_k},
        {13, "Q5_K", 256, sizeof(BlockQ5_K), dequantise_run<BlockQ5_K>, nullptr},
        {14, "Q6_K", 256, sizeof(BlockQ6_K), dequantise_run<BlockQ6_K>, nullptr},
        {20, "IQ4_NL", 32, sizeof(BlockQ4_0), dequantise_iq4_nl, nullptr},
        {28, "F64", 1, 8, dequantise_f64, nullptr},
        {30, "BF16", 1, 2, dequantise_bf16, quantise_bf16},
    };
    for (const Format& format : kFormats)
        if (format.ggml_type == ggml_type) return &format;
    return nullptr;
}

}  // namespace qafila
