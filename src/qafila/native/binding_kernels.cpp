// The kernel tables one by one, for tests and benchmarks. Everything is checked before anything is touched; the
// functions themselves trust what they are given.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "packing.h"

namespace nb = nanobind;

namespace qafila {
namespace {

template <typename T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Made = nb::ndarray<nb::numpy, T, nb::c_contig>;

constexpr std::size_t kAlignment = 64;

void require(bool condition, const std::string& otherwise) {
    if (!condition) throw std::invalid_argument(otherwise);
}

const Kernels& checked_table(const std::string& name) {
    const Kernels* table = find_kernels(name.c_str());
    require(table != nullptr, "no instruction set " + name + " runs here");
    return *table;
}

WeightType checked_type(int type, std::size_t columns) {
    require(type >= 0 && type < static_cast<int>(WeightType::kCount),
            "no weight type has the number " + std::to_string(type));
    const auto found = static_cast<WeightType>(type);
    require(columns > 0 && columns % block_columns(found) == 0,
            std::to_string(columns) + " columns are not whole blocks of " + std::to_string(block_columns(found)));
    return found;
}

// A zeroed array of its own, 64-byte aligned as panels and buffers are.
template <typename T>
struct Buffer {
    explicit Buffer(std::size_t count) {
        const std::size_t bytes = (count * sizeof(T) / kAlignment + 1) * kAlignment;
        memory = static_cast<T*>(::operator new(bytes, std::align_val_t(kAlignment)));
        std::memset(static_cast<void*>(memory), 0, bytes);
    }
    ~Buffer() { free(memory); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    static void free(void* pointer) noexcept { ::operator delete(pointer, std::align_val_t(kAlignment)); }
    T* memory;
};

template <typename T>
Made<T> give(Buffer<T>& buffer, std::initializer_list<std::size_t> shape) {
    T* memory = buffer.memory;
    nb::capsule owner(memory, [](void* pointer) noexcept { Buffer<T>::free(pointer); });
    buffer.memory = nullptr;
    return Made<T>(memory, shape, owner);
}

nb::list instruction_sets() {
    nb::list names;
    for (const char* name : {"portable", "avx2", "avxvnni", "avx512"})
        if (find_kernels(name) != nullptr) names.append(name);
    return names;
}

Made<std::uint8_t> pack_matrix(int type_number, Vector<const std::uint8_t> data, std::size_t rows, std::size_t columns) {
    const WeightType type = checked_type(type_number, columns);
    require(rows > 0 && data.size() / rows == row_bytes(type, columns) && data.size() % rows == 0,
            std::to_string(data.size()) + " bytes are not " + std::to_string(rows) + " rows of " +
                std::to_string(columns) + " columns");
    const std::size_t bytes = panel_count(rows) * panel_bytes(type, columns);
    Buffer<std::uint8_t> panels(bytes);
    {
        nb::gil_scoped_release release;
        pack(type, data.data(), rows, columns, 0, panel_count(rows), panels.memory);
    }
    return give(panels, {bytes});
}

// Rows there is room for in the panels of a matrix.
std::size_t checked_panels(WeightType type, const Vector<const std::uint8_t>& panels, std::size_t columns) {
    const std::size_t bytes = panel_bytes(type, columns);
    require(panels.size() > 0 && panels.size() % bytes == 0,
            std::to_string(panels.size()) + " bytes are not whole panels of " + std::to_string(bytes));
    return panels.size() / bytes * kPanelRows;
}

Made<float> unpack_one(int type_number, Vector<const std::uint8_t> panels, std::size_t columns, std::size_t row) {
    const WeightType type = checked_type(type_number, columns);
    require(row < checked_panels(type, panels, columns), "there is no row " + std::to_string(row));
    Buffer<float> out(columns);
    {
        nb::gil_scoped_release release;
        unpack_row(type, panels.data(), columns, row, out.memory);
    }
    return give(out, {columns});
}

// Activations in every form, for `tokens` tokens.
struct Forms {
    Forms(std::size_t tokens, std::size_t columns, bool quantised)
        : stride((columns + 31) / 32 * 32), blocks(quantised ? columns / kBlockColumns : 0), values(tokens * stride),
          rounded(tokens * stride), quants(blocks * tokens * kBlockColumns), scales(blocks * tokens),
          scaled_sums(blocks * tokens), sums(blocks * tokens), half_sums(blocks * tokens * 2) {}

    void fill(const Kernels& table, const float* x, std::size_t tokens, std::size_t columns) {
        for (std::size_t t = 0; t < tokens; ++t) {
            std::memcpy(values.memory + t * stride, x + t * columns, columns * sizeof(float));
            table.round_bf16(x + t * columns, columns, rounded.memory + t * stride);
            if (blocks > 0)
                table.quantise(x + t * columns, columns, t, tokens, quants.memory, scales.memory, scaled_sums.memory,
                               sums.memory, half_sums.memory);
        }
    }

    Activations view(std::size_t tokens, std::size_t columns) const {
        return {tokens,        columns,       stride,             values.memory, rounded.memory,
                quants.memory, scales.memory, scaled_sums.memory, sums.memory,   half_sums.memory};
    }

    std::size_t stride, blocks;
    Buffer<float> values;
    Buffer<std::uint16_t> rounded;
    Buffer<std::int8_t> quants;
    Buffer<float> scales, scaled_sums;
    Buffer<std::int32_t> sums, half_sums;
};

// Of a range given as [begin, end), -1 being the end of what there is.
std::size_t checked_end(std::size_t begin, std::ptrdiff_t end, std::size_t count, const char* of) {
    const std::size_t last = end < 0 ? count : static_cast<std::size_t>(end);
    require(begin <= last && last <= count, std::string("no such range of ") + of);
    return last;
}

Made<float> product(const std::string& isa, int type_number, Vector<const std::uint8_t> panels, std::size_t rows,
                    Matrix<const float> x, int repeats, std::size_t token_begin, std::ptrdiff_t token_end,
                    std::size_t panel_begin, std::ptrdiff_t panel_end) {
    const Kernels& table = checked_table(isa);
    const std::size_t tokens = x.shape(0), columns = x.shape(1);
    const WeightType type = checked_type(type_number, columns);
    const std::size_t room = checked_panels(type, panels, columns);
    require(rows <= room && rows + kPanelRows > room, std::to_string(rows) + " rows do not fill these panels");
    const std::size_t last_token = checked_end(token_begin, token_end, tokens, "tokens");
    const std::size_t last_panel = checked_end(panel_begin, panel_end, room / kPanelRows, "panels");
    Forms forms(tokens, columns, block_columns(type) > 1);
    Buffer<std::uint8_t> aligned(panels.size());
    Buffer<float> wide(tokens * room), out(tokens * rows);
    {
        nb::gil_scoped_release release;
        std::memcpy(aligned.memory, panels.data(), panels.size());
        forms.fill(table, x.data(), tokens, columns);
        const Activations view = forms.view(tokens, columns);
        for (int i = 0; i < repeats; ++i)
            table.product[type_number](aligned.memory, panel_begin, last_panel, view, token_begin, last_token,
                                       wide.memory, room);
        for (std::size_t t = 0; t < tokens; ++t)
            std::memcpy(out.memory + t * rows, wide.memory + t * room, rows * sizeof(float));
    }
    return give(out, {tokens, rows});
}

nb::dict quantise_activations(const std::string& isa, Matrix<const float> x) {
    const Kernels& table = checked_table(isa);
    const std::size_t tokens = x.shape(0), columns = x.shape(1), blocks = columns / kBlockColumns;
    require(columns % kBlockColumns == 0, std::to_string(columns) + " columns are not whole blocks of 32");
    Forms forms(tokens, columns, true);
    {
        nb::gil_scoped_release release;
        forms.fill(table, x.data(), tokens, columns);
    }
    nb::dict made;
    made["quants"] = give(forms.quants, {blocks, tokens, kBlockColumns});
    made["scales"] = give(forms.scales, {blocks, tokens});
    made["scaled_sums"] = give(forms.scaled_sums, {blocks, tokens});
    made["sums"] = give(forms.sums, {blocks, tokens});
    made["half_sums"] = give(forms.half_sums, {blocks, tokens, 2});
    made["rounded"] = give(forms.rounded, {tokens, forms.stride});
    return made;
}

Made<float> rms_norm(const std::string& isa, Vector<const float> x, std::optional<Vector<const float>> weight, float eps) {
    const Kernels& table = checked_table(isa);
    const std::size_t n = x.size();
    require(!weight || weight->size() == n, "weight and x differ in size");
    Buffer<float> y(n);
    const float* factors = weight ? weight->data() : nullptr;
    {
        nb::gil_scoped_release release;
        table.rms_norm(x.data(), factors, n, eps, y.memory);
    }
    return give(y, {n});
}

Made<float> rope(const std::string& isa, Vector<const float> x, Vector<const float> cosines, Vector<const float> sines,
                 bool interleaved) {
    const Kernels& table = checked_table(isa);
    const std::size_t n = x.size();
    require(n % 2 == 0 && cosines.size() == n / 2 && sines.size() == n / 2, "a head has one angle for each pair");
    Buffer<float> y(n);
    {
        nb::gil_scoped_release release;
        std::memcpy(y.memory, x.data(), n * sizeof(float));
        table.rope(y.memory, cosines.data(), sines.data(), n, interleaved);
    }
    return give(y, {n});
}

Made<float> silu_mul(const std::string& isa, Vector<const float> gate, Vector<const float> up) {
    const Kernels& table = checked_table(isa);
    const std::size_t n = gate.size();
    require(up.size() == n, "gate and up differ in size");
    Buffer<float> out(n);
    {
        nb::gil_scoped_release release;
        table.silu_mul(gate.data(), up.data(), n, out.memory);
    }
    return give(out, {n});
}

// y + factor * x, by way of `scale` and `add`.
Made<float> scale_add(const std::string& isa, Vector<const float> x, float factor, Vector<const float> y) {
    const Kernels& table = checked_table(isa);
    const std::size_t n = x.size();
    require(y.size() == n, "x and y differ in size");
    Buffer<float> scaled(n), sum(n);
    {
        nb::gil_scoped_release release;
        std::memcpy(scaled.memory, x.data(), n * sizeof(float));
        std::memcpy(sum.memory, y.data(), n * sizeof(float));
        table.scale(scaled.memory, factor, n);
        table.add(scaled.memory, n, sum.memory);
    }
    return give(sum, {n});
}

nb::tuple log_sum_exp(const std::string& isa, Vector<const float> x) {
    const Kernels& table = checked_table(isa);
    float maximum = 0;
    double log_sum = 0;
    {
        nb::gil_scoped_release release;
        table.log_sum_exp(x.data(), x.size(), &maximum, &log_sum);
    }
    return nb::make_tuple(maximum, log_sum);
}

}  // namespace

void bind_kernels(nb::module_& m) {
    using namespace nb::literals;
    m.def("instruction_sets", instruction_sets, "Names of the tables that this processor runs, the best last.");
    m.def("pack", pack_matrix, "type"_a, "data"_a.noconvert(), "rows"_a, "columns"_a, "A file's rows as panels.");
    m.def("unpack_row", unpack_one, "type"_a, "panels"_a.noconvert(), "columns"_a, "row"_a, "One row as float32.");
    m.def("product", product, "isa"_a, "type"_a, "panels"_a.noconvert(), "rows"_a, "x"_a.noconvert(), "repeats"_a = 1,
          "token_begin"_a = 0, "token_end"_a = -1, "panel_begin"_a = 0, "panel_end"_a = -1,
          "[tokens, rows]; zero outside the ranges asked for.");
    m.def("quantise_activations", quantise_activations, "isa"_a, "x"_a.noconvert(),
          "All forms of activations, as kernels.h describes them.");
    m.def("rms_norm", rms_norm, "isa"_a, "x"_a.noconvert(), "weight"_a.noconvert().none(), "eps"_a);
    m.def("rope", rope, "isa"_a, "x"_a.noconvert(), "cosines"_a.noconvert(), "sines"_a.noconvert(), "interleaved"_a);
    m.def("silu_mul", silu_mul, "isa"_a, "gate"_a.noconvert(), "up"_a.noconvert());
    m.def("scale_add", scale_add, "isa"_a, "x"_a.noconvert(), "factor"_a, "y"_a.noconvert(), "y + factor * x");
    m.def("log_sum_exp", log_sum_exp, "isa"_a, "x"_a.noconvert(), "The maximum, and log(sum(exp(x - maximum))).");
}

}  // namespace qafila
