// Choosing a token from one row of logits. Twin of sampling.py, token for token.

#include "sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

namespace qafila {
namespace {

// Error of `sums_about` as a share of the sum of all: at most 5e-6. Scores carry 3e-7 of themselves, and their mean under
// the softmax is at most log(vocabulary), which is 13; the power of two and 13 additions carry 1e-6.
constexpr double kAbout = 1e-5;
// Scores below this weigh nothing.
constexpr double kLightest = -60;
constexpr double kNothing = -std::numeric_limits<double>::infinity();

std::pair<std::uint64_t, std::uint64_t> product(std::uint64_t a, std::uint64_t b) {
    const std::uint64_t a0 = a & 0xFFFFFFFFu, a1 = a >> 32, b0 = b & 0xFFFFFFFFu, b1 = b >> 32;
    const std::uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (middle & 0xFFFFFFFFu);
    return {a1 * b1 + (middle >> 32) + (other >> 32), a * b};
}

int weight_bits(std::size_t vocabulary) {
    return std::min(50, 63 - static_cast<int>(std::bit_width(static_cast<std::uint64_t>(vocabulary - 1))));
}

// A token that may be sampled.
struct Candidate {
    double score;
    std::int32_t id;
};

struct Weighed {
    Candidate candidate;
    std::int64_t mass;
};

bool before(const Candidate& a, const Candidate& b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

// A row of logits, as the model gave them or adjusted.
template <typename T>
struct Row {
    const T* x;
    const T* maxima;  // of each 16
    std::size_t size, runs;
    double maximum, temperature;

    double score(T value) const { return (static_cast<double>(value) - maximum) / temperature; }

    // Calls task(id, value) for everything of at least `least`, in order of id.
    template <typename Task>
    void for_each_from(T least, const Task& task) const {
        for (std::size_t run = 0; run < runs; ++run) {
            if (!(maxima[run] >= least)) continue;
            const std::size_t end = std::min(size, (run + 1) * kMaximumOf);
            for (std::size_t i = run * kMaximumOf; i < end; ++i)
                if (x[i] >= least) task(static_cast<std::int32_t>(i), x[i]);
        }
    }
};

// The k-th largest of a row, 0 < k <= size: at least k are as large as the k-th largest of the runs' maxima.
template <typename T>
T kth_largest(const Row<T>& row, std::size_t k, std::vector<T>& buffer) {
    T least = -std::numeric_limits<T>::infinity();
    if (k <= row.runs) {
        buffer.assign(row.maxima, row.maxima + row.runs);
        std::nth_element(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(k - 1), buffer.end(),
                         std::greater<T>());
        least = buffer[k - 1];
    }
    buffer.clear();
    row.for_each_from(least, [&](std::int32_t, T value) { buffer.push_back(value); });
    std::nth_element(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(k - 1), buffer.end(),
                     std::greater<T>());
    return buffer[k - 1];
}

}  // namespace

double philox_uniform(std::uint64_t seed, std::uint64_t position, std::uint64_t sample) {
    // Salmon et al. 2011; the counter goes up before the first block, as in NumPy's generator.
    std::uint64_t c0 = position + 1, c1 = position + 1 == 0 ? 1 : 0, c2 = 0, c3 = 0, k0 = seed, k1 = sample;
    for (int round = 0; round < 10; ++round) {
        const auto [high0, low0] = product(0xD2E7470EE14C6C93u, c0);
        const auto [high1, low1] = product(0xCA5A826395121157u, c2);
        c0 = high1 ^ c1 ^ k0;
        c2 = high0 ^ c3 ^ k1;
        c1 = low1;
        c3 = low0;
        k0 += 0x9E3779B97F4A7C15u;
        k1 += 0xBB67AE8584CAA73Bu;
    }
    return static_cast<double>(c0 >> 11) * 0x1p-53;
}

namespace {

double added(const std::vector<float>& sums) {
    double total = 0;
    for (float sum : sums) total += static_cast<double>(sum);
    return total;
}

}  // namespace

double log_probability(const SamplePasses& passes, const float* logits, std::size_t vocabulary, std::int32_t id) {
    std::vector<float> maxima((vocabulary + kMaximumOf - 1) / kMaximumOf);
    passes.maxima(logits, vocabulary, maxima.data());
    const float maximum = *std::max_element(maxima.begin(), maxima.end());
    std::vector<float> sums((vocabulary + kSumOf - 1) / kSumOf);
    passes.sums_about(logits, vocabulary, maximum, 1, sums.data());
    const double log_sum = std::log(added(sums));
    return static_cast<double>(logits[id]) - static_cast<double>(maximum) - log_sum;
}

struct Chooser::State {
    const SamplePasses* passes;
    std::vector<float> maxima, values, about;
    std::vector<double> adjusted, adjusted_maxima, adjusted_values, scores;
    std::vector<Candidate> candidates, order;
    std::vector<Weighed> weighed;
    std::vector<std::int64_t> masses, run_sums;

    // Bias, penalties and mask; false where nothing is left.
    bool adjust(const float* logits, std::size_t size, const SampleRow& row) {
        adjusted.assign(logits, logits + size);
        const SampleSettings& s = row.settings;
        for (std::size_t i = 0; i < s.biases; ++i)
            if (const auto id = static_cast<std::size_t>(s.bias_ids[i]); id < size) adjusted[id] += s.bias[i];
        if (s.repetition != 1 || s.presence != 0 || s.frequency != 0) {
            for (std::size_t i = 0; i < row.occurrences; ++i) {
                if (static_cast<std::size_t>(row.ids[i]) >= size) continue;
                double& value = adjusted[static_cast<std::size_t>(row.ids[i])];
                value = value < 0 ? value * s.repetition : value / s.repetition;
                const double outputs = row.outputs[i];
                value -= s.frequency * outputs + s.presence * (outputs > 0 ? 1.0 : 0.0);
            }
        }
        if (row.mask != nullptr) {
            for (std::size_t begin = 0; begin < size; begin += 32) {
                const std::uint32_t word = row.mask[begin / 32];
                if (word == 0xFFFFFFFFu) continue;
                const std::size_t end = std::min(size, begin + 32);
                for (std::size_t i = begin; i < end; ++i)
                    if ((word >> (i - begin) & 1) == 0) adjusted[i] = kNothing;
            }
        }
        adjusted_maxima.resize((size + kMaximumOf - 1) / kMaximumOf);
        passes->maxima_adjusted(adjusted.data(), size, adjusted_maxima.data());
        return *std::max_element(adjusted_maxima.begin(), adjusted_maxima.end()) > kNothing;
    }

    template <typename T>
    std::int32_t pick(const T* x, std::size_t size, const std::vector<T>& largest, const SampleRow& row,
                      std::vector<T>& buffer) {
        const SampleSettings& s = row.settings;
        Row<T> view{x, largest.data(), size, largest.size(), 0, s.temperature};
        const T maximum = *std::max_element(largest.begin(), largest.end());
        view.maximum = static_cast<double>(maximum);
        if (s.temperature == 0) {
            std::size_t run = 0;
            while (!(largest[run] == maximum)) ++run;
            std::size_t i = run * kMaximumOf;
            while (!(x[i] == maximum)) ++i;
            return static_cast<std::int32_t>(i);
        }
        const double number = philox_uniform(row.seed, row.position, row.sample);
        const int bits = weight_bits(size);
        const double scale = std::ldexp(1.0, bits);
        const bool top_k = s.top_k > 0 && s.top_k < size;
        if (!top_k && s.top_p >= 1 && s.log_min_p == kNothing) return pick_any(view, number, scale);

        if (!top_k && s.top_p < 1) {
            if (!(sharp(s.temperature) && keep_about_top_p(view, s.top_p, scale))) keep_exact_top_p(view, s.top_p, scale);
        } else {
            double least = s.top_p < 1 ? kLightest : std::max(kLightest, s.log_min_p);
            if (top_k) least = std::max(least, view.score(kth_largest(view, s.top_k, buffer)));
            gather(view, least);
            if (s.top_p < 1) {
                weigh(scale);
                std::int64_t total = 0;
                for (std::int64_t mass : masses) total += mass;
                keep_top_p(s.top_p * static_cast<double>(total), least_mass(s.top_p, static_cast<double>(total), size, scale));
            }
        }
        if (s.log_min_p > kNothing)
            std::erase_if(candidates, [&](const Candidate& c) { return c.score < s.log_min_p; });
        weigh(scale);
        std::int64_t sum = 0;
        for (std::int64_t mass : masses) sum += mass;
        return find(number * static_cast<double>(sum), 0);
    }

    // Whether single precision can tell scores at this temperature.
    static bool sharp(double temperature) { return temperature >= 1e-3 && temperature <= 1e3; }

    // The candidate in whose weight, added up from `end` on, the target lies.
    std::int32_t find(double target, std::int64_t end) const {
        std::size_t i = 0;
        for (; i + 1 < candidates.size(); ++i) {
            end += masses[i];
            if (static_cast<double>(end) > target) break;
        }
        return candidates[i].id;
    }

    template <typename T>
    void keep_exact_top_p(const Row<T>& row, double top_p, double scale) {
        const double total = static_cast<double>(sum_runs(row, scale));
        const double bar = least_mass(top_p, total, row.size, scale);
        gather(row, least_score(bar, scale));
        weigh(scale);
        keep_top_p(top_p * total, bar);
    }

    // The same from a total that is known up to `kAbout`; false where that does not say which token is the last one.
    template <typename T>
    bool keep_about_top_p(const Row<T>& row, double top_p, double scale) {
        const double total = sum_about(row) * scale;
        const double bar = least_mass(top_p, total * (1 + 2 * kAbout), row.size, scale);
        gather(row, least_score(bar, scale));
        weigh(scale);
        const auto [without, with] = keep_top_p(top_p * total, bar);
        return without < top_p * total * (1 - 2 * kAbout) && with > top_p * total * (1 + 2 * kAbout);
    }

    // A score that everything of this weight exceeds.
    static double least_score(double bar, double scale) {
        return bar > 1.5 ? std::max(kLightest, std::log((bar - 1) / scale) - 1e-6) : kLightest;
    }

    // What is lighter cannot decide about top-p; the likeliest always can.
    static double least_mass(double top_p, double total, std::size_t size, double scale) {
        return std::min((1 - top_p) * total / static_cast<double>(size), scale);
    }

    template <typename T>
    std::int64_t sum_runs(const Row<T>& row, double scale) {
        run_sums.resize((row.size + kSumOf - 1) / kSumOf);
        pass_sums(row.x, row.size, row.maximum, row.temperature, scale);
        std::int64_t total = 0;
        for (std::int64_t sum : run_sums) total += sum;
        return total;
    }
    void pass_sums(const float* x, std::size_t n, double maximum, double temperature, double scale) {
        passes->sums(x, n, maximum, temperature, scale, run_sums.data());
    }
    void pass_sums(const double* x, std::size_t n, double maximum, double temperature, double scale) {
        passes->sums_adjusted(x, n, maximum, temperature, scale, run_sums.data());
    }

    // Sum of exp(score), up to `kAbout`; the runs' are in `about`.
    template <typename T>
    double sum_about(const Row<T>& row) {
        about.resize((row.size + kSumOf - 1) / kSumOf);
        pass_about(row.x, row.size, row.maximum, row.temperature);
        return added(about);
    }
    void pass_about(const float* x, std::size_t n, double maximum, double temperature) {
        // At temperature 1 the log-probability has just asked for the same.
        if (temperature != 1)
            passes->sums_about(x, n, static_cast<float>(maximum), static_cast<float>(1 / temperature), about.data());
    }
    void pass_about(const double* x, std::size_t n, double maximum, double temperature) {
        passes->sums_about_adjusted(x, n, maximum, static_cast<float>(1 / temperature), about.data());
    }

    // One of all tokens: first the run of 256 that the number falls into, then the token.
    template <typename T>
    std::int32_t pick_any(const Row<T>& row, double number, double scale) {
        if (sharp(row.temperature))
            if (const std::int32_t id = pick_about(row, number, scale); id >= 0) return id;
        const double target = number * static_cast<double>(sum_runs(row, scale));
        std::int64_t end = 0;
        std::size_t run = 0;
        while (run + 1 < run_sums.size() && !(static_cast<double>(end + run_sums[run]) > target)) end += run_sums[run++];
        take_run(row, run, scale);
        return find(target, end);
    }

    // The same from sums that are known up to `kAbout`; -1 where they do not say which token it is.
    template <typename T>
    std::int32_t pick_about(const Row<T>& row, double number, double scale) {
        const double total = sum_about(row), target = number * total, doubt = 3 * kAbout * total;
        double end = 0;
        std::size_t run = 0;
        while (run + 1 < about.size() && !(end + static_cast<double>(about[run]) > target))
            end += static_cast<double>(about[run++]);
        take_run(row, run, scale);
        for (std::size_t i = 0; i < candidates.size(); ++i) {
            const double next = end + static_cast<double>(masses[i]) / scale;
            if (next > target) return end + doubt < target && next - doubt > target ? candidates[i].id : -1;
            end = next;
        }
        return -1;
    }

    template <typename T>
    void take_run(const Row<T>& row, std::size_t run, double scale) {
        const std::size_t begin = run * kSumOf, stop = std::min(row.size, begin + kSumOf);
        candidates.clear();
        for (std::size_t i = begin; i < stop; ++i)
            candidates.push_back({row.score(row.x[i]), static_cast<std::int32_t>(i)});
        weigh(scale);
    }

    // Candidates with a score of at least `least`, in order of id.
    template <typename T>
    void gather(const Row<T>& row, double least) {
        // A little below, since the way back from a score rounds (and underflows where the temperature is immense); then
        // the score itself decides.
        const double about = row.maximum + row.temperature * least;
        const double margin = 1e-6 * (std::fabs(row.maximum) + std::fabs(row.temperature * least)) + row.temperature * 1e-300;
        const T lowest = std::numeric_limits<T>::lowest();
        const T from = about - margin > static_cast<double>(lowest) ? static_cast<T>(about - margin) : lowest;
        candidates.clear();
        row.for_each_from(from, [&](std::int32_t id, T value) {
            const double score = row.score(value);
            if (score >= least) candidates.push_back({score, id});
        });
    }

    void weigh(double scale) {
        scores.resize(candidates.size());
        masses.resize(candidates.size());
        for (std::size_t i = 0; i < candidates.size(); ++i) scores[i] = candidates[i].score;
        passes->weigh(scores.data(), scores.size(), scale, masses.data());
    }

    // Leaves the likeliest candidates until `limit` is reached, of those that weigh at least `bar`; what they weigh
    // without the last of them, and with it.
    std::pair<double, double> keep_top_p(double limit, double bar) {
        weighed.clear();
        for (std::size_t i = 0; i < candidates.size(); ++i)
            if (static_cast<double>(masses[i]) >= bar) weighed.push_back({candidates[i], masses[i]});
        // Halves the range in which the limit is reached; what lies before it is kept, whatever its order.
        auto first = weighed.begin(), last = weighed.end();
        std::int64_t reached = 0;
        const auto less = [](const auto& a, const auto& b) { return before(a.candidate, b.candidate); };
        while (last - first > 32) {
            const auto middle = first + (last - first) / 2;
            std::nth_element(first, middle, last, less);
            std::int64_t sum = reached;
            for (auto it = first; it != middle; ++it) sum += it->mass;
            if (static_cast<double>(sum) >= limit) {
                last = middle;
            } else {
                first = middle;
                reached = sum;
            }
        }
        std::sort(first, last, less);
        // The limit lies in this range, so its first one is kept.
        Candidate worst = first->candidate;
        std::int64_t without = reached;
        for (; first != last && static_cast<double>(reached) < limit; ++first) {
            without = reached;
            reached += first->mass;
            worst = first->candidate;
        }
        std::erase_if(candidates, [&](const Candidate& c) { return before(worst, c); });
        return {static_cast<double>(without), static_cast<double>(reached)};
    }

    void likeliest(const float* x, std::size_t size, std::size_t count, double maximum, double log_sum,
                   std::int32_t* ids, double* logprobs) {
        const Row<float> row{x, maxima.data(), size, maxima.size(), maximum, 1};
        order.clear();
        row.for_each_from(kth_largest(row, count, values),
                          [&](std::int32_t id, float value) { order.push_back({static_cast<double>(value), id}); });
        std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), before);
        for (std::size_t i = 0; i < count; ++i) {
            ids[i] = order[i].id;
            logprobs[i] = order[i].score - maximum - log_sum;
        }
    }
};

Chooser::Chooser(const SamplePasses* passes) : state_(std::make_unique<State>()) { state_->passes = passes; }
Chooser::~Chooser() = default;
Chooser::Chooser(Chooser&&) noexcept = default;

SampleResult Chooser::choose(const float* logits, std::size_t vocabulary, const SampleRow& row, std::int32_t* id,
                             double* logprob, std::int32_t* top_ids, double* top_logprobs) {
    State& state = *state_;
    state.maxima.resize((vocabulary + kMaximumOf - 1) / kMaximumOf);
    state.passes->maxima(logits, vocabulary, state.maxima.data());
    const float maximum = *std::max_element(state.maxima.begin(), state.maxima.end());
    state.about.resize((vocabulary + kSumOf - 1) / kSumOf);
    state.passes->sums_about(logits, vocabulary, maximum, 1, state.about.data());
    const double sum = added(state.about);
    if (!(sum < std::numeric_limits<double>::infinity())) return SampleResult::kNotNumbers;
    const double log_sum = std::log(sum);
    const SampleSettings& s = row.settings;
    const bool counted = row.occurrences > 0 && (s.repetition != 1 || s.presence != 0 || s.frequency != 0);
    if (s.biases > 0 || counted || row.mask != nullptr) {
        if (!state.adjust(logits, vocabulary, row)) return SampleResult::kNothingAllowed;
        *id = state.pick(state.adjusted.data(), vocabulary, state.adjusted_maxima, row, state.adjusted_values);
    } else {
        *id = state.pick(logits, vocabulary, state.maxima, row, state.values);
    }
    *logprob = static_cast<double>(logits[*id]) - static_cast<double>(maximum) - log_sum;
    const std::size_t count = std::min(row.top, vocabulary);
    if (count > 0) state.likeliest(logits, vocabulary, count, static_cast<double>(maximum), log_sum, top_ids, top_logprobs);
    return SampleResult::kChosen;
}

const SamplePasses* find_sample_passes(const char* name) {
    if (std::strcmp(name, "portable") == 0) return portable_sample_passes();
#if defined(__x86_64__)
    if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return avx2_sample_passes();
    if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bf16"))
        return avx512_sample_passes();
#endif
    return nullptr;
}

const SamplePasses* best_sample_passes() {
    for (const char* name : {"avx512", "avx2"})
        if (const SamplePasses* passes = find_sample_passes(name)) return passes;
    return portable_sample_passes();
}

}  // namespace qafila
