// Low-rank adapters, unmerged: A x after the product's input is there, scaling * B of that after its output.

#include <algorithm>

#include "forward.h"

namespace qafila {
namespace {

// Which of the three arrays of inner values a matrix uses; those with one input have arrays of their own.
std::size_t inner_place(Role role) {
    if (role == kKey || role == kUp) return 1;
    return role == kValue ? 2 : 0;
}

constexpr std::size_t kLowerTokens = 16;

}  // namespace

std::size_t Forward::lower_items(std::size_t roles) const {
    return step_->adapters == nullptr ? 0 : roles * ((step_->tokens + kLowerTokens - 1) / kLowerTokens);
}

void Forward::lower(Role role, std::size_t run, const Activations& input) {
    const std::size_t begin = run * kLowerTokens, end = std::min(step_->tokens, begin + kLowerTokens);
    float* inner = inner_ + inner_place(role) * max_tokens * inner_stride_;
    for (std::size_t token = begin, next = begin; token < end; token = next) {
        const std::size_t sequence = sequence_of_token_[token];
        next = std::min(end, static_cast<std::size_t>(step_->starts[sequence + 1]));
        const Adapter* adapter = step_->adapters[sequence];
        if (adapter == nullptr || adapter->layers[index_][role].rank == 0) continue;
        const Matrix& a = adapter->layers[index_][role].a;
        std::fill(inner + token * inner_stride_, inner + next * inner_stride_, 0.0F);
        kernels_.product[static_cast<int>(a.type)](a.panels, 0, panel_count(a.rows), input, token, next, inner,
                                                   inner_stride_);
    }
}

void Forward::raise(Member& me, Role role, const Piece& piece, float* out, std::size_t stride) {
    const std::size_t row = piece.panel * kPanelRows, rows = (piece.panel_end - piece.panel) * kPanelRows;
    for (std::size_t token = piece.token, next = token; token < piece.token_end; token = next) {
        const std::size_t sequence = sequence_of_token_[token];
        next = std::min(piece.token_end, static_cast<std::size_t>(step_->starts[sequence + 1]));
        const Adapter* adapter = step_->adapters[sequence];
        if (adapter == nullptr || adapter->layers[index_][role].rank == 0) continue;
        const LowRank& low = adapter->layers[index_][role];
        Activations inner{};
        inner.tokens = step_->tokens;
        inner.columns = low.rank;
        inner.stride = inner_stride_;
        inner.values = inner_ + inner_place(role) * max_tokens * inner_stride_;
        float* term = me.tile[2] - (token * rows + row);
        kernels_.product[static_cast<int>(low.b.type)](low.b.panels, piece.panel, piece.panel_end, inner, token, next,
                                                       term, rows);
        for (std::size_t t = token; t < next; ++t) {
            kernels_.scale(term + t * rows + row, low.scaling, rows);
            kernels_.add(term + t * rows + row, rows, out + t * stride + row);
        }
    }
}

}  // namespace qafila
