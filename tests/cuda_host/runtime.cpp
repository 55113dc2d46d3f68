// Runs the threads of a CUDA block as fibres on one CPU thread. Compiled without sanitizers: they watch the kernel
// alone.
//
// A fibre runs until it waits (barrier, warp collective), until the schedule takes its turn away at an atomic, or to
// its end. Which fibre comes next is the schedule: forward, reverse, or random from a seed; every run can be repeated.
// What hardware would leave undefined ends the launch with a message: a barrier that not all threads reach, or reach in
// different lines; a collective whose lanes disagree, or never come; a write behind the end of shared memory.
#include <sys/mman.h>
#include <unistd.h>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "cuda_host.hpp"

#ifdef WATCHED_BY_TSAN
extern "C" {
void* __tsan_create_fiber(unsigned);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#define TSAN(...) __VA_ARGS__
#else
#define TSAN(...)
#endif
#ifdef WATCHED_BY_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
void __asan_poison_memory_region(const volatile void*, size_t);
void __asan_unpoison_memory_region(const volatile void*, size_t);
}
#define ASAN(...) __VA_ARGS__
#else
#define ASAN(...)
#endif

namespace cuda_host {
constexpr unsigned MAX_THREADS = 1024, WARP = 32;
constexpr size_t STACK_BYTES = 128 << 10, GUARD_BYTES = 256;
constexpr unsigned char POISON = 0xCD, GUARD = 0xA5;
enum Schedule { FORWARD, REVERSE, RANDOM };
enum State { READY, AT_BARRIER, IN_COLLECTIVE, DONE };

struct Fibre : Thread {
  void* stack_pointer = nullptr;
  const void* stack = nullptr;
  size_t stack_bytes = STACK_BYTES;
  State state = DONE;
  const char* what = "";  // it waits for
  int line = 0;
  void* tsan = nullptr;
  uint64_t seen[WARP];  // the values of its last collective
};

struct Collective {  // lanes of a warp that have come together, or are about to
  unsigned mask = 0, arrived = 0;
  const char* what = "";
  int line = 0;
  uint64_t value[WARP];
  // For the thread sanitizer: two, in turn, since a lane may wake up when others have come together again already.
  char edge[2];
  unsigned turn = 0;
};

Thread* here;
uint3 block_index, block_size, grid_size;
unsigned char* shared_arena;

static Fibre fibres[MAX_THREADS], caller;
static Collective collectives[MAX_THREADS / WARP][WARP];
static Launch how;
static unsigned threads, finished, waiting;  // of the block
static int barrier_line;
static uint64_t generation, random_state;
static Votes votes, result;
static void (*kernel_body)(void*);
static void* kernel_arguments;
static char message[1024];
static bool failed;
TSAN(static char barrier_edge[2], start_edge, end_edge;)

static Fibre& self() { return *static_cast<Fibre*>(here); }

static unsigned random_below(unsigned n) {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (random_state >> 33) % n;
}

// ------------------------------------------------------------------------------------------------ switching stacks
#if defined(__x86_64__)
extern "C" void cuda_host_switch(void** from, void* to);
asm(R"(.text
cuda_host_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi); mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
constexpr int SAVED_REGISTERS = 6, RETURN_SLOT = 0;
#elif defined(__aarch64__)
extern "C" void cuda_host_switch(void** from, void* to);
asm(R"(.text
cuda_host_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]; stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
  mov x9, sp; str x9, [x0]; mov sp, x1
  ldp x19, x20, [sp]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int SAVED_REGISTERS = 20, RETURN_SLOT = 11;
#else
#error "the host emulation switches stacks on x86-64 and aarch64 only"
#endif

static void switch_to(Fibre& next) {
  Fibre& last = self();
  here = &next;
  TSAN(__tsan_switch_to_fiber(next.tsan, 1);)
  ASAN(void* fake_stack; __sanitizer_start_switch_fiber(&fake_stack, next.stack, next.stack_bytes);)
  cuda_host_switch(&last.stack_pointer, next.stack_pointer);
  ASAN(__sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);)
}

static void run_fibre();

static void prepare_stack(Fibre& fibre) {
  if (!fibre.stack) {
    const size_t page = sysconf(_SC_PAGESIZE);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) abort();
    mprotect(memory, page, PROT_NONE);
    fibre.stack = static_cast<char*>(memory) + page;
    TSAN(fibre.tsan = __tsan_create_fiber(0);)
  }
  void** top = reinterpret_cast<void**>(static_cast<char*>(const_cast<void*>(fibre.stack)) + STACK_BYTES);
#if defined(__x86_64__)
  *--top = nullptr;  // the stack is aligned to 16 bytes where a function is called
  *--top = reinterpret_cast<void*>(run_fibre);
  top -= SAVED_REGISTERS;
  std::fill(top, top + SAVED_REGISTERS, nullptr);
#else
  top -= SAVED_REGISTERS;
  std::fill(top, top + SAVED_REGISTERS, nullptr);
  top[RETURN_SLOT] = reinterpret_cast<void*>(run_fibre);
#endif
  fibre.stack_pointer = top;
}

// ------------------------------------------------------------------------------------------------ scheduling
void fail(const char* format, ...) {  // abandons the launch
  const Fibre& fibre = self();
  int used = snprintf(message, sizeof message, "block (%u,%u,%u) thread %u: ", block_index.x, block_index.y,
                      block_index.z, fibre.rank);
  va_list list;
  va_start(list, format);
  vsnprintf(message + used, sizeof message - used, format, list);
  va_end(list);
  failed = true;
  switch_to(caller);
  abort();
}

static void fail_deadlock() {
  const Fibre* first[4] = {};
  unsigned count[4] = {};
  for (unsigned i = threads; i-- > 0;) {
    ++count[fibres[i].state];
    first[fibres[i].state] = &fibres[i];
  }
  char text[2][160] = {"", ""};
  for (int k = 0; k < 2; ++k)
    if (const Fibre* fibre = first[AT_BARRIER + k])
      snprintf(text[k], sizeof text[k], " (thread %u in %s, line %d)", fibre->rank, fibre->what, fibre->line);
  fail("deadlock: %u wait at a barrier%s, %u in a warp collective%s, %u have ended", count[AT_BARRIER], text[0],
       count[IN_COLLECTIVE], text[1], count[DONE]);
}

void yield() {  // to the next fibre that can run, which may be the same
  unsigned next = self().rank, step = how.schedule == REVERSE ? threads - 1 : 1;
  if (how.schedule == RANDOM) next = random_below(threads);
  for (unsigned k = 0; k < threads; ++k) {
    next = (next + step) % threads;
    if (fibres[next].state != READY) continue;
    if (&fibres[next] != here) switch_to(fibres[next]);
    return;
  }
  if (finished == threads) switch_to(caller);
  fail_deadlock();
}

void preempt() {
  if (how.preempt_percent && random_below(100) < (unsigned)how.preempt_percent) yield();
}

static void run_fibre() {
  ASAN(const void* stack; size_t bytes; __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
       if (!caller.stack) { caller.stack = stack; caller.stack_bytes = bytes; })
  TSAN(__tsan_acquire(&start_edge);)
  kernel_body(kernel_arguments);
  TSAN(__tsan_release(&end_edge);)
  if (waiting) fail("ends while %u threads wait at the barrier in line %d", waiting, barrier_line);
  self().state = DONE;
  ++finished;
  yield();
  abort();
}

// ------------------------------------------------------------------------------------------------ waiting together
Votes barrier(const char* what, int line, bool vote) {
  Fibre& fibre = self();
  if (finished) fail("%s in line %d after %u threads have ended", what, line, finished);
  if (!waiting) barrier_line = line;
  else if (barrier_line != line) fail("%s in line %d while others wait in line %d", what, line, barrier_line);
  TSAN(char* edge = &barrier_edge[generation & 1]; __tsan_release(edge);)
  votes = waiting ? Votes{votes.any | vote, votes.all & vote, votes.count + vote} : Votes{vote, vote, vote};
  fibre.what = what;
  fibre.line = line;
  if (++waiting < threads) {
    fibre.state = AT_BARRIER;
    yield();
  } else {
    result = votes;
    waiting = 0;
    ++generation;
    for (unsigned i = 0; i < threads; ++i) fibres[i].state = READY;
    if (how.schedule != FORWARD) yield();
  }
  TSAN(__tsan_acquire(edge);)
  return result;
}

unsigned live_lanes() {
  const unsigned live = threads - (here->rank & ~31u);
  return live >= WARP ? ~0u : (1u << live) - 1u;
}

const uint64_t* exchange(const char* what, int line, unsigned mask, uint64_t value, bool orders_memory) {
  Fibre& fibre = self();
  const unsigned lane = fibre.rank % WARP, first = fibre.rank - lane;
  if (!(mask >> lane & 1)) fail("%s in line %d: the mask %08x lacks the caller, lane %u", what, line, mask, lane);
  mask &= live_lanes();
  Collective* found = nullptr;
  for (Collective& c : collectives[first / WARP])
    if ((c.arrived && c.mask == mask) || (!found && !c.arrived)) {
      found = &c;
      if (c.arrived) break;
    }
  Collective& c = *found;  // there are as many as lanes, and each that is in use holds a lane
  if (!c.arrived) {
    c.mask = mask;
    c.what = what;
    c.line = line;
  } else if (c.line != line || strcmp(c.what, what)) {
    fail("%s in line %d while other lanes wait in %s, line %d", what, line, c.what, c.line);
  }
  TSAN(char* edge = &c.edge[c.turn & 1]; if (orders_memory) __tsan_release(edge);)
  c.value[lane] = value;
  c.arrived |= 1u << lane;
  fibre.what = what;
  fibre.line = line;
  if (c.arrived != mask) {
    fibre.state = IN_COLLECTIVE;
    yield();
  } else {
    c.arrived = 0;
    ++c.turn;
    for (unsigned i = 0; i < WARP; ++i)
      if (mask >> i & 1) {
        memcpy(fibres[first + i].seen, c.value, sizeof c.value);
        fibres[first + i].state = READY;
      }
    if (how.schedule != FORWARD) yield();
  }
  TSAN(if (orders_memory) __tsan_acquire(edge);)
  (void)orders_memory;
  return fibre.seen;
}

// ------------------------------------------------------------------------------------------------ launching
extern "C" unsigned char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

static bool run_block() {
  finished = waiting = 0;
  for (auto& warp : collectives)
    for (Collective& c : warp) c.arrived = 0;
  for (unsigned i = 0; i < threads; ++i) {
    Fibre& fibre = fibres[i];
    fibre.rank = i;
    fibre.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    fibre.state = READY;
    prepare_stack(fibre);
  }
  TSAN(__tsan_release(&start_edge);)
  switch_to(fibres[how.schedule == FORWARD ? 0 : how.schedule == REVERSE ? threads - 1 : random_below(threads)]);
  TSAN(__tsan_acquire(&end_edge);)
  return !failed;
}

int launch(const Launch& given, void (*body)(void*), void* arguments, char* error, uint64_t error_size) {
  how = given;
  grid_size = how.grid;
  block_size = how.block;
  threads = block_size.x * block_size.y * block_size.z;
  kernel_body = body;
  kernel_arguments = arguments;
  random_state = how.seed * 2 + 1;
  failed = false;
  here = &caller;
  TSAN(caller.tsan = __tsan_get_current_fiber();)
  if (threads < 1 || threads > MAX_THREADS || how.shared_bytes > 227 * 1024) {
    snprintf(error, error_size, "no device can launch %u threads with %llu bytes of shared memory", threads,
             (unsigned long long)how.shared_bytes);
    return 1;
  }
  std::vector<unsigned char> memory(how.shared_bytes + 2 * GUARD_BYTES + 16);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory.data()) + GUARD_BYTES + 15;
  shared_arena = reinterpret_cast<unsigned char*>(begin & ~uintptr_t(15));
  unsigned char *low = shared_arena - GUARD_BYTES, *high = shared_arena + how.shared_bytes;
  const size_t high_bytes = memory.data() + memory.size() - high;
  std::fill(low, shared_arena, GUARD);
  std::fill(high, high + high_bytes, GUARD);
  ASAN(__asan_poison_memory_region(low, GUARD_BYTES); __asan_poison_memory_region(high, high_bytes);)
  bool right = true;
  for (block_index.z = 0; right && block_index.z < grid_size.z; ++block_index.z)
    for (block_index.y = 0; right && block_index.y < grid_size.y; ++block_index.y)
      for (block_index.x = 0; right && block_index.x < grid_size.x; ++block_index.x) {
        std::fill(shared_arena, high, POISON);
        if (__start_cuda_shared) std::fill(__start_cuda_shared, __stop_cuda_shared, POISON);
        right = run_block();
      }
  ASAN(__asan_unpoison_memory_region(low, GUARD_BYTES); __asan_unpoison_memory_region(high, high_bytes);)
  const auto overrun = [](unsigned char byte) { return byte != GUARD; };
  if (right && (std::any_of(low, shared_arena, overrun) || std::any_of(high, high + high_bytes, overrun))) {
    snprintf(message, sizeof message, "a thread wrote outside the %llu bytes of shared memory",
             (unsigned long long)how.shared_bytes);
    right = false;
  }
  if (!right) snprintf(error, error_size, "%s", message);
  return !right;
}
}  // namespace cuda_host
