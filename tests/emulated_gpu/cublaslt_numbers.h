// The numbers of the emulated cublasLt: how each type is stored and rounded, and the activations of its epilogues.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

enum DataType { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };

float from_half(uint16_t bits) {
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return (float)value;
}

uint16_t to_half(double x) {
  _Float16 value = (_Float16)x;
  uint16_t bits;
  std::memcpy(&bits, &value, 2);
  return bits;
}

float from_bfloat(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

uint16_t to_bfloat(float x) {
  if (std::isnan(x)) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The nearest number with the 10 bits of mantissa that TF32 has.
float to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&x, &bits, 4);
  return x;
}

size_t size_of(uint32_t type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }

double get(const void* base, uint32_t type, int64_t index) {
  switch (type) {
    case R_64F: return ((const double*)base)[index];
    case R_32F: return ((const float*)base)[index];
    case R_16F: return from_half(((const uint16_t*)base)[index]);
    default: return from_bfloat(((const uint16_t*)base)[index]);
  }
}

void put(void* base, uint32_t type, int64_t index, double value) {
  switch (type) {
    case R_64F: ((double*)base)[index] = value; break;
    case R_32F: ((float*)base)[index] = (float)value; break;
    case R_16F: ((uint16_t*)base)[index] = to_half(value); break;
    default: ((uint16_t*)base)[index] = to_bfloat((float)value); break;
  }
}

double tanh_of_gelu(double x, bool is_rough) {
  double t = std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
  return is_rough ? std::nearbyint(t * 1024) / 1024 : t;
}

// The form of GELU that cublasLt computes.
double gelu(double x, bool is_rough) { return 0.5 * x * (1 + tanh_of_gelu(x, is_rough)); }

double gelu_derivative(double x, bool is_rough) {
  double t = tanh_of_gelu(x, is_rough);
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
}

}  // namespace
