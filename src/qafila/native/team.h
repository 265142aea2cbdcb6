// A team of threads kept hot between operations; the calling thread is its first member.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

namespace qafila {

// run() has every member call `job`; inside it members meet at barrier(). Waiting is a short spin, then sleep. Jobs must
// not throw. One run at a time.
class Team {
public:
    // `threads` >= 1, the caller included; cpus[i % size] pins member i where the list is not empty.
    Team(std::size_t threads, std::vector<int> cpus);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    std::size_t size() const;
    using Job = void (*)(void* context, std::size_t member);
    void run(Job job, void* context);
    void barrier(std::size_t member);

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace qafila
