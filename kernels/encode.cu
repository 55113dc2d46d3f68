// Rank-value encoding on the device (SPEC 7). CUDA version of kernels/encode.py.
//
//   value = ((count / total) * target_sum) / median          float64, each operation rounded by itself
//
//   entry of a cell     count c0 c1 c2 …       key   all ones less the bits of the value: the largest value is the least
//                                              token where there is none: ABSENT, after all others
//   in order            by key, then token     a bitonic network that takes any number of entries
//
// Where several entries are of one gene, the entries are put in order by (token, place) first, and the first of each
// gene adds them up. A cell that the CPU would refuse is only marked: the host lets the CPU say what is wrong.
//
// Work split: encode_rows: a block a cell, whose keys and tokens lie in shared memory if `capacity` entries are enough,
// else in device memory. pad_rows: a block a row of the batch, once the host knows how wide it is.
// Assumed: n_columns, tokens and the entries of a cell are below 2^31.

#include "block.cuh"

constexpr u64 NO_KEY = ~0ull;
constexpr u32 ABSENT = 0xFFFFFFFFu;
constexpr int NOT_COUNTED = -2;       // token of a column that is no part of a cell's total; -1: it is, and has no token
constexpr double SMALL = 2147483648;  // whole counts below this add up exactly, in any order
constexpr double LARGEST = 1.7976931348623157e308;  // that is finite

// What the threads of a block add up together; it lies at the beginning of the arena.
struct EncodeState {
  i64 sums[MAX_WARPS];
  double total;
  i64 spare;
};
static_assert(sizeof(EncodeState) == 272, "corrmask_fast/cells/encode_device.py counts on it");

// The entries that are sorted; both arrays may lie in shared or in device memory.
struct Entries {
  u64* key;
  u32* token;
  u32 n;
};

__device__ __forceinline__ void exchange(const Entries& e, u32 a, u32 b) {
  const u64 key_a = e.key[a], key_b = e.key[b];
  const u32 token_a = e.token[a], token_b = e.token[b];
  if (key_b > key_a || (key_b == key_a && token_b >= token_a)) return;
  e.key[a] = key_b, e.token[a] = token_b;
  e.key[b] = key_a, e.token[b] = token_a;
}

// Puts the entries in order. The lower place always gets the lesser, so what lies beyond n, as if greatest, stays there.
__device__ __forceinline__ void sort_entries(const Entries& e) {
  u32 size = 1;
  while (size < e.n) size <<= 1;
  __syncthreads();  // the entries are written
#pragma unroll 1
  for (u32 run = 2; run <= size; run <<= 1) {
#pragma unroll 1
    for (u32 stride = run >> 1; stride; stride >>= 1) {
      const bool mirrored = stride == run >> 1;  // the first step of a merge compares a run's ends
#pragma unroll 1
      for (u32 t = threadIdx.x; t < size >> 1; t += blockDim.x) {
        const u32 a = t / stride * 2 * stride + t % stride;
        const u32 b = mirrored ? t / stride * run + run - 1 - t % stride : a + stride;
        if (b < e.n) exchange(e, a, b);
      }
      __syncthreads();
    }
  }
}

__device__ __forceinline__ u64 key_of(double count, double total, double target_sum, double median) {
  return ~(u64)__double_as_longlong(__ddiv_rn(__dmul_rn(__ddiv_rn(count, total), target_sum), median));
}

extern "C" __global__ void __launch_bounds__(1024)
    encode_rows(const i64* indptr, const i64* columns, const double* counts, i64 n_columns, const int* token_of_column,
                const double* median_of_token, i64 once, double target_sum, const double* totals, i64 fractional,
                i64 capacity, i64 n_entries, u64* keys, u32* tokens, i64* found, i64* faulty) {
  SHARED_ARENA(arena);
  EncodeState* state = (EncodeState*)arena;
  const i64 row = blockIdx.x, begin = indptr[row];
  const u32 n = (u32)(indptr[row + 1] - begin);
  const bool in_shared = n <= capacity;
  Entries e = {in_shared ? (u64*)(state + 1) : keys + begin, tokens + begin, n};
  if (in_shared) e.token = (u32*)(e.key + capacity);
  u64* sums = keys + n_entries + begin;  // bits of the values of summed genes
  columns += begin, counts += begin;

  bool bad = false, exact = true, rising = true;
  i64 whole = 0;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
    const i64 column = columns[i];
    const double count = counts[i];
    if (column < 0 || column >= n_columns) {
      bad = true;
      break;
    }
    rising &= i == 0 || column > columns[i - 1];
    if (token_of_column[column] == NOT_COUNTED) continue;
    const bool fits = count >= 0 && count < SMALL && count == (double)(i64)count;
    bad |= !(count >= 0 && count <= LARGEST) || (!fractional && count != floor(count));
    exact &= fits;
    whole += fits ? (i64)count : 0;
  }
  bad = __syncthreads_or(bad);
  exact = __syncthreads_and(exact);
  const bool plain = __syncthreads_and(rising) && once;
  whole = block_sum(whole, state->sums);
  if (threadIdx.x == 0) {
    double total = (double)whole;
    if (!exact && !bad) {  // in the order in which the entries are stored
      total = 0;
#pragma unroll 1
      for (u32 i = 0; i < n; ++i)
        if (token_of_column[columns[i]] != NOT_COUNTED) total += counts[i];
    }
    if (totals && total > 0) total = totals[row] > 0 ? totals[row] : -1;
    state->total = total;
  }
  __syncthreads();
  const double total = state->total;
  if (bad || !(total >= 0 && total <= LARGEST)) {
    if (threadIdx.x == 0) found[row] = 0, faulty[row] = 1;
    return;
  }

  i64 present = 0;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
    const int token = token_of_column[columns[i]];
    const bool counts_here = token >= 0 && counts[i] > 0;
    if (plain) {
      e.key[i] = counts_here ? key_of(counts[i], total, target_sum, median_of_token[token]) : NO_KEY;
      e.token[i] = counts_here ? (u32)token : ABSENT;
      present += counts_here;
    } else {
      e.key[i] = counts_here ? (u64)token << 32 | i : NO_KEY;
      e.token[i] = 0;
    }
  }
  if (!plain) {
    sort_entries(e);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
      const u32 token = (u32)(e.key[i] >> 32);
      sums[i] = NO_KEY;
      e.token[i] = ABSENT;
      if (e.key[i] == NO_KEY || (i && (u32)(e.key[i - 1] >> 32) == token)) continue;
      double sum = 0;
#pragma unroll 1
      for (u32 j = i; j < n && (u32)(e.key[j] >> 32) == token && e.key[j] != NO_KEY; ++j) sum += counts[(u32)e.key[j]];
      sums[i] = key_of(sum, total, target_sum, median_of_token[token]);
      e.token[i] = token;
      ++present;
    }
    __syncthreads();  // all sums are made of the keys
#pragma unroll 1
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) e.key[i] = sums[i];
  }
  present = block_sum(present, state->sums);
  sort_entries(e);
  if (in_shared)
#pragma unroll 1
    for (u32 i = threadIdx.x; i < (u32)present; i += blockDim.x) tokens[begin + i] = e.token[i];
  if (threadIdx.x == 0) found[row] = present, faulty[row] = 0;
}

// Writes rows of `width` columns: cls and eos (-1: none) around the first `limit` tokens of each cell, then padding.
extern "C" __global__ void __launch_bounds__(1024)
    pad_rows(const i64* indptr, const u32* tokens, const i64* found, i64 limit, i64 width, i64 pad, i64 cls, i64 eos,
             i64* input_ids, i64* attention_mask) {
  const i64 row = blockIdx.x, before = cls >= 0;
  const i64 genes = min(found[row], limit), end = before + genes + (eos >= 0);
  tokens += indptr[row];
  input_ids += row * width;
  attention_mask += row * width;
  for (i64 c = threadIdx.x; c < width; c += blockDim.x) {
    i64 token = c < end ? eos : pad;
    if (c < before) token = cls;
    else if (c < before + genes) token = tokens[c - before];
    input_ids[c] = token;
    attention_mask[c] = c < end;
  }
}
