#include "team.h"

#include <chrono>
#include <system_error>
#include <thread>

#include "system.h"

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
#include <immintrin.h>
#endif

namespace qafila {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#endif
}

// A phase of a step lasts tens of microseconds: who comes first waits about as long, and going to sleep and being woken
// would cost as much again.
constexpr std::chrono::microseconds kSpin{50};
// Between two steps the caller samples tokens; the others stay awake for that.
constexpr std::chrono::microseconds kIdleSpin{200};

}  // namespace

struct Team::State {
    // Each on a cache line of its own: who waits for one must not slow down who writes another.
    alignas(64) std::atomic<std::uint32_t> arrived{0};
    alignas(64) std::atomic<std::uint32_t> round{0};
    alignas(64) std::atomic<std::uint32_t> started{0};
    alignas(64) Job job = nullptr;
    void* context = nullptr;
    bool quitting = false;
    bool crowded = false;
    std::vector<int> cpus;
    std::size_t members = 1;
    std::thread::id pinned_caller;
    std::vector<std::thread> threads;

    int cpu_of(std::size_t member) const { return cpus[member % cpus.size()]; }

    void wait_while(const std::atomic<std::uint32_t>& word, std::uint32_t old, std::chrono::microseconds spin) const {
        // More members than processors: the one that is waited for may need this processor.
        const int checks = crowded ? 1 : 1 << 20;
        for (int i = 0; i < 64; ++i) {
            if (word.load(std::memory_order_acquire) != old) return;
            relax();
        }
        const auto until = std::chrono::steady_clock::now() + spin;
        for (int check = 0; check < checks; ++check) {
            for (int i = 0; i < 32; ++i) {
                if (word.load(std::memory_order_acquire) != old) return;
                relax();
            }
            if (std::chrono::steady_clock::now() >= until) break;
        }
        while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
    }

    void meet() {
        const std::uint32_t now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            round.notify_all();
        } else {
            wait_while(round, now, kSpin);
        }
    }

    void serve(std::size_t member) {
        if (!cpus.empty()) pin_thread(cpu_of(member));
        for (std::uint32_t seen = 0;; ++seen) {
            wait_while(started, seen, kIdleSpin);
            if (quitting) return;
            job(context, member);
            meet();
        }
    }
};

Team::Team(std::size_t threads, std::vector<int> cpus) : state_(std::make_unique<State>()) {
    State& state = *state_;
    state.cpus = std::move(cpus);
    // Nobody works before the first run(), so the number may still be put right where the system gives no more threads.
    state.members = threads > 0 ? threads : 1;
    state.crowded = state.members > std::thread::hardware_concurrency();
    state.threads.reserve(state.members - 1);
    for (std::size_t member = 1; member < threads; ++member) {
        try {
            state.threads.emplace_back([&state, member] { state.serve(member); });
        } catch (const std::system_error&) {
            break;
        }
    }
    state.members = state.threads.size() + 1;
}

Team::~Team() {
    State& state = *state_;
    state.quitting = true;
    state.started.fetch_add(1, std::memory_order_release);
    state.started.notify_all();
    for (std::thread& thread : state.threads) thread.join();
}

std::size_t Team::size() const { return state_->members; }

void Team::run(Job job, void* context) {
    State& state = *state_;
    if (!state.cpus.empty() && state.pinned_caller != std::this_thread::get_id()) {
        pin_thread(state.cpu_of(0));
        state.pinned_caller = std::this_thread::get_id();
    }
    state.job = job;
    state.context = context;
    state.started.fetch_add(1, std::memory_order_release);
    state.started.notify_all();
    job(context, 0);
    state.meet();
}

void Team::barrier(std::size_t) { state_->meet(); }

}  // namespace qafila
