// The table of AVX-512 kernels (with VNNI and BF16).

#include "kernels_avx512.h"

namespace qafila {
namespace {

constexpr Kernels kTable{
    "avx512",
    {avx512::product_f32, avx512::product_f16, avx512::product_bf16, avx512::product_q8_0, avx512::product_q4_0,
     avx512::product_q4_1, avx512::product_q4_k, avx512::product_q5_k, avx512::product_q6_k},
    avx512::quantise,
    avx512::round_bf16,
    avx512::rms_norm,
    avx512::rope,
    avx512::silu_mul,
    avx512::add,
    avx512::scale,
    avx512::store_kv,
    avx512::attend,
    avx512::merge,
    avx512::log_sum_exp,
};

}  // namespace

const Kernels* avx512_kernels() { return &kTable; }

}  // namespace qafila
