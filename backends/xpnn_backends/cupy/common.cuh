// What all kernels share: numbers that may change from step to step, and arithmetic in a type wider than the stored one.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

// Half precision is for storing: it is computed with in float32. Float32 and float64 are computed with as they are.
template <typename T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };
template <typename T> using wide = typename Wide<T>::type;

__device__ inline float load(float x) { return x; }
__device__ inline double load(double x) { return x; }
__device__ inline float load(__half x) { return __half2float(x); }
__device__ inline float load(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void store(float* place, float x) { *place = x; }
__device__ inline void store(double* place, double x) { *place = x; }
__device__ inline void store(__half* place, float x) { *place = __float2half_rn(x); }
__device__ inline void store(__nv_bfloat16* place, float x) { *place = __float2bfloat16_rn(x); }

// A number that a kernel is given: by its value, or where a graph is replayed, by its place in device memory.
struct Number {
  const double* place;
  double value;
  __device__ double get() const { return place ? *place : value; }
};
#define NUMBER(name) const double *name##_place, double name##_value
#define GET(name) (Number{name##_place, name##_value}.get())

// Several elements of an array, moved by one access of up to 16 bytes where their address allows it.
template <typename T, int N> struct alignas(sizeof(T) * N) Pack { T at[N]; };
// An array by packs. The compiler makes one access of a pack where it is found by its number; where it is found by an
// address that was computed in elements, a store may become one for each element.
template <int N, typename T> __device__ inline Pack<T, N>* as_packs(T* array) {
  return reinterpret_cast<Pack<T, N>*>(array);
}
template <int N, typename T> __device__ inline const Pack<T, N>* as_packs(const T* array) {
  return reinterpret_cast<const Pack<T, N>*>(array);
}

template <typename T> __host__ __device__ constexpr int pack_size() { return 16 / sizeof(T); }

template <typename T> __device__ inline bool is_aligned(const T* pointer) {
  return reinterpret_cast<size_t>(pointer) % 16 == 0;
}

// for (index of an element) over a grid of any size
#define GRID_STRIDE(index, count)                                                        \
  for (long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x; index < (count); \
       index += (long long)gridDim.x * blockDim.x)
