// Quantized linear layers with AVX-512 VNNI: weights as unsigned bytes (level + 128) times signed activations.
#ifdef PX_X86
#include <immintrin.h>

#include "linear_strip.h"
#include "vectors_avx512.h"

namespace px {

namespace {

constexpr uint8_t code4(int code) { return static_cast<uint8_t>(kLevels4[code] + 128); }

alignas(16) constexpr uint8_t kUnsigned4[16] = {
    code4(0), code4(1), code4(2),  code4(3),  code4(4),  code4(5),  code4(6),  code4(7),
    code4(8), code4(9), code4(10), code4(11), code4(12), code4(13), code4(14), code4(15)};

// Where a kernel's weights come from: 8 columns of a tile at a time, as two vectors of 16 rows x 4 columns; from memory
// (kStream) or from a panel.
struct Nibbles {
  static constexpr int kBytes = 64;
  static constexpr bool kStream = true;
  const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kUnsigned4)));
  const __m512i low = _mm512_set1_epi8(15);
  void load(const uint8_t* from, __m512i* first, __m512i* second) const {
    const __m512i codes = _mm512_loadu_si512(from);
    *first = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low));
    *second = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low));
  }
};

template <bool Stream>
struct BytesFrom {
  static constexpr int kBytes = 128;
  static constexpr bool kStream = Stream;
  void load(const uint8_t* from, __m512i* first, __m512i* second) const {
    *first = _mm512_loadu_si512(from);
    *second = _mm512_loadu_si512(from + 64);
  }
};

struct V {
  using Nibbles = px::Nibbles;
  using Bytes = BytesFrom<true>;
  using Decoded = BytesFrom<false>;
  using DecodedBytes = BytesFrom<false>;
  static constexpr bool kBytesAreDecoded = true;
  static constexpr int kMostDirect = 8;
  static constexpr int kPanelColumns = 256;
  static constexpr int kPanelBytes = 16;
  static constexpr int kChunkRows = 1056;
  static constexpr int kMostTotals = 12;  // that stay in registers beside as many sums

  // Rows for which the registers hold the sums of so many tiles. From a panel weights are read when they are used, and
  // six rows of four tiles need the fewest reads.
  template <class Source>
  static constexpr int most_rows(int tiles) {
    return tiles == 1 ? 8 : tiles == 2 ? 6 : Source::kStream ? 2 : 6;
  }

  static constexpr int kAhead = 1024;
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }

  // The products of one step: 8 columns of Count tiles and Rows rows.
  template <class Source, int Rows, int Count>
  static void add_step(const Source& source, const uint8_t* const (&codes)[Count], const int8_t* levels,
                       __m512i (&sums)[Rows][Count]) {
    __m512i weights[2][Count];
#pragma GCC unroll 4
    for (int j = 0; j < Count; j++) source.load(codes[j], &weights[0][j], &weights[1][j]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++)
#pragma GCC unroll 8
      for (int i = 0; i < Rows; i++) {
        int32_t quad;
        __builtin_memcpy(&quad, levels + 4 * (half * Rows + i), 4);
        const __m512i a = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
        for (int j = 0; j < Count; j++) sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], weights[half][j], a);
      }
  }

  template <class Source, int Rows, int Count>
  static void multiply(const Block& block) {
    const Source source;
    const uint8_t* next = block.next;
    const int8_t* levels = block.levels;
    const int32_t* offsets = block.offsets;
    const float* activation_scales = block.activation_scales;
    const int64_t steps = block.group / 8;
    const uint8_t* codes[Count];
    const int8_t* scales[Count];
    for (int j = 0; j < Count; j++) {
      codes[j] = block.codes[j];
      scales[j] = block.scales[j];
    }
    // Totals over the groups that share an activation scale. Too many for the registers lie in memory in between.
    constexpr bool kKept = Rows * Count <= kMostTotals;
    __m512i kept[kKept ? Rows : 1][kKept ? Count : 1];
    alignas(64) int32_t apart[kKept ? 1 : Rows * Count * kTile];
    for (int64_t left = block.groups; left > 0; left -= block.most) {
      const int64_t groups = left < block.most ? left : block.most;
      if constexpr (kKept)
        for (int i = 0; i < Rows; i++)
          for (int j = 0; j < Count; j++) kept[i][j] = _mm512_setzero_si512();
      for (int64_t g = 0; g < groups; g++) {
        __m512i sums[Rows][Count];
#pragma GCC unroll 8
        for (int i = 0; i < Rows; i++)
#pragma GCC unroll 4
          for (int j = 0; j < Count; j++) sums[i][j] = _mm512_set1_epi32(offsets[i]);
        offsets += Rows;
        for (int64_t step = 0; step < steps; step++) {
          add_step<Source, Rows, Count>(source, codes, levels, sums);
          for (int j = 0; j < Count; j++) codes[j] += Source::kBytes;
          levels += 8 * Rows;
          if constexpr (Source::kStream) {
            for (int j = 0; j < Count; j++) prefetch(codes[j] + kAhead);
            if (Source::kBytes == 128) for (int j = 0; j < Count; j++) prefetch(codes[j] + kAhead + 64);
          } else {
            prefetch(levels + 1024);
            prefetch(next);
            prefetch(next + 64);
            next += block.next_step;
          }
        }
#pragma GCC unroll 4
        for (int j = 0; j < Count; j++) {
          const __m512i scale = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales[j])));
          scales[j] += kTile;
#pragma GCC unroll 8
          for (int i = 0; i < Rows; i++) {
            __m512i total = _mm512_mullo_epi32(sums[i][j], scale);
            if constexpr (kKept) {
              kept[i][j] = _mm512_add_epi32(kept[i][j], total);
            } else {
              int32_t* lies = apart + (i * Count + j) * kTile;
              if (g > 0) total = _mm512_add_epi32(total, _mm512_load_si512(lies));
              if (g + 1 < groups) _mm512_store_si512(lies, total);
              else add_scaled(total, activation_scales[i], block.sums + (j * Rows + i) * kTile);
            }
          }
        }
      }
      if constexpr (kKept)
        for (int i = 0; i < Rows; i++)
          for (int j = 0; j < Count; j++)
            add_scaled(kept[i][j], activation_scales[i], block.sums + (j * Rows + i) * kTile);
      activation_scales += Rows;
    }
  }

  static void add_scaled(__m512i total, float scale, float* to) {
    _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(scale), _mm512_loadu_ps(to)));
  }

  static void decode(const uint8_t* codes, int64_t, int64_t columns, uint8_t* to) {
    const px::Nibbles source;
    for (int64_t step = 0; step < columns / 8; step++) {
      __m512i first, second;
      source.load(codes + 64 * step, &first, &second);
      _mm512_store_si512(to + 128 * step, first);
      _mm512_store_si512(to + 128 * step + 64, second);
    }
  }

  static __m512 read(const void* from, Number type, int64_t at, __mmask16 mask) {
    if (type == Number::Float32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(from) + at);
    const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(from) + at);
    if (type == Number::Float16) return _mm512_cvtph_ps(half);
    return wide(half);
  }

  static void write(void* to, Number type, int64_t at, __mmask16 mask, __m512 value) {
    if (type == Number::Float32) return _mm512_mask_storeu_ps(static_cast<float*>(to) + at, mask, value);
    const __m256i half = type == Number::Float16 ? _mm512_cvtps_ph(value, 0) : narrow(value);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, mask, half);
  }

  static __m512 scaled(const float* sums, const Weight& weight, int64_t tile, __mmask16 mask) {
    const __m512 scale = _mm512_loadu_ps(weight.row_scales + tile * kTile);
    if (weight.bias == nullptr) return _mm512_mul_ps(_mm512_loadu_ps(sums), scale);
    const __m512 bias = read(weight.bias, static_cast<Number>(weight.bias_type), tile * kTile, mask);
    return _mm512_fmadd_ps(_mm512_loadu_ps(sums), scale, bias);
  }

  static void finish(const float* sums, const Weight& weight, int64_t tile, int64_t columns, Number type, int64_t at) {
    const auto mask = static_cast<__mmask16>((1u << columns) - 1);
    write(weight.out, type, at, mask, scaled(sums, weight, tile, mask));
  }

  static void finish_gated(const float* gate, const float* up, const Weight& weight, const Weight& other,
                           int64_t tile, int64_t columns, Number type, int64_t at) {
    const auto mask = static_cast<__mmask16>((1u << columns) - 1);
    const __m512 g = scaled(gate, weight, tile, mask);
    write(weight.out, type, at, mask, _mm512_mul_ps(silu(g), scaled(up, other, tile, mask)));
  }
};

void quantize(const void* x, Number type, int64_t stride, const Activations& to, int64_t tile) {
  const int64_t height = rows_of_tile(to, tile);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t i = 0; i < height; i++) {
    const int64_t start = (tile * to.tile + i) * stride;
    for (int64_t column = 0; column < to.width; column += kActivationGroup) {
      const int64_t left = to.width - column;
      const int vectors = static_cast<int>((left < kActivationGroup ? left : kActivationGroup) / 16);
      __m512 values[kActivationGroup / 16];
      __m512i most = _mm512_setzero_si512();  // as bits, so that NaN counts as larger than infinity
      for (int v = 0; v < vectors; v++) {
        values[v] = V::read(x, type, start + column + 16 * v, 0xffff);
        most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(values[v]), magnitude));
      }
      const Places places = places_of(to, tile, column, i);
      const float peak = float_of_bits(static_cast<uint32_t>(_mm512_reduce_max_epi32(most)));
      const float inverse = choose_scale(peak, places.scale);
      const __mmask16 used = inverse > 0.0f ? 0xffff : 0;
      __m512i sum = _mm512_setzero_si512();
      int64_t group = 0;
      for (int v = 0; v < vectors; v++) {
        const __m512 scaled = _mm512_mul_ps(values[v], _mm512_set1_ps(inverse));
        const __m512i whole = _mm512_maskz_cvtps_epi32(used, scaled);
        alignas(16) int32_t quads[4];
        _mm_store_si128(reinterpret_cast<__m128i*>(quads), _mm512_cvtepi32_epi8(whole));
        for (int q = 0; q < 4; q++) __builtin_memcpy(places.levels + (16 * v + 4 * q) * height, quads + q, 4);
        sum = _mm512_add_epi32(sum, whole);
        if (16 * (v + 1) == (group + 1) * to.group) {
          places.offsets[group * height] = -128 * _mm512_reduce_add_epi32(sum);
          sum = _mm512_setzero_si512();
          group++;
        }
      }
    }
  }
}

}  // namespace

const LinearKernels linear_avx512 = {6, V::kPanelColumns, V::kMostDirect, 0, quantize, strip<V>};

}  // namespace px
#endif
