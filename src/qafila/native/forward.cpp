#include "forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace qafila {
namespace {

// A product's output on its way, and its input, stay in a core's own cache.
constexpr std::size_t kTileFloats = std::size_t{1} << 15;
constexpr std::size_t kInputBytes = std::size_t{1} << 19;
constexpr std::size_t kWeightBytes = std::size_t{1} << 16;
// Query rows of an attention item.
constexpr std::size_t kQueryRows = 96;
// Partial results, rows times splits: of one item, and of all tiles together that are merged later.
constexpr std::size_t kPartialRows = std::size_t{1} << 13;
constexpr std::size_t kApartRows = std::size_t{1} << 16;

}  // namespace

Forward::Cut::Cut(const Matrix& matrix, std::size_t tokens_, std::size_t members, std::size_t matrices)
    : panels(panel_count(matrix.rows)), tokens(tokens_) {
    const std::size_t fitting = std::max<std::size_t>(16, kInputBytes / matrix.columns / 16 * 16);
    tile = std::min({tokens, fitting, std::size_t{256}});
    // Pieces end with whole blocks of 32 rows, because the next product's input may be quantised piece by piece.
    const std::size_t pairs = (panels + 1) / 2;
    const std::size_t fair = pairs * matrices / (members * 6);
    const std::size_t room = kTileFloats / (2 * kPanelRows * tile);
    const std::size_t weights = kWeightBytes / (2 * matrix.panel_size());
    chunk = 2 * std::max<std::size_t>(1, std::min({fair, room, std::max<std::size_t>(1, weights)}));
    chunks = (panels + chunk - 1) / chunk;
    items = chunks * ((tokens + tile - 1) / tile);
}

Forward::Piece Forward::Cut::piece(std::size_t item) const {
    const std::size_t panel = item % chunks * chunk, token = item / chunks * tile;
    return {panel, std::min(panels, panel + chunk), token, std::min(tokens, token + tile)};
}

Forward::Forward(Model& model, std::size_t max_tokens_, std::size_t max_rows_)
    : max_tokens(max_tokens_), max_rows(max_rows_), model_(model), kernels_(model.kernels),
      members_(model.team.size()) {
    const Shape& shape = model.shape;
    const std::size_t dim = shape.dim, attended = shape.heads * shape.head_dim;
    dim_stride_ = round_up(dim, kPanelRows);
    q_stride_ = round_up(attended, kPanelRows);
    kv_stride_ = round_up(shape.kv_heads * shape.head_dim, kPanelRows);
    std::size_t ffn = 0, hidden_tokens = max_tokens, slots = 0, experts = 0, slot_ffn = 0;
    unsigned forms = form_of(model.head.type), hidden_forms = kValuesOnly, slot_forms = kValuesOnly, slot_hidden = 0;
    for (const Layer& layer : model.layers) {
        ffn = std::max(ffn, layer.plan.ffn);
        for (std::size_t role = 0; role < kRoles; ++role)
            if (layer.matrices[role].type != WeightType::kCount)
                (role == kDown ? hidden_forms : forms) |= form_of(layer.matrices[role].type);
        if (layer.plan.experts == 0) continue;
        experts = std::max(experts, layer.plan.experts);
        slots = std::max(slots, max_tokens * layer.plan.top_k);
        slot_ffn = std::max(slot_ffn, layer.plan.ffn);
        for (const Matrix& matrix : layer.experts[kExpertGate]) slot_forms |= form_of(matrix.type);
        for (const Matrix& matrix : layer.experts[kExpertUp]) slot_forms |= form_of(matrix.type);
        for (const Matrix& matrix : layer.experts[kExpertDown]) slot_hidden |= form_of(matrix.type);
    }
    const std::size_t group = shape.heads / shape.kv_heads;
    tile_rows_ = std::max(kQueryRows, group);
    const std::size_t vocabulary = round_up(shape.vocabulary, kPanelRows);
    const std::size_t widest = std::max(dim, attended);
    float* table = nullptr;
    const auto place = [&](Layout layout) {
        layout.place(x_, max_tokens * dim_stride_);
        layout.place(q_, max_tokens * q_stride_);
        layout.place(k_, max_tokens * kv_stride_);
        layout.place(v_, max_tokens * kv_stride_);
        layout.place(attended_, max_tokens * attended);
        layout.place(table, max_tokens * shape.head_dim);
        input_.place(layout, widest, std::max(max_tokens, max_rows), forms);
        hidden_.place(layout, ffn, hidden_tokens, hidden_forms);
        expert_input_.place(layout, dim, slots, slot_forms);
        expert_hidden_.place(layout, slot_ffn, slots, slot_hidden);
        layout.place(router_logits_, experts > 0 ? max_tokens * round_up(experts, kPanelRows) : 0);
        layout.place(expert_out_, slots * dim_stride_);
        layout.place(padded_logits_, max_rows * vocabulary);
        layout.place(logits_, vocabulary != shape.vocabulary ? max_rows * shape.vocabulary : 0);
        layout.place(last_hidden_, max_rows * dim);
        for (Member& member : members_) {
            for (float*& tile : member.tile) layout.place(tile, kTileFloats);
            member.own.place(layout, widest, kFewTokens, forms);
            layout.place(member.attend_scratch, kAttendScratch);
            layout.place(member.queries, tile_rows_ * shape.head_dim);
            layout.place(member.first, tile_rows_);
            layout.place(member.last, tile_rows_);
        }
        return layout.bytes();
    };
    memory_ = Mapping(place(Layout(nullptr)));
    place(Layout(memory_.data()));
    cosines_ = table;
    sines_ = table + max_tokens * (shape.head_dim / 2);
    sequence_of_token_.resize(max_tokens);
    slots_.resize(slots);
    slots_of_token_.resize(slots);
    expert_runs_.reserve(experts);

    list(0, [](Forward& self) { return self.step_->tokens; },
         [](Forward& self, Member&, std::size_t token) { self.embed(token); });
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        list_attention(i);
        list_feed_forward(i);
    }
    list_head();
}

void Forward::fit_adapters() {
    const std::size_t stride = ActivationBuffer::stride(model_.max_rank());
    if (stride <= inner_stride_) return;
    inner_memory_ = Mapping(3 * max_tokens * stride * sizeof(float));
    inner_ = reinterpret_cast<float*>(inner_memory_.data());
    inner_stride_ = stride;
}

const float* Forward::logits(const Step& step) {
    run(step, true);
    const std::size_t vocabulary = model_.shape.vocabulary, padded = round_up(vocabulary, kPanelRows);
    if (padded == vocabulary) return padded_logits_;
    for (std::size_t row = 0; row < step.rows; ++row)
        std::memcpy(logits_ + row * vocabulary, padded_logits_ + row * padded, vocabulary * sizeof(float));
    return logits_;
}

const float* Forward::hidden(const Step& step) {
    run(step, false);
    return last_hidden_;
}

void Forward::run(const Step& step, bool want_logits) {
    step_ = &step;
    want_logits_ = want_logits;
    for (std::size_t s = 0; s < step.sequences; ++s)
        for (std::int32_t t = step.starts[s]; t < step.starts[s + 1]; ++t)
            sequence_of_token_[static_cast<std::size_t>(t)] = static_cast<std::uint32_t>(s);
    std::int32_t chunk = 0;
    bool some_full = false;
    for (const Layer& layer : model_.layers) {
        chunk = std::max(chunk, layer.plan.chunk);
        some_full = some_full || layer.plan.chunk == 0;
    }
    stored_by_items_ = true;
    if (some_full) plan_attention(full_, 0);
    if (chunk > 0) plan_attention(chunked_, chunk);
    const std::size_t rows = std::max(full_.partial_rows, chunked_.partial_rows);
    const std::size_t head_dim = model_.shape.head_dim;
    const std::size_t bytes = rows * (head_dim + 2) * sizeof(float) + 128;
    if (rows > 0 && partial_memory_.bytes() < bytes) partial_memory_ = Mapping(bytes * 2);
    if (rows > 0) {
        Layout layout(partial_memory_.data());
        layout.place(partial_values_, rows * head_dim);
        layout.place(partial_maximum_, rows);
        layout.place(partial_sum_, rows);
    }
    const std::size_t widest = std::max(full_.widest, chunked_.widest) * (head_dim + 2) * sizeof(float) + 128;
    for (Member& member : members_)
        if (member.partial.bytes() < widest) member.partial = Mapping(widest * 2);
    model_.team.run(*this);
    step_ = nullptr;
}

// Cuts every sequence's tokens into tiles, and these into items: a tile that is a large part of all the work by splits,
// the others whole.
void Forward::plan_attention(AttentionPlan& plan, std::int32_t chunk) {
    const Step& step = *step_;
    const Shape& shape = model_.shape;
    const std::size_t group = shape.heads / shape.kv_heads;
    plan.tiles.clear();
    plan.items.clear();
    plan.tile_of_token.resize(step.tokens);
    plan.partial_rows = plan.widest = 0;
    std::size_t work = 0;
    for (std::size_t s = 0; s < step.sequences; ++s) {
        const std::size_t end = static_cast<std::size_t>(step.starts[s + 1]);
        for (std::size_t t = static_cast<std::size_t>(step.starts[s]); t < end;) {
            const std::int32_t begin_position = step.positions[t];
            const std::int32_t first = chunk > 0 ? begin_position / chunk * chunk : 0;
            const std::size_t seen = static_cast<std::size_t>(begin_position - first) / kSplitTokens + 2;
            const std::size_t rows = std::min(tile_rows_, std::max<std::size_t>(1, kPartialRows / seen));
            const std::size_t count = std::clamp<std::size_t>(rows / group, 1, end - t);
            Tile tile{s, t, t + count, static_cast<std::size_t>(first) / kSplitTokens, 0, false, 0};
            const std::int32_t last = step.positions[t + count - 1];
            tile.split_end = static_cast<std::size_t>(last) / kSplitTokens + 1;
            for (std::size_t i = t; i < t + count; ++i)
                plan.tile_of_token[i] = static_cast<std::uint32_t>(plan.tiles.size());
            // The item of the last split can only store what itself alone reads.
            if (count != end - static_cast<std::size_t>(step.starts[s]) ||
                static_cast<std::size_t>(begin_position) / kSplitTokens + 1 != tile.split_end)
                stored_by_items_ = false;
            work += count * (tile.split_end - tile.split_begin) * shape.kv_heads;
            plan.tiles.push_back(tile);
            t += count;
        }
    }
    for (std::size_t i = 0; i < plan.tiles.size(); ++i) {
        Tile& tile = plan.tiles[i];
        const std::size_t splits = tile.split_end - tile.split_begin, rows = (tile.end - tile.begin) * group;
        tile.apart = splits > 1 && (tile.end - tile.begin) * splits * 8 * members_.size() > work &&
                     plan.partial_rows + rows * splits * shape.kv_heads <= kApartRows;
        if (tile.apart) {
            tile.partial = plan.partial_rows;
            plan.partial_rows += rows * splits * shape.kv_heads;
        } else {
            plan.widest = std::max(plan.widest, rows * splits);
        }
        for (std::size_t head = 0; head < shape.kv_heads; ++head)
            for (std::size_t split = 0; split < (tile.apart ? splits : 1); ++split)
                plan.items.push_back({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(head),
                                      static_cast<std::uint32_t>(tile.split_begin + split)});
    }
}

std::size_t Forward::open(std::size_t phase) {
    if (phase == phases_.size()) return kOver;
    index_ = phases_[phase].layer;
    layer_ = &model_.layers[index_];
    return phases_[phase].open(*this);
}

void Forward::item(std::size_t member, std::size_t phase, std::size_t item) {
    phases_[phase].item(*this, members_[member], item);
}

void Forward::list_input(std::size_t layer, decltype(Phase::open) begin) {
    list(layer, begin, [](Forward& self, Member&, std::size_t token) { self.make_input(self.input_, token); });
}

std::size_t Forward::begin_input(unsigned forms, std::size_t columns, std::size_t tokens, bool few,
                                 decltype(Input::fill) fill) {
    made_ = {made_.number + 1, columns, tokens, forms, few, fill};
    return few ? 0 : tokens;
}

void Forward::make_input(const ActivationBuffer& buffer, std::size_t token) {
    made_.fill(*this, token, buffer.values + token * ActivationBuffer::stride(made_.columns));
    buffer.encode(kernels_, made_.forms, made_.columns, made_.tokens, token, 0, made_.columns);
}

Activations Forward::input(Member& me) {
    if (!made_.few) return input_.view(made_.columns, made_.tokens);
    if (me.made != made_.number)
        for (std::size_t token = 0; token < made_.tokens; ++token) make_input(me.own, token);
    me.made = made_.number;
    return me.own.view(made_.columns, made_.tokens);
}

void Forward::embed(std::size_t token) {
    const std::size_t half = model_.shape.head_dim / 2;
    model_.embed(static_cast<std::size_t>(step_->ids[token]), x(token));
    const float position = static_cast<float>(step_->positions[token]);
    for (std::size_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position * model_.shape.inverse_frequencies[i]);
        cosines_[token * half + i] = static_cast<float>(std::cos(angle));
        sines_[token * half + i] = static_cast<float>(std::sin(angle));
    }
}

void Forward::norm_wanted(std::size_t row, float* out) const {
    kernels_.rms_norm(x(static_cast<std::size_t>(step_->wanted[row])), model_.final_norm, model_.shape.dim,
                      model_.shape.eps, out);
}

void Forward::list_head() {
    list_input(0, [](Forward& self) -> std::size_t {
        const std::size_t rows = self.step_->rows;
        return self.begin_input(form_of(self.model_.head.type), self.model_.shape.dim, rows,
                                rows <= kFewTokens || !self.want_logits_,
                                [](const Forward& of, std::size_t row, float* out) { of.norm_wanted(row, out); });
    });
    list(0,
         [](Forward& self) {
             // The embedding can have rows beyond the vocabulary.
             Matrix head = self.model_.head;
             head.rows = self.model_.shape.vocabulary;
             if (self.step_->rows == 0 || !self.want_logits_) return self.step_->rows;
             self.cuts_[0] = Cut(head, self.step_->rows, self.members_.size(), 1);
             return self.cuts_[0].items;
         },
         [](Forward& self, Member& me, std::size_t item) {
             const Shape& shape = self.model_.shape;
             if (!self.want_logits_) {
                 self.norm_wanted(item, self.last_hidden_ + item * shape.dim);
                 return;
             }
             const Matrix& head = self.model_.head;
             const Piece piece = self.cuts_[0].piece(item);
             self.kernels_.product[static_cast<int>(head.type)](head.panels, piece.panel, piece.panel_end,
                                                                self.input(me), piece.token, piece.token_end,
                                                                self.padded_logits_,
                                                                round_up(shape.vocabulary, kPanelRows));
         });
}

}  // namespace qafila
