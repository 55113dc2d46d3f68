// Random masking (SPEC 5), and masking by given priorities: nothing is proposed, the top-up takes all of the budget.
//
//   masked     the B = floor(n·p) maskable columns with the smallest (w1, column); w1 may be given
//
// Work split: block = row. Assumed: see rows.cuh.

#include "rows.cuh"

__device__ __forceinline__ void mask_row(const Batch& batch, uint4* arena, i64 index) {
  const Row row = row_in_arena(batch, arena, index);
  clear_row(batch, row);
  __syncthreads();
  read_row(batch, row, false, nullptr);
  draw_row(batch, row);
  if (row.state->budget) draw_words(batch, row, false);
  finish_row(batch, row);
}

extern "C" __global__ void FIVE_BLOCKS random_i32(ROW_PARAMETERS(int)) {
  ROW_BATCH(false, true);
  SHARED_ARENA(arena);
  mask_row(batch, arena, blockIdx.x);
}

extern "C" __global__ void FIVE_BLOCKS random_i64(ROW_PARAMETERS(i64)) {
  ROW_BATCH(true, true);
  SHARED_ARENA(arena);
  mask_row(batch, arena, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
random_i32_scratch(ROW_PARAMETERS(int), uint4* scratch, i64 scratch_size) {
  ROW_BATCH(false, true);
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, scratch + blockIdx.x * scratch_size, index);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
random_i64_scratch(ROW_PARAMETERS(i64), uint4* scratch, i64 scratch_size) {
  ROW_BATCH(true, true);
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, scratch + blockIdx.x * scratch_size, index);
}
