// CorrMask: correlated genes of a cell are masked together (Hacohen et al. 2026, Algorithm 2; SPEC 4).
//
//   seeds      columns whose gene has neighbours, in random order (w0, column)
//   partners   of a seed: its neighbours in the cell, the max_partners first by (key, j); neighbour j of the CSR row
//              has the key words(seed, draw, column, 1 + j div 4)[j mod 4], or where edges have costs race_key of it
//   masked     the quota Q = floor(B·λ) of columns first hit in the order  seed, its partners, seed, its partners, …;
//              then a random top-up to B = floor(n·p)
//
// Work split: block = row, a wave of seeds at a time; warp = seed, lane = neighbour; warp 0 = the order of first hits.
// Partners do not depend on what is masked already, so the seeds of a wave are expanded in any order, and a wave may be
// longer than needed: the quota cuts it.
// CUDA version of kernels/corrmask.py. Assumed: see rows.cuh and graph.cuh.

#include "graph.cuh"

constexpr u64 LAST_KEY = ~0ull;
constexpr u32 POOL = 32;               // neighbours that a warp ranks at a time, one a lane
constexpr u32 ROUND = POOL / 2;        // partners that it keeps of them: there must be room for others
constexpr u32 PASS = 64;               // neighbours that it looks up at a time
constexpr float FIRST_YIELD = 0.8f;    // partners that a seed is expected to add, of max_partners
constexpr float WAVE_MARGIN = 2.0f;    // seeds that a wave expands beyond those expected to fill the quota
constexpr float LISTED = 3.0f;         // columns that it lists for each: a third or more have neighbours
constexpr float WAVE_FILLING = 0.75f;  // of its list: chance must not make it overflow often

struct Seed {
  u64 key;    // (w0, column)
  i64 begin;  // of its neighbours
  u32 degree;
  u32 sorted;  // in entry i of the list: where the i-th seed stands
};

struct Pool {
  uint2 best[POOL];          // (key, j) of neighbour j of the CSR row, in order
  u32 pending[POOL + PASS];  // neighbours in the cell that have no key yet
};

static_assert(sizeof(Seed) == 24 && sizeof(Pool) == 640, "engine/device.py counts on it");

struct Wave {
  Pool* pools;     // (warps,)
  u64* listed;     // (2 · capacity,) columns as keys
  Seed* seeds;     // (2 · capacity,) of them, those that have neighbours
  u32* proposals;  // (capacity, stride) columns: a seed, then its partners, then NO_COLUMN
  u32 capacity, stride;
};

// Lists the maskable columns with low <= (w0, column) < high; returns high, lowered until the list holds them all.
__device__ __forceinline__ u64 list_wave(const Row& row, const Wave& wave, u64 low, u64 high) {
  while (true) {
#pragma unroll 1
    for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
      const uint2 w0 = pair_of(row.w0, c), maskable = pair_of(row.maskable, word_of(c));
      const u64 even = (u64)w0.x << 32 | c, odd = (u64)w0.y << 32 | (c + 1);
      const bool first = has_bit(maskable.x, lane_id()) && even - low < high - low;
      const bool second = has_bit(maskable.y, lane_id()) && odd - low < high - low;
      if (!first && !second) continue;
      const u32 i = atomicAdd(&row.state->listed, first + second);
      if (first && i < 2 * wave.capacity) wave.listed[i] = even;
      if (second && i + first < 2 * wave.capacity) wave.listed[i + first] = odd;
    }
    __syncthreads();
    if (row.state->listed <= 2 * wave.capacity) return high;
    __syncthreads();
    if (threadIdx.x == 0) row.state->listed = 0;
    high = low + (high - low) / 2;
    __syncthreads();
  }
}

// Finds the seeds among the listed columns, their number (`spare` of the row's state), neighbours and order.
__device__ __forceinline__ void look_up_seeds(const Batch& batch, const Row& row, const Genes& genes,
                                              const Graph& graph, const Wave& wave, u32 listed) {
#pragma unroll 1
  for (u32 i = threadIdx.x; i < listed; i += blockDim.x) {
    const u64 key = wave.listed[i];
    const i64 token = input_token(batch, row.start + (u32)key);
    if ((u64)token >= batch.vocab_size || column_of(genes, token) != (u32)key) continue;
    const i64 begin = neighbours_begin(graph, token);
    const u32 degree = neighbours_begin(graph, token + 1) - begin;
    if (degree) wave.seeds[atomicAdd(&row.state->spare, 1u)] = {key, begin, degree, 0};
  }
  __syncthreads();
  const u32 found = row.state->spare;
#pragma unroll 1
  for (u32 i = threadIdx.x / 4; i < (found + 7) / 8 * 8; i += blockDim.x / 4) {  // four threads count for one seed
    const u64 key = wave.seeds[min(i, found - 1)].key;
    u32 rank = 0;
    for (u32 k = threadIdx.x % 4; k < found; k += 4) rank += wave.seeds[k].key < key;
    rank += __shfl_xor_sync(FULL_WARP, rank, 1);
    rank += __shfl_xor_sync(FULL_WARP, rank, 2);
    if (threadIdx.x % 4 == 0 && i < found) wave.seeds[rank].sorted = i;
  }
  __syncthreads();
}

// Ranks `count` pending neighbours with the `found` best so far, and keeps `take` of them: lane l < found holds the l-th as
// (key, j). `costs`: of all edges, or null. Only (key, j) >= after count: those below are partners already. For one warp.
__device__ __forceinline__ void rank_pending(const Row& row, const Seed& seed, const u32* costs, Pool& pool,
                                             const u32* pending, u32 count, u64 after, u32 take, u32& found,
                                             u32& key, u32& j) {
  const u32 lane = lane_id();
  const bool fresh = lane >= found && lane < found + count;
  if (fresh) j = pending[lane - found];
  const uint4 w = row_words(row, (u32)seed.key, 1 + j / 4);
  if (fresh) key = j & 2 ? (j & 1 ? w.w : w.z) : (j & 1 ? w.y : w.x);
  if (fresh && costs) key = race_key(key, costs[seed.begin + j]);
  // Of equal keys the first lane's comes first: lanes stand in the order of j, but for the best, which have their own.
  u32 open = __ballot_sync(FULL_WARP, lane < found || (fresh && ((u64)key << 32 | j) >= after));
  found = min(take, (u32)__popc(open));
  if (!has_bit(open, lane)) key = 0xFFFFFFFFu;
#pragma unroll 1
  for (u32 i = 0; i < found; ++i) {
    const u32 least = warp_min(key), equal = open & __ballot_sync(FULL_WARP, key == least);
    const u32 first = equal & (0u - equal);
    open ^= first;
    if (first != 1u << lane) continue;
    pool.best[i] = make_uint2(key, j);
    key = 0xFFFFFFFFu;
  }
  __syncwarp();
  key = pool.best[lane].x;
  j = pool.best[lane].y;
  __syncwarp();  // all have read before the next ones are written
}

// Writes the seed's partners to out[0 … max_partners), NO_COLUMN after them: ROUND at a time. For one warp.
__device__ __forceinline__ void choose_partners(const Row& row, const Genes& genes, const Graph& graph,
                                                const Seed& seed, Pool& pool, u32* out) {
  const int* neighbours = graph.indices + seed.begin;
  u64 after = 0;
  for (u32 chosen = 0; chosen < graph.max_partners; chosen += ROUND) {
    const u32 take = min(ROUND, graph.max_partners - chosen), lane = lane_id();
    u32 key = 0, j = 0, found = 0, begin = 0, ranked = 0, pending = 0;
    const u32 degree = after == LAST_KEY ? 0 : seed.degree;
#pragma unroll 1
    while (begin < degree || pending > ranked) {
      if (begin >= degree || pending - ranked >= POOL - found) {
        const u32 count = min(pending - ranked, POOL - found);
        rank_pending(row, seed, graph.edge_costs, pool, pool.pending + ranked, count, after, take, found, key, j);
        ranked += count;
        continue;
      }
      if (ranked) {  // fewer than POOL are left: to the front
        pending -= ranked;
        const u32 left = lane < pending ? pool.pending[ranked + lane] : 0;
        __syncwarp();
        pool.pending[lane] = left;
        __syncwarp();
        ranked = 0;
      }
#pragma unroll
      for (u32 neighbour = begin + lane; neighbour < begin + PASS + lane; neighbour += 32) {
        const u32 gene = neighbour < degree ? neighbours[neighbour] : 0;
        const bool present = neighbour < degree && has_bit(genes.present[gene >> 5].bits, gene);
        const u32 votes = __ballot_sync(FULL_WARP, present);
        if (present) pool.pending[pending + votes_before(votes)] = neighbour;
        pending += __popc(votes);
      }
      begin += PASS;
      __syncwarp();
    }
    if (lane < take) out[chosen + lane] = lane < found ? column_of(genes, neighbours[j]) : NO_COLUMN;
    after = found < take ? LAST_KEY : __shfl_sync(FULL_WARP, ((u64)key << 32 | j) + 1, take - 1);
  }
}

__device__ __forceinline__ void expand_wave(const Row& row, const Genes& genes, const Graph& graph, const Wave& wave,
                                            u32 expanded) {
  for (u32 i = warp_id(); i < expanded; i += warp_count()) {
    const Seed& seed = wave.seeds[wave.seeds[i].sorted];  // read where it is needed: registers are short
    u32* proposals = wave.proposals + i * wave.stride;
    if (lane_id() == 0) proposals[0] = (u32)seed.key;
    choose_partners(row, genes, graph, seed, wave.pools[warp_id()], proposals + 1);
  }
  __syncthreads();
}

// Adds the proposed columns in their order, each once, while fewer than the quota are in. For warp 0.
__device__ __forceinline__ void accept_wave(const Row& row, const Wave& wave, u32 expanded, u32 count) {
  const u32 proposed = expanded * wave.stride, quota = row.state->quota;
  for (u32 begin = 0; begin < proposed && count < quota; begin += 32) {
    const u32 i = begin + lane_id(), column = i < proposed ? wave.proposals[i] : NO_COLUMN;
    const bool fresh = column != NO_COLUMN && !has_bit(row.masked[word_of(column)], bit_of(column));
    const u32 same = __match_any_sync(FULL_WARP, fresh ? column : NO_COLUMN - lane_id());
    const bool leads = fresh && __ffs(same) - 1 == (int)lane_id();
    const u32 leaders = __ballot_sync(FULL_WARP, leads);
    __syncwarp();  // all have looked before one writes
    if (leads && count + votes_before(leaders) < quota) {
      atomicOr(&row.masked[word_of(column)], 1u << bit_of(column));
      if (row.grouped) leaders_of(row)[column] = wave.proposals[i / wave.stride * wave.stride];
    }
    count = min(quota, count + __popc(leaders));
    __syncwarp();
  }
  if (lane_id() == 0) {
    row.state->masked = count;
    row.state->listed = row.state->spare = 0;
  }
}

// Puts seeds and partners into `masked` until the quota is reached or no seed is left.
__device__ __forceinline__ void expand_seeds(const Batch& batch, const Row& row, const Genes& genes, const Graph& graph,
                                             const Wave& wave) {
  u32 count = 0;
  float yield = 1.0f + FIRST_YIELD * graph.max_partners;
  u64 low = 0;
  while (count < row.state->quota && low != LAST_KEY) {
    // Any bound is right; this one lists as many columns as may hold the seeds that the quota still needs.
    const float wanted = min((row.state->quota - count) / yield + WAVE_MARGIN, (float)wave.capacity);
    const float share = min(LISTED * wanted, 2 * WAVE_FILLING * wave.capacity) / row.state->n;
    const u64 width = share < 1.0f ? (u64)(share * 18446744073709551616.0f) : LAST_KEY;
    const u64 high = list_wave(row, wave, low, width < LAST_KEY - low ? low + width : LAST_KEY);
    look_up_seeds(batch, row, genes, graph, wave, row.state->listed);
    const u32 found = row.state->spare, expanded = min(found, (u32)wanted);
    low = expanded < found ? wave.seeds[wave.seeds[expanded].sorted].key : high;  // others are for the next wave
    expand_wave(row, genes, graph, wave, expanded);
    if (warp_id() == 0) accept_wave(row, wave, expanded, count);
    __syncthreads();
    if (expanded) yield = max(0.25f, (float)(row.state->masked - count) / expanded);
    count = row.state->masked;
  }
}

__device__ __forceinline__ void mask_row(const Batch& batch, const Graph& graphs, uint4* arena, u32 wave_capacity,
                                         i64 index) {
  const Row row = row_in_arena(batch, arena, index);
  Pool* pools = (Pool*)row.end;
  RankedWord* present = (RankedWord*)(pools + warp_count());
  const Genes genes = {present, row.own, (batch.vocab_size + 63) / 64 * 2};  // fill() takes two
  u64* listed = (u64*)(present + genes.words);
  Seed* seeds = (Seed*)(listed + 2 * wave_capacity);
  const Wave wave = {pools, listed, seeds, (u32*)(seeds + 2 * wave_capacity), wave_capacity, 1 + graphs.max_partners};

  clear_row(batch, row);
  fill((u32*)genes.present, 2 * genes.words, 0);
  fill(genes.position, row.width, NO_COLUMN);
  __syncthreads();
  read_row(batch, row, true, genes.present);
  draw_row(batch, row);
  Graph graph = graphs;
  const bool expands = row.state->quota && graph_of_row(batch, graph, index);
  if (expands) place_genes(row, genes);
  if (row.state->budget) draw_words(batch, row);
  if (expands) expand_seeds(batch, row, genes, graph, wave);
  finish_row(batch, row);
}

#define CORRMASK_PARAMETERS                                                                                            \
  GRAPH_PARAMETERS, const u32 *__restrict__ edge_costs, u32 max_partners, u32 wave_capacity
#define CORRMASK_GRAPH                                                                                                 \
  const Graph graph = {indptr, indptr_bytes, indices, graph_ids, n_graphs, max_partners, edge_costs}

extern "C" __global__ void FIVE_BLOCKS corrmask_i32(ROW_PARAMETERS(int), CORRMASK_PARAMETERS) {
  ROW_BATCH(false, false);
  CORRMASK_GRAPH;
  SHARED_ARENA(arena);
  mask_row(batch, graph, arena, wave_capacity, blockIdx.x);
}

extern "C" __global__ void FIVE_BLOCKS corrmask_i64(ROW_PARAMETERS(i64), CORRMASK_PARAMETERS) {
  ROW_BATCH(true, false);
  CORRMASK_GRAPH;
  SHARED_ARENA(arena);
  mask_row(batch, graph, arena, wave_capacity, blockIdx.x);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
corrmask_i32_scratch(ROW_PARAMETERS(int), CORRMASK_PARAMETERS, uint4* scratch, i64 scratch_size) {
  ROW_BATCH(false, false);
  CORRMASK_GRAPH;
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, graph, scratch + blockIdx.x * scratch_size, wave_capacity, index);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
corrmask_i64_scratch(ROW_PARAMETERS(i64), CORRMASK_PARAMETERS, uint4* scratch, i64 scratch_size) {
  ROW_BATCH(true, false);
  CORRMASK_GRAPH;
  for (i64 index = blockIdx.x; index < rows; index += gridDim.x)
    mask_row(batch, graph, scratch + blockIdx.x * scratch_size, wave_capacity, index);
}
