// How much each place of an image looks like a defect, told by its colour.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace uflow {

// An image (height, width, 3) of red, green and blue.
struct Image {
    const std::uint8_t* pixels;
    std::int32_t height, width;
};

namespace detail {

inline constexpr std::size_t colours = 3;
inline constexpr double camera_noise = 2.0;  // grey levels: a background of one colour has no smaller spread

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

// The mean of the colours where `chosen` is 1. Returns how many these are.
inline std::size_t mean_colour(const std::vector<float>& means, const std::vector<std::uint8_t>& chosen,
                               Colour& mean) noexcept {
    std::size_t count = 0;
    mean = {};
    for (std::size_t i = 0; i < chosen.size(); ++i) {
        if (chosen[i] != 1) continue;
        for (std::size_t c = 0; c < colours; ++c) mean[c] += double(means[i * colours + c]);
        ++count;
    }
    for (double& value : mean) value /= double(std::max<std::size_t>(count, 1));
    return count;
}

// From -1, surely as outside, to 1, surely as inside: twice the probability, less 1, that a colour is of the
// inside, as linear discriminant analysis has it (Fisher 1936): both are normal with the covariance that the
// colours outside have, and equally likely. `outside` is 1 in the surroundings, of which these are, and 2
// beyond; in both the answer is -1. 0 everywhere where there is nothing inside, or no surroundings.
inline void likeness(const std::vector<float>& means, const std::vector<std::uint8_t>& inside,
                     const std::vector<std::uint8_t>& outside, std::vector<float>& result) {
    result.assign(inside.size(), 0.0f);
    Colour defect, background;
    const std::size_t count = mean_colour(means, outside, background);
    if (mean_colour(means, inside, defect) == 0 || count == 0) return;
    std::array<Colour, colours> covariance{};
    for (std::size_t i = 0; i < outside.size(); ++i) {
        if (outside[i] != 1) continue;
        Colour from_mean;
        for (std::size_t c = 0; c < colours; ++c)
            from_mean[c] = double(means[i * colours + c]) - background[c];
        for (std::size_t c = 0; c < colours; ++c)
            for (std::size_t d = 0; d <= c; ++d) covariance[c][d] += from_mean[c] * from_mean[d];
    }
    Colour difference, middle;
    for (std::size_t c = 0; c < colours; ++c) {
        for (double& value : covariance[c]) value /= double(count);
        covariance[c][c] += camera_noise * camera_noise;
        difference[c] = defect[c] - background[c];
        middle[c] = (defect[c] + background[c]) / 2;
    }
    const Colour direction = solve(covariance, difference);
    for (std::size_t i = 0; i < result.size(); ++i) {
        if (outside[i]) {
            result[i] = -1.0f;
            continue;
        }
        double log_odds = 0.0;
        for (std::size_t c = 0; c < colours; ++c)
            log_odds += direction[c] * (double(means[i * colours + c]) - middle[c]);
        result[i] = float(std::tanh(log_odds / 2));
    }
}

}  // namespace detail

}  // namespace uflow
