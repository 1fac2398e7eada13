// Several doubles at once: code written once for V = double, and for the vector types of GCC and Clang where
// there are any. Two lanes are what every x86-64 and arm64 has; four need AVX2, which in_widest_lanes asks
// for at run time. Everything is inlined into its caller, and so compiled for the caller's instruction set.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && !defined(_MSC_VER)
#define UFLOW_INLINE inline __attribute__((always_inline))
#define UFLOW_INLINED __attribute__((always_inline))  // the same for a lambda, after its parameters
#define UFLOW_VECTORS 1
#define UFLOW_PRAGMA(text) _Pragma(#text)
#define UFLOW_UNROLL(n) UFLOW_PRAGMA(GCC unroll n)  // the loop below, of n rounds at most
#ifdef __x86_64__
#define UFLOW_AVX2 __attribute__((target("avx2")))
#define UFLOW_AVX2_FMA __attribute__((target("avx2,fma")))
#endif
// GCC notes at the end of the file that passing vectors depends on the instruction set; here none is ever
// passed.
#pragma GCC diagnostic ignored "-Wpsabi"
#else
#define UFLOW_INLINE inline
#define UFLOW_INLINED
#define UFLOW_UNROLL(n)
#endif

namespace uflow::detail {

template <class V>
struct Lanes;
template <>
struct Lanes<double> {
    using Vector = double;
    using Bits = std::uint64_t;
};
#ifdef UFLOW_VECTORS
typedef double Double2 __attribute__((vector_size(16)));
typedef double Double4 __attribute__((vector_size(32)));
template <>
struct Lanes<Double2> {
    using Vector = Double2;
    typedef std::uint64_t Bits __attribute__((vector_size(16)));
};
template <>
struct Lanes<Double4> {
    using Vector = Double4;
    typedef std::uint64_t Bits __attribute__((vector_size(32)));
};
#endif

// Whether a sum of products rounds alike on every processor, or may be fused where there is an instruction.
enum class Rounding { alike, fused };

#ifdef UFLOW_AVX2
template <class Kernel>
UFLOW_AVX2 auto in_avx2(const Kernel& kernel) {
    return kernel(Lanes<Double4>{});
}
template <class Kernel>
UFLOW_AVX2_FMA auto in_avx2_fma(const Kernel& kernel) {
    return kernel(Lanes<Double4>{});
}
#endif

// Calls kernel(Lanes<V>{}) with the widest V that this processor has. The kernel, a generic lambda marked
// UFLOW_INLINED, is compiled once for every instruction set.
template <Rounding rounding, class Kernel>
auto in_widest_lanes(const Kernel& kernel) {
#ifdef UFLOW_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if constexpr (rounding == Rounding::fused)
            return in_avx2_fma(kernel);
        else
            return in_avx2(kernel);
    }
#endif
#ifdef UFLOW_VECTORS
    return kernel(Lanes<Double2>{});
#else
    return kernel(Lanes<double>{});
#endif
}

template <class V>
inline constexpr int lanes = int(sizeof(V) / sizeof(double));

template <class V>
UFLOW_INLINE V load(const double* from) noexcept {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
UFLOW_INLINE void store(double* to, const V& v) noexcept {
    std::memcpy(to, &v, sizeof v);
}

template <class To, class From>
UFLOW_INLINE To bits_as(const From& from) noexcept {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class V>
UFLOW_INLINE double get(const V& v, int lane) noexcept {
    if constexpr (lanes<V> == 1)
        return v;
    else
        return v[lane];
}

template <class V>
UFLOW_INLINE void set(V& v, int lane, double value) noexcept {
    if constexpr (lanes<V> == 1)
        v = value;
    else
        v[lane] = value;
}

template <class V>
UFLOW_INLINE V gather(const double* from, const std::uint16_t* at) noexcept {
    V v{};
    for (int i = 0; i < lanes<V>; ++i) set(v, i, from[at[i]]);
    return v;
}

template <class V>
UFLOW_INLINE void scatter(const V& v, double* to, const std::uint16_t* at) noexcept {
    for (int i = 0; i < lanes<V>; ++i) to[at[i]] = get(v, i);
}

template <class V>
UFLOW_INLINE V square_root(const V& x) noexcept {
    V root{};
    for (int i = 0; i < lanes<V>; ++i) set(root, i, std::sqrt(get(x, i)));
    return root;
}

// c[0] + c[1] x + ... as two interleaved Horner chains: half the latency of one.
template <class V, std::size_t N>
UFLOW_INLINE V polynomial(const double (&c)[N], const V& x) noexcept {
    const V x2 = x * x;
    constexpr std::size_t last_even = (N - 1) / 2 * 2;
    constexpr std::size_t last_odd = N % 2 == 0 ? N - 1 : N - 2;
    V even = V{} + c[last_even];
    V odd = V{} + c[last_odd];
    for (std::size_t i = last_even; i >= 2; i -= 2) even = even * x2 + c[i - 2];
    for (std::size_t i = last_odd; i >= 3; i -= 2) odd = odd * x2 + c[i - 2];
    return even + x * odd;
}

// ln x - c for normal x > 0, with e = x - 1 to all its digits where x is near 1: c = 0 for the logarithm, c =
// e for ln(1 + e) - e without cancellation. x = 2^exponent (1 + g) with sqrt(1/2) <= 1 + g < sqrt(2), and r =
// g / (2 + g): then ln(1 + g) = 2 artanh(r) (DLMF 4.6.6 and 4.37.24), and 2 r - g = -g r exactly. The
// polynomial is the minimax fit of (2 artanh(r) - 2 r) / r^3 in r^2.
template <class V>
UFLOW_INLINE V log_less(const V& x, const V& e, const V& c) noexcept {
    using Bits = typename Lanes<V>::Bits;
    constexpr std::uint64_t one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd,
                            two_52 = 0x4330000000000000;
    const Bits bits = bits_as<Bits>(x), shifted = bits + (one - sqrt_half);
    const Bits field = (shifted >> 52) | two_52;  // the exponent as the last digits of a double
    const V exponent = bits_as<V>(field) - (4503599627370496.0 + 1023.0);
    const Bits mantissa = bits - (shifted & 0xfff0000000000000) + one;
    const V g = exponent == 0.0 ? e : bits_as<V>(mantissa) - 1.0;
    static constexpr double p[] = {0.6666666666666734, 0.3999999999941512,  0.28571428742303817,
                                   0.2222219858080202, 0.18183563966880198, 0.1531405903129967,
                                   0.14795870488962504};
    const V r = g / (2.0 + g), r2 = r * r;
    return exponent * 0.69314718055994530942 + (g - c) + r * (r2 * polynomial(p, r2) - g);
}

// ln(1 - exp(l)) for l < 0; +0, not -0, where exp(l) is below the normal numbers. exp(l) = 2^k exp(r), the
// last factor a Chebyshev fit on |r| <= ln(2) / 2.
template <class V>
UFLOW_INLINE V ln_complement(const V& l) noexcept {
    using Bits = typename Lanes<V>::Bits;
    static constexpr double c[] = {1.0000000000000000,    1.0000000000000000,     0.5000000000000019,
                                   0.1666666666666668,    0.0416666666664881,     0.008333333333319601,
                                   0.0013888888952314775, 0.00019841269890047113, 2.4801485482328494e-05,
                                   2.755724091857897e-06, 2.763263963904103e-07,  2.5110037605963777e-08};
    constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52: its sum with k holds k in the last bits
    const V least = V{} - 708.0, bounded = l < least ? least : l;
    const V rounded = bounded * 1.4426950408889634074 + magic, k = rounded - magic;
    const V r = (bounded - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
    const V power = bits_as<V>(Bits((bits_as<Bits>(rounded) << 52) + 0x3ff0000000000000));
    const V e = l < least ? V{} : polynomial(c, r) * power;
    return log_less<V>(1.0 - e, -e, V{});
}

// exp(z^2) erfc(z) for z >= 0 to about 4e-16: a Chebyshev fit of (1 + 2 z) exp(z^2) erfc(z) in
// t = (z - 3.75) / (z + 3.75), after Shepherd and Laframboise, Math. Comp. 36 (1981) 249.
template <class V>
UFLOW_INLINE V scaled_erfc(const V& z) noexcept {
    static constexpr double c[] = {
        1.23751263083782753,     -1.40240598585545256e-1, 3.58541548547902533e-3,  8.22767384899950644e-2,
        -1.08803930142444599e-1, 9.23043211642812082e-2,  -5.86933985766495611e-2, 2.83622773721115771e-2,
        -9.74657968326337519e-3, 1.75562616519454761e-3,  2.93714378035677195e-4,  -2.90155352452126798e-4,
        5.16465297701056118e-5,  2.23875656963675274e-5,  -1.14380480886707385e-5, -9.79262545728497902e-7,
        1.7419822277731174e-6,   -5.0844674376581798e-8,  -2.4857131597454588e-7,  1.87908326809460743e-8,
        3.19792900323285828e-8,  -1.95513774259933516e-9, -2.62311172320599739e-9};
    return polynomial(c, V((z - 3.75) / (z + 3.75))) / (1.0 + 2.0 * z);
}

}  // namespace uflow::detail
