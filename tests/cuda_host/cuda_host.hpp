// The CUDA language for g++: with this header in front of it, an unmodified .cu compiles for the CPU. See README.md.
//
// Every CUDA thread of a block is a fibre (runtime.cpp); blocks run one after another. Only what our kernels use is
// here: a builtin that is missing is a compile error, never a wrong result.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

struct uint3 { unsigned x, y, z; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) longlong2 { long long x, y; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace cuda_host {
struct Thread { uint3 index; unsigned rank; };  // rank: of the thread in its block
struct Votes { int any, all, count; };
struct Launch { uint3 grid, block; uint64_t shared_bytes, seed; int schedule, preempt_percent; };

extern Thread* here;  // the running thread
extern uint3 block_index, block_size, grid_size;
extern unsigned char* shared_arena;

[[noreturn]] void fail(const char* format, ...);
void preempt();  // takes the turn away, if the schedule says so
void yield();
Votes barrier(const char* what, int line, bool vote);
// Waits for all lanes of the mask; returns the 32 values of the warp, of which those of the mask count.
const uint64_t* exchange(const char* what, int line, unsigned mask, uint64_t value, bool orders_memory);
unsigned live_lanes();
int launch(const Launch& how, void (*body)(void*), void* arguments, char* error, uint64_t error_size);

template <class T> uint64_t to_bits(T value) {
  static_assert(sizeof value <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T> T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T> struct Same { using Type = T; };  // atomicAdd(&u, 1): the pointer alone decides the type

template <class... A, size_t... I>
int launch_kernel(const Launch& how, void (*kernel)(A...), void** values, std::index_sequence<I...>, char* error,
                  uint64_t size) {
  auto call = [&] { kernel(*static_cast<std::remove_const_t<A>*>(values[I])...); };
  return launch(how, [](void* f) { (*static_cast<decltype(call)*>(f))(); }, &call, error, size);
}
template <class... A>
int launch_kernel(const Launch& how, void (*kernel)(A...), void** values, char* error, uint64_t size) {
  return launch_kernel(how, kernel, values, std::index_sequence_for<A...>(), error, size);
}
}  // namespace cuda_host

// One line for each kernel, behind the source: how launch.py reaches it.
#define CUDA_HOST_KERNEL(name)                                                                                         \
  extern "C" int launch_##name(const cuda_host::Launch* how, void** values, char* error, uint64_t size) {              \
    return cuda_host::launch_kernel(*how, name, values, error, size);                                                  \
  }

// ---------------------------------------------------------------------------------------------------- language
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
// In a section of its own, so that the runtime can poison it before each block.
#define __shared__ static __attribute__((section("cuda_shared")))
#define SHARED_ARENA(name) uint4* name = reinterpret_cast<uint4*>(cuda_host::shared_arena)
#define threadIdx (cuda_host::here->index)
#define blockIdx (cuda_host::block_index)
#define blockDim (cuda_host::block_size)
#define gridDim (cuda_host::grid_size)
using std::max;
using std::min;

// ------------------------------------------------------------------------- barriers, votes, shuffles, reductions
#define LINE_OF_CALLER int line = __builtin_LINE()
inline void __syncthreads(LINE_OF_CALLER) { cuda_host::barrier("__syncthreads", line, false); }
inline int __syncthreads_or(int vote, LINE_OF_CALLER) {
  return cuda_host::barrier("__syncthreads_or", line, vote).any;
}
inline int __syncthreads_and(int vote, LINE_OF_CALLER) {
  return cuda_host::barrier("__syncthreads_and", line, vote).all;
}
inline int __syncthreads_count(int vote, LINE_OF_CALLER) {
  return cuda_host::barrier("__syncthreads_count", line, vote).count;
}
inline void __syncwarp(unsigned mask = ~0u, LINE_OF_CALLER) { cuda_host::exchange("__syncwarp", line, mask, 0, true); }

namespace cuda_host {
template <class Test> unsigned lanes_where(unsigned mask, Test test) {
  unsigned bits = 0;
  for (unsigned i = 0; i < 32; ++i) if ((mask & live_lanes()) >> i & 1 && test(i)) bits |= 1u << i;
  return bits;
}
template <class T> T shuffle(const char* what, int line, unsigned mask, T value, unsigned source) {
  const uint64_t* values = exchange(what, line, mask, to_bits(value), false);
  if (!((mask & live_lanes()) >> source & 1))
    fail("%s in line %d reads lane %u, which takes no part", what, line, source);
  return from_bits<T>(values[source]);
}
template <class T, class Combine> T reduce(const char* what, int line, unsigned mask, T value, Combine combine) {
  const uint64_t* values = exchange(what, line, mask, to_bits(value), false);
  const unsigned self = here->rank & 31;
  for (unsigned i = 0; i < 32; ++i)
    if (i != self && (mask & live_lanes()) >> i & 1) value = combine(value, from_bits<T>(values[i]));
  return value;
}
}  // namespace cuda_host

inline unsigned __ballot_sync(unsigned mask, int vote, LINE_OF_CALLER) {
  const uint64_t* votes = cuda_host::exchange("__ballot_sync", line, mask, vote != 0, false);
  return cuda_host::lanes_where(mask, [&](unsigned i) { return votes[i]; });
}
inline int __any_sync(unsigned mask, int vote, LINE_OF_CALLER) {
  const uint64_t* votes = cuda_host::exchange("__any_sync", line, mask, vote != 0, false);
  return cuda_host::lanes_where(mask, [&](unsigned i) { return votes[i]; }) != 0;
}
template <class T> unsigned __match_any_sync(unsigned mask, T value, LINE_OF_CALLER) {
  const uint64_t own = cuda_host::to_bits(value);
  const uint64_t* values = cuda_host::exchange("__match_any_sync", line, mask, own, false);
  return cuda_host::lanes_where(mask, [&](unsigned i) { return values[i] == own; });
}
template <class T> T __shfl_sync(unsigned mask, T value, int source, LINE_OF_CALLER) {
  return cuda_host::shuffle("__shfl_sync", line, mask, value, source & 31);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, LINE_OF_CALLER) {
  const unsigned lane = cuda_host::here->rank & 31;
  return cuda_host::shuffle("__shfl_up_sync", line, mask, value, lane < by ? lane : lane - by);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, LINE_OF_CALLER) {
  const unsigned lane = cuda_host::here->rank & 31;
  return cuda_host::shuffle("__shfl_down_sync", line, mask, value, lane + by > 31 ? lane : lane + by);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with, LINE_OF_CALLER) {
  return cuda_host::shuffle("__shfl_xor_sync", line, mask, value, (cuda_host::here->rank & 31) ^ with);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, LINE_OF_CALLER) {
  return cuda_host::reduce("__reduce_min_sync", line, mask, value, [](unsigned a, unsigned b) { return min(a, b); });
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, LINE_OF_CALLER) {
  return cuda_host::reduce("__reduce_add_sync", line, mask, value, [](unsigned a, unsigned b) { return a + b; });
}

// ---------------------------------------------------------------------------------------------------- atomics
#define VALUE_OF(T) typename cuda_host::Same<T>::Type
#define ATOMIC(name, operation)                                                                                        \
  template <class T> T name(T* address, VALUE_OF(T) value) {                                                           \
    cuda_host::preempt();                                                                                              \
    return operation(address, value, __ATOMIC_RELAXED);                                                                \
  }
ATOMIC(atomicAdd, __atomic_fetch_add)
ATOMIC(atomicSub, __atomic_fetch_sub)
ATOMIC(atomicAnd, __atomic_fetch_and)
ATOMIC(atomicOr, __atomic_fetch_or)
ATOMIC(atomicXor, __atomic_fetch_xor)
ATOMIC(atomicExch, __atomic_exchange_n)
#undef ATOMIC
template <class T> T atomicCAS(T* address, VALUE_OF(T) expected, VALUE_OF(T) value) {
  cuda_host::preempt();
  if (!__atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
    cuda_host::yield();  // who waits for another thread must let it run
  return expected;
}
#define ATOMIC_EXTREME(name, before)                                                                                   \
  template <class T> T name(T* address, VALUE_OF(T) value) {                                                           \
    cuda_host::preempt();                                                                                              \
    T old = __atomic_load_n(address, __ATOMIC_RELAXED);                                                                \
    while (value before old &&                                                                                         \
           !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {            \
    }                                                                                                                  \
    return old;                                                                                                        \
  }
ATOMIC_EXTREME(atomicMin, <)
ATOMIC_EXTREME(atomicMax, >)
#undef ATOMIC_EXTREME

template <class T> void __stcs(T* address, T value) { *address = value; }  // which caches keep it is no result

// ---------------------------------------------------------------------------------------------------- arithmetic
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline double __dadd_rn(double a, double b) { return a + b; }  // compiled with -ffp-contract=off, these
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline long long __double_as_longlong(double x) { return cuda_host::from_bits<long long>(cuda_host::to_bits(x)); }
inline double __longlong_as_double(long long x) { return cuda_host::from_bits<double>(cuda_host::to_bits(x)); }
inline int __double2int_rd(double x) {                         // saturates; NaN gives 0 … as the instruction does
  if (x != x) return 0;
  return x >= 2147483647.0 ? 2147483647 : x <= -2147483648.0 ? -2147483647 - 1 : (int)std::floor(x);
}
