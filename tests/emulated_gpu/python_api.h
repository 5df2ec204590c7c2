// The few functions of Python's C interface that are used here (declared by hand: its headers need not be installed).
#pragma once
#include <cstdint>

extern "C" {
struct _object;
typedef struct _object PyObject;
extern PyObject _Py_NoneStruct;
extern PyObject* PyExc_RuntimeError;
void Py_IncRef(PyObject*);
void Py_DecRef(PyObject*);
PyObject* PyObject_CallFunction(PyObject* callable, const char* format, ...);
PyObject* Py_BuildValue(const char* format, ...);
PyObject* PyDict_Copy(PyObject*);
char* PyBytes_AsString(PyObject*);
const char* PyUnicode_AsUTF8(PyObject*);
void PyErr_SetString(PyObject* type, const char* text);
int PyGILState_Check();
void* PyEval_SaveThread();
void PyEval_RestoreThread(void* thread);
}

inline PyObject* none() {
  Py_IncRef(&_Py_NoneStruct);
  return &_Py_NoneStruct;
}

// Sets the Python exception for a status that is not 0: CUDARuntimeError or CUDADriverError.
void raise_runtime(int status);
void raise_driver(int status);

inline PyObject* runtime_result(int status) {
  if (status == 0) return none();
  raise_runtime(status);
  return nullptr;
}
inline PyObject* driver_result(int status) {
  if (status == 0) return none();
  raise_driver(status);
  return nullptr;
}
