// Number of candidate regions of the a contrario test, as log10 (b^n overflows a double from n = 507 on).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace uflow {

// Growth of the number of fixed polyominoes, about a * b^r / r: Jensen and Guttmann, J. Phys. A 33 (2000)
// L257.
inline constexpr double polyomino_a = 0.316915;
inline constexpr double polyomino_b = 4.062570;
inline constexpr double log10_polyomino_a = -0.49905720459935494216;
inline constexpr double log10_polyomino_b = 0.60880085715045651778;

// log10(a b^r / r): connected regions of r cells, up to translation.
inline double log10_polyominoes(double r) noexcept {
    return log10_polyomino_a + r * log10_polyomino_b - std::log10(r);
}

// log10 of sum over scales l of n_l * sum_{r = 1..n_l} a b^r / r, n_l = cells[l]; -inf when no scale has a
// cell.
inline double log10_number_of_tests(const std::int64_t* cells, std::size_t scales) noexcept {
    double total = -std::numeric_limits<double>::infinity();
    for (std::size_t l = 0; l < scales; ++l) {
        if (cells[l] <= 0) continue;
        // Terms relative to the last one, which is the largest: each step down is smaller by 2/b or more.
        double term = 1.0;
        double sum = 1.0;
        for (double r = static_cast<double>(cells[l]); r > 1.0 && term > 1e-18 * sum; r -= 1.0) {
            term *= r / ((r - 1.0) * polyomino_b);
            sum += term;
        }
        const double n = static_cast<double>(cells[l]);
        const double scale = std::log10(n) + log10_polyominoes(n) + std::log10(sum);
        const double high = std::fmax(total, scale);
        const double low = std::fmin(total, scale);
        total = high + std::log1p(std::pow(10.0, low - high)) * 0.43429448190325183;  // 1 / ln 10
    }
    return total;
}

// log10 N(r), N(r) = L * n * n * a b^r / r: each of the L scales and n sizes gets an equal share of epsilon,
// and a region of r cells has n positions.
inline double log10_number_of_tests_by_area(double r, std::int64_t cells, std::size_t scales) noexcept {
    return std::log10(static_cast<double>(scales)) + 2.0 * std::log10(static_cast<double>(cells)) +
           log10_polyominoes(r);
}

// The same for every area up to that of the whole map, a table of cells + 1 values (that of area 0 means
// nothing).
inline std::vector<double> log10_number_of_tests_by_area(std::int64_t cells, std::size_t scales) {
    const double all_but_shapes = log10_number_of_tests_by_area(1.0, cells, scales) - log10_polyominoes(1.0);
    std::vector<double> table(std::size_t(cells) + 1, 0.0);
    for (std::size_t area = 1; area < table.size(); ++area)
        table[area] = all_but_shapes + log10_polyominoes(double(area));
    return table;
}

}  // namespace uflow
