// Random bits, masks and dropout.
#include "common.cuh"
#include "philox.cuh"

// words[i] = word number 4 first + i of a stream; for tests.
__global__ void random_words(u64* words, long long count, u64 seed, u64 stream, NUMBER(step), u64 first) {
  const u64 step = (u64)GET(step);
  GRID_STRIDE(block, (count + 3) / 4) {
    RandomWords random = philox(seed, stream, step, first + block);
    for (int k = 0; k < 4; ++k) {
      if (4 * block + k < count) words[4 * block + k] = random.at[k];
    }
  }
}

// mask[i] = (16-bit piece number i >= threshold): one thread makes the 16 elements of one block of random words.
__global__ void __launch_bounds__(256)
random_mask(bool* mask, long long count, u64 seed, u64 stream, NUMBER(step), u32 threshold) {
  const u64 step = (u64)GET(step);
  const bool aligned = is_aligned(mask);
  GRID_STRIDE(block, (count + 15) / 16) {
    RandomWords random = philox(seed, stream, step, block);
    Pack<bool, 16> kept;
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      kept.at[k] = ((u32)(random.at[k / 4] >> (k % 4 * 16)) & 0xFFFFu) >= threshold;
    }
    bool* place = mask + 16 * block;
    if (aligned && 16 * block + 16 <= count) {
      *reinterpret_cast<Pack<bool, 16>*>(place) = kept;
    } else {
#pragma unroll
      for (int k = 0; k < 16; ++k) {
        if (16 * block + k < count) place[k] = kept.at[k];
      }
    }
  }
}

// y[i] = scale x[i] where 16-bit piece number i >= threshold, else 0. The mask is not kept: the same call on dy is the
// derivative. A tile of elements has one block of random words for each thread; they change hands in shared memory, so
// that neighbouring threads move neighbouring elements.
template <typename T>
__global__ void __launch_bounds__(128)
dropout(const T* x, T* y, long long count, u64 seed, u64 stream, NUMBER(step), u32 threshold, double scale) {
  constexpr int THREADS = 128;
  constexpr int TILE = 16 * THREADS;
  constexpr int N = pack_size<T>();
  constexpr int PACKS = 16 / N;
  __shared__ RandomWords random[THREADS];
  const u64 step = (u64)GET(step);
  const wide<T> factor = (wide<T>)scale;
  const bool aligned = is_aligned(x) && is_aligned(y);
  for (long long tile = blockIdx.x; tile * TILE < count; tile += gridDim.x) {
    const T* from = x + tile * TILE;
    T* to = y + tile * TILE;
    const long long left = count - tile * TILE;
    const bool whole = aligned && left >= TILE;
    Pack<T, N> packs[PACKS];
    if (whole) {  // asked for early: they arrive while the random words are computed
#pragma unroll
      for (int k = 0; k < PACKS; ++k) {
        packs[k] = reinterpret_cast<const Pack<T, N>*>(from)[threadIdx.x + k * THREADS];
      }
    }
    const RandomWords own = philox(seed, stream, step, tile * THREADS + threadIdx.x);
    __syncthreads();  // the words of the tile before have been used
    random[threadIdx.x] = own;
    __syncthreads();
    if (whole) {
#pragma unroll
      for (int k = 0; k < PACKS; ++k) {
        const u32 number = threadIdx.x + k * THREADS;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const bool kept = piece_of(random, number * N + j) >= threshold;
          store(&packs[k].at[j], kept ? load(packs[k].at[j]) * factor : wide<T>(0));
        }
        reinterpret_cast<Pack<T, N>*>(to)[number] = packs[k];
      }
    } else {
      for (u32 element = threadIdx.x; element < TILE && element < left; element += THREADS) {
        const bool kept = piece_of(random, element) >= threshold;
        store(&to[element], kept ? load(from[element]) * factor : wide<T>(0));
      }
    }
  }
}
