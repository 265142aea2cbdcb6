// The table of AVX-VNNI: AVX2's, but for quantised products.

#include "kernels_avx2.h"

namespace qafila {

const Kernels* avxvnni_kernels() {
    static const Kernels table = [] {
        Kernels made = *avx2_kernels();
        made.name = "avxvnni";
        for (int i = 0; i < 6; ++i) made.product[3 + i] = avxvnni::quantised_products[i];
        return made;
    }();
    return &table;
}

}  // namespace qafila
