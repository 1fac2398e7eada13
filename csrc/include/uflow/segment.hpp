// Energy maps in, log10 probabilities and log10 NFA out, for batches over threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "uflow/component_tree.hpp"
#include "uflow/max_tree.hpp"
#include "uflow/number_of_tests.hpp"
#include "uflow/parallel.hpp"
#include "uflow/pause.hpp"
#include "uflow/resize.hpp"
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

// What the area of a region does to its score (the lower, the less likely by chance):
//   effective_area[area] * log10 P(a cell is at the region's level or above) / correlation_area
//   + log_tests[area]
// Tables of cells + 1 values, of which that of area 0 is not used. effective_area, positive: how many
// independent cells so many cells are worth; null: as many. log_tests: log10 of the number of regions of that
// area that are tested; null: the default of who takes the law.
struct AreaLaw {
    const double* effective_area = nullptr;
    const double* log_tests = nullptr;
};

// The tables of a law.
struct AreaTables {
    std::vector<double> effective_area, log_tests;

    AreaLaw law() const noexcept { return {effective_area.data(), log_tests.data()}; }
};

// In a map of so many cells, a region of a cells is worth f(a) = a^exponent independent ones, and stands for
// cells^(1 + exponent) a0 b^f(a) / f(a) tests: a place for each cell, an equal share of the false alarms for
// each of the cells^exponent effective areas, and the polyominoes of f(a) cells.
inline AreaTables power_law_of_area(std::int64_t cells, double exponent) {
    AreaTables tables;
    const double places_and_sizes = (1.0 + exponent) * std::log10(double(cells));
    for (std::int64_t area = 0; area <= cells; ++area) {
        const double effective = std::pow(double(std::max(area, std::int64_t(1))), exponent);
        tables.effective_area.push_back(effective);
        tables.log_tests.push_back(places_and_sizes + log10_polyominoes(effective));
    }
    return tables;
}

// ---------------------------------------------------------------------------------------------------------------
// One map: energies in, log10 probability of the final region of each cell out.

struct SegmentWorkspace {
    TreeWorkspace tree;
    Buffer region, flags;  // 4 + 1 bytes a cell

    std::size_t bytes() const noexcept { return tree.bytes() + region.bytes() + flags.bytes(); }
};

namespace detail {

// Instead of -inf (an energy of 0 without the guard, an overflow): finite in float32 also after a resize.
inline constexpr double lowest_log = -1e30;

// The values of the nodes, levels or exceedance counts, become their scores. Where exceedances are counted,
// the probability is that of the whole region already, and effective_area is not used.
inline void score_nodes(const ComponentTree& tree, Tail tail, const Background& model, const AreaLaw& law) {
    constexpr std::int32_t chunk = 256;
    double log_p[chunk], samples[chunk];
    const double mean = model.scale * model.dof;
    for (std::int32_t first = 0; first < tree.size; first += chunk) {
        if (first % between_pauses == 0) pause();
        const std::int32_t count = std::min(chunk, tree.size - first);
        const std::int32_t* area = tree.area + first;
        double* value = tree.value + first;
        // The probability of one cell, or that of all samples of the region.
        switch (tail) {
            case Tail::exact:
                for (std::int32_t i = 0; i < count; ++i) log_p[i] = value[i] / model.scale;
                log10_chi2_sf({log_p}, {&model.dof, false}, log_p, std::size_t(count));
                break;
            case Tail::chernoff:
            case Tail::chernoff_unguarded:
                for (std::int32_t i = 0; i < count; ++i) log_p[i] = value[i] / mean;
                log10_chi2_chernoff(log_p, model.dof, tail == Tail::chernoff, log_p, std::size_t(count));
                break;
            case Tail::binomial:
                for (std::int32_t i = 0; i < count; ++i) samples[i] = area[i] * model.channels;
                log10_tails(BinomialLaw{{value}, {samples}, {&model.exceedance, false}}, log_p,
                            std::size_t(count));
        }
        // Of as many independent cells as the region is worth.
        if (tail != Tail::binomial) {
            if (law.effective_area)
                for (std::int32_t i = 0; i < count; ++i) log_p[i] *= law.effective_area[area[i]];
            else
                for (std::int32_t i = 0; i < count; ++i) log_p[i] *= area[i];
        }
        for (std::int32_t i = 0; i < count; ++i)
            value[i] = std::max(log_p[i] / model.correlation_area, lowest_log);
        // And how many regions of its area there are.
        if (law.log_tests)
            for (std::int32_t i = 0; i < count; ++i) value[i] += law.log_tests[area[i]];
    }
}

}  // namespace detail

// energy: height * width sums of z^2. exceedances: counts of z^2 >= tau per cell for the binomial tail, else
// null. A cell in a final region gets the region's score, any other cell what one cell of probability 1
// scores: log_tests[1], or 0 where the law has no log_tests.
template <class T>
void log_pfa_map(const T* energy, const std::int32_t* exceedances, std::int32_t height, std::int32_t width,
                 Tail tail, const Background& model, const AreaLaw& law, SegmentWorkspace& work, float* map) {
    // The guarded bound is 0 up to the mean, and below 0 above it. So no component of a level up to the mean
    // is chosen before one inside it that is above, nor has it any other value than what is outside: half of
    // the cells of normal latents need no tree. (With a number of tests a quiet plateau has a value of its
    // own.)
    const bool quiet_is_outside = tail == Tail::chernoff && !law.log_tests;
    const double floor = quiet_is_outside ? model.scale * model.dof : -detail::inf;
    const ComponentTree tree = component_tree(energy, tail == Tail::binomial ? exceedances : nullptr, height,
                                              width, Connectivity::four, work.tree, floor);
    detail::score_nodes(tree, tail, model, law);
    const double outside = law.log_tests ? law.log_tests[1] : 0.0;
    const auto cells = std::size_t(height) * std::size_t(width);  // not nodes: the next image may have more
    work.flags.fit<std::uint8_t>(cells);
    auto* region = work.region.fit<std::int32_t>(cells);
    pause();
    select_regions(tree.parent, tree.value, tree.size, work.flags, region);
    pause();
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
    for_each_image(batch, threads, kept, [&](SegmentWorkspace& work, std::int64_t image) {
        const std::size_t at = std::size_t(image) * cells;
        log_pfa_map(energy + at, exceedances ? exceedances + at : nullptr, height, width, tail, model, {},
                    work, log_pfa + at);
    });
}

// ---------------------------------------------------------------------------------------------------------------
// The tests on a batch: all scales of every image.

struct Scale {
    const float* energy;              // (batch, height, width)
    const std::int32_t* exceedances;  // the same shape, or null
    std::int32_t height, width;
    Background background;
    AreaLaw area_law = {};

    std::size_t cells() const noexcept { return std::size_t(height) * std::size_t(width); }
    const float* image(std::int64_t i) const noexcept { return energy + std::size_t(i) * cells(); }
};

// What one thread needs of log_nfa and of what joins scales (field.hpp).
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
// scales, plus log10 N_T; or, by_area, with the number of tests of each region's area inside the maps, which
// is log10_number_of_tests_by_area unless the scale's law has its own log_tests. `kept`: memory of the
// calling thread for its next call, or null.
inline void log_nfa(const std::vector<Scale>& scales, std::int64_t batch, std::int32_t out_height,
                    std::int32_t out_width, Tail tail, bool by_area, int threads, float* result,
                    NfaWorkspace* kept = nullptr) {
    const std::vector<Resize<2>> resize = resize_to<2>(out_height, out_width, scales);
    std::vector<std::int64_t> cells;
    for (const Scale& scale : scales) cells.push_back(std::int64_t(scale.cells()));
    std::vector<std::vector<double>> tests(scales.size());
    std::vector<AreaLaw> laws;
    for (std::size_t l = 0; l < scales.size(); ++l) {
        laws.push_back(scales[l].area_law);
        if (!by_area) {
            laws[l].log_tests = nullptr;
        } else if (!laws[l].log_tests) {
            tests[l] = log10_number_of_tests_by_area(cells[l], scales.size());
            laws[l].log_tests = tests[l].data();
        }
    }
    const float log_tests = by_area ? 0.0f : float(log10_number_of_tests(cells.data(), cells.size()));
    const std::size_t out_cells = std::size_t(out_height) * std::size_t(out_width);
    for_each_image(batch, threads, kept, [&](NfaWorkspace& work, std::int64_t image) {
        work.fit(scales.size());
        for (std::size_t l = 0; l < scales.size(); ++l) {
            const Scale& scale = scales[l];
            float* map = work.maps[l].fit<float>(scale.cells());
            log_pfa_map(scale.image(image),
                        scale.exceedances ? scale.exceedances + std::size_t(image) * scale.cells() : nullptr,
                        scale.height, scale.width, tail, scale.background, laws[l], work.segment, map);
            resize[l].start(map, work.lines[l]);
        }
        join_scales(
            resize, work.lines, result + std::size_t(image) * out_cells,
            [=](std::size_t) { return [=](float log_pfa) { return log_pfa + log_tests; }; },
            [](float a, float b) { return std::min(a, b); });
    });
}

}  // namespace uflow
