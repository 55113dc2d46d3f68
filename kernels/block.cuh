// What the threads of a block do together: votes, sums over warp and block, sets with ranks.
//
//   members     0 1 1 0 … 1 | 1 0 0 1 …                32 bits a word
//   before      0             3                        ones in earlier words: the rank of a member is this and the ones
//                                                      before it in its own word
//
// Assumed: a block is a multiple of 32 threads, and all its threads call a function together.

#include "philox.cuh"

#ifndef SHARED_ARENA  // the host emulation has its own
#define SHARED_ARENA(name) extern __shared__ uint4 name[]
#endif

constexpr u32 FULL_WARP = 0xFFFFFFFFu;
constexpr u32 MAX_WARPS = 32;

// 32 members of a set, and how many come before them: what finds the rank of a member.
struct RankedWord {
  u32 bits, before;
};

__device__ __forceinline__ u32 lane_id() { return threadIdx.x & 31; }
__device__ __forceinline__ u32 warp_id() { return threadIdx.x >> 5; }
__device__ __forceinline__ u32 warp_count() { return blockDim.x >> 5; }
__device__ __forceinline__ bool has_bit(u32 word, u32 i) { return word >> (i & 31) & 1u; }
// How many of a warp's votes come from lanes before the caller.
__device__ __forceinline__ u32 votes_before(u32 votes) { return __popc(votes & ((1u << lane_id()) - 1u)); }

// The sum of a warp's values, in every lane.
__device__ __forceinline__ u32 warp_sum(u32 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int d = 16; d; d >>= 1) value += __shfl_xor_sync(FULL_WARP, value, d);
  return value;
#else
  return __reduce_add_sync(FULL_WARP, value);
#endif
}

// The least of a warp's values, in every lane.
__device__ __forceinline__ u32 warp_min(u32 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  for (int d = 16; d; d >>= 1) value = min(value, __shfl_xor_sync(FULL_WARP, value, d));
  return value;
#else
  return __reduce_min_sync(FULL_WARP, value);
#endif
}

// The sum of a warp's values up to and including the lane's own.
__device__ __forceinline__ u32 warp_running_sum(u32 value) {
#pragma unroll
  for (u32 d = 1; d < 32; d <<= 1) {
    const u32 earlier = __shfl_up_sync(FULL_WARP, value, d);
    if (lane_id() >= d) value += earlier;
  }
  return value;
}

// The sum of the values of all threads before the caller. No barrier at the end.
__device__ __forceinline__ u32 block_sum_before(u32 value, u32* warp_sums) {
  const u32 running = warp_running_sum(value);
  if (lane_id() == 31) warp_sums[warp_id()] = running;
  __syncthreads();
  u32 sum = running - value;
#pragma unroll 1
  for (u32 w = 0; w < warp_id(); ++w) sum += warp_sums[w];
  return sum;
}

// The sum of the values of all threads, in every thread. A barrier at the beginning and one before the end.
__device__ __forceinline__ i64 block_sum(i64 value, i64* warp_sums) {
  for (int d = 16; d; d >>= 1) value += __shfl_xor_sync(FULL_WARP, value, d);
  __syncthreads();  // an earlier call's sums have been read
  if (lane_id() == 0) warp_sums[warp_id()] = value;
  __syncthreads();
  i64 sum = 0;
#pragma unroll 1
  for (u32 w = 0; w < warp_count(); ++w) sum += warp_sums[w];
  return sum;
}

// The words that a thread takes of `count`, if each takes a run of them: [begin, end).
__device__ __forceinline__ void run_of_thread(u32 count, u32& begin, u32& end) {
  const u32 run = (count + blockDim.x - 1) / blockDim.x;
  begin = min(threadIdx.x * run, count);
  end = min(begin + run, count);
}

// Fills `before` of all words.
__device__ __forceinline__ void rank_words(RankedWord* words, u32 count, u32* warp_sums) {
  u32 begin, end, ones = 0;
  run_of_thread(count, begin, end);
#pragma unroll 1
  for (u32 i = begin; i < end; ++i) ones += __popc(words[i].bits);
  u32 before = block_sum_before(ones, warp_sums);
#pragma unroll 1
  for (u32 i = begin; i < end; ++i) {
    words[i].before = before;
    before += __popc(words[i].bits);
  }
  __syncthreads();
}

__device__ __forceinline__ u32 rank_in(RankedWord word, u32 i) {
  return word.before + __popc(word.bits & ((1u << (i & 31)) - 1u));
}

// Four numbers at a time: the count is rounded up to that, and so is the room.
__device__ __forceinline__ void fill(u32* numbers, u32 count, u32 value) {
#pragma unroll 1
  for (u32 i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x)
    *(uint4*)(numbers + i) = make_uint4(value, value, value, value);
}
