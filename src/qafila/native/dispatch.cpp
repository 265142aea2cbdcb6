// Which tables this processor runs.

#include <cstring>

#include "kernels.h"

namespace qafila {
namespace {

// __builtin_cpu_supports asks for the operating system's saving of the registers, too.
bool runs_avx2() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}

bool runs_avx512();

bool runs_avxvnni() {
#if defined(QAFILA_VNNI_AS_AVX512)
    return runs_avx512();
#elif defined(__x86_64__) || defined(_M_X64)
    return runs_avx2() && __builtin_cpu_supports("avxvnni");
#else
    return false;
#endif
}

bool runs_avx512() {
#if defined(__x86_64__) || defined(_M_X64)
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

}  // namespace

const Kernels* find_kernels(const char* name) {
    if (std::strcmp(name, "portable") == 0) return portable_kernels();
    if (std::strcmp(name, "avx2") == 0) return runs_avx2() ? avx2_kernels() : nullptr;
    if (std::strcmp(name, "avxvnni") == 0) return runs_avxvnni() ? avxvnni_kernels() : nullptr;
    if (std::strcmp(name, "avx512") == 0) return runs_avx512() ? avx512_kernels() : nullptr;
    return nullptr;
}

const Kernels* best_kernels() {
    static constexpr const char* kNames[] = {"avx512", "avxvnni", "avx2"};
    for (const char* name : kNames)
        if (const Kernels* found = find_kernels(name)) return found;
    return portable_kernels();
}

}  // namespace qafila
