// How much each place of an image looks like a defect, told by its colour.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
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

// What surely is of a region: the sum of its colours, and how many these are.
struct Heart {
    Colour sum;
    std::size_t area;
};

// Memory for `likeness`.
struct Hearts {
    std::vector<Run> runs;
    std::vector<Heart> of_region;
    std::vector<Discriminant> discriminants;

    std::size_t bytes() const noexcept {
        return runs.capacity() * sizeof(Run) + of_region.capacity() * sizeof(Heart) +
               discriminants.capacity() * sizeof(Discriminant);
    }
};

// From -1, surely as the surroundings, to 1, surely as a region: twice the probability, less 1, that a colour
// is of a region. The surroundings are normal. What the regions show is a mixture of normal laws, one for
// each since two defects may have two colours, weighted by the areas of their hearts; all have the covariance
// of the surroundings. Both are equally likely (discriminant analysis by Gaussian mixtures, Hastie and
// Tibshirani 1996; with one region it is Fisher's linear one of 1936). `regions` and `outside` are (height,
// width). `regions` is not 0 in the regions, whose 4-connected components they are, and 2 in their hearts.
// `outside` is 1 in the surroundings and 2 beyond: in both the answer is -1. 0 everywhere without a heart or
// surroundings.
inline void likeness(const std::vector<float>& means, const std::vector<std::uint8_t>& regions,
                     const std::vector<std::uint8_t>& outside, std::int32_t height, std::int32_t width,
                     Hearts& hearts, std::vector<float>& result) {
    result.assign(regions.size(), 0.0f);
    Colour background;
    std::array<Colour, colours> covariance;
    if (!surroundings(means, outside, background, covariance)) return;
    const std::int32_t count = find_runs(regions.data(), height, width, Connectivity::four, hearts.runs);
    hearts.of_region.assign(std::size_t(count), Heart{});
    for (const Run& run : hearts.runs) {
        const std::size_t row = std::size_t(run.row) * std::size_t(width);
        Heart& heart = hearts.of_region[std::size_t(run.component)];
        for (std::size_t i = row + std::size_t(run.first); i < row + std::size_t(run.end); ++i) {
            if (regions[i] != 2) continue;
            for (std::size_t c = 0; c < colours; ++c) heart.sum[c] += double(means[i * colours + c]);
            ++heart.area;
        }
    }
    std::stable_sort(hearts.of_region.begin(), hearts.of_region.end(),
                     [](const Heart& a, const Heart& b) { return a.area > b.area; });
    hearts.of_region.resize(std::min(hearts.of_region.size(), most_hearts));
    while (!hearts.of_region.empty() && hearts.of_region.back().area == 0) hearts.of_region.pop_back();
    if (hearts.of_region.empty()) return;
    std::size_t area = 0;
    for (const Heart& heart : hearts.of_region) area += heart.area;
    hearts.discriminants.clear();
    for (const Heart& heart : hearts.of_region) {
        Colour difference;
        for (std::size_t c = 0; c < colours; ++c)
            difference[c] = heart.sum[c] / double(heart.area) - background[c];
        Discriminant own{solve(covariance, difference), std::log(double(area) / double(heart.area))};
        for (std::size_t c = 0; c < colours; ++c)
            own.zero += own.direction[c] * (background[c] + difference[c] / 2);
        hearts.discriminants.push_back(own);
    }
    for (std::size_t i = 0; i < result.size(); ++i) {
        double odds = 0.0;
        if (!outside[i])
            for (const Discriminant& own : hearts.discriminants)
                odds += std::exp(own.log_odds(means.data() + i * colours));
        result[i] = float(1.0 - 2.0 / (1.0 + odds));
    }
}

}  // namespace detail

}  // namespace uflow
