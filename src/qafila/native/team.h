// A team of threads kept hot between operations; the calling thread is its first member.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace qafila {

// What a team works through: phases one after the other, each a number of items in any order.
class Work {
public:
    static constexpr std::size_t kOver = static_cast<std::size_t>(-1);

    // Called once for each phase, by whoever finished the one before: the number of its items (0: on to the next, at
    // most 2^32 - 2), or kOver behind the last. Everything done before is visible, and nobody else runs.
    virtual std::size_t open(std::size_t phase) = 0;
    // One item of the open phase. Nothing of the work may be touched outside these two: a member that comes late may
    // come after its end.
    virtual void item(std::size_t member, std::size_t phase, std::size_t item) = 0;

protected:
    ~Work() = default;
};

// The team waits for work, never for members: a phase ends when its last item is done, so that one whose processor was
// taken away holds up nobody but those who need the very item it is at. Waiting is a short spin, then sleep. Works must
// not throw. One run at a time.
class Team {
public:
    // `threads` >= 1, the caller included; cpus[i % size] pins member i where the list is not empty.
    Team(std::size_t threads, std::vector<int> cpus);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    std::size_t size() const;
    // Comes back when the last phase is done; the others may not even have begun.
    void run(Work& work);

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace qafila
