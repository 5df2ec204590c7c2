// Random bits: Philox4x64-10, bit for bit as numpy.random.Philox gives them. Included after common.cuh.

// Four words of 64 bits: the 16-bit pieces for 16 elements of an array.
struct alignas(16) RandomWords { u64 at[4]; };

// Block number `block` of the stream with key (seed, stream) and counter (0, 0, step, 0). The counter is one number of
// 256 bits, its lowest word first, and is increased by 1 before each block. Each of ten rounds multiplies two words:
//   (c0, c1, c2, c3) <- (high(B c2) ^ c1 ^ k0, low(B c2), high(A c0) ^ c3 ^ k1, low(A c0)),  k0 += Wa,  k1 += Wb
// Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
__device__ inline RandomWords philox(u64 seed, u64 stream, u64 step, u64 block) {
  u64 c0 = block + 1;
  u64 c1 = c0 == 0;  // the carry; no block number is so large that it goes further
  u64 c2 = step;
  u64 c3 = 0;
  u64 k0 = seed;
  u64 k1 = stream;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    u64 high_a = __umul64hi(0xD2E7470EE14C6C93ull, c0);
    u64 low_a = 0xD2E7470EE14C6C93ull * c0;
    u64 high_b = __umul64hi(0xCA5A826395121157ull, c2);
    u64 low_b = 0xCA5A826395121157ull * c2;
    c0 = high_b ^ c1 ^ k0;
    c1 = low_b;
    c2 = high_a ^ c3 ^ k1;
    c3 = low_a;
    k0 += 0x9E3779B97F4A7C15ull;
    k1 += 0xBB67AE8584CAA73Bull;
  }
  RandomWords words;
  words.at[0] = c0;
  words.at[1] = c1;
  words.at[2] = c2;
  words.at[3] = c3;
  return words;
}

// The 16 bits of element number `element` of those that consecutive blocks are for, low bits of a word first.
__device__ inline u32 piece_of(const RandomWords* blocks, u32 element) {
  u64 word = blocks[element / 16].at[element / 4 % 4];
  return (u32)(word >> (element % 4 * 16)) & 0xFFFFu;
}
