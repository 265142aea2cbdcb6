// One step of the forward pass: every member of the team runs the same program, with barriers between its phases.
//
// Work is handed out through one counter a phase, in pieces of panels, tokens or attention tiles, so that a slow
// processor takes fewer pieces. No number depends on who computed it, or on how the step was cut: activations of a
// token are made from that token alone, products are cut by rows and tokens only, attention by the absolute position.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
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

// Counters lie a cache line apart.
constexpr std::size_t kCounterStride = 64 / sizeof(std::size_t);

class Forward {
public:
    Forward(Model& model, std::size_t max_tokens, std::size_t max_rows);

    // Logits [rows][vocabulary] of the wanted tokens, or their normed hidden states [rows][dim].
    const float* logits(const Step& step);
    const float* hidden(const Step& step);
    // After an adapter came: room for its inner values.
    void fit_adapters();

    const std::size_t max_tokens, max_rows;

private:
    // One member's own place in the program and its own memory.
    struct alignas(64) Member {
        std::size_t index = 0;
        std::size_t phase = 0;
        float* tile[3] = {nullptr, nullptr, nullptr};  // outputs of products on their way
        ActivationBuffer own;                      // inputs, where tokens are few
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

        Cut(const Matrix& matrix, std::size_t tokens, std::size_t members, std::size_t matrices);
        Piece piece(std::size_t item) const;
    };

    void run(const Step& step, bool want_logits);
    void plan_attention(AttentionPlan& plan, std::int32_t chunk);
    void program(Member& me);

    template <typename Task>
    void share(Member& me, std::size_t items, const Task& task);
    void barrier(const Member& me) { model_.team.barrier(me.index); }
    template <typename Fill>
    Activations prepare(Member& me, unsigned forms, std::size_t columns, std::size_t tokens, const Fill& fill);
    float* x(std::size_t token) const { return x_ + token * dim_stride_; }

    void begin(Member& me);
    void attention(Member& me, std::size_t index, const Layer& layer);
    void store(std::size_t index, const Layer& layer, std::size_t token, std::size_t sequence, std::size_t kv_head);
    void attend(Member& me, std::size_t index, const Layer& layer, const AttentionPlan& plan, const TileItem& item);
    void merge(const AttentionPlan& plan, std::size_t token, float* out) const;
    void feed_forward(Member& me, std::size_t index, const Layer& layer);
    void mixture(Member& me, const Layer& layer, const Activations& normed);
    void route(const Layer& layer);
    void finish(Member& me);

    void gated(Member& me, const Matrix& gate, const Matrix& up, const Matrix& down, const Activations& input,
               const Piece& piece, const ActivationBuffer& output, std::size_t layer);
    void add_product(Member& me, const Matrix& matrix, const Activations& input, const Piece& piece,
                     std::size_t layer, Role role);
    // The two halves of an adapter: A x of all tokens into inner_, and scaling * B of that onto a product's output.
    void lower(Member& me, std::size_t layer, std::initializer_list<Role> roles, const Activations& input);
    void raise(Member& me, std::size_t layer, Role role, const Piece& piece, float* out, std::size_t stride);

    const std::int32_t* table(std::size_t sequence) const { return step_->blocks + sequence * step_->table_width; }

    Model& model_;
    const Kernels& kernels_;
    Mapping memory_, partial_memory_, inner_memory_;
    std::vector<Member> members_;
    std::unique_ptr<std::atomic<std::size_t>[]> counters_;  // a cache line each
    std::size_t counter_count_ = 0;

    // Of the step that runs.
    const Step* step_ = nullptr;
    bool want_logits_ = false;
    bool stored_by_items_ = false;  // keys are stored by the attention items themselves
    std::vector<std::uint32_t> sequence_of_token_;
    AttentionPlan full_, chunked_;
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

    // Of the mixture layer that runs: each token's experts, sorted by expert. Written by the first member.
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

// Inputs of so few tokens are made by every member for itself: that takes less time than meeting.
constexpr std::size_t kFewTokens = 8;

template <typename Task>
void Forward::share(Member& me, std::size_t items, const Task& task) {
    std::atomic<std::size_t>& counter = counters_[me.phase++ * kCounterStride];
    for (;;) {
        const std::size_t item = counter.fetch_add(1, std::memory_order_relaxed);
        if (item >= items) return;
        task(item);
    }
}

// A product's input, `fill(token, row)` writing a token's float32 columns; good until the next call.
template <typename Fill>
Activations Forward::prepare(Member& me, unsigned forms, std::size_t columns, std::size_t tokens, const Fill& fill) {
    const bool few = tokens <= kFewTokens;
    const ActivationBuffer& buffer = few ? me.own : input_;
    const std::size_t stride = ActivationBuffer::stride(columns);
    const auto make = [&](std::size_t token) {
        fill(token, buffer.values + token * stride);
        buffer.encode(kernels_, forms, columns, tokens, token, 0, columns);
    };
    if (few) {
        for (std::size_t token = 0; token < tokens; ++token) make(token);
        ++me.phase;
    } else {
        share(me, tokens, make);
        barrier(me);
    }
    return buffer.view(columns, tokens);
}

}  // namespace qafila
