// Sampling: checks sizes, releases the GIL, hands rows to threads.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "sample.h"

namespace nb = nanobind;

namespace qafila {
namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Starting a thread costs as much as choosing from about this many logits.
constexpr std::size_t kGrain = 1 << 17;
// More likely tokens than this are not named.
constexpr std::size_t kMostTop = 1024;

struct Settings {
    SampleSettings values;
    std::vector<std::int32_t> bias_ids;
    std::vector<double> bias;

    Settings(double temperature, std::size_t top_k, double top_p, double log_min_p, double repetition, double presence,
             double frequency, Array<std::int32_t> ids, Array<double> biases)
        : values{temperature, top_k,   top_p,   log_min_p, repetition, presence,
                 frequency,   nullptr, nullptr, ids.size()},
          bias_ids(ids.data(), ids.data() + ids.size()),
          bias(biases.data(), biases.data() + biases.size()) {
        if (ids.size() != biases.size()) throw std::invalid_argument("a bias is needed for each id, and no more");
        if (!(temperature >= 0 && top_p > 0)) throw std::invalid_argument("temperature or top_p out of range");
        values.bias_ids = bias_ids.data();
        values.bias = bias.data();
    }
    Settings(const Settings&) = delete;
    Settings& operator=(const Settings&) = delete;
};

struct Answer {
    SampleResult result = SampleResult::kNotNumbers;
    std::int32_t id = 0;
    double logprob = 0;
    std::vector<std::int32_t> top_ids;
    std::vector<double> top_logprobs;
};

class Sampler {
public:
    Sampler(std::size_t threads, const std::string& isa) : threads_(threads) {
        passes_ = isa.empty() ? best_sample_passes() : find_sample_passes(isa.c_str());
        if (passes_ == nullptr) throw std::invalid_argument("this processor or build has no " + isa);
    }

    Sampler(const Sampler&) = delete;
    Sampler& operator=(const Sampler&) = delete;

    nb::list choose(const Logits& logits, const nb::list& rows) {
        const std::size_t count = logits.shape(0), size = logits.shape(1);
        if (rows.size() != count || size == 0) throw std::invalid_argument("one row is needed for each row of logits");
        std::vector<SampleRow> wanted(count);
        std::vector<Answer> answers(count);
        for (std::size_t i = 0; i < count; ++i) {
            wanted[i] = read(nb::cast<nb::tuple>(rows[i]), size);
            answers[i].top_ids.resize(wanted[i].top);
            answers[i].top_logprobs.resize(wanted[i].top);
        }
        const std::size_t threads = std::min(count, thread_count(count * size, kGrain, threads_));
        while (choosers_.size() < threads) choosers_.emplace_back(passes_);
        const float* data = logits.data();
        {
            nb::gil_scoped_release release;
            std::atomic<std::size_t> next{0}, member{0};
            for_each_piece(threads, threads, [&](std::size_t, std::size_t) noexcept {
                Chooser& chooser = choosers_[member++];
                for (std::size_t i = next++; i < count; i = next++) {
                    Answer& answer = answers[i];
                    answer.result = chooser.choose(data + i * size, size, wanted[i], &answer.id, &answer.logprob,
                                                   answer.top_ids.data(), answer.top_logprobs.data());
                }
            });
        }
        nb::list out;
        for (const Answer& answer : answers) out.append(told(answer));
        return out;
    }

    nb::list logprobs(const Logits& logits, const Array<std::int32_t>& ids) {
        const std::size_t count = logits.shape(0), size = logits.shape(1);
        if (ids.size() != count || size == 0) throw std::invalid_argument("one id is needed for each row of logits");
        for (std::size_t i = 0; i < count; ++i)
            if (static_cast<std::size_t>(ids.data()[i]) >= size) throw std::invalid_argument("an id beyond the logits");
        std::vector<double> out(count);
        const float* data = logits.data();
        const std::int32_t* wanted = ids.data();
        {
            nb::gil_scoped_release release;
            for_each_piece(count, std::min(count, thread_count(count * size, kGrain, threads_)),
                           [&](std::size_t begin, std::size_t end) noexcept {
                               for (std::size_t i = begin; i < end; ++i)
                                   out[i] = log_probability(*passes_, data + i * size, size, wanted[i]);
                           });
        }
        nb::list values;
        for (double value : out) values.append(value);
        return values;
    }

    const char* isa() const { return passes_->name; }

private:
    static SampleRow read(const nb::tuple& row, std::size_t size) {
        if (row.size() != 8) throw std::invalid_argument("a row has eight parts");
        SampleRow out{nb::cast<const Settings&>(row[0]).values,
                      nb::cast<std::uint64_t>(row[1]),
                      nb::cast<std::uint64_t>(row[2]),
                      nb::cast<std::uint64_t>(row[3]),
                      nullptr,
                      nullptr,
                      0,
                      nullptr,
                      std::min(nb::cast<std::size_t>(row[7]), std::min(size, kMostTop))};
        // The caller holds on to the arrays; these views of them end here.
        if (!row[4].is_none()) {
            const auto ids = nb::cast<Array<std::int32_t>>(row[4]), outputs = nb::cast<Array<std::int32_t>>(row[5]);
            if (ids.size() != outputs.size()) throw std::invalid_argument("a count is needed for each token");
            out.ids = ids.data();
            out.outputs = outputs.data();
            out.occurrences = ids.size();
        }
        if (!row[6].is_none()) {
            const auto mask = nb::cast<Array<std::uint32_t>>(row[6]);
            if (mask.size() < (size + 31) / 32) throw std::invalid_argument("the mask is shorter than the vocabulary");
            out.mask = mask.data();
        }
        return out;
    }

    static nb::object told(const Answer& answer) {
        if (answer.result == SampleResult::kNotNumbers) return nb::int_(1);
        if (answer.result == SampleResult::kNothingAllowed) return nb::int_(2);
        nb::list top;
        for (std::size_t i = 0; i < answer.top_ids.size(); ++i)
            top.append(nb::make_tuple(answer.top_ids[i], answer.top_logprobs[i]));
        return nb::make_tuple(answer.id, answer.logprob, nb::tuple(top));
    }

    std::size_t threads_;
    const SamplePasses* passes_;
    std::vector<Chooser> choosers_;
};

}  // namespace

void bind_sample(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<Settings>(m, "SampleSettings")
        .def(nb::init<double, std::size_t, double, double, double, double, double, Array<std::int32_t>, Array<double>>(),
             "temperature"_a, "top_k"_a, "top_p"_a, "log_min_p"_a, "repetition"_a, "presence"_a, "frequency"_a,
             "bias_ids"_a, "biases"_a);
    nb::class_<Sampler>(m, "Sampler")
        .def(nb::init<std::size_t, const std::string&>(), "threads"_a = 0, "isa"_a = "")
        .def("choose", &Sampler::choose, "logits"_a.noconvert(), "rows"_a)
        .def("logprobs", &Sampler::logprobs, "logits"_a.noconvert(), "ids"_a.noconvert())
        .def_prop_ro("isa", &Sampler::isa);
}

}  // namespace qafila
