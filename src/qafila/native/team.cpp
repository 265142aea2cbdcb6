#include "team.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <cstdint>
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

// The state of a team in one word, so that whoever takes an item knows of which phase it is: the phase's number, counted
// through all runs, above the items that nobody took. A member that slept between looking and taking finds that the
// word has changed (it would have to sleep for 2^32 phases not to), takes nothing, and looks again.
using Ticket = std::uint64_t;
constexpr Ticket kItems = 0xFFFFFFFF;
// In place of a number of items: between two runs, and at the end of the team.
constexpr Ticket kIdle = kItems;
constexpr Ticket left(Ticket ticket) { return ticket & kItems; }
constexpr bool takable(Ticket ticket) { return left(ticket) != 0 && left(ticket) != kIdle; }

}  // namespace

struct Team::State {
    // Each on a cache line of its own: who waits for one must not slow down who writes another.
    alignas(64) std::atomic<Ticket> ticket{kIdle};
    alignas(64) std::atomic<std::size_t> done{0};  // items of the open phase
    // Of the open phase. Read by who holds an item of it, written by who finished the one before.
    alignas(64) Work* work = nullptr;
    std::size_t phase = 0, items = 0;
    // Of the team.
    alignas(64) std::atomic<bool> quitting{false};
    bool crowded = false;
    std::vector<int> cpus;
    std::size_t members = 1;
    std::thread::id pinned_caller;
    std::vector<std::thread> threads;

    int cpu_of(std::size_t member) const { return cpus[member % cpus.size()]; }

    // Only one thread at a time gets here: the caller before anything is open, or who finished the last item.
    void open_next(Ticket now) {
        const Ticket number = (now >> 32) + 1;
        items = work->open(phase);
        while (items == 0) items = work->open(++phase);
        assert(items == Work::kOver || items < kIdle);
        done.store(0, std::memory_order_relaxed);
        ticket.store(number << 32 | (items == Work::kOver ? kIdle : items), std::memory_order_release);
        ticket.notify_all();
    }

    // Takes items as long as there are any; the ticket that had none.
    Ticket take_items(std::size_t member) {
        Ticket now = ticket.load(std::memory_order_acquire);
        while (takable(now)) {
            // Done items are counted when no more are to be had: until then an item is held and the phase cannot end.
            std::size_t taken = 0;
            std::size_t of = 0;
            const Ticket number = now >> 32;
            while (takable(now) && now >> 32 == number) {
                // Many while there are many: neighbours read memory that lies one after the other. Few at the end, so
                // that all end together.
                const Ticket share = std::max<Ticket>(1, left(now) / (2 * members));
                if (!ticket.compare_exchange_weak(now, now - share, std::memory_order_acquire,
                                                  std::memory_order_acquire))
                    continue;
                of = items;
                const std::size_t first = of - left(now);
                for (std::size_t item = first; item < first + share; ++item) work->item(member, phase, item);
                taken += share;
                now = ticket.load(std::memory_order_acquire);
            }
            if (taken == 0) continue;
            // The last one to count has seen, through the others' counts, all that they wrote.
            if (done.fetch_add(taken, std::memory_order_acq_rel) + taken == of) {
                ++phase;
                open_next(now);
            }
            now = ticket.load(std::memory_order_acquire);
        }
        return now;
    }

    void wait_while(Ticket old) const {
        // More members than processors: the one that is waited for may need this processor.
        const int checks = crowded ? 1 : 1 << 20;
        for (int i = 0; i < 64; ++i) {
            if (ticket.load(std::memory_order_acquire) != old) return;
            relax();
        }
        const auto until = std::chrono::steady_clock::now() + (left(old) == kIdle ? kIdleSpin : kSpin);
        for (int check = 0; check < checks; ++check) {
            for (int i = 0; i < 32; ++i) {
                if (ticket.load(std::memory_order_acquire) != old) return;
                relax();
            }
            if (std::chrono::steady_clock::now() >= until) break;
        }
        ticket.wait(old, std::memory_order_acquire);
    }

    void serve(std::size_t member) {
        if (!cpus.empty()) pin_thread(cpu_of(member));
        for (;;) {
            const Ticket none = take_items(member);
            if (quitting.load(std::memory_order_acquire)) return;
            wait_while(none);
        }
    }
};

Team::Team(std::size_t threads, std::vector<int> cpus) : state_(std::make_unique<State>()) {
    State& state = *state_;
    state.cpus = std::move(cpus);
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
    state.quitting.store(true, std::memory_order_release);
    // Whoever saw the old word before sees the new one now, and that it is over.
    state.ticket.fetch_add(kItems + 1, std::memory_order_acq_rel);
    state.ticket.notify_all();
    for (std::thread& thread : state.threads) thread.join();
}

std::size_t Team::size() const { return state_->members; }

void Team::run(Work& work) {
    State& state = *state_;
    if (!state.cpus.empty() && state.pinned_caller != std::this_thread::get_id()) {
        pin_thread(state.cpu_of(0));
        state.pinned_caller = std::this_thread::get_id();
    }
    state.work = &work;
    state.phase = 0;
    state.open_next(state.ticket.load(std::memory_order_relaxed));
    for (;;) {
        const Ticket none = state.take_items(0);
        if (left(none) == kIdle) return;
        state.wait_while(none);
    }
}

}  // namespace qafila
