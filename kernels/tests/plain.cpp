// The kernels' plain functions against references that are computed in another way. Built and run by a test of xtask.
//
// Prints what fails, and at last "N checks, M failed".
#include <cstdio>
#include <limits>
#include <random>

#include "memory.cuh"
#include "values.cuh"

static unsigned long checks = 0, failed = 0;

static void check(bool holds, const char *what, unsigned long long a, unsigned long long b = 0) {
    checks += 1;
    if (!holds && failed++ < 20) {
        std::printf("%s: %#llx %#llx\n", what, a, b);
    }
}

// ---- 16-bit floats: against the compiler's own type, and against distances in f64 ----------------------------------

static void check_f16(u32 bits) {
    f32 value = __uint_as_float(bits);
    u16 half = f32_to_f16_portable(value);
    u16 expected = same_bits<u16>(static_cast<_Float16>(value));
    bool nan = value != value;
    check(nan ? (half & 0x7c00) == 0x7c00 && (half & 0x03ff) != 0 : half == expected, "f32 to f16", bits, half);
}

// The value of bf16 bits without a sign, where infinity counts as what comes after the greatest finite value.
static f64 magnitude(u32 half) {
    return half == 0x7f80 ? std::ldexp(1.0, 128) : static_cast<f64>(__uint_as_float(half << 16));
}

static void check_bf16(u32 bits) {
    f32 value = __uint_as_float(bits);
    u16 half = Narrow<bf16>::from(value).bits;
    if (value != value) {
        bool nan = (half & 0x7f80) == 0x7f80 && (half & 0x7f) != 0;
        check(nan && (half >> 15) == (bits >> 31), "NaN to bf16", bits, half);
        return;
    }
    u32 below = (bits & 0x7fffffff) >> 16, expected = below;
    if (below < 0x7f80) {
        f64 exact = std::fabs(static_cast<f64>(value));
        f64 down = exact - magnitude(below), up = magnitude(below + 1) - exact;
        expected = down < up || (down == up && below % 2 == 0) ? below : below + 1;
    }
    check(half == (expected | (bits >> 31) << 15), "f32 to bf16", bits, half);
}

static void halves() {
    for (u32 half = 0; half <= 0xffff; ++half) {
        f32 expected = static_cast<f32>(same_bits<_Float16>(static_cast<u16>(half)));
        f32 value = f16_to_f32_portable(static_cast<u16>(half));
        bool same = __float_as_uint(value) == __float_as_uint(expected) || (value != value && expected != expected);
        check(same, "f16 to f32", half, __float_as_uint(value));
        f32 wide = widen(bf16{static_cast<u16>(half)});
        check(__float_as_uint(wide) == half << 16, "bf16 to f32", half, __float_as_uint(wide));
        // There and back is where it was.
        check(wide != wide || Narrow<bf16>::from(wide).bits == half, "bf16 and back", half);
        check(value != value || f32_to_f16_portable(value) == half, "f16 and back", half);
        // Around every value and every midpoint between two: where rounding decides.
        for (u32 base : {__float_as_uint(value), half << 16}) {
            for (u32 offset : {0x0, 0x1, 0x2, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff}) {
                for (u32 bits : {base + offset, base - offset}) {
                    check_f16(bits);
                    check_bf16(bits);
                }
            }
        }
    }
    std::mt19937 random(1);
    for (int i = 0; i < 4000000; ++i) {
        u32 bits = static_cast<u32>(random());
        check_f16(bits);
        check_bf16(bits);
    }
}

// ---- Integers: against 128 bits ------------------------------------------------------------------------------------

template <class T>
static void integers() {
    using Limits = std::numeric_limits<T>;
    const T low = Limits::min(), high = Limits::max();
    const T values[] = {low, static_cast<T>(low + 1), high, static_cast<T>(high - 1), static_cast<T>(high / 3), 0,
                        1,   7,                       100,  static_cast<T>(-1),       static_cast<T>(-7)};
    const u64 counts[] = {1, 2, 3, 7, 127, 128, 255, 256, 65535, 65536, 4294967295u, 4294967296u, ~0ull / 2};
    for (T value : values) {
        for (u64 by : counts) {
            T expected = static_cast<T>(static_cast<__int128>(value) / static_cast<__int128>(by));
            check(divide(value, by) == expected, "divide", static_cast<u64>(value), by);
        }
        for (T other : values) {
            // 128 bits hold every product but that of two large u64, of which the lower bits are right.
            using Wide = unsigned __int128;
            T sum = static_cast<T>(static_cast<Wide>(value) + static_cast<Wide>(other));
            T product = static_cast<T>(static_cast<Wide>(value) * static_cast<Wide>(other));
            check(add(value, other) == sum, "add", static_cast<u64>(value), static_cast<u64>(other));
            check(multiply(value, other) == product, "multiply", static_cast<u64>(value), static_cast<u64>(other));
            check(least(value, other) == (value < other ? value : other), "least", static_cast<u64>(value));
            check(most(value, other) == (value < other ? other : value), "most", static_cast<u64>(value));
        }
    }
    f64 end = std::ldexp(1.0, Limits::digits);
    f64 before = std::nextafter(end, 0.0);
    check(saturate<T>(end) == high, "saturate at the end", 0);
    check(saturate<T>(before) == (Limits::digits < 53 ? high : static_cast<T>(before)), "saturate before the end", 0);
    check(saturate<T>(1e300) == high && saturate<T>(-1e300) == low, "saturate far out", 0);
    check(saturate<T>(INFINITY) == high && saturate<T>(-INFINITY) == low, "saturate infinity", 0);
    check(saturate<T>(NAN) == 0 && saturate<T>(2.9) == 2 && saturate<T>(-0.9) == 0, "saturate", 0);
    check(!Limits::is_signed || saturate<T>(-2.9) == static_cast<T>(-2), "saturate toward zero", 0);
}

// ---- Floats: order -------------------------------------------------------------------------------------------------

template <class V>
static void order() {
    using Limits = std::numeric_limits<V>;
    const V none = 0, tiny = Limits::denorm_min(), small = Limits::min(), large = Limits::max();
    const V end = Limits::infinity();
    const V rising[] = {-end, -large, -1, -small, -tiny, -none, none, tiny, small, 1, large, end};
    const int count = sizeof rising / sizeof rising[0];
    for (int a = 0; a < count; ++a) {
        for (int b = 0; b < count; ++b) {
            V low = rising[a < b ? a : b], high = rising[a < b ? b : a];
            V min = least(rising[a], rising[b]), max = most(rising[a], rising[b]);
            check(min == low && std::signbit(min) == std::signbit(low), "least", a, b);
            check(max == high && std::signbit(max) == std::signbit(high), "most", a, b);
        }
        for (V nan : {Limits::quiet_NaN(), -Limits::quiet_NaN(), Limits::signaling_NaN()}) {
            check(std::isnan(least(rising[a], nan)) && std::isnan(least(nan, rising[a])), "least with NaN", a);
            check(std::isnan(most(rising[a], nan)) && std::isnan(most(nan, rising[a])), "most with NaN", a);
        }
    }
}

// ---- Memory --------------------------------------------------------------------------------------------------------

template <class T>
static void memory() {
    alignas(16) u8 bytes[64], copy[64];
    for (u32 i = 0; i < 64; ++i) {
        bytes[i] = static_cast<u8>(i * 37 + 5);
    }
    Vector in = load_vector(address_of(bytes)), out = {};
    for (u32 e = 0; e < PER_VECTOR<T>; ++e) {
        T element = get<T>(in, e), expected;
        std::memcpy(&expected, bytes + e * sizeof(T), sizeof(T));
        check(std::memcmp(&element, &expected, sizeof(T)) == 0, "get", e, sizeof(T));
        put<T>(out, e, element);
    }
    store_vector(address_of(copy), out);
    check(std::memcmp(bytes, copy, 16) == 0, "put", sizeof(T));
    for (u32 offset = 0; offset < 17; ++offset) {
        T element = load_element<T>(address_of(bytes + offset));
        check(std::memcmp(&element, bytes + offset, sizeof(T)) == 0, "load", offset, sizeof(T));
        std::memset(copy, 0xa5, sizeof copy);
        store_element<T>(address_of(copy + offset), element);
        bool only = true;
        for (u32 i = 0; i < 64; ++i) {
            only &= copy[i] == (i >= offset && i < offset + sizeof(T) ? bytes[i] : 0xa5);
        }
        check(only, "store", offset, sizeof(T));
        u64 head = until_aligned<T>(address_of(bytes + offset), 99);
        bool right = head < PER_VECTOR<T> && (offset + head * sizeof(T)) % VECTOR == 0;
        check(offset % sizeof(T) == 0 ? right : head == 99, "head", offset, head);
    }
}

int main() {
    halves();
    integers<i8>();
    integers<i16>();
    integers<i32>();
    integers<i64>();
    integers<u8>();
    integers<u16>();
    integers<u32>();
    integers<u64>();
    order<f32>();
    order<f64>();
    memory<u8>();
    memory<i8>();
    memory<u16>();
    memory<i16>();
    memory<f16>();
    memory<bf16>();
    memory<u32>();
    memory<i32>();
    memory<f32>();
    memory<u64>();
    memory<i64>();
    memory<f64>();
    std::printf("%lu checks, %lu failed\n", checks, failed);
    return failed == 0 ? 0 : 1;
}
