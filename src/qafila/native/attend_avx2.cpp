// Attention over the blocks of the KV cache with AVX2.
//
// Keys of a block lie [head_dim][16 positions]: lanes are positions, and a score is one chain of multiply-adds over
// rising n. Values lie [16 positions][head_dim]: lanes are dimensions, and an output is one chain over rising positions.
// How many rows and blocks a tile takes changes no chain, so that a row's bits don't depend on the rows beside it;
// positions that a row does not see never enter its chains.

#include "kernels_avx2.h"
#include "lanes_avx2.h"

namespace qafila::avx2 {
namespace {

constexpr int kTileRows = 4;
constexpr std::int32_t kTokens = kBlockTokens;

struct Half {
    using Element = std::uint16_t;
    static __m256 load(const Element* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
};

struct Int8 {
    using Element = std::int8_t;
    static __m256 load(const Element* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
};

template <typename Store>
constexpr bool kScaled = sizeof(typename Store::Element) == 1;

// The first n lanes (all eight where there are more); memory behind them is not touched.
template <typename Store>
__m256 load_first(const typename Store::Element* p, std::size_t n) {
    if (n >= 8) return Store::load(p);
    typename Store::Element lanes[8] = {};
    for (std::size_t l = 0; l < n; ++l) lanes[l] = p[l];
    return Store::load(lanes);
}

const float* scales_of(const void* block, std::size_t head_dim) {
    return reinterpret_cast<const float*>(static_cast<const std::int8_t*>(block) + 2 * kBlockTokens * head_dim);
}

// scores[r][16 b + slot] of R rows and B blocks, before any mask.
template <typename Store, int R, int B>
void score_tile(const float* queries, std::size_t head_dim, const void* const* blocks, float* scores) {
    const typename Store::Element* keys[B];
    __m256 dots[R][B][2];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
        keys[b] = static_cast<const typename Store::Element*>(blocks[b]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) dots[r][b][0] = dots[r][b][1] = _mm256_setzero_ps();
    }
    for (std::size_t n = 0; n < head_dim; ++n)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
            const __m256 low = Store::load(keys[b] + n * kBlockTokens);
            const __m256 high = Store::load(keys[b] + n * kBlockTokens + 8);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const __m256 query = _mm256_set1_ps(queries[static_cast<std::size_t>(r) * head_dim + n]);
                dots[r][b][0] = _mm256_fmadd_ps(query, low, dots[r][b][0]);
                dots[r][b][1] = _mm256_fmadd_ps(query, high, dots[r][b][1]);
            }
        }
#pragma GCC unroll 4
    for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (std::size_t b = 0; b < B; ++b)
            for (std::size_t h = 0; h < 2; ++h) {
                __m256 dot = dots[r][b][h];
                if constexpr (kScaled<Store>)
                    dot = _mm256_mul_ps(dot, _mm256_loadu_ps(scales_of(blocks[b], head_dim) + 8 * h));
                _mm256_storeu_ps(scores + r * kSplitTokens + 16 * b + 8 * h, dot);
            }
}

// Scores of the blocks that hold positions [from, to) of the split.
template <typename Store, int R>
void score_rows(const AttendArgs& args, const float* queries, std::int32_t from, std::int32_t to, float* scores) {
    constexpr int kBlocks = kTileRows / R;
    std::int32_t block = from / kTokens;
    const std::int32_t blocks = (to + kTokens - 1) / kTokens;
    for (; block + kBlocks <= blocks; block += kBlocks)
        score_tile<Store, R, kBlocks>(queries, args.head_dim, args.blocks + block, scores + block * kTokens);
    for (; block < blocks; ++block)
        score_tile<Store, R, 1>(queries, args.head_dim, args.blocks + block, scores + block * kTokens);
}

// Lanes that stand for positions [from, to), the first lane for `start`.
__m256 between(std::int32_t start, std::int32_t from, std::int32_t to) {
    const __m256i lane = _mm256_add_epi32(_mm256_set1_epi32(start), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane);
    return _mm256_castsi256_ps(_mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane)));
}

// One row's scores [from, to) become weights.
template <typename Store>
void weigh(const AttendArgs& args, std::int32_t from, std::int32_t to, float* scores, float* maximum, float* sum) {
    const std::int32_t begin = from - from % 8;
    const __m256 nothing = _mm256_set1_ps(-__builtin_inff());
    __m256 largest = nothing;
    for (std::int32_t start = begin; start < to; start += 8) {
        const __m256 seen = _mm256_blendv_ps(nothing, _mm256_loadu_ps(scores + start), between(start, from, to));
        largest = _mm256_max_ps(seen, largest);  // the second operand where the first is NaN
    }
    *maximum = max_lanes(largest);
    const __m256 top = _mm256_set1_ps(*maximum);
    __m256 total = _mm256_setzero_ps();
    for (std::int32_t start = begin; start < to; start += 8) {
        const __m256 all = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + start), top));
        __m256 weight = _mm256_and_ps(all, between(start, from, to));
        total = _mm256_add_ps(total, weight);
        if constexpr (kScaled<Store>) {
            const float* scales = scales_of(args.blocks[start / kTokens], args.head_dim) + kTokens + start % kTokens;
            weight = _mm256_mul_ps(weight, _mm256_loadu_ps(scales));
        }
        _mm256_storeu_ps(scores + start, weight);
    }
    *sum = sum_lanes(total);
}

// Adds weights x values of positions [from, to) to C vectors of dimensions of R rows; the last has `last` lanes.
template <typename Store, int R, int C, bool kRagged>
void value_tile(const AttendArgs& args, const float* weights, std::int32_t from, std::int32_t to, std::size_t dimension,
                std::size_t last, float* out) {
    const std::size_t head_dim = args.head_dim;
    const auto lanes = [last](std::size_t c) { return kRagged && c == C - 1 ? last : 8; };
    out += dimension;
    __m256 sums[R][C];
#pragma GCC unroll 4
    for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (std::size_t c = 0; c < C; ++c) sums[r][c] = load(out + r * head_dim + 8 * c, lanes(c));
    for (std::int32_t position = from; position < to; ++position) {
        const auto* values = static_cast<const typename Store::Element*>(args.blocks[position / kTokens]);
        values += (kBlockTokens + static_cast<std::size_t>(position % kTokens)) * head_dim + dimension;
        __m256 weight[R];
#pragma GCC unroll 4
        for (std::size_t r = 0; r < R; ++r)
            weight[r] = _mm256_set1_ps(weights[r * kSplitTokens + static_cast<std::size_t>(position)]);
#pragma GCC unroll 8
        for (std::size_t c = 0; c < C; ++c) {
            const __m256 value = load_first<Store>(values + 8 * c, lanes(c));
#pragma GCC unroll 4
            for (std::size_t r = 0; r < R; ++r) sums[r][c] = _mm256_fmadd_ps(weight[r], value, sums[r][c]);
        }
    }
#pragma GCC unroll 4
    for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (std::size_t c = 0; c < C; ++c) store(out + r * head_dim + 8 * c, lanes(c), sums[r][c]);
}

template <typename Store, int R>
void value_rows(const AttendArgs& args, const float* weights, std::int32_t from, std::int32_t to, float* out) {
    constexpr int kVectors = R == 1 ? 8 : R == 2 ? 4 : 2;
    if (from >= to) return;
    std::size_t dimension = 0;
    for (; dimension + 8 * kVectors <= args.head_dim; dimension += 8 * kVectors)
        value_tile<Store, R, kVectors, false>(args, weights, from, to, dimension, 8, out);
    for (; dimension + 8 <= args.head_dim; dimension += 8)
        value_tile<Store, R, 1, false>(args, weights, from, to, dimension, 8, out);
    if (dimension < args.head_dim)
        value_tile<Store, R, 1, true>(args, weights, from, to, dimension, args.head_dim - dimension, out);
}

// Rows [row, row + R). Positions below count from the split's begin.
template <typename Store, int R>
void attend_tile(const AttendArgs& args, std::size_t row) {
    const std::int32_t held = args.end - args.begin;
    std::int32_t from[R], to[R], any_from = held, any_to = 0, all_from = 0, all_to = held;
    for (int r = 0; r < R; ++r) {
        const std::size_t i = row + static_cast<std::size_t>(r);
        from[r] = args.first[i] > args.begin ? args.first[i] - args.begin : 0;
        to[r] = args.last[i] < args.end ? args.last[i] + 1 - args.begin : held;
        if (from[r] >= to[r]) {
            from[r] = to[r] = 0;
        } else {
            any_from = from[r] < any_from ? from[r] : any_from;
            any_to = to[r] > any_to ? to[r] : any_to;
        }
        all_from = from[r] > all_from ? from[r] : all_from;
        all_to = to[r] < all_to ? to[r] : all_to;
    }
    float* scores = args.scratch;
    if (any_from < any_to) score_rows<Store, R>(args, args.queries + row * args.head_dim, any_from, any_to, scores);
    float* values = args.values + row * args.head_dim;
    const std::size_t count = R * args.head_dim;
    for (std::size_t n = 0; n < count; n += 8) store(values + n, count - n, _mm256_setzero_ps());
    for (std::size_t r = 0; r < R; ++r)
        weigh<Store>(args, from[r], to[r], scores + r * kSplitTokens, args.maximum + row + r, args.sum + row + r);
    // What all rows see goes through one tile; what only some see, row by row, before and after it.
    if (all_from >= all_to) all_from = all_to = held;
    for (std::size_t r = 0; r < R; ++r)
        value_rows<Store, 1>(args, scores + r * kSplitTokens, from[r], to[r] < all_from ? to[r] : all_from,
                             values + r * args.head_dim);
    value_rows<Store, R>(args, scores, all_from, all_to, values);
    for (std::size_t r = 0; r < R; ++r)
        value_rows<Store, 1>(args, scores + r * kSplitTokens, from[r] > all_to ? from[r] : all_to, to[r],
                             values + r * args.head_dim);
}

template <typename Store>
void attend_rows(const AttendArgs& args) {
    std::size_t row = 0;
    for (; row + 4 <= args.rows; row += 4) attend_tile<Store, 4>(args, row);
    switch (args.rows - row) {
        case 1: attend_tile<Store, 1>(args, row); break;
        case 2: attend_tile<Store, 2>(args, row); break;
        case 3: attend_tile<Store, 3>(args, row); break;
        default: break;
    }
}

// max|x| / 127, without NaN.
float int8_scale(const float* x, std::size_t n) {
    __m256 largest = _mm256_setzero_ps();
    for (std::size_t i = 0; i < n; i += 8) largest = _mm256_max_ps(magnitude(load(x + i, n - i)), largest);
    return max_lanes(largest) / 127.0f;
}

// To nearest, ties to even; NaN ends at -127.
__m256i int8_quants(__m256 x, float scale) {
    if (!(scale > 0.0f)) return _mm256_setzero_si256();
    const __m256 quants = _mm256_max_ps(_mm256_div_ps(x, _mm256_set1_ps(scale)), _mm256_set1_ps(-127.0f));
    return _mm256_cvtps_epi32(_mm256_min_ps(quants, _mm256_set1_ps(127.0f)));
}

// Saturated; NaN passes through, as the second operand.
__m256i halves(__m256 x) {
    const __m256 bounded = _mm256_max_ps(_mm256_set1_ps(-65504.0f), _mm256_min_ps(_mm256_set1_ps(65504.0f), x));
    return _mm256_cvtepu16_epi32(_mm256_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

template <typename Element>
void put(__m256i numbers, std::size_t count, std::size_t stride, Element* to) {
    alignas(32) std::int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), numbers);
    for (std::size_t l = 0; l < count; ++l) to[l * stride] = static_cast<Element>(lanes[l]);
}

}  // namespace

void store_kv(const float* key, const float* value, std::size_t head_dim, std::size_t slot, bool int8, void* block) {
    const float of_key = int8 ? int8_scale(key, head_dim) : 1.0f, of_value = int8 ? int8_scale(value, head_dim) : 1.0f;
    for (std::size_t n = 0; n < head_dim; n += 8) {
        const std::size_t count = head_dim - n < 8 ? head_dim - n : 8;
        const std::size_t key_at = n * kBlockTokens + slot, value_at = (kBlockTokens + slot) * head_dim + n;
        const __m256 keys = load(key + n, count), values = load(value + n, count);
        if (int8) {
            put(int8_quants(keys, of_key), count, kBlockTokens, static_cast<std::int8_t*>(block) + key_at);
            put(int8_quants(values, of_value), count, 1, static_cast<std::int8_t*>(block) + value_at);
        } else {
            put(halves(keys), count, kBlockTokens, static_cast<std::uint16_t*>(block) + key_at);
            put(halves(values), count, 1, static_cast<std::uint16_t*>(block) + value_at);
        }
    }
    if (!int8) return;
    auto* scales = reinterpret_cast<float*>(static_cast<std::int8_t*>(block) + 2 * kBlockTokens * head_dim);
    scales[slot] = of_key;
    scales[kBlockTokens + slot] = of_value;
}

void attend(const AttendArgs& args) {
    if (args.int8) {
        attend_rows<Int8>(args);
    } else {
        attend_rows<Half>(args);
    }
}

void merge(const float* maximum, const float* sum, const float* values, std::size_t splits, std::size_t stride,
           std::size_t head_dim, float* out) {
    float largest = -__builtin_inff();
    for (std::size_t s = 0; s < splits; ++s)
        if (maximum[s * stride] > largest) largest = maximum[s * stride];
    for (std::size_t n = 0; n < head_dim; n += 8) store(out + n, head_dim - n, _mm256_setzero_ps());
    __m256 total = _mm256_setzero_ps();
    for (std::size_t s = 0; s < splits; ++s) {
        // A split in which nothing was seen. (A sum that is NaN goes on, into the result.)
        if (sum[s * stride] == 0.0f) continue;
        const __m256 weight = exp8(_mm256_set1_ps(maximum[s * stride] - largest));
        total = _mm256_fmadd_ps(weight, _mm256_set1_ps(sum[s * stride]), total);
        const float* part = values + s * stride * head_dim;
        for (std::size_t n = 0; n < head_dim; n += 8) {
            const std::size_t left = head_dim - n;
            store(out + n, left, _mm256_fmadd_ps(weight, load(part + n, left), load(out + n, left)));
        }
    }
    if (_mm256_cvtss_f32(total) == 0.0f) return;
    for (std::size_t n = 0; n < head_dim; n += 8)
        store(out + n, head_dim - n, _mm256_div_ps(load(out + n, head_dim - n), total));
}

}  // namespace qafila::avx2
