// From logits to tokens: the twin of sampling.py, whose documentation says what is chosen and why.
//
// Sums that decide about a token are sums of whole numbers, and everything else is elementwise or in an order fixed by
// the number of logits: every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace qafila {

// Logits between which a maximum is kept, and a sum of weights.
constexpr std::size_t kMaximumOf = 16;
constexpr std::size_t kSumOf = 256;

// Passes over the whole vocabulary, once for each instruction set.
struct SamplePasses {
    const char* name;
    // The largest of each run of 16, the last run shorter; means nothing where there is a NaN.
    void (*maxima)(const float* x, std::size_t n, float* out);
    void (*maxima_adjusted)(const double* x, std::size_t n, double* out);
    // Sum of exp((x - maximum) * inverse) over each run of 256, in single precision; NaN where an x is NaN.
    void (*sums_about)(const float* x, std::size_t n, float maximum, float inverse, float* out);
    void (*sums_about_adjusted)(const double* x, std::size_t n, double maximum, float inverse, float* out);
    // Weights exp((x - maximum) / temperature) * scale, rounded: their sum over each run of 256.
    void (*sums)(const float* x, std::size_t n, double maximum, double temperature, double scale, std::int64_t* out);
    void (*sums_adjusted)(const double* x, std::size_t n, double maximum, double temperature, double scale,
                          std::int64_t* out);
    // Weights of scores up to 0, the same as above.
    void (*weigh)(const double* scores, std::size_t n, double scale, std::int64_t* out);
};

// Null where they were not compiled in; whether the processor can run them is for the caller to know.
const SamplePasses* portable_sample_passes();
const SamplePasses* avx2_sample_passes();
const SamplePasses* avx512_sample_passes();
// The best ones this processor runs, or those named; null where they do not exist or cannot run.
const SamplePasses* best_sample_passes();
const SamplePasses* find_sample_passes(const char* name);

struct SampleSettings {
    double temperature;  // 0 for greedy
    std::size_t top_k;   // 0 for all
    double top_p;
    double log_min_p;  // minus infinity for none
    double repetition, presence, frequency;
    const std::int32_t* bias_ids;
    const double* bias;
    std::size_t biases;
};

struct SampleRow {
    SampleSettings settings;
    std::uint64_t seed, position, sample;
    const std::int32_t* ids;      // tokens so far, each once
    const std::int32_t* outputs;  // how often each was generated
    std::size_t occurrences;
    const std::uint32_t* mask;  // null for none
    std::size_t top;            // how many of the likeliest to name
};

enum class SampleResult { kChosen, kNotNumbers, kNothingAllowed };

// Buffers that one thread chooses with; they grow as they are needed.
class Chooser {
public:
    explicit Chooser(const SamplePasses* passes);
    ~Chooser();
    Chooser(Chooser&&) noexcept;

    // `top_ids` and `top_logprobs` have room for min(row.top, vocabulary).
    SampleResult choose(const float* logits, std::size_t vocabulary, const SampleRow& row, std::int32_t* id,
                        double* logprob, std::int32_t* top_ids, double* top_logprobs);

private:
    struct State;
    std::unique_ptr<State> state_;
};

// Log-probability of one token, the same bits that choosing it gives; NaN where the logits are not numbers.
double log_probability(const SamplePasses& passes, const float* logits, std::size_t vocabulary, std::int32_t id);

// First word of Philox4x64-10's block `position + 1` under the key (seed, sample), as a number in [0, 1).
double philox_uniform(std::uint64_t seed, std::uint64_t position, std::uint64_t sample);

}  // namespace qafila
