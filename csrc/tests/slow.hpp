// Slow twins of the core, straight from the definitions: what the fuzz target holds it against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "uflow/max_tree.hpp"

namespace uflow_test {

using Pixels = std::vector<int>;  // ascending flat indices

// The components of a mask, each flooded from its first pixel, in raster order.
inline std::vector<Pixels> components(std::vector<bool> left, int height, int width,
                                      uflow::Connectivity kind) {
    std::vector<Pixels> found;
    for (int start = 0; start < height * width; ++start) {
        Pixels component, open{start};
        while (!open.empty()) {
            const int pixel = open.back(), row = pixel / width, col = pixel % width;
            open.pop_back();
            if (!left[std::size_t(pixel)]) continue;
            left[std::size_t(pixel)] = false;
            component.push_back(pixel);
            for (int y = std::max(row - 1, 0); y <= std::min(row + 1, height - 1); ++y)
                for (int x = std::max(col - 1, 0); x <= std::min(col + 1, width - 1); ++x)
                    if (kind == uflow::Connectivity::eight || y == row || x == col)
                        open.push_back(y * width + x);
        }
        std::sort(component.begin(), component.end());
        if (!component.empty()) found.push_back(component);
    }
    return found;
}

struct Node {
    Pixels pixels;
    double level;
    int parent;  // -1: the root
};

// The component tree: the components of every upper level set, a parent before its children.
template <class T>
std::vector<Node> component_tree(const std::vector<T>& image, int height, int width,
                                 uflow::Connectivity kind) {
    std::vector<T> levels = image;
    std::sort(levels.begin(), levels.end());
    levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
    std::vector<Node> nodes;
    for (const T level : levels) {
        std::vector<bool> inside(image.size());
        for (std::size_t i = 0; i < image.size(); ++i) inside[i] = image[i] >= level;
        for (const Pixels& pixels : components(inside, height, width, kind)) {
            int parent = -1;  // the smallest node so far that holds it
            for (std::size_t n = 0; n < nodes.size(); ++n)
                if (std::binary_search(nodes[n].pixels.begin(), nodes[n].pixels.end(), pixels[0]))
                    parent = int(n);
            if (parent >= 0 && nodes[std::size_t(parent)].pixels == pixels)
                nodes[std::size_t(parent)].level = double(level);  // it survives to a higher level
            else
                nodes.push_back({pixels, double(level), parent});
        }
    }
    return nodes;
}

// The final regions by the words of the paper: prune, merge, again until nothing changes; then the leaves.
inline std::vector<int> final_regions(std::vector<int> parent, const std::vector<double>& value) {
    const int count = int(parent.size());
    std::vector<bool> alive(std::size_t(count), true);
    const auto children = [&](int node) {
        std::vector<int> found;
        for (int kid = 0; kid < count; ++kid)
            if (alive[std::size_t(kid)] && parent[std::size_t(kid)] == node) found.push_back(kid);
        return found;
    };
    for (bool changed = true; changed;) {
        changed = false;
        for (int node = count; node-- > 0;) {
            if (!alive[std::size_t(node)]) continue;
            const std::vector<int> kids = children(node);
            const bool leaves =
                std::all_of(kids.begin(), kids.end(), [&](int kid) { return children(kid).empty(); });
            if (kids.empty() || !leaves) continue;
            double best = value[std::size_t(kids[0])];
            for (const int kid : kids) best = std::min(best, value[std::size_t(kid)]);
            const bool wins =
                kids.size() == 1 ? value[std::size_t(node)] < best : value[std::size_t(node)] <= best;
            if (wins) {
                for (const int kid : kids) alive[std::size_t(kid)] = false;
            } else if (kids.size() == 1) {  // the child takes its place
                alive[std::size_t(node)] = false;
                parent[std::size_t(kids[0])] = parent[std::size_t(node)];
            } else {
                continue;
            }
            changed = true;
        }
    }
    std::vector<int> leaves;
    for (int node = 0; node < count; ++node)
        if (alive[std::size_t(node)] && children(node).empty()) leaves.push_back(node);
    return leaves;
}

// A map resized bilinearly, align_corners=False, by its formula.
inline std::vector<double> bilinear(const std::vector<double>& map, int height, int width, int out_height,
                                    int out_width) {
    std::vector<double> out;
    for (int i = 0; i < out_height; ++i)
        for (int j = 0; j < out_width; ++j) {
            const double y = std::max(0.0, (i + 0.5) * height / out_height - 0.5);
            const double x = std::max(0.0, (j + 0.5) * width / out_width - 0.5);
            const int top = std::min(int(y), height - 1), left = std::min(int(x), width - 1);
            const int bottom = std::min(top + 1, height - 1), right = std::min(left + 1, width - 1);
            const auto at = [&](int row, int col) { return map[std::size_t(row * width + col)]; };
            const double upper = at(top, left) + (x - left) * (at(top, right) - at(top, left));
            const double lower = at(bottom, left) + (x - left) * (at(bottom, right) - at(bottom, left));
            out.push_back(upper + (y - top) * (lower - upper));
        }
    return out;
}

// An image (height, width, 3) of red, green and blue.
struct Picture {
    std::vector<int> values;
    int height, width;
};

// The mean colours of (rows, columns) parts of a picture, three numbers each.
inline std::vector<double> colours_of(const Picture& picture, int rows, int columns) {
    std::vector<double> means;
    for (int row = 0; row < rows; ++row)
        for (int col = 0; col < columns; ++col)
            for (int channel = 0; channel < 3; ++channel) {
                double sum = 0, count = 0;
                for (int y = row * picture.height / rows; y < (row + 1) * picture.height / rows; ++y)
                    for (int x = col * picture.width / columns; x < (col + 1) * picture.width / columns;
                         ++x) {
                        sum += picture.values[std::size_t((y * picture.width + x) * 3 + channel)];
                        ++count;
                    }
                means.push_back(sum / count);
            }
    return means;
}

// The inverse of a symmetric 3 x 3 matrix, by its cofactors.
inline std::vector<std::vector<double>> inverse(const std::vector<std::vector<double>>& m) {
    const auto cofactor = [&](std::size_t i, std::size_t j) {
        const auto at = [&](std::size_t a, std::size_t b) { return m[(i + a) % 3][(j + b) % 3]; };
        return at(1, 1) * at(2, 2) - at(1, 2) * at(2, 1);
    };
    const double determinant = m[0][0] * cofactor(0, 0) + m[0][1] * cofactor(0, 1) + m[0][2] * cofactor(0, 2);
    std::vector<std::vector<double>> found(3, std::vector<double>(3));
    for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t j = 0; j < 3; ++j) found[i][j] = cofactor(j, i) / determinant;
    return found;
}

// How much each part's colour is of a defect, from -1 to 1: see likeness. A heart for each region.
inline std::vector<double> likeness(const std::vector<double>& colours, std::vector<Pixels> hearts,
                                    const std::vector<bool>& deep, const std::vector<bool>& outside) {
    const auto colour = [&](std::size_t part, std::size_t channel) { return colours[3 * part + channel]; };
    const auto mean = [&](const Pixels& of, const std::vector<double>& weights) {
        std::vector<double> sums(3);
        for (std::size_t c = 0; c < 3; ++c)
            for (std::size_t i = 0; i < of.size(); ++i) sums[c] += weights[i] * colour(std::size_t(of[i]), c);
        const double weight = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (double& sum : sums) sum /= weight;
        return sums;
    };
    std::vector<double> found(outside.size());
    Pixels surroundings;
    for (std::size_t part = 0; part < outside.size(); ++part)
        if (outside[part]) surroundings.push_back(int(part));
    if (hearts.empty() || surroundings.empty()) return found;
    const std::vector<double> of_background =
        mean(surroundings, std::vector<double>(surroundings.size(), 1.0));
    std::vector<std::vector<double>> covariance(3, std::vector<double>(3));
    for (std::size_t i = 0; i < 3; ++i)
        for (std::size_t j = 0; j < 3; ++j) {
            for (std::size_t part = 0; part < outside.size(); ++part)
                if (outside[part])
                    covariance[i][j] +=
                        (colour(part, i) - of_background[i]) * (colour(part, j) - of_background[j]);
            covariance[i][j] /= double(surroundings.size());
            covariance[i][j] += i == j ? 4 : 0;
        }
    const auto precision = inverse(covariance);
    const auto distance = [&](std::size_t part, const std::vector<double>& from) {
        double sum = 0;
        for (std::size_t i = 0; i < 3; ++i)
            for (std::size_t j = 0; j < 3; ++j)
                sum += (colour(part, i) - from[i]) * precision[i][j] * (colour(part, j) - from[j]);
        return sum;
    };
    std::stable_sort(hearts.begin(), hearts.end(),
                     [](const Pixels& a, const Pixels& b) { return a.size() > b.size(); });
    hearts.resize(std::min(hearts.size(), std::size_t(16)));
    double area = 0;
    std::vector<double> odds(found.size());
    for (const Pixels& heart : hearts) {
        std::vector<double> of_defect(heart.size(), 1.0), at = mean(heart, of_defect);  // probabilities
        double weight = double(heart.size()), odds_here = 1;  // those before a colour is seen
        for (int step = 0; step < 10; ++step) {
            for (std::size_t i = 0; i < heart.size(); ++i) {
                const auto part = std::size_t(heart[i]);
                const double ratio = std::exp((distance(part, of_background) - distance(part, at)) / 2);
                of_defect[i] = deep[part] ? 1 : 1 - 1 / (1 + odds_here * ratio);
            }
            const double now = std::accumulate(of_defect.begin(), of_defect.end(), 0.0);
            if (!(now > 0)) break;
            weight = now;
            at = mean(heart, of_defect);
            odds_here = weight / (double(heart.size()) - weight);
        }
        area += weight;
        for (std::size_t part = 0; part < odds.size(); ++part)
            odds[part] += weight * std::exp((distance(part, of_background) - distance(part, at)) / 2);
    }
    for (double& value : odds) value /= area;
    for (std::size_t part = 0; part < found.size(); ++part)
        found[part] = outside[part] ? -1.0 : std::tanh(std::log(odds[part]) / 2);
    return found;
}

// The outlines of what was found, step by step: see draw_regions.
inline std::vector<bool> outlines(const std::vector<double>& map, const std::vector<bool>& found, int height,
                                  int width, double usual, double quiet, int out_height, int out_width,
                                  const Picture* picture = nullptr) {
    const auto cells = std::size_t(height * width);
    std::vector<double> ground, peaks;
    for (std::size_t cell = 0; cell < cells; ++cell) (found[cell] ? peaks : ground).push_back(map[cell]);
    std::sort(ground.begin(), ground.end());
    const std::size_t count = ground.size();
    const double background = count ? (ground[(count - 1) / 2] + ground[count / 2]) / 2 : usual;
    const double height_found =
        peaks.empty() ? 0.0 : *std::max_element(peaks.begin(), peaks.end()) - background;
    const double level = std::min(std::max(quiet - usual, height_found / 4), height_found / 2);
    // The root mean square height of what is above the level within two cells, and the surroundings.
    std::vector<double> heights(cells), around(cells);
    std::vector<bool> near(cells), outside(cells);
    for (int cell = 0; cell < height * width; ++cell) {
        double squares = 0, high = 0;
        heights[std::size_t(cell)] = map[std::size_t(cell)] - background;
        for (int other = 0; other < height * width; ++other) {
            if (std::abs(cell / width - other / width) > 2 || std::abs(cell % width - other % width) > 2)
                continue;
            const double value = map[std::size_t(other)] - background;
            if (value >= level || found[std::size_t(other)]) near[std::size_t(cell)] = true;
            if (value < level) continue;
            squares += value * value;
            ++high;
        }
        around[std::size_t(cell)] = std::sqrt(squares / std::max(high, 1.0));
    }
    for (int cell = 0; cell < height * width; ++cell)  // near something that is near, and not so itself
        for (int other = 0; other < height * width; ++other)
            if (std::abs(cell / width - other / width) <= 2 && std::abs(cell % width - other % width) <= 2 &&
                near[std::size_t(other)] && !near[std::size_t(cell)])
                outside[std::size_t(cell)] = true;
    const auto cell_of = [&](int pixel, int rows, int columns) {
        return std::size_t(pixel / columns * height / rows * width + pixel % columns * width / columns);
    };
    const auto above = [&](int rows, int columns, const std::vector<double>& shares) {
        const std::vector<double> fine = bilinear(heights, height, width, rows, columns),
                                  most = bilinear(around, height, width, rows, columns);
        std::vector<bool> seeds(fine.size()), bright(fine.size()), mask(fine.size()), rest(fine.size(), true);
        for (std::size_t i = 0; i < fine.size(); ++i) {
            seeds[i] = found[cell_of(int(i), rows, columns)];
            bright[i] =
                height_found > 0 && fine[i] >= level && float(fine[i]) >= float(most[i]) * float(shares[i]);
        }
        const auto overlap = [](const Pixels& component, const std::vector<bool>& other) {
            return std::any_of(component.begin(), component.end(),
                               [&](int i) { return other[std::size_t(i)]; });
        };
        for (int cell = 0; cell < height * width; ++cell)  // each keeps the pixel at its centre
            if (found[std::size_t(cell)])
                seeds[std::size_t((2 * (cell / width) + 1) * rows / (2 * height) * columns +
                                  (2 * (cell % width) + 1) * columns / (2 * width))] = true;
        for (const Pixels& component : components(bright, rows, columns, uflow::Connectivity::four))
            if (overlap(component, seeds))
                for (const int i : component) mask[std::size_t(i)] = true;
        if (std::find(mask.begin(), mask.end(), true) == mask.end()) mask = seeds;
        for (std::size_t i = 0; i < fine.size(); ++i) rest[i] = !mask[i];
        for (const Pixels& component : components(rest, rows, columns, uflow::Connectivity::four)) {
            const bool at_border = std::any_of(component.begin(), component.end(), [&](int i) {
                const int row = i / columns, col = i % columns;
                return row == 0 || row == rows - 1 || col == 0 || col == columns - 1;
            });
            if (!at_border)
                for (const int i : component) mask[std::size_t(i)] = true;
        }
        return mask;
    };
    std::vector<double> shares(std::size_t(out_height * out_width), 0.8);
    if (picture) {
        const int rows = std::min(4 * height, picture->height), columns = std::min(4 * width, picture->width);
        const auto parts = std::size_t(rows * columns);
        std::vector<bool> far(parts);
        for (std::size_t part = 0; part < parts; ++part)
            far[part] = outside[cell_of(int(part), rows, columns)];
        const std::vector<bool> inside = above(rows, columns, std::vector<double>(parts, 1.0));
        const std::vector<double> fine = bilinear(heights, height, width, rows, columns);
        std::vector<bool> high(parts), deep = inside;  // no part outside less than half a cell away
        const int down = std::max((rows / height + 1) / 2, 1), along = std::max((columns / width + 1) / 2, 1);
        for (int part = 0; part < rows * columns; ++part) {
            high[std::size_t(part)] = inside[std::size_t(part)] || fine[std::size_t(part)] >= level;
            for (int other = 0; other < rows * columns; ++other)
                if (!inside[std::size_t(other)] && std::abs(part / columns - other / columns) <= down &&
                    std::abs(part % columns - other % columns) <= along)
                    deep[std::size_t(part)] = false;
        }
        std::vector<Pixels> hearts;
        for (Pixels region : components(high, rows, columns, uflow::Connectivity::four)) {
            region.erase(std::remove_if(region.begin(), region.end(),
                                        [&](int part) { return !inside[std::size_t(part)]; }),
                         region.end());
            if (!region.empty()) hearts.push_back(region);
        }
        const std::vector<double> like =
            bilinear(likeness(colours_of(*picture, rows, columns), hearts, deep, far), rows, columns,
                     out_height, out_width);
        for (std::size_t i = 0; i < shares.size(); ++i) shares[i] = 0.8f * (1.0f - 0.5f * float(like[i]));
    }
    return above(out_height, out_width, shares);
}

}  // namespace uflow_test
