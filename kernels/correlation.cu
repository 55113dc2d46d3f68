// What surrounds the float64 matrix product of all genes: its dense operands, and each gene's strongest partners.
//
//   dense (genes, cells of a chunk)      e of kernels/ranks.py, 0 where absent
//   sums  (genes of a strip, genes)      Σ e_u·e_v over all cells, exact: every partial sum is an integer < 2^53
//
//   Σ d_u·d_v = Σ e_u·e_v − n_cells · m_u · m_v        rho = Σ d_u·d_v / sqrt(Σ d_u² · Σ d_v²)
//
// Each pair u > v is looked at where it stands, in row u. Genes of the strip take their partners from rows, and then all
// genes theirs from columns:
//
//   genes v →    0 1 2 3 4 5
//   strip  u=3   r r r                r  gene 3 looks along its row: partners 0 1 2
//          u=4   r r r c              c  gene 3 looks down its column: partners 4 5
//          u=5   r r r c r
//
// A gene's list holds its strongest partners so far, in the order of (−|rho|, gene). Of a slice of candidates those that
// reach the list's weakest are found; each finds its place by counting who is stronger, in the list and among the found.
// No order of threads, slices or strips shows in the list.
//
//   list  9 7 4 2     found  3 8     →     9 8 7 4 | 3 2
//
// Work split: block = gene, thread = candidate. CUDA version of kernels/correlation.py.
// The _rn intrinsics round each operation on its own: no contraction, whatever the compiler's options.
// Assumed: no column of constant rank.

#include "block.cuh"

constexpr u32 SLICE = 1024;  // candidates looked at before their list is brought up to date

// dense[row, i] (zeroed before) = e of column columns[row] in cell first_cell + i; block = row.
extern "C" __global__ void __launch_bounds__(1024, 1)
    fill_dense(const i64* columns, const i64* indptr, const int* cells, const u32* e, i64 first_cell, i64 width,
               double* dense) {
  const i64 column = columns[blockIdx.x], end = indptr[column + 1];
  i64 low = indptr[column], high = end;  // the first of the chunk's cells, or of later ones
  while (low < high) {
    const i64 middle = low + (high - low) / 2;
    if (cells[middle] < first_cell) low = middle + 1;
    else high = middle;
  }
  double* row = dense + blockIdx.x * width;
  for (i64 k = low + threadIdx.x; k < end && cells[k] < first_cell + width; k += blockDim.x)
    row[cells[k] - first_cell] = e[k];
}

struct Found {
  double rho[SLICE];
  u32 gene[SLICE];
  u32 place[SLICE];  // in the new list
  u32 n, unused;
};

static_assert(sizeof(Found) == 16392, "corrmask_fast/graph/build/stages_cuda.py counts on it");

struct List {
  int* gene;    // (room,) the strongest partner first
  double* rho;  // (room,)
  u32 size, room;
};

__device__ __forceinline__ bool is_stronger(double rho, u32 gene, double other_rho, u32 other_gene) {
  const double strength = fabs(rho), other = fabs(other_rho);
  return strength > other || (strength == other && gene < other_gene);
}

// How many of the found are stronger.
__device__ __forceinline__ u32 stronger_found(const Found& found, double rho, u32 gene) {
  u32 count = 0;
#pragma unroll 4
  for (u32 i = 0; i < found.n; ++i) count += is_stronger(found.rho[i], found.gene[i], rho, gene);
  return count;
}

// How many of the list are stronger.
__device__ __forceinline__ u32 stronger_listed(const List& list, double rho, u32 gene) {
  u32 low = 0, high = list.size;
  while (low < high) {
    const u32 middle = (low + high) / 2;
    if (is_stronger(list.rho[middle], list.gene[middle], rho, gene)) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Lets the found into the list; who has no place any more falls off its end. A barrier at the end.
__device__ __forceinline__ void keep_found(List& list, Found& found) {
  for (u32 i = threadIdx.x; i < found.n; i += blockDim.x) {
    const double rho = found.rho[i];
    const u32 gene = found.gene[i];
    found.place[i] = stronger_found(found, rho, gene) + stronger_listed(list, rho, gene);
  }
  // From the end of the list: each entry moves back or stays, so that none overwrites one that was not read yet.
  for (u32 last = list.size; last != 0; last -= min(last, blockDim.x)) {
    const bool is_mine = threadIdx.x < last;
    const u32 i = is_mine ? last - 1 - threadIdx.x : 0;
    const double rho = list.rho[i];
    const u32 gene = list.gene[i], place = i + stronger_found(found, rho, gene);
    __syncthreads();
    if (!is_mine || place >= list.room) continue;
    list.rho[place] = rho;
    list.gene[place] = gene;
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < found.n; i += blockDim.x) {
    if (found.place[i] >= list.room) continue;
    list.rho[found.place[i]] = found.rho[i];
    list.gene[found.place[i]] = found.gene[i];
  }
  list.size = min(list.size + found.n, list.room);
  __syncthreads();
}

// by_column = 0: block b looks along row `first + b`; else down column b. `sums` (strip, stride) are float64, or int64 if
// `integers`. Sets *inexact if the product of a gene with itself is not what the ranks say.
extern "C" __global__ void __launch_bounds__(1024, 1)
    keep_strongest(const void* sums, int integers, i64 stride, int by_column, i64 first, i64 end, i64 n_cells,
                   const i64* n_positive, const double* sum_squares, u32 room, u32* n_kept, int* kept_gene,
                   double* kept_rho, double* reach, u32* inexact) {
  SHARED_ARENA(arena);
  Found& found = *(Found*)arena;
  const i64 gene = by_column ? blockIdx.x : first + blockIdx.x;
  const i64 partner_begin = by_column ? max(first, gene + 1) : 0, partner_end = by_column ? end : gene;
  const i64 at = by_column ? (partner_begin - first) * stride + gene : blockIdx.x * stride;  // of the first partner
  const i64 step = by_column ? stride : 1;
  const i64 n_cells_m = n_cells * n_positive[gene];
  const double squares = sum_squares[gene];
  List list = {kept_gene + gene * room, kept_rho + gene * room, n_kept[gene], room};
  double least = reach[gene];

  for (i64 begin = 0; begin < partner_end - partner_begin; begin += SLICE) {
    if (threadIdx.x == 0) found.n = 0;
    __syncthreads();
    for (i64 i = begin + threadIdx.x; i < min(begin + SLICE, partner_end - partner_begin); i += blockDim.x) {
      const i64 partner = partner_begin + i;
      const i64 sum = integers ? ((const i64*)sums)[at + i * step] : (i64)((const double*)sums)[at + i * step];
      const double product = (double)(sum - n_cells_m * n_positive[partner]);
      const double rho = __ddiv_rn(product, __dsqrt_rn(__dmul_rn(squares, sum_squares[partner])));
      if (fabs(rho) < least) continue;
      const u32 n = atomicAdd(&found.n, 1u);
      found.rho[n] = rho;
      found.gene[n] = (u32)partner;
    }
    __syncthreads();
    if (found.n) keep_found(list, found);
    if (list.size == list.room) least = fmax(least, fabs(list.rho[list.room - 1]));
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  if (partner_begin < partner_end) {  // else no barrier lies between here and who reads them
    n_kept[gene] = list.size;
    reach[gene] = least;
  }
  if (!by_column) {
    const i64 diagonal = at + gene;
    const i64 sum = integers ? ((const i64*)sums)[diagonal] : (i64)((const double*)sums)[diagonal];
    if ((double)(sum - n_cells_m * n_positive[gene]) != squares) *inexact = 1;
  }
}
