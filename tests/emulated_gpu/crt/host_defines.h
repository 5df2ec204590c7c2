// What NVIDIA's headers ask of this file, for a compiler that knows no devices: all of their marks mean nothing.
#ifndef EMULATED_GPU_HOST_DEFINES_H
#define EMULATED_GPU_HOST_DEFINES_H
#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __managed__ static
#define __grid_constant__
#define __no_return__ __attribute__((noreturn))
#define __noinline__
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __inline_hint__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __thread__ __thread
#define __import__
#define __export__
#define __cdecl
#define __annotate__(mark)
#define __location__(mark)
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __specialization_static
#define __builtin_align__(bytes) __align__(bytes)
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#endif
