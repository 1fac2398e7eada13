// A threshold for the anomaly maps of any model, learnt from maps of good images alone: uflow.Threshold in
// C++.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "uflow/field.hpp"
#include "uflow/outline.hpp"
#include "uflow/segment.hpp"

namespace uflow {

// What was learnt; see uflow.Threshold, whose JSON file holds the same numbers but for the shift, which
// follows from the minima and alpha.
struct MapThreshold {
    double low;       // what is subtracted from maps: the lowest value of a typical good map
    Background cell;  // scale and dof: the law of a pixel of good maps
    double exponent;  // how the effective area grows with the area
    Drawing drawing;
    std::vector<double> minima;  // the lowest log10 NFA of each good map, before the shift
    double alpha;                // promised probability that a good image is flagged

    // What is added to log10 NFA so that the promise is kept (conformal risk control), and room for rounding.
    double shift() const {
        std::vector<double> sorted = minima;
        std::sort(sorted.begin(), sorted.end());
        const double allowed = std::floor(alpha * double(sorted.size() + 1) - 1.0 + 1e-9);
        const auto rank = std::size_t(std::max(allowed, 0.0));
        return rounding_room - sorted[std::min(rank, sorted.size() - 1)];
    }

    // The share of good maps, the new one among them, at least as strange; `lowest`: of its log10 NFA.
    double p_value(double lowest) const {
        const double moved = shift();
        const auto as_strange = std::count_if(minima.begin(), minima.end(), [&](double minimum) {
            return minimum + moved <= lowest + rounding_room;
        });
        return double(1 + as_strange) / double(1 + minima.size());
    }

    static constexpr double rounding_room = 1e-3;  // log10 NFA
};

namespace detail {

inline double median(std::vector<double> values) {
    const std::size_t half = values.size() / 2;
    std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(half), values.end());
    if (values.size() % 2) return values[half];
    return 0.5 * (values[half] + *std::max_element(values.begin(), values.begin() + std::ptrdiff_t(half)));
}

// A map from its usual lowest value on.
inline std::vector<float> field_of_map(const float* map, std::size_t cells, double low) {
    std::vector<float> field(cells);
    std::transform(map, map + cells, field.begin(),
                   [low = float(low)](float value) { return std::max(value - low, 0.0f); });
    return field;
}

// The scaled chi-square with the medians of the images' means and variances.
inline Background background_of(const std::vector<double>& means, const std::vector<double>& variances) {
    const double mean = median(means), variance = median(variances);
    if (!(mean > 0.0 && variance > 0.0)) throw std::invalid_argument("the good maps do not vary");
    return {variance / (2.0 * mean), 2.0 * mean * mean / variance};
}

// log10 NFA of each cell of fields, before the shift.
inline void log_nfa_of_cells(const Maps& field, std::int64_t batch, const Background& cell, double exponent,
                             int threads, float* result) {
    const AreaTables areas = power_law_of_area(std::int64_t(field.cells()), exponent);
    log_nfa({{field.values, nullptr, field.height, field.width, cell, areas.law()}}, batch, field.height,
            field.width, Tail::exact, /*by_area=*/true, threads, result);
}

// Of the means over the squares of `side` cells that a field is cut into: how many, their sum, and that of
// their squares. All sides see the same part of it: as many rows and columns as the largest squares cover.
inline void add_block_means(const Maps& field, std::int32_t side, double (&sums)[3]) {
    const auto covered = [side](std::int32_t n) { return n / 8 ? n / 8 * 8 : n / side * side; };
    for (std::int32_t row = 0; row < covered(field.height); row += side)
        for (std::int32_t col = 0; col < covered(field.width); col += side) {
            double sum = 0.0;
            for (std::int32_t r = row; r < row + side; ++r)
                for (std::int32_t c = col; c < col + side; ++c)
                    sum += double(field.values[std::ptrdiff_t(r) * field.width + c]);
            const double mean = sum / (double(side) * side);
            sums[0] += 1.0, sums[1] += mean, sums[2] += mean * mean;
        }
}

// The exponent g of the effective area: on good images A cells are worth at least A^g independent ones. The
// largest that claims no more than was measured for any squares of 2, 4 and 8 cells a side: the variance of
// one cell over that of their means.
inline double area_exponent(const std::vector<Maps>& fields) {
    std::vector<double> variances;
    for (const std::int32_t side : {1, 2, 4, 8}) {
        double sums[3] = {0.0, 0.0, 0.0};
        for (const Maps& field : fields) add_block_means(field, side, sums);
        if (sums[0] == 0.0) break;
        const double mean = sums[1] / sums[0];
        variances.push_back(sums[2] / sums[0] - mean * mean);
    }
    if (variances.size() < 2 || !(*std::min_element(variances.begin(), variances.end()) > 0.0)) return 0.0;
    double exponent = 1.0;
    for (std::size_t k = 1; k < variances.size(); ++k)
        exponent =
            std::min(exponent, std::log(variances[0] / variances[k]) / (2.0 * double(k) * std::log(2.0)));
    return std::max(exponent, 0.0);
}

}  // namespace detail

// Learns from maps of good images that the model was not trained on: one map each, whose sizes may differ;
// larger values mean stranger. All values must be finite. Throws std::invalid_argument where there are no
// maps, or none that varies.
inline MapThreshold learn_map_threshold(const std::vector<Maps>& good, double alpha, int threads = 0) {
    if (good.empty()) throw std::invalid_argument("the map of at least one good image is needed");
    if (!(alpha > 0.0 && alpha < 1.0)) throw std::invalid_argument("alpha is a probability between 0 and 1");
    std::vector<double> lowest, highest, means, variances, all;
    for (const Maps& map : good)
        lowest.push_back(double(*std::min_element(map.values, map.values + map.cells())));
    MapThreshold found{detail::median(lowest), {}, 0.0, {}, {}, alpha};

    // The fields, and the moments of each.
    std::vector<std::vector<float>> values;
    std::vector<Maps> fields;
    for (const Maps& map : good) {
        values.push_back(detail::field_of_map(map.values, map.cells(), found.low));
        const std::vector<float>& field = values.back();
        fields.push_back({field.data(), map.height, map.width});
        double sum = 0.0, squares = 0.0;
        for (const float value : field) sum += double(value);
        const double mean = sum / double(field.size());
        for (const float value : field) squares += (double(value) - mean) * (double(value) - mean);
        means.push_back(mean);
        variances.push_back(squares / double(field.size()));
        highest.push_back(double(*std::max_element(field.begin(), field.end())));
        all.insert(all.end(), field.begin(), field.end());
    }
    found.cell = detail::background_of(means, variances);
    found.exponent = detail::area_exponent(fields);
    found.drawing = {detail::median(all), detail::median(highest)};

    for (const Maps& field : fields) {
        std::vector<float> log_nfa(field.cells());
        detail::log_nfa_of_cells(field, 1, found.cell, found.exponent, threads, log_nfa.data());
        found.minima.push_back(double(*std::min_element(log_nfa.begin(), log_nfa.end())));
    }
    return found;
}

// log10 NFA (batch, out_height, out_width) of maps, detected where it is below 0, as uflow.Threshold.apply
// has it. All values must be finite. `images`: what the maps are of, one each, whose colours outlines follow;
// nullptr draws by the maps alone.
inline void judge_maps(const MapThreshold& threshold, const Maps& maps, std::int64_t batch,
                       std::int32_t out_height, std::int32_t out_width, int threads, float* result,
                       const Image* images = nullptr) {
    const std::vector<float> values =
        detail::field_of_map(maps.values, std::size_t(batch) * maps.cells(), threshold.low);
    const Maps fields{values.data(), maps.height, maps.width};
    std::vector<float> log_nfa(values.size());
    detail::log_nfa_of_cells(fields, batch, threshold.cell, threshold.exponent, threads, log_nfa.data());
    const auto shift = float(threshold.shift());
    for (float& value : log_nfa) value += shift;
    outline_log_nfa({log_nfa.data(), maps.height, maps.width}, values.data(), threshold.drawing, batch,
                    out_height, out_width, threads, result, nullptr, images);
}

}  // namespace uflow
