// The attention half of a layer.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "forward.h"

namespace qafila {

void Forward::list_attention(std::size_t layer) {
    list_input(layer, [](Forward& self) {
        const auto& matrices = self.layer_->matrices;
        const unsigned forms =
            form_of(matrices[kQuery].type) | form_of(matrices[kKey].type) | form_of(matrices[kValue].type);
        return self.begin_input(forms, self.model_.shape.dim, self.step_->tokens, self.step_->tokens <= kFewTokens,
                                [](const Forward& of, std::size_t token, float* out) {
                                    of.kernels_.rms_norm(of.x(token), of.layer_->attention_norm, of.model_.shape.dim,
                                                         of.model_.shape.eps, out);
                                });
    });
    list(layer, [](Forward& self) { return self.lower_items(3); },
         [](Forward& self, Member& me, std::size_t item) {
             constexpr Role kInputs[] = {kQuery, kKey, kValue};
             self.lower(kInputs[item % 3], item / 3, self.input(me));
         });
    list(layer,
         [](Forward& self) {
             const auto& matrices = self.layer_->matrices;
             std::size_t items = 0;
             for (std::size_t i = 0; i < 3; ++i) {
                 self.cuts_[i] = Cut(matrices[kQuery + i], self.step_->tokens, self.members_.size(), i == 0 ? 2 : 4);
                 items += self.cuts_[i].items;
             }
             return items;
         },
         [](Forward& self, Member& me, std::size_t item) { self.query_key_value(me, item); });
    list(layer, [](Forward& self) { return self.stored_by_items_ ? 0 : self.step_->tokens; },
         [](Forward& self, Member&, std::size_t token) {
             for (std::size_t head = 0; head < self.model_.shape.kv_heads; ++head)
                 self.store(token, self.sequence_of_token_[token], head);
         });
    list(layer, [](Forward& self) { return self.plan().items.size(); },
         [](Forward& self, Member& me, std::size_t item) { self.attend(me, self.plan().items[item]); });
    list_input(layer, [](Forward& self) {
        const Matrix& output = self.layer_->matrices[kOutput];
        return self.begin_input(form_of(output.type), output.columns, self.step_->tokens,
                                self.step_->tokens <= kFewTokens,
                                [](const Forward& of, std::size_t token, float* out) { of.merge(token, out); });
    });
    list(layer, [](Forward& self) { return self.lower_items(1); },
         [](Forward& self, Member& me, std::size_t item) { self.lower(kOutput, item, self.input(me)); });
    list(layer,
         [](Forward& self) {
             self.cuts_[0] = Cut(self.layer_->matrices[kOutput], self.step_->tokens, self.members_.size(), 1);
             return self.cuts_[0].items;
         },
         [](Forward& self, Member& me, std::size_t item) {
             self.add_product(me, self.layer_->matrices[kOutput], self.input(me), self.cuts_[0].piece(item), kOutput);
         });
}

void Forward::query_key_value(Member& me, std::size_t item) {
    std::size_t which = 0;
    while (item >= cuts_[which].items) item -= cuts_[which++].items;
    const Matrix& matrix = layer_->matrices[kQuery + which];
    float* const out[] = {q_, k_, v_};
    const std::size_t stride = which == 0 ? q_stride_ : kv_stride_;
    const Piece piece = cuts_[which].piece(item);
    kernels_.product[static_cast<int>(matrix.type)](matrix.panels, piece.panel, piece.panel_end, input(me), piece.token,
                                                    piece.token_end, out[which], stride);
    if (step_->adapters != nullptr) raise(me, static_cast<Role>(kQuery + which), piece, out[which], stride);
}

// Turns one token's key of one head and puts it and its value into the cache.
void Forward::store(std::size_t token, std::size_t sequence, std::size_t kv_head) {
    const Layer& layer = *layer_;
    const Shape& shape = model_.shape;
    const std::size_t n = shape.head_dim, half = n / 2;
    float* key = k_ + token * kv_stride_ + kv_head * n;
    if (layer.plan.rotary)
        kernels_.rope(key, cosines_ + token * half, sines_ + token * half, n, shape.interleaved);
    if (layer.plan.qk_norm) kernels_.rms_norm(key, nullptr, n, shape.eps, key);
    const std::size_t position = static_cast<std::size_t>(step_->positions[token]);
    const std::size_t block = static_cast<std::size_t>(table(sequence)[position / kBlockTokens]);
    kernels_.store_kv(key, v_ + token * kv_stride_ + kv_head * n, n, position % kBlockTokens, model_.int8,
                      model_.cache_block(block) + model_.cache_offset(index_, kv_head));
}

void Forward::attend(Member& me, const TileItem& item) {
    const Shape& shape = model_.shape;
    const Layer& layer = *layer_;
    const AttentionPlan& plan = this->plan();
    const Tile& tile = plan.tiles[item.tile];
    const std::size_t n = shape.head_dim, half = n / 2, group = shape.heads / shape.kv_heads;
    const std::size_t count = tile.end - tile.begin, rows = count * group;
    const std::size_t splits = tile.split_end - tile.split_begin;
    const std::size_t split_begin = tile.apart ? item.split : tile.split_begin;
    const std::size_t split_end = tile.apart ? item.split + 1 : tile.split_end;
    if (stored_by_items_ && split_end == tile.split_end)
        for (std::size_t token = tile.begin; token < tile.end; ++token)
            store(token, tile.sequence, item.kv_head);

    const float factor = 1.0F / std::sqrt(static_cast<float>(n));
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t token = tile.begin + i;
        const std::int32_t position = step_->positions[token];
        const float* source = q_ + token * q_stride_ + item.kv_head * group * n;
        float* query = me.queries + i * group * n;
        std::memcpy(query, source, group * n * sizeof(float));
        for (std::size_t g = 0; g < group; ++g) {
            if (layer.plan.rotary)
                kernels_.rope(query + g * n, cosines_ + token * half, sines_ + token * half, n, shape.interleaved);
            if (layer.plan.qk_norm) kernels_.rms_norm(query + g * n, nullptr, n, shape.eps, query + g * n);
            me.first[i * group + g] = layer.plan.chunk > 0 ? position / layer.plan.chunk * layer.plan.chunk : 0;
            me.last[i * group + g] = position;
        }
        if (layer.plan.temperature) kernels_.scale(query, step_->query_scales[token], group * n);
        kernels_.scale(query, factor, group * n);
    }

    // Results of split s of this head: rows from `base` on; those of one row lie `rows` apart.
    float *maximum = partial_maximum_, *sum = partial_sum_, *values = partial_values_;
    std::size_t base = tile.partial + (item.kv_head * splits + (split_begin - tile.split_begin)) * rows;
    if (!tile.apart) {
        Layout layout(me.partial.data());
        layout.place(values, rows * splits * n);
        layout.place(maximum, rows * splits);
        layout.place(sum, rows * splits);
        base = 0;
    }
    // The blocks of one split of a tile's sequence, at one head's keys in them.
    const auto gather = [&](const Tile& of, std::size_t kv_head, std::size_t split, const void** pointers) {
        const std::int32_t* blocks = table(of.sequence);
        const std::size_t offset = model_.cache_offset(index_, kv_head), begin = split * kSplitTokens;
        const std::size_t seen = static_cast<std::size_t>(step_->positions[of.end - 1]) + 1;
        std::size_t count = 0;
        for (; count < kSplitTokens / kBlockTokens && begin + count * kBlockTokens < seen; ++count)
            pointers[count] =
                model_.cache_block(static_cast<std::size_t>(blocks[begin / kBlockTokens + count])) + offset;
        return count;
    };
    const void* pointers[kSplitTokens / kBlockTokens];
    const void* ahead[kSplitTokens / kBlockTokens];
    const std::size_t seen = static_cast<std::size_t>(step_->positions[tile.end - 1]) + 1;
    // What this member most likely does after this item: the team hands out neighbours together.
    const std::size_t next = static_cast<std::size_t>(&item - plan.items.data()) + 1;
    for (std::size_t split = split_begin; split < split_end; ++split, base += rows) {
        const std::size_t begin = split * kSplitTokens, end = std::min(seen, begin + kSplitTokens);
        gather(tile, item.kv_head, split, pointers);
        AttendArgs args{me.queries, me.first, me.last, rows, n, pointers, static_cast<std::int32_t>(begin),
                        static_cast<std::int32_t>(end), model_.int8, maximum + base, sum + base, values + base * n,
                        me.attend_scratch};
        if (split + 1 < split_end) {
            args.ahead_blocks = gather(tile, item.kv_head, split + 1, ahead);
        } else if (next < plan.items.size()) {
            const TileItem& then = plan.items[next];
            const Tile& of = plan.tiles[then.tile];
            args.ahead_blocks = gather(of, then.kv_head, of.apart ? then.split : of.split_begin, ahead);
        }
        if (args.ahead_blocks > 0) args.ahead = ahead;
        kernels_.attend(args);
    }
    if (tile.apart) return;
    for (std::size_t row = 0; row < rows; ++row)
        kernels_.merge(maximum + row, sum + row, values + row * n, splits, rows, n,
                       attended_ + ((tile.begin + row / group) * shape.heads + item.kv_head * group + row % group) * n);
}

// What one token attended to, all heads; merges the splits of a tile whose items did not.
void Forward::merge(std::size_t token, float* out) const {
    const Shape& shape = model_.shape;
    const AttentionPlan& plan = this->plan();
    const Tile& tile = plan.tiles[plan.tile_of_token[token]];
    const std::size_t n = shape.head_dim, group = shape.heads / shape.kv_heads;
    if (!tile.apart) {
        std::memcpy(out, attended_ + token * shape.heads * n, shape.heads * n * sizeof(float));
        return;
    }
    const std::size_t splits = tile.split_end - tile.split_begin, rows = (tile.end - tile.begin) * group;
    for (std::size_t head = 0; head < shape.heads; ++head) {
        const std::size_t row =
            tile.partial + head / group * splits * rows + (token - tile.begin) * group + head % group;
        kernels_.merge(partial_maximum_ + row, partial_sum_ + row, partial_values_ + row * n, splits, rows, n,
                       out + head * n);
    }
}

}  // namespace qafila
