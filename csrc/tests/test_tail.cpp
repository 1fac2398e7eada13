#include <algorithm>
#include <cmath>
#include <vector>

#include "check.hpp"
#include "uflow/block_test.hpp"
#include "uflow/tail.hpp"

using uflow::log10_binomial_sf;
using uflow::log10_chi2_chernoff;
using uflow::log10_chi2_sf;

namespace {

const double tolerance = 1e-12;

void test_chi2_values() {
    // mpmath, 60 digits: log10(gammainc(dof/2, x/2, inf, regularized=True)).
    CHECK_CLOSE(log10_chi2_sf(0.2, 1), -0.18394383111602164117, tolerance);
    CHECK_CLOSE(log10_chi2_sf(0.002, 4), -2.1700258461115872974e-7, tolerance);
    CHECK_CLOSE(log10_chi2_sf(6, 10), -0.088702137045934807785, tolerance);
    CHECK_CLOSE(log10_chi2_sf(60, 24), -4.1946553161209094871, tolerance);
    CHECK_CLOSE(log10_chi2_sf(50, 24), -2.8489450357136846099, tolerance);
    CHECK_CLOSE(log10_chi2_sf(96, 24), -9.8438558059449575667, tolerance);
    CHECK_CLOSE(log10_chi2_sf(3264, 816), -288.11807155138225276, tolerance);
    CHECK_CLOSE(log10_chi2_sf(192, 192), -0.3129823795755796674, tolerance);
    CHECK_CLOSE(log10_chi2_sf(600, 816), -8.3175587131392182491e-10, tolerance);
    CHECK_CLOSE(log10_chi2_sf(816, 816), -0.30678643534685953175, tolerance);
    CHECK_CLOSE(log10_chi2_sf(1000, 816), -5.005160411665227922, tolerance);
    CHECK_CLOSE(log10_chi2_sf(40000, 816), -7822.4125477137073849, tolerance);
    CHECK_CLOSE(log10_chi2_sf(10000, 10000), -0.30266657336748671254, tolerance);
    CHECK_CLOSE(log10_chi2_sf(102000, 100000), -5.3553704756850804427, tolerance);

    // Few degrees, down to none.
    CHECK_CLOSE(log10_chi2_sf(1.9, 0.001), -3.9228955127247824104, tolerance);
    CHECK_CLOSE(log10_chi2_sf(1.967, 0.05), -2.2380354104416718637, tolerance);
    CHECK_CLOSE(log10_chi2_sf(1e-300, 0.01), -0.013946924873207073745, tolerance);
    CHECK_CLOSE(log10_chi2_sf(40, 1e-09), -19.308232435428274484, tolerance);
    CHECK_CLOSE(log10_chi2_sf(3.0, 0.2), -1.9452331451985861485, tolerance);
    CHECK_CLOSE(log10_chi2_sf(0.5, 1e-320), -320.28221677450596202, tolerance);

    // Two degrees: exp(-x / 2). Four: exp(-x / 2) (1 + x / 2).
    for (double x : {1e-300, 1e-9, 0.1, 1.0, 1.9, 2.1, 7.0, 100.0, 1e4, 1e6, 1e15, 1e38, 1e300}) {
        CHECK_CLOSE(log10_chi2_sf(x, 2), -0.5 * x / std::log(10.0), tolerance);
        if (x > 1)
            CHECK_CLOSE(log10_chi2_sf(x, 4), (std::log1p(0.5 * x) - 0.5 * x) / std::log(10.0), tolerance);
    }
}

void test_chi2_limits() {
    CHECK(log10_chi2_sf(0, 5) == 0.0 && !std::signbit(log10_chi2_sf(0, 5)));
    CHECK(log10_chi2_sf(-3, 5) == 0.0);
    CHECK(log10_chi2_sf(1e-200, 816) == 0.0 && !std::signbit(log10_chi2_sf(1e-200, 816)));
    CHECK(log10_chi2_sf(500, 1e5) == 0.0);
    CHECK(log10_chi2_sf(INFINITY, 5) == -INFINITY);
    CHECK(std::isnan(log10_chi2_sf(NAN, 5)));
    CHECK(std::isnan(log10_chi2_sf(1, NAN)));
    CHECK(std::isnan(log10_chi2_sf(1, 0)));
}

void test_chi2_monotone() {
    for (double dof : {0.5, 1.0, 3.0, 10.0, 23.9, 24.0, 25.0, 192.0, 816.0, 1e5}) {
        double before = 0.0;
        for (double t = 0.0; t < 5.0; t += 1.0 / 512) {
            const double now = log10_chi2_sf(t * dof, dof);
            CHECK(std::isfinite(now) && now <= before * (1 - 1e-12));
            CHECK(now <= log10_chi2_chernoff(t, dof, true));
            before = now;
        }
    }
    // At a fixed x the tail grows with the degrees of freedom, across the change of method at 24 too.
    for (double x : {1.0, 20.0, 24.0, 30.0, 50.0})
        for (double dof = 0.5; dof < 60; dof += 0.125)
            CHECK(log10_chi2_sf(x, dof) <= log10_chi2_sf(x, dof + 0.125));
}

// The two sides of every switch between methods agree, but for what a step of 2e-15 in t itself does.
void test_chi2_switches() {
    for (double dof : {24.0, 24.5, 64.0, 192.0, 816.0, 3000.0}) {
        for (double t : {0.4, 0.7, 1.0, 1.3, 2.0}) {
            const double below = log10_chi2_sf(dof * t * (1 - 1e-15), dof);
            const double above = log10_chi2_sf(dof * t * (1 + 1e-15), dof);
            CHECK(std::fabs(below - above) <= tolerance * std::fabs(below) + 1e-14 * dof * std::fabs(below));
        }
    }
    for (double x : {1.999999999999999, 12.0, 24.0, 40.0})
        CHECK_CLOSE(log10_chi2_sf(x, 24 * (1 - 1e-16)), log10_chi2_sf(x, 24), tolerance);
}

void test_chernoff() {
    // mpmath: -96 * (t - 1 - log(t)) / log(10).
    for (bool guarded : {false, true}) {
        CHECK_CLOSE(log10_chi2_chernoff(1.5, 192, guarded), -3.9413742620106884875, tolerance);
        CHECK_CLOSE(log10_chi2_chernoff(8, 192, guarded), -205.14925308775864396, tolerance);
        CHECK_CLOSE(log10_chi2_chernoff(1 + std::ldexp(1.0, -30), 192, guarded), -1.8081139986647884097e-17,
                    tolerance);
        CHECK(log10_chi2_chernoff(1, 192, guarded) == 0.0);
        CHECK(log10_chi2_chernoff(INFINITY, 192, guarded) == -INFINITY);
        CHECK(std::isnan(log10_chi2_chernoff(NAN, 192, guarded)));
    }
    CHECK_CLOSE(log10_chi2_chernoff(0.5, 192, false), -8.0527444523861070133, tolerance);
    CHECK(log10_chi2_chernoff(0, 192, false) == -INFINITY);
    CHECK(log10_chi2_chernoff(-1, 192, false) == -INFINITY);
    for (double t : {-1.0, 0.0, 0.5, 1.0}) CHECK(log10_chi2_chernoff(t, 192, true) == 0.0);
    // Many at once, in place: the same numbers, special ones among them, and a count that fills no whole
    // lanes.
    for (bool guarded : {false, true}) {
        std::vector<double> t{-1.0, 0.0, 5e-324, 0.3, 0.999, 1.0, 1.001, 1.5, 8.0, 700.0, INFINITY, 2.0, 3.0};
        std::vector<double> expected;
        for (double value : t) expected.push_back(log10_chi2_chernoff(value, 192, guarded));
        uflow::log10_chi2_chernoff(t.data(), 192, guarded, t.data(), t.size());
        for (std::size_t i = 0; i < t.size(); ++i)
            CHECK(t[i] == expected[i] || std::fabs(t[i] - expected[i]) <= 1e-15 * std::fabs(expected[i]));
        double nan = NAN;
        uflow::log10_chi2_chernoff(&nan, 192, guarded, &nan, 1);
        CHECK(std::isnan(nan));
    }
}

void test_binomial_values() {
    // mpmath, 60 digits: log10(sum(binomial(n, j) * p**j * (1 - p)**(n - j) for j in range(k, n + 1))), p the
    // double.
    CHECK_CLOSE(log10_binomial_sf(1, 1, 0.25), -0.60205999132796239043, tolerance);
    CHECK_CLOSE(log10_binomial_sf(3, 10, 0.1), -1.1537196443402151011, tolerance);
    CHECK_CLOSE(log10_binomial_sf(10, 10, 0.3), -5.2287874528033757878, tolerance);
    CHECK_CLOSE(log10_binomial_sf(1, 10, 0.3), -0.012444344526484276282, tolerance);
    CHECK_CLOSE(log10_binomial_sf(5, 40, 0.5), -4.032477591898283514e-8, tolerance);
    CHECK_CLOSE(log10_binomial_sf(4080, 40800, 0.1), -0.29893830613107040302, tolerance);
    CHECK_CLOSE(log10_binomial_sf(4200, 40800, 0.1), -1.6079720823394700281, tolerance);
    CHECK_CLOSE(log10_binomial_sf(3900, 40800, 0.1), -0.00059366719730326278506, tolerance);
    CHECK_CLOSE(log10_binomial_sf(20000, 40800, 0.1), -8675.4884134026091249, tolerance);
    CHECK_CLOSE(log10_binomial_sf(1000500, 1e7, 0.1), -0.52399708826397737635, tolerance);
    CHECK_CLOSE(log10_binomial_sf(999000, 1e7, 0.1), -0.068438425254772695327, tolerance);
    CHECK_CLOSE(log10_binomial_sf(5e6, 1e7, 0.1), -2218491.0430710040645, tolerance);

    // Every k of a small law, against the plain sum.
    for (double p : {0.001, 0.1, 0.5, 0.9, 0.999}) {
        for (int n = 1; n <= 20; ++n) {
            double sum = 0.0;
            for (int k = n; k >= 1; --k) {
                const double choose =
                    std::exp(std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0));
                sum += std::round(choose) * std::pow(p, k) * std::pow(1 - p, n - k);
                if (sum < 0.99) CHECK_CLOSE(log10_binomial_sf(k, n, p), std::log10(sum), tolerance);
            }
        }
    }
}

void test_binomial_limits() {
    CHECK(log10_binomial_sf(0, 10, 0.1) == 0.0);
    CHECK(log10_binomial_sf(-2, 10, 0.1) == 0.0);
    CHECK(log10_binomial_sf(11, 10, 0.1) == -INFINITY);
    CHECK(log10_binomial_sf(0, 0, 0.1) == 0.0);
    CHECK(log10_binomial_sf(1, 0, 0.1) == -INFINITY);
    CHECK(log10_binomial_sf(1, 10, 0) == -INFINITY);
    CHECK(log10_binomial_sf(10, 10, 1) == 0.0);
    CHECK(std::isnan(log10_binomial_sf(NAN, 10, 0.1)));
    CHECK(std::isnan(log10_binomial_sf(1, NAN, 0.1)));
    CHECK(std::isnan(log10_binomial_sf(1, 10, NAN)));
    CHECK(std::isnan(log10_binomial_sf(1, 10, 1.5)));
    CHECK(std::isfinite(log10_binomial_sf(1e8, 1e9, 0.1)));
    CHECK_CLOSE(log10_binomial_sf(1e9, 1e9, 0.1), -1e9, tolerance);
    double before = 0.0;
    for (int k = 0; k <= 3000; ++k) {
        const double now = log10_binomial_sf(k, 3000, 0.1);
        CHECK(now <= before && std::isfinite(now));
        CHECK(k < 200 || now < before);
        before = now;
    }
}

// Blocks: every value is what the function of one value gives, wherever it stands, specials among them, one
// column for all, `out` on top of an argument; and the tables of few k and n.
void test_blocks() {
    for (std::size_t count : {1, 2, 3, 4, 5, 63, 64, 255, 256, 257, 259, 1000}) {
        std::vector<double> x(count), dof(count), k(count), n(count), p(count), out(count);
        for (std::size_t i = 0; i < count; ++i) {
            const double u = double(i * 7919 % 1009) / 1009;
            dof[i] = i % 3 ? 1 + std::floor(900 * u) : 0.5 + 40 * u;
            x[i] = i % 41 == 5   ? 0.0
                   : i % 43 == 6 ? INFINITY
                   : i % 47 == 7 ? NAN
                                 : dof[i] * (0.2 + 4 * u * u);
            n[i] = std::floor(std::exp(1 + 14 * u));
            p[i] = i % 53 == 8 ? 0.0 : i % 2 ? 0.1 : 0.02 + 0.96 * u;
            k[i] = i % 41 == 5   ? -1.0
                   : i % 43 == 6 ? n[i] + 1
                   : i % 47 == 7 ? NAN
                                 : std::floor(n[i] * p[i] * (0.5 + 2.5 * u));
        }
        const auto same = [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); };
        log10_chi2_sf({x.data()}, {dof.data()}, out.data(), count);
        for (std::size_t i = 0; i < count; ++i) CHECK(same(out[i], log10_chi2_sf(x[i], dof[i])));
        const double one_dof = 192.0;
        log10_chi2_sf({x.data()}, {&one_dof, false}, out.data(), count);
        for (std::size_t i = 0; i < count; ++i) CHECK(same(out[i], log10_chi2_sf(x[i], 192)));
        out = x;
        log10_chi2_sf({out.data()}, {dof.data()}, out.data(), count);
        for (std::size_t i = 0; i < count; ++i) CHECK(same(out[i], log10_chi2_sf(x[i], dof[i])));

        out = k;
        log10_binomial_sf({out.data()}, {n.data()}, {p.data()}, out.data(), count);
        for (std::size_t i = 0; i < count; ++i) CHECK(same(out[i], log10_binomial_sf(k[i], n[i], p[i])));
        const double trials = 40, tau = 0.1;
        for (std::size_t i = 0; i < count; ++i) k[i] = double(i % 43) - 1;
        log10_binomial_sf({k.data()}, {&trials, false}, {&tau, false}, out.data(), count);
        for (std::size_t i = 0; i < count; ++i) CHECK(out[i] == log10_binomial_sf(k[i], 40, 0.1));
        std::fill(n.begin(), n.end(), trials);
        std::fill(p.begin(), p.end(), tau);
        log10_binomial_sf({k.data()}, {n.data()}, {p.data()}, k.data(), count);
        CHECK(k == out);
        for (const double beside : {3.0, 3.5, -2.0}) {  // few trials: a table; and what no table takes
            for (std::size_t i = 0; i < count; ++i) {
                n[i] = double(i * 7919 % 5);
                k[i] = double(i % 7) - 1;
            }
            n[count / 2] = beside;
            log10_binomial_sf({k.data()}, {n.data()}, {&tau, false}, out.data(), count);
            for (std::size_t i = 0; i < count; ++i) CHECK(same(out[i], log10_binomial_sf(k[i], n[i], tau)));
        }
    }
}

// Never rising in x or k where one method hands over to another: fine steps over the whole range.
void test_seams() {
    for (double dof : {0.7, 2.0, 2.5, 4.0, 6.9, 7.0, 17.0, 18.1, 79.9, 80.0, 81.0, 300.0, 3000.0, 1e6}) {
        const double spread = std::sqrt(2 * dof);
        double before = log10_chi2_sf(std::max(0.0, dof - 40 * spread), dof);
        for (double z = -40; z < 60; z += 0.003) {
            const double now = log10_chi2_sf(std::max(0.0, dof + z * spread), dof);
            CHECK(now <= before * (1 - 1e-12));
            before = now;
        }
    }
    for (double p : {0.003, 0.1, 0.5, 0.97}) {
        for (double n : {3.0, 30.0, 400.0, 444.0, 500.0, 5000.0, 300000.0}) {
            double before = 0.0;
            for (double k = 0; k <= n; k += std::max(1.0, std::floor(n / 20000))) {
                const double now = log10_binomial_sf(k, n, p);
                CHECK(std::isfinite(now) && now <= before * (1 - 1e-12));
                before = now;
            }
        }
    }
}

void test_quantile() {
    // mpmath: 2 * erfinv(q)**2.
    CHECK_CLOSE(uflow::chi2_1_quantile(0.5), 0.45493642311957275194, 1e-14);
    CHECK_CLOSE(uflow::chi2_1_quantile(0.9), 2.7055434540954149212, 1e-14);
    CHECK_CLOSE(uflow::chi2_1_quantile(0.99), 6.6348966010212135563, 1e-14);
    CHECK_CLOSE(uflow::chi2_1_quantile(0.999), 10.827566170662730649, 1e-14);
    CHECK_CLOSE(uflow::chi2_1_quantile(1e-6), 1.5707963267957189441e-12, 1e-14);
    CHECK(uflow::chi2_1_quantile(0) == 0.0);
    CHECK(uflow::chi2_1_quantile(1) == INFINITY);
    CHECK(std::isnan(uflow::chi2_1_quantile(-0.1)));
    CHECK(std::isnan(uflow::chi2_1_quantile(1.1)));
    CHECK(std::isnan(uflow::chi2_1_quantile(NAN)));
    for (double q = 1e-3; q < 1; q += 1e-3) {
        CHECK_CLOSE(log10_chi2_sf(uflow::chi2_1_quantile(q), 1), std::log1p(-q) / std::log(10.0), tolerance);
    }
}

void test_block_table() {
    const int n = 9;
    for (int channels : {1, 3, 40}) {
        std::vector<double> table(n * channels + 1, NAN);
        uflow::block_tail_table(n, channels, 0.1, false, table.data());
        for (int c = 0; c < n * channels; ++c) CHECK(table[c] == log10_binomial_sf(c / channels + 1, n, 0.1));
        CHECK(table[n * channels] == table[n * channels - 1]);

        uflow::block_tail_table(n, channels, 0.1, true, table.data());
        // mpmath: log10(quad(lambda t: gamma(10) / (gamma(t + 1) * gamma(10 - t)) * 0.1**t * 0.9**(9 - t),
        // [x, ..., 9])).
        CHECK_CLOSE(table[0], -0.082499358202644515259, tolerance);
        if (channels == 40) {
            CHECK_CLOSE(table[180], -2.956434497803970919, tolerance);
            CHECK_CLOSE(table[340], -8.6895380936719798215, tolerance);
        }
        CHECK(table[n * channels] == table[n * channels - 1]);
        for (int c = 0; c + 1 < n * channels; ++c) CHECK(table[c + 1] < table[c]);
    }
    // Nothing infinite even where whole ends of the table are far below the smallest double.
    std::vector<double> deep(400 + 1);
    for (bool continuous : {false, true}) {
        uflow::block_tail_table(400, 1, 1e-3, continuous, deep.data());
        CHECK(deep[400] < -1190.0);
        for (double value : deep) CHECK(std::isfinite(value));
    }
}

}  // namespace

int main() {
    test_chi2_values();
    test_chi2_limits();
    test_chi2_monotone();
    test_chi2_switches();
    test_chernoff();
    test_binomial_values();
    test_binomial_limits();
    test_blocks();
    test_seams();
    test_quantile();
    test_block_table();
    return uflow_test::result();
}
