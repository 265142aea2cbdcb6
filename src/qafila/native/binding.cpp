// Python's view of the kernels: checks sizes, releases the GIL, hands runs of blocks to threads.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "blocks.h"
#include "parallel.h"

namespace nb = nanobind;

namespace qafila {
namespace {

template <typename T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Starting a thread costs as much as converting about this many weights; searching for Q4_K takes fifty times longer.
constexpr std::size_t kGrain = 1 << 17;
constexpr std::size_t kSearchGrain = 1 << 12;

const Format& checked_format(int ggml_type) {
    const Format* format = find_format(ggml_type);
    if (format == nullptr) throw std::invalid_argument("no weight type has the number " + std::to_string(ggml_type));
    return *format;
}

// The number of blocks, once both buffers are known to hold exactly that many.
std::size_t checked_blocks(const Format& format, std::size_t bytes, std::size_t elements) {
    const std::size_t blocks = bytes / format.bytes;
    if (bytes % format.bytes != 0 || elements % format.elements != 0 || elements / format.elements != blocks)
        throw std::invalid_argument(std::to_string(bytes) + " bytes of " + format.name + " and " +
                                    std::to_string(elements) + " values are not the same number of whole blocks");
    return blocks;
}

void check_distinct(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes) {
    const auto first = reinterpret_cast<std::uintptr_t>(a), second = reinterpret_cast<std::uintptr_t>(b);
    if (a_bytes > 0 && b_bytes > 0 && first < second + b_bytes && second < first + a_bytes)
        throw std::invalid_argument("input and output overlap");
}

void dequantise(int ggml_type, Array<const std::uint8_t> data, Array<float> out, std::size_t threads) {
    const Format& format = checked_format(ggml_type);
    const std::size_t blocks = checked_blocks(format, data.size(), out.size());
    check_distinct(data.data(), data.size(), out.data(), out.size() * sizeof(float));
    const std::uint8_t* source = data.data();
    float* target = out.data();
    nb::gil_scoped_release release;
    const std::size_t pieces = thread_count(out.size(), kGrain, threads);
    for_each_piece(blocks, pieces, [&](std::size_t begin, std::size_t end) noexcept {
        format.dequantise(source + begin * format.bytes, target + begin * format.elements, end - begin);
    });
}

void quantise(int ggml_type, Array<const float> values, Array<std::uint8_t> out, std::size_t threads) {
    const Format& format = checked_format(ggml_type);
    if (format.quantise == nullptr) throw std::invalid_argument(std::string(format.name) + " cannot be written");
    const std::size_t blocks = checked_blocks(format, out.size(), values.size());
    check_distinct(values.data(), values.size() * sizeof(float), out.data(), out.size());
    const float* source = values.data();
    std::uint8_t* target = out.data();
    const std::size_t grain = format.quantise == quantise_q4_k ? kSearchGrain : kGrain;
    std::atomic<bool> good{true};
    {
        nb::gil_scoped_release release;
        const std::size_t pieces = thread_count(values.size(), grain, threads);
        for_each_piece(blocks, pieces, [&](std::size_t begin, std::size_t end) noexcept {
            const float* first = source + begin * format.elements;
            if (format.quantise(first, target + begin * format.bytes, end - begin) != Fit::kGood) good = false;
        });
    }
    if (!good) throw std::invalid_argument(std::string("values are not finite, or too large for ") + format.name);
}

}  // namespace
}  // namespace qafila

namespace qafila {
// One file each: binding_attend.cpp, binding_gguf.cpp, binding_kernels.cpp, ...
void bind_attend(nb::module_& m);
void bind_gguf(nb::module_& m);
void bind_kernels(nb::module_& m);
void bind_measure(nb::module_& m);
void bind_model(nb::module_& m);
void bind_sample(nb::module_& m);
}  // namespace qafila

NB_MODULE(_native, m) {
    using namespace nb::literals;
    m.doc() = "Native kernels of Qafila.";
    m.def("dequantise", &qafila::dequantise, "ggml_type"_a, "data"_a.noconvert(), "out"_a.noconvert(), "threads"_a = 0,
          "Blocks to float32. ValueError, before anything is touched, where sizes do not fit.");
    m.def("quantise", &qafila::quantise, "ggml_type"_a, "values"_a.noconvert(), "out"_a.noconvert(), "threads"_a = 0,
          "float32 to blocks. ValueError where sizes do not fit (nothing is touched) or the type cannot hold a value.");
    qafila::bind_attend(m);
    qafila::bind_gguf(m);
    qafila::bind_kernels(m);
    qafila::bind_measure(m);
    qafila::bind_model(m);
    qafila::bind_sample(m);
}
