// CUDA C++ for a C++ compiler that knows no GPU: a kernel is a plain function that is called once for each thread.
//
// The threads of a block run one after another, each until it waits for others (a barrier, a shuffle) or ends; the
// functions which wait are in runtime.cpp. Nothing runs at the same time, so atomic operations are plain ones.
#pragma once
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#include <math.h>

#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "crt/host_defines.h"
// The half precision types are NVIDIA's own: they round here as they do on a GPU.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>
#include <vector_functions.h>
#include <vector_types.h>

#define __CUDA_ARCH__ 900
#define __shared__ static
#define warpSize 32

// ---------------------------------------------------------------------------------------------- threads and barriers

extern "C" {
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
extern char* emulated_dynamic_shared;

// Waits for all threads of the block that have not ended; the sum of their arguments.
int emulated_block_barrier(int addend);
// Waits for the threads of `mask`; `given` (up to 8 bytes) of each lane is then in the array that is returned.
const unsigned long long* emulated_warp_barrier(unsigned mask, unsigned long long given);
// The lanes of the calling thread's warp that have not ended.
unsigned emulated_active_lanes();
[[noreturn]] void emulated_trap(const char* reason);
}

inline void __syncthreads() { emulated_block_barrier(0); }
inline int __syncthreads_count(int predicate) { return emulated_block_barrier(predicate != 0); }
inline int __syncthreads_or(int predicate) { return emulated_block_barrier(predicate != 0) != 0; }
inline int __syncthreads_and(int predicate) { return emulated_block_barrier(predicate == 0) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated_warp_barrier(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { emulated_trap("__trap()"); }

inline unsigned emulated_thread() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
inline int emulated_lane() { return emulated_thread() % warpSize; }

template <typename T> inline T emulated_exchange(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  unsigned long long bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const unsigned long long* all = emulated_warp_barrier(mask, bits);
  T result;
  std::memcpy(&result, &all[source], sizeof(T));
  return result;
}

template <typename T> inline T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  int first = emulated_lane() / width * width;
  return emulated_exchange(mask, value, first + (source & (width - 1)));
}
template <typename T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  int lane = emulated_lane();
  bool inside = lane % width >= int(delta);
  return emulated_exchange(mask, value, inside ? lane - int(delta) : lane);
}
template <typename T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  int lane = emulated_lane();
  bool inside = lane % width + int(delta) < width;
  return emulated_exchange(mask, value, inside ? lane + int(delta) : lane);
}
template <typename T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  int lane = emulated_lane();
  int source = lane ^ bits;
  return emulated_exchange(mask, value, source / width <= lane / width ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned long long* all = emulated_warp_barrier(mask, predicate != 0);
  unsigned active = emulated_active_lanes() & mask;
  unsigned votes = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    if ((active >> lane & 1) && all[lane]) votes |= 1u << lane;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate == 0) == 0; }
inline unsigned __activemask() { return emulated_active_lanes(); }

template <typename T, typename Combine> inline T emulated_reduce(unsigned mask, T value, Combine combine) {
  const unsigned long long* all = emulated_warp_barrier(mask, (unsigned long long)value);
  unsigned active = emulated_active_lanes() & mask;
  bool empty = true;
  T total = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    if (!(active >> lane & 1)) continue;
    total = empty ? T(all[lane]) : combine(total, T(all[lane]));
    empty = false;
  }
  return total;
}
#define EMULATED_REDUCTION(T, name, formula)                                            \
  inline T name(unsigned mask, T value) {                                               \
    return emulated_reduce(mask, value, [](T a, T b) { return T(formula); });           \
  }
EMULATED_REDUCTION(int, __reduce_add_sync, a + b)
EMULATED_REDUCTION(unsigned, __reduce_add_sync, a + b)
EMULATED_REDUCTION(int, __reduce_min_sync, a < b ? a : b)
EMULATED_REDUCTION(unsigned, __reduce_min_sync, a < b ? a : b)
EMULATED_REDUCTION(int, __reduce_max_sync, a > b ? a : b)
EMULATED_REDUCTION(unsigned, __reduce_max_sync, a > b ? a : b)
EMULATED_REDUCTION(unsigned, __reduce_and_sync, a & b)
EMULATED_REDUCTION(unsigned, __reduce_or_sync, a | b)
EMULATED_REDUCTION(unsigned, __reduce_xor_sync, a ^ b)

// --------------------------------------------------------------------------------------------------------- atomics

template <typename T, typename Change> inline T emulated_atomic(T* place, Change change) {
  T before = *place;
  *place = change(before);
  return before;
}
template <typename T> using emulated_same = typename std::enable_if<true, T>::type;  // takes no part in deduction

template <typename T> inline T atomicAdd(T* place, emulated_same<T> x) {
  return emulated_atomic(place, [&](T old) { return T(old + x); });
}
template <typename T> inline T atomicSub(T* place, emulated_same<T> x) {
  return emulated_atomic(place, [&](T old) { return T(old - x); });
}
template <typename T> inline T atomicMax(T* place, emulated_same<T> x) {
  return emulated_atomic(place, [&](T old) { return old < x ? x : old; });
}
template <typename T> inline T atomicMin(T* place, emulated_same<T> x) {
  return emulated_atomic(place, [&](T old) { return x < old ? x : old; });
}
template <typename T> inline T atomicAnd(T* place, emulated_same<T> x) {
  return emulated_atomic(place, [&](T old) { return T(old & x); });
}
template <typename T> inline T atomicOr(T* place, emulated_same<T> x) {
  return emulated_atomic(place, [&](T old) { return T(old | x); });
}
template <typename T> inline T atomicXor(T* place, emulated_same<T> x) {
  return emulated_atomic(place, [&](T old) { return T(old ^ x); });
}
template <typename T> inline T atomicExch(T* place, emulated_same<T> x) {
  return emulated_atomic(place, [&](T) { return x; });
}
template <typename T> inline T atomicCAS(T* place, emulated_same<T> compare, emulated_same<T> x) {
  return emulated_atomic(place, [&](T old) { return old == compare ? x : old; });
}
inline unsigned atomicInc(unsigned* place, unsigned last) {
  return emulated_atomic(place, [&](unsigned old) { return old >= last ? 0u : old + 1; });
}
inline unsigned atomicDec(unsigned* place, unsigned first) {
  return emulated_atomic(place, [&](unsigned old) { return old == 0 || old > first ? first : old - 1; });
}

// ------------------------------------------------------------------------------------------------------- intrinsics

template <typename T> inline T __ldg(const T* place) { return *place; }
template <typename T> inline T __ldcg(const T* place) { return *place; }
template <typename T> inline T __ldcs(const T* place) { return *place; }
template <typename T> inline void __stcg(T* place, T x) { *place = x; }
template <typename T> inline void __stcs(T* place, T x) { *place = x; }

template <typename To, typename From> inline To emulated_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "as many bits as before");
  To result;
  std::memcpy(&result, &x, sizeof(To));
  return result;
}
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
inline int __double2hiint(double x) { return int(emulated_bits<long long>(x) >> 32); }
inline int __double2loint(double x) { return int(emulated_bits<long long>(x)); }
inline double __hiloint2double(int high, int low) {
  return emulated_bits<double>((long long)((unsigned long long)unsigned(high) << 32 | unsigned(low)));
}

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (x >> bit & 1) << (31 - bit);
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}

// The fast functions: here as exact as the others.
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
#define EMULATED_ROUNDED(T, prefix, suffix)                            \
  inline T prefix##add_##suffix(T x, T y) { return x + y; }            \
  inline T prefix##sub_##suffix(T x, T y) { return x - y; }            \
  inline T prefix##mul_##suffix(T x, T y) { return x * y; }            \
  inline T prefix##div_##suffix(T x, T y) { return x / y; }            \
  inline T prefix##rcp_##suffix(T x) { return T(1) / x; }              \
  inline T prefix##sqrt_##suffix(T x) { return std::sqrt(x); }
EMULATED_ROUNDED(float, __f, rn)
EMULATED_ROUNDED(double, __d, rn)
inline float __frsqrt_rn(float x) { return float(1.0 / std::sqrt(double(x))); }

inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }
inline double __ll2double_rn(long long x) { return double(x); }
inline double __ull2double_rn(unsigned long long x) { return double(x); }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __double2int_rn(double x) { return int(nearbyint(x)); }
inline long long __double2ll_rn(double x) { return (long long)nearbyint(x); }

inline float rsqrtf(float x) { return float(1.0 / std::sqrt(double(x))); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
inline double rcbrt(double x) { return 1.0 / cbrt(x); }
inline float normcdff(float x) { return float(0.5 * std::erfc(-double(x) * 0.70710678118654752440)); }
inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }
inline float normcdf(float x) { return normcdff(x); }
inline double sinpi(double x) { return sin(M_PI * remainder(x, 2.0)); }
inline double cospi(double x) { return cos(M_PI * remainder(x, 2.0)); }
inline float sinpif(float x) { return float(sinpi(double(x))); }
inline float cospif(float x) { return float(cospi(double(x))); }
inline float sinpi(float x) { return sinpif(x); }
inline float cospi(float x) { return cospif(x); }
inline float fdividef(float x, float y) { return x / y; }
inline float exp10(float x) { return powf(10.0f, x); }
double normcdfinv(double x);
double erfinv(double x);
double erfcinv(double x);
double erfcx(double x);
float erfcxf(float x);
double cyl_bessel_i0(double x);
double cyl_bessel_i1(double x);

// CUDA's min and max take numbers of two types, and pass a NaN over.
template <typename A, typename B>
using emulated_common = typename std::enable_if<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value,
                                                typename std::common_type<A, B>::type>::type;
template <typename A, typename B> inline emulated_common<A, B> min(A a, B b) {
  typedef typename std::common_type<A, B>::type T;
  if (a != a) return T(b);
  return T(b) < T(a) ? T(b) : T(a);
}
template <typename A, typename B> inline emulated_common<A, B> max(A a, B b) {
  typedef typename std::common_type<A, B>::type T;
  if (a != a) return T(b);
  return T(a) < T(b) ? T(b) : T(a);
}

inline unsigned __cvta_generic_to_shared(const void* place) { return unsigned(uintptr_t(place)); }
inline void __nanosleep(unsigned) {}
inline long long clock64() { return 0; }

// ------------------------------------------------------------------------------------- what the runtime calls kernels

struct EmulatedKernel {
  const char* name;
  void (*run)(void** arguments);  // one thread
  int count;                      // of the parameters
  const unsigned* sizes;          // of the parameters, in bytes
};

template <auto kernel> struct EmulatedLauncher;
template <typename... Parameters, void (*kernel)(Parameters...)> struct EmulatedLauncher<kernel> {
  static constexpr unsigned sizes[] = {unsigned(sizeof(Parameters))..., 0u};
  static constexpr int count = sizeof...(Parameters);
  template <std::size_t... Index> static void call(void** arguments, std::index_sequence<Index...>) {
    kernel(*reinterpret_cast<typename std::remove_reference<Parameters>::type*>(arguments[Index])...);
  }
  static void run(void** arguments) { call(arguments, std::make_index_sequence<sizeof...(Parameters)>()); }
};
#define EMULATED_KERNEL(name, ...)                                                                        \
  {name, EmulatedLauncher<(__VA_ARGS__)>::run, EmulatedLauncher<(__VA_ARGS__)>::count, \
   EmulatedLauncher<(__VA_ARGS__)>::sizes}
