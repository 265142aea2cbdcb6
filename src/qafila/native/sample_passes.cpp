// The passes over a vocabulary, compiled for any processor.
#define QAFILA_PASSES_NAMESPACE portable
#include "sample_passes.h"

namespace qafila {

const SamplePasses* portable_sample_passes() {
    static constexpr SamplePasses passes{"portable",
                                         portable::maxima<float>,
                                         portable::maxima<double>,
                                         portable::sums_about<float>,
                                         portable::sums_about<double>,
                                         portable::sums<float>,
                                         portable::sums<double>,
                                         portable::weigh};
    return &passes;
}

}  // namespace qafila
