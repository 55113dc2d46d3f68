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
// A gene's list holds its strongest partners so far, by (−|rho|, gene): a set, in any order. Of a slice of candidates
// those that reach the list's weakest are found; then the k-th of both together is searched bit by bit, and who stays
// takes the place of who leaves. No order of threads, slices or strips shows in the set.
//
// Work split: block = gene, thread = candidate. Twin of kernels/correlation.py. The _rn intrinsics round each operation
// on its own: no contraction, whatever the compiler's options. Assumed: no column of constant rank.

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
  u32 slot[SLICE];      // places of the list that become free
  u32 votes[3];         // of count_strong: of this step, of the next, of the one before
  u32 n, slots, taken;  // candidates found; free places, and how many of them are taken again
};

static_assert(sizeof(Found) == 16408, "corrmask_fast/graph_stages_cuda.py counts on it");

struct List {
  int* gene;    // (room,)
  double* rho;  // (room,)
  u32 size, room;
};

// Where the last that stays stands: |rho| above `strength`, or equal and a gene up to `gene`.
struct Bar {
  u64 strength;  // the bits of |rho|, which have its order
  u32 gene;
};

constexpr u32 ANY_GENE = 0xFFFFFFFFu;

__device__ __forceinline__ bool stays(double rho, u32 gene, Bar bar) {
  const u64 strength = (u64)__double_as_longlong(fabs(rho));
  return strength > bar.strength || (strength == bar.strength && gene <= bar.gene);
}

// How many of the list and of the found pass the bar. `step` counts the calls, from 0.
__device__ __forceinline__ u32 count_strong(const List& list, Found& found, Bar bar, u32 step) {
  u32 count = 0;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < list.size; i += blockDim.x) count += stays(list.rho[i], list.gene[i], bar);
#pragma unroll 1
  for (u32 i = threadIdx.x; i < found.n; i += blockDim.x) count += stays(found.rho[i], found.gene[i], bar);
  for (int d = 16; d; d >>= 1) count += __shfl_xor_sync(FULL_WARP, count, d);
  if (lane_id() == 0) atomicAdd(&found.votes[step % 3], count);
  if (threadIdx.x == 0) found.votes[(step + 1) % 3] = 0;  // all have read it: two steps ago, before the last barrier
  __syncthreads();
  return found.votes[step % 3];
}

// The bar that exactly list.room of the list and the found pass; there are no fewer.
__device__ __forceinline__ Bar find_bar(const List& list, Found& found) {
  Bar bar = {0, ANY_GENE};
  u32 step = 0;
#pragma unroll 1
  for (int bit = 61; bit >= 0; --bit) {  // |rho| < 2: the two highest bits are 0
    const u64 higher = bar.strength | 1ull << bit;
    if (count_strong(list, found, {higher, ANY_GENE}, step++) >= list.room) bar.strength = higher;
  }
  if (count_strong(list, found, bar, step++) == list.room) return bar;
  bar.gene = 0;
#pragma unroll 1
  for (int bit = 31; bit >= 0; --bit) {
    const u32 higher = bar.gene | 1u << bit;
    if (count_strong(list, found, {bar.strength, higher - 1}, step++) < list.room) bar.gene = higher;
  }
  return bar;
}

// Lets the found into the list. Returns the least |rho| that may still enter, 0 while there is room.
__device__ __forceinline__ double keep_found(List& list, Found& found) {
  if (list.size + found.n < list.room) {
    for (u32 i = threadIdx.x; i < found.n; i += blockDim.x) {
      list.gene[list.size + i] = found.gene[i];
      list.rho[list.size + i] = found.rho[i];
    }
    list.size += found.n;
    return 0;
  }
  const Bar bar = find_bar(list, found);
  for (u32 i = threadIdx.x; i < list.room; i += blockDim.x)
    if (i >= list.size || !stays(list.rho[i], list.gene[i], bar)) found.slot[atomicAdd(&found.slots, 1u)] = i;
  __syncthreads();
  for (u32 i = threadIdx.x; i < found.n; i += blockDim.x) {
    if (!stays(found.rho[i], found.gene[i], bar)) continue;
    const u32 slot = found.slot[atomicAdd(&found.taken, 1u)];
    list.gene[slot] = found.gene[i];
    list.rho[slot] = found.rho[i];
  }
  list.size = list.room;
  return __longlong_as_double((i64)bar.strength);
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
    if (threadIdx.x == 0) found.n = found.slots = found.taken = found.votes[0] = 0;
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
    if (found.n) least = fmax(least, keep_found(list, found));
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
