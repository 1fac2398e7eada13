// Maps of all sources on one grid: the anomaly map, and the field of evidence that the calibrated test
// judges.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "uflow/parallel.hpp"
#include "uflow/resize.hpp"
#include "uflow/segment.hpp"

namespace uflow {

// What one source says of a batch: (batch, height, width), one map after the other.
struct Maps {
    const float* values;
    std::int32_t height, width;

    std::size_t cells() const noexcept { return std::size_t(height) * std::size_t(width); }
    const float* image(std::int64_t i) const noexcept { return values + std::size_t(i) * cells(); }
};

// What a network says of a batch, finest first: energies, and squared distances to the features of good
// images (none for a detector of latents alone).
struct Evidence {
    std::vector<Maps> energies, distances;
};

// How evidence adds up: per scale the mean energy of good images; what the latents count; what each distance
// counts.
struct EvidenceWeights {
    std::vector<double> energy_means;
    double latents = 1.0;
    std::vector<double> distances;
};

namespace detail {

// Below this, 1 - an anomaly map is rounding in float32.
inline constexpr float map_rounding = 0x1p-24f;

// The anomaly map of one image.
inline void anomaly_map_of(const std::vector<Maps>& energies, const std::vector<double>& means,
                           const std::vector<Resize<2>>& resize, std::int64_t image, NfaWorkspace& work,
                           float* out) {
    // How likely each cell is.
    for (std::size_t l = 0; l < energies.size(); ++l) {
        const float* energy = energies[l].image(image);
        const auto factor = float(-0.5 / means[l]);
        float* likelihood = work.maps[l].fit<float>(energies[l].cells());
        for (std::size_t cell = 0; cell < energies[l].cells(); ++cell)
            likelihood[cell] = std::exp(factor * energy[cell]);
        resize[l].start(likelihood, work.lines[l]);
    }
    // The mean over the scales.
    join_scales(
        resize, work.lines, out, [](std::size_t) { return [](float value) { return value; }; },
        std::plus<>());
    const auto share = float(1.0 / double(energies.size()));
    const std::size_t pixels = std::size_t(resize[0].out_height) * std::size_t(resize[0].out_width);
    for (std::size_t pixel = 0; pixel < pixels; ++pixel)
        out[pixel] = std::max(1.0f - share * out[pixel], 0.0f);  // rounding could leave -6e-8
}

// The weighted sum of the maps of one image.
inline void weighted_sum_of(const std::vector<Maps>& maps, const std::vector<double>& weights,
                            const std::vector<Resize<2>>& resize, std::int64_t image, NfaWorkspace& work,
                            float* out) {
    for (std::size_t l = 0; l < maps.size(); ++l) resize[l].start(maps[l].image(image), work.lines[l]);
    const auto weighted = [&](std::size_t l) {
        return [weight = float(weights[l])](float value) { return weight * value; };
    };
    join_scales(resize, work.lines, out, weighted, std::plus<>());
}

// What `join` makes of the maps of each image of a batch, resized bilinearly: (batch, out_height, out_width).
template <class Join>
void join_each_image(Join join, const std::vector<Maps>& maps, const std::vector<double>& numbers,
                     std::int64_t batch, std::int32_t out_height, std::int32_t out_width, int threads,
                     float* result, NfaWorkspace* kept) {
    const std::vector<Resize<2>> resize = resize_to<2>(out_height, out_width, maps);
    const std::size_t pixels = std::size_t(out_height) * std::size_t(out_width);
    for_each_image(batch, threads, kept, [&](NfaWorkspace& work, std::int64_t image) {
        work.fit(maps.size());
        join(maps, numbers, resize, image, work, result + std::size_t(image) * pixels);
    });
}

}  // namespace detail

// The anomaly map (batch, out_height, out_width), in [0, 1]: 1 - the mean over scales of exp(-energy / (2
// mean)), resized bilinearly. The paper's means are the numbers of channels. `kept`, here and below: memory
// of the calling thread for its next call, or null.
inline void anomaly_map(const std::vector<Maps>& energies, const std::vector<double>& means,
                        std::int64_t batch, std::int32_t out_height, std::int32_t out_width, int threads,
                        float* result, NfaWorkspace* kept = nullptr) {
    detail::join_each_image(detail::anomaly_map_of, energies, means, batch, out_height, out_width, threads,
                            result, kept);
}

// The sum (batch, out_height, out_width) of weight times map, each map resized bilinearly.
inline void weighted_sum(const std::vector<Maps>& maps, const std::vector<double>& weights,
                         std::int64_t batch, std::int32_t out_height, std::int32_t out_width, int threads,
                         float* result, NfaWorkspace* kept = nullptr) {
    detail::join_each_image(detail::weighted_sum_of, maps, weights, batch, out_height, out_width, threads,
                            result, kept);
}

// The field (batch, height, width) on the grid of the finest energies, not negative: -2 ln(1 - anomaly map)
// times what the latents count, plus the weighted distances.
inline void evidence_field(const Evidence& evidence, const EvidenceWeights& weights, std::int64_t batch,
                           int threads, float* result, NfaWorkspace* kept = nullptr) {
    const Maps& finest = evidence.energies[0];
    const std::size_t cells = finest.cells(), sources = evidence.energies.size();
    const auto energies = resize_to<2>(finest.height, finest.width, evidence.energies);
    const auto distances = resize_to<2>(finest.height, finest.width, evidence.distances);
    const auto factor = float(-2.0 * weights.latents);
    for_each_image(batch, threads, kept, [&](NfaWorkspace& work, std::int64_t image) {
        work.fit(std::max(sources, evidence.distances.size()));
        float* out = result + std::size_t(image) * cells;
        // The latents' part.
        detail::anomaly_map_of(evidence.energies, weights.energy_means, energies, image, work, out);
        for (std::size_t cell = 0; cell < cells; ++cell)
            out[cell] = std::log(std::max(1.0f - out[cell], detail::map_rounding)) * factor;
        if (distances.empty()) return;
        // And that of the distances, in memory whose likelihoods are not needed any more.
        float* sum = work.maps[0].fit<float>(cells);
        detail::weighted_sum_of(evidence.distances, weights.distances, distances, image, work, sum);
        for (std::size_t cell = 0; cell < cells; ++cell) out[cell] += sum[cell];
    });
}

// What outlines are drawn on (batch, height, width), on the same grid: the distances, which blur least, all
// counting alike; the field where there are none.
inline void drawing_map(const Evidence& evidence, const EvidenceWeights& weights, std::int64_t batch,
                        int threads, float* result, NfaWorkspace* kept = nullptr) {
    if (evidence.distances.empty()) return evidence_field(evidence, weights, batch, threads, result, kept);
    // The k-th distance joins k + 1 scales, and counts as often in the field.
    std::vector<double> alike = weights.distances;
    for (std::size_t k = 0; k < alike.size(); ++k) alike[k] /= double(k + 1);
    const Maps& finest = evidence.energies[0];
    weighted_sum(evidence.distances, alike, batch, finest.height, finest.width, threads, result, kept);
}

}  // namespace uflow
