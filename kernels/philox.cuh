// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the only source of randomness.
//
//   words(seed, draw, column, block) = philox(counter = (column, block, draw low, draw high),
//                                             key     = (seed low, seed high))      → x y z w  =  w0 w1 w2 w3
//
// Ten rounds of  (c0, c1, c2, c3) → (hi(M1·c2) ^ c1 ^ k0,  lo(M1·c2),  hi(M0·c0) ^ c3 ^ k1,  lo(M0·c0)).
// CUDA version of kernels/philox.py. NVRTC has no <cstdint>: the names of the integer types are given here.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr u32 PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u;
constexpr u32 PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

__device__ __forceinline__ uint4 philox_words(u64 seed, u64 draw, u32 column, u32 block) {
  u32 c0 = column, c1 = block, c2 = (u32)draw, c3 = (u32)(draw >> 32);
  u32 k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    // ptxas makes one wide multiplication of each pair; from a 64-bit product it makes more.
    const u32 high0 = __umulhi(PHILOX_M0, c0), low0 = PHILOX_M0 * c0;
    const u32 high1 = __umulhi(PHILOX_M1, c2), low1 = PHILOX_M1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
  return make_uint4(c0, c1, c2, c3);
}

// splitmix64's finaliser: draws that follow from a cell's content.
__device__ __forceinline__ u64 mix(u64 x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
