// The forward pass.

#include <nanobind/nanobind.h>

namespace nb = nanobind;

namespace qafila {

void bind_model(nb::module_& m) { (void)m; }

}  // namespace qafila
