#include "kernels.h"

namespace qafila {

const Kernels* avxvnni_kernels() { return nullptr; }

}  // namespace qafila
