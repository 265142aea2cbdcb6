// The forward pass: checks everything a caller can get wrong before a step, releases the GIL while it runs.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>

#include "forward.h"

namespace nb = nanobind;

namespace qafila {
namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints2 = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<nb::numpy, const float, nb::ndim<2>>;
using Plan = std::tuple<bool, bool, bool, std::int32_t, std::size_t, std::size_t, std::size_t>;
using LowRankArrays = std::tuple<std::size_t, std::size_t, float, Floats2, Floats2>;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

WeightType weight_type(int ggml_type) {
    switch (ggml_type) {
        case 0: return WeightType::kF32;
        case 1: return WeightType::kF16;
        case 30: return WeightType::kBF16;
        case 8: return WeightType::kQ8_0;
        case 2: return WeightType::kQ4_0;
        case 3: return WeightType::kQ4_1;
        case 12: return WeightType::kQ4_K;
        case 13: return WeightType::kQ5_K;
        case 14: return WeightType::kQ6_K;
        default: refuse("no product of weights of type " + std::to_string(ggml_type));
    }
}

// A model, its runner's memory, and what keeps two threads out of it.
class NativeModel {
public:
    NativeModel(const Shape& shape, const std::vector<Plan>& plans, std::size_t threads, std::vector<int> cpus,
                const std::string& isa) {
        const Kernels* kernels = isa.empty() ? best_kernels() : find_kernels(isa.c_str());
        if (kernels == nullptr) refuse("this processor cannot run " + (isa.empty() ? "any kernel table" : isa));
        if (threads < 1 || threads > 1024) refuse("threads must be from 1 to 1024");
        if (shape.heads == 0 || shape.kv_heads == 0 || shape.heads % shape.kv_heads != 0 || shape.dim == 0)
            refuse("shapes do not fit");
        if (shape.head_dim % 2 != 0 || shape.head_dim > 512 || shape.head_dim == 0)
            refuse("head_dim must be even and at most 512");
        if (shape.inverse_frequencies.size() != shape.head_dim / 2) refuse("inverse frequencies do not fit");
        std::vector<LayerPlan> layers;
        for (const auto& [rotary, qk_norm, temperature, chunk, ffn, experts, top_k] : plans) {
            if (chunk < 0 || ffn == 0 || top_k > experts || (experts > 0) != (top_k > 0)) refuse("a plan does not fit");
            layers.push_back({rotary, qk_norm, temperature, chunk, ffn, experts, top_k});
        }
        model_ = std::make_unique<Model>(shape, layers, *kernels, threads, std::move(cpus));
    }

    void declare(int layer, std::size_t role, std::size_t expert, int ggml_type) {
        const auto [rows, columns] = shape_of(layer, role);
        model_->declare(matrix(layer, role, expert), weight_type(ggml_type), rows, columns);
    }

    void allocate_weights() {
        for (const Layer& layer : model_->layers) {
            for (std::size_t role = 0; role < kRoles; ++role)
                if ((layer.matrices[role].type == WeightType::kCount) != (role == kRouter && layer.plan.experts == 0))
                    refuse("a matrix is missing");
            for (const auto& experts : layer.experts)
                for (const Matrix& one : experts)
                    if (one.type == WeightType::kCount) refuse("an expert is missing");
            for (std::size_t role = 0; role < kExpertRoles; ++role)
                for (const Matrix& one : layer.experts[role])
                    if (one.type != layer.experts[role][0].type) refuse("experts are of different types");
        }
        if (model_->head.type == WeightType::kCount) refuse("the head is missing");
        model_->allocate_weights();
        allocated_ = true;
    }

    void pack(int layer, std::size_t role, std::size_t expert, const Bytes& data, bool mapped) {
        if (!allocated_) refuse("weights have no memory yet");
        const Matrix& target = matrix(layer, role, expert);
        if (data.size() != target.rows * row_bytes(target.type, target.columns)) refuse("the bytes are not that matrix");
        const std::uint8_t* rows = data.data();
        nb::gil_scoped_release release;
        model_->pack_rows(target, rows, mapped);
    }

    void set_norm(int layer, bool ffn, const Floats& values) {
        if (!allocated_ || values.size() != model_->shape.dim) refuse("a norm has one weight a dimension");
        float* target = layer < 0 ? model_->final_norm
                        : ffn     ? checked_layer(layer).ffn_norm
                                  : checked_layer(layer).attention_norm;
        std::copy(values.data(), values.data() + values.size(), target);
    }

    // `data` must stay alive as long as the model: the binding keeps it.
    void set_embedding(int ggml_type, const Bytes& data) {
        const Format* format = find_format(ggml_type);
        const Shape& shape = model_->shape;
        if (format == nullptr || shape.dim % format->elements != 0 ||
            data.size() != shape.embedding_rows * (shape.dim / format->elements) * format->bytes)
            refuse("the bytes are not the embedding");
        model_->embedding = data.data();
        model_->embedding_format = format;
    }

    void start(std::size_t blocks, bool int8, std::size_t max_tokens, std::size_t max_rows) {
        if (!allocated_ || (model_->embedding == nullptr && !model_->shape.tied)) refuse("weights are missing");
        if (blocks == 0 || blocks > (std::size_t{1} << 31) - 1 || max_tokens == 0 || max_rows == 0 ||
            max_tokens > (std::size_t{1} << 20) || max_rows > max_tokens)
            refuse("limits do not fit");
        model_->allocate_cache(blocks, int8);
        forward_ = std::make_unique<Forward>(*model_, max_tokens, max_rows);
        writer_.assign(blocks, 0);
    }

    Rows step(bool logits, const Ints& ids, const Ints& positions, const Ints& starts, const Ints2& blocks,
              const Ints& adapters, const Ints& wanted, const nb::object& query_scales) {
        const Busy busy(busy_);
        Step step{ids.size(),     blocks.shape(0),  wanted.size(), blocks.shape(1), ids.data(), positions.data(),
                  starts.data(),  blocks.data(),    wanted.data(), nullptr,         nullptr};
        check(step, positions.size(), starts.size(), adapters);
        Floats scales;
        if (!query_scales.is_none()) {
            scales = nb::cast<Floats>(query_scales);
            if (scales.size() != step.tokens) refuse("query_scales has one entry a token");
            step.query_scales = scales.data();
        }
        for (const Layer& layer : model_->layers)
            if (layer.plan.temperature && step.query_scales == nullptr) refuse("query_scales are missing");
        const float* out = nullptr;
        {
            nb::gil_scoped_release release;
            out = logits ? forward_->logits(step) : forward_->hidden(step);
        }
        const std::size_t width = logits ? model_->shape.vocabulary : model_->shape.dim;
        return Rows(out, {step.rows, width}, nb::find(this));
    }

    void copy_block(std::size_t source, std::size_t target) {
        const Busy busy(busy_);
        if (source >= model_->blocks || target >= model_->blocks) refuse("no such block");
        if (source != target)
            std::copy_n(model_->cache_block(source), model_->block_bytes, model_->cache_block(target));
    }

    void add_adapter(int id, const std::vector<LowRankArrays>& parts) {
        const Busy busy(busy_);
        if (id <= 0 || model_->adapters.contains(id) || !forward_) refuse("an adapter's number does not fit");
        auto adapter = std::make_unique<Adapter>();
        adapter->layers.resize(model_->layers.size());
        for (const auto& [layer, role, scaling, a, b] : parts) {
            if (layer >= model_->layers.size() || role >= kAdaptedRoles) refuse("no such matrix to adapt");
            const Matrix& base = model_->layers[layer].matrices[role];
            const std::size_t rank = a.shape(0);
            LowRank& low = adapter->layers[layer][role];
            if (rank == 0 || low.rank != 0 || a.shape(1) != base.columns || b.shape(0) != base.rows ||
                b.shape(1) != rank)
                refuse("an adapter's matrices do not fit the model's");
            const auto packed = [&adapter](const Floats2& values) {
                Matrix matrix{WeightType::kF32, values.shape(0), values.shape(1), nullptr};
                adapter->memory.emplace_back(matrix.bytes());
                matrix.panels = adapter->memory.back().data();
                qafila::pack(matrix.type, reinterpret_cast<const std::uint8_t*>(values.data()), matrix.rows, matrix.columns, 0,
                     panel_count(matrix.rows), matrix.panels);
                return matrix;
            };
            low = {rank, scaling, packed(a), packed(b)};
        }
        model_->adapters[id] = std::move(adapter);
        forward_->fit_adapters();
    }

    void remove_adapter(int id) {
        const Busy busy(busy_);
        if (model_->adapters.erase(id) == 0) refuse("no such adapter");
    }

    const char* isa() const { return model_->kernels.name; }
    std::size_t threads() const { return model_->team.size(); }
    std::size_t weight_bytes() const { return model_->weight_bytes(); }
    std::size_t block_bytes() const { return model_->block_bytes; }

private:
    struct Busy {
        explicit Busy(std::atomic<bool>& flag) : flag_(flag) {
            if (flag.exchange(true)) throw std::runtime_error("the model is in use by another thread");
        }
        ~Busy() { flag_ = false; }
        std::atomic<bool>& flag_;
    };

    Layer& checked_layer(int layer) {
        if (layer < 0 || static_cast<std::size_t>(layer) >= model_->layers.size()) refuse("no such layer");
        return model_->layers[static_cast<std::size_t>(layer)];
    }

    // Layer -1 is the head; experts' roles follow the others.
    Matrix& matrix(int layer, std::size_t role, std::size_t expert) {
        if (layer < 0) return model_->head;
        Layer& one = checked_layer(layer);
        if (role < kRoles) return one.matrices[role];
        if (role >= kRoles + kExpertRoles || expert >= one.plan.experts) refuse("no such matrix");
        return one.experts[role - kRoles][expert];
    }

    std::pair<std::size_t, std::size_t> shape_of(int layer, std::size_t role) {
        const Shape& shape = model_->shape;
        if (layer < 0) return {shape.tied ? shape.embedding_rows : shape.vocabulary, shape.dim};
        const LayerPlan& plan = checked_layer(layer).plan;
        switch (role) {
            case kQuery: return {shape.heads * shape.head_dim, shape.dim};
            case kKey:
            case kValue: return {shape.kv_heads * shape.head_dim, shape.dim};
            case kOutput: return {shape.dim, shape.heads * shape.head_dim};
            case kGate:
            case kUp:
            case kRoles + kExpertGate:
            case kRoles + kExpertUp: return {plan.ffn, shape.dim};
            case kDown:
            case kRoles + kExpertDown: return {shape.dim, plan.ffn};
            case kRouter: return {plan.experts, shape.dim};
            default: refuse("no such matrix");
        }
    }

    void check(Step& step, std::size_t positions, std::size_t starts, const Ints& adapters) {
        if (!forward_) refuse("the model is not started");
        if (step.tokens < 1 || step.tokens > forward_->max_tokens)
            refuse(std::to_string(step.tokens) + " tokens in a step of at most " +
                   std::to_string(forward_->max_tokens));
        if (step.rows > forward_->max_rows)
            refuse(std::to_string(step.rows) + " wanted rows in a step of at most " +
                   std::to_string(forward_->max_rows));
        if (positions != step.tokens || step.sequences < 1 || starts != step.sequences + 1 ||
            adapters.size() != step.sequences)
            refuse("the arrays of a step do not fit each other");
        if (step.starts[0] != 0 || step.starts[step.sequences] != static_cast<std::int32_t>(step.tokens))
            refuse("starts must go from 0 to the number of tokens");
        for (std::size_t s = 0; s < step.sequences; ++s)
            if (step.starts[s + 1] <= step.starts[s]) refuse("a sequence has no token");
        for (std::size_t t = 0; t < step.tokens; ++t) {
            if (step.ids[t] < 0 || static_cast<std::size_t>(step.ids[t]) >= model_->shape.embedding_rows)
                refuse("token " + std::to_string(step.ids[t]) + " is not in the vocabulary");
            if (step.positions[t] < 0) refuse("a position is negative");
        }
        for (std::size_t row = 0; row < step.rows; ++row)
            if (step.wanted[row] < 0 || static_cast<std::size_t>(step.wanted[row]) >= step.tokens ||
                (row > 0 && step.wanted[row] <= step.wanted[row - 1]))
                refuse("wanted must be rising numbers of the step's tokens");
        check_blocks(step);
        step_adapters_.assign(step.sequences, nullptr);
        for (std::size_t s = 0; s < step.sequences; ++s) {
            if (adapters.data()[s] == 0) continue;
            const auto found = model_->adapters.find(adapters.data()[s]);
            if (found == model_->adapters.end())
                refuse("adapter " + std::to_string(adapters.data()[s]) + " is not loaded");
            step_adapters_[s] = found->second.get();
            step.adapters = step_adapters_.data();
        }
    }

    void check_blocks(const Step& step) {
        // writer_ names the sequence, from 1, whose tokens of this step go into a block; all zero between steps.
        struct Clear {
            std::vector<std::uint32_t>& writer;
            std::vector<std::size_t> marked;
            ~Clear() {
                for (const std::size_t block : marked) writer[block] = 0;
            }
        } clear{writer_, {}};
        for (std::size_t s = 0; s < step.sequences; ++s) {
            const std::size_t begin = static_cast<std::size_t>(step.starts[s]);
            const std::size_t end = static_cast<std::size_t>(step.starts[s + 1]);
            const std::int32_t* table = step.blocks + s * step.table_width;
            for (std::size_t t = begin + 1; t < end; ++t)
                if (step.positions[t] != step.positions[t - 1] + 1) refuse("positions of a sequence must be consecutive");
            const std::size_t used = static_cast<std::size_t>(step.positions[end - 1]) / kBlockTokens + 1;
            if (used > step.table_width)
                refuse("position " + std::to_string(step.positions[end - 1]) + " lies beyond the block table");
            for (std::size_t i = 0; i < used; ++i)
                if (table[i] < 0 || static_cast<std::size_t>(table[i]) >= model_->blocks)
                    refuse("block " + std::to_string(table[i]) + " is not one of the cache's " +
                           std::to_string(model_->blocks));
            for (std::size_t i = static_cast<std::size_t>(step.positions[begin]) / kBlockTokens; i < used; ++i) {
                const std::size_t block = static_cast<std::size_t>(table[i]);
                if (writer_[block] != 0) refuse("two parts of a step write to block " + std::to_string(block));
                writer_[block] = static_cast<std::uint32_t>(s + 1);
                clear.marked.push_back(block);
            }
        }
        for (std::size_t s = 0; s < step.sequences; ++s) {
            const std::int32_t* table = step.blocks + s * step.table_width;
            const std::size_t before = static_cast<std::size_t>(step.positions[step.starts[s]]) / kBlockTokens;
            for (std::size_t i = 0; i < before; ++i)
                if (writer_[static_cast<std::size_t>(table[i])] != 0)
                    refuse("block " + std::to_string(table[i]) + " is read and written in one step");
        }
    }

    std::unique_ptr<Model> model_;
    std::unique_ptr<Forward> forward_;
    bool allocated_ = false;
    std::atomic<bool> busy_{false};
    std::vector<std::uint32_t> writer_;
    std::vector<const Adapter*> step_adapters_;
};

}  // namespace

void bind_model(nb::module_& m) {
    using namespace nb::literals;
    nb::class_<NativeModel>(m, "Model", "A Llama's forward pass with its weights and KV cache.")
        .def(
            "__init__",
            [](NativeModel* self, std::size_t dim, std::size_t heads, std::size_t kv_heads, std::size_t head_dim,
               std::size_t vocabulary, std::size_t embedding_rows, float eps, bool interleaved, bool tied,
               const Floats& inverse_frequencies, const std::vector<Plan>& layers, std::size_t threads,
               std::vector<int> cpus, const std::string& isa) {
                const float* first = inverse_frequencies.data();
                const Shape shape{dim, heads, kv_heads, head_dim, vocabulary, embedding_rows, eps, interleaved, tied,
                                  std::vector<float>(first, first + inverse_frequencies.size())};
                new (self) NativeModel(shape, layers, threads, std::move(cpus), isa);
            },
            nb::kw_only(), "dim"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "vocabulary"_a, "embedding_rows"_a, "eps"_a,
            "interleaved"_a, "tied"_a, "inverse_frequencies"_a, "layers"_a, "threads"_a, "cpus"_a, "isa"_a)
        .def("declare", &NativeModel::declare, "layer"_a, "role"_a, "expert"_a, "ggml_type"_a)
        .def("allocate_weights", &NativeModel::allocate_weights)
        .def("pack", &NativeModel::pack, "layer"_a, "role"_a, "expert"_a, "data"_a.noconvert(), "mapped"_a)
        .def("set_norm", &NativeModel::set_norm, "layer"_a, "ffn"_a, "values"_a.noconvert())
        .def("set_embedding", &NativeModel::set_embedding, "ggml_type"_a, "data"_a.noconvert(),
             nb::keep_alive<1, 3>())
        .def("start", &NativeModel::start, "blocks"_a, "int8"_a, "max_tokens"_a, "max_rows"_a)
        .def("step", &NativeModel::step, "logits"_a, "ids"_a.noconvert(), "positions"_a.noconvert(),
             "starts"_a.noconvert(), "blocks"_a.noconvert(), "adapters"_a.noconvert(), "wanted"_a.noconvert(),
             "query_scales"_a.none())
        .def("copy_block", &NativeModel::copy_block, "source"_a, "target"_a)
        .def("add_adapter", &NativeModel::add_adapter, "id"_a, "parts"_a)
        .def("remove_adapter", &NativeModel::remove_adapter, "id"_a)
        .def_prop_ro("isa", &NativeModel::isa)
        .def_prop_ro("threads", &NativeModel::threads)
        .def_prop_ro("weight_bytes", &NativeModel::weight_bytes)
        .def_prop_ro("block_bytes", &NativeModel::block_bytes);
}

}  // namespace qafila
