// Attention kernel by kernel, for tests and benchmarks: stores keys and values into blocks, attends, merges splits.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;

namespace qafila {
namespace {

template <typename T, int kDimensions>
using Array = nb::ndarray<T, nb::ndim<kDimensions>, nb::c_contig, nb::device::cpu>;

const Kernels& table_of(const char* isa) {
    const Kernels* kernels = find_kernels(isa);
    if (kernels == nullptr)
        throw std::invalid_argument(std::string("this processor runs no instruction set named ") + isa);
    return *kernels;
}

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

std::size_t kv_bytes(std::size_t head_dim, bool int8) {
    return 2 * kBlockTokens * (int8 ? head_dim + sizeof(float) : head_dim * sizeof(std::uint16_t));
}

void check_head(std::size_t head_dim) {
    require(head_dim >= 2 && head_dim % 2 == 0 && head_dim <= 512, "head_dim is not even and from 2 to 512");
}

// Tokens [first, first + keys.shape(0)) of one head.
void kv_store(const char* isa, Array<const float, 2> keys, Array<const float, 2> values, std::size_t first, bool int8,
              Array<const std::int32_t, 1> table, Array<std::uint8_t, 2> pool) {
    const Kernels& kernels = table_of(isa);
    const std::size_t tokens = keys.shape(0), head_dim = keys.shape(1);
    check_head(head_dim);
    require(values.shape(0) == tokens && values.shape(1) == head_dim, "values have another shape than keys");
    require(pool.shape(1) == kv_bytes(head_dim, int8), "blocks of the pool have another size");
    require(first + tokens <= table.size() * kBlockTokens, "the table is too short");
    for (std::size_t t = 0; t < tokens; ++t) {
        const std::size_t position = first + t;
        const std::int32_t block = table.data()[position / kBlockTokens];
        require(block >= 0 && static_cast<std::size_t>(block) < pool.shape(0), "a block is not in the pool");
        kernels.store_kv(keys.data() + t * head_dim, values.data() + t * head_dim, head_dim, position % kBlockTokens,
                         int8, pool.data() + static_cast<std::size_t>(block) * pool.shape(1));
    }
}

struct AlignedFree {
    void operator()(float* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

void attend_all(const char* isa, Array<const float, 2> queries, Array<const std::int32_t, 1> first,
                Array<const std::int32_t, 1> last, Array<const std::uint8_t, 2> pool,
                Array<const std::int32_t, 1> table, std::size_t end, bool int8, Array<float, 2> maximum,
                Array<float, 2> sum, Array<float, 3> values, Array<float, 2> out, std::size_t repeat) {
    const Kernels& kernels = table_of(isa);
    const std::size_t rows = queries.shape(0), head_dim = queries.shape(1);
    const std::size_t splits = (end + kSplitTokens - 1) / kSplitTokens;
    check_head(head_dim);
    require(first.size() == rows && last.size() == rows, "first and last are not as long as there are queries");
    require(end >= 1 && end <= table.size() * kBlockTokens, "end is outside the table");
    require(pool.shape(1) == kv_bytes(head_dim, int8), "blocks of the pool have another size");
    require(maximum.shape(0) == splits && maximum.shape(1) == rows && sum.shape(0) == splits && sum.shape(1) == rows,
            "maximum and sum are not [splits, rows]");
    require(values.shape(0) == splits && values.shape(1) == rows && values.shape(2) == head_dim,
            "values are not [splits, rows, head_dim]");
    require(out.shape(0) == rows && out.shape(1) == head_dim, "out is not [rows, head_dim]");
    std::vector<const void*> blocks;
    for (std::size_t i = 0; i * kBlockTokens < end; ++i) {
        const std::int32_t block = table.data()[i];
        require(block >= 0 && static_cast<std::size_t>(block) < pool.shape(0), "a block is not in the pool");
        blocks.push_back(pool.data() + static_cast<std::size_t>(block) * pool.shape(1));
    }
    const std::unique_ptr<float, AlignedFree> scratch(
        static_cast<float*>(::operator new(kAttendScratch * sizeof(float), std::align_val_t{64})));
    const nb::gil_scoped_release release;
    for (std::size_t round = 0; round < repeat; ++round) {
        for (std::size_t split = 0; split < splits; ++split) {
            const std::size_t begin = split * kSplitTokens;
            AttendArgs args{};
            args.queries = queries.data();
            args.first = first.data();
            args.last = last.data();
            args.rows = rows;
            args.head_dim = head_dim;
            args.blocks = blocks.data() + begin / kBlockTokens;
            args.begin = static_cast<std::int32_t>(begin);
            args.end = static_cast<std::int32_t>(begin + kSplitTokens < end ? begin + kSplitTokens : end);
            args.int8 = int8;
            args.maximum = maximum.data() + split * rows;
            args.sum = sum.data() + split * rows;
            args.values = values.data() + split * rows * head_dim;
            args.scratch = scratch.get();
            args.ahead = split + 1 < splits ? args.blocks + kSplitTokens / kBlockTokens : nullptr;
            args.ahead_blocks = split + 1 < splits ? blocks.size() - (begin + kSplitTokens) / kBlockTokens : 0;
            if (args.ahead_blocks > kSplitTokens / kBlockTokens) args.ahead_blocks = kSplitTokens / kBlockTokens;
            kernels.attend(args);
        }
        for (std::size_t row = 0; row < rows; ++row)
            kernels.merge(maximum.data() + row, sum.data() + row, values.data() + row * head_dim, splits, rows, head_dim,
                          out.data() + row * head_dim);
    }
}

}  // namespace

void bind_attend(nb::module_& m) {
    using namespace nb::literals;
    m.def("kv_bytes", &kv_bytes, "head_dim"_a, "int8"_a, "Bytes of one head's keys and values in one block.");
    m.def("kv_store", &kv_store, "isa"_a, "keys"_a.noconvert(), "values"_a.noconvert(), "first"_a, "int8"_a,
          "table"_a.noconvert(), "pool"_a.noconvert(), "One head's keys and values into the blocks of a pool.");
    m.def("attend", &attend_all, "isa"_a, "queries"_a.noconvert(), "first"_a.noconvert(), "last"_a.noconvert(),
          "pool"_a.noconvert(), "table"_a.noconvert(), "end"_a, "int8"_a, "maximum"_a.noconvert(), "sum"_a.noconvert(),
          "values"_a.noconvert(), "out"_a.noconvert(), "repeat"_a = 1, "Split by split, then merged, `repeat` times.");
}

}  // namespace qafila
