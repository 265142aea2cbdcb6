// Products of quantised weights in 256-bit registers, compiled once for each instruction set that has them: a source file
// names the namespace in QAFILA_ISA, defines there how bytes are multiplied, and includes this. kernels.h describes
// panels, activations and the order of arithmetic.
//
// What the file defines: Dot, the running dot products of 8 rows; add_nibbles<kFit>(k, w, x, dot), which adds product k
// (counted from 0 in each block or half block) of 4 columns, given that kFit of them fit in 16 bits; add_bytes(k, w, x,
// dot), the same for any bytes; kByteZeroBits, the zero point (as a power of two) that add_bytes leaves.
//
// There are 16 registers: 8 rows at a time, weights are unpacked just before up to kTile tokens multiply them.

namespace qafila::QAFILA_ISA {
namespace {

using Bytes = const std::uint8_t*;

inline __m256i load256(Bytes p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256 load_halves(Bytes p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline __m128i load_8_bytes(Bytes p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
inline __m256 load_u8(Bytes p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_8_bytes(p))); }
inline __m256 load_i8(Bytes p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_8_bytes(p))); }

// Four int8 activations in every lane.
[[gnu::always_inline]] inline __m256i broadcast4(const std::int8_t* p) {
    std::int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}

// Of 8 rows: `d` belongs to the first half where halves have scales of their own, `m` to the second.
struct Scales {
    __m256 d, m;
};

// 4 columns of 8 rows each: columns 4g.. and 16 + 4g..
struct Pair {
    __m256i w[2];
};

[[gnu::always_inline]] inline Pair nibbles(Bytes q, std::size_t h, int g) {
    const __m256i low = _mm256_set1_epi8(15), both = load256(q + 64 * g + 32 * h);
    return {{_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16(both, 4), low)}};
}

// Each type says how many blocks of 32 columns make one of its own, what that takes, its zero point (as a power of two),
// how many products of 4 columns fit in 16 bits (0: not even one with another), and how to read rows 8h.. of block `sub`.
struct Q8_0 {
    static constexpr std::size_t kSubs = 1, kBytes = 32 + 512;
    static constexpr int kZeroBits = kByteZeroBits, kFit = 0;
    static constexpr bool kMinimum = false, kHalves = false;
    static Scales scales(Bytes block, std::size_t, std::size_t h) { return {load_halves(block + 16 * h), _mm256_setzero_ps()}; }
    static Pair weights(Bytes block, std::size_t, std::size_t h, int g) {
        const Bytes q = block + 32 + 64 * g + 32 * h;
        return {{load256(q), load256(q + 256)}};
    }
};
struct Q4_0 {
    static constexpr std::size_t kSubs = 1, kBytes = 32 + 256;
    static constexpr int kZeroBits = 3, kFit = 8;  // 8 * 2 * 15 * 127 < 2^15
    static constexpr bool kMinimum = false, kHalves = false;
    static Scales scales(Bytes block, std::size_t, std::size_t h) { return {load_halves(block + 16 * h), _mm256_setzero_ps()}; }
    static Pair weights(Bytes block, std::size_t, std::size_t h, int g) { return nibbles(block + 32, h, g); }
};
struct Q4_1 {
    static constexpr std::size_t kSubs = 1, kBytes = 64 + 256;
    static constexpr int kZeroBits = 0, kFit = 8;
    static constexpr bool kMinimum = true, kHalves = false;
    static Scales scales(Bytes block, std::size_t, std::size_t h) {
        return {load_halves(block + 16 * h), load_halves(block + 32 + 16 * h)};
    }
    static Pair weights(Bytes block, std::size_t, std::size_t h, int g) { return nibbles(block + 64, h, g); }
};
// d[16], dmin[16], scale[8][16], min[8][16]
inline Scales k_scales(Bytes block, std::size_t sub, std::size_t h) {
    const std::size_t rows = 16 * sub + 8 * h;
    const __m256 m = _mm256_mul_ps(load_halves(block + 32 + 16 * h), load_u8(block + 192 + rows));
    return {_mm256_mul_ps(load_halves(block + 16 * h), load_u8(block + 64 + rows)),
            _mm256_xor_ps(m, _mm256_set1_ps(-0.0f))};
}
struct Q4_K {
    static constexpr std::size_t kSubs = 8, kBytes = 320 + 8 * 256;
    static constexpr int kZeroBits = 0, kFit = 8;
    static constexpr bool kMinimum = true, kHalves = false;
    static Scales scales(Bytes block, std::size_t sub, std::size_t h) { return k_scales(block, sub, h); }
    static Pair weights(Bytes block, std::size_t sub, std::size_t h, int g) {
        return nibbles(block + 320 + 256 * sub, h, g);
    }
};
struct Q5_K {
    static constexpr std::size_t kSubs = 8, kBytes = 320 + 8 * 320;
    static constexpr int kZeroBits = 0, kFit = 4;  // 4 * 2 * 31 * 127 < 2^15
    static constexpr bool kMinimum = true, kHalves = false;
    static Scales scales(Bytes block, std::size_t sub, std::size_t h) { return k_scales(block, sub, h); }
    static Pair weights(Bytes block, std::size_t sub, std::size_t h, int g) {
        const Bytes q = block + 320 + 320 * sub;
        // Byte j of 32 looks at bit j % 8 of byte j / 8 of the four that belong to these 8 rows.
        const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
        const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
        const __m256i fifth = _mm256_set1_epi8(16);
        Pair out = nibbles(q, h, g);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m256i word = broadcast4(reinterpret_cast<const std::int8_t*>(q + 256 + 8 * (4 * j + g) + 4 * h));
            const __m256i bits = _mm256_and_si256(_mm256_shuffle_epi8(word, spread), bit);
            out.w[j] = _mm256_or_si256(out.w[j], _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit), fifth));
        }
        return out;
    }
};
struct Q6_K {
    static constexpr std::size_t kSubs = 8, kBytes = 288 + 8 * 384;
    static constexpr int kZeroBits = 5, kFit = 2;  // 2 * 2 * 63 * 127 < 2^15
    static constexpr bool kMinimum = false, kHalves = true;
    static Scales scales(Bytes block, std::size_t sub, std::size_t h) {
        const __m256 d = load_halves(block + 16 * h);
        const Bytes scale = block + 32 + 32 * sub + 8 * h;
        return {_mm256_mul_ps(d, load_i8(scale)), _mm256_mul_ps(d, load_i8(scale + 16))};
    }
    [[gnu::always_inline]] static Pair weights(Bytes block, std::size_t sub, std::size_t h, int g) {
        const Bytes q = block + 288 + 384 * sub;
        const __m256i upper = _mm256_set1_epi8(0x30);
        Pair out = nibbles(q, h, g);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m256i high = load256(q + 256 + 64 * j + 32 * h);
            // Bits that shift in from the byte below fall outside the mask.
            const __m256i bits = g < 2 ? _mm256_slli_epi16(high, 4 - 2 * g) : _mm256_srli_epi16(high, 2 * g - 4);
            out.w[j] = _mm256_or_si256(out.w[j], _mm256_and_si256(bits, upper));
        }
        return out;
    }
};

template <typename Type>
[[gnu::always_inline]] inline void add_product(int k, __m256i w, __m256i x, Dot& dot) {
    if constexpr (Type::kFit == 0) {
        add_bytes(k, w, x, dot);
    } else {
        add_nibbles<Type::kFit>(k, w, x, dot);
    }
}

// acc += float(dot - zero * sum) * (d * scale)
template <int kBits>
[[gnu::always_inline]] inline __m256 take_dot(__m256 acc, __m256i dot, std::int32_t sum, __m256 d, float scale) {
    if constexpr (kBits != 0) dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(sum << kBits));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(d, _mm256_set1_ps(scale)), acc);
}

// T tokens against 8 rows of one block; acc[t][h] takes the block's terms. `at` is the block's place in what belongs to
// blocks and tokens.
template <typename Type, int T>
[[gnu::always_inline]] inline void multiply_rows(Bytes block, std::size_t sub, std::size_t h, const Activations& x,
                                                 std::size_t at, __m256 (*acc)[2]) {
    constexpr int kDots = Type::kHalves ? 2 : 1;
    const std::int8_t* q = x.quants + at * kBlockColumns;
    // Or the activations of both halves of the rows are loaded at once, and most of them end on the stack.
    asm volatile("" : "+r"(q));
    Dot dots[T][kDots];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
        const Pair pair = Type::weights(block, sub, h, g);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t)
                add_product<Type>(Type::kHalves ? g : 2 * g + j, pair.w[j], broadcast4(q + 32 * t + 16 * j + 4 * g),
                                  dots[t][Type::kHalves ? j : 0]);
    }
    const Scales scales = Type::scales(block, sub, h);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
        if constexpr (Type::kHalves) {
            for (int j = 0; j < 2; ++j)
                acc[t][h] = take_dot<Type::kZeroBits>(acc[t][h], dots[t][j].sum, x.half_sums[2 * (at + t) + j],
                                                      j == 0 ? scales.d : scales.m, x.scales[at + t]);
        } else {
            acc[t][h] =
                take_dot<Type::kZeroBits>(acc[t][h], dots[t][0].sum, x.sums[at + t], scales.d, x.scales[at + t]);
        }
        if constexpr (Type::kMinimum)
            acc[t][h] = _mm256_fmadd_ps(scales.m, _mm256_set1_ps(x.scaled_sums[at + t]), acc[t][h]);
    }
}

// Activations that stay in the second-level cache while all panels go by.
constexpr std::size_t kChunkBytes = 256 * 1024;
constexpr int kTile = 8;
// How far ahead weights are asked for: the processor's own prefetcher stops at the end of each page, and one token's
// arithmetic is too slow to have it wait there (Zen 3: 7 to 8 GB/s a core without, 12 to 13 with).
constexpr std::size_t kAhead = 2048;

// One panel by T tokens.
template <typename Type, int T>
void tile(Bytes panel, const Activations& x, std::size_t token, float* out, std::size_t out_stride) {
    constexpr std::size_t kSize = Type::kBytes / Type::kSubs;
    __m256 acc[T][2];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_ps();
    std::size_t at = token;
    for (std::size_t b = 0; b < x.columns / kBlockColumns; b += Type::kSubs, panel += Type::kBytes)
        for (std::size_t sub = 0; sub < Type::kSubs; ++sub, at += x.tokens) {
            for (std::size_t i = 0; i < kSize; i += 64) _mm_prefetch(panel + sub * kSize + kAhead + i, _MM_HINT_T0);
#pragma GCC unroll 2
            for (std::size_t h = 0; h < 2; ++h) multiply_rows<Type, T>(panel, sub, h, x, at, acc);
        }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
        for (std::size_t h = 0; h < 2; ++h) _mm256_storeu_ps(out + t * out_stride + 8 * h, acc[t][h]);
}

template <typename Type, int... kTokens>
void multiply_panel(std::integer_sequence<int, kTokens...>, std::size_t tokens, Bytes panel, const Activations& x,
                    std::size_t token, float* out, std::size_t out_stride) {
    using Tile = void (*)(Bytes, const Activations&, std::size_t, float*, std::size_t);
    static constexpr Tile kTiles[] = {tile<Type, kTokens + 1>...};
    kTiles[tokens - 1](panel, x, token, out, out_stride);
}

template <typename Type>
void product(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
             std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    const std::size_t panel_size = x.columns / (kBlockColumns * Type::kSubs) * Type::kBytes;
    const std::size_t fitting = kChunkBytes / (x.columns + 1) / kTile * kTile;
    const std::size_t chunk = fitting < kTile ? kTile : fitting;
    for (std::size_t begin = token_begin; begin < token_end; begin += chunk) {
        const std::size_t end = token_end - begin < chunk ? token_end : begin + chunk;
        for (std::size_t p = panel_begin; p < panel_end; ++p) {
            const Bytes panel = static_cast<Bytes>(panels) + p * panel_size;
            for (std::size_t token = begin; token < end; token += kTile)
                multiply_panel<Type>(std::make_integer_sequence<int, kTile>(),
                                     end - token < kTile ? end - token : kTile, panel, x, token,
                                     out + token * out_stride + p * kPanelRows, out_stride);
        }
    }
}

}  // namespace

extern const Product quantised_products[6] = {product<Q8_0>, product<Q4_0>, product<Q4_1>,
                                              product<Q4_K>, product<Q5_K>, product<Q6_K>};

}  // namespace qafila::QAFILA_ISA
