// Losses, each with its value and its gradient in one pass over the memory; softmax and its logarithm.
//
// Sums are made of fixed parts in a fixed order: one for each block, in float64, whose number follows from the shapes
// alone. A block that is alone writes the value itself; else `loss_total` adds the parts up. What a kernel shall not
// do, it is given a null pointer for: `value` if gradients alone are wanted, `gradients` in an evaluation.
#include "common.cuh"
#include "reductions.cuh"
#include "rows.cuh"

constexpr int THREADS = 256;

// At most so many threads in a block of a kernel on rows, so that there are registers enough for each.
template <typename T, int HELD, bool IS_BLOCKS>
constexpr int ROW_THREADS = !IS_BLOCKS ? THREADS : 0 < HELD && HELD <= 4 && sizeof(T) < 8 ? 1024 : 512;

// What a row or an element is multiplied with: factor dy / divisor. A null pointer is a divisor of 1.
__device__ inline double divided(double factor, const double* divisor) {
  return divisor ? factor / *divisor : factor;
}

// A sum of losses that are all 0 is divided by 1, not by 0.
__device__ inline double positive_or_one(double total) { return total > 0 ? total : 1.0; }

// The block's part of a loss: into its place, or, where there is but one block, as the loss itself.
template <typename T>
__device__ inline void finish_loss(double mine, double factor, const double* divisor, double* sums, T* value) {
  const double total = over_block(mine, Sum());
  if (threadIdx.x == 0) {
    if (gridDim.x == 1) {
      store(value, (wide<T>)(total * divided(factor, divisor)));
    } else {
      sums[blockIdx.x] = total;
    }
  }
}

// value = factor / divisor * the sum of `sums`
template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
loss_total(const double* sums, int count, double factor, const double* divisor, T* value) {
  double mine = 0;
#pragma unroll 8
  for (int index = threadIdx.x; index < count; index += THREADS) {
    mine += sums[index];
  }
  const double total = over_block(mine, Sum());
  if (threadIdx.x == 0) {
    store(value, (wide<T>)(total * divided(factor, divisor)));
  }
}

// divisor = the sum of `sums`, or 1
__global__ void __launch_bounds__(256) divisor_of(const double* sums, int count, double* divisor) {
  double mine = 0;
#pragma unroll 8
  for (int index = threadIdx.x; index < count; index += THREADS) {
    mine += sums[index];
  }
  const double total = over_block(mine, Sum());
  if (threadIdx.x == 0) {
    *divisor = positive_or_one(total);
  }
}

__device__ inline long long label_at(const void* labels, int bytes, long long index) {
  return bytes == 8 ? reinterpret_cast<const long long*>(labels)[index] : reinterpret_cast<const int*>(labels)[index];
}

// The weight of each row: of its sample, times that of its label's class (0 for a label that is no class), and 0 for an
// ignored label; and their sum. Where there are no labels, it is the sum of the samples' weights.
template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
row_weights(const T* weight, long long rows_of_sample, const void* labels, int label_bytes, const T* class_weights,
            int classes, int ignores, long long ignored, long long rows, double* weights, double* sums,
            double* divisor) {
  double mine = 0;
  GRID_STRIDE(row, rows) {
    double of_row = weight ? (double)load(weight[row / rows_of_sample]) : 1.0;
    if (labels) {
      const long long label = label_at(labels, label_bytes, row);
      if (class_weights) {
        of_row *= label >= 0 && label < classes ? (double)load(class_weights[label]) : 0.0;
      }
      if (ignores && label == ignored) {
        of_row = 0;
      }
    }
    if (weights) {
      weights[row] = of_row;
    }
    mine += of_row;
  }
  const double total = over_block(mine, Sum());
  if (threadIdx.x == 0) {
    if (gridDim.x == 1) {
      *divisor = positive_or_one(total);
    } else {
      sums[blockIdx.x] = total;
    }
  }
}

// The largest of a row and the sum of exp(x - largest): in one pass with a running maximum where the row is not held.
// KEEPS: what is held becomes exp(x - largest).
template <bool KEEPS, typename SomeRow, typename W>
__device__ inline void largest_and_normalizer(SomeRow& row, W& largest, W& normalizer) {
  largest = -largest_finite<W>();
  normalizer = 0;
  if constexpr (SomeRow::IS_HELD) {
    row.each([&](int, const W* x) { largest = Largest()(largest, x[0]); });
    largest = row.over_row(largest, Largest());
    if constexpr (KEEPS) {
      row.replace([&](W x) {
        const W power = exp(x - largest);
        normalizer += power;
        return power;
      });
    } else {
      row.each([&](int, const W* x) { normalizer += exp(x[0] - largest); });
    }
  } else {
    row.each([&](int, const W* x) {
      if (x[0] > largest) {
        normalizer = normalizer * exp(largest - x[0]) + W(1);
        largest = x[0];
      } else {
        normalizer += exp(x[0] - largest);
      }
    });
    const W mine = largest;
    largest = row.over_row(largest, Largest());
    normalizer *= exp(mine - largest);
  }
  normalizer = row.over_row(normalizer, Sum());
}

// What the classes of a row count: c_k ((1 - s) t_k + s / K), with t_k = [k = label] or a soft label, s the smoothing,
// c the classes' weights and K the number of classes.
template <typename T> struct Masses {
  const T* soft;
  const T* class_weights;
  wide<T> kept, spread;
  long long label;

  __device__ wide<T> at(int place) const {
    const wide<T> target = soft ? load(soft[place]) : place == label ? wide<T>(1) : wide<T>(0);
    const wide<T> mass = target * kept + spread;
    return class_weights ? mass * load(class_weights[place]) : mass;
  }
};

// Softmax and cross-entropy of rows of logits z, with p = softmax(z) and f what the row is multiplied with:
//   loss = f (log(normalizer) - (z_label - largest)), gradient = f (p - [k = label])
// or, if HAS_MASSES, with masses m_k:
//   loss = f (log(normalizer) sum m_k - sum m_k (z_k - largest)), gradient = f (p sum m_k - m).
template <typename T, int HELD, int N, bool IS_BLOCKS, bool HAS_MASSES>
__global__ void __launch_bounds__(ROW_THREADS<T, HELD, IS_BLOCKS>, IS_BLOCKS ? 1 : 2)
cross_entropy(const T* logits, const void* labels, int label_bytes, const T* soft_labels, const T* class_weights,
              double smoothing, const double* weights, double factor, const double* divisor, NUMBER(dy),
              long long rows, int classes, int lanes, T* gradients, double* sums, T* value) {
  typedef wide<T> W;
  typedef Row<T, HELD, N, IS_BLOCKS, 1> Logits;
  constexpr bool KEEPS = !HAS_MASSES && HELD > 0 && sizeof(T) == sizeof(W);
  const int rows_at_once = blockDim.x / lanes;
  const int lane = threadIdx.x % lanes;
  const double scale = gradients ? divided(factor, divisor) * GET(dy) : 0.0;
  double loss = 0;
  for (long long top = (long long)blockIdx.x * rows_at_once; top < rows; top += (long long)gridDim.x * rows_at_once) {
    const long long wanted = top + threadIdx.x / lanes;
    const bool exists = wanted < rows;
    const long long row = exists ? wanted : rows - 1;  // all lanes of a warp take part in what follows
    const T* starts[1] = {logits + row * classes};
    Logits z(starts, classes, lane, lanes, -infinity<W>());
    W largest, normalizer;
    largest_and_normalizer<KEEPS>(z, largest, normalizer);
    const double of_row = weights ? weights[row] : 1.0;
    const long long label = labels ? label_at(labels, label_bytes, row) : -1;
    if constexpr (HAS_MASSES) {
      const Masses<T> masses = {soft_labels ? soft_labels + row * classes : nullptr, class_weights,
                                (W)(1.0 - smoothing), (W)(smoothing / classes), label};
      W mass = 0;
      W likelihood = 0;
      z.each([&](int place, const W* x) {
        if (z.is_inside(place)) {
          const W of_class = masses.at(place);
          mass += of_class;
          // A class without mass adds 0 even where its logit is -infinity.
          likelihood += of_class != 0 ? of_class * (x[0] - largest) : W(0);
        }
      });
      mass = z.over_row(mass, Sum());
      likelihood = z.over_row(likelihood, Sum());
      if (lane == 0 && exists) {
        // A row that does not count adds 0, however far its label's logit is.
        loss += of_row * ((double)log(normalizer) * mass - (of_row != 0 ? (double)likelihood : 0.0));
      }
      if (gradients && exists) {
        const W by_row = (W)(scale * of_row);
        const W by_power = mass / normalizer;
        z.write(gradients + row * classes, [&](int place, const W* x) {
          const W of_class = z.is_inside(place) ? masses.at(place) : W(0);
          return (exp(x[0] - largest) * by_power - of_class) * by_row;
        });
      }
    } else {
      const bool is_class = label >= 0 && label < classes;
      if (value && lane == 0 && exists) {
        const double picked = is_class && of_row != 0 ? (double)(load(starts[0][label]) - largest) : 0.0;
        loss += of_row * ((double)log(normalizer) - picked);
      }
      if (gradients && exists) {
        const W by_row = (W)(scale * of_row);
        const W by_power = by_row / normalizer;
        z.write(gradients + row * classes, [&](int place, const W* x) {
          const W power = KEEPS ? x[0] : exp(x[0] - largest);
          return fma(power, by_power, place == label ? -by_row : W(0));
        });
      }
    }
  }
  if (value) {
    finish_loss(loss, factor, divisor, sums, value);
  }
}

// y = exp(x - largest) / normalizer, row by row, or its logarithm
template <typename T, int HELD, int N, bool IS_BLOCKS, bool IS_LOG>
__global__ void __launch_bounds__(ROW_THREADS<T, HELD, IS_BLOCKS>, IS_BLOCKS ? 1 : 2)
softmax(const T* x, T* y, long long rows, int length, int lanes) {
  typedef wide<T> W;
  constexpr bool KEEPS = !IS_LOG && HELD > 0 && sizeof(T) == sizeof(W);
  const int rows_at_once = blockDim.x / lanes;
  for (long long top = (long long)blockIdx.x * rows_at_once; top < rows; top += (long long)gridDim.x * rows_at_once) {
    const long long wanted = top + threadIdx.x / lanes;
    const long long row = wanted < rows ? wanted : rows - 1;
    const T* starts[1] = {x + row * length};
    Row<T, HELD, N, IS_BLOCKS, 1> given(starts, length, threadIdx.x % lanes, lanes, -infinity<W>());
    W largest, normalizer;
    largest_and_normalizer<KEEPS>(given, largest, normalizer);
    if (wanted < rows) {
      if constexpr (IS_LOG) {
        const W logarithm = log(normalizer);
        given.write(y + row * length, [&](int, const W* x) { return (x[0] - largest) - logarithm; });
      } else {
        const W by_power = W(1) / normalizer;
        given.write(y + row * length,
                    [&](int, const W* x) { return (KEEPS ? x[0] : exp(x[0] - largest)) * by_power; });
      }
    }
  }
}

// dx = y (dy - sum of dy y), row by row, for y = softmax(x); dx = dy - exp(y) (sum of dy) for its logarithm
template <typename T, int HELD, int N, bool IS_BLOCKS, bool IS_LOG>
__global__ void __launch_bounds__(ROW_THREADS<T, HELD, IS_BLOCKS>, IS_BLOCKS ? 1 : 2)
softmax_gradient(const T* y, const T* dy, T* dx, long long rows, int length, int lanes) {
  typedef wide<T> W;
  const int rows_at_once = blockDim.x / lanes;
  for (long long top = (long long)blockIdx.x * rows_at_once; top < rows; top += (long long)gridDim.x * rows_at_once) {
    const long long wanted = top + threadIdx.x / lanes;
    const long long row = wanted < rows ? wanted : rows - 1;
    const T* starts[2] = {y + row * length, dy + row * length};
    Row<T, HELD, N, IS_BLOCKS, 2> given(starts, length, threadIdx.x % lanes, lanes, W(0));
    W total = 0;
    given.each([&](int, const W* both) { total += IS_LOG ? both[1] : both[1] * both[0]; });
    total = given.over_row(total, Sum());
    if (wanted < rows) {
      given.write(dx + row * length, [&](int, const W* both) {
        return IS_LOG ? both[1] - exp(both[0]) * total : both[0] * (both[1] - total);
      });
    }
  }
}

// Losses of single elements: value(p, t), the derivatives slope(p, t) for p and target_slope(p, t) for t; the formulas
// are those of the ops in xpnn/ops, `first` and `second` their settings.

template <typename W> struct Settings { W first, second; };

struct Mse {
  template <typename W> static __device__ W value(W p, W t, Settings<W>) { return (p - t) * (p - t); }
  template <typename W> static __device__ W slope(W p, W t, Settings<W>) { return W(2) * (p - t); }
  template <typename W> static __device__ W target_slope(W p, W t, Settings<W>) { return W(-2) * (p - t); }
};

struct Mae {
  template <typename W> static __device__ W value(W p, W t, Settings<W>) { return fabs(p - t); }
  template <typename W> static __device__ W slope(W p, W t, Settings<W>) {
    const W residual = p - t;
    return residual > 0 ? W(1) : residual < 0 ? W(-1) : residual;  // a NaN stays
  }
  template <typename W> static __device__ W target_slope(W p, W t, Settings<W> s) { return -slope(p, t, s); }
};

// With a = min(|r|, delta), both pieces are a (|r| - a / 2), and no large r is squared.
struct Huber {
  template <typename W> static __device__ W value(W p, W t, Settings<W> s) {
    const W size = fabs(p - t);
    const W cut = size > s.first ? s.first : size;
    return cut * (size - W(0.5) * cut);
  }
  template <typename W> static __device__ W slope(W p, W t, Settings<W> s) {
    const W residual = p - t;
    return residual > s.first ? s.first : residual < -s.first ? -s.first : residual;
  }
  template <typename W> static __device__ W target_slope(W p, W t, Settings<W> s) { return -slope(p, t, s); }
};

struct Hinge {
  template <typename W> static __device__ W value(W p, W t, Settings<W>) {
    const W margin = W(1) - t * p;
    return margin < 0 ? W(0) : margin;
  }
  template <typename W> static __device__ W slope(W p, W t, Settings<W>) { return W(1) - t * p > 0 ? -t : W(0); }
};

// a y softplus(-z) + (1 - y) softplus(z) by exp(-|z|), which cannot overflow; a is the first setting.
struct BinaryCrossEntropy {
  template <typename W> static __device__ W value(W z, W y, Settings<W> s) {
    const W positive = y * s.first;
    const W negative = W(1) - y;
    const W losses = positive * (z < 0 ? -z : W(0)) + negative * (z > 0 ? z : W(0));
    return losses + (positive + negative) * log1p(exp(-fabs(z)));
  }
  template <typename W> static __device__ W slope(W z, W y, Settings<W> s) {
    const W decay = exp(-fabs(z));
    const W large = W(1) / (W(1) + decay);
    const W small = decay * large;
    return (W(1) - y) * (z >= 0 ? large : small) - y * s.first * (z >= 0 ? small : large);
  }
};

// -y log p - (1 - y) log(1 - p), where the logarithms go on as their tangents below the floors: see
// xpnn/ops/logarithm.py. The settings are the floors of p and of 1 - p.
struct BinaryCrossEntropyFromProbabilities {
  template <typename W> static __device__ W value(W p, W y, Settings<W> s) {
    const W inside = p < s.first ? s.first : p;
    const W log_yes = log(inside) + ((p > s.first ? s.first : p) * (W(1) / s.first) - W(1));
    const W ceiling = W(1) - s.second;
    const W below = p > ceiling ? ceiling : p;
    const W log_no = log1p(-below) - ((p < ceiling ? ceiling : p) - ceiling) * (W(1) / s.second);
    return -(y * log_yes + (W(1) - y) * log_no);
  }
  template <typename W> static __device__ W slope(W p, W y, Settings<W> s) {
    const W ceiling = W(1) - s.second;
    const W inside = p < s.first ? s.first : p;
    const W below = p > ceiling ? ceiling : p;
    return (W(1) - y) / (W(1) - below) - y / inside;
  }
};

// t (log t - l), 0 where t is 0
struct KlDivergence {
  template <typename W> static __device__ W difference(W l, W t) { return t > 0 ? log(t) - l : W(0); }
  template <typename W> static __device__ W value(W l, W t, Settings<W>) { return t * difference(l, t); }
  template <typename W> static __device__ W slope(W, W t, Settings<W>) { return -t; }
  template <typename W> static __device__ W target_slope(W l, W t, Settings<W>) {
    return t > 0 ? difference(l, t) + W(1) : W(0);
  }
};

// t (s - l) for t = exp(s), where s is given
struct LogKlDivergence {
  template <typename W> static __device__ W value(W l, W s, Settings<W>) { return exp(s) * (s - l); }
  template <typename W> static __device__ W slope(W, W s, Settings<W>) { return -exp(s); }
  template <typename W> static __device__ W target_slope(W l, W s, Settings<W>) { return exp(s) * (s - l + W(1)); }
};

// The sum of the losses of all elements, each times the weight of its sample, and their gradients.
template <typename Loss, typename T, bool HAS_TARGET_GRADIENT>
__global__ void __launch_bounds__(THREADS, 2)
elementwise_loss(const T* prediction, const T* target, const T* weight, long long elements, double first, double second,
                 double factor, const double* divisor, NUMBER(dy), long long count, T* gradients, T* target_gradients,
                 double* sums, T* value) {
  typedef wide<T> W;
  constexpr int N = pack_size<T>();
  const Settings<W> settings = {(W)first, (W)second};
  const double scale = gradients ? divided(factor, divisor) * GET(dy) : 0.0;
  const bool aligned = is_aligned(prediction) && is_aligned(target) &&
                       (!gradients || (is_aligned(gradients) && is_aligned(target_gradients)));
  double loss = 0;
  GRID_STRIDE(pack, (count + N - 1) / N) {
    const long long start = pack * N;
    const bool whole = aligned && start + N <= count;
    Pack<T, N> given, wanted, made, made_for_target;
    if (whole) {
      given = *reinterpret_cast<const Pack<T, N>*>(prediction + start);
      wanted = *reinterpret_cast<const Pack<T, N>*>(target + start);
    }
    // One division for a pack, since it takes long; the sample of each element follows by counting.
    long long sample = weight ? start / elements : 0;
    long long next_sample_at = (sample + 1) * elements;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (start + k < count) {
        const W p = load(whole ? given.at[k] : prediction[start + k]);
        const W t = load(whole ? wanted.at[k] : target[start + k]);
        if (start + k == next_sample_at) {
          ++sample;
          next_sample_at += elements;
        }
        const double of_sample = weight ? (double)load(weight[sample]) : 1.0;
        if (value) {
          loss += of_sample * (double)Loss::value(p, t, settings);
        }
        if (gradients) {
          const W by_sample = (W)(scale * of_sample);
          store(&made.at[k], Loss::slope(p, t, settings) * by_sample);
          if constexpr (HAS_TARGET_GRADIENT) {
            store(&made_for_target.at[k], Loss::target_slope(p, t, settings) * by_sample);
          }
        }
      }
    }
    if (gradients) {
      if (whole) {
        *reinterpret_cast<Pack<T, N>*>(gradients + start) = made;
        if constexpr (HAS_TARGET_GRADIENT) {
          *reinterpret_cast<Pack<T, N>*>(target_gradients + start) = made_for_target;
        }
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          if (start + k < count) {
            gradients[start + k] = made.at[k];
            if constexpr (HAS_TARGET_GRADIENT) {
              target_gradients[start + k] = made_for_target.at[k];
            }
          }
        }
      }
    }
  }
  if (value) {
    finish_loss(loss, factor, divisor, sums, value);
  }
}
