// The functions that CuPy's module cupy_backends.cuda.api.runtime gives to CuPy's other modules.
//
// Each has the C signature of the function it takes the place of (`skip` is Cython's), and its name after "runtime_".
#include <chrono>
#include <cstdio>
#include <cstring>

#include "python_api.h"
#include "state.h"

namespace {

PyObject* (*check_status)(int, int);
PyObject* device_properties;
PyObject* pointer_attributes;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// How Cython's optional arguments are passed: the number that are given, then their values.
struct OptionalInt {
  int given;
  int value;
};

const int kRelaxed = 2;

bool is_device(const void* place) {
  const Allocation* found = find_allocation(place);
  return found && (found->memory == Memory::device || found->memory == Memory::managed);
}

bool is_pageable(const void* place) { return !find_allocation(place); }

// Which side of a copy lies where: checked, as CUDA does, and counted.
int classify(void* target, const void* source, int kind, const char** name) {
  bool to_device = is_device(target);
  bool from_device = is_device(source);
  if (kind == 0 && (to_device || from_device)) return kInvalidValue;
  if (kind == 1 && !to_device) return kInvalidValue;
  if (kind == 2 && !from_device) return kInvalidValue;
  if (kind == 3 && !(to_device && from_device)) return kInvalidValue;
  if (kind < 0 || kind > 4) return kInvalidValue;
  *name = from_device ? (to_device ? "copies_on_device" : "copies_to_host")
                      : (to_device ? "copies_from_host" : "copies_on_host");
  return kSuccess;
}

int copy_now(void* target, const void* source, size_t bytes, int kind) {
  Lock lock(state().mutex);
  if (bytes == 0) return kSuccess;
  const char* name = nullptr;
  int status = classify(target, source, kind, &name);
  if (!status) status = allow_unsafe_call();
  if (!status) status = allow_synchronization(state().legacy[emulated_current_device()]);
  if (status) return status;
  count(name);
  memmove(target, source, bytes);
  return kSuccess;
}

int copy_in_stream(void* target, const void* source, size_t bytes, int kind, intptr_t handle) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  const char* name = nullptr;
  if (bytes == 0) return status;
  if (!status) status = classify(target, source, kind, &name);
  if (status) return status;
  if (stream->capture && (is_pageable(target) || is_pageable(source))) {
    invalidate(stream->capture);
    return kCaptureUnsupported;
  }
  count(name);
  return submit(stream, name, [=] {
    memmove(target, source, bytes);
    return int(kSuccess);
  });
}

int set_in_stream(void* target, int value, size_t bytes, intptr_t handle) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  if (!stream || bytes == 0) return status;
  if (!is_device(target) && is_pageable(target)) return kInvalidValue;
  count("memsets");
  return submit(stream, "memset", [=] {
    memset(target, value, bytes);
    return int(kSuccess);
  });
}

intptr_t allocated(size_t bytes, Memory memory) {
  int status = kSuccess;
  if (memory == Memory::device || memory == Memory::managed) status = allow_unsafe_call();
  void* place = status ? nullptr : allocate(bytes, memory, &status);
  if (status) {
    raise_runtime(status);
    return 0;
  }
  count(memory == Memory::pinned ? "host_allocations" : "allocations");
  return reinterpret_cast<intptr_t>(place);
}

Stream* made_stream(bool non_blocking) {
  Lock lock(state().mutex);
  Stream* stream = new Stream;
  stream->device = emulated_current_device();
  stream->non_blocking = non_blocking;
  state().streams.insert(stream);
  count("streams");
  return stream;
}

Event* made_event(bool timing) {
  Lock lock(state().mutex);
  Event* event = new Event;
  event->device = emulated_current_device();
  event->timing = timing;
  state().events.insert(event);
  return event;
}

Event* find_event(intptr_t handle) {
  Event* event = reinterpret_cast<Event*>(handle);
  return state().events.count(event) ? event : nullptr;
}

bool capture_is_active(Event* event) { return event->capture && state().captures.count(event->capture); }

int synchronize_event(intptr_t handle) {
  Event* event = find_event(handle);
  if (!event) return kInvalidResourceHandle;
  if (capture_is_active(event)) {
    invalidate(event->capture);
    return kCapturedEvent;
  }
  return kSuccess;
}

void leave_capture(Stream* stream) {
  stream->capture = nullptr;
  stream->last_node = 0;
  stream->joined_node = 0;
}

int begin_capture(intptr_t handle, int mode) {
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  if (!stream) return status;
  if (stream->legacy) return kCaptureUnsupported;
  if (stream->capture) return kIllegalState;
  Capture* capture = new Capture;
  capture->origin = stream;
  capture->mode = mode;
  stream->capture = capture;
  state().captures.insert(capture);
  return kSuccess;
}

int end_capture(intptr_t handle, Graph** graph) {
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  if (!stream) return status;
  Capture* capture = stream->capture;
  if (!capture) return kIllegalState;
  if (capture->origin != stream) {
    invalidate(capture);
    return kCaptureUnmatched;
  }
  bool unjoined = false;
  for (Stream* forked : capture->forked) {
    unjoined |= forked->last_node > forked->joined_node;
    leave_capture(forked);
  }
  leave_capture(stream);
  state().captures.erase(capture);  // the object stays: events may still point at it
  if (capture->invalidated) return kCaptureInvalidated;
  if (unjoined) return kCaptureUnjoined;
  *graph = capture->graph;
  state().graphs.insert(capture->graph);
  return kSuccess;
}

int record_event(intptr_t handle, intptr_t stream_handle) {
  int status = kSuccess;
  Stream* stream = find_stream(stream_handle, &status);
  Event* event = find_event(handle);
  if (!stream) return status;
  if (!event || event->device != stream->device) return kInvalidResourceHandle;
  if (stream->capture && stream->capture->invalidated) return kCaptureInvalidated;
  event->recorded = true;
  event->seconds = now();
  event->capture = stream->capture;
  event->stream = stream;
  event->node = stream->last_node;
  return kSuccess;
}

int wait_event(intptr_t stream_handle, intptr_t handle) {
  int status = kSuccess;
  Stream* stream = find_stream(stream_handle, &status);
  Event* event = find_event(handle);
  if (!stream) return status;
  if (!event) return kInvalidResourceHandle;
  bool active = capture_is_active(event);
  if (!active) {
    if (!stream->capture || !event->recorded) return kSuccess;
    invalidate(stream->capture);
    return kCaptureIsolation;
  }
  if (stream->legacy) {
    invalidate(event->capture);
    return kCaptureImplicit;
  }
  if (stream->capture && stream->capture != event->capture) {
    invalidate(stream->capture);
    invalidate(event->capture);
    return kCaptureIsolation;
  }
  if (!stream->capture) {
    stream->capture = event->capture;
    event->capture->forked.insert(stream);
  }
  if (event->stream != stream && event->node > event->stream->joined_node) event->stream->joined_node = event->node;
  return kSuccess;
}

struct Executable {
  std::shared_ptr<std::vector<Work>> nodes;
};
std::set<Executable*> executables;

int launch_graph(intptr_t handle, intptr_t stream_handle) {
  int status = kSuccess;
  Stream* stream = find_stream(stream_handle, &status);
  Executable* executable = reinterpret_cast<Executable*>(handle);
  if (!stream) return status;
  if (!executables.count(executable)) return kInvalidResourceHandle;
  auto nodes = executable->nodes;
  count("graph_launches");
  return submit(stream, "graph", [nodes] {
    for (const Work& node : *nodes) {
      int failed = node();
      if (failed) return failed;
    }
    return int(kSuccess);
  });
}

// Python is called back: now, or when the graph is launched.
int call_in_stream(intptr_t handle, PyObject* callback, std::function<PyObject*()> call) {
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  if (!stream) return status;
  Py_IncRef(callback);
  return submit(stream, "host function", [call] {
    PyObject* result = call();
    if (!result) return -1;
    Py_DecRef(result);
    return int(kSuccess);
  });
}

}  // namespace

void raise_runtime(int status) {
  if (status < 0) return;  // a callback has set its own exception
  // A kernel of a graph failed: the exception has no place for the reason.
  if (status >= kIllegalAddress && status <= kLaunchFailure) fprintf(stderr, "%s\n", emulated_last_failure());
  PyObject* result = check_status(status, 0);
  if (result) Py_DecRef(result);
}

extern "C" {

void emulated_set_python(void* checking, PyObject* properties, PyObject* attributes) {
  check_status = reinterpret_cast<PyObject* (*)(int, int)>(checking);
  device_properties = properties;
  pointer_attributes = attributes;
}

// ---- devices

int runtime_driverGetVersion(int) { return 13000; }
int runtime_runtimeGetVersion(int) { return 13000; }
int runtime__getCUDAMajorVersion(int) { return 13; }
PyObject* runtime__ensure_context() { return none(); }
int runtime_getDevice(int) { return emulated_current_device(); }
int runtime_getDeviceCount(int) { return state().devices; }
int emulated_set_device(int device);
PyObject* runtime_setDevice(int device, int) { return runtime_result(emulated_set_device(device)); }
PyObject* runtime_getDeviceProperties(int device, int) {
  if (device < 0 || device >= state().devices) return runtime_result(kInvalidDevice);
  return PyDict_Copy(device_properties);
}
int runtime_deviceGetAttribute(int attribute, int device, int) {
  if (device < 0 || device >= state().devices) {
    raise_runtime(kInvalidDevice);
    return -1;
  }
  switch (attribute) {
    case 1: return 1024;              // threads of a block
    case 2: case 3: return 1024;      // of a block along x and y
    case 4: return 64;
    case 5: return 2147483647;        // blocks along x
    case 6: case 7: return 65535;
    case 8: return 49152;             // shared memory of a block
    case 10: return 32;               // threads of a warp
    case 12: return 65536;            // registers of a block
    case 16: return 132;              // multiprocessors
    case 39: return 2048;             // threads of a multiprocessor
    case 75: return 9;                // compute capability
    case 76: return 0;
    case 81: return 233472;           // shared memory of a multiprocessor
    case 97: return 232448;           // shared memory of a block that asks for more
    case 115: return 0;               // memory pools of the driver
    default: return 1;
  }
}
PyObject* runtime_deviceGetPCIBusId(int device, int) { return Py_BuildValue("s", device ? "0000:01:00.0" : "0000:00:00.0"); }
int runtime_deviceCanAccessPeer(int, int, int) { return 0; }
PyObject* runtime_deviceEnablePeerAccess(int, int) { return none(); }
PyObject* runtime__deviceEnsurePeerAccess(int, int) { return none(); }
size_t runtime_deviceGetLimit(int, int) { return 0; }
PyObject* runtime_deviceSetLimit(int, size_t, int) { return none(); }
PyObject* runtime_profilerStart(int) { return none(); }
PyObject* runtime_profilerStop(int) { return none(); }
PyObject* runtime_deviceSynchronize(int) {
  Lock lock(state().mutex);
  count("synchronizations");
  return runtime_result(allow_synchronization(nullptr));
}

// ---- memory

PyObject* runtime_memGetInfo(int) {
  size_t total = state().memory_limit;
  size_t used = state().used[emulated_current_device()];
  return Py_BuildValue("(nn)", ssize_t(used < total ? total - used : 0), ssize_t(total));
}
intptr_t runtime_malloc(size_t bytes, int) { return allocated(bytes, Memory::device); }
intptr_t runtime_mallocManaged(size_t bytes, int, OptionalInt*) { return allocated(bytes, Memory::managed); }
intptr_t runtime_mallocAsync(size_t bytes, intptr_t, int) { return allocated(bytes, Memory::device); }
intptr_t runtime_hostAlloc(size_t bytes, unsigned, int) { return allocated(bytes, Memory::pinned); }
PyObject* runtime_free(intptr_t place, int) {
  int status = allow_unsafe_call();
  if (!status) status = release(reinterpret_cast<void*>(place));
  count("frees");
  return runtime_result(status);
}
PyObject* runtime_freeAsync(intptr_t place, intptr_t, int) {
  count("frees");
  return runtime_result(release(reinterpret_cast<void*>(place)));
}
PyObject* runtime_freeHost(intptr_t place, int) { return runtime_result(release(reinterpret_cast<void*>(place))); }
PyObject* runtime_hostRegister(intptr_t place, size_t bytes, unsigned, int) {
  state().allocations[uintptr_t(place)] = Allocation{bytes, emulated_current_device(), Memory::pinned, nullptr, 0};
  return none();
}
PyObject* runtime_hostUnregister(intptr_t place, int) {
  state().allocations.erase(uintptr_t(place));
  return none();
}
PyObject* runtime_memcpy(intptr_t target, intptr_t source, size_t bytes, int kind, int) {
  return runtime_result(copy_now((void*)target, (void*)source, bytes, kind));
}
PyObject* runtime_memcpyAsync(intptr_t target, intptr_t source, size_t bytes, int kind, intptr_t stream, int) {
  return runtime_result(copy_in_stream((void*)target, (void*)source, bytes, kind, stream));
}
PyObject* runtime_memcpyPeer(intptr_t target, int, intptr_t source, int, size_t bytes, int) {
  return runtime_result(copy_now((void*)target, (void*)source, bytes, 3));
}
PyObject* runtime_memcpyPeerAsync(intptr_t target, int, intptr_t source, int, size_t bytes, intptr_t stream, int) {
  return runtime_result(copy_in_stream((void*)target, (void*)source, bytes, 3, stream));
}
PyObject* runtime_memcpy2D(intptr_t target, size_t target_pitch, intptr_t source, size_t source_pitch, size_t width,
                           size_t height, int kind, int) {
  for (size_t row = 0; row < height; ++row) {
    int status = copy_now((char*)target + row * target_pitch, (char*)source + row * source_pitch, width, kind);
    if (status) return runtime_result(status);
  }
  return none();
}
PyObject* runtime_memcpy2DAsync(intptr_t target, size_t target_pitch, intptr_t source, size_t source_pitch,
                                size_t width, size_t height, int kind, intptr_t stream, int) {
  for (size_t row = 0; row < height; ++row) {
    char* to = (char*)target + row * target_pitch;
    int status = copy_in_stream(to, (char*)source + row * source_pitch, width, kind, stream);
    if (status) return runtime_result(status);
  }
  return none();
}
PyObject* runtime_memset(intptr_t target, int value, size_t bytes, int) {
  return runtime_result(set_in_stream((void*)target, value, bytes, 0));
}
PyObject* runtime_memsetAsync(intptr_t target, int value, size_t bytes, intptr_t stream, int) {
  return runtime_result(set_in_stream((void*)target, value, bytes, stream));
}
PyObject* runtime_memPrefetchAsync(intptr_t, size_t, int, intptr_t, int) { return none(); }
PyObject* runtime_memAdvise(intptr_t, size_t, int, int, int) { return none(); }
int runtime_pointerGetMemoryType(intptr_t place, int) {
  const Allocation* found = find_allocation((void*)place);
  if (!found) return 0;
  return found->memory == Memory::pinned ? 1 : found->memory == Memory::managed ? 3 : 2;
}
PyObject* runtime_pointerGetAttributes(intptr_t place, int skip) {
  const Allocation* found = find_allocation((void*)place);
  int type = runtime_pointerGetMemoryType(place, skip);
  bool on_device = type >= 2;
  bool on_host = type == 1 || type == 3;
  return PyObject_CallFunction(pointer_attributes, "inni", found ? found->device : -2, on_device ? place : 0,
                               on_host ? place : 0, type);
}

// ---- streams and events

intptr_t runtime_streamCreate(int) { return reinterpret_cast<intptr_t>(made_stream(false)); }
intptr_t runtime_streamCreateWithFlags(unsigned flags, int) {
  return reinterpret_cast<intptr_t>(made_stream(flags & 1));
}
intptr_t runtime_streamCreateWithPriority(unsigned flags, int, int) {
  return reinterpret_cast<intptr_t>(made_stream(flags & 1));
}
unsigned runtime_streamGetFlags(intptr_t handle, int) {
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  if (!stream) raise_runtime(status);
  return stream && stream->non_blocking ? 1 : 0;
}
int runtime_streamGetPriority(intptr_t, int) { return 0; }
PyObject* runtime_streamDestroy(intptr_t handle, int) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  if (!stream || stream->legacy) return runtime_result(kInvalidResourceHandle);
  if (stream->capture) invalidate(stream->capture);
  state().streams.erase(stream);
  return none();
}
PyObject* runtime_streamSynchronize(intptr_t handle, int) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  count("synchronizations");
  return runtime_result(stream ? allow_synchronization(stream) : status);
}
PyObject* runtime_streamQuery(intptr_t handle, int) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  return runtime_result(stream ? allow_synchronization(stream) : status);
}
PyObject* runtime_streamWaitEvent(intptr_t stream, intptr_t event, int, OptionalInt*) {
  Lock lock(state().mutex);
  return runtime_result(wait_event(stream, event));
}
PyObject* runtime_streamAddCallback(intptr_t handle, PyObject* callback, intptr_t argument, int, OptionalInt*) {
  return runtime_result(call_in_stream(
      handle, callback, [=] { return PyObject_CallFunction(callback, "niO", handle, 0, (PyObject*)argument); }));
}
PyObject* runtime_launchHostFunc(intptr_t handle, PyObject* callback, intptr_t argument, int) {
  return runtime_result(call_in_stream(
      handle, callback, [=] { return PyObject_CallFunction(callback, "O", (PyObject*)argument); }));
}
PyObject* runtime__launchHostFuncUnmanaged(intptr_t handle, PyObject* callback, int) {
  return runtime_result(call_in_stream(handle, callback, [=] { return PyObject_CallFunction(callback, nullptr); }));
}
PyObject* runtime_streamBeginCapture(intptr_t handle, int, OptionalInt* mode) {
  Lock lock(state().mutex);
  return runtime_result(begin_capture(handle, mode && mode->given ? mode->value : kRelaxed));
}
intptr_t runtime_streamEndCapture(intptr_t handle, int) {
  Lock lock(state().mutex);
  Graph* graph = nullptr;
  int status = end_capture(handle, &graph);
  if (status) raise_runtime(status);
  return reinterpret_cast<intptr_t>(graph);
}
int runtime_streamIsCapturing(intptr_t handle, int) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  if (!stream) {
    raise_runtime(status);
    return 0;
  }
  if (stream->capture && stream->capture->invalidated) {
    PyErr_SetString(PyExc_RuntimeError, "the stream was capturing, but an error has invalidated the capture sequence");
    return 0;
  }
  return stream->capture != nullptr;
}
intptr_t runtime_eventCreate(int) { return reinterpret_cast<intptr_t>(made_event(true)); }
intptr_t runtime_eventCreateWithFlags(unsigned flags, int) {
  return reinterpret_cast<intptr_t>(made_event(!(flags & 2)));
}
PyObject* runtime_eventDestroy(intptr_t handle, int) {
  Lock lock(state().mutex);
  return runtime_result(state().events.erase(reinterpret_cast<Event*>(handle)) ? kSuccess : kInvalidResourceHandle);
}
float runtime_eventElapsedTime(intptr_t start, intptr_t end, int) {
  Event* first = find_event(start);
  Event* last = find_event(end);
  bool usable = first && last && first->timing && last->timing && first->recorded && last->recorded;
  if (!usable) raise_runtime(kInvalidResourceHandle);
  return usable ? float(1e3 * (last->seconds - first->seconds)) : 0;
}
PyObject* runtime_eventQuery(intptr_t handle, int) {
  Lock lock(state().mutex);
  return runtime_result(synchronize_event(handle));
}
PyObject* runtime_eventSynchronize(intptr_t handle, int) {
  Lock lock(state().mutex);
  count("synchronizations");
  return runtime_result(synchronize_event(handle));
}
PyObject* runtime_eventRecord(intptr_t event, intptr_t stream, int) {
  Lock lock(state().mutex);
  return runtime_result(record_event(event, stream));
}

// ---- graphs

intptr_t runtime_graphInstantiate(intptr_t handle, int) {
  Lock lock(state().mutex);
  Graph* graph = reinterpret_cast<Graph*>(handle);
  if (!state().graphs.count(graph)) {
    raise_runtime(kInvalidValue);
    return 0;
  }
  Executable* executable = new Executable{std::make_shared<std::vector<Work>>(graph->nodes)};
  executables.insert(executable);
  return reinterpret_cast<intptr_t>(executable);
}
PyObject* runtime_graphDestroy(intptr_t handle, int) {
  Lock lock(state().mutex);
  return runtime_result(state().graphs.erase(reinterpret_cast<Graph*>(handle)) ? kSuccess : kInvalidValue);
}
PyObject* runtime_graphExecDestroy(intptr_t handle, int) {
  Lock lock(state().mutex);
  Executable* executable = reinterpret_cast<Executable*>(handle);
  if (!executables.erase(executable)) return runtime_result(kInvalidValue);
  delete executable;
  return none();
}
PyObject* runtime_graphLaunch(intptr_t executable, intptr_t stream, int) {
  Lock lock(state().mutex);
  return runtime_result(launch_graph(executable, stream));
}
PyObject* runtime_graphUpload(intptr_t executable, intptr_t, int) {
  return runtime_result(executables.count(reinterpret_cast<Executable*>(executable)) ? kSuccess : kInvalidValue);
}

}  // extern "C"
