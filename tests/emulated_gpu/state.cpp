// Memory, streams and what may be done during a capture.
#include "state.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "python_api.h"

namespace {

thread_local int current_device = 0;

size_t number_from_environment(const char* name, size_t standard) {
  const char* text = getenv(name);
  return text && *text ? strtoull(text, nullptr, 10) : standard;
}

State* make_state() {
  State* made = new State;
  made->devices = int(number_from_environment("XPNN_EMULATED_GPUS", 2));
  made->memory_limit = number_from_environment("XPNN_EMULATED_GPU_MEMORY", size_t(80) << 30);
  made->guard = number_from_environment("XPNN_EMULATED_GPU_GUARD", 0) != 0;
  for (int device = 0; device < made->devices; ++device) {
    Stream* stream = new Stream;
    stream->device = device;
    stream->legacy = true;
    made->legacy[device] = stream;
  }
  return made;
}

}  // namespace

// Never destroyed: Python's objects give memory back until the very end of the process.
State& state() {
  static State* only = make_state();
  return *only;
}

Lock::Lock(std::recursive_mutex& mutex) : mutex_(mutex) {
  if (mutex_.try_lock()) return;
  void* thread = PyGILState_Check() ? PyEval_SaveThread() : nullptr;
  mutex_.lock();
  if (thread) PyEval_RestoreThread(thread);
}

void count(const char* name, long times) { state().counts[name] += times; }

extern "C" int emulated_current_device() { return current_device; }
extern "C" void emulated_count(const char* name) {
  Lock lock(state().mutex);
  count(name);
}
extern "C" int emulated_set_device(int device) {
  if (device < 0 || device >= state().devices) return kInvalidDevice;
  current_device = device;
  return kSuccess;
}
extern "C" size_t emulated_set_memory_limit(size_t bytes) {
  size_t before = state().memory_limit;
  state().memory_limit = bytes;
  return before;
}

// ---------------------------------------------------------------------------------------------------------- memory

const Allocation* find_allocation(const void* place) {
  auto& all = state().allocations;
  auto after = all.upper_bound(reinterpret_cast<uintptr_t>(place));
  if (after == all.begin()) return nullptr;
  --after;
  bool inside = reinterpret_cast<uintptr_t>(place) < after->first + after->second.bytes;
  return inside ? &after->second : nullptr;
}

void* allocate(size_t bytes, Memory memory, int* status) {
  Lock lock(state().mutex);
  *status = kSuccess;
  size_t wanted = bytes ? bytes : 1;
  bool on_device = memory == Memory::device || memory == Memory::managed;
  size_t& used = state().used[current_device];
  if (on_device && (wanted > state().memory_limit || used + wanted > state().memory_limit)) {
    *status = kMemoryAllocation;
    return nullptr;
  }
  Allocation made = {wanted, current_device, memory, nullptr, 0};
  void* place = nullptr;
  if (state().guard && on_device) {
    // The end lies at the end of a page, and the page behind it must not be touched.
    size_t page = size_t(sysconf(_SC_PAGESIZE));
    size_t body = (wanted + 15) / 16 * 16;
    made.mapped_bytes = (body + page - 1) / page * page + page;
    made.mapping = mmap(nullptr, made.mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made.mapping != MAP_FAILED) {
      char* end = static_cast<char*>(made.mapping) + made.mapped_bytes - page;
      mprotect(end, page, PROT_NONE);
      place = end - body;
    }
  } else if (posix_memalign(&place, 512, wanted) != 0) {
    place = nullptr;
  }
  if (!place) {
    *status = kMemoryAllocation;
    return nullptr;
  }
  // What has not been written is NaN, and -1 as an integer.
  if (on_device) memset(place, 0xff, wanted);
  if (on_device) used += wanted;
  state().allocations[reinterpret_cast<uintptr_t>(place)] = made;
  return place;
}

int release(void* place) {
  Lock lock(state().mutex);
  if (!place) return kSuccess;
  auto found = state().allocations.find(reinterpret_cast<uintptr_t>(place));
  if (found == state().allocations.end()) return kInvalidValue;
  Allocation gone = found->second;
  state().allocations.erase(found);
  if (gone.memory == Memory::device || gone.memory == Memory::managed) state().used[gone.device] -= gone.bytes;
  if (gone.mapping) {
    munmap(gone.mapping, gone.mapped_bytes);
  } else {
    free(place);
  }
  return kSuccess;
}

// ------------------------------------------------------------------------------------------------ streams, captures

Stream* find_stream(intptr_t handle, int* status) {
  *status = kSuccess;
  if (handle >= 0 && handle <= 2) return state().legacy[current_device];
  Stream* stream = reinterpret_cast<Stream*>(handle);
  if (!state().streams.count(stream)) {
    *status = kInvalidResourceHandle;
    return nullptr;
  }
  return stream;
}

void invalidate(Capture* capture) { capture->invalidated = true; }

// Work of the legacy stream waits for all blocking streams of its device, and a capture cannot wait.
static int allow_legacy(int device) {
  int status = kSuccess;
  for (Capture* capture : state().captures) {
    bool touches = capture->origin->device == device && !capture->origin->non_blocking;
    for (Stream* stream : capture->forked) touches |= stream->device == device && !stream->non_blocking;
    if (touches) {
      invalidate(capture);
      status = kCaptureImplicit;
    }
  }
  return status;
}

int submit(Stream* stream, const char* name, Work work) {
  if (stream->device != current_device) return kInvalidResourceHandle;
  if (stream->capture) {
    if (stream->capture->invalidated) return kCaptureInvalidated;
    stream->capture->graph->nodes.push_back(std::move(work));
    stream->capture->graph->names.push_back(name);
    stream->last_node = long(stream->capture->graph->nodes.size());
    count("captured");
    return kSuccess;
  }
  if (stream->legacy) {
    int status = allow_legacy(stream->device);
    if (status) return status;
  }
  return work();
}

int allow_synchronization(Stream* stream) {
  if (stream && !stream->capture && !stream->legacy) return kSuccess;
  if (stream && stream->legacy) return allow_legacy(stream->device);
  // The stream is capturing; or the whole device is waited for, and one of its streams is.
  int status = kSuccess;
  for (Capture* capture : state().captures) {
    bool touches = stream ? stream->capture == capture : capture->origin->device == current_device;
    if (touches) {
      invalidate(capture);
      status = kCaptureUnsupported;
    }
  }
  return status;
}

int allow_unsafe_call() {
  const int relaxed = 2;
  for (Capture* capture : state().captures) {
    if (capture->mode == relaxed) continue;
    invalidate(capture);
    return kCaptureUnsupported;
  }
  return kSuccess;
}

extern "C" int emulated_enqueue(void* stream, void (*run)(void*), const void* arguments, size_t bytes) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* found = find_stream(reinterpret_cast<intptr_t>(stream), &status);
  if (!found) return status;
  auto copy = std::make_shared<std::vector<char>>(static_cast<const char*>(arguments),
                                                  static_cast<const char*>(arguments) + bytes);
  return submit(found, "library", [run, copy] {
    // What runs may change its arguments: each replay begins with those of the capture.
    std::vector<char> mine = *copy;
    run(mine.data());
    return int(kSuccess);
  });
}

extern "C" int emulated_is_capturing(void* stream) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* found = find_stream(reinterpret_cast<intptr_t>(stream), &status);
  return found && found->capture;
}

// ---------------------------------------------------------------------------------------------- what tests may ask

static const char* table(const std::map<std::string, long>& rows) {
  static std::string text;
  text.clear();
  for (const auto& row : rows) text += row.first + "\t" + std::to_string(row.second) + "\n";
  return text.c_str();
}
extern "C" const char* emulated_counts() {
  Lock lock(state().mutex);
  return table(state().counts);
}
extern "C" const char* emulated_kernel_counts() {
  Lock lock(state().mutex);
  return table(state().kernels);
}
