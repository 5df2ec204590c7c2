// The parts of the emulated CUDA runtime that its files, and the emulated libraries (cuBLAS, cuBLASLt), share.
#pragma once
#include <cstddef>

extern "C" {
// Runs `run(arguments)` as the next piece of work of a stream: now, or where the stream is capturing, at each launch of
// the graph, with a copy of the `bytes` bytes at `arguments` as they are now. 0, or a cudaError.
int emulated_enqueue(void* stream, void (*run)(void*), const void* arguments, size_t bytes);

// Whether work of this stream is being written down into a graph.
int emulated_is_capturing(void* stream);

// The device that is current in this thread.
int emulated_current_device();

// Counts one more of an event of this name, e.g. "cublas"; tests read the counts in Python.
void emulated_count(const char* name);
}

// What was asked of a kernel launch.
struct EmulatedGrid {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared;  // bytes of dynamic shared memory
};

// Runs all threads of a kernel. 0, or a cudaError, and then emulated_last_failure says more.
int emulated_run_grid(const char* name, void (*run)(void**), void** arguments, const EmulatedGrid& grid);
const char* emulated_last_failure();

// cudaError numbers (they are the same for the driver).
enum EmulatedStatus {
  kSuccess = 0,
  kInvalidValue = 1,
  kMemoryAllocation = 2,
  kInvalidDevice = 101,
  kInvalidResourceHandle = 400,
  kIllegalState = 401,
  kSymbolNotFound = 500,
  kIllegalAddress = 700,
  kMisalignedAddress = 716,
  kLaunchFailure = 719,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureUnmatched = 903,
  kCaptureUnjoined = 904,
  kCaptureIsolation = 905,
  kCaptureImplicit = 906,
  kCapturedEvent = 907,
};
