// Products of quantised weights in 256-bit registers, compiled once for each instruction set that has them: a source file
// names the namespace in QAFILA_ISA, defines there how bytes are multiplied, and includes this. kernels.h describes
// panels, activations and the order of arithmetic.
//
// What the file defines: add_groups<T, kGroups, kFit>(w, q, sums), which adds T tokens times kGroups groups of 4 columns
// to sums, given that kFit groups of products fit in 16 bits; add_bytes<T>(w, q, sums), the same for 8 groups of any
// bytes; kByteZeroBits, the zero point (as a power of two) that add_bytes leaves in its sums.
//
// A block's weights are unpacked once and up to 16 tokens, four at a time, multiply them.

namespace qafila::QAFILA_ISA {
namespace {

using Bytes = const std::uint8_t*;

inline __m256i load256(Bytes p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256 load_halves(Bytes p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline __m128i load_8_bytes(Bytes p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
inline __m256 load_u8(Bytes p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8_bytes(p))); }
inline __m256 load_i8(Bytes p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8_bytes(p))); }

// 32 columns of 16 rows, in pairs of registers of 8 rows. `d` belongs to the first half where halves have scales of
// their own, `m` to the second.
struct Weights {
    __m256i w[8][2];
    __m256 d[2], m[2];
};

inline void unpack_nibbles(Bytes q, Weights& out) {
    const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            const __m256i both = load256(q + 64 * g + 32 * h);
            out.w[g][h] = _mm256_and_si256(both, low);
            out.w[4 + g][h] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        }
}

// Each type says how many blocks of 32 columns make one of its own, what that takes, its zero point (as a power of two),
// how many groups of its products fit in 16 bits (0: not even two products), and how to read block `sub` of it.
struct Q8_0 {
    static constexpr std::size_t kSubs = 1, kBytes = 32 + 512;
    static constexpr int kZeroBits = kByteZeroBits, kFit = 0;
    static constexpr bool kMinimum = false, kHalves = false;
    static void load(Bytes block, std::size_t, Weights& out) {
        for (int h = 0; h < 2; ++h) out.d[h] = load_halves(block + 16 * h);
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g)
            for (int h = 0; h < 2; ++h) out.w[g][h] = load256(block + 32 + 64 * g + 32 * h);
    }
};
struct Q4_0 {
    static constexpr std::size_t kSubs = 1, kBytes = 32 + 256;
    static constexpr int kZeroBits = 3, kFit = 8;  // 8 * 2 * 15 * 127 < 2^15
    static constexpr bool kMinimum = false, kHalves = false;
    static void load(Bytes block, std::size_t, Weights& out) {
        for (int h = 0; h < 2; ++h) out.d[h] = load_halves(block + 16 * h);
        unpack_nibbles(block + 32, out);
    }
};
struct Q4_1 {
    static constexpr std::size_t kSubs = 1, kBytes = 64 + 256;
    static constexpr int kZeroBits = 0, kFit = 8;
    static constexpr bool kMinimum = true, kHalves = false;
    static void load(Bytes block, std::size_t, Weights& out) {
        for (int h = 0; h < 2; ++h) {
            out.d[h] = load_halves(block + 16 * h);
            out.m[h] = load_halves(block + 32 + 16 * h);
        }
        unpack_nibbles(block + 64, out);
    }
};
// d[16], dmin[16], scale[8][16], min[8][16]
inline void load_k_scales(Bytes block, std::size_t sub, Weights& out) {
    for (std::size_t h = 0; h < 2; ++h) {
        const std::size_t rows = 16 * sub + 8 * h;
        out.d[h] = _mm256_mul_ps(load_halves(block + 16 * h), load_u8(block + 64 + rows));
        const __m256 m = _mm256_mul_ps(load_halves(block + 32 + 16 * h), load_u8(block + 192 + rows));
        out.m[h] = _mm256_xor_ps(m, _mm256_set1_ps(-0.0f));
    }
}
struct Q4_K {
    static constexpr std::size_t kSubs = 8, kBytes = 320 + 8 * 256;
    static constexpr int kZeroBits = 0, kFit = 8;
    static constexpr bool kMinimum = true, kHalves = false;
    static void load(Bytes block, std::size_t sub, Weights& out) {
        load_k_scales(block, sub, out);
        unpack_nibbles(block + 320 + 256 * sub, out);
    }
};
struct Q5_K {
    static constexpr std::size_t kSubs = 8, kBytes = 320 + 8 * 320;
    static constexpr int kZeroBits = 0, kFit = 4;  // 4 * 2 * 31 * 127 < 2^15
    static constexpr bool kMinimum = true, kHalves = false;
    static void load(Bytes block, std::size_t sub, Weights& out) {
        load_k_scales(block, sub, out);
        const Bytes q = block + 320 + 320 * sub;
        unpack_nibbles(q, out);
        // Byte j of 32 looks at bit j % 8 of byte j / 8 of the four that belong to these 8 rows.
        const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
        const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
        const __m256i fifth = _mm256_set1_epi8(16);
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g)
            for (int h = 0; h < 2; ++h) {
                std::int32_t word;
                __builtin_memcpy(&word, q + 256 + 8 * g + 4 * h, sizeof word);
                const __m256i bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), spread), bit);
                const __m256i set = _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit), fifth);
                out.w[g][h] = _mm256_or_si256(out.w[g][h], set);
            }
    }
};
struct Q6_K {
    static constexpr std::size_t kSubs = 8, kBytes = 288 + 8 * 384;
    static constexpr int kZeroBits = 5, kFit = 2;  // 2 * 2 * 63 * 127 < 2^15
    static constexpr bool kMinimum = false, kHalves = true;
    static void load(Bytes block, std::size_t sub, Weights& out) {
        const Bytes q = block + 288 + 384 * sub;
        unpack_nibbles(q, out);
        const __m256i upper = _mm256_set1_epi8(0x30);
        for (std::size_t h = 0; h < 2; ++h) {
            const __m256 d = load_halves(block + 16 * h);
            out.d[h] = _mm256_mul_ps(d, load_i8(block + 32 + 32 * sub + 8 * h));
            out.m[h] = _mm256_mul_ps(d, load_i8(block + 32 + 32 * sub + 16 + 8 * h));
            for (std::size_t j = 0; j < 2; ++j) {
                const __m256i high = load256(q + 256 + 64 * j + 32 * h);
                // Bits that shift in from the byte below fall outside the mask.
                const __m256i bits[4] = {_mm256_slli_epi16(high, 4), _mm256_slli_epi16(high, 2), high,
                                         _mm256_srli_epi16(high, 2)};
#pragma GCC unroll 4
                for (std::size_t c = 0; c < 4; ++c)
                    out.w[4 * j + c][h] = _mm256_or_si256(out.w[4 * j + c][h], _mm256_and_si256(bits[c], upper));
            }
        }
    }
};

// acc += float(dot - zero * sum) * (d * scale)
template <int kBits>
[[gnu::always_inline]] inline __m256 take_dot(__m256 acc, __m256i dot, std::int32_t sum, __m256 d, float scale) {
    if constexpr (kBits != 0) dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(sum << kBits));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(d, _mm256_set1_ps(scale)), acc);
}

// T tokens against one block; acc[t] takes the block's terms.
template <typename Type, int T>
[[gnu::always_inline]] inline void multiply_block(const Weights& weights, const Activations& x, std::size_t at,
                                                  __m256 (*acc)[2]) {
    const std::int8_t* q = x.quants + at * kBlockColumns;
    if constexpr (Type::kHalves) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            __m256i dot[T][2] = {};
            add_groups<T, 4, Type::kFit>(weights.w + 4 * half, q + 16 * half, dot);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t)
                for (int h = 0; h < 2; ++h)
                    acc[t][h] = take_dot<Type::kZeroBits>(acc[t][h], dot[t][h], x.half_sums[2 * (at + t) + half],
                                                          half == 0 ? weights.d[h] : weights.m[h], x.scales[at + t]);
        }
    } else {
        __m256i dot[T][2] = {};
        if constexpr (Type::kFit == 0) {
            add_bytes<T>(weights.w, q, dot);
        } else {
            add_groups<T, 8, Type::kFit>(weights.w, q, dot);
        }
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
            for (int h = 0; h < 2; ++h) {
                acc[t][h] =
                    take_dot<Type::kZeroBits>(acc[t][h], dot[t][h], x.sums[at + t], weights.d[h], x.scales[at + t]);
                if constexpr (Type::kMinimum)
                    acc[t][h] = _mm256_fmadd_ps(weights.m[h], _mm256_set1_ps(x.scaled_sums[at + t]), acc[t][h]);
            }
    }
}

constexpr std::size_t kTile = 16;
// Activations that stay in the second-level cache while all panels go by.
constexpr std::size_t kChunkBytes = 512 * 1024;

// One panel by `kFull` tokens and `kRest` more (kFull is a multiple of 4, kRest less than 4).
template <typename Type, int kRest>
void tile(Bytes panel, const Activations& x, std::size_t token, std::size_t full, float* out, std::size_t out_stride) {
    __m256 acc[kTile][2] = {}, rest[4][2] = {};
    std::size_t at = token;
    for (std::size_t b = 0; b < x.columns / kBlockColumns; b += Type::kSubs, panel += Type::kBytes)
        for (std::size_t sub = 0; sub < Type::kSubs; ++sub, at += x.tokens) {
            Weights weights;
            Type::load(panel, sub, weights);
            for (std::size_t t = 0; t < full; t += 4) multiply_block<Type, 4>(weights, x, at + t, acc + t);
            if constexpr (kRest != 0) multiply_block<Type, kRest>(weights, x, at + full, rest);
        }
    for (std::size_t t = 0; t < full + kRest; ++t)
        for (std::size_t h = 0; h < 2; ++h)
            _mm256_storeu_ps(out + t * out_stride + 8 * h, t < full ? acc[t][h] : rest[t - full][h]);
}

template <typename Type>
void product(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
             std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    using Tile = void (*)(Bytes, const Activations&, std::size_t, std::size_t, float*, std::size_t);
    static constexpr Tile kTiles[4] = {tile<Type, 0>, tile<Type, 1>, tile<Type, 2>, tile<Type, 3>};
    const std::size_t panel_size = x.columns / (kBlockColumns * Type::kSubs) * Type::kBytes;
    const std::size_t fitting = kChunkBytes / (x.columns + 1) / kTile * kTile;
    const std::size_t chunk = fitting < kTile ? kTile : fitting;
    for (std::size_t begin = token_begin; begin < token_end; begin += chunk) {
        const std::size_t end = token_end - begin < chunk ? token_end : begin + chunk;
        for (std::size_t p = panel_begin; p < panel_end; ++p) {
            const Bytes panel = static_cast<Bytes>(panels) + p * panel_size;
            for (std::size_t token = begin; token < end; token += kTile) {
                const std::size_t n = end - token < kTile ? end - token : kTile;
                kTiles[n % 4](panel, x, token, n / 4 * 4, out + token * out_stride + p * kPanelRows, out_stride);
            }
        }
    }
}

}  // namespace

extern const Product quantised_products[6] = {product<Q8_0>, product<Q4_0>, product<Q4_1>,
                                              product<Q4_K>, product<Q5_K>, product<Q6_K>};

}  // namespace qafila::QAFILA_ISA
