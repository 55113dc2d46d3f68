// Sampled cells as sparse columns of genes, and the exact ranks of each column (paper, appendix A.4, lines 3 to 13).
//
// Cells are cut into chunks, one for each block. What a chunk adds to a column begins where earlier chunks end:
//
//   column A    | chunk 0: cells 0 1 | chunk 1: cell 4 | chunk 2: cells 8 9 |
//   cursor            0                    2                 3                    of each chunk in each column
//
// so that columns are ascending in cell, whichever block runs first. In a chunk, a block takes one cell after the other:
// a gene stands once in a cell, and no two threads move the same cursor.
//
//   level = X + 1 = max_length − place of the gene in its cell        e = d + m, d = 2·rank − (n_cells + 1)
//
// Work split: block = chunk of cells, then block = column. CUDA version of kernels/ranks.py.
// Assumed: tokens in [0, vocab_size), none twice in a cell; sum of e² fits int64.

#include "level_ranks.cuh"

struct Cells {
  const i64* indptr;   // (n_cells + 1,)
  const void* tokens;  // uint16 or int32
  int token_bytes;
  u32 max_length;
  const int* column_of;  // (vocab_size,) column of a token, -1 where it was not kept
};

__device__ __forceinline__ u32 cell_length(const Cells& cells, i64 cell) {
  return (u32)min(cells.indptr[cell + 1] - cells.indptr[cell], (i64)cells.max_length);
}

__device__ __forceinline__ int column_at(const Cells& cells, i64 k) {
  return cells.column_of[cells.token_bytes == 2 ? ((const u16*)cells.tokens)[k] : ((const int*)cells.tokens)[k]];
}

// counts[chunk, column] (zeroed before): cells of the chunk that hold the column's gene. Warp = cell.
extern "C" __global__ void __launch_bounds__(1024, 1)
    count_columns(const i64* indptr, const void* tokens, int token_bytes, u32 max_length, const int* column_of,
                  i64 n_cells, i64 chunk_cells, i64 n_columns, u32* counts) {
  const Cells cells = {indptr, tokens, token_bytes, max_length, column_of};
  const i64 begin = blockIdx.x * chunk_cells, end = min(begin + chunk_cells, n_cells);
  u32* count = counts + blockIdx.x * n_columns;
  for (i64 cell = begin + warp_id(); cell < end; cell += warp_count()) {
    const u32 length = cell_length(cells, cell);
    for (u32 k = lane_id(); k < length; k += 32) {
      const int column = column_at(cells, indptr[cell] + k);
      if (column >= 0) atomicAdd(&count[column], 1u);
    }
  }
}

// Appends the chunk's cells to their columns, each at its own cursor[chunk, column], which moves on.
extern "C" __global__ void __launch_bounds__(1024, 1)
    fill_columns(const i64* indptr, const void* tokens, int token_bytes, u32 max_length, const int* column_of,
                 i64 n_cells, i64 chunk_cells, i64 n_columns, u32* cursors, const i64* column_indptr, int* column_cells,
                 u16* levels) {
  const Cells cells = {indptr, tokens, token_bytes, max_length, column_of};
  const i64 begin = blockIdx.x * chunk_cells, end = min(begin + chunk_cells, n_cells);
  u32* cursor = cursors + blockIdx.x * n_columns;
  for (i64 cell = begin; cell < end; ++cell) {
    const u32 length = cell_length(cells, cell);
    for (u32 k = threadIdx.x; k < length; k += blockDim.x) {
      const int column = column_at(cells, indptr[cell] + k);
      if (column < 0) continue;
      const i64 at = column_indptr[column] + cursor[column]++;
      column_cells[at] = (int)cell;
      levels[at] = (u16)(max_length - k);
    }
    __syncthreads();  // the next cell may hold the same genes
  }
}

struct Columns {
  const i64* indptr;
  const u16* levels;
  i64 n_cells;
  u32 max_length;
  u32* e;
  i64 *n_positive, *sum_squares;  // m, sum of d² = sum of e² − n_cells·m²
};

// `bins` (max_length + 1,) comes as it was left; a barrier at the end.
__device__ __forceinline__ void rank_column(const Columns& columns, i64 g, u32* bins, BlockSums* sums) {
  const i64 begin = columns.indptr[g], end = columns.indptr[g + 1];
  clear_bins(bins, columns.max_length + 1);
  __syncthreads();
  u32 n_last = 0;  // of level 1: X = 0, tied with absence
  for (i64 k = begin + threadIdx.x; k < end; k += blockDim.x) {
    const u32 level = columns.levels[k];
    if (level > 1) atomicAdd(&bins[level], 1u);
    else ++n_last;
  }
  const i64 m = end - begin - block_sum(n_last, sums->wide);
  const i64 squares = rank_bins(bins, columns.max_length + 1, columns.n_cells - m, sums);
  for (i64 k = begin + threadIdx.x; k < end; k += blockDim.x) {
    const u32 level = columns.levels[k];
    columns.e[k] = level > 1 ? bins[level] : 0;
  }
  if (threadIdx.x == 0) {
    columns.n_positive[g] = m;
    columns.sum_squares[g] = squares - columns.n_cells * m * m;
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    rank_columns(const i64* indptr, const u16* levels, i64 n_columns, i64 n_cells, u32 max_length, u32* e,
                 i64* n_positive, i64* sum_squares) {
  SHARED_ARENA(arena);
  BlockSums* sums = (BlockSums*)arena;
  const Columns columns = {indptr, levels, n_cells, max_length, e, n_positive, sum_squares};
  for (i64 g = blockIdx.x; g < n_columns; g += gridDim.x) rank_column(columns, g, (u32*)(sums + 1), sums);
}

// The same, with bins in device memory: (blocks, max_length + 1).
extern "C" __global__ void __launch_bounds__(1024, 1)
    rank_columns_scratch(const i64* indptr, const u16* levels, i64 n_columns, i64 n_cells, u32 max_length, u32* e,
                         i64* n_positive, i64* sum_squares, u32* scratch) {
  SHARED_ARENA(arena);
  const Columns columns = {indptr, levels, n_cells, max_length, e, n_positive, sum_squares};
  u32* bins = scratch + blockIdx.x * (max_length + 1ll);
  for (i64 g = blockIdx.x; g < n_columns; g += gridDim.x) rank_column(columns, g, bins, (BlockSums*)arena);
}
