// Upper tails of the chi-square and binomial laws as log10 probabilities, finite far below 1e-308 and
// accurate also where the probability is near 1. The mathematics is from the DLMF (https://dlmf.nist.gov),
// from C. Loader, "Fast and accurate computation of binomial probabilities" (2000), and from N. M. Temme, "On
// the computation of the incomplete gamma functions for large values of the parameters" (1987).
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

namespace uflow {

enum class Tail { exact, chernoff, chernoff_unguarded, binomial };

namespace detail {

inline constexpr double inf = std::numeric_limits<double>::infinity();
inline constexpr double nan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double inv_ln10 = 0.43429448190325182765;
inline constexpr double ln_sqrt_2pi = 0.91893853320467274178;
inline constexpr double inv_sqrt_2pi = 0.39894228040143267794;
inline constexpr double epsilon = std::numeric_limits<double>::epsilon();

// c[0] + c[1] x + ... as two interleaved Horner chains: half the latency of one.
template <std::size_t N>
inline double polynomial(const double (&c)[N], double x) noexcept {
    const double x2 = x * x;
    constexpr std::size_t last_even = (N - 1) / 2 * 2;
    constexpr std::size_t last_odd = N % 2 == 0 ? N - 1 : N - 2;
    double even = c[last_even];
    double odd = c[last_odd];
    for (std::size_t i = last_even; i >= 2; i -= 2) even = even * x2 + c[i - 2];
    for (std::size_t i = last_odd; i >= 3; i -= 2) odd = odd * x2 + c[i - 2];
    return even + x * odd;
}

// ln(1 + e) - e without cancellation. Near 0, ln(1 + e) = 2 artanh(r) with r = e / (2 + e) (DLMF 4.6.6
// and 4.37.24), and 2 r - e = -e r exactly.
inline double log1p_minus(double e) noexcept {
    if (!(std::fabs(e) < 0.3)) return std::log1p(e) - e;
    static constexpr double c[] = {1. / 3,  1. / 5,  1. / 7,  1. / 9,  1. / 11,
                                   1. / 13, 1. / 15, 1. / 17, 1. / 19, 1. / 21};
    const double r = e / (2.0 + e);
    const double r2 = r * r;
    return r * (2.0 * r2 * polynomial(c, r2) - e);
}

// Loader's deviance x ln(x / m) + m - x >= 0 for x, m > 0; `difference` is m - x, exactly if possible.
inline double deviance(double x, double m, double difference) noexcept {
    if (std::fabs(difference) < 0.3 * x) return -x * log1p_minus(difference / x);
    return x * std::log(x / m) + difference;
}

// Stirling's error ln Gamma(z + 1) - (z + 1/2) ln z + z - ln sqrt(2 pi) for z > 0 (DLMF 5.11.1, Loader 2000).
inline double stirling_error(double z) noexcept {
    if (z < 10.0) return std::log(std::tgamma(z + 1.0)) - (z + 0.5) * std::log(z) + z - ln_sqrt_2pi;
    static constexpr double c[] = {1. / 12,         -1. / 360,        1. / 1260, -1. / 1680,
                                   1. / 1188,       -691. / 360360,   1. / 156,  -3617. / 122400,
                                   43867. / 244188, -174611. / 125400};
    return polynomial(c, 1.0 / (z * z)) / z;
}

// exp(z^2) erfc(z) for z >= 0 to about 4e-16: a Chebyshev fit of (1 + 2 z) exp(z^2) erfc(z) in
// t = (z - 3.75) / (z + 3.75), after Shepherd and Laframboise, Math. Comp. 36 (1981) 249.
inline double scaled_erfc(double z) noexcept {
    static constexpr double c[] = {
        1.23751263083782753,     -1.40240598585545256e-1, 3.58541548547902533e-3,  8.22767384899950644e-2,
        -1.08803930142444599e-1, 9.23043211642812082e-2,  -5.86933985766495611e-2, 2.83622773721115771e-2,
        -9.74657968326337519e-3, 1.75562616519454761e-3,  2.93714378035677195e-4,  -2.90155352452126798e-4,
        5.16465297701056118e-5,  2.23875656963675274e-5,  -1.14380480886707385e-5, -9.79262545728497902e-7,
        1.7419822277731174e-6,   -5.0844674376581798e-8,  -2.4857131597454588e-7,  1.87908326809460743e-8,
        3.19792900323285828e-8,  -1.95513774259933516e-9, -2.62311172320599739e-9};
    return polynomial(c, (z - 3.75) / (z + 3.75)) / (1.0 + 2.0 * z);
}

// ln of the density term x^a e^-x / Gamma(a + 1), a > 0, x > 0.
inline double ln_gamma_term(double a, double x) noexcept {
    if (a < 10.0) return a * std::log(x) - x - std::log(std::tgamma(a + 1.0));
    return -deviance(a, x, x - a) - stirling_error(a) - 0.5 * std::log(a) - ln_sqrt_2pi;
}

// Gamma(a, x) / (x^a e^-x), x > a - 1 and x >= 1: the even part of the continued fraction DLMF 8.9.2. The
// three-term recurrences need no division; values are rescaled and compared every 8 terms.
inline double gamma_fraction(double a, double x) noexcept {
    double b = x + 1.0 - a;
    double p0 = 0.0, q0 = 1.0, p1 = 1.0, q1 = b;  // convergents p / q
    double value = 1.0 / b;
    if (x > 1e30) return value;  // exact by then, and b^8 below would overflow
    double n = 0.0;
    for (int block = 0; block < 20000; ++block) {
        for (int i = 0; i < 8; ++i) {
            n += 1.0;
            b += 2.0;
            const double c = n * (a - n);
            const double p = b * p1 + c * p0;
            const double q = b * q1 + c * q0;
            p0 = p1;
            q0 = q1;
            p1 = p;
            q1 = q;
        }
        const double scale = 1.0 / q1;
        p0 *= scale;
        q0 *= scale;
        p1 *= scale;
        q1 = 1.0;
        const double before = value;
        value = p1;
        if (std::fabs(value - before) <= 4.0 * epsilon * value) break;
    }
    return value;
}

// P(a, x) Gamma(a + 1) / (x^a e^-x) for x < a + 1: the series DLMF 8.7.1 (8.11.4).
inline double gamma_series(double a, double x) noexcept {
    double term = 1.0, sum = 1.0;
    for (int n = 1; n < 100000 && term > 0.25 * epsilon * sum; ++n) {
        term *= x / (a + n);
        sum += term;
    }
    return sum;
}

// ln(1 - exp(l)) for l <= 0; +0, not -0, where exp(l) vanishes.
inline double ln_complement(double l) noexcept { return 0.0 + std::log1p(-std::exp(l)); }

// ln of p^k q^(n-k) Gamma(n+1) / (Gamma(k+1) Gamma(n-k+1)) for real 0 < k < n, q = 1 - p, excess = k - n p:
// Loader's saddle-point form.
inline double ln_binomial_term(double k, double n, double p, double q, double excess) noexcept {
    const double m = n - k;
    return 0.5 * std::log(n / (k * m)) - ln_sqrt_2pi + stirling_error(n) - stirling_error(k) -
           stirling_error(m) - deviance(k, n * p, -excess) - deviance(m, n * q, excess);
}

// ln P(Bin(n, p) >= k) = ln I_p(k, n - k + 1) for 1 <= k <= n and k at or above the mean: the term at k times
// the even part of the continued fraction DLMF 8.17.22 (Didonato and Morris, TOMS 708, 1992, eq. 9), which
// ends after n - k terms.
inline double ln_binomial_upper(double k, double n, double p, double q, double excess) noexcept {
    if (k == n) return n * (p < 0.5 ? std::log(p) : std::log1p(-q));
    const double a = k, b = n - k + 1.0;
    const double lambda = excess - p;                                          // a - (a + b) p >= 0
    double p0 = 0.0, q0 = 1.0, p1 = 1.0, q1 = a * (lambda + 1.0) / (a + 1.0);  // convergents p / q
    double value = p1 / q1;
    double r = 1.0 / (a + 1.0);
    for (double j = 1.0; j < 1e6;) {
        for (int i = 0; i < 8; ++i, j += 1.0) {
            const double r_next = 1.0 / (a + 2.0 * j + 1.0);
            const double jbp = j * (b - j) * p;
            const double alpha = (a + j - 1.0) * r * (a + b + j - 1.0) * r * jbp * p;
            const double beta = j + jbp * r + (a + j) * (lambda + 1.0 + j * (1.0 + q)) * r_next;
            r = r_next;
            const double pn = beta * p1 + alpha * p0;
            const double qn = beta * q1 + alpha * q0;
            p0 = p1;
            q0 = q1;
            p1 = pn;
            q1 = qn;
            if (j >= b) break;  // alpha was 0: the fraction is complete
        }
        const double scale = 1.0 / q1;
        p0 *= scale;
        q0 *= scale;
        p1 *= scale;
        q1 = 1.0;
        const double before = value;
        value = p1;
        if (j >= b || std::fabs(value - before) <= 4.0 * epsilon * value) break;
    }
    return ln_binomial_term(k, n, p, q, excess) + std::log(k * q * value);
}

}  // namespace detail

// log10 P(chi2_dof >= x) for one dof and many x: log10 of Q(a, y), a = dof / 2, y = x / 2 (DLMF 8.2.4).
//
// Where a >= 12 and 0.4 <= y / a <= 2, Temme's uniform form (DLMF 8.12.4): with eta^2 / 2 = mu - ln(1 + mu),
// mu = y / a - 1, eta of the sign of mu,
//   Q = erfc(eta sqrt(a/2)) / 2 + exp(-a eta^2 / 2) / sqrt(2 pi a) * S(eta),
// and S a power series whose coefficients, for a fixed a, follow from those of eta / mu by one backward
// recurrence. Elsewhere the continued fraction or the series, which are short there.
class Chi2Tail {
  public:
    explicit Chi2Tail(double dof) noexcept : a_(0.5 * dof) {
        if (!(a_ >= temme_from)) return;
        // Taylor coefficients of eta / mu.
        static constexpr double d[] = {1.0,
                                       -1. / 3,
                                       1. / 12,
                                       -2. / 135,
                                       1. / 864,
                                       3.527336860670194e-4,
                                       -1.78755144032921811e-4,
                                       3.91926317852243778e-5,
                                       -2.18544851067999216e-6,
                                       -1.85406221071515996e-6,
                                       8.29671134095308601e-7,
                                       -1.76659527368260793e-7,
                                       6.70785354340149858e-9,
                                       1.0261809784240308e-8,
                                       -4.38203601845335319e-9,
                                       9.14769958223679023e-10,
                                       -2.55141939949462498e-11,
                                       -5.83077213255042507e-11,
                                       2.43619480206674162e-11,
                                       -5.02766928011417559e-12,
                                       1.10043920319561348e-13,
                                       3.37176326240098538e-13,
                                       -1.39238872241816207e-13,
                                       2.85348938070474432e-14,
                                       -5.13911183424257262e-16};
        // S' - a eta S = a (1 - (eta / mu) / G), G = a^(1/2 - a) e^a Gamma(a) / sqrt(2 pi), term by term.
        const double inv_a = 1.0 / a_;
        s_[terms - 1] = d[terms];
        s_[terms - 2] = d[terms - 1];
        for (int n = terms - 2; n > 0; --n) s_[n - 1] = (n + 1) * inv_a * s_[n + 1] + d[n];
        // Here G = 1 + s_1 / a; the factor of S is folded with 1 / sqrt(2 pi a).
        factor_ = detail::inv_sqrt_2pi / std::sqrt(a_) / (1.0 + s_[1] * inv_a);
    }

    double log10_sf(double x) const noexcept { return ln_sf(x) * detail::inv_ln10; }

  private:
    static constexpr int terms = 24;
    static constexpr double temme_from = 12.0;

    double ln_sf(double x) const noexcept {
        if (std::isnan(x) || !(a_ > 0.0)) return detail::nan;
        if (x <= 0.0) return 0.0;
        if (std::isinf(x)) return -detail::inf;
        const double y = 0.5 * x;
        if (a_ >= temme_from && y >= 0.4 * a_ && y <= 2.0 * a_) {
            const double mu = (y - a_) / a_;
            const double half_eta2 = std::fabs(mu) < 0.3 ? -detail::log1p_minus(mu) : mu - std::log(y / a_);
            const double eta = std::sqrt(2.0 * half_eta2);
            const double half_erfc = 0.5 * detail::scaled_erfc(std::sqrt(a_ * half_eta2));
            const double exponent = -a_ * half_eta2;
            if (mu >= 0.0) return exponent + std::log(half_erfc + factor_ * detail::polynomial(s_, eta));
            const double lower = half_erfc - factor_ * detail::polynomial(s_, -eta);
            return 0.0 + std::log1p(-std::exp(exponent) * lower);
        }
        const double ln_term = detail::ln_gamma_term(a_, y);
        if (y < 1.0 || y < a_) return detail::ln_complement(ln_term + std::log(detail::gamma_series(a_, y)));
        return ln_term + std::log(a_ * detail::gamma_fraction(a_, y));
    }

    double a_;
    double factor_ = 0.0;
    double s_[terms] = {};
};

// log10 P(chi2_dof >= x), any real dof > 0; 0 for x <= 0. Use Chi2Tail where one dof meets many x.
inline double log10_chi2_sf(double x, double dof) noexcept { return Chi2Tail(dof).log10_sf(x); }

// Chernoff's bound of log10 P(chi2_dof >= t dof): -(dof / 2) (t - 1 - ln t) / ln 10, a bound only for t > 1.
// guarded: 0 for t <= 1, so always an upper bound. Unguarded, as the published code has it: -inf for t <= 0.
inline double log10_chi2_chernoff(double t, double dof, bool guarded) noexcept {
    if (guarded && t <= 1.0) return 0.0;
    if (t <= 0.0) return -detail::inf;
    if (std::isinf(t)) return -detail::inf;
    const double e = t - 1.0;
    const double minus = std::fabs(e) < 0.3 ? detail::log1p_minus(e) : std::log(t) - e;
    return 0.5 * dof * minus * detail::inv_ln10;
}

// log10 P(Bin(n, p) >= k) for whole k and n; 0 for k <= 0, -inf for k > n.
inline double log10_binomial_sf(double k, double n, double p) noexcept {
    if (std::isnan(k) || !(n >= 0.0) || !(p >= 0.0 && p <= 1.0)) return detail::nan;
    if (k <= 0.0) return 0.0;
    if (k > n || p == 0.0) return -detail::inf;
    if (p == 1.0) return 0.0;
    const double q = 1.0 - p;
    const double excess = -std::fma(n, p, -k);  // k - n p in one rounding
    if (excess >= p) return detail::ln_binomial_upper(k, n, p, q, excess) * detail::inv_ln10;
    // Below the mean: 1 - P(Bin(n, q) >= n - k + 1), whose excess over its own mean is 1 - excess.
    const double m = n - k + 1.0;
    const double ln_lower = m == n ? n * std::log1p(-p) : detail::ln_binomial_upper(m, n, q, p, 1.0 - excess);
    return detail::ln_complement(ln_lower) * detail::inv_ln10;
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

// log10 of the tail of the older block test for every count c = 0 .. n * channels, x = c / channels:
// P(Bin(n, p) > floor(x)), or, continuous, the integral from x to n of the binomial density extended to real
// t, Gamma(n+1) / (Gamma(t+1) Gamma(n-t+1)) p^t (1-p)^(n-t). `table` holds n * channels + 1 values. Both are
// -inf at x = n; the last finite entry stands there instead, because the bicubic resizing of the block test's
// maps would turn one infinity into NaN around it. The continuous integral is not normalised and is summed
// from n downwards: where it is near 1 its log, near 0, has an absolute error of about 1e-14. 0 < p < 1.
inline void block_tail_table(int n, int channels, double p, bool continuous, double* table) noexcept {
    const std::ptrdiff_t last = static_cast<std::ptrdiff_t>(n) * channels;
    table[last] = -detail::inf;
    if (!continuous) {
        for (int x = 0; x < n; ++x) {
            const double tail = log10_binomial_sf(x + 1.0, n, p);
            for (int i = 0; i < channels; ++i) table[static_cast<std::ptrdiff_t>(x) * channels + i] = tail;
        }
    } else {
        // Four Gauss-Legendre points (DLMF 3.5.vi) on pieces no wider than 1/32, from n downwards, added as
        // logs.
        static constexpr double node[] = {0.86113631159405257522, 0.33998104358485626480};
        static constexpr double weight[] = {0.34785484513745385737, 0.65214515486254614263};
        const double q = 1.0 - p;
        const int pieces = (31 + channels) / channels;
        const double half = 0.5 / (static_cast<double>(channels) * pieces);
        double total = -detail::inf;  // ln of the integral so far
        for (std::ptrdiff_t c = last; c-- > 0;) {
            for (int piece = pieces; piece-- > 0;) {
                const double centre = static_cast<double>(c) / channels + (2.0 * piece + 1.0) * half;
                double ln_density[4];
                double high = total;
                for (int i = 0; i < 4; ++i) {
                    const double t = centre + (i < 2 ? half : -half) * node[i % 2];
                    ln_density[i] = detail::ln_binomial_term(t, n, p, q, -std::fma(n, p, -t));
                    high = std::fmax(high, ln_density[i]);
                }
                double sum = total == -detail::inf ? 0.0 : std::exp(total - high);
                for (int i = 0; i < 4; ++i) sum += half * weight[i % 2] * std::exp(ln_density[i] - high);
                total = high + std::log(sum);
            }
            table[c] = total * detail::inv_ln10;
        }
    }
    for (std::ptrdiff_t c = last; c >= 0 && std::isinf(table[c]); --c) {
        std::ptrdiff_t finite = c;
        while (finite > 0 && std::isinf(table[finite])) --finite;
        table[c] = table[finite];
    }
}

}  // namespace uflow
