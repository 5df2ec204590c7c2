// Attention where no library does it as a whole: what lies between its products, which cublasLt computes.
//
// A tile of scores s = q k^T is (heads of the tile, queries of the tile, keys that they may look at) in C order, one
// row for each query of each head; a warp or a whole block does a row. A row is read once and written once, in place if
// the weights have the scores' dtype: S = wide<T> is that of the scores, T that of the weights. Only a row that is too
// long to be held is read again, before it is written.
#include "common.cuh"
#include "philox.cuh"
#include "reductions.cuh"
#include "rows.cuh"

typedef unsigned short u16;

constexpr int WARP = 32;
constexpr int WARPS = 8;

// At most so many threads in a block.
template <bool IS_BLOCKS> constexpr int MOST_THREADS = IS_BLOCKS ? 512 : WARP * WARPS;

// Which keys of a pack a query may look at.
template <int N> struct Looks { bool at[N]; };

// One row of a tile, and which keys its query may look at.
struct Query {
  long long head;     // counted over all samples
  int number;         // among all queries
  int reached;        // the first so many keys of the tile do not lie behind the query
  const bool* mask;   // what is known of its first key; or null
  long long mask_key; // from there to the next key

  template <int N> __device__ Looks<N> looks(int first_key) const {
    Looks<N> may;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      may.at[k] = (unsigned)(first_key + k) < (unsigned)reached;
    }
    if (mask) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (may.at[k]) may.at[k] = mask[(first_key + k) * mask_key];
      }
    }
    return may;
  }
};

// Where the rows of a tile belong: the tile begins with query `first_query` of head `first_head`, and has `queries`.
struct Tile {
  long long first_head;
  int heads, first_query, queries, keys, causal;
  const bool* mask;
  long long mask_sample, mask_head, mask_query, mask_key;

  __device__ Query query_of(long long row) const {
    Query query;
    query.head = first_head + row / queries;
    query.number = first_query + (int)(row % queries);
    query.reached = causal && query.number < keys ? query.number + 1 : keys;
    const long long of_sample = query.head / heads * mask_sample + query.head % heads * mask_head;
    query.mask = mask ? mask + of_sample + query.number * mask_query : nullptr;
    query.mask_key = mask_key;
    return query;
  }
};

// Which weights of a row are dropped, as the op `attention` has it: block number b of `block` queries takes the bits of
// the stream + b 2^40, for an array (heads of all samples, queries of the block, keys that they may look at).
struct Dropout {
  u64 seed, stream, step;
  u32 threshold;
  int block, all_queries, all_keys, causal;
  u16* kept;          // shared by those that do the row: bits of 16 weights each, 1 where they are kept, from [1] on
  long long element;  // number of the row's first weight in that array
  u64 row_stream;
  int first_bit;      // where in `kept` the bit of the row's first weight would be

  __device__ void begin_row(const Query& query) {
    const long long number = query.number / block;
    const long long start = number * block;
    const long long stop = start + block < all_queries ? start + block : all_queries;
    const long long keys = causal && stop < all_keys ? stop : all_keys;
    element = (query.head * (stop - start) + (query.number - start)) * keys;
    row_stream = stream + ((u64)number << 40);
  }

  // The bits of `count` weights from `key` on. All threads that do the row come by here.
  template <bool IS_BLOCKS> __device__ void draw(int key, int count, int lane, int lanes) {
    const long long first = element + key;
    first_bit = 16 + (int)(first % 16) - key;
    const int groups = (int)((first % 16 + count + 15) / 16);
    meet<IS_BLOCKS>();  // the bits before have been used
    for (int group = lane; group < groups; group += lanes) {
      const RandomWords words = philox(seed, row_stream, step, first / 16 + group);
      u32 bits = 0;
#pragma unroll
      for (int k = 0; k < 16; ++k) {
        bits |= (u32)(((u32)(words.at[k / 4] >> (k % 4 * 16)) & 0xFFFFu) >= threshold) << k;
      }
      kept[group + 1] = (u16)bits;
    }
    meet<IS_BLOCKS>();
  }

  template <bool IS_BLOCKS> static __device__ void meet() {
    if constexpr (IS_BLOCKS) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // The bits of up to 16 weights from `key` on, of which some lie in the row and are drawn.
  __device__ u32 bits_from(int key) const {
    const int bit = first_bit + key;
    return (kept[bit / 16] | (u32)kept[bit / 16 + 1] << 16) >> (bit % 16);
  }
};

// How many groups of 16 bits the threads of a row need at a time: it may begin and end within one, and one pack may
// begin in front of the row and another one end behind it.
template <int HELD, int N, bool IS_BLOCKS>
constexpr int GROUPS = (HELD > 0 ? HELD : 1) * (IS_BLOCKS ? MOST_THREADS<true> : WARP) * N / 16 + 4;

// The threads that do a row together, and the rows that they do.
template <bool IS_BLOCKS> struct Workers {
  int lane, lanes, of_block;
  long long first_row, rows_at_once;

  __device__ Workers() {
    lanes = IS_BLOCKS ? blockDim.x : WARP;
    lane = threadIdx.x % lanes;
    of_block = threadIdx.x / lanes;
    const int each = blockDim.x / lanes;
    first_row = (long long)blockIdx.x * each + of_block;
    rows_at_once = (long long)gridDim.x * each;
  }
};

// What is drawn before a row is gone through, and if it is not held, before each piece of it.
template <int HELD, int N, bool IS_BLOCKS, bool DROPS> struct Draws {
  Dropout dropout;

  template <typename SomeRow> __device__ void for_row(const SomeRow& row, const Query& query) {
    if constexpr (DROPS) {
      dropout.begin_row(query);
      if (HELD > 0) {
        dropout.template draw<IS_BLOCKS>(0, row.length, row.lane, row.lanes);
      }
    }
  }

  // Before packs from number `top` on are done, one by each thread of a row that is not held.
  template <typename SomeRow> __device__ void for_packs(const SomeRow& row, int top) {
    if constexpr (DROPS && HELD == 0) {
      const int from = row.place_of(top) > 0 ? row.place_of(top) : 0;
      const int stop = row.place_of(top + row.lanes) < row.length ? row.place_of(top + row.lanes) : row.length;
      dropout.template draw<IS_BLOCKS>(from, stop > from ? stop - from : 0, row.lane, row.lanes);
    }
  }

  // The bits of a pack that begins with a key, the lowest one first.
  __device__ u32 bits_from(int key) const { return DROPS ? dropout.bits_from(key) : 0; }

  // x where the bit of element k is 1, else 0.
  template <typename W> static __device__ W kept(u32 bits, int k, W x) { return !DROPS || (bits >> k & 1) ? x : W(0); }
};

// action(number of the pack, packs): for all packs of this thread in `length` elements of two rows that lie alike with
// respect to packs, or of one that is given twice. A row's own length may be less: behind it are fillers.
template <typename A, typename B, int HELD, int N, bool IS_BLOCKS, typename SomeDraws, typename Action>
__device__ inline void each_pack(Row<A, HELD, N, IS_BLOCKS, 1>& first, Row<B, HELD, N, IS_BLOCKS, 1>& second,
                                 int length, SomeDraws& draws, Action action) {
  if constexpr (HELD > 0) {
#pragma unroll
    for (int slot = 0; slot < HELD; ++slot) {
      const int pack = first.pack_of(slot);
      if (first.place_of(pack) < length) {
        action(pack, first.held[0][slot], second.held[0][slot]);
      }
    }
  } else {
    for (int top = 0; first.place_of(top) < length; top += first.lanes) {
      draws.for_packs(first, top);
      const int pack = top + first.lane;
      if (first.place_of(pack) < length) {
        Pack<A, N> of_first = first.read(0, pack);
        Pack<B, N> of_second = second.read(0, pack);
        action(pack, of_first, of_second);
      }
    }
  }
}

// The elements of a pack that belong to a row of `length`, at their place in the row that begins at `to`.
template <typename T, int N, typename SomeRow>
__device__ inline void write_pack(T* to, const SomeRow& row, int pack, int length, const Pack<T, N>& made) {
  const int first = row.place_of(pack);
  if (first >= 0 && first + N <= length) {
    as_packs<N>(to - row.before)[pack] = made;
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if ((unsigned)(first + k) < (unsigned)length) {
        to[first + k] = made.at[k];
      }
    }
  }
}

// exp(factor score - largest) for a pack of scores, 0 where the query may not look
template <typename S, int N>
__device__ inline Pack<S, N> powers_of(const Pack<S, N>& scores, const Looks<N>& may, S factor, S largest) {
  Pack<S, N> powers;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const S power = exp(scores.at[k] * factor - largest);
    powers.at[k] = may.at[k] ? power : S(0);
  }
  return powers;
}

struct Nothing {
  template <typename SomeRow> __device__ void for_packs(const SomeRow&, int) {}
};

// The weights p = exp(scale s - largest) / sum of exp(scale s - largest), where the query may look, and 0 elsewhere;
// and if DROPS, those that dropout keeps, times `dropout_scale`. Which of them are wanted has an address, and so have
// `largest_scores` and `inverses` (1 / sum), by which the weights can be had again from the scores.
// A query that a mask lets look at no key has weights of 0.
template <typename T, int HELD, int N, bool IS_BLOCKS, bool DROPS>
__global__ void __launch_bounds__(MOST_THREADS<IS_BLOCKS>, IS_BLOCKS ? 1 : 2)
attention_weights(const wide<T>* scores, T* weights, T* kept_weights, wide<T>* largest_scores, wide<T>* inverses,
                  const bool* mask, long long mask_sample, long long mask_head, long long mask_query,
                  long long mask_key, long long rows, long long first_head, int heads, int first_query, int queries,
                  int keys, int all_queries, int all_keys, int causal, double scale, u64 seed, u64 stream,
                  NUMBER(step), u32 threshold, int block, double dropout_scale) {
  typedef wide<T> S;
  __shared__ u16 bits[DROPS ? (IS_BLOCKS ? 1 : WARPS) * GROUPS<HELD, N, IS_BLOCKS> : 1];
  const Workers<IS_BLOCKS> workers;
  const Tile tile = {first_head, heads,       first_query, queries,    keys,    causal,
                     mask,       mask_sample, mask_head,   mask_query, mask_key};
  Draws<HELD, N, IS_BLOCKS, DROPS> draws;
  if constexpr (DROPS) {
    draws.dropout = {seed, stream, (u64)GET(step), threshold, block, all_queries, all_keys, causal};
    draws.dropout.kept = bits + workers.of_block * GROUPS<HELD, N, IS_BLOCKS>;
  }
  const S factor = (S)scale;
  const S by_dropout = (S)dropout_scale;
  Nothing nothing;
  for (long long row = workers.first_row; row < rows; row += workers.rows_at_once) {
    const Query query = tile.query_of(row);
    const S* starts[1] = {scores + row * keys};
    Row<S, HELD, N, IS_BLOCKS, 1> given(starts, query.reached, workers.lane, workers.lanes, S(0));
    draws.for_row(given, query);
    S largest = -largest_finite<S>();
    S total = 0;
    if constexpr (HELD > 0) {
      each_pack(given, given, query.reached, nothing, [&](int pack, Pack<S, N>& held, Pack<S, N>&) {
        const Looks<N> may = query.looks<N>(given.place_of(pack));
#pragma unroll
        for (int k = 0; k < N; ++k) {
          held.at[k] = may.at[k] ? held.at[k] * factor : -infinity<S>();
          largest = Largest()(largest, held.at[k]);
        }
      });
      largest = given.over_row(largest, Largest());
      each_pack(given, given, query.reached, nothing, [&](int, Pack<S, N>& held, Pack<S, N>&) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          held.at[k] = exp(held.at[k] - largest);
          total += held.at[k];
        }
      });
    } else {
      each_pack(given, given, query.reached, nothing, [&](int pack, Pack<S, N>& read, Pack<S, N>&) {
        const Looks<N> may = query.looks<N>(given.place_of(pack));
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const S score = may.at[k] ? read.at[k] * factor : -infinity<S>();
          if (score > largest) {
            total = total * exp(largest - score) + S(1);
            largest = score;
          } else {
            total += exp(score - largest);
          }
        }
      });
      const S mine = largest;
      largest = given.over_row(largest, Largest());
      total *= exp(mine - largest);
    }
    total = given.over_row(total, Sum());
    const S inverse = S(1) / (mask && total == 0 ? S(1) : total);
    if (inverses && workers.lane == 0) {
      const long long place = query.head * all_queries + query.number;
      largest_scores[place] = largest;
      inverses[place] = inverse;
    }
    each_pack(given, given, keys, draws, [&](int pack, Pack<S, N>& powers, Pack<S, N>&) {
      const int first_key = given.place_of(pack);
      if constexpr (HELD == 0) {
        powers = powers_of(powers, query.looks<N>(first_key), factor, largest);
      }
      const u32 bits = draws.bits_from(first_key);
      Pack<T, N> all, kept;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const S weight = powers.at[k] * inverse;
        store(&all.at[k], weight);
        store(&kept.at[k], draws.kept(bits, k, weight * by_dropout));
      }
      if (!DROPS || weights) {
        write_pack<T, N>(weights + row * keys, given, pack, keys, all);
      }
      if constexpr (DROPS) {
        write_pack<T, N>(kept_weights + row * keys, given, pack, keys, kept);
      }
    });
  }
}

// The derivative for q k^T: ds = scale p (d - sum over keys of p d), where d is `weight_gradients`, and if DROPS, that
// where the weights are kept, times `dropout_scale`, and 0 elsewhere. The weights p are given; or if FROM_SCORES, the
// scores are, and p = exp(scale s - largest) inverse. Where they are not those that the product was made with, those
// are written to `product_weights`.
template <typename T, typename Given, int HELD, int N, bool IS_BLOCKS, bool DROPS, bool FROM_SCORES>
__global__ void __launch_bounds__(MOST_THREADS<IS_BLOCKS>, IS_BLOCKS ? 1 : 2)
attention_gradient(const Given* given, const wide<T>* weight_gradients, T* score_gradients, T* product_weights,
                   const wide<T>* largest_scores, const wide<T>* inverses, const bool* mask, long long mask_sample,
                   long long mask_head, long long mask_query, long long mask_key, long long rows,
                   long long first_head, int heads, int first_query, int queries, int keys, int all_queries,
                   int all_keys, int causal, double scale, u64 seed, u64 stream, NUMBER(step), u32 threshold,
                   int block, double dropout_scale) {
  typedef wide<T> S;
  constexpr bool KEEPS_WEIGHTS = HELD > 0 && FROM_SCORES;
  __shared__ u16 bits[DROPS ? (IS_BLOCKS ? 1 : WARPS) * GROUPS<HELD, N, IS_BLOCKS> : 1];
  const Workers<IS_BLOCKS> workers;
  const Tile tile = {first_head, heads,       first_query, queries,    keys,    causal,
                     mask,       mask_sample, mask_head,   mask_query, mask_key};
  Draws<HELD, N, IS_BLOCKS, DROPS> draws;
  if constexpr (DROPS) {
    draws.dropout = {seed, stream, (u64)GET(step), threshold, block, all_queries, all_keys, causal};
    draws.dropout.kept = bits + workers.of_block * GROUPS<HELD, N, IS_BLOCKS>;
  }
  const S factor = (S)scale;
  const S by_dropout = (S)dropout_scale;
  for (long long row = workers.first_row; row < rows; row += workers.rows_at_once) {
    const Query query = tile.query_of(row);
    const Given* starts[1] = {given + row * keys};
    const S* gradient_starts[1] = {weight_gradients + row * keys};
    Row<Given, HELD, N, IS_BLOCKS, 1> of_weights(starts, query.reached, workers.lane, workers.lanes, wide<Given>(0));
    Row<S, HELD, N, IS_BLOCKS, 1> of_gradients(gradient_starts, query.reached, workers.lane, workers.lanes, S(0));
    draws.for_row(of_weights, query);
    S largest = 0;
    S inverse = 0;
    if constexpr (FROM_SCORES) {
      const long long place = query.head * all_queries + query.number;
      largest = largest_scores[place];
      inverse = inverses[place];
    }
    const auto weights_of = [&](int first_key, const Pack<Given, N>& x) {
      Pack<S, N> weights;
      if constexpr (FROM_SCORES) {
        weights = powers_of(x, query.looks<N>(first_key), factor, largest);
#pragma unroll
        for (int k = 0; k < N; ++k) weights.at[k] *= inverse;
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) weights.at[k] = load(x.at[k]);
      }
      return weights;
    };
    S mean = 0;
    each_pack(of_weights, of_gradients, query.reached, draws, [&](int pack, Pack<Given, N>& x, Pack<S, N>& gradients) {
      const int first_key = of_weights.place_of(pack);
      const Pack<S, N> weights = weights_of(first_key, x);
      if constexpr (KEEPS_WEIGHTS) {
        x = weights;
      }
      const u32 bits = draws.bits_from(first_key);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        mean += weights.at[k] * draws.kept(bits, k, gradients.at[k] * by_dropout);
      }
    });
    mean = of_weights.over_row(mean, Sum());
    each_pack(of_weights, of_gradients, keys, draws, [&](int pack, Pack<Given, N>& x, Pack<S, N>& gradients) {
      const int first_key = of_weights.place_of(pack);
      Pack<S, N> weights;
      if constexpr (KEEPS_WEIGHTS) {
        weights = x;
      } else {
        weights = weights_of(first_key, x);
      }
      const u32 bits = draws.bits_from(first_key);
      Pack<T, N> made, used;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const S gradient = draws.kept(bits, k, gradients.at[k] * by_dropout);
        store(&made.at[k], factor * (weights.at[k] * (gradient - mean)));
        store(&used.at[k], draws.kept(bits, k, weights.at[k] * by_dropout));
      }
      write_pack<T, N>(score_gradients + row * keys, of_weights, pack, keys, made);
      if constexpr (DROPS || FROM_SCORES) {
        write_pack<T, N>(product_weights + row * keys, of_weights, pack, keys, used);
      }
    });
  }
}
