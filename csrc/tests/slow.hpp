// Slow twins of the core, straight from the definitions: what the fuzz target holds it against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
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

// The outlines of what was found, step by step: see draw_regions.
inline std::vector<bool> outlines(const std::vector<double>& map, const std::vector<bool>& found, int height,
                                  int width, double usual, double quiet, int out_height, int out_width) {
    const auto cells = std::size_t(height * width), pixels = std::size_t(out_height * out_width);
    std::vector<double> ground, peaks;
    for (std::size_t cell = 0; cell < cells; ++cell) (found[cell] ? peaks : ground).push_back(map[cell]);
    std::sort(ground.begin(), ground.end());
    const std::size_t count = ground.size();
    const double background = count ? (ground[(count - 1) / 2] + ground[count / 2]) / 2 : usual;
    const double height_found =
        peaks.empty() ? 0.0 : *std::max_element(peaks.begin(), peaks.end()) - background;
    const double level = background + std::min(std::max(quiet - usual, height_found / 4), height_found / 2);
    // Four fifths of the root mean square height of what is above the level within two cells.
    std::vector<double> edges(cells);
    for (int cell = 0; cell < height * width; ++cell) {
        double squares = 0, high = 0;
        for (int other = 0; other < height * width; ++other) {
            const double value = map[std::size_t(other)];
            if (std::abs(cell / width - other / width) <= 2 && std::abs(cell % width - other % width) <= 2 &&
                value >= level) {
                squares += (value - background) * (value - background);
                ++high;
            }
        }
        edges[std::size_t(cell)] = background + 0.8 * std::sqrt(squares / std::max(high, 1.0));
    }
    const std::vector<double> fine = bilinear(map, height, width, out_height, out_width),
                              most = bilinear(edges, height, width, out_height, out_width);
    std::vector<bool> seeds(pixels), bright(pixels), mask(pixels), rest(pixels, true);
    for (int pixel = 0; pixel < out_height * out_width; ++pixel) {
        const auto i = std::size_t(pixel);
        const int row = pixel / out_width * height / out_height, col = pixel % out_width * width / out_width;
        seeds[i] = found[std::size_t(row * width + col)];
        bright[i] = height_found > 0 && fine[i] >= level && fine[i] >= most[i];
    }
    const auto overlap = [](const Pixels& component, const std::vector<bool>& other) {
        return std::any_of(component.begin(), component.end(), [&](int i) { return other[std::size_t(i)]; });
    };
    for (int cell = 0; cell < height * width; ++cell)  // each keeps the pixel at its centre
        if (found[std::size_t(cell)])
            seeds[std::size_t((2 * (cell / width) + 1) * out_height / (2 * height) * out_width +
                              (2 * (cell % width) + 1) * out_width / (2 * width))] = true;
    for (const Pixels& component : components(bright, out_height, out_width, uflow::Connectivity::four))
        if (overlap(component, seeds))
            for (const int i : component) mask[std::size_t(i)] = true;
    if (std::find(mask.begin(), mask.end(), true) == mask.end()) mask = seeds;
    for (std::size_t i = 0; i < pixels; ++i) rest[i] = !mask[i];
    for (const Pixels& component : components(rest, out_height, out_width, uflow::Connectivity::four)) {
        const bool outside = std::any_of(component.begin(), component.end(), [&](int i) {
            const int row = i / out_width, col = i % out_width;
            return row == 0 || row == out_height - 1 || col == 0 || col == out_width - 1;
        });
        if (!outside)
            for (const int i : component) mask[std::size_t(i)] = true;
    }
    return mask;
}

}  // namespace uflow_test
