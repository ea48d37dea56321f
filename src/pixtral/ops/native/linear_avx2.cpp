// Quantized linear layers with AVX2. There are only products of unsigned and signed bytes, added in pairs to 16 bits:
// |w| times (a with the sign of w) gives w * a, and two such products stay below 2^15 because no level is -128. For many
// rows weights are brought to 16 bits, their scales in them, which saves as many instructions as twice the width costs.
#ifdef PX_X86
#include <immintrin.h>

#include <type_traits>

#include "linear_plain.h"
#include "linear_strip.h"

namespace px {

namespace {

constexpr int8_t level4(int code) { return static_cast<int8_t>(kLevels4[code]); }

alignas(16) constexpr int8_t kSigned4[16] = {
    level4(0), level4(1), level4(2),  level4(3),  level4(4),  level4(5),  level4(6),  level4(7),
    level4(8), level4(9), level4(10), level4(11), level4(12), level4(13), level4(14), level4(15)};

__m256i load256(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

// Where a kernel's weights come from: 8 columns of a tile at a time; of these 4 (`half`) as two vectors of 8 rows.
struct Nibbles {
  static constexpr int kBytes = 64;
  const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kSigned4)));
  const __m256i low = _mm256_set1_epi8(15);
  __m256i load(const uint8_t* from, int half, int rows) const {
    const __m256i codes = load256(from + 32 * rows);
    return _mm256_shuffle_epi8(table, _mm256_and_si256(half == 0 ? codes : _mm256_srli_epi16(codes, 4), low));
  }
};

struct Bytes {
  static constexpr int kBytes = 128;
  const __m256i flip = _mm256_set1_epi8(-128);
  __m256i load(const uint8_t* from, int half, int rows) const {
    return _mm256_xor_si256(load256(from + 64 * half + 32 * rows), flip);
  }
};

// Of a panel: levels times their scales, in 16 bits. Two columns at a time, as two vectors of 8 rows.
struct Decoded {};

struct V {
  using Nibbles = px::Nibbles;
  using Bytes = px::Bytes;
  using Decoded = px::Decoded;
  static constexpr bool kBytesAreDecoded = false;
  static constexpr int kDecodedBytes = 2;
  static constexpr int kMostDirect = 4;
  static constexpr int kPanelRows = 6;
  static constexpr int kPanelColumns = kActivationGroup;
  static constexpr int kChunkRows = 192;

  template <class Source>
  static constexpr int most_rows(int tiles) {
    return tiles > 1 ? 0 : std::is_same_v<Source, px::Decoded> ? kPanelRows : kMostDirect;
  }

  template <class Source, int Rows, int Count>
  static void multiply(const Block& block) {
    if constexpr (std::is_same_v<Source, px::Decoded>) multiply_pairs<Rows>(block);
    else multiply_bytes<Source, Rows>(block);
  }

  // One sum runs over all columns that share a scale of activations; scales of weights are in the weights.
  template <int Rows>
  static void multiply_pairs(const Block& block) {
    const uint8_t* weights = block.codes[0];
    const uint8_t* next = block.next;
    const int64_t next_step = block.next_step / 4;
    const int32_t* levels = reinterpret_cast<const int32_t*>(block.levels);
    const float* activation_scales = block.activation_scales;
    for (int64_t left = block.columns; left > 0; left -= kActivationGroup) {
      __m256i sums[Rows][2];
#pragma GCC unroll 6
      for (int i = 0; i < Rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
      for (int64_t pairs = (left < kActivationGroup ? left : kActivationGroup) / 2; pairs > 0; pairs--) {
        const __m256i w0 = load256(weights), w1 = load256(weights + 32);
#pragma GCC unroll 6
        for (int i = 0; i < Rows; i++) {
          const __m256i a = _mm256_set1_epi32(levels[i]);
          sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(w0, a));
          sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(w1, a));
          asm("" : "+x"(sums[i][0]), "+x"(sums[i][1]));  // or GCC takes all products first, for which registers lack
        }
        weights += 64;
        levels += Rows;
        _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
        next += next_step;
      }
#pragma GCC unroll 6
      for (int i = 0; i < Rows; i++) {
        add_scaled(sums[i][0], activation_scales[i], block.sums + i * kTile);
        add_scaled(sums[i][1], activation_scales[i], block.sums + i * kTile + 8);
      }
      activation_scales += Rows;
    }
  }

  static void add_scaled(__m256i total, float scale, float* to) {
    _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(scale), _mm256_loadu_ps(to)));
  }

  template <class Source, int Rows>
  static void multiply_bytes(const Block& block) {
    const Source source;
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t* codes = block.codes[0];
    const int8_t* scales = block.scales[0];
    const int8_t* levels = block.levels;
    const float* activation_scales = block.activation_scales;
    const int64_t steps = block.group / 8;
    const int64_t most = kActivationGroup / block.group;
    for (int64_t left = block.columns / block.group; left > 0; left -= most) {
      __m256i totals[Rows][2];
      for (auto& total : totals) total[0] = total[1] = _mm256_setzero_si256();
      for (int64_t g = 0; g < (left < most ? left : most); g++) {
        __m256i sums[Rows][2];
        for (auto& sum : sums) sum[0] = sum[1] = _mm256_setzero_si256();
        for (int64_t step = 0; step < steps; step++) {
          for (int half = 0; half < 2; half++) {
            const __m256i w0 = source.load(codes, half, 0), w1 = source.load(codes, half, 1);
            const __m256i size0 = _mm256_abs_epi8(w0), size1 = _mm256_abs_epi8(w1);
            for (int i = 0; i < Rows; i++) {
              int32_t quad;
              std::memcpy(&quad, levels + 4 * (half * Rows + i), 4);
              const __m256i a = _mm256_set1_epi32(quad);
              const __m256i pairs0 = _mm256_maddubs_epi16(size0, _mm256_sign_epi8(a, w0));
              const __m256i pairs1 = _mm256_maddubs_epi16(size1, _mm256_sign_epi8(a, w1));
              sums[i][0] = _mm256_add_epi32(sums[i][0], _mm256_madd_epi16(pairs0, ones));
              sums[i][1] = _mm256_add_epi32(sums[i][1], _mm256_madd_epi16(pairs1, ones));
            }
          }
          codes += Source::kBytes;
          levels += 8 * Rows;
          _mm_prefetch(reinterpret_cast<const char*>(codes + 1024), _MM_HINT_T0);
        }
        for (int j = 0; j < 2; j++) {
          const auto* from = reinterpret_cast<const __m128i*>(scales + 8 * j);
          const __m256i scale = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from));
          for (int i = 0; i < Rows; i++)
            totals[i][j] = _mm256_add_epi32(totals[i][j], _mm256_mullo_epi32(sums[i][j], scale));
        }
        scales += kTile;
      }
      for (int i = 0; i < Rows; i++)
        for (int j = 0; j < 2; j++) add_scaled(totals[i][j], activation_scales[i], block.sums + i * kTile + 8 * j);
      activation_scales += Rows;
    }
  }

  // Lane r of both vectors: row r of a pair of columns.
  static void put_pairs(__m256i bytes, const __m256i& scales, uint8_t* to) {
    const __m256i first = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), second = _mm256_srai_epi16(bytes, 8);
    const __m256i even = _mm256_mullo_epi16(first, scales), odd = _mm256_mullo_epi16(second, scales);
    // in a lane: columns 0 and 2 of `even`, 1 and 3 of `odd`
    const __m256i low = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
    const __m256i high = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + 64), high);
  }

  template <class Source>
  static void decode(const uint8_t* codes, const int8_t* scales, int64_t group, int64_t columns, uint8_t* to) {
    const Source source;
    for (int64_t column = 0; column < columns; scales += kTile) {
      __m256i scale[2];
      for (int rows = 0; rows < 2; rows++) {
        const __m256i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + 8 * rows)));
        scale[rows] = _mm256_blend_epi16(x, _mm256_slli_epi32(x, 16), 0xaa);
      }
      for (const int64_t end = column + group; column < end; column += 8, codes += Source::kBytes)
        for (int half = 0; half < 2; half++, to += 128)
          for (int rows = 0; rows < 2; rows++) put_pairs(source.load(codes, half, rows), scale[rows], to + 32 * rows);
    }
  }

  static void decode(const Weight& weight, const uint8_t* codes, const int8_t* scales, int64_t columns, uint8_t* to) {
    weight.bits == 4 ? decode<px::Nibbles>(codes, scales, weight.group, columns, to)
                     : decode<px::Bytes>(codes, scales, weight.group, columns, to);
  }

  static constexpr auto finish = finish_plain;
  static constexpr auto finish_gated = finish_gated_plain;
};

}  // namespace

const LinearKernels linear_avx2 = {V::kPanelRows, V::kPanelColumns, V::kMostDirect, 2, quantize_plain, strip<V>};

}  // namespace px
#endif
