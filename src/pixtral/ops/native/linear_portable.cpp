// Quantized linear layers in plain C++.
#include "linear_plain.h"
#include "linear_strip.h"

namespace px {

namespace {

// Where a kernel's weights come from: 8 columns of a tile at a time, as the levels of 2 x 16 rows x 4 columns.
struct Nibbles {
  static constexpr int kBytes = 64;
  static void load(const uint8_t* from, int8_t* levels) {
    for (int i = 0; i < 64; i++) {
      levels[i] = kLevels4[from[i] & 15];
      levels[64 + i] = kLevels4[from[i] >> 4];
    }
  }
};

struct Bytes {
  static constexpr int kBytes = 128;
  static void load(const uint8_t* from, int8_t* levels) {
    for (int i = 0; i < 128; i++) levels[i] = static_cast<int8_t>(from[i] - 128);
  }
};

struct Decoded {
  static constexpr int kBytes = 128;
  static void load(const uint8_t* from, int8_t* levels) { std::memcpy(levels, from, 128); }
};

struct V {
  using Nibbles = px::Nibbles;
  using Bytes = px::Bytes;
  using Decoded = px::Decoded;
  using DecodedBytes = px::Decoded;
  static constexpr bool kBytesAreDecoded = false;
  static constexpr int kMostDirect = 4;
  static constexpr int kMostRows = 4;
  static constexpr int kPanelColumns = 256;
  static constexpr int kPanelBytes = 16;
  static constexpr int kChunkRows = 192;

  template <class Source>
  static constexpr int most_rows(int tiles) {
    return tiles == 1 ? kMostRows : 0;
  }

  template <class Source, int Rows, int Count>
  static void multiply(const Block& block) {
    const uint8_t* codes = block.codes[0];
    const int8_t* scales = block.scales[0];
    const int8_t* levels = block.levels;
    const float* activation_scales = block.activation_scales;
    int64_t left = block.groups;
    for (; left > 0; left -= block.most) {
      int32_t totals[Rows][kTile] = {};
      for (int64_t g = 0; g < (left < block.most ? left : block.most); g++) {
        int32_t sums[Rows][kTile] = {};
        for (int64_t step = 0; step < block.group / 8; step++) {
          int8_t weights[128];
          Source::load(codes, weights);
          codes += Source::kBytes;
          for (int half = 0; half < 2; half++) {
            for (int i = 0; i < Rows; i++) {
              const int8_t* a = levels + 4 * (half * Rows + i);
              const int8_t* w = weights + 64 * half;
              for (int lane = 0; lane < kTile; lane++)
                sums[i][lane] += w[4 * lane] * a[0] + w[4 * lane + 1] * a[1] + w[4 * lane + 2] * a[2] + w[4 * lane + 3] * a[3];
            }
          }
          levels += 8 * Rows;
        }
        for (int i = 0; i < Rows; i++)
          for (int lane = 0; lane < kTile; lane++) totals[i][lane] += sums[i][lane] * scales[lane];
        scales += kTile;
      }
      for (int i = 0; i < Rows; i++) {
        float* to = block.sums + i * kTile;
        for (int lane = 0; lane < kTile; lane++)
          to[lane] = multiply_add(static_cast<float>(totals[i][lane]), activation_scales[i], to[lane]);
      }
      activation_scales += Rows;
    }
  }

  static void decode(const uint8_t* codes, int64_t bits, int64_t columns, uint8_t* to) {
    for (int64_t step = 0; step < columns / 8; step++) {
      auto* levels = reinterpret_cast<int8_t*>(to + 128 * step);
      if (bits == 4) {
        Nibbles::load(codes + Nibbles::kBytes * step, levels);
      } else {
        Bytes::load(codes + Bytes::kBytes * step, levels);
      }
    }
  }

  static constexpr auto finish = finish_plain;
  static constexpr auto finish_gated = finish_gated_plain;
};

}  // namespace

const LinearKernels linear_portable = {V::kMostRows, V::kPanelColumns, V::kMostDirect, 0, quantize_plain, strip<V>};

}  // namespace px
