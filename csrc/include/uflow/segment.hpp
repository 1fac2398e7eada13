// Energy maps in, log10 probabilities and log10 NFA out, for batches over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "uflow/component_tree.hpp"
#include "uflow/max_tree.hpp"
#include "uflow/number_of_tests.hpp"
#include "uflow/select.hpp"
#include "uflow/tail.hpp"

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

// Calls task(worker, index) for every index < count, worker < workers(count, threads). An exception stops the
// rest and is thrown again here. threads <= 0: as many as the machine has.
inline int workers(std::int64_t count, int threads) noexcept {
    const std::int64_t most = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
    return int(std::max<std::int64_t>(1, std::min(count, most)));
}

template <class Task>
void parallel_for(std::int64_t count, int threads, Task&& task) {
    const int crew = workers(count, threads);
    std::atomic<std::int64_t> next{0};
    std::exception_ptr error;
    std::mutex error_lock;
    const auto work = [&](int worker) noexcept {
        try {
            for (std::int64_t i; (i = next.fetch_add(1)) < count;) task(worker, i);
        } catch (...) {
            next = count;
            const std::lock_guard<std::mutex> lock(error_lock);
            if (!error) error = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(std::size_t(crew - 1));
    try {
        for (int worker = 1; worker < crew; ++worker) others.emplace_back(work, worker);
    } catch (const std::system_error&) {
        // No more threads to be had: those that run do all the work.
    }
    work(0);
    for (std::thread& other : others) other.join();
    if (error) std::rethrow_exception(error);
}

// ---------------------------------------------------------------------------------------------------------------
// One map: energies in, log10 probability of the final region of each cell out.

template <class T>
struct SegmentWorkspace {
    MaxTreeWorkspace<T> sort;
    ComponentTree<T> tree;
    SelectWorkspace select;
    std::vector<std::int32_t> parent, order, region;
    std::vector<double> value;
};

namespace detail {

// Instead of -inf (an energy of 0 without the guard, an overflow): finite in float32 also after a resize.
constexpr double lowest_log = -1e30;

// log10 P of every node: (area / correlation area) * log10 P(one cell at least at the level).
template <class T>
void node_log_pfa(const ComponentTree<T>& tree, Tail tail, const Background& model, double* value) {
    const Chi2Tail chi2(model.dof);  // made once: cheap next to the tree
    for (std::int32_t node = 0; node < tree.size(); ++node) {
        const double area = tree.area[node], energy = double(tree.level[node]) / model.scale;
        double log_p = 0.0;
        switch (tail) {
            case Tail::exact:
                log_p = area * chi2.log10_sf(energy);
                break;
            case Tail::chernoff:
            case Tail::chernoff_unguarded:
                log_p = area * log10_chi2_chernoff(energy / model.dof, model.dof, tail == Tail::chernoff);
                break;
            case Tail::binomial:
                log_p = log10_binomial_sf(double(tree.exceedances[node]), area * model.channels,
                                          model.exceedance);
        }
        value[node] = std::max(log_p / model.correlation_area, lowest_log);
    }
}

}  // namespace detail

// energy: height * width sums of z^2. exceedances: counts of z^2 >= tau per cell for the binomial tail, else
// null. by_area_scales > 0: log10 N(area) is added to every value, with that number of scales, and decides
// among nested regions; cells outside the final regions get log10 N(1). 0: no number of tests, 0 outside.
template <class T>
void log_pfa_map(const T* energy, const std::int32_t* exceedances, std::int32_t height, std::int32_t width,
                 Tail tail, const Background& model, std::size_t by_area_scales, SegmentWorkspace<T>& work,
                 double* map) {
    const auto cells = std::size_t(height) * std::size_t(width);
    work.parent.resize(cells);
    work.order.resize(cells);
    max_tree(energy, height, width, Connectivity::four, work.sort, work.parent.data(), work.order.data());
    component_tree(energy, work.parent.data(), work.order.data(), std::int32_t(cells), exceedances,
                   work.tree);
    const std::int32_t nodes = work.tree.size();
    work.value.resize(std::size_t(nodes));
    work.region.resize(std::size_t(nodes));
    detail::node_log_pfa(work.tree, tail, model, work.value.data());
    const auto log_tests = [&](double area) {
        return by_area_scales ? log10_number_of_tests_by_area(area, std::int64_t(cells), by_area_scales)
                              : 0.0;
    };
    if (by_area_scales)
        for (std::int32_t node = 0; node < nodes; ++node) work.value[node] += log_tests(work.tree.area[node]);
    select_regions(work.tree.parent.data(), work.value.data(), nodes, work.select, work.region.data());
    const double outside = log_tests(1.0);
    for (std::size_t cell = 0; cell < cells; ++cell) {
        const std::int32_t region = work.region[work.tree.node_of[cell]];
        map[cell] = region < 0 ? outside : work.value[region];
    }
}

// Batch of (height, width) maps, one after the other; log_pfa (out) has the shape of energy.
template <class T>
void log_pfa(const T* energy, const std::int32_t* exceedances, std::int64_t batch, std::int32_t height,
             std::int32_t width, Tail tail, const Background& model, int threads, float* log_pfa) {
    const auto cells = std::size_t(height) * std::size_t(width);
    struct Worker {
        SegmentWorkspace<T> segment;
        std::vector<double> map;
    };
    std::vector<Worker> crew(std::size_t(workers(batch, threads)));
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        Worker& mine = crew[std::size_t(worker)];
        mine.map.resize(cells);
        const std::size_t at = std::size_t(image) * cells;
        log_pfa_map(energy + at, exceedances ? exceedances + at : nullptr, height, width, tail, model, 0,
                    mine.segment, mine.map.data());
        std::copy(mine.map.begin(), mine.map.end(), log_pfa + at);
    });
}

// ---------------------------------------------------------------------------------------------------------------
// Resizing, as torch.nn.functional.interpolate defines it: along each axis, every output is a weighted sum of
// Taps neighbouring inputs (indices clamped at the border). Bilinear: 2 taps, align_corners=False. Bicubic: 4
// taps, align_corners=True, Keys' kernel with A = -0.75.
template <int Taps>
struct ResizeAxis {
    static_assert(Taps == 2 || Taps == 4, "bilinear or bicubic");
    std::vector<std::int32_t> index;  // Taps per output
    std::vector<double> weight;

    ResizeAxis(std::int32_t in, std::int32_t out) {
        index.reserve(std::size_t(out) * Taps);
        weight.reserve(std::size_t(out) * Taps);
        for (std::int32_t i = 0; i < out; ++i) {
            double at;
            if constexpr (Taps == 2)
                at = std::max(0.0, (i + 0.5) * double(in) / double(out) - 0.5);
            else
                at = out > 1 ? i * (double(in - 1) / double(out - 1)) : 0.0;
            const double below = std::floor(at), t = at - below;
            for (int tap = 0; tap < Taps; ++tap) {
                const std::int32_t neighbour = std::int32_t(below) + tap - (Taps / 2 - 1);
                index.push_back(std::clamp(neighbour, std::int32_t(0), in - 1));
                weight.push_back(kernel(std::fabs(t - (tap - (Taps / 2 - 1)))));
            }
        }
    }

    static double kernel(double x) noexcept {
        constexpr double a = -0.75;
        if constexpr (Taps == 2) return 1.0 - x;
        return x <= 1.0 ? ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                        : ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
    }
};

template <int Taps>
struct Resize {
    std::int32_t width;
    ResizeAxis<Taps> rows, cols;

    Resize(std::int32_t height, std::int32_t width, std::int32_t out_height, std::int32_t out_width)
        : width(width), rows(height, out_height), cols(width, out_width) {}

    // One row of the result: the rows of the map are combined into `line` (width values), then the columns of
    // that. put(column, value) is called for every output column.
    template <class Put>
    void row(const double* map, std::int32_t out_row, double* line, Put&& put) const {
        const std::int32_t* at = rows.index.data() + std::size_t(out_row) * Taps;
        const double* w = rows.weight.data() + std::size_t(out_row) * Taps;
        for (std::int32_t i = 0; i < width; ++i) {
            double sum = 0.0;
            for (int tap = 0; tap < Taps; ++tap)
                sum += w[tap] * map[std::size_t(at[tap]) * std::size_t(width) + i];
            line[i] = sum;
        }
        const std::size_t out_width = cols.index.size() / Taps;
        at = cols.index.data();
        w = cols.weight.data();
        for (std::size_t i = 0; i < out_width; ++i, at += Taps, w += Taps) {
            double sum = 0.0;
            for (int tap = 0; tap < Taps; ++tap) sum += w[tap] * line[at[tap]];
            put(i, sum);
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------
// The tests on a batch: all scales of every image.

struct Scale {
    const float* energy;              // (batch, height, width)
    const std::int32_t* exceedances;  // the same shape, or null
    std::int32_t height, width;
    Background background;
};

// log10 NFA (batch, out_height, out_width): per scale the map of log10 P resized bilinearly, the minimum over
// scales, plus log10 N_T; or, by_area, with log10 N(area) inside the maps.
inline void log_nfa(const std::vector<Scale>& scales, std::int64_t batch, std::int32_t out_height,
                    std::int32_t out_width, Tail tail, bool by_area, int threads, float* result) {
    std::vector<std::int64_t> cells;
    std::vector<Resize<2>> resize;
    for (const Scale& scale : scales) {
        cells.push_back(std::int64_t(scale.height) * scale.width);
        resize.emplace_back(scale.height, scale.width, out_height, out_width);
    }
    const double log_tests = by_area ? 0.0 : log10_number_of_tests(cells.data(), cells.size());
    struct Worker {
        SegmentWorkspace<float> segment;
        std::vector<std::vector<double>> maps;
        std::vector<double> line;
    };
    std::vector<Worker> crew(std::size_t(workers(batch, threads)));
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        Worker& mine = crew[std::size_t(worker)];
        mine.maps.resize(scales.size());
        for (std::size_t l = 0; l < scales.size(); ++l) {
            const Scale& scale = scales[l];
            const auto at = std::size_t(image * cells[l]);
            mine.maps[l].resize(std::size_t(cells[l]));
            mine.line.resize(std::max(mine.line.size(), std::size_t(scale.width)));
            log_pfa_map(scale.energy + at, scale.exceedances ? scale.exceedances + at : nullptr, scale.height,
                        scale.width, tail, scale.background, by_area ? scales.size() : 0, mine.segment,
                        mine.maps[l].data());
        }
        float* out = result + std::size_t(image) * std::size_t(out_height) * std::size_t(out_width);
        for (std::int32_t row = 0; row < out_height; ++row, out += out_width)
            for (std::size_t l = 0; l < scales.size(); ++l)
                resize[l].row(mine.maps[l].data(), row, mine.line.data(), [&](std::size_t col, double value) {
                    const auto nfa = float(value + log_tests);
                    out[col] = l == 0 ? nfa : std::min(out[col], nfa);
                });
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

// Sums over windows of (2 half + 1)^2 cells, reflected at the border: along the rows into `rows`, then along
// columns.
inline void window_sums(const std::int32_t* counts, std::int32_t height, std::int32_t width,
                        std::int32_t half, std::int32_t* rows, std::int32_t* sums) noexcept {
    for (std::int32_t row = 0; row < height; ++row)
        for (std::int32_t col = 0; col < width; ++col) {
            std::int32_t sum = 0;
            for (std::int32_t k = -half; k <= half; ++k) sum += counts[row * width + reflect(col + k, width)];
            rows[row * width + col] = sum;
        }
    for (std::int32_t row = 0; row < height; ++row)
        for (std::int32_t col = 0; col < width; ++col) {
            std::int32_t sum = 0;
            for (std::int32_t k = -half; k <= half; ++k) sum += rows[reflect(row + k, height) * width + col];
            sums[row * width + col] = sum;
        }
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
    std::size_t cells = 0, widest = 0, largest = 0;
    for (std::size_t l = 0; l < scales.size(); ++l) {
        const BlockScale& scale = scales[l];
        const std::int32_t half = block_half(window, l), side = 2 * half + 1;
        if (half >= scale.height || half >= scale.width)
            throw std::invalid_argument("log_nfa_block: the window is larger than the reflected map: scale " +
                                        std::to_string(l) + " is " + std::to_string(scale.height) + " x " +
                                        std::to_string(scale.width) + " cells and needs at least " +
                                        std::to_string(half + 1) + "; use a smaller window");
        resize.emplace_back(scale.height, scale.width, out_height, out_width);
        table[l].resize(std::size_t(side) * std::size_t(side) * std::size_t(scale.channels) + 1);
        block_tail_table(side * side, scale.channels, exceedance, continuous, table[l].data());
        const std::size_t here = std::size_t(scale.height) * std::size_t(scale.width);
        cells += here;
        largest = std::max(largest, here);
        widest = std::max(widest, std::size_t(scale.width));
    }
    const double log_tests = std::log10(double(cells));
    struct Worker {
        std::vector<std::int32_t> rows, sums;
        std::vector<double> map, line;
    };
    std::vector<Worker> crew(std::size_t(workers(batch, threads)));
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        Worker& mine = crew[std::size_t(worker)];
        mine.rows.resize(largest);
        mine.sums.resize(largest);
        mine.map.resize(largest);
        mine.line.resize(widest);
        double* out = result + std::size_t(image) * std::size_t(out_height) * std::size_t(out_width);
        std::fill(out, out + std::size_t(out_height) * std::size_t(out_width), log_tests);
        for (std::size_t l = 0; l < scales.size(); ++l) {
            const BlockScale& scale = scales[l];
            const std::size_t here = std::size_t(scale.height) * std::size_t(scale.width);
            detail::window_sums(scale.exceedances + std::size_t(image) * here, scale.height, scale.width,
                                block_half(window, l), mine.rows.data(), mine.sums.data());
            for (std::size_t cell = 0; cell < here; ++cell)
                mine.map[cell] = table[l][std::size_t(mine.sums[cell])];
            for (std::int32_t row = 0; row < out_height; ++row) {
                double* line = out + std::size_t(row) * std::size_t(out_width);
                resize[l].row(mine.map.data(), row, mine.line.data(),
                              [&](std::size_t col, double value) { line[col] += value; });
            }
        }
    });
}

}  // namespace uflow
