// Quantized linear layers with AVX2. There are only products of unsigned and signed bytes, whose sums of two must stay
// below 2^15; these are multiplied by the group's scale as they are added up.
//
// 4 bits, few rows: half of a level (all are even) plus 64 is an unsigned byte that is small enough; what the 64 adds is
// taken off by the offsets. 4 bits, many rows: activations are the unsigned bytes, 128 more than they are. Of a sum of
// four, modulo 2^16, is taken off what the 128 added, which lies in the panel; what remains is at most 4 * 63 * 127, so
// that nothing is lost, and is multiplied by the scale once. 8 bits: |w| times (a with the sign of w).
#ifdef PX_X86
#include <immintrin.h>

#include "linear_plain.h"
#include "linear_strip.h"

namespace px {

namespace {

constexpr int8_t half4(int code) {
  const int level = kLevels4[code];
  return level % 2 == 0 && 255 * level <= INT16_MAX && 255 * level >= INT16_MIN
             ? static_cast<int8_t>(level / 2 + 64)
             : throw "a level that is odd or too large";
}

alignas(16) constexpr int8_t kHalves4[16] = {half4(0),  half4(1),  half4(2),  half4(3), half4(4),  half4(5),
                                             half4(6),  half4(7),  half4(8),  half4(9), half4(10), half4(11),
                                             half4(12), half4(13), half4(14), half4(15)};

__m256i load256(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

__m256i broadcast4(const int8_t* from) {
  int32_t quad;
  std::memcpy(&quad, from, 4);
  return _mm256_set1_epi32(quad);
}

// sum += pairs * scale. In assembler: GCC else takes all products before it adds one, and registers lack.
void add_scaled(__m256i& sum, __m256i pairs, __m256i scale) {
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(pairs, scale)));
}

// Where a kernel's weights come from: 8 columns of a tile, 4 (`half`) by 4, each as two vectors of 8 rows. From memory
// they are read once (kStream); from a panel for all rows.
struct Nibbles {
  static constexpr int kBytes = 64;
  static constexpr bool kStream = true, kOffsets = true, kHalves = true;  // of levels, so the sums are halves
  const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kHalves4)));
  const __m256i low = _mm256_set1_epi8(15);

  __m256i load(const uint8_t* from, int half, int rows) const {
    const __m256i codes = load256(from + 32 * rows);
    return _mm256_shuffle_epi8(table, _mm256_and_si256(half == 0 ? codes : _mm256_srli_epi16(codes, 4), low));
  }

  template <int Rows>
  void add_step(const uint8_t* codes, const int8_t* levels, const __m256i (&scale)[2], __m256i (&sums)[Rows][2]) const {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m256i weights[2] = {load(codes, half, 0), load(codes, half, 1)};
#pragma GCC unroll 4
      for (int i = 0; i < Rows; i++) {
        const __m256i a = broadcast4(levels + 4 * (half * Rows + i));
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) add_scaled(sums[i][j], _mm256_maddubs_epi16(weights[j], a), scale[j]);
      }
    }
  }
};

// Halves of levels, and for each two columns of both halves what 128 more in each activation adds to their sum.
struct Decoded {
  static constexpr int kBytes = 192;
  static constexpr bool kStream = false, kOffsets = false, kHalves = true;

  template <int Rows>
  void add_step(const uint8_t* codes, const int8_t* levels, const __m256i (&scale)[2], __m256i (&sums)[Rows][2]) const {
    const __m256i added[2] = {load256(codes + 128), load256(codes + 160)};
#pragma GCC unroll 4
    for (int i = 0; i < Rows; i++) {
      const __m256i a = broadcast4(levels + 4 * i);
      const __m256i b = broadcast4(levels + 4 * (Rows + i));
#pragma GCC unroll 2
      for (int j = 0; j < 2; j++) {
        const __m256i quads = _mm256_add_epi16(products(a, codes + 32 * j), products(b, codes + 64 + 32 * j));
        add_scaled(sums[i][j], _mm256_sub_epi16(quads, added[j]), scale[j]);
      }
    }
  }

  // In assembler: GCC else keeps weights in registers, which lack.
  static __m256i products(__m256i a, const uint8_t* weights) {
    __m256i pairs;
    asm("vpmaddubsw %2, %1, %0" : "=x"(pairs) : "x"(a), "m"(*reinterpret_cast<const __m256i_u*>(weights)));
    return pairs;
  }

  static void decode(const Nibbles& source, const uint8_t* codes, uint8_t* to) {
    const __m256i offset = _mm256_set1_epi8(-128);  // an unsigned byte here
    const __m256i middle = _mm256_set1_epi8(64);
    for (int j = 0; j < 2; j++) {
      const __m256i weights[2] = {_mm256_sub_epi8(source.load(codes, 0, j), middle),
                                  _mm256_sub_epi8(source.load(codes, 1, j), middle)};
      store256(to + 32 * j, weights[0]);
      store256(to + 64 + 32 * j, weights[1]);
      store256(to + 128 + 32 * j, _mm256_add_epi16(_mm256_maddubs_epi16(offset, weights[0]),
                                                   _mm256_maddubs_epi16(offset, weights[1])));
    }
  }

  static void store256(uint8_t* to, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }
};

template <bool Stream>
struct BytesFrom {
  static constexpr int kBytes = 128;
  static constexpr bool kStream = Stream, kOffsets = false, kHalves = false;
  const __m256i flip = _mm256_set1_epi8(-128);

  template <int Rows>
  void add_step(const uint8_t* codes, const int8_t* levels, const __m256i (&scale)[2], __m256i (&sums)[Rows][2]) const {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m256i weights[2] = {_mm256_xor_si256(load256(codes + 64 * half), flip),
                                  _mm256_xor_si256(load256(codes + 64 * half + 32), flip)};
#pragma GCC unroll 4
      for (int i = 0; i < Rows; i++) {
        const __m256i a = broadcast4(levels + 4 * (half * Rows + i));
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
          add_scaled(sums[i][j], _mm256_maddubs_epi16(_mm256_abs_epi8(weights[j]), _mm256_sign_epi8(a, weights[j])),
                     scale[j]);
      }
    }
  }
};

struct V {
  using Nibbles = px::Nibbles;
  using Bytes = BytesFrom<true>;
  using Decoded = px::Decoded;
  using DecodedBytes = BytesFrom<false>;
  static constexpr bool kBytesAreDecoded = true;
  static constexpr int kMostDirect = 4;
  static constexpr int kMostRows = 4;
  static constexpr int kPanelColumns = 256;
  static constexpr int kPanelBytes = 24;
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
    constexpr int kLines = Source::kHalves ? 2 : 4;  // of memory for 16 columns
    const Source source;
    const uint8_t* codes = block.codes[0];
    const uint8_t* next = block.next;
    const int8_t* scales = block.scales[0];
    const int8_t* levels = block.levels;
    const int32_t* offsets = block.offsets;
    const float* activation_scales = block.activation_scales;
    const int64_t steps = block.group / 8;
    for (int64_t left = block.groups; left > 0; left -= block.most) {
      __m256i sums[Rows][2];
#pragma GCC unroll 4
      for (int i = 0; i < Rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
      for (int64_t g = 0; g < (left < block.most ? left : block.most); g++) {
        const __m256i scale[2] = {twice(scales), twice(scales + 8)};
        if (Source::kOffsets) add_offsets<Rows>(offsets, scales, sums);
        for (int64_t step = 0; step < steps; step += 2) {
          source.template add_step<Rows>(codes, levels, scale, sums);
          source.template add_step<Rows>(codes + Source::kBytes, levels + 8 * Rows, scale, sums);
          codes += 2 * Source::kBytes;
          levels += 16 * Rows;
#pragma GCC unroll 4
          for (int line = 0; line < kLines; line++)
            prefetch((Source::kStream ? codes + 1024 : next) + 64 * line);
          next += 2 * block.next_step;
        }
        scales += kTile;
        offsets += Rows;
      }
#pragma GCC unroll 4
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
#pragma GCC unroll 4
      for (int i = 0; i < Rows; i++)
        sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_mullo_epi32(scale, _mm256_set1_epi32(offsets[i] >> 1)));
    }
  }

  static void decode(const uint8_t* codes, int64_t, int64_t columns, uint8_t* to) {
    const px::Nibbles source;
    for (int64_t step = 0; step < columns / 8; step++, codes += px::Nibbles::kBytes, to += px::Decoded::kBytes)
      px::Decoded::decode(source, codes, to);
  }

  static constexpr auto finish = finish_plain;
  static constexpr auto finish_gated = finish_gated_plain;
};

}  // namespace

const LinearKernels linear_avx2 = {V::kMostRows, V::kPanelColumns, V::kMostDirect, -128, quantize_plain, strip<V>};

}  // namespace px
#endif
