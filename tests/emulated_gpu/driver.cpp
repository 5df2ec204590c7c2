// A stand-in for the NVIDIA driver's libcuda.so.1, as far as Python packages look at it before they load a library of
// the toolkit: there is a driver of CUDA 13, with one device of compute capability 9.0.
#include <cstddef>
#include <cstring>

#ifndef EMULATED_DRIVER_VERSION
#define EMULATED_DRIVER_VERSION 13000
#endif

namespace {
int the_context;
enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_DEVICE = 101, NOT_FOUND = 500 };
}  // namespace

extern "C" {

int cuInit(unsigned) { return SUCCESS; }

int cuDriverGetVersion(int* version) {
  if (!version) return INVALID_VALUE;
  *version = EMULATED_DRIVER_VERSION;
  return SUCCESS;
}

int cuDeviceGetCount(int* count) {
  *count = 1;
  return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
  if (ordinal != 0) return INVALID_DEVICE;
  *device = 0;
  return SUCCESS;
}

int cuDeviceGetName(char* name, int length, int) {
  std::strncpy(name, "Emulated GPU", length);
  return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  const int MAJOR = 75;
  const int MINOR = 76;
  *value = attribute == MAJOR ? 9 : attribute == MINOR ? 0 : 1;
  return SUCCESS;
}

int cuCtxGetCurrent(void** context) {
  *context = &the_context;
  return SUCCESS;
}

int cuCtxSetCurrent(void*) { return SUCCESS; }

int cuCtxGetDevice(int* device) {
  *device = 0;
  return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &the_context;
  return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

int cuGetErrorName(int, const char** text) {
  *text = "CUDA_ERROR_EMULATED";
  return SUCCESS;
}

int cuGetErrorString(int, const char** text) {
  *text = "an error of the emulated driver";
  return SUCCESS;
}

// Bindings ask here for every entry point by name; those that are not above do not exist.
int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status);

int cuGetProcAddress(const char* name, void** function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long long, int* status) {
  struct Entry {
    const char* name;
    void* function;
  };
  const Entry entries[] = {
      {"cuInit", (void*)cuInit},
      {"cuDriverGetVersion", (void*)cuDriverGetVersion},
      {"cuDeviceGetCount", (void*)cuDeviceGetCount},
      {"cuDeviceGet", (void*)cuDeviceGet},
      {"cuDeviceGetName", (void*)cuDeviceGetName},
      {"cuDeviceGetAttribute", (void*)cuDeviceGetAttribute},
      {"cuCtxGetCurrent", (void*)cuCtxGetCurrent},
      {"cuCtxSetCurrent", (void*)cuCtxSetCurrent},
      {"cuCtxGetDevice", (void*)cuCtxGetDevice},
      {"cuDevicePrimaryCtxRetain", (void*)cuDevicePrimaryCtxRetain},
      {"cuDevicePrimaryCtxRelease", (void*)cuDevicePrimaryCtxRelease_v2},
      {"cuGetErrorName", (void*)cuGetErrorName},
      {"cuGetErrorString", (void*)cuGetErrorString},
      {"cuGetProcAddress", (void*)cuGetProcAddress_v2},
  };
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.name, name) == 0) {
      *function = entry.function;
      if (status) *status = 0;
      return SUCCESS;
    }
  }
  *function = nullptr;
  if (status) *status = 1;
  return NOT_FOUND;
}

}  // extern "C"
