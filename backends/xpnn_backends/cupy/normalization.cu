// Layer, RMS and batch normalisation. All arrays are matrices (rows, features) in C order, features being channels.
#include "common.cuh"

// The threads that work on one row: a warp, or a whole block.
template <int LANES> struct Team {
  int lane;
  long long row;
  long long rows_at_once;

  __device__ Team() {
    lane = threadIdx.x % LANES;
    const int teams = blockDim.x / LANES;
    row = (long long)blockIdx.x * teams + threadIdx.x / LANES;
    rows_at_once = (long long)gridDim.x * teams;
  }
};

// The sum over a team, for each of its threads; always added in the same order.
template <int LANES, typename W> __device__ W team_sum(W x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  if (LANES == 32) return x;
  __shared__ W of_warps[LANES / 32];
  __syncthreads();  // the sum before may still be read
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  W total = 0;
#pragma unroll
  for (int warp = 0; warp < LANES / 32; ++warp) total += of_warps[warp];
  return total;
}

// The larger one; a NaN wins, whichever it is, so that all threads of a team find the same.
template <typename W> __device__ inline W larger(W a, W b) { return a >= b || a != a ? a : b; }

template <int LANES, typename W> __device__ W team_max(W x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x = larger(x, __shfl_xor_sync(0xffffffffu, x, distance));
  }
  if (LANES == 32) return x;
  __shared__ W of_warps[LANES / 32];
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  W largest = of_warps[0];
#pragma unroll
  for (int warp = 1; warp < LANES / 32; ++warp) largest = larger(largest, of_warps[warp]);
  return largest;
}

// x - mean without overflow, where both are finite: in halves, which are exact but for the smallest numbers of all.
template <typename W> __device__ inline W standardized(W x, W mean, W twice_inverse) {
  return ((W)0.5 * x - (W)0.5 * mean) * twice_inverse;
}

// z = (x - mean) / sqrt(variance + epsilon), y = weight z + bias; without CENTRE, mean is 0.
// A row is read three times, from the cache but for the first. mean and deviation are kept for the backward pass.
// Where a square overflows although every x is finite, the row is multiplied with a small power of two first.
template <typename T, typename V, int LANES, bool CENTRE>
__global__ void __launch_bounds__(256) row_norm_forward(
    const T* __restrict__ x, const V* __restrict__ weight, const V* __restrict__ bias, T* __restrict__ y,
    wide<T>* __restrict__ means, wide<T>* __restrict__ deviations, long long rows, long long features, double epsilon) {
  typedef wide<T> W;
  const W share = (W)1 / (W)features;
  Team<LANES> team;
  for (long long row = team.row; row < rows; row += team.rows_at_once) {
    const T* from = x + row * features;
    W factor = 1, mean = 0, variance = 0;
    int power = 0;
    for (int attempt = 0; attempt < 2; ++attempt) {
      mean = 0;
      if (CENTRE) {
        W sum = 0;
        for (long long i = team.lane; i < features; i += LANES) sum += load(from[i]) * factor;
        mean = team_sum<LANES>(sum) * share;
      }
      W squares = 0;
      for (long long i = team.lane; i < features; i += LANES) {
        const W centred = load(from[i]) * factor - mean;
        squares += centred * centred;
      }
      variance = team_sum<LANES>(squares) * share;
      if (isfinite(variance) || attempt > 0) break;
      W largest = 0;
      for (long long i = team.lane; i < features; i += LANES) {
        largest = larger(largest, (W)fabs(load(from[i])));
      }
      largest = team_max<LANES>(largest);
      if (!isfinite(largest)) break;
      frexp(largest, &power);
      power -= 2;  // so that the factor is no subnormal number, which CuPy's compiler takes for 0
      factor = ldexp((W)1, -power);
    }
    // In units of the factor epsilon may be too small for the type; a positive number keeps 0 / 0 away.
    const W smallest = sizeof(W) == 8 ? (W)2.2250738585072014e-308 : (W)1.17549435e-38f;
    const W least = (W)epsilon * factor * factor;
    const W deviation = sqrt(variance + (least > smallest ? least : smallest));
    const W inverse = (W)1 / deviation;
    for (long long i = team.lane; i < features; i += LANES) {
      W value = (load(from[i]) * factor - mean) * inverse;
      if (weight) value *= (W)load(weight[i]);
      if (bias) value += (W)load(bias[i]);
      store(y + row * features + i, value);
    }
    if (team.lane == 0) {
      if (CENTRE) means[row] = ldexp(mean, power);
      deviations[row] = ldexp(deviation, power);
    }
  }
}

// dx = (g - <g> - z <g z>) / deviation with g = weight dy and <.> the mean over the row; without CENTRE, without <g>.
template <typename T, typename V, int LANES, bool CENTRE>
__global__ void __launch_bounds__(256) row_norm_backward(
    const T* __restrict__ dy, const T* __restrict__ x, const V* __restrict__ weight, const wide<T>* __restrict__ means,
    const wide<T>* __restrict__ deviations, T* __restrict__ dx, long long rows, long long features) {
  typedef wide<T> W;
  const W share = (W)1 / (W)features;
  Team<LANES> team;
  for (long long row = team.row; row < rows; row += team.rows_at_once) {
    const long long start = row * features;
    const W mean = CENTRE ? means[row] : (W)0, inverse = (W)1 / deviations[row];
    W sum = 0, along = 0;
    for (long long i = team.lane; i < features; i += LANES) {
      W gradient = load(dy[start + i]);
      if (weight) gradient *= (W)load(weight[i]);
      sum += gradient;
      along += gradient * standardized((W)load(x[start + i]), mean, 2 * inverse);
    }
    along = team_sum<LANES>(along) * share;
    sum = CENTRE ? team_sum<LANES>(sum) * share : (W)0;
    for (long long i = team.lane; i < features; i += LANES) {
      W gradient = load(dy[start + i]);
      if (weight) gradient *= (W)load(weight[i]);
      const W value = standardized((W)load(x[start + i]), mean, 2 * inverse);
      store(dx + start + i, (gradient - sum - value * along) * inverse);
    }
  }
}

// Sums over rows. A block is `across` threads wide, each for N neighbouring columns, and the threads below each other
// (its levels) go down the rows.
constexpr int COLUMN_THREADS = 256;

template <int N> struct Columns {
  int across;
  int levels;
  int level;
  long long column;
  long long first_row;
  long long step;

  __device__ explicit Columns(int across) : across(across) {
    levels = blockDim.x / across;
    level = threadIdx.x / across;
    column = ((long long)blockIdx.x * across + threadIdx.x % across) * N;
    first_row = (long long)blockIdx.y * levels + level;
    step = (long long)gridDim.y * levels;
  }

  // Each of `sums` becomes, for level 0, the sum over all levels; always added in the same order.
  template <typename W, int COUNT> __device__ void add_levels(W (&sums)[COUNT]) const {
    __shared__ W held[COUNT][COLUMN_THREADS];
    for (int left = levels; left > 1;) {
      const int half = (left + 1) / 2;
      if (level >= half && level < left) {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) held[k][threadIdx.x] = sums[k];
      }
      __syncthreads();
      if (level + half < left) {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) sums[k] += held[k][threadIdx.x + half * across];
      }
      __syncthreads();
      left = half;
    }
  }

  // Two sums of each column, over the rows of the block, into part_sums (2, parts, columns); a part is a blockIdx.y.
  template <typename W> __device__ void write(W (&sums)[2 * N], W* part_sums, long long columns) const {
    add_levels(sums);
    if (level == 0 && column < columns) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        part_sums[blockIdx.y * columns + column + k] = sums[k];
        part_sums[((long long)gridDim.y + blockIdx.y) * columns + column + k] = sums[N + k];
      }
    }
  }
};

template <int N, typename T> __device__ inline Pack<T, N> pack_at(const T* place) {
  return *reinterpret_cast<const Pack<T, N>*>(place);
}

// sums[k] = the sum over the parts of part_sums[k, part, column], for k = 0 and 1: for the threads of level 0.
template <typename W>
__device__ inline void sums_of_parts(
    const Columns<1>& at, const W* part_sums, long long parts, long long columns, W (&sums)[2]) {
  if (at.column < columns) {
#pragma unroll 8
    for (long long part = at.level; part < parts; part += at.levels) {
      sums[0] += part_sums[part * columns + at.column];
      sums[1] += part_sums[(parts + part) * columns + at.column];
    }
  }
  at.add_levels(sums);
}

// For each feature, sums over a part of the rows: of dy z and of dy.
template <typename T, bool CENTRE, int N>
__global__ void __launch_bounds__(COLUMN_THREADS, 2) row_norm_parameter_sums(
    const T* __restrict__ dy, const T* __restrict__ x, const wide<T>* __restrict__ means,
    const wide<T>* __restrict__ deviations, wide<T>* __restrict__ part_sums, long long rows, long long features,
    int across) {
  typedef wide<T> W;
  const Columns<N> at(across);
  W sums[2 * N] = {};
  if (at.column < features) {
#pragma unroll 2
    for (long long row = at.first_row; row < rows; row += at.step) {
      const Pack<T, N> gradients = pack_at<N>(dy + row * features + at.column);
      const Pack<T, N> values = pack_at<N>(x + row * features + at.column);
      const W mean = CENTRE ? means[row] : (W)0;
      const W twice_inverse = (W)2 / deviations[row];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const W gradient = load(gradients.at[k]);
        sums[k] += gradient * standardized((W)load(values.at[k]), mean, twice_inverse);
        sums[N + k] += gradient;
      }
    }
  }
  at.write(sums, part_sums, features);
}

// The sums over the parts of part_sums (2, parts, features): as they are, into first_sum and second_sum, and as
// gradients, into first and second. What is a null pointer is left out.
template <typename W, typename V>
__global__ void __launch_bounds__(COLUMN_THREADS) add_parts(
    const W* __restrict__ part_sums, W* __restrict__ first_sum, W* __restrict__ second_sum, V* __restrict__ first,
    V* __restrict__ second, long long parts, long long features, int across) {
  const Columns<1> at(across);
  W sums[2] = {};
  sums_of_parts(at, part_sums, parts, features, sums);
  if (at.level == 0 && at.column < features) {
    if (first_sum) first_sum[at.column] = sums[0];
    if (second_sum) second_sum[at.column] = sums[1];
    if (first) store(first + at.column, sums[0]);
    if (second) store(second + at.column, sums[1]);
  }
}

// Batch normalisation of float32 and half precision. Sums are taken in float64: squares of float32 numbers are exact
// there, so that one pass gives mean and variance without cancellation and without overflow.
// For each channel: sums of x and of x^2 over a part of the rows, into part_sums (2, parts, channels).
template <typename T, int N>
__global__ void __launch_bounds__(COLUMN_THREADS, 2) batch_norm_sums(
    const T* __restrict__ x, double* __restrict__ part_sums, long long rows, long long channels, int across) {
  const Columns<N> at(across);
  double sums[2 * N] = {};
  if (at.column < channels) {
#pragma unroll 4
    for (long long row = at.first_row; row < rows; row += at.step) {
      const Pack<T, N> values = pack_at<N>(x + row * channels + at.column);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const double value = load(values.at[k]);
        sums[k] += value;
        sums[N + k] += value * value;
      }
    }
  }
  at.write(sums, part_sums, channels);
}

// mean, variance (float32, for the caller) and 1 / sqrt(variance + epsilon) (float64) of each channel.
__global__ void __launch_bounds__(256) batch_norm_statistics(
    const double* __restrict__ part_sums, float* __restrict__ mean, float* __restrict__ variance,
    double* __restrict__ exact_mean, double* __restrict__ inverse_deviation, long long parts, long long channels,
    long long rows, double epsilon, int across) {
  const Columns<1> at(across);
  double sums[2] = {};
  sums_of_parts(at, part_sums, parts, channels, sums);
  if (at.level == 0 && at.column < channels) {
    const double centre = sums[0] / (double)rows;
    double spread = sums[1] / (double)rows - centre * centre;
    if (spread < 0) spread = 0;  // by rounding; NaN stays
    exact_mean[at.column] = centre;
    inverse_deviation[at.column] = 1.0 / sqrt(spread + epsilon);
    mean[at.column] = (float)centre;
    variance[at.column] = (float)spread;
  }
}

__device__ inline float normalized(float x, double mean, double inverse_deviation) {
  return (float)(((double)x - mean) * inverse_deviation);
}

// y = f(weight z + bias), f being max(., 0) with RELU and nothing else without. A thread has what belongs to its N
// channels in registers, and goes down the rows.
template <typename T, typename V, bool RELU, int N>
__global__ void __launch_bounds__(COLUMN_THREADS, 2) batch_norm_apply(
    const T* __restrict__ x, const V* __restrict__ weight, const V* __restrict__ bias,
    const double* __restrict__ mean, const double* __restrict__ inverse_deviation, T* __restrict__ y, long long rows,
    long long channels, int across) {
  const Columns<N> at(across);
  if (at.column >= channels) return;
  double centre[N], inverse[N];
  float slope[N], shift[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    centre[k] = mean[at.column + k];
    inverse[k] = inverse_deviation[at.column + k];
    slope[k] = weight ? load(weight[at.column + k]) : 1.0f;
    shift[k] = bias ? load(bias[at.column + k]) : 0.0f;
  }
#pragma unroll 2
  for (long long row = at.first_row; row < rows; row += at.step) {
    const Pack<T, N> values = pack_at<N>(x + row * channels + at.column);
    Pack<T, N> made;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float value = normalized(load(values.at[k]), centre[k], inverse[k]) * slope[k] + shift[k];
      store(&made.at[k], RELU && value < 0.0f ? 0.0f : value);  // NaN stays
    }
    *reinterpret_cast<Pack<T, N>*>(y + row * channels + at.column) = made;
  }
}

// h = f' dy, where f' is known from y: with RELU, 1 where y > 0. Sums of h z and of h over a part of the rows.
template <typename T, bool RELU, int N>
__global__ void __launch_bounds__(COLUMN_THREADS, 2) batch_norm_gradient_sums(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, const double* __restrict__ mean,
    const double* __restrict__ inverse_deviation, double* __restrict__ part_sums, long long rows, long long channels,
    int across) {
  const Columns<N> at(across);
  double sums[2 * N] = {};
  if (at.column < channels) {
    double centre[N];
#pragma unroll
    for (int k = 0; k < N; ++k) centre[k] = mean[at.column + k];
#pragma unroll 2
    for (long long row = at.first_row; row < rows; row += at.step) {
      const long long place = row * channels + at.column;
      const Pack<T, N> gradients = pack_at<N>(dy + place);
      const Pack<T, N> values = pack_at<N>(x + place);
      Pack<T, N> results;
      if (RELU) results = pack_at<N>(y + place);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const double gradient = !RELU || load(results.at[k]) > 0.0f ? load(gradients.at[k]) : 0.0f;
        sums[k] += gradient * ((double)load(values.at[k]) - centre[k]);
        sums[N + k] += gradient;
      }
    }
#pragma unroll
    for (int k = 0; k < N; ++k) sums[k] *= inverse_deviation[at.column + k];
  }
  at.write(sums, part_sums, channels);
}

// dx = weight / s (h - <h> - z <h z>) + dmean / n + z s dvariance 2 / n, with <.> the mean over the n rows.
template <typename T, typename V, bool RELU, int N>
__global__ void __launch_bounds__(COLUMN_THREADS, 2) batch_norm_backward(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, const V* __restrict__ weight,
    const double* __restrict__ mean, const double* __restrict__ inverse_deviation, const double* __restrict__ along,
    const double* __restrict__ total, const float* __restrict__ dmean, const float* __restrict__ dvariance,
    T* __restrict__ dx, long long rows, long long channels, int across) {
  const Columns<N> at(across);
  if (at.column >= channels) return;
  const double share = 1.0 / (double)rows;
  double centre[N], inverse[N];
  float factor[N], mean_total[N], mean_along[N], by_mean[N], by_variance[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const long long channel = at.column + k;
    centre[k] = mean[channel];
    inverse[k] = inverse_deviation[channel];
    factor[k] = (float)(weight ? inverse[k] * load(weight[channel]) : inverse[k]);
    mean_total[k] = (float)(total[channel] * share);
    mean_along[k] = (float)(along[channel] * share);
    by_mean[k] = dmean ? dmean[channel] * (float)share : 0.0f;
    by_variance[k] = dvariance ? (float)(dvariance[channel] / inverse[k] * 2.0 * share) : 0.0f;
  }
#pragma unroll 2
  for (long long row = at.first_row; row < rows; row += at.step) {
    const long long place = row * channels + at.column;
    const Pack<T, N> gradients = pack_at<N>(dy + place);
    const Pack<T, N> values = pack_at<N>(x + place);
    Pack<T, N> results, made;
    if (RELU) results = pack_at<N>(y + place);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float gradient = !RELU || load(results.at[k]) > 0.0f ? load(gradients.at[k]) : 0.0f;
      const float value = normalized(load(values.at[k]), centre[k], inverse[k]);
      const float centred = gradient - mean_total[k] - value * mean_along[k];
      store(&made.at[k], factor[k] * centred + (by_mean[k] + value * by_variance[k]));
    }
    *reinterpret_cast<Pack<T, N>*>(dx + place) = made;
  }
}
