// What a function of the user's proposed (SPEC 5): columns by given priorities, then the random top-up.
//
//   priorities   –   –   1   0   2         their lower half, in the place of w0; –: NOT_PROPOSED. The upper half is the
//                                          leader: the column that the group begins with, counted as random words are
//   masked       the quota Q = floor(B·λ) of proposed columns with the smallest (priority, column)
//
// Work split: block = row, thread = pairs of columns. CUDA version of kernels/function.py. Assumed: see rows.cuh.

#include "rows.cuh"

constexpr u32 NOT_PROPOSED = 0xFFFFFFFFu;

// Puts proposed columns into `masked` until the quota is reached or there are no more; `proposed`: room for a set.
__device__ __forceinline__ void add_proposed(const Batch& batch, const Row& row, u32* proposed) {
  if (row.grouped && batch.priorities) {
#pragma unroll 1
    for (u32 c = threadIdx.x; c < batch.columns; c += blockDim.x)
      leaders_of(row)[c] = (u32)(batch.priorities[row.start + c] >> 32) + row.state->first;
  }
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
    const uint2 priority = pair_of(row.w0, c), maskable = pair_of(row.maskable, word_of(c));
    const u32 even = __ballot_sync(FULL_WARP, has_bit(maskable.x, lane_id()) && priority.x != NOT_PROPOSED);
    const u32 odd = __ballot_sync(FULL_WARP, has_bit(maskable.y, lane_id()) && priority.y != NOT_PROPOSED);
    if (lane_id() == 0) {
      set_pair(proposed, word_of(c), even, odd);
      atomicAdd(&row.state->listed, __popc(even) + __popc(odd));
    }
  }
  __syncthreads();
  const u32 count = row.state->listed;
  take_groups(row, proposed, row.w0, count);
}

__device__ __forceinline__ void mask_row(const Batch& batch, uint4* arena, i64 index) {
  const Row row = row_in_arena(batch, arena, index);
  clear_row(batch, row);
  __syncthreads();
  read_row(batch, row, false, nullptr);
  draw_row(batch, row);
  if (row.state->budget) draw_words(batch, row, false);
  if (row.state->quota) add_proposed(batch, row, row.end);
  finish_row(batch, row);
}

extern "C" __global__ void FIVE_BLOCKS function_i32(ROW_PARAMETERS(int)) {
  ROW_BATCH(false, false);
  SHARED_ARENA(arena);
  mask_row(batch, arena, blockIdx.x);
}

extern "C" __global__ void FIVE_BLOCKS function_i64(ROW_PARAMETERS(i64)) {
  ROW_BATCH(true, false);
  SHARED_ARENA(arena);
  mask_row(batch, arena, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
function_i32_scratch(ROW_PARAMETERS(int), uint4* scratch, i64 scratch_size) {
  ROW_BATCH(false, false);
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, scratch + blockIdx.x * scratch_size, index);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
function_i64_scratch(ROW_PARAMETERS(i64), uint4* scratch, i64 scratch_size) {
  ROW_BATCH(true, false);
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, scratch + blockIdx.x * scratch_size, index);
}
