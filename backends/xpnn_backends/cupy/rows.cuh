// A row of a matrix, shared by the lanes of a part of a warp or by a whole block.
//
// Moved by packs of N elements from the address below it that a pack may begin at, so that rows of any length and
// address are moved 16 bytes at a time: the elements of a pack that belong to other rows are passed over. HELD packs of
// each thread stay in registers; if HELD is 0, the row is read from memory (or a cache) whenever it is gone through.
// ARRAYS rows of as many matrices are gone through together; they must lie alike with respect to packs.
template <typename T, int HELD, int N, bool IS_BLOCKS, int ARRAYS> struct Row {
  typedef wide<T> W;
  static constexpr bool IS_HELD = HELD > 0;
  const Pack<T, N>* packs[ARRAYS];
  int before;  // elements of the first pack in front of the row
  int length;
  int lane;
  int lanes;
  T filler;  // stands for what does not belong to the row
  Pack<T, N> held[ARRAYS][HELD > 0 ? HELD : 1];

  __device__ Row(const T* const (&starts)[ARRAYS], int length, int lane, int lanes, W filler_value)
      : length(length), lane(lane), lanes(lanes) {
    before = (int)(reinterpret_cast<size_t>(starts[0]) % (N * sizeof(T)) / sizeof(T));
    store(&filler, filler_value);
#pragma unroll
    for (int array = 0; array < ARRAYS; ++array) {
      packs[array] = reinterpret_cast<const Pack<T, N>*>(starts[array] - before);
    }
#pragma unroll
    for (int slot = 0; slot < HELD; ++slot) {
#pragma unroll
      for (int array = 0; array < ARRAYS; ++array) {
        held[array][slot] = read(array, pack_of(slot));
      }
    }
  }

  // The pack that this thread holds in a slot. Where there are many, there are 512 lanes: the compiler knows it, and
  // needs no registers for addresses.
  __device__ int pack_of(int slot) const { return lane + slot * (IS_BLOCKS && HELD > 4 ? 512 : lanes); }

  // The place in the row of the first element of a pack.
  __device__ int place_of(int pack) const { return pack * N - before; }

  __device__ bool is_inside(int place) const { return (unsigned)place < (unsigned)length; }

  __device__ Pack<T, N> read(int array, int pack) const {
    const int first = place_of(pack);
    Pack<T, N> given;
    if (first >= 0 && first + N <= length) {
      given = packs[array][pack];
    } else {
      const T* elements = packs[array][pack].at;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        given.at[k] = is_inside(first + k) ? elements[k] : filler;
      }
    }
    return given;
  }

  // change(pack number, packs): for each pack of this thread
  template <typename Change> __device__ void each_pack(Change change) {
    if constexpr (HELD > 0) {
#pragma unroll
      for (int slot = 0; slot < HELD; ++slot) {
        const int pack = pack_of(slot);
        if (place_of(pack) < length) {
          Pack<T, N>* several[ARRAYS];
#pragma unroll
          for (int array = 0; array < ARRAYS; ++array) {
            several[array] = &held[array][slot];
          }
          change(pack, several);
        }
      }
    } else {
      for (int pack = lane; place_of(pack) < length; pack += lanes) {
        Pack<T, N> read_now[ARRAYS];
        Pack<T, N>* several[ARRAYS];
#pragma unroll
        for (int array = 0; array < ARRAYS; ++array) {
          read_now[array] = read(array, pack);
          several[array] = &read_now[array];
        }
        change(pack, several);
      }
    }
  }

  // action(place, values): for each element of this thread, and for fillers, whose place is not inside
  template <typename Action> __device__ void each(Action action) {
    each_pack([&](int pack, Pack<T, N>* const(&several)[ARRAYS]) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        W values[ARRAYS];
#pragma unroll
        for (int array = 0; array < ARRAYS; ++array) {
          values[array] = load(several[array]->at[k]);
        }
        action(place_of(pack) + k, values);
      }
    });
  }

  // each held element of a row becomes formula(it)
  template <typename Formula> __device__ void replace(Formula formula) {
    each_pack([&](int, Pack<T, N>* const(&several)[ARRAYS]) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        store(&several[0]->at[k], formula(load(several[0]->at[k])));
      }
    });
  }

  // to[place] = formula(place, values), for a row `to` that lies like this one with respect to packs
  template <typename Formula> __device__ void write(T* to, Formula formula) {
    Pack<T, N>* to_packs = reinterpret_cast<Pack<T, N>*>(to - before);
    each_pack([&](int pack, Pack<T, N>* const(&several)[ARRAYS]) {
      const int first = place_of(pack);
      Pack<T, N> made;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        W values[ARRAYS];
#pragma unroll
        for (int array = 0; array < ARRAYS; ++array) {
          values[array] = load(several[array]->at[k]);
        }
        store(&made.at[k], formula(first + k, values));
      }
      if (first >= 0 && first + N <= length) {
        to_packs[pack] = made;
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          if (is_inside(first + k)) {
            to[first + k] = made.at[k];
          }
        }
      }
    });
  }

  // combine over all threads that share the row, for all of them, always in the same order
  template <typename Combine> __device__ W over_row(W x, Combine combine) const {
    if constexpr (IS_BLOCKS) {
      return over_block(x, combine);
    } else {
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
        x = combine(x, __shfl_xor_sync(0xffffffffu, x, distance));
      }
      return x;
    }
  }
};
