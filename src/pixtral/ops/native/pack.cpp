// Weights to codes and scales, and back: one tile of 16 rows at a time.
#include "pack.h"

#include <atomic>
#include <limits>

#include "api.h"
#include "cpu.h"
#include "pool.h"

namespace px {

namespace {

constexpr int kTile = 16;

// A weight as Python describes it: an array of 64-bit numbers. `dense` is read by px_pack and written by px_unpack.
struct Packing {
  void* dense;     // (rows, width)
  int64_t type;
  int64_t rows;
  int64_t width;
  int64_t stride;  // elements from one row of `dense` to the next
  int64_t bits;
  int64_t group;
  int64_t threads;
  uint8_t* codes;
  int8_t* scales;
  float* row_scales;

  int64_t groups() const { return width / group; }
  uint8_t* codes_of(int64_t tile) const { return codes + tile * kTile * width * bits / 8; }
  int8_t* scales_of(int64_t tile) const { return scales + tile * kTile * groups(); }
};

const PackKernels& kernels() {
#ifdef PX_X86
  if (isa() >= Isa::Avx512) return pack_avx512;
  if (isa() == Isa::Avx2) return pack_avx2;
#endif
  return pack_portable;
}

// A group of weights as floats; false when one of them is NaN or infinite.
bool read_group(const Packing& p, int64_t row, int64_t g, float* to) {
  uint32_t most = 0;
  for (int64_t k = 0; k < p.group; k++) {
    to[k] = read_number(p.dense, static_cast<Number>(p.type), row * p.stride + g * p.group + k);
    const uint32_t size = bits_of_float(to[k]) & 0x7fffffff;
    most = size > most ? size : most;
  }
  return most < 0x7f800000;
}

int64_t first_bad(const Packing& p, int64_t row, int64_t g) {
  int64_t at = row * p.width + g * p.group;
  for (int64_t k = g * p.group;; k++, at++) {
    const float value = read_number(p.dense, static_cast<Number>(p.type), row * p.stride + k);
    if (!(value - value == 0.0f)) return at;
  }
}

// Codes of a group of 16 rows -> the bytes of the format.
void store_codes(const uint8_t (*codes)[kMostGroup], const Packing& p, int64_t tile, int64_t g) {
  uint8_t* to = p.codes_of(tile) + g * p.group * kTile * p.bits / 8;
  for (int64_t k = 0; k < p.group; k += 4) {
    const bool second = p.bits == 4 && k % 8 == 4;
    uint8_t* quads = to + (p.bits == 8 ? k / 4 : k / 8) * 64;
    for (int lane = 0; lane < kTile; lane++) {
      for (int j = 0; j < 4; j++) {
        uint8_t& byte = quads[4 * lane + j];
        byte = second ? static_cast<uint8_t>(byte | codes[lane][k + j] << 4) : codes[lane][k + j];
      }
    }
  }
}

// Returns the place of the first weight that is not finite, or the largest number.
int64_t pack_tile(const Packing& p, const PackKernels& kernels, int64_t tile, float* wanted) {
  const int64_t groups = p.groups();
  const int64_t height = p.rows - tile * kTile < kTile ? p.rows - tile * kTile : kTile;
  float* row_scales = p.row_scales + tile * kTile;
  alignas(64) float weights[kMostGroup];
  for (int64_t i = 0; i < kTile; i++) {
    row_scales[i] = 0.0f;
    for (int64_t g = 0; i < height && g < groups; g++) {
      const int64_t row = tile * kTile + i;
      if (!read_group(p, row, g, weights)) return first_bad(p, row, g);
      const float scale = kernels.fit(weights, p.group, p.bits);
      wanted[i * groups + g] = scale;
      const float size = scale < 0.0f ? -scale : scale;
      row_scales[i] = size > row_scales[i] ? size : row_scales[i];
    }
    row_scales[i] = row_scales[i] / 127.0f;
  }
  uint8_t codes[kTile][kMostGroup];
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t i = 0; i < kTile; i++) {
      int8_t scale = 0;
      if (i < height && wanted[i * groups + g] != 0.0f) {
        read_group(p, tile * kTile + i, g, weights);
        scale = kernels.snap(weights, p.group, p.bits, wanted[i * groups + g], row_scales[i], codes[i]);
      } else {
        std::memset(codes[i], p.bits == 4 ? 8 : 128, sizeof(codes[i]));  // the level next to zero
      }
      p.scales_of(tile)[g * kTile + i] = scale;
    }
    store_codes(codes, p, tile, g);
  }
  return std::numeric_limits<int64_t>::max();
}

void unpack_tile(const Packing& p, int64_t tile) {
  const auto type = static_cast<Number>(p.type);
  const int64_t height = p.rows - tile * kTile < kTile ? p.rows - tile * kTile : kTile;
  for (int64_t g = 0; g < p.groups(); g++) {
    const uint8_t* from = p.codes_of(tile) + g * p.group * kTile * p.bits / 8;
    for (int64_t i = 0; i < height; i++) {
      const float scale = p.scales_of(tile)[g * kTile + i];
      const float row_scale = p.row_scales[tile * kTile + i];
      const int64_t at = (tile * kTile + i) * p.stride + g * p.group;
      float values[kMostGroup];
      if (p.bits == 4) {
        float table[16];
        for (int c = 0; c < 16; c++) table[c] = static_cast<float>(kLevels4[c]) * scale * row_scale;
        for (int64_t k = 0; k < p.group; k += 8) {
          for (int j = 0; j < 4; j++) {
            const uint8_t byte = from[k * 8 + 4 * i + j];
            values[k + j] = table[byte & 15];
            values[k + 4 + j] = table[byte >> 4];
          }
        }
      } else {
        for (int64_t k = 0; k < p.group; k++)
          values[k] = static_cast<float>(from[k / 4 * 64 + 4 * i + k % 4] - 128) * scale * row_scale;
      }
      for (int64_t k = 0; k < p.group; k++) write_number(p.dense, type, at + k, values[k]);
    }
  }
}

}  // namespace

}  // namespace px

// -1 when done, else the place (row * width + column) of a weight that is not finite, the first of all. `work` holds
// one float for each group of the padded rows.
PX_API int64_t px_pack(const int64_t* numbers, float* work) {
  const auto& p = *reinterpret_cast<const px::Packing*>(numbers);
  const px::PackKernels& kernels = px::kernels();
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> bad{kNone};
  px::parallel(static_cast<int>(p.threads), (p.rows + px::kTile - 1) / px::kTile, [&](int64_t tile) {
    const int64_t found = px::pack_tile(p, kernels, tile, work + tile * px::kTile * p.groups());
    int64_t before = bad.load();
    while (found < before && !bad.compare_exchange_weak(before, found)) {
    }
  });
  return bad.load() == kNone ? -1 : bad.load();
}

PX_API void px_unpack(const int64_t* numbers) {
  const auto& p = *reinterpret_cast<const px::Packing*>(numbers);
  px::parallel(static_cast<int>(p.threads), (p.rows + px::kTile - 1) / px::kTile,
               [&](int64_t tile) { px::unpack_tile(p, tile); });
}
