// Keys and values through blocks of the cache and back, against a plain softmax in float64.

#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"

namespace qafila::test {
namespace {

std::size_t block_bytes(std::size_t head_dim, bool int8) {
    return int8 ? 2 * kBlockTokens * head_dim + 2 * kBlockTokens * sizeof(float) : 4 * kBlockTokens * head_dim;
}

void check(const Kernels& table, std::size_t head_dim, std::size_t positions, std::size_t rows, bool int8, Random& random) {
    const std::size_t count = (positions + kBlockTokens - 1) / kBlockTokens;
    const Exact<float> keys(positions * head_dim), values(positions * head_dim), queries(rows * head_dim);
    fill(keys, random);
    fill(values, random);
    fill(queries, random);
    std::vector<std::unique_ptr<Exact<std::uint8_t>>> memory;
    std::vector<const void*> blocks;
    for (std::size_t i = 0; i < count; ++i) {
        memory.push_back(std::make_unique<Exact<std::uint8_t>>(block_bytes(head_dim, int8)));
        blocks.push_back(memory.back()->data());
    }
    for (std::size_t p = 0; p < positions; ++p)
        table.store_kv(&keys[p * head_dim], &values[p * head_dim], head_dim, p % kBlockTokens, int8,
                       memory[p / kBlockTokens]->data());
    // The last row sees nothing; the others a window that moves.
    const Exact<std::int32_t> first(rows), last(rows);
    for (std::size_t r = 0; r < rows; ++r) {
        last[r] = static_cast<std::int32_t>(random.below(positions));
        first[r] = static_cast<std::int32_t>(random.below(static_cast<std::size_t>(last[r]) + 1));
    }
    if (rows > 1) first[rows - 1] = static_cast<std::int32_t>(positions), last[rows - 1] = static_cast<std::int32_t>(positions);
    const std::size_t splits = (positions + kSplitTokens - 1) / kSplitTokens;
    const Exact<float> maximum(splits * rows), sum(splits * rows), partial(splits * rows * head_dim), scratch(kAttendScratch);
    for (std::size_t s = 0; s < splits; ++s) {
        const std::size_t begin = s * kSplitTokens, end = std::min(positions, begin + kSplitTokens);
        const AttendArgs args{queries.data(), first.data(), last.data(), rows, head_dim,
                              blocks.data() + begin / kBlockTokens, static_cast<std::int32_t>(begin),
                              static_cast<std::int32_t>(end), int8, &maximum[s * rows], &sum[s * rows],
                              &partial[s * rows * head_dim], scratch.data()};
        table.attend(args);
    }
    const Exact<float> out(head_dim);
    std::vector<double> weights(positions);
    for (std::size_t r = 0; r + (rows > 1 ? 1 : 0) < rows; ++r) {
        table.merge(&maximum[r], &sum[r], &partial[r * head_dim], splits, rows, head_dim, out.data());
        double total = 0;
        for (std::int32_t p = first[r]; p <= last[r]; ++p) {
            double score = 0;
            for (std::size_t i = 0; i < head_dim; ++i)
                score += static_cast<double>(queries[r * head_dim + i]) * keys[static_cast<std::size_t>(p) * head_dim + i];
            total += weights[static_cast<std::size_t>(p)] = std::exp(score);
        }
        for (std::size_t i = 0; i < head_dim; ++i) {
            double expected = 0;
            for (std::int32_t p = first[r]; p <= last[r]; ++p)
                expected += weights[static_cast<std::size_t>(p)] / total * values[static_cast<std::size_t>(p) * head_dim + i];
            CHECK(std::fabs(out[i] - expected) < (int8 ? 0.05 : 0.003), "%s: head_dim %zu, %zu positions, row %zu: %g, not %g",
                  table.name, head_dim, positions, r, static_cast<double>(out[i]), expected);
        }
    }
}

}  // namespace

void test_attention() {
    for (const char* name : kTables) {
        const Kernels* table = find_kernels(name);
        if (table == nullptr) continue;
        Random random(3);
        for (const std::size_t head_dim : {2, 6, 16, 30, 64, 80, 128})
            for (const std::size_t positions : {1, 15, 16, 17, 255, 256, 257, 530})
                for (const bool int8 : {false, true}) check(*table, head_dim, positions, 1 + random.below(19), int8, random);
        check(*table, 512, 40, 17, false, random);
        check(*table, 512, 40, 17, true, random);
    }
}

}  // namespace qafila::test
