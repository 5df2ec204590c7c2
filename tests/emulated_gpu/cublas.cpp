// cuBLAS for the emulated GPU: products of matrices, in column order as cuBLAS has them. All else is not supported.
#include <cstdint>
#include <cstring>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "runtime.h"

namespace {

enum Type { kFloat = 0, kDouble = 1, kHalf = 2, kInt8 = 3, kInt32 = 10, kBfloat16 = 14 };
enum { kNotInitialized = 1, kBadValue = 7, kFailed = 13, kUnsupported = 15 };

struct Handle {
  void* stream = nullptr;
  int math_mode = 0;
  int pointer_mode = 0;
};

bool is_known(int type) {
  return type == kFloat || type == kDouble || type == kHalf || type == kInt8 || type == kInt32 || type == kBfloat16;
}

int bytes_of(int type) {
  switch (type) {
    case kDouble: return 8;
    case kHalf: case kBfloat16: return 2;
    case kInt8: return 1;
    default: return 4;
  }
}

template <typename T> T read(const void* place, int type, int64_t index) {
  switch (type) {
    case kDouble: return T(static_cast<const double*>(place)[index]);
    case kHalf: return T(__half2float(static_cast<const __half*>(place)[index]));
    case kBfloat16: return T(__bfloat162float(static_cast<const __nv_bfloat16*>(place)[index]));
    case kInt8: return T(static_cast<const signed char*>(place)[index]);
    case kInt32: return T(static_cast<const int*>(place)[index]);
    default: return T(static_cast<const float*>(place)[index]);
  }
}

template <typename T> void write(void* place, int type, int64_t index, T x) {
  switch (type) {
    case kDouble: static_cast<double*>(place)[index] = double(x); break;
    case kHalf: static_cast<__half*>(place)[index] = __float2half_rn(float(x)); break;
    case kBfloat16: static_cast<__nv_bfloat16*>(place)[index] = __float2bfloat16_rn(float(x)); break;
    case kInt8: static_cast<signed char*>(place)[index] = static_cast<signed char>(x); break;
    case kInt32: static_cast<int*>(place)[index] = int(x); break;
    default: static_cast<float*>(place)[index] = float(x);
  }
}

// One call: batches of C = alpha * op(A) op(B) + beta * C, by strides or by arrays of pointers.
struct Product {
  int transpose_a, transpose_b;
  int m, n, k;
  const void* a;
  const void* b;
  void* c;
  int type_a, type_b, type_c;
  int64_t leading_a, leading_b, leading_c;
  int64_t stride_a, stride_b, stride_c;
  int batches;
  bool pointers;   // a, b and c are arrays of pointers on the device
  int scalar;      // the type of alpha and beta, in which the sums are taken
  bool on_device;  // alpha and beta are read when the product runs
  const void* alpha;
  const void* beta;
  double alpha_value, beta_value;
};

const void* matrix(const Product& p, const void* place, int type, int64_t stride, int batch) {
  if (p.pointers) return static_cast<void* const*>(place)[batch];
  return static_cast<const char*>(place) + stride * batch * bytes_of(type);
}

template <typename T> void multiply(const Product& p, T alpha, T beta) {
  std::vector<T> a(size_t(p.m) * p.k);
  std::vector<T> column(p.m);
  for (int batch = 0; batch < p.batches; ++batch) {
    const void* from_a = matrix(p, p.a, p.type_a, p.stride_a, batch);
    const void* from_b = matrix(p, p.b, p.type_b, p.stride_b, batch);
    void* to = const_cast<void*>(matrix(p, p.c, p.type_c, p.stride_c, batch));
    for (int step = 0; step < p.k; ++step) {
      for (int row = 0; row < p.m; ++row) {
        int64_t place = p.transpose_a ? row * p.leading_a + step : step * p.leading_a + row;
        a[size_t(step) * p.m + row] = read<T>(from_a, p.type_a, place);
      }
    }
    for (int col = 0; col < p.n; ++col) {
      for (T& entry : column) entry = T(0);
      for (int step = 0; step < p.k; ++step) {
        T factor = read<T>(from_b, p.type_b, p.transpose_b ? step * p.leading_b + col : col * p.leading_b + step);
        const T* from = &a[size_t(step) * p.m];
        for (int row = 0; row < p.m; ++row) column[row] += from[row] * factor;
      }
      for (int row = 0; row < p.m; ++row) {
        int64_t place = col * p.leading_c + row;
        // With beta = 0, C is not read: it may hold NaN.
        T before = beta == T(0) ? T(0) : beta * read<T>(to, p.type_c, place);
        write(to, p.type_c, place, T(alpha * column[row] + before));
      }
    }
  }
}

void run(void* arguments) {
  Product& p = *static_cast<Product*>(arguments);
  double alpha = p.on_device ? read<double>(p.alpha, p.scalar, 0) : p.alpha_value;
  double beta = p.on_device ? read<double>(p.beta, p.scalar, 0) : p.beta_value;
  if (p.scalar == kDouble) multiply<double>(p, alpha, beta);
  else if (p.scalar == kInt32) multiply<int>(p, int(alpha), int(beta));
  else multiply<float>(p, float(alpha), float(beta));
}

int start(Handle* handle, Product p) {
  if (!handle) return kNotInitialized;
  bool sizes = p.m >= 0 && p.n >= 0 && p.k >= 0 && p.batches >= 0 && p.leading_c >= (p.m > 1 ? p.m : 1) &&
               p.leading_a >= (p.transpose_a ? p.k : p.m) && p.leading_b >= (p.transpose_b ? p.n : p.k);
  if (!sizes) return kBadValue;
  if (!is_known(p.type_a) || !is_known(p.type_b) || !is_known(p.type_c)) return kUnsupported;
  p.on_device = handle->pointer_mode == 1;
  if (!p.on_device) {
    p.alpha_value = read<double>(p.alpha, p.scalar, 0);
    p.beta_value = read<double>(p.beta, p.scalar, 0);
  }
  emulated_count("cublas");
  return emulated_enqueue(handle->stream, run, &p, sizeof(p)) == 0 ? 0 : kFailed;
}

// The type of alpha and beta: CuPy gives a cudaDataType where cuBLAS has a cublasComputeType, and both are understood.
int scalar_of(int compute) {
  if (compute == kDouble || compute == 70 || compute == 71) return kDouble;
  if (compute == kInt32 || compute == 72 || compute == 73) return kInt32;
  return kFloat;
}

}  // namespace

extern "C" {

int cublasCreate_v2(Handle** handle) {
  *handle = new Handle;
  return 0;
}
int cublasDestroy_v2(Handle* handle) {
  delete handle;
  return 0;
}
int cublasGetVersion_v2(Handle*, int* version) {
  *version = 130000;
  return 0;
}
int cublasSetStream_v2(Handle* handle, void* stream) {
  handle->stream = stream;
  return 0;
}
int cublasGetStream_v2(Handle* handle, void** stream) {
  *stream = handle->stream;
  return 0;
}
int cublasSetMathMode(Handle* handle, int mode) {
  handle->math_mode = mode;
  return 0;
}
int cublasGetMathMode(Handle* handle, int* mode) {
  *mode = handle->math_mode;
  return 0;
}
int cublasSetPointerMode_v2(Handle* handle, int mode) {
  handle->pointer_mode = mode;
  return 0;
}
int cublasGetPointerMode_v2(Handle* handle, int* mode) {
  *mode = handle->pointer_mode;
  return 0;
}

int cublasGemmEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type_a,
                 int lda, const void* b, int type_b, int ldb, const void* beta, void* c, int type_c, int ldc,
                 int compute, int) {
  return start(handle, {ta, tb, m, n, k, a, b, c, type_a, type_b, type_c, lda, ldb, ldc, 0, 0, 0, 1, false,
                        scalar_of(compute), false, alpha, beta, 0, 0});
}
int cublasGemmStridedBatchedEx(Handle* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a,
                               int type_a, int lda, long long stride_a, const void* b, int type_b, int ldb,
                               long long stride_b, const void* beta, void* c, int type_c, int ldc, long long stride_c,
                               int batches, int compute, int) {
  return start(handle, {ta, tb, m, n, k, a, b, c, type_a, type_b, type_c, lda, ldb, ldc, stride_a, stride_b, stride_c,
                        batches, false, scalar_of(compute), false, alpha, beta, 0, 0});
}
int cublasSgemmEx(Handle* handle, int ta, int tb, int m, int n, int k, const float* alpha, const void* a, int type_a,
                  int lda, const void* b, int type_b, int ldb, const float* beta, void* c, int type_c, int ldc) {
  return start(handle, {ta, tb, m, n, k, a, b, c, type_a, type_b, type_c, lda, ldb, ldc, 0, 0, 0, 1, false, kFloat,
                        false, alpha, beta, 0, 0});
}

#define PRODUCTS(letter, T, type)                                                                                   \
  int cublas##letter##gemm_v2(Handle* handle, int ta, int tb, int m, int n, int k, const T* alpha, const T* a,      \
                              int lda, const T* b, int ldb, const T* beta, T* c, int ldc) {                         \
    return start(handle, {ta, tb, m, n, k, a, b, c, type, type, type, lda, ldb, ldc, 0, 0, 0, 1, false, type,       \
                          false, alpha, beta, 0, 0});                                                               \
  }                                                                                                                 \
  int cublas##letter##gemmStridedBatched(Handle* handle, int ta, int tb, int m, int n, int k, const T* alpha,       \
                                         const T* a, int lda, long long stride_a, const T* b, int ldb,              \
                                         long long stride_b, const T* beta, T* c, int ldc, long long stride_c,      \
                                         int batches) {                                                             \
    return start(handle, {ta, tb, m, n, k, a, b, c, type, type, type, lda, ldb, ldc, stride_a, stride_b, stride_c,  \
                          batches, false, type, false, alpha, beta, 0, 0});                                         \
  }                                                                                                                 \
  int cublas##letter##gemmBatched(Handle* handle, int ta, int tb, int m, int n, int k, const T* alpha,              \
                                  const T* const a[], int lda, const T* const b[], int ldb, const T* beta,          \
                                  T* const c[], int ldc, int batches) {                                             \
    return start(handle, {ta, tb, m, n, k, a, b, const_cast<T**>(c), type, type, type, lda, ldb, ldc, 0, 0, 0,      \
                          batches, true, type, false, alpha, beta, 0, 0});                                          \
  }
PRODUCTS(S, float, kFloat)
PRODUCTS(D, double, kDouble)

}  // extern "C"
