// Activations, forward and backward, alone and behind the sum of a linear map and its bias; sums of columns.
//
// A function is a struct with value(x, setting) and gradient(x, dy, setting) = dy f'(x), with the formulas of the op of
// its name in xpnn/ops; `setting` is the op's one option. Everything is computed in `wide<T>`: float32 for half types.
#include "common.cuh"

constexpr int THREADS = 256;

template <typename W> __device__ inline W at_most(W x, W bound) { return x > bound ? bound : x; }  // a NaN stays
template <typename W> __device__ inline W at_least(W x, W bound) { return x < bound ? bound : x; }

// exp(-x^2 / 2). The rounding error of x^2 would become a relative error of x^2 eps: it is found by an fma, and mended.
template <typename W> __device__ inline W exp_of_minus_half_square(W x) {
  const W near = at_most(fabs(x), W(40));
  const W square = near * near;
  const W rest = fma(near, near, -square);
  return exp(W(-0.5) * square) * (W(1) - W(0.5) * rest);
}

// 1 / (1 + exp(-x)) and 1 / (1 + exp(x)), by exp(-|x|), which cannot overflow; neither cancels.
template <typename W> struct Sigmoids {
  W rising, falling;
  __device__ explicit Sigmoids(W x) {
    const W decay = exp(-fabs(x));
    const W large = W(1) / (W(1) + decay);
    const W small = decay * large;
    rising = x >= 0 ? large : small;
    falling = x >= 0 ? small : large;
  }
};

// What `column_sums` takes for a sum of what it is given as it is.
struct Identity {
  template <typename W> static __device__ W value(W x, W) { return x; }
  template <typename W> static __device__ W gradient(W, W dy, W) { return dy; }
};

template <typename Function> constexpr bool IS_IDENTITY = false;
template <> constexpr bool IS_IDENTITY<Identity> = true;

// max(x, 0). The derivative may be found from y as well: where y > 0, x > 0.
struct Relu {
  template <typename W> static __device__ W value(W x, W) { return x < 0 ? W(0) : x; }
  template <typename W> static __device__ W gradient(W x, W dy, W) { return x > 0 ? dy : W(0); }
};

struct LeakyRelu {
  template <typename W> static __device__ W value(W x, W slope) { return x > 0 ? x : slope * x; }
  template <typename W> static __device__ W gradient(W x, W dy, W slope) { return x > 0 ? dy : slope * dy; }
};

struct Elu {
  template <typename W> static __device__ W value(W x, W alpha) {
    return x > 0 ? x : alpha * expm1(x);
  }
  template <typename W> static __device__ W gradient(W x, W dy, W alpha) {
    return x > 0 ? dy : dy * (alpha * exp(x));
  }
};

struct Selu {
  static constexpr double ALPHA = 1.6732632423543772;
  static constexpr double SCALE = 1.0507009873554805;
  template <typename W> static __device__ W value(W x, W) { return W(SCALE) * Elu::value(x, W(ALPHA)); }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    return W(SCALE) * Elu::gradient(x, dy, W(ALPHA));
  }
};

// From -1000 alpha on, exp(x / alpha) is 0 in every dtype; without the bound, x / alpha could overflow.
struct Celu {
  template <typename W> static __device__ W exponent(W x, W alpha) { return at_least(x, W(-1000) * alpha) / alpha; }
  template <typename W> static __device__ W value(W x, W alpha) {
    return x > 0 ? x : alpha * expm1(exponent(x, alpha));
  }
  template <typename W> static __device__ W gradient(W x, W dy, W alpha) {
    return x > 0 ? dy : dy * exp(exponent(x, alpha));
  }
};

struct Smelu {
  template <typename W> static __device__ W slope(W x, W beta) {
    return (at_most(at_least(x, -beta), beta) + beta) * (W(0.5) / beta);
  }
  template <typename W> static __device__ W value(W x, W beta) {
    const W rise = slope(x, beta);
    return x >= beta ? x : beta * (rise * rise);
  }
  template <typename W> static __device__ W gradient(W x, W dy, W beta) { return dy * slope(x, beta); }
};

// From 1000 / beta on, exp(-beta |x|) is 0 in every dtype; without the bound, beta x could overflow.
struct Softplus {
  template <typename W> static __device__ W value(W x, W beta) {
    const W distance = at_most(fabs(x), W(1000) / beta);
    return (x < 0 ? W(0) : x) + log1p(exp(-beta * distance)) / beta;
  }
  template <typename W> static __device__ W gradient(W x, W dy, W beta) {
    const W farthest = W(1000) / beta;
    return dy * Sigmoids<W>(beta * at_most(at_least(x, -farthest), farthest)).rising;
  }
};

// The square of a large x would overflow: divided twice.
struct Softsign {
  template <typename W> static __device__ W value(W x, W) { return x / (W(1) + fabs(x)); }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    const W size = W(1) + fabs(x);
    return dy / size / size;
  }
};

struct Sigmoid {
  template <typename W> static __device__ W value(W x, W) { return Sigmoids<W>(x).rising; }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    const Sigmoids<W> both(x);
    return dy * (both.rising * both.falling);
  }
};

struct LogSigmoid {
  template <typename W> static __device__ W value(W x, W) { return (x > 0 ? W(0) : x) - log1p(exp(-fabs(x))); }
  template <typename W> static __device__ W gradient(W x, W dy, W) { return dy * Sigmoids<W>(x).falling; }
};

struct HardSigmoid {
  template <typename W> static __device__ W value(W x, W) { return at_most(at_least(x + W(3), W(0)), W(6)) / W(6); }
  template <typename W> static __device__ W gradient(W x, W dy, W) { return fabs(x) < 3 ? dy / W(6) : W(0); }
};

struct Tanh {
  template <typename W> static __device__ W value(W x, W) { return tanh(x); }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    const W y = tanh(x);
    return dy * (W(1) - y * y);
  }
};

// The derivatives of sigmoid and tanh for those who kept y instead of x: y (1 - y) and 1 - y^2.
struct SigmoidFromResult {
  template <typename W> static __device__ W gradient(W y, W dy, W) { return dy * (y * (W(1) - y)); }
};

struct TanhFromResult {
  template <typename W> static __device__ W gradient(W y, W dy, W) { return dy * (W(1) - y * y); }
};

// The error function, with the derivative 2 / sqrt(pi) exp(-x^2).
struct Erf {
  template <typename W> static __device__ W value(W x, W) { return erf(x); }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    const W near = at_most(fabs(x), W(40));
    const W square = near * near;
    const W rest = fma(near, near, -square);
    return dy * (W(1.1283791670955126) * (exp(-square) * (W(1) - rest)));
  }
};

// Phi(x), with the density exp(-x^2 / 2) / sqrt(2 pi) as its derivative.
struct NormalCdf {
  template <typename W> static __device__ W value(W x, W) { return normcdf(x); }
  template <typename W> static __device__ W density(W x) {
    return W(0.3989422804014327) * exp_of_minus_half_square(x);
  }
  template <typename W> static __device__ W gradient(W x, W dy, W) { return dy * density(x); }
};

// x Phi(x)
struct Gelu {
  template <typename W> static __device__ W value(W x, W) { return x * normcdf(x); }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    return dy * (normcdf(x) + x * NormalCdf::density(x));
  }
};

// x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3). At +-30 the sigmoid is 1 or 0; beyond, x^3 could overflow.
struct GeluTanh {
  static constexpr double FACTOR = 1.5957691216057308;
  template <typename W> static __device__ W near(W x) { return at_most(at_least(x, W(-30)), W(30)); }
  template <typename W> static __device__ W exponent(W x) {
    return W(FACTOR) * (x * (W(1) + W(0.044715) * (x * x)));
  }
  template <typename W> static __device__ W value(W x, W) { return x * Sigmoids<W>(exponent(near(x))).rising; }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    const W bounded = near(x);
    const Sigmoids<W> both(exponent(bounded));
    const W slope = W(FACTOR) * (W(1) + W(3 * 0.044715) * (bounded * bounded));
    return dy * (both.rising + x * (both.rising * both.falling * slope));
  }
};

// x sigmoid(x)
struct Silu {
  template <typename W> static __device__ W value(W x, W) { return x * Sigmoids<W>(x).rising; }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    const Sigmoids<W> both(x);
    return dy * (both.rising + x * (both.rising * both.falling));
  }
};

// x tanh(log(1 + exp(x))) = x n / (n + r), with n and r written in exp(-|x|): see xpnn/ops/gates.py.
struct Mish {
  template <typename W> static __device__ W value(W x, W) {
    const W decay = exp(-fabs(x));
    const W numerator = x >= 0 ? W(1) + W(2) * decay : decay * (decay + W(2));
    const W rest = x >= 0 ? W(2) * decay * decay : W(2);
    return x * (numerator / (numerator + rest));
  }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    const W decay = exp(-fabs(x));
    const W numerator = x >= 0 ? W(1) + W(2) * decay : decay * (decay + W(2));
    const W total = numerator + (x >= 0 ? W(2) * decay * decay : W(2));
    const W rise = W(4) * decay * (W(1) + decay) * (x >= 0 ? decay : W(1));
    return dy * (numerator / total + x * (rise / (total * total)));
  }
};

struct HardSwish {
  template <typename W> static __device__ W value(W x, W) { return x * HardSigmoid::value(x, W(0)); }
  template <typename W> static __device__ W gradient(W x, W dy, W) {
    const W slope = x >= 3 ? W(1) : at_least(x, W(-3)) / W(3) + W(0.5);
    return x > -3 ? dy * slope : W(0);
  }
};

// y = f(x), element by element
template <typename Function, typename T>
__global__ void __launch_bounds__(THREADS, 1) activation(const T* x, T* y, long long count, double setting) {
  constexpr int N = pack_size<T>();
  const wide<T> option = (wide<T>)setting;
  const long long packs = is_aligned(x) && is_aligned(y) ? count / N : 0;
  GRID_STRIDE(pack, packs) {
    const Pack<T, N> given = as_packs<N>(x)[pack];
    Pack<T, N> made;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      store(&made.at[k], Function::value(load(given.at[k]), option));
    }
    as_packs<N>(y)[pack] = made;
  }
  GRID_STRIDE(left, count - packs * N) {
    const long long place = packs * N + left;
    store(&y[place], Function::value(load(x[place]), option));
  }
}

// dx = f'(x) dy, element by element; x may be what a "FromResult" function wants, and dx may lie where dy does
template <typename Function, typename T>
__global__ void __launch_bounds__(THREADS, 1)
activation_gradient(const T* x, const T* dy, T* dx, long long count, double setting) {
  constexpr int N = pack_size<T>();
  const wide<T> option = (wide<T>)setting;
  const long long packs = is_aligned(x) && is_aligned(dy) && is_aligned(dx) ? count / N : 0;
  GRID_STRIDE(pack, packs) {
    const Pack<T, N> given = as_packs<N>(x)[pack];
    const Pack<T, N> arrived = as_packs<N>(dy)[pack];
    Pack<T, N> made;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      store(&made.at[k], Function::gradient(load(given.at[k]), load(arrived.at[k]), option));
    }
    as_packs<N>(dx)[pack] = made;
  }
  GRID_STRIDE(left, count - packs * N) {
    const long long place = packs * N + left;
    store(&dx[place], Function::gradient(load(x[place]), load(dy[place]), option));
  }
}

// y = f(z + bias) for z (rows, features); z becomes z + bias if KEEPS_SUM, and y may lie where z does if not.
// A block is `across` threads wide, each for N columns whose biases it holds, and goes down the rows.
template <typename Function, typename T, int N, bool KEEPS_SUM>
__global__ void __launch_bounds__(THREADS, 1)
bias_activation(T* z, const T* bias, T* y, long long rows, long long features, int across) {
  const int down = blockDim.x / across;
  const long long packs = features / N;
  const long long column = (long long)blockIdx.x * across + threadIdx.x % across;
  if (column >= packs) {
    return;
  }
  const Pack<T, N> added = as_packs<N>(bias)[column];
  const long long first = (long long)blockIdx.y * down + threadIdx.x / across;
  for (long long row = first; row < rows; row += (long long)gridDim.y * down) {
    const long long place = row * packs + column;
    Pack<T, N> sums = as_packs<N>(z)[place];
    Pack<T, N> made;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const wide<T> sum = load(sums.at[k]) + load(added.at[k]);
      store(&sums.at[k], sum);
      store(&made.at[k], Function::value(sum, wide<T>(0)));
    }
    if constexpr (KEEPS_SUM) {
      as_packs<N>(z)[place] = sums;
    }
    as_packs<N>(y)[place] = made;
  }
}

// One row of sums for each blockIdx.y: those of the columns of dz = f'(x) dy, over the rows that the block comes to.
// dz is written too, unless f is Identity; it may lie where dy does. A block is `across` threads wide, each for N
// columns, and the threads above each other add up their sums in the end, always in the same order.
template <typename Function, typename T, typename Sum, int N>
__global__ void __launch_bounds__(THREADS, 1)
column_sums(const T* x, const T* dy, T* dz, Sum* sums, long long rows, long long features, int across) {
  typedef wide<T> W;
  __shared__ W held[THREADS * N];
  const int down = blockDim.x / across;
  const int level = threadIdx.x / across;
  const long long packs = features / N;
  const long long column = (long long)blockIdx.x * across + threadIdx.x % across;
  W total[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    total[k] = 0;
  }
  if (column < packs) {
    const long long step = (long long)gridDim.y * down;
#pragma unroll 4
    for (long long row = (long long)blockIdx.y * down + level; row < rows; row += step) {
      const long long place = row * packs + column;
      const Pack<T, N> arrived = as_packs<N>(dy)[place];
      if constexpr (IS_IDENTITY<Function>) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          total[k] += load(arrived.at[k]);
        }
      } else {
        const Pack<T, N> given = as_packs<N>(x)[place];
        Pack<T, N> made;
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const W gradient = Function::gradient(load(given.at[k]), load(arrived.at[k]), W(0));
          store(&made.at[k], gradient);
          total[k] += gradient;
        }
        as_packs<N>(dz)[place] = made;
      }
    }
  }
  for (int left = down; left > 1;) {
    const int half = (left + 1) / 2;
    if (level >= half && level < left) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        held[k * THREADS + threadIdx.x] = total[k];
      }
    }
    __syncthreads();
    if (level + half < left) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        total[k] += held[k * THREADS + threadIdx.x + half * across];
      }
    }
    __syncthreads();
    left = half;
  }
  if (level == 0 && column < packs) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      store(&sums[blockIdx.y * features + column * N + k], total[k]);
    }
  }
}
