#include <cmath>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "uflow/number_of_tests.hpp"

namespace {

double log10_total(const std::vector<std::int64_t>& cells) {
    return uflow::log10_number_of_tests(cells.data(), cells.size());
}

}  // namespace

int main() {
    // The published check values (method.md), to the digits given there.
    CHECK(std::fabs(log10_total({784, 196}) - 476.92371) < 5e-6);
    CHECK(std::fabs(log10_total({784}) - 476.92371) < 5e-6);
    CHECK(std::fabs(log10_total({196}) - 118.94935) < 5e-6);
    CHECK(std::fabs(log10_total({4096, 1024, 256}) - 2493.2720) < 5e-5);

    // mpmath, 30 digits: log10(sum(n * sum(a * b**r / r for r in range(1, n + 1)) for n in cells)).
    CHECK_CLOSE(log10_total({784, 196}), 476.923710855673724, 1e-15);
    CHECK_CLOSE(log10_total({4096, 1024, 256}), 2493.27200315032831, 1e-15);
    CHECK_CLOSE(log10_total({1}), 0.109743652551101576, 1e-14);
    CHECK_CLOSE(log10_total({2, 1}), 0.958706417868943606, 1e-14);

    // Order and empty scales do not matter; two equal scales double the number.
    CHECK_CLOSE(log10_total({196, 0, 784}), log10_total({784, 196}), 1e-15);
    CHECK_CLOSE(log10_total({50, 50}) - log10_total({50}), std::log10(2.0), 1e-13);
    CHECK(log10_total({}) == -INFINITY);
    CHECK(log10_total({0}) == -INFINITY);

    // Far past the overflow of b^n, and rising with the number of cells.
    CHECK(std::isfinite(log10_total({std::int64_t{1} << 30})));
    for (std::int64_t n = 1; n < 1000; ++n) CHECK(log10_total({n}) < log10_total({n + 1}));

    // mpmath: log10(a * b**r / r) and log10(L * n**2 * a * b**r / r).
    CHECK_CLOSE(uflow::log10_polyominoes(1), 0.109743652551101576, 1e-14);
    CHECK_CLOSE(uflow::log10_polyominoes(10), 4.5889513669052102, 1e-14);
    CHECK_CLOSE(uflow::log10_polyominoes(784), 473.906498738674117, 1e-15);
    CHECK_CLOSE(uflow::log10_number_of_tests_by_area(1, 784, 2), 6.19940577358395966, 1e-14);
    CHECK_CLOSE(uflow::log10_number_of_tests_by_area(100, 196, 3), 63.4426619078789114, 1e-14);
    const std::vector<double> table = uflow::log10_number_of_tests_by_area(196, 3);
    CHECK(table.size() == 197);
    for (int area = 1; area <= 196; ++area)
        CHECK_CLOSE(table[std::size_t(area)], uflow::log10_number_of_tests_by_area(area, 196, 3), 1e-14);
    return uflow_test::result();
}
