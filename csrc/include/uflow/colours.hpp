// How much each place of an image looks like a defect, told by its colour.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "uflow/regions.hpp"

namespace uflow {

// An image (height, width, 3) of red, green and blue.
struct Image {
    const std::uint8_t* pixels;
    std::int32_t height, width;
};

namespace detail {

inline constexpr std::size_t colours = 3;
inline constexpr double camera_noise = 2.0;  // grey levels: a background of one colour has no smaller spread
inline constexpr std::size_t most_hearts = 16;  // bounds the time: of more, the largest count
inline constexpr int learning_steps = 10;       // after that outlines hardly change

using Colour = std::array<double, colours>;

// Where part i of `parts` begins, of a side of `length`.
inline std::int32_t part_begin(std::int32_t i, std::int32_t parts, std::int32_t length) noexcept {
    return std::int32_t(std::int64_t(i) * length / parts);
}

// The mean colours (height, width, 3) of the parts that an image is cut into, which is no smaller.
inline void colour_means(const Image& image, std::int32_t height, std::int32_t width,
                         std::vector<std::uint32_t>& column_sums, std::vector<float>& means) {
    const std::size_t line = std::size_t(image.width) * colours;
    column_sums.resize(line);
    means.resize(std::size_t(height) * std::size_t(width) * colours);
    float* mean = means.data();
    for (std::int32_t row = 0; row < height; ++row) {
        const std::int32_t top = part_begin(row, height, image.height),
                           bottom = part_begin(row + 1, height, image.height);
        std::fill(column_sums.begin(), column_sums.end(), 0u);
        for (std::int32_t y = top; y < bottom; ++y) {
            const std::uint8_t* from = image.pixels + std::size_t(y) * line;
            for (std::size_t i = 0; i < line; ++i) column_sums[i] += from[i];
        }
        for (std::int32_t col = 0; col < width; ++col) {
            const std::int32_t left = part_begin(col, width, image.width),
                               right = part_begin(col + 1, width, image.width);
            std::uint64_t sums[colours] = {};
            for (std::int32_t x = left; x < right; ++x)
                for (std::size_t c = 0; c < colours; ++c)
                    sums[c] += column_sums[std::size_t(x) * colours + c];
            const double pixels = double(bottom - top) * double(right - left);
            for (const std::uint64_t sum : sums) *mean++ = float(double(sum) / pixels);
        }
    }
}

// x of A x = b for a symmetric positive definite A, by Cholesky's factors.
inline Colour solve(std::array<Colour, colours> a, Colour b) noexcept {
    for (std::size_t j = 0; j < colours; ++j) {
        for (std::size_t k = 0; k < j; ++k) a[j][j] -= a[j][k] * a[j][k];
        a[j][j] = std::sqrt(a[j][j]);
        for (std::size_t i = j + 1; i < colours; ++i) {
            for (std::size_t k = 0; k < j; ++k) a[i][j] -= a[i][k] * a[j][k];
            a[i][j] /= a[j][j];
        }
    }
    for (std::size_t i = 0; i < colours; ++i) {
        for (std::size_t k = 0; k < i; ++k) b[i] -= a[i][k] * b[k];
        b[i] /= a[i][i];
    }
    for (std::size_t i = colours; i-- > 0;) {
        for (std::size_t k = i + 1; k < colours; ++k) b[i] -= a[k][i] * b[k];
        b[i] /= a[i][i];
    }
    return b;
}

// How much likelier a colour is of a region than of the surroundings, as the logarithm of the odds: a linear
// function.
struct Discriminant {
    Colour direction;
    double zero;  // what is to be taken off

    double log_odds(const float* colour) const noexcept {
        double sum = -zero;
        for (std::size_t c = 0; c < colours; ++c) sum += direction[c] * double(colour[c]);
        return sum;
    }
};

// The colours of the surroundings, where `outside` is 1: their mean, and their covariance with the camera's
// noise. Returns whether there are any.
inline bool surroundings(const std::vector<float>& means, const std::vector<std::uint8_t>& outside,
                         Colour& mean, std::array<Colour, colours>& covariance) noexcept {
    std::size_t count = 0;
    mean = {};
    covariance = {};
    for (std::size_t i = 0; i < outside.size(); ++i) {
        if (outside[i] != 1) continue;
        for (std::size_t c = 0; c < colours; ++c) mean[c] += double(means[i * colours + c]);
        ++count;
    }
    if (count == 0) return false;
    for (double& value : mean) value /= double(count);
    for (std::size_t i = 0; i < outside.size(); ++i) {
        if (outside[i] != 1) continue;
        Colour from_mean;
        for (std::size_t c = 0; c < colours; ++c) from_mean[c] = double(means[i * colours + c]) - mean[c];
        for (std::size_t c = 0; c < colours; ++c)
            for (std::size_t d = 0; d <= c; ++d) covariance[c][d] += from_mean[c] * from_mean[d];
    }
    for (std::size_t c = 0; c < colours; ++c) {
        for (double& value : covariance[c]) value /= double(count);
        covariance[c][c] += camera_noise * camera_noise;
    }
    return true;
}

// What one region shows: the samples of its heart, in Hearts::samples, and what was learnt from them.
struct Heart {
    std::size_t first, area;
    double defective = 0.0;  // how many of these samples show the defect
    Discriminant own{};
};

// Memory for `likeness`.
struct Hearts {
    std::vector<std::size_t> samples;
    std::vector<Heart> of_region;

    std::size_t bytes() const noexcept {
        return samples.capacity() * sizeof(std::size_t) + of_region.capacity() * sizeof(Heart);
    }
};

// The hearts of the regions, where `regions` is 2 or 3: the largest first, no more than sixteen.
inline void find_hearts(const std::vector<std::uint8_t>& regions, std::int32_t height, std::int32_t width,
                        std::vector<Run>& runs, Hearts& hearts) {
    const std::int32_t count = find_runs(regions.data(), height, width, Connectivity::four, runs);
    hearts.of_region.assign(std::size_t(count), Heart{0, 0});
    const auto for_each_sample = [&](auto&& see) {
        for_each_run(runs, width, [&](std::size_t region, std::size_t first, std::size_t end) {
            for (std::size_t i = first; i < end; ++i)
                if (regions[i] >= 2) see(hearts.of_region[region], i);
        });
    };
    for_each_sample([](Heart& heart, std::size_t) { ++heart.area; });
    std::size_t samples = 0;
    for (Heart& heart : hearts.of_region) {
        heart.first = samples;
        samples += heart.area;
        heart.area = 0;
    }
    hearts.samples.resize(samples);
    for_each_sample([&](Heart& heart, std::size_t i) { hearts.samples[heart.first + heart.area++] = i; });
    std::stable_sort(hearts.of_region.begin(), hearts.of_region.end(),
                     [](const Heart& a, const Heart& b) { return a.area > b.area; });
    hearts.of_region.resize(std::min(hearts.of_region.size(), most_hearts));
    while (!hearts.of_region.empty() && hearts.of_region.back().area == 0) hearts.of_region.pop_back();
}

// Learns the colour of a defect from the heart of its region. The map is blurred, so a heart shows some of
// the surroundings too: a mixture of two normal laws of one covariance, of which that of the surroundings is
// known. The other's mean and its share are found by expectation and maximisation (Dempster, Laird and Rubin
// 1977), from the mean of the heart and one half on. Deep in a heart, where `regions` is 3, all is of the
// defect, whatever its colour.
inline void learn_colour(Heart& heart, const std::size_t* samples, const std::vector<std::uint8_t>& regions,
                         const std::vector<float>& means, const Colour& background,
                         const std::array<Colour, colours>& covariance) noexcept {
    double prior = std::numeric_limits<double>::infinity();  // log odds of the defect: at first all is of it
    for (int step = 0; step <= learning_steps; ++step) {
        Colour sum = {};
        double defective = 0.0;
        for (std::size_t s = heart.first; s < heart.first + heart.area; ++s) {
            const float* colour = means.data() + samples[s] * colours;
            const double probability =
                regions[samples[s]] == 3 ? 1.0 : 1.0 / (1.0 + std::exp(-heart.own.log_odds(colour) - prior));
            for (std::size_t c = 0; c < colours; ++c) sum[c] += probability * double(colour[c]);
            defective += probability;
        }
        if (!(defective > 0.0)) return;
        Colour difference;
        for (std::size_t c = 0; c < colours; ++c) difference[c] = sum[c] / defective - background[c];
        heart.own = {solve(covariance, difference), 0.0};
        for (std::size_t c = 0; c < colours; ++c)
            heart.own.zero += heart.own.direction[c] * (background[c] + difference[c] / 2);
        prior = step == 0 ? 0.0 : std::log(defective / (double(heart.area) - defective));
        heart.defective = defective;
    }
}

// From -1, surely as the surroundings, to 1, surely as a defect: twice the probability, less 1, that a colour
// is of a defect. The surroundings are normal. The defects are a mixture of normal laws, one for each region
// since two defects may have two colours, weighted by their areas in the hearts; all have the covariance
// of the surroundings. Both are equally likely (discriminant analysis by Gaussian mixtures, Hastie and
// Tibshirani 1996; with one region it is Fisher's linear one of 1936). `regions` and `outside` are (height,
// width). `regions` is not 0 in the regions, whose 4-connected components they are, 2 in their hearts and 3
// deep in these.
// `outside` is 1 in the surroundings and 2 beyond: in both the answer is -1. 0 everywhere without a heart or
// surroundings.
inline void likeness(const std::vector<float>& means, const std::vector<std::uint8_t>& regions,
                     const std::vector<std::uint8_t>& outside, std::int32_t height, std::int32_t width,
                     std::vector<Run>& runs, Hearts& hearts, std::vector<float>& result) {
    result.assign(regions.size(), 0.0f);
    Colour background;
    std::array<Colour, colours> covariance;
    if (!surroundings(means, outside, background, covariance)) return;
    find_hearts(regions, height, width, runs, hearts);
    if (hearts.of_region.empty()) return;
    double area = 0.0;
    for (Heart& heart : hearts.of_region) {
        learn_colour(heart, hearts.samples.data(), regions, means, background, covariance);
        area += heart.defective;
    }
    for (Heart& heart : hearts.of_region) heart.own.zero += std::log(area / heart.defective);
    for (std::size_t i = 0; i < result.size(); ++i) {
        double odds = 0.0;
        if (!outside[i])
            for (const Heart& heart : hearts.of_region)
                odds += std::exp(heart.own.log_odds(means.data() + i * colours));
        result[i] = float(1.0 - 2.0 / (1.0 + odds));
    }
}

}  // namespace detail

}  // namespace uflow
