// Products of quantised weights with AVX-512 VNNI. kernels.h describes panels, activations and the order of arithmetic.
//
// A block's weights are unpacked once, into eight registers of 16 rows by 4 columns, and up to 16 tokens stream past
// them as broadcasts from memory; their float accumulators stay in registers over all of a panel's blocks.
#include <immintrin.h>

#include <cstring>

#include "kernels_avx512.h"

namespace qafila::avx512 {
namespace {

using Bytes = const std::uint8_t*;

inline __m512i load512(Bytes p) { return _mm512_loadu_si512(p); }
inline __m512 load_halves(Bytes p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 load_u8(Bytes p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline __m512 load_i8(Bytes p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline __m512i broadcast4(const std::int8_t* p) {
    std::int32_t word;
    std::memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}
inline void unpack_nibbles(Bytes q, __m512i (&w)[8]) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int g = 0; g < 4; ++g) {
        const __m512i both = load512(q + 64 * g);
        w[g] = _mm512_and_si512(both, low);
        w[4 + g] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
}

// 32 columns of 16 rows. `d` belongs to the first half where halves have scales of their own, `m` to the second.
struct Weights {
    __m512i w[8];
    __m512 d, m;
};

// Each type says how many blocks of 32 columns make one of its own, what that takes, up to how many tokens read several
// panels at once (see kWide), its zero point (as a power of two) and how to read block `sub` of it.
struct Q8_0 {
    static constexpr std::size_t kSubs = 1, kBytes = 32 + 512;
    static constexpr std::size_t kWideTokens = 4;
    static constexpr int kZeroBits = 7;
    static constexpr bool kMinimum = false, kHalves = false;
    static void load(Bytes block, std::size_t, Weights& out) {
        out.d = load_halves(block);
        for (int g = 0; g < 8; ++g) out.w[g] = load512(block + 32 + 64 * g);
    }
};
struct Q4_0 {
    static constexpr std::size_t kSubs = 1, kBytes = 32 + 256;
    static constexpr std::size_t kWideTokens = 2;
    static constexpr int kZeroBits = 3;
    static constexpr bool kMinimum = false, kHalves = false;
    static void load(Bytes block, std::size_t, Weights& out) {
        out.d = load_halves(block);
        unpack_nibbles(block + 32, out.w);
    }
};
struct Q4_1 {
    static constexpr std::size_t kSubs = 1, kBytes = 64 + 256;
    static constexpr std::size_t kWideTokens = 2;
    static constexpr int kZeroBits = 0;
    static constexpr bool kMinimum = true, kHalves = false;
    static void load(Bytes block, std::size_t, Weights& out) {
        out.d = load_halves(block);
        out.m = load_halves(block + 32);
        unpack_nibbles(block + 64, out.w);
    }
};
// d[16], dmin[16], scale[8][16], min[8][16]
inline void load_k_scales(Bytes block, std::size_t sub, Weights& out) {
    out.d = _mm512_mul_ps(load_halves(block), load_u8(block + 64 + 16 * sub));
    const __m512 m = _mm512_mul_ps(load_halves(block + 32), load_u8(block + 192 + 16 * sub));
    out.m = _mm512_xor_ps(m, _mm512_set1_ps(-0.0f));
}
struct Q4_K {
    static constexpr std::size_t kSubs = 8, kBytes = 320 + 8 * 256;
    static constexpr std::size_t kWideTokens = 2;
    static constexpr int kZeroBits = 0;
    static constexpr bool kMinimum = true, kHalves = false;
    static void load(Bytes block, std::size_t sub, Weights& out) {
        load_k_scales(block, sub, out);
        unpack_nibbles(block + 320 + 256 * sub, out.w);
    }
};
struct Q5_K {
    static constexpr std::size_t kSubs = 8, kBytes = 320 + 8 * 320;
    static constexpr std::size_t kWideTokens = 2;
    static constexpr int kZeroBits = 0;
    static constexpr bool kMinimum = true, kHalves = false;
    static void load(Bytes block, std::size_t sub, Weights& out) {
        load_k_scales(block, sub, out);
        const Bytes q = block + 320 + 320 * sub;
        unpack_nibbles(q, out.w);
        const __m512i fifth = _mm512_set1_epi8(16);
        for (int g = 0; g < 8; ++g) {
            std::uint64_t word;
            std::memcpy(&word, q + 256 + 8 * g, sizeof word);
            out.w[g] = _mm512_mask_add_epi8(out.w[g], _cvtu64_mask64(word), out.w[g], fifth);
        }
    }
};
struct Q6_K {
    static constexpr std::size_t kSubs = 8, kBytes = 288 + 8 * 384;
    static constexpr std::size_t kWideTokens = 2;
    static constexpr int kZeroBits = 5;
    static constexpr bool kMinimum = false, kHalves = true;
    static void load(Bytes block, std::size_t sub, Weights& out) {
        const __m512 d = load_halves(block);
        out.d = _mm512_mul_ps(d, load_i8(block + 32 + 32 * sub));
        out.m = _mm512_mul_ps(d, load_i8(block + 32 + 32 * sub + 16));
        const Bytes q = block + 288 + 384 * sub;
        unpack_nibbles(q, out.w);
        const __m512i upper = _mm512_set1_epi8(0x30);
        for (int j = 0; j < 2; ++j) {
            const __m512i high = load512(q + 256 + 64 * j);
            // Bits that shift in from the byte below fall outside the mask.
            const __m512i bits[4] = {_mm512_slli_epi16(high, 4), _mm512_slli_epi16(high, 2), high,
                                     _mm512_srli_epi16(high, 2)};
            for (int c = 0; c < 4; ++c)
                out.w[4 * j + c] = _mm512_or_si512(out.w[4 * j + c], _mm512_and_si512(bits[c], upper));
        }
    }
};

inline __m512i less_zero(__m512i dot, std::int32_t sum, int bits) {
    return _mm512_sub_epi32(dot, _mm512_slli_epi32(_mm512_set1_epi32(sum), static_cast<unsigned>(bits)));
}

// N tokens against one block; acc[t] takes the block's terms.
template <typename Type, int N>
[[gnu::always_inline]] inline void multiply_block(const Weights& weights, const Activations& x, std::size_t at,
                                                  __m512* acc) {
    const std::int8_t* q = x.quants + at * kBlockColumns;
    __m512i dot[N];
    __m512i half[N];
#pragma GCC unroll 16
    for (int t = 0; t < N; ++t) dot[t] = half[t] = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int g = 0; g < 8; ++g) {
#pragma GCC unroll 16
        for (int t = 0; t < N; ++t) {
            __m512i& sum = Type::kHalves && g >= 4 ? half[t] : dot[t];
            sum = _mm512_dpbusd_epi32(sum, weights.w[g], broadcast4(q + 32 * t + 4 * g));
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < N; ++t) {
        const __m512 scale = _mm512_set1_ps(x.scales[at + t]);
        if constexpr (Type::kHalves) {
            const std::int32_t* sums = x.half_sums + 2 * (at + t);
            dot[t] = less_zero(dot[t], sums[0], Type::kZeroBits);
            half[t] = less_zero(half[t], sums[1], Type::kZeroBits);
        } else if constexpr (Type::kZeroBits != 0) {
            dot[t] = less_zero(dot[t], x.sums[at + t], Type::kZeroBits);
        }
        acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), _mm512_mul_ps(weights.d, scale), acc[t]);
        if constexpr (Type::kHalves)
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(half[t]), _mm512_mul_ps(weights.m, scale), acc[t]);
        if constexpr (Type::kMinimum)
            acc[t] = _mm512_fmadd_ps(weights.m, _mm512_set1_ps(x.scaled_sums[at + t]), acc[t]);
    }
}

// Tokens whose dot products are computed side by side, each a chain of additions that wait for each other.
constexpr int kGroup = 4;

// From this many tokens on the arithmetic of a block takes longer than the processor looks ahead, and what comes next
// must be asked for; with fewer, its own prefetcher does better.
constexpr int kPrefetchTokens = 5;
constexpr std::size_t kPrefetchBytes = 2048;

// For the fewest tokens memory is the limit. On a Zen 4 one token's product is about a quarter faster from four places
// than from one if each is long enough, but slower than from one where the four panels lie side by side.
constexpr std::size_t kWide = 4;
constexpr std::size_t kWideBytes = 40 * 1024;

// P panels by T tokens.
template <typename Type, std::size_t P, int T>
void tile(Bytes panel, std::size_t panel_step, const Activations& x, std::size_t token, float* out,
          std::size_t out_stride, std::size_t out_step) {
    __m512 acc[P][T];
#pragma GCC unroll 16
    for (std::size_t p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) acc[p][t] = _mm512_setzero_ps();
    const std::size_t blocks = x.columns / kBlockColumns;
    std::size_t at = token;
    for (std::size_t b = 0; b < blocks; b += Type::kSubs, panel += Type::kBytes) {
        for (std::size_t sub = 0; sub < Type::kSubs; ++sub, at += x.tokens) {
            constexpr std::size_t kSize = Type::kBytes / Type::kSubs;
            if constexpr (T >= kPrefetchTokens) {
                const Bytes ahead = panel + sub * kSize + kPrefetchBytes;
                for (std::size_t i = 0; i < kSize; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
            }
#pragma GCC unroll 16
            for (std::size_t p = 0; p < P; ++p) {
                Weights weights;
                Type::load(panel + p * panel_step, sub, weights);
#pragma GCC unroll 16
                for (int t = 0; t + kGroup <= T; t += kGroup)
                    multiply_block<Type, kGroup>(weights, x, at + t, acc[p] + t);
                constexpr int kRest = T % kGroup;
                if constexpr (kRest != 0) multiply_block<Type, kRest>(weights, x, at + T - kRest, acc[p] + T - kRest);
            }
        }
    }
#pragma GCC unroll 16
    for (std::size_t p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) _mm512_storeu_ps(out + t * out_stride + p * out_step, acc[p][t]);
}

constexpr int kTile = 16;
// Activations that stay in the second-level cache while all panels go by.
constexpr std::size_t kChunkBytes = 512 * 1024;

using Tile = void (*)(Bytes, std::size_t, const Activations&, std::size_t, float*, std::size_t, std::size_t);

template <typename Type>
void product(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
             std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    static constexpr Tile kTiles[kTile + 1] = {
        nullptr,           tile<Type, 1, 1>,  tile<Type, 1, 2>,  tile<Type, 1, 3>,  tile<Type, 1, 4>,
        tile<Type, 1, 5>,  tile<Type, 1, 6>,  tile<Type, 1, 7>,  tile<Type, 1, 8>,  tile<Type, 1, 9>,
        tile<Type, 1, 10>, tile<Type, 1, 11>, tile<Type, 1, 12>, tile<Type, 1, 13>, tile<Type, 1, 14>,
        tile<Type, 1, 15>, tile<Type, 1, 16>};
    static constexpr Tile kWideTiles[] = {nullptr, tile<Type, kWide, 1>, tile<Type, kWide, 2>,
                                          Type::kWideTokens < 3 ? nullptr : tile<Type, kWide, 3>,
                                          Type::kWideTokens < 4 ? nullptr : tile<Type, kWide, 4>};
    const std::size_t panel_size = x.columns / (kBlockColumns * Type::kSubs) * Type::kBytes;
    const std::size_t fitting = kChunkBytes / (x.columns + 1) / kTile * kTile;
    const std::size_t chunk = fitting < kTile ? kTile : fitting;
    for (std::size_t begin = token_begin; begin < token_end; begin += chunk) {
        const std::size_t end = token_end - begin < chunk ? token_end : begin + chunk;
        std::size_t p = panel_begin;
        if (end - begin <= Type::kWideTokens) {
            const std::size_t step = (panel_end - panel_begin) / kWide;
            if (step * panel_size >= kWideBytes) {
                for (; p < panel_begin + step; ++p)
                    kWideTiles[end - begin](static_cast<Bytes>(panels) + p * panel_size, step * panel_size, x, begin,
                                            out + begin * out_stride + p * kPanelRows, out_stride, step * kPanelRows);
                p = panel_begin + kWide * step;
            }
        }
        for (; p < panel_end; ++p) {
            const Bytes panel = static_cast<Bytes>(panels) + p * panel_size;
            for (std::size_t token = begin; token < end; token += kTile) {
                const std::size_t n = end - token < kTile ? end - token : kTile;
                kTiles[n](panel, 0, x, token, out + token * out_stride + p * kPanelRows, out_stride, 0);
            }
        }
    }
}

}  // namespace

#define QAFILA_PRODUCT(name, Type)                                                                      \
    void name(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x, \
              std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {     \
        product<Type>(panels, panel_begin, panel_end, x, token_begin, token_end, out, out_stride);      \
    }
QAFILA_PRODUCT(product_q8_0, Q8_0)
QAFILA_PRODUCT(product_q4_0, Q4_0)
QAFILA_PRODUCT(product_q4_1, Q4_1)
QAFILA_PRODUCT(product_q4_k, Q4_K)
QAFILA_PRODUCT(product_q5_k, Q5_K)
QAFILA_PRODUCT(product_q6_k, Q6_K)
#undef QAFILA_PRODUCT

}  // namespace qafila::avx512
