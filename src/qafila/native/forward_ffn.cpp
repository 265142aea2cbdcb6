// The feed-forward half of a layer, dense or a mixture of experts, and what both halves share.

#include <algorithm>
#include <cmath>

#include "forward.h"

namespace qafila {

void Forward::feed_forward(Member& me, std::size_t index, const Layer& layer) {
    const Shape& shape = model_.shape;
    const std::size_t tokens = step_->tokens;
    const Matrix &gate = layer.matrices[kGate], &up = layer.matrices[kUp], &down = layer.matrices[kDown];
    unsigned forms = form_of(gate.type) | form_of(up.type);
    if (layer.plan.experts > 0) forms |= form_of(layer.matrices[kRouter].type);
    const Activations normed = prepare(me, forms, shape.dim, tokens, [&](std::size_t token, float* out) {
        kernels_.rms_norm(x(token), layer.ffn_norm, shape.dim, shape.eps, out);
    });
    if (step_->adapters != nullptr) lower(me, index, {kGate, kUp}, normed);
    const Cut wide(gate, tokens, members_.size(), 1);
    share(me, wide.items,
          [&](std::size_t item) { gated(me, gate, up, down, normed, wide.piece(item), hidden_, index); });
    barrier(me);
    const Activations hidden = hidden_.view(layer.plan.ffn, tokens);
    if (step_->adapters != nullptr) lower(me, index, {kDown}, hidden);
    const Cut narrow(down, tokens, members_.size(), 1);
    share(me, narrow.items,
          [&](std::size_t item) { add_product(me, down, hidden, narrow.piece(item), index, kDown); });
    if (layer.plan.experts > 0) mixture(me, layer, normed);
    barrier(me);
}

// silu(gate) * up of some rows, in the forms that `down` reads. `layer` is beyond the last one for experts.
void Forward::gated(Member& me, const Matrix& gate, const Matrix& up, const Matrix& down, const Activations& input,
                    const Piece& piece, const ActivationBuffer& output, std::size_t layer) {
    const std::size_t row = piece.panel * kPanelRows, row_end = std::min(gate.rows, piece.panel_end * kPanelRows);
    const std::size_t stride = (piece.panel_end - piece.panel) * kPanelRows;
    const std::size_t origin = piece.token * stride + row;
    // Products number tokens and rows through the whole matrix; the tile holds this piece of it.
    float *gates = me.tile[0] - origin, *ups = me.tile[1] - origin;
    kernels_.product[static_cast<int>(gate.type)](gate.panels, piece.panel, piece.panel_end, input, piece.token,
                                                  piece.token_end, gates, stride);
    kernels_.product[static_cast<int>(up.type)](up.panels, piece.panel, piece.panel_end, input, piece.token,
                                                piece.token_end, ups, stride);
    if (layer < model_.layers.size() && step_->adapters != nullptr) {
        raise(me, layer, kGate, piece, gates, stride);
        raise(me, layer, kUp, piece, ups, stride);
    }
    const unsigned forms = form_of(down.type);
    const std::size_t width = ActivationBuffer::stride(gate.rows);
    for (std::size_t token = piece.token; token < piece.token_end; ++token) {
        const std::size_t at = token * stride + row;
        kernels_.silu_mul(gates + at, ups + at, row_end - row, output.values + token * width + row);
        output.encode(kernels_, forms, gate.rows, input.tokens, token, row, row_end);
    }
}

// x += W input, some rows.
void Forward::add_product(Member& me, const Matrix& matrix, const Activations& input, const Piece& piece,
                          std::size_t layer, Role role) {
    const std::size_t row = piece.panel * kPanelRows, row_end = std::min(matrix.rows, piece.panel_end * kPanelRows);
    const std::size_t stride = (piece.panel_end - piece.panel) * kPanelRows;
    float* out = me.tile[0] - (piece.token * stride + row);
    kernels_.product[static_cast<int>(matrix.type)](matrix.panels, piece.panel, piece.panel_end, input, piece.token,
                                                    piece.token_end, out, stride);
    if (step_->adapters != nullptr) raise(me, layer, role, piece, out, stride);
    for (std::size_t token = piece.token; token < piece.token_end; ++token)
        kernels_.add(out + token * stride + row, row_end - row, x(token) + row);
}

// Adds the routed experts to x, which has the shared one by then, in rising order of expert.
void Forward::mixture(Member& me, const Layer& layer, const Activations& normed) {
    const std::size_t tokens = step_->tokens, dim = model_.shape.dim;
    const Matrix& router = layer.matrices[kRouter];
    const Cut routing(router, tokens, members_.size(), 1);
    share(me, routing.items, [&](std::size_t item) {
        const Piece piece = routing.piece(item);
        kernels_.product[static_cast<int>(router.type)](router.panels, piece.panel, piece.panel_end, normed,
                                                        piece.token, piece.token_end, router_logits_,
                                                        round_up(router.rows, kPanelRows));
    });
    barrier(me);
    if (me.index == 0) route(layer);
    barrier(me);

    const std::size_t slots = tokens * layer.plan.top_k;
    const Matrix &gate = layer.experts[kExpertGate][0], &down = layer.experts[kExpertDown][0];
    const unsigned forms = form_of(gate.type) | form_of(layer.experts[kExpertUp][0].type);
    share(me, slots, [&](std::size_t slot) {
        const float* source = normed.values + slots_[slot].token * normed.stride;
        float* target = expert_input_.values + slot * normed.stride;
        for (std::size_t i = 0; i < dim; ++i) target[i] = source[i] * slots_[slot].score;
        expert_input_.encode(kernels_, forms, dim, slots, slot, 0, dim);
    });
    barrier(me);

    const Activations input = expert_input_.view(dim, slots), hidden = expert_hidden_.view(layer.plan.ffn, slots);
    // An item is a run of one expert's rows, for all its tokens.
    const auto each = [&](const Matrix& shape, const auto& task) {
        const Cut cut(shape, slots, members_.size(), 1);
        share(me, expert_runs_.size() * cut.chunks, [&](std::size_t item) {
            const ExpertRun& run = expert_runs_[item / cut.chunks];
            Piece piece = cut.piece(item % cut.chunks);
            for (piece.token = run.begin; piece.token < run.end; piece.token = piece.token_end) {
                piece.token_end = std::min<std::size_t>(run.end, piece.token + cut.tile);
                task(run.expert, piece);
            }
        });
        barrier(me);
    };
    each(gate, [&](std::size_t expert, const Piece& piece) {
        gated(me, layer.experts[kExpertGate][expert], layer.experts[kExpertUp][expert],
              layer.experts[kExpertDown][expert], input, piece, expert_hidden_, model_.layers.size());
    });
    each(down, [&](std::size_t expert, const Piece& piece) {
        const Matrix& matrix = layer.experts[kExpertDown][expert];
        kernels_.product[static_cast<int>(matrix.type)](matrix.panels, piece.panel, piece.panel_end, hidden,
                                                        piece.token, piece.token_end, expert_out_, dim_stride_);
    });
    share(me, tokens, [&](std::size_t token) {
        for (std::size_t i = 0; i < layer.plan.top_k; ++i)
            kernels_.add(expert_out_ + slots_of_token_[token * layer.plan.top_k + i] * dim_stride_, dim, x(token));
    });
}

// Chooses each token's experts: the largest logits (of equal ones the first), then a sigmoid.
void Forward::route(const Layer& layer) {
    const std::size_t experts = layer.plan.experts, top_k = layer.plan.top_k, tokens = step_->tokens;
    const std::size_t stride = round_up(experts, kPanelRows);
    std::vector<std::uint32_t> chosen(tokens * top_k), count(experts + 1);
    std::vector<bool> taken(experts);
    for (std::size_t token = 0; token < tokens; ++token) {
        const float* logits = router_logits_ + token * stride;
        taken.assign(experts, false);
        for (std::size_t k = 0; k < top_k; ++k) {
            std::size_t best = experts;
            for (std::size_t e = 0; e < experts; ++e)
                if (!taken[e] && (best == experts || logits[e] > logits[best])) best = e;
            taken[best] = true;
        }
        std::size_t k = 0;
        for (std::size_t e = 0; e < experts; ++e) {
            if (!taken[e]) continue;
            chosen[token * top_k + k++] = static_cast<std::uint32_t>(e);
            ++count[e + 1];
        }
    }
    expert_runs_.clear();
    for (std::size_t e = 0; e < experts; ++e) {
        count[e + 1] += count[e];
        if (count[e + 1] > count[e]) expert_runs_.push_back({static_cast<std::uint32_t>(e), count[e], count[e + 1]});
    }
    for (std::size_t token = 0; token < tokens; ++token)
        for (std::size_t k = 0; k < top_k; ++k) {
            const std::uint32_t expert = chosen[token * top_k + k], slot = count[expert]++;
            const float score = 1.0F / (1.0F + std::exp(-router_logits_[token * stride + expert]));
            slots_[slot] = {static_cast<std::uint32_t>(token), expert, score};
            slots_of_token_[token * top_k + k] = slot;
        }
}

}  // namespace qafila
