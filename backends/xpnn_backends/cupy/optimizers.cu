// The updates of the optimizers: each reads every array once and writes every array once.
//
// The formula of an optimizer is a "rule": a struct that holds its settings in the arithmetic of theta's dtype, and
// turns one element of theta and of the slots into the new ones. `update` applies a rule to whole arrays. What is
// derived from the settings alone (1 - beta1, say) is computed in double, by one thread of each block.
#include "common.cuh"

constexpr int UPDATE_THREADS = 256;

// Packs of each array that a thread asks for before it computes, where it reads so many arrays: with 3 to 8 loads on
// their way for each thread the memory is busy, and what they bring and the formula fit into the registers.
template <typename T> __device__ constexpr int update_packs(int arrays) {
  const int packs = arrays <= 2 ? 4 : (arrays <= 4 ? 2 : 1);
  return sizeof(T) == 8 && packs > 1 ? packs / 2 : packs;
}

// At least 4 blocks on each multiprocessor, which leaves 64 registers for a thread; for float64, whose divisions and
// roots need more of them, 3 blocks and 80 registers.
template <typename T> constexpr int UPDATE_BLOCKS = sizeof(T) == 8 ? 3 : 4;

// The N arrays that an update changes: theta first, then the slots. In place, `from` and `to` are the same.
template <typename T, int N> struct Changed {
  const T* from[N];
  T* to[N];
};

// Element by element: (to[0], to[1], ...) = rule((from[0], from[1], ...), gradient, decay).
//
// `decays` has a weight decay for each element, or is null. Nothing is written before it was read: each thread reads
// and writes the same elements, and the gradient is never one of the arrays that are written.
template <typename T, int N, typename Rule>
__device__ inline void update(
    const Rule& rule, const Changed<T, N>& arrays, const T* __restrict__ gradient, const T* __restrict__ decays,
    long long count) {
  constexpr int SIZE = pack_size<T>();
  constexpr int PACKS = update_packs<T>(N + (Rule::HAS_DECAYS ? 2 : 1));
  typedef Pack<T, SIZE> Several;

  bool aligned = is_aligned(gradient) && is_aligned(decays);
#pragma unroll
  for (int array = 0; array < N; ++array) {
    aligned = aligned && is_aligned(arrays.from[array]) && is_aligned(arrays.to[array]);
  }
  const long long packs = aligned ? count / SIZE : 0;

  // A thread's packs lie one grid apart: a small array, too, is spread over all blocks.
  const long long grid = (long long)gridDim.x * UPDATE_THREADS;
  long long first = (long long)blockIdx.x * UPDATE_THREADS + threadIdx.x;
#pragma unroll 1
  for (; first < packs; first += PACKS * grid) {
    Several old[PACKS][N];
    Several slopes[PACKS];
    Several shares[PACKS];
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
      const long long index = first + pack * grid;
      if (index < packs) {
#pragma unroll
        for (int array = 0; array < N; ++array) {
          old[pack][array] = reinterpret_cast<const Several*>(arrays.from[array])[index];
        }
        slopes[pack] = reinterpret_cast<const Several*>(gradient)[index];
        if (Rule::HAS_DECAYS) {
          shares[pack] = reinterpret_cast<const Several*>(decays)[index];
        }
      }
    }
#pragma unroll
    for (int pack = 0; pack < PACKS; ++pack) {
      const long long index = first + pack * grid;
      if (index < packs) {
#pragma unroll
        for (int lane = 0; lane < SIZE; ++lane) {
          T x[N];
#pragma unroll
          for (int array = 0; array < N; ++array) {
            x[array] = old[pack][array].at[lane];
          }
          rule(x, slopes[pack].at[lane], Rule::HAS_DECAYS ? shares[pack].at[lane] : T(0));
#pragma unroll
          for (int array = 0; array < N; ++array) {
            old[pack][array].at[lane] = x[array];
          }
        }
#pragma unroll
        for (int array = 0; array < N; ++array) {
          reinterpret_cast<Several*>(arrays.to[array])[index] = old[pack][array];
        }
      }
    }
  }

  // What the packs leave over: less than one of them, or everything where some array is not aligned.
  const long long done = packs * SIZE;
#pragma unroll 1
  GRID_STRIDE(rest, count - done) {
    const long long index = done + rest;
    T x[N];
#pragma unroll
    for (int array = 0; array < N; ++array) {
      x[array] = arrays.from[array][index];
    }
    rule(x, gradient[index], Rule::HAS_DECAYS ? decays[index] : T(0));
#pragma unroll
    for (int array = 0; array < N; ++array) {
      arrays.to[array][index] = x[array];
    }
  }
}

// One thread makes the rule, with divisions and roots in double; the others wait for it.
#define SHARED_RULE(Type, ...)   \
  __shared__ Type shared_rule;   \
  if (threadIdx.x == 0) {        \
    shared_rule = {__VA_ARGS__}; \
  }                              \
  __syncthreads();               \
  const Type rule = shared_rule

// Products and sums that are rounded one by one, where a fused one would change more than the last bit.
__device__ inline float product(float x, float y) { return __fmul_rn(x, y); }
__device__ inline double product(double x, double y) { return __dmul_rn(x, y); }
__device__ inline float sum(float x, float y) { return __fadd_rn(x, y); }
__device__ inline double sum(double x, double y) { return __dadd_rn(x, y); }

// theta' = theta - learning_rate gradient
template <typename T> struct Sgd {
  static constexpr bool HAS_DECAYS = false;
  T learning_rate;

  __device__ void operator()(T (&x)[1], T gradient, T) const { x[0] -= gradient * learning_rate; }
};

template <typename T>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) sgd(
    const T* theta, T* new_theta, const T* gradient, long long count, NUMBER(learning_rate)) {
  const Sgd<T> rule = {T(GET(learning_rate))};
  update<T, 1>(rule, {{theta}, {new_theta}}, gradient, nullptr, count);
}

// velocity' = momentum velocity + gradient_weight gradient
// theta' = theta - learning_rate velocity', or with Nesterov's, theta - learning_rate (gradient + momentum velocity')
template <typename T, bool NESTEROV> struct SgdMomentum {
  static constexpr bool HAS_DECAYS = false;
  T learning_rate, momentum, gradient_weight;

  __device__ void operator()(T (&x)[2], T gradient, T) const {
    x[1] = momentum * x[1] + gradient_weight * gradient;
    const T direction = NESTEROV ? gradient + momentum * x[1] : x[1];
    x[0] -= learning_rate * direction;
  }
};

template <typename T, bool NESTEROV>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) sgd_momentum(
    const T* theta, const T* velocity, T* new_theta, T* new_velocity, const T* gradient, long long count,
    NUMBER(learning_rate), NUMBER(momentum), NUMBER(gradient_weight)) {
  typedef SgdMomentum<T, NESTEROV> Rule;
  const Rule rule = {T(GET(learning_rate)), T(GET(momentum)), T(GET(gradient_weight))};
  update<T, 2>(rule, {{theta, velocity}, {new_theta, new_velocity}}, gradient, nullptr, count);
}

// first' = beta1 first + (1 - beta1) gradient
// second' = beta2 second + (1 - beta2) gradient^2
// direction = first' / correction1 / (sqrt(second' / correction2) + epsilon)
// theta' = (1 - learning_rate decay) theta - learning_rate direction
template <typename T, bool DECAYS> struct Adam {
  static constexpr bool HAS_DECAYS = DECAYS;
  T beta1, rest1, beta2, rest2, epsilon, inverse_scale, rate, learning_rate, keep;

  // The first two lines of the formula, on x = (theta, first, second).
  template <int N> __device__ void advance(T (&x)[N], T gradient) const {
    x[1] = beta1 * x[1] + rest1 * gradient;
    // g * ((1 - beta2) * g) is finite for some g whose plain square is not.
    x[2] = beta2 * x[2] + gradient * (rest2 * gradient);
  }

  // The rest, with another second moment under the root for AMSGrad.
  __device__ T moved(T theta, T first, T second, T decay) const {
    const T denominator = sqrt(second) * inverse_scale + epsilon;
    const T kept = (DECAYS ? T(1) - learning_rate * decay : keep) * theta;
    return kept - rate * (first / denominator);
  }

  __device__ void operator()(T (&x)[3], T gradient, T decay) const {
    advance(x, gradient);
    x[0] = moved(x[0], x[1], x[2], decay);
  }
};

// The settings of Adam from its numbers, in the order of its members.
#define ADAM_SETTINGS                                                                                        \
  T(GET(beta1)), T(1.0 - GET(beta1)), T(GET(beta2)), T(1.0 - GET(beta2)), T(GET(epsilon)),                   \
      T(1.0 / sqrt(GET(correction2))), T(GET(learning_rate) / GET(correction1)), T(GET(learning_rate)),      \
      T(1.0 - GET(learning_rate) * GET(decay))

template <typename T, bool DECAYS>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) adam(
    const T* theta, const T* first_moment, const T* second_moment, T* new_theta, T* new_first, T* new_second,
    const T* gradient, const T* decays, long long count, NUMBER(learning_rate), NUMBER(beta1), NUMBER(beta2),
    NUMBER(epsilon), NUMBER(correction1), NUMBER(correction2), NUMBER(decay)) {
  typedef Adam<T, DECAYS> Rule;
  SHARED_RULE(Rule, ADAM_SETTINGS);
  update<T, 3>(
      rule, {{theta, first_moment, second_moment}, {new_theta, new_first, new_second}}, gradient, decays, count);
}

// As Adam, with largest' = max(largest, second') under the root. A NaN in either stays.
template <typename T, bool DECAYS> struct Amsgrad {
  static constexpr bool HAS_DECAYS = DECAYS;
  Adam<T, DECAYS> adam;

  __device__ void operator()(T (&x)[4], T gradient, T decay) const {
    adam.advance(x, gradient);
    if (!(x[3] >= x[2] || x[3] != x[3])) {
      x[3] = x[2];
    }
    x[0] = adam.moved(x[0], x[1], x[3], decay);
  }
};

template <typename T, bool DECAYS>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) amsgrad(
    const T* theta, const T* first_moment, const T* second_moment, const T* largest, T* new_theta, T* new_first,
    T* new_second, T* new_largest, const T* gradient, const T* decays, long long count, NUMBER(learning_rate),
    NUMBER(beta1), NUMBER(beta2), NUMBER(epsilon), NUMBER(correction1), NUMBER(correction2), NUMBER(decay)) {
  typedef Amsgrad<T, DECAYS> Rule;
  SHARED_RULE(Rule, {ADAM_SETTINGS});
  update<T, 4>(
      rule, {{theta, first_moment, second_moment, largest}, {new_theta, new_first, new_second, new_largest}}, gradient,
      decays, count);
}

// The moments as in Adam, and
// theta' = theta - (gradient_rate gradient + moment_rate first') / (sqrt(second' / correction2) + epsilon)
template <typename T> struct Nadam {
  static constexpr bool HAS_DECAYS = false;
  T gradient_rate, moment_rate, beta1, rest1, beta2, rest2, epsilon, inverse_scale;

  __device__ void operator()(T (&x)[3], T gradient, T) const {
    x[1] = beta1 * x[1] + rest1 * gradient;
    x[2] = beta2 * x[2] + gradient * (rest2 * gradient);
    const T denominator = sqrt(x[2]) * inverse_scale + epsilon;
    x[0] -= (gradient_rate * gradient + moment_rate * x[1]) / denominator;
  }
};

template <typename T>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) nadam(
    const T* theta, const T* first_moment, const T* second_moment, T* new_theta, T* new_first, T* new_second,
    const T* gradient, long long count, NUMBER(gradient_rate), NUMBER(moment_rate), NUMBER(beta1), NUMBER(beta2),
    NUMBER(epsilon), NUMBER(correction2)) {
  typedef Nadam<T> Rule;
  SHARED_RULE(
      Rule, T(GET(gradient_rate)), T(GET(moment_rate)), T(GET(beta1)), T(1.0 - GET(beta1)), T(GET(beta2)),
      T(1.0 - GET(beta2)), T(GET(epsilon)), T(1.0 / sqrt(GET(correction2))));
  update<T, 3>(
      rule, {{theta, first_moment, second_moment}, {new_theta, new_first, new_second}}, gradient, nullptr, count);
}

// average' = alpha average + (1 - alpha) gradient^2
// direction = gradient / (sqrt(average') + epsilon)
// theta' = theta - learning_rate direction; with momentum, velocity' = momentum velocity + direction in its place
template <typename T, bool MOMENTUM> struct Rmsprop {
  static constexpr bool HAS_DECAYS = false;
  T learning_rate, alpha, rest, epsilon, momentum;

  __device__ void operator()(T (&x)[MOMENTUM ? 3 : 2], T gradient, T) const {
    x[1] = alpha * x[1] + gradient * (rest * gradient);
    T direction = gradient / (sqrt(x[1]) + epsilon);
    if constexpr (MOMENTUM) {
      direction = momentum * x[2] + direction;
      x[2] = direction;
    }
    x[0] -= learning_rate * direction;
  }
};

template <typename T, bool MOMENTUM>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) rmsprop(
    const T* theta, const T* average, const T* velocity, T* new_theta, T* new_average, T* new_velocity,
    const T* gradient, long long count, NUMBER(learning_rate), NUMBER(alpha), NUMBER(epsilon), NUMBER(momentum)) {
  typedef Rmsprop<T, MOMENTUM> Rule;
  SHARED_RULE(
      Rule, T(GET(learning_rate)), T(GET(alpha)), T(1.0 - GET(alpha)), T(GET(epsilon)), T(GET(momentum)));
  if constexpr (MOMENTUM) {
    update<T, 3>(
        rule, {{theta, average, velocity}, {new_theta, new_average, new_velocity}}, gradient, nullptr, count);
  } else {
    update<T, 2>(rule, {{theta, average}, {new_theta, new_average}}, gradient, nullptr, count);
  }
}

// offset = gradient - average
// variance' = alpha variance + alpha (1 - alpha) offset^2
// average' = average + (1 - alpha) offset
// and on as in Rmsprop, with the variance' under the root
template <typename T, bool MOMENTUM> struct RmspropCentered {
  static constexpr bool HAS_DECAYS = false;
  T learning_rate, alpha, rest, spread, epsilon, momentum;

  __device__ void operator()(T (&x)[MOMENTUM ? 4 : 3], T gradient, T) const {
    const T offset = gradient - x[2];
    x[1] = alpha * x[1] + offset * (spread * offset);
    x[2] = x[2] + rest * offset;
    T direction = gradient / (sqrt(x[1]) + epsilon);
    if constexpr (MOMENTUM) {
      direction = momentum * x[3] + direction;
      x[3] = direction;
    }
    x[0] -= learning_rate * direction;
  }
};

template <typename T, bool MOMENTUM>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) rmsprop_centered(
    const T* theta, const T* variance, const T* average, const T* velocity, T* new_theta, T* new_variance,
    T* new_average, T* new_velocity, const T* gradient, long long count, NUMBER(learning_rate), NUMBER(alpha),
    NUMBER(epsilon), NUMBER(momentum)) {
  typedef RmspropCentered<T, MOMENTUM> Rule;
  SHARED_RULE(
      Rule, T(GET(learning_rate)), T(GET(alpha)), T(1.0 - GET(alpha)), T(GET(alpha) * (1.0 - GET(alpha))),
      T(GET(epsilon)), T(GET(momentum)));
  if constexpr (MOMENTUM) {
    update<T, 4>(
        rule, {{theta, variance, average, velocity}, {new_theta, new_variance, new_average, new_velocity}}, gradient,
        nullptr, count);
  } else {
    update<T, 3>(
        rule, {{theta, variance, average}, {new_theta, new_variance, new_average}}, gradient, nullptr, count);
  }
}

// sum' = sum + gradient^2
// theta' = theta - learning_rate gradient / (sqrt(sum') + epsilon)
template <typename T> struct Adagrad {
  static constexpr bool HAS_DECAYS = false;
  T learning_rate, epsilon;

  __device__ void operator()(T (&x)[2], T gradient, T) const {
    x[1] = x[1] + gradient * gradient;
    x[0] -= learning_rate * (gradient / (sqrt(x[1]) + epsilon));
  }
};

template <typename T>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) adagrad(
    const T* theta, const T* square_sum, T* new_theta, T* new_sum, const T* gradient, long long count,
    NUMBER(learning_rate), NUMBER(epsilon)) {
  const Adagrad<T> rule = {T(GET(learning_rate)), T(GET(epsilon))};
  update<T, 2>(rule, {{theta, square_sum}, {new_theta, new_sum}}, gradient, nullptr, count);
}

// average' = rho average + (1 - rho) gradient^2
// step = gradient sqrt(steps + epsilon) / sqrt(average' + epsilon)
// steps' = rho steps + (1 - rho) step^2
// theta' = theta - learning_rate step
template <typename T> struct Adadelta {
  static constexpr bool HAS_DECAYS = false;
  T learning_rate, rho, rest, epsilon;

  __device__ void operator()(T (&x)[3], T gradient, T) const {
    x[1] = rho * x[1] + gradient * (rest * gradient);
    const T step = gradient * (sqrt(x[2] + epsilon) / sqrt(x[1] + epsilon));
    x[2] = rho * x[2] + step * (rest * step);
    x[0] -= learning_rate * step;
  }
};

template <typename T>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) adadelta(
    const T* theta, const T* average, const T* steps, T* new_theta, T* new_average, T* new_steps, const T* gradient,
    long long count, NUMBER(learning_rate), NUMBER(rho), NUMBER(epsilon)) {
  typedef Adadelta<T> Rule;
  SHARED_RULE(Rule, T(GET(learning_rate)), T(GET(rho)), T(1.0 - GET(rho)), T(GET(epsilon)));
  update<T, 3>(rule, {{theta, average, steps}, {new_theta, new_average, new_steps}}, gradient, nullptr, count);
}

// theta' = (1 - learning_rate decay) theta - learning_rate sign(beta1 momentum + (1 - beta1) gradient)
// momentum' = beta2 momentum + (1 - beta2) gradient
template <typename T, bool DECAYS> struct Lion {
  static constexpr bool HAS_DECAYS = DECAYS;
  T learning_rate, beta1, rest1, beta2, rest2, keep;

  __device__ void operator()(T (&x)[2], T gradient, T decay) const {
    // A fused product would leave a rounding error, with a sign, where two equal products cancel.
    const T direction = sum(product(beta1, x[1]), product(rest1, gradient));
    const T sign = direction > T(0) ? T(1) : (direction < T(0) ? T(-1) : direction);
    const T kept = (DECAYS ? T(1) - learning_rate * decay : keep) * x[0];
    x[0] = kept - learning_rate * sign;
    x[1] = beta2 * x[1] + rest2 * gradient;
  }
};

template <typename T, bool DECAYS>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) lion(
    const T* theta, const T* momentum, T* new_theta, T* new_momentum, const T* gradient, const T* decays,
    long long count, NUMBER(learning_rate), NUMBER(beta1), NUMBER(beta2), NUMBER(decay)) {
  typedef Lion<T, DECAYS> Rule;
  SHARED_RULE(
      Rule, T(GET(learning_rate)), T(GET(beta1)), T(1.0 - GET(beta1)), T(GET(beta2)), T(1.0 - GET(beta2)),
      T(1.0 - GET(learning_rate) * GET(decay)));
  update<T, 2>(rule, {{theta, momentum}, {new_theta, new_momentum}}, gradient, decays, count);
}

// gradient' = gradient + decay theta: the gradient is what changes, and theta has the place of the gradient
template <typename T, bool DECAYS> struct AddWeightDecay {
  static constexpr bool HAS_DECAYS = DECAYS;
  T decay_of_all;

  __device__ void operator()(T (&x)[1], T theta, T decay) const { x[0] += (DECAYS ? decay : decay_of_all) * theta; }
};

template <typename T, bool DECAYS>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) add_weight_decay(
    const T* gradient, T* new_gradient, const T* theta, const T* decays, long long count, NUMBER(decay)) {
  const AddWeightDecay<T, DECAYS> rule = {T(GET(decay))};
  update<T, 1>(rule, {{gradient}, {new_gradient}}, theta, decays, count);
}

// average' = decay average + (1 - decay) value: the value has the place of the gradient
template <typename T> struct MovingAverage {
  static constexpr bool HAS_DECAYS = false;
  T decay, rest;

  __device__ void operator()(T (&x)[1], T value, T) const { x[0] = decay * x[0] + rest * value; }
};

template <typename T>
__global__ void __launch_bounds__(UPDATE_THREADS, UPDATE_BLOCKS<T>) moving_average(
    const T* average, T* new_average, const T* value, long long count, NUMBER(decay)) {
  typedef MovingAverage<T> Rule;
  SHARED_RULE(Rule, T(GET(decay)), T(1.0 - GET(decay)));
  update<T, 1>(rule, {{average}, {new_average}}, value, nullptr, count);
}
