// Energy maps in, log10 probabilities and log10 NFA out, for batches over threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "uflow/component_tree.hpp"
#include "uflow/lanes.hpp"
#include "uflow/max_tree.hpp"
#include "uflow/number_of_tests.hpp"
#include "uflow/parallel.hpp"
#include "uflow/resize.hpp"
#include "uflow/select.hpp"
#include "uflow/tail.hpp"

#ifdef UFLOW_AVX2
#include <immintrin.h>
#endif

namespace uflow {

// What the energies of one scale are when nothing is wrong: e ~ scale * chi2_dof, cells correlated over
// correlation_area. The paper's: 1, the number of channels, 1. The binomial tail counts the channels * area
// samples of a region instead, of which each exceeds with the probability `exceedance`.
struct Background {
    double scale = 1.0;
    double dof = 1.0;
    double correlation_area = 1.0;
    double channels = 1.0;
    double exceedance = 0.1;
};

// ---------------------------------------------------------------------------------------------------------------
// One map: energies in, log10 probability of the final region of each cell out.

struct SegmentWorkspace {
    TreeWorkspace tree;
    Buffer region, flags;  // 4 + 1 bytes a cell

    std::size_t bytes() const noexcept { return tree.bytes() + region.bytes() + flags.bytes(); }
};

namespace detail {

// Instead of -inf (an energy of 0 without the guard, an overflow): finite in float32 also after a resize.
constexpr double lowest_log = -1e30;

// The values of the nodes, levels or exceedance counts, become log10 P of every node:
// (area / correlation area) * log10 P(one cell at least at the level).
inline void node_log_pfa(const ComponentTree& tree, Tail tail, const Background& model) noexcept {
    constexpr std::int32_t chunk = 256;
    double log_p[chunk], samples[chunk];
    const double mean = model.scale * model.dof;
    for (std::int32_t first = 0; first < tree.size; first += chunk) {
        const std::int32_t count = std::min(chunk, tree.size - first);
        const std::int32_t* area = tree.area + first;
        double* value = tree.value + first;
        switch (tail) {
            case Tail::exact:
                for (std::int32_t i = 0; i < count; ++i) log_p[i] = value[i] / model.scale;
                log10_chi2_sf({log_p}, {&model.dof, false}, log_p, std::size_t(count));
                for (std::int32_t i = 0; i < count; ++i) log_p[i] *= area[i];
                break;
            case Tail::chernoff:
            case Tail::chernoff_unguarded:
                for (std::int32_t i = 0; i < count; ++i) log_p[i] = value[i] / mean;
                log10_chi2_chernoff(log_p, model.dof, tail == Tail::chernoff, log_p, std::size_t(count));
                for (std::int32_t i = 0; i < count; ++i) log_p[i] *= area[i];
                break;
            case Tail::binomial:
                for (std::int32_t i = 0; i < count; ++i) samples[i] = area[i] * model.channels;
                log10_tails(BinomialLaw{{value}, {samples}, {&model.exceedance, false}}, log_p,
                            std::size_t(count));
        }
        for (std::int32_t i = 0; i < count; ++i)
            value[i] = std::max(log_p[i] / model.correlation_area, lowest_log);
    }
}

}  // namespace detail

// energy: height * width sums of z^2. exceedances: counts of z^2 >= tau per cell for the binomial tail, else
// null. by_area_scales > 0: log10 N(area) is added to every value, with that number of scales, and decides
// among nested regions; cells outside the final regions get log10 N(1). 0: no number of tests, 0 outside.
template <class T>
void log_pfa_map(const T* energy, const std::int32_t* exceedances, std::int32_t height, std::int32_t width,
                 Tail tail, const Background& model, std::size_t by_area_scales, SegmentWorkspace& work,
                 float* map) {
    // The guarded bound is 0 up to the mean, and below 0 above it. So no component of a level up to the mean
    // is chosen before one inside it that is above, nor has it any other value than what is outside: half of
    // the cells of normal latents need no tree. (By area a quiet plateau has a value of its own.)
    const bool quiet_is_outside = tail == Tail::chernoff && by_area_scales == 0;
    const double floor = quiet_is_outside ? model.scale * model.dof : -detail::inf;
    const ComponentTree tree = component_tree(energy, tail == Tail::binomial ? exceedances : nullptr, height,
                                              width, Connectivity::four, work.tree, floor);
    detail::node_log_pfa(tree, tail, model);
    double outside = 0.0;
    if (by_area_scales) {
        outside = log10_number_of_tests_by_area(1.0, std::int64_t(height) * width, by_area_scales);
        const double shared = outside - log10_polyominoes(1.0);  // all but the number of shapes
        for (std::int32_t node = 0; node < tree.size; ++node)
            tree.value[node] += shared + log10_polyominoes(tree.area[node]);
    }
    const auto cells = std::size_t(height) * std::size_t(width);  // not nodes: the next image may have more
    work.flags.fit<std::uint8_t>(cells);
    auto* region = work.region.fit<std::int32_t>(cells);
    select_regions(tree.parent, tree.value, tree.size, work.flags, region);
    const auto* order = work.tree.order.as<std::int32_t>();
    if (tree.first_rank > 0) std::fill(map, map + cells, float(outside));
    for (auto rank = std::size_t(tree.first_rank); rank < cells; ++rank) {
        const std::int32_t chosen = region[tree.node_of[rank]];
        map[order[rank]] = float(chosen < 0 ? outside : tree.value[chosen]);
    }
}

// Batch of (height, width) maps, one after the other; log_pfa (out) has the shape of energy. `kept`: memory
// of the calling thread for its next call, or null.
template <class T>
void log_pfa(const T* energy, const std::int32_t* exceedances, std::int64_t batch, std::int32_t height,
             std::int32_t width, Tail tail, const Background& model, int threads, float* log_pfa,
             SegmentWorkspace* kept = nullptr) {
    const auto cells = std::size_t(height) * std::size_t(width);
    Crew<SegmentWorkspace> crew(workers(batch, threads), kept);
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        const std::size_t at = std::size_t(image) * cells;
        log_pfa_map(energy + at, exceedances ? exceedances + at : nullptr, height, width, tail, model, 0,
                    crew[worker], log_pfa + at);
    });
}

// ---------------------------------------------------------------------------------------------------------------
// The tests on a batch: all scales of every image.

struct Scale {
    const float* energy;              // (batch, height, width)
    const std::int32_t* exceedances;  // the same shape, or null
    std::int32_t height, width;
    Background background;
};

// What one thread of log_nfa, joint_energy or anomaly_map needs.
struct NfaWorkspace {
    SegmentWorkspace segment;
    std::vector<Buffer> maps;  // float, 4 bytes a cell of each scale
    std::vector<ResizeLines<2>> lines;

    // Room for the maps of `scales` scales; what more there was stays for another call.
    void fit(std::size_t scales) {
        if (maps.size() < scales) maps.resize(scales);
        if (lines.size() < scales) lines.resize(scales);
    }
    std::size_t bytes() const noexcept {
        std::size_t sum = segment.bytes();
        for (const auto& map : maps) sum += map.bytes();
        for (const auto& line : lines) sum += line.memory.bytes();
        return sum;
    }
};

// log10 NFA (batch, out_height, out_width): per scale the map of log10 P resized bilinearly, the minimum over
// scales, plus log10 N_T; or, by_area, with log10 N(area) inside the maps. `kept`: memory of the calling
// thread for its next call, or null.
inline void log_nfa(const std::vector<Scale>& scales, std::int64_t batch, std::int32_t out_height,
                    std::int32_t out_width, Tail tail, bool by_area, int threads, float* result,
                    NfaWorkspace* kept = nullptr) {
    std::vector<std::int64_t> cells;
    std::vector<Resize<2>> resize;
    for (const Scale& scale : scales) {
        cells.push_back(std::int64_t(scale.height) * scale.width);
        resize.emplace_back(scale.height, scale.width, out_height, out_width);
    }
    const float log_tests = by_area ? 0.0f : float(log10_number_of_tests(cells.data(), cells.size()));
    Crew<NfaWorkspace> crew(workers(batch, threads), kept);
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        NfaWorkspace& mine = crew[worker];
        mine.fit(scales.size());
        for (std::size_t l = 0; l < scales.size(); ++l) {
            const Scale& scale = scales[l];
            const auto at = std::size_t(image * cells[l]);
            log_pfa_map(scale.energy + at, scale.exceedances ? scale.exceedances + at : nullptr, scale.height,
                        scale.width, tail, scale.background, by_area ? scales.size() : 0, mine.segment,
                        mine.maps[l].fit<float>(std::size_t(cells[l])));
            resize[l].start(mine.lines[l]);
        }
        float* out = result + std::size_t(image) * std::size_t(out_height) * std::size_t(out_width);
        for (std::int32_t row = 0; row < out_height; ++row, out += out_width)
            for (std::size_t l = 0; l < scales.size(); ++l) {
                const auto resized = resized_row(resize[l], mine.maps[l].as<float>(), row, mine.lines[l]);
                if (l == 0)
                    for (std::int32_t col = 0; col < out_width; ++col) out[col] = resized[col] + log_tests;
                else
                    for (std::int32_t col = 0; col < out_width; ++col)
                        out[col] = std::min(out[col], resized[col] + log_tests);
            }
    });
}

struct BlockScale {
    const std::int32_t* exceedances;  // (batch, height, width) counts of z^2 >= tau, each <= channels
    std::int32_t height, width, channels;
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
UFLOW_AVX2 inline void sum_rows_avx2(const float* const* line, const float* w, std::size_t lines, double base,
                                     std::int32_t count, double* to) noexcept {
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
#ifdef UFLOW_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return sum_rows_avx2(line, w, lines, base, count, to);
#endif
    sum_rows_from(0, line, w, lines, base, count, to);
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
    std::vector<Resize<4>> resize;
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
        resize.emplace_back(scale.height, scale.width, out_height, out_width);
        // Not continuous, all that matters is the count over the channels, rounded down.
        const std::int32_t channels = continuous ? scale.channels : 1;
        table[l].resize(std::size_t(side) * std::size_t(side) * std::size_t(channels) + 1);
        block_tail_table(side * side, channels, exceedance, continuous, table[l].data());
        per_count.push_back(double(channels) / scale.channels);
        const std::size_t here = std::size_t(scale.height) * std::size_t(scale.width);
        cells += here;
        largest = std::max(largest, here);
    }
    const double log_tests = std::log10(double(cells));
    struct Worker {
        Buffer columns, sums, line, weight;
        std::vector<Buffer> maps;
        std::vector<ResizeLines<4>> lines;
    };
    std::vector<Worker> crew(std::size_t(workers(batch, threads)));
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        Worker& mine = crew[std::size_t(worker)];
        auto* sums = mine.sums.fit<std::int32_t>(largest);
        mine.maps.resize(scales.size());
        mine.lines.resize(scales.size());
        auto* line = mine.line.fit<const float*>(4 * scales.size());
        auto* weight = mine.weight.fit<float>(4 * scales.size());
        for (std::size_t l = 0; l < scales.size(); ++l) {
            const BlockScale& scale = scales[l];
            const std::size_t here = std::size_t(scale.height) * std::size_t(scale.width);
            const std::int32_t half = block_half(window, l);
            auto* columns = mine.columns.fit<std::int32_t>(std::size_t(scale.width) + 2 * std::size_t(half));
            auto* map = mine.maps[l].fit<float>(here);
            detail::window_sums(scale.exceedances + std::size_t(image) * here, scale.height, scale.width,
                                half, columns, sums);
            for (std::size_t cell = 0; cell < here; ++cell)  // a half: the rounding of the product is less
                sums[cell] = std::int32_t((sums[cell] + 0.5) * per_count[l]);
            for (std::size_t cell = 0; cell < here; ++cell)
                map[cell] = float(table[l][std::size_t(sums[cell])]);
            resize[l].start(mine.lines[l]);
        }
        double* out = result + std::size_t(image) * std::size_t(out_height) * std::size_t(out_width);
        for (std::int32_t row = 0; row < out_height; ++row, out += out_width) {
            for (std::size_t l = 0; l < scales.size(); ++l) {
                resize[l].prepare(mine.maps[l].as<float>(), row, mine.lines[l]);
                std::copy_n(mine.lines[l].line, 4, line + 4 * l);
                std::copy_n(resize[l].weight(row), 4, weight + 4 * l);
            }
            detail::sum_rows(line, weight, 4 * scales.size(), log_tests, out_width, out);
        }
    });
}

}  // namespace uflow
