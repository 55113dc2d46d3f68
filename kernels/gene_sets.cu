// Gene sets (SPEC 5): the genes of a pathway are masked together.
//
//   words      one random word a set; sets come in rising order of (word, number)
//   members    of a set: its genes that stand in the row, by their first column; fewer than two are no group
//   first      of a column: the first (word, number) among the sets that it is a member of
//   masked     the quota Q = floor(B·λ) of columns with the smallest (first, w0, column)
//
// Sets are looked at in waves of rising words, until as many columns as the quota have a first set. Within a wave the
// order does not matter, and a wave may be longer than needed.
//
// Work split: block = row; a warp takes 32 sets, lane = set, and those of the wave in turn, lane = gene.
// CUDA version of kernels/gene_sets.py. Assumed: see rows.cuh and graph.cuh.

#include "graph.cuh"

constexpr u32 SETS_BLOCK = 0xFFFFFFFEu;  // the block of random words in which the numbers of sets stand for columns
constexpr u64 NO_SET = ~0ull;            // after every (word, number)
constexpr float FIRST_YIELD = 4.0f;      // columns that a set is expected to add
constexpr float WAVE_MARGIN = 8.0f;      // sets that a wave takes beyond those expected to fill the quota

// Gives a set's members `key` for their first set, where they had a later one; returns how many of the lane's had none.
// For one warp.
__device__ __forceinline__ u32 add_members(const Genes& genes, const int* set, u32 size, u64 key, u64* first) {
  u32 present = 0, fresh = 0;
#pragma unroll 1
  for (u32 begin = 0; begin < size && present < 2; begin += 32) {
    const u32 j = begin + lane_id();
    present += __popc(__ballot_sync(FULL_WARP, j < size && column_of(genes, set[j]) != NO_COLUMN));
  }
  if (present < 2) return 0;
#pragma unroll 1
  for (u32 j = lane_id(); j < size; j += 32) {
    const u32 c = column_of(genes, set[j]);
    if (c != NO_COLUMN) fresh += atomicMin(&first[c], key) == NO_SET;
  }
  return fresh;
}

// Makes the first of a set's members the leader of all whose first set it is. For one warp.
__device__ __forceinline__ void lead_members(const Row& row, const Genes& genes, const int* set, u32 size, u64 key,
                                             const u64* first) {
  u64 leader = ~0ull;
#pragma unroll 1
  for (u32 j = lane_id(); j < size; j += 32) {
    const u32 c = column_of(genes, set[j]);
    if (c != NO_COLUMN) leader = min(leader, (u64)row.w0[c] << 32 | c);
  }
  for (int d = 16; d; d >>= 1) leader = min(leader, __shfl_xor_sync(FULL_WARP, leader, d));
#pragma unroll 1
  for (u32 j = lane_id(); j < size; j += 32) {
    const u32 c = column_of(genes, set[j]);
    if (c != NO_COLUMN && first[c] == key) leaders_of(row)[c] = (u32)leader;
  }
}

// Looks at the sets with low <= (word, number) < high; adds to `listed` how many columns have a first set now. Or, where
// all have, finds the leaders (`leads`, a constant).
__device__ __forceinline__ void add_wave(const Row& row, const Genes& genes, const Graph& sets, u32 n_sets, u64 low,
                                         u64 high, u64* first, bool leads) {
  u32 fresh = 0;
#pragma unroll 1
  for (u32 begin = 32 * warp_id(); begin < n_sets; begin += 32 * warp_count()) {
    const u32 set = begin + lane_id();
    const u64 key = (u64)philox_words(row.state->seed, row.state->draw, set, SETS_BLOCK).x << 32 | set;
    const bool inside = set < n_sets && key - low < high - low;
    const i64 start = inside ? neighbours_begin(sets, set) : 0;
    const u32 size = inside ? neighbours_begin(sets, set + 1) - start : 0;
#pragma unroll 1
    for (u32 wave = __ballot_sync(FULL_WARP, size != 0); wave; wave &= wave - 1) {
      const u32 lane = __ffs(wave) - 1;
      const int* genes_of_set = sets.indices + __shfl_sync(FULL_WARP, start, lane);
      const u32 size_of_set = __shfl_sync(FULL_WARP, size, lane);
      const u64 key_of_set = __shfl_sync(FULL_WARP, key, lane);
      if (leads) lead_members(row, genes, genes_of_set, size_of_set, key_of_set, first);
      else fresh += add_members(genes, genes_of_set, size_of_set, key_of_set, first);
    }
  }
  fresh = warp_sum(fresh);
  if (lane_id() == 0) atomicAdd(&row.state->listed, fresh);
  __syncthreads();
}

// Puts sets into `masked` until the quota is reached or there are no more. `first`: (width,) of NO_SET; `inside`: cleared
// bits.
__device__ __forceinline__ void add_sets(const Row& row, const Genes& genes, const Graph& sets, u32 n_sets, u64* first,
                                         u32* inside) {
  const u32 quota = row.state->quota;
  u32 count = 0;
  u64 low = 0;
  float yield = FIRST_YIELD;
  while (count < quota && low != NO_SET) {
    const float share = ((quota - count) / yield + WAVE_MARGIN) / n_sets;  // any bound is right
    const u64 wave = share < 1.0f ? (u64)(share * 18446744073709551616.0f) : NO_SET;
    const u64 high = wave < NO_SET - low ? low + wave : NO_SET;
    add_wave(row, genes, sets, n_sets, low, high, first, false);
    count = row.state->listed;
    low = high;
    yield = max(0.25f, count / (low * (1.0f / 18446744073709551616.0f) * n_sets));
    __syncthreads();  // all have read the count
  }
  if (row.grouped) add_wave(row, genes, sets, n_sets, 0, low, first, true);
  // In halves: the words take the place of the genes' positions, the numbers of sets the first half of `first`.
  u32* set_of = (u32*)first;
#pragma unroll 1
  for (u32 begin = 0; begin < row.width; begin += blockDim.x) {
    const u32 c = begin + threadIdx.x;
    const u64 key = c < row.width ? first[c] : NO_SET;
    if (key != NO_SET) atomicOr(&inside[word_of(c)], 1u << bit_of(c));
    __syncthreads();  // all have read before one writes: what is written was read in this round or before
    if (c >= row.width) continue;
    row.own[c] = key >> 32;
    set_of[c] = (u32)key;
  }
  __syncthreads();
  const u32 want = min(quota, count);
  take_modules(row, inside, row.own, set_of, set_of + row.width, want, row.masked);
  if (threadIdx.x == 0) row.state->masked = want;
  __syncthreads();
}

__device__ __forceinline__ void mask_row(const Batch& batch, const Graph& sets, u32 n_sets, uint4* arena, i64 index) {
  const Row row = row_in_arena(batch, arena, index);
  u64* first = (u64*)row.end;
  u32* inside = (u32*)(first + row.width);
  const Genes genes = {(RankedWord*)(inside + (row.words + 3) / 4 * 4), row.own, (batch.vocab_size + 63) / 64 * 2};

  clear_row(batch, row);
  fill((u32*)first, 2 * row.width, 0xFFFFFFFFu);
  fill(inside, row.words, 0);
  fill((u32*)genes.present, 2 * genes.words, 0);
  fill(genes.position, row.width, NO_COLUMN);
  __syncthreads();
  read_row(batch, row, true, genes.present);
  draw_row(batch, row);
  if (row.state->quota) place_genes(row, genes);
  if (row.state->budget) draw_words(batch, row, true);
  if (row.state->quota) {
    __syncthreads();  // positions and words are other threads'
    add_sets(row, genes, sets, n_sets, first, inside);
  }
  finish_row(batch, row);
}

#define SETS_PARAMETERS const void *__restrict__ indptr, int indptr_bytes, const int *__restrict__ indices, u32 n_sets
#define SETS_GRAPH const Graph sets = {indptr, indptr_bytes, indices, nullptr, 0, 0}

extern "C" __global__ void FIVE_BLOCKS gene_sets_i32(ROW_PARAMETERS(int), SETS_PARAMETERS) {
  ROW_BATCH(false, false);
  SETS_GRAPH;
  SHARED_ARENA(arena);
  mask_row(batch, sets, n_sets, arena, blockIdx.x);
}

extern "C" __global__ void FIVE_BLOCKS gene_sets_i64(ROW_PARAMETERS(i64), SETS_PARAMETERS) {
  ROW_BATCH(true, false);
  SETS_GRAPH;
  SHARED_ARENA(arena);
  mask_row(batch, sets, n_sets, arena, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
gene_sets_i32_scratch(ROW_PARAMETERS(int), SETS_PARAMETERS, uint4* scratch, i64 scratch_size) {
  ROW_BATCH(false, false);
  SETS_GRAPH;
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, sets, n_sets, scratch + blockIdx.x * scratch_size, index);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
gene_sets_i64_scratch(ROW_PARAMETERS(i64), SETS_PARAMETERS, uint4* scratch, i64 scratch_size) {
  ROW_BATCH(true, false);
  SETS_GRAPH;
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, sets, n_sets, scratch + blockIdx.x * scratch_size, index);
}
