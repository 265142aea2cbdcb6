// The arithmetic of a forward pass as one table of functions, written once for each instruction set.
//
// Plain types only: every instruction set is a source file of its own, compiled with its own flags, and shares no inline
// function and no template instance with another (the linker may keep the wrong copy). Whoever uses a table knows no
// instruction set. Numbers that come out of one table are the same however the work was cut into pieces: a token's
// result never depends on the tokens, rows or threads beside it.
//
// Weights are repacked into panels of 16 rows (packing.h writes them, every instruction set reads the same bytes):
//
//   F32    [k][16 rows] f32                                         F16   [k][16 rows] u16
//   BF16   [k / 2][16 rows][2] u16 (an odd last column is zero)
//   Q8_0   a block of 32 columns: f16 d[16]; u8 q[8][16][4], q[g][r][i] = column 4g + i of row r, plus 128
//   Q4_0   f16 d[16]; u8 q[4][16][4]: low nibble column 4g + i, high nibble column 16 + 4g + i; value = nibble - 8
//   Q4_1   f16 d[16], m[16]; q as Q4_0; value = nibble * d + m
//   Q4_K   256 columns: f16 d[16], dmin[16]; u8 scale[8][16], min[8][16]; 8 sub-blocks of 32 columns, each q as Q4_0;
//          value = nibble * (d * scale) - dmin * min
//   Q5_K   as Q4_K, and each sub-block's q is followed by u8 high[8][8]: bit 4r + i of the little-endian 64-bit word g is
//          the fifth bit of column 4g + i of row r
//   Q6_K   256 columns: f16 d[16]; i8 scale[16][16] ([16 columns][row]); 8 sub-blocks of 32 columns, each q as Q4_0 (the
//          low four bits) and u8 high[2][16][4]: bits 2c, 2c + 1 of high[j][r][i] are the upper bits of column
//          4g + i with g = 4j + c; value = (six bits - 32) * (d * scale)
//
// The last panel of a matrix is filled up with zero rows; panels lie one after the other, 64-byte aligned in memory.
//
// Arithmetic: quantised weights multiply activations that are quantised to int8 in blocks of 32 along the columns. The
// integer dot product of a block is exact; then, block after block in rising order, a row's float accumulator takes
// fma(float(dot), d_weight * d_activation, acc) (dot less zero point times the sum of activations first, in integers) and,
// where there is a minimum, fma(m, d_activation * sum, acc). Q6_K does so for each half of a block. F32 and F16 weights
// multiply float32 activations, BF16 weights activations rounded to bfloat16; products are summed in float32, in an
// order fixed by the number of columns. Tables round alike, but where a processor has no fused multiply-add the
// portable one rounds twice.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qafila {

constexpr std::size_t kPanelRows = 16;
constexpr std::size_t kBlockColumns = 32;
// Tokens in one block of the KV cache, and positions that are attended to before partial results are merged.
constexpr std::size_t kBlockTokens = 16;
constexpr std::size_t kSplitTokens = 256;

enum class WeightType : int { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ5_K, kQ6_K, kCount };

// What a product reads, for `tokens` tokens of `columns` columns. The forms a weight type does not read may be null.
struct Activations {
    std::size_t tokens;    // of the buffers: the stride between blocks below
    std::size_t columns;   // a multiple of 32 for quantised weights
    std::size_t stride;    // elements from one token to the next in `values` and `rounded`; both are padded with zeros
    const float* values;             // [tokens][stride]          F32, F16
    const std::uint16_t* rounded;    // [tokens][stride]          BF16
    const std::int8_t* quants;       // [columns / 32][tokens][32]
    const float* scales;             // [columns / 32][tokens]
    const float* scaled_sums;        // [columns / 32][tokens]     scale * float(sum of 32)
    const std::int32_t* sums;        // [columns / 32][tokens]     sum of 32
    const std::int32_t* half_sums;   // [columns / 32][tokens][2]  sums of the first and the last 16
};

// out[t * out_stride + row] for rows of panels [panel_begin, panel_end), tokens [token_begin, token_end). Rows are
// numbered through the panels, so `out` has room for whole panels; all 16 rows of each are written.
using Product = void (*)(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                         std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride);

// Query rows that share one key/value head of one sequence, over the positions of one split. Row i sees positions
// first[i] to last[i]. Scores are q . k (q comes scaled); results are the maximum score, the sum of exp(score - maximum)
// and the unnormalised weighted sum of values; a row that sees nothing here gets -infinity, 0 and zeros.
// All scores of a split are computed, then its maximum, then exponentials and sums in rising position.
struct AttendArgs {
    const float* queries;             // [rows][head_dim]
    const std::int32_t* first;        // [rows]
    const std::int32_t* last;         // [rows]
    std::size_t rows;
    std::size_t head_dim;             // even, at most 512
    // One pointer for each block of 16 positions from `begin` on (a multiple of 256), to this head's keys in it. In f16:
    // keys [head_dim][16], then values [16][head_dim]. In int8: the same in int8, then f32 key_scale[16], value_scale[16].
    const void* const* blocks;
    std::int32_t begin, end;          // positions of the split that hold keys: end - begin <= 256
    bool int8;
    float* maximum;                   // [rows]
    float* sum;                       // [rows]
    float* values;                    // [rows][head_dim]
    float* scratch;                   // 64-byte aligned, kAttendScratch floats
    // Blocks of the split that this thread attends to next, or null: fetched meanwhile, which is worth much where few
    // rows read a long cache. A hint, no more.
    const void* const* ahead = nullptr;
    std::size_t ahead_blocks = 0;
};
// Room for the scores of 16 rows.
constexpr std::size_t kAttendScratch = 16 * kSplitTokens;

struct Kernels {
    const char* name;  // portable, avx2, avxvnni, avx512

    Product product[static_cast<int>(WeightType::kCount)];

    // One token's activations into the block-major buffers: `token` is its place there. A block's scale is d =
    // max|x| / 127, its quants x / d rounded half to even; where d is below the smallest normal float32 all is zero, where
    // x is not finite quants and sums are zero and d is infinite or NaN, so that products are NaN.
    void (*quantise)(const float* x, std::size_t columns, std::size_t token, std::size_t tokens, std::int8_t* quants,
                     float* scales, float* scaled_sums, std::int32_t* sums, std::int32_t* half_sums);
    void (*round_bf16)(const float* x, std::size_t n, std::uint16_t* out);

    // y = x / sqrt(mean(x^2) + eps) * weight; weight may be null. x and y may be the same.
    void (*rms_norm)(const float* x, const float* weight, std::size_t n, float eps, float* y);
    // Turns the pairs of one head in place by the angles whose cosines and sines are [n / 2] each.
    void (*rope)(float* x, const float* cosines, const float* sines, std::size_t n, bool interleaved);
    void (*silu_mul)(const float* gate, const float* up, std::size_t n, float* out);  // silu(gate) * up
    void (*add)(const float* x, std::size_t n, float* y);                             // y += x
    void (*scale)(float* x, float factor, std::size_t n);                             // x *= factor

    // One token's key and value of one head into slot 0..15 of its block (see AttendArgs); f16 saturates at 65504.
    void (*store_kv)(const float* key, const float* value, std::size_t head_dim, std::size_t slot, bool int8, void* block);
    void (*attend)(const AttendArgs& args);
    // Folds `splits` partial results of one row, in order, into normalised values: partial s is at [s * stride] of each
    // array (values: [s * stride * head_dim]).
    void (*merge)(const float* maximum, const float* sum, const float* values, std::size_t splits, std::size_t stride,
                  std::size_t head_dim, float* out);

    // The largest of n logits, and log(sum(exp(x - maximum))) to float64's precision of a float32 exponential; both are
    // the same whatever the alignment. NaN anywhere makes *maximum NaN.
    void (*log_sum_exp)(const float* x, std::size_t n, float* maximum, double* log_sum);
};

// Null where the table was not compiled in; `supported` says whether this processor can run it.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avxvnni_kernels();
const Kernels* avx512_kernels();

// The best table this processor runs, or the one named ("portable", ...). Null where it does not exist or cannot run.
const Kernels* best_kernels();
const Kernels* find_kernels(const char* name);

}  // namespace qafila
