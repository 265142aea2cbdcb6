#include "system.h"

#if defined(_WIN32)
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace qafila {

#if defined(_WIN32)

void* map_memory(std::size_t bytes) { return VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE); }

void unmap_memory(void* memory, std::size_t) {
    if (memory != nullptr) VirtualFree(memory, 0, MEM_RELEASE);
}

void drop_pages(const void*, std::size_t) {}

bool pin_thread(int cpu) {
    if (cpu < 0 || cpu >= static_cast<int>(8 * sizeof(DWORD_PTR))) return false;
    return SetThreadAffinityMask(GetCurrentThread(), static_cast<DWORD_PTR>(1) << cpu) != 0;
}

void yield_thread() { SwitchToThread(); }

#else

namespace {

constexpr std::size_t kLargePage = std::size_t{1} << 21;

// Room before the address that is handed out, so that large pages begin where the memory does.
std::size_t mapped_bytes(std::size_t bytes) { return bytes >= kLargePage ? bytes + kLargePage : bytes; }

}  // namespace

void* map_memory(std::size_t bytes) {
    if (bytes == 0 || bytes > SIZE_MAX - 2 * kLargePage) return nullptr;
    const std::size_t whole = mapped_bytes(bytes);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
    flags |= MAP_NORESERVE;
#endif
    void* memory = mmap(nullptr, whole, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    if (whole == bytes) return memory;
    // What lies before the first large page and behind the last byte is given back.
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t aligned = (start + kLargePage - 1) / kLargePage * kLargePage;
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::uintptr_t end = (aligned + bytes + page - 1) / page * page;
    if (aligned > start) munmap(memory, aligned - start);
    if (start + whole > end) munmap(reinterpret_cast<void*>(end), start + whole - end);
#if defined(MADV_HUGEPAGE)
    madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
#endif
    return reinterpret_cast<void*>(aligned);
}

void unmap_memory(void* memory, std::size_t bytes) {
    if (memory != nullptr) munmap(memory, bytes);
}

void drop_pages(const void* memory, std::size_t bytes) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t first = (start + page - 1) / page * page;
    const std::uintptr_t last = (start + bytes) / page * page;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

bool pin_thread(int cpu) {
#if defined(__linux__)
    if (cpu < 0 || cpu >= CPU_SETSIZE) return false;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set) == 0;
#else
    (void)cpu;  // macOS pins no threads
    return false;
#endif
}

void yield_thread() { sched_yield(); }

#endif

}  // namespace qafila
