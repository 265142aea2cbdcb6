// Teams start, work through phases and end; what was written in one phase is read in the next, and who comes late
// finds the others gone.

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "team.h"

namespace qafila::test {
namespace {

// Phase p adds up what phase p - 1 wrote: plain memory on purpose, the end of a phase alone orders it.
struct Sums final : Work {
    static constexpr std::size_t kPhases = 20, kItems = 7;
    std::vector<std::size_t> before = std::vector<std::size_t>(kItems, 1), now = std::vector<std::size_t>(kItems);
    std::size_t opened = 0, done = 0;
    std::vector<std::size_t> of_member;
    // Its first item after the first phase keeps this member for so long.
    std::size_t slow = static_cast<std::size_t>(-1);
    std::chrono::milliseconds sleep{0};
    std::atomic<bool> slept{false};

    explicit Sums(std::size_t members) : of_member(members) {}

    std::size_t open(std::size_t phase) override {
        CHECK(phase == opened, "phase %zu, not %zu", phase, opened);
        ++opened;
        if (phase > 0) before.swap(now);
        if (phase == kPhases) return kOver;
        return phase % 5 == 4 ? 0 : kItems;
    }
    void item(std::size_t member, std::size_t phase, std::size_t item) override {
        CHECK(phase + 1 == opened, "an item of phase %zu in phase %zu", phase, opened - 1);
        std::size_t sum = 0;
        for (const std::size_t value : before) sum += value % 1000003;
        now[item] = sum + item;
        ++of_member[member];
        if (member == slow && !slept.exchange(true)) std::this_thread::sleep_for(sleep);
    }

    // What one thread alone would have got.
    static std::vector<std::size_t> expected() {
        Sums alone(1);
        for (std::size_t phase = 0;; ++phase) {
            const std::size_t items = alone.open(phase);
            if (items == kOver) return alone.before;
            for (std::size_t i = 0; i < items; ++i) alone.item(0, phase, i);
        }
    }
};

void check_run(Team& team, std::size_t slow = static_cast<std::size_t>(-1)) {
    Sums work(team.size());
    work.slow = slow;
    work.sleep = std::chrono::milliseconds(2);
    team.run(work);
    CHECK(work.before == Sums::expected(), "%zu members", team.size());
    std::size_t items = 0;
    for (const std::size_t count : work.of_member) items += count;
    CHECK(items == Sums::kPhases / 5 * 4 * Sums::kItems, "%zu items", items);
}

}  // namespace

void test_team() {
    for (const std::size_t size : {1, 2, 3, 5}) {
        for (int start = 0; start < 5; ++start) {
            Team team(size, start == 4 ? std::vector<int>{0} : std::vector<int>{});
            if (start == 3) continue;  // never run
            // Works end while members are still on their way; the next one lies in the same place.
            for (int run = 0; run < 50; ++run) check_run(team);
            check_run(team, size - 1);
        }
    }
    // Long enough for every member to have gone to sleep.
    Team team(3, {});
    check_run(team);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    check_run(team);
    // Called from another thread than the one that made it.
    std::thread([&] { check_run(team); }).join();
}

}  // namespace qafila::test
