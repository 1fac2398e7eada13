// The older block test (arXiv v1): counts in windows of cells instead of regions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "uflow/buffer.hpp"
#include "uflow/lanes.hpp"
#include "uflow/parallel.hpp"
#include "uflow/resize.hpp"
#include "uflow/tail.hpp"

#ifdef UFLOW_AVX2
#include <immintrin.h>
#endif

namespace uflow {

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
        const double trials = n;
        for (int x = 0; x < n; ++x) table[x] = x + 1.0;
        detail::log10_tails(detail::BinomialLaw{{table}, {&trials, false}, {&p, false}}, table,
                            std::size_t(n));
        for (std::ptrdiff_t x = n; x-- > 0;) std::fill_n(table + x * channels, channels, double(table[x]));
    } else {
        // Four Gauss-Legendre points (DLMF 3.5.vi) on pieces no wider than 1/32, from n downwards, added as
        // logs.
        static constexpr double node[] = {0.86113631159405257522, 0.33998104358485626480};
        static constexpr double weight[] = {0.34785484513745385737, 0.65214515486254614263};
        // The density is the beta law's of t + 1 and n - t + 1 over (n + 1) p q.
        const double ln_factor = -detail::ln_sqrt_2pi - std::log((n + 1.0) * p * (1.0 - p));
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
                    const double a = t + 1.0, b = n - t + 1.0;
                    const detail::BetaTerm<double> term(a, b, p, t - n * p + (1.0 - 2.0 * p));
                    const double small =
                        (a < 2.0 ? detail::stirling_error_below_2(a) - detail::stirling_error_of_1 : 0.0) +
                        (b < 2.0 ? detail::stirling_error_below_2(b) - detail::stirling_error_of_1 : 0.0);
                    ln_density[i] = term.S - small - term.D + 0.5 * std::log(term.W) + ln_factor;
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

struct BlockScale {
    const std::int32_t* exceedances;  // (batch, height, width) counts of z^2 >= tau, each <= channels
    std::int32_t height, width, channels;

    std::size_t cells() const noexcept { return std::size_t(height) * std::size_t(width); }
};

namespace detail {

// Index into an axis of n values reflected at both ends without repeating them; -n < i < 2n - 1.
inline std::int32_t reflect(std::int32_t i, std::int32_t n) noexcept {
    return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i;
}

// Sums over windows of (2 half + 1)^2 cells, reflected at the border. `columns`: width + 2 half values, the
// sums over the rows of the window, which a row further takes one row in and leaves another out.
inline void window_sums(const std::int32_t* counts, std::int32_t height, std::int32_t width,
                        std::int32_t half, std::int32_t* columns, std::int32_t* sums) noexcept {
    std::int32_t* inner = columns + half;
    const auto row_of = [=](std::int32_t row) { return counts + reflect(row, height) * width; };
    std::fill(inner, inner + width, 0);
    for (std::int32_t row = -half; row <= half; ++row)
        std::transform(inner, inner + width, row_of(row), inner, std::plus<>());
    for (std::int32_t row = 0; row < height; ++row, sums += width) {
        for (std::int32_t k = 1; k <= half; ++k) {
            inner[-k] = inner[reflect(-k, width)];
            inner[width - 1 + k] = inner[reflect(width - 1 + k, width)];
        }
        std::copy(columns, columns + width, sums);
        for (std::int32_t k = 1; k <= 2 * half; ++k)
            for (std::int32_t col = 0; col < width; ++col) sums[col] += columns[col + k];
        if (row + 1 == height) break;
        const std::int32_t *in = row_of(row + 1 + half), *out = row_of(row - half);
        for (std::int32_t col = 0; col < width; ++col) inner[col] += in[col] - out[col];
    }
}

// to = base + the sum over maps of four weighted rows each, whose lines and weights follow one another; from
// output i on.
inline void sum_rows_from(std::int32_t i, const float* const* line, const float* w, std::size_t lines,
                          double base, std::int32_t count, double* to) noexcept {
    for (; i < count; ++i) {
        float sum = 0.0f;
        for (std::size_t l = 0; l < lines; ++l) sum += w[l] * line[l][i];
        to[i] = base + double(sum);
    }
}
#ifdef UFLOW_AVX2
UFLOW_AVX2_FMA inline void sum_rows_avx2(const float* const* line, const float* w, std::size_t lines,
                                         double base, std::int32_t count, double* to) noexcept {
    constexpr int vectors = 8;  // each sum waits for its last addition: several at once
    std::int32_t i = 0;
    for (; i + 8 * vectors <= count; i += 8 * vectors) {
        __m256 sum[vectors];
        for (__m256& s : sum) s = _mm256_setzero_ps();
        for (std::size_t l = 0; l < lines; ++l) {
            const __m256 weight = _mm256_set1_ps(w[l]);
            const float* from = line[l] + i;
            for (int k = 0; k < vectors; ++k)
                sum[k] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(from + 8 * k), sum[k]);
        }
        const __m256d shift = _mm256_set1_pd(base);
        for (int k = 0; k < vectors; ++k) {
            double* at = to + i + 8 * k;
            _mm256_storeu_pd(at, _mm256_add_pd(shift, _mm256_cvtps_pd(_mm256_castps256_ps128(sum[k]))));
            _mm256_storeu_pd(at + 4, _mm256_add_pd(shift, _mm256_cvtps_pd(_mm256_extractf128_ps(sum[k], 1))));
        }
    }
    sum_rows_from(i, line, w, lines, base, count, to);
}
#endif
inline void sum_rows(const float* const* line, const float* w, std::size_t lines, double base,
                     std::int32_t count, double* to) noexcept {
    in_widest_lanes<Rounding::fused>([=](auto lanes) UFLOW_INLINED {
        (void)lanes;
#ifdef UFLOW_AVX2
        if constexpr (std::is_same_v<decltype(lanes), Lanes<Double4>>)
            return sum_rows_avx2(line, w, lines, base, count, to);
#endif
        sum_rows_from(0, line, w, lines, base, count, to);
    });
}

}  // namespace detail

// Half the side of the block test's window at scale l, the finest 0.
inline std::int32_t block_half(int window, std::size_t scale) noexcept {
    return std::max(std::int32_t(std::ldexp(double(window), -int(scale)) / 2.0), std::int32_t(1));
}

// The older block test (arXiv v1): log10 NFA (batch, out_height, out_width), the sum over scales of the log10
// tails of the window counts, resized bicubically, plus log10 of the number of cells of all scales.
inline void log_nfa_block(const std::vector<BlockScale>& scales, std::int64_t batch, std::int32_t out_height,
                          std::int32_t out_width, int window, double exceedance, bool continuous, int threads,
                          double* result) {
    // For every scale, the tail of each count that a window may hold.
    std::vector<std::vector<double>> table(scales.size());
    std::vector<double> per_count;  // places in the table a count in the window
    std::size_t cells = 0, largest = 0;
    for (std::size_t l = 0; l < scales.size(); ++l) {
        const BlockScale& scale = scales[l];
        const std::int32_t half = block_half(window, l), side = 2 * half + 1;
        if (half >= scale.height || half >= scale.width)
            throw std::invalid_argument("log_nfa_block: the window is larger than the reflected map: scale " +
                                        std::to_string(l) + " is " + std::to_string(scale.height) + " x " +
                                        std::to_string(scale.width) + " cells and needs at least " +
                                        std::to_string(half + 1) + "; use a smaller window");
        // Not continuous, all that matters is the count over the channels, rounded down.
        const std::int32_t channels = continuous ? scale.channels : 1;
        table[l].resize(std::size_t(side) * std::size_t(side) * std::size_t(channels) + 1);
        block_tail_table(side * side, channels, exceedance, continuous, table[l].data());
        per_count.push_back(double(channels) / scale.channels);
        cells += scale.cells();
        largest = std::max(largest, scale.cells());
    }
    const std::vector<Resize<4>> resize = resize_to<4>(out_height, out_width, scales);
    const double log_tests = std::log10(double(cells));
    struct Workspace {
        Buffer columns, sums;
        std::vector<Buffer> maps;
        std::vector<ResizeLines<4>> lines;
        std::vector<const float*> line;
        std::vector<float> weight;
    };
    Workspace* none = nullptr;
    for_each_image(batch, threads, none, [&](Workspace& work, std::int64_t image) {
        auto* sums = work.sums.fit<std::int32_t>(largest);
        work.maps.resize(scales.size());
        work.lines.resize(scales.size());
        work.line.resize(4 * scales.size());
        work.weight.resize(4 * scales.size());
        // Sum the counts of every window, and look their tail up.
        for (std::size_t l = 0; l < scales.size(); ++l) {
            const BlockScale& scale = scales[l];
            const std::size_t here = scale.cells();
            const std::int32_t half = block_half(window, l);
            auto* columns = work.columns.fit<std::int32_t>(std::size_t(scale.width) + 2 * std::size_t(half));
            auto* map = work.maps[l].fit<float>(here);
            detail::window_sums(scale.exceedances + std::size_t(image) * here, scale.height, scale.width,
                                half, columns, sums);
            for (std::size_t cell = 0; cell < here; ++cell)  // a half: the rounding of the product is less
                sums[cell] = std::int32_t((sums[cell] + 0.5) * per_count[l]);
            for (std::size_t cell = 0; cell < here; ++cell)
                map[cell] = float(table[l][std::size_t(sums[cell])]);
            resize[l].start(map, work.lines[l]);
        }
        // Resize the maps of all scales and add them up, a row at a time.
        double* out = result + std::size_t(image) * std::size_t(out_height) * std::size_t(out_width);
        for (std::int32_t row = 0; row < out_height; ++row, out += out_width) {
            for (std::size_t l = 0; l < scales.size(); ++l) {
                resize[l].prepare(row, work.lines[l]);
                std::copy_n(work.lines[l].line, 4, work.line.data() + 4 * l);
                std::copy_n(resize[l].weight(row), 4, work.weight.data() + 4 * l);
            }
            detail::sum_rows(work.line.data(), work.weight.data(), work.line.size(), log_tests, out_width,
                             out);
        }
    });
}

}  // namespace uflow
