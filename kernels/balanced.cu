// Balanced CorrMask (SPEC 5): correlated genes are masked together, and every gene of a cell equally often.
//
//   leader     of a column: the first by (w0, column) among itself and its partners; of what has no partners, itself
//   modules    columns with one leader, in random order (words(leader, block 1)[0], leader)
//   circle     all modules end to end, n places; masked are Q of them from a random place on, around
//
//   places     | 0  1  2 | 3 | 4  5  6  7 | 8  9 |        module after module
//   masked             ^^^^^^^^^^^                        o = 2, Q = 4: the places below 6, but not those below 2
//
// Work split: block = row; to find leaders, lane = column, and the columns of a warp in turn, lane = neighbour.
// CUDA version of kernels/balanced.py. Assumed: see rows.cuh and graph.cuh.

#include "graph.cuh"

constexpr u32 START_COLUMN = 0xFFFFFFFDu;  // the column that says where the circle is entered

// Fills `leader` of all columns.
__device__ __forceinline__ void find_leaders(const Batch& batch, const Row& row, const Genes& genes, const Graph& graph,
                                             bool has_graph, u32* leader) {
#pragma unroll 1
  for (u32 c = threadIdx.x; c < row.width; c += blockDim.x) {
    i64 begin = 0;
    u32 degree = 0;
    if (has_graph && has_bit(row.maskable[word_of(c)], bit_of(c))) {
      const i64 token = input_token(batch, row.start + c);
      if ((u64)token < batch.vocab_size && column_of(genes, token) == c) {
        begin = neighbours_begin(graph, token);
        degree = neighbours_begin(graph, token + 1) - begin;
      }
    }
    u64 first = (u64)row.w0[c] << 32 | c;
#pragma unroll 1
    for (u32 seeds = __ballot_sync(FULL_WARP, degree != 0); seeds; seeds &= seeds - 1) {
      const u32 lane = __ffs(seeds) - 1, end = __shfl_sync(FULL_WARP, degree, lane);
      const int* neighbours = graph.indices + __shfl_sync(FULL_WARP, begin, lane);
      u64 best = ~0ull;
#pragma unroll 1
      for (u32 j = lane_id(); j < end; j += 32) {
        const u32 partner = column_of(genes, neighbours[j]);
        if (partner != NO_COLUMN) best = min(best, (u64)row.w0[partner] << 32 | partner);
      }
      for (int d = 16; d; d >>= 1) best = min(best, __shfl_xor_sync(FULL_WARP, best, d));
      if (lane_id() == lane) first = min(first, best);
    }
    leader[c] = (u32)first;
  }
  __syncthreads();
}

// Puts an arc of the circle into `masked`. The place of the genes' positions is taken by the leaders' words.
__device__ __forceinline__ void add_arc(const Row& row, const u32* leader, u32* list, u32* before) {
  const u32 n = row.state->n, quota = row.state->quota;
#pragma unroll 1
  for (u32 c = threadIdx.x; c < row.width; c += blockDim.x) row.own[c] = row_words(row, leader[c], 1).x;
  const u32 begin = __umulhi(philox_words(row.state->seed, row.state->draw, START_COLUMN, 0).x, n);
  const u32 end = begin + quota;
  take_modules(row, row.maskable, row.own, leader, list, begin, before);
  take_modules(row, row.maskable, row.own, leader, list, end > n ? end - n : end, row.masked);
#pragma unroll 1
  for (u32 i = threadIdx.x; i < row.words; i += blockDim.x)
    row.masked[i] = end > n ? row.maskable[i] & (row.masked[i] | ~before[i]) : row.masked[i] & ~before[i];
  if (threadIdx.x == 0) row.state->masked = quota;
  __syncthreads();
}

__device__ __forceinline__ void mask_row(const Batch& batch, const Graph& graphs, uint4* arena, i64 index) {
  Graph graph = graphs;
  const bool has_graph = graph_of_row(batch, graph, index);
  const Row row = row_in_arena(batch, arena, index);
  u32* leader = row.grouped ? leaders_of(row) : row.end;  // then those of the modules are those of the replacement
  u32* list = row.end + row.width;
  u32* before = list + row.width;
  const Genes genes = {(RankedWord*)(before + (row.words + 3) / 4 * 4), row.own, (batch.vocab_size + 63) / 64 * 2};

  clear_row(batch, row);
  fill((u32*)genes.present, 2 * genes.words, 0);
  fill(genes.position, row.width, NO_COLUMN);
  __syncthreads();
  read_row(batch, row, true, genes.present);
  draw_row(batch, row);
  if (row.state->quota) place_genes(row, genes);
  if (row.state->budget) draw_words(batch, row, true);
  if (row.state->quota) {
    __syncthreads();  // positions and words are other threads'
    find_leaders(batch, row, genes, graph, has_graph, leader);
    add_arc(row, leader, list, before);
  }
  finish_row(batch, row);
}

#define BALANCED_GRAPH const Graph graph = {indptr, indptr_bytes, indices, graph_ids, n_graphs, 0, nullptr}

extern "C" __global__ void FIVE_BLOCKS balanced_i32(ROW_PARAMETERS(int), GRAPH_PARAMETERS) {
  ROW_BATCH(false, false);
  BALANCED_GRAPH;
  SHARED_ARENA(arena);
  mask_row(batch, graph, arena, blockIdx.x);
}

extern "C" __global__ void FIVE_BLOCKS balanced_i64(ROW_PARAMETERS(i64), GRAPH_PARAMETERS) {
  ROW_BATCH(true, false);
  BALANCED_GRAPH;
  SHARED_ARENA(arena);
  mask_row(batch, graph, arena, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
balanced_i32_scratch(ROW_PARAMETERS(int), GRAPH_PARAMETERS, uint4* scratch, i64 scratch_size) {
  ROW_BATCH(false, false);
  BALANCED_GRAPH;
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, graph, scratch + blockIdx.x * scratch_size, index);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
balanced_i64_scratch(ROW_PARAMETERS(i64), GRAPH_PARAMETERS, uint4* scratch, i64 scratch_size) {
  ROW_BATCH(true, false);
  BALANCED_GRAPH;
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, graph, scratch + blockIdx.x * scratch_size, index);
}
