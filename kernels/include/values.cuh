// Arithmetic of accumulators: the operations of a reduction, and what is done once at its end.
#pragma once

#include "types.cuh"

// ---- Floats --------------------------------------------------------------------------------------------------------

KOLO_INLINE f32 add(f32 a, f32 b) {
    return a + b;
}
KOLO_INLINE f64 add(f64 a, f64 b) {
    return a + b;
}
KOLO_INLINE f32 multiply(f32 a, f32 b) {
    return a * b;
}
KOLO_INLINE f64 multiply(f64 a, f64 b) {
    return a * b;
}

// Orders like the value, with -0 below +0: negative values have their lower bits turned round. A NaN is
// the least or the most of all, so that it wins.
KOLO_INLINE i32 key(f32 value, bool least) {
    u32 bits = __float_as_uint(value);
    i32 key = static_cast<i32>(bits ^ ((bits & 0x80000000u) != 0 ? 0x7fffffffu : 0u));
    return value == value ? key : least ? Integer<i32>::least : Integer<i32>::most;
}
KOLO_INLINE i64 key(f64 value, bool least) {
    u64 bits = static_cast<u64>(__double_as_longlong(value));
    i64 key = static_cast<i64>(bits ^ ((bits >> 63) != 0 ? 0x7fffffffffffffffull : 0ull));
    return value == value ? key : least ? Integer<i64>::least : Integer<i64>::most;
}

template <class V>
KOLO_INLINE V least_float(V a, V b) {
    return key(a, true) < key(b, true) ? a : b;
}
template <class V>
KOLO_INLINE V most_float(V a, V b) {
    return key(a, false) > key(b, false) ? a : b;
}
KOLO_INLINE f32 least(f32 a, f32 b) {
    return least_float(a, b);
}
KOLO_INLINE f64 least(f64 a, f64 b) {
    return least_float(a, b);
}
KOLO_INLINE f32 most(f32 a, f32 b) {
    return most_float(a, b);
}
KOLO_INLINE f64 most(f64 a, f64 b) {
    return most_float(a, b);
}

KOLO_INLINE f32 divide(f32 value, u64 by) {
    return value / static_cast<f32>(by);
}
KOLO_INLINE f64 divide(f64 value, u64 by) {
    return value / static_cast<f64>(by);
}
KOLO_INLINE f32 scale(f32 value, f64 by) {
    return value * static_cast<f32>(by);
}
KOLO_INLINE f64 scale(f64 value, f64 by) {
    return value * by;
}

// ---- Integers ------------------------------------------------------------------------------------------------------

// Sums and products wrap.
template <class V>
KOLO_INLINE V add(V a, V b) {
    using Wraps = typename Integer<V>::Wraps;
    return static_cast<V>(static_cast<Wraps>(a) + static_cast<Wraps>(b));
}
template <class V>
KOLO_INLINE V multiply(V a, V b) {
    using Wraps = typename Integer<V>::Wraps;
    return static_cast<V>(static_cast<Wraps>(a) * static_cast<Wraps>(b));
}
template <class V>
KOLO_INLINE V least(V a, V b) {
    return a < b ? a : b;
}
template <class V>
KOLO_INLINE V most(V a, V b) {
    return a > b ? a : b;
}

// Truncated toward zero. The magnitude is divided, because the least value has no positive twin.
template <class V>
KOLO_INLINE V divide(V value, u64 by) {
    using Wraps = typename Integer<V>::Wraps;
    if (by > static_cast<Wraps>(-1)) {
        return 0;
    }
    bool negative = Integer<V>::is_signed && value < 0;
    Wraps magnitude = negative ? Wraps(0) - static_cast<Wraps>(value) : static_cast<Wraps>(value);
    Wraps quotient = magnitude / static_cast<Wraps>(by);
    return static_cast<V>(negative ? Wraps(0) - quotient : quotient);
}

// In f64, then truncated toward zero and saturated.
template <class V>
KOLO_INLINE V scale(V value, f64 by) {
    return saturate<V>(static_cast<f64>(value) * by);
}

// ---- Operations ----------------------------------------------------------------------------------------------------

struct Sum {
    template <class V>
    KOLO_INLINE V apply(V a, V b) {
        return add(a, b);
    }
};
struct Product {
    template <class V>
    KOLO_INLINE V apply(V a, V b) {
        return multiply(a, b);
    }
};
struct Min {
    template <class V>
    KOLO_INLINE V apply(V a, V b) {
        return least(a, b);
    }
};
struct Max {
    template <class V>
    KOLO_INLINE V apply(V a, V b) {
        return most(a, b);
    }
};
struct And {
    template <class V>
    KOLO_INLINE V apply(V a, V b) {
        return a & b;
    }
};
struct Or {
    template <class V>
    KOLO_INLINE V apply(V a, V b) {
        return a | b;
    }
};
struct Xor {
    template <class V>
    KOLO_INLINE V apply(V a, V b) {
        return a ^ b;
    }
};
// Of one input, which is all there is.
struct First {
    template <class V>
    KOLO_INLINE V apply(V a, V) {
        return a;
    }
};

// What happens once to an accumulator before it is stored: a true division, then a multiplication. A divisor or a
// factor of 1 does nothing.
template <class V>
KOLO_INLINE V finish(V value, u64 divide_by, f64 postscale) {
    if (divide_by != 1) {
        value = divide(value, divide_by);
    }
    if (postscale != 1.0) {
        value = scale(value, postscale);
    }
    return value;
}
