// Spearman's rho of two genes over the cells that hold both (appendix A.4, lines 22 to 26).
//
// The commoner gene of a pair lies as a dense column of levels (0 = absent); its partner's sparse column streams past:
//
//   common gene   level in every cell:    | 0 | 7 | 3 | 0 | 5 |
//   partner       cells 1 3 4, levels 2 6 6   →   overlap: (7, 2) (5, 6)
//
// Levels are counted over the overlap, for each gene in bins of its own, and the counts become ranks in place; then the
// partner streams past once more for the sum of products. n cells in the overlap: d = 2·below + count − n.
//
//   rho = sum d_u·d_v / sqrt(sum d_u² · sum d_v²), or 0 where either gene is constant over the overlap
//
// Work split: block = pair. CUDA version of kernels/overlap.py. The _rn intrinsics round each operation on its own: no
// contraction, whatever the compiler's options. Assumed: n³ / 3 fits int64.

#include "level_ranks.cuh"

// dense[row] (zeroed before) = levels of column columns[row]; block = row.
extern "C" __global__ void __launch_bounds__(1024, 1)
    fill_levels(const i64* columns, const i64* indptr, const int* cells, const u16* levels, i64 n_cells, u16* dense) {
  const i64 column = columns[blockIdx.x], end = indptr[column + 1];
  u16* row = dense + blockIdx.x * n_cells;
  for (i64 k = indptr[column] + threadIdx.x; k < end; k += blockDim.x) row[cells[k]] = levels[k];
}

struct Overlaps {
  const i64 *row, *partner;  // (n_pairs,) of the common gene in `dense`; column of the other
  i64 n_pairs;
  const i64* indptr;
  const int* cells;
  const u16* levels;
  const u16* dense;  // (rows, n_cells)
  i64 n_cells;
  u32 max_length;
  i64 min_cooccurrence;
  i64* overlap;
  double* rho;
};

// `bins_u`, `bins_v` (max_length + 1,) come as they were left; a barrier at the end.
__device__ __forceinline__ void correlate_overlap(const Overlaps& of, i64 pair, u32* bins_u, u32* bins_v,
                                                  BlockSums* sums) {
  const u32 n_bins = of.max_length + 1;
  const u16* level_u = of.dense + of.row[pair] * of.n_cells;
  const i64 begin = of.indptr[of.partner[pair]], end = of.indptr[of.partner[pair] + 1];
  clear_bins(bins_u, n_bins);
  clear_bins(bins_v, n_bins);
  __syncthreads();
  u32 seen = 0;
  for (i64 k = begin + threadIdx.x; k < end; k += blockDim.x) {
    const u32 level = level_u[of.cells[k]];
    if (level == 0) continue;
    atomicAdd(&bins_u[level], 1u);
    atomicAdd(&bins_v[of.levels[k]], 1u);
    ++seen;
  }
  const i64 n = block_sum(seen, sums->wide);
  double rho = 0;
  if (n >= of.min_cooccurrence) {  // the same for all threads
    const i64 squares_u = rank_bins(bins_u, n_bins, -n, sums), squares_v = rank_bins(bins_v, n_bins, -n, sums);
    i64 product = 0;
    for (i64 k = begin + threadIdx.x; k < end; k += blockDim.x) {
      const u32 level = level_u[of.cells[k]];
      if (level != 0) product += (i64)(int)bins_u[level] * (int)bins_v[of.levels[k]];
    }
    product = block_sum(product, sums->wide);
    if (squares_u > 0 && squares_v > 0)
      rho = __ddiv_rn((double)product, __dsqrt_rn(__dmul_rn((double)squares_u, (double)squares_v)));
  }
  if (threadIdx.x == 0) {
    of.overlap[pair] = n;
    of.rho[pair] = rho;
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    correlate_overlaps(const i64* row, const i64* partner, i64 n_pairs, const i64* indptr, const int* cells,
                       const u16* levels, const u16* dense, i64 n_cells, u32 max_length, i64 min_cooccurrence,
                       i64* overlap, double* rho) {
  SHARED_ARENA(arena);
  BlockSums* sums = (BlockSums*)arena;
  u32* bins = (u32*)(sums + 1);
  const Overlaps of = {row,   partner, n_pairs,    indptr,           cells,   levels,
                       dense, n_cells, max_length, min_cooccurrence, overlap, rho};
  for (i64 pair = blockIdx.x; pair < n_pairs; pair += gridDim.x)
    correlate_overlap(of, pair, bins, bins + max_length + 1, sums);
}

// The same, with bins in device memory: (blocks, 2, max_length + 1).
extern "C" __global__ void __launch_bounds__(1024, 1)
    correlate_overlaps_scratch(const i64* row, const i64* partner, i64 n_pairs, const i64* indptr, const int* cells,
                               const u16* levels, const u16* dense, i64 n_cells, u32 max_length, i64 min_cooccurrence,
                               i64* overlap, double* rho, u32* scratch) {
  SHARED_ARENA(arena);
  u32* bins = scratch + 2 * blockIdx.x * (max_length + 1ll);
  const Overlaps of = {row,   partner, n_pairs,    indptr,           cells,   levels,
                       dense, n_cells, max_length, min_cooccurrence, overlap, rho};
  for (i64 pair = blockIdx.x; pair < n_pairs; pair += gridDim.x)
    correlate_overlap(of, pair, bins, bins + max_length + 1, (BlockSums*)arena);
}
