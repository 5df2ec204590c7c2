// Pooling of x (batch, depth, height, width, channels) with a window, and over all positions. A thread has N
// neighbouring channels, which it moves together; `packs` = channels / N. Fewer spatial axes are axes of length 1.
#include "common.cuh"

// How the window goes along one axis of x: it starts at place * stride - before.
struct Axis {
  int length;
  int window;
  int stride;
  int before;
  int places;
};
#define AXIS(name) int name##_length, int name##_window, int name##_stride, int name##_before, int name##_places
#define GET_AXIS(name) (Axis{name##_length, name##_window, name##_stride, name##_before, name##_places})

// first, first + 1, ..., last
struct Range {
  int first;
  int last;
  __device__ int count() const { return last - first + 1; }
};

// The positions of x under the window in one of its places, without the padding.
__device__ inline Range positions_under(Axis axis, int place) {
  const int start = place * axis.stride - axis.before;
  return Range{max(start, 0), min(start + axis.window, axis.length) - 1};
}

// The places of the window in which it covers one position of x; none if the last is before the first.
__device__ inline Range places_over(Axis axis, int position) {
  const int reached = position + axis.before;
  const int behind = reached - axis.window;  // a window that starts here or earlier ends before the position
  return Range{behind < 0 ? 0 : behind / axis.stride + 1, min(reached / axis.stride, axis.places - 1)};
}

// Which position in the window lies over `position` of x.
__device__ inline int tap_at(Axis axis, int place, int position) {
  return position + axis.before - place * axis.stride;
}

// index % length, leaving index / length. Divisions of 64 bits take long: most indices fit in 32.
__device__ inline int split_off(long long& index, int length) {
  if (index >> 32 == 0) {
    const u32 small = (u32)index;
    index = small / (u32)length;
    return (int)(small % (u32)length);
  }
  const int rest = (int)(index % length);
  index /= length;
  return rest;
}

// Whether a value comes before the largest so far: NaN counts as larger than any number, and the first one stays.
template <typename W> __device__ inline bool is_larger(W value, W largest) {
  return value > largest || (value != value && largest == largest);
}

// y = the largest value under the window; taps = which position in the window it has, in C order, the first if several.
template <typename T, int N, typename Tap>
__global__ void __launch_bounds__(256, 3)
max_pool(const T* x, T* y, Tap* taps, long long batch, int packs, AXIS(depth), AXIS(height), AXIS(width)) {
  const Axis depth = GET_AXIS(depth);
  const Axis height = GET_AXIS(height);
  const Axis width = GET_AXIS(width);
  GRID_STRIDE(item, batch * depth.places * height.places * width.places * packs) {
    long long sample = item;
    const int pack = split_off(sample, packs);
    const int w = split_off(sample, width.places);
    const int h = split_off(sample, height.places);
    const int d = split_off(sample, depth.places);
    const Range along_depth = positions_under(depth, d);
    const Range along_height = positions_under(height, h);
    const Range along_width = positions_under(width, w);
    wide<T> largest[N];
    int tap_of_largest[N];
    bool first = true;
    for (int i = along_depth.first; i <= along_depth.last; ++i) {
      for (int j = along_height.first; j <= along_height.last; ++j) {
        const long long row = ((sample * depth.length + i) * height.length + j) * width.length;
        const int row_tap = (tap_at(depth, d, i) * height.window + tap_at(height, h, j)) * width.window;
        for (int k = along_width.first; k <= along_width.last; ++k) {
          const Pack<T, N> values = reinterpret_cast<const Pack<T, N>*>(x)[(row + k) * packs + pack];
          const int tap = row_tap + tap_at(width, w, k);
#pragma unroll
          for (int c = 0; c < N; ++c) {
            const wide<T> value = load(values.at[c]);
            if (first || is_larger(value, largest[c])) {
              largest[c] = value;
              tap_of_largest[c] = tap;
            }
          }
          first = false;
        }
      }
    }
    Pack<T, N> result;
    Pack<Tap, N> chosen;
#pragma unroll
    for (int c = 0; c < N; ++c) {
      store(&result.at[c], largest[c]);
      chosen.at[c] = (Tap)tap_of_largest[c];
    }
    reinterpret_cast<Pack<T, N>*>(y)[item] = result;
    reinterpret_cast<Pack<Tap, N>*>(taps)[item] = chosen;
  }
}

// dx = the sum of dy over the windows whose largest value this is: each value of x asks the windows that cover it.
template <typename T, int N, typename Tap>
__global__ void __launch_bounds__(256, 3)
max_pool_gradient(const T* dy, const Tap* taps, T* dx, long long batch, int packs, AXIS(depth), AXIS(height),
                  AXIS(width)) {
  const Axis depth = GET_AXIS(depth);
  const Axis height = GET_AXIS(height);
  const Axis width = GET_AXIS(width);
  GRID_STRIDE(item, batch * depth.length * height.length * width.length * packs) {
    long long sample = item;
    const int pack = split_off(sample, packs);
    const int w = split_off(sample, width.length);
    const int h = split_off(sample, height.length);
    const int d = split_off(sample, depth.length);
    const Range along_depth = places_over(depth, d);
    const Range along_height = places_over(height, h);
    const Range along_width = places_over(width, w);
    wide<T> sum[N] = {};
    for (int i = along_depth.first; i <= along_depth.last; ++i) {
      for (int j = along_height.first; j <= along_height.last; ++j) {
        const long long row = ((sample * depth.places + i) * height.places + j) * width.places;
        const int row_tap = (tap_at(depth, i, d) * height.window + tap_at(height, j, h)) * width.window;
        for (int k = along_width.first; k <= along_width.last; ++k) {
          const long long place = (row + k) * packs + pack;
          const Pack<Tap, N> chosen = reinterpret_cast<const Pack<Tap, N>*>(taps)[place];
          const Pack<T, N> gradients = reinterpret_cast<const Pack<T, N>*>(dy)[place];
          const int own = row_tap + tap_at(width, k, w);
#pragma unroll
          for (int c = 0; c < N; ++c) {
            if (chosen.at[c] == own) sum[c] += load(gradients.at[c]);
          }
        }
      }
    }
    Pack<T, N> result;
#pragma unroll
    for (int c = 0; c < N; ++c) store(&result.at[c], sum[c]);
    reinterpret_cast<Pack<T, N>*>(dx)[item] = result;
  }
}

// y = (the sum of the values under the window) / count, where count is the number of positions in the window or, if
// the padding does not count, of those inside of x. `scale` is a power of 2 that keeps the sum from overflowing.
template <typename T, int N>
__global__ void __launch_bounds__(256, 3)
average_pool(const T* x, T* y, long long batch, int packs, AXIS(depth), AXIS(height), AXIS(width),
             bool count_padding, double scale) {
  const Axis depth = GET_AXIS(depth);
  const Axis height = GET_AXIS(height);
  const Axis width = GET_AXIS(width);
  const wide<T> factor = (wide<T>)scale;
  const wide<T> whole = (wide<T>)depth.window * (wide<T>)height.window * (wide<T>)width.window;
  GRID_STRIDE(item, batch * depth.places * height.places * width.places * packs) {
    long long sample = item;
    const int pack = split_off(sample, packs);
    const int w = split_off(sample, width.places);
    const int h = split_off(sample, height.places);
    const int d = split_off(sample, depth.places);
    const Range along_depth = positions_under(depth, d);
    const Range along_height = positions_under(height, h);
    const Range along_width = positions_under(width, w);
    double sum[N] = {};  // of sums of a few: a window may be as large as an image
    for (int i = along_depth.first; i <= along_depth.last; ++i) {
      for (int j = along_height.first; j <= along_height.last; ++j) {
        const long long row = ((sample * depth.length + i) * height.length + j) * width.length;
        for (int start = along_width.first; start <= along_width.last; start += 16) {
          const int end = min(start + 15, along_width.last);
          wide<T> some[N] = {};
          for (int k = start; k <= end; ++k) {
            const Pack<T, N> values = reinterpret_cast<const Pack<T, N>*>(x)[(row + k) * packs + pack];
#pragma unroll
            for (int c = 0; c < N; ++c) some[c] += load(values.at[c]) * factor;
          }
#pragma unroll
          for (int c = 0; c < N; ++c) sum[c] += some[c];
        }
      }
    }
    const wide<T> inside =
        (wide<T>)along_depth.count() * (wide<T>)along_height.count() * (wide<T>)along_width.count();
    const wide<T> count = count_padding ? whole : inside;
    Pack<T, N> result;
#pragma unroll
    for (int c = 0; c < N; ++c) store(&result.at[c], (wide<T>)sum[c] / (count * factor));
    reinterpret_cast<Pack<T, N>*>(y)[item] = result;
  }
}

// dx = the sum of dy / count over the windows that cover a value. Where all counts are the same, one division does.
template <typename T, int N>
__global__ void __launch_bounds__(256, 3)
average_pool_gradient(const T* dy, T* dx, long long batch, int packs, AXIS(depth), AXIS(height), AXIS(width),
                      bool count_padding, double scale) {
  const Axis depth = GET_AXIS(depth);
  const Axis height = GET_AXIS(height);
  const Axis width = GET_AXIS(width);
  const wide<T> factor = (wide<T>)scale;
  const wide<T> whole = (wide<T>)depth.window * (wide<T>)height.window * (wide<T>)width.window;
  GRID_STRIDE(item, batch * depth.length * height.length * width.length * packs) {
    long long sample = item;
    const int pack = split_off(sample, packs);
    const int w = split_off(sample, width.length);
    const int h = split_off(sample, height.length);
    const int d = split_off(sample, depth.length);
    const Range along_depth = places_over(depth, d);
    const Range along_height = places_over(height, h);
    const Range along_width = places_over(width, w);
    wide<T> sum[N] = {};
    for (int i = along_depth.first; i <= along_depth.last; ++i) {
      for (int j = along_height.first; j <= along_height.last; ++j) {
        const long long row = ((sample * depth.places + i) * height.places + j) * width.places;
        const wide<T> lines = (wide<T>)positions_under(depth, i).count() * (wide<T>)positions_under(height, j).count();
        for (int k = along_width.first; k <= along_width.last; ++k) {
          const Pack<T, N> gradients = reinterpret_cast<const Pack<T, N>*>(dy)[(row + k) * packs + pack];
          const wide<T> inside = lines * (wide<T>)positions_under(width, k).count();
#pragma unroll
          for (int c = 0; c < N; ++c) {
            const wide<T> gradient = load(gradients.at[c]);
            sum[c] += count_padding ? gradient * factor : gradient / inside;
          }
        }
      }
    }
    Pack<T, N> result;
#pragma unroll
    for (int c = 0; c < N; ++c) store(&result.at[c], count_padding ? sum[c] / (whole * factor) : sum[c]);
    reinterpret_cast<Pack<T, N>*>(dx)[item] = result;
  }
}

// Over all positions: a block has 2^lane_bits packs of channels of one sample, and as many groups of threads as fit,
// among which the positions are dealt out. What the groups found is put together in pairs, always in the same order.

constexpr int GLOBAL_THREADS = 256;

// y = the largest value that counts (mask[position] is true, or there is no mask), 0 if none does;
// best = its position, the first if several, -1 if none.
template <typename T, int N>
__global__ void __launch_bounds__(GLOBAL_THREADS)
global_max_pool(const T* x, const bool* mask, T* y, int* best, long long batch, int positions, int packs,
                int lane_bits) {
  __shared__ wide<T> largest_of[N][GLOBAL_THREADS];
  __shared__ int position_of[N][GLOBAL_THREADS];
  const int lanes = 1 << lane_bits;
  const int groups = GLOBAL_THREADS >> lane_bits;
  const int group = threadIdx.x >> lane_bits;
  const long long chunks = (packs + lanes - 1) >> lane_bits;
  for (long long item = blockIdx.x; item < batch * chunks; item += gridDim.x) {
    const long long sample = item / chunks;
    const long long pack = (item % chunks) * lanes + (threadIdx.x & (lanes - 1));
    const bool inside = pack < packs;
    wide<T> largest[N] = {};
    int position[N];
#pragma unroll
    for (int c = 0; c < N; ++c) position[c] = -1;
    for (int i = group; inside && i < positions; i += groups) {
      const long long row = sample * positions + i;
      if (mask && !mask[row]) continue;
      const Pack<T, N> values = reinterpret_cast<const Pack<T, N>*>(x)[row * packs + pack];
#pragma unroll
      for (int c = 0; c < N; ++c) {
        const wide<T> value = load(values.at[c]);
        if (position[c] < 0 || is_larger(value, largest[c])) {
          largest[c] = value;
          position[c] = i;
        }
      }
    }
    __syncthreads();  // the results of the item before have been used
#pragma unroll
    for (int c = 0; c < N; ++c) {
      largest_of[c][threadIdx.x] = largest[c];
      position_of[c][threadIdx.x] = position[c];
    }
    for (int half = groups / 2; half > 0; half /= 2) {
      __syncthreads();
      if (group >= half) continue;
      const int other = threadIdx.x + half * lanes;
#pragma unroll
      for (int c = 0; c < N; ++c) {
        const wide<T> value = largest_of[c][other];
        const int its_position = position_of[c][other];
        if (its_position < 0) continue;
        const bool as_large = !is_larger(value, largest[c]) && !is_larger(largest[c], value);
        if (position[c] < 0 || is_larger(value, largest[c]) || (as_large && its_position < position[c])) {
          largest_of[c][threadIdx.x] = largest[c] = value;
          position_of[c][threadIdx.x] = position[c] = its_position;
        }
      }
    }
    if (group == 0 && inside) {
      Pack<T, N> result;
      Pack<int, N> chosen;
#pragma unroll
      for (int c = 0; c < N; ++c) {
        store(&result.at[c], largest[c]);
        chosen.at[c] = position[c];
      }
      reinterpret_cast<Pack<T, N>*>(y)[sample * packs + pack] = result;
      reinterpret_cast<Pack<int, N>*>(best)[sample * packs + pack] = chosen;
    }
  }
}

// dx = dy at the position of the largest value of its channel, 0 elsewhere.
template <typename T, int N>
__global__ void __launch_bounds__(256)
global_max_pool_gradient(const T* dy, const int* best, T* dx, long long batch, int positions, int packs) {
  GRID_STRIDE(item, batch * positions * packs) {
    long long sample = item;
    const int pack = split_off(sample, packs);
    const int position = split_off(sample, positions);
    const Pack<int, N> chosen = reinterpret_cast<const Pack<int, N>*>(best)[sample * packs + pack];
    Pack<T, N> gradients = reinterpret_cast<const Pack<T, N>*>(dy)[sample * packs + pack];
#pragma unroll
    for (int c = 0; c < N; ++c) {
      if (chosen.at[c] != position) store(&gradients.at[c], wide<T>(0));
    }
    reinterpret_cast<Pack<T, N>*>(dx)[item] = gradients;
  }
}

// y = (the sum of the values that count) / counts[sample], which is how many positions count, and at least 1.
template <typename T, int N>
__global__ void __launch_bounds__(GLOBAL_THREADS)
global_average_pool(const T* x, const bool* mask, T* y, int* counts, long long batch, int positions, int packs,
                    int lane_bits, double scale) {
  __shared__ wide<T> sums[N][GLOBAL_THREADS];
  __shared__ int counted[GLOBAL_THREADS];
  const wide<T> factor = (wide<T>)scale;
  const int lanes = 1 << lane_bits;
  const int groups = GLOBAL_THREADS >> lane_bits;
  const int group = threadIdx.x >> lane_bits;
  const long long chunks = (packs + lanes - 1) >> lane_bits;
  for (long long item = blockIdx.x; item < batch * chunks; item += gridDim.x) {
    const long long sample = item / chunks;
    const long long pack = (item % chunks) * lanes + (threadIdx.x & (lanes - 1));
    const bool inside = pack < packs;
    wide<T> sum[N] = {};
    int count = 0;
    for (int i = group; inside && i < positions; i += groups) {
      const long long row = sample * positions + i;
      if (mask && !mask[row]) continue;
      ++count;
      const Pack<T, N> values = reinterpret_cast<const Pack<T, N>*>(x)[row * packs + pack];
#pragma unroll
      for (int c = 0; c < N; ++c) sum[c] += load(values.at[c]) * factor;
    }
    __syncthreads();  // the results of the item before have been used
#pragma unroll
    for (int c = 0; c < N; ++c) sums[c][threadIdx.x] = sum[c];
    counted[threadIdx.x] = count;
    for (int half = groups / 2; half > 0; half /= 2) {
      __syncthreads();
      if (group >= half) continue;
      const int other = threadIdx.x + half * lanes;
#pragma unroll
      for (int c = 0; c < N; ++c) sums[c][threadIdx.x] = sum[c] += sums[c][other];
      counted[threadIdx.x] = count += counted[other];
    }
    if (group == 0 && inside) {
      count = max(count, 1);
      Pack<T, N> result;
#pragma unroll
      for (int c = 0; c < N; ++c) store(&result.at[c], sum[c] / ((wide<T>)count * factor));
      reinterpret_cast<Pack<T, N>*>(y)[sample * packs + pack] = result;
      if (pack == 0) counts[sample] = count;
    }
  }
}

// dx = dy / counts[sample] at the positions that count, 0 elsewhere.
template <typename T, int N>
__global__ void __launch_bounds__(256)
global_average_pool_gradient(const T* dy, const bool* mask, const int* counts, T* dx, long long batch, int positions,
                             int packs) {
  GRID_STRIDE(item, batch * positions * packs) {
    long long sample = item;
    const int pack = split_off(sample, packs);
    const long long row = sample;
    split_off(sample, positions);
    const bool counting = !mask || mask[row];
    const wide<T> count = (wide<T>)counts[sample];
    Pack<T, N> gradients = reinterpret_cast<const Pack<T, N>*>(dy)[sample * packs + pack];
#pragma unroll
    for (int c = 0; c < N; ++c) {
      store(&gradients.at[c], counting ? load(gradients.at[c]) / count : wide<T>(0));
    }
    reinterpret_cast<Pack<T, N>*>(dx)[item] = gradients;
  }
}
