// PMI masking (Levine et al. 2021; SPEC 5): runs of columns whose neighbouring pairs are no coincidence.
//
//   column     0  1  2  3  4  5        linked, bit c: columns c and c + 1 are maskable, and (token c, token c + 1) is a
//   linked     1  1  0  0  1  .                       pair of the table
//   runs       |0  1  2|    |4  5|     maximal, of two columns or more; in random order (w0, column) of their first
//
// Runs never overlap: the quota takes the columns by (w0 of their run's first, column).
//
// Work split: block = row, thread = pairs of columns, then the runs that begin at them. CUDA version of kernels/pmi.py.
// Assumed: see rows.cuh; the lookup is as engine/tables.py makes it.

#include "rows.cuh"

constexpr int BUCKET_WORDS = 4;  // 32 bytes, a sector: sixteen numbers of 16 bits

// Whether v follows u in a pair of the table; both must lie in the vocabulary.
__device__ __forceinline__ bool has_pair(const u64* lookup, u32 vocab_size, u32 u, u32 v) {
  const u64 head = lookup[u + (u64)vocab_size * (v >> 16)];
  const u64* bucket = lookup + BUCKET_WORDS * ((head >> 32) + ((u32)head & v));
  const u64 ones = 0x0001000100010001ull, copies = (v & 0xFFFF) * ones;
  u64 found = 0;
#pragma unroll
  for (int i = 0; i < BUCKET_WORDS; ++i) {
    const u64 other = bucket[i] ^ copies;  // 16 bits of it are 0 where the numbers are equal: only then is there a borrow
    found |= (other - ones) & ~other & (ones << 15);
  }
  return found;
}

// Fills the bits of `linked`; the tokens must still be there.
__device__ __forceinline__ void link_columns(const Batch& batch, const Row& row, const u64* lookup, u32* linked) {
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
    const uint2 token = pair_of(row.token, c);
    const u32 next = c + 2 < row.width ? row.token[c + 2] : NO_TOKEN;
    const bool known[2] = {token.x < STRAY_TOKEN && token.y < STRAY_TOKEN, token.y < STRAY_TOKEN && next < STRAY_TOKEN};
    const u32 even = __ballot_sync(FULL_WARP, known[0] && has_pair(lookup, batch.vocab_size, token.x, token.y));
    const u32 odd = __ballot_sync(FULL_WARP, known[1] && has_pair(lookup, batch.vocab_size, token.y, next));
    if (lane_id() == 0) set_pair(linked, word_of(c), even, odd);
  }
  __syncthreads();
}

__device__ __forceinline__ bool in_set(const u32* set, u32 c) { return has_bit(set[word_of(c)], bit_of(c)); }

// Puts runs into `masked` until the quota is reached or there are no more; `inside`: cleared bits.
__device__ __forceinline__ void add_runs(const Row& row, const u32* linked, u32* inside) {
#pragma unroll 1
  for (u32 begin = threadIdx.x; begin < row.width; begin += blockDim.x) {
    if (!in_set(linked, begin) || (begin && in_set(linked, begin - 1))) continue;
    const u32 number = row.w0[begin];
    u32 c = begin;
    while (true) {
      row.own[c] = number;
      if (row.grouped) leaders_of(row)[c] = begin;
      atomicOr(&inside[word_of(c)], 1u << bit_of(c));
      if (!in_set(linked, c)) break;
      ++c;
    }
    atomicAdd(&row.state->listed, c + 1 - begin);
  }
  __syncthreads();
  const u32 count = row.state->listed;
  take_groups(row, inside, row.own, count);
}

__device__ __forceinline__ void mask_row(const Batch& batch, const u64* lookup, uint4* arena, i64 index) {
  const Row row = row_in_arena(batch, arena, index);
  u32* linked = row.end;
  u32* inside = linked + (row.words + 3) / 4 * 4;
  clear_row(batch, row);
  fill(inside, row.words, 0);
  __syncthreads();
  read_row(batch, row, false, nullptr);
  draw_row(batch, row);
  if (row.state->quota) link_columns(batch, row, lookup, linked);
  if (row.state->budget) draw_words(batch, row, false);
  if (row.state->quota) {
    __syncthreads();  // the first word of a run may be another thread's
    add_runs(row, linked, inside);
  }
  finish_row(batch, row);
}

#define PMI_PARAMETERS const u64 *__restrict__ lookup

extern "C" __global__ void FIVE_BLOCKS pmi_i32(ROW_PARAMETERS(int), PMI_PARAMETERS) {
  ROW_BATCH(false, false);
  SHARED_ARENA(arena);
  mask_row(batch, lookup, arena, blockIdx.x);
}

extern "C" __global__ void FIVE_BLOCKS pmi_i64(ROW_PARAMETERS(i64), PMI_PARAMETERS) {
  ROW_BATCH(true, false);
  SHARED_ARENA(arena);
  mask_row(batch, lookup, arena, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
pmi_i32_scratch(ROW_PARAMETERS(int), PMI_PARAMETERS, uint4* scratch, i64 scratch_size) {
  ROW_BATCH(false, false);
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, lookup, scratch + blockIdx.x * scratch_size, index);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
pmi_i64_scratch(ROW_PARAMETERS(i64), PMI_PARAMETERS, uint4* scratch, i64 scratch_size) {
  ROW_BATCH(true, false);
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, lookup, scratch + blockIdx.x * scratch_size, index);
}
