// The functions that CuPy's module cupy_backends.cuda.api.driver gives to CuPy's other modules: kernels.
//
// A module's image is "EMULATED", a zero, and the path of the library that compiler.py made of it.
#include <dlfcn.h>

#include <cstring>

#include "cuda_on_cpu.h"
#include "python_api.h"
#include "state.h"

namespace {

PyObject* raise_driver_error;  // Python's function of a status and a text

struct Module {
  void* library;
  const EmulatedKernel* kernels;
  int device;
};

struct Function {
  const EmulatedKernel* kernel;
  int device;
  int most_shared;
};

std::string failure;  // says more than the status that comes next

int run_kernel(const EmulatedKernel* kernel, void** arguments, const EmulatedGrid& grid) {
  int status = emulated_run_grid(kernel->name, kernel->run, arguments, grid);
  if (status) failure = emulated_last_failure();
  return status;
}

int check_grid(const Function* function, const EmulatedGrid& grid) {
  const unsigned* blocks = grid.grid;
  const unsigned* threads = grid.block;
  for (int axis = 0; axis < 3; ++axis) {
    if (blocks[axis] == 0 || threads[axis] == 0) return kInvalidValue;
  }
  bool fits = blocks[0] <= 2147483647u && blocks[1] <= 65535u && blocks[2] <= 65535u && threads[0] <= 1024u &&
              threads[1] <= 1024u && threads[2] <= 64u && size_t(threads[0]) * threads[1] * threads[2] <= 1024u;
  if (!fits) {
    failure = std::string("kernel ") + function->kernel->name + ": the grid or the block is too large";
    return kInvalidValue;
  }
  if (grid.shared > unsigned(function->most_shared)) {
    failure = std::string("kernel ") + function->kernel->name + ": more dynamic shared memory than its limit";
    return kInvalidValue;
  }
  return kSuccess;
}

int launch(Function* function, const EmulatedGrid& grid, intptr_t handle, void** arguments) {
  Lock lock(state().mutex);
  int status = kSuccess;
  Stream* stream = find_stream(handle, &status);
  if (!stream) return status;
  if (function->device != emulated_current_device()) {
    failure = "the kernel was loaded on another device than the current one";
    return kInvalidResourceHandle;
  }
  status = check_grid(function, grid);
  if (status) return status;
  const EmulatedKernel* kernel = function->kernel;
  count("launches");
  ++state().kernels[kernel->name];
  if (!stream->capture) return submit(stream, kernel->name, [=] { return run_kernel(kernel, arguments, grid); });
  // The arguments are copied now; a replay has no others.
  auto copies = std::make_shared<std::vector<std::vector<char>>>();
  for (int index = 0; index < kernel->count; ++index) {
    const char* argument = static_cast<const char*>(arguments[index]);
    copies->emplace_back(argument, argument + kernel->sizes[index]);
  }
  return submit(stream, kernel->name, [=] {
    std::vector<void*> places;
    for (auto& copy : *copies) places.push_back(copy.data());
    count("replayed");
    return run_kernel(kernel, places.data(), grid);
  });
}

}  // namespace

void raise_driver(int status) {
  if (status < 0) return;
  std::string text;
  text.swap(failure);
  PyObject* result = PyObject_CallFunction(raise_driver_error, "is", status, text.c_str());
  if (result) Py_DecRef(result);
}

extern "C" {

void emulated_set_driver_error(PyObject* raising) { raise_driver_error = raising; }

PyObject* driver_get_build_version(int) { return Py_BuildValue("i", 13000); }
PyObject* driver_devicePrimaryCtxRelease(int, int) { return none(); }
intptr_t driver_ctxGetCurrent(int) { return 1 + emulated_current_device(); }
PyObject* driver_ctxSetCurrent(intptr_t, int) { return none(); }
int driver_ctxGetDevice(int) { return emulated_current_device(); }
intptr_t driver_streamGetCtx(intptr_t, int) { return 1 + emulated_current_device(); }

intptr_t driver_moduleLoadData(PyObject* image, int) {
  const char* bytes = PyBytes_AsString(image);
  if (!bytes) return 0;
  if (strcmp(bytes, "EMULATED") != 0) {
    failure = "this module was not compiled for the emulated GPU";
    raise_driver(200);
    return 0;
  }
  void* library = dlopen(bytes + strlen(bytes) + 1, RTLD_NOW | RTLD_LOCAL);
  const void* kernels = library ? dlsym(library, "emulated_kernels") : nullptr;
  if (!kernels) {
    failure = dlerror();
    raise_driver(200);
    return 0;
  }
  Module* made = new Module{library, static_cast<const EmulatedKernel*>(kernels), emulated_current_device()};
  return reinterpret_cast<intptr_t>(made);
}
// A graph may still hold its kernels, so a library stays.
PyObject* driver_moduleUnload(intptr_t, int) { return none(); }
intptr_t driver_moduleGetFunction(intptr_t handle, PyObject* name, int) {
  Module* module = reinterpret_cast<Module*>(handle);
  const char* wanted = PyUnicode_AsUTF8(name);
  if (!wanted) return 0;
  for (const EmulatedKernel* kernel = module->kernels; kernel->name; ++kernel) {
    if (strcmp(kernel->name, wanted) == 0) {
      return reinterpret_cast<intptr_t>(new Function{kernel, module->device, 49152});
    }
  }
  failure = std::string("the module has no kernel of the name ") + wanted;
  raise_driver(kSymbolNotFound);
  return 0;
}
intptr_t driver_moduleGetGlobal(intptr_t handle, PyObject* name, int) {
  void* place = dlsym(reinterpret_cast<Module*>(handle)->library, PyUnicode_AsUTF8(name));
  if (!place) raise_driver(kSymbolNotFound);
  return reinterpret_cast<intptr_t>(place);
}

PyObject* driver_launchKernel(intptr_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared, intptr_t stream,
                              intptr_t arguments, intptr_t, int) {
  EmulatedGrid grid = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
  return driver_result(launch(reinterpret_cast<Function*>(function), grid, stream, (void**)arguments));
}
PyObject* driver_launchCooperativeKernel(intptr_t, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                         unsigned, intptr_t, intptr_t, int) {
  failure = "cooperative launches are not emulated";
  return driver_result(kNotSupported);
}

int driver_funcGetAttribute(int attribute, intptr_t handle, int) {
  Function* function = reinterpret_cast<Function*>(handle);
  switch (attribute) {
    case 0: return 1024;  // threads of a block
    case 4: return 32;    // registers of a thread
    case 5: case 6: return 90;
    case 8: return function->most_shared;
    default: return 0;
  }
}
PyObject* driver_funcSetAttribute(intptr_t handle, int attribute, int value, int) {
  if (attribute == 8) {
    if (value > 227 * 1024) return driver_result(kInvalidValue);
    reinterpret_cast<Function*>(handle)->most_shared = value;
  }
  return none();
}
int driver_occupancyMaxActiveBlocksPerMultiprocessor(intptr_t, int block, size_t, int) { return 2048 / block; }
PyObject* driver_occupancyMaxPotentialBlockSize(intptr_t, size_t, int, int) {
  return Py_BuildValue("(ii)", 132 * 2, 1024);
}

}  // extern "C"
