// The table of AVX2 kernels (with FMA and F16C).

#include "kernels_avx2.h"

namespace qafila {

const Kernels* avx2_kernels() {
    static const Kernels table = [] {
        Kernels made{};
        made.name = "avx2";
        for (int i = 0; i < 3; ++i) made.product[i] = avx2::plain_products[i];
        for (int i = 0; i < 6; ++i) made.product[3 + i] = avx2::quantised_products[i];
        made.quantise = avx2::quantise;
        made.round_bf16 = avx2::round_bf16;
        made.rms_norm = avx2::rms_norm;
        made.rope = avx2::rope;
        made.silu_mul = avx2::silu_mul;
        made.add = avx2::add;
        made.scale = avx2::scale;
        made.store_kv = avx2::store_kv;
        made.attend = avx2::attend;
        made.merge = avx2::merge;
        made.log_sum_exp = avx2::log_sum_exp;
        return made;
    }();
    return &table;
}

}  // namespace qafila
