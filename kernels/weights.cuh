// Weights as an order (SPEC 3): the smallest keys are a draw without replacement, by weight.
//
//   word w    ->  y = 2 * (2^32 - 1 - w) + 1, a uniform number y / 2^33
//             ->  E = -log2(y / 2^33), 27 fractional bits
//             ->  P = E * cost, the time at which an exponential race reaches a gene (Efraimidis & Spirakis 2006)
//             ->  key: the number of P's top bit, and the 26 bits after that bit
//
// CUDA version of race_key in kernels/weights.py. Costs are not 0.

#include "block.cuh"

__device__ __forceinline__ u32 race_key(u32 word, u32 cost) {
  const int zeros = __clz(~word);  // of 32 bits; y has as many, of 33
  const u32 x = (u32)((2ull * ~word + 1) << zeros) & 0xFFFFFFE0u;
  // log2(1 + x) = x + x(1 - x)q(x); the coefficients of q times 2^32.
  u32 q = 49432681u;
  q = 230751926u - __umulhi(x, q);
  q = 517674646u - __umulhi(x, q);
  q = 822506361u - __umulhi(x, q);
  q = 1190405809u - __umulhi(x, q);
  q = 1901054808u - __umulhi(x, q);
  const u32 log = x + __umulhi(__umulhi(x, ~x), q);
  const u64 p = (((u64)(zeros + 1) << 27) - (log >> 5)) * cost;
  const int top = 63 - __clzll((i64)p);
  return ((u32)(top - 1) << 26) + (u32)(p << (63 - top) >> 37);
}
