// What the emulated runtime knows of memory, streams, events and graphs.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "runtime.h"

enum class Memory { host, pinned, device, managed };

struct Allocation {
  size_t bytes;
  int device;
  Memory memory;
  void* mapping;  // of the allocation with its guard page, if it has one
  size_t mapped_bytes;
};

typedef std::function<int()> Work;

struct Graph {
  std::vector<Work> nodes;
  std::vector<std::string> names;
};

struct Stream;

struct Capture {
  Graph* graph = new Graph;
  Stream* origin = nullptr;
  int mode = 0;
  bool invalidated = false;
  std::set<Stream*> forked;
};

struct Stream {
  int device = 0;
  bool non_blocking = false;
  bool legacy = false;
  Capture* capture = nullptr;
  long last_node = 0;    // number of its newest piece of work in the capture
  long joined_node = 0;  // the newest of them that another stream of the capture waits for
};

struct Event {
  int device = 0;
  bool timing = true;
  Capture* capture = nullptr;  // it was recorded in this capture, which may be over
  Stream* stream = nullptr;
  long node = 0;
  double seconds = 0;
  bool recorded = false;
};

struct State {
  std::recursive_mutex mutex;
  int devices = 2;
  size_t memory_limit = size_t(80) << 30;
  bool guard = false;
  std::map<uintptr_t, Allocation> allocations;
  std::map<int, size_t> used;
  std::set<Stream*> streams;
  std::set<Event*> events;
  std::set<Graph*> graphs;
  std::set<Capture*> captures;
  std::map<int, Stream*> legacy;
  std::map<std::string, long> counts;
  std::map<std::string, long> kernels;
};

State& state();

// Has a mutex as long as it lives. Who waits for one lets go of Python's own lock meanwhile: the thread that has the
// mutex may be carrying out what Python does in the place of a kernel.
class Lock {
 public:
  explicit Lock(std::recursive_mutex& mutex);
  ~Lock() { mutex_.unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  std::recursive_mutex& mutex_;
};

void count(const char* name, long times = 1);

// The allocation that holds an address, or null.
const Allocation* find_allocation(const void* place);
void* allocate(size_t bytes, Memory memory, int* status);
int release(void* place);

// The stream of a handle, or null with a status; 0 and 1 are the legacy default stream of the current device.
Stream* find_stream(intptr_t handle, int* status);
// Gives a stream its next piece of work. 0, or a cudaError.
int submit(Stream* stream, const char* name, Work work);
// Whether a call that waits for the device, or for the legacy stream, may be made now; invalidates captures if not.
int allow_synchronization(Stream* stream);
int allow_unsafe_call();
void invalidate(Capture* capture);
