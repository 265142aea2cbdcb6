#include "model.h"

#include <algorithm>
#include <stdexcept>

namespace qafila {

Model::Model(const Shape& shape_, const std::vector<LayerPlan>& plans, const Kernels& kernels_, std::size_t threads,
             std::vector<int> cpus)
    : shape(shape_), kernels(kernels_), team(threads, std::move(cpus)), layers(plans.size()) {
    for (std::size_t i = 0; i < plans.size(); ++i) {
        layers[i].plan = plans[i];
        for (std::vector<Matrix>& experts : layers[i].experts) experts.resize(plans[i].experts);
    }
}

Matrix& Model::declare(Matrix& matrix, WeightType type, std::size_t rows, std::size_t columns) {
    if (matrix.type != WeightType::kCount) throw std::invalid_argument("a matrix is declared twice");
    if (columns % block_columns(type) != 0) throw std::invalid_argument("rows are not whole blocks");
    matrix.type = type;
    matrix.rows = rows;
    matrix.columns = columns;
    declared_.push_back(&matrix);
    return matrix;
}

void Model::allocate_weights() {
    // Each matrix begins on a cache line; norms lie behind them all.
    std::size_t bytes = 0;
    for (const Matrix* matrix : declared_) bytes += round_up(matrix->bytes(), 64);
    const std::size_t norm_bytes = round_up(shape.dim * sizeof(float), 64);
    weights_ = Mapping(bytes + (2 * layers.size() + 1) * norm_bytes);
    std::uint8_t* at = weights_.data();
    for (Matrix* matrix : declared_) {
        matrix->panels = at;
        at += round_up(matrix->bytes(), 64);
    }
    const auto norm = [&at, norm_bytes] {
        float* const place = reinterpret_cast<float*>(at);
        at += norm_bytes;
        return place;
    };
    for (Layer& layer : layers) {
        layer.attention_norm = norm();
        layer.ffn_norm = norm();
    }
    final_norm = norm();
}

void Model::pack_rows(const Matrix& matrix, const std::uint8_t* rows, bool mapped) {
    // Pieces of about 256 KB: file pages are dropped soon after they were read.
    struct Packing final : Work {
        const Matrix& matrix;
        const std::uint8_t* rows;
        bool mapped;
        std::size_t panels, step, width;

        Packing(const Matrix& matrix_, const std::uint8_t* rows_, bool mapped_)
            : matrix(matrix_), rows(rows_), mapped(mapped_), panels(panel_count(matrix.rows)),
              step(std::max<std::size_t>(1, (std::size_t{1} << 18) / std::max<std::size_t>(1, matrix.panel_size()))),
              width(row_bytes(matrix.type, matrix.columns)) {}

        std::size_t open(std::size_t phase) override { return phase == 0 ? (panels + step - 1) / step : kOver; }
        void item(std::size_t, std::size_t, std::size_t item) override {
            const std::size_t begin = item * step, end = std::min(panels, begin + step);
            pack(matrix.type, rows, matrix.rows, matrix.columns, begin, end, matrix.panels);
            if (!mapped) return;
            // A vocabulary's rows all at once would be the most memory that a load ever takes.
            const std::size_t first = begin * kPanelRows, last = std::min(matrix.rows, end * kPanelRows);
            drop_pages(rows + first * width, (last - first) * width);
        }
    } work(matrix, rows, mapped);
    if (work.panels <= work.step)
        work.item(0, 0, 0);
    else
        team.run(work);
    // Pages that two pieces share, and those that came along with others.
    if (mapped) drop_pages(rows, matrix.rows * work.width);
}

void Model::allocate_cache(std::size_t count, bool as_int8) {
    int8 = as_int8;
    const std::size_t values = 2 * kBlockTokens * shape.head_dim;
    head_bytes = int8 ? values + 2 * kBlockTokens * sizeof(float) : values * sizeof(std::uint16_t);
    head_bytes = round_up(head_bytes, 64);
    block_bytes = head_bytes * shape.kv_heads * layers.size();
    cache_ = Mapping(block_bytes * count);
    blocks = count;
}

void Model::embed(std::size_t id, float* out) const {
    if (embedding == nullptr) {
        unpack_row(head.type, head.panels, head.columns, id, out);
        return;
    }
    const std::size_t count = shape.dim / embedding_format->elements;
    embedding_format->dequantise(embedding + id * count * embedding_format->bytes, out, count);
}

std::size_t Model::max_rank() const {
    std::size_t most = 0;
    for (const auto& [_, adapter] : adapters)
        for (const auto& layer : adapter->layers)
            for (const LowRank& one : layer) most = std::max(most, one.rank);
    return most;
}

}  // namespace qafila
