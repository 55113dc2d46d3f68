// What strategies that go by a dependency graph share: the row's graph, and where its genes stand in the row.
//
// Present genes: one bit a gene of the vocabulary, and for each present one its first maskable column:
//
//   gene       0 1 2 3 4 5 6 7 …     present   0 0 1 0 0 1 0 1        before (of a word of them)  0
//   position   by rank of its bit              [ 4,    0,  2 ]        gene 5 has rank 1: column 0
//
// Assumed: see rows.cuh; neighbours in [0, vocab_size).

#include "rows.cuh"

constexpr u32 NO_COLUMN = 0xFFFFFFFFu;

struct Graph {
  const void* indptr;  // (vocab_size + 1,) int32 or int64; of several graphs one after the other
  int indptr_bytes;    // of one element
  const int* indices;
  const i64* graph_ids;  // (rows,) which graph a row goes by, or null: the first
  u32 n_graphs;
  u32 max_partners;       // where seeds are expanded
  const u32* edge_costs;  // like `indices`, or null: where partners have weights
};

struct Genes {
  RankedWord* present;  // (words,) one bit a token of the vocabulary
  u32* position;        // by rank
  u32 words;
};

// The first maskable column of each gene. A token is read by the thread that will draw the words of its pair: no
// barrier at the end.
__device__ __forceinline__ void place_genes(const Row& row, const Genes& genes) {
  rank_words(genes.present, genes.words, row.state->warp_sums);
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
    const uint2 token = pair_of(row.token, c);
    if (token.x < STRAY_TOKEN) atomicMin(&genes.position[rank_in(genes.present[token.x >> 5], token.x)], c);
    if (token.y < STRAY_TOKEN) atomicMin(&genes.position[rank_in(genes.present[token.y >> 5], token.y)], c + 1);
  }
}

__device__ __forceinline__ u32 column_of(const Genes& genes, u32 gene) {
  const RankedWord word = genes.present[gene >> 5];
  return has_bit(word.bits, gene) ? genes.position[rank_in(word, gene)] : NO_COLUMN;
}

__device__ __forceinline__ i64 neighbours_begin(const Graph& graph, i64 gene) {
  return graph.indptr_bytes == 8 ? ((const i64*)graph.indptr)[gene] : ((const int*)graph.indptr)[gene];
}

// The graph that a row goes by; false where its number is none's.
__device__ __forceinline__ bool graph_of_row(const Batch& batch, Graph& graph, i64 index) {
  if (!graph.graph_ids) return true;
  const u64 id = graph.graph_ids[index];
  if (id >= graph.n_graphs) return false;
  graph.indptr = (const u8*)graph.indptr + id * (batch.vocab_size + 1ull) * graph.indptr_bytes;
  return true;
}

#define GRAPH_PARAMETERS                                                                                               \
  const void *__restrict__ indptr, int indptr_bytes, const int *__restrict__ indices,                                  \
      const i64 *__restrict__ graph_ids, u32 n_graphs
