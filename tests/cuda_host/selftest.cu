// Kernels that try the emulation itself: what it must get right, and planted faults that it must find.

typedef unsigned int u32;

// -------------------------------------------------------------------------------------------------------- right
__device__ int block_sum(int value, int* warp_sums) {
  for (int d = 16; d; d >>= 1) value += __shfl_xor_sync(0xffffffffu, value, d);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  int sum = 0;
  for (u32 w = 0; w < blockDim.x / 32; ++w) sum += warp_sums[w];
  __syncthreads();
  return sum;
}

extern "C" __global__ void sum_of_block(const int* in, int* out, int n) {
  __shared__ int warp_sums[32];
  SHARED_ARENA(arena);
  int* mine = (int*)arena;
  mine[threadIdx.x] = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) mine[threadIdx.x] += in[i];
  const int sum = block_sum(mine[threadIdx.x], warp_sums);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
  atomicAdd(&out[gridDim.x], 1);
}

extern "C" __global__ void __launch_bounds__(64) warp_functions(int* out) {  // one block of 64 threads
  const u32 lane = threadIdx.x % 32, full = 0xffffffffu;
  int* mine = out + threadIdx.x * 20;
  mine[0] = __ballot_sync(full, lane % 3 == 0);
  mine[1] = __any_sync(full, threadIdx.x == 40);
  mine[2] = __match_any_sync(full, lane / 5);
  mine[3] = __shfl_sync(full, lane * lane, 7);
  mine[4] = __shfl_up_sync(full, lane, 3);
  mine[5] = __shfl_down_sync(full, lane, 3);
  mine[6] = __shfl_xor_sync(full, lane, 9);
  mine[7] = __reduce_min_sync(full, 100 - lane);
  mine[8] = __reduce_add_sync(full, lane);
  // Two halves of a warp go their own ways.
  mine[9] = lane < 16 ? __ballot_sync(0x0000ffffu, lane & 1) : __ballot_sync(0xffff0000u, !(lane & 1));
  mine[10] = __syncthreads_count(threadIdx.x % 5 == 0);
  mine[11] = __syncthreads_or(threadIdx.x == 63) + 2 * __syncthreads_and(threadIdx.x < 63);
  mine[12] = __popc(lane) + 100 * __clz(lane) + 10000 * __ffs(lane);
  mine[13] = __umulhi(0x80000000u + lane, 4) + __popcll(~0ull >> lane) + __ffsll(1ll << 40);
  mine[15] = (int)(__shfl_xor_sync(full, (unsigned long long)lane << 40, 1) >> 40);
  mine[14] = __double2int_rd(-0.5) + __double2int_rd(1e300) / 2 + __double2int_rd(-1e300) / 4 +
             __double2int_rd(__dmul_rn(0.1, 30));
}

extern "C" __global__ void atomics(u32* out) {
  __shared__ u32 cell[8];
  if (threadIdx.x < 8) cell[threadIdx.x] = threadIdx.x == 3 ? 0xffffffffu : 0;
  __syncthreads();
  atomicAdd(&cell[0], threadIdx.x);
  atomicOr(&cell[1], 1u << threadIdx.x % 32);
  atomicMax(&cell[2], threadIdx.x);
  atomicMin(&cell[3], threadIdx.x + 7);
  atomicAnd(&cell[4], 0u);
  while (atomicCAS(&cell[5], threadIdx.x, threadIdx.x + 1) != threadIdx.x) {}  // one after the other
  atomicXor(&cell[6], threadIdx.x);
  atomicSub(&cell[7], 1);
  __syncthreads();
  if (threadIdx.x < 8) out[threadIdx.x] = atomicExch(&cell[threadIdx.x], 0);
}

extern "C" __global__ void indices(int* out) {  // blocks of 4 × 3 × 2 threads
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

// -------------------------------------------------------------------------------------------------------- wrong
extern "C" __global__ void fault_missing_barrier(int* out) {
  __shared__ int box[1024];
  box[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = box[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void fault_plain_increment(int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  count += 1;
  __syncthreads();
  out[threadIdx.x] = count;
}

extern "C" __global__ void fault_missing_syncwarp(int* out) {
  __shared__ int box[1024];
  box[threadIdx.x] = threadIdx.x;
  const u32 votes = __ballot_sync(0xffffffffu, 1);  // orders nothing
  out[threadIdx.x] = votes ? box[threadIdx.x ^ 1] : 0;
}

extern "C" __global__ void fault_shared_overrun(int* out) {
  SHARED_ARENA(arena);
  ((int*)arena)[threadIdx.x + 1] = threadIdx.x;  // the arena holds one number for each thread
  __syncthreads();
  out[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void fault_write_overrun(int* out) { out[threadIdx.x + 1] = threadIdx.x; }
extern "C" __global__ void fault_read_overrun(int* out) { out[threadIdx.x] = out[threadIdx.x + 1]; }

extern "C" __global__ void fault_input_written(int* out) {
  if (threadIdx.x == 5) out[5] += 1;
}

extern "C" __global__ void fault_divergent_barrier(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads();
  out[threadIdx.x] = 0;
}

extern "C" __global__ void fault_barrier_for_some(int* out) {
  if (threadIdx.x % 2) __syncthreads();
  __syncwarp();
  out[threadIdx.x] = 0;
}

extern "C" __global__ void fault_exit_before_barrier(int* out) {
  if (threadIdx.x == 7) return;
  __syncthreads();
  out[threadIdx.x] = 0;
}

extern "C" __global__ void fault_ballot_of_some(int* out) {
  if (threadIdx.x % 32 < 20) out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);
}

extern "C" __global__ void fault_mask_lacks_caller(int* out) { out[threadIdx.x] = __ballot_sync(0x0000ffffu, 1); }

extern "C" __global__ void fault_shuffle_from_nobody(int* out) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, (int)threadIdx.x, 20);
}

extern "C" __global__ void fault_uninitialised(int* out) {
  __shared__ int box[32];
  if (threadIdx.x == 0) box[0] = 1;
  __syncthreads();
  out[threadIdx.x] = box[1];  // would often be 0
}
