// Ranks from counts: what ranks.cu and overlap.cu share.
//
//   bins       3  0  2  1     cells that have level 0, 1, 2, 3
//   below      0  3  3  5     cells of lower levels
//   becomes    3+s 6+s 8+s 11+s     2·below + count + s: a doubled average rank, shifted
//
// Assumed: the sum of count·rank² fits int64.

#include "block.cuh"

typedef unsigned short u16;

struct BlockSums {
  i64 wide[MAX_WARPS];
  u32 narrow[MAX_WARPS];
};

static_assert(sizeof(BlockSums) == 384, "corrmask_fast/graph/build/stages_cuda.py counts on it");

__device__ __forceinline__ void clear_bins(u32* bins, u32 n_bins) {
  for (u32 i = threadIdx.x; i < n_bins; i += blockDim.x) bins[i] = 0;
}

// Turns counts into shifted ranks; returns the sum of count·rank² over all bins, in every thread.
__device__ __forceinline__ i64 rank_bins(u32* bins, u32 n_bins, i64 shift, BlockSums* sums) {
  u32 begin, end, cells = 0;
  run_of_thread(n_bins, begin, end);
#pragma unroll 1
  for (u32 i = begin; i < end; ++i) cells += bins[i];
  u32 below = block_sum_before(cells, sums->narrow);
  i64 squares = 0;
#pragma unroll 1
  for (u32 i = begin; i < end; ++i) {
    const u32 count = bins[i];
    const i64 rank = 2 * (i64)below + count + shift;
    bins[i] = (u32)(int)rank;
    squares += count * rank * rank;
    below += count;
  }
  return block_sum(squares, sums->wide);  // its barriers also let all threads see all bins
}
