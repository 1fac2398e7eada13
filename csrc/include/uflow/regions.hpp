// The connected components of a mask, and what each holds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "uflow/max_tree.hpp"

namespace uflow {

// Pixels of one row side by side in the mask, [first, end), and the component they belong to.
struct Run {
    std::int32_t row, first, end, component;
};

namespace detail {

// The first pixel from `col` on where the mask is not 0, or width.
inline std::int32_t next_inside(const std::uint8_t* row, std::int32_t col, std::int32_t width) noexcept {
    for (std::uint64_t eight; col + 8 <= width; col += 8) {
        std::memcpy(&eight, row + col, 8);
        if (eight) break;
    }
    while (col < width && !row[col]) ++col;
    return col;
}

// The first run of the component so far; a run points to one before it or to itself.
inline std::int32_t first_run(std::vector<Run>& runs, std::int32_t i) noexcept {
    while (runs[std::size_t(i)].component != i) {
        std::int32_t& up = runs[std::size_t(i)].component;
        up = runs[std::size_t(up)].component;
        i = up;
    }
    return i;
}

}  // namespace detail

// Finds the runs of a mask (height, width), inside where it is not 0, in raster order, and their components,
// numbered from 0 in raster order of their first pixels. Returns how many components there are.
inline std::int32_t find_runs(const std::uint8_t* mask, std::int32_t height, std::int32_t width,
                              Connectivity connectivity, std::vector<Run>& runs) {
    const std::int32_t reach =
        connectivity == Connectivity::eight ? 1 : 0;  // runs may also touch by a corner
    runs.clear();
    std::size_t above = 0;  // the first run of the row above that may touch the next one here
    for (std::int32_t row = 0; row < height; ++row, mask += width) {
        const std::size_t here = runs.size();
        while (above < here && runs[above].row < row - 1) ++above;
        for (std::int32_t col = 0; (col = detail::next_inside(mask, col, width)) < width;) {
            const void* outside = std::memchr(mask + col, 0, std::size_t(width - col));
            const std::int32_t first = col;
            col = outside ? std::int32_t(static_cast<const std::uint8_t*>(outside) - mask) : width;
            auto mine = std::int32_t(runs.size());
            runs.push_back({row, first, col, mine});
            while (above < here && runs[above].end + reach <= first) ++above;
            for (std::size_t other = above; other < here && runs[other].first < col + reach; ++other) {
                const std::int32_t theirs = detail::first_run(runs, std::int32_t(other));
                runs[std::size_t(std::max(mine, theirs))].component = std::min(mine, theirs);
                mine = std::min(mine, theirs);
            }
        }
    }
    std::int32_t count = 0;
    for (std::size_t i = 0; i < runs.size(); ++i) {
        const std::int32_t up = runs[i].component;  // numbered already, unless it is the run itself
        runs[i].component = std::size_t(up) == i ? count++ : runs[std::size_t(up)].component;
    }
    return count;
}

namespace detail {

// Calls see(component, first pixel, the pixel after the last) for each run.
template <class See>
void for_each_run(const std::vector<Run>& runs, std::int32_t width, See&& see) {
    for (const Run& run : runs) {
        const std::size_t row = std::size_t(run.row) * std::size_t(width);
        see(std::size_t(run.component), row + std::size_t(run.first), row + std::size_t(run.end));
    }
}

}  // namespace detail

// A component of a mask: its pixels, rows [top, bottom) and columns [left, right) around it, the mean row and
// column, the smallest log_nfa and the largest score.
struct Region {
    std::int64_t area = 0;
    std::int32_t top, left, bottom = 0, right = 0;
    double row = 0.0, col = 0.0;
    double log_nfa = std::numeric_limits<double>::infinity();
    double score = -std::numeric_limits<double>::infinity();
};

// The 4-connected regions of a mask (height, width), the lowest log_nfa first. std::invalid_argument for a
// NaN in one. `runs`: memory to work in.
template <class T>
std::vector<Region> regions(const std::uint8_t* mask, const T* log_nfa, const T* score, std::int32_t height,
                            std::int32_t width, std::vector<Run>& runs) {
    std::vector<Region> found(std::size_t(find_runs(mask, height, width, Connectivity::four, runs)));
    for (Region& region : found) region.top = height, region.left = width;
    for (const Run& run : runs) {
        Region& region = found[std::size_t(run.component)];
        const std::int64_t length = run.end - run.first;
        region.area += length;
        region.top = std::min(region.top, run.row);
        region.left = std::min(region.left, run.first);
        region.bottom = std::max(region.bottom, run.row + 1);
        region.right = std::max(region.right, run.end);
        region.row += double(length * run.row);  // whole numbers, and so exact
        region.col += double(length * (std::int64_t(run.first) + run.end - 1) / 2);
        T lowest = T(region.log_nfa), highest = T(region.score);
        bool numbers = true;
        const std::ptrdiff_t start = std::ptrdiff_t(run.row) * width;
        for (std::ptrdiff_t i = start + run.first; i < start + run.end; ++i) {
            lowest = std::min(lowest, log_nfa[i]);
            highest = std::max(highest, score[i]);
            numbers &= log_nfa[i] == log_nfa[i] && score[i] == score[i];
        }
        if (!numbers) throw std::invalid_argument("log_nfa or anomaly_map is NaN inside the mask");
        region.log_nfa = lowest;
        region.score = highest;
    }
    for (Region& region : found) {
        region.row /= double(region.area);
        region.col /= double(region.area);
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const Region& a, const Region& b) { return a.log_nfa < b.log_nfa; });
    return found;
}

}  // namespace uflow
