// Teams start, meet and end; what one member wrote before a barrier the others read behind it.

#include <thread>
#include <vector>

#include "check.h"
#include "team.h"

namespace qafila::test {
namespace {

struct Shared {
    Team* team;
    std::vector<std::size_t> written;  // plain memory on purpose: the barrier alone orders it
    std::vector<std::size_t> sums;
};

void work(void* context, std::size_t member) {
    Shared& shared = *static_cast<Shared*>(context);
    for (std::size_t round = 0; round < 20; ++round) {
        shared.written[member] = round + member;
        shared.team->barrier(member);
        std::size_t sum = 0;
        for (const std::size_t value : shared.written) sum += value;
        shared.sums[member] += sum;
        shared.team->barrier(member);
    }
}

}  // namespace

void test_team() {
    for (const std::size_t size : {1, 2, 3, 5}) {
        for (int start = 0; start < 5; ++start) {
            Team team(size, start == 4 ? std::vector<int>{0} : std::vector<int>{});
            if (start == 3) continue;  // never run
            Shared shared{&team, std::vector<std::size_t>(team.size()), {}};
            const std::size_t members = team.size();
            for (int run = 0; run < 10; ++run) {
                shared.sums.assign(members, 0);
                team.run(work, &shared);
                const std::size_t expected = 20 * (members * (members - 1) / 2) + members * 190;
                for (const std::size_t sum : shared.sums) CHECK(sum == expected, "%zu, not %zu", sum, expected);
            }
        }
    }
    // Long enough for every member to have gone to sleep.
    Team team(3, {});
    Shared shared{&team, std::vector<std::size_t>(team.size()), std::vector<std::size_t>(team.size())};
    team.run(work, &shared);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    team.run(work, &shared);
    // Called from another thread than the one that made it.
    std::thread([&] { team.run(work, &shared); }).join();
}

}  // namespace qafila::test
