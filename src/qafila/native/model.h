// A Llama in memory: its plan, its weights in panels, its KV cache and its adapters. forward.h runs it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "blocks.h"
#include "kernels.h"
#include "mapping.h"
#include "packing.h"
#include "team.h"

namespace qafila {

// The matrices of a layer; the feed-forward ones are the shared expert's where the layer is a mixture.
enum Role : std::size_t { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kRouter, kRoles };
constexpr std::size_t kAdaptedRoles = kRouter;
constexpr std::size_t kExpertGate = 0, kExpertUp = 1, kExpertDown = 2, kExpertRoles = 3;

struct Matrix {
    WeightType type = WeightType::kCount;  // kCount: not declared
    std::size_t rows = 0, columns = 0;
    std::uint8_t* panels = nullptr;

    std::size_t panel_size() const { return panel_bytes(type, columns); }
    std::size_t bytes() const { return panel_count(rows) * panel_size(); }
};

struct LayerPlan {
    bool rotary, qk_norm, temperature;
    std::int32_t chunk;      // positions that see each other; 0 for all
    std::size_t ffn;         // width of the feed-forward part, of an expert in a mixture
    std::size_t experts;     // 0: dense
    std::size_t top_k;
};

struct Shape {
    std::size_t dim, heads, kv_heads, head_dim, vocabulary, embedding_rows;
    float eps;
    bool interleaved, tied;
    std::vector<float> inverse_frequencies;  // [head_dim / 2]
};

struct Layer {
    LayerPlan plan;
    std::array<Matrix, kRoles> matrices;
    std::array<std::vector<Matrix>, kExpertRoles> experts;
    float* attention_norm = nullptr;  // [dim]
    float* ffn_norm = nullptr;        // [dim]
};

// y += scaling * B (A x), with A [rank, in] and B [out, rank] in float32.
struct LowRank {
    std::size_t rank = 0;  // 0: this matrix has none
    float scaling = 0;
    Matrix a, b;
};
struct Adapter {
    std::vector<std::array<LowRank, kAdaptedRoles>> layers;
    std::vector<Mapping> memory;
};

class Model {
public:
    Model(const Shape& shape, const std::vector<LayerPlan>& plans, const Kernels& kernels, std::size_t threads,
          std::vector<int> cpus);

    // First every matrix is declared, then memory is mapped once, then each is packed by the whole team.
    Matrix& declare(Matrix& matrix, WeightType type, std::size_t rows, std::size_t columns);
    void allocate_weights();
    // `mapped`: the rows lie in a mapped file, whose pages are dropped when they have been read.
    void pack_rows(const Matrix& matrix, const std::uint8_t* rows, bool mapped);
    void allocate_cache(std::size_t blocks, bool int8);

    // One row of the embedding, whichever way it is held.
    void embed(std::size_t id, float* out) const;

    std::uint8_t* cache_block(std::size_t block) const { return cache_.data() + block * block_bytes; }
    std::size_t cache_offset(std::size_t layer, std::size_t kv_head) const {
        return (layer * shape.kv_heads + kv_head) * head_bytes;
    }
    std::size_t weight_bytes() const { return weights_.bytes(); }
    std::size_t max_rank() const;

    const Shape shape;
    const Kernels& kernels;
    Team team;
    std::vector<Layer> layers;
    Matrix head;                  // the embedding where it is tied
    float* final_norm = nullptr;  // [dim]
    // An untied embedding stays where the file has it, in its own type.
    const std::uint8_t* embedding = nullptr;
    const Format* embedding_format = nullptr;
    std::map<int, std::unique_ptr<Adapter>> adapters;

    std::size_t blocks = 0, block_bytes = 0, head_bytes = 0;
    bool int8 = false;

private:
    Mapping weights_, cache_;
    std::vector<Matrix*> declared_;
};

}  // namespace qafila
