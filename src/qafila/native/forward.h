// One step of the forward pass as a list of phases that the team works through, each cut into items.
//
// Items are pieces of panels, tokens or attention tiles, and whoever is free takes the next one, so that a slow
// processor takes fewer. No number depends on who computed it, or on how the step was cut: activations of a token are
// made from that token alone, products are cut by rows and tokens only, attention by the absolute position.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "activations.h"
#include "model.h"

namespace qafila {

// The new tokens of some sequences, as engine/runner.py describes them; checked by the binding.
struct Step {
    std::size_t tokens, sequences, rows, table_width;
    const std::int32_t* ids;
    const std::int32_t* positions;
    const std::int32_t* starts;
    const std::int32_t* blocks;       // [sequences][table_width]
    const std::int32_t* wanted;       // [rows]
    const float* query_scales;        // [tokens], null where the model has no attention temperature
    const Adapter* const* adapters;   // [sequences], null where no sequence has one
};

// Consecutive tokens of one sequence that attend together.
struct Tile {
    std::size_t sequence, begin, end;              // tokens
    std::size_t split_begin, split_end;            // splits that its tokens see
    bool apart;                                    // each split is an item of its own, and merged later
    std::size_t partial;                           // its first row among the partial results
};
struct TileItem {
    std::uint32_t tile, kv_head, split;
};
struct AttentionPlan {
    std::vector<Tile> tiles;
    std::vector<TileItem> items;
    std::vector<std::uint32_t> tile_of_token;
    std::size_t partial_rows = 0;                  // of the tiles that are merged later
    std::size_t widest = 0;                        // most rows times splits of the others
};

class Forward final : private Work {
public:
    Forward(Model& model, std::size_t max_tokens, std::size_t max_rows);

    // Logits [rows][vocabulary] of the wanted tokens, or their normed hidden states [rows][dim].
    const float* logits(const Step& step);
    const float* hidden(const Step& step);
    // After an adapter came: room for its inner values.
    void fit_adapters();

    const std::size_t max_tokens, max_rows;

private:
    // One member's own memory.
    struct alignas(64) Member {
        float* tile[3] = {nullptr, nullptr, nullptr};  // outputs of products on their way
        ActivationBuffer own;                      // inputs, where tokens are few
        std::uint64_t made = 0;                    // the number of the input that stands there
        float* attend_scratch = nullptr;
        float* queries = nullptr;
        std::int32_t* first = nullptr;
        std::int32_t* last = nullptr;
        Mapping partial;                           // splits of one item
    };
    // Panels [panel, panel_end) of tokens [token, token_end).
    struct Piece {
        std::size_t panel, panel_end, token, token_end;
    };
    // How products of one input are cut into pieces: rows into runs of panels, tokens into runs that stay in the cache.
    struct Cut {
        std::size_t panels, chunk, chunks, tokens, tile, items;

        Cut() = default;
        Cut(const Matrix& matrix, std::size_t tokens, std::size_t members, std::size_t matrices);
        Piece piece(std::size_t item) const;
    };
    // `open` gives the number of items, `item` does one; both find their layer in index_ and layer_.
    struct Phase {
        std::size_t layer;
        std::size_t (*open)(Forward& self);
        void (*item)(Forward& self, Member& me, std::size_t item);
    };
    // What a product reads: float32 columns, written by `fill` for one token, and from them the forms.
    struct Input {
        std::uint64_t number = 0;                  // through all steps
        std::size_t columns = 0, tokens = 0;
        unsigned forms = 0;
        bool few = false;                          // each member makes its own
        void (*fill)(const Forward& self, std::size_t token, float* out) = nullptr;
    };

    // The list of phases, made once.
    void list_attention(std::size_t layer);
    void list_feed_forward(std::size_t layer);
    void list_mixture(std::size_t layer);
    void list_head();
    void list(std::size_t layer, decltype(Phase::open) begin, decltype(Phase::item) task) {
        phases_.push_back({layer, begin, task});
    }
    // A phase that makes the input that `begin` describes, where members do not make it for themselves.
    void list_input(std::size_t layer, decltype(Phase::open) begin);

    std::size_t open(std::size_t phase) override;
    void item(std::size_t member, std::size_t phase, std::size_t item) override;

    void run(const Step& step, bool want_logits);
    void plan_attention(AttentionPlan& plan, std::int32_t chunk);
    const AttentionPlan& plan() const { return layer_->plan.chunk > 0 ? chunked_ : full_; }

    std::size_t begin_input(unsigned forms, std::size_t columns, std::size_t tokens, bool few,
                            decltype(Input::fill) fill);
    void make_input(const ActivationBuffer& buffer, std::size_t token);
    // Only for who holds an item of a phase that reads the input: what it is made from may change afterwards.
    Activations input(Member& me);
    float* x(std::size_t token) const { return x_ + token * dim_stride_; }

    void embed(std::size_t token);
    void norm_wanted(std::size_t row, float* out) const;
    void query_key_value(Member& me, std::size_t item);
    void store(std::size_t token, std::size_t sequence, std::size_t kv_head);
    void attend(Member& me, const TileItem& item);
    void merge(std::size_t token, float* out) const;
    void route();
    // Items of a mixture's products: a run of one expert's rows, for all its tokens.
    std::size_t cut_experts(const Matrix& matrix);
    template <typename Task>
    void for_expert(std::size_t item, const Task& task);

    void gated(Member& me, const Matrix& gate, const Matrix& up, const Matrix& down, const Activations& input,
               const Piece& piece, const ActivationBuffer& output, bool adapted);
    void add_product(Member& me, const Matrix& matrix, const Activations& input, const Piece& piece, Role role);
    // The two halves of an adapter: A x of some tokens into inner_, and scaling * B of that onto a product's output.
    std::size_t lower_items(std::size_t roles) const;
    void lower(Role role, std::size_t run, const Activations& input);
    void raise(Member& me, Role role, const Piece& piece, float* out, std::size_t stride);

    const std::int32_t* table(std::size_t sequence) const { return step_->blocks + sequence * step_->table_width; }

    Model& model_;
    const Kernels& kernels_;
    Mapping memory_, partial_memory_, inner_memory_;
    std::vector<Member> members_;
    std::vector<Phase> phases_;

    // Of the step that runs.
    const Step* step_ = nullptr;
    bool want_logits_ = false;
    bool stored_by_items_ = false;  // keys are stored by the attention items themselves
    std::vector<std::uint32_t> sequence_of_token_;
    AttentionPlan full_, chunked_;
    // Of the phase that is open.
    std::size_t index_ = 0;
    const Layer* layer_ = nullptr;
    Cut cuts_[3];
    Input made_;
    float *partial_maximum_ = nullptr, *partial_sum_ = nullptr, *partial_values_ = nullptr;

    float* x_ = nullptr;                   // [tokens][dim_stride]
    float *q_ = nullptr, *k_ = nullptr, *v_ = nullptr;
    float* attended_ = nullptr;            // [tokens][heads * head_dim]
    float *cosines_ = nullptr, *sines_ = nullptr;  // [tokens][head_dim / 2]
    ActivationBuffer input_, hidden_, expert_input_, expert_hidden_;
    float *router_logits_ = nullptr, *expert_out_ = nullptr;
    float *logits_ = nullptr, *padded_logits_ = nullptr, *last_hidden_ = nullptr;
    float* inner_ = nullptr;               // [3][tokens][inner_stride]
    std::size_t inner_stride_ = 0;
    std::size_t dim_stride_, q_stride_, kv_stride_, tile_rows_;

    // Of the mixture layer that runs: each token's experts, sorted by expert.
    struct Slot {
        std::uint32_t token, expert;
        float score;
    };
    struct ExpertRun {
        std::uint32_t expert, begin, end;  // slots
    };
    std::vector<Slot> slots_;
    std::vector<std::uint32_t> slots_of_token_;  // [tokens][top_k] in rising order of expert
    std::vector<ExpertRun> expert_runs_;
};

// Inputs of so few tokens are made by every member for itself: that takes less time than a phase more.
constexpr std::size_t kFewTokens = 8;

}  // namespace qafila
