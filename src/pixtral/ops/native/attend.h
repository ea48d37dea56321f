// Attention over packed sequences: what a call takes, and what each instruction set provides for it.
#pragma once

#include <cstdint>

namespace px {

// Keys whose weights are worked out together. A row's result follows from this number alone and not from how the work
// is divided: alone or in a batch, in a prompt or in a step, it has the same bits.
constexpr int kChunk = 256;

enum class Type : int32_t { F32 = 0, BF16 = 1, I8 = 2 };

// Strides count elements from row to row; heads lie one after another and are contiguous.
struct AttendCall {
  const void* q;        // (rows, heads, dim) of `type`
  const void* new_k;    // (rows, key_heads, dim) of `type`: this call's, to be stored; null when nothing is stored
  const void* new_v;
  void* out;            // (rows, heads, dim) of `type`, contiguous
  void* keys;           // (slots, key_heads, dim) of `stored`
  void* values;
  float* key_scales;    // (slots, key_heads) for I8, else null
  float* value_scales;
  const int64_t* layout;  // (3, sequences): new rows, keys, and first slot (of the slots or of the table) of each
  const int64_t* slots;   // (rows) where new keys go
  const int64_t* table;   // slots of all sequences' keys one after another, or null: consecutive slots
  int64_t q_stride, new_k_stride, new_v_stride, key_stride, value_stride;
  int64_t rows, sequences;
  int32_t heads, key_heads, dim;
  Type type, stored;
  int32_t causal;
  int32_t rotate;       // I8: keys are stored, and queries read, after a Hadamard transform
  float scale;
  int32_t threads;
};

// A sequence's place in a call.
struct Sequence {
  int64_t first_row, rows, keys, first_slot;
  const int64_t* table;  // its own part, or null

  int64_t slot(int64_t key) const { return table ? table[key] : first_slot + key; }
};

// Some rows of some key heads' queries against some chunks of keys. With `group` query heads for a key head the task
// has key_heads * rows * group queries, in that order.
struct AttendTask {
  int64_t sequence;
  int32_t first_head, key_heads;
  int64_t first_row, rows;      // within the sequence
  int64_t first_chunk, chunks;
  float* partials;              // (chunks, queries * (dim + 2)) to be merged later, or null: the result goes to `out`
};

struct AttendKernels {
  void (*store)(const AttendCall&, int64_t first_row, int64_t last_row);
  void (*attend)(const AttendCall&, const Sequence&, const AttendTask&);
  // All partials of a task's queries, into `out`.
  void (*merge)(const AttendCall&, const Sequence&, const AttendTask&);
};

extern const AttendKernels attend_avx2, attend_avx512, attend_avx512_bf16;

}  // namespace px
