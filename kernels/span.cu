// Span masking (SpanBERT, Joshi et al. 2020; SPEC 5): runs of columns whose length is geometric, p = 0.2, up to 10.
//
//   start      every maskable column, in random order (w0, column)
//   length     1 + the number of k in 1 … 9 with words(…, block 1)[0] >= floor(2^32 · (1 − 0.8^k) / (1 − 0.8^10))
//   span       the start and the maskable columns after it, so many, to the row's end at most
//
// A column belongs to the first span that holds it: the one with the smallest (w0, start) of those that begin up to nine
// maskable columns before it. The quota takes the columns by (w0 of their span, column): of spans of equal w0 the earlier
// one comes first, and a column of a later one lies after all of its own.
//
//   maskable columns    4   5   7   8   9      spans     length << 28 | column, one after the other
//   length              2   1   3   1   1      9 belongs to the span from 7, 8 or 9, whichever has the smallest w0
//
// Work split: block = row, thread = maskable columns. CUDA version of kernels/span.py.
// Assumed: see rows.cuh; columns below 2^28.

#include "rows.cuh"

constexpr u32 LONGEST = 10, LENGTH_SHIFT = 28, COLUMN_MASK = (1u << LENGTH_SHIFT) - 1;

__device__ __forceinline__ u32 span_length(u32 w) {
  return 1 + (w >= 962321996u) + (w >= 1732179594u) + (w >= 2348065672u) + (w >= 2840774534u) + (w >= 3234941624u) +
         (w >= 3550275296u) + (w >= 3802542233u) + (w >= 4004355783u) + (w >= 4165806623u);
}

// Puts spans into `masked` until the quota is reached: every column begins one, so it always is. `spans`: (width,).
__device__ __forceinline__ void add_spans(const Row& row, u32* spans) {
  const u32 n = row.state->n;
  list_columns(row, row.maskable, spans);
#pragma unroll 1
  for (u32 i = threadIdx.x; i < n; i += blockDim.x)
    spans[i] |= span_length(row_words(row, spans[i], 1).x) << LENGTH_SHIFT;
  __syncthreads();
#pragma unroll 1
  for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
    u32 first = 0xFFFFFFFFu, start = spans[i] & COLUMN_MASK;
#pragma unroll 1
    for (u32 before = 0; before < min(LONGEST, i + 1); ++before) {
      const u32 span = spans[i - before];
      if (span >> LENGTH_SHIFT <= before || row.w0[span & COLUMN_MASK] > first) continue;  // of equal ones the earlier
      start = span & COLUMN_MASK;
      first = row.w0[start];
    }
    if (row.grouped) leaders_of(row)[spans[i] & COLUMN_MASK] = start;
    row.own[spans[i] & COLUMN_MASK] = first;
  }
  take_groups(row, row.maskable, row.own, n);
}

__device__ __forceinline__ void mask_row(const Batch& batch, uint4* arena, i64 index) {
  const Row row = row_in_arena(batch, arena, index);
  clear_row(batch, row);
  __syncthreads();
  read_row(batch, row, false, nullptr);
  draw_row(batch, row);
  if (row.state->budget) draw_words(batch, row, true);
  if (row.state->quota) add_spans(row, row.end);
  finish_row(batch, row);
}

extern "C" __global__ void FIVE_BLOCKS span_i32(ROW_PARAMETERS(int)) {
  ROW_BATCH(false, false);
  SHARED_ARENA(arena);
  mask_row(batch, arena, blockIdx.x);
}

extern "C" __global__ void FIVE_BLOCKS span_i64(ROW_PARAMETERS(i64)) {
  ROW_BATCH(true, false);
  SHARED_ARENA(arena);
  mask_row(batch, arena, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
span_i32_scratch(ROW_PARAMETERS(int), uint4* scratch, i64 scratch_size) {
  ROW_BATCH(false, false);
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, scratch + blockIdx.x * scratch_size, index);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
span_i64_scratch(ROW_PARAMETERS(i64), uint4* scratch, i64 scratch_size) {
  ROW_BATCH(true, false);
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, scratch + blockIdx.x * scratch_size, index);
}
