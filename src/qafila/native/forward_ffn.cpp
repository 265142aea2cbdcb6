// The feed-forward half of a layer, dense or a mixture of experts, and what both halves share.

#include <algorithm>
#include <cmath>

#include "forward.h"

namespace qafila {

void Forward::list_feed_forward(std::size_t layer) {
    list_input(layer, [](Forward& self) {
        const Layer& of = *self.layer_;
        unsigned forms = form_of(of.matrices[kGate].type) | form_of(of.matrices[kUp].type);
        if (of.plan.experts > 0) forms |= form_of(of.matrices[kRouter].type);
        // A mixture reads it again when x has changed.
        const bool few = self.step_->tokens <= kFewTokens && of.plan.experts == 0;
        return self.begin_input(forms, self.model_.shape.dim, self.step_->tokens, few,
                                [](const Forward& from, std::size_t token, float* out) {
                                    from.kernels_.rms_norm(from.x(token), from.layer_->ffn_norm, from.model_.shape.dim,
                                                           from.model_.shape.eps, out);
                                });
    });
    list(layer, [](Forward& self) { return self.lower_items(2); },
         [](Forward& self, Member& me, std::size_t item) {
             self.lower(item % 2 == 0 ? kGate : kUp, item / 2, self.input(me));
         });
    list(layer,
         [](Forward& self) {
             self.cuts_[0] = Cut(self.layer_->matrices[kGate], self.step_->tokens, self.members_.size(), 1);
             return self.cuts_[0].items;
         },
         [](Forward& self, Member& me, std::size_t item) {
             const auto& matrices = self.layer_->matrices;
             self.gated(me, matrices[kGate], matrices[kUp], matrices[kDown], self.input(me), self.cuts_[0].piece(item),
                        self.hidden_, self.step_->adapters != nullptr);
         });
    list(layer, [](Forward& self) { return self.lower_items(1); },
         [](Forward& self, Member&, std::size_t item) {
             self.lower(kDown, item, self.hidden_.view(self.layer_->plan.ffn, self.step_->tokens));
         });
    list(layer,
         [](Forward& self) {
             const Layer& of = *self.layer_;
             self.cuts_[0] = Cut(of.matrices[kDown], self.step_->tokens, self.members_.size(), 1);
             if (of.plan.experts == 0) return self.cuts_[0].items;
             self.cuts_[1] = Cut(of.matrices[kRouter], self.step_->tokens, self.members_.size(), 1);
             return self.cuts_[0].items + self.cuts_[1].items;
         },
         [](Forward& self, Member& me, std::size_t item) {
             const Layer& of = *self.layer_;
             if (item < self.cuts_[0].items) {
                 self.add_product(me, of.matrices[kDown], self.hidden_.view(of.plan.ffn, self.step_->tokens),
                                  self.cuts_[0].piece(item), kDown);
                 return;
             }
             const Matrix& router = of.matrices[kRouter];
             const Piece piece = self.cuts_[1].piece(item - self.cuts_[0].items);
             self.kernels_.product[static_cast<int>(router.type)](router.panels, piece.panel, piece.panel_end,
                                                                  self.input(me), piece.token, piece.token_end,
                                                                  self.router_logits_,
                                                                  round_up(router.rows, kPanelRows));
         });
    if (model_.layers[layer].plan.experts > 0) list_mixture(layer);
}

// silu(gate) * up of some rows, in the forms that `down` reads.
void Forward::gated(Member& me, const Matrix& gate, const Matrix& up, const Matrix& down, const Activations& input,
                    const Piece& piece, const ActivationBuffer& output, bool adapted) {
    const std::size_t row = piece.panel * kPanelRows, row_end = std::min(gate.rows, piece.panel_end * kPanelRows);
    const std::size_t stride = (piece.panel_end - piece.panel) * kPanelRows;
    const std::size_t origin = piece.token * stride + row;
    // Products number tokens and rows through the whole matrix; the tile holds this piece of it.
    float *gates = me.tile[0] - origin, *ups = me.tile[1] - origin;
    kernels_.product[static_cast<int>(gate.type)](gate.panels, piece.panel, piece.panel_end, input, piece.token,
                                                  piece.token_end, gates, stride);
    kernels_.product[static_cast<int>(up.type)](up.panels, piece.panel, piece.panel_end, input, piece.token,
                                                piece.token_end, ups, stride);
    if (adapted) {
        raise(me, kGate, piece, gates, stride);
        raise(me, kUp, piece, ups, stride);
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
                          Role role) {
    const std::size_t row = piece.panel * kPanelRows, row_end = std::min(matrix.rows, piece.panel_end * kPanelRows);
    const std::size_t stride = (piece.panel_end - piece.panel) * kPanelRows;
    float* out = me.tile[0] - (piece.token * stride + row);
    kernels_.product[static_cast<int>(matrix.type)](matrix.panels, piece.panel, piece.panel_end, input, piece.token,
                                                    piece.token_end, out, stride);
    if (step_->adapters != nullptr) raise(me, role, piece, out, stride);
    for (std::size_t token = piece.token; token < piece.token_end; ++token)
        kernels_.add(out + token * stride + row, row_end - row, x(token) + row);
}

// Adds the routed experts to x, which has the shared one by then, in rising order of expert.
void Forward::list_mixture(std::size_t layer) {
    list(layer, [](Forward&) { return std::size_t{1}; }, [](Forward& self, Member&, std::size_t) { self.route(); });
    list(layer, [](Forward& self) { return self.step_->tokens * self.layer_->plan.top_k; },
         [](Forward& self, Member& me, std::size_t slot) {
             const Layer& of = *self.layer_;
             const std::size_t dim = self.model_.shape.dim, slots = self.step_->tokens * of.plan.top_k;
             const Activations normed = self.input(me);
             const unsigned forms =
                 form_of(of.experts[kExpertGate][0].type) | form_of(of.experts[kExpertUp][0].type);
             const float* source = normed.values + self.slots_[slot].token * normed.stride;
             float* target = self.expert_input_.values + slot * normed.stride;
             for (std::size_t i = 0; i < dim; ++i) target[i] = source[i] * self.slots_[slot].score;
             self.expert_input_.encode(self.kernels_, forms, dim, slots, slot, 0, dim);
         });
    list(layer, [](Forward& self) { return self.cut_experts(self.layer_->experts[kExpertGate][0]); },
         [](Forward& self, Member& me, std::size_t item) {
             const auto& experts = self.layer_->experts;
             const std::size_t slots = self.step_->tokens * self.layer_->plan.top_k;
             const Activations input = self.expert_input_.view(self.model_.shape.dim, slots);
             self.for_expert(item, [&](std::size_t expert, const Piece& piece) {
                 self.gated(me, experts[kExpertGate][expert], experts[kExpertUp][expert], experts[kExpertDown][expert],
                            input, piece, self.expert_hidden_, false);
             });
         });
    list(layer, [](Forward& self) { return self.cut_experts(self.layer_->experts[kExpertDown][0]); },
         [](Forward& self, Member&, std::size_t item) {
             const std::size_t slots = self.step_->tokens * self.layer_->plan.top_k;
             const Activations hidden = self.expert_hidden_.view(self.layer_->plan.ffn, slots);
             self.for_expert(item, [&](std::size_t expert, const Piece& piece) {
                 const Matrix& matrix = self.layer_->experts[kExpertDown][expert];
                 self.kernels_.product[static_cast<int>(matrix.type)](matrix.panels, piece.panel, piece.panel_end,
                                                                      hidden, piece.token, piece.token_end,
                                                                      self.expert_out_, self.dim_stride_);
             });
         });
    list(layer, [](Forward& self) { return self.step_->tokens; },
         [](Forward& self, Member&, std::size_t token) {
             const std::size_t top_k = self.layer_->plan.top_k;
             for (std::size_t i = 0; i < top_k; ++i)
                 self.kernels_.add(self.expert_out_ + self.slots_of_token_[token * top_k + i] * self.dim_stride_,
                                   self.model_.shape.dim, self.x(token));
         });
}

std::size_t Forward::cut_experts(const Matrix& matrix) {
    cuts_[0] = Cut(matrix, step_->tokens * layer_->plan.top_k, members_.size(), 1);
    return expert_runs_.size() * cuts_[0].chunks;
}

template <typename Task>
void Forward::for_expert(std::size_t item, const Task& task) {
    const Cut& cut = cuts_[0];
    const ExpertRun& run = expert_runs_[item / cut.chunks];
    Piece piece = cut.piece(item % cut.chunks);
    for (piece.token = run.begin; piece.token < run.end; piece.token = piece.token_end) {
        piece.token_end = std::min<std::size_t>(run.end, piece.token + cut.tile);
        task(run.expert, piece);
    }
}

// Chooses each token's experts: the largest logits (of equal ones the first), then a sigmoid.
void Forward::route() {
    const Layer& layer = *layer_;
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
