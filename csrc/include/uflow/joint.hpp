// Energies of all scales on one grid: the joint energy of the calibrated test, and the anomaly map.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "uflow/parallel.hpp"
#include "uflow/resize.hpp"
#include "uflow/segment.hpp"

namespace uflow {

namespace detail {

// The mean over the up to nine cells of the 3 x 3 neighbourhood that lie in the map: (height, width) sums
// along rows go into `rows`.
inline void mean_3x3(const float* map, std::int32_t height, std::int32_t width, float* rows,
                     float* mean) noexcept {
    const auto at = [width](std::int32_t row) { return std::ptrdiff_t(row) * width; };
    for (std::int32_t row = 0; row < height; ++row) {
        const float* from = map + at(row);
        float* to = rows + at(row);
        for (std::int32_t col = 1; col < width - 1; ++col)
            to[col] = from[col - 1] + from[col] + from[col + 1];
        to[0] = width > 1 ? from[0] + from[1] : from[0];
        if (width > 1) to[width - 1] = from[width - 2] + from[width - 1];
    }
    for (std::int32_t row = 0; row < height; ++row) {
        const std::int32_t first = std::max(row - 1, 0), last = std::min(row + 1, height - 1);
        const float *above = rows + at(first), *here = rows + at(row), *below = rows + at(last);
        float* to = mean + at(row);
        const auto high = float(last - first + 1), border = high * float(std::min(width, 2));
        if (last - first == 2)
            for (std::int32_t col = 0; col < width; ++col) to[col] = above[col] + here[col] + below[col];
        else if (last > first)
            for (std::int32_t col = 0; col < width; ++col) to[col] = above[col] + below[col];
        else
            std::copy(here, here + width, to);
        for (std::int32_t col = 1; col < width - 1; ++col) to[col] /= 3.0f * high;
        to[0] /= border;
        if (width > 1) to[width - 1] /= border;
    }
}

}  // namespace detail

// The joint energy (batch, height, width) on the grid of the first scale, the finest: each scale's energies
// over their mean when nothing is wrong, scale * dof of its background, resized bilinearly, summed over
// scales, and averaged over 3 x 3 cells. `kept`: memory of the calling thread for its next call, or null.
inline void joint_energy(const std::vector<Scale>& scales, std::int64_t batch, int threads, float* result,
                         NfaWorkspace* kept = nullptr) {
    const std::int32_t height = scales[0].height, width = scales[0].width;
    const auto cells = std::size_t(height) * std::size_t(width);
    std::vector<Resize<2>> resize;
    resize.reserve(scales.size());
    for (const Scale& scale : scales) resize.emplace_back(scale.height, scale.width, height, width);
    Crew<NfaWorkspace> crew(workers(batch, threads), kept);
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        NfaWorkspace& mine = crew[worker];
        mine.fit(std::max(scales.size(), std::size_t(2)));
        float *sum = mine.maps[0].fit<float>(cells), *rows = mine.maps[1].fit<float>(cells);
        for (std::size_t l = 0; l < scales.size(); ++l) {
            const Scale& scale = scales[l];
            const float* energy =
                scale.energy + std::size_t(image) * std::size_t(scale.height) * std::size_t(scale.width);
            const auto factor = float(1.0 / (scale.background.scale * scale.background.dof));
            resize[l].start(mine.lines[l]);
            float* out = sum;
            for (std::int32_t row = 0; row < height; ++row, out += width) {
                const auto resized = resized_row(resize[l], energy, row, mine.lines[l]);
                if (l == 0)
                    for (std::int32_t col = 0; col < width; ++col) out[col] = factor * resized[col];
                else
                    for (std::int32_t col = 0; col < width; ++col) out[col] += factor * resized[col];
            }
        }
        detail::mean_3x3(sum, height, width, rows, result + std::size_t(image) * cells);
    });
}

// The anomaly map (batch, out_height, out_width), in [0, 1]: 1 - the mean over scales of
// exp(-energy / (2 channels)), resized bilinearly.
inline void anomaly_map(const std::vector<Scale>& scales, std::int64_t batch, std::int32_t out_height,
                        std::int32_t out_width, int threads, float* result, NfaWorkspace* kept = nullptr) {
    std::vector<Resize<2>> resize;
    resize.reserve(scales.size());
    for (const Scale& scale : scales) resize.emplace_back(scale.height, scale.width, out_height, out_width);
    Crew<NfaWorkspace> crew(workers(batch, threads), kept);
    parallel_for(batch, threads, [&](int worker, std::int64_t image) {
        NfaWorkspace& mine = crew[worker];
        mine.fit(scales.size());
        for (std::size_t l = 0; l < scales.size(); ++l) {
            const Scale& scale = scales[l];
            const auto cells = std::size_t(scale.height) * std::size_t(scale.width);
            const float* energy = scale.energy + std::size_t(image) * cells;
            const auto factor = float(-0.5 / scale.background.channels);
            float* likelihood = mine.maps[l].fit<float>(cells);
            for (std::size_t cell = 0; cell < cells; ++cell)
                likelihood[cell] = std::exp(factor * energy[cell]);
            resize[l].start(mine.lines[l]);
        }
        float* out = result + std::size_t(image) * std::size_t(out_height) * std::size_t(out_width);
        const auto share = float(1.0 / double(scales.size()));
        for (std::int32_t row = 0; row < out_height; ++row, out += out_width) {
            for (std::size_t l = 0; l < scales.size(); ++l) {
                const auto resized = resized_row(resize[l], mine.maps[l].as<float>(), row, mine.lines[l]);
                if (l == 0)
                    for (std::int32_t col = 0; col < out_width; ++col) out[col] = resized[col];
                else
                    for (std::int32_t col = 0; col < out_width; ++col) out[col] += resized[col];
            }
            for (std::int32_t col = 0; col < out_width; ++col)
                out[col] = std::max(1.0f - share * out[col], 0.0f);  // rounding could leave -6e-8
        }
    });
}

}  // namespace uflow
