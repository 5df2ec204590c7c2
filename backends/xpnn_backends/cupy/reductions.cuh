template <typename W> __device__ inline W infinity();
template <> __device__ inline float infinity<float>() { return __int_as_float(0x7f800000); }
template <> __device__ inline double infinity<double>() { return __longlong_as_double(0x7ff0000000000000LL); }

template <typename W> __device__ inline W largest_finite();
template <> __device__ inline float largest_finite<float>() { return 3.4028234663852886e38f; }
template <> __device__ inline double largest_finite<double>() { return 1.7976931348623157e308; }

// combine over all threads of a block (whole warps), for all of them, always in the same order
template <typename W, typename Combine> __device__ inline W over_block(W x, Combine combine) {
  __shared__ W of_warps[32];
  for (int distance = 16; distance > 0; distance /= 2) {
    x = combine(x, __shfl_xor_sync(0xffffffffu, x, distance));
  }
  if (threadIdx.x % 32 == 0) {
    of_warps[threadIdx.x / 32] = x;
  }
  __syncthreads();
  x = of_warps[0];
  for (int warp = 1; warp < blockDim.x / 32; ++warp) {
    x = combine(x, of_warps[warp]);
  }
  __syncthreads();  // before the next reduction writes
  return x;
}

struct Sum {
  template <typename W> __device__ W operator()(W a, W b) const { return a + b; }
};

// A NaN is passed over.
struct Largest {
  template <typename W> __device__ W operator()(W a, W b) const { return b > a ? b : a; }
};
