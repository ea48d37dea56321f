// Quantized linear layers with AVX2. There are only products of unsigned and signed bytes, whose sums of two must stay
// below 2^15. With 4 bits, half of a level (all are even) plus 64 is an unsigned byte that is small enough. With 8 bits,
// |w| times (a with the sign of w) gives w * a. Sums of two are multiplied by the group's scale as they are added up.
#ifdef PX_X86
#include <immintrin.h>

#include "linear_plain.h"
#include "linear_strip.h"

namespace px {

namespace {

constexpr int8_t half4(int code) {
  return kLevels4[code] % 2 == 0 ? static_cast<int8_t>(kLevels4[code] / 2 + 64) : throw "an odd level";
}

alignas(16) constexpr int8_t kHalves4[16] = {half4(0),  half4(1),  half4(2),  half4(3), half4(4),  half4(5),
                                             half4(6),  half4(7),  half4(8),  half4(9), half4(10), half4(11),
                                             half4(12), half4(13), half4(14), half4(15)};

__m256i load256(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

// Where a kernel's weights come from: 8 columns of a tile at a time; of these 4 (`half`) as two vectors of 8 rows. From
// memory they are read once (kStream); from a panel for all rows.
struct Nibbles {
  static constexpr int kBytes = 64;
  static constexpr bool kHalves = true, kStream = true;
  const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kHalves4)));
  const __m256i low = _mm256_set1_epi8(15);
  __m256i load(const uint8_t* from, int half, int rows) const {
    const __m256i codes = load256(from + 32 * rows);
    return _mm256_shuffle_epi8(table, _mm256_and_si256(half == 0 ? codes : _mm256_srli_epi16(codes, 4), low));
  }
};

struct Decoded {
  static constexpr int kBytes = 128;
  static constexpr bool kHalves = true, kStream = false;
  __m256i load(const uint8_t* from, int half, int rows) const { return load256(from + 64 * half + 32 * rows); }
};

template <bool Stream>
struct BytesFrom {
  static constexpr int kBytes = 128;
  static constexpr bool kHalves = false, kStream = Stream;
  const __m256i flip = _mm256_set1_epi8(-128);
  __m256i load(const uint8_t* from, int half, int rows) const {
    return _mm256_xor_si256(load256(from + 64 * half + 32 * rows), flip);
  }
};

struct V {
  using Nibbles = px::Nibbles;
  using Bytes = BytesFrom<true>;
  using Decoded = px::Decoded;
  using DecodedBytes = BytesFrom<false>;
  static constexpr bool kBytesAreDecoded = true;
  static constexpr int kMostDirect = 4;
  static constexpr int kMostRows = 5;
  static constexpr int kPanelColumns = 256;
  static constexpr int kChunkRows = 240;

  template <class Source>
  static constexpr int most_rows(int tiles) {
    return tiles == 1 ? kMostRows : 0;
  }

  static void prefetch(const uint8_t* at) { _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0); }

  // A scale for each of 8 rows, twice in its lane.
  static __m256i twice(const int8_t* scales) {
    const __m256i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales)));
    return _mm256_blend_epi16(x, _mm256_slli_epi32(x, 16), 0xaa);
  }

  template <class Source, int Rows, int Count>
  static void multiply(const Block& block) {
    static_assert(Count == 1, "one tile fills the registers");
    const Source source;
    const uint8_t* codes = block.codes[0];
    const uint8_t* next = block.next;
    const int8_t* scales = block.scales[0];
    const int8_t* levels = block.levels;
    const int32_t* offsets = block.offsets;
    const float* activation_scales = block.activation_scales;
    const int64_t steps = block.group / 8;
    const int64_t most = kActivationGroup / block.group;
    for (int64_t left = block.columns / block.group; left > 0; left -= most) {
      __m256i sums[Rows][2];
#pragma GCC unroll 5
      for (int i = 0; i < Rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
      for (int64_t g = 0; g < (left < most ? left : most); g++) {
        const __m256i scale[2] = {twice(scales), twice(scales + 8)};
        if (Source::kHalves) add_offsets<Rows>(offsets, scales, sums);
        for (int64_t step = 0; step < steps; step++) {
#pragma GCC unroll 2
          for (int half = 0; half < 2; half++) {
            const __m256i weights[2] = {source.load(codes, half, 0), source.load(codes, half, 1)};
#pragma GCC unroll 5
            for (int i = 0; i < Rows; i++) {
              int32_t quad;
              std::memcpy(&quad, levels + 4 * (half * Rows + i), 4);
              const __m256i a = _mm256_set1_epi32(quad);
#pragma GCC unroll 2
              for (int j = 0; j < 2; j++) {
                const __m256i pairs = Source::kHalves ? _mm256_maddubs_epi16(weights[j], a)
                                                      : _mm256_maddubs_epi16(_mm256_abs_epi8(weights[j]),
                                                                             _mm256_sign_epi8(a, weights[j]));
                sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_madd_epi16(pairs, scale[j]));
              }
              asm("" : "+x"(sums[i][0]), "+x"(sums[i][1]));  // or GCC takes all products first, and registers lack
            }
          }
          codes += Source::kBytes;
          levels += 8 * Rows;
          prefetch(Source::kStream ? codes + 1024 : next);
          if (Source::kBytes == 128) prefetch(Source::kStream ? codes + 1024 + 64 : next + 64);
          next += block.next_step;
        }
        scales += kTile;
        offsets += Rows;
      }
#pragma GCC unroll 5
      for (int i = 0; i < Rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
          const __m256i total = Source::kHalves ? _mm256_slli_epi32(sums[i][j], 1) : sums[i][j];
          float* to = block.sums + i * kTile + 8 * j;
          const __m256 scale = _mm256_set1_ps(activation_scales[i]);
          _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), scale, _mm256_loadu_ps(to)));
        }
      activation_scales += Rows;
    }
  }

  // What 64 too much in each weight adds is taken off: half of an offset, which is for 128.
  template <int Rows>
  static void add_offsets(const int32_t* offsets, const int8_t* scales, __m256i (&sums)[Rows][2]) {
    for (int j = 0; j < 2; j++) {
      const __m256i scale = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + 8 * j)));
#pragma GCC unroll 5
      for (int i = 0; i < Rows; i++)
        sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_mullo_epi32(scale, _mm256_set1_epi32(offsets[i] >> 1)));
    }
  }

  static void decode(const uint8_t* codes, int64_t, int64_t columns, uint8_t* to) {
    const px::Nibbles source;
    for (int64_t step = 0; step < columns / 8; step++, codes += px::Nibbles::kBytes, to += 128)
      for (int i = 0; i < 4; i++)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32 * i), source.load(codes, i / 2, i % 2));
  }

  static constexpr auto finish = finish_plain;
  static constexpr auto finish_gated = finish_gated_plain;
};

}  // namespace

const LinearKernels linear_avx2 = {V::kMostRows, V::kPanelColumns, V::kMostDirect, quantize_plain, strip<V>};

}  // namespace px
#endif
