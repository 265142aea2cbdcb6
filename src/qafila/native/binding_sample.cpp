// Sampling.

#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace qafila {

void bind_sample(nb::module_& m) { (void)m; }

}  // namespace qafila
