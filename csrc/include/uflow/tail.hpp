// Upper tails of the chi-square and binomial laws as log10 probabilities, finite far below 1e-308 and
// accurate also where the probability is near 1; and the bounds and tables made of them. The mathematics is
// from the DLMF (https://dlmf.nist.gov), from C. Loader, "Fast and accurate computation of binomial
// probabilities" (2000), and from N. M. Temme, "The asymptotic expansion of the incomplete gamma functions"
// (1979).
//
// Both laws are one. The binomial tail is I_p(a, b) with a = k, b = n - k + 1 (DLMF 8.17.5); the gamma
// functions P(a, y) and Q(a, y) of the chi-square law are its limits b -> infinity, p b -> y, and a ->
// infinity. Always the tail that does not hold the mean is computed, and the other is 1 minus it. With the
// density term
//   T = p^a q^b / B(a, b) = sqrt(W / 2 pi) exp(S - D), W = a b / (a + b), S = s(a + b) - s(a) - s(b),
//   D = a ln(a / ((a + b) p)) + b ln(b / ((a + b) q)) >= 0, s the error of Stirling's formula,
// the tail is T / (E + U1 / (E + (1 + p) + U2 / (E + 2 (1 + p) + ...))), E = a - (a + b - 1) p and
// Um = m (p b - m p): Noerlund's fraction of 2F1(1, k - n; k + 1; -p / q) (DLMF 15.7.5), without a division
// and, for the binomial law, of positive terms. Near the mean, where it needs many terms, the tail is in
// Temme's form
//   erfc(sqrt(D)) / 2 - exp(-D) / sqrt(2 pi W) R(-sqrt(2 D / W)), R a power series (DLMF 8.18.9 and 8.12.4).
//
// Values are computed in blocks: first what all need, then the fraction or Temme's form for those of one
// kind, several lanes at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "uflow/lanes.hpp"

namespace uflow {

enum class Tail { exact, chernoff, chernoff_unguarded, binomial };

// An argument of a function of many values: one for each, or one for all.
struct Column {
    const double* data;
    bool varies = true;

    double operator[](std::size_t i) const noexcept { return data[varies ? i : 0]; }

    // The lanes from i on, of which `left` exist; the last ones are repeated beyond.
    template <class V>
    UFLOW_INLINE V at(std::size_t i, std::size_t left) const noexcept {
        constexpr std::size_t count = detail::lanes<V>;
        if (!varies) return V{} + data[0];
        if (left >= count) return detail::load<V>(data + i);
        V v = V{} + data[i];
        for (std::size_t lane = 1; lane < left; ++lane) detail::set(v, int(lane), data[i + lane]);
        return v;
    }
};

namespace detail {

inline constexpr double inf = std::numeric_limits<double>::infinity();
inline constexpr double nan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double inv_ln10 = 0.43429448190325182765;
inline constexpr double inv_2pi = 0.15915494309189533577;
inline constexpr double two_pi = 6.28318530717958647693;
inline constexpr double stirling_error_of_1 = 0.081061466795327258;
inline constexpr double ln_sqrt_2pi = 0.91893853320467274178;

// Stirling's error ln Gamma(z) - (z - 1/2) ln z + z - ln sqrt(2 pi) (DLMF 5.11.1) for z >= 2 to 3e-15, from 1
// / z: a Chebyshev fit of z times it.
template <class V>
UFLOW_INLINE V stirling_error(const V& inverse) noexcept {
    static constexpr double c[] = {0.08333333333332062,   -0.0027777777653903326, 0.0007936487486421857,
                                   -0.000595102676981712, 0.0008369804898425647,  -0.001814091853214181,
                                   0.004886275766714229,  -0.012828688343340383,  0.026503555792739386,
                                   -0.03530439446706944,  0.021911477434025075};
    return inverse * polynomial(c, V(inverse * inverse));
}

// The same for 0 < z < 2.
inline double stirling_error_below_2(double z) noexcept {
    return std::log(std::tgamma(z)) - (z - 0.5) * std::log(z) + z - ln_sqrt_2pi;
}

// 1 / (E + U1 / (E + (1 + p) + ...)), Um = m (U - m p), from term `terms` backwards: numerators of the
// convergents follow a recurrence without a division. Everything is scaled by a power of two near 1 / E.
template <int terms, class V>
UFLOW_INLINE V fraction(const V& E, const V& U, const V& p) noexcept {
    using Bits = typename Lanes<V>::Bits;
    const Bits exponent = bits_as<Bits>(V(E + double(terms))) & 0x7ff0000000000000;
    const V scale = bits_as<V>(Bits(0x7fe0000000000000 - exponent));
    const V e = E * scale, step = (1.0 + p) * scale, u = U * scale * scale, u2 = p * scale * scale;
    V before = V{} + 1.0, now = e + step * double(terms);
    UFLOW_UNROLL(16)
    for (double m = terms; m > 0.0; m -= 1.0) {
        const V next = (e + step * (m - 1.0)) * now + (u - u2 * m) * m * before;
        before = now;
        now = next;
    }
    return before * scale / now;
}

// Temme's form for D <= 4.5 and W >= 40: the tail over exp(-D) sqrt(W / 2 pi). With t the logit of p less its
// value at the mode, s^2 / 2 = D / W and u = (b - a) / (a + b), v = a b / (a + b)^2, the density is that of a
// normal law in s times dt/ds = 1 + g1 s + g2 s^2 + ...; g_n, odd ones without their factor u, are
// polynomials in v (`degree` 0: v = 0). Partial integration turns that series into R's, term by term from the
// last.
template <int degree, class V>
UFLOW_INLINE V temme(const V& D, const V& W, const V& u, const V& v) noexcept {
    static constexpr double g[15][6] = {
        {-0.3333333333333333},
        {0.08333333333333333, -0.08333333333333333},
        {-0.014814814814814815, -0.007407407407407408},
        {0.0011574074074074073, -0.0023148148148148147, 0.0011574074074074073},
        {0.0003527336860670194, -0.0001763668430335097, -0.0001763668430335097},
        {-0.0001787551440329218, 0.0005362654320987655, 1.9290123456790123e-05, 0.0001787551440329218},
        {3.919263178522438e-05, -5.878894767783657e-05, 0.0, 1.959631589261219e-05},
        {-2.185448510679992e-06, 8.741794042719968e-06, -6.4989344503233396e-06, 2.1280374289633547e-06,
         -2.185448510679992e-06},
        {-1.85406221071516e-06, 4.6351555267879e-06, -2.8701674792209774e-07, 3.2000717871774115e-07,
         9.2703110535758e-07},
        {8.296711340953087e-07, -4.148355670476543e-06, 4.128120036118395e-06, 4.047126871629615e-08,
         -2.0235634358148075e-08, -8.296711340953087e-07},
        {-1.7665952736826078e-07, 6.183083457889128e-07, -3.466871322381153e-07, -3.3159612492031333e-09,
         -3.3159612492031333e-09, -8.832976368413039e-08},
        {6.707853543401498e-09, -4.024712126040899e-08, 6.66560692701234e-08, -3.227186922533274e-08},
        {1.0261809784240309e-08, -4.6178144029081385e-08, 4.3668615532660644e-08, -1.3666121474890463e-09},
        {-4.382036018453353e-09, 3.067425212917347e-08, -6.13055051971713e-08, 3.0502255884470866e-08},
        {9.14769958223679e-10, -5.031234770230235e-09, 7.2648956221081404e-09, -2.153764786355969e-09},
    };
    const V inv_W = 1.0 / W, s = -square_root(V(2.0 * D * inv_W)), peak = square_root(V(inv_2pi * inv_W));
    V sum{}, r{}, r_next{};
    UFLOW_UNROLL(15)
    for (int n = 15; n > 0; --n) {
        const int top = std::min(n < 12 ? n / 2 : 3, degree);
        V g_n = V{} + g[n - 1][top];
        for (int i = top; i-- > 0;) g_n = g_n * v + g[n - 1][i];
        if (n % 2 == 1) g_n *= u;
        const V r_n = g_n + (n + 1.0) * inv_W * r_next;
        sum = sum * s + r_n;
        r_next = r;
        r = r_n;
    }
    return two_pi * peak * (0.5 * scaled_erfc(square_root(D)) - peak * sum / (1.0 + r_next * inv_W));
}

// What the kinds of values are: fractions of so many terms, the last one Temme's form.
inline constexpr double fraction_terms[] = {8, 12, 16, 24, 32, 48, 88};
inline constexpr int kinds = 8, temme_kind = 7, block = 256;

// One block of tails on its way: ln tail = S - D + ln(ratio sqrt(W / 2 pi)).
struct TailBlock {
    double D[block], S[block], W[block], E[block], U[block], p[block], u[block], v[block], ratio[block];
    double kind[block];
    double lower[block];  // 1: the tail computed is not the one asked for
};

// The kind: of the fractions the shortest that is right to 1e-14 (fitted to tables of what they need), or
// Temme's form. c = a - (a + b) p.
template <class V>
UFLOW_INLINE V kind_of(const V& W, const V& c) noexcept {
    const V c2 = c * c, most = W < 9.0 ? 10.5 + 1.5 * W : W < 40.0 ? 21.5 + 0.5 * W : V{} + 1e6;
    const V above = 325.0 * W * most, below = 325.0 * W + most * c2;  // terms: 6.5 + above / below
    V kind{};
    for (int i = 0; i < 5; ++i) kind += above > (fraction_terms[i] - 6.5) * below ? V{} + 1.0 : V{};
    return ((W >= 40.0) & (c2 < 9.0 * W)) ? V{} + double(temme_kind) : kind;
}

// Below so many degrees of freedom the chi-square tail is that of a law of its own, log10_chi2_sf_of_few: the
// fraction and its complement lose their digits as dof goes to 0.
inline constexpr double few_degrees = 0.25;

// log10 Q(a, y), a = dof / 2, y = x / 2, for 0 < dof < few_degrees and 0 < x < inf, subnormal ones too: to
// 1e-13.
inline double log10_chi2_sf_of_few(double x, double dof) noexcept {
    constexpr double ln_2 = 0.69314718055994530942;
    // Q / a has a limit as a goes to 0, which below 1e-30 it does not differ from.
    const double a = std::max(0.5 * dof, 1e-30), y = 0.5 * x;
    const double ln_a = std::log(dof) - ln_2, ln_y = std::log(x) - ln_2;  // halves may be no double
    // ln Gamma(1 + a) / a by its power series (DLMF 5.7.3).
    static constexpr double c[] = {-0.577215664901532861,  0.822467033424113218,   -0.400685634386531428,
                                   0.270580808427784548,   -0.207385551028673985,  0.16955717699740819,
                                   -0.144049896768846118,  0.125509669524743042,   -0.11133426586956469,
                                   0.100099457512781809,   -0.0909540171458290422, 0.083353840546109004,
                                   -0.0769325164113521915, 0.0714329462953613361,  -0.066668705882420468,
                                   0.0625009551412130407,  -0.0588239786586845823, 0.0555557676274036111};
    const double power = a * (ln_y - polynomial(c, a));  // y^a / Gamma(1 + a) = exp(power)
    if (y > 1.5) {  // the continued fraction of Gamma(a, y), DLMF 8.9.2, from its 80th term backwards
        double below = y + 161.0 - a;
        for (double n = 80.0; n > 0.0; n -= 1.0) below = y + (2.0 * n - 1.0) - a - n * (n - a) / below;
        return (ln_a + power - y - std::log(below)) * inv_ln10;
    }
    // P = exp(power) (1 + a series), DLMF 8.7.1; Q = 1 - P, and where P is near 1, Q / a without
    // cancellation.
    double series = 0.0, term = 1.0;
    for (double n = 1.0; n <= 24.0; n += 1.0) {
        term *= -y / n;
        series += term / (a + n);
    }
    const double lower = std::exp(power) * (1.0 + a * series);
    if (lower < 0.5) return std::log1p(-lower) * inv_ln10;
    return (ln_a + std::log(-std::expm1(power) / a - std::exp(power) * series)) * inv_ln10;
}

struct Chi2Law {
    static constexpr int degree = 0;
    static constexpr double least = std::numeric_limits<double>::min();  // the first normal number
    Column x, dof;

    // Values that are no tail to compute; 1 for the others.
    double special(std::size_t i) const noexcept {
        if (std::isnan(x[i]) || !(dof[i] > 0.0 && dof[i] < inf)) return nan;
        if (dof[i] < few_degrees && x[i] > 0.0 && x[i] < inf) return log10_chi2_sf_of_few(x[i], dof[i]);
        return 0.5 * x[i] < least ? 0.0 : x[i] == inf ? -inf : 1.0;
    }

    template <class V>
    UFLOW_INLINE auto prepare(std::size_t i, std::size_t left, std::size_t j, TailBlock& to) const noexcept {
        V y = 0.5 * x.at<V>(i, left), a = 0.5 * dof.at<V>(i, left);
        const V zero{}, one = zero + 1.0;
        const auto ok = (y >= least) & (y < inf) & (a >= 0.5 * few_degrees) & (a < inf);
        y = ok ? y : one;
        a = ok ? a : one;
        const V c = y - a, inv_a = 1.0 / a, e = c * inv_a;
        const auto lower = (y < 1.0) | (c < 0.0);
        V S = -stirling_error(inv_a);
        for (int lane = 0; lane < lanes<V>; ++lane)
            if (const double z = get(a, lane); z < 2.0)
                set(S, lane, z == 1.0 ? -stirling_error_of_1 : -stirling_error_below_2(z));
        store<V>(to.D + j, -a * log_less<V>(y * inv_a, e, e));
        store<V>(to.S + j, S);
        store<V>(to.W + j, a);
        store<V>(to.E + j, lower ? -c : c + 1.0);
        store<V>(to.U + j, lower ? y : a);
        store<V>(to.p + j, lower ? zero : one);
        store<V>(to.u + j, lower ? one : -one);
        store<V>(to.v + j, zero);
        store<V>(to.lower + j, lower ? one : zero);
        // The upper tail of a small a needs more terms, 85 / y, unless it ends after the first.
        const auto small = (a < 3.5) & (a != 1.0) & (y >= 1.0) & (c >= 0.0);
        const V kind = kind_of<V>(a, c), fewest = y < 4.0 ? zero + 6.0 : y < 14.0 ? zero + 3.0 : one;
        store<V>(to.kind + j, (small & (kind < fewest)) ? fewest : kind);
        return ok;
    }
};

// D, S, W and 1 / (a + b) of the density term for a, b >= 1 and c = a - (a + b) p.
template <class V>
struct BetaTerm {
    V D, S, W, inv_sum;

    // Takes a and b that are less than 2 for 1.
    UFLOW_INLINE BetaTerm(const V& a, const V& b, const V& p, const V& c) noexcept {
        const V inv_a = 1.0 / a, inv_b = 1.0 / b, e_a = -c * inv_a, e_b = c * inv_b;
        inv_sum = 1.0 / (a + b);
        W = a * b * inv_sum;
        D = -a * log_less<V>((a + b) * p * inv_a, e_a, e_a) - b * log_less<V>(1.0 + e_b, e_b, e_b);
        const V one = V{} + stirling_error_of_1;
        S = stirling_error(inv_sum) - (a < 2.0 ? one : stirling_error(inv_a)) -
            (b < 2.0 ? one : stirling_error(inv_b));
    }
};

struct BinomialLaw {
    static constexpr int degree = 5;
    static constexpr double most = 9007199254740992.0;  // 2^53: whole numbers are exact below
    Column k, n, p;

    double special(std::size_t i) const noexcept {
        if (std::isnan(k[i]) || !(n[i] >= 0.0 && n[i] < most) || !(p[i] >= 0.0 && p[i] <= 1.0)) return nan;
        if (k[i] <= 0.0) return 0.0;
        if (k[i] > n[i] || p[i] == 0.0) return -inf;
        return p[i] == 1.0 ? 0.0 : 1.0;
    }

    template <class V>
    UFLOW_INLINE auto prepare(std::size_t i, std::size_t left, std::size_t j, TailBlock& to) const noexcept {
        using Bits = typename Lanes<V>::Bits;
        V upper_a = k.at<V>(i, left), count = n.at<V>(i, left), p_upper = p.at<V>(i, left);
        const auto ok =
            (upper_a > 0.0) & (upper_a <= count) & (count < most) & (p_upper > 0.0) & (p_upper < 1.0);
        const V one = V{} + 1.0;
        upper_a = ok ? upper_a : one;
        count = ok ? count : one;
        p_upper = ok ? p_upper : V{} + 0.5;
        // k - n p, where n times the first 20 digits of p is exact.
        const V first = bits_as<V>(Bits(bits_as<Bits>(p_upper) & 0xfffffffe00000000));
        const V excess = (upper_a - count * first) - count * (p_upper - first);
        const V upper_b = count - upper_a + 1.0, upper_c = excess - p_upper;
        const auto lower = upper_c < 0.0;  // then n - k + 1 failures or more are the rarer event
        const V a = lower ? upper_b : upper_a, b = lower ? upper_a : upper_b, c = lower ? -upper_c : upper_c;
        const V prob = lower ? 1.0 - p_upper : p_upper;
        const BetaTerm<V> term(a, b, prob, c);
        store<V>(to.D + j, term.D);
        store<V>(to.S + j, term.S);
        store<V>(to.W + j, term.W);
        store<V>(to.E + j, lower ? 1.0 - excess : excess);
        store<V>(to.U + j, prob * b);
        store<V>(to.p + j, prob);
        store<V>(to.u + j, (b - a) * term.inv_sum);
        store<V>(to.v + j, term.W * term.inv_sum);
        store<V>(to.lower + j, lower ? one : V{});
        store<V>(to.kind + j, kind_of<V>(term.W, c));
        return ok;
    }
};

template <int terms, class V>
UFLOW_INLINE void fractions(TailBlock& values, const std::uint16_t* at, int count) noexcept {
    for (const std::uint16_t* end = at + count; at < end; at += lanes<V>) {
        const V ratio =
            fraction<terms>(gather<V>(values.E, at), gather<V>(values.U, at), gather<V>(values.p, at));
        scatter(ratio, values.ratio, at);
    }
}

template <class V, class Law>
UFLOW_INLINE void log10_tails_in_lanes(const Law& law, double* out, std::size_t count) noexcept {
    TailBlock values;
    std::uint16_t of_kind[kinds][block + lanes<V>], lower[block + lanes<V>];  // indices
    for (std::size_t start = 0; start < count; start += block, out += block) {
        const std::size_t here = std::min<std::size_t>(block, count - start);
        auto ok = V{} == V{};
        for (std::size_t j = 0; j < here; j += lanes<V>)
            ok = ok & law.template prepare<V>(start + j, here - j, j, values);

        int size[kinds] = {}, lowers = 0;
        for (std::size_t j = 0; j < here; ++j) {
            const int kind = int(values.kind[j]);
            of_kind[kind][size[kind]++] = std::uint16_t(j);
            lower[lowers] = std::uint16_t(j);
            lowers += values.lower[j] > 0.0;
        }
        for (int kind = 0; kind < kinds; ++kind)  // fill the last lanes
            if (size[kind]) std::fill_n(of_kind[kind] + size[kind], lanes<V>, of_kind[kind][size[kind] - 1]);
        fractions<8, V>(values, of_kind[0], size[0]);
        fractions<12, V>(values, of_kind[1], size[1]);
        fractions<16, V>(values, of_kind[2], size[2]);
        fractions<24, V>(values, of_kind[3], size[3]);
        fractions<32, V>(values, of_kind[4], size[4]);
        fractions<48, V>(values, of_kind[5], size[5]);
        fractions<88, V>(values, of_kind[6], size[6]);
        for (int i = 0; i < size[temme_kind]; i += lanes<V>) {
            const std::uint16_t* at = of_kind[temme_kind] + i;
            const V ratio = temme<Law::degree>(gather<V>(values.D, at), gather<V>(values.W, at),
                                               gather<V>(values.u, at), gather<V>(values.v, at));
            scatter(ratio, values.ratio, at);
            scatter(V{}, values.S, at);
        }

        double* ln_tail = values.ratio;
        for (std::size_t j = 0; j < here; j += lanes<V>) {
            const V ratio = load<V>(values.ratio + j), x = inv_2pi * load<V>(values.W + j) * ratio * ratio;
            store<V>(ln_tail + j,
                     load<V>(values.S + j) - load<V>(values.D + j) + 0.5 * log_less<V>(x, x - 1.0, V{}));
        }
        if (lowers) std::fill_n(lower + lowers, lanes<V>, lower[lowers - 1]);
        for (int i = 0; i < lowers; i += lanes<V>)
            scatter(ln_complement(gather<V>(ln_tail, lower + i)), ln_tail, lower + i);
        bool plain = true;
        for (int lane = 0; lane < lanes<V>; ++lane) {
            if constexpr (lanes<V> == 1)
                plain = ok;
            else
                plain &= ok[lane] != 0;
        }
        for (std::size_t j = 0; j < here; ++j) {  // out[j] may be an argument: read before it is written
            const double special = plain ? 1.0 : law.special(start + j);
            out[j] = special == 1.0 ? ln_tail[j] * inv_ln10 : special;
        }
    }
}

template <class Law>
void log10_tails(const Law& law, double* out, std::size_t count) noexcept {
    in_widest_lanes<Rounding::fused>([&](auto lanes) UFLOW_INLINED {
        log10_tails_in_lanes<typename decltype(lanes)::Vector>(law, out, count);
    });
}

}  // namespace detail

// log10 P(chi2_dof >= x) for count values; any real dof > 0; 0 for x below the normal numbers where dof >=
// 1/4. `out` may be x's own memory.
inline void log10_chi2_sf(Column x, Column dof, double* out, std::size_t count) noexcept {
    detail::log10_tails(detail::Chi2Law{x, dof}, out, count);
}

inline double log10_chi2_sf(double x, double dof) noexcept {
    double value;
    log10_chi2_sf({&x}, {&dof}, &value, 1);
    return value;
}

namespace detail {

// The least and the largest of a column's numbers, and whether all are whole (NaN is not).
struct Range {
    double low = inf, high = -inf;
    bool whole = true;

    double size() const noexcept { return high - low + 1.0; }

    void add(Column c, std::size_t first, std::size_t end) noexcept {
        constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52: a sum with it has no fraction
        const double* v = c.data + (c.varies ? first : 0);
        const std::size_t last = c.varies ? end - first - 1 : 0;
        double lows[4] = {low, low, low, low},
               highs[4] = {high, high, high, high};  // no lane waits for another
        bool all = whole;
        for (std::size_t i = 0; i <= last; i += 4)
            for (std::size_t lane = 0; lane < 4; ++lane) {
                const double x = v[std::min(i + lane, last)];
                lows[lane] = x < lows[lane] ? x : lows[lane];
                highs[lane] = x > highs[lane] ? x : highs[lane];
                all &= (x + magic) - magic == x;
            }
        low = *std::min_element(lows, lows + 4);
        high = *std::max_element(highs, highs + 4);
        whole = all;
    }
};

// log10 P(Bin(n, p) >= k) by a table of all the k and n there are, if p is the same everywhere and the table
// takes at most half as many values as are asked for. Stops looking as soon as it sees that it does not.
inline bool log10_binomial_table(Column k, Column n, Column p, double* out, std::size_t count) {
    Range ks, ns;
    constexpr std::size_t step = 4096;
    for (std::size_t first = 0; first < count; first += step) {
        const std::size_t end = std::min(count, first + step);
        ks.add(k, first, end);
        ns.add(n, first, end);
        bool one_p = true;
        for (std::size_t i = first; i < end; ++i) one_p &= p[i] == p[0];
        const bool few = 2.0 * ks.size() * ns.size() <= double(count);
        if (!(few && ks.whole && ns.whole && one_p)) return false;
    }
    const auto width = std::size_t(ks.size()), height = std::size_t(ns.size());
    std::vector<double> table(width * height), trials(table.size());
    for (std::size_t i = 0; i < table.size(); ++i) {
        table[i] = ks.low + double(i % width);
        trials[i] = ns.low + double(i / width);
    }
    log10_tails(BinomialLaw{{table.data()}, {trials.data()}, {p.data, false}}, table.data(), table.size());
    const auto row = [&](std::size_t i) { return table.data() + std::size_t(n[i] - ns.low) * width; };
    for (std::size_t i = 0; i < count; ++i) out[i] = row(i)[std::size_t(k[i] - ks.low)];
    return true;
}

}  // namespace detail

// log10 P(Bin(n, p) >= k) for count whole k and n < 2^53; 0 for k <= 0, -inf for k > n. `out` may be k's own
// memory. Where few k and n are asked for again and again, each is computed once.
inline void log10_binomial_sf(Column k, Column n, Column p, double* out, std::size_t count) {
    if (count < 64 || !detail::log10_binomial_table(k, n, p, out, count))
        detail::log10_tails(detail::BinomialLaw{k, n, p}, out, count);
}

inline double log10_binomial_sf(double k, double n, double p) {
    double value;
    log10_binomial_sf({&k}, {&n}, {&p}, &value, 1);
    return value;
}

// Chernoff's bound of log10 P(chi2_dof >= t dof): -(dof / 2) (t - 1 - ln t) / ln 10, a bound only for t > 1.
// guarded: 0 for t <= 1, so always an upper bound. Unguarded, as the published code has it: -inf for t <= 0.
inline double log10_chi2_chernoff(double t, double dof, bool guarded) noexcept {
    if (guarded && t <= 1.0) return 0.0;
    if (std::isnan(t)) return t;
    if (!(t > 0.0 && t < detail::inf)) return -detail::inf;
    return 0.5 * dof * detail::log_less<double>(t, t - 1.0, t - 1.0) * detail::inv_ln10;
}

namespace detail {

template <class V>
UFLOW_INLINE void chernoff_in_lanes(const double* t, double dof, bool guarded, double* out,
                                    std::size_t count) noexcept {
    const double factor = 0.5 * dof * inv_ln10;
    const V one = V{} + 1.0;
    std::size_t i = 0;
    for (; i + lanes<V> <= count; i += lanes<V>) {
        const V x = load<V>(t + i);
        bool usual = true;
        for (int lane = 0; lane < lanes<V>; ++lane)
            usual &= get(x, lane) >= std::numeric_limits<double>::min() && get(x, lane) < inf;
        if (usual) {
            const V e = x - 1.0, bound = factor * log_less<V>(x, e, e);
            store<V>(out + i, guarded ? (x > one ? bound : V{}) : bound);
        } else {
            for (int lane = 0; lane < lanes<V>; ++lane)
                out[i + std::size_t(lane)] = log10_chi2_chernoff(get(x, lane), dof, guarded);
        }
    }
    for (; i < count; ++i) out[i] = log10_chi2_chernoff(t[i], dof, guarded);
}

}  // namespace detail

// The same for count values; `out` may be t's own memory.
inline void log10_chi2_chernoff(const double* t, double dof, bool guarded, double* out,
                                std::size_t count) noexcept {
    detail::in_widest_lanes<detail::Rounding::fused>([=](auto lanes) UFLOW_INLINED {
        detail::chernoff_in_lanes<typename decltype(lanes)::Vector>(t, dof, guarded, out, count);
    });
}

// The q-quantile of chi2_1: 2 u^2 with erf(u) = q, by Halley's iteration on erf (erfc in the upper half).
inline double chi2_1_quantile(double q) noexcept {
    if (!(q >= 0.0 && q <= 1.0)) return detail::nan;
    if (q == 0.0) return 0.0;
    if (q == 1.0) return detail::inf;
    const double upper = 1.0 - q;
    // Start (S. Winitzki, 2008): erf(u)^2 ~ 1 - exp(-u^2 (4/pi + a u^2) / (1 + a u^2)), a = 0.147, inverted.
    const double l = std::log1p(-q) + std::log1p(q);
    const double h = 2.0 / (3.14159265358979323846 * 0.147) + 0.5 * l;
    double u = q < 0.01 ? q * 0.88622692545275801365 : std::sqrt(std::sqrt(h * h - l / 0.147) - h);
    for (int i = 0; i < 6; ++i) {
        const double error = q < 0.5 ? std::erf(u) - q : upper - std::erfc(u);
        const double step = error / (1.12837916709551257390 * std::exp(-u * u));
        u -= step / (1.0 + u * step);
    }
    return 2.0 * u * u;
}

}  // namespace uflow
