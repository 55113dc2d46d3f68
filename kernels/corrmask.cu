// CorrMask: correlated genes of a cell are masked together (Hacohen et al. 2026, Algorithm 2; SPEC 4).
//
//   seeds      columns whose gene has neighbours, in random order (w0, column)
//   partners   of a seed: its neighbours in the cell, the max_partners first by (key, j); neighbour j of the CSR row
//              has the key words(seed, draw, column, 1 + j div 4)[j mod 4], or where edges have costs race_key of it
//   masked     the quota Q = floor(B·λ) of columns first hit in the order  seed, its partners, seed, its partners, …;
//              then a random top-up to B = floor(n·p)
//
// Work split: block = row, a wave of seeds at a time; eight lanes = seed, each takes four neighbours at a time, since one
// Philox block has the keys of four; warp 0 = the order of first hits.
// Partners do not depend on what is masked already, so the seeds of a wave are expanded in any order, and a wave may be
// longer than needed: the quota cuts it.
// CUDA version of kernels/corrmask.py. Assumed: see rows.cuh and graph.cuh.

#include "graph.cuh"

constexpr u64 LAST_KEY = ~0ull;
constexpr u32 NO_NEIGHBOUR = 0xFFFFFFFFu;
constexpr u32 TEAM = 8;                // lanes that expand a seed
constexpr u32 KEPT = 4;                // neighbours that a lane keeps: few seeds choose more of them from one lane
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

static_assert(sizeof(Seed) == 24, "engine/device.py counts on it");

struct Wave {
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

// Of the neighbours in the cell that a lane looks at: the first by (key, j), in this order.
struct Candidates {
  u32 key[KEPT], j[KEPT];  // NO_NEIGHBOUR after the last one
  u32 count;               // of all, kept or not
};

// Puts neighbour j in its place if it is `open`. Called with falling j: of equal keys, that of the later call comes first.
__device__ __forceinline__ void insert(Candidates& all, bool open, u32 key, u32 j) {
  if (!open) key = 0xFFFFFFFFu;
  all.count += open;
#pragma unroll
  for (u32 i = KEPT - 1; i > 0; --i) {
    const bool here = open & (key <= all.key[i]), earlier = open & (key <= all.key[i - 1]);
    all.j[i] = earlier ? all.j[i - 1] : here ? j : all.j[i];
    all.key[i] = min(all.key[i], max(all.key[i - 1], key));
  }
  all.j[0] = open & (key <= all.key[0]) ? j : all.j[0];
  all.key[0] = min(all.key[0], key);
}

// Finds a lane's candidates. It takes a run of neighbours, so that lanes stand in the order of j. If `again`, those up to
// `last` are partners already.
__device__ __forceinline__ void keep_candidates(const Row& row, const Genes& genes, const Graph& graph, const Seed& seed,
                                                u32 degree, bool again, const u64& last, Candidates& all) {
  const u32 blocks = (degree + 4 * TEAM - 1) / (4 * TEAM), first = lane_id() % TEAM * blocks;
#pragma unroll
  for (u32 i = 0; i < KEPT; ++i) all.key[i] = all.j[i] = NO_NEIGHBOUR;
  all.count = 0;
#pragma unroll 1
  for (u32 block = first + blocks; block-- > first;) {
    const int* neighbours = graph.indices + seed.begin + 4 * block;
    bool open[4];
    asm volatile("" ::: "memory");  // the draw is read again: its twenty round keys would stay in registers
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 gene = 4 * block + i < degree ? neighbours[i] : 0;
      open[i] = (4 * block + i < degree) & has_bit(genes.present[gene >> 5].bits, gene);
    }
    const uint4 w = row_words(row, (u32)seed.key, 1 + block);
    u32 key[4] = {w.x, w.y, w.z, w.w};
    if (graph.edge_costs) {
#pragma unroll
      for (u32 i = 0; i < 4; ++i)
        if (open[i]) key[i] = race_key(key[i], graph.edge_costs[seed.begin + 4 * block + i]);
    }
    if (again) {
#pragma unroll
      for (u32 i = 0; i < 4; ++i) open[i] &= ((u64)key[i] << 32 | (4 * block + i)) > last;
    }
#pragma unroll
    for (u32 i = 4; i-- > 0;) insert(all, open[i], key[i], 4 * block + i);
  }
}

// Writes the seed's partners to out[0 … max_partners), NO_COLUMN after them. A lane that has no candidate left, but had more
// than it kept, makes its team look again. For a team; the teams of a warp call it together, also one without a seed.
__device__ __forceinline__ void choose_partners(const Row& row, const Genes& genes, const Graph& graph,
                                                const Seed& seed, bool has_seed, u64& last, u32* out) {
  const u32 team = ((1u << TEAM) - 1) << (lane_id() / TEAM * TEAM);
  u32 chosen = 0, degree = has_seed ? seed.degree : 0;
  do {
    Candidates all;
    keep_candidates(row, genes, graph, seed, degree, chosen, last, all);
    bool goes, blocked;
    do {  // the first of the team's candidates
      __syncwarp();  // `last` has been read, or written by another lane
      u32 least = all.key[0];
#pragma unroll
      for (u32 d = TEAM / 2; d; d >>= 1) least = min(least, __shfl_xor_sync(FULL_WARP, least, d));
      const bool any = all.j[0] != NO_NEIGHBOUR;
      const u32 equal = __ballot_sync(FULL_WARP, any && all.key[0] == least) & team;
      blocked = __ballot_sync(FULL_WARP, !any && all.count > KEPT) & team;  // its next one was not kept
      goes = equal && !blocked && chosen < graph.max_partners;
      if (goes && (equal & (0u - equal)) == 1u << lane_id()) {
        out[chosen] = all.j[0];
        last = (u64)least << 32 | all.j[0];
#pragma unroll
        for (u32 i = 0; i + 1 < KEPT; ++i) all.key[i] = all.key[i + 1], all.j[i] = all.j[i + 1];
        all.key[KEPT - 1] = all.j[KEPT - 1] = NO_NEIGHBOUR;
      }
      chosen += goes;
    } while (__any_sync(FULL_WARP, goes && chosen < graph.max_partners));
    __syncwarp();
    if (!blocked || chosen == graph.max_partners) degree = 0;
  } while (__any_sync(FULL_WARP, degree != 0));
  for (u32 i = lane_id() % TEAM; has_seed && i < graph.max_partners; i += TEAM)
    out[i] = i < chosen ? column_of(genes, graph.indices[seed.begin + out[i]]) : NO_COLUMN;
}

__device__ __forceinline__ void expand_wave(const Row& row, const Genes& genes, const Graph& graph, const Wave& wave,
                                            u32 expanded) {
  for (u32 first = 32 / TEAM * warp_id(); first < expanded; first += blockDim.x / TEAM) {
    const u32 i = first + lane_id() / TEAM;
    const Seed& seed = wave.seeds[wave.seeds[min(i, expanded - 1)].sorted];  // read where it is needed: registers are short
    u32* proposals = wave.proposals + i * wave.stride;
    if (i < expanded && lane_id() % TEAM == 0) proposals[0] = (u32)seed.key;
    choose_partners(row, genes, graph, seed, i < expanded, wave.listed[i], proposals + 1);
  }
  __syncthreads();
}

// Adds the proposed columns in their order, each once, while fewer than the quota are in. For warp 0.
__device__ __forceinline__ void accept_wave(const Row& row, const Wave& wave, u32 expanded) {
  const u32 proposed = expanded * wave.stride, quota = row.state->quota, before = row.state->masked;
  u32 count = before;
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
    if (expanded) row.state->yield = max(0.25f, (float)(count - before) / expanded);
    row.state->masked = count;
    row.state->listed = row.state->spare = 0;
  }
}

// Puts seeds and partners into `masked` until the quota is reached or no seed is left.
__device__ __forceinline__ void expand_seeds(const Batch& batch, const Row& row, const Genes& genes, const Graph& graph,
                                             const Wave& wave) {
  u64 low = 0;
  while (row.state->masked < row.state->quota && low != LAST_KEY) {
    // Any bound is right; this one lists as many columns as may hold the seeds that the quota still needs.
    const float wanted = min((row.state->quota - row.state->masked) / row.state->yield + WAVE_MARGIN, (float)wave.capacity);
    const float share = min(LISTED * wanted, 2 * WAVE_FILLING * wave.capacity) / row.state->n;
    const u64 width = share < 1.0f ? (u64)(share * 18446744073709551616.0f) : LAST_KEY;
    const u64 high = list_wave(row, wave, low, width < LAST_KEY - low ? low + width : LAST_KEY);
    look_up_seeds(batch, row, genes, graph, wave, row.state->listed);
    const u32 found = row.state->spare, expanded = min(found, (u32)wanted);
    low = expanded < found ? wave.seeds[wave.seeds[expanded].sorted].key : high;  // others are for the next wave
    expand_wave(row, genes, graph, wave, expanded);
    if (warp_id() == 0) accept_wave(row, wave, expanded);
    __syncthreads();
  }
}

__device__ __forceinline__ void mask_row(const Batch& batch, const Graph& graphs, uint4* arena, u32 wave_capacity,
                                         i64 index) {
  const Row row = row_in_arena(batch, arena, index);
  RankedWord* present = (RankedWord*)row.end;
  const Genes genes = {present, row.own, (batch.vocab_size + 63) / 64 * 2};  // fill() takes two
  u64* listed = (u64*)(present + genes.words);
  Seed* seeds = (Seed*)(listed + 2 * wave_capacity);
  const Wave wave = {listed, seeds, (u32*)(seeds + 2 * wave_capacity), wave_capacity, 1 + graphs.max_partners};

  clear_row(batch, row);
  if (threadIdx.x == 0) row.state->yield = 1.0f + FIRST_YIELD * graphs.max_partners;
  fill((u32*)genes.present, 2 * genes.words, 0);
  fill(genes.position, row.width, NO_COLUMN);
  __syncthreads();
  read_row(batch, row, true, genes.present);
  draw_row(batch, row);
  Graph graph = graphs;
  const bool expands = row.state->quota && graph_of_row(batch, graph, index);
  if (expands) place_genes(row, genes);
  if (row.state->budget) draw_words(batch, row, true);
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
