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

// A row, or the same row of several matrices, shared by a team: packs of N elements. HELD packs of each thread stay in
// registers; if HELD is 0, the row is read from memory (or a cache) whenever it is gone through.
template <typename T, int LANES, int HELD, int N, int ARRAYS> struct TeamRow {
  const T* starts[ARRAYS];
  long long packs;
  int lane;
  Pack<T, N> held[HELD > 0 ? HELD : 1][ARRAYS];

  __device__ TeamRow(const T* const (&of_arrays)[ARRAYS], long long features, int lane)
      : packs(features / N), lane(lane) {
#pragma unroll
    for (int array = 0; array < ARRAYS; ++array) starts[array] = of_arrays[array];
#pragma unroll
    for (int slot = 0; slot < HELD; ++slot) {
      if (lane + slot * LANES < packs) read(lane + slot * LANES, held[slot]);
    }
  }

  __device__ void read(long long pack, Pack<T, N> (&given)[ARRAYS]) const {
#pragma unroll
    for (int array = 0; array < ARRAYS; ++array) given[array] = as_packs<N>(starts[array])[pack];
  }

  // action(number of the pack in the row, packs of all arrays): for each pack of this thread
  template <typename Action> __device__ void each(Action action) const {
    if constexpr (HELD > 0) {
#pragma unroll
      for (int slot = 0; slot < HELD; ++slot) {
        if (lane + slot * LANES < packs) action(lane + slot * LANES, held[slot]);
      }
    } else {
      for (long long pack = lane; pack < packs; pack += LANES) {
        Pack<T, N> given[ARRAYS];
        read(pack, given);
        action(pack, given);
      }
    }
  }
};

// z = (x - mean) / sqrt(variance + epsilon), y = weight z + bias; without CENTRE, mean is 0.
// mean and deviation are kept for the backward pass.
// Where a square overflows although every x is finite, the row is multiplied with a small power of two first.
template <typename T, typename V, int LANES, int HELD, int N, bool CENTRE>
__global__ void __launch_bounds__(256, 2) row_norm_forward(
    const T* __restrict__ x, const V* __restrict__ weight, const V* __restrict__ bias, T* __restrict__ y,
    wide<T>* __restrict__ means, wide<T>* __restrict__ deviations, long long rows, long long features, double epsilon) {
  typedef wide<T> W;
  typedef const Pack<T, N> (&Given)[1];
  const W share = (W)1 / (W)features;
  Team<LANES> team;
  for (long long row = team.row; row < rows; row += team.rows_at_once) {
    const T* starts[1] = {x + row * features};
    const TeamRow<T, LANES, HELD, N, 1> values(starts, features, team.lane);
    W factor = 1, mean = 0, variance = 0;
    int power = 0;
    for (int attempt = 0; attempt < 2; ++attempt) {
      mean = 0;
      if (CENTRE) {
        W sum = 0;
        values.each([&](long long, Given given) {
#pragma unroll
          for (int k = 0; k < N; ++k) sum += load(given[0].at[k]) * factor;
        });
        mean = team_sum<LANES>(sum) * share;
      }
      W squares = 0;
      values.each([&](long long, Given given) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const W centred = load(given[0].at[k]) * factor - mean;
          squares += centred * centred;
        }
      });
      variance = team_sum<LANES>(squares) * share;
      if (isfinite(variance) || attempt > 0) break;
      W largest = 0;
      values.each([&](long long, Given given) {
#pragma unroll
        for (int k = 0; k < N; ++k) largest = larger(largest, (W)fabs(load(given[0].at[k])));
      });
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
    values.each([&](long long pack, Given given) {
      Pack<V, N> slopes, shifts;
      if (weight) slopes = as_packs<N>(weight)[pack];
      if (bias) shifts = as_packs<N>(bias)[pack];
      Pack<T, N> made;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        W value = (load(given[0].at[k]) * factor - mean) * inverse;
        if (weight) value *= (W)load(slopes.at[k]);
        if (bias) value += (W)load(shifts.at[k]);
        store(&made.at[k], value);
      }
      as_packs<N>(y)[row * values.packs + pack] = made;
    });
    if (team.lane == 0) {
      if (CENTRE) means[row] = ldexp(mean, power);
      deviations[row] = ldexp(deviation, power);
    }
  }
}

// dx = (g - <g> - z <g z>) / deviation with g = weight dy and <.> the mean over the row; without CENTRE, without <g>.
template <typename T, typename V, int LANES, int HELD, int N, bool CENTRE>
__global__ void __launch_bounds__(256, 2) row_norm_backward(
    const T* __restrict__ dy, const T* __restrict__ x, const V* __restrict__ weight, const wide<T>* __restrict__ means,
    const wide<T>* __restrict__ deviations, T* __restrict__ dx, long long rows, long long features) {
  typedef wide<T> W;
  typedef const Pack<T, N> (&Given)[2];
  const W share = (W)1 / (W)features;
  Team<LANES> team;
  for (long long row = team.row; row < rows; row += team.rows_at_once) {
    const T* starts[2] = {dy + row * features, x + row * features};
    const TeamRow<T, LANES, HELD, N, 2> both(starts, features, team.lane);
    const W mean = CENTRE ? means[row] : (W)0;
    const W inverse = (W)1 / deviations[row];
    W sum = 0, along = 0;
    both.each([&](long long pack, Given given) {
      Pack<V, N> slopes;
      if (weight) slopes = as_packs<N>(weight)[pack];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const W gradient = weight ? load(given[0].at[k]) * (W)load(slopes.at[k]) : load(given[0].at[k]);
        sum += gradient;
        along += gradient * standardized((W)load(given[1].at[k]), mean, 2 * inverse);
      }
    });
    along = team_sum<LANES>(along) * share;
    sum = CENTRE ? team_sum<LANES>(sum) * share : (W)0;
    both.each([&](long long pack, Given given) {
      Pack<V, N> slopes;
      if (weight) slopes = as_packs<N>(weight)[pack];
      Pack<T, N> made;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const W gradient = weight ? load(given[0].at[k]) * (W)load(slopes.at[k]) : load(given[0].at[k]);
        const W value = standardized((W)load(given[1].at[k]), mean, 2 * inverse);
        store(&made.at[k], (gradient - sum - value * along) * inverse);
      }
      as_packs<N>(dx)[row * both.packs + pack] = made;
    });
  }
}

// Sums over rows. A block is `across` threads wide, each for N neighbouring columns, and the threads below each other
// (its levels) go down the rows.
constexpr int COLUMN_THREADS = 256;

template <int N> struct Columns {
  int across;
  int levels;
  int level;
  long long packs;  // of a row
  long long pack;   // of this thread
  long long first_row;
  long long step;

  __device__ Columns(long long columns, int across) : across(across) {
    packs = columns / N;
    levels = blockDim.x / across;
    level = threadIdx.x / across;
    pack = (long long)blockIdx.x * across + threadIdx.x % across;
    first_row = (long long)blockIdx.y * levels + level;
    step = (long long)gridDim.y * levels;
  }

  __device__ bool is_inside() const { return pack < packs; }
  __device__ long long column(int k) const { return pack * N + k; }
  __device__ long long place(long long row) const { return row * packs + pack; }  // counted in packs

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
  template <typename W> __device__ void write(W (&sums)[2 * N], W* part_sums) const {
    add_levels(sums);
    if (level == 0 && is_inside()) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        part_sums[blockIdx.y * packs * N + column(k)] = sums[k];
        part_sums[((long long)gridDim.y + blockIdx.y) * packs * N + column(k)] = sums[N + k];
      }
    }
  }
};

// sums[k] = the sum over the parts of part_sums[k, part, column], for k = 0 and 1: for the threads of level 0.
template <typename W>
__device__ inline void sums_of_parts(
    const Columns<1>& at, const W* part_sums, long long parts, W (&sums)[2]) {
  if (at.is_inside()) {
#pragma unroll 8
    for (long long part = at.level; part < parts; part += at.levels) {
      sums[0] += part_sums[at.place(part)];
      sums[1] += part_sums[at.place(parts + part)];
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
  const Columns<N> at(features, across);
  W sums[2 * N] = {};
  if (at.is_inside()) {
#pragma unroll 2
    for (long long row = at.first_row; row < rows; row += at.step) {
      const Pack<T, N> gradients = as_packs<N>(dy)[at.place(row)];
      const Pack<T, N> values = as_packs<N>(x)[at.place(row)];
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
  at.write(sums, part_sums);
}

// The sums over the parts of part_sums (2, parts, features): as they are, into first_sum and second_sum, and as
// gradients, into first and second. What is a null pointer is left out.
template <typename W, typename V>
__global__ void __launch_bounds__(COLUMN_THREADS) add_parts(
    const W* __restrict__ part_sums, W* __restrict__ first_sum, W* __restrict__ second_sum, V* __restrict__ first,
    V* __restrict__ second, long long parts, long long features, int across) {
  const Columns<1> at(features, across);
  W sums[2] = {};
  sums_of_parts(at, part_sums, parts, sums);
  if (at.level == 0 && at.is_inside()) {
    if (first_sum) first_sum[at.pack] = sums[0];
    if (second_sum) second_sum[at.pack] = sums[1];
    if (first) store(first + at.pack, sums[0]);
    if (second) store(second + at.pack, sums[1]);
  }
}

// Batch normalisation of float32 and half precision. Sums are taken in float64: squares of float32 numbers are exact
// there, so that one pass gives mean and variance without cancellation and without overflow.
// For each channel: sums of x and of x^2 over a part of the rows, into part_sums (2, parts, channels).
template <typename T, int N>
__global__ void __launch_bounds__(COLUMN_THREADS, 2) batch_norm_sums(
    const T* __restrict__ x, double* __restrict__ part_sums, long long rows, long long channels, int across) {
  const Columns<N> at(channels, across);
  double sums[2 * N] = {};
  if (at.is_inside()) {
#pragma unroll 4
    for (long long row = at.first_row; row < rows; row += at.step) {
      const Pack<T, N> values = as_packs<N>(x)[at.place(row)];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const double value = load(values.at[k]);
        sums[k] += value;
        sums[N + k] += value * value;
      }
    }
  }
  at.write(sums, part_sums);
}

// mean, variance (float32, for the caller) and 1 / sqrt(variance + epsilon) (float64) of each channel.
__global__ void __launch_bounds__(256) batch_norm_statistics(
    const double* __restrict__ part_sums, float* __restrict__ mean, float* __restrict__ variance,
    double* __restrict__ exact_mean, double* __restrict__ inverse_deviation, long long parts, long long channels,
    long long rows, double epsilon, int across) {
  const Columns<1> at(channels, across);
  double sums[2] = {};
  sums_of_parts(at, part_sums, parts, sums);
  if (at.level == 0 && at.is_inside()) {
    const double centre = sums[0] / (double)rows;
    double spread = sums[1] / (double)rows - centre * centre;
    if (spread < 0) spread = 0;  // by rounding; NaN stays
    exact_mean[at.pack] = centre;
    inverse_deviation[at.pack] = 1.0 / sqrt(spread + epsilon);
    mean[at.pack] = (float)centre;
    variance[at.pack] = (float)spread;
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
  const Columns<N> at(channels, across);
  if (!at.is_inside()) return;
  double centre[N], inverse[N];
  float slope[N], shift[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    centre[k] = mean[at.column(k)];
    inverse[k] = inverse_deviation[at.column(k)];
    slope[k] = weight ? load(weight[at.column(k)]) : 1.0f;
    shift[k] = bias ? load(bias[at.column(k)]) : 0.0f;
  }
#pragma unroll 2
  for (long long row = at.first_row; row < rows; row += at.step) {
    const Pack<T, N> values = as_packs<N>(x)[at.place(row)];
    Pack<T, N> made;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float value = normalized(load(values.at[k]), centre[k], inverse[k]) * slope[k] + shift[k];
      store(&made.at[k], RELU && value < 0.0f ? 0.0f : value);  // NaN stays
    }
    as_packs<N>(y)[at.place(row)] = made;
  }
}

// h = f' dy, where f' is known from y: with RELU, 1 where y > 0. Sums of h z and of h over a part of the rows.
template <typename T, bool RELU, int N>
__global__ void __launch_bounds__(COLUMN_THREADS, 2) batch_norm_gradient_sums(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, const double* __restrict__ mean,
    const double* __restrict__ inverse_deviation, double* __restrict__ part_sums, long long rows, long long channels,
    int across) {
  const Columns<N> at(channels, across);
  double sums[2 * N] = {};
  if (at.is_inside()) {
    double centre[N];
#pragma unroll
    for (int k = 0; k < N; ++k) centre[k] = mean[at.column(k)];
#pragma unroll 2
    for (long long row = at.first_row; row < rows; row += at.step) {
      const long long place = at.place(row);
      const Pack<T, N> gradients = as_packs<N>(dy)[place];
      const Pack<T, N> values = as_packs<N>(x)[place];
      Pack<T, N> results;
      if (RELU) results = as_packs<N>(y)[place];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const double gradient = !RELU || load(results.at[k]) > 0.0f ? load(gradients.at[k]) : 0.0f;
        sums[k] += gradient * ((double)load(values.at[k]) - centre[k]);
        sums[N + k] += gradient;
      }
    }
#pragma unroll
    for (int k = 0; k < N; ++k) sums[k] *= inverse_deviation[at.column(k)];
  }
  at.write(sums, part_sums);
}

// dx = weight / s (h - <h> - z <h z>) + dmean / n + z s dvariance 2 / n, with <.> the mean over the n rows.
template <typename T, typename V, bool RELU, int N>
__global__ void __launch_bounds__(COLUMN_THREADS, 2) batch_norm_backward(
    const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ y, const V* __restrict__ weight,
    const double* __restrict__ mean, const double* __restrict__ inverse_deviation, const double* __restrict__ along,
    const double* __restrict__ total, const float* __restrict__ dmean, const float* __restrict__ dvariance,
    T* __restrict__ dx, long long rows, long long channels, int across) {
  const Columns<N> at(channels, across);
  if (!at.is_inside()) return;
  const double share = 1.0 / (double)rows;
  double centre[N], inverse[N];
  float factor[N], mean_total[N], mean_along[N], by_mean[N], by_variance[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const long long channel = at.column(k);
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
    const long long place = at.place(row);
    const Pack<T, N> gradients = as_packs<N>(dy)[place];
    const Pack<T, N> values = as_packs<N>(x)[place];
    Pack<T, N> results, made;
    if (RELU) results = as_packs<N>(y)[place];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float gradient = !RELU || load(results.at[k]) > 0.0f ? load(gradients.at[k]) : 0.0f;
      const float value = normalized(load(values.at[k]), centre[k], inverse[k]);
      const float centred = gradient - mean_total[k] - value * mean_along[k];
      store(&made.at[k], factor[k] * centred + (by_mean[k] + value * by_variance[k]));
    }
    as_packs<N>(dx)[place] = made;
  }
}
