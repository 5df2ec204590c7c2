// Euclidean norms, and gradients cut down to a limit.
//
// A norm is made in two passes: `norm_parts` leaves a partial sum of squares for each of its blocks, and whoever needs
// the norm adds these up in a fixed order. How many blocks there are follows from the count alone, so that the same
// array gives the same bits in every run and on every GPU.
#include "common.cuh"

// Threads of a block, and packs that a thread asks for before it computes.
constexpr int NORM_THREADS = 512;
constexpr int NORM_PACKS = 4;
constexpr int CLIP_THREADS = 256;
template <typename T> __device__ constexpr int clip_packs() { return sizeof(T) == 2 ? 2 : 4; }

// A sum of squares, held as three sums so that no square overflows or underflows: those of large, medium and small
// numbers, where large and small ones are scaled by powers of two (J. L. Blue, "A portable Fortran program to find the
// Euclidean norm of a vector", ACM Transactions on Mathematical Software 4, 1978).
struct Squares {
  double large, medium, small;

  static constexpr double LARGE_FROM = 0x1p486;
  static constexpr double LARGE_SCALE = 0x1p-538;
  static constexpr double SMALL_BELOW = 0x1p-511;
  static constexpr double SMALL_SCALE = 0x1p537;

  // The square of a float32 is well inside the range of doubles.
  __device__ void add(float x) { medium += (double)x * (double)x; }

  __device__ void add(double x) {
    const double size = fabs(x);
    if (size > LARGE_FROM) {
      large += (x * LARGE_SCALE) * (x * LARGE_SCALE);
    } else if (size < SMALL_BELOW) {
      small += (x * SMALL_SCALE) * (x * SMALL_SCALE);
    } else {
      medium += x * x;
    }
  }

  __device__ void add(const Squares& other) {
    large += other.large;
    medium += other.medium;
    small += other.small;
  }
};

// A norm as scale * length: the scale is a power of two, larger than 1 only where the norm itself might overflow.
struct Norm {
  double scale, length;
};

__device__ inline Norm norm_of(const Squares& squares) {
  if (squares.large != 0.0) {
    const double medium = (squares.medium * Squares::LARGE_SCALE) * Squares::LARGE_SCALE;
    return {1.0 / Squares::LARGE_SCALE, sqrt(squares.large + medium)};
  }
  if (squares.medium != 0.0) {
    const double small = (squares.small / Squares::SMALL_SCALE) / Squares::SMALL_SCALE;
    return {1.0, sqrt(squares.medium + small)};
  }
  return {1.0, sqrt(squares.small) / Squares::SMALL_SCALE};
}

// The sum over the threads of a block, for the thread 0 (the others get something else). `places` has one for each.
template <int THREADS> __device__ inline Squares block_sum(const Squares& mine, Squares* places) {
  places[threadIdx.x] = mine;
  __syncthreads();
#pragma unroll 1
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      places[threadIdx.x].add(places[threadIdx.x + half]);
    }
    __syncthreads();
  }
  return places[0];
}

// Several elements from `index` on: by one access, or by several where the address does not allow it.
template <typename T> __device__ inline Pack<T, pack_size<T>()> load_pack(const T* x, long long index, bool aligned) {
  Pack<T, pack_size<T>()> pack;
  if (aligned) {
    pack = *reinterpret_cast<const Pack<T, pack_size<T>()>*>(x + index);
  } else {
#pragma unroll
    for (int lane = 0; lane < pack_size<T>(); ++lane) {
      pack.at[lane] = x[index + lane];
    }
  }
  return pack;
}

// parts[block] = the sum of squares of the elements that the block comes to. The same thread adds the same elements
// in the same order, whether x is aligned or not.
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS, 2) norm_parts(
    const T* __restrict__ x, long long count, Squares* __restrict__ parts) {
  constexpr int SIZE = pack_size<T>();
  __shared__ Squares places[NORM_THREADS];
  const bool aligned = is_aligned(x);
  const long long packs = count / SIZE;
  const long long grid = (long long)gridDim.x * NORM_THREADS;
  Squares sum = {0.0, 0.0, 0.0};

  long long first = (long long)blockIdx.x * NORM_THREADS + threadIdx.x;
#pragma unroll 1
  for (; first < packs; first += NORM_PACKS * grid) {
    Pack<T, SIZE> several[NORM_PACKS];
#pragma unroll
    for (int pack = 0; pack < NORM_PACKS; ++pack) {
      const long long index = first + pack * grid;
      if (index < packs) {
        several[pack] = load_pack(x, index * SIZE, aligned);
      }
    }
#pragma unroll
    for (int pack = 0; pack < NORM_PACKS; ++pack) {
      if (first + pack * grid < packs) {
#pragma unroll
        for (int lane = 0; lane < SIZE; ++lane) {
          sum.add(load(several[pack].at[lane]));
        }
      }
    }
  }
#pragma unroll 1
  GRID_STRIDE(rest, count - packs * SIZE) {
    sum.add(load(x[packs * SIZE + rest]));
  }

  sum = block_sum<NORM_THREADS>(sum, places);
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = sum;
  }
}

// The norm from its parts, for the thread 0 of a block.
template <int THREADS> __device__ inline Norm total(const Squares* parts, int part_count, Squares* places) {
  Squares sum = {0.0, 0.0, 0.0};
  for (int part = threadIdx.x; part < part_count; part += THREADS) {
    sum.add(parts[part]);
  }
  return norm_of(block_sum<THREADS>(sum, places));
}

// value = the norm. One block.
template <typename T>
__global__ void __launch_bounds__(CLIP_THREADS) norm(const Squares* __restrict__ parts, int part_count, T* value) {
  __shared__ Squares places[CLIP_THREADS];
  const Norm whole = total<CLIP_THREADS>(parts, part_count, places);
  if (threadIdx.x == 0) {
    store(value, wide<T>(whole.scale * whole.length));
  }
}

// y = map(x), element by element.
template <typename T, typename Map>
__device__ inline void transform(const Map& map, const T* __restrict__ x, T* __restrict__ y, long long count) {
  constexpr int SIZE = pack_size<T>();
  constexpr int PACKS = clip_packs<T>();
  const long long packs = is_aligned(x) && is_aligned(y) ? count / SIZE : 0;
  const long long grid = (long long)gridDim.x * CLIP_THREADS;
  long long first = (long long)blockIdx.x * CLIP_THREADS + threadIdx.x;
#pragma unroll 1
  for (; first < packs; first += PACKS * grid) {
    Pack<T, SIZE> several[PACKS];
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
      const long long index = first + pack * grid;
      if (index < packs) {
        several[pack] = reinterpret_cast<const Pack<T, SIZE>*>(x)[index];
      }
    }
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
      const long long index = first + pack * grid;
      if (index < packs) {
#pragma unroll
        for (int lane = 0; lane < SIZE; ++lane) {
          store(&several[pack].at[lane], map(load(several[pack].at[lane])));
        }
        reinterpret_cast<Pack<T, SIZE>*>(y)[index] = several[pack];
      }
    }
  }
  // What the packs leave over: less than one of them, or everything where x or y is not aligned.
#pragma unroll 1
  GRID_STRIDE(rest, count - packs * SIZE) {
    store(y + packs * SIZE + rest, map(load(x[packs * SIZE + rest])));
  }
}

// What clipping does to an element: nothing, or a product with a factor. W may not hold a very small factor, or a
// number that is divided by a norm that W does not hold: the product is made in double then.
template <typename W> struct ShortenedBy {
  bool too_long, in_double;
  W factor;
  double inverse_scale, double_factor;

  __device__ W operator()(W x) const {
    if (!too_long) {
      return x;
    }
    return in_double ? W((double(x) * inverse_scale) * double_factor) : x * factor;
  }
};

// y = x min(1, limit / (norm + margin)) with the norm of which `parts` has the parts. A NaN in it counts as too long.
template <typename T>
__global__ void __launch_bounds__(CLIP_THREADS, 4) clip_by_norm(
    const T* __restrict__ x, T* __restrict__ y, long long count, const Squares* __restrict__ parts, int part_count,
    double margin, NUMBER(limit)) {
  __shared__ Squares places[CLIP_THREADS];
  __shared__ ShortenedBy<wide<T>> shared_map;
  const Norm whole = total<CLIP_THREADS>(parts, part_count, places);
  if (threadIdx.x == 0) {
    // In units of the scale, as the norm itself need not be a finite number.
    const double limit = GET(limit);
    const double longer = whole.length + margin / whole.scale;
    const double factor = limit / longer;
    const bool too_long = !(longer <= limit / whole.scale);
    const bool in_double = whole.scale != 1.0 || factor < 1e-30;
    shared_map = ShortenedBy<wide<T>>{too_long, in_double, wide<T>(factor), 1.0 / whole.scale, factor};
  }
  __syncthreads();
  const ShortenedBy<wide<T>> map = shared_map;
  transform(map, x, y, count);
}

// x, moved into [-limit, limit]. A NaN stays one, and a limit that is one spreads.
template <typename W> struct Limited {
  W limit;

  __device__ W operator()(W x) const {
    const W upper = (x <= limit || x != x) ? x : limit;
    return (upper >= -limit || upper != upper) ? upper : -limit;
  }
};

// y = maximum(minimum(x, limit), -limit)
template <typename T>
__global__ void __launch_bounds__(CLIP_THREADS, 4) clip_by_value(
    const T* __restrict__ x, T* __restrict__ y, long long count, NUMBER(limit)) {
  const Limited<wide<T>> map = {wide<T>(GET(limit))};
  transform(map, x, y, count);
}
