// A small model's forward pass: the same bits for any number of threads and however a prompt is cut into steps.

#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"
#include "forward.h"

namespace qafila::test {
namespace {

constexpr std::size_t kDim = 96, kHeads = 6, kKvHeads = 2, kHeadDim = 16, kFfn = 160, kVocabulary = 70, kTokens = 41;
constexpr std::size_t kTableWidth = 4, kBlocks = 8;

struct Small {
    Small(const Kernels& kernels, WeightType type, std::size_t threads, bool int8, bool mixture) {
        Random random(5);
        Shape shape{kDim, kHeads, kKvHeads, kHeadDim, kVocabulary, kVocabulary, 1e-5f, mixture, true, {}};
        for (std::size_t i = 0; i < kHeadDim / 2; ++i) shape.inverse_frequencies.push_back(std::pow(0.3f, static_cast<float>(i)));
        std::vector<LayerPlan> plans(2, LayerPlan{true, false, false, 0, kFfn, 0, 0});
        if (mixture) plans[1] = {false, true, false, 16, kFfn, 3, 1};
        model = std::make_unique<Model>(shape, plans, kernels, threads, std::vector<int>{});
        std::vector<Matrix*> all;
        const auto declare = [&](Matrix& matrix, std::size_t rows, std::size_t columns, WeightType as) {
            all.push_back(&model->declare(matrix, as, rows, columns));
        };
        for (Layer& layer : model->layers) {
            auto& m = layer.matrices;
            declare(m[kQuery], kHeads * kHeadDim, kDim, type);
            declare(m[kKey], kKvHeads * kHeadDim, kDim, type);
            declare(m[kValue], kKvHeads * kHeadDim, kDim, type);
            declare(m[kOutput], kDim, kHeads * kHeadDim, type);
            declare(m[kGate], kFfn, kDim, type);
            declare(m[kUp], kFfn, kDim, type);
            declare(m[kDown], kDim, kFfn, type);
            if (layer.plan.experts == 0) continue;
            declare(m[kRouter], layer.plan.experts, kDim, WeightType::kF32);
            for (std::size_t e = 0; e < layer.plan.experts; ++e) {
                declare(layer.experts[kExpertGate][e], kFfn, kDim, type);
                declare(layer.experts[kExpertUp][e], kFfn, kDim, type);
                declare(layer.experts[kExpertDown][e], kDim, kFfn, type);
            }
        }
        declare(model->head, kVocabulary, kDim, type);
        model->allocate_weights();
        for (const Matrix* matrix : all) {
            const Exact<std::uint8_t> rows(matrix->rows * row_bytes(matrix->type, matrix->columns));
            fill_rows(matrix->type, rows, random);
            model->pack_rows(*matrix, rows.data(), false);
        }
        for (Layer& layer : model->layers)
            for (std::size_t i = 0; i < kDim; ++i) layer.attention_norm[i] = layer.ffn_norm[i] = 1;
        for (std::size_t i = 0; i < kDim; ++i) model->final_norm[i] = 1;
        model->allocate_cache(kBlocks, int8);
        forward = std::make_unique<Forward>(*model, 2 * kTokens, 2 * kTokens);
    }

    // Logits after every token of two sequences with the same prompt, which is read `step` tokens at a time.
    std::vector<float> logits(std::size_t step) {
        Random random(6);
        std::vector<std::int32_t> prompt(kTokens);
        for (std::int32_t& id : prompt) id = static_cast<std::int32_t>(random.below(kVocabulary));
        const std::vector<std::int32_t> blocks{5, 0, 3, -1, 1, 7, 2, -1};
        std::vector<float> all(2 * kTokens * kVocabulary);
        for (std::size_t begin = 0; begin < kTokens; begin += step) {
            const std::size_t count = std::min(step, kTokens - begin);
            std::vector<std::int32_t> ids, positions, wanted;
            for (std::size_t i = 0; i < 2 * count; ++i) {
                ids.push_back(prompt[begin + i % count]);
                positions.push_back(static_cast<std::int32_t>(begin + i % count));
                wanted.push_back(static_cast<std::int32_t>(i));
            }
            const std::vector<std::int32_t> starts{0, static_cast<std::int32_t>(count), static_cast<std::int32_t>(2 * count)};
            Step args{};
            args.tokens = args.rows = 2 * count;
            args.sequences = 2;
            args.table_width = kTableWidth;
            args.ids = ids.data();
            args.positions = positions.data();
            args.starts = starts.data();
            args.blocks = blocks.data();
            args.wanted = wanted.data();
            const float* found = forward->logits(args);
            for (std::size_t s = 0; s < 2; ++s)
                std::memcpy(&all[(s * kTokens + begin) * kVocabulary], found + s * count * kVocabulary,
                            count * kVocabulary * sizeof(float));
        }
        return all;
    }

    std::unique_ptr<Model> model;
    std::unique_ptr<Forward> forward;
};

}  // namespace

void test_forward() {
    for (const char* name : kTables) {
        const Kernels* table = find_kernels(name);
        if (table == nullptr) continue;
        for (const WeightType type : {WeightType::kF32, WeightType::kBF16, WeightType::kQ8_0, WeightType::kQ4_1})
            for (const bool int8 : {false, true})
                for (const bool mixture : {false, true}) {
                    const std::vector<float> expected = Small(*table, type, 1, int8, mixture).logits(kTokens);
                    for (const float value : expected) CHECK(std::isfinite(value), "%s", name);
                    CHECK(std::memcmp(&expected[0], &expected[kTokens * kVocabulary], kTokens * kVocabulary * sizeof(float)) == 0,
                          "%s: two equal prompts", name);
                    for (const std::size_t threads : {1, 3})
                        for (const std::size_t step : {1, 7, 16}) {
                            const std::vector<float> found = Small(*table, type, threads, int8, mixture).logits(step);
                            CHECK(found == expected, "%s, type %d, %zu threads, %zu tokens a step", name, static_cast<int>(type),
                                  threads, step);
                        }
                }
    }
}

}  // namespace qafila::test
