// Rows of a table by number, and the sum of rows by number: always added in the order of their positions.
#include "common.cuh"

// BYTES bytes, whatever they mean.
template <int BYTES> struct Word { typedef Pack<u32, BYTES / 4> type; };
template <> struct Word<2> { typedef Pack<unsigned short, 1> type; };

// y[i] = table[indices[i]], row by row: `words` words of BYTES bytes. 2^lane_bits neighbouring threads share a row. An
// index out of range gives ones in all bits, which is NaN in every floating-point format: it neither reads elsewhere
// nor goes unnoticed.
template <int BYTES, typename Index>
__global__ void __launch_bounds__(256)
take_rows(const void* table, const Index* indices, void* y, long long rows, long long length, long long words,
          int lane_bits) {
  typedef typename Word<BYTES>::type Moved;
  const Moved* from = static_cast<const Moved*>(table);
  Moved* to = static_cast<Moved*>(y);
  Moved missing;
  for (auto& bits : missing.at) bits = ~0;
  const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const int lanes = 1 << lane_bits;
  const int lane = threadIdx.x & (lanes - 1);
  const long long stride = ((long long)gridDim.x * blockDim.x) >> lane_bits;
  for (long long row = thread >> lane_bits; row < rows; row += stride) {
    const long long wanted = indices[row];
    const bool known = wanted >= 0 && wanted < length;
    for (long long word = lane; word < words; word += lanes) {
      to[row * words + word] = known ? from[wanted * words + word] : missing;
    }
  }
}

// The sum of rows by number sorts the positions by their row, stably, and adds up each run of equal rows.
//
// The sort goes through the row numbers by digits of 8 bits, lowest first (LSD radix sort). For one digit:
// 1. each block counts how often each digit occurs in its share of the positions;
// 2. the counts, ordered by digit and then by block, are turned into places: the sums of those before them;
// 3. each block puts its share there, in order. Its eight warps have a stripe each, and go through it in groups of 32.

constexpr int DIGITS = 256;
constexpr int WARPS = 8;  // of a block: 256 threads, one for each digit

// A row number and the position that it stands at.
struct Pairs {
  u32* rows;
  u32* positions;
};

// The part of the positions that a warp goes through.
struct Stripe {
  long long begin;
  long long end;
};

__device__ inline Stripe stripe_of(long long count, long long length) {
  const long long begin = ((long long)blockIdx.x * WARPS + threadIdx.x / 32) * length;
  return Stripe{begin, begin + length < count ? begin + length : count};
}

// rows[i] = indices[i], or `length` where that is out of range; positions[i] = i.
template <typename Index>
__device__ inline void begin_pairs(const Index* indices, Pairs pairs, long long i, long long length) {
  const long long wanted = indices[i];
  pairs.rows[i] = (u32)(wanted >= 0 && wanted < length ? wanted : length);
  pairs.positions[i] = (u32)i;
}

// counters[warp][digit] = how often the digit occurs in the warp's stripe. Ends with all threads seeing it.
__device__ inline void count_stripes(const u32* rows, Stripe stripe, int shift, u32 (*counters)[DIGITS]) {
  for (int warp = 0; warp < WARPS; ++warp) counters[warp][threadIdx.x] = 0;
  __syncthreads();
  u32* own = counters[threadIdx.x / 32];
  for (long long i = stripe.begin + threadIdx.x % 32; i < stripe.end; i += 32) {
    atomicAdd(&own[(rows[i] >> shift) % DIGITS], 1u);
  }
  __syncthreads();
}

// Turns the counts of one digit, that of this thread, into places: the first warp's first one is `place`.
__device__ inline void counts_to_places(u32 place, u32 (*counters)[DIGITS]) {
  for (int warp = 0; warp < WARPS; ++warp) {
    const u32 count = counters[warp][threadIdx.x];
    counters[warp][threadIdx.x] = place;
    place += count;
  }
  __syncthreads();
}

// Moves each pair of the warp's stripe to the next place of its digit. Of 32 at a time, those with the same digit find
// each other by eight votes, and the number of them before itself is what each adds to the place.
__device__ inline void place_stripe(Pairs from, Pairs to, Stripe stripe, int shift, u32 (*counters)[DIGITS]) {
  u32* places = counters[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  long long i = stripe.begin + lane;
  u32 next_row = i < stripe.end ? from.rows[i] : 0;
  u32 next_position = i < stripe.end ? from.positions[i] : 0;
  for (long long group = stripe.begin; group < stripe.end; group += 32) {
    const bool inside = i < stripe.end;
    const u32 row = next_row;
    const u32 position = next_position;
    i += 32;
    if (i < stripe.end) {  // asked for early: they arrive while these are placed
      next_row = from.rows[i];
      next_position = from.positions[i];
    }
    const u32 digit = (row >> shift) % DIGITS;
    u32 same = __ballot_sync(0xFFFFFFFFu, inside);
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
      const u32 set = __ballot_sync(0xFFFFFFFFu, digit >> bit & 1);
      same &= digit >> bit & 1 ? set : ~set;
    }
    const int before = __popc(same & ((1u << lane) - 1));
    const u32 place = places[digit] + before;
    __syncwarp();  // all have read the places
    if (inside && before == 0) places[digit] += __popc(same);
    __syncwarp();
    if (inside) {
      to.rows[place] = row;
      to.positions[place] = position;
    }
  }
}

// The sum of `value` over the threads before this one. `scratch` has one place for each of the 2^k threads of a block.
__device__ inline u32 sum_before(u32 value, u32* scratch) {
  u32 sum = value;
  scratch[threadIdx.x] = sum;
  __syncthreads();
  for (u32 distance = 1; distance < blockDim.x; distance *= 2) {
    const u32 other = threadIdx.x >= distance ? scratch[threadIdx.x - distance] : 0;
    __syncthreads();
    sum += other;
    scratch[threadIdx.x] = sum;
    __syncthreads();
  }
  return sum - value;
}

template <typename Index>
__global__ void __launch_bounds__(256)
begin_sort(const Index* indices, u32* rows, u32* positions, long long count, long long length) {
  GRID_STRIDE(i, count) begin_pairs(indices, Pairs{rows, positions}, i, length);
}

// Step 1: counts[digit][block].
__global__ void __launch_bounds__(256)
count_digits(const u32* rows, u32* counts, long long count, long long stripe_length, int shift) {
  __shared__ u32 counters[WARPS][DIGITS];
  count_stripes(rows, stripe_of(count, stripe_length), shift, counters);
  u32 total = 0;
  for (int warp = 0; warp < WARPS; ++warp) total += counters[warp][threadIdx.x];
  counts[(long long)threadIdx.x * gridDim.x + blockIdx.x] = total;
}

// Step 2: one block replaces each count by the sum of those before it. Each thread does a piece of them.
__global__ void __launch_bounds__(1024) counts_to_sums(u32* counts, int length) {
  __shared__ u32 scratch[1024];
  const int piece = (length + blockDim.x - 1) / blockDim.x;
  const int begin = min((int)threadIdx.x * piece, length);
  const int end = min(begin + piece, length);
  u32 total = 0;
  for (int i = begin; i < end; ++i) total += counts[i];
  u32 sum = sum_before(total, scratch);
  for (int i = begin; i < end; ++i) {
    const u32 count = counts[i];
    counts[i] = sum;
    sum += count;
  }
}

// Step 3, with the sums of step 2.
__global__ void __launch_bounds__(256)
place_by_digit(const u32* sums, u32* rows, u32* positions, u32* new_rows, u32* new_positions, long long count,
               long long stripe_length, int shift) {
  __shared__ u32 counters[WARPS][DIGITS];
  const Stripe stripe = stripe_of(count, stripe_length);
  count_stripes(rows, stripe, shift, counters);
  counts_to_places(sums[(long long)threadIdx.x * gridDim.x + blockIdx.x], counters);
  place_stripe(Pairs{rows, positions}, Pairs{new_rows, new_positions}, stripe, shift, counters);
}

// The whole sort by one block, for few positions: `passes` digits. The result is in the first pair of arrays if
// `passes` is even, else in the second one.
template <typename Index>
__global__ void __launch_bounds__(256)
sort_in_one_block(const Index* indices, u32* rows, u32* positions, u32* other_rows, u32* other_positions,
                  long long count, long long stripe_length, long long length, int passes) {
  __shared__ u32 counters[WARPS][DIGITS];
  __shared__ u32 scratch[DIGITS];
  Pairs from = {rows, positions};
  Pairs to = {other_rows, other_positions};
  const Stripe stripe = stripe_of(count, stripe_length);
  for (long long i = threadIdx.x; i < count; i += blockDim.x) begin_pairs(indices, from, i, length);
  __syncthreads();
  for (int pass = 0; pass < passes; ++pass) {
    count_stripes(from.rows, stripe, 8 * pass, counters);
    u32 total = 0;
    for (int warp = 0; warp < WARPS; ++warp) total += counters[warp][threadIdx.x];
    counts_to_places(sum_before(total, scratch), counters);
    place_stripe(from, to, stripe, 8 * pass, counters);
    __syncthreads();
    const Pairs done = from;
    from = to;
    to = done;
  }
}

// Adds rows of `values` number `place` to `place` + AHEAD - 1 of the sorted ones to the sum, as far as they belong to
// `row`. True if all do. The loads do not wait for each other, only the additions do.
template <typename T, int N, int AHEAD>
__device__ inline bool add_run(const typename Word<N * sizeof(T)>::type* values, const u32* rows, const u32* positions,
                               long long count, long long packs, u32 row, long long place, wide<T>* sum) {
  bool belongs[AHEAD];
  typename Word<N * sizeof(T)>::type terms[AHEAD];
#pragma unroll
  for (int k = 0; k < AHEAD; ++k) {
    belongs[k] = place + k < count && rows[place + k] == row;
    if (belongs[k]) terms[k] = values[positions[place + k] * packs];
  }
#pragma unroll
  for (int k = 0; k < AHEAD; ++k) {
    if (!belongs[k]) continue;
    Pack<T, N> term;
    memcpy(&term, &terms[k], sizeof(term));
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += load(term.at[j]);
  }
  return belongs[AHEAD - 1];
}

// total[row] = the sum of values[positions[i]] over the run of i with rows[i] = row, in that order: bit for bit what a
// loop over the positions gives (half precision is added in float32 and rounded once). The threads at the first place
// of a run do it, 2^lane_bits of them side by side, N columns each. The y axis of the grid goes over further columns,
// so that several multiprocessors share a long run.
template <typename T, int N>
__global__ void __launch_bounds__(256, 2)
add_runs(const T* values, const u32* rows, const u32* positions, T* total, long long count, long long length,
         long long packs, int lane_bits) {
  typedef Pack<T, N> Packed;
  const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  const int lanes = 1 << lane_bits;
  const int lane = threadIdx.x & (lanes - 1);
  const long long stride = ((long long)gridDim.x * blockDim.x) >> lane_bits;
  for (long long begin = thread >> lane_bits; begin < count; begin += stride) {
    const u32 row = rows[begin];
    if (row >= length || (begin > 0 && rows[begin - 1] == row)) continue;
    for (long long pack = (long long)blockIdx.y * lanes + lane; pack < packs; pack += (long long)gridDim.y * lanes) {
      const auto* column = reinterpret_cast<const typename Word<N * sizeof(T)>::type*>(values) + pack;
      wide<T> sum[N] = {};
      long long place = begin;
      if (add_run<T, N, 4>(column, rows, positions, count, packs, row, place, sum)) {
        place += 4;
        while (add_run<T, N, 8>(column, rows, positions, count, packs, row, place, sum)) place += 8;
      }
      Packed result;
#pragma unroll
      for (int j = 0; j < N; ++j) store(&result.at[j], sum[j]);
      reinterpret_cast<Packed*>(total)[row * packs + pack] = result;
    }
  }
}
