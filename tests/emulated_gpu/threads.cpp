// Runs the threads of a kernel on the CPU, one block after another.
//
// A thread runs until it ends or waits for others. The first thread of a block runs on a fiber (a stack of its own); as
// long as threads end without waiting, the next one runs on the same fiber: a kernel without barriers costs one switch
// of stacks in all. A thread that waits keeps its fiber, and the next one gets another. When all threads have ended or
// wait, those whose barrier is complete go on.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <ucontext.h>
#endif

#include "cuda_on_cpu.h"
#include "runtime.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;
char* emulated_dynamic_shared;

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kMostShared = 227 * 1024;
constexpr unsigned kMostThreads = 1024;

// ------------------------------------------------------------------------------------------------- switching stacks

#if defined(__x86_64__)
struct Context {
  void* stack_pointer;
};
// Saves the registers that a function must keep on the present stack, and takes up the other one.
extern "C" void emulated_switch(Context* from, Context* to);
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, .-emulated_switch
)");

void prepare(Context* context, char* stack, void (*entry)()) {
  // The stack looks as if `entry` had been called and had switched away at its first instruction.
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + kStackBytes) & ~uintptr_t(15);
  void** place = reinterpret_cast<void**>(top);
  *--place = nullptr;
  *--place = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--place = nullptr;
  context->stack_pointer = place;
}
#else
struct Context {
  ucontext_t state;
};
void emulated_switch(Context* from, Context* to) { swapcontext(&from->state, &to->state); }
void prepare(Context* context, char* stack, void (*entry)()) {
  getcontext(&context->state);
  context->state.uc_stack.ss_sp = stack;
  context->state.uc_stack.ss_size = kStackBytes;
  context->state.uc_link = nullptr;
  makecontext(&context->state, entry, 0);
}
#endif

// ------------------------------------------------------------------------------------------------ the present block

enum class Wait { none, block, warp };

struct Fiber {
  Context context;
  char* stack = nullptr;
};

struct Thread {
  Fiber* fiber = nullptr;  // while it waits
  Wait wait = Wait::none;
  unsigned mask = 0;
  const void* place = nullptr;  // in the kernel's code, where it waits for its warp
  bool ended = false;
};

struct Warp {
  unsigned long long given[32];
  unsigned long long received[32];
};

std::vector<std::unique_ptr<Fiber>> all_fibers;
std::vector<Fiber*> idle_fibers;
Context scheduler;
Fiber* current_fiber;

std::vector<Thread> threads;
std::vector<Warp> warps;
unsigned thread_count;
unsigned next_thread;
unsigned ended_threads;
unsigned current_thread;
int votes;
int vote_result;

void (*kernel_run)(void**);
void** kernel_arguments;
const char* kernel_name;

bool inside_kernel;
sigjmp_buf outside;
int failure_status;
std::string failure_text;
bool reversed_order = [] {
  const char* order = getenv("XPNN_EMULATED_GPU_ORDER");
  return order && strcmp(order, "reverse") == 0;
}();

unsigned place_in_block(unsigned turn) { return reversed_order ? thread_count - 1 - turn : turn; }

void become(unsigned thread) {
  current_thread = thread;
  threadIdx.x = thread % blockDim.x;
  threadIdx.y = thread / blockDim.x % blockDim.y;
  threadIdx.z = thread / blockDim.x / blockDim.y;
}

void fiber_body() {
  for (;;) {
    while (next_thread < thread_count) {
      unsigned thread = place_in_block(next_thread++);
      become(thread);
      kernel_run(kernel_arguments);
      threads[current_thread].ended = true;
      ++ended_threads;
    }
    Fiber* self = current_fiber;
    idle_fibers.push_back(self);
    emulated_switch(&self->context, &scheduler);
  }
}

Fiber* idle_fiber() {
  if (idle_fibers.empty()) {
    auto fiber = std::make_unique<Fiber>();
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) return nullptr;
    fiber->stack = static_cast<char*>(stack);
    prepare(&fiber->context, fiber->stack, fiber_body);
    idle_fibers.push_back(fiber.get());
    all_fibers.push_back(std::move(fiber));
  }
  Fiber* fiber = idle_fibers.back();
  idle_fibers.pop_back();
  return fiber;
}

void enter(Fiber* fiber) {
  current_fiber = fiber;
  emulated_switch(&scheduler, &fiber->context);
}

void wait_as(Wait wait, unsigned mask) {
  unsigned thread = current_thread;
  Fiber* self = current_fiber;
  threads[thread].wait = wait;
  threads[thread].mask = mask;
  threads[thread].fiber = self;
  emulated_switch(&self->context, &scheduler);
  become(thread);
}

// After a failure, threads were left where they stood: their stacks are used anew.
void forget_fibers() {
  idle_fibers.clear();
  for (auto& fiber : all_fibers) {
    prepare(&fiber->context, fiber->stack, fiber_body);
    idle_fibers.push_back(fiber.get());
  }
}

[[noreturn]] void fail(int status, const std::string& text) {
  failure_status = status;
  failure_text = std::string("kernel ") + kernel_name + ", block (" + std::to_string(blockIdx.x) + ", " +
                 std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + "), thread (" +
                 std::to_string(threadIdx.x) + ", " + std::to_string(threadIdx.y) + ", " +
                 std::to_string(threadIdx.z) + "): " + text;
  siglongjmp(outside, 1);
}

bool release_block() {
  for (unsigned thread = 0; thread < thread_count; ++thread) {
    if (!threads[thread].ended && threads[thread].wait != Wait::block) return false;
  }
  vote_result = votes;
  votes = 0;
  for (unsigned thread = 0; thread < thread_count; ++thread) threads[thread].wait = Wait::none;
  return true;
}

bool release_warps() {
  bool released = false;
  for (unsigned first = 0; first < thread_count; first += 32) {
    unsigned here = std::min(32u, thread_count - first);
    Warp& warp = warps[first / 32];
    unsigned done = 0;
    for (unsigned lane = 0; lane < here; ++lane) {
      Thread& thread = threads[first + lane];
      if (thread.ended || thread.wait != Wait::warp || (done >> lane & 1)) continue;
      bool complete = true;
      for (unsigned other = 0; other < here && complete; ++other) {
        if (!(thread.mask >> other & 1)) continue;
        const Thread& partner = threads[first + other];
        complete = partner.ended || (partner.wait == Wait::warp && partner.mask == thread.mask);
      }
      if (!complete) continue;
      unsigned mask = thread.mask;
      for (unsigned other = 0; other < here; ++other) {
        if (!(mask >> other & 1) || threads[first + other].ended) continue;
        // A GPU would give them anything, or wait forever.
        if (threads[first + other].place != thread.place) {
          become(first + other);
          fail(kLaunchFailure, "lanes of a warp meet in different calls of warp functions");
        }
        warp.received[other] = warp.given[other];
        threads[first + other].wait = Wait::none;
        done |= 1u << other;
      }
      released = true;
    }
  }
  return released;
}

void run_block() {
  next_thread = 0;
  ended_threads = 0;
  votes = 0;
  for (unsigned thread = 0; thread < thread_count; ++thread) threads[thread] = Thread();
  while (next_thread < thread_count) {
    Fiber* fiber = idle_fiber();
    if (!fiber) fail(kLaunchFailure, "no memory for the stacks of its threads");
    enter(fiber);
  }
  while (ended_threads < thread_count) {
    if (!release_block() && !release_warps()) fail(kLaunchFailure, "its threads wait for each other forever");
    for (unsigned turn = 0; turn < thread_count; ++turn) {
      Thread& thread = threads[place_in_block(turn)];
      if (!thread.ended && thread.fiber && thread.wait == Wait::none) {
        Fiber* fiber = thread.fiber;
        thread.fiber = nullptr;
        enter(fiber);
      }
    }
  }
}

// CuPy compiles with -ftz=true: subnormal float32 numbers are zeros. The CPU can only do so for float64 as well, so this
// is done where it is asked for.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : before_(_mm_getcsr()) {
    static const bool wanted = [] {
      const char* flush = getenv("XPNN_EMULATED_GPU_FLUSH");
      return flush && strcmp(flush, "1") == 0;
    }();
    const unsigned flush_to_zero = 0x8000, zeros_for_subnormals = 0x0040;
    if (wanted) _mm_setcsr(before_ | flush_to_zero | zeros_for_subnormals);
  }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// ------------------------------------------------------------------------------------------------- faults in kernels

struct sigaction former_segv;
struct sigaction former_bus;

void on_fault(int signal_number, siginfo_t* information, void* context) {
  if (inside_kernel) {
    char text[80];
    snprintf(text, sizeof(text), "illegal access of the address %p", information->si_addr);
    fail(kIllegalAddress, text);
  }
  struct sigaction& former = signal_number == SIGSEGV ? former_segv : former_bus;
  if ((former.sa_flags & SA_SIGINFO) && former.sa_sigaction) {
    former.sa_sigaction(signal_number, information, context);
  } else if (former.sa_handler != SIG_DFL && former.sa_handler != SIG_IGN) {
    former.sa_handler(signal_number);
  } else {
    signal(signal_number, SIG_DFL);
  }
}

// The handlers are set only while a kernel runs: whoever else wants to hear of faults does so outside of kernels.
void hear_faults() {
  struct sigaction action;
  memset(&action, 0, sizeof(action));
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &former_segv);
  sigaction(SIGBUS, &action, &former_bus);
}

void stop_hearing_faults() {
  sigaction(SIGSEGV, &former_segv, nullptr);
  sigaction(SIGBUS, &former_bus, nullptr);
}

}  // namespace

extern "C" {

int emulated_block_barrier(int addend) {
  votes += addend;
  wait_as(Wait::block, 0);
  return vote_result;
}

const unsigned long long* emulated_warp_barrier(unsigned mask, unsigned long long given) {
  unsigned lane = current_thread % 32;
  Warp& warp = warps[current_thread / 32];
  if (!(mask >> lane & 1)) fail(kLaunchFailure, "a thread calls a warp function whose mask leaves it out");
  warp.given[lane] = given;
  threads[current_thread].place = __builtin_return_address(0);
  wait_as(Wait::warp, mask);
  return warps[current_thread / 32].received;
}

unsigned emulated_active_lanes() {
  unsigned first = current_thread / 32 * 32;
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < 32 && first + lane < thread_count; ++lane) {
    if (!threads[first + lane].ended) lanes |= 1u << lane;
  }
  return lanes;
}

int emulated_set_reversed(int reversed) {
  int before = reversed_order;
  reversed_order = reversed != 0;
  return before;
}

void emulated_trap(const char* reason) { fail(kLaunchFailure, reason); }

// Kernels are compiled with g++'s check of alignment, which calls these two.
struct SourceLocation {
  const char* file;
  unsigned line;
  unsigned column;
};
struct TypeDescriptor {
  unsigned short kind;
  unsigned short information;
  char name[1];
};
struct MismatchData {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment;
  unsigned char check_kind;
};
void __ubsan_handle_type_mismatch_v1_abort(MismatchData* data, uintptr_t pointer) {
  char text[400];
  snprintf(text, sizeof(text), "the address %p is not aligned to %u bytes, as an access of %s needs", (void*)pointer,
           1u << data->log_alignment, data->type->name);
  if (inside_kernel) fail(kMisalignedAddress, text);
  fprintf(stderr, "%s\n", text);
  abort();
}
void __ubsan_handle_type_mismatch_v1(MismatchData* data, uintptr_t pointer) {
  __ubsan_handle_type_mismatch_v1_abort(data, pointer);
}

}  // extern "C"

const char* emulated_last_failure() { return failure_text.c_str(); }

int emulated_run_grid(const char* name, void (*run)(void**), void** arguments, const EmulatedGrid& grid) {
  static char* dynamic_shared = [] {
    void* place = nullptr;
    if (posix_memalign(&place, 1024, kMostShared) != 0) abort();
    return static_cast<char*>(place);
  }();
  emulated_dynamic_shared = dynamic_shared;
  kernel_name = name;
  kernel_run = run;
  kernel_arguments = arguments;
  gridDim = dim3(grid.grid[0], grid.grid[1], grid.grid[2]);
  blockDim = dim3(grid.block[0], grid.block[1], grid.block[2]);
  thread_count = blockDim.x * blockDim.y * blockDim.z;
  if (thread_count == 0 || thread_count > kMostThreads || grid.shared > kMostShared) return kInvalidValue;
  if (threads.size() < thread_count) threads.resize(kMostThreads);
  if (warps.empty()) warps.resize(kMostThreads / 32);
  FlushSubnormals flush;
  hear_faults();
  inside_kernel = true;
  failure_status = 0;
  if (sigsetjmp(outside, 1) == 0) {
    for (unsigned z = 0; z < gridDim.z; ++z) {
      for (unsigned y = 0; y < gridDim.y; ++y) {
        for (unsigned x = 0; x < gridDim.x; ++x) {
          blockIdx.x = x;
          blockIdx.y = y;
          blockIdx.z = z;
          // Shared memory holds nothing of use when a block begins: NaN, or -1.
          if (grid.shared) memset(dynamic_shared, 0xff, grid.shared);
          run_block();
        }
      }
    }
  } else {
    forget_fibers();
  }
  inside_kernel = false;
  stop_hearing_faults();
  return failure_status;
}
