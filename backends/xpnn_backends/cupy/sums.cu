// Sums over an epoch.
#include "common.cuh"

// new_total = total + value share, new_weights = weights + share; share is a number, or lies on the device.
// The arrays before and after may be the same.
template <typename S, typename T>
__global__ void add_to_sums(
    const S* total, const S* weights, const T* value, const T* share_place, double share_value, S* new_total,
    S* new_weights) {
  const T share = share_place ? *share_place : (T)share_value;
  *new_total = *total + (S)(*value * share);
  *new_weights = *weights + (S)share;
}
