// Attention: near a softmax in double, for every kind of cache, on heads of odd sizes, in buffers without a byte to spare.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "../../src/pixtral/ops/native/attend.h"
#include "check.h"

extern "C" int px_can_attend();
extern "C" void px_attend(const px::AttendCall* call);

namespace {

using Floats = std::vector<float>;

Floats drawn(Random& random, int64_t count) {
  Floats out(count);
  for (auto& value : out)  // rounded, so that both types hold the same
    value = px::float_of_bits(static_cast<uint32_t>(px::bfloat_of_float(std::normal_distribution<float>()(random))) << 16);
  return out;
}

// Numbers in a buffer of exactly their size.
std::vector<char> stored_as(const Floats& from, px::Type type) {
  std::vector<char> out(from.size() * (type == px::Type::F32 ? 4 : 2));
  for (size_t i = 0; i < from.size(); i++)
    px::write_number(out.data(), type == px::Type::F32 ? px::Number::Float32 : px::Number::BFloat16,
                     static_cast<int64_t>(i), from[i]);
  return out;
}

// A copy that ends where a page begins that nobody may read: the sanitizers do not see what masked loads read.
class Guarded {
 public:
  explicit Guarded(const std::vector<char>& from) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), room = (from.size() + page - 1) / page * page;
    size_ = room + page;
    memory_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(memory_ != MAP_FAILED && mprotect(memory_ + room, page, PROT_NONE) == 0, "no memory");
    data_ = memory_ + room - from.size();
    std::memcpy(data_, from.data(), from.size());
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, size_); }
  char* data() const { return data_; }

 private:
  char *memory_, *data_;
  size_t size_;
};

struct Case {
  int64_t rows, keys;
  int heads, key_heads, dim;
  bool causal, cached, paged;
  px::Type type, stored;
};

// The weighted values of one query head and row.
std::vector<double> expected_of(const Case& c, const Floats& q, const Floats& k, const Floats& v, int64_t row, int head) {
  const int64_t seen = c.causal ? c.keys - c.rows + row + 1 : c.keys;
  const int group = c.heads / c.key_heads;
  std::vector<double> scores(seen), out(c.dim);
  for (int64_t j = 0; j < seen; j++)
    for (int d = 0; d < c.dim; d++)
      scores[j] += q[(row * c.heads + head) * c.dim + d] * k[(j * c.key_heads + head / group) * c.dim + d] / std::sqrt(c.dim);
  const double most = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - most);
  for (int64_t j = 0; j < seen; j++)
    for (int d = 0; d < c.dim; d++) out[d] += scores[j] / sum * v[(j * c.key_heads + head / group) * c.dim + d];
  return out;
}

void check_case(Random& random, const Case& c) {
  const Floats q = drawn(random, c.rows * c.heads * c.dim);
  const Floats k = drawn(random, c.keys * c.key_heads * c.dim), v = drawn(random, c.keys * c.key_heads * c.dim);
  const Guarded q_lies(stored_as(q, c.type)), k_lies(stored_as(k, c.type)), v_lies(stored_as(v, c.type));
  std::vector<char> out(q.size() * (c.type == px::Type::F32 ? 4 : 2));
  std::vector<int64_t> table(c.keys);
  std::iota(table.begin(), table.end(), 0);
  if (c.paged) std::shuffle(table.begin(), table.end(), random);

  px::AttendCall call{};
  call.q = q_lies.data();
  call.out = out.data();
  call.type = call.stored = c.type;
  call.rows = c.rows, call.sequences = 1;
  call.heads = c.heads, call.key_heads = c.key_heads, call.dim = c.dim;
  call.causal = c.causal, call.scale = 1.0f / std::sqrt(static_cast<float>(c.dim)), call.threads = 2;
  const int64_t width = static_cast<int64_t>(c.key_heads) * c.dim;
  call.q_stride = static_cast<int64_t>(c.heads) * c.dim, call.key_stride = call.value_stride = width;
  std::vector<int64_t> layout{c.rows, c.keys, 0};
  call.layout = layout.data();
  const size_t bytes = c.stored == px::Type::I8 ? 1 : c.stored == px::Type::F32 ? 4 : 2;
  const Guarded keys(std::vector<char>(k.size() * bytes)), values(std::vector<char>(k.size() * bytes));
  Floats key_scales, value_scales;
  if (!c.cached) {
    call.keys = k_lies.data();
    call.values = v_lies.data();
    px_attend(&call);
  } else {  // all keys are stored by a first call, whose queries nobody looks at
    key_scales.resize(c.keys * c.key_heads), value_scales.resize(c.keys * c.key_heads);
    call.stored = c.stored;
    call.rotate = c.stored == px::Type::I8 && (c.dim & (c.dim - 1)) == 0;
    call.keys = keys.data(), call.values = values.data();
    call.key_scales = key_scales.data(), call.value_scales = value_scales.data();
    call.slots = call.table = table.data();
    const auto many = stored_as(drawn(random, c.keys * c.heads * c.dim), c.type);
    std::vector<char> ignored(many.size());
    std::vector<int64_t> whole{c.keys, c.keys, 0};
    px::AttendCall first = call;
    first.q = many.data(), first.out = ignored.data(), first.rows = c.keys, first.layout = whole.data();
    first.new_k = k_lies.data(), first.new_v = v_lies.data(), first.new_k_stride = first.new_v_stride = width;
    px_attend(&first);
    px_attend(&call);
  }
  const double allowed = c.stored == px::Type::I8 ? 0.08 : c.type == px::Type::F32 ? 1e-4 : 0.03;
  for (int64_t row = 0; row < c.rows; row += 1 + c.rows / 5)
    for (int head = 0; head < c.heads; head++) {
      const auto expected = expected_of(c, q, k, v, row, head);
      for (int d = 0; d < c.dim; d++) {
        const int64_t at = (row * c.heads + head) * c.dim + d;
        const double found = px::read_number(
            out.data(), c.type == px::Type::F32 ? px::Number::Float32 : px::Number::BFloat16, at);
        CHECK(std::fabs(found - expected[d]) <= allowed, "%g instead of %g (row %d, head %d, channel %d of %d)", found,
              expected[d], static_cast<int>(row), head, d, c.dim);
      }
    }
}

}  // namespace

void check_attend(Random& random) {
  if (!px_can_attend()) return;
  for (int attempt = 0; attempt < 160; attempt++) {
    Case c{};
    c.dim = 16 * static_cast<int>(between(random, 1, attempt % 8 ? 8 : 16));
    c.key_heads = static_cast<int>(between(random, 1, 5));
    c.heads = c.key_heads * static_cast<int>(between(random, 1, 5));
    c.keys = between(random, 1, attempt % 4 ? 90 : 700);
    c.rows = attempt % 3 ? std::min<int64_t>(c.keys, between(random, 1, 3)) : between(random, 1, c.keys);
    c.causal = attempt % 2 == 0;
    c.cached = attempt % 5 != 0;
    c.paged = c.cached && attempt % 5 != 1;
    c.type = between(random, 0, 1) ? px::Type::BF16 : px::Type::F32;
    c.stored = c.cached && attempt % 5 == 2 ? px::Type::I8 : c.type;
    check_case(random, c);
  }
}
