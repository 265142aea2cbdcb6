// What the machine gives: figures that measured speeds are held against.

#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

#include "mapping.h"

namespace nb = nanobind;

namespace qafila {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kMaxThreads = 1024;
// Streams one thread reads side by side: one alone does not keep the hardware prefetchers busy.
constexpr std::size_t kStreams = 4;

// Loads every word of `words` (a whole number of cache lines for each stream); the sum keeps the loads alive.
std::uint64_t read_all(const std::uint64_t* words, std::size_t count) {
    const std::size_t part = count / kStreams;
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i + 8 <= part; i += 8)
        for (std::size_t s = 0; s < kStreams; ++s)
            for (std::size_t j = 0; j < 8; ++j) sums[j] += words[s * part + i + j];
    std::uint64_t sum = 0;
    for (const std::uint64_t part_sum : sums) sum += part_sum;
    return sum;
}

double read_bandwidth(std::size_t bytes, std::size_t threads, std::size_t passes) {
    if (threads < 1 || threads > kMaxThreads) throw std::invalid_argument("threads is not from 1 to 1024");
    if (passes < 1) throw std::invalid_argument("passes is not 1 or more");
    // A whole number of lines for each stream of each thread.
    const std::size_t step = threads * kStreams * kLine;
    if (bytes < step) throw std::invalid_argument("bytes is less than a cache line for each stream of each thread");
    bytes = bytes / step * step;
    const nb::gil_scoped_release release;
    // Large pages where the system gives them, as weights have.
    const Mapping memory(bytes);
    auto* const data = reinterpret_cast<std::uint64_t*>(memory.data());
    const std::size_t words = bytes / sizeof(std::uint64_t), part = words / threads;
    std::fill_n(data, words, std::uint64_t{1});

    std::atomic<std::size_t> ready{0};
    std::atomic<bool> go{false};
    std::atomic<std::uint64_t> total{0};
    const auto read = [&](std::size_t member) {
        const std::uint64_t* mine = data + member * part;
        ready.fetch_add(1);
        while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
        std::uint64_t sum = 0;
        for (std::size_t pass = 0; pass < passes; ++pass) {
            sum += read_all(mine, part);
            // Otherwise the compiler reads once and multiplies.
            std::atomic_signal_fence(std::memory_order_seq_cst);
        }
        total.fetch_add(sum);
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (std::size_t member = 1; member < threads; ++member) others.emplace_back(read, member);
    } catch (...) {
        go = true;
        for (std::thread& thread : others) thread.join();
        throw;
    }
    while (ready.load() + 1 < threads) std::this_thread::yield();
    const auto start = std::chrono::steady_clock::now();
    go.store(true, std::memory_order_release);
    read(0);
    for (std::thread& thread : others) thread.join();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (total.load() != passes * words) throw std::runtime_error("memory did not hold what was written to it");
    return static_cast<double>(bytes) * static_cast<double>(passes) / elapsed.count();
}

}  // namespace

void bind_measure(nb::module_& m) {
    using namespace nb::literals;
    m.def("read_bandwidth", &read_bandwidth, "bytes"_a, "threads"_a, "passes"_a = 3,
          "Bytes a second that `threads` threads together read from memory, each its own part of a fresh buffer. "
          "ValueError where an argument is out of range, MemoryError where there is no such buffer.");
}

}  // namespace qafila
