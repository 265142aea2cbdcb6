// The passes over a vocabulary, compiled for avx2.
#ifdef __AVX2__
#define QAFILA_PASSES_NAMESPACE avx2
#include "sample_passes.h"
#else
#include "sample.h"
#endif

namespace qafila {

const SamplePasses* avx2_sample_passes() {
#ifdef __AVX2__
    static constexpr SamplePasses passes{"avx2",
                                         avx2::maxima<float>,
                                         avx2::maxima<double>,
                                         avx2::sums_about<float>,
                                         avx2::sums_about<double>,
                                         avx2::sums<float>,
                                         avx2::sums<double>,
                                         avx2::weigh};
    return &passes;
#else
    return nullptr;
#endif
}

}  // namespace qafila
