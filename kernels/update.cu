// Optimizer steps, one launch for all parameters: a grid of any size, blocks of THREADS threads.
//
// kolo_RULE_V_G has values of V and gradients of G.
#include "update.cuh"

// ---- SGD: the formulas of src/optim/sgd.rs -------------------------------------------------------------------------

// The argument of kolo_sgd_V_G. Settings are rounded to V already, each by itself.
struct SgdUpdate {
    Update update;
    f64 rate;
    f64 momentum;
    // 1 - dampening.
    f64 share;
    f64 decay;
    // 1: with momentum; 2: and Nesterov's look-ahead; 4: with weight decay.
    u32 flags;
    u32 unused;
};
static_assert(sizeof(SgdUpdate) == 72, "Rust builds the same");

constexpr u32 NESTEROV = 2;
constexpr u32 DECAY = 4;

template <class V, u32 MEMORIES>
struct Sgd {
    static constexpr u32 memories = MEMORIES;
    V rate, momentum, share, decay;
    u32 flags;

    __device__ __forceinline__ void begin(const Parameter &) {}

    __device__ __forceinline__ void step(V &value, V gradient, V &first, V &, bool fresh) const {
        if (flags & DECAY) {
            gradient = plus(gradient, times(decay, value));
        }
        if (MEMORIES > 0) {
            first = fresh ? gradient : plus(times(momentum, first), times(share, gradient));
            gradient = (flags & NESTEROV) ? plus(gradient, times(momentum, first)) : first;
        }
        value = minus(value, times(rate, gradient));
    }
};

template <class V, class G, u32 MEMORIES>
KOLO_INLINE void sgd(const SgdUpdate &argument) {
    Sgd<V, MEMORIES> rule = {rounded<V>(argument.rate), rounded<V>(argument.momentum), rounded<V>(argument.share),
                             rounded<V>(argument.decay), argument.flags};
    update<V, G>(argument.update, rule);
}

// ---- Adam and AdamW ------------------------------------------------------------------------------------------------

// The argument of kolo_adam_V_G, in which t is the number of the step, from 1:
//
//   Adam: g <- g + w p; AdamW: p <- p - r w p        with weight decay w
//   m <- b1 m + (1 - b1) g                           b1, b2: beta1, beta2
//   v <- b2 v + (1 - b2) g g
//   p <- p - r / (1 - b1^t) * (m / (sqrt(v) / sqrt(1 - b2^t) + e))
//
// Sources: Kingma and Ba, "Adam: a method for stochastic optimization", 2015; Loshchilov and Hutter, "Decoupled
// weight decay regularization", 2019.
struct AdamUpdate {
    Update update;
    f64 beta1;
    // 1 - beta1.
    f64 share1;
    f64 beta2;
    // 1 - beta2.
    f64 share2;
    f64 epsilon;
    // Adam: w. AdamW: 1 - r w.
    f64 decay;
    // 1: with weight decay; 2: and that is AdamW's.
    u32 flags;
    u32 unused;
};
static_assert(sizeof(AdamUpdate) == 88, "Rust builds the same");

constexpr u32 DECOUPLED = 2;

template <class V>
struct Adam {
    static constexpr u32 memories = 2;
    V beta1, share1, beta2, share2, epsilon, decay;
    u32 flags;
    // Of the parameter.
    V rate, root;

    __device__ __forceinline__ void begin(const Parameter &parameter) {
        rate = rounded<V>(parameter.step);
        root = rounded<V>(parameter.root);
    }

    __device__ __forceinline__ void step(V &value, V gradient, V &first, V &second, bool) const {
        if (flags == 1) {
            gradient = plus(gradient, times(decay, value));
        } else if (flags & DECOUPLED) {
            value = times(decay, value);
        }
        // What is not remembered yet is zero.
        first = plus(times(beta1, first), times(share1, gradient));
        second = plus(times(beta2, second), times(times(share2, gradient), gradient));
        V spread = plus(over(root_of(second), root), epsilon);
        value = minus(value, times(rate, over(first, spread)));
    }
};

template <class V, class G>
KOLO_INLINE void adam(const AdamUpdate &argument) {
    Adam<V> rule = {rounded<V>(argument.beta1),
                    rounded<V>(argument.share1),
                    rounded<V>(argument.beta2),
                    rounded<V>(argument.share2),
                    rounded<V>(argument.epsilon),
                    rounded<V>(argument.decay),
                    argument.flags,
                    V(),
                    V()};
    update<V, G>(argument.update, rule);
}

#define KOLO_SGD(V, G)                                                                                                 \
    KOLO_LARGE_KERNEL kolo_sgd_##V##_##G(SgdUpdate argument) {                                                         \
        if (argument.flags & 1) {                                                                                      \
            sgd<V, G, 1>(argument);                                                                                    \
        } else {                                                                                                       \
            sgd<V, G, 0>(argument);                                                                                    \
        }                                                                                                              \
    }
#define KOLO_ADAM(V, G)                                                                                                \
    KOLO_LARGE_KERNEL kolo_adam_##V##_##G(AdamUpdate argument) {                                                       \
        adam<V, G>(argument);                                                                                          \
    }

KOLO_SGD(f16, f16)
KOLO_SGD(bf16, bf16)
KOLO_SGD(f32, f16)
KOLO_SGD(f32, bf16)
KOLO_SGD(f32, f32)
KOLO_SGD(f64, f64)
KOLO_ADAM(f32, f16)
KOLO_ADAM(f32, bf16)
KOLO_ADAM(f32, f32)
KOLO_ADAM(f64, f64)
