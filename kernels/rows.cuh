// What every masking strategy shares on the device: a row's columns, its draw, the random words, the top-up, the
// replacement (SPEC 3 and 4). CUDA version of kernels/rows.py.
//
//   column c        0    1    2    3    4     5    6           input_ids, labels, masked_positions
//                 <pad> <pad> G7   G3  <cls>  G7  <pad>
//   c − first                 0    1    2     3                what random words count from: padding changes nothing
//   maskable        0    0    1    1    0     1    0           one bit a column
//   masked          0    0    0    1    0     1    0
//
//   columns         0  1 | 2  3 | 4  5 | …  62 63 | 64 65 | …       a lane takes a pair: half the loads and addresses
//   lane             0      1      2          31      0
//   bit of word 0   0      1      2         31                      so the bits of 64 columns lie in two words:
//   bit of word 1      0      1      2         31                   one of the even columns, one of the odd ones
//
// Work split: one block a row, a multiple of 32 threads; a thread takes the pairs tid, tid + threads, …, so that no two
// warps write one word of bits between two barriers, except by atomics.
// Every function here is called by the whole block, with equal arguments, unless it says otherwise. What one function
// writes, others may read: the __syncthreads() stands inside the function that writes, unless it says otherwise.
//
// Assumed: columns and vocabulary below 2^31; the arena as large as engine/device.py computes it.

#include "weights.cuh"

constexpr u32 NO_TOKEN = 0xFFFFFFFFu;     // in Row::token: the column is not maskable
constexpr u32 STRAY_TOKEN = 0xFFFFFFFEu;  // maskable, but no token of the vocabulary: a gene without neighbours
constexpr u32 KEEP_TOKEN = 0xFFFFFFFFu;   // in Row::replacement: masked, yet left as it is (the last 10 %)
constexpr u32 RADIX_BITS = 8, RADIX = 1 << RADIX_BITS;
constexpr u32 MAX_TIES = 32;  // what the radix may leave open: one lane each
constexpr u32 RATE_COLUMN = 0xFFFFFFFEu;  // the column that a row's own rates are drawn from
enum DrawMode { GIVEN = 0, COUNTED = 1, CONTENT = 2 };

// What the host passes for a whole batch.
struct Batch {
  const void* input_ids;               // (rows, columns) int32 or int64
  bool wide;                           // int64
  const void* attention_mask;          // (rows, columns) or null; nonzero = not padding
  const void* special_tokens_mask;     // (rows, columns) or null; nonzero = protected
  int attention_bytes, special_bytes;  // of one element: 1, 4 or 8
  i64 rows;
  u32 columns;
  const i64* draws;  // GIVEN: (rows,) draw ids; COUNTED: a counter; CONTENT: a salt
  int draw_mode;
  u64 draw_offset;  // COUNTED: added to the counter
  const u64* seed;
  const double* rates;  // the ends of p, then of λ; a row draws its own between ends that differ
  const u32* costs;       // (vocab_size + 1,) or null: of tokens, then of one of no vocabulary, where they have weights
  const i64* priorities;  // (rows, columns) or null: in place of w0, or of w1 where `ranks_top_up` says so
  bool ranks_top_up;
  bool grouped;  // a group's columns are replaced as its first one would be
  u32 vocab_size, gene_lo, gene_hi, pad_token, mask_token;
  u64 mask_below, random_below;  // 2^32 · probability
  void* out_ids;                 // as input_ids
  i64* labels;                   // (rows, columns)
  i64* masked_positions;         // (rows, max_masked)
  i64 max_masked;
};

// What all threads of a block know of their row. It lies in the arena, since registers are what limits how many rows
// a multiprocessor works on at a time.
struct alignas(16) RowState {
  u64 seed, draw, content;
  u64 ties[MAX_TIES];
  u32 first;                // the first column that is not padding
  u32 n;                    // maskable columns
  u32 budget, quota;        // columns to be masked, and those of them that the strategy chooses
  u32 listed;               // entries of a list that is being made
  u32 masked;               // columns masked by the strategy
  u32 bin, before, inside;  // of the histogram
  u32 spare;                // the strategy's
  float yield;              // columns that a seed gene is expected to add
  u32 paired;               // whether every pair of columns can be loaded and stored at once
  u32 warp_sums[MAX_WARPS];
  u32 histogram[RADIX];
};
static_assert(sizeof(RowState) == 1488, "engine/device.py counts on it");

// A row: its arrays in the arena. Those that share memory live in turn.
struct Row {
  RowState* state;
  u32* token;        // (width,) of maskable columns …
  u32* w0;           // … then the first random word …
  u32* masked_list;  // … then the masked columns, ascending
  u32* w1;           // (width,) the second random word …
  u32* replacement;  // … then the token that a masked column gets
  u32* own;          // (width,) the strategy's
  bool grouped;      // whether there is `leaders_of`
  u32* maskable;     // (words,) bits
  u32* masked;       // (words,) bits
  u32* end;          // after all these, at a multiple of 16 bytes: what a strategy needs beyond them
  u32 words, width;  // of bits; columns, rounded up to a multiple of 64
  i64 index, start;  // of the row in the batch, and of its columns
};

// Where the bit of a column lies.
__device__ __forceinline__ u32 word_of(u32 column) { return column >> 6 << 1 | (column & 1); }
__device__ __forceinline__ u32 bit_of(u32 column) { return column >> 1 & 31; }
// Both words of a pair of columns c, c + 1 at once, or both values.
__device__ __forceinline__ uint2 pair_of(const u32* values, u32 i) { return *(const uint2*)(values + i); }
__device__ __forceinline__ void set_pair(u32* values, u32 i, u32 x, u32 y) { *(uint2*)(values + i) = make_uint2(x, y); }

__device__ __forceinline__ i64 input_token(const Batch& batch, i64 index) {
  return batch.wide ? ((const i64*)batch.input_ids)[index] : ((const int*)batch.input_ids)[index];
}

// The tokens of columns c and c + 1; <pad> after the last column.
__device__ __forceinline__ void input_pair(const Batch& batch, const Row& row, bool paired, u32 c, i64 (&token)[2]) {
  token[0] = token[1] = batch.pad_token;
  if (paired && batch.wide && c < batch.columns) {
    const longlong2 pair = *(const longlong2*)((const i64*)batch.input_ids + row.start + c);
    token[0] = pair.x, token[1] = pair.y;
  } else if (paired && c < batch.columns) {
    const int2 pair = *(const int2*)((const int*)batch.input_ids + row.start + c);
    token[0] = pair.x, token[1] = pair.y;
  } else {
#pragma unroll
    for (u32 k = 0; k < 2; ++k)
      if (c + k < batch.columns) token[k] = input_token(batch, row.start + c + k);
  }
}

__device__ __forceinline__ bool mask_element(const void* mask, int bytes, i64 index) {
  if (bytes == 1) return ((const u8*)mask)[index] != 0;
  return bytes == 4 ? ((const u32*)mask)[index] != 0 : ((const u64*)mask)[index] != 0;
}

// Whether a mask's elements of columns c and c + 1 are as wanted; after the last column they are not.
__device__ __forceinline__ void mask_pair(const Batch& batch, const Row& row, bool paired, const void* mask, int bytes,
                                          u32 c, bool wanted, bool (&is)[2]) {
  if (paired && bytes == 8 && c < batch.columns) {
    const longlong2 pair = *(const longlong2*)((const i64*)mask + row.start + c);
    is[0] = (pair.x != 0) == wanted, is[1] = (pair.y != 0) == wanted;
  } else {
#pragma unroll
    for (u32 k = 0; k < 2; ++k) is[k] = c + k < batch.columns && mask_element(mask, bytes, row.start + c + k) == wanted;
  }
}

__device__ __forceinline__ Row row_in_arena(const Batch& batch, uint4* arena, i64 index) {
  Row row;
  row.words = (batch.columns + 63) / 64 * 2;
  row.width = 32 * row.words;
  row.index = index;
  row.start = index * batch.columns;
  row.state = (RowState*)arena;
  row.token = row.w0 = row.masked_list = (u32*)(row.state + 1);
  row.w1 = row.replacement = row.token + row.width;
  row.own = row.w1 + row.width;
  row.maskable = row.own + row.width;
  row.masked = row.maskable + (row.words + 3) / 4 * 4;
  row.end = row.masked + (row.words + 3) / 4 * 4;
  row.grouped = batch.grouped;
  if (batch.grouped) row.end += row.width;
  return row;
}

// (width,) of each column the first of the group that added it, whose w2 decides. The address is computed: no register
// holds it.
__device__ __forceinline__ u32* leaders_of(const Row& row) { return row.masked + (row.words + 3) / 4 * 4; }

// No barrier: the caller clears more, then has one.
__device__ __forceinline__ void clear_row(const Batch& batch, const Row& row) {
  if (threadIdx.x) return;
  u64 addresses = (u64)batch.input_ids | (u64)batch.out_ids | (u64)batch.labels;
  if (batch.attention_bytes == 8) addresses |= (u64)batch.attention_mask;  // others are not read by pairs
  if (batch.special_bytes == 8) addresses |= (u64)batch.special_tokens_mask;
  row.state->paired = batch.columns % 2 == 0 && addresses % 16 == 0;
  row.state->content = 0;
  row.state->first = batch.columns;
  row.state->n = row.state->listed = row.state->masked = row.state->spare = 0;
}

// Finds first and n, the maskable columns and their tokens; marks their genes in `genes`, one bit a token of the
// vocabulary, if `mark` (a constant) says so.
__device__ __forceinline__ void read_row(const Batch& batch, const Row& row, bool mark, RankedWord* genes) {
  const bool paired = row.state->paired;
  u32 first = batch.columns, n = 0;
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
    i64 input[2];
    bool seen[2] = {true, true}, open[2] = {true, true};
    input_pair(batch, row, paired, c, input);
    if (batch.attention_mask)
      mask_pair(batch, row, paired, batch.attention_mask, batch.attention_bytes, c, true, seen);
    if (batch.special_tokens_mask)
      mask_pair(batch, row, paired, batch.special_tokens_mask, batch.special_bytes, c, false, open);
    u32 bits[2], kept[2];
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {  // no && and ||: they would be branches
      const u32 token = (u64)input[k] < batch.vocab_size ? (u32)input[k] : STRAY_TOKEN;
      const bool gene = (token - batch.gene_lo < batch.gene_hi - batch.gene_lo) | (token == STRAY_TOKEN);
      if (batch.attention_mask ? seen[k] : token != batch.pad_token) first = min(first, c + k);
      const bool maskable = gene & seen[k] & open[k];
      bits[k] = __ballot_sync(FULL_WARP, maskable);
      kept[k] = maskable ? token : NO_TOKEN;
      n += maskable;
      if (mark && kept[k] < STRAY_TOKEN) atomicOr(&genes[token >> 5].bits, 1u << (token & 31));
    }
    set_pair(row.token, c, kept[0], kept[1]);
    if (lane_id() == 0) {
      set_pair(row.maskable, word_of(c), bits[0], bits[1]);
      set_pair(row.masked, word_of(c), 0, 0);
    }
  }
  n = warp_sum(n);
  first = warp_min(first);
  if (lane_id() == 0) {
    atomicMin(&row.state->first, first);
    atomicAdd(&row.state->n, n);
  }
  __syncthreads();
}

// Sum of mix((relative column << 32) | token) over the maskable columns, modulo 2^64.
__device__ __forceinline__ u64 row_content(const Batch& batch, const Row& row) {
  u64 sum = 0;
#pragma unroll 1
  for (u32 c = threadIdx.x; c < row.width; c += blockDim.x) {
    u32 token = row.token[c];
    if (token == NO_TOKEN) continue;
    if (token == STRAY_TOKEN) token = (u32)input_token(batch, row.start + c);
    sum += mix((u64)(c - row.state->first) << 32 | token);
  }
  for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, d);
  if (lane_id() == 0) atomicAdd(&row.state->content, sum);
  __syncthreads();
  return row.state->content;
}

// low + (high − low) · word / 2^32, each step rounded as kernels/mask.py does.
__device__ __forceinline__ double rate_between(double low, double high, u32 word) {
  return __dadd_rn(low, __dmul_rn(__dmul_rn(__dsub_rn(high, low), (double)word), 1.0 / 4294967296.0));
}

// Budget B = floor(n·p), quota Q = floor(B·λ), and the row's draw. Rates outside [0, 1] cannot do harm here.
__device__ __forceinline__ void draw_row(const Batch& batch, const Row& row) {
  const u64 content = batch.draw_mode == CONTENT ? row_content(batch, row) : 0;
  if (threadIdx.x == 0) {
    const u64 draw = batch.draw_mode == GIVEN     ? batch.draws[row.index]
                     : batch.draw_mode == COUNTED ? batch.draws[0] + batch.draw_offset + row.index
                                                  : mix(content + batch.draws[0]);
    row.state->seed = *batch.seed;
    row.state->draw = draw;
    double p = batch.rates[0], ratio = batch.rates[2];
    if (p < batch.rates[1] || ratio < batch.rates[3]) {
      const uint4 v = philox_words(*batch.seed, draw, RATE_COLUMN, 0);
      p = rate_between(p, batch.rates[1], v.x);
      ratio = rate_between(ratio, batch.rates[3], v.y);
    }
    const int n = row.state->n;
    const int budget = max(0, min(n, __double2int_rd(__dmul_rn((double)n, p))));
    row.state->budget = budget;
    row.state->quota = max(0, min(budget, __double2int_rd(__dmul_rn((double)budget, ratio))));
  }
  __syncthreads();
}

__device__ __forceinline__ uint4 row_words(const Row& row, u32 column, u32 block) {
  return philox_words(row.state->seed, row.state->draw, column - row.state->first, block);
}

// Puts the given priorities in the place of random words. No barrier: see draw_words.
__device__ __forceinline__ void take_priorities(const Batch& batch, const Row& row) {
  u32* words = batch.ranks_top_up ? row.w1 : row.w0;
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < batch.columns; c += 2 * blockDim.x) {
    const i64* given = batch.priorities + row.start + c;
    set_pair(words, c, (u32)given[0], c + 1 < batch.columns ? (u32)given[1] : 0);
  }
}

// Makes the words of a pair of columns keys by weight; w0 only where columns are ordered by it.
__device__ __forceinline__ void weigh_words(const Batch& batch, uint2 token, uint4& even, uint4& odd) {
  const u32 cost[2] = {batch.costs[min(token.x, batch.vocab_size)], batch.costs[min(token.y, batch.vocab_size)]};
  even.y = race_key(even.y, cost[0]);
  odd.y = race_key(odd.y, cost[1]);
  if (batch.ranks_top_up) return;
  even.x = race_key(even.x, cost[0]);
  odd.x = race_key(odd.x, cost[1]);
}

// Fills w0 and w1 of all columns in words that hold a maskable one. w0 takes the place of `token`, each by the thread
// that takes its pair. No barrier: until the caller's next one, a thread may read what it wrote itself.
// `keep_keys` (a constant): Philox's round keys stay in registers, where a block more would not live for less of them.
__device__ __forceinline__ void draw_words(const Batch& batch, const Row& row, bool keep_keys) {
  const u64 draw = row.state->draw;
  u32 low = (u32)row.state->seed, high = (u32)(row.state->seed >> 32);
  const u32 start = row.state->first;
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
    const uint2 maskable = pair_of(row.maskable, word_of(c));
    if (!(maskable.x | maskable.y)) continue;
    if (!keep_keys) asm volatile("" : "+r"(low), "+r"(high));  // as if the seed changed
    const u64 seed = (u64)high << 32 | low;
    uint4 even = philox_words(seed, draw, c - start, 0), odd = philox_words(seed, draw, c + 1 - start, 0);
    if (batch.costs) weigh_words(batch, pair_of(row.token, c), even, odd);
    set_pair(row.w0, c, even.x, odd.x);
    set_pair(row.w1, c, even.y, odd.y);
  }
  if (batch.priorities) take_priorities(batch, row);
}

// Where a bin's count lies: lane l of a warp sums bins 8·l … 8·l + 7, and no two lanes meet in one bank.
__device__ __forceinline__ u32 histogram_slot(u32 bin) { return (bin % (RADIX / 32)) * 32 + bin / (RADIX / 32); }

// Finds the bin in which the running count reaches `want`, the count before it, and the bin's own. For one warp.
__device__ __forceinline__ void find_bin(RowState& state, u32 want) {
  constexpr u32 EACH = RADIX / 32;
  u32 counts[EACH], sum = 0;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) sum += counts[i] = state.histogram[32 * i + lane_id()];
  u32 before = warp_running_sum(sum) - sum;
  if (before >= want || before + sum < want) return;
  u32 bin = EACH * lane_id(), inside = counts[0];
#pragma unroll
  for (u32 i = 1; i < EACH; ++i) {
    if (before + inside >= want) continue;
    before += inside;
    inside = counts[i];
    ++bin;
  }
  state.bin = bin;
  state.before = before;
  state.inside = inside;
}

// The words of the columns that may still be masked, of the pair c, c + 1.
__device__ __forceinline__ uint2 open_columns(const Row& row, u32 c) {
  const uint2 maskable = pair_of(row.maskable, word_of(c)), masked = pair_of(row.masked, word_of(c));
  return make_uint2(maskable.x & ~masked.x, maskable.y & ~masked.y);
}

// Adds to `masked` the `want` maskable columns outside it with the smallest (w1, column): a radix search from the
// highest byte of the 64-bit key for the last of them, until a warp can settle the rest. The keys differ, so it ends.
__device__ __forceinline__ void top_up(const Row& row, u32 want) {
  if (want == 0) return;
  RowState& state = *row.state;
  u64 low = 0;  // of the bin that holds the last one: its keys are low … low + 2^shift − 1
  u32 shift = 64;
  do {
    shift -= RADIX_BITS;
    for (u32 i = threadIdx.x; i < RADIX; i += blockDim.x) state.histogram[i] = 0;
    if (threadIdx.x == 0) state.listed = 0;
    __syncthreads();
#pragma unroll 1
    for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
      const uint2 w1 = pair_of(row.w1, c), open = open_columns(row, c);
#pragma unroll
      for (u32 k = 0; k < 2; ++k) {
        const u64 bin = (((u64)(k ? w1.y : w1.x) << 32 | (c + k)) - low) >> shift;
        if (has_bit(k ? open.y : open.x, lane_id()) && bin < RADIX)
          atomicAdd(&state.histogram[histogram_slot((u32)bin)], 1u);
      }
    }
    __syncthreads();
    if (warp_id() == 0) find_bin(state, want);
    __syncthreads();
    want -= state.before;
    low += (u64)state.bin << shift;
  } while (state.inside > MAX_TIES);
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
    const uint2 w1 = pair_of(row.w1, c), open = open_columns(row, c);
    u32 below[2];
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {
      const u64 key = (u64)(k ? w1.y : w1.x) << 32 | (c + k);
      const bool is_open = has_bit(k ? open.y : open.x, lane_id());
      if (is_open && key >= low && (key - low) >> shift == 0) state.ties[atomicAdd(&state.listed, 1u)] = key;
      below[k] = __ballot_sync(FULL_WARP, is_open && key < low);
    }
    __syncwarp();  // all have read the words before they change
    if (lane_id() == 0) {
      const uint2 masked = pair_of(row.masked, word_of(c));
      set_pair(row.masked, word_of(c), masked.x | below[0], masked.y | below[1]);
    }
  }
  __syncthreads();
  if (threadIdx.x < state.inside) {
    const u64 key = state.ties[threadIdx.x];
    u32 rank = 0;
#pragma unroll 1
    for (u32 i = 0; i < state.inside; ++i) rank += state.ties[i] < key;
    if (rank < want) atomicOr(&row.masked[word_of((u32)key)], 1u << bit_of((u32)key));
  }
  __syncthreads();
}

// Lists the columns of a set of bits, ascending. A warp takes 64 columns at a time, a lane a pair of them.
__device__ __forceinline__ void list_columns(const Row& row, const u32* set, u32* columns) {
  u32 rank = 0, counted = 0;  // ones before a word, and the words that they are of
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < row.width; c += 2 * blockDim.x) {
    const u32 word = word_of(c);
    u32 ones = 0;
#pragma unroll 1
    for (u32 i = counted + lane_id(); i < word; i += 32) ones += __popc(set[i]);
    rank += warp_sum(ones);
    counted = word;
    const uint2 bits = pair_of(set, word);
    u32 at = rank + votes_before(bits.x) + votes_before(bits.y);
    if (has_bit(bits.x, lane_id())) columns[at++] = c;
    if (has_bit(bits.y, lane_id())) columns[at] = c + 1;
  }
  __syncthreads();
}

// 80/10/10: w2 < mask_below → <mask>; else w2 < random_below → a gene chosen by w3; else unchanged. Writes
// masked_positions as it goes.
__device__ __forceinline__ void choose_replacements(const Batch& batch, const Row& row) {
  i64* positions = batch.masked_positions + row.index * batch.max_masked;
  const u32 budget = row.state->budget;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < budget; i += blockDim.x) {
    const u32 c = row.masked_list[i];
    uint4 w = row_words(row, c, 0);
    if (row.grouped && leaders_of(row)[c] != c) w.z = row_words(row, leaders_of(row)[c], 0).z;
    const u32 gene = batch.gene_lo + __umulhi(w.w, batch.gene_hi - batch.gene_lo);
    row.replacement[c] = w.z < batch.mask_below ? batch.mask_token : w.z < batch.random_below ? gene : KEEP_TOKEN;
    if (i < batch.max_masked) __stcs(positions + i, (i64)c);
  }
#pragma unroll 1
  for (i64 i = budget + threadIdx.x; i < batch.max_masked; i += blockDim.x) __stcs(positions + i, -1ll);
  __syncthreads();
}

// Writes input_ids and labels, each element once; pairs of them are the first to leave the cache, so that the graph stays.
// The tokens are read again.
__device__ __forceinline__ void write_row(const Batch& batch, const Row& row, bool paired) {
#pragma unroll 1
  for (u32 c = 2 * threadIdx.x; c < batch.columns; c += 2 * blockDim.x) {
    i64 token[2], label[2];
    input_pair(batch, row, paired, c, token);
    const uint2 masked = pair_of(row.masked, word_of(c)), replacement = pair_of(row.replacement, c);
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {
      const bool is_masked = has_bit(k ? masked.y : masked.x, lane_id());
      const u32 other = k ? replacement.y : replacement.x;
      label[k] = is_masked ? token[k] : -100;
      if (is_masked && other != KEEP_TOKEN) token[k] = other;
    }
    const i64 at = row.start + c;
    if (paired) {
      __stcs((longlong2*)(batch.labels + at), make_longlong2(label[0], label[1]));
      if (batch.wide) __stcs((longlong2*)((i64*)batch.out_ids + at), make_longlong2(token[0], token[1]));
      else __stcs((int2*)((int*)batch.out_ids + at), make_int2((int)token[0], (int)token[1]));
      continue;
    }
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {
      if (c + k >= batch.columns) break;
      batch.labels[at + k] = label[k];
      if (batch.wide) ((i64*)batch.out_ids)[at + k] = token[k];
      else ((int*)batch.out_ids)[at + k] = (int)token[k];
    }
  }
}

// A strategy whose groups of columns never overlap out of order (spans, runs) proposes them by a number for each column:
// the w0 of the first group that holds it. The `quota` columns of `candidates` with the smallest (number, column) are then
// those that adding group after group would give. `count`: how many candidates there are, equal for all threads.
__device__ __forceinline__ void take_groups(const Row& row, u32* candidates, u32* numbers, u32 count) {
  const u32 want = min(row.state->quota, count);
  if (threadIdx.x == 0) row.state->masked = want;
  __syncthreads();
  Row groups = row;
  groups.maskable = candidates;
  groups.w1 = numbers;
  top_up(groups, want);
}

// Modules: columns with one leader, in the order of a number that belongs to the leader. Sets `chosen` to the `want` columns
// of `candidates` that are first by (number, leader, w0, column). `list`: (width,).
__device__ __forceinline__ void take_modules(const Row& row, u32* candidates, u32* numbers, const u32* leaders, u32* list,
                                             u32 want, u32* chosen) {
  RowState& state = *row.state;
  fill(chosen, row.words, 0);
  if (threadIdx.x == 0) state.spare = 0;
  __syncthreads();
  Row modules = row;
  modules.maskable = candidates;
  modules.w1 = numbers;
  modules.masked = chosen;
  top_up(modules, want);  // right but for the order within the last module
  u32 last = 0;
#pragma unroll 1
  for (u32 c = threadIdx.x; c < row.width; c += blockDim.x)
    if (has_bit(chosen[word_of(c)], bit_of(c))) last = max(last, numbers[c]);
  atomicMax(&state.spare, last);
  if (threadIdx.x == 0) state.listed = state.inside = 0;
  __syncthreads();
  last = state.spare;
#pragma unroll 1
  for (u32 c = threadIdx.x; c < row.width; c += blockDim.x) {
    const u32 bit = 1u << bit_of(c);
    if (!(candidates[word_of(c)] & bit) || numbers[c] != last) continue;
    list[atomicAdd(&state.listed, 1u)] = c;
    if (atomicAnd(&chosen[word_of(c)], ~bit) & bit) atomicAdd(&state.inside, 1u);
  }
  __syncthreads();
  const u32 listed = state.listed, inside = state.inside;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < listed; i += blockDim.x) {
    const u32 c = list[i], leader = leaders[c];
    const u64 key = (u64)row.w0[c] << 32 | c;
    u32 rank = 0;
#pragma unroll 1
    for (u32 k = 0; k < listed; ++k) {
      const u32 other = list[k];
      const bool same = leaders[other] == leader;
      rank += same ? ((u64)row.w0[other] << 32 | other) < key : leaders[other] < leader;
    }
    if (rank < inside) atomicOr(&chosen[word_of(c)], 1u << bit_of(c));
  }
  __syncthreads();
}

// The columns that no group has added lead themselves.
__device__ __forceinline__ void lead_others(const Row& row) {
#pragma unroll 1
  for (u32 c = threadIdx.x; c < row.width; c += blockDim.x)
    if (!has_bit(row.masked[word_of(c)], bit_of(c))) leaders_of(row)[c] = c;
  __syncthreads();  // before the top-up changes the words
}

// What comes after a strategy has put its columns into `masked`, and their number into the row's state.
__device__ __forceinline__ void finish_row(const Batch& batch, const Row& row) {
  if (row.grouped) lead_others(row);
  top_up(row, row.state->budget - row.state->masked);
  list_columns(row, row.masked, row.masked_list);
  const bool paired = row.state->paired;  // before the last barrier: after it, another warp may begin with the next row
  choose_replacements(batch, row);
  write_row(batch, row, paired);
}

// The kernels of a strategy: tokens of int32 or int64; the arena in shared memory or, where that is too small (a huge
// vocabulary, long rows on a small card), in global memory: scratch_size elements for each block, and a block takes rows
// in turn. They begin with the same parameters, then come the strategy's own.

constexpr u32 MAX_THREADS = 32 * MAX_WARPS;

// At 48 registers five blocks of 256 threads live on a multiprocessor. A Turing has room for four, whatever they need;
// compilers before 12.4 cannot be told so.
#if __CUDA_ARCH__ >= 800 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204
#define FIVE_BLOCKS __maxnreg__(48)
#else
#define FIVE_BLOCKS __launch_bounds__(MAX_THREADS)
#endif

#define ROW_PARAMETERS(Token)                                                                                          \
  const Token *__restrict__ input_ids, const void *__restrict__ attention_mask,                                        \
      const void *__restrict__ special_tokens_mask, int attention_bytes, int special_bytes, i64 rows, u32 columns,     \
      const i64 *__restrict__ draws, int draw_mode, u64 draw_offset, const u64 *__restrict__ seed,                     \
      const double *__restrict__ rates, const u32 *__restrict__ costs, const i64 *__restrict__ priorities,             \
      int grouped, u32 vocab_size, u32 gene_lo, u32 gene_hi, u32 pad_token, u32 mask_token, u64 mask_below,            \
      u64 random_below, Token *__restrict__ out_ids, i64 *__restrict__ labels, i64 *__restrict__ masked_positions,     \
      i64 max_masked

#define ROW_BATCH(wide, ranks_top_up)                                                                                  \
  const Batch batch = {input_ids, wide, attention_mask, special_tokens_mask, attention_bytes, special_bytes, rows,     \
                       columns, draws, draw_mode, draw_offset, seed, rates, costs, priorities, ranks_top_up,           \
                       grouped != 0, vocab_size, gene_lo, gene_hi, pad_token, mask_token, mask_below, random_below,    \
                       out_ids, labels, masked_positions, max_masked}
