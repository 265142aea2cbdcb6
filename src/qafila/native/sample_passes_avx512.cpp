// The passes over a vocabulary, compiled for avx512.
#ifdef __AVX512DQ__
#define QAFILA_PASSES_NAMESPACE avx512
#include "sample_passes.h"
#else
#include "sample.h"
#endif

namespace qafila {

const SamplePasses* avx512_sample_passes() {
#ifdef __AVX512DQ__
    static constexpr SamplePasses passes{"avx512",
                                         avx512::maxima<float>,
                                         avx512::maxima<double>,
                                         avx512::sums_about<float>,
                                         avx512::sums_about<double>,
                                         avx512::sums<float>,
                                         avx512::sums<double>,
                                         avx512::weigh};
    return &passes;
#else
    return nullptr;
#endif
}

}  // namespace qafila
