// Products of F32, F16 and BF16 weights with AVX-512. A row's products are summed in rising column, in one accumulator.
#include <immintrin.h>

#include <cstring>

#include "kernels_avx512.h"

namespace qafila::avx512 {
namespace {

struct F32 {
    using Value = float;
    static constexpr std::size_t kColumns = 1, kBytes = 64;
    using Weights = __m512;
    static Weights load(const std::uint8_t* p) { return _mm512_loadu_ps(p); }
    static __m512 add(__m512 sum, Weights w, const float* x) { return _mm512_fmadd_ps(w, _mm512_set1_ps(*x), sum); }
    static const Value* values(const Activations& x) { return x.values; }
};
struct F16 {
    using Value = float;
    static constexpr std::size_t kColumns = 1, kBytes = 32;
    using Weights = __m512;
    static Weights load(const std::uint8_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static __m512 add(__m512 sum, Weights w, const float* x) { return _mm512_fmadd_ps(w, _mm512_set1_ps(*x), sum); }
    static const Value* values(const Activations& x) { return x.values; }
};
struct BF16 {
    using Value = std::uint16_t;
    static constexpr std::size_t kColumns = 2, kBytes = 64;
    using Weights = __m512bh;
    static Weights load(const std::uint8_t* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
    static __m512 add(__m512 sum, Weights w, const std::uint16_t* x) {
        std::int32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return _mm512_dpbf16_ps(sum, w, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)));
    }
    static const Value* values(const Activations& x) { return x.rounded; }
};

// P panels by T tokens. Few tokens take several panels at once: one accumulator's additions wait for each other, and
// memory answers several streams faster.
template <typename Type, int P, int T>
void tile(const std::uint8_t* panel, std::size_t panel_size, const Activations& x, std::size_t token, float* out,
          std::size_t out_stride) {
    __m512 acc[P][T];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) acc[p][t] = _mm512_setzero_ps();
    const std::size_t steps = (x.columns + Type::kColumns - 1) / Type::kColumns;
    const auto* values = Type::values(x) + token * x.stride;
    for (std::size_t k = 0; k < steps; ++k, panel += Type::kBytes, values += Type::kColumns) {
        typename Type::Weights w[P];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) w[p] = Type::load(panel + p * panel_size);
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) acc[p][t] = Type::add(acc[p][t], w[p], values + t * x.stride);
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) _mm512_storeu_ps(out + t * out_stride + p * kPanelRows, acc[p][t]);
}

constexpr std::size_t kTile = 12;
constexpr std::size_t kChunkBytes = 512 * 1024;

template <typename Type>
using Tile = void (*)(const std::uint8_t*, std::size_t, const Activations&, std::size_t, float*, std::size_t);

template <typename Type, int P>
constexpr Tile<Type> kTiles[kTile + 1] = {
    nullptr,           tile<Type, P, 1>,  tile<Type, P, 2>, tile<Type, P, 3>, tile<Type, P, 4>,
    tile<Type, P, 5>,  tile<Type, P, 6>,  tile<Type, P, 7>, tile<Type, P, 8>, tile<Type, P, 9>,
    tile<Type, P, 10>, tile<Type, P, 11>, tile<Type, P, 12>};

template <typename Type>
void product(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
             std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    const std::size_t panel_size = (x.columns + Type::kColumns - 1) / Type::kColumns * Type::kBytes;
    const std::size_t fitting = kChunkBytes / (x.columns * sizeof(typename Type::Value) + 1) / kTile * kTile;
    const std::size_t chunk = fitting < kTile ? kTile : fitting;
    for (std::size_t begin = token_begin; begin < token_end; begin += chunk) {
        const std::size_t end = token_end - begin < chunk ? token_end : begin + chunk;
        for (std::size_t p = panel_begin; p < panel_end;) {
            const std::uint8_t* panel = static_cast<const std::uint8_t*>(panels) + p * panel_size;
            const std::size_t left = panel_end - p;
            const std::size_t wide = end - begin == 1 && left >= 4 ? 4 : left >= 2 ? 2 : 1;
            for (std::size_t token = begin; token < end; token += kTile) {
                const std::size_t n = end - token < kTile ? end - token : kTile;
                float* to = out + token * out_stride + p * kPanelRows;
                const Tile<Type> run = wide == 4   ? tile<Type, 4, 1>
                                       : wide == 2 ? kTiles<Type, 2>[n]
                                                   : kTiles<Type, 1>[n];
                run(panel, panel_size, x, token, to, out_stride);
            }
            p += wide;
        }
    }
}

}  // namespace

void product_f32(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                 std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    product<F32>(panels, panel_begin, panel_end, x, token_begin, token_end, out, out_stride);
}
void product_f16(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                 std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    product<F16>(panels, panel_begin, panel_end, x, token_begin, token_end, out, out_stride);
}
void product_bf16(const void* panels, std::size_t panel_begin, std::size_t panel_end, const Activations& x,
                  std::size_t token_begin, std::size_t token_end, float* out, std::size_t out_stride) {
    product<BF16>(panels, panel_begin, panel_end, x, token_begin, token_end, out, out_stride);
}

}  // namespace qafila::avx512
