// Cutting a run of blocks into pieces for threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <thread>
#include <vector>

namespace qafila {

// How many threads are worth starting: one per `grain` units of work, at most `wanted`, or the machine's when 0.
inline std::size_t thread_count(std::size_t work, std::size_t grain, std::size_t wanted) {
    const std::size_t allowed = wanted > 0 ? wanted : std::max(1u, std::thread::hardware_concurrency());
    return std::clamp<std::size_t>(work / grain, 1, std::min<std::size_t>(allowed, 256));
}

// Calls task(begin, end) for consecutive pieces of [0, count), the last one here. The task must not throw. Where the
// system gives no further thread, the rest is done here too.
template <typename Task>
void for_each_piece(std::size_t count, std::size_t threads, const Task& task) {
    std::vector<std::thread> started;
    started.reserve(threads);
    std::size_t begin = 0;
    for (std::size_t i = 0; i + 1 < threads; ++i) {
        const std::size_t end = begin + (count - begin) / (threads - i);
        try {
            started.emplace_back([&task, begin, end] { task(begin, end); });
        } catch (...) {  // no thread to be had, or no memory for one
            break;
        }
        begin = end;
    }
    task(begin, count);
    for (std::thread& thread : started) thread.join();
}

}  // namespace qafila
