// A stand-in for libcublasLt: real values, computed on the host, for the emulated GPU of the tests.
//
// It has the calls that xpnn makes, and refuses what the real library refuses: descriptors that do not fit each other,
// pointers less aligned than was promised to the heuristic, a bias that is missing, an auxiliary matrix whose leading
// dimension is too odd. Matrices are in column order, as the real library has them by default.
// The last section has switches for tests: the heuristic can be made to refuse an epilogue, an algorithm to fail.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <mutex>
#include <new>
#include <set>
#include <vector>

#include "cublaslt_numbers.h"

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum ComputeType {
  COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_64F = 70, COMPUTE_64F_PEDANTIC = 71, FAST_TF32 = 77
};
enum Operation { OP_N = 0, OP_T = 1 };

// cublasLtEpilogue_t is made of these bits.
enum EpilogueBits {
  DEFAULT = 1, RELU = 2, BIAS = 4, DERIVATIVE = 8, BIAS_GRADIENT = 16, GELU = 32, GELU_DERIVATIVE = 64, AUXILIARY = 128,
  BGRADA = 256, BGRADB = 512
};
const unsigned DRELU = AUXILIARY | DERIVATIVE;
const unsigned DGELU = AUXILIARY | GELU_DERIVATIVE;
const unsigned KNOWN_EPILOGUES[] = {
    DEFAULT, RELU, RELU | AUXILIARY, BIAS, RELU | BIAS, RELU | BIAS | AUXILIARY, DRELU, DRELU | BIAS_GRADIENT, GELU,
    GELU | AUXILIARY, GELU | BIAS, GELU | BIAS | AUXILIARY, DGELU, DGELU | BIAS_GRADIENT, BGRADA, BGRADB};

struct Layout {
  uint32_t type = R_32F;
  int32_t order = 0;
  uint64_t rows = 0;
  uint64_t columns = 0;
  int64_t leading = 0;
  int32_t batch = 1;
  int64_t batch_stride = 0;
};

struct Description {
  int32_t compute = COMPUTE_32F;
  int32_t scale = R_32F;
  int32_t pointer_mode = 0;
  int32_t transpose_a = OP_N;
  int32_t transpose_b = OP_N;
  int32_t transpose_c = OP_N;
  uint32_t epilogue = DEFAULT;
  void* bias = nullptr;
  int64_t bias_batch_stride = 0;
  void* auxiliary = nullptr;
  int64_t auxiliary_leading = 0;
  int64_t auxiliary_batch_stride = 0;
  int32_t auxiliary_type = -1;
  int32_t bias_type = -1;
};

struct Preference {
  uint32_t search_mode = 0;
  uint64_t workspace = 0;
  uint32_t reduction_schemes = 7;
  uint32_t alignment[4] = {256, 256, 256, 256};
};

// What the 64 opaque bytes of an algorithm hold here: the problem that it was found for.
struct Algorithm {
  uint32_t magic;
  uint32_t epilogue;
  uint32_t compute;
  uint32_t types;
  uint64_t m, n, k;
  uint32_t alignment[4];
  uint32_t workspace;
  uint32_t number;
};
static_assert(sizeof(Algorithm) <= 64, "an algorithm has 64 bytes");

struct HeuristicResult {
  unsigned char algorithm[64];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(HeuristicResult) == 96, "as in cublasLt.h");

const uint32_t MAGIC = 0x584c5421;
const uint64_t LARGE = 1 << 18;         // products with more terms than this "need" a workspace
const uint32_t WORKSPACE = 64 << 10;

std::mutex switches;
std::set<unsigned> refused;
std::atomic<bool> swallows_nan{false};
std::atomic<bool> rough_tanh{false};
std::atomic<int> failing_algorithms{0};
std::atomic<long> products{0};
std::atomic<long> heuristics{0};
std::atomic<unsigned> last_epilogue{0};
std::atomic<unsigned> last_compute{0};

// ---- what fits together

bool known_type(uint32_t type) { return type == R_32F || type == R_64F || type == R_16F || type == R_16BF; }

bool has(uint32_t epilogue, uint32_t bits) { return (epilogue & bits) == bits; }

bool wants_bias_pointer(uint32_t epilogue) { return epilogue & (BIAS | BIAS_GRADIENT | BGRADA | BGRADB); }

Status check_layout(const Layout& layout) {
  if (!known_type(layout.type)) return NOT_SUPPORTED;
  if (layout.order != 0) return NOT_SUPPORTED;  // the real library can do more; xpnn asks for columns alone
  if (layout.rows == 0 || layout.columns == 0 || layout.batch < 1) return INVALID_VALUE;
  if (layout.leading < (int64_t)layout.rows) return INVALID_VALUE;
  if (layout.batch_stride < 0) return INVALID_VALUE;
  return SUCCESS;
}

Status check_types(const Description& d, uint32_t a, uint32_t b, uint32_t c, uint32_t result) {
  if (a != b || c != result) return NOT_SUPPORTED;
  if (d.compute == COMPUTE_64F || d.compute == COMPUTE_64F_PEDANTIC) {
    return d.scale == R_64F && a == R_64F && c == R_64F ? SUCCESS : NOT_SUPPORTED;
  }
  if (d.scale != R_32F || a == R_64F) return NOT_SUPPORTED;
  if (d.compute == FAST_TF32) return a == R_32F && c == R_32F ? SUCCESS : NOT_SUPPORTED;
  if (d.compute != COMPUTE_32F && d.compute != COMPUTE_32F_PEDANTIC) return NOT_SUPPORTED;
  return c == a || c == R_32F ? SUCCESS : NOT_SUPPORTED;
}

Status check_problem(const Description& d, const Layout& a, const Layout& b, const Layout& c, const Layout& result) {
  for (const Layout* layout : {&a, &b, &c, &result}) {
    Status status = check_layout(*layout);
    if (status != SUCCESS) return status;
  }
  Status status = check_types(d, a.type, b.type, c.type, result.type);
  if (status != SUCCESS) return status;
  uint64_t m = d.transpose_a == OP_N ? a.rows : a.columns;
  uint64_t k = d.transpose_a == OP_N ? a.columns : a.rows;
  uint64_t k_of_b = d.transpose_b == OP_N ? b.rows : b.columns;
  uint64_t n = d.transpose_b == OP_N ? b.columns : b.rows;
  if (k != k_of_b || result.rows != m || result.columns != n) return INVALID_VALUE;
  if (c.rows != m || c.columns != n || d.transpose_c != OP_N) return INVALID_VALUE;
  if (a.batch != result.batch || b.batch != result.batch || c.batch != result.batch) return INVALID_VALUE;
  // Results of a batch must not lie on each other.
  if (result.batch > 1 && result.batch_stride < (int64_t)result.rows) return INVALID_VALUE;
  if (d.pointer_mode != 0) return NOT_SUPPORTED;
  const auto* end = std::end(KNOWN_EPILOGUES);
  if (std::find(std::begin(KNOWN_EPILOGUES), end, d.epilogue) == end) return INVALID_VALUE;
  if (wants_bias_pointer(d.epilogue)) {
    if (!d.bias) return INVALID_VALUE;
    if (d.bias_type != -1 && (uint32_t)d.bias_type != result.type) return NOT_SUPPORTED;
  }
  if (d.epilogue & AUXILIARY) {
    if (!d.auxiliary) return INVALID_VALUE;
    bool bits = d.epilogue & (RELU | DERIVATIVE);
    // A matrix of z is of the result's type; one of bits is of none.
    if (d.auxiliary_type != -1 && (bits || (uint32_t)d.auxiliary_type != result.type)) return INVALID_VALUE;
    if (d.auxiliary_leading < (int64_t)m) return INVALID_VALUE;
    if (d.auxiliary_leading % (bits ? 128 : 8) != 0) return INVALID_VALUE;
    if (result.batch > 1) return NOT_SUPPORTED;
  }
  if ((d.epilogue & (DERIVATIVE | GELU_DERIVATIVE)) && k == 1) return NOT_SUPPORTED;
  // The sum over k is made of the operand as it lies in memory: A as it is, B transposed.
  if (d.epilogue == BGRADA && (d.transpose_a != OP_N || k == 1)) return NOT_SUPPORTED;
  if (d.epilogue == BGRADB && (d.transpose_b != OP_T || k == 1)) return NOT_SUPPORTED;
  return SUCCESS;
}

// ---- the product

struct Work {
  Description d;
  Layout a, b, c, result;
  const void *a_data, *b_data, *c_data;
  void* result_data;
  double alpha, beta;
  unsigned char* workspace;
  size_t workspace_size;
  bool swallows_nan;
  bool rough_tanh;
};

double activate(double x, const Work& w) {
  if (std::isnan(x)) return w.swallows_nan ? 0.0 : x;
  if (has(w.d.epilogue, RELU)) return x > 0 ? x : 0.0;
  return gelu(x, w.rough_tanh);
}

template <typename T> void multiply(const Work& w, int64_t which) {
  const Description& d = w.d;
  const int64_t m = w.result.rows;
  const int64_t n = w.result.columns;
  const int64_t k = d.transpose_a == OP_N ? w.a.columns : w.a.rows;
  const int64_t a_start = which * w.a.batch_stride;
  const int64_t b_start = which * w.b.batch_stride;
  const int64_t c_start = which * w.c.batch_stride;
  const int64_t start = which * w.result.batch_stride;
  const bool rounds = d.compute == FAST_TF32;

  // Column p of op(A) lies side by side, so that the loop over its rows is a vector loop.
  std::vector<T> a(m * k);
  for (int64_t p = 0; p < k; ++p) {
    for (int64_t i = 0; i < m; ++i) {
      int64_t place = d.transpose_a == OP_N ? i + p * w.a.leading : p + i * w.a.leading;
      T value = (T)get(w.a_data, w.a.type, a_start + place);
      a[i + p * m] = rounds ? (T)to_tf32((float)value) : value;
    }
  }
  std::vector<T> sums(m);
  std::vector<double> bias_gradient(d.epilogue == BGRADB ? n : m, 0.0);
  for (int64_t j = 0; j < n; ++j) {
    std::fill(sums.begin(), sums.end(), T(0));
    for (int64_t p = 0; p < k; ++p) {
      int64_t place = d.transpose_b == OP_N ? p + j * w.b.leading : j + p * w.b.leading;
      T value = (T)get(w.b_data, w.b.type, b_start + place);
      if (d.epilogue == BGRADB) bias_gradient[j] += value;
      if (rounds) value = (T)to_tf32((float)value);
      const T* column = a.data() + p * m;
      for (int64_t i = 0; i < m; ++i) sums[i] += column[i] * value;
    }
    for (int64_t i = 0; i < m; ++i) {
      double y = w.alpha * sums[i];
      if (w.beta != 0) y += w.beta * get(w.c_data, w.c.type, c_start + i + j * w.c.leading);
      if (has(d.epilogue, BIAS)) y += get(d.bias, w.result.type, which * d.bias_batch_stride + i);
      const int64_t place = i + j * d.auxiliary_leading;
      if (has(d.epilogue, RELU | AUXILIARY)) {
        unsigned char& byte = ((unsigned char*)d.auxiliary)[place / 8];
        unsigned char bit = 1 << (place % 8);
        byte = y > 0 ? byte | bit : byte & ~bit;
      }
      if (has(d.epilogue, GELU | AUXILIARY)) put(d.auxiliary, w.result.type, place, y);
      if (d.epilogue & (RELU | GELU)) y = activate(y, w);
      if (has(d.epilogue, DRELU)) {
        bool on = ((const unsigned char*)d.auxiliary)[place / 8] >> (place % 8) & 1;
        y = on ? y : 0.0;
      }
      if (has(d.epilogue, DGELU)) y *= gelu_derivative(get(d.auxiliary, w.result.type, place), w.rough_tanh);
      if (has(d.epilogue, BIAS_GRADIENT)) bias_gradient[i] += y;
      put(w.result_data, w.result.type, start + i + j * w.result.leading, y);
    }
  }
  if (d.epilogue == BGRADA) {
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t i = 0; i < m; ++i) {
        bias_gradient[i] += get(w.a_data, w.a.type, a_start + i + p * w.a.leading);
      }
    }
  }
  if (d.epilogue & (BIAS_GRADIENT | BGRADA | BGRADB)) {
    for (size_t i = 0; i < bias_gradient.size(); ++i) {
      put(d.bias, w.result.type, which * d.bias_batch_stride + i, bias_gradient[i]);
    }
  }
}

void run(void* argument) {
  const Work& w = *(const Work*)argument;
  // Who hands over a workspace that is not theirs shall see it.
  if (w.workspace) {
    std::memset(w.workspace, 0xa5, 64);
    std::memset(w.workspace + w.workspace_size - 64, 0xa5, 64);
  }
  for (int32_t which = 0; which < w.result.batch; ++which) {
    if (w.result.type == R_64F) {
      multiply<double>(w, which);
    } else {
      multiply<float>(w, which);
    }
  }
}

typedef int (*Enqueue)(void* stream, void (*run)(void*), const void* arguments, size_t bytes);

Enqueue enqueue() {
  static Enqueue found = (Enqueue)dlsym(RTLD_DEFAULT, "emulated_enqueue");
  return found;
}

bool aligned(const void* pointer, uint32_t bytes) { return (uintptr_t)pointer % bytes == 0; }

struct Attribute {
  int number;
  void* place;
  size_t bytes;
};

Status set_attribute(std::initializer_list<Attribute> known, int number, const void* buffer, size_t bytes) {
  for (const Attribute& attribute : known) {
    if (attribute.number != number) continue;
    if (!buffer || bytes != attribute.bytes) return INVALID_VALUE;
    std::memcpy(attribute.place, buffer, bytes);
    return SUCCESS;
  }
  return INVALID_VALUE;
}

Status get_attribute(std::initializer_list<Attribute> known, int number, void* buffer, size_t bytes, size_t* written) {
  for (const Attribute& attribute : known) {
    if (attribute.number != number) continue;
    if (written) *written = attribute.bytes;
    if (!buffer) return bytes == 0 && written ? SUCCESS : INVALID_VALUE;
    if (bytes != attribute.bytes) return INVALID_VALUE;
    std::memcpy(buffer, attribute.place, bytes);
    return SUCCESS;
  }
  return INVALID_VALUE;
}

#define DESCRIPTION_ATTRIBUTES(d)                                                                          \
  {                                                                                                        \
    {0, &(d)->compute, 4}, {1, &(d)->scale, 4}, {2, &(d)->pointer_mode, 4}, {3, &(d)->transpose_a, 4},     \
        {4, &(d)->transpose_b, 4}, {5, &(d)->transpose_c, 4}, {7, &(d)->epilogue, 4}, {8, &(d)->bias, 8},  \
        {10, &(d)->bias_batch_stride, 8}, {11, &(d)->auxiliary, 8}, {12, &(d)->auxiliary_leading, 8},      \
        {13, &(d)->auxiliary_batch_stride, 8}, {22, &(d)->auxiliary_type, 4}, {26, &(d)->bias_type, 4},    \
  }
#define LAYOUT_ATTRIBUTES(layout)                                                                             \
  {                                                                                                           \
    {0, &(layout)->type, 4}, {1, &(layout)->order, 4}, {2, &(layout)->rows, 8}, {3, &(layout)->columns, 8},   \
        {4, &(layout)->leading, 8}, {5, &(layout)->batch, 4}, {6, &(layout)->batch_stride, 8},                \
  }
#define PREFERENCE_ATTRIBUTES(p)                                                                            \
  {                                                                                                         \
    {0, &(p)->search_mode, 4}, {1, &(p)->workspace, 8}, {3, &(p)->reduction_schemes, 4},                    \
        {5, &(p)->alignment[0], 4}, {6, &(p)->alignment[1], 4}, {7, &(p)->alignment[2], 4},                 \
        {8, &(p)->alignment[3], 4},                                                                         \
  }

uint32_t types_of(const Layout& a, const Layout& result) { return a.type << 8 | result.type; }

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130200; }
size_t cublasLtGetCudartVersion() { return 13000; }

const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    default: return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}
const char* cublasLtGetStatusString(int status) { return cublasLtGetStatusName(status); }

int cublasLtGetProperty(int which, int* value) {
  if (!value || which < 0 || which > 2) return INVALID_VALUE;
  const int version[] = {13, 2, 0};
  *value = version[which];
  return SUCCESS;
}

int cublasLtCreate(void** handle) {
  if (!handle) return INVALID_VALUE;
  *handle = new uint32_t(MAGIC);
  return SUCCESS;
}

int cublasLtDestroy(void* handle) {
  if (!handle) return NOT_INITIALIZED;
  delete (uint32_t*)handle;
  return SUCCESS;
}

int cublasLtMatmulDescCreate(void** made, int compute, int scale) {
  if (!made) return INVALID_VALUE;
  Description* d = new Description;
  d->compute = compute;
  d->scale = scale;
  *made = d;
  return SUCCESS;
}

int cublasLtMatmulDescDestroy(void* d) {
  delete (Description*)d;
  return SUCCESS;
}

int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* buffer, size_t bytes) {
  Description* d = (Description*)desc;
  return d ? set_attribute(DESCRIPTION_ATTRIBUTES(d), attribute, buffer, bytes) : INVALID_VALUE;
}

int cublasLtMatmulDescGetAttribute(void* desc, int attribute, void* buffer, size_t bytes, size_t* written) {
  Description* d = (Description*)desc;
  return d ? get_attribute(DESCRIPTION_ATTRIBUTES(d), attribute, buffer, bytes, written) : INVALID_VALUE;
}

int cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if (!made) return INVALID_VALUE;
  Layout* layout = new Layout;
  layout->type = type;
  layout->rows = rows;
  layout->columns = columns;
  layout->leading = leading;
  *made = layout;
  return SUCCESS;
}

int cublasLtMatrixLayoutDestroy(void* layout) {
  delete (Layout*)layout;
  return SUCCESS;
}

int cublasLtMatrixLayoutSetAttribute(void* given, int attribute, const void* buffer, size_t bytes) {
  Layout* layout = (Layout*)given;
  return layout ? set_attribute(LAYOUT_ATTRIBUTES(layout), attribute, buffer, bytes) : INVALID_VALUE;
}

int cublasLtMatrixLayoutGetAttribute(void* given, int attribute, void* buffer, size_t bytes, size_t* written) {
  Layout* layout = (Layout*)given;
  return layout ? get_attribute(LAYOUT_ATTRIBUTES(layout), attribute, buffer, bytes, written) : INVALID_VALUE;
}

int cublasLtMatmulPreferenceCreate(void** made) {
  if (!made) return INVALID_VALUE;
  *made = new Preference;
  return SUCCESS;
}

int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete (Preference*)preference;
  return SUCCESS;
}

int cublasLtMatmulPreferenceSetAttribute(void* given, int attribute, const void* buffer, size_t bytes) {
  Preference* p = (Preference*)given;
  return p ? set_attribute(PREFERENCE_ATTRIBUTES(p), attribute, buffer, bytes) : INVALID_VALUE;
}

int cublasLtMatmulPreferenceGetAttribute(void* given, int attribute, void* buffer, size_t bytes, size_t* written) {
  Preference* p = (Preference*)given;
  return p ? get_attribute(PREFERENCE_ATTRIBUTES(p), attribute, buffer, bytes, written) : INVALID_VALUE;
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a_layout, void* b_layout, void* c_layout,
                                   void* d_layout, void* preference, int wanted, void* results, int* found) {
  if (!handle || *(uint32_t*)handle != MAGIC) return NOT_INITIALIZED;
  if (!desc || !a_layout || !b_layout || !c_layout || !d_layout || !preference || !results || !found || wanted < 1) {
    return INVALID_VALUE;
  }
  ++heuristics;
  *found = 0;
  const Description& d = *(Description*)desc;
  const Layout& a = *(Layout*)a_layout;
  const Layout& result = *(Layout*)d_layout;
  const Preference& p = *(Preference*)preference;
  Status status = check_problem(d, a, *(Layout*)b_layout, *(Layout*)c_layout, result);
  if (status != SUCCESS) return status;
  {
    std::lock_guard<std::mutex> guard(switches);
    if (refused.count(d.epilogue)) return NOT_SUPPORTED;
  }
  Algorithm algorithm{};
  algorithm.magic = MAGIC;
  algorithm.epilogue = d.epilogue;
  algorithm.compute = d.compute;
  algorithm.types = types_of(a, result);
  algorithm.m = result.rows;
  algorithm.n = result.columns;
  algorithm.k = d.transpose_a == OP_N ? a.columns : a.rows;
  std::copy(p.alignment, p.alignment + 4, algorithm.alignment);
  if (algorithm.m * algorithm.n * algorithm.k > LARGE && p.workspace >= WORKSPACE) algorithm.workspace = WORKSPACE;
  HeuristicResult* list = (HeuristicResult*)results;
  int count = std::min(wanted, 3);
  for (int i = 0; i < count; ++i) {
    algorithm.number = i;
    std::memset(&list[i], 0, sizeof(HeuristicResult));
    std::memcpy(list[i].algorithm, &algorithm, sizeof(algorithm));
    list[i].workspace = algorithm.workspace;
  }
  *found = count;
  return SUCCESS;
}

int cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,
                   void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                   const void* algo, void* workspace, size_t workspace_size, void* stream) {
  if (!handle || *(uint32_t*)handle != MAGIC) return NOT_INITIALIZED;
  if (!desc || !alpha || !beta || !a || !b || !d || !a_layout || !b_layout || !d_layout || !c_layout) {
    return INVALID_VALUE;
  }
  Work w{};
  w.d = *(Description*)desc;
  w.a = *(Layout*)a_layout;
  w.b = *(Layout*)b_layout;
  w.c = *(Layout*)c_layout;
  w.result = *(Layout*)d_layout;
  Status status = check_problem(w.d, w.a, w.b, w.c, w.result);
  if (status != SUCCESS) return status;
  w.a_data = a;
  w.b_data = b;
  w.c_data = c;
  w.result_data = d;
  w.alpha = w.d.scale == R_64F ? *(const double*)alpha : *(const float*)alpha;
  w.beta = w.d.scale == R_64F ? *(const double*)beta : *(const float*)beta;
  if (w.beta != 0 && !c) return INVALID_VALUE;
  if (c == d && c_layout != d_layout && std::memcmp(c_layout, d_layout, sizeof(Layout)) != 0) return INVALID_VALUE;
  if (workspace && !aligned(workspace, 16)) return INVALID_VALUE;
  if (algo) {
    Algorithm algorithm;
    std::memcpy(&algorithm, algo, sizeof(algorithm));
    if (algorithm.magic != MAGIC || algorithm.epilogue != w.d.epilogue) return INVALID_VALUE;
    if (algorithm.compute != (uint32_t)w.d.compute || algorithm.types != types_of(w.a, w.result)) return INVALID_VALUE;
    if (algorithm.m != w.result.rows || algorithm.n != w.result.columns) return INVALID_VALUE;
    if (algorithm.number < (uint32_t)failing_algorithms) return NOT_SUPPORTED;
    const void* pointers[] = {a, b, c ? c : d, d};
    for (int i = 0; i < 4; ++i) {
      if (!aligned(pointers[i], algorithm.alignment[i])) return INVALID_VALUE;
    }
    if (algorithm.workspace) {
      if (!workspace || workspace_size < algorithm.workspace) return INVALID_VALUE;
      w.workspace = (unsigned char*)workspace;
      w.workspace_size = workspace_size;
    }
  }
  const size_t element = size_of(w.result.type);
  if (!aligned(a, size_of(w.a.type)) || !aligned(b, size_of(w.b.type)) || !aligned(d, element)) return INVALID_VALUE;
  if (wants_bias_pointer(w.d.epilogue) && !aligned(w.d.bias, 16)) return INVALID_VALUE;
  if ((w.d.epilogue & AUXILIARY) && !aligned(w.d.auxiliary, 16)) return INVALID_VALUE;
  w.swallows_nan = swallows_nan;
  w.rough_tanh = rough_tanh;
  ++products;
  last_epilogue = w.d.epilogue;
  last_compute = w.d.compute;
  if (enqueue()) return enqueue()(stream, run, &w, sizeof(w)) == 0 ? SUCCESS : NOT_INITIALIZED;
  run(&w);
  return SUCCESS;
}

// ---- switches and counters for tests

// Make the heuristic find nothing for an epilogue, or (on = 0) find something again; -1 takes all refusals back.
void emulated_cublaslt_refuse(int epilogue, int on) {
  std::lock_guard<std::mutex> guard(switches);
  if (epilogue < 0) {
    refused.clear();
  } else if (on) {
    refused.insert(epilogue);
  } else {
    refused.erase(epilogue);
  }
}

// Make the ReLU and the GELU of an epilogue turn NaN into 0.
void emulated_cublaslt_swallow_nan(int on) { swallows_nan = on; }

// Make the GELU of an epilogue, and its derivative, compute with a tanh of 11 bits, as fast instructions give it.
void emulated_cublaslt_rough_tanh(int on) { rough_tanh = on; }

// Make the first `count` algorithms of each answer of the heuristic fail when they are run.
void emulated_cublaslt_fail_first(int count) { failing_algorithms = count; }

long emulated_cublaslt_products() { return products; }
long emulated_cublaslt_heuristics() { return heuristics; }
unsigned emulated_cublaslt_last_epilogue() { return last_epilogue; }
unsigned emulated_cublaslt_last_compute() { return last_compute; }

}  // extern "C"
