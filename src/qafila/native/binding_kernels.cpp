// The kernel tables one by one, for tests and benchmarks.

#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace qafila {

void bind_kernels(nb::module_& m) { (void)m; }

}  // namespace qafila
